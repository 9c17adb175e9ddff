"""Offline, the cache and the folders of find-links are one pool: for the solve, the lock and the fetch."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from colablock.errors import FetchFailed, InvalidInput
from colablock.operations.lock import lock_matrix
from colablock.operations.plan import plan_change
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions, LockOptions
from colablock.planning.plan import Plan, Target
from tests.support.fixtures import world_fixture
from tests.support.reporters import Notes
from tests.support.runtime import Stub, Venv
from tests.support.wheels import make_sdist, make_wheel
from tests.support.world import World

Requirements = Mapping[str, Sequence[str]]
MATRIX = 'schema = 1\nname = "tiny"\nrequirements = {roots}\n'


def write_wheels(folder: Path, wheels: Requirements) -> Path:
    folder.mkdir(exist_ok=True)
    for key, requires in wheels.items():
        name, version = key.split()
        make_wheel(folder, name, version, requires=requires)
    return folder


# A name that cannot be looked up has no other versions


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What is installed, the wheels of find-links, and the versions of the plan without a network."""

    installed: Requirements
    links: Requirements
    roots: tuple[str, ...] = ("trainer",)
    pins: Mapping[str, str]


ALONE = {
    "a parent released by a conflict elsewhere": Alone(
        installed={"engine 1.0": ["other==1.0"], "other 1.0": ["engine", "helper"], "helper 3.0": []},
        links={"trainer 1.0": ["helper<3"], "helper 2.0": ["engine"]},
        roots=("trainer", "other"),
        pins={"trainer": "1.0", "helper": "2.0", "engine": "1.0", "other": "1.0"},
    ),
    "a parent whose requirement breaks": Alone(
        installed={"engine 1.0": ["helper>=2"], "other 1.0": ["engine>=3"], "helper 3.0": ["engine>=3"]},
        links={"trainer 1.0": ["engine>=1", "helper==2.0"], "helper 2.0": [], "trainer 2.0": ["engine>=3"]},
        pins={"trainer": "1.0", "helper": "2.0", "engine": "1.0"},
    ),
    "an older parent that needs no other version": Alone(
        installed={"engine 1.0": [], "other 1.0": [], "helper 3.0": []},
        links={"trainer 2.0": ["engine>=2"], "trainer 1.0": ["engine", "helper==2.0"], "helper 2.0": []},
        pins={"trainer": "1.0", "helper": "2.0", "engine": "1.0"},
    ),
    "an older version that needs no unknown name": Alone(
        installed={},
        links={"trainer 2.0": ["unknown"], "trainer 1.0": []},
        pins={"trainer": "1.0"},
    ),
}


def planned(folder: Path, roots: Sequence[str], venv: Venv, **options: object) -> tuple[Plan, dict[str, str]]:
    matrix = folder / "tiny.toml"
    matrix.write_text(MATRIX.format(roots=list(roots)))
    session = Session(
        environ={"HOME": str(folder), "COLABLOCK_CACHE_DIR": str(folder / "cache")}, reporter=Notes()
    )
    asked = ApplyOptions(
        name=str(matrix),
        into=Target.KERNEL,
        python=venv.python,
        offline=True,
        **options,  # type: ignore[arg-type]
    )
    found = plan_change(session, asked)
    return found.plan, {str(name): version for name, version in found.pins().items()}


@pytest.mark.parametrize("case", ALONE.values(), ids=ALONE)
def test_what_is_installed_needs_no_index(case: Alone, tmp_path: Path) -> None:
    stubs = [
        Stub(name=key.split()[0], version=key.split()[1], requires=tuple(requires))
        for key, requires in case.installed.items()
    ]
    venv = Venv.make(tmp_path / "venv", *stubs)
    links = write_wheels(tmp_path / "links", case.links)
    _, pins = planned(tmp_path, case.roots, venv, find_links=(str(links),))
    assert pins == case.pins


def test_names_without_a_solution_are_those_that_cannot_be_looked_up(tmp_path: Path) -> None:
    """Also what was done already is not advised again."""
    venv = Venv.make(tmp_path / "venv", Stub(name="engine", version="1.0"))
    links = write_wheels(tmp_path / "links", {"trainer 1.0": ["engine>=2", "unknown"]})
    with pytest.raises(FetchFailed) as caught:
        planned(tmp_path, ("trainer",), venv, find_links=(str(links),))
    assert "engine cannot be looked up" in str(caught.value) or "unknown cannot be" in str(caught.value)
    assert caught.value.hint == (
        f"Put the files into `{links}`, or run this once without `--offline` and COLABLOCK_OFFLINE"
    )
    with pytest.raises(FetchFailed) as caught:
        planned(tmp_path, ("trainer",), venv)
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("or name a folder with `--find-links`")


