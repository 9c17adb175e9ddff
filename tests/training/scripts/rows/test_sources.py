"""The rows of files, what is said about them, and what is wrong with them."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from colablock.training.scripts.prepare import DataTokens, require_rows
from colablock.training.scripts.rows.messages import UnusableData
from colablock.training.scripts.rows.sources import Unreachable, rows_of, without_gaps


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def source(path: object, form: str | None = None) -> dict[str, Any]:
    return {"path": str(path), "type": form, "split": "train", "name": None}


TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TWO = [{"text": "a"}, {"text": "b"}]
FILES: dict[str, tuple[str, str | bytes, list[dict[str, Any]]]] = {
    "JSON lines": ("d.jsonl", lines(*TWO), TWO),
    "newline-delimited": ("d.ndjson", "\n" + lines(*TWO) + "\n", TWO),
    "a byte order mark": ("d.jsonl", b"\xef\xbb\xbf" + lines(*TWO).encode(), TWO),
    "a list": ("d.json", json.dumps(TWO, indent=1), TWO),
    "a list, called lines": ("d.jsonl", json.dumps(TWO), TWO),
    "lines, called JSON": ("d.json", lines(*TWO), TWO),
    "an object with a list": ("d.json", json.dumps({"data": TWO}), TWO),
    "one object": ("d.json", json.dumps(TWO[0], indent=1), TWO[:1]),
    "compressed": ("d.jsonl.gz", gzip.compress(lines(*TWO).encode()), TWO),
    "a table": (
        "d.csv",
        'text,id\n"a, b\nc",1\nNo,2\n',
        [{"text": "a, b\nc", "id": "1"}, {"text": "No", "id": "2"}],
    ),
    "tabs": ("d.tsv", "text\tid\na, b\t1\n", [{"text": "a, b", "id": "1"}]),
    "blank lines of a table": ("d.csv", "\ntext\r\na\r\n\r\nb\r\n", TWO),
    "separators in the quotes of a header": ("d.csv", '"text; more"\na\n', [{"text; more": "a"}]),
    "a quoted header of several lines": (
        "d.csv",
        '"text\tof\n| many; lines"\na\n',
        [{"text\tof\n| many; lines": "a"}],
    ),
    "quoted commas, and another separator": (
        "d.csv",
        '"text, long";"id"\na;"1,5"\n',
        [{"text, long": "a", "id": "1,5"}],
    ),
    "a quote in a word": ("d.csv", 'a 5" text;id\na;1\n', [{'a 5" text': "a", "id": "1"}]),
    "a table of Excel": (
        "d.csv",
        "\ufefftext;id;;\r\nä; 1,5;;\r\n;;;\r\n".encode(),
        [{"text": "ä", "id": " 1,5"}],
    ),
    "a table that declares its separator": ("d.csv", "sep=;\r\ntext, long\r\na\r\n", [{"text, long": "a"}]),
    "a table of Excel in UTF-16": (
        "d.csv",
        "text\tid\r\na\t1\r\n".encode("utf-16"),
        [{"text": "a", "id": "1"}],
    ),
    "UTF-16": ("d.tsv", "text\nä\n".encode("utf-16"), [{"text": "ä"}]),
    "UTF-32": ("d.jsonl", json.dumps({"text": "ä"}, ensure_ascii=False).encode("utf-32"), [{"text": "ä"}]),
    "UTF-32, the greater byte first": ("d.txt", b"\0\0\xfe\xff" + "ä".encode("utf-32-be"), [{"text": "ä"}]),
    "one row with messages": ("d.json", json.dumps({"messages": TALK}), [{"messages": TALK}]),
    "one row of ShareGPT": ("d.json", json.dumps({"conversations": TALK}), [{"conversations": TALK}]),
    "rows under the name of a column": (
        "d.json",
        json.dumps({"conversations": [{"messages": TALK}]}),
        [{"messages": TALK}],
    ),
    "no rows in an object": ("d.json", json.dumps({"text": []}), [{"text": []}]),
    "paragraphs": ("d.txt", "\na\nb\n\n \n\nc", [{"text": "a\nb"}, {"text": "c"}]),
    "compressed text": ("d.TXT.gz", gzip.compress(b"a\n\nb\n"), TWO),
    "a name with *": ("d[1]*?.jsonl", lines(*TWO), TWO),
    "dates stay texts": ("d.jsonl", lines({"text": "2020-01-01"}), [{"text": "2020-01-01"}]),
    "rows keep their own keys": (
        "d.jsonl",
        lines({"a": {"x": 1}}, {"a": {"y": 2}}),
        [{"a": {"x": 1}}, {"a": {"y": 2}}],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    file, content, rows = FILES[name]
    path = tmp_path / file
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / "d1xy.jsonl").write_text(lines({"text": "another"}))
    assert [dict(row) for row in rows_of(source(path), [])] == rows


class Characters:
    """A tokenizer with a token for each character.  Like Llama's it adds one before a text."""

    chat_template, eos_token_id, is_fast = None, 1, False

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        parts = re.findall(r"<s>|</s>|.", text, re.DOTALL)
        ids = [{"<s>": 0, "</s>": 1}.get(part) or (0 if part == "<s>" else ord(part)) for part in parts]
        return {"input_ids": [0] * add_special_tokens + ids}


