from __future__ import annotations

from colablock.display.info_view import facts_document, notes_document
from colablock.display.text import to_text


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