# A lock, and the files that find-links have of it


@dataclass(frozen=True)
class Place:
    """A folder with the index, the folder of links, and the lock of a matrix."""

    folder: Path
    index: Path
    links: Path
    lock: Path

    def copy(self, *patterns: str) -> None:
        for pattern in patterns or ("*",):
            for file in self.index.glob(pattern):
                shutil.copy(file, self.links)


def fill(folder: Path) -> None:
    index = folder / "index"
    make_wheel(index, "shapes", "1.0", requires=["colours"], tag="py3-none-manylinux_2_17_x86_64")
    make_wheel(index, "shapes", "1.0", requires=["colours"])
    make_sdist(index, "colours", "1.0")
    make_wheel(index, "lines", "1.0")
    make_wheel(index, "lines", "2.0")


world = world_fixture(fill, scope="module")
TINY = MATRIX.format(roots=["shapes"]) + "options.allow-build = ['colours']\n"


@pytest.fixture
def place(world: World, tmp_path: Path) -> Place:
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "links").mkdir()
    lock = tmp_path / "pylock.tiny.toml"
    session = Session(environ=world.environ(COLABLOCK_CACHE_DIR=str(tmp_path / "first")))
    lock_matrix(session, ApplyOptions(name=str(tmp_path / "tiny.toml")), LockOptions(output=lock))
    return Place(tmp_path, world.folder / "index", tmp_path / "links", lock)


def fetched(place: Place, world: World, *links: str, cache: str = "cache") -> list[str]:
    """Return the names of the files that a plan from the lock takes; both verbs must agree."""
    session = Session(environ=world.environ(COLABLOCK_CACHE_DIR=str(place.folder / cache)), reporter=Notes())
    options = ApplyOptions(
        name=str(place.folder / "tiny.toml"),
        into=Target.ENV,
        python=sys.executable,
        lock=place.lock,
        find_links=links or (str(place.links),),
        offline=True,
    )
    found = plan_change(session, options)
    found.preparer.gather(found.plan, place.folder / "wheels", session.reporter)
    return sorted(step.artifact.filename for step in found.plan.steps if step.artifact is not None)


def other_algorithm(place: Place) -> None:
    text = place.lock.read_text()
    for file in place.index.iterdir():
        content = file.read_bytes()
        old, new = hashlib.sha256(content).hexdigest(), hashlib.sha512(content).hexdigest()
        text = text.replace(f'sha256 = "{old}"', f'sha512 = "{new}"')
    assert "sha512" in text
    place.lock.write_text(text)
    place.copy()


def page_of_links(place: Place) -> None:
    place.copy()
    lines = (f'<a href="{file.name}">{file.name}</a>' for file in place.index.iterdir())
    (place.links / "page.html").write_text("\n".join(lines))


def without_the_best(place: Place) -> None:
    place.copy("*none-any.whl", "*.tar.gz")


POOLS: dict[str, tuple[Callable[[Place], None], str, str]] = {
    "all files": (Place.copy, "{links}", "manylinux"),
    "a URL of the folder": (Place.copy, "file://{links}", "manylinux"),
    "a page of links": (page_of_links, "{links}/page.html", "manylinux"),
    "another wheel that fits": (without_the_best, "{links}", "none-any"),
    "a lock with other hashes": (other_algorithm, "{links}", "manylinux"),
}


@pytest.mark.parametrize(("prepare", "links", "wheel"), POOLS.values(), ids=POOLS)
def test_a_plan_from_a_lock_can_be_applied(
    prepare: Callable[[Place], None], links: str, wheel: str, place: Place, world: World
) -> None:
    prepare(place)
    names = fetched(place, world, links.format(links=place.links))
    assert [name.partition("-")[0] for name in names] == ["colours", "shapes"]
    assert wheel in names[1]


def nothing(place: Place) -> None:
    """Leave the folder empty."""


def another_file(place: Place) -> None:
    place.copy("*.tar.gz")
    (place.links / "shapes-1.0-py3-none-manylinux_2_17_x86_64.whl").write_bytes(b"another")


