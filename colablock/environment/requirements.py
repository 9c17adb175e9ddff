"""Requirement lines of installed distributions: parsed when their name matters."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from colablock._vendor.packaging.requirements import InvalidRequirement, Requirement
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name

if TYPE_CHECKING:
    from colablock.environment.markers_and_tags import Environment
    from colablock.environment.snapshot import Installed

__all__ = ["Demand", "Dependents", "applies", "holding", "only_with", "parse_requirement"]

_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
# A marker that is one clause or clauses joined by "and", one of them about an extra.
_WITH_EXTRA = re.compile(r"""[^;]*;(?!.*\bor\b).*\bextra\s*==\s*(["'])([^"']+)\1""")


@lru_cache(maxsize=65536)
def parse_requirement(line: str) -> Requirement | None:
    """Return the requirement of a Requires-Dist line; None where it cannot be read.

    Installed metadata is a fact: an unreadable line there binds nobody.
    """
    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


def only_with(line: str) -> NormalizedName | None:
    """Return the extra without which *line* asks for nothing; None where its text does not tell.

    Most lines of large projects are such ones, and telling costs a tenth of parsing them.
    """
    match = _WITH_EXTRA.match(line)
    return canonicalize_name(match[2]) if match else None


def applies(requirement: Requirement, environment: Environment, extras: Iterable[str] = ()) -> bool:
    """Whether *requirement* holds in *environment*, with any of *extras* asked for (PEP 508)."""
    if requirement.marker is None:
        return True
    markers = dict(environment.markers)
    return any(requirement.marker.evaluate({**markers, "extra": extra}) for extra in extras or ("",))


class Demand(NamedTuple):
    """A requirement that an installed distribution has of a name."""

    owner: NormalizedName
    requirement: Requirement


class Dependents:
    """Who needs a name, over everything installed.  Lines are parsed on demand."""

    def __init__(self, installed: Mapping[NormalizedName, Installed], environment: Environment) -> None:
        self._environment = environment
        self._lines: defaultdict[NormalizedName, list[tuple[NormalizedName, str]]] = defaultdict(list)
        for owner in installed.values():
            for line in owner.requires:
                match = _NAME.match(line)
                if match:
                    self._lines[canonicalize_name(match[1])].append((owner.name, line))

    def of(self, name: NormalizedName) -> Iterator[Demand]:
        """Yield the demands on *name* whose markers hold, extras left out."""
        for owner, line in self._lines.get(name, ()):
            requirement = parse_requirement(line)
            if requirement is not None and applies(requirement, self._environment):
                yield Demand(owner, requirement)


def holding(
    installed: Installed, environment: Environment, everything: Mapping[NormalizedName, Installed]
) -> Iterator[Requirement]:
    """Yield the requirements of *installed* that the environment meets as it stands."""
    for line in installed.requires:
        requirement = parse_requirement(line)
        if requirement is None or not applies(requirement, environment):
            continue
        there = everything.get(canonicalize_name(requirement.name))
        if there is not None and requirement.specifier.contains(there.version, prereleases=True):
            yield requirement
