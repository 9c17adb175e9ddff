from __future__ import annotations

import base64
import csv
import errno
import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.record import read_record
from colablock.environment.site import Site, read_site
from colablock.environment.snapshot import fingerprint, installed_versions
from colablock.errors import BadDistribution, NotRestored, Refused, RolledBack, Unmet
from colablock.matrix.model import Verify
from colablock.planning.plan import UndoCost
from colablock.transaction.apply import apply_plan
from colablock.transaction.disk_operations import Operations
from colablock.transaction.rollback import roll_back
from colablock.transaction.staging import stage
from colablock.verification.verify import Check, prove
from tests.support.runtime import Stub, build_site, site_of
from tests.support.small_ground import PASSED, SmallGround, remove
from tests.support.trees import installed_listing, listing
from tests.support.wheels import make_wheel

pytestmark = pytest.mark.stdlib

FAILED = (*PASSED, Check(kind="import", subject="other", passed=False, detail="ImportError: no such thing"))


def grown(wheel: Path) -> Path:
    """Let *wheel* claim an unpacked size larger than any disk."""
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("large/weights.bin", b"")
        archive.infolist()[-1].file_size = 10**18
    return wheel


def assert_records_hold(site: Path) -> None:
    listed = set()
    for info in site.glob("*.dist-info"):
        for row in read_record(info) or ():
            assert (site / row.path).is_file(), row
            listed.add(os.path.normpath(site / row.path))
            if row.hash:
                digest = hashlib.sha256((site / row.path).read_bytes())
                assert digest.hexdigest() == _hex(row.hash), row
    for path in site.rglob("*"):
        assert path.is_dir() or "__pycache__" in path.parts or str(path) in listed, path


def _hex(recorded: str) -> str:
    return base64.urlsafe_b64decode(recorded.partition("=")[2] + "=").hex()


def test_a_plan_with_steps_of_every_kind_is_applied(place: SmallGround) -> None:
    assert place.apply(*place.steps()) == PASSED
    assert installed_versions([place.site]) == {"moved": "2.0+cpu", "new": "2.0", "stays": "1.0"}
    found = {
        path.relative_to(place.site).as_posix()
        for path in place.site.rglob("*")
        if ".dist-info" not in str(path)
    }
    assert found == {
        "moved",
        "moved/__init__.py",
        "moved/fresh.py",
        "new",
        "new/__init__.py",
        "shared",
        "shared/__init__.py",
        "shared/__pycache__",
        "shared/__pycache__/stays.cpython-311.pyc",
        "shared/both.py",
        "shared/new.py",
        "shared/stays.py",
        "stays",
        "stays/__init__.py",
    }
    assert not (place.venv / "bin" / "moved").exists()
    assert (place.venv / "share" / "new" / "x.txt").read_text() == "x"
    assert [path.name for path in (place.venv / ".colablock").iterdir()] == ["changes"]
    assert_records_hold(place.site)


