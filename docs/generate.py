"""Write the reference pages that are made from code; ``--check`` only compares them.

The command line's page comes from its parser, the matrix file's from its schema, the training
config's from its class and from what axolotl is told, and the exit codes from the errors that carry them.
Some pages are written by hand and have tables that are made here.  Those about memory come from the code that
estimates it and from measurements, and those about speed from the results of the benchmarks; those about
packages, and the picture of the layers, from their docstrings and from the contracts of import-linter
(docs/layers.py).
The JSON schema says to editors what the matrix file's page says to people.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any

import layers
import make_notebooks
import yaml

from colablock import errors
from colablock.authoring.new import schema_text
from colablock.cli.main import build_parser
from colablock.cli.usage.parser import examples_of
from colablock.errors import ColablockError, ExitCode
from colablock.matrix.json_schema import SCHEMA_FILE
from colablock.matrix.schema import SCHEMA, Key
from colablock.training.chat_templates import TEMPLATES
from colablock.training.new_config import KEY_EXAMPLES, KEY_HELP
from colablock.training.preflight.memory import RUNNER_PROFILES, RunnerProfile, estimate
from colablock.training.runs.config import RANGES, Adapter, DataFormat, DataSource, MetricsTarget, TrainConfig
from colablock.training.runs.folder import RunFolder
from colablock.training.runs.runners import RunDecisions, axolotl_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # tests/support has the shapes that were measured
from tests.support.training import BY_HAND, SHAPES, TRL, a_config  # noqa: E402

GIB = 2**30
MEMORY_PAGE = ROOT / "docs" / "explanation" / "memory.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"
MEASURED = ROOT / "tests" / "data" / "memory-h100.toml"
SPEED_PAGE = ROOT / "docs" / "explanation" / "speed.md"
RESULTS = ROOT / "benchmarks" / "results.json"  # of benchmarks.bench and benchmarks.curves
NOTICE = "<!-- Made by docs/generate.py: change the code that it reads, then run it again. -->"

SECTIONS = {
    "": "At the top",
    "index[]": "`[[index]]`",
    "packages.<name>": "`[packages]`",
    "constraints.<name>": "`[constraints]`",
    "absent.<name>": "`[absent]`",
    "options": "`[options]`",
    "variants.<name>": "`[variants.<name>]`",
    "variants.<name>.system-requirements": "`[variants.<name>.system-requirements]`",
    "verify": "`[verify]`",
    "train": "`[train]`",
}

MATRIX_HEAD = """\
# The matrix file

A matrix is one TOML file. It contains names, versions, indexes, reasons, the projects that must be absent,
and the proofs of the result. A matrix is looked up by name in `./matrices`, in the folders of
`COLABLOCK_MATRICES`, in installed packages (entry-point group `colablock.matrices`), and among the matrices
that colablock ships. A path works wherever a name does.

All faults of a file are reported at once, each with its path. An unknown key is a fault, and a similar name
is suggested. If a file has a fault, the command ends with exit code 2 and changes nothing.

```toml
schema = 1
name = "example"
summary = "Two projects and a reason"
requires-python = ">=3.10"

[packages]
numpy = ">=2"                                         # the short form: a specifier
torch = { version = ">=2.4", why = "first with what we need" }

[absent]
torchao = { version = "<0.16", why = "peft refuses to start when an older one is importable" }

[verify]
imports = ["numpy", "torch:nn"]
```

`colablock new NAME` writes a new file in which every section is explained.

Editors that support JSON schemas for TOML (Even Better TOML in VS Code, Taplo elsewhere) complete the keys,
show their meaning and mark errors. `colablock schema --output matrices/matrix-1.schema.json` writes the
schema beside your matrices. Name it in the first line of each matrix:

```toml
#:schema ./matrix-1.schema.json
```

Below, `<name>` stands for a key that you choose. Under `[packages]` and `[constraints]`, a string is short
for a table with only `version`.

