"""The record of the last apply of each matrix, for later calls of apply, verify and run."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, field
from datetime import datetime, timezone
from pathlib import Path

from colablock._common.decoding import Malformed, decode, is_plain_name, read_bounded
from colablock._common.fs import expanded, locked_file, machine_error, make_private, write_private
from colablock._common.limits import RUN_FILE
from colablock._common.ownership import require_trusted
from colablock._common.plain_values import from_plain
from colablock._common.text import command_line
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock.errors import InvalidInput, NotFound, Unmet
from colablock.planning.plan import Target

__all__ = [
    "BUNDLES",
    "PYTHONS",
    "RECEIPTS",
    "SET_ASIDE",
    "ApplyRecord",
    "PastChange",
    "check_home",
    "forget",
    "has_applied",
    "home_folder",
    "home_path",
    "key_of",
    "load",
    "load_all",
    "load_dated",
    "note_undone",
    "parse",
    "past_changes",
    "put_back",
    "read_text",
    "save",
    "versions_digest",
]

SET_ASIDE = "set-aside"
"""The folder of the files that a rollback found in folders that a change had created."""

BUNDLES = "bundles"
"""The folder of the matrices and locks of the bundles that were used."""
PYTHONS = "pythons"
"""The folder of the Pythons that were unpacked from bundles, to which environments have links."""
RECEIPTS = "receipts"
"""The folder of the receipts of smoke runs that passed, with a folder for each matrix."""

_APPLIED = "applied"
_UNDONE = "undone"  # the changes that were undone, by environment
_MOST_PAST = 100
_FOLDERS = (_APPLIED, BUNDLES, "current", "envs", PYTHONS, RECEIPTS, "runs", SET_ASIDE, _UNDONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyRecord:
    """One completed apply.

    *key* is a digest of the request.  *state* is a digest of the names and
    versions in the environment afterwards, which shows later changes by others.
    *pins* are the versions of the stack, *report* is the report in its written
    form, and *source* is the name or absolute path of the matrix.  *request* has the arguments of an
    `apply` of the same stack, without those that name the environment if that is *python* itself.
    """

    name: str
    key: str
    target: str
    python: str
    prefix: str
    sites: tuple[str, ...]  # the folders with the .dist-info folders for *state*
    state: str
    matrix_digest: str
    variant: str | None
    pins: Mapping[NormalizedName, str] = field(default_factory=dict)
    unmet: tuple[tuple[str, str], ...] = ()  # requirements of the stack that were unmet before, too
    report: Mapping[str, object] = field(default_factory=dict)
    source: str = ""
    request: tuple[str, ...] = ()
    process: int = 0  # the process that applied it
    caller: str = ""  # the prefix of the Python that ran colablock for it
    versions: Mapping[NormalizedName, str] = field(default_factory=dict)  # the versions in *state*


@dataclass(frozen=True, slots=True, kw_only=True)
class PastChange:
    """A change that was undone: its matrix, its steps, why, and when it was made and undone (UTC, ISO 8601).

    *site* identifies the environment, which another one may replace at the same path.
    """

    matrix: str
    when: str
    undone: str
    steps: str  # such as "install 2, remove 1"
    why: str  # "rolled back", or that a proof failed or it was interrupted
    site: str


def note_undone(home: Path, prefix: str, site: str, facts: Mapping[str, str]) -> None:
    """Add a change of the environment at *prefix* that was undone just now.  Raises OSError."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    one = PastChange(undone=now, site=_identity(prefix, site), **facts)
    path = _past_path(home, prefix)
    make_private(path.parent)
    with locked_file(path.with_suffix(".lock"), required=False):
        try:
            before = _past(path)
        except Malformed:  # of a later release, or damaged: nothing of it is lost
            path.replace(path.with_suffix(".damaged"))
            before = ()
        text = json.dumps([asdict(past) for past in (*before, one)[-_MOST_PAST:]])
        write_private(path, text.encode(), synced=True)


def past_changes(home: Path, prefix: str, site: str) -> tuple[PastChange, ...]:
    """Return the changes of the environment at *prefix* that were undone, oldest first.

    *site* is its folder of distributions.  Raises Unmet if the environment is gone, or the file
    cannot be read.
    """
    try:
        identity = _identity(prefix, site)
        return tuple(past for past in _past(_past_path(home, prefix)) if past.site == identity)
    except Malformed:
        return ()
    except OSError as error:
        raise machine_error(error) from error


