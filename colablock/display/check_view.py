"""The views of a check (which runtime takes a matrix on which accelerator, and why) and of an audit."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from colablock._common.text import command_line, count, size_text, some_of
from colablock.check.capabilities import HOLDS
from colablock.check.outcomes import Verdict, broken_since
from colablock.display.view import (
    Document,
    Grid,
    GridRow,
    Headline,
    Item,
    Items,
    Note,
    Section,
    Span,
    Tone,
    cut,
    one_line,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from colablock.check.advisories import Advisory, AuditedRelease, AuditResult
    from colablock.check.outcomes import Difference, Outcome
    from colablock.check.results_file import MatrixCheck
    from colablock.display.view import Block

__all__ = ["audit_document", "check_document"]

_FEW = 6  # names in a line
_SUMMARY = 160  # characters of a summary

_WORDS = {
    Verdict.KERNEL: Span("kernel", Tone.GOOD),
    Verdict.ENV: Span("env", Tone.WARN),
    Verdict.NONE: Span("no", Tone.BAD),
    Verdict.UNKNOWN: Span("?", Tone.SOFT),
}


def check_document(checked: MatrixCheck, *, updated: bool = False) -> Document:
    """Return the check of one matrix; *updated* says that the drift was written to the results file."""
    title = f"{checked.matrix}: {checked.summary}".rstrip(": ")
    blocks: list[Block] = [_grid(checked.outcomes)] if checked.outcomes else []
    blocks += _reasons(checked.outcomes)
    blocks += _worse(checked.outcomes)
    imports = tuple(
        Item(text=f"{finding['severity']}: imports of {finding['package']}: {finding['detail']}")
        for finding in checked.imports or ()
    )
    if imports:
        blocks.append(Section(title="Imports", body=(Items(imports),)))
    blocks += _empty(checked, updated=updated) if checked.is_empty else _compared(checked, updated=updated)
    return Document(headline=Headline(text=title), blocks=tuple(blocks))


def _empty(checked: MatrixCheck, *, updated: bool) -> Iterator[Block]:
    """Yield that there are no results: the locks come first, then `--update`."""
    told = checked.differences[1:] if checked.is_first else checked.differences
    if told:
        yield _drift_section("Drift", _grouped(told))
    what = "nothing is written to" if updated else "there is nothing to write to"
    text = f"no runtime has a lock that is up to date: {what} `{checked.path}`"
    yield Note(label="no results", text=text, tone=Tone.WARN)
    yield _lock_first(checked)


def _lock_first(checked: MatrixCheck) -> Note:
    command = f"`{command_line('lock', checked.asked or checked.matrix, '--all')}`"
    return Note(label="next", text=f"{command} writes the locks that are missing or stale, then check again")


def _compared(checked: MatrixCheck, *, updated: bool) -> Iterator[Block]:
    """Yield what the comparison with the committed results says, and what to do next."""
    if not checked.differences:
        dated = f", now with the date of today in `{checked.path}`" if updated else ""
        text = f"the results are {checked.before}{dated}"
        yield Note(label="unchanged", text=text, tone=Tone.GOOD)
    else:
        drift = "Drift" if not checked.is_first else "Nothing to compare with"
        drift = f"Written to {checked.path}" if updated else drift
        told = checked.differences[1:] if updated and checked.is_first else checked.differences
        first = ("these are the first results: commit them",) if updated and checked.is_first else ()
        yield _drift_section(drift, (*first, *_grouped(told)))
    if any(one.lacks_lock for one in checked.outcomes):
        yield _lock_first(checked)
    elif checked.differences and not updated and not any(one.advice for one in checked.differences):
        yield Note(label="next", text="if that is meant, `--update` writes the new results")


def _drift_section(title: str, lines: Iterable[str]) -> Section:
    return Section(title=title, body=(Items(tuple(Item(text=_joined(line)) for line in lines)),))


def _grouped(differences: Sequence[Difference]) -> Iterator[str]:
    """Yield each difference once, with the runtimes and the cards that it is about."""
    groups: dict[str, list[Difference]] = {}
    for one in differences:
        groups.setdefault(one.text, []).append(one)
    for text, alike in groups.items():
        if len(alike) == 1:
            yield str(alike[0])
            continue
        cards_of: dict[str, list[str]] = {}
        for one in alike:
            cards_of.setdefault(one.runtime, []).extend(
                [one.accelerator] if one.accelerator != "none" else []
            )
        runtimes_of: dict[tuple[str, ...], list[str]] = {}
        for runtime, cards in cards_of.items():
            runtimes_of.setdefault(tuple(dict.fromkeys(cards)), []).append(runtime)
        for named, runtimes in runtimes_of.items():
            about = ", ".join(runtimes)
            yield f"{about} ({' '.join(named)}): {text}" if named else f"{about}: {text}"


def _grid(outcomes: Sequence[Outcome]) -> Grid:
    """Return the verdicts by runtime, newest first; cards with the same verdicts share a column."""
    by_card: defaultdict[str, dict[str, Verdict]] = defaultdict(dict)
    for one in outcomes:
        by_card[one.accelerator][one.runtime] = one.verdict
    columns: dict[tuple[tuple[str, Verdict], ...], list[str]] = {}
    for card, verdicts in by_card.items():
        columns.setdefault(tuple(sorted(verdicts.items())), []).append(card)
    rows = []
    for runtime in reversed(list(dict.fromkeys(one.runtime for one in outcomes))):
        verdicts_here = (by_card[cards[0]].get(runtime) for cards in columns.values())
        rows.append(GridRow(cells=(runtime, *(_WORDS[one] if one else "" for one in verdicts_here))))
    header = ("runtime", *("no GPU" if cards == ["none"] else " ".join(cards) for cards in columns.values()))
    return Grid(rows=tuple(rows), header=header)


def _reasons(outcomes: Sequence[Outcome]) -> Iterator[Section]:
    """Yield each reason once, with the runtimes and cards that it applies to."""
    groups: dict[tuple[Verdict, str], list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.verdict, one.reason), []).append(one)
    if groups:
        body, brief = (
            Items(
                tuple(
                    _reason(verdict, reason, alike, in_brief=in_brief)
                    for (verdict, reason), alike in groups.items()
                )
            )
            for in_brief in (False, True)
        )
        yield Section(title="Reasons", body=(body,), brief=(brief,))


def _reason(verdict: Verdict, reason: str, alike: Sequence[Outcome], *, in_brief: bool) -> Item:
    where = ", ".join(dict.fromkeys(one.runtime.removeprefix("colab-") for one in alike))
    cards = " ".join(dict.fromkeys(one.accelerator for one in alike if one.accelerator != "none"))
    pythons = sorted({one.python for one in alike if one.python and verdict is Verdict.ENV})
    facts = [
        f"{where} ({cards})" if cards else where,
        f"Python {', '.join(pythons)}" if pythons else "",
        _fetched(alike),
    ]
    lines = [_joined(reason)] if in_brief else reason.splitlines()
    return Item(
        text=(_WORDS[verdict], f": {'; '.join(filter(None, facts))}"), notes=(*lines, *_failing(alike))
    )


def _fetched(alike: Sequence[Outcome]) -> str:
    """Return the largest download, and if sizes are not known, also the largest one with these.

    For example ``fetch 3.3 GB, or 2.5 GB and torch of unknown size``.
    """
    sizes: dict[tuple[str, ...], int] = {}
    for one in alike:
        if one.fetch_bytes is not None:
            sizes[one.unsized] = max(one.fetch_bytes, sizes.get(one.unsized, 0))
    told = (
        size_text(size) + (f" and {some_of(names, _FEW)} of unknown size" if names else "")
        for names, size in sorted(sizes.items())
    )
    return f"fetch {', or '.join(told)}" if sizes else ""


def _joined(text: str) -> str:
    return "; ".join(text.splitlines())


def _failing(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield each capability that does not hold once, with the cards unless it fails on all of them."""
    everywhere: set[str] = set()
    cards: defaultdict[str, list[str]] = defaultdict(list)
    for one in outcomes:
        everywhere.add(one.accelerator)
        for capability, outcome in one.capabilities.items():
            if outcome != HOLDS and one.accelerator not in cards[f"{capability}: {outcome}"]:
                cards[f"{capability}: {outcome}"].append(one.accelerator)
    for line, where in cards.items():
        named = " ".join("no GPU" if card == "none" else card for card in where)
        yield line if set(where) == everywhere else f"{line} ({named})"


