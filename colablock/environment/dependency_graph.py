"""The requirements among installed distributions: which are met, and which are not after a change.

A requirement belongs to a node (`Node`): a distribution, or one of its extras.  The requirements
of a distribution always count.  The requirements of an extra count if a requirement that counts
asks for the extra.  For example, if ``aaa`` requires ``bbb[x]``, the requirements that ``bbb`` has
for its extra ``x`` count for ``aaa`` too.

The solve, the plan and the proofs all use this module to decide which requirements are unmet.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.requirements import (
    applies,
    asking_lines,
    lines_under,
    named_lines,
    only_with,
    parse_requirement,
)

if TYPE_CHECKING:
    from colablock._vendor.packaging.specifiers import SpecifierSet
    from colablock.environment.markers_and_tags import Environment
    from colablock.environment.snapshot import Installed, Snapshot

__all__ = [
    "Demand",
    "DependencyGraph",
    "Node",
    "UnmetRequirement",
    "newly_unmet",
    "unmet_text",
]

Node = tuple[NormalizedName, str]
"""The normalized name of a distribution and of one of its extras; "" is the distribution itself."""


class Demand(NamedTuple):
    """One requirement that counts.  *owner* has it in its metadata, for *extra* ("" for none)."""

    owner: NormalizedName
    extra: str
    line: str
    requirement: Requirement

    @property
    def node(self) -> Node:
        """The node that the requirement belongs to."""
        return self.owner, self.extra

    @property
    def target(self) -> NormalizedName:
        """The name that is required."""
        return canonicalize_name(self.requirement.name)

    @property
    def targets(self) -> tuple[Node, ...]:
        """The required nodes: the distribution, and each extra that is asked for."""
        extras = sorted(canonicalize_name(extra) for extra in self.requirement.extras)
        return ((self.target, ""), *((self.target, extra) for extra in extras))

    def __str__(self) -> str:
        owner = f"{self.owner}[{self.extra}]" if self.extra else self.owner
        return f"{owner} needs {self.requirement}"


class UnmetRequirement(NamedTuple):
    """An unmet requirement of *name*, its own or of an extra that it asks for.

    *chain* ends with the unmet requirement.  The first demand is a requirement of *name* itself,
    and each demand asks for the extra that the next one belongs to.
    """

    name: NormalizedName
    chain: tuple[Demand, ...]

    @property
    def demand(self) -> Demand:
        """The unmet requirement."""
        return self.chain[-1]

    @property
    def key(self) -> tuple[NormalizedName, str]:
        """The owner and the line of the requirement, which identify it."""
        return self.demand.owner, self.demand.line


class _Verdicts(NamedTuple):
    """Judgements that hold for every graph of one environment.  A plan makes a graph for each repair."""

    counting: dict[tuple[str, str], Requirement | None]  # by the line and the extra
    met: dict[tuple[str, str], bool]  # by the line and the installed version


@lru_cache(maxsize=16)
def _verdicts(_markers: tuple[tuple[str, str], ...]) -> _Verdicts:
    return _Verdicts({}, {})


class _Lines:
    """The requirement lines of *installed*, by the name that they require.

    The lines of a state that differs in a few distributions are those of the state *before*, but for these.
    """

    def __init__(self, installed: Mapping[NormalizedName, Installed], before: _Lines | None = None) -> None:
        self.installed = installed
        self._before = before
        there = before.installed if before is not None else {}
        self._touched = {
            name: one.requires
            for name, one in installed.items()
            if name not in there or there[name].requires is not one.requires
        }
        self._gone = there.keys() - installed.keys()

    @property
    def first(self) -> _Lines:
        """The lines of the first state, which others are compared with."""
        return self if self._before is None else self._before

    def on(self, name: NormalizedName) -> Sequence[tuple[NormalizedName, str]]:
        """Return the lines that require *name*, each with its owner, in the order of the distributions."""
        own = self._own.get(name, ())
        if self._before is None:
            return own
        left = self._touched.keys() | self._gone
        kept = [pair for pair in self._before.on(name) if pair[0] not in left]
        return sorted([*kept, *own], key=lambda pair: self._places[pair[0]])

    @cached_property
    def askers(self) -> tuple[NormalizedName, ...]:
        """The distributions with a line of their own that may ask for extras, in order."""
        if self._before is None:
            return tuple(name for name, lines in self._touched.items() if asking_lines(lines, ""))
        old = {name for name in self._before.askers if name not in self._gone and name not in self._touched}
        found = old | {name for name, lines in self._touched.items() if asking_lines(lines, "")}
        return tuple(sorted(found, key=self._places.__getitem__))

    @cached_property
    def _own(self) -> Mapping[NormalizedName, list[tuple[NormalizedName, str]]]:
        found: defaultdict[NormalizedName, list[tuple[NormalizedName, str]]] = defaultdict(list)
        for owner, lines in self._touched.items():
            for name, line in named_lines(lines):
                found[name].append((owner, line))
        return found

    @cached_property
    def _places(self) -> Mapping[NormalizedName, int]:
        return {name: place for place, name in enumerate(self.installed)}


class DependencyGraph:
    """The requirements of *installed* that count in *environment*.  A line is parsed when it is needed."""

    def __init__(
        self,
        installed: Mapping[NormalizedName, Installed],
        environment: Environment,
        lines_before: _Lines | None = None,
    ) -> None:
        self.installed = installed
        self._environment = environment
        self._lines = _Lines(installed, lines_before)
        self._verdicts = _verdicts(tuple(sorted(environment.markers.items())))
        self._met: dict[NormalizedName, tuple[SpecifierSet, ...]] = {}
        self._roots: dict[Node, dict[NormalizedName, tuple[Demand, ...]]] = {}

    @classmethod
    def of(cls, snapshot: Snapshot) -> DependencyGraph:
        """Return the graph of everything installed in *snapshot*, also with an invalid version."""
        return cls(snapshot.everything, snapshot.environment)

    def with_installed(self, installed: Mapping[NormalizedName, Installed]) -> DependencyGraph:
        """Return the graph for other installed distributions in the same environment."""
        return DependencyGraph(installed, self._environment, self._lines.first)

    def demands_of(self, node: Node) -> Iterator[Demand]:
        """Yield the requirements that belong to *node*, in the order of the metadata."""
        name, extra = node
        for line in lines_under(self.installed[name].requires, extra) if name in self.installed else ():
            requirement = self._counting(line, extra)
            if requirement is not None:
                yield Demand(name, extra, line, requirement)

    def demands_on(self, name: NormalizedName) -> Iterator[Demand]:
        """Yield the requirements on *name* that count, including those of extras that are asked for."""
        for owner, line in self._lines.on(name):
            for extra in ("", *self._extras.get(owner, ())):
                requirement = self._counting(line, extra)
                if requirement is not None:
                    yield Demand(owner, extra, line, requirement)

    def met_on(self, name: NormalizedName) -> Sequence[SpecifierSet]:
        """Return the specifiers of the requirements on *name* that are met."""
        if name not in self._met:
            demands = filter(self.is_met, self.demands_on(name))
            self._met[name] = tuple(demand.requirement.specifier for demand in demands)
        return self._met[name]

    def is_met(self, demand: Demand) -> bool:
        """Whether the installed version is allowed by the requirement.  Pre-releases are allowed."""
        there = self.installed.get(demand.target)
        if there is None:
            return False
        known = self._verdicts.met.get((demand.line, there.version))
        if known is None:
            specifier = demand.requirement.specifier
            known = not specifier or specifier.contains(there.version, prereleases=True)
            self._verdicts.met[demand.line, there.version] = known
        return known

    def nodes(self, names: Iterable[NormalizedName]) -> list[Node]:
        """Return the nodes that *names* need: those that are installed, and the extras that they ask for."""
        wanted = {name: None for name in names if name in self.installed}
        reached: set[Node] = set()
        queue: deque[Node] = deque((name, "") for name in wanted)
        while queue:
            for demand in self._asking(queue.popleft()):
                fresh = set(demand.targets[1:]) - reached
                reached |= fresh
                queue.extend(fresh)
        extras = [node for node in self.asked if node in reached] if reached else []
        return [*((name, "") for name in wanted), *extras]

    def roots(self, node: Node) -> Mapping[NormalizedName, tuple[Demand, ...]]:
        """Return the distributions that need *node*, each with the chain of demands that leads to *node*."""
        if not node[1]:
            return {node[0]: ()}
        if node not in self._roots:
            self._roots[node] = self._find_roots(node)
        return self._roots[node]

    def nodes_of(self, names: Iterable[NormalizedName]) -> list[Node]:
        """Return the nodes with these *names*: the distributions, and their extras that are asked for."""
        return [(name, extra) for name in names for extra in ("", *self._extras.get(name, ()))]

    def unmet(
        self, names: Iterable[NormalizedName], demands: Iterable[Demand] | None = None
    ) -> list[UnmetRequirement]:
        """Return the unmet requirements of *names*, including those of the extras that they ask for.

        With *demands*, only these requirements are checked.
        """
        wanted = frozenset(names)
        if demands is None:
            demands = (demand for node in self.nodes(sorted(wanted)) for demand in self.demands_of(node))
        return [
            UnmetRequirement(name, (*chain, demand))
            for demand in demands
            if not self.is_met(demand)
            for name, chain in self.roots(demand.node).items()
            if name in wanted
        ]

    def unmet_lines(self, names: Iterable[NormalizedName]) -> frozenset[tuple[NormalizedName, str]]:
        """Return the unmet requirements of *names*: the owner and the line of each."""
        return frozenset(one.key for one in self.unmet(names))

    def is_unmet(self, demand: Demand) -> bool:
        """Whether this requirement counts in this graph and is unmet."""
        owner = self.installed.get(demand.owner)
        return (
            owner is not None
            and demand.line in owner.requires
            and (not demand.extra or demand.node in self.asked)
            and not self.is_met(demand)
        )

    def is_lacking(self, node: Node) -> bool:
        """Whether *node* is an extra that is asked for, but is not provided or has unmet requirements."""
        return node in self.asked and not self.is_whole(node)

    def is_whole(self, node: Node) -> bool:
        """Whether the distribution is installed and provides the extra, and its requirements are met."""
        name, extra = node
        if name not in self.installed:
            return False
        demands = list(self.demands_of(node))
        provided = {canonicalize_name(one) for one in self.installed[name].extras}
        return (not extra or extra in provided or bool(demands)) and all(map(self.is_met, demands))

    @cached_property
    def asked(self) -> Mapping[Node, tuple[Demand, ...]]:
        """The extras that are asked for, transitively, each with the demands that ask for it.

        An unmet demand asks for no extra, because it is for another version than the installed one.
        """
        found: defaultdict[Node, list[Demand]] = defaultdict(list)
        queue: deque[Node] = deque((name, "") for name in self._lines.askers)
        while queue:
            for demand in self._asking(queue.popleft()):
                for node in demand.targets[1:]:
                    if node not in found:
                        queue.append(node)
                    found[node].append(demand)
        return {node: tuple(demands) for node, demands in found.items()}

    @cached_property
    def _extras(self) -> Mapping[NormalizedName, tuple[str, ...]]:
        """The extras that are asked for, by name."""
        found: defaultdict[NormalizedName, list[str]] = defaultdict(list)
        for name, extra in self.asked:
            found[name].append(extra)
        return {name: tuple(sorted(extras)) for name, extras in found.items()}

    def _asking(self, node: Node) -> Iterator[Demand]:
        """Yield the demands of *node* that are met and ask for extras."""
        name, extra = node
        for line in asking_lines(self.installed[name].requires, extra) if name in self.installed else ():
            requirement = self._counting(line, extra)
            demand = Demand(name, extra, line, requirement) if requirement is not None else None
            if demand is not None and self.is_met(demand):
                yield demand

    def _counting(self, line: str, extra: str) -> Requirement | None:
        """Return the requirement of *line* if it counts under *extra*."""
        known = self._verdicts.counting
        if (line, extra) not in known:
            requirement = parse_requirement(line) if only_with(line) in (None, extra) else None
            is_counting = requirement is not None and applies(requirement, self._environment, extra)
            known[line, extra] = requirement if is_counting else None
        return known[line, extra]

    def _find_roots(self, node: Node) -> dict[NormalizedName, tuple[Demand, ...]]:
        """Return the roots of an extra, each with its shortest chain."""
        found: dict[NormalizedName, tuple[Demand, ...]] = {}
        seen = {node}
        queue: deque[tuple[Node, tuple[Demand, ...]]] = deque([(node, ())])
        while queue:
            current, chain = queue.popleft()
            for demand in self.asked.get(current, ()):
                longer = (demand, *chain)
                if not demand.extra:
                    found.setdefault(demand.owner, longer)
                elif demand.node not in seen:
                    seen.add(demand.node)
                    queue.append((demand.node, longer))
        return found


def newly_unmet(
    names: Iterable[NormalizedName],
    before: DependencyGraph,
    after: DependencyGraph,
    changed: Collection[NormalizedName],
    *,
    of_extras: bool = False,
) -> list[UnmetRequirement]:
    """Return the requirements of *names* that are unmet *after* a change of *changed*, but not *before*.

    With *of_extras*, only those that belong to an extra.

    A requirement that was unmet before may stay unmet.  An extra of a changed distribution may
    have other requirements than before.  These are newly unmet only if the extra was provided
    before and all its requirements were met.
    """
    concerned = _concerned_extras if of_extras else _concerned
    return [
        one
        for one in after.unmet(names, concerned(before, after, changed))
        if not any(map(before.is_unmet, one.chain))
        and not (one.demand.owner in changed and before.is_lacking(one.demand.node))
    ]


def unmet_text(unmet: UnmetRequirement, installed: Mapping[NormalizedName, Installed]) -> str:
    """Return a sentence about an unmet requirement in the state *installed*."""
    lines = ", which requires ".join(f"`{demand.line}`" for demand in unmet.chain)
    there = installed.get(unmet.demand.target)
    found = "it is not installed" if there is None else f"{there.version} is installed"
    return f"{unmet.name} {installed[unmet.name].version} requires {lines}, but {found}"


def _concerned(
    before: DependencyGraph, after: DependencyGraph, changed: Collection[NormalizedName]
) -> Iterator[Demand]:
    """Yield the requirements on and of *changed* names, and those of extras that are newly asked for."""
    ordered = sorted(changed)
    for name in ordered:
        yield from after.demands_on(name)
    fresh = [node for node in after.asked if node not in before.asked]
    for node in dict.fromkeys([*after.nodes_of(ordered), *fresh]):
        for demand in after.demands_of(node):
            if demand.target not in changed:
                yield demand


def _concerned_extras(
    before: DependencyGraph, after: DependencyGraph, changed: Collection[NormalizedName]
) -> Iterator[Demand]:
    """Yield the requirements of `_concerned` that belong to an extra.  Few extras are asked for."""
    for node in after.asked:
        is_whole = node[0] in changed or node not in before.asked
        for demand in after.demands_of(node):
            if is_whole or demand.target in changed:
                yield demand
