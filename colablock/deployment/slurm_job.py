"""The batch script of a Slurm job that trains, stops before its time limit, and is queued again.

Slurm sends the script SIGUSR1 before the limit.  The script then writes the stop file of the run, the run
saves a checkpoint and ends, and the job is queued again.  It goes on from that checkpoint.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["BatchJob", "batch_script"]

_WARNED = 300  # seconds before the time limit
_DEFAULTS = {
    "nodes": "1",
    "ntasks-per-node": "1",
    "cpus-per-task": "8",
    "gpus-per-node": "1",
    "time": "12:00:00",
    "signal": f"B:USR1@{_WARNED}",
    "requeue": "",
    "open-mode": "append",
}
_SCRIPT = """\
#!/bin/bash
{header}
{options}
set -euo pipefail
{setup}
# Before the time limit, Slurm sends SIGUSR1: the run saves a checkpoint after its current step, and stops.
run={run}
out_of_time=no
trap 'out_of_time=yes; touch "$run/stop" || kill "$training"' USR1
{first}
{command} &
training=$!
code=138  # 128 + SIGUSR1: the signal has interrupted `wait`
while [ "$code" -eq 138 ]; do
    code=0
    wait "$training" || code=$?
done

if [ "$out_of_time" = yes ] && [ "$code" -eq 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"  # the next start goes on from the checkpoint
fi
exit "$code"
"""
_FIRST = """\
first=()
if [ "${{SLURM_RESTART_COUNT:-0}}" -eq 0 ]; then
    first=({words})
fi
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """A job of Slurm: its *name*, and the *command* that starts the run in the folder *run* and follows it.

    *first* are arguments that are added when the job is not one that was queued again.  *options* are those
    of ``sbatch`` without the dashes, and replace the defaults; an empty value is a flag.  *setup* are
    commands that run before.  *header* are comments.
    """

    name: str
    command: Sequence[str]
    run: str
    log: str
    first: Sequence[str] = ()
    arguments: Sequence[str] = ()  # after *first*
    needs_card: bool = True
    options: Mapping[str, str] = field(default_factory=dict)
    setup: Sequence[Sequence[str]] = ()
    header: Sequence[str] = ()


def batch_script(job: BatchJob) -> str:
    """Return the script of *job*."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", job.name)
    options = {"job-name": name, **_DEFAULTS, "output": job.log}
    if not job.needs_card:
        del options["gpus-per-node"]
    options |= job.options
    words = [shlex.join(job.command)]
    if job.first:
        words.append('"${first[@]}"')
    if job.arguments:
        words.append(shlex.join(job.arguments))
    lines = (
        f"#SBATCH --{name}{f'={shlex.quote(value)}' if value else ''}\n" for name, value in options.items()
    )
    return _SCRIPT.format(
        header="\n".join(job.header).rstrip(),
        options="".join(lines),
        setup="".join(f"\n{shlex.join(line)}\n" for line in job.setup),
        run=shlex.quote(job.run),
        first=_FIRST.format(words=shlex.join(job.first)) if job.first else "",
        command=" ".join(words),
    )
