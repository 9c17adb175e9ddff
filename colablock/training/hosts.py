"""Run on several hosts: the commands to start by hand, a job of Slurm, and the tasks of such a job.

Several hosts make one run.  Each starts ``accelerate launch`` with its own machine rank, and they meet at the
address of the first.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from colablock._common.fs import write_private
from colablock.deployment.slurm_job import BatchJob, batch_script
from colablock.deployment.target import is_for_cuda
from colablock.errors import InvalidInput, Refused, Unmet
from colablock.training.runs.folder import RunFolder, RunRecord, State
from colablock.training.runs.launch import TASK, ranks_of
from colablock.training.runs.progress import stop_command

__all__ = [
    "RepeatedCall",
    "Submitted",
    "check_not_begun",
    "check_places",
    "job_arguments",
    "needs_card",
    "per_host",
    "script_of",
    "seen_state",
    "submit",
    "submits_job",
    "write_script",
]

PORT = 29500
_MADE_BY = "# Made by `colablock train --launcher slurm`"
_FIRST_PORT, _PORTS = 20_000, 10_000  # below those that Linux gives to clients
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_OPTION = re.compile(r"[a-z][a-z-]*")
_HOLDS = frozenset({"RUNNING", "SUSPENDED", "STOPPED"})  # states of a job that has its nodes
_NO_JOB = "Invalid job id"  # squeue, of one that ended some minutes ago
_OF_HOSTS = ("num_machines", "machine_rank", "main_process_ip", "rdzv_backend")  # arguments of `_arguments`
# Variables that a job would take over from the one it is sent from.
_OF_JOB = re.compile(r"(?:SLURM|SRUN)_(?!CONF)")
_QUICK = 60.0  # seconds, for a command of Slurm


def per_host(hosts: Sequence[str], port: int | None = PORT) -> list[tuple[str, tuple[str, ...]]]:
    """Return each of *hosts* with the arguments of accelerate there.  Raises InvalidInput.

    None as *port* leaves it to other arguments.
    """
    names = [_host(host.strip()) for host in hosts]
    known = [_comparable(name) for name in names]
    again = next((name for name, one in zip(names, known, strict=True) if known.count(one) > 1), None)
    if len(names) == 1 or again is not None:
        message = f"`--hosts` names `{again}` more than once" if again else "`--hosts` names one host only"
        raise InvalidInput(message, hint="Name two or more, each once: `--hosts a,b`")
    return [(name, _arguments(len(names), str(at), names[0], port)) for at, name in enumerate(names)]


def _host(text: str) -> str:
    """Return the name or the address of a host as accelerate takes it: that of IPv6 without brackets."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not (_HOST.fullmatch(text) or (_address(bare) and "%" not in bare)):
        hint = (
            "Write `--hosts node1,node2`: each host, without a user or a port. All use the port of the first"
        )
        hint += f", which `-- --main_process_port {PORT}` sets"
        raise InvalidInput(f"`{text}` is not the name or the address of a host", hint=hint)
    return bare


def _address(text: str) -> str:
    """Return an address of IPv4 or IPv6 in its usual form; empty for anything else."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _comparable(host: str) -> str:
    """Return what two names of one host have in common, as far as that can be known here."""
    return _address(host) or host.casefold().rstrip(".")


def _arguments(hosts: int, host: str, address: str, port: int | None) -> tuple[str, ...]:
    place: tuple[str, ...] = ("--main_process_ip", address)
    if port is not None:
        place += ("--main_process_port", str(port))
    return ("--num_machines", str(hosts), "--machine_rank", host, *place, "--rdzv_backend", "static")


def _check_launch(launch: Sequence[str], option: str) -> None:
    """Raise InvalidInput for an argument of accelerate in *launch* that follows from *option*."""
    for argument in _OF_HOSTS:
        if _sets(launch, argument):
            message = f"`--{argument}` of accelerate cannot be used with `{option}`, which sets it"
            raise InvalidInput(message, hint="Omit one of them")


def _port(launch: Sequence[str], port: int) -> int | None:
    """Return *port*, or None if *launch* has one."""
    return None if _sets(launch, "main_process_port") else port


def _sets(launch: Sequence[str], argument: str) -> bool:
    """Whether *launch* gives accelerate *argument*, with either of its spellings."""
    return any(word.partition("=")[0].replace("-", "_") == f"__{argument}" for word in launch)


def submits_job(sbatch: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a call for Slurm submits a job: in a job it trains there, unless *sbatch* asks for another one.

    A notebook may run in a job, too.
    """
    return bool(sbatch) or not environ.get("SLURM_JOB_ID")


