"""The training config: one YAML format for every runner.  The keys are a subset of axolotl's."""

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

from colablock._common.fs import nearest_beside
from colablock._common.limits import CONFIG_FILE, CONFIG_VALUES, DIGITS
from colablock._common.text import near
from colablock._common.toml import read_text_file
from colablock.errors import Fault, InvalidConfig, InvalidInput, NotFound

__all__ = [
    "LAUNCH_KEYS",
    "OWN_DATA",
    "RANGES",
    "Adapter",
    "DataFormat",
    "DataSource",
    "MetricsTarget",
    "TrainConfig",
    "config_from",
    "config_to",
    "read_yaml",
    "values_from",
    "yaml_value",
]

C = TypeVar("C", bound=Enum)
#: Keys of the trainer about the exchange between ranks, which change no losses.
LAUNCH_KEYS = ("ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_timeout")
#: The further key with the settings of data that axolotl reads itself, in place of our tokens.
OWN_DATA = "axolotl_data"
_ALL_LINEAR = "all-linear"  # peft's name of our default for `lora_target_modules`


class Adapter(Enum):
    """The kind of adapter: low-rank matrices with a base in 4 bits (QLoRA) or in full precision (LoRA)."""

    QLORA = "qlora"
    LORA = "lora"


class DataFormat(Enum):
    """The keys of a row of data."""

    TEXT = "text"  # {"text": ...}
    COMPLETION = "completion"  # {"prompt": ..., "completion": ...}
    MESSAGES = "messages"  # {"messages": [{"role": ..., "content": ...}, ...]}
    ALPACA = "alpaca"  # {"instruction": ..., "input": ..., "output": ...}
    INPUT_OUTPUT = "input_output"  # {"segments": [{"text": ..., "label": true or false}, ...]}


