"""The shipped matrices: readable, explained, and true to what they promise."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

import pytest

from colablock._common.plain_values import from_plain
from colablock._vendor.packaging.pylock import Pylock
from colablock._vendor.packaging.utils import NormalizedName
from colablock._vendor.packaging.version import Version
from colablock.check.outcomes import MatrixChecker
from colablock.environment.accelerator import Accelerator
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import BadDistribution, ExitCode, InvalidInput, Refused
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.pylock import read_lock, write_lock
from colablock.lockfile.store import LockHead, read_head
from colablock.lockfile.targets import lock_file_name
from colablock.lockfile.tool_table import table_of
from colablock.matrix.catalog import find_matrix, list_matrices
from colablock.matrix.model import Matrix, Variant, select_variant
from colablock.matrix.schema import RUNNERS
from colablock.network.settings import DEFAULT_INDEX
from colablock.operations.plan import plan_change
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions
from colablock.planning.plan import Target
from colablock.planning.planned import PlannedChange
from colablock.runtimes.catalog import load_runtime, runtime_names
from colablock.training.evidence import ApplyReceipt, read_apply_receipts, write_apply_receipt
from colablock.training.receipts import Receipt, admits, asks_for, receipt_from
from tests.support.accelerators import card
from tests.support.fixtures import world_fixture
from tests.support.paths import ROOT, SHIPPED
from tests.support.recorded_index import RecordedIndex
from tests.support.serving import refusing
from tests.support.wheels import make_wheel
from tests.support.world import World

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMES = sorted(SHIPPED)
NEED_A_CARD = {"qlora-2026-unsloth"}
RECIPE = {
    "torch": "==2.4.0",
    "transformers": "==4.41.0",
    "accelerate": "==0.33.0",
    "peft": "==0.12.0",
    "bitsandbytes": "==0.43.3",
    "datasets": "==2.20.0",
    "tokenizers": "==0.19.1",
    "numpy": "==1.26.4",
    "tensorboard": "==2.17.0",
    "wandb": "",
    "fire": "",
    "pyyaml": "",
    "huggingface-hub": "",
}
# What only the cu118 build of torch 2.4.0 requires: entries that take it from the default index.
CUDA_LIBRARIES = {
    *(f"nvidia-cuda-{name}-cu11" for name in ("cupti", "nvrtc", "runtime")),
    *(f"nvidia-{name}-cu11" for name in ("cublas", "cudnn", "cufft", "curand", "cusolver", "cusparse")),
    *("nvidia-nccl-cu11", "nvidia-nvtx-cu11", "triton", "networkx"),
}
SUMMER_2025 = {
    "torch": "==2.7.1",
    "transformers": "==4.55.2",
    "peft": "==0.17.0",
    "accelerate": "==1.10.0",
    "bitsandbytes": "==0.47.0",
    "trl": "==0.21.0",
    "datasets": "==4.0.0",
    "huggingface-hub": "==0.34.4",
}
# What two recorded runtimes hold of the names that `qlora-2026` asks for.
IMAGES = {
    "2026.07": {
        "torch": "2.11.0+cu128",
        "numpy": "2.0.2",
        "transformers": "5.13.1",
        "peft": "0.19.1",
        "accelerate": "1.14.0",
        "datasets": "4.0.0",
        "tokenizers": "0.22.2",
        "huggingface-hub": "1.23.0",
    },
    "2026.08": {
        "torch": "2.11.0+cu128",
        "numpy": "2.1.3",
        "transformers": "5.15.0",
        "peft": "0.20.0",
        "accelerate": "1.14.0",
        "datasets": "4.0.0",
        "tokenizers": "0.22.2",
        "huggingface-hub": "1.27.0",
    },
}


@pytest.fixture(params=NAMES)
def matrix(request: pytest.FixtureRequest, tmp_path: Path) -> Matrix:
    return find_matrix(request.param, environ={}, cwd=tmp_path)


def shipped(name: str, tmp_path: Path) -> Matrix:
    return find_matrix(name, environ={}, cwd=tmp_path)


def test_every_shipped_matrix_is_listed(tmp_path: Path) -> None:
    listed = list_matrices(environ={}, cwd=tmp_path)
    assert [one.name for one in listed] == NAMES
    assert all(one.summary and one.fault is None for one in listed)


def test_every_entry_has_a_reason(matrix: Matrix) -> None:
    parts: list[Matrix | Variant] = [matrix, *matrix.variants.values()]
    unexplained = [
        entry.path
        for part in parts
        for entries in (part.packages, part.constraints, part.absent)
        for entry in entries
        if not entry.why
    ]
    assert unexplained == []


def test_every_variant_has_a_summary_and_an_accelerator(matrix: Matrix) -> None:
    assert all(variant.summary and variant.system.accelerator for variant in matrix.variants.values())


def test_each_matrix_has_a_variant_with_a_gpu_and_most_without(matrix: Matrix) -> None:
    assert select_variant(matrix, card("7.5")).variant in {"cuda", "cu118"}
    if matrix.name in NEED_A_CARD:
        with pytest.raises(Refused) as caught:
            select_variant(matrix, Accelerator())
        assert "`qlora-2026` trains with trl without a card" in (caught.value.hint or "")
    else:
        assert select_variant(matrix, Accelerator()).variant == "cpu"


def test_each_matrix_verifies_its_imports_and_names_a_runner(matrix: Matrix) -> None:
    assert "transformers:AutoModelForCausalLM" in matrix.verify.imports
    assert matrix.verify.imports[0] == "torch"
    assert "nf4" in matrix.verify.capabilities
    assert matrix.train.runner in RUNNERS


def test_the_2024_matrix_asks_for_the_versions_of_the_recipe(tmp_path: Path) -> None:
    matrix = shipped("qlora-2024", tmp_path)
    for variant in matrix.variants:
        chosen = select_variant(matrix, Accelerator(), variant)
        asked = {str(entry.name): str(entry.specifier) for entry in chosen.packages if entry.url is None}
        libraries = asked.keys() - RECIPE.keys()
        assert {name: asked[name] for name in RECIPE} == RECIPE
        assert libraries == (CUDA_LIBRARIES if variant == "cu118" else set())


def test_only_torch_of_cu118_comes_from_its_own_index(tmp_path: Path) -> None:
    matrix = shipped("qlora-2024", tmp_path)
    indexes = {
        name: {entry.name: entry.index for entry in select_variant(matrix, Accelerator(), name).packages}
        for name in matrix.variants
    }
    assert {name: {entry for entry, index in found.items() if index} for name, found in indexes.items()} == {
        "cu121": set(),
        "cu118": {"torch"},
        "cpu": set(),
    }
    assert [index.exclude_newer for index in matrix.indexes] == [False]


@pytest.mark.parametrize(
    ("accelerator", "variant"),
    [
        (card("9.0"), "cu118"),
        (card("7.5", driver="525.60.13"), "cu118"),
        (card("3.7", driver="470.82"), None),
        (card("12.0"), None),
    ],
)
def test_the_gpu_selects_the_variant_of_the_2024_stack(
    accelerator: Accelerator, variant: str | None, tmp_path: Path
) -> None:
    matrix = shipped("qlora-2024", tmp_path)
    if variant is None:
        with pytest.raises(Refused, match="no variant of `qlora-2024` fits"):
            select_variant(matrix, accelerator)
    else:
        assert select_variant(matrix, accelerator).variant == variant


def test_axolotl_0_4_0_is_rebuilt_with_replaced_requirements(tmp_path: Path) -> None:
    matrix = shipped("qlora-2024", tmp_path)
    axolotl = next(entry for entry in matrix.packages if entry.name == "axolotl")
    assert (axolotl.version, axolotl.source_root, axolotl.is_rebuilt) == ("0.4.0", "src", True)
    requires = {line.name: str(line.specifier) for line in axolotl.requires_dist or ()}
    assert requires["setuptools"] == "<81"
    assert requires["pynvml"] == "<12"
    assert set(RECIPE) - {"tokenizers", "tensorboard"} <= set(requires)
    assert matrix.exclude_newer is not None
    assert not matrix.requires_python.contains("3.13")
    assert "llama3-rope" not in matrix.verify.capabilities
    assert matrix.train.workarounds == ("load-in-4bit-twice",)


def test_the_2025_stack_is_pinned_and_has_a_cutoff(tmp_path: Path) -> None:
    matrix = shipped("qlora-2025", tmp_path)
    for variant in ("cuda", "cpu"):
        chosen = select_variant(matrix, Accelerator(), variant)
        assert {entry.name: str(entry.specifier) for entry in chosen.packages} == SUMMER_2025
    assert matrix.exclude_newer == datetime(2025, 9, 1, tzinfo=timezone.utc)
    assert [matrix.requires_python.contains(python) for python in ("3.10", "3.11", "3.13", "3.14")] == [
        False,
        True,
        True,
        False,
    ]
    with pytest.raises(Refused, match="no variant of `qlora-2025` fits"):
        select_variant(matrix, card("12.0"))  # its build of torch has no kernels for Blackwell


spring = world_fixture(source=lambda: RecordedIndex("qlora-2024"), scope="module")
summer = world_fixture(source=lambda: RecordedIndex("qlora-2025"), scope="module")
unsloth = world_fixture(source=lambda: RecordedIndex("qlora-2026-unsloth"), scope="module")


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_2025_stack_locks_for_each_supported_python(python: str, summer: World) -> None:
    target = ("--python-version", python, "--platform", "manylinux_2_35_x86_64")
    done = summer.run("lock", "qlora-2025", "--variant", "cuda", *target, "--output", "-")
    assert done.code == ExitCode.DONE, done.err
    pins = {package["name"]: package["version"] for package in tomllib.loads(done.out)["packages"]}
    assert len(pins) == 63
    assert {name: f"=={pins[name]}" for name in SUMMER_2025} == SUMMER_2025
    # The cut-off decides what the matrix does not pin.
    assert (pins["numpy"], pins["pyarrow"], pins["tokenizers"]) == ("2.3.2", "21.0.0", "0.21.4")


@pytest.mark.parametrize(
    ("world", "variant", "lock"),
    [
        ("spring", "cu121", "qlora-2024--py311--cu121"),
        ("spring", "cpu", "qlora-2024--py312--cpu"),
        ("summer", "cuda", "qlora-2025--py312"),
        ("summer", "cpu", "qlora-2025--py313--cpu"),
        ("unsloth", "cuda", "qlora-2026-unsloth--py312"),
    ],
)
def test_a_solve_from_nothing_finds_the_pins_of_the_shipped_lock(
    world: str, variant: str, lock: str, request: pytest.FixtureRequest
) -> None:
    name, python, *_ = lock.split("--")
    target = ("--python-version", f"3.{python[3:]}", "--platform", "manylinux_2_35_x86_64")
    options = ("--variant", variant, "--upgrade", "--output", "-")
    done = request.getfixturevalue(world).run("lock", name, *target, *options)
    assert done.code == ExitCode.DONE, done.err
    assert pins_in(done.out) == pins_in((ROOT / "matrices" / f"pylock.{lock}.toml").read_text("utf-8"))


def pins_in(lock: str) -> dict[str, str]:
    """Return the public versions: the label of a rebuilt wheel depends on the archive that is served."""
    return {one["name"]: one["version"].partition("+")[0] for one in tomllib.loads(lock)["packages"]}


def test_the_2025_stack_has_no_solution_on_python_3_10(summer: World) -> None:
    target = ("--python-version", "3.10", "--platform", "manylinux_2_35_x86_64")
    done = summer.run("lock", "qlora-2025", *target, "--output", "-")
    assert done.code == ExitCode.UNMET
    assert ">=3.11" in done.err


@pytest.mark.parametrize("runtime", ["colab-2025.07-gpu", "colab-2026.08-gpu"])
def test_the_2025_stack_is_planned_into_an_isolated_environment(runtime: str, summer: World) -> None:
    done = summer.run("plan", "qlora-2025", "--runtime", runtime, "--json")
    assert done.code == ExitCode.DONE, done.err
    assert (done.json["target"], done.json["variant"]) == ("env", "cuda")


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("variant", ["cuda", "cpu"])
def test_the_image_satisfies_the_ranges_of_the_2026_matrix(image: str, variant: str, tmp_path: Path) -> None:
    matrix = select_variant(shipped("qlora-2026", tmp_path), Accelerator(), variant)
    there = IMAGES[image]
    outside = [
        entry.path
        for entry in matrix.packages
        if entry.name in there and not entry.specifier.contains(Version(there[entry.name]))
    ]
    assert outside == []
    assert {entry.name for entry in matrix.packages} - set(there) == {"bitsandbytes", "trl"}
    assert [(absent.name, str(absent.specifier)) for absent in matrix.absent] == [("torchao", "<0.16")]
    assert matrix.indexes == ()


KERNELS = {  # the matrix that goes into the kernel of each image
    **dict.fromkeys(("2025.07", "2025.09", "2025.10", "2026.01", "2026.04"), "qlora-2025-kernel"),
    **dict.fromkeys(("2026.07", "2026.08"), "qlora-2026"),
}


@pytest.mark.parametrize("runtime", runtime_names(environ={}))
def test_each_recorded_image_takes_a_stack_into_its_kernel_without_harm(runtime: str, tmp_path: Path) -> None:
    """No restart, nothing newly broken, nothing moved: torch, numpy and transformers are the image's own."""
    name = KERNELS[load_runtime(runtime, environ={}).source.split("-")[1]]
    results = json.loads((ROOT / "matrices" / f"{name}.checks.json").read_text(encoding="utf-8"))["results"]
    found = [one for one in results if one["runtime"] == runtime]
    kernels = {one["accelerator"]: one for one in found if one["verdict"] == "kernel"}
    assert kernels.keys() >= ({"none"} if runtime.endswith("cpu") else {"T4", "L4", "A100", "H100"})
    for one in kernels.values():
        assert (one["replaces"], one["breaks"], one["restart"]) == (0, [], False)
        assert {"bitsandbytes", "trl"} <= set(re.split(r"[ ,]+", one["reason"].replace(";", ",")))
    # Any network would be an error here: the lock of the runtime has everything.
    folders = {"COLABLOCK_CACHE_DIR": str(tmp_path / "cache"), "COLABLOCK_HOME": str(tmp_path / "home")}
    session = Session(environ={**os.environ, **folders, "COLABLOCK_OFFLINE": "1"})
    plan = plan_change(session, ApplyOptions(name=name, runtime=runtime)).plan
    assert (plan.target.value, dict(plan.restart), plan.breakages, plan.unknown) == ("kernel", {}, (), ())
    assert {"torch", "numpy", "transformers", "peft", "accelerate", "datasets"} <= {
        one.name for one in plan.kept
    }
    assert {step.action.value for step in plan.steps} <= {"install", "remove"}
    assert {step.name for step in plan.steps if step.action.value == "remove"} <= {"torchao"}


