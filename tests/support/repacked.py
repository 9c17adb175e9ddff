"""Wheels of what is installed with the tests, for pip in an environment that has nothing."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import uv

from tests.support.world import needed_by

__all__ = ["repack"]

_SCRIPT = '#!/bin/sh\nexec "{path}" "$@"\n'


def repack(folder: Path, *names: str) -> Path:
    """Write wheels of *names* and of all that they need into *folder*, and return it.

    They can be installed where the running Python can.  There is none of colablock, which pip is to build.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in needed_by(*names) - {"colablock"}:
        _repack(folder, metadata.distribution(name))
    return folder


def _repack(folder: Path, one: metadata.Distribution) -> None:
    stem = f"{one.metadata['Name'].replace('-', '_').replace('.', '_')}-{one.version}"
    lines = (one.read_text("WHEEL") or "").splitlines()
    tags = [line.partition(": ")[2] for line in lines if line.startswith("Tag:")]
    rows = []
    with ZipFile(folder / f"{stem}-{tags[-1]}.whl", "w", ZIP_STORED) as archive:
        for file in one.files or ():
            path = file.as_posix()
            if path.startswith("..") or path.endswith((".pyc", "/RECORD", "/INSTALLER", "/REQUESTED")):
                continue
            archive.write(str(file.locate()), path)
            rows.append(f"{path},,\n")
        if one.name == "uv":  # tens of megabytes: the wheel has a script that starts the one that is here
            script = ZipInfo(f"{stem}.data/scripts/uv")
            script.external_attr = 0o100755 << 16
            archive.writestr(script, _SCRIPT.format(path=uv.find_uv_bin()))
            rows.append(f"{script.filename},,\n")
        info = next(row.partition("/")[0] for row in rows if ".dist-info/" in row)
        archive.writestr(f"{info}/RECORD", "".join([*rows, f"{info}/RECORD,,\n"]))
