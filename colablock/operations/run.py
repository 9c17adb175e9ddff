"""Use the environment of the last apply: run a command, hand it to training, train a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colablock._common.text import some_of
from colablock.environment.accelerator import detect
from colablock.errors import Refused, Unmet
from colablock.matrix.model import select_variant
from colablock.operations.last_apply import apply_again, drifts_since, last_apply, last_report
from colablock.operations.session import Session
from colablock.training.preflight.facts import ProvenEnvironment
from colablock.transaction.apply_record import versions_digest
from colablock.verification.verify import run_in

if TYPE_CHECKING:
    from colablock.training.receipts import Receipt

__all__ = ["proven_environment", "run_command", "run_smoke"]

_SHOWN = 3  # changed distributions in a note


def run_command(session: Session, name: str, argv: Sequence[str]) -> int:
    """Run *argv* in the environment of the last apply of *name* and return its exit code.

    What has changed since then, as by a rollback of another matrix, is noted.  Raises NotFound where the
    matrix has not been applied.
    """
    last = last_apply(session, name)
    moved = [drift.text for drift in drifts_since(session, last) if drift.is_pin]
    if moved:
        changes = some_of(moved, _SHOWN)
        session.reporter.note(
            f"the stack of `{last.name}` has changed since it was proven: {changes};"
            f" `{apply_again(last)}` restores it"
        )
    return run_in(last.python, argv, session.environ)


def proven_environment(session: Session, name: str) -> ProvenEnvironment:
    """Return the environment of the last apply of *name*, to train in.

    Raises NotFound where the matrix has not been applied, and Refused where a
    pin of it has changed since: training starts only on what was proven.
    """
    last = last_apply(session, name)
    accelerator = detect(session.environ)
    matrix = select_variant(session.matrix(last.source or name), accelerator, last.variant)
    moved = [drift.text for drift in drifts_since(session, last) if drift.is_pin]
    if moved:
        raise Refused(
            "\n".join(
                [
                    f"the stack of `{last.name}` has changed since it was proven",
                    *(f"  {one}" for one in moved),
                ]
            ),
            hint=f"Run `{apply_again(last)}` to restore it",
        )
    report = last_report(last)
    return ProvenEnvironment(
        matrix=last.name,
        source=last.source,
        python=last.python,
        lock=report.lock_digest or versions_digest(last.pins),
        runner=matrix.train.runner,
        sites=tuple(last.sites),
        workarounds=matrix.train.workarounds,
        variant=last.variant,
        matrix_digest=last.matrix_digest,
        python_version=report.python_version,
        versions={str(project): version for project, version in last.pins.items()},
        accelerator=accelerator,
    )


def run_smoke(session: Session, name: str, *, runner: str | None = None) -> Receipt:
    """Train a tiny model in the environment of the last apply of *name*; see `smoke.smoke`.

    Later plans on this machine say so if that passes, and no longer say it if it does not, or fails.
    """
    from colablock.training.preflight.machine import visible  # noqa: PLC0415 - only training reads YAML
    from colablock.training.receipts import drop_receipt, keep_receipt  # noqa: PLC0415
    from colablock.training.runs.runners import runner_of  # noqa: PLC0415
    from colablock.training.smoke import smoke  # noqa: PLC0415

    proven = proven_environment(session, name)
    runner = runner_of(runner or proven.runner).name
    accelerator = visible(proven.accelerator, session.environ)
    passed = True
    try:
        receipt = smoke(
            proven,
            runner=runner,
            accelerator=accelerator,
            environ=session.environ,
            reporter=session.reporter,
        )
        passed = receipt.passed
    except Unmet as error:
        passed = isinstance(error, Refused)  # then nothing was tried
        raise
    finally:
        if not passed and drop_receipt(proven, runner, accelerator, session.home):
            session.reporter.note(
                "an earlier smoke run of this stack passed, and no longer counts as a proof"
            )
    if passed:
        keep_receipt(receipt, session.home)
    return receipt
