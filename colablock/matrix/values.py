"""Convert the TOML values of a matrix file to the types of its records, and collect the faults."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import urlsplit

from colablock._common.limits import SHOWN
from colablock._common.text import near, printable
from colablock._common.toml import in_utc
from colablock._common.urls import Url, is_unclear
from colablock._vendor.packaging.markers import InvalidMarker, Marker
from colablock._vendor.packaging.requirements import InvalidRequirement, Requirement
from colablock._vendor.packaging.specifiers import InvalidSpecifier, SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion
from colablock.environment.requirements import (
    marker_of,
    requirement_of,
    shared_requirement,
    specifier_of,
    version_of,
)
from colablock.errors import Fault
from colablock.matrix.schema import Key, keys_of, tables_with

__all__ = ["HOST", "MATRIX_NAME", "Table", "join", "project_name", "type_name"]

MATRIX_NAME = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
_PROJECT_NAME = re.compile(r"[A-Z0-9](?:[A-Z0-9._-]*[A-Z0-9])?", re.IGNORECASE)  # PEP 508
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LOCAL = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*", re.IGNORECASE)  # PEP 440
HOST = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*(?::[0-9]{1,5})?")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_TYPE_NAMES: tuple[tuple[type, str], ...] = (
    (bool, "a boolean"),  # before int, of which it is a kind
    (str, "a string"),
    (int, "an integer"),
    (float, "a float"),
    (list, "an array"),
    (Mapping, "a table"),
)

T = TypeVar("T")


class _Wrong(Exception):
    """A value that is invalid for its key."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def type_name(value: object) -> str:
    """Return TOML's name for the type of *value*, with its article."""
    return next((name for kind, name in _TYPE_NAMES if isinstance(value, kind)), "a date or time")


def join(path: str, key: str) -> str:
    """Return the path of *key* in the table at *path*, quoted if TOML requires it."""
    quoted = key if _BARE_KEY.fullmatch(key) else '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{path}.{quoted}" if path else quoted


def _header(table: str) -> str:
    """Return the header of *table*, whose path ends with ``[]`` for an array of tables."""
    return f"`[[{table.removesuffix('[]')}]]`" if table.endswith("[]") else f"`[{table}]`"


def project_name(name: str) -> NormalizedName | None:
    """Return the normalized name of a project; None if *name* is invalid (PEP 508)."""
    return canonicalize_name(name) if _PROJECT_NAME.fullmatch(name) else None


