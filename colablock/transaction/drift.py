"""Changes to an environment since an apply, with the installer and the reason of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from colablock._records import dataclass
from colablock.environment.dependency_graph import Demand, DependencyGraph

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Installed, Snapshot

__all__ = ["SINCE", "Drift", "differences", "find_drifts", "notes_of"]

SINCE = "since it was applied: "
_MOST = 10  # notes about the stack, for the case that all of it was upgraded


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One distribution that was added, removed or changed, described in *text*.

    *because* are the other distributions in *text*.  With *is_pin* it belongs to
    the stack.  With *breaks* it does not, but no longer meets a requirement of
    the stack.
    """

    name: NormalizedName
    text: str
    because: frozenset[NormalizedName] = frozenset()
    is_pin: bool = False
    breaks: bool = False


def differences(before: Mapping[NormalizedName, str], now: Mapping[NormalizedName, str]) -> list[str]:
    """Return the differences between the versions *before* and *now*, one sentence each."""
    gone = [f"`{name}` {before[name]} is gone" for name in sorted(before.keys() - now.keys())]
    moved = [
        f"`{name}` is {now[name]}, and was {before[name]}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name]
    ]
    return gone + moved + [f"`{name}` {now[name]} is new" for name in sorted(now.keys() - before.keys())]


def find_drifts(
    before: Mapping[NormalizedName, str],
    now: Mapping[NormalizedName, str],
    snapshot: Snapshot,
    pins: Iterable[NormalizedName],
) -> tuple[Drift, ...]:
    """Return the differences between the versions *before* and *now*, sorted by name.

    *snapshot* is the current environment: its installers, the distributions that
    were requested by name (``REQUESTED``, PEP 376), and requirements.
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
        clauses, because = changes.describe(name)
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
    """Return one sentence for each drift that concerns the stack, and one with the number of the others.

    Without *with_pins*, changes of the versions of the stack are left out.
    """
    telling = [drift for drift in drifts if drift.is_pin or drift.breaks]
    named = {name for drift in telling for name in (drift.name, *drift.because)}
    shown = [drift.text for drift in telling if with_pins or not drift.is_pin]
    notes = [f"{SINCE}{text}" for text in shown[:_MOST]]
    if len(shown) > _MOST:
        notes.append(f"{SINCE}{len(shown) - _MOST} more distributions of the stack have changed")
    if others := sum(drift.name not in named for drift in drifts):
        count = "1 distribution" if others == 1 else f"{others} distributions"
        notes.append(f"{SINCE}{count} outside of the stack changed; its requirements are still met")
    return notes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changes:
    before: Mapping[NormalizedName, str]
    now: Mapping[NormalizedName, str]
    snapshot: Snapshot
    names: frozenset[NormalizedName]
    graph: DependencyGraph

    def describe(self, name: NormalizedName) -> tuple[list[str], frozenset[NormalizedName]]:
        """Return the change of *name* and its reasons, a clause each, and the names in the reasons."""
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
        """Return whether the old version of *name* met a requirement of *stack* that the new one does not."""
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
        by += ["requested by name"] if _is_requested(installed) else []
        return f"{sentence} ({', '.join(by)})" if by else sentence

    def _cause(self, name: NormalizedName, seen: set[NormalizedName]) -> tuple[NormalizedName, str] | None:
        """Return the changed distribution whose requirement only the new version of *name* meets."""
        installed = self.snapshot.installed
        if name not in self.now or (name in installed and _is_requested(installed[name])):
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
        first = min(found, key=lambda one: (not _is_requested(installed[one.owner]), one.owner))
        return first.owner, str(first.requirement)


def _is_requested(installed: Installed) -> bool:
    """Return whether the user requested it.  uv marks everything as ``REQUESTED``, so that does not count."""
    return installed.requested and installed.installer != "uv"


def _holds(demand: Demand, version: str | None) -> bool:
    return version is not None and demand.requirement.specifier.contains(version, prereleases=True)


def _only(name: NormalizedName, versions: Mapping[NormalizedName, str]) -> dict[NormalizedName, str]:
    return {name: versions[name]} if name in versions else {}
