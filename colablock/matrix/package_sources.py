"""Where each package of a matrix comes from: an index of its own, a direct reference, the default index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from colablock._common.urls import Url
from colablock._records import dataclass
from colablock.matrix.model import Index

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.markers_and_tags import Environment
    from colablock.matrix.model import Matrix, PackageEntry

__all__ = ["PackageSources"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSources:
    """The sources of packages for one environment.

    *entries* has one entry for each name, of those whose markers hold; several are
    intersected.  *elsewhere* has the entries of the other names that have an index
    or a direct reference: their markers do not hold here, or they belong to
    another variant.  Such a name does not fall to the default index.
    """

    entries: Mapping[NormalizedName, PackageEntry]
    elsewhere: Mapping[NormalizedName, PackageEntry]
    indexes: Sequence[Index] = ()

    @classmethod
    def of(
        cls, matrix: Matrix, environment: Environment, additions: Sequence[PackageEntry] = ()
    ) -> PackageSources:
        """Return the sources for *matrix* (its variant selected) and the user's *additions*."""
        markers = {**environment.markers, "extra": ""}
        asked = (*matrix.packages, *additions)
        entries = _by_name(one for one in asked if one.marker is None or one.marker.evaluate(markers))
        others = (entry for variant in matrix.variants.values() for entry in variant.packages)
        elsewhere: dict[NormalizedName, PackageEntry] = {}
        for entry in (*asked, *others):
            if entry.name not in entries and (entry.index or entry.url):
                elsewhere.setdefault(entry.name, entry)
        return cls(entries=entries, elsewhere=elsewhere, indexes=matrix.indexes)

    def declares(self, name: NormalizedName) -> bool:
        """Whether the matrix or the user says where *name* comes from."""
        return name in self.entries or name in self.elsewhere

    def is_rebuilt(self, name: NormalizedName) -> bool:
        """Whether the matrix states the requirements of *name* itself."""
        entry = self.entries.get(name)
        return entry is not None and entry.requires_dist is not None

    def index_of(self, name: NormalizedName) -> Index | None:
        """Return the index that an entry names for *name*; None if none does."""
        entry = self.entries.get(name) or self.elsewhere.get(name)
        named = entry.index if entry is not None else None
        return next((index for index in self.indexes if index.name == named), None)

    def default(self, url: str) -> tuple[Index, ...]:
        """Return the indexes of the other names: those of the matrix that replace the one at *url*."""
        replacing = tuple(index for index in self.indexes if index.default)
        return replacing or (Index(name="default", url=Url(url), default=True),)


def _by_name(entries: Iterable[PackageEntry]) -> dict[NormalizedName, PackageEntry]:
    """Return one entry per name; several entries are intersected."""
    found: dict[NormalizedName, PackageEntry] = {}
    for entry in entries:
        known = found.get(entry.name)
        if known is None:
            found[entry.name] = entry
            continue
        direct = known if known.url is not None or entry.url is None else entry
        found[entry.name] = replace(
            direct,
            specifier=known.specifier & entry.specifier,
            extras=known.extras | entry.extras,
            index=known.index or entry.index,
            prefer_local=known.prefer_local or entry.prefer_local,
        )
    return found
