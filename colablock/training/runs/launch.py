"""Launch a run: the command, the environment variables, and a process that outlives this one.

The command is always ``accelerate launch`` with every argument given.  The launcher can start before its
arguments are known, to import the stack meanwhile.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from colablock._common.child_environment import Purpose, environment_of, opt_outs
from colablock._common.fs import open_private, write_private
from colablock._common.process import detach, kill_session, start_session
from colablock.errors import InvalidInput, Unmet
from colablock.training.runs.folder import RunFolder
from colablock.training.runs.progress import START_MARK
from colablock.training.scripts import FOLDER as SCRIPTS
from colablock.training.scripts.ranks import start_time_of
from colablock.verification.launch import CONFIG, Ranks, Sharding, accelerate_values, launch_arguments

__all__ = [
    "TASK",
    "EarlyLauncher",
    "StartedProcess",
    "launch_command",
    "launch_environment",
    "ranks_of",
    "start_early",
    "start_process",
    "with_meeting_point",
]

#: The machine rank of a run that Slurm starts on several hosts: each task fills its own in.
TASK = "$SLURM_PROCID"
_LAUNCHER = SCRIPTS / "launcher.py"
_SHIM = SCRIPTS / "shim.py"
_PIPE_CAPACITY = 1 << 16  # bytes, what Linux gives a new pipe


@dataclass(frozen=True, slots=True)
class StartedProcess:
    """The launcher of a run: its process id, and its start in clock ticks since boot."""

    process: int
    process_started: int
    command: tuple[str, ...]


def ranks_of(processes: int, extra: Sequence[str] = ()) -> Ranks:
    """Return the ranks if each host starts *processes*, unless *extra*, for accelerate, says otherwise.

    accelerate's `--num_processes` is the total over all hosts.  Raises InvalidInput.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, kind in _OF_RANKS.items():
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=kind)
    for word in extra:
        _check_argument(word)
    if extra and not extra[0].startswith("-"):  # accelerate would run it in place of the training
        raise InvalidInput(f"`{extra[0]}` is not an argument of accelerate", hint="They begin with `--`")
    try:
        given, _ = parser.parse_known_args(list(extra))
    except argparse.ArgumentError as error:
        raise InvalidInput(f"invalid arguments for accelerate: {error}") from error
    if given.rdzv_backend not in (None, "static"):  # others choose the first host, which has the checkpoints
        message = f"`--rdzv_backend {given.rdzv_backend}` cannot be used: calls number their hosts"
        raise InvalidInput(message, hint="Omit it")
    hosts = 1 if given.num_machines is None else given.num_machines
    _check_numbers(given, hosts)
    if given.num_processes and given.num_processes % hosts:
        message = f"`--num_processes {given.num_processes}` cannot be shared evenly by {hosts} hosts"
        raise InvalidInput(message, hint=f"Name a multiple of {hosts}: it is the number on all hosts")
    return Ranks(
        total=given.num_processes or processes * hosts,
        given=given.num_processes,
        hosts=hosts,
        host=given.machine_rank or 0,
        address=given.main_process_ip,
        port=given.main_process_port,
        threads_each=given.num_cpu_threads_per_process,
        shares_folder=TASK in extra,
    )


def _check_numbers(given: argparse.Namespace, hosts: int) -> None:
    """Raise InvalidInput for numbers that no run has, and for hosts that would not meet."""
    bounds = {
        "num_machines": (1, _MANY),
        "num_processes": (1, _MANY),
        "num_cpu_threads_per_process": (1, _MANY),
        "machine_rank": (0, hosts - 1),
        "main_process_port": (1 if hosts > 1 else 0, _LAST_PORT),  # 0: any, which no other host would know
    }
    for name, (least, most) in bounds.items():
        value = getattr(given, name)
        if value is not None and not least <= value <= most:
            which = f"{least} or more" if most == _MANY else f"from {least} to {most}"
            raise InvalidInput(f"`--{name} {value}` of accelerate cannot be used: it is {which}")
    if hosts > 1 and not given.main_process_ip:
        message = "several hosts need `--main_process_ip`, the address of the first, where they meet"
        raise InvalidInput(message, hint="`--hosts a,b` prints the command for each host")