@pytest.mark.parametrize("name", ["qlora-2025", "qlora-2026", "qlora-2026-axolotl"])
def test_the_cpu_variant_prefers_a_cpu_build_of_torch(name: str, tmp_path: Path) -> None:
    matrix = shipped(name, tmp_path)
    assert list(matrix.variants) == ["cuda", "cpu"]
    torch = next(entry for entry in select_variant(matrix, Accelerator()).packages if entry.name == "torch")
    assert (torch.prefer_local, torch.index) == ("cpu", None)
    with_card = next(entry for entry in matrix.packages if entry.name == "torch")
    assert torch.specifier == with_card.specifier


@pytest.mark.parametrize("image", IMAGES)
def test_unsloth_moves_three_distributions_of_an_image(image: str, tmp_path: Path) -> None:
    folders = {"COLABLOCK_CACHE_DIR": str(tmp_path / "cache"), "COLABLOCK_HOME": str(tmp_path / "home")}
    session = Session(environ={**os.environ, **folders})
    options = ApplyOptions(
        name="qlora-2026-unsloth", runtime=f"colab-{image}-gpu", into=Target.KERNEL, offline=True
    )
    plan = plan_change(session, options).plan
    moved = {step.name: step.version for step in plan.steps if step.previous is not None}
    assert moved == {"datasets": "3.6.0", "torchao": "0.18.0", "certifi": "2026.10.19.post1"}
    new = {str(step.name): step.version for step in plan.steps if step.previous is None}
    assert len(new) == 11
    assert (new["trl"], new["xformers"], new["unsloth"]) == ("0.29.1", "0.0.35", "2026.10.9")
    assert (plan.restart, plan.breakages) == ({}, ())
    kept = {str(item.name): item.version for item in plan.kept}
    there = {**IMAGES[image], "pyarrow": "18.1.0", "torchvision": "0.26.0+cu128", "triton": "3.6.0"}
    assert {name for name in there if kept.get(name) != there[name]} == {"datasets"}


