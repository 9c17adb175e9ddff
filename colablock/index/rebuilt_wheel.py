"""Rebuilt wheels: a pinned archive or wheel whose metadata or modules the matrix replaces.

No code of the archive is run.  The same input gives the same bytes on every machine:
entries are sorted, times are fixed, and nothing is compressed (the output of zlib
differs between builds of Python).  The version identifies the input by a local
label: ``0.4.0+colablock.<8 hex digits>``.

The archive of a repository is identified by its contents, not by its own bytes: the
host may compress it again at any time.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from colablock._common.archives import UNREADABLE, open_zip, read_member
from colablock._common.fs import atomic_path, file_digest
from colablock._common.limits import METADATA, SHOWN
from colablock._common.text import printable
from colablock._records import dataclass
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import canonicalize_name
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.environment.requirements import version_of
from colablock.errors import BadDistribution, NoModules
from colablock.index.archive import Member, SourceArchive, open_archive
from colablock.index.candidates import Metadata
from colablock.index.core_metadata import CoreMetadata, archive_facts, entry_points, parse_core_metadata
from colablock.index.evaluator import parse_wheel_name
from colablock.matrix.model import PackageEntry
from colablock.network.cache import Cache

__all__ = [
    "archive_version",
    "rebuild",
    "rebuilt_version",
    "replaced_metadata",
    "source_identity",
]

_FORMAT = 2  # of the wheels written below; increase it with every change, which changes the labels
_EPOCH = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20
_NATIVE = (".so", ".pyd", ".dylib", ".pyx")
# Folders of a flat layout that are not packages (the reserved names of setuptools).
_NOT_PACKAGES = frozenset(
    {
        *("assets", "benchmark", "benchmarks", "bin", "build", "conftest", "data", "dist", "doc", "docs"),
        *("documentation", "example", "examples", "htmlcov", "manpages", "node_modules", "noxfile"),
        *("requirements", "scripts", "setup", "site_scons", "tasks", "test", "tests", "toxfile", "tools"),
        *("util", "utils", "venv"),
    }
)


def rebuilt_version(entry: PackageEntry, version: Version, identity: str) -> Version:
    """Return the version of the rebuilt wheel: *version* with a label that identifies its input.

    *identity* is the SHA-256 of a file of an index, or the `source_identity` of a direct reference.
    """
    requires = None if entry.requires_dist is None else [str(line) for line in entry.requires_dist]
    source = json.dumps([_FORMAT, identity, entry.source_root, requires])
    label = f"colablock.{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    return Version(f"{version}{'.' if version.local else '+'}{label}")


def source_identity(entry: PackageEntry, path: Path) -> str:
    """Return the identity of the file *path* of *entry*: its SHA-256, or the one of its contents.

    For an archive the SHA-256 of the file counts only if the matrix pins it.  Raises BadDistribution.
    """
    if entry.url is None or path.suffix == ".whl":
        return file_digest(path)
    pinned = entry.pinned_sha256
    if pinned is not None:
        return pinned
    with open_archive(path) as archive:
        rows = [
            f"{inner} {member.executable:d} {hashlib.sha256(member.read()).hexdigest()}"
            for inner, member in sorted(archive.members.items())
        ]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def archive_version(path: Path, entry: PackageEntry) -> Version:
    """Return the version of an archive: the entry's, else its own.  Raises BadDistribution."""
    with open_archive(path) as archive:
        return _version(entry, archive_facts(archive), path)


def replaced_metadata(entry: PackageEntry, known: Metadata | None) -> Metadata:
    """Return the metadata of the rebuilt wheel: the requirements of the entry, else those *known*."""
    python = known.requires_python if known is not None else None
    if entry.requires_dist is None:
        return known or Metadata()
    extras = frozenset(canonicalize_name(extra) for extra in _extras(entry.requires_dist))
    return Metadata(parsed=entry.requires_dist, requires_python=python, extras=extras)


def rebuild(
    entry: PackageEntry,
    source: Path,
    *,
    cache: Cache,
    sha256: str | None = None,
    build: Callable[[Path], Path] | None = None,
) -> tuple[Path, Metadata]:
    """Rebuild *source* (a wheel or an archive); return the wheel and its metadata.  Cached in *cache*.

    An archive without ``source-root`` is built by *build* where that is given,
    else its modules are those at its top.  Raises BadDistribution when no
    module would be importable, when the archive holds what needs a compiler, or
    when its hash is not *sha256*.
    """
    if sha256 is not None and (digest := file_digest(source)) != sha256.lower():
        raise BadDistribution(f"`{source.name}` has the sha256 {digest}, but {sha256} is expected")
    identity = source_identity(entry, source)
    if source.suffix == ".whl":
        return _repacked(entry, source, identity, cache)
    if entry.source_root is None and build is not None:
        return _repacked(entry, build(source), identity, cache)
    return _from_archive(entry, source, identity, cache)


