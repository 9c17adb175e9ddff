"""The command line: reads arguments, owns the console, turns errors into exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock import __version__
from colablock.errors import AppliedNotProven, ColablockError, ExitCode, InvalidInput, Refused
from colablock.plan import Remedy, Target
from colablock.urls import checked_index

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.pipeline import Pipeline
    from colablock.plan import Plan
    from colablock.standing import Ask
    from colablock.verify import Report

__all__ = ["build_parser", "main"]

EPILOG = """exit codes: 0 done; 1 the request cannot be met and nothing changed; 2 usage or invalid matrix;
3 failed and rolled back; 4 failed and not restored; 5 applied but not proven (--keep);
70 a bug of ours; 130 interrupted"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the reference page of the command line is made from it."""
    parser = argparse.ArgumentParser(
        prog="colablock",
        description="Make a declared QLoRA stack fit the notebook runtime that is there.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"colablock {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_plan(commands)
    _add_apply(commands)
    _add_run(commands)
    _add_lock(commands)
    _add_verify(commands)
    _add_why(commands)
    _add_rollback(commands)
    _add_history(commands)
    _add_env(commands)
    _add_listings(commands)
    return parser


def _command(commands: Any, name: str, help_text: str, *, has_result: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}."
    )
    output = parser.add_argument_group("output")
    if has_result:
        output.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.set_defaults(json=False)
    output.add_argument("-q", "--quiet", action="store_true", help="no progress and no notes")
    output.add_argument(
        "-v", "--verbose", action="store_true", help="fold nothing; show a traceback with an error"
    )
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where candidates come from")
    group.add_argument("--default-index", metavar="URL", help="simple index in place of the default one")
    group.add_argument(
        "--find-links",
        metavar="DIR",
        action="append",
        default=[],
        help="folder or page of files that come before any index (repeatable)",
    )
    group.add_argument("--offline", action="store_true", help="ask the network for nothing")


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what it is for")
    group.add_argument("name", metavar="NAME", help="a matrix by name, or the path of its file")
    group.add_argument(
        "--into", choices=[t.value for t in Target], help="where it goes; by default chosen, with the reason"
    )
    group.add_argument(
        "--python",
        metavar="EXE",
        help="interpreter whose environment is the kernel target, or that an env is made with",
    )
    group.add_argument(
        "--variant", metavar="V", help="variant of the matrix; by default chosen by the accelerator"
    )
    group.add_argument(
        "--with",
        dest="with_",
        metavar="REQ",
        action="append",
        default=[],
        help="a requirement of your own, in the same solve (repeatable)",
    )
    group.add_argument(
        "--lock",
        metavar="FILE",
        type=Path,
        help="take the pins of this lock file; nothing else is asked of an index",
    )
    group.add_argument(
        "--protect",
        metavar="NAME",
        action="append",
        default=[],
        help="keep this installed distribution as it is (repeatable)",
    )
    group.add_argument(
        "--broken",
        choices=[r.value for r in Remedy],
        help="what is done with everything that breaks directly",
    )


def _add_plan(commands: Any) -> None:
    parser = _command(commands, "plan", "what would change and why; nothing is touched")
    _add_target(parser)
    parser.add_argument(
        "--runtime", metavar="R", help="plan for a recorded runtime, such as colab-2026.08-gpu"
    )
    _add_sources(parser)
    parser.set_defaults(handler=_plan)


def _add_apply(commands: Any) -> None:
    parser = _command(commands, "apply", "change the environment and prove it")
    _add_target(parser)
    parser.add_argument(
        "--yes", "-y", action="store_true", help="do not ask before an existing environment is changed"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep what was applied even when a proof fails (exit 5)"
    )
    parser.add_argument(
        "--no-undo",
        dest="undo",
        action="store_false",
        help="where an image's files would have to be copied to keep them (overlayfs), take them away:"
        " quicker and smaller, but such a change can neither be rolled back nor undone",
    )
    parser.add_argument(
        "--break-system-packages",
        action="store_true",
        help="change the environment although it is marked as externally managed (PEP 668)",
    )
    _add_sources(parser)
    parser.set_defaults(handler=_apply)


def _add_run(commands: Any) -> None:
    parser = _command(commands, "run", "run a command in the environment that was applied", has_result=False)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("argv", metavar="CMD", nargs=argparse.REMAINDER, help="the command, after --")
    parser.set_defaults(handler=_run)


def _add_lock(commands: Any) -> None:
    parser = _command(commands, "lock", "resolve from nothing and write a PEP 751 lock file")
    parser.add_argument("name", metavar="NAME|FILE")
    parser.add_argument("--python-version", metavar="X.Y[.Z]", help="the target's Python; default: this one")
    parser.add_argument(
        "--platform",
        metavar="TAG",
        help="the target's platform, such as manylinux_2_35_x86_64; default: this one",
    )
    parser.add_argument("--variant", metavar="V", help="variant of the matrix; by default the first")
    parser.add_argument(
        "--with",
        dest="with_",
        metavar="REQ",
        action="append",
        default=[],
        help="a requirement of your own (repeatable)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write here in place of standard output"
    )
    _add_sources(parser)
    parser.set_defaults(handler=_lock)


def _add_verify(commands: Any) -> None:
    parser = _command(commands, "verify", "prove the environment that was applied")
    parser.add_argument("name", metavar="NAME")
    parser.set_defaults(handler=_verify)


def _add_why(commands: Any) -> None:
    parser = _command(commands, "why", "why this version, or why this removal")
    _add_target(parser)
    parser.add_argument("package", metavar="PKG", help="the package in question")
    parser.add_argument("--runtime", metavar="R", help="ask for a recorded runtime")
    _add_sources(parser)
    parser.set_defaults(handler=_why)


def _add_rollback(commands: Any) -> None:
    parser = _command(commands, "rollback", "undo the last change of an environment")
    parser.add_argument(
        "--python", metavar="EXE", help="undo what was changed in this interpreter's environment"
    )
    parser.add_argument(
        "--to", choices=["last", "first"], default="last", help="before the last change, or before the first"
    )
    parser.add_argument(
        "--yes", "-y", action="store_true", help="do not ask before the environment is changed"
    )
    parser.set_defaults(handler=_rollback)


def _add_history(commands: Any) -> None:
    parser = _command(commands, "history", "what was changed in an environment, and when")
    parser.add_argument("--python", metavar="EXE", help="tell of this interpreter's environment")
    parser.add_argument(
        "--drop",
        metavar="N",
        type=int,
        nargs="?",
        const=0,
        help="free the disk of what is kept to undo change N and those before it; without N, all of them",
    )
    parser.set_defaults(handler=_history)


def _add_env(commands: Any) -> None:
    parser = commands.add_parser(
        "env", help="the isolated environments", description="The isolated environments that were built."
    )
    below = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    parser = _command(below, "list", "which isolated environments there are, and which are current")
    parser.set_defaults(handler=_list_envs)
    parser = _command(below, "remove", "take an isolated environment away")
    parser.add_argument(
        "name", metavar="NAME|HASH", help="the current one of a matrix, or the beginning of its lock's hash"
    )
    parser.set_defaults(handler=_remove_env)


def _add_listings(commands: Any) -> None:
    parser = _command(commands, "list", "the matrices that are found, and the recorded runtimes")
    parser.set_defaults(handler=_list)
    parser = _command(commands, "show", "one matrix, with the reason for every entry")
    parser.add_argument("name", metavar="NAME")
    parser.set_defaults(handler=_show)
    parser = _command(commands, "info", "what colablock sees here: for a bug report")
    parser.add_argument("--python", metavar="EXE", help="look at this interpreter")
    parser.set_defaults(handler=_info)


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of the command line: what was asked, and where answers go."""

    args: argparse.Namespace
    environ: Mapping[str, str]
    out: Console
    err: Console


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one command and return its exit code."""
    environ = os.environ if environ is None else environ
    args = _parsed(sys.argv[1:] if argv is None else argv)
    out, err = _consoles(environ)
    try:
        code = _answer(_Call(args, environ, out, err))
        sys.stdout.flush()
    except KeyboardInterrupt:
        err.print("interrupted", markup=False)
        if argv is None:
            _leave(ExitCode.INTERRUPTED)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return ExitCode.DONE
    except Exception:  # noqa: BLE001 - the last line of defence: a bug of ours has its own exit code
        err.print(traceback.format_exc(), markup=False, highlight=False)
        err.print(
            "This is a bug of colablock. Please report it with the output of `colablock info`.", markup=False
        )
        return ExitCode.BUG
    return code


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; of `run`, what stands after the first ``--`` is the command, untouched."""
    parser = build_parser()
    if list(argv[:1]) != ["run"] or "--" not in argv:
        return parser.parse_args(argv)
    at = list(argv).index("--")
    own, command = list(argv[:at]), list(argv[at + 1 :])
    args = parser.parse_args(own)
    if args.argv:  # options after the name, which argparse took for the command
        args = parser.parse_args([own[0], *args.argv, *own[1 : len(own) - len(args.argv)]])
    if args.argv:
        parser.error(f"what is `{args.argv[0]}` before `--`?")
    args.argv = command
    return args


def _answer(call: _Call) -> int:
    try:
        code: int = call.args.handler(call)
    except ColablockError as error:
        return _fail(error, call.args, call.out, call.err)
    return code


def _leave(code: ExitCode) -> None:
    """End this process without waiting for the threads that still wait for the network."""
    sys.stderr.flush()
    os._exit(code)


def _forget_output() -> None:
    """Lead standard output nowhere: its reader has gone, and Python would complain of it at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _consoles(environ: Mapping[str, str]) -> tuple[Console, Console]:
    from rich.console import Console as Plain  # heavy, and only the command line draws with it

    class Console(Plain):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # in place of rich's own way out, which is an exit code of 1

    plain = {"NO_COLOR": environ["NO_COLOR"]} if environ.get("NO_COLOR") else {}
    keywords: dict[str, Any] = {"highlight": False, "soft_wrap": False, "no_color": bool(plain) or None}
    return Console(**keywords), Console(stderr=True, **keywords)


def _fail(error: ColablockError, args: argparse.Namespace, out: Console, err: Console) -> int:
    from colablock.display_text import render_error

    if args.verbose:
        err.print(traceback.format_exc(), markup=False)
    if args.json:
        value = {"error": {"reference": error.reference, "message": str(error), "hint": error.hint}}
        _print_json({**value, "exit_code": int(error.exit_code)}, out)
    else:
        render_error(error, err)
    return int(error.exit_code)


def _print_json(value: object, out: Console) -> None:
    out.file.write(json.dumps(value, indent=2) + "\n")


@contextmanager
def _pipeline(call: _Call) -> Iterator[Pipeline]:
    from colablock.display import reporter_for
    from colablock.pipeline import Pipeline

    with reporter_for(call.err, quiet=call.args.quiet or call.args.json, environ=call.environ) as reporter:
        yield Pipeline(environ=call.environ, reporter=reporter)


def _ask(args: argparse.Namespace) -> Ask:
    from colablock.standing import Ask

    return Ask(
        name=args.name,
        into=Target(args.into) if args.into else None,
        python=args.python,
        runtime=getattr(args, "runtime", None),
        variant=args.variant,
        with_=tuple(args.with_),
        lock=args.lock,
        protect=tuple(args.protect),
        broken=Remedy(args.broken) if args.broken else None,
        default_index=checked_index(args.default_index),
        find_links=tuple(args.find_links),
        offline=args.offline,
        keep=getattr(args, "keep", False),
        undo=getattr(args, "undo", True),
        break_system_packages=getattr(args, "break_system_packages", False),
    )


def _plan(call: _Call) -> int:
    from colablock.display_text import render_plan
    from colablock.serialise import plan_to_json

    with _pipeline(call) as pipeline:
        plan = pipeline.prepare(_ask(call.args)).plan
    if call.args.json:
        _print_json(plan_to_json(plan), call.out)
    else:
        render_plan(plan, call.out, verbose=call.args.verbose)
    return ExitCode.DONE


def _apply(call: _Call) -> int:
    from colablock.display_text import render_report
    from colablock.serialise import plan_to_json, report_to_json
    from colablock.standing import standing_report

    ask = _ask(call.args)
    plan, report = None, standing_report(ask, call.environ)
    if report is None:
        plan, report = _carried_out(call, ask)
    if call.args.json:
        written = {"plan": plan_to_json(plan)} if plan is not None else {}
        _print_json({**written, "report": report_to_json(report)}, call.out)
    else:
        render_report(report, call.out, verbose=call.args.verbose)
    return ExitCode.DONE if report.passed else AppliedNotProven.exit_code


def _carried_out(call: _Call, ask: Ask) -> tuple[Plan, Report]:
    """Plan, show the plan, and do it where it is agreed to."""
    from colablock.display_text import render_plan

    with _pipeline(call) as pipeline:
        prepared = pipeline.prepare(ask, recover=True)
    plan = prepared.plan
    if plan.steps and not (call.args.quiet or call.args.json):
        render_plan(plan, call.err, verbose=call.args.verbose)
    if plan.steps and plan.target is Target.KERNEL and not _agreed(call, "Change this environment?"):
        raise Refused("nothing was changed: the plan was not agreed to", hint="Say yes, or pass `--yes`")
    with _pipeline(call) as pipeline:
        return plan, pipeline.carry_out(ask, prepared)


def _agreed(call: _Call, question: str) -> bool:
    """Ask a person at a terminal; where nobody can answer, the command itself is the answer."""
    if call.args.yes or call.args.json or not (sys.stdin.isatty() and call.err.is_terminal):
        return True
    call.err.print(f"{question} [y/N] ", end="", markup=False)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _run(call: _Call) -> int:
    argv = call.args.argv
    if not argv:
        hint = f"Name one after `--`: `colablock run {call.args.name} -- python train.py`"
        raise InvalidInput("no command to run", hint=hint)
    with _pipeline(call) as pipeline:
        return pipeline.run(call.args.name, argv)


def _lock(call: _Call) -> int:
    from colablock.standing import Ask

    ask = Ask(
        name=call.args.name,
        variant=call.args.variant,
        with_=tuple(call.args.with_),
        default_index=checked_index(call.args.default_index),
        find_links=tuple(call.args.find_links),
        offline=call.args.offline,
    )
    with _pipeline(call) as pipeline:
        text = pipeline.lock(
            ask, python_version=call.args.python_version, platform=call.args.platform, output=call.args.output
        )
    if call.args.json:
        written = {"lock": text.decode()} if call.args.output is None else {"output": str(call.args.output)}
        _print_json({**written, "bytes": len(text)}, call.out)
    elif call.args.output is None:
        call.out.file.write(text.decode())
    elif not call.args.quiet:
        call.err.print(f"wrote {call.args.output}", markup=False)
    return ExitCode.DONE


def _verify(call: _Call) -> int:
    from colablock.display_text import render_report
    from colablock.serialise import report_to_json

    with _pipeline(call) as pipeline:
        report = pipeline.verify(call.args.name)
    if call.args.json:
        _print_json(report_to_json(report), call.out)
    else:
        render_report(report, call.out, verbose=call.args.verbose)
    return ExitCode.DONE if report.passed else ExitCode.UNMET


def _why(call: _Call) -> int:
    with _pipeline(call) as pipeline:
        prepared = pipeline.prepare(_ask(call.args))
    lines = prepared.why(call.args.package)
    if call.args.json:
        _print_json({"package": call.args.package, "because": lines}, call.out)
    else:
        for line in lines:
            call.out.print(line, markup=False)
    return ExitCode.DONE


def _rollback(call: _Call) -> int:
    from colablock.display_text import render_history, render_undone
    from colablock.journal import Settled
    from colablock.serialise import undone_to_json

    args = call.args
    with _pipeline(call) as pipeline:
        is_put_back = pipeline.settle(args.python) is Settled.UNDONE and args.to == "last"
        changes = () if is_put_back else pipeline.history(args.python)
    if changes and not (args.quiet or args.json):
        render_history(changes if args.to == "first" else changes[-1:], call.err)
    if changes and not _agreed(call, "Undo this?" if args.to == "last" else "Undo all of this?"):
        raise Refused("nothing was changed: it was not agreed to", hint="Say yes, or pass `--yes`")
    with _pipeline(call) as pipeline:
        undone = () if is_put_back else pipeline.rollback(args.python, to_first=args.to == "first")
    if args.json:
        written = [undone_to_json(one) for one in undone]
        _print_json({"undone": written, "interrupted": is_put_back}, call.out)
    else:
        render_undone(undone, call.out)
    return ExitCode.DONE


def _history(call: _Call) -> int:
    from colablock.display_text import render_history
    from colablock.serialise import change_to_json

    args = call.args
    with _pipeline(call) as pipeline:
        if args.drop is not None:
            pipeline.drop(args.python, args.drop or None)
        changes = pipeline.history(args.python)
    if args.json:
        _print_json({"changes": [change_to_json(change) for change in changes]}, call.out)
    else:
        render_history(changes, call.out)
    return ExitCode.DONE


def _list_envs(call: _Call) -> int:
    from colablock.applied import home_folder
    from colablock.display_text import render_envs
    from colablock.envs import list_envs
    from colablock.serialise import built_to_json

    built = list_envs(home_folder(call.environ))
    if call.args.json:
        _print_json({"environments": [built_to_json(one) for one in built]}, call.out)
    else:
        render_envs(built, call.out)
    return ExitCode.DONE


def _remove_env(call: _Call) -> int:
    from colablock.applied import home_folder
    from colablock.display_words import size_text
    from colablock.envs import remove_env
    from colablock.serialise import built_to_json

    removed = remove_env(home_folder(call.environ), call.args.name)
    if call.args.json:
        _print_json({"removed": built_to_json(removed)}, call.out)
    elif not call.args.quiet:
        call.err.print(f"removed {removed.folder}: {size_text(removed.size)}", markup=False)
    return ExitCode.DONE


def _list(call: _Call) -> int:
    from colablock.display_text import render_listing
    from colablock.facts import listing

    found = listing(call.environ)
    if call.args.json:
        _print_json(found, call.out)
    else:
        render_listing(found, call.out)
    return ExitCode.DONE


def _show(call: _Call) -> int:
    from colablock.display_text import render_matrix
    from colablock.facts import matrix_facts

    facts = matrix_facts(call.args.name, call.environ)
    if call.args.json:
        _print_json(facts, call.out)
    else:
        render_matrix(facts, call.out)
    return ExitCode.DONE


def _info(call: _Call) -> int:
    from colablock.display_text import render_info
    from colablock.facts import info

    facts = info(call.environ, python=call.args.python)
    if call.args.json:
        _print_json(facts, call.out)
    else:
        render_info(facts, call.out)
    return ExitCode.DONE
