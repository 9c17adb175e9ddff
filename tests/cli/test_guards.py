"""What an apply is kept from, or insists on: whole commands in real environments."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from colablock.errors import ExitCode
from tests.support.fixtures import PAINTING, painting, world_fixture
from tests.support.paths import ROOT
from tests.support.runtime import Stub, build_site, make_system_python, make_venv, site_of
from tests.support.trees import listing
from tests.support.wheels import make_wheel
from tests.support.world import Done, World

pytestmark = pytest.mark.slow  # whole commands

MANAGED = "[externally-managed]\nError=use apt\n"


world = world_fixture(painting)


def test_an_externally_managed_environment_changes_where_one_insists(world: World) -> None:
    folder = world.folder / "system"
    python = str(make_system_python(folder, MANAGED))
    build_site(site_of(folder), [Stub(name="colours", version="1.0")])
    before = listing(folder)
    kernel = ["painting.toml", "--into", "kernel", "--python", python]
    planned = world.run("plan", *kernel, "--json").json
    assert [note for note in planned["notes"] if "externally managed (PEP 668)" in note]
    refused = world.run("apply", *kernel, "--json")
    assert refused.code == ExitCode.UNMET
    assert "use apt" in refused.json["error"]["message"]
    assert "`--break-system-packages` (`break_system_packages=True`)" in refused.json["error"]["hint"]
    # Nobody named a target: then what may not be changed is left alone.
    aside = world.run("plan", "painting.toml", "--python", python, "--json").json
    assert aside["target"] == "env"
    assert "externally managed" in aside["why_target"]
    assert listing(folder) == before
    insisted = world.run("apply", *kernel, "--break-system-packages")
    assert insisted.code == ExitCode.DONE, insisted.err
    assert (site_of(folder) / "colours-2.0.dist-info").is_dir()
    assert "nothing was changed" in world.run("apply", *kernel).out
    assert world.run("rollback", "--python", python).code == ExitCode.DONE
    assert listing(folder) == before


OURS = {"resolvelib": "1.99", "rich": "15.99", "urllib3": "2.99"}
OWN = """\
schema = 1
name = "own"
[packages]
colours = "==2.0"
resolvelib = "==1.99"
rich = "==15.99"
urllib3 = "==2.99"
[verify]
imports = ["{imports}"]
"""


def files_of(name: str) -> dict[str, Path]:
    """Return the files of one of our requirements as it is installed here, bytecode left out."""
    files = importlib.metadata.distribution(name).files or ()
    found = {str(file): Path(str(file.locate())) for file in files}
    return {name: path for name, path in found.items() if path.suffix != ".pyc" and path.is_file()}


@pytest.fixture
def own(world: World) -> Path:
    """An environment in which colablock runs by requirements that stand there, and the rest here."""
    folder = world.folder / "own"
    make_venv(folder, sys.executable)
    site = site_of(folder)
    for name in OURS:
        for file, path in files_of(name).items():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, site / file)
    paths = dict.fromkeys([str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "tests.pth").write_text("".join(f"{path}\n" for path in paths))
    return folder


def offer(world: World, *, hollow: bool) -> None:
    """Offer other versions of our own requirements: what is there under their names, or nothing to import."""
    for name, version in OURS.items():
        real = {file: path.read_text() for file, path in files_of(name).items() if ".dist-info" not in file}
        empty = {f"{name}/__init__.py": "raise ImportError('there is nothing in here')\n"}
        make_wheel(world.folder / "index", name, version, modules=empty if hollow else real)


def call(world: World, own: Path, *command: str) -> Done:
    """Run something with the interpreter of the environment itself."""
    done = subprocess.run(
        [str(own / "bin" / "python"), *command],
        env=world.environ(),
        cwd=world.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(code=done.returncode, out=done.stdout, err=done.stderr)


FROM_PYTHON = """\
import colablock
report = colablock.apply("own.toml", into="kernel", keep={keep})
print(report.passed, "is proven", report.undo)
"""


@pytest.mark.parametrize("proof", ["colours", "nothing_there"])
@pytest.mark.parametrize(
    "command",
    [
        ["-m", "colablock", "apply", "own.toml", "--into", "kernel", "--verbose"],
        ["-m", "colablock", "apply", "own.toml", "--into", "kernel", "--json"],
        ["-c", FROM_PYTHON.format(keep=False)],
    ],
    ids=["text", "json", "python"],
)
def test_a_call_ends_whatever_becomes_of_what_it_runs_by(
    command: list[str], proof: str, world: World, own: Path
) -> None:
    offer(world, hollow=True)
    (world.folder / "own.toml").write_text(OWN.format(imports=proof))
    before = listing(own)
    done = call(world, own, *command)
    said = done.out + done.err
    if proof == "colours":
        assert done.code == ExitCode.DONE, said
        assert "is proven" in said or '"passed": true' in said
        assert call(world, own, "-c", "import rich").code != 0
        assert world.run("rollback", "--python", str(own / "bin" / "python")).code == ExitCode.DONE
    else:
        assert done.code == (1 if "-c" in command else ExitCode.ROLLED_BACK), said
        assert "No module named 'nothing_there'" in said
    assert listing(own) == before


WATCHED = """\
import sys
late, is_changed = [], []
def watch(event, facts):
    # A move between the environment and the state; files of the state itself are renamed before.
    if event == "os.rename" and ["/.colablock/" in str(path) for path in facts[:2]].count(True) == 1:
        is_changed.append(True)
    if event == "import" and is_changed and facts[0].partition(".")[0] not in sys.stdlib_module_names:
        late.append(facts[0])
