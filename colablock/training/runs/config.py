"""The training config: one YAML for every runner, its keys a documented subset of axolotl's names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from colablock._common.text import near
from colablock.errors import Fault, InvalidConfig, InvalidInput, NotFound

__all__ = [
    "RANGES",
    "Adapter",
    "DataFormat",
    "DataSource",
    "MetricsTarget",
    "TrainConfig",
    "config_from",
    "config_to",
    "read_config",
    "read_yaml",
    "values_from",
    "yaml_value",
]

C = TypeVar("C", bound=Enum)


class Adapter(Enum):
    """What is trained: low-rank matrices beside weights in 4 bits, or beside whole ones."""

    QLORA = "qlora"
    LORA = "lora"


class DataFormat(Enum):
    """What a row of data holds."""

    TEXT = "text"  # {"text": ...}
    COMPLETION = "completion"  # {"prompt": ..., "completion": ...}
    MESSAGES = "messages"  # {"messages": [{"role": ..., "content": ...}, ...]}
    ALPACA = "alpaca"  # {"instruction": ..., "input": ..., "output": ...}


class MetricsTarget(Enum):
    """Where metrics go beside the run's own file."""

    WANDB = "wandb"
    TENSORBOARD = "tensorboard"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """One dataset: a local file or folder, or a name on the hub.

    *form* is told by the keys of the first row unless it is given; *split* and
    *name* (the hub's configuration) count for a dataset of the hub.
    """

    path: str
    form: DataFormat | None = None
    split: str = "train"
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What is trained on what, and how.  Lengths are in tokens, sizes of a batch in sequences.

    There is no key for the precision: it follows from the card.
    """

    base_model: str
    datasets: tuple[DataSource, ...]
    revision: str | None = None  # of the model on the hub
    adapter: Adapter = Adapter.QLORA
    sequence_len: int = 1024
    micro_batch_size: int = 1
    gradient_accumulation_steps: int = 8
    num_epochs: float = 1.0
    max_steps: int | None = None  # in place of the epochs
    learning_rate: float = 2e-4
    lr_scheduler: str = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 0.3
    optimizer: str = "adamw_torch"
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] = ()  # empty: every linear layer but the head
    gradient_checkpointing: bool = True
    train_on_inputs: bool = False  # whether the prompt's tokens count for the loss, too
    chat_template: str | None = None  # None: the tokenizer's own; "chatml" for one that has none
    val_set_size: float = 0.0  # share of the rows that is kept for evaluation
    eval_steps: int | None = None
    logging_steps: int = 1
    save_steps: int | None = None  # None: by the clock, at most ten minutes apart
    save_total_limit: int = 2
    seed: int = 42
    output_dir: str | None = None  # None: `outputs/`, by the names of model and data
    report_to: tuple[MetricsTarget, ...] = ()
    wandb_project: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # what the axolotl runner passes through

    def digest(self) -> str:
        """Return a SHA-256 of everything that decides what is learnt: not of where it is written or told."""
        told = {"output_dir", "report_to", "wandb_project", "save_steps", "save_total_limit", "logging_steps"}
        facts = {name: value for name, value in config_to(self).items() if name not in told}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# Key: what is between the smallest and the largest value that makes sense.
RANGES: Mapping[str, tuple[float, float]] = {
    "sequence_len": (8, 1 << 20),
    "micro_batch_size": (1, 1 << 16),
    "gradient_accumulation_steps": (1, 1 << 16),
    "num_epochs": (0, 10_000),
    "max_steps": (1, 1 << 40),
    "learning_rate": (0, 10),
    "warmup_ratio": (0, 1),
    "weight_decay": (0, 10),
    "max_grad_norm": (0, 1_000_000),
    "lora_r": (1, 4096),
    "lora_alpha": (1, 1 << 16),
    "lora_dropout": (0, 0.99),
    "val_set_size": (0, 0.9),
    "eval_steps": (1, 1 << 40),
    "logging_steps": (1, 1 << 40),
    "save_steps": (1, 1 << 40),
    "save_total_limit": (2, 1000),  # one may be damaged: the one before is what it is resumed from
    "seed": (0, (1 << 32) - 1),
}
_OURS = ("bf16", "fp16", "tf32", "load_in_4bit", "load_in_8bit", "flash_attention", "sdp_attention")
_HINTS = dict.fromkeys(_OURS, "it follows from the card and from `adapter`: leave it out") | {
    "batch_size": "say `micro_batch_size` and `gradient_accumulation_steps`",
    "model": "axolotl's name for it is `base_model`",
    "dataset": "axolotl's name for it is `datasets`, a list",
}


def read_config(path: Path, *, passes_through: bool = False) -> TrainConfig:
    """Return the config in the YAML file *path*; see `config_from`.  Raises NotFound, InvalidConfig."""
    return config_from(read_yaml(path), source=str(path), passes_through=passes_through)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """Return the keys of a YAML file as they are.  Raises NotFound, InvalidConfig."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        hint = "`colablock new-config` writes one"
        raise NotFound(f"the config `{path}` cannot be read: {reason}", hint=hint) from error
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidConfig(str(path), [Fault(path="", message=f"no YAML: {_in_one_line(error)}")]) from error
    if not isinstance(value, Mapping):
        message = "it has to be a mapping of keys to values"
        raise InvalidConfig(str(path), [Fault(path="", message=message)])
    return value


def yaml_value(text: str) -> Any:
    """Return what *text* is in YAML: a number, a truth value, a list, else itself."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def values_from(pairs: Iterable[str]) -> dict[str, Any]:
    """Return what pairs ``key=value`` say, their values read as YAML.  Raises InvalidInput."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput(f"`--set {pair}` is no pair: write `--set key=value`")
        found[key.strip()] = yaml_value(value)
    return found


