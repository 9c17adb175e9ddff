"""The batch script of a Slurm job that trains, stops before its time limit, and is queued again.

Slurm sends the script SIGUSR1 before the limit.  The script then writes the stop file of the run, the run
saves a checkpoint and ends, and the job is queued again.  It goes on from that checkpoint.  A run that has
not begun is not started.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from colablock.deployment.target import checked_name
from colablock.errors import InvalidInput

__all__ = ["BatchJob", "batch_script"]

_WARNED = 300  # seconds before the time limit
_RESTARTS = 3  # of a job that ran out of time before its run began
_DEFAULTS = {
    "nodes": "1",
    "ntasks-per-node": "1",
    "cpus-per-task": "8",
    "gpus-per-node": "1",
    "time": "12:00:00",
    "signal": f"B:USR1@{_WARNED}",
    "requeue": "",
    "open-mode": "append",
    "dependency": "singleton",  # a second job of that name waits for the first
}
#: Options that take the place of a default.  Beside it, they are refused, or mean something else: with
#: `gres=gpu:4` and one card for each node, a job gets four cards, and each of its steps one.
_IN_PLACE = {
    "nodes": r"ntasks=.*",
    "ntasks-per-node": r"ntasks-per-(?:core|gpu|socket)=.*",
    "cpus-per-task": r"cpus-per-gpu=.*|tres-per-task=.*\bcpu\b.*",
    "gpus-per-node": r"gpus(?:-per-(?:socket|task))?=.*|(?:gres|tres-per-task)=.*\bgpu\b.*",
    "requeue": r"no-requeue=",
}
_SIGNAL = re.compile(r"(R?B|BR):(?:(?:SIG)?USR1|10)(@[0-9]+)?")  # of sbatch, to the script
_SCRIPT = """\
#!/bin/bash
{header}
{options}
set -euo pipefail

# Before the time limit, Slurm sends SIGUSR1: the run saves a checkpoint after its current step, and stops.
run={run}
out_of_time=no
trap out_of_time=yes USR1
{setup}{first}
code=130  # the job was interrupted before its run began
if [ "$out_of_time" = no ]; then
    {command} &
    training=$!
    while kill -0 "$training" 2>/dev/null; do
        if [ "$out_of_time" = yes ]; then
            # Ask until it ends: a call that has only begun removes the request to an earlier one.
            touch "$run/stop" 2>/dev/null || kill "$training" || true
        fi
        # Not `wait`: if a signal interrupts it while the process ends, bash loses the exit code.
        sleep 1 || true
    done
    code=0
    wait "$training" || code=$?
fi

if [ "$out_of_time" = yes ]; then
    case "$code" in
        0) {requeue} ;;  # the next start goes on from the checkpoint
        130 | 143)  # interrupted before the first step; 143 is 128 + SIGTERM
            if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
                {requeue}
            else
                echo "the job has no time for its run to begin, and is not queued again: raise its limit" >&2
            fi
            ;;
    esac
fi
{last}exit "$code"
"""
_REQUEUE = 'scontrol requeue "$SLURM_JOB_ID"'
_NO_REQUEUE = 'echo "the job is not queued again (--no-requeue): a new one goes on" >&2'
_FIRST = """\

# For the first start only: a run that began after this file was written is the run of this job.
mark=$run.first-$SLURM_JOB_ID
[ -e "$mark" ] || touch "$mark"
first=()
if [ ! "$run/run.json" -nt "$mark" ]; then
    first=({words})
fi
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """A job of Slurm: its *name*, and the *command* that starts the run in the folder *run* and follows it.

    *first* are arguments that are added until a run of this job has begun.  *options* are those
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
    """Return the script of *job*.

    Raises InvalidInput for a name that would end a line of it, and for a signal that would not stop its run.
    """
    named = (*job.command, *job.first, *job.arguments, *chain.from_iterable(job.setup))
    for name in (*named, job.run, job.log, *job.options.values()):
        checked_name(name)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", job.name)
    options = {"job-name": name, **_defaults_beside(job), "output": job.log} | dict(job.options)
    if not _SIGNAL.fullmatch(options["signal"]):
        message = "the option `signal` of sbatch has to send USR1 to the batch script, which stops the run"
        raise InvalidInput(message, hint="Begin its value with `B:USR1`, and add `@` and seconds")
    words = [shlex.join(job.command)]
    if job.first:
        words.append('"${first[@]}"')
    if job.arguments:
        words.append(shlex.join(job.arguments))
    lines = (
        f"#SBATCH --{name}{f'={_option_value(value)}' if value else ''}\n" for name, value in options.items()
    )
    return _SCRIPT.format(
        header="\n".join(job.header).rstrip(),
        options="".join(lines),
        setup="".join(f"\n{shlex.join(line)}\n" for line in job.setup),
        run=shlex.quote(job.run),
        restarts=_RESTARTS,
        requeue=_NO_REQUEUE if "no-requeue" in options else _REQUEUE,
        first=_FIRST.format(words=shlex.join(job.first)) if job.first else "",
        command=" ".join(words),
        last='[ "$out_of_time" = yes ] || rm -f "$mark"\n' if job.first else "",
    )


def _defaults_beside(job: BatchJob) -> dict[str, str]:
    """Return the default options without those that an option of *job* takes the place of."""
    given = [f"{name}={value}" for name, value in job.options.items()]
    return {
        name: value
        for name, value in _DEFAULTS.items()
        if not any(re.fullmatch(_IN_PLACE.get(name, ""), one) for one in given)
        and (job.needs_card or name != "gpus-per-node")
    }


def _option_value(value: str) -> str:
    """Return the value of an option as sbatch reads it: unlike a shell, it has escapes in single quotes."""
    if shlex.quote(value) == value:
        return value
    return "'" + re.sub(r"[\\']", r"\\\g<0>", value) + "'"
