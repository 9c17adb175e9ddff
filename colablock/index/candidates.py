"""Files, candidates and what is said of them: the values between an index and a solve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol

from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment.snapshot import Installed

__all__ = [
    "Candidate",
    "CandidateOrigin",
    "CandidateSource",
    "File",
    "Metadata",
    "ProjectCandidates",
    "Reason",
    "Rejection",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One wheel, sdist or archive as an index, a folder or a matrix names it."""

    filename: str
    url: str  # canonical (before any mirror); file:// for local ones
    hashes: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None  # bytes
    upload_time: datetime | None = None  # UTC (PEP 700)
    requires_python: str | None = None
    yanked: str | None = None  # the reason, "" when none was given; None: not yanked
    core_metadata: Mapping[str, str] | bool = False  # PEP 658/714: hashes, or just "there is one"
    index: str | None = None  # URL of the index it was listed by; None for folders and direct references
    status: str | None = None  # of its project, with the reason (PEP 792), where that is not simply active

    @property
    def is_wheel(self) -> bool:
        """Whether it can be installed as it is."""
        return self.filename.endswith(".whl")


class CandidateOrigin(Enum):
    """Which kind of place a candidate comes from."""

    INDEX = "index"
    FIND_LINKS = "find-links"
    DIRECT = "direct"  # a URL or path the matrix names (PEP 610)
    INSTALLED = "installed"
    LOCK = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One version of one project that could be chosen.  Making one costs nothing.

    *files* are the usable files, best first (wheels by tag order, then the
    sdist where it may be built); *all_files* all files of this version, for
    the lock.  Both are empty for an installed one.
    """

    name: NormalizedName
    version: Version
    origin: CandidateOrigin
    files: tuple[File, ...] = ()
    all_files: tuple[File, ...] = ()
    installed: Installed | None = None

    @property
    def file(self) -> File | None:
        """The best file, None for an installed one."""
        return self.files[0] if self.files else None

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Reason(Enum):
    """Why a file or a version is no candidate."""

    UNREADABLE = "unreadable"
    OTHER_PROJECT = "other-project"
    TAGS = "tags"  # no wheel fits this Python or platform
    REQUIRES_PYTHON = "requires-python"
    YANKED = "yanked"
    TOO_NEW = "too-new"  # uploaded after exclude-newer
    NO_UPLOAD_TIME = "no-upload-time"
    SDIST = "sdist"  # only an sdist, and building is not allowed
    NO_BINARY = "no-binary"
    EXCLUDED = "excluded"  # `[absent]` or a constraint
    UNUSABLE = "unusable"  # metadata that cannot be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A file or version that was refused, and why; quoted in conflict reports."""

    name: NormalizedName
    version: Version | None
    filename: str
    reason: Reason
    detail: str  # "no wheel for Python 3.13 (cp310, cp311, cp312 only)"

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectCandidates:
    """What an index has of one project: candidates newest first, and the refused.

    *found* is False when no index knows the project at all; *where* names the
    places asked (URLs without credentials).
    """

    candidates: tuple[Candidate, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    found: bool = True
    where: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a candidate says of itself (core metadata), requirements parsed."""

    requires: tuple[Requirement, ...] = ()
    requires_python: str | None = None
    extras: frozenset[str] = frozenset()  # Provides-Extra, normalized


class CandidateSource(Protocol):
    """Where candidates come from: indexes and folders, a lock, a test's dict."""

    def judge(self, name: NormalizedName) -> ProjectCandidates:
        """Return every version of *name*, judged; asked often, so answers are kept."""

    def metadata(self, candidate: Candidate) -> Metadata:
        """Return what *candidate* needs.  Raises BadDistribution when it cannot be read."""

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        """Hint that these names will be asked for soon; never raises."""
