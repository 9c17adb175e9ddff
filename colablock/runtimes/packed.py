"""The shipped recorded runtimes, in one compact file that ``tools/pack_runtimes.py`` writes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.direct_url import from_freeze
from colablock.environment.snapshot import Installed
from colablock.runtimes.document import (
    RecordedDistribution,
    RecordedRuntime,
    Recording,
    recording_of,
)

__all__ = ["FOLDER", "packed", "packed_runtimes"]

#: What is shipped: the compact file, and beside it documents that are not yet part of it.
FOLDER = Path(__file__).parent / "data"


@lru_cache(maxsize=1)
def packed_runtimes() -> Mapping[str, RecordedRuntime]:
    """Return the packed runtimes by name, without reading their distributions."""
    data = _data()
    known = data["records"].keys()
    found = {}
    for place, entry in enumerate(data["runtimes"]):
        bit = 1 << place
        lines = [line for line, _, mask in data["pins"] if mask & bit]
        about = _describe(entry, distributions=len(lines), unknown=sum(line not in known for line in lines))
        found[about.name] = about
    return found


@cache
def packed(name: str) -> Recording:
    """Return one packed runtime.  *name* is one of ``packed_runtimes``."""
    data = _data()
    place = list(packed_runtimes()).index(name)
    entry = data["runtimes"][place]
    labels = {line: record["by_label"] for line, record in data["records"].items() if "by_label" in record}
    label = entry["label"]
    return recording_of(
        _describe(entry),
        tuple(
            _distribution(line, version, label if label in labels.get(line, ()) else None)
            for line, version, mask in data["pins"]
            if mask & 1 << place
        ),
        tuple(frozenset(map(canonicalize_name, group)) for group in data["shared"]),
    )


@lru_cache(maxsize=1)
def _data() -> Mapping[str, Any]:
    """Return the content of the file, with a tuple for each pin and a mapping for the record of its line.

    In the file they are columns, which compress better.
    """
    data: Mapping[str, Any] = json.loads(gzip.decompress((FOLDER / "runtimes.json.gz").read_bytes()))
    pins, columns, unknown = data["pins"], data["records"], {*data["unknown"]}
    versions = pins["versions"]
    rows = zip(*columns.values(), strict=True)
    return {
        **data,
        "pins": [
            (line, versions.get(line) or line.partition("==")[2], mask)
            for line, mask in zip(pins["lines"], pins["masks"], strict=True)
        ],
        "records": {
            line: {name: value for name, value in zip(columns, row, strict=True) if value is not None}
            for place, (line, row) in enumerate(zip(pins["lines"], rows, strict=True))
            if place not in unknown
        },
    }


def _describe(entry: Mapping[str, Any], *, distributions: int = 0, unknown: int = 0) -> RecordedRuntime:
    return RecordedRuntime(
        name=f"colab-{entry['label']}-{entry['flavour']}",
        label=entry["label"],
        flavour=entry["flavour"],
        python_version=entry["python"],
        date=entry["date"],
        commit=entry["commit"],
        source=f"googlecolab/backend-info {entry['commit'][:7]} of {entry['date']}",
        distributions=distributions,
        unknown=unknown,
        torch=entry.get("torch"),
        cuda_toolkit=entry.get("cuda_toolkit"),
        driver=entry.get("driver"),
    )


def _requires(text: str) -> Iterator[str]:
    """Yield requirements.  A line with a semicolon first has the marker of those after it."""
    marker = ""
    for line in filter(None, text.split("\n")):
        if line.startswith(";"):
            marker = line[1:]
        else:
            yield line + marker


@cache  # most pins are those of several runtimes, and some commands read them all
def _distribution(line: str, version: str, label: str | None) -> RecordedDistribution:
    spelled, at, url = line.partition(" @ ")
    if not at:
        spelled = line.partition("==")[0]
    known = _data()["records"].get(line)
    record = known or {}
    if label is not None:
        record = {**record, **record["by_label"][label]}
    return RecordedDistribution(
        spelled=spelled,
        url=url or None,
        is_known=known is not None,
        requires_of=record.get("requires_of"),
        installed=Installed(
            name=canonicalize_name(spelled),
            version=version,
            requires=tuple(_requires(record.get("requires_dist", ""))),
            requires_python=record.get("requires_python"),
            extras=tuple(record.get("provides_extra", ())),
            import_names=tuple(record.get("import_names", ())),
            direct_url=from_freeze(url) if at else None,
            installer="pip",
            size=record.get("size"),
            is_known=known is not None,
        ),
    )
