"""Make the compact data of recorded runtimes, ``colablock/runtimes/data/runtimes.json.gz``.

    python tools/pack_runtimes.py FOLDER [DOCUMENT ...] [--output FILE]

FOLDER holds ``runtimes.toml`` (an array ``runtime`` with label, flavour,
path, python, ubuntu, commit, date and, where known, torch, cuda_toolkit and
driver), per runtime a ``pip-freeze.txt`` below its path, and
``metadata.json.gz``: core metadata by ``name==version`` or ``name @ url``,
each record with the source that it comes from.

DOCUMENTs, which ``colablock runtime import`` writes, say what a release
requires of which the folder does not.  ``colablock runtime import`` takes over
what is shipped, so what they know once is known ever after.

The same input gives the same bytes.  Records of another release
(``approximate``) and empty ones (``unknown``) are left out: of those
distributions the requirements are not known, and the package says so.
"""

# A script, no package.

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import zopfli.gzip

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: TPU images are left out: nothing that the package ships trains on one.
FLAVOURS = ("cpu", "gpu")
UNUSED = frozenset({"approximate", "unknown"})
FIELDS = ("requires_python", "requires_dist", "provides_extra", "import_names", "size", "requires_of")
#: The same in a document.
NAMES = {"requires": "requires_dist", "extras": "provides_extra"}
#: Builds of one project that own the same files with other contents; the images' own records are not kept.
SHARED = (("opencv-contrib-python", "opencv-python", "opencv-python-headless"),)
OUTPUT = Path(__file__).resolve().parent.parent / "colablock" / "runtimes" / "data" / "runtimes.json.gz"

Record = dict[str, Any]


def normalize(name: str) -> str:
    """Return the normal form of a project name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_freeze(path: Path) -> list[str]:
    """Return the lines of a ``pip freeze`` that name a distribution."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def key_of(line: str) -> str:
    """Return the key of a freeze line's record."""
    separator = " @ " if " @ " in line else "=="
    name, _, rest = line.partition(separator)
    return f"{normalize(name)}{separator}{rest}"


def version_of(line: str, record: Record) -> str:
    """Return the version that a freeze line stands for, read from the file name where it has a URL."""
    if " @ " not in line:
        return line.partition("==")[2]
    file = unquote(line.partition(" @ ")[2].split("#")[0].rsplit("/", 1)[-1])
    match = re.match(r"[^-]+-([^-]+)-.*\.whl$", file) or re.match(r".+-([^-]+)\.tar\.gz$", file)
    version = match.group(1) if match else record.get("version")
    if not version:
        sys.exit(f"no version can be told for: {line}")
    return str(version)


def pins_of(freezes: list[list[str]], records: dict[str, Record]) -> dict[str, Any]:
    """Return every distinct line, and a bit for each runtime that has it.

    *versions* has those of lines that do not state them.
    """
    masks: dict[str, int] = {}
    for place, lines in enumerate(freezes):
        for line in lines:
            masks[line] = masks.get(line, 0) | 1 << place
    lines = sorted(masks)
    versions = {line: version_of(line, records.get(key_of(line), {})) for line in lines}
    return {
        "lines": lines,
        "masks": [masks[line] for line in lines],
        "versions": {line: text for line, text in versions.items() if line.partition("==")[2] != text},
    }


def by_column(lines: list[str], records: dict[str, Record]) -> dict[str, Any]:
    """Return a list for each field of the records of *lines*, and the places of lines without a record.

    Similar values compress better.
    """
    found = [records.get(key_of(line)) for line in lines]
    fields = sorted({field for record in found if record for field in record})
    columns = {name: [(record or {}).get(name) for record in found] for name in fields}
    return {"records": columns, "unknown": [place for place, record in enumerate(found) if record is None]}