def test_an_installed_script_uses_the_interpreter_of_the_site(place: SmallGround) -> None:
    wheel = make_wheel(
        place.folder,
        "tool",
        "1.0",
        modules={"tool.py": "import sys\ndef main():\n    print(sys.prefix)\n"},
        scripts={"tool": "tool:main"},
    )
    place.apply(place.put(wheel))
    done = subprocess.run([place.venv / "bin" / "tool"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(place.venv)


def test_installer_requested_and_direct_url_are_recorded(place: SmallGround) -> None:
    wheels = {name: make_wheel(place.folder, name, "1.0") for name in ("asked", "brought", "archive")}
    steps = (
        place.put(wheels["asked"], requested=True),
        place.put(wheels["brought"]),
        place.put(wheels["archive"], direct=True),
    )
    place.apply(*steps)
    names = {"INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"}
    found = {
        name: sorted(
            path.name for path in (place.site / f"{name}-1.0.dist-info").iterdir() if path.name in names
        )
        for name in wheels
    }
    assert found == {
        "asked": ["INSTALLER", "REQUESTED"],
        "brought": ["INSTALLER"],
        "archive": ["INSTALLER", "direct_url.json"],
    }
    assert (place.site / "asked-1.0.dist-info" / "INSTALLER").read_text() == "colablock\n"
    sha256 = hashlib.sha256(wheels["archive"].read_bytes()).hexdigest()
    assert json.loads((place.site / "archive-1.0.dist-info" / "direct_url.json").read_text()) == {
        "url": f"https://files.example/{wheels['archive'].name}",
        "archive_info": {"hash": f"sha256={sha256}", "hashes": {"sha256": sha256}},
    }
    assert_records_hold(place.site)


def test_installing_and_removing_a_distribution_restores_the_site(place: SmallGround) -> None:
    (place.venv / "share").mkdir()  # a folder that is kept when it is empty
    before = listing(place.venv)
    wheel = make_wheel(
        place.folder, "new", "1.0", scripts={"n": "new:main"}, data_files={"data/share/n/x": "x"}
    )
    place.apply(place.put(wheel))
    place.apply(remove("new"))
    assert installed_listing(place.venv) == before


@pytest.mark.parametrize("checks", [FAILED], ids=["a failed proof"])
def test_a_failed_check_rolls_back_and_is_named(place: SmallGround, checks: tuple[Check, ...]) -> None:
    steps = place.steps()
    before = listing(place.venv)
    with pytest.raises(RolledBack, match=r"import `other`\n\s+ImportError: no such thing"):
        place.apply(*steps, checks=checks)
    assert listing(place.venv) == before


def test_a_change_with_a_failed_check_can_be_kept(place: SmallGround) -> None:
    assert place.apply(*place.steps(), checks=FAILED, keep=True) == FAILED
    assert "new" in installed_versions([place.site])


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), Unmet("no interpreter")])
def test_an_error_during_the_checks_rolls_back(place: SmallGround, error: Exception) -> None:
    steps = place.steps()
    before = listing(place.venv)

    def prove(_: object) -> tuple[Check, ...]:
        raise error

    with pytest.raises(RolledBack, match=r"no (space|interpreter)"):
        place.apply(*steps, prove=prove)
    assert listing(place.venv) == before


@pytest.mark.parametrize("passes", [True, False])
def test_proofs_leave_bytecode_only_in_new_folders(place: SmallGround, passes: bool) -> None:
    before = listing(place.venv)
    steps = place.steps()

    def proved(folders: tuple[str, ...]) -> tuple[Check, ...]:
        verify = Verify(imports=("new", "moved.fresh", "shared.stays", "shared.new"))
        checks = prove(place.python, verify=verify, pins={}, environ=os.environ, bytecode=folders)
        assert all(check.passed for check in checks)
        assert found() == {"new/__init__", "moved/__init__", "moved/fresh", *standing}
        return checks if passes else FAILED

    def found() -> set[str]:
        compiled = (path.relative_to(place.site) for path in place.site.rglob("*.pyc"))
        return {f"{path.parents[1]}/{path.name.partition('.')[0]}" for path in compiled}

    standing = found() - {"gone/__init__", "shared/gone"}
    if passes:
        place.apply(*steps, prove=proved)
        roll_back(read_site(place.python, os.environ), look=place.snapshot)
    else:
        with pytest.raises(RolledBack):
            place.apply(*steps, prove=proved)
    assert installed_listing(place.venv) == before


def test_an_interrupt_during_the_checks_rolls_back_and_propagates(place: SmallGround) -> None:
    steps = place.steps()
    before = listing(place.venv)

    def prove(_: object) -> tuple[Check, ...]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.apply(*steps, prove=prove)
    assert listing(place.venv) == before


class FullDisk(Operations):
    """Fails the given rename, and with *forever* all later ones, too."""

    def __init__(self, at: int, *, forever: bool) -> None:
        self.left = at
        self.forever = forever

    def rename(self, source: str, destination: str) -> None:
        self.left -= 1
        if self.left == 0 or (self.left < 0 and self.forever):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().rename(source, destination)


def test_a_disk_error_rolls_back(place: SmallGround) -> None:
    steps = place.steps()
    before = listing(place.venv)
    with pytest.raises(RolledBack, match="No space left"):
        place.apply(*steps, disk=FullDisk(5, forever=False))
    assert listing(place.venv) == before


def test_if_the_rollback_fails_the_next_call_restores(place: SmallGround) -> None:
    steps = place.steps()
    before = listing(place.venv)
    with pytest.raises(NotRestored) as caught:
        place.apply(*steps, disk=FullDisk(5, forever=True))
    assert Path(caught.value.stash).is_dir()
    with pytest.raises(Refused, match="was undone"):
        place.apply(*steps)
    assert listing(place.venv) == before
    place.apply(*steps)


