"""The results of a check, for the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from colablock._common.text import size_text
from colablock.check.capabilities import HOLDS
from colablock.check.outcomes import Verdict, broken_since
from colablock.display.text import paragraph, write_lines
from colablock.display.words import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.check.outcomes import Outcome
    from colablock.check.results_file import MatrixCheck

__all__ = ["render_checked"]

_STYLES = {Verdict.KERNEL: "green", Verdict.ENV: "yellow", Verdict.NONE: "red", Verdict.UNKNOWN: "dim"}
_WORDS = {Verdict.KERNEL: "kernel", Verdict.ENV: "env", Verdict.NONE: "no", Verdict.UNKNOWN: "?"}


def render_checked(
    checked: MatrixCheck, console: Console, *, updated: bool = False, verbose: bool = False
) -> None:
    """Print one matrix: a table of runtimes and cards, the reasons below it, and what has drifted.

    *updated* says that the results were written, so that what has drifted is history.
    """
    console.print(Text(f"{checked.matrix}: {checked.summary}".rstrip(": "), style="bold"))
    console.print(_table(checked.outcomes))
    _print_reasons(checked.outcomes, console, verbose=verbose)
    worse: defaultdict[str, list[str]] = defaultdict(list)
    for broke in broken_since(checked.outcomes):
        worse[f"{broke.runtime}, {broke.was.value} -> {broke.now.value}"].append(broke.accelerator)
    for what, cards in worse.items():
        with_ = "" if cards == ["none"] else f" with {' '.join(cards)}"
        _print(f"first worse{with_}: {what}", console)
    for finding in checked.imports or ():
        title = f"{finding['severity']}: imports of {finding['package']}"
        _print(f"{title}: {finding['detail']}", console)
    if checked.drift:
        _print(f"written to {checked.path}:" if updated else "drift:", console)
        for line in checked.drift:
            _print(line if verbose else _in_a_line(line), console, indent=4)
    console.print()


def _in_a_line(text: str) -> str:
    return one_line("; ".join(text.splitlines()))


def _print(text: str, console: Console, *, indent: int = 2) -> None:
    """Print *text* below an indent, which its further lines have too."""
    write_lines(paragraph(text, width=console.width, indent=indent), console)


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
        with_ = f" ({cards})" if cards else ""
        _print(f"{_WORDS[verdict]}: {where}{with_}{python}{size}", console)
        for line in reason.splitlines() if verbose else [_in_a_line(reason)]:
            _print(line, console, indent=4)
        for line in _failing(alike):
            _print(line, console, indent=4)


def _failing(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield the claims that do not hold, each once, with the cards where not all fail."""
    cards: defaultdict[str, list[str]] = defaultdict(list)
    for one in outcomes:
        for claim, said in one.claims.items():
            if said != HOLDS and one.accelerator not in cards[f"{claim}: {said}"]:
                cards[f"{claim}: {said}"].append(one.accelerator)
    everywhere = {one.accelerator for one in outcomes}
    for line, where in cards.items():
        named = " ".join("no card" if card == "none" else card for card in where)
        yield line if set(where) == everywhere else f"{line} ({named})"
