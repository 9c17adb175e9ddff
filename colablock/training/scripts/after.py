"""What follows a run, in the target: text of the trained model, the merge, the push.

Its source is given to ``python -c`` with two paths: of a job (JSON) to read, and
of the answer to write.  It needs the standard library and what a stack for
training has: torch, transformers, peft, huggingface_hub.  A token is in
``HF_TOKEN``, where the hub's library looks for it by itself.
"""

# What is used is imported where it is used, and not there where this is checked.
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
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

BLOCK = 1 << 24  # bytes that are held of a tensor
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
CPU_NF4 = (0, 46)  # the first bitsandbytes that has 4 bits without a GPU
DTYPE_KEYWORD = (4, 56)  # the first transformers that says `dtype` for `torch_dtype`
BF16_CARD = 8  # the first generation that computes in it
KEY = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.weight)?"
)
WHOLE = re.compile(r"\.(?:base_layer|modules_to_save(?:\.(?!weight$|bias$)[^.]+)?)(?=\.)")


class Refusal(Exception):
    """It cannot be done, and the reason needs no traceback."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def main(asked: str, answered: str) -> None:
    """Do the job in the file *asked*, and write what came of it to *answered*."""
    job = json.loads(Path(asked).read_text(encoding="utf-8"))
    try:
        answer: dict[str, Any] = {"answer": JOBS[job.pop("do")](**job)}
    except Refusal as refusal:
        answer = {"refused": str(refusal), "hint": refusal.hint}
    except Exception as error:  # noqa: BLE001 (whatever it is, it is told)
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(answered).write_text(json.dumps(answer), encoding="utf-8")


# The format of the weights


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its type, its shape, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def row(self) -> int:
        """Bytes of one row."""
        return (self.end - self.begin) // max(self.shape[0], 1) if self.shape else self.end - self.begin


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the tensors in a file of safetensors in the order of their bytes, and its metadata."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length) if length < path.stat().st_size else b"")
        metadata = header.pop("__metadata__", {})
        tensors = {
            name: Stored(row["dtype"], tuple(row["shape"]), *(8 + length + at for at in row["data_offsets"]))
            for name, row in header.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise Refusal(f"`{path}` cannot be read as safetensors: {error}") from error
    if any(one.end > path.stat().st_size for one in tensors.values()):
        raise Refusal(f"`{path}` is cut off")
    return dict(sorted(tensors.items(), key=lambda item: item[1].begin)), metadata


def write_header(file: IO[bytes], tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """Write the header of *tensors*, whose bytes follow in that order."""
    rows: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for name, one in tensors.items():
        size = BITS.get(one.dtype, 0) * math.prod(one.shape) // 8 or one.end - one.begin
        rows[name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(rows, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(struct.pack("<Q", len(header)) + header)


# Which tensor of the adapter goes where


@dataclass
class AdapterTensors:
    """What an adapter holds, by the names of the base: pairs of low-rank factors, and whole tensors."""

    config: Mapping[str, Any]
    pairs: dict[str, dict[str, str]] = field(default_factory=dict)  # module → {"A": key, "B": key}
    embeddings: set[str] = field(default_factory=set)  # modules whose factors are those of an embedding
    whole: dict[str, str] = field(default_factory=dict)  # tensor → key

    def scaling(self, module: str, rank: int) -> float:
        """Return the factor of what is added to *module*: alpha / r, with rsLoRA alpha / sqrt(r)."""
        alpha = self.config.get("lora_alpha", 8)
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def is_transposed(self, module: str) -> bool:
        return module in self.embeddings or bool(self.config.get("fan_in_fan_out"))


def sort_adapter(config: Mapping[str, Any], keys: Iterator[str] | list[str]) -> AdapterTensors:
    """Return what the tensors *keys* of an adapter are.  Raises Refusal for what is not merged here."""
    if config.get("peft_type", "LORA") != "LORA":
        raise Refusal(f"an adapter of the kind {config['peft_type']} cannot be merged here, only LoRA can")
    for key in ("use_dora", "layer_replication", "target_parameters", "trainable_token_indices"):
        if config.get(key):
            raise Refusal(f"an adapter with `{key}` cannot be merged here")
    found = AdapterTensors(config)
    for key in keys:
        name = key.removeprefix("base_model.model.")
        pair = KEY.fullmatch(name)
        if pair is not None:
            found.pairs.setdefault(pair["module"], {})[pair["side"]] = key
            if pair["kind"]:
                found.embeddings.add(pair["module"])
        elif ".lora_" in name:
            raise Refusal(f"the adapter's `{key}` is of a kind that cannot be merged here")
        else:
            found.whole[WHOLE.sub("", name)] = key
    for module, sides in found.pairs.items():
        if sides.keys() != {"A", "B"}:
            raise Refusal(f"the adapter has only one of the two factors for `{module}`")
    return found


def place(wanted: str, names: Mapping[str, Any]) -> str | None:
    """Return the tensor of *names* that *wanted* means: that of its name, or the only one that it may be.

    A base may have been saved with ``model.`` before every name, or without.
    """
    if wanted in names:
        return wanted
    near = [name for name in names if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")]
    return near[0] if len(near) == 1 else None


def place_all(adapter: AdapterTensors, names: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the module for each tensor that is added to, and the adapter's key for each that is replaced.

    A head that was trained whole beside a base whose head is its embedding comes as a new tensor.
    Raises Refusal that names every tensor of the adapter for which the base has none.
    """
    added, replaced, lost = {}, {}, []
    for module, sides in adapter.pairs.items():
        wanted = f"{module}.weight"
        # peft keeps what an embedding or a head was before, too, when it adds factors to one.
        name = place(wanted, names) or (HEAD if wanted == HEAD and HEAD in adapter.whole else None)
        if name is None:
            lost += sorted(sides.values())
        else:
            added[name] = module
    for wanted, key in adapter.whole.items():
        name = place(wanted, names) or (HEAD if wanted == HEAD and HEAD not in names else None)
        if name is None:
            lost.append(key)
        else:
            replaced[name] = key
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""  # noqa: PLR2004
        what = ", ".join(f"`{key}`" for key in lost[:3])
        raise Refusal(f"the base has no tensor for {what}{more} of the adapter")
    if HEAD not in names and any(name.endswith(EMBEDDING) for name in added):
        raise Refusal("the base's head is its embedding, and the adapter changes only one of them")
    return added, replaced


