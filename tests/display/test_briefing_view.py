from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock.display.briefing_view import briefing_document, receipt_document
from colablock.display.html import to_html
from colablock.display.text import render, to_text
from colablock.training.find_or_start import Briefing
from colablock.training.preflight.checks import Preflight
from colablock.training.preflight.facts import FP16, FP32, Finding, Level
from colablock.training.preflight.memory import Estimate
from colablock.training.runs.config import config_from
from tests.support.html import body
from tests.support.screens import console, written
from tests.support.training import T4_RECEIPT

URL = (
    "https://hub.example/an-organisation-of-a-long-name/a-model-whose-name-is-longer-than-a-line-has-room-for"
)
FOLDER = Path("/content/drive/MyDrive/outputs-of-a-long-name/of-a-model-whose-name-is-long/and-of-its-data")
EVIL = "<script>alert('x')</script>"
PREPARED: dict[str, Any] = {
    "rows": 1204,
    "tokens": 412_118,
    "trained": 230_440,
    "forms": ["messages", "messages"],
    "cut": 31,
    "lost": 9000,
    "longest": 4000,
    "dropped": 2,
    "sample": [
        ("<|im_start|>user\nWrite f.<|im_end|>\n", False),
        ("def f(x):\n    return x\n\n\x1b[31mdone<|im_end|>", True),
    ],
}
TIGHT = Finding(
    level=Level.WARN,
    what="it is tight: about 14.1 GiB of the card's memory are needed, and 14.6 GiB are free",
    fix="set `micro_batch_size: 1`",
)
RECEIPT = replace(
    T4_RECEIPT,
    card="NVIDIA L4",
    precision="bf16",
    before=6.255,
    after=6.084,
    held=(6.255, 6.255),
    seconds=70.0,
    memory=69_534_208,
    notes=(),
)


def a_preflight(*findings: Finding, **facts: Any) -> Preflight:
    usual: dict[str, Any] = {
        "findings": findings,
        "precision": FP16,
        "estimate": Estimate(parts={"weights": 600 << 20, "loss": 1800 << 20, "slack": 10 << 20}),
        "processes": 1,
        "attention": "sdpa",
        "config": config_from({"base_model": "some/tiny", "datasets": ["x.jsonl"]}, source=""),
    }
    return Preflight(**(usual | facts))


def a_briefing(*findings: Finding, model: str = "some/tiny", **facts: Any) -> Briefing:
    config = config_from({"base_model": model, "datasets": ["x.jsonl"], "sequence_len": 1024}, source="")
    usual: dict[str, Any] = {
        "config": config,
        "runner": "trl",
        "preflight": a_preflight(*findings),
        "folder": Path("/content/outputs/tiny"),
        "cards": ("Tesla T4",),
        "prepared": PREPARED,
    }
    return Briefing(**(usual | facts))


# Text


def test_briefing_as_text() -> None:
    note = Finding(level=Level.NOTE, what="trains in fp16", why="the Tesla T4 has no units for bf16")
    briefing = a_briefing(
        TIGHT, note, workarounds=("gqa-before-ampere",), resumed_from="checkpoint-40", steps=(151, 8)
    )
    to = console()
    render(briefing_document(briefing), to)
    assert written(to).splitlines() == [
        "QLoRA of some/tiny with trl, fp16, on Tesla T4, resuming from checkpoint-40",
        "  memory       about 2.4 GiB: loss 1.8 GiB, weights 600 MiB",
        "  data         1,204 rows (messages), 412,118 tokens, 230,440 of them trained;",
        "               31 rows (3 %) are longer than 1,024 tokens and are cut, which",
        "               loses 2 % of all tokens; 2 rows have no trained token left and",
        "               are dropped",
        "  steps        151, of 8 rows each (1 at a time), for 1 epoch",
        "  workarounds  gqa-before-ampere",
        "  output       /content/outputs/tiny",
        "  warning      it is tight: about 14.1 GiB of the card's memory are needed, and",
        "               14.6 GiB are free; set `micro_batch_size: 1`",
        "  note         trains in fp16: the Tesla T4 has no units for bf16",
        "",
        "One training row; the loss counts only what is trained",
        "  masked   <|im_start|>user",
        "           Write f.<|im_end|>",
        "  trained  def f(x):",
        "               return x",
        "",
        r"           \x1b[31mdone<|im_end|>",
    ]
    assert to_text(briefing_document(briefing)) + "\n" == written(to)


@pytest.mark.parametrize(
    ("config", "steps", "text"),
    [
        ({}, (2, 8), "2, of 8 rows each (1 at a time), for 1 epoch"),
        ({"micro_batch_size": 8, "num_epochs": 1.5}, (1, 8), "1, of 8 rows, for 1.5 epochs"),
        ({"gradient_accumulation_steps": 1}, (1200, 1), "1,200, of 1 row each, for 1 epoch"),
        ({"max_steps": 4}, (4, 8), "4, of 8 rows each (1 at a time), as `max_steps` says"),
    ],
)
def test_the_number_of_steps_is_explained(
    config: dict[str, object], steps: tuple[int, int], text: str
) -> None:
    given = config_from({"base_model": "some/tiny", "datasets": ["x.jsonl"], **config}, source="")
    assert f"  steps   {text}\n" in to_text(briefing_document(a_briefing(config=given, steps=steps)))