def config_from(value: object, *, source: str = "", passes_through: bool = False) -> TrainConfig:
    """Return the config that a mapping of keys stands for.

    *passes_through*: keys that are not ours are kept for the runner (axolotl);
    else they are faults.  Raises InvalidConfig with every fault at once.
    """
    if not isinstance(value, Mapping):
        raise InvalidConfig(source, [Fault(path="", message="it has to be a mapping of keys to values")])
    reading = _ConfigReading()
    known = {one.name: one for one in fields(TrainConfig) if one.name != "extra"}
    found: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for key, given in value.items():
        if key in known:
            if given is not None:
                found[key] = reading.value(known[key].type, key, given)
        elif passes_through and key not in _HINTS:
            extra[str(key)] = reading.plain(str(key), given)
        else:
            hint = _HINTS.get(str(key)) or near(str(key), list(known))
            reading.fault(str(key), "no such key", hint=hint)
    for key in ("base_model", "datasets"):
        if not found.get(key) and not any(fault.path.startswith(key) for fault in reading.faults):
            reading.fault(key, "is missing")
    if reading.faults:
        raise InvalidConfig(source, reading.faults)
    return TrainConfig(**found, extra=extra)


def config_to(config: TrainConfig) -> dict[str, Any]:
    """Return *config* as the keys and plain values that `config_from` reads; what is unset is left out."""
    written: dict[str, Any] = {}
    for one in fields(config):
        value = getattr(config, one.name)
        if one.name == "datasets":
            written["datasets"] = [dict(_source_to(source)) for source in value]
        elif one.name == "extra":
            written |= value
        elif isinstance(value, Enum):
            written[one.name] = value.value
        elif isinstance(value, tuple):
            if value:
                written[one.name] = [each.value if isinstance(each, Enum) else each for each in value]
        elif value is not None:
            written[one.name] = value
    return written


def _source_to(source: DataSource) -> Iterator[tuple[str, str]]:
    yield "path", source.path
    if source.form is not None:
        yield "type", source.form.value
    if source.split != "train":
        yield "split", source.split
    if source.name is not None:
        yield "name", source.name


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@dataclass(slots=True)
class _ConfigReading:
    """Turns plain values into typed ones, and collects what is wrong with them."""

    faults: list[Fault] = field(default_factory=list)

    def fault(self, path: str, message: str, *, hint: str | None = None) -> None:
        self.faults.append(Fault(path=path, message=message, hint=hint))

    def value(self, kind: Any, key: str, given: Any) -> Any:
        """Return *given* as the field *key*, whose annotation is *kind*, wants it."""
        if key == "datasets":
            return tuple(self._sources(given))
        kind = str(kind)
        if kind.startswith("Adapter"):
            return self._choice(Adapter, key, given)
        if kind.startswith("tuple[MetricsTarget"):
            return tuple(self._choice(MetricsTarget, key, one) for one in _listed(given) if one != "none")
        if kind.startswith("tuple[str"):
            return tuple(self._text(f"{key}[{at}]", one) for at, one in enumerate(_listed(given)))
        if kind.startswith("str"):
            return self._text(key, given)
        if kind.startswith("bool"):
            if not isinstance(given, bool):
                self.fault(key, f"is {given!r}, and has to be `true` or `false`")
            return given
        return self._number(key, given, whole=kind.startswith("int"))

    def _number(self, key: str, given: Any, *, whole: bool) -> Any:
        if isinstance(given, str):  # YAML 1.1 takes `2e-4` for a text
            with suppress(ValueError):
                given = float(given)
        fits = isinstance(given, (int, float)) and not isinstance(given, bool)
        if not fits or (whole and isinstance(given, float) and not given.is_integer()):
            self.fault(key, f"is {given!r}, and has to be a {'whole ' if whole else ''}number")
            return given
        lowest, highest = RANGES[key]
        if not lowest <= given <= highest:
            self.fault(key, f"is {given!r}, and has to be between {lowest:,} and {highest:,}")
            return given
        return int(given) if whole else float(given)

    def plain(self, key: str, given: Any) -> Any:
        """Return a value that is not ours: it is kept as JSON."""
        try:
            json.dumps(given, sort_keys=True)
        except (TypeError, ValueError):
            self.fault(key, "is nothing that JSON can hold", hint="put it in quotes where it is a date")
        return given

    def _text(self, key: str, given: Any) -> str:
        if not isinstance(given, str) or not given:
            self.fault(key, f"is {given!r}, and has to be a text")
        return str(given)

    def _choice(self, kind: type[C], key: str, given: Any) -> C | None:
        try:
            return kind(given)
        except ValueError:
            choices = ", ".join(f"`{one.value}`" for one in kind)
            self.fault(key, f"is {given!r}, and has to be one of {choices}")
            return None

    def _sources(self, given: Any) -> Iterator[DataSource]:
        keys = {"path": "path", "type": "form", "split": "split", "name": "name"}
        for at, one in enumerate(_listed(given)):
            where = f"datasets[{at}]"
            if isinstance(one, str):
                yield DataSource(path=one)
            elif not isinstance(one, Mapping):
                self.fault(where, f"is {one!r}, and has to be a path or a mapping")
            elif not isinstance(one.get("path"), str) or not one["path"]:
                self.fault(f"{where}.path", "is missing")
            else:
                for key in one.keys() - keys.keys():
                    hint = near(str(key), list(keys)) or f"known ones are {', '.join(keys)}"
                    self.fault(f"{where}.{key}", "no such key", hint=hint)
                found = {
                    keys[key]: str(value) for key, value in one.items() if key in keys and value is not None
                }
                form = found.pop("form", None)
                kind = self._choice(DataFormat, f"{where}.type", form) if form is not None else None
                yield DataSource(form=kind, **found)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
