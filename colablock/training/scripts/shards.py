"""A model that FSDP 2 spreads over the ranks: how it is loaded, and how its adapter is saved as a whole.

``shim.py`` and ``run_trl.py`` run this file in the target.  It needs the standard library and the target.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRAPPER = "_checkpoint_wrapped_module."  # in the name of a parameter whose layer is recomputed
_LAYERS = "FSDP_TRANSFORMER_CLS_TO_WRAP"  # read by accelerate, like the other variables of its launcher


def fsdp_on_cpu() -> None:
    """Have accelerate shard on a CPU: there it starts the ranks, and leaves FSDP out."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    make = AcceleratorState.__init__

    @functools.wraps(make)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type in (DistributedType.MULTI_CPU, DistributedType.NO):
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # noqa: SLF001

    AcceleratorState.__init__ = init


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


def trained_parameters(model: Any) -> dict[str, Any]:
    """Return the whole of each trained parameter in memory, by its name.  Every rank has to call this."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = parameter.detach()
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            found[name.replace(_WRAPPER, "")] = value.cpu()
    return found


def save_adapter(model: Any, folder: Path, *, writes: bool) -> None:
    """Save the whole adapter of the sharded *model* in *folder*.  Every rank calls this, and one *writes*."""
    state = trained_parameters(model)
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(str(folder), state_dict=state)


def files_of_shards(folder: Path) -> Iterator[Path]:
    """Yield the files that the parts of a checkpoint consist of, as their own lists name them."""
    from torch.distributed.checkpoint import FileSystemReader

    for listed in sorted(folder.glob("*/.metadata")):
        named = FileSystemReader(str(listed.parent)).read_metadata().storage_data or {}
        for name in sorted({one.relative_path for one in named.values()}):
            yield listed.parent / name


WORKAROUNDS: dict[str, Callable[[], None]] = {"fsdp-on-cpu": fsdp_on_cpu}
