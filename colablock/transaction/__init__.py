"""The change of an environment: staged, journaled, atomic, recoverable, and undone on request.

In: a `Plan` and its wheels.  Out: the environment in its new state or in its old one, also after a crash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.transaction.apply import apply_plan
    from colablock.transaction.history import Change, read_history
    from colablock.transaction.isolated_envs import BuiltEnvironment, build_env
    from colablock.transaction.recovery import RecoveryOutcome, recover
    from colablock.transaction.rollback import UndoneChange, roll_back
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "apply": "apply_plan",
            "history": "Change read_history",
            "isolated_envs": "BuiltEnvironment build_env",
            "recovery": "RecoveryOutcome recover",
            "rollback": "UndoneChange roll_back",
        },
    )

__all__ = [
    "BuiltEnvironment",
    "Change",
    "RecoveryOutcome",
    "UndoneChange",
    "apply_plan",
    "build_env",
    "read_history",
    "recover",
    "roll_back",
]
