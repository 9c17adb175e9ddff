"""State that another user can change is not believed, and nobody else can change what we write."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colablock._common.ownership import distrust
from tests.support.machine import NOBODY, Machine, is_root
from tests.support.trees import listing
from tests.support.wheels import make_wheel

needs_root = pytest.mark.skipif(not is_root(), reason="only root can give files to another user")

Spoil = Callable[[Path], None]


def given_away(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


def open_to_all(path: Path) -> None:
    path.chmod(0o777)


def open_to_a_group(path: Path) -> None:
    os.chown(path, -1, NOBODY)
    path.chmod(0o770)


def behind_a_foreign_link(path: Path) -> None:
    real = path.with_name(f"{path.name}.real")
    path.rename(real)
    path.symlink_to(real)
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


SPOILS = [
    pytest.param(given_away, "belongs to another user", marks=needs_root),
    pytest.param(open_to_all, "can be written by everybody"),
    pytest.param(open_to_a_group, "can be written by the group", marks=needs_root),
]
LINKED = pytest.param(behind_a_foreign_link, "belongs to another user", marks=needs_root)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Path]:
    folder = tmp_path_factory.mktemp("owners")
    made = Machine(folder / "machine").prepare()
    made.copy(folder / "kept")
    return made, folder / "kept"


@pytest.fixture
def machine(prepared: tuple[Machine, Path]) -> Iterator[Machine]:
    machine, kept = prepared
    yield machine
    machine.restore(kept)


@pytest.mark.parametrize("place", ["home", "home/applied", "home/runs"])
@pytest.mark.parametrize(("spoil", "why"), [*SPOILS, LINKED])
def test_a_home_that_others_can_change_is_refused(
    machine: Machine, place: str, spoil: Spoil, why: str
) -> None:
    spoil(machine.folder / place)
    before = listing(machine.folder / "env")
    commands = [machine.apply, ("run", "tiny", "--", "python", "-c", "print('ran')"), ("runs", "list")]
    for argv in commands:
        done = machine.run(*argv)
        assert done.code == 2, done
        assert "the home of colablock, is not used" in done.text
        assert why in done.text
        assert "COLABLOCK_HOME" in done.text
        assert "ran" not in done.out.split()
    assert listing(machine.folder / "env") == before


def test_a_home_below_a_folder_of_everybody_is_refused_unless_it_is_sticky(machine: Machine) -> None:
    machine.folder.chmod(0o777)
    assert machine.run("env", "list").code == 2
    machine.folder.chmod(0o1777)
    assert machine.run("env", "list").code == 0


@needs_root
def test_root_works_in_the_home_of_the_user_who_called_sudo(machine: Machine) -> None:
    for path in [machine.folder / "home", *(machine.folder / "home").rglob("*")]:
        os.chown(path, 1234, 1234)
    assert machine.run("runs", "list").code == 2
    assert machine.run("runs", "list", environ=machine.environ(SUDO_UID="1234")).code == 0


@needs_root
def test_a_home_folder_of_the_host_is_used_in_a_container(machine: Machine) -> None:
    """Root there has a HOME that belongs to a user of the host; what it creates is root's own."""
    os.chown(machine.folder / "user", 1001, 1001)
    environ = machine.environ()
    del environ["COLABLOCK_HOME"], environ["COLABLOCK_CACHE_DIR"]
    assert machine.run(*machine.apply, environ=environ).code == 0
    made = machine.folder / "user" / ".local" / "share" / "colablock"
    assert (made / "applied" / "tiny.json").is_file()
    os.chown(made, 1001, 1001)
    assert machine.run(*machine.apply, environ=environ).code == 2


@needs_root
@pytest.mark.parametrize(
    ("user", "group", "is_private"),
    [(0, 0, True), (54321, 54321, True), (54321, 54322, False), (0, NOBODY, False)],
)
def test_a_private_group_may_write(tmp_path: Path, user: int, group: int, is_private: bool) -> None:
    os.chown(tmp_path, user, group)
    tmp_path.chmod(0o770)
    why = distrust("inner", below=tmp_path)
    assert (why is None) == is_private, why