def test_a_solve_for_an_image_moves_what_its_lock_moves(unsloth: World) -> None:
    """An older datasets and an older trl are preferred to another pyarrow."""
    done = unsloth.run("lock", "qlora-2026-unsloth", "--runtime", "colab-2026.08-gpu", "-U", "--output", "-")
    assert done.code == ExitCode.DONE, done.err
    shipped_lock = ROOT / "matrices" / "pylock.qlora-2026-unsloth--colab-2026_08-gpu.toml"
    assert pins_in(done.out) == pins_in(shipped_lock.read_text(encoding="utf-8"))


MONTHLY = runpy.run_path(str(ROOT / "tools" / "monthly_matrix.py"))


@pytest.mark.parametrize("name", ["qlora-2026-12", "qlora-2026-12-axolotl"])
def test_the_matrix_of_the_month_is_dated_and_pinned(name: str, tmp_path: Path) -> None:
    matrix = shipped(name, tmp_path)
    assert matrix.exclude_newer == datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
    pins = MONTHLY["pins_of"](Path(matrix.source).read_text("utf-8"))
    assert pins.keys() == {entry.name for entry in matrix.packages}
    for python in ("3.11", "3.12", "3.13"):
        if matrix.requires_python.contains(python):  # a complete lock for each, with and without a card
            for variant in ("", "--cpu"):
                lock = ROOT / "matrices" / f"pylock.{name}--py{python.replace('.', '')}{variant}.toml"
                assert pins_in(lock.read_text("utf-8")).items() >= pins.items()


