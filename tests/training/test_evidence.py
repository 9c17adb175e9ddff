"""The evidence beside a matrix: of its check, of applies and of trainings, with dates and marks."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from colablock.display.info_view import list_document
from colablock.display.text import to_text
from colablock.matrix.catalog import find_matrix
from colablock.training.evidence import ApplyReceipt, evidence_of, read_apply_receipts, write_apply_receipt
from colablock.training.receipts import Receipt, read_receipts, receipts_folder, write_receipt
from tests.support.training import T4_RECEIPT

NOW = datetime(2026, 11, 29, tzinfo=timezone.utc)
TEXT = """
schema = 1
name = "tiny"
[packages]
trl = ">=0.29,<1"
[variants.cuda]
[variants.cpu]
"""
T4 = replace(T4_RECEIPT, variant="cuda", versions={"trl": "0.29.1"}, date="2026-11-20T10:00:00Z")
APPLY = ApplyReceipt(
    matrix="tiny",
    matrix_digest="before",
    variant="cpu",
    lock="0" * 64,
    target="env",
    python_version="3.12.3",
    card="cpu",
    checks=9,
    imports=("trl",),
    date="2026-11-25T10:00:00Z",
    colablock="0.1.0",
    versions={"trl": "0.29.0"},
)


def seen(folder: Path, *receipts: Receipt | ApplyReceipt, check: object = None) -> dict[str, Any]:
    """Return the evidence beside a matrix with these files."""
    path = folder / "tiny.toml"
    path.write_text(TEXT)
    for at, one in enumerate(receipts):
        file = receipts_folder(str(path)) / f"{at}.json"
        if isinstance(one, Receipt):
            write_receipt(one, file)
        else:
            write_apply_receipt(one, file)
    if check is not None:
        (folder / "tiny.checks.json").write_text(check if isinstance(check, str) else json.dumps(check))
    return evidence_of(find_matrix(str(path)), now=NOW)


def dated(date: str, *, old: bool = False, earlier: bool = False) -> dict[str, Any]:
    return {"date": date, "old": old, "earlier": earlier}


def test_without_a_file_there_is_no_evidence(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {
        **dict.fromkeys(("resolved", "applied", "imported")),
        "planned": {},
        "trained": [],
    }
    assert seen(tmp_path) == nothing


def test_a_training_proves_the_apply_and_the_imports_before_it(tmp_path: Path) -> None:
    failed = replace(T4, after=9.0, date="2026-11-28T10:00:00Z")
    found = seen(tmp_path, failed, T4, replace(T4, date="2026-01-01T10:00:00Z"))
    when = dated("2026-11-20")
    assert (found["applied"], found["imported"], found["resolved"]) == (when, when, None)
    facts = {"card": "Tesla T4", "variant": "cuda", "runner": T4.runner, "receipts": 2}
    assert found["trained"] == [{**facts, **when}]


def test_an_apply_is_evidence_of_its_own(tmp_path: Path) -> None:
    found = seen(tmp_path, T4, APPLY, replace(APPLY, imports=(), date="2026-11-27T10:00:00Z"))
    assert (found["applied"], found["imported"]) == (dated("2026-11-27"), dated("2026-11-25"))
    assert [one["card"] for one in found["trained"]] == ["Tesla T4"]
    assert len(read_apply_receipts(str(tmp_path / "tiny.toml"))) == 2
    assert read_receipts(str(tmp_path / "tiny.toml")) == (T4,)


@pytest.mark.parametrize(
    ("versions", "date", "marks"),
    [
        ({"trl": "0.29.1"}, "2026-09-01T00:00:01Z", dated("2026-09-01")),
        ({"trl": "0.29.1"}, "2026-08-30T23:00:00Z", dated("2026-08-30", old=True)),
        ({"trl": "1.0.0"}, "2026-11-20T10:00:00Z", dated("2026-11-20", earlier=True)),
        ({"trl": "1.0.0"}, "2026-08-01T10:00:00Z", dated("2026-08-01", old=True, earlier=True)),
    ],
)
def test_dates_are_marked_as_old_and_as_of_an_earlier_matrix(
    tmp_path: Path, versions: dict[str, str], date: str, marks: dict[str, Any]
) -> None:
    found = seen(
        tmp_path, replace(T4, versions=versions, date=date), replace(APPLY, date=date, versions=versions)
    )
    assert (found["applied"], found["imported"]) == (marks, marks)
    assert {key: found["trained"][0][key] for key in marks} == marks


def test_what_the_matrix_still_asks_for_counts_before_what_is_newer(tmp_path: Path) -> None:
    other = replace(T4, versions={"trl": "1.0.0"}, date="2026-11-28T10:00:00Z")
    cpu = replace(other, card="cpu", compute_capability=None)
    found = seen(tmp_path, T4, other, cpu)
    assert found["applied"] == dated("2026-11-20")
    assert [(one["card"], one["date"], one["earlier"]) for one in found["trained"]] == [
        ("CPU", "2026-11-28", True),
        ("Tesla T4", "2026-11-20", False),
    ]


RESULT = {"runtime": "colab-2026.08-gpu", "verdict": "kernel", "lock": "pylock.tiny.toml"}
RESULTS = [
    RESULT,
    {**RESULT, "verdict": "none", "lock": None},  # another card of the same runtime
    {**RESULT, "runtime": "colab-2026.08-cpu", "verdict": "env"},
    {**RESULT, "runtime": "colab-2025.07-cpu", "verdict": "none", "lock": None},
]


@pytest.mark.parametrize(
    ("changes", "resolved"),
    [
        ({}, dated("2026-11-28")),
        ({"date": "2026-08-01"}, dated("2026-08-01", old=True)),
        ({"matrix-digest": "before"}, dated("2026-11-28", earlier=True)),
        ({"date": None}, None),  # written before results had a date
        ({"results": []}, None),
    ],
)
def test_the_check_says_when_the_locks_were_made_and_where_they_go(
    tmp_path: Path, changes: dict[str, Any], resolved: object
) -> None:
    (tmp_path / "tiny.toml").write_text(TEXT)
    digest = find_matrix(str(tmp_path / "tiny.toml")).digest
    check = {"schema": 1, "matrix-digest": digest, "date": "2026-11-28", "results": RESULTS, **changes}
    found = seen(tmp_path, check=check)
    assert found["resolved"] == resolved
    assert found["planned"] == ({"kernel": 1, "env": 1, "none": 1} if check["results"] else {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "{}",
        '{"results": 7}',
        '{"results": [7]}',
        '{"results": [{"verdict": "x"}]}',
        "[" * 9999,
    ],
)
def test_a_damaged_file_is_no_evidence(tmp_path: Path, text: str) -> None:
    folder = receipts_folder(str(tmp_path / "tiny.toml"))
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.json").write_text(text)
    (folder / "c.json").write_text('{"kind": "apply", "schema": 1, "imports": 7}')
    found = seen(tmp_path, check=text)
    assert (found["resolved"], found["applied"], found["planned"]) == (None, None, {})


def test_the_list_has_one_table_of_dates_within_80_columns(tmp_path: Path) -> None:
    cards = [
        replace(T4, card=card)
        for card in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GB300 NVL72 <engineering>")
    ]
    old = replace(
        T4, card="cpu", compute_capability=None, date="2026-01-01T00:00:00Z", versions={"trl": "1.0.0"}
    )
    matrix = {"name": "qlora-2026-12-axolotl", "evidence": seen(tmp_path, old, *cards)}
    text = to_text(list_document({"matrices": [matrix], "runtimes": []}), width=80)
    lines = [line.rstrip() for line in text.splitlines()]
    start = next(at for at, line in enumerate(lines) if "resolved" in line)
    assert lines[start : start + 8] == [
        "matrix                 resolved  applied     imported    trained",
        "qlora-2026-12-axolotl  -         2026-11-20  2026-11-20  CPU 2026-01-01*~",
        "                                                         GB300 2026-11-20",
        "                                                         H100 2026-11-20",
        "                                                         H200 2026-11-20",
        "",
        "*: older than 90 days",
        "~: earlier matrix, which asked for other versions",
    ]
    assert max(map(len, lines)) <= 80
