"""Properties of a change and its undo, with small random environments and plans."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.site import Site
from colablock.environment.snapshot import Installed, Snapshot, installed_versions
from colablock.errors import Refused, RolledBack, Unmet
from colablock.planning.plan import Action, Step
from colablock.transaction.disk_operations import Operations
from colablock.transaction.file_moves import StagedTree, moves_in, moves_out, owned_files
from colablock.transaction.history import RECORD, STASH, facts_of, next_folder
from colablock.transaction.journal import Journal, preparing
from colablock.transaction.recovery import recover
from colablock.transaction.rollback import roll_back
from colablock.transaction.site_lock import locked
from tests.support.dict_source import PYTHON_312
from tests.support.faults import FaultyAndStuck, Moment, die, full, in_a_child
from tests.support.runtime import Stub, build_site
from tests.support.trees import StrictListing, Tree, differences

# Each change is synced, which takes a while on a real disk.
IN_MEMORY = next((path for path in ("/dev/shm",) if os.access(path, os.W_OK)), None)  # noqa: S108
NAMES = ("a", "b", "c", "d")
PATHS = (
    "one/__init__.py",
    "one/core.py",
    "one/deep/er/x.txt",
    "shared/__init__.py",
    "shared/a.py",
    "shared/b/c.py",
    "shared/only/this.py",
    "single.py",
    "../../../bin/tool",
    "../../../share/data/x.txt",
    "../../../share/data/y.txt",
)
OF_NOBODY = (
    "one/__pycache__/core.cpython-311.pyc",
    "one/mine.txt",
    "shared/__pycache__/a.cpython-311.pyc",
    "shared/__pycache__/gone.cpython-311.pyc",
    "shared/b/__pycache__/c.cpython-311.opt-1.pyc",
    "shared/a.py",
    "__pycache__/single.cpython-311.pyc",
    "../../../share/data/mine.txt",
)
EMPTY = ("one/empty", "one/deep/er/empty", "shared/b/empty", "hollow/deep")
LINKS = {"one/link": "core.py", "one/folder": "deep", "shared/b/dangling": "nowhere"}


def some(of: tuple[str, ...]) -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from(of))


@dataclass(frozen=True)
class DrawnChange:
    """Installed distributions, other files, and what a change removes and adds."""

    installed: Mapping[str, frozenset[str]]
    of_nobody: frozenset[str]
    empty: frozenset[str]
    links: frozenset[str]
    closed: frozenset[str]  # read-only folders
    removed: frozenset[str]
    brought: Mapping[str, frozenset[str]]


@st.composite
def worlds(draw: st.DrawFn) -> DrawnChange:
    installed = draw(st.dictionaries(st.sampled_from(NAMES), some(PATHS)))
    brought = draw(st.dictionaries(st.sampled_from((*NAMES, "e")), some(PATHS), max_size=3))
    removed = draw(some(tuple(installed))) if installed else frozenset()
    return DrawnChange(
        installed=installed,
        of_nobody=draw(some(OF_NOBODY)),
        empty=draw(some(EMPTY)),
        links=draw(some(tuple(LINKS))),
        closed=draw(some(("one", "one/deep", "shared/only"))),
        removed=removed | (brought.keys() & installed.keys()),
        brought=brought,
    )


class DrawnPlace:
    """The environment of a world, and its change."""

    def __init__(self, folder: Path, world: DrawnChange) -> None:
        self._world = world
        env = folder / "env"
        self._pure = env / "lib" / "python3" / "site-packages"
        for path in (self._pure, env / "bin"):
            path.mkdir(parents=True)
        build_site(self._pure, [_stub(name, "1", paths) for name, paths in world.installed.items()])
        self._clutter()
        self._staged = folder / "staged"
        self.site = Site(
            python="",
            prefix=str(env),
            data=str(env),
            purelib=str(self._pure),
            platlib=str(self._pure),
            scripts=str(env / "bin"),
        )
        self.tree = Tree(env)

    def _clutter(self) -> None:
        for name in sorted(self._world.of_nobody):
            path = self._pure / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of nobody")
        for name in self._world.empty:
            (self._pure / name).mkdir(parents=True, exist_ok=True)
        for name in self._world.links:
            (self._pure / name).parent.mkdir(parents=True, exist_ok=True)
            (self._pure / name).symlink_to(LINKS[name])
        for name in self._world.closed:
            if (self._pure / name).is_dir() and os.geteuid() == 0:  # other users could not change it
                (self._pure / name).chmod(0o555)

    def look(self) -> Snapshot:
        return Snapshot(
            environment=PYTHON_312,
            python="",
            prefix=self.site.prefix,
            site=self.site.purelib,
            installed={there.name: there for there in map(_installed, self._pure.glob("*.dist-info"))},
        )

    def apply(self, disk: Operations) -> None:
        """Do what `apply_plan` does, with a stage that is written here."""
        world, there = self._world, self.look().installed
        gone = {*world.removed, *(name for name in world.brought if name in there)}
        with locked(self.site, wait=0) as state:
            with preparing(state):
                tree = self._stage(state / "stage")
                folder = next_folder(state)
                (folder / STASH).mkdir(parents=True)
                removed = [installed for name, installed in there.items() if name in gone]
                staying = [installed for name, installed in there.items() if name not in gone]
                outs = moves_out(self.site, owned_files(self.site, removed, staying), folder / STASH)
                operations = [*outs, *moves_in(tree, outs, folder / STASH)]
                facts = facts_of(
                    list(self._steps(there)),
                    operations,
                    before=installed_versions([self._pure]),
                    **dict.fromkeys(("when", "matrix", "stack"), ""),
                    **dict.fromkeys(("lock", "runtime", "applied_before")),
                )
            with Journal(state, operations, becomes=folder / RECORD, facts=facts, disk=disk) as journal:
                journal.run()
                journal.commit()

    def roll_back(self, disk: Operations) -> None:
        roll_back(self.site, look=self.look, disk=disk, wait=0)

    def _stage(self, folder: Path) -> StagedTree:
        staged = folder / "lib" / "python3" / "site-packages"
        stubs = [_stub(name, "2", paths) for name, paths in self._world.brought.items()]
        staged.mkdir(parents=True)
        build_site(staged, stubs)
        for path in staged.glob("*.dist-info/INSTALLER"):
            path.write_text("colablock\n")
        places = ((staged, self.site.purelib), (folder / "bin", self.site.scripts), (folder, self.site.data))
        return StagedTree(folder=folder, places=tuple((str(path), target) for path, target in places))

    def _steps(self, there: Mapping[NormalizedName, Installed]) -> Iterator[Step]:
        for name in {**dict.fromkeys(sorted(self._world.removed)), **self._world.brought}:
            previous = there.get(canonicalize_name(name))
            action = Action.REPLACE if previous else Action.INSTALL
            if name not in self._world.brought:
                action = Action.REMOVE
            yield Step(
                action=action,
                name=canonicalize_name(name),
                reason="",
                version="2" if name in self._world.brought else None,
                previous=previous.version if previous else None,
            )


def _stub(name: str, version: str, paths: frozenset[str]) -> Stub:
    files = {path: f"{path} of {name} {version}" for path in sorted(paths)}
    return Stub(name=name, version=version, import_names=(), files=files)


def _installed(dist_info: Path) -> Installed:
    name, version = dist_info.name.removesuffix(".dist-info").split("-")
    return Installed(
        name=canonicalize_name(name),
        version=version,
        installer=(dist_info / "INSTALLER").read_text().strip(),
        path=str(dist_info),
    )


@contextmanager
def place_of(world: DrawnChange) -> Iterator[DrawnPlace]:
    with tempfile.TemporaryDirectory(prefix="colablock-", dir=IN_MEMORY) as folder:
        yield DrawnPlace(Path(folder), world)


@dataclass(frozen=True)
class Stop:
    """A fault on a disk that cannot rename some paths."""

    what: str
    at: int
    moment: Moment

    def disk(self) -> FaultyAndStuck:
        return FaultyAndStuck(self.what, self.at, full, moment=self.moment)


stops = st.builds(
    Stop,
    st.sampled_from(["nothing", "folders", "everything"]),
    st.integers(0, 60),
    st.sampled_from(Moment),
)


def brought(listing: StrictListing) -> dict[str, tuple[object, ...]]:
    """Return the files outside of the state folder, without times: the files of a change are new each time.

    Empty folders and bytecode of no source may go with what stands beside them.
    """
    files = {path: what[:4] for path, what in listing.items() if len(what) > 3}
    return {path: files[path] for path in files if not path.startswith(".colablock") and path[-4:] != ".pyc"}


@given(worlds(), stops)
def test_a_change_that_fails_is_the_identity(world: DrawnChange, stop: Stop) -> None:
    with place_of(world) as place:
        before = place.tree.listing()
        disk = stop.disk()
        try:
            place.apply(disk)
        except (OSError, Refused):
            assert not differences(before, place.tree.listing())


@given(worlds(), stops)
def test_a_change_that_dies_is_undone(world: DrawnChange, stop: Stop) -> None:
    with place_of(world) as place:
        before = place.tree.listing()
        disk = stop.disk()
        disk.error = die
        code = in_a_child(lambda: place.apply(disk))
        if code < 0:
            recover(place.site)
            if not (place.site.state / "changes").exists():  # it did not die after the commit
                assert not differences(before, place.tree.listing())


@given(worlds(), st.sampled_from(["nothing", "folders", "everything"]))
def test_a_change_and_its_undo_are_the_identity(world: DrawnChange, what: str) -> None:
    with place_of(world) as place:
        before = place.tree.listing()
        try:
            place.apply(FaultyAndStuck(what, -1, full))
        except Refused:
            return
        place.roll_back(FaultyAndStuck(what, -1, full))
        assert not differences(before, place.tree.listing())


@given(worlds(), stops)
def test_an_undo_that_fails_is_the_identity(world: DrawnChange, stop: Stop) -> None:
    with place_of(world) as place:
        try:
            place.apply(Operations())
        except Refused:
            return
        after = place.tree.listing()
        try:
            place.roll_back(stop.disk())
        except (RolledBack, Unmet):
            assert not differences(after, place.tree.listing())


@given(worlds())
def test_a_second_identical_change_is_a_no_op(world: DrawnChange) -> None:
    with place_of(world) as place:
        try:
            place.apply(Operations())
        except Refused:
            return
        once = brought(place.tree.listing())
        place.apply(Operations())
        assert not differences(once, brought(place.tree.listing()))
