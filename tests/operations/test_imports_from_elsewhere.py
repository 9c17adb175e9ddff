"""Packages whose files are hidden from elsewhere: the proof names the other place."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from colablock.errors import NotProven, RolledBack
from colablock.operations.last_apply import verify_last_apply
from colablock.planning.plan import Target
from tests.support.runtime import Stub, build_site
from tests.support.standing import MATRIX, Standing, make_standing
from tests.support.trees import installed_listing

Hide = Callable[[Standing, Path], object]

FINDER = """\
import sys
from importlib.util import spec_from_file_location
class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "demo":
            return spec_from_file_location(name, {file!r}, submodule_search_locations=[{folder!r}])
sys.meta_path.insert(0, Finder)
"""


@pytest.fixture
def standing(tmp_path: Path) -> Standing:
    return make_standing(tmp_path)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a folder with a package `demo` without metadata, as a checkout has it."""
    package = tmp_path / "clone" / "demo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '9'\n")
    return package.parent


def path_file(text: str) -> Hide:
    def hide(standing: Standing, clone: Path) -> None:
        (standing.site / "__editable__.demo-0.1.pth").write_text(text.format(clone=str(clone)))

    return hide


def finder(standing: Standing, clone: Path) -> None:
    """Leave the import hook of an editable installation."""
    package = clone / "demo"
    text = FINDER.format(file=str(package / "__init__.py"), folder=str(package))
    (standing.site / "__editable___demo_finder.py").write_text(text)
    (standing.site / "__editable__.demo-0.1.pth").write_text("import __editable___demo_finder\n")


def at_start(standing: Standing, clone: Path) -> None:
    (standing.site / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(clone)!r})\n")


def single_file(standing: Standing, clone: Path) -> None:
    (clone / "demo" / "__init__.py").rename(clone / "demo.py")
    (clone / "demo").rmdir()
    at_start(standing, clone)


HIDDEN: Mapping[str, Hide] = {
    "a path file that puts a folder first": path_file("import sys; sys.path.insert(0, {clone!r})\n"),
    "a path file of setuptools": path_file(
        "import sys; sys.__plen = len(sys.path)\n{clone}\n"
        "import sys; new = sys.path[sys.__plen:]; del sys.path[sys.__plen:]; sys.path[0:0] = new\n"
    ),
    "a stale import hook": finder,
    "sitecustomize": at_start,
    "a single file": single_file,
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_an_import_from_another_place_fails_and_is_named(hide: Hide, standing: Standing, clone: Path) -> None:
    hide(standing, clone)
    before = installed_listing(standing.place.venv.folder)
    with pytest.raises(RolledBack) as caught:
        standing.apply()
    told = caught.value.message
    assert f"`demo` is imported from `{clone}/demo" in told
    assert f"not from `{standing.site}/demo` of demo 2.0" in told
    if (standing.site / "__editable__.demo-0.1.pth").exists() or hide is finder:
        assert "__editable__" in told.partition("demo 2.0: ")[2]
    assert installed_listing(standing.place.venv.folder) == before


def test_what_is_kept_is_compared_too(standing: Standing, clone: Path) -> None:
    (standing.place.folder / "tiny.toml").write_text(MATRIX.replace("2.0", "1.0"))
    assert standing.apply().passed
    at_start(standing, clone)
    with pytest.raises(NotProven, match="`demo` is imported from"):
        standing.apply()
    (check,) = (one for one in verify_last_apply(standing.session(), "tiny").checks if not one.passed)
    assert (check.kind, check.subject) == ("import", "demo")


def test_a_path_file_behind_the_site_hides_nothing(standing: Standing, clone: Path) -> None:
    path_file("{clone}\n")(standing, clone)
    (check,) = (one for one in standing.apply().checks if one.kind == "import")
    assert (check.passed, check.detail) == (True, "2.0")


@pytest.mark.parametrize("module", ["demo/__init__.py", "demo.py", "demo/sub.py"])
def test_programs_that_import_from_elsewhere_are_named_beforehand(
    module: str, standing: Standing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proofs and training use neither `PYTHONPATH` nor the working folder."""
    other = tmp_path / "other" / module
    other.parent.mkdir(parents=True)
    other.write_text("raise SystemExit('this must not run')\n")
    folder = tmp_path / "other"
    is_namespace = module == "demo/sub.py"  # the package of the site comes before it
    for variables, working, words in (
        ({"PYTHONPATH": f"/nowhere{os.pathsep}{folder}"}, tmp_path, "started with this PYTHONPATH"),
        ({"PYTHONPATH": ""}, folder, "started in this folder"),
    ):
        standing.environ.update(variables)
        monkeypatch.chdir(working)
        told = [f"programs that are {words} import `demo` from `{other}`"]
        notes = [note for note in standing.plan().beforehand if "started" in note]
        assert notes == ([] if is_namespace else told)
        chosen = standing.plan(into=None)
        away = bool(variables["PYTHONPATH"]) and not is_namespace
        assert chosen.target is (Target.ENV if away else Target.KERNEL)
        assert not away or told[0] in chosen.why_target
    assert standing.apply().passed
    standing.notes.notes.clear()
    assert verify_last_apply(standing.session(), "tiny").passed
    assert [note for note in standing.notes.notes if "started" in note] == ([] if is_namespace else told)


def test_a_namespace_in_place_of_a_package_is_named(standing: Standing, tmp_path: Path) -> None:
    record = standing.site / "demo-1.0.dist-info" / "RECORD"
    (standing.place.folder / "tiny.toml").write_text(MATRIX.replace("2.0", "1.0"))
    build_site(tmp_path / "parts", [Stub(name="part", version="1", import_names=(), files={"demo/a.py": ""})])
    (standing.site / "part.pth").write_text(f"{tmp_path / 'parts'}\n")
    for path in (standing.site / "demo").iterdir():
        path.unlink()
    (standing.site / "demo").rmdir()
    assert "demo/__init__.py" in record.read_text()
    with pytest.raises(NotProven, match=r"imported from .*/parts/demo"):
        standing.apply()
