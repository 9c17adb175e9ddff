"""The views of what is there: matrices, one matrix, this machine, the history, isolated environments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from colablock._common.text import count, size_text, some_of
from colablock.display.view import (
    Document,
    Grid,
    GridRow,
    Headline,
    Item,
    Items,
    Note,
    Pair,
    Pairs,
    Section,
    Span,
    Tone,
)
from colablock.planning.plan import steps_text

if TYPE_CHECKING:
    from colablock.display.view import Block
    from colablock.transaction.apply_record import PastChange
    from colablock.transaction.history import BegunChange, Change, DamagedChange
    from colablock.transaction.isolated_envs import BuiltEnvironment
    from colablock.transaction.rollback import UndoneChange
    from colablock.transaction.undo.preview import UndoPreview

__all__ = [
    "card_name",
    "envs_document",
    "facts_document",
    "history_document",
    "list_document",
    "notes_document",
    "undone_document",
]

_SHOWN = 5  # files
_ENTRY = {"name", "requirement", "why"}  # the keys of an entry of a matrix


def facts_document(facts: Mapping[str, object]) -> Document:
    """Return *facts*: first those of one value, then each one with parts as a section."""
    simple = [(key, value) for key, value in facts.items() if not _has_parts(value)]
    blocks: list[Block] = []
    if simple:
        told = {key: _value(value) or "none" for key, value in simple}
        if facts.get("requires-python", "") is None:
            told["requires-python"] = "any"
        blocks.append(Pairs(tuple(Pair(lead=_label(key), text=text) for key, text in told.items())))
    for key, value in facts.items():
        if _has_parts(value):
            parts = _parts(value)
            pairs = tuple(Pair(lead=Span(name, Tone.STRONG), text=about) for name, about in parts)
            title = f"{_label(key).capitalize()} ({len(parts)})"
            blocks.append(Section(title=title, body=(Pairs(pairs),)))
    return Document(blocks=tuple(blocks))


def list_document(facts: Mapping[str, Any]) -> Document:
    """Return the matrices, what is proven of them and when, and the recorded runtimes as tables."""
    matrices, runtimes = facts["matrices"], facts["runtimes"]
    used = [one for one in matrices if "shadowed_by" not in one]
    rows = tuple(GridRow(cells=(one["name"], one.get("summary") or "-")) for one in used)
    blocks: list[Block] = [Grid(rows=rows, header=("matrix", "summary"))]
    known = {one["name"]: one["evidence"] for one in used if "evidence" in one}
    if known:
        proven = (GridRow(cells=cells) for name, one in known.items() for cells in _evidence(name, one))
        blocks.append(
            Grid(rows=tuple(proven), header=("matrix", "resolved", "applied", "imported", "trained"))
        )
        blocks += _legend(known.values())
    blocks += [
        _remark(one) for one in matrices if "fault" in one or ("shadowed_by" in one and "copy" not in one)
    ]
    columns = ("name", "python", "torch", "distributions", "date")
    cells = (tuple(str(one[key] or "-") for key in columns) for one in runtimes)
    header = ("runtime", "Python", "torch", "installed", "date")
    blocks.append(Grid(rows=tuple(map(GridRow, cells)), header=header, right=frozenset({3})))
    blocks.append(Note(text="`colablock show NAME` and `colablock runtime show NAME` tell more about one"))
    return Document(blocks=tuple(blocks))


#: What stands behind a date.
_OLD, _EARLIER = "*", "~"


def _evidence(name: str, evidence: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of one matrix: its dates, and a card on which it trained; then a row for each other."""
    steps = (evidence[step] for step in ("resolved", "applied", "imported"))
    cards: dict[str, Mapping[str, Any]] = {}
    for one in evidence["trained"]:
        cards.setdefault(card_name(one["card"]), one)
    first, *others = [f"{card} {_date(one)}" for card, one in cards.items()] or ["-"]
    yield (name, *(_date(one) if one else "-" for one in steps), first)
    for card in others:
        yield ("", "", "", "", card)


def card_name(card: str) -> str:
    """Return the short name of a card: ``H100`` of ``NVIDIA H100 80GB HBM3``."""
    return (card.removeprefix("NVIDIA ").removeprefix("Tesla ").split() or [card])[0]


def _date(one: Mapping[str, Any]) -> str:
    return str(one["date"]) + (_OLD if one["old"] else "") + (_EARLIER if one["earlier"] else "")


