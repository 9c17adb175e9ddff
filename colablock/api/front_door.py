"""The decorator of every public function: errors speak Python, and a mistaken call is said in a line."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from colablock._common.text import near
from colablock._python_words import ELSEWHERE
from colablock.errors import ColablockError, InvalidCall, interrupted_as

__all__ = ["front_door"]

P = ParamSpec("P")
R = TypeVar("R")

_API = str(Path(__file__).parent)
_PACKAGE = str(Path(__file__).parents[1])
_NEAR = 3  # frames: the decorator, the function, and what it hands its arguments to
_MISSING = re.compile(r"missing \d+ required [\w-]+(?: [\w-]+)? arguments?: (.*)")
_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")


def front_door(state: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make errors speak Python, an interrupt say *state*, and a mistaken call raise InvalidCall."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                with interrupted_as(state):
                    return function(*args, **kwargs)
            except ColablockError as error:
                error.speak_python()
                raise
            except TypeError as error:
                odd = _odd_arguments(function, args, kwargs)
                if not _is_about_arguments(error.__traceback__, has_odd=bool(odd)):
                    raise  # a bug
                # What Python refuses has no traceback of ours.  Another error may be a bug: it is kept.
                raise _mistake(function, error, odd) from (error if odd else None)

        return call

    return decorate


def _is_about_arguments(trace: TracebackType | None, *, has_odd: bool) -> bool:
    """Whether Python has refused the call, or a conversion of an argument right behind it has.

    The first frame is that of the decorator, the second that of the function.
    """
    last, depth = "", 0
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        last, depth = (file, depth + 1) if file.startswith(_PACKAGE) else (last, depth)
        trace = trace.tb_next
    return depth == 1 or (has_odd and (last.startswith(_API) or depth <= _NEAR))


def _odd_arguments(
    function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> list[str]:
    """Return the arguments of a type that few take, in words.  A mapping or bytes may be secret."""
    signature = inspect.signature(function)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return []
    odd = (int, float, bytes, Mapping, type(None))
    return [
        f"`{name}` is `{value!r}`"
        if value is None or isinstance(value, (int, float))
        else f"`{name}` is a `{type(value).__name__}`"
        for name, value in given.items()
        if isinstance(value, odd)
        and not isinstance(value, bool)
        and value != signature.parameters[name].default
        and signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
    ]


def _mistake(function: Callable[..., object], error: TypeError, odd: list[str]) -> InvalidCall:
    """Return the error of a call of *function* that Python, or a conversion of an argument, has refused."""
    parameters = inspect.signature(function).parameters.items()
    names = [name for name, one in parameters if name != "self" and one.kind is not one.VAR_KEYWORD]
    owner, _, name = function.__qualname__.rpartition(".")
    spoken = f"{owner.lower() or 'colablock'}.{name}"
    told = str(error).removeprefix(f"{function.__qualname__}() ")
    unknown, missing = _KEYWORD.search(told), _MISSING.search(told)
    if odd:
        told = f"cannot use an argument: {' and '.join(odd)} ({told})"
    elif missing:
        told = f"needs {missing[1].replace(chr(39), '`')}"
    hint = None
    if unknown:
        # A likeness of 0.6 takes `restart` for what `target` means.
        meant = ELSEWHERE.get(unknown[1])
        hint = f"did you mean `{meant}`?" if meant in names else near(unknown[1], names, likeness=0.7)
    takes = f"takes {', '.join(names)}" if names else "takes no argument"
    return InvalidCall(f"`{spoken}()` {told}", hint=hint or f"`{spoken}()` {takes}")
