"""Find matrices by name: the search path, and the list of all matrices on it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from colablock._common.fs import expanded, working_folder
from colablock._common.ownership import require_trusted
from colablock._common.text import near
from colablock._records import dataclass
from colablock.errors import ColablockError, Fault, InvalidInput, InvalidMatrix, NotFound
from colablock.matrix.model import Matrix
from colablock.matrix.packed_locks import LockFile, packed_locks
from colablock.matrix.reader import MatrixFile, is_path, load_matrix, read_file

__all__ = [
    "ENTRY_POINTS",
    "Listed",
    "find_matrix",
    "is_shipped",
    "list_matrices",
    "lock_files",
    "lock_folder",
]

ENTRY_POINTS = "colablock.matrices"
_SHIPPED = "colablock/matrices"
VARIABLE = "COLABLOCK_MATRICES"
_MADE = "`colablock new NAME --from-requirements {file}` writes a matrix with its requirements"
#: Files that are taken for a matrix: the pattern of the name, what it is, and the command that takes it.
_OTHER_FILES = (
    ("pylock*.toml", "a lock file", "`colablock plan NAME --lock {file}` uses it"),
    ("pyproject.toml", "a project file", _MADE),
    ("*.txt", "a requirements file", _MADE),
    ("*.in", "a requirements file", _MADE),
    ("*.py", "a script", "`colablock run NAME -- python {file}` runs it in the environment of a matrix"),
    ("*.yaml", "a YAML file", "`colablock train NAME --config {file}` takes a training config"),
    ("*.yml", "a YAML file", "`colablock train NAME --config {file}` takes a training config"),
    ("*.json", "a JSON file", "A matrix is a TOML file: `colablock new NAME` writes one"),
)


class Folder(Protocol):
    """A folder on disk or in a package."""

    @property
    def name(self) -> str: ...
    def iterdir(self) -> Iterator[Folder]: ...
    def is_dir(self) -> bool: ...
    def is_file(self) -> bool: ...
    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One matrix on the search path; *shadowed_by* is an earlier one of the same name.

    *is_copy* says that it asks for the same as that one.  *fault* is why its file is invalid, so that it
    cannot be used.
    """

    name: str
    summary: str | None
    source: str
    matrix: Matrix | None = None
    shadowed_by: str | None = None
    is_copy: bool = False
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _MatrixPlace:
    """One place of the search path.

    *title* names it if its files have no path; *fault* is why it is unreadable.
    """

    title: str
    folder: Folder | None
    fault: str | None = None

    def files(self) -> Iterator[tuple[str, Folder]]:
        """Yield the matrix files by name, sorted.  Lock files beside them are skipped."""
        if self.folder is None or not self.folder.is_dir():
            return
        found = {}
        for entry in _entries(self.folder):
            stem, dot, ending = entry.name.rpartition(".")
            if dot and ending == "toml" and stem.partition(".")[0] not in {"", "pylock"} and entry.is_file():
                found[stem] = entry
        yield from sorted(found.items())

    def read(self, entry: Folder) -> MatrixFile:
        """Read one file of this place."""
        if isinstance(entry, Path):
            return read_file(entry)
        return MatrixFile(source=f"{self.title}/{entry.name}", content=entry.read_bytes())


def _entries(folder: Folder) -> list[Folder]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InvalidInput(
            f"`{folder}`, a folder of matrices, cannot be read: {error.strerror}",
            hint="Correct its permissions, or name the path of the matrix from another folder",
        ) from error


