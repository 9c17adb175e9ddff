"""The view of a report: which checks failed, which passed, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common.text import count, seconds_text
from colablock.display.view import (
    FOLD,
    Document,
    Grid,
    GridRow,
    Headline,
    Names,
    Note,
    Preformatted,
    Section,
    Span,
    Tone,
    clean,
    one_line,
)
from colablock.planning.plan import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from colablock.display.view import Block
    from colablock.verification.verify import Check, Report

__all__ = ["report_document"]

_TRACEBACK = 12  # lines of a failed check that brief text shows


def report_document(report: Report) -> Document:
    """Return what is shown of *report*: failed checks first, passed version checks folded if many."""
    headline = Headline(text=_title(report))
    if report.checks:
        tone, badge = (Tone.GOOD, "PASS") if report.passed else (Tone.BAD, "FAIL")
        headline = Headline(text=_title(report), tone=tone, badge=badge)
    return Document(headline=headline, blocks=tuple(_blocks(report)))


def _title(report: Report) -> str:
    variant = f" ({report.variant})" if report.variant else ""
    where = "the kernel" if report.target == Target.KERNEL.value else "its isolated environment"
    what = f"{report.matrix}{variant} in {where}"
    failed = sum(not check.passed for check in report.checks)
    spent = seconds_text(report.seconds)  # of a change more than of its checks
    taken = f"; applied in {spent}" if report.changed else f" in {spent}"
    taken = taken if report.seconds else ""
    if failed:
        return f"{what} is not proven: {failed} of {count(len(report.checks), 'check')} failed{taken}"
    if not report.checks:
        return f"{what}: nothing was checked"
    if report.is_recorded:
        passed = f"{count(len(report.checks), 'check')} passed when it was applied"
        return f"{what} was proven: {passed}; it has the same versions, and nothing was changed"
    changed = "" if report.changed else "; nothing was changed"
    return f"{what} is proven: {count(len(report.checks), 'check')} passed{taken}{changed}"


def _blocks(report: Report) -> Iterator[Block]:
    failed = [check for check in report.checks if not check.passed]
    passed = [check for check in report.checks if check.passed]
    if failed:
        yield Section(title=f"Failed ({len(failed)})", body=(_grid(failed),), tone=Tone.BAD)
    if passed:
        yield _passed(passed, is_open=not failed)
    for note in report.notes:
        yield Note(label="note", text=note)
    if report.needs_restart:
        text = "the kernel has loaded modules that changed; restart it before you go on"
        yield Note(label="restart", text=text, tone=Tone.WARN)
    yield Note(
        text=(f"Python {report.python_version}: ", Span(report.python, Tone.CODE)),
        tone=Tone.SOFT,
    )
    if report.passed:
        command = f"colablock run {report.matrix} -- python YOUR_SCRIPT.py"
        yield Note(label="next", text=Span(command, Tone.CODE))
    if report.changed and report.undo:
        yield Note(label="undo", text=Span(report.undo, Tone.CODE))


def _passed(passed: Sequence[Check], *, is_open: bool) -> Section:
    versions = [check for check in passed if check.kind == "version"]
    if len(versions) <= FOLD:
        versions = []
    shown = [check for check in passed if check not in versions]
    beside = any(check.kind in ("import", "capability") for check in passed)
    body: list[Block] = [_grid(shown, beside=beside)] if shown else []
    if versions:
        title = f"{'and ' if shown else ''}{len(versions)} versions as pinned"
        names = tuple(f"{check.subject} {check.detail}" for check in versions)
        body.append(Section(title=title, body=(Names(names),), brief=(), is_open=False))
    return Section(
        title=f"Passed ({len(passed)})",
        body=tuple(body),
        is_open=is_open and len(shown) <= 2 * FOLD,
        tone=Tone.GOOD,
    )


def _grid(checks: Sequence[Check], *, beside: bool = False) -> Grid:
    return Grid(rows=tuple(_row(check, beside=beside) for check in checks), right=frozenset({1}))


def _row(check: Check, *, beside: bool) -> GridRow:
    word = Span("PASS", Tone.GOOD) if check.passed else Span("FAIL", Tone.BAD)
    seconds = Span(seconds_text(check.seconds) if check.seconds else "", Tone.SOFT)
    subject = Span(check.subject, Tone.STRONG)
    if check.passed:
        detail = f": {one_line(check.detail)}" if check.detail else ""
        if beside and check.kind == "command" and check.seconds >= 1:  # else its time would be added
            detail += " (beside the imports)"
        kind = "not broken" if check.kind == "breakage" else check.kind
        return GridRow(cells=(word, seconds, kind, (subject, detail)))
    lines = tuple(line for line in clean(check.detail).splitlines() if line.strip())
    below = Preformatted(lines=lines, tone=Tone.BAD, tail=_TRACEBACK) if lines else None
    return GridRow(cells=(word, seconds, check.kind, subject), below=below)
