"""Plans, reports and errors as lines of text, readable at 80 columns and without colour.

Lines are made without rich and written through the `Console` that the caller
holds: whoever only shows HTML must not load rich into a kernel whose rich the
plan may replace.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from colablock._common.text import seconds_text
from colablock.display.words import (
    FOLD,
    breakage_heading,
    breakage_text,
    built_details,
    built_title,
    chain_text,
    change_details,
    change_title,
    checks_in_short,
    clean,
    cost_text,
    one_line,
    plan_notes,
    plan_title,
    remedy_text,
    report_headline,
    rest_heading,
    restart_text,
    run_command,
    split_steps,
    step_extras,
    step_reason,
    step_text,
    undone_words,
)
from colablock.errors import NotRestored
from colablock.planning.plan import Action, Remedy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console

    from colablock.errors import ColablockError
    from colablock.planning.plan import Breakage, Kept, Plan, Step
    from colablock.transaction.history import Change
    from colablock.transaction.isolated_envs import BuiltEnvironment
    from colablock.transaction.rollback import UndoneChange
    from colablock.verification.verify import Check, Report

__all__ = [
    "Section",
    "TextSpan",
    "error_text",
    "heading",
    "joined",
    "pair",
    "paragraph",
    "plan_text",
    "render_envs",
    "render_error",
    "render_history",
    "render_info",
    "render_listing",
    "render_matrix",
    "render_plan",
    "render_report",
    "render_sections",
    "render_undone",
    "report_text",
    "section_lines",
    "undone_text",
    "write_lines",
]

_LEAD = 24  # columns for what a reason explains
_NO_BREAK = "\N{NO-BREAK SPACE}"
_UNIT = re.compile(r"(?<=\d) (?=(?:%|[kKMGT]i?B)(?!\w))")
_TRACEBACK = 12  # lines of a failing check


class TextSpan(NamedTuple):
    """A piece of a line, and the rich style that it has where there is colour."""

    text: str
    style: str = ""


class Section(NamedTuple):
    """A part of a display: *pairs* of a lead and a text, then words that are *listed*; *title* may be "".

    *styles* are those of some leads.
    """

    title: str
    pairs: Sequence[tuple[str, str]] = ()
    listed: Sequence[str] = ()
    styles: Mapping[str, str] = MappingProxyType({})


def render_plan(plan: Plan, console: Console, *, verbose: bool = False) -> None:
    """Write *plan* to *console*; *verbose* shows every reason, file and chain."""
    write_lines(_plan_lines(plan, width=console.width, verbose=verbose), console)


def render_report(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Write *report* to *console*; *verbose* folds no passed check and cuts no traceback."""
    write_lines(_report_lines(report, width=console.width, verbose=verbose), console)


def render_error(error: ColablockError, console: Console) -> None:
    """Write *error* to *console*: what, why, and what to do."""
    write_lines(_error_lines(error, width=console.width), console)


def render_listing(found: Mapping[str, object], console: Console) -> None:
    """Write what there is by name: matrices, runtimes."""
    write_lines(_facts_lines(found, width=console.width), console)


def render_matrix(facts: Mapping[str, object], console: Console) -> None:
    """Write what one matrix says."""
    write_lines(_facts_lines(facts, width=console.width), console)


def render_info(facts: Mapping[str, object], console: Console) -> None:
    """Write what is known about this machine and interpreter."""
    write_lines(_facts_lines(facts, width=console.width), console)


def render_sections(title: str, sections: Iterable[Section], console: Console) -> None:
    """Write *title*, then each of *sections*."""
    write_lines(_sections_lines(title, sections, width=console.width), console)


def render_history(changes: Sequence[Change], console: Console) -> None:
    """Write what was changed in an environment, and what is kept to undo it."""
    write_lines(_history_lines(changes, width=console.width), console)


def render_envs(built: Sequence[BuiltEnvironment], console: Console) -> None:
    """Write which isolated environments stand."""
    write_lines(_env_lines(built, width=console.width), console)


