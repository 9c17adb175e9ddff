"""Findings about the imports of a distribution: undeclared, missing, and declared but unused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from colablock._vendor.packaging.utils import NormalizedName
from colablock.check.import_names import ImportProviders, ProviderMatch
from colablock.check.import_statements import ImportTime
from colablock.check.reachable_imports import Import, ReachableImports

__all__ = [
    "ExaminedDistribution",
    "ImportFault",
    "ImportFinding",
    "Severity",
    "import_findings",
    "no_modules",
]


class ImportFault(Enum):
    """The kind of a finding."""

    MISSING = "missing"  # imported, but nothing in the stack provides it
    UNDECLARED = "undeclared"  # imported and installed, but not declared
    UNUSED = "in-vain"  # declared, but no reachable module imports it
    NO_MODULES = "no-modules"  # the distribution installs no modules
    UNREAD = "unread"  # a source file that cannot be parsed


class Severity(Enum):
    """Whether a finding breaks the entry points, or is only a notice."""

    ERROR = "error"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFinding:
    """One finding about one distribution.

    *name* is the module, requirement or file concerned, *where* the line in the distribution, or
    "".  *detail* is the rest of a sentence that starts with the distribution.
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
        """The finding in one sentence, without the severity."""
        return f"{self.package} {self.version} {self.detail}"

    def to_json(self) -> dict[str, Any]:
        """Return the finding as in the results file."""
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
    """One distribution: its reachable imports, and the requirements that it declares for this environment."""

    name: NormalizedName
    version: str
    reachable: ReachableImports
    declared: frozenset[NormalizedName]


def import_findings(
    examined: ExaminedDistribution,
    providers: ImportProviders,
    requires: Mapping[NormalizedName, Iterable[NormalizedName]],
) -> tuple[ImportFinding, ...]:
    """Return the findings about the requirements of one distribution, errors first.

    *providers* are the other distributions of the stack, and *requires* maps each to its own
    requirements.  A name that several imports miss is reported once, at the import that is most
    certain to run.
    """
    case = _DistributionImports(examined, providers, requires)
    findings = [*case.missing(), *case.undeclared(), *case.unused(), *case.unread()]
    return tuple(sorted(findings, key=lambda finding: finding.severity is Severity.NOTICE))


def no_modules(package: NormalizedName, version: str, reason: str) -> ImportFinding:
    """Return the finding that a distribution installs no modules."""
    return ImportFinding(
        package=package,
        version=version,
        fault=ImportFault.NO_MODULES,
        severity=Severity.ERROR,
        name=str(package),
        where="",
        detail=f"installs no modules: {reason}",
    )


class _DistributionImports:
    """The imports of one distribution, each with its providers."""

    def __init__(
        self,
        examined: ExaminedDistribution,
        providers: ImportProviders,
        requires: Mapping[NormalizedName, Iterable[NormalizedName]],
    ) -> None:
        self._examined = examined
        self._providers = providers
        self._matches = [(one, self._match(one)) for one in examined.reachable.imports]
        self._through = _required_through(examined.declared, requires)

    def missing(self) -> Iterator[ImportFinding]:
        """Yield imports without a provider, and modules that their providers do not have."""
        reported = set()
        for one, match in self._matches:
            if (match is not None and match.missing is None) or self._is_replaced(one):
                continue
            name = self._name(one)
            part = name if one.own or match is not None else self._providers.gap(one.name, one.member)
            if part in reported:
                continue
            reported.add(part)
            if one.own:
                reason = "which it does not have itself"
            elif match is not None:
                reason = f"which {self._listed(match.providers)} does not have"
            else:
                reason = "which nothing in the stack provides"
            yield self._finding(ImportFault.MISSING, one, name, reason)

    def undeclared(self) -> Iterator[ImportFinding]:
        """Yield imports of installed distributions that are not declared."""
        reported: set[NormalizedName] = set()
        for one, match in self._matches:
            others = match.providers if match is not None else frozenset()
            if not others or others & self._examined.declared or self._is_replaced(one) or others <= reported:
                continue
            reported |= others
            through = sorted({self._through[other] for other in others if other in self._through})
            names = self._listed(others)
            reason = f"undeclared: no declared requirement brings in {names}"
            if through:
                reason = f"undeclared: {names} is installed only because {through[0]} requires it"
            yield self._finding(ImportFault.UNDECLARED, one, self._name(one), reason, notice=True)

    def unused(self) -> Iterator[ImportFinding]:
        """Yield declared requirements with modules that no reachable module imports."""
        used = {name for _, match in self._matches if match is not None for name in match.providers}
        for name in sorted(self._examined.declared - used):
            provider = self._providers.providers.get(name)
            if provider is not None and provider.modules.names:
                detail = f"declares {name}, but no reachable module imports it"
                yield self._plain(ImportFault.UNUSED, name, detail)

    def unread(self) -> Iterator[ImportFinding]:
        """Yield the source files that this Python cannot parse."""
        for one in self._examined.reachable.unread:
            where = f"{one.path}:{one.line}"
            detail = f"has a source file that this Python cannot parse ({where}): {one.reason}"
            yield self._plain(ImportFault.UNREAD, one.path, detail, where)

    def _match(self, one: Import) -> ProviderMatch | None:
        return None if one.own else self._providers.find(one.name, one.member)

    def _is_replaced(self, one: Import) -> bool:
        """Whether an import does not run, because every module that it replaces is installed."""
        return any(all(map(self._is_there, group)) for group in one.unless)

    def _is_there(self, name: str) -> bool:
        match = self._providers.find(name)
        return match is not None and match.missing is None

    def _name(self, one: Import) -> str:
        """Return the imported module: for ``from a import b`` it is ``a.b`` if that is a module."""
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


def _required_through(
    declared: Iterable[NormalizedName], requires: Mapping[NormalizedName, Iterable[NormalizedName]]
) -> dict[NormalizedName, NormalizedName]:
    """Map each distribution to the one of *declared* that brings it in, by the shortest path."""
    through = {name: name for name in sorted(declared)}
    queue = list(through)
    for name in queue:  # it grows during the loop
        for needed in sorted(requires.get(name, ())):
            if needed not in through:
                through[needed] = through[name]
                queue.append(needed)
    return through
