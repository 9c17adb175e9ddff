"""One Python environment as it stands: its distributions, markers, tags, accelerator and site folders.

In: an interpreter, this one or another.  Out: a `Snapshot`, which never changes afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.environment.accelerator import Accelerator, Device
    from colablock.environment.interpreters import Interpreter, find_interpreters
    from colablock.environment.markers_and_tags import Environment, environment_for
    from colablock.environment.site import Site, read_site
    from colablock.environment.snapshot import Host, Installed, Snapshot, take_snapshot
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "accelerator": "Accelerator Device",
            "interpreters": "Interpreter find_interpreters",
            "markers_and_tags": "Environment environment_for",
            "site": "Site read_site",
            "snapshot": "Host Installed Snapshot take_snapshot",
        },
    )

__all__ = [
    "Accelerator",
    "Device",
    "Environment",
    "Host",
    "Installed",
    "Interpreter",
    "Site",
    "Snapshot",
    "environment_for",
    "find_interpreters",
    "read_site",
    "take_snapshot",
]
