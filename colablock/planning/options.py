"""The options of `plan`, `apply`, `lock` and `rollback`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from colablock._common.text import command_line, option_words
from colablock._common.toml import in_utc
from colablock._common.urls import redacted
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
    def sources(self) -> tuple[str, ...]:
        """The indexes and folders, as arguments of a command; their credentials are left out."""
        return option_words(
            {
                "--default-index": None if self.default_index is None else redacted(self.default_index),
                "--find-links": [redacted(one) for one in self.find_links],
                "--offline": self.offline,
            }
        )

    def arguments(self, verb: str) -> tuple[str, ...]:
        """Return the arguments with which the command *verb* (apply, plan or why) makes this request."""
        place = {"--into": None if self.into is None else self.into.value, "--python": self.python}
        if self.bundle is not None:  # it has the matrix, the lock and the files
            words = option_words({"--bundle": self.bundle, "--protect": self.protect, **place})
        else:
            what = {"--variant": self.variant, "--with": self.with_, "--lock": self.lock}
            more = {"--no-lock": not self.use_locks, "--protect": self.protect}
            words = (self.name, *option_words({**what, **more, **place}), *self.sources)
        extent = {
            "--runtime": self.runtime,
            "--broken": None if self.broken is None else self.broken.value,
            "--break-system-packages": verb == "apply" and self.break_system_packages,
        }
        return (*words, *option_words(extent))

    def command(self, verb: str, *more: str) -> str:
        """Return the command *verb* for this request, with the arguments *more*, quoted for a shell."""
        return command_line(verb, *self.arguments(verb), *more)


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