def told(path: Path, form: str | None = None, **job: Any) -> tuple[list[str], list[str]]:
    """Return the texts that are trained, with their labels' texts behind ``|``, and the notes."""
    usual = {"sequence_len": 999, "train_on_inputs": False, "chat_template": None}
    tokens = DataTokens(Characters(), {**usual, "datasets": [source(path, form)], **job})
    texts = []
    for row in tokens.rows():
        learnt = [label for label in row["labels"] if label >= 0]
        texts.append(f"{written(row['input_ids'])}|{written(learnt)}")
    return texts, tokens.notes()


def written(ids: Sequence[int]) -> str:
    return "".join({0: "<s>", 1: "</s>"}.get(one, chr(one)) for one in ids)


ALPACA = "### Instruction:\nq\n\n### Response:\n"
BELOW = "<s>Below is an instruction that describes a task. "
BELOW += "Write a response that appropriately completes the request."
NOTED: dict[str, tuple[str, str, list[str], list[str]]] = {
    "columns that are not used": (
        "d.jsonl",
        lines({"id": 1, "text": "a", "system": "s", "tools": []}),
        ["<s>a</s>|<s>a</s>"],
        ["not used: columns `system`, `tools`"],
    ),
    "a misspelt column that is not needed": (
        "d.jsonl",
        lines({"instruction": "q", "output": "a", "inptu": "x"}),
        [f"{BELOW}\n\n{ALPACA}a</s>|a</s>"],
        ["not used: column `inptu`: did you mean `input`, not `inptu`?"],
    ),
    "another separator": (
        "d.csv",
        'prompt;completion\nq, r;"a; b"\n',
        ["<s>q, ra; b</s>|a; b</s>"],
        ["the cells of `d.csv` are read as separated by `;`"],
    ),
    "tabs in a csv": (
        "d.csv",
        "\nprompt\tcompletion\nq\ta\n",
        ["<s>qa</s>|a</s>"],
        ["the cells of `d.csv` are read as separated by tabs"],
    ),
    "commas in a tsv": (
        "d.tsv",
        "prompt,completion\nq,a\n",
        ["<s>qa</s>|a</s>"],
        ["the cells of `d.tsv` are read as separated by `,`"],
    ),
    "numbers of a table": (
        "d.csv",
        "prompt,completion\nq,1\n",
        ["<s>q1</s>|1</s>"],
        ["`completion` has numbers (row 1: `1`), which are read as text"],
    ),
    "paragraphs": (
        "d.txt",
        "a\n\nb",
        ["<s>a</s>|<s>a</s>", "<s>b</s>|<s>b</s>"],
        ["each paragraph of `d.txt` is a row: blank lines part 2 of them"],
    ),
    "one paragraph": (
        "d.txt",
        "a\nb\n",
        ["<s>a\nb</s>|<s>a\nb</s>"],
        ["`d.txt` has no blank line between texts: all of it is one row"],
    ),
    "labels of KTO": (
        "d.jsonl",
        lines(
            {"prompt": "q", "completion": "a", "label": True},
            {"prompt": "q", "completion": "b", "label": False},
        ),
        ["<s>qa</s>|a</s>"],
        ["left out: 1 of 2 rows, which `label` marks as not to learn"],
    ),
    "numbers of KTO": (
        "d.csv",
        "prompt,completion,label\nq,a,1\nq,b,0\n",
        ["<s>qa</s>|a</s>"],
        ["left out: 1 of 2 rows, which `label` marks as not to learn"],
    ),
    "weights of rows": (
        "d.jsonl",
        lines({"text": "a", "weight": 1}, {"text": "b", "weight": 0}),
        ["<s>a</s>|<s>a</s>"],
        ["left out: 1 of 2 rows, which `weight` marks as not to learn"],
    ),
    "weights between": (
        "d.jsonl",
        lines({"text": "a", "weight": 1}, {"text": "b", "weight": 0.5}, {"text": "c", "weight": 0}),
        ["<s>a</s>|<s>a</s>", "<s>b</s>|<s>b</s>"],
        [
            "left out: 1 of 3 rows, which `weight` marks as not to learn",
            "learnt in full: 1 of 3 rows, whose `weight` does not say whether (row 2: `0.5`)",
        ],
    ),
    "only weights between": (
        "d.jsonl",
        lines({"text": "a", "weight": 0.5}),
        ["<s>a</s>|<s>a</s>"],
        ["not used: column `weight`"],
    ),
    "weights of a table": (
        "d.csv",
        "text,weight\na,1.0\nb,0.0\nc,\n",
        ["<s>a</s>|<s>a</s>", "<s>c</s>|<s>c</s>"],
        ["left out: 1 of 3 rows, which `weight` marks as not to learn"],
    ),
    "a word that is no label": (
        "d.jsonl",
        lines(
            {"prompt": "q", "completion": "a", "label": "meh"},
            {"prompt": "q", "completion": "b", "label": True},
        ),
        ["<s>qa</s>|a</s>", "<s>qb</s>|b</s>"],
        ["learnt in full: 1 of 2 rows, whose `label` does not say whether (row 1: `meh`)"],
    ),
    "a label and a weight": (
        "d.jsonl",
        lines({"text": "a", "label": True, "weight": 0}, {"text": "b", "label": True, "weight": 1}),
        ["<s>b</s>|<s>b</s>"],
        ["left out: 1 of 2 rows, which `weight` marks as not to learn"],
    ),
    "words for answers": (
        "d.csv",
        "instruction,output,system,label\nq,b,S.,rejected\nq,a,S.,chosen\n",
        [f"<s>S.\n\n{ALPACA}a</s>|a</s>"],
        ["left out: 1 of 2 rows, which `label` marks as not to learn"],
    ),
    "words for texts": (
        "d.csv",
        "text,label\na,bad\n",
        ["<s>a</s>|<s>a</s>"],
        ["not used: column `label`"],
    ),
    "a class is no judgement": (
        "d.jsonl",
        lines({"text": "a", "label": 0}),
        ["<s>a</s>|<s>a</s>"],
        ["not used: column `label`"],
    ),
    "a system text of Alpaca": (
        "d.jsonl",
        lines({"instruction": "q", "output": "a", "system": "S."}),
        [f"<s>S.\n\n{ALPACA}a</s>|a</s>"],
        [],
    ),
    "a history of Alpaca": (
        "d.jsonl",
        lines({"instruction": "q", "input": "", "output": "a", "history": [["q", "b"]]}),
        [f"{BELOW}\n\n{ALPACA}b</s>\n\n{ALPACA}a</s>|b</s>a</s>"],
        [],
    ),
    "special tokens once": (
        "d.jsonl",
        lines({"text": "<s>a</s>"}, {"text": "b"}),
        ["<s>a</s>|<s>a</s>", "<s>b</s>|<s>b</s>"],
        [],
    ),
    "special tokens once, in a prompt": (
        "d.jsonl",
        lines({"prompt": "<s>q", "completion": "a</s>"}),
        ["<s>qa</s>|a</s>"],
        [],
    ),
    "special tokens once, in Alpaca": (
        "d.jsonl",
        lines({"instruction": "q", "output": "a</s>", "system": "<s>S."}),
        [f"<s>S.\n\n{ALPACA}a</s>|a</s>"],
        [],
    ),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_is_not_used_is_told(tmp_path: Path, name: str) -> None:
    file, content, texts, notes = NOTED[name]
    path = tmp_path / file
    path.write_text(content)
    assert told(path) == (texts, notes)


def test_a_template_without_messages_is_told(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(lines(TWO[0]))
    assert told(path, chat_template="{{ x }}")[1] == ["not used: `chat_template`, since no row has messages"]


FAULTS: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("d.jsonl", "", "`PATH` is empty: it has no row"),
    "white space": ("d.json", " \n", "`PATH` is empty: it has no row"),
    "only a header": ("d.csv", "text\n", "`PATH` is empty: it has no row"),
    "empty text": ("d.txt", "\n\n", "`PATH` is empty: it has no row"),
    "Latin-1": (
        "d.csv",
        "text\na\né\n".encode("latin-1"),
        "`PATH` is not UTF-8 (line 3 has the byte 0xe9): save it as UTF-8",
    ),
    "no JSON": (
        "d.jsonl",
        '{"text": "a"}\n{"text": a}\n',
        "`PATH` cannot be read as json: Expecting value (line 2, column 10)",
    ),
    "a line that is cut off": (
        "d.jsonl",
        '\n{"text": "a"}\n{"text": "b", \n',
        "Expecting property name enclosed in double quotes (line 3, column 14, where it ends)",
    ),
    "a line with two objects": ("d.jsonl", '{"text": "a"}\n{"text": "b"} {}\n', "(line 2, column 15)"),
    "a document that is cut off": (
        "d.json",
        '\n[{"text": "a"},\n {"text":\n\n',
        "`PATH` cannot be read as json: Expecting value (line 3, column 10, where it ends)",
    ),
    "a fault within a document": ("d.json", '\n[{"text": "a"},\n {"text": b}]', "value (line 3, column 11)"),
    "a misspelt column": (
        "d.csv",
        "prompd,completion\nq,a\n",
        "`instruction` and `output`; `segments`: did you mean `prompt`, not `prompd`?",
    ),
    "columns in other letters": (
        "d.csv",
        "Prompt, completion\nq,a\n",
        "`segments`: did you mean `prompt`, not `Prompt` and `completion`, not ` completion`?",
    ),
    "a misspelt key of one row": (
        "d.jsonl",
        lines({"prompt": "q", "completion": "a"}, {"prompd": "q", "completion": "a"}),
        "and this row has `prompd`, `completion`: did you mean `prompt`, not `prompd`?",
    ),
    "unknown columns that others separate": (
        "d.csv",
        "frage;antwort\nq;a\n",
        "the columns of `PATH` (`frage`, `antwort`) match no format",
    ),
    "cut off": ("d.json", '[{"text": "a"}', "`PATH` cannot be read as json: Expecting ',' delimiter (line 1"),
    "deep": ("d.json", "[" * 200_000, "`PATH` cannot be read as json: it is nested too deeply"),
    "deep lines": ("d.jsonl", '{"text": "a"}\n' + '{"a":' * 100_000, "it is nested too deeply (line 2)"),
    "UTF-16 without a mark": ("d.txt", "ab".encode("utf-16-le"), "line 1 has a NUL character"),
    "no objects": ("d.jsonl", "3\n", "row 1 of `PATH` is not an object with named values"),
    "a value": ("d.json", "3", "it is neither a list nor lines of objects"),
    "a quote that stays open": (
        "d.csv",
        'text\na\n"b\nc\n',
        "`PATH` cannot be read as csv: unexpected end of data (line 4)",
    ),
    "two columns": ("d.csv", "text,text\na,b\n", "`PATH` has two columns `text`"),
    "rows of two forms": (
        "d.jsonl",
        lines({"messages": []}, {"text": "a"}),
        "the model's tokenizer has no chat template",
    ),
    "too many cells": ("d.csv", "text\na,b\n", "row 1 of `PATH` has 2 cells, and the header names 1"),
    "a cell in a column without a name": (
        "d.csv",
        "prompt,completion,\na,b,c\n",
        "header names 2: put cells with a separator in them into quotes, and name every column",
    ),
    "a space before a quote": (
        "d.csv",
        'prompt,completion\nq, "a, b"\n',
        "row 1 of `PATH` has 3 cells, and the header names 2: remove the space before a quote",
    ),
    "not compressed": ("d.csv.gz", "text\n", "`PATH` cannot be read: Not a gzipped file"),
    "cut off while compressed": ("d.csv.gz", gzip.compress(b"text\n" * 999)[:-9], "`PATH` cannot be read: "),
    "number": (
        "d.jsonl",
        lines({"text": "a"}, {"text": 5}),
        "row 2 of `PATH` has no text in `text`: it is the number 5, not text",
    ),
    "null": (
        "d.jsonl",
        lines({"text": "a"}, {"text": None}),
        "row 2 of `PATH` has no text in `text`: it is `null`",
    ),
    "truth": (
        "d.jsonl",
        lines({"text": True}),
        "row 1 of `PATH` has no text in `text`: it is `true`, not text",
    ),
    "NaN": ("d.jsonl", '{"text": NaN}', "it is `NaN`, which stands for a missing value"),
    "list": ("d.jsonl", lines({"text": ["a"]}), "it is a list, not text"),
    "object": ("d.jsonl", lines({"text": {}}), "it is an object, not text"),
    "no key": (
        "d.jsonl",
        lines({"text": "a"}, {"txet": "b"}),
        "row 2 of `PATH` has no text in `text`: it is not there",
    ),
    "NA": (
        "d.csv",
        "prompt,completion\nq,a\nq,NA\n",
        "row 2 of `PATH` has no text in `completion`: it is `NA`, which stands for",
    ),
    "null of a table": (
        "d.tsv",
        "text\nnull\n",
        "row 1 of `PATH` has no text in `text`: it is `null`, which stands for",
    ),
    "NA for an instruction": (
        "d.csv",
        "instruction,input,output\nq,NA,a\nNA,NA,a\n",
        "row 2 of `PATH` has no text in `instruction`: it is `NA`, which stands for a missing value",
    ),
    "an empty cell": ("d.csv", "text,id\n,3\n", "row 1 of `PATH` has no text in `text`: the cell is empty"),
    "history": (
        "d.jsonl",
        lines({"instruction": "q", "output": "a", "history": ["x"]}),
        "row 1 of `PATH`: `history` must be a list of pairs",
    ),
    "preferences": ("d.jsonl", lines({"chosen": "a", "rejected": "b"}), "`PATH` has preferences"),
    "all bad": (
        "d.jsonl",
        lines({"prompt": "q", "completion": "a", "label": False}),
        "its labels or weights exclude every row",
    ),
    "no template": (
        "d.jsonl",
        lines({"messages": [{"role": "user", "content": "q"}]}),
        "no chat template: use",
    ),
    "suffix": ("d.docx", "x", "the format of `PATH` is unknown: supported suffixes are .jsonl"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_row_and_cause(tmp_path: Path, name: str) -> None:
    file, content, words = FAULTS[name]
    path = tmp_path / file
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UnusableData, match=re.escape(words.replace("PATH", str(path)))):
        told(path)


DIGITS = "9" * 5000


@pytest.mark.skipif(not hasattr(sys, "get_int_max_str_digits"), reason="this Python reads any number")
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("d.json", "cannot be read as json: a number has too many digits"),
        ("d.jsonl", "cannot be read as json: a number has too many digits (line 1)"),
    ],
)
def test_a_number_of_too_many_digits_is_a_fault(tmp_path: Path, file: str, words: str) -> None:
    path = tmp_path / file
    path.write_text(f'{{"text": "a", "n": {DIGITS}}}')
    with pytest.raises(UnusableData, match=re.escape(words)):
        told(path)


