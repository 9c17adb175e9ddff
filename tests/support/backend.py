"""A PEP 517 backend that needs nothing but the standard library.

`tests.support.wheels` writes its wheels with it, and copies this very file into each sdist that it
makes, so that building one needs no network.  An sdist holds ``wheel.json`` (what to build) and the
files of the wheel under ``tree/``.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from pathlib import Path

_EPOCH = (1980, 1, 1, 0, 0, 0)


def wheel_bytes(info: str, files: dict[str, bytes]) -> bytes:
    """Return the archive of *files* with the RECORD of *info* (``x-1.0.dist-info``) added."""
    rows = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{_quoted(path)},sha256={digest},{len(data)}")
    rows.append(f"{info}/RECORD,,")
    record = "".join(f"{row}\n" for row in rows).encode()
    return zip_bytes({**files, f"{info}/RECORD": record})


def zip_bytes(files: dict[str, bytes]) -> bytes:
    """Return a zip archive of *files*."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, _EPOCH)
            executable = ".data/scripts/" in path
            entry.external_attr = (0o100755 if executable else 0o100644) << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def _quoted(path: str) -> str:
    return f'"{path}"' if "," in path else path


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):  # type: ignore[no-untyped-def] # noqa: ARG001
    """Build the wheel that ``wheel.json`` describes (PEP 517)."""
    described = json.loads(Path("wheel.json").read_text(encoding="utf-8"))
    if described.get("fails"):
        raise RuntimeError(described["fails"])
    tree = Path("tree")
    paths = sorted(path for path in tree.rglob("*") if path.is_file())
    files = {path.relative_to(tree).as_posix(): path.read_bytes() for path in paths}
    Path(wheel_directory, described["filename"]).write_bytes(wheel_bytes(described["info"], files))
    return described["filename"]


def build_sdist(sdist_directory, config_settings=None):  # type: ignore[no-untyped-def]
    """Refuse: the tests make their sdists themselves."""
    raise NotImplementedError
