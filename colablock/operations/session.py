"""The session of one call: its environment variables, its reporter, and how every verb reads the machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import make_private
from colablock._common.reporter import Reporter
from colablock._common.text import printable
from colablock._common.urls import Mirrors, checked_index, is_loopback, local_path, redacted
from colablock._records import dataclass
from colablock.environment.accelerator import Accelerator
from colablock.environment.site import Site, read_site
from colablock.environment.snapshot import Snapshot, find_executable, is_version, snapshot_of, take_snapshot
from colablock.errors import InvalidInput, Refused
from colablock.matrix.catalog import find_matrix
from colablock.matrix.model import shadow_text
from colablock.network.cache import Cache, cache_folder
from colablock.network.settings import Settings, read_settings
from colablock.transaction.apply_record import BUNDLES, home_folder

if TYPE_CHECKING:
    from colablock.bundles.manifest import BundleManifest
    from colablock.bundles.reader import Bundle
    from colablock.errors import FetchFailed
    from colablock.index.prefetch import ReadOnce
    from colablock.matrix.model import Matrix
    from colablock.network.fetcher import Fetcher
    from colablock.planning.options import ApplyOptions

__all__ = ["Session", "comparable", "from_bundle", "named_in_bundle"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Session:
    """What one call of the API or of the command line depends on.

    *environ* holds the environment variables that it may read.  *reporter*
    receives progress and notes.  *in_kernel* says that this process is the
    notebook's kernel, so that the modules it has loaded count.
    """

    environ: Mapping[str, str]
    reporter: Reporter = field(default_factory=Reporter)
    in_kernel: bool = False
    _sites: dict[str | None, Site] = field(default_factory=dict, init=False, repr=False)
    _homes: list[Path] = field(default_factory=list, init=False, repr=False)
    noted: set[str] = field(default_factory=set, repr=False)  # each note is given once in a call
    #: The indexes that could not be reached, by URL: they are not tried again in this session.
    unreached: dict[str, FetchFailed] = field(default_factory=dict, init=False, repr=False)
    #: The archives and indexes in whose place a lock tells what is there, by URL.
    away: set[str] = field(default_factory=set, init=False, repr=False)
    #: The fetchers of this session by their settings, each with what the solves have read with it.
    readers: dict[Settings, tuple[Fetcher, ReadOnce]] = field(default_factory=dict, init=False, repr=False)

    def close(self) -> None:
        """Read nothing further in the background."""
        for _, reads in self.readers.values():
            reads.close()

    @property
    def home(self) -> Path:
        """The folder of isolated environments, apply records and runs, which is checked once in a session."""
        if not self._homes:
            self._homes.append(home_folder(self.environ))
        return self._homes[0]

    def matrix(self, name: str) -> Matrix:
        """Return the matrix with that name or path, no variant selected.  Raises NotFound, InvalidMatrix."""
        matrix = find_matrix(name, environ=self.environ)
        text = shadow_text(matrix)
        if text is not None and text not in self.noted:
            self.noted.add(text)
            self.reporter.note(text)
        return matrix

    def settings(self, options: ApplyOptions, matrix: Matrix | None) -> Settings:
        """Return the indexes and folders in force.  A note about another tool's settings is given once."""
        settings = read_settings(
            self.environ,
            default_index=options.default_index,
            find_links=options.find_links,
            offline=options.offline,
            indexes=matrix.indexes if matrix is not None else (),
        )
        if options.bundle is not None:
            from colablock.bundles.reader import Bundle  # noqa: PLC0415 - few calls use one

            # No index is asked, so nothing has to be said about indexes.
            return replace(settings, bundle=Bundle.open(options.bundle))
        for note in (*settings.notes, *_missing_links(settings), *self._unencrypted(settings, matrix)):
            if note not in self.noted:
                self.noted.add(note)
                self.reporter.note(note)
        return settings

    def _unencrypted(self, settings: Settings, matrix: Matrix | None) -> Iterator[str]:
        """Yield a note for each index and find-links that another machine answers without TLS."""
        mirrors = Mirrors.parse(self.environ.get("COLABLOCK_MIRRORS", "")).and_indexes(settings.mirrors)
        places = (
            settings.default_index,
            *settings.find_links,
            *(one.url for one in (matrix.indexes if matrix else ())),
        )
        for place in places:
            url = mirrors.to_mirror(f"{str(place).rstrip('/')}/")
            if url.lower().startswith("http:") and not is_loopback(url):
                yield f"`{redacted(url)}` is read over http: others on the network can change what it lists"

    def site(self, python: str | None) -> Site:
        """Return the site of the interpreter *python*, by default this one's.

        An interpreter has to be started to read its site, so the result is cached.
        """
        if python not in self._sites:
            executable = find_executable(python, self.environ) if python else sys.executable
            self._sites[python] = read_site(executable, self.environ)
        return self._sites[python]

    def snapshot(
        self, python: str | None, protect: Iterable[str] = (), *, accelerator: Accelerator | None = None
    ) -> Snapshot:
        """Return a snapshot of the interpreter *python*, by default of this one.

        Without *accelerator* the machine's own is detected.
        """
        if python:
            cache = Cache(cache_folder(self.environ))
            return snapshot_of(
                python, protect=protect, environ=self.environ, accelerator=accelerator, store=cache
            )
        modules = sys.modules if self.in_kernel else None
        return take_snapshot(
            protect=protect, loaded_modules=modules, environ=self.environ, accelerator=accelerator
        )


