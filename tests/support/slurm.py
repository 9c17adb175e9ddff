"""Slurm: stand-ins of its commands for machines without it, and a cluster of one node for those with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.timing import until

__all__ = ["IMPATIENT", "ask", "in_job", "missing", "slurm_cluster", "write_commands"]

#: Lines before a batch script, which then looks at once whether its training has ended, not after a second.
IMPATIENT = "sleep() { command sleep 0.02; }\n"
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
case "$1 ${2-}" in
    "show config") printf 'ClusterName             = here\\nCompleteWait            = 0 sec\\n' ;;
    show*) echo 127.0.0.1 ;;
    *) echo "$@" >>"${0%/*}/asked" ;;
esac
"""
SQUEUE = """\
#!/bin/bash
fail() { echo "slurm_load_jobs error: $1" >&2; exit 1; }
if [ -e "${0%/*}/silent" ]; then fail "Unable to contact slurm controller (connect failure)"; fi
if [ -e "${0%/*}/state" ]; then cat "${0%/*}/state"; else fail "Invalid job id specified"; fi
"""
SBATCH = """\
#!/bin/bash
echo "$@" >>"${0%/*}/asked"
if grep -q forbidden "${@: -1}"; then echo "sbatch: error: invalid partition" >&2; exit 1; fi
echo "42;cluster"
"""


def write_commands(folder: Path) -> Path:
    """Write the commands to *folder*, which has to come first in PATH.

    The file ``asked`` has the calls; ``state`` is what squeue says of any job.  With
    ``silent``, the controller does not answer.
    """
    folder.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE, "sbatch": SBATCH}.items():
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


CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
SchedulerParameters=sched_interval=5,bf_interval=5,requeue_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
_PATH = "/usr/sbin:/sbin"


def missing() -> list[str]:
    """Return the commands of Slurm that this machine lacks."""
    where = f"{os.environ['PATH']}:{_PATH}"
    return [name for name in DAEMONS if shutil.which(name, path=where) is None]


@contextmanager
def slurm_cluster() -> Iterator[dict[str, str]]:
    """Start a cluster of Slurm on 127.0.0.1 with this machine as its one node; needs root.

    Gives the variables for its commands.  The daemons and their files are gone after the block.
    """
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name:
        folder, host = Path(name), socket.gethostname()
        folder.chmod(0o755)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o600)
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, cores=os.cpu_count()))
        environ = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{_PATH}"}
        places = {
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "seed",
        }
        munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
        munge += [f"--{option}={folder / file}" for option, file in places.items()]
        daemons = []
        try:
            for command in (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
                log = (folder / f"{command[0]}.out").open("wb")
                daemons.append(
                    subprocess.Popen(command, env={**os.environ, **environ}, stdout=log, stderr=log)
                )
                log.close()
                time.sleep(1)
            until(lambda: "idle" in ask(environ, "sinfo", "--noheader", "--format=%T"), patience=60)
            yield environ
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                daemon.wait(30)


def ask(environ: Mapping[str, str], *command: str) -> str:
    """Return what a command of Slurm prints."""
    variables = {**os.environ, **environ}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False).stdout
