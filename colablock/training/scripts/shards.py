"""Ranks that share one model by FSDP 2: how it is loaded by part, gathered, and saved.

``shim.py`` and ``run_trl.py`` run this file in the target.  It needs the standard library and the target.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRAPPER = "_checkpoint_wrapped_module."  # in the name of a parameter whose layer is recomputed
_LAYERS = "FSDP_TRANSFORMER_CLS_TO_WRAP"  # read by accelerate, like the other variables of its launcher


def name_layers(model: Any) -> None:
    """Tell accelerate the classes of *model* that are gathered as a whole, unless the config names others.

    A model may name classes that it has no module of, such as those of an image tower, and accelerate refuses
    these.
    """
    known = {type(module).__name__ for module in model.modules()}
    layers = [name for name in getattr(model, "_no_split_modules", None) or () if name in known]
    if layers:
        os.environ.setdefault(_LAYERS, ",".join(layers))


@contextmanager
def quantized_by_part(torch: Any) -> Iterator[None]:
    """Quantise weights on the card, and keep in memory only the part of each that this rank will have.

    bitsandbytes would quantise them on the CPU, and each rank would hold all of them.  FSDP gives rank *i* of
    *n* the *i*-th of *n* equal parts of the rows of a tensor.  Memory that is not written to is not used.
    """
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize

    convert = Bnb4bitQuantize.convert
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    card = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else None

    @functools.wraps(convert)
    def convert_here(self: Any, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        if card is not None:
            input_dict = {name: on_card(value, card) for name, value in input_dict.items()}
        found: dict[str, Any] = convert(self, input_dict, *args, **kwargs)
        for parameter in found.values():
            parameter.data = own_part(torch, parameter.data, rank, world)
        return found

    Bnb4bitQuantize.convert = convert_here
    try:
        yield
    finally:
        Bnb4bitQuantize.convert = convert


def on_card(value: Any, card: Any) -> Any:
    """Return the tensor *value*, or each of a list, on *card*."""
    return [one.to(card) for one in value] if isinstance(value, list) else value.to(card)


def own_part(torch: Any, whole: Any, rank: int, world: int) -> Any:
    """Return a tensor in memory with the shape of *whole* and the values of the rows of *rank*."""
    rows = -(-whole.shape[0] // world)
    part = torch.empty(whole.shape, dtype=whole.dtype)
    own = slice(rank * rows, (rank + 1) * rows)
    part[own].copy_(whole[own])
    return part


def keep_precision(accelerator: Any, torch: Any) -> None:
    """Leave what the sharded model returns in its own type, and add up gradients in float32.

    accelerate has FSDP round both to 16 bits, and so the loss: one of 12.184 was 12.156.
    """
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)  # there is none with deepspeed
    policy: Any = getattr(plugin, "mixed_precision_policy", None)
    if policy is not None:
        kept = dataclasses.replace(policy, output_dtype=None, reduce_dtype=torch.float32)
        plugin.mixed_precision_policy = kept
        add_up_what_was_used()


def add_up_what_was_used() -> None:
    """Have FSDP pass over the weights that a batch has not gathered, when it adds up gradients of batches.

    trl reads the head without its module, and torch (2.11 to 2.13) expects that every weight was gathered.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    add_up = FSDPParam.to_accumulated_grad_if_needed

    @functools.wraps(add_up)
    def add_up_used(self: Any) -> None:
        try:
            add_up(self)
        except AttributeError as error:  # asked for beforehand, another name would pass over every weight
            if "_unsharded_param" not in str(error):
                raise

    FSDPParam.to_accumulated_grad_if_needed = add_up_used


def avoid_gaps(environ: MutableMapping[str, str]) -> None:
    """Have torch's allocator leave no gaps between blocks, unless the user has configured it.

    A model that has been on the card as a whole, while it was sharded, leaves many: of 11 GiB, 2 lay idle,
    and an 8B model of axolotl did not train where it does now.  It is called before torch is imported.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & environ.keys():
        environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def copy_bits() -> None:
    """Have torch copy lists of 16-bit numbers on cards without a change (pytorch#159333).

    FSDP gathers weights so.  Each bf16 that is no number becomes the same one, and packed 4-bit weights have
    the form of bf16: in about one of a thousand, other weights came out (bitsandbytes#1945).
    """
    import torch

    copy = torch._foreach_copy_

    @functools.wraps(copy)
    def copy_lists(to: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        both = [*to, *given]
        is_plain = not any(hasattr(one, "device_mesh") for one in both)
        if is_plain and {one.dtype for one in both} in ({torch.bfloat16}, {torch.float16}):
            to, given = ([one.view(torch.int16) for one in ones] for ones in (to, given))
        return copy(to, given, *args, **kwargs)

    torch._foreach_copy_ = copy_lists


def trained_parameters(model: Any) -> dict[str, Any]:
    """Return the whole of each trained parameter in memory, by its name.  Every rank has to call this."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = parameter.detach()
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            found[name.replace(_WRAPPER, "")] = value.cpu()
    return found


@contextmanager
def plain_names(model: Any) -> Iterator[None]:
    """Have *model* name its modules without the wrappers of layers that are recomputed.

    peft finds the weights of adapters by these names, and would find none in such layers: it would save an
    empty adapter, and load nothing, without a word.
    """
    name_modules = model.named_modules

    def named(*args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        for name, module in name_modules(*args, **kwargs):
            if not f"{name}.".endswith(_WRAPPER):
                yield f"{name}.".replace(_WRAPPER, "").removesuffix("."), module

    model.named_modules = named
    try:
        yield
    finally:
        del model.named_modules


def keep_adapters() -> None:
    """Have the trainer save and load the adapter of layers that are recomputed; see `plain_names`."""
    from transformers import trainer

    for name in ("save_fsdp_model", "load_fsdp_model"):
        setattr(trainer, name, _with_plain_names(getattr(trainer, name)))


def _with_plain_names(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def named(plugin: Any, accelerator: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        with plain_names(model):
            return function(plugin, accelerator, model, *args, **kwargs)

    return named


def save_adapter(model: Any, folder: Path, *, writes: bool) -> None:
    """Save the whole adapter of the sharded *model* in *folder*.  Every rank calls this, and one *writes*."""
    state = trained_parameters(model)
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        with plain_names(model):
            model.save_pretrained(str(folder), state_dict=state)


def check_shards(folder: Path, model: Any, optimizer: Any) -> None:
    """Exit unless the checkpoint *folder* has the trained weights of *model*, and the files of every rank.

    The hosts of a run may have folders of their own, and a checkpoint is whole only with all of its parts.
    It has states of the *optimizer*, unless that keeps none, as SGD.
    """
    from torch.distributed.checkpoint import FileSystemReader

    if not (folder / "pytorch_model_fsdp_0").is_dir():
        return  # axolotl can save it as a whole
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    states = trained if optimizer is None or any(map(bool, optimizer.state.values())) else 0
    for part, least in (("pytorch_model_fsdp_0", trained), ("optimizer_0", states)):
        saved = FileSystemReader(str(folder / part)).read_metadata()
        if (found := len(saved.state_dict_metadata)) < least:
            raise SystemExit(f"{folder.name}/{part} has {found} of {trained} trained tensors")
        for name in sorted({one.relative_path for one in (saved.storage_data or {}).values()}):
            if not (folder / part / name).is_file():
                raise SystemExit(
                    f"{folder.name}/{part} has no `{name}`, which another host has saved: "
                    "hosts share a model only in a job of Slurm, with an `--output-dir` that all of them see"
                )
