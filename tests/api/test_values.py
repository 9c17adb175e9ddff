"""Every function of the front door has a signature to complete, and returns a value that shows itself."""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import colablock
from colablock.api.values import Exported
from colablock.check import Verdict
from colablock.cli.main import build_parser
from colablock.errors import InvalidInput
from tests.support.fixtures import painting, venv_fixture, world_fixture
from tests.support.runtime import Stub, Venv
from tests.support.world import World

world = world_fixture(painting, scope="module")
venv = venv_fixture(Stub(name="colours", version="1.0"))

FUNCTIONS = sorted(
    {*colablock.__all__, "check"} - {"ColablockError", "__version__", "load_ipython_extension"}
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_signature_lists_every_argument(name: str) -> None:
    function = getattr(colablock, name)
    found = inspect.signature(function).parameters.values()
    open_ended = [one.name for one in found if one.kind is inspect.Parameter.VAR_KEYWORD]
    assert open_ended == (["settings"] if name == "train" else [])  # any key of a config
    assert inspect.getdoc(function)
    assert name in dir(colablock)
    if not open_ended:
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
            function(nonsense=1)


#: A mistaken call, what is said of it, and the hint.
MISTAKES = {
    "plan('x', verbos=1)": ("`colablock.plan()` got an unexpected keyword argument 'verbos'", "`verbose`?"),
    "apply('x', int='env')": ("`colablock.apply()` got an unexpected keyword argument 'int'", "`into`?"),
    "apply('x', target='env')": ("an unexpected keyword argument 'target'", "did you mean `into`?"),
    "history(target='x')": ("an unexpected keyword argument 'target'", "takes python, drop"),
    "verify()": ("`colablock.verify()` needs `name`", "`colablock.verify()` takes name, quiet"),
    "run()": ("`colablock.run()` needs `name` and `argv`", "takes name, argv"),
    "plan('a', 'b')": (
        "`colablock.plan()` takes from 0 to 1 positional arguments but 2 were given",
        "takes name, ",
    ),
    "runs(1)": ("`colablock.runs()` takes 0 positional arguments but 1 was given", "takes no argument"),
    "plan(5)": ("`colablock.plan()` cannot use an argument: `name` is `5` (expected str", "takes name, "),
    "plan('x', protect=5)": (
        "cannot use an argument: `protect` is `5` ('int' object is not iter",
        "takes name, ",
    ),
    "lock('x', output=3)": ("`colablock.lock()` cannot use an argument: `output` is `3`", "takes name, "),
    "attach(3)": ("`colablock.attach()` cannot use an argument: `run_id` is `3`", "takes run_id"),
    "train(7, hub_token='s3cr3t', wandb_key='s3cr3t')": (
        "cannot use an argument: `name` is `7` (",
        "takes name",
    ),
    "plan(5, quiet=True)": ("cannot use an argument: `name` is `5` (", "takes name"),
}


@pytest.mark.parametrize("call", MISTAKES)
def test_a_mistaken_call_is_said_in_a_line(call: str) -> None:
    message, hint = MISTAKES[call]
    with pytest.raises(InvalidInput) as found:
        eval(f"colablock.{call}", {"colablock": colablock})  # noqa: S307 - ours
    assert issubclass(found.type, TypeError)  # as Python raises it
    assert message in str(found.value)
    assert hint in str(found.value.hint)
    assert found.value.__suppress_context__


def test_an_error_of_the_library_is_no_mistake_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def deep(*_: object) -> None:
        len(5)  # type: ignore[arg-type]

    monkeypatch.setattr("colablock.operations.last_apply.last_apply", deep)
    with pytest.raises(TypeError, match="has no len") as found:
        colablock.verify("x")
    assert not isinstance(found.value, colablock.ColablockError)


def test_a_verbose_plan_shows_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    name = "qlora-2026"
    brief = colablock.plan(name, runtime="colab-2026.08-gpu")
    assert capsys.readouterr().out == ""
    assert colablock.plan(name, runtime="colab-2026.08-gpu", verbose=True) == brief
    shown = " ".join(capsys.readouterr().out.split())
    for one in brief.kept:
        assert f"{one.name} {one.version} {one.reason}" in shown
    assert all(step.artifact is None or step.artifact.filename in shown for step in brief.steps)


# What only one of them has, and why: a terminal asks, a notebook restarts its kernel; a file is an argument
# there and a value here; several locks are written by a command.
ONLY_THERE = {
    "apply": {"yes"},
    "audit": {"all"},
    "check": {"all", "html"},
    "explain": {"file"},
    "lock": {"all", "check"},
    "rollback": {"to", "yes"},
    "smoke": {"receipt"},
    "verify": {"receipt"},
    "train": {"set"},
    "why": {"absent"},
}
ONLY_HERE = {
    "apply": {"restart"},
    "audit": {"every"},
    "explain": {"failure"},
    "rollback": {"restart", "to_first"},
    "train": {"launch_arguments", "settings"},
    "why": {"not_"},
}
ALWAYS = {"help", "json", "verbose", "quiet"}


def test_a_function_takes_what_its_command_takes() -> None:
    (below,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    for name in FUNCTIONS:
        if name in {"attach", "runs"}:
            continue
        options = {action.dest for action in below.choices[name]._actions} - ALWAYS
        arguments = set(inspect.signature(getattr(colablock, name)).parameters) - ALWAYS
        assert (options - arguments, arguments - options) == (
            ONLY_THERE.get(name, set()),
            ONLY_HERE.get(name, set()),
        ), name


@pytest.fixture
def said(world: World, venv: Venv, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Mapping[str, Any]]:
    """Evaluate Python source with `colablock`, in the world, as a script would."""
    del venv
    for name, value in world.environ().items():
        if name.startswith("COLABLOCK"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(world.folder)
    return lambda source: {"value": eval(source, {"colablock": colablock})}  # noqa: S307 - ours


#: A call, and what its text says.  None may be long.
VALUES = {
    "colablock.plan('painting.toml', into='kernel', python=PYTHON)": "painting into the kernel",
    "colablock.apply('painting.toml', into='kernel', python=PYTHON)": "painting in the kernel is proven",
    "colablock.verify('painting.toml')": "is proven",
    "colablock.why('painting.toml', 'colours', into='kernel', python=PYTHON)": "meets colours==2.0",
    "colablock.history(python=PYTHON)": "change 1",
    "colablock.lock('painting.toml', output=FOLDER + '/pylock.painting.toml')": "has 1 package",
    "colablock.check('painting.toml')": "painting",
    "colablock.rollback(python=PYTHON)": "The environment is as it was before change 1",
    "colablock.list()": "qlora-2026",
    "colablock.show('painting.toml')": "colours==2.0",
    "colablock.info(python=PYTHON)": "executable",
    "colablock.runs()": "no run",
    "colablock.explain('CUDA out of memory. Tried to allocate 2 GiB')": "memory",
}


def test_every_value_shows_itself(world: World, venv: Venv, said: Callable[[str], Mapping[str, Any]]) -> None:
    for source, words in VALUES.items():
        call = source.replace("PYTHON", repr(str(venv.python))).replace("FOLDER", repr(str(world.folder)))
        value = said(call)["value"]
        assert words.lower() in str(value).lower(), (source, str(value))
        assert len(str(value)) < 3000, source
        assert str(value) != repr(value)
        assert value._repr_html_().startswith("<div"), source
        assert "--" not in str(value).replace("--all`", ""), (source, str(value))


def test_the_values_are_plain_ones(said: Callable[[str], Mapping[str, Any]], tmp_path: Path) -> None:
    facts = said("colablock.list()")["value"]
    assert isinstance(facts, dict)
    assert json.loads(json.dumps(facts)) == facts
    assert said("colablock.runs()")["value"] == []
    text = said("colablock.export('painting.toml', quiet=True)")["value"]
    assert isinstance(text, Exported)
    assert "colours==2.0" in str(text)  # all of it: it is written to files
    assert text._repr_html_().startswith("<div>requirements of painting, Python 3.")
    (tmp_path / "lock").write_bytes(said("colablock.lock('painting.toml')")["value"])
    assert b"colours" in (tmp_path / "lock").read_bytes()


def test_check_is_a_function_whatever_was_imported_before() -> None:
    code = "import colablock{}; print(callable(colablock.check), callable(colablock.list))"
    for before in ("", ", colablock.check", ", colablock.check.outcomes", ", colablock.api.catalog"):
        command = [sys.executable, "-c", code.format(before)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["True", "True"]
    assert Verdict.__module__ == "colablock.check.outcomes"