def _legend(found: Iterable[Mapping[str, Any]]) -> Iterator[Note]:
    """Yield what the marks mean, if they are used."""
    from colablock.training.evidence import REMARKS  # noqa: PLC0415 - the other views need no receipts

    steps = [one[step] for one in found for step in ("resolved", "applied", "imported") if one[step]]
    dated = [*steps, *(card for one in found for card in one["trained"])]
    if any(one["old"] for one in dated):
        yield Note(label=_OLD, text=REMARKS["old"])
    if any(one["earlier"] for one in dated):
        yield Note(label=_EARLIER, text=f"{REMARKS['earlier']}, which asked for other versions")


def _remark(one: Mapping[str, Any]) -> Note:
    text = one.get("fault") or f"not used: `{one['shadowed_by']}` has the same name"
    return Note(label=one["name"], text=f"{text} ({one['source']})", tone=Tone.WARN)


def notes_document(title: str, notes: Sequence[str]) -> Document:
    """Return the sentence *title*, and *notes* below it."""
    return Document(
        headline=Headline(text=title), blocks=tuple(Note(label="note", text=note) for note in notes)
    )


def history_document(
    changes: Sequence[Change],
    damaged: Sequence[DamagedChange] = (),
    undone: Sequence[PastChange] = (),
    begun: BegunChange | None = None,
    *,
    has_envs: bool = False,
) -> Document:
    """Return the changes of an environment, what is kept to undo each, and those that were undone.

    *begun* is one that is under way, or was interrupted.  With *has_envs* the list of the isolated
    environments is named: an apply there is no change of this one.
    """
    past: list[Block] = [Section(title="Undone", body=(Items(tuple(map(_past, undone))),))] if undone else []
    if begun is not None:
        past.insert(0, Section(title="Not finished", body=(Items((_begun(begun),)),), tone=Tone.WARN))
    text = "isolated environments are not changed, but built: `colablock env list` lists them"
    built = [Note(label="note", text=text)] if has_envs else []
    if not changes and not damaged:
        if begun is not None:
            return Document(blocks=(*past, *built))
        nothing = "colablock has changed nothing in this environment"
        return Document(
            blocks=(Note(text=f"{nothing} that is not undone" if past else nothing), *past, *built)
        )
    items = [(one.number, _change(one)) for one in changes]
    items += [(one.number, _damaged(one)) for one in damaged]
    listed = Items(tuple(item for _, item in sorted(items, key=lambda one: one[0])))
    return Document(blocks=(listed, *past, *built))


def _past(change: PastChange) -> Item:
    title = f"{_minute(change.when)}, {change.matrix}: {change.steps}"
    return Item(text=title, notes=(f"undone {_minute(change.undone)}: {change.why}",))


def _damaged(change: DamagedChange) -> Item:
    note = f"`{change.file}` cannot be read: {change.fault}"
    return Item(text=Span(f"change {change.number}, damaged", Tone.BAD), notes=(note,))


def _change(change: Change) -> Item:
    steps = steps_text(done.action for done in change.steps)
    title = f"change {change.number}, {_minute(change.when)}, {change.matrix}: {steps}"
    by = f"lock {change.lock[:12]}" if change.lock else f"stack {change.stack[:12]}"
    kept = (
        "its stash was dropped: it cannot be undone"
        if change.is_dropped
        else f"{tree_text(change.size, change.shared)} are kept to undo it"
    )
    before = (f"before it, the environment was {change.runtime} as recorded",) if change.runtime else ()
    return Item(text=Span(title, Tone.STRONG), notes=(f"{by}; {kept}", *before))


def _begun(change: BegunChange) -> Item:
    title = f"{_minute(change.when)}, {change.matrix}: {steps_text(step.action for step in change.steps)}"
    note = "if its process was killed, the next `colablock apply` or `colablock rollback` undoes it first"
    return Item(text=Span(title, Tone.STRONG), notes=(note,))


def tree_text(size: int, shared: int) -> str:
    """Return the size of a folder: "2.1 GB (2.0 GB of it in files that the cache … also has)"."""
    links = f" ({size_text(shared)} of it in files that the cache or another environment also has)"
    return size_text(size) + (links if shared else "")


def undone_document(undone: Sequence[UndoneChange]) -> Document:
    """Return what was undone, and what still differs from the state before it."""
    return Document(blocks=(Items(tuple(map(_undone, undone))),))


