"""Environments as people have them: leftovers, several records of a name, no RECORD, links, other places."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from colablock.environment.accelerator import Accelerator
from colablock.environment.snapshot import take_snapshot
from colablock.errors import Refused
from colablock.operations.rollback import undo_changes
from colablock.planning.plan import Action, Remedy, Target
from tests.support.runtime import Stub, build_site
from tests.support.standing import DEMO, MATRIX, Standing, make_standing
from tests.support.trees import installed_listing
from tests.support.wheels import make_wheel


@pytest.fixture
def standing(tmp_path: Path) -> Standing:
    return make_standing(tmp_path)


Spoil = Callable[[Standing], object]


def interrupted(version: str) -> Spoil:
    """Leave what pip leaves when it is killed: everything of `demo` is renamed."""

    def spoil(standing: Standing) -> None:
        standing.copy_info(f"~emo-{version}.dist-info", version)
        shutil.rmtree(standing.info)
        (standing.site / "demo").rename(standing.site / "~emo")

    return spoil


def husk(name: str, file: str) -> Spoil:
    """Leave a metadata folder without metadata, with one empty *file*."""

    def spoil(standing: Standing) -> None:
        (standing.site / name).mkdir()
        if file:
            (standing.site / name / file).touch()

    return spoil


def metadata_folder(standing: Standing) -> None:
    (standing.info / "METADATA").unlink()
    (standing.info / "METADATA").mkdir()


def second_copy(standing: Standing) -> None:
    copy = build_site(standing.place.folder / "copy", [Stub(name="demo", version="2.0")])
    standing.environ["PYTHONPATH"] = str(copy)


RECORDS: Mapping[str, Spoil] = {
    "a leftover of another version": lambda one: one.copy_info("~emo-0.5.dist-info", "0.5"),
    "a leftover of the wanted version": lambda one: one.copy_info("~emo-2.0.dist-info", "2.0"),
    "a leftover of pip before 20": lambda one: one.copy_info("-emo-2.0.dist-info", "2.0"),
    "only leftovers of the wanted version": interrupted("2.0"),
    "only leftovers of another version": interrupted("1.0"),
    "a renamed folder": lambda one: one.copy_info("demo_old-2.0.dist-info", "2.0"),
    "a signature": lambda one: (one.info / "RECORD.jws").write_text("{}"),
    "an unlisted folder": lambda one: shutil.copytree(one.info, one.info / "licenses"),
    "an unlisted link": lambda one: (one.info / "link").symlink_to(one.site / "demo"),
    "two records": lambda one: build_site(one.site, [Stub(name="demo", version="1.1")]),
    "four records, spelled differently": lambda one: build_site(
        one.site, [Stub(name="DEMO", version=version) for version in ("0.1", "0.2", "3.0")]
    ),
    "a folder without metadata": husk("demo-0.9.dist-info", ""),
    "an empty RECORD without metadata": husk("demo-0.9.dist-info", "RECORD"),
    "a folder without metadata, in another spelling": husk("DEMO-3.dist-info", "WHEEL"),
    "only a record without metadata": lambda one: (one.info / "METADATA").unlink(),
    "metadata that is a folder": metadata_folder,
    "a copy on PYTHONPATH": second_copy,
    "package files without any record": lambda one: shutil.rmtree(one.info),
}


@pytest.mark.parametrize("spoil", RECORDS.values(), ids=RECORDS)
def test_no_record_of_what_was_replaced_survives(spoil: Spoil, standing: Standing) -> None:
    spoil(standing)
    before = installed_listing(standing.place.venv.folder)
    report = standing.apply()
    assert (report.passed, report.changed) == (True, True)
    assert standing.answers() == ["2.0", "2.0"]
    found = [path.name for path in standing.site.glob("*.dist-info") if path.name[:4].lower() == "demo"]
    assert [name for name in found if "old" not in name] == ["demo-2.0.dist-info"]
    session = standing.session()
    undo_changes(session, standing.place.venv.python)
    assert installed_listing(standing.place.venv.folder) == before


def test_leftovers_are_noted_with_the_command_that_deletes_them(standing: Standing) -> None:
    standing.copy_info("~emo-0.5.dist-info", "0.5")
    (standing.site / "~emo").mkdir()
    (note,) = (note for note in standing.plan().notes if "~emo" in note)
    assert "`~emo`, `~emo-0.5.dist-info`" in note
    command = note.partition("to delete: `")[2].rstrip("`")
    subprocess.run(["sh", "-c", command], check=True)  # noqa: S607
    assert not list(standing.site.glob("~*"))
    assert not [note for note in standing.plan().notes if "~emo" in note]


def rewrite_record(change: Callable[[str], str]) -> Spoil:
    def spoil(standing: Standing) -> None:
        record = standing.info / "RECORD"
        record.write_text(change(record.read_text()))

    return spoil


def as_egg(name: str) -> Spoil:
    def spoil(standing: Standing) -> None:
        shutil.rmtree(standing.info)
        text = "Metadata-Version: 1.1\nName: demo\nVersion: 1.0\n"
        path = standing.site / name
        if name.endswith("py3.egg-info"):
            path.mkdir()
            path = path / "PKG-INFO"
        path.write_text(text)

    return spoil


def as_egg_link(standing: Standing) -> None:
    """Install `demo` by `setup.py develop` from a folder in the environment, as `pip install -e git+...`."""
    project = standing.place.venv.folder / "src" / "demo"
    (project / "demo.egg-info").mkdir(parents=True)
    (project / "demo.egg-info" / "PKG-INFO").write_text("Metadata-Version: 1.1\nName: demo\nVersion: 1.0\n")
    shutil.rmtree(standing.info)
    (standing.site / "demo").rename(project / "demo")
    (standing.site / "easy-install.pth").write_text(f"{project}\n")
    (standing.site / "demo.egg-link").write_text(f"{project}\n.")


def as_conda(standing: Standing) -> None:
    (standing.info / "RECORD").unlink()
    (standing.info / "INSTALLER").write_text("conda\n")


def as_editable(standing: Standing) -> None:
    """Install `demo` in editable mode, and lose its RECORD."""
    (standing.site / "demo").rename(standing.place.folder / "demo")
    (standing.site / "__editable__.demo.pth").write_text(f"{standing.place.folder}\n")
    origin = {"url": standing.place.folder.as_uri(), "dir_info": {"editable": True}}
    (standing.info / "direct_url.json").write_text(json.dumps(origin))
    (standing.info / "RECORD").unlink()


def linked(to: Callable[[Standing], Path]) -> Spoil:
    def spoil(standing: Standing) -> None:
        elsewhere = to(standing)
        elsewhere.parent.mkdir(exist_ok=True)
        (standing.site / "demo").rename(elsewhere)
        (standing.site / "demo").symlink_to(elsewhere)

    return spoil


def linked_of_nobody(standing: Standing) -> None:
    linked(lambda one: one.place.venv.folder / "src" / "demo")(standing)
    shutil.rmtree(standing.info)


def linked_info(standing: Standing) -> None:
    standing.info.rename(standing.place.folder / "info")
    standing.info.symlink_to(standing.place.folder / "info")


def without_both(standing: Standing) -> None:
    (standing.info / "RECORD").unlink()
    (standing.info / "METADATA").unlink()


def unreadable(standing: Standing) -> None:
    (standing.info / "RECORD").unlink()
    (standing.info / "RECORD").mkdir()


FIXED: Mapping[str, tuple[Spoil, str]] = {
    "no RECORD": (lambda one: (one.info / "RECORD").unlink(), "it has no RECORD"),
    "an empty RECORD": (rewrite_record(lambda _: ""), "its RECORD is empty"),
    "a RECORD of blank lines": (rewrite_record(lambda _: "\n\n"), "its RECORD is empty"),
    "a RECORD that is a folder": (unreadable, "its RECORD cannot be read"),
    "a RECORD of null characters": (rewrite_record(lambda text: "\0" * len(text)), "cannot be read"),
    "a RECORD that was cut": (rewrite_record(lambda text: text[:60]), "its RECORD is not complete"),
    "a RECORD of something else": (rewrite_record(lambda _: "{}\n"), "its RECORD is not complete"),
    "neither RECORD nor metadata": (without_both, "has no RECORD"),
    "a folder of setuptools": (as_egg("demo-1.0-py3.egg-info"), "installed by `setup.py`"),
    "a file of distutils": (as_egg("demo-1.0.egg-info"), "installed by `setup.py`"),
    "an egg-link": (as_egg_link, "installed by `setup.py`"),
    "an editable installation": (as_editable, "it has no RECORD"),
    "conda": (as_conda, "it has no RECORD"),
    "a linked package": (linked(lambda one: one.place.folder / "clone" / "demo"), "is a symbolic link to"),
    "a linked package in the environment": (
        linked(lambda one: one.place.venv.folder / "src" / "demo"),
        "is a symbolic link to",
    ),
    "a linked package of nobody": (linked_of_nobody, "is a symbolic link to"),
    "a linked metadata folder": (linked_info, "is a symbolic link to"),
}


@pytest.mark.parametrize(("spoil", "why"), FIXED.values(), ids=FIXED)
def test_the_plan_says_what_cannot_be_replaced_and_chooses_another_target(
    spoil: Spoil, why: str, standing: Standing
) -> None:
    spoil(standing)
    before = installed_listing(standing.place.folder)
    plan = standing.plan(into=None)
    assert plan.target is Target.ENV
    assert why in plan.why_target
    with pytest.raises(Refused, match=r"`demo`.* cannot be replaced in") as caught:
        standing.apply()
    assert why in caught.value.message
    assert "`--into env`" in str(caught.value.hint)
    after = installed_listing(standing.place.folder)
    assert {path: after[path] for path in before} == before


def test_a_damaged_record_of_a_bystander_changes_nothing(standing: Standing) -> None:
    build_site(standing.site, [Stub(name="beside", version="1")])
    record = standing.site / "beside-1.dist-info" / "RECORD"
    record.write_bytes(b"beside/__init__.py,\0\xff,\n\0")
    assert standing.apply().passed
    assert standing.answers() == ["2.0", "2.0"]


UNWANTED = '[absent]\nbeside = { version = "<9", why = "it is in the way" }\n'


@pytest.mark.parametrize("name", ["RECORD", "METADATA"])
def test_what_has_no_record_is_not_planned_to_be_removed(name: str, standing: Standing) -> None:
    build_site(standing.site, [Stub(name="beside", version="1", requires=("demo<2",))])
    (standing.site / "beside-1.dist-info" / name).unlink()
    found = {item.name: item for item in standing.plan().breakages}
    if name == "METADATA":  # it is not installed
        assert found == {}
        return
    (item,) = found.values()
    assert item.remedy is Remedy.LEAVE
    assert "cannot be removed: it has no RECORD" in item.because[-1]
    (standing.place.folder / "tiny.toml").write_text(MATRIX.replace("[verify]", f"{UNWANTED}[verify]"))
    with pytest.raises(Refused, match="excludes beside 1, but beside cannot be removed: it has no RECORD"):
        standing.plan()


def test_what_is_in_the_base_is_out_of_reach(tmp_path: Path, standing: Standing) -> None:
    base = build_site(
        tmp_path / "base",
        [DEMO, Stub(name="beside", version="1", requires=("demo<2",)), Stub(name="third", version="1")],
    )
    shutil.rmtree(standing.info)
    shutil.rmtree(standing.site / "demo")
    (standing.site / "base.pth").write_text(f"{base}\n")
    before = installed_listing(base)
    plan = standing.plan()
    (step,) = plan.steps
    assert (step.action, step.name, step.previous) == (Action.INSTALL, "demo", None)
    assert [note for note in plan.notes if note.startswith("demo 1.0 is out of reach")]
    (item,) = plan.breakages
    assert (item.name, item.remedy) == ("beside", Remedy.LEAVE)
    assert "it is out of reach" in item.because[-1]
    assert standing.apply().passed
    assert standing.answers() == ["2.0", "2.0"]
    assert installed_listing(base) == before
    undo_changes(standing.session(), standing.place.venv.python)
    assert standing.answers() == ["1.0", "1.0"]


def test_what_hides_the_site_sends_the_plan_elsewhere(tmp_path: Path, standing: Standing) -> None:
    first = build_site(tmp_path / "first", [Stub(name="demo", version="1.5")])
    (standing.site / "first.pth").write_text(f"import sys; sys.path.insert(0, {str(first)!r})\n")
    plan = standing.plan(into=None)
    assert plan.target is Target.ENV
    assert f"`{first / 'demo-1.5.dist-info'}` comes before" in plan.why_target
    with pytest.raises(Refused, match="out of reach, and would hide a new version"):
        standing.plan()


def test_a_version_that_is_not_valid_is_replaced_and_put_back(standing: Standing) -> None:
    shutil.rmtree(standing.info)
    build_site(standing.site, [Stub(name="demo", version="1.1build1")])
    before = installed_listing(standing.place.venv.folder)
    (step,) = standing.plan().steps
    assert (step.action, step.previous, step.version) == (Action.REPLACE, "1.1build1", "2.0")
    assert standing.apply().passed
    assert standing.answers() == ["2.0", "2.0"]
    undo_changes(standing.session(), standing.place.venv.python)
    assert installed_listing(standing.place.venv.folder) == before


def test_the_requirements_of_a_version_that_is_not_valid_are_judged(standing: Standing) -> None:
    odd = Stub(name="odd", version="1.1build1", requires=("demo<2",))
    fine = Stub(name="fine", version="2004d", requires=("demo", "odd>=1"))
    build_site(standing.site, [odd, fine])
    plan = standing.plan()
    (item,) = plan.breakages
    assert (item.name, item.version, item.remedy) == ("odd", "1.1build1", Remedy.LEAVE)
    assert item.because[:2] == ("demo 1.0 becomes 2.0", "odd 1.1build1 needs demo<2")
    assert "not valid (PEP 440)" in item.because[2]
    assert standing.plan(into=None).target is Target.ENV
    assert standing.apply().passed
    assert standing.answers() == ["2.0", "2.0"]


@pytest.mark.parametrize("with_base", [True, False], ids=["with the base", "without it"])
def test_the_user_site_is_out_of_reach(with_base: bool, tmp_path: Path, standing: Standing) -> None:
    """A virtual environment that includes its base has the user site, too, behind its own."""
    user = tmp_path / "user" / "lib" / standing.site.parent.name / "site-packages"
    build_site(
        user, [Stub(name="beside", version="1", requires=("demo<2",)), Stub(name="demo", version="1.5")]
    )
    standing.environ.update(PYTHONUSERBASE=str(tmp_path / "user"), PYTHONNOUSERSITE="")
    config = standing.place.venv.folder / "pyvenv.cfg"
    text = config.read_text().replace("packages = false", f"packages = {str(with_base).lower()}")
    config.write_text(text)
    plan = standing.plan()
    assert {(step.name, step.action) for step in plan.steps} == {("demo", Action.REPLACE)}
    assert [(item.name, item.remedy) for item in plan.breakages] == [("beside", Remedy.LEAVE)] * with_base
    assert all("out of reach" in item.because[-1] for item in plan.breakages)
    assert standing.apply().passed
    shutil.rmtree(standing.site / "demo")
    shutil.rmtree(standing.site / "demo-2.0.dist-info")
    (step,) = standing.plan().steps
    assert (step.name, step.action) == ("demo", Action.INSTALL)
    assert (user / "demo-1.5.dist-info").is_dir()


def test_the_kernel_is_read_as_training_imports(
    tmp_path: Path, standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy on `PYTHONPATH` or in the working folder does not count as what is installed."""
    folders = {name: build_site(tmp_path / name, [Stub(name=name, version="1")]) for name in ("a", "b", "c")}
    monkeypatch.chdir(folders["a"])
    for path in reversed(["", *folders.values(), str(standing.site)]):
        monkeypatch.syspath_prepend(str(path))
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{folders['b']}{os.pathsep}"}
    found = take_snapshot(environ=environ, accelerator=Accelerator()).installed.keys()
    assert found >= {"demo", "c"}
    assert not found & {"b"}