class Table:
    """One table of the file: its values by the keys that the schema knows for its *section*.

    Each value that is no good is added to *faults* and reads as absent.  An
    entry written as a bare specifier is *short*: faults stand at its own path.
    """

    def __init__(
        self, data: Mapping[str, object], *, section: str, path: str, faults: list[Fault], short: bool = False
    ) -> None:
        self.data = data
        self.path = path
        self.faults = faults
        self._short = short
        self._known = keys_of(section)
        for key in data:
            if key not in self._known:
                self.fault(key, "unknown key", self._suggestion(key))
        for name, known in self._known.items():
            if known.required and name not in data:
                self.fault(name, "is missing", "write `schema = 1`" if name == "schema" else None)

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def _suggestion(self, key: str) -> str:
        if found := near(key, self._known):
            return found
        if not (tables := tables_with(key)):
            return "known here: " + ", ".join(self._known)
        places = [_header(table) if table else "the top of the file" for table in tables]
        return f"`{key}` is a key of {' or '.join(places)}: a key belongs to the last table header above it"

    def where(self, key: str) -> str:
        """Return the path of *key*."""
        return self.path if self._short else join(self.path, key)

    def fault(self, key: str, message: str, hint: str | None = None) -> None:
        """Add a fault of *key*."""
        self.faults.append(Fault(path=self.where(key), message=message, hint=hint))

    def get(self, key: str, kind: type[T], *, as_type: str | None = None) -> T | None:
        """Return the value of *key*, converted by its type in the schema (or *as_type*); None without one."""
        if key not in self.data:
            return None
        known = self._known[key]
        convert = _CONVERT[as_type or known.type]
        return self._converted(self.data[key], known, kind, convert, self.where(key))

    def _converted(
        self, raw: object, key: Key, kind: type[T], convert: Callable[[object, Key], object], where: str
    ) -> T | None:
        try:
            value = convert(raw, key)
        except _Wrong as wrong:
            self.faults.append(Fault(path=where, message=wrong.message, hint=wrong.hint))
            return None
        if not isinstance(value, kind):  # the schema's type converts to another type than the record has
            raise TypeError(f"{key.path} is read as {type(value).__name__}, where {kind.__name__} is needed")
        return value

    def several(self, key: str, kind: type[T]) -> tuple[T, ...] | None:
        """Return the elements of the array *key*, each converted and each with a fault of its own."""
        return tuple(value for _, value in self.numbered(key, kind)) if key in self.data else None

    def numbered(self, key: str, kind: type[T]) -> list[tuple[int, T]]:
        """Return the readable elements of the array *key*, each with its place."""
        known, raw = self._known[key], self.data.get(key, [])
        if not isinstance(raw, list):
            self.fault(key, f"must be an array, not {type_name(raw)}", _as_array(raw))
            return []
        convert, where = _ELEMENT[known.type], self.where(key)
        read = (self._converted(raw[i], known, kind, convert, f"{where}[{i}]") for i in range(len(raw)))
        return [(place, value) for place, value in enumerate(read) if value is not None]

    def table(self, key: str) -> Mapping[str, object]:
        """Return the table *key*, unread; empty without one."""
        raw = self.data.get(key, {})
        if isinstance(raw, dict):
            return raw
        self.fault(
            key, f"must be a table, not {type_name(raw)}", f"write `[{self.where(key)}]` above its keys"
        )
        return {}

    def tables(self, key: str) -> Sequence[Mapping[str, object]]:
        """Return the tables of the array *key*, unread; empty without one."""
        raw = self.data.get(key, [])
        if isinstance(raw, list) and all(isinstance(table, dict) for table in raw):
            return raw
        found = "one of other values" if isinstance(raw, list) else type_name(raw)
        self.fault(key, f"must be an array of tables, not {found}", f"write `[[{self.where(key)}]]`")
        return ()


def _as_array(raw: object) -> str | None:
    return f'write `["{raw}"]`' if isinstance(raw, str) else None


def _string(raw: object) -> str:
    text = _foreign(raw)
    if printable(text) != text:
        raise _Wrong(f"`{printable(text)[:SHOWN]}` has a control character or one that is not shown")
    return text


def _foreign(raw: object) -> str:
    if not isinstance(raw, str):
        raise _Wrong(f"must be a string, not {type_name(raw)}")
    return raw


def _text(raw: object, _key: Key) -> str:
    text = _foreign(raw)
    # A reason may have several lines; where it is written or shown, they become one.
    if printable(text, lines=True) != text.replace("\r\n", "\n"):
        shown = printable(text, lines=True)[:SHOWN]
        raise _Wrong(f"`{shown}` has a control character or one that is not shown")
    if not text.strip():
        raise _Wrong("must not be empty")
    return text


def _integer(raw: object, _key: Key) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int):
        raise _Wrong(f"must be an integer, not {type_name(raw)}")
    return raw


def _boolean(raw: object, _key: Key) -> bool:
    if not isinstance(raw, bool):
        raise _Wrong(f"must be `true` or `false`, not {type_name(raw)}")
    return raw


def _matrix_name(raw: object, _key: Key) -> str:
    name = _string(raw)
    if not MATRIX_NAME.fullmatch(name):
        wished = "-".join(re.findall(r"[a-z0-9]+", name.lower()))
        raise _Wrong(
            f"`{name}` is not a valid matrix name: lower-case letters and digits,"
            " with single `-` or `_` between them",
            f"`{wished}` would do" if wished else None,
        )
    return name


