"""Fetchers with their own cache, the files that they fetch, and index sources over them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colablock.index.evaluator import Policy
from colablock.index.finder import IndexSource
from colablock.network.fetcher import Fetcher
from tests.support.dict_source import PYTHON_312
from tests.support.server import IndexServer

__all__ = ["DEMO_WHEEL", "Wanted", "fetcher_in", "received", "source_of", "wanted"]

DEMO_WHEEL = "demo-1.0-py3-none-any.whl"


@dataclass(frozen=True)
class Wanted:
    """A file as `Fetcher.download` takes it."""

    url: str
    filename: str = DEMO_WHEEL
    hashes: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None
    index: str | None = None


def wanted(server: IndexServer, wheel: Path, **changes: Any) -> Wanted:
    """Return *wheel* as a file of *server*, with its hash and its size."""
    content = wheel.read_bytes()
    whole = Wanted(
        url=server.file_url(wheel.name),
        filename=wheel.name,
        hashes={"sha256": hashlib.sha256(content).hexdigest()},
        size=len(content),
    )
    return replace(whole, **changes)


def fetcher_in(folder: Path, environ: Mapping[str, str] | None = None, **options: Any) -> Fetcher:
    """Return a fetcher that never sleeps, with its cache in *folder*; *environ* is added to the variables."""
    options = {"sleep": lambda _: None, **options}
    return Fetcher({**os.environ, **(environ or {})}, cache=folder / "cache", **options)


def source_of(fetcher: Fetcher, *default: str, **more: Any) -> IndexSource:
    """Return a source over the indexes *default*, for Python 3.12."""
    policy = more.pop("policy", Policy(environment=PYTHON_312))
    return IndexSource(fetcher=fetcher, policy=policy, default=default, **more)


def received(fetcher: Fetcher) -> int:
    """Return the bytes of all response bodies that *fetcher* has read over HTTP."""
    return fetcher._client.received if fetcher._client is not None else 0
