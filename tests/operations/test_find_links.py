"""Find-links beside a lock: those of the machine add preferred builds, those of a call change their names."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from colablock.errors import FetchFailed
from colablock.lockfile.export import Format
from colablock.network.settings import read_settings
from colablock.operations.apply import apply_matrix
from colablock.operations.export import export_lock
from colablock.operations.lock import lock_matrix
from colablock.operations.plan import plan_change
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions, LockOptions
from colablock.planning.plan import Target
from tests.support.fixtures import world_fixture
from tests.support.reporters import Notes
from tests.support.runtime import Stub, Venv
from tests.support.server import Fault
from tests.support.wheels import make_wheel
from tests.support.world import World

MATRIX = """\
schema = 1
name = "tiny"
requirements = ["shapes", "lines"]
"""


def fill(folder: Path) -> None:
    """Write an index of three projects, and a matrix that asks for two of them."""
    index = folder / "index"
    make_wheel(index, "shapes", "1.0", requires=["colours"])
    make_wheel(index, "colours", "1.0")
    make_wheel(index, "lines", "1.0")
    (folder / "matrices").mkdir()
    (folder / "matrices" / "tiny.toml").write_text(MATRIX)


world = world_fixture(fill, scope="module")


@dataclass(frozen=True)
class Place:
    """A folder with the matrix and its lock.  Its index has got newer versions since."""

    world: World
    folder: Path
    matrix: str

    def session(self, **variables: str) -> Session:
        cache = str(self.folder / "cache")
        return Session(
            environ=self.world.environ(HOME=str(self.folder), COLABLOCK_CACHE_DIR=cache, **variables),
            reporter=Notes(),
        )

    def links(self, *wheels: tuple[str, str] | tuple[str, str, list[str]], name: str = "links") -> Path:
        """Return a folder of wheels."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        for project, version, *requires in wheels:
            make_wheel(folder, project, version, requires=requires[0] if requires else ())
        return folder


