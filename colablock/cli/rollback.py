"""Undo changes, and list them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from colablock._common.urls import checked_index
from colablock.cli.common import (
    Call,
    add_command,
    add_sources,
    agreed,
    can_ask,
    print_json,
    session_of,
)
from colablock.errors import ExitCode, Refused

if TYPE_CHECKING:
    from colablock.planning.options import UndoOptions

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
    parser.add_argument(
        "--with-companions",
        action="store_true",
        help="where others have moved distributions since, put back those that would break or be broken, in"
        " the versions before the change; they come from the index",
    )
    parser.add_argument(
        "--leave-broken",
        action="store_true",
        help="undo the change even if it leaves requirements unmet that are met now (exit code 5)",
    )
    parser.add_argument("--yes", "-y", action="store_true", help="change the environment without asking")
    add_sources(parser)
    parser.set_defaults(handler=_rollback)


def _add_history(commands: Any) -> None:
    parser = add_command(commands, "history", "list the changes of an environment")
    parser.add_argument("--python", metavar="EXE", help="interpreter of the environment; default: this one")
    parser.add_argument(
        "--drop",
        metavar="N",
        type=int,
        nargs="?",
        const=True,
        help="delete the stashes of change N and of those before it, which frees disk space but makes them"
        " impossible to undo; without N, of all changes",
    )
    parser.set_defaults(handler=_history)


def _rollback(call: Call) -> int:
    from colablock.display.info_view import undone_document
    from colablock.display.text import render
    from colablock.operations.rollback import recover_interrupted, undo_changes
    from colablock.transaction.recovery import RecoveryOutcome
    from colablock.transaction.serialise import undone_to_json

    args = call.args
    options = _options(args)
    with session_of(call) as session:
        outcome = recover_interrupted(session, args.python)
    is_recovered = outcome is RecoveryOutcome.UNDONE and not options.to_first
    if not is_recovered:
        options = _agreed(call, options)
    with session_of(call) as session:
        undone = () if is_recovered else undo_changes(session, args.python, options)
    if args.json:
        written = [undone_to_json(one) for one in undone]
        print_json({"undone": written, "interrupted": is_recovered}, call.out)
    else:
        render(undone_document(undone), call.out)
    if call.shell is not None:
        from colablock.display.notebook import finish_command

        finish_command([module for one in undone for module in one.restart], call.shell)
    return ExitCode.NOT_PROVEN if any(one.broken for one in undone) else ExitCode.DONE


def _options(args: Any) -> UndoOptions:
    from colablock.planning.options import UndoOptions

    return UndoOptions(
        to_first=args.to == "first",
        companions=args.with_companions,
        leave_broken=args.leave_broken,
        default_index=checked_index(args.default_index),
        find_links=tuple(args.find_links),
        offline=args.offline,
    )


def _agreed(call: Call, options: UndoOptions) -> UndoOptions:
    """Show what would be undone, and ask for consent.  Raises Refused without it."""
    from colablock.display.info_view import history_document, preview_document
    from colablock.display.text import render
    from colablock.operations.rollback import list_changes, preview_changes

    args = call.args
    with session_of(call) as session:
        changes = list_changes(session, args.python)
    if not changes:
        return options  # the undo says why
    if not (args.quiet or args.json):
        render(history_document(changes if options.to_first else changes[-1:]), call.err)
    if not can_ask(call):
        return options  # the undo judges it, too
    with session_of(call) as session:
        preview = preview_changes(session, args.python, to_first=options.to_first)
    render(preview_document(preview), call.err)
    if preview.companions and not (options.companions or options.leave_broken):
        options = replace(options, companions=agreed(call, "Put these back as well?"))
    if not agreed(call, "Undo all of this?" if options.to_first else "Undo this?"):
        raise Refused("nothing was changed: the rollback was declined", hint="Answer `y`, or pass `--yes`")
    return options


def _history(call: Call) -> int:
    from colablock.display.info_view import history_document
    from colablock.display.text import render
    from colablock.operations.rollback import (
        drop_stashes,
        list_changes,
        list_damaged,
        list_interrupted,
        list_undone,
    )
    from colablock.transaction.apply_record import home_folder
    from colablock.transaction.isolated_envs import has_envs
    from colablock.transaction.serialise import change_to_json

    args = call.args
    with session_of(call) as session:
        if args.drop is not None:
            drop_stashes(session, args.python, None if args.drop is True else args.drop)
        changes, damaged = list_changes(session, args.python), list_damaged(session, args.python)
        undone, begun = list_undone(session, args.python), list_interrupted(session, args.python)
    if args.json:
        faults = [{"number": one.number, "file": str(one.file), "fault": one.fault} for one in damaged]
        more = {"damaged": faults} if faults else {}
        past = [{key: value for key, value in asdict(one).items() if key != "site"} for one in undone]
        written = {"changes": [change_to_json(change) for change in changes], "undone": past, **more}
        print_json(written, call.out)
    else:
        built = has_envs(home_folder(call.environ))
        render(history_document(changes, damaged, undone, begun, has_envs=built), call.out)
    return ExitCode.DONE
