from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.display.info_view import list_document
from colablock.display.text import to_text
from colablock.environment.accelerator import Accelerator, Device, declared
from colablock.errors import InvalidInput
from colablock.matrix.catalog import find_matrix
from colablock.operations.info import list_facts
from colablock.training.evidence import passed_receipts, proofs_of, remarks_of
from colablock.training.preflight.facts import ProvenEnvironment
from colablock.training.receipts import (
    MOST_KEPT,
    Receipt,
    card_key,
    covering_receipt,
    drop_receipt,
    is_old,
    keep_receipt,
    kept_receipts,
    proof_note,
    read_receipts,
    receipt_from,
    receipt_to,
    receipts_folder,
    write_receipt,
)
from tests.support.training import T4_RECEIPT as T4

NOTHING: dict[str, Any] = {**dict.fromkeys(("resolved", "applied", "imported")), "planned": {}, "trained": []}
CPU = replace(T4, card="cpu", compute_capability=None, driver=None, cuda=None, precision="fp32")


@pytest.mark.parametrize("receipt", [T4, CPU])
def test_a_receipt_round_trips(receipt: Receipt, tmp_path: Path) -> None:
    path = tmp_path / "m.receipts" / "a.json"
    path.parent.mkdir()
    write_receipt(receipt, path)
    value = json.loads(path.read_text())
    assert value["passed"] is True
    assert receipt_from(value, source="a") == receipt
    assert read_receipts(str(tmp_path / "m.toml")) == (receipt,)


