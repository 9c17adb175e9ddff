"""The cache: entries are complete or missing, despite damage, other processes and pruning."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.utils import NormalizedName
from colablock.cli.main import main
from colablock.errors import ExitCode
from colablock.network.cache import PARSED, Cache
from colablock.network.cache_prune import clean
from colablock.network.download import open_partial
from colablock.network.fetcher import Fetcher
from tests.support.fetching import Wanted, fetcher_in, source_of, wanted
from tests.support.fixtures import index_fixture
from tests.support.paths import ROOT
from tests.support.server import Fault, IndexServer
from tests.support.timing import PATIENCE, until
from tests.support.wheels import make_wheel

pytestmark = pytest.mark.slow  # uses servers, and nothing here depends on the Python version

DAY = 86_400.0
WORKER = """\
import os, resource, sys
from dataclasses import dataclass, field
from pathlib import Path
from colablock.errors import ColablockError
from colablock.network.fetcher import Fetcher

@dataclass
class Wanted:
    url: str
    filename: str
    hashes: dict
    size: int
    index: object = None

cache, into, *pairs = sys.argv[1:]
files = [
    Wanted(url, url.rpartition("/")[2], {"sha256": sha256}, 0)
    for url, sha256 in zip(pairs[::2], pairs[1::2])
]
"""


def fill(folder: Path) -> None:
    # Random text, which does not compress well: the file arrives in several chunks.
    text = "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(32_000))
    make_wheel(folder, "demo", "1.0", modules={"demo.py": f"text = {text!r}\n"})
    make_wheel(folder, "dep", "1.0")


index = index_fixture(fill)


def all_of(server: IndexServer, index: Path) -> list[Wanted]:
    return [wanted(server, path, size=None) for path in sorted(index.iterdir())]


def started(
    script: str, tmp_path: Path, files: Sequence[Wanted], into: str = "into"
) -> subprocess.Popen[str]:
    """Start another process that fetches *files* with the same cache."""
    pairs = [part for file in files for part in (file.url, file.hashes["sha256"])]
    command = [sys.executable, "-c", WORKER + script, str(tmp_path / "cache"), str(tmp_path / into), *pairs]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out


# -- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def zero(path: Path) -> None:
    """Fill a file with zeros but keep its size and mtime, as a crash may leave it."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.write(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    (path / "something").mkdir(parents=True)


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def block(path: Path) -> None:
    """Put a file in place of the folder of the kind."""
    kind = path.parent.parent
    shutil.rmtree(kind, ignore_errors=True)
    kind.write_text("in the way", encoding="utf-8")


DAMAGES: list[Callable[[Path], None]] = [cut, zero, replace_by_folder, replace_by_link, block]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["files", "metadata", "pages", PARSED, "stamps"])
def test_a_damaged_entry_counts_as_missing_and_is_written_again(
    kind: str, damage: Callable[[Path], None], server: IndexServer, index: Path, tmp_path: Path
) -> None:
    name = NormalizedName("demo")

    def use() -> None:
        ours = fetcher_in(tmp_path)
        source = source_of(ours, server.url)
        (candidate,) = source.judge(name).candidates
        assert source.metadata(candidate).requires == ()
        assert ours.get_page(f"{server.url}demo/") is not None
        for path in ours.download(all_of(server, index), tmp_path / "into"):
            assert path.read_bytes() == (index / path.name).read_bytes()

    use()
    entries = [path for path in (tmp_path / "cache" / kind).rglob("*") if path.is_file()]
    assert entries
    for path in entries:
        # Break the hard links to downloaded files, so that the damage affects only the cache.
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    shutil.rmtree(tmp_path / "into")
    use()
    for path in entries:
        if path.exists():
            damage(path)
    shutil.rmtree(tmp_path / "into")
    use()
    assert all(path.is_file() for path in entries)
    server.forget_requests()
    shutil.rmtree(tmp_path / "into")
    use()
    assert {request.status for request in server.requests} <= {304}


