"""The loss curve of a run: its points, an SVG, and a PNG that matplotlib draws in a child process."""

from __future__ import annotations

import json
import math
import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from colablock._common.child_environment import environment_of
from colablock._common.fs import write_atomic
from colablock._common.process import (
    ChildFailed,
    ChildOutput,
    last_lines,
    run_child,
    source_command,
)
from colablock._common.scratch import scratch_folder
from colablock.errors import InvalidInput, Unmet
from colablock.training.runs.folder import RunFolder
from colablock.transaction.apply_record import home_folder
from colablock.transaction.isolated_envs import is_own_interpreter

__all__ = [
    "GrowingCurve",
    "Point",
    "curve_png",
    "curve_svg",
    "evaluation_points",
    "loss_points",
    "number_of",
    "smoothed",
    "sparkline_svg",
    "write_curve",
]

_WEIGHT = 0.85  # of earlier points in the smoothed loss: about the last seven points count
_SMOOTHED_POINTS = 200  # the first of so many points has a weight of 1e-14
_MAX_POINTS = 400  # that a curve of this size can show
_TIMEOUT = 120.0  # seconds: the first import of matplotlib may build its list of fonts
_NO_MATPLOTLIB = 3  # exit code of the child
_LINE = "#3b82f6"  # readable on white and on the near black of dark notebooks
_DOTS = "#d97706"
_SVG = "http://www.w3.org/2000/svg"


class Point(NamedTuple):
    """The loss at a step."""

    step: int
    loss: float


def number_of(event: Mapping[str, Any], key: str) -> float | None:
    """Return the number under *key* in *event*, which may be nan; None for any other value."""
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits
        return math.inf if value > 0 else -math.inf


