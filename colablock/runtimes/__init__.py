"""Recorded hosted runtimes: the images that a plan can be made for on another machine.

In: a runtime's name, or a freeze to import.  Out: a `RecordedRuntime` with its snapshot, or a diff of two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.runtimes.catalog import load_runtime, runtime_names
    from colablock.runtimes.diff import RuntimeDiff, diff_runtimes
    from colablock.runtimes.document import RecordedRuntime
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "catalog": "load_runtime runtime_names",
            "diff": "RuntimeDiff diff_runtimes",
            "document": "RecordedRuntime",
        },
    )

__all__ = ["RecordedRuntime", "RuntimeDiff", "diff_runtimes", "load_runtime", "runtime_names"]
