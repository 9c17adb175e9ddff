"""What a notebook shows: plans, reports and progress as display messages of the running kernel.

Works on the shell that is there and imports neither IPython nor rich: both may
be missing, and a kernel should hold no module for our sake that a plan replaces.
"""

from __future__ import annotations

import time
import uuid
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from colablock._common.text import seconds_text, some_of
from colablock.display.html import page, plan_to_html, report_to_html, sentence_to_html
from colablock.display.progress import DrawingReporter
from colablock.display.text import error_text, plan_text, report_text
from colablock.display.words import cost_text, one_line, plan_title, report_headline
from colablock.environment.notebook_host import Shell, current_shell, in_colab
from colablock.errors import ColablockError
from colablock.planning.plan import Plan
from colablock.verification.verify import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from colablock.display.progress import Clock

__all__ = [
    "DisplayForm",
    "KernelRestarts",
    "NotebookReporter",
    "add_form",
    "html_of",
    "is_ending",
    "is_shown",
    "last_matrix",
    "note_shown",
    "register_displays",
    "restart_kernel",
    "restart_prompt",
    "show",
    "text_of",
]

_COLAB = "application/vnd.colab-display-data+json"
_PAUSE = 0.2  # seconds between two updates
_WIDTH = 100  # columns of the plain form beside the HTML


class KernelRestarts(BaseException):
    """Ends the cell whose kernel is about to go; as with SystemExit, nobody catches it by mistake.

    A kernel ends only when it is idle.  This keeps the rest of the cell, and
    the cells that wait behind it, from running with the old modules until then.
    """

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this: nothing failed, so there is nothing to trace.
        return [str(self)]


def is_ending(*, seconds: float = 1.0) -> bool:
    """Return whether the kernel is about to end, as far as shows within *seconds* of an interrupt.

    Who restarts a kernel interrupts its cell first, and then asks it to end or ends it at once.
    """
    shell = current_shell()
    until = time.monotonic() + (seconds if shell is not None else 0.0)
    while time.monotonic() < until:
        if getattr(shell, "exit_now", False):
            return True
        time.sleep(_PAUSE)
    return False


def register_displays(shell: Any = None) -> bool:
    """Have plans, reports and errors show themselves in cells; return whether there is a notebook.

    May be called again.  An error shows what `error_text` says in place of a
    traceback: a request that cannot be met is an answer, and says what to do.
    """
    shell = shell or current_shell()
    if shell is None:
        return False
    formatters = shell.display_formatter.formatters
    for kind in _FORMS:
        formatters["text/html"].for_type(kind, html_of)
        formatters["text/plain"].for_type(kind, _plain)
    # IPython asks an exception for this method; the class itself knows no IPython.
    setattr(ColablockError, "_render_traceback_", _short_traceback)  # noqa: B010
    return True


def _plain(value: object, printer: Any, cycle: bool) -> None:  # noqa: FBT001  # IPython's signature
    del cycle
    printer.text(text_of(value))


def _short_traceback(error: ColablockError) -> list[str]:
    return error_text(error, width=_WIDTH).splitlines()


class DisplayForm(NamedTuple):
    """How a value of one kind is shown: whole, and in a sentence."""

    to_html: Callable[[Any], str]
    to_text: Callable[..., str]
    headline: Callable[[Any], str]


def _plan_headline(plan: Plan) -> str:
    return f"{plan_title(plan)}: {cost_text(plan)}"


_FORMS: dict[type, DisplayForm] = {
    Plan: DisplayForm(plan_to_html, plan_text, _plan_headline),
    Report: DisplayForm(report_to_html, report_text, report_headline),
}


def add_form(kind: type, form: DisplayForm) -> None:
    """Have `register_displays` know values of *kind*, too."""
    _FORMS[kind] = form


class _Session:
    """What this kernel was shown last."""

    shown: object = None
    matrix: str | None = None


def show(value: Plan | Report, *, shell: Shell | None = None) -> None:
    """Show a plan or a report as a cell's output; do nothing outside a notebook."""
    shell = shell or current_shell()
    if shell is None:
        return
    shell.display_pub.publish({"text/html": html_of(value), "text/plain": text_of(value)})
    note_shown(value)
    if isinstance(value, Report):
        _Session.matrix = value.matrix


def note_shown(value: object) -> None:
    """Note that *value* was shown: where it is the result of its cell, too, a line is enough."""
    _Session.shown = value