def test_an_environment_that_changed_after_the_plan_is_refused(place: SmallGround) -> None:
    steps = place.steps()
    plan, snapshot = place.plan(*steps), place.snapshot()
    build_site(place.site, [Stub(name="sudden", version="3")])
    before = listing(place.venv)
    with pytest.raises(Refused, match="`sudden` 3 is new"):
        apply_plan(
            plan,
            snapshot,
            place.files,
            prove=lambda _: PASSED,
            environ=os.environ,
            fingerprint=lambda: fingerprint(place.snapshot()),
        )
    assert listing(place.venv) == before


def test_only_differences_are_listed_if_the_environment_is_a_link(place: SmallGround) -> None:
    (place.folder / "link").symlink_to("env")
    place.python = str(place.folder / "link" / "bin" / "python")
    plan, snapshot = place.plan(remove("gone")), place.snapshot()
    build_site(place.site, [Stub(name="sudden", version="3")])
    with pytest.raises(Refused) as caught:
        apply_plan(plan, snapshot, {}, prove=lambda _: (), environ=os.environ, fingerprint=lambda: "another")
    assert caught.value.message.splitlines()[1:] == ["  `sudden` 3 is new"]


def test_a_wheel_whose_hash_differs_is_refused(place: SmallGround) -> None:
    step = place.put(make_wheel(place.folder, "new", "1.0"))
    assert step.artifact is not None
    wrong = replace(step, artifact=replace(step.artifact, hashes={"sha256": "0" * 64}))
    before = listing(place.venv)
    with pytest.raises(BadDistribution, match="another SHA-256 than 00000"):
        place.apply(wrong)
    assert listing(place.venv) == before


def rewrite(wheel: Path, change: Mapping[str, str], drop: Iterable[str] = ()) -> Path:
    """Replace members of a wheel without updating its RECORD."""
    with zipfile.ZipFile(wheel) as source:
        members = {name: source.read(name) for name in source.namelist() if name not in drop}
    with zipfile.ZipFile(wheel, "w") as out:
        for name, data in {**members, **{name: text.encode() for name, text in change.items()}}.items():
            out.writestr(name, data)
    return wheel


def test_a_file_that_differs_from_its_record_is_refused(place: SmallGround) -> None:
    wheel = rewrite(make_wheel(place.folder, "new", "1.0"), {"new/__init__.py": "__version__ = '6.6'\n"})
    before = listing(place.venv)
    with pytest.raises(BadDistribution, match=r"`new/__init__\.py` differs from its RECORD"):
        place.apply(place.put(wheel))
    assert listing(place.venv) == before


def test_an_unlisted_file_is_added_to_the_record(place: SmallGround) -> None:
    before = listing(place.venv)
    place.apply(place.put(rewrite(make_wheel(place.folder, "new", "1.0"), {"new/more.py": ""})))
    assert_records_hold(place.site)
    place.apply(remove("new"))
    assert installed_listing(place.venv) == before


def test_a_replaced_file_of_nobody_is_restored_by_an_undo(place: SmallGround) -> None:
    (place.site / "new").mkdir()
    (place.site / "new" / "__init__.py").write_text("mine")
    before = listing(place.venv)
    step = place.put(make_wheel(place.folder, "new", "1.0"))
    with pytest.raises(RolledBack):
        place.apply(step, checks=FAILED)
    assert listing(place.venv) == before
    place.apply(step)
    assert (place.site / "new" / "__init__.py").read_text() != "mine"


def test_a_distribution_without_record_is_refused_with_a_hint(place: SmallGround) -> None:
    (place.site / "gone-1.0.dist-info" / "RECORD").unlink()
    before = listing(place.venv)
    with pytest.raises(Refused, match="has no RECORD") as caught:
        place.apply(remove("gone"))
    assert caught.value.hint is not None
    assert "--ignore-installed --no-deps gone==1.0" in caught.value.hint
    assert listing(place.venv) == before


def test_a_distribution_of_conda_is_refused(place: SmallGround) -> None:
    (place.site / "gone-1.0.dist-info" / "RECORD").unlink()
    (place.site / "gone-1.0.dist-info" / "INSTALLER").write_text("conda\n")
    with pytest.raises(Refused) as caught:
        place.apply(remove("gone"))
    assert caught.value.hint is not None
    assert "conda" in caught.value.hint


