"""The page of the training config, from its class and from what axolotl is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from tables import NOTICE, table

from colablock.training.chat_templates import TEMPLATES
from colablock.training.new_config import KEY_EXAMPLES, KEY_HELP
from colablock.training.runs.config import RANGES, Adapter, DataFormat, DataSource, MetricsTarget, TrainConfig
from colablock.training.runs.folder import RunFolder
from colablock.training.runs.runners import RunDecisions, axolotl_config

CONFIG_HEAD = """\
# The training config

A training config is one YAML file with the model, the data and the settings of a run. Its keys are a subset
of those of axolotl, and mean the same with every runner. `colablock new-config` writes a config with a
comment for every key, sized for a card. `colablock train NAME --config FILE` runs it.

Every key can also be set with `--set KEY=VALUE`, or in Python with `colablock.train(NAME, KEY=VALUE)`.
These values take precedence over the file. `--model` is short for `base_model`, and `--dataset` for
`datasets`.

```yaml
base_model: Qwen/Qwen2.5-1.5B
datasets:
  - path: data.jsonl
sequence_len: 1024
num_epochs: 2
```

All faults of a config are reported at once, each with its path, and the command ends with exit code 2. An
unknown key is a fault, unless the runner is axolotl, which then gets the key. There is no key for the
precision, because it follows from the card, and none for 4 bits, because it follows from `adapter`.

## Keys
"""
CONFIG_DATASETS = """\
## `datasets`

A list. Each entry is a path, a name on the hub, or a mapping with these keys:

| key | value | meaning |
| --- | --- | --- |
| `path` | text; required | a file, a folder (also of `save_to_disk`), or a name on the hub |
| `type` | {forms} | the form of a row; default: determined by its columns |
| `split` | text; default `train` | the split, also a slice such as `train[:10%]`; a file has only `train` |
| `name` | text | the configuration of a dataset on the hub |

| form | columns | what counts for the loss |
| --- | --- | --- |
| `text` | `text` | all of it |
| `completion` | `prompt`, `completion`: texts, or lists of messages | the completion |
| `messages` | `messages` or `conversations`; `tools`, `system` if there | the messages of the assistant |
| `alpaca` | `instruction`, `output`; `input`, `system`, `history` if there | the outputs |
| `input_output` | `segments`: a list of objects with `text` and `label` | the segments with `label: true` |

Files are JSON lines (`.jsonl`, `.ndjson`), JSON, CSV, TSV, Parquet, or text whose paragraphs are rows. All
but Parquet may be compressed (`.gz`). Every cell of a table is text. If `;`, tabs or `|` separate
the cells of a CSV file, it is read so, with a note.

A message has `role` and `content`, or `from` and `value`. Its `tool_calls` are learnt with it. With
`weight: 0` or `train: false` it is not learnt. Contents of several parts are joined if all are text. Rows
that `label: false` marks as bad are left out. Columns that are not used are named before the run.

`type: completion` is the form of this table in a config of ours. In a config written for axolotl it is
`text`, since it means raw text there, and a note says so. A config counts as written for axolotl if it
has `load_in_4bit`, `load_in_8bit`, `strict`, `bf16`, `dataset_prepared_path` or `saves_per_epoch`, or more
than three other keys that only axolotl has.

If there are columns of several forms, the first of `messages`, `completion`, `alpaca`, `input_output`,
`text` is used. With `train_on_inputs: true`, everything counts for the loss. The token that ends a text is
added and trained on.
In `messages`, the chat template ends each turn, and the end of a turn of the assistant is trained on.
In `input_output`, no token is added: a segment has the special tokens that the model needs in its text.

## `chat_template`

- `tokenizer`, or nothing: the template of the model's tokenizer. `tokenizer_default_fallback_NAME` names
  one for a tokenizer without a template.
- A name: {names}. axolotl's other names are looked up in the installed axolotl.
- A file, such as `chat_template.jinja`.
- The text of a template, which has a Jinja tag.
"""
CONFIG_AXOLOTL = """\
## Keys of axolotl

The runners `trl` and `unsloth` get the values as fields of trl's `SFTConfig` and of peft's `LoraConfig`. The
runner `axolotl` reads `config.yaml` in the run folder, which contains these keys:

