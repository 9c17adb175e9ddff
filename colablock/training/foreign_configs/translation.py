"""Read configs that were written for axolotl, and name the keys of trl, transformers and peft.

A key that agrees with what colablock does anyway is dropped.  A key of axolotl goes to axolotl if
that is the runner.  What a runner cannot do as the config says is told, with what it does instead.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from colablock._common.fs import expanded
from colablock._common.text import near
from colablock.errors import Fault, InvalidInput
from colablock.training.runs.config import OWN_DATA, DataFormat, TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Translation", "translate"]

_TABLE = Path(__file__).with_name("keys.toml")
_SHOWN = 60  # characters of a value in a note
_ATTENTION = (
    "attn_implementation",
    "flash_attention",
    "sdp_attention",
    "xformers_attention",
    "eager_attention",
)
_SAME_ATTENTION = re.compile(
    r"flash_attention_[23]|sdpa|eager|xformers|flex_attention|kernels-community/.+|True"
)
_PRECISION = ("bf16", "fp16", "bfloat16", "float16", "float32", "fp8")
#: Keys that say what is trained, and that change with it.
_OTHER_TRAINING = ("rl", "reward_model", "process_reward_model", "pretraining_dataset", "trl", "kd_trainer")
#: Arguments of the trainer and of the adapter that the scripts for trl and Unsloth pass on.
_PASSED_BY_TRL = {
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "adam_eps": "adam_epsilon",
    "lr_scheduler_kwargs": "lr_scheduler_kwargs",
    "neftune_noise_alpha": "neftune_noise_alpha",
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "peft_use_dora": "peft_use_dora",
    "peft_use_rslora": "peft_use_rslora",
    "tf32": "tf32",
}
#: The defaults of axolotl where ours are others.
_AXOLOTL_DEFAULTS = {"sequence_len": 512, "gradient_accumulation_steps": 1, "max_grad_norm": 1.0}
_FORMS = {
    "alpaca": DataFormat.ALPACA,
    "chat_template": DataFormat.MESSAGES,
    "completion": DataFormat.TEXT,
    "input_output": DataFormat.INPUT_OUTPUT,
    "messages": DataFormat.MESSAGES,
    "sharegpt": DataFormat.MESSAGES,
    "text": DataFormat.TEXT,
}
_REMOTE_CODE = "trust_remote_code"
#: Types of datasets that are ours, and mean another thing to axolotl, or nothing.
_OUR_FORMS = ("completion", "messages", "text")
_SEED = next(one.default for one in fields(TrainConfig) if one.name == "seed")
_READERS = ("json", "csv", "parquet")  # names of `datasets` for files of a format
_TEMPLATE = "tokenizer_default"  # axolotl's name of the template without `chat_template`
_FEW = 3  # keys of axolotl that a config of ours may have
#: Keys that every config of axolotl has, and ours do not need.
_MARKS = ("load_in_4bit", "load_in_8bit", "strict", "bf16", "dataset_prepared_path", "saves_per_epoch")
_OF_DATA = ("path", "type", "split", "name")
#: Settings of the data, which axolotl gets beside data that it reads itself.
_DATA_SETTINGS = (
    "chat_template",
    "chat_template_jinja",
    "processor_type",
    "processor_kwargs",
    "skip_prepare_dataset",
    "remove_unused_columns",
    "image_size",
    "image_resize_algorithm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A config in colablock's keys.

    *values* are for `config_from`.  *extra* are further keys for the runner.  *instead* has the
    settings that are not done as written, each with what is done instead.
    """

    values: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    instead: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


def translate(given: Mapping[Any, Any], runner: str) -> Translation:
    """Return the keys and values of a config file, and of arguments, in colablock's keys.

    A config with colablock's own keys is returned as it is; one of colablock with a few keys of
    axolotl keeps our defaults.
    """
    reading = _Translator(dict(given), runner)
    reading.values = _without_remote_code(reading.values, "", reading.tell)
    reading.offloading()
    reading.sharding()
    if not reading.foreign:
        reading.unknown_keys()
        return reading.done()
    reading.training()
    reading.precision()
    reading.adapter()
    reading.batch()
    reading.schedule()
    reading.reports()
    reading.data()
    reading.rest()
    return reading.done()


