"""Which installed distributions may no longer import after a change, although no requirement says so."""

# ruff: noqa: E501 - the files of a case stand in one line

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.check.import_risks import find_import_risks
from colablock.check.import_statements import read_statements
from colablock.environment.accelerator import Accelerator
from colablock.environment.snapshot import Installed, Snapshot, snapshot_of
from colablock.planning.plan import Action, Breakage, ImportRisk, Plan, Remedy, Step, Target
from tests.support.dict_source import PYTHON_312
from tests.support.runtime import Stub, Venv

LONG = "x = 1\n" * 50
FILLERS = {f"big/unused{number}.py": LONG for number in range(60)}  # no small distribution
MENTIONED = "\n\nA tool for Flow and others.\n"


@dataclass(frozen=True)
class Case:
    """One distribution that stays, and the reason in the plan that removes flow and moves deft to 1.0."""

    stub: Stub
    reason: str | None = None


def using(name: str, *, requires: tuple[str, ...] = (), **files: str) -> Stub:
    paths = {path.replace("__slash__", "/") + ".py": text for path, text in files.items()}
    return Stub(
        name=name,
        version="1.0",
        requires=requires,
        files={f"{name}/{path}": text for path, text in paths.items()},
    )


GONE = "it imports `{}` ({}), and flow 2.19 is removed"
CASES = {
    "at the top": Case(using("top", __init__="import flow\n"), GONE.format("flow", "top/__init__.py:1")),
    "a submodule of it": Case(
        using("sub", __init__="from flow.python import ops as o\n"), GONE.format("flow.python", "sub/__init__.py:1")
    ),
    "through own modules": Case(
        using("deep", __init__="from deep import a as b\n", a="from .b__slash__c import x\n".replace("__slash__", "."),
              b__slash____init__="", b__slash__c="from flow import y\n"),
        GONE.format("flow", "deep/b/c.py:1"),
    ),
    "through a star": Case(
        using("star", __init__="from star.all import *\n", all="import os, flow.keras as k\n"),
        GONE.format("flow.keras", "star/all.py:1"),
    ),
    "under a condition of its own": Case(
        using("cond", __init__="def backend(): return 'flow'\nif backend() == 'flow':\n    from cond.flow import *\n",
              flow="import flow\n"),
        GONE.format("flow", "cond/flow.py:1"),
    ),
    "in an else": Case(
        using("other", __init__="import os\nif os.environ.get('X'):\n    pass\nelse:\n    import flow\n"),
        GONE.format("flow", "other/__init__.py:5"),
    ),
    "in a class": Case(
        using("body", __init__="class A:\n    import flow\n"), GONE.format("flow", "body/__init__.py:2")
    ),
    "raised again": Case(
        using("again", __init__="try:\n    import flow\nexcept ImportError:\n    raise\n"),
        GONE.format("flow", "again/__init__.py:2"),
    ),
    "in an extra": Case(
        using("extra", requires=('flow>=2; extra == "tf"',), __init__="import flow\n"),
        GONE.format("flow", "extra/__init__.py:1"),
    ),
    "a namespace portion": Case(
        using("space", __init__="from cloud.flow import client\n"),
        "it imports `cloud.flow` (space/__init__.py:1), and cloud-flow 1.0 is removed",
    ),
    "mentioned in the description of a large one": Case(
        Stub(name="big", version="1.0",
             files={**FILLERS, "big/__init__.py": "from big import a\n", "big/a.py": "import flow\n",
                    "big/flow_compat.py": ""}),
        None,  # neither its metadata nor its first module names flow
    ),
    "mentioned in the first module of a large one": Case(
        Stub(name="huge", version="1.0",
             files={path.replace("big", "huge"): text for path, text in FILLERS.items()}
             | {"huge/__init__.py": "# Needs flow.\nfrom huge import a\n", "huge/a.py": "import flow\n"}),
        GONE.format("flow", "huge/a.py:1"),
    ),
    "caught": Case(using("caught", __init__="try:\n    import flow\nexcept ImportError:\n    flow = None\n")),
    "suppressed": Case(
        using("supp", __init__="import contextlib\nwith contextlib.suppress(ImportError):\n    import flow\n")
    ),
    "asked for first": Case(
        using("asks", __init__="from asks.util import is_flow_available\nif is_flow_available():\n    import flow\n",
              util="def is_flow_available(): return False\n")
    ),
    "for types only": Case(
        using("types_only", __init__="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import flow\n")
    ),
    "in a function": Case(using("func", __init__="def f():\n    import flow\n")),
    "lazily": Case(using("lazy", __init__="def __getattr__(name):\n    import flow\n    return flow\n")),
    "as a fallback": Case(using("fall", __init__="try:\n    import deft\nexcept ImportError:\n    import flow\n")),
    "in a module that nothing imports": Case(using("unreached", __init__="", tools="import flow\n")),
    "in a text": Case(using("text", __init__='"""\nimport flow\n"""\nhelp = "import flow"\n')),
    "an own module of the name": Case(using("own", __init__="from own import flow\n", flow="x = 1\n")),
    "a longer name": Case(using("longer", __init__="import flowery\n")),
    "another portion of a namespace": Case(using("portion", __init__="from cloud.stays import client\n")),
    "unreadable for this Python": Case(using("broken", __init__="import flow\nprint 'x'\n")),
    "below what an extra names": Case(
        using("diffuse", requires=('deft>=1.7; extra == "training"',), __init__="", util="def f():\n    import deft\n"),
        "it imports `deft` (diffuse/util.py:2), its extra `training` requires"
        ' `deft>=1.7; extra == "training"`, and deft 1.7 becomes 1.0',
    ),
    "below what an extra names, caught": Case(
        using("careful", requires=('deft>=1.7; extra == "x"',),
              __init__="try:\n    import deft\nexcept ImportError:\n    deft = None\n")
    ),
    "below what an extra names, not imported": Case(
        using("unused", requires=('deft>=1.7; extra == "x"',), __init__="deft = 1\n")
    ),
    "within what an extra names": Case(
        using("fits", requires=('deft>=0.9; extra == "x"',), __init__="import deft\n")
    ),
    "outside of what an extra names, before too": Case(
        using("never", requires=('deft>=2; extra == "x"',), __init__="import deft\n")
    ),
    "for an extra of another platform": Case(
        using("elsewhere", requires=('deft>=1.7; extra == "x" and sys_platform == "win32"',), __init__="import deft\n")
    ),
}  # fmt: skip
CHANGED = (
    Stub(name="flow", version="2.19", files={"flow/python/__init__.py": "", "flow/keras.py": ""}),
    Stub(name="cloud-flow", version="1.0", import_names=(), files={"cloud/flow/__init__.py": ""}),
    Stub(name="cloud-stays", version="1.0", import_names=(), files={"cloud/stays/__init__.py": ""}),
    Stub(name="deft", version="1.7"),
)


