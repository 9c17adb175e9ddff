"""A bundle: made once, then applied without a network, a cache, an index or the matrix."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from colablock.bundles.reader import Bundle
from colablock.display.plan_view import plan_document
from colablock.display.text import to_text
from colablock.errors import BadDistribution, FetchFailed, InvalidInput, NoSolution, Refused
from colablock.operations.apply import apply_matrix
from colablock.operations.bundle import BundleResult, make_bundle
from colablock.operations.lock import lock_matrix
from colablock.operations.plan import plan_change
from colablock.operations.session import Session, from_bundle
from colablock.planning.options import ApplyOptions, LockOptions
from colablock.planning.plan import Target
from colablock.runtimes.catalog import load_recording, save_recording
from colablock.transaction.isolated_envs import prune_home, remove_env
from colablock.unpacking.interpreter import pack_interpreter, unpack_interpreter
from tests.support.fixtures import world_fixture
from tests.support.reporters import Notes
from tests.support.runtime import Stub, Venv, find_python
from tests.support.server import Fault
from tests.support.timing import PATIENCE
from tests.support.wheels import make_sdist, make_wheel
from tests.support.world import World

MATRIX = """\
schema = 1
name = "tiny"
requirements = ["shapes"]
[verify]
imports = ["shapes"]
"""
HOST = "https://archives.example/"


def fill(folder: Path) -> None:
    index = folder / "index"
    make_wheel(index, "shapes", "1.0", requires=["colours"])
    make_wheel(index, "colours", "1.0")
    make_wheel(index, "lines", "1.0")
    make_wheel(index, "maker", "1.0")
    make_sdist(index, "brushes", "1.0", build_requires=["maker"])
    make_sdist(index, "frames", "1.0", build_requires=["maker"], fails="no frames today")
    make_sdist(folder / "files", "trainer", "1.0", requires=["lines"])


world = world_fixture(fill, scope="module")


@dataclass(frozen=True)
class Place:
    """A folder with a matrix, in a world.  *home* and *cache* are those of one machine."""

    world: World
    folder: Path
    machine: str = "first"
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def matrix(self) -> Path:
        return self.folder / "tiny.toml"

    @property
    def bundle(self) -> Path:
        return self.folder / "tiny.bundle"

    def environ(self, **more: str) -> dict[str, str]:
        return self.world.environ(
            COLABLOCK_HOME=str(self.folder / self.machine / "home"),
            COLABLOCK_CACHE_DIR=str(self.folder / self.machine / "cache"),
            COLABLOCK_MIRRORS=f"{HOST}={(self.world.folder / 'files').as_uri()}/",
            COLABLOCK_RETRIES="0",
            **{**self.more, **more},
        )

    def session(self, **more: str) -> Session:
        return Session(environ=self.environ(**more), reporter=Notes())

    def make(self, output: str = "tiny.bundle", **options: object) -> BundleResult:
        target = {
            key: options.pop(key) for key in ("python_version", "platform", "with_python") if key in options
        }
        asked = replace(ApplyOptions(name=str(self.matrix)), **options)  # type: ignore[arg-type]
        return make_bundle(self.session(), asked, self.folder / output, **target)  # type: ignore[arg-type]

    def elsewhere(self) -> Place:
        """Return another machine: nothing of the first is there but the bundle, and no index."""
        self.matrix.unlink()
        return replace(self, machine="second")

    def options(self, **options: object) -> ApplyOptions:
        """Return the options of an apply of the bundle on this machine."""
        asked = ApplyOptions(name="", bundle=self.bundle, python=sys.executable, into=Target.ENV)
        return from_bundle(replace(asked, **options), self.gone().environ)  # type: ignore[arg-type]

    def gone(self) -> Session:
        return self.session(COLABLOCK_DEFAULT_INDEX="http://127.0.0.1:9/simple/")


@pytest.fixture
def place(world: World, tmp_path: Path) -> Place:
    (tmp_path / "tiny.toml").write_text(MATRIX)
    return Place(world, tmp_path)


def wheels_asked(world: World) -> list[str]:
    return sorted(path.rpartition("/")[2] for path in world.server.paths if path.endswith(".whl"))


def test_a_bundle_is_applied_where_there_is_no_network(place: Place) -> None:
    """In a network namespace without interfaces, with nothing but the archive."""
    unshare = shutil.which("unshare") or "/usr/bin/unshare"
    if subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine permits no network namespaces")
    place.make()
    there = place.elsewhere()
    done = []
    for words in (
        ("plan", "--bundle", "tiny.bundle"),
        ("apply", "--bundle", "tiny.bundle", "--into", "env"),
        ("apply", "--bundle", "tiny.bundle", "--into", "env"),
        ("run", "tiny", "--", "python", "-c", "import shapes; print(shapes.__version__)"),
    ):
        command = [unshare, "-rn", sys.executable, "-m", "colablock", *words]
        environ = there.environ(UV_CACHE_DIR=str(there.folder / "uv"))
        done.append(
            subprocess.run(
                command, env=environ, cwd=there.folder, capture_output=True, text=True, check=False
            )
        )
        assert done[-1].returncode == 0, done[-1].stderr
    plan, first, second, run = done
    assert "tiny.bundle" in plan.stdout
    assert "is proven" in first.stdout
    assert "nothing was changed" in second.stdout
    assert run.stdout == "1.0\n"
    assert not list((there.folder / "second" / "cache" / "files").glob("*/*"))  # read in place


def test_a_plan_from_a_bundle_counts_no_file_of_it_as_a_download(place: Place) -> None:
    with_sdist(place)
    place.make()
    there = place.elsewhere()
    plan = plan_change(there.gone(), there.options()).plan
    assert plan.file_size
    assert (plan.fetch_size, {*plan.at_hand}) == (0, {step.name for step in plan.steps})
    assert "; nothing to fetch" in to_text(plan_document(plan))


def test_a_second_bundle_fetches_and_writes_nothing(place: Place) -> None:
    assert place.make().is_changed
    before = place.bundle.stat()
    place.world.server.forget_requests()
    assert not place.make().is_changed
    assert place.make("again.bundle").is_changed
    assert wheels_asked(place.world) == []
    assert place.bundle.stat().st_mtime_ns == before.st_mtime_ns
    assert (place.folder / "again.bundle").read_bytes() == place.bundle.read_bytes()


def test_what_an_interrupted_bundle_has_fetched_is_used(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one download fails after the other is in the cache."""
    take, kept = place.world.server.take_fault, place.folder / place.machine / "cache" / "files"

    def take_late(method: str, path: str) -> Fault | None:
        fault, end = take(method, path), time.monotonic() + PATIENCE
        while fault is not None and not list(kept.glob("*/[0-9a-f]*")) and time.monotonic() < end:
            time.sleep(0.01)
        return fault

    monkeypatch.setattr(place.world.server, "take_fault", take_late)
    path = "/files/colours-1.0-py3-none-any.whl"
    place.world.server.fault(path, Fault(status=503, times=1))
    with pytest.raises(FetchFailed):
        place.make()
    assert not place.bundle.exists()
    place.world.server.forget_requests()
    place.make()
    assert wheels_asked(place.world) == ["colours-1.0-py3-none-any.whl"]


