"""List and show: matrices, recorded runtimes, one matrix, this machine, as plain values."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from colablock._common.urls import redacted
from colablock._masking import masked
from colablock._version import __version__
from colablock.environment.snapshot import snapshot_of, take_snapshot
from colablock.errors import InvalidInput
from colablock.matrix.catalog import Listed, find_matrix, list_matrices
from colablock.matrix.model import Absent, Constraint, Matrix, PackageEntry, shadow_text
from colablock.network.settings import read_settings
from colablock.runtimes.catalog import runtimes
from colablock.training.evidence import ApplyReceipt, evidence_of, passed_receipts, proofs_of
from colablock.training.receipts import Receipt, kept_receipts
from colablock.transaction.apply_record import ApplyRecord, home_folder, home_path, load_dated

__all__ = ["list_facts", "machine_facts", "matrix_facts"]


def list_facts(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the matrices that are found and the recorded runtimes."""
    here = _Here(environ)
    return {
        "matrices": [_listed(one, here) for one in list_matrices(environ=environ)],
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


class _Here:
    """What this user has applied and trained on this machine, by the name of the matrix."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._home: Path | None = None
        self._applied: dict[str, list[ApplyReceipt]] = {}
        with suppress(InvalidInput):  # the home is not trusted: nothing of it counts
            self._home = home_folder(environ)
            for record, when in load_dated(self._home):
                if (receipt := _receipt_of(record, when)) is not None:
                    self._applied.setdefault(record.name, []).append(receipt)

    def applied(self, name: str) -> Sequence[ApplyReceipt]:
        return self._applied.get(name, ())

    def trained(self, name: str) -> Sequence[Receipt]:
        return kept_receipts(self._home, name) if self._home is not None else ()


def _receipt_of(record: ApplyRecord, when: float) -> ApplyReceipt | None:
    """Return the last apply *record* as a receipt; None if it is not proven, or its time is no date."""
    written = record.report.get("checks")
    found = [one for one in written if isinstance(one, Mapping)] if isinstance(written, Sequence) else []
    checks = [one for one in found if not one.get("skipped")]  # one without a card proves no import
    if not checks or not all(one.get("passed") for one in checks):
        return None
    try:
        date = datetime.fromtimestamp(when, timezone.utc)
    except (ValueError, OverflowError, OSError):  # some network drives give any number as a time
        return None
    return ApplyReceipt(
        matrix=record.name,
        matrix_digest=record.matrix_digest,
        variant=record.variant,
        lock="",
        target=record.target,
        python_version=str(record.report.get("python_version")),
        card="",
        checks=len(checks),
        imports=tuple(str(one.get("subject")) for one in checks if one.get("kind") == "import"),
        date=date.strftime("%Y-%m-%dT%H:%M:%SZ"),
        colablock="",
        versions={str(project): version for project, version in record.pins.items()},
    )


def _listed(one: Listed, here: _Here) -> dict[str, object]:
    """Return one matrix of the list, with its evidence; with a runner, on which cards training is proven."""
    matrix, training, found, evidence = one.matrix, None, None, None
    if matrix is not None:
        is_used = one.shadowed_by is None  # a call by the name is about this file
        receipts = (*passed_receipts(matrix), *(here.trained(one.name) if is_used else ()))
        evidence = evidence_of(matrix, trained=receipts, here=here.applied(one.name) if is_used else ())
        if matrix.train.runner is not None:
            found = proofs_of(matrix, receipts) or None
            cards = [card["card"] for card in evidence["trained"] if not card["earlier"]]
            training = f"proven on {', '.join(cards)}" if cards else "not proven on any card"
    said = {
        "name": one.name,
        "summary": one.summary,
        "source": one.source,
        "shadowed_by": one.shadowed_by,
        "copy": one.is_copy or None,
        "fault": one.fault,
        "training": training,
        "proofs": found,
        "evidence": evidence,
    }
    return {key: value for key, value in said.items() if value is not None}


def matrix_facts(name: str, environ: Mapping[str, str]) -> dict[str, object]:
    """Return one matrix as declared, with the reason for every entry."""
    matrix = find_matrix(name, environ=environ)
    shadow = shadow_text(matrix)
    return {
        **({"note": shadow} if shadow else {}),
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
            found[section] = [
                {"name": entry.name, "requirement": _title(entry), "why": entry.why or ""}
                for entry in entries
            ]
    return found


def _title(entry: PackageEntry | Constraint | Absent) -> str:
    url = getattr(entry, "url", None)
    return f"{entry.name} @ {url}" if url else f"{entry.name}{entry.specifier}"


def machine_facts(environ: Mapping[str, str], *, python: str | None = None) -> dict[str, object]:
    """Return what colablock detects on this machine, without credentials, for a bug report."""
    snapshot = snapshot_of(python, environ=environ) if python else take_snapshot(environ=environ)
    settings = read_settings(environ)
    return {
        "colablock": __version__,
        "python": str(snapshot.environment.python_version),
        "executable": snapshot.python,
        "runs_colablock": sys.executable,
        "platform": platform.platform(),
        "best_tag": str(snapshot.environment.tags[0]),
        "host": snapshot.host.value,
        "site": snapshot.site,
        "distributions": len(snapshot.installed),
        "protected": sorted(snapshot.protected),
        "externally_managed": snapshot.externally_managed is not None,
        "accelerator": asdict(snapshot.accelerator),
        "default_index": redacted(settings.default_index),
        "find_links": [masked(redacted(link)) for link in settings.find_links],
        "home": str(home_path(environ)),
        "notes": [*snapshot.notes, *settings.notes],
    }
