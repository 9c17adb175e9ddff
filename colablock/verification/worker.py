"""Run jobs in a fresh interpreter, and return the result of each, even if one crashes the process."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from importlib import resources
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread
from typing import Any, BinaryIO

from colablock._common.decoding import Malformed, decode
from colablock._common.limits import ARGUMENT, WORKER_ANSWER
from colablock._common.process import exit_words, kill_session, last_lines, source_command, start_session
from colablock._masking import masked
from colablock._records import dataclass
from colablock.environment.accelerator import NF4_ON_CPU

__all__ = ["Child", "Job", "JobResult", "RunningCommand", "is_python", "run_jobs"]

Job = tuple[str, str]
"""The kind and the subject of a job: ``("import", "torch")``."""

# Bytecode that says that it need not be compared with its source (PEP 552) must not hide what is installed.
_CHECKED = ("--check-hash-based-pycs", "always")
_BLOCK = 1 << 16
_START = 60.0  # seconds for an interpreter to start and to read the installed distributions


def is_python(command: str) -> bool:
    """Whether a command means the interpreter of the environment, which may have another name there."""
    return command in {"python", "python3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The result of one job."""

    kind: str
    subject: str
    passed: bool
    detail: str = ""
    seconds: float = 0.0
    skipped: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""  # of an import: the file or folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """How proofs run: interpreter, variables, an empty working directory, and seconds per job.

    Imports write bytecode into the folders *bytecode* only.  Commands write none.
    """

    python: str
    environ: Mapping[str, str]
    folder: Path
    timeout: float
    bytecode: Sequence[str] = ()

    def start_command(self, command: Sequence[str], scripts: str) -> RunningCommand:
        """Start a command of the environment, in a working directory of its own."""
        own = os.pathsep.join([scripts, str(Path(self.python).parent)])
        program = self.python if is_python(command[0]) else shutil.which(command[0], path=own)
        if program is None:
            return RunningCommand(failed=f"there is no command `{command[0]}` in `{scripts}`")
        child = replace(self, folder=Path(mkdtemp(dir=self.folder.parent)))
        output = (child.folder / "output").open("w+b")
        try:
            process = child.start([program, *command[1:]], output)
        except OSError as error:
            output.close()
            return RunningCommand(failed=f"`{program}` cannot be run: {error.strerror}")
        return RunningCommand(process=process, output=output, timeout=self.timeout)

    def start_jobs(self, jobs: Sequence[Job], output: BinaryIO, descriptor: int) -> subprocess.Popen[bytes]:
        """Start an interpreter that runs *jobs* and writes the results to *descriptor*."""
        script = (
            resources.files("colablock.verification")
            .joinpath("_worker_script.py")
            .read_text(encoding="utf-8")
        )
        known = json.dumps({"nf4_on_cpu": NF4_ON_CPU, "bytecode": self._folders()})
        arguments = (str(descriptor), json.dumps(jobs), known)
        command = source_command(self.python, script, *arguments, options=_CHECKED)
        return self.start(command, output, descriptor)

    def _folders(self) -> list[str]:
        """Return the folders for bytecode, as many as fit into an argument: it only saves time."""
        room, found = ARGUMENT, []
        for folder in self.bytecode:
            room -= len(json.dumps(folder)) + 2
            if room > 0:
                found.append(folder)
        return found

    def start(self, command: Sequence[str], output: BinaryIO, *descriptors: int) -> subprocess.Popen[bytes]:
        """Start any command in the working directory."""
        # It has a session of its own, so that its child processes end with it.
        return start_session(
            command, environ=self.environ, folder=self.folder, output=output, descriptors=descriptors
        )


class RunningCommand:
    """A command that runs beside the jobs of a proof.  Leaving the block ends it."""

    def __init__(
        self,
        *,
        process: subprocess.Popen[bytes] | None = None,
        output: BinaryIO | None = None,
        timeout: float = 0.0,
        failed: str = "",
    ) -> None:
        self._process, self._output, self._failed = process, output, failed
        self._started = self._ended = time.monotonic()
        self._waiting = Thread(target=self._wait, args=(timeout,), daemon=True)
        try:
            self._waiting.start()
        except RuntimeError:  # no thread can be started
            if process is not None and output is not None:
                _end(process)
                output.close()
            raise

    def __enter__(self) -> RunningCommand:  # noqa: PYI034 - nobody derives from it
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._waiting.is_alive():
            kill_session(self._process)
        self._waiting.join()
        if self._output is not None:
            self._output.close()

    def result(self) -> tuple[bool, str, float]:
        """Wait for the end; return whether it succeeded, its last lines if not, and its seconds."""
        self._waiting.join()
        return not self._failed, self._failed, self._ended - self._started

    def _wait(self, timeout: float) -> None:
        if self._process is None or self._output is None:
            return
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._failed = f"it did not finish within {timeout:g} seconds"
        else:
            self._failed = "" if status == 0 else _ended(status, self._output)
        self._ended = time.monotonic()
        _end(self._process)


def run_jobs(child: Child, jobs: Sequence[Job]) -> Iterator[JobResult]:
    """Yield the result of each job, in order.

    The jobs share one interpreter.  If a job crashes it or hangs, that job has failed, and the
    others run in another interpreter.
    """
    pending = list(jobs)
    while pending:
        for answer in _one_process(child, tuple(pending)):
            del pending[0]
            yield answer


def _one_process(child: Child, jobs: Sequence[Job]) -> Iterator[JobResult]:
    """Yield the results of one process: at least one, at most all."""
    reading, writing = os.pipe()
    with (child.folder / "output").open("w+b") as output, os.fdopen(reading, "rb", buffering=0) as answers:
        try:
            process = child.start_jobs(jobs, output, writing)
        except OSError as error:
            yield JobResult(kind=jobs[0][0], subject=jobs[0][1], passed=False, detail=str(error))
            return
        finally:
            os.close(writing)
        count = 0
        try:
            for line in _lines(answers, child.timeout):
                if isinstance(line, str):
                    detail = line
                    break
                if line.event == "end":
                    count += 1
                    yield _result(line)
                    if count == len(jobs):
                        return  # a process that a job forked may keep the pipe open
            else:
                detail = _ended(process.wait(), output)
        finally:
            _end(process)
        kind, subject = jobs[count]
        yield JobResult(kind=kind, subject=subject, passed=False, detail=detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class _WorkerAnswer:
    """One line of ``_worker_script.py``: a job begins, or ends with a result."""

    kind: str
    event: str
    subject: str = ""
    passed: bool = False
    detail: str = ""
    seconds: float = 0.0
    skipped: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""  # of an import: the file or folder


def _result(line: _WorkerAnswer) -> JobResult:
    return JobResult(
        kind=line.kind,
        subject=line.subject,
        passed=line.passed,
        detail=masked(line.detail),
        seconds=line.seconds,
        skipped=line.skipped,
        facts=line.facts,
        origin=line.origin,
    )


def _lines(answers: Any, timeout: float) -> Iterator[_WorkerAnswer | str]:
    """Yield each answer when it arrives; or why there will be no more, such as *timeout* seconds without one.

    The tested modules run in the process that answers, so they can write anything.
    """
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        deadline = time.monotonic() + max(timeout, _START)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                yield f"it did not finish within {timeout:g} seconds"
                return
            block = answers.read(_BLOCK)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > WORKER_ANSWER:
                yield "its answer is too long"
                return
            for line in lines:
                try:
                    answer = decode(line, _WorkerAnswer, by_python=True)
                except Malformed as error:
                    yield f"its answer cannot be read: {error}"
                    return
                is_slow = answer.kind == "facts"
                deadline = time.monotonic() + (max(timeout, _START) if is_slow else timeout)
                yield answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with everything that it has started."""
    kill_session(process)
    process.wait()


def _ended(status: int, output: BinaryIO) -> str:
    """Return how a process ended, and the last lines that it wrote."""
    output.seek(0)
    tail = last_lines(output.read().decode(errors="replace"), 8)
    return f"the process {exit_words(status)}\n{tail}".rstrip()
