"""Requirement lines of distributions (`Requires-Dist`): parse them, and judge their markers and extras."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from colablock._vendor.packaging.requirements import InvalidRequirement, Requirement
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name

if TYPE_CHECKING:
    from colablock.environment.markers_and_tags import Environment

__all__ = ["applies", "asks_for_extras", "only_with", "parse_requirement", "required_name"]

_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
# A marker of one clause, or of clauses joined by "and", one of which names an extra.
_WITH_EXTRA = re.compile(r"""[^;]*;(?!.*\bor\b).*\bextra\s*==\s*(["'])([^"']+)\1""")


@lru_cache(maxsize=65536)
def parse_requirement(line: str) -> Requirement | None:
    """Return the requirement of a Requires-Dist line; None if it cannot be parsed.

    Installed metadata cannot be corrected here, so an invalid line in it requires nothing.
    """
    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


@lru_cache(maxsize=65536)
def required_name(line: str) -> NormalizedName | None:
    """Return the name that *line* starts with, without parsing the rest; None if there is none."""
    match = _NAME.match(line)
    return canonicalize_name(match[1]) if match else None


def asks_for_extras(line: str) -> bool:
    """Whether *line* may ask for extras (``name[extra]``), judged by its text."""
    return "[" in line.partition(";")[0]


@lru_cache(maxsize=65536)
def only_with(line: str) -> NormalizedName | None:
    """Return the extra that *line* belongs to; None if the text does not show it.

    Large projects have mostly such lines.  Reading the extra from the text takes a
    tenth of the time that parsing the line takes.
    """
    match = _WITH_EXTRA.match(line)
    return canonicalize_name(match[2]) if match else None


def applies(requirement: Requirement, environment: Environment, extra: str = "") -> bool:
    """Whether *requirement* counts in *environment* for one pair of a distribution and an *extra*.

    For the distribution itself (no *extra*), the marker must hold without an extra.  For an
    extra, only what it adds counts: the marker must hold with it and not without it (PEP 508).
    """
    if requirement.marker is None:
        return not extra
    markers = dict(environment.markers)
    is_plain = requirement.marker.evaluate({**markers, "extra": ""})
    if not extra:
        return is_plain
    return not is_plain and requirement.marker.evaluate({**markers, "extra": extra})
