"""The arguments of ``accelerate launch``: those of every training run, and of its proof."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from colablock._common.fs import write_private
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name

__all__ = ["CONFIG", "accelerate_values", "as_in_training", "launch_arguments", "told_as"]

CONFIG = "accelerate.yaml"
"""The name of the file with `accelerate_values`."""

_ACCELERATE = canonicalize_name("accelerate")
_LAUNCH = ("accelerate", "launch")
_LAUNCHER = "accelerate.commands.launch"  # what `training/scripts/launcher.py` runs
_HELP = ("--help",)


def launch_arguments(
    config: Path, *, precision: str, total: int = 1, hosts: int = 1, threads: int = 1
) -> list[str]:
    """Return the arguments for *total* ranks on *hosts* hosts, with every value given.

    A default config, perhaps written for another machine, then has no effect.
    """
    return [
        "--config_file",
        str(config),
        "--num_processes",
        str(total),
        "--num_machines",
        str(hosts),
        "--machine_rank",
        "0",
        "--mixed_precision",
        _mixed(precision),
        "--dynamo_backend",
        "no",
        "--num_cpu_threads_per_process",
        str(threads),
    ]


def accelerate_values(*, precision: str, processes: int, has_card: bool) -> dict[str, object]:
    """Return the values of the config that replaces the user's default config."""
    several = "MULTI_GPU" if has_card else "MULTI_CPU"
    return {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": several if processes > 1 else "NO",
        "downcast_bf16": "no",
        "machine_rank": 0,
        "main_training_function": "main",
        "mixed_precision": _mixed(precision),
        "num_machines": 1,
        "num_processes": processes,
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
        values = accelerate_values(precision="no", processes=1, has_card=False)
        write_private(config, json.dumps(values).encode())  # JSON is YAML, too
        write_private(script, b"")
        arguments = [*launch_arguments(config, precision="no"), "--cpu", str(script)]
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
