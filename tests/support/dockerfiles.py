"""Read a Dockerfile as BuildKit does: its instructions, with continued lines joined and here-documents kept.

`tests/deployment/test_by_their_tools.py` compares it with the parser of BuildKit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Instruction", "instructions", "shell_of", "write_documents"]

_HERE = re.compile(r"<<(['\"]?)(\w+)\1")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its *word*, its *value* in one line, and its here-document."""

    word: str
    value: str
    document: str = ""


def instructions(text: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile."""
    found, lines = [], iter(text.splitlines(keepends=True))
    for line in lines:
        if line.startswith("#") or not line.strip():
            continue
        joined = line.rstrip("\n")
        while joined.endswith("\\"):
            joined = joined[:-1] + next(lines).rstrip("\n")
        word, _, value = joined.partition(" ")
        document = ""
        if here := _HERE.search(value):
            while (line := next(lines)) != f"{here[2]}\n":
                document += line
        found.append(Instruction(word, value, document))
    return found


def shell_of(value: str) -> str:
    """Return the command of a RUN without its mounts."""
    return re.sub(r"^(--mount=\S+\s+)*", "", value)


def write_documents(text: str, folder: Path) -> None:
    """Write the here-documents of COPY to *folder*, as the build does in its working folder."""
    for one in instructions(text):
        if one.word == "COPY" and one.document:
            (folder / one.value.split()[-1]).write_text(one.document)