@pytest.mark.parametrize(("spoil", "why"), [*SPOILS, LINKED])
@pytest.mark.parametrize("place", ["cache", "cache/metadata"])
def test_a_cache_that_others_can_change_is_not_used(
    machine: Machine, place: str, spoil: Spoil, why: str
) -> None:
    spoil(machine.folder / place)
    before = listing(machine.folder / "cache")
    done = machine.run("plan", "tiny", *machine.sources)
    assert done.code == 0, done
    assert done.text.count("not using the cache") == 1
    assert why in done.text
    assert listing(machine.folder / "cache") == before
    for argv in (("cache", "prune"), ("cache", "clean")):
        if place == "cache":
            refused = machine.run(*argv)
            assert (refused.code, "is not used" in refused.text) == (2, True), refused
    assert listing(machine.folder / "cache") == before


@pytest.mark.parametrize("place", [".colablock", ".colablock/changes", ".colablock/changes/0001"])
@pytest.mark.parametrize(
    ("spoil", "why"), [*SPOILS, pytest.param(behind_a_foreign_link, "is a symbolic link", marks=needs_root)]
)
def test_the_state_of_an_environment_that_others_can_change_is_refused(
    machine: Machine, place: str, spoil: Spoil, why: str
) -> None:
    spoil(machine.folder / "env" / place)
    before = listing(machine.folder / "env")
    kernel = ("--python", machine.python)
    for argv in [
        (*machine.apply, "--with", "bbb"),
        ("rollback", "--yes", *kernel),
        ("history", *kernel),
        ("history", "--drop", *kernel),
    ]:
        done = machine.run(*argv)
        assert done.code == 1, done
        assert why in done.text
        assert "chown" in done.text
    assert listing(machine.folder / "env") == before


def test_state_that_is_a_link_of_our_own_or_a_file_is_refused_too(machine: Machine) -> None:
    state = machine.folder / "env" / ".colablock"
    state.rename(machine.folder / "elsewhere")
    state.symlink_to(machine.folder / "elsewhere")
    kernel = ("--python", machine.python)
    done = machine.run("rollback", "--yes", *kernel)
    assert (done.code, "is a symbolic link" in done.text) == (1, True), done
    state.unlink()
    state.write_text("x")
    done = machine.run("rollback", "--yes", *kernel)
    assert (done.code, "is not a folder" in done.text) == (1, True), done


@pytest.mark.parametrize(("spoil", "why"), [*SPOILS, LINKED])
def test_matrices_in_a_folder_that_others_can_change_are_refused(
    machine: Machine, spoil: Spoil, why: str
) -> None:
    spoil(machine.work / "matrices")
    done = machine.run("plan", "tiny", *machine.sources)
    assert (done.code, why in done.text) == (2, True), done
    listed = machine.run("list")
    assert (listed.code, why in listed.text) == (0, True), listed
    # a shipped matrix is still found, and a file that the user names is read
    assert machine.run("show", "qlora-2026").code == 0
    assert machine.run("show", "matrices/tiny.toml").code == 0


@needs_root
def test_the_owner_of_the_working_folder_is_trusted_in_it(machine: Machine) -> None:
    """Root in a container works in a folder of the host."""
    for path in (machine.work, machine.work / "matrices", machine.work / "matrices" / "tiny.toml"):
        os.chown(path, 1000, 1000)
    assert machine.run("plan", "tiny", *machine.sources).code == 0


@pytest.mark.parametrize(("spoil", "why"), [*SPOILS, LINKED])
def test_a_run_folder_that_others_can_change_is_refused(machine: Machine, spoil: Spoil, why: str) -> None:
    spoil(machine.work / "run-1")
    for argv in (("runs", "show"), ("runs", "show", "run-1"), ("runs", "plot", "run-1", "-o", "x.svg")):
        done = machine.run(*argv)
        assert (done.code, why in done.text) == (2, True), done


# What we write


def _modes(folder: Path) -> dict[str, str]:
    found = {}
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            mode = stat.S_IMODE(path.lstat().st_mode)
            found[str(path.relative_to(folder.parent))] = f"{mode:04o}"
    return found