@cache
def _table() -> Mapping[str, Any]:
    return tomllib.loads(_TABLE.read_text(encoding="utf-8"))


@cache
def _names(kind: str) -> frozenset[str]:
    return frozenset(_table()["names"][kind].split())


@cache
def _own_names() -> frozenset[str]:
    return frozenset(one.name for one in fields(TrainConfig) if one.name != "extra")


# What FSDP 1 calls the values of `reshard_after_forward`, and ways to shard that FSDP 2 has no value for.
_RESHARDS = {"full_shard": True, "true": True, "shard_grad_op": False, "false": False}
_OTHER_SHARDS = ("hybrid_shard", "hybrid_shard_zero2", "no_shard")


def _asks_nothing(value: object, key: str = "") -> bool:
    """Whether the value of *key* asks for nothing that a trainer does not do anyway."""
    if value is False or (value == 0 and isinstance(value, (int, float))):
        return key not in _names("on_by_default") and key not in _names("not_zero")
    return value is None or value in ("", [], {})


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _without_remote_code(value: Any, at: str, tell: Callable[[str, object, str], None]) -> Any:
    """Return *value*, at the path *at* of a config, without what would run code of a repository."""
    if isinstance(value, Mapping):
        kept = {}
        for key, one in value.items():
            path = f"{at}.{key}" if at else str(key)
            if _REMOTE_CODE not in str(key).replace("-", "_"):
                kept[key] = _without_remote_code(one, path, tell)
            elif not _asks_nothing(one):
                tell(path, one, _table()["instead"][_REMOTE_CODE])
        return kept
    if isinstance(value, (list, tuple)):
        return [_without_remote_code(one, f"{at}[{number}]", tell) for number, one in enumerate(value)]
    return value


def _only_file(path: object, files: object) -> str | None:
    """Return the file that `data_files` names in a local folder, or for a reader of files; else None."""
    listed = [files] if isinstance(files, str) else files
    if not isinstance(path, str) or not isinstance(listed, list) or len(listed) != 1:
        return None
    try:
        folder = Path() if path in _READERS else Path(path)
        if (expanded(str(folder), "a dataset") / str(listed[0])).is_file():
            return str(folder / str(listed[0]))
    except (OSError, ValueError, InvalidInput):  # a name that no file can have, an unknown user
        pass
    return None


