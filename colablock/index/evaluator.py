"""Evaluate files: those that fit become candidates, the others rejections with a reason.

Pure functions: the files of an index page in, ``ProjectCandidates`` out.  Pre-releases
remain candidates, since the resolver decides whether one may be chosen.  So do
versions whose usable files are all yanked, with their files marked: only a pin
(``==`` or ``===``) may choose one (PEP 592), and only the resolver knows the pins.
They are listed among the rejections as well, for the conflict report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache, partial
from math import prod
from typing import NamedTuple

from colablock._common.limits import FILE_NAME, TAGS
from colablock._records import dataclass
from colablock._vendor.packaging.specifiers import InvalidSpecifier
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.environment.markers_and_tags import Environment
from colablock.environment.requirements import specifier_of, version_of
from colablock.index.candidates import (
    Candidate,
    CandidateOrigin,
    Candidates,
    Deferred,
    File,
    ProjectCandidates,
    Reason,
    Rejection,
)
from colablock.index.simple_api import microseconds

__all__ = [
    "FilesByVersion",
    "Policy",
    "WheelName",
    "judge_files",
    "parse_sdist_stem",
    "parse_wheel_name",
    "version_in",
]

_ARCHIVES = (".tar.gz", ".zip", ".tgz", ".tar.bz2", ".tar.xz")
_ALL = ":all:"
_FEW_DOTS = 27


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which files may be used.  With *exclude_newer* None, files of any or unknown age."""

    environment: Environment
    exclude_newer: datetime | None = None
    allow_build: frozenset[str] = frozenset()
    no_binary: frozenset[str] = frozenset()

    def may_build(self, name: NormalizedName) -> bool:
        """Whether an sdist of *name* may be built."""
        return _ALL in self.allow_build or name in self.allow_build

    def rules_for(self, name: NormalizedName) -> tuple[object, ...]:
        """Return what decides about the files of *name*, beside the environment."""
        return self.exclude_newer, self.may_build(name), self.may_use_wheels(name)

    def may_use_wheels(self, name: NormalizedName) -> bool:
        """Whether a wheel of *name* may be used."""
        return not (_ALL in self.no_binary or name in self.no_binary)


class WheelName(NamedTuple):
    """The parts of the file name of a wheel (PEP 427)."""

    project: str
    version: Version
    build: tuple[int, str]  # (-1, "") without one: any build is better than none
    tags: str


class _NamedFile(NamedTuple):
    """A file with a valid name."""

    file: File
    version: Version
    wheel_name: WheelName | None  # None: an sdist


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesByVersion:
    """The files of a project.

    *versions* are sorted, the newest first; *read* returns the files of one, and *others* those whose name
    has no version of the project.  *uploaded* are the times of the first upload of each version, in
    microseconds since the epoch, None without one; it is empty where the files have to be read for that.
    """

    versions: Sequence[Version]
    read: Callable[[Version], Sequence[File]]
    others: Callable[[], Sequence[File]]
    uploaded: Sequence[int | None] = ()

    @classmethod
    def of(cls, name: NormalizedName, files: Iterable[File]) -> FilesByVersion:
        """Return the *files* of the project *name* by version."""
        found: dict[Version | None, list[File]] = {}
        for file in files:
            found.setdefault(version_in(name, file.filename), []).append(file)
        others = found.pop(None, [])
        return cls(
            versions=sorted(filter(None, found), reverse=True), read=found.__getitem__, others=lambda: others
        )

    def each(self, change: Callable[[File], File]) -> FilesByVersion:
        """Return the files after *change*, which keeps their names."""
        return FilesByVersion(
            versions=self.versions,
            read=lambda version: [*map(change, self.read(version))],
            others=lambda: [*map(change, self.others())],
            uploaded=self.uploaded,
        )

    def before(self, cutoff: datetime | None) -> Sequence[Version]:
        """Return the versions that may have a file from before *cutoff*."""
        if cutoff is None or not self.uploaded:
            return self.versions
        last = microseconds(cutoff)
        pairs = zip(self.versions, self.uploaded, strict=True)
        return [version for version, first in pairs if first is not None and first < last]

    def all(self) -> list[File]:
        """Return every file."""
        return [*self.others(), *(file for version in self.versions for file in self.read(version))]


def judge_files(
    name: NormalizedName,
    files: Iterable[File] | FilesByVersion,
    policy: Policy,
    *,
    origin: CandidateOrigin = CandidateOrigin.INDEX,
) -> ProjectCandidates:
    """Return the candidates among *files*, newest first, and the rejections."""
    listed = files if isinstance(files, FilesByVersion) else FilesByVersion.of(name, files)
    evaluator = _ProjectEvaluator(name, listed, policy, origin)
    return ProjectCandidates(
        candidates=Candidates(
            listed.before(evaluator.cutoff), lambda version: evaluator.judged(version).candidate
        ),
        rejections=Deferred(evaluator.rejections),
    )


