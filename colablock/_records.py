"""`dataclasses.dataclass` with methods that all classes share: defining one takes a third of the time.

The standard decorator compiles each method of each class, which is a quarter of the time of a short command.
Here only ``__init__`` is compiled, when the first object is made: a command uses few of the classes that it
imports.  The classes are dataclasses in every other respect.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

_MISSING = dataclasses.MISSING


def _made(cls: type, *, frozen: bool, slots: bool, kw_only: bool, eq: bool) -> type:
    has_text = bool(cls.__doc__)
    if not has_text:
        cls.__doc__ = " "  # otherwise the text of its signature is made
    own = dict(cls.__dict__)
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)(cls)
    if not has_text:
        made.__doc__ = None
    fields = dataclasses.fields(made)
    shared = {"__init__": _Init(made, fields, frozen=frozen), "__repr__": _repr}
    if eq:
        made._compared_ = staticmethod(_getter([field.name for field in fields if field.compare]))
        shared |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
    if frozen:
        shared |= {"__setattr__": _no_set, "__delattr__": _no_delete}
        shared |= {"__getstate__": _state, "__setstate__": _set_state} if slots else {}
    if own.get("__hash__") is None:  # Python gives it to a class with an `__eq__`
        own.pop("__hash__", None)
    for name, method in shared.items():
        if name not in own:
            setattr(made, name, method)
    return made  # type: ignore[no-any-return]


def _getter(names: list[str]) -> Any:
    """Return a function from an object to the tuple of the values of *names*."""
    if len(names) > 1:
        return attrgetter(*names)
    return (lambda one: (getattr(one, names[0]),)) if names else lambda one: ()  # noqa: ARG005


class _Init:
    """The ``__init__`` of *cls* until it is used first.  Then the compiled one takes its place."""

    __slots__ = ("_cls", "_fields", "_frozen")

    def __init__(self, cls: Any, fields: tuple[dataclasses.Field[Any], ...], *, frozen: bool) -> None:
        self._cls = cls
        self._fields = fields
        self._frozen = frozen

    def __get__(self, one: Any, _owner: type | None = None) -> Any:
        made = self._cls.__init__ = _init(self._cls, self._fields, frozen=self._frozen)
        return made if one is None else made.__get__(one)


def _init(cls: Any, fields: tuple[dataclasses.Field[Any], ...], *, frozen: bool) -> Any:
    """Return the ``__init__`` of *cls*."""
    space: dict[str, Any] = {"_missing": _MISSING, "_set": object.__setattr__}
    given: dict[bool, list[str]] = {False: [], True: []}
    body = []
    for field in fields:
        name, value = field.name, field.name
        if field.default_factory is not _MISSING:
            space[f"_make_{name}"] = field.default_factory
            parameter, value = f"{name}=_missing", f"_make_{name}() if {name} is _missing else {name}"
        elif field.default is not _MISSING:
            space[f"_default_{name}"] = field.default
            parameter = f"{name}=_default_{name}"
        else:
            parameter = name
        if field.init:
            given[bool(field.kw_only)].append(parameter)
        elif parameter == name:
            continue  # `__post_init__` sets it
        else:
            value = f"_make_{name}()" if field.default is _MISSING else f"_default_{name}"
        body.append(f" _set(self, {name!r}, {value})" if frozen else f" self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()")
    parameters = ["self", *given[False], *(["*", *given[True]] if given[True] else [])]
    exec(f"def __init__({', '.join(parameters)}):\n" + "\n".join(body or [" pass"]), space)  # noqa: S102
    made = space["__init__"]
    made.__qualname__, made.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    made.__annotations__ = {field.name: field.type for field in fields if field.init} | {"return": None}
    return made


@recursive_repr()
def _repr(self: Any) -> str:
    values = (f"{one.name}={getattr(self, one.name)!r}" for one in dataclasses.fields(self) if one.repr)
    return f"{type(self).__qualname__}({', '.join(values)})"


def _eq(self: Any, other: Any) -> Any:
    if self is other:
        return True
    if type(other) is not type(self):
        return NotImplemented
    return self._compared_(self) == self._compared_(other)


def _hash(self: Any) -> int:
    return hash(self._compared_(self))


def _no_set(self: Any, name: str, value: object) -> None:  # noqa: ARG001
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _no_delete(self: Any, name: str) -> None:  # noqa: ARG001
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)


if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(
        cls: type | None = None,
        /,
        *,
        frozen: bool = False,
        slots: bool = False,
        kw_only: bool = False,
        eq: bool = True,
    ) -> Any:
        """Return *cls* as a dataclass.  The options are those of the standard decorator."""

        def decorate(cls: type) -> type:
            return _made(cls, frozen=frozen, slots=slots, kw_only=kw_only, eq=eq)

        return decorate if cls is None else decorate(cls)
