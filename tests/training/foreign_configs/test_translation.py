from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from colablock.errors import InvalidConfig
from colablock.training.foreign_configs.reading import table
from colablock.training.foreign_configs.translation import translate
from colablock.training.runs.config import (
    OWN_DATA,
    Adapter,
    DataFormat,
    MetricsTarget,
    TrainConfig,
    config_from,
    config_to,
)
from colablock.training.runs.folder import RunFolder
from colablock.training.runs.runners import RunDecisions, axolotl_config
from tests.support.training import config_of

# A config as axolotl's examples are written, typed anew.
EXAMPLE = """
base_model: someone/model
model_type: AutoModelForCausalLM
tokenizer_type: AutoTokenizer
load_in_8bit: false
load_in_4bit: true
strict: false
datasets:
  - path: someone/conversations
    type: chat_template
    split: train[:20%]
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
chat_template: chatml
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
output_dir: ./outputs/out
adapter: qlora
lora_model_dir:
sequence_len: 2048
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
wandb_project:
wandb_entity:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
resume_from_checkpoint:
logging_steps: 1
attn_implementation: flash_attention_2
warmup_ratio: 0.1
weight_decay: 0.0
special_tokens:
"""
LEAST: dict[str, Any] = {"base_model": "a/b", "datasets": [{"path": "d.jsonl"}], "adapter": "qlora"}


def read(runner: str, **changed: Any) -> tuple[TrainConfig, list[str]]:
    told: list[str] = []
    values = {**yaml.safe_load(EXAMPLE), **changed}
    return config_of(None, runner=runner, values=values, tell=told.append), told


def faults(runner: str, **changed: Any) -> dict[str, tuple[str, str | None]]:
    with pytest.raises(InvalidConfig) as caught:
        read(runner, **changed)
    return {fault.path: (fault.message, fault.hint) for fault in caught.value.faults}


@pytest.mark.parametrize("runner", ["axolotl", "trl"])
def test_a_config_that_agrees_with_what_is_done_is_read_without_a_word(runner: str) -> None:
    config, told = read(runner)
    assert told == []
    passed = {"load_in_8bit": False, "pad_to_sequence_len": True, "tf32": False}
    assert config.extra == (passed if runner == "axolotl" else {})
    (source,) = config.datasets
    assert (source.path, source.form, source.split) == (
        "someone/conversations",
        DataFormat.MESSAGES,
        "train[:20%]",
    )
    assert (config.adapter, config.lora_r, config.lora_target_modules) == (Adapter.QLORA, 32, ())
    assert (config.micro_batch_size, config.gradient_accumulation_steps) == (2, 4)
    assert (config.max_grad_norm, config.warmup_ratio) == (1.0, 0.1)  # axolotl's default, and as written
    assert (config.chat_template, config.optimizer) == ("chatml", "adamw_bnb_8bit")
    assert config_from(config_to(config), passes_through=True) == config


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"adapter": "lora", "load_in_4bit": False}, {"adapter": Adapter.LORA}),
        ({"adapter": "lora", "load_in_4bit": True}, {"adapter": Adapter.QLORA}),
        ({"gradient_accumulation_steps": None, "batch_size": 8}, {"gradient_accumulation_steps": 4}),
        ({"warmup_steps": 20}, {"warmup_steps": 20}),
        ({"lora_target_modules": "all-linear", "lora_target_linear": None}, {"lora_target_modules": ()}),
        ({"lora_target_modules": ["q_proj"]}, {"lora_target_modules": ()}),  # beside lora_target_linear
        (
            {"lora_target_modules": ["q_proj"], "lora_target_linear": None},
            {"lora_target_modules": ("q_proj",)},
        ),
        ({"wandb_project": "mine"}, {"report_to": (MetricsTarget.WANDB,), "wandb_project": "mine"}),
        ({"wandb_project": "mine", "use_wandb": False}, {"report_to": ()}),
        ({"use_tensorboard": True}, {"report_to": (MetricsTarget.TENSORBOARD,)}),
        ({"revision_of_model": "v2"}, {"revision": "v2"}),
        ({"chat_template_jinja": "{{ x }}", "chat_template": "jinja"}, {"chat_template": "{{ x }}"}),
        ({"sequence_len": None}, {"sequence_len": 512}),  # axolotl's default
        ({"data_seed": 42}, {"seed": 42}),
        ({"evals_per_epoch": 0, "val_set_size": 0}, {"eval_steps": None}),
        ({"lr_scheduler": None}, {"lr_scheduler": "cosine"}),
    ],
)
@pytest.mark.parametrize("runner", ["axolotl", "trl"])
def test_keys_of_axolotl_have_their_meaning(
    runner: str, changed: dict[str, Any], expected: dict[str, Any]
) -> None:
    config, told = read(runner, **changed)
    assert {key: getattr(config, key) for key in expected} == expected
    assert told == []


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ({"type": "alpaca"}, DataFormat.ALPACA),
        ({"type": "completion", "field": "text"}, DataFormat.TEXT),
        ({"type": "input_output"}, DataFormat.INPUT_OUTPUT),
        ({"type": "sharegpt", "conversation": "chatml"}, DataFormat.MESSAGES),
        (
            {"type": "chat_template", "roles_to_train": ["assistant"], "train_on_eos": "turn"},
            DataFormat.MESSAGES,
        ),
        ({"type": None, "ds_type": "json"}, None),
        # What the script does with every row, in other words.
        ({"type": "alpaca", "field_system": "system", "field_output": "output"}, DataFormat.ALPACA),
        ({"type": "chat_template", "field_messages": "conversation"}, DataFormat.MESSAGES),
        ({"type": "chat_template", "roles_to_train": ["model", "bot"]}, DataFormat.MESSAGES),
        (
            {"type": "chat_template", "roles": {"assistant": ["model"], "tool": "observation"}},
            DataFormat.MESSAGES,
        ),
        (
            {"type": "chat_template", "message_property_mappings": {"role": "from", "content": "value"}},
            DataFormat.MESSAGES,
        ),
    ],
)
@pytest.mark.parametrize("runner", ["axolotl", "trl"])
def test_types_of_datasets_are_mapped(runner: str, source: dict[str, Any], form: DataFormat | None) -> None:
    config, _ = read(runner, datasets=[{"path": "d", **source}])
    assert [one.form for one in config.datasets] == [form]
    assert OWN_DATA not in config.extra


