"""Say options and commands of the command line as Python does, for callers of the Python API.

Messages are written once, in the words of the command line: `--keep` and `colablock apply NAME`.  A caller
in Python writes `keep=True` and `colablock.apply("NAME")`.  A command that Python has no word for is run with
``%`` in IPython and in a notebook.
"""

from __future__ import annotations

import re
import shlex
import sys

__all__ = ["ELSEWHERE", "code_in_python", "in_python"]

# Options without a value, where the Python argument is not `name=True`.
_FLAGS = {"--no-undo": "undo=False", "--no-lock": "use_locks=False", "--no-wait": "wait=False"}
_SWITCHES = frozenset(
    {
        "--all-files",
        "--anyway",
        "--break-system-packages",
        "--fresh",
        "--imports",
        "--keep",
        "--leave-broken",
        "--offline",
        "--resume-anyway",
        "--strict",
        "--update",
        "--upgrade",
        "--with-companions",
        "--with-python",
    }
)
_VALUED = frozenset(
    {
        "--broken",
        "--bundle",
        "--config",
        "--dataset",
        "--default-index",
        "--find-links",
        "--drop",
        "--exclude-newer",
        "--format",
        "--ignore",
        "--into",
        "--lock",
        "--mirror",
        "--model",
        "--not",
        "--output",
        "--output-dir",
        "--platform",
        "--protect",
        "--python",
        "--python-version",
        "--reinstall",
        "--runner",
        "--runtime",
        "--upgrade-package",
        "--variant",
        "--wheelhouse",
        "--with",
    }
)
_LISTS = frozenset(
    {
        "--find-links",
        "--ignore",
        "--protect",
        "--reinstall",
        "--with",
    }
)
_NUMBERS = frozenset({"--drop"})  # without a number: all
_KEYWORDS = {"--not": "not_", "--with": "with_"}
#: Options of colablock by the names that they have elsewhere, and that are like no name of ours.
ELSEWHERE = {
    **dict.fromkeys(("env", "environment", "isolated", "target", "venv"), "into"),
    **dict.fromkeys(("index", "index_url"), "default_index"),
}
_FUNCTIONS = frozenset(
    {
        "apply",
        "audit",
        "bundle",
        "check",
        "explain",
        "export",
        "history",
        "info",
        "list",
        "lock",
        "plan",
        "rollback",
        "run",
        "show",
        "smoke",
        "train",
        "verify",
        "why",
    }
)
_RUNS = {
    "list": "colablock.runs()",
    "show": "colablock.attach({}, wait=False)",
    "follow": "colablock.attach({})",
    "stop": "colablock.attach({}, wait=False).stop()",
}
_CODE = re.compile(r"`([^`\n]+)`")
# The same thing in both languages becomes the same thing twice.
_TWICE = re.compile(r"(`[^`\n]+`)(?: or | \()(`[^`\n]+`)(\)?)")


def in_python(text: str) -> str:
    """Return *text* with each option and command in backticks as Python says it; what it cannot say stays."""
    if "--" not in text and "colablock " not in text:
        return text
    return _TWICE.sub(_once, _CODE.sub(lambda found: f"`{_said(found[1])}`", text))


def code_in_python(code: str) -> str:
    """Return one option or command as Python says it."""
    return _said(code)


def _once(found: re.Match[str]) -> str:
    first, second = (found[at].replace("'", '"') for at in (1, 2))
    is_same = first == second and (
        found[0].endswith("`)") == ("(" in found[0][len(found[1]) : -len(found[2])])
    )
    return second if is_same else found[0]


def _said(code: str) -> str:
    """Return *code* as Python says it, or as it is."""
    try:
        words = shlex.split(code)
    except ValueError:
        return code
    if words[:1] == ["colablock"] and len(words) > 1:
        return _call(words[1], words[2:]) or (f"%{code}" if _in_ipython() else code)
    if words[:1] == ["--set"] and len(words) == 2:  # noqa: PLR2004 - the option and its value
        return words[1]
    if words and words[0].startswith("--"):
        arguments = _arguments(words)
        return ", ".join(arguments) if arguments else code
    return code


def _in_ipython() -> bool:
    """Whether a cell of IPython has called; without it, such a command is one of the terminal."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython, "get_ipython", lambda: None)() is not None


def _call(command: str, words: list[str]) -> str | None:
    if command == "runs" and words and words[0] in _RUNS:
        return _RUNS[words[0]].format(", ".join(map(_quoted, words[1:])))
    if command == "run" and words[1:2] == ["--"]:
        return f"colablock.run({_quoted(words[0])}, {_quoted(shlex.join(words[2:]))})"
    if command not in _FUNCTIONS or "--" in words:
        return None
    arguments = _arguments(words, is_call=True)
    return f"colablock.{command}({', '.join(arguments)})" if arguments is not None else None


def _arguments(words: list[str], *, is_call: bool = False) -> list[str] | None:
    """Return the arguments of a call; None if one of them does not exist in Python.

    An option that lacks its value stands alone in a sentence.  In a call it has one, or may lack it.
    """
    found: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        keyword = _KEYWORDS.get(word, word[2:].replace("-", "_"))
        if not word.startswith("-"):
            found.append(_quoted(word))
        elif word in _FLAGS:
            found.append(_FLAGS[word])
        elif word in _SWITCHES:
            found.append(f"{keyword}=True")
        elif word in _VALUED:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("-") else ""
            if is_call and not value:
                if word not in _NUMBERS:
                    return None
                value = "True"
            value = value if word in _NUMBERS or not value else _quoted(value)
            same = [one for one in found if one.startswith(f"{keyword}=[")] if word in _LISTS else []
            if same and value:
                found[found.index(same[0])] = f"{same[0][:-1]}, {value}]"
            else:
                found.append(f"{keyword}={f'[{value}]' if value and word in _LISTS else value}")
        elif word == "--to" and waiting[:1] == ["first"]:
            waiting.pop(0)
            found.append("to_first=True")
        elif word not in ("-y", "--yes", "-q", "--quiet", "-v", "--verbose"):
            return None
    return found


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
