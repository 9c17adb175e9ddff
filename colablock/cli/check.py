"""Check matrices against the recorded runtimes, and audit their locks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock.cli.common import (
    MATRIX,
    Call,
    add_command,
    add_lock_target,
    add_no_lock,
    add_sources,
    lock_options_of,
    print_json,
    session_of,
)
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
    _add_audit(commands)


def _add_audit(commands: Any) -> None:
    parser = add_command(
        commands, "audit", "check the pins of a lock against the advisories that its indexes publish"
    )
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help=MATRIX)
    parser.add_argument(
        "--lock",
        metavar="FILE",
        type=Path,
        help="lock file to audit; default: the one beside the matrix, else a lock that is resolved now",
    )
    parser.add_argument("--all", action="store_true", help="audit every lock beside the matrix")
    parser.add_argument(
        "--ignore",
        metavar="ID",
        action="append",
        default=[],
        help="accept the vulnerability with this id or alias (repeatable)",
    )
    parser.add_argument("--runtime", metavar="R", help="audit the lock for this recorded runtime")
    add_no_lock(parser)
    add_lock_target(parser)
    add_sources(parser)
    parser.set_defaults(handler=_audit)


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
        _write_page(args.html, checked, names, call.environ)
        if not args.quiet:
            call.err.print(f"wrote {args.html}")
    if args.json:
        print_json({"checks": [one.facts() for one in checked]}, call.out)
    else:
        for at, one in enumerate(checked):
            if at:
                call.out.print()
            render(check_document(one, updated=args.update), call.out, verbose=args.verbose)
    is_current = not any(one.is_empty or (one.drift and not args.update) for one in checked)
    return ExitCode.DONE if is_current else ExitCode.UNMET


def _write_page(
    path: Path, checked: Sequence[MatrixCheck], names: Sequence[str], environ: Mapping[str, str]
) -> None:
    from colablock._common.fs import write_atomic
    from colablock.display.compat_page import render_page
    from colablock.matrix.catalog import find_matrix
    from colablock.runtimes.catalog import runtimes
    from colablock.training.evidence import evidence_of

    matrices = [find_matrix(name, environ=environ) for name in names]
    text = render_page(
        [one.to_json() for one in checked],
        matrices={one.matrix: one.summary for one in checked},
        asked={one.matrix: one.asked for one in checked},
        runtimes=runtimes(environ=environ),
        evidence={one.name: evidence_of(one) for one in matrices},
    )
    write_atomic(path, text.encode())


def _audit(call: Call) -> int:
    from colablock.display.check_view import audit_document
    from colablock.display.text import render
    from colablock.operations.audit import audit_locks

    args = call.args
    if args.all and (not args.name or args.lock is not None):
        raise InvalidInput(
            "`--all` takes the locks beside a matrix", hint="Name the matrix, without `--lock`"
        )
    options = lock_options_of(args)
    with session_of(call) as session:
        result = audit_locks(
            session,
            options,
            every=args.all,
            ignore=args.ignore,
            python_version=args.python_version,
            platform=args.platform,
        )
    if args.json:
        print_json(result.facts(), call.out)
    else:
        render(audit_document(result), call.out, verbose=args.verbose)
    return ExitCode.DONE if result.is_clean else ExitCode.UNMET
