"""What follows a run.  What needs torch runs in the stack of the home that COLABLOCK_TEST_HOME names."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from colablock.errors import InvalidInput, NotFound, Unmet
from colablock.training.adapter import adapter_of, download, generate, merge, push
from colablock.training.scripts import after as _after
from colablock.training.scripts.after import Refusal, Stored
from tests.support.reporters import Notes
from tests.support.run_folders import end, make_checkpoint, make_run, write_manifest
from tests.support.runtime import make_venv, site_of
from tests.support.stack import needs_stack, stack_python

# Which tensor goes where

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def test_the_tensors_of_an_adapter_are_told_apart() -> None:
    found = _after.sort_adapter(
        {},
        [
            f"{Q}.lora_A.weight",
            f"{Q}.lora_B.default.weight",
            f"{Q}.base_layer.bias",
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "base_model.model.model.embed_tokens.lora_embedding_B",
            "base_model.model.lm_head.modules_to_save.default.weight",
            "base_model.model.model.norm.modules_to_save.weight",
            "base_model.model.score.weight",
        ],
    )
    assert found.pairs == {
        "model.layers.0.self_attn.q_proj": {"A": f"{Q}.lora_A.weight", "B": f"{Q}.lora_B.default.weight"},
        "model.embed_tokens": {
            "A": "base_model.model.model.embed_tokens.lora_embedding_A",
            "B": "base_model.model.model.embed_tokens.lora_embedding_B",
        },
    }
    assert found.embeddings == {"model.embed_tokens"}
    assert sorted(found.whole) == [
        "lm_head.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.norm.weight",
        "score.weight",
    ]
    assert found.is_transposed("model.embed_tokens")
    assert not found.is_transposed("model.layers.0.self_attn.q_proj")


REFUSED: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "another kind": ({"peft_type": "IA3"}, [], "of the kind IA3 cannot be merged here"),
    "dora": ({"use_dora": True}, [], "with `use_dora` cannot be merged here"),
    "magnitudes": ({}, [f"{Q}.lora_magnitude_vector"], "lora_magnitude_vector` is of a kind"),
    "a bias of its own": ({}, [f"{Q}.lora_B.bias"], "lora_B.bias` is of a kind"),
    "half": ({}, [f"{Q}.lora_A.weight"], "only one of the two factors for `model.layers.0.self_attn.q_proj`"),
}


@pytest.mark.parametrize(("config", "keys", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_merged_is_refused(config: dict[str, Any], keys: list[str], said: str) -> None:
    with pytest.raises(Refusal) as caught:
        _after.sort_adapter(config, keys)
    assert said in str(caught.value)


SCALINGS: dict[str, tuple[dict[str, Any], str, int, float]] = {
    "plain": ({"lora_alpha": 32}, "a.q_proj", 16, 2.0),
    "rank-stabilised": ({"lora_alpha": 32, "use_rslora": True}, "a.q_proj", 16, 8.0),
    "by a pattern": ({"lora_alpha": 32, "alpha_pattern": {"q_proj": 8}}, "a.q_proj", 4, 2.0),
    "by a whole name": ({"lora_alpha": 32, "alpha_pattern": {"a.q_proj": 8}}, "a.q_proj", 4, 2.0),
    "by another's pattern": ({"lora_alpha": 32, "alpha_pattern": {"proj": 8}}, "a.q_proj", 4, 8.0),
}


@pytest.mark.parametrize(("config", "module", "rank", "factor"), SCALINGS.values(), ids=SCALINGS)
def test_the_factor_is_that_of_peft(config: dict[str, Any], module: str, rank: int, factor: float) -> None:
    assert math.isclose(_after.AdapterTensors(config).scaling(module, rank), factor)


NAMES = dict.fromkeys(["model.layers.0.q.weight", "model.layers.10.q.weight", "model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("model.layers.0.q.weight", "model.layers.0.q.weight"),
        ("layers.0.q.weight", "model.layers.0.q.weight"),
        ("outer.model.layers.10.q.weight", "model.layers.10.q.weight"),
        ("0.q.weight", "model.layers.0.q.weight"),
        ("q.weight", None),
        ("model.layers.1.q.weight", None),
    ],
)
def test_a_name_means_one_tensor_or_none(wanted: str, found: str | None) -> None:
    assert _after.place(wanted, NAMES) == found


def sorted_of(*modules: str, whole: tuple[str, ...] = ()) -> _after.AdapterTensors:
    keys = [f"base_model.model.{module}.lora_{side}.weight" for module in modules for side in "AB"]
    return _after.sort_adapter({}, keys + [f"base_model.model.{name}" for name in whole])


def test_every_tensor_of_the_adapter_has_a_place_or_is_named() -> None:
    adapter = sorted_of("model.layers.0.q", whole=("model.embed_tokens.weight", "lm_head.weight"))
    added, replaced = _after.place_all(adapter, NAMES)
    assert added == {"model.layers.0.q.weight": "model.layers.0.q"}
    assert set(replaced) == {"model.embed_tokens.weight", "lm_head.weight"}
    with pytest.raises(Refusal) as caught:
        _after.place_all(sorted_of("model.layers.7.q", "model.layers.8.q", whole=("score.weight",)), NAMES)
    assert str(caught.value) == (
        "the base has no tensor for `base_model.model.model.layers.7.q.lora_A.weight`, "
        "`base_model.model.model.layers.7.q.lora_B.weight`, "
        "`base_model.model.model.layers.8.q.lora_A.weight` and 2 more of the adapter"
    )
    with pytest.raises(Refusal, match="the adapter changes only one of them"):
        _after.place_all(sorted_of("model.embed_tokens"), NAMES)


# Files


def test_a_header_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensors = {
        "b": Stored("F32", (2, 3), 0, 24),
        "a": Stored("BF16", (4,), 24, 32),
        "c": Stored("I8", (), 32, 33),
    }
    out = BytesIO()
    _after.write_header(out, tensors, {"made": "here"})
    begin = len(out.getvalue())
    assert begin % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(out.getvalue() + bytes(33))
    found, metadata = _after.read_header(path)
    assert list(found) == ["b", "a", "c"]
    assert found["a"] == Stored("BF16", (4,), begin + 24, begin + 32)
    assert metadata == {"format": "pt", "made": "here"}
    path.write_bytes(out.getvalue() + bytes(32))
    with pytest.raises(Refusal, match="is cut off"):
        _after.read_header(path)
    for data in (b"", b"12345678{}", bytes(20), b"\x02" + bytes(7) + b"[]"):
        path.write_bytes(data)
        with pytest.raises(Refusal, match="cannot be read as safetensors"):
            _after.read_header(path)


def test_the_files_of_a_base_are_its_index_or_the_one_file(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"there is no `model.safetensors`"):
        _after.find_shards(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert _after.find_shards(tmp_path) == ["model.safetensors"]
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "2.st", "b": "1.st"}}')
    with pytest.raises(Refusal, match=r"lacks `1.st`, which its index names"):
        _after.find_shards(tmp_path)
    for name in ("1.st", "2.st"):
        (tmp_path / name).write_bytes(b"")
    assert _after.find_shards(tmp_path) == ["1.st", "2.st"]


def test_what_lies_beside_the_weights_comes_along_and_the_adapters_tokenizer(tmp_path: Path) -> None:
    base, adapter, into = (tmp_path / name for name in ("base", "adapter", "into"))
    for folder in (base, adapter, into):
        folder.mkdir()
    for name in ("config.json", "tokenizer.json", "generation_config.json", "modeling_own.py", "README.md"):
        (base / name).write_text("base")
    for name in ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", ".gitattributes"):
        (base / name).write_text("base")
    for name in ("tokenizer.json", "chat_template.jinja", "adapter_config.json", "trainer_state.json"):
        (adapter / name).write_text("adapter")
    _after.copy_rest(base, adapter, into)
    assert {path.name: path.read_text() for path in into.iterdir()} == {
        "tokenizer.json": "adapter",
        "chat_template.jinja": "adapter",
        "generation_config.json": "base",
        "modeling_own.py": "base",
    }


# Runs


def make_adapter(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "none"}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"not for others")


CONFIG = {
    "base_model": "org/base",
    "adapter": "lora",
    "hub_token": "hf_" + "a" * 30,
    "special_tokens": {"pad_token": "<pad>"},
    "note": f"with hf_{'b' * 30} in it",
    "wandb": {"WANDB_API_KEY": "k"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = make_run(tmp_path / "run", process=0, python=sys.executable, config=CONFIG, git_revision="c" * 40)
    make_adapter(made.adapter)
    return made.path


def test_the_adapter_of_a_run_that_is_not_done_is_that_of_its_newest_checkpoint(tmp_path: Path) -> None:
    told = Notes()
    with pytest.raises(NotFound, match="there is no adapter"):
        adapter_of(tmp_path, reporter=told)
    make_adapter(make_checkpoint(tmp_path, 20))
    write_manifest(tmp_path / "checkpoint-20")
    assert adapter_of(tmp_path, reporter=told) == tmp_path / "checkpoint-20"
    assert told.notes == ["the run is not done: the adapter is that of checkpoint-20"]
    make_adapter(tmp_path / "adapter")
    assert adapter_of(tmp_path, reporter=told) == tmp_path / "adapter"


@pytest.mark.parametrize(
    ("state", "found"),
    [("stopped", "adapter"), ("done", "adapter"), ("failed", "checkpoint-30"), (None, "checkpoint-30")],
)
def test_the_adapter_of_an_earlier_stop_is_an_old_one(state: str | None, found: str, tmp_path: Path) -> None:
    run = make_run(tmp_path)  # running
    make_adapter(run.adapter)
    assert adapter_of(tmp_path, reporter=Notes()) == run.adapter  # there is no other yet
    make_adapter(make_checkpoint(tmp_path, 30))
    write_manifest(tmp_path / "checkpoint-30")
    assert adapter_of(tmp_path, reporter=Notes()) == tmp_path / "checkpoint-30"
    if state is not None:
        end(run, state)
    assert adapter_of(tmp_path, reporter=Notes()) == tmp_path / found


def test_a_zip_holds_the_adapter_and_the_record_without_tokens(run: Path, tmp_path: Path) -> None:
    handed: list[str] = []
    path = download(run, hand_over=handed.append)
    assert path == run / "run-1.zip"
    assert handed == [str(path)]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "run.json",
            "tokenizer.json",
        ]
        record = json.loads(archive.read("run.json"))
    assert record["config"] == {
        "base_model": "org/base",
        "adapter": "lora",
        "special_tokens": {"pad_token": "<pad>"},
        "note": "with *** in it",
        "wandb": {},
    }
    assert record["git_revision"] == "c" * 40
    merged = tmp_path / "merged"
    (merged / "below").mkdir(parents=True)
    (merged / "below" / "model.safetensors").write_bytes(b"w")
    with zipfile.ZipFile(download(run, tmp_path / "m.zip", merged=merged)) as archive:
        assert sorted(archive.namelist()) == ["below/model.safetensors", "run.json"]


COLAB = """\
import pathlib, sys
from google.colab import files
from colablock.training.adapter import download
path = download(pathlib.Path(sys.argv[1]))
assert files.asked == [str(path)], files.asked
"""


def test_colab_offers_the_file_to_the_browser(run: Path, tmp_path: Path) -> None:
    (tmp_path / "google" / "colab").mkdir(parents=True)
    (tmp_path / "google" / "colab" / "files.py").write_text("asked = []\ndownload = asked.append\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(
        [sys.executable, "-c", COLAB, str(run)], env={**os.environ, "PYTHONPATH": path}, check=True
    )


def test_what_cannot_be_is_said_before_anything_starts(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="a list of texts"):
        generate(run, "one")
    with pytest.raises(InvalidInput, match="exists already"):
        merge(run, run)
    with pytest.raises(NotFound, match="there is no folder"):
        merge(run, tmp_path / "not" / "there")
    with pytest.raises(InvalidInput, match="is no repository"):
        push(run, "name")
    with pytest.raises(NotFound, match="not the folder of a run"):
        download(tmp_path)
    with pytest.raises(NotFound, match="there is no folder"):
        download(run, merged=tmp_path / "none")
    with pytest.raises(Unmet, match="cannot be written: No such file"):
        download(run, tmp_path / "not" / "there.zip")
    assert not (run / "run-1.zip").exists()


def test_what_the_child_dies_of_is_worded_and_nothing_is_left(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    environ = {"PATH": os.defpath}
    python = make_venv(tmp_path / "env", sys.executable)
    make_run(run, process=0, python=str(python), config=CONFIG)
    with pytest.raises(Unmet) as caught:
        merge(run, tmp_path / "merged", environ=environ, said=said.append)
    assert f"`{python}` could not merge the adapter: ModuleNotFoundError: No module named 'torch'" in str(
        caught.value
    )
    assert said[0].startswith("Traceback")
    assert not (tmp_path / "merged").exists()
    (site_of(tmp_path / "env") / "torch.py").write_text("import os, signal; os.kill(os.getpid(), 9)")
    with pytest.raises(Unmet, match="could not generate text: the process was ended by SIGKILL"):
        generate(run, ["one"], environ=environ)
    make_run(run, process=0, python=str(tmp_path / "none"), config=CONFIG)
    with pytest.raises(Unmet, match="could not generate text: No such file"):
        generate(run, ["one"], environ=environ)


def test_another_base_may_be_named_as_seen_from_here(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = make_venv(tmp_path / "env", sys.executable)
    site = site_of(tmp_path / "env")
    (site / "safetensors").mkdir()
    (site / "torch.py").touch()
    (site / "safetensors" / "torch.py").write_text("load_file = dict.fromkeys\n")
    make_run(run, process=0, python=str(python), config=CONFIG)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unmet, match=f"the weights of `{tmp_path}/small` are quantised"):
        merge(run, tmp_path / "merged", base="small", environ={"PATH": os.defpath})


HUB = """\
import json, os, pathlib
class Found:
    def __init__(self, private): self.private = private
