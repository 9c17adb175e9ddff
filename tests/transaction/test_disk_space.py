"""Free space, and the undo cost for files of an image: on a real overlay if one can be mounted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from colablock._common.fs import file_digest, free_space
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.display.html import to_html
from colablock.display.plan_view import plan_document
from colablock.display.text import to_text
from colablock.environment._probe import interpreter_facts
from colablock.environment.markers_and_tags import Environment
from colablock.environment.snapshot import Installed, Snapshot
from colablock.errors import Unmet
from colablock.network.cache import Cache
from colablock.planning.plan import Action, Artifact, Plan, Step, Target, UndoCost
from colablock.transaction.disk_space import check_room, room_note, tree_size, undo_cost, unpacked_size
from colablock.transaction.serialise import plan_to_json
from colablock.transaction.staging import room_needed
from colablock.unpacking.store import UnpackedStore
from tests.support.paths import ROOT
from tests.support.plans import plan_from_json
from tests.support.runtime import Stub, build_site
from tests.support.wheels import make_wheel

PLAN = Plan(
    matrix="tiny",
    matrix_digest="0",
    variant=None,
    target=Target.KERNEL,
    why_target="",
    python="",
    python_version="3",
)


def removing(*names: str) -> Plan:
    steps = [Step(action=Action.REMOVE, name=canonicalize_name(name), reason="") for name in names]
    return replace(PLAN, steps=tuple(steps))


def standing(site: Path) -> Snapshot:
    """Return a snapshot with the folder *site*."""
    installed = {}
    for info in site.glob("*.dist-info"):
        name = canonicalize_name(info.name.split("-")[0])
        installed[name] = Installed(name=name, version="1.0", path=str(info))
    return Snapshot(
        environment=Environment.from_facts(interpreter_facts()),
        python=sys.executable,
        prefix=str(site),
        site=str(site),
        installed=installed,
    )


def large(name: str) -> Stub:
    files = {f"{name}/{number}.txt": "x" * 1000 for number in range(20)}
    return Stub(name=name, version="1.0", files={**files, f"{name}/weights.bin": "w" * 110_000_000})


# Space


def test_the_unpacked_size_of_wheels_is_that_of_their_files(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "one", "1.0", modules={"one.py": "#" * 100_000})
    assert 100_000 < unpacked_size([wheel]) < 150_000
    wheel.write_bytes(b"not a zip file")
    assert unpacked_size([wheel]) == 0


def test_free_space_works_for_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert free_space(tmp_path / "not" / "yet") == pytest.approx(free_space(tmp_path), rel=0.1)
    check_room(1, tmp_path, hint="")
    with pytest.raises(Unmet) as caught:
        check_room(10**18, tmp_path, hint="Take something away")
    assert (caught.value.hint, str(tmp_path) in str(caught.value)) == ("Take something away", True)


def test_copies_of_unpacked_wheels_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def needed(environ: Mapping[str, str]) -> int:
        room = room_needed([step], {step.name: wheel}, target, Cache(tmp_path / "cache"), environ)
        assert not list(target.iterdir())
        return room

    target = tmp_path / "target"
    target.mkdir()
    wheel = make_wheel(tmp_path, "one", "1.0", modules={"one.py": "#" * 100_000})
    sha256 = file_digest(wheel)
    name = canonicalize_name("one")
    artifact = Artifact(name=name, version="1.0", filename=wheel.name, url="", hashes={"sha256": sha256})
    step = Step(action=Action.INSTALL, name=name, reason="", artifact=artifact)
    copies = {"UV_LINK_MODE": "copy"}
    size = unpacked_size([wheel])
    assert (needed({}), needed(copies)) == (size, 2 * size)
    UnpackedStore(Cache(tmp_path / "cache"), target=target, scratch=target).get(wheel, sha256)
    assert (needed({}), needed(copies)) == (0, size)
    monkeypatch.setattr(os, "link", no_links)
    assert needed({}) == size


def test_a_plan_warns_of_too_little_disk_space(tmp_path: Path) -> None:
    artifact = Artifact(name=canonicalize_name("one"), version="1", filename="", url="", size=10**18)
    step = Step(action=Action.INSTALL, name=artifact.name, reason="", artifact=artifact)
    assert room_note(PLAN, tmp_path) is None
    assert "needs about" in (room_note(replace(PLAN, steps=(step,)), tmp_path) or "")
    copied = UndoCost(files=1, bytes=10**18)
    assert room_note(replace(PLAN, undo_cost=copied), tmp_path) is not None


# What an undo costs


def mounted(tmp_path: Path, point: Path, kind: str, options: str = "rw") -> Path:
    """Return a mountinfo (proc_pid_mountinfo(5)) in which *point* is the deepest mount."""
    escaped = str(point).replace(" ", r"\040")
    lines = [
        "21 1 8:1 / / rw - ext4 /dev/sda rw",
        f"22 21 0:5 / {escaped} rw shared:7 master:1 - {kind} none {options}",
        f"23 21 0:6 / {escaped}-beside rw - tmpfs none rw",
    ]
    path = tmp_path / "mountinfo"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["ext4", "overlay"])
def test_only_an_overlay_has_an_undo_cost(tmp_path: Path, kind: str) -> None:
    site = build_site(tmp_path / "a site", [Stub(name="one", version="1.0"), Stub(name="two", version="1.0")])
    mounts = mounted(tmp_path, site, kind)
    later = time.time() + 10
    found = undo_cost(removing("one"), standing(site), mountinfo=mounts, started=later)
    if kind == "ext4":
        assert found is None
        return
    assert found is not None
    assert (found.files, found.seconds) == (6, 0.0)
    assert found.bytes > 100
    assert undo_cost(removing(), standing(site), mountinfo=mounts, started=later) is None
    assert undo_cost(removing("one"), standing(site), mountinfo=mounts, started=0.0) is None


def test_unreadable_mounts_have_no_undo_cost(tmp_path: Path) -> None:
    assert undo_cost(removing("one"), standing(tmp_path), mountinfo=tmp_path / "none") is None


def test_an_invalid_size_in_a_record_counts_as_zero(tmp_path: Path) -> None:
    site = build_site(tmp_path / "site", [Stub(name="one", version="1.0")])
    with (site / "one-1.0.dist-info" / "RECORD").open("a") as record:
        record.write("one/x.py,,many\n")
    mounts = mounted(tmp_path, site, "overlay")
    found = undo_cost(removing("one"), standing(site), mountinfo=mounts, started=time.time() + 10)
    assert found is not None
    assert found.files == 6


def test_a_relative_upper_folder_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "diff").mkdir()
    monkeypatch.chdir(tmp_path)
    site = build_site(tmp_path / "site", [Stub(name="one", version="1.0")])
    mounts = mounted(tmp_path, site, "overlay", "rw,lowerdir=l/A,upperdir=diff,workdir=work")
    assert undo_cost(removing("one"), standing(site), mountinfo=mounts, started=0.0) is None


# The image holds `old` and `both`; over the mount, `new` was installed and `both` written anew.
CHILD = """
import json, sys, time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tests.support.runtime import build_site
from tests.transaction.test_disk_space import large, removing, standing
from colablock.network.cache import Cache
from colablock.transaction.disk_space import undo_cost
from tests.support.timing import slowness

