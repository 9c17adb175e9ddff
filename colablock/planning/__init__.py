"""The plan: the target, and the ordered steps with a reason for each.

In: a `Resolution` and a `Snapshot`.  Out: a `Plan`; nothing is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.planning.options import ApplyOptions
    from colablock.planning.plan import Action, Breakage, Kept, Plan, Step
    from colablock.planning.planner import make_plan
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "options": "ApplyOptions",
            "plan": "Action Breakage Kept Plan Step",
            "planner": "make_plan",
        },
    )

__all__ = ["Action", "ApplyOptions", "Breakage", "Kept", "Plan", "Step", "make_plan"]
