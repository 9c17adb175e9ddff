"""An undo over the changes of others: what it would break, and what it puts back as well."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.site import Site, read_site
from colablock.environment.snapshot import Installed, Snapshot
from colablock.errors import Refused, RolledBack, Unmet
from colablock.transaction.recovery import recover
from colablock.transaction.rollback import UndoneChange, changes_to_undo, roll_back
from colablock.transaction.undo.companions import Companions
from colablock.transaction.undo.preview import preview_undo
from tests.conftest import EVERY_FAULT
from tests.support.faults import FaultyAndStuck, Moment, die, full, in_a_child
from tests.support.runtime import Stub, build_site
from tests.support.small_ground import SmallGround, remove
from tests.support.trees import Listing, installed_listing, listing
from tests.support.wheels import make_wheel

# The layout of pydantic and pydantic-core: each release wants one exact version.
DANTIC = Stub(name="dantic", version="2.11", requires=("dantic-core==2.33",))
CORE = Stub(name="dantic-core", version="2.33", files={"dantic_core/old.py": ""})
NEW_CORE = Stub(name="dantic-core", version="2.50", files={"dantic_core/new.py": ""})
CHAIN = Stub(name="chain", version="1.0", requires=("dantic>=2.11",))


def uninstall(place: SmallGround, name: str) -> None:
    (info,) = place.site.glob(f"{name}-*.dist-info")
    for line in (info / "RECORD").read_text().splitlines():
        (place.site / line.partition(",")[0]).unlink()
    shutil.rmtree(info)
    shutil.rmtree(place.site / name)


def others_install(place: SmallGround, *stubs: Stub) -> None:
    """Do what pip does: remove the old version, and install the new one."""
    for stub in stubs:
        name = stub.name.replace("-", "_")
        if list(place.site.glob(f"{name}-*.dist-info")):
            uninstall(place, name)
    build_site(place.site, stubs)


@dataclass(frozen=True)
class Case:
    """Installed distributions, what the change moves, what others do since, and what the undo says."""

    before: tuple[Stub, ...] = (DANTIC, CORE)
    change: tuple[Stub, ...] = (replace(DANTIC, version="2.12", requires=("dantic-core>=2.33",)),)
    since: tuple[Stub, ...] = ()
    gone: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    companions: tuple[tuple[str, str], ...] = ()
    beyond: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()
    refused: str = ""


NEEDS_CORE = "dantic 2.11 requires `dantic-core==2.33`, but 2.50 is installed"
LOCAL = {"url": "file:///src/core", "dir_info": {"editable": True}}
BUILD = {"url": "https://files.example/core.whl", "archive_info": {}}
NEEDS_MORE = "dantic 2.11 requires `more<2`, but 2.0 is installed"
NEEDS_DNS = 'dantic 2.11 requires `mail[all]`, which requires `dns<2; extra == "all"`, but 2.0 is installed'
CASES = {
    "nothing moved": Case(),
    "something else moved": Case(since=(Stub(name="else", version="1", requires=("dantic",)),)),
    "what the old version needs moved": Case(
        since=(NEW_CORE,), broken=(NEEDS_CORE,), companions=(("dantic-core", "2.33"),)
    ),
    "what the old version needs is gone": Case(
        gone=("dantic_core",),
        broken=("dantic 2.11 requires `dantic-core==2.33`, but it is not installed",),
        companions=(("dantic-core", "2.33"),),
    ),
    "what needs the new version moved": Case(
        before=(DANTIC, CORE, CHAIN),
        since=(replace(CHAIN, version="2.0", requires=("dantic>=2.12",)),),
        broken=("chain 2.0 requires `dantic>=2.12`, but 2.11 is installed",),
        companions=(("chain", "1.0"),),
    ),
    "what needs the new version is new": Case(
        since=(replace(CHAIN, requires=("dantic>=2.12",)),),
        broken=("chain 1.0 requires `dantic>=2.12`, but 2.11 is installed",),
        beyond=("chain 1.0 requires `dantic>=2.12`, but 2.11 is installed",),
    ),
    "a companion breaks another": Case(
        before=(DANTIC, CORE, replace(CHAIN, requires=("dantic-core",))),
        since=(NEW_CORE, replace(CHAIN, version="2.0", requires=("dantic-core>=2.50",))),
        broken=(NEEDS_CORE,),
        companions=(("chain", "1.0"), ("dantic-core", "2.33")),
    ),
    "a companion breaks what is new": Case(
        since=(NEW_CORE, replace(CHAIN, requires=("dantic-core>=2.50",))),
        broken=(NEEDS_CORE,),
        companions=(("dantic-core", "2.33"),),
        beyond=("chain 1.0 requires `dantic-core>=2.50`, but 2.33 is installed",),
    ),
    "by an extra": Case(
        before=(replace(DANTIC, requires=("mail[all]",)), replace(CHAIN, name="mail", extras=("all",),
            requires=('dns<2; extra == "all"',)), Stub(name="dns", version="1.0")),
        change=(replace(DANTIC, version="2.12", requires=()),),
        since=(Stub(name="dns", version="2.0"),),
        broken=(NEEDS_DNS,),
        companions=(("dns", "1.0"),),
    ),
    "unmet before the change": Case(
        before=(DANTIC, CORE, replace(CHAIN, requires=("dantic>=2.12",))),
        since=(Stub(name="else", version="1"),),
    ),
    "unmet before the undo": Case(
        since=(replace(CHAIN, requires=("dantic>=3",)),),
    ),
    "protected": Case(
        since=(NEW_CORE,), broken=(NEEDS_CORE,), beyond=(NEEDS_CORE,), protected=("dantic-core",)
    ),
    "the newer version is a local project": Case(
        since=(replace(NEW_CORE, direct_url=LOCAL),),
        broken=(NEEDS_CORE,),
        beyond=(NEEDS_CORE,),
        refused="dantic-core was installed from `file:///src/core`, and a rollback takes it from nowhere"
        " else",
    ),
    "the older version was a local project": Case(
        before=(DANTIC, replace(CORE, direct_url=LOCAL)),
        since=(NEW_CORE,),
        broken=(NEEDS_CORE,),
        beyond=(NEEDS_CORE,),
        refused="dantic-core came from `file:///src/core`, and a rollback takes it from nowhere else",
    ),
    "a local project is gone": Case(
        before=(DANTIC, replace(CORE, direct_url=LOCAL)),
        gone=("dantic_core",),
        broken=("dantic 2.11 requires `dantic-core==2.33`, but it is not installed",),
        beyond=("dantic 2.11 requires `dantic-core==2.33`, but it is not installed",),
        refused="dantic-core came from `file:///src/core`, and a rollback takes it from nowhere else",
    ),
    "the newer version is a published build": Case(
        since=(replace(NEW_CORE, version="2.50+cu128", direct_url=BUILD),),
        broken=(NEEDS_CORE.replace("2.50", "2.50+cu128"),),
        companions=(("dantic-core", "2.33"),),
    ),
    "a second one is a local project": Case(
        before=(replace(DANTIC, requires=(*DANTIC.requires, "more<2")), CORE,
            Stub(name="more", version="1.0", direct_url=LOCAL)),
        since=(NEW_CORE, Stub(name="more", version="2.0")),
        broken=(NEEDS_CORE, NEEDS_MORE),
        companions=(("dantic-core", "2.33"),),
        beyond=(NEEDS_MORE,),
        refused="more came from `file:///src/core`, and a rollback takes it from nowhere else",
    ),
    "one without a version that can be compared": Case(
        before=(DANTIC, CORE, Stub(name="odd", version="1.1build1")),
        since=(NEW_CORE, Stub(name="odd", version="1.2build1")),
        broken=(NEEDS_CORE,),
        companions=(("dantic-core", "2.33"),),
    ),
}  # fmt: skip


# The others are only judged, which takes less time.
UNDONE = {
    "nothing moved",
    "what the old version needs moved",
    "what the old version needs is gone",
    "a companion breaks what is new",
    "unmet before the change",
    "the newer version is a local project",
    "a second one is a local project",
}


class Others:
    """A small environment whose change others have changed since."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.case = case
        self.place = SmallGround(folder)
        build_site(self.place.site, case.before)
        self.first = installed_listing(self.place.venv)
        names = {stub.name for stub in case.before}
        self.place.apply(
            *(
                self.place.put(self.wheel(stub), previous="1" if stub.name in names else None)
                for stub in case.change
            )
        )
        for name in case.gone:
            uninstall(self.place, name)
        others_install(self.place, *case.since)

    @property
    def site(self) -> Site:
        return read_site(self.place.python, os.environ)

    def wheel(self, stub: Stub) -> Path:
        return make_wheel(
            self.place.folder,
            stub.name,
            stub.version,
            requires=stub.requires,
            extras=stub.extras,
            modules={f"{stub.name.replace('-', '_')}/__init__.py": "", **stub.files},
        )

    def look(self) -> Snapshot:
        protected = frozenset(map(canonicalize_name, self.case.protected))
        return replace(self.place.snapshot(), protected=protected)

    def companions(self) -> Companions:
        """Return the wheels of what was installed before."""
        stubs = {canonicalize_name(stub.name): stub for stub in self.case.before if stub.name != "odd"}
        steps = {name: self.place.put(self.wheel(stub)) for name, stub in stubs.items()}
        chosen = {name: steps[name].artifact for name, _ in map(self._key, self.case.companions)}
        return Companions(
            artifacts={name: artifact for name, artifact in chosen.items() if artifact is not None},
            wheels={name: self.place.files[name] for name in chosen},
            installed={
                name: Installed(name=name, version=stubs[name].version, requires=stubs[name].requires)
                for name in chosen
            },
        )

    @staticmethod
    def _key(pair: tuple[str, str]) -> tuple[NormalizedName, str]:
        return canonicalize_name(pair[0]), pair[1]

    def undo(self, **options: object) -> UndoneChange:
        (undone,) = roll_back(self.site, look=self.look, environ=os.environ, **options)  # type: ignore[arg-type]
        return undone