def _past(path: Path) -> tuple[PastChange, ...]:
    """Raises OSError and Malformed."""
    try:
        return decode(read_bounded(path, RUN_FILE), tuple[PastChange, ...])
    except FileNotFoundError:
        return ()


def _past_path(home: Path, prefix: str) -> Path:
    return home / _UNDONE / f"{hashlib.sha256(os.fsencode(prefix)).hexdigest()[:32]}.json"


def _identity(prefix: str, site: str) -> str:
    """Return what tells this environment from another one that replaces it at the same path.

    It is the same after a reboot or a mount, which give a file system another device number, and if
    *site* is missing, as after the undo of a change that created it.  Raises OSError.
    """
    folder = os.stat(prefix)  # noqa: PTH116 - as the paths beside it
    try:
        made = Path(prefix, "pyvenv.cfg").stat().st_mtime_ns  # inode numbers are used again
    except FileNotFoundError:
        made = 0
    return hashlib.sha256(f"{folder.st_ino} {made} {site}".encode("utf-8", "surrogateescape")).hexdigest()


def home_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of environments and records: ``COLABLOCK_HOME``, or in the XDG data folder.

    The path is absolute, since environments contain their own path.  A relative
    XDG folder is ignored (XDG base directory specification).  Raises InvalidInput
    if other users can change the folder or one in it.
    """
    home = home_path(environ)
    for folder in (home, *(home / name for name in _FOLDERS)):
        require_trusted(
            folder,
            what="the home of colablock",
            hint="Make yourself its owner (`chown`) and remove the write permission of others"
            " (`chmod -R go-w`), or set `COLABLOCK_HOME` to another folder",
        )
    return home


def home_path(environ: Mapping[str, str]) -> Path:
    """Return the path of ``home_folder``, which may not be trusted.  Raises InvalidInput."""
    own = environ.get("COLABLOCK_HOME")
    if own:
        return expanded(own, "COLABLOCK_HOME").absolute()
    data = Path(environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():
        data = expanded(environ.get("HOME") or "~", "HOME").absolute() / ".local" / "share"
    return data / "colablock"


def key_of(facts: Mapping[str, object]) -> str:
    """Return a digest of the facts of a request."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def versions_digest(versions: Mapping[NormalizedName, str]) -> str:
    """Return a digest of names and versions."""
    lines = "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def save(applied: ApplyRecord, home: Path) -> None:
    """Write *applied* as the last apply of its matrix, atomically: of all, and of this Python's colablock."""
    data = json.dumps(asdict(applied)).encode()
    for path in (_own_path(applied.name, home), _path(applied.name, home)):
        write_private(path, data, synced=True)


def read_text(name: str, home: Path) -> str | None:
    """Return the text of the record of *name*, for `put_back`, or None if there is none."""
    try:
        return read_bounded(_path(name, home), RUN_FILE).decode()
    except (OSError, ValueError):
        return None


def put_back(name: str, home: Path, text: str | None, *, prefix: str) -> None:
    """Restore the record *text* of *name* if its last apply was in place at *prefix*.

    The record is removed if *text* is None, or is of an apply in an environment that is neither this
    one nor in *home*.
    """
    before = parse(name, text) if text is not None else None
    for path in _paths(home, name):
        last = _read(name, path)
        if last is None or last.target != Target.KERNEL.value or os.path.realpath(last.prefix) != prefix:
            continue
        is_of_all = path.parent.name == _APPLIED  # else *before* may be of the colablock of another Python
        is_next = before is not None and (is_of_all or before.prefix == last.prefix)
        # An interpreter is taken from the home alone, and the text comes from the environment.
        if text is not None and before is not None and is_next and _is_known(before.python, last, home):
            write_private(path, text.encode(), synced=True)
        else:
            path.unlink(missing_ok=True)


def _is_known(python: str, last: ApplyRecord, home: Path) -> bool:
    """Whether *python* is in the environment of *last*, or in an isolated environment in *home*."""
    folder = Path(os.path.realpath(Path(python).parent))
    is_isolated = folder.name == "bin" and folder.parent.parent == Path(os.path.realpath(home / "envs"))
    return is_isolated or folder == Path(os.path.realpath(Path(last.python).parent))


