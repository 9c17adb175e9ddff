"""Completion in bash, zsh and fish: the scripts, and the words that they ask this command for.

A script calls ``colablock completion words -- WORDS``, where *WORDS* are those of the line up to the
cursor, without ``colablock``.  So a shell knows each option, and each matrix, runtime and run by name.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from colablock.cli.common import MATRIX, Call, add_command
from colablock.errors import ColablockError, ExitCode

__all__ = ["WORDS", "add", "candidates"]

#: The beginning of the arguments with which a script asks for words.
WORDS: Final = ("completion", "words", "--")

_BASH = """\
_colablock() {
    local IFS=$'\\n'
    COMPREPLY=($(colablock completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -o bashdefault -F _colablock colablock
"""
_ZSH = """\
#compdef colablock
_colablock() {
    local -a found
    found=(${(f)"$(colablock completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} )); then compadd -a found; else _files; fi
}
if [ "$funcstack[1]" = "_colablock" ]; then _colablock "$@"; else compdef _colablock colablock; fi
"""
_FISH = """\
function __colablock_words
    set -l before (commandline -opc)[2..]
    set -l found (colablock completion words -- $before (commandline -ct) 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c colablock -f -a '(__colablock_words)'
"""
_SCRIPTS: Final = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def add(commands: Any) -> None:
    """Add this command to the parser."""
    parser = add_command(
        commands, "completion", "print the script that completes commands and names in a shell"
    )
    parser.add_argument("shell", metavar="SHELL", choices=list(_SCRIPTS), help="bash, zsh or fish")
    parser.epilog = (
        'For bash, write `eval "$(colablock completion bash)"` into `~/.bashrc`; for zsh, the same with `zsh`'
        " into `~/.zshrc`, after `compinit`. For fish, write the script to"
        " `~/.config/fish/completions/colablock.fish`."
    )
    parser.set_defaults(handler=_completion)


def candidates(
    parser: argparse.ArgumentParser, words: Sequence[str], environ: Mapping[str, str]
) -> list[str]:
    """Return what may stand for the last of *words*, which may be empty; nothing where files may."""
    *before, current = words or [""]
    option: argparse.Action | None = None
    places: list[argparse.Action] = []
    level: argparse.ArgumentParser = parser
    given = 0  # words of this command that are no options
    for word in before:
        if option is not None:
            option = None
        elif word.startswith("-"):
            option = _taking_value(level, word)
        else:
            below = _below(level)
            level, given = (below[word], 0) if word in below else (level, given + 1)
    if option is not None:
        found = _values(option, environ)
    elif current.startswith("-"):
        found = [text for text in level._option_string_actions if text.startswith("--")]  # noqa: SLF001
    elif _below(level):
        found = list(_below(level))
    else:
        places = [one for one in level._actions if not one.option_strings]  # noqa: SLF001
        at = min(given, len(places) - 1) if places and places[-1].nargs == "*" else given
        found = list(_values(places[at], environ)) if at < len(places) else []
    return sorted({one for one in found if one.startswith(current)})


def _below(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the commands below *parser*."""
    for one in parser._actions:  # noqa: SLF001 - argparse has no public name for it
        if isinstance(one, argparse._SubParsersAction):  # noqa: SLF001
            return one.choices
    return {}


def _taking_value(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    """Return the option *word* if the next word is its value."""
    action = parser._option_string_actions.get(word)  # noqa: SLF001
    return action if action is not None and action.nargs != 0 else None


def _values(action: argparse.Action, environ: Mapping[str, str]) -> Iterable[str]:
    """Return the values of an argument that are known: its choices, or names that exist here."""
    if action.choices is not None:
        return list(map(str, action.choices))
    named: Callable[[Mapping[str, str]], Iterable[str]] | None = None
    about = action.help or ""
    if about.startswith(MATRIX) or action.dest == "extends" or "environment of a matrix" in about:
        named = _matrices
    elif action.dest == "runtime" or "runtime by name" in about or about == "the later runtime":
        named = _runtimes
    elif action.dest == "id":
        named = _runs
    try:
        return named(environ) if named is not None else ()
    except (ColablockError, OSError):
        return ()


def _matrices(environ: Mapping[str, str]) -> list[str]:
    from colablock.matrix.catalog import list_matrices

    return [one.name for one in list_matrices(environ=environ) if not one.fault]


def _runtimes(environ: Mapping[str, str]) -> list[str]:
    from colablock.runtimes.catalog import runtime_names

    return runtime_names(environ=environ)


def _runs(environ: Mapping[str, str]) -> list[str]:
    from colablock.training.runs.folder import list_runs
    from colablock.transaction.apply_record import home_folder

    return [name for name, _ in list_runs(home_folder(environ))]


def _completion(call: Call) -> int:
    call.out.file.write(_SCRIPTS[call.args.shell])
    return ExitCode.DONE
