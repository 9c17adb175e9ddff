"""Training for real, on the CPU: `nox -s training` applies a stack and runs these in it.

A start of a training process takes half a minute, so tests share runs and each looks at much of one.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from colablock.errors import ExitCode, InvalidInput
from colablock.training.checkpoints import list_checkpoints, newest_whole, verify_checkpoint
from colablock.training.config import DataSource, TrainConfig
from colablock.training.crash import explain
from colablock.training.handoff import Job, prepare_data
from colablock.training.launch import (
    accelerate_config,
    free_port,
    launch_command,
    launch_environment,
    start,
    write_job,
)
from colablock.training.precision import precision_for
from colablock.training.ready import Ready
from colablock.training.receipts import receipt_from, receipt_to
from colablock.training.run_folder import MANIFEST, RunFolder, State
from tests.support.run_folders import Told
from tests.support.stack import (
    NAME,
    TEST_HOME,
    TEXT,
    USUAL,
    Stack,
    kill,
    losses_of,
    make_stack,
    wait_for,
)
from tests.support.world import shown

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(
        not TEST_HOME, reason=f"COLABLOCK_TEST_HOME names no home in which {NAME} was applied"
    ),
]

EXACT = 1e-6


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this session of tests have."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Stack:
    return make_stack(tmp_path_factory.mktemp("stack"), shared=shared)


# The smoke run


@pytest.mark.xdist_group("smoke")
def test_the_stack_trains(stack: Stack, record_property: Callable[[str, object], None]) -> None:
    file = stack.folder / "receipt.json"
    done = stack.run("smoke", NAME, "--receipt", file)
    assert done.code == 0, done.out + done.err
    assert done.out.startswith(f"{NAME} trains: 10 steps of QLoRA with trl on the CPU, fp32, in ")
    assert done.out.count("PASS") == 2
    told = json.loads(file.read_text(encoding="utf-8"))
    receipt = receipt_from(told, source=str(file))
    assert receipt_to(receipt) == {
        **told,
        "losses": receipt.losses,
        "mends": (),
        "notes": (),
        "held": receipt.held,
    }
    assert receipt.passed
    assert receipt.quantized
    assert (receipt.card, receipt.variant, len(receipt.losses)) == ("cpu", "cpu", receipt.steps)
    assert receipt.before - receipt.after > 0.1  # it learns more than what is asked for
    assert receipt.versions["torch"].endswith("+cpu")
    record_property("figures", done.out)


# Resume


@pytest.fixture(scope="module")
def uninterrupted(stack: Stack) -> RunFolder:
    done = stack.train("uninterrupted", lora_dropout=0.1)
    assert done.code == 0, done.err
    return stack.run_folder("uninterrupted")


@pytest.fixture(scope="module")
def killed(stack: Stack) -> RunFolder:
    """A run as SIGKILL left it, after its second checkpoint."""
    done = stack.train("killed", "--no-wait", lora_dropout=0.1)
    assert done.code == 0, done.err
    folder = stack.run_folder("killed")
    wait_for(folder, lambda events: sum(event["event"] == "save" for event in events) > 1)
    kill(folder)
    assert folder.state() is State.KILLED
    assert not folder.adapter.exists()
    return folder


@pytest.fixture(scope="module")
def damaged(killed: RunFolder) -> RunFolder:
    """A copy of that run in which a file of the newest whole checkpoint holds nothing but zeros."""
    copy = RunFolder(killed.path.with_name("damaged"))
    shutil.copytree(killed.path, copy.path)
    newest = newest_whole(copy.path, Told())
    assert newest is not None
    file = newest / "optimizer.pt"
    file.write_bytes(bytes(file.stat().st_size))
    return copy


@pytest.mark.xdist_group("resume")
def test_a_run_tells_its_steps_and_seals_its_checkpoints(uninterrupted: RunFolder) -> None:
    assert uninterrupted.state() is State.DONE
    assert list(losses_of(uninterrupted)) == list(range(1, 9))
    assert [path.name for path in list_checkpoints(uninterrupted.path)] == ["checkpoint-8", "checkpoint-6"]
    assert all(verify_checkpoint(path) == () for path in list_checkpoints(uninterrupted.path))
    assert (uninterrupted.adapter / "adapter_model.safetensors").exists()
    record = uninterrupted.record()
    assert record is not None
    assert (record.runner, record.processes, record.total_steps) == ("trl", 1, 8)


@pytest.mark.xdist_group("resume")
def test_a_checkpoint_with_any_file_damaged_is_passed_over(killed: RunFolder, tmp_path: Path) -> None:
    newest = newest_whole(killed.path, Told())
    assert newest is not None
    before = next(path for path in list_checkpoints(killed.path) if path.name < newest.name)
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", MANIFEST} <= set(
        map(str, files)
    )
    for number, file in enumerate(files):
        for how in ("deleted", "truncated", "zeroed"):
            run = tmp_path / f"{number}-{how}"
            for checkpoint in (newest, before):
                shutil.copytree(checkpoint, run / checkpoint.name)
            damage(run / newest.name / file, how)
            told = Told()
            taken = newest_whole(run, told)
            assert taken == run / before.name, f"{file} {how}"
            assert [note.partition(":")[0] for note in told.notes] == [f"{newest.name} is damaged"]
            assert told.notes[0].endswith(f"; {before.name} is taken")


def damage(file: Path, how: str) -> None:
    size = file.stat().st_size
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        os.truncate(file, size // 2)
    else:
        file.write_bytes(bytes(size))


@pytest.mark.xdist_group("resume")
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(
    stack: Stack, uninterrupted: RunFolder, damaged: RunFolder, killed: RunFolder
) -> None:
    del damaged  # copied before it goes on
    newest = newest_whole(killed.path, Told())
    assert newest is not None
    goes_on_from(stack, killed, newest.name, as_in=uninterrupted)


@pytest.mark.xdist_group("resume")
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    stack: Stack, uninterrupted: RunFolder, damaged: RunFolder
) -> None:
    (newest, *_), whole = list_checkpoints(damaged.path), newest_whole(damaged.path, Told())
    assert whole is not None
    said = goes_on_from(stack, damaged, whole.name, as_in=uninterrupted)
    assert "`optimizer.pt` has other content than when it was saved" in said
    assert newest.name != whole.name


def goes_on_from(stack: Stack, folder: RunFolder, checkpoint: str, *, as_in: RunFolder) -> str:
    """Assert that the same call ends the run as the other one ended; return what was said."""
    done = stack.train(folder.path.name, lora_dropout=0.1)
    assert done.code == 0, done.err
    assert f"going on from {checkpoint}" in done.err
    record = folder.record()
    assert record is not None
    assert record.resumed_from == checkpoint
    assert folder.state() is State.DONE
    starts = [event["step"] for event in folder.metrics() if event["event"] == "start"]
    assert starts == [0, int(checkpoint.partition("-")[2])]
    expected = losses_of(as_in)
    for step, (loss, norm) in losses_of(folder).items():
        assert loss == pytest.approx(expected[step][0], abs=EXACT), step
        assert norm == pytest.approx(expected[step][1], abs=EXACT), step
    assert len(losses_of(folder)) == len(expected)
    return done.err


# A notebook

IN_A_NOTEBOOK: dict[str, Any] = {"lr_scheduler": "constant", "warmup_ratio": 0.0, "save_steps": 1000}
CELLS = (
    "import os\nimport colablock\nprint(os.environ['MPLBACKEND'])",
    "run = colablock.train({name!r}, **{asked!r})\nrun.state",
    "run = colablock.train({name!r}, **{asked!r})",  # the kernel is restarted while it runs
    "import colablock\nrun = colablock.attach()\nprint(run.state, len(run.metrics) > 0)",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notebook:
    """What happened in one: the outputs of each cell, and all that was sent meanwhile."""

    run: RunFolder
    outputs: list[list[dict[str, Any]]]
    sent: list[list[str]]  # HTML, by cell, in the order in which it came
    variables: frozenset[str]  # of the process that trains
    outlived: bool  # whether the run went on after the kernel had been restarted


@pytest.fixture(scope="module")
def notebook(stack: Stack) -> Notebook:
    return asyncio.run(in_a_notebook(stack))


async def in_a_notebook(stack: Stack) -> Notebook:
    """Train in a cell, interrupt it, call it again, restart the kernel meanwhile, and follow the run."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat").v4
    folder = stack.run_folder("notebook")
    asked = {
        **USUAL,
        **IN_A_NOTEBOOK,
        "model": str(stack.model),
        "dataset": str(TEXT),
        "output_dir": str(folder.path),
        "max_steps": 40,
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
    async with client.async_setup_kernel(env=stack.environ(), cwd=str(stack.folder)):
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
        await asyncio.to_thread(wait_for, folder, lambda events: events[-1]["event"] == "step")
        task.cancel()
        await client.km.restart_kernel(now=True)
        await client.kc.wait_for_ready()
        outlived = folder.is_alive()
        await client.async_execute_cell(cells[3], 3)
    outputs = [[dict(output) for output in cell.outputs] for cell in cells]
    return Notebook(run=folder, outputs=outputs, sent=sent, variables=variables, outlived=outlived)


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


@pytest.mark.xdist_group("notebook")
def test_nothing_of_the_kernel_reaches_a_run(notebook: Notebook) -> None:
    assert "matplotlib_inline" in shown(notebook.outputs[0])
    names = {variable.partition("=")[0] for variable in notebook.variables}
    assert names.isdisjoint({"MPLBACKEND", "PYTHONPATH", "PYTHONHOME"})
    assert not [name for name in names if name.startswith(("PIP_", "UV_"))]
    assert {"HF_HUB_DISABLE_TELEMETRY=1", "DO_NOT_TRACK=1", "WANDB_MODE=disabled"} <= notebook.variables


@pytest.mark.xdist_group("notebook")
def test_an_interrupt_of_the_cell_ends_in_a_checkpoint(notebook: Notebook) -> None:
    briefing, *progress = notebook.sent[1]
    assert "One row as it is trained on" in briefing
    assert "<mark>" in briefing
    assert any("<progress" in html for html in progress)
    assert any("stopping at a checkpoint" in html for html in progress)
    assert "STOPPED" in progress[-1]
    assert shown(notebook.outputs[1]).endswith("'stopped'")
    events = notebook.run.metrics()
    stopped = next(event for event in events if event["event"] == "end")
    assert stopped["state"] == "stopped"
    assert [event["step"] for event in events if event["event"] == "start"] == [0, stopped["step"]]
    assert f"going on from checkpoint-{stopped['step']}" in notebook.sent[2][0]


@pytest.mark.xdist_group("notebook")
def test_a_run_outlives_its_kernel_and_is_followed_again(notebook: Notebook) -> None:
    assert notebook.outlived
    assert any("<progress" in html for html in notebook.sent[3])
    last = notebook.sent[3][-1]
    assert "DONE" in last
    assert "<svg" in last or "data:image/png;base64," in last
    assert shown(notebook.outputs[3]).endswith("done True\n")
    assert list(losses_of(notebook.run)) == list(range(1, 41))


# Several processes


@pytest.mark.xdist_group("notebook")
def test_two_processes_learn_what_one_does_from_twice_the_batch(stack: Stack, notebook: Notebook) -> None:
    done = stack.train("two", "--", "--num_processes", "2", micro_batch_size=2, **IN_A_NOTEBOOK)
    assert done.code == 0, done.err
    folder = stack.run_folder("two")
    record = folder.record()
    assert record is not None
    assert record.processes == 2
    (start,) = [event for event in folder.metrics() if event["event"] == "start"]
    assert start["world_size"] == 2
    assert verify_checkpoint(folder.path / "checkpoint-8") == ()
    alone = losses_of(notebook.run)
    for step, (loss, norm) in losses_of(folder).items():
        assert loss == pytest.approx(alone[step][0], abs=1e-3), step
        assert norm == pytest.approx(alone[step][1], rel=0.02), step


@pytest.mark.xdist_group("resume")
def test_a_rank_with_another_lock_is_refused(stack: Stack, uninterrupted: RunFolder) -> None:
    port = str(free_port())
    hosts = [share(stack, uninterrupted, f"host-{rank}", rank=rank, port=port) for rank in range(2)]
    for folder in hosts:
        while folder.is_alive():
            time.sleep(0.1)
        assert folder.state() is State.FAILED
        assert "rank 1 has another stack than rank 0: its lock is other-1, not" in folder.end()["error"]
        assert not folder.metrics()


def share(stack: Stack, of: RunFolder, name: str, *, rank: int, port: str) -> RunFolder:
    """Start one host's share of a run as it was prepared once, the second with another lock."""
    folder = stack.run_folder(name)
    folder.path.mkdir()
    job = json.loads(of.job_file.read_text().replace(str(of.path), str(folder.path)))
    if rank:
        job["lock"] = f"other-{rank}"
    write_job(folder, job, accelerate_config(precision="fp32", processes=2, has_card=False))
    arguments = ["--num_machines", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"]
    command = launch_command(
        stack.python,
        folder,
        precision="fp32",
        processes=1,
        has_card=False,
        threads=1,
        extra=[*arguments, "--main_process_port", port],
    )
    environment = launch_environment(stack.python, stack.environ(), reports=False, has_card=False)
    started = start(command, folder, environment)
    record = of.record()
    assert record is not None
    folder.write_record(
        replace(record, process=started.process, process_started=started.process_started, id=name)
    )
    return folder


# Data

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROWS: Mapping[str, list[dict[str, Any]]] = {
    "completion": [{"prompt": "Who begins? ", "completion": "A notebook begins."}],
    "messages": [
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "What is a plan?"},
                {"role": "assistant", "content": "A list of steps."},
                {"role": "user", "content": "And a step?"},
                {"role": "assistant", "content": "It has a reason."},
            ]
        }
    ],
    "alpaca": [{"instruction": "Say it.", "input": "", "output": "It is said."}],
    "text": [{"text": "The night ends."}],
}
GIVEN_IN_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nSay it.\n\n### Response:\n"
)
LEARNT: list[list[tuple[str, bool]]] = [  # by row: each piece, and whether it is learnt
    [("Who begins? ", False), ("A notebook begins.</s>", True)],
    [
        ("<|system|>Be short.</s>\n<|user|>What is a plan?</s>\n<|assistant|>", False),
        ("A list of steps.</s>\n", True),
        ("<|user|>And a step?</s>\n<|assistant|>", False),
        ("It has a reason.</s>\n", True),
    ],
    [(GIVEN_IN_ALPACA, False), ("It is said.</s>", True)],
    [("The night ends.</s>", True)],
]
# The tokenizer's own words, by the library alone.
DECODE = """
import json, sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
told = [tokenizer.decode(ids, skip_special_tokens=False) for ids in json.load(sys.stdin)]
json.dump(told, sys.stdout)
"""


