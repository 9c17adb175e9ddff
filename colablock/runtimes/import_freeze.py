"""Make a recorded runtime from a freeze."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.environment.direct_url import from_freeze
from colablock.environment.markers_and_tags import environment_for
from colablock.environment.notebook_host import Host
from colablock.environment.snapshot import Installed, is_version
from colablock.errors import InvalidInput
from colablock.runtimes.document import (
    RecordedDistribution,
    RecordedRuntime,
    Recording,
    recording_of,
)
from colablock.runtimes.freeze import Freeze, Frozen
from colablock.runtimes.package_releases import KnownReleases, ReleaseMetadata, Releases, stand_in

__all__ = ["Imported", "flavour_of", "host_of", "import_freeze"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A freeze as a recording, and the origin of its requirements.

    *taken* are known from recorded runtimes, *learnt* from an index; of these
    *stand_ins* have the requirements of another build.  *unknown* says why of
    each that is not known, *left_out* what of the freeze is not in the recording.
    """

    recording: Recording
    taken: int
    learnt: int
    stand_ins: tuple[str, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def host_of(name: str) -> Host:
    """Return the host that the first word of a runtime's *name* stands for; else a plain host."""
    word = name.partition("-")[0]
    return Host(word) if word in {Host.COLAB.value, Host.KAGGLE.value} else Host.PLAIN


def flavour_of(freeze: Freeze, driver: str | None) -> str:
    """Return ``gpu`` if a driver is known or torch is a CUDA build, else ``cpu``."""
    versions = [line.version or "" for line in freeze.lines if line.name == "torch"]
    labels = [Version(text).local or "" for text in versions if is_version(text)]
    return "gpu" if driver or any(label.startswith("cu") for label in labels) else "cpu"


def import_freeze(
    freeze: Freeze,
    about: RecordedRuntime,
    recordings: Sequence[Recording],
    releases: Releases | None,
    reporter: Reporter,
) -> Imported:
    """Return the recording of *freeze*, which *about* describes.

    *recordings*, oldest first, are what is known already; *releases* are asked
    for the rest, unless it is None.  Raises FetchFailed.
    """
    environment_for(about.python_version, about.platform)
    known = KnownReleases(recordings)
    lines, left_out = _with_versions(freeze, known)
    image = {line.name: line.version or "" for line in lines}
    taken = {line.name: item for line in lines if (item := known.of(line, image))}
    asked = [line for line in lines if line.name not in taken]
    found = dict.fromkeys((line.name for line in asked), ReleaseMetadata(why="no index was asked"))
    if releases is not None and asked:
        reporter.stage(f"Reading the requirements of {len(asked)} releases")
        found = dict(zip(found, releases.learn(asked, reporter), strict=True))
    distributions = [
        _taken(line, taken[line.name]) if line.name in taken else _learnt(line, found[line.name])
        for line in lines
    ]
    recording = recording_of(about, tuple(distributions), _groups(recordings))
    return Imported(
        recording=recording,
        taken=len(taken),
        learnt=sum(one.metadata is not None for one in found.values()),
        stand_ins=tuple(
            f"{item.installed.name} {item.installed.version}"
            for item in recording.distributions
            if item.requires_of
        ),
        unknown={name: one.why for name, one in sorted(found.items()) if one.metadata is None},
        left_out=left_out,
    )


def _with_versions(freeze: Freeze, known: KnownReleases) -> tuple[list[Frozen], tuple[str, ...]]:
    """Return the lines with a known version, and what is left out with the reason."""
    lines = []
    left_out = [f"`{what}` is installed in editable mode" for what in freeze.editable]
    left_out += [f"the version of `{line}` is not valid (PEP 440)" for line in freeze.odd]
    for line in freeze.lines:
        version = line.version or known.versions.get(f"{line.name} @ {line.url}")
        if version is None:
            left_out.append(f"the URL of {line.spelled} does not tell its version: {line.url}")
        else:
            lines.append(replace(line, version=version))
    if not lines:
        message = "no line of this freeze has a version"
        raise InvalidInput(message, hint="`pip list --format=freeze` prints the version of everything")
    return lines, tuple(left_out)


def _taken(line: Frozen, item: RecordedDistribution) -> RecordedDistribution:
    return replace(item, spelled=line.spelled, url=line.url)


def _learnt(line: Frozen, learnt: ReleaseMetadata) -> RecordedDistribution:
    installed = Installed(
        name=line.name,
        version=line.version or "",
        direct_url=from_freeze(line.url) if line.url else None,
        installer="pip",
        is_known=learnt.metadata is not None,
    )
    if learnt.metadata is not None:
        requires = learnt.metadata.requires
        installed = replace(
            installed,
            requires=stand_in(requires, installed.version) if learnt.requires_of else requires,
            requires_python=learnt.metadata.requires_python,
            extras=learnt.metadata.extras,
        )
    return RecordedDistribution(
        spelled=line.spelled,
        url=line.url,
        installed=installed,
        is_known=installed.is_known,
        requires_of=learnt.requires_of,
    )


def _groups(recordings: Sequence[Recording]) -> tuple[frozenset[NormalizedName], ...]:
    """Return the groups of distributions that share files, as in any recorded runtime."""
    return tuple(dict.fromkeys(group for recording in recordings for group in recording.shared))
