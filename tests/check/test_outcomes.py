"""Outcomes of matrices on recorded runtimes, and the drift from committed results."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock.check.capabilities import CAPABILITIES as RULES
from colablock.check.capabilities import HOLDS, check_capability
from colablock.check.outcomes import Outcome, Verdict, broken_since, differences
from colablock.environment.accelerator import CARDS, Accelerator, declared
from colablock.errors import ExitCode
from colablock.matrix.schema import CAPABILITIES
from tests.support.fixtures import world_fixture
from tests.support.html import read
from tests.support.runtime import Stub, Venv
from tests.support.wheels import make_wheel
from tests.support.world import World

MATRIX = """\
schema = 1
name = "{name}"
summary = "Shapes"
requirements = ["{line}"]
"""


OWNED = """\
schema = 1
name = "owned"

[packages.own]
version = "==1.0"
requires-dist = ["shapes"]
"""


def outcome(runtime: str, verdict: str, accelerator: str = "T4", **facts: Any) -> Outcome:
    return Outcome(
        runtime=runtime,
        accelerator=accelerator,
        variant=None,
        verdict=Verdict(verdict),
        reason=facts.pop("reason", f"because {verdict}"),
        **facts,
    )


# What follows from outcomes


def test_an_outcome_round_trips_through_json() -> None:
    one = outcome("colab-1-gpu", "kernel", removes=("a 1", "b 2"), capabilities={"nf4": HOLDS}, fetch_bytes=7)
    assert "fetch-unknown" not in one.to_json()
    unsized = replace(one, unsized=("torch",))
    assert unsized.to_json()["fetch-unknown"] == ["torch"]
    assert Outcome.from_json(unsized.to_json()) == unsized
    assert Outcome.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    ("verdicts", "first"),
    [
        (["kernel", "kernel"], None),
        (["env", "kernel"], None),
        (["kernel", "env", "none"], ("colab-2-gpu", "kernel", "env")),
        (["unknown", "kernel", "none"], ("colab-3-gpu", "kernel", "none")),
    ],
)
def test_the_first_regressed_runtime_is_named(
    verdicts: list[str], first: tuple[str, str, str] | None
) -> None:
    outcomes = []
    for number, verdict in enumerate(verdicts, start=1):
        outcomes += [outcome(f"colab-{number}-gpu", verdict), outcome(f"colab-{number}-cpu", "env", "none")]
    found = [(one.runtime, one.was.value, one.now.value) for one in broken_since(outcomes)]
    assert found == ([first] if first else [])


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        ([outcome("r-1", "env")], [outcome("r-1", "env")], []),
        ([], [outcome("r-1", "env")], ["r-1 with T4: new, env: because env"]),
        (
            [outcome("r-1", "kernel")],
            [outcome("r-1", "none")],
            ["r-1 with T4: kernel -> none: because none"],
        ),
        (
            [outcome("r-1", "env", "none", installs=3)],
            [outcome("r-1", "env", "none", installs=4, removes=("a 1",))],
            ["r-1: installs 3 -> 4", "r-1: removes none -> a 1"],
        ),
        ([outcome("r-1", "env")], [], ["r-1 with T4: no longer recorded"]),
    ],
)
def test_differences_are_listed_line_by_line(
    before: list[Outcome], now: list[Outcome], lines: list[str]
) -> None:
    assert [str(one) for one in differences(before, now)] == lines


# Claims


def test_every_capability_has_a_rule() -> None:
    assert RULES.keys() == set(CAPABILITIES)


NO_CARD = Accelerator()


@pytest.mark.parametrize(
    ("capability", "versions", "accelerator", "said"),
    [
        ("nf4", {"bitsandbytes": "0.43.3"}, declared("T4"), "holds"),
        (
            "nf4",
            {"bitsandbytes": "0.43.3"},
            NO_CARD,
            "does not hold: bitsandbytes 0.43.3 needs CUDA",
        ),
        ("nf4", {"bitsandbytes": "0.50.2"}, NO_CARD, "holds"),
        ("nf4", {}, NO_CARD, "does not hold: the stack has no bitsandbytes"),
        (
            "llama3-rope",
            {"transformers": "4.41.0"},
            NO_CARD,
            "does not hold: transformers 4.41.0 does not support",
        ),
        ("llama3-rope", {"transformers": "4.43.0"}, NO_CARD, "holds"),
        ("flight", {}, NO_CARD, "not known: no rule for `flight`"),
    ],
)
def test_capabilities_are_judged_by_versions_and_gpu(
    capability: str, versions: Any, accelerator: Accelerator, said: str
) -> None:
    assert check_capability(capability, versions, accelerator).startswith(said)


# The command


IMAGES = {
    "image-1-cpu": [Stub(name="other", version="1.0", requires=("colours",))],
    "image-2-cpu": [
        Stub(name="colours", version="1.0"),
        Stub(name="other", version="1.0", requires=("colours<2",)),
    ],
}


def fill(folder: Path) -> None:
    """Write matrices, and an index for them."""
    wheels, matrices = folder / "index", folder / "matrices"
    make_wheel(wheels, "colours", "1.0")
    make_wheel(wheels, "colours", "2.0")
    make_wheel(wheels, "shapes", "2.0", requires=["colours>=2"])
    make_wheel(wheels, "own", "1.0", modules={"own/__init__.py": "import colours\nimport shapes\n"})
    matrices.mkdir()
    (matrices / "owned.toml").write_text(OWNED)
    for name, line in {"good": "shapes", "nowhere": "shapes>=9"}.items():
        (matrices / f"{name}.toml").write_text(MATRIX.format(name=name, line=line))


world = world_fixture(fill, scope="module")


@pytest.fixture(scope="module")
def recorded(world: World) -> Path:
    """Record two runtimes of an image, the newer one with another `colours` than `other` needs, and lock."""
    for name, stubs in IMAGES.items():
        venv = Venv.make(world.folder / name, *stubs)
        done = world.run("runtime", "record", "--python", venv.python, "--name", name)
        assert done.code == ExitCode.DONE, done.err
    for name in ("good", "nowhere"):
        world.run("lock", name, "--all")
    return world.folder


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    """Copy the matrices and the runtimes, to be changed."""
    for name in ("matrices", "runtimes"):
        shutil.copytree(recorded / name, tmp_path / name)
    return tmp_path


def row(found: Any, runtime: str) -> dict[str, Any]:
    (one,) = (one for one in found["results"] if one["runtime"] == runtime)
    return dict(one)


def test_check_covers_every_runtime_and_gpu_without_a_network(world: World, copy: Path) -> None:
    asked = list(world.server.paths)
    done = world.run("check", "good", "nowhere", "--json", cwd=copy)
    assert world.server.paths == asked
    good, nowhere = done.json["checks"]
    assert row(good, "image-1-cpu")["verdict"] == "kernel"
    assert row(good, "image-1-cpu")["reason"] == "installs shapes, colours; breaks nothing"
    broken = row(good, "image-2-cpu")
    assert (broken["verdict"], broken["reason"]) == ("env", "in the kernel other would break")
    assert broken["lock"].startswith("pylock.good--py3")
    cards = {one["accelerator"] for one in good["results"] if one["runtime"] == "colab-2026.08-gpu"}
    assert cards == set(CARDS)
    assert [one["runtime"] for one in good["broken-since"]] == ["image-2-cpu"]
    assert {one["verdict"] for one in nowhere["results"]} == {"none"}
    assert "shapes>=9" in row(nowhere, "image-1-cpu")["reason"]


def test_a_runtime_without_a_fitting_variant_has_the_reasons_of_the_matrix(world: World, copy: Path) -> None:
    system = "[variants.{}]\nsystem-requirements = {{ accelerator = 'cuda'{} }}\n"
    for name, why in {"plain": "", "told": ", why = 'take `good` without a card'"}.items():
        text = MATRIX.format(name=name, line="shapes") + system.format("cuda", why) + system.format("two", "")
        (copy / "matrices" / f"{name}.toml").write_text(text)
    done = world.run("check", "plain", "told", "--json", cwd=copy)
    plain, told = (row(one, "image-1-cpu") for one in done.json["checks"])
    facts = "cuda: there is no CUDA device\ntwo: there is no CUDA device"
    assert (plain["verdict"], plain["reason"]) == ("none", facts)
    assert (told["verdict"], told["reason"]) == ("none", f"{facts}\ntake `good` without a card")


def test_check_compares_with_the_committed_results(world: World, copy: Path) -> None:
    first = world.run("check", "good", cwd=copy)
    assert first.code == ExitCode.UNMET
    assert "there are no committed results" in " ".join(first.out.split())
    assert world.run("check", "good", "--update", cwd=copy).code == ExitCode.DONE
    written = (copy / "matrices/good.checks.json").read_bytes()
    assert world.run("check", "good", cwd=copy).code == ExitCode.DONE
    shutil.move(copy / "runtimes/image-1-cpu.json", copy / "elsewhere.json")
    moved = world.run("check", "good", cwd=copy)
    assert moved.code == ExitCode.UNMET
    said = " ".join(moved.out.split())
    assert "Drift image-1-cpu: no longer recorded" in said
    assert said.endswith("next: if that is meant, `--update` writes the new results")
    assert (copy / "matrices/good.checks.json").read_bytes() == written


def test_a_shipped_matrix_is_compared_with_the_shipped_results(world: World, copy: Path) -> None:
    shipped = copy / "lib/site-packages/shipped"
    shutil.copytree(copy / "matrices", shipped)
    shutil.rmtree(copy / "matrices")
    variables = {"COLABLOCK_MATRICES": str(shipped)}
    first = world.run("check", "good", cwd=copy, **variables)
    assert (first.code, "Nothing to compare with" in first.out) == (ExitCode.UNMET, True)
    assert world.run("check", "good", "--update", cwd=copy, **variables).code == ExitCode.DONE
    (copy / "matrices/good.checks.json").rename(shipped / "good.checks.json")
    done = world.run("check", "good", cwd=copy, **variables)
    assert (done.code, list((copy / "matrices").iterdir())) == (ExitCode.DONE, [])
    assert "unchanged: the results are the shipped ones of 20" in done.out


def test_without_locks_the_verdict_is_unknown_with_a_hint(world: World, copy: Path) -> None:
    for lock in (copy / "matrices").glob("pylock.*"):
        lock.unlink()
    done = world.run("check", "good", "--json", cwd=copy)
    found = row(done.json["checks"][0], "image-1-cpu")
    assert (found["verdict"], found["reason"]) == ("unknown", "the lock is missing or stale")


@pytest.mark.parametrize("asked", ["good", "matrices/good.toml"])
def test_without_locks_nothing_is_written(asked: str, world: World, copy: Path) -> None:
    matrix = copy / "matrices/good.toml"
    matrix.write_text(matrix.read_text() + "[verify]\nimports = ['shapes']\n")  # the locks are stale
    for options in ([], ["--update"]):
        done = world.run("check", asked, *options, cwd=copy)
        said = " ".join(done.out.split())
        assert (done.code, "no runtime has a lock that is up to date" in said) == (ExitCode.UNMET, True)
        assert f"next: `colablock lock {asked} --all` writes the locks that are missing or stale" in said
        assert "`--update` writes" not in said
    assert not (copy / "matrices/good.checks.json").exists()


def test_a_stale_lock_is_made_again_before_the_results_are_written(world: World, copy: Path) -> None:
    assert world.run("check", "good", "--update", cwd=copy).code == ExitCode.DONE
    written = (copy / "matrices/good.checks.json").read_bytes()
    (copy / "matrices/pylock.good--image-1-cpu.toml").unlink()
    said = " ".join(world.run("check", "good", cwd=copy).out.split())
    assert "there is no lock for this kernel" in said
    assert "next: `colablock lock good --all` writes the locks" in said
    assert "`--update` writes" not in said
    matrix = copy / "matrices/good.toml"
    matrix.write_text(matrix.read_text() + "[verify]\nimports = ['shapes']\n")
    stale = world.run("check", "good", "--update", cwd=copy)
    assert (stale.code, "kernel -> unknown" in stale.out) == (ExitCode.UNMET, True)
    assert "Drift the matrix has changed since these results were written" in " ".join(stale.out.split())
    assert (copy / "matrices/good.checks.json").read_bytes() == written


def test_lock_names_the_file_of_its_refusals(world: World, copy: Path) -> None:
    refused = copy / "matrices/nowhere.refused.json"
    done = world.run("lock", "nowhere", "--all", cwd=copy)
    assert done.code == ExitCode.UNMET
    assert f"wrote        {refused.relative_to(copy)}\n" in done.err
    refused.unlink()
    dry = world.run("lock", "nowhere", "--all", "--check", cwd=copy)
    assert ("refused.json" in dry.err, refused.exists()) == (False, False)


def test_the_imports_option_examines_rebuilt_packages(world: World, copy: Path) -> None:
    for options in ([], ["--update"], []):
        before = world.run("check", "owned", *options, cwd=copy)
        assert "have not been examined: pass `--imports`" in " ".join(before.out.split())
    assert before.code == ExitCode.UNMET
    assert world.run("check", "owned", "--imports", "--update", cwd=copy).code == ExitCode.DONE
    done = world.run("check", "owned", "--json", cwd=copy)
    assert done.code == ExitCode.DONE
    (finding,) = done.json["checks"][0]["imports"]
    assert (finding["package"], finding["kind"], finding["name"]) == ("own", "undeclared", "colours")
    assert finding["where"] == "own/__init__.py:1"


def test_the_html_option_writes_the_compatibility_page(world: World, copy: Path) -> None:
    done = world.run("check", "good", "nowhere", "--html", "pages/compat.html", cwd=copy)
    assert done.code == ExitCode.UNMET, done.err
    assert "wrote pages/compat.html\n" in done.err
    text = (copy / "pages/compat.html").read_text(encoding="utf-8")
    assert "in the kernel other would break" in text
    assert "image-2-cpu" in text


def test_the_page_shows_commands_that_can_be_typed(world: World, copy: Path) -> None:
    folder = (copy / "matrices").rename(copy / "my matrices")
    paths = [f"./{folder.name}/{name}.toml" for name in ("good", "nowhere")]
    world.run("check", *paths, "--html", "compat.html", cwd=copy)
    page = read((copy / "compat.html").read_text(encoding="utf-8"))
    words = [shlex.split(one.text) for one in page.all("dd") if one.text.startswith("colablock ")]
    assert {one[1] for one in words} == {"apply", "plan"}
    assert {one[2] for one in words} == {*paths}


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "name the matrices to check, or pass `--all`"),
        (["good", "--all"], "name the matrices to check, or pass `--all`"),
        (["goood"], "did you mean `good`?"),
    ],
)
def test_invalid_arguments_of_check_are_refused(argv: list[str], said: str, world: World) -> None:
    done = world.run("check", *argv)
    assert done.code == ExitCode.USAGE
    assert said in " ".join(done.err.split())


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 2}', '{"schema": 1, "results": [{}]}'])
def test_an_unreadable_results_file_is_an_error(text: str, world: World, copy: Path) -> None:
    (copy / "matrices/good.checks.json").write_text(text)
    done = world.run("check", "good", cwd=copy)
    assert done.code == ExitCode.USAGE
    assert "good.checks.json" in done.err