@dataclass(frozen=True, slots=True)
class _WheelEntry:
    """One entry of the wheel to be; *open* gives its bytes."""

    path: str
    executable: bool
    open: Callable[[], IO[bytes]]


def _from_archive(entry: PackageEntry, source: Path, identity: str, cache: Cache) -> tuple[Path, Metadata]:
    with open_archive(source) as archive:
        facts = archive_facts(archive)
        version = rebuilt_version(entry, _version(entry, facts, source), identity)
        if entry.requires_dist is None and "requires-dist" in facts.dynamic:
            message = f"`{source.name}` has no static requirements"
            raise BadDistribution(message, hint=f"Set `requires-dist` in {entry.path}")
        modules = list(_modules(archive, entry))
        stem = f"{_escaped(entry.name)}-{version}"
        fields = _fields(entry, version, facts)
        info = {
            "METADATA": _metadata_text(fields),
            "WHEEL": "Wheel-Version: 1.0\nGenerator: colablock\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        points = _entry_points(archive, entry)
        if points:
            info["entry_points.txt"] = points
        info["top_level.txt"] = "".join(f"{name}\n" for name in _tops(file.path for file in modules))
        written = [_text(f"{stem}.dist-info/{name}", text) for name, text in sorted(info.items())]
        wheel = _write(cache, f"{stem}-py3-none-any.whl", stem, [*modules, *written])
    return wheel, fields.parsed(wheel.name)


def _version(entry: PackageEntry, facts: CoreMetadata, source: Path) -> Version:
    try:
        return version_of(entry.version or facts.version)
    except InvalidVersion as error:
        message = f"`{source.name}` has no static version"
        raise BadDistribution(message, hint=f"Set `version` in {entry.path}") from error


def _fields(entry: PackageEntry, version: Version, known: CoreMetadata) -> CoreMetadata:
    """Return the metadata of the rebuilt wheel: the entry's requirements in place of the known ones."""
    replaced = entry.requires_dist
    return CoreMetadata(
        name=known.name if canonicalize_name(known.name) == entry.name else entry.name,
        version=str(version),
        requires=known.requires if replaced is None else tuple(str(line) for line in replaced),
        requires_python=known.requires_python,
        extras=known.extras if replaced is None else tuple(sorted(_extras(replaced))),
        summary=known.summary,
    )


def _metadata_text(fields: CoreMetadata) -> str:
    """Return the METADATA of *fields*.  Raises BadDistribution if a value would add a line to it."""
    lines = ["Metadata-Version: 2.1", f"Name: {fields.name}", f"Version: {fields.version}"]
    lines += [f"Summary: {' '.join(fields.summary.split())}"] if fields.summary else []
    lines += [f"Requires-Python: {fields.requires_python}"] if fields.requires_python else []
    lines += [f"Provides-Extra: {extra}" for extra in fields.extras]
    lines += [f"Requires-Dist: {line}" for line in fields.requires]
    _refuse_more_lines(lines, fields.name)
    return "\n".join(lines) + "\n"


def _refuse_more_lines(lines: Iterable[str], name: str) -> None:
    odd = next((line for line in lines if printable(line) != line), None)
    if odd is not None:
        shown = printable(odd)[:SHOWN]
        raise BadDistribution(f"the metadata of `{printable(name)}` has a control character: `{shown}`")


def _extras(requirements: Iterable[Requirement]) -> set[str]:
    """Return the extras that the markers of *requirements* name."""
    markers = (str(requirement.marker or "") for requirement in requirements)
    return {match for text in markers for match in re.findall(r"extra\s*==\s*[\"']([^\"']+)[\"']", text)}


def _modules(archive: SourceArchive, entry: PackageEntry) -> Iterator[_WheelEntry]:
    """Yield the files of every importable package and module at the source root, sorted by path."""
    root = (entry.source_root or ".").strip("/")
    prefix = "" if root == "." else f"{root.removeprefix('./')}/"
    if ".." in root.split("/"):
        raise BadDistribution(f"the source root `{root}` of {entry.path} leaves the archive")
    below = {
        path.removeprefix(prefix): member
        for path, member in archive.members.items()
        if path.startswith(prefix)
    }
    wanted = _importable(below, flat=entry.source_root is None)
    files = {
        path: member for path, member in below.items() if path.split("/")[0] in wanted and _is_shipped(path)
    }
    native = next((path for path in sorted(files) if path.endswith(_NATIVE)), None)
    if native is not None:
        message = f"`{archive.filename}` contains `{native}`, and a rebuilt wheel contains only Python"
        raise BadDistribution(message, hint=f"Name a wheel in {entry.path}")
    if not files:
        where = f"at `{root}`" if entry.source_root else "at its top (no `source-root` is given)"
        inner = [
            path.split("/") for path in archive.members if re.fullmatch(r"[^/]+/[^/]+/__init__\.py", path)
        ]
        likely = sorted({top for top, _, _ in inner if top not in _NOT_PACKAGES})
        hint = f"Set `source-root` in {entry.path}"
        hint += f", perhaps to `{likely[0]}`" if len(likely) == 1 and likely[0] != root else ""
        raise NoModules(f"`{archive.filename}` contains no importable module {where}", hint=hint)
    for path, member in sorted(files.items()):
        yield _WheelEntry(path, member.executable, _opener(member))


def _opener(member: Member) -> Callable[[], IO[bytes]]:
    return lambda: io.BytesIO(member.read())


def _importable(below: Mapping[str, Member], *, flat: bool) -> set[str]:
    """Return the names at the root that can be imported, as file or folder names.

    At a root that the matrix names, a folder without ``__init__.py`` counts when
    it holds a module (PEP 420).  In a *flat* layout only real packages do, and
    not what stands beside the project's own.
    """
    found = set()
    for path in below:
        top, _, rest = path.partition("/")
        name = top.removesuffix(".py")
        if not name.isidentifier() or name == "setup" or (flat and name in _NOT_PACKAGES):
            continue
        is_module = not rest and top.endswith(".py")
        is_package = rest == "__init__.py" or (not flat and rest.endswith(".py"))
        if is_module or is_package:
            found.add(top)
    return found


def _is_shipped(path: str) -> bool:
    return "__pycache__" not in path.split("/") and not path.endswith((".pyc", ".pyo"))


def _tops(paths: Iterable[str]) -> list[str]:
    return sorted({path.split("/")[0].removesuffix(".py") for path in paths})


def _entry_points(archive: SourceArchive, entry: PackageEntry) -> str:
    """Return entry_points.txt: from a static pyproject, else the one that an sdist carries."""
    static = entry_points(archive)
    if static is not None:
        return static
    name = f"{_escaped(entry.name)}.egg-info/entry_points.txt"
    return next(
        (archive.read_text(path) or "" for path in sorted(archive.members) if path.endswith(name)), ""
    )


# -- wheels


def _repacked(entry: PackageEntry, source: Path, identity: str, cache: Cache) -> tuple[Path, Metadata]:
    """Return *source* with the requirements of the entry and the label; the rest is unchanged."""
    try:
        stamp = parse_wheel_name(source.name)
        with source.open("rb") as stream, open_zip(stream) as wheel:
            names = [entry_.filename for entry_ in wheel.infolist() if not entry_.is_dir()]
            info = _info_folder(names, source.name)
            old = read_member(wheel, f"{info}/METADATA", METADATA)
            known = parse_core_metadata(old)
            known.check(entry.name, stamp.version, source.name)
            _check_modules(names, info, source.name, entry)
            version = rebuilt_version(entry, stamp.version, identity)
            stem = f"{info.removesuffix('.dist-info').rpartition('-')[0]}-{version}"
            text = _with_fields(old, version, entry)
            files = list(_wheel_files(wheel, info, stem, text))
            tail = source.name.removesuffix(".whl").split("-")[2:]
            path = _write(cache, "-".join([stem, *tail]) + ".whl", stem, files)
    except UNREADABLE as error:
        raise BadDistribution(f"`{source.name}` cannot be read as a wheel: {error}") from error
    return path, parse_core_metadata(text).parsed(path.name)


def _info_folder(names: Iterable[str], filename: str) -> str:
    found = {name.split("/")[0] for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)}
    if len(found) != 1:
        raise BadDistribution(
            f"`{filename}` contains {len(found) or 'no'} METADATA files, and a wheel has one"
        )
    return found.pop()