# Targets


def versions(place: Place, **options: object) -> dict[str, str]:
    """Apply the bundle elsewhere and return the versions of the stack."""
    asked = place.options(**options)
    planned = plan_change(place.gone(), asked)
    into = place.folder / place.machine / "wheels"
    planned.preparer.gather(planned.plan, into, Notes())
    return {str(name): version.partition("+")[0] for name, version in planned.pins().items()}


def test_a_bundle_has_the_builds_that_an_apply_here_would_take(place: Place) -> None:
    """Also in place of those of the lock beside the matrix: its files go with it."""
    entry = '\n[packages.lines]\nprefer-local = "cpu"\n'
    place.matrix.write_text(MATRIX.replace("[verify]", f"{entry}[verify]"))
    lock_matrix(place.session(), ApplyOptions(name=str(place.matrix)), LockOptions())
    links = place.folder / "links"
    make_wheel(links, "lines", "1.0+cpu")
    plain = {one.path for one in place.make().manifest.members}
    assert "files/lines-1.0-py3-none-any.whl" in plain
    for variable in ({"PIP_FIND_LINKS": str(links)}, {"COLABLOCK_FIND_LINKS": str(links)}):
        session = place.session(**variable)
        made = make_bundle(session, ApplyOptions(name=str(place.matrix)), place.bundle)
        members = {one.path for one in made.manifest.members}
        assert {"files/lines-1.0+cpu-py3-none-any.whl", "files/shapes-1.0-py3-none-any.whl"} <= members
        assert "files/lines-1.0-py3-none-any.whl" not in members
        assert isinstance(session.reporter, Notes)
        assert "; lines 1.0+cpu is from find-links, not from the lock" in "\n".join(session.reporter.notes)
    shutil.rmtree(links)
    there = place.elsewhere()
    report = apply_matrix(there.gone(), there.options())
    assert report.passed
    assert {"lines": "1.0+cpu"}.items() <= dict(plan_change(there.gone(), there.options()).pins()).items()