"""
CONFIG_DECIDED = """\
A dash means that axolotl gets no key. Such a key affects the tokens, which are made before, the location of
files, or a value in the next table. These values follow from the card and the data:

"""
CONFIG_FIXED = """\
These keys always have the same value, so that the defaults of a version have no effect:

"""
CONFIG_TAIL = """\
Other keys of axolotl in the config are added last and take precedence, so most of these values can be
changed. `sample_packing: true` applies only with flash attention: with another attention, the tokens of one
row would see those of another.

## Keys of Unsloth

The runner `unsloth` honours the same keys as `trl`. These go to Unsloth's `FastLanguageModel` as well:

| key | argument |
| --- | --- |
| `base_model` | `model_name`, with `use_exact_model_name` |
| `revision` | `revision` |
| `adapter` | `load_in_4bit` |
| `sequence_len` | `max_seq_length` |
| `gradient_checkpointing` | `use_gradient_checkpointing`: `true`, `false`, or `unsloth` |
| `lora_r`, `lora_alpha`, `lora_dropout` | `r`, `lora_alpha`, `lora_dropout` |
| `lora_target_modules` | `target_modules` |
| `seed` | `random_state` |

Without `use_exact_model_name`, Unsloth would load one of its own uploads in place of a model that it knows.
`gradient_checkpointing: unsloth` moves activations to the memory of the machine until they are needed. Rows,
labels and batches are those of every runner: rows are padded, and neither packed nor joined. Unsloth's
tokenizer, its chat templates and its change of untrained embeddings are not used.

## Configs of axolotl

A config that was written for axolotl can be used as it is, with every runner:

```sh
colablock train qlora-2026 --config examples/llama-3/qlora-1b.yml
```

- A key that agrees with what colablock does anyway is accepted: `load_in_4bit: true` beside `adapter:
  qlora`, `bf16: auto`, `strict: false`, an empty key.
