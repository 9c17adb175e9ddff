"""Export a lock for other installers, and make a bundle of it for machines without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colablock._common.text import command_line
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
from colablock.errors import ExitCode

__all__ = ["add"]

FORMATS = ("requirements", "constraints", "notebook", "cyclonedx", "dockerfile", "skypilot", "slurm")


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    _add_export(commands)
    _add_bundle(commands)


def _add_export(commands: Any) -> None:
    parser = add_command(
        commands,
        "export",
        "export a lock for other installers, for scanners, or for other machines",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help=MATRIX)
    parser.add_argument(
        "--lock",
        metavar="FILE",
        type=Path,
        help="lock file to export; default: the one beside the matrix, else a lock that is resolved now",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        metavar="FORMAT",
        default=FORMATS[0],
        help="`requirements` (the default, with hashes), `constraints`, `notebook` (the metadata block of a"
        " script), `cyclonedx` (a software bill of materials), `dockerfile`, `skypilot` (a task) or `slurm`"
        " (a batch script)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output"
    )
    parser.add_argument(
        "--wheelhouse", metavar="DIR", type=Path, help="copy the wheels that no index has to DIR"
    )
    parser.add_argument("--runtime", metavar="R", help="export the lock for this recorded runtime")
    add_no_lock(parser)
    add_lock_target(parser)
    add_sources(parser)
    parser.set_defaults(handler=_export)


def _add_bundle(commands: Any) -> None:
    parser = add_command(
        commands,
        "bundle",
        "write a matrix, its lock and its files to one archive, for machines without a network",
    )
    parser.add_argument("name", metavar="NAME", help=MATRIX)
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, required=True, help="the archive to write"
    )
    parser.add_argument(
        "--runtime",
        metavar="R",
        help="make it for this recorded runtime; default: that of this notebook",
    )
    parser.add_argument(
        "--lock",
        metavar="FILE",
        type=Path,
        help="lock file to use; default: the one beside the matrix, else a lock that is resolved now",
    )
    parser.add_argument(
        "--with-python",
        action="store_true",
        help="include a Python of that version, for machines that have none; uv has or fetches it",
    )
    add_no_lock(parser)
    add_lock_target(parser, "--python")
    add_sources(parser)
    parser.set_defaults(handler=_bundle)


def _bundle(call: Call) -> int:
    from colablock.operations.bundle import make_bundle

    args = call.args
    with session_of(call) as session:
        made = make_bundle(
            session,
            lock_options_of(args),
            args.output,
            python_version=args.python_version,
            platform=args.platform,
            with_python=args.with_python,
        )
    if args.json:
        print_json(made.facts(), call.out)
    elif not args.quiet:
        done = f"wrote {made.path}:" if made.is_changed else f"{made.path} is up to date:"
        call.out.print(f"{done} {made.summary}")
        command = command_line("apply", "--bundle", str(made.path))
        call.out.print(f"Apply it without a network: `{command}`")
    return ExitCode.DONE


def _export(call: Call) -> int:
    from colablock.operations.export import FORMATS as BY_NAME
    from colablock.operations.export import export_lock

    args = call.args
    options = lock_options_of(args)
    with session_of(call) as session:
        exported = export_lock(
            session,
            options,
            form=BY_NAME[args.format],
            output=args.output,
            wheelhouse=args.wheelhouse,
            python_version=args.python_version,
            platform=args.platform,
        )
    files = [str(file) for file in exported.files]
    if args.json:
        written = {"text": exported.text} if args.output is None else {"output": str(args.output)}
        key = "files" if args.format in ("skypilot", "slurm") else "wheels"
        print_json({"format": args.format, **written, key: files}, call.out)
    elif args.output is None:
        call.out.file.write(exported.text)
    if not (args.json or args.quiet):
        lines = [f"wrote {path}" for path in files]
        if args.output is not None:
            lines.append(f"wrote {args.output}" + (f": {exported.target}" if exported.target else ""))
        for line in lines:
            call.err.print(line)
    return ExitCode.DONE
