"""Tokenise the data of a run, in the target.

`ask_target` passes the source of this file to ``python -c``.  It needs the standard library,
datasets and transformers.  The data of the job's ``data`` is written to ``train.parquet`` (and
``eval.parquet``) with the columns ``input_ids``, ``attention_mask`` and ``labels``.  The answer has
counts, and one row as it is trained on.  Both runners read these files, so that training uses
exactly the data that preflight shows.

If the job has ``toy``, a tiny model is made first, offline: a Llama with random weights, and a
tokenizer (byte-level BPE) trained on a text.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IGNORED = -100  # the label of a token that the loss ignores
FORMS = {
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The prompts of the Stanford Alpaca project, as in axolotl.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n### Response:\n"
)


VOCABULARY = 512  # of the tiny model
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


class UnusableData(Exception):
    """The data cannot be trained on.  The message says why and what to do."""


def main(asked: str, answered: str) -> None:
    """Do the job in the file *asked*, and write the answer to the file *answered*."""
    job = json.loads(Path(asked).read_text(encoding="utf-8"))
    try:
        if job["toy"]:
            make_model(**job["toy"])
        answer: dict[str, Any] = {"answer": prepare(job["data"]) if job["data"] else None}
    except UnusableData as error:
        answer = {"invalid": f"cannot train on this data: {error}"}
    except Exception as error:  # noqa: BLE001 (every error is reported)
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(answered).write_text(json.dumps(answer), encoding="utf-8")


def prepare(job: Mapping[str, Any]) -> dict[str, Any]:
    """Write the tokenised data, and return the answer."""
    from datasets import concatenate_datasets
    from transformers import AutoTokenizer

    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(job["base_model"], revision=job["revision"])
    if job["chat_template"] == "chatml":
        tokenizer.chat_template = CHATML
    elif job["chat_template"]:
        tokenizer.chat_template = job["chat_template"]
    parts, forms, counts = [], [], {}
    limit = job["sequence_len"]
    for source in job["datasets"]:
        rows = load(source)
        form = source["type"] or form_of(rows.column_names, source["path"])
        maker = RowTokenizer(tokenizer, form, whole=job["train_on_inputs"], source=source["path"])
        rows = rows.map(maker, remove_columns=rows.column_names, with_indices=True, desc="tokens")
        parts.append(rows)
        forms.append(form)
    rows = concatenate_datasets(parts)
    lengths = [len(ids) for ids in rows["input_ids"]]
    counts["rows"], counts["tokens"] = len(rows), sum(lengths)
    counts["cut"] = sum(length > limit for length in lengths)
    counts["lost"] = sum(max(0, length - limit) for length in lengths)
    if counts["cut"]:
        rows = rows.map(lambda row: {name: values[:limit] for name, values in row.items()}, desc="cut")
    kept = rows.filter(lambda row: any(label != IGNORED for label in row["labels"]), desc="kept")
    counts["dropped"] = len(rows) - len(kept)
    if not len(kept):
        raise UnusableData(
            f"within `sequence_len: {limit}` no row has a token to learn: raise it, or set "
            "`train_on_inputs: true`"
        )
    counts["trained"] = sum(label != IGNORED for labels in kept["labels"] for label in labels)
    evaluated = None
    if job["val_set_size"]:
        both = kept.train_test_split(test_size=job["val_set_size"], seed=job["seed"])
        kept, evaluated = both["train"], both["test"]
        evaluated.to_parquet(folder / "eval.parquet")
    kept.to_parquet(folder / "train.parquet")
    fixed = kept.select(range(min(job["evaluate"], len(kept))))
    return {
        **counts,
        "forms": forms,
        "train_rows": len(kept),
        "eval_rows": len(evaluated) if evaluated is not None else 0,
        "longest": max(lengths),
        "sample": sample(tokenizer, kept[0]),
        "evaluate": [{name: row[name] for name in ("input_ids", "labels")} for row in fixed],
        "pad_token": tokenizer.pad_token,
        "eos_token": tokenizer.eos_token,
        "vocabulary": len(tokenizer),
    }


def load(source: Mapping[str, Any]) -> Any:
    """Return the rows of a local file or folder, or of a dataset on the hub."""
    from datasets import load_dataset

    path = Path(source["path"]).expanduser()
    if path.is_file():
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            known = ", ".join(READERS)
            raise UnusableData(f"the format of `{path}` is unknown: supported suffixes are {known}")
        try:
            return load_dataset(reader, data_files=str(path), split="train")
        except Exception as error:
            raise UnusableData(f"`{path}` cannot be read as {reader}: {cause_of(error)}") from error
    if not path.is_dir() and path.suffix.lower() in READERS:  # not the name of a dataset on the hub
        raise UnusableData(f"the file `{path}` does not exist")
    return load_dataset(str(path) if path.is_dir() else source["path"], source["name"], split=source["split"])


def cause_of(error: BaseException) -> str:
    """Return the root cause in one line: the exceptions of datasets only say that it failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]


