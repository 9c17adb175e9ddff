"""Read the core metadata of wheels, sdists and metadata files."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.requirements import InvalidRequirement, Requirement
from colablock._vendor.packaging.specifiers import InvalidSpecifier, SpecifierSet
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.errors import BadDistribution
from colablock.index.archive import SourceArchive, open_archive
from colablock.index.candidates import Metadata

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "CoreMetadata",
    "RemoteFile",
    "archive_facts",
    "entry_points",
    "parse_core_metadata",
    "read_wheel_metadata",
    "static_metadata",
]

_TRUSTED_SINCE = (2, 2)  # PEP 643: an sdist's fields that are not Dynamic are those of its wheels


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreMetadata:
    """The fields that the resolver or a rebuilt METADATA needs, as written; requirements unparsed."""

    name: str
    version: str
    metadata_version: str = ""
    requires: tuple[str, ...] = ()
    requires_python: str | None = None
    extras: tuple[str, ...] = ()
    dynamic: frozenset[str] = frozenset()  # in lower case
    summary: str | None = None

    def parsed(self, what: str) -> Metadata:
        """Return the metadata with parsed requirements.  Raises BadDistribution with the line at fault.

        Only valid lines are accepted (PEP 508): a legacy line such as ``foo (>=1.0.*)``
        makes the file unusable, and the resolver tries another version.
        """
        return Metadata(
            requires=tuple(_requirement(line, what) for line in self.requires),
            requires_python=self.requires_python if _is_specifier(self.requires_python) else None,
            extras=frozenset(canonicalize_name(extra) for extra in self.extras),
        )

    def check(self, name: str, version: Version | None, what: str) -> None:
        """Raise BadDistribution if this is the metadata of another project or version."""
        try:
            agrees = version is None or Version(self.version) == version
        except InvalidVersion:
            agrees = False
        if canonicalize_name(self.name) != canonicalize_name(name) or not agrees:
            message = f"the metadata of `{what}` belongs to {self.name or '?'} {self.version or '?'}"
            raise BadDistribution(message)

    def to_json(self) -> dict[str, Any]:
        """Return what ``from_json`` reads."""
        return {
            "name": self.name,
            "version": self.version,
            "requires": self.requires,
            "requires_python": self.requires_python,
            "extras": self.extras,
            "summary": self.summary,
        }

    @classmethod
    def from_json(cls, data: Any) -> CoreMetadata | None:
        """Return what ``to_json`` gave; None if *data* is anything else."""
        try:
            return cls(
                name=data["name"],
                version=data["version"],
                requires=tuple(data["requires"]),
                requires_python=data["requires_python"],
                extras=tuple(data["extras"]),
                summary=data["summary"],
            )
        except (KeyError, TypeError):
            return None


def parse_core_metadata(data: bytes) -> CoreMetadata:
    """Return the header fields of a METADATA or PKG-INFO file; the body is ignored."""
    single: dict[str, str] = {}
    several: dict[str, list[str]] = {"requires-dist": [], "provides-extra": [], "dynamic": []}
    for name, value in _headers(data):
        if name in several:
            several[name].append(value)
        else:
            single.setdefault(name, value)
    return CoreMetadata(
        name=single.get("name", ""),
        version=single.get("version", ""),
        metadata_version=single.get("metadata-version", ""),
        requires=tuple(several["requires-dist"]),
        requires_python=single.get("requires-python") or None,
        extras=tuple(several["provides-extra"]),
        dynamic=frozenset(field.lower() for field in several["dynamic"]),
        summary=single.get("summary") or None,
    )


def _headers(data: bytes) -> Iterable[tuple[str, str]]:
    """Yield the header fields, names in lower case; continued lines are joined (RFC 822)."""
    head = data.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    for line in head.replace(b"\n ", b" ").replace(b"\n\t", b" ").decode("utf-8", "replace").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip().lower(), value.strip()


def read_wheel_metadata(stream: IO[bytes] | RemoteFile, filename: str) -> CoreMetadata:
    """Return the metadata of a wheel; *stream* may be a ``RemoteFile``.  Raises BadDistribution."""
    try:
        with zipfile.ZipFile(cast("IO[bytes]", stream)) as wheel:
            found = [entry for entry in wheel.infolist() if _is_metadata(entry.filename)]
            if len(found) != 1:
                raise BadDistribution(
                    f"`{filename}` contains {len(found) or 'no'} METADATA files, and a wheel has one"
                )
            if isinstance(stream, RemoteFile):
                entry = found[0]
                # The local header repeats the name and may have a longer extra field.
                stream.ahead(entry.header_offset, 30 + len(entry.filename) + 256 + entry.compress_size)
            return parse_core_metadata(wheel.read(found[0]))
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise BadDistribution(f"`{filename}` cannot be read as a wheel: {error}") from error


def _is_metadata(path: str) -> bool:
    return path.endswith(".dist-info/METADATA") and path.count("/") == 1


class RemoteFile(io.RawIOBase):
    """A remote file that is fetched in parts, as far as it is read.

    *fetch* returns the bytes between two offsets.  *tail* holds the last bytes, since
    a zip archive is read from its end.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, tail: bytes) -> None:
        super().__init__()
        self._fetch = fetch
        self._size = size
        self._parts = [(size - len(tail), tail)]
        self._at = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(22, "a position before the start")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Return *size* bytes from the position on, fewer at the end."""
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if self._at >= end:
            return b""
        self.ahead(self._at, end - self._at)
        start, part = next(p for p in self._parts if p[0] <= self._at and end <= p[0] + len(p[1]))
        data = part[self._at - start : end - start]
        self._at = end
        return data

    def ahead(self, start: int, length: int) -> None:
        """Fetch *length* bytes from *start* on in one request, unless they are there."""
        end = min(start + length, self._size)
        if not any(first <= start and end <= first + len(part) for first, part in self._parts):
            known = next((p for p in self._parts if start < p[0] <= end <= p[0] + len(p[1])), None)
            # Extend an adjacent part, so that a central directory is not fetched twice.
            data = self._fetch(start, known[0] if known else end) + (known[1] if known else b"")
            self._parts.append((start, data))


def archive_facts(archive: SourceArchive) -> CoreMetadata:
    """Return the metadata of a source archive without running its build.

    It comes from a static ``[project]`` table, else from PKG-INFO.  Fields that only
    a build can tell are empty and listed in *dynamic*.
    """
    table = _project_table(archive)
    info = archive.members.get("PKG-INFO")
    known = parse_core_metadata(info.read()) if info is not None else None
    if known is not None and _version_of(known.metadata_version) >= _TRUSTED_SINCE:
        return known
    if table is not None:
        static = _from_table(table, known)
        if static is not None:
            return static
    every = frozenset({"requires-dist", "requires-python", "provides-extra"})
    if known is not None:
        return CoreMetadata(
            name=known.name,
            version=known.version,
            requires_python=known.requires_python,
            dynamic=every,
            summary=known.summary,
        )
    return CoreMetadata(name=str((table or {}).get("name", "")), version="", dynamic=every)


def static_metadata(path: Path) -> CoreMetadata | None:
    """Return the metadata of an sdist if it is static (PEP 643, PEP 621); else None."""
    with open_archive(path) as archive:
        facts = archive_facts(archive)
    dynamic = facts.dynamic & {"requires-dist", "requires-python", "provides-extra"}
    return None if dynamic or not facts.name or not facts.version else facts


def entry_points(archive: SourceArchive) -> str | None:
    """Return the entry_points.txt of a ``[project]`` table; None without a table or if they are dynamic."""
    table = _project_table(archive)
    if table is None or {"scripts", "gui-scripts", "entry-points"} & set(table.get("dynamic", ())):
        return None
    groups = {
        "console_scripts": table.get("scripts", {}),
        "gui_scripts": table.get("gui-scripts", {}),
        **table.get("entry-points", {}),
    }
    lines = []
    for group, points in sorted(groups.items()):
        lines += (
            [f"[{group}]", *(f"{name} = {value}" for name, value in sorted(points.items())), ""]
            if points
            else []
        )
    return "\n".join(lines)


def _project_table(archive: SourceArchive) -> Mapping[str, Any] | None:
    text = archive.read_text("pyproject.toml")
    try:
        table = tomllib.loads(text).get("project") if text is not None else None
    except tomllib.TOMLDecodeError:
        return None
    return table if isinstance(table, dict) else None


def _from_table(table: Mapping[str, Any], known: CoreMetadata | None) -> CoreMetadata | None:
    """Return the metadata of a ``[project]`` table (PEP 621); None if the table is malformed.

    A dynamic version is taken from PKG-INFO, which belongs to the same sdist.
    """
    dynamic = frozenset(str(field) for field in table.get("dynamic", ()))
    version = table.get("version") or (known.version if known is not None else "")
    try:
        lines = [str(line) for line in table.get("dependencies", ())]
        groups = table.get("optional-dependencies", {})
        for extra, needs in groups.items():
            lines += [_with_extra(str(line), extra) for line in needs]
    except (TypeError, AttributeError, ValueError):
        return None
    unknown = set()
    if "dependencies" in dynamic or "optional-dependencies" in dynamic:
        unknown |= {"requires-dist", "provides-extra"}
    if "requires-python" in dynamic:
        unknown.add("requires-python")
    return CoreMetadata(
        name=str(table.get("name", "")),
        version=str(version),
        requires=() if unknown & {"requires-dist"} else tuple(lines),
        requires_python=cast("str | None", table.get("requires-python")),
        extras=tuple(groups),
        dynamic=frozenset(unknown),
        summary=cast("str | None", table.get("description")),
    )


def _with_extra(line: str, extra: str) -> str:
    requirement = Requirement(line)
    own = f'extra == "{canonicalize_name(extra)}"'
    requirement.marker = Marker(f"({requirement.marker}) and {own}" if requirement.marker else own)
    return str(requirement)


def _version_of(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError:
        return ()


@lru_cache(maxsize=65536)
def _parsed(line: str) -> Requirement:
    return Requirement(line)


def _requirement(line: str, what: str) -> Requirement:
    try:
        return _parsed(line)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise BadDistribution(
            f"the metadata of `{what}` has `{line}`, which is not a valid requirement: {reason}"
        ) from error


def _is_specifier(text: str | None) -> bool:
    try:
        SpecifierSet(text or "")
    except InvalidSpecifier:
        return False
    return True