# The merge


def merge(adapter: str, output: str, base: str | None, revision: str | None) -> dict[str, Any]:
    """Write the base with *adapter* added to the folder *output*, holding a part of one tensor at a time."""
    source = Path(adapter)
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_adapter(source)
    folder = find_base(base or config["base_model_name_or_path"], revision)
    kept = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if kept.get("quantization_config"):
        raise Refusal(
            f"the weights of `{folder}` are quantised, and an adapter is merged into whole ones",
            "`base=` names the model that they were made from",
        )
    shards = find_shards(folder)
    headers = {shard: read_header(folder / shard) for shard in shards}
    names = {name: shard for shard in shards for name in headers[shard][0]}
    sorted_ = sort_adapter(config, list(tensors))
    added, replaced = place_all(sorted_, names)
    work = MergeWork(sorted_, tensors, added, replaced)
    target = Path(output)
    need = sum((folder / shard).stat().st_size for shard in shards)
    free = shutil.disk_usage(target.parent).free
    if free < need:
        raise Refusal(
            f"{need / 1e9:.1f} GB are needed in `{target.parent}`, and {free / 1e9:.1f} GB are free"
        )
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        untied = _write_shards(work, folder, headers, partial)
        write_config(kept, work, untied=untied, into=partial)
        copy_rest(folder, source, partial)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"tensors": len(added) + len(replaced), "shards": len(shards)}


def _write_shards(
    work: MergeWork, folder: Path, headers: Mapping[str, tuple[dict[str, Stored], dict[str, str]]], into: Path
) -> bool:
    """Write every shard and the index; return whether the head is a tensor of its own from now on."""
    names = [name for tensors, _ in headers.values() for name in tensors]
    embedding = next((name for name in names if name.endswith(EMBEDDING)), None)
    untied = HEAD not in names and (HEAD in work.replaced or _leaves_the_head(work, embedding))
    if untied and embedding is None:
        raise Refusal(
            "the base has no embedding by a name that is known here, and the adapter changes its head"
        )
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


def _leaves_the_head(work: MergeWork, embedding: str | None) -> bool:
    """Whether the embedding was trained as a copy, while the head stayed what both were before."""
    return embedding in work.replaced and not work.adapter.config.get("ensure_weight_tying")


