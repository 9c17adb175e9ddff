"""Pack a Python into one archive, and unpack it: each once into a folder named by the hash of the archive.

Only a standalone build can be moved, such as those that uv manages.  What a training stack does not
need is left out: tests, installed packages, manuals, and links, which other names stand for.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from colablock._common.fs import NEW, locked_file, make_private
from colablock._common.limits import INTERPRETER_FILE
from colablock.errors import BadDistribution
from colablock.index.archive import open_archive

__all__ = ["pack_interpreter", "unpack_interpreter"]

_BIN = "bin"
_TOPS = (_BIN, "include", "lib")
_LEFT_OUT = frozenset({"__pycache__", "idlelib", "pkgconfig", "site-packages", "terminfo", "test", "tests"})
_SUFFIXES = (".a", ".pyc")
_LEVEL = 6  # of gzip; 9 takes five times as long for 1 % less


def _executable(folder: Path, short: str) -> Path:
    """Return the path of the interpreter of version *short*, such as ``3.12``, in an unpacked archive."""
    return folder / _BIN / f"python{short}"


def pack_interpreter(executable: Path, short: str, output: Path) -> None:
    """Write the Python of *executable* to the archive *output*: the same bytes for the same files.

    Raises BadDistribution if it is not laid out as a standalone build is, and OSError.
    """
    root = executable.resolve().parent.parent
    if not (_executable(root, short).is_file() and (root / "lib" / f"python{short}" / "os.py").is_file()):
        raise BadDistribution(
            f"`{executable}` cannot be packed: it is not a standalone build of Python {short}",
            hint="`uv python install` fetches one",
        )
    with (
        output.open("xb") as stream,
        gzip.GzipFile("", "wb", _LEVEL, stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in _files(root, short):
            entry = tarfile.TarInfo(path.relative_to(root).as_posix())
            status = path.stat()
            entry.size, entry.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
            with path.open("rb") as content:
                archive.addfile(entry, content)


def _files(root: Path, short: str) -> Iterator[Path]:
    """Yield the files to pack, sorted: the interpreter, its library, its modules and its headers."""
    yield _executable(root, short)
    for top in _TOPS[1:]:
        for folder, below, names in os.walk(root / top):
            below[:] = sorted(name for name in below if name not in _LEFT_OUT)
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and not name.endswith(_SUFFIXES):
                    yield path


def unpack_interpreter(archive: Path, folder: Path, short: str) -> Path:
    """Unpack *archive* as *folder*, unless that is there; return its interpreter.

    Another process that unpacks the same one is waited for.  Raises BadDistribution if the archive is
    damaged, has other files, or has no interpreter, and OSError.
    """
    make_private(folder.parent)
    with locked_file(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            os.utime(folder)  # `prune` removes what was not used for long
        else:
            new = folder.with_name(f"{NEW}{os.urandom(8).hex()}")
            try:
                _unpack(archive, new)
                new.rename(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    python = _executable(folder, short)
    if not python.is_file():
        raise BadDistribution(f"`{archive.name}` has no interpreter of Python {short}")
    return python


def _unpack(archive: Path, into: Path) -> None:
    with open_archive(archive) as found:
        for path, member in found.members.items():
            if path.partition("/")[0] not in _TOPS:
                raise BadDistribution(f"`{archive.name}` has the file `{path}`, which no Python has")
            to = into / path
            make_private(to.parent)
            to.write_bytes(member.read(INTERPRETER_FILE))
            to.chmod(0o700 if member.executable else 0o600)