def test_a_bundle_for_a_recorded_runtime_has_the_difference(place: Place) -> None:
    made = place.make(runtime="colab-2026.08-gpu").manifest
    assert (made.kind, made.runtime) == ("delta", "colab-2026.08-gpu")
    there = place.elsewhere()
    assert versions(there, runtime="colab-2026.08-gpu", python=None, into=None)["shapes"] == "1.0"
    with pytest.raises(NoSolution, match=r"delta over colab-2026\.08-gpu"):
        versions(there)


def test_a_bundle_for_the_recording_in_a_file(place: Place, tmp_path: Path) -> None:
    """The machine where it is applied knows no such runtime: its state decides."""
    recording = load_recording("colab-2026.08-gpu")
    another = replace(recording, about=replace(recording.about, name="another"))
    save_recording(another, tmp_path / "another.json")
    made = place.make(runtime=str(tmp_path / "another.json")).manifest
    assert (made.kind, made.runtime) == ("delta", "live")
    there = place.elsewhere()
    options = {"runtime": "colab-2026.08-gpu", "python": None, "into": None}
    assert versions(there, **options)["shapes"] == "1.0"


def test_a_bundle_for_a_python_of_a_runtime_is_complete(place: Place) -> None:
    made = place.make(runtime="colab-2026.08-gpu", python_version="3.12").manifest
    assert (made.kind, made.runtime, made.platform) == ("complete", None, "manylinux_2_35_x86_64")
    assert made.python.startswith("3.12")


def test_a_bundle_for_an_environment_that_is_not_recorded(place: Place, tmp_path: Path) -> None:
    """It is applied to the same state, and refused in another, and after a change of colablock."""
    venv = Venv.make(tmp_path / "venv", Stub(name="colours", version="1.0"))
    made = place.make(python=venv.python)
    names = [member.filename for member in made.manifest.members if member.path.startswith("files/")]
    assert names == ["shapes-1.0-py3-none-any.whl"]
    other = Venv.make(tmp_path / "other", Stub(name="colours", version="0.9"))
    there = replace(place, machine="second")
    with pytest.raises(NoSolution, match=r"colours is 0\.9, not 1\.0"):
        versions(there, python=other.python, into=None)
    options = there.options(python=venv.python, into=None)
    report = apply_matrix(there.gone(), options)
    assert (report.passed, report.target) == (True, "kernel")
    with pytest.raises(Refused, match="has changed this environment"):
        place.make(python=venv.python)


def with_base(place: Place) -> None:
    (place.folder / "base.toml").write_text(MATRIX.replace('"tiny"', '"base"'))
    place.matrix.write_text('schema = 1\nname = "tiny"\nextends = "base.toml"\n')


def with_extra(place: Place) -> None:
    place.matrix.write_text(MATRIX)


def with_rebuilt(place: Place) -> None:
    text = f"[packages.trainer]\nurl = '{HOST}trainer-1.0.tar.gz'\nsource-root = '.'\n"
    place.matrix.write_text(f"{MATRIX}{text}requires-dist = ['lines']\n")


def with_local_file(place: Place) -> None:
    own = make_wheel(place.folder / "own", "own", "1.0")
    place.matrix.write_text(f"{MATRIX}[packages.own]\nurl = '{own.as_uri()}'\n")


