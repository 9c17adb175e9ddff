"""Merge an adapter into its base model, in the target.

`ask_target` passes the source of this file to ``python -c`` with two paths: of the job (JSON) to
read, and of the answer to write.  It needs the standard library, torch, safetensors and
huggingface_hub.  The hub's library finds the token in ``HF_TOKEN`` by itself.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from colablock.training.scripts.job_answer import JobRefused, answer_job

BLOCK = 1 << 24  # bytes of a tensor in memory at a time
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"
WEIGHT_FILES = frozenset({".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".safetensors"})
TOKENIZER = re.compile(
    r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\..*|merges\.txt|chat_template.*|.*\.model"
)
FETCHED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.py", "*.jinja", "*.tiktoken"]
BITS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16}
LORA_KEY = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.weight)?"
)
WRAPPER = re.compile(r"\.(?:base_layer|modules_to_save(?:\.(?!weight$|bias$)[^.]+)?)(?=\.)")


def main(asked: str, answered: str) -> None:
    """Do the job in the file *asked*, and write the answer to the file *answered*."""
    answer_job(asked, answered, lambda job: merge(**job))


# The safetensors format


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its type, its shape, and the range of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def row_size(self) -> int:
        """Bytes of one row."""
        return (self.end - self.begin) // max(self.shape[0], 1) if self.shape else self.end - self.begin


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the tensors of a safetensors file in the order of their bytes, and its metadata."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length) if length < path.stat().st_size else b"")
        metadata = header.pop("__metadata__", {})
        tensors = {
            name: StoredTensor(
                row["dtype"], tuple(row["shape"]), *(8 + length + at for at in row["data_offsets"])
            )
            for name, row in header.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise JobRefused(f"`{path}` cannot be read as safetensors: {error}") from error
    if any(one.end > path.stat().st_size for one in tensors.values()):
        raise JobRefused(f"`{path}` is truncated")
    return dict(sorted(tensors.items(), key=lambda item: item[1].begin)), metadata


def write_header(file: IO[bytes], tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> None:
    """Write the header for *tensors*.  Their bytes have to follow in the same order."""
    rows: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for name, one in tensors.items():
        size = BITS.get(one.dtype, 0) * math.prod(one.shape) // 8 or one.end - one.begin
        rows[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(rows, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(struct.pack("<Q", len(header)) + header)


# The tensors of the adapter and those of the base


@dataclass
class AdapterTensors:
    """The tensors of an adapter, by the names of the base: pairs of low-rank factors, and full tensors."""

    config: Mapping[str, Any]
    pairs: dict[str, dict[str, str]] = field(default_factory=dict)  # module → {"A": key, "B": key}
    embeddings: set[str] = field(default_factory=set)  # modules with the factors of an embedding
    full: dict[str, str] = field(default_factory=dict)  # tensor → key

    def scaling(self, module: str, rank: int) -> float:
        """Return the factor of the update of *module*: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        alpha = self.config.get("lora_alpha", 8)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def is_transposed(self, module: str) -> bool:
        return module in self.embeddings or bool(self.config.get("fan_in_fan_out"))


def sort_adapter(config: Mapping[str, Any], keys: Iterator[str] | list[str]) -> AdapterTensors:
    """Sort the tensors *keys* of an adapter.  Raises JobRefused for kinds that are not supported."""
    if config.get("peft_type", "LORA") != "LORA":
        raise JobRefused(f"cannot merge an adapter of type {config['peft_type']}: only LoRA is supported")
    for key in ("use_dora", "layer_replication", "target_parameters", "trainable_token_indices"):
        if config.get(key):
            raise JobRefused(f"cannot merge an adapter with `{key}`")
    found = AdapterTensors(config)
    for key in keys:
        name = key.removeprefix("base_model.model.")
        pair = LORA_KEY.fullmatch(name)
        if pair is not None:
            found.pairs.setdefault(pair["module"], {})[pair["side"]] = key
            if pair["kind"]:
                found.embeddings.add(pair["module"])
        elif ".lora_" in name:
            raise JobRefused(f"cannot merge the adapter's tensor `{key}`: its kind is not supported")
        else:
            found.full[WRAPPER.sub("", name)] = key
    for module, sides in found.pairs.items():
        if sides.keys() != {"A", "B"}:
            raise JobRefused(f"the adapter has only one of the two factors for `{module}`")
    return found