def load_adapter(folder: Path) -> dict[str, Any]:
    """Return the tensors of an adapter, in its own types."""
    import torch

    path = folder / "adapter_model.safetensors"
    if path.is_file():
        from safetensors.torch import load_file

        return dict(load_file(str(path)))
    path = folder / "adapter_model.bin"
    if path.is_file():
        return dict(torch.load(str(path), map_location="cpu", weights_only=True))
    raise Refusal(f"there are no weights of an adapter in `{folder}`")


def find_base(base: str, revision: str | None) -> Path:
    """Return the folder of the base's files: a local one, or the hub's, fetched if they are not cached."""
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    # One level only: beside them some repositories have the same weights in other forms.
    ignored = ["*/*", "consolidated*"]
    return Path(snapshot_download(base, revision=revision, allow_patterns=FETCHED, ignore_patterns=ignored))


def find_shards(folder: Path) -> list[str]:
    """Return the names of the files that the base's weights are in."""
    index = folder / INDEX
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif (folder / WEIGHTS).is_file():
        shards = [WEIGHTS]
    else:
        raise Refusal(
            f"there is no `{WEIGHTS}` in `{folder}`, and only weights in this form are merged",
            "Save the base with transformers' `save_pretrained` first, and give that folder as `base=`",
        )
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise Refusal(f"`{folder}` lacks `{missing[0]}`, which its index names")
    return shards