_MANY = 1 << 20
_LAST_PORT = 65_535
#: Arguments of accelerate that follow from config and cards, by their beginning, and how to set these.
_DECIDED = {
    "use_fsdp": "`--shard fsdp` shares one model",
    "fsdp_": "keys of `fsdp_config` say how a model is shared",
    "use_deepspeed": "axolotl has the key `deepspeed`",
    "deepspeed_": "axolotl has the key `deepspeed`",
    "zero_stage": "axolotl has the key `deepspeed`",
    "zero3_": "axolotl has the key `deepspeed`",
    "offload_": "the parts of a model stay on the cards",
    "mixed_precision": "the precision follows from the cards",
    "config_file": "colablock gives accelerate each of its arguments",
    "gpu_ids": "`CUDA_VISIBLE_DEVICES` chooses the cards",
    "cpu": "`CUDA_VISIBLE_DEVICES=` leaves no card",
    "use_cpu": "`CUDA_VISIBLE_DEVICES=` leaves no card",
    "tpu": "colablock trains on cards and CPUs",
    "use_megatron_lm": "colablock has no Megatron-LM",
    "use_parallelism_config": "`--shard fsdp` shares one model",
    "parallelism_config_": "`--shard fsdp` shares one model",
    "gradient_": "the config has the keys `gradient_accumulation_steps` and `max_grad_norm`",
    "max_restarts": "the same call goes on from the newest checkpoint",
    **dict.fromkeys(("module", "m", "no_python", "help", "h"), "accelerate starts the training of colablock"),
    "mpirun_hostfile": "`--hosts` and `--launcher slurm` start several hosts",
}
_EXACT = frozenset({"cpu", "tpu", "m", "h"})  # beginnings of other arguments


def _check_argument(word: str) -> None:
    """Raise InvalidInput for an argument that a run would leave out, or that preflight does not know of."""
    if not word.startswith("-"):
        return
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    for beginning, hint in _DECIDED.items():
        if name == beginning or (beginning not in _EXACT and name.startswith(beginning)):
            shown = f"{'--' if word.startswith('--') else '-'}{name}"
            raise InvalidInput(f"`{shown}` of accelerate cannot be used: colablock sets it", hint=hint)


def _host(text: str) -> int:
    return 0 if text == TASK else int(text)


_OF_RANKS: Mapping[str, Callable[[str], Any]] = {
    "num_machines": int,
    "num_processes": int,
    "machine_rank": _host,
    "main_process_ip": str,
    "main_process_port": int,
    "num_cpu_threads_per_process": int,
    "rdzv_backend": str,
}


def with_meeting_point(ranks: Ranks) -> Ranks:
    """Return *ranks* with an address and a free port, if they are several of this host alone."""
    if ranks.hosts > 1 or ranks.total == 1 or ranks.address is not None:
        return ranks
    return replace(ranks, address="127.0.0.1", port=ranks.port or free_port())


def launch_command(
    python: str,
    folder: RunFolder,
    *,
    precision: str,
    ranks: Ranks,
    has_card: bool,
    threads: int,
    extra: Sequence[str] = (),
    sharding: Sharding | None = None,
) -> list[str]:
    """Return the command that starts the shim in every rank of this host.

    *extra* are further arguments for accelerate.  They come last and so override the others.  With the
    machine rank `TASK`, Slurm starts the launcher in each task of the job.
    """
    arguments = launch_arguments(
        folder.path / CONFIG,
        precision=precision,
        ranks=ranks,
        threads=threads,
        has_card=has_card,
        sharding=sharding,
    )
    srun = _srun(ranks.hosts) if TASK in extra else ()
    return [*srun, python, str(_LAUNCHER), *arguments, *extra, str(_SHIM), str(folder.path)]


def _srun(tasks: int) -> tuple[str, ...]:
    """Return the command of Slurm that starts a command in each task; if one fails, all are ended.

    The tasks get the variables of the job also where it got none of its submission (`sbatch --export=NONE`).
    """
    usual = ("--kill-on-bad-exit=1", "--mpi=none", "--input=none", "--export=ALL")
    return ("srun", "--ntasks", str(tasks), *usual)


def accelerate_config(
    *, precision: str, ranks: Ranks, has_card: bool, sharding: Sharding | None = None
) -> str:
    """Return the config file that replaces the user's default config."""
    values = accelerate_values(precision=precision, ranks=ranks, has_card=has_card, sharding=sharding)
    return yaml.safe_dump(values, sort_keys=True)


