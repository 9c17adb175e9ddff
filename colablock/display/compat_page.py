"""The compatibility page: matrices × recorded runtimes as one self-contained HTML file.

The grid links each cell to the `<details>` that say why, grouped by what is the
same for several accelerators; so the page is whole without a script.  The
script beside it filters and shows the details below the row instead.  Nothing
is loaded from elsewhere, which the page's own policy forbids anyway.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from textwrap import shorten
from typing import Any
from urllib.parse import quote

from colablock._common.text import count, size_text
from colablock.display.html import text_to_html
from colablock.display.view import clean, one_line
from colablock.runtimes.document import RecordedRuntime

__all__ = ["render_page"]

# The word that a cell shows, and what it means; best first.
_VERDICTS = {
    "kernel": ("Kernel", "goes into the running kernel, and nothing that worked breaks"),
    "env": ("Env", "goes into an isolated environment; the reason says why not into the kernel"),
    "none": ("No", "no Python at hand takes it"),
    "unknown": ("Unknown", "no lock says anything of it"),
}
_ORDER = list(_VERDICTS)
_TAKES = frozenset({"kernel", "env"})
_ACCELERATORS = ("T4", "L4", "A100", "H100", "G4", "P100", "none")
_FEW = 2  # accelerators that a cell names; more are counted
_LONG = 160  # characters: a longer reason is written once for each matrix, and begun where it comes again
_BEGUN = 60

_FOOT = """<footer><p>Written by <code>colablock check</code> from recorded images and lock files.
This page loads nothing.</p></footer>
</main>
"""


@dataclass(frozen=True, slots=True)
class _Part:
    """The accelerators of one cell that share one result, which is as `colablock check` writes it."""

    accelerators: tuple[str, ...]
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Group:
    """What has one verdict for one reason."""

    verdict: str
    reason: str
    parts: tuple[_Part, ...]

    @property
    def takes(self) -> bool:
        return self.verdict in _TAKES

    @property
    def accelerators(self) -> list[str]:
        return _sorted(one for part in self.parts for one in part.accelerators)


@dataclass(frozen=True, slots=True)
class _Row:
    """One matrix: its summary, its cells by runtime, and the findings about its imports."""

    name: str
    summary: str
    cells: Mapping[str, Sequence[_Group]]
    finds: Sequence[Mapping[str, Any]]


def render_page(
    checks: Sequence[Mapping[str, Any]],
    *,
    matrices: Mapping[str, str],
    runtimes: Sequence[RecordedRuntime],
) -> str:
    """Return the page for *checks*, each the content of one ``NAME.checks.json``, in their order.

    *matrices* has the summaries by name.  *runtimes* come oldest first and are
    shown newest first; one that only the checks know comes last, with no facts.
    The same arguments give the same bytes.
    """
    rows = [_row(check, matrices.get(check["matrix"], "")) for check in checks]
    facts = {runtime.name: runtime for runtime in reversed(runtimes)}
    names = list(dict.fromkeys([*facts, *(name for row in rows for name in row.cells)]))
    columns = {name: facts.get(name) for name in names}
    style, script = (
        files("colablock.display").joinpath(f"compat_page.{kind}").read_text(encoding="utf-8")
        for kind in ("css", "js")
    )
    cards = "".join(_card(row, columns) for row in rows)
    return (
        f"{_head(style, script)}{_legend()}{_filters(rows)}{_grid(rows, columns)}"
        f'<section id="cards"><h2>Reasons</h2>\n{cards}</section>\n{_FOOT}'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _row(check: Mapping[str, Any], summary: str) -> _Row:
    by_runtime: dict[str, list[Mapping[str, Any]]] = {}
    for result in check["results"]:
        by_runtime.setdefault(result["runtime"], []).append(result)
    cells = {runtime: _groups(results) for runtime, results in by_runtime.items()}
    return _Row(check["matrix"], summary, cells, check.get("imports") or ())


def _groups(results: Iterable[Mapping[str, Any]]) -> list[_Group]:
    """Return the results of one cell, best verdict first, with what is the same said once."""
    found: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for result in results:
        parts = found.setdefault((result["verdict"], result["reason"]), {})
        parts.setdefault(json.dumps({**result, "accelerator": None}, sort_keys=True), []).append(result)
    groups = [
        _Group(
            verdict,
            reason,
            tuple(_Part(tuple(one["accelerator"] for one in same), same[0]) for same in parts.values()),
        )
        for (verdict, reason), parts in found.items()
    ]
    return sorted(groups, key=lambda group: _ORDER.index(group.verdict))


def _plain(value: str) -> str:
    """Return *value* as one escaped line, for text and attributes."""
    return escape(one_line(value))


# The frame


def _head(style: str, script: str) -> str:
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>colablock: what works on which runtime</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
<h1>What works on which runtime</h1>
<p class="soft">Each matrix against each recorded Colab image. Choose a verdict to read why.</p>
"""


