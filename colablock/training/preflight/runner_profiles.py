"""How much memory the loss, the embeddings and the adapters take with each runner, by its version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from colablock._vendor.packaging.version import InvalidVersion, Version

__all__ = ["RUNNER_PROFILES", "RunnerProfile", "runner_profile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerProfile:
    """The memory behaviour of a runner from the version *since* on.

    *logits* is the number of copies of all logits in float32 at once.  *tile* is the size of a
    tile of logits, in tokens × entries of the vocabulary (0: all entries), and *share* the least share of
    the tokens in it.
    *embeddings_in_float32* are the precisions for which peft's ``prepare_model_for_kbit_training``
    casts embeddings and head to float32.  *head_in_float32* is true if the loss multiplies with a
    copy of the head in float32.  *half_adapters* is true if the adapters of a quantised model are
    cast to bfloat16 when the precision is bf16.  *fused_layers* is true if the runner replaces the
    layers of a model with a gated MLP by its own kernels, which compute most values again.
    *loads_whole* is true if each rank loads the whole model before it is sharded: on its card if it
    is quantised, else in the memory of the host.  *gathers_embeddings* is true if a sharded model has
    embeddings and head in one group, which is gathered as a whole.
    """

    since: str
    logits: float
    source: str
    tile: tuple[int, int] | None = None
    share: float = 0.0
    embeddings_in_float32: tuple[str, ...] = ()
    head_in_float32: bool = False
    half_adapters: bool = False
    fused_layers: bool = False
    loads_whole: bool = False
    gathers_embeddings: bool = False


# The log-softmax, its gradient and the gradient of the logits, in float32.  With 3, the estimates of two
# measured peaks are off by 0.1 %.
_FULL = 3.0
_SHIFTED = 3.5  # before 4.49, transformers also copies the logits without the last token, in 16 bits

RUNNER_PROFILES: Mapping[str, tuple[RunnerProfile, ...]] = {  # newest first
    "trl": (
        RunnerProfile(
            since="1.15",
            logits=0.5,
            tile=(4096, 32768),
            half_adapters=True,
            source="trl 1.15 and 1.16 kernels/chunked_logprob.py: tiles in 16 bits, in one buffer",
        ),
        RunnerProfile(
            since="1.7",
            logits=5.0,
            tile=(256, 0),
            head_in_float32=True,
            half_adapters=True,
            source="trl 1.7 to 1.14 trainer/sft_trainer.py, _chunk: logits, log-probabilities, their entropy",
        ),
        RunnerProfile(
            since="0.25",
            logits=_FULL,
            half_adapters=True,
            source="trl 0.29.1 trainer/sft_trainer.py; its own preparation does not cast embeddings",
        ),
        RunnerProfile(
            since="0.21",
            logits=_FULL,
            embeddings_in_float32=("fp16",),
            half_adapters=True,
            source="trl 0.21 trainer/sft_trainer.py: peft's preparation, then a cast back for bf16",
        ),
        RunnerProfile(
            since="0",
            logits=_SHIFTED,
            embeddings_in_float32=("fp16",),
            half_adapters=True,
            source="trl 0.10.1 trainer/sft_trainer.py",
        ),
    ),
    "axolotl": (
        RunnerProfile(
            since="0.8",
            logits=_FULL,
            loads_whole=True,
            gathers_embeddings=True,
            source="axolotl loaders/model.py: casts embeddings back to the type of the weights; "
            "each rank loads the model",
        ),
        RunnerProfile(
            since="0",
            logits=_SHIFTED,
            source="axolotl 0.4.0 utils/models.py",
        ),
    ),
    "unsloth": (
        RunnerProfile(
            since="0",
            logits=1.0,
            tile=(512, 0),
            share=1 / 8,
            fused_layers=True,
            source="unsloth_zoo 2026.10.9 fused_losses/chunked_logprob.py: logits and gradient in 16 bits; "
            "unsloth 2026.10.9 kernels/fast_lora.py: what its backward passes read",
        ),
    ),
}


def runner_profile(runner: str, version: str | None = None) -> RunnerProfile:
    """Return the profile of *runner* at *version*; without a valid version, the one with the most memory."""
    known = RUNNER_PROFILES[runner]
    try:
        release = Version(version) if version else None
    except InvalidVersion:
        release = None
    if release is None:
        return max(known, key=lambda profile: profile.logits if profile.tile is None else 0)
    return next(profile for profile in known if release >= Version(profile.since) or profile is known[-1])
