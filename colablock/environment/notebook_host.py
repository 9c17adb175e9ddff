"""Detect the notebook that this process runs in: its host and its shell.

IPython is not imported.  If this process is a kernel, it has loaded IPython already.
"""

from __future__ import annotations

import os
import sys
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

__all__ = [
    "Host",
    "Kernel",
    "Publisher",
    "Shell",
    "current_shell",
    "detect_host",
    "in_colab",
    "in_notebook",
    "modules_of_kernel",
    "versions_when_loaded",
]

N = TypeVar("N", bound=str)
M = TypeVar("M")

# `distutils-precedence.pth` of setuptools loads it whenever Python starts.  It only finds `distutils`, in
# whichever setuptools is installed then.
_AT_START = frozenset({"_distutils_hack"})


class Host(Enum):
    """The kind of notebook that the interpreter runs in."""

    COLAB = "colab"
    KAGGLE = "kaggle"
    JUPYTER = "jupyter"
    PLAIN = "plain"


def detect_host(environ: Mapping[str, str], modules: Container[str]) -> Host:
    """Return the host of this process, from the variables and modules that each host sets."""
    if "COLAB_RELEASE_TAG" in environ or "google.colab" in modules:
        return Host.COLAB
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:
        return Host.KAGGLE
    if "ipykernel" in modules or "JPY_PARENT_PID" in environ:
        return Host.JUPYTER
    return Host.PLAIN


class Publisher(Protocol):
    """Sends one display message to the notebook."""

    def publish(
        self,
        data: Mapping[str, object],
        metadata: Mapping[str, object] | None = None,
        *,
        transient: Mapping[str, object] | None = None,
        update: bool = False,
    ) -> None: ...


class Kernel(Protocol):
    """The process that runs the cells."""

    def do_shutdown(self, restart: bool) -> object:  # noqa: FBT001  # ipykernel's signature
        """End the kernel when no cell runs."""


class Shell(Protocol):
    """The part of IPython's shell that colablock uses."""

    @property
    def display_pub(self) -> Publisher:
        """The publisher of display messages."""

    @property
    def kernel(self) -> Kernel:
        """The kernel of this shell."""


def current_shell() -> Shell | None:
    """Return the running notebook shell; None in a plain interpreter and in IPython in a terminal."""
    ipython = sys.modules.get("IPython")
    get: Any = getattr(ipython, "get_ipython", None)
    shell = get() if get is not None else None
    return cast("Shell", shell) if getattr(shell, "kernel", None) is not None else None


def in_notebook() -> bool:
    """Whether this code runs in a notebook kernel."""
    return current_shell() is not None


def in_colab(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the notebook runs in Colab."""
    return "COLAB_RELEASE_TAG" in environ or "google.colab" in sys.modules


# The version that was installed when a module was seen first, by module; it ends with the kernel.
_SEEN: dict[str, tuple[Callable[[], object], str]] = {}


def modules_of_kernel(modules: Mapping[str, M]) -> dict[str, M]:
    """Return a copy of *modules*, without those that every Python loads at its start.

    It is a copy because another thread may import at the same time.
    """
    return {name: module for name, module in dict(modules).items() if name not in _AT_START}


def versions_when_loaded(
    loaded: Mapping[N, Sequence[str]], modules: Mapping[str, object], installed: Mapping[N, str]
) -> dict[N, str]:
    """Return the versions of distributions as the kernel has loaded them, which may be others on disk now.

    *loaded* are their loaded modules and *installed* their versions on disk.  A module counts as
    loaded from what was installed when this function met it first.  If its `__version__` is another
    one, it was loaded before that was installed, and the version is "".
    """
    found = {}
    for name, own in loaded.items():
        module = modules[own[0]]
        seen, version = _SEEN.get(own[0], (None, ""))
        if seen is None or seen() is not module:  # loaded anew, it may have the id of the last one
            version = "" if _state_another(installed[name], own, modules) else installed[name]
            _SEEN[own[0]] = (_reference(module), version)
        found[name] = version
    return found


def _reference(module: object) -> Callable[[], object]:
    """Return a weak reference to what `sys.modules` has, if there can be one."""
    try:
        return ref(module)
    except TypeError:
        return lambda: module


def _state_another(version: str, own: Sequence[str], modules: Mapping[str, object]) -> bool:
    """Whether a top-level module of *own* has a `__version__` other than *version*.

    Either may have more parts: torch 2.8.0 has "2.8.0+cu126", and opencv-python 4.10.0.84 has "4.10.0".
    """
    stated = [getattr(modules[name], "__dict__", {}).get("__version__") for name in own if "." not in name]
    numbers = [f"{one.partition('+')[0]}." for one in stated if isinstance(one, str) and one[:1].isdecimal()]
    installed = f"{version.partition('+')[0]}."
    return any(not one.startswith(installed) and not installed.startswith(one) for one in numbers)
