"""Check matrices against the recorded runtimes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock.cli.common import MATRIX, Call, add_command, print_json, session_of
from colablock.errors import ExitCode, InvalidInput

if TYPE_CHECKING:
    from colablock.check.results_file import MatrixCheck

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    parser = add_command(
        commands, "check", "check matrices against every recorded runtime, and report drift (no network)"
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help=MATRIX)
    parser.add_argument("--all", action="store_true", help="check every matrix that is found")
    parser.add_argument(
        "--update", action="store_true", help="write the results beside the matrix, to be committed"
    )
    parser.add_argument(
        "--imports",
        action="store_true",
        help="also examine the imports of packages whose requirements a matrix replaces (fetches them)",
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        type=Path,
        help="write the compatibility page to FILE, which is self-contained",
    )
    parser.set_defaults(handler=_check)


def _check(call: Call) -> int:
    from colablock.display.check_view import check_document
    from colablock.display.text import render
    from colablock.matrix.catalog import list_matrices
    from colablock.operations.check import check_matrices

    args = call.args
    if args.all == bool(args.names):
        raise InvalidInput("name the matrices to check, or pass `--all`")
    names = args.names
    if args.all:
        listed = [one for one in list_matrices(environ=call.environ) if not one.shadowed_by]
        names = [one.name for one in listed]
    with session_of(call) as session:
        checked = check_matrices(session, names, update=args.update, imports=args.imports)
    if args.html is not None:
        _write_page(args.html, checked, call.environ)
    if args.json:
        print_json({"checks": [one.facts() for one in checked]}, call.out)
    else:
        for one in checked:
            render(check_document(one, updated=args.update), call.out, verbose=args.verbose)
            call.out.print()
    is_current = args.update or not any(one.drift for one in checked)
    return ExitCode.DONE if is_current else ExitCode.UNMET


def _write_page(path: Path, checked: Sequence[MatrixCheck], environ: Mapping[str, str]) -> None:
    from colablock._common.fs import write_atomic
    from colablock.display.compat_page import render_page
    from colablock.runtimes.catalog import runtimes

    text = render_page(
        [one.to_json() for one in checked],
        matrices={one.matrix: one.summary for one in checked},
        runtimes=runtimes(environ=environ),
    )
    write_atomic(path, text.encode())