TEN = [{"text": str(number)} for number in range(10)]
SPLITS = {
    "train": "0123456789",
    "train[:1]": "0",
    "train[2:4]": "23",
    "train[-2:]": "89",
    "train[:-8]": "01",
    "train[:25%]": "01",
    "train[90%:]": "9",
    "train[-10%:]": "9",
    "train[:200]": "0123456789",
    "train[:10%]+train[-1:]": "09",
    "train[:1_0]": "0123456789",
}
NO_SPLITS = {
    "test": "has no split `test`: ",
    "train+validation[:1]": "has no split `validation`: ",
    "train[:": "is not a valid split: write `train`, `train[:100]`",
    "train[:110%]": "is not a valid split",
    "train[5:10%]": "is not a valid split",
}


class Saved(list[dict[str, str]]):
    """Rows as `load_from_disk` returns them."""

    split = None

    def select(self, indices: Sequence[int]) -> list[dict[str, str]]:
        return [self[at] for at in indices]


@pytest.mark.parametrize("split", [*SPLITS, *NO_SPLITS])
def test_a_split_of_files_is_taken_or_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, split: str
) -> None:
    library: dict[str, Any] = {"load_from_disk": lambda _: Saved(TEN)}
    monkeypatch.setitem(sys.modules, "datasets", cast("ModuleType", SimpleNamespace(**library)))
    path, saved = tmp_path / "d.jsonl", tmp_path / "saved"
    path.write_text(lines(*TEN))
    saved.mkdir()
    (saved / "state.json").write_text("{}")
    for place in (path, saved):
        given = {**source(place), "split": split}
        if split in SPLITS:
            assert "".join(row["text"] for row in rows_of(given, [])) == SPLITS[split]
        else:
            with pytest.raises(UnusableData, match=re.escape(NO_SPLITS[split])):
                rows_of(given, [])


