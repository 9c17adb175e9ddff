"""The views of recorded runtimes: the list, one of them, the difference of two, the result of an import."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from colablock._common.text import count, some_of
from colablock.display.view import (
    FOLD,
    Document,
    Grid,
    GridRow,
    Headline,
    Names,
    Note,
    Pair,
    Pairs,
    Section,
    first_of,
    one_line,
    pairs_of,
)

if TYPE_CHECKING:
    from colablock.display.view import Block
    from colablock.environment.snapshot import Snapshot
    from colablock.runtimes.diff import Concern, RuntimeDiff
    from colablock.runtimes.import_freeze import Imported

__all__ = ["diff_document", "import_notes", "runtime_document", "runtimes_document"]

_LIST = 2 * FOLD  # names in running text; the rest is counted
_MORE = "and {} more (-v)"
_COLUMNS = ("name", "Python", "date", "torch", "CUDA", "driver", "known")
#: The verdict on a required version, by whether the old and the new one are within the range.
_ASKED = {
    (True, True): "still within {}",
    (True, False): "leaves {}",
    (False, True): "comes within {}",
    (False, False): "still outside {}",
    (None, True): "new, within {}",
    (None, False): "new, outside {}",
    (True, None): "removed, but {} is required",
    (False, None): "removed, but {} is required",
}
#: The same for a distribution that must be absent.
_ABSENT = {
    (True, True): "must still be absent ({})",
    (True, False): "may now be present ({})",
    (False, True): "must now be absent ({})",
    (False, False): "may still be present ({})",
    (None, True): "new, and must be absent ({})",
    (None, False): "new, and may be present ({})",
    (True, None): "removed, and had to be absent ({})",
    (False, None): "removed; only {} must be absent",
}


def runtimes_document(facts: Mapping[str, Any]) -> Document:
    """Return every recorded runtime as one row, and the origin of those that are not shipped."""
    runtimes = facts["runtimes"]
    sources = {one["name"]: _source(one) for one in runtimes if one["file"] or one["shadowed_by"]}
    faults = {one["file"]: one["fault"] for one in facts["faults"]}
    known = "known: the distributions whose requirements are recorded, of all that are installed"
    return Document(
        blocks=(
            Grid(rows=tuple(map(_row, runtimes)), header=_COLUMNS),
            *_pairs_section("Not shipped, or shadowed", sources),
            *_pairs_section("Unreadable", faults),
            Note(text=known),
        )
    )


def _row(one: Mapping[str, Any]) -> GridRow:
    known = f"{one['distributions'] - one['unknown']}/{one['distributions']}"
    facts = (one["torch"], one["cuda_toolkit"], one["driver"])
    cells = (one["name"], one["python_version"], one["date"], *(fact or "-" for fact in facts), known)
    return GridRow(cells=cells)


def _source(one: Mapping[str, Any]) -> str:
    where = one["file"] or "shipped"
    return f"{where}, shadowed by the one in {one['shadowed_by']}" if one["shadowed_by"] else where


def _pairs_section(title: str, facts: Mapping[str, str]) -> Iterator[Section]:
    if facts:
        yield Section(title=title, body=(pairs_of(facts),))


# One runtime


def runtime_document(facts: Mapping[str, Any], *, everything: bool = False) -> Document:
    """Return one runtime; with *everything* each distribution is listed."""
    total, unknown = facts["distributions"], facts["unknown"]
    driver = f"driver {facts['driver']}" + (f", up to CUDA {facts['cuda']}" if facts["cuda"] else "")
    about = {
        "date": facts["date"],
        "host": facts["host"],
        "recorded from": facts["source"],
        "file": facts["file"] or "shipped",
        "accelerator": f"{facts['flavour']}, {driver}" if facts["driver"] else facts["flavour"],
        "CUDA toolkit": facts["cuda_toolkit"],
        "torch": facts["torch"],
        "requirements": f"known for {total - unknown} of {total} distributions",
    }
    versions = [f"{one['name']} {one['version']}" for one in facts["all"]]
    strange = [name for name, one in zip(versions, facts["all"], strict=True) if not one["is_known"]]
    blocks: list[Block] = [pairs_of({key: value for key, value in about.items() if value})]
    if facts["named"]:
        said = {f"{one['name']} {one['version']}": _sayings(one["by"]) for one in facts["named"]}
        blocks.append(Section(title=f"Named by matrices ({len(said)})", body=(pairs_of(said),)))
    blocks += _names("Named by matrices, not installed", [one["name"] for one in facts["missing"]], None)
    blocks += _names("Protected", facts["protected"], None)
    blocks += _unmet(facts["unmet"])
    blocks += _names("Requirements not known", strange)
    blocks += _names("Installed", versions, None) if everything else []
    title = f"{facts['name']}: Python {facts['python_version']}, {count(total, 'distribution')}"
    return Document(headline=Headline(text=title), blocks=tuple(blocks))


def _sayings(by: Sequence[Mapping[str, Any]]) -> str:
    """Return what matrices say of a version: those that it suits by name, the others with their range."""
    asked = [one for one in by if one["kind"] != "absent"]
    unwanted = [one for one in by if one["kind"] == "absent"]
    parts = (
        ("suits", [one["matrix"] for one in asked if one["met"]]),
        ("not", [_with_range(one) for one in asked if not one["met"]]),
        ("must be absent for", [_with_range(one) for one in unwanted if one["met"]]),
        ("may be present for", [one["matrix"] for one in unwanted if not one["met"]]),
    )
    return "; ".join(f"{word} {', '.join(dict.fromkeys(names))}" for word, names in parts if names)


def _with_range(saying: Mapping[str, Any]) -> str:
    return f"{saying['matrix']} ({saying['specifier'] or 'any version'})"


def _unmet(unmet: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    if not unmet:
        return
    pairs = tuple(
        Pair(lead=one["name"], text=f"needs {one['requirement']}: {_installed(one['there'])}")
        for one in unmet
    )
    brief: list[Block] = [Pairs(pairs[:FOLD])]
    if len(pairs) > FOLD:
        brief.append(Names((_MORE.format(len(pairs) - FOLD),)))
    yield Section(title=f"Unmet in the image ({len(unmet)})", body=(Pairs(pairs),), brief=tuple(brief))


def _installed(version: str | None) -> str:
    return f"{version} is installed" if version else "not installed"


def _names(title: str, names: Sequence[str], limit: int | None = _LIST) -> Iterator[Section]:
    """Yield the section of *names* in running text, in brief the first *limit* of them."""
    if names:
        every = tuple(names)
        brief = None if limit is None else (Names(first_of(every, limit, more=_MORE)),)
        yield Section(title=f"{title} ({len(names)})", body=(Names(every),), brief=brief)


# The difference of two


def diff_document(diff: RuntimeDiff) -> Document:
    """Return what changed between two runtimes, and which matrices that concerns."""
    up, down, other = (
        [f"{one.name} {one.before} -> {one.after}" for one in diff.moved if one.is_up is wanted]
        for wanted in (True, False, None)
    )
    title = (
        f"{diff.before.source} -> {diff.after.source}: {len(diff.moved)} changed, {len(diff.added)} added,"
        f" {len(diff.removed)} removed, {diff.same} unchanged"
    )
    blocks: tuple[Block, ...] = (
        _sides(diff),
        *_concerns(diff.concerns),
        *_names("Downgraded", down),
        *_names("Changed, neither up nor down", other),
        *_names("Upgraded", up),
        *_names("Added", [f"{name} {version}" for name, version in diff.added.items()]),
        *_names("Removed", [f"{name} {version}" for name, version in diff.removed.items()]),
    )
    return Document(headline=Headline(text=title), blocks=blocks)


def _sides(diff: RuntimeDiff) -> Pairs:
    def both(read: Callable[[Snapshot], str | None]) -> str:
        before, after = (read(side) or "not known" for side in (diff.before, diff.after))
        return f"{before}, unchanged" if before == after else f"{before} -> {after}"

    return pairs_of(
        {
            "date": both(lambda side: side.date),
            "Python": both(lambda side: str(side.environment.python_version)),
            "driver": both(lambda side: side.accelerator.driver),
            "distributions": both(lambda side: str(len(side.installed))),
        }
    )


def _concerns(concerns: Sequence[Concern]) -> Iterator[Block]:
    """Yield a section for each matrix: first the changes that matter to its ranges, then the rest."""
    if not concerns:
        yield Note(text="no matrix names anything that changed")
    for matrix in dict.fromkeys(one.matrix for one in concerns):
        own = sorted((one for one in concerns if one.matrix == matrix), key=_is_quiet)
        loud = sum(not _is_quiet(one) for one in own)
        pairs = tuple(Pair(lead=_change(one), text=_verdict(one)) for one in own)
        shown = max(loud, FOLD)
        brief: list[Block] = [Pairs(pairs[:shown])]
        if len(own) > shown:
            brief.append(Names(("and without a difference:", *map(_change, own[shown:])), separator=" "))
        title = f"{matrix} names {len(own)} of them, {loud or 'none'} with a difference"
        yield Section(title=title, body=(Pairs(pairs),), brief=tuple(brief))


def _is_quiet(concern: Concern) -> bool:
    """Whether a change makes no difference to a matrix."""
    return concern.met_before == concern.met_after


def _change(concern: Concern) -> str:
    versions = [version for version in (concern.before, concern.after) if version is not None]
    return f"{concern.name} {' -> '.join(versions)}"


def _verdict(concern: Concern) -> str:
    words = _ABSENT if concern.kind == "absent" else _ASKED
    text = words[concern.met_before, concern.met_after].format(concern.specifier or "any version")
    if not concern.specifier and concern.before and concern.after:
        text = "must be absent at any version" if concern.kind == "absent" else "any version will do"
    return f"{text} (variant {', '.join(concern.variants)})" if concern.variants else text


# The result of an import


def import_notes(imported: Imported, index: str) -> Iterator[str]:
    """Yield what a user should know about a freeze that was imported with the help of *index*."""
    about = imported.recording.about
    known = about.distributions - about.unknown
    yield (
        f"requirements are known for {known} of {about.distributions} distributions:"
        f" {imported.taken} from recorded runtimes, {imported.learnt} from {index}"
    )
    if imported.stand_ins:
        names = some_of(imported.stand_ins, FOLD)
        yield (
            f"the requirements of {names} are those of the release without the local label, and without"
            " CUDA libraries"
        )
    if imported.unknown:
        yield f"the requirements of {some_of(list(imported.unknown), FOLD)} are not known"
    yield from (f"left out: {one_line(text)}" for text in imported.left_out)