def test_completion_means_raw_text_only_in_a_config_of_axolotl() -> None:
    ours = {**LEAST, "datasets": [{"path": "d", "type": "completion"}], "sample_packing": True}
    config = config_of(None, runner="axolotl", values=ours)
    assert config.datasets[0].form is DataFormat.COMPLETION
    assert (config.max_grad_norm, config.extra) == (0.3, {"sample_packing": True})
    _, told = read("trl", datasets=[{"path": "d", "type": "completion"}])
    assert told == ["not as written: `datasets[0].type: completion`: raw text, as axolotl means it"]


@pytest.mark.parametrize(
    "source",
    [
        {"type": "alpaca:phi"},
        {"type": {"system_prompt": "", "field_instruction": "q", "field_output": "a"}},
        {"type": "chat_template", "field_messages": "dialogue"},
        {"type": "chat_template", "roles_to_train": ["assistant", "user"]},
        {"type": "chat_template", "drop_system_message": True},
        {"type": "chat_template", "chat_template": "llama3"},
        {"type": "completion", "field": "content"},
        {"type": "chat_template", "roles": {"user": ["customer"]}},
        {"type": "chat_template", "roles": "assistant"},
        {"type": "chat_template", "message_property_mappings": {"role": "from", "tool_calls": "calls"}},
        {"type": "chat_template", "message_field_role": ["role"]},
        {"type": "alpaca", "field_output": "answer"},
    ],
)
def test_data_that_only_axolotl_reads_are_left_to_it(source: dict[str, Any]) -> None:
    given = [{"path": "someone/rows", **source}]
    config, told = read("axolotl", datasets=given)
    assert config.extra[OWN_DATA] == {"datasets": given, "chat_template": "chatml"}
    assert [one.path for one in config.datasets] == ["someone/rows"]
    assert len(told) == 1
    assert "axolotl reads the data itself" in told[0]
    (path,) = faults("trl", datasets=given)
    assert path == "datasets[0]"


OF_TOKENS: dict[str, Any] = {
    "added_tokens_overrides": {128041: "<|im_end|>"},
    "chat_template_kwargs": {"enable_thinking": False},
    "default_system_message": "Be brief.",
    "eot_tokens": ["<|im_end|>"],
    "excess_length_strategy": "drop",
    "min_sample_len": 8,
    "special_tokens": {"eos_token": "<|im_end|>"},
    "test_datasets": [{"path": "other", "type": "alpaca"}],
    "tokenizer_config": "someone/other",
    "tokenizer_type": "LlamaTokenizer",
    "tokenizer_use_fast": False,
    "tokens": ["<|new|>"],
}


