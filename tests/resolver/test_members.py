"""What kept members of a stack need: moved where a version fits, or named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.resolver.members import resolve_members
from colablock.resolver.model import Request, Resolution
from tests.support.dict_source import PYTHON_312, DictSource, entries, installed, pins_of

TORCH = ["cuda-toolkit[cublas]==13.0.2", "nvidia-cudnn-cu13==9.10"]
# torch of CUDA 13 was installed over the CUDA libraries of another torch.
IMAGE = {
    "torch 2.11.0": TORCH,
    "cuda-toolkit 12.8.1": ["nvidia-cublas==12.8; extra == 'cublas'"],
    "nvidia-cublas 12.8": [],
    "bystander 1": ["old-thing>=2"],
    "old-thing 1": [],
}
INDEX = {
    "torch 2.11.0": TORCH,
    "cuda-toolkit 13.0.2": ["nvidia-cublas==13.0; extra == 'cublas'"],
    "nvidia-cublas 13.0": [],
    "nvidia-cudnn-cu13 9.10": [],
    "old-thing 2": [],
}


def solve(
    index: Mapping[str, Sequence[str]],
    image: Mapping[str, Sequence[str]],
    *roots: str,
    protected: tuple[str, ...] = (),
) -> Resolution:
    request = Request(
        environment=PYTHON_312,
        roots=entries(*roots),
        installed=installed(image),
        protected=frozenset(map(canonicalize_name, protected)),
    )
    return resolve_members(request, DictSource(index))


def test_what_a_kept_member_needs_moves_too() -> None:
    found = solve(INDEX, IMAGE, "torch>=2")
    assert pins_of(found) == {
        "torch": "2.11.0",
        "cuda-toolkit": "13.0.2",
        "nvidia-cublas": "13.0",
        "nvidia-cudnn-cu13": "9.10",
    }
    assert found.left == ()
    assert (canonicalize_name("torch"), TORCH[0]) in found.request.must_hold


def test_what_cannot_move_is_named() -> None:
    found = solve(INDEX, IMAGE, "torch>=2", protected=("cuda-toolkit", "torch"))
    said = (
        "torch 2.11.0 needs cuda-toolkit[cublas]==13.0.2, cuda-toolkit 12.8.1 is installed, "
        "and no version can replace it"
    )
    assert found.left == (said,)
    assert said in found.remarks()
    assert pins_of(found) == {"torch": "2.11.0", "nvidia-cudnn-cu13": "9.10"}


def test_a_requirement_of_two_that_can_be_met_is_met() -> None:
    image = {"peft 1": ["old<1", "safetensors>=0.8"], "old 1": [], "safetensors 0.7": []}
    found = solve({"safetensors 0.8": []}, image, "peft", protected=("peft",))
    assert pins_of(found) == {"peft": "1", "safetensors": "0.8"}
    assert len(found.left) == 1


@pytest.mark.parametrize("roots", [("other",), ("bystander",)])
def test_only_members_of_the_stack_count(roots: tuple[str, ...]) -> None:
    found = solve({**INDEX, "other 1": []}, IMAGE, *roots)
    assert ("old-thing" in pins_of(found)) is (roots == ("bystander",))
    assert "cuda-toolkit" not in pins_of(found)
