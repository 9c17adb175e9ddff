"""The shipped matrices: readable, explained, and true to what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from colablock._vendor.packaging.version import Version
from colablock.accelerator import Accelerator, Device
from colablock.catalog import find_matrix, list_matrices
from colablock.errors import Refused
from colablock.matrix import Matrix, Variant, select_variant

NAMES = ["qlora-2024", "qlora-2026", "qlora-2026-axolotl"]
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


def card(capability: str, driver: str = "580.82.07") -> Accelerator:
    device = Device(name="a card", compute_capability=capability, memory=16 << 30)
    return Accelerator(kind="cuda", driver=driver, devices=(device,))


def test_all_of_them_are_listed(tmp_path: Path) -> None:
    listed = list_matrices(environ={}, cwd=tmp_path)
    assert [one.name for one in listed] == NAMES
    assert all(one.summary and one.fault is None for one in listed)


def test_every_entry_says_why(matrix: Matrix) -> None:
    parts: list[Matrix | Variant] = [matrix, *matrix.variants.values()]
    unexplained = [
        entry.path
        for part in parts
        for entries in (part.packages, part.constraints, part.absent)
        for entry in entries
        if not entry.why
    ]
    assert unexplained == []


def test_every_variant_says_what_it_is_and_whom_it_is_for(matrix: Matrix) -> None:
    assert all(variant.summary and variant.system.accelerator for variant in matrix.variants.values())


def test_each_can_be_planned_with_and_without_a_card(matrix: Matrix) -> None:
    assert select_variant(matrix, Accelerator()).variant == "cpu"
    assert select_variant(matrix, card("7.5")).variant in {"cuda", "cu121"}


def test_each_is_proven_by_imports_and_trains(matrix: Matrix) -> None:
    assert "transformers:AutoModelForCausalLM" in matrix.verify.imports
    assert matrix.verify.imports[0] == "torch"
    assert "nf4" in matrix.verify.capabilities
    assert matrix.train.runner in {"axolotl", "trl"}


def test_the_recipe_is_kept_to_the_letter(tmp_path: Path) -> None:
    matrix = shipped("qlora-2024", tmp_path)
    for variant in matrix.variants:
        chosen = select_variant(matrix, Accelerator(), variant)
        asked = {entry.name: str(entry.specifier) for entry in chosen.packages if entry.url is None}
        assert asked == RECIPE


def test_the_recipes_build_of_torch_comes_from_its_own_index_only(tmp_path: Path) -> None:
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
        (card("9.0"), "cu121"),
        (card("7.5", "525.60.13"), "cu118"),
        (card("3.7", "470.82"), None),
        (card("12.0"), None),
    ],
)
def test_the_cards_of_the_2024_stack(accelerator: Accelerator, variant: str | None, tmp_path: Path) -> None:
    matrix = shipped("qlora-2024", tmp_path)
    if variant is None:
        with pytest.raises(Refused, match="no variant of `qlora-2024` fits"):
            select_variant(matrix, accelerator)
    else:
        assert select_variant(matrix, accelerator).variant == variant


def test_the_old_axolotl_is_rebuilt_with_requirements_of_our_own(tmp_path: Path) -> None:
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
    assert matrix.train.mends == ("load-in-4bit-twice",)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("variant", ["cuda", "cpu"])
def test_the_image_satisfies_the_ranges_of_2026(image: str, variant: str, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["qlora-2026", "qlora-2026-axolotl"])
def test_the_variant_without_a_card_prefers_a_cpu_build_and_takes_any(name: str, tmp_path: Path) -> None:
    matrix = shipped(name, tmp_path)
    assert list(matrix.variants) == ["cuda", "cpu"]
    torch = next(entry for entry in select_variant(matrix, Accelerator()).packages if entry.name == "torch")
    assert (torch.prefer_local, torch.index) == ("cpu", None)
    with_card = next(entry for entry in matrix.packages if entry.name == "torch")
    assert torch.specifier == with_card.specifier
