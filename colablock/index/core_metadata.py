"""Read the core metadata of wheels, sdists and metadata files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

import msgspec

from colablock._common.archives import UNREADABLE, SeekableReader, open_zip, read_member
from colablock._common.decoding import Malformed, fitted
from colablock._common.limits import DIRECTORY, METADATA, REQUIREMENTS, SHOWN, TEXT_FILE
from colablock._common.text import printable
from colablock._common.toml import NotToml, load_toml
from colablock._masking import masked
from colablock._records import dataclass
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.requirements import InvalidRequirement, Requirement
from colablock._vendor.packaging.specifiers import InvalidSpecifier
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.environment.requirements import requirement_of, shared_requirement, specifier_of, version_of
from colablock.errors import BadDistribution
from colablock.index.archive import SourceArchive, open_archive
from colablock.index.candidates import Metadata

__all__ = [
    "CoreMetadata",
    "RemoteFile",
    "archive_facts",
    "entry_points",
    "parse_core_metadata",
    "read_wheel_metadata",
    "static_metadata",
]

_MOST = 20_000  # requirements and extras of a distribution; real ones have 1,000
_LONGEST_PART = DIRECTORY + METADATA  # bytes that a remote wheel is asked for at once
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
    is_valid: bool = False  # every requirement was parsed when the cache got this

    def judged(self) -> CoreMetadata:
        """Return this metadata for the cache, with `is_valid` if it is."""
        try:
            self.parsed("")
        except BadDistribution:
            return self
        return replace(self, is_valid=True)

    def parsed(self, what: str) -> Metadata:
        """Return the metadata with parsed requirements.  Raises BadDistribution with the line at fault.

        Only valid lines are accepted (PEP 508): a legacy line such as ``foo (>=1.0.*)``
        makes the file unusable, and the resolver tries another version.  Lines that are known to be valid
        are parsed when they are needed: most lines of a large project are of extras that nobody asks for.
        """
        if len(self.requires) + len(self.extras) > _MOST or sum(map(len, self.requires)) > REQUIREMENTS:
            raise BadDistribution(f"the metadata of `{what}` has too many requirements or extras to be read")
        parsed = () if self.is_valid else tuple(_requirement(line, what) for line in self.requires)
        return Metadata(
            parsed=parsed,
            lines=self.requires if self.is_valid else (),
            requires_python=self.requires_python if _is_specifier(self.requires_python) else None,
            extras=frozenset(canonicalize_name(extra) for extra in self.extras),
        )

    def check(self, name: str, version: Version | None, what: str) -> None:
        """Raise BadDistribution if this is the metadata of another project or version."""
        try:
            agrees = version is None or version_of(self.version) == version
        except InvalidVersion:
            agrees = False
        if canonicalize_name(self.name) != canonicalize_name(name) or not agrees:
            message = f"the metadata of `{what}` belongs to {self.name or '?'} {self.version or '?'}"
            raise BadDistribution(message)


def parse_core_metadata(data: bytes) -> CoreMetadata:
    """Return the header fields of a METADATA or PKG-INFO file; the body is ignored.

    Raises BadDistribution if it is larger than `METADATA`.
    """
    if len(data) > METADATA:
        raise BadDistribution(f"a METADATA file is larger than {METADATA >> 20} MiB")
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
        with open_zip(cast("IO[bytes]", stream)) as wheel:
            found = [entry for entry in wheel.infolist() if _is_metadata(entry.filename)]
            if len(found) != 1:
                raise BadDistribution(
                    f"`{filename}` contains {len(found) or 'no'} METADATA files, and a wheel has one"
                )
            if isinstance(stream, RemoteFile):
                entry = found[0]
                # The local header repeats the name and may have a longer extra field.
                ahead = 30 + len(entry.filename) + 256 + min(entry.compress_size, METADATA)
                stream.ahead(entry.header_offset, ahead)
            return parse_core_metadata(read_member(wheel, found[0], METADATA))
    except UNREADABLE as error:
        raise BadDistribution(f"`{filename}` cannot be read as a wheel: {error}") from error


def _is_metadata(path: str) -> bool:
    return path.endswith(".dist-info/METADATA") and path.count("/") == 1


class RemoteFile(SeekableReader):
    """A remote file that is fetched in parts, as far as it is read.

    *fetch* returns the bytes between two offsets.  *tail* holds the last bytes, since
    a zip archive is read from its end.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, tail: bytes) -> None:
        super().__init__(size)
        self._fetch = fetch
        self._parts = [(size - len(tail), tail)]

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
        if end - start > _LONGEST_PART:
            raise OSError(27, f"a part of it has {end - start} bytes, more than {_LONGEST_PART}")
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
    known = parse_core_metadata(info.read(METADATA)) if info is not None else None
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
    return CoreMetadata(name=table.name if table is not None else "", version="", dynamic=every)


