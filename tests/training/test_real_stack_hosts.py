"""Two hosts that make one run, both on this machine, on the CPU with gloo: `nox -s training` runs this."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from colablock.training.runs.folder import RunFolder, State
from colablock.training.runs.launch import free_port
from tests.support.paths import ROOT
from tests.support.stack import NAME, NEEDS_STACK, TEXT, USUAL, Stack, losses_of

pytestmark = [*NEEDS_STACK, pytest.mark.slow]
SECONDS = 240.0  # in which both end, on a busy machine


def train_on_both(stack: Stack, name: str, *processes: int, **other: Any) -> list[tuple[int, str, RunFolder]]:
    """Train on two hosts; each names its number of *processes*, and the second has *other* settings.

    Returns for each the exit code, what it said, and its folder.
    """
    port, started = str(free_port()), []
    for host, number in enumerate(processes):
        settings = {**USUAL, "max_steps": 2, **(other if host else {})}
        pairs = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
        where = [
            "--model",
            str(stack.model),
            "--dataset",
            str(TEXT),
            "--output-dir",
            str(stack.folder / name),
        ]
        place = ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--rdzv_backend", "static"]
        several = ["--num_machines", "2", "--machine_rank", str(host), "--num_processes", str(number)]
        command = [sys.executable, "-m", "colablock", "train", NAME, *where, *pairs, "--", *several, *place]
        started.append(
            subprocess.Popen(
                command,
                env=stack.environ(),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    folders = [stack.run_folder(name), RunFolder(stack.folder / "host-1" / name)]
    said = [one.communicate(timeout=SECONDS)[0] for one in started]
    return [(one.returncode, text, folder) for one, text, folder in zip(started, said, folders, strict=True)]


def test_two_hosts_make_one_run(stack: Stack) -> None:
    done = train_on_both(stack, "hosts", 2, 2)
    assert [code for code, _, _ in done] == [0, 0], done
    assert list(losses_of(done[0][2])) == [1, 2]


@pytest.mark.parametrize(
    ("processes", "other", "words"),
    [
        ((2, 4), {}, "processes is 4 instead of 2 (hosts with other numbers of cards need the same"),
        ((2, 2), {"seed": 3}, "seed is 3 instead of 42"),
    ],
)
def test_hosts_that_differ_end_with_a_clear_word(
    stack: Stack, processes: tuple[int, int], other: dict[str, Any], words: str
) -> None:
    done = train_on_both(stack, f"odd-{sum(processes)}", *processes, **other)
    assert [code for code, _, _ in done] == [1, 1], done
    for _, _, folder in done:
        assert folder.state() is State.FAILED
        assert words in folder.end()["error"]