def test_recorded_paths_outside_of_the_environment_are_refused(place: SmallGround) -> None:
    outside = place.folder / "precious.txt"
    outside.write_text("p")
    with (place.site / "gone-1.0.dist-info" / "RECORD").open("a") as record:
        csv.writer(record).writerow([os.path.relpath(outside, place.site), "", ""])
    before = listing(place.folder)
    with pytest.raises(Refused, match=r"precious\.txt"):
        place.apply(remove("gone"))
    assert listing(place.folder) == before


def test_recorded_paths_through_a_link_to_outside_are_refused(place: SmallGround) -> None:
    (place.folder / "elsewhere").mkdir()
    (place.folder / "elsewhere" / "x.py").write_text("")
    (place.site / "linked").symlink_to(place.folder / "elsewhere")
    with (place.site / "gone-1.0.dist-info" / "RECORD").open("a") as record:
        record.write("linked/x.py,,\n")
    with pytest.raises(Refused, match=r"linked/x\.py"):
        place.apply(remove("gone"))
    assert (place.folder / "elsewhere" / "x.py").exists()


def test_an_editable_installation_is_removed_by_its_record(place: SmallGround) -> None:
    source = place.folder / "source" / "ed"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("")
    before = listing(place.venv)
    stub = Stub(name="ed", version="1.0", import_names=(), files={"__editable__.ed.pth": str(source.parent)})
    build_site(place.site, [stub])
    place.apply(remove("ed"))
    assert installed_listing(place.venv) == before
    assert source.is_dir()


def test_a_distribution_in_another_site_is_shadowed_but_not_removed(tmp_path: Path) -> None:
    base = SmallGround(tmp_path / "base")
    child = tmp_path / "child"
    subprocess.run([base.python, "-m", "venv", "--without-pip", str(child)], check=True)
    (site_of(child) / "base.pth").write_text(f"{base.site}\n")
    place = SmallGround.__new__(SmallGround)
    place.folder, place.venv, place.site = tmp_path, child, site_of(child)
    place.python, place.files = str(child / "bin" / "python"), {}
    before = listing(base.venv)
    place.apply(place.put(make_wheel(tmp_path, "moved", "2.0"), previous="1.0"))
    assert place.snapshot().installed[canonicalize_name("moved")].version == "2.0"
    with pytest.raises(Refused, match="outside of"):
        place.apply(remove("gone"))
    assert listing(base.venv) == before


def test_an_externally_managed_environment_is_refused(place: SmallGround) -> None:
    snapshot = replace(place.snapshot(), externally_managed="use apt\n")
    with pytest.raises(Refused, match=r"PEP 668.*use apt") as caught:
        apply_plan(place.plan(remove("gone")), snapshot, {}, prove=lambda _: PASSED, environ=os.environ)
    assert "`--into env`" in str(caught.value.hint)
    assert "`break_system_packages=True`" in str(caught.value.hint)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_environment_is_refused(place: SmallGround) -> None:
    place.venv.chmod(0o555)
    with pytest.raises(Refused, match="cannot be changed"):
        place.apply(remove("gone"))


def test_variables_of_uv_and_pip_do_not_affect_staging(place: SmallGround) -> None:
    environ = {**os.environ, "UV_CONSTRAINT": "/nowhere", "UV_SYSTEM_PYTHON": "1", "PIP_TARGET": "/nowhere"}
    place.apply(place.put(make_wheel(place.folder, "new", "1.0")), environ=environ)
    assert "new" in installed_versions([place.site])


def test_staging_supports_the_layout_of_debian(place: SmallGround, tmp_path: Path) -> None:
    wheel = make_wheel(
        tmp_path,
        "new",
        "1.0",
        scripts={"n": "new:main"},
        data_files={"data/share/n/x": "x", "platlib/p.py": ""},
    )
    packages = "/usr/local/lib/python3/dist-packages"
    site = Site(
        python=place.python,
        prefix="/usr",
        purelib=packages,
        platlib=packages,
        scripts="/usr/local/sbin/deep",
        data="/usr/local",
    )
    staged = stage(
        place.plan(place.put(wheel)),
        place.files,
        python=place.python,
        into=tmp_path / "stage",
        environ=os.environ,
        site=site,
    )
    folders = dict(staged.tree.places)
    (pure,) = (Path(folder) for folder, goes in folders.items() if goes == packages)
    rows = {row.path for row in read_record(pure / "new-1.0.dist-info") or ()}
    assert {"../../../sbin/deep/n", "../../../share/n/x", "new/__init__.py", "p.py"} <= rows
    assert folders[str(pure.parents[2] / "bin")] == site.scripts
    assert staged.size > 0


