"""Recorded runtimes as plain values: the list, one runtime, and the difference of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.dependency_graph import DependencyGraph
from colablock.environment.requirements import parse_requirement
from colablock.environment.snapshot import Snapshot
from colablock.matrix.catalog import list_matrices
from colablock.matrix.model import Matrix
from colablock.runtimes.catalog import list_runtimes, load_recording, snapshot_of_recording
from colablock.runtimes.diff import (
    MatrixMention,
    RuntimeDiff,
    diff_runtimes,
    is_within,
    names_of,
    specifier_text,
)
from colablock.runtimes.document import RecordedRuntime

__all__ = ["compared", "diff_facts", "runtime_facts", "runtime_listing"]


def runtime_listing(environ: Mapping[str, str]) -> dict[str, object]:
    """Return every runtime on the search path by date, and the invalid files."""
    listed = list_runtimes(environ=environ)
    return {
        "runtimes": [
            {**_about(one.about), "shadowed_by": one.shadowed_by} for one in listed if one.about is not None
        ],
        "faults": [{"file": one.file, "fault": one.fault} for one in listed if one.fault is not None],
    }


def runtime_facts(name: str, environ: Mapping[str, str]) -> dict[str, object]:
    """Return one runtime: its facts, mentions in matrices, unmet requirements and distributions."""
    recording = load_recording(name, environ=environ)
    snapshot = snapshot_of_recording(recording)
    named = _named(snapshot, _matrices(environ))
    return {
        **_about(recording.about),
        "cuda": snapshot.accelerator.cuda,
        "named": [one for one in named if one["version"] is not None],
        "missing": [one for one in named if one["version"] is None],
        "protected": sorted(snapshot.protected),
        "unmet": _unmet(snapshot),
        "all": [
            {
                "name": item.installed.name,
                "version": item.installed.version,
                "freeze": item.line,
                "is_known": item.is_known,
                "requires_of": item.requires_of,
            }
            for item in recording.distributions
        ],
    }


def compared(before: str, after: str, environ: Mapping[str, str]) -> RuntimeDiff:
    """Return the difference of two runtimes, and the matrices it concerns."""
    old, new = (snapshot_of_recording(load_recording(name, environ=environ)) for name in (before, after))
    return diff_runtimes(old, new, _matrices(environ))


def diff_facts(diff: RuntimeDiff) -> dict[str, object]:
    """Return the whole of *diff* as plain values."""
    return {
        "before": _side(diff.before),
        "after": _side(diff.after),
        "added": dict(diff.added),
        "removed": dict(diff.removed),
        "moved": [asdict(one) for one in diff.moved],
        "same": diff.same,
        "concerns": [asdict(one) for one in diff.concerns],
    }


def _side(snapshot: Snapshot) -> dict[str, object]:
    return {
        "name": snapshot.source,
        "date": snapshot.date,
        "python": str(snapshot.environment.python_version),
        "driver": snapshot.accelerator.driver,
        "distributions": len(snapshot.installed),
    }


def _about(about: RecordedRuntime) -> dict[str, object]:
    return {**asdict(about), "host": about.host.value}


def _matrices(environ: Mapping[str, str]) -> list[Matrix]:
    """Return the valid matrices in the order of the search path."""
    listed = list_matrices(environ=environ)
    return [one.matrix for one in listed if one.matrix is not None and not one.shadowed_by]


def _named(snapshot: Snapshot, matrices: list[Matrix]) -> list[dict[str, object]]:
    """Return each project that matrices name, with their mentions of it."""
    said: dict[str, list[dict[str, object]]] = {}
    for matrix in matrices:
        for name, entries in names_of(matrix, snapshot.environment).items():
            there = snapshot.installed.get(name)
            version = there.version if there else None
            said.setdefault(name, []).extend(_saying(matrix, one, version) for one in entries)
    versions = {name: one.version for name, one in snapshot.installed.items()}
    return [
        {"name": name, "version": versions.get(canonicalize_name(name)), "by": by}
        for name, by in sorted(said.items())
    ]


def _saying(matrix: Matrix, said: MatrixMention, version: str | None) -> dict[str, object]:
    return {
        "matrix": matrix.name,
        "kind": said.kind,
        "specifier": specifier_text(said.specifier),
        "met": is_within(version, said.specifier),
        "variants": list(said.variants),
    }


def _unmet(snapshot: Snapshot) -> list[dict[str, object]]:
    """Return the requirements that the image does not meet, with the installed versions."""
    found: list[dict[str, object]] = []
    for name, line in sorted(DependencyGraph.of(snapshot).unmet_lines(snapshot.installed)):
        requirement = parse_requirement(line)
        there = snapshot.installed.get(canonicalize_name(requirement.name)) if requirement else None
        version = there.version if there else None
        found.append({"name": name, "requirement": line, "there": version})
    return found
