"""Explain why a run ended early: match its traceback, or the end of its log, against the known causes."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.decoding import is_plain_name, read_end
from colablock._common.limits import CRASH_TEXT
from colablock.training.runs.crash_facts import (
    advice_for,
    boot_time,
    details_of,
    fill_in,
    found_matrices,
    machine_facts,
    newer_release,
    oom_kills,
    signal_in,
    stack_details,
)
from colablock.training.runs.folder import RunFolder, RunRecord, State
from colablock.training.runs.known_crashes import (
    Advice,
    Cause,
    cause_in,
    cause_of_signal,
    general_cause_in,
    named_cause,
)
from colablock.training.runs.loss_curve import number_of
from colablock.training.runs.progress import START_MARK, plain_text

if TYPE_CHECKING:
    from colablock.matrix.model import Matrix

__all__ = [
    "CHAIN_LINES",
    "GOES_ON",
    "Explanation",
    "Traceback",
    "explain",
    "first_failure",
    "last_trace_lines",
    "matching_line",
    "tracebacks",
    "without_rank",
]

_LAST_LINES = 80  # of a log without a traceback, in which a cause is searched
_RECORD_FACTS = ("matrix", "model", "precision", "runner")
_MAX_TRACE = 12  # lines of a traceback in an explanation
_MAX_MESSAGE = 20  # lines of an exception's message
_HEADER = "Traceback (most recent call last):"
_REASON_FOLLOWS = "because of the following error (look up to see its traceback):"
GOES_ON = "(Request ID: "  # the hub's reason is in the paragraph after this line
CHAIN_LINES = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_RANK = re.compile(r"^\[(?:rank|default)(\d+)\]:? ?")
_LAUNCHER = re.compile(
    r"ChildFailedError|CalledProcessError|ProcessExitedException|accelerate/commands/launch\.py"
)
_OF_RANKS = re.compile(r"ChildFailedError|ProcessExitedException|SignalException|KeyboardInterrupt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a run ended early, as far as it is known.

    *line* is the exception, *details* are facts from its message and from the machine, *trace* is
    the end of the traceback or of the log, *log* the path of the whole log.  If *cause* is
    "unknown", *means* says so, *advice* is empty, and *line* is all there is.
    """

    cause: str
    means: str
    line: str = ""
    details: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    log: str = ""
    step: int = 0
    checkpoint: str | None = None  # the last one that was saved, from which the next call resumes
    rank: int | None = None  # the rank that failed first

    @property
    def title(self) -> str:
        """The reason in one sentence: the meaning of a known cause, else the exception."""
        return self.means if self.is_known or not self.line else self.line

    @property
    def is_known(self) -> bool:
        """Whether the cause is one of the known ones."""
        return self.cause != "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traceback:
    """One failure in a log: *text* is the whole chain, *line* the last exception.

    *messages* has the messages of all exceptions in the chain, without lines of code.  *at* is the
    line of the log where the chain starts.
    """

    text: str
    line: str
    messages: str
    rank: int | None = None
    at: int = 0

    @property
    def stated(self) -> str:
        """The last exception, with the line after it if that has the reason."""
        if not self.line.endswith(":"):
            return self.line
        said = [line.strip(" │╰─▶") for line in self.messages.splitlines() if line.strip()]
        after = said[said.index(self.line) + 1 :] if self.line in said else []
        # transformers wraps one such line in another.
        reason = next((line for line in after if not line.endswith(_REASON_FOLLOWS)), "")
        if self.line.endswith(_REASON_FOLLOWS) and reason:
            return f"{self.line.partition(': ')[0]}: {reason}"
        return f"{self.line} {reason}".strip()


def explain(
    folder: RunFolder,
    *,
    state: State | None = None,
    events: Sequence[Mapping[str, Any]] | None = None,
    exit_code: int | None = None,
    system: Path = Path("/"),
) -> Explanation | None:
    """Return why the run ended early or did not learn; None if it succeeded or is running.

    *state* and *events* are those of the run if they were read already.  *exit_code* is that of
    its process if known; a negative one is a signal.  *system* is the folder with ``proc`` and
    ``sys``.
    """
    record = folder.record()
    state = state or folder.state(record)
    if state in (State.RUNNING, State.PREPARED):
        return None
    case = _EndedRun(folder, record, folder.metrics() if events is None else events, system)
    if state in (State.DONE, State.STOPPED):
        return case.not_finite()
    log = _read_end(folder.log)
    failure = _failure(folder, record, log) or _failure_of_launcher(log)
    if failure is not None:
        cause = cause_in(failure.messages) or general_cause_in(failure.messages, failure.text)
        if cause is not None:
            return case.explanation(cause, failure)
    return (
        case.not_finite(failure)
        or (case.unknown(failure) if failure is not None else None)
        or case.killed(log, exit_code)
    )


def tracebacks(log: str) -> list[Traceback]:
    """Return every failure in *log*, first to last.

    A chain of exceptions is one failure.  Failures of the launcher are omitted.  The ranks write
    to the log at the same time, so lines with a rank prefix (of torch or a launcher) are grouped
    by rank first.
    """
    return [one for one in _all_tracebacks(log) if not _LAUNCHER.search(one.text)]