def test_read_site_asks_the_interpreter(place: SmallGround) -> None:
    site = read_site(place.python, os.environ)
    assert site.is_venv
    assert (site.purelib, site.data) == (str(place.site), str(place.venv))


def test_files_of_a_protected_distribution_are_not_replaced(place: SmallGround) -> None:
    snapshot = replace(place.snapshot(), protected=frozenset({canonicalize_name("stays")}))
    before = listing(place.venv)

    def apply(version: str, modules: Mapping[str, str]) -> None:
        step = place.put(make_wheel(place.folder, "new", version, modules=modules))
        apply_plan(place.plan(step), snapshot, place.files, prove=lambda _: PASSED, environ=os.environ)

    with pytest.raises(Refused, match=r"of the protected distribution `stays` .* the one of `new` 2.0"):
        apply("2.0", {"shared/stays.py": "other"})
    assert listing(place.venv) == before
    apply("3.0", {"shared/both.py": "both", "shared/stays.py": "", "shared/more.py": "m"})
    after = listing(place.venv)
    assert {path: after.get(path) for path in before} == before
    assert (place.site / "shared" / "more.py").read_text() == "m"


def test_replaced_files_of_other_distributions_are_noted(place: SmallGround) -> None:
    notes: list[str] = []

    class Notes(Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    wheel = make_wheel(
        place.folder, "new", "1.0", modules={"shared/stays.py": "other", "shared/both.py": "both"}
    )
    place.apply(place.put(wheel), reporter=Notes())
    (note,) = notes
    assert f"`{place.site / 'shared' / 'stays.py'}` of `stays`: replaced" in note


def test_too_little_disk_space_is_refused_before_a_change(place: SmallGround) -> None:
    before = listing(place.venv)
    wheel = grown(make_wheel(place.folder, "large", "1.0"))
    with pytest.raises(Unmet, match=r"needs 1000000 TB") as caught:
        place.apply(remove("gone"), place.put(wheel))
    assert str(place.venv) in str(caught.value)
    assert "history --drop" in (caught.value.hint or "")
    assert listing(place.venv) == before


def test_copies_for_an_undo_count_as_disk_space(place: SmallGround) -> None:
    before = listing(place.venv)
    plan = replace(place.plan(remove("gone")), undo_cost=UndoCost(files=3, bytes=10**18))
    options = {"prove": lambda _: PASSED, "environ": os.environ}
    with pytest.raises(Unmet, match=r"needs 1000000 TB"):
        apply_plan(plan, place.snapshot(), {}, **options)  # type: ignore[arg-type]
    assert listing(place.venv) == before
    assert apply_plan(plan, place.snapshot(), {}, undo=False, **options) == PASSED  # type: ignore[arg-type]


def test_installed_files_are_not_hard_links_into_a_cache(place: SmallGround) -> None:
    cache = place.folder / "uv-cache"
    place.apply(
        place.put(make_wheel(place.folder, "new", "1.0")), environ={**os.environ, "UV_CACHE_DIR": str(cache)}
    )
    assert {path.stat().st_nlink for path in place.site.glob("new*/**/*") if path.is_file()} == {1}
    assert not list(cache.glob("archive-*/*"))


@pytest.mark.slow  # at each operation
@pytest.mark.parametrize(("at", "forever"), [(1, False), (3, False), (6, False), (2, True), (5, True)])
def test_a_disk_error_brings_every_record_of_a_name_back(
    place: SmallGround, at: int, *, forever: bool
) -> None:
    (place.site / "moved-1.0.dist-info" / "RECORD.jws").write_text("{}")
    (place.site / "moved-0.9.dist-info").mkdir()
    build_site(place.site, [Stub(name="Moved", version="0.5")])
    (place.site / "gone-0.1.dist-info").mkdir()
    (place.site / "gone-0.1.dist-info" / "WHEEL").touch()
    steps = place.steps()
    before = listing(place.venv)
    with pytest.raises((RolledBack, NotRestored)):
        place.apply(*steps, disk=FullDisk(at, forever=forever))
    if forever:
        with pytest.raises(Refused, match="was undone"):
            place.apply(*steps)
    assert listing(place.venv) == before
    place.apply(*steps)
    found = {path.name.lower() for path in place.site.glob("*.dist-info")}
    assert found == {"moved-2.0+cpu.dist-info", "new-2.0.dist-info", "stays-1.0.dist-info"}
