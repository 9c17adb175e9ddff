"""What ranks that share a model do in the target."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from colablock.training.scripts import shards


class Module:
    """A module of torch, as far as its names go."""

    def __init__(self, **children: Any) -> None:
        self.children = children

    def named_modules(self, prefix: str = "") -> Any:
        yield prefix, self
        for name, child in self.children.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)


def test_wrappers_of_recomputed_layers_are_left_out_of_names() -> None:
    layer = Module(_checkpoint_wrapped_module=Module(q_proj=Module()))
    model = Module(layers=Module(**{"0": layer, "1": Module(q_proj=Module())}))
    plain = ["", "layers", "layers.0", "layers.0.q_proj", "layers.1", "layers.1.q_proj"]
    before = [name for name, _ in model.named_modules()]
    with shards.plain_names(model):
        assert [name for name, _ in model.named_modules()] == plain
    assert [name for name, _ in model.named_modules()] == before
    assert before != plain


def test_only_blocks_that_the_model_has_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "restored later")
    monkeypatch.delenv("FSDP_TRANSFORMER_CLS_TO_WRAP")
    model = SimpleNamespace(modules=lambda: [Module(), 1], _no_split_modules={"Module", "ImageBlock"})
    shards.name_layers(model)
    assert os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "Module"
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "Chosen")
    shards.name_layers(model)
    assert os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "Chosen"


def test_a_part_of_a_checkpoint_that_is_elsewhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {name: SimpleNamespace(relative_path=name) for name in ("__0_0.distcp", "__1_0.distcp")}
    saved = SimpleNamespace(state_dict_metadata={"a": 1}, storage_data=parts)
    reader = SimpleNamespace(FileSystemReader=lambda _: SimpleNamespace(read_metadata=lambda: saved))
    for name in ("torch", "torch.distributed", "torch.distributed.checkpoint"):
        monkeypatch.setitem(sys.modules, name, reader)
    folder = tmp_path / "checkpoint-4"
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        (folder / part).mkdir(parents=True)
        (folder / part / "__0_0.distcp").touch()
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(requires_grad=True)])
    with pytest.raises(
        SystemExit, match=r"has no `__1_0\.distcp`, which another host has saved: .* job of Slurm"
    ):
        shards.check_shards(folder, model, None)


@pytest.mark.parametrize(("states", "is_whole"), [([{}, {}], True), ([], True), ([{"step": 1}, {}], False)])
def test_an_optimizer_may_keep_no_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: list[Any], *, is_whole: bool
) -> None:
    """As SGD does without momentum."""
    tensors = {"pytorch_model_fsdp_0": 2, "optimizer_0": 1}

    def reader(folder: str) -> Any:
        names = dict.fromkeys(range(tensors[Path(folder).name]))
        saved = SimpleNamespace(state_dict_metadata=names, storage_data={})
        return SimpleNamespace(read_metadata=lambda: saved)

    for name in ("torch", "torch.distributed", "torch.distributed.checkpoint"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(FileSystemReader=reader))
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(requires_grad=True)] * 2)
    optimizer = SimpleNamespace(state=dict(enumerate(states)))
    if is_whole:
        shards.check_shards(tmp_path, model, optimizer)
        return
    with pytest.raises(SystemExit, match="optimizer_0 has 1 of 2 trained tensors"):
        shards.check_shards(tmp_path, model, optimizer)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, {}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, {}),
    ],
)
def test_the_allocator_leaves_no_gaps_unless_it_is_configured(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    environ = dict(given)
    shards.avoid_gaps(environ)
    assert environ == {**given, **expected}
