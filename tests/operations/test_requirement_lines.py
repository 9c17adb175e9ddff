"""Locks of small matrices: several lines of one project, sdists only, and pages without hashes."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock.errors import ColablockError, InvalidInput, NoSolution
from colablock.operations.lock import LockResult, lock_matrix
from colablock.operations.plan import plan_change
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions, LockOptions
from colablock.planning.plan import Target
from tests.support.fixtures import world_fixture
from tests.support.reporters import Notes
from tests.support.server import Fault
from tests.support.wheels import make_sdist, make_wheel
from tests.support.world import World

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def fill(folder: Path) -> None:
    """Write an index of a project with two extras, and of one with a wheel and an sdist."""
    index = folder / "index"
    for version in ("1.0", "1.5", "2.0"):
        needs = ["red; extra == 'a'", "blue>=1; extra == 'b'"]
        make_wheel(index, "demo", version, extras=["a", "b"], requires=needs)
    make_wheel(index, "red", "1.0")
    make_wheel(index, "blue", "1.0")
    make_wheel(index, "shapes", "1.0", requires=["demo>=1.5"])
    make_wheel(index, "native", "1.0", tag="cp310-cp310-win_amd64")
    make_wheel(index, "native", "1.0")
    make_sdist(index, "native", "1.0")
    make_wheel(index, "plain", "1.0")
    make_wheel(index, "bare", "1.0")


world = world_fixture(fill, scope="module")


class Place:
    """A folder for a matrix of the world."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.matrix = folder / "tiny.toml"
        self.notes = Notes()
        environ = world.environ(COLABLOCK_CACHE_DIR=str(folder / "cache"))
        self.session = Session(environ=environ, reporter=self.notes)

    def write(self, text: str) -> None:
        self.matrix.write_text(f"schema = 1\nname = 'tiny'\n{text}\n")

    def lock(self, **options: Any) -> LockResult:
        wanted = LockOptions(all_files=options.pop("all_files", None))
        return lock_matrix(self.session, ApplyOptions(name=str(self.matrix), **options), wanted)

    def pins(self) -> dict[str, str]:
        packages = tomllib.loads(self.lock().text.decode())["packages"]
        return {package["name"]: package["version"] for package in packages}

    def files(self, name: str, **options: Any) -> list[str]:
        """Return the names of the files that the lock lists for a package."""
        packages = tomllib.loads(self.lock(**options).text.decode())["packages"]
        package = next(one for one in packages if one["name"] == name)
        listed = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else ())]
        return [one["name"] for one in listed]


@pytest.fixture
def place(world: World, tmp_path: Path) -> Place:
    return Place(world, tmp_path)


# -- several lines of one project

LINES = {
    "the same line": (["demo>=1", "demo>=1"], {"demo": "2.0"}),
    "two bounds": (["demo>=1.1", "demo<2"], {"demo": "1.5"}),
    "a bare line and a pin": (["demo", "demo==1.0"], {"demo": "1.0"}),
    "three lines": (["demo", "demo<2", "demo!=1.5"], {"demo": "1.0"}),
    "two extras": (["demo[a]", "demo[b]"], {"demo": "2.0", "red": "1.0", "blue": "1.0"}),
    "an extra on one line only": (["demo[a]", "demo<2"], {"demo": "1.5", "red": "1.0"}),
    "extras and bounds": (["demo[a]<2", "demo[b]>1"], {"demo": "1.5", "red": "1.0", "blue": "1.0"}),
    "another spelling": (["Demo>=1.1", "DEMO<2"], {"demo": "1.5"}),
    "a marker that holds": (["demo", "demo<2; python_version>'3'"], {"demo": "1.5"}),
    "a marker that does not": (["demo", "demo<2; python_version<'3'"], {"demo": "2.0"}),
    "markers that exclude each other": (
        ["demo==1.0; python_version<'3'", "demo==1.5; python_version>'3'"],
        {"demo": "1.5"},
    ),
    "an extra below a marker": (["demo", "demo[a]; python_version<'3'"], {"demo": "2.0"}),
    "a line that another project narrows": (["demo<2", "shapes", "demo"], {"demo": "1.5", "shapes": "1.0"}),
}


@pytest.mark.parametrize(("lines", "expected"), LINES.values(), ids=LINES)
def test_the_lines_of_a_project_are_one_intersection(
    lines: list[str], expected: dict[str, str], place: Place
) -> None:
    place.write(f"requirements = {lines!r}")
    assert place.pins() == expected


