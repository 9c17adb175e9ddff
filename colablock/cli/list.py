"""List and show matrices, recorded runtimes and this machine."""

from __future__ import annotations

from typing import Any

from colablock.cli.common import MATRIX, Call, add_command, print_json
from colablock.errors import ExitCode

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    parser = add_command(commands, "list", "list the matrices and the recorded runtimes")
    parser.set_defaults(handler=_list)
    parser = add_command(commands, "show", "show one matrix, with the reason for every entry")
    parser.add_argument("name", metavar="NAME", help=MATRIX)
    parser.set_defaults(handler=_show)
    parser = add_command(commands, "info", "show what colablock detects on this machine, for a bug report")
    parser.add_argument("--python", metavar="EXE", help="inspect this interpreter")
    parser.set_defaults(handler=_info)


def _list(call: Call) -> int:
    from colablock.display.info_view import list_document
    from colablock.display.text import render
    from colablock.operations.info import list_facts

    found = list_facts(call.environ)
    if call.args.json:
        print_json(found, call.out)
    else:
        render(list_document(found), call.out)
    return ExitCode.DONE


def _show(call: Call) -> int:
    from colablock.display.info_view import facts_document
    from colablock.display.text import render
    from colablock.operations.info import matrix_facts

    facts = matrix_facts(call.args.name, call.environ)
    if call.args.json:
        print_json(facts, call.out)
    else:
        render(facts_document(facts), call.out)
    return ExitCode.DONE


def _info(call: Call) -> int:
    from colablock.display.info_view import facts_document
    from colablock.display.text import render
    from colablock.operations.info import machine_facts

    facts = machine_facts(call.environ, python=call.args.python)
    if call.args.json:
        print_json(facts, call.out)
    else:
        render(facts_document(facts), call.out)
    return ExitCode.DONE