def with_own_wheel(place: Place) -> None:
    make_wheel(place.folder / "own", "shapes", "1.5", requires=["colours"])
    place.matrix.write_text(MATRIX)


def with_sdist(place: Place, name: str = "brushes") -> None:
    text = MATRIX.replace('["shapes"]', f'["shapes", "{name}"]', 1)
    place.matrix.write_text(f"{text}[options]\nallow-build = ['{name}']\n")


CONTENTS: dict[str, tuple[Callable[[Place], None], dict[str, object], dict[str, str]]] = {
    "a matrix that extends another": (with_base, {}, {"shapes": "1.0", "colours": "1.0"}),
    "a requirement of the user": (
        with_extra,
        {"with_": ("lines",)},
        {"shapes": "1.0", "colours": "1.0", "lines": "1.0"},
    ),
    "a rebuilt wheel": (
        with_rebuilt,
        {},
        {"shapes": "1.0", "colours": "1.0", "lines": "1.0", "trainer": "1.0"},
    ),
    "a wheel that is built": (with_sdist, {}, {"brushes": "1.0", "colours": "1.0", "shapes": "1.0"}),
    "a local file": (with_local_file, {}, {"shapes": "1.0", "colours": "1.0", "own": "1.0"}),
    "a wheel of find-links": (
        with_own_wheel,
        {"find_links": ("{folder}/own",)},
        {"shapes": "1.5", "colours": "1.0"},
    ),
}


@pytest.mark.parametrize(("prepare", "options", "expected"), CONTENTS.values(), ids=CONTENTS)
def test_everything_that_an_apply_needs_is_in_it(
    prepare: Callable[[Place], None], options: dict[str, object], expected: dict[str, str], place: Place
) -> None:
    prepare(place)
    links = options.get("find_links", ())
    assert isinstance(links, tuple)
    if links:
        options = {**options, "find_links": tuple(link.format(folder=place.folder) for link in links)}
    place.make(**options)  # type: ignore[arg-type]
    for folder in ("own", "base.toml"):
        shutil.rmtree(place.folder / folder, ignore_errors=True)
        (place.folder / folder).unlink(missing_ok=True)
    assert versions(place.elsewhere()) == expected


def test_the_wheel_of_an_sdist_is_built_once(place: Place) -> None:
    with_sdist(place)
    made = place.make().manifest
    assert made.built == {"files/brushes-1.0.tar.gz": "files/brushes-1.0-py3-none-any.whl"}
    assert not place.make().is_changed


def test_an_sdist_that_cannot_be_built_goes_without_its_wheel(place: Place) -> None:
    with_sdist(place, "frames")
    session = place.session()
    made = make_bundle(session, ApplyOptions(name=str(place.matrix)), place.bundle)
    assert made.manifest.built == {}
    assert "files/frames-1.0.tar.gz" in [one.path for one in made.manifest.members]
    notes = [one for one in session.reporter.notes if "frames-1.0.tar.gz will be built when" in one]  # type: ignore[attr-defined]
    assert len(notes) == 1
    assert "no frames today" in notes[0]


# Refusals


CONTRADICTIONS: dict[str, tuple[dict[str, object], str]] = {
    "another name": ({"name": "qlora-2026"}, "the bundle has the matrix `tiny`, not `qlora-2026`"),
    "another lock": ({"lock": Path("pylock.toml")}, "a bundle has its own lock"),
    "no lock": ({"use_locks": False}, "a bundle has its own lock"),
    "another variant": ({"variant": "cuda"}, "the bundle is for the variant `None`, not `cuda`"),
    "another requirement": ({"with_": ("lines",)}, "the bundle does not have `lines`"),
    "no file": ({"bundle": Path("none.bundle")}, "there is no bundle `none.bundle`"),
}


def test_options_that_contradict_a_bundle_are_refused(place: Place) -> None:
    place.make()
    assert place.options(name="tiny").lock is not None
    for options, words in CONTRADICTIONS.values():
        with pytest.raises(InvalidInput) as caught:
            place.options(**options)
        assert words in str(caught.value)