@dataclass
class MergeWork:
    """What is added to which tensor, and what replaces which."""

    adapter: AdapterTensors
    tensors: Mapping[str, Any]
    added: Mapping[str, str]
    replaced: Mapping[str, str]

    def write_shard(
        self, source: Path, target: Path, stored: Mapping[str, Stored], metadata: Mapping[str, str]
    ) -> int:
        """Write *target* as *source* with what is added and replaced; return the bytes of its tensors."""
        new = {name: self._stored(name, one) for name, one in stored.items()}
        with source.open("rb") as read, target.open("wb") as write:
            write_header(write, new, metadata)
            begun = write.tell()
            for name, one in stored.items():
                read.seek(one.begin)
                if name in self.replaced or name in self.added:
                    self._change(name, new[name], one, read, write)
                else:
                    _copy(read, one.end - one.begin, write)
            write.flush()
            os.fsync(write.fileno())
            return write.tell() - begun

    def _stored(self, name: str, one: Stored) -> Stored:
        """Return how *name* is stored: as before, but for the shape of what replaces it."""
        if one.dtype not in BITS and (name in self.added or name in self.replaced):
            raise Refusal(f"`{name}` is stored as {one.dtype}, to which nothing can be added")
        if name in self.replaced:
            return Stored(one.dtype, tuple(self.tensors[self.replaced[name]].shape), one.begin, one.end)
        return one

    def _change(self, name: str, new: Stored, old: Stored, read: IO[bytes], write: IO[bytes]) -> None:
        """Write ``W + scaling * B @ A``, computed in float32, a block of rows at a time.

        W is what replaces the base's own where something does.
        """
        import torch

        whole = self.tensors[self.replaced[name]] if name in self.replaced else None
        columns = new.shape[-1] if new.shape else 1
        count = math.prod(new.shape) // max(columns, 1)
        if whole is not None:
            whole = whole.reshape(count, columns)
        factors = self._factors(name, new.shape) if name in self.added else None
        step = max(BLOCK // (4 * max(columns, 1)), 1)
        for at in range(0, count, step):
            rows = slice(at, min(at + step, count))
            if whole is None:
                data = bytearray(read.read((rows.stop - at) * old.row))
                weight = torch.frombuffer(data, dtype=_types()[old.dtype]).reshape(-1, columns)
            else:
                weight = whole[rows]
            if factors is not None:
                weight = weight.to(torch.float32) + factors[0][rows] @ factors[1]
            write.write(_bytes(weight, new.dtype))

    def _factors(self, name: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """Return the two matrices whose product is added to *name*."""
        import torch

        module = self.added[name]
        first, second = (self.tensors[self.adapter.pairs[module][side]].to(torch.float32) for side in "AB")
        left, right = (first.T, second.T) if self.adapter.is_transposed(module) else (second, first)
        if (left.dim(), right.dim()) != (2, 2) or (left.shape[0], right.shape[-1]) != shape:
            raise Refusal(f"the adapter's factors for `{name}` do not have its shape {list(shape)}")
        return left, right * self.adapter.scaling(module, first.shape[0])


def _types() -> dict[str, Any]:
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def _bytes(tensor: Any, dtype: str) -> Any:
    import torch

    return memoryview(tensor.detach().to(_types()[dtype]).contiguous().view(torch.uint8).numpy())


def _copy(read: IO[bytes], size: int, write: IO[bytes]) -> None:
    while size > 0:
        data = read.read(min(size, BLOCK))
        if not data:
            raise Refusal("a file of the base is cut off")
        write.write(data)
        size -= len(data)


def write_config(kept: Mapping[str, Any], work: MergeWork, *, untied: bool, into: Path) -> None:
    """Write the base's ``config.json`` as it holds for the merged model."""
    config = dict(kept)
    if untied:
        config["tie_word_embeddings"] = False
    for name, key in work.replaced.items():
        if name.endswith(EMBEDDING) and "vocab_size" in config:
            config["vocab_size"] = int(work.tensors[key].shape[0])
    (into / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def copy_rest(base: Path, adapter: Path, into: Path) -> None:
    """Copy what belongs to the base beside its weights; the tokenizer is the adapter's where it has one."""
    for path in sorted(base.iterdir()):
        if not path.is_file() or path.name.startswith(".") or path.suffix in WEIGHT_FILES:
            continue
        if path.name not in {"config.json", "README.md"} and not path.name.endswith(".index.json"):
            shutil.copyfile(path, into / path.name)
    for path in sorted(adapter.iterdir()):
        if path.is_file() and TOKENIZER.fullmatch(path.name):
            shutil.copyfile(path, into / path.name)


# Text


def generate(
    adapter: str,
    base: str | None,
    revision: str | None,
    prompts: list[str],
    *,
    quantize: bool,
    precision: str,
    chat: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[str]:
    """Return what the trained model adds to each prompt."""
    import torch
    from transformers import set_seed

    model, tokenizer = load_trained(Path(adapter), base, revision, quantize=quantize, precision=precision)
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
    set_seed(seed)
    texts = []
    for prompt in prompts:
        text = prompt
        if chat:
            message = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        given = tokenizer(text, return_tensors="pt", add_special_tokens=not chat).to(model.device)
        given.pop("token_type_ids", None)
        with torch.no_grad():
            found = model.generate(
                **given,
                **sampling,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )
        texts.append(tokenizer.decode(found[0][given["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def load_trained(
    adapter: Path, base: str | None, revision: str | None, *, quantize: bool, precision: str
) -> tuple[Any, Any]:
    """Return the base with *adapter* on top, and the tokenizer; in 4 bits if asked to and possible."""
    import torch
    import transformers
    from peft import PeftModel

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    name = base or config["base_model_name_or_path"]
    dtype = _dtype(precision)
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    keywords: dict[str, Any] = {"dtype" if version >= DTYPE_KEYWORD else "torch_dtype": dtype}
    if torch.cuda.is_available():
        keywords["device_map"] = {"": 0}
    if quantize and has_nf4():
        keywords["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    elif quantize:
        print("the base is not loaded in 4 bits, for which this machine has no means", flush=True)  # noqa: T201
    model = transformers.AutoModelForCausalLM.from_pretrained(name, revision=revision, **keywords)
    has_own = (adapter / "tokenizer_config.json").is_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(adapter) if has_own else name, revision=None if has_own else revision
    )
    return PeftModel.from_pretrained(model, str(adapter)).eval(), tokenizer


def _dtype(precision: str) -> Any:
    """Return the type to compute in: the run's, where this machine has it."""
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    if precision == "bf16" and torch.cuda.get_device_capability()[0] >= BF16_CARD:
        return torch.bfloat16
    return torch.float16


def has_nf4() -> bool:
    """Whether bitsandbytes is here, and has 4 bits on this machine."""
    import importlib.metadata

    import torch

    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        return False
    return torch.cuda.is_available() or tuple(int(part) for part in version.split(".")[:2]) >= CPU_NF4


# The hub


def push(folder: str, repo: str, *, private: bool) -> str:
    """Put the files of *folder* into the repository *repo*, and return its address.

    A public one is not written to where a private one is meant.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    url = str(api.create_repo(repo, private=private, exist_ok=True))
    if private and not api.repo_info(repo).private:
        raise Refusal(f"the repository `{repo}` is public", "`private=False` pushes to it all the same")
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Trained with colablock")
    return url


JOBS: dict[str, Callable[..., Any]] = {"generate": generate, "merge": merge, "push": push}

if __name__ == "__main__":
    main(*sys.argv[1:])
