"""The command line: parse the arguments, run one command, turn errors into exit codes."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from colablock._common.text import PROGRAM
from colablock._masking import masked
from colablock._version import __version__
from colablock.cli.common import Call, print_json
from colablock.cli.usage import completion
from colablock.cli.usage.called_as import called_as
from colablock.cli.usage.consoles import consoles
from colablock.cli.usage.parser import Parser
from colablock.errors import UNCHANGED, ColablockError, ExitCode, Interrupted, InvalidInput, interrupted_as

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.environment.notebook_host import Shell

__all__ = ["build_parser", "main"]

EPILOG = """Exit codes:
  0 done; 1 the request cannot be met and nothing changed; 2 usage or invalid
  matrix; 3 failed and rolled back; 4 failed and not restored; 5 applied but not
  proven (--keep); 70 a bug in colablock; 130 interrupted; 141 output closed"""


#: The state after an interrupt of a command, unless the place of the interrupt knows it better.
_COMPLETE = "Every file is complete: the old one or the new one."
_DELETING = "What is not deleted can still be used."
_STATES = {
    **dict.fromkeys(("apply", "plan", "rollback", "run", "smoke", "verify", "why"), UNCHANGED),
    **dict.fromkeys(("bundle", "check", "export", "lock", "new", "new-config", "runtime"), _COMPLETE),
    **dict.fromkeys(("cache", "env", "history"), _DELETING),
    "runs": "A run that was started goes on.",
    "train": "No run was started.",
}


#: The commands whose exit code says more than that their output is complete: a change, or a verdict.
_WITH_RESULT = frozenset({"apply", "audit", "check", "rollback", "smoke", "train", "verify"})

#: The modules of this package by the commands that they add, in the order of the reference page.
_MODULES = {
    "apply": ("plan", "apply", "run", "verify", "why"),
    "train": ("train", "smoke"),
    "runs": ("runs",),
    "explain": ("explain",),
    "lock": ("lock",),
    "export": ("export", "bundle"),
    "check": ("check", "audit"),
    "rollback": ("rollback", "history"),
    "runtime": ("runtime",),
    "new": ("new", "schema", "new-config"),
    "storage": ("env", "cache"),
    "list": ("list", "show", "info"),
    "usage.completion": ("completion",),
}


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """Return the parser.  `docs/generate.py` writes the reference page of the command line from it.

    With the name of a *command*, it has that one and those of its module: the others take time to load.
    """
    parser = Parser(
        prog="colablock",
        description="Resolve, install and prove a QLoRA training stack on a hosted notebook.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"colablock {__version__}")
    parser.set_defaults(shown=parser, json=False, verbose=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    wanted = [module for module, names in _MODULES.items() if command in names] or [*_MODULES]
    for module in wanted:
        import_module(f"colablock.cli.{module}").add(commands)
    return parser


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    shell: Shell | None = None,
) -> int:
    """Run one command and return its exit code.

    With the *shell* of a notebook, results are shown as HTML in its cell, and the modules that this
    kernel has loaded count.
    """
    environ = os.environ if environ is None else environ
    _open_missing_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:  # as of git, cargo and uv
        words = [*words[1:], "--help"]
    if tuple(words[:3]) == completion.WORDS:
        found = completion.candidates(build_parser(), words[3:], environ)
        sys.stdout.write("".join(f"{one}\n" for one in found))
        return ExitCode.DONE
    in_python = f"%{PROGRAM}" if shell is not None else PROGRAM
    program = called_as(sys.argv, environ) if argv is None else in_python
    try:
        args = _parsed(words)
    except InvalidInput as error:
        options = words[: words.index("--")] if "--" in words else words
        given = argparse.Namespace(json="--json" in options, verbose=False)
        return _print_error(error, given, *consoles(environ, program=program))
    if not hasattr(args, "handler"):
        args.shown.print_help()
        return ExitCode.DONE
    is_quiet = (args.json or getattr(args, "quiet", False)) and not args.verbose
    out, err = consoles(environ, shell, program, is_quiet=is_quiet)
    try:
        with interrupted_as(_STATES.get(args.command, "Nothing was changed.")):
            code = _run_command(Call(args, environ, out, err, shell))
            sys.stdout.flush()
    except Interrupted as interrupt:
        _print_interrupt(interrupt, args, out, err)
        if argv is None:
            _leave(ExitCode.INTERRUPTED)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return ExitCode.OUTPUT_CLOSED if args.command in _WITH_RESULT else ExitCode.DONE
    except OSError as error:  # the output cannot be written: its disk is full
        from colablock._common.fs import machine_error

        _discard_output()
        return _print_error(machine_error(error), args, out, err)
    except Exception:  # noqa: BLE001 - a bug in colablock has its own exit code
        err.print(masked(traceback.format_exc()), highlight=False)
        err.print("This is a bug in colablock. Please report it with the output of `colablock info`.")
        return ExitCode.BUG
    return code


def _parsed(argv: list[str]) -> argparse.Namespace:
    """Return the arguments.  With `run` and `train`, nothing after the first ``--`` is parsed."""
    parser = build_parser(argv[0] if argv else "")
    if argv[:1] not in (["run"], ["train"]) or "--" not in argv:
        return parser.parse_args(argv)
    at = argv.index("--")
    own, rest = argv[:at], argv[at + 1 :]
    if argv[0] == "run" and all(word.startswith("-") for word in own[1:]):
        parser.parse_args([*own, "NAME"])  # an option that does not exist comes first
        hint = f"Name the matrix: `colablock run NAME -- {shlex.join(rest) or 'CMD'}`"
        raise InvalidInput("`colablock run` needs `NAME` before `--`", hint=hint)
    args = parser.parse_args(own)
    if args.command == "train":
        args.launch = rest
        return args
    if args.argv:  # options after the name, which argparse took for the command
        args = parser.parse_args([own[0], *args.argv, *own[1 : len(own) - len(args.argv)]])
    if args.argv:
        parser.error(f"unexpected argument `{args.name}` before `--`")
    args.argv = rest
    return args


def _run_command(call: Call) -> int:
    from colablock._common.fs import machine_error, machine_errors

    try:
        with machine_errors():
            code: int = call.args.handler(call)
    except ColablockError as error:
        return _print_error(error, call.args, call.out, call.err)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _print_error(machine_error(error), call.args, call.out, call.err)
    return code


def _leave(code: ExitCode) -> None:
    """End this process without joining the threads that still wait for the network."""
    sys.stderr.flush()
    os._exit(code)


def _open_missing_streams() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise the next file that is opened would get its number, and output of a child would go there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                descriptor = os.open(os.devnull, os.O_RDWR)
                if descriptor != number:
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8"))


def _discard_output() -> None:
    """Redirect standard output to nowhere: its reader has gone, and a flush at exit would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _print_interrupt(interrupt: Interrupted, args: argparse.Namespace, out: Console, err: Console) -> None:
    if args.verbose:
        err.print(masked(traceback.format_exc()))
    if args.json:
        error = {"reference": "interrupted", "message": str(interrupt), "hint": None}
        print_json({"error": error, "exit_code": int(ExitCode.INTERRUPTED)}, out)
    else:
        err.print(str(interrupt))


def _print_error(error: ColablockError, args: argparse.Namespace, out: Console, err: Console) -> int:
    from colablock.display.text import render_error

    if args.verbose:
        err.print(masked(traceback.format_exc()))
    if args.json:
        value = {"error": {"reference": error.reference, "message": str(error), "hint": error.hint}}
        print_json({**value, "exit_code": int(error.exit_code)}, out)
    else:
        render_error(error, err)
    return int(error.exit_code)