def prepare(stack: Stack, out: str, model: Path, **rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the rows come to as tokens, with all of them in ``evaluate``."""
    sources = []
    for name, these in rows.items():
        path = stack.folder / f"{out}-{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in these), encoding="utf-8")
        sources.append(DataSource(path=str(path)))
    job = Job(
        ready=Ready(matrix=NAME, python=stack.python, lock="", runner="trl"),
        config=TrainConfig(base_model=str(model), datasets=tuple(sources), sequence_len=256),
        runner="trl",
        precision=precision_for([]),
        evaluate=99,
        offline=True,
    )
    return prepare_data(job, stack.run_folder(out), stack.environ(), Told(), reuse=False)


@pytest.mark.xdist_group("data")
def test_what_is_learnt_is_marked_token_by_token(stack: Stack) -> None:
    model = stack.folder / "chat-model"
    shutil.copytree(stack.model, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    told = prepare(stack, "forms", model, **ROWS)
    assert told["forms"] == list(ROWS)
    pieces = [list(pieces_of(row)) for row in told["evaluate"]]
    command = [stack.python, "-c", DECODE, str(model / "tokenizer.json")]
    ids = json.dumps([one for row in pieces for one, _ in row])
    done = subprocess.run(command, input=ids, capture_output=True, text=True, check=True)
    decoded = iter(json.loads(done.stdout))
    assert [[(next(decoded), is_learnt) for _, is_learnt in row] for row in pieces] == LEARNT
    assert [tuple(piece) for piece in told["sample"]] == LEARNT[0]
    assert told["trained"] == sum(len(one) for row in pieces for one, is_learnt in row if is_learnt)


def pieces_of(row: Mapping[str, list[int]]) -> Iterator[tuple[list[int], bool]]:
    """Yield the tokens of a row in pieces that are learnt as a whole, or not at all."""
    pairs = list(zip(row["input_ids"], row["labels"], strict=True))
    assert all(label in (token, -100) for token, label in pairs)
    for is_learnt, piece in groupby(pairs, key=lambda pair: pair[1] != -100):
        yield [token for token, _ in piece], is_learnt


@pytest.mark.xdist_group("data")
def test_a_chat_without_a_template_is_refused_with_the_way_out(stack: Stack) -> None:
    with pytest.raises(InvalidInput) as caught:
        prepare(stack, "chat", stack.model, messages=ROWS["messages"])
    assert "the model's tokenizer has no chat template" in caught.value.message
    assert "`chat_template: chatml`" in caught.value.message


# A crash


@pytest.mark.xdist_group("data")
def test_a_crash_is_explained(stack: Stack) -> None:
    model = stack.folder / "broken-model"
    shutil.copytree(stack.model, model)
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)  # as a download that was broken off
    done = stack.train("broken", model=model)
    assert done.code == ExitCode.UNMET, done.err
    assert "a file of weights is not whole" in done.out + done.err
    told = explain(stack.run_folder("broken"))
    assert told is not None
    assert (told.cause, told.step, told.checkpoint) == ("weights-damaged", 0, None)
    assert "SafetensorError" in told.line
    assert told.advice