@pytest.mark.parametrize("damage", [replace_by_folder, block])
def test_a_download_removes_what_blocks_its_path(
    damage: Callable[[Path], None], server: IndexServer, index: Path, tmp_path: Path
) -> None:
    first = all_of(server, index)[0]
    partial = fetcher_in(tmp_path).cache.path("partial", first.hashes["sha256"])
    partial.parent.mkdir(parents=True)
    partial.write_text("begun", encoding="utf-8")
    damage(partial)
    (path,) = fetcher_in(tmp_path).download([first], tmp_path / "into")
    assert path.read_bytes() == (index / path.name).read_bytes()


AS_ANOTHER = """
if os.geteuid() == 0:  # root ignores permissions
    try:
        Fetcher(os.environ, cache=Path(into)).download(files[1:], Path(into))
    except ColablockError:
        pass  # import everything first: another user may not be able to
    os.setresuid(65534, 65534, 65534)
ours = Fetcher(os.environ, cache=Path(cache))
print(*(path.stat().st_size for path in ours.download(files, Path(into))))
"""


def test_a_read_only_cache_is_used(server: IndexServer, index: Path) -> None:
    files = all_of(server, index)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        Fetcher(os.environ, cache=folder / "cache").download(files[:1], folder / "first")
        (folder / "into").mkdir()
        (folder / "into").chmod(0o777)
        kept = [folder / "cache", *(folder / "cache").rglob("*")]
        for path in kept:
            path.chmod(0o555 if path.is_dir() else 0o444)
        server.forget_requests()
        out = ended(started(AS_ANOTHER, folder, files))
        for path in kept:
            path.chmod(0o755)
    assert out.split() == [str((index / file.filename).stat().st_size) for file in files]
    assert f"/files/{files[0].filename}" not in server.paths


FULL = """
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    Fetcher(os.environ, cache=Path(cache)).download(files, Path(into))
except ColablockError as error:
    print(error, error.hint, sep="\\n")
"""


def test_a_full_disk_is_reported_with_a_hint(server: IndexServer, index: Path, tmp_path: Path) -> None:
    message, hint = ended(started(FULL, tmp_path, all_of(server, index))).splitlines()
    assert message == f"`{tmp_path / 'cache'}` cannot be written: File too large"
    assert hint == "Set COLABLOCK_CACHE_DIR to a folder on another disk"
    # With free space, the downloads are resumed.
    assert len(fetcher_in(tmp_path).download(all_of(server, index), tmp_path / "into")) == 2


SMALL = """
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
print(len(Fetcher(os.environ, cache=Path(cache)).get_page(files[0].url).body))
"""


def test_a_page_that_cannot_be_cached_is_still_returned(server: IndexServer, tmp_path: Path) -> None:
    page = Wanted(f"{server.url}demo/", "", {"sha256": "-"})
    assert int(ended(started(SMALL, tmp_path, [page]))) > 100
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


# -- concurrency

MANY = """
import hashlib, threading
faults = []
def work(number):
    try:
        for turn in range(5):
            ours = Fetcher(os.environ, cache=Path(cache))
            for path, file in zip(ours.download(files, Path(into) / f"{number}-{turn}"), files):
                if hashlib.sha256(path.read_bytes()).hexdigest() != file.hashes["sha256"]:
                    faults.append(path)
    except BaseException as error:
        faults.append(error)
threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(faults)
"""


def test_several_processes_and_threads_use_one_cache(
    server: IndexServer, index: Path, tmp_path: Path
) -> None:
    server.fault(f"/files/{all_of(server, index)[0].filename}", Fault(truncate=30_000, times=6))
    processes = [started(MANY, tmp_path, all_of(server, index), f"into-{number}") for number in range(3)]
    assert [ended(process) for process in processes] == ["[]\n"] * 3


def test_a_cache_can_be_pruned_while_it_is_used(server: IndexServer, index: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "COLABLOCK_CACHE_DIR": str(tmp_path / "cache")}
    processes = [started(MANY, tmp_path, all_of(server, index), f"into-{number}") for number in range(2)]
    runs = 0
    while any(process.poll() is None for process in processes):
        for argv in (["clean"], ["prune", "--older-than", "0"], ["clean", "demo"]):
            assert main(["cache", *argv, "-q"], environ) == ExitCode.DONE
            runs += 1
    assert [ended(process) for process in processes] == ["[]\n"] * 2
    assert runs > 3


