"""The batch script of a Slurm job, run by bash with small commands in place of the training."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from colablock.deployment.slurm_job import BatchJob, batch_script
from colablock.errors import InvalidInput
from tests.support.slurm import IMPATIENT, in_job, write_commands
from tests.support.timing import PATIENCE, until

WARN = "kill -USR1 $PPID"  # what Slurm does before the time limit
STOPS = "until [ -e run/stop ]; do sleep 0.1; done"


def script(
    training: str = "true",
    *,
    setup: str = "true",
    first: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
) -> str:
    """Return the script of a job whose training is the shell command *training*."""
    command = ["/bin/bash", "-c", training, "training"]
    return batch_script(
        BatchJob(
            name="job",
            command=command,
            first=first,
            run="run",
            log="log",
            setup=[["/bin/bash", "-c", setup]],
            options=options or {},
        )
    )


def run(text: str, folder: Path, **more: str) -> tuple[int, str, bool]:
    """Run a script in *folder*: its exit code, what it says, and whether it is queued again."""
    commands = folder / "commands"
    if not commands.exists():
        write_commands(commands)
    (asked := commands / "asked").unlink(missing_ok=True)
    environ = {**in_job(commands, os.environ["PATH"], tasks=1), **more}
    command = ["/bin/bash", "-c", IMPATIENT + text]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stdout + done.stderr, asked.exists()


@pytest.mark.parametrize(
    ("training", "code", "is_queued"),
    [
        ("exit 0", 0, False),
        ("exit 3", 3, False),
        ("kill -USR1 $$; sleep 600", 138, False),  # the training itself ends by the signal
        (f"{WARN}; {STOPS}; exit 0", 0, True),
        (f"{WARN}; {STOPS}; exit 3", 3, False),
        (f"{WARN}; {WARN}; sleep 1; {WARN}; {STOPS}", 0, True),
        (f"{WARN}; sleep 0.5; rm -f run/stop; {STOPS}", 0, True),  # a start removes an old request
        (f"rm -r run; {WARN}; exec sleep 600", 143, True),  # no folder to write the request to
        (f"{WARN}; exit 130", 130, True),  # asked before the run began
    ],
)
def test_a_job_ends_as_its_training(tmp_path: Path, training: str, code: int, is_queued: bool) -> None:
    (tmp_path / "run").mkdir()
    found, said, queued = run(script(training), tmp_path)
    assert (found, queued) == (code, is_queued), said


def test_a_warning_before_the_training_is_no_error(tmp_path: Path) -> None:
    """Nothing is started.  A job that never has the time is not queued again for ever."""
    text = script("touch began", setup=WARN)
    assert run(text, tmp_path)[::2] == (130, True)
    code, said, queued = run(text, tmp_path, SLURM_RESTART_COUNT="3")
    assert (code, queued) == (130, False)
    assert "raise its limit" in said
    assert not (tmp_path / "began").exists()


def test_the_first_arguments_count_until_a_run_has_begun(tmp_path: Path) -> None:
    """A job that is taken from its node before that begins with them again."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()  # of the run that is moved aside
    os.utime(tmp_path / "run" / "run.json", (1, 1))
    killed = script("echo with $1; kill -KILL $PPID", first=["--fresh"])
    began = script("echo with $1; touch run/run.json; kill -KILL $PPID", first=["--fresh"])
    for text, expected in ((killed, "with --fresh"), (killed, "with --fresh"), (began, "with --fresh")):
        code, said, _ = run(text, tmp_path)
        assert (code, said.strip()) == (-signal.SIGKILL, expected)
    code, said, _ = run(script("echo with $1", first=["--fresh"]), tmp_path, SLURM_RESTART_COUNT="2")
    assert (code, said.strip()) == (0, "with")
    until(lambda: not list(tmp_path.glob("run.first-*")))


def options_in(text: str) -> set[str]:
    """Return the options of a script: names, and values if they have any."""
    return {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")}


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ({"gres": "gpu:4"}, {"gpus-per-node=1"}),  # beside it, each step gets one card
        ({"gres": "tmp:10,gpu:a100:2"}, {"gpus-per-node=1"}),
        ({"gres": "lscratch:100"}, set()),
        ({"gpus": "8", "nodes": "2"}, {"gpus-per-node=1", "nodes=1"}),  # the others are refused by sbatch
        ({"gpus-per-task": "4"}, {"gpus-per-node=1"}),
        ({"tres-per-task": "cpu:4,gres/gpu:2"}, {"gpus-per-node=1", "cpus-per-task=8"}),
        ({"cpus-per-gpu": "4"}, {"cpus-per-task=8"}),
        ({"ntasks": "2"}, {"nodes=1"}),
        ({"no-requeue": ""}, {"requeue"}),
        ({"gpus-per-node": "4", "mem": "0"}, {"gpus-per-node=1"}),
    ],
)
def test_an_option_takes_the_place_of_a_default(given: Mapping[str, str], left_out: set[str]) -> None:
    added = {f"{name}={value}" if value else name for name, value in given.items()}
    assert options_in(script(options=given)) == options_in(script()) - left_out | added


def test_a_job_that_must_not_be_queued_again_is_not(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    code, said, is_queued = run(script(f"{WARN}; {STOPS}", options={"no-requeue": ""}), tmp_path)
    assert (code, is_queued) == (0, False)
    assert "the job is not queued again (--no-requeue)" in said


@pytest.mark.parametrize("value", ["B:USR1@900", "B:SIGUSR1", "RB:10@60", "BR:USR1@60"])
def test_a_signal_reaches_the_script(value: str) -> None:
    assert f"signal={value}" in options_in(script(options={"signal": value}))


@pytest.mark.parametrize("value", ["USR1@900", "B:TERM@60", "R:USR1@60", "B:USR2@60", ""])
def test_a_signal_that_does_not_stop_the_run_is_refused(value: str) -> None:
    """Without `B:`, Slurm sends it to the steps of a job only."""
    with pytest.raises(InvalidInput, match="has to send USR1 to the batch script") as caught:
        script(options={"signal": value})
    assert "`B:USR1`" in (caught.value.hint or "")
