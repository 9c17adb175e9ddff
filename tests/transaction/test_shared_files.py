"""Changes of distributions that own the same files: whose are there after, and what an undo restores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from colablock.environment.record import read_record, row_differs
from colablock.environment.site import read_site
from colablock.errors import Refused, RolledBack
from colablock.planning.plan import Step
from colablock.transaction.rollback import roll_back
from tests.support.faults import Faulty, Moment, full
from tests.support.runtime import Stub, build_site
from tests.support.small_ground import SmallGround, remove
from tests.support.trees import installed_listing, listing
from tests.support.wheels import make_wheel

pytestmark = pytest.mark.stdlib

BUILDS = ("first", "second", "third")


def files_of(name: str, version: str) -> dict[str, str]:
    """Return the modules of a build.  Those of a new version are in other folders, too."""
    return {
        "build/__init__.py": f"OF = '{version}'\n",
        "build/deep/name.py": f"NAME = '{name} {version}'\n",
        f"build/{name}/own.py": "",
        f"build/of_{version[0]}/core.py": f"NAME = '{name}'\n",
        "shared/by_catch.py": f"OF = '{name} {version}'\n",
    }


@pytest.fixture
def builds(place: SmallGround) -> SmallGround:
    """Give an environment with three builds of one package; the files are those of the last one."""
    stubs = [
        Stub(name=name, version="1.0", import_names=("build",), files=files_of(name, "1.0"))
        for name in BUILDS
    ]
    build_site(place.site, stubs)
    cache = place.site / "build" / "deep" / "__pycache__"
    cache.mkdir()
    (cache / "name.cpython-311.pyc").write_bytes(b"x")
    return place


def put(place: SmallGround, name: str, version: str) -> Step:
    return place.put(make_wheel(place.folder, name, version, modules=files_of(name, version)), previous="1.0")


Change = Callable[[SmallGround], Sequence[Step]]
CHANGES: dict[str, tuple[Change, str]] = {
    "two move and one goes": (
        lambda place: [remove("third"), put(place, "second", "2.0"), put(place, "first", "2.0")],
        "first 2.0",
    ),
    "one is laid again": (lambda place: [remove("third"), put(place, "second", "1.0")], "second 1.0"),
    "the last of the plan wins": (
        lambda place: [put(place, "first", "2.0"), put(place, "third", "2.0"), put(place, "second", "2.0")],
        "second 2.0",
    ),
    "all go": (lambda _place: [remove(name) for name in BUILDS], ""),
}


@pytest.mark.parametrize(("change", "owner"), CHANGES.values(), ids=CHANGES)
def test_the_files_are_those_of_the_last_build_and_an_undo_restores_all(
    change: Change, owner: str, builds: SmallGround
) -> None:
    before = listing(builds.venv)
    builds.apply(*change(builds))
    names = builds.site / "build" / "deep" / "name.py"
    assert (names.read_text() if names.exists() else "") == (f"NAME = '{owner}'\n" if owner else "")
    if owner:
        name, version = owner.split()
        info = builds.site / f"{name}-{version}.dist-info"
        assert not [row for row in read_record(info) or () if row_differs(builds.site / row.path, row)]
    assert not list(builds.site.rglob("name.cpython-311.pyc"))
    roll_back(read_site(builds.python, os.environ), look=builds.snapshot)
    assert listing(builds.venv) == before


@pytest.mark.slow  # at each operation
def test_a_change_of_shared_files_that_fails_leaves_them_as_they_were(builds: SmallGround) -> None:
    change, _ = CHANGES["two move and one goes"]
    steps = change(builds)
    before = installed_listing(builds.venv)
    applying, undoing = Faulty(-1, full), Faulty(-1, full)
    builds.apply(*steps, disk=applying)
    after = installed_listing(builds.venv)
    site = read_site(builds.python, os.environ)
    roll_back(site, look=builds.snapshot, disk=undoing)
    assert installed_listing(builds.venv) == before
    for at in range(2, applying.count, applying.count // 3):  # each stages all wheels, which takes time
        with suppress(RolledBack):
            builds.apply(*steps, disk=Faulty(at, full))
            assert installed_listing(builds.venv) == after, at  # only what is tidied up at the end failed
            roll_back(site, look=builds.snapshot)
        assert installed_listing(builds.venv) == before, at
    builds.apply(*steps)
    for at in range(undoing.count):
        with suppress(RolledBack):
            roll_back(site, look=builds.snapshot, disk=Faulty(at, full, moment=[*Moment][at % 3]))
            break
        assert installed_listing(builds.venv) == after, at
    else:
        roll_back(site, look=builds.snapshot)
    assert installed_listing(builds.venv) == before


def test_builds_of_different_versions_are_refused_before_anything_changes(builds: SmallGround) -> None:
    before = listing(builds.venv)
    with pytest.raises(Refused, match=r"`first` 2.0 and `second` 3.0 own the same files"):
        builds.apply(put(builds, "second", "3.0"), put(builds, "first", "2.0"))
    assert listing(builds.venv) == before


def test_a_native_file_in_the_data_of_a_wheel_is_taken_from_there(tmp_path: Path) -> None:
    """The last wheel has its modules below ``.data/platlib``, where uv finds them too."""
    place = SmallGround(tmp_path)
    wheels = tmp_path / "wheels"
    plain = make_wheel(wheels, "first", "2.0", modules={"build/x.so": "of first", "build/y.py": ""})
    last = make_wheel(
        wheels, "second", "2.0", modules={"build/y.py": ""}, data_files={"platlib/build/x.so": "of second"}
    )
    place.apply(place.put(last), place.put(plain))
    assert (place.site / "build" / "x.so").read_text() == "of first"
    roll_back(read_site(place.python, os.environ), look=place.snapshot)
    place.apply(place.put(plain), place.put(last))
    assert (place.site / "build" / "x.so").read_text() == "of second"
