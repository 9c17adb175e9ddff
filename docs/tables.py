"""Tables of the pages, and the marked places for them in pages that are written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOTICE = "<!-- Made by docs/generate.py: change the code that it reads, then run it again. -->"


def cell(text: str) -> str:
    """Return *text* fit for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(*head: str, rows: Iterator[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)


def filled(page: Path, tables: Mapping[str, str]) -> str:
    """Return a page that is written by hand, with each of *tables* in its marked place."""
    text = page.read_text(encoding="utf-8")
    for name, made in tables.items():
        before, opening, rest = text.partition(f"<!-- {name}: made by docs/generate.py -->\n")
        _, closing, after = rest.partition("<!-- end -->")
        if not closing:
            raise SystemExit(f"{page} has no place for the table of `{name}`")
        text = f"{before}{opening}\n{made}\n{closing}{after}"
    return text
