"""Files, candidates, rejections and metadata: the values between the indexes and the resolver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, overload

import msgspec

from colablock._records import dataclass
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment.requirements import lines_under, shared_requirement
from colablock.environment.snapshot import Installed

if TYPE_CHECKING:
    from colablock.matrix.model import Index, PackageEntry

__all__ = [
    "STRONG_HASHES",
    "Candidate",
    "CandidateOrigin",
    "CandidateSource",
    "Candidates",
    "Deferred",
    "File",
    "KnownArchive",
    "KnownArchives",
    "Metadata",
    "ProjectCandidates",
    "Reason",
    "Rejection",
    "at_hand_first",
    "has_label",
    "likeliest",
    "rejections_of",
]


#: The hash algorithms that prove which file it is.
STRONG_HASHES = frozenset({"sha256", "sha384", "sha512"})


class File(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One wheel, sdist or archive that an index, a folder or a matrix lists.

    A solve makes 60,000 of them, which as dataclasses would take four times as long.
    """

    filename: str
    url: str  # canonical (without mirrors); file:// for local files
    hashes: Mapping[str, str] = msgspec.field(default_factory=dict)
    size: int | None = None  # bytes
    upload_time: datetime | None = None  # UTC (PEP 700)
    requires_python: str | None = None
    yanked: str | None = None  # the reason, "" if none is given; None if not yanked
    core_metadata: Mapping[str, str] | bool = False  # PEP 658 and 714: hashes of the metadata file, or True
    index: str | None = None  # URL of the index that lists it; None for folders and direct references
    untrusted: str | None = (
        None  # why it must not be installed: no hash, or a link that its page may not have
    )
    status: str | None = None  # of its project, with the reason (PEP 792); None if active

    @property
    def is_wheel(self) -> bool:
        """Whether the file can be installed without a build."""
        return self.filename.endswith(".whl")

    def replaced(self, **facts: Any) -> File:
        """Return the file with other *facts*."""
        return msgspec.structs.replace(self, **facts)


class CandidateOrigin(Enum):
    """The kind of source of a candidate."""

    INDEX = "index"
    FIND_LINKS = "find-links"
    DIRECT = "direct"  # a URL or path in the matrix (PEP 610)
    INSTALLED = "installed"
    LOCK = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One version of one project.  Creating one needs no I/O.

    *files* are the usable files, best first (wheels by tag order, then the
    sdist if it may be built); *all_files* are all files of this version that some
    target may use, for the lock: no wheels with ``no-binary``.  Both are empty for an installed distribution.
    """

    name: NormalizedName
    version: Version
    origin: CandidateOrigin
    files: tuple[File, ...] = ()
    all_files: tuple[File, ...] = ()
    installed: Installed | None = None

    @property
    def file(self) -> File | None:
        """The best file; None for an installed distribution."""
        return self.files[0] if self.files else None

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def at_hand_first(candidates: Iterable[Candidate], is_at_hand: Callable[[File], bool]) -> list[Candidate]:
    """Return *candidates* in their order, those with a file at hand before the others.

    In each, the files at hand come before the others, too.
    """
    first: list[Candidate] = []
    others: list[Candidate] = []
    for one in candidates:
        here = [file for file in one.files if is_at_hand(file)]
        ordered = replace(one, files=(*here, *(file for file in one.files if file not in here)))
        (first if here else others).append(ordered)
    return [*first, *others]


def likeliest(
    candidates: Sequence[Candidate], specifier: SpecifierSet, expected: Version | None
) -> Candidate | None:
    """Return the candidate that the resolver will probably try first."""
    found = Candidates.of(candidates)
    if expected is not None and specifier.contains(expected, prereleases=True):
        for candidate in found.select(lambda version: version == expected):
            return candidate
    for candidate in found:
        yanked = candidate.file is not None and candidate.file.yanked is not None
        unwanted = yanked or candidate.version.is_prerelease
        if not unwanted and specifier.contains(candidate.version, prereleases=True):
            return candidate
    return None


class Reason(Enum):
    """Why a file or a version is rejected."""

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
    UNTRUSTED = "untrusted"  # without a strong hash, or over http from a page over https
    UNUSABLE = "unusable"  # its metadata is unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A file or version that is rejected, and why; conflict reports quote *detail*."""

    name: NormalizedName
    version: Version | None
    filename: str
    reason: Reason
    detail: str  # "no wheel for Python 3.13 (cp310, cp311, cp312 only)"

    def __str__(self) -> str:
        return self.detail


class Deferred(Sequence[Rejection]):
    """Rejections that are worded when they are read first, which only a conflict report does.

    *make* returns those of the versions that fit; None stands for files without a version.
    """

    def __init__(self, make: Callable[[Callable[[Version | None], bool]], Iterable[Rejection]]) -> None:
        self._make = make
        self._made: tuple[Rejection, ...] | None = None

    def select(self, fits: Callable[[Version | None], bool]) -> Iterator[Rejection]:
        """Yield the rejections whose version fits; the others are not worded."""
        for one in self._make(fits) if self._made is None else self._made:
            if fits(one.version):
                yield one

    @property
    def _all(self) -> tuple[Rejection, ...]:
        if self._made is None:
            self._made = tuple(self._make(lambda _version: True))
        return self._made

    @overload
    def __getitem__(self, index: int) -> Rejection: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Rejection, ...]: ...

    def __getitem__(self, index: int | slice) -> Rejection | tuple[Rejection, ...]:
        return self._all[index]

    def __len__(self) -> int:
        return len(self._all)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._all)


