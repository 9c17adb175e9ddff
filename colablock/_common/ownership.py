"""Whether other users can change a folder, so that what is kept in it cannot be believed.

Kept state decides which code runs: a cache has wheels, a home has interpreters,
and a journal has files to move.  colablock trusts a folder of kept state only
if its owner is trusted and nobody else can write to it or replace it:

- Trusted owners are this user, root, and, for root, the user who called sudo
  (``SUDO_UID``, as git does).
- The permission bits give write access to the owner alone, or to a group
  without other members: the owner's private group, or the group of root.
- The same holds for all folders above it and all symbolic links on the way.  A
  folder with the sticky bit, such as ``/tmp``, may be writable.  ``HOME`` and
  the folders above it may belong to anybody: whoever owns them also owns the
  settings of pip and the shell.  This is how root works in a container whose
  home comes from the host.

Access control lists and mounts that hide the real permissions are not seen.
"""

# Every call of colablock checks a few paths: strings are faster.
# ruff: noqa: PTH100, PTH115, PTH116, PTH118, PTH120

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path

from colablock.errors import InvalidInput

__all__ = ["distrust", "fault_of", "planted", "require_trusted", "trusted_owners"]

_LINKS = 40  # symbolic links in one path, the limit of Linux
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def trusted_owners() -> frozenset[int]:
    """Return the user ids whose files may be believed."""
    own = os.geteuid()
    sudo = os.environ.get("SUDO_UID", "") if own == 0 else ""
    return frozenset({own, 0, *([int(sudo)] if sudo.isascii() and sudo.isdecimal() else [])})


def distrust(path: str | Path, *, below: str | Path | None = None) -> str | None:
    """Return why the folder or file *path* is not trusted, or None if it is, or does not exist yet.

    The reason names the part of the path at fault: "`/data` can be written by
    everybody".  With *below*, the folder that the user works in, its owner is
    trusted, too, and the folders above it are not looked at.  Always returns
    None on Windows, whose permissions differ.
    """
    if sys.platform == "win32":
        return None
    trusted = trusted_owners()
    home = os.path.realpath(os.environ.get("HOME") or "/")
    above_home = {home, *map(str, Path(home).parents)}
    try:
        start = os.path.abspath(below) if below is not None else ""
        full = os.path.abspath(os.path.join(start, path))
        if below is not None:
            trusted |= {os.stat(start).st_uid}
            start = start if full.startswith(start.rstrip("/") + "/") else ""
        for place, status, is_last in _parts(full, start or "/"):
            owners = {status.st_uid} if place in above_home and not is_last else trusted
            is_sticky = status.st_mode & stat.S_ISVTX and not is_last
            why = fault_of(status, owners, allowed=_WRITABLE_BY_OTHERS if is_sticky else 0)
            if why:
                return f"`{place}` {why}"
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        if error.errno == errno.ELOOP:
            return f"`{path}` has too many symbolic links"
        raise
    return None


def require_trusted(path: str | Path, *, what: str, hint: str, below: str | Path | None = None) -> None:
    """Raise InvalidInput if other users can change *path*; *what* names its purpose.

    An error of the operating system is left to the caller that uses the path.
    """
    try:
        why = distrust(path, below=below)
    except OSError:
        return
    if why is not None:
        raise InvalidInput(f"`{path}`, {what}, is not used: {why}", hint=hint)


def fault_of(status: os.stat_result, owners: Collection[int], *, allowed: int = 0) -> str | None:
    """Return why others can change the file or folder with that *status*, for "`X` ...", or None.

    *allowed* are write permissions (bits of the mode) that are no fault.
    """
    if status.st_uid not in owners:
        return f"belongs to another user ({_user(status.st_uid)})"
    writable = 0 if stat.S_ISLNK(status.st_mode) else status.st_mode & _WRITABLE_BY_OTHERS & ~allowed
    if writable & stat.S_IWOTH:
        return "can be written by everybody"
    if writable & stat.S_IWGRP and not _is_private(status.st_uid, status.st_gid):
        return f"can be written by the group {_group(status.st_gid)}"
    return None


def planted(path: str | Path) -> str | None:
    """Return why writing to *path* could write elsewhere than the user expects, or None.

    In a folder with the sticky bit that others can write to, such as ``/tmp``, a
    symbolic link, pipe or device of another user may be a trap.  The owner of
    the folder is trusted.  Linux has the same rule (``fs.protected_symlinks``),
    which containers and older systems turn off.
    """
    if sys.platform == "win32":
        return None
    try:
        for place, status, _ in _parts(os.path.abspath(path), "/"):
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                continue
            folder = os.lstat(os.path.dirname(place))
            is_shared = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
            if is_shared and status.st_uid not in {os.geteuid(), folder.st_uid}:
                kind = "link" if stat.S_ISLNK(status.st_mode) else "pipe or device"
                return f"`{place}` is a {kind} that another user ({_user(status.st_uid)}) has put there"
    except OSError:
        pass  # it does not exist yet, or cannot be written: the caller finds out
    return None


def _parts(path: str, start: str) -> Iterator[tuple[str, os.stat_result, bool]]:
    """Yield each folder and symbolic link from *start* to *path*, its status, and whether it is the last.

    Raises OSError at the first one that does not exist.
    """
    waiting = [part for part in reversed(path[len(start) :].split("/")) if part]
    place, links = start, 0
    yield place, os.lstat(place), not waiting
    while waiting:
        part = waiting.pop()
        if part in (".", ".."):
            place = os.path.dirname(place) if part == ".." else place
            continue
        inner = os.path.join(place, part)
        status = os.lstat(inner)
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            yield inner, status, False
            target = os.readlink(inner)
            place = "/" if target.startswith("/") else place
            waiting += [name for name in reversed(target.split("/")) if name]
        else:
            place = inner
            yield place, status, not waiting


@lru_cache(maxsize=64)
def _is_private(user: int, group: int) -> bool:
    """Whether *group* has no member but *user*: the group of root, or the user's private group."""
    if group == 0:
        return True
    import grp  # noqa: PLC0415 - only for folders that a group can write to
    import pwd  # noqa: PLC0415

    try:
        facts = grp.getgrgid(group)
    except KeyError:  # a container without an entry for the users of its host
        return group == user
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        return False
    return facts.gr_name == name and set(facts.gr_mem) <= {name}


def _user(user: int) -> str:
    import pwd  # noqa: PLC0415 - only for a message

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _group(group: int) -> str:
    import grp  # noqa: PLC0415 - only for a message

    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)
