"""Lock files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colablock.commands.call import Call, add_command, add_sources, pipeline_of, print_json
from colablock.errors import ExitCode
from colablock.urls import checked_index

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    parser = add_command(commands, "lock", "resolve from nothing and write a PEP 751 lock file")
    parser.add_argument("name", metavar="NAME|FILE")
    parser.add_argument("--python-version", metavar="X.Y[.Z]", help="the target's Python; default: this one")
    parser.add_argument(
        "--platform",
        metavar="TAG",
        help="the target's platform, such as manylinux_2_35_x86_64; default: this one",
    )
    parser.add_argument("--variant", metavar="V", help="variant of the matrix; by default the first")
    parser.add_argument(
        "--with",
        dest="with_",
        metavar="REQ",
        action="append",
        default=[],
        help="a requirement of your own (repeatable)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write here in place of standard output"
    )
    add_sources(parser)
    parser.set_defaults(handler=_lock)


def _lock(call: Call) -> int:
    from colablock.standing import Ask

    ask = Ask(
        name=call.args.name,
        variant=call.args.variant,
        with_=tuple(call.args.with_),
        default_index=checked_index(call.args.default_index),
        find_links=tuple(call.args.find_links),
        offline=call.args.offline,
    )
    with pipeline_of(call) as pipeline:
        text = pipeline.lock(
            ask, python_version=call.args.python_version, platform=call.args.platform, output=call.args.output
        )
    if call.args.json:
        written = {"lock": text.decode()} if call.args.output is None else {"output": str(call.args.output)}
        print_json({**written, "bytes": len(text)}, call.out)
    elif call.args.output is None:
        call.out.file.write(text.decode())
    elif not call.args.quiet:
        call.err.print(f"wrote {call.args.output}", markup=False)
    return ExitCode.DONE
