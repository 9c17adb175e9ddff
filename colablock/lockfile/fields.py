"""Check the fields of a lock when it is read: names are names, hashes are hex, URLs are URLs.

Values of a lock become lines of other files, paths and requests, so none may hold what
its field cannot have.  Where a URL may lead to is checked by `origins`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from colablock._common import limits
from colablock._common.decoding import is_plain_name
from colablock._common.urls import is_unclear
from colablock._vendor.packaging.utils import canonicalize_name, is_normalized_name
from colablock.environment.requirements import parse_requirement, unfit
from colablock.environment.snapshot import is_version

__all__ = ["field_faults", "table_faults"]

_HEX = re.compile(r"[0-9a-fA-F]{1,256}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}")
#: The digits of the hashes that count.
_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}
_DEPTH = 20  # of the tables of a lock: real ones have 5


def field_faults(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the fields of a lock (PEP 751), the top table of its TOML document."""
    yield from _text_faults({key: value for key, value in data.items() if key != "tool"}, "", 0)
    tool = data.get("tool")
    if isinstance(tool, dict) and "colablock" in tool:
        yield from table_faults(tool["colablock"])
    packages = data.get("packages")
    for place, package in enumerate(packages if isinstance(packages, list) else ()):
        if isinstance(package, dict):
            yield from _package_faults(package, f"packages[{place}]")


def table_faults(table: object) -> Iterator[str]:
    """Yield what is wrong with the table ``[tool.colablock]`` of a lock."""
    where = "tool.colablock"
    if not isinstance(table, dict):
        yield f"{where} is not a table"
        return
    yield from _text_faults(table, where, 0)
    for key, fits in _TABLE.items():
        if key in table and not fits(table[key]):
            yield f"{where}.{key} is not valid"


def _package_faults(package: Mapping[str, Any], where: str) -> Iterator[str]:
    wheels = package.get("wheels")
    files = [
        *((f"{where}.wheels[{n}]", one) for n, one in enumerate(wheels if isinstance(wheels, list) else ())),
        *((f"{where}.{key}", package.get(key)) for key in ("sdist", "archive", "vcs", "directory")),
    ]
    for at, file in files:
        if isinstance(file, dict):
            yield from _file_faults(file, at)
    needed = package.get("dependencies", [])
    if not isinstance(needed, list) or not all(_is_dependency(one) for one in needed):
        yield f"{where}.dependencies has an entry that is not a package"
    if "index" in package and not (_is_url(package["index"]) or str(package["index"]).startswith("/")):
        yield f"{where}.index is neither a URL nor a folder"
    tool = package.get("tool")
    own = tool.get("colablock") if isinstance(tool, dict) else None
    if own is not None:
        yield from _own_faults(own, f"{where}.tool.colablock")


def _own_faults(own: object, where: str) -> Iterator[str]:
    if not isinstance(own, dict):
        yield f"{where} is not a table"
        return
    yield from _text_faults(own, where, 0)
    if not _are_requirements(own.get("requires-dist", [])):
        yield f"{where}.requires-dist has an entry that is not a requirement"
    if not _are_names(own.get("extras", [])):
        yield f"{where}.extras has an entry that is not a name"
    made_from = own.get("made-from")
    if made_from is not None:
        if not isinstance(made_from, dict) or not _is_url(made_from.get("url")):
            yield f"{where}.made-from has no URL"
        else:
            yield from _file_faults(made_from, f"{where}.made-from")


def _file_faults(file: Mapping[str, Any], where: str) -> Iterator[str]:
    if "name" in file and not (isinstance(file["name"], str) and is_plain_name(file["name"])):
        yield f"{where}.name is not the name of a file"
    if "url" in file and not _is_url(file["url"]):
        yield f"{where}.url is not a URL"
    size = file.get("size", 0)
    if not isinstance(size, int) or not 0 <= size <= limits.SIZE:
        yield f"{where}.size is not the size of a file"
    hashes = file.get("hashes", {})
    for name, value in hashes.items() if isinstance(hashes, dict) else ():
        if not _is_hash(name, value):
            yield f"{where}.hashes has a {_shown(name)} that is not a hash"


def _text_faults(value: object, where: str, depth: int) -> Iterator[str]:
    """Yield the texts below *value* that are too long, or that a line cannot hold."""
    if isinstance(value, str):
        if len(value) > limits.REQUIREMENT:
            yield f"{where} has {len(value)} characters"
        elif not value.isprintable():
            yield f"{where} has a control character"
        elif ("(" in value or len(value) > limits.DIGITS) and (why := unfit(value)):
            yield f"{where} cannot be read: {why}"
    elif depth > _DEPTH:
        yield f"{where} is nested too deeply"
    elif isinstance(value, dict):
        for key, inner in value.items():
            at = f"{where}.{_shown(key)}" if where else _shown(key)
            if key != "tool" or depth == 0:
                yield from _text_faults(inner, at, depth + 1)
            if not key.isprintable():
                yield f"{at} has a control character"
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _text_faults(inner, f"{where}[{place}]", depth + 1)


def _shown(key: str) -> str:
    return key[:40] if key.isprintable() else "key"


def _is_hash(name: str, value: object) -> bool:
    return (
        isinstance(value, str)
        and _WORD.fullmatch(name) is not None
        and _HEX.fullmatch(value) is not None
        and len(value) == _DIGITS.get(name, len(value))
    )


def _is_url(value: object) -> bool:
    """Whether *value* is a URL with a scheme, or a path; no index may have other texts."""
    if not isinstance(value, str) or len(value) > limits.URL or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
        _ = parts.port  # raises ValueError for a port that is none
    except ValueError:
        return False
    if is_unclear(value):
        return False
    return bool(_SCHEME.fullmatch(parts.scheme) and (parts.hostname or parts.path))


def _are_requirements(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(line, str) and parse_requirement(line) is not None for line in value
    )


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, str) and is_normalized_name(canonicalize_name(one)) for one in value
    )


def _is_dependency(value: object) -> bool:
    return isinstance(value, dict) and _are_names([value.get("name", "x")])


def _is_word(value: object) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _assumes(value: object) -> bool:
    return isinstance(value, dict) and all(
        is_normalized_name(name) and isinstance(version, str) for name, version in value.items()
    )


_TABLE: Mapping[str, Callable[[object], bool]] = {
    "kind": _is_word,
    "matrix": _is_word,
    "matrix-digest": lambda value: isinstance(value, str) and _is_hash("sha256", value),
    "python": lambda value: isinstance(value, str) and is_version(value),
    "platform": _is_word,
    "variant": _is_word,
    "runtime": _is_word,
    "index": _is_text,  # a URL, or the folder of an index
    "files": _is_word,
    "requirements": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "with": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "assumes": _assumes,
}