def without_times(found: Listing, names: Iterable[str]) -> Listing:
    """Return the listing without what differs between two installations of one version."""
    own = tuple(f"{name.replace('-', '_')}-" for name in names)
    return {
        path: what
        for path, what in found.items()
        if not (path.rpartition("site-packages/")[2].startswith(own) and ".dist-info/" in path)
    }


@pytest.mark.parametrize("name", CASES)
def test_an_undo_says_what_it_would_break(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    others = Others(tmp_path, case)
    site, snapshot = others.site, others.look()
    preview = preview_undo(changes_to_undo(site), site, snapshot, others.companions().installed)
    assert preview.broken == case.broken
    assert tuple(preview.companions.items()) == case.companions
    assert preview.beyond == case.beyond
    assert list(preview.refused.values()) == [case.refused][: bool(case.refused)]
    before = listing(others.place.venv)
    if case.broken:
        with pytest.raises(Refused) as refused:
            others.undo()
        assert all(line in str(refused.value) for line in (*case.broken, case.refused))
        assert ("--with-companions" in (refused.value.hint or "")) is bool(
            case.companions and not case.beyond
        )
        assert "--leave-broken" in (refused.value.hint or "")
        assert listing(others.place.venv) == before
    if name not in UNDONE:
        return
    undone = others.undo(companions=others.companions(), leave_broken=bool(case.beyond))
    assert undone.broken == case.beyond
    assert tuple(undone.companions.items()) == case.companions
    if not (case.beyond or case.protected or case.since):
        names = dict(case.companions)
        found = installed_listing(others.place.venv)
        assert without_times(found, names).keys() == without_times(others.first, names).keys()


def test_companions_are_whole_and_nothing_of_the_newer_version_is_left(tmp_path: Path) -> None:
    others = Others(tmp_path, CASES["what the old version needs moved"])
    undone = others.undo(companions=others.companions())
    assert undone.differences == ()
    found = installed_listing(others.place.venv)
    expected = without_times(others.first, ["dantic-core"])
    assert without_times(found, ["dantic-core"]).keys() == expected.keys()
    assert (others.place.site / "dantic_core-2.33.dist-info" / "INSTALLER").read_text() == "colablock\n"
    assert not (others.place.venv / ".colablock").exists()


def test_what_is_left_broken_is_told(tmp_path: Path) -> None:
    others = Others(tmp_path, CASES["what the old version needs moved"])
    undone = others.undo(leave_broken=True)
    assert undone.broken == (NEEDS_CORE,)
    assert undone.differences == ("`dantic-core` is 2.50, and was 2.33",)


def test_all_changes_are_judged_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Others(tmp_path, replace(CASES["what the old version needs moved"], since=()))
    others_install(others.place, NEW_CORE)
    newest = replace(DANTIC, version="2.13", requires=("dantic-core>=2.50",))
    others.place.apply(others.place.put(others.wheel(newest), previous="2.12"), remove("stays"))
    assert others.look().installed[canonicalize_name("dantic")].version == "2.13"
    with pytest.raises(Refused, match="undoing all changes would leave 1 requirement unmet"):
        others.undo(to_first=True)
    before = listing(others.place.venv)

    def no_room(*_: object, **__: object) -> None:
        raise Unmet("no room")

    with monkeypatch.context() as patch:
        patch.setattr("colablock.transaction.undo.companions.check_room", no_room)
        with pytest.raises(Unmet, match=r"^no room$"):
            others.undo(to_first=True, companions=others.companions())
    assert listing(others.place.venv) == before
    undone = roll_back(
        others.site,
        look=others.look,
        environ=os.environ,
        to_first=True,
        companions=others.companions(),
    )
    assert [dict(one.companions) for one in undone] == [{}, {"dantic-core": "2.33"}]
    assert without_times(installed_listing(others.place.venv), ["dantic-core"]).keys() == (
        without_times(others.first, ["dantic-core"]).keys()
    )


def test_companions_for_another_state_are_refused(tmp_path: Path) -> None:
    others = Others(tmp_path, CASES["what the old version needs moved"])
    with pytest.raises(Refused, match="has changed since"):
        others.undo(companions=Companions(wheels={canonicalize_name("x"): tmp_path}))


def test_an_unforeseen_breakage_undoes_the_undo(tmp_path: Path) -> None:
    """The check before the commit finds what the stash did not tell."""
    others = Others(tmp_path, replace(CASES["something else moved"]))
    before = listing(others.place.venv)
    looks: list[Snapshot] = []

    def look() -> Snapshot:
        found = others.look()
        if looks:
            key = canonicalize_name("else")
            wrong = replace(found.installed[key], requires=("dantic>=2.12",))
            found = replace(found, installed={**found.installed, key: wrong})
        looks.append(found)
        return found

    with pytest.raises(RolledBack, match=r"else 1 requires `dantic>=2.12`, but 2.11 is installed"):
        roll_back(others.site, look=look, environ=os.environ)
    assert listing(others.place.venv) == before


def test_namespaces_of_companions_are_merged(tmp_path: Path) -> None:
    """A companion and a restored distribution have portions of one namespace, which the change removed."""
    one = Stub(name="ns-one", version="1.0", import_names=(), requires=("ns-two<2",),
               files={"ns/one/__init__.py": "", "ns/both.py": "b"})  # fmt: skip
    two = Stub(
        name="ns-two", version="1.0", import_names=(), files={"ns/two/__init__.py": "", "ns/both.py": "b"}
    )
    case = Case(before=(one, two), change=(), companions=(("ns-two", "1.0"),))
    others = Others(tmp_path, replace(case, change=(Stub(name="other", version="1"),)))
    others.place.apply(remove("ns-one"))
    uninstall_info = next(others.place.site.glob("ns_two-*.dist-info"))
    shutil.rmtree(uninstall_info)
    shutil.rmtree(others.place.site / "ns")
    build_site(
        others.place.site, [Stub(name="ns-two", version="2.0", import_names=(), files={"nsnew.py": ""})]
    )
    undone = others.undo(companions=others.companions())
    assert undone.differences == ()
    assert (others.place.site / "ns" / "one" / "__init__.py").exists()
    assert (others.place.site / "ns" / "two" / "__init__.py").exists()
    assert (others.place.site / "ns" / "both.py").read_text() == "b"
    assert not (others.place.site / "nsnew.py").exists()


@pytest.fixture
def every(request: pytest.FixtureRequest) -> int:
    """Return 1 to stop every operation, else a sample is stopped."""
    return 1 if request.config.getoption(EVERY_FAULT) else 7


@pytest.mark.parametrize(("what", "moment"), [("nothing", Moment.AFTER), ("folders", Moment.BEFORE)])
def test_an_undo_with_companions_that_fails_changes_nothing(
    tmp_path: Path, what: str, moment: Moment, every: int
) -> None:
    others = Others(tmp_path, CASES["a companion breaks another"])
    before = listing(others.place.venv)
    site, snapshot, companions = others.site, others.look(), others.companions()
    for at in range(0, 500, every):
        disk = FaultyAndStuck(what, at, full, moment=moment)
        try:
            roll_back(site, look=lambda: snapshot, environ=os.environ, companions=companions, disk=disk)
        except RolledBack:
            assert listing(others.place.venv) == before, at
        else:
            break
    assert at >= 8


def test_an_undo_with_companions_that_dies_is_undone(tmp_path: Path, every: int) -> None:
    others = Others(tmp_path, CASES["a companion breaks another"])
    before = listing(others.place.venv)
    site, snapshot, companions = others.site, others.look(), others.companions()

    def dies(at: int) -> None:
        disk = FaultyAndStuck("folders", at, die)
        roll_back(site, look=lambda: snapshot, environ=os.environ, companions=companions, disk=disk)

    for at in range(3, 500, every):
        if in_a_child(partial(dies, at)) == 0:
            break
        recover(site)
        assert listing(others.place.venv) == before, at
    assert at >= 8
    assert others.place.snapshot().installed[canonicalize_name("dantic-core")].version == "2.33"
