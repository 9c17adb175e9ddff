"""Stand-ins of the commands of Slurm, for machines without it: they start tasks, and note what is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["in_job", "write_commands"]

SRUN = """\
#!/bin/bash
# Starts its command in each task, as `srun --ntasks N --OPTION... COMMAND` does.
while [[ $1 == --* ]]; do
    if [[ $1 == --ntasks ]]; then tasks=$2; fi
    if [[ $1 == --*=* ]]; then shift; else shift 2; fi
done
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task "$@" &
done
code=0
for job in $(jobs -p); do wait "$job" || code=$?; done
exit "$code"
"""
SCONTROL = """\
#!/bin/bash
if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >>"${0%/*}/asked"; fi
"""
SBATCH = """\
#!/bin/bash
echo "$@" >>"${0%/*}/asked"
if grep -q forbidden "${@: -1}"; then echo "sbatch: error: invalid partition" >&2; exit 1; fi
echo "42;cluster"
"""


def write_commands(folder: Path) -> Path:
    """Write the commands to *folder*, which has to come first in PATH.  The file ``asked`` has the calls."""
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "sbatch": SBATCH}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def in_job(commands: Path, path: str, *, tasks: int = 2) -> Mapping[str, str]:
    """Return the variables of a job of Slurm with that many tasks."""
    return {
        "PATH": f"{commands}:{path}",
        "SLURM_JOB_ID": "42",
        "SLURM_NTASKS": str(tasks),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
    }
