"""Which installed distributions can be removed or replaced where they are, and why others cannot.

A distribution is removed by its RECORD.  Without one its files are not known, and a new version laid
over them would leave modules of both.
"""

# Paths stay strings: a distribution records up to 20,000 files.
# ruff: noqa: PTH110, PTH113, PTH114, PTH115, PTH118, PTH119, PTH120, PTH208

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colablock.environment.record import Row, read_record, readable_rows, recorded_paths

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Installed, Snapshot

__all__ = [
    "is_out_of_reach",
    "link_above",
    "own_files",
    "packages_of_nobody",
    "precedes_site",
    "removable_rows",
    "removal_hint",
    "why_irremovable",
]

_MODULES = (".py", ".so", ".pyd")
_UNKNOWN = "so its files are not known"


def why_irremovable(snapshot: Snapshot, name: NormalizedName) -> str | None:
    """Return why the files of *name* in the site of *snapshot* cannot be removed; None if they can be.

    Of a recorded runtime nothing is known against it.  What is out of reach is not in the site.
    """
    there = snapshot.unreadable.get(name) or snapshot.installed.get(name)
    records = [*([there] if there is not None else ()), *snapshot.other_records(name)]
    here = [one for one in records if one.path and not is_out_of_reach(snapshot, one)]
    is_listed = False
    for one in here:
        rows, why = removable_rows(one.path)
        why = why or _misplaced(str(one.path), rows, snapshot.roots)
        if why is not None:
            return why
        is_listed = is_listed or bool(rows)
    beside = os.path.join(snapshot.site, name.replace("-", "_"))
    if snapshot.roots and os.path.islink(beside):
        return _link_text(beside)
    if here and not is_listed and os.path.exists(beside):
        return f"`{here[0].path}` has no RECORD, {_UNKNOWN}"
    return None


def is_out_of_reach(snapshot: Snapshot, installed: Installed) -> bool:
    """Whether *installed* lies outside of the folders that the interpreter installs into.

    So does what the base of a virtual environment has, the user site, and the packages of Debian.
    """
    if installed.path is None or not snapshot.roots:
        return False
    return not _is_below(f"{os.path.realpath(os.path.dirname(installed.path))}/", snapshot.roots)


def precedes_site(snapshot: Snapshot, installed: Installed) -> bool:
    """Whether *installed* comes before the site on the import path, so that it hides what is there."""
    order = {os.path.realpath(folder): at for at, folder in reversed(list(enumerate(snapshot.search_path)))}
    own, site = (os.path.realpath(one) for one in (os.path.dirname(installed.path or ""), snapshot.site))
    return order.get(own, len(order)) < order.get(site, len(order))


def removable_rows(path: str | None) -> tuple[Sequence[Row], str | None]:
    """Return the RECORD of the metadata folder *path*, and why it does not tell the files; None if it does.

    A folder without metadata, which an interrupted installation leaves, owns what its RECORD lists, if any.
    """
    if path is None:
        return (), "its metadata folder is not known"
    if os.path.islink(path):
        return (), _link_text(path)
    if path.endswith(".egg-info") or os.path.basename(path) == "EGG-INFO":
        return (), f"it was installed by `setup.py` and has no RECORD, {_UNKNOWN}"
    is_whole = os.path.isfile(os.path.join(path, "METADATA"))
    try:
        rows = read_record(Path(path))
    except OSError as error:
        return (), f"its RECORD cannot be read ({error.strerror}), {_UNKNOWN}"
    if not is_whole:
        return rows or (), None
    if rows is None:
        return (), f"it has no RECORD, {_UNKNOWN}"
    if not rows:
        return (), f"its RECORD is empty, {_UNKNOWN}"
    if not any(row.path.endswith(".dist-info/METADATA") for row in rows):
        return (), f"its RECORD is not complete, {_UNKNOWN}"
    return rows, None


def own_files(path: str) -> Iterator[str]:
    """Yield every file in the metadata folder *path*, or the folder if it has none.

    RECORD never lists a signature of itself.
    """
    if not any(names for _, _, names in os.walk(path)):
        yield path
    for folder, folders, names in os.walk(path):
        yield from (f"{folder}/{name}" for name in names)
        yield from (f"{folder}/{name}" for name in folders if os.path.islink(f"{folder}/{name}"))


def packages_of_nobody(folders: Iterable[str], installed: Iterable[Installed]) -> list[str]:
    """Return those *folders* in a site that have modules of which no RECORD lists one.

    The RECORD of such a package was deleted, and its files were not.
    """
    left = {folder for folder in folders if any(name.endswith(_MODULES) for name in os.listdir(folder))}
    records = [(os.path.realpath(os.path.dirname(one.path)), one) for one in installed if one.path]
    for site, one in records if left else ():
        left.difference_update(f"{site}/{name}" for name in one.import_names)
    for site, one in records:
        if not left:
            break
        rows = readable_rows(Path(str(one.path)))
        left.difference_update({f"{site}/{row.path.partition('/')[0]}" for row in rows})
    return sorted(left)


def removal_hint(installed: Installed) -> str:
    """Return how the user can make *installed* removable."""
    if installed.installer and installed.installer not in ("pip", "uv", "colablock"):
        return f"Remove it with `{installed.installer}`, which installed it"
    if installed.path and installed.path.endswith(".dist-info") and not os.path.islink(installed.path):
        return (
            f"Run `pip install --ignore-installed --no-deps {installed.name}=={installed.version}`, "
            "which writes a RECORD, and try again"
        )
    return "Use an isolated environment, with `--into env`"


def _misplaced(path: str, rows: Sequence[Row], roots: Sequence[str]) -> str | None:
    """Return which of *rows* lies behind a link in the site, or outside of *roots*; None if none does."""
    site = os.path.dirname(path)
    judged: dict[str, str | None] = {}
    real = {site: os.path.realpath(site)}
    for file in recorded_paths(site, rows):
        folder = file.rpartition("/")[0]
        if folder not in judged:
            resolved = _resolved(folder, site, real)
            is_linked = folder.startswith(site) and resolved != real[site] + folder[len(site) :]
            judged[folder] = link_above(folder, site) if is_linked else None
            if judged[folder] is None and not _is_below(f"{resolved}/", roots):
                judged[folder] = f"it lists `{file}`, outside of `{roots[0]}`"
        if (why := judged[folder]) is not None and os.path.lexists(file):
            return why
    return None


def _resolved(folder: str, site: str, known: dict[str, str]) -> str:
    """Return *folder* with its links resolved.  *known* are the folders that were resolved before."""
    if folder in known:
        return known[folder]
    if not folder.startswith(f"{site}/"):
        known[folder] = os.path.realpath(folder)
        return known[folder]
    path = site
    for part in folder[len(site) + 1 :].split("/"):
        above, path = path, f"{path}/{part}"
        if path not in known:
            below = f"{known[above]}/{part}"
            known[path] = os.path.realpath(below) if os.path.islink(below) else below
    return known[folder]


def link_above(folder: str, site: str) -> str | None:
    """Return the link between *site* and *folder*, as text; None if there is none."""
    while len(folder) > len(site) and folder.startswith(site):
        if os.path.islink(folder):
            return _link_text(folder)
        folder = os.path.dirname(folder)
    return None


def _link_text(path: str) -> str:
    return f"`{path}` is a symbolic link to `{os.readlink(path)}`"


def _is_below(path: str, roots: Sequence[str]) -> bool:
    return any(path.startswith(root.rstrip("/") + "/") for root in roots)
