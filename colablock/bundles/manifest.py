"""The manifest of a bundle: what it is for, and its members with size and hash.

It is the first member, so it can be read from the beginning of an archive whose end is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from colablock._common.decoding import Malformed, decode, is_plain_name
from colablock._common.limits import BUNDLE_MANIFEST, MEMBERS, SIZE

__all__ = ["FILES", "FORMAT", "NAME", "PYTHON", "BundleManifest", "BundleMember"]

#: The version of the format.  It grows when an older colablock cannot read a new bundle.
FORMAT = 1
NAME = "bundle.json"
#: The folder, in the archive, of the files that are read in place.  All other members are written to disk.
FILES = "files/"
#: The folder, in the archive, of a packed Python.
PYTHON = "python/"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NESTED = 2  # the parts of the longest path: a folder and a file
_BASE = ".base.toml"  # what a matrix extends
_WHEEL = ".whl"
_UNSAFE = (".", "-", "~")  # a file that is written to disk is neither hidden, an option nor a home


class BundleMember(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the archive: its path in it, its SHA-256 (hex), its size in bytes."""

    path: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The name of the file, without its folder."""
        return self.path.rpartition("/")[2]


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="kebab"):
    """What a bundle is for: the *matrix* by name, and the target of its lock.

    *kind* is that of the lock, ``complete`` or ``delta``; *runtime* names the state that a delta is for.
    *index* is the default index that the lock was made from.  *python*, *platform* and *with_* are those of
    the lock.  *matrix_file* and *lock_file* are the paths of two members, *python_file* is that of a packed
    Python, if there is one.  *built* has the path of the wheel that was built from an sdist, by the path of
    the sdist.
    """

    format: int
    matrix: str
    kind: str
    python: str
    platform: str
    matrix_file: str
    lock_file: str
    python_file: str | None = None
    index: str | None = None
    runtime: str | None = None
    variant: str | None = None
    with_: tuple[str, ...] = msgspec.field(default=(), name="with")
    built: dict[str, str] = {}
    members: tuple[BundleMember, ...] = ()

    @property
    def size(self) -> int:
        """The bytes of all members, without the manifest."""
        return sum(member.size for member in self.members)

    def encoded(self) -> bytes:
        """Return the content of the member `NAME`: the same bytes for the same manifest."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def decoded(cls, data: bytes) -> BundleManifest:
        """Return the manifest in *data*.  Raises Malformed."""
        if len(data) > BUNDLE_MANIFEST:
            raise Malformed(f"its manifest has more than {BUNDLE_MANIFEST} bytes")
        version = decode(data, _Version).format
        if version != FORMAT:
            raise Malformed(f"it has format {version}, and this colablock reads format {FORMAT}")
        found = decode(data, cls)
        for fault in found.faults():
            raise Malformed(fault)
        return found

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        if len(self.members) > MEMBERS:
            yield f"it lists more than {MEMBERS} members"
        texts = (self.matrix, self.kind, self.python, self.platform, self.runtime, self.variant, self.index)
        if not all((text or "").isprintable() for text in (*texts, *self.with_)):
            yield "its manifest has control characters"
        paths = [member.path for member in self.members]
        if len(set(paths)) != len(paths) or NAME in paths:
            yield "its manifest lists a member twice"
        if self.python_file is not None and self.python_file not in paths:
            yield f"its manifest names `{self.python_file!r}`, which is not a member"
        for path in (self.matrix_file, self.lock_file):
            if path not in paths or "/" in path:
                yield f"its manifest names `{path!r}`, which is not a member"
        for path in (*self.built, *self.built.values()):
            if path not in paths or not path.startswith(FILES):
                yield f"its manifest names `{path!r}`, which is not a member"
        for member in self.members:
            parts = member.path.split("/")
            if len(parts) > _NESTED or not all(map(is_plain_name, parts)) or not member.path.isprintable():
                yield f"its manifest lists the path {member.path!r}"
            elif not self._is_expected(member.path):
                yield f"its manifest lists `{member.path}`, which belongs to no matrix and no lock"
            if not _SHA256.fullmatch(member.sha256) or not 0 <= member.size <= SIZE:
                yield f"its manifest has no valid hash and size of `{member.path}`"
        if self.matrix_file != f"{self.matrix}.toml":
            yield f"its manifest names `{self.matrix_file}` as the file of the matrix `{self.matrix}`"

    def _is_expected(self, path: str) -> bool:
        """Whether *path* is that of a file to install, the matrix, what it extends, the lock, or a wheel."""
        if path.startswith(FILES):
            return True
        if path.startswith(PYTHON):
            return path == self.python_file and path.endswith(".tar.gz")
        is_safe = not any(part.startswith(_UNSAFE) for part in path.split("/"))
        is_top = path in {self.matrix_file, self.lock_file} or path.endswith(_BASE)
        return is_safe and (path.endswith(_WHEEL) if "/" in path else is_top)


class _Version(msgspec.Struct):
    format: int
