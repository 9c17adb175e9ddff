from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from colablock.errors import InvalidInput, Unmet
from colablock.matrix import schema
from colablock.training.runs.config import Adapter, MetricsTarget, TrainConfig
from colablock.training.runs.folder import RunFolder
from colablock.training.runs.runners import RUNNERS, RunDecisions, axolotl_config, runner_of
from tests.support.training import a_config

pytestmark = pytest.mark.requirements

OUT = RunFolder(Path("/out"))
CARD = RunDecisions(
    precision="bf16",
    dtype="bfloat16",
    attention="sdpa",
    has_card=True,
    warmup_steps=3,
    total_steps=95,
)
USUAL: dict[str, Any] = {
    "base_model": "someone/model",
    "base_model_config": "someone/model",
    "model_type": "AutoModelForCausalLM",
    "tokenizer_type": "AutoTokenizer",
    "load_in_8bit": False,
    "load_in_4bit": True,
    "strict": False,
    "adapter": "qlora",
    "datasets": [{"path": "/out/data/train.parquet", "ds_type": "parquet", "type": None}],
    "dataset_prepared_path": "/out/prepared",
    "val_set_size": 0.0,
    "output_dir": "/out",
    "sequence_len": 1024,
    "sample_packing": False,
    "pad_to_sequence_len": False,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_linear": True,
    "gradient_accumulation_steps": 8,
    "micro_batch_size": 1,
    "num_epochs": 1.0,
    "optimizer": "adamw_torch",
    "lr_scheduler": "cosine",
    "learning_rate": 2e-4,
    "max_grad_norm": 0.3,
    "weight_decay": 0.0,
    "warmup_steps": 3,
    "train_on_inputs": False,
    "group_by_length": False,
    "bf16": True,
    "fp16": False,
    "tf32": False,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1_000_000_000,
    "save_total_limit": 2,
    "save_safetensors": True,
    "flash_attention": False,
    "sdp_attention": True,
    "seed": 42,
}
GONE = object()

# A config, what was decided, and what is different from the usual in axolotl's words.
SHARDS = {
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "state_dict_type": "SHARDED_STATE_DICT",
    "final_state_dict_type": "FULL_STATE_DICT",
    "reshard_after_forward": True,
    "cpu_ram_efficient_loading": False,
    "offload_params": False,
}
CASES: list[tuple[str, TrainConfig, RunDecisions, dict[str, Any]]] = [
    ("the usual", a_config(), CARD, {}),
    (
        "a T4",
        a_config(),
        replace(CARD, precision="fp16", dtype="float16"),
        {"bf16": False, "fp16": True},
    ),
    (
        "a CPU",
        a_config(adapter=Adapter.LORA),
        replace(CARD, precision="fp32", dtype="float32", has_card=False),
        {
            "bf16": False,
            "load_in_4bit": False,
            "adapter": "lora",
            "lora_qkv_kernel": False,
            "lora_mlp_kernel": False,
            "lora_o_kernel": False,
        },
    ),
    (
        "flash attention",
        a_config(),
        replace(CARD, attention="flash_attention_2"),
        {"flash_attention": True, "sdp_attention": False},
    ),
    ("neither", a_config(), replace(CARD, attention="eager"), {"sdp_attention": False}),
    (
        "what is trained",
        a_config(lora_target_modules=("q_proj", "v_proj"), revision="v1", max_steps=40, save_steps=20),
        CARD,
        {
            "lora_target_linear": False,
            "lora_target_modules": ["q_proj", "v_proj"],
            "revision_of_model": "v1",
            "max_steps": 40,
            "num_epochs": 40,  # it ends at the first of the two
            "save_steps": 20,
        },
    ),
    (
        "more epochs than steps",
        a_config(max_steps=2, num_epochs=3.0),
        CARD,
        {"max_steps": 2, "num_epochs": 3.0},
    ),
    (
        "no checkpointing",
        a_config(gradient_checkpointing=False),
        CARD,
        {"gradient_checkpointing": False, "gradient_checkpointing_kwargs": GONE},
    ),
    (
        "an evaluation about ten times",
        a_config(val_set_size=0.1),
        replace(CARD, has_eval=True),
        {"val_set_size": 0.1, "eval_steps": 9},
    ),
    (
        "an evaluation as often as asked for",
        a_config(val_set_size=0.1, eval_steps=5),
        replace(CARD, has_eval=True),
        {"val_set_size": 0.1, "eval_steps": 5},
    ),
    ("wandb", a_config(report_to=(MetricsTarget.WANDB,)), CARD, {"wandb_project": "colablock"}),
    (
        "both reports",
        a_config(report_to=(MetricsTarget.WANDB, MetricsTarget.TENSORBOARD), wandb_project="mine"),
        CARD,
        {"wandb_project": "mine", "use_tensorboard": True},
    ),
    ("shards", a_config(), replace(CARD, is_sharded=True), {"fsdp_version": 2, "fsdp_config": SHARDS}),
    (
        "shards of its own",
        a_config(fsdp_version=1, fsdp_config={"offload_params": True}),
        replace(CARD, is_sharded=True),
        {"fsdp_version": 1, "fsdp_config": {**SHARDS, "offload_params": True}},
    ),
    (
        "no shards, as the checkpoint has none",
        a_config(fsdp_version=2, fsdp_config={"offload_params": True}),
        CARD,
        {"fsdp_version": GONE, "fsdp_config": GONE},
    ),
    ("a project is not a report", a_config(wandb_project="mine"), CARD, {}),
    (
        "a tokenizer that cannot pad",
        a_config(),
        replace(CARD, pads_with_eos=True, eos_token="</s>"),
        {"special_tokens": {"pad_token": "</s>"}},
    ),
    ("nor end a text", a_config(), replace(CARD, pads_with_eos=True), {}),
    (
        "the user's own keys win",
        a_config(extra={"group_by_length": True, "plugins": ["a"], "strict": True}),
        CARD,
        {"group_by_length": True, "plugins": ["a"], "strict": True},
    ),
    (
        "rows are packed with flash attention, and then only axolotl knows the number of steps",
        a_config(extra={"sample_packing": True}),
        replace(CARD, attention="flash_attention_2"),
        {
            "sample_packing": True,
            "flash_attention": True,
            "sdp_attention": False,
            "warmup_steps": GONE,
            "warmup_ratio": 0.03,
        },
    ),
    (
        "the older list of FSDP comes with the keys that it needs",
        a_config(extra={"fsdp": ["full_shard"]}),
        replace(CARD, is_sharded=True),
        {"fsdp_version": 2, "fsdp_config": SHARDS, "fsdp": ["full_shard"]},
    ),
    (
        "and without shards it is left out",
        a_config(extra={"fsdp": ["full_shard"]}),
        CARD,
        {},
    ),
    (
        "rows are not packed with another attention",
        a_config(extra={"sample_packing": True}),
        CARD,
        {"sample_packing": False, "eval_sample_packing": False},
    ),
]