def version_in(name: NormalizedName, filename: str) -> Version | None:
    """Return the version in the name of a wheel or an sdist of the project *name*; None if there is none.

    The rest of the name of a wheel is not read: `judge_files` does that.
    """
    try:
        if not filename.endswith(".whl"):
            return parse_sdist_stem(name, filename) if filename.endswith(_ARCHIVES) else None
        project, _, rest = filename.partition("-")
        return _version(rest.partition("-")[0].replace("_", "-")) if _normal(project) == name else None
    except ValueError:
        return None


def parse_wheel_name(filename: str) -> WheelName:
    """Parse the file name of a wheel (PEP 427).  Raises ValueError."""
    if len(filename) > FILE_NAME:
        message = f"the name of a file has at most {FILE_NAME} characters"
        raise ValueError(message)
    parts = filename.removesuffix(".whl").split("-")
    # Three parts with 27 dots have at most a thousand tags.
    if filename.count(".") > _FEW_DOTS and prod(part.count(".") + 1 for part in parts[-3:]) > TAGS:
        message = f"a wheel has at most {TAGS} tags"
        raise ValueError(message)
    if len(parts) not in {5, 6}:
        message = "the name of a wheel has five or six parts"
        raise ValueError(message)
    build = (-1, "")
    if len(parts) == 6:  # noqa: PLR2004 - with a build tag
        match = re.fullmatch(r"([0-9]{1,18})(.*)", parts[2])
        if match is None:
            message = f"`{parts[2]}` is not a build tag"
            raise ValueError(message)
        build = (int(match[1]), match[2])
    # Some old tools wrote the `-` of a local version or a post-release as `_`.
    return WheelName(_normal(parts[0]), _version(parts[1].replace("_", "-")), build, "-".join(parts[-3:]))


def parse_sdist_stem(name: NormalizedName, filename: str) -> Version | None:
    """Return the version in the file name of an sdist; None if it belongs to another project."""
    if len(filename) > FILE_NAME:
        return None
    suffix = next((suffix for suffix in _ARCHIVES if filename.endswith(suffix)), "")
    stem = filename.removesuffix(suffix)
    for match in re.finditer("-", stem):  # before PEP 625 the name of an sdist may contain `-`
        if _normal(stem[: match.start()]) == name:
            try:
                return _version(stem[match.end() :])
            except InvalidVersion:
                continue
    return None


_normal = lru_cache(maxsize=4096)(canonicalize_name)
_version = lru_cache(maxsize=65536)(version_of)


def _read_name(name: NormalizedName, file: File) -> _NamedFile | Rejection | None:
    """Return the file with its version, a rejection, or None for a file that no installer uses."""
    filename = file.filename
    try:
        if filename.endswith(".whl"):
            wheel_name = parse_wheel_name(filename)
            if wheel_name.project == name:
                return _NamedFile(file, wheel_name.version, wheel_name)
            return _refused(
                name, filename, Reason.OTHER_PROJECT, f"`{filename}` is a wheel of {wheel_name.project}"
            )
        if not filename.endswith(_ARCHIVES):
            return None
        version = parse_sdist_stem(name, filename)
    except ValueError as error:
        return _refused(name, filename, Reason.UNREADABLE, f"the file name `{filename}` is invalid: {error}")
    if version is None:
        return _refused(name, filename, Reason.UNREADABLE, f"`{filename}` has no version in its name")
    return _NamedFile(file, version, None)


def _refused(name: NormalizedName, filename: str, reason: Reason, detail: str) -> Rejection:
    return Rejection(name=name, version=None, filename=filename, reason=reason, detail=detail)


class _Judged(NamedTuple):
    """The candidate of one version and functions that word the rejections; both if it is yanked."""

    candidate: Candidate | None = None
    rejections: Sequence[Callable[[], Rejection]] = ()


#: Every file is after the cut-off.  A matrix of the past rejects most, so only a report reads their names.
_TOO_NEW = _Judged()