class HfApi:
    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        return f"https://hub.invalid/{repo_id}"
    def repo_info(self, repo_id):
        return Found(repo_id != "org/public")
    def upload_folder(self, *, repo_id, folder_path, commit_message):
        folder = pathlib.Path(folder_path)
        files = {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}
        token = os.environ["HF_TOKEN"]
        pathlib.Path(os.environ["PUSHED"]).write_text(json.dumps([repo_id, token, files]))
"""


def test_a_push_is_private_and_holds_no_token(run: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "env", sys.executable)
    (site_of(tmp_path / "env") / "huggingface_hub.py").write_text(HUB)
    make_run(run, process=0, python=str(python), config=CONFIG)
    pushed = tmp_path / "pushed"
    environ: Mapping[str, str] = {"PUSHED": str(pushed), "HF_TOKEN": "another"}
    with pytest.raises(Unmet, match="the repository `org/public` is public") as caught:
        push(run, "org/public", token="secret", environ=environ)
    assert caught.value.hint == "`private=False` pushes to it all the same"
    assert not pushed.exists()
    assert push(run, "org/public", token="secret", private=False, environ=environ).endswith("org/public")
    assert push(run, "org/name", token="secret", environ=environ) == "https://hub.invalid/org/name"
    repo, token, files = json.loads(pushed.read_text())
    assert (repo, token) == ("org/name", "secret")
    assert sorted(files) == ["adapter_config.json", "adapter_model.safetensors", "run.json", "tokenizer.json"]
    assert "secret" not in files["run.json"]
    assert "hf_" not in files["run.json"]
    assert push(run, "org/name", environ=environ)
    assert json.loads(pushed.read_text())[1] == "another"


# In a real stack

MAKE = '''\
"""Write tiny bases and adapters below a folder, and the logits of what peft makes of them."""
import json, pathlib, sys
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = pathlib.Path(sys.argv[1])
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = json.loads(sys.argv[2])
IDS = torch.arange(24).reshape(2, 12)

words = {f"w{number}": number for number in range(126)} | {"<unk>": 126, "</s>": 127}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")

for name, case in CASES.items():
    torch.manual_seed(len(name))
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=128, tie_word_embeddings=case.get("tied", False),
        attention_bias=case.get("bias", False), eos_token_id=127, bos_token_id=0,
    )
    base = LlamaForCausalLM(config).to(getattr(torch, case.get("dtype", "float32")))
    folder = ROOT / name
    base.save_pretrained(folder / "base", max_shard_size=case.get("shard", "1GB"))
    tokenizer.save_pretrained(folder / "base")
    lora = LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": LINEAR, **case.get("lora", {})})
    model = get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base"), lora)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder / "run" / "adapter", safe_serialization=True)
    if case.get("bin"):
        from safetensors.torch import load_file
        weights = folder / "run" / "adapter" / "adapter_model.safetensors"
        torch.save(load_file(weights), weights.with_suffix(".bin"))
        weights.unlink()
    with torch.no_grad():
        before = model.eval()(IDS).logits.float()
        merged = model.merge_and_unload().eval()(IDS).logits.float()
    torch.save({"adapter": before, "merged": merged}, folder / "logits.pt")
'''
CHECK = '''\
"""Load each merged model, and print how far its logits are off, and what it says."""
import json, pathlib, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

IDS = torch.arange(24).reshape(2, 12)
found = {}
for folder in map(pathlib.Path, sys.argv[1:]):
    model, told = AutoModelForCausalLM.from_pretrained(folder / "merged", output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(IDS).logits.float()
    known = torch.load(folder / "logits.pt")
    base = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    given = tokenizer("w1 w2 w3", return_tensors="pt")
    given.pop("token_type_ids", None)
    text = model.generate(**given, max_new_tokens=8, do_sample=False, pad_token_id=127)
    found[folder.name] = {
        "adapter": (logits - known["adapter"]).abs().max().item(),
        "merged": (logits - known["merged"]).abs().max().item(),
        "scale": known["adapter"].abs().max().item(),
        "moved": (known["adapter"] - base(IDS).logits.float()).abs().max().item(),
        "dtype": str(model.dtype),
        "told": sorted(str(key) for value in told.values() for key in value),
        "text": tokenizer.decode(text[0][given["input_ids"].shape[1]:], skip_special_tokens=True),
    }
print(json.dumps(found))
'''
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "shards in bf16": {"dtype": "bfloat16", "shard": "100KB"},
    "fp16 from a bin file": {"dtype": "float16", "bin": True},
    "rank-stabilised, patterns": {
        "lora": {
            "use_rslora": True,
            "rank_pattern": {"q_proj": 8},
            "alpha_pattern": {"layers.1.mlp.up_proj": 3},
        }
    },
    "biases": {"bias": True, "lora": {"bias": "lora_only"}},
    "whole head and norm": {"lora": {"modules_to_save": ["lm_head", "norm"]}},
    "tied, whole head": {"tied": True, "shard": "100KB", "lora": {"modules_to_save": ["lm_head"]}},
    "tied, whole embedding": {"tied": True, "lora": {"modules_to_save": ["embed_tokens"]}},
    "tied, factors of the head": {"tied": True, "lora": {"target_modules": ["q_proj", "lm_head"]}},
    "factors of the embedding": {"lora": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]}},
}


def in_stack(*args: str) -> str:
    environ = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    command = [stack_python(), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_stack
@pytest.mark.slow
def test_a_merged_model_is_what_peft_makes_of_it(tmp_path: Path) -> None:
    in_stack("-c", MAKE, str(tmp_path), json.dumps(CASES))
    runs = {}
    for name in CASES:
        config = {"base_model": str(tmp_path / name / "base"), "adapter": "lora"}
        run = make_run(
            tmp_path / name / "run", process=0, python=stack_python(), config=config, precision="fp32"
        )
        runs[name] = run.path
        said: list[str] = []
        merge(run.path, tmp_path / name / "merged", environ=os.environ, said=said.append)
        shards = sorted(path.name for path in (tmp_path / name / "base").glob("*.safetensors"))
        assert [line.split(" (")[0] for line in said if line.endswith(")")] == shards
        assert not list((tmp_path / name).glob(".*"))
    found = json.loads(in_stack("-c", CHECK, *(str(tmp_path / name) for name in CASES)))
    for name, case in CASES.items():
        one = found[name]
        # An adapter on top is rounded otherwise than one that is merged.
        tolerance = one["scale"] * {"bfloat16": 0.05, "float16": 0.005}.get(case.get("dtype", ""), 1e-5)
        assert one["moved"] > 5 * tolerance, name
        assert one["adapter"] < tolerance, name
        if name != "tied, factors of the head":  # peft adds them to the embedding as well
            assert one["merged"] < tolerance / 2, name
        assert one["dtype"] == f"torch.{case.get('dtype', 'float32')}"
        assert one["told"] == [], name
    text = generate(runs["plain"], ["w1 w2 w3", "w4"], max_new_tokens=8)
    assert text[0] == found["plain"]["text"]
    assert len(text) == 2


@needs_stack
@pytest.mark.slow
def test_an_adapter_of_another_model_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    cases = {"four": {}, "other": {"lora": {"target_modules": ["q_proj"]}}}
    in_stack("-c", MAKE, str(tmp_path), json.dumps(cases))
    config = {"base_model": str(tmp_path / "four" / "base"), "adapter": "qlora"}
    run = make_run(tmp_path / "other" / "run", process=0, python=stack_python(), config=config)
    adapter = run.adapter / "adapter_model.safetensors"
    data = adapter.read_bytes()
    adapter.write_bytes(data.replace(b"layers.2", b"layers.7"))
    with pytest.raises(
        Unmet, match=r"no tensor for `base_model.model.model.layers.7.self_attn.q_proj.lora_A"
    ):
        merge(run.path, tmp_path / "merged")
    adapter.write_bytes(data)
    settings = tmp_path / "four" / "base" / "config.json"
    plain = settings.read_text()
    settings.write_text(json.dumps({**json.loads(plain), "quantization_config": {"quant_method": "x"}}))
    with pytest.raises(Unmet, match="are quantised"):
        merge(run.path, tmp_path / "merged")
    settings.write_text(plain)
    assert [path.name for path in tmp_path.iterdir() if "merged" in path.name] == []
    # In 4 bits, as the run had it, where this machine can.
    assert len(generate(run.path, ["w1 w2"], max_new_tokens=4, temperature=0.7, seed=1)) == 1


@needs_stack
@pytest.mark.slow
def test_the_hub_of_the_stack_takes_what_is_asked_of_it() -> None:
    code = """if True:
    import inspect
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import RepositoryNotFoundError
    bind = lambda what, *args, **more: inspect.signature(what).bind(*args, **more)
    bind(HfApi.create_repo, 0, "r", private=True, exist_ok=True)
    bind(HfApi.create_commit, 0, "r", operations=[], commit_message="")
    bind(HfApi.get_paths_info, 0, "r", ["x"])
    bind(HfApi.list_repo_files, 0, "r")
    bind(HfApi.repo_info, 0, "r")
    bind(HfApi.upload_folder, 0, repo_id="r", folder_path="f", commit_message="")
    bind(hf_hub_download, "r", "n", local_dir="d")
    bind(snapshot_download, "r", revision=None, allow_patterns=[], ignore_patterns=[])
    CommitOperationAdd(path_in_repo="n", path_or_fileobj=b"")
    CommitOperationDelete(path_in_repo="n")
    """
    in_stack("-c", code)
