"""The words and groups that every display shares: headlines, what folds.

Pure functions over plans and reports; the terminal and the notebook only lay
out what is decided here, so both tell the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from colablock._common.text import count, seconds_text, size_text, some_of
from colablock.planning.plan import Action, Remedy, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from colablock.planning.plan import Breakage, Plan, Step
    from colablock.transaction.history import Change
    from colablock.transaction.isolated_envs import BuiltEnvironment
    from colablock.transaction.rollback import UndoneChange
    from colablock.verification.verify import Check, Report

__all__ = [
    "FOLD",
    "breakage_heading",
    "breakage_text",
    "built_details",
    "built_title",
    "chain_text",
    "change_details",
    "change_title",
    "checks_in_short",
    "clean",
    "cost_text",
    "one_line",
    "plan_notes",
    "plan_title",
    "remedy_text",
    "report_headline",
    "rest_heading",
    "restart_text",
    "run_command",
    "split_steps",
    "step_extras",
    "step_reason",
    "step_text",
    "undone_words",
]

FOLD = 12  # a list of details longer than this is shown in compact form
FOLD_REMOVALS = 40  # what is taken away keeps its reasons for longer

_CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
_SMALL = 9.95  # below this a decimal is worth its place
_MINUTE = 60
_MARKER = re.compile(
    r"\s*;\s*\(*(?:(?:python|platform|implementation)_\w+|os_name|sys_platform|extra)\s*(?:[<>=!~]|not|in\b)"
    r".*?(?=: |, |$)"
)


def clean(text: str) -> str:
    """Return *text* without control characters: metadata and tracebacks must not steer a terminal."""
    return text.translate(_CONTROL).expandtabs(4)


def one_line(text: str) -> str:
    """Return *text* with every run of white space as one space."""
    return " ".join(clean(text).split())


def plan_title(plan: Plan) -> str:
    """Return matrix, variant and target: ``qlora-2024 (cu121) into the kernel``."""
    where = "the kernel" if plan.target is Target.KERNEL else "an isolated environment"
    variant = f" ({plan.variant})" if plan.variant else ""
    return f"{plan.matrix}{variant} into {where}"


def cost_text(plan: Plan) -> str:
    """Return what the plan does in numbers: changes, bytes to fetch, restart or not."""
    if not plan.steps:
        return "nothing to do"
    changes = ", ".join(
        f"{action.value} {number}"
        for action in Action
        if (number := sum(step.action is action for step in plan.steps))
    )
    parts = [changes, _fetch_text(plan)]
    if plan.target is Target.KERNEL:
        parts.append("then restart the kernel" if plan.needs_restart else "no restart")
    return "; ".join(part for part in parts if part)


def _fetch_text(plan: Plan) -> str:
    artifacts = [step.artifact for step in plan.steps if step.artifact]
    unknown = sum(artifact.size is None for artifact in artifacts)
    if not artifacts:
        return ""
    if unknown == len(artifacts):
        return f"fetch {count(unknown, 'file')} of unknown size"
    least = f"at least {size_text(plan.fetch_size)} ({count(unknown, 'file')} of unknown size)"
    return f"fetch {least if unknown else size_text(plan.fetch_size)}"


def step_text(step: Step) -> str:
    """Return the name and its versions: ``torch 2.6.0 -> 2.4.0``."""
    versions = [version for version in (step.previous, step.version) if version]
    return one_line(f"{step.name} {' -> '.join(versions)}")


def step_reason(step: Step, *, verbose: bool) -> str:
    """Return the reason, its subject left out where it is the step's own distribution.

    A marker (PEP 508) held, or the step would not be there: only *verbose* shows it.
    """
    reason = one_line(step.reason)
    for version in (step.previous, step.version):
        reason = reason.removeprefix(f"{step.name} {version} ")
    return reason if verbose else _MARKER.sub("", reason)


def step_extras(step: Step, *, least: int = 10_000_000) -> str:
    """Return size (from *least* bytes up) and how the file is made: ``797 MB, built from source``."""
    artifact = step.artifact
    if artifact is None:
        return ""
    extras = []
    if artifact.size is not None and artifact.size >= least:
        extras.append(size_text(artifact.size))
    if artifact.build:
        extras.append("built from source")
    if artifact.rebuilt:
        extras.append(f"rebuilt as `{one_line(artifact.rebuilt)}` says")
    return ", ".join(extras)


def split_steps(steps: Iterable[Step], *, verbose: bool) -> tuple[list[Step], list[Step]]:
    """Return the steps to show with their reason, and those to show in compact form.

    What the matrix or the user names always has its reason.  So has the rest
    while it is short; a compact list is in the order of names.
    """
    named: list[Step] = []
    others: list[Step] = []
    for step in steps:
        (named if step.requested else others).append(step)
    limit = FOLD_REMOVALS if others and others[0].action is Action.REMOVE else FOLD
    if verbose or len(others) <= limit:
        return [*named, *others], []
    return named, sorted(others, key=lambda step: step.name)


def rest_heading(shown: Sequence[Step], compact: Sequence[Step]) -> str:
    """Return the words over the compact list: ``and 157 that they need (2.1 GB)``."""
    size = sum(step.artifact.size or 0 for step in compact if step.artifact)
    cost = f" ({size_text(size)})" if size else ""
    if not shown:
        return f"{len(compact)} in short{cost}"
    return f"and {len(compact)} {'that they need' if compact[0].action is Action.INSTALL else 'more'}{cost}"


def breakage_heading(*, direct: bool, number: int) -> str:
    """Return the heading over the broken distributions of one kind."""
    cause = "by a version that moves" if direct else "only by a removal"
    return f"Broken {cause} ({number})"


def breakage_text(breakage: Breakage, *, verbose: bool = True) -> str:
    """Return the distribution and the requirement that breaks, its marker only when *verbose*."""
    text = one_line(f"{breakage.name} {breakage.version} needs {breakage.requirement}")
    return text if verbose else _MARKER.sub("", text)


def chain_text(breakage: Breakage) -> str:
    """Return the links from what moved down to what `breakage_text` says already; "" when there are none."""
    links = [one_line(link) for link in breakage.because]
    if links and links[-1].startswith(breakage.name) and links[-1].endswith(one_line(breakage.requirement)):
        links.pop()
    return "; ".join(links)


def remedy_text(remedy: Remedy) -> str:
    """Return what is done about a broken distribution."""
    return {
        Remedy.REPAIR: "repaired: another version fits",
        Remedy.REMOVE: "removed",
        Remedy.LEAVE: "left as it is",
    }[remedy]


def restart_text(plan: Plan, *, verbose: bool) -> list[str]:
    """Return the distributions that ask for a restart, each with its loaded modules."""
    limit = 10_000 if verbose else 3
    return [one_line(f"{name} ({some_of(modules, limit)})") for name, modules in plan.restart.items()]


def plan_notes(plan: Plan) -> list[str]:
    """Return what is to be known beside the steps: what keeping an image's files costs, then the notes."""
    cost = plan.undo_cost
    if cost is None:
        return [*plan.beforehand, *plan.notes]
    seconds = f": about {seconds_text(cost.seconds)}" if cost.seconds else ""
    files = "1 file" if cost.files == 1 else f"{cost.files:,} files"
    kept = (
        f"{files} ({size_text(cost.bytes)}) that came with the image are copied to keep them for an undo"
        f"{seconds}; `--no-undo` takes them away instead"
    )
    return [kept, *plan.beforehand, *plan.notes]