@pytest.fixture(scope="module")
def locked(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lock the matrix for this Python, then publish newer versions; return the folder of both."""
    folder = tmp_path_factory.mktemp("locked")
    shutil.copy(world.folder / "matrices" / "tiny.toml", folder)
    session = Session(environ=world.environ(COLABLOCK_CACHE_DIR=str(folder / "cache")))
    made = lock_matrix(session, ApplyOptions(name=str(folder / "tiny.toml")), LockOptions())
    assert made.packages == 3
    shutil.rmtree(folder / "cache")
    for name in ("shapes", "colours", "lines"):
        make_wheel(world.folder / "index", name, "2.0", requires=["colours"] if name == "shapes" else ())
    return folder


@pytest.fixture
def place(world: World, locked: Path, tmp_path: Path) -> Place:
    shutil.copytree(locked, tmp_path / "here")
    return Place(world, tmp_path, str(tmp_path / "here" / "tiny.toml"))


def planned(place: Place, *links: Path, **variables: str) -> tuple[dict[str, str], str]:
    """Return the versions of a plan with ``--find-links`` *links*, and its notes as one text."""
    session = place.session(**variables)
    options = ApplyOptions(
        name=place.matrix,
        into=Target.ENV,
        python=sys.executable,
        find_links=tuple(map(str, links)),
    )
    found = plan_change(session, options)
    assert isinstance(session.reporter, Notes)
    return {str(k): v for k, v in found.pins().items()}, "\n".join(
        (*session.reporter.notes, *found.plan.notes)
    )


ONES = {"shapes": "1.0", "lines": "1.0", "colours": "1.0"}
TWOS = dict.fromkeys(ONES, "2.0")


@dataclass(frozen=True)
class Configured:
    """Settings of the machine, with the folder of links as ``{links}``."""

    environ: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


CONFIGURED = {
    "PIP_FIND_LINKS": Configured({"PIP_FIND_LINKS": "{links}"}),
    "two folders": Configured({"PIP_FIND_LINKS": "{links} {links}"}),
    "UV_FIND_LINKS": Configured({"UV_FIND_LINKS": "{links}"}),
    "COLABLOCK_FIND_LINKS": Configured({"COLABLOCK_FIND_LINKS": "{links}"}),
    "pip.conf": Configured(files={".config/pip/pip.conf": "[global]\nfind-links = {links}\n"}),
    "[install] of pip.conf": Configured(files={".pip/pip.conf": "[install]\nfind-links =\n  {links}\n"}),
    "PIP_CONFIG_FILE": Configured(
        {"PIP_CONFIG_FILE": "{home}/my.conf"}, {"my.conf": "[global]\nfind-links = {links}\n"}
    ),
    "a folder that is not there": Configured({"PIP_FIND_LINKS": "{links}/gone"}),
    "a URL": Configured({"PIP_FIND_LINKS": "file://{links}"}),
}


@pytest.mark.parametrize("case", CONFIGURED.values(), ids=CONFIGURED)
def test_links_of_the_machine_leave_the_lock_in_force(case: Configured, place: Place) -> None:
    links = place.links(("colours", "3.0"), ("lines", "1.0+local"), ("shapes", "0.5"))
    words = {"links": str(links), "home": str(place.folder)}
    for name, text in case.files.items():
        (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (place.folder / name).write_text(text.format(**words))
    found, notes = planned(place, **{name: text.format(**words) for name, text in case.environ.items()})
    assert found == ONES
    assert "the versions are those of the lock" in notes
    assert "override" not in notes
    assert ("there is no such folder" in notes) == ("gone" in str(case))


@dataclass(frozen=True)
class Preferred:
    """What the folder of the machine has, what becomes of the versions, and what the notes say of builds."""

    wheels: list[tuple[str, str] | tuple[str, str, list[str]]]
    moved: dict[str, str]
    note: str


PREFERRED = {
    "the build of the locked version": Preferred(
        [("lines", "1.0+cpu")], {"lines": "1.0+cpu"}, "lines 1.0+cpu is a `+cpu` build from find-links"
    ),
    "of an older version": Preferred(
        [("lines", "0.9+cpu")], {"lines": "0.9+cpu"}, "; lines 0.9+cpu is from find-links"
    ),
    "only the name with the label": Preferred(
        [("lines", "1.0+cpu.1"), ("colours", "3.0+cpu"), ("shapes", "0.5")],
        {"lines": "1.0+cpu.1"},
        "; lines 1.0+cpu.1 is from find-links",
    ),
    "another label": Preferred([("lines", "3.0+cu118")], {}, "was found in the lock"),
    "no label": Preferred([("lines", "3.0")], {}, "no `+cpu` build of lines"),
    "one that does not fit the matrix": Preferred([("lines", "4.0+cpu")], {}, "not using lines 4.0+cpu"),
    "one that does not fit the lock": Preferred(
        [("lines", "2.0+cpu", ["colours>=2"])], {}, "not using lines 2.0+cpu"
    ),
}


@pytest.mark.parametrize("case", PREFERRED.values(), ids=PREFERRED)
def test_a_folder_of_the_machine_has_builds_that_the_matrix_prefers(case: Preferred, place: Place) -> None:
    matrix = Path(place.matrix)
    entry = '\n[packages.lines]\nversion = "<4"\nprefer-local = "cpu"\n'
    matrix.write_text(MATRIX.replace(', "lines"', "") + entry)
    lock_matrix(place.session(), ApplyOptions(name=place.matrix), LockOptions())
    links = place.links(*case.wheels)
    found, notes = planned(place, PIP_FIND_LINKS=f"http://127.0.0.1:9/away {links}")
    assert found == {**ONES, **case.moved}
    assert case.note in notes
    assert notes.count("not using lines") == case.note.startswith("not using")
    assert "the versions are those of the lock" in notes
    assert planned(place)[0] == ONES


KERNELS: dict[str, tuple[list[Stub], tuple[str, ...], dict[str, str], str]] = {
    "nothing forbids the move": (
        [],
        (),
        {"lines": "2.0+cpu", "colours": "2.0"},
        "lines 2.0+cpu is a `+cpu` build from find-links",
    ),
    "it is protected": (
        [],
        ("colours",),
        {"lines": "2.0", "colours": "1.0"},
        (
            "not using lines 2.0+cpu, a `+cpu` build: it does not fit, because lines 2.0+cpu needs"
            " `colours>=2` and colours 1.0 is installed and protected; lines 2.0 is the build of"
        ),
    ),
    "the move would break another": (
        [Stub(name="keeper", version="1.0", requires=("colours<2",))],
        (),
        {"lines": "2.0", "colours": "1.0"},
        "not using lines 2.0+cpu, a `+cpu` build: keeper would break; lines 2.0 is the build of",
    ),
    "the move breaks what the other build breaks, too": (
        [
            Stub(name="keeper", version="1.0", requires=("lines<2", "colours<2")),
            Stub(name="lines", version="0.1"),
        ],
        (),
        {"lines": "2.0+cpu", "colours": "2.0"},
        "lines 2.0+cpu is a `+cpu` build from find-links",
    ),
}


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_a_preferred_build_moves_what_is_installed_unless_that_does_harm(
    case: tuple[list[Stub], tuple[str, ...], dict[str, str], str], place: Place, tmp_path: Path
) -> None:
    more, protect, expected, note = case
    entry = '\n[packages.lines]\nversion = ">=2"\nprefer-local = "cpu"\n'
    Path(place.matrix).write_text(MATRIX.replace(', "lines"', "") + entry)
    venv = Venv.make(tmp_path / "venv", Stub(name="colours", version="1.0"), *more)
    links = place.links(("lines", "2.0+cpu", ["colours>=2"]))
    options = ApplyOptions(name=place.matrix, into=Target.KERNEL, python=venv.python, protect=protect)
    found = plan_change(place.session(PIP_FIND_LINKS=str(links)), options)
    assert {**found.pins()} == {"shapes": "2.0", **expected}
    assert note in "\n".join(found.plan.notes)


@contextmanager
def faulty(place: Place, path: str, fault: Fault) -> Iterator[None]:
    """Let the index answer *path* with *fault*."""
    place.world.server.fault(path, fault)
    try:
        yield
    finally:
        place.world.server.fault(path, Fault(times=0))


def test_a_preferred_build_whose_requirements_cannot_be_looked_up_is_not_used(
    place: Place, tmp_path: Path
) -> None:
    """The plan without it asks for none of them."""
    entry = '\n[packages.lines]\nversion = ">=2"\nprefer-local = "cpu"\n'
    Path(place.matrix).write_text(MATRIX.replace('"shapes", "lines"', "") + entry)
    venv = Venv.make(tmp_path / "venv", Stub(name="colours", version="1.0"))
    links = place.links(("lines", "2.0+cpu", ["colours>=2"]))
    options = ApplyOptions(name=place.matrix, into=Target.KERNEL, python=venv.python)
    for fault in (Fault(status=503), Fault(status=403), Fault(body=b"no page")):
        session = place.session(PIP_FIND_LINKS=str(links), COLABLOCK_RETRIES="0")
        with faulty(place, "/simple/colours/", fault):
            found = plan_change(session, options)
        assert {**found.pins()} == {"lines": "2.0"}, fault
        assert "not using lines 2.0+cpu, a `+cpu` build: " in "\n".join(found.plan.notes), fault
        shutil.rmtree(place.folder / "cache")


@pytest.mark.parametrize("beside", ["3.0", "2.5", None], ids=["kept", "moved", "new"])
def test_a_preferred_build_that_another_build_cannot_follow_is_not_used(
    beside: str | None, place: Place, tmp_path: Path
) -> None:
    Path(place.matrix).write_text(
        'schema = 1\nname = "tiny"\n[packages.pens]\nversion = ">=2"\nprefer-local = "cpu"\n'
        '[packages.pens-gpu]\nversion = ">=3"\n'
    )
    modules = {"pens/__init__.py": "from pens import core\n", "pens/core.py": "of = '3.0'\n"}
    for name in ("pens", "pens-gpu"):
        make_wheel(place.world.folder / "index", name, "3.0", modules=modules)
    stubs = [Stub(name="colours", version="1.0")]
    if beside is not None:
        stubs.append(Stub(name="pens-gpu", version=beside, import_names=("pens",), files=modules))
    venv = Venv.make(tmp_path / "venv", *stubs)
    links = place.links()
    make_wheel(
        links, "pens", "2.5+cpu", requires=["colours>=2"], modules={**modules, "pens/core.py": "of = 0\n"}
    )
    options = ApplyOptions(name=place.matrix, into=Target.KERNEL, python=venv.python)
    session = place.session(PIP_FIND_LINKS=str(links))
    found = plan_change(session, options)
    assert {**found.pins()} == {"pens": "3.0", "pens-gpu": "3.0"}
    notes = "\n".join(found.plan.notes)
    assert "not using pens 2.5+cpu, a `+cpu` build: pens" in notes
    assert "the same files" in notes
    assert apply_matrix(session, options).passed


def fetched(place: Place, *, offline: bool, **variables: str) -> list[str]:
    """Fetch the wheels of a plan from the lock, and return the paths that the index was asked for."""
    session = place.session(**variables)
    options = ApplyOptions(name=place.matrix, into=Target.ENV, python=sys.executable, offline=offline)
    found = plan_change(session, options)
    place.world.server.forget_requests()
    wheels = found.preparer.gather(found.plan, place.folder / "wheels", session.reporter)
    assert sorted(wheels) == sorted(ONES)
    return [path for path in place.world.server.paths if path.endswith(".whl")]


@pytest.mark.parametrize("variable", ["PIP_FIND_LINKS", "UV_FIND_LINKS", "COLABLOCK_FIND_LINKS"])
def test_a_file_with_the_hash_of_the_lock_is_taken_from_there(variable: str, place: Place) -> None:
    folder = place.folder / "copies"
    shutil.copytree(place.world.folder / "index", folder)
    assert fetched(place, offline=True, **{variable: str(folder)}) == []


def test_a_file_of_the_same_name_with_another_hash_is_not(place: Place) -> None:
    folder = place.folder / "copies"
    shutil.copytree(place.world.folder / "index", folder)
    (folder / "lines-1.0-py3-none-any.whl").write_bytes(b"another")
    asked = fetched(place, offline=False, PIP_FIND_LINKS=str(folder))
    assert [path.rpartition("/")[2] for path in asked] == ["lines-1.0-py3-none-any.whl"]
    shutil.rmtree(place.folder / "cache")
    with pytest.raises(FetchFailed, match=r"lines-1\.0-py3-none-any\.whl"):
        fetched(place, offline=True, PIP_FIND_LINKS=str(folder))


OVERRIDES = {
    "another version of a requirement": ([("colours", "1.5")], {"colours": "1.5"}),
    "a version of a root": ([("lines", "0.9")], {"lines": "0.9"}),
    "the newest of several": ([("lines", "0.9"), ("lines", "3.0")], {"lines": "3.0"}),
    "a local label": ([("lines", "1.0+mine")], {"lines": "1.0+mine"}),
    "a name that nobody asks for": ([("other", "1.0")], {}),
    "a wheel with a requirement that the index has": (
        [("lines", "3.0", ["dots"])],
        {"lines": "3.0", "dots": "1.0"},
    ),
    "a wheel whose requirement is with it": (
        [("lines", "3.0", ["points"]), ("points", "7")],
        {"lines": "3.0", "points": "7"},
    ),
    "a wheel that does not fit the lock's other versions": (
        [("lines", "3.0", ["colours>=2"])],
        {"lines": "1.0"},
    ),
}


@pytest.mark.parametrize(("wheels", "moved"), OVERRIDES.values(), ids=OVERRIDES)
def test_links_of_the_call_change_the_names_that_they_have_only(
    wheels: list[tuple[str, str]], moved: dict[str, str], place: Place
) -> None:
    make_wheel(place.world.folder / "index", "dots", "1.0")
    found, notes = planned(place, place.links(*wheels))
    assert found == {**ONES, **moved}
    assert "the versions are those of the lock" in notes
    changed = [name for name, version in moved.items() if version != ONES.get(name) and name != "dots"]
    assert ("from find-links, not from the lock" in notes) == bool(changed)
    unused = "not using lines 3.0 from find-links: it does not fit the matrix and the lock"
    assert (unused in notes) == (moved == {"lines": "1.0"})
    for name in changed:
        assert f"{name} {moved[name]}" in notes


def test_a_delta_lock_is_overridden_and_noted_likewise(place: Place) -> None:
    runtime = "colab-2026.08-gpu"
    lock_matrix(place.session(), ApplyOptions(name=place.matrix, runtime=runtime), LockOptions())
    links = place.links(("lines", "3.0"), ("shapes", "9.0", ["colours>=9"]))
    variables = {"PIP_FIND_LINKS": str(links)}
    plain = plan_change(place.session(**variables), ApplyOptions(name=place.matrix, runtime=runtime))
    before = {str(name): version for name, version in plain.pins().items()}
    assert before["lines"] == "2.0"
    options = ApplyOptions(name=place.matrix, runtime=runtime, find_links=(str(links),))
    found = plan_change(place.session(), options)
    assert {str(name): version for name, version in found.pins().items()} == {**before, "lines": "3.0"}
    notes = "\n".join(found.plan.notes)
    assert "; lines 3.0 is from find-links, not from the lock" in notes
    assert "not using shapes 9.0 from find-links: it does not fit the matrix and the lock" in notes


def test_links_of_the_machine_do_not_change_what_an_index_has(place: Place) -> None:
    links = place.links(("colours", "3.0"), ("lines", "2.0"))
    session = place.session(PIP_FIND_LINKS=str(links))
    made = lock_matrix(session, ApplyOptions(name=place.matrix), LockOptions(upgrade=True))
    text = made.text.decode()
    assert "file:" not in text
    assert made.moved == ("colours 1.0 -> 2.0", "lines 1.0 -> 2.0", "shapes 1.0 -> 2.0")


def test_a_lock_for_other_machines_has_no_build_of_a_folder_of_this_one(place: Place) -> None:
    """A bundle has its files with it, so it has the builds that an apply here would take."""
    entry = '\n[packages.lines]\nversion = "<4"\nprefer-local = "cpu"\n'
    Path(place.matrix).write_text(MATRIX.replace(', "lines"', "") + entry)
    links = place.links(("lines", "2.0+cpu"), ("crayons", "1.0"))
    session = place.session(PIP_FIND_LINKS=str(links))
    options = ApplyOptions(name=place.matrix)
    assert isinstance(session.reporter, Notes)
    without_lock = export_lock(session, options, form=Format.CONSTRAINTS).text
    lock_matrix(session, options, LockOptions(upgrade=True))
    for text in (without_lock, export_lock(session, options, form=Format.CONSTRAINTS).text):
        assert "lines==2.0\n" in text
    assert not any("works on this machine only" in note for note in session.reporter.notes)
    named = replace(options, find_links=(str(links),))
    made = lock_matrix(session, named, LockOptions(dry=True))
    assert made.moved == ("lines 2.0 -> 2.0+cpu",)
    only_here = lock_matrix(session, replace(options, with_=("crayons",)), LockOptions(dry=True))
    assert b"crayons-1.0-py3-none-any.whl" in only_here.text
    assert "the lock works on this machine only: it names local files of crayons" in session.reporter.notes


def test_a_lock_has_the_build_of_a_folder_where_no_index_has_a_version_that_fits(place: Place) -> None:
    entry = '\n[packages.lines]\nversion = ">=3"\nprefer-local = "cpu"\n'
    Path(place.matrix).write_text(MATRIX.replace(', "lines"', "") + entry)
    session = place.session(PIP_FIND_LINKS=str(place.links(("lines", "3.0+cpu"))))
    made = lock_matrix(session, ApplyOptions(name=place.matrix), LockOptions(dry=True))
    assert b"lines-3.0+cpu-py3-none-any.whl" in made.text
    assert isinstance(session.reporter, Notes)
    assert "the lock works on this machine only: it names local files of lines" in session.reporter.notes


def test_a_lock_takes_the_names_of_the_links_of_the_call_and_keeps_the_others(place: Place) -> None:
    links = place.links(("lines", "3.0"), ("shapes", "0.5"))
    options = ApplyOptions(name=place.matrix, find_links=(str(links),))
    made = lock_matrix(place.session(), options, LockOptions())
    assert made.moved == ("- colours 1.0", "lines 1.0 -> 3.0", "shapes 1.0 -> 0.5")


def test_links_of_the_machine_have_what_the_index_has_not(place: Place) -> None:
    links = place.links(("crayons", "1.0"))
    Path(place.matrix).write_text(MATRIX.replace('"lines"', '"crayons"'))
    found, _ = planned(place, PIP_FIND_LINKS=str(links))
    assert found["crayons"] == "1.0"


def test_only_arguments_override(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path), "PIP_FIND_LINKS": "a"}
    assert not read_settings(environ).links_override
    assert read_settings(environ, find_links=["b"]).links_override


ASKED: dict[str, tuple[dict[str, object], tuple[str, ...], dict[str, str]]] = {
    "by name": ({"requested": True}, (), {"lines": "1.0"}),
    "by colablock": ({"requested": True, "installer": "colablock"}, (), {"lines": "2.0"}),
    "as a dependency": ({}, (), {"lines": "2.0"}),
    "by name, in a version that the matrix excludes": (
        {"requested": True, "version": "0.1"},
        (),
        {"lines": "2.0"},
    ),
    "with the call": ({}, ("lines==1.0",), {"lines": "1.0"}),
}


def lock_for_a_runtime(place: Place) -> None:
    """Lock the matrix, which allows an older version of lines, for an image that has this Python."""
    Path(place.matrix).write_text(MATRIX.replace('"lines"', '"lines>=0.5"'))
    runtime = "colab-2026.08-gpu"
    lock_matrix(place.session(), ApplyOptions(name=place.matrix, runtime=runtime), LockOptions())
    lock = Path(place.matrix).with_name("pylock.tiny--colab-2026_08-gpu.toml")
    python = f'\npython = "{".".join(map(str, sys.version_info[:3]))}"\n'
    lock.write_text(re.sub(r'\npython = "[0-9.]+"\n', python, lock.read_text()))


def venv_of(folder: Path, stub: Stub, installer: str = "pip") -> Venv:
    """Make an environment with *stub*, installed by *installer*."""
    venv = Venv.make(folder, stub)
    (info,) = venv.site.glob(f"{stub.name}-*.dist-info")
    (info / "INSTALLER").write_text(f"{installer}\n")
    return venv


def test_a_lock_of_another_runtime_moves_nothing_that_the_user_asked_for(
    place: Place, tmp_path: Path
) -> None:
    lock_for_a_runtime(place)
    for at, (facts, with_, expected) in enumerate(ASKED.values()):
        stub = Stub(name="lines", version=str(facts.get("version", "1.0")), requested="requested" in facts)
        venv = venv_of(tmp_path / str(at), stub, str(facts.get("installer", "pip")))
        session = place.session()
        options = ApplyOptions(name=place.matrix, into=Target.KERNEL, python=venv.python, with_=with_)
        found = {str(name): version for name, version in plan_change(session, options).pins().items()}
        assert found == {"shapes": "2.0", "colours": "2.0", **expected}
        note = "it moves what was installed here by name: lines 1.0 to 2.0"
        assert isinstance(session.reporter, Notes)
        assert (note in "\n".join(session.reporter.notes)) == (stub.requested and at == 0)


@pytest.mark.parametrize(
    ("requires", "lines", "note"),
    [
        ((), "1.0", "lines 1.0 to 2.0; the plan keeps it, and takes the others from the lock"),
        (("dots",), "2.0", "lines 1.0 to 2.0; no plan can keep it: "),
    ],
)
def test_a_lock_that_moves_what_the_user_asked_for_serves_without_an_index(
    place: Place, tmp_path: Path, requires: tuple[str, ...], lines: str, note: str
) -> None:
    lock_for_a_runtime(place)
    shutil.rmtree(place.folder / "cache")
    dependency = venv_of(tmp_path / "first", Stub(name="lines", version="1.0"))
    options = ApplyOptions(name=place.matrix, into=Target.KERNEL, python=dependency.python)
    assert apply_matrix(place.session(), options).passed  # this machine has the files now, and no page
    stub = Stub(name="lines", version="1.0", requested=True, requires=requires)
    options = replace(options, python=venv_of(tmp_path / "second", stub).python)
    with refused(place.world, *TWOS, "dots"):
        for variables in ({}, {"COLABLOCK_OFFLINE": "1"}):
            session = place.session(**variables)
            assert plan_change(session, options).pins() == {**TWOS, "lines": lines}
            assert isinstance(session.reporter, Notes)
            assert note in "\n".join(session.reporter.notes)
        assert apply_matrix(place.session(COLABLOCK_OFFLINE="1"), options).passed


@contextmanager
def refused(world: World, *names: str) -> Iterator[None]:
    """Let the index refuse the pages of *names*."""
    for name in names:
        world.server.fault(f"/simple/{name}/", Fault(status=403))
    try:
        yield
    finally:
        for name in names:
            world.server.fault(f"/simple/{name}/", Fault(times=0))