def test_a_download_in_progress_is_never_pruned(tmp_path: Path) -> None:
    ours = Cache(tmp_path / "cache")
    path = ours.clear_path(ours.path("partial", "one"))
    stop = threading.Event()

    def prune_all() -> None:
        while not stop.is_set():
            clean(ours.folder)

    pruner = threading.Thread(target=prune_all)
    pruner.start()
    lost = 0
    for _ in range(4000):
        with open_partial(path) as (opened, _):
            time.sleep(0)
            lost += not opened.exists()
    stop.set()
    pruner.join()
    assert lost == 0


def test_a_download_of_a_killed_process_is_resumed(server: IndexServer, index: Path, tmp_path: Path) -> None:
    first = all_of(server, index)[0]
    server.fault(f"/files/{first.filename}", Fault(pause=PATIENCE, times=1))
    script = "Fetcher(os.environ, cache=Path(cache)).download(files[:1], Path(into))"
    process = started(script, tmp_path, [first])
    partial = Cache(tmp_path / "cache").path("partial", first.hashes["sha256"])
    until(lambda: partial.exists() and partial.stat().st_size)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = partial.stat().st_size
    server.forget_requests()
    (path,) = fetcher_in(tmp_path).download([first], tmp_path / "into")
    assert path.read_bytes() == (index / path.name).read_bytes()
    assert server.requests[0].headers["range"] == f"bytes={begun}-"


# -- the commands