@pytest.mark.parametrize("key", OF_TOKENS)
def test_settings_of_tokens_and_rows_reach_axolotl_or_are_told(key: str) -> None:
    value = OF_TOKENS[key]
    config, told = read("axolotl", **{key: value})
    assert config.extra[key] == value
    assert config.extra[OWN_DATA]["datasets"][0]["type"] == "chat_template"
    assert len(told) == 1
    assert f"preflight shows no row: `{key}` changes" in told[0]
    for runner, more in (("trl", {}), ("axolotl", {"datasets": [{"path": "d.jsonl"}]})):
        config, told = read(runner, **{key: value}, **more)
        assert OWN_DATA not in config.extra
        assert [one.partition(": ")[2].partition(":")[0] for one in told] == [f"`{key}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("special_tokens", {"pad_token": "<pad>"}),
        ("excess_length_strategy", "truncate"),
        ("tokenizer_type", "AutoTokenizer"),
    ],
)
def test_settings_of_tokens_that_agree_leave_the_data_to_us(key: str, value: Any) -> None:
    config, told = read("axolotl", **{key: value})
    assert (OWN_DATA in config.extra, told) == (False, [])


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"datasets": [{"path": "d", "type": "alpaca", "trust_remote_code": True}]}, "datasets[0]."),
        ({"datasets": [{"path": "d", "type": "alpaca:phi", "trust_remote_code": True}]}, "datasets[0]."),
        ({"overrides_of_model_kwargs": {"trust_remote_code": True}}, "overrides_of_model_kwargs."),
        ({"test_datasets": [{"path": "d", "trust_remote_code": "yes"}]}, "test_datasets[0]."),
        ({"unknown_key": {"a": [{"trust_remote_code": True}]}}, "unknown_key.a[0]."),
    ],
)
def test_code_of_a_repository_is_never_trusted(changed: dict[str, Any], where: str) -> None:
    config, told = read("axolotl", **changed)
    assert "trust_remote_code" not in str(config)
    assert f"not as written: `{where}trust_remote_code: " in told[0]
    ours = {**LEAST, "overrides_of_model_config": {"x": {"trust_remote_code": True}}}
    assert "trust_remote_code" not in str(config_of(None, runner="axolotl", values=ours))


LLAMA = {"type": "chat_template", "chat_template": "llama3"}


@pytest.mark.parametrize(
    ("sources", "lifted"),
    [
        ([LLAMA], "llama3"),
        ([LLAMA, {"type": "sharegpt", "conversation": "llama3"}], "llama3"),
        ([LLAMA, {"type": "alpaca"}], "llama3"),
        ([{"type": "alpaca", "chat_template": "llama3"}], None),
        ([{**LLAMA, "chat_template": "tokenizer_default"}, {"type": "chat_template"}], None),
        ([LLAMA, {"type": "chat_template"}], ...),
        ([{"type": "chat_template"}, LLAMA], ...),
        ([LLAMA, {**LLAMA, "chat_template": "gemma"}], ...),
        ([LLAMA, {}], ...),
    ],
)
def test_a_template_of_datasets_is_that_of_the_run_if_it_is_that_of_all(
    sources: list[dict[str, Any]], lifted: object
) -> None:
    given = [{"path": "d", **one} for one in sources]
    if lifted is ...:
        assert read("axolotl", datasets=given, chat_template=None)[0].extra[OWN_DATA] == {"datasets": given}
        assert any(
            "has a chat template of its own" in one for one, _ in faults("trl", datasets=given).values()
        )
        return
    for runner in ("axolotl", "trl"):
        config, told = read(runner, datasets=given, chat_template=None)
        assert (config.chat_template, told) == (lifted, [])


