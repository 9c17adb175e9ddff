"""Files that set a locked stack up on other machines: a Dockerfile, a SkyPilot task, a Slurm batch script.

In: a complete lock of a Linux target.  Out: the text of a file, which depends on nothing but the lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.deployment.dockerfile import dockerfile_text
    from colablock.deployment.skypilot import skypilot_text
    from colablock.deployment.slurm_job import BatchJob, batch_script
    from colablock.deployment.target import Deployment, DeployTarget, target_of
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "slurm_job": "BatchJob batch_script",
            "dockerfile": "dockerfile_text",
            "skypilot": "skypilot_text",
            "target": "DeployTarget Deployment target_of",
        },
    )

__all__ = [
    "BatchJob",
    "DeployTarget",
    "Deployment",
    "batch_script",
    "dockerfile_text",
    "skypilot_text",
    "target_of",
]
