"""What there is, as plain values: matrices, one matrix, this machine."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from colablock import __version__
from colablock.applied import home_folder
from colablock.catalog import find_matrix, list_matrices
from colablock.errors import InvalidInput
from colablock.matrix import Absent, Constraint, Matrix, PackageEntry
from colablock.recorded import runtimes
from colablock.settings import read_settings
from colablock.snapshot import snapshot_of, take_snapshot
from colablock.training.receipts import proven_on
from colablock.urls import redacted

__all__ = ["info", "listing", "matrix_facts"]


def listing(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the matrices that can be named and the recorded runtimes."""
    return {
        "matrices": [
            {
                **{key: value for key, value in asdict(one).items() if value is not None},
                **_proofs(one.name, environ),
            }
            for one in list_matrices(environ=environ)
        ],
        "runtimes": [
            {
                "name": one.name,
                "python": one.python_version,
                "torch": one.torch,
                "distributions": one.distributions,
                "date": one.date,
            }
            for one in runtimes(environ=environ)
        ],
    }


def _proofs(name: str, environ: Mapping[str, str]) -> dict[str, object]:
    """Return on which cards a matrix that trains is proven to; nothing for one that cannot be read."""
    try:
        matrix = find_matrix(name, environ=environ)
    except InvalidInput:
        return {}
    if matrix.train.runner is None:
        return {}
    cards = proven_on(matrix.source, digest=matrix.digest)
    return {"training": f"proven on {', '.join(cards)}" if cards else "not proven by us on any card"}


def matrix_facts(name: str, environ: Mapping[str, str]) -> dict[str, object]:
    """Return one matrix as it is declared, with the reason for every entry."""
    matrix = find_matrix(name, environ=environ)
    return {
        "name": matrix.name,
        "summary": matrix.summary,
        "source": matrix.source,
        "requires-python": str(matrix.requires_python) or None,
        "exclude-newer": matrix.exclude_newer.isoformat() if matrix.exclude_newer else None,
        **_entries(matrix),
        "variants": {
            variant.name: {"summary": variant.summary, **_entries(variant)}
            for variant in matrix.variants.values()
        },
        "verify": asdict(matrix.verify),
    }


def _entries(holder: Matrix | object) -> dict[str, object]:
    found: dict[str, object] = {}
    for section in ("packages", "constraints", "absent"):
        entries: tuple[PackageEntry | Constraint | Absent, ...] = getattr(holder, section)
        if entries:
            found[section] = {_title(entry): entry.why or "" for entry in entries}
    return found


def _title(entry: PackageEntry | Constraint | Absent) -> str:
    url = getattr(entry, "url", None)
    return f"{entry.name} @ {url}" if url else f"{entry.name}{entry.specifier}"


def info(environ: Mapping[str, str], *, python: str | None = None) -> dict[str, object]:
    """Return what colablock sees here, without credentials: for a bug report."""
    snapshot = snapshot_of(Path(python), environ=environ) if python else take_snapshot(environ=environ)
    settings = read_settings(environ)
    return {
        "colablock": __version__,
        "python": str(snapshot.environment.python_version),
        "executable": snapshot.python,
        "runs colablock": sys.executable,
        "platform": platform.platform(),
        "best tag": str(snapshot.environment.tags[0]),
        "host": snapshot.host.value,
        "site": snapshot.site,
        "distributions": len(snapshot.installed),
        "protected": sorted(snapshot.protected),
        "externally managed": snapshot.externally_managed is not None,
        "accelerator": asdict(snapshot.accelerator),
        "default index": redacted(settings.default_index),
        "find-links": [redacted(link) for link in settings.find_links],
        "home": str(home_folder(environ)),
        "notes": [*snapshot.notes, *settings.notes],
    }
