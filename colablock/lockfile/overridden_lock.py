"""A lock in which the files of find-links take the place of some packages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from colablock.errors import FetchFailed, InvalidInput
from colablock.index.candidates import CandidateOrigin, has_label
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.tool_table import table_of

if TYPE_CHECKING:
    from colablock._vendor.packaging.pylock import PackageWheel
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock._vendor.packaging.version import Version
    from colablock.index.candidates import Candidate, Metadata, ProjectCandidates
    from colablock.index.finder import IndexSource
    from colablock.matrix.model import PackageEntry

__all__ = ["OverriddenLock"]


class OverriddenLock(LockSource):
    """The packages of *lock*, except the names for which the find-links of *index* have a candidate.

    Such a name has the candidates of find-links, then the version of the lock.  A name
    that the lock does not know is one that a file of find-links requires: it comes
    from *index*, unless the lock assumes that it is installed.

    With *labels*, the preferred local label by name, only builds with that label take such a place, and
    a folder that cannot be read has none.
    """

    def __init__(
        self, lock: LockSource, index: IndexSource, labels: Mapping[NormalizedName, str] | None = None
    ) -> None:
        super().__init__(
            lock.lock,
            lock.folder,
            lock.environment,
            allow_build=lock.allow_build,
            no_binary=lock.no_binary,
            name=lock.name,
            path=lock.path,
            is_at_hand=lock.is_at_hand,
        )
        self._index = index
        self._assumed = frozenset(table_of(lock.lock).get("assumes", ()))
        self._labels = labels
        self._linked: dict[NormalizedName, tuple[Candidate, ...]] = {}

    @property
    def versions(self) -> dict[NormalizedName, Version]:
        """The locked version of each package that find-links do not replace."""
        return {name: version for name, version in super().versions.items() if not self.links(name)}

    @property
    def unreached(self) -> Mapping[NormalizedName, FetchFailed]:
        """The names that the index of find-links could not look up offline; see `IndexSource`."""
        return self._index.unreached

    def links(self, name: NormalizedName) -> tuple[Candidate, ...]:
        """Return the candidates of *name* in find-links."""
        if name not in self._linked:
            self._linked[name] = self._links(name)
        return self._linked[name]

    def _links(self, name: NormalizedName) -> tuple[Candidate, ...]:
        if self._labels is None:
            return tuple(self._index.linked(name).candidates)
        label = self._labels.get(name)
        if label is None or name in self._assumed:
            return ()
        with suppress(FetchFailed):
            linked = self._index.linked(name).candidates
            return tuple(one for one in linked if has_label(one.version, label))
        return ()

    def entries(self) -> tuple[PackageEntry, ...]:
        """Return the roots of another tool's lock, without the versions that find-links replace."""
        return tuple(
            replace(entry, specifier=type(entry.specifier)()) if self.links(entry.name) else entry
            for entry in super().entries()
        )

    def judge(self, name: NormalizedName) -> ProjectCandidates:
        """Return the candidates of *name*, those of find-links first."""
        if name in self._packages or name in self._assumed or self.links(name):
            return super().judge(name)
        return self._index.judge(name)

    def _judge(self, name: NormalizedName) -> ProjectCandidates:
        judged = super()._judge(name)
        linked = self.links(name)
        if not linked:
            return judged
        # A file that the lock lists, too, is the same file: it stays the lock's.
        listed = {
            digest for one in judged.candidates for file in one.files for digest in file.hashes.values()
        }
        files = {c.version for c in linked if c.file and not listed.isdisjoint(c.file.hashes.values())}
        own = [c for c in judged.candidates if c.version in files]
        linked = tuple(next((o for o in own if o.version == c.version), c) for c in linked)
        versions = {c.version for c in linked}
        rest = tuple(c for c in judged.candidates if c.version not in versions)
        return replace(judged, candidates=(*linked, *rest), found=True)

    def metadata(self, candidate: Candidate) -> Metadata:
        """Return the requirements of *candidate* in the lock, or in its own file."""
        if candidate.name in self._packages and candidate.origin is not CandidateOrigin.FIND_LINKS:
            return super().metadata(candidate)
        return self._index.metadata(candidate)

    def prefetch(self, names: Iterable[NormalizedName]) -> None:
        """Do nothing: only few names, if any, are not in the lock or in find-links."""

    def wheel(self, name: NormalizedName) -> PackageWheel | None:
        """Return the rebuilt wheel of *name* that the lock lists; None if find-links replace it."""
        return None if self.links(name) else super().wheel(name)

    def bind(self, names: Mapping[NormalizedName, str]) -> None:
        """Take undeclared *names* from a named index.  Raises InvalidInput for a name of the lock."""
        locked = sorted(name for name in names if name in self._packages)
        if locked:
            listed = ", ".join(f"`{name}` (index `{names[name]}`)" for name in locked)
            message = f"the lock takes names from an index that they do not belong to: {listed}"
            raise InvalidInput(message, hint="Make the lock again with `colablock lock NAME`")
        self._index.bind(names)

    def bind_missing(self, names: Iterable[NormalizedName]) -> bool:
        """Bind those of *names* that a package of a named index requires; return whether there are any."""
        return self._index.bind_missing(names)