@pytest.mark.parametrize(
    ("changes", "fell", "held_still"),
    [
        ({}, True, True),
        ({"after": 5.75}, False, True),
        ({"after": 5.71}, False, True),  # within what two evaluations differ by
        ({"after": 5.69}, True, True),
        ({"after": float("nan")}, False, True),
        ({"held": (5.75, 5.7509)}, True, True),
        ({"held": (5.75, 5.74)}, True, False),
        ({"held": (5.75, float("nan"))}, True, False),
    ],
)
def test_a_receipt_passes_if_both_checks_pass(changes: dict[str, Any], fell: bool, held_still: bool) -> None:
    receipt = replace(T4, **changes)
    assert (receipt.fell, receipt.held_still) == (fell, held_still)
    assert receipt.passed == (fell and held_still)
    assert receipt_to(receipt)["passed"] == receipt.passed


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "`r.json` is not a receipt with schema 1"),
        ({}, "`r.json` is not a receipt with schema 1"),
        ({**receipt_to(T4), "schema": 2}, "`r.json` is not a receipt with schema 1"),
        ({"schema": 1, "matrix": "m"}, "`r.json` is not a complete receipt: .*missing"),
    ],
)
def test_an_invalid_receipt_is_refused(value: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        receipt_from(value, source="r.json")
    assert receipt_from({**receipt_to(T4), "of_a_later_version": 1}, source="r.json") == T4


def test_receipts_are_read_beside_the_matrix(tmp_path: Path) -> None:
    matrix = tmp_path / "my.matrix.toml"
    folder = receipts_folder(str(matrix))
    assert folder == tmp_path / "my.matrix.receipts"
    assert read_receipts(str(matrix)) == ()
    folder.mkdir()
    write_receipt(T4, folder / "tesla-t4.json")
    write_receipt(CPU, folder / "cpu.json")
    (folder / "half.json").write_text("{")
    (folder / "other.json").write_text("[]")
    (folder / "note.txt").write_text("")
    assert read_receipts(str(matrix)) == (CPU, T4)


@pytest.mark.parametrize(
    ("cards", "key"),
    [([], "cpu"), (["T4"], "7.5"), (["H100", "T4"], "7.5"), (["G4"], "12.0"), (["A100", "G4"], "8.0")],
)
def test_the_key_of_a_machine_is_that_of_its_oldest_card(cards: list[str], key: str) -> None:
    devices = tuple(device for name in cards for device in declared(name).devices)
    assert card_key(Accelerator(kind="cuda", devices=devices)) == key


def test_a_card_of_unknown_capability_has_no_key() -> None:
    unknown = Accelerator(kind="cuda", devices=(Device(name="GRID", compute_capability="", memory=1),))
    its_own = replace(T4, card="GRID", compute_capability="")
    assert covering_receipt([T4, CPU, its_own], unknown, digest="d") is None
    assert covering_receipt([its_own], Accelerator(), digest="d") is None
    assert "is not proven on GRID" in proof_note("m.toml", "tiny", unknown, digest="d")


@pytest.mark.parametrize(
    ("receipts", "card", "digest", "found"),
    [
        ([T4, CPU], "T4", "d", T4),
        ([T4, CPU], "none", "d", CPU),
        ([T4, CPU], "A100", "d", None),
        ([T4], "T4", "changed since", None),
        ([replace(T4, after=9.0)], "T4", "d", None),
        ([replace(T4, after=9.0), T4], "T4", "d", T4),
        ([], "T4", "d", None),
    ],
)
def test_a_receipt_covers_its_capability_and_the_current_matrix(
    receipts: list[Receipt], card: str, digest: str, found: Receipt | None
) -> None:
    assert covering_receipt(receipts, declared(card), digest=digest) == found


@pytest.mark.parametrize(
    ("accelerator", "said"),
    [
        (declared("H100"), "training with it is proven on NVIDIA H100 80GB HBM3 (2026-11-26)"),
        (
            declared("T4"),
            "training with it is not proven on Tesla T4; `colablock smoke tiny` tests it in minutes",
        ),
        (Accelerator(), "training with it is not proven on a CPU; `colablock smoke tiny`"),
        (Accelerator(kind="cuda"), "training with it is proven on NVIDIA H100 80GB HBM3; `colablock smoke"),
    ],
)
def test_the_proof_note_says_which_cards_receipts_cover(
    tmp_path: Path, accelerator: Accelerator, said: str
) -> None:
    matrix = tmp_path / "tiny.toml"
    card = "NVIDIA H100 80GB HBM3"
    proven = replace(
        T4, matrix_digest="now", card=card, compute_capability="9.0", date="2026-11-26T10:00:00Z"
    )
    write_receipt(proven, receipts_folder(str(matrix)) / "h100.json")
    assert proof_note(str(matrix), "tiny", accelerator, digest="now").startswith(said)
    changed = proof_note(str(matrix), "tiny", accelerator, digest="since")
    assert "is not proven" in changed  # the matrix is another one by now


def test_the_last_smoke_runs_of_a_machine_count_like_receipts_beside_the_matrix(tmp_path: Path) -> None:
    home, source = tmp_path / "home", str(tmp_path / "tiny.toml")
    stack: dict[str, Any] = {"digest": "d", "kept": kept_receipts(home, "tiny")}
    assert "is not proven on a CPU" in proof_note(source, "tiny", Accelerator(), **stack)
    mine = replace(CPU, matrix="tiny", variant="cpu", versions={"trl": "1.0"})
    for number in range(MOST_KEPT + 2):
        one = replace(mine, versions={"trl": f"1.{number}"})
        keep_receipt(one, home)
        keep_receipt(one, home)  # a second run takes the place of the first
    (home / "receipts" / "tiny" / "0.json").write_text("[]")
    kept = kept_receipts(home, "tiny")
    assert len(kept) == MOST_KEPT
    pins = {canonicalize_name("trl"): "1.20"}
    stack = {"digest": "another", "pins": pins, "kept": kept}
    assert (
        proof_note(source, "tiny", Accelerator(), **stack)
        == f"training with it is proven on a CPU ({CPU.date[:10]})"
    )
    proven = ProvenEnvironment(
        matrix="tiny", python="", lock="", runner=None, variant="cpu", versions={"trl": "1.20"}
    )
    assert drop_receipt(proven, mine.runner, Accelerator(), home)  # it learns no more
    assert not drop_receipt(proven, mine.runner, Accelerator(), home)
    assert len(kept_receipts(home, "tiny")) == MOST_KEPT - 1
    assert kept_receipts(home, "../receipts/tiny") == ()
    keep_receipt(replace(mine, matrix="../tiny"), home)
    assert not (home / "tiny").exists()
    locked = tmp_path / "locked"
    locked.write_text("no folder")
    keep_receipt(mine, locked)  # what cannot be written is not kept


def test_matrices_with_one_name_are_listed_with_their_own_proofs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = 'schema = 1\nname = "{}"\n[packages]\ntrl = ">=1"\n[train]\nrunner = "trl"\n'
    folders = [tmp_path / "matrices", tmp_path / "far"]
    for folder in folders:
        folder.mkdir()
        (folder / "mine.toml").write_text(text.format("mine"))
    near, far = (folder / "mine.toml" for folder in folders)
    far.write_text(far.read_text() + "# another\n")
    digest = find_matrix(str(far)).digest
    write_receipt(replace(T4, matrix_digest=digest), receipts_folder(str(far)) / "t4.json")
    when = {"date": T4.date[:10], "old": is_old(T4.date, datetime.now(timezone.utc)), "earlier": False}
    trained = {"card": "Tesla T4", "variant": T4.variant, "runner": T4.runner, "receipts": 1, **when}
    proven = {**{key: trained[key] for key in ("card", "variant", "date")}, "remarks": remarks_of(when)}
    found = list_facts({"COLABLOCK_MATRICES": "far"})["matrices"]
    assert isinstance(found, list)
    assert [one for one in found if one["name"] == "mine"] == [
        {
            "name": "mine",
            "source": str(near.relative_to(tmp_path)),
            "training": "not proven on any card",
            "evidence": NOTHING,
        },
        {
            "name": "mine",
            "source": str(far.relative_to(tmp_path)),
            "shadowed_by": str(near.relative_to(tmp_path)),
            "training": "proven on Tesla T4",
            "proofs": [proven],
            "evidence": {**NOTHING, "applied": when, "imported": when, "trained": [trained]},
        },
    ]


def test_the_list_says_the_same_of_a_receipt_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text('schema = 1\nname = "tiny"\n[packages]\ntrl = ">=1"\n[train]\nrunner = "trl"\n')
    digest, folder = find_matrix(str(path)).digest, receipts_folder(str(path))
    now = datetime.now(timezone.utc)
    today, before = now.isoformat(), (now - timedelta(days=99)).isoformat()
    base = replace(T4, matrix_digest=digest, date=today, variant="cu121", card="NVIDIA L4")
    write_receipt(base, folder / "a.json")
    write_receipt(replace(base, matrix_digest="before", date=before), folder / "b.json")
    write_receipt(replace(CPU, matrix_digest=digest, date=before), folder / "c.json")
    write_receipt(replace(base, after=9.0, card="NVIDIA A100"), folder / "d.json")  # it did not pass
    write_receipt(replace(base, card="NVIDIA H100", matrix_digest="before"), folder / "e.json")
    facts: Any = list_facts({"COLABLOCK_MATRICES": str(tmp_path)})
    (listed,) = (one for one in facts["matrices"] if one["name"] == "tiny")
    assert [(one["card"], one["date"], one["remarks"]) for one in listed["proofs"]] == [
        ("NVIDIA L4", today[:10], []),
        ("NVIDIA L4", before[:10], ["older than 90 days", "earlier matrix"]),
        ("CPU", before[:10], ["older than 90 days"]),
        ("NVIDIA H100", today[:10], ["earlier matrix"]),
    ]
    assert listed["training"] == "proven on CPU, NVIDIA L4"
    trained = {one["card"]: remarks_of(one) for one in listed["evidence"]["trained"]}
    assert trained == {"CPU": ["older than 90 days"], "NVIDIA H100": ["earlier matrix"], "NVIDIA L4": []}
    assert "~: earlier matrix, which asked for other versions" in to_text(list_document(facts))


@pytest.mark.parametrize("variant", [None, "cu121", "cu118"])
def test_a_receipt_covers_the_same_versions_of_its_variant(variant: str | None) -> None:
    name = canonicalize_name("torch")
    proven = replace(T4, variant="cu121", versions={"torch": "2.4.0", "pip": "1"})
    for pins, expected in (({name: "2.4.0"}, proven), ({name: "2.4.1"}, None), ({}, None)):
        found = covering_receipt([proven], declared("T4"), digest="changed", variant=variant, pins=pins)
        assert found == (None if variant == "cu118" else expected)


ASKED = """
schema = 1
name = "tiny"
requires-python = ">=3.10,<3.14"
[packages]
torch = ">=2.11,<3"
trl = ">=0.29,<2"
coverage = { version = ">=7", marker = "python_version < '3.11'" }
[packages.axolotl]
url = "https://example.com/axolotl-0.4.0.tar.gz"
version = "0.4.0"
requires-dist = ["fire"]
[constraints]
setuptools = "<81"
[absent]
torchao = "<0.13"
[variants.cuda]
[variants.cpu]
[variants.cpu.packages]
torch = "==2.13.0"
[variants.cpu.absent]
flash-attn = ""
[train]
runner = "axolotl"
workarounds = ["load-in-4bit-twice"]
"""
STACK = {"torch": "2.11.0+cu128", "trl": "0.29.1", "axolotl": "0.4.0+colablock.0123"}


@pytest.mark.parametrize(
    ("changes", "versions", "is_asked"),
    [
        ({}, {}, True),
        ({}, {"setuptools": "80.9.0", "pip": "1"}, True),
        ({}, {"setuptools": "81.0.0"}, False),
        ({}, {"torch": "2.10.0"}, False),
        ({}, {"torch": "3.0.0"}, False),
        ({}, {"trl": ""}, False),  # it is not there
        ({}, {"torch": "new"}, False),
        ({}, {"axolotl": "0.4.1"}, False),
        ({}, {"coverage": "6.5"}, False),
        ({"python_version": "3.14.0"}, {}, False),
        ({"variant": "cpu"}, {}, False),  # it has another torch
        ({"variant": "cpu"}, {"torch": "2.13.0+cpu"}, True),
        ({"variant": "rocm"}, {}, False),
        ({"workarounds": ()}, {}, False),
        ({"workarounds": (), "runner": "trl"}, {}, True),
        ({"workarounds": ("load-in-4bit-twice", "gqa-before-ampere")}, {}, True),
        ({}, {"torchao": "0.10.0"}, False),
        ({}, {"torchao": "0.12.1rc1"}, False),
        ({}, {"torchao": "0.14.0"}, True),
        ({}, {"torchao": "new"}, False),
        ({}, {"flash-attn": "2.8.3"}, True),
        ({"variant": "cpu"}, {"torch": "2.13.0+cpu", "flash-attn": "2.8.3"}, False),
        ({"variant": "cpu"}, {"torch": "2.13.0+cpu", "torchao": "0.10.0"}, False),
        ({"after": 9.0}, {}, False),  # it did not pass
    ],
)
def test_a_receipt_outlives_changes_of_the_matrix_that_still_ask_for_its_stack(
    tmp_path: Path, changes: dict[str, Any], versions: dict[str, str], *, is_asked: bool
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(ASKED)
    matrix = find_matrix(str(path))
    stack = {name: text for name, text in {**STACK, **versions}.items() if text}
    base = {"variant": "cuda", "runner": "axolotl", "workarounds": ("load-in-4bit-twice",), "versions": stack}
    proven = replace(T4, **{**base, "python_version": "3.12.3", "matrix_digest": "before", **changes})
    write_receipt(proven, receipts_folder(str(path)) / "t4.json")
    any_card = Accelerator(kind="cuda")
    found = proof_note(str(path), "tiny", any_card, digest=matrix.digest, asked=matrix)
    assert ("is proven on Tesla T4; " in found) == is_asked
    assert "is not proven on any card" in proof_note(str(path), "tiny", any_card, digest=matrix.digest)
    note = proof_note(str(path), "tiny", declared("T4"), digest=matrix.digest, asked=matrix)
    assert ("is proven on Tesla T4" in note) == is_asked
    for one in proofs_of(matrix, passed_receipts(matrix)):
        assert ("earlier matrix" in one["remarks"]) != is_asked


TORCH = 'schema = 1\nname = "tiny"\n[packages]\ntorch = ">=2.6,<3"\ntrl = ">=0.11"\n[train]\nrunner = "trl"\n'
OLD = {"torch": "2.6.0+cpu", "trl": "0.11.4", "numpy": "2.0.2", "fsspec": "1"}


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        (OLD, "is proven on Tesla T4 (2026-11-26)"),
        ({"torch": "2.6.0"}, "is proven on Tesla T4 (2026-11-26)"),  # a build of that version
        (None, "is proven on Tesla T4 (2026-11-26)"),
        ({**OLD, "torch": "2.6.0+cu124"}, "(2026-11-26) with other versions only (torch 2.6.0+cpu); "),
        ({**OLD, "torch": "2.10.0"}, "(2026-11-26) with other versions only (torch 2.6.0+cpu); "),
        ({**OLD, "trl": "0.29.1", "numpy": "2.1"}, "with other versions only (trl 0.11.4, numpy 2.0.2); "),
        ({**OLD, "tyro": "1"}, "with other versions only (no tyro); "),
        (
            {"torch": "2.10", "trl": "1", "numpy": "3", "fsspec": "2", "tyro": "1"},
            "(torch 2.6.0+cpu, trl 0.11.4, fsspec 1 and 2 more); `colablock smoke tiny` tests these versions",
        ),
        ({**OLD, "trl": "0.12"}, "is proven on Tesla T4 (2026-11-28)"),  # of the receipts, the nearest
    ],
)
def test_the_proof_note_says_if_the_versions_of_the_receipt_are_others(
    tmp_path: Path, pins: dict[str, str] | None, said: str
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TORCH)
    matrix = find_matrix(str(path))
    proven = replace(T4, matrix_digest="before", variant=None, runner="trl", versions=OLD, date="2026-11-26")
    write_receipt(proven, receipts_folder(str(path)) / "a.json")
    later = replace(proven, versions={**OLD, "trl": "0.12"}, date="2026-11-28")
    write_receipt(later, receipts_folder(str(path)) / "b.json")
    stack: dict[str, Any] = {"pins": pins, "digest": matrix.digest, "asked": matrix}
    note = proof_note(str(path), "tiny", declared("T4"), **stack)
    assert said in note
    assert note.endswith("in minutes") == ("other versions" in note)
    on_any = proof_note(str(path), "tiny", Accelerator(kind="cuda"), **stack)
    assert ("is proven on Tesla T4; " in on_any) == ("other versions" not in note)
    assert on_any.endswith("`colablock smoke tiny` tests it on the card of the machine")