def test_the_only_file_of_a_local_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "x.json").write_text("[]")
    for path, files, found in (
        ("rows", ["x.json"], "rows/x.json"),
        ("rows", "x.json", "rows/x.json"),
        ("json", ["rows/x.json"], "rows/x.json"),
        ("org/name", ["x.json"], None),  # on the hub
        ("rows", ["y.json"], None),
        ("rows", ["x.json", "y.json"], None),
        ("~nobody-here/rows", ["x.json"], None),
    ):
        given = [{"path": path, "type": "alpaca", "data_files": files}]
        if found is None:
            assert read("axolotl", datasets=given)[0].extra[OWN_DATA]["datasets"] == given
            assert faults("trl", datasets=given)["datasets[0]"][0] == "has `data_files`"
        else:
            assert [one.path for one in read("trl", datasets=given)[0].datasets] == [found]


@pytest.mark.parametrize("runner", ["axolotl", "trl"])
@pytest.mark.parametrize(
    ("modules", "left"),
    [
        (["q_proj", "model.layers.3.self_attn.v_proj"], None),
        (["q_proj", "lm_head", "embed_tokens"], "['lm_head', 'embed_tokens']"),
        ("lm_head", "['lm_head']"),
    ],
)
def test_layers_beside_the_linear_ones_are_told(runner: str, modules: Any, left: str | None) -> None:
    config, told = read(runner, lora_target_modules=modules)
    assert config.lora_target_modules == ()
    words = "`lora_target_linear: true` gives adapters to the linear layers, and to no other"
    assert told == ([f"not as written: `lora_target_modules: {left}`: {words}"] if left else [])


def test_rows_with_images_need_axolotl() -> None:
    config, _ = read("axolotl", processor_type="AutoProcessor", skip_prepare_dataset=True)
    assert config.extra[OWN_DATA]["processor_type"] == "AutoProcessor"
    assert config.extra[OWN_DATA]["skip_prepare_dataset"] is True
    assert "--runner axolotl" in str(faults("trl", processor_type="AutoProcessor")["processor_type"][1])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("sample_packing", True, "rows are not packed"),
        ("load_in_8bit", True, "loaded in 16 bits"),
        ("lora_modules_to_save", ["embed_tokens"], "only the adapter is trained"),
        ("special_tokens", {"eos_token": "<|im_end|>"}, "keeps its own special tokens"),
        ("plugins", ["axolotl.integrations.liger.LigerPlugin"], "no plugin is loaded"),
        ("early_stopping_patience", 3, "trains all its steps"),
        ("liger_rope", True, "trl has nothing like it"),
        ("shuffle_merged_datasets", False, "rows come in a random order"),
        ("peft_init_lora_weights", False, "begins with peft's default values"),
        ("tokenizer_use_fast", False, "the class that the model names"),
        ("dataloader_drop_last", True, "smaller batch of an epoch is trained on too"),
        ("data_seed", 7, "`seed` orders the rows"),
        ("data_seed", 0, "`seed` orders the rows"),
        ("lora_fan_in_fan_out", True, "peft follows the kind"),
        ("min_sample_len", 8, "short rows stay"),
    ],
)
def test_what_trl_does_not_do_is_told_and_refused_if_strict(key: str, value: Any, words: str) -> None:
    config, told = read("trl", **{key: value})
    assert config.extra == {}
    assert len(told) == 1
    assert told[0].startswith(f"not as written: `{key}: ")
    assert words in told[0]
    values = {**yaml.safe_load(EXAMPLE), key: value}
    with pytest.raises(InvalidConfig, match="is not done as written"):
        config_of(None, runner="trl", values=values, strict=True)
    assert read("axolotl", **{key: value})[0].extra[key] == value


@pytest.mark.parametrize("own_keys", [True, False])
def test_unsloth_moves_activations_to_memory_on_request(own_keys: bool) -> None:
    values = LEAST if own_keys else yaml.safe_load(EXAMPLE)
    told: list[str] = []
    asked = {**values, "gradient_checkpointing": "unsloth"}
    config = config_of(None, runner="unsloth", values=asked, tell=told.append)
    assert (config.gradient_checkpointing, config.extra, told) == (True, {"unsloth_offloads": True}, [])
    assert config.digest() != config_of(None, runner="unsloth", values=values).digest()
    assert config_of(None, runner="unsloth", values=values).extra == {}


