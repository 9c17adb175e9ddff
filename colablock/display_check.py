"""The results of a check, for the terminal."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.table import Table

from colablock.check import Verdict, broken_since
from colablock.display_words import one_line, size_text

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.check import Outcome
    from colablock.checks_file import Checked

__all__ = ["render_checked"]

_STYLES = {Verdict.KERNEL: "green", Verdict.ENV: "yellow", Verdict.NONE: "red", Verdict.UNKNOWN: "dim"}
_WORDS = {Verdict.KERNEL: "kernel", Verdict.ENV: "env", Verdict.NONE: "no", Verdict.UNKNOWN: "?"}


def render_checked(checked: Checked, console: Console, *, verbose: bool = False) -> None:
    """Print one matrix: a table of runtimes and cards, the reasons below it, and what has drifted."""
    console.print(f"{checked.matrix}: {checked.summary}".rstrip(": "), markup=False, style="bold")
    console.print(_table(checked.outcomes))
    _print_reasons(checked.outcomes, console, verbose=verbose)
    for broke in broken_since(checked.outcomes):
        text = (
            f"first worse with {broke.accelerator}: {broke.runtime}, {broke.was.value} -> {broke.now.value}"
        )
        console.print(f"  {text}", markup=False)
    for finding in checked.imports:
        console.print(
            f"  import {finding['severity']}: {finding['package']}: {finding['detail']}", markup=False
        )
    if checked.drift:
        console.print("  drift:", style="red")
        for line in checked.drift:
            console.print(f"    {line if verbose else one_line(line)}", markup=False)
    console.print()


def _table(outcomes: tuple[Outcome, ...]) -> Table:
    """Return a table of runtimes, newest first; cards that fare alike everywhere share a column."""
    by_card: defaultdict[str, dict[str, Verdict]] = defaultdict(dict)
    for one in outcomes:
        by_card[one.accelerator][one.runtime] = one.verdict
    columns: dict[tuple[tuple[str, Verdict], ...], list[str]] = {}
    for card, verdicts in by_card.items():
        columns.setdefault(tuple(sorted(verdicts.items())), []).append(card)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("  runtime", no_wrap=True)
    for cards in columns.values():
        table.add_column("no card" if cards == ["none"] else " ".join(cards))
    for runtime in reversed(list(dict.fromkeys(one.runtime for one in outcomes))):
        cells = [by_card[cards[0]].get(runtime) for cards in columns.values()]
        shown = [f"[{_STYLES[cell]}]{_WORDS[cell]}[/]" if cell else "" for cell in cells]
        table.add_row(f"  {runtime}", *shown)
    return table


def _print_reasons(outcomes: tuple[Outcome, ...], console: Console, *, verbose: bool) -> None:
    """Print each reason once, with the runtimes and cards that it stands for."""
    groups: dict[tuple[Verdict, str], list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.verdict, one.reason), []).append(one)
    for (verdict, reason), alike in groups.items():
        where = ", ".join(dict.fromkeys(one.runtime.removeprefix("colab-") for one in alike))
        cards = " ".join(dict.fromkeys(one.accelerator for one in alike if one.accelerator != "none"))
        sizes = sorted({one.fetch_bytes for one in alike if one.fetch_bytes is not None})
        size = f"; fetch {size_text(sizes[-1])}" if sizes else ""
        pythons = sorted({one.python for one in alike if one.python and verdict is Verdict.ENV})
        python = f"; Python {', '.join(pythons)}" if pythons else ""
        console.print(
            f"  {_WORDS[verdict]}: {where}{f' ({cards})' if cards else ''}{python}{size}", markup=False
        )
        for line in reason.splitlines() if verbose else [one_line(reason)]:
            console.print(f"    {line}", markup=False)
        failing = {claim: said for one in alike for claim, said in one.claims.items() if said != "holds"}
        for claim, said in failing.items():
            console.print(f"    {claim}: {said}", markup=False)
