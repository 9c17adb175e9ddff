"""What was applied last, per matrix: so that a second apply, verify and run know where to look."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from colablock._common.fs import replace_file
from colablock._vendor.packaging.utils import NormalizedName
from colablock.errors import NotFound, Unmet
from colablock.planning.plan import Target

__all__ = [
    "ApplyRecord",
    "check_home",
    "forget",
    "home_folder",
    "key_of",
    "load",
    "put_back",
    "read_text",
    "save",
    "versions_digest",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyRecord:
    """One finished apply.

    *key* digests everything that was asked for; *state* the names and versions
    of the environment afterwards, so that a later change by somebody else is
    noticed; *pins* the stack itself; *report* is in the written form.  *source*
    finds the matrix again: the name, or the absolute path, that was asked for.
    """

    name: str
    key: str
    target: str
    python: str
    prefix: str
    sites: tuple[str, ...]  # the folders whose dist-info names make up *state*
    state: str
    matrix_digest: str
    variant: str | None
    pins: Mapping[NormalizedName, str] = field(default_factory=dict)
    unmet: tuple[tuple[str, str], ...] = ()  # requirements of the stack that nobody met before either
    report: Mapping[str, object] = field(default_factory=dict)
    source: str = ""
    process: int = 0  # the one that applied it
    versions: Mapping[NormalizedName, str] = field(default_factory=dict)  # what *state* digests


def home_folder(environ: Mapping[str, str]) -> Path:
    """Return where environments and records are kept: ``COLABLOCK_HOME``, else the XDG data folder.

    Absolute, since environments hold their own place; a relative XDG folder is
    none (XDG base directory specification).
    """
    own = environ.get("COLABLOCK_HOME")
    if own:
        return Path(own).expanduser().absolute()
    data = Path(environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():
        data = Path(environ.get("HOME") or "~").expanduser().absolute() / ".local" / "share"
    return data / "colablock"


def key_of(facts: Mapping[str, object]) -> str:
    """Return a digest of what was asked for."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def versions_digest(versions: Mapping[NormalizedName, str]) -> str:
    """Return a digest of names and versions."""
    lines = "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def save(applied: ApplyRecord, home: Path) -> None:
    """Keep *applied* as the last one of its name, by one rename."""
    _write(_path(applied.name, home), json.dumps(asdict(applied)))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode(), synced=True)


def read_text(name: str, home: Path) -> str | None:
    """Return the record of *name* as it is written, to be put back later; None where there is none."""
    try:
        return _path(name, home).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def put_back(name: str, home: Path, text: str | None, *, prefix: str) -> None:
    """Make *text*, or nothing, the record of *name* again, where the last apply was in place at *prefix*."""
    last = load(name, home)
    if last is None or last.target != Target.KERNEL.value or os.path.realpath(last.prefix) != prefix:
        return
    if text is None:
        _path(name, home).unlink(missing_ok=True)
    else:
        _write(_path(name, home), text)


def forget(home: Path, *, python: str) -> None:
    """Take away the records of what was applied in the environment of the interpreter *python*."""
    for path in (home / "applied").glob("[!.]*.json"):
        last = load(path.stem, home)
        if last is not None and last.python == python:
            path.unlink(missing_ok=True)


def check_home(home: Path) -> None:
    """Raise Unmet where nothing could be kept in *home*: better before a change than after it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        message = f"`{home}` cannot be written, and what is applied is recorded there: {error.strerror}"
        raise Unmet(message, hint="Name another folder in `COLABLOCK_HOME`") from error


def load(name: str, home: Path) -> ApplyRecord | None:
    """Return the last apply of *name*; None when there is none that can be read."""
    try:
        value = json.loads(_path(name, home).read_text(encoding="utf-8"))
        unmet = tuple((name, line) for name, line in value["unmet"])
        return ApplyRecord(**{**value, "sites": tuple(value["sites"]), "unmet": unmet})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def require(name: str, home: Path) -> ApplyRecord:
    """Return the last apply of *name*.  Raises NotFound when nothing was applied."""
    found = load(name, home)
    if found is None:
        raise NotFound(f"`{name}` has not been applied here", hint=f"Run `colablock apply {name}` first")
    return found


def _path(name: str, home: Path) -> Path:
    return home / "applied" / f"{name}.json"