CONTRADICTIONS = {
    "two pins": (["demo==1.0", "demo==1.5"], ["demo==1.0", "demo==1.5"]),
    "bounds": (["demo<1.5", "demo>=2"], ["demo<1.5", "demo>=2"]),
    "extras": (["demo[a]==1.0", "demo[b]==2.0"], ["demo==1.0", "demo==2.0"]),
    "one that holds": (["demo==1.0", "demo==2.0; python_version>'3'"], ["demo==1.0", "demo==2.0"]),
}


@pytest.mark.parametrize(("lines", "quoted"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_lines_that_contradict_each_other_are_explained(
    lines: list[str], quoted: list[str], place: Place
) -> None:
    place.write(f"requirements = {lines!r}")
    with pytest.raises(NoSolution) as caught:
        place.lock()
    for words in (*quoted, "requirements[0]", "requirements[1]"):
        assert words in caught.value.message


def test_two_urls_of_a_project_are_a_fault(place: Place) -> None:
    place.write(
        "requirements = ['demo @ https://a.example/demo-1.whl', 'demo @ https://a.example/demo-2.whl']"
    )
    with pytest.raises(
        InvalidInput, match=r"requirements\[1\]: `demo` has two URLs: `requirements\[0\]` names"
    ):
        place.lock()


# -- no-binary


@pytest.mark.parametrize("names", [["native"], [":all:"]])
@pytest.mark.parametrize("all_files", [None, True])
def test_no_binary_holds_in_the_lock(names: list[str], all_files: bool | None, place: Place) -> None:
    place.write(f"requirements = ['native']\n[options]\nno-binary = {names!r}\nallow-build = ['native']")
    assert place.files("native", all_files=all_files) == ["native-1.0.tar.gz"]
    place.write("requirements = ['native']")
    assert len(place.files("native", all_files=True)) == 3


# -- pages without hashes

WHEEL = "{}-1.0-py3-none-any.whl"
PAGES = {
    "no hash": "",
    "md5": "#md5={md5}",
    "sha1": "#sha1={sha1}",
}


def serve(place: Place, name: str, fragment: str) -> bytes:
    """Let the index list one file of a project, with *fragment* after its URL; return the file."""
    wheel = WHEEL.format(name)
    content = (place.world.folder / "index" / wheel).read_bytes()
    hashes = {algorithm: hashlib.new(algorithm, content).hexdigest() for algorithm in ("md5", "sha1")}
    link = f'<a href="/files/{wheel}{fragment.format(**hashes)}">{wheel}</a>'
    place.world.server.fault(f"/simple/{name}/", Fault(body=link.encode(), content_type="text/html"))
    place.write(f"requirements = ['{name}']")
    return content


@pytest.mark.parametrize("fragment", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("all_files", [None, True])
def test_a_lock_has_the_hash_of_a_file_that_its_page_lists_without(
    fragment: str, all_files: bool | None, place: Place
) -> None:
    content = serve(place, "plain", fragment)
    (package,) = tomllib.loads(place.lock(all_files=all_files).text.decode())["packages"]
    (wheel,) = package["wheels"]
    assert (wheel["name"], wheel["size"]) == (WHEEL.format("plain"), len(content))
    assert wheel["hashes"] == {"sha256": hashlib.sha256(content).hexdigest()}
    assert f"`{WHEEL.format('plain')}` is listed without a sha256" in "\n".join(place.notes.notes)
    options = ApplyOptions(name=str(place.matrix), into=Target.ENV, python=sys.executable)
    planned = plan_change(place.session, options)
    (step,) = planned.plan.steps
    assert step.artifact is not None
    assert step.artifact.hashes == wheel["hashes"]


def test_a_file_with_a_wrong_weak_hash_is_not_locked(place: Place) -> None:
    serve(place, "plain", "#md5=" + "0" * 32)
    with pytest.raises(ColablockError, match="md5"):
        place.lock()


def test_a_plan_without_a_lock_takes_no_file_without_a_hash(place: Place) -> None:
    serve(place, "bare", "")
    options = ApplyOptions(name=str(place.matrix), into=Target.ENV, python=sys.executable)
    with pytest.raises(NoSolution) as caught:
        plan_change(place.session, options)
    assert "`colablock lock` can fetch it and record its hash" in str(caught.value)
    place.lock()
    (place.matrix.parent / "cache").rename(place.matrix.parent / "old")
    place.world.server.fault(f"/files/{WHEEL.format('bare')}", Fault(body=b"another file"))
    planned = plan_change(place.session, replace(options))
    with pytest.raises(ColablockError, match="sha256"):
        planned.preparer.gather(planned.plan, place.matrix.parent / "wheels", place.notes)