def from_bundle(options: ApplyOptions, environ: Mapping[str, str]) -> ApplyOptions:
    """Return *options* with the matrix and the lock of their bundle, if they name one, and offline.

    Both are written to the home of colablock, where later calls such as `verify` find them.
    Raises InvalidInput for an archive that is no bundle, and for options that contradict it.
    """
    if options.bundle is None:
        return options
    from colablock.bundles.reader import Bundle  # noqa: PLC0415 - few calls use one

    bundle = Bundle.open(options.bundle)
    manifest = bundle.manifest
    _check_options(options, manifest)
    digest = hashlib.sha256(manifest.encoded()).hexdigest()
    folder = home_folder(environ) / BUNDLES / digest[:32]
    is_new = not folder.is_dir()
    try:
        bundle.unpack(make_private(folder))
        os.utime(folder)  # `cache prune` removes it a day after its last use
        _check_contents(bundle, folder, environ)
    except InvalidInput:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    except OSError as error:
        raise Refused(f"`{folder}` cannot be written: {error.strerror or error}") from error
    return replace(
        options,
        # Nothing is read from an index, so the one that the lock was made from counts, wherever this is.
        default_index=options.default_index or _index_of(manifest),
        name=str(folder / manifest.matrix_file),
        lock=folder / manifest.lock_file,
        variant=manifest.variant,
        with_=manifest.with_,
        offline=True,
    )


def named_in_bundle(name: str, package: str | None, bundle: Path | None) -> tuple[str, str | None]:
    """Return the matrix and the package of a question about a bundle.

    The bundle names the matrix, so that a single name (*name*) is that of a package, unless it is the matrix.
    """
    if bundle is None or not name or package is not None:
        return name, package
    from colablock.bundles.reader import Bundle  # noqa: PLC0415 - few calls use one

    return (name, None) if name == Bundle.open(bundle).manifest.matrix else ("", name)


def _index_of(manifest: BundleManifest) -> str | None:
    """Return the index of a manifest, which may be a folder of another machine.  Raises InvalidInput."""
    index = manifest.index
    is_url = index is not None and local_path(index) is None
    return checked_index(index, "the index of the bundle") if is_url else index


def _check_contents(bundle: Bundle, folder: Path, environ: Mapping[str, str]) -> None:
    """Raise InvalidInput if the matrix and the lock in *folder* are not what the manifest says.

    The wheels that the lock names are written beside it.  Raises OSError.
    """
    from colablock.lockfile.store import read_head  # noqa: PLC0415 - few calls use a bundle

    manifest = bundle.manifest
    name = find_matrix(str(folder / manifest.matrix_file), environ=environ).name
    if name != manifest.matrix:
        raise bundle.refused(f"it says that it has the matrix `{manifest.matrix}`, and has `{name}`")
    lock = folder / manifest.lock_file
    head = read_head(lock)
    if head is None:
        raise bundle.refused(f"`{manifest.lock_file}` is not a lock made by colablock")
    for fact in ("matrix", "kind", "python", "platform", "runtime", "variant"):
        said, there = getattr(manifest, fact), getattr(head, fact)
        if said != there:
            raise bundle.refused(f"its lock is for the {fact} `{printable(str(there))}`, not `{said}`")
    if set(manifest.with_) != head.with_:
        raise bundle.refused("its lock was made with other requirements (`--with`) than it says")
    if bundle.beside:
        from colablock.lockfile.pylock import read_lock  # noqa: PLC0415 - few bundles have one

        packages = read_lock(lock, Cache(cache_folder(environ))).packages
        wheels = (wheel.path for one in packages for wheel in one.wheels or ())
        bundle.unpack_wheels(folder, set(filter(None, wheels)))


def _check_options(options: ApplyOptions, manifest: BundleManifest) -> None:
    """Raise InvalidInput for options that contradict the bundle."""
    if options.name not in {"", manifest.matrix}:
        message = f"the bundle has the matrix `{manifest.matrix}`, not `{options.name}`"
        raise InvalidInput(message, hint="Omit the name: the bundle has it")
    if options.lock is not None or not options.use_locks:
        raise InvalidInput("a bundle has its own lock", hint="Omit `--lock` and `--no-lock`")
    if options.variant not in {None, manifest.variant}:
        message = f"the bundle is for the variant `{manifest.variant}`, not `{options.variant}`"
        raise InvalidInput(message, hint="Make another bundle, with `--variant`")
    more = [one for one in options.with_ if one not in manifest.with_]
    if more:
        message = f"the bundle does not have `{more[0]}`"
        raise InvalidInput(message, hint="Make another bundle, with `--with`")


def _missing_links(settings: Settings) -> Iterator[str]:
    """Yield a note for each folder of find-links in the settings of the machine that is not there."""
    for link in () if settings.links_override else settings.find_links:
        path = local_path(link)
        if path is not None and not os.path.exists(path):  # noqa: PTH110 - Path raises of a long name
            yield f"not using the find-links `{redacted(link)}`: there is no such folder"


def comparable(snapshot: Snapshot) -> Snapshot:
    """Return *snapshot* without the distributions whose version is not one of PEP 440.

    No specifier can be compared with such a version.  They are
    ``unreadable`` there.
    """
    odd = {name: there for name, there in snapshot.installed.items() if not is_version(there.version)}
    if not odd:
        return snapshot
    installed = {name: there for name, there in snapshot.installed.items() if name not in odd}
    return replace(snapshot, installed=installed, unreadable=odd)
