"""Read the sizes of a model from its ``config.json``, for preflight and the memory estimate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from colablock.errors import InvalidInput

__all__ = ["OUTER_LAYERS", "Linear", "ModelShape", "from_config"]

#: Names of embeddings and heads, which are beside the decoder layers.
OUTER_LAYERS = ("lm_head", "embed_tokens", "embed_out", "embed_in")


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear layer of every decoder layer, by its name in ``lora_target_modules``.

    *reads* is what its input is: the output of a norm ("attention" or "mlp", by the block that it
    belongs to), of the attention ("mixed") or of the activation in the MLP ("activated").
    """

    name: str
    inputs: int
    outputs: int
    reads: str

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """The values that a model type's config may omit.

    They are the defaults of transformers' configuration classes: a nested ``text_config`` is saved
    as the difference from them.  *norms* is the number of norms in a decoder layer, *has_biases*
    is about the query, key and value projections.
    """

    tied: bool = False
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocabulary: int | None = None
    max_positions: int | None = None
    norms: int = 2
    has_head_norms: bool = False
    has_biases: bool = False
    has_fused_projections: bool = False  # one projection for query, key and value, one for gate and up
    has_gate: bool = True  # the MLP has three matrices, and else two
    names: tuple[str, ...] = ()  # of the linear layers, if they are not Llama's
    width: int = 0  # of the MLP, in hidden sizes, if the config does not have it


_GEMMA = _Family(tied=True, head_dim=256, max_positions=8192)
_GEMMA_2 = _Family(
    tied=True, heads=8, kv_heads=4, head_dim=256, vocabulary=256_000, max_positions=8192, norms=4
)
_GEMMA_3 = _Family(
    tied=True,
    heads=8,
    kv_heads=4,
    head_dim=256,
    vocabulary=262_208,
    max_positions=131_072,
    norms=4,
    has_head_norms=True,
)
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_NEOX = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_FAMILIES: Mapping[str, _Family] = {  # transformers 5.24, models/*/configuration_*.py and modeling_*.py
    "llama": _Family(),
    "mistral": _Family(vocabulary=32_000, kv_heads=8),
    "qwen2": _Family(vocabulary=151_936, has_biases=True),
    "qwen3": _Family(vocabulary=151_936, head_dim=128, has_head_norms=True),
    "gemma": _GEMMA,
    "gemma2": _GEMMA_2,
    "gemma3": _GEMMA_3,
    "gemma3_text": _GEMMA_3,
    "phi3": _Family(has_fused_projections=True),
    # MLPs of two matrices.  In gpt_neox, falcon and phi, attention and MLP read the same norm.
    "arcee": _Family(has_gate=False, names=(*_ATTENTION, "up_proj", "down_proj")),
    "falcon": _Family(tied=True, norms=1, has_gate=False, names=_NEOX, width=4),
    "gpt_neox": _Family(norms=4, has_gate=False, has_biases=True, names=_NEOX),
    "nemotron": _Family(norms=4, has_gate=False, names=(*_ATTENTION, "up_proj", "down_proj")),
    "phi": _Family(
        norms=2,
        has_gate=False,
        has_biases=True,
        names=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    ),
    "starcoder2": _Family(
        tied=True, has_gate=False, has_biases=True, norms=4, names=(*_ATTENTION, "c_fc", "c_proj")
    ),
    # One norm before attention and MLP, which run side by side.
    "cohere": _Family(tied=True, norms=1, vocabulary=256_000),
    "lfm2": _Family(tied=True, vocabulary=65_536),
}

