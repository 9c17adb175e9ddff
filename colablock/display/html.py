"""Plans and reports as self-contained HTML for a notebook, light or dark, wide or narrow.

Nothing is loaded from outside, everything that is shown is escaped, and the
text takes the colours of the page: only tints of it are set.  Where a viewer
strips the styles, headings, lists and `<details>` remain readable.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

from colablock._common.text import count, seconds_text
from colablock.display.words import (
    FOLD,
    breakage_heading,
    breakage_text,
    chain_text,
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
)
from colablock.planning.plan import Action, Remedy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from colablock.planning.plan import Breakage, Kept, Plan, Step
    from colablock.verification.verify import Check, Report

__all__ = ["STYLE", "page", "plan_to_html", "report_to_html", "sentence_to_html", "text_to_html"]

# Every rule starts at our own class.  Doubling it outweighs the rules that notebooks have for lists and code.
STYLE = """
.colablock.colablock{font-size:13px;line-height:1.5;max-width:68em;overflow-wrap:anywhere;text-align:left}
.colablock.colablock p{margin:.2em 0}
.colablock.colablock .cl-head{font-size:15px;font-weight:600;margin:.1em 0}
.colablock.colablock .cl-soft{opacity:.75}
.colablock.colablock code{font-size:12px;background:rgba(127,127,127,.14);color:inherit;padding:.1em .35em;\
border-radius:3px}
.colablock.colablock pre{font-size:12px;line-height:1.45;background:rgba(127,127,127,.12);color:inherit;\
padding:.5em .7em;margin:.3em 0 .5em;border-radius:4px;white-space:pre-wrap;overflow-wrap:anywhere}
.colablock.colablock details{border-top:1px solid rgba(127,127,127,.3);padding:.25em 0;margin:.35em 0 0}
.colablock.colablock details details{border:0;margin-left:1.1em}
.colablock.colablock summary{cursor:pointer;font-weight:600;padding:.15em 0}
.colablock.colablock details details>summary{font-weight:400}
.colablock.colablock ul{list-style:none;margin:.1em 0 .4em;padding:0 0 0 1.1em}
.colablock.colablock li{display:flex;flex-wrap:wrap;gap:0 1em;margin:0;padding:.12em 0}
.colablock.colablock li>:first-child{flex:2 1 19em;max-width:100%}
.colablock.colablock li>:nth-child(2){flex:3 1 20em;max-width:100%}
.colablock.colablock .cl-tag{display:inline-block;padding:0 .5em;margin:.1em .4em .1em 0;border-radius:3px;\
font-size:12px;font-weight:600;background:rgba(127,127,127,.18)}
.colablock.colablock .cl-good{background:rgba(46,160,67,.28)}
.colablock.colablock .cl-warn{background:rgba(210,153,34,.32)}
.colablock.colablock .cl-bad{background:rgba(229,83,75,.36)}
.colablock.colablock .cl-many{column-width:15em;column-gap:1.2em;padding-left:1.1em}
.colablock.colablock .cl-many>span{display:block;break-inside:avoid}
""".strip()

_TRACEBACK = 30
_TINT = {Action.REMOVE: "cl-bad", Action.REPLACE: "cl-warn", Action.INSTALL: "cl-good"}
_REMEDY_TINT = {Remedy.REPAIR: "cl-good", Remedy.REMOVE: "cl-bad", Remedy.LEAVE: "cl-warn"}


def plan_to_html(plan: Plan) -> str:
    """Return *plan* as one block of HTML: what changes and what breaks open, long parts folded."""
    parts = [_plan_head(plan)]
    for action in Action:
        steps = [step for step in plan.steps if step.action is action]
        if steps:
            parts.append(_steps(action, steps))
    for direct in (True, False):
        broken = [breakage for breakage in plan.breakages if breakage.direct is direct]
        if broken:
            parts.append(_breakages(broken, direct=direct))
    if plan.kept:
        parts.append(_kept(plan.kept))
    if plan.restart:
        parts.append(_restart(plan))
    parts.extend(_notes(plan_notes(plan)))
    return page(parts)


def report_to_html(report: Report) -> str:
    """Return *report* as one block of HTML: failures with their traceback open, what passed folded."""
    parts = [_report_head(report)]
    failed = [check for check in report.checks if not check.passed]
    if failed:
        rows = "".join(map(_failed_check, failed))
        parts.append(_fold(f"{count(len(failed), 'check')} failed", rows, is_open=True))
    passed = [check for check in report.checks if check.passed]
    if passed:
        parts.append(_passed_checks(report, passed))
    parts.extend(_notes(report.notes))
    parts.append(_next(report))
    return page(parts)


def page(parts: Iterable[str]) -> str:
    """Return *parts*, already HTML, as one block with the styles beside it."""
    return f'<div class="colablock"><style>{STYLE}</style>{"".join(parts)}</div>'


def sentence_to_html(text: str) -> str:
    """Return *text* as a block of its own."""
    return page([f"<p>{text_to_html(text)}</p>"])


def text_to_html(value: str) -> str:
    """Return *value* escaped, its words in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(one_line(value)))


def _fold(title: str, body: str, *, is_open: bool = False, tint: str = "") -> str:
    head = _tag(title, tint) if tint else text_to_html(title)
    return f"<details{' open' if is_open else ''}><summary>{head}</summary>{body}</details>"


def _tag(word: str, tint: str = "") -> str:
    return (
        f'<span class="cl-tag {tint}">{text_to_html(word)}</span>'
        if tint
        else f'<span class="cl-tag">{text_to_html(word)}</span>'
    )