def test_a_folder_is_read_like_its_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.txt").write_text("c\n\nd")
    (tmp_path / "a.jsonl").write_text(lines(*TWO))
    assert [row["text"] for row in rows_of(source(tmp_path), [])] == ["a", "b", "c", "d"]
    (tmp_path / "a-test.jsonl").write_text(lines({"text": "t"}))
    (tmp_path / "train_1.jsonl").write_text(lines({"text": "1"}))
    for split, texts in (
        ("train", ["1"]),
        ("test", ["t"]),
        ("test+train[:50%]", ["t"]),
        ("train[-1:]", ["1"]),
    ):
        found = rows_of({**source(tmp_path), "split": split}, [])
        assert [row["text"] for row in found] == texts


def fails(error: Exception) -> Callable[..., object]:
    def load(*_: object, **__: object) -> object:
        raise error

    return load


def broken() -> Iterator[dict[str, str]]:
    yield {"text": "a"}
    raise OSError("broken image")


LIBRARY: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not on the hub": (
        {"load_dataset": fails(FileNotFoundError("Couldn't find 'a/b'"))},
        UnusableData,
        "`a/b` cannot be loaded: Couldn't find 'a/b'",
    ),
    "a script": (
        {"load_dataset": fails(RuntimeError("Dataset scripts are no longer supported"))},
        UnusableData,
        "Dataset scripts are no longer supported",
    ),
    "no network": (
        {"load_dataset": fails(ConnectionError("Couldn't reach the Hub"))},
        Unreachable,
        "`a/b` cannot be loaded: Couldn't reach the Hub",
    ),
    "a row": (
        {"load_dataset": lambda *_, **__: broken()},
        UnusableData,
        "`a/b` cannot be read: broken image",
    ),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_errors_of_the_library_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    library, kind, words = LIBRARY[name]
    monkeypatch.setitem(sys.modules, "datasets", cast("ModuleType", SimpleNamespace(**library)))
    with pytest.raises(kind, match=re.escape(words)):
        list(rows_of(source("a/b"), []))


