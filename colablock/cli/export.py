"""A lock for other installers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colablock._common.urls import checked_index
from colablock.cli.common import Call, add_command, add_lock_target, add_sources, print_json, session_of
from colablock.errors import ExitCode

__all__ = ["add"]

FORMATS = ("requirements", "constraints", "notebook")


def add(commands: Any) -> None:
    """Add this command to the parser."""
    parser = add_command(commands, "export", "write a lock as hashed requirements, constraints or a script")
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="a matrix by name or path")
    parser.add_argument(
        "--lock",
        metavar="FILE",
        type=Path,
        help="export this lock file; by default the one beside the matrix, or one that is solved now",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="a hashed requirements.txt (the default), a constraints.txt, or the metadata block of a script",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write here in place of standard output"
    )
    parser.add_argument(
        "--wheelhouse", metavar="DIR", type=Path, help="copy the wheels that no index has to this folder"
    )
    parser.add_argument("--runtime", metavar="R", help="what is to come on this recorded runtime")
    add_lock_target(parser)
    add_sources(parser)
    parser.set_defaults(handler=_export)


def _export(call: Call) -> int:
    from colablock.lockfile.export import Format
    from colablock.operations.export import export_lock
    from colablock.planning.options import ApplyOptions

    args = call.args
    options = ApplyOptions(
        name=args.name,
        lock=args.lock,
        runtime=args.runtime,
        variant=args.variant,
        with_=tuple(args.with_),
        default_index=checked_index(args.default_index),
        find_links=tuple(args.find_links),
        offline=args.offline,
    )
    with session_of(call) as session:
        exported = export_lock(
            session,
            options,
            form=Format(args.format),
            output=args.output,
            wheelhouse=args.wheelhouse,
            python_version=args.python_version,
            platform=args.platform,
        )
    wheels = [str(wheel) for wheel in exported.wheels]
    if args.json:
        written = {"text": exported.text} if args.output is None else {"output": str(args.output)}
        print_json({"format": args.format, **written, "wheels": wheels}, call.out)
    elif args.output is None:
        call.out.file.write(exported.text)
    if not (args.json or args.quiet):
        for path in [*wheels, *([str(args.output)] if args.output is not None else [])]:
            call.err.print(f"wrote {path}", markup=False, soft_wrap=True)
    return ExitCode.DONE