def test_unsloth_reads_a_config_as_trl_does() -> None:
    assert read("unsloth") == read("trl")
    assert read("unsloth", adam_beta2=0.95)[0].extra == {"adam_beta2": 0.95}
    assert read("unsloth", liger_rope=True)[1] == [
        "not as written: `liger_rope: true`: unsloth has nothing like it"
    ]
    message, _ = faults("unsloth", processor_type="AutoProcessor")["processor_type"]
    assert message == "the runner unsloth trains on text only"


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
def test_a_key_that_asks_for_nothing_is_dropped(value: object) -> None:
    config, told = read("trl", sample_packing=value, deepspeed=value, gptq=value, liger_rope=value)
    assert (config.extra, told) == ({}, [])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("bf16", False, "`bf16: False`: the precision follows from the card"),
        ("fp16", True, "`fp16: true`: the precision follows from the card"),
        ("attn_implementation", "fp8", "`attn_implementation: fp8`: the attention follows"),
        ("gradient_checkpointing", "offload", "activations are recomputed, and not offloaded"),
        ("saves_per_epoch", 1, "checkpoints are saved by time"),
        ("trust_remote_code", True, "code from the model's repository is never run"),
        ("load_in_4bit", False, "`adapter: qlora` loads the weights in 4 bits"),
        ("eval_steps", 0.25, "about ten evaluations in all"),
        ("evals_per_epoch", 0, "about ten evaluations in all"),
        ("eval_strategy", False, "about ten evaluations in all"),
        ("save_strategy", False, "checkpoints are saved by"),
    ],
)
@pytest.mark.parametrize("runner", ["axolotl", "trl"])
def test_what_colablock_decides_is_told(runner: str, key: str, value: Any, told: str) -> None:
    config, found = read(runner, **{key: value})
    assert key not in config.extra
    assert len(found) == 1
    assert told in found[0]


@pytest.mark.parametrize("key", ["rl", "reward_model", "pretraining_dataset", "resume_from_checkpoint"])
@pytest.mark.parametrize("runner", ["axolotl", "trl"])
def test_another_training_is_refused(runner: str, key: str) -> None:
    assert list(faults(runner, **{key: "x"})) == [key]


def test_training_all_weights_is_refused_and_a_missing_adapter_told() -> None:
    assert faults("axolotl", adapter=None)["adapter"][0] == "is empty"
    values = yaml.safe_load(EXAMPLE)
    del values["adapter"]
    told: list[str] = []
    config = config_of(None, runner="trl", values={**values, "load_in_4bit": False}, tell=told.append)
    assert config.adapter is Adapter.LORA
    assert "no `adapter`" in told[0]


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("max_seq_length", "sequence_len"),
        ("model_name_or_path", "base_model"),
        ("per_device_train_batch_size", "micro_batch_size"),
        ("num_train_epochs", "num_epochs"),
        ("lr_scheduler_type", "lr_scheduler"),
        ("optim", "optimizer"),
        ("r", "lora_r"),
        ("target_modules", "lora_target_modules"),
        ("dataset_name", "datasets"),
    ],
)
@pytest.mark.parametrize("runner", ["axolotl", "trl"])
def test_names_of_trl_and_peft_lead_to_ours(runner: str, key: str, ours: str) -> None:
    assert ours in {one.name for one in fields(TrainConfig)}
    for values in (LEAST, yaml.safe_load(EXAMPLE)):
        with pytest.raises(InvalidConfig) as caught:
            config_of(None, runner=runner, values={**values, key: "x"})
        assert {fault.path: fault.hint for fault in caught.value.faults} == {key: f"use `{ours}`"}


@pytest.mark.parametrize("runner", ["axolotl", "trl"])
@pytest.mark.parametrize("value", [True, False])
def test_checkpoints_keep_their_optimizer(runner: str, *, value: bool) -> None:
    """The trainer would go on with an empty one."""
    config, told = read(runner, save_only_model=value)
    assert not config.extra.get("save_only_model")
    assert len([one for one in told if "`save_only_model: true`" in one]) == int(value)


