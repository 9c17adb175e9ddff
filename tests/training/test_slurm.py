"""A job of a real Slurm in a real stack: `nox -s slurm` installs neither, and applies the stack.

Slurm keeps time limits in minutes, and a job that is queued again waits two, so this takes ten minutes or
more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from colablock.training.hosts import submit, write_script
from colablock.training.runs.folder import RunFolder, State
from tests.support.slurm import ask, missing, slurm_cluster
from tests.support.stack import NEEDS_STACK, Stack, losses_of
from tests.support.timing import until
from tests.support.training_stack import read_record, steps_of

pytestmark = [
    *NEEDS_STACK,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"not here: {', '.join(missing())}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start slurmd"),
]
SETTINGS: dict[str, Any] = {"save_steps": 1000, "gradient_accumulation_steps": 8, "lora_dropout": 0.1}
TWO = ("--", "--num_processes", "2")
#: Slurm sends the signal up to a minute early: 60 to 120 seconds after the start.
OPTIONS = ("nodes=1", "ntasks-per-node=2", "cpus-per-task=1", "time=0:03:00", "signal=B:USR1@60")
_WORK = 100.0  # seconds of steps, so that the run outlasts the first job
_LONG = 1800.0  # seconds; a job that is queued again waits two minutes


@pytest.fixture(scope="module")
def slurm() -> Iterator[Mapping[str, str]]:
    with slurm_cluster() as environ:
        yield environ


def test_a_job_reaches_its_limit_is_queued_again_and_goes_on(stack: Stack, slurm: Mapping[str, str]) -> None:
    """Two tasks on the CPU; the losses are those of a run that nobody stopped."""
    folder, steps = stack.run_folder("job"), steps_in(_WORK, stack)
    options = [word for option in OPTIONS for word in ("--sbatch", option)]
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in slurm.items():
            patch.setenv(name, value)
        done = stack.train("job", "--launcher", "slurm", "--json", *options, **SETTINGS, max_steps=steps)
    assert done.code == 0, done.err
    job = done.json["job"]
    until(
        lambda: state(slurm, job) in ("COMPLETED", "FAILED", "TIMEOUT"),
        patience=_LONG,
        told=lambda: logs(folder),
    )
    print(f"the job took {time.monotonic() - began:.0f} s")
    assert state(slurm, job) == "COMPLETED", logs(folder)
    assert restarts(slurm, job) > 0
    assert folder.state() is State.DONE
    starts = steps_of(folder, "start")
    print(f"starts after the steps {starts} of {steps}")
    # A busy machine may have no time left when a run is to begin: the job is then queued again without one.
    assert 1 < len(starts) <= restarts(slurm, job) + 1
    assert starts == sorted(set(starts))
    record = read_record(folder)
    assert (record.processes, record.command[0]) == (2, "srun")
    assert record.resumed_from == f"checkpoint-{starts[-1]}"
    whole = stack.run_folder("whole")
    plain = stack.train("whole", *TWO, **SETTINGS, max_steps=steps)
    assert plain.code == 0, plain.err
    ours, expected = losses_of(folder), losses_of(whole)
    assert list(ours) == list(expected) == list(range(1, steps + 1))
    worst = max(abs(ours[step][0] - expected[step][0]) for step in expected)
    print(f"largest difference of a loss: {worst:.2e}")
    assert worst < 1e-6


NAMES = ("a #b", "%u-%%j", "a'b\"c", "$HOME*[a]", "日本 ", "100%")


def test_the_log_of_a_job_is_where_its_script_says(slurm: Mapping[str, str], tmp_path: Path) -> None:
    """Slurm reads quotes in its own way, and replaces `%` with a letter, also in the name of a folder."""
    tmp_path.chmod(0o755)
    jobs = {}
    for name in NAMES:
        (folder := tmp_path / name / "run").mkdir(parents=True)
        command = ["printf", "%s\\n", name]
        options = ("cpus-per-task=1", "time=0:30:00")  # the warning comes five minutes before that
        script = write_script(
            folder, command, options=options, needs_card=False, working_folder=folder.parent
        )
        jobs[name] = submit(script, {**os.environ, **slurm})
    until(lambda: not ask(slurm, "squeue", "--noheader").strip(), patience=300)
    found = {name: tmp_path / name / f"run-{job}.log" for name, job in jobs.items()}
    assert {name: log.read_text() for name, log in found.items()} == {name: f"{name}\n" for name in NAMES}


def steps_in(seconds: float, stack: Stack) -> int:
    """Return how many steps two processes make in that time on this machine, as it is now."""
    done = stack.train("probe", *TWO, **SETTINGS, max_steps=6)
    assert done.code == 0, done.err
    times = [event["time"] for event in stack.run_folder("probe").metrics() if event["event"] == "log"]
    times = times[:6]  # the last event is that of the end
    each = (times[-1] - times[1]) / (len(times) - 2)
    return max(10, round(seconds / float(each)))


def state(slurm: Mapping[str, str], job: str) -> str:
    return fact(slurm, job, "JobState")


def restarts(slurm: Mapping[str, str], job: str) -> int:
    return int(fact(slurm, job, "Restarts"))


def fact(slurm: Mapping[str, str], job: str, name: str) -> str:
    words = ask(slurm, "scontrol", "show", "job", job).split()
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")


def logs(folder: RunFolder) -> str:
    files = [*folder.path.parent.glob("job-*.log"), folder.log]
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in files if path.is_file())
