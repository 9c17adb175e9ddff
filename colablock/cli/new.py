"""Write new matrices and training configs, and the schema of the matrix file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.urls import redacted
from colablock.cli.common import MATRIX, Call, add_command, agreed, print_json, print_note, session_of
from colablock.errors import ColablockError, ExitCode
from colablock.matrix.schema import RUNNERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from colablock.authoring.local_labels import LabelBinding
    from colablock.authoring.new import NewMatrix
    from colablock.training.preflight.model_config import ModelShape

__all__ = ["add"]

_MODEL = "Qwen/Qwen2.5-1.5B"  # not gated, and proven to train on every card that hosted notebooks offer
_DATASET = "data.jsonl"


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    _add_new(commands)
    _add_schema(commands)
    _add_new_config(commands)


def _add_new(commands: Any) -> None:
    parser = add_command(commands, "new", "write a commented matrix file as a starting point")
    parser.add_argument("name", metavar="NAME", help="name of the new matrix")
    parser.add_argument(
        "--from-requirements",
        metavar="FILE",
        help="start with the requirements of FILE: a requirements.txt, the output of pip freeze,"
        " a pylock.toml, a script (PEP 723) or a pyproject.toml[:GROUP or EXTRA]",
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


def _add_schema(commands: Any) -> None:
    parser = add_command(commands, "schema", "print the JSON schema of the matrix file, for editors")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output"
    )
    parser.set_defaults(handler=_schema)


def _add_new_config(commands: Any) -> None:
    parser = add_command(commands, "new-config", "write a commented training config, sized for a card")
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help=f"{MATRIX}, whose stack the config is for; default: the stack that was applied last",
    )
    parser.add_argument(
        "--model",
        metavar="M",
        type=redacted,
        default=_MODEL,
        help=f"base model: a folder, or a name on the Hub; default: {_MODEL}",
    )
    parser.add_argument(
        "--dataset",
        metavar="D",
        type=redacted,
        default=_DATASET,
        help=f"training data: a JSON Lines file, or a name on the Hub; default: {_DATASET}",
    )
    parser.add_argument(
        "--card",
        metavar="CARD",
        help="card to size the config for, such as T4, or `none`; default: the card of this machine",
    )
    parser.add_argument(
        "--runner",
        choices=RUNNERS,
        help="training library; default: the matrix's own, or trl",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.set_defaults(handler=_new_config)


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
        agrees=lambda binding: _agrees(call, binding),
    )
    written = write_new(options, call.environ)
    if args.json:
        print_json(_as_json(written), call.out)
    elif not args.quiet:
        call.err.print(f"wrote {written.output}{_counted(written)}")
        for note in written.notes:
            print_note(call, note)
        call.err.print("\nNext, after you have filled in every `why`:")
        for command in written.following:
            call.err.print(f"  {command}")
    return ExitCode.DONE


def _agrees(call: Call, binding: LabelBinding) -> bool:
    names = ", ".join(binding.names)
    return agreed(call, f"Take {names} from {binding.index} only, which serves their local label?")


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
        call.err.print(f"wrote {path}")
    return ExitCode.DONE


def _new_config(call: Call) -> int:
    import yaml

    from colablock.authoring.new import write_file
    from colablock.environment.accelerator import declared
    from colablock.operations.training_stack import training_stack
    from colablock.training.new_config import config_text, fits_on
    from colablock.training.preflight.machine import card_of, read_machine, system_memory

    args = call.args
    if args.card:
        accelerator, (ram, _) = declared(args.card), system_memory()
        card = next(map(card_of, accelerator.devices), None)
    else:
        machine = read_machine(call.environ, args.output or Path())
        accelerator, card, ram = machine.accelerator, next(iter(machine.cards), None), machine.ram
    with session_of(call) as session:
        found = training_stack(session, args.name, accelerator, runner=args.runner)
    shape, notes = _shape(args.model, call.environ)
    if found.matrix is not None and found.trainer is None:
        notes.append(f"the version of {found.runner} in `{found.matrix}` is unknown: it has no lock with it")
    text = config_text(
        args.model,
        args.dataset,
        card,
        shape,
        found.runner,
        fits=fits_on(card, ram, shape, found.runner, found.stack),
        matrix=found.matrix,
        trainer=found.trainer,
    )
    if args.output is not None:
        write_file(args.output, text, force=args.force)
    if args.json:
        output = str(args.output) if args.output is not None else None
        print_json({"output": output, "config": yaml.safe_load(text), "notes": notes}, call.out)
        return ExitCode.DONE
    if args.output is None:
        call.out.file.write(text)
    elif not args.quiet:
        call.err.print(f"wrote {args.output}")
    for note in () if args.quiet else notes:
        print_note(call, note)
    return ExitCode.DONE


def _shape(model: str, environ: Mapping[str, str]) -> tuple[ModelShape | None, list[str]]:
    """Return the shape of the model, else None and a note: a config can be written without it."""
    from colablock.training.preflight.hub import read_model_config
    from colablock.training.preflight.model_config import from_config
    from colablock.training.secrets import find_token, secret_stores

    token, notes = find_token("HF_TOKEN", environ, secret_stores(environ))
    try:
        found = from_config(read_model_config(model, None, token.value if token else None, environ))
    except ColablockError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return None, [*notes, f"the config of the model could not be read: {error}{hint}"]
    return found, []
