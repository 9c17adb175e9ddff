"""Prepare the wheels of a plan: fetch them, build sdists if the matrix allows it, rebuild replaced ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from colablock._common.archives import UNREADABLE
from colablock._common.fs import atomic_path, file_digest
from colablock._records import dataclass
from colablock.errors import BadDistribution, ColablockError, FetchFailed
from colablock.index.candidates import CandidateOrigin, File
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.package_files import Wheel
from colablock.planning.plan import Target
from colablock.planning.shared_files import wheel_claim

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock._vendor.packaging.pylock import PackageWheel
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Snapshot
    from colablock.index.build import Builder
    from colablock.index.candidates import Candidate
    from colablock.index.core_metadata import CoreMetadata
    from colablock.index.finder import IndexSource
    from colablock.lockfile.standing import StandingLocks
    from colablock.matrix.model import PackageEntry
    from colablock.network.fetcher import Fetcher
    from colablock.planning.plan import Artifact, Plan
    from colablock.planning.shared_files import Claim
    from colablock.resolver.model import Pin, Resolution

__all__ = ["WheelPreparer"]

_WORKERS = 8
_SMALL = 1 << 20  # bytes of a wheel that is fetched whole to list it


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelPreparer:
    """The source of the candidates of a resolution, and the means to turn their files into wheels on disk."""

    source: IndexSource | LockSource
    fetcher: Fetcher
    builder: Builder
    entries: Mapping[NormalizedName, PackageEntry]
    standing: StandingLocks | None = None
    allow_build: frozenset[str] = frozenset()

    def gather(self, plan: Plan, into: Path, reporter: Reporter) -> dict[NormalizedName, Path]:
        """Return a wheel for every step that installs, hash-checked, in the folder *into*.

        The metadata of each wheel is compared with what the plan was made from.
        Raises FetchFailed and BadDistribution; nothing outside of *into* and the cache changes.
        """
        from colablock.planning.believed import check_believed  # noqa: PLC0415 - not for a plan

        artifacts = [step.artifact for step in plan.steps if step.artifact is not None]
        wheels, archives = self._rebuilt_at_hand(artifacts)
        for artifact in artifacts:
            if artifact.name in archives:
                wheels[artifact.name] = self._wheel(artifact, archives[artifact.name])
        unmade = [one for one in artifacts if one.name not in wheels]
        known = self._unpacked(unmade, into, are_listed=plan.target is Target.KERNEL)
        wheels.update({name: path for name, (path, _) in known.items()})
        missing = [artifact for artifact in artifacts if artifact.name not in wheels]
        paths = self.fetcher.download(missing, into, reporter)
        for artifact, path in zip(missing, paths, strict=True):
            wheels[artifact.name] = self._wheel(artifact, path)
        for artifact in artifacts:
            check_believed(
                artifact,
                wheels[artifact.name],
                fetcher=self.fetcher,
                environment=self.builder.environment,
                states_requires=not isinstance(self.source, LockSource) or self.source.is_ours,
                known=known[artifact.name][1] if artifact.name in known else None,
            )
        return wheels

    def _unpacked(
        self, artifacts: Sequence[Artifact], into: Path, *, are_listed: bool
    ) -> dict[NormalizedName, tuple[Path, CoreMetadata]]:
        """Return links in *into* to the wheels that the cache has unpacked, and their metadata.

        They are not hashed here: the store hashes a wheel before it unpacks it again, and nothing else reads
        it, unless wheels *are_listed*.  Then nothing of find-links is taken, which other users may write to:
        what is read there is hashed first.
        """
        from colablock.planning.believed import known_metadata  # noqa: PLC0415 - not for a plan
        from colablock.unpacking.store import UnpackedStore  # noqa: PLC0415

        cache = self.fetcher.cache
        store = UnpackedStore(cache, target=cache.folder, scratch=into)
        found = {}
        for artifact in artifacts:
            sha256 = artifact.hashes.get("sha256", "")
            if not sha256 or not store.has(sha256, artifact.filename):
                continue
            metadata = known_metadata(artifact, artifact.filename, cache)
            copy = cache.file(sha256) if metadata is not None else None
            if metadata is not None and copy is None and not are_listed:
                copy = self._beside(artifact)
            if metadata is not None and copy is not None:
                with suppress(OSError):  # a disk without links: the wheel is copied there
                    _link(copy, into / artifact.filename)
                    found[artifact.name] = into / artifact.filename, metadata
        return found

    def _beside(self, artifact: Artifact) -> Path | None:
        """Return a file on this machine that should be *artifact*, whatever its hash."""
        path = self.fetcher.local(artifact.url)
        if path is not None:
            return path if path.is_file() else None
        return self.fetcher.copies.by_name(artifact.filename)

    def check_at_hand(self, plan: Plan) -> None:
        """Raise FetchFailed with the files of *plan* that are not at hand, if colablock is offline."""
        missing = [one.artifact for one in plan.steps if one.artifact and one.name not in plan.at_hand]
        if self.fetcher.offline and missing:
            wheels, archives = self._rebuilt_at_hand(missing)
            here = wheels.keys() | archives.keys()
            self.fetcher.require_offline(one for one in missing if one.name not in here)

    def at_hand(self, plan: Plan) -> tuple[NormalizedName, ...]:
        """Return the names of the steps of *plan* for which `gather` downloads nothing."""
        artifacts = [step.artifact for step in plan.steps if step.artifact is not None]
        wheels, archives = self._rebuilt_at_hand(artifacts)
        made = wheels.keys() | archives.keys()
        return tuple(one.name for one in artifacts if one.name in made or self.fetcher.is_here(one))

    def _rebuilt_at_hand(
        self, artifacts: Sequence[Artifact]
    ) -> tuple[dict[NormalizedName, Path], dict[NormalizedName, Path]]:
        """Return the rebuilt wheels that are at hand, and the archives in find-links to make others of.

        Of an archive without a hash the name is enough offline: the lock has the hash of its wheel.
        """
        wheels: dict[NormalizedName, Path] = {}
        archives: dict[NormalizedName, Path] = {}
        for artifact in artifacts:
            if artifact.rebuilt is None:
                continue
            entry = self.entries[artifact.name]
            wheel = self._cached(entry)
            if wheel is not None:
                wheels[artifact.name] = wheel
            elif (archive := self._archive(entry, artifact)) is not None:
                archives[artifact.name] = archive
        return wheels, archives

    def _archive(self, entry: PackageEntry, file: Artifact | File) -> Path | None:
        """Return the archive in find-links to make a rebuilt wheel of, if its name alone is enough."""
        if not self.fetcher.offline or file.hashes or self._promised(entry) is None:
            return None
        return self.fetcher.copies.by_name(file.filename)

    def claims(self, resolution: Resolution, snapshot: Snapshot) -> list[Claim]:
        """Return the modules of the wheels of *resolution*, as far as they are known.

        A wheel is listed if it is at hand.  That of a new project is listed also if the end of it
        can be fetched alone; another version of a project mostly has the same modules.
        """
        new = [pin for pin in resolution.pins.values() if not pin.is_installed]
        if not any(one.path for one in snapshot.installed.values()):
            return []
        with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
            claims = list(pool.map(partial(self._claim, snapshot), new))
        return [claim for claim in claims if claim is not None]

    def _claim(self, snapshot: Snapshot, pin: Pin) -> Claim | None:
        """Return the modules of a wheel; None if it cannot be listed."""
        file, entry = pin.candidate.file, self.entries.get(pin.name)
        if file is None or not file.is_wheel or (entry is not None and entry.is_rebuilt):
            return None
        packed = self.fetcher.copies.packed(file)
        try:
            if packed is not None:
                with packed as stream:
                    return wheel_claim(pin.name, snapshot.site, stream)
            stream = self._listable(file, at_hand=pin.name in snapshot.installed)
            return wheel_claim(pin.name, snapshot.site, stream)
        except (ColablockError, *UNREADABLE):
            return None  # the wheel is checked after it has been fetched

    def _listable(self, file: File, *, at_hand: bool) -> IO[bytes]:
        """Return a wheel to read its directory from.  Raises FetchFailed if it would have to be fetched.

        With *at_hand*, nothing of it is fetched.
        """
        path = self.fetcher.local(file.url) or self.fetcher.cache.file(file.hashes.get("sha256", ""))
        if path is None and (at_hand or isinstance(self.source, LockSource)):
            raise FetchFailed(f"`{file.filename}` is not in the cache", url=file.url)
        if path is None:
            from colablock.index.metadata_fetcher import remote_wheel  # noqa: PLC0415 - not with a lock

            if (partly := remote_wheel(self.fetcher, file)) is not None:
                return cast("IO[bytes]", partly)
        if path is None and (file.size is None or file.size > _SMALL):
            raise FetchFailed(f"`{file.filename}` cannot be fetched in parts", url=file.url)
        return (path or self.fetcher.fetch(file)).open("rb")

    def wheel_of(self, pin: Pin) -> Path:
        """Return the wheel that installs *pin*: rebuilt, built, or as published.  Raises BadDistribution."""
        file, entry = pin.candidate.file, self.entries.get(pin.name)
        if file is None:
            raise BadDistribution(f"{pin.candidate} is installed, and no wheel of it is available")
        if entry is not None and entry.is_rebuilt:
            return self._rebuilt(entry, pin.candidate, file)
        path = self.fetcher.fetch_named(file)
        return path if file.is_wheel else self.builder(path)

    def is_at_hand(self, resolution: Resolution) -> bool:
        """Whether `wheels_beside` needs neither the network nor a build for *resolution*."""
        for name, pin in resolution.pins.items():
            entry, file = self.entries.get(name), pin.candidate.file
            if entry is None or not entry.is_rebuilt or file is None:
                continue
            if self._cached(entry) is not None:
                continue
            is_cached = self.fetcher.copies.find(file) is not None
            if not (is_cached and (file.is_wheel or entry.source_root)):
                return False
        return True

    def wheels_beside(self, resolution: Resolution, lock: Path | None) -> dict[NormalizedName, Wheel]:
        """Return the rebuilt wheels of *resolution*, copied to a folder beside the file *lock*.

        Without *lock* they are made and named, but not copied.  Raises BadDistribution.
        """
        wheels = {}
        for name, pin in resolution.pins.items():
            entry = self.entries.get(name)
            if entry is None or not entry.is_rebuilt or pin.candidate.file is None:
                continue
            folder = f"{lock.name.removesuffix('.toml')}.wheels" if lock is not None else "wheels"
            made = self._made(entry, pin.candidate, pin.candidate.file)
            if isinstance(made, Wheel):
                wheels[name] = replace(made, path=f"{folder}/{made.path.rpartition('/')[2]}")
                continue
            if lock is not None:
                _place(made, lock.parent / folder / made.name)
            is_promised = entry.url is None or entry.pinned_sha256 is not None
            wheels[name] = Wheel(
                path=f"{folder}/{made.name}",
                sha256=file_digest(made),
                size=made.stat().st_size,
                promised=pin.candidate.file.hashes if is_promised else {},
            )
        return wheels

    def _made(self, entry: PackageEntry, candidate: Candidate, file: File) -> Path | Wheel:
        """Return the rebuilt wheel; if its archive cannot be reached, what a lock knows about the wheel."""
        standing = self.standing
        if standing is not None and standing.is_recalled(entry.name):
            known = standing.wheel(entry, candidate.version)
            if known is not None:
                return known
        try:
            return self._rebuilt(entry, candidate, file)
        except FetchFailed as error:
            is_away = error.is_away or self.fetcher.offline
            known = standing.wheel(entry, candidate.version) if standing is not None and is_away else None
            if known is None:
                raise
            return known

    def _wheel(self, artifact: Artifact, path: Path) -> Path:
        if artifact.rebuilt is not None:
            return self._rebuild(self.entries[artifact.name], path, artifact.hashes.get("sha256"))
        return self.builder(path) if artifact.build else path

    def _rebuilt(self, entry: PackageEntry, candidate: Candidate, file: File) -> Path:
        if candidate.origin is CandidateOrigin.LOCK:  # a lock names the rebuilt wheel itself
            return self.fetcher.fetch_named(file)
        cached = self._cached(entry)
        if cached is not None:
            return cached
        archive = self._archive(entry, file) or self.fetcher.fetch_named(file)
        return self._rebuild(entry, archive, file.hashes.get("sha256"))

    def _rebuild(self, entry: PackageEntry, path: Path, sha256: str | None) -> Path:
        from colablock.index.rebuilt_wheel import rebuild  # noqa: PLC0415 - few stacks have one

        # Without a source root the modules come from a build, if the matrix allows one.
        build = self.builder if {entry.name, ":all:"} & self.allow_build else None
        wheel, _ = rebuild(entry, path, cache=self.fetcher.cache, sha256=sha256, build=build)
        promised = self._promised(entry)
        if promised is not None and file_digest(wheel) != promised.hashes.get("sha256"):
            message = f"`{wheel.name}`, made from `{path.name}`, is not the wheel that the lock names"
            hint = "The contents of the archive have changed: review them, then make the lock again"
            raise BadDistribution(message, hint=hint)
        return wheel

    def _promised(self, entry: PackageEntry) -> PackageWheel | None:
        """Return the rebuilt wheel of *entry* that the lock lists; None without a lock."""
        return self.source.wheel(entry.name) if isinstance(self.source, LockSource) else None

    def _cached(self, entry: PackageEntry) -> Path | None:
        """Return the rebuilt wheel that the lock lists from the cache or from find-links, if it is there."""
        promised = self._promised(entry)
        if promised is None:
            return None
        cached = self.fetcher.cache.path("rebuilt", promised.filename) / promised.filename
        is_whole = cached.is_file() and file_digest(cached) == promised.hashes.get("sha256")
        if is_whole:
            return cached
        hashes = {"sha256": promised.hashes.get("sha256", "")}
        file = File(filename=promised.filename, url="", hashes=hashes)
        return self.fetcher.copies.find(file, hash_again=True)


def _link(file: Path, link: Path) -> None:
    """Link *file* to *link*, with a symbolic link between two disks: removing one takes 20 times as long."""
    try:
        os.link(file, link)
    except OSError:
        link.symlink_to(file.resolve())


def _place(wheel: Path, destination: Path) -> None:
    """Copy *wheel* to *destination* atomically, over the copy of an earlier lock."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(destination) as new:
            shutil.copyfile(wheel, new)
    except OSError as error:
        raise BadDistribution(f"`{destination}` cannot be written: {error.strerror}") from error