def render_undone(undone: Sequence[UndoneChange], console: Console) -> None:
    """Write what was undone, and what is still not as it was."""
    write_lines(_undone_lines(undone, width=console.width), console)


def undone_text(undone: Sequence[UndoneChange], *, width: int = 80) -> str:
    """Return what was undone as plain text."""
    return joined(_undone_lines(undone, width=width))


def plan_text(plan: Plan, *, width: int = 80, verbose: bool = False) -> str:
    """Return *plan* as plain text."""
    return joined(_plan_lines(plan, width=width, verbose=verbose))


def report_text(report: Report, *, width: int = 80, verbose: bool = False) -> str:
    """Return *report* as plain text."""
    return joined(_report_lines(report, width=width, verbose=verbose))


def error_text(error: ColablockError, *, width: int = 80) -> str:
    """Return *error* as plain text."""
    return joined(_error_lines(error, width=width))


def write_lines(lines: Iterable[Sequence[TextSpan]], console: Console) -> None:
    """Write *lines* to *console* as they stand."""
    # `out` neither wraps nor reads markup: what is written is what stands in the lines.
    # Within the context all of it is one write, which a notebook shows as one output.
    with console:
        for line in lines:
            for span in line:
                console.out(span.text, style=span.style or None, highlight=False, end="")
            console.out("", highlight=False)


def joined(lines: Iterable[Sequence[TextSpan]]) -> str:
    """Return *lines* as plain text."""
    return "\n".join("".join(span.text for span in line).rstrip() for line in lines)


def _wrap(text: str, width: int, *, first: str = "", later: str = "") -> list[str]:
    # Names, versions and paths are copied from here: they are never broken.  A unit stays with its number.
    lines = textwrap.wrap(
        _UNIT.sub(_NO_BREAK, text),
        max(width, len(first) + 20, len(later) + 20),
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines] or [first]


def paragraph(
    text: str, *, width: int, indent: int = 0, hang: int = 0, style: str = ""
) -> Iterator[list[TextSpan]]:
    """Yield *text* wrapped; the first line at *indent*, the others *hang* further."""
    for line in _wrap(text, width, first=" " * indent, later=" " * (indent + hang)):
        yield [TextSpan(line, style)]


def _listed(
    items: Iterable[str], *, width: int, indent: int, separator: str = ", "
) -> Iterator[list[TextSpan]]:
    """Yield *items* in running text; no line ends within one."""
    text = separator.join(item.replace(" ", _NO_BREAK) for item in items)
    for line in _wrap(text, width, first=" " * indent, later=" " * indent):
        yield [TextSpan(line)]


def _column(leads: Sequence[str]) -> int:
    return min(max(map(len, leads), default=0), _LEAD)


def pair(lead: str, text: str, *, width: int, column: int, style: str = "") -> Iterator[list[TextSpan]]:
    """Yield *lead*, and *text* from *column* on: a little later where the lead is too long."""
    head = "  " + lead.ljust(column) + "  "
    first, *others = _wrap(text, width, first=head, later=" " * (column + 4))
    yield [TextSpan("  "), TextSpan(lead, style), TextSpan(first[2 + len(lead) :])]
    yield from ([TextSpan(line)] for line in others)


def heading(text: str, style: str = "bold") -> Iterator[list[TextSpan]]:
    """Yield a blank line, and *text*."""
    yield []
    yield [TextSpan(text, style)]


# The plan