def preview_document(preview: UndoPreview) -> Document:
    """Return what an undo would break because others have changed the environment since."""
    if not preview.broken:
        return Document()
    lines = [Item(text=line) for line in preview.broken]
    if preview.companions:
        back = ", ".join(f"{name} {version}" for name, version in preview.companions.items())
        lines.append(Item(text=f"`--with-companions` puts back {back}, which others moved since"))
    lines += [Item(text=f"even then: {line}") for line in preview.beyond if preview.companions]
    lines += [Item(text=line) for line in preview.refused.values()]
    unmet = count(len(preview.broken), "requirement")
    title = f"Since others have changed it, the undo would leave {unmet} unmet"
    return Document(blocks=(Section(title=title, body=(Items(tuple(lines)),)),))


def _undone(undone: UndoneChange) -> Item:
    change = undone.change
    if not undone.differences:
        state = f" It is {change.runtime} again, as recorded." if change.runtime else ""
        title = f"The environment is as it was before change {change.number} ({change.matrix}).{state}"
    else:
        title = f"Change {change.number} ({change.matrix}) is undone. Still different from before it:"
    notes = (*undone.differences, *_companions(undone), *_leftovers(undone))
    return Item(text=Span(title, Tone.STRONG), notes=notes)


def _companions(undone: UndoneChange) -> Iterator[str]:
    """Yield what was put back besides, and what is broken now."""
    if undone.companions:
        yield f"put back as well: {', '.join(f'{name} {text}' for name, text in undone.companions.items())}"
    for line in undone.broken:
        yield f"broken now: {line}"


def _leftovers(undone: UndoneChange) -> Iterator[str]:
    """Yield what became of the files that appeared since in folders of the change."""
    if undone.set_aside:
        files = count(len(undone.set_aside), "file")
        yield f"moved {files} of no distribution to `{undone.aside}`: {some_of(undone.set_aside, _SHOWN)}"
    if undone.left:
        files = count(len(undone.left), "file")
        yield f"left {files} of no distribution beside the restored ones: {some_of(undone.left, _SHOWN)}"


def envs_document(built: Sequence[BuiltEnvironment]) -> Document:
    """Return the isolated environments."""
    if not built:
        return Document(blocks=(Note(text="there is no isolated environment"),))
    return Document(blocks=(Items(tuple(map(_env, built))),))


def _env(built: BuiltEnvironment) -> Item:
    manifest = built.manifest
    created = manifest.created if manifest else ""
    when = f", built {_minute(created)}" if created else ""
    others = [matrix for matrix in built.current_of if matrix != built.matrix]
    also = f", current for {', '.join(others)}" if others else ""
    if manifest is None:
        title = f"{built.matrix or 'an environment'}, incomplete"
    else:
        variant = f" ({manifest.variant})" if manifest.variant else ""
        current = ", current" if built.matrix in built.current_of else ""
        title = f"{built.matrix}{variant}, Python {manifest.python_version}{current}"
    note = (
        f"lock {built.lock[:12]}{when}{also}; {tree_text(built.size, built.shared)} in ",
        Span(str(built.folder), Tone.CODE),
    )
    return Item(text=Span(title, Tone.STRONG), notes=(note,))


def _minute(time: str) -> str:
    """Return an ISO 8601 time in UTC down to its minute."""
    return f"{time[:10]} {time[11:16]} UTC"


def _has_parts(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping) and bool(value)


def _parts(value: object) -> list[tuple[str, str]]:
    """Return name and text of each part; the name is its ``name`` if it has one."""
    if isinstance(value, Mapping):
        return [(str(key), _value(item)) for key, item in value.items()]
    if not isinstance(value, (list, tuple)):
        return []
    found = []
    for item in value:
        rest = dict(item) if isinstance(item, Mapping) else {"name": item}
        if rest.keys() == _ENTRY:
            rest = {"name": rest["requirement"], "summary": rest["why"]}
        found.append((str(rest.pop("name", "-")), _value(rest)))
    return found


def _label(key: str) -> str:
    return str(key).replace("_", " ").replace("-", " ")


def _value(value: object) -> str:
    """Return *value* in one line, its own parts as ``key: value``; empty parts are left out."""
    if isinstance(value, Mapping):
        if value.keys() == _ENTRY:
            return ": ".join(filter(None, (value["requirement"], value["why"])))
        parts = {str(key): _value(item) for key, item in value.items() if item not in (None, "", [], (), {})}
        summary = parts.pop("summary", "")
        return "; ".join(part for part in (summary, *(f"{_label(k)}: {v}" for k, v in parts.items())) if part)
    if isinstance(value, (list, tuple)):
        words = (" ".join(map(str, item)) if isinstance(item, (list, tuple)) else item for item in value)
        return ", ".join(map(_value, words)) or "none"  # a list within is a command
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