def launch_environment(
    python: str,
    environ: Mapping[str, str],
    *,
    reports: bool,
    has_card: bool = True,
    cards: Sequence[int] | None = None,
    threads: int | None = None,
    secrets: Mapping[str, str] | None = None,
    offline: bool = False,
    bytecode: Path | None = None,
    runner: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment variables of a training process.

    They are the variables of this process without secrets, opt-outs of telemetry, and *secrets*,
    which are passed in no other way.  *cards* are those that the process may see; None leaves
    CUDA_VISIBLE_DEVICES as it is.  *threads* is the number for each rank, which the launcher sets as
    well.  Without *reports*, wandb is disabled even if it is installed.  The process writes bytecode
    into the folder *bytecode* only, if that is given.  *runner* are the variables of the runner.
    """
    extra = {
        **opt_outs(environ),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        "TOKENIZERS_PARALLELISM": "false",  # otherwise forked data loaders print warnings
    }
    if not reports:
        extra |= {"WANDB_MODE": "disabled", "WANDB_DISABLED": "true"}
    if offline:
        extra |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if not has_card:
        extra["ACCELERATE_USE_CPU"] = "true"  # the launcher for several ranks does not set it
    if threads is not None:
        extra["OMP_NUM_THREADS"] = str(threads)  # read when torch is loaded
    if cores := environ.get("SLURM_CPUS_PER_TASK"):
        extra["SRUN_CPUS_PER_TASK"] = cores  # since Slurm 22.05 srun does not take it over from the job
    if cards is not None:
        extra["CUDA_VISIBLE_DEVICES"] = ",".join(_card_names(cards, environ))
        # The driver numbers cards by slot, CUDA by default from the fastest.
        extra["CUDA_DEVICE_ORDER"] = environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    found = environment_of(python, environ, Purpose.TRAINING, **extra, **(runner or {}), **(secrets or {}))
    if bytecode is not None:
        del found["PYTHONDONTWRITEBYTECODE"]
        found["PYTHONPYCACHEPREFIX"] = str(bytecode)
    return found


def _card_names(cards: Sequence[int], environ: Mapping[str, str]) -> list[str]:
    """Return the names in CUDA_VISIBLE_DEVICES for *cards*, which are indices among the visible cards."""
    seen = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return [seen[card] if card < len(seen) else str(card) for card in cards]


class EarlyLauncher:
    """A launcher that imports the stack and waits for its arguments; see ``scripts/launcher.py``."""

    def __init__(self, process: subprocess.Popen[bytes], gate: int, environment: Mapping[str, str]) -> None:
        self._process: subprocess.Popen[bytes] | None = process
        self._gate, self._environment = gate, environment

    @property
    def has_ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def launch(
        self, command: Sequence[str], log: os.PathLike[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | None:
        """Let it run *command* and return its process; None if it has ended."""
        if self.has_ended:
            return None
        is_same = environment == self._environment
        start = {
            "arguments": command[command.index(str(_LAUNCHER)) + 1 :],
            "log": os.fspath(log),
            "environ": None if is_same else dict(environment),
        }
        line = f"{json.dumps(start)}\n".encode()
        if len(line) > _PIPE_CAPACITY:  # it is read when the imports are done, which takes seconds
            with suppress(OSError):
                fcntl.fcntl(self._gate, fcntl.F_SETPIPE_SZ, len(line))
        try:
            with os.fdopen(self._gate, "wb") as gate:
                self._gate = -1
                gate.write(line)
        except OSError:
            return None
        process, self._process = self._process, None
        return process

    def end(self) -> None:
        """Kill it, unless it was launched."""
        if self._gate >= 0:
            os.close(self._gate)
        if self._process is not None and not self.has_ended:
            kill_session(self._process)
            self._process.wait()


@contextmanager
def start_early(
    python: str, folder: RunFolder, environment: Mapping[str, str], modules: Sequence[str]
) -> Iterator[EarlyLauncher | None]:
    """Start a launcher that imports *modules*; at the end of the block it is killed if it was not launched.

    *modules* are as for ``scripts/launcher.py``.  It changes no file.  None: it could not be started.
    """
    reading, gate = os.pipe()
    command = [python, str(_LAUNCHER), "--early", str(reading), *modules]
    try:
        with tempfile.TemporaryFile() as output:
            process = start_session(
                command,
                environ=environment,
                folder=folder.path,
                output=output,
                descriptors=(reading,),
                private=True,
            )
    except OSError:
        os.close(gate)
        yield None
        return
    finally:
        os.close(reading)
    early = EarlyLauncher(process, gate, environment)
    try:
        yield early
    finally:
        early.end()


def start_process(
    command: Sequence[str],
    folder: RunFolder,
    environment: Mapping[str, str],
    early: EarlyLauncher | None = None,
) -> StartedProcess:
    """Start a run in a session of its own, with its output in the log, and return at once.

    An interrupt of this process and the end of a kernel do not reach it.  It is the process of *early*
    if that is alive.  Raises Unmet.
    """
    with suppress(FileNotFoundError):
        folder.end_file.unlink()
    shutil.rmtree(folder.path / "ranks", ignore_errors=True)
    try:
        with open(folder.log, "ab", opener=open_private) as log:
            log.write(f"\n{START_MARK} {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            log.flush()
            process = early.launch(command, folder.log, environment) if early is not None else None
            process = process or start_session(
                command, environ=environment, folder=folder.path, output=log, private=True
            )
    except OSError as error:
        raise Unmet(f"could not start the run: {error}") from error
    started = StartedProcess(process.pid, start_time_of(process.pid), tuple(command))
    _CHILDREN[started.process, started.process_started] = process
    detach(process)
    return started


# Processes that were started here.  The key has the start time as well, since the process id of an old run
# may be reused by a new process.
_CHILDREN: dict[tuple[int, int], subprocess.Popen[bytes]] = {}


def exit_code_of(process: int, process_started: int) -> int | None:
    """Return the exit code of a launcher that this process started; None if it is running, or unknown."""
    child = _CHILDREN.get((process, process_started))
    return child.poll() if child is not None else None


def write_job(folder: RunFolder, job: Mapping[str, object], accelerate: str) -> None:
    """Write the files for the shim and the launcher."""
    write_private(folder.job_file, f"{json.dumps(job, indent=2)}\n".encode())
    write_private(folder.path / CONFIG, accelerate.encode())


def free_port() -> int:
    """Return a free port of this host."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
