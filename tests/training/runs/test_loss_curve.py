from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET  # it reads only what was written here

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colablock.errors import InvalidInput, Unmet
from colablock.training.runs.loss_curve import (
    Point,
    curve_png,
    curve_svg,
    evaluation_points,
    loss_points,
    smoothed,
    sparkline_svg,
    write_curve,
)
from tests.support.runs import events_of, make_run

SVG = "{http://www.w3.org/2000/svg}"

# Draws nothing: its picture holds what it was asked to draw.
STAND_IN = """
import json
calls = []
class Any:
    def __getattr__(self, name):
        if name == "xaxis":
            return Any()
        def call(*args, **keywords):
            calls.append([name, args, sorted(keywords)])
            return Any()
        return call
    spines = {}
    def __getitem__(self, key): return Any()
class Spines(dict):
    def __getitem__(self, key): return Any()
Any.spines = Spines()
class Figure:
    def savefig(self, to, format):
        to.write(b"\\x89PNG" + json.dumps(calls, default=list).encode())
def subplots(**keywords): return Figure(), Any()
"""


def interpreter(folder: Path, *, modules: dict[str, str], prelude: str = "") -> str:
    """Return an interpreter with only *modules*."""
    site = folder / "site"
    site.mkdir(parents=True)
    for name, text in modules.items():
        (site / name).write_text(text)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\n{prelude}PYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return str(python)


@pytest.fixture
def with_matplotlib(tmp_path: Path) -> str:
    modules = {"matplotlib.py": "__path__ = [__file__[:-13]]\ndef use(name): pass\n", "pyplot.py": STAND_IN}
    return interpreter(tmp_path / "with", modules=modules)


@pytest.fixture
def without(tmp_path: Path) -> str:
    return interpreter(tmp_path / "without", modules={})


def test_the_later_event_of_a_step_counts() -> None:
    events = [*events_of([5.0, 4.0]), {"event": "log", "step": 2, "loss": 3.0}]
    assert loss_points(events) == (Point(1, 5.0), Point(2, 3.0))


def test_a_resume_removes_the_points_after_its_step() -> None:
    events = [*events_of([5.0, 4.0, 3.0, 2.0]), *events_of([3.5], first=2)]
    assert loss_points(events) == (Point(1, 5.0), Point(2, 4.0), Point(3, 3.5))
    again = [*events, *events_of([6.0])]
    assert loss_points(again) == (Point(1, 6.0),)


def test_evaluation_losses_are_separate_points() -> None:
    events = [*events_of([5.0, 4.0]), {"event": "log", "step": 2, "eval_loss": 4.5}]
    assert evaluation_points(events) == (Point(2, 4.5),)
    assert loss_points(events) == (Point(1, 5.0), Point(2, 4.0))


def test_nan_losses_are_not_points() -> None:
    values = [math.nan, math.inf, "5", None, True]
    events = [{"event": "log", "step": at, "loss": value} for at, value in enumerate(values)]
    assert (
        loss_points([*events, {"event": "log", "loss": 1.0}, {"event": "step", "step": 9, "loss": 1.0}]) == ()
    )


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_a_smoothed_curve_stays_within_its_points(losses: list[float]) -> None:
    points = [Point(at, loss) for at, loss in enumerate(losses)]
    smooth = smoothed(points)
    assert [point.step for point in smooth] == [point.step for point in points]
    assert all(min(losses) - 1e-9 <= point.loss <= max(losses) + 1e-9 for point in smooth)
    assert smooth[0].loss == pytest.approx(losses[0])


# SVG


def curve(losses: list[float], **options: object) -> ET.Element:
    points = [Point(at, loss) for at, loss in enumerate(losses, 1)]
    return ET.fromstring(curve_svg(points, **options))  # type: ignore[arg-type]  # noqa: S314


def texts(root: ET.Element) -> list[str]:
    return [one.text or "" for one in root.iter(f"{SVG}text")]


def test_the_axes_have_round_numbers() -> None:
    root = curve([5.9 - at * 0.0092 for at in range(600)])
    assert texts(root)[:5] == ["0", "2", "4", "6", "100"]
    assert "600" in texts(root)
    assert "step" in texts(root)


