"""Builds of one package own the same files: they have one version, or only one of them stays."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.record import read_record, row_differs
from colablock.errors import PlanOutdated, Refused
from colablock.operations.apply import apply_matrix, carry_out
from colablock.operations.last_apply import verify_last_apply
from colablock.operations.plan import plan_change
from colablock.operations.rollback import undo_changes
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions
from colablock.planning.plan import Plan, Target
from tests.support.reporters import Notes
from tests.support.runtime import Stub, build_site, make_venv, site_of
from tests.support.trees import listing
from tests.support.wheels import make_wheel
from tests.support.world import World, open_world

pytestmark = pytest.mark.slow  # a change of a whole environment for each case

CV2 = ("opencv-python", "opencv-python-headless", "opencv-contrib-python")
MATRIX = """\
schema = 1
name = "painting"
[packages]
{packages}
{more}
[verify]
imports = [{imports}]
"""


def files_of(name: str, version: str, package: str = "cv2") -> dict[str, str]:
    """Return the modules of a build: some are the same in all builds of a version, some in no other."""
    return {
        f"{package}/__init__.py": f"__version__ = '{version}'\nfrom {package} import core, build\n",
        f"{package}/core.py": f"OF = '{version}'\n",
        f"{package}/build.py": f"NAME = '{name}'\nOF = '{version}'\nfrom {package}.core import OF as core\n"
        "assert OF == core, (OF, core)\n",
        f"{package}/only_{name.replace('-', '_')}.py": "",
    }


@dataclass(frozen=True, kw_only=True)
class Case:
    """*index* and *site* are ``name version`` with requirements; the *builds* own one package.

    *after* are all versions after the apply, and *owner* the build whose files are there.
    """

    site: Mapping[str, Sequence[str]]
    index: Mapping[str, Sequence[str]]
    packages: str
    after: Mapping[str, str]
    owner: str
    more: str = ""
    builds: Sequence[str] = CV2
    package: str = "cv2"
    said: str = ""  # in a note of the apply
    is_gone: bool = False  # the index has nothing of what is installed


def plain(*keys: str) -> dict[str, Sequence[str]]:
    return dict.fromkeys(keys, ())


TWO = plain("opencv-python 4.8", "opencv-python-headless 4.8")  # the files are those of the last one
NUMPY = {"numpy 2.0": (), **{f"{name} 4.12": ["numpy>=2"] for name in CV2}}
CASES = {
    "they move together": Case(
        site=TWO,
        index=plain("opencv-python 4.10", "opencv-python-headless 4.10", "opencv-python-headless 4.12"),
        packages='opencv-python = "==4.10"',
        after={"opencv-python": "4.10", "opencv-python-headless": "4.10"},
        owner="opencv-python",
    ),
    "a build without that version goes": Case(
        site=TWO,
        index=plain("opencv-python 4.10", "opencv-python-headless 4.12"),
        packages='opencv-python = "==4.10"',
        after={"opencv-python": "4.10"},
        owner="opencv-python",
    ),
    "a repair finds a version that all builds have": Case(
        site=NUMPY,
        index=plain(
            "numpy 1.26",
            *(f"{name} 4.10" for name in CV2),
            "opencv-python 4.11",
            "opencv-contrib-python 4.11",
        ),
        packages='numpy = "<2"',
        after={"numpy": "1.26", **dict.fromkeys(CV2, "4.10")},
        owner="opencv-contrib-python",
    ),
    "the one that stays gets its files back": Case(
        site=TWO,
        index=plain("opencv-python 4.8", "opencv-python 4.12", "left 1"),
        packages='left = ""',
        more="[absent]\nopencv-python-headless = {}",
        after={"opencv-python": "4.8", "left": "1"},
        owner="opencv-python",
    ),
    "without its wheel it goes too": Case(
        site=TWO,
        index=plain("opencv-python 4.12", "left 1"),
        packages='left = ""',
        more="[absent]\nopencv-python-headless = {}",
        after={"left": "1"},
        owner="",
        is_gone=True,
    ),
    "the one whose files are there stays as it is": Case(
        site=TWO,
        index=plain("left 1"),
        packages='left = ""',
        more="[absent]\nopencv-python = {}",
        after={"opencv-python-headless": "4.8", "left": "1"},
        owner="opencv-python-headless",
    ),
    "a new build takes the other along": Case(
        site=plain("opencv-python 4.8"),
        index=plain("opencv-python-headless 4.10", "opencv-python 4.10", "opencv-python 4.12"),
        packages='opencv-python-headless = "==4.10"',
        after={"opencv-python": "4.10", "opencv-python-headless": "4.10"},
        owner="opencv-python-headless",
    ),
    "a new build sends the other away": Case(
        site=plain("opencv-python 4.8"),
        index=plain("opencv-python-headless 4.10", "opencv-python 4.12"),
        packages='opencv-python-headless = "==4.10"',
        after={"opencv-python-headless": "4.10"},
        owner="opencv-python-headless",
    ),
    "a pin that stands is not overruled": Case(
        site={"numpy 2.0": (), "opencv-python 4.8": (), "opencv-python-headless 4.12": ["numpy>=2"]},
        index=plain("numpy 1.26", *(f"{n} {v}" for n in CV2 for v in ("4.8", "4.10", "4.12"))),
        packages='numpy = "<2"\nopencv-python = "==4.8"',
        after={"numpy": "1.26", "opencv-python": "4.8", "opencv-python-headless": "4.8"},
        owner="opencv-python",
    ),
    "a pin that stands gets its files back": Case(
        site={"numpy 2.0": (), "opencv-python 4.8": (), "opencv-python-headless 4.12": ["numpy>=2"]},
        index=plain("numpy 1.26", "opencv-python 4.8", "opencv-python-headless 4.12"),
        packages='numpy = "<2"\nopencv-python = "==4.8"',
        after={"numpy": "1.26", "opencv-python": "4.8"},
        owner="opencv-python",
    ),
    "builds with other version numbers": Case(
        site=plain("pillow 10.0", "pillow-simd 9.5"),
        index=plain("pillow 11.0", "pillow-simd 9.6"),
        packages='pillow = "==11.0"',
        after={"pillow": "11.0"},
        owner="pillow",
        builds=("pillow", "pillow-simd"),
        package="PIL",
    ),
    "who needs the other build": Case(
        site={**TWO, "albumentations 1": ["opencv-python-headless>=4.8"]},
        index=plain("opencv-python 4.10", "opencv-python-headless 4.10"),
        packages='opencv-python = "==4.10"',
        after={"opencv-python": "4.10", "opencv-python-headless": "4.10", "albumentations": "1"},
        owner="opencv-python",
    ),
    "the stack needs both builds": Case(
        site={**TWO, "albumentations 1": ["opencv-python-headless>=4.8"]},
        index=plain("opencv-python 4.10", "opencv-python-headless 4.10", "opencv-python-headless 4.12"),
        packages='opencv-python = "==4.10"\nalbumentations = ""',
        after={"opencv-python": "4.10", "opencv-python-headless": "4.10", "albumentations": "1"},
        owner="opencv-python",
    ),
}


ALIKE = {  # projects with a folder of the same name
    "one": {"one/__init__.py": "", "one/more.py": "", "tests/helper.py": "OF = 'one {version}'"},
    "two": {"two/__init__.py": "", "two/more.py": "", "tests/helper.py": "OF = 'two {version}'"},
}
OTHERS = {
    "a pin that stands below another version": Case(
        site=plain("opencv-python 4.8", "opencv-python-headless 4.10"),
        index=plain("left 1"),
        packages='opencv-python = "==4.8"',
        after={"opencv-python": "4.8"},
        owner="opencv-python",
    ),
    "a new build that the stack needs beside one that stands": Case(
        site={"opencv-python-headless 4.8": (), "albumentations 1": ["opencv-python-headless"]},
        index=plain("opencv-python 4.10", "opencv-python-headless 4.10", "opencv-python-headless 4.12"),
        packages='opencv-python = "==4.10"\nalbumentations = ""',
        after={"opencv-python": "4.10", "opencv-python-headless": "4.10", "albumentations": "1"},
        owner="opencv-python",
    ),
    "a build that comes to the version of another": Case(
        site=plain("psycopg2 2.8", "psycopg2-binary 2.9"),
        index=plain("psycopg2 2.9"),
        packages='psycopg2 = "==2.9"',
        after={"psycopg2": "2.9", "psycopg2-binary": "2.9"},
        owner="psycopg2",
        builds=("psycopg2", "psycopg2-binary"),
        package="psycopg2",
    ),
    "tests of two projects": Case(
        site=plain("one 1", "two 1"),
        index=plain("one 2", "two 2"),
        packages='one = "==2"',
        after={"one": "2", "two": "1"},
        owner="",
        said="tests/helper.py` of `two`: replaced by a file of the plan",
        builds=(),
    ),
    "two new builds of one version": Case(
        site={},
        index=plain("opencv-python 4.10", "opencv-python-headless 4.10"),
        packages='opencv-python = "==4.10"\nopencv-python-headless = "==4.10"',
        after={"opencv-python": "4.10", "opencv-python-headless": "4.10"},
        owner="opencv-python-headless",
    ),
}
CASES |= OTHERS


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path, tmp_path / "index") as found:
        yield found


def modules_of(case: Case, name: str, version: str) -> dict[str, str] | None:
    """Return the modules of a release; None for a project with a stub of its own."""
    if name in case.builds:
        return files_of(name, version, case.package)
    alike = ALIKE.get(name)
    return alike and {path: text.format(version=version) for path, text in alike.items()}


def set_up(world: World, case: Case) -> tuple[Session, ApplyOptions, Path]:
    """Make the index, the environment and the matrix of *case*."""
    # The index has what is installed, too, unless the case is about a wheel that is not there.
    standing = {} if case.is_gone else {key: case.site[key] for key in case.site}
    for key, requires in {**standing, **case.index}.items():
        name, version = key.split()
        modules = modules_of(case, name, version)
        make_wheel(world.folder / "index", name, version, modules=modules, requires=requires)
    folder = world.folder / "env"
    make_venv(folder, sys.executable)
    stubs = []
    for key, requires in case.site.items():
        name, version = key.split()
        files = modules_of(case, name, version) or {}
        names = tuple({path.partition("/")[0] for path in files}) or None
        stubs.append(
            Stub(name=name, version=version, requires=tuple(requires), import_names=names, files=files)
        )
    build_site(site_of(folder), stubs)
    imports = f'"{case.package}"' if case.owner else ""
    text = MATRIX.format(packages=case.packages, more=case.more, imports=imports)
    (world.folder / "painting.toml").write_text(text)
    options = ApplyOptions(
        name=str(world.folder / "painting.toml"), into=Target.KERNEL, python=str(folder / "bin" / "python")
    )
    return Session(environ=world.environ(PIP_CONFIG_FILE="/dev/null"), reporter=Notes()), options, folder


def faults(site: Path) -> dict[str, list[str]]:
    """Return what differs from its RECORD, by distribution."""
    found = {}
    for info in site.glob("*.dist-info"):
        rows = read_record(info) or ()
        wrong = [
            row.path for row in rows if not (site / row.path).exists() or row_differs(site / row.path, row)
        ]
        if wrong:
            found[str(canonicalize_name(info.name.split("-")[0]))] = wrong
    return found


def versions(site: Path) -> dict[str, str]:
    pairs = (info.name.removesuffix(".dist-info").split("-") for info in site.glob("*.dist-info"))
    return {str(canonicalize_name(name)): version for name, version in pairs}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_builds_of_one_package(case: Case, world: World) -> None:
    session, options, folder = set_up(world, case)
    notes = session.reporter
    assert isinstance(notes, Notes)
    site, before = site_of(folder), listing(folder)
    planned = plan_change(session, options)
    report = carry_out(session, options, planned)
    assert (report.passed, report.changed) == (True, True)
    assert not case.said or any(case.said in note for note in notes.notes)
    assert versions(site) == case.after
    if case.owner:
        assert (site / case.package / "build.py").read_text().startswith(f"NAME = '{case.owner}'")
    wrong = faults(site)
    assert case.owner not in wrong
    assert all("/build.py" in line or "tests/helper" in line for lines in wrong.values() for line in lines)
    names = {name for name in case.after if name in case.builds}
    assert len({case.after[name] for name in names}) <= 1
    assert verify_last_apply(session, options.name).passed
    undo_changes(session, options.python)
    assert listing(folder) == before


def test_a_wheel_that_cannot_be_listed_is_noticed_before_anything_changes(world: World) -> None:
    case = CASES["a new build takes the other along"]
    session, options, folder = set_up(world, case)
    world.server.ranges = world.server.sizes = False  # the end of a wheel cannot be fetched alone
    before = listing(folder)
    planned = plan_change(session, options)
    assert [step.name for step in planned.plan.steps] == ["opencv-python-headless"]
    with pytest.raises(PlanOutdated, match=r"headless 4.10 has the same files as opencv-python 4.8"):
        carry_out(session, options, planned)
    assert listing(folder) == before


@pytest.mark.parametrize("by", ["library", "command"])
def test_an_apply_plans_again_with_the_files_of_what_it_fetched(by: str, world: World) -> None:
    case = CASES["a new build takes the other along"]
    session, options, folder = set_up(world, case)
    world.server.ranges = world.server.sizes = False
    if by == "library":
        plans: list[Plan] = []
        assert apply_matrix(session, options, on_plan=plans.append).passed
        assert [len(plan.steps) for plan in plans] == [1, 2]
    else:
        done = world.run("apply", options.name, "--python", str(options.python), "--into", "kernel")
        assert done.code == 0, done.err
        again = "planning again: opencv-python-headless 4.10 has the same files"
        assert again in " ".join(done.err.split())
    assert versions(site_of(folder)) == case.after


def test_builds_of_different_versions_are_not_mixed(world: World) -> None:
    case = replace(
        CASES["two new builds of one version"],
        index=plain("opencv-python 4.10", "opencv-python-headless 4.8"),
        packages='opencv-python = "==4.10"\nopencv-python-headless = "==4.8"',
    )
    session, options, folder = set_up(world, case)
    before = listing(folder)
    with pytest.raises(Refused, match=r"own the same files, and the (stack needs both|plan installs both)"):
        carry_out(session, options, plan_change(session, options))
    assert listing(folder) == before
    with pytest.raises(Refused, match="own the same files, and the plan installs both"):
        apart = replace(options, into=Target.ENV)
        carry_out(session, apart, plan_change(session, apart))
