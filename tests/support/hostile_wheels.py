"""Wheels that no honest tool writes, described by their differences from a valid one."""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.wheels import metadata_text

__all__ = ["HostileWheel", "entry"]

_EPOCH = (1980, 1, 1, 0, 0, 0)
_WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_FILE = 0o100644


def entry(path: str, mode: int = _FILE) -> zipfile.ZipInfo:
    """Return the header of a member of a zip archive; *mode* as in ``stat``."""
    found = zipfile.ZipInfo(path, _EPOCH)
    found.filename = path  # as it is: ZipInfo cuts it at NUL
    found.external_attr = mode << 16
    found.compress_type = zipfile.ZIP_DEFLATED
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileWheel:
    """The project ``evil`` 1.0 with one module, and what is wrong with it.

    *files* are added to the archive and to RECORD, *unlisted* to the archive only; a file of the
    dist-info folder is replaced, or left out if it is None.  *members* are added as they are.
    *record* rewrites the RECORD, *damage* the bytes of the archive.
    """

    filename: str = "evil-1.0-py3-none-any.whl"
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    unlisted: Mapping[str, str | bytes] = field(default_factory=dict)
    info: Mapping[str, str | None] = field(default_factory=dict)
    members: Sequence[tuple[zipfile.ZipInfo, bytes]] = ()
    record: Callable[[str], str | None] = lambda text: text
    damage: Callable[[bytes], bytes] = lambda data: data
    requires: Sequence[str] = ()

    def write(self, folder: Path) -> Path:
        """Write the wheel into *folder*, and return its path."""
        path = folder / self.filename
        path.write_bytes(self.damage(self._archive()))
        return path

    def _archive(self) -> bytes:
        stem = "evil-1.0.dist-info"
        info: dict[str, str | None] = {
            "METADATA": metadata_text("evil", "1.0", requires=self.requires),
            "WHEEL": _WHEEL,
            **self.info,
        }
        listed = {
            "evil/__init__.py": b"",
            **{f"{stem}/{name}": text.encode() for name, text in info.items() if text is not None},
            **{path: _bytes(content) for path, content in self.files.items()},
        }
        record = self.record("".join(map(_row, listed.items())) + f"{stem}/RECORD,,\n")
        if record is not None:
            listed[f"{stem}/RECORD"] = record.encode()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for path, content in {**listed, **self.unlisted}.items():
                archive.writestr(entry(path), _bytes(content))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name that is there twice
                for member, data in self.members:
                    archive.writestr(member, data)
        return buffer.getvalue()


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _row(item: tuple[str, bytes]) -> str:
    path, data = item
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f'"{path}",sha256={digest},{len(data)}\n'
