"""Jobs for a fresh interpreter, and what became of each, even when one takes the process down."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

from colablock._common.process import last_lines

__all__ = ["Child", "Job", "JobResult", "is_python", "run_jobs"]

Job = tuple[str, str]
"""Kind and subject: ``("import", "torch")``."""

_BLOCK = 1 << 16
_START = 60.0  # seconds for an interpreter to start and to read what is installed


def is_python(command: str) -> bool:
    """Whether a command means the interpreter of the environment, whatever it is called there."""
    return command in {"python", "python3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What became of one job."""

    kind: str
    subject: str
    passed: bool
    detail: str = ""
    seconds: float = 0.0
    skipped: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """How proofs are run: interpreter, variables, an empty folder to work in, seconds for one job."""

    python: str
    environ: Mapping[str, str]
    folder: Path
    timeout: float

    def command(self, command: Sequence[str], scripts: str) -> tuple[bool, str]:
        """Run a command of the environment; whether it succeeded, and the last lines it said if not."""
        own = os.pathsep.join([scripts, str(Path(self.python).parent)])
        program = self.python if is_python(command[0]) else shutil.which(command[0], path=own)
        if program is None:
            return False, f"there is no command `{command[0]}` in `{scripts}`"
        with (self.folder / "output").open("w+b") as output:
            try:
                process = self._start([program, *command[1:]], output)
            except OSError as error:
                return False, f"`{program}` cannot be run: {error.strerror}"
            try:
                status = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                return False, f"not finished after {self.timeout:g} seconds"
            finally:
                _end(process)
            return status == 0, "" if status == 0 else f"{_ended(status)}\n{_tail(output)}".rstrip()

    def start_jobs(self, jobs: Sequence[Job], output: BinaryIO, descriptor: int) -> subprocess.Popen[bytes]:
        """Start an interpreter that works through *jobs* and answers to *descriptor*."""
        script = (
            resources.files("colablock.verification")
            .joinpath("_worker_script.py")
            .read_text(encoding="utf-8")
        )
        # Given as text: run as a file, its folder would be first on the import path, and hide modules.
        arguments = [self.python, "-c", script, str(descriptor), json.dumps(jobs)]
        return self._start(arguments, output, descriptor)

    def _start(self, command: Sequence[str], output: BinaryIO, *descriptors: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=dict(self.environ),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            start_new_session=True,  # so that what it starts ends with it
        )


def run_jobs(child: Child, jobs: Sequence[Job]) -> Iterator[JobResult]:
    """Yield the answer of each job, in order.

    They share one interpreter until one of them crashes or hangs: that one
    has failed, and the rest goes on in another.
    """
    pending = list(jobs)
    while pending:
        for answer in _one_process(child, tuple(pending)):
            del pending[0]
            yield answer


def _one_process(child: Child, jobs: Sequence[Job]) -> Iterator[JobResult]:
    """Yield the answers of one process: at least one, at most all."""
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
                if line is None:
                    detail = f"not finished after {child.timeout:g} seconds"
                    break
                if line["event"] == "end":
                    count += 1
                    yield _answer(line)
                    if count == len(jobs):
                        return  # what it forked may hold the pipe open
            else:
                detail = f"{_ended(process.wait())}\n{_tail(output)}".rstrip()
        finally:
            _end(process)
        kind, subject = jobs[count]
        yield JobResult(kind=kind, subject=subject, passed=False, detail=detail)


def _answer(line: Mapping[str, Any]) -> JobResult:
    return JobResult(
        kind=line["kind"],
        subject=line["subject"],
        passed=line["passed"],
        detail=line.get("detail", ""),
        seconds=line["seconds"],
        skipped=line.get("skipped", False),
        facts=line.get("facts", {}),
    )


def _lines(answers: Any, timeout: float) -> Iterator[dict[str, Any] | None]:
    """Yield each answer as it comes, and None when none has come for *timeout* seconds."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        deadline = time.monotonic() + max(timeout, _START)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                yield None
                return
            block = answers.read(_BLOCK)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                answer = json.loads(line)
                is_slow = answer["kind"] == "facts"
                deadline = time.monotonic() + (max(timeout, _START) if is_slow else timeout)
                yield answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with everything that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ended(status: int) -> str:
    if status >= 0:
        return f"the process ended with status {status}"
    try:
        return f"the process was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"the process was ended by signal {-status}"


def _tail(output: BinaryIO) -> str:
    output.seek(0)
    return last_lines(output.read().decode(errors="replace"), 8)