def step(action: Action, name: str, previous: str | None, version: str | None) -> Step:
    return Step(action=action, name=canonicalize_name(name), reason="", previous=previous, version=version)


PLAN = Plan(
    matrix="tiny",
    matrix_digest="",
    variant=None,
    target=Target.KERNEL,
    why_target="",
    python="",
    python_version="3",
    steps=(
        step(Action.REMOVE, "flow", "2.19", None),
        step(Action.REMOVE, "cloud-flow", "1.0", None),
        step(Action.REPLACE, "deft", "1.7", "1.0"),
        step(Action.INSTALL, "new", None, "1.0"),
    ),
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    stubs = [*CHANGED, *(case.stub for case in CASES.values())]
    venv = Venv.make(tmp_path_factory.mktemp("risks") / "env", *stubs)
    (info,) = venv.site.glob("diffuse-*.dist-info")
    info.joinpath("METADATA").write_text(info.joinpath("METADATA").read_text() + MENTIONED)
    return snapshot_of(venv.python, environ=os.environ, accelerator=Accelerator())


@pytest.fixture(scope="module")
def risks(snapshot: Snapshot) -> dict[str, ImportRisk]:
    return {one.name: one for one in find_import_risks(PLAN, snapshot)}


@pytest.mark.parametrize("name", CASES)
def test_what_may_no_longer_import_is_found_with_its_reason(risks: dict[str, ImportRisk], name: str) -> None:
    case = CASES[name]
    risk = risks.get(canonicalize_name(case.stub.name))
    assert (risk.reason if risk is not None else None) == case.reason
    if risk is not None:
        assert risk.modules == (case.stub.name,)
        assert risk.version == "1.0"


def test_a_description_that_names_what_goes_makes_a_large_one_likely(snapshot: Snapshot) -> None:
    info = Path(snapshot.installed[canonicalize_name("big")].path or "")
    text = info.joinpath("METADATA").read_text()
    try:
        info.joinpath("METADATA").write_text(text + MENTIONED)
        found = {one.name: one.reason for one in find_import_risks(PLAN, snapshot)}
    finally:
        info.joinpath("METADATA").write_text(text)
    assert found[canonicalize_name("big")] == GONE.format("flow", "big/a.py:1")


def test_what_the_plan_lists_as_broken_is_not_listed_twice(snapshot: Snapshot) -> None:
    broken = Breakage(
        name=canonicalize_name("top"),
        version="1.0",
        requirement="flow",
        direct=False,
        because=(),
        remedy=Remedy.LEAVE,
    )
    found = {one.name for one in find_import_risks(replace(PLAN, breakages=(broken,)), snapshot)}
    assert "top" not in found
    assert "sub" in found


def test_a_plan_that_removes_and_moves_nothing_has_no_risks(snapshot: Snapshot) -> None:
    assert find_import_risks(replace(PLAN, steps=PLAN.steps[3:]), snapshot) == ()


def test_a_missing_file_is_no_error(snapshot: Snapshot) -> None:
    name = canonicalize_name("lost")
    lost = replace(
        snapshot.installed[canonicalize_name("top")], name=name, path="/nowhere/lost-1.0.dist-info"
    )
    state = replace(snapshot, installed={**snapshot.installed, name: lost})
    assert name not in {one.name for one in find_import_risks(PLAN, state)}


def test_a_record_with_a_null_character_is_no_error(snapshot: Snapshot, tmp_path: Path) -> None:
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "RECORD").write_bytes(b"odd/__init__.py\0,,\n")
    name = canonicalize_name("odd")
    extra = ("deft>=2; extra == 'fast'",)
    odd = Installed(name=name, version="1.0", path=str(info), requires=extra, extras=("fast",))
    state = replace(snapshot, installed={**snapshot.installed, name: odd})
    assert name not in {one.name for one in find_import_risks(PLAN, state)}


def test_a_module_that_no_parser_takes_has_no_imports() -> None:
    markers = dict(PYTHON_312.markers)
    with pytest.raises(SyntaxError):
        read_statements(b"x=" + b"-" * 100_000 + b"1\n", "m", is_package=False, markers=markers)


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("import a", [False]),
        ("try:\n    import a\nexcept ImportError:\n    import b", [True, False]),
        ("try:\n    import a\nfinally:\n    pass", [False]),
        ("if a.b():\n    import c", [False]),
        ("if importlib.util.find_spec('c'):\n    import c\nelse:\n    import d", [True, False]),
        ("if HAS_C:\n    import c", [True]),
    ],
)
def test_caught_imports_are_told_from_conditional_ones(source: str, caught: list[bool]) -> None:
    markers = {"python_full_version": "3.12.0", "sys_platform": "linux", "os_name": "posix"}
    markers |= {
        "platform_system": "Linux",
        "platform_machine": "x",
        "platform_python_implementation": "CPython",
    }
    for deferred in (True, False):
        found = read_statements(source.encode(), "m", is_package=False, markers=markers, deferred=deferred)
        assert [one.caught for one in found] == caught
