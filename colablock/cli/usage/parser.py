"""The argument parser: its errors name the nearest word, its help has groups, examples and a link."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from colablock._common.fs import expanded
from colablock._common.text import near, nearest
from colablock._python_words import ELSEWHERE
from colablock.cli.usage.examples import EXAMPLES, GROUPS, OF_THE_ADAPTER, OTHER_WORDS, REFERENCE, WHERE
from colablock.errors import InvalidInput

__all__ = ["Parser", "add_group", "examples_of"]

_WIDTH = 80
_LIKENESS = 0.55  # of a misspelt command or option
# argparse's own messages, which say "argument -P/--upgrade-package: ...".
_ARGUMENT = re.compile(r"argument (\S+): (.*)", re.DOTALL)
_CONVERSION = re.compile(r"invalid (\w+) value: (.*)", re.DOTALL)
_PLACES = {"request": -2, "positional arguments": -1, "output": 1}  # of groups in a help
_KINDS = {"int": "a whole number", "float": "a number"}


class Parser(argparse.ArgumentParser):
    """A parser that raises InvalidInput (exit 2), with the nearest word as its hint.

    An option is not abbreviated: a later option with the same beginning would change its meaning.
    """

    settings: Callable[[], Iterable[str]] = staticmethod(tuple)  # the keys that `--set` takes

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "allow_abbrev": False})
        # A shell leaves the `~` of `--lock=~/pylock.toml`, and a magic has no shell.
        self.register("type", Path, lambda text: expanded(text, "an argument"))

    def error(self, message: str) -> NoReturn:
        """Raise InvalidInput for a message of argparse."""
        raise InvalidInput(_worded(message, self.prog), hint=self._advice(message))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse *args*; an option that does not exist is found before a missing argument is."""
        if args is not None:
            self._check_options(args)
        found, rest = super().parse_known_args(args, namespace)
        # argparse gives none of the arguments after an option to those that may be missing before it.
        texts = (one for one in self._get_positional_actions() if one.type is None and one.choices is None)
        missing = [one for one in texts if getattr(found, one.dest, "") is None]
        while rest and missing and not rest[0].startswith("-"):
            setattr(found, missing.pop(0).dest, rest.pop(0))
        if rest:
            word = next((one for one in rest if one != "--"), rest[0])
            is_option = word.startswith("-") and word in _until(args or (), lambda one: one == "--")
            message = (
                f"`{self.prog}` has no option `{word}`" if is_option else f"unexpected argument `{word}`"
            )
            raise InvalidInput(message, hint=f"`{self.prog} --help` lists the arguments")
        return found, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = list(map(str, action.choices))
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - argparse has no public name for it
            likely = near(str(value), known, likeness=_LIKENESS) or f"`{self.prog} --help` lists the commands"
            hint = _meant(str(value), self.prog) or likely
            raise InvalidInput(f"`{self.prog}` has no command `{value}`", hint=hint)
        name = _name_of(action)
        listed = ", ".join(f"`{one}`" for one in known)
        raise InvalidInput(
            f"`{name}` is `{value}`, but must be one of {listed}", hint=near(str(value), known)
        )

    def _check_options(self, args: Sequence[str]) -> None:
        """Raise InvalidInput for a long option that this command does not have."""
        if any(one.nargs in (argparse.REMAINDER, argparse.PARSER) for one in self._actions):
            words: Sequence[str] = _until(args, lambda word: not word.startswith("-"))
        else:
            words = args
        takes_value = {text for text, one in self._option_string_actions.items() if one.nargs != 0}
        known = [text for text in self._option_string_actions if text.startswith("--")]
        before = ""
        for word in _until(words, lambda one: one == "--"):
            is_value, before = before in takes_value or " " in word.partition("=")[0], word
            if is_value:  # as argparse reads it
                continue
            option = word.partition("=")[0]
            if option.startswith("--") and option not in known:
                begun = [one for one in known if one.startswith(option) and option != "--"]
                key = option.removeprefix("--").replace("-", "_")
                meant = f"--{ELSEWHERE.get(key, '').replace('_', '-')}"
                begun += [meant] if meant in known else []
                hint = f"did you mean `{begun[0]}`?" if begun else _near_option(option, known)
                if key in self.settings():
                    value = word.partition("=")[2] or next(iter(args[args.index(word) + 1 :]), "VALUE")
                    hint = f"`--set {key}={value}` sets that key of the config"
                hint = hint or f"`{self.prog} --help` lists its options"
                raise InvalidInput(f"`{self.prog}` has no option `{option}`", hint=hint)

    def _advice(self, message: str) -> str:
        if "are required" in message:
            asked = [one for one in self._actions if one.required]
            if any(one.option_strings for one in asked) and examples_of(self.prog):
                return f"Write it as in `{examples_of(self.prog)[-1]}`"
            words = [str(one.metavar or one.dest.upper()) for one in asked]
            shape = " ".join([self.prog, *words])
            about = next((f", where `{one.metavar}` is {one.help}" for one in asked if one.help), "")
            return f"Write `{shape}`{about}; `{self.prog} --help` has examples"
        return f"`{self.prog} --help` lists the arguments"

    def format_help(self) -> str:
        """Return the help: groups of commands at the top, examples and a link for each command."""
        if self.prog == "colablock":
            return _overview(self)
        shown = examples_of(self.prog)
        lines = [f"  {line}" for line in shown]
        if shown:
            anchor = self.prog.replace(" ", "-")
            lines = ["", "examples:", *lines, "", f"more: {REFERENCE}#{anchor} {WHERE}"]
        # What is asked for comes first, and what each command has last.
        self._action_groups.sort(key=lambda group: _PLACES.get(group.title or "", 0))
        text = super().format_help().rstrip("\n")
        return "\n".join([text, *lines, ""])