@pytest.mark.parametrize("key", ["deep_speed", "hub_model_ids", "eot_tokenz", "qqqq"])
def test_a_hint_is_given_only_for_a_slip(key: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config_of(None, runner="trl", values={**LEAST, key: 1})
    assert [(fault.path, fault.hint) for fault in caught.value.faults] == [(key, None)]


def test_false_and_zero_reach_axolotl_but_no_empty_value() -> None:
    off = {"shuffle_merged_datasets": False, "lora_mlp_kernel": False, "dataloader_num_workers": 0}
    config, told = read("axolotl", **off, plugins=[], deepspeed="")
    assert (config.extra.items() >= off.items(), told) == (True, [])
    assert not config.extra.keys() & {"plugins", "deepspeed"}


def test_arguments_of_the_trainer_reach_trl() -> None:
    assert read("trl", adam_beta1=0.0)[0].extra == {"adam_beta1": 0.0}
    config, told = read("trl", adam_beta2=0.95, adam_eps=1e-5, peft_use_rslora=True, tf32=True)
    assert told == []
    assert config.extra == {"adam_beta2": 0.95, "adam_epsilon": 1e-5, "peft_use_rslora": True, "tf32": True}


@pytest.mark.parametrize("value", [[], 3, None, "x", [1], [[]], {"a": 1}])
@pytest.mark.parametrize(
    "key", ["datasets", "lora_target_modules", "batch_size", "eval_steps", "wandb_project"]
)
def test_values_of_any_type_are_faults_or_read(key: str, value: Any) -> None:
    for runner in ("axolotl", "trl"):
        with suppress(InvalidConfig):
            read(runner, **{key: value})
        assert translate({**yaml.safe_load(EXAMPLE), key: value, 3: value}, runner).values


# What axolotl gets


def decisions(attention: str = "flash_attention_2", precision: str = "bf16") -> RunDecisions:
    return RunDecisions(
        precision=precision,
        dtype="bfloat16",
        attention=attention,
        has_card=True,
        warmup_steps=3,
        total_steps=100,
        has_eval=True,
    )


def written(tmp_path: Path, config: TrainConfig, **chosen: str) -> dict[str, Any]:
    return axolotl_config(config, decisions(**chosen), RunFolder(tmp_path))


def test_data_that_axolotl_reads_are_in_its_config_as_written(tmp_path: Path) -> None:
    given = [{"path": "someone/rows", "type": "alpaca:phi"}]
    config, _ = read("axolotl", datasets=given, evals_per_epoch=4)
    found = written(tmp_path, config)
    assert (found["datasets"], found["chat_template"]) == (given, "chatml")
    assert OWN_DATA not in found
    assert (found["warmup_ratio"], found["evals_per_epoch"]) == (0.1, 4)
    assert not found.keys() & {"warmup_steps", "eval_steps"}


@pytest.mark.parametrize(("attention", "packs"), [("flash_attention_2", True), ("sdpa", False)])
def test_rows_are_packed_only_with_flash_attention(tmp_path: Path, attention: str, packs: bool) -> None:
    config, _ = read("axolotl", sample_packing=True, evals_per_epoch=2)
    found = written(tmp_path, config, attention=attention)
    assert found["sample_packing"] is packs
    assert ("warmup_ratio" in found, "evals_per_epoch" in found) == (packs, packs)
    assert ("warmup_steps" in found, "eval_steps" in found) == (not packs, not packs)


def test_tf32_is_for_cards_that_have_it(tmp_path: Path) -> None:
    config, _ = read("axolotl", tf32=True)
    assert written(tmp_path, config)["tf32"] is True
    assert written(tmp_path, config, precision="fp16")["tf32"] is False


def test_a_pattern_of_layers_stays_one_text(tmp_path: Path) -> None:
    pattern = r"model\.layers\.[\d]+\.mlp\..*"
    config, _ = read("axolotl", lora_target_modules=pattern, lora_target_linear=None)
    assert written(tmp_path, config)["lora_target_modules"] == pattern


# Keys of axolotl about sharding, what trl takes of them, and the keys that are told as done otherwise.
SHARDS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({}, {}, []),
    (
        {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}},
        {"reshard_after_forward": False},
        [],
    ),
    ({"fsdp": ["full_shard", "auto_wrap"]}, {"reshard_after_forward": True}, []),
    ({"fsdp": "full_shard auto_wrap offload"}, {"reshard_after_forward": True}, ["offload_params"]),
    (
        {  # axolotl's example for FSDP 2
            "fsdp_version": 2,
            "fsdp_config": {
                "offload_params": True,
                "cpu_ram_efficient_loading": True,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
                "state_dict_type": "FULL_STATE_DICT",
                "final_state_dict_type": "FULL_STATE_DICT",
                "reshard_after_forward": True,
                "activation_checkpointing": True,
            },
        },
        {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer", "reshard_after_forward": True},
        ["offload_params", "state_dict_type"],
    ),
    (
        {  # and for FSDP 1, with the older prefix
            "fsdp": ["full_shard", "auto_wrap"],
            "fsdp_config": {
                "fsdp_limit_all_gathers": True,
                "fsdp_sync_module_states": True,
                "fsdp_use_orig_params": False,
                "fsdp_offload_params": False,
                "fsdp_sharding_strategy": "FULL_SHARD",
                "fsdp_backward_prefetch": "BACKWARD_PRE",
                "fsdp_reshard_after_forward": "FULL_SHARD",
            },
        },
        {"reshard_after_forward": True},
        ["use_orig_params"],
    ),
    *(
        ({"fsdp_config": {key: value}}, {"reshard_after_forward": True}, [] if is_done else [key])
        for key, value, is_done in (
            ("cpu_ram_efficient_loading", False, False),
            ("cpu_ram_efficient_loading", "false", False),
            ("cpu_ram_efficient_loading", "True", True),
            ("limit_all_gathers", False, False),
            ("sync_module_states", False, False),
            ("sync_module_states", 0, False),
            ("use_orig_params", False, False),
            ("forward_prefetch", True, False),
            ("forward_prefetch", False, True),
            ("offload_params", "true", False),
            ("offload_params", False, True),
            ("cpu_offload_pin_memory", False, True),
            ("min_num_params", 0, True),
            ("min_num_params", 1e8, False),
            ("backward_prefetch", "NO_PREFETCH", False),
            ("backward_prefetch", "backward_pre", True),
            ("auto_wrap_policy", "NO_WRAP", False),
            ("auto_wrap_policy", "transformer_based_wrap", True),
            ("sharding_strategy", "full_shard", True),
            ("sharding_strategy", 2, False),
            ("state_dict_type", "LOCAL_STATE_DICT", False),
            ("final_state_dict_type", "SHARDED_STATE_DICT", False),
            ("mixed_precision_policy", "fp8", False),
            ("version", 3, False),
            ("version", 2, True),
        )
    ),
    ({"fsdp_config": {"limit_all_gathers": None, "reshard_after_forward": None, "version": ""}}, {}, []),
    ({"fsdp": True}, {"reshard_after_forward": True}, []),
    ({"fsdp": "full_shard,auto_wrap"}, {"reshard_after_forward": True}, []),
    ({"fsdp_config": {"reshard_after_forward": "SHARD_GRAD_OP"}}, {"reshard_after_forward": False}, []),
    *(
        (
            {"fsdp_config": {"reshard_after_forward": name}},
            {"reshard_after_forward": True},
            ["reshard_after_forward"],
        )
        for name in ("HYBRID_SHARD", "HYBRID_SHARD_ZERO2", "no_shard")
    ),
    ({"fsdp": ["shard_grad_op", "auto_wrap"]}, {"reshard_after_forward": False}, []),
    ({"fsdp": "hybrid_shard auto_wrap"}, {"reshard_after_forward": True}, ["reshard_after_forward"]),
    ({"fsdp": ["no_shard"]}, {"reshard_after_forward": True}, ["reshard_after_forward"]),
    ({"fsdp_version": 1, "fsdp_config": {"version": 1}}, {"reshard_after_forward": True}, ["fsdp_version"]),
    (
        {"fsdp_config": {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 100}},
        {"reshard_after_forward": True},
        ["auto_wrap_policy", "min_num_params"],
    ),
    (
        {"fsdp_config": {"transformer_layer_cls_to_wrap": ["A", "B"], "mixed_precision_policy": "fp16"}},
        {"transformer_layer_cls_to_wrap": ["A", "B"], "reshard_after_forward": True},
        ["mixed_precision_policy"],
    ),
]