@pytest.mark.parametrize(
    ("cards", "processes", "where"),
    [
        ((), 1, "on the CPU"),
        (("NVIDIA L4",), 1, "on NVIDIA L4"),
        (("Tesla T4", "Tesla T4"), 2, "on 2 Tesla T4, 2 processes"),
        (("Tesla T4", "NVIDIA L4"), 2, "on Tesla T4 and NVIDIA L4, 2 processes"),
    ],
)
def test_the_title_names_the_cards(cards: tuple[str, ...], processes: int, where: str) -> None:
    briefing = a_briefing(cards=cards, preflight=a_preflight(processes=processes, precision=FP32))
    title = f"QLoRA of some/tiny with trl, fp32, {where}"
    assert to_text(briefing_document(briefing)).splitlines()[0] == title
    assert body(to_html(briefing_document(briefing))).one("p", "cl-head").text == title


def test_unknown_facts_are_left_out() -> None:
    text = to_text(briefing_document(a_briefing(preflight=a_preflight(estimate=None), prepared=None)))
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["output"]


def test_paths_and_urls_are_not_broken() -> None:
    gated = Finding(level=Level.REFUSE, what="the model is gated", why=f"accept its licence at {URL}")
    sample = [(f"See {URL} and say what is there.", False)]
    briefing = a_briefing(gated, model=str(FOLDER), folder=FOLDER, prepared={**PREPARED, "sample": sample})
    lines = to_text(briefing_document(briefing)).splitlines()
    assert f"  model    {FOLDER}" in lines
    assert f"  output   {FOLDER}" in lines
    assert [line.strip() for line in lines].count(URL) == 2
    others = [line for line in lines if URL not in line and str(FOLDER) not in line]
    assert max(map(len, others)) <= 80


def test_receipt_as_text(tmp_path: Path) -> None:
    assert to_text(receipt_document(RECEIPT)).splitlines() == [
        "qlora-2026 trains: 10 steps of QLoRA with trl on NVIDIA L4, bf16, in 1 min 10 s",
        "  PASS         the loss of fixed rows falls: 6.255 -> 6.084 in 10 steps",
        "  PASS         with learning rate 0 it stays: 6.255 -> 6.255",
        "  memory       at most 66 MiB",
        "  workarounds  gqa-before-ampere",
        "next: colablock train qlora-2026 --model MODEL --dataset FILE",
    ]
    failed = replace(RECEIPT, after=6.254, card="cpu", notes=(f"see {URL}",), workarounds=())
    to = console()
    render(receipt_document(failed, path=tmp_path / "receipt.json"), to)
    assert written(to).splitlines() == [
        "qlora-2026 does not train: 10 steps of QLoRA with trl on the CPU, bf16, in 1 min",
        "  10 s",
        "  FAIL     the loss of fixed rows falls: 6.255 -> 6.254 in 10 steps",
        "  PASS     with learning rate 0 it stays: 6.255 -> 6.255",
        "  memory   at most 66 MiB",
        "  note     see",
        f"           {URL}",
        f"  receipt  {tmp_path / 'receipt.json'}",
    ]


def test_warnings_and_failures_are_coloured() -> None:
    to = console(colour=True)
    render(briefing_document(a_briefing(TIGHT)), to)
    render(receipt_document(replace(RECEIPT, after=7.0)), to)
    text = written(to)
    assert "\x1b[33mwarning\x1b[0m  it is tight" in text
    assert "\x1b[31mFAIL\x1b[0m" in text
    assert "\x1b[32mPASS\x1b[0m" in text


# HTML


def test_briefing_as_html() -> None:
    block = body(to_html(briefing_document(a_briefing(TIGHT))))
    assert block.one("span", "cl-warn").text == "warning"
    assert [one.text for one in block.all("code")] == ["/content/outputs/tiny", "micro_batch_size: 1"]
    assert block.one("pre").one("mark").text.startswith("def f(x):\n    return x\n")
    assert block.all("mark")[0].text == "trained"
    assert "<|im_start|>user\nWrite f.<|im_end|>\n" in block.one("pre").text
    assert not body(to_html(briefing_document(a_briefing(prepared=None)))).all("details")


def test_receipt_as_html() -> None:
    block = body(to_html(receipt_document(replace(RECEIPT, after=7.0))))
    assert [one.text for one in block.all("span", "cl-bad")] == ["FAIL"]
    assert [one.text for one in block.all("span", "cl-good")] == ["PASS"]
    assert "at most 66 MiB" in block.text


def test_text_from_data_is_escaped() -> None:
    finding = Finding(level=Level.REFUSE, what=EVIL, why=EVIL, fix=EVIL)
    prepared = {**PREPARED, "forms": [EVIL], "sample": [(EVIL, False), (EVIL, True)]}
    briefing = a_briefing(
        finding,
        model=EVIL,
        runner=EVIL,
        folder=Path(EVIL),
        cards=(EVIL,),
        workarounds=(EVIL,),
        prepared=prepared,
        resumed_from=EVIL,
    )
    receipt = replace(RECEIPT, matrix=EVIL, runner=EVIL, card=EVIL, workarounds=(EVIL,), notes=(EVIL,))
    for view, times in ((briefing_document(briefing), 12), (receipt_document(receipt), 6)):
        html = to_html(view)
        assert "<script" not in html.lower()
        block = body(html)
        assert not block.all("script")
        assert block.text.count(EVIL) == times


def test_notes_about_the_data_are_shown() -> None:
    prepared = {**PREPARED, "notes": ["not used: column `tools`"]}
    text = to_text(briefing_document(a_briefing(prepared=prepared)))
    assert "note not used: column `tools`" in " ".join(text.split())