def form_of(columns: list[str], path: str) -> str:
    """Return the format of a dataset by its columns."""
    for form, needed in FORMS.items():
        if all(name in columns for name in needed):
            return form
    shown = ", ".join(f"`{name}`" for name in columns)
    hint = ""
    if "conversations" in columns:
        hint = "; convert `conversations` to `messages`, each with `role` and `content`"
    raise UnusableData(
        f"the columns of `{path}` ({shown}) match no format: `text`; `prompt` and `completion`; "
        f"`messages`; `instruction` and `output`{hint}"
    )


class RowTokenizer:
    """Tokenises a row, and labels the tokens that the loss includes.

    With *whole*, the loss includes all of them.
    """

    def __init__(self, tokenizer: Any, form: str, *, whole: bool, source: str) -> None:
        self._tokenizer, self._form, self._whole, self._source = tokenizer, form, whole, source

    def __call__(self, row: Mapping[str, Any], at: int) -> dict[str, list[int]]:
        pieces = self._pieces(row, at)
        ids = [one for part, _ in pieces for one in part]
        labels = [one if counts or self._whole else IGNORED for part, counts in pieces for one in part]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    def _pieces(self, row: Mapping[str, Any], at: int) -> list[tuple[list[int], bool]]:
        if self._form == "messages":
            return self._turns(row["messages"], at)
        if self._form == "text":
            return [(self._first(self._text(row, "text", at)), True), (self._end(), True)]
        if self._form == "alpaca":
            template = ALPACA_INPUT if row.get("input") else ALPACA
            given = {key: row.get(key) or "" for key in ("instruction", "input")}
            prompt, answer = template.format(**given), self._text(row, "output", at)
        else:
            prompt, answer = self._text(row, "prompt", at), self._text(row, "completion", at)
        return [(self._first(prompt), False), (self._more(answer), True), (self._end(), True)]

    def _text(self, row: Mapping[str, Any], key: str, at: int) -> str:
        value = row.get(key)
        if not isinstance(value, str):
            raise UnusableData(f"row {at + 1} of `{self._source}` has no text in `{key}`")
        return value

    def _first(self, text: str) -> list[int]:
        ids = list(self._tokenizer(text)["input_ids"])
        end = self._tokenizer.eos_token_id
        return (
            ids[:-1] if ids and ids[-1] == end and end is not None else ids
        )  # some tokenizers append it to every text

    def _more(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _end(self) -> list[int]:
        return [self._tokenizer.eos_token_id] if self._tokenizer.eos_token_id is not None else []

    def _turns(self, messages: Any, at: int) -> list[tuple[list[int], bool]]:
        """Return the tokens of each turn.  The loss includes the assistant's text and what ends its turn."""
        if not self._tokenizer.chat_template:
            raise UnusableData(
                "the model's tokenizer has no chat template: use the instruction-tuned model, or set "
                "`chat_template: chatml`"
            )
        pieces: list[tuple[list[int], bool]] = []
        before = ""
        for number, message in enumerate(messages):
            is_answer = message.get("role") == "assistant"
            if is_answer:
                opened = self._render(messages[:number], prompts=True)
                if opened.startswith(before):
                    pieces.append((self._more(opened[len(before) :]), False))
                    before = opened
            rendered = self._render(messages[: number + 1], prompts=False)
            if not rendered.startswith(before):
                raise UnusableData(
                    f"row {at + 1} of `{self._source}`: the chat template changes earlier turns when a turn "
                    "is added, so the tokens of answers cannot be found: set another `chat_template`"
                )
            pieces.append((self._more(rendered[len(before) :]), is_answer))
            before = rendered
        return pieces

    def _render(self, messages: Any, *, prompts: bool) -> str:
        return (
            str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=prompts
                )
            )
            if messages
            else ""
        )


def sample(tokenizer: Any, row: Mapping[str, Any]) -> list[list[Any]]:
    """Return a row as texts, each with whether the loss includes its tokens."""
    pieces: list[list[Any]] = []
    for token, label in zip(row["input_ids"], row["labels"]):  # noqa: B905 (Python 3.9 has no strict)
        counts = label != IGNORED
        if not pieces or pieces[-1][1] != counts:
            pieces.append([[], counts])
        pieces[-1][0].append(token)
    return [[tokenizer.decode(tokens), counts] for tokens, counts in pieces]


def make_model(folder: str, text: str, seed: int) -> None:
    """Write a tiny model and its tokenizer, trained on the file *text*, into *folder*."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rows = [json.loads(line)["text"] for line in Path(text).read_text(encoding="utf-8").splitlines()]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(rows, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=256, **names)
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
