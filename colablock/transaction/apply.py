"""Apply a plan to the site of an interpreter: stage the files, then change the site in one transaction."""

from __future__ import annotations

import filecmp
import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import machine_errors, make_private
from colablock._common.reporter import Reporter
from colablock._common.text import count
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName
from colablock._version import __version__
from colablock.environment.removable import link_above, packages_of_nobody
from colablock.environment.site import Site, SiteBounds, read_site
from colablock.environment.snapshot import Installed, Snapshot, installed_versions
from colablock.errors import (
    AppliedNotProven,
    ColablockError,
    Interrupted,
    NotRestored,
    Refused,
    RolledBack,
    interrupted_as,
)
from colablock.planning.plan import Action, Plan
from colablock.resolver.origin import direct_origin
from colablock.runtimes.catalog import runtime_of
from colablock.transaction.disk_operations import Operation, OperationKind, Operations
from colablock.transaction.disk_space import check_room, more_room
from colablock.transaction.drift import differences
from colablock.transaction.file_moves import listed_among, moves_in, moves_out, owned_files, source_of
from colablock.transaction.history import (
    CHANGES,
    RECORD,
    STAGE,
    STASH,
    facts_of,
    misplaced,
    next_folder,
)
from colablock.transaction.journal import Journal, preparing
from colablock.transaction.recovery import RecoveryOutcome, recover_locked
from colablock.transaction.site_lock import locked
from colablock.transaction.staging import Staged, room_needed, stage
from colablock.verification.verify import Check

if TYPE_CHECKING:
    from colablock.network.cache import Cache

__all__ = ["ChangeOrigin", "apply_plan", "refuse_externally_managed"]