def in_two_months(folder: Path) -> None:
    """Write an index: `torch` has risen, but not with `trl`, and what `trl` 2 needs is too new."""
    (folder / "index").mkdir()
    for name, version, requires in (
        *(("torch", version, ()) for version in ("2.14.0", "2.15.0", "2.16.0")),
        ("trl", "1.16.0", ("torch<2.16",)),
        ("trl", "1.17.0", ("torch<2.17",)),
        ("trl", "2.0.0", ("torch>=2.17",)),
    ):
        make_wheel(folder / "index", name, version, requires=requires)


later = world_fixture(in_two_months)


def test_the_matrix_of_the_next_month_pins_the_newest_that_go_together(later: World) -> None:
    old = (ROOT / "matrices" / "qlora-2026-12.toml").read_text("utf-8")
    kept = [
        part
        for part in re.split(r"^(?=\[)", old, flags=re.MULTILINE)
        if "packages.t" in part or part[0] == "#"
    ]
    cuda = "[variants.cuda]\nsystem-requirements = {}\n"
    dated = "".join(part for part in kept if "tokenizers" not in part and "transformers" not in part)
    before = later.folder / "qlora-2026-12.toml"
    before.write_text(
        dated.replace("[variants", f"{cuda}[variants", 1).replace("2026-11-29T12", "2026-01-01T00")
    )
    command = [sys.executable, str(ROOT / "tools" / "monthly_matrix.py"), str(before), "qlora-2027-01"]
    done = subprocess.run(command, env=later.environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["  torch 2.15.0 -> 2.16.0", "  trl 1.16.0 -> 1.17.0"]
    new = find_matrix(str(later.folder / "qlora-2027-01.toml"), environ={})
    assert {entry.name: str(entry.specifier) for entry in new.packages} == {
        "torch": "==2.16.0",
        "trl": "==1.17.0",
    }
    (torch,) = new.variants["cpu"].packages
    assert (str(torch.specifier), torch.prefer_local) == ("==2.16.0", "cpu")
    assert [entry.why for entry in new.packages] == [entry.why for entry in find_matrix(str(before)).packages]
    assert "January 2027" in (new.summary or "")
    assert new.exclude_newer is not None
    assert new.exclude_newer > datetime(2026, 11, 28, tzinfo=timezone.utc)


LOCKS = sorted((ROOT / "matrices").glob("pylock.*.toml"))
TOOL = runpy.run_path(str(ROOT / "tools" / "lock_from_sources.py"))
FACTS = TOOL["read_sources"](ROOT / "matrices" / "qlora-2024.sources.json")
HASHES = {one["name"]: one["sha256"] for one in FACTS["files"]}
PYTORCH = "https://download.pytorch.org/whl/cu118"


def plan_of_2024(tmp_path: Path, **variables: str) -> PlannedChange:
    folders = {"COLABLOCK_CACHE_DIR": str(tmp_path / "cache"), "COLABLOCK_HOME": str(tmp_path / "home")}
    session = Session(environ={**os.environ, "COLABLOCK_RETRIES": "0", **folders, **variables})
    return plan_change(session, ApplyOptions(name="qlora-2024", runtime="colab-2025.09-gpu"))


def test_a_card_gets_the_build_of_the_recipe_from_its_index(tmp_path: Path) -> None:
    """The index is a local copy: the pages that the public facts allow, and stand-ins of its files."""
    copy = tmp_path / TOOL["write_pages"](FACTS, tmp_path)[PYTORCH]
    planned = plan_of_2024(tmp_path, COLABLOCK_INDEX_PYTORCH_CU118=str(copy))
    assert (planned.plan.variant, planned.pins()[NormalizedName("torch")]) == ("cu118", "2.4.0+cu118")
    assert not [note for note in planned.plan.notes if "in place of" in note]
    assert Path(planned.plan.lock or "").name == "pylock.qlora-2024--py312.toml"
    assert set(planned.plan.lock_hosts) == {"download.pytorch.org", "files.pythonhosted.org", "github.com"}
    (torch,) = [step.artifact for step in planned.plan.steps if step.name == "torch"]
    assert torch is not None
    assert torch.hashes == {"sha256": HASHES[torch.filename]}
    # A stand-in of that name does not have the bytes that the public hash promises.
    with pytest.raises(BadDistribution, match=HASHES[torch.filename]):
        planned.preparer.fetcher.fetch(torch)


def test_a_card_gets_the_build_of_the_default_index_while_the_other_is_blocked(tmp_path: Path) -> None:
    with refusing() as gone:
        planned = plan_of_2024(tmp_path, COLABLOCK_MIRRORS=f"https://download.pytorch.org/={gone}/")
    assert (planned.plan.variant, planned.pins()[NormalizedName("torch")]) == ("cu121", "2.4.0")
    (note,) = [note for note in planned.plan.notes if "in place of" in note]
    index = f"the index `pytorch-cu118` at `{PYTORCH}`"
    assert note.startswith(f"variant cu121 in place of cu118: {index} cannot be reached: no connection")
    assert Path(planned.plan.lock or "").name == "pylock.qlora-2024--py312--cu121.toml"


def test_the_sources_of_a_lock_are_its_facts() -> None:
    """Each hash of pytorch's index in a lock is in the sources, as the requirements of its project are."""
    (stated,) = [one["requires-dist"] for one in FACTS["requires"] if one["name"] == "torch"]
    found = set()
    for path in LOCKS:
        packages = read_lock(path).packages if PYTORCH.encode() in path.read_bytes() else ()
        for package in packages:
            if (package.index or "").startswith(PYTORCH):
                (wheel,) = package.wheels or ()
                assert wheel.hashes == {"sha256": HASHES[wheel.filename]}
                assert wheel.url == f"{PYTORCH}/{quote(wheel.filename)}"
                lines = {line.partition(";")[0] for line in stated}
                assert set(table_of(package)["requires-dist"]) | {"setuptools"} == lines
                found.add(wheel.filename)
    assert found == set(HASHES)


def surplus_files(path: Path, head: LockHead, lock: Pylock, matrix: Matrix) -> list[str]:
    """Return the files that the target of a lock does not take: of another platform, or an unused sdist."""
    if head.variant is not None:
        matrix = select_variant(matrix, Accelerator(), head.variant)
    environment = (
        load_runtime(head.runtime).environment
        if head.runtime
        else environment_for(head.python, head.platform)
    )
    options = matrix.options
    source = LockSource(
        lock, path.parent, environment, allow_build=options.allow_build, no_binary=options.no_binary
    )
    surplus = []
    for package in lock.packages:
        (candidate,) = source.judge(package.name).candidates
        used = {file.filename for file in candidate.files}
        own = [file for file in (*(package.wheels or ()), package.sdist) if file and not file.path]
        surplus += [file.filename for file in own if file.filename not in used]
        if package.wheels and package.sdist:
            surplus.append(package.sdist.filename)
    return surplus


@pytest.mark.slow
@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_shipped_lock_is_up_to_date_with_its_matrix(path: Path) -> None:
    head = read_head(path)
    assert head is not None
    matrix = find_matrix(str(path.parent / f"{head.matrix}.toml"))
    assert head.matrix_digest == matrix.digest, "make it anew: `colablock lock NAME --all`"
    assert head.index == DEFAULT_INDEX
    target = head.runtime or f"py{head.short.replace('.', '')}"
    assert path.name.startswith(lock_file_name(head.matrix, target).removesuffix(".toml"))
    lock = read_lock(path)
    lock.validate()
    assert write_lock(lock) == path.read_bytes()
    assert surplus_files(path, head, lock, matrix) == [], "list the files of the target only"
    urls = [file.url or "" for package in lock.packages for file in package.wheels or () if not file.path]
    assert all(url.startswith("https://") for url in urls)


RECEIPTS = sorted((ROOT / "matrices").glob("*.receipts/*.json"))


def hold_of_now(path: Path) -> None:
    """Check the receipt in *path*, of a training or of an apply, against the matrix beside its folder."""
    value = json.loads(path.read_text(encoding="utf-8"))
    receipt: Receipt | ApplyReceipt
    if value.get("kind") == "apply":
        receipt = from_plain(ApplyReceipt, value, "receipt")
        assert receipt in read_apply_receipts(str(path.parent.with_suffix(".toml")))
        assert receipt.checks > len(receipt.imports)
    else:
        receipt = receipt_from(value, source=str(path))
        assert receipt.passed
        assert len(receipt.losses) == receipt.steps
    assert path.parent.name == f"{receipt.matrix}.receipts"
    matrix = find_matrix(str(path.parent.with_suffix(".toml")))
    stack = (receipt.variant, receipt.python_version, receipt.versions)
    is_asked = admits(matrix, receipt) if isinstance(receipt, Receipt) else asks_for(matrix, *stack)
    if receipt.matrix_digest == matrix.digest or is_asked:
        return
    short = f"py{''.join(receipt.python_version.split('.')[:2])}"
    (lock,) = path.parent.parent.glob(f"pylock.{receipt.matrix}--{short}--{receipt.variant}.toml")
    pins = {one.name: str(one.version) for one in read_lock(lock).packages}
    assert {name: receipt.versions.get(name) for name in pins} == pins


@pytest.mark.parametrize("path", RECEIPTS, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_every_receipt_passed_with_what_the_current_matrix_asks_for(path: Path) -> None:
    hold_of_now(path)


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"versions": {"shapes": "2.0"}}, False),
        ({"python_version": "3.9.1"}, False),
        ({"variant": "cuda"}, False),
        ({"matrix": "other"}, False),
        ({"checks": 1}, False),
        ({"schema": 2}, False),
        ({"lock": None}, False),
    ],
)
def test_the_receipt_of_an_apply_is_held_to_the_current_matrix(
    tmp_path: Path, changes: dict[str, object], *, holds: bool
) -> None:
    text = 'schema = 1\nname = "tiny"\nrequires-python = ">=3.10"\n[packages]\nshapes = "<2"\n'
    (tmp_path / "tiny.toml").write_text(text)
    proven = ApplyReceipt(
        matrix="tiny",
        matrix_digest="of before a comment",
        variant=None,
        lock="0" * 64,
        target="env",
        python_version="3.12.3",
        card="Tesla T4",
        checks=9,
        imports=("shapes",),
        date="2026-11-25T10:00:00Z",
        colablock="0.1.0",
        versions={"shapes": "1.0"},
    )
    path = tmp_path / "tiny.receipts" / "applied-Tesla-T4.json"
    write_apply_receipt(proven, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    if holds:
        hold_of_now(path)
        return
    with pytest.raises((AssertionError, InvalidInput, ValueError)):
        hold_of_now(path)


def test_every_shipped_matrix_has_locks_and_results() -> None:
    names = {path.stem for path in (ROOT / "matrices").glob("*.toml") if not path.name.startswith("pylock.")}
    assert {path.name.split(".")[1].split("--")[0] for path in LOCKS} == names
    for name in names:
        found = json.loads((ROOT / "matrices" / f"{name}.checks.json").read_text(encoding="utf-8"))
        assert found["matrix-digest"] == find_matrix(str(ROOT / "matrices" / f"{name}.toml")).digest


def test_a_wheel_beside_a_lock_changes_no_result_of_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git ignores the rebuilt wheels, so a fresh clone has none; the folder is no matter."""
    for source in (ROOT / "matrices").glob("*qlora-2024*"):
        if source.is_file():
            shutil.copy(source, tmp_path)
    matrix = find_matrix(str(tmp_path / "qlora-2024.toml"), environ={})
    results = ROOT / "matrices" / "qlora-2024.checks.json"
    committed = json.loads(results.read_text(encoding="utf-8"))["results"]
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        found = next(iter(MatrixChecker(matrix=matrix, environ={}).outcomes()))
        assert found.to_json() == committed[0]
        for lock in tmp_path.glob("pylock.*.toml"):
            wheel = next(re.finditer(r'path = "([^"]+[.]whl)"', lock.read_text(encoding="utf-8")), None)
            if wheel is not None:
                (tmp_path / wheel[1]).parent.mkdir(exist_ok=True)
                (tmp_path / wheel[1]).write_bytes(b"")
