"""Wheels of the cache are linked by a process for each core, and the result is that of one process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from colablock._common.fs import file_digest
from colablock._common.process import own_command
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.errors import BadDistribution
from colablock.network.cache import Cache
from colablock.planning.plan import Action, Artifact, Step
from colablock.transaction.staging import environment_layout, install_wheels
from tests.support.timing import state_of, until
from tests.support.wheels import make_wheel

MANY = {f"many/part_{number % 40}/inner/f{number}.py": "" for number in range(6500)}
NAMES = tuple(map(canonicalize_name, ("many", "first", "second", "other")))
HELPER = "colablock.unpacking.link_files"
#: What a process that helps may do instead.
FAILURES = {
    "is killed at its start": "import os; os.kill(os.getpid(), 9)",
    "takes a part and fails": "import json, os, sys; os.read(json.load(sys.stdin)['given'], 6); 1 / 0",
    "takes all parts and does nothing": (
        "import json, os, sys; job = json.load(sys.stdin)\nwhile os.read(job['given'], 6): pass"
    ),
}
Tree = dict[str, tuple[bytes, int]]

pytestmark = [
    pytest.mark.stdlib,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="with one core there is one process"),
]


class Ground:
    """Four wheels in a cache, two of which have a file of the same path with other contents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = Cache(folder / "cache")
        data = {"scripts/tool": "#!python\nprint(1)\n", "data/share/x.txt": "x"}
        more = {f"more/f{number}.py": "" for number in range(50)}  # so it is linked before the first one
        self.wheels = {
            "many": make_wheel(folder, "many", "1.0", modules=MANY, scripts={"many": "many:main"}),
            "first": make_wheel(folder, "first", "1.0", modules={"both/__init__.py": "of = 'first'\n"}),
            "second": make_wheel(
                folder, "second", "1.0", modules={"both/__init__.py": "of = 'second'\n", **more}
            ),
            "other": make_wheel(folder, "other", "1.0", data_files=data),
        }
        self.made = 0
        self.install(NAMES)

    def install(self, names: Sequence[str]) -> Tree:
        """Install the wheels in this order into a new environment, and return its files."""
        self.made += 1
        root = self.folder / "environment"  # the same, because scripts name it
        if root.exists():
            root.rename(self.folder / f"old-{self.made}")
        site = root / "lib" / "python3" / "site-packages"
        install_wheels(
            [self._step(name) for name in names],
            {canonicalize_name(name): path for name, path in self.wheels.items()},
            environment_layout(root, site, f"{root}/bin/python"),
            scratch=self.folder / "scratch",
            cache=self.cache,
            environ=os.environ,
        )
        files = (path for path in root.rglob("*") if path.is_file())
        return {f"{path.relative_to(root)}": (path.read_bytes(), path.stat().st_mode) for path in files}

    def _step(self, name: str) -> Step:
        path = self.wheels[name]
        hashes = {"sha256": file_digest(path)}
        artifact = Artifact(
            name=canonicalize_name(name),
            version="1.0",
            filename=path.name,
            url=path.as_uri(),
            hashes=hashes,
        )
        return Step(
            action=Action.INSTALL,
            name=canonicalize_name(name),
            reason="",
            version="1.0",
            artifact=artifact,
        )

    def stored(self, name: str) -> Path:
        """Return the file of the store with that *name*."""
        (path,) = self.cache.folder.glob(f"unpacked/*/*/tree/{name}")
        return path


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@contextmanager
def one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def helper(monkeypatch: pytest.MonkeyPatch, source: str) -> Iterator[list[str]]:
    """Let the processes that help run *source* instead of their module; yield those that were started."""
    started: list[str] = []

    def command(module: str) -> list[str]:
        started.append(module)
        return [sys.executable, "-I", "-c", source] if source else own_command(module)

    with monkeypatch.context() as patch:
        patch.setattr("colablock.unpacking.unpackers.own_command", command)
        yield started


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]], ids=["in order", "reversed"])
def test_the_last_wheel_with_a_path_has_its_file(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]
) -> None:
    with one_core(), helper(monkeypatch, "") as started:
        alone = ground.install(names)
        assert started == []
    with helper(monkeypatch, "") as started:
        assert ground.install(names) == alone
    assert set(started) == {HELPER}
    last = [name for name in names if name in {"first", "second"}][-1]
    assert f"of = '{last}'\n".encode() in {content for content, _ in alone.values()}
    assert len(alone) > len(MANY)


@pytest.mark.parametrize("source", FAILURES.values(), ids=FAILURES)
def test_what_a_process_does_not_link_is_installed_nevertheless(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    with one_core():
        alone = ground.install(NAMES)
    with helper(monkeypatch, source) as started:
        assert ground.install(NAMES) == alone
    assert set(started) == {HELPER}


def test_a_process_without_its_parent_links_nothing_more(ground: Ground, tmp_path: Path) -> None:
    """It waits for the list of the files of its part, and its parent is killed meanwhile."""
    manifest = ground.stored("many").parent.with_name("manifest.json")
    os.mkfifo(tmp_path / "manifest")
    part = [str(tmp_path / "manifest"), str(manifest.with_name("tree")), "many-1.0.dist-info"]
    script = (
        "import json, os, sys, tempfile\n"
        "from colablock.unpacking.link_files import put\n"
        "from colablock.unpacking.unpackers import started\n"
        "job, files = json.loads(sys.argv[1]), [tempfile.TemporaryFile() for _ in range(2)]\n"
        "given, linked = [file.fileno() for file in files]\n"
        "put(given, 0); files[0].seek(0)\n"
        "job |= {'given': given, 'linked': linked, 'parent': os.getpid()}\n"
        f"print(started({HELPER!r}, json.dumps(job).encode(), os.environ, given, linked).pid, flush=True)\n"
        "input()\n"
    )
    job = {"parts": [[*part, str(tmp_path / "site"), 0, 9999]], "mode": 0o755}
    command = [sys.executable, "-c", script, json.dumps(job)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        with (tmp_path / "manifest").open("wb") as stream:  # opened once it is read
            parent.kill()
            parent.wait()
            stream.write(manifest.read_bytes())
    until(lambda: state_of(process) == "Z")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("path", ["many/part_1/inner/f1.py", "other-1.0.data/data/share/x.txt"])
def test_a_damaged_file_of_the_store_is_not_installed(ground: Ground, path: str) -> None:
    alone = ground.install(NAMES)
    stored = ground.stored(path)
    stored.write_text("edited in place\n", encoding="utf-8")
    assert ground.install(NAMES) == alone
    assert ground.stored(path).read_text(encoding="utf-8") != "edited in place\n"


def test_a_process_that_may_open_few_files_installs_many_wheels(ground: Ground) -> None:
    names = [f"small{number}" for number in range(40)]
    ground.wheels |= {name: make_wheel(ground.folder, name, "1.0") for name in names}
    alone = ground.install([*NAMES, *names])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as opened:
        for _ in range(200):  # as a notebook has
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        few = len([*Path("/proc/self/fd").iterdir()]) + 30
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        assert ground.install([*NAMES, *names]) == alone


def test_a_file_where_another_wheel_has_a_folder_is_refused(ground: Ground) -> None:
    wheel = make_wheel(ground.folder, "file", "1.0", modules={"many/part_1": ""})
    ground.wheels["file"] = wheel
    for _ in range(2):  # the second time, all of them are in the store
        with pytest.raises(BadDistribution, match="has a file where another wheel has a folder"):
            ground.install([*NAMES, "file"])
