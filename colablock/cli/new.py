"""Writing matrices."""

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
    parser = add_command(commands, "new", "write a commented matrix file to start from")
    parser.add_argument("name", metavar="NAME", help="what the new matrix is called")
    parser.add_argument(
        "--from-requirements",
        metavar="FILE",
        help="begin with what a requirements.txt, pip freeze, pylock.toml or pyproject.toml[:GROUP] asks for",
    )
    parser.add_argument("--summary", metavar="TEXT", help="one line about it")
    parser.add_argument(
        "--python", metavar="SPEC", help="the Pythons that it can be installed on, such as >=3.11,<3.14"
    )
    parser.add_argument("--extends", metavar="OTHER", help="a matrix that it builds on, by name or path")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="where it goes; default: matrices/NAME.toml"
    )
    parser.add_argument(
        "--schema-file", action="store_true", help="write the JSON schema beside it, for editors"
    )
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.set_defaults(handler=_new)
    parser = add_command(commands, "schema", "the JSON schema of the matrix file, for editors")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write here in place of standard output"
    )
    parser.set_defaults(handler=_schema)


def _new(call: Call) -> int:
    from colablock.authoring.new import NewMatrixOptions, write_new

    args = call.args
    wish = NewMatrixOptions(
        name=args.name,
        output=args.output,
        summary=args.summary,
        requires_python=args.python,
        extends=args.extends,
        requirements=args.from_requirements,
        schema_file=args.schema_file,
        force=args.force,
    )
    written = write_new(wish, call.environ)
    if args.json:
        print_json(_as_json(written), call.out)
    elif not args.quiet:
        call.err.print(f"wrote {written.output}{_counted(written)}", markup=False, soft_wrap=True)
        for note in written.notes:
            call.err.print(f"note: {note}", markup=False)
        call.err.print("\nNext, once every `why` says something:", markup=False)
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