def forget(home: Path, *, python: str) -> None:
    """Remove the records of applies in the environment of the interpreter *python*."""
    for path in _paths(home):
        last = _read(path.stem, path)
        if last is not None and last.python == python:
            path.unlink(missing_ok=True)


def load_all(home: Path) -> Iterator[ApplyRecord]:
    """Yield the last applies of every matrix, the newest first: one for each environment."""
    for last, _ in load_dated(home):
        yield last


def load_dated(home: Path) -> Iterator[tuple[ApplyRecord, float]]:
    """Yield what `load_all` does, each with its time in seconds since the epoch."""
    seen: set[tuple[str, str]] = set()
    dated = sorted(((_written(path), path) for path in _paths(home)), reverse=True)
    for when, path in dated:
        last = _read(path.stem, path)
        if last is not None and (last.name, last.prefix) not in seen:
            seen.add((last.name, last.prefix))
            yield last, when


def _paths(home: Path, name: str | None = None) -> list[Path]:
    """Return where the records of *name* (or any) may be: of all, then of the colablock of each Python."""
    folders = [home / _APPLIED, *(home / _APPLIED).glob("[!.]*/")]
    if name is not None:
        return [folder / f"{name}.json" for folder in folders]
    return [path for folder in folders for path in folder.glob("[!.]*.json")]


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process has just removed it
        return 0.0


def check_home(home: Path) -> None:
    """Raise Unmet if *home* is not writable.  Called before a change, since a record is written after it."""
    try:
        make_private(home)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        message = f"`{home}`, the folder for records of applies, cannot be written: {error.strerror}"
        raise Unmet(message, hint="Set `COLABLOCK_HOME` to another folder") from error


def load(name: str, home: Path) -> ApplyRecord | None:
    """Return the last apply of *name* by the colablock of this Python, else by any; None if there is none.

    Of one environment, the last apply by any counts.  One whose interpreter is gone is the last choice.
    """
    if not is_plain_name(name):
        return None
    own = _read(name, _own_path(name, home))
    if own is not None and not os.path.isfile(own.python):  # noqa: PTH113 - before each apply
        own = None
    gone: ApplyRecord | None = None
    for path in sorted(_paths(home, name), key=_written, reverse=True):
        last = _read(name, path)
        if last is not None and (own is None or last.prefix == own.prefix):
            if os.path.isfile(last.python):  # noqa: PTH113 - before each apply
                return last
            gone = gone or last
    return own or gone


def has_applied(name: str, home: Path, prefix: str) -> bool:
    """Whether the colablock of this Python has applied *name* last in the environment at *prefix*."""
    own = _read(name, _own_path(name, home))
    return own is not None and os.path.realpath(own.prefix) == os.path.realpath(prefix)


def _read(name: str, path: Path) -> ApplyRecord | None:
    try:
        return parse(name, read_bounded(path, RUN_FILE))
    except (OSError, ValueError):
        return None


def parse(name: str, text: bytes | str) -> ApplyRecord | None:
    """Return the last apply of *name* from the text of its record, or None if that is not valid.

    Keys of a later release are ignored.
    """
    try:
        value = json.loads(text)
        record = from_plain(ApplyRecord, value, name)
    except (ValueError, RecursionError, InvalidInput):
        return None
    paths = (record.python, record.prefix, *record.sites)
    is_valid = (
        record.name == name
        and record.sites
        and all(os.path.isabs(path) and "\0" not in path for path in paths)  # noqa: PTH117 - before each apply
        and all(len(pair) == 2 for pair in record.unmet)  # noqa: PLR2004
    )
    return record if is_valid else None


def require(name: str, home: Path, *, asked: str) -> ApplyRecord:
    """Return the last apply of *name*, which the user calls *asked*.  Raises NotFound if there is none."""
    found = load(name, home)
    if found is None:
        hint = f"Run `{command_line('apply', asked)}` first"
        raise NotFound(f"`{name}` has not been applied here", hint=hint)
    return found


def _path(name: str, home: Path) -> Path:
    return home / _APPLIED / f"{name}.json"


def _own_path(name: str, home: Path) -> Path:
    """Return the path of the record of applies by the colablock of this Python."""
    key = hashlib.sha256(os.fsencode(sys.prefix)).hexdigest()[:16]
    return home / _APPLIED / key / f"{name}.json"
