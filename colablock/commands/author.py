"""Writing matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from colablock.commands.call import Call, add_command, print_json
from colablock.errors import ExitCode, InvalidInput

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    parser = add_command(commands, "schema", "the JSON schema of the matrix file, for editors")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write here in place of standard output"
    )
    parser.set_defaults(handler=_schema)


def _schema(call: Call) -> int:
    from colablock.matrix_json import json_schema

    path = call.args.output
    if path is None:
        print_json(json_schema(), call.out)
        return ExitCode.DONE
    _write(path, json.dumps(json_schema(), indent=2) + "\n", force=True)
    if call.args.json:
        print_json({"output": str(path)}, call.out)
    elif not call.args.quiet:
        call.err.print(f"wrote {path}", markup=False)
    return ExitCode.DONE


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a file, over one that is there only where *force* allows it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidInput(f"`{path}` is there already", hint="`--force` writes over it") from None
    except OSError as error:
        raise InvalidInput(f"`{path}` cannot be written: {error.strerror}") from error