@dataclass
class CacheCommands:
    """Runs the commands for one cache."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *argv: str, code: int = ExitCode.DONE) -> tuple[str, str]:
        assert main(["cache", *argv], {**os.environ, "COLABLOCK_CACHE_DIR": str(self.folder)}) == code
        captured = self.capsys.readouterr()
        return captured.out, captured.err

    def json(self, *argv: str) -> Any:
        out, err = self.run(*argv, "--json")
        assert err == ""
        return json.loads(out)

    @property
    def kept(self) -> dict[str, int]:
        return {kind["name"]: kind["entries"] for kind in self.json("info")["kinds"]}


@pytest.fixture
def cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CacheCommands:
    return CacheCommands(tmp_path / "cache", capsys)


@pytest.fixture
def filled(server: IndexServer, tmp_path: Path, cache: CacheCommands) -> CacheCommands:
    """A cache with a page, a parsed page, metadata and a named file of two projects."""
    ours = fetcher_in(tmp_path)
    source = source_of(ours, server.url)
    for name in ("demo", "dep"):
        (candidate,) = source.judge(NormalizedName(name)).candidates
        source.metadata(candidate)
        assert candidate.file is not None
        ours.fetch_named(candidate.file)
        ours.get_page(f"{server.url}{name}/")
    return cache


WHOLE = {"files": 2, "pages": 2, PARSED: 2, "metadata": 2, "named": 2, "stamps": 2}


def test_dir_prints_the_folder(cache: CacheCommands) -> None:
    assert cache.run("dir") == (f"{cache.folder}\n", "")
    assert cache.json("dir") == {"folder": str(cache.folder)}
    assert cache.run("info") == (f"{cache.folder}\n  the cache is empty\n", "")
    assert cache.run("clean") == ("", "there was nothing to remove\n")


def test_info_lists_the_kinds_of_entries(filled: CacheCommands) -> None:
    assert filled.kept == WHOLE
    out, _ = filled.run("info")
    assert "in      2  wheels, sdists and archives\n" in out


def test_clean_removes_all_entries_and_no_foreign_files(filled: CacheCommands, index: Path) -> None:
    foreign = [filled.folder / "files" / "notes.txt", filled.folder / "photos" / "aa" / "aaa"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not ours", encoding="utf-8")
    removed = filled.json("clean")
    assert (removed["entries"], removed["left"]) == (sum(WHOLE.values()), 0)
    assert removed["size"] > sum(path.stat().st_size for path in index.iterdir())
    assert sorted(path for path in filled.folder.rglob("*") if path.is_file()) == sorted(foreign)


def test_clean_removes_the_entries_of_one_project(
    filled: CacheCommands, server: IndexServer, tmp_path: Path
) -> None:
    out, err = filled.run("clean", "Demo")
    assert out == ""
    assert err.startswith("removed 6 entries: ")
    assert filled.kept == dict.fromkeys(WHOLE, 1)
    source = source_of(fetcher_in(tmp_path, offline=True), server.url)
    assert source.judge(NormalizedName("dep")).candidates
    assert not source.judge(NormalizedName("demo")).candidates
    assert "is not in the cache" in source.unreached[NormalizedName("demo")].message
    assert filled.json("clean", "nothing")["entries"] == 0
    assert "`!!` is not a valid project name" in filled.run("clean", "!!", code=ExitCode.USAGE)[1]


def test_prune_removes_leftovers_only(filled: CacheCommands) -> None:
    for path in ("files/aa/.new-x", "built/aa/aabb/.new-y/wheel.whl", "partial/aa/aa11", "simple-1/aa/aa22"):
        (filled.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (filled.folder / path).write_bytes(bytes(1000))
    assert filled.json("prune") == {"entries": 4, "size": 4000, "left": 0}
    assert filled.kept == WHOLE | {"built": 1}
    assert filled.json("prune")["entries"] == 0


def test_prune_removes_the_bytecode_of_stacks_that_are_not_used(filled: CacheCommands) -> None:
    for days, name in ((40, "aa"), (20, "bb")):
        entry = filled.folder / "bytecode" / name / (name * 32)
        (entry / "site").mkdir(parents=True)
        (entry / "site" / "torch.pyc").write_bytes(bytes(100))
        os.utime(entry, (time.time() - days * DAY,) * 2)
    assert filled.kept == WHOLE | {"bytecode": 2}
    assert filled.json("prune") == {"entries": 1, "size": 100, "left": 0}
    assert filled.kept == WHOLE | {"bytecode": 1}


def test_prune_removes_old_pages_and_files(filled: CacheCommands, tmp_path: Path) -> None:
    for path in filled.folder.rglob("*"):
        os.utime(path, (time.time() - 40 * DAY,) * 2)
    assert filled.json("prune")["entries"] == 4
    assert filled.kept == {kind: 2 for kind in WHOLE if kind not in {"pages", PARSED}}
    used = next((filled.folder / "stamps").rglob("[0-9a-f]" * 64)).name
    assert fetcher_in(tmp_path).cache.file(used) is not None
    assert filled.json("prune", "--older-than", "39")["left"] == 0
    assert filled.kept == {"files": 1, "named": 1, "stamps": 1}
    assert filled.json("prune", "--older-than", "41")["entries"] == 0
    assert "number of days" in filled.run("prune", "--older-than", "-1", code=ExitCode.USAGE)[1]


USER = "ours = Fetcher(os.environ, cache=Path(cache)); print('ready', flush=True); input()"


@contextmanager
def user_of(folder: Path) -> Iterator[None]:
    """Let another process use the cache during the block."""
    process = started(USER, folder.parent, [])
    assert process.stdout is not None
    process.stdout.readline()
    yield
    process.communicate("\n")


def test_files_in_use_by_another_process_stay(filled: CacheCommands) -> None:
    fresh = filled.folder / "files" / "aa" / ".new-x"
    fresh.parent.mkdir(parents=True, exist_ok=True)
    fresh.touch()
    with user_of(filled.folder):
        assert filled.json("clean")["left"] == 4
        assert filled.kept == {"files": 2, "named": 2}
        assert filled.json("prune", "--older-than", "0")["left"] == 2
        assert fresh.exists()
        _, err = filled.run("clean")
        assert err.endswith("left 4: in use by another process, or not yours to remove\n")
    assert filled.json("clean")["left"] == 0
    assert filled.kept == {}
    assert not fresh.exists()


def test_a_download_in_progress_stays(cache: CacheCommands) -> None:
    folder = cache.folder / "partial" / "aa"
    folder.mkdir(parents=True)
    with open_partial(folder / "aa11"), open_partial(folder / "aa11"):
        assert cache.json("clean")["left"] == 2
        assert len(list(folder.iterdir())) == 2
    assert cache.json("prune") == {"entries": 2, "size": 0, "left": 0}
