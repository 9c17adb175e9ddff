"""The last apply of a matrix: its record, what has changed since, and its proof once more."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.text import command_line, count, option_words, some_of
from colablock._vendor.packaging.utils import NormalizedName
from colablock._version import __version__
from colablock.environment.accelerator import Accelerator, detect
from colablock.environment.dependency_graph import DependencyGraph
from colablock.environment.site import is_unfinished, python_words
from colablock.environment.snapshot import Snapshot, installed_versions, snapshot_of
from colablock.errors import InvalidInput, NotFound, Refused
from colablock.matrix.model import select_variant
from colablock.matrix.reader import is_path
from colablock.operations.session import Session
from colablock.planning.plan import Target
from colablock.transaction import apply_record as applied
from colablock.transaction.apply_record import ApplyRecord
from colablock.transaction.drift import SINCE, Drift, find_drifts, notes_of
from colablock.transaction.serialise import report_from_json
from colablock.verification.origins import hidden_imports

if TYPE_CHECKING:
    from colablock.training.evidence import ApplyReceipt
    from colablock.verification.verify import Check, Report

__all__ = [
    "apply_again",
    "checks_note",
    "drifts_since",
    "last_apply",
    "last_report",
    "receipt_of",
    "requirements_to_hold",
    "verify_last_apply",
]

_SHOWN = 3  # damaged distributions in a note
# The kinds of checks that depend on what a call has done, and what they say.
_OF_CHANGE = {"files": "that all files are there", "breakage": "that nothing else is broken"}


def last_apply(session: Session, name: str) -> ApplyRecord:
    """Return the record of the last apply of the matrix *name*, a name or a path.

    An interrupted later change of that environment is recovered first.  Raises
    NotFound where the matrix has not been applied.
    """
    last = None if is_path(name) else applied.load(name, session.home)
    # A matrix that was applied by its path is recorded under its name.
    last = last or applied.require(session.matrix(name).name, session.home, asked=name)
    if not os.path.isfile(last.python):  # noqa: PTH113 - before each run
        message = f"no environment has `{last.name}` any more: there is no `{last.python}`"
        raise NotFound(message, hint=f"Run `{_requested(last)}` to make it again")
    here = os.path.realpath(sys.prefix)  # its path, and that of a record, may have links
    is_elsewhere = last.caller and here not in map(os.path.realpath, (last.caller, last.prefix))
    if is_elsewhere and not applied.has_applied(last.name, session.home, last.prefix):
        session.reporter.note(
            f"using another environment, `{last.prefix}`, where `{last.name}` was applied last:"
            f" `{_requested(last)}` applies it here"
        )
    if last.target == Target.KERNEL.value and is_unfinished(last.prefix, last.sites[0]):
        from colablock.operations.rollback import recover_interrupted  # noqa: PLC0415 - hardly ever needed

        recover_interrupted(session, last.python)
    return last


def drifts_since(session: Session, last: ApplyRecord, snapshot: Snapshot | None = None) -> tuple[Drift, ...]:
    """Return what has changed in the environment of *last* since that apply.

    *snapshot* is used where it shows that environment; else a new one is taken.
    """
    now = installed_versions(last.sites)
    if not (now and last.versions) or now == last.versions:
        return ()
    if snapshot is None or snapshot.site not in last.sites:
        try:
            snapshot = snapshot_of(Path(last.python), environ=session.environ, accelerator=Accelerator())
        except (InvalidInput, NotFound):
            return ()  # the environment is gone, or no longer one
    return find_drifts(last.versions, now, snapshot, last.pins)


def last_report(last: ApplyRecord) -> Report:
    """Return the report of *last*.  Raises InvalidInput if its record is damaged."""
    try:
        return report_from_json(last.report)
    except InvalidInput as error:
        raise InvalidInput(
            f"the record of the last apply of `{last.name}` is damaged: {error}",
            hint=f"Run `{apply_again(last)}` again",
        ) from error


def requirements_to_hold(last: ApplyRecord, kernel: Snapshot) -> frozenset[tuple[NormalizedName, str]]:
    """Return the requirements that *last* proved to hold and that *kernel* no longer meets."""
    if kernel.site not in last.sites or not last_report(last).passed:
        return frozenset()
    there = kernel.installed
    unchanged = [name for name, pin in last.pins.items() if name in there and there[name].version == pin]
    unmet = DependencyGraph.of(kernel).unmet_lines(unchanged)
    return unmet - frozenset((NormalizedName(name), line) for name, line in last.unmet)


def verify_last_apply(session: Session, name: str) -> Report:
    """Return the report of the last apply of *name* with new checks.

    A pin whose version has changed since fails its check, and the check tells
    the cause.  Raises NotFound where the matrix has not been applied.
    """
    from colablock.verification.verify import files_checks, prove  # noqa: PLC0415 - a plan proves nothing

    last = last_apply(session, name)
    matrix = select_variant(session.matrix(last.source or name), detect(session.environ), last.variant)
    started = time.monotonic()
    files = files_checks(last.sites, last.pins)
    proofs = prove(
        last.python,
        verify=matrix.verify,
        pins=last.pins,
        environ=session.environ,
        expected_unmet=last.unmet,
        earlier=len(files),
        reporter=session.reporter,
    )
    hidden = hidden_imports(matrix.verify.imports, session.environ, last.sites[0])
    for told in hidden.values() if last.target == Target.KERNEL.value else ():
        session.reporter.note(told)
    drifts = drifts_since(session, last)
    causes = {str(drift.name): drift.text for drift in drifts if drift.is_pin}
    checks = tuple(_with_cause(check, causes) for check in (*files, *proofs))
    recorded = last_report(last)
    notes = (*recorded.notes, *notes_of(drifts, with_pins=False))
    if matrix.digest != last.matrix_digest:
        notes = (
            *notes,
            f"{matrix.name} has changed since it was applied: the checks are those of its current version",
        )
    elif note := checks_note(recorded.checks, checks):
        notes = (*notes, note)
    if note := _restoring(last, checks):
        notes = (*notes, note)
    return replace(recorded, checks=checks, changed=False, seconds=time.monotonic() - started, notes=notes)


def apply_again(last: ApplyRecord, *more: str) -> str:
    """Return the command that makes the request of *last* again, in the same environment."""
    if last.target == Target.ENV.value:
        return _requested(last, *more)
    where = ("--into", Target.KERNEL.value, *python_words(last.python, last.prefix))
    return _requested(last, *where, *more)


def _requested(last: ApplyRecord, *more: str) -> str:
    return command_line("apply", *(last.request or (last.source or last.name,)), *more)


def _restoring(last: ApplyRecord, checks: Sequence[Check]) -> str:
    """Return which command mends what failed *checks* of *last* found; "" if none of them does.

    An apply compares versions, so it does not find a damaged file, and takes an environment as it is.
    """
    failed = {one.kind for one in checks if not one.passed}
    if "version" in failed:
        return f"`{apply_again(last)}` restores the versions of the stack"
    if failed and last.target == Target.ENV.value:
        remove = command_line("env", "remove", last.name)
        return f"after `{remove}`, `{apply_again(last)}` builds the environment anew"
    damaged = [one.subject for one in checks if one.kind == "files" and not one.passed]
    if damaged:
        command = apply_again(_with_files(last, damaged), *option_words({"--reinstall": damaged}))
        return f"`{command}` installs {some_of(damaged, _SHOWN)} again"
    if "import" in failed:
        command = apply_again(last, "--reinstall", "PKG")
        return f"`{command}` installs a package again whose files are damaged"
    return ""


def _with_files(last: ApplyRecord, names: Sequence[str]) -> ApplyRecord:
    """Return *last* without its lock if that is a delta over one of *names*, of which it has no file.

    In place of a bundle with such a lock it has the matrix of the bundle.
    """
    from colablock.bundles.reader import Bundle  # noqa: PLC0415 - few applies name a bundle
    from colablock.lockfile.store import read_head  # noqa: PLC0415 - or a lock

    words = list(last.request)
    option = next((one for one in ("--lock", "--bundle") if one in words), None)
    if option is None:
        return last
    at = words.index(option)
    lock = Path(words[at + 1])
    matrix: tuple[str, ...] = ()
    if option == "--bundle":
        try:
            manifest = Bundle.open(lock).manifest
        except InvalidInput:  # it is gone
            return last
        lock = Path(last.source).with_name(manifest.lock_file)
        matrix = (last.source, *option_words({"--variant": manifest.variant, "--with": manifest.with_}))
    head = read_head(lock)
    if head is None or head.assumes.keys().isdisjoint(names):
        return last
    return replace(last, request=(*matrix, *words[:at], *words[at + 2 :]))


def checks_note(before: Sequence[Check], now: Sequence[Check]) -> str:
    """Return why the checks *now* are not as many as those of an earlier apply; "" if they are.

    A change is checked for its files and for what it breaks.  The files of a new environment have just been
    written, so only a later `verify` checks them.
    """
    if len(before) == len(now) or not all(one.passed for one in (*before, *now)):
        return ""
    earlier, later = {one.kind for one in before}, {one.kind for one in now}
    gone = [text for kind, text in _OF_CHANGE.items() if kind in earlier - later]
    new = [text for kind, text in _OF_CHANGE.items() if kind in later - earlier]
    why = [f"{' and '.join(gone)} is checked after a change only"] if gone else []
    why += [f"{' and '.join(new)} is checked here, too"] if new else []
    return f"the apply made {count(len(before), 'check')}: {'; '.join(why)}" if why else ""


def receipt_of(session: Session, name: str, report: Report) -> ApplyReceipt:
    """Return the receipt of the last apply of *name*, whose checks passed as *report* says.

    It has the checks, versions and the card, and nothing about the user or this machine.  Raises
    Refused if the file of the matrix has changed since, as the checks are then not those of that apply.
    """
    from colablock.training.evidence import ApplyReceipt  # noqa: PLC0415 - asked for only

    last = last_apply(session, name)
    if session.matrix(last.source or name).digest != last.matrix_digest:
        raise Refused(
            f"{last.name} has changed since it was applied, and a receipt is of the applied file",
            hint=f"Run `{apply_again(last)}` again, then verify it",
        )
    devices = detect(session.environ).devices
    return ApplyReceipt(
        matrix=last.name,
        matrix_digest=last.matrix_digest,
        variant=last.variant,
        lock=report.lock_digest,
        target=last.target,
        python_version=report.python_version,
        card=devices[0].name if devices else "cpu",
        checks=sum(not one.skipped for one in report.checks),
        imports=tuple(one.subject for one in report.checks if one.kind == "import" and not one.skipped),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        colablock=__version__,
        versions={str(project): version for project, version in last.pins.items()},
        runtime=session.environ.get("COLAB_RELEASE_TAG"),
    )


def _with_cause(check: Check, causes: Mapping[str, str]) -> Check:
    """Add to a failed check of a version what has changed since the apply."""
    if check.passed or check.kind != "version" or check.subject not in causes:
        return check
    return replace(check, detail=f"{check.detail}\n{SINCE}{causes[check.subject]}")
