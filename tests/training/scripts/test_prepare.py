"""Tokenised data: single functions with a tokenizer of words, the script in the environment of stand-ins."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from colablock._common.reporter import Reporter
from colablock.errors import InvalidInput, Unmet
from colablock.training.prepared_data import prepare_data
from colablock.training.runs.config import DataFormat, DataSource
from colablock.training.runs.folder import RunFolder
from tests.support.training_stack import Bench, TrainingStack, build_training_stack


@pytest.fixture(scope="module")
def prepare() -> Iterator[ModuleType]:
    """Return the script as a module."""
    return importlib.import_module("colablock.training.scripts.prepare")


class Words:
    """A tokenizer whose tokens are words and the characters between them."""

    def __init__(
        self, *, template: str | None = None, bos: bool = True, closes: bool = False, eos: str | None = "</s>"
    ) -> None:
        self.known = ["<s>", "</s>"]
        self.chat_template = template
        self.eos_token_id = self.known.index(eos) if eos else None
        self._bos, self._closes = bos, closes

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        parts = re.findall(r"<[^>]*>|\w+|\s+|[^\w\s]", text)
        self.known += [part for part in dict.fromkeys(parts) if part not in self.known]
        ids = [self.known.index(part) for part in parts]
        if add_special_tokens:
            ids = [0] * self._bos + ids + [1] * self._closes
        return {"input_ids": ids}

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.known[one] for one in ids)

    def apply_chat_template(
        self, messages: list[Mapping[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        return TEMPLATES[str(self.chat_template)](messages, add_generation_prompt)


def plain_template(messages: list[Mapping[str, str]], opens: bool) -> str:
    turns = [f"<{one['role']}>{one['content']}<end>" for one in messages]
    return "".join(turns) + ("<assistant>" if opens else "")


def forgetful_template(messages: list[Mapping[str, str]], opens: bool) -> str:
    """A template that omits the thoughts of earlier turns."""
    texts = [one["content"] for one in messages]
    kept = [text.split("/")[-1] for text in texts[:-1]] + texts[-1:]
    return plain_template([{**one, "content": text} for one, text in zip(messages, kept, strict=True)], opens)


def promptless_template(messages: list[Mapping[str, str]], opens: bool) -> str:
    return plain_template(messages, False) if not opens else "elsewhere"


TEMPLATES: Mapping[str, Callable[[list[Mapping[str, str]], bool], str]] = {
    "plain": plain_template,
    "forgetful": forgetful_template,
    "promptless": promptless_template,
}


def made(
    prepare: ModuleType, tokenizer: Words, form: str, row: Mapping[str, Any], *, whole: bool = False
) -> list[tuple[str, bool]]:
    """Return the pieces of a tokenised row, each with whether the loss includes it."""
    found = prepare.RowTokenizer(tokenizer, form, whole=whole, source="d")(row, 0)
    assert found.keys() == {"input_ids", "attention_mask", "labels"}
    assert found["attention_mask"] == [1] * len(found["input_ids"]) == [1] * len(found["labels"])
    assert all(label in (-100, one) for one, label in zip(found["input_ids"], found["labels"], strict=True))
    return [(text, counts) for text, counts in prepare.sample(tokenizer, found)]


SHORT = "Below is an instruction that describes a task. Write a response that appropriately completes the "
SHORT += "request.\n\n### Instruction:\nadd\n\n### Response:\n"
TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "no"},
]
FORMS: list[tuple[str, dict[str, Any], list[tuple[str, bool]]]] = [
    ("text", {"text": "a b"}, [("<s>a b</s>", True)]),
    ("text", {"text": ""}, [("<s></s>", True)]),
    ("completion", {"prompt": "a", "completion": " b"}, [("<s>a", False), (" b</s>", True)]),
    ("alpaca", {"instruction": "add", "input": "", "output": "2"}, [("<s>" + SHORT, False), ("2</s>", True)]),
    ("alpaca", {"instruction": "add", "output": "2"}, [("<s>" + SHORT, False), ("2</s>", True)]),
    ("alpaca", {"instruction": None, "input": None, "output": "2"}, [("", False), ("2</s>", True)]),
    (
        "messages",
        {"messages": TALK},
        [
            ("<system>be kind<end><user>hello<end><assistant>", False),
            ("hi<end>", True),
            ("<user>more<end><assistant>", False),
            ("no<end>", True),
        ],
    ),
    ("messages", {"messages": TALK[:2]}, [("<system>be kind<end><user>hello<end>", False)]),
    ("messages", {"messages": TALK[2:3]}, [("<assistant>", False), ("hi<end>", True)]),
    ("messages", {"messages": []}, []),
    (
        "input_output",
        {"segments": [{"text": "<s>ask", "label": False}, {"text": " b</s>", "label": 1}]},
        [("<s>ask", False), (" b</s>", True)],
    ),
    (
        "input_output",
        {"segments": '[{"text": "a", "label": true}, {"text": "b", "label": false}]'},
        [("a", True), ("b", False)],
    ),
    ("input_output", {"segments": []}, []),
]


@pytest.mark.parametrize(("form", "row", "pieces"), FORMS)
def test_each_format_labels_the_answers(
    prepare: ModuleType, form: str, row: dict[str, Any], pieces: list[tuple[str, bool]]
) -> None:
    found = made(prepare, Words(template="plain"), form, row)
    if pieces and not pieces[0][0]:  # of the long prompts only that they are none of what is learnt
        found[0] = ("", found[0][1])
    assert found == pieces
    text = "".join(piece for piece, _ in made(prepare, Words(template="plain"), form, row))
    whole = made(prepare, Words(template="plain"), form, row, whole=True)
    assert whole == ([(text, True)] if text else [])


def test_the_input_of_alpaca_is_in_the_prompt(prepare: ModuleType) -> None:
    row = {"instruction": "add", "input": "1 1", "output": "2"}
    (given, _), _ = made(prepare, Words(), "alpaca", row)
    assert "provides further context" in given
    assert given.endswith("### Instruction:\nadd\n\n### Input:\n1 1\n\n### Response:\n")


@pytest.mark.parametrize(
    ("tokenizer", "pieces"),
    [
        (Words(bos=False), [("a", False), ("b</s>", True)]),
        (Words(closes=True), [("<s>a", False), ("b</s>", True)]),  # one that closes every text itself
        (Words(eos=None), [("<s>a", False), ("b", True)]),
        (Words(eos=None, closes=True), [("<s>a</s>", False), ("b", True)]),
    ],
)
def test_tokenizers_may_add_tokens_at_start_and_end(
    prepare: ModuleType, tokenizer: Words, pieces: list[tuple[str, bool]]
) -> None:
    assert made(prepare, tokenizer, "completion", {"prompt": "a", "completion": "b"}) == pieces


def test_an_answer_that_is_written_anew_later_is_trained_in_a_text_of_its_own(prepare: ModuleType) -> None:
    talk = [TALK[1], {"role": "assistant", "content": "think/hi"}, *TALK[3:]]
    tokenizer = Words(template="forgetful")
    maker = prepare.RowTokenizer(tokenizer, "messages", whole=False, source="d")
    rows = [prepare.sample(tokenizer, row) for row in maker.rows({"messages": talk}, 0)]
    assert rows == [
        [["<user>hello<end><assistant>", False], ["think/hi<end>", True]],
        [["<user>hello<end><assistant>hi<end><user>more<end><assistant>", False], ["no<end>", True]],
    ]
    assert "1 conversations are trained as one text for each answer" in "".join(maker.notes())


def test_a_second_system_text_is_told(prepare: ModuleType) -> None:
    maker = prepare.RowTokenizer(Words(template="plain"), "messages", whole=False, source="d")
    list(maker.rows({"messages": TALK, "system": "be rude"}, 0))
    list(maker.rows({"messages": TALK[1:], "system": "be rude"}, 1))
    list(maker.rows({"messages": TALK, "system": "be kind"}, 2))
    assert maker.notes() == ["not used: `system` in 1 rows whose messages have their own"]


def test_half_a_surrogate_pair_is_no_text(prepare: ModuleType) -> None:
    class Strict(Words):
        def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
            text.encode()
            return super().__call__(text, add_special_tokens=add_special_tokens)

    with pytest.raises(prepare.UnusableData, match="row 1 of `d`: it has half a surrogate pair"):
        made(prepare, Strict(), "text", {"text": json.loads(r'"a\ud800"')})


def test_a_template_may_ignore_the_generation_prompt(prepare: ModuleType) -> None:
    found = made(prepare, Words(template="promptless"), "messages", {"messages": TALK[1:3]})
    assert found == [("<user>hello<end><assistant>", False), ("hi<end>", True)]


UNUSABLE: list[tuple[str | None, str, dict[str, Any], str]] = [
    (None, "text", {"text": 3}, r"row 1 of `d` has no text in `text`"),
    (None, "text", {"text": None}, r"row 1 of `d` has no text in `text`"),
    (None, "completion", {"prompt": "a"}, r"row 1 of `d` has no text in `completion`"),
    (None, "alpaca", {"instruction": "a", "output": 2}, r"row 1 of `d` has no text in `output`"),
    (None, "input_output", {"segments": "a"}, r"row 1 of `d`: `segments` must be a list, but it is text"),
    (None, "input_output", {"segments": ["a"]}, r"row 1 of `d`: segment 1 must be an object with `text`"),
    (None, "input_output", {"segments": [{"label": True}]}, r"segment 1 has no text in `text`: it is not"),
    (None, "input_output", {"segments": [{"text": "a"}]}, r"`label` of segment 1 .* but is not there"),
    (None, "input_output", {"segments": [{"text": "a", "label": "x"}]}, r"must be true or false, but is 'x'"),
    (None, "messages", {"messages": TALK}, r"no chat template: .* or set `chat_template: chatml`"),
]


@pytest.mark.parametrize(("template", "form", "row", "words"), UNUSABLE)
def test_an_unusable_row_is_reported(
    prepare: ModuleType, template: str | None, form: str, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(prepare.UnusableData, match=words):
        made(prepare, Words(template=template), form, row)


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        (["text"], "text"),
        (["id", "text", "prompt"], "text"),
        (["prompt", "completion"], "completion"),
        (["instruction", "output"], "alpaca"),
        (["instruction", "input", "output", "text"], "alpaca"),
        (["messages", "prompt", "completion"], "messages"),
        (["conversations"], "messages"),
        (["text", "conversation"], "messages"),
        (["segments"], "input_output"),
    ],
)
def test_the_format_follows_from_the_columns(prepare: ModuleType, columns: list[str], form: str) -> None:
    assert prepare.form_of(columns, "d") == form


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["question", "answer"], r"the columns of `d` \(`question`, `answer`\) match no format: `text`;"),
        (["prompt", "chosen", "rejected"], r"`d` has preferences .* not training on preferences"),
        (["prompt"], "match no format"),
    ],
)
def test_columns_that_match_no_format_are_refused(
    prepare: ModuleType, columns: list[str], words: str
) -> None:
    with pytest.raises(prepare.UnusableData, match=words):
        prepare.form_of(columns, "d")


def test_the_root_cause_is_one_line(prepare: ModuleType) -> None:
    outer = ValueError("it failed")
    outer.__cause__ = KeyError("a\n  b")
    assert prepare.cause_of(outer) == r"'a\n b'"
    assert len(prepare.cause_of(ValueError("long " * 100))) == 300


# -- the whole way


def prepared(bench: Bench, rows: Sequence[Mapping[str, Any]] | str, **changes: Any) -> dict[str, Any]:
    """Return the answer for *rows* as the only data file."""
    name = changes.pop("name", "rows.jsonl")
    path = bench.folder / name
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    source = DataSource(path=str(path), form=changes.pop("form", None))
    evaluate = changes.pop("evaluate", 0)
    job = bench.job(
        config=bench.config(datasets=changes.pop("datasets", (source,)), **changes), evaluate=evaluate
    )
    return prepare_data(job, RunFolder(bench.folder / "run"), bench.environ(), Reporter())


def rows_of(bench: Bench, name: str = "train") -> list[dict[str, list[int]]]:
    found: list[dict[str, list[int]]] = json.loads((bench.folder / f"run/data/{name}.parquet").read_text())
    return found


def test_data_is_tokenised_and_counted(bench: Bench) -> None:
    rows = [{"text": "a" * length} for length in (3, 10, 30)]
    said = prepared(bench, rows, sequence_len=20, evaluate=2)
    assert said == said | {
        "rows": 3,
        "tokens": 3 + 10 + 30 + 3 * 2,
        "cut": 1,
        "lost": 12,
        "dropped": 0,
        "trained": 5 + 12 + 20,
        "forms": ["text"],
        "train_rows": 3,
        "eval_rows": 0,
        "longest": 32,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "vocabulary": 259,
    }
    assert said["sample"] == [["<s>aaa</s>", True]]
    assert [len(row["input_ids"]) for row in rows_of(bench)] == [5, 12, 20]
    assert said["evaluate"] == [
        {name: row[name] for name in ("input_ids", "labels")} for row in rows_of(bench)[:2]
    ]
    assert json.loads((bench.folder / "run/data/result.json").read_text()) == said


def test_segments_are_learnt_by_their_labels(bench: Bench) -> None:
    closed = [{"text": "<s>ask", "label": False}, {"text": "b</s>", "label": True}]
    said = prepared(bench, [{"segments": closed}, {"segments": [closed[0], {"text": "c", "label": True}]}])
    assert (said["forms"], said["sample"]) == (["input_output"], [["<s>ask", False], ["b</s>", True]])
    assert said["notes"] == [
        "segments: no token that ends a text is at the end of 2 of the rows, and none is added"
    ]


def test_a_token_reaches_the_process_that_reads_the_tokenizer(bench: Bench) -> None:
    gated = bench.folder / "gated"
    shutil.copytree(bench.stack.model, gated)
    (gated / "gated").touch()
    job = bench.job(config=bench.config(base_model=str(gated)))
    folder = RunFolder(bench.folder / "run")
    with pytest.raises(Unmet, match="gated repo"):
        prepare_data(job, folder, bench.environ(), Reporter())
    job = replace(job, secrets={"HF_TOKEN": "hf_secret"})
    assert prepare_data(job, folder, bench.environ(), Reporter())["rows"] == 12


def test_the_targets_datasets_is_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.folder / "datasets").mkdir()
    (bench.folder / "datasets" / "__init__.py").write_text("raise RuntimeError('not the one')")
    monkeypatch.chdir(bench.folder)
    assert prepared(bench, [{"text": "a"}])["rows"] == 1


def test_truncation_may_remove_all_answers(bench: Bench) -> None:
    rows = [{"prompt": "p" * 30, "completion": "c"}, {"prompt": "p", "completion": "c"}]
    said = prepared(bench, rows, sequence_len=16)
    assert (said["rows"], said["dropped"], said["train_rows"]) == (2, 1, 1)
    with pytest.raises(InvalidInput, match="within `sequence_len: 16` no row has a token to learn"):
        prepared(bench, rows[:1], sequence_len=16)
    assert prepared(bench, rows[:1], sequence_len=16, train_on_inputs=True)["trained"] == 16


def test_rows_are_split_off_for_evaluation(bench: Bench) -> None:
    said = prepared(bench, [{"text": str(at)} for at in range(10)], val_set_size=0.2)
    assert (said["train_rows"], said["eval_rows"]) == (8, 2)
    assert (len(rows_of(bench)), len(rows_of(bench, "eval"))) == (8, 2)


def test_the_chat_template_is_the_users_or_chatml(bench: Bench) -> None:
    rows = [{"messages": TALK[1:3]}]
    said = prepared(bench, rows, chat_template="chatml", sequence_len=128)
    assert said["sample"] == [
        ["<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", False],
        ["hi<|im_end|>\n", True],
    ]
    assert said["forms"] == ["messages"]


def test_several_datasets_are_concatenated(bench: Bench) -> None:
    other = bench.folder / "other.csv"
    other.write_text("prompt,completion\na,b\n")
    first = DataSource(path=str(bench.folder / "rows.jsonl"))
    said = prepared(bench, [{"text": "x"}], datasets=(first, DataSource(path=str(other))))
    assert said["forms"] == ["text", "completion"]
    assert said["rows"] == 2


FAULTY: list[tuple[dict[str, Any], str]] = [
    ({"rows": "{\n"}, r"`.*rows\.jsonl` cannot be read as json: Expecting property name"),
    ({"rows": "a", "name": "rows.doc"}, r"is unknown: supported suffixes are \.jsonl"),
    ({"rows": [{"question": "a"}]}, "match no format"),
    ({"rows": [{"text": "a"}, {"text": None}]}, r"row 2 of `.*rows\.jsonl` has no text in `text`"),
    (
        {"rows": [{"text": "a"}], "form": DataFormat.ALPACA},
        r"row 1 of .* has no text in `output`: it is not there, and this row has `text`",
    ),
]


@pytest.mark.parametrize(("given", "words"), FAULTY)
def test_unusable_data_is_refused(bench: Bench, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=f"cannot train on this data: .*{words}"):
        prepared(bench, **given)


def test_a_missing_tokenizer_is_not_a_fault_of_the_data(bench: Bench) -> None:
    with pytest.raises(Unmet, match=r"could not prepare the data: OSError: Can't load tokenizer for"):
        prepared(bench, [{"text": "a"}], base_model="someone/model")


def test_a_model_without_a_tokenizer_says_so(bench: Bench) -> None:
    folder = bench.folder / "saved"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    words = f"the model `{folder}` has no tokenizer: its folder has no `tokenizer.json`"
    with pytest.raises(InvalidInput, match=re.escape(words)) as found:
        prepared(bench, [{"text": "a"}], base_model=str(folder))
    assert "save_pretrained" in (found.value.hint or "")
    (folder / "tokenizer.json").write_text("{}")  # one that cannot be loaded
    with pytest.raises(Unmet, match="could not prepare the data: "):
        prepared(bench, [{"text": "a"}], base_model=str(folder))


def test_cached_tokens_are_reused_only_for_the_same_data(bench: Bench) -> None:
    said = prepared(bench, [{"text": "a"}])
    tokens = bench.folder / "run" / "data" / "train.parquet"
    made = tokens.stat().st_mtime_ns
    assert prepared(bench, [{"text": "a"}]) == said
    assert tokens.stat().st_mtime_ns == made
    assert prepared(bench, [{"text": "longer"}])["tokens"] == said["tokens"] + 5


def test_a_stack_without_datasets_is_an_error(tmp_path: Path) -> None:
    stack: TrainingStack = build_training_stack(tmp_path / "env", without=["datasets"])
    with pytest.raises(
        Unmet, match="could not prepare the data: ModuleNotFoundError: No module named 'datasets'"
    ):
        prepared(Bench(stack=stack, folder=tmp_path), [{"text": "a"}])
