"""The known causes of failed runs, read from ``known_crashes.toml``, which describes its keys."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Advice", "Cause", "Detail", "cause_in", "cause_of_signal", "known_causes", "named_cause"]

_TABLE = Path(__file__).with_name("known_crashes.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Something to do; *unless* and *for_hub* say when it does not help."""

    text: str
    unless: Mapping[str, Any] = field(default_factory=dict)
    for_hub: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """A sentence with the named groups of *pattern*."""

    pattern: re.Pattern[str]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One known cause; *pattern* is None if it is not recognised by text."""

    name: str
    means: str
    pattern: re.Pattern[str] | None = None
    signal: int | None = None
    advice: tuple[Advice, ...] = ()
    details: tuple[Detail, ...] = ()
    is_consequence: bool = False
    is_in_log: bool = False
    look_up: str = ""  # "disk", "memory" or "shared-memory"
    packages: tuple[str, ...] = ()  # the distributions that matter, the one at fault first


@cache
def known_causes() -> tuple[Cause, ...]:
    """Return every known cause, in the order in which they are matched."""
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    shared = {f"@{name}": _advice(value) for name, value in table["shared"].items()}
    return tuple(_cause(value, shared) for value in table["cause"])


def cause_in(text: str, *, is_log: bool = False) -> Cause | None:
    """Return the first cause whose pattern matches *text*: exception messages or, with *is_log*, a log."""
    for one in known_causes():
        if one.pattern is not None and (one.is_in_log or not is_log) and one.pattern.search(text):
            return one
    return None


def cause_of_signal(number: int) -> Cause | None:
    """Return the cause for a process that was ended by the signal *number*."""
    return next((one for one in known_causes() if one.signal == number), None)


def named_cause(name: str) -> Cause:
    """Return the cause with the name *name*."""
    return next(one for one in known_causes() if one.name == name)


def _cause(value: Mapping[str, Any], shared: Mapping[str, Advice]) -> Cause:
    patterns = value.get("patterns")
    return Cause(
        name=value["name"],
        means=value["means"],
        pattern=re.compile("|".join(f"(?:{one})" for one in patterns), re.MULTILINE) if patterns else None,
        signal=value.get("signal"),
        advice=tuple(
            shared[one] if isinstance(one, str) and one.startswith("@") else _advice(one)
            for one in value.get("advice", ())
        ),
        details=tuple(
            Detail(pattern=re.compile(one["pattern"], re.DOTALL), text=one["text"])
            for one in value.get("details", ())
        ),
        is_consequence=value.get("consequence", False),
        is_in_log=value.get("log", False),
        look_up=value.get("look-up", ""),
        packages=tuple(value.get("packages", ())),
    )


def _advice(value: Any) -> Advice:
    if isinstance(value, str):
        return Advice(text=value)
    return Advice(text=value["text"], unless=value.get("unless", {}), for_hub=value.get("for-hub", False))
