"""Drift since an apply, with the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.snapshot import Installed, Snapshot
from colablock.errors import ExitCode
from colablock.transaction.drift import find_drifts, notes_of
from tests.support.dict_source import PYTHON_312
from tests.support.fixtures import venv_fixture, world_fixture
from tests.support.runtime import Stub, Venv
from tests.support.wheels import make_wheel
from tests.support.world import World

STACK = {"numpy": "2.2.0", "torch": "2.8.0", "beside": "1.0"}
PINS = ("numpy", "torch")


@dataclass(frozen=True)
class DriftCase:
    """*now* by name: version, installer, requested by name or not, requirements."""

    now: Mapping[str, tuple[str, str, bool, tuple[str, ...]]]
    notes: tuple[str, ...] = ()
    before: Mapping[str, str] = field(default_factory=lambda: STACK)


def stands(*names: str) -> dict[str, tuple[str, str, bool, tuple[str, ...]]]:
    needs = {"torch": ("numpy", "beside>=1; python_version > '3'", "other; extra == 'x'")}
    return {name: (STACK[name], "colablock", False, needs.get(name, ())) for name in names}


CASES = {
    "nothing": DriftCase(stands(*STACK)),
    "a culprit": DriftCase(
        {
            **stands("torch", "beside"),
            "numpy": ("1.26.4", "pip", False, ()),
            "foo": ("1.0", "pip", True, ("numpy<2", "numpy<9; extra == 'old'")),
            "innocent": ("1.0", "pip", True, ("numpy",)),
        },
        (
            (
                "`numpy` is 1.26.4, and was 2.2.0 (by pip), because `foo` 1.0 requires `numpy<2`; "
                "`foo` 1.0 is new (by pip, requested by name)"
            ),
            "1 distribution outside of the stack changed; its requirements are still met",
        ),
    ),
    "a chain": DriftCase(
        {
            **stands("torch", "beside"),
            "numpy": ("1.26.4", "uv", True, ()),  # uv marks everything as requested
            "aaa": ("3.0", "uv", True, ("numpy<2", "zoo")),  # a cycle
            "zoo": ("1.0", "uv", True, ("aaa>=3",)),
        },
        (
            (
                "`numpy` is 1.26.4, and was 2.2.0 (by uv), because `aaa` 3.0 requires `numpy<2`; "
                "`aaa` 3.0 is new (by uv), because `zoo` 1.0 requires `aaa>=3`; "
                "`zoo` 1.0 is new (by uv)"
            ),
        ),
    ),
    "a changed culprit": DriftCase(
        {
            **stands("torch"),
            "numpy": ("1.0", "pip", False, ()),
            "beside": ("2.0", "pip", True, ("numpy==1",)),
        },
        (
            (
                "`numpy` is 1.0, and was 2.2.0 (by pip), because `beside` 2.0 requires `numpy==1`; "
                "`beside` is 2.0, and was 1.0 (by pip, requested by name)"
            ),
        ),
    ),
    "asked for itself": DriftCase(
        {
            **stands("torch", "beside"),
            "numpy": ("1.26.4", "pip", True, ()),
            "foo": ("1.0", "pip", False, ("numpy<2",)),
        },
        (
            "`numpy` is 1.26.4, and was 2.2.0 (by pip, requested by name)",
            "1 distribution outside of the stack changed; its requirements are still met",
        ),
    ),
    "nobody says why": DriftCase(
        {**stands("torch", "beside"), "numpy": ("2.3.0", "", False, ())},
        ("`numpy` is 2.3.0, and was 2.2.0",),
    ),
    "gone": DriftCase(stands("torch", "beside"), ("`numpy` 2.2.0 is gone",)),
    "what the stack requires": DriftCase(
        {**stands("numpy", "torch"), "beside": ("0.9", "pip", True, ())},
        ("`beside` is 0.9, and was 1.0 (by pip, requested by name)",),
    ),
    "only others": DriftCase(
        {**stands("numpy", "torch"), "beside": ("1.1", "pip", True, ()), "new": ("1", "pip", True, ())},
        ("2 distributions outside of the stack changed; its requirements are still met",),
    ),
    "a whole stack": DriftCase(
        {f"p{number}": ("2", "pip", False, ()) for number in range(12)},
        (
            *[f"`p{n}` is 2, and was 1 (by pip)" for n in (0, 1, 10, 11, *range(2, 8))],
            "2 more distributions of the stack have changed",
        ),
        before={f"p{number}": "1" for number in range(12)},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_drift_is_described_with_its_reasons(case: DriftCase) -> None:
    installed = {
        canonicalize_name(name): Installed(
            name=canonicalize_name(name),
            version=version,
            installer=installer or None,
            requested=requested,
            requires=requires,
        )
        for name, (version, installer, requested, requires) in case.now.items()
    }
    snapshot = Snapshot(environment=PYTHON_312, python="", prefix="", site="", installed=installed)
    now = {name: there.version for name, there in installed.items()}
    before = {NormalizedName(name): version for name, version in case.before.items()}
    pins = [NormalizedName(name) for name in (PINS if case.before is STACK else case.before)]
    drifts = find_drifts(before, now, snapshot, pins)
    assert notes_of(drifts) == [f"since it was applied: {note}" for note in case.notes]
    beside = [note for note in notes_of(drifts) if not any(f": `{name}` " in note for name in pins)]
    assert [
        note for note in notes_of(drifts, with_pins=False) if "distributions of the stack" not in note
    ] == [note for note in beside if "distributions of the stack" not in note]


MATRIX = """\
schema = 1
name = "tiny"
[packages]
shapes = ">=2"
[verify]
imports = ["shapes"]
"""


def fill(folder: Path) -> None:
    index = folder / "index"
    for version in ("1.0", "2.0"):
        make_wheel(index, "colours", version)
    make_wheel(index, "shapes", "2.0", requires=["colours>=2"])
    make_wheel(index, "painter", "1.0", requires=["colours<2"])
    (folder / "tiny.toml").write_text(MATRIX)


world = world_fixture(fill)
venv = venv_fixture(Stub(name="colours", version="1.0"))

CULPRIT = (
    "since it was applied: `colours` is 1.0, and was 2.0 (by uv), "
    "because `painter` 1.0 requires `colours<2`; `painter` 1.0 is new (by uv)"
)


@pytest.mark.slow
def test_a_later_installation_is_reported_and_repaired(world: World, venv: Venv) -> None:
    options = ("tiny.toml", "--into", "kernel", "--python", venv.python, "--json")
    first = world.run("apply", *options)
    assert first.code == ExitCode.DONE, first.err
    assert world.run("verify", "tiny").code == ExitCode.DONE

    links = ("--no-config", "--no-index", "--find-links", str(world.folder / "index"))
    done = world.uv("pip", "install", "--python", venv.python, *links, "painter")
    assert done.code == 0, done.err
    broken = world.run("verify", "tiny", "--json")
    assert broken.code == ExitCode.UNMET
    details = {check["kind"]: check["detail"] for check in broken.json["checks"] if not check["passed"]}
    assert details["version"] == f"expected 2.0, but 1.0 is installed\n{CULPRIT}"
    command = f"colablock apply {world.folder / 'tiny.toml'} --into kernel --python {venv.python}"
    restores = f"`{command}` restores the versions of the stack"
    assert broken.json["notes"] == [restores]

    again = world.run("apply", *options)
    assert again.code == ExitCode.DONE, again.err
    assert again.json["plan"]["beforehand"] == [CULPRIT]
    assert venv.versions() == {"colours": "2.0", "shapes": "2.0"}, (again.out, again.err)
    mended = world.run("verify", "tiny", "--json")
    tried = "no repair of painter: its only version, 1.0, does not fit"
    notes = [f"{tried}: 1.0 needs colours<2, and colours is 2.0"]
    assert (mended.code, mended.json["notes"]) == (ExitCode.DONE, notes)
    assert world.run("apply", *options).json["report"]["notes"] == notes

    # The rollback restores the broken state, which is a drift, too.  After another one nothing is applied.
    assert world.run("rollback", "--python", venv.python).code == ExitCode.DONE
    back = world.run("verify", "tiny", "--json")
    details = {check["kind"]: check["detail"] for check in back.json["checks"] if not check["passed"]}
    assert details["version"].endswith(CULPRIT)
    assert world.run("rollback", "--python", venv.python).code == ExitCode.DONE
    assert world.run("verify", "tiny").code == ExitCode.USAGE
    assert world.run("plan", *options).json["notes"] == notes