site, started, hidden = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
build_site(site, [large("new"), large("both")])
lines = [line for line in open("/proc/self/mountinfo")]
hidden.write_text("".join(line.replace("upperdir=", "upperdir=/nowhere") for line in lines))
listed = sorted(path.name for path in site.iterdir())
found = {}
for names in (["old"], ["new"], ["both"], ["old", "new"]):
    begun = time.process_time()
    seen = undo_cost(removing(*names), standing(site))
    told = (time.process_time() - begun) / slowness()
    blind = undo_cost(removing(*names), standing(site), mountinfo=hidden, started=started)
    found[" ".join(names)] = [one and asdict(one) for one in (seen, blind)] + [told]
assert sorted(path.name for path in site.iterdir()) == listed
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Costs of removals on an overlay, with its upper layer visible or not; skips if none can be mounted."""
    folder = tmp_path_factory.mktemp("overlay")
    lower, upper, work, merged = (folder / name for name in ("lower", "upper", "work", "merged"))
    for one in (lower, upper, work, merged):
        one.mkdir()
    build_site(lower / "site", [large("old"), large("both")])
    time.sleep(0.1)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mount = 'mount -t overlay overlay -o "$1" "$2" || exit 77; shift 2; exec "$@"'
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare` here to mount an overlay with")
    command = ["unshare", "-m", "sh", "-c", mount, "sh", options, str(merged), sys.executable, "-c", CHILD]
    arguments = [str(merged / "site"), str(time.time()), str(folder / "mountinfo")]
    time.sleep(0.1)
    root = str(ROOT)
    environ = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, env=environ, cwd=root
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no overlay may be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("names", ["old", "old new"])
def test_files_of_the_image_are_found_by_upper_folder_or_ctime(costs: Any, names: str) -> None:
    seen, blind, _ = costs[names]
    for found in (seen, blind):
        assert found["files"] == 27  # 22 of the package, 5 of its .dist-info
        assert 110_000_000 < found["bytes"] < 111_000_000
        assert 0 < found["seconds"] < 600
    assert seen["bytes"] == blind["bytes"]


@pytest.mark.parametrize("names", ["new", "both"])
def test_files_in_the_upper_layer_cost_nothing(costs: Any, names: str) -> None:
    assert costs[names][:2] == [None, None]


def test_the_undo_cost_is_computed_quickly(costs: Any) -> None:
    assert all(told < 2 for _, _, told in costs.values())


def test_a_plan_contains_its_undo_cost() -> None:
    plan = replace(removing("one"), undo_cost=UndoCost(files=24000, bytes=6_800_000_000, seconds=15.2))
    words = "colablock copies 24,000 files of the image (6.8 GB), which takes about 15 s;"
    assert words in " ".join(to_text(plan_document(plan)).split())
    assert words in to_html(plan_document(plan))
    assert "<code>--no-undo</code>" in to_html(plan_document(plan))
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan_to_json(plan)["undo_cost"] == asdict(plan.undo_cost or UndoCost(files=0, bytes=0))


def test_a_file_counts_once_and_is_shared_if_others_have_a_link(tmp_path: Path) -> None:
    folder, cache = tmp_path / "env", tmp_path / "cache"
    (folder / "inner").mkdir(parents=True)
    cache.write_bytes(b"x" * 1000)
    (folder / "inner" / "linked").hardlink_to(cache)
    (folder / "again").hardlink_to(cache)
    (folder / "own").write_bytes(b"x" * 100)
    (folder / "own too").hardlink_to(folder / "own")
    (folder / "alone").write_bytes(b"x" * 10)
    (folder / "link").symlink_to("own")
    assert tree_size(folder) == (1000 + 100 + 10 + len("own"), 1000)
    cache.unlink()
    assert tree_size(folder).shared == 0
    assert tree_size(tmp_path / "none") == (0, 0)
