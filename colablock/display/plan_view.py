"""The view of a plan: what changes and why, what breaks, what asks for a restart."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from colablock._common.text import count, seconds_text, size_text, some_of
from colablock.display.view import (
    FOLD,
    Document,
    Grid,
    GridRow,
    Headline,
    Item,
    Items,
    Names,
    Note,
    Pair,
    Pairs,
    Section,
    Span,
    Tone,
    one_line,
)
from colablock.environment.state_change import SHARED_FILES
from colablock.planning.plan import Action, Remedy, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from colablock.display.view import Block, Words
    from colablock.planning.plan import Breakage, ImportRisk, Kept, Plan, Step

__all__ = ["plan_document"]

_FOLD_REMOVALS = 40  # a removal keeps its reason in a longer list
_LARGE = 10_000_000  # bytes from which on a download is worth its size in a short list
_MODULES = 3  # of a distribution that the kernel has loaded
_MARKER = re.compile(
    r"\s*;\s*\(*(?:(?:python|platform|implementation)_\w+|os_name|sys_platform|extra)\s*(?:[<>=!~]|not|in\b)"
    r".*?(?=: |, |$)"
)
# Before the reason that the matrix gives, or before the requirement if it gives none.
_ASKED = re.compile(r"^\S+ asks for (?:\S+: )?(?=\S)")
_ACTION_TONES = {Action.REMOVE: Tone.BAD, Action.REPLACE: Tone.WARN, Action.INSTALL: Tone.GOOD}
_REMEDIES = {
    Remedy.REPAIR: Span("another version is installed", Tone.GOOD),
    Remedy.REMOVE: Span("removed", Tone.BAD),
    Remedy.LEAVE: Span("left broken", Tone.WARN),
}


def plan_document(plan: Plan) -> Document:
    """Return what is shown of *plan*; steps and breakages that are many are folded."""
    return Document(headline=Headline(text=f"{_title(plan)}: {_cost(plan)}"), blocks=tuple(_blocks(plan)))


def _blocks(plan: Plan) -> Iterator[Block]:
    facts = [Pair(lead="target", text=f"{_place(plan)} ({plan.why_target})")] if plan.why_target else []
    if plan.python:
        facts.append(Pair(lead="Python", text=(f"{plan.python_version}, ", Span(plan.python, Tone.CODE))))
    if plan.lock:
        hosts = f" (files from {', '.join(plan.lock_hosts)})" if plan.lock_hosts else ""
        facts.append(Pair(lead="lock", text=f"{plan.lock}{hosts}"))
    if (files := _files(plan)) is not None:
        facts.append(Pair(lead="files", text=files))
    if plan.shadow:
        yield Note(label="note", text=plan.shadow)
    if facts:
        yield Pairs(tuple(facts))
    for action in Action:
        steps = [step for step in plan.steps if step.action is action]
        if steps:
            yield _in_place(steps) if plan.is_in_place else _steps(action, steps)
    for direct in (True, False):
        broken = [breakage for breakage in plan.breakages if breakage.direct is direct]
        if broken:
            yield _breakages(broken, direct=direct)
    if plan.import_risks:
        yield _import_risks(plan.import_risks)
    if plan.restart:
        yield _restart(plan)
    if plan.kept:
        yield _kept(plan.kept)
    for note in (*_undo_notes(plan), *plan.beforehand, *plan.notes):
        yield Note(label="note", text=note)


# What it does, in numbers


def _title(plan: Plan) -> str:
    variant = f" ({plan.variant})" if plan.variant else ""
    into = "the kernel" if plan.target is Target.KERNEL else "an isolated environment"
    return f"{plan.matrix}{variant} into {into}"


def _place(plan: Plan) -> str:
    return "the kernel" if plan.target is Target.KERNEL else "isolated environment"


def _cost(plan: Plan) -> str:
    """Return the changes, the bytes to fetch, and whether the kernel has to restart."""
    if plan.is_interrupted:
        return "an interrupted change is undone first"
    if not plan.steps or plan.is_in_place:
        return "nothing to do"
    numbers = {action: sum(step.action is action for step in plan.steps) for action in Action}
    parts = [", ".join(f"{action.value} {number}" for action, number in numbers.items() if number)]
    parts.append(_fetch(plan))
    if plan.target is Target.KERNEL:
        parts.append("then restart the kernel" if plan.needs_restart else "no restart")
    return "; ".join(filter(None, parts))


def _fetch(plan: Plan) -> str:
    artifacts = [step.artifact for step in plan.steps if step.artifact]
    fetched = [one for one in artifacts if one.name not in plan.at_hand]
    unknown = sum(artifact.size is None for artifact in fetched)
    if not fetched:
        return "nothing to fetch" if artifacts else ""
    if unknown == len(fetched):
        return f"fetch {count(unknown, 'file')} of unknown size"
    least = f"at least {size_text(plan.fetch_size)} ({count(unknown, 'file')} of unknown size)"
    return f"fetch {least if unknown else size_text(plan.fetch_size)}"


def _files(plan: Plan) -> str | None:
    """Return how many files are fetched, and how many are on this machine; None if all are fetched."""
    artifacts = [step.artifact for step in plan.steps if step.artifact and not plan.is_in_place]
    here = [one for one in artifacts if one.name in plan.at_hand]
    fetched = len(artifacts) - len(here)
    if not here or not fetched:
        return None
    size = size_text(sum(one.size or 0 for one in here))
    return f"{fetched} to fetch ({size_text(plan.fetch_size)}), {len(here)} on this machine ({size})"


# Steps


def _steps(action: Action, steps: Sequence[Step]) -> Section:
    """Return the steps of one kind: each with its reason, and dependencies that are many folded."""
    named = [step for step in steps if step.requested]
    others = [step for step in steps if not step.requested]
    shown = [*named, *others]
    folded: list[Block] = []
    if len(others) > (_FOLD_REMOVALS if action is Action.REMOVE else FOLD):
        shown, others = named, sorted(others, key=lambda step: step.name)
        # What is installed beside the requested packages matters to few; what goes or moves to all.
        names = () if action is Action.INSTALL else (Names(tuple(map(_step_text, others))),)
        folded = [
            Section(
                title=_rest_title(action, named, others),
                body=(_step_pairs(others),),
                brief=names,
                is_open=False,
            )
        ]
    brief = _step_rows(shown) if action is Action.INSTALL else _step_pairs(shown, in_brief=True)
    return Section(
        title=f"{action.value.capitalize()} ({len(steps)})",
        body=(*([_step_pairs(shown)] if shown else []), *folded),
        brief=(*([brief] if shown else []), *folded),
        is_open=len(shown) <= 2 * FOLD,
        tone=_ACTION_TONES[action],
    )


def _in_place(steps: Sequence[Step]) -> Section:
    """Return the steps of an environment that exists, which in brief are no news."""
    return Section(title=f"Installed ({len(steps)})", body=(_step_pairs(steps),), brief=(), is_open=False)


def _rest_title(action: Action, shown: Sequence[Step], others: Sequence[Step]) -> str:
    """Return the title over the steps without a reason: ``and 157 dependencies (2.1 GB)``."""
    size = sum(step.artifact.size or 0 for step in others if step.artifact)
    cost = f" ({size_text(size)})" if size else ""
    if not shown:
        return f"{len(others)} distributions{cost}"
    return f"and {len(others)} {'dependencies' if action is Action.INSTALL else 'more'}{cost}"


def _step_pairs(steps: Sequence[Step], *, in_brief: bool = False) -> Pairs:
    return Pairs(tuple(_step_pair(step, in_brief=in_brief) for step in steps))


def _step_rows(steps: Sequence[Step]) -> Grid:
    """Return steps in brief, in two lines at most: what, the size of a large download, and why."""
    rows = (
        GridRow(
            cells=(
                (Span(step.name, Tone.STRONG if step.requested else Tone.PLAIN), f" {_versions(step)}"),
                _size(step, least=_LARGE),
                "; ".join(filter(None, (_making(step), _ASKED.sub("", _reason(step, in_brief=True))))),
            )
        )
        for step in steps
    )
    return Grid(rows=tuple(rows), may_cut=True, most=2)


def _step_pair(step: Step, *, in_brief: bool) -> Pair:
    extras = _extras(step, least=_LARGE if in_brief else 0)
    return Pair(
        lead=(Span(step.name, Tone.STRONG if step.requested else Tone.PLAIN), f" {_versions(step)}"),
        text=_reason(step, in_brief=in_brief) + (f" ({extras})" if extras else ""),
        more=_source(step),
    )


def _step_text(step: Step) -> str:
    return f"{step.name} {_versions(step)}"


def _versions(step: Step) -> str:
    return " -> ".join(version for version in (step.previous, step.version) if version)


def _reason(step: Step, *, in_brief: bool) -> str:
    """Return the reason, without the distribution's own name and version at its beginning.

    A brief reason has no marker (PEP 508): it holds, or the step would not be there.
    """
    reason = one_line(step.reason)
    for version in (step.previous, step.version):
        reason = reason.removeprefix(f"{step.name} {version} ")
    return _MARKER.sub("", reason) if in_brief else reason


def _extras(step: Step, *, least: int) -> str:
    """Return the size, from *least* bytes on, and how the file is made: ``797 MB, built from source``."""
    return ", ".join(filter(None, (_size(step, least=least), _making(step))))


def _size(step: Step, *, least: int) -> str:
    size = step.artifact.size if step.artifact else None
    return size_text(size) if size is not None and size >= least else ""


def _making(step: Step) -> str:
    """Return how the file of a step is made, if that takes more than a download."""
    artifact = step.artifact
    rebuilt = artifact.rebuilt if artifact else None
    parts = (
        "built from source" if artifact and artifact.build else "",
        f"rebuilt as declared in `{one_line(rebuilt)}`" if rebuilt else "",
    )
    return ", ".join(filter(None, parts))


def _source(step: Step) -> tuple[str, ...]:
    if step.artifact is None:
        return ()
    index = f" from {step.artifact.index}" if step.artifact.index else ""
    return (f"{step.artifact.filename}{index}",)


# What is beside the steps


def _kept(kept: Sequence[Kept]) -> Section:
    names = tuple(f"{one.name} {one.version}" for one in kept)
    return Section(
        title=f"Keep ({len(kept)})",
        body=(Pairs(tuple(Pair(lead=name, text=one.reason) for name, one in zip(names, kept, strict=True))),),
        brief=(Names(names),) if len(kept) <= FOLD else (),
        is_open=len(kept) <= FOLD,
    )


def _breakages(broken: Sequence[Breakage], *, direct: bool) -> Section:
    """Return what breaks and what is done about it.

    In brief, many that only a removal breaks are grouped by what is done about them.
    """
    cause = "by a version change" if direct else "only by a removal"
    is_grouped = not direct and len(broken) > FOLD
    brief = (
        _by_remedy(broken) if is_grouped else (Items(tuple(_breakage(one, in_brief=True) for one in broken)),)
    )
    return Section(
        title=f"Broken {cause} ({len(broken)})",
        body=(Items(tuple(_breakage(one, in_brief=False) for one in broken)),),
        brief=brief,
        is_open=len(broken) <= FOLD,
        tone=Tone.WARN,
    )


def _import_risks(risks: Sequence[ImportRisk]) -> Section:
    """Return what stays and may no longer import, although no requirement says so."""
    items = tuple(
        Item(text=(Span(f"{one.name} {one.version}", Tone.STRONG), f": {one.reason}")) for one in risks
    )
    return Section(
        title=f"May no longer import ({len(risks)})",
        body=(Items(items),),
        is_open=len(risks) <= FOLD,
        tone=Tone.WARN,
    )


def _by_remedy(broken: Sequence[Breakage]) -> tuple[Block, ...]:
    groups = {remedy: [one for one in broken if one.remedy is remedy] for remedy in Remedy}
    return tuple(
        Section(
            title=f"{_REMEDIES[remedy].text} ({len(group)})",
            body=(Names(tuple(_broken_text(one, in_brief=True) for one in group), separator="; "),),
        )
        for remedy, group in groups.items()
        if group
    )


def _breakage(breakage: Breakage, *, in_brief: bool) -> Item:
    chain = _chain(breakage)
    is_shown = bool(chain) and not (in_brief and breakage.direct)
    notes: tuple[Words, ...] = (Span(f"because {chain}", Tone.SOFT),) if is_shown else ()
    text = _broken_text(breakage, in_brief=in_brief)
    by_files = breakage.remedy is Remedy.REPAIR and breakage.requirement.startswith(SHARED_FILES)
    outcome = Span("installed at the same version", Tone.GOOD) if by_files else _REMEDIES[breakage.remedy]
    return Item(text=text, outcome=outcome, notes=notes)


def _broken_text(breakage: Breakage, *, in_brief: bool) -> str:
    text = one_line(f"{breakage.name} {breakage.version} needs {breakage.requirement}")
    return _MARKER.sub("", text) if in_brief else text


def _chain(breakage: Breakage) -> str:
    """Return the links from the change to this breakage, without the last one if it only repeats it."""
    links = [one_line(link) for link in breakage.because]
    if links and links[-1].startswith(breakage.name) and links[-1].endswith(one_line(breakage.requirement)):
        links.pop()
    return "; ".join(links)


def _restart(plan: Plan) -> Section:
    loaded = count(len(plan.restart), "distribution")
    pairs = []
    for name, modules in plan.restart.items():
        more = (", ".join(modules),) if len(modules) > _MODULES else ()
        pairs.append(Pair(lead=name, text=some_of(modules, _MODULES), more=more))
    return Section(
        title=f"Restart needed: the kernel has loaded modules of {loaded} that change",
        body=(Pairs(tuple(pairs)),),
        tone=Tone.WARN,
    )


def _undo_notes(plan: Plan) -> Iterator[str]:
    """Yield what it costs to keep the files of an image, so that the change can be undone."""
    cost = plan.undo_cost
    if cost is not None:
        seconds = f", which takes about {seconds_text(cost.seconds)}" if cost.seconds else ""
        files = "1 file" if cost.files == 1 else f"{cost.files:,} files"
        yield (
            f"to be able to undo this change, colablock copies {files} of the image ({size_text(cost.bytes)})"
            f"{seconds}; `--no-undo` deletes them instead"
        )