def test_what_we_keep_is_private_and_environments_are_only_ours_to_write(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "run", _with_umask_0(Machine.run))
        for name in ("home", "cache"):
            (tmp_path / "machine" / name).parent.mkdir(parents=True, exist_ok=True)
        machine.prepare()
        for argv in [
            (*machine.apply, "--with", "bbb"),
            ("apply", "tiny", "--into", "env", "--yes", "--find-links", str(machine.folder / "links")),
            ("rollback", "--yes", "--python", machine.python),
        ]:
            done = machine.run(*argv)
            assert done.code == 0, done
    for folder in ("cache", "home/applied", "home/current", "env/.colablock"):
        modes = _modes(machine.folder / folder)
        # Unpacked files have the modes of installed ones, which are links to them, in a private folder.
        linked = {path for path in modes if "/tree/" in path and path.startswith("cache/unpacked/")}
        assert {modes[path] for path in linked} <= {"0755", "0644"}
        others = {path: mode for path, mode in modes.items() if path not in linked}
        assert {path: mode for path, mode in others.items() if mode not in ("0700", "0600")} == {}
    for folder in ("env", "home"):
        modes = _modes(machine.folder / folder)
        assert {path: mode for path, mode in modes.items() if int(mode, 8) & 0o7022} == {}
    (built,) = (machine.folder / "home" / "envs").iterdir()
    module = next(built.glob("lib/python*/site-packages/aaa/__init__.py"))
    assert stat.S_IMODE(module.stat().st_mode) == 0o644


def _with_umask_0(run: Callable[..., object]) -> Callable[..., object]:
    def run_so(self: Machine, *argv: str, **options: object) -> object:
        return run(self, *argv, **{"umask": 0, **options})

    return run_so


def test_modes_in_a_wheel_give_nobody_more_rights(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine").prepare()
    wheel = make_wheel(machine.folder / "links", "ccc", "1.0", scripts={"ccc": "ccc:main"})
    wheel.write_bytes(_with_modes(wheel.read_bytes(), 0o107777))
    done = machine.run(*machine.apply, "--with", "ccc", umask=0)
    assert done.code == 0, done
    modes = _modes(machine.folder / "env")
    assert {path: mode for path, mode in modes.items() if int(mode, 8) & 0o7022} == {}


def _with_modes(content: bytes, mode: int) -> bytes:
    """Return a wheel with the same members, each with *mode*."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            info.external_attr = mode << 16
            target.writestr(info, source.read(info))
    return out.getvalue()


# Output files


@needs_root
@pytest.mark.parametrize("kind", ["link", "pipe", "link above"])
def test_a_trap_in_a_shared_folder_is_not_written_through(machine: Machine, kind: str) -> None:
    shared, target = machine.folder / "shared", machine.folder / "user" / ".bashrc"
    shared.mkdir()
    shared.chmod(0o1777)
    target.write_text("own\n")
    output = trap = shared / "matrix.toml"
    if kind == "pipe":
        os.mkfifo(trap)
    elif kind == "link":
        trap.symlink_to(target)
    else:
        trap = shared / "folder"
        trap.symlink_to(machine.folder / "user")
        output = trap / ".bashrc"
    os.chown(trap, NOBODY, NOBODY, follow_symlinks=False)
    done = machine.run("schema", "-o", str(output))
    done = (
        done
        if done.code == 2 and "another user" in done.text
        else machine.run("export", "tiny", "-o", str(output), *machine.sources[2:])
    )
    assert done.code == 2, done
    assert "that another user" in done.text
    assert target.read_text() == "own\n"


def test_links_of_our_own_are_followed_when_an_output_is_written(machine: Machine) -> None:
    link, target = machine.work / "link.txt", machine.work / "target.txt"
    link.symlink_to(target)
    done = machine.run("export", "tiny", "-o", str(link), *machine.sources[2:])
    assert done.code == 0, done
    assert "aaa==1.0" in target.read_text()
    assert link.is_symlink()
