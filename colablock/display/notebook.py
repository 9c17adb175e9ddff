"""Show plans, reports and errors in a notebook, and restart its kernel.

This works on the shell that is there and imports neither IPython nor rich: both may be missing, and the
kernel should not load a module for us that a plan may replace.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from colablock._common.text import some_of
from colablock.display.html import to_html
from colablock.display.plan_view import plan_document
from colablock.display.report_view import report_document
from colablock.display.text import error_text, to_text
from colablock.display.view import Document, Note, Span, Tone, one_line, spoken_in_python, unfolded
from colablock.environment.notebook_host import Shell, current_shell, in_colab
from colablock.errors import ColablockError
from colablock.planning.plan import Plan
from colablock.verification.verify import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "KernelRestarts",
    "finish_command",
    "is_ending",
    "last_matrix",
    "note_shown",
    "publish",
    "register_displays",
    "restart_kernel",
    "restart_prompt",
    "show",
    "show_as",
    "show_once",
    "show_whole",
    "told_in_cell",
]

_COLAB = "application/vnd.colab-display-data+json"
_PAUSE = 0.2  # seconds between two looks at the kernel
_WIDTH = 100  # columns of the plain text beside the HTML


class KernelRestarts(BaseException):
    """Ends a cell whose kernel is about to restart.

    A kernel ends only when it is idle.  Until then, this keeps the rest of the cell and the queued cells
    from running with the old modules.  It is a BaseException, as SystemExit is, so that no
    ``except Exception`` catches it by mistake.
    """

    def _render_traceback_(self) -> list[str]:
        # IPython calls this.  Nothing failed, so there is no traceback.
        return [str(self)]


def is_ending(*, seconds: float = 1.0) -> bool:
    """Return whether the kernel turns out to be ending within *seconds* after an interrupt.

    A restart of the kernel interrupts its cell first, and then asks the kernel to end or kills it.
    """
    shell = current_shell()
    until = time.monotonic() + (seconds if shell is not None else 0.0)
    while time.monotonic() < until:
        if getattr(shell, "exit_now", False):
            return True
        time.sleep(_PAUSE)
    return False


def register_displays(shell: Any = None) -> bool:
    """Make plans, reports and errors show themselves in cells; return whether there is a notebook.

    May be called again.  An error shows `error_text` in place of a traceback: a request that cannot be
    met is a normal result, and the text says what to do.
    """
    shell = shell or current_shell()
    if shell is None:
        return False
    formatters = shell.display_formatter.formatters
    for kind in _DOCUMENTS:
        formatters["text/html"].for_type(kind, _html)
        formatters["text/plain"].for_type(kind, _plain)
    for kind in (*_DOCUMENTS, *_RESULTS):
        shell.display_formatter.ipython_display_formatter.for_type(kind, _leave_out)
    # IPython looks for this method of an exception; the class itself does not depend on IPython.
    setattr(ColablockError, "_render_traceback_", _short_traceback)  # noqa: B010
    return True


def _short_traceback(error: ColablockError) -> list[str]:
    return error_text(error, width=_WIDTH).splitlines()


#: How a value of each type is shown.
_DOCUMENTS: dict[type, Callable[[Any], Document]] = {}
#: Further types that show themselves.
_RESULTS: set[type] = set()


def show_as(kind: type, document_of: Callable[[Any], Document]) -> None:
    """Make `register_displays` show values of *kind* as *document_of* returns them."""
    _DOCUMENTS[kind] = document_of
    setattr(kind, "__str__", _brief)  # noqa: B010 - the class itself does not know how it is shown
    setattr(kind, "_repr_html_", _html)  # noqa: B010


def show_once(kind: type) -> None:
    """Make `register_displays` leave out a result of *kind* that its cell has shown already."""
    _RESULTS.add(kind)


class _Session:
    """What was shown last in this kernel, and in which cell, and the notes of the current cell."""

    shown: object = None
    cell: object = None
    told: set[str] = set()  # noqa: RUF012 - there is one session
    told_in: object = None
    matrix: str | None = None


def show(value: object, *, shell: Shell | None = None) -> None:
    """Show a plan, a report or another value of `show_as` as the output of a cell, if there is a notebook."""
    shell = shell or current_shell()
    if shell is None:
        return
    publish(_DOCUMENTS[type(value)](value), shell)
    note_shown(value)
    if isinstance(value, Report):
        _Session.matrix = value.matrix


def show_whole(value: object) -> None:
    """Show all of a value of `show_as`, unfolded: as the output of a cell, or on standard output."""
    document, shell = unfolded(_DOCUMENTS[type(value)](value)), current_shell()
    if shell is None:
        print(to_text(spoken_in_python(document), verbose=True))  # noqa: T201 - this is where it is read
        return
    publish(document, shell)
    note_shown(value)


def publish(document: Document, shell: Shell, *, in_python: bool = True) -> None:
    """Show *document* as an output of the current cell, in the words of Python or of the command line."""
    document = _without_told(document)
    if (told := told_in_cell()) is not None:
        told |= set(_notes_of(document))
    document = spoken_in_python(document) if in_python else document
    shell.display_pub.publish({"text/html": to_html(document), "text/plain": to_text(document, width=_WIDTH)})


def finish_command(modules: Sequence[str], shell: Shell, *, matrix: str | None = None) -> None:
    """Ask for the restart that a command in a cell takes, and note the *matrix* that it has applied."""
    _Session.matrix = matrix or _Session.matrix
    restart_prompt(modules, shell=shell)


def note_shown(value: object) -> None:
    """Note that the current cell has shown *value*: if it is also its result, it is not shown again."""
    _Session.shown, _Session.cell = value, _cell()


def told_in_cell() -> set[str] | None:
    """Return the notes that the current cell has shown, to add to; None if there is no notebook."""
    cell = _cell()
    if cell is None:
        return None
    if cell != _Session.told_in:
        _Session.told, _Session.told_in = set(), cell
    return _Session.told


def _notes_of(document: Document) -> Iterator[str]:
    for block in document.blocks:
        if isinstance(block, Note) and block.label == "note" and isinstance(block.text, str):
            yield one_line(block.text)


def _without_told(document: Document) -> Document:
    """Return *document* without the notes that the current cell has shown already."""
    told = (told_in_cell() or set()) & set(_notes_of(document))
    if not told:
        return document
    kept = (
        block
        for block in document.blocks
        if not (isinstance(block, Note) and isinstance(block.text, str) and one_line(block.text) in told)
    )
    return Document(headline=document.headline, blocks=tuple(kept))


def _cell() -> object:
    """Return the number of the current cell; None if there is no notebook."""
    return getattr(current_shell(), "execution_count", None)


def _leave_out(value: object) -> None:
    """Show nothing for the result of a cell that has shown it already.

    Raises NotImplementedError for any other value, which makes IPython go on to its HTML and its text.
    """
    if value is not _Session.shown or _cell() != _Session.cell:
        raise NotImplementedError


def last_matrix() -> str | None:
    """Return the matrix of the last report that was shown."""
    return _Session.matrix


def _html(value: object) -> str:
    """Return *value* as the result of a cell."""
    return to_html(spoken_in_python(_without_told(_DOCUMENTS[type(value)](value))))


def _plain(value: object, printer: Any, cycle: bool) -> None:  # noqa: FBT001  # IPython's signature
    """Print *value* as the result of a cell."""
    del cycle
    document = _without_told(_DOCUMENTS[type(value)](value))
    printer.text(to_text(spoken_in_python(document), width=_WIDTH))


def _brief(value: object) -> str:
    """Return *value* in a line, or a few if it has no headline."""
    document = spoken_in_python(_DOCUMENTS[type(value)](value))
    return one_line(_headline(document)) or to_text(document, width=_WIDTH)


def _headline(document: Document) -> str:
    return document.headline.text if document.headline is not None else ""


def restart_prompt(modules: Sequence[str], *, shell: Shell | None = None, colab: bool | None = None) -> None:
    """Ask for a restart in a sentence, and on Colab with its own button; do nothing outside a notebook.

    The sentence is an output of its own: the message for the button is private to Colab and may stop
    working at any time.
    """
    shell = shell or current_shell()
    if shell is None or not modules:
        return
    packages = _packages(modules)
    text = f"Restart the kernel before you go on: it has loaded {some_of(packages, 6)} as they were before"
    publish(Document(blocks=(Note(text=Span(text, Tone.STRONG)),)), shell)
    if in_colab() if colab is None else colab:
        shell.display_pub.publish({_COLAB: {"pip_warning": {"packages": packages}, "id": uuid.uuid4().hex}})


def restart_kernel(modules: Sequence[str], *, then: str = "", shell: Shell | None = None) -> None:
    """Restart a kernel that has loaded old *modules*; do nothing outside a notebook.

    The kernel ends, and its host starts it again.  Raises KernelRestarts, whose message says so, and
    what to do *then*.
    """
    shell = shell or current_shell()
    if shell is None or not modules:
        return
    shell.kernel.do_shutdown(restart=True)
    names = one_line(some_of(_packages(modules), 6))
    raise KernelRestarts(
        f"The kernel restarts because it has loaded {names} as they were before{then and f': {then}'}"
    )


def _packages(modules: Sequence[str]) -> list[str]:
    """Return the top-level names: Colab's message takes no others, and they are enough for a sentence."""
    return sorted({module.partition(".")[0] for module in modules})


show_as(Plan, plan_document)
show_as(Report, report_document)
