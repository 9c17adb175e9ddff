"""A variant whose own index cannot be reached is replaced by the next one that fits, and the plan says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colablock._common.fs import file_digest
from colablock.environment.accelerator import Accelerator
from colablock.errors import BadDistribution, FetchFailed, NoSolution
from colablock.lockfile.pylock import read_lock
from colablock.matrix.catalog import find_matrix
from colablock.matrix.model import Matrix, variant_choices
from colablock.operations import lock
from colablock.operations.apply import apply_matrix
from colablock.operations.lock import LockResult, lock_all, lock_matrix
from colablock.operations.plan import plan_change
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions, LockOptions
from colablock.planning.plan import Plan, Target
from tests.support.accelerators import card
from tests.support.fixtures import world_fixture
from tests.support.reporters import Notes
from tests.support.server import Fault, IndexServer
from tests.support.serving import refusing
from tests.support.wheels import make_wheel
from tests.support.world import World

OWN = "https://index.invalid/whl/cu118"
PREFIX = "/whl/cu118/"
BUILD = "torch-2.4.0+cu118-py3-none-any.whl"
PAGE, FILE = f"{PREFIX}torch/", f"{PREFIX}files/torch-2.4.0%2Bcu118-py3-none-any.whl"
MATRIX = f"""\
schema = 1
name = "tiny"
exclude-newer = 2024-09-01T00:00:00Z
[[index]]
name = "pytorch-cu118"
url = "{OWN}"
exclude-newer = false
[packages]
torch = "==2.4.0"
[variants.cu118.packages.torch]
version = "==2.4.0"
index = "pytorch-cu118"
[variants.cu118.packages]
cuda = "==11.8"
[variants.cu121.packages]
torch = "==2.4.0"
[verify]
imports = ["torch"]
"""


def fill(folder: Path) -> None:
    """Write a default index, and one build of torch for an index of its own."""
    make_wheel(folder / "index", "torch", "2.4.0", requires=["cuda==12.1"])
    make_wheel(folder / "index", "cuda", "12.1")
    make_wheel(folder / "index", "cuda", "11.8")
    make_wheel(folder / "index", "more", "1.0")
    make_wheel(folder / "own", "torch", "2.4.0+cu118", requires=["cuda==11.8"])


world = world_fixture(fill, scope="module")


@pytest.fixture(scope="module")
def own(world: World) -> Iterator[IndexServer]:
    """An index like pytorch's: HTML pages with hashes, no upload times, no sizes, no metadata files."""
    folder = world.folder / "own"
    switches: dict[str, Any] = {"formats": ("html",), "metadata": False, "upload_times": False}
    with IndexServer(folder, prefix=PREFIX, files=f"{PREFIX}files/", **switches) as server:
        yield server


@dataclass(frozen=True)
class Place:
    """The matrix `tiny`, and the mirror of its own index."""

    world: World
    own: IndexServer
    folder: Path

    @property
    def matrix(self) -> str:
        return str(self.folder / "tiny.toml")

    def session(self, mirror: str | None = None, **variables: str) -> Session:
        """Return a session in which *mirror* answers for the own index; without one nobody does."""
        named = {} if mirror is None else {"COLABLOCK_INDEX_PYTORCH_CU118": mirror}
        folders = {
            "COLABLOCK_CACHE_DIR": str(self.folder / "cache"),
            "COLABLOCK_HOME": str(self.folder / "home"),
        }
        environ = self.world.environ(COLABLOCK_RETRIES="0", **folders, **named, **variables)
        return Session(environ=environ, reporter=Notes())

    def options(self, **given: Any) -> ApplyOptions:
        return ApplyOptions(name=self.matrix, into=Target.ENV, python=sys.executable, **given)

    def plan(self, mirror: str | None = None, **given: Any) -> Plan:
        return plan_change(self.session(mirror), self.options(**given)).plan

    def lock(self, mirror: str | None = None, **wanted: Any) -> LockResult:
        return lock_matrix(self.session(mirror), ApplyOptions(name=self.matrix), LockOptions(**wanted))


@pytest.fixture
def place(world: World, own: IndexServer, tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "tiny.toml").write_text(MATRIX)
    own.forget_requests()
    yield Place(world, own, tmp_path)
    own._faults.clear()


def build(plan: Plan) -> str:
    """Return the build of torch in *plan*, with the variant."""
    (torch,) = [step.version for step in plan.steps if step.name == "torch"]
    return f"{plan.variant}: {torch}"


def notes(plan: Plan) -> list[str]:
    return [note for note in plan.notes if "in place of" in note]


def test_the_first_variant_is_taken_while_its_index_answers(place: Place) -> None:
    plan = place.plan(place.own.url)
    assert (build(plan), notes(plan)) == ("cu118: 2.4.0+cu118", [])
    place.lock(place.own.url)
    place.own.forget_requests()
    plan = place.plan(place.own.url)
    assert (build(plan), notes(plan)) == ("cu118: 2.4.0+cu118", [])
    assert place.own.paths in ([], [FILE])  # a plan by a lock reads no page


