"""The exceptions of colablock, one leaf for each kind of failure.

::

    ColablockError
    ├── InvalidInput            exit 2: wrong usage, or an invalid file
    │   ├── InvalidCall         a function has no such argument, or cannot use it
    │   ├── InvalidMatrix       every fault of one matrix file, each with its path
    │   ├── InvalidConfig       every fault of a training config, each with its key
    │   ├── InvalidRequirements every fault of requirements files, each with its line
    │   └── NotFound            no matrix, runtime or interpreter of that name
    ├── Unmet                   exit 1: the request cannot be met; nothing was changed
    │   ├── NoSolution          with the chain of reasons
    │   ├── FetchFailed         an index or a file could not be read
    │   ├── BadDistribution     a file does not match its metadata, hash or format
    │   │   └── NoModules       it contains nothing importable
    │   ├── Refused             a rule forbids it (protected, externally managed, another state)
    │   ├── NotInstalled        a dependency of colablock itself is missing
    │   ├── NotProven           a proof failed, and this call changed nothing
    │   └── TrainingFailed      a run ended early
    ├── RolledBack              exit 3: the change failed and was undone
    ├── NotRestored             exit 4: the change failed and could not be undone
    └── AppliedNotProven        exit 5: a proof failed, and the change was kept (``--keep``)

    KeyboardInterrupt
    └── Interrupted             exit 130: the user interrupted the call

A leaf has its facts as attributes; ``str()`` gives the message.  ``hint`` says what the
user can do; it is absent unless it helps in this very case.  Texts that quote foreign text
have no credentials: each error masks them.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from colablock._masking import masked
from colablock._python_words import in_python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "UNCHANGED",
    "AppliedNotProven",
    "BadDistribution",
    "ColablockError",
    "ExitCode",
    "Fault",
    "FetchFailed",
    "Interrupted",
    "InvalidCall",
    "InvalidConfig",
    "InvalidInput",
    "InvalidMatrix",
    "InvalidRequirements",
    "NoModules",
    "NoSolution",
    "NotFound",
    "NotInstalled",
    "NotProven",
    "NotRestored",
    "Refused",
    "RolledBack",
    "TrainingFailed",
    "Unmet",
    "fault_lines",
    "interrupted_as",
]

# What a message quotes has no limit of its own, and a terminal takes seconds for a megabyte.
_MESSAGE = 100_000  # characters; the longest chain of reasons has 20,000
_FAULT = 2000  # characters; real ones have 500
_FAULTS = 100
_BREAK = re.compile(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


class ExitCode(IntEnum):
    """The exit codes of the command line, which are documented."""

    DONE = 0
    UNMET = 1
    USAGE = 2
    ROLLED_BACK = 3
    NOT_RESTORED = 4
    NOT_PROVEN = 5
    BUG = 70
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141  # as of a process that SIGPIPE ended


class ColablockError(Exception):
    """The base class of every exception that colablock raises on purpose."""

    exit_code: ExitCode = ExitCode.BUG
    reference: str = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = _cut(masked(message), _MESSAGE)
        self.hint = masked(hint) if hint is not None else None
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    @property
    def headline(self) -> str:
        """The first line of the message, which says what is wrong."""
        return self.message.partition("\n")[0]

    @property
    def details(self) -> list[str]:
        """The lines below the headline, which say why."""
        return [line.strip() for line in self.message.splitlines()[1:]]

    def speak_python(self) -> None:
        """Say options and commands as Python does: the caller is a notebook or a script."""
        self.message = in_python(self.message)
        self.hint = in_python(self.hint) if self.hint is not None else None
        self.args = (self.message,)


class InvalidInput(ColablockError):
    """The command line, a file or an argument is invalid."""

    exit_code = ExitCode.USAGE
    reference = "invalid-input"


class InvalidCall(InvalidInput, TypeError):
    """A function was called with arguments that it does not take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of a file: its path (``packages.torch.version``), a message, and a hint."""

    path: str
    message: str
    hint: str | None = None

    def __post_init__(self) -> None:
        for name in ("path", "message", "hint"):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, _cut(masked(text), _FAULT))

    def __str__(self) -> str:
        """Return the fault in one line: a value of the file must not add lines of its own to a message."""
        text = f"{self.path}: {self.message}" if self.path else self.message
        text = f"{text} ({self.hint})" if self.hint else text
        return _BREAK.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class InvalidMatrix(InvalidInput):
    """A matrix file has faults, which are all reported at once."""

    reference = "invalid-matrix"

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = masked(source)
        self.faults = tuple(faults)
        super().__init__(_counted(f"the matrix `{source}`", self.faults))


class InvalidConfig(InvalidInput):
    """A training config has faults, which are all reported at once.  *source* is "" without a file."""

    reference = "invalid-config"

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = masked(source)
        self.faults = tuple(faults)
        super().__init__(_counted(f"the config `{source}`" if source else "the config", self.faults))


class InvalidRequirements(InvalidInput):
    """A requirements file, or a file it includes, has faults, which are all reported at once."""

    reference = "invalid-requirements"

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = masked(source)
        self.faults = tuple(faults)
        super().__init__(_counted(f"`{source}`", self.faults))


def _counted(subject: str, faults: Sequence[Fault]) -> str:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n".join([f"{subject} has {count}", *fault_lines(faults)])


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    """Return the lines of a message about *faults*, the first hundred of them."""
    more = [f"  and {len(faults) - _FAULTS} more"] if len(faults) > _FAULTS else []
    return [*(f"  {fault}" for fault in faults[:_FAULTS]), *more]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


class NotFound(InvalidInput):
    """The name is unknown.  The hint has similar names."""

    reference = "not-found"


class Unmet(ColablockError):
    """The request cannot be met, and nothing was changed."""

    exit_code = ExitCode.UNMET
    reference = "unmet"


class NoSolution(Unmet):
    """No set of versions meets every requirement.

    *because* is the chain of reasons, one sentence each, that ends at the user's
    requirements; the message joins them.  *names* are the normalized names in conflict, sorted.  With
    *is_about_python*, another Python or platform may have a solution; with *is_universal*, none has.
    """

    reference = "no-solution"

    def __init__(
        self,
        message: str,
        *,
        because: Sequence[str] = (),
        names: Sequence[str] = (),
        is_about_python: bool = True,
        is_universal: bool = False,
        hint: str | None = None,
    ) -> None:
        self.is_about_python = is_about_python
        self.is_universal = is_universal
        self.because = tuple(map(masked, because))
        self.names = tuple(names)
        lines = [f"  {'and' if at else 'because'} {line}" for at, line in enumerate(self.because)]
        super().__init__("\n".join([message, *lines]), hint=hint)


class FetchFailed(Unmet):
    """An index or a file could not be read over the network or from disk.

    With *is_passing*, a retry or a mirror may succeed.  With *is_blocked*, the network
    refuses: a proxy, a firewall's certificate, or a status that forbids.  *reason* is
    the message without what was requested, if that was added.
    """

    reference = "fetch-failed"

    def __init__(
        self,
        message: str,
        *,
        url: str,
        status: int | None = None,
        hint: str | None = None,
        is_passing: bool = False,
        is_blocked: bool = False,
        reason: str = "",
    ) -> None:
        self.url = masked(url)
        self.status = status
        self.is_passing = is_passing
        self.is_blocked = is_blocked
        self.reason = masked(reason or message)
        super().__init__(message, hint=hint)

    @property
    def is_away(self) -> bool:
        """Whether its host cannot be reached from here, so that nothing is known about the file itself."""
        return self.is_passing or self.is_blocked

    def reworded(self, message: str, *, hint: str | None = None) -> FetchFailed:
        """Return this error with another *message*, and with *hint* in place of its own if there is one."""
        return FetchFailed(
            message,
            url=self.url,
            status=self.status,
            hint=hint or self.hint,
            is_passing=self.is_passing,
            is_blocked=self.is_blocked,
            reason=self.reason,
        )


class BadDistribution(Unmet):
    """A wheel, sdist or archive does not match its name, hash or metadata."""

    reference = "bad-distribution"


class NoModules(BadDistribution):
    """A wheel or archive contains nothing importable."""


class Refused(Unmet):
    """A rule forbids the change; the message names it."""

    reference = "refused"


class PlanOutdated(Refused):
    """The files of the fetched wheels contradict the plan, and another plan takes them into account."""


class NotInstalled(Unmet):
    """Distributions that colablock itself needs are *missing*, as where its source folder is imported."""

    reference = "not-installed"

    def __init__(self, missing: Sequence[str], *, is_source: bool) -> None:
        if is_source:
            message = "colablock is imported from its source folder, and is not installed in this Python"
            hint = "Run `%pip install -q .` in the folder of the clone (in a terminal `pip install .`)"
        else:
            names = " ".join(missing)
            message = f"colablock needs packages that are not installed in this Python: {names}"
            hint = f"Run `%pip install -q {names}` (in a terminal `pip install {names}`)"
        super().__init__(message, hint=hint)
        self.missing = tuple(missing)

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this.  What shows other errors may not be loaded yet, or need what is missing.
        return [f"error: {self}", f"hint: {self.hint}"]


class NotProven(Unmet):
    """A proof failed, and this call changed nothing."""

    reference = "not-proven"


class TrainingFailed(Unmet):
    """A training run ended early.  *folder* has its log and its checkpoints."""

    reference = "training-failed"

    def __init__(self, message: str, *, folder: str = "", hint: str | None = None) -> None:
        self.folder = folder
        super().__init__(message, hint=hint)


class RolledBack(ColablockError):
    """The change failed and was undone.

    If it was the undo of several changes, *undone* are those that are undone nevertheless.
    """

    exit_code = ExitCode.ROLLED_BACK
    reference = "rolled-back"

    def __init__(self, message: str, *, undone: Sequence[object] = (), hint: str | None = None) -> None:
        self.undone = tuple(undone)
        super().__init__(message, hint=hint)


class NotRestored(ColablockError):
    """The change failed, and so did its undo.  *stash* holds the files that were moved away.

    *undone* is that of `RolledBack`.
    """

    exit_code = ExitCode.NOT_RESTORED
    reference = "not-restored"

    def __init__(
        self, message: str, *, stash: str, undone: Sequence[object] = (), hint: str | None = None
    ) -> None:
        self.stash = stash
        self.undone = tuple(undone)
        super().__init__(message, hint=hint)


class AppliedNotProven(ColablockError):
    """A proof failed, and the change was kept as requested."""

    exit_code = ExitCode.NOT_PROVEN
    reference = "applied-not-proven"


#: The state after an interrupt of most calls.
UNCHANGED = "The environment is as it was."


class Interrupted(KeyboardInterrupt):
    """The user has interrupted a call; the message says which state it has left.

    It is a KeyboardInterrupt, so it ends loops and scripts as one.
    """

    def __init__(self, state: str) -> None:
        super().__init__(f"Interrupted. {state}")

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this: where the call was interrupted tells the reader nothing.
        return [str(self)]


@contextmanager
def interrupted_as(state: str | Callable[[], str]) -> Iterator[None]:
    """Raise Interrupted, with *state*, for an interrupt of the block whose state is not said yet.

    A function is asked for the state when the interrupt comes.
    """
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(state if isinstance(state, str) else state()) from None