def job_arguments(
    environ: Mapping[str, str], launch: Sequence[str] = (), *, has_card: bool
) -> tuple[str, ...]:
    """Return the arguments of accelerate in the job of Slurm of *environ*: its own, then those of *launch*.

    Each task is a host, and one task needs no arguments.  They meet on the first node, at a port that follows
    from the number of the job, unless *launch* has one.  If nobody has asked for a number of tasks, there is
    one on each node.  With *has_card*, several tasks on a node are refused: each of them starts a process for
    every card.  Raises InvalidInput, Unmet.
    """
    tasks = environ.get("SLURM_NTASKS") or environ.get("SLURM_JOB_NUM_NODES", "1")
    job = environ["SLURM_JOB_ID"]
    if not (tasks.isdecimal() and job.isdecimal()):
        raise InvalidInput(f"this is not a job of Slurm: SLURM_JOB_ID is {job!r}, SLURM_NTASKS is {tasks!r}")
    _check_launch(launch, "--launcher slurm")
    if int(tasks) <= 1:
        return (*launch,)
    count = environ.get("SLURM_JOB_NUM_NODES", tasks)
    if has_card and count != tasks:
        message = f"the job has {tasks} tasks on {count} nodes, and each would use every card of its node"
        raise InvalidInput(message, hint="Ask for one task on each node: `--sbatch ntasks-per-node=1`")
    nodes = environ.get("SLURM_JOB_NODELIST", "")
    listed = _output(["scontrol", "show", "hostnames", nodes], environ).split()
    if not listed:
        raise Unmet(f"Slurm does not say which nodes the job has: SLURM_JOB_NODELIST is {nodes!r}")
    port = _port(launch, _FIRST_PORT + int(job) % _PORTS)
    return (*_arguments(int(tasks), TASK, listed[0], port), *launch)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedCall:
    """A call of `train` that other hosts or a job of Slurm make again, on the command line.

    *words* are the command and its options with values, *flags* those without, and *launch* are arguments of
    accelerate.  *fresh* counts for the first start of a job.
    """

    words: Sequence[str]
    flags: Sequence[str] = ()
    fresh: bool = False
    launch: Sequence[str] = ()

    def on(self, hosts: Sequence[str]) -> dict[str, list[str]]:
        """Return the command for each of *hosts*.  Raises InvalidInput."""
        _check_launch(self.launch, "--hosts")
        flags = [*self.flags, *(["--fresh"] if self.fresh else [])]
        places = per_host(hosts, _port(self.launch, PORT))
        ranks_of(1, (*places[0][1], *self.launch))  # what a host would refuse
        return {host: [*self.words, *flags, "--", *arguments, *self.launch] for host, arguments in places}

    def submit(
        self,
        folder: Path,
        sbatch: Sequence[str],
        *,
        is_named: bool,
        has_card: bool,
        environ: Mapping[str, str],
    ) -> Submitted:
        """Write the batch script of the run in *folder* with the options *sbatch*, and submit it.

        *is_named* says that the words or a config name the folder: the job must not choose another one than
        that with the stop file.  Raises InvalidInput, Unmet.
        """
        _check_launch(self.launch, "--launcher slurm")
        ranks_of(1, self.launch)  # what the job would refuse
        where = [] if is_named else ["--output-dir", str(folder)]
        launch = ["--", *self.launch] if self.launch else []
        script = write_script(
            folder,
            [sys.executable, "-m", *self.words, *where],
            first=["--fresh"] if self.fresh else (),
            arguments=[*self.flags, "--launcher", "slurm", *launch],
            options=sbatch,
            needs_card=has_card,
            working_folder=Path.cwd(),
        )
        return Submitted(folder=folder, script=script, job=submit(script, environ))


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A job that was submitted: its number, its script, and the folder of the run that begins in it."""

    folder: Path
    script: Path
    job: str


def needs_card(versions: Mapping[str, str]) -> bool:
    """Whether a stack with *versions* is one for CUDA."""
    return any(map(is_for_cuda, versions, versions.values()))


def check_places(hosts: Sequence[str], launcher: str | None, sbatch: Sequence[str]) -> None:
    """Raise InvalidInput for what is no host or launcher, and for options that exclude each other."""
    if launcher not in (None, "slurm"):
        raise InvalidInput(f"`{launcher}` is not a launcher", hint="There is one: `--launcher slurm`")
    if sbatch and launcher is None:
        raise InvalidInput("`--sbatch` is an option of a batch script", hint="Add `--launcher slurm`")
    if hosts and launcher is not None:
        raise InvalidInput("`--hosts` cannot be used with `--launcher slurm`: Slurm chooses the hosts")
    if hosts:
        per_host(hosts)


def seen_state(folder: RunFolder, record: RunRecord, environ: Mapping[str, str]) -> State:
    """Return the state of the run of *record* as far as this host can see it.

    Raises Refused if it is running on another host, as Slurm says of its job, or else its signs of life.
    """
    state, job = folder.state(record), record.job
    if state not in (State.RUNNING, State.KILLED) or (state is State.RUNNING and not record.is_elsewhere):
        return state
    if not job.isdecimal() or _is_of_another_cluster(record, environ):
        is_held = None
    elif job == environ.get("SLURM_JOB_ID"):
        is_held = False if _was_before(record, environ) else None
    else:
        is_held = _is_held(job, environ)
    if is_held:
        message = f"the run `{record.id}` is running on `{record.host}`, in the job {job} of Slurm"
        raise Refused(message, hint=f"`scancel {job}` ends it")
    if state is State.RUNNING and is_held is None:
        ago = max(round(time.time() - folder.last_sign(record)), 0)
        message = f"the run `{record.id}` is running on `{record.host}`: its last sign of life is {ago} s old"
        hint = f"{stop_command(record.id)} ends it; if `{record.host}` is gone, call again in 3 minutes"
        raise Refused(message, hint=hint)
    return State.KILLED


def _is_of_another_cluster(record: RunRecord, environ: Mapping[str, str]) -> bool:
    """Whether the job of *record* is of another cluster, which has the same files, and other job numbers."""
    here = environ.get("SLURM_CLUSTER_NAME")
    if record.cluster and not here and shutil.which("scontrol", path=environ.get("PATH")):
        with suppress(Unmet):
            named = re.search(
                r"(?m)^ClusterName\s*=\s*(\S+)", _output(["scontrol", "show", "config"], environ)
            )
            here = named[1] if named else None
    return bool(record.cluster and here and here != record.cluster)


def _was_before(record: RunRecord, environ: Mapping[str, str]) -> bool:
    """Whether the run of *record*, of this job of Slurm, is of an earlier start of the job.

    A job that is queued again gets a new start time.  Before Slurm 22.05 the job does not know it.
    """
    began = environ.get("SLURM_JOB_START_TIME", "")
    return not began.isdecimal() or record.started < int(began)


def _is_held(job: str, environ: Mapping[str, str]) -> bool | None:
    """Whether another job of Slurm has its nodes; None if no Slurm here says."""
    if shutil.which("squeue", path=environ.get("PATH")) is None:
        return None
    try:
        states = _output(["squeue", "--noheader", "--jobs", job, "--format", "%T"], environ).split()
    except Unmet as error:  # its controller may not answer, and the job goes on
        return False if _NO_JOB in error.message else None
    return not _HOLDS.isdisjoint(states)


def check_not_begun(folder: RunFolder, began: float, environ: Mapping[str, str]) -> None:
    """Raise Refused if a call on another host has started a run in *folder* since this one *began*.

    Many file systems that hosts share do not keep a lock between them.
    """
    record = folder.record()
    if record is not None and record.started > began:
        seen_state(folder, record, environ)


def script_of(folder: Path) -> Path:
    """Return the path of the batch script of the run in *folder*."""
    return folder.with_name(f"{folder.name}.sbatch")


def write_script(
    folder: Path,
    command: Sequence[str],
    *,
    first: Sequence[str] = (),
    arguments: Sequence[str] = (),
    options: Sequence[str] = (),
    needs_card: bool,
    working_folder: Path,
) -> Path:
    """Write the batch script of the run in *folder* beside it, and return its path.

    *command*, *first* and *arguments* are as for `BatchJob`; *options* are those of ``sbatch``, as
    ``time=1:00:00`` or ``exclusive``.  Raises InvalidInput.
    """
    given = dict(map(_option, options))
    script = script_of(folder)
    job = BatchJob(
        # Of this run alone: Slurm runs jobs with one name, one after the other.
        name=f"{folder.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}",
        command=command,
        first=first,
        arguments=arguments,
        run=str(folder),
        log=_log_pattern(folder),
        needs_card=needs_card,
        options={"chdir": str(working_folder), **given},
        header=[_MADE_BY],
    )
    if script.is_file() and _MADE_BY not in script.read_bytes().decode(errors="replace").splitlines()[:2]:
        message = f"`{script}` is not a script of colablock, which would replace it"
        raise InvalidInput(message, hint="Move it away, or set another `--output-dir`")
    write_private(script, batch_script(job).encode())
    return script


def _log_pattern(folder: Path) -> str:
    """Return the file of the output of a job as Slurm names it: `%j` is its number.  Raises InvalidInput.

    Slurm removes backslashes from a path, and leaves `%j` in it then.
    """
    if "\\" in str(folder):
        message = f"Slurm cannot write the log of a job beside `{folder}`: its path has a backslash"
        raise InvalidInput(message, hint="Set another `--output-dir`")
    return f"{str(folder).replace('%', '%%')}-%j.log"


def _option(text: str) -> tuple[str, str]:
    name, _, value = text.removeprefix("--").partition("=")
    if not _OPTION.fullmatch(name) or not value.isprintable():
        raise InvalidInput(f"`{text}` is not an option of sbatch", hint="Write it as `time=1:00:00`")
    return name, value


def submit(script: Path, environ: Mapping[str, str]) -> str:
    """Submit *script* and return the number of its job.  Raises Unmet."""
    if shutil.which("sbatch", path=environ.get("PATH")) is None:
        hint = f"Submit it on a machine that has Slurm: `sbatch {shlex.quote(str(script))}`"
        raise Unmet(f"wrote `{script}`, but there is no `sbatch` here to submit it with", hint=hint)
    outside = {name: value for name, value in environ.items() if not _OF_JOB.match(name)}
    return _output(["sbatch", "--parsable", os.fspath(script)], outside).partition(";")[0].strip()


def _output(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return what a command of Slurm prints.  Raises Unmet."""
    try:
        done = subprocess.run(
            command, env=dict(environ), capture_output=True, text=True, check=False, timeout=_QUICK
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unmet(f"`{command[0]}` of Slurm cannot be run: {error}") from error
    if done.returncode:
        raise Unmet(f"`{shlex.join(command)}` failed: {done.stderr.strip() or done.returncode}")
    return done.stdout