def _check_modules(names: Iterable[str], info: str, filename: str, entry: PackageEntry) -> None:
    data = info.removesuffix(".dist-info") + ".data"
    inside = [name for name in names if not name.startswith(f"{info}/")]
    if not any(
        not name.startswith(f"{data}/") or name.startswith((f"{data}/purelib/", f"{data}/platlib/"))
        for name in inside
    ):
        hint = f"Set `url` and `source-root` in {entry.path}"
        raise NoModules(f"`{filename}` contains no importable module", hint=hint)


def _with_fields(old: bytes, version: Version, entry: PackageEntry) -> bytes:
    """Return METADATA with the version and, where the entry replaces them, the requirements changed."""
    head, separator, body = old.replace(b"\r\n", b"\n").partition(b"\n\n")
    replaced = entry.requires_dist
    dropped = {b"version"} | ({b"requires-dist", b"provides-extra"} if replaced is not None else set())
    lines: list[bytes] = []
    keep = True
    for line in head.split(b"\n"):
        if not line.startswith((b" ", b"\t")):  # else it continues the line before
            keep = line.partition(b":")[0].strip().lower() not in dropped
        if keep and line:
            lines.append(line)
    place = next((i + 1 for i, line in enumerate(lines) if line.lower().startswith(b"name:")), len(lines))
    lines.insert(place, f"Version: {version}".encode())
    lines += [f"Provides-Extra: {extra}".encode() for extra in sorted(_extras(replaced or ()))]
    lines += [f"Requires-Dist: {line}".encode() for line in replaced or ()]
    return b"\n".join(lines) + (separator + body if separator else b"\n")