@pytest.mark.parametrize(
    ("config", "decided", "different"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_config_for_axolotl(
    config: TrainConfig, decided: RunDecisions, different: dict[str, Any]
) -> None:
    expected = {key: value for key, value in (USUAL | different).items() if value is not GONE}
    assert axolotl_config(config, decided, OUT) == expected


@pytest.mark.parametrize("name", ["run[1]", "$HOME", "a?", "a*b", "a::b"])
def test_axolotl_gets_no_path_that_datasets_would_not_take_literally(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / name / "run")
    folder.path.mkdir(parents=True)
    with pytest.raises(InvalidInput, match="in its path has a meaning"):
        runner_of("axolotl").write(a_config(), CARD, folder)


def test_axolotl_gets_a_config_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = a_config(chat_template="ü")
    entry = runner_of("axolotl").write(config, CARD, folder)
    assert (entry.entry, entry.arguments) == ("axolotl.cli.train", (str(tmp_path / "config.yaml"),))
    assert yaml.safe_load(folder.config_file.read_text()) == axolotl_config(config, CARD, folder)


def test_trl_reads_the_job_file(tmp_path: Path) -> None:
    entry = runner_of("trl").write(a_config(), CARD, RunFolder(tmp_path))
    assert Path(entry.entry).name == "run_trl.py"
    assert Path(entry.entry).is_file()
    assert entry.arguments == (str(tmp_path),)
    assert list(tmp_path.iterdir()) == []


def test_unsloth_is_imported_first_and_keeps_its_caches_in_the_folder(tmp_path: Path) -> None:
    runner, folder = runner_of("unsloth"), RunFolder(tmp_path)
    entry = runner.write(a_config(), CARD, folder)
    assert Path(entry.entry).name == "run_unsloth.py"
    assert Path(entry.entry).is_file()
    assert (entry.arguments, entry.imports_first) == ((str(tmp_path),), ("unsloth",))
    assert list(tmp_path.iterdir()) == []
    assert runner.variables(folder) == {
        "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "unsloth" / "compiled"),
        "UNSLOTH_MEGA_CACHE_DIR": str(tmp_path / "unsloth" / "kernels"),
        "UNSLOTH_DISABLE_CPU_FALLBACK": "1",
    }
    assert not [
        name for name in runner.modules if name.startswith(("transformers", "trl", "peft", "unsloth"))
    ]
    assert [dict(runner_of(other).variables(folder)) for other in ("axolotl", "trl")] == [{}, {}]


def test_code_that_a_run_folder_brings_along_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, folder = runner_of("unsloth"), RunFolder(tmp_path / "run")
    compiled = Path(runner.variables(folder)["UNSLOTH_COMPILE_LOCATION"])
    compiled.mkdir(parents=True)
    (compiled / "UnslothSFTTrainer.py").write_text("raise SystemExit('not ours')")
    runner.write(a_config(), CARD, folder)
    assert list(folder.path.iterdir()) == []
    outside = tmp_path / "outside"
    (outside / "compiled").mkdir(parents=True)
    (folder.path / "unsloth").symlink_to(outside)
    runner.write(a_config(), CARD, folder)
    assert list(folder.path.iterdir()) == []
    assert (outside / "compiled").is_dir()
    compiled.mkdir(parents=True)

    def fails(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", fails)
    with pytest.raises(Unmet, match="Permission denied"):
        runner.write(a_config(), CARD, folder)


def test_the_runners_are_those_of_the_schema() -> None:
    assert tuple(sorted(RUNNERS)) == schema.RUNNERS
    assert {name: (one.name, one.passes_through, one.splits) for name, one in RUNNERS.items()} == {
        "axolotl": ("axolotl", True, False),
        "trl": ("trl", False, True),
        "unsloth": ("unsloth", False, True),
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchtune", "there is no runner `torchtune`"),
        (None, r"the matrix has no `runner` under `\[train\]`"),
    ],
)
def test_an_unknown_runner_is_refused(name: str | None, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        runner_of(name)
    which = "" if name else " that the stack has"
    assert caught.value.hint == f"Set `--runner` to one of `axolotl`, `trl`, `unsloth`{which}"


@pytest.mark.parametrize(("has_eval", "total", "steps"), [(False, 95, 0), (True, 95, 9), (True, 3, 1)])
def test_there_are_about_ten_evaluations_by_default(has_eval: bool, total: int, steps: int) -> None:
    assert replace(CARD, has_eval=has_eval, total_steps=total).eval_steps == steps
