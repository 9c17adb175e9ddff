"""What a lock is for: a recorded runtime, or a Python with nothing installed; and the name of its file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from colablock._records import dataclass
from colablock.environment.accelerator import Accelerator, accelerators_of
from colablock.environment.markers_and_tags import Environment
from colablock.errors import Refused
from colablock.matrix.model import variant_choices

if TYPE_CHECKING:
    from colablock.environment.snapshot import Snapshot
    from colablock.matrix.model import Matrix

__all__ = ["PLATFORM", "LockTarget", "environment_target", "lock_file_name", "target_of", "variants_for"]

#: The default platform of complete locks: the glibc of the images (Ubuntu 22.04).
PLATFORM = "manylinux_2_35_x86_64"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockTarget:
    """The *name* of what a lock is for, and the *variant* of the matrix that it selects by itself."""

    name: str
    variant: str | None


def target_of(matrix: Matrix, target: Snapshot | Environment) -> LockTarget:
    """Return the target of a lock of *matrix*.  A complete lock has the first variant."""
    if isinstance(target, Environment):
        return LockTarget(name=environment_target(target), variant=next(iter(matrix.variants), None))
    # None where none fits, which `colablock check` reports.
    chosen = next((one.variant for one in _choices(matrix, target.accelerator)), None)
    return LockTarget(name=target.source, variant=chosen)


def environment_target(environment: Environment) -> str:
    """Return the name of the target of a complete lock.

    That is ``py312``, with the platform if it is not the default one.
    """
    short = f"py{environment.short.replace('.', '')}"
    return short if environment.platform == PLATFORM else f"{short}-{environment.platform}"


def lock_file_name(matrix: str, target: str, variant: str | None = None) -> str:
    """Return the name of a lock file.  PEP 751 allows no dot in the part between ``pylock.`` and ``.toml``.

    ``pylock.qlora-2024--colab-2026_07-gpu.toml``, or with a *variant* that is not
    the target's own choice ``pylock.qlora-2024--colab-2026_07-gpu--cu118.toml``.
    """
    parts = [matrix, target, *([variant] if variant else [])]
    return f"pylock.{'--'.join(part.replace('.', '_') for part in parts)}.toml"


def variants_for(matrix: Matrix, runtime: Snapshot) -> list[str | None]:
    """Return the variants that the accelerators of a runtime select, and those that may replace them."""
    if not matrix.variants:
        return [None]
    chosen = (_choices(matrix, one) for one in accelerators_of(runtime.accelerator).values())
    return list(dict.fromkeys(one.variant for choices in chosen for one in choices))


def _choices(matrix: Matrix, accelerator: Accelerator) -> Sequence[Matrix]:
    try:
        return variant_choices(matrix, accelerator)
    except Refused:
        return ()