def find_matrix(
    name_or_path: str, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Matrix:
    """Return a matrix by its name, or by a path (a text with a separator or the ending ``.toml``).

    The search path for names: ``./matrices``, the folders of ``COLABLOCK_MATRICES``,
    installed packages (entry points of ``colablock.matrices``), the shipped matrices.
    Raises NotFound with similar names, and InvalidMatrix.
    """
    environ, cwd = os.environ if environ is None else environ, cwd or working_folder()
    places = tuple(_places(environ, cwd))
    _check_kind(name_or_path, cwd)

    def find(name: str) -> MatrixFile:
        return _find(name, places)

    if is_path(name_or_path):
        return load_matrix(read_file(_below(cwd, name_or_path)), find=find)
    file = find(name_or_path)
    matrix = load_matrix(file, find=find)
    _check_name(matrix, name_or_path)
    shipped = _replaced(matrix)
    if shipped is None:
        return matrix
    return replace(matrix, replaces_shipped=True, copies_shipped=_copies(matrix, shipped, places[-1:]))


def _check_kind(text: str, cwd: Path) -> None:
    """Raise InvalidInput for a file that is there and is of another kind, with the command that takes it."""
    name = Path(text).name
    for pattern, what, hint in _OTHER_FILES:
        if fnmatch(name, pattern) and _below(cwd, text).is_file():
            raise InvalidInput(
                f"`{text}` is not a matrix: it is {what}", hint=hint.format(file=shlex.quote(text))
            )


def lock_files(
    matrix: Matrix, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> tuple[LockFile, ...]:
    """Return the lock files of *matrix*, nearest first, sorted by name within each folder.

    The folders: ``./matrices``, those of ``COLABLOCK_MATRICES``, and the folder of the
    matrix itself, which comes first unless an installed package has it.
    """
    environ, cwd = os.environ if environ is None else environ, cwd or working_folder()
    named = [text for text in environ.get(VARIABLE, "").split(os.pathsep) if text]
    folders = [_below(cwd, "matrices"), *(_below(cwd, text) for text in named)]
    beside = Path(matrix.source).parent
    if beside not in folders and is_path(matrix.source):
        folders = [*folders, beside] if _is_packaged(matrix) else [beside, *folders]
    start = f"pylock.{matrix.name.replace('.', '_')}--"
    found: dict[str, LockFile] = {}
    for folder in folders:
        if folder != beside and next(folder.glob(f"{start}*.toml"), None) is not None:
            _check_owner(folder)
        packed = [lock for lock in packed_locks(folder) if lock.name.startswith(start)]
        locks: list[LockFile] = [*sorted(folder.glob(f"{start}*.toml")), *packed]
        for lock in locks:
            found.setdefault(os.path.realpath(str(lock)), lock)
    return tuple(found.values())


def lock_folder(matrix: Matrix, *, cwd: Path | None = None) -> Path:
    """Return the folder for new locks of *matrix*: its own, or ``./matrices`` for one of a package."""
    return _below(cwd or working_folder(), "matrices") if _is_packaged(matrix) else Path(matrix.source).parent


def _is_packaged(matrix: Matrix) -> bool:
    """Whether *matrix* belongs to an installed package, whose folder is not for the user to write to."""
    folders = Path(matrix.source).resolve().parts
    return not os.path.isfile(matrix.source) or not {"site-packages", "dist-packages"}.isdisjoint(folders)  # noqa: PTH113


def list_matrices(*, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> list[Listed]:
    """Return every matrix on the search path, in its order."""
    places = tuple(_places(os.environ if environ is None else environ, cwd or working_folder()))
    first: dict[str, Listed] = {}
    seen: set[str] = set()
    listed: list[Listed] = []
    for at, place in enumerate(places):
        fault = place.fault or _owner_fault(place.folder)
        if fault:
            listed.append(Listed(name=place.title, summary=None, source=place.title, fault=fault))
        if fault and fault != place.fault:
            continue
        for name, entry in place.files():
            identity = os.path.realpath(entry) if isinstance(entry, Path) else f"{place.title}/{entry.name}"
            if identity not in seen:  # a folder may be on the search path twice
                seen.add(identity)
                one = _listed(name, place, entry, places)
                used = first.setdefault(name, one)
                if used is not one:
                    is_copy = _copies(used.matrix, entry, places[at:])
                    one = replace(one, shadowed_by=used.source, is_copy=is_copy)
                listed.append(one)
    return listed


def _copies(matrix: Matrix | None, entry: Folder, places: tuple[_MatrixPlace, ...]) -> bool:
    """Whether *matrix* has the text of *entry*, a file of the first of *places*, and of all that it extends.

    The names that *entry* extends are those of its own place and later ones; a nearer file is another text.
    """
    try:
        other = load_matrix(places[0].read(entry), find=lambda name: _find(name, places))
    except (ColablockError, OSError):
        return False
    return matrix is not None and other.digest == matrix.digest


def _listed(name: str, place: _MatrixPlace, entry: Folder, places: tuple[_MatrixPlace, ...]) -> Listed:
    """Return the list entry of one file; a fault becomes part of the entry."""
    try:
        file = place.read(entry)
        matrix = load_matrix(file, find=lambda other: _find(other, places))
        _check_name(matrix, name)
    except InvalidMatrix as error:
        fault = str(error.faults[0]) + (f" (and {len(error.faults) - 1} more)" if error.faults[1:] else "")
        return Listed(name=name, summary=None, source=error.source, fault=fault)
    except ColablockError as error:
        return Listed(name=name, summary=None, source=str(entry), fault=str(error))
    return Listed(name=name, summary=matrix.summary, source=file.source, matrix=matrix)


def _check_name(matrix: Matrix, name: str) -> None:
    """Refuse a matrix whose name differs from that of its file: reports and locks use the name."""
    if matrix.name != name:
        fault = Fault(
            path="name",
            message=f"the matrix is named `{matrix.name}`, and its file `{name}`",
            hint=f"rename the file to `{matrix.name}.toml`, or the matrix to `{name}`",
        )
        raise InvalidMatrix(matrix.source, [fault])


def _replaced(matrix: Matrix) -> Folder | None:
    """Return the shipped file of the same name, if *matrix* is another file."""
    shipped = dict(_MatrixPlace(title=_SHIPPED, folder=_shipped()).files()).get(matrix.name)
    if shipped is None:
        return None
    path = str(shipped) if isinstance(shipped, Path) else f"{_SHIPPED}/{shipped.name}"
    is_same = os.path.realpath(path) == os.path.realpath(matrix.source) or path == matrix.source
    return None if is_same else shipped


def _find(name: str, places: tuple[_MatrixPlace, ...]) -> MatrixFile:
    known: list[str] = []
    for place in places:
        for stem, entry in place.files():
            if stem == name:
                _check_owner(place.folder)
                return place.read(entry)
            known.append(stem)
    listed = ", ".join(dict.fromkeys(known))
    hint = near(name, known)
    if hint is None and listed:
        hint = f"there are {listed}; your own are looked for in `{places[0].title}` of the working folder"
    faults = (f"\n  {place.fault}" for place in places if place.fault)
    raise NotFound(f"there is no matrix `{name}`{''.join(faults)}", hint=hint)


def _check_owner(folder: Folder | None) -> None:
    """Refuse a folder of matrices that other users can change."""
    if isinstance(folder, Path):
        require_trusted(
            folder,
            what="a folder of matrices",
            below=working_folder(),
            hint="Correct its owner (`chown`) and permissions (`chmod -R go-w`), or name the file",
        )


def _owner_fault(folder: Folder | None) -> str | None:
    try:
        _check_owner(folder)
    except InvalidInput as error:
        return str(error)
    return None


def _below(cwd: Path, path: str) -> Path:
    """Return *path* relative to *cwd*, kept short for messages."""
    found = expanded(path, "the path of a matrix")
    return found if cwd == working_folder() else cwd / found


def _places(environ: Mapping[str, str], cwd: Path) -> Iterator[_MatrixPlace]:
    """Yield the places of the search path, nearest first."""
    yield _MatrixPlace(title="matrices", folder=_below(cwd, "matrices"))
    for text in environ.get(VARIABLE, "").split(os.pathsep):
        if text:
            yield _MatrixPlace(title=text, folder=_below(cwd, text))
    yield from map(_package, _offered(tuple((path, _changed(path)) for path in sys.path)))
    yield _MatrixPlace(title=_SHIPPED, folder=_shipped())


def _changed(path: str) -> int:
    """Return when the folder *path* changed; 0 if there is none."""
    try:
        return os.stat(path or ".").st_mtime_ns  # noqa: PTH116 - of every folder of the import path
    except OSError:
        return 0


@lru_cache(maxsize=1)
def _offered(_folders: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """Return the modules that installed distributions name for matrices.

    The metadata of every distribution is read, hundreds in a hosted notebook, so the result is kept
    until a folder of the import path changes.
    """
    if not any(map(_may_offer, sys.path)):
        return ()
    from importlib import metadata  # noqa: PLC0415 - slow to import, and few machines have such distributions

    found = sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda found: found.name)
    return tuple(entry_point.value for entry_point in found)


def _may_offer(path: str) -> bool:
    """Whether a distribution in the folder *path* may name modules for matrices, judged by its text."""
    try:
        names = os.listdir(path or ".")  # noqa: PTH208 - as in `_changed`
    except OSError as error:
        return isinstance(error, NotADirectoryError)  # an archive, which only importlib reads
    return any(_names_matrices(f"{path or '.'}/{name}") for name in names)


def _names_matrices(entry: str) -> bool:
    if not entry.endswith((".dist-info", ".egg-info", ".egg")):
        return False
    try:
        with open(f"{entry}/entry_points.txt", "rb") as file:  # noqa: PTH123 - hundreds of them
            return ENTRY_POINTS.encode() in file.read()
    except OSError:
        return entry.endswith(".egg")


def _package(module: str) -> _MatrixPlace:
    """Return the resources of an installed package."""
    from importlib import resources  # noqa: PLC0415 - few Pythons have such a package

    try:
        return _MatrixPlace(title=module, folder=resources.files(module))
    except Exception as error:  # noqa: BLE001 - importing somebody's package may raise anything
        fault = f"the installed package `{module}` offers matrices but cannot be imported: {error}"
        return _MatrixPlace(title=module, folder=None, fault=fault)


def is_shipped(matrix: Matrix) -> bool:
    """Whether *matrix* is one that colablock ships, or a copy: another machine finds it by its name."""
    return matrix.copies_shipped or Path(matrix.source).resolve().parent == Path(str(_shipped())).resolve()


def _shipped() -> Folder:
    """Return the folder of the shipped matrices: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    beside = package.parent
    if not (package / "matrices").is_dir() and (beside / "pyproject.toml").is_file():
        return beside / "matrices"
    return package / "matrices"
