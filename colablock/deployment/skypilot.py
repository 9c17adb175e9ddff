"""The SkyPilot task of a lock: it applies the lock, and trains on a spot machine that may be taken away.

A managed job of SkyPilot starts the task again on another machine, where the run goes on from its mirror.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

from colablock._version import __version__
from colablock.deployment.target import checked_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from colablock.deployment.target import DeployTarget

__all__ = ["skypilot_text"]

_TASK = """\
{header}
# Put it beside the training config and the data.  In that folder:
#   sky jobs launch {file} --env MIRROR=hf://NAME/REPOSITORY --secret HF_TOKEN

name: {name}

resources:
{accelerators}  use_spot: true
  job_recovery:
    strategy: EAGER_NEXT_REGION

num_nodes: 1

workdir: .

envs:
  COLABLOCK: {colablock}
  CONFIG: train.yaml
  MIRROR: ""

# Runs again on the machine that replaces one that was taken away.
setup: |
  set -eu
  : "${{MIRROR:?name a mirror, which keeps the checkpoints: --env MIRROR=hf://NAME/REPOSITORY}}"
  python3 -m venv ~/colablock-venv
  ~/colablock-venv/bin/python -m pip install --quiet "$COLABLOCK"
  ~/colablock-venv/bin/colablock apply {matrix} --lock {lock} {choices}--into env --yes

# The first start trains from the beginning, each later one from the newest checkpoint of the mirror.
# It ends when the mirror has the last checkpoint and the adapter, and fails if they do not get there.
run: |
  set -eu
  ~/colablock-venv/bin/colablock train {matrix} --config "$CONFIG" --mirror "$MIRROR"
"""
#: One card each: SkyPilot takes the cheapest that is to be had.
_CARDS = ("L4", "A10G", "L40S", "A100", "A100-80GB", "H100")


def skypilot_text(target: DeployTarget, header: Iterable[str], *, matrix: str, lock: str, file: str) -> str:
    """Return the task that applies the lock file *lock* and trains.

    *matrix* is a name or a path, and *lock* a path, both as the command line takes them in the folder of
    the task *file*.  *header* are the comments at its top.
    """
    cards = ", ".join(f"{card}:1" for card in _CARDS)
    return _TASK.format(
        header="\n".join(header).rstrip(),
        file=_word(file),
        name=json.dumps(_task_name(target.matrix)),
        accelerators=f"  accelerators: {{{cards}}}\n" if target.needs_card else "",
        colablock=json.dumps(f"colablock=={__version__}"),
        matrix=_word(matrix),
        lock=_word(lock),
        choices="".join(f"{_word(word)} " for word in target.choices),
    )


def _word(name: str) -> str:
    """Return a name as one word of a shell, in one line of the task.  Raises InvalidInput."""
    return shlex.quote(checked_name(name))


def _task_name(matrix: str) -> str:
    """Return a name that SkyPilot takes for a task and for a cluster: letters, digits and single dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", matrix.lower()).strip("-")
    return name if name[:1].isalpha() else f"task-{name}"