sys.addaudithook(watch)
from colablock.cli.main import main
code = main(sys.argv[1:])
assert is_changed
sys.exit(f"imported late: {late}" if late else code)
"""


@pytest.mark.parametrize("more", [[], ["--json"], ["--quiet"]], ids=["text", "json", "quiet"])
@pytest.mark.parametrize("proof", ["colours", "nothing_there"])
def test_nothing_is_imported_once_the_environment_has_changed(
    proof: str, more: list[str], world: World, own: Path
) -> None:
    (world.folder / "own.toml").write_text(PAINTING.replace('["colours"]', f'["{proof}"]'))
    apply = ["-c", WATCHED, "apply", "own.toml", "--into", "kernel", *more]
    done = call(world, own, *apply)
    assert done.code == (ExitCode.DONE if proof == "colours" else ExitCode.ROLLED_BACK), done.err
    if proof == "colours":
        back = call(world, own, "-c", WATCHED, "rollback", *more)
        assert back.code == ExitCode.DONE, back.err


def test_the_next_call_starts_by_what_the_plan_brought(world: World, own: Path) -> None:
    offer(world, hollow=False)
    (world.folder / "own.toml").write_text(OWN.format(imports="rich"))
    before = listing(own)
    done = call(world, own, "-m", "colablock", "apply", "own.toml", "--into", "kernel")
    assert done.code == ExitCode.DONE, done.err
    assert (site_of(own) / "rich-15.99.dist-info").is_dir()
    again = call(world, own, "-m", "colablock", "apply", "own.toml", "--into", "kernel")
    assert "nothing was changed" in again.out, again.err
    assert call(world, own, "-m", "colablock", "rollback").code == ExitCode.DONE
    assert listing(own) == before


def test_no_plan_takes_what_colablock_runs_by_out_of_its_bounds(world: World, own: Path) -> None:
    make_wheel(world.folder / "index", "rich", "1.0")
    matrix = OWN.split("resolvelib", maxsplit=1)[0] + 'rich = "==1.0"\n'
    (world.folder / "own.toml").write_text(matrix)
    refused = call(world, own, "-m", "colablock", "plan", "own.toml", "--into", "kernel")
    assert refused.code == ExitCode.UNMET
    assert "colablock" in refused.err
    assert "is protected and needs `rich>=13`" in " ".join(refused.err.split())


def test_no_plan_takes_away_what_colablock_runs_by(world: World, own: Path) -> None:
    (world.folder / "own.toml").write_text(PAINTING + '[absent]\nrich = ">=0"\n')
    before = listing(own)
    refused = call(world, own, "-m", "colablock", "apply", "own.toml", "--into", "kernel", "--json")
    assert refused.code == ExitCode.UNMET, refused.err
    assert "excludes rich" in refused.json["error"]["message"]
    assert "a protected distribution needs it" in refused.json["error"]["message"]
    assert listing(own) == before