_FUSED = 4  # linear layers, if one projects query, key and value
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_OTHER_LAYERS = {  # a key that only such a model has → what differs in its layers
    "kv_lora_rank": "compressed attention",
    "linear_num_key_heads": "linear attention",
    "mamba_d_state": "state-space layers",
    "ssm_state_size": "state-space layers",
    "is_encoder_decoder": "an encoder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder with uniform layers: attention, a gated MLP, norms.

    *quantized* is ``quantization_config.quant_method``.  *rope_type* is None for plain rotary
    embeddings.  *unsupported* describes layers of another kind; if it is set, the counts here do
    not hold for the model.  *image_parameters* is the number of parameters of an image tower
    besides the decoder, and those that convolution blocks have more than attention.
    """

    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    max_positions: int | None = None
    rope_type: str | None = None
    quantized: str | None = None
    norms: int = 2
    has_head_norms: bool = False
    has_biases: bool = False
    has_fused_projections: bool = False
    has_gate: bool = True
    names: tuple[str, ...] = ()
    has_softcapping: bool = False  # attn_logit_softcapping, which sdpa does not support
    has_sinks: bool = False  # of attention, which neither sdpa nor flash attention 2 supports
    is_known: bool = True  # the layers of this model type have been verified
    unsupported: str | None = None
    image_parameters: int = 0

    @property
    def query(self) -> int:
        """The width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """The width of all key heads together.  Value heads have the same width."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one decoder layer."""
        h, q, k, f = self.hidden, self.query, self.key, self.intermediate
        if self.has_fused_projections:
            names: tuple[str, ...] = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
            up = [2 * f]
        else:
            names = self.names or (*_ATTENTION, "gate_proj", "up_proj", "down_proj")
            up = [f, f] if self.has_gate else [f]
        is_fused = len(names) == _FUSED
        projections = [q + 2 * k] if is_fused else [q, k, k]
        sizes = (
            *((h, size, "attention") for size in projections),
            (q, h, "mixed"),
            *((h, size, "mlp") for size in up),
            (f, h, "activated"),
        )
        return tuple(
            Linear(name=name, inputs=inputs, outputs=outputs, reads=reads)
            for name, (inputs, outputs, reads) in zip(names, sizes, strict=True)
        )

    @property
    def linear_parameters(self) -> int:
        """The number of parameters that are quantised: those of linear layers, without the head."""
        return self.layers * sum(one.parameters for one in self.linears) + self.image_parameters

    @property
    def embedding_parameters(self) -> int:
        """The number of parameters of embeddings and head.  A tied head has none of its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """The number of all parameters."""
        of_layer = self.norms * self.hidden
        if self.has_head_norms:
            of_layer += 2 * self.head_dim
        if self.has_biases:
            of_layer += self.query + 2 * self.key
        return self.linear_parameters + self.embedding_parameters + self.layers * of_layer + self.hidden


def from_config(config: Mapping[str, Any]) -> ModelShape:
    """Return the shape that a ``config.json`` describes; unknown keys are ignored.

    Raises InvalidInput with every key that is missing or not a number.
    """
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    model_type = str(config.get("model_type") or text.get("model_type") or "")
    kind = str(text.get("model_type") or model_type)
    family = _FAMILIES.get(kind) or _FAMILIES.get(model_type) or _Family()
    reading = _ModelConfigReader(text, faults=[] if model_type else ["`model_type` is missing"])
    hidden = reading.number("hidden_size")
    layers = reading.number("num_hidden_layers")
    heads = reading.number("num_attention_heads", family.heads)
    intermediate = reading.number("intermediate_size", family.width * hidden or None)
    vocabulary = reading.number("vocab_size", family.vocabulary)
    kv_heads = reading.number("num_key_value_heads", _other_kv_heads(kind, text) or family.kv_heads or heads)
    head_dim = reading.number("head_dim", family.head_dim or hidden // max(heads, 1))
    if kind == "lfm2" and text.get("block_auto_adjust_ff_dim", True):
        # `Lfm2MLP`: two thirds, rounded up to a multiple.
        multiple = _positive(text.get("block_multiple_of")) or 256
        intermediate = -(-(2 * intermediate // 3) // multiple) * multiple
    if reading.faults:
        faults = "; ".join(reading.faults)
        raise InvalidInput(
            f"the model's `config.json` does not have its sizes: {faults}",
            hint="colablock trains decoder models such as Llama: check that `--model` names one",
        )
    return ModelShape(
        model_type=model_type,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocabulary=vocabulary,
        tied=_tied(config, text, default=family.tied),
        max_positions=_positive(text.get("max_position_embeddings")) or family.max_positions,
        rope_type=_rope_type(text),
        quantized=_quantized(config, text),
        norms=family.norms,
        has_head_norms=family.has_head_norms,
        has_biases=family.has_biases or bool(text.get("attention_bias")),
        has_fused_projections=family.has_fused_projections,
        has_gate=family.has_gate,
        names=family.names,
        has_softcapping=text.get("attn_logit_softcapping", 50.0 if kind == "gemma2" else None) is not None,
        has_sinks=kind == "gpt_oss",
        is_known=kind in _FAMILIES or model_type in _FAMILIES,
        unsupported=_unsupported(text),
        image_parameters=_image_parameters(config.get("vision_config"))
        + _convolution_parameters(text, hidden, heads * head_dim, kv_heads * head_dim),
    )


class _ModelConfigReader:
    """Reads numbers from a config, and collects the faults."""

    def __init__(self, config: Mapping[str, Any], *, faults: list[str]) -> None:
        self.config = config
        self.faults = faults

    def number(self, key: str, default: int | None = None) -> int:
        given = self.config.get(key)
        if given is None and default is not None:
            return default
        found = _positive(given)
        if found is None:
            self.faults.append(f"`{key}` is missing" if given is None else f"`{key}` is {given!r}")
        return found or 0


def _positive(value: object) -> int | None:
    """Return *value* if it is a positive integer, else None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _other_kv_heads(kind: str, text: Mapping[str, Any]) -> int | None:
    """Return the number of key heads of falcon, which has other keys for it."""
    if kind != "falcon":
        return None
    if text.get("new_decoder_architecture"):
        return _positive(text.get("num_kv_heads"))
    return 1 if text.get("multi_query", True) else None


def _tied(config: Mapping[str, Any], text: Mapping[str, Any], *, default: bool) -> bool:
    for one in (text, config):
        if isinstance(one.get("tie_word_embeddings"), bool):
            return bool(one["tie_word_embeddings"])
    return default


def _rope_type(text: Mapping[str, Any]) -> str | None:
    """Return the type of the rotary embeddings; if layers differ, the first type that is not plain."""
    for key in ("rope_scaling", "rope_parameters"):
        for value in _tables(text.get(key)):
            found = value.get("rope_type") or value.get("type")
            if found is not None and found not in ("default", "mrope"):  # mrope: plain for text
                return str(found)
    return None


def _tables(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        yield from (one for one in value.values() if isinstance(one, Mapping))


def _quantized(*configs: Mapping[str, Any]) -> str | None:
    for config in configs:
        value = config.get("quantization_config")
        if isinstance(value, Mapping):
            return str(value.get("quant_method") or "unknown")
    return None


def _unsupported(text: Mapping[str, Any]) -> str | None:
    for key in _EXPERTS:
        count = _positive(text.get(key))
        if count is not None and count > 1:
            return f"a mixture of {count} experts"
    return next((words for key, words in _OTHER_LAYERS.items() if text.get(key)), None)


def _image_parameters(vision: object) -> int:
    """Return the approximate number of parameters of an image tower; 0 if there is none, or no sizes."""
    if not isinstance(vision, Mapping):
        return 0
    hidden, layers = _positive(vision.get("hidden_size")), _positive(vision.get("num_hidden_layers"))
    intermediate = _positive(vision.get("intermediate_size"))
    if hidden is None or layers is None or intermediate is None:
        return 0
    return layers * (4 * hidden * hidden + 2 * hidden * intermediate)


def _convolution_parameters(text: Mapping[str, Any], hidden: int, query: int, key: int) -> int:
    """Return what convolution blocks (lfm2) have more than attention: projections in threes, and back."""
    kinds = text.get("layer_types")
    blocks = kinds.count("conv") if isinstance(kinds, list) else 0
    return blocks * (4 * hidden * hidden - 2 * hidden * (query + key))