def _plan_lines(plan: Plan, *, width: int, verbose: bool) -> Iterator[list[TextSpan]]:
    title = f"{plan_title(plan)}: {cost_text(plan)}"
    yield from paragraph(one_line(title), width=width, hang=2, style="bold")
    if plan.why_target:
        yield from paragraph(f"why there: {one_line(plan.why_target)}", width=width, indent=2, hang=2)
    if plan.python:
        yield from paragraph(f"Python {plan.python_version}: {plan.python}", width=width, indent=2, hang=2)
    for action in Action:
        steps = [step for step in plan.steps if step.action is action]
        if steps:
            yield from _step_lines(action, steps, width=width, verbose=verbose)
    yield from _kept_lines(plan.kept, width=width, verbose=verbose)
    for direct in (True, False):
        broken = [breakage for breakage in plan.breakages if breakage.direct is direct]
        if broken:
            yield from heading(breakage_heading(direct=direct, number=len(broken)), "bold yellow")
            yield from _breakage_lines(broken, width=width, verbose=verbose)
    yield from _restart_lines(plan, width=width, verbose=verbose)
    yield from _note_lines(plan_notes(plan), width=width)


def _step_lines(action: Action, steps: list[Step], *, width: int, verbose: bool) -> Iterator[list[TextSpan]]:
    style = {Action.REMOVE: "bold red", Action.REPLACE: "bold yellow", Action.INSTALL: "bold green"}[action]
    yield from heading(f"{action.value.capitalize()} ({len(steps)})", style)
    shown, compact = split_steps(steps, verbose=verbose)
    for step, lines in zip(shown, _step_pairs(shown, width=width, verbose=verbose), strict=True):
        yield from lines
        if verbose and step.artifact:
            source = step.artifact.filename + (f" from {step.artifact.index}" if step.artifact.index else "")
            yield from paragraph(one_line(source), width=width, indent=4, hang=2, style="dim")
    if compact:
        yield [TextSpan(f"  {rest_heading(shown, compact)}:")]
        yield from _listed(map(step_text, compact), width=width, indent=4)


def _step_pairs(steps: list[Step], *, width: int, verbose: bool) -> list[list[list[TextSpan]]]:
    column = _column([step_text(step) for step in steps])
    found = []
    for step in steps:
        extras = step_extras(step, least=0 if verbose else 10_000_000)
        reason = step_reason(step, verbose=verbose) + (f" ({extras})" if extras else "")
        style = "bold" if step.requested else ""
        found.append(list(pair(step_text(step), reason, width=width, column=column, style=style)))
    return found


def _kept_lines(kept: Sequence[Kept], *, width: int, verbose: bool) -> Iterator[list[TextSpan]]:
    if not kept:
        return
    yield from heading(f"Stays as it is ({len(kept)})")
    names = [one_line(f"{one.name} {one.version}") for one in kept]
    if verbose:
        for lead, one in zip(names, kept, strict=True):
            yield from pair(lead, one_line(one.reason), width=width, column=_column(names))
        return
    more = [f"and {len(names) - 2 * FOLD} more"] if len(names) > 2 * FOLD else []
    yield from _listed([*names[: 2 * FOLD], *more], width=width, indent=2)


def _breakage_lines(broken: Sequence[Breakage], *, width: int, verbose: bool) -> Iterator[list[TextSpan]]:
    """Yield each with its remedy, and its chain where only a removal broke it; in short when many."""
    direct = broken[0].direct
    if not verbose and len(broken) > FOLD and not direct:
        for remedy in Remedy:
            names = [breakage_text(one, verbose=verbose) for one in broken if one.remedy is remedy]
            if names:
                yield from paragraph(f"{remedy_text(remedy)} ({len(names)}):", width=width, indent=2)
                yield from _listed(names, width=width, indent=4, separator="; ")
        return
    for one in broken:
        text = f"{breakage_text(one, verbose=verbose)}: {remedy_text(one.remedy)}"
        yield from paragraph(text, width=width, indent=2, hang=4)
        chain = chain_text(one)
        if chain and (verbose or not direct):
            yield from paragraph(f"because {chain}", width=width, indent=4, hang=2, style="dim")


def _restart_lines(plan: Plan, *, width: int, verbose: bool) -> Iterator[list[TextSpan]]:
    if not plan.restart:
        return
    yield from heading("Restart needed: the kernel holds modules of what changes", "bold yellow")
    yield from _listed(restart_text(plan, verbose=verbose), width=width, indent=2)


