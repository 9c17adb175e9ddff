"""List and remove isolated environments."""

from __future__ import annotations

from typing import Any

from colablock.cli.common import Call, add_command, print_json
from colablock.errors import ExitCode

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    parser = commands.add_parser(
        "env", help="isolated environments", description="List and remove isolated environments."
    )
    below = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    parser = add_command(below, "list", "list the isolated environments, and show which are current")
    parser.set_defaults(handler=_list_envs)
    parser = add_command(below, "remove", "remove an isolated environment")
    parser.add_argument(
        "name",
        metavar="NAME|HASH",
        help="the current environment of a matrix, or the first characters of a lock's hash",
    )
    parser.set_defaults(handler=_remove_env)


def _list_envs(call: Call) -> int:
    from colablock.display.info_view import envs_document
    from colablock.display.text import render
    from colablock.transaction.apply_record import home_folder
    from colablock.transaction.isolated_envs import list_envs
    from colablock.transaction.serialise import built_to_json

    built = list_envs(home_folder(call.environ))
    if call.args.json:
        print_json({"environments": [built_to_json(one) for one in built]}, call.out)
    else:
        render(envs_document(built), call.out)
    return ExitCode.DONE


def _remove_env(call: Call) -> int:
    from colablock._common.text import size_text
    from colablock.transaction.apply_record import home_folder
    from colablock.transaction.isolated_envs import remove_env
    from colablock.transaction.serialise import built_to_json

    removed = remove_env(home_folder(call.environ), call.args.name)
    if call.args.json:
        print_json({"removed": built_to_json(removed)}, call.out)
    elif not call.args.quiet:
        call.err.print(f"removed {removed.folder}: {size_text(removed.size)}", markup=False)
    return ExitCode.DONE
