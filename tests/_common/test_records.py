"""The own `dataclass` gives the classes that the standard one gives."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from functools import partial
from typing import Any

import pytest

from colablock._records import dataclass

OPTIONS: tuple[dict[str, bool], ...] = (
    {"frozen": True, "slots": True, "kw_only": True},
    {"frozen": True, "slots": True},
    {"frozen": True},
    {"slots": True},
    {},
    {"frozen": True, "slots": True, "eq": False},
)


def classes(decorate: Callable[..., Any], **options: bool) -> tuple[type, type]:
    """Return a class with every kind of field, and one that derives from it and has methods of its own."""

    class Base:
        first: int
        second: str = "two"
        many: list[int] = field(default_factory=list)
        hidden: str = field(default="h", repr=False, compare=False)
        total: int = field(init=False, default=0)

        def __post_init__(self) -> None:
            object.__setattr__(self, "total", self.first + len(self.many))

    base = decorate(**options)(Base)

    class Derived(base):  # type: ignore[misc,valid-type]
        third: tuple[int, ...] = ()

        def __repr__(self) -> str:
            return f"<{self.first}>"

    return base, decorate(**options)(Derived)


def facts(cls: Any) -> dict[str, Any]:
    """Return what a program can see of *cls* and its objects."""
    one, same, other = cls(first=1), cls(first=1, hidden="x"), cls(first=2, many=[1], second="2")
    return {
        "texts": [repr(made).rpartition(".")[2] for made in (one, other)],
        "equal": [one == same, one == other, one == copy.copy(one), one == 1, one != other],
        "hash": getattr(cls.__hash__, "__name__", None) and cls.__hash__ is object.__hash__,
        "values": [dataclasses.asdict(one), dataclasses.astuple(other)],
        "changed": dataclasses.astuple(dataclasses.replace(one, first=5)),
        "parameters": cls.__init__.__annotations__,
        "slots": getattr(cls, "__slots__", None),
        "match": cls.__match_args__,
        "dict": hasattr(one, "__dict__"),
        "deep": dataclasses.astuple(copy.deepcopy(other)),
        "own": one.many is not cls(first=1).many,
    }


def refused(change: Callable[[], object]) -> type[Exception] | None:
    try:
        change()
    except Exception as error:  # noqa: BLE001 - the kind is compared
        return type(error)
    return None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_class_is_as_the_standard_decorator_makes_it(options: dict[str, bool]) -> None:
    pairs = zip(classes(dataclass, **options), classes(dataclasses.dataclass, **options), strict=True)
    for ours, theirs in pairs:
        assert facts(ours) == facts(theirs)
        for cls in (ours, theirs):
            one = cls(first=1)
            is_frozen = FrozenInstanceError if options.get("frozen") else None
            assert refused(partial(setattr, one, "first", 2)) is is_frozen
            assert refused(partial(delattr, one, "first")) is is_frozen
            assert refused(cls) is TypeError
            assert refused(partial(cls, 1, "two")) is (TypeError if options.get("kw_only") else None)


@dataclass(frozen=True, slots=True)
class Point:
    """A point."""

    x: int
    y: tuple[Point, ...] = ()


def test_an_object_can_be_pickled_and_be_a_key() -> None:
    one = Point(1, (Point(2),))
    again = pickle.loads(pickle.dumps(one))  # noqa: S301 - our own
    assert again == one
    assert {one: "found"}[again] == "found"
    assert repr(one) == "Point(x=1, y=(Point(x=2, y=()),))"
    match one:
        case Point(x, (Point(y),)):
            assert (x, y) == (1, 2)