def _note_lines(notes: Sequence[str], *, width: int) -> Iterator[list[TextSpan]]:
    if notes:
        yield []
    for note in notes:
        yield from paragraph(f"note: {one_line(note)}", width=width, hang=6)


# The report


def _report_lines(report: Report, *, width: int, verbose: bool) -> Iterator[list[TextSpan]]:
    style = "bold green" if report.passed and report.checks else "bold red" if report.checks else "bold"
    yield from paragraph(one_line(report_headline(report)), width=width, hang=2, style=style)
    shown, versions = checks_in_short(report, verbose=verbose)
    if report.checks:
        yield []
    kind = max((len(check.kind) for check in report.checks), default=0)
    if versions:
        text = f"{'version'.ljust(kind)}  {len(versions)} as they should be"
        yield _outcome(passed=True, seconds=sum(check.seconds for check in versions), text=text)
    for check in shown:
        yield from _check_lines(check, kind=kind, verbose=verbose)
    yield from _note_lines(report.notes, width=width)
    yield from _next_lines(report)


def _outcome(*, passed: bool, seconds: float, text: str) -> list[TextSpan]:
    word = TextSpan("PASS", "green") if passed else TextSpan("FAIL", "bold red")
    return [TextSpan("  "), word, TextSpan(f"  {seconds_text(seconds) if seconds else '':>8}  {text}")]


def _check_lines(check: Check, *, kind: int, verbose: bool) -> Iterator[list[TextSpan]]:
    lines = [line.rstrip() for line in clean(check.detail).splitlines() if line.strip()]
    text = f"{check.kind.ljust(kind)}  {one_line(check.subject)}"
    inline = check.passed and len(lines) == 1
    yield _outcome(
        passed=check.passed, seconds=check.seconds, text=f"{text}  {lines[0].strip()}" if inline else text
    )
    if inline or (check.passed and not verbose):
        return
    for line in lines if verbose else lines[-_TRACEBACK:]:
        yield [TextSpan(f"          {line}", "" if check.passed else "red")]


def _next_lines(report: Report) -> Iterator[list[TextSpan]]:
    """Yield what to do next: restart, the interpreter, and the command that uses it."""
    yield []
    if report.needs_restart:
        yield [
            TextSpan("Restart the kernel before you go on: it holds modules of what changed", "bold yellow")
        ]
    yield [TextSpan(f"Python {report.python_version}: {report.python}")]
    if report.passed:
        yield [TextSpan("next: "), TextSpan(run_command(report), "bold")]
    if report.changed and report.undo:
        yield [TextSpan("undo: "), TextSpan(report.undo, "bold")]


# The history, the way back, and isolated environments


def _history_lines(changes: Sequence[Change], *, width: int) -> Iterator[list[TextSpan]]:
    if not changes:
        yield [TextSpan("colablock has changed nothing in this environment")]
    for change in changes:
        yield from paragraph(change_title(change), width=width, hang=3, style="bold")
        for line in change_details(change):
            yield from paragraph(line, width=width, indent=3)


def _env_lines(built: Sequence[BuiltEnvironment], *, width: int) -> Iterator[list[TextSpan]]:
    if not built:
        yield [TextSpan("there is no isolated environment")]
    for one in built:
        yield from paragraph(built_title(one), width=width, hang=3, style="bold")
        yield from paragraph(built_details(one), width=width, indent=3)


def _undone_lines(undone: Sequence[UndoneChange], *, width: int) -> Iterator[list[TextSpan]]:
    for one in undone:
        head, *others = undone_words(one)
        yield from paragraph(head, width=width, style="bold")
        for line in others:
            yield from paragraph(one_line(line), width=width, indent=2, hang=2)


# Facts: listings, one matrix, this machine


