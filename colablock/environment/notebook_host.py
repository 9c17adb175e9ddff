"""The notebook that this process runs in, if any: its shell, and whether it is Colab.

Nothing of IPython is imported: what the kernel has loaded is looked up.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Kernel", "Publisher", "Shell", "current_shell", "in_colab", "in_notebook"]


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
        """End once nothing runs."""


class Shell(Protocol):
    """What is used of IPython's shell here."""

    @property
    def display_pub(self) -> Publisher:
        """Where display messages go."""

    @property
    def kernel(self) -> Kernel:
        """The kernel that it is the shell of."""


def current_shell() -> Shell | None:
    """Return the running notebook shell, or None: a plain interpreter, or IPython in a terminal."""
    ipython = sys.modules.get("IPython")
    get: Any = getattr(ipython, "get_ipython", None)
    shell = get() if get is not None else None
    return cast("Shell", shell) if getattr(shell, "kernel", None) is not None else None


def in_notebook() -> bool:
    """Return whether this code runs in a notebook kernel."""
    return current_shell() is not None


def in_colab(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the notebook's front end is Colab's."""
    return "COLAB_RELEASE_TAG" in environ or "google.colab" in sys.modules
