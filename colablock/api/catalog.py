"""What there is: matrices, recorded runtimes, this machine, and whether matrices hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from colablock.api.front_door import front_door
from colablock.api.stack import Name, open_session
from colablock.api.values import Facts, Rows
from colablock.display.info_view import facts_document, list_document
from colablock.display.view import Document, Note

if TYPE_CHECKING:
    from colablock.check.results_file import MatrixCheck

__all__ = ["check", "info", "list", "show"]

_UNTOUCHED = "Nothing was changed."


@front_door(_UNTOUCHED)
def list() -> Facts:  # noqa: A001 - the word of the command line
    """Return the matrices that are found, and the recorded runtimes."""
    from colablock.operations.info import list_facts

    with open_session(quiet=True) as session:
        return Facts(list_facts(session.environ)).shown_as(list_document)


@front_door(_UNTOUCHED)
def show(name: Name) -> Facts:
    """Return one matrix as declared, with the reason for every entry.  Raises NotFound, InvalidMatrix."""
    from colablock.operations.info import matrix_facts

    with open_session(quiet=True) as session:
        return Facts(matrix_facts(os.fspath(name), session.environ)).shown_as(facts_document)


@front_door(_UNTOUCHED)
def info(*, python: str | os.PathLike[str] | None = None) -> Facts:
    """Return what colablock detects on this machine, without credentials, for a bug report."""
    from colablock.operations.info import machine_facts

    with open_session(quiet=True) as session:
        chosen = os.fspath(python) if python is not None else None
        return Facts(machine_facts(session.environ, python=chosen)).shown_as(facts_document)


@front_door("Every file is complete: the old one or the new one.")
def check(
    *names: Name, update: bool = False, imports: bool = False, quiet: bool = False
) -> Rows[MatrixCheck]:
    """Return whether matrices hold on every recorded runtime, judged from their locks without a network.

    Without *names*, every matrix that is found is checked.  *update* writes the results beside each
    matrix.  *imports* also fetches the packages whose requirements a matrix replaces, and examines their
    imports.  The ``drift`` of a result names what differs from the committed results.
    """
    from colablock.display.check_view import check_document
    from colablock.matrix.catalog import list_matrices
    from colablock.operations.check import check_matrices

    def document(checked: Rows[MatrixCheck]) -> Document:
        parts = [check_document(one, updated=update) for one in checked]
        if len(parts) == 1:
            return parts[0]
        blocks = [
            (Note(part.headline.text), *part.blocks) if part.headline else part.blocks for part in parts
        ]
        return Document(blocks=tuple(block for some in blocks for block in some))

    with open_session(quiet=quiet) as session:
        chosen = [os.fspath(name) for name in names]
        if not chosen:
            found = list_matrices(environ=session.environ)
            chosen = [one.name for one in found if not one.shadowed_by]
        checked = check_matrices(session, chosen, update=update, imports=imports)
    return Rows(checked).shown_as(document)
