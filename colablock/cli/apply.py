"""Plan a change, apply it, prove it, and run commands in the result."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.text import command_line
from colablock.cli.common import (
    MATRIX,
    Call,
    add_command,
    add_reinstall,
    add_sources,
    add_target,
    agreed,
    options_of,
    print_json,
    session_of,
)
from colablock.errors import AppliedNotProven, ExitCode, InvalidInput, PlanOutdated, Refused
from colablock.planning.plan import Target

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.planning.options import ApplyOptions
    from colablock.planning.plan import Plan
    from colablock.verification.verify import Report

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add these commands to the parser."""
    _add_plan(commands)
    _add_apply(commands)
    _add_run(commands)
    _add_verify(commands)
    _add_why(commands)


def _add_plan(commands: Any) -> None:
    parser = add_command(commands, "plan", "show what `apply` would change, and why; change nothing")
    add_target(parser, has_bundle=True)
    parser.add_argument(
        "--runtime", metavar="R", help="plan for a recorded runtime, such as colab-2026.08-gpu"
    )
    add_reinstall(parser)
    add_sources(parser)
    parser.set_defaults(handler=_plan)


def _add_apply(commands: Any) -> None:
    parser = add_command(commands, "apply", "change the environment to match a matrix, and prove it")
    add_target(parser, has_bundle=True)
    parser.add_argument(
        "--yes", "-y", action="store_true", help="change an existing environment without asking"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the result even when a check fails (exit code 5)"
    )
    add_reinstall(parser)
    parser.add_argument(
        "--no-undo",
        dest="undo",
        action="store_false",
        help="on overlayfs, delete files of the image instead of copying them to a stash: faster and"
        " smaller, but the change can neither be rolled back on failure nor undone later",
    )
    parser.add_argument(
        "--break-system-packages",
        action="store_true",
        help="change the environment even if it is marked as externally managed (PEP 668)",
    )
    add_sources(parser)
    parser.set_defaults(handler=_apply)


def _add_run(commands: Any) -> None:
    parser = add_command(
        commands, "run", "run a command in the environment of the last apply", has_result=False
    )
    parser.add_argument("name", metavar="NAME", help=MATRIX)
    parser.add_argument("argv", metavar="CMD", nargs=argparse.REMAINDER, help="the command, after `--`")
    parser.set_defaults(handler=_run)


def _add_verify(commands: Any) -> None:
    parser = add_command(commands, "verify", "prove the environment of the last apply again")
    parser.add_argument("name", metavar="NAME", help=MATRIX)
    parser.add_argument(
        "--receipt",
        metavar="FILE",
        type=Path,
        help="write a receipt of the apply to FILE, to contribute it; only if every check passes",
    )
    parser.set_defaults(handler=_verify)


def _add_why(commands: Any) -> None:
    parser = add_command(commands, "why", "explain the version of a package in the plan, or the target")
    add_target(parser, has_bundle=True)
    parser.add_argument(
        "package", metavar="PKG", nargs="?", help="name of the package; without it, the target is explained"
    )
    parser.add_argument(
        "--not",
        dest="absent",
        metavar="PKG",
        help="explain why this package, or this version as in `torch==2.8`, is not in the plan",
    )
    parser.add_argument("--runtime", metavar="R", help="plan for a recorded runtime")
    add_sources(parser)
    parser.set_defaults(handler=_why)


def _plan(call: Call) -> int:
    from colablock.operations.plan import plan_change
    from colablock.transaction.serialise import plan_to_json

    with session_of(call) as session:
        plan = plan_change(session, options_of(call.args, call.environ)).plan
    if call.args.json:
        print_json(plan_to_json(plan), call.out)
    else:
        _show_plan(call, plan, call.out)
    return ExitCode.DONE


def _show_plan(call: Call, plan: Plan, console: Console) -> None:
    """Write *plan*, and how the rest of it is shown."""
    from colablock.display.plan_view import plan_document
    from colablock.display.text import render
    from colablock.display.view import Document, Note, one_line

    if plan.shadow is not None and one_line(plan.shadow) in call.told:
        plan = replace(plan, shadow=None)
    render(plan_document(plan), console, verbose=call.args.verbose)
    if not call.args.verbose and call.shell is None and (plan.steps or plan.kept):
        text = "`--verbose` lists every distribution, with its whole reason and its file"
        render(Document(blocks=(Note(label="note", text=text),)), console)