Results are kept beside the matrix: locks (`pylock.NAME--*.toml`), results of `check` (`NAME.checks.json`),
targets without a lock (`NAME.refused.json`), receipts (`NAME.receipts/`). `NAME.sources.json` is for a matrix
whose locks were made while one of its indexes could not be reached. It lists each fact about a file that no
index gave: its name, hash and requirements, with what comes *from a source*, what is *derived*, and what is
*unknown*. colablock does not read it: the locks have the hashes, and `apply` compares each wheel with them,
and its METADATA with the requirements in the lock.
"""

CLI_HEAD = """\
# The command line

`python -m colablock` is the same as `colablock`. Data is written to standard output, and everything else to
standard error. [Exit codes](exit-codes.md) are part of the public interface.
"""

EXIT_HEAD = """\
# Exit codes

Exit codes are part of the public interface, so scripts can rely on them. In Python, the same outcomes are
exceptions derived from `colablock.errors.ColablockError`. Each has an `exit_code`, a stable `reference`,
and a `hint` if something can be done about it.
"""

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
but Parquet may be compressed (`.gz`). Every cell of a table is text.

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

EXIT_MEANING = {
    ExitCode.DONE: "Success. This includes an `apply` with nothing to do.",
    ExitCode.UNMET: "The request cannot be met: no solution, a refusal, a failed check or run, or an audit"
    " that found a vulnerability. No change.",
    ExitCode.USAGE: "The command line, a matrix or another input is invalid. Nothing changed.",
    ExitCode.ROLLED_BACK: "The change failed and was rolled back. The environment is as it was before.",
    ExitCode.NOT_RESTORED: "The change failed and was not undone. The message says where the old files are.",
    ExitCode.NOT_PROVEN: "A proof failed, and the change was kept because of `--keep`; or"
    " `rollback --leave-broken` left requirements unmet.",
    ExitCode.BUG: "A bug in colablock. Please report it.",
    ExitCode.INTERRUPTED: "Interrupted from the keyboard.",
}


def cell(text: str) -> str:
    """Return *text* fit for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(*head: str, rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)


def matrix_page() -> str:
    """Return the page of the matrix file, in the order of the schema."""
    parts = [NOTICE, MATRIX_HEAD]
    unplaced = {key.section for key in SCHEMA} - SECTIONS.keys()
    if unplaced:
        raise SystemExit(f"docs/generate.py has no heading for {sorted(unplaced)}")
    for section, title in SECTIONS.items():
        keys = [key for key in SCHEMA if key.section == section]
        parts += [f"## {title}\n", table("key", "value", "meaning", rows=map(key_row, keys))]
    return "\n".join(parts)


def key_row(key: Key) -> tuple[str, str, str]:
    """Return one key as a row."""
    taken = key.type
    if key.choices:
        taken += ": " + ", ".join(f"`{choice}`" for choice in key.choices)
    if key.required:
        taken += "; required"
    elif key.default is not None:
        plain = " " in key.default or key.default == "any"
        taken += f"; default {key.default}" if plain else f"; default `{key.default}`"
    return f"`{key.name}`", taken, key.description


def cli_page() -> str:
    """Return the page of the command line, in the order of the parser."""
    commands = commands_of(build_parser())
    groups = {name: groups_of(command) for name, (command, _) in commands.items()}
    shared = {title: text for found in groups.values() for title, text in found if title == "output"}
    parts = [NOTICE, CLI_HEAD, *(f"Every command has these options:\n\n{text}" for text in shared.values())]
    for name, (command, help_text) in commands.items():
        parts += [f"## `colablock {name}`\n", f"{help_text[0].upper()}{help_text[1:]}.\n"]
        parts += [f"```text\n{usage(name, command)}\n```\n"]
        parts += [text for title, text in groups[name] if title not in shared]
        parts += [f"{command.epilog}\n"] if command.epilog else []
        examples = "\n".join(examples_of(f"colablock {name}"))
        parts += [f"```sh\n{examples}\n```\n"] if examples else []
    return "\n".join(parts)