class MetricsTarget(Enum):
    """Where metrics go besides the run's own file."""

    WANDB = "wandb"
    TENSORBOARD = "tensorboard"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """One dataset: a local file or folder, or a name on the hub.

    Without *form*, the format follows from the columns.  *split* may be a slice (``train[:10%]``).
    *name*, the configuration, applies to datasets on the hub.
    """

    path: str
    form: DataFormat | None = None
    split: str = "train"
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The config of a training run.  Lengths are in tokens, batch sizes in sequences.

    There is no key for the precision, which follows from the card.
    """

    base_model: str
    datasets: tuple[DataSource, ...]
    revision: str | None = None  # of the model on the hub
    adapter: Adapter = Adapter.QLORA
    sequence_len: int = 1024
    micro_batch_size: int = 1
    gradient_accumulation_steps: int = 8
    num_epochs: float = 1.0
    max_steps: int | None = None  # overrides the epochs
    learning_rate: float = 2e-4
    lr_scheduler: str = "cosine"
    warmup_ratio: float = 0.03
    warmup_steps: int | None = None  # overrides the ratio
    weight_decay: float = 0.0
    max_grad_norm: float = 0.3
    optimizer: str = "adamw_torch"
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] = ()  # empty: every linear layer but the head; or one pattern
    gradient_checkpointing: bool = True
    train_on_inputs: bool = False  # whether the loss includes the tokens of prompts
    chat_template: str | None = None  # None: the tokenizer's; "chatml" for a tokenizer without one
    val_set_size: float = 0.0  # the share of the rows for evaluation
    eval_steps: int | None = None
    logging_steps: int = 1
    save_steps: int | None = None  # None: by time, at most ten minutes apart
    save_total_limit: int = 2
    seed: int = 42
    output_dir: str | None = None  # None: a folder in `outputs/` with the names of model and data
    report_to: tuple[MetricsTarget, ...] = ()
    wandb_project: str | None = None
    fsdp_version: int | None = None
    fsdp_config: Mapping[str, Any] = field(default_factory=dict)  # empty: shards if a card needs it
    extra: Mapping[str, Any] = field(default_factory=dict)  # further keys for axolotl

    @property
    def target_pattern(self) -> str | None:
        """The pattern that `lora_target_modules` is, which peft takes as a text; None for names."""
        only = self.lora_target_modules[0] if len(self.lora_target_modules) == 1 else ""
        return only if set(only) & set("\\*+[](|)^$?") else None

    def digest(self) -> str:
        """Return a SHA-256 of the keys that affect the training, not of those about output and reporting."""
        excluded = {
            "output_dir",
            "report_to",
            "wandb_project",
            "save_steps",
            "save_total_limit",
            "logging_steps",
            "fsdp_version",  # the ranks that share a model train it like one that has all of it
            "fsdp_config",
            *LAUNCH_KEYS,
        }
        facts = {name: value for name, value in config_to(self).items() if name not in excluded}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# The smallest and the largest valid value of each key.
RANGES: Mapping[str, tuple[float, float]] = {
    "sequence_len": (8, 1 << 20),
    "micro_batch_size": (1, 1 << 16),
    "gradient_accumulation_steps": (1, 1 << 16),
    "num_epochs": (0, 10_000),
    "max_steps": (1, 1 << 40),
    "learning_rate": (0, 10),
    "warmup_ratio": (0, 1),
    "warmup_steps": (0, 1 << 40),
    "weight_decay": (0, 10),
    "max_grad_norm": (0, 1_000_000),
    "lora_r": (1, 4096),
    "lora_alpha": (1, 1 << 16),
    "lora_dropout": (0, 0.99),
    "val_set_size": (0, 0.9),
    "eval_steps": (1, 1 << 40),
    "logging_steps": (1, 1 << 40),
    "save_steps": (1, 1 << 40),
    "save_total_limit": (2, 1000),  # if the newest is damaged, a run resumes from the one before
    "seed": (0, (1 << 32) - 1),
    "fsdp_version": (1, 2),
}
_SLIP = 0.8  # of the characters of a key are right in a slip; `deepspeed` has 0.6 of `seed`
_DERIVED = ("bf16", "fp16", "load_in_4bit", "flash_attention", "sdp_attention")
_HINTS = dict.fromkeys(_DERIVED, "it follows from the card and from `adapter`: remove it") | {
    "batch_size": "use `micro_batch_size` and `gradient_accumulation_steps`",
    "model": "use `base_model`",
    "dataset": "use `datasets`, a list",
    "data": "use `datasets`, a list; a call of `colablock.train` takes `dataset=`",
}


def read_yaml(path: Path) -> Mapping[str, Any]:
    """Return the content of a YAML file without checks.  Raises NotFound, InvalidConfig."""
    try:
        text = read_text_file(path, CONFIG_FILE).decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a null character
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        is_text = not isinstance(error, UnicodeDecodeError)
        hint = "`colablock new-config` writes a config" if is_text else "Save it as UTF-8"
        if isinstance(error, FileNotFoundError) and (meant := nearest_beside(path)):
            hint = f"did you mean `{path.with_name(meant)}`?"
        raise NotFound(f"cannot read the config `{path}`: {reason}", hint=hint) from error
    try:
        value = _load(text)
    except ValueError as error:
        raise InvalidConfig(str(path), [Fault(path="", message=str(error))]) from error
    if not isinstance(value, Mapping):
        message = "must be a mapping of keys to values"
        raise InvalidConfig(str(path), [Fault(path="", message=message)])
    return value


def _load(text: str) -> Any:
    """Return the value of *text* in YAML.  Raises ValueError with the reason, and no other exception."""
    try:
        value = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise ValueError(f"is not valid YAML: {_one_line(error)}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        # PyYAML does not check the text behind an explicit tag, such as `!!bool maybe`.
        raise ValueError("is not valid YAML: a value does not fit its tag") from error
    if not _is_small(value):
        raise ValueError("has too many values")
    return value


def _is_small(value: object) -> bool:
    """Whether *value* has few enough values, with those of each alias (``*name``) counted again.

    Raises ValueError for a value that can neither be shown nor written: a number of thousands of
    digits, half a surrogate pair.
    """
    level, count = [value], 0
    while level and count <= CONFIG_VALUES:
        one = level.pop()
        count += 1
        if isinstance(one, Mapping):
            level += one.keys()
            level += one.values()
        elif isinstance(one, (list, tuple, set)):
            level += one
        elif isinstance(one, int) and one.bit_length() > DIGITS:
            raise ValueError("has a number of too many digits")
        elif isinstance(one, str):
            try:
                # A lone surrogate is allowed if it stands for a byte of a path (PEP 383).
                one.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise ValueError("has half a surrogate pair, which is not text") from error
    return count <= CONFIG_VALUES


def yaml_value(text: str) -> Any:
    """Return the value of *text* in YAML, such as a number or a list; invalid YAML is returned as it is."""
    try:
        return _load(text)
    except ValueError:
        return text


def values_from(pairs: Iterable[str]) -> dict[str, Any]:
    """Return the values of ``key=value`` pairs, read as YAML.  Raises InvalidInput."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InvalidInput(f"`--set {pair}` has no value: write `--set key=value`")
        found[key.strip()] = yaml_value(value)
    return found


