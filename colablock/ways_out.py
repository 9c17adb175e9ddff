"""What would take a stack that this Python cannot: a target, a past runtime, another matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colablock._vendor.packaging.version import Version
    from colablock.matrix import Matrix
    from colablock.recorded import RecordedRuntime

__all__ = ["ways_out"]


def ways_out(
    matrix: Matrix,
    python: Version,
    *,
    in_kernel: bool,
    runtimes: Iterable[RecordedRuntime] = (),
    others: Iterable[Matrix] = (),
) -> str | None:
    """Return what else would do when *python* is what does not fit; None when nothing is known to.

    Judged by the Python versions that the matrix admits: necessary, not sufficient.
    """
    ways = []
    allowed = matrix.requires_python
    minors = (
        [f"3.{minor}" for minor in range(20, 8, -1) if allowed.contains(f"3.{minor}.99")]
        if len(allowed)
        else []
    )
    if in_kernel and minors:
        ways.append(f"`--into env` makes an isolated environment with Python {' or '.join(minors[:2])}")
    fitting: dict[str, str] = {}
    for runtime in runtimes:
        if in_kernel and len(allowed) and allowed.contains(runtime.python_version, prereleases=True):
            fitting.setdefault(runtime.label, runtime.python_version)
    if fitting:
        labels = sorted(fitting, reverse=True)[:3]
        ways.append(f"the runtime version {_either(labels)} has Python {fitting[labels[0]]}")
    admitting = [
        other.name
        for other in others
        if other.name != matrix.name and len(other.requires_python) and other.requires_python.contains(python)
    ]
    if admitting:
        names = _either(f"`{name}`" for name in sorted(admitting))
        ways.append(f"{names} admits Python {python.major}.{python.minor}")
    return "; ".join(ways) or None


def _either(words: Iterable[str]) -> str:
    *most, last = list(words)
    return f"{', '.join(most)} or {last}" if most else last
