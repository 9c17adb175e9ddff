"""Undo changes, and list them."""

from __future__ import annotations

from typing import Any

from colablock.cli.common import Call, add_command, agreed, print_json, session_of
from colablock.errors import ExitCode, Refused

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    _add_rollback(commands)
    _add_history(commands)


def _add_rollback(commands: Any) -> None:
    parser = add_command(commands, "rollback", "undo the last change of an environment")
    parser.add_argument("--python", metavar="EXE", help="interpreter of the environment; default: this one")
    parser.add_argument(
        "--to",
        choices=["last", "first"],
        default="last",
        help="undo the last change, or all changes back to the first",
    )
    parser.add_argument("--yes", "-y", action="store_true", help="change the environment without asking")
    parser.set_defaults(handler=_rollback)


def _add_history(commands: Any) -> None:
    parser = add_command(commands, "history", "list the changes of an environment")
    parser.add_argument("--python", metavar="EXE", help="interpreter of the environment; default: this one")
    parser.add_argument(
        "--drop",
        metavar="N",
        type=int,
        nargs="?",
        const=0,
        help="delete the stashes of change N and of those before it, which frees disk space but makes them"
        " impossible to undo; without N, of all changes",
    )
    parser.set_defaults(handler=_history)


def _rollback(call: Call) -> int:
    from colablock.display.info_view import history_document, undone_document
    from colablock.display.text import render
    from colablock.operations.rollback import list_changes, recover_interrupted, undo_changes
    from colablock.transaction.recovery import RecoveryOutcome
    from colablock.transaction.serialise import undone_to_json

    args = call.args
    with session_of(call) as session:
        outcome = recover_interrupted(session, args.python)
        is_recovered = outcome is RecoveryOutcome.UNDONE and args.to == "last"
        changes = () if is_recovered else list_changes(session, args.python)
    if changes and not (args.quiet or args.json):
        render(history_document(changes if args.to == "first" else changes[-1:]), call.err)
    if changes and not agreed(call, "Undo this?" if args.to == "last" else "Undo all of this?"):
        raise Refused("nothing was changed: the rollback was declined", hint="Answer `y`, or pass `--yes`")
    with session_of(call) as session:
        undone = () if is_recovered else undo_changes(session, args.python, to_first=args.to == "first")
    if args.json:
        written = [undone_to_json(one) for one in undone]
        print_json({"undone": written, "interrupted": is_recovered}, call.out)
    else:
        render(undone_document(undone), call.out)
    return ExitCode.DONE


def _history(call: Call) -> int:
    from colablock.display.info_view import history_document
    from colablock.display.text import render
    from colablock.operations.rollback import drop_stashes, list_changes, list_damaged
    from colablock.transaction.serialise import change_to_json

    args = call.args
    with session_of(call) as session:
        if args.drop is not None:
            drop_stashes(session, args.python, args.drop or None)
        changes, damaged = list_changes(session, args.python), list_damaged(session, args.python)
    if args.json:
        faults = [{"number": one.number, "file": str(one.file), "fault": one.fault} for one in damaged]
        more = {"damaged": faults} if faults else {}
        print_json({"changes": [change_to_json(change) for change in changes], **more}, call.out)
    else:
        render(history_document(changes, damaged), call.out)
    return ExitCode.DONE
