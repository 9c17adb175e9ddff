"""Tokenise the data of a run, in the target.

`ask_target` passes the source of this file to ``python -c``, with the modules beside and below it that it
imports.  They need the standard library, datasets and transformers.  The data of the job's ``data`` are
written to ``train.parquet`` (and ``eval.parquet``) with the columns ``input_ids``, ``attention_mask`` and
``labels``.  The answer has counts, and one row as it is trained on.  Both runners read these files, so that
training uses exactly the data that preflight shows.

If the job asks for the ``stack``, it is reported first: `describe_stack` writes it, while its reader goes
on.  If the job has ``toy``, a tiny model is made first, offline: a Llama with random weights, and a
tokenizer (byte-level BPE) trained on a text.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colablock.training.scripts.describe_stack import report_stack
from colablock.training.scripts.rows.conversations import (
    USED,
    Place,
    alpaca_turns,
    conversation_of,
    form_of,
    is_conversational,
    segments_of,
    text_of,
    unused_columns,
)
from colablock.training.scripts.rows.judgements import Judge
from colablock.training.scripts.rows.messages import UnusableData, misspelt
from colablock.training.scripts.rows.sources import Unreachable, cause_of, rows_of
from colablock.training.scripts.rows.tokens import IGNORED, NoTokenizer, tokenised, tokenizer_of
from colablock.training.scripts.rows.turns import Rendered, TemplateFault, TurnFinder
from colablock.training.scripts.workarounds import datasets_local_files

__all__ = ["RowTokenizer", "UnusableData", "cause_of", "form_of", "main", "make_model", "prepare", "sample"]

VOCABULARY = 512  # of the tiny model
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_SAVE_TOKENIZER = (
    "Save it beside the weights: `AutoTokenizer.from_pretrained(...)` of the model that it was made from,"
    " then `.save_pretrained(...)` with the folder"
)
_COLUMNS_FROM = 100  # rows, whose columns together tell the form of a file


def main(asked: str, answered: str) -> None:
    """Do the job in the file *asked*, and write the answer to the file *answered*."""
    job = json.loads(Path(asked).read_text(encoding="utf-8"))
    if job.get("stack") and not report_stack(Path(answered)):
        return
    try:
        if job["toy"]:
            make_model(**job["toy"])
        answer: dict[str, Any] = {"answer": prepare(job["data"]) if job["data"] else None}
    except UnusableData as error:
        answer = {"invalid": f"cannot train on this data: {error}"}
    except Unreachable as error:
        answer = {"refused": str(error)}
    except NoTokenizer as error:
        answer = {"invalid": str(error), "hint": _SAVE_TOKENIZER}
    except Exception as error:  # noqa: BLE001 (every error is reported)
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(answered).write_text(json.dumps(answer), encoding="utf-8")


def prepare(job: Mapping[str, Any]) -> dict[str, Any]:
    """Write the tokenised data, and return the answer."""
    from datasets import Dataset

    datasets_local_files()
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(job["base_model"], job["revision"])
    template, note = chosen_template(job, getattr(tokenizer, "chat_template", None))
    if template:
        tokenizer.chat_template = template
    tokens = DataTokens(tokenizer, job)
    try:
        kept = Dataset.from_generator(tokens.rows, cache_dir=str(folder / "cache"))
        if job.get("held_share"):
            require_rows(len(kept), job["held_share"])
        if job["val_set_size"]:
            both = kept.train_test_split(test_size=job["val_set_size"], seed=job["seed"])
            kept, evaluated = both["train"], both["test"]
            evaluated.to_parquet(folder / "eval.parquet")
        else:
            evaluated = None
        kept.to_parquet(folder / "train.parquet")
        fixed = [kept[at] for at in range(min(job["evaluate"], len(kept)))]
        first = kept[0]
    except Exception:
        if tokens.fault is not None:  # `datasets` hides it behind an error of its own
            raise tokens.fault from None
        raise
    finally:
        shutil.rmtree(folder / "cache", ignore_errors=True)
    return {
        **tokens.counts,
        "forms": tokens.forms,
        "notes": [*note, *tokens.notes()],
        "thinks": tokens.thinks,
        "chat_template": template,
        "train_rows": len(kept),
        "eval_rows": len(evaluated) if evaluated is not None else 0,
        "sample": sample(tokenizer, first),
        "evaluate": [{name: row[name] for name in ("input_ids", "labels")} for row in fixed],
        "pad_token": tokenizer.pad_token,
        "eos_token": tokenizer.eos_token,
        "vocabulary": len(tokenizer),
    }


def chosen_template(job: Mapping[str, Any], own: Any) -> tuple[str | None, list[str]]:
    """Return the template in place of the tokenizer's *own*, or None, and what has to be said about it.

    Templates that only axolotl has are read from its files, if it is installed.
    """
    template, name = job["chat_template"], job.get("template_of_axolotl")
    if job.get("keeps_template") and own:
        return None, []
    if not name:
        return template, []
    found = importlib.util.find_spec("axolotl")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder, "utils", "chat_templates", "templates", f"{name}.jinja")
        if path.is_file():
            return path.read_text(encoding="utf-8"), []
    if not own:
        raise UnusableData(
            f"`chat_template: {name}` is a template of axolotl, which is not installed or does not have "
            "it, and the model's tokenizer has none: give the text of a template, or a file"
        )
    return None, [f"`chat_template: {name}` is not there: using the template of the model's tokenizer"]


def require_rows(count: int, share: float) -> None:
    """Raise UnusableData if the rows cannot be split: `train_test_split` takes at least one for each part."""
    held = math.ceil(share * count)
    if held < 1 or held >= count:
        raise UnusableData(
            f"with `val_set_size: {share:g}` {held} of {count} rows are for evaluation, and "
            f"{count - held} for training: set a smaller share, or 0"
        )


class DataTokens:
    """The tokens of all sources of a job, row by row, and what is counted on the way.

    *fault* is the exception that ended the rows.  *thinks* is whether thinking is learnt.
    """

    def __init__(self, tokenizer: Any, job: Mapping[str, Any]) -> None:
        self._tokenizer, self._job = tokenizer, dict(job)
        self._notes: list[str] = []
        self._sources = [(source, rows_of(source, self._notes)) for source in job["datasets"]]
        self.counts = dict.fromkeys(
            ("rows", "tokens", "cut", "lost", "dropped", "trained", "longest", "largest"), 0
        )
        self.forms: list[str] = []
        self.fault: Exception | None = None
        self.thinks = False
        self._used_template = False

    def rows(self) -> Iterator[dict[str, list[int]]]:
        """Yield the rows that have a token to learn, cut to the longest length."""
        kept = 0
        try:
            for source, rows in self._sources:
                for row in self._source_rows(source, rows):
                    cut = self._cut(row)
                    if cut is not None:
                        kept += 1
                        yield cut
            self._require(kept)
        except Exception as error:
            self.fault = error
            raise

    def _require(self, kept: int) -> None:
        """Raise UnusableData if no row is kept."""
        limit = self._job["sequence_len"]
        if kept:
            return
        if not self.counts["rows"]:
            raise UnusableData("its labels or weights exclude every row")
        if not self.counts["cut"] and not self._job["train_on_inputs"]:
            raise UnusableData(
                "no row has an answer to learn: set `train_on_inputs: true` to learn all of it"
            )
        raise UnusableData(
            f"within `sequence_len: {limit}` no row has a token to learn: raise it, or set "
            "`train_on_inputs: true`"
        )

    def _cut(self, row: dict[str, list[int]]) -> dict[str, list[int]] | None:
        """Count *row*, and return it cut to the longest length, or None if it has nothing to learn."""
        limit, length = self._job["sequence_len"], len(row["input_ids"])
        self.counts["rows"] += 1
        self.counts["tokens"] += length
        self.counts["longest"] = max(self.counts["longest"], length)
        self.counts["largest"] = max(self.counts["largest"], max(row["input_ids"], default=0))
        if length > limit:
            self.counts["cut"] += 1
            self.counts["lost"] += length - limit
            row = {name: values[:limit] for name, values in row.items()}
        trained = sum(label != IGNORED for label in row["labels"])
        self.counts["trained"] += trained
        if not trained:
            self.counts["dropped"] += 1
            return None
        return row

    def _source_rows(
        self, source: Mapping[str, Any], rows: Iterator[Mapping[str, Any]]
    ) -> Iterator[dict[str, list[int]]]:
        notes: list[str] = []
        first: list[Mapping[str, Any]] = []
        for row in rows:
            first.append(row)
            if len(first) == _COLUMNS_FROM:
                break
        columns = dict.fromkeys(name for row in first for name in row)
        form = source["type"] or form_of(list(columns), source["path"])
        talks = form == "completion" and bool(first) and is_conversational(first[0])
        self.forms.append("messages" if talks else form)
        maker = RowTokenizer(self._tokenizer, form, whole=self._job["train_on_inputs"], source=source["path"])
        at = 0
        judge = Judge(form)
        for row in _both(first, rows):
            columns.update(dict.fromkeys(row))
            at += 1
            if judge.learns(row, at):
                yield from maker.rows(row, at - 1)
        unused = [name for name in unused_columns(list(columns), form) if name not in judge.columns]
        if unused:
            shown = ", ".join(f"`{name}`" for name in unused)
            notes.append(f"not used: column{'s' * (len(unused) > 1)} {shown}{misspelt(columns, USED[form])}")
        self._notes += [*notes, *judge.notes(at), *maker.notes()]
        self.thinks |= maker.thinks
        self._used_template |= maker.used_template

    def notes(self) -> list[str]:
        """Return what has to be said about the data, a line each."""
        found = list(dict.fromkeys(self._notes))
        if self._job["chat_template"] and not self._used_template:
            found.append("not used: `chat_template`, since no row has messages")
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"job": self._job}  # `datasets` hashes the state, and the folder is of this job alone


def _both(first: Sequence[Any], more: Iterator[Any]) -> Iterator[Any]:
    yield from first
    yield from more


class RowTokenizer:
    """Tokenises a row, and labels the tokens that the loss includes.

    With *whole*, the loss includes all of them.
    """

    def __init__(self, tokenizer: Any, form: str, *, whole: bool, source: str) -> None:
        self._tokenizer, self._form, self._whole, self._source = tokenizer, form, whole, source
        self._turns = TurnFinder(tokenizer)
        self._seen: Counter[str] = Counter()
        self._ending = ""
        self.thinks = False
        self.used_template = False

    def __call__(self, row: Mapping[str, Any], at: int) -> dict[str, list[int]]:
        """Return the tokens of a row that is trained as one text."""
        return next(self.rows(row, at))

    def rows(self, row: Mapping[str, Any], at: int) -> Iterator[dict[str, list[int]]]:
        """Yield the tokens of the row *at* (from 0).  A conversation may be trained as several texts."""
        place = Place(at + 1, self._source)
        try:
            yield from self._rows(row, place)
        except UnicodeEncodeError as error:
            raise place.fault("it has half a surrogate pair, which is not text") from error
        except RecursionError as error:
            raise place.fault("it is nested too deeply") from error

    def _rows(self, row: Mapping[str, Any], place: Place) -> Iterator[dict[str, list[int]]]:
        if self._form == "messages" or (self._form == "completion" and is_conversational(row)):
            found = list(self._conversation(row, place))
            self._seen["parted"] += len(found) > 1
            yield from found
            return
        pieces = list(self._pieces(row, place))
        ids = [one for part, _ in pieces for one in part]
        yield self._row(ids, [counts or self._whole for part, counts in pieces for _ in part])

    @staticmethod
    def _row(ids: Sequence[int], learnt: Sequence[bool]) -> dict[str, list[int]]:
        labels = [one if counts else IGNORED for one, counts in zip(ids, learnt)]  # noqa: B905 (Python 3.9)
        return {"input_ids": list(ids), "attention_mask": [1] * len(ids), "labels": labels}

    # Texts

    def _pieces(self, row: Mapping[str, Any], place: Place) -> Iterator[tuple[list[int], bool]]:
        if self._form == "text":
            ids = self._first(text_of(row, "text", place))
            yield ids, True
            yield self._end(ids), True
            return
        if self._form == "input_output":
            yield from self._segments(row, place)
            return
        if self._form == "alpaca":
            turns = list(alpaca_turns(row, place))
        else:
            turns = [(text_of(row, "prompt", place), text_of(row, "completion", place))]
        for number, (prompt, answer) in enumerate(turns):
            yield (self._more(prompt) if number else self._first(prompt)), False
            ids = self._more(answer)
            yield ids, True
            yield self._end(ids), True

    def _segments(self, row: Mapping[str, Any], place: Place) -> Iterator[tuple[list[int], bool]]:
        """Yield the tokens of segments, each by itself and without special ones added, as axolotl does."""
        ids: list[int] = []
        for text, is_learnt in segments_of(row, place):
            ids = self._more(text)
            yield ids, is_learnt
        self._seen["open"] += bool(self._end(ids))

    def _first(self, text: str) -> list[int]:
        """Return the tokens of a text with the special ones that the tokenizer puts before it.

        They are not added to a text that begins with them.  An end that some tokenizers add is left out.
        """
        ids, bare = list(self._tokenizer(text)["input_ids"]), self._more(text)
        for start in range(len(ids) - len(bare) + 1):
            if ids[start : start + len(bare)] == bare:
                break
        else:
            return ids  # this tokenizer does more than to add tokens
        before, after = ids[:start], ids[start + len(bare) :]
        if after == [self._tokenizer.eos_token_id]:
            after = []
        has_them = bool(before) and bare[: len(before)] == before
        return [*([] if has_them else before), *bare, *after]

    def _more(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _end(self, ids: Sequence[int]) -> list[int]:
        """Return the token that ends a text, unless *ids* have it already."""
        end = self._tokenizer.eos_token_id
        return [] if end is None or (ids and ids[-1] == end) else [end]

    # Conversations

    def _conversation(self, row: Mapping[str, Any], place: Place) -> Iterator[dict[str, list[int]]]:
        if not getattr(self._tokenizer, "chat_template", None):  # that of mistral-common has no such key
            raise UnusableData(
                "the model's tokenizer has no chat template: use the instruction-tuned model, or set "
                "`chat_template: chatml`"
            )
        self.used_template = True
        conversation = conversation_of(row, self._form, place, self._turns.template)
        system, first = row.get("system"), conversation.messages[:1]
        self._seen["two systems"] += bool(system and first and first[0]["content"] != system)
        try:
            for found in self._turns.rows(conversation, whole=self._whole):
                self._note(found)
                ids, learnt = tokenised(self._tokenizer, found.text, found.spans)
                yield self._row(ids, learnt)
        except TemplateFault as fault:
            raise place.fault(f"{fault}{_advice(str(fault))}") from fault
        if conversation.options.get("tools") and not self._seen["with tools"]:
            self._seen["with tools"] = 1
            self._seen["ignores tools"] = self._turns.ignores_tools(conversation)

    def _note(self, found: Rendered) -> None:
        self.thinks |= found.thinks
        self._seen["forgot"] += found.forgot
        self._ending = found.ending or self._ending
        self._seen["endless"] += found.ending == ""

    def notes(self) -> list[str]:
        """Return what has to be said about the rows, a line each."""
        found = []
        if self._seen["ignores tools"]:
            found.append("not used: `tools`, which the chat template does not write")
        if self._seen["two systems"]:
            found.append(
                f"not used: `system` in {self._seen['two systems']:,} rows whose messages have their own"
            )
        if self._seen["forgot"]:
            found.append(f"the chat template leaves out thinking of answers in {self._seen['forgot']:,} rows")
        if self._seen["parted"]:
            found.append(
                f"{self._seen['parted']:,} conversations are trained as one text for each answer, since "
                "the chat template writes earlier turns anew"
            )
        if self._seen["endless"]:
            found.append(
                "the chat template writes nothing that ends an answer: the model does not learn to stop"
            )
        if self._seen["open"]:
            found.append(
                f"segments: no token that ends a text is at the end of {self._seen['open']:,} of the rows, "
                "and none is added"
            )
        end = self._ending.strip()
        if end and len(self._more(end)) > 1:
            found.append(f"`{end}`, which ends a turn, is {len(self._more(end))} tokens for this tokenizer")
        return found


def _advice(fault: str) -> str:
    if "alternate" in fault:
        return "; the roles of this row do not alternate as the template needs"
    if "system" in fault.lower() and "refuses" in fault:
        return "; put the system text into the first message of the user, or set another `chat_template`"
    return ""


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
