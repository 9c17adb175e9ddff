"""Bind packages to the index that serves their local version label.

pip asks every index for every name, so whoever can upload to one of them can offer a higher version of
any name.  A matrix gives an index to single packages.  A local label, such as ``+cu118``, tells which:
PyPI takes no file with one, and the URL of an index of such builds ends with the label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion
from colablock.authoring.requirement_file import FoundRequirement, RequirementFile
from colablock.environment.requirements import version_of
from colablock.network.settings import DEFAULT_INDEX

__all__ = ["LabelBinding", "bind_labels", "label_bindings", "with_pypi_as_default"]

_OWN = "colablock"  # the label of a rebuilt wheel, which no index has


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelBinding:
    """An index, and the names that it alone serves."""

    index: str
    names: tuple[NormalizedName, ...]


def with_pypi_as_default(file: RequirementFile) -> RequirementFile:
    """Return *file* with PyPI as the default index if it names PyPI beside another default index.

    pip treats ``--index-url`` and ``--extra-index-url`` alike.  In a matrix only the default index has
    the names that name no index.
    """
    default = file.default_index
    if default is None or not any(map(_is_pypi, file.indexes)) or _is_pypi(default):
        return file
    others = [url for url in file.indexes if not _is_pypi(url)]
    return replace(file, default_index=None, indexes=tuple(dict.fromkeys([default, *others])))


def label_bindings(file: RequirementFile) -> tuple[tuple[LabelBinding, ...], tuple[str, ...]]:
    """Return the indexes that alone serve the local label of a pin, and a note about the other such pins."""
    indexes = [url for url in file.indexes if not _is_pypi(url)]
    if not indexes:
        return (), ()
    found: dict[str, list[NormalizedName]] = {}
    unclear = []
    for name, label in _labels(file):
        serving = [url for url in indexes if label in _words(url) or label.partition(".")[0] in _words(url)]
        # Without another source that might have it, the one index is the only one left.
        is_alone = len(indexes) == 1 and file.default_index is None and not file.find_links
        if not serving and is_alone:
            serving = indexes
        if len(serving) == 1:
            found.setdefault(serving[0], []).append(name)
        else:
            unclear.append(f"{name} (`+{label}`)")
    bindings = tuple(
        LabelBinding(index=index, names=tuple(dict.fromkeys(names))) for index, names in found.items()
    )
    listed = ", ".join(dict.fromkeys(unclear))
    note = f"no index is bound to {listed}: the file does not tell which one serves the label; set `index`"
    return bindings, (note,) if unclear else ()


def bind_labels(file: RequirementFile, bindings: Iterable[LabelBinding]) -> RequirementFile:
    """Return *file* with the names of *bindings* taken from their indexes."""
    index_of = {name: binding.index for binding in bindings for name in binding.names}
    return replace(file, requirements=tuple(_bound(found, index_of, file) for found in file.requirements))


def _bound(
    found: FoundRequirement, index_of: Mapping[NormalizedName, str], file: RequirementFile
) -> FoundRequirement:
    name = canonicalize_name(found.requirement.name)
    if name not in index_of or found.index is not None or found.requirement.url is not None:
        return found
    own = list(_labels_of(found))
    others = [one for one in file.requirements if canonicalize_name(one.requirement.name) == name]
    # Another build of the same project, for another platform, may be on the default index.
    if not own and any(any(_labels_of(one)) for one in others):
        return found
    return replace(found, index=index_of[name])


def _labels(file: RequirementFile) -> Iterator[tuple[NormalizedName, str]]:
    """Yield each name without a source, and the local label that it is pinned to."""
    required = {
        canonicalize_name(one.requirement.name)
        for one in file.requirements
        if one.index is None and one.requirement.url is None
    }
    for found in (*file.requirements, *file.constraints):
        name = canonicalize_name(found.requirement.name)
        if name in required and found.index is None:
            yield from ((name, label) for label in _labels_of(found))


def _labels_of(found: FoundRequirement) -> Iterator[str]:
    for specifier in found.requirement.specifier:
        if specifier.operator not in {"==", "==="}:
            continue
        try:
            label = version_of(specifier.version).local
        except InvalidVersion:
            continue
        if label is not None and _OWN not in label.split("."):
            yield label


def _words(url: str) -> Sequence[str]:
    """Return the parts of the host and the path of *url*, whole and split at dashes."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ()
    segments = [*(parts.hostname or "").split("."), *unquote(parts.path).lower().split("/")]
    return [word for segment in segments for word in (segment, *re.split(r"[-_+]", segment)) if word]


def _is_pypi(url: str) -> bool:
    return url.rstrip("/") in {DEFAULT_INDEX.rstrip("/"), "https://pypi.python.org/simple"}