def groups_of(command: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Return the groups of a command as tables, those that hold what must be given first."""
    found = []
    for group in command._action_groups:
        actions = [action for action in group._group_actions if "--help" not in action.option_strings]
        if actions:
            title = heading(group.title)
            must = any(not action.option_strings for action in actions)
            found.append((must, title, table(title, "meaning", rows=map(action_row, actions))))
    found.sort(key=lambda one: not one[0])
    return [(title, text) for _, title, text in found]


def commands_of(parser: argparse.ArgumentParser) -> Mapping[str, tuple[argparse.ArgumentParser, str]]:
    """Return each command with its parser and its line of help; ``env list`` is a command of its own."""
    found: dict[str, tuple[argparse.ArgumentParser, str]] = {}
    for commands in (action for action in parser._actions if isinstance(action, argparse._SubParsersAction)):
        helps = {action.dest: action.help or "" for action in commands._choices_actions}
        for name, command in commands.choices.items():
            below = {f"{name} {inner}": about for inner, about in commands_of(command).items()}
            found |= below or {name: (command, helps[name])}
    return found


def heading(title: str | None) -> str:
    """Return the name of a group of arguments; argparse's own names are for its help text."""
    names = {"positional arguments": "argument", "options": "option", "optional arguments": "option"}
    return names.get(title or "", title or "option")


def usage(name: str, command: argparse.ArgumentParser) -> str:
    """Return the shape of a command; argparse words its own differently from Python to Python."""
    actions = [action for action in command._actions if not action.option_strings]
    words = [argument_name(action) for action in actions if action.nargs != argparse.REMAINDER]
    tail = [f"-- {argument_name(action)} ..." for action in actions if action.nargs == argparse.REMAINDER]
    return " ".join(["colablock", name, "[OPTIONS]", *words, *tail])


def argument_name(action: argparse.Action) -> str:
    """Return how an argument without dashes is called."""
    return str(action.metavar or action.dest.upper())


def action_row(action: argparse.Action) -> tuple[str, str]:
    """Return one argument or option as a row."""
    if not action.option_strings:
        return f"`{argument_name(action)}`", action.help or ""
    value = ""
    if action.nargs != 0:
        value = " " + ("|".join(map(str, action.choices)) if action.choices else argument_name(action))
    return ", ".join(f"`{option}{value}`" for option in action.option_strings), action.help or ""


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


def memory_page() -> str:
    """Return the page of the memory as it is, with tables that hold."""
    measured = tomllib.loads(MEASURED.read_text(encoding="utf-8"))
    tables = {"habits": habits_table(), "by-hand": by_hand_table(measured["by-hand"])}
    tables["measured"] = measured_table(measured["measured"])
    return filled(MEMORY_PAGE, tables)


def speed_page() -> str:
    """Return the page of the speed, with the results of the benchmarks."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return filled(SPEED_PAGE, {"contests": contests_table(results), "curves": curves_table(results)})


def contests_table(results: Mapping[str, Any]) -> str:
    """Return what was measured on, and a row for each contest."""
    on = results["on"]
    where = "a real index" if on["index"] == "named" else "an index on 127.0.0.1"
    turns = sorted({len(one["ours"]) for one in results["contests"]})
    about = (
        f"On {on['date']}, with {where}, Python {on['python']} and {on['cores']} cores of a {on['machine']}"
        f" machine with a load of {on['load']}: medians of {' or '.join(map(str, turns))} turns. The rows of"
        " `apply` have an index on 127.0.0.1.\n\n"
    )

    def row(one: Mapping[str, Any]) -> tuple[str, ...]:
        ratios = [mine / other for mine, other in zip(one["ours"], one["theirs"], strict=True)]
        goal = f"{one['limit']:g} s" if one["limit"] is not None else f"{one['aim']:g}" if one["aim"] else ""
        return (
            one["about"],
            one["beside"],
            f"{median(one['ours']):.2f} / {median(one['theirs']):.2f}",
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{one['ours_processor']:.2f} / {one['theirs_processor']:.2f}",
            f"{one['ours_processor'] / one['theirs_processor']:.2f}",
            f"{one['ours_memory']:.0f} / {one['theirs_memory']:.0f}",
            goal,
        )

    head = ("what", "beside", "seconds, ours / other", "ratio", "of the turns")
    more = ("processor, s", "ratio of processor times", "memory, MiB", "goal")
    return about + table(*head, *more, rows=map(row, results["contests"]))


def curves_table(results: Mapping[str, Any]) -> str:
    """Return a row for each curve: its points, and the exponent."""

    def row(one: Mapping[str, Any]) -> tuple[str, ...]:
        points = (f"{size}: {used:.3f}" for size, used in zip(one["sizes"], one["seconds"], strict=True))
        return one["about"], ", ".join(points), f"{one['exponent']:.2f}"

    return table("what", "processor seconds by size", "exponent", rows=map(row, results["curves"]))


def filled(page: Path, tables: Mapping[str, str]) -> str:
    """Return a page that is written by hand, with each of *tables* in its marked place."""
    text = page.read_text(encoding="utf-8")
    for name, made in tables.items():
        before, opening, rest = text.partition(f"<!-- {name}: made by docs/generate.py -->\n")
        _, closing, after = rest.partition("<!-- end -->")
        if not closing:
            raise SystemExit(f"{page} has no place for the table of `{name}`")
        text = f"{before}{opening}\n{made}\n{closing}{after}"
    return text


def contributing_page() -> str:
    """Return the page for contributors, with one line for each package."""
    rows = ((f"`{package.name}`", package.summary) for package in layers.packages())
    return filled(CONTRIBUTING, {"packages": table("package", "what it is for", rows=rows)})


def architecture_page() -> str:
    """Return the page about the architecture, with what each package takes and gives."""

    def row(package: layers.Package) -> tuple[str, ...]:
        names = ", ".join(f"`{name}`" for name in package.surface if name.isidentifier())
        return f"`{package.name}`", package.takes.rstrip("."), package.gives.rstrip("."), names

    made = table("package", "in", "out", "names to import from it", rows=map(row, layers.packages()))
    return filled(ARCHITECTURE, {"packages": made})


def habits_table() -> str:
    """Return what each runner does, version by version."""

    def row(runner: str, at: int) -> tuple[str, ...]:
        profile = RUNNER_PROFILES[runner][at]
        name = f"{runner} {versions(profile, RUNNER_PROFILES[runner][at - 1] if at else None)}"
        factor = f"{profile.logits:g}{', and the head in float32' if profile.head_in_float32 else ''}"
        kept = profile.embeddings_in_float32
        cast = f"float32{'' if len(kept) > 1 else f' with {kept[0]}'}" if kept else "16 bits"
        return name, factor, tile(profile), cast, "bfloat16" if profile.half_adapters else "float32"

    rows = (row(runner, at) for runner, known in RUNNER_PROFILES.items() for at in range(len(known)))
    return table("runner", "factor", "logits at once", "embeddings", "adapters with bf16", rows=rows)


def versions(profile: RunnerProfile, newer: RunnerProfile | None) -> str:
    """Return for which versions *profile* hold."""
    since = "" if profile.since == "0" else f"from {profile.since}"
    until = f"before {newer.since}" if newer else ""
    return ", ".join(filter(None, [since, until]))


def tile(profile: RunnerProfile) -> str:
    """Return for which part of a batch logits are there at once."""
    if profile.tile is None:
        return "all"
    tokens, entries = profile.tile
    if entries:
        return f"a tile of {tokens:,} tokens × {entries:,} entries"
    share = f", or of a share of {profile.share:g} of them" if profile.share else ""
    return f"of {tokens:,} tokens{share}"


def by_hand_table(points: Iterable[Mapping[str, Any]]) -> str:
    """Return what was measured of a step, beside the estimate."""

    def row(point: Mapping[str, Any]) -> tuple[str, ...]:
        point = {"sequence_len": 2048, **point}
        found = estimate(measured_config(point), SHAPES["1B"], BY_HAND)
        sizes = (found.allocated / GIB, point["allocated"], found.total / GIB)
        return *batch(point), *(f"{size:.2f}" for size in (*sizes, point["reserved"], point["on_device"]))

    head = ("batch × tokens", "checkpointing", "allocated, estimated", "measured", "total, estimated")
    return table(*head, "reserved", "on the device", rows=map(row, points))


def measured_table(points: Sequence[Mapping[str, Any]]) -> str:
    """Return the least memory in which a run finished, beside the estimate, and how far they are apart."""
    above = []

    def row(point: Mapping[str, Any]) -> tuple[str, ...]:
        shape = replace(SHAPES[point["shape"]], vocabulary=point["vocabulary"])
        total = estimate(measured_config(point), shape, TRL).total / GIB
        above.append(total / point["smallest"] - 1)
        sizes = (f"{point['smallest']:.2f}", f"{total:.2f}", f"{above[-1]:.1%}".replace("%", " %"))
        return point["shape"], f"{point['vocabulary']:,}", *batch(point), *sizes

    head = ("model", "vocabulary", "batch × tokens", "checkpointing", "needed", "estimate", "above")
    made = table(*head, rows=map(row, points))
    least, most = (f"{share:.1%}".replace("%", " %") for share in (min(above), max(above)))
    found = f"In these {len(points)} settings the estimate was {least} to {most} above what was needed."
    return f"{made}\n{found}\n"


def measured_config(point: Mapping[str, Any]) -> TrainConfig:
    """Return the config that was measured."""
    keys = ("sequence_len", "micro_batch_size", "gradient_checkpointing")
    return a_config(**{key: point[key] for key in keys})


def batch(point: Mapping[str, Any]) -> tuple[str, str]:
    """Return the batch that was measured, and whether with checkpointing."""
    rows = f"{point['micro_batch_size']} × {point['sequence_len']:,}"
    return rows, "yes" if point["gradient_checkpointing"] else "no"


def exit_page() -> str:
    """Return the page of the exit codes, with the errors that lead to each."""

    def row(code: ExitCode) -> tuple[str, str, str]:
        return f"{int(code)}", EXIT_MEANING[code], ", ".join(f"`{kind}`" for kind in errors_of(code))

    return "\n".join([NOTICE, EXIT_HEAD, table("code", "meaning", "error", rows=map(row, ExitCode))])


def errors_of(code: ExitCode) -> list[str]:
    """Return the names of the errors that end with *code*, as the module lists them."""
    kinds = ((name, getattr(errors, name)) for name in errors.__all__)
    found = [
        (name, kind) for name, kind in kinds if inspect.isclass(kind) and issubclass(kind, ColablockError)
    ]
    return [name for name, kind in found if kind is not ColablockError and kind.exit_code is code]


def readme_page() -> str:
    """Return the README with the badges of the notebooks."""
    badges = filter(None, map(make_notebooks.badge, make_notebooks.HOSTS))
    shown = "\n".join(badges)
    return filled(ROOT / "README.md", {"badges": f"{shown}\n" if shown else ""})


MADE: Mapping[str, Callable[[], str]] = {
    "CONTRIBUTING.md": contributing_page,
    "README.md": readme_page,
    "docs/explanation/architecture.md": architecture_page,
    "docs/explanation/layers.svg": layers.picture,
    "docs/explanation/memory.md": memory_page,
    "docs/explanation/speed.md": speed_page,
    "docs/reference/cli.md": cli_page,
    "docs/reference/exit-codes.md": exit_page,
    "docs/reference/matrix.md": matrix_page,
    "docs/reference/training-config.md": config_page,
    f"matrices/{SCHEMA_FILE}": schema_text,
    **make_notebooks.notebooks(),
}


def main() -> int:
    """Write the files, or with ``--check`` name the stale ones and return 1."""
    parser = argparse.ArgumentParser(description="Write the pages and the schema that are made from code.")
    parser.add_argument("--check", action="store_true", help="only compare")
    only_check = parser.parse_args().check
    stale = 0
    for name, make in MADE.items():
        path, text = ROOT / name, make()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if not only_check:
            path.write_text(text, encoding="utf-8")
        print(f"{'stale' if only_check else 'written'}: {name}")
    if stale and only_check:
        print("hint: Run `python docs/generate.py`")
    return 1 if stale and only_check else 0


if __name__ == "__main__":
    sys.exit(main())
