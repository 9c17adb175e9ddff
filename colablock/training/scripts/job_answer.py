"""Do the job of a script in the target, and answer it as `colablock.environment.target_script` reads it.

It needs the standard library only.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["JobRefused", "answer_job"]


class JobRefused(Exception):
    """The job cannot be done; the message says why, and no traceback is needed."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def answer_job(
    asked: str, answered: str, do: Callable[[dict[str, Any]], Any], *, has_traceback: bool = True
) -> None:
    """Have *do* do the job in the file *asked*, and write its answer to the file *answered*.

    An unexpected exception is the answer, too; its traceback is printed with *has_traceback*.
    """
    job = json.loads(Path(asked).read_text(encoding="utf-8"))
    try:
        answer: dict[str, Any] = {"answer": do(job)}
    except JobRefused as refusal:
        answer = {"refused": str(refusal), "hint": refusal.hint}
    except Exception as error:  # noqa: BLE001 (every error is reported)
        if has_traceback:
            traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(answered).write_text(json.dumps(answer), encoding="utf-8")
