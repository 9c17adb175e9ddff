"""A memo for several threads: each value is computed once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from colablock._records import dataclass
from colablock.errors import ColablockError

__all__ = ["OnceMap"]

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class OnceMap(Generic[K, V]):
    """Values by key.  The first thread that asks for a key computes its value; the others wait for it."""

    _answers: dict[K, Future[V]]
    _lock: threading.Lock

    def __init__(self) -> None:
        self._answers = {}
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of *key*, which *make* computes at most once, or raise the error of *make*."""
        with self._lock:
            answer = self._answers.get(key)
            mine = answer is None
            if answer is None:
                answer = self._answers[key] = Future()
        if mine:
            try:
                answer.set_result(make())
            except BaseException as error:
                if not isinstance(error, ColablockError):  # an interrupt concerns one thread only
                    with self._lock:
                        del self._answers[key]
                answer.set_exception(error)
                raise
        return answer.result()
