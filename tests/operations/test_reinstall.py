"""A package that is installed again keeps its version, unless the stack needs another one."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from colablock._python_words import in_python
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.errors import ExitCode, NoSolution, NotFound, Refused
from colablock.operations.apply import apply_matrix
from colablock.operations.last_apply import verify_last_apply
from colablock.operations.lock import lock_state
from colablock.operations.plan import plan_change
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions, LockOptions
from colablock.planning.plan import Target
from tests.support.fixtures import venv_fixture, world_fixture
from tests.support.runtime import Stub, Venv
from tests.support.wheels import make_wheel
from tests.support.world import World

MATRIX = 'schema = 1\nname = "tiny"\nrequirements = ["shapes{range}", "colours"]\n'


def fill(folder: Path) -> None:
    """Write an index that no longer has one of the installed versions."""
    projects = {"shapes": ("1.5", "2.0"), "colours": ("1.0", "2.0"), "lines": ("1.0",)}
    for name, versions in projects.items():
        for version in versions:
            make_wheel(folder / "index", name, version)
    make_wheel(folder / "index", "guard", "2.0", requires=["shapes"])


world = world_fixture(fill, scope="module")
venv = venv_fixture(
    Stub(name="shapes", version="1.0"),
    Stub(name="colours", version="1.0"),
    Stub(name="guard", version="1.0", requires=("shapes<2",)),
)


@dataclass(frozen=True)
class Case:
    """What is installed again, and the steps of the plan, or the message without one."""

    reinstall: tuple[str, ...]
    steps: dict[str, str] = field(default_factory=dict)
    fault: tuple[type[Exception], str] | None = None
    range: str = ""
    protect: tuple[str, ...] = ()
    links: tuple[str, ...] = ()  # versions of shapes in a folder of the call


CASES = {
    "the installed version comes first": Case(("colours",), {"colours": "replace 1.0"}),
    "no index has it any more": Case(
        ("shapes",), fault=(Refused, "`shapes` 1.0 cannot be installed again: 1.5 would take its place")
    ),
    "a folder has it": Case(("shapes",), {"shapes": "replace 1.0"}, links=("1.0", "1.2")),
    "the stack needs another one": Case(("shapes",), {"shapes": "replace 1.5"}, range=">1"),
    "which breaks nothing that is protected": Case(
        ("shapes",), {"shapes": "replace 1.5"}, range=">1", protect=("guard",)
    ),
    "no version fits what is protected": Case(
        ("shapes",),
        fault=(NoSolution, "guard 1.0 is protected and needs `shapes<2`"),
        range=">=2",
        protect=("guard",),
    ),
    "not of the stack, but repaired": Case(
        ("guard",), fault=(NotFound, "`guard` cannot be reinstalled: it is not part of tiny"), range=">=2"
    ),
    "itself protected": Case(("shapes",), fault=(Refused, "it is protected"), protect=("shapes",)),
    "all of them": Case(
        ("Shapes", "colours"), {"shapes": "replace 1.5", "colours": "replace 1.0"}, range=">1"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reinstalled(case: Case, world: World, venv: Venv, tmp_path: Path) -> None:
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(MATRIX.format(range=case.range))
    session = Session(environ=world.environ(HOME=str(tmp_path)))
    options = ApplyOptions(
        name=str(matrix),
        into=Target.KERNEL,
        python=venv.python,
        protect=case.protect,
        reinstall=case.reinstall,
        find_links=tuple({str(make_wheel(tmp_path / "links", "shapes", one).parent) for one in case.links}),
    )
    if case.fault is not None:
        error, text = case.fault
        with pytest.raises(error) as caught:
            plan_change(session, options)
        assert text in str(caught.value)
        return
    plan = plan_change(session, options).plan
    assert {str(one.name): f"{one.action.value} {one.version}" for one in plan.steps} == case.steps
    assert all(one.reason.startswith("reinstalled; ") for one in plan.steps)
    assert not plan.breakages


def test_verify_names_the_request_of_the_damaged_stack(world: World, venv: Venv, tmp_path: Path) -> None:
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(f"{MATRIX.format(range='')}\n[variants.usual]\n[variants.other]\n")
    session = Session(environ=world.environ(HOME=str(tmp_path), COLABLOCK_HOME=str(tmp_path / "home")))
    asked = ApplyOptions(
        name=str(matrix),
        into=Target.KERNEL,
        python=venv.python,
        variant="other",
        with_=("lines", "colours>1"),
    )
    apply_matrix(session, asked)
    for name in ("colours", "lines"):
        (venv.site / name / "__init__.py").write_text("damaged")
    note = verify_last_apply(session, "tiny").notes[-1]
    request = f"{matrix} --variant other --with lines --with 'colours>1'"
    command = f"colablock apply {request} --into kernel --python {venv.python}"
    assert note == f"`{command} --reinstall colours --reinstall lines` installs colours, lines again"
    assert 'with_=["lines", "colours>1"]' in in_python(note)
    assert 'reinstall=["colours", "lines"]' in in_python(note)
    report = apply_matrix(session, replace(asked, reinstall=("colours", "lines")))
    assert report.changed
    assert verify_last_apply(session, "tiny").passed


def test_the_repair_of_an_offline_apply_works(world: World, venv: Venv, tmp_path: Path) -> None:
    """What `verify` names has the folders, the lock and the switches of the apply, and works anywhere."""
    folder = tmp_path / "my files"
    matrix = folder / "own.toml"
    wheels = [make_wheel(folder / "wheel house", name, "1.0") for name in ("squares", "lines")]
    matrix.write_text('schema = 1\nname = "own"\nrequirements = ["squares", "lines"]\n')
    given = ("own.toml", "--no-lock", "--protect", "guard", "--find-links", "wheel house", "--offline")
    extra = {"COLABLOCK_HOME": str(tmp_path / "home"), "COLABLOCK_CACHE_DIR": str(tmp_path / "cache")}
    world = replace(world, extra=extra)
    done = world.run("apply", *given, "--into", "kernel", "--python", venv.python, cwd=folder)
    assert done.code == ExitCode.DONE, done.err
    (venv.site / "squares" / "__init__.py").write_text("damaged")
    note = world.run("verify", "own", "--json").json["notes"][-1]
    command = note.split("`")[1]
    sources = f"--find-links {shlex.quote(str(wheels[0].parent))} --offline"
    assert command == (
        f"colablock apply {shlex.quote(str(matrix))} --no-lock --protect guard {sources}"
        f" --into kernel --python {venv.python} --reinstall squares"
    )
    mended = world.run(*shlex.split(command)[1:])
    assert mended.code == ExitCode.DONE, mended.err
    assert world.run("verify", "own").code == ExitCode.DONE
    shutil.rmtree(venv.site / "squares-1.0.dist-info")
    note = world.run("verify", "own", "--json").json["notes"][-1]
    assert note == f"`{command.removesuffix(' --reinstall squares')}` restores the versions of the stack"


def test_a_package_that_a_delta_lock_assumes(world: World, venv: Venv, tmp_path: Path) -> None:
    """The lock has no file of it, so the repair asks the index for exactly the installed version."""
    world = replace(world, extra={"COLABLOCK_HOME": str(tmp_path / "home")})
    matrix = tmp_path / "own.toml"
    matrix.write_text('schema = 1\nname = "own"\nrequirements = ["colours", "lines"]\n')
    base = tmp_path / "base.toml"
    base.write_text('schema = 1\nname = "base"\nrequirements = ["colours"]\n')
    kernel = ("--into", "kernel", "--python", venv.python)
    assert world.run("apply", str(base), *kernel, "--reinstall", "colours").code == ExitCode.DONE
    session = Session(environ=world.environ())
    options = ApplyOptions(name=str(matrix), python=venv.python)
    output = tmp_path / "pylock.own--state.toml"
    lock_state(session, options, LockOptions(output=output), session.snapshot(venv.python))
    assert world.run("apply", str(matrix), "--lock", str(output), *kernel).code == ExitCode.DONE
    refused = world.run("apply", str(matrix), "--lock", str(output), *kernel, "--reinstall", "colours")
    repair = f"colablock apply {matrix} {' '.join(kernel)} --reinstall colours"
    assert f"hint: Omit the lock: `{repair}`" in " ".join(refused.err.split())
    noted = world.run("plan", str(matrix), *kernel, "--reinstall", "colours")  # the lock beside the matrix
    assert "note: not using the lock `pylock.own--state.toml`: `colours` is not in the lock" in noted.err
    assert "colours 1.0 -> 1.0  reinstalled" in noted.out
    for name, request in {"lines": f"{matrix} --lock {output}", "colours": str(matrix)}.items():
        (venv.site / name / "__init__.py").unlink()
        note = world.run("verify", "own", "--json").json["notes"][-1]
        command = f"colablock apply {request} {' '.join(kernel)} --reinstall {name}"
        assert note == f"`{command}` installs {name} again"
        mended = world.run(*shlex.split(command)[1:])
        assert mended.code == ExitCode.DONE, mended.err
        assert world.run("verify", "own").code == ExitCode.DONE
    assert venv.versions()[canonicalize_name("colours")] == "1.0"


def test_a_package_that_a_bundle_assumes(world: World, venv: Venv, tmp_path: Path) -> None:
    """The bundle has no file of it either, so the repair names its matrix."""
    world = replace(world, extra={"COLABLOCK_HOME": str(tmp_path / "home")})
    (matrix := tmp_path / "own.toml").write_text(MATRIX.format(range="").replace("tiny", "own"))
    (base := tmp_path / "base.toml").write_text('schema = 1\nname = "base"\nrequirements = ["colours"]\n')
    kernel = ("--into", "kernel", "--python", venv.python)
    runtime, bundle = str(tmp_path / "lab.json"), str(tmp_path / "own.bundle")
    for command in (
        ("apply", str(base), *kernel, "--reinstall", "colours"),
        ("runtime", "record", "--name", "lab-cpu", "--python", venv.python, "-o", runtime),
        ("bundle", str(matrix), "--with", "lines>=1", "--runtime", runtime, "-o", bundle),
        ("apply", "--bundle", bundle, *kernel),
    ):
        assert (done := world.run(*command)).code == ExitCode.DONE, done.err
    (venv.site / "lines" / "__init__.py").unlink()
    note = world.run("verify", "own", "--json").json["notes"][-1]
    assert note.startswith(f"`colablock apply --bundle {bundle} ")
    (venv.site / "colours" / "__init__.py").unlink()
    note = world.run("verify", "own", "--json").json["notes"][-1]
    assert "/own.toml --with 'lines>=1' " in note
    assert note.endswith("--reinstall colours --reinstall lines` installs colours, lines again")
    mended = world.run(*shlex.split(note.split("`")[1])[1:])
    assert mended.code == ExitCode.DONE, mended.err
    assert world.run("verify", "own").code == ExitCode.DONE
