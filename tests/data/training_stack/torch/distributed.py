"""Ranks that meet in a folder, which the launcher names."""

import json
import os
import time
from pathlib import Path

_meetings = 0


class TCPStore:
    def __init__(self, host, port, *, is_master, timeout):
        del host, port, is_master
        self._folder = Path(os.environ["STAND_IN_STORE"])
        self._deadline = time.monotonic() + timeout.total_seconds()

    def set(self, key, value):
        path = self._folder / key.replace("/", "-")
        new = path.with_name(f".{path.name}-{os.getpid()}")
        new.write_bytes(value if isinstance(value, bytes) else value.encode())
        new.rename(path)

    def get(self, key):
        path = self._folder / key.replace("/", "-")
        while not path.exists():
            if time.monotonic() > self._deadline:
                raise TimeoutError(f"nobody set {key}")
            time.sleep(0.005)
        return path.read_bytes()


def get_backend():
    return "gloo"


def broadcast(tensor, src):
    """Give every rank what *src* has."""
    store, key = _store(), _next("broadcast")
    if _rank() == src:
        store.set(key, " ".join(map(str, tensor.values)))
    tensor.values = [int(word) for word in store.get(key).split()]


def all_gather_object(found, value):
    """Put the plain *value* of each rank into the list *found*."""
    store, key = _store(), _next("gather")
    store.set(f"{key}/{_rank()}", json.dumps(value))
    found[:] = [json.loads(store.get(f"{key}/{rank}")) for rank in range(len(found))]


def barrier():
    store, key = _store(), _next("barrier")
    store.set(f"{key}/{_rank()}", "here")
    for rank in range(int(os.environ["WORLD_SIZE"])):
        store.get(f"{key}/{rank}")


def _store():
    from datetime import timedelta  # noqa: PLC0415

    return TCPStore("", 0, is_master=False, timeout=timedelta(minutes=4))


def _rank():
    return int(os.environ["RANK"])


def _next(kind):
    global _meetings  # noqa: PLW0603
    _meetings += 1
    return f"{kind}/{_meetings}"
