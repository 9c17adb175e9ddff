"""A notebook as its author writes it, run in a real kernel on what a runtime of 2026 holds."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.support.fixtures import world_fixture
from tests.support.recorded_index import RecordedIndex
from tests.support.world import World, notebook_venv, run_cells, shown, stack_of

RUNTIME = "colab-2026.08-gpu"

pytestmark = pytest.mark.slow  # whole commands, in stand-ins of whole runtimes
# aiohttp of the image needs async-timeout below Python 3.11, where that image has never been.
ADDED = 2 if sys.version_info >= (3, 11) else 3
INTERRUPT = (
    "import signal, unittest.mock\n"
    "stop = lambda *_, **__: signal.raise_signal(signal.SIGINT)\n"
    "with unittest.mock.patch('colablock.operations.session.Session.snapshot', stop):\n"
)
CELLS = {
    "start": "import torch, transformers, pyarrow\nimport colablock",
    "plan": "plan = colablock.plan('qlora-2026', variant='cuda')\nplan",
    "apply": "report = colablock.apply('qlora-2026', variant='cuda')\nreport",
    "use": "import sys, bitsandbytes, trl\nprint(trl.__version__, report.python == sys.executable)",
    "again": "again = colablock.apply('qlora-2026', variant='cuda')\nprint(again.changed, again.seconds < 9)",
    "run": "%%colablock run\nimport sys, trl\nprint('trl', trl.__version__, 'in', sys.executable)",
    "run-named": "%%colablock run qlora-2026 -- 5\nimport sys\nsys.exit(int(sys.argv[1]))",
    "typo": "%colablock plan qlora-2062",
    "refused": "colablock.plan('nothing-fits.toml', into='kernel')",
    "interrupted": f"{INTERRUPT}    colablock.plan('qlora-2026', variant='cpu')",
    "interrupted-command": f"{INTERRUPT}    get_ipython().run_line_magic('colablock', 'plan qlora-2026')",
    "told": "%colablock history",
    "back": "undone = colablock.rollback()",
    "gone": "import importlib.metadata\n"
    "print([one.change.number for one in undone], len(colablock.history()))\n"
    "importlib.metadata.version('trl')",
}
REFUSED = """\
schema = 1
name = "nothing-fits"
[packages]
trl = ">=99"
"""


world = world_fixture(source=lambda: RecordedIndex("qlora-2026"), scope="module")


@pytest.fixture(scope="module")
def cells(world: World) -> dict[str, list[dict[str, Any]]]:
    """The outputs of each cell of one notebook."""
    venv = notebook_venv(world.folder / "venv", RUNTIME, stack_of(RUNTIME))
    (world.folder / "nothing-fits.toml").write_text(REFUSED)
    outputs = run_cells(world, venv, world.folder, *CELLS.values())
    return dict(zip(CELLS, outputs, strict=True))


def test_it_starts_with_the_stack_loaded(cells: dict[str, list[dict[str, Any]]]) -> None:
    assert cells["start"] == []


def test_the_plan_is_shown_as_html_and_as_text(cells: dict[str, list[dict[str, Any]]]) -> None:
    result = cells["plan"][-1]
    assert result["output_type"] == "execute_result"
    html = result["data"]["text/html"]
    assert html.startswith('<div class="colablock">')
    for words in (
        "qlora-2026 (cuda) into the kernel",
        "Remove (1)",
        f"Install ({ADDED})",
        "torchao",
        "<b>trl</b> 0.29.1",
    ):
        assert words in html
    text = result["data"]["text/plain"]
    assert f"remove 1, install {ADDED};" in text
    assert "no restart" in text


def test_the_kernel_is_changed_and_proven(cells: dict[str, list[dict[str, Any]]]) -> None:
    html = shown(cells["apply"], "text/html")
    assert "in the kernel is proven" in html, shown(cells["apply"])
    plan, report = html.index("into the kernel"), html.index("in the kernel is proven")
    assert plan < report
    assert "transformers:AutoModelForCausalLM" in html
    assert "Restart the kernel" not in html
    progress = cells["apply"][0]
    assert progress["output_type"] == "display_data"
    assert "Proving" in progress["data"]["text/plain"]
    assert shown(cells["use"]) == "0.29.1 True\n"


def test_a_second_apply_finds_nothing_to_do(cells: dict[str, list[dict[str, Any]]]) -> None:
    assert "nothing was changed" in shown(cells["again"], "text/html")
    assert shown(cells["again"]).endswith("False True\n")


def test_a_cell_runs_as_a_script_in_what_was_applied(cells: dict[str, list[dict[str, Any]]]) -> None:
    assert shown(cells["run"]).startswith("trl 0.29.1 in ")
    assert "ended with exit code 5" in shown(cells["run-named"])


def test_what_stands_in_the_way_is_said_without_a_traceback(cells: dict[str, list[dict[str, Any]]]) -> None:
    assert "did you mean `qlora-2026`?" in shown(cells["typo"])
    refused = shown(cells["refused"])
    assert "error: no candidate fits `trl>=99`" in refused
    assert "Traceback" not in shown(cells["typo"]) + refused


def test_an_interrupt_is_one_line(cells: dict[str, list[dict[str, Any]]]) -> None:
    line = "Interrupted. The environment is as it was."
    assert [one["traceback"] for one in cells["interrupted"] if one["output_type"] == "error"] == [[line]]
    assert shown(cells["interrupted-command"]).strip() == line


def test_the_way_back_is_one_call(cells: dict[str, list[dict[str, Any]]]) -> None:
    assert f"qlora-2026: remove 1, install {ADDED}" in shown(cells["told"])
    said = shown(cells["back"])
    assert "The environment is as it was before change 1 (qlora-2026)." in said
    assert "Restart the kernel before you go on: it has loaded bitsandbytes, trl as they were before" in said
    assert "[1] 0" in shown(cells["gone"])
    assert cells["gone"][-1]["ename"] == "PackageNotFoundError"
