"""Parse the output of ``pip freeze`` and similar commands; all invalid lines are reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from colablock._common.limits import REQUIREMENT, REQUIREMENT_LINES
from colablock._common.urls import basename, redacted, split_fragment
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.snapshot import is_version
from colablock.errors import Fault, FetchFailed, InvalidInput, fault_lines
from colablock.index.evaluator import parse_sdist_stem, parse_wheel_name

__all__ = ["Freeze", "Frozen", "parse_freeze"]

_NAME = r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
_PINNED = re.compile(rf"{_NAME}\s*(?P<equals>===?)\s*(?P<version>[^\s=]+)")
_DIRECT = re.compile(rf"{_NAME}(?:\[[^\]]*\])?\s*@\s*(?P<url>[A-Za-z][A-Za-z0-9+.-]*:\S+)")
_EDITABLE = re.compile(r"(-e|--editable)[\s=]\s*(?P<what>\S.*)")
_ARCHIVES = (".tar.gz", ".zip", ".tgz", ".tar.bz2", ".tar.xz")
_HINT = "`pip list --format=freeze` prints every distribution as `name==version`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """One distribution of a freeze.  *version* is None if its URL does not tell it."""

    spelled: str
    version: str | None = None
    url: str | None = None  # without credentials

    @property
    def name(self) -> NormalizedName:
        """The normalized name."""
        return canonicalize_name(self.spelled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """A whole freeze: *lines* in their order; *editable* installations are left out.

    *odd* are the lines that are left out because of a version that is not valid (PEP 440), as
    Debian's `1.1build1`.
    """

    lines: tuple[Frozen, ...]
    editable: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()


def parse_freeze(text: str, source: str) -> Freeze:
    """Parse *text*, the contents of *source*.  Raises InvalidInput with every invalid line."""
    lines: list[Frozen] = []
    editable: list[str] = []
    odd: list[str] = []
    faults: list[Fault] = []
    first: dict[NormalizedName, int] = {}
    for at, (number, line) in enumerate(_lines(text)):
        if at == REQUIREMENT_LINES:
            raise InvalidInput(f"`{source}` has more than {REQUIREMENT_LINES:,} lines", hint=_HINT)
        where = f"line {number}"
        if len(line) > REQUIREMENT:
            raise InvalidInput(f"{where} of `{source}` is longer than {REQUIREMENT:,} characters", hint=_HINT)
        if match := _EDITABLE.fullmatch(line):
            editable.append(match["what"])
            continue
        try:
            found = _frozen(line)
        except ValueError as error:
            faults.append(Fault(path=where, message=f"{error}: `{line}`"))
            continue
        if first.setdefault(found.name, number) != number:
            message = f"`{found.name}` is on line {first[found.name]} already: `{line}`"
            faults.append(Fault(path=where, message=message))
        if found.version is not None and "===" not in line and not is_version(found.version):
            odd.append(line)
        else:
            lines.append(found)
    if faults:
        count = "1 line" if len(faults) == 1 else f"{len(faults)} lines"
        told = "\n".join(fault_lines(faults))
        raise InvalidInput(f"`{source}` has {count} that a freeze cannot contain\n{told}", hint=_HINT)
    if not lines:
        raise InvalidInput(f"`{source}` lists no distribution", hint="it is the output of `pip freeze`")
    return Freeze(lines=tuple(lines), editable=tuple(editable), odd=tuple(odd))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines with their numbers, without comments and blank lines."""
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        if line:
            yield number, line


def _frozen(line: str) -> Frozen:
    """Return the distribution of one line.  Raises ValueError."""
    if match := _PINNED.fullmatch(line):
        return Frozen(spelled=match["name"], version=match["version"])
    match = _DIRECT.fullmatch(line)
    if match is None:
        message = "neither `name==version` nor `name @ url`"
        raise ValueError(message)
    try:
        url = redacted(match["url"])
    except FetchFailed as error:
        raise ValueError(str(error)) from error
    return Frozen(spelled=match["name"], version=_version_in(match["name"], url), url=url)


def _version_in(spelled: str, url: str) -> str | None:
    """Return the version in the file name of a wheel or an sdist; None if there is none."""
    filename = basename(split_fragment(url)[0])
    try:
        if filename.endswith(".whl"):
            return str(parse_wheel_name(filename).version)
    except ValueError:
        return None
    version = parse_sdist_stem(canonicalize_name(spelled), filename) if filename.endswith(_ARCHIVES) else None
    return None if version is None else str(version)