#: Why an index cannot be reached, and what the note says of it.
AWAY = {
    "no such host": (None, "the host `index.invalid` cannot be resolved"),
    "forbidden": (403, "answered 403 (Forbidden)"),
    "not here": (451, "answered 451"),
    "a proxy's login": (407, "answered 407"),
    "for now": (503, "answered 503 (Service Unavailable)"),
}


@pytest.mark.parametrize("is_locked", [False, True], ids=["without a lock", "by a lock"])
@pytest.mark.parametrize(("status", "why"), AWAY.values(), ids=AWAY)
def test_the_next_variant_replaces_one_whose_index_is_away(
    status: int | None, why: str, is_locked: bool, place: Place
) -> None:
    if is_locked:
        place.lock(place.own.url)
        (place.folder / "cache").rename(place.folder / "cache of another machine")
    if status is not None:
        place.own.fault(PAGE, Fault(status=status))
        place.own.fault(FILE, Fault(status=status))
    plan = place.plan(None if status is None else place.own.url)
    assert build(plan) == "cu121: 2.4.0"
    (note,) = notes(plan)
    head = f"variant cu121 in place of cu118: the index `pytorch-cu118` at `{OWN}` cannot be reached: "
    assert note.startswith(head)
    assert why in note
    assert "\n" not in note


def test_two_variants_read_a_page_once(place: Place) -> None:
    place.own.fault(PAGE, Fault(status=503))
    place.world.server.forget_requests()
    assert build(place.plan(place.own.url)) == "cu121: 2.4.0"
    pages = [path for path in place.world.server.paths if path.endswith("/")]
    assert len(pages) > 1
    assert sorted(set(pages)) == sorted(pages)


def test_a_mirror_that_has_stopped_and_a_proxy_that_refuses(place: Place) -> None:
    with refusing() as gone:
        assert build(place.plan(f"{gone}/")) == "cu121: 2.4.0"
        proxied = place.session(HTTPS_PROXY=gone, https_proxy=gone)
        plan = plan_change(proxied, place.options()).plan
    assert build(plan) == "cu121: 2.4.0"
    assert "the proxy" in notes(plan)[0]


def test_a_certificate_that_nobody_trusts(place: Place) -> None:
    with IndexServer(place.world.folder / "own", tls=True, formats=("html",)) as server:
        plan = place.plan(server.url)
    assert build(plan) == "cu121: 2.4.0"
    assert "is not trusted" in notes(plan)[0]


@pytest.mark.parametrize("status", [404, 401, 410])
def test_an_index_that_answers_is_not_replaced(status: int, place: Place) -> None:
    place.own.fault(PAGE, Fault(status=status))
    with pytest.raises((FetchFailed, NoSolution), match="torch"):
        place.plan(place.own.url)


def test_what_no_variant_can_have_is_said_in_place_of_the_index_that_is_away(place: Place) -> None:
    """The first variant would have the same conflict if its index answered."""
    make_wheel(place.folder / "links", "fast", "1.0", tag="cp27-cp27m-manylinux1_x86_64")
    Path(place.matrix).write_text(MATRIX.replace("[packages]", '[packages]\nfast = "==1.0"'))
    session = place.session()
    with pytest.raises(NoSolution, match="`fast` has no file for Python"):
        plan_change(session, place.options(find_links=(str(place.folder / "links"),)))
    assert set(session.unreached) == {OWN}


def test_a_variant_or_a_lock_that_is_named_is_not_replaced(place: Place) -> None:
    with pytest.raises(FetchFailed, match="pytorch-cu118"):
        place.plan(variant="cu118")
    assert build(place.plan(variant="cu121")) == "cu121: 2.4.0"
    locked = place.lock(place.own.url)
    assert build(place.plan(lock=locked.path)) == "cu118: 2.4.0+cu118"


def test_a_lock_brings_its_variant_and_its_additions(place: Place) -> None:
    """Of another machine, it may be for a variant that is not the first here."""
    options = ApplyOptions(name=place.matrix, variant="cu121", with_=("more>=1",))
    locked = lock_matrix(place.session(), options, LockOptions()).path
    plan = place.plan(lock=locked)
    assert build(plan) == "cu121: 2.4.0"
    assert "more" in {step.name for step in plan.steps}
    assert build(place.plan(place.own.url)) == "cu118: 2.4.0+cu118"  # what the machine would get
    with pytest.raises(NoSolution, match="less"):
        place.plan(lock=locked, with_=("less",))


def test_files_at_hand_need_no_index(place: Place) -> None:
    place.lock(place.own.url)
    session = place.session(place.own.url)
    assert apply_matrix(session, place.options()).variant == "cu118"
    for is_offline in (False, True):
        plan = place.plan(offline=is_offline)
        assert (build(plan), notes(plan)) == ("cu118: 2.4.0+cu118", [])
    assert session.unreached == {}