def _facts_lines(facts: Mapping[str, object], *, width: int) -> Iterator[list[TextSpan]]:
    """Yield plain facts first, aligned; then what has parts of its own, each under a heading."""
    plain = {_label(key): _value(value) or "none" for key, value in facts.items() if not _has_parts(value)}
    column = _column(list(plain))
    for label, text in plain.items():
        yield from pair(label, text, width=width, column=column)
    for key, value in facts.items():
        if not _has_parts(value):
            continue
        items = _items(value)
        yield from heading(f"{_label(key).capitalize()} ({len(items)})")
        column = _column([name for name, _ in items])
        for name, about in items:
            yield from pair(name, about, width=width, column=column, style="bold")


def _sections_lines(title: str, sections: Iterable[Section], *, width: int) -> Iterator[list[TextSpan]]:
    yield from paragraph(one_line(title), width=width, hang=2, style="bold")
    for section in sections:
        yield from heading(section.title) if section.title else [[]]
        yield from section_lines(section, width=width)


def section_lines(section: Section, *, width: int) -> Iterator[list[TextSpan]]:
    """Yield what stands in *section*, below its title."""
    column = min(max((len(lead) for lead, _ in section.pairs), default=0), width // 2)
    for lead, text in section.pairs:
        style = section.styles.get(lead, "")
        yield from pair(one_line(lead), one_line(text), width=width, column=column, style=style)
    if section.listed:
        yield from _listed(map(one_line, section.listed), width=width, indent=2)


def _has_parts(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping) and bool(value)


def _items(value: object) -> list[tuple[str, str]]:
    """Return name and text of each part; the part's own ``name`` where it has one."""
    if isinstance(value, Mapping):
        return [(one_line(str(key)), _value(item)) for key, item in value.items()]
    if not isinstance(value, (list, tuple)):
        return []
    found = []
    for item in value:
        rest = dict(item) if isinstance(item, Mapping) else {"name": item}
        found.append((one_line(str(rest.pop("name", "-"))), _value(rest)))
    return found


def _label(key: str) -> str:
    return one_line(str(key).replace("_", " ").replace("-", " "))


def _value(value: object) -> str:
    """Return *value* in one line, its own parts as ``key: value``; what is empty is left out."""
    if isinstance(value, Mapping):
        parts = {str(key): _value(item) for key, item in value.items() if item not in (None, "", [], (), {})}
        summary = parts.pop("summary", "")
        return "; ".join(part for part in (summary, *(f"{_label(k)}: {v}" for k, v in parts.items())) if part)
    if isinstance(value, (list, tuple)):
        words = (" ".join(map(str, item)) if isinstance(item, (list, tuple)) else item for item in value)
        return ", ".join(map(_value, words)) or "none"  # a list within is a command
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else one_line(str(value))


# Errors


def _error_lines(error: ColablockError, *, width: int) -> Iterator[list[TextSpan]]:
    first, *others = clean(str(error)).splitlines() or [type(error).__name__]
    yield from _first_lines(one_line(first), f"[{error.reference}]", width=width)
    if isinstance(error, NotRestored) and error.stash not in str(error):
        others.append(f"what was moved away lies in `{error.stash}`")
    for line in others:
        indent = max(2, len(line) - len(line.lstrip()))
        yield from paragraph(line.strip(), width=width, indent=indent, hang=2)
    if error.hint:
        yield []
        lead, *rest = _wrap(f"hint: {one_line(error.hint)}", width)
        yield [TextSpan("hint:", "bold cyan"), TextSpan(lead[5:])]
        yield from ([TextSpan(line)] for line in rest)


def _first_lines(message: str, reference: str, *, width: int) -> Iterator[list[TextSpan]]:
    """Yield the message with the reference at the right end of its first line."""
    lead = "error: "
    room = max(width - len(lead) - len(reference) - 2, 20)
    first = _wrap(message, room)[0]
    rest = message[len(first) :].strip()
    gap = " " * max(width - len(lead) - len(first) - len(reference), 2)
    yield [TextSpan("error:", "bold red"), TextSpan(f" {first}{gap}"), TextSpan(reference, "dim")]
    if rest:
        yield from paragraph(rest, width=width, indent=len(lead))
