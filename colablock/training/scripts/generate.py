"""Generate text with a trained model, in the target.

`ask_target` passes the source of this file to ``python -c`` with two paths: of the job (JSON) to
read, and of the answer to write.  It needs the standard library, torch, transformers and peft.
The hub's library finds the token in ``HF_TOKEN`` by itself.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from colablock.training.scripts.job_answer import answer_job

DTYPE_KEYWORD = (4, 56)  # the first transformers that takes `dtype` instead of `torch_dtype`
BF16_MAJOR = 8  # the major compute capability from which cards compute in bfloat16


def main(asked: str, answered: str) -> None:
    """Do the job in the file *asked*, and write the answer to the file *answered*."""
    answer_job(asked, answered, lambda job: generate(**job))


def generate(
    adapter: str,
    base: str | None,
    revision: str | None,
    prompts: list[str],
    *,
    quantize: bool,
    nf4_on_cpu: list[int],
    precision: str,
    chat: bool,
    thinks: bool = False,
    chat_template: str | None = None,
    keeps_template: bool = False,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> list[str]:
    """Return the text that the trained model adds to each prompt.

    With *chat* each prompt is a message of a user.  The answer begins as those that were learnt:
    with *thinks* after the prompt of the template, else where the template writes an answer.  The
    tokenizer gets *chat_template*; with *keeps_template* only if it has none.  With *quantize* the
    base is loaded in 4 bits if this machine can.  *nf4_on_cpu* is the first release
    of bitsandbytes that can without a GPU.
    """
    import torch
    from transformers import set_seed

    if quantize and not has_nf4(tuple(nf4_on_cpu)):
        print("loading the base without 4-bit quantisation: bitsandbytes cannot do it here", flush=True)  # noqa: T201
        quantize = False
    model, tokenizer = load_trained(Path(adapter), base, revision, quantize=quantize, precision=precision)
    if chat_template and not (keeps_template and tokenizer.chat_template):
        tokenizer.chat_template = chat_template
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
    set_seed(seed)
    texts = []
    for prompt in prompts:
        text, end = chat_prompt(tokenizer, prompt, thinks=thinks) if chat else (prompt, "")
        begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not (chat or begins))
        inputs = inputs.to(model.device)
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            output = model.generate(
                **inputs,
                **sampling,
                **stops(tokenizer, model.generation_config.eos_token_id, end),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )
        new = output[0][inputs["input_ids"].shape[1] :]
        answer = tokenizer.decode(new, skip_special_tokens=True)
        if end:
            answer = answer.partition(end)[0].lstrip(" ")
        texts.append(answer)
    return texts


def chat_prompt(tokenizer: Any, prompt: str, *, thinks: bool) -> tuple[str, str]:
    """Return the text before the answer to a message, and the text that ends an answer.

    A template may write more before an answer than its prompt has, such as an empty thought.  The
    answers were learnt after that text.
    """
    mark = "\ue010answer\ue011"
    asked = [{"role": "user", "content": prompt}]
    opened = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    try:
        answered = [*asked, {"role": "assistant", "content": mark}]
        text = str(tokenizer.apply_chat_template(answered, tokenize=False, add_generation_prompt=False))
    except Exception:  # noqa: BLE001 (a template may refuse an answer that is not of its form)
        return opened, ""
    before, found, after = text.partition(mark)
    if not found:
        return opened, ""
    if not opened.endswith(" "):
        before = before.rstrip(" ")  # most tokenizers join a space with the word after it
    return (opened if thinks else before), (after.split() or [""])[0]


def stops(tokenizer: Any, of_model: Any, end: str) -> dict[str, Any]:
    """Return the arguments that end a text: at the tokens of the model and the tokenizer, and at *end*."""
    ids = list(of_model) if isinstance(of_model, (list, tuple)) else [of_model]
    ids.append(tokenizer.eos_token_id)
    found: dict[str, Any] = {}
    if end:
        tokens = tokenizer(end, add_special_tokens=False)["input_ids"]
        if len(tokens) == 1:
            ids.append(tokens[0])
        else:
            found = {"stop_strings": [end], "tokenizer": tokenizer}
    known = list(dict.fromkeys(one for one in ids if one is not None))
    return {**found, **({"eos_token_id": known} if known else {})}


def load_trained(
    adapter: Path, base: str | None, revision: str | None, *, quantize: bool, precision: str
) -> tuple[Any, Any]:
    """Return the base model with *adapter* and its tokenizer; with *quantize* the base is in 4 bits."""
    import torch
    import transformers
    from peft import PeftModel

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    name = base or config["base_model_name_or_path"]
    dtype = compute_type(precision)
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    options: dict[str, Any] = {"dtype" if version >= DTYPE_KEYWORD else "torch_dtype": dtype}
    if torch.cuda.is_available():
        options["device_map"] = {"": 0}
    if quantize:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(name, revision=revision, **options)
    has_own = (adapter / "tokenizer_config.json").is_file()
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(adapter) if has_own else name, revision=None if has_own else revision
    )
    return PeftModel.from_pretrained(model, str(adapter)).eval(), tokenizer


def compute_type(precision: str) -> Any:
    """Return the torch type for the precision of the run, or the nearest that this machine supports."""
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    if precision == "bf16" and torch.cuda.get_device_capability()[0] >= BF16_MAJOR:
        return torch.bfloat16
    return torch.float16


def has_nf4(on_cpu: tuple[int, ...]) -> bool:
    """Whether bitsandbytes is installed and has 4-bit layers for this machine: for CPUs from *on_cpu* on."""
    import importlib.metadata

    import torch

    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        return False
    return torch.cuda.is_available() or tuple(int(part) for part in version.split(".")[:2]) >= on_cpu


if __name__ == "__main__":
    main(*sys.argv[1:])
