"""What has changed since an apply, by which installer, and on whose account."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.history import differences
from colablock.requirements import applies, only_with, parse_requirement

if TYPE_CHECKING:
    from colablock._vendor.packaging.requirements import Requirement
    from colablock.snapshot import Installed, Snapshot

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
    changes = _Changes(before=before, now=now, snapshot=snapshot)
    stack = frozenset(pins)
    found = []
    for name in changes.names:
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
        notes.append(f"{SINCE}{count} beside the stack changed, without harm to it")
    return notes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changes:
    before: Mapping[NormalizedName, str]
    now: Mapping[NormalizedName, str]
    snapshot: Snapshot

    @property
    def names(self) -> list[NormalizedName]:
        return sorted(
            name
            for name in self.before.keys() | self.now.keys()
            if self.before.get(name) != self.now.get(name)
        )

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

    def is_missed(self, name: NormalizedName, stack: Iterable[NormalizedName]) -> bool:
        """Whether one of *stack* requires *name* as it was, and not as it is now."""
        return any(
            _holds(requirement, self.before.get(name)) and not _holds(requirement, self.now.get(name))
            for owner in stack
            for requirement in self._demands(owner, name)
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
        changed = [other for other in self.names if other in installed and other not in seen]
        for other in sorted(changed, key=lambda other: not _is_asked_for(installed[other])):
            for requirement in self._demands(other, name):
                if _holds(requirement, self.now[name]) and not _holds(requirement, self.before.get(name)):
                    return other, str(requirement)
        return None

    def _demands(self, owner: NormalizedName, name: NormalizedName) -> Iterator[Requirement]:
        """Yield what *owner* requires of *name*, extras left out."""
        installed = self.snapshot.installed.get(owner)
        for line in installed.requires if installed is not None else ():
            requirement = None if only_with(line) else parse_requirement(line)
            if (
                requirement is not None
                and canonicalize_name(requirement.name) == name
                and applies(requirement, self.snapshot.environment)
            ):
                yield requirement


def _is_asked_for(installed: Installed) -> bool:
    """Whether the user named it.  uv writes ``REQUESTED`` for all that it installs, which tells nothing."""
    return installed.requested and installed.installer != "uv"


def _holds(requirement: Requirement, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _only(name: NormalizedName, versions: Mapping[NormalizedName, str]) -> dict[NormalizedName, str]:
    return {name: versions[name]} if name in versions else {}
