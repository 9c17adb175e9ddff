"""The options of `plan`, `apply`, `lock` and `rollback`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from colablock._common.toml import in_utc
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock.errors import InvalidInput
from colablock.planning.plan import Remedy, Target

__all__ = ["ApplyOptions", "LockOptions", "UndoOptions", "moment_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOptions:
    """The options of one call; each but *name* has a default."""

    name: str
    into: Target | None = None
    python: str | None = None
    runtime: str | None = None
    variant: str | None = None
    with_: tuple[str, ...] = ()
    lock: Path | None = None
    use_locks: bool = True  # the lock files beside the matrix
    bundle: Path | None = None  # the archive that has the matrix, the lock and the files
    protect: tuple[str, ...] = ()
    reinstall: tuple[str, ...] = ()  # installed distributions whose files are not to be trusted
    broken: Remedy | None = None
    default_index: str | None = None
    find_links: tuple[str, ...] = ()
    offline: bool = False
    keep: bool = False
    undo: bool = True
    break_system_packages: bool = False

    @property
    def request(self) -> tuple[str, ...]:
        """The matrix, its variant and the additional requirements, as arguments of a command."""
        if self.bundle is not None:
            return ("--bundle", str(self.bundle))  # which has them
        variant = ("--variant", self.variant) if self.variant else ()
        return (self.name, *variant, *(word for one in self.with_ for word in ("--with", one)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOptions:
    """The options of a lock that a plan does not have.

    The versions of an existing lock are preferred, unless *upgrade* is set or
    *upgrade_packages* has the name.  *exclude_newer* replaces the matrix's own.
    With *all_files* the lock lists the files of every platform, with False those
    of its target; None keeps what an existing lock lists, by default those of its
    target.  With *dry* nothing is written.  With *has_files*, the files go with the lock,
    so that local ones are no fault.
    """

    python_version: str | None = None
    platform: str | None = None
    output: Path | None = None  # default: beside the matrix
    upgrade: bool = False
    upgrade_packages: frozenset[NormalizedName] = frozenset()
    exclude_newer: datetime | None = None
    all_files: bool | None = None
    dry: bool = False
    has_files: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoOptions:
    """The options of a rollback.

    With *companions* the distributions that others moved since, and that would break or be broken,
    are put back as well; they come from the index or folders given here.  With *leave_broken* the
    change is undone although it leaves requirements unmet.
    """

    to_first: bool = False
    companions: bool = False
    leave_broken: bool = False
    default_index: str | None = None
    find_links: tuple[str, ...] = ()
    offline: bool = False


def moment_of(value: str | datetime | None) -> datetime | None:
    """Return a date (as midnight, UTC) or an RFC 3339 time as a datetime.  Raises InvalidInput."""
    if value is None:
        return None
    try:
        text = str(value).replace("Z", "+00:00")
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(text)
    except ValueError as error:
        hint = "Write it as 2026-09-01 or 2026-09-01T12:00:00Z"
        raise InvalidInput(f"`{value}` is not a date", hint=hint) from error
    return in_utc(moment)
