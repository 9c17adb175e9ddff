"""Random resolver problems from a seed, and an oracle that tries every choice of versions.

A problem has up to six projects with a few versions each.  Requirements form rings, name extras, carry
markers, and versions may be pre-releases or yanked.  It is small enough for the oracle, which shares no
code with the resolver but the parsing of versions and specifiers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.specifiers import Specifier
from colablock._vendor.packaging.version import Version
from colablock.matrix.model import PackageEntry
from colablock.resolver.model import Request
from tests.support.cases import Expected, Release, ResolverCase
from tests.support.dict_source import PYTHON_312, DictSource, constraints, entries

__all__ = ["RandomProblem", "random_problem"]

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")
FINAL = ("1.0", "2.0", "3.0", "4.0")
BEFORE_FINAL = {"3.0": "3.0rc1", "4.0": "4.0b2"}
MARKERS = ("python_version >= '3.10'", "python_version < '3.10'", "sys_platform == 'linux'")
MARKED = {"python_version >= '3.10'": True, "python_version < '3.10'": False, "sys_platform == 'linux'": True}
OPERATORS = ("", "", "=={v}", "<{v}", "<={v}", ">={v}", ">{v}", "!={v}", "~={v}", ">={u},<{v}")


@dataclass(frozen=True, kw_only=True)
class RandomProblem:
    """One problem: ``{"alpha 1.0": ["beta[x]>=2"]}`` and what is asked of it."""

    seed: int
    index: Mapping[str, Sequence[str]]
    roots: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    yanked: frozenset[str] = frozenset()

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {', '.join(self.roots)}", f"constraints: {', '.join(self.constraints)}"]
        lines += [
            f"  {key}{' (yanked)' if key in self.yanked else ''} needs {', '.join(needs) or 'nothing'}"
            for key, needs in self.index.items()
        ]
        return "\n".join(lines)

    @property
    def request(self) -> Request:
        return Request(environment=PYTHON_312, roots=self.entries, constraints=constraints(*self.constraints))

    @property
    def entries(self) -> tuple[PackageEntry, ...]:
        return entries(*self.roots)

    @property
    def source(self) -> DictSource:
        return DictSource(self.index, yanked=self.yanked)

    @cached_property
    def versions(self) -> dict[str, list[str]]:
        """The versions of each project."""
        found: dict[str, list[str]] = {}
        for key in self.index:
            name, version = key.split()
            found.setdefault(name, []).append(version)
        return found

    @cached_property
    def parsed(self) -> dict[str, list[Requirement]]:
        return {key: [Requirement(line) for line in needs] for key, needs in self.index.items()}

    def solutions(self) -> Iterator[dict[str, str]]:
        """Yield the solutions.  It tries every choice of versions."""
        names = sorted(self.versions)
        for versions in product(*(self.versions[name] for name in names)):
            chosen = dict(zip(names, versions, strict=True))
            found = self.closure(chosen)
            if found is not None and self.admits(found):
                yield {name: chosen[name] for name in found}

    @property
    def is_solvable(self) -> bool:
        return next(self.solutions(), None) is not None

    def is_solution(self, pins: Mapping[str, str]) -> bool:
        """Whether *pins* meet all requirements, are allowed, and hold nothing that nobody requires."""
        if any(f"{name} {version}" not in self.index for name, version in pins.items()):
            return False
        found = self.closure(pins)
        return found is not None and found.keys() == pins.keys() and self.admits(found)

    def closure(self, chosen: Mapping[str, str]) -> dict[str, tuple[str, list[Requirement]]] | None:
        """Return the version of and the requirements on each needed name; None if one is unmet."""
        queue = [Requirement(line) for line in self.roots]
        found: dict[str, tuple[str, list[Requirement]]] = {}
        done: set[tuple[str, str]] = set()
        while queue:
            want = queue.pop()
            version = chosen.get(want.name)
            if version is None or not _meets(want, version):
                return None
            found.setdefault(want.name, (version, []))[1].append(want)
            for extra in ("", *want.extras):
                if (want.name, extra) not in done:
                    done.add((want.name, extra))
                    lines = self.parsed[f"{want.name} {version}"]
                    queue += [line for line in lines if _applies(line, extra)]
        return found

    def admits(self, found: Mapping[str, tuple[str, list[Requirement]]]) -> bool:
        """Whether constraints, yanks (PEP 592) and the rule of pre-releases allow these versions."""
        limits = [Requirement(line) for line in self.constraints]
        for name, (version, wants) in found.items():
            mine = [limit for limit in limits if limit.name == name]
            if not all(_meets(limit, version) for limit in mine):
                return False
            if f"{name} {version}" in self.yanked and not any(map(_pins, _specifiers(wants))):
                return False
            asked = [line for line in map(Requirement, (*self.roots, *self.constraints)) if line.name == name]
            if not Version(version).is_prerelease or any(s.prereleases for s in _specifiers(asked)):
                continue
            if any(self._is_final(name, other, [*wants, *mine]) for other in self.versions[name]):
                return False
        return True

    def _is_final(self, name: str, version: str, wants: Sequence[Requirement]) -> bool:
        """Whether *version* is a final release that meets *wants*, and may be selected."""
        barred = f"{name} {version}" in self.yanked and not any(map(_pins, _specifiers(wants)))
        return (
            not Version(version).is_prerelease and not barred and all(_meets(want, version) for want in wants)
        )

    def quoted(self, report: Iterable[str]) -> RandomProblem:
        """Return the same versions with nothing but the requirements and constraints that *report* quotes."""
        index: dict[str, list[str]] = {key: [] for key in self.index}
        roots, limits = [], []
        for line in report:
            if asked := re.search(r" asks for `(.+)` \(", line):
                roots.append(asked[1])
            elif allowed := re.search(r" allows only `(.+)`", line):
                limits.append(allowed[1])
            elif needed := re.fullmatch(r"(\w+)(\[x\])? (.+) needs? `(.+)`", line):
                name, extra, versions, need = needed.groups()
                for version in self._named(name, versions):
                    index[f"{name} {version}"].append(f"{need}; extra == 'x'" if extra else need)
        return replace(self, index=index, roots=tuple(roots), constraints=tuple(limits))

    def _named(self, name: str, text: str) -> list[str]:
        """Return the versions that a report calls "1.0", "1.0, 2.0 and 3.0", or "1.0 to 3.0 (...)"."""
        first, between, last = text.partition(" (")[0].partition(" to ")
        if not between:
            return re.split(r", | and ", first)
        low, high = Version(first), Version(last)
        return [version for version in self.versions[name] if low <= Version(version) <= high]

    def as_case(self) -> ResolverCase:
        """Return the problem as a case that can be served as real files."""
        releases = [
            Release(
                name=key.split()[0],
                version=key.split()[1],
                needs=tuple(needs),
                extras=("x",),
                yanked="broken" if key in self.yanked else False,
            )
            for key, needs in self.index.items()
        ]
        return ResolverCase(
            about=f"seed {self.seed}",
            require=self.roots,
            constraints=self.constraints,
            index=tuple(releases),
            local=(),
            expect=Expected(),
        )


def random_problem(seed: int) -> RandomProblem:
    """Return the problem of *seed*."""
    rng = random.Random(seed)
    names = NAMES[: rng.randint(3, len(NAMES))]
    ring = rng.sample(names, rng.randint(2, len(names)))
    index: dict[str, list[str]] = {}
    for name in names:
        for version in sorted(rng.sample(FINAL, rng.randint(1, 3 if len(names) > 4 else 4))):
            if version in BEFORE_FINAL and rng.random() < 0.2:
                version = BEFORE_FINAL[version]  # noqa: PLW2901 - a pre-release instead
            index[f"{name} {version}"] = _needs(rng, name, names, ring)
    yanked = frozenset(key for key in index if rng.random() < 0.08)
    roots = [_line(rng, name) for name in rng.sample(names, rng.randint(1, 3))]
    limits = [f"{name}{_specifier(rng)}" for name in rng.sample(names, 2) if rng.random() < 0.3]
    return RandomProblem(seed=seed, index=index, roots=tuple(roots), constraints=tuple(limits), yanked=yanked)


def _needs(rng: random.Random, name: str, names: Sequence[str], ring: Sequence[str]) -> list[str]:
    lines = []
    if name in ring and rng.random() < 0.7:
        following = ring[(ring.index(name) + 1) % len(ring)]
        lines.append(_line(rng, following))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        other = rng.choice(names)
        if other != name:
            marker = rng.random()
            line = _line(rng, other)
            if marker < 0.15:
                line += f"; {rng.choice(MARKERS)}"
            elif marker < 0.4:
                line += "; extra == 'x'"
            lines.append(line)
    return lines


def _line(rng: random.Random, name: str) -> str:
    extra = "[x]" if rng.random() < 0.2 else ""
    return f"{name}{extra}{_specifier(rng)}"


def _specifier(rng: random.Random) -> str:
    low, high = sorted(rng.sample(FINAL, 2))
    value = "3.0rc1" if rng.random() < 0.03 else high
    return rng.choice(OPERATORS).format(u=low, v=value)


def _applies(line: Requirement, extra: str) -> bool:
    if line.marker is None:
        return extra == ""
    text = str(line.marker).replace('"', "'")
    return extra == "x" if "extra" in text else extra == "" and MARKED[text]


def _specifiers(wants: Iterable[Requirement]) -> list[Specifier]:
    return [specifier for want in wants for specifier in want.specifier]


def _pins(specifier: Specifier) -> bool:
    return specifier.operator in {"==", "==="} and not specifier.version.endswith(".*")


def _meets(want: Requirement, version: str) -> bool:
    return want.specifier.contains(version, prereleases=True)
