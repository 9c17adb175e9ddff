"""Stage the wheels of a plan: install them into a separate prefix, mark them as ours, and check them."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.fs import file_digest, make_private
from colablock._common.reporter import Reporter
from colablock._common.text import count
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.record import Row, read_record, recorded_paths
from colablock.environment.site import Site, read_site
from colablock.errors import Refused
from colablock.planning.plan import Action, Artifact, Plan, Step
from colablock.planning.shared_files import families, modules_of
from colablock.transaction.disk_space import unpacked_size
from colablock.transaction.file_moves import StagedTree
from colablock.unpacking.layout import Layout, lay_out
from colablock.unpacking.linkers import link_wheels
from colablock.unpacking.store import StoredWheel, UnpackedStore
from colablock.unpacking.unpackers import Unpackers

if TYPE_CHECKING:
    from colablock.network.cache import Cache

__all__ = ["Staged", "environment_layout", "install_wheels", "room_needed", "stage"]


_SHARE = 4  # one in so many of the files that a process may still open is a lock of an entry of the store


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Distributions in a separate prefix, checked and complete."""

    tree: StagedTree
    names: tuple[NormalizedName, ...] = ()
    size: int = 0  # bytes, from their RECORDs

    def owner(self, path: str) -> str:
        """Return name and version of the distribution that has the staged file *path*, as text."""
        for folder, _ in self.tree.places:
            for dist_info in Path(folder).glob("*.dist-info"):
                listed = recorded_paths(folder, read_record(dist_info) or ())
                if path in map(os.path.normpath, listed):
                    name, _, version = dist_info.name.removesuffix(".dist-info").rpartition("-")
                    return f"`{canonicalize_name(name)}` {version}"
        return "the plan"


def stage(
    plan: Plan,
    files: Mapping[NormalizedName, Path],
    *,
    python: str | Path,
    into: Path,
    environ: Mapping[str, str],
    reporter: Reporter | None = None,
    site: Site | None = None,
    cache: Cache | None = None,
) -> Staged:
    """Install the wheels of *plan* into the empty prefix *into*, complete and checked.

    Nothing outside of *into* and the store of unpacked wheels in *cache* changes.  The result maps
    each folder of the prefix to its place in the site of *python*.
    """
    site = site or read_site(python, environ)
    steps = [step for step in plan.steps if step.action is not Action.REMOVE]
    make_private(into)
    tree = StagedTree(folder=into, places=())
    if not steps:
        return Staged(tree=tree)
    reporter = reporter or Reporter()
    reporter.stage(f"Staging {count(len(steps), 'distribution')}")
    prefix = into / "prefix"
    layout = _staged_layout(prefix, site, os.path.abspath(python))  # noqa: PTH100 - links stay
    size = install_wheels(steps, files, layout, scratch=into, cache=cache, environ=environ, reporter=reporter)
    return Staged(
        tree=StagedTree(folder=prefix, places=_places(prefix, layout, site)),
        names=tuple(step.name for step in steps),
        size=size,
    )


def room_needed(
    steps: Iterable[Step],
    wheels: Mapping[NormalizedName, Path],
    folder: Path,
    cache: Cache | None,
    environ: Mapping[str, str],
) -> int:
    """Return the bytes that unpacking needs in *folder*: links to the store of unpacked wheels need none."""
    store = UnpackedStore(cache, target=folder, scratch=folder)
    added = [step for step in steps if step.action is not Action.REMOVE]
    missing = [
        wheels[step.name]
        for step in added
        if not (
            step.artifact is not None
            and store.has(step.artifact.hashes.get("sha256", ""), wheels[step.name].name)
        )
    ]
    copied = [wheels[step.name] for step in added] if _copies(environ) or not store.can_link(folder) else []
    store.close()
    return unpacked_size(missing) + unpacked_size(copied)


def _copies(environ: Mapping[str, str]) -> bool:
    """Whether the user wants copies of the files of wheels instead of links."""
    return environ.get("UV_LINK_MODE") == "copy"


def install_wheels(
    steps: Sequence[Step],
    wheels: Mapping[NormalizedName, Path],
    layout: Layout,
    *,
    scratch: Path,
    cache: Cache | None = None,
    environ: Mapping[str, str],
    reporter: Reporter | None = None,
) -> int:
    """Install exactly these *wheels* of *steps* into the folders of *layout*; return their bytes.

    Each is checked before it is unpacked, see `check_wheel`, and each file is compared with RECORD while
    it is unpacked; *reporter* gets the notes.  INSTALLER, REQUESTED and direct_url.json are ours.  A file
    that several distributions have is the one in the wheel of the last step.  Raises BadDistribution if
    a wheel or a file is not as it has to be, and Refused for builds of one package at different versions.
    """
    reporter = reporter or Reporter()
    store = UnpackedStore(cache, target=make_private(scratch), scratch=scratch)
    if cache is not None and not store.is_shared:
        where = f"the cache `{cache.folder}` is on another disk than the environment"
        reporter.note(f"{where}, so wheels are unpacked each time")
    layout = replace(layout, copies=_copies(environ))
    records: dict[NormalizedName, Sequence[Row]] = {}
    site = ""
    size = 0
    digests = {step.name: _sha256(step.artifact, wheels[step.name]) for step in steps}
    missing = {
        wheels[name]: (digest, unpacked_size([wheels[name]]))
        for name, digest in digests.items()
        if store.is_shared and not store.has(digest, wheels[name].name)
    }
    with Unpackers(missing, cache, environ) as unpackers:
        linked = link_wheels(_listed(store, wheels, digests), layout, environ)
        for number, step in enumerate(steps, start=1):
            path = wheels[step.name]
            unpackers.wait(path)
            stored = linked.get(step.name) or store.get(path, digests[step.name])
            for note in stored.wheel.notes:
                reporter.note(note)
            info, rows = lay_out(stored, layout, _own_files(step), linked=step.name in linked)
            site, records[step.name] = str(info.parent), rows
            size += stored.wheel.size
            reporter.step("Staging wheels", number, len(steps))
    shared = _shared(records)
    for step in steps if linked else ():  # in their order, which several processes do not keep
        if any(row.path in shared for row in records[step.name]):
            lay_out(store.get(wheels[step.name], digests[step.name]), layout, _own_files(step))
    store.close()
    _refuse_mixed(shared, site, records, steps)
    return size


