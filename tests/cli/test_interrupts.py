"""An interrupt ends a command and a cell with one line, which says in which state the environment is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping

import pytest

import colablock
from colablock.cli.main import main
from colablock.errors import ExitCode, Interrupted
from tests.support.fixtures import painting, venv_fixture, world_fixture
from tests.support.runtime import Stub, Venv
from tests.support.trees import listing
from tests.support.world import World

world = world_fixture(painting, scope="module")
venv = venv_fixture(Stub(name="colours", version="1.0"))

AS_IT_WAS = "Interrupted. The environment is as it was."
IN_PLACE = "Interrupted. The change is in place."
# Where the interrupt comes, in the order of an apply; see `interrupt_at`.
STATIONS = {
    "colablock.transaction.up_to_date.up_to_date_report": AS_IT_WAS,
    "colablock.operations.session.Session.snapshot": AS_IT_WAS,
    "colablock.operations.plan.plan_change": AS_IT_WAS,
    "colablock.display.plan_view.plan_document": AS_IT_WAS,
    "colablock.planning.wheels.WheelPreparer.gather": AS_IT_WAS,
    "colablock.transaction.apply.stage": AS_IT_WAS,
    "colablock.transaction.journal.Journal.run": AS_IT_WAS,
    "colablock.operations.apply.prove": AS_IT_WAS,
    "importlib.invalidate_caches": IN_PLACE,
    "colablock.operations.apply._report": f"{IN_PLACE[:-1]}; apply again to see its proof.",
    "colablock.operations.apply._record": f"{IN_PLACE[:-1]}; apply again to see its proof.",
}


def interrupt(*_args: object, **_options: object) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def environ(world: World, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    monkeypatch.chdir(world.folder)
    found = world.environ()
    for name in found.keys() & {"COLABLOCK_HOME", "COLABLOCK_CACHE_DIR", "COLABLOCK_DEFAULT_INDEX"}:
        monkeypatch.setenv(name, found[name])
    return found


@pytest.mark.parametrize("station", STATIONS)
def test_an_interrupted_apply_says_which_state_it_left(
    station: str,
    venv: Venv,
    environ: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = listing(venv.folder)
    command = ["apply", "painting.toml", "--into", "kernel", "--python", venv.python]
    said = STATIONS[station]
    with monkeypatch.context() as patched:
        patched.setattr(station, interrupt)
        assert main(command, environ) == ExitCode.INTERRUPTED
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == said
    assert "Traceback" not in err
    assert (listing(venv.folder) == before) is (said == AS_IT_WAS)
    if said != AS_IT_WAS:  # the rollback is interrupted, too: in the middle, and right after it
        back = ["rollback", "--python", venv.python]
        with monkeypatch.context() as patched:
            patched.setattr("colablock.transaction.journal.Journal.run", interrupt)
            assert main(back, environ) == ExitCode.INTERRUPTED
        assert capsys.readouterr().err.splitlines()[-1] == AS_IT_WAS
        with monkeypatch.context() as patched:
            patched.setattr("colablock.transaction.rollback.installed_versions", interrupt)
            assert main([*back, "--json"], environ) == ExitCode.INTERRUPTED
        told = json.loads(capsys.readouterr().out)
        assert told["error"]["message"] == "Interrupted. The environment is as it was before change 1."
        assert venv.versions()["colours"] == "1.0"  # type: ignore[index]


@pytest.mark.parametrize(
    ("station", "is_built"),
    [("colablock.transaction.isolated_envs._fill", False), ("colablock.operations.apply.prove", True)],
)
def test_an_interrupted_build_says_whether_its_environment_is_there(
    station: str,
    is_built: bool,
    environ: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["apply", "painting.toml", "--into", "env", "--python", sys.executable]

    def built() -> list[str]:
        capsys.readouterr()
        assert main(["env", "list", "--json"], environ) == ExitCode.DONE
        return [one["lock"] for one in json.loads(capsys.readouterr().out)["environments"]]

    with monkeypatch.context() as patched:
        patched.setattr(station, interrupt)
        assert main(command, environ) == ExitCode.INTERRUPTED
    said = capsys.readouterr().err.splitlines()[-1]
    left = built()
    assert (len(left), said == AS_IT_WAS) == (int(is_built), not is_built)
    if is_built:
        assert said == (
            "Interrupted. The isolated environment is built, but not proven: apply again to use it; "
            f"`colablock env remove {left[0][:12]}` removes it."
        )
        with monkeypatch.context() as patched:  # it was there before this call
            patched.setattr(station, interrupt)
            assert main(command, environ) == ExitCode.INTERRUPTED
        assert capsys.readouterr().err.splitlines()[-1] == AS_IT_WAS
        assert main(command, environ) == ExitCode.DONE
        assert "exists already" in " ".join(capsys.readouterr().err.split())
        assert main(["env", "remove", left[0][:12]], environ) == ExitCode.DONE
    assert built() == []


@pytest.mark.parametrize("name", sorted({*colablock.__all__, "check"} - {"ColablockError", "__version__"}))
@pytest.mark.usefixtures("environ")
def test_the_functions_of_the_front_door_say_it_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "load_ipython_extension":
        return
    monkeypatch.setattr("colablock.operations.session.Session.__init__", interrupt)
    for function in (
        "stack.up_to_date_report",
        "training.check_given",
        "training.find_run",
        "training.list_runs",
    ):
        monkeypatch.setattr(f"colablock.api.{function}", interrupt)
    arguments = {"why": ("x", "y"), "bundle": ("x", "y"), "run": ("x", ["y"]), "explain": ("x",)}
    needs_none = name in {"attach", "history", "info", "list", "rollback", "runs"}
    positional = arguments.get(name, () if needs_none else ("x",))
    with pytest.raises(Interrupted, match=r"^Interrupted\. [A-Z].*\.$") as found:
        getattr(colablock, name)(*positional)
    assert found.value._render_traceback_() == [str(found.value)]
    assert found.value.__suppress_context__


def test_it_is_said_while_the_command_line_is_loaded() -> None:
    code = (
        "import signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'colablock.cli.common': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from colablock.__main__ import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "Interrupted. Nothing was changed.\n")
