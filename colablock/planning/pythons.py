"""Pythons for an isolated environment: which there are, which is best, and what else would take a stack."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.text import size_text
from colablock._records import dataclass
from colablock._vendor.packaging.version import Version
from colablock.environment.interpreters import Interpreter, find_interpreters
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.environment.snapshot import Snapshot, snapshot_of
from colablock.errors import InvalidInput, NoSolution, Refused, Unmet
from colablock.planning.target import fetch_size

if TYPE_CHECKING:
    from colablock.environment.accelerator import Accelerator
    from colablock.matrix.model import Matrix
    from colablock.network.settings import Settings
    from colablock.planning.wheels import WheelPreparer
    from colablock.resolver.model import Resolution
    from colablock.runtimes.document import RecordedRuntime

__all__ = [
    "FETCHABLE",
    "PythonCandidate",
    "Pythons",
    "TriedPythons",
    "alternatives",
    "best_python",
    "no_python",
]

_OLDEST = Version("3.9")  # no current training stack supports an older Python
_NEAR = 1.1  # downloads within a tenth of each other count as the same
# If no available interpreter fits a stack, the newest of these that does is fetched.
FETCHABLE = ("3.13", "3.12", "3.11", "3.10")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pythons:
    """The Pythons that an environment for *matrix* can use; *is_named* if the user names that of *kernel*."""

    matrix: Matrix
    kernel: Snapshot
    settings: Settings
    environ: Mapping[str, str]
    is_named: bool

    def available(self) -> Iterator[tuple[Environment, str]]:
        """Yield each Python that an environment can use, one per minor version, with its executable.

        The executable of a recorded runtime is "".
        """
        if self.kernel.python == "":
            yield from self._recorded()
            return
        if self.is_named:
            yield self.kernel.environment, self.kernel.python
            return
        seen: set[str] = set()
        for found in self._interpreters():
            short = ".".join(found.version.split(".")[:2])
            if Version(found.version) < _OLDEST or short in seen:
                continue
            if not self.matrix.requires_python.contains(found.version, prereleases=True):
                continue
            seen.add(short)
            try:
                state = snapshot_of(
                    Path(found.path), environ=self.environ, accelerator=self.kernel.accelerator
                )
            except InvalidInput:
                continue
            yield state.environment, found.path

    def _interpreters(self) -> list[Interpreter]:
        """Return the available interpreters, the kernel's minor version first.

        On CUDA the stack compiles kernels (Triton), so an interpreter without ``Python.h`` does not qualify.
        """
        compiles = self.kernel.accelerator.kind == "cuda"
        found = [one for one in find_interpreters(self.environ) if one.has_headers or not compiles]
        return sorted(found, key=lambda one: not one.version.startswith(f"{self.kernel.environment.short}."))

    def fetchable(self, seen: Collection[str]) -> Iterator[Environment]:
        """Yield the environments of the Pythons that uv can fetch, newest first, without those *seen*.

        That of a bundle needs no network.
        """
        bundle, platform = self.settings.bundle, self.kernel.environment.platform
        if bundle is not None and self.has_bundled:
            environment = environment_for(bundle.manifest.python, platform)
            yield from [environment] if environment.short not in seen else []
            return
        for short in () if self.settings.offline else FETCHABLE:
            if short not in seen and self.matrix.requires_python.contains(f"{short}.0", prereleases=True):
                yield environment_for(short, platform)

    @property
    def has_bundled(self) -> bool:
        """Whether the bundle of this request has a Python."""
        return self.settings.bundle is not None and self.settings.bundle.python is not None

    def _recorded(self) -> Iterator[tuple[Environment, str]]:
        own = self.kernel.environment
        if self.matrix.requires_python.contains(own.python_version, prereleases=True):
            yield own, ""
        for short in FETCHABLE:
            allowed = self.matrix.requires_python.contains(f"{short}.0", prereleases=True)
            if allowed and not str(own.python_version).startswith(f"{short}."):
                yield environment_for(short, own.platform), ""

    def builder_for(self, environment: Environment) -> str:
        """Return an interpreter that builds sdists for *environment* if the target's own is not here.

        The metadata of an sdist rarely depends on the Python that builds it.  An
        interpreter of the same minor version is preferred.
        """
        if not self.matrix.options.allow_build:
            return ""
        here = find_interpreters(self.environ)
        same = (one for one in here if one.version.startswith(f"{environment.short}."))
        return next(same, here[0]).path if here else sys.executable


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonCandidate:
    """A Python that the stack fits, with its resolution."""

    python: str  # the executable; "" if it has to be fetched or unpacked first
    environment: Environment
    resolution: Resolution
    running: bool = False
    bundled: bool = False

    @property
    def version(self) -> Version:
        """The full Python version."""
        return self.environment.python_version

    @property
    def size(self) -> int:
        """The bytes to fetch."""
        return fetch_size(self.resolution)

    def empty(self, accelerator: Accelerator) -> Snapshot:
        """Return the snapshot of an environment that is yet to be created with this Python."""
        return Snapshot(
            environment=self.environment,
            python=self.python,
            prefix="",
            site="",
            installed={},
            accelerator=accelerator,
        )


@dataclass(slots=True)
class TriedPythons:
    """The resolutions and refusals of the Pythons tried so far."""

    candidates: list[PythonCandidate] = field(default_factory=list)
    preparers: dict[Version, WheelPreparer] = field(default_factory=dict)
    refusals: dict[str, Unmet] = field(default_factory=dict)
    minors: set[str] = field(default_factory=set)
    worthwhile: bool = True  # to try another Python: so far only the Python was at fault


def best_python(candidates: Sequence[PythonCandidate]) -> tuple[PythonCandidate, str]:
    """Return the best Python and why: the smallest download, then the running one, then the newest.

    A CPU build may exist for one Python only, and be a tenth of the size of the others.
    """
    least = min(candidate.size for candidate in candidates)
    near = [candidate for candidate in candidates if candidate.size <= least * _NEAR]
    best = max(near, key=lambda candidate: (bool(candidate.python), candidate.running, candidate.version))
    dearer = [candidate for candidate in candidates if candidate not in near]
    if dearer:
        others = ", ".join(f"{o.version.major}.{o.version.minor} {size_text(o.size)}" for o in dearer)
        size = size_text(best.size)
        return best, f"Python {best.version} needs the smallest files, {size} in all (others: {others})"
    if best.running:
        here = "the one that runs here" if best.python else "the runtime's own"
        return best, f"Python {best.version} is {here}"
    if not best.python:
        return (
            best,
            f"Python {best.version} fits, and is {'in the bundle' if best.bundled else 'downloaded first'}",
        )
    return best, f"Python {best.version} is the newest installed one that fits"


def no_python(matrix: Matrix, refusals: Mapping[str, Unmet]) -> Unmet:
    """Return why no Python fits the stack: the reason for each, or one reason if all are the same."""
    if not refusals:
        allowed = matrix.requires_python or "any"
        return Refused(f"no Python that {matrix.name} admits ({allowed}) is installed or can be fetched")
    groups: dict[str, list[str]] = {}
    for version, error in refusals.items():
        groups.setdefault(error.headline, []).append(version)
    errors = {headline: refusals[versions[0]] for headline, versions in groups.items()}
    first = next(iter(errors.values()))
    if len(groups) == 1:
        return first
    lines = [f"no available Python fits {matrix.name}"]
    for headline, versions in groups.items():
        lines.append(f"with Python {_listed(versions)}: {errors[headline]}")
    return NoSolution("\n".join(lines), hint=first.hint)


def _listed(versions: Sequence[str]) -> str:
    return f"{', '.join(versions[:-1])} and {versions[-1]}" if len(versions) > 1 else versions[0]


def alternatives(
    matrix: Matrix,
    python: Version,
    *,
    in_kernel: bool,
    pythons: Iterable[str],
    runtimes: Iterable[RecordedRuntime] = (),
    others: Iterable[Matrix] = (),
) -> str | None:
    """Return alternatives for a matrix that *python* does not fit; None if none is known.

    Only ``requires-python`` is compared, which is necessary but not sufficient.
    Only *runtimes* with a label count, since the host's menu offers those.  Of *others*, only
    matrices that ask for at least half of the same packages count.
    *pythons* are the available versions (``X.Y``), newest first.
    """
    found = []
    allowed = matrix.requires_python
    own = f"{python.major}.{python.minor}"
    # A patch release above all real ones: `<3.13` admits some 3.12, and so does `>=3.12.4`.
    minors = [one for one in pythons if len(allowed) and one != own and allowed.contains(f"{one}.99")]
    if in_kernel and minors:
        found.append(f"`--into env` makes an isolated environment with Python {' or '.join(minors[:2])}")
    fitting: dict[str, str] = {}
    for runtime in (one for one in runtimes if one.label):
        same = runtime.python_version.startswith(f"{own}.")
        if in_kernel and minors and not same and allowed.contains(runtime.python_version, prereleases=True):
            fitting.setdefault(runtime.label, runtime.python_version)
    if fitting:
        labels = sorted(fitting, reverse=True)[:3]
        versions = list(dict.fromkeys(fitting[label] for label in labels))
        found.append(f"the runtime version {_either(labels)} has Python {_either(versions)}")
    admitting = [
        other.name
        for other in others
        if other.name != matrix.name
        and _is_related(matrix, other)
        and len(other.requires_python)
        and other.requires_python.contains(python, prereleases=True)
    ]
    if admitting:
        names = _either(f"`{name}`" for name in sorted(admitting))
        found.append(f"{names} admits Python {own}")
    return "; ".join(found) or None


def _is_related(matrix: Matrix, other: Matrix) -> bool:
    """Whether *other* asks for at least half of the packages of *matrix*."""
    own = {entry.name for entry in matrix.packages}
    return 2 * len(own & {entry.name for entry in other.packages}) >= len(own)


def _either(words: Iterable[str]) -> str:
    *most, last = list(words)
    return f"{', '.join(most)} or {last}" if most else last
