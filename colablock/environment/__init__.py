"""The state of one Python environment: its distributions, markers, tags, accelerator and site folders.

In: an interpreter, this one or another.  Out: a `Snapshot`, which never changes afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.environment.accelerator import Accelerator, Device
    from colablock.environment.dependency_graph import newly_unmet
    from colablock.environment.interpreters import Interpreter, find_interpreters
    from colablock.environment.markers_and_tags import Environment, environment_for
    from colablock.environment.notebook_host import Host
    from colablock.environment.record import read_record, write_record
    from colablock.environment.site import Site, read_site
    from colablock.environment.snapshot import Installed, Snapshot, take_snapshot
    from colablock.environment.state_change import StateChange, find_broken
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "accelerator": "Accelerator Device",
            "dependency_graph": "newly_unmet",
            "interpreters": "Interpreter find_interpreters",
            "markers_and_tags": "Environment environment_for",
            "record": "read_record write_record",
            "site": "Site read_site",
            "notebook_host": "Host",
            "snapshot": "Installed Snapshot take_snapshot",
            "state_change": "StateChange find_broken",
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
    "StateChange",
    "environment_for",
    "find_broken",
    "find_interpreters",
    "newly_unmet",
    "read_record",
    "read_site",
    "take_snapshot",
    "write_record",
]