def _index_name(raw: object, _key: Key) -> str:
    name = _string(raw)
    if not _PROJECT_NAME.fullmatch(name):
        raise _Wrong(
            f"`{name}` is not a valid index name: letters, digits, `-`, `_` and `.`,"
            " the ends a letter or digit"
        )
    return name


def _name(raw: object, _key: Key) -> NormalizedName:
    name = project_name(_string(raw))
    if name is None:
        raise _Wrong(f"`{raw}` is not a valid name (PEP 508)")
    return name


def _build_name(raw: object, key: Key) -> str:
    return ":all:" if raw == ":all:" else _name(raw, key)


def _specifier(raw: object, _key: Key) -> SpecifierSet:
    text = _string(raw)
    try:
        return specifier_of(text)
    except InvalidSpecifier:
        raise _Wrong(f"`{text}` is not a valid version specifier (PEP 440)", _specifier_hint(text)) from None


def _specifier_hint(text: str) -> str | None:
    """Return the PEP 440 form of a specifier that is written as for another tool."""
    if text.strip() == "*":
        return 'any version is `""`'
    sign = "^" if text.startswith("^") else ""
    try:
        version = version_of(text.removeprefix(sign))
    except InvalidVersion:
        return None
    if not sign:
        return f"write `=={text}` for exactly that version"
    place = next((i for i, part in enumerate(version.release) if part), len(version.release) - 1)
    above = (*version.release[:place], version.release[place] + 1)
    return f"write `>={version},<{'.'.join(map(str, above))}`"


def _version(raw: object, _key: Key) -> str:
    text = _string(raw)
    try:
        return str(version_of(text))
    except InvalidVersion:
        exact = text.strip().lstrip("=").strip()
        hint = f"write `{exact}`" if text.startswith("==") and "*" not in text and "," not in text else None
        raise _Wrong(
            f"`{text}` is not a version (PEP 440): an entry with `url` takes one exact version", hint
        ) from None


def _local(raw: object, _key: Key) -> str:
    text = _string(raw)
    if not _LOCAL.fullmatch(text):
        hint = f"write `{text[1:]}`" if text.startswith("+") and _LOCAL.fullmatch(text[1:]) else None
        raise _Wrong(f"`{text}` is not a valid local version label (PEP 440)", hint)
    return text.lower().replace("-", ".").replace("_", ".")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _marker(raw: object, _key: Key) -> Marker:
    text = _string(raw)
    try:
        return marker_of(text)
    except InvalidMarker as error:
        raise _Wrong(f"`{text}` is not a valid environment marker (PEP 508): {_first_line(error)}") from None


def _requirement(raw: object, key: Key) -> Requirement:
    text = _string(raw)
    try:
        shared = shared_requirement(text)
    except InvalidRequirement as error:
        raise _Wrong(f"`{text}` is not a valid requirement (PEP 508): {_first_line(error)}") from None
    if shared.url is None:
        return shared
    _url(shared.url, key)
    url = Url(shared.url)
    _, named, digest = url.partition("#sha256=")
    if named and not _SHA256.fullmatch(digest):
        raise _Wrong(f"`{text}`: the hash after `#sha256=` must be 64 hexadecimal digits")
    requirement = requirement_of(text)
    requirement.url = url
    return requirement


def _url(raw: object, _key: Key) -> str:
    text = _string(raw)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise _Wrong(f"`{text}` is not a valid URL: {error}") from None
    local = parts.scheme == "file" and parts.path
    remote = parts.scheme in {"http", "https"} and parts.hostname
    if not (local or remote) or re.search(r"\s", text) or is_unclear(text):
        raise _Wrong(f"`{text}` is not a URL that can be fetched: `https:`, `http:` or `file:`")
    return text