def _digest(text: str) -> str:
    """Return the source expression that allows exactly *text* (CSP Level 3, hash-source)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _legend() -> str:
    items = (f'<li><b class="is {verdict}">{word}</b> {what}' for verdict, (word, what) in _VERDICTS.items())
    return f'<ul id="legend">{"".join(items)}</ul>\n'


def _filters(rows: Iterable[_Row]) -> str:
    groups = [group for row in rows for cell in row.cells.values() for group in cell]
    present = _sorted({one for group in groups for one in group.accelerators})
    verdicts = {group.verdict for group in groups}
    on = {"": "any", **{one: _accelerator(one) for one in present}}
    verdict = {"": "any", **{one: word for one, (word, _) in _VERDICTS.items() if one in verdicts}}
    return (
        '<form id="filters" role="search" hidden>'
        '<label>Search <input type="search" name="q" placeholder="matrix, version, reason"></label>'
        f"{_select('Accelerator', 'on', on)}{_select('Verdict', 'is', verdict)}<output></output></form>\n"
        '<p id="nothing" hidden>Nothing matches.</p>\n'
    )


def _select(label: str, name: str, options: Mapping[str, str]) -> str:
    entries = "".join(f'<option value="{_plain(value)}">{_plain(word)}' for value, word in options.items())
    return f'<label>{label} <select name="{name}">{entries}</select></label>'


def _sorted(accelerators: Iterable[str]) -> list[str]:
    """Return *accelerators* in the order of the checks, those that are new last."""
    known = {name: place for place, name in enumerate(_ACCELERATORS)}
    return sorted(accelerators, key=lambda name: (known.get(name, len(known)), name))


def _accelerator(name: str) -> str:
    return "no GPU" if name == "none" else name


def _joined(accelerators: Iterable[str]) -> str:
    """Return *accelerators* as an attribute that the script splits."""
    return _plain(" ".join(accelerators))


def _listed(accelerators: Iterable[str]) -> str:
    return _plain(", ".join(map(_accelerator, accelerators)))


# The grid


def _grid(rows: Iterable[_Row], columns: Mapping[str, RecordedRuntime | None]) -> str:
    heads = "".join(_column(name, facts) for name, facts in columns.items())
    body = "".join(
        f'<tr data-matrix="{_plain(row.name)}"><th scope="row"><b>{_plain(row.name)}</b>'
        f"<small>{text_to_html(row.summary)}</small>{_finds_link(row)}</th>"
        f"{''.join(_cell(row, name) for name in columns)}</tr>\n"
        for row in rows
    )
    return (
        '<div id="grid" role="region" aria-label="Matrices and runtimes" tabindex="0"><table>\n<thead><tr>'
        f'<th scope="col">Matrix</th>{heads}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'
    )


def _column(name: str, facts: RecordedRuntime | None) -> str:
    if facts is None:
        return f'<th scope="col"><b>{_plain(name)}</b></th>'
    python = ".".join(facts.python_version.split(".")[:2])
    torch = f"<small>torch {_plain(facts.torch.partition('+')[0])}</small>" if facts.torch else ""
    return f'<th scope="col"><b>{_short(name, facts)}</b><small>Python {_plain(python)}</small>{torch}</th>'


def _short(name: str, facts: RecordedRuntime | None) -> str:
    return _plain(f"{facts.label} {facts.flavour.upper()}" if facts else name)


def _cell(row: _Row, runtime: str) -> str:
    if runtime not in row.cells:
        return "<td><i>not checked</i></td>"
    return f'<td><a href="{_link(row.name, runtime)}">{_verdicts(row.cells[runtime])}</a></td>'


def _finds_link(row: _Row) -> str:
    return f'<a href="{_link(row.name, "imports")}">{_finds_title(row)}</a>' if row.finds else ""


def _link(*parts: str) -> str:
    return "#" + quote(one_line("/".join(parts)))


def _verdicts(groups: Sequence[_Group]) -> str:
    """Return each verdict as a word; beside all but the best, the accelerators that have it."""
    found: dict[str, list[str]] = {}
    for group in groups:
        found.setdefault(group.verdict, []).extend(group.accelerators)
    total = sum(map(len, found.values()))
    return "".join(
        _word(verdict, _sorted(on), beside=_some(on, total) if place else "")
        for place, (verdict, on) in enumerate(found.items())
    )


def _word(verdict: str, on: Sequence[str], *, beside: str = "") -> str:
    more = f" <small>{beside}</small>" if beside else ""
    return f'<b class="is {verdict}" data-on="{_joined(on)}">{_VERDICTS[verdict][0]}{more}</b>'


def _some(accelerators: Sequence[str], total: int) -> str:
    if len(accelerators) > _FEW:
        return f"{len(accelerators)} of {total}"
    return _listed(accelerators)


# The cards: all there is to say, matrix by matrix


def _card(row: _Row, columns: Mapping[str, RecordedRuntime | None]) -> str:
    written: dict[str, str] = {}
    body = "".join(_details(row, name, columns[name], written) for name in columns if name in row.cells)
    return (
        f'<article id="{_plain(row.name)}"><h3>{_plain(row.name)}</h3>'
        f'<p class="soft">{text_to_html(row.summary)}</p>\n{_finds(row)}{body}</article>\n'
    )


def _details(row: _Row, runtime: str, facts: RecordedRuntime | None, written: dict[str, str]) -> str:
    name = _short(runtime, facts)
    groups = "".join(_group(row.name, group, written) for group in row.cells[runtime])
    if not any(group.takes for group in row.cells[runtime]):
        groups += _entries([("Command", _code(f"colablock plan {row.name} --runtime {runtime}"))])
    return (
        f'<details id="{_plain(row.name)}/{_plain(runtime)}" class="cell">'
        f"<summary><span>{name}</span>{_verdicts(row.cells[runtime])}</summary>"
        f'<div class="say"><p class="facts">{_facts(runtime, facts)}</p>{groups}</div></details>\n'
    )


def _facts(runtime: str, facts: RecordedRuntime | None) -> str:
    if facts is None:
        return _plain(runtime)
    versions = [
        f"{what} {version}"
        for what, version in (
            ("Python", facts.python_version),
            ("torch", facts.torch),
            ("driver", facts.driver),
        )
        if version
    ]
    return _plain(", ".join([runtime, *versions, f"recorded {facts.date}"]))


def _group(matrix: str, group: _Group, written: dict[str, str]) -> str:
    return (
        f'<div class="group" data-on="{_joined(group.accelerators)}" data-is="{group.verdict}">'
        f'<h4><span class="is {group.verdict}">{_VERDICTS[group.verdict][0]}</span>'
        f" {_listed(group.accelerators)}</h4>{_reason(matrix, group.reason, written)}"
        f"{_parts(matrix, group.parts)}</div>"
    )


def _parts(matrix: str, parts: Sequence[_Part]) -> str:
    """Return what differs between the *parts*, side by side, and below it what is the same for all."""
    about = [_about(matrix, part.result) for part in parts]
    same = [entry for entry in about[0] if all(entry in other for other in about)]
    if all(facts == same for facts in about):
        return _entries(same)
    own = (
        _entries(
            [("For", _listed(part.accelerators)), *(entry for entry in facts if entry not in same)], part
        )
        for part, facts in zip(parts, about, strict=True)
    )
    return f'<div class="parts">{"".join(own)}</div>{_entries(same)}'


def _entries(facts: Sequence[tuple[str, str]], part: _Part | None = None) -> str:
    if not facts:
        return ""
    on = f' data-on="{_joined(part.accelerators)}"' if part else ""
    return f"<dl{on}>{''.join(f'<dt>{name}<dd>{text}' for name, text in facts)}</dl>"


def _reason(matrix: str, reason: str, written: dict[str, str]) -> str:
    """Return *reason*; a long one that *written* has is only begun, with a link to the whole."""
    lines = [one_line(line) for line in clean(reason).splitlines() if line.strip()]
    text = "\n".join(lines)
    shown = "\n".join(map(text_to_html, lines))
    if len(text) <= _LONG:
        return f"<p>{shown}</p>"
    if text in written:
        more = f'<a href="{_link(written[text])}">the whole reason</a>'
        begun = text_to_html(shorten(text, _BEGUN, placeholder=" …"))
        return f'<p data-as="{_plain(written[text])}">{begun} {more}</p>'
    written[text] = f"{matrix}/why-{len(written) + 1}"
    return f'<p id="{_plain(written[text])}">{shown}</p>'


def _about(matrix: str, result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what there is to know beside the reason: headings, and what stands there as HTML."""
    variant = f"variant {result['variant']}, " if result["variant"] else ""
    done = {
        "Stack": text_to_html(f"{variant}Python {result['python']}"),
        "Changes": text_to_html(_changes(result)),
    }
    known = {
        "Breaks": "<br>".join(map(text_to_html, result["breaks"])),
        "Claims": "<br>".join(map(text_to_html, _claims(result["claims"]))),
        "Lock file": _code(result["lock"] or ""),
    }
    command = {"Command": _code(f"colablock apply {matrix}")}
    takes = result["verdict"] in _TAKES
    facts = {**done, **known, **command} if takes else known
    return [(name, text) for name, text in facts.items() if text]