@pytest.mark.parametrize(
    ("losses", "labels"),
    [
        ([0.5], ["0.44", "0.46", "0.48", "0.5", "0.52", "0.54", "0.56"]),
        ([3.0, 3.0], ["2.6", "2.8", "3", "3.2", "3.4"]),
        ([0.0, 0.0], ["-1", "-0.5", "0", "0.5", "1"]),
        ([5.9983, 6.0], ["5.998", "5.9985", "5.999", "5.9995", "6"]),
        ([1e-6, 3e-6], ["1e-06", "1.5e-06", "2e-06", "2.5e-06", "3e-06"]),
        ([12_000.0, 50_000.0], ["10000", "20000", "30000", "40000", "50000"]),
    ],
)
def test_any_range_gets_an_axis(losses: list[float], labels: list[str]) -> None:
    assert texts(curve(losses))[: len(labels)] == labels


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 10**6))
def test_everything_is_inside_the_picture(losses: list[float], first: int) -> None:
    points = [Point(first + at, loss) for at, loss in enumerate(losses)]
    root = ET.fromstring(curve_svg(points, title="A run", evaluations=points[:1]))  # noqa: S314
    width, height = (float(one) for one in root.attrib["viewBox"].split()[2:])
    for line in root.iter(f"{SVG}polyline"):
        for corner in line.attrib["points"].split():
            x, y = map(float, corner.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_a_long_run_is_thinned_and_keeps_its_peaks() -> None:
    losses = [1.0] * 100_000
    losses[54_321] = 9.0
    root = curve(losses)
    raw = next(root.iter(f"{SVG}polyline")).attrib["points"].split()
    assert len(raw) <= 402
    assert len({corner.split(",")[1] for corner in raw}) == 2


def test_titles_are_escaped_and_the_svg_loads_no_resources() -> None:
    svg = curve_svg([Point(1, 2.0), Point(2, 1.0)], title='<b>"&', is_file=True)
    root = ET.fromstring(svg)  # noqa: S314
    assert root.attrib["aria-label"] == '<b>"&'
    assert '<b>"&' in texts(root)
    assert svg.count("http") == 1  # the name space
    assert "prefers-color-scheme" in svg
    assert "<style>" not in curve_svg([Point(1, 2.0)])


def test_without_points_there_is_no_svg() -> None:
    assert curve_svg([]) == ""
    assert sparkline_svg([Point(1, 2.0)]) == ""
    assert "loss from 2 to 1" in sparkline_svg([Point(1, 2.0), Point(2, 1.0)])


# PNG


def test_the_first_interpreter_that_has_matplotlib_draws(
    tmp_path: Path, with_matplotlib: str, without: str
) -> None:
    events = [*events_of([5.0, 4.0]), {"event": "log", "step": 2, "eval_loss": 4.5}]
    folder = make_run(tmp_path / "run", events=events)
    output = tmp_path / "new" / "curve.png"
    write_curve(folder, output, [str(tmp_path / "gone"), without, with_matplotlib], title="cost in $")
    calls = json.loads(output.read_bytes().removeprefix(b"\x89PNG"))
    plotted = [[list(one) for one in args[:2]] for name, args, _ in calls if name == "plot"]
    assert plotted[0] == [[1, 2], [5.0, 4.0]]
    assert plotted[2] == [[2], [4.5]]
    assert next(args for name, args, _ in calls if name == "set_title") == ["cost in \\$"]
    assert "matplotlib" not in sys.modules


def test_without_matplotlib_png_is_an_error(tmp_path: Path, without: str) -> None:
    folder = make_run(tmp_path / "run", events=events_of([5.0]))
    with pytest.raises(Unmet, match="none of these interpreters") as caught:
        curve_png(folder, [without])
    assert caught.value.hint == "Use a file name that ends in `.svg`, which does not need matplotlib"


def test_the_error_of_matplotlib_is_reported(tmp_path: Path) -> None:
    python = interpreter(tmp_path / "bad", modules={"matplotlib.py": "raise ValueError('no fonts')"})
    folder = make_run(tmp_path / "run", events=events_of([5.0]))
    with pytest.raises(Unmet, match="no fonts"):
        curve_png(folder, [python])


def test_the_kernels_backend_is_not_passed_to_matplotlib(tmp_path: Path) -> None:
    text = "import os\nassert 'MPLBACKEND' not in os.environ, 'backend'\nraise ValueError('clean')"
    python = interpreter(tmp_path / "python", modules={"matplotlib.py": text})
    folder = make_run(tmp_path / "run", events=events_of([5.0]))
    environ = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    with pytest.raises(Unmet, match="clean"):
        curve_png(folder, [python], environ=environ)


@pytest.mark.parametrize("name", ["curve.svg", "curve.png"])
def test_a_run_without_losses_has_no_curve(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run", events=events_of([]))
    with pytest.raises(Unmet, match="no loss has been logged"):
        write_curve(folder, tmp_path / name, [sys.executable])
    assert not (tmp_path / name).exists()


def test_an_svg_needs_no_matplotlib(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", events=events_of([5.0, 4.0]))
    write_curve(folder, tmp_path / "curve.SVG", [])
    assert (tmp_path / "curve.SVG").read_text().startswith("<svg")
    with pytest.raises(InvalidInput, match=r"must end in `\.png` or `\.svg`"):
        write_curve(folder, tmp_path / "curve.pdf", [])


@pytest.mark.parametrize("losses", [[5.0], [5.0, 4.0, 3.0]])
def test_matplotlib_draws_a_png(tmp_path: Path, losses: list[float]) -> None:
    folder = make_run(tmp_path / "run", events=events_of(losses))
    assert curve_png(folder, [sys.executable], title="a $ b").startswith(b"\x89PNG")


def test_importing_the_module_does_not_import_matplotlib() -> None:
    code = "import sys, colablock.training.runs.loss_curve; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
