"""A caller of the Python API reads arguments and calls of Python, not options of the command line."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import colablock
from colablock._python_words import in_python
from colablock.display.text import to_text
from colablock.display.view import (
    Document,
    Headline,
    Item,
    Items,
    Note,
    Preformatted,
    Section,
    Span,
    Tone,
    spoken_in_python,
)
from colablock.errors import NotFound, Refused, RolledBack

SAID = {
    "`--keep` keeps a change whose proof fails": "`keep=True` keeps a change whose proof fails",
    "Use an isolated environment, with `--into env`": 'Use an isolated environment, with `into="env"`',
    "`--find-links` overrides it": "`find_links=` overrides it",
    "Pass `--find-links ./w`, or `--offline`": 'Pass `find_links=["./w"]`, or `offline=True`',
    "Omit `--no-undo` and `--no-lock`": "Omit `undo=False` and `use_locks=False`",
    "`--with wandb` and `--variant gpu`": '`with_=["wandb"]` and `variant="gpu"`',
    "`--set learning_rate=1e-4`": "`learning_rate=1e-4`",
    "Run `colablock apply qlora-2026` to restore it": 'Run `colablock.apply("qlora-2026")` to restore it',
    "`colablock apply 'my matrix' --into env --yes`": '`colablock.apply("my matrix", into="env")`',
    "`colablock rollback --to first`": "`colablock.rollback(to_first=True)`",
    "`colablock lock x --all-files`": '`colablock.lock("x", all_files=True)`',
    "`colablock apply x --reinstall trl`": '`colablock.apply("x", reinstall=["trl"])`',
    "`colablock apply x --with a --keep --with b`": '`colablock.apply("x", with_=["a", "b"], keep=True)`',
    "`colablock runs stop tiny`": '`colablock.attach("tiny", wait=False).stop()`',
    "`colablock.attach('x')` or `colablock runs follow x` follows it": '`colablock.attach("x")` follows it',
    "`--leave-broken` (`leave_broken=True`) undoes it": "`leave_broken=True` undoes it",
    "`colablock list` lists them": "`colablock.list()` lists them",
    # What Python has no word for stays a command, which a notebook runs with %.
    "`colablock cache prune` makes room": "`colablock cache prune` makes room",
    "`colablock lock x --all`": "`colablock lock x --all`",
    "pip has `--index-url` and `--force`": "pip has `--index-url` and `--force`",
    "`colablock run x -- python 'a b.py'`": '`colablock.run("x", "python \'a b.py\'")`',
    "`colablock why --bundle a.zip`": '`colablock.why(bundle="a.zip")`',
    "`colablock history --drop 2`": "`colablock.history(drop=2)`",
    "`colablock history --drop`": "`colablock.history(drop=True)`",
    "`colablock apply x --into`": "`colablock apply x --into`",
    "--keep without backticks": "--keep without backticks",
    "`unbalanced 'quote --keep`": "`unbalanced 'quote --keep`",
}

NO_COMMANDS = {"ColablockError", "__version__", "attach", "load_ipython_extension", "runs"}


@pytest.mark.parametrize("name", sorted({*colablock.__dir__()} - NO_COMMANDS))
def test_each_command_that_python_has_a_function_for_is_a_call(name: str) -> None:
    assert in_python(f"`colablock {name} x`") == f'`colablock.{name}("x")`'


@pytest.mark.parametrize("text", SAID)
def test_options_and_commands_are_said_as_python_does(text: str) -> None:
    assert in_python(text) == SAID[text]
    assert in_python(SAID[text]) == SAID[text]


@pytest.mark.parametrize(
    "command", ["cache prune", "env list", "new mine", "lock x --all", "runs plot tiny", "schema"]
)
def test_a_notebook_runs_what_python_has_no_word_for_as_a_magic(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"`colablock {command}` does it"
    ipython = ModuleType("IPython")
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert in_python(text) == text  # a script, which has only imported it
    ipython.get_ipython = lambda: None  # type: ignore[attr-defined]
    assert in_python(text) == text
    ipython.get_ipython = object  # type: ignore[attr-defined]
    assert in_python(text) == f"`%colablock {command}` does it"
    assert in_python(in_python(text)) == in_python(text)
    assert in_python("`colablock apply x`") == '`colablock.apply("x")`'


def test_each_call_in_a_message_is_one_of_python() -> None:
    messages = (Path(__file__).parents[1] / "data" / "messages.txt").read_text(encoding="utf-8")
    calls = [
        call
        for call in re.findall(r"`(colablock\.\w+\([^`\n]*)`", in_python(messages))
        if "..." not in call and "{" not in call
    ]
    assert len(calls) > 20
    for call in calls:
        ast.parse(call)


def test_a_document_is_said_so_and_what_it_quotes_is_not() -> None:
    document = Document(
        headline=Headline("`--keep`"),
        blocks=(
            Note(("undo: ", Span("colablock rollback", Tone.CODE))),
            Section("how", (Items((Item("use `--into env`"),)), Preformatted(("`--keep`",)))),
        ),
    )
    text = to_text(spoken_in_python(document))
    assert text.split("\n")[0] == "`keep=True`"
    assert "undo: colablock.rollback()" in text
    assert 'use `into="env"`' in text
    assert text.endswith("`--keep`")


def test_the_errors_of_the_front_door_speak_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLABLOCK_HOME", str(tmp_path))
    with pytest.raises(NotFound) as found:
        colablock.verify("qlora-2026")
    assert found.value.hint is not None
    assert "colablock.apply" in f"{found.value} {found.value.hint}"
    assert "colablock apply" not in f"{found.value} {found.value.hint}"


def test_an_error_is_changed_as_a_whole() -> None:
    error = RolledBack("`--keep`", hint="`--keep` keeps it")
    error.speak_python()
    assert (str(error), error.args, error.hint) == ("`keep=True`", ("`keep=True`",), "`keep=True` keeps it")
    plain = Refused("no hint")
    plain.speak_python()
    assert plain.hint is None