def _code(text: str) -> str:
    return f"<code>{_plain(text)}</code>" if text else ""


def _changes(result: Mapping[str, Any]) -> str:
    size = result["fetch-bytes"]
    removed = result["removes"]
    parts = [
        f"installs {result['installs']}" if result["installs"] else "",
        f"replaces {result['replaces']}" if result["replaces"] else "",
        f"removes {', '.join(removed)}" if removed else "",
    ]
    changes = ", ".join(filter(None, parts)) or "none"
    fetched = f"{size_text(size)} to fetch" if size is not None else ""
    restart = "restart if the kernel has loaded what is replaced" if result["restart"] else "no restart"
    is_kernel = result["verdict"] == "kernel"
    return "; ".join(filter(None, [changes, fetched, restart if is_kernel else ""]))


def _claims(claims: Mapping[str, str]) -> list[str]:
    """Return one line for each outcome: those that hold, then each that does not."""
    holding = [name for name, outcome in claims.items() if outcome == "holds"]
    held = f"{', '.join(holding)} {'holds' if len(holding) == 1 else 'hold'}"
    others = [f"{name} {outcome}" for name, outcome in claims.items() if outcome != "holds"]
    return [*([held] if holding else []), *others]


# Phantom imports


def _finds_title(row: _Row) -> str:
    errors = sum(find["severity"] == "error" for find in row.finds)
    more = f", {count(errors, 'error')}" if errors else ""
    return f"{count(len(row.finds), 'import finding')}{more}"


def _finds(row: _Row) -> str:
    if not row.finds:
        return ""
    items = "".join(
        f"<li><b>{_plain(find['severity'])}</b> {_plain(find['package'])} {_plain(find['version'])}:"
        f" {_plain(find['kind'])} <code>{_plain(find['name'])}</code> in <code>{_plain(find['where'])}</code>"
        f"<br>{text_to_html(find['detail'])}"
        for find in row.finds
    )
    return (
        f'<details id="{_plain(row.name)}/imports"><summary><span>{_finds_title(row)}</span></summary>'
        f'<div class="say"><ul class="finds">{items}</ul></div></details>\n'
    )
