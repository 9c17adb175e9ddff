"""Write the reference pages that are made from code; ``--check`` only compares them.

The command line's page comes from its parser, the matrix file's from its schema, the training
config's from its class and from what axolotl is told, and the exit codes from the errors that carry them.
Some pages are written by hand and have tables that are made here.  Those about memory come from the code that
estimates it and from measurements, and those about speed from the results of the benchmarks; those about
packages, and the picture of the layers, from their docstrings and from the contracts of import-linter
(docs/layers.py).
The JSON schema says to editors what the matrix file's page says to people.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping

import layers
import make_notebooks
from config_page import config_page
from measured_pages import memory_page, speed_page
from tables import NOTICE, ROOT, filled, table

from colablock import errors
from colablock.authoring.new import schema_text
from colablock.cli.main import build_parser
from colablock.cli.usage.parser import examples_of
from colablock.errors import ColablockError, ExitCode
from colablock.matrix.json_schema import SCHEMA_FILE
from colablock.matrix.schema import SCHEMA, Key

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"

SECTIONS = {
    "": "At the top",
    "index[]": "`[[index]]`",
    "packages.<name>": "`[packages]`",
    "constraints.<name>": "`[constraints]`",
    "absent.<name>": "`[absent]`",
    "options": "`[options]`",
    "variants.<name>": "`[variants.<name>]`",
    "variants.<name>.system-requirements": "`[variants.<name>.system-requirements]`",
    "verify": "`[verify]`",
    "train": "`[train]`",
}

MATRIX_HEAD = """\
# The matrix file

A matrix is one TOML file. It contains names, versions, indexes, reasons, the projects that must be absent,
and the proofs of the result. A matrix is looked up by name in `./matrices`, in the folders of
`COLABLOCK_MATRICES`, in installed packages (entry-point group `colablock.matrices`), and among the matrices
that colablock ships. A path works wherever a name does.

All faults of a file are reported at once, each with its path. An unknown key is a fault, and a similar name
is suggested. If a file has a fault, the command ends with exit code 2 and changes nothing.

```toml
schema = 1
name = "example"
summary = "Two projects and a reason"
requires-python = ">=3.10"

[packages]
numpy = ">=2"                                         # the short form: a specifier
torch = { version = ">=2.4", why = "first with what we need" }

[absent]
torchao = { version = "<0.16", why = "peft refuses to start when an older one is importable" }

[verify]
imports = ["numpy", "torch:nn"]
```

`colablock new NAME` writes a new file in which every section is explained.

Editors that support JSON schemas for TOML (Even Better TOML in VS Code, Taplo elsewhere) complete the keys,
show their meaning and mark errors. `colablock schema --output matrices/matrix-1.schema.json` writes the
schema beside your matrices. Name it in the first line of each matrix:

```toml
#:schema ./matrix-1.schema.json
```

Below, `<name>` stands for a key that you choose. Under `[packages]` and `[constraints]`, a string is short
for a table with only `version`.

Results are kept beside the matrix: locks (`pylock.NAME--*.toml`), results of `check` (`NAME.checks.json`),
targets without a lock (`NAME.refused.json`), receipts (`NAME.receipts/`). `NAME.sources.json` is for a matrix
whose locks were made while one of its indexes could not be reached. It lists each fact about a file that no
index gave: its name, hash and requirements, with what comes *from a source*, what is *derived*, and what is
*unknown*. colablock does not read it: the locks have the hashes, and `apply` compares each wheel with them,
and its METADATA with the requirements in the lock.
"""

CLI_HEAD = """\
# The command line

`python -m colablock` is the same as `colablock`. Data is written to standard output, and everything else to
standard error. [Exit codes](exit-codes.md) are part of the public interface.
"""

EXIT_HEAD = """\
# Exit codes