- Types of datasets are mapped: `chat_template` and `sharegpt` to `messages`, `alpaca` and
  `input_output` to our forms of these names, `completion` to `text` (see [`datasets`](#datasets)).
  `field_messages`, `message_property_mappings` and others are accepted if they describe rows that colablock
  reads.
- With the runner `axolotl`, keys that axolotl knows are passed on. Data that colablock does not read (other
  prompt formats, images, settings of tokens) are left to axolotl: preflight then shows no row of them.
- With the runners `trl` and `unsloth`, what trl does not do is a note: `not as written: sample_packing:
  true: rows are not packed`. `--strict` refuses such a config.
- The defaults are those of axolotl where they differ: `gradient_accumulation_steps: 1`, `max_grad_norm:
  1.0`, `sequence_len: 512`.

Training of all weights, on preferences, or on a stream of text is refused.

`tools/count_configs.py` counts which configs of a folder each runner accepts.
"""
BEYOND = 10_000_000  # an upper bound that is there for slips of the pen only
DECIDED: Mapping[str, Mapping[str, Any]] = {
    "the precision": {"precision": "bf16"},
    "the precision, on a card before 8.0": {"precision": "fp16"},
    "the attention": {"attention": "sdpa"},
    "the attention, if flash attention is available": {"attention": "flash_attention_2"},
    "no card": {"has_card": False},
    "a sharded model": {"is_sharded": True},
    "the steps of `warmup_ratio`": {"warmup_steps": 2},
    "a tokenizer without a padding token": {"pads_with_eos": True, "eos_token": "d"},
}


def config_page() -> str:
    """Return the page of the training config, in the order of its class."""
    keys = [one for one in fields(TrainConfig) if one.name != "extra"]
    forms = ", ".join(f"`{form.value}`" for form in DataFormat)
    told, decided, fixed = axolotl_keys(keys)
    parts = [
        NOTICE,
        CONFIG_HEAD,
        table("key", "value", "default", "meaning", rows=map(config_row, keys)),
        CONFIG_DATASETS.format(forms=forms, names=", ".join(f"`{name}`" for name in TEMPLATES)),
        CONFIG_AXOLOTL + table("key", "key of axolotl", rows=told),
        CONFIG_DECIDED + table("value", "key of axolotl", rows=decided),
        CONFIG_FIXED + table("key of axolotl", "value", rows=fixed),
        CONFIG_TAIL,
    ]
    return "\n".join(parts)


def config_row(key: Field[Any]) -> tuple[str, str, str, str]:
    """Return one key of the training config as a row."""
    return f"`{key.name}`", taken_by(key), default_of(key), KEY_HELP[key.name]


def taken_by(key: Field[Any]) -> str:
    """Return which values a key takes, in words."""
    kind = str(key.type).removesuffix(" | None")
    choices: dict[str, type[Enum]] = {"Adapter": Adapter, "tuple[MetricsTarget, ...]": MetricsTarget}
    if kind in choices:
        shown = ", ".join(f"`{one.value}`" for one in choices[kind])
        return f"a list of {shown}" if kind.startswith("tuple") else f"one of {shown}"
    words = {
        "str": "text",
        "bool": "`true` or `false`",
        "int": "whole number",
        "float": "number",
        "tuple[str, ...]": "a list of texts",
        "Mapping[str, Any]": "a mapping",
        "tuple[DataSource, ...]": "a list, see below",
    }[kind]
    return words + (f", {in_figures(RANGES[key.name])}" if key.name in RANGES else "")


def in_figures(bounds: tuple[float, float]) -> str:
    """Return a range in words: what is beyond every use is no bound that anybody needs to read."""
    lowest, highest = bounds
    return f"at least {lowest:,}" if highest >= BEYOND else f"{lowest:,} to {highest:,}".replace(".0", "")


def default_of(key: Field[Any]) -> str:
    """Return what counts where a key is left out."""
    value = key.default
    if value is MISSING and key.default_factory is MISSING:
        return "required"
    if value is None or value == () or key.default_factory is not MISSING:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value.value}`" if isinstance(value, Enum) else f"`{value}`"


def axolotl_keys(
    keys: Iterable[Field[Any]],
) -> tuple[Iterator[tuple[str, str]], Iterator[tuple[str, str]], Iterator[tuple[str, str]]]:
    """Return which of axolotl's keys follow from each of ours, which from what is decided, and the rest.

    One value is changed at a time, and what axolotl is told is compared.
    """
    folder = RunFolder(Path("FOLDER"))
    config = TrainConfig(
        base_model="a",
        datasets=(DataSource(path="b"),),
        report_to=tuple(MetricsTarget),
        val_set_size=0.1,
    )
    decided = RunDecisions(
        precision="fp32", dtype="float32", attention="eager", has_card=True, warmup_steps=1, total_steps=100
    )
    plain = axolotl_config(config, decided, folder)

    def differing(changed: Mapping[str, Any]) -> list[str]:
        return [name for name in {**plain, **changed} if plain.get(name) != changed.get(name)]

    ours = {
        key.name: differing(axolotl_config(replace(config, **{key.name: other(key)}), decided, folder))
        for key in keys
    }
    theirs = {
        words: differing(axolotl_config(config, replace(decided, **changes), folder))
        for words, changes in DECIDED.items()
    }
    followed = {name for names in (*ours.values(), *theirs.values()) for name in names}
    rest = {name: value for name, value in plain.items() if name not in followed}

    def row(item: tuple[str, list[str]]) -> tuple[str, str]:
        return item[0], ", ".join(f"`{name}`" for name in item[1]) or "-"

    told = {f"`{name}`": names for name, names in ours.items()}
    return (
        map(row, told.items()),
        map(row, theirs.items()),
        ((f"`{name}`", f"`{in_yaml(value)}`") for name, value in rest.items()),
    )


def other(key: Field[Any]) -> Any:
    """Return a value of *key* that is not its default."""
    value = KEY_EXAMPLES.get(key.name, key.default)
    if key.name == "report_to":
        return ()
    if isinstance(value, Adapter):
        return Adapter.LORA
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 0.5 if isinstance(value, float) else value + 1
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list):
        return tuple(value)
    return (DataSource(path="c"),) if key.name == "datasets" else "c"


def in_yaml(value: object) -> str:
    """Return a plain value as YAML has it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