def test_a_package_of_nobody_goes_as_a_whole(standing: Standing) -> None:
    """Somebody has deleted its RECORD: modules of the old version must not stay beside the new ones."""
    shutil.rmtree(standing.info)
    (standing.site / "mine").mkdir()
    (standing.site / "mine" / "data.txt").write_text("of the user\n")
    before = installed_listing(standing.place.venv.folder)
    make_wheel(standing.place.wheels, "demo", "2.0", import_names=["demo", "mine"])
    assert standing.apply().passed
    assert not (standing.site / "demo" / "old.py").exists()
    assert (standing.site / "mine" / "data.txt").exists()
    assert [note for note in standing.notes.notes if f"`{standing.site / 'demo'}` belongs to no" in note]
    undo_changes(standing.session(), standing.place.venv.python)
    assert installed_listing(standing.place.venv.folder) == before


@pytest.mark.parametrize("place", ["src", "../clone"])
def test_a_link_with_another_name_than_the_project_is_named_before_anything_moves(
    place: str, standing: Standing
) -> None:
    make_wheel(standing.place.wheels, "demo", "2.0", import_names=["demo", "other_name"])
    elsewhere = standing.place.venv.folder / place / "other_name"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text("")
    (standing.site / "other_name").symlink_to(elsewhere)
    before = installed_listing(standing.place.folder)
    with pytest.raises(Refused, match="symbolic link"):
        standing.apply()
    after = installed_listing(standing.place.folder)
    assert {path: after[path] for path in before} == before


