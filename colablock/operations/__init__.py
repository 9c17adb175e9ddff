"""One module per verb: the functions that the Python API and the command line call.

In: a `Session` and the options of a call.  Out: a plan, a report, a lock; each verb joins the packages below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colablock._common import lazy_surface

if TYPE_CHECKING:
    from colablock.operations.apply import apply_matrix, carry_out
    from colablock.operations.audit import audit_locks
    from colablock.operations.bundle import make_bundle
    from colablock.operations.check import check_matrices
    from colablock.operations.export import export_lock
    from colablock.operations.failure import explain_failure
    from colablock.operations.info import list_facts, machine_facts, matrix_facts
    from colablock.operations.last_apply import verify_last_apply
    from colablock.operations.lock import lock_all, lock_matrix
    from colablock.operations.plan import plan_change
    from colablock.operations.rollback import drop_stashes, list_changes, recover_interrupted, undo_changes
    from colablock.operations.run import proven_environment, run_command, run_smoke
    from colablock.operations.session import Session
else:
    __getattr__, __dir__ = lazy_surface(
        __name__,
        {
            "apply": "apply_matrix carry_out",
            "audit": "audit_locks",
            "check": "check_matrices",
            "export": "export_lock",
            "failure": "explain_failure",
            "last_apply": "verify_last_apply",
            "bundle": "make_bundle",
            "info": "list_facts machine_facts matrix_facts",
            "lock": "lock_all lock_matrix",
            "plan": "plan_change",
            "rollback": "drop_stashes list_changes recover_interrupted undo_changes",
            "run": "proven_environment run_command run_smoke",
            "session": "Session",
        },
    )

__all__ = [
    "Session",
    "apply_matrix",
    "audit_locks",
    "carry_out",
    "check_matrices",
    "drop_stashes",
    "explain_failure",
    "export_lock",
    "list_changes",
    "list_facts",
    "lock_all",
    "lock_matrix",
    "machine_facts",
    "make_bundle",
    "matrix_facts",
    "plan_change",
    "proven_environment",
    "recover_interrupted",
    "run_command",
    "run_smoke",
    "undo_changes",
    "verify_last_apply",
]
