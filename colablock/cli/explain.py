"""Explain why a program that trains failed, from its traceback or its log."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any, BinaryIO

from colablock._common.fs import expanded
from colablock.cli.common import Call, add_command, print_json, session_of
from colablock.errors import ExitCode, InvalidInput

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add this command to the parser."""
    parser = add_command(commands, "explain", "explain a traceback or a log of any program that trains")
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        default="-",
        help="the file with the traceback or the log; default: standard input",
    )
    parser.add_argument(
        "--python",
        metavar="EXE",
        help="the interpreter that the program ran in; default: the one that the text names, or this one",
    )
    parser.set_defaults(handler=_explain)


def _explain(call: Call) -> int:
    from colablock.display.run_view import explanation_document
    from colablock.display.text import render
    from colablock.operations.failure import explain_failure

    text = _read(call.args.file)
    with session_of(call) as session:
        found = explain_failure(session, text, python=call.args.python)
    if call.args.json:
        facts = asdict(found)
        names = ("cause", "means", "line", "details", "advice", "trace", "rank")
        print_json({name: facts[name] for name in names}, call.out)
    else:
        render(explanation_document(found), call.out)
    return ExitCode.DONE


def _end_of(stream: BinaryIO, limit: int) -> bytes:
    """Return the last *limit* bytes of a stream, which may be longer than the memory."""
    data = b""
    while chunk := stream.read(limit):
        data = (data + chunk)[-limit:]
    return data


def _read(name: str) -> str:
    """Return the end of a file, or of standard input.  Raises InvalidInput if there is no text."""
    from colablock._common.decoding import open_regular, read_end
    from colablock._common.limits import CRASH_TEXT

    if name == "-":
        if sys.stdin.isatty():
            hint = "Give a file, or pipe the text: `python train.py 2>&1 | colablock explain`"
            raise InvalidInput("there is no text to explain", hint=hint)
        data = _end_of(sys.stdin.buffer, CRASH_TEXT)
    else:
        path = expanded(name, "an argument")
        try:
            with open_regular(path):
                pass
        except (OSError, ValueError) as error:  # ValueError: no regular file, or a null character
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidInput(f"cannot read `{name}`: {reason}") from error
        data = read_end(path, CRASH_TEXT)
    text = _text_of(data)
    if not text.strip():
        raise InvalidInput("there is no text to explain: it is empty")
    return text


def _text_of(data: bytes) -> str:
    """Return the text of a log, which is UTF-8, or UTF-16 as PowerShell writes it."""
    zeros = [data[at::2].count(0) for at in (0, 1)]
    # In UTF-16, every other byte of ASCII is zero.  A hole in a file is zeros alone.
    if 4 * abs(zeros[0] - zeros[1]) < len(data):
        return data.decode("utf-8-sig", errors="replace")
    return data.decode("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le", errors="replace").lstrip("\ufeff")
