"""Recorded runtimes as lines of text: the list, one of them, what changed, what became of a freeze."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from colablock._common.text import count, some_of
from colablock.display.text import Section, render_sections
from colablock.display.words import FOLD, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from colablock.environment.snapshot import Snapshot
    from colablock.runtimes.diff import Concern, RuntimeDiff
    from colablock.runtimes.import_freeze import Imported

__all__ = ["imported_words", "render_diff", "render_runtime", "render_runtimes"]

_LIST = 2 * FOLD  # names in running text, before the rest is a count
_COLUMNS = ("name", "Python", "date", "torch", "CUDA", "driver", "known of")
#: The verdict on a version that is asked for, by whether the old and the new one are within the range.
_ASKED = {
    (True, True): "still within {}",
    (True, False): "leaves {}",
    (False, True): "comes within {}",
    (False, False): "still outside {}",
    (None, True): "new there, within {}",
    (None, False): "new there, outside {}",
    (True, None): "no longer there, and {} is asked for",
    (False, None): "no longer there, and {} is asked for",
}
#: The same for what must be absent.
_ABSENT = {
    (True, True): "must still be absent ({})",
    (True, False): "need no longer be absent ({})",
    (False, True): "must now be absent ({})",
    (False, False): "still need not be absent ({})",
    (None, True): "new there, and must be absent ({})",
    (None, False): "new there, and need not be absent ({})",
    (True, None): "gone, and had to be absent ({})",
    (False, None): "no longer there; it must be absent at {} only",
}


def render_runtimes(facts: Mapping[str, Any], console: Console) -> None:
    """Write every recorded runtime as one row, and where those that are not shipped come from."""
    rows = [_COLUMNS, *(_row(one) for one in facts["runtimes"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.out("  ".join(cells).rstrip(), highlight=False)
    sections = [
        (
            "Not shipped, or behind another one",
            [(one["name"], _whence(one)) for one in facts["runtimes"] if one["file"] or one["shadowed_by"]],
        ),
        ("Not readable", [(one["file"], one["fault"]) for one in facts["faults"]]),
    ]
    told = "known of: distributions whose requirements are recorded, of all that are installed"
    console.out("", highlight=False)
    render_sections(told, [Section(title, pairs) for title, pairs in sections if pairs], console)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    known = f"{one['distributions'] - one['unknown']}/{one['distributions']}"
    facts = (one["torch"], one["cuda_toolkit"], one["driver"])
    return (one["name"], one["python_version"], one["date"], *(fact or "-" for fact in facts), known)


def _whence(one: Mapping[str, Any]) -> str:
    where = one["file"] or "shipped"
    return f"{where}, behind the one of this name in {one['shadowed_by']}" if one["shadowed_by"] else where


# One runtime


def render_runtime(facts: Mapping[str, Any], console: Console, *, everything: bool = False) -> None:
    """Write one runtime; *everything* folds nothing and names every distribution."""
    limit = None if everything else _LIST
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
    title = f"{facts['name']}: Python {facts['python_version']}, {count(total, 'distribution')}"
    sections = [Section(title="", pairs=[(key, value) for key, value in about.items() if value])]
    sections += [_named_section(facts["named"])] if facts["named"] else []
    sections += _names("Named by a matrix, and not there", [one["name"] for one in facts["missing"]], None)
    sections += _names("Protected", facts["protected"], None)
    sections += _unmet_sections(facts["unmet"], everything=everything)
    strange = [f"{one['name']} {one['version']}" for one in facts["all"] if not one["is_known"]]
    sections += _names("Requirements not known", strange, limit)
    if everything:
        sections += _names("Installed", [f"{one['name']} {one['version']}" for one in facts["all"]], None)
    render_sections(title, sections, console)


def _named_section(named: Sequence[Mapping[str, Any]]) -> Section:
    pairs = [(f"{one['name']} {one['version']}", _sayings(one["by"])) for one in named]
    return Section(title=f"What matrices say of it ({len(named)})", pairs=pairs)


def _sayings(by: Sequence[Mapping[str, Any]]) -> str:
    """Return what matrices say of a version: those that it suits by name, the others with their range."""
    asked = [one for one in by if one["kind"] != "absent"]
    unwanted = [one for one in by if one["kind"] == "absent"]
    parts = (
        ("suits", [one["matrix"] for one in asked if one["met"]]),
        ("not", [_with_range(one) for one in asked if not one["met"]]),
        ("must be absent for", [_with_range(one) for one in unwanted if one["met"]]),
        ("need not be absent for", [one["matrix"] for one in unwanted if not one["met"]]),
    )
    return "; ".join(f"{word} {', '.join(dict.fromkeys(names))}" for word, names in parts if names)


def _with_range(saying: Mapping[str, Any]) -> str:
    return f"{saying['matrix']} ({saying['specifier'] or 'any version'})"


def _unmet_sections(unmet: Sequence[Mapping[str, Any]], *, everything: bool) -> Iterator[Section]:
    if not unmet:
        return
    shown = unmet if everything else unmet[:FOLD]
    pairs = [
        (one["name"], f"needs {one['requirement']}: {one['there'] or 'nothing of it'} is there")
        for one in shown
    ]
    more = [f"and {len(unmet) - len(shown)} more (-v)"] if len(unmet) > len(shown) else []
    yield Section(title=f"Unmet as it stands ({len(unmet)})", pairs=pairs, listed=more)


def _names(title: str, names: Sequence[str], limit: int | None) -> list[Section]:
    """Return the section of some names in running text, the first *limit* of them; none without names."""
    if not names:
        return []
    more = [f"and {len(names) - limit} more (-v)"] if limit is not None and len(names) > limit else []
    return [Section(title=f"{title} ({len(names)})", listed=[*names[:limit], *more])]


# What changed


def render_diff(diff: RuntimeDiff, console: Console, *, verbose: bool = False) -> None:
    """Write what changed between two runtimes, and which matrices that concerns; *verbose* folds nothing."""
    limit = None if verbose else _LIST
    up, down, other = (
        [f"{one.name} {one.before} -> {one.after}" for one in diff.moved if one.is_up is wanted]
        for wanted in (True, False, None)
    )
    title = (
        f"{diff.before.source} -> {diff.after.source}: {len(diff.moved)} moved, {len(diff.added)} added,"
        f" {len(diff.removed)} removed, {diff.same} the same"
    )
    sections = [
        Section(title="", pairs=_sides(diff)),
        *_concern_sections(diff.concerns, verbose=verbose),
        *_names("Moved down", down, limit),
        *_names("Moved, neither up nor down", other, limit),
        *_names("Moved up", up, limit),
        *_names("Added", [f"{name} {version}" for name, version in diff.added.items()], limit),
        *_names("Removed", [f"{name} {version}" for name, version in diff.removed.items()], limit),
    ]
    render_sections(title, sections, console)


def _sides(diff: RuntimeDiff) -> list[tuple[str, str]]:
    def both(label: str, read: Any) -> tuple[str, str]:
        before, after = (read(side) or "not known" for side in (diff.before, diff.after))
        return label, f"{before}, as before" if before == after else f"{before} -> {after}"

    def python(side: Snapshot) -> str:
        return str(side.environment.python_version)

    return [
        both("date", lambda side: side.date),
        both("Python", python),
        both("driver", lambda side: side.accelerator.driver),
        both("distributions", lambda side: str(len(side.installed))),
    ]


def _concern_sections(concerns: Sequence[Concern], *, verbose: bool) -> Iterator[Section]:
    """Yield a section for each matrix: first what its ranges make a difference to, then the rest."""
    if not concerns:
        yield Section(title="No matrix names anything of what changed")
    for matrix in dict.fromkeys(one.matrix for one in concerns):
        own = [one for one in concerns if one.matrix == matrix]
        own.sort(key=_is_quiet)
        loud = sum(not _is_quiet(one) for one in own)
        shown = own if verbose else own[: max(loud, FOLD)]
        rest = [_change(one) for one in own[len(shown) :]]
        more = [f"and as before: {some_of(rest, len(rest))}"] if rest else []
        title = f"{matrix} names {len(own)} of them, {loud or 'none'} with a difference"
        yield Section(title=title, pairs=[(_change(one), _verdict(one)) for one in shown], listed=more)


def _is_quiet(concern: Concern) -> bool:
    """Whether a change leaves what a matrix says as true or untrue as it was."""
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


# What became of a freeze


def imported_words(imported: Imported, index: str) -> Iterable[str]:
    """Return what a user should know of an import that asked *index*, one sentence each."""
    about = imported.recording.about
    known = about.distributions - about.unknown
    yield (
        f"requirements are known for {known} of {about.distributions} distributions:"
        f" {imported.taken} from recorded runtimes, {imported.learnt} from {index}"
    )
    if imported.stand_ins:
        names = some_of(imported.stand_ins, FOLD)
        yield f"those of the release without its local label, CUDA libraries left out, stand in for {names}"
    if imported.unknown:
        yield f"nothing is known of {some_of(list(imported.unknown), FOLD)}"
    yield from (f"left out: {one_line(text)}" for text in imported.left_out)
