"""A version of one broken distribution that fits a new state, moving nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from colablock.errors import FetchFailed, NoSolution
from colablock.matrix import PackageEntry
from colablock.resolution import Request, Resolution
from colablock.resolve import resolve

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.candidates import CandidateSource
    from colablock.snapshot import Installed

__all__ = ["Repairer"]


@dataclass(frozen=True, slots=True)
class Repairer:
    """Asks for one name again, with everything else held where the plan puts it."""

    request: Request
    source: CandidateSource

    def __call__(self, name: NormalizedName, after: Mapping[NormalizedName, Installed]) -> Resolution | None:
        """Return a resolution in which *name* fits *after*; None where no version does."""
        asked = replace(
            self.request,
            roots=(PackageEntry(name=name, path=f"repair of {name}"),),
            installed=after,
            released={name: "it is broken"},
            unfit=frozenset({name}),
        )
        try:
            found = resolve(asked, self.source, may_release=False)
        except (NoSolution, FetchFailed):
            return None  # a repair is a favour: where none can be had, the plan says what happens instead
        return found if not found.pins[name].is_installed else None
