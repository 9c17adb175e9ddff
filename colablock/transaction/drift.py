"""What has changed since an apply, by which installer, and on whose account."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colablock.environment.dependency_graph import Demand, DependencyGraph
from colablock.transaction.history import differences

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Installed, Snapshot

__all__ = ["SINCE", "Drift", "find_drifts", "notes_of"]

SINCE = "since it was applied: "
_MOST = 10  # of the stack: what was upgraded as a whole is not told one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One name that came, went or has another version, told in *text*.

    *because* are the other ones that *text* names.  *is_pin*: it is of the
    stack; *breaks*: it is not, but the stack requires it otherwise.
    """

    name: NormalizedName
    text: str
    because: frozenset[NormalizedName] = frozenset()
    is_pin: bool = False
    breaks: bool = False


def find_drifts(
    before: Mapping[NormalizedName, str],
    now: Mapping[NormalizedName, str],
    snapshot: Snapshot,
    pins: Iterable[NormalizedName],
) -> tuple[Drift, ...]:
    """Return what differs between the versions *before* and *now*, by name.

    *snapshot* is the environment as it is now: it tells who installed what, what
    was asked for by name (``REQUESTED``, PEP 376), and what requires what.
    """
    changes = _Changes(
        before=before,
        now=now,
        snapshot=snapshot,
        names=frozenset(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)),
        graph=DependencyGraph.of(snapshot),
    )
    stack = frozenset(pins)
    found = []
    for name in sorted(changes.names):
        clauses, because = changes.told(name)
        found.append(
            Drift(
                name=name,
                text="; ".join(clauses),
                because=because,
                is_pin=name in stack,
                breaks=name not in stack and changes.is_missed(name, stack),
            )
        )
    return tuple(found)


def notes_of(drifts: Sequence[Drift], *, with_pins: bool = True) -> list[str]:
    """Return a sentence for each change that concerns the stack, and one that counts the others.

    Without *with_pins* those of the stack's own versions are left out: told elsewhere.
    """
    telling = [drift for drift in drifts if drift.is_pin or drift.breaks]
    named = {name for drift in telling for name in (drift.name, *drift.because)}
    shown = [drift.text for drift in telling if with_pins or not drift.is_pin]
    notes = [f"{SINCE}{text}" for text in shown[:_MOST]]
    if len(shown) > _MOST:
        notes.append(f"{SINCE}{len(shown) - _MOST} more of the stack have changed")
    if others := sum(drift.name not in named for drift in drifts):
        count = "1 distribution" if others == 1 else f"{others} distributions"
        notes.append(f"{SINCE}{count} beside the stack changed; what it requires of them holds")
    return notes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changes:
    before: Mapping[NormalizedName, str]
    now: Mapping[NormalizedName, str]
    snapshot: Snapshot
    names: frozenset[NormalizedName]
    graph: DependencyGraph

    def told(self, name: NormalizedName) -> tuple[list[str], frozenset[NormalizedName]]:
        """Return how *name* differs and on whose account, a clause for each link of that chain."""
        clauses: list[str] = []
        seen = {name}
        link: NormalizedName | None = name
        while link is not None:
            clause = self._sentence(link)
            cause = self._cause(link, seen)
            if cause is not None:
                other, line = cause
                clause += f", because `{other}` {self.now[other]} requires `{line}`"
                seen.add(other)
            clauses.append(clause)
            link = cause[0] if cause is not None else None
        return clauses, frozenset(seen - {name})

    def is_missed(self, name: NormalizedName, stack: frozenset[NormalizedName]) -> bool:
        """Whether one of *stack* requires *name* as it was, and not as it is now."""
        return any(
            not stack.isdisjoint(self.graph.roots(demand.node))
            and _holds(demand, self.before.get(name))
            and not _holds(demand, self.now.get(name))
            for demand in self.graph.demands_on(name)
        )

    def _sentence(self, name: NormalizedName) -> str:
        (sentence,) = differences(_only(name, self.before), _only(name, self.now))
        installed = self.snapshot.installed.get(name)
        if name not in self.now or installed is None:
            return sentence
        by = [f"by {installed.installer}"] if installed.installer else []
        by += ["asked for by name"] if _is_asked_for(installed) else []
        return f"{sentence} ({', '.join(by)})" if by else sentence

    def _cause(self, name: NormalizedName, seen: set[NormalizedName]) -> tuple[NormalizedName, str] | None:
        """Return who of the changed ones requires *name* as it is now and not as it was, and how."""
        installed = self.snapshot.installed
        if name not in self.now or (name in installed and _is_asked_for(installed[name])):
            return None
        found = [
            demand
            for demand in self.graph.demands_on(name)
            if demand.owner in self.names
            and demand.owner in self.now
            and demand.owner not in seen
            and _holds(demand, self.now[name])
            and not _holds(demand, self.before.get(name))
        ]
        if not found:
            return None
        first = min(found, key=lambda one: (not _is_asked_for(installed[one.owner]), one.owner))
        return first.owner, str(first.requirement)


def _is_asked_for(installed: Installed) -> bool:
    """Whether the user named it.  uv writes ``REQUESTED`` for all that it installs, which tells nothing."""
    return installed.requested and installed.installer != "uv"


def _holds(demand: Demand, version: str | None) -> bool:
    return version is not None and demand.requirement.specifier.contains(version, prereleases=True)


def _only(name: NormalizedName, versions: Mapping[NormalizedName, str]) -> dict[NormalizedName, str]:
    return {name: versions[name]} if name in versions else {}