@pytest.mark.parametrize(("given", "taken", "told"), SHARDS)
def test_trl_takes_the_keys_of_axolotl_for_shards(
    given: dict[str, Any], taken: dict[str, Any], told: list[str]
) -> None:
    config, said = read("trl", gradient_checkpointing=True, **given)
    assert (config.fsdp_config, config.extra) == (taken, {})
    keys = [one.partition("`")[2].partition(":")[0].rpartition(".")[2] for one in said]
    assert sorted(keys) == sorted(told)
    assert config.digest() == read("trl")[0].digest()  # the losses are the same
    passed = read("axolotl", **given)[0]
    assert passed.fsdp_config == given.get("fsdp_config", {})
    assert passed.extra.get("fsdp") == given.get("fsdp")
    least = config_of(None, runner="trl", values={**LEAST, **given})  # also in a config of ours
    assert least.fsdp_config == taken


def test_each_value_that_is_not_taken_is_told_with_what_is_done() -> None:
    keys = set(table()["shards"])
    odd = {"version": 9, **dict.fromkeys(keys - {"version"}, "another")}
    said = read("trl", fsdp_config=odd)[1]
    assert {one.partition("`fsdp_config.")[2].partition(":")[0] for one in said} == keys
    assert all(len(one.rpartition("`: ")[2]) > 10 for one in said)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("gpu_memory_limit", "20GiB", "no limit is set"),
        ("save_only_model", True, "checkpoints have the optimizer, too"),
    ],
)
def test_limits_that_are_not_kept_are_told(key: str, value: object, words: str) -> None:
    assert words in " ".join(read("trl", **{key: value})[1])
    assert read("trl", **{key: False})[1] == read("trl")[1]


