"""Runs that are started in a notebook, in a real stack: `nox -s training` applies one and runs this."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colablock.training.runs.folder import RunFolder, State
from tests.support.stack import NAME, NEEDS_STACK, TEXT, USUAL, Stack, losses_of, wait_for
from tests.support.world import shown

pytestmark = NEEDS_STACK


# A notebook

STEPS = 60
IN_A_NOTEBOOK: dict[str, Any] = {"lr_scheduler": "constant", "warmup_ratio": 0.0, "save_steps": 1000}
STEERING = {"PIP_CONSTRAINT": "/none.txt", "UV_SYSTEM_PYTHON": "1"}
CELLS = (
    "import os\nimport colablock\nprint(os.environ['MPLBACKEND'])",
    "run = colablock.train({name!r}, **{asked!r})\nrun.state",
    "run = colablock.train({name!r}, **{asked!r})",  # the kernel is restarted while it runs
    "import colablock\nrun = colablock.attach()\nprint(run.state, len(run.metrics) > 0)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notebook:
    """An executed notebook: the outputs of each cell, and all messages in between."""

    run: RunFolder
    outputs: list[list[dict[str, Any]]]
    sent: list[list[str]]  # HTML, by cell, in the order in which it came
    variables: frozenset[str]  # of the process that trains
    outlived: bool  # whether the run went on after the kernel had been restarted


@pytest.fixture(scope="module")
def notebook(stack: Stack) -> Notebook:
    return asyncio.run(in_a_notebook(stack))


async def in_a_notebook(stack: Stack) -> Notebook:
    """Train in a cell, interrupt it, call it again, restart the kernel, and follow the run."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat").v4
    folder = stack.run_folder("notebook")
    asked = {
        **USUAL,
        **IN_A_NOTEBOOK,
        "model": str(stack.model),
        "dataset": str(TEXT),
        "output_dir": str(folder.path),
        "max_steps": STEPS,
    }
    cells = [nbformat.new_code_cell(cell.format(name=NAME, asked=asked)) for cell in CELLS]
    client = nbclient.NotebookClient(
        nbformat.new_notebook(cells=cells), km=kernel_manager(stack), timeout=300, allow_errors=True
    )
    sent: list[list[str]] = [[] for _ in cells]
    process = client.process_message

    def noted(message: dict[str, Any], cell: Any, index: int) -> Any:
        html = message["content"].get("data", {}).get("text/html")
        if html:
            sent[index].append(html)
        return process(message, cell, index)

    client.process_message = noted
    async with client.async_setup_kernel(env=stack.environ(**STEERING), cwd=str(stack.folder)):
        await client.async_execute_cell(cells[0], 0)
        task = asyncio.create_task(client.async_execute_cell(cells[1], 1))
        await asyncio.to_thread(wait_for, folder, lambda events: events and events[-1]["step"] > 0)
        record = folder.record()
        assert record is not None
        variables = variables_of(record.process)
        await client.km.interrupt_kernel()
        await task
        assert folder.state() is State.STOPPED
        task = asyncio.create_task(client.async_execute_cell(cells[2], 2))
        await asyncio.to_thread(wait_for, folder, lambda _: goes_on(folder))  # it loads the model yet
        task.cancel()
        await client.km.restart_kernel()  # as a notebook server does: interrupted, asked to end, killed
        await client.kc.wait_for_ready()
        outlived = folder.is_alive()
        await client.async_execute_cell(cells[3], 3)
    outputs = [[dict(output) for output in cell.outputs] for cell in cells]
    return Notebook(run=folder, outputs=outputs, sent=sent, variables=variables, outlived=outlived)


def goes_on(folder: RunFolder) -> bool:
    record = folder.record()
    return record is not None and record.resumed_from is not None and folder.is_alive()


def variables_of(process: int) -> frozenset[str]:
    return frozenset(Path(f"/proc/{process}/environ").read_text().split("\0"))


def kernel_manager(stack: Stack) -> Any:
    jupyter_client = pytest.importorskip("jupyter_client")
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "tests",
        "language": "python",
    }
    kernels = stack.folder / "kernels"
    (kernels / "tests").mkdir(parents=True)
    (kernels / "tests" / "kernel.json").write_text(json.dumps(spec))
    specs = jupyter_client.kernelspec.KernelSpecManager(kernel_dirs=[str(kernels)])
    return jupyter_client.AsyncKernelManager(kernel_name="tests", kernel_spec_manager=specs)


@pytest.mark.slow
def test_variables_of_the_kernel_do_not_reach_a_run(notebook: Notebook) -> None:
    assert "matplotlib_inline" in shown(notebook.outputs[0])
    names = {variable.partition("=")[0] for variable in notebook.variables}
    assert names.isdisjoint({"MPLBACKEND", "PYTHONPATH", "PYTHONHOME"})
    assert names.isdisjoint(STEERING)
    assert {"HF_HUB_DISABLE_TELEMETRY=1", "DO_NOT_TRACK=1", "WANDB_MODE=disabled"} <= notebook.variables


@pytest.mark.slow
def test_an_interrupted_cell_saves_a_checkpoint(notebook: Notebook) -> None:
    briefing, *progress = after(notebook.sent[1], "One training row")
    assert "<mark" in briefing
    assert any("<progress" in html for html in progress)
    assert any("stopping at a checkpoint" in html for html in progress)
    assert "STOPPED" in progress[-1]
    assert shown(notebook.outputs[1]).endswith("'stopped'")
    events = notebook.run.metrics()
    stopped = next(event for event in events if event["event"] == "end")
    assert stopped["state"] == "stopped"
    assert [event["step"] for event in events if event["event"] == "start"] == [0, stopped["step"]]
    assert f"resuming from checkpoint-{stopped['step']}" in after(notebook.sent[2], "One training row")[0]


def after(sent: list[str], words: str) -> list[str]:
    """Return the messages from the first display with *words* on."""
    return sent[next(at for at, html in enumerate(sent) if words in html) :]


@pytest.mark.slow
def test_a_run_outlives_its_kernel_and_can_be_attached(notebook: Notebook) -> None:
    assert notebook.outlived
    assert any("<progress" in html for html in notebook.sent[3])
    last = notebook.sent[3][-1]
    assert "DONE" in last
    assert "<svg" in last or "data:image/png;base64," in last
    assert shown(notebook.outputs[3]).endswith("done True\n")
    assert list(losses_of(notebook.run)) == list(range(1, STEPS + 1))
