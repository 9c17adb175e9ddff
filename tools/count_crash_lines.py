"""Count how many error lines of a file are explained as the file says, and which are not.

    python tools/count_crash_lines.py [FILE]

FILE is like `tests/data/crash_lines.toml`, the default: under `[lines]`, a list of lines for each
cause (several causes that are right are joined with `|`), and `unknown` has lines that must not match.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from colablock.training.failures import explain_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_DEFAULT = Path(__file__).resolve().parent.parent / "tests/data/crash_lines.toml"


def main() -> None:
    """Print each line that is explained otherwise, and the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", default=_DEFAULT)
    lines = tomllib.loads(parser.parse_args().file.read_text(encoding="utf-8"))["lines"]
    counts: Counter[str] = Counter()
    for causes, texts in lines.items():
        for text in texts:
            found = explain_text(text, versions={}).cause
            result = _result(found, causes)
            counts[result] += 1
            if result not in ("recognised", "not matched"):
                print(f"{result}: {causes} -> {found}: {text.splitlines()[0][:100]}")
    known = sum(counts[one] for one in ("recognised", "unknown", "wrong"))
    others = counts["not matched"] + counts["false alarm"]
    print(
        f"{known} error lines: {counts['recognised']} recognised, {counts['unknown']} unknown,"
        f" {counts['wrong']} wrong; {others} other lines: {counts['false alarm']} false alarms"
    )


def _result(found: str, causes: str) -> str:
    if causes == "unknown":
        return "not matched" if found == "unknown" else "false alarm"
    if found in causes.split("|"):
        return "recognised"
    return "unknown" if found == "unknown" else "wrong"


if __name__ == "__main__":
    main()