def test_what_cannot_be_bundled_is_said(place: Place) -> None:
    with pytest.raises(InvalidInput, match="it is a folder"):
        place.make(".")
    with pytest.raises(InvalidInput, match="cannot be written"):
        place.make("none/tiny.bundle")
    (place.folder / "requirements.txt").write_text("shapes==1.0\n")
    with pytest.raises(InvalidInput, match="is not a lock made by colablock"):
        place.make(lock=place.folder / "requirements.txt")


def test_a_file_that_the_bundle_lacks_is_named_before_anything_moves(place: Place) -> None:
    """Here a wheel that is not the one of the lock: the manifest is honest, and the lock rules."""
    place.make()
    evil = make_wheel(place.folder / "evil", "shapes", "1.0", modules={"shapes/__init__.py": "EVIL = 1"})
    rewrite(place.bundle, f"files/{evil.name}", evil.read_bytes())
    there = place.elsewhere()
    with pytest.raises(FetchFailed, match=r"lacks files that this environment needs: `shapes-1\.0"):
        plan_change(there.gone(), there.options())


LIES: dict[str, tuple[dict[str, object], str]] = {
    "another matrix": ({"matrix": "qlora", "matrix_file": "qlora.toml"}, "`qlora`, and has `tiny`"),
    "another kind": ({"kind": "delta"}, "its lock is for the kind `complete`, not `delta`"),
    "another Python": ({"python": "3.99"}, "not `3.99`"),
    "another platform": ({"platform": "win_amd64"}, "not `win_amd64`"),
    "another runtime": ({"runtime": "colab"}, "its lock is for the runtime `None`, not `colab`"),
    "another variant": ({"variant": "cpu"}, "its lock is for the variant `None`, not `cpu`"),
    "another requirement": ({"with_": ("lines",)}, "other requirements"),
}


def test_a_manifest_that_says_another_thing_than_its_files_is_refused(place: Place) -> None:
    from colablock.bundles.writer import Source, write_bundle  # noqa: PLC0415

    place.make()
    bundle = Bundle.open(place.bundle)
    made, content = bundle.manifest, {}
    for one in made.members:
        with bundle.opened(one) as stream:
            content[one.path] = Source.of(stream.read())
    for facts, words in LIES.values():
        told = msgspec.structs.replace(made, **facts)
        renamed = {told.matrix_file if path == made.matrix_file else path: content[path] for path in content}
        write_bundle(place.bundle, told, renamed)
        with pytest.raises(InvalidInput) as caught:
            place.options(name=told.matrix)
        assert words in str(caught.value)
        assert not list((place.folder / place.machine / "home").glob("bundles/*"))
    write_bundle(place.bundle, made, {**content, "more.wheels/evil-1.0-py3-none-any.whl": Source.of(b"x")})
    with pytest.raises(InvalidInput, match=r"its lock does not name `more\.wheels/evil"):
        place.options()
    write_bundle(place.bundle, made, content)
    assert place.options(name="tiny").lock is not None


def rewrite(path: Path, member: str, content: bytes) -> None:
    """Write the bundle again with another content of *member*."""
    from colablock.bundles.writer import Source, write_bundle  # noqa: PLC0415

    bundle = Bundle.open(path)
    sources = {}
    for one in bundle.manifest.members:
        with bundle.opened(one) as stream:
            sources[one.path] = Source.of(content if one.path == member else stream.read())
    write_bundle(path, bundle.manifest, sources)


