"""What another tool's requirements are as parts of a matrix, and what no part of one can say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from colablock._common.urls import local_path, split_fragment
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName
from colablock.authoring.requirements_reader import RequirementFile
from colablock.authoring.requirements_txt import FoundRequirement
from colablock.matrix.model import Index, PackageEntry, entry_of
from colablock.network.settings import DEFAULT_INDEX

__all__ = ["MatrixParts", "matrix_parts"]

# Of several entries for one project each needs a marker; this one holds everywhere.
_ALWAYS = Marker("python_version >= '3'")
_SAYS_NOTHING = {"simple", "whl", "www"}  # of a URL, when an index is named after it


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixParts:
    """The parts of a matrix that asks for the same.

    Of a constraint only name, specifier and marker count.  *notes* say what is
    left out and what is still to be decided, a line each.
    """

    packages: tuple[PackageEntry, ...] = ()
    constraints: tuple[PackageEntry, ...] = ()
    indexes: tuple[Index, ...] = ()
    notes: tuple[str, ...] = ()


def matrix_parts(file: RequirementFile) -> MatrixParts:
    """Return what *file* asks for as entries, in its order.

    Several requirements of one project are one entry where their markers agree,
    and else entries with a marker each.
    """
    indexes = tuple(_indexes(file))
    names = {index.url: index.name for index in indexes}
    narrowing = (found for found in file.constraints if found.requirement.specifier)
    return MatrixParts(
        packages=tuple(_joined([_entry(found, names) for found in file.requirements])),
        constraints=tuple(_joined([entry_of(found.requirement, path=found.where) for found in narrowing])),
        indexes=indexes,
        notes=(*file.notes, *_left_out(file)),
    )


def _entry(found: FoundRequirement, index_names: Mapping[str, str]) -> PackageEntry:
    entry = entry_of(found.requirement, path=found.where)
    hashes = [one.removeprefix("sha256:") for one in found.hashes if one.startswith("sha256:")]
    if entry.url is not None and entry.sha256 is None and len(hashes) == 1:
        entry = replace(entry, sha256=hashes[0])
    return replace(entry, index=index_names.get(found.index or ""))


def _joined(entries: Sequence[PackageEntry]) -> Iterator[PackageEntry]:
    """Yield *entries* by name; those that apply together and come from one place are one."""
    by_name: dict[NormalizedName, dict[object, PackageEntry]] = {}
    for entry in entries:
        same = by_name.setdefault(entry.name, {})
        key = (str(entry.marker), entry.url, entry.index)
        same[key] = _both(same[key], entry) if key in same else entry
    for same in by_name.values():
        for entry in same.values():
            yield entry if len(same) == 1 else replace(entry, marker=entry.marker or _ALWAYS)


def _both(one: PackageEntry, other: PackageEntry) -> PackageEntry:
    return replace(
        one,
        specifier=one.specifier & other.specifier,
        extras=one.extras | other.extras,
        sha256=one.sha256 or other.sha256,
    )


def _indexes(file: RequirementFile) -> Iterator[Index]:
    """Yield the indexes that a matrix has to declare.  The default one of everybody is none of them."""
    taken: set[str] = set()
    default = file.default_index
    if default is not None and default.rstrip("/") != DEFAULT_INDEX.rstrip("/"):
        yield Index(name=_index_name(default, taken), url=_url(default), default=True)
    for url in file.indexes:
        if url.rstrip("/") not in {(default or "").rstrip("/"), DEFAULT_INDEX.rstrip("/")}:
            yield Index(name=_index_name(url, taken), url=_url(url))


def _url(place: str) -> str:
    """Return an index's URL; a folder is one too, by its path."""
    path = local_path(place)
    return place if path is None or place.startswith("file:") else path.absolute().as_uri()


def _index_name(url: str, taken: set[str]) -> str:
    """Return a name for an index after its host and path: ``download-pytorch-org-cu118``."""
    parts = urlsplit(url)
    words = re.findall("[a-z0-9]+", f"{parts.hostname or ''}/{parts.path}".lower())
    stem = "-".join(word for word in words if word not in _SAYS_NOTHING) or "index"
    name = next(name for name in (stem, *(f"{stem}-{n}" for n in range(2, 1000))) if name not in taken)
    taken.add(name)
    return name


def _left_out(file: RequirementFile) -> Iterator[str]:
    """Yield what the file says that no entry can say."""
    for found in file.constraints:
        if found.requirement.url is not None:
            yield f"{found.where}: a constraint names no archive: give `{found.requirement.name}` its `url`"
    for found in file.requirements:
        if found.requirement.url is not None:
            yield from _of_archive(found.requirement, found.where)
    if any(found.hashes for found in file.requirements if found.requirement.url is None):
        yield "the hashes of releases are left out: a lock has those of every file"
    for link in file.find_links:
        yield f"a matrix names no place of files: give `--find-links {link}` where it is used"


def _of_archive(requirement: Requirement, where: str) -> Iterator[str]:
    plain, hashes = split_fragment(requirement.url or "")
    if "subdirectory=" in (requirement.url or "").partition("#")[2]:
        yield f"{where}: the `subdirectory` of `{plain}` is left out: `source-root` may say it"
    if set(hashes) - {"sha256"}:
        yield f"{where}: of `{plain}` only a SHA-256 can be kept"
    if not plain.endswith(".whl"):
        yield f"{where}: `{requirement.name}` is built: name it in `options.allow-build`"
    if plain.startswith("file:"):
        yield f"{where}: `{plain}` is a file of this machine"
