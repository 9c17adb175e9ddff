from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from colablock._common.fs import (
    NEW,
    atomic_path,
    file_digest,
    flock,
    locked_file,
    machine_error,
    machine_errors,
    open_locked,
    replace_file,
    write_atomic,
    write_private,
)
from colablock.errors import InvalidInput, Unmet


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_is_written_under_another_name_until_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_path(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
        assert new.parent == tmp_path
        assert new.name.startswith(".new-")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_of_an_unfinished_file_differs_each_time(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with atomic_path(tmp_path / "file") as new:
            new.touch()
            names.add(new.name)
    assert len(names) == 3


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as new:
            new.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new", synced=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_gets_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("is_there", [False, True])
def test_a_private_file_is_for_its_owner_whatever_the_umask(tmp_path: Path, is_there: bool) -> None:
    path = tmp_path / "token"
    if is_there:
        path.write_bytes(b"")
        path.chmod(0o644)
    umask = os.umask(0)
    try:
        replace_file(path, b"secret", private=True)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o755])
def test_the_permissions_of_a_replaced_file_are_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    replace_file(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


def test_a_synced_file_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    replace_file(path, b"new", synced=True)
    replace_file(path, b"newer")
    assert done == ["file", "rename", "folder", "rename"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_need_not_sync_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="nput/output error") if number == errno.EIO else nullcontext():
        replace_file(tmp_path / "file", b"new", synced=True)
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_link_is_replaced_without_touching_its_target(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    replace_file(link, b"new")
    assert not link.is_symlink()
    assert link.read_text() == "new"
    assert target.read_text() == "old"


def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_that_the_user_names_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_atomic(pipe, b"new")
    reader.join()
    assert got == [b"new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_unwritable_output_is_invalid_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput, match="cannot be written"):
            write_atomic(path, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_no_fault_of_the_output() -> None:
    with pytest.raises(Unmet, match="cannot be written: No space left") as caught:
        write_atomic(Path("/dev/full"), b"new")
    assert "Free space on the disk" in str(caught.value.hint)


def test_one_process_holds_a_lock_at_a_time(tmp_path: Path) -> None:
    held = open_locked(tmp_path)
    assert held is not None
    assert open_locked(tmp_path, wait=False) is None
    assert open_locked(tmp_path, wait=False, shared=True) is None
    os.close(held)
    first, second = (open_locked(tmp_path, shared=True) for _ in range(2))
    assert first is not None
    assert second is not None
    assert open_locked(tmp_path, wait=False) is None
    for descriptor in (first, second):
        os.close(descriptor)
    assert open_locked(tmp_path / "missing") is None


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from colablock._common.fs import locked_file\n"
        "with locked_file(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == b"held\n"
    with path.open("ab") as file:
        assert not flock(file, wait=False)
    child.kill()
    child.wait()
    child.stdout.close()
    child.stdin.close()
    with locked_file(path), path.open("ab") as file:
        assert not flock(file, wait=False)
    assert not path.exists()


def test_a_file_is_hashed_in_blocks(tmp_path: Path) -> None:
    path, data = tmp_path / "file", bytes(range(256)) * 10_000
    path.write_bytes(data)
    assert file_digest(path) == hashlib.sha256(data).hexdigest()
    assert file_digest(path, "blake2b") == hashlib.blake2b(data).hexdigest()


def test_what_a_killed_process_was_writing_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    left, foreign = tmp_path / f"{NEW}0123456789abcdef", tmp_path / f"{NEW}notes"
    left.touch()
    foreign.touch()
    with open_lock(tmp_path):
        write_private(tmp_path / "state.json", b"1")
        assert left.exists(), "another process writes there"
    write_atomic(tmp_path / "output.txt", b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [foreign.name, "output.txt", "state.json"]


@contextmanager
def open_lock(folder: Path) -> Iterator[None]:
    descriptor = open_locked(folder, shared=True)
    assert descriptor is not None
    yield
    os.close(descriptor)


def test_own_files_and_folders_are_private_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "a" / "b" / "state.json", b"1")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"a": 0o700, "b": 0o700, "state.json": 0o600}


@pytest.mark.parametrize(
    ("number", "name", "says"),
    [
        (errno.EACCES, "/data/x", "Correct its owner and permissions"),
        (errno.EROFS, "/data/x", "The disk is read-only"),
        (errno.ENOSPC, "/data/x", "Free space on the disk"),
        (errno.EMFILE, None, "ulimit -n"),
        (errno.EINVAL, b"/data/\xff", "Check the path"),
    ],
)
def test_an_error_of_the_machine_says_what_to_do(number: int, name: str | bytes | None, says: str) -> None:
    error = OSError(number, os.strerror(number))
    error.filename = name
    found = machine_error(error)
    assert os.strerror(number) in str(found)
    assert says in (found.hint or "")


@pytest.mark.parametrize(
    ("refusal", "says", "hint"),
    [
        (MemoryError(), "there is not enough memory: Cannot allocate memory", "a machine with more memory"),
        (RuntimeError("can't start new thread"), "a process or a thread cannot be started: ", "ulimit -u"),
        (OSError(errno.EAGAIN, "refused"), "a process or a thread cannot be started: refused", "ulimit -u"),
    ],
)
def test_an_error_of_the_machine_without_a_file_says_what_to_do(
    refusal: Exception, says: str, hint: str
) -> None:
    with pytest.raises(OSError) as caught, machine_errors():
        raise refusal
    found = machine_error(caught.value)
    assert str(found).startswith(says)
    assert hint in (found.hint or "")


def test_another_error_is_not_one_of_the_machine() -> None:
    with pytest.raises(RuntimeError, match="a bug"), machine_errors():
        raise RuntimeError("a bug")