def by_marker(lines: list[str]) -> str:
    """Return requirements as one text, where a marker that several in a row have is written once.

    A line that begins with a semicolon has the marker of those after it, or none.
    """
    found, last = [], ""
    for line in lines:
        requirement, marker = re.fullmatch(r"([^;]*?)(\s*;.*)?", line).groups("")  # type: ignore[union-attr]
        if marker != last:
            found.append(f";{marker}")
        found.append(requirement)
        last = marker
    return "\n".join(found)


def read_documents(paths: list[Path]) -> dict[str, Record]:
    """Return a record of each distribution whose requirements *paths* know; the first document counts."""
    found: dict[str, Record] = {}
    for path in paths:
        for line in json.loads(path.read_text("utf-8"))["distributions"]:
            frozen = (
                f"{line['name']} @ {line['url']}" if "url" in line else f"{line['name']}=={line['version']}"
            )
            record = {NAMES.get(key, key): value for key, value in line.items()}
            if "requires" in line:
                found.setdefault(key_of(frozen), {**record, "source": "document"})
    return found


def slim(record: Record) -> Record:
    """Return what is used of a record: empty values left out."""
    if record.get("source") == "plain-release":
        record = {**record, "requires_of": record["version"].partition("+")[0]}
    kept = {field: record[field] for field in FIELDS if record.get(field)}
    return {**kept, "requires_dist": by_marker(kept["requires_dist"])} if "requires_dist" in kept else kept


def by_label(record: Record, freezes: dict[str, list[str]]) -> dict[str, Record]:
    """Return the requirements of each label, for a distribution whose pins change under one version.

    The pins have been those of the image at every label where both are
    public; a label without a record gets the same names at its image's versions.
    """
    given = record["by_label"]
    known = {label: slim(entry) for label, entry in given.items()}
    names = sorted({line.split("==")[0] for entry in given.values() for line in entry["requires_dist"]})
    for label, lines in freezes.items():
        versions = {normalize(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
        inferred = [f"{name}=={versions[normalize(name)]}" for name in names]
        known.setdefault(label, {"requires_dist": by_marker(inferred)})
    return known


def pack(folder: Path, documents: list[Path]) -> dict[str, Any]:
    """Return the data for the runtimes of *folder*; *documents* fill what it does not know."""
    index = tomllib.loads((folder / "runtimes.toml").read_text("utf-8"))["runtime"]
    index = [entry for entry in index if entry["flavour"] in FLAVOURS]
    freezes = [read_freeze(folder / entry["path"] / "pip-freeze.txt") for entry in index]
    records = json.loads(gzip.decompress((folder / "metadata.json.gz").read_bytes()))["records"]
    for key, record in read_documents(documents).items():
        if records.get(key, {"source": "unknown"})["source"] in UNUSED:
            records[key] = record
    pins = pins_of(freezes, records)
    of_label = {entry["label"]: lines for entry, lines in zip(index, freezes, strict=True)}
    kept = {}
    for key in map(key_of, pins["lines"]):
        record = records.get(key, {"source": "unknown"})
        if "by_label" in record:
            kept[key] = {**slim(record), "by_label": by_label(record, of_label)}
        elif record["source"] not in UNUSED:
            kept[key] = slim(record)
    keys = ("label", "flavour", "python", "ubuntu", "commit", "torch", "cuda_toolkit", "driver")
    runtimes = [
        {**{key: entry[key] for key in keys if key in entry}, "date": str(entry["date"])} for entry in index
    ]
    columns = by_column(pins["lines"], kept)
    return {"format": 3, "runtimes": runtimes, "shared": SHARED, "pins": pins, **columns}


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("documents", metavar="DOCUMENT", type=Path, nargs="*")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    text = json.dumps(
        pack(arguments.folder, arguments.documents), ensure_ascii=False, separators=(",", ":"), sort_keys=True
    )
    # It writes no time stamp and no file name, so the bytes follow from the input alone.  They are 7 % fewer
    # than with the standard library, and every wheel has them.
    arguments.output.write_bytes(zopfli.gzip.compress(text.encode()))
    sys.stdout.write(f"{arguments.output}: {arguments.output.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