def _failure_of_launcher(log: str) -> Traceback | None:
    """Return the last failure of the launcher itself: no rank has failed, and nobody has ended it."""
    for one in reversed(_all_tracebacks(log)):
        # Two processes launch: the first one reports that the second one has failed.  Others may write later.
        own = [*takewhile(lambda line: "CalledProcessError" not in line, one.messages.splitlines())]
        if any(map(str.strip, own)) and not _OF_RANKS.search(one.text):
            return replace(one, line=own[0].strip(), messages="\n".join(own))
    return None


def _all_tracebacks(log: str) -> list[Traceback]:
    """Return every failure in *log*, also those of the launcher, first to last."""
    streams: dict[int | None, list[tuple[int, str]]] = {}
    for at, line in enumerate(log.splitlines()):
        marked = _RANK.match(line)
        rank = int(marked[1]) if marked else None
        streams.setdefault(rank, []).append((at, line[marked.end() :] if marked else line))
    found = [one for rank, lines in streams.items() for one in _tracebacks_of_rank(rank, lines)]
    return sorted(found, key=lambda one: one.at)


def without_rank(line: str) -> str:
    """Return *line* of a log without the prefix that names its rank."""
    return _RANK.sub("", line)


def _tracebacks_of_rank(rank: int | None, lines: Sequence[tuple[int, str]]) -> Iterator[Traceback]:
    at = 0
    while at < len(lines):
        if lines[at][1].strip() != _HEADER:
            at += 1
            continue
        begin, line, messages = at, "", []
        while at < len(lines) and lines[at][1].strip() == _HEADER:
            raised, end = _traceback_end(lines, at)
            messages += [text for _, text in lines[raised:end]]
            line = lines[raised][1].strip() if raised < end else ""
            at = _chain_end(lines, end)
        text = "\n".join(text for _, text in lines[begin:at])
        yield Traceback(text=text, line=line, messages="\n".join(messages), rank=rank, at=lines[begin][0])


def _traceback_end(lines: Sequence[tuple[int, str]], at: int) -> tuple[int, int]:
    """Return the index of the exception line of the traceback at *at*, and the end of its message."""
    indent = len(lines[at][1]) - len(lines[at][1].lstrip())
    end = at + 1
    while end < len(lines) and (not lines[end][1].strip() or lines[end][1][indent:].startswith((" ", "\t"))):
        end += 1
    if end >= len(lines):
        return end, end
    last = end + 1
    while (
        last < min(len(lines), end + _MAX_MESSAGE)
        and (lines[last][1].strip() or GOES_ON in lines[last - 1][1])
        and lines[last][1].strip() != _HEADER
    ):
        last += 1
    return end, last


def _chain_end(lines: Sequence[tuple[int, str]], end: int) -> int:
    """Return the index of the next traceback in a chain, after one that ends at *end*; else *end*."""
    at = end
    while at < len(lines) and not lines[at][1].strip():
        at += 1
    if at >= len(lines) or lines[at][1].strip() not in CHAIN_LINES:
        return end
    at += 1
    while at < len(lines) and not lines[at][1].strip():
        at += 1
    return at


def _failure(folder: RunFolder, record: RunRecord | None, log: str) -> Traceback | None:
    """Return the failure from ``end.json``, or from the log if that is empty or only a consequence."""
    end = folder.end()
    trace = plain_text(str(end.get("traceback") or ""))
    line = plain_text(str(end.get("error") or ""))
    processes = record.processes if record is not None else 1
    if not trace and not line:
        return first_failure(tracebacks(log), processes)
    of_end = tracebacks(trace)
    own = Traceback(
        text=trace or line,
        line=(line.strip().splitlines() or [of_end[-1].line if of_end else ""])[0],
        messages="\n".join([*(one.messages for one in of_end), line]) if of_end else f"{trace}\n{line}",
    )
    cause = cause_in(own.messages)
    if processes > 1 and (cause is None or cause.is_consequence):
        first = first_failure(tracebacks(log), processes)
        other = cause_in(first.messages) if first is not None else None
        if first is not None and other is not None and not other.is_consequence:
            return first
    return own


def first_failure(found: Sequence[Traceback], processes: int) -> Traceback | None:
    """Return the last failure; of several ranks with one each, that of the rank that failed first."""
    last: dict[int, Traceback] = {one.rank: one for one in found if one.rank is not None}
    if last:
        return min(last.values(), key=lambda one: one.at)
    return found[-processes:][0] if found else None