def report_headline(report: Report) -> str:
    """Return the outcome in one sentence."""
    variant = f" ({report.variant})" if report.variant else ""
    where = "the kernel" if report.target == Target.KERNEL.value else "its isolated environment"
    what = f"{report.matrix}{variant} in {where}"
    failed = sum(not check.passed for check in report.checks)
    taken = f" in {seconds_text(report.seconds)}" if report.seconds else ""
    if failed:
        return f"{what} is not proven: {failed} of {count(len(report.checks), 'check')} failed{taken}"
    if not report.checks:
        return f"{what}: nothing was checked"
    changed = "" if report.changed else "; nothing was changed"
    return f"{what} is proven: {count(len(report.checks), 'check')} passed{taken}{changed}"


def checks_in_short(report: Report, *, verbose: bool) -> tuple[list[Check], list[Check]]:
    """Return the checks to show one by one, and the passed version checks to show as one."""
    versions = [check for check in report.checks if check.kind == "version" and check.passed]
    if verbose or len(versions) <= FOLD:
        return list(report.checks), []
    return [check for check in report.checks if check not in versions], versions


def change_title(change: Change) -> str:
    """Return what a change did and when: ``change 1, 2026-11-24 14:02 UTC, tiny: remove 3``."""
    numbers = {action: sum(done.action is action for done in change.steps) for action in Action}
    steps = ", ".join(f"{action.value} {number}" for action, number in numbers.items() if number)
    return one_line(
        f"change {change.number}, {change.when[:10]} {change.when[11:16]} UTC, {change.matrix}: {steps}"
    )


def change_details(change: Change) -> list[str]:
    """Return by which lock or stack a change was made, from which state, and what is kept to undo it."""
    by = f"lock {change.lock[:12]}" if change.lock else f"stack {change.stack[:12]}"
    kept = (
        "what it moved away was dropped: it cannot be undone"
        if change.is_dropped
        else f"{size_text(change.size)} are kept to undo it"
    )
    before = [f"before it, the environment was {change.runtime} as recorded"] if change.runtime else []
    return [f"{by}; {kept}", *before]


def built_title(built: BuiltEnvironment) -> str:
    """Return what an environment is for: ``tiny (cpu), Python 3.12.4, current``."""
    if built.manifest is None:
        return one_line(f"{built.matrix or 'an environment'}, not whole")
    variant = f" ({built.manifest.variant})" if built.manifest.variant else ""
    current = ", current" if built.matrix in built.current_of else ""
    return one_line(f"{built.matrix}{variant}, Python {built.manifest.python_version}{current}")


def built_details(built: BuiltEnvironment) -> str:
    """Return the lock of an environment, when it was built, its size and its place."""
    created = built.manifest.created if built.manifest else ""
    when = f", built {created[:10]} {created[11:16]} UTC" if created else ""
    others = [matrix for matrix in built.current_of if matrix != built.matrix]
    also = f", current of {', '.join(others)}" if others else ""
    return one_line(f"lock {built.lock[:12]}{when}{also}; {size_text(built.size)} in {built.folder}")


def undone_words(undone: UndoneChange) -> list[str]:
    """Return what was undone, then what is not as it was before it."""
    change = undone.change
    if not undone.differences:
        state = f" It is {change.runtime} again, as recorded." if change.runtime else ""
        return [f"The environment is as it was before change {change.number} ({change.matrix}).{state}"]
    head = f"Change {change.number} ({change.matrix}) is undone. Still not as it was before it:"
    return [head, *undone.differences]


def run_command(report: Report) -> str:
    """Return the command that runs something with what was proven."""
    return f"colablock run {report.matrix} -- python YOUR_SCRIPT.py"