def static_metadata(path: Path) -> CoreMetadata | None:
    """Return the metadata of an sdist if it is static (PEP 643, PEP 621); else None."""
    with open_archive(path) as archive:
        facts = archive_facts(archive)
    dynamic = facts.dynamic & {"requires-dist", "requires-python", "provides-extra"}
    return None if dynamic or not facts.name or not facts.version else facts


def entry_points(archive: SourceArchive) -> str | None:
    """Return the entry_points.txt of a ``[project]`` table; None without a table or if they are dynamic."""
    table = _project_table(archive)
    if table is None or {"scripts", "gui-scripts", "entry-points"} & set(table.dynamic):
        return None
    groups = {
        "console_scripts": table.scripts,
        "gui_scripts": table.gui_scripts,
        **table.entry_points,
    }
    lines: list[str] = []
    for group, points in sorted(groups.items()):
        if any(printable(text) != text for point in points.items() for text in (group, *point)):
            shown = printable(group)[:SHOWN]
            raise BadDistribution(
                f"`{archive.filename}` has a control character in its entry points `{shown}`"
            )
        lines += (
            [f"[{group}]", *(f"{name} = {value}" for name, value in sorted(points.items())), ""]
            if points
            else []
        )
    return "\n".join(lines)


class _Project(msgspec.Struct, rename="kebab"):
    """A ``[project]`` table (PEP 621)."""

    name: str = ""
    version: str = ""
    description: str | None = None
    requires_python: str | None = None
    dependencies: list[str] = []
    optional_dependencies: dict[str, list[str]] = {}
    dynamic: list[str] = []
    scripts: dict[str, str] = {}
    gui_scripts: dict[str, str] = {}
    entry_points: dict[str, dict[str, str]] = {}


def _project_table(archive: SourceArchive) -> _Project | None:
    """Return the ``[project]`` table of an archive; None if there is none, or it is malformed."""
    member = archive.members.get("pyproject.toml")
    try:
        table = load_toml(member.read(TEXT_FILE)).get("project") if member is not None else None
        return None if table is None else fitted(table, _Project)
    except (NotToml, Malformed):
        return None


def _from_table(table: _Project, known: CoreMetadata | None) -> CoreMetadata | None:
    """Return the metadata of a ``[project]`` table (PEP 621); None if a requirement is invalid.

    A dynamic version is taken from PKG-INFO, which belongs to the same sdist.
    """
    dynamic = frozenset(table.dynamic)
    groups = table.optional_dependencies
    try:
        lines = list(table.dependencies)
        for extra, needs in groups.items():
            lines += [_with_extra(line, extra) for line in needs]
    except ValueError:
        return None
    unknown = set()
    if "dependencies" in dynamic or "optional-dependencies" in dynamic:
        unknown |= {"requires-dist", "provides-extra"}
    if "requires-python" in dynamic:
        unknown.add("requires-python")
    return CoreMetadata(
        name=table.name,
        version=table.version or (known.version if known is not None else ""),
        requires=() if unknown & {"requires-dist"} else tuple(lines),
        requires_python=table.requires_python,
        extras=tuple(groups),
        dynamic=frozenset(unknown),
        summary=table.description,
    )


def _with_extra(line: str, extra: str) -> str:
    requirement = requirement_of(line)
    own = f'extra == "{canonicalize_name(extra)}"'
    requirement.marker = Marker(f"({requirement.marker}) and {own}" if requirement.marker else own)
    return str(requirement)


def _version_of(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError:
        return ()


def _requirement(line: str, what: str) -> Requirement:
    try:
        return shared_requirement(line)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        shown = (
            line if len(line) <= SHOWN else f"{masked(line)[:SHOWN]}..."
        )  # a cut may hide that it is a URL
        raise BadDistribution(
            f"the metadata of `{what}` has `{shown}`, which is not a valid requirement: {reason}"
        ) from error


def _is_specifier(text: str | None) -> bool:
    try:
        specifier_of(text or "")
    except InvalidSpecifier:
        return False
    return True