Exit codes are part of the public interface, so scripts can rely on them. In Python, the same outcomes are
exceptions derived from `colablock.errors.ColablockError`. Each has an `exit_code`, a stable `reference`,
and a `hint` if something can be done about it.
"""


EXIT_MEANING = {
    ExitCode.DONE: "Success. This includes an `apply` with nothing to do.",
    ExitCode.UNMET: "The request cannot be met: no solution, a refusal, a failed check or run, or an audit"
    " that found a vulnerability. No change.",
    ExitCode.USAGE: "The command line, a matrix or another input is invalid. Nothing changed.",
    ExitCode.ROLLED_BACK: "The change failed and was rolled back. The environment is as it was before.",
    ExitCode.NOT_RESTORED: "The change failed and was not undone. The message says where the old files are.",
    ExitCode.NOT_PROVEN: "A proof failed, and the change was kept because of `--keep`; or"
    " `rollback --leave-broken` left requirements unmet.",
    ExitCode.BUG: "A bug in colablock. Please report it.",
    ExitCode.INTERRUPTED: "Interrupted from the keyboard.",
    ExitCode.OUTPUT_CLOSED: "The reader of the output ended first, such as `head`, before a command that"
    " changes or checks something was complete. A change that had begun is complete or undone.",
}


def matrix_page() -> str:
    """Return the page of the matrix file, in the order of the schema."""
    parts = [NOTICE, MATRIX_HEAD]
    unplaced = {key.section for key in SCHEMA} - SECTIONS.keys()
    if unplaced:
        raise SystemExit(f"docs/generate.py has no heading for {sorted(unplaced)}")
    for section, title in SECTIONS.items():
        keys = [key for key in SCHEMA if key.section == section]
        parts += [f"## {title}\n", table("key", "value", "meaning", rows=map(key_row, keys))]
    return "\n".join(parts)


def key_row(key: Key) -> tuple[str, str, str]:
    """Return one key as a row."""
    taken = key.type
    if key.choices:
        taken += ": " + ", ".join(f"`{choice}`" for choice in key.choices)
    if key.required:
        taken += "; required"
    elif key.default is not None:
        plain = " " in key.default or key.default == "any"
        taken += f"; default {key.default}" if plain else f"; default `{key.default}`"
    return f"`{key.name}`", taken, key.description


def cli_page() -> str:
    """Return the page of the command line, in the order of the parser."""
    commands = commands_of(build_parser())
    groups = {name: groups_of(command) for name, (command, _) in commands.items()}
    shared = {title: text for found in groups.values() for title, text in found if title == "output"}
    parts = [
        NOTICE,
        CLI_HEAD,
        *(f"Every command has these options (`run` has no `--json`):\n\n{text}" for text in shared.values()),
    ]
    for name, (command, help_text) in commands.items():
        parts += [f"## `colablock {name}`\n", f"{help_text[0].upper()}{help_text[1:]}.\n"]
        parts += [f"```text\n{usage(name, command)}\n```\n"]
        parts += [text for title, text in groups[name] if title not in shared]
        parts += [f"{command.epilog}\n"] if command.epilog else []
        examples = "\n".join(examples_of(f"colablock {name}"))
        parts += [f"```sh\n{examples}\n```\n"] if examples else []
    return "\n".join(parts)


def groups_of(command: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Return the groups of a command as tables, those that hold what must be given first."""
    found = []
    for group in command._action_groups:
        actions = [action for action in group._group_actions if "--help" not in action.option_strings]
        if actions:
            title = heading(group.title)
            must = any(not action.option_strings for action in actions)
            found.append((must, title, table(title, "meaning", rows=map(action_row, actions))))
    found.sort(key=lambda one: not one[0])
    return [(title, text) for _, title, text in found]


def commands_of(parser: argparse.ArgumentParser) -> Mapping[str, tuple[argparse.ArgumentParser, str]]:
    """Return each command with its parser and its line of help; ``env list`` is a command of its own."""
    found: dict[str, tuple[argparse.ArgumentParser, str]] = {}
    for commands in (action for action in parser._actions if isinstance(action, argparse._SubParsersAction)):
        helps = {action.dest: action.help or "" for action in commands._choices_actions}
        for name, command in commands.choices.items():
            below = {f"{name} {inner}": about for inner, about in commands_of(command).items()}
            found |= below or {name: (command, helps[name])}
    return found


def heading(title: str | None) -> str:
    """Return the name of a group of arguments; argparse's own names are for its help text."""
    names = {"positional arguments": "argument", "options": "option", "optional arguments": "option"}
    return names.get(title or "", title or "option")