def test_a_saved_folder_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved: dict[str, Any] = {"load_from_disk": lambda _: {"train": TWO, "test": TWO[:1]}}
    monkeypatch.setitem(sys.modules, "datasets", cast("ModuleType", SimpleNamespace(**saved)))
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert list(rows_of(source(tmp_path), [])) == TWO
    with pytest.raises(UnusableData, match="has no split `dev`: it has `train`, `test`"):
        rows_of({**source(tmp_path), "split": "dev"}, [])
    saved["load_from_disk"] = fails(FileNotFoundError("no arrow file"))
    monkeypatch.setitem(sys.modules, "datasets", cast("ModuleType", SimpleNamespace(**saved)))
    with pytest.raises(UnusableData, match="cannot be read: no arrow file"):
        rows_of(source(tmp_path), [])


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnusableData, match="does not exist"):
        told(tmp_path / "d.jsonl")


def test_gaps_of_arrow_are_left_out() -> None:
    row = {
        "a": None,
        "messages": [{"content": None, "calls": [{"arguments": {"x": 1, "y": None}}], "weight": None}],
    }
    assert without_gaps(row) == {
        "a": None,
        "messages": [{"content": None, "calls": [{"arguments": {"x": 1}}]}],
    }


@pytest.mark.parametrize(
    ("count", "share", "fits"), [(1, 0.5, False), (2, 0.9, False), (2, 0.5, True), (9, 0.01, True)]
)
def test_a_share_leaves_rows_for_both(count: int, share: float, fits: bool) -> None:
    if fits:
        require_rows(count, share)
    else:
        with pytest.raises(UnusableData, match=r"with `val_set_size: .*` . of . rows are for evaluation"):
            require_rows(count, share)
