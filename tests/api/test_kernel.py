"""What a real kernel has loaded decides where a plan goes, and whether a restart is asked for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

import colablock
from colablock.errors import InvalidInput
from tests.support.fixtures import painting, world_fixture
from tests.support.runtime import Stub, Venv, build_site
from tests.support.timing import PATIENCE
from tests.support.world import World, kernel_options, notebook_venv, run_cells, shown

pytestmark = pytest.mark.slow  # whole commands, in stand-ins of whole runtimes

SHOW = "print(report.target, report.changed, report.needs_restart)"


world = world_fixture(painting)


@pytest.fixture
def kernel_venv(world: World) -> Venv:
    found = notebook_venv(world.folder / "venv", "colab-2026.08-gpu", ["accelerate"])
    build_site(found.site, [Stub(name="colours", version="1.0")])
    return found


def run(world: World, venv: Venv, *cells: str) -> list[list[dict[str, Any]]]:
    return run_cells(world, venv, world.folder, *cells)


def test_what_is_not_loaded_is_replaced_in_the_kernel(world: World, kernel_venv: Venv) -> None:
    apply = f"report = colablock.apply('painting.toml')\n{SHOW}"
    _, applied, used = run(
        world, kernel_venv, "import colablock", apply, "import colours\nprint(colours.__version__)"
    )
    assert shown(applied).endswith("kernel True False\n")
    assert shown(used) == "2.0\n"


def test_what_is_loaded_stays_and_an_environment_is_built(world: World, kernel_venv: Venv) -> None:
    cells = ["import colablock, colours", f"report = colablock.apply('painting.toml')\n{SHOW}"]
    cells += ["print(colours.__version__)"]
    cells += ["%%colablock run\nimport colours\nprint(colours.__version__)"]
    _, applied, kept, ran = run(world, kernel_venv, *cells)
    assert shown(applied).endswith("env True False\n")
    assert "colours would change while loaded, which takes a restart" in " ".join(shown(applied).split())
    assert "Restart the kernel" not in shown(applied)
    assert (shown(kept), shown(ran)) == ("1.0\n", "2.0\n")
    assert kernel_venv.versions()["colours"] == "1.0"  # type: ignore[index]


def test_a_restart_is_asked_for_where_the_kernel_was_asked_for(world: World, kernel_venv: Venv) -> None:
    apply = f"report = colablock.apply('painting.toml', into='kernel')\n{SHOW}"
    before, applied, second = run(world, kernel_venv, "import colablock, colours", apply, apply)
    assert before == []
    assert "Restart the kernel before you go on: it has loaded colours as they were before" in shown(applied)
    assert "Restart the kernel" in shown(applied, "text/html")
    assert "kernel True True\n" in shown(applied)
    assert "has loaded colours as they were before" in shown(second)
    assert shown(second).endswith("kernel False True\n")
    # What a restarted kernel finds: nothing to do, and the new one in place.
    after, used = run(
        world, kernel_venv, f"import colablock\n{apply}", "import colours\nprint(colours.__version__)"
    )
    assert "nothing was changed" in shown(after)
    assert shown(used) == "2.0\n"


def test_what_is_loaded_and_installed_again_takes_a_restart(world: World, kernel_venv: Venv) -> None:
    apply = "colablock.apply('painting.toml', into='kernel')"
    again = f"report = colablock.apply('painting.toml', reinstall='colours', restart='never')\n{SHOW}"
    *_, applied = run(world, kernel_venv, f"import colablock\n{apply}", "import colours", again)
    said = shown(applied)
    assert "the kernel (`reinstall=` is for the kernel)" in said
    assert "Restart needed: the kernel has loaded modules of 1 distribution that change" in said
    assert said.endswith("kernel True True\n")


def test_the_magic_sees_its_kernel_and_shows_html(world: World, kernel_venv: Venv) -> None:
    cells = ["import colablock, colours", "%colablock plan painting.toml"]
    cells += [
        "%colablock apply painting.toml --into kernel",
        "%%colablock run\nimport colours as it; print(it.__version__)",
    ]
    cells += ["%colablock rollback", "%colablock apply painting.toml --into kernel --json"]
    _, planned, applied, ran, undone, again = run(world, kernel_venv, *cells)
    assert '<div class="colablock">' in shown(planned, "text/html")
    assert "colours would change while loaded" in " ".join(shown(planned).split())
    assert "cannot see which modules" not in shown(planned)
    assert '<div class="colablock">' in shown(applied, "text/html")
    assert "Restart the kernel before you go on: it has loaded colours as they were before" in shown(applied)
    assert "restart=" not in shown(applied)  # the command was written in the words of the command line
    assert "next: %colablock run painting -- python YOUR_SCRIPT.py" in shown(applied)
    assert shown(ran) == "2.0\n"
    # The version that the kernel has loaded is back on disk.
    assert '<div class="colablock">' in shown(undone, "text/html")
    assert "Restart the kernel" not in shown(undone)
    assert "has loaded colours as they were before" in shown(again)


async def restarted(world: World, venv: Venv, cell: str) -> list[str]:
    """Run *cell* in a kernel that is watched as by a notebook server, and again once it was restarted.

    A cell waits behind the first: it leaves a file where it runs.
    """
    ioloop = pytest.importorskip("jupyter_client.ioloop")
    manager = ioloop.AsyncIOLoopKernelManager(**kernel_options(venv, world.folder))
    is_back = asyncio.Event()
    await manager.start_kernel(
        cwd=str(world.folder), env=world.environ(COLABLOCK_HOME=str(world.folder / "home"))
    )
    manager.add_restart_callback(is_back.set, "restart")
    said = []
    try:
        said.append(await said_by(manager, cell, behind="open('behind', 'w').close()"))
        await asyncio.wait_for(is_back.wait(), PATIENCE)
        said.append(await said_by(manager, cell))
    finally:
        await manager.shutdown_kernel(now=True)
    return said


async def said_by(manager: Any, cell: str, *, behind: str = "") -> str:
    """Run *cell*, with the cell *behind* waiting for its end, and return what it shows."""
    client = manager.client()  # one each time: a kernel that was restarted listens elsewhere
    client.start_channels()
    outputs: list[dict[str, Any]] = []

    def keep(message: dict[str, Any]) -> None:
        outputs.append({"output_type": message["msg_type"], **message["content"]})

    try:
        await client.wait_for_ready(timeout=PATIENCE)
        running = asyncio.create_task(client.execute_interactive(cell, output_hook=keep, timeout=PATIENCE))
        await asyncio.sleep(0)  # until it is sent
        client.execute(behind)
        await running
    finally:
        client.stop_channels()
    return shown([one for one in outputs if one["output_type"] in {"display_data", "error", "stream"}])


def test_a_kernel_restarts_by_itself_and_goes_on(world: World, kernel_venv: Venv) -> None:
    cell = (
        "import colablock, colours\n"
        f"report = colablock.apply('painting.toml', into='kernel', restart='auto')\n{SHOW}\n"
        "print(colours.__version__, report.seconds < 10)"
    )
    first, second = asyncio.run(restarted(world, kernel_venv, cell))
    # Nothing more runs with the old modules: not the rest of the cell, nor the cell behind it.
    assert first.endswith("because it has loaded colours as they were before: run this cell again")
    assert "Traceback" not in first
    assert not (world.folder / "behind").exists()
    assert "nothing was changed" in second
    assert second.endswith("kernel False False\n2.0 True\n")


def test_there_are_three_ways_to_see_to_a_restart() -> None:
    with pytest.raises(InvalidInput, match="`restart` is `soon`, but must be one of `ask`, `auto`, `never`"):
        colablock.apply("qlora-2026", restart="soon")


def test_a_file_of_the_users_own_by_the_name_of_what_changes_is_no_reason_to_restart(
    world: World, kernel_venv: Venv
) -> None:
    """It goes by the file that a module came from; `colours` of the environment is not loaded."""
    (world.folder / "colours.py").write_text("__version__ = 'mine'\n")
    imports = "import sys; sys.path.insert(0, '.')\nimport colablock, colours\nprint(colours.__version__)"
    loaded, applied = run(world, kernel_venv, imports, f"report = colablock.apply('painting.toml')\n{SHOW}")
    assert shown(loaded) == "mine\n"
    assert shown(applied).endswith("kernel True False\n")


def test_the_functions_of_the_package_stay_beside_its_modules() -> None:
    code = (
        "import colablock.planning.plan, colablock.verification.verify\nimport colablock\n"
        "for name in {*colablock.__all__} - {'__version__'}: print(callable(getattr(colablock, name)))\n"
        "from colablock.planning.plan import Plan; print(callable(colablock.plan))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"True"}
