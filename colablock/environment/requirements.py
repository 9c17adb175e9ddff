"""Requirement lines of distributions (`Requires-Dist`): parse them, and judge their markers and extras."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from colablock._common import limits
from colablock._vendor.packaging.markers import InvalidMarker, Marker
from colablock._vendor.packaging.requirements import InvalidRequirement, Requirement
from colablock._vendor.packaging.specifiers import InvalidSpecifier, SpecifierSet
from colablock._vendor.packaging.utils import InvalidName, NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.errors import InvalidInput

if TYPE_CHECKING:
    from colablock.environment.markers_and_tags import Environment

__all__ = [
    "applies",
    "asking_lines",
    "asks_for_extras",
    "lines_under",
    "marker_of",
    "named_lines",
    "only_with",
    "parse_requirement",
    "project_named",
    "required_name",
    "requirement_of",
    "same_version",
    "shared_requirement",
    "specifier_of",
    "unfit",
    "version_of",
]

_DIGITS = re.compile(r"[0-9]+")
_BRACKETS = re.compile("[()]")
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
# A marker of one clause, or of clauses joined by "and", one of which names an extra.
_WITH_EXTRA = re.compile(r"""[^;]*;(?!.*\bor\b).*\bextra\s*==\s*(["'])([^"']+)\1""")


def unfit(text: str, limit: int = limits.REQUIREMENT) -> str | None:
    """Return why packaging must not parse *text*; None if it may.

    Its regular expressions take quadratic time on some texts, its parser of markers is recursive, and
    Python converts no number of more than 4300 digits.
    """
    if len(text) > limit:
        return f"it has {len(text)} characters, more than {limit}"
    if len(text) > limits.DIGITS and max(map(len, _DIGITS.findall(text)), default=0) > limits.DIGITS:
        return f"it has a number of more than {limits.DIGITS} digits"
    if "(" in text and _depth(text) > limits.MARKER_DEPTH:
        return "it is nested too deeply"
    return None


def _depth(text: str) -> int:
    """Return the depth of the parentheses of *text*, those in strings included."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    return deepest


def version_of(text: str) -> Version:
    """Return the version in *text*.  Raises InvalidVersion, also if it is too long."""
    if why := unfit(text, limits.VERSION):
        raise InvalidVersion(f"Invalid version: {why}")
    return Version(text)


def same_version(one: str, other: str) -> bool:
    """Whether two texts are the same version: 4.9 and 4.9.0 are (PEP 440)."""
    try:
        return one == other or version_of(one) == version_of(other)
    except InvalidVersion:
        return False


def specifier_of(text: str) -> SpecifierSet:
    """Return the specifier in *text*.  Raises InvalidSpecifier, also if it is too long."""
    if why := unfit(text):
        raise InvalidSpecifier(f"Invalid specifier: {why}")
    return SpecifierSet(text)


def marker_of(text: str) -> Marker:
    """Return the marker in *text*.  Raises InvalidMarker, also if it is too long or nested too deeply."""
    if why := unfit(text):
        raise InvalidMarker(f"Invalid marker: {why}")
    return Marker(text)


def requirement_of(text: str) -> Requirement:
    """Return the requirement in *text*.  Raises InvalidRequirement, also if it is too long."""
    if why := unfit(text):
        raise InvalidRequirement(f"Invalid requirement: {why}")
    return Requirement(text)


#: `requirement_of` for lines that several ask for.  Nobody may change what it returns.
shared_requirement = lru_cache(maxsize=65536)(requirement_of)


@lru_cache(maxsize=65536)
def parse_requirement(line: str) -> Requirement | None:
    """Return the requirement of a Requires-Dist line; None if it cannot be parsed.

    Installed metadata cannot be corrected here, so an invalid line in it requires nothing.
    """
    try:
        return shared_requirement(line)
    except InvalidRequirement:
        return None


def project_named(text: str) -> NormalizedName:
    """Return *text*, which a user wrote, as the normalized name of a project.  Raises InvalidInput."""
    try:
        return canonicalize_name(text, validate=True)
    except InvalidName as error:
        found = parse_requirement(text)
        hint = f"Write the name alone: `{found.name}`" if found else None
        raise InvalidInput(f"`{text}` is not a valid project name", hint=hint) from error


@lru_cache(maxsize=65536)
def required_name(line: str) -> NormalizedName | None:
    """Return the name that *line* starts with, without parsing the rest; None if there is none."""
    match = _NAME.match(line[: limits.REQUIREMENT])
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
    match = _WITH_EXTRA.match(line[: limits.REQUIREMENT])
    return canonicalize_name(match[2]) if match else None


@lru_cache(maxsize=8192)
def lines_under(requires: tuple[str, ...], extra: str) -> tuple[str, ...]:
    """Return the lines of a distribution that may count under *extra* ("" for none), judged by their text."""
    return tuple(line for line in requires if only_with(line) in (None, extra))


@lru_cache(maxsize=8192)
def asking_lines(requires: tuple[str, ...], extra: str) -> tuple[str, ...]:
    """Return the lines of `lines_under` that may ask for extras."""
    return tuple(line for line in lines_under(requires, extra) if asks_for_extras(line))


@lru_cache(maxsize=8192)
def named_lines(requires: tuple[str, ...]) -> tuple[tuple[NormalizedName, str], ...]:
    """Return the lines of a distribution, each with the name that it starts with, if it has one."""
    found = ((required_name(line), line) for line in requires)
    return tuple((name, line) for name, line in found if name is not None)


def applies(requirement: Requirement, environment: Environment, extra: str = "") -> bool:
    """Whether *requirement* counts in *environment* for one pair of a distribution and an *extra*.

    For the distribution itself (no *extra*), the marker must hold without an extra.  For an
    extra, only what it adds counts: the marker must hold with it and not without it (PEP 508).
    """
    if requirement.marker is None:
        return not extra
    is_plain = environment.holds(requirement.marker)
    if not extra:
        return is_plain
    return not is_plain and environment.holds(requirement.marker, extra)
