"""Phantom imports: what a distribution imports and does not declare, and what it declares in vain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from colablock._vendor.packaging.utils import NormalizedName
from colablock.check.import_names import ImportProviders, Supply
from colablock.check.import_statements import ImportTime
from colablock.check.reachable_imports import Import, ReachableImports

__all__ = ["ExaminedDistribution", "ImportFault", "ImportFinding", "Severity", "judge", "no_modules"]


class ImportFault(Enum):
    """What is wrong."""

    MISSING = "missing"  # imported, and nothing in the stack provides it
    UNDECLARED = "undeclared"  # imported, and there on somebody else's account
    IN_VAIN = "in-vain"  # declared, and not imported by anything that is reached
    NO_MODULES = "no-modules"  # it installs nothing that can be imported
    UNREAD = "unread"  # a source that cannot be parsed


class Severity(Enum):
    """Whether it stops the entry points, or is worth knowing."""

    ERROR = "error"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFinding:
    """One fault of one distribution.

    *name* is the module, the requirement or the file that it is about, *where*
    a line of the distribution ("" for none), *detail* the rest of a sentence that
    begins with the distribution.
    """

    package: NormalizedName
    version: str
    fault: ImportFault
    severity: Severity
    name: str
    where: str
    detail: str

    @property
    def text(self) -> str:
        """The finding in one sentence, without its severity."""
        return f"{self.package} {self.version} {self.detail}"

    def to_json(self) -> dict[str, Any]:
        """Return the finding as the result file of a check has it."""
        return {
            "package": str(self.package),
            "version": self.version,
            "kind": self.fault.value,
            "severity": self.severity.value,
            "name": self.name,
            "where": self.where,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExaminedDistribution:
    """One distribution of a stack: what of it is reached, and what it declares that is in force here."""

    name: NormalizedName
    version: str
    reached: ReachableImports
    declared: frozenset[NormalizedName]


def judge(
    examined: ExaminedDistribution,
    providers: ImportProviders,
    requires: Mapping[NormalizedName, Iterable[NormalizedName]],
) -> tuple[ImportFinding, ...]:
    """Return what is wrong with the requirements of one distribution, errors first.

    *providers* are the other distributions of the stack, and *requires* says
    which of them each one asks for.  A name that several imports lack is told
    once, at the place where it is most certain to be missed.
    """
    case = _DistributionImports(examined, providers, requires)
    findings = [*case.missing(), *case.undeclared(), *case.in_vain(), *case.unread()]
    return tuple(sorted(findings, key=lambda finding: finding.severity is Severity.NOTICE))


def no_modules(package: NormalizedName, version: str, reason: str) -> ImportFinding:
    """Return the finding that a distribution holds nothing that can be imported."""
    return ImportFinding(
        package=package,
        version=version,
        fault=ImportFault.NO_MODULES,
        severity=Severity.ERROR,
        name=str(package),
        where="",
        detail=f"installs nothing that can be imported: {reason}",
    )


class _DistributionImports:
    """The imports of one distribution, each with who provides it."""

    def __init__(
        self,
        examined: ExaminedDistribution,
        providers: ImportProviders,
        requires: Mapping[NormalizedName, Iterable[NormalizedName]],
    ) -> None:
        self._examined = examined
        self._providers = providers
        self._supplies = [(one, self._supply(one)) for one in examined.reached.imports]
        self._through = _ways(examined.declared, requires)

    def missing(self) -> Iterator[ImportFinding]:
        """Yield what nobody provides, and what those who should have do not hold."""
        told = set()
        for one, supply in self._supplies:
            if (supply is not None and supply.lacking is None) or self._is_replaced(one):
                continue
            name = self._name(one)
            part = name if one.own or supply is not None else self._providers.gap(one.name, one.member)
            if part in told:
                continue
            told.add(part)
            if one.own:
                reason = "which it does not hold itself"
            elif supply is not None:
                reason = f"which {self._listed(supply.providers)} does not hold"
            else:
                reason = "which nothing in the stack provides"
            yield self._finding(ImportFault.MISSING, one, name, reason)

    def undeclared(self) -> Iterator[ImportFinding]:
        """Yield what is there though the distribution does not ask for it."""
        told: set[NormalizedName] = set()
        for one, supply in self._supplies:
            others = supply.providers if supply is not None else frozenset()
            if not others or others & self._examined.declared or self._is_replaced(one) or others <= told:
                continue
            told |= others
            ways = sorted({self._through[other] for other in others if other in self._through})
            held = self._listed(others)
            only = f"only through {ways[0]}" if ways else "only because the stack has it"
            yield self._finding(
                ImportFault.UNDECLARED, one, self._name(one), f"undeclared: {held} comes {only}", notice=True
            )

    def in_vain(self) -> Iterator[ImportFinding]:
        """Yield what is declared and holds modules, of which nothing that is reached imports any."""
        used = {name for _, supply in self._supplies if supply is not None for name in supply.providers}
        for name in sorted(self._examined.declared - used):
            provider = self._providers.providers.get(name)
            if provider is not None and provider.modules.names:
                yield self._plain(
                    ImportFault.IN_VAIN, name, f"declares {name}, which nothing that is reached imports"
                )

    def unread(self) -> Iterator[ImportFinding]:
        """Yield the sources that this Python cannot parse."""
        for one in self._examined.reached.unread:
            where = f"{one.path}:{one.line}"
            detail = f"holds a source that this Python cannot parse ({where}): {one.reason}"
            yield self._plain(ImportFault.UNREAD, one.path, detail, where)

    def _supply(self, one: Import) -> Supply | None:
        return None if one.own else self._providers.find(one.name, one.member)

    def _is_replaced(self, one: Import) -> bool:
        """Whether an import does not run, since all that it stands in for is there."""
        return any(all(map(self._is_there, group)) for group in one.unless)

    def _is_there(self, name: str) -> bool:
        supply = self._providers.find(name)
        return supply is not None and supply.lacking is None

    def _name(self, one: Import) -> str:
        """Return the module that is meant: of ``from a import b`` it is ``a.b`` where that is one."""
        full = f"{one.name}.{one.member}" if one.member and one.member != "*" else one.name
        return full if self._providers.is_module(full) or self._providers.is_namespace(one.name) else one.name

    def _listed(self, names: Iterable[NormalizedName]) -> str:
        return " or ".join(f"{name} {self._providers.providers[name].version}" for name in sorted(names))

    def _finding(
        self, fault: ImportFault, one: Import, name: str, reason: str, *, notice: bool = False
    ) -> ImportFinding:
        hard = one.kind is ImportTime.HARD and not notice
        when = {
            ImportTime.HARD: "",
            ImportTime.GUARDED: " under a condition",
            ImportTime.DEFERRED: " inside a function",
        }[one.kind]
        where = f" ({one.where})" if one.where else ""
        verb = "imports" if one.path else "is started at"
        return ImportFinding(
            package=self._examined.name,
            version=self._examined.version,
            fault=fault,
            severity=Severity.ERROR if hard else Severity.NOTICE,
            name=name,
            where=one.where,
            detail=f"{verb} `{name}`{when}{where}, {reason}",
        )

    def _plain(self, fault: ImportFault, name: str, detail: str, where: str = "") -> ImportFinding:
        return ImportFinding(
            package=self._examined.name,
            version=self._examined.version,
            fault=fault,
            severity=Severity.NOTICE,
            name=name,
            where=where,
            detail=detail,
        )


def _ways(
    declared: Iterable[NormalizedName], requires: Mapping[NormalizedName, Iterable[NormalizedName]]
) -> dict[NormalizedName, NormalizedName]:
    """Return for all that comes with the *declared* which of these asks for it, on the shortest way."""
    through = {name: name for name in sorted(declared)}
    queue = list(through)
    for name in queue:  # grows
        for needed in sorted(requires.get(name, ())):
            if needed not in through:
                through[needed] = through[name]
                queue.append(needed)
    return through