class _ProjectEvaluator:
    """Evaluates each version of one project once.  May be used by several threads."""

    def __init__(
        self, name: NormalizedName, listed: FilesByVersion, policy: Policy, origin: CandidateOrigin
    ) -> None:
        self._name = name
        self._listed = listed
        self._policy = policy
        self._origin = origin
        self._ranks = policy.environment.ranks
        self._python = policy.environment.python_version
        self._fits_python: dict[str | None, bool | None] = {None: True}
        self._judged: dict[Version, _Judged] = {}
        cutoff = policy.exclude_newer
        self.cutoff = cutoff.replace(tzinfo=timezone.utc) if cutoff and cutoff.tzinfo is None else cutoff

    def judged(self, version: Version) -> _Judged:
        """Return what comes of one version."""
        known = self._judged.get(version)
        if known is None:
            files = self._listed.read(version)
            is_too_new = bool(files) and not any(map(self._is_old_enough, files))
            known = self._judged.setdefault(version, _TOO_NEW if is_too_new else self._judge(version, files))
        return known

    def rejections(self, fits: Callable[[Version | None], bool]) -> Iterator[Rejection]:
        """Yield the rejections, those without a version first, then those of the newest version that fits."""
        for file in self._listed.others() if fits(None) else ():
            found = _read_name(self._name, file)
            if isinstance(found, Rejection):
                yield found
        for version in filter(fits, self._listed.versions):
            judged = self.judged(version)
            if judged is _TOO_NEW:
                judged = self._judge(version, self._listed.read(version))
            for rejection in judged.rejections:
                yield rejection()

    def _judge(self, version: Version, files: Iterable[File]) -> _Judged:
        named = [_read_name(self._name, file) for file in files]
        there = [one for one in named if isinstance(one, _NamedFile) and one.version == version]
        trusted = [one for one in there if one.file.untrusted is None]
        refusals: list[Callable[[], Rejection]] = [
            *(partial(_same, one) for one in named if isinstance(one, Rejection)),
            *(partial(self._untrusted, one) for one in there if one.file.untrusted is not None),
        ]
        if not trusted:
            return _Judged(None, refusals)
        candidate, refusal = self._evaluate(version, trusted)
        return _Judged(candidate, refusals if refusal is None else [*refusals, refusal])

    def _evaluate(
        self, version: Version, known: Sequence[_NamedFile]
    ) -> tuple[Candidate | None, Callable[[], Rejection] | None]:
        """Return the candidate of one version, or a function that words the rejection, or both if yanked."""
        old = [item for item in known if self._is_old_enough(item.file)]
        if not old:
            return None, partial(self._too_new, version, known)
        fitting = [item for item in old if self._takes_python(item.file)]
        ordered = self._usable(fitting)
        if not ordered:
            return None, partial(self._no_file, version, old, fitting)
        chosen = [item for item in ordered if item.file.yanked is None] or ordered
        candidate = Candidate(
            name=self._name,
            version=version,
            origin=self._origin,
            files=tuple(self._with_valid_python(item.file) for item in chosen),
            all_files=tuple(
                self._with_valid_python(item.file)
                for item in old
                if item.wheel_name is None or self._policy.may_use_wheels(self._name)
            ),
        )
        why = chosen[0].file.yanked
        return candidate, None if why is None else partial(self._yanked, version, chosen[0].file, why)

    def _is_old_enough(self, file: File) -> bool:
        return self.cutoff is None or (file.upload_time is not None and file.upload_time < self.cutoff)

    def _takes_python(self, file: File) -> bool:
        text = file.requires_python
        if text not in self._fits_python:
            try:
                self._fits_python[text] = specifier_of(text or "").contains(self._python, prereleases=True)
            except InvalidSpecifier:
                self._fits_python[text] = None  # pip ignores it as well
        return self._fits_python[text] is not False

    def _with_valid_python(self, file: File) -> File:
        """Return *file* without an invalid Requires-Python."""
        return (
            file.replaced(requires_python=None)
            if self._fits_python.get(file.requires_python) is None
            else file
        )

    def _usable(self, known: Sequence[_NamedFile]) -> list[_NamedFile]:
        """Return the wheels that fit, best first, then the sdists if they may be built."""
        wheels = []
        if self._policy.may_use_wheels(self._name):
            for item in known:
                rank = _rank(item.wheel_name.tags, self._ranks) if item.wheel_name else None
                if rank is not None and item.wheel_name is not None:
                    wheels.append(
                        (
                            rank,
                            tuple(-part if isinstance(part, int) else part for part in item.wheel_name.build),
                            item,
                        )
                    )
            wheels.sort(key=lambda wheel: (wheel[0], wheel[1], wheel[2].file.filename))
        sdists = (
            [item for item in known if item.wheel_name is None] if self._policy.may_build(self._name) else []
        )
        # PEP 625 requires .tar.gz; older sdists have other formats.
        sdists.sort(key=lambda item: (not item.file.filename.endswith(".tar.gz"), item.file.filename))
        return [wheel[2] for wheel in wheels] + sdists

    def _too_new(self, version: Version, known: Sequence[_NamedFile]) -> Rejection:
        times = [item.file.upload_time for item in known if item.file.upload_time is not None]
        if not times:
            index = known[0].file.index or "its index"
            detail = (
                f"{self._name} {version} has no upload time: `{index}` gives none, so `exclude-newer` cannot"
                " be judged (`exclude-newer = false` in that [[index]] takes its files of any age)"
            )
            return self._rejection(version, known, Reason.NO_UPLOAD_TIME, detail)
        cutoff = self.cutoff.date() if self.cutoff else ""
        detail = f"{self._name} {version} was uploaded on {min(times).date()}, and exclude-newer is {cutoff}"
        return self._rejection(version, known, Reason.TOO_NEW, detail)

    def _no_file(
        self, version: Version, old: Sequence[_NamedFile], fitting: Sequence[_NamedFile]
    ) -> Rejection:
        """Return why no file of *version* is usable: the first rule that excludes the last file."""
        what = f"{self._name} {version}"
        if not fitting:
            wanted = " or ".join(sorted({item.file.requires_python or "" for item in old}))
            detail = f"{what} needs Python {wanted}, and this is {self._python}"
            return self._rejection(version, old, Reason.REQUIRES_PYTHON, detail)
        wheels = [item for item in fitting if item.wheel_name is not None]
        sdists = [item for item in fitting if item.wheel_name is None]
        if not wheels:
            detail = (
                f"{what} has only a source distribution, and building is not allowed (options.allow-build)"
            )
            return self._rejection(version, sdists, Reason.SDIST, detail)
        if not self._policy.may_use_wheels(self._name):
            detail = f"{what} has wheels, which options.no-binary forbids"
            if sdists:
                detail += ", and building its source distribution is not allowed (options.allow-build)"
            return self._rejection(version, wheels, Reason.NO_BINARY, detail)
        tail = "; building its source distribution is not allowed (options.allow-build)" if sdists else ""
        wheel_names = [item.wheel_name for item in wheels if item.wheel_name]
        detail = f"{what} has no wheel for {_missing(wheel_names, self._policy.environment)}{tail}"
        return self._rejection(version, wheels, Reason.TAGS, detail)

    def _untrusted(self, known: _NamedFile) -> Rejection:
        detail = f"{self._name} {known.version}: `{known.file.filename}` {known.file.untrusted}"
        return self._rejection(known.version, [known], Reason.UNTRUSTED, detail)

    def _yanked(self, version: Version, file: File, why: str) -> Rejection:
        detail = f"{self._name} {version} was yanked" + (f": {why}" if why else "")
        return Rejection(
            name=self._name, version=version, filename=file.filename, reason=Reason.YANKED, detail=detail
        )

    def _rejection(
        self, version: Version, known: Sequence[_NamedFile], reason: Reason, detail: str
    ) -> Rejection:
        filename = known[0].file.filename
        return Rejection(name=self._name, version=version, filename=filename, reason=reason, detail=detail)