def as_develop(standing: Standing) -> None:
    """Install `demo` by `setup.py develop` from a checkout outside of the environment."""
    as_egg_link(standing)
    project = standing.place.folder / "checkout"
    (standing.place.venv.folder / "src" / "demo").rename(project)
    (standing.site / "easy-install.pth").write_text(f"{project}\n")
    (standing.site / "demo.egg-link").write_text(f"{project}\n.")


def as_editable_with_record(standing: Standing) -> None:
    """Install `demo` in editable mode (PEP 660)."""
    shutil.rmtree(standing.info)
    project = standing.place.folder / "checkout"
    project.mkdir()
    (standing.site / "demo").rename(project / "demo")
    origin = {"url": project.as_uri(), "dir_info": {"editable": True}}
    path_file = {"__editable__.demo-1.0.pth": f"{project}\n"}
    stub = Stub(name="demo", version="1.0", import_names=(), files=path_file, direct_url=origin)
    build_site(standing.site, [stub])


@pytest.mark.parametrize("install", [as_develop, as_editable_with_record])
def test_a_checkout_stays_when_its_installation_is_replaced(install: Spoil, standing: Standing) -> None:
    install(standing)
    assert standing.answers() == ["1.0", "1.0"]
    before = installed_listing(standing.place.folder)
    assert standing.apply().passed
    assert standing.answers() == ["2.0", "2.0"]
    undo_changes(standing.session(), standing.place.venv.python)
    assert standing.answers() == ["1.0", "1.0"]
    after = installed_listing(standing.place.folder)
    assert {path: after.get(path) for path in before} == before
