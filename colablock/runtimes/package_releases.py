"""Look up the requirements of exact releases: in recorded runtimes, else in an index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

from colablock._common.reporter import Reporter
from colablock._common.urls import basename, split_fragment
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import Environment
from colablock.environment.requirements import parse_requirement
from colablock.environment.snapshot import is_version
from colablock.errors import BadDistribution, FetchFailed
from colablock.index.candidates import File, rejections_of
from colablock.index.core_metadata import CoreMetadata
from colablock.index.evaluator import Policy
from colablock.index.finder import IndexSource
from colablock.index.metadata_fetcher import MetadataSource
from colablock.network.fetcher import Fetcher
from colablock.runtimes.document import RecordedDistribution, Recording
from colablock.runtimes.freeze import Frozen

__all__ = ["KnownReleases", "ReleaseMetadata", "Releases", "stand_in"]

_WORKERS = 16  # threads; most of them wait for the network
_LARGEST_SDIST = 30_000_000  # bytes; few have static requirements, and some have hundreds of megabytes
#: A local label that names what a build is for: its requirements are near those of the plain release.
_BUILD = re.compile(r"cpu|xpu|cu\d+|rocm\d[\d.]*")
_FOREIGN = re.compile(r"(nvidia|cuda)-")
_FOREIGN_TO_CPU = re.compile(r"(nvidia|cuda)-|triton(?![\w.-])")


class KnownReleases:
    """The releases in recorded runtimes; if several have one, the newest runtime counts."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self._found: dict[str, list[RecordedDistribution]] = {}
        for recording in recordings:
            for item in recording.distributions:
                key = _key(item.installed.name, item.installed.version, item.url)
                if item.is_known:
                    self._found.setdefault(key, []).append(item)
        self.versions = {
            f"{item.installed.name} @ {item.url}": item.installed.version
            for recording in recordings
            for item in recording.distributions
            if item.url
        }

    def of(self, line: Frozen, image: Mapping[NormalizedName, str]) -> RecordedDistribution | None:
        """Return the known metadata of the release of *line*; None if there is none.

        One project pins its image under one version (google-colab 1.0.0): it
        pins the same names here, at the versions of this *image*.
        """
        found = self._found.get(_key(line.name, line.version or "", line.url), [])
        if not found or len({frozenset(item.installed.requires) for item in found}) == 1:
            return found[-1] if found else None
        return _pinning(found[-1], image)


def _key(name: NormalizedName, version: str, url: str | None) -> str:
    return f"{name} @ {url}" if url else f"{name}=={version}"


def _pinning(item: RecordedDistribution, image: Mapping[NormalizedName, str]) -> RecordedDistribution | None:
    """Return *item* with its pins at the versions of *image*; None if it has requirements other than pins."""
    pins = []
    for line in item.installed.requires:
        requirement = parse_requirement(line)
        if (
            requirement is None
            or requirement.marker
            or not re.fullmatch(r"==[^=,]+", str(requirement.specifier))
        ):
            return None
        version = image.get(canonicalize_name(requirement.name))
        if version is None:
            return None
        pins.append(f"{requirement.name}=={version}")
    return replace(item, installed=replace(item.installed, requires=tuple(pins)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseMetadata:
    """The metadata of one release, or *why* there is none.

    *requires_of*: the release without a local label that stands in for it, CUDA libraries left out.
    """

    metadata: CoreMetadata | None = None
    requires_of: str | None = None
    why: str = ""


class Releases:
    """Reads the metadata of exact releases from an index or from their URL.

    Nothing is built: a source distribution counts where it says statically what it needs.
    """

    def __init__(self, fetcher: Fetcher, environment: Environment, index: str) -> None:
        policy = Policy(environment=environment, allow_build=frozenset({":all:"}))
        self._source = IndexSource(fetcher=fetcher, policy=policy, default=(index,))
        self._reader = MetadataSource(fetcher)

    def learn(self, lines: Sequence[Frozen], reporter: Reporter) -> list[ReleaseMetadata]:
        """Return the requirements of each of *lines*, in their order.

        Raises FetchFailed when the index cannot be asked: a record must not depend on a bad connection.
        """
        pool = ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="colablock-releases")
        jobs = {pool.submit(self._ask, line): line for line in lines}
        patient = True
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                reporter.step(jobs[job].spelled, done, len(lines))
        except BaseException:
            patient = False  # do not wait for a server that does not answer
            raise
        finally:
            pool.shutdown(wait=patient, cancel_futures=True)
        return [job.result() for job in jobs]

    def _ask(self, line: Frozen) -> ReleaseMetadata:
        if line.version is None or not is_version(line.version):
            return ReleaseMetadata(why=f"`{line.version}` is not a version (PEP 440)")
        version = Version(line.version)
        if line.url is None:
            return self._listed(line.name, version)
        learnt = self._direct(line, line.url)
        if learnt.metadata is None and _BUILD.fullmatch(version.local or ""):
            return self._listed(line.name, version)
        return learnt

    def _listed(self, name: NormalizedName, version: Version) -> ReleaseMetadata:
        """Return the metadata that the index has of a release, or of the one without the local label."""
        judged = self._source.judge(name)
        if not judged.found:
            return ReleaseMetadata(why="the index does not know the project")
        for wanted in dict.fromkeys((version, Version(version.public))):
            for candidate in judged.candidates:
                if candidate.version == wanted and candidate.file is not None:
                    of = None if wanted == version else wanted.public
                    return self._read(name, wanted, candidate.file, of)
        refused = rejections_of(judged.rejections, lambda one: one == version)
        why = (rejection.detail for rejection in refused)
        return ReleaseMetadata(why=next(why, "the index does not have this release"))

    def _direct(self, line: Frozen, url: str) -> ReleaseMetadata:
        """Return the metadata of the wheel at a URL; a host that does not answer is not fatal."""
        plain, hashes = split_fragment(url)
        file = File(filename=basename(plain), url=plain, hashes=hashes)
        if not (plain.startswith(("https:", "http:")) and file.is_wheel and line.version):
            return ReleaseMetadata(why="it comes from no wheel that could be asked for")
        try:
            return self._read(line.name, Version(line.version), file, None)
        except FetchFailed as error:
            return ReleaseMetadata(why=str(error))

    def _read(self, name: NormalizedName, version: Version, file: File, of: str | None) -> ReleaseMetadata:
        if not file.is_wheel and (file.size or 0) > _LARGEST_SDIST:
            return ReleaseMetadata(why="it has only a source distribution, too large to look into")
        try:
            return ReleaseMetadata(metadata=self._reader.read(name, version, file), requires_of=of)
        except BadDistribution as error:
            return ReleaseMetadata(why=str(error))
        except FetchFailed as error:
            if error.status is None:
                raise
            return ReleaseMetadata(why=str(error))


def stand_in(lines: Iterable[str], version: str) -> tuple[str, ...]:
    """Return those of a plain release's *lines* that its labelled build *version* has too.

    The CUDA libraries are not those of another CUDA; a build for the CPU has neither them nor triton.
    """
    foreign = _FOREIGN_TO_CPU if Version(version).local == "cpu" else _FOREIGN
    return tuple(line for line in lines if not foreign.match(line))