LACKING: dict[str, tuple[Callable[[Place], None], str]] = {
    "a file": (lambda place: place.copy("*.whl"), "`colours-1.0.tar.gz`"),
    "everything": (nothing, "`colours-1.0.tar.gz`, `shapes-1.0-"),
    "another file of that name": (another_file, "has the sha256"),
}


@pytest.mark.parametrize(("prepare", "words"), LACKING.values(), ids=LACKING)
def test_a_plan_names_the_files_that_an_apply_would_miss(
    prepare: Callable[[Place], None], words: str, place: Place, world: World
) -> None:
    prepare(place)
    with pytest.raises(FetchFailed) as caught:
        fetched(place, world)
    assert words in str(caught.value)
    assert str(place.links) in (caught.value.hint or "")


def test_files_of_the_cache_and_of_a_folder_are_used_together(place: Place, world: World) -> None:
    place.copy("*.whl")
    with pytest.raises(FetchFailed, match="colours"):
        fetched(place, world)
    online = Session(environ=world.environ(COLABLOCK_CACHE_DIR=str(place.folder / "cache")))
    options = ApplyOptions(name=str(place.folder / "tiny.toml"), into=Target.ENV, python=sys.executable)
    found = plan_change(online, options)
    found.preparer.gather(found.plan, place.folder / "online", Notes())
    place.copy("*manylinux*")
    assert len(fetched(place, world)) == 2


def test_a_lock_of_local_files_finds_them_in_another_folder(place: Place, world: World) -> None:
    place.copy()
    session = Session(environ=world.environ(COLABLOCK_CACHE_DIR=str(place.folder / "second")))
    options = ApplyOptions(name=str(place.folder / "tiny.toml"), find_links=(str(place.links),))
    lock_matrix(session, options, LockOptions(output=place.lock))
    moved = place.links.rename(place.folder / "moved")
    assert len(fetched(place, world, str(moved))) == 2
    (place.folder / "empty").mkdir()
    with pytest.raises(InvalidInput, match="no folder of find-links has a file of that name"):
        fetched(place, world, str(place.folder / "empty"))


def test_a_version_at_hand_comes_before_a_newer_one_on_a_page(place: Place, world: World) -> None:
    """The page in the cache lists 2.0, and only the wheel of 1.0 is there."""
    session = Session(environ=world.environ(COLABLOCK_CACHE_DIR=str(place.folder / "cache")))
    options = ApplyOptions(name=str(place.folder / "tiny.toml"), into=Target.ENV, python=sys.executable)
    (place.folder / "tiny.toml").write_text(MATRIX.format(roots=["lines==1.0"]))
    found = plan_change(session, options)
    found.preparer.gather(found.plan, place.folder / "online", Notes())
    (place.folder / "tiny.toml").write_text(MATRIX.format(roots=["lines"]))
    versions: list[str] = []
    for offline in (True, False):
        found = plan_change(session, replace(options, offline=offline))
        versions += found.pins().values()
    assert versions == ["1.0", "2.0"]


DIRECT = MATRIX.format(roots=[]) + "[packages.own]\nurl = '{url}own-1.0-py3-none-any.whl'\n{more}"


def test_a_direct_reference_without_a_hash_is_the_file_that_its_url_gave(
    world: World, tmp_path: Path
) -> None:
    """With a hash, also a copy in a folder counts; without one, what was fetched before."""
    wheel = make_wheel(world.folder / "index", "own", "1.0")
    (tmp_path / "links").mkdir()
    shutil.copy(wheel, tmp_path / "links")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    session = Session(environ=world.environ(COLABLOCK_CACHE_DIR=str(tmp_path / "cache")))
    options = ApplyOptions(
        name=str(tmp_path / "tiny.toml"), into=Target.ENV, python=sys.executable, offline=True
    )
    linked = replace(options, find_links=(str(tmp_path / "links"),))
    url = f"{world.server.root}/files/"
    (tmp_path / "tiny.toml").write_text(DIRECT.format(url=url, more=f"sha256 = '{digest}'\n"))
    assert plan_change(session, linked).pins() == {"own": "1.0"}
    (tmp_path / "tiny.toml").write_text(DIRECT.format(url=url, more=""))
    with pytest.raises(FetchFailed) as caught:
        plan_change(session, linked)
    assert (caught.value.hint or "").startswith("Add `sha256` to packages.own")
    plan_change(session, replace(options, offline=False))
    assert plan_change(session, options).pins() == {"own": "1.0"}
