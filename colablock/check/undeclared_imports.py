"""Find undeclared imports in the packages whose requirements or modules a matrix replaces."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from colablock._common.archives import open_zip
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.check.findings import ExaminedDistribution, ImportFinding, import_findings, no_modules
from colablock.check.import_names import ImportProviders, ModuleFile, installed_path, modules_of
from colablock.check.module_listing import ModuleSource
from colablock.check.reachable_imports import find_reachable_imports
from colablock.environment.markers_and_tags import Environment
from colablock.environment.requirements import parse_requirement
from colablock.errors import NoModules
from colablock.matrix.model import Matrix
from colablock.planning.wheels import WheelPreparer
from colablock.resolver.model import Pin

__all__ = ["undeclared_import_findings"]

#: The module that a training runner starts.
_RUNNERS = {"axolotl": "axolotl.cli.train"}
_OUR_LABEL = re.compile(r"[+.]colablock\.[0-9a-f]+$")


def undeclared_import_findings(
    matrix: Matrix, pins: Mapping[NormalizedName, Pin], preparer: WheelPreparer, environment: Environment
) -> tuple[ImportFinding, ...]:
    """Return the findings for every package of *matrix* whose requirements or modules it replaces.

    *pins* are the pins of a resolution for *environment*, from an index or a lock, and *preparer*
    the one of that resolution.  A package with a URL is only checked for modules.  Downloads the
    examined packages and, as far as needed, the file lists of the others.  Raises FetchFailed,
    BadDistribution.
    """
    findings: list[ImportFinding] = []
    for name, entry in preparer.entries.items():
        pin = pins.get(name)
        if pin is None or pin.candidate.file is None or not (entry.is_rebuilt or entry.url):
            continue
        version = _OUR_LABEL.sub("", str(pin.version))
        try:
            wheel = preparer.wheel_of(pin)
        except NoModules as error:
            findings.append(no_modules(name, version, error.message))
            continue
        files = _read(wheel)
        if not modules_of(files).names:
            reason = f"none of the {len(files)} files of `{wheel.name}` is a module"
            findings.append(no_modules(name, version, reason))
        elif entry.is_rebuilt:
            points = _entry_points(matrix, files)
            examined = ExaminedDistribution(
                name=name,
                version=version,
                reachable=find_reachable_imports(files, points, environment.markers),
                declared=frozenset(_required(pin)),
            )
            findings += _examine(examined, pins, ModuleSource(preparer.fetcher))
    return tuple(findings)


def _examine(
    examined: ExaminedDistribution, pins: Mapping[NormalizedName, Pin], source: ModuleSource
) -> tuple[ImportFinding, ...]:
    """Return the findings; undeclared distributions are read only if the declared do not provide all."""
    others = {name: pin for name, pin in pins.items() if name != examined.name}
    known = {
        one.name: one for one in source.providers(p for n, p in others.items() if n in examined.declared)
    }
    declared = ImportProviders(known)
    if any(
        _is_unresolved(declared, one.name, one.member) for one in examined.reachable.imports if not one.own
    ):
        rest = source.providers(pin for name, pin in others.items() if name not in known)
        known |= {one.name: one for one in rest}
    return import_findings(
        examined, ImportProviders(known), {name: set(_required(pin)) for name, pin in others.items()}
    )


def _is_unresolved(providers: ImportProviders, name: str, member: str | None) -> bool:
    match = providers.find(name, member)
    return match is None or match.missing is not None


def _required(pin: Pin) -> Iterator[NormalizedName]:
    for line in pin.requires:
        requirement = parse_requirement(line)
        if requirement is not None:
            yield canonicalize_name(requirement.name)


def _read(wheel: Path) -> dict[str, bytes]:
    """Return the files of *wheel* by installed path; only sources and text files have contents."""
    with wheel.open("rb") as stream, open_zip(stream) as archive:
        return {
            installed_path(name): archive.read(name) if name.endswith((".py", ".txt")) else b""
            for name in archive.namelist()
            if not name.endswith("/")
        }


def _entry_points(matrix: Matrix, files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the entry points of the distribution of *files*.

    These are the modules that the matrix imports, runs and trains with, and the console scripts; if
    none of them belongs to the distribution, its top-level modules.
    """
    tops = {file.name.partition(".")[0] for path in files if (file := ModuleFile.of(path)) is not None}
    scripts = _console_scripts(files)
    entered = [line.partition(":")[0] for line in matrix.verify.imports]
    for command in matrix.verify.commands:
        entered += [scripts[word] for word in command[:1] if word in scripts]
        entered += [word for option, word in pairwise(command) if option == "-m"]
    entered += [_RUNNERS[matrix.train.runner]] if matrix.train.runner in _RUNNERS else []
    own = [name for name in (*entered, *scripts.values()) if name.partition(".")[0] in tops]
    return tuple(dict.fromkeys(own)) or tuple(sorted(tops))


def _console_scripts(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the modules of the console scripts by name (entry points specification)."""
    texts = [data for path, data in files.items() if path.endswith(".dist-info/entry_points.txt")]
    parser = configparser.RawConfigParser(delimiters=("=",), strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(b"\n".join(texts).decode("utf-8", "replace"))
    except configparser.Error:
        return {}
    if not parser.has_section("console_scripts"):
        return {}
    return {name: value.partition(":")[0].strip() for name, value in parser.items("console_scripts")}
