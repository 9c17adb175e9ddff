"""The arguments of ``accelerate launch``: those of every training run, and of its proof."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from colablock._common.fs import write_private
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name

__all__ = [
    "CONFIG",
    "Ranks",
    "Sharding",
    "accelerate_values",
    "as_in_training",
    "launch_arguments",
    "told_as",
]

CONFIG = "accelerate.yaml"
"""The name of the file with `accelerate_values`."""

_ACCELERATE = canonicalize_name("accelerate")
_LAUNCH = ("accelerate", "launch")
_LAUNCHER = "accelerate.commands.launch"  # what `training/scripts/launcher.py` runs
_HELP = ("--help",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The processes of a run: *total*, spread evenly over *hosts*, of which this one has the number *host*.

    *given* is the total that the call asks for; None if it follows from the cards.
    They meet at *address* and *port*, those of host 0.  None leaves that to accelerate, which a single
    process needs none of.  *threads_each* is the number of threads of each, if that was given.  With
    *shares_folder* the hosts work in one output folder.
    """

    total: int = 1
    given: int | None = None
    hosts: int = 1
    host: int = 0
    address: str | None = None
    port: int | None = None
    threads_each: int | None = None
    shares_folder: bool = False

    @property
    def per_host(self) -> int:
        """The number of ranks on this host."""
        return max(1, self.total // self.hosts)

    def threads(self, environ: Mapping[str, str]) -> int:
        """Return the number of threads for each rank of this host: those given, or its share of the cores."""
        if self.threads_each:
            return self.threads_each
        asked = environ.get("OMP_NUM_THREADS", "")
        if asked.isdecimal() and int(asked) > 0:
            return int(asked)
        of_task = environ.get("SLURM_CPUS_PER_TASK", "")  # Slurm need not bind a task to its cores
        cores = int(of_task) if of_task.isdecimal() else len(os.sched_getaffinity(0))
        return max(1, cores // self.per_host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How FSDP, version 2, spreads a model over the ranks; the names are accelerate's.

    *layers* are the names of the classes of modules that are gathered as a whole; empty: those that the model
    itself names.
    """

    activation_checkpointing: bool = True
    reshard_after_forward: bool = True
    layers: tuple[str, ...] = ()

    def values(self) -> dict[str, object]:
        """Return the arguments of accelerate by name, without the prefix ``fsdp_``."""
        return {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            **({"transformer_layer_cls_to_wrap": ",".join(self.layers)} if self.layers else {}),
            "state_dict_type": "SHARDED_STATE_DICT",
            "reshard_after_forward": self.reshard_after_forward,
            "activation_checkpointing": self.activation_checkpointing,
            "offload_params": False,
            "cpu_ram_efficient_loading": True,
            "sync_module_states": True,  # accelerate wants it beside the one before, and FSDP 2 ignores it
        }


def launch_arguments(
    config: Path,
    *,
    precision: str,
    ranks: Ranks,
    threads: int,
    has_card: bool,
    sharding: Sharding | None = None,
) -> list[str]:
    """Return the arguments for *ranks* with *threads* each, with every value given.

    A default config, perhaps written for another machine, then has no effect.
    """
    values = {
        "config_file": config,
        "num_processes": ranks.total,
        "num_machines": ranks.hosts,
        "machine_rank": ranks.host,
        "mixed_precision": _mixed(precision),
        "dynamo_backend": "no",
        "num_cpu_threads_per_process": threads,
    }
    arguments = [text for name, value in values.items() for text in (f"--{name}", str(value))]
    arguments += _kind(ranks, sharding, has_card=has_card)
    if ranks.address is not None:
        arguments += ["--main_process_ip", ranks.address]
    if ranks.port is not None:
        arguments += ["--main_process_port", str(ranks.port)]
    return arguments


def _kind(ranks: Ranks, sharding: Sharding | None, *, has_card: bool) -> Iterator[str]:
    """Yield the arguments that choose how the ranks are started, and what they share."""
    if sharding is not None:
        yield "--use_fsdp"
        for name, value in sharding.values().items():
            yield from (f"--fsdp_{name}", str(value).lower() if isinstance(value, bool) else str(value))
    elif ranks.total > 1:
        yield "--multi_gpu"  # the only launcher that starts several processes, on any device
    elif not has_card:
        yield "--cpu"  # it would start one process


def accelerate_values(
    *, precision: str, ranks: Ranks, has_card: bool, sharding: Sharding | None = None
) -> dict[str, object]:
    """Return the values of the config that replaces the user's default config."""
    several = "MULTI_GPU" if has_card else "MULTI_CPU"
    return {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "FSDP" if sharding is not None else several if ranks.total > 1 else "NO",
        **({"fsdp_config": sharding.values()} if sharding is not None else {}),
        "downcast_bf16": "no",
        "machine_rank": ranks.host,
        "main_training_function": "main",
        "mixed_precision": _mixed(precision),
        "num_machines": ranks.hosts,
        "num_processes": ranks.total,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": not has_card,
    }


def _mixed(precision: str) -> str:
    return precision if precision in ("bf16", "fp16") else "no"


def as_in_training(
    command: Sequence[str],
    python: str,
    scripts: str,
    folders: Mapping[NormalizedName, str],
    scratch: Path,
) -> Sequence[str]:
    """Return *command*; ``accelerate launch`` as training starts it, by its module, if its script can start.

    The script of accelerate imports all of its other commands first, which takes several seconds more.
    ``accelerate launch --help`` is replaced by the launch of an empty script with the arguments of training,
    with files in *scratch*.  *folders* are those of the metadata.
    """
    info = folders.get(_ACCELERATE)
    if tuple(command[:2]) != _LAUNCH or not info:
        return command
    module = Path(info).parent.joinpath(*_LAUNCHER.split(".")).with_suffix(".py")
    if not module.is_file() or not _is_script_of(python, Path(scripts, _LAUNCH[0])):
        return command
    arguments = command[2:]
    if tuple(arguments) == _HELP:
        config, script = scratch / CONFIG, scratch / "launched.py"
        ranks = Ranks()
        values = accelerate_values(precision="no", ranks=ranks, has_card=False)
        write_private(config, json.dumps(values).encode())  # JSON is YAML, too
        write_private(script, b"")
        given = launch_arguments(config, precision="no", ranks=ranks, threads=1, has_card=False)
        arguments = [*given, str(script)]
    source = f"import runpy; runpy.run_module({_LAUNCHER!r}, run_name='__main__', alter_sys=True)"
    return ("python", "-c", source, *arguments)


def told_as(command: Sequence[str]) -> str:
    """Return what to say about *command*, which `as_in_training` has replaced."""
    how = " with the arguments of training" if tuple(command[2:]) == _HELP else ""
    return f"run as `python -m {_LAUNCHER}`{how}"


def _is_script_of(python: str, script: Path) -> bool:
    """Whether *script* can be run, and names an interpreter in the folder of *python*."""
    try:
        with script.open("rb") as file:
            line, end, _ = file.read(256).partition(b"\n")  # Linux reads no more of it
    except OSError:
        return False
    named = line.removeprefix(b"#!").split()
    if not (end and line.startswith(b"#!") and named and os.access(script, os.X_OK)):
        return False
    interpreter = Path(os.fsdecode(named[0]))
    is_ours = os.path.realpath(interpreter.parent) == os.path.realpath(Path(python).parent)
    return is_ours and os.access(interpreter, os.X_OK)