def _host_name(raw: object, _key: Key) -> str:
    text = _string(raw)
    if not HOST.fullmatch(text):
        host = urlsplit(text).hostname if re.match(r"https?://[^\s\[\]]+$", text) else None
        hint = f"write `{host}`" if host else None
        raise _Wrong(
            f"`{text}` is not a valid host name: lower-case letters, digits, `-` and `.`,"
            " with `:port` if needed",
            hint,
        )
    return text


def _sha256(raw: object, _key: Key) -> str:
    text = _string(raw)
    if not _SHA256.fullmatch(text):
        hint = f"write `{text[7:]}`" if re.fullmatch(r"sha256[:=][0-9a-fA-F]{64}", text) else None
        raise _Wrong("must be 64 hexadecimal digits", hint)
    return text.lower()


def _relative_path(raw: object, _key: Key) -> str:
    text = _string(raw)
    parts = PurePosixPath(text).parts
    if not text or text.startswith("/") or ".." in parts or "\\" in text:
        raise _Wrong(f"`{text}` must be a folder inside the archive, with `/` between its parts")
    return "/".join(parts) or "."


def _date_time(raw: object, _key: Key) -> datetime:
    moment: object = raw
    if isinstance(raw, str):
        try:
            moment = datetime.fromisoformat(raw.replace("Z", "+00:00"))
        except ValueError:
            raise _Wrong(
                f"`{raw}` is not a valid date-time (RFC 3339)", "write it like `2024-09-01T00:00:00Z`"
            ) from None
    if isinstance(moment, datetime) and moment.tzinfo is not None:
        return in_utc(moment)
    if isinstance(moment, datetime):
        raise _Wrong("lacks its offset from UTC", f"write `{moment.isoformat()}Z` for UTC")
    if isinstance(moment, date):
        raise _Wrong(
            "needs a time of day", f"write `{moment.isoformat()}T00:00:00Z` for the start of that day in UTC"
        )
    raise _Wrong(f"must be a date-time such as `2024-09-01T00:00:00Z`, not {type_name(raw)}")


def _date_time_or_false(raw: object, key: Key) -> datetime | bool:
    if raw is True:
        raise _Wrong("must be a date-time, or `false` where the index gives no upload times")
    return False if raw is False else _date_time(raw, key)


def _choice(raw: object, key: Key) -> str:
    text = _string(raw)
    if text not in key.choices:
        known = "known: " + ", ".join(key.choices)
        raise _Wrong(f"`{text}` is not known here", near(text, key.choices) or known)
    return text


def _import_name(raw: object, _key: Key) -> str:
    text = _string(raw)
    module, colon, attribute = text.partition(":")
    parts = module.split(".") + (attribute.split(".") if colon else [])
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
        raise _Wrong(f"`{text}` is not a valid import: `module` or `module:attribute`")
    return text


def _command(raw: object, _key: Key) -> tuple[str, ...]:
    if not isinstance(raw, list) or not raw or not all(isinstance(word, str) and word for word in raw):
        split = ", ".join(f'"{word}"' for word in raw.split()) if isinstance(raw, str) else ""
        raise _Wrong(
            "must be an array of strings, the program first", f"write `[{split}]`" if split else None
        )
    return tuple(map(_string, raw))


_CONVERT: Mapping[str, Callable[[object, Key], object]] = {
    "integer": _integer,
    "text": _text,
    "boolean": _boolean,
    "matrix name": _matrix_name,
    "index name": _index_name,
    "specifier": _specifier,
    "version": _version,
    "local version": _local,
    "marker": _marker,
    "URL": _url,
    "SHA-256": _sha256,
    "relative path": _relative_path,
    "date-time": _date_time,
    "date-time or false": _date_time_or_false,
    "choice": _choice,
}
_ELEMENT: Mapping[str, Callable[[object, Key], object]] = {
    "names": _name,
    "host names": _host_name,
    "build names": _build_name,
    "requirements": _requirement,
    "import names": _import_name,
    "commands": _command,
    "choices": _choice,
}
STRUCTURED: Collection[str] = ("table", "array of tables", "table of entries", "table of tables")
