from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.display.info_view import facts_document, notes_document, preview_document, undone_document
from colablock.display.text import to_text
from colablock.transaction.history import Change
from colablock.transaction.rollback import UndoneChange
from colablock.transaction.undo.preview import UndoPreview


def test_facts_are_listed_by_name() -> None:
    facts = {
        "version": "1",
        "externally_managed": False,
        "accelerator": None,
        "matrices": [
            {"name": "a", "summary": "one", "variants": ["cpu", "cu118"]},
            {"name": "b", "date": None},
        ],
        "python": {"executable": "/bin/python", "commands": [["a", "--help"], ["b"]]},
    }
    assert to_text(facts_document(facts)) == (
        "  version             1\n"
        "  externally managed  no\n"
        "  accelerator         none\n"
        "\n"
        "Matrices (2)\n"
        "  a  one; variants: cpu, cu118\n"
        "  b\n"
        "\n"
        "Python (2)\n"
        "  executable  /bin/python\n"
        "  commands    a --help, b"
    )


def test_sections_without_simple_facts_begin_at_the_top() -> None:
    assert to_text(facts_document({"python": {"executable": "/bin/python"}})).startswith("Python (1)\n")


def test_notes_follow_the_title() -> None:
    assert to_text(notes_document("wrote x", ["one", "two"])) == "wrote x\nnote: one\nnote: two"


CHANGE = Change(
    number=1,
    folder=Path("/env/.colablock/changes/0001"),
    when="2026-11-24T14:56:00+00:00",
    matrix="tiny",
    stack="",
    lock=None,
    steps=(),
    before={},
    runtime=None,
    stashed={},
    placed=(),
    created=(),
    applied_before=None,
    is_dropped=False,
)


def test_an_undo_names_what_it_put_back_set_aside_left_and_broke() -> None:
    undone = UndoneChange(
        change=CHANGE,
        set_aside=tuple(f"/env/new/{number}" for number in range(7)),
        aside="/home/set-aside/x-change-1",
        left=("/env/old/mine",),
        companions={canonicalize_name("core"): "2.33"},
        broken=("a 1 requires `b`, but it is not installed",),
    )
    assert " ".join(to_text(undone_document([undone])).split()) == (
        "The environment is as it was before change 1 (tiny)."
        " put back as well: core 2.33"
        " broken now: a 1 requires `b`, but it is not installed"
        " moved 7 files of no distribution to `/home/set-aside/x-change-1`: /env/new/0, /env/new/1,"
        " /env/new/2, /env/new/3, /env/new/4 and 2 more"
        " left 1 file of no distribution beside the restored ones: /env/old/mine"
    )


def test_a_preview_names_what_would_break() -> None:
    nothing = UndoPreview(changes=(CHANGE,))
    assert to_text(preview_document(nothing)) == ""
    found = replace(
        nothing,
        broken=("a 1 requires `core==2.33`, but 2.50 is installed",),
        companions={canonicalize_name("core"): "2.33"},
        beyond=("c 1 requires `core>=2.50`, but 2.33 is installed",),
    )
    assert to_text(preview_document(found)) == (
        "Since others have changed it, the undo would leave 1 requirement unmet\n"
        "  a 1 requires `core==2.33`, but 2.50 is installed\n"
        "  `--with-companions` puts back core 2.33, which others moved since\n"
        "  even then: c 1 requires `core>=2.50`, but 2.33 is installed"
    )