class _Translator:
    """Takes the keys of axolotl out of *values*, one subject after the other."""

    def __init__(self, values: dict[Any, Any], runner: str) -> None:
        self.values = {key: value for key, value in values.items() if value is not None or key == "adapter"}
        self.runner = runner
        self.extra: dict[str, Any] = {}
        self.instead: list[str] = []
        self.faults: list[Fault] = []
        self.foreign = [key for key in values if key in _names("axolotl")]
        # Whether all of it was written for axolotl, so that its defaults apply.
        self.is_of_axolotl = len(self.foreign) > _FEW or any(key in _MARKS for key in self.foreign)

    def done(self) -> Translation:
        return Translation(
            values=self.values, extra=self.extra, instead=tuple(self.instead), faults=tuple(self.faults)
        )

    def take(self, key: str) -> Any:
        """Return the value of *key* and leave it out; None if it is not there or asks for nothing."""
        value = self.values.pop(key, None)
        return None if _asks_nothing(value) else value

    def tell(self, key: str, value: object, words: str) -> None:
        shown = value if isinstance(value, str) else str(value).lower() if value is True else repr(value)
        cut = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        self.instead.append(f"`{key}: {cut}`: {words}")

    @property
    def is_axolotl(self) -> bool:
        return self.runner == "axolotl"

    def offloading(self) -> None:
        """Read Unsloth's value of `gradient_checkpointing`."""
        if self.runner == "unsloth" and self.values.get("gradient_checkpointing") == "unsloth":
            self.values["gradient_checkpointing"] = True
            self.extra["unsloth_offloads"] = True

    def sharding(self) -> None:
        """Read how axolotl would spread the model over cards; the runner trl does it with FSDP 2."""
        if self.is_axolotl:
            return
        if (engine := self.take("deepspeed")) is not None:
            message = f"is {engine!r}" if isinstance(engine, str) else "is set"
            hint = "remove it: a model that no card holds is sharded with FSDP; axolotl has DeepSpeed"
            words = f"{message}, and the runner {self.runner} does not use DeepSpeed"
            self.faults.append(Fault(path="deepspeed", message=words, hint=hint))
        if self.runner != "trl":
            for key in ("fsdp", "fsdp_config", "fsdp_version"):
                if (value := self.take(key)) is not None:
                    self.tell(key, value, _table()["instead"]["fsdp"])
            return
        given = self.values.get("fsdp_config") or {}
        if not isinstance(given, Mapping):
            return  # which is a fault
        strategies = self.take("fsdp")
        named = strategies.split() if isinstance(strategies, str) else strategies
        asked = {str(key).removeprefix("fsdp_"): value for key, value in given.items()}
        for name in named if isinstance(named, list) else ():
            if name == "offload":
                asked.setdefault("offload_params", True)
            elif name != "auto_wrap":
                asked.setdefault("reshard_after_forward", name)
        found = {key: self._shard_key(key, value) for key, value in asked.items()}
        found = {key: value for key, value in found.items() if value is not None}
        if asked or strategies:
            self.values["fsdp_config"] = {"reshard_after_forward": True, **found}
        if self.values.get("fsdp_version") == 1 or asked.get("version") == 1:
            self.values.pop("fsdp_version", None)
            self.tell("fsdp_version", 1, "FSDP 2 shards the model")

    def _shard_key(self, key: str, value: object) -> Any:
        """Return the value of a key of `fsdp_config` if it is honoured; else None, and tell what is done."""
        path = f"fsdp_config.{key}"
        if key == "reshard_after_forward" and isinstance(value, str):  # as FSDP 1 names it
            if value.lower() in _OTHER_SHARDS:
                self.tell(path, value, _table()["shards"]["sharding_strategy"]["instead"])
                value = True
            value = _RESHARDS.get(value.lower(), value) if isinstance(value, str) else value
        if key in ("reshard_after_forward", "activation_checkpointing"):
            if not isinstance(value, bool):
                self.faults.append(
                    Fault(path=path, message=f"is {value!r}, but must be `true` or `false`", hint=None)
                )
            elif key == "activation_checkpointing":
                self.values["gradient_checkpointing"] = value or self.values.get(
                    "gradient_checkpointing", False
                )
            return value if key == "reshard_after_forward" else None
        if key == "transformer_layer_cls_to_wrap":
            if isinstance(value, str) or (isinstance(value, list) and all(map(_is_text, value))):
                return value
            message = f"is {value!r}, but must be a name of a class, or a list of them"
            self.faults.append(Fault(path=path, message=message, hint=None))
            return None
        shards: Mapping[str, Any] = _table()["shards"]
        if key not in shards:
            hint = near(key, [*shards, "reshard_after_forward", "transformer_layer_cls_to_wrap"])
            self.faults.append(Fault(path=path, message="unknown key", hint=hint))
        elif not _asks_nothing(value) and value not in shards[key]["usual"]:
            self.tell(path, value, shards[key]["instead"])
        return None

    def training(self) -> None:
        """Refuse what is no supervised training of an adapter."""
        for key in _OTHER_TRAINING:
            if (value := self.take(key)) is not None:
                message = f"is {value!r}" if isinstance(value, (str, bool)) else "is set"
                hint = "colablock trains adapters on texts and conversations; use axolotl itself for this"
                self.faults.append(
                    Fault(path=key, message=f"{message}, which is another training", hint=hint)
                )
        if (value := self.take("resume_from_checkpoint")) is not None:
            hint = "remove it: the same call resumes from the newest valid checkpoint of `output_dir`"
            self.faults.append(Fault(path="resume_from_checkpoint", message=f"is {value!r}", hint=hint))
        if "adapter" in self.values and _asks_nothing(self.values["adapter"]):
            hint = "set `adapter: qlora` or `lora`: colablock does not train all weights of a model"
            self.faults.append(Fault(path="adapter", message="is empty", hint=hint))
        elif "adapter" not in self.values and self.is_of_axolotl:
            kind = "qlora" if self.values.get("load_in_4bit") else "lora"
            self.values["adapter"] = kind
            self.instead.append(
                f"no `adapter`: a LoRA adapter is trained (`adapter: {kind}`), not all weights"
            )
        for key, value in _AXOLOTL_DEFAULTS.items() if self.is_of_axolotl else ():
            if key != "gradient_accumulation_steps" or not self.values.get("batch_size"):
                self.values.setdefault(key, value)

    def precision(self) -> None:
        """Drop what follows from the card: precision and attention."""
        for key in _PRECISION:
            value = self.values.pop(key, None)
            if (value is False and key in ("bf16", "bfloat16")) or (
                value is True and key in ("fp16", "float16")
            ):
                if not any("precision" in one for one in self.instead):
                    self.tell(key, value, "the precision follows from the card (bf16 where it has it)")
            elif value in ("fp8", "float8") or (key in ("fp8", "float32") and value):
                self.tell(key, value, "the precision follows from the card")
        for key in _ATTENTION:
            value = self.take(key)
            if value is not None and not _SAME_ATTENTION.fullmatch(str(value)):
                self.tell(key, value, "the attention follows from the card and from what is installed")

    def adapter(self) -> None:
        """Read what says how the model is loaded and where adapters are."""
        in_4bit = self.values.pop("load_in_4bit", None)
        kind = self.values.get("adapter")
        if kind == "lora" and in_4bit is True:
            self.values["adapter"] = "qlora"
        elif kind == "qlora" and in_4bit is False:
            self.tell("load_in_4bit", False, "`adapter: qlora` loads the weights in 4 bits")
        is_linear = self.values.pop("lora_target_linear", None)
        if is_linear and (named := self.values.get("lora_target_modules")):
            self.values.pop("lora_target_modules")  # linear layers include most of those that are named
            others = [
                one
                for one in (named if isinstance(named, list) else [named])
                if str(one).rpartition(".")[2] not in _names("linear")
            ]
            if others:
                words = "`lora_target_linear: true` gives adapters to the linear layers, and to no other"
                self.tell("lora_target_modules", others, words)
        checkpointing = self.values.get("gradient_checkpointing")
        if isinstance(checkpointing, str):
            self.values["gradient_checkpointing"] = True
            self.tell(
                "gradient_checkpointing", checkpointing, "activations are recomputed, and not offloaded"
            )
        if self.values.get("gradient_checkpointing_kwargs") in (None, {"use_reentrant": False}):
            self.values.pop("gradient_checkpointing_kwargs", None)
        if (revision := self.take("revision_of_model") or self.take("model_revision")) is not None:
            self.values.setdefault("revision", revision)
        if self.values.get("base_model_config") == self.values.get("base_model"):
            self.values.pop("base_model_config", None)
        model = self.values.get("model_type")
        is_causal = isinstance(model, str) and model.endswith("ForCausalLM")
        if model == "AutoModelForCausalLM" or (is_causal and not self.is_axolotl):
            self.values.pop("model_type")
        if self.values.get("tokenizer_type") == "AutoTokenizer":
            self.values.pop("tokenizer_type")

    def batch(self) -> None:
        """Read `batch_size`, which is that of a step."""
        rows = self.take("batch_size")
        per_card = self.values.get("micro_batch_size") or 1
        if isinstance(rows, int) and isinstance(per_card, int) and per_card > 0:
            self.values.setdefault("gradient_accumulation_steps", max(1, rows // per_card))

    def schedule(self) -> None:
        """Read the steps between checkpoints and between evaluations."""
        for key, usual in (
            ("save_strategy", "save_steps"),
            ("eval_strategy", ""),
            ("evaluation_strategy", ""),
        ):
            if self.values.get(key) is False and not self.values.get(usual):
                self.values[key] = "no"  # which YAML 1.1 reads as false
        per_epoch = self.values.get("evals_per_epoch")
        if per_epoch is not None and _asks_nothing(per_epoch) and not self.values.get("eval_steps"):
            self.values.pop("evals_per_epoch")
            if self.values.get("val_set_size"):
                self.tell("evals_per_epoch", per_epoch, _table()["instead"]["evals_per_epoch"])
        for key in ("saves_per_epoch", "save_strategy"):
            if (value := self.take(key)) is not None and not self.values.get("save_steps"):
                self.tell(key, value, _table()["instead"][key])
        for key in ("eval_strategy", "evaluation_strategy"):
            value = self.take(key)
            if value is not None and value != "steps":
                self.tell(key, value, _table()["instead"]["evals_per_epoch"])
        steps = self.values.get("eval_steps")
        if isinstance(steps, float) and not steps.is_integer():
            self.values.pop("eval_steps")
            self.tell("eval_steps", steps, _table()["instead"]["evals_per_epoch"])
        if not self.values.get("lr_scheduler"):
            self.values.pop("lr_scheduler", None)

    def reports(self) -> None:
        """Read where metrics go."""
        is_off = self.values.pop("use_wandb", None) is False
        if self.values.get("wandb_project") and not is_off:
            self.values.setdefault("report_to", ["wandb"])
        if self.take("use_tensorboard") is not None:
            given = self.values.get("report_to") or []
            self.values["report_to"] = [*([given] if isinstance(given, str) else given), "tensorboard"]

    def data(self) -> None:
        """Map the forms of the datasets to ours, or leave the data to axolotl."""
        given = self.values.get("datasets")
        sources = list(given) if isinstance(given, list) else []
        self._lift_template(sources)
        mapped = [self._source(one) for one in sources if isinstance(one, Mapping)]
        others = [words for _, problems in mapped for words in problems]
        others += self._of_tokens(sources)
        images = self.take("processor_type")
        if images is not None:
            others.append(f"`processor_type: {images}`: rows may have images or audio")
        if len(mapped) != len(sources) or not mapped:
            return
        if others and self.is_axolotl:
            self._leave_data(sources, images, others)
            return
        if images is not None:
            hint = "use the runner axolotl (`--runner axolotl`), which reads such data itself"
            self.faults.append(
                Fault(
                    path="processor_type", message=f"the runner {self.runner} trains on text only", hint=hint
                )
            )
        for at, (source, problems) in enumerate(mapped):
            for words in problems:
                hint = "use the runner axolotl, or convert the data to one of our forms"
                self.faults.append(Fault(path=f"datasets[{at}]", message=words, hint=hint))
            if sources[at].get("type") == "completion" and self.is_of_axolotl:
                self.tell(f"datasets[{at}].type", "completion", "raw text, as axolotl means it")
            sources[at] = source
        self.values["datasets"] = sources
        jinja = self.take("chat_template_jinja")
        if jinja is not None and self.values.get("chat_template") in (None, "jinja"):
            self.values["chat_template"] = jinja
        self.values.pop("skip_prepare_dataset", None)

    def _of_tokens(self, sources: Sequence[Any]) -> list[str]:
        """Return the settings of tokens and rows that only axolotl does, if it can read the data itself.

        Otherwise they are told and left out: our script reads the data.
        """
        found = {
            key: value
            for key, usual in _table()["tokens"].items()
            if (value := self.values.get(key)) not in usual and not _asks_nothing(value, key)
        }
        tokens = found.get("special_tokens")
        if isinstance(tokens, Mapping) and tokens.keys() <= {"pad_token"}:
            del found["special_tokens"]  # padding is masked, whatever its token is
        if found.get("tokenizer_config") == self.values.get("base_model"):
            found.pop("tokenizer_config", None)
        if not self.is_axolotl:
            return []
        kinds = [one.get("type") if isinstance(one, Mapping) else None for one in sources]
        if kinds and all(
            kind is not None and (self.is_of_axolotl or kind not in _OUR_FORMS) for kind in kinds
        ):
            return [f"`{key}` changes the tokens or the rows" for key in found]
        for key, value in found.items():
            self.values.pop(key)
            self.tell(key, value, _table()["instead"][key])
        return []

    def _talks(self, one: object) -> bool:
        """Whether a dataset may have conversations."""
        kind = one.get("type") if isinstance(one, Mapping) else None
        if kind == "completion" and not self.is_of_axolotl:
            return True
        return kind is None or (isinstance(kind, str) and _FORMS.get(kind) is DataFormat.MESSAGES)

    def _lift_template(self, sources: Sequence[Any]) -> None:
        """Make the chat template of datasets that of the run, if all with conversations name the same."""
        named = [
            (one.get("conversation") or one.get("chat_template")) if isinstance(one, Mapping) else None
            for one in sources
            if self._talks(one)
        ]
        agree = bool(named and named[0]) and named.count(named[0]) == len(named)
        if agree and self.values.get("chat_template") is None:
            self.values["chat_template"] = named[0]

    def _source(self, one: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return a dataset in our keys, and what of it we cannot read."""
        found = {key: one[key] for key in _OF_DATA if one.get(key) is not None}
        problems = []
        kind = found.pop("type", None)
        if kind == "completion" and not self.is_of_axolotl:
            found["type"] = kind
        elif isinstance(kind, str) and kind in _FORMS:
            found["type"] = _FORMS[kind].value
        elif kind is not None:
            shown = kind if isinstance(kind, str) else "of its own"
            problems.append(f"has the type `{shown}`, which is a prompt format of axolotl")
        template = one.get("conversation") or one.get("chat_template")
        if template and self._talks(one) and template != (self.values.get("chat_template") or _TEMPLATE):
            problems.append(f"has a chat template of its own (`{template}`)")
        if (files := one.get("data_files")) is not None:
            if (file := _only_file(found.get("path"), files)) is not None:
                found["path"] = file
            else:
                problems.append("has `data_files`")
        known = (*_OF_DATA, "conversation", "chat_template", "data_files")
        for key, value in one.items():
            if key not in known and not _asks_nothing(value) and value not in _table()["usual"].get(key, ()):
                problems.append(f"has `{key}`")
        return found, problems

    def _leave_data(self, sources: Sequence[Any], images: object, why: Sequence[str]) -> None:
        """Let axolotl read the data: they are left as they are, beside the settings that are about data."""
        settings = {
            key: self.values.pop(key) for key in _DATA_SETTINGS if not _asks_nothing(self.values.get(key))
        }
        settings |= {"processor_type": images} if images is not None else {}
        self.extra[OWN_DATA] = {"datasets": [dict(one) for one in sources], **settings}
        self.values["datasets"] = [str(one.get("path") or "data") for one in sources]
        self.instead.append(f"axolotl reads the data itself, so that preflight shows no row: {why[0]}")

    def rest(self) -> None:
        """Pass on what axolotl knows; tell what trl's trainer does not do."""
        for key in [key for key in self.values if key not in _own_names()]:
            if key in ("strict", "dataset_prepared_path") or (
                key in _names("silent") and not self.is_axolotl
            ):
                self.values.pop(key)
            elif key in _names("axolotl"):
                self._one(str(key), self.values.pop(key))
        self.unknown_keys()

    def _one(self, key: str, value: Any) -> None:
        if self.is_axolotl and value is not None and value not in ("", [], {}):
            self.extra[key] = value  # false too: some keys are true by default, or follow from others
        elif _asks_nothing(value, key):
            return
        elif key in _PASSED_BY_TRL:
            self.extra[_PASSED_BY_TRL[key]] = value
        elif key == "special_tokens" and isinstance(value, Mapping) and value.keys() <= {"pad_token"}:
            return  # padding is masked, whatever its token is
        elif key == "data_seed" and value == self.values.get("seed", _SEED):
            return
        else:
            self.tell(key, value, _table()["instead"].get(key, f"{self.runner} has nothing like it"))

    def unknown_keys(self) -> None:
        """Report names of other libraries, with ours, and for trl every other unknown key."""
        renamed: Mapping[str, str] = _table()["renamed"]
        for key in [key for key in self.values if key not in _own_names()]:
            if key in renamed:
                self.values.pop(key)
                hint = f"use `{renamed[key]}`"
                self.faults.append(Fault(path=str(key), message="is a key of another library", hint=hint))
