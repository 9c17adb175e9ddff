from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from colablock.errors import InvalidInput
from colablock.training.preflight.model_config import from_config
from tests.support.training import LLAMA_1B, LLAMA_8B, LLAMA_70B

# The sizes in each model's published `config.json`, and the parameters in its published files.
PUBLISHED: Mapping[str, tuple[dict[str, Any], int]] = {
    "Llama-3.2-1B": (dict(LLAMA_1B), 1_235_814_400),
    "Llama-3.1-8B": (dict(LLAMA_8B), 8_030_261_248),
    "Llama-3.3-70B": (dict(LLAMA_70B), 70_553_706_496),
    "Mistral-7B-v0.1": (
        {
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        7_241_732_096,
    ),
    "Qwen2.5-0.5B": (
        {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
        494_032_768,
    ),
    "Qwen2.5-7B": (
        {
            "model_type": "qwen2",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
            "vocab_size": 152064,
        },
        7_615_616_512,
    ),
    "Qwen3-8B": (
        {
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 128,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
            "vocab_size": 151936,
        },
        8_190_735_360,
    ),
    "gemma-7b": (
        {
            "model_type": "gemma",
            "head_dim": 256,
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 16,
            "vocab_size": 256000,
        },
        8_537_680_896,
    ),
    "gemma-2-9b": (
        {
            "model_type": "gemma2",
            "head_dim": 256,
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_attention_heads": 16,
            "num_hidden_layers": 42,
            "num_key_value_heads": 8,
            "vocab_size": 256000,
        },
        9_241_705_984,
    ),
    "gemma-3-1b": (
        {
            "model_type": "gemma3_text",
            "head_dim": 256,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_attention_heads": 4,
            "num_hidden_layers": 26,
            "num_key_value_heads": 1,
            "vocab_size": 262144,
        },
        999_885_952,
    ),
    "Phi-3-mini-4k": (
        {
            "model_type": "phi3",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "tie_word_embeddings": False,
            "vocab_size": 32064,
        },
        3_821_079_552,
    ),
}


# Families with other layers than Llama's.  Biases of their MLPs and norms are not counted.
OTHERS: Mapping[str, tuple[dict[str, Any], int]] = {
    "phi-2": (
        {
            "model_type": "phi",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "tie_word_embeddings": False,
            "vocab_size": 51200,
        },
        2_779_683_840,
    ),
    "pythia-1.4b": (
        {
            "model_type": "gpt_neox",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "tie_word_embeddings": False,
            "vocab_size": 50304,
        },
        1_414_647_808,
    ),
    "starcoder2-3b": (
        {
            "model_type": "starcoder2",
            "hidden_size": 3072,
            "intermediate_size": 12288,
            "num_attention_heads": 24,
            "num_hidden_layers": 30,
            "num_key_value_heads": 2,
            "vocab_size": 49152,
        },
        3_030_371_328,
    ),
    "falcon-7b": (
        {
            "model_type": "falcon",
            "hidden_size": 4544,
            "multi_query": True,
            "new_decoder_architecture": False,
            "num_attention_heads": 71,
            "num_hidden_layers": 32,
            "vocab_size": 65024,
        },
        6_921_720_704,
    ),
    "c4ai-command-r-v01": (
        {
            "model_type": "cohere",
            "hidden_size": 8192,
            "intermediate_size": 22528,
            "num_attention_heads": 64,
            "num_hidden_layers": 40,
            "num_key_value_heads": 64,
            "vocab_size": 256000,
        },
        34_980_831_232,
    ),
    "Minitron-4B-Base": (
        {
            "model_type": "nemotron",
            "head_dim": 128,
            "hidden_size": 3072,
            "intermediate_size": 9216,
            "num_attention_heads": 24,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
            "vocab_size": 256000,
        },
        4_190_723_072,
    ),
    "LFM2-1.2B": (
        {
            "model_type": "lfm2",
            "block_auto_adjust_ff_dim": True,
            "block_multiple_of": 256,
            "hidden_size": 2048,
            "intermediate_size": 12288,
            "layer_types": ["conv"] * 10 + ["full_attention"] * 6,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "vocab_size": 65536,
        },
        1_170_340_608,
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_layers_of_other_families_are_counted(name: str) -> None:
    config, parameters = OTHERS[name]
    shape = from_config(config)
    assert shape.parameters == pytest.approx(parameters, rel=0.001)
    assert shape.is_known
    assert len({one.name for one in shape.linears}) == len(shape.linears)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_match_the_published_files(name: str) -> None:
    config, parameters = PUBLISHED[name]
    shape = from_config(config)
    assert shape.parameters == parameters
    assert shape.is_known
    assert shape.unsupported is None


def test_linear_layers_have_the_names_of_adapter_targets() -> None:
    llama, phi = from_config(LLAMA_8B), from_config(PUBLISHED["Phi-3-mini-4k"][0])
    assert [(one.name, one.inputs, one.outputs) for one in llama.linears] == [
        ("q_proj", 4096, 4096),
        ("k_proj", 4096, 1024),
        ("v_proj", 4096, 1024),
        ("o_proj", 4096, 4096),
        ("gate_proj", 4096, 14336),
        ("up_proj", 4096, 14336),
        ("down_proj", 14336, 4096),
    ]
    assert [one.name for one in phi.linears] == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert llama.embedding_parameters == 2 * 128256 * 4096
    assert from_config(LLAMA_1B).embedding_parameters == 128256 * 2048


def test_missing_keys_have_the_defaults_of_the_model_type() -> None:
    gemma = {  # as published for gemma-3-4b: the text's own config holds what differs from the defaults
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "torch_dtype": "bfloat16",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
    }
    shape = from_config(gemma)
    assert (shape.model_type, shape.heads, shape.kv_heads, shape.head_dim) == ("gemma3", 8, 4, 256)
    assert (shape.vocabulary, shape.tied, shape.max_positions) == (262208, True, 131072)
    assert shape.rope_type == "linear"
    assert 4.2e9 < shape.parameters < 4.4e9  # 4.30e9 in its files
    assert from_config({**gemma, "vision_config": {"model_type": "siglip"}}).image_parameters == 0


def test_head_counts_and_widths_come_from_the_config() -> None:
    sizes = {key: value for key, value in LLAMA_1B.items() if key not in ("head_dim", "num_key_value_heads")}
    shape = from_config({**sizes, "num_key_value_heads": None})
    assert (shape.kv_heads, shape.head_dim) == (32, 64)
    assert from_config({**LLAMA_1B, "head_dim": None}).head_dim == 64
    wide = from_config({**LLAMA_1B, "head_dim": 128})
    assert (wide.query, wide.key) == (4096, 1024)


@pytest.mark.parametrize(
    ("given", "rope_type"),
    [
        ({"rope_scaling": None}, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "llama3"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16]}}, None),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn"),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}, None),
        (
            {
                "rope_scaling": None,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {"rope_type": "linear"},
                },
            },
            "linear",
        ),
    ],
)
def test_the_type_of_rotary_embeddings_is_read_from_old_and_new_keys(
    given: Mapping[str, Any], rope_type: str | None
) -> None:
    assert from_config({**LLAMA_1B, **given}).rope_type == rope_type


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "quantized", "awq"),
        ({"quantization_config": {"bits": 4}}, "quantized", "unknown"),
        ({}, "quantized", None),
        ({"num_experts": 128}, "unsupported", "a mixture of 128 experts"),
        ({"num_local_experts": 1}, "unsupported", None),
        ({"kv_lora_rank": 512}, "unsupported", "compressed attention"),
        ({"is_encoder_decoder": True}, "unsupported", "an encoder"),
        ({"attention_bias": True}, "has_biases", True),
        ({"model_type": "gemma2"}, "has_softcapping", True),
        ({"model_type": "gpt_oss"}, "has_sinks", True),
        ({"model_type": "llama"}, "has_sinks", False),
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, "has_softcapping", False),
        ({"model_type": "newcomer"}, "is_known", False),
        ({"tie_word_embeddings": None}, "tied", False),
        ({"tie_word_embeddings": None, "model_type": "gemma"}, "tied", True),
        ({"max_position_embeddings": "many"}, "max_positions", None),
        ({"max_position_embeddings": 4096.0}, "max_positions", 4096),
        ({"max_position_embeddings": float("nan")}, "max_positions", None),
        ({"something": {"else": [1]}}, "model_type", "llama"),
    ],
)
def test_other_keys_set_their_fields(given: Mapping[str, Any], field: str, value: object) -> None:
    assert getattr(from_config({**LLAMA_1B, **given}), field) == value


def test_all_missing_keys_are_reported_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        from_config({"hidden_size": 768.5, "num_attention_heads": True, "vocab_size": 100})
    message = caught.value.message
    for fault in (
        "`model_type` is missing",
        "`hidden_size` is 768.5",
        "`num_hidden_layers` is missing",
        "`num_attention_heads` is True",
        "`intermediate_size` is missing",
    ):
        assert fault in message
    assert caught.value.hint is not None
