"""Convert requirements of other tools to parts of a matrix, with notes on what a matrix cannot express."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import urlsplit

from colablock._common.urls import Url, local_path, split_fragment
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName
from colablock.authoring.local_labels import LabelBinding, bind_labels, label_bindings
from colablock.authoring.requirement_file import FoundRequirement, RequirementFile
from colablock.matrix.model import Index, PackageEntry, entry_of
from colablock.network.settings import DEFAULT_INDEX

__all__ = ["MatrixParts", "matrix_parts"]

# Each of several entries for one project needs a marker.  This one is always true.
_ALWAYS = Marker("python_version >= '3'")
_GENERIC_WORDS = {"simple", "whl", "www"}  # of a URL, omitted from the name of an index


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixParts:
    """The parts of a matrix with the same requirements.

    Constraints have only name, specifier and marker.  *notes* list what is omitted and what the
    author still has to decide, a line each.
    """

    packages: tuple[PackageEntry, ...] = ()
    constraints: tuple[PackageEntry, ...] = ()
    indexes: tuple[Index, ...] = ()
    requires_python: str | None = None
    prerelease: str | None = None
    exclude_newer: datetime | None = None
    no_binary: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def matrix_parts(
    file: RequirementFile, agrees: Callable[[LabelBinding], bool] = lambda _binding: True
) -> MatrixParts:
    """Return the requirements of *file* as parts of a matrix, in the same order.

    Requirements of one project with the same marker become one entry.  Otherwise each becomes an
    entry with a marker.  *agrees* is asked whether packages come from the index that alone serves
    their local label; a note says what is bound.
    """
    proposed, unclear = label_bindings(file)
    bindings = [binding for binding in proposed if agrees(binding)]
    file = bind_labels(file, bindings)
    by_url = dict(_indexes(file))
    names = {url: index.name for url, index in by_url.items()}
    narrowing = (found for found in file.constraints if found.requirement.specifier)
    return MatrixParts(
        packages=tuple(_merge_entries([_entry(found, names) for found in file.requirements])),
        constraints=tuple(
            _merge_entries([entry_of(found.requirement, path=found.where) for found in narrowing])
        ),
        indexes=tuple(by_url.values()),
        requires_python=file.requires_python,
        prerelease=file.prerelease,
        exclude_newer=file.exclude_newer,
        no_binary=file.no_binary,
        notes=(*file.notes, *_omissions(file), *_binding_notes(bindings, names), *unclear),
    )


def _entry(found: FoundRequirement, index_names: Mapping[str, str]) -> PackageEntry:
    entry = entry_of(found.requirement, path=found.where)
    hashes = [one.removeprefix("sha256:") for one in found.hashes if one.startswith("sha256:")]
    if entry.url is not None and entry.sha256 is None and len(hashes) == 1:
        entry = replace(entry, sha256=hashes[0])
    return replace(entry, index=index_names.get(found.index or ""))


def _binding_notes(bindings: Iterable[LabelBinding], names: Mapping[str, str]) -> Iterator[str]:
    for binding in bindings:
        yield (
            f"{', '.join(binding.names)}: from the index `{names[binding.index]}` only, which alone serves"
            " the local label"
        )


def _merge_entries(entries: Sequence[PackageEntry]) -> Iterator[PackageEntry]:
    """Yield *entries* by name, with those of the same marker and source merged."""
    by_name: dict[NormalizedName, dict[object, PackageEntry]] = {}
    for entry in entries:
        same = by_name.setdefault(entry.name, {})
        key = (str(entry.marker), entry.url, entry.index)
        same[key] = _merge(same[key], entry) if key in same else entry
    for same in by_name.values():
        for entry in same.values():
            yield entry if len(same) == 1 else replace(entry, marker=entry.marker or _ALWAYS)


def _merge(one: PackageEntry, other: PackageEntry) -> PackageEntry:
    return replace(
        one,
        specifier=one.specifier & other.specifier,
        extras=one.extras | other.extras,
        sha256=one.sha256 or other.sha256,
    )


def _indexes(file: RequirementFile) -> Iterator[tuple[str, Index]]:
    """Yield the indexes that a matrix has to declare, each with its URL in the file, without PyPI."""
    taken: set[str] = set()
    default = file.default_index
    pypi = DEFAULT_INDEX.rstrip("/")
    is_named = any((one.index or "").rstrip("/") == pypi for one in file.requirements)
    known = set() if is_named else {pypi}
    if default is not None and default.rstrip("/") not in known:
        yield default, Index(name=_name_of(default, file, taken), url=Url(_url(default)), default=True)
    for url in file.indexes:
        if url.rstrip("/") not in {(default or "").rstrip("/"), *known}:
            yield url, Index(name=_name_of(url, file, taken), url=Url(_url(url)))


def _name_of(url: str, file: RequirementFile, taken: set[str]) -> str:
    """Return the name of an index: the one that the file gives it, if there is one."""
    own = file.index_names.get(url)
    if own is None or own in taken:
        return _index_name(url, taken)
    taken.add(own)
    return own


def _url(place: str) -> str:
    """Return the URL of an index, which may be the path of a folder."""
    path = local_path(place)
    return place if path is None or place.startswith("file:") else path.absolute().as_uri()


def _index_name(url: str, taken: set[str]) -> str:
    """Return a name for an index, made of host and path: ``download-pytorch-org-cu118``."""
    parts = urlsplit(url)
    words = re.findall("[a-z0-9]+", f"{parts.hostname or ''}/{parts.path}".lower())
    stem = "-".join(word for word in words if word not in _GENERIC_WORDS) or "index"
    name = next(name for name in (stem, *(f"{stem}-{n}" for n in range(2, 1000))) if name not in taken)
    taken.add(name)
    return name


def _omissions(file: RequirementFile) -> Iterator[str]:
    """Yield notes about everything in the file that a matrix cannot express."""
    for found in file.constraints:
        if found.requirement.url is not None:
            name = found.requirement.name
            yield f"{found.where}: a constraint cannot have a URL: set `url` of the package `{name}`"
    for found in file.requirements:
        if found.requirement.url is not None:
            yield from _archive_notes(found.requirement, found.where)
    if any(found.hashes for found in file.requirements if found.requirement.url is None):
        yield "omitted the hashes of releases: a lock has the hashes of all files"
    for link in file.find_links:
        yield f"a matrix cannot name find-links: pass `--find-links {link}` to the commands"


def _archive_notes(requirement: Requirement, where: str) -> Iterator[str]:
    plain, hashes = split_fragment(requirement.url or "")
    if "subdirectory=" in (requirement.url or "").partition("#")[2]:
        yield f"{where}: omitted the `subdirectory` of `{plain}`: `source-root` may replace it"
    if set(hashes) - {"sha256"}:
        yield f"{where}: omitted the hashes of `{plain}` other than SHA-256"
    if not plain.endswith(".whl"):
        yield f"{where}: `{requirement.name}` has to be built: add it to `options.allow-build`"
    if plain.startswith("file:"):
        yield f"{where}: `{plain}` is a file on this machine"
