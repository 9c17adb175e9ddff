"""Merge and generate in the real stack of COLABLOCK_TEST_HOME."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from colablock.errors import Unmet
from colablock.training.adapter import generate, merge
from tests.support.runs import make_run
from tests.support.stack import needs_stack, stack_python

MAKE = '''\
"""Write tiny bases and adapters below a folder, and the logits of peft's models."""
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
"""Load each merged model, and print the error of its logits, and its text."""
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
@pytest.mark.slow
def test_a_merged_model_equals_the_one_that_peft_merges(tmp_path: Path) -> None:
    in_stack("-c", MAKE, str(tmp_path), json.dumps(CASES))
    runs = {}
    for name in CASES:
        config = {"base_model": str(tmp_path / name / "base"), "adapter": "lora"}
        run = make_run(
            tmp_path / name / "run", process=0, python=stack_python(), config=config, precision="fp32"
        )
        runs[name] = run.path
        said: list[str] = []
        merge(run.path, tmp_path / name / "merged", environ=os.environ, on_line=said.append)
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
@pytest.mark.slow
def test_an_adapter_of_another_model_is_refused_and_leaves_no_files(tmp_path: Path) -> None:
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
    with pytest.raises(Unmet, match="its weights are quantised"):
        merge(run.path, tmp_path / "merged")
    settings.write_text(plain)
    assert [path.name for path in tmp_path.iterdir() if "merged" in path.name] == []
    # In 4 bits, as the run had it, where this machine can.
    assert len(generate(run.path, ["w1 w2"], max_new_tokens=4, temperature=0.7, seed=1)) == 1


@needs_stack
@pytest.mark.slow
@pytest.mark.slow
def test_the_installed_hub_library_has_the_functions_that_are_used() -> None:
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
