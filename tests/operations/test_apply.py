"""The main job, from a matrix to a changed, proven environment: on stand-ins of recorded runtimes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.errors import ExitCode, NoSolution, NotFound
from colablock.operations.apply import apply_matrix
from colablock.operations.last_apply import verify_last_apply
from colablock.operations.plan import plan_change
from colablock.operations.run import run_command
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions
from colablock.planning.plan import Action, Plan, Remedy, Target
from colablock.runtimes.catalog import load_runtime
from colablock.transaction.up_to_date import up_to_date_report
from colablock.verification.verify import Report
from tests.support.fixtures import world_fixture
from tests.support.recorded_index import RecordedIndex
from tests.support.reporters import Notes
from tests.support.runtime import Venv, find_python
from tests.support.trees import listing
from tests.support.world import Hiding, World, new_complaints

pytestmark = pytest.mark.slow  # whole commands, in stand-ins of whole runtimes

OLD = "colab-2025.09-gpu"
NEW = "colab-2026.08-gpu"

# What the hand-written recipe takes away by hand, with the requirement that breaks for each.
RECIPE = {
    "torchvision": "torch==2.8.0",
    "torchaudio": "torch==2.8.0",
    "tensorflow": "tensorboard~=2.19.0",
    "opencv-python": 'numpy<2.3.0,>=2; python_version >= "3.9"',
    "opencv-python-headless": 'numpy<2.3.0,>=2; python_version >= "3.9"',
    "opencv-contrib-python": 'numpy<2.3.0,>=2; python_version >= "3.9"',
}
STAYS = ["torch", "numpy", "transformers", "peft", "accelerate", "datasets", "pyarrow", "huggingface-hub"]


def without_repairs() -> Hiding:
    """Return the index of summer 2024 without other versions of what stands beside the stack."""
    return Hiding(RecordedIndex("qlora-2024"), *RecordedIndex("repairs").projects())


dated = world_fixture(source=without_repairs, scope="module")
mending = world_fixture(source=lambda: RecordedIndex("qlora-2024", "repairs"), scope="module")
today = world_fixture(source=lambda: RecordedIndex("qlora-2026"), scope="module")


@pytest.fixture(scope="module")
def old(dated: World) -> Venv:
    return dated.stand_in(OLD)


@pytest.fixture(scope="module")
def new(today: World) -> Venv:
    return today.stand_in(NEW)


def session(world: World, reporter: Reporter | None = None, **variables: str) -> Session:
    return Session(environ=world.environ(**variables), reporter=reporter or Reporter())


def applied(session: Session, options: ApplyOptions) -> Report:
    """Return the report of an apply, as the API and the command line make it: no-op check first."""
    return up_to_date_report(options, session.environ) or apply_matrix(session, options)


def ask_2024(venv: Venv, *, keep: bool = False, broken: Remedy | None = None) -> ApplyOptions:
    return ApplyOptions(
        name="qlora-2024",
        variant="cu121",
        into=Target.KERNEL,
        python=venv.python,
        keep=keep,
        broken=broken,
    )


def broken_by(plan: Plan, *, direct: bool) -> dict[str, str]:
    return {item.name: item.requirement for item in plan.breakages if item.direct is direct}


def after(plan: Plan, before: Mapping[NormalizedName, str]) -> dict[NormalizedName, str]:
    """Return the versions that *plan* leads to."""
    changed = {step.name: step.version for step in plan.steps}
    found = {name: changed.get(name, version) for name, version in before.items()} | changed
    return {name: version for name, version in found.items() if version is not None}


def holds(line: str, versions: Mapping[NormalizedName, str]) -> bool:
    requirement = Requirement(line)
    version = versions.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(Version(version), prereleases=True)


# The stack of 2024 into the runtime of September 2025


@pytest.fixture(scope="module")
def removing(dated: World, old: Venv) -> Plan:
    return plan_change(session(dated), ask_2024(old)).plan


def test_what_the_recipe_lists_by_hand_is_found_by_itself(removing: Plan) -> None:
    direct = broken_by(removing, direct=True)
    assert {name: direct.get(name) for name in RECIPE} == RECIPE
    removed = {step.name for step in removing.steps if step.action is Action.REMOVE}
    assert removed >= RECIPE.keys()
    assert {"timm", "fastai", "tensorflow-text", "tf-keras"} <= broken_by(removing, direct=False).keys()
    by_removal = [item for item in removing.breakages if not item.direct]
    assert all(item.remedy is Remedy.LEAVE and " is removed" in item.because[0] for item in by_removal)


def test_nothing_is_touched_that_did_not_newly_break(removing: Plan, dated: World, old: Venv) -> None:
    stack = plan_change(session(dated), ask_2024(old)).pins().keys()
    direct = {item.name: item for item in removing.breakages if item.direct}
    beside = [step for step in removing.steps if step.name not in stack]
    assert beside
    assert {step.name for step in beside} <= direct.keys()
    before = old.versions()
    becomes = after(removing, before)
    for item in removing.breakages:
        assert holds(item.requirement, before), item
        if item.direct:
            # The first link is the broken requirement: of the distribution, or of an extra that it asks for.
            broken = item.because[1].partition(" needs ")[2]
            assert holds(broken, before), item
            assert not holds(broken, {**before, **becomes}), item


def test_every_pin_of_the_runtime_itself_is_kept(removing: Plan, old: Venv) -> None:
    lines = load_runtime(OLD).installed[canonicalize_name("google-colab")].requires
    pins = {canonicalize_name(one.name) for one in map(Requirement, lines) if "==" in str(one.specifier)}
    assert len(pins) > 5
    assert not pins & {step.name for step in removing.steps}
    becomes = after(removing, old.versions())
    assert all(holds(line, becomes) or not holds(line, old.versions()) for line in lines)


def test_what_can_be_repaired_is_repaired(mending: World, old: Venv) -> None:
    plan = plan_change(session(mending), ask_2024(old)).plan
    steps = {step.name: step for step in plan.steps}
    assert steps[canonicalize_name("torchvision")].version == "0.19.0"
    assert steps[canonicalize_name("torchaudio")].version == "2.4.0"
    for name in ("opencv-python", "opencv-python-headless", "opencv-contrib-python"):
        assert steps[canonicalize_name(name)].action is Action.REPLACE
    remedies = {item.name: item.remedy for item in plan.breakages}
    assert remedies[canonicalize_name("torchvision")] is Remedy.REPAIR
    assert "timm" not in remedies


@pytest.mark.parametrize("index", ["dated", "mending"])
def test_the_change_is_made_proven_and_found_done(
    index: str, request: pytest.FixtureRequest, old: Venv, tmp_path: Path
) -> None:
    world: World = request.getfixturevalue(index)
    venv = old.copy(tmp_path / "venv")
    plan = plan_change(session(world), ask_2024(venv)).plan
    before, complaints = venv.versions(), world.uv("pip", "check", "--python", venv.python)
    report = applied(session(world), ask_2024(venv))
    assert (report.passed, report.changed, report.python) == (True, True, venv.python)
    assert venv.versions() == after(plan, before)
    found = new_complaints(complaints, world.uv("pip", "check", "--python", venv.python))
    listed = {str(item.name) for item in plan.breakages if item.remedy is Remedy.LEAVE}
    assert found
    assert found <= listed
    world.server.forget_requests()
    again = applied(session(world), ask_2024(venv))
    assert (again.passed, again.changed, again.needs_restart) == (True, False, False)
    assert world.server.paths == []
    options = ("--variant", "cu121", "--into", "kernel", "--python", venv.python)
    command = world.run("apply", "qlora-2024", *options)
    assert command.code == ExitCode.DONE, command.err
    assert world.server.paths == []


# The index of summer 2024 with a peft that raises when it is imported.
SPOILT = {"peft": {"peft/__init__.py": "raise ImportError('no kernel image')\n"}}
spoilt = world_fixture(source=lambda: RecordedIndex("qlora-2024", contents=SPOILT), scope="module")


def test_a_failed_proof_leaves_everything_as_it_was(spoilt: World, old: Venv, tmp_path: Path) -> None:
    venv = old.copy(tmp_path / "venv")
    before = listing(venv.folder)
    options = ("--variant", "cu121", "--into", "kernel", "--python", venv.python)
    done = spoilt.run("apply", "qlora-2024", *options)
    assert done.code == ExitCode.ROLLED_BACK
    assert "ImportError: no kernel image" in done.err
    assert listing(venv.folder) == before
    kept = spoilt.run("apply", "qlora-2024", *options, "--keep", "--json")
    assert kept.code == ExitCode.NOT_PROVEN
    failed = [check["subject"] for check in kept.json["report"]["checks"] if not check["passed"]]
    assert failed == ["peft"]
    assert venv.versions()[canonicalize_name("peft")] == "0.12.0"
    # It stands, but asking again does not pass it off as proven; this call changed nothing.
    assert spoilt.run("apply", "qlora-2024", *options).code == ExitCode.UNMET


# The stack of 2024 on the runtime of August 2026


def test_a_python_without_wheels_is_refused_by_name(dated: World) -> None:
    venv = dated.stand_in(NEW)
    with pytest.raises(NoSolution) as caught:
        plan_change(session(dated), ask_2024(venv))
    assert caught.value.exit_code == ExitCode.UNMET
    message, *_ = caught.value.message.splitlines()
    assert re.findall("`([^`]+)`", message) == ["numpy", "tokenizers", "torch"]
    assert "no file for Python 3.13" in message
    hint = caught.value.hint or ""
    for way in ("`--into env`", "Python 3.12 or 3.11", "2026.07", "`qlora-2026-12` admits Python 3.13"):
        assert way in hint


def test_it_ends_in_a_proven_environment_of_its_own(dated: World) -> None:
    if find_python("3.12") is None and find_python("3.11") is None:
        pytest.skip("neither Python 3.12 nor 3.11 is here to make an environment with")
    venv = dated.stand_in(NEW)
    before = venv.versions()
    notes = Notes()
    ask = ApplyOptions(name="qlora-2024", variant="cu121", python=venv.python)
    report = applied(session(dated, notes), ask)
    assert (report.target, report.passed, report.changed) == ("env", True, True)
    # The Python that runs this comes first, and that may be 3.10.
    assert report.python_version.startswith(("3.12.", "3.11.", "3.10."))
    assert any("not using the kernel: `numpy`, `tokenizers` and `torch`" in note for note in notes.notes)
    assert venv.versions() == before
    dated.server.forget_requests()
    again = applied(session(dated), ask)
    assert (again.changed, again.python, dated.server.paths) == (False, report.python, [])
    code = "import sys, torch; sys.exit(torch.__version__ != '2.4.0')"
    assert run_command(session(dated), "qlora-2024", ["python", "-c", code]) == 0
    assert run_command(session(dated), "qlora-2024", ["accelerate", "launch"]) == 0
    proven = verify_last_apply(session(dated), "qlora-2024")
    assert (proven.passed, proven.changed) == (True, False)


# The stack of 2026 on the same runtime


def test_the_stack_of_2026_goes_into_the_kernel_by_itself(today: World, new: Venv, tmp_path: Path) -> None:
    venv = new.copy(tmp_path / "venv")
    before = venv.versions()
    ask = ApplyOptions(name="qlora-2026", variant="cuda", python=venv.python)
    plan = plan_change(session(today), ask).plan
    assert plan.target is Target.KERNEL
    assert "harmless" in plan.why_target
    assert [(step.action, step.name, step.version or step.previous) for step in plan.steps] == [
        (Action.REMOVE, "torchao", "0.10.0"),
        (Action.INSTALL, "bitsandbytes", "0.50.2"),
        (Action.INSTALL, "trl", "0.29.1"),
    ]
    assert {kept.name for kept in plan.kept} >= set(STAYS)
    assert (plan.breakages, plan.needs_restart) == ((), False)
    complaints = today.uv("pip", "check", "--python", venv.python)
    report = applied(session(today), ask)
    assert (report.passed, report.changed, report.needs_restart) == (True, True, False)
    assert venv.versions() == after(plan, before)
    assert not new_complaints(complaints, today.uv("pip", "check", "--python", venv.python))
    assert not applied(session(today), ask).changed
    assert_later_change_is_noticed(today, venv, ask)


def assert_later_change_is_noticed(world: World, venv: Venv, ask: ApplyOptions) -> None:
    """Take a distribution of the stack away, as another tool might, and apply again."""
    (gone,) = venv.site.glob("trl-*.dist-info")
    gone.rename(gone.with_suffix(".gone"))
    assert not verify_last_apply(session(world), ask.name).passed
    report: Report = applied(session(world), ask)
    assert (report.passed, report.changed) == (True, True)


def test_another_installer_would_move_what_stands(today: World, new: Venv) -> None:
    plan = plan_change(
        session(today), ApplyOptions(name="qlora-2026", variant="cuda", python=new.python)
    ).plan
    options = ["--dry-run", "--no-config", "--python", new.python, "--index-url", today.server.url]
    done = today.uv("pip", "install", *options, *plan.requirements)
    assert done.code == 0, done.err
    moved = set(re.findall(r"^ - ([a-z0-9-]+)==", done.err, re.MULTILINE))
    assert "datasets" in moved
    assert len(moved) > 1


# What is asked of a world that has nothing


def test_nothing_applied_is_said(today: World) -> None:
    with pytest.raises(NotFound) as caught:
        run_command(session(today, COLABLOCK_HOME=str(today.folder / "nowhere")), "qlora-2026", ["python"])
    assert caught.value.hint == "Run `colablock apply qlora-2026` first"