def rejections_of(
    rejections: Sequence[Rejection], fits: Callable[[Version | None], bool]
) -> Iterator[Rejection]:
    """Yield those of *rejections* whose version fits."""
    if isinstance(rejections, Deferred):
        return rejections.select(fits)
    return (one for one in rejections if fits(one.version))


class Candidates(Sequence[Candidate]):
    """The candidates of one project, each judged when it is read: a solve looks at few of hundreds.

    *versions* are in the order of the candidates, each once; *judge* returns the candidate of one, None if
    it has none.
    """

    def __init__(self, versions: Sequence[Version], judge: Callable[[Version], Candidate | None]) -> None:
        self.versions = versions
        self._judge = judge

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> Candidates:
        """Return *candidates*, of which no two have the same version, as such a sequence."""
        if isinstance(candidates, cls):
            return candidates
        by_version = {one.version: one for one in candidates}
        return cls(tuple(by_version), by_version.get)

    def select(self, fits: Callable[[Version], bool]) -> Candidates:
        """Return the candidates whose version fits."""
        judge = self._judge
        return Candidates(self.versions, lambda version: judge(version) if fits(version) else None)

    def only(self, fits: Callable[[Version], bool]) -> Candidates:
        """Return the candidates whose version fits, as `select` does, but ask about all of them now."""
        return Candidates(tuple(filter(fits, self.versions)), self._judge)

    def select_judged(self, fits: Callable[[Candidate], bool]) -> Candidates:
        """Return the candidates that fit."""
        judge = self._judge

        def judge_again(version: Version) -> Candidate | None:
            found = judge(version)
            return found if found is not None and fits(found) else None

        return Candidates(self.versions, judge_again)

    def ordered(self, key: Callable[[Version], Any]) -> Candidates:
        """Return the candidates sorted by *key* of their version."""
        return Candidates(sorted(self.versions, key=key), self._judge)

    def __iter__(self) -> Iterator[Candidate]:
        for version in self.versions:
            found = self._judge(version)
            if found is not None:
                yield found

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Candidate, ...]: ...

    def __getitem__(self, index: int | slice) -> Candidate | tuple[Candidate, ...]:
        if isinstance(index, slice):
            is_head = (index.stop or 0) > 0 and index.start is None and index.step is None
            return tuple(islice(self, index.stop)) if is_head else tuple(self)[index]
        return tuple(self)[index] if index < 0 else self[: index + 1][index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectCandidates:
    """The candidates of one project, newest first, and the rejections.

    *found* is False if no index has the project.  *where* lists the indexes and
    folders that were asked (URLs without credentials).
    """

    candidates: Sequence[Candidate] = ()
    rejections: Sequence[Rejection] = ()
    found: bool = True
    where: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The core metadata of a candidate: its requirements are *parsed*, or *lines* known to be valid."""

    parsed: tuple[Requirement, ...] = ()
    lines: tuple[str, ...] = ()
    requires_python: str | None = None
    extras: frozenset[str] = frozenset()  # Provides-Extra, normalized

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """The requirements of the distribution and of all its extras."""
        return self.parsed or tuple(map(shared_requirement, self.lines))

    def requires_under(self, extra: str = "") -> tuple[Requirement, ...]:
        """Return the requirements that may count under *extra*; of lines no others are parsed."""
        return self.parsed or tuple(map(shared_requirement, lines_under(self.lines, extra)))


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownArchive:
    """What a lock knows about the file of a direct reference, or about the files of an index."""

    candidate: Candidate
    metadata: Metadata


class KnownArchives(Protocol):
    """What locks know about the files of direct references and of named indexes."""

    def archive(self, entry: PackageEntry) -> KnownArchive | None:
        """Return what a lock knows about the file of *entry*, which cannot be reached; None if none does."""

    def is_away(self, url: str | None) -> bool:
        """Whether a lock had to be asked for what is at *url* before, so that it need not be tried again."""

    def listed(self, name: NormalizedName, index: Index) -> KnownArchive | None:
        """Return what a lock knows about *name* in *index*, which cannot be reached; None if none does."""


class CandidateSource(Protocol):
    """A source of candidates: indexes and folders, a lock, or a dict in a test."""

    def judge(self, name: NormalizedName) -> ProjectCandidates:
        """Return the candidates and rejections of *name*.  Called often, so results are cached."""

    def metadata(self, candidate: Candidate) -> Metadata:
        """Return the metadata of *candidate*.  Raises BadDistribution if it is unreadable."""

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        """Hint that the resolver will ask for these names soon.  Never raises."""


def has_label(version: Version, *labels: str) -> bool:
    """Whether *version* has one of the local labels, such as ``cpu`` or ``cu118`` (``cu118.1`` counts)."""
    local = version.local
    return local is not None and any(local == label or local.startswith(f"{label}.") for label in labels)