def _listed(
    store: UnpackedStore, wheels: Mapping[NormalizedName, Path], digests: Mapping[NormalizedName, str]
) -> dict[NormalizedName, StoredWheel]:
    """Return the wheels that the store has, of which each needs an open file for its lock."""
    names = [*digests][: _files_left() // _SHARE]
    found = ((name, store.listed(digests[name], wheels[name].name)) for name in names)
    return {name: stored for name, stored in found if stored is not None}


def _files_left() -> int:
    """Return how many files this process may open beside those that it has open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return sys.maxsize
    with suppress(OSError):  # without /proc, none is known
        return max(most - len([*Path("/proc/self/fd").iterdir()]), 0)
    return 0


def _shared(records: Mapping[NormalizedName, Sequence[Row]]) -> frozenset[str]:
    """Return the paths that several *records* list."""
    times = Counter(row.path for rows in records.values() for row in rows)
    return frozenset(path for path, number in times.items() if number > 1)


def _refuse_mixed(
    shared: frozenset[str],
    site: str,
    records: Mapping[NormalizedName, Sequence[Row]],
    steps: Iterable[Step],
) -> None:
    """Raise Refused if two of *steps* that own *shared* files are builds of one package of two versions."""
    owners: dict[str, dict[NormalizedName, str]] = {path: {} for path in shared}
    for name, rows in records.items() if shared else ():
        for row in rows:
            if row.path in shared:
                owners[row.path][name] = row.hash
    mixed = {name for by in owners.values() if len(set(by.values())) > 1 for name in by}
    if not mixed:
        return
    versions = {step.name: step.version for step in steps}
    claims = [modules_of(name, site, (row.path for row in records[name])) for name in sorted(mixed)]
    for name, others in sorted(families((), claims).items()):
        for other in sorted(others):
            if versions[name] != versions[other]:
                raise Refused(
                    f"`{name}` {versions[name]} and `{other}` {versions[other]} own the same files, and the"
                    " plan installs both",
                    hint="Give them one version in the matrix, or exclude one of them with `[absent]`",
                )


def _own_files(step: Step) -> dict[str, str]:
    """Return the files of the metadata folder that an installer writes, by name."""
    own = {"INSTALLER": "colablock\n"}
    if step.requested:
        own["REQUESTED"] = ""
    if step.artifact is not None and step.artifact.direct:
        own["direct_url.json"] = _direct_url(step.artifact)
    return own


def _direct_url(artifact: Artifact) -> str:
    """Return the text of direct_url.json (PEP 610) for an archive."""
    from colablock._vendor.packaging.direct_url import ArchiveInfo, DirectUrl  # noqa: PLC0415 - seldom needed

    hashes = dict(sorted(artifact.hashes.items(), key=lambda item: item[0] != "sha256"))
    origin = DirectUrl(url=artifact.url, archive_info=ArchiveInfo(hashes=hashes or None))
    return json.dumps(origin.to_dict(generate_legacy_hash=True), sort_keys=True)


def _staged_layout(prefix: Path, site: Site, python: str) -> Layout:
    """Return the layout of a prefix, which is that of a virtual environment."""
    version = Path(site.purelib).parent.name
    pure = f"{prefix}/lib/{version}/site-packages"
    headers = f"include/site/{version}"
    is_one = site.purelib == site.platlib
    return Layout(
        folders={
            "purelib": pure,
            "platlib": pure if is_one else f"{prefix}/lib64/{version}/site-packages",
            "scripts": f"{prefix}/bin",
            "data": str(prefix),
            "headers": f"{prefix}/{headers}",
        },
        final={
            "purelib": site.purelib,
            "platlib": site.platlib,
            "scripts": site.scripts,
            "data": site.data,
            "headers": f"{site.data}/{headers}",
        },
        python=python,
    )


def environment_layout(folder: Path, site: Path, python: str) -> Layout:
    """Return the layout of a virtual environment in *folder* that is filled at its final place."""
    folders = {
        "purelib": str(site),
        "platlib": str(site),
        "scripts": f"{folder}/bin",
        "data": str(folder),
        "headers": f"{folder}/include/site/{site.parent.name}",
    }
    return Layout(folders=folders, final=folders, python=python)


def _places(prefix: Path, layout: Layout, site: Site) -> tuple[tuple[str, str], ...]:
    """Return the destinations of the folders of a staged prefix."""
    ends = [(layout.folders[one], layout.final[one]) for one in ("purelib", "platlib", "scripts")]
    return (*dict.fromkeys(one for one in ends if Path(one[0]).is_dir()), (str(prefix), site.data))


def _sha256(artifact: Artifact | None, path: Path) -> str:
    """Return the SHA-256 to require: the one that the index has for this file, or else the file's own."""
    if artifact is not None and artifact.filename == path.name and not (artifact.build or artifact.rebuilt):
        promised = artifact.hashes.get("sha256")
        if promised:
            return promised
    return file_digest(path)
