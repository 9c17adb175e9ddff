"""Read the sources of PDM in a ``pyproject.toml`` as the indexes of a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.authoring.declared_indexes import DeclaredIndexes, listed
from colablock.authoring.requirement_file import FoundRequirement, RequirementFile
from colablock.errors import Fault

__all__ = ["with_pdm_sources"]


def with_pdm_sources(
    file: RequirementFile, tool: Mapping[str, Any], source: str
) -> tuple[RequirementFile, list[Fault]]:
    """Return *file* with the indexes of ``[[tool.pdm.source]]``, and the faults of that table.

    The source named `pypi` replaces PyPI.  A requirement that `include_packages` of a source names
    comes from that source only, as in PDM.
    """
    pdm = tool.get("pdm")
    items = pdm.get("source", []) if isinstance(pdm, dict) else []
    indexes = DeclaredIndexes(tool="PDM", source=source, table="tool.pdm.source")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return file, [Fault(path=indexes.where, message="must be an array of tables")]
    requirements = file.requirements
    for place, item in enumerate(items):
        name, url = item.get("name"), item.get("url")
        where = f"tool.pdm.source[{place}]"
        if not isinstance(name, str) or not isinstance(url, str):
            indexes.notes.append(f"omitted `{where}`: it has no `name` or no `url`")
            continue
        if item.get("type") == "find_links":
            indexes.find_links.append(indexes.plain(url))
        else:
            is_default = name == "pypi"
            indexes.add(url, None if is_default else name, is_searched=True, is_default=is_default)
        if item.keys() & {"username", "password"}:
            indexes.drop_password(indexes.plain(url))
        requirements = tuple(_included(requirements, item, where, indexes))
        if item.get("exclude_packages"):
            indexes.notes.append(f"omitted `{where}.exclude_packages`")
    return indexes.added_to(replace(file, requirements=requirements)), indexes.faults


def _included(
    requirements: Sequence[FoundRequirement], item: Mapping[str, Any], where: str, indexes: DeclaredIndexes
) -> Iterator[FoundRequirement]:
    """Yield the requirements, those that `include_packages` of *item* names with its index."""
    patterns = item.get("include_packages", [])
    if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
        indexes.faults.append(
            Fault(path=f"{indexes.source}:{where}.include_packages", message="must be an array of strings")
        )
        patterns = []
    is_index = item.get("type") != "find_links"
    unused = list(patterns)
    for found in requirements:
        name = canonicalize_name(found.requirement.name)
        fitting = [one for one in patterns if fnmatchcase(name, one)]
        if fitting and is_index and found.index is None and found.requirement.url is None:
            unused = [one for one in unused if one not in fitting]
            yield replace(found, index=indexes.plain(item["url"]))
        else:
            yield found
    if unused:
        indexes.notes.append(f"omitted {listed(unused)} of `{where}.include_packages`")
