"""Answers that several threads want and one works out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from colablock.errors import ColablockError

__all__ = ["OnceMap"]

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class OnceMap(Generic[K, V]):
    """Answers that are worked out once, by whoever asks first; the others wait for it."""

    _answers: dict[K, Future[V]]
    _lock: threading.Lock

    def __init__(self) -> None:
        self._answers = {}
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the answer for *key*, or raise what making it raised."""
        with self._lock:
            answer = self._answers.get(key)
            mine = answer is None
            if answer is None:
                answer = self._answers[key] = Future()
        if mine:
            try:
                answer.set_result(make())
            except BaseException as error:
                if not isinstance(error, ColablockError):  # an interrupt is nobody else's answer
                    with self._lock:
                        del self._answers[key]
                answer.set_exception(error)
                raise
        return answer.result()
