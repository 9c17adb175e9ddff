"""Write new training configs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock.cli.common import Call, add_command, print_json
from colablock.errors import ColablockError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from colablock.training.preflight.facts import Card
    from colablock.training.preflight.model_config import ModelShape

__all__ = ["add"]

_MODEL = "Qwen/Qwen2.5-1.5B"  # not gated, and proven to train on every card that hosted notebooks offer
_DATASET = "data.jsonl"


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    parser = add_command(commands, "new-config", "write a commented training config, sized for a card")
    parser.add_argument(
        "--model",
        metavar="M",
        default=_MODEL,
        help=f"base model: a folder, or a name on the Hub; default: {_MODEL}",
    )
    parser.add_argument(
        "--dataset",
        metavar="D",
        default=_DATASET,
        help=f"training data: a JSON Lines file, or a name on the Hub; default: {_DATASET}",
    )
    parser.add_argument(
        "--card",
        metavar="CARD",
        help="card to size the config for, such as T4, or `none`; default: the card of this machine",
    )
    parser.add_argument(
        "--runner", choices=["axolotl", "trl"], default="trl", help="training library; default: trl"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write to FILE instead of standard output"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.set_defaults(handler=_new_config)


def _new_config(call: Call) -> int:
    import yaml

    from colablock.authoring.new import write_file
    from colablock.training.new_config import config_text, fits_on
    from colablock.training.preflight.machine import read_machine, system_memory

    args = call.args
    if args.card:
        card, (ram, _) = _declared(args.card), system_memory()
    else:
        machine = read_machine(call.environ, args.output or Path())
        card, ram = next(iter(machine.cards), None), machine.ram
    shape, notes = _shape(args.model, call.environ)
    fits = fits_on(card, ram, shape, args.runner)
    text = config_text(args.model, args.dataset, card, shape, args.runner, fits=fits)
    if args.output is not None:
        write_file(args.output, text, force=args.force)
    if args.json:
        output = str(args.output) if args.output is not None else None
        print_json({"output": output, "config": yaml.safe_load(text), "notes": notes}, call.out)
        return ExitCode.DONE
    if args.output is None:
        call.out.file.write(text)
    elif not args.quiet:
        call.err.print(f"wrote {args.output}", markup=False, soft_wrap=True)
    for note in () if args.quiet else notes:
        call.err.print(f"note: {note}", markup=False, soft_wrap=True)
    return ExitCode.DONE


def _declared(name: str) -> Card | None:
    """Return the card of that name; None for ``none``."""
    from colablock.environment.accelerator import declared
    from colablock.training.preflight.machine import card_of

    return next(map(card_of, declared(name).devices), None)


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
