"""The values of `chat_template`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from colablock.errors import InvalidInput
from colablock.training.chat_templates import TEMPLATES, ChosenTemplate, chosen_template, template_value

TEXT = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        (None, ChosenTemplate()),
        ("tokenizer", ChosenTemplate()),
        ("tokenizer_default", ChosenTemplate()),
        ("chatml", ChosenTemplate(TEMPLATES["chatml"])),
        ("llama-3", ChosenTemplate(TEMPLATES["llama3"])),
        ("qwen2.5", ChosenTemplate(TEMPLATES["qwen_25"])),
        ("tokenizer_default_fallback_gemma", ChosenTemplate(TEMPLATES["gemma"], is_fallback=True)),
        ("gemma4", ChosenTemplate(of_axolotl="gemma4")),
        (TEXT, ChosenTemplate(TEXT)),
    ],
)
def test_a_template_is_chosen_by_name_or_text(value: str | None, chosen: ChosenTemplate) -> None:
    assert chosen_template(value) == chosen
    assert chosen_template(value, reads_files=False) == chosen
    kept = template_value(value)
    assert kept == (None if value is None or value in ("tokenizer", "tokenizer_default") else value)
    assert chosen_template(kept) == chosen


def test_a_template_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "chat_template.jinja"
    file.write_text(TEXT)
    assert template_value(str(file)) == TEXT
    with pytest.raises(InvalidInput, match="neither a name, nor a file, nor a template"):
        chosen_template(str(file), reads_files=False)
    for content, words in ((b"llama3", "has no Jinja tag"), (b"\xff", "it is not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match=words):
            template_value(str(file))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("lama3", r"did you mean `llama3`\? The names are `alpaca`, `chatml`"),
        ("<|im_start|>user\nHello", "^The names are "),
        ("tokenizer_default_fallback_nothing", "The names are"),
        ("x" * 5000, "The names are"),
    ],
)
def test_a_text_without_a_tag_is_no_template(value: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match="has no Jinja tag") as caught:
        chosen_template(value)
    assert re.search(hint, str(caught.value.hint))
