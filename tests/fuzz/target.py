"""What a target of the fuzzer is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import ColablockError
from colablock.index.evaluator import Policy
from colablock.network.fetcher import Fetcher

__all__ = [
    "DEMO",
    "METADATA",
    "POLICY",
    "PROJECT",
    "PYTHON",
    "ROOT",
    "Target",
    "fetcher_in",
    "json_bytes",
    "target",
]

ROOT = Path(__file__).parents[2]
PYTHON = environment_for("3.12.11", "manylinux_2_35_x86_64")
DEMO = canonicalize_name("demo")
POLICY = Policy(environment=PYTHON, allow_build=frozenset({":all:"}))

METADATA = b"""Metadata-Version: 2.4
Name: demo
Version: 1.0
Summary: A demo
  of a folded line
Requires-Python: >=3.9
Provides-Extra: fast
Requires-Dist: numpy<3,>=1.26; python_version >= "3.9" and extra == 'fast'
Requires-Dist: torch[cuda] @ https://files.example/torch-2.0-py3-none-any.whl
Requires-Dist: packaging (>=20.0)
Dynamic: License

The description.
"""
PROJECT = b"""[project]
name = "demo"
version = "1.0"
description = "A demo"
requires-python = ">=3.9"
dependencies = ["x>=1", "y; python_version > '3'"]
dynamic = ["readme"]
[project.optional-dependencies]
fast = ["z>=2"]
[project.scripts]
demo = "demo:main"
[project.entry-points."a.b"]
c = "d:e"
"""

Call = Callable[[bytes, Path], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One parser.

    *samples* gives valid inputs, and *form* is a key of `mutations.FORMS`.  *call* gets an input and an empty
    folder, and may raise what is *documented*.  *weight* is its part of the inputs.
    """

    name: str
    form: str
    samples: Callable[[], Sequence[bytes]]
    call: Call
    documented: tuple[type[Exception], ...] = (ColablockError,)
    weight: float = 1.0


def target(
    name: str,
    form: str,
    call: Call,
    *samples: bytes,
    weight: float = 1.0,
    documented: tuple[type[Exception], ...] = (ColablockError,),
) -> Target:
    """Return a target whose samples are at hand."""
    return Target(
        name=name, form=form, samples=lambda: samples, call=call, weight=weight, documented=documented
    )


def json_bytes(value: object) -> bytes:
    """Return *value* as JSON."""
    return json.dumps(value).encode()


def fetcher_in(folder: Path) -> Fetcher:
    """Return a fetcher without a network, with its cache in *folder*."""
    return Fetcher({"COLABLOCK_CACHE_DIR": str(folder / "cache"), "HOME": str(folder)}, offline=True)