def config_from(value: object, *, source: str = "", passes_through: bool = False) -> TrainConfig:
    """Return the config with the keys and values of a mapping.

    With *passes_through*, unknown keys are kept for the runner (axolotl); otherwise they are
    faults.  Raises InvalidConfig with every fault at once.
    """
    if not isinstance(value, Mapping):
        raise InvalidConfig(source, [Fault(path="", message="must be a mapping of keys to values")])
    reading = _ConfigReader()
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
            hint = _HINTS.get(str(key)) or near(str(key), known, likeness=_SLIP)
            reading.fault(str(key), "unknown key", hint=hint)
    for key in ("base_model", "datasets"):
        if not found.get(key) and not any(fault.path.startswith(key) for fault in reading.faults):
            reading.fault(key, "is missing")
    if reading.faults:
        raise InvalidConfig(source, reading.faults)
    return TrainConfig(**found, extra=extra)


def config_to(config: TrainConfig) -> dict[str, Any]:
    """Return *config* as a mapping that `config_from` reads, without unset keys."""
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
        elif value is not None and value != {}:
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@dataclass(slots=True)
class _ConfigReader:
    """Converts plain values to typed ones, and collects the faults."""

    faults: list[Fault] = field(default_factory=list)

    def fault(self, path: str, message: str, *, hint: str | None = None) -> None:
        self.faults.append(Fault(path=path, message=message, hint=hint))

    def value(self, kind: Any, key: str, given: Any) -> Any:
        """Return *given* converted for the field *key* with the annotation *kind*."""
        if key == "datasets":
            return tuple(self._sources(given))
        kind = str(kind)
        if kind.startswith("Mapping"):
            return self._mapping(key, given)
        if kind.startswith("Adapter"):
            return self._choice(Adapter, key, given)
        if kind.startswith("tuple[MetricsTarget"):
            return tuple(self._choice(MetricsTarget, key, one) for one in _listed(given) if one != "none")
        if kind.startswith("tuple[str"):
            listed = [one for one in _listed(given) if one != _ALL_LINEAR]
            return tuple(self._text(f"{key}[{at}]", one) for at, one in enumerate(listed))
        if kind.startswith("str"):
            return self._text(key, given)
        if kind.startswith("bool"):
            if not isinstance(given, bool):
                self.fault(key, f"is {given!r}, but must be `true` or `false`")
            return given
        return self._number(key, given, whole=kind.startswith("int"))

    def _number(self, key: str, given: Any, *, whole: bool) -> Any:
        if isinstance(given, str):  # YAML 1.1 reads `2e-4` as a string
            with suppress(ValueError):
                given = float(given)
        fits = isinstance(given, (int, float)) and not isinstance(given, bool)
        if not fits or (whole and isinstance(given, float) and not given.is_integer()):
            self.fault(key, f"is {given!r}, but must be a {'whole ' if whole else ''}number")
            return given
        lowest, highest = RANGES[key]
        if not lowest <= given <= highest:
            self.fault(key, f"is {given!r}, but must be between {lowest:,} and {highest:,}")
            return given
        return int(given) if whole else float(given)

    def plain(self, key: str, given: Any) -> Any:
        """Return the value of an unknown key, which has to be valid in JSON."""
        try:
            json.dumps(given, sort_keys=True)
        except (TypeError, ValueError):
            self.fault(key, "is not a value of JSON", hint="put it in quotes if it is a date")
        return given

    def _mapping(self, key: str, given: Any) -> Mapping[str, Any]:
        if not isinstance(given, Mapping):
            self.fault(key, f"is {given!r}, but must be a mapping of keys to values")
            return {}
        return {str(name): self.plain(f"{key}.{name}", value) for name, value in given.items()}

    def _text(self, key: str, given: Any) -> str:
        if not isinstance(given, str) or not given:
            self.fault(key, f"is {given!r}, but must be a non-empty string")
        return str(given)

    def _choice(self, kind: type[C], key: str, given: Any) -> C | None:
        try:
            return kind(given)
        except ValueError:
            choices = ", ".join(f"`{one.value}`" for one in kind)
            self.fault(key, f"is {given!r}, but must be one of {choices}")
            return None

    def _sources(self, given: Any) -> Iterator[DataSource]:
        keys = {"path": "path", "type": "form", "split": "split", "name": "name"}
        for at, one in enumerate(_listed(given)):
            where = f"datasets[{at}]"
            if isinstance(one, str):
                yield DataSource(path=one)
            elif not isinstance(one, Mapping):
                self.fault(where, f"is {one!r}, but must be a path or a mapping")
            elif not isinstance(one.get("path"), str) or not one["path"]:
                self.fault(f"{where}.path", "is missing")
            else:
                for key in one.keys() - keys.keys():
                    hint = near(str(key), list(keys)) or f"the keys are {', '.join(keys)}"
                    self.fault(f"{where}.{key}", "unknown key", hint=hint)
                found = {
                    keys[key]: str(value) for key, value in one.items() if key in keys and value is not None
                }
                form = found.pop("form", None)
                kind = self._choice(DataFormat, f"{where}.type", form) if form is not None else None
                yield DataSource(form=kind, **found)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