def test_offline_the_variant_that_is_at_hand_is_taken(place: Place) -> None:
    place.lock(place.own.url)
    for result in _all_variants(place):
        assert result.refusal is None
    (place.folder / "cache").rename(place.folder / "cache of another machine")
    with pytest.raises(FetchFailed, match=r"2\.4\.0\+cu118"):
        place.plan(offline=True)  # neither is here: the first one is missed
    apply_matrix(place.session(), place.options())
    plan = place.plan(offline=True)
    assert build(plan) == "cu121: 2.4.0"
    assert "colablock is offline" in notes(plan)[0]


def _all_variants(place: Place) -> list[LockResult]:
    made = [place.lock(place.own.url)]
    options = ApplyOptions(name=place.matrix, variant="cu121")
    return [*made, lock_matrix(place.session(place.own.url), options, LockOptions())]


def test_apply_builds_the_environment_of_the_variant_that_can_be_reached(place: Place) -> None:
    report = apply_matrix(place.session(), place.options())
    assert (report.variant, report.passed) == ("cu121", True)
    assert [note for note in report.notes if note.startswith("variant cu121 in place of cu118: ")]
    again = apply_matrix(place.session(place.own.url), place.options())
    assert (again.variant, again.passed) == ("cu118", True)


def test_an_index_that_is_away_is_tried_once_in_a_session(place: Place) -> None:
    place.own.fault(PAGE, Fault(status=403))
    session = place.session(place.own.url)
    for _ in range(3):
        assert build(plan_change(session, place.options()).plan) == "cu121: 2.4.0"
    assert place.own.paths == [PAGE]


def test_a_wheel_with_other_bytes_is_refused_and_nothing_replaces_it(place: Place) -> None:
    """The lock has the hash: a stand-in of the same name, or the page of an index, cannot change it."""
    locked = place.lock(place.own.url)
    (torch,) = [one for one in read_lock(locked.path).packages if one.name == "torch"]
    (wheel,) = torch.wheels or ()
    assert wheel.url == f"{OWN}/files/torch-2.4.0%2Bcu118-py3-none-any.whl"
    assert wheel.hashes == {"sha256": file_digest(place.world.folder / "own" / BUILD)}
    assert (wheel.size, wheel.upload_time) == (None, None)
    changed = {"torch.py": "__version__ = '2.4.0'\n"}
    make_wheel(place.folder / "other", "torch", "2.4.0+cu118", requires=["cuda==11.8"], modules=changed)
    (place.folder / "cache").rename(place.folder / "cache of another machine")
    other = IndexServer(place.folder / "other", prefix=PREFIX, files=f"{PREFIX}files/")
    with other, pytest.raises(BadDistribution, match=r"has the sha256 hash"):
        apply_matrix(place.session(other.url), place.options())
    assert not list((place.folder / "home" / "envs").glob("*/bin"))
    assert apply_matrix(place.session(place.own.url), place.options()).variant == "cu118"


def test_a_lock_is_made_again_while_the_index_is_away(place: Place) -> None:
    first = place.lock(place.own.url)
    (place.folder / "cache").rename(place.folder / "cache of another machine")
    session = place.session()
    again = lock_matrix(session, ApplyOptions(name=place.matrix), LockOptions())
    assert (again.text, again.is_changed) == (first.text, False)
    said = f"`{OWN}` cannot be reached: using what the lock `{first.path.name}` knows about torch"
    assert isinstance(session.reporter, Notes)
    assert said in session.reporter.notes
    with pytest.raises(FetchFailed, match="pytorch-cu118"):  # a lock for another Python says too little
        place.lock(python_version="3.9", platform="manylinux_2_35_x86_64")


def test_all_locks_include_those_of_the_variant_that_stands_in(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "runtime_names", lambda **_: ["colab-2026.07-gpu"])
    made = lock_all(place.session(place.own.url), ApplyOptions(name=place.matrix), LockOptions())
    found = {(result.path.name, result.variant) for result in made}
    assert found == {
        ("pylock.tiny--colab-2026_07-gpu.toml", "cu118"),
        ("pylock.tiny--colab-2026_07-gpu--cu121.toml", "cu121"),
        ("pylock.tiny--py312.toml", "cu118"),
        ("pylock.tiny--py312--cu121.toml", "cu121"),
    }


@pytest.mark.parametrize(
    ("accelerator", "names"),
    [
        (card("7.5"), ["cu118", "cu121"]),
        (card("9.0", driver="525.60.13"), ["cu118"]),
        (Accelerator(), ["cpu"]),
    ],
)
def test_only_variants_that_fit_replace_one(
    accelerator: Accelerator, names: list[str], shipped: Matrix
) -> None:
    assert [one.variant for one in variant_choices(shipped, accelerator)] == names


@pytest.fixture
def shipped(tmp_path: Path) -> Matrix:
    return find_matrix("qlora-2024", environ={}, cwd=tmp_path)