def find_tensor(wanted: str, names: Mapping[str, Any]) -> str | None:
    """Return the tensor in *names* that *wanted* refers to; None if none or several match.

    The names of a base may start with ``model.`` or not, so a unique match of the ending counts.
    """
    if wanted in names:
        return wanted
    near = [name for name in names if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")]
    return near[0] if len(near) == 1 else None


def match_tensors(adapter: AdapterTensors, names: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the module for each tensor that gets an update, and the adapter's key for each that is replaced.

    If a head was trained in full and the base's head is tied to its embedding, the head becomes a
    new tensor.  Raises JobRefused with every tensor of the adapter that has no match in the base.
    """
    updated, replaced, unmatched = {}, {}, []
    for module, sides in adapter.pairs.items():
        wanted = f"{module}.weight"
        # When peft adds factors to an embedding or a head, it saves the original tensor as well.
        name = find_tensor(wanted, names) or (HEAD if wanted == HEAD and HEAD in adapter.full else None)
        if name is None:
            unmatched += sorted(sides.values())
        else:
            updated[name] = module
    for wanted, key in adapter.full.items():
        name = find_tensor(wanted, names) or (HEAD if wanted == HEAD and HEAD not in names else None)
        if name is None:
            unmatched.append(key)
        else:
            replaced[name] = key
    if unmatched:
        more = f" and {len(unmatched) - 3} more" if len(unmatched) > 3 else ""  # noqa: PLR2004
        what = ", ".join(f"`{key}`" for key in unmatched[:3])
        raise JobRefused(f"the base has no tensor for {what}{more} of the adapter")
    if HEAD not in names and any(name.endswith(EMBEDDING) for name in updated):
        raise JobRefused("the base ties its head to its embedding, and the adapter changes one of them")
    return updated, replaced


# The merge


def merge(
    adapter: str,
    output: str,
    base: str | None,
    revision: str | None,
    chat_template: str | None = None,
    *,
    keeps_template: bool = False,
) -> dict[str, Any]:
    """Write the base with *adapter* merged to the folder *output*.

    The tokenizer gets *chat_template*; with *keeps_template* only if it has none.  At most `BLOCK`
    bytes of one tensor are in memory at a time.
    """
    source = Path(adapter)
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_adapter(source)
    folder = find_base(base or config["base_model_name_or_path"], revision)
    base_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if base_config.get("quantization_config"):
        raise JobRefused(
            f"cannot merge into `{folder}`: its weights are quantised",
            "Pass the model that it was quantised from as `base=`",
        )
    shards = find_shards(folder)
    headers = {shard: read_header(folder / shard) for shard in shards}
    names = {name: shard for shard in shards for name in headers[shard][0]}
    adapter_tensors = sort_adapter(config, list(tensors))
    updated, replaced = match_tensors(adapter_tensors, names)
    work = MergeWork(adapter_tensors, tensors, updated, replaced)
    target = Path(output)
    need = sum((folder / shard).stat().st_size for shard in shards)
    free = shutil.disk_usage(target.parent).free
    if free < need:
        raise JobRefused(
            f"`{target.parent}` has {free / 1e9:.1f} GB free, and the merged model needs {need / 1e9:.1f} GB"
        )
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        untied = _write_shards(work, folder, headers, partial)
        write_config(base_config, work, untied=untied, into=partial)
        copy_other_files(folder, source, partial)
        set_template(partial, source, chat_template, keeps_template=keeps_template)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"tensors": len(updated) + len(replaced), "shards": len(shards)}


def _write_shards(
    work: MergeWork,
    folder: Path,
    headers: Mapping[str, tuple[dict[str, StoredTensor], dict[str, str]]],
    into: Path,
) -> bool:
    """Write every shard and the index; return whether the merged model has an untied head."""
    names = [name for tensors, _ in headers.values() for name in tensors]
    embedding = next((name for name in names if name.endswith(EMBEDDING)), None)
    untied = HEAD not in names and (HEAD in work.replaced or _keeps_head(work, embedding))
    if untied and embedding is None:
        raise JobRefused(f"the adapter changes the head, but the base has neither one nor `*.{EMBEDDING}`")
    weight_map: dict[str, str] = {}
    size = 0
    for number, (shard, (tensors, metadata)) in enumerate(headers.items(), 1):
        print(f"{shard} ({number} of {len(headers)})", flush=True)  # noqa: T201 (the parent reads it)
        head = {HEAD: tensors[embedding]} if untied and embedding in tensors else {}
        size += work.write_shard(folder / shard, into / shard, {**tensors, **head}, metadata)
        weight_map |= dict.fromkeys({**tensors, **head}, shard)
    if len(headers) > 1 or next(iter(headers)) != WEIGHTS:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (into / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return untied


def _keeps_head(work: MergeWork, embedding: str | None) -> bool:
    """Whether the embedding was trained as a copy, so that the head keeps the original values."""
    return embedding in work.replaced and not work.adapter.config.get("ensure_weight_tying")


def load_adapter(folder: Path) -> dict[str, Any]:
    """Return the tensors of an adapter in their own types."""
    import torch

    path = folder / "adapter_model.safetensors"
    if path.is_file():
        from safetensors.torch import load_file

        return dict(load_file(str(path)))
    path = folder / "adapter_model.bin"
    if path.is_file():
        return dict(torch.load(str(path), map_location="cpu", weights_only=True))
    raise JobRefused(f"`{folder}` has no adapter weights")


def find_base(base: str, revision: str | None) -> Path:
    """Return the folder of the base's files.  A base on the hub is downloaded unless it is cached."""
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    # Only the top folder: some repositories have the same weights in other formats in subfolders.
    ignored = ["*/*", "consolidated*"]
    return Path(snapshot_download(base, revision=revision, allow_patterns=FETCHED, ignore_patterns=ignored))


def find_shards(folder: Path) -> list[str]:
    """Return the names of the files that hold the base's weights."""
    index = folder / INDEX
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif (folder / WEIGHTS).is_file():
        shards = [WEIGHTS]
    else:
        raise JobRefused(
            f"cannot merge into `{folder}`: it has no `{WEIGHTS}`",
            "Save the base with transformers' `save_pretrained`, and pass that folder as `base=`",
        )
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise JobRefused(f"`{folder}` has no `{missing[0]}`, which its index lists")
    return shards


@dataclass
class MergeWork:
    """Which tensors of the base are updated, and which are replaced."""

    adapter: AdapterTensors
    tensors: Mapping[str, Any]
    updated: Mapping[str, str]
    replaced: Mapping[str, str]

    def write_shard(
        self, source: Path, target: Path, stored: Mapping[str, StoredTensor], metadata: Mapping[str, str]
    ) -> int:
        """Write *source* with the changes to *target*; return the bytes of its tensors."""
        new = {name: self._stored(name, one) for name, one in stored.items()}
        with source.open("rb") as read, target.open("wb") as write:
            write_header(write, new, metadata)
            begun = write.tell()
            for name, one in stored.items():
                read.seek(one.begin)
                if name in self.replaced or name in self.updated:
                    self._write_changed(name, new[name], one, read, write)
                else:
                    _copy(read, one.end - one.begin, write)
            write.flush()
            os.fsync(write.fileno())
            return write.tell() - begun

    def _stored(self, name: str, one: StoredTensor) -> StoredTensor:
        """Return how *name* is stored: with its old type, and the shape of its replacement if it has one."""
        if one.dtype not in BITS and (name in self.updated or name in self.replaced):
            raise JobRefused(f"cannot change `{name}`: it is stored as {one.dtype}")
        if name in self.replaced:
            shape = tuple(self.tensors[self.replaced[name]].shape)
            return StoredTensor(one.dtype, shape, one.begin, one.end)
        return one

    def _write_changed(
        self, name: str, new: StoredTensor, old: StoredTensor, read: IO[bytes], write: IO[bytes]
    ) -> None:
        """Write ``W + scaling * B @ A``, computed in float32, a block of rows at a time.

        W is the replacement of the base's tensor if there is one, else the base's tensor.
        """
        import torch

        full = self.tensors[self.replaced[name]] if name in self.replaced else None
        columns = new.shape[-1] if new.shape else 1
        count = math.prod(new.shape) // max(columns, 1)
        if full is not None:
            full = full.reshape(count, columns)
        factors = self._factors(name, new.shape) if name in self.updated else None
        step = max(BLOCK // (4 * max(columns, 1)), 1)
        for at in range(0, count, step):
            rows = slice(at, min(at + step, count))
            if full is None:
                data = bytearray(read.read((rows.stop - at) * old.row_size))
                weight = torch.frombuffer(data, dtype=_torch_types()[old.dtype]).reshape(-1, columns)
            else:
                weight = full[rows]
            if factors is not None:
                weight = weight.to(torch.float32) + factors[0][rows] @ factors[1]
            write.write(_bytes(weight, new.dtype))

    def _factors(self, name: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """Return the two matrices whose product is added to *name*."""
        import torch

        module = self.updated[name]
        first, second = (self.tensors[self.adapter.pairs[module][side]].to(torch.float32) for side in "AB")
        left, right = (first.T, second.T) if self.adapter.is_transposed(module) else (second, first)
        if (left.dim(), right.dim()) != (2, 2) or (left.shape[0], right.shape[-1]) != shape:
            raise JobRefused(f"the adapter's factors for `{name}` do not have its shape {list(shape)}")
        return left, right * self.adapter.scaling(module, first.shape[0])


def _torch_types() -> dict[str, Any]:
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def _bytes(tensor: Any, dtype: str) -> Any:
    import torch

    return memoryview(tensor.detach().to(_torch_types()[dtype]).contiguous().view(torch.uint8).numpy())


def _copy(read: IO[bytes], size: int, write: IO[bytes]) -> None:
    while size > 0:
        data = read.read(min(size, BLOCK))
        if not data:
            raise JobRefused("a weights file of the base is truncated")
        write.write(data)
        size -= len(data)


def write_config(base_config: Mapping[str, Any], work: MergeWork, *, untied: bool, into: Path) -> None:
    """Write the ``config.json`` of the merged model."""
    config = dict(base_config)
    if untied:
        config["tie_word_embeddings"] = False
    for name, key in work.replaced.items():
        if name.endswith(EMBEDDING) and "vocab_size" in config:
            config["vocab_size"] = int(work.tensors[key].shape[0])
    (into / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def copy_other_files(base: Path, adapter: Path, into: Path) -> None:
    """Copy the base's other files.  The adapter's tokenizer, if it has one, replaces the base's."""
    for path in sorted(base.iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.suffix in WEIGHT_FILES:
            continue
        if path.name not in {"config.json", "README.md"} and not path.name.endswith(".index.json"):
            shutil.copyfile(path, into / path.name)
    for path in sorted(adapter.iterdir()):
        if path.is_file() and TOKENIZER.fullmatch(path.name):
            shutil.copyfile(path, into / path.name)


def template_of(folder: Path) -> str | None:
    """Return the chat template of the tokenizer in *folder*, if it has one as a single text."""
    own, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    found = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    template = found.get("chat_template")
    return template if isinstance(template, str) else None


def set_template(
    folder: Path, adapter: Path, chat_template: str | None = None, *, keeps_template: bool = False
) -> None:
    """Write the template of the run, or of its adapter, to the tokenizer of the merged model in *folder*.

    Transformers reads the file ``chat_template.jinja`` first, and old releases read only the settings.
    """
    template = template_of(adapter)
    if chat_template and not (keeps_template and (template or template_of(folder))):
        template = chat_template
    own, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if template is None or template_of(folder) == template:
        return
    if own.is_file():
        own.write_text(template, encoding="utf-8")
    if settings.is_file():
        known = json.loads(settings.read_text(encoding="utf-8"))
        known["chat_template"] = template
        settings.write_text(json.dumps(known, indent=2, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