def _meant(word: str, prog: str) -> str | None:
    """Return the hint for a *word* that is no command of *prog* and is one elsewhere."""
    if word in OF_THE_ADAPTER:
        page = f"docs/how-to/use-the-adapter.md {WHERE}"
        return f'Python has it: `import colablock; colablock.attach("RUN").{word}(...)`; see {page}'
    if prog == "colablock" and word in OTHER_WORDS:
        return f"did you mean `{OTHER_WORDS[word]}`?"
    return None


def _near_option(option: str, known: Iterable[str]) -> str | None:
    """Return the hint that names the nearest of *known*; what all begin with makes none of them alike."""
    found = nearest(option.removeprefix("--"), [one.removeprefix("--") for one in known])
    return f"did you mean `--{found}`?" if found else None


def add_group(commands: Any, name: str, help_text: str, description: str) -> Any:
    """Add the command *name*, which has commands below it, and return where they are added."""
    parser: Parser = commands.add_parser(name, help=help_text, description=description)
    parser.set_defaults(shown=parser, json=False, verbose=False)
    return parser.add_subparsers(dest="action", metavar="COMMAND")


def examples_of(prog: str) -> tuple[str, ...]:
    """Return the example lines of the command *prog*, such as ``colablock runs list``."""
    return tuple(f"colablock {line}" for line in EXAMPLES.get(prog.partition(" ")[2], ()))


def _overview(parser: Parser) -> str:
    """Return the top-level help: a line for each command, below plain headings."""
    commands = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))  # noqa: SLF001
    helps = {one.dest: one.help or "" for one in commands._choices_actions}  # noqa: SLF001
    column = max(map(len, helps)) + 4
    lines = ["usage: colablock COMMAND ...", "", parser.description or ""]
    for title, names in GROUPS.items():
        lines += ["", f"{title}:"]
        for name in names:
            text = f"  {name}".ljust(column) + helps[name]
            lines += textwrap.wrap(text, _WIDTH, subsequent_indent=" " * column)
    lines += [
        "",
        "Options:",
        "  -h, --help".ljust(column) + "show this help, or that of a command",
        "  --version".ljust(column) + "show the version",
        "",
        "Start with:",
        *(f"  {line}" for line in examples_of("colablock plan")),
        "",
        *(parser.epilog or "").splitlines(),
        "",
        f"more: {REFERENCE} {WHERE}",
        "",
    ]
    return "\n".join(lines)


def _until(words: Sequence[str], is_end: Callable[[str], bool]) -> list[str]:
    """Return the words before the first that *is_end* accepts."""
    found: list[str] = []
    for word in words:
        if is_end(word):
            break
        found.append(word)
    return found


def _name_of(action: argparse.Action) -> str:
    return (
        max(action.option_strings, key=len) if action.option_strings else str(action.metavar or action.dest)
    )


def _worded(message: str, prog: str) -> str:
    """Return a message of argparse in our words."""
    required = message.partition("are required: ")[2]
    if required:
        names = required.split(", ")
        return f"`{prog}` needs " + " and ".join(f"`{name}`" for name in names)
    found = _ARGUMENT.fullmatch(message)
    if found is None:
        return message
    name, text = found[1].split("/")[-1], found[2]
    conversion = _CONVERSION.fullmatch(text)
    if conversion:
        kind = _KINDS.get(conversion[1], f"a {conversion[1]}")
        value = conversion[2].strip("'\"")
        return f"`{name}` is `{value}`, but must be {kind}"
    if text.startswith("expected"):
        return f"`{name}` needs a value"
    if text.startswith("ignored explicit"):
        return f"`{name}` takes no value"
    return f"`{name}`: {text}"