def _same(rejection: Rejection) -> Rejection:
    return rejection


def _rank(tags: str, ranks: Mapping[str, int]) -> int | None:
    """Return the best rank of a (compressed) tag set; None if no tag fits."""
    whole = ranks.get(tags)
    if whole is not None or "." not in tags:
        return whole
    pythons, abis, platforms = (set(part.split(".")) for part in tags.split("-"))
    found = [ranks.get(f"{p}-{a}-{f}") for p in pythons for a in abis for f in platforms]
    return min((rank for rank in found if rank is not None), default=None)


def _missing(wheel_names: Sequence[WheelName], environment: Environment) -> str:
    """Return the tag that no wheel has, and those that the wheels have."""
    pairs = environment.interpreters
    split = [[part.split(".") for part in wheel_name.tags.split("-")] for wheel_name in wheel_names]
    fits = [any((p, a) in pairs for p in pythons for a in abis) for pythons, abis, _ in split]
    if any(fits):
        there = {f for (_, _, platforms), fit in zip(split, fits, strict=True) if fit for f in platforms}
        markers = environment.markers
        newest = next(
            (t.platform for t in environment.tags if "linux_" in t.platform and t.platform[0] == "m"), ""
        )
        here = f"{markers['sys_platform']} {markers['platform_machine']}" + (f" ({newest})" if newest else "")
        return f"{here}: {', '.join(sorted(there))} only"
    pythons_there = {p for pythons, _, _ in split for p in pythons}
    here = f"Python {environment.short}"
    best = environment.tags[0]
    abis = sorted(
        {
            tag
            for wheel_name in wheel_names
            for tag in _pairs(wheel_name.tags)
            if tag.startswith(f"{best.interpreter}-")
        }
    )
    if abis:  # the same Python with another ABI, such as the free-threaded cp313t
        return f"{here} with ABI {best.abi}: {', '.join(abis)} only"
    return f"{here}: {', '.join(sorted(pythons_there, key=_python_key))} only"


def _pairs(tags: str) -> list[str]:
    pythons, abis, _ = (part.split(".") for part in tags.split("-"))
    return [f"{python}-{abi}" for python in pythons for abi in abis]


def _python_key(tag: str) -> tuple[str, int, str]:
    letters = tag.rstrip("0123456789")
    return letters, len(tag), tag