def usage(name: str, command: argparse.ArgumentParser) -> str:
    """Return the shape of a command; argparse words its own differently from Python to Python."""
    actions = [action for action in command._actions if not action.option_strings]
    words = [argument_word(action) for action in actions if action.nargs != argparse.REMAINDER]
    tail = [f"-- {argument_name(action)} ..." for action in actions if action.nargs == argparse.REMAINDER]
    return " ".join(["colablock", name, "[OPTIONS]", *words, *tail])


def argument_word(action: argparse.Action) -> str:
    """Return an argument without dashes as a usage line has it: in brackets if it can be left out."""
    name = argument_name(action) + (" ..." if action.nargs in ("*", "+") else "")
    return f"[{name}]" if action.nargs in ("?", "*") else name


def argument_name(action: argparse.Action) -> str:
    """Return how an argument without dashes is called."""
    return str(action.metavar or action.dest.upper())


def action_row(action: argparse.Action) -> tuple[str, str]:
    """Return one argument or option as a row."""
    if not action.option_strings:
        return f"`{argument_name(action)}`", action.help or ""
    value = ""
    if action.nargs != 0:
        value = " " + ("|".join(map(str, action.choices)) if action.choices else argument_name(action))
    return ", ".join(f"`{option}{value}`" for option in action.option_strings), action.help or ""


def contributing_page() -> str:
    """Return the page for contributors, with one line for each package."""
    rows = ((f"`{package.name}`", package.summary) for package in layers.packages())
    return filled(CONTRIBUTING, {"packages": table("package", "what it is for", rows=rows)})


def architecture_page() -> str:
    """Return the page about the architecture, with what each package takes and gives."""

    def row(package: layers.Package) -> tuple[str, ...]:
        names = ", ".join(f"`{name}`" for name in package.surface if name.isidentifier())
        return f"`{package.name}`", package.takes.rstrip("."), package.gives.rstrip("."), names

    made = table("package", "in", "out", "names to import from it", rows=map(row, layers.packages()))
    return filled(ARCHITECTURE, {"packages": made})


def exit_page() -> str:
    """Return the page of the exit codes, with the errors that lead to each."""

    def row(code: ExitCode) -> tuple[str, str, str]:
        return f"{int(code)}", EXIT_MEANING[code], ", ".join(f"`{kind}`" for kind in errors_of(code))

    return "\n".join([NOTICE, EXIT_HEAD, table("code", "meaning", "error", rows=map(row, ExitCode))])


def errors_of(code: ExitCode) -> list[str]:
    """Return the names of the errors that end with *code*, as the module lists them."""
    kinds = ((name, getattr(errors, name)) for name in errors.__all__)
    found = [
        (name, kind) for name, kind in kinds if inspect.isclass(kind) and issubclass(kind, ColablockError)
    ]
    return [name for name, kind in found if kind is not ColablockError and kind.exit_code is code]


def readme_page() -> str:
    """Return the README with the badges of the notebooks."""
    badges = filter(None, map(make_notebooks.badge, make_notebooks.HOSTS))
    shown = "\n".join(badges)
    return filled(ROOT / "README.md", {"badges": f"{shown}\n" if shown else ""})


MADE: Mapping[str, Callable[[], str]] = {
    "CONTRIBUTING.md": contributing_page,
    "README.md": readme_page,
    "docs/explanation/architecture.md": architecture_page,
    "docs/explanation/layers.svg": layers.picture,
    "docs/explanation/memory.md": memory_page,
    "docs/explanation/speed.md": speed_page,
    "docs/reference/cli.md": cli_page,
    "docs/reference/exit-codes.md": exit_page,
    "docs/reference/matrix.md": matrix_page,
    "docs/reference/training-config.md": config_page,
    f"matrices/{SCHEMA_FILE}": schema_text,
    **make_notebooks.notebooks(),
}


def main() -> int:
    """Write the files, or with ``--check`` name the stale ones and return 1."""
    parser = argparse.ArgumentParser(description="Write the pages and the schema that are made from code.")
    parser.add_argument("--check", action="store_true", help="only compare")
    only_check = parser.parse_args().check
    stale = 0
    for name, make in MADE.items():
        path, text = ROOT / name, make()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if not only_check:
            path.write_text(text, encoding="utf-8")
        print(f"{'stale' if only_check else 'written'}: {name}")
    if stale and only_check:
        print("hint: Run `python docs/generate.py`")
    return 1 if stale and only_check else 0


if __name__ == "__main__":
    sys.exit(main())
