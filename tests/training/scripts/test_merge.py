"""Match the tensors of adapter and base, and read and write the files of a merge."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from colablock.training.scripts import merge as script
from colablock.training.scripts.job_answer import JobRefused
from colablock.training.scripts.merge import StoredTensor

# Which tensor goes where

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def test_the_tensors_of_an_adapter_are_sorted() -> None:
    found = script.sort_adapter(
        {},
        [
            f"{Q}.lora_A.weight",
            f"{Q}.lora_B.default.weight",
            f"{Q}.base_layer.bias",
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "base_model.model.model.embed_tokens.lora_embedding_B",
            "base_model.model.lm_head.modules_to_save.default.weight",
            "base_model.model.model.norm.modules_to_save.weight",
            "base_model.model.score.weight",
        ],
    )
    assert found.pairs == {
        "model.layers.0.self_attn.q_proj": {"A": f"{Q}.lora_A.weight", "B": f"{Q}.lora_B.default.weight"},
        "model.embed_tokens": {
            "A": "base_model.model.model.embed_tokens.lora_embedding_A",
            "B": "base_model.model.model.embed_tokens.lora_embedding_B",
        },
    }
    assert found.embeddings == {"model.embed_tokens"}
    assert sorted(found.full) == [
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.norm.weight",
        "score.weight",
    ]
    assert found.is_transposed("model.embed_tokens")
    assert not found.is_transposed("model.layers.0.self_attn.q_proj")


REFUSED: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "another kind": ({"peft_type": "IA3"}, [], "cannot merge an adapter of type IA3"),
    "dora": ({"use_dora": True}, [], "cannot merge an adapter with `use_dora`"),
    "magnitudes": ({}, [f"{Q}.lora_magnitude_vector"], "lora_magnitude_vector`: its kind is not supported"),
    "a bias of its own": ({}, [f"{Q}.lora_B.bias"], "lora_B.bias`: its kind is not supported"),
    "half": ({}, [f"{Q}.lora_A.weight"], "only one of the two factors for `model.layers.0.self_attn.q_proj`"),
}


@pytest.mark.parametrize(("config", "keys", "said"), REFUSED.values(), ids=REFUSED)
def test_unsupported_adapters_are_refused(config: dict[str, Any], keys: list[str], said: str) -> None:
    with pytest.raises(JobRefused) as caught:
        script.sort_adapter(config, keys)
    assert said in str(caught.value)


SCALINGS: dict[str, tuple[dict[str, Any], str, int, float]] = {
    "plain": ({"lora_alpha": 32}, "a.q_proj", 16, 2.0),
    "rank-stabilised": ({"lora_alpha": 32, "use_rslora": True}, "a.q_proj", 16, 8.0),
    "by a pattern": ({"lora_alpha": 32, "alpha_pattern": {"q_proj": 8}}, "a.q_proj", 4, 2.0),
    "by a whole name": ({"lora_alpha": 32, "alpha_pattern": {"a.q_proj": 8}}, "a.q_proj", 4, 2.0),
    "by another's pattern": ({"lora_alpha": 32, "alpha_pattern": {"proj": 8}}, "a.q_proj", 4, 8.0),
}


@pytest.mark.parametrize(("config", "module", "rank", "factor"), SCALINGS.values(), ids=SCALINGS)
def test_the_scaling_is_that_of_peft(config: dict[str, Any], module: str, rank: int, factor: float) -> None:
    assert math.isclose(script.AdapterTensors(config).scaling(module, rank), factor)


NAMES = dict.fromkeys(["model.layers.0.q.weight", "model.layers.10.q.weight", "model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("model.layers.0.q.weight", "model.layers.0.q.weight"),
        ("layers.0.q.weight", "model.layers.0.q.weight"),
        ("outer.model.layers.10.q.weight", "model.layers.10.q.weight"),
        ("0.q.weight", "model.layers.0.q.weight"),
        ("q.weight", None),
        ("model.layers.1.q.weight", None),
    ],
)
def test_a_name_matches_one_tensor_or_none(wanted: str, found: str | None) -> None:
    assert script.find_tensor(wanted, NAMES) == found


def sorted_of(*modules: str, full: tuple[str, ...] = ()) -> script.AdapterTensors:
    keys = [f"base_model.model.{module}.lora_{side}.weight" for module in modules for side in "AB"]
    return script.sort_adapter({}, keys + [f"base_model.model.{name}" for name in full])


def test_tensors_of_the_adapter_without_a_match_are_reported() -> None:
    adapter = sorted_of("model.layers.0.q", full=("model.embed_tokens.weight", "lm_head.weight"))
    added, replaced = script.match_tensors(adapter, NAMES)
    assert added == {"model.layers.0.q.weight": "model.layers.0.q"}
    assert set(replaced) == {"model.embed_tokens.weight", "lm_head.weight"}
    with pytest.raises(JobRefused) as caught:
        script.match_tensors(sorted_of("model.layers.7.q", "model.layers.8.q", full=("score.weight",)), NAMES)
    assert str(caught.value) == (
        "the base has no tensor for `base_model.model.model.layers.7.q.lora_A.weight`, "
        "`base_model.model.model.layers.7.q.lora_B.weight`, "
        "`base_model.model.model.layers.8.q.lora_A.weight` and 2 more of the adapter"
    )
    with pytest.raises(JobRefused, match="the adapter changes one of them"):
        script.match_tensors(sorted_of("model.embed_tokens"), NAMES)


# Files


def test_a_safetensors_header_round_trips(tmp_path: Path) -> None:
    tensors = {
        "b": StoredTensor("F32", (2, 3), 0, 24),
        "a": StoredTensor("BF16", (4,), 24, 32),
        "c": StoredTensor("I8", (), 32, 33),
    }
    out = BytesIO()
    script.write_header(out, tensors, {"made": "here"})
    begin = len(out.getvalue())
    assert begin % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(out.getvalue() + bytes(33))
    found, metadata = script.read_header(path)
    assert list(found) == ["b", "a", "c"]
    assert found["a"] == StoredTensor("BF16", (4,), begin + 24, begin + 32)
    assert metadata == {"format": "pt", "made": "here"}
    path.write_bytes(out.getvalue() + bytes(32))
    with pytest.raises(JobRefused, match="is truncated"):
        script.read_header(path)
    for data in (b"", b"12345678{}", bytes(20), b"\x02" + bytes(7) + b"[]"):
        path.write_bytes(data)
        with pytest.raises(JobRefused, match="cannot be read as safetensors"):
            script.read_header(path)


def test_the_shards_of_a_base_come_from_its_index(tmp_path: Path) -> None:
    with pytest.raises(JobRefused, match=r"it has no `model.safetensors`"):
        script.find_shards(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert script.find_shards(tmp_path) == ["model.safetensors"]
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "2.st", "b": "1.st"}}')
    with pytest.raises(JobRefused, match=r"has no `1.st`, which its index lists"):
        script.find_shards(tmp_path)
    for name in ("1.st", "2.st"):
        (tmp_path / name).write_bytes(b"")
    assert script.find_shards(tmp_path) == ["1.st", "2.st"]


def test_other_files_of_the_base_and_the_adapters_tokenizer_are_copied(tmp_path: Path) -> None:
    base, adapter, into = (tmp_path / name for name in ("base", "adapter", "into"))
    for folder in (base, adapter, into):
        folder.mkdir()
    for name in ("config.json", "tokenizer.json", "generation_config.json", "modeling_own.py", "README.md"):
        (base / name).write_text("base")
    for name in ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", ".gitattributes"):
        (base / name).write_text("base")
    for name in ("tokenizer.json", "chat_template.jinja", "adapter_config.json", "trainer_state.json"):
        (adapter / name).write_text("adapter")
    script.copy_other_files(base, adapter, into)
    assert {path.name: path.read_text() for path in into.iterdir()} == {
        "tokenizer.json": "adapter",
        "chat_template.jinja": "adapter",
        "generation_config.json": "base",
        "modeling_own.py": "base",
    }
