"""Workarounds: named fixes for known conflicts between versions.

``shim.py`` and ``prepare.py`` run them in the target.  They need the standard library and the target.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

import functools
from collections.abc import Callable
from typing import Any


def load_in_4bit_twice() -> None:
    """Drop `load_in_4bit` if there is a `quantization_config`.

    axolotl 0.4.0 passes both, and transformers rejects that since 4.38.
    """
    from transformers.modeling_utils import PreTrainedModel

    plain = PreTrainedModel.from_pretrained.__func__

    @functools.wraps(plain)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("quantization_config") is not None:
            kwargs.pop("load_in_4bit", None)
            kwargs.pop("load_in_8bit", None)
        return plain(cls, *args, **kwargs)

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)


def gqa_before_ampere() -> None:
    """Have transformers repeat keys and values itself on cards without flash kernels.

    With `enable_gqa`, torch uses its unfused kernel there, which stores the scores of all heads:
    34 GiB instead of 4 GiB for 8,192 tokens of a 1B model.
    """
    try:
        from transformers.integrations import sdpa_attention
    except ImportError:
        return  # an older version, which always repeats them
    if hasattr(sdpa_attention, "use_gqa_in_sdpa"):
        sdpa_attention.use_gqa_in_sdpa = lambda *_, **__: False


def datasets_local_files() -> None:
    """Have datasets before 2.15 read its own files beside fsspec 2023.10 or later.

    It compares the protocol of a file system with ``file``.  A local one has a tuple of names since, and
    datasets refuses it as a remote one ("Loading a dataset cached in a LocalFileSystem is not supported").
    """
    try:
        from datasets.filesystems import is_remote_filesystem
        from fsspec.implementations.local import LocalFileSystem
    except ImportError:
        return  # another release of datasets
    if is_remote_filesystem(LocalFileSystem()):
        LocalFileSystem.protocol = "file"


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


WORKAROUNDS: dict[str, Callable[[], None]] = {
    "datasets-local-files": datasets_local_files,
    "fsdp-on-cpu": fsdp_on_cpu,
    "gqa-before-ampere": gqa_before_ampere,
    "load-in-4bit-twice": load_in_4bit_twice,
}
