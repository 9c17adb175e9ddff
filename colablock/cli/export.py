"""Export a lock for other installers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colablock.cli.common import (
    MATRIX,
    Call,
    add_command,
    add_lock_target,
    add_sources,
    lock_options_of,
    print_json,
    session_of,
)
from colablock.errors import ExitCode

__all__ = ["add"]

FORMATS = ("requirements", "constraints", "notebook", "cyclonedx")


def add(commands: Any) -> None:
    """Add this command to the parser."""
    parser = add_command(
        commands, "export", "export a lock as hashed requirements, constraints, script metadata or an SBOM"
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
        default=FORMATS[0],
        help="a hashed requirements.txt (the default), a constraints.txt, the metadata block of a script,"
        " or a software bill of materials (CycloneDX 1.6)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output"
    )
    parser.add_argument(
        "--wheelhouse", metavar="DIR", type=Path, help="copy the wheels that no index has to DIR"
    )
    parser.add_argument("--runtime", metavar="R", help="export the lock for this recorded runtime")
    add_lock_target(parser)
    add_sources(parser)
    parser.set_defaults(handler=_export)


def _export(call: Call) -> int:
    from colablock.lockfile.export import Format
    from colablock.operations.export import export_lock

    args = call.args
    options = lock_options_of(args)
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