def _worse(outcomes: Sequence[Outcome]) -> Iterator[Section]:
    """Yield since which runtime a matrix works worse than before."""
    cards: defaultdict[str, list[str]] = defaultdict(list)
    for broke in broken_since(outcomes):
        cards[f"{broke.runtime}, {broke.was.value} -> {broke.now.value}"].append(broke.accelerator)
    items = tuple(
        Item(text=change if on == ["none"] else f"{change} ({' '.join(on)})") for change, on in cards.items()
    )
    if items:
        yield Section(title="Worse since", body=(Items(items),), tone=Tone.WARN)


# -- the audit


def audit_document(result: AuditResult) -> Document:
    """Return the audit of locks: the vulnerabilities, then what was not checked and why."""
    blocks: list[Block] = []
    vulnerable = [one for one in result.findings if one.advisories]
    if vulnerable:
        blocks.append(Section(title="Vulnerabilities", body=(Items(tuple(map(_audited, vulnerable))),)))
    news = [one for one in result.findings if one.yanked or one.status]
    if news:
        items = tuple(Item(text=f"{one.name} {one.version}", notes=tuple(_news(one))) for one in news)
        blocks.append(Section(title="Yanked releases and closed projects", body=(Items(items),)))
    blocks += _unchecked(result)
    ignored = [
        f"{advisory.id} ({one.name} {one.version})" for one in result.findings for advisory in one.ignored
    ]
    if ignored:
        blocks.append(Note(text=", ".join(ignored), label="ignored"))
    if result.unused_ignores:
        blocks.append(Note(text=f"nothing has the id {', '.join(result.unused_ignores)}", label="note"))
    if result.assumed:
        assumed = count(result.assumed, "distribution")
        blocks.append(Note(text=f"not audited: {assumed} of the image, which the lock assumes", label="note"))
    return Document(headline=_audit_headline(result), blocks=tuple(blocks))