def is_shown(value: object) -> bool:
    """Return whether *value* is what was shown last."""
    return value is _Session.shown


def last_matrix() -> str | None:
    """Return the matrix of the last report that was shown."""
    return _Session.matrix


def html_of(value: object) -> str:
    """Return *value* as a cell's result in HTML: a line if it stands just above, as `apply` leaves it."""
    form = _FORMS[type(value)]
    return sentence_to_html(form.headline(value)) if is_shown(value) else form.to_html(value)


def text_of(value: object) -> str:
    """Return *value* as a cell's result in plain text: a line if it stands just above."""
    form = _FORMS[type(value)]
    return one_line(form.headline(value)) if is_shown(value) else form.to_text(value, width=_WIDTH)


def restart_prompt(modules: Sequence[str], *, shell: Shell | None = None, colab: bool | None = None) -> None:
    """Ask for a restart in a sentence, and on Colab with its own button; nothing outside a notebook.

    The sentence goes first and by itself: the button's message is private to
    Colab and may stop to work any day.
    """
    shell = shell or current_shell()
    if shell is None or not modules:
        return
    packages = _packages(modules)
    text = f"Restart the kernel before you go on: it still holds the old {one_line(some_of(packages, 6))}"
    shell.display_pub.publish({"text/html": page([f"<p><b>{escape(text)}</b></p>"]), "text/plain": text})
    if in_colab() if colab is None else colab:
        shell.display_pub.publish({_COLAB: {"pip_warning": {"packages": packages}, "id": uuid.uuid4().hex}})


def restart_kernel(modules: Sequence[str], *, then: str = "", shell: Shell | None = None) -> None:
    """Restart a kernel that holds old *modules*; do nothing outside a notebook.

    The kernel ends, and who watches it starts it again.  Raises KernelRestarts,
    which tells the reader so, and what to do *then*.
    """
    shell = shell or current_shell()
    if shell is None or not modules:
        return
    shell.kernel.do_shutdown(restart=True)
    names = one_line(some_of(_packages(modules), 6))
    raise KernelRestarts(f"The kernel restarts, since it holds the old {names}{then and f': {then}'}")


def _packages(modules: Sequence[str]) -> list[str]:
    """Return the top-level names: Colab's message knows no others, and they are enough for a sentence."""
    return sorted({module.partition(".")[0] for module in modules})


class NotebookReporter(DrawingReporter):
    """One display that is updated in place, at most five times a second, and ends as one line."""

    def __init__(self, shell: Shell, *, clock: Clock = time.monotonic, display_id: str | None = None) -> None:
        super().__init__(clock)
        self._publisher = shell.display_pub
        self._display_id = display_id or f"colablock-{uuid.uuid4().hex}"
        self._shown_at: float | None = None
        self._notes: list[str] = []
        self._is_closed = False

    def _started(self) -> None:
        self._show()

    def _moved(self) -> None:
        if self._shown_at is None or self._clock() - self._shown_at >= _PAUSE:
            self._show()

    def _noted(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
        self._show()

    def _closed(self, *, failed: bool) -> None:
        if self._is_closed or self._shown_at is None:
            return
        self._is_closed = True
        taken = seconds_text(self._clock() - self._work.began)
        past = "; ".join(self._work.past)
        self._publish(f"{'Stopped' if failed else 'Done'} in {taken}", past)

    def _show(self) -> None:
        work = self._work
        self._publish(work.stage, " - ".join(part for part in (work.amount(), work.detail) if part))

    def _publish(self, head: str, tail: str) -> None:
        is_update = self._shown_at is not None
        self._shown_at = self._clock()
        lines = [": ".join(part for part in (head, tail) if part), *self._notes]
        parts = [f'<p><b>{escape(head)}</b> <span class="cl-soft">{escape(tail)}</span></p>'] if head else []
        if self._work.total and not self._is_closed:
            share = min(self._work.done / self._work.total, 1)
            parts.append(f'<progress max="1" value="{share:.3f}" style="width:min(24em,100%)"></progress>')
        parts.extend(f"<p>{escape(note)}</p>" for note in self._notes)
        self._publisher.publish(
            {"text/html": page(parts), "text/plain": "\n".join(lines)},
            transient={"display_id": self._display_id},
            update=is_update,
        )
