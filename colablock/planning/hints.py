"""Alternatives when no wheel fits this Python: another target, an older runtime, another matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colablock._vendor.packaging.version import Version
    from colablock.matrix.model import Matrix
    from colablock.runtimes.document import RecordedRuntime

__all__ = ["alternatives"]


def alternatives(
    matrix: Matrix,
    python: Version,
    *,
    in_kernel: bool,
    pythons: Iterable[str],
    runtimes: Iterable[RecordedRuntime] = (),
    others: Iterable[Matrix] = (),
) -> str | None:
    """Return alternatives for a matrix that *python* does not fit; None if none is known.

    Only ``requires-python`` is compared, which is necessary but not sufficient.
    Only *runtimes* with a label count, since the host's menu offers those.  Of *others*, only
    matrices that ask for at least half of the same packages count.
    *pythons* are the available versions (``X.Y``), newest first.
    """
    found = []
    allowed = matrix.requires_python
    own = f"{python.major}.{python.minor}"
    # A patch release above all real ones: `<3.13` admits some 3.12, and so does `>=3.12.4`.
    minors = [one for one in pythons if len(allowed) and one != own and allowed.contains(f"{one}.99")]
    if in_kernel and minors:
        found.append(f"`--into env` makes an isolated environment with Python {' or '.join(minors[:2])}")
    fitting: dict[str, str] = {}
    for runtime in (one for one in runtimes if one.label):
        same = runtime.python_version.startswith(f"{own}.")
        if in_kernel and minors and not same and allowed.contains(runtime.python_version, prereleases=True):
            fitting.setdefault(runtime.label, runtime.python_version)
    if fitting:
        labels = sorted(fitting, reverse=True)[:3]
        versions = list(dict.fromkeys(fitting[label] for label in labels))
        found.append(f"the runtime version {_either(labels)} has Python {_either(versions)}")
    admitting = [
        other.name
        for other in others
        if other.name != matrix.name
        and _is_related(matrix, other)
        and len(other.requires_python)
        and other.requires_python.contains(python, prereleases=True)
    ]
    if admitting:
        names = _either(f"`{name}`" for name in sorted(admitting))
        found.append(f"{names} admits Python {own}")
    return "; ".join(found) or None


def _is_related(matrix: Matrix, other: Matrix) -> bool:
    """Whether *other* asks for at least half of the packages of *matrix*."""
    own = {entry.name for entry in matrix.packages}
    return 2 * len(own & {entry.name for entry in other.packages}) >= len(own)


def _either(words: Iterable[str]) -> str:
    *most, last = list(words)
    return f"{', '.join(most)} or {last}" if most else last
