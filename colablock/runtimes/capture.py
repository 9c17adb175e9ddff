"""Record a live interpreter: the distributions of the image, without those installed for colablock."""

from __future__ import annotations

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.dependency_graph import DependencyGraph
from colablock.environment.direct_url import from_freeze, is_editable, to_freeze
from colablock.environment.markers_and_tags import environment_for
from colablock.environment.snapshot import Installed, Snapshot
from colablock.errors import InvalidInput
from colablock.runtimes.document import (
    RecordedDistribution,
    RecordedRuntime,
    Recording,
    recording_of,
)

__all__ = ["record_snapshot"]

_COLABLOCK = canonicalize_name("colablock")


def record_snapshot(
    snapshot: Snapshot, *, name: str, date: str, source: str
) -> tuple[Recording, tuple[str, ...]]:
    """Return the recording of a live interpreter, and what is left out with the reason.

    colablock is left out, and what only it needs and nobody asked for by name
    (PEP 376, REQUESTED); so is what is installed in editable mode.  Raises
    InvalidInput for an interpreter that a recorded runtime cannot stand for.
    """
    environment = snapshot.environment
    python, platform = str(environment.python_version), environment.platform
    if snapshot.accelerator.kind == "tpu":
        message = "a runtime with a TPU cannot be recorded: no shipped matrix trains on a TPU"
        raise InvalidInput(message)
    if environment_for(python, platform).tags != environment.tags:
        message = f"`{snapshot.python}` cannot be recorded: it is not a standard build of CPython"
        raise InvalidInput(
            message, hint="Free-threaded builds, debug builds and PyPy have wheel tags of their own"
        )
    ours = _came_with_colablock(snapshot)
    editable = {name for name, one in snapshot.installed.items() if is_editable(one.direct_url)} - ours
    kept = [one for name, one in snapshot.installed.items() if name not in ours | editable]
    about = RecordedRuntime(
        name=name,
        flavour="gpu" if snapshot.accelerator.kind == "cuda" else "cpu",
        python_version=python,
        date=date,
        distributions=len(kept),
        unknown=0,
        host=snapshot.host,
        source=source,
        platform=platform,
        driver=snapshot.accelerator.driver,
    )
    shared = tuple({frozenset({name, *others}) for name, others in snapshot.shared.items()})
    left_out = [f"{one} came with colablock" for one in sorted(ours)]
    left_out += [f"{one} is installed in editable mode" for one in sorted(editable)]
    return recording_of(about, tuple(map(_recorded, kept)), shared), tuple(left_out)


def _recorded(installed: Installed) -> RecordedDistribution:
    """Return the part of *installed* that a document keeps, without paths of this machine."""
    url = to_freeze(installed.direct_url) if installed.direct_url is not None else None
    kept = Installed(
        name=installed.name,
        version=installed.version,
        requires=installed.requires,
        requires_python=installed.requires_python,
        extras=installed.extras,
        import_names=installed.import_names,
        direct_url=from_freeze(url) if url else None,
        installer="pip",
        size=installed.size,
    )
    return RecordedDistribution(spelled=installed.name, url=url, installed=kept, is_known=True)


def _came_with_colablock(snapshot: Snapshot) -> frozenset[NormalizedName]:
    """Return colablock, and its requirements that no other distribution needs and nobody requested."""
    installed = snapshot.installed
    graph = DependencyGraph.of(snapshot)
    needed = {
        name: {demand.target for node in graph.nodes([name]) for demand in graph.demands_of(node)}
        for name in installed
    }
    ours = {_COLABLOCK} & installed.keys()
    while True:
        others = {name for owner, names in needed.items() if owner not in ours for name in names}
        wanted = {name for owner in ours for name in needed[owner] if name in installed}
        more = {name for name in wanted - ours - others if not installed[name].requested}
        if not more:
            return frozenset(ours)
        ours |= more