Prove = Callable[[tuple[str, ...]], tuple[Check, ...]]
FilesCheck = Callable[[Iterable[str], Iterable[str]], tuple[Check, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOrigin:
    """The origin of a plan, for the history; see `history.Change`."""

    stack: str = ""
    lock: str | None = None
    applied_before: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """The arguments of apply_plan that other functions need."""

    plan: Plan
    snapshot: Snapshot
    site: Site
    origin: ChangeOrigin
    reporter: Reporter
    disk: Operations


def apply_plan(
    plan: Plan,
    snapshot: Snapshot,
    files: Mapping[NormalizedName, Path],
    *,
    prove: Prove,
    check_files: FilesCheck | None = None,
    origin: ChangeOrigin | None = None,
    keep: bool = False,
    undo: bool = True,
    break_system_packages: bool = False,
    environ: Mapping[str, str],
    reporter: Reporter | None = None,
    fingerprint: Callable[[], str] | None = None,
    wait: float = 10.0,
    disk: Operations | None = None,
    cache: Cache | None = None,
) -> tuple[Check, ...]:
    """Apply *plan* to the site of ``plan.python`` and return the checks, all of them passed.

    *files* has the wheel of each step that installs.  *prove* is called once the new files are in
    place, with the new folders, in which it may leave bytecode: an undo moves them away as a
    whole.  Before it, *check_files* is called with the folders of the site and the paths that have
    changed.  If a check fails, the change is undone, with two exceptions: with *keep*, and if the
    change cannot be undone because without *undo* it has deleted folders (see `journal.Journal`).
    Failed checks are returned then, too.  *origin* is recorded in the history of the environment.
    *break_system_packages* allows a change of an externally managed environment (PEP 668).
    *fingerprint* returns the fingerprint of the current environment; it is called after staging.
    The store of unpacked wheels is in *cache*.

    Raises Refused, BadDistribution or Unmet before anything is changed,
    RolledBack if the change was undone, and NotRestored if that failed.
    """
    reporter = reporter or Reporter()
    if not break_system_packages:
        refuse_externally_managed(plan, snapshot)
    site = read_site(plan.python, environ)
    change = _Change(
        plan=plan,
        snapshot=snapshot,
        site=site,
        origin=origin or ChangeOrigin(),
        reporter=reporter,
        disk=disk or Operations(),
    )
    with locked(site, wait=wait, reporter=reporter) as state:
        _refuse_recovered(recover_locked(site, change.disk))
        with preparing(state):
            staged = _staged(change, files, state, undo=undo, environ=environ, cache=cache)
            _refuse_changed(change, fingerprint)
            journal = _journal(change, staged, state, undo=undo)
        if check_files is not None:
            prove = partial(_with_files, prove, partial(check_files, *_touched(change, journal)))
        return _run(change, journal, prove, keep=keep)


def _staged(
    change: _Change,
    files: Mapping[NormalizedName, Path],
    state: Path,
    *,
    undo: bool,
    environ: Mapping[str, str],
    cache: Cache | None,
) -> Staged:
    """Stage the wheels of the plan below *state*, if there is room for them and for the undo."""
    plan = change.plan
    copied = plan.undo_cost.bytes if undo and plan.undo_cost is not None else 0
    needed = room_needed(plan.steps, files, state, cache, environ)
    check_room(needed + copied, state, hint=more_room(change.site))
    return stage(
        plan,
        files,
        python=plan.python,
        into=state / STAGE,
        environ=environ,
        reporter=change.reporter,
        site=change.site,
        cache=cache,
    )


def _touched(change: _Change, journal: Journal) -> tuple[tuple[str, str], frozenset[str]]:
    """Return the folders of the site, and the paths that *journal* moves away or puts in place."""
    ends = (
        one.source if one.kind is OperationKind.OUT else one.destination
        for one in journal.operations
        if one.is_move
    )
    return (change.site.purelib, change.site.platlib), frozenset(ends)


def _with_files(
    prove: Prove, check_files: Callable[[], tuple[Check, ...]], own: tuple[str, ...]
) -> tuple[Check, ...]:
    return (*check_files(), *prove(own))


def _new_folders(operations: Iterable[Operation]) -> tuple[str, ...]:
    """Return the folders that *operations*, which have run, have moved in as a whole."""
    ins = (one.destination for one in operations if one.kind is OperationKind.IN)
    return tuple(path for path in ins if not path.endswith(".dist-info") and Path(path).is_dir())


def _refuse_recovered(outcome: RecoveryOutcome | None) -> None:
    """Refuse a plan that was made before an interrupted change was recovered."""
    if outcome is not None:
        raise Refused(
            f"an interrupted change {outcome.value}, so this plan is for another state",
            hint="Run the command again to make a new plan",
        )


def _journal(change: _Change, staged: Staged, state: Path, *, undo: bool) -> Journal:
    """Return the journal that moves the staged files in and the old ones to the stash."""
    folder = next_folder(state)
    operations = _operations(change, staged, folder / STASH)
    wrong = misplaced(SiteBounds(change.site), operations)
    if wrong is not None:
        raise Refused(
            f"`{wrong}` is outside of the environment `{change.site.prefix}`: a symbolic link leads there",
            hint="Remove the link, or use an isolated environment, with `--into env`",
        )
    _refuse_links(change.site, operations)
    return Journal(
        state,
        operations,
        becomes=folder / RECORD,
        facts=_facts(change, operations, state),
        undo=undo,
        disk=change.disk,
        progress=partial(change.reporter.step, "Moving files"),
    )


def _refuse_links(site: Site, operations: Iterable[Operation]) -> None:
    """Raise Refused if a file would be moved through a link in *site*, as to the clone of a package."""
    for folder in {str(Path(one.destination or one.source).parent) for one in operations}:
        for root in {site.purelib, site.platlib}:
            if folder.startswith(f"{root}/") and (link := link_above(folder, root)) is not None:
                raise Refused(
                    f"the plan has files in a folder that is a link: {link}",
                    hint="Remove the link, or use an isolated environment, with `--into env`",
                )


def _run(change: _Change, journal: Journal, prove: Prove, *, keep: bool) -> tuple[Check, ...]:
    distributions = count(len(change.plan.steps), "distribution")
    change.reporter.stage(f"Changing {distributions} in {change.site.prefix}")
    try:
        with machine_errors(), journal:
            journal.run()
            checks = prove(_new_folders(journal.operations))
            failed = [check for check in checks if not check.passed]
            if not failed or keep or journal.is_forward:
                journal.commit()
    except (RolledBack, NotRestored):
        raise
    except KeyboardInterrupt:
        raise Interrupted(journal.state_after()) from None
    except (OSError, ColablockError) as error:
        if journal.is_forward:
            raise AppliedNotProven(f"the change cannot be undone, and it is not proven: {error}") from error
        raise RolledBack(f"the change failed and was undone: {error}") from error
    if failed and not (keep or journal.is_forward):
        raise RolledBack(_word_failures(failed), hint="`--keep` keeps a change whose proof fails")
    with interrupted_as("The change is in place."):
        importlib.invalidate_caches()  # the change may concern this interpreter
    return checks


def _operations(change: _Change, staged: Staged, stash: Path) -> list[Operation]:
    removed = _removed(change)
    staying = [found for found in change.snapshot.everything.values() if found not in removed]
    make_private(stash)
    outs = moves_out(change.site, owned_files(change.site, removed, staying), stash)
    outs += _packages_of_nobody(change, staged, [*removed, *staying], stash, first=len(outs))
    return [*outs, *_without_shared(change, staged, staying, moves_in(staged.tree, outs, stash))]


def _packages_of_nobody(
    change: _Change, staged: Staged, installed: Sequence[Installed], stash: Path, *, first: int
) -> list[Operation]:
    """Return the moves of packages that the plan has, too, and no RECORD lists, to the numbers from *first*.

    A new package in the same folder would have modules of both.  A rollback puts them back.
    """
    standing = {
        f"{place}/{entry.name}"
        for folder, place in staged.tree.places
        if place in (change.site.purelib, change.site.platlib) and Path(folder).is_dir()
        for entry in Path(folder).iterdir()
        if (entry / "__init__.py").is_file()
    }
    here = (path for path in map(Path, sorted(standing)) if path.is_dir() and not path.is_symlink())
    found = packages_of_nobody(map(str, here), installed)
    for path in found:
        change.reporter.note(f"`{path}` belongs to no distribution: moved away until a rollback")
    return [
        Operation(kind=OperationKind.OUT, source=path, destination=str(stash / f"{number}"))
        for number, path in enumerate(found, start=first)
    ]


def _without_shared(
    change: _Change, staged: Staged, staying: Sequence[Installed], ins: list[Operation]
) -> list[Operation]:
    """Return *ins* without moves that would replace a file of a protected distribution by an identical one.

    Notes the files of other distributions that are replaced.  Raises Refused if
    a file of a protected distribution would change.
    """
    outs = {operation.source for operation in ins if operation.kind is OperationKind.OUT}
    comes = {
        operation.destination: operation.source for operation in ins if operation.kind is OperationKind.IN
    }
    whole: set[str] = set()
    replaced: list[str] = []
    for installed in staying if outs else ():
        listed = listed_among(change.site, installed, outs)
        others = sorted(path for path in listed & comes.keys() if not _is_same(comes[path], path))
        if installed.name not in change.snapshot.protected:
            replaced += [f"`{path}` of `{installed.name}`" for path in others]
        elif others:
            raise Refused(
                f"`{others[0]}` of the protected distribution `{installed.name}` would be replaced"
                f" by the one of {staged.owner(comes[others[0]])}",
                hint="Use an isolated environment, with `--into env`",
            )
        else:
            whole |= listed
    if replaced:
        more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        change.reporter.note(f"{replaced[0]}{more}: replaced by a file of the plan with the same path")
    whole |= {path for path in outs if source_of(path) in whole}
    return [one for one in ins if not {one.source, one.destination} & whole]


def _is_same(staged: str, standing: str) -> bool:
    """Return whether two paths are regular files with the same content."""
    are_files = all(Path(path).is_file() and not Path(path).is_symlink() for path in (staged, standing))
    return are_files and filecmp.cmp(staged, standing, shallow=False)


def _facts(change: _Change, operations: Sequence[Operation], state: Path) -> dict[str, object]:
    is_first = not any(state.glob(f"{CHANGES}/*/{RECORD}"))
    return facts_of(
        change.plan.steps,
        operations,
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        matrix=change.plan.matrix,
        before=installed_versions((change.site.purelib, change.site.platlib)),
        origins={
            name: origin
            for name, there in change.snapshot.installed.items()
            if (origin := direct_origin(there)) is not None
        },
        runtime=runtime_of(change.snapshot) if is_first else None,
        colablock=__version__,
        **asdict(change.origin),
    )


def _removed(change: _Change) -> list[Installed]:
    """Return the distributions to remove, with every other record in the site that has one of their names.

    One in another site is shadowed instead, as pip does.
    """
    names = {step.name for step in change.plan.steps}
    removed = [
        found
        for found in change.snapshot.other_records()
        if found.name in names and _is_in_site(change.site, found)
    ]
    for step in change.plan.steps:
        installed = change.snapshot.everything.get(step.name)
        if step.action is Action.INSTALL or installed is None:
            continue
        if installed.path is None or _is_in_site(change.site, installed):
            removed.append(installed)
        elif step.action is Action.REPLACE:
            change.reporter.note(f"`{installed.path}` stays; the new version precedes it on the import path")
        else:
            raise Refused(
                f"`{installed.name}` {installed.version} is installed in `{Path(installed.path).parent}`, "
                f"outside of `{change.site.data}`",
                hint="Use an isolated environment, with `--into env`",
            )
    return removed


def _is_in_site(site: Site, installed: Installed) -> bool:
    """Whether the metadata folder of *installed* stands in a folder of *site*, as a folder or as a link."""
    return bool(installed.path) and site.holds(os.path.realpath(Path(str(installed.path)).parent) + os.sep)


def refuse_externally_managed(plan: Plan, snapshot: Snapshot) -> None:
    """Raise Refused if a plan would change an externally managed environment (PEP 668)."""
    if plan.steps and snapshot.externally_managed is not None:
        raise Refused(
            f"`{snapshot.prefix}` is externally managed (PEP 668): {snapshot.externally_managed.strip()}",
            hint="Use an isolated environment, with `--into env`; `--break-system-packages` "
            "(`break_system_packages=True`) overrides this",
        )


def _refuse_changed(change: _Change, fingerprint: Callable[[], str] | None) -> None:
    if fingerprint is None or fingerprint() == change.plan.fingerprint:
        return
    found = _differences(change)
    lines = [f"`{change.site.prefix}` has changed since the plan was made", *found]
    raise Refused("\n  ".join(lines), hint="Run the command again to make a new plan")


def _differences(change: _Change) -> list[str]:
    """Return the differences to the snapshot, according to the names of the .dist-info folders."""
    folders = (change.site.purelib, change.site.platlib)
    before = {
        name: installed.version
        for name, installed in change.snapshot.installed.items()
        if installed.path
        and installed.path.endswith(".dist-info")
        and os.path.realpath(Path(installed.path).parent) in folders
    }
    return differences(before, installed_versions(folders))


def _word_failures(failed: Sequence[Check]) -> str:
    lines = [f"{count(len(failed), 'proof')} failed, and the change was undone"]
    for check in failed:
        lines.append(f"  {check.kind} `{check.subject}`")
        lines += [f"    {line}" for line in check.detail.splitlines()]
    return "\n".join(lines)
