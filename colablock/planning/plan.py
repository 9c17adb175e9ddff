"""The plan: ordered steps, each with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import field
from enum import Enum

from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName

__all__ = [
    "ENV_EXISTS",
    "INTERRUPTED",
    "Action",
    "Artifact",
    "Breakage",
    "ImportRisk",
    "Kept",
    "Plan",
    "Remedy",
    "Step",
    "Target",
    "UndoCost",
    "steps_text",
]

ENV_EXISTS = "the environment of this lock exists already: nothing has to be fetched"
INTERRUPTED = (
    "a change of this environment was interrupted: the next `apply` undoes it first, and plans again"
)


class Target(Enum):
    """The target of a plan: the site of the running interpreter, or an isolated environment."""

    KERNEL = "kernel"
    ENV = "env"


class Action(Enum):
    """What a step does to one distribution."""

    REMOVE = "remove"
    REPLACE = "replace"
    INSTALL = "install"


def steps_text(actions: Iterable[Action]) -> str:
    """Return how many steps of each kind there are: "remove 1, install 2"."""
    numbers = Counter(actions)
    return ", ".join(f"{action.value} {numbers[action]}" for action in Action if numbers[action])


class Remedy(Enum):
    """How a plan treats a distribution that the new state breaks."""

    REPAIR = "repair"
    REMOVE = "remove"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The file that a step installs.

    *url* is the canonical URL, ``file://`` for a local file.  *size* is in bytes,
    None if the index does not give it.  *build* marks an sdist, which is built
    before it is staged.  *rebuilt* is the path of the matrix entry that replaces
    the metadata or the modules of this file; None for a file installed as
    published.  *direct* files are recorded in ``direct_url.json`` (PEP 610).
    *requires* are the requirements that the plan relies on, with those of the
    *extras* in use.
    """

    name: NormalizedName
    version: str
    filename: str
    url: str
    hashes: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    index: str | None = None
    build: bool = False
    rebuilt: str | None = None
    direct: bool = False
    requires: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change to one distribution.

    *requested*: the matrix or the user names it.  *asked_by*, a name or a path of the matrix, has
    the *requirement* that is the *reason*, if one is.
    """

    action: Action
    name: NormalizedName
    reason: str
    version: str | None = None  # after the step; None for a removal
    previous: str | None = None  # before it; None for an installation
    artifact: Artifact | None = None
    requested: bool = False
    asked_by: str = ""
    requirement: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An installed distribution that the stack uses unchanged."""

    name: NormalizedName
    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakage:
    """An installed distribution that the new state breaks and that was not broken before.

    *requirement* is the first of its requirements that no longer holds.
    *direct*: a version moved, or shared files are removed; otherwise only a
    removal breaks it.  *because* is the chain from the moved distribution to this one.
    *tried* says which versions do not repair it, if some were tried.
    """

    name: NormalizedName
    version: str
    requirement: str
    direct: bool
    because: tuple[str, ...]
    remedy: Remedy
    tried: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRisk:
    """An installed distribution that stays, and that may no longer import although no requirement says so.

    *modules* are its import names, and *reason* says what it imports that goes or moves.
    """

    name: NormalizedName
    version: str
    modules: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoCost:
    """The files of the image that have to be copied so that the change can be undone (overlayfs).

    *bytes* is their size.  *seconds* is estimated from a small copy, 0.0 if it is negligible.
    """

    files: int
    bytes: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ordered steps, removals first, with their cost and the distributions they leave broken."""

    matrix: str
    matrix_digest: str
    variant: str | None
    target: Target
    why_target: str
    python: str  # the interpreter whose site changes, or that the environment is created with
    python_version: str  # full
    steps: tuple[Step, ...] = ()
    kept: tuple[Kept, ...] = ()
    breakages: tuple[Breakage, ...] = ()
    restart: Mapping[NormalizedName, tuple[str, ...]] = field(default_factory=dict)
    unknown: tuple[
        NormalizedName, ...
    ] = ()  # a replacement may break them: their requirements are not recorded
    fingerprint: str = ""  # of the state that the plan was made for
    notes: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()  # the requested requirements (PEP 508)
    undo_cost: UndoCost | None = None
    shadow: str | None = None  # the matrix is used in place of a shipped one
    lock: str | None = None  # the lock that the versions are from
    lock_hosts: tuple[str, ...] = ()  # the hosts that its files are on
    import_risks: tuple[ImportRisk, ...] = ()
    beforehand: tuple[str, ...] = ()  # notes that only matter before the plan is applied
    at_hand: tuple[NormalizedName, ...] = ()  # what has its file on this machine already
    is_in_place: bool = False  # the isolated environment exists, so nothing is installed
    is_interrupted: bool = False  # an interrupted change left this state; after its undo the plan is another

    @property
    def needs_restart(self) -> bool:
        return bool(self.restart)

    @property
    def fetch_size(self) -> int:
        """Bytes to fetch, without the files at hand and those whose index gives no size."""
        return self.file_size - sum(one.size or 0 for one in self._files if one.name in self.at_hand)

    @property
    def file_size(self) -> int:
        """Bytes of all files to install, without those whose index gives no size."""
        return sum(one.size or 0 for one in self._files)

    @property
    def _files(self) -> list[Artifact]:
        return [step.artifact for step in self.steps if step.artifact is not None]