def _apply(call: Call) -> int:
    from colablock.display.report_view import report_document
    from colablock.display.text import render
    from colablock.transaction.serialise import plan_to_json, report_to_json
    from colablock.transaction.up_to_date import up_to_date_report

    options = options_of(call.args, call.environ)
    plan, report = None, up_to_date_report(options, call.environ)
    if report is None:
        plan, report = _carried_out(call, options)
    if call.args.json:
        written = {"plan": plan_to_json(plan)} if plan is not None else {}
        print_json({**written, "report": report_to_json(report)}, call.out)
    else:
        told = plan.notes if plan is not None and _is_shown(call, plan) else ()
        notes = tuple(note for note in report.notes if note not in told)
        render(report_document(replace(report, notes=notes)), call.out, verbose=call.args.verbose)
    if call.shell is not None:
        from colablock.display.notebook import finish_command

        finish_command(report.restart, call.shell, matrix=report.matrix)
    return ExitCode.DONE if report.passed else AppliedNotProven.exit_code


def _is_shown(call: Call, plan: Plan) -> bool:
    """Whether `apply` shows *plan* before it changes anything."""
    return bool(plan.steps) and not (plan.is_in_place or call.args.quiet or call.args.json)


def _carried_out(call: Call, options: ApplyOptions, *, earlier_plans: int = 0) -> tuple[Plan, Report]:
    """Plan, show the plan, ask for consent, and carry the plan out.  Raises Refused without consent."""
    from colablock.operations.apply import MOST_PLANS, carry_out
    from colablock.operations.plan import plan_change

    with session_of(call) as session:
        planned = plan_change(session, options, recover=True)
    plan = planned.plan
    if _is_shown(call, plan):
        _show_plan(call, plan, call.err)
    if plan.steps and plan.target is Target.KERNEL and not agreed(call, "Change this environment?"):
        raise Refused("nothing was changed: the plan was declined", hint="Answer `y`, or pass `--yes`")
    with session_of(call) as session:
        try:
            return plan, carry_out(session, options, planned)
        except PlanOutdated as error:
            if earlier_plans + 1 == MOST_PLANS:
                raise
            session.reporter.note(f"planning again: {error}")
    return _carried_out(call, options, earlier_plans=earlier_plans + 1)


def _run(call: Call) -> int:
    from colablock.operations.run import run_command

    argv = call.args.argv
    if not argv:
        command = command_line("run", call.args.name, "--", "python", "train.py")
        hint = f"Name one after `--`: `{command}`"
        raise InvalidInput("no command to run", hint=hint)
    with session_of(call) as session:
        return run_command(session, call.args.name, argv)


def _verify(call: Call) -> int:
    from colablock.display.report_view import report_document
    from colablock.display.text import render
    from colablock.operations.last_apply import receipt_of, verify_last_apply
    from colablock.training.evidence import write_apply_receipt
    from colablock.transaction.serialise import report_to_json

    with session_of(call) as session:
        report = verify_last_apply(session, call.args.name)
        if call.args.receipt is not None and report.passed:
            write_apply_receipt(receipt_of(session, call.args.name, report), call.args.receipt)
    # Only now has the reporter said its last line.
    if call.args.json:
        print_json(report_to_json(report), call.out)
    else:
        render(report_document(report), call.out, verbose=call.args.verbose)
    return ExitCode.DONE if report.passed else ExitCode.UNMET


def _why(call: Call) -> int:
    from colablock.display.text import render
    from colablock.display.view import Document, Note
    from colablock.operations.plan import explain_plan
    from colablock.operations.session import named_in_bundle

    args = call.args
    if args.package is not None and args.absent is not None:
        raise InvalidInput("`--not` cannot be used with another package", hint="Omit one of them")
    if args.absent is None:
        args.name, args.package = named_in_bundle(args.name, args.package, args.bundle)
    with session_of(call) as session:
        lines = explain_plan(session, options_of(args, call.environ), args.package, absent=args.absent)
    if args.json:
        print_json({"package": args.package or args.absent, "because": lines}, call.out)
    else:
        render(Document(blocks=tuple(map(Note, lines))), call.out)
    return ExitCode.DONE