def _wheel_files(wheel: zipfile.ZipFile, info: str, stem: str, metadata: bytes) -> Iterator[_WheelEntry]:
    """Yield the files of *wheel*, sorted, under new names where they hold the version; RECORD is left out."""
    old = info.removesuffix(".dist-info")
    left_out = {f"{info}/{name}" for name in ("RECORD", "RECORD.jws", "RECORD.p7s", "METADATA")}
    for entry in sorted(
        wheel.infolist(), key=lambda entry: (entry.filename.startswith(info), entry.filename)
    ):
        path = entry.filename
        if path.startswith("/") or ".." in path.split("/"):
            raise BadDistribution(f"`{wheel.filename}` contains the path `{path}`, which leaves the wheel")
        if entry.is_dir() or path in left_out:
            continue
        for suffix in (".dist-info/", ".data/"):
            if path.startswith(old + suffix):
                path = stem + suffix + path.removeprefix(old + suffix)

        def opened(entry: zipfile.ZipInfo = entry) -> IO[bytes]:
            return wheel.open(entry)

        yield _WheelEntry(path, bool(entry.external_attr >> 16 & 0o100), opened)
    yield _WheelEntry(f"{stem}.dist-info/METADATA", False, lambda: io.BytesIO(metadata))


def _write(cache: Cache, filename: str, stem: str, files: Iterable[_WheelEntry]) -> Path:
    """Write the wheel into the cache and return its path; its name says all that it was made from."""
    target = cache.path("rebuilt", filename) / filename
    with atomic_path(cache.clear_path(target), unfinished=cache.unfinished) as temporary:
        rows = []
        temporary.touch(mode=0o600)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as wheel:
            written: set[str] = set()
            for file in files:
                if file.path in written:
                    raise BadDistribution(f"the wheel that `{filename}` is made from has `{file.path}` twice")
                written.add(file.path)
                digest, size = _copy(wheel, file)
                rows.append(f"{_quoted(file.path)},sha256={digest},{size}")
            record = f"{stem}.dist-info/RECORD"
            rows.append(f"{record},,")
            _copy(wheel, _text(record, "".join(f"{row}\n" for row in rows)))
    return target


def _copy(wheel: zipfile.ZipFile, file: _WheelEntry) -> tuple[str, int]:
    """Add one file and return its hash, as RECORD has it, and its size."""
    entry = zipfile.ZipInfo(file.path, _EPOCH)
    entry.create_system = 3  # Unix, whatever this runs on
    entry.external_attr = (0o100755 if file.executable else 0o100644) << 16
    digest = hashlib.sha256()
    size = 0
    with file.open() as source, wheel.open(entry, "w", force_zip64=False) as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode(), size


def _text(path: str, text: str) -> _WheelEntry:
    return _WheelEntry(path, False, lambda: io.BytesIO(text.encode()))


def _quoted(path: str) -> str:
    return '"' + path.replace('"', '""') + '"' if "," in path or '"' in path else path


def _escaped(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()