def test_keys_about_the_exchange_between_ranks_are_passed_on() -> None:
    given = {"ddp_timeout": 7200, "ddp_bucket_cap_mb": 50, "ddp_find_unused_parameters": True}
    config, told = read("trl", **given)
    assert (config.extra, told) == (given, [])
    assert config.digest() == read("trl")[0].digest()


def test_recomputing_in_shards_is_recomputing() -> None:
    given = {"gradient_checkpointing": False, "fsdp_config": {"activation_checkpointing": True}}
    assert read("trl", **given)[0].gradient_checkpointing


@pytest.mark.parametrize(("also", "recomputes"), [({}, False), ({"gradient_checkpointing": True}, True)])
def test_recomputing_is_left_out_in_shards_if_asked(also: dict[str, Any], recomputes: bool) -> None:
    given = {"fsdp_config": {"activation_checkpointing": False}, **also}
    assert (
        config_of(None, runner="trl", values={**LEAST, **given}, strict=True).gradient_checkpointing
        is recomputes
    )


@pytest.mark.parametrize(
    ("given", "path", "words"),
    [
        (
            {"fsdp_config": {"reshard_after_forwards": True}},
            "fsdp_config.reshard_after_forwards",
            "unknown key",
        ),
        (
            {"fsdp_config": {"reshard_after_forward": 3}},
            "fsdp_config.reshard_after_forward",
            "is 3, but must be",
        ),
        ({"fsdp": ["ful_shard"]}, "fsdp_config.reshard_after_forward", "is 'ful_shard', but must be"),
        (
            {"fsdp_config": {"reshard_after_forward": "half"}},
            "fsdp_config.reshard_after_forward",
            "is 'half', but must be",
        ),
        (
            {"fsdp_config": {"activation_checkpointing": "yes"}},
            "fsdp_config.activation_checkpointing",
            "must be",
        ),
        (
            {"fsdp_config": {"transformer_layer_cls_to_wrap": 1}},
            "fsdp_config.transformer_layer_cls_to_wrap",
            "is 1",
        ),
        ({"fsdp_config": "full"}, "fsdp_config", "must be a mapping"),
        ({"fsdp": {"full_shard": True}}, "fsdp", "must be names, such as `full_shard auto_wrap`"),
        ({"fsdp": 2}, "fsdp", "is 2, but must be names"),
        ({"fsdp": ["full_shard", 1]}, "fsdp", "must be names"),
        ({"fsdp_version": 3}, "fsdp_version", "must be between 1 and 2"),
        ({"deepspeed": "zero3.json"}, "deepspeed", "the runner trl does not use DeepSpeed"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "deepspeed", "does not use DeepSpeed"),
    ],
)
def test_shards_that_trl_cannot_make_are_faults(given: dict[str, Any], path: str, words: str) -> None:
    assert words in faults("trl", **given)[path][0]
    assert "deepspeed" not in given or "sharded with FSDP" in str(faults("trl", **given)[path][1])


def test_axolotl_gets_deepspeed_and_unsloth_shards_nothing() -> None:
    assert read("axolotl", deepspeed="zero3.json")[0].extra["deepspeed"] == "zero3.json"
    config, told = read("unsloth", fsdp_config={"reshard_after_forward": True}, fsdp_version=2)
    assert (config.fsdp_config, config.fsdp_version) == ({}, None)
    assert ["each card has the whole model, without FSDP" in one for one in told] == [True, True]
    assert "unsloth does not use DeepSpeed" in faults("unsloth", deepspeed="zero2.json")["deepspeed"][0]