@dataclass(frozen=True, slots=True)
class _EndedRun:
    """A run that has ended, with its record and events; *system* has ``proc`` and ``sys``."""

    folder: RunFolder
    record: RunRecord | None
    events: Sequence[Mapping[str, Any]]
    system: Path

    def explanation(self, cause: Cause, failure: Traceback | None, **more: object) -> Explanation:
        """Return the explanation for *cause*, with details from the messages and the machine."""
        facts = self.facts() | {key: str(value) for key, value in more.items()}
        facts["checkpoint"] = self._checkpoint() or "the start"
        is_here = self.record is None or not self.record.is_elsewhere
        facts["killer"] = "idle" if is_here and oom_kills(self.system)[0] == 0 else ""
        facts["newer"] = newer_release(cause, self.versions, self.matrices)
        messages = failure.messages if failure is not None else ""
        matrix = self.record.matrix if self.record is not None else ""
        return Explanation(
            cause=cause.name,
            means=fill_in(cause.means, facts),
            line=failure.stated if failure is not None else "",
            details=(
                *details_of(cause, messages, failure.text if failure is not None else ""),
                *stack_details(cause, messages, self.versions, self.matrices, matrix),
                *(machine_facts(cause.look_up, self.folder.path, self.system) if is_here else ()),
            ),
            advice=tuple(self._advice(cause.advice, facts)),
            trace=last_trace_lines(failure.text)
            if failure is not None
            else last_trace_lines(_read_end(self.folder.log)),
            log=str(self.folder.log),
            step=self._step(),
            checkpoint=self._checkpoint(),
            rank=failure.rank if failure is not None else None,
        )

    def not_finite(self, failure: Traceback | None = None) -> Explanation | None:
        """Return the explanation if the last logged loss is not finite, else None."""
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
        return self.explanation(
            named_cause("loss-not-finite"),
            failure,
            loss=logged[-1][1],
            step=logged[first][0].get("step", "?"),
        )

    def unknown(self, failure: Traceback) -> Explanation:
        """Return the explanation for a failure without a known cause."""
        return self.explanation(named_cause("unknown"), failure)

    def killed(self, log: str, exit_code: int | None) -> Explanation:
        """Return the explanation for processes that ended without a traceback."""
        tail = "\n".join(log.splitlines()[-_LAST_LINES:])
        by_signal = cause_of_signal(signal_in(tail) or max(-(exit_code or 0), 0))
        cause = cause_in(tail, is_log=True)
        record = self.record
        if cause is not None and not (cause.is_consequence and by_signal is not None):
            return self.explanation(
                cause, Traceback(text=tail, line=matching_line(cause, tail), messages=tail)
            )
        if by_signal is not None:
            return self.explanation(by_signal, None)
        if record is not None and record.is_elsewhere:
            since = datetime.fromtimestamp(self.folder.last_sign(record), tz=timezone.utc)
            facts = {"host": record.host, "since": f"{since:%Y-%m-%d %H:%M} UTC"}
            return self.explanation(named_cause("host-gone"), None, **facts)
        if record is not None and boot_time(self.system) > record.started > 0:
            return self.explanation(named_cause("machine-restarted"), None)
        return self.explanation(named_cause("gone"), None)

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of the stack that the run was started with."""
        return self.record.versions if self.record is not None else {}

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrices that are found; none if the versions are unknown, since nothing compares with them."""
        return found_matrices(os.environ) if self.versions else ()

    def facts(self) -> dict[str, str]:
        """Return the values that texts may contain."""
        record = self.record
        if record is None:
            return {}
        facts = {key: str(value) for key, value in record.config.items()}
        facts |= {name: getattr(record, name) for name in _RECORD_FACTS}
        matrix = shlex.quote(record.source or record.matrix)  # a word of a command
        return facts | {"matrix": matrix, "stack": matrix}

    def _advice(self, advice: Sequence[Advice], facts: Mapping[str, str]) -> Iterator[str]:
        settings = dict(self.record.config) if self.record is not None else {}
        settings |= {name: facts.get(name, "") for name in (*_RECORD_FACTS, "killer")}
        return advice_for(advice, facts, settings, for_hub=_is_of_hub(self.record))

    def _step(self) -> int:
        steps = [step for event in self.events if (step := number_of(event, "step")) is not None]
        return int(steps[-1]) if steps and math.isfinite(steps[-1]) else 0

    def _checkpoint(self) -> str | None:
        saved = (event.get("path") for event in reversed(self.events) if event.get("event") == "save")
        names = (Path(path).name for path in saved if isinstance(path, str))
        return next(
            (name for name in names if is_plain_name(name) and (self.folder.path / name).is_dir()), None
        )


def _is_of_hub(record: RunRecord | None) -> bool:
    return (
        record is not None
        and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", record.model))
        and not os.path.exists(record.model)  # noqa: PTH110 - a name may be too long for a path
    )


def matching_line(cause: Cause, text: str) -> str:
    """Return the first line of *text* in which *cause* is recognised."""
    patterns = [one for one in (cause.first, cause.pattern, cause.general) if one is not None]
    found = (line for one in patterns for line in text.splitlines() if one.search(line))
    return next(found, "").strip()


def last_trace_lines(text: str) -> tuple[str, ...]:
    """Return the end of a traceback or of a log, as an explanation shows it."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    return tuple(lines[-_MAX_TRACE:])


def _read_end(log: Path) -> str:
    text = plain_text(read_end(log, CRASH_TEXT).decode(errors="replace"))
    return text[max(text.rfind(f"\n{START_MARK}"), 0) :]
