"""What ``tool.importlinter`` in pyproject.toml says about the packages: as a picture and as rows of tables.

docs/generate.py writes both into the pages, so neither can differ from what `nox -s lint` checks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent

# Pixels.
WIDTH, MARGIN, GAP, ROW, INNER_ROW, PADDING = 860, 12, 8, 34, 26, 8
LETTER = 6.2  # of a description, on average
STYLE = """\
text { font-family: ui-sans-serif, system-ui, sans-serif; font-size: 12px; fill: #333 }
.name { font-family: ui-monospace, monospace; font-size: 13px; font-weight: bold; fill: #111 }
.package { fill: #e8eef7; stroke: #5b7aa8 }
.module { fill: #f6f6f6; stroke: #999; stroke-dasharray: 4 3 }
.part { fill: #fff; stroke: #5b7aa8 }
.part-module { fill: #fff; stroke: #999; stroke-dasharray: 4 3 }
"""


class Package(NamedTuple):
    """A package as its docstring describes it: three lines, and its `__all__`."""

    name: str
    summary: str
    takes: str
    gives: str
    surface: tuple[str, ...]


def layers(contract: str) -> list[list[str]]:
    """Return the layers of a contract by its id, top first, each with the modules that share it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (found,) = (one for one in settings["contracts"] if one.get("id") == contract)
    return [re.split(r"\s*[|:]\s*", layer) for layer in found["layers"]]


def packages() -> Iterator[Package]:
    """Yield the packages of colablock, the lowest first, and after `training` its parts."""
    for layer in reversed(layers("layers")):
        for name in layer:
            yield from described(name)
            if name == "training":
                for parts in reversed(layers("training")):
                    for part in parts:
                        yield from described(f"training.{part}")


def described(name: str) -> Iterator[Package]:
    """Yield the package of that name, unless it is a module or not ours."""
    if not (ROOT / "colablock" / name.replace(".", "/")).is_dir() or name == "_vendor":
        return
    package = import_module(f"colablock.{name}")
    found = re.fullmatch(r"(.+)\n\nIn(?:put)?: (.+?)  Out(?:put)?: (.+)\n", package.__doc__ or "")
    if not found:
        raise SystemExit(f"the docstring of colablock.{name} needs three lines: what it is, Input, Output")
    summary, takes, gives = found.groups()
    yield Package(name, summary, takes, gives, tuple(getattr(package, "__all__", ())))


def picture() -> str:
    """Return the layers as SVG, the highest on top; the parts of `training` stand inside its box."""
    summaries = {package.name: package.summary.replace("`", "").rstrip(".") for package in packages()}
    parts = layers("training")
    drawn: list[str] = []
    y = MARGIN
    for layer in layers("layers"):
        height = ROW + len(parts) * (INNER_ROW + GAP) if "training" in layer else ROW
        for x, width, name in spread(layer, MARGIN, WIDTH - 2 * MARGIN):
            is_package = name in summaries or name == "_vendor"
            drawn += box(x, y, width, height, "package" if is_package else "module")
            drawn += words(x, y + ROW / 2 + 4, width, name, summaries.get(name, ""))
            if name == "training":
                drawn += inside(x, y + ROW, width, parts, summaries)
        y += height + GAP
    note = "Imports point downwards only. Boxes side by side do not import each other. Dashed: a module."
    drawn.append(f'<text x="{MARGIN}" y="{y + 14}">{escape(note)}</text>')
    size = f'viewBox="0 0 {WIDTH} {y + 24}" width="{WIDTH}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>The packages of colablock in layers</title>"
    ground = f'<rect width="{WIDTH}" height="{y + 24}" fill="#fff"/>'
    return "\n".join([head, title, f"<style>\n{STYLE}</style>", ground, *drawn, "</svg>"]) + "\n"


def inside(
    x: float, y: float, width: float, parts: Sequence[Sequence[str]], summaries: Mapping[str, str]
) -> list[str]:
    """Return the parts of `training` as boxes inside its own."""
    drawn = []
    for layer in parts:
        for left, room, name in spread(layer, x + PADDING, width - 2 * PADDING):
            about = summaries.get(f"training.{name}", "")
            drawn += box(left, y, room, INNER_ROW, "part" if about else "part-module")
            drawn += words(left, y + INNER_ROW / 2 + 4, room, name, about)
        y += INNER_ROW + GAP
    return drawn


def spread(names: Sequence[str], x: float, width: float) -> Iterator[tuple[float, float, str]]:
    """Yield the left edge and the width of each of several boxes that share a row."""
    each = (width - GAP * (len(names) - 1)) / len(names)
    for at, name in enumerate(names):
        yield x + at * (each + GAP), each, name


def box(x: float, y: float, width: float, height: float, kind: str) -> list[str]:
    """Return one box."""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return [f'<rect {place} rx="5" class="{kind}"/>']


def words(x: float, y: float, width: float, name: str, about: str) -> list[str]:
    """Return a name, and what it is: all of it where there is room beside the name, else its head."""
    start = PADDING + len(name) * 8 + 10
    drawn = [f'<text x="{x + PADDING:g}" y="{y:g}" class="name">{escape(name)}</text>']
    for text in (about, about.partition(":")[0]):
        if text and start + len(text) * LETTER < width:
            return [*drawn, f'<text x="{x + start:g}" y="{y:g}">{escape(text)}</text>']
    return drawn
