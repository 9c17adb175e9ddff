"""Why a run ended before it was done: its traceback, or the end of its log, against the known causes."""

from __future__ import annotations

import math
import re
import shutil
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colablock._common.text import size_text
from colablock.training.runs.folder import RunFolder, RunRecord, State
from colablock.training.runs.known_crashes import Advice, Cause, cause_in, cause_of_signal, named_cause
from colablock.training.runs.loss_curve import number_of
from colablock.training.runs.progress import START_MARK, plain_text

__all__ = ["Explanation", "Traceback", "explain", "tracebacks"]

_END_OF_LOG = 512 * 1024  # bytes
_LAST = 80  # lines of a log in which a cause is looked for when there is no traceback
_OF_THE_RUN = ("matrix", "model", "precision", "runner")
_SHOWN = 12  # lines of a traceback
_MESSAGE = 20  # lines of an exception's own message
_HEADER = "Traceback (most recent call last):"
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_RANK = re.compile(r"^\[(?:rank|default)(\d+)\]:? ?")
_LAUNCHER = re.compile(
    r"ChildFailedError|CalledProcessError|ProcessExitedException|accelerate/commands/launch\.py"
)
_SIGNAL = re.compile(
    r"died with <Signals\.\w+: (?P<a>\d+)>|[Ss]ignal (?P<b>\d+) \(SIG|exitcode\s*: -(?P<c>\d+)"
    r"|terminated with signal (?P<d>SIG\w+)|Fatal Python error: (?P<e>Segmentation fault|Bus error|Aborted)"
)
_NAMED = {
    "SIGKILL": 9,
    "SIGSEGV": 11,
    "Segmentation fault": 11,
    "SIGBUS": 7,
    "Bus error": 7,
    "SIGABRT": 6,
    "Aborted": 6,
    "SIGTERM": 15,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a run ended, as far as can be told.

    *line* is the exception, *details* what its message or the machine says
    beside it, *trace* the end of the traceback or of the log, *log* where all of it is.  *cause* is
    "unknown" where the line has to speak for itself: then *means* says so and *advice* is empty.
    """

    cause: str
    means: str
    line: str = ""
    details: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    log: str = ""
    step: int = 0
    checkpoint: str | None = None  # the last that was saved: what a new call resumes from
    rank: int | None = None  # of several, the one that failed first

    @property
    def title(self) -> str:
        """The reason in one sentence: the meaning of a known cause, else the exception itself."""
        return self.means if self.is_known or not self.line else self.line

    @property
    def is_known(self) -> bool:
        """Whether the cause is one of the known ones."""
        return self.cause != "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traceback:
    """One failure in a log: *text* is the whole chain, *line* the exception that ended it.

    *said* is what the exceptions of the chain say: *text* without its lines of code.
    """

    text: str
    line: str
    said: str
    rank: int | None = None
    at: int = 0  # the line of the log where it begins


def explain(
    folder: RunFolder,
    *,
    state: State | None = None,
    events: Sequence[Mapping[str, Any]] | None = None,
    exit_code: int | None = None,
    system: Path = Path("/"),
) -> Explanation | None:
    """Return why the run ended before it was done, or learnt nothing; None where it is well, or still runs.

    *state* and *events* are those of the run, where they were read already; *exit_code* that of
    its process, below 0 by a signal, where somebody knows it; *system* where ``proc`` and
    ``sys`` are looked for.
    """
    record = folder.record()
    state = state or folder.state(record)
    if state in (State.RUNNING, State.PREPARED):
        return None
    case = _CrashCase(folder, record, folder.metrics() if events is None else events, system)
    if state in (State.DONE, State.STOPPED):
        return case.not_finite()
    log = _end_of(folder.log)
    failure = _failure(folder, record, log)
    if failure is not None:
        cause = cause_in(failure.said)
        if cause is not None:
            return case.told(cause, failure)
    return (
        case.not_finite(failure)
        or (case.unknown(failure) if failure is not None else None)
        or case.killed(log, exit_code)
    )


def tracebacks(log: str) -> list[Traceback]:
    """Return every failure in *log*, first to last: chains as one, those of the launcher left out.

    Lines that torch or a launcher marked with a rank are read rank by rank,
    since the ranks write at once.
    """
    streams: dict[int | None, list[tuple[int, str]]] = {}
    for at, line in enumerate(log.splitlines()):
        marked = _RANK.match(line)
        rank = int(marked[1]) if marked else None
        streams.setdefault(rank, []).append((at, line[marked.end() :] if marked else line))
    found = [one for rank, lines in streams.items() for one in _of_stream(rank, lines)]
    return sorted((one for one in found if not _LAUNCHER.search(one.text)), key=lambda one: one.at)


def _of_stream(rank: int | None, lines: Sequence[tuple[int, str]]) -> Iterator[Traceback]:
    at = 0
    while at < len(lines):
        if lines[at][1].strip() != _HEADER:
            at += 1
            continue
        begin, line, said = at, "", []
        while at < len(lines) and lines[at][1].strip() == _HEADER:
            raised, end = _one(lines, at)
            said += [text for _, text in lines[raised:end]]
            line = lines[raised][1].strip() if raised < end else ""
            at = _next_of_chain(lines, end)
        text = "\n".join(text for _, text in lines[begin:at])
        yield Traceback(text=text, line=line, said="\n".join(said), rank=rank, at=lines[begin][0])


def _one(lines: Sequence[tuple[int, str]], at: int) -> tuple[int, int]:
    """Return where the exception line of the traceback at *at* is, and where its message ends."""
    indent = len(lines[at][1]) - len(lines[at][1].lstrip())
    end = at + 1
    while end < len(lines) and (not lines[end][1].strip() or lines[end][1][indent:].startswith((" ", "\t"))):
        end += 1
    if end >= len(lines):
        return end, end
    last = end + 1
    while (
        last < min(len(lines), end + _MESSAGE)
        and lines[last][1].strip()
        and lines[last][1].strip() != _HEADER
    ):
        last += 1
    return end, last


def _next_of_chain(lines: Sequence[tuple[int, str]], end: int) -> int:
    """Return where the chain goes on after a traceback that ends at *end*; *end* itself where it does not."""
    at = end
    while at < len(lines) and not lines[at][1].strip():
        at += 1
    if at >= len(lines) or lines[at][1].strip() not in _CHAINED:
        return end
    at += 1
    while at < len(lines) and not lines[at][1].strip():
        at += 1
    return at


def _failure(folder: RunFolder, record: RunRecord | None, log: str) -> Traceback | None:
    """Return what failed: as the shim says, or as the log does where that is empty or only a consequence."""
    end = folder.end()
    told = plain_text(str(end.get("traceback") or ""))
    line = plain_text(str(end.get("error") or ""))
    several = record.processes if record is not None else 1
    if not told and not line:
        return _first_of_last(tracebacks(log), several)
    of_end = tracebacks(told)
    own = Traceback(
        text=told or line,
        line=(line.strip().splitlines() or [of_end[-1].line if of_end else ""])[0],
        said="\n".join([*(one.said for one in of_end), line]) if of_end else f"{told}\n{line}",
    )
    cause = cause_in(own.said)
    if several > 1 and (cause is None or cause.is_consequence):
        first = _first_of_last(tracebacks(log), several)
        other = cause_in(first.said) if first is not None else None
        if first is not None and other is not None and not other.is_consequence:
            return first
    return own


def _first_of_last(found: Sequence[Traceback], several: int) -> Traceback | None:
    """Return the last failure; of *several* processes with one each, that of the first to fail."""
    last: dict[int, Traceback] = {one.rank: one for one in found if one.rank is not None}
    if last:
        return min(last.values(), key=lambda one: one.at)
    return found[-several:][0] if found else None


@dataclass(frozen=True, slots=True)
class _CrashCase:
    """One run that ended, and what can be looked up of it."""

    folder: RunFolder
    record: RunRecord | None
    events: Sequence[Mapping[str, Any]]
    system: Path

    def told(self, cause: Cause, failure: Traceback | None, **more: object) -> Explanation:
        """Return *cause* in words, with what the message and the machine add to it."""
        facts = self.facts() | {key: str(value) for key, value in more.items()}
        facts["checkpoint"] = self._checkpoint() or "the start"
        facts["killer"] = "idle" if _killed(self.system)[0] == 0 else ""
        said = failure.said if failure is not None else ""
        return Explanation(
            cause=cause.name,
            means=_filled(cause.means, facts),
            line=failure.line if failure is not None else "",
            details=(*_details(cause, said), *_looked_up(cause.asks, self.folder, self.system)),
            advice=tuple(self._advice(cause.advice, facts)),
            trace=_shown(failure.text) if failure is not None else _shown(_end_of(self.folder.log)),
            log=str(self.folder.log),
            step=self._step(),
            checkpoint=self._checkpoint(),
            rank=failure.rank if failure is not None else None,
        )

    def not_finite(self, failure: Traceback | None = None) -> Explanation | None:
        """Return that the loss became no number, where the last one that was logged is none."""
        logged = [
            (event, loss)
            for event in self.events
            if event.get("event") == "log" and (loss := number_of(event, "loss")) is not None
        ]
        if not logged or math.isfinite(logged[-1][1]):
            return None
        first = len(logged) - 1
        while first > 0 and not math.isfinite(logged[first - 1][1]):
            first -= 1
        return self.told(
            named_cause("loss-not-finite"),
            failure,
            loss=logged[-1][1],
            step=logged[first][0].get("step", "?"),
        )

    def unknown(self, failure: Traceback) -> Explanation:
        """Return what was raised, since nothing is known about it."""
        return self.told(named_cause("unknown"), failure)

    def killed(self, log: str, exit_code: int | None) -> Explanation:
        """Return what ended processes that could not say it themselves."""
        tail = "\n".join(log.splitlines()[-_LAST:])
        by_signal = cause_of_signal(_signal_in(tail) or max(-(exit_code or 0), 0))
        cause = cause_in(tail, is_log=True)
        record = self.record
        if cause is not None and not (cause.is_consequence and by_signal is not None):
            return self.told(cause, Traceback(text=tail, line=_line_with(cause, tail), said=tail))
        if by_signal is not None:
            return self.told(by_signal, None)
        if record is not None and _boot_time(self.system) > record.started > 0:
            return self.told(named_cause("machine-restarted"), None)
        return self.told(named_cause("gone"), None)

    def facts(self) -> dict[str, str]:
        """Return what texts may name."""
        record = self.record
        if record is None:
            return {}
        facts = {key: str(value) for key, value in record.config.items()}
        return facts | {name: getattr(record, name) for name in _OF_THE_RUN}

    def _advice(self, advice: Sequence[Advice], facts: Mapping[str, str]) -> Iterator[str]:
        record = self.record
        settings = dict(record.config) if record is not None else {}
        settings |= {name: facts.get(name, "") for name in (*_OF_THE_RUN, "killer")}
        for one in advice:
            if any(_is_among(settings.get(key), value) for key, value in one.unless.items()):
                continue
            if one.for_hub and not _is_of_hub(record):
                continue
            text = _filled(one.text, facts)
            if text:
                yield text

    def _step(self) -> int:
        steps = [step for event in self.events if (step := number_of(event, "step")) is not None]
        return int(steps[-1]) if steps and math.isfinite(steps[-1]) else 0

    def _checkpoint(self) -> str | None:
        saved = (event.get("path") for event in reversed(self.events) if event.get("event") == "save")
        names = (Path(path).name for path in saved if isinstance(path, str))
        return next((name for name in names if (self.folder.path / name).is_dir()), None)


def _details(cause: Cause, said: str) -> tuple[str, ...]:
    found = ((detail.text, detail.pattern.search(said)) for detail in cause.details)
    filled = (_filled(text, match.groupdict()) for text, match in found if match)
    return tuple(dict.fromkeys(text for text in filled if text))


def _filled(text: str, facts: Mapping[str, str | None]) -> str:
    """Return *text* with its facts; "" where one is not known, but for a ``(now ...)``: that is left out."""
    short = re.sub(r" \(now \{(\w+)\}\)", lambda found: found[0] if facts.get(found[1]) else "", text)
    names = [name for _, name, _, _ in string.Formatter().parse(short) if name]
    if not all(facts.get(name) for name in names):
        return ""
    return short.format_map({name: facts[name] for name in names})


def _is_among(value: object, unwanted: object) -> bool:
    return value in unwanted if isinstance(unwanted, list) else value == unwanted


def _is_of_hub(record: RunRecord | None) -> bool:
    return (
        record is not None
        and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", record.model))
        and not Path(record.model).exists()
    )


def _line_with(cause: Cause, text: str) -> str:
    pattern = cause.pattern
    return next((line.strip() for line in text.splitlines() if pattern and pattern.search(line)), "")


def _shown(text: str) -> tuple[str, ...]:
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return tuple(lines[-_SHOWN:])


def _signal_in(text: str) -> int:
    """Return the number of the signal that ended a process first, as a launcher told; 0 where none did."""
    for found in _SIGNAL.finditer(text):
        word = next(value for value in found.groups() if value)
        number = int(word) if word.isdigit() else _NAMED.get(word, 0)
        if number:
            return number
    return 0


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - _END_OF_LOG, 0))
            text = plain_text(file.read().decode(errors="replace"))
    except OSError:
        return ""
    return text[max(text.rfind(f"\n{START_MARK}"), 0) :]


# What the machine says


def _looked_up(what: str, folder: RunFolder, system: Path) -> Iterator[str]:
    if what == "disk":
        yield from _room(folder.path, "there")
    elif what == "shared-memory":
        yield from _room(system / "dev/shm", "in /dev/shm")
    elif what == "memory":
        yield from _killer(system)


def _room(path: Path, where: str) -> Iterator[str]:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return
    yield f"{size_text(usage.free)} of {size_text(usage.total)} are free {where} now"


def _killer(system: Path) -> Iterator[str]:
    """Yield what the kernel's out-of-memory killer did."""
    killed, where = _killed(system)
    if killed is None:
        yield "most often that is the kernel, when the machine's memory is full; it keeps no count here"
    elif killed:
        processes = "1 process" if killed == 1 else f"{killed} processes"
        yield (
            f"the kernel has ended {processes} {where} for want of memory since it was started:"
            " most likely this one was among them"
        )
    else:
        yield f"it was not for want of memory: the kernel has ended nothing {where} for that"


def _killed(system: Path) -> tuple[int | None, str]:
    """Return how many processes the kernel ended for want of memory, None if unknown, and where."""
    for path, where in (
        ("sys/fs/cgroup/memory.events", "in this container"),
        ("sys/fs/cgroup/memory/memory.oom_control", "in this container"),
        ("proc/vmstat", "on this machine"),
    ):
        found = re.search(r"^oom_kill (\d+)$", _read(system / path), re.MULTILINE)
        # Version 1 counts no groups below, so that 0 says nothing.
        if found and (found[1] != "0" or not path.endswith("oom_control")):
            return int(found[1]), where
    return None, ""


def _boot_time(system: Path) -> float:
    found = re.search(r"^btime (\d+)$", _read(system / "proc/stat"), re.MULTILINE)
    return float(found[1]) if found else 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