def _audit_headline(result: AuditResult) -> Headline:
    known = sum(len(one.advisories) for one in result.findings)
    affected = sum(1 for one in result.findings if one.advisories)
    quarantined = sum(1 for one in result.findings if one.is_quarantined)
    what = result.matrix or some_of(result.locks, 1)
    releases = count(result.checked, "release")
    aside = f"{len(result.unchecked)} not checked" if result.unchecked else ""
    if known:
        text = f"{what}: {count(known, 'known vulnerability', 'known vulnerabilities')}"
        text = f"{text} in {affected} of {releases}"
    else:
        text = f"{what}: no known vulnerabilities in {releases}"
    if quarantined:
        text += f", {count(quarantined, 'quarantined project')}"
    tone, badge = (Tone.GOOD, "ok") if result.is_clean else (Tone.BAD, "vulnerable")
    return Headline(text=text, tone=tone, badge=badge, aside=aside)


def _audited(release: AuditedRelease) -> Item:
    parents = [one for one in release.required_by if not release.is_direct]
    who = "in the matrix" if release.is_direct else f"required by {some_of(parents, _FEW)}" if parents else ""
    notes = tuple(_advisory(one) for one in release.advisories)
    return Item(text=f"{release.name} {release.version}{f' ({who})' if who else ''}", notes=notes)


def _advisory(advisory: Advisory) -> str:
    ids = f"{advisory.id} ({some_of(advisory.aliases, _FEW)})" if advisory.aliases else advisory.id
    fixed = f"fixed in {some_of(advisory.fixed_in, _FEW)}" if advisory.fixed_in else "no release fixes it"
    summary = cut(one_line(advisory.summary), _SUMMARY)
    return f"{ids}: {summary}; {fixed}" if summary else f"{ids}: {fixed}"


def _news(release: AuditedRelease) -> Iterator[str]:
    if release.yanked:
        yield f"yanked: {cut(one_line(release.yanked), _SUMMARY)}"
    if release.status:
        yield f"the project is {cut(one_line(release.status), _SUMMARY)}"


def _unchecked(result: AuditResult) -> Iterator[Section]:
    """Yield the packages that were not checked, in one line each."""
    if result.unchecked:
        items = tuple(
            Item(text=f"{one.name} {one.version}".rstrip(), notes=(one.reason,)) for one in result.unchecked
        )
        yield Section(title="Not checked", body=(Items(items),))
