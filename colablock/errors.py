"""What stops the work, one leaf per kind of stop.

::

    ColablockError
    ├── InvalidInput            exit 2: usage, or a file that cannot be read as what it should be
    │   ├── InvalidMatrix       every fault of one matrix file, each with its path
    │   ├── InvalidConfig       every fault of a training config, each with its key
    │   ├── InvalidRequirements every fault of a requirements file and those that it names, each with its line
    │   └── NotFound            no matrix, runtime or interpreter of that name
    ├── Unmet                   exit 1: the request cannot be met; nothing was changed
    │   ├── NoSolution          with the because-chain
    │   ├── FetchFailed         an index or a file could not be read
    │   ├── BadDistribution     a file is not what its metadata, hash or format promise
    │   │   └── NoModules       nothing of it could be imported
    │   ├── Refused             a rule forbids it (protected, externally managed, another state)
    │   ├── NotProven           a check failed on an environment that we did not change
    │   └── TrainingFailed      a run ended before it was done
    ├── RolledBack              exit 3: the change failed; the environment is as it was before
    ├── NotRestored             exit 4: the change failed and could not be undone
    └── AppliedNotProven        exit 5: applied and kept although a proof failed (``--keep``)

A leaf carries its facts as attributes and words them in ``str()``.  What a
person can do about it stands in ``hint``; a hint is true for the case at hand
or absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AppliedNotProven",
    "BadDistribution",
    "ColablockError",
    "ExitCode",
    "Fault",
    "FetchFailed",
    "InvalidConfig",
    "InvalidInput",
    "InvalidMatrix",
    "InvalidRequirements",
    "NoModules",
    "NoSolution",
    "NotFound",
    "NotProven",
    "NotRestored",
    "Refused",
    "RolledBack",
    "TrainingFailed",
    "Unmet",
]


class ExitCode(IntEnum):
    """What the process says when it ends: a documented part of the command line."""

    DONE = 0
    UNMET = 1
    USAGE = 2
    ROLLED_BACK = 3
    NOT_RESTORED = 4
    NOT_PROVEN = 5
    BUG = 70
    INTERRUPTED = 130


class ColablockError(Exception):
    """The root: catch this to catch everything that colablock raises on purpose."""

    exit_code: ExitCode = ExitCode.BUG
    reference: str = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class InvalidInput(ColablockError):
    """The command line, a file or an argument is not usable as given."""

    exit_code = ExitCode.USAGE
    reference = "invalid-input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with a file: where (``packages.torch.version``), what, and what to do."""

    path: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        return f"{text} ({self.hint})" if self.hint else text


class InvalidMatrix(InvalidInput):
    """A matrix file with faults; all of them are reported at once."""

    reference = "invalid-matrix"

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__(_counted(f"the matrix `{source}`", self.faults))


class InvalidConfig(InvalidInput):
    """A training config with faults; all are reported at once.  *source* is "" where it is no file."""

    reference = "invalid-config"

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__(_counted(f"the config `{source}`" if source else "the config", self.faults))


class InvalidRequirements(InvalidInput):
    """A file of requirements with faults, those of the files that it names among them; all at once."""

    reference = "invalid-requirements"

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__(_counted(f"`{source}`", self.faults))


def _counted(subject: str, faults: Sequence[Fault]) -> str:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return "\n".join([f"{subject} has {count}", *(f"  {fault}" for fault in faults)])


class NotFound(InvalidInput):
    """Nothing of that name; the near names stand in the hint."""

    reference = "not-found"


class Unmet(ColablockError):
    """The request cannot be met, and nothing was changed."""

    exit_code = ExitCode.UNMET
    reference = "unmet"


class NoSolution(Unmet):
    """No set of versions meets every requirement.

    *because* is the chain, one sentence each, that ends at what the user
    wrote; *names* the normalized names in conflict, sorted.  *is_about_python*:
    another Python or platform may have a solution.
    """

    reference = "no-solution"

    def __init__(
        self,
        message: str,
        *,
        because: Sequence[str] = (),
        names: Sequence[str] = (),
        is_about_python: bool = True,
        hint: str | None = None,
    ) -> None:
        self.is_about_python = is_about_python
        self.because = tuple(because)
        self.names = tuple(names)
        super().__init__("\n".join([message, *(f"  {line}" for line in self.because)]), hint=hint)


class FetchFailed(Unmet):
    """An index or a file could not be read over the network or from disk.

    *is_passing*: at another time, or from another place, it may be.
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
    ) -> None:
        self.url = url
        self.status = status
        self.is_passing = is_passing
        super().__init__(message, hint=hint)


class BadDistribution(Unmet):
    """A wheel, sdist or archive is not what its name, hash or metadata promise."""

    reference = "bad-distribution"


class NoModules(BadDistribution):
    """A wheel or archive that would install nothing that can be imported."""


class Refused(Unmet):
    """A rule forbids the change, and says which."""

    reference = "refused"


class NotProven(Unmet):
    """A proof failed; the environment was not changed by this call."""

    reference = "not-proven"


class TrainingFailed(Unmet):
    """A training run ended before it was done; *folder* is where its log and its checkpoints are."""

    reference = "training-failed"

    def __init__(self, message: str, *, folder: str = "", hint: str | None = None) -> None:
        self.folder = folder
        super().__init__(message, hint=hint)


class RolledBack(ColablockError):
    """The change failed and was undone."""

    exit_code = ExitCode.ROLLED_BACK
    reference = "rolled-back"


class NotRestored(ColablockError):
    """The change failed, and so did its undo; *stash* holds what was moved away."""

    exit_code = ExitCode.NOT_RESTORED
    reference = "not-restored"

    def __init__(self, message: str, *, stash: str, hint: str | None = None) -> None:
        self.stash = stash
        super().__init__(message, hint=hint)


class AppliedNotProven(ColablockError):
    """Applied and kept, as asked, although a proof failed."""

    exit_code = ExitCode.NOT_PROVEN
    reference = "applied-not-proven"
