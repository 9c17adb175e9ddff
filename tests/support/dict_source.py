"""A fake CandidateSource for the resolver: candidates from a dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from colablock._common.urls import Url
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.environment.snapshot import Installed
from colablock.errors import BadDistribution
from colablock.index.candidates import (
    Candidate,
    CandidateOrigin,
    File,
    Metadata,
    ProjectCandidates,
    Reason,
    Rejection,
)
from colablock.matrix.model import Constraint, PackageEntry
from colablock.resolver.model import Resolution

PYTHON_312: Environment = environment_for("3.12.11", "manylinux_2_35_x86_64")
UNREADABLE = "unreadable"


class DictSource:
    """Candidates from ``{"torch 2.4.0": ["triton==3.0.0"]}``.

    A version in *refused* has no usable file, for the reason given; a
    requirement list of ``["unreadable"]`` stands for metadata that cannot be read.
    The wheels of *compiled* projects are for one platform.
    """

    def __init__(
        self,
        index: Mapping[str, Sequence[str]],
        refused: Mapping[str, str] | None = None,
        yanked: Iterable[str] = (),
        compiled: Iterable[str] = (),
    ) -> None:
        self.compiled = frozenset(compiled)
        self.index = {_split(key): list(needs) for key, needs in index.items()}
        self.refused = {_split(key): why for key, why in (refused or {}).items()}
        self.yanked = {_split(key) for key in yanked}
        self.asked: list[NormalizedName] = []
        self._judged: dict[NormalizedName, ProjectCandidates] = {}

    def judge(self, name: NormalizedName) -> ProjectCandidates:
        self.asked.append(name)
        if name not in self._judged:
            self._judged[name] = self._judge(name)
        return self._judged[name]

    def _judge(self, name: NormalizedName) -> ProjectCandidates:
        versions = sorted((v for n, v in self.index if n == name), reverse=True)
        rejections = tuple(
            Rejection(name=n, version=v, filename=f"{n}-{v}.whl", reason=Reason.TAGS, detail=why)
            for (n, v), why in self.refused.items()
            if n == name
        )
        yanked = tuple(
            Rejection(name=n, version=v, filename="", reason=Reason.YANKED, detail=f"{n} {v} was yanked")
            for n, v in sorted(self.yanked)
            if n == name
        )
        return ProjectCandidates(
            candidates=tuple(self._candidate(name, version) for version in versions),
            rejections=(*rejections, *yanked),
            found=bool(versions or rejections),
            where=("http://127.0.0.1/simple/",),
        )

    def metadata(self, candidate: Candidate) -> Metadata:
        needs = self.index[candidate.name, candidate.version]
        if needs == [UNREADABLE]:
            raise BadDistribution(f"the metadata of {candidate} cannot be read")
        return Metadata(parsed=tuple(Requirement(line) for line in needs))

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        pass

    def _candidate(self, name: NormalizedName, version: Version) -> Candidate:
        filename = f"{name}-{version}-py3-none-{'linux_x86_64' if name in self.compiled else 'any'}.whl"
        file = File(
            filename=filename,
            url=f"http://127.0.0.1/{filename}",
            hashes={"sha256": "0" * 64},
            size=1000,
            yanked="" if (name, version) in self.yanked else None,
        )
        return Candidate(
            name=name, version=version, origin=CandidateOrigin.INDEX, files=(file,), all_files=(file,)
        )


def entries(*lines: str) -> tuple[PackageEntry, ...]:
    """Return matrix entries from requirement lines."""
    parsed = [Requirement(line) for line in lines]
    return tuple(
        PackageEntry(
            name=canonicalize_name(r.name),
            path=f"packages.{canonicalize_name(r.name)}",
            specifier=r.specifier,
            extras=frozenset(r.extras),
            marker=r.marker,
            url=Url(r.url) if r.url else None,
        )
        for r in parsed
    )


def constraints(*lines: str) -> tuple[Constraint, ...]:
    """Return constraints from requirement lines."""
    parsed = [Requirement(line) for line in lines]
    return tuple(
        Constraint(name=canonicalize_name(r.name), path=f"constraints.{r.name}", specifier=r.specifier)
        for r in parsed
    )


def installed(distributions: Mapping[str, Sequence[str]]) -> dict[NormalizedName, Installed]:
    """Return installed distributions from ``{"torch 2.8.0": ["triton==3.4.0"]}``."""
    pairs = ((*_split(key), needs) for key, needs in distributions.items())
    return {
        name: Installed(name=name, version=str(version), requires=tuple(needs))
        for name, version, needs in pairs
    }


def pins_of(resolution: Resolution) -> dict[str, str]:
    """Return the pinned version of each name."""
    return {str(name): str(pin.version) for name, pin in resolution.pins.items()}


def _split(key: str) -> tuple[NormalizedName, Version]:
    name, version = key.split()
    return canonicalize_name(name), Version(version)