def loss_points(events: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """Return the training loss by step, without values that are not finite.

    If a step is logged again, the later event counts.  A start at an earlier step removes the
    points after it, since those steps are trained again.
    """
    return _points(events, "loss")


def evaluation_points(events: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """Return the loss on the evaluation rows, like `loss_points`."""
    return _points(events, "eval_loss")


class GrowingCurve:
    """The points of one kind of loss, extended event by event."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._points: list[Point] = []

    def add(self, event: Mapping[str, Any]) -> None:
        """Add one event; events that are not points of this curve are ignored."""
        kind = event.get("event")
        if kind not in ("start", "log"):
            return
        step = number_of(event, "step")
        if step is None or not math.isfinite(step):
            return
        if kind == "start":
            del self._points[bisect_right(self._points, (step, math.inf)) :]
            return
        loss = number_of(event, self._key)
        if loss is not None and math.isfinite(loss):
            at = bisect_left(self._points, (step, -math.inf))
            is_again = at < len(self._points) and self._points[at].step == step
            self._points[at : at + is_again] = [Point(int(step), loss)]

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(self._points)

    @property
    def smooth_end(self) -> float | None:
        """The last smoothed loss, from recent points only, since earlier ones have no weight."""
        last = self._points[-_SMOOTHED_POINTS:]
        return smoothed(last)[-1].loss if last else None


def _points(events: Iterable[Mapping[str, Any]], key: str) -> tuple[Point, ...]:
    curve = GrowingCurve(key)
    for event in events:
        curve.add(event)
    return curve.points


def smoothed(points: Sequence[Point], weight: float = _WEIGHT) -> tuple[Point, ...]:
    """Return the exponential moving average of *points*, corrected for the bias towards the start."""
    mean, seen, found = 0.0, 0.0, []
    for step, loss in points:
        mean = weight * mean + (1 - weight) * loss
        seen = weight * seen + (1 - weight)
        found.append(Point(step, mean / seen))
    return tuple(found)


# SVG


def sparkline_svg(points: Sequence[Point], *, width: int = 120, height: int = 28) -> str:
    """Return an SVG of *points* as a line without axes; "" for fewer than two points."""
    if len(points) < 2:  # noqa: PLR2004  # a line has two ends
        return ""
    box = _Box(left=2, top=2, right=width - 2, bottom=height - 2, steps=_span(points), losses=_range(points))
    last = points[-1]
    text = f"loss from {points[0].loss:.3g} to {last.loss:.3g}"
    return (
        f'<svg xmlns="{_SVG}" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="{text}">{_path(_thinned(points), box, width=1.5)}'
        f'<circle cx="{box.x(last.step):.1f}" cy="{box.y(last.loss):.1f}" r="2" fill="{_LINE}"/></svg>'
    )


def curve_svg(
    points: Sequence[Point],
    *,
    width: int = 480,
    height: int = 240,
    title: str = "",
    evaluations: Sequence[Point] = (),
    is_file: bool = False,
) -> str:
    """Return an SVG of *points* with axes and a smoothed curve, and of *evaluations* as dots.

    Text and axes have the colour of the page.  With *is_file* the SVG sets its own colours, light
    or dark as the viewer prefers.  The result is "" without points.
    """
    every = [*points, *evaluations]
    if not every:
        return ""
    losses = _ticks(*_range(every), most=5)
    box = _Box(
        left=12 + 7.2 * max(map(len, _labels(losses))),
        top=32 if title else 12,
        right=width - 14,
        bottom=height - 38,
        steps=_span(every),
        losses=(losses[0], losses[-1]),
    )
    shown = _thinned(points)
    parts = [_page_colours() if is_file else "", *_axes(box, losses)]
    if title:
        size = min(13.5, 1.7 * (width - 24) / max(len(title), 1))
        parts.append(_text(12, 20, title, anchor="start", size=size, weight=600))
    if len(points) > 1:
        parts.append(_path(shown, box, width=1, opacity=0.4))
        parts.append(_path(_thinned(smoothed(points)), box, width=2))
    elif points:
        parts.append(_dot(box, points[0], _LINE))
    parts.extend(_dot(box, point, _DOTS) for point in _thinned(evaluations))
    parts.append(_legend(box, has_evaluations=bool(evaluations)))
    about = escape(title or "loss by step", quote=True)
    return (
        f'<svg xmlns="{_SVG}" viewBox="0 0 {width} {height}" role="img" aria-label="{about}"'
        f' style="display:block;width:100%;max-width:{round(width * 1.1)}px;height:auto"'
        f' font-family="system-ui,sans-serif">{"".join(parts)}</svg>'
    )


class _Box(NamedTuple):
    """The area of the points in the picture, and the steps and losses at its edges."""

    left: float
    top: float
    right: float
    bottom: float
    steps: tuple[float, float]
    losses: tuple[float, float]

    def x(self, step: float) -> float:
        low, high = self.steps
        return self.left + (self.right - self.left) * (step - low) / ((high - low) or 1)

    def y(self, loss: float) -> float:
        low, high = self.losses
        return self.bottom - (self.bottom - self.top) * (loss - low) / ((high - low) or 1)


def _axes(box: _Box, losses: Sequence[float]) -> Iterator[str]:
    for loss, label in zip(losses, _labels(losses), strict=True):
        y = box.y(loss)
        yield _line(box.left, y, box.right, y, opacity=0.16)
        yield _text(box.left - 6, y + 4, label, anchor="end")
    steps = _ticks(*box.steps, most=6, whole=True)
    for step, label in zip(steps, _labels(steps), strict=True):
        if box.steps[0] <= step <= box.steps[1]:
            x = box.x(step)
            yield _line(x, box.bottom, x, box.bottom + 4, opacity=0.6)
            yield _text(x, box.bottom + 17, label)
    yield _line(box.left, box.bottom, box.right, box.bottom, opacity=0.6)
    yield _text((box.left + box.right) / 2, box.bottom + 33, "step")


def _legend(box: _Box, *, has_evaluations: bool) -> str:
    entries = [("training loss, smoothed", _LINE)] + ([("evaluation", _DOTS)] if has_evaluations else [])
    parts, x = [], box.right
    for text, colour in reversed(entries):
        parts.append(_text(x, box.top + 12, text, anchor="end", size=11.5))
        x -= 5.8 * len(text) + 9
        parts.append(f'<circle cx="{x:.1f}" cy="{box.top + 8:.1f}" r="3.5" fill="{colour}"/>')
        x -= 14
    return "".join(parts)


def _page_colours() -> str:
    return (
        "<style>:root{color:#1f2328;background:#fff}"
        "@media(prefers-color-scheme:dark){:root{color:#e6e6e6;background:#16181d}}</style>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, *, opacity: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        f' stroke="currentColor" stroke-opacity="{opacity}"/>'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "middle", size: float = 12.5, weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:.1f}" font-weight="{weight}"'
        f' fill="currentColor">{escape(text)}</text>'
    )


def _dot(box: _Box, point: Point, colour: str) -> str:
    return f'<circle cx="{box.x(point.step):.1f}" cy="{box.y(point.loss):.1f}" r="3.5" fill="{colour}"/>'


def _path(points: Iterable[Point], box: _Box, *, width: float, opacity: float = 1) -> str:
    corners = " ".join(f"{box.x(point.step):.1f},{box.y(point.loss):.1f}" for point in points)
    return (
        f'<polyline points="{corners}" fill="none" stroke="{_LINE}" stroke-width="{width}"'
        f' stroke-opacity="{opacity}" stroke-linejoin="round"/>'
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most `_MAX_POINTS` of *points*: the ends, and the minimum and maximum of each section."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    inner = points[1:-1]
    length = math.ceil(2 * len(inner) / (_MAX_POINTS - 2))
    kept = {points[0], points[-1]}
    for at in range(0, len(inner), length):
        stretch = inner[at : at + length]
        kept |= {
            min(stretch, key=lambda point: point.loss),
            max(stretch, key=lambda point: point.loss),
        }
    return sorted(kept)


def _span(points: Sequence[Point]) -> tuple[float, float]:
    steps = [point.step for point in points]
    return min(steps), max(steps)


def _range(points: Sequence[Point]) -> tuple[float, float]:
    losses = [point.loss for point in points]
    return min(losses), max(losses)


def _ticks(low: float, high: float, *, most: int, whole: bool = False) -> list[float]:
    """Return about *most* round numbers that enclose the range, without fractions if *whole*."""
    if high <= low:
        around = abs(low) * 0.1 or 1.0
        low, high = low - around, high + around
    rough = (high - low) / most
    scale: float = 10 ** math.floor(math.log10(rough))
    width = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * 0.999)
    if whole:
        width = max(1, math.ceil(width))
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    return [at * width for at in range(first, last + 1)]


def _labels(values: Sequence[float]) -> list[str]:
    """Return *values* as distinct labels of an axis: ``0.5``, ``12000``, ``2e-05``."""
    found: list[str] = []
    for digits in range(4, 16):
        found = [_label(value, digits) for value in values]
        if len(set(found)) == len(found):
            break
    return found


def _label(value: float, digits: int) -> str:
    if abs(value) < 1e-12:  # noqa: PLR2004  # a rounding error of 0
        return "0"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


# PNG

_DRAW = """
import io, json, sys
try:
    import matplotlib
except ImportError:
    sys.exit(3)
matplotlib.use("Agg")
from matplotlib import pyplot
job = json.load(sys.stdin)
figure, axes = pyplot.subplots(figsize=(7, 3.5), dpi=130, layout="constrained")
alone = len(job["losses"]) == 1
axes.plot(*zip(*job["losses"]), color=job["line"], alpha=1 if alone else 0.35, linewidth=1,
          marker="o" if alone else None)
axes.plot(*zip(*job["smoothed"]), color=job["line"], linewidth=2, label="training loss, smoothed")
if job["evaluations"]:
    axes.plot(*zip(*job["evaluations"]), "o", color=job["dots"], label="evaluation")
axes.set_title(job["title"].replace("$", r"\\$"), loc="left", fontsize=11)
axes.set_xlabel("step")
axes.set_ylabel("loss")
axes.xaxis.get_major_locator().set_params(integer=True)
axes.grid(alpha=0.25)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
picture = io.BytesIO()
figure.savefig(picture, format="png")
sys.stdout.buffer.write(picture.getvalue())
"""


def curve_png(
    folder: RunFolder,
    pythons: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    title: str | None = None,
) -> bytes:
    """Return the loss curve of a run as a PNG, drawn by the first of *pythons* that has matplotlib.

    By default that is this interpreter, then the run's if colablock has set it up.  A child
    process draws it, so that matplotlib is never imported here.  Raises Unmet if there is no
    loss, or no interpreter can.
    """
    job = _job(folder, _title(folder) if title is None else title)
    problem = ""
    for python in dict.fromkeys(_pythons(folder, environ) if pythons is None else pythons):
        try:
            output = _draw(python, job, environ)
        except ChildFailed as error:
            if error.status != _NO_MATPLOTLIB:
                problem = last_lines(error.output.error_text, 1) or str(error)
            continue
        if output.stdout.startswith(b"\x89PNG"):
            return output.stdout
        problem = last_lines(output.error_text, 1)
    reason = problem or "none of these interpreters has matplotlib"
    raise Unmet(
        f"cannot draw the loss curve as PNG: {reason}",
        hint="Use a file name that ends in `.svg`, which does not need matplotlib",
    )


def write_curve(
    folder: RunFolder,
    path: Path,
    pythons: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    title: str | None = None,
) -> None:
    """Write the loss curve to *path*, whose suffix is ``.png`` or ``.svg``.  Raises Unmet, InvalidInput."""
    kind = path.suffix.lower()
    if kind == ".png":
        write_atomic(path, curve_png(folder, pythons, environ=environ, title=title))
    elif kind == ".svg":
        events = _logged(folder)
        svg = curve_svg(
            loss_points(events),
            title=_title(folder) if title is None else title,
            evaluations=evaluation_points(events),
            is_file=True,
        )
        write_atomic(path, svg.encode())
    else:
        raise InvalidInput(f"`{path}` must end in `.png` or `.svg`")


def _title(folder: RunFolder) -> str:
    record = folder.record()
    return f"{record.id}: {Path(record.model).name}" if record is not None else folder.path.name


def _pythons(folder: RunFolder, environ: Mapping[str, str]) -> list[str]:
    record = folder.record()
    is_ours = record is not None and is_own_interpreter(record.python, home_folder(environ))
    return [sys.executable, *([record.python] if record is not None and is_ours else [])]


def _job(folder: RunFolder, title: str) -> bytes:
    events = _logged(folder)
    points = loss_points(events)
    job = {
        "losses": _thinned(points),
        "smoothed": _thinned(smoothed(points)),
        "evaluations": evaluation_points(events),
        "title": title,
        "line": _LINE,
        "dots": _DOTS,
    }
    return json.dumps(job).encode()


def _logged(folder: RunFolder) -> list[dict[str, Any]]:
    events = folder.metrics()
    if not loss_points(events):
        raise Unmet("cannot draw a loss curve: no loss has been logged yet")
    return events


def _draw(python: str, job: bytes, environ: Mapping[str, str]) -> ChildOutput:
    # Not isolated: matplotlib may be among the user's own packages.  In an empty folder: the current
    # one may have a file named `matplotlib.py`.
    with scratch_folder() as empty:
        return run_child(
            source_command(python, _DRAW),
            environ=environment_of(python, environ),
            folder=empty,
            data=job,
            timeout=_TIMEOUT,
        )
