"""Usage errors, help with examples, and completion in a shell."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colablock._common.text import as_called
from colablock.cli.main import build_parser, main
from colablock.cli.usage.called_as import called_as
from colablock.cli.usage.completion import candidates
from colablock.cli.usage.examples import EXAMPLES, GROUPS, OF_THE_ADAPTER, OTHER_WORDS
from colablock.errors import ExitCode, InvalidInput
from tests.support.paths import ROOT

# Each line, what is wrong with it, and the hint.
WRONG = [
    ("plna", "`colablock` has no command `plna`", "did you mean `plan`?"),
    ("xyzzy", "`colablock` has no command `xyzzy`", "`colablock --help` lists the commands"),
    ("runs showx", "`colablock runs` has no command `showx`", "did you mean `show`?"),
    ("cache prnue", "`colablock cache` has no command `prnue`", "did you mean `prune`?"),
    ("--vrsion", "`colablock` has no option `--vrsion`", "did you mean `--version`?"),
    ("plan demo --target env", "`colablock plan` has no option `--target`", "did you mean `--into`?"),
    ("plan demo --env", "`colablock plan` has no option `--env`", "did you mean `--into`?"),
    ("lock demo --env", "`colablock lock` has no option `--env`", "`colablock lock --help` lists"),
    ("apply demo --index-url x", "`colablock apply` has no option", "did you mean `--default-index`?"),
    ("plan demo --brokn repair", "`colablock plan` has no option `--brokn`", "did you mean `--broken`?"),
    ("plan --brokn", "`colablock plan` has no option `--brokn`", "did you mean `--broken`?"),
    ("plan demo --protct=torch", "`colablock plan` has no option `--protct`", "did you mean `--protect`?"),
    ("apply demo --xyzzy", "`colablock apply` has no option `--xyzzy`", "`colablock apply --help` lists"),
    ("run demo --xyzzy -- ls", "`colablock run` has no option `--xyzzy`", "`colablock run --help` lists"),
    ("plan demo --with --brokn", "`--with` needs a value", None),
    ("train demo --dataset '--weird file' --xyzzy", "`colablock train` has no option `--xyzzy`", None),
    ("runs show x -- --weird", "unexpected argument `--weird`", "`colablock runs show --help` lists"),
    ("plan demo -x", "`colablock plan` has no option `-x`", "`colablock plan --help` lists"),
    ("plan demo other", "unexpected argument `other`", "`colablock plan --help` lists"),
    (
        "plan demo --into kernell",
        "`--into` is `kernell`, but must be one of `kernel`",
        "did you mean `kernel`?",
    ),
    ("plan demo --broken fix", "`--broken` is `fix`, but must be one of `repair`", None),
    ("completion bsh", "`SHELL` is `bsh`, but must be one of `bash`", "did you mean `bash`?"),
    ("plan", "`colablock plan` needs `NAME`", "Write `colablock plan NAME`"),
    (
        "runs plot",
        "`colablock runs plot` needs `-o/--output`",
        "Write it as in `colablock runs plot",
    ),
    (
        "train --dataset data.jsonl",
        "`colablock train` needs `NAME`",
        "where `NAME` is a matrix by name, or the path of its file",
    ),
    ("plan --quiet", "`colablock plan` needs `NAME`", "where `NAME` is a matrix by name"),
    ("train demo --max-steps 4", "`colablock train` has no option `--max-steps`", "`--set max_steps=4` sets"),
    ("train demo --max_steps=4", "`colablock train` has no option `--max_steps`", "`--set max_steps=4` sets"),
    ("train demo --seed", "`colablock train` has no option `--seed`", "`--set seed=VALUE` sets"),
    ("train demo --fesh", "`colablock train` has no option `--fesh`", "did you mean `--fresh`?"),
    ("why", "`colablock why` needs `NAME`", "Write `colablock why NAME`"),
    ("runtime diff", "`colablock runtime diff` needs `NAME|FILE` and `NAME|FILE`", "Write"),
    ("plan demo --with", "`--with` needs a value", None),
    ("plan demo --json=1", "`--json` takes no value", None),
    ("cache prune --older-than soon", "`--older-than` is `soon`, but must be a number", None),
]


@pytest.mark.parametrize(("line", "message", "hint"), WRONG, ids=[line for line, _, _ in WRONG])
def test_usage_errors_name_the_nearest_word(
    line: str, message: str, hint: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    assert main(words, {"COLUMNS": "200"}) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert (out, message in err, (hint or "") in err) == ("", True, True), err
    assert "usage:" not in err

    at = words.index("--") if "--" in words else len(words)
    assert main([*words[:at], "--json", *words[at:]], {}) == ExitCode.USAGE
    out, err = capsys.readouterr()
    if line not in {"plna", "xyzzy"}:
        error = json.loads(out)["error"]
        assert (error["reference"], err) == ("invalid-input", "")
        assert error["message"].startswith(message)


UNKNOWN = [
    (
        "why trl qlora-2026",
        "there is no matrix `trl`",
        "The matrix comes first: `colablock why qlora-2026 trl`",
    ),
    ("why TRL", "there is no matrix `TRL`", "The matrix comes first: `colablock why qlora-2026 TRL`"),
    ("why xyz", "there is no matrix `xyz`", "there are qlora-2024"),
    ("why trl xyz", "there is no matrix `trl`", "there are qlora-2024"),
    ("install qlora-2026", "has no command `install`", "did you mean `apply`?"),
    ("status", "has no command `status`", "did you mean `runs list`?"),
    ("pln", "has no command `pln`", "did you mean `plan`?"),
    ("merge", "has no command `merge`", 'colablock.attach("RUN").merge(...)'),
    ("runs generate", "has no command `generate`", 'colablock.attach("RUN").generate(...)'),
    (
        "plan qlora-2026 --runtime kaggle",
        "no runtime is recorded as `kaggle`",
        "No image of Kaggle is recorded",
    ),
    (
        "plan qlora-2026 --runtime kaggle-2026.01-gpu",
        "no runtime is recorded as `kaggle-2026.01-gpu`",
        "No image of Kaggle is recorded",
    ),
]


@pytest.mark.parametrize(("line", "message", "hint"), UNKNOWN, ids=[line for line, _, _ in UNKNOWN])
def test_an_unknown_name_leads_on(
    line: str, message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(line), {"COLUMNS": "200"}) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert (out, message in err, hint in err) == ("", True, True), err


@pytest.mark.parametrize(("line", "shown"), [("run -- python a.py", "python a.py"), ("run -q --", "CMD")])
def test_a_command_to_run_needs_a_matrix(line: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line), {"COLUMNS": "200"}) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert "`colablock run` needs `NAME` before `--`" in err
    assert f"Name the matrix: `colablock run NAME -- {shown}`" in err


@pytest.mark.parametrize("line", ["", "runs", "runtime", "cache", "env"])
def test_a_command_without_its_subcommand_prints_help(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line), {}) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: colablock {line}".strip())
    assert err == ""


@pytest.mark.parametrize("line", ["", "plan", "runs", "runs show"])
def test_help_is_a_word_too(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for words in (["help", *line.split()], [*line.split(), "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(words, {})
        assert ended.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


@pytest.mark.parametrize("line", ["plan", "apply", "why"])
def test_the_request_comes_first_in_a_help(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([line, "--help"], {})
    out = capsys.readouterr().out
    assert out.index("request:") < out.index("options:") < out.index("output:") < out.index("examples:")


def test_words_of_other_tools_lead_to_commands() -> None:
    known = leaves(build_parser()).keys()
    assert {re.sub(r" --.*", "", command) for command in OTHER_WORDS.values()} <= known
    assert {*OTHER_WORDS, *OF_THE_ADAPTER}.isdisjoint({name.partition(" ")[0] for name in known})


def leaves(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return each command without commands below it, by its words."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found |= leaves(command)
    return found or {parser.prog.removeprefix("colablock "): parser}


@pytest.mark.parametrize(("words", "status"), [(["schema"], 0), (["show", "nosuch"], 2)])
def test_exit_handlers_run_at_the_end_of_a_command(words: list[str], status: int) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(print, 'handled')\n"
        f"sys.argv = ['colablock', *{words}]\n"
        "from colablock.__main__ import run; run(); print('not reached')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (status, "handled")


def test_the_parser_of_one_command_is_that_of_all_commands() -> None:
    every = leaves(build_parser())
    for name, command in every.items():
        (alone,) = (one for path, one in leaves(build_parser(name.split()[0])).items() if path == name)
        assert alone.format_help() == command.format_help()


def test_every_command_has_a_group_and_two_examples_that_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = build_parser()
    commands = leaves(parser)
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted({name.split()[0] for name in commands}), (
        "colablock/cli/usage/examples.py"
    )
    assert EXAMPLES.keys() == commands.keys(), "colablock/cli/usage/examples.py"
    reference = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    for name, command in commands.items():
        text = command.format_help()
        assert max(map(len, text.splitlines())) <= 80, text
        anchor = f"docs/reference/cli.md#colablock-{name.replace(' ', '-')}"
        assert f"\nmore: {anchor} in colablock's repository\n" in text
        assert f"\n## `colablock {name}`\n" in reference
        for example in EXAMPLES[name]:
            assert f"  colablock {example}\n" in text
            words = shlex.split(example)
            words = words[: words.index("--")] if "--" in words else words
            assert parser.parse_args(words).handler is not None
    assert max(map(len, parser.format_help().splitlines())) <= 80


def test_examples_that_need_nothing_else_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {**os.environ, "COLABLOCK_HOME": str(tmp_path / "home")}
    names = ("list", "show", "new", "schema", "runtime list", "runtime show", "runtime diff", "completion")
    lines = [line for name in names for line in EXAMPLES[name] if "./" not in line and ".txt" not in line]
    for line in [*lines, f"{EXAMPLES['export'][1]} --offline", f"{EXAMPLES['plan'][1]} --offline"]:
        assert main(shlex.split(line), environ) == ExitCode.DONE, line


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment of a folder with a matrix `mine`, and of a home with the run `first`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "matrices").mkdir()
    (tmp_path / "matrices/mine.toml").write_text(
        'schema = 1\nname = "mine"\nsummary = "Mine"\n[packages.demo]\nversion = ""\nwhy = "a demo"\n'
    )
    (tmp_path / "home/runs").mkdir(parents=True)
    (tmp_path / "home/runs/first.json").write_text(json.dumps({"folder": str(tmp_path / "first")}))
    return {"COLABLOCK_HOME": str(tmp_path / "home")}


COMPLETIONS = [
    (["pl"], ["plan"]),
    (["runs", ""], ["follow", "list", "plot", "show", "stop"]),
    (["plan", "m"], ["mine"]),
    (["check", "mine", "m"], ["mine"]),
    (["env", "remove", "m"], ["mine"]),
    (["plan", "--into", ""], ["env", "kernel"]),
    (["plan", "--json", "m"], ["mine"]),
    (["plan", "mine", "--runtime", "colab-2026.08-"], ["colab-2026.08-cpu", "colab-2026.08-gpu"]),
    (["runtime", "diff", "colab-2026.08-cpu", "colab-2026.08-g"], ["colab-2026.08-gpu"]),
    (["runs", "show", ""], ["first"]),
    (["plan", "mine", "--prot"], ["--protect"]),
    (["lock", "--output", ""], []),  # a file: the shell's own completion
    (["plan", "mine", ""], []),
    (["new", "m"], []),
    (["completion", ""], ["bash", "fish", "zsh"]),
]


@pytest.mark.parametrize(("words", "found"), COMPLETIONS, ids=[" ".join(words) for words, _ in COMPLETIONS])
def test_completion_knows_commands_options_and_names(
    words: list[str], found: list[str], named: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert candidates(build_parser(), words, named) == found
    assert main(["completion", "words", "--", *words], named) == ExitCode.DONE
    assert capsys.readouterr().out.splitlines() == found


ASKED = {
    "bash": 'eval "$(colablock completion bash)"; COMP_WORDS=(colablock runs show f); COMP_CWORD=3;'
    ' _colablock; printf "%s\\n" "${COMPREPLY[@]}"',
    "zsh": 'compdef() { :; }; compadd() { shift; print -l -- ${(P)1}; }; eval "$(colablock completion zsh)";'
    " words=(colablock runs show f); CURRENT=4; _colablock",
    "fish": 'colablock completion fish | source; complete -C "colablock runs show f"',
}


@pytest.mark.parametrize("shell", ASKED)
def test_shells_take_the_script(shell: str, named: dict[str, str], tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"this machine has no {shell}")
    wrapper = tmp_path / "bin/colablock"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m colablock "$@"\n')
    wrapper.chmod(0o755)
    environ = {**os.environ, **named, "PATH": f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"}
    environ["PYTHONPATH"] = str(ROOT)
    ended = subprocess.run(
        [program, "-c", ASKED[shell]], capture_output=True, text=True, check=False, env=environ, cwd=tmp_path
    )
    assert ended.stdout.split() == ["first"], ended.stderr


def keys_of(value: object) -> set[str]:
    """Return the keys of all objects in *value*."""
    if isinstance(value, dict):
        return {*value, *(key for item in value.values() for key in keys_of(item))}
    return {key for item in value for key in keys_of(item)} if isinstance(value, list) else set()


@pytest.mark.parametrize(
    "line", ["info", "list", "show qlora-2026", "show qlora-2024", "runtime list", "history"]
)
def test_json_has_stable_names_as_keys(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), "--json"], dict(os.environ)) == ExitCode.DONE
    keys = keys_of(json.loads(capsys.readouterr().out))
    assert [key for key in keys if not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", key)] == []


@pytest.mark.parametrize("word", ["--int", "--variant=cpu --verb", "--no-l", "--prot"])
def test_an_option_is_not_abbreviated(word: str) -> None:
    """A later option with the same beginning would change what a script means."""
    with pytest.raises(InvalidInput, match="has no option `--") as found:
        build_parser().parse_args(["plan", "x", *word.split(), "env"])
    (meant,) = re.findall(r"did you mean `(--[a-z-]+)`\?", str(found.value.hint))
    assert meant.startswith(word.rpartition(" ")[2])


def test_colablock_is_called_again_as_it_was_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = tmp_path / "my venv/bin", tmp_path / "other/bin"
    for folder in (own, other):
        folder.mkdir(parents=True)
        (folder / "colablock").touch(mode=0o755)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/colablock").symlink_to(own / "colablock")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(own / "python"))
    script, module = str(own / "colablock"), "/site-packages/colablock/__main__.py"
    for path, argv, orig, expected in (
        (own, script, "", "colablock"),  # the environment is active
        (own, module, "python", "colablock"),
        (tmp_path / "links", script, "", "colablock"),
        ("/usr/bin", script, "", "'my venv/bin/colablock'"),
        ("/usr/bin", "my venv/bin/colablock", "", "'my venv/bin/colablock'"),
        (other, script, "", "'my venv/bin/colablock'"),  # another installation would answer
        ("/usr/bin", module, str(own / "python"), "'my venv/bin/python' -m colablock"),
        ("/usr/bin", module, "/usr/bin/python3", "/usr/bin/python3 -m colablock"),
        ("/usr/bin", "", "", "colablock"),
    ):
        monkeypatch.setattr(sys, "orig_argv", [orig])
        assert called_as([argv], {"PATH": str(path)}) == expected, (path, argv, orig)


def test_messages_name_the_command_that_was_called() -> None:
    program = ".venv/bin/colablock"
    text = "`colablock apply x` or `colablock.apply` of colablock run by colablock\n  colablock lock x"
    said = f"`{program} apply x` or `colablock.apply` of colablock run by colablock\n  {program} lock x"
    assert as_called(text, program) == said
    assert as_called(said, program) == said
    assert as_called(text, "colablock") == text
    assert as_called("colablock run x", program, is_code=True) == ".venv/bin/colablock run x"