# A Python in the bundle


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return the version of another Python, and a folder of uv that has a copy of it, as small as can be."""
    short = next(one for one in ("3.12", "3.11", "3.10", "3.13") if one != f"3.{sys.version_info.minor}")
    base = find_python(short)
    if base is None:
        pytest.skip(f"there is no Python {short}")
    root, folder = Path(base).resolve().parent.parent, tmp_path_factory.mktemp("uv")
    copy = folder / f"cpython-{short}.99-linux-x86_64-gnu"
    (copy / "bin").mkdir(parents=True)
    shutil.copy(root / "bin" / f"python{short}", copy / "bin")
    left_out = ("test", "site-packages", "config-*", "ensurepip", "lib2to3", "tkinter", "*.a", "__pycache__")
    library = f"lib/python{short}"
    shutil.copytree(
        root / library, copy / library, ignore=shutil.ignore_patterns(*left_out, "*doc*", "idle*")
    )
    (copy / library / "site-packages").mkdir()
    return short, folder


def test_what_a_rollback_restores_stays_when_the_cache_is_pruned(place: Place, tmp_path: Path) -> None:
    """The record of a bundle comes back, and `verify` reads its matrix."""
    venv = Venv.make(tmp_path / "venv")
    place.make(python_version=".".join(map(str, sys.version_info[:2])))
    options = place.options(python=venv.python, into=Target.KERNEL)
    apply_matrix(place.gone(), options)
    (place.folder / "again").mkdir()
    other = place.folder / "again" / "tiny.toml"
    other.write_text(MATRIX.replace('"shapes"]\n[', '"shapes", "lines"]\n['))
    apply_matrix(place.session(), replace(options, bundle=None, name=str(other), lock=None, offline=False))
    home = place.folder / place.machine / "home"
    link = place.folder / "link"
    link.symlink_to(home)
    assert (prune_home(home, before=math.inf).entries, prune_home(link, before=math.inf).entries) == (0, 0)


def test_a_python_in_the_bundle_is_used_where_none_fits(place: Place, managed: tuple[str, Path]) -> None:
    """It is unpacked once, and stays until no environment uses it."""
    short, folder = managed
    place = replace(place, more={"UV_PYTHON_INSTALL_DIR": str(folder)})
    made = place.make(python_version=short, with_python=True)
    assert not place.make(python_version=short, with_python=True).is_changed
    packed = made.manifest.python_file
    assert packed is not None
    assert (packed.startswith(f"python/cpython-{short}."), made.facts()["python_file"]) == (True, packed)

    nothing = {"PATH": "/none", "PYENV_ROOT": "/none", "UV_PYTHON_INSTALL_DIR": str(place.folder / "none")}
    there = replace(place.elsewhere(), more=nothing)
    planned = plan_change(there.gone(), there.options(python=None))
    assert planned.plan.why_target.endswith("fits, and is in the bundle")
    report = apply_matrix(there.gone(), there.options(python=None))
    assert (report.passed, report.python_version.rpartition(".")[0]) == (True, short)
    home = there.folder / "second" / "home"
    (unpacked,) = (home / "pythons").iterdir()
    assert Path(report.python).resolve() == (unpacked / "bin" / f"python{short}").resolve()
    assert not apply_matrix(there.gone(), there.options(python=None)).changed

    assert prune_home(home, before=math.inf).entries == 0
    (own,) = (home / "bundles").iterdir()
    (home / "bundles" / "other").mkdir()
    assert (prune_home(home, before=time.time() - 60).entries, prune_home(home, before=math.inf).entries) == (
        0,
        1,
    )
    remove_env(home, "tiny")
    assert prune_home(home, before=math.inf).entries == 2
    assert not any(path.exists() for path in (own, unpacked))


def test_a_python_goes_with_an_empty_environment_of_this_platform(place: Place) -> None:
    for options, words in (
        ({"runtime": "colab-2026.08-gpu"}, "a bundle for colab-2026.08-gpu changes the Python that is there"),
        ({"python_version": "3.12", "platform": "win_amd64"}, "the bundle is for win_amd64"),
    ):
        with pytest.raises(InvalidInput, match=words):
            place.make(with_python=True, **options)


BAD_PYTHONS = {
    "a member outside": ("../evil", "leaves the archive"),
    "a file that no Python has": ("etc/passwd", "which no Python has"),
    "no interpreter": ("lib/os.py", "has no interpreter of Python 3.12"),
}


@pytest.mark.parametrize(("path", "words"), BAD_PYTHONS.values(), ids=BAD_PYTHONS)
def test_an_archive_that_is_no_python_is_refused(path: str, words: str, tmp_path: Path) -> None:
    archive = tmp_path / "cpython-3.12.1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in (path, "bin/python3", "lib/python3.12/os.py"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(BadDistribution, match=words):
        unpack_interpreter(archive, tmp_path / "pythons" / "one", "3.12")
    assert not list((tmp_path / "pythons").glob("one/evil"))
    with pytest.raises(BadDistribution, match=r"is not a standalone build of Python 3\.12"):
        pack_interpreter(archive, "3.12", tmp_path / "out")