def _row(left: str, right: str) -> str:
    return f"<li><span>{left}</span><span>{right}</span></li>"


def _many(items: Iterable[str]) -> str:
    return f'<div class="cl-many">{" ".join(f"<span>{text_to_html(item)}</span>" for item in items)}</div>'


# The plan


def _plan_head(plan: Plan) -> str:
    parts = [f'<p class="cl-head">{text_to_html(plan_title(plan))}: {text_to_html(cost_text(plan))}</p>']
    if plan.why_target:
        parts.append(f"<p>Why there: {text_to_html(plan.why_target)}</p>")
    if plan.python:
        version, path = text_to_html(plan.python_version), text_to_html(plan.python)
        parts.append(f'<p class="cl-soft">Python {version}: <code>{path}</code></p>')
    return "".join(parts)


def _steps(action: Action, steps: Sequence[Step]) -> str:
    shown, compact = split_steps(steps, verbose=False)
    body = f"<ul>{''.join(map(_step, shown))}</ul>" if shown else ""
    if compact:
        body += _fold(rest_heading(shown, compact), f"<ul>{''.join(map(_step, compact))}</ul>")
    title = f"{action.value.capitalize()} ({len(steps)})"
    return _fold(title, body, is_open=len(shown) <= 2 * FOLD, tint=_TINT[action])


def _step(step: Step) -> str:
    versions = " \N{RIGHTWARDS ARROW} ".join(
        text_to_html(one) for one in (step.previous, step.version) if one
    )
    name = f"<b>{text_to_html(step.name)}</b>" if step.requested else text_to_html(step.name)
    extras = step_extras(step, least=1_000_000)
    reason = text_to_html(step_reason(step, verbose=True) + (f" ({extras})" if extras else ""))
    return _row(f"{name} {versions}", f'<span class="cl-soft">{reason}</span>')


def _kept(kept: Sequence[Kept]) -> str:
    names = (f"{one.name} {one.version}" for one in kept)
    return _fold(f"Stays as it is ({len(kept)})", _many(names), is_open=len(kept) <= FOLD)


def _breakages(broken: Sequence[Breakage], *, direct: bool) -> str:
    rows = "".join(map(_breakage, broken))
    return _fold(
        breakage_heading(direct=direct, number=len(broken)), f"<ul>{rows}</ul>", is_open=len(broken) <= FOLD
    )


def _breakage(breakage: Breakage) -> str:
    chain = chain_text(breakage)
    because = f' <span class="cl-soft">because {text_to_html(chain)}</span>' if chain else ""
    tag = _tag(remedy_text(breakage.remedy), _REMEDY_TINT[breakage.remedy])
    return _row(text_to_html(breakage_text(breakage)), f"{tag}{because}")


def _restart(plan: Plan) -> str:
    loaded = ", ".join(restart_text(plan, verbose=False))
    title = (
        f"Restart needed: the kernel holds modules of {count(len(plan.restart), 'distribution')} that change"
    )
    return _fold(title, f"<ul><li><span>{text_to_html(loaded)}</span></li></ul>", is_open=True)


def _notes(notes: Sequence[str]) -> list[str]:
    return [f"<p>{_tag('note')}{text_to_html(note)}</p>" for note in notes]


# The report


def _report_head(report: Report) -> str:
    word, tint = ("PASS", "cl-good") if report.passed else ("FAIL", "cl-bad")
    tag = _tag(word, tint) if report.checks else ""
    return f'<p class="cl-head">{tag}{text_to_html(report_headline(report))}</p>'


def _failed_check(check: Check) -> str:
    lines = [line.rstrip() for line in clean(check.detail).splitlines() if line.strip()]
    trace = f"<pre>{escape(chr(10).join(lines[-_TRACEBACK:]))}</pre>" if lines else ""
    return f"<p>{_tag('FAIL', 'cl-bad')}{_check_name(check)}</p>{trace}"


def _check_name(check: Check) -> str:
    taken = f' <span class="cl-soft">{seconds_text(check.seconds)}</span>' if check.seconds else ""
    return f"{text_to_html(check.kind)} <b>{text_to_html(check.subject)}</b>{taken}"


def _passed_checks(report: Report, passed: Sequence[Check]) -> str:
    shown, versions = checks_in_short(report, verbose=False)
    rows = "".join(
        _row(f"{_tag('PASS', 'cl-good')}{_check_name(check)}", text_to_html(check.detail))
        for check in shown
        if check.passed
    )
    body = f"<ul>{rows}</ul>" if rows else ""
    if versions:
        names = (f"{check.subject} {check.detail}" for check in versions)
        body += _fold(f"{len(versions)} versions are as they should be", _many(names))
    is_open = report.passed and len(shown) <= 2 * FOLD
    return _fold(f"{count(len(passed), 'check')} passed", body, is_open=is_open)


def _next(report: Report) -> str:
    parts = []
    if report.needs_restart:
        held = "Restart the kernel before you go on: it holds modules of what changed"
        parts.append(f"<p>{_tag('restart', 'cl-warn')}{held}</p>")
    python = f"Python {text_to_html(report.python_version)}: <code>{text_to_html(report.python)}</code>"
    parts.append(f'<p class="cl-soft">{python}</p>')
    if report.passed:
        parts.append(f"<p>next: <code>{text_to_html(run_command(report))}</code></p>")
    if report.changed and report.undo:
        parts.append(f"<p>undo: <code>{text_to_html(report.undo)}</code></p>")
    return "".join(parts)
