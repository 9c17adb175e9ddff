"""A matrix whose archive cannot be reached: `lock` and `plan` use what the locks know about it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.errors import BadDistribution, FetchFailed
from colablock.operations.lock import LockResult, lock_matrix, nothing_installed
from colablock.operations.plan import env_digest, plan_change, solver_for
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions, LockOptions
from colablock.planning.plan import Target
from tests.support.fixtures import world_fixture
from tests.support.reporters import Notes
from tests.support.server import IndexServer
from tests.support.serving import refusing
from tests.support.wheels import make_sdist, make_wheel
from tests.support.world import World

HOST = "https://archives.example/"
ARCHIVES = {
    "a rebuilt archive": (
        "[packages.trainer]\nurl = '{host}trainer-1.0.tar.gz'\nsource-root = '.'\n"
        "requires-dist = ['Lines>=1']\n"
    ),
    "a rebuilt archive with its own requirements": (
        "[packages.trainer]\nurl = '{host}trainer-1.0.tar.gz'\nsource-root = '.'\n"
    ),
    "a wheel": "[packages.trainer]\nurl = '{host}trainer-1.0-py3-none-any.whl'\n",
    "a rebuilt wheel": (
        "[packages.trainer]\nurl = '{host}trainer-1.0-py3-none-any.whl'\nrequires-dist = ['lines[x]']\n"
    ),
    "a source archive": (
        "[packages.trainer]\nurl = '{host}trainer-1.0.tar.gz'\n[options]\nallow-build = ['trainer']\n"
    ),
}


def fill(folder: Path) -> None:
    """Write an index, and archives for another host."""
    for version in ("1.0", "2.0"):
        make_wheel(folder / "index", "lines", version)
    make_wheel(folder / "index", "dots", "1.0")
    make_sdist(folder / "files", "trainer", "1.0", requires=["lines"])
    make_wheel(folder / "files", "trainer", "1.0", requires=["lines"])


world = world_fixture(fill, scope="module")


@dataclass(frozen=True)
class Place:
    """A matrix with an archive, and the mirror of the host of the archive."""

    world: World
    folder: Path

    @property
    def matrix(self) -> Path:
        return self.folder / "tiny.toml"

    def write(self, archive: str, *, requirements: str = "'lines'") -> None:
        head = f"schema = 1\nname = 'tiny'\nrequirements = [{requirements}]\n"
        self.matrix.write_text(head + archive.format(host=HOST))

    def session(self, mirror: str, **variables: str) -> Session:
        """Return a session with an empty cache in which *mirror* answers for the host."""
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        environ = self.world.environ(
            COLABLOCK_CACHE_DIR=str(cache),
            COLABLOCK_MIRRORS=f"{HOST}={mirror}",
            COLABLOCK_RETRIES="0",
            **variables,
        )
        return Session(environ=environ, reporter=Notes())

    def lock(self, mirror: str, **wanted: object) -> tuple[LockResult, str]:
        session = self.session(mirror)
        made = lock_matrix(session, ApplyOptions(name=str(self.matrix)), LockOptions(**wanted))  # type: ignore[arg-type]
        assert isinstance(session.reporter, Notes)
        return made, "\n".join(session.reporter.notes)


@pytest.fixture
def place(world: World, tmp_path: Path) -> Place:
    return Place(world, tmp_path)


@pytest.fixture(scope="module")
def there(world: World) -> str:
    """Return the URL of the folder of archives."""
    return f"{(world.folder / 'files').as_uri()}/"


@pytest.fixture(scope="module")
def gone() -> Iterator[str]:
    """Give the URL of a server that has stopped."""
    with refusing() as url:
        yield f"{url}/"


@pytest.mark.parametrize("archive", ARCHIVES.values(), ids=ARCHIVES)
def test_a_lock_is_made_again_while_the_host_is_away(
    archive: str, place: Place, there: str, gone: str
) -> None:
    place.write(archive)
    first, _ = place.lock(there)
    again, notes = place.lock(gone)
    assert again.text == first.text
    assert not again.is_changed
    assert f"using what the lock `{first.path.name}` knows about trainer" in notes
    # The matrix changes elsewhere, and the lock is still what is known of the archive.
    place.write(archive, requirements="'lines', 'dots'")
    changed, _ = place.lock(gone)
    assert changed.moved == ("+ dots 1.0",)
    back, _ = place.lock(there)
    assert back.text == changed.text


@pytest.mark.parametrize("archive", ARCHIVES.values(), ids=ARCHIVES)
def test_a_plan_without_a_lock_that_fits_uses_what_a_lock_knows(
    archive: str, place: Place, there: str, gone: str
) -> None:
    place.write(archive)
    place.lock(there)
    place.write(archive, requirements="'lines', 'dots'")
    session = place.session(gone)
    options = ApplyOptions(name=str(place.matrix), into=Target.ENV, python=sys.executable)
    pins = plan_change(session, options).pins()
    assert pins.keys() == {"trainer", "lines", "dots"}
    assert isinstance(session.reporter, Notes)
    assert "cannot be reached: using what the lock" in "\n".join(session.reporter.notes)


REBUILT = [text for text in ARCHIVES.values() if "requires-dist" in text or "source-root" in text]


@pytest.mark.parametrize("archive", REBUILT)
def test_a_rebuilt_wheel_with_the_hash_of_the_lock_is_taken_from_find_links(
    archive: str, place: Place, there: str, gone: str
) -> None:
    place.write(archive)
    place.lock(there)
    (beside,) = place.folder.glob("*.wheels")
    links = beside.rename(place.folder / "links")
    shutil.copy(next(place.world.folder.glob("index/lines-2.0*")), links)
    options = ApplyOptions(name=str(place.matrix), into=Target.ENV, python=sys.executable, offline=True)
    with pytest.raises(FetchFailed, match="offline"):
        plan_change(place.session(gone), options)
    session = place.session(gone, PIP_FIND_LINKS=str(links))
    found = plan_change(session, options)
    wheels = found.preparer.gather(found.plan, place.folder / "wheels", Notes())
    assert wheels[canonicalize_name("trainer")].parent == links
    assert found.pins().keys() == {"trainer", "lines"}


@pytest.mark.parametrize("archive", REBUILT)
def test_a_rebuilt_wheel_is_made_of_the_archive_in_find_links(
    archive: str, place: Place, there: str, gone: str
) -> None:
    """The lock has no hash of the archive, but that of the wheel, which another archive does not give."""
    place.write(archive)
    place.lock(there)
    for beside in place.folder.glob("*.wheels"):
        shutil.rmtree(beside)
    links = place.folder / "links"
    shutil.copytree(place.world.folder / "files", links)
    shutil.copy(next(place.world.folder.glob("index/lines-2.0*")), links)
    session = place.session(gone, PIP_FIND_LINKS=str(links))
    options = ApplyOptions(name=str(place.matrix), into=Target.ENV, python=sys.executable, offline=True)
    found = plan_change(session, options)
    wheels = found.preparer.gather(found.plan, place.folder / "wheels", Notes())
    assert wheels.keys() == {"trainer", "lines"}
    assert len(env_digest(found)) == 64
    make_sdist(links, "trainer", "1.0", requires=["lines"], modules={"trainer/__init__.py": "X = 2"})
    make_wheel(links, "trainer", "1.0", requires=["lines"], modules={"trainer/__init__.py": "X = 2"})
    session = place.session(gone, PIP_FIND_LINKS=str(links))
    with pytest.raises((BadDistribution, FetchFailed)):
        found = plan_change(session, options)
        found.preparer.gather(found.plan, place.folder / "again", Notes())


def test_an_archive_that_is_known_to_be_away_is_not_tried_again(place: Place, there: str, gone: str) -> None:
    place.write(ARCHIVES["a rebuilt archive"])
    first, _ = place.lock(there)
    options = ApplyOptions(name=str(place.matrix), use_locks=False)
    solver = solver_for(place.session(gone), options, nothing_installed())
    solver = replace(solver, standing=(first.path,))
    environment = solver.kernel.environment
    assert solver.away == set()
    solver.from_nothing(environment, sys.executable)
    assert solver.away == {f"{HOST}trainer-1.0.tar.gz"}
    with IndexServer(place.world.folder / "files") as server:  # the host is back, and nobody asks it
        back = solver_for(place.session(f"{server.root}/files/"), options, nothing_installed())
        back = replace(back, standing=(first.path,), away=solver.away)
        resolution, _ = back.from_nothing(environment, sys.executable)
        assert server.paths == []
    trainer = resolution.pins[canonicalize_name("trainer")]
    assert str(trainer.version).startswith("1.0+colablock.")


OTHERS = {
    "another URL": ("{host}trainer-1.0.tar.gz", "{host}other/trainer-1.0.tar.gz"),
    "another hash": (
        "url = '{host}trainer-1.0-py3-none-any.whl'\n",
        "url = '{host}trainer-1.0-py3-none-any.whl'\nsha256 = '" + "0" * 64 + "'\n",
    ),
    "other requirements": ("requires-dist = ['Lines>=1']", "requires-dist = ['Lines>=2']"),
    "requirements replaced": ("source-root = '.'\n", "source-root = '.'\nrequires-dist = ['dots']\n"),
    "no longer rebuilt": ("requires-dist = ['lines[x]']\n", ""),
}


@pytest.mark.parametrize(("old", "new"), OTHERS.values(), ids=OTHERS)
def test_a_lock_of_another_archive_is_not_used(
    old: str, new: str, place: Place, there: str, gone: str
) -> None:
    archive = next(text for text in ARCHIVES.values() if old in text and "dots" not in text)
    if old.startswith("source-root"):
        archive = ARCHIVES["a rebuilt archive with its own requirements"]
    place.write(archive)
    first, _ = place.lock(there)
    place.write(archive.replace(old, new))
    with pytest.raises(FetchFailed, match=r"archives\.example"):
        place.lock(gone)
    assert first.path.read_bytes() == first.text


def test_without_a_lock_the_host_is_named(place: Place, gone: str) -> None:
    place.write(ARCHIVES["a rebuilt archive"])
    with pytest.raises(FetchFailed, match=r"archives\.example"):
        place.lock(gone)


def test_an_archive_that_its_host_has_no_more_is_not_recalled(place: Place, there: str) -> None:
    place.write(ARCHIVES["a wheel"])
    place.lock(there)
    with IndexServer(place.world.folder / "index") as server, pytest.raises(FetchFailed, match="404"):
        place.lock(f"{server.root}/nothing/")
