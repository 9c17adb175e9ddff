"""Write new matrices, and the schema of the matrix file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock.cli.common import Call, add_command, print_json
from colablock.errors import ExitCode

if TYPE_CHECKING:
    from colablock.authoring.new import NewMatrix

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    parser = add_command(commands, "new", "write a commented matrix file as a starting point")
    parser.add_argument("name", metavar="NAME", help="name of the new matrix")
    parser.add_argument(
        "--from-requirements",
        metavar="FILE",
        help="start with the requirements of FILE: a requirements.txt, the output of pip freeze,"
        " a pylock.toml or a pyproject.toml[:GROUP]",
    )
    parser.add_argument("--summary", metavar="TEXT", help="summary of the matrix, one line")
    parser.add_argument("--python", metavar="SPEC", help="supported Python versions, such as >=3.11,<3.14")
    parser.add_argument("--extends", metavar="OTHER", help="matrix to extend, by name or path")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="output file; default: matrices/NAME.toml"
    )
    parser.add_argument(
        "--schema-file", action="store_true", help="also write the JSON schema beside it, for editors"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.set_defaults(handler=_new)
    parser = add_command(commands, "schema", "print the JSON schema of the matrix file, for editors")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output"
    )
    parser.set_defaults(handler=_schema)


def _new(call: Call) -> int:
    from colablock.authoring.new import NewMatrixOptions, write_new

    args = call.args
    options = NewMatrixOptions(
        name=args.name,
        output=args.output,
        summary=args.summary,
        requires_python=args.python,
        extends=args.extends,
        requirements=args.from_requirements,
        schema_file=args.schema_file,
        force=args.force,
    )
    written = write_new(options, call.environ)
    if args.json:
        print_json(_as_json(written), call.out)
    elif not args.quiet:
        call.err.print(f"wrote {written.output}{_counted(written)}", markup=False, soft_wrap=True)
        for note in written.notes:
            call.err.print(f"note: {note}", markup=False)
        call.err.print("\nNext, after you have filled in every `why`:", markup=False)
        for command in written.following:
            call.err.print(f"  {command}", markup=False, soft_wrap=True)
    return ExitCode.DONE


def _counts(written: NewMatrix) -> dict[str, int]:
    parts = written.parts
    return {
        "packages": len({entry.name for entry in parts.packages}),
        "constraints": len({entry.name for entry in parts.constraints}),
        "indexes": len(parts.indexes),
    }


def _counted(written: NewMatrix) -> str:
    singular = {"packages": "package", "constraints": "constraint", "indexes": "index"}
    found = [f"{n} {singular[what] if n == 1 else what}" for what, n in _counts(written).items() if n]
    return f" with {', '.join(found)}" if found else ""


def _as_json(written: NewMatrix) -> dict[str, object]:
    return {
        "output": str(written.output),
        "schema_file": str(written.schema_file) if written.schema_file else None,
        **_counts(written),
        "notes": list(written.notes),
        "next": list(written.following),
    }


def _schema(call: Call) -> int:
    from colablock.authoring.new import schema_text, write_file

    path = call.args.output
    if path is None:
        call.out.file.write(schema_text())
        return ExitCode.DONE
    write_file(path, schema_text(), force=True)
    if call.args.json:
        print_json({"output": str(path)}, call.out)
    elif not call.args.quiet:
        call.err.print(f"wrote {path}", markup=False)
    return ExitCode.DONE
