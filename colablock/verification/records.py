"""Prove that the files of a change are as the RECORDs say, also those of distributions that stay."""

# The paths of all files of a change stay strings: path objects would take seconds.
# ruff: noqa: PTH116, PTH119

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.text import count, some_of
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.record import Row, read_record, recorded_paths, row_differs
from colablock.environment.requirements import same_version
from colablock.planning.plan import Plan, Remedy
from colablock.planning.shared_files import families, modules_of
from colablock.verification.verify import Check, first_lines

if TYPE_CHECKING:
    from colablock.planning.shared_files import Claim

__all__ = ["record_checks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """A distribution whose RECORD lists files that the change touched."""

    name: NormalizedName
    version: str
    site: str
    rows: Mapping[str, Row]  # by absolute path, without bytecode

    def claim(self) -> Claim:
        start = len(self.site) + 1
        return modules_of(self.name, self.site, (path[start:] for path in self.rows))


@dataclass(slots=True)
class _Touched:
    """The paths that a change has moved, files and whole folders."""

    paths: frozenset[str]
    _folders: dict[str, bool] = field(default_factory=dict)

    def __contains__(self, path: str) -> bool:
        return path in self.paths or self._is_below(path.rpartition("/")[0])

    def _is_below(self, folder: str) -> bool:
        if folder not in self._folders:
            above = folder.rpartition("/")[0]
            self._folders[folder] = folder in self.paths or (bool(above) and self._is_below(above))
        return self._folders[folder]


def record_checks(sites: Iterable[str], touched: Iterable[str], plan: Plan) -> tuple[Check, ...]:
    """Return a failed check for each distribution that is not whole, or one passed check.

    *touched* are the paths that the change has moved away or put in place: files, or whole folders.
    Of a distribution that the plan installs, every file exists with its recorded size; its contents
    were compared before it was moved.  Of another one whose RECORD lists a touched file, that file
    has the recorded hash.  A file that several distributions list is as one of them records it.
    Two builds of one package have the same version then.  Distributions that *plan* lists as left
    broken are not checked.
    """
    started = time.monotonic()
    moved = _Touched(frozenset(touched))
    ours = {step.name for step in plan.steps}
    left = {item.name for item in plan.breakages if item.remedy is Remedy.LEAVE}
    found = [one for site in dict.fromkeys(sites) for one in _listing(site, moved)]
    owners: defaultdict[str, list[_Recorded]] = defaultdict(list)
    for one in found:
        for path in one.rows:
            owners[path].append(one)
    failed, taken = [], []
    for one in found:
        paths = one.rows if one.name in ours else [path for path in one.rows if path in moved]
        lines, foreign = _compare(one, paths, owners)
        lines += _mixed(one, foreign)
        taken += [
            f"{os.path.basename(path)} of {one.name} is that of {its.name}" for path, its in foreign.items()
        ]
        if lines and one.name not in left:
            failed.append(Check(kind="files", subject=one.name, passed=False, detail=first_lines(lines)))
    if failed:
        return tuple(failed)
    subject = count(len(found), "distribution")
    detail = some_of(sorted(taken), 1)
    return (
        Check(kind="files", subject=subject, passed=True, detail=detail, seconds=time.monotonic() - started),
    )


def _compare(
    one: _Recorded, paths: Iterable[str], owners: Mapping[str, Sequence[_Recorded]]
) -> tuple[list[str], dict[str, _Recorded]]:
    """Return a line for each wrong file, and the files that are as another distribution records them."""
    wrong: list[str] = []
    foreign: dict[str, _Recorded] = {}
    for path in paths:
        row, others = one.rows[path], owners[path]
        try:
            size = str(os.stat(path).st_size)
        except (OSError, ValueError):  # a null character in a path
            wrong.append(f"`{path}` is missing")
            continue
        if len(others) == 1:
            if row.size not in ("", size):
                wrong.append(f"`{path}` has {size} bytes instead of {row.size}")
        elif row_differs(Path(path), row):
            owner = next((other for other in others if not row_differs(Path(path), other.rows[path])), None)
            if owner is None:
                wrong.append(f"`{path}` differs from its RECORD")
            else:
                foreign[path] = owner
    return wrong, foreign


def _mixed(one: _Recorded, foreign: Mapping[str, _Recorded]) -> list[str]:
    """Return a line for each file that is of another version of the same package."""
    versions = {owner.name: owner for owner in foreign.values()}
    others = {name: its for name, its in versions.items() if not same_version(its.version, one.version)}
    builds = families((), [one.claim(), *(other.claim() for other in others.values())]) if others else {}
    return [
        f"`{path}` is that of {owner.name} {owner.version}"
        for path, owner in foreign.items()
        if owner.name in others and owner.name in builds.get(one.name, ())
    ]


def _listing(site: str, touched: _Touched) -> Iterator[_Recorded]:
    """Yield the distributions in the folder *site* whose RECORD lists a touched file."""
    for info in sorted(Path(site).glob("*.dist-info")):
        try:
            rows = [row for row in read_record(info) or () if not row.path.endswith(".pyc")]
        except OSError:
            continue
        if not any(row.path == f"{info.name}/METADATA" for row in rows):
            continue  # renamed, by pip to remove it (`~emo-1.0.dist-info`) or by hand: its files have gone
        paths = list(recorded_paths(site, rows))
        if any(path in touched for path in paths):
            name, _, version = info.name.removesuffix(".dist-info").partition("-")
            by_path = dict(zip(paths, rows, strict=True))
            yield _Recorded(name=canonicalize_name(name), version=version, site=site, rows=by_path)
