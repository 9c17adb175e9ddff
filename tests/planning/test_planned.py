"""The reasons for what a plan says: about a package, the target, what is not in it, and additions."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import colablock
from colablock.cli.main import main
from colablock.errors import InvalidInput, NotFound
from colablock.operations.plan import explain_plan, plan_change
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions
from tests.support.fixtures import world_fixture
from tests.support.wheels import make_wheel
from tests.support.world import World

# fastai of this image needs `fastcore<1.8`.
RUNTIME = "colab-2025.07-gpu"
MATRICES = {
    "harmless": 'requirements = ["shapes"]\n',
    "harmful": 'requirements = ["shapes", "fastcore>=9"]\n',
    "unfit": 'requirements = ["shapes", "pandas>=9"]\n[constraints]\n'
    'lines = { version = "<2", why = "2 are many" }\n',
}


def fill(folder: Path) -> None:
    """Write an index and matrices."""
    index = folder / "index"
    make_wheel(index, "shapes", "2.0", requires=["colours"])
    make_wheel(index, "colours", "1.0", requires=["tints"])
    for name, version in (
        ("tints", "1.0"),
        ("fastcore", "9.0"),
        ("pandas", "9.0"),
        ("lines", "1.0"),
        ("lines", "3.0"),
    ):
        make_wheel(index, name, version)
    make_wheel(index, "grey", "1.0", requires=["colours>=5"])
    make_wheel(index, "tints", "0.5")
    (folder / "matrices").mkdir()
    for name, text in MATRICES.items():
        (folder / "matrices" / f"{name}.toml").write_text(f'schema = 1\nname = "{name}"\n{text}')


world = world_fixture(fill, scope="module")


@pytest.fixture(autouse=True)
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)


def told(world: World, name: str, package: str | None = None, *with_: str, absent: str | None = None) -> str:
    session = Session(environ=world.environ())
    options = ApplyOptions(name=name, runtime=RUNTIME, with_=with_)
    return "\n".join(explain_plan(session, options, package, absent=absent))


REASONS = {
    "a requested package": (
        ("harmless", "shapes"),
        ["install shapes 2.0", "requirements[0] asks for shapes"],
        ["kernel"],
    ),
    "a dependency": (
        ("harmless", "tints"),
        ["colours 1.0 needs tints", "chain: harmless -> shapes 2.0 -> colours 1.0 -> tints 1.0"],
        ["asks for tints"],  # in other words once more
    ),
    "what is not concerned": (("harmless", "numpy"), ["is installed, and this plan does not concern it"], []),
    "the kernel as target": (
        ("harmless",),
        ["the target is the kernel (harmless: no loaded module"],
        ["--into"],
    ),
    "another target": (
        ("harmful",),
        [
            "the target is an isolated environment: in the kernel fastai would break",
            "fastai 2.7.19 would break: it needs fastcore<1.8",
            "to change the kernel of that runtime nevertheless: `colablock apply harmful --into kernel`; `",
        ],
        [],
    ),
    "what breaks there": (
        ("harmful", "fastai"),
        [
            "in the kernel: fastcore 1.7.29 becomes 9.0",
            "in the kernel: so this plan breaks it; it is removed",
            "the target is an isolated environment: in the kernel fastai would break",
            "`colablock apply harmful --into kernel`",
        ],
        ["unknown"],
    ),
    "what moves there": (
        ("harmful", "fastcore"),
        ["install fastcore 9.0", "in the kernel: replace fastcore 1.7.29 -> 9.0"],
        [],
    ),
    "no solution in the kernel": (
        ("unfit",),
        [
            "not in the kernel: no candidate fits `pandas>=9`",
            "and google-colab 1.0.0 is protected",
            "unfit asks for `pandas>=9`",
        ],
        ["--into kernel"],
    ),
    "no solution, asked about it": (("unfit", "pandas"), ["install pandas 9.0", "and google-colab"], []),
    "no solution, asked about another": (
        ("unfit", "tints"),
        ["not in the kernel: no candidate"],
        ["google-colab"],
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_reasons_are_those_of_the_plan_and_of_the_target_not_chosen(case: str, world: World) -> None:
    asked, present, absent = REASONS[case]
    text = told(world, *asked)
    assert [one for one in present if one not in text] == [], text
    assert [one for one in absent if one in text] == [], text


NOT = {
    "in the plan": (("harmless", "shapes"), ["shapes 2.0 is in the plan", "install shapes 2.0"], ["added"]),
    "asked for by nobody": (
        ("harmless", "lines"),
        [
            "nothing asks for lines: neither harmless nor what it installs",
            f"it can be added: `colablock plan harmless --with lines --runtime {RUNTIME}`",
            "+ lines 3.0",
        ],
        [],
    ),
    "limited by the matrix": (
        ("unfit", "lines>=2"),
        [
            "constraints.lines allows only `lines<2`: 2 are many",
            "`lines>=2` cannot be added: no version of `lines`",
        ],
        ["nothing asks"],
    ),
    "in no index": (
        ("harmless", "nothing-at-all"),
        ["cannot be added: no index has `nothing-at-all`"],
        ["+ "],
    ),
    "a conflict": (("harmless", "grey"), ["`grey` cannot be added: no candidate fits `colours>=5`"], ["+ "]),
    "another version": (
        ("harmless", "tints<1"),
        ["colours 1.0 needs tints", "tints 1.0 -> 0.5"],
        ["nothing"],
    ),
    "harm in the kernel": (
        ("harmless", "fastcore==9.0"),
        [
            "is installed",
            "+ fastcore 9.0",
            "target: the kernel -> an isolated environment (in the kernel fastai",
        ],
        [],
    ),
}


@pytest.mark.parametrize("case", NOT)
def test_what_is_not_in_the_plan_is_explained(case: str, world: World) -> None:
    (name, package), present, absent = NOT[case]
    text = told(world, name, absent=package)
    assert [one for one in present if one not in text] == [], text
    assert [one for one in absent if one in text] == [], text


def test_additions_are_compared_with_the_plan_without(world: World) -> None:
    text = told(world, "harmless", "tints", "tints<1", "lines==1.0")
    assert (
        "with `tints<1`, `lines==1.0`, compared to the plan without:\n+ lines 1.0\ntints 1.0 -> 0.5" in text
    )
    assert "`--with` asks for tints<1" in text
    assert told(world, "harmless", "tints", "tints>=1").endswith(
        "compared to the plan without:\nnothing changes"
    )


def test_a_name_that_the_matrix_excludes_has_its_reason(world: World) -> None:
    text = told(world, "unfit", "lines")
    assert text.startswith("lines is neither installed nor part of unfit\nconstraints.lines allows only")
    assert "2 are many" in text


def test_unknown_names_have_a_hint(world: World) -> None:
    with pytest.raises(NotFound, match="numpi is neither installed nor part") as caught:
        told(world, "harmless", "numpi")
    assert caught.value.hint == "did you mean `numpy`?"
    with pytest.raises(NotFound) as caught:
        told(world, "harmless", "xyzzy")
    question = f"`colablock why harmless --runtime {RUNTIME} --not xyzzy`"
    assert caught.value.hint == f"{question} says what adding it would change"
    with pytest.raises(InvalidInput, match="not a valid requirement"):
        told(world, "harmless", absent="!!")


def test_the_plan_names_the_command_that_explains_it(world: World) -> None:
    session = Session(environ=world.environ())
    notes = plan_change(session, ApplyOptions(name="harmful", runtime=RUNTIME)).plan.beforehand
    why = f"`colablock why harmful --runtime {RUNTIME}` explains why the kernel is not the target"
    assert any(why in note for note in notes)
    notes = plan_change(session, ApplyOptions(name="harmless", runtime=RUNTIME)).plan.beforehand
    assert not any("colablock why" in note for note in notes)


def test_the_next_command_has_what_the_request_has(world: World) -> None:
    """A matrix that is named by its path, and what a call offline needs, are named so again."""
    shown = world.folder / "own matrices"
    shown.mkdir()
    for name in ("harmless", "harmful"):
        (shown / f"{name}.toml").write_text((world.folder / "matrices" / f"{name}.toml").read_text())
    links = str(world.folder / "index")
    sources = ("--default-index", "https://index.example/simple", "--find-links", links, "--offline")
    given = ("--no-lock", *sources, "--runtime", RUNTIME)
    cases = {
        ("harmless", "xyzzy"): ("why", *given, "--not", "xyzzy"),
        ("harmless", "--not", "lines"): ("plan", "--with", "lines", *given),
        ("harmful",): ("apply", "--no-lock", "--into", "kernel", *sources),
    }
    for (name, *question), (verb, *arguments) in cases.items():
        path = f"own matrices/{name}.toml"
        secret = ("--default-index", "https://user:secret@index.example/simple")
        done = world.run("why", path, *question, *given, *secret)
        assert f"`{shlex.join(['colablock', verb, path, *arguments])}`" in " ".join(
            f"{done.out} {done.err}".split()
        )


def test_command_and_function_say_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in world.environ().items():
        monkeypatch.setenv(name, value)
    arguments = ["why", "harmful", "--runtime", RUNTIME]
    assert main([*arguments, "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert lines["package"] is None
    assert lines["because"] == list(colablock.why("harmful", runtime=RUNTIME, quiet=True))
    assert main([*arguments, "--json", "--not", "lines"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert lines["package"] == "lines"
    assert lines["because"] == list(colablock.why("harmful", not_="lines", runtime=RUNTIME, quiet=True))
    assert main([*arguments, "shapes", "--not", "lines"]) == 2
    with pytest.raises(InvalidInput, match="`not_` cannot be used with another package"):
        colablock.why("harmful", "shapes", not_="lines")
    assert main(arguments) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
