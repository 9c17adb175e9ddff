"""Fetch the distributions that a rollback puts back as well, in the versions before the change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from colablock._common.text import count
from colablock._vendor.packaging.version import Version
from colablock.environment.snapshot import Installed
from colablock.errors import Unmet
from colablock.index.candidates import CandidateOrigin
from colablock.index.core_metadata import read_wheel_metadata
from colablock.index.evaluator import Policy
from colablock.index.finder import IndexSource
from colablock.network.fetcher import Fetcher
from colablock.planning.options import ApplyOptions, UndoOptions
from colablock.planning.plan import Artifact
from colablock.resolver.origin import refusal_of
from colablock.transaction.undo.companions import Companions

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.snapshot import Snapshot
    from colablock.operations.session import Session
    from colablock.transaction.undo.preview import UndoPreview

__all__ = ["fetch_companions"]


def fetch_companions(
    session: Session,
    options: UndoOptions,
    preview: Callable[[Mapping[NormalizedName, Installed], Mapping[NormalizedName, str]], UndoPreview],
    *,
    snapshot: Snapshot,
    folder: Path,
) -> Companions:
    """Fetch the companions that *preview* names into *folder*, and those that these need in turn.

    *preview* gets the metadata of those that are known, and the reasons why others are refused: the
    rule is that of a repair, see `refusal_of`.  Raises FetchFailed, BadDistribution, and Unmet if a
    version is not there any more.
    """
    wanted = ApplyOptions(
        name="",
        default_index=options.default_index,
        find_links=options.find_links,
        offline=options.offline,
    )
    settings = session.settings(wanted, None)
    fetcher = Fetcher.for_settings(settings, session.environ)
    fetcher.learn_credentials(settings.default_index)
    source = IndexSource(
        fetcher=fetcher,
        policy=Policy(environment=snapshot.environment),
        default=(settings.default_index,),
        find_links=settings.find_links,
    )
    found = Companions()
    while missing := preview(found.installed, found.refused).companions.items() - {
        (name, there.version) for name, there in found.installed.items()
    }:
        versions = dict(sorted(missing))
        refused = _refused(versions, snapshot, source)
        if refused:
            found = replace(found, refused={**found.refused, **refused})
            continue
        session.reporter.stage(f"Fetching {count(len(versions), 'distribution')} to put back")
        artifacts = [_artifact(source, name, version) for name, version in versions.items()]
        wheels = fetcher.download(artifacts, folder, session.reporter)
        found = _with(found, artifacts, wheels, versions)
    return found


def _refused(
    versions: Mapping[NormalizedName, str], snapshot: Snapshot, source: IndexSource
) -> dict[NormalizedName, str]:
    """Return those of *versions* that must not replace what is installed, each with the reason.

    The index has to list the installed version.  A file in a folder that the user names is meant.
    """
    found: dict[NormalizedName, str] = {}
    for name, version in versions.items():
        there = snapshot.installed.get(name)
        is_named = any(
            candidate.origin is CandidateOrigin.FIND_LINKS
            for candidate in source.judge(name).candidates
            if candidate.version == Version(version)
        )
        refusal = None if there is None or is_named else refusal_of(there, source, by="a rollback")
        if refusal is not None:
            found[name] = refusal
    return found


def _artifact(source: IndexSource, name: NormalizedName, version: str) -> Artifact:
    judged = source.judge(name)
    wheels = [
        file
        for candidate in judged.candidates
        if candidate.version == Version(version)
        for file in candidate.files
        if file.is_wheel
    ]
    if not wheels and name in source.unreached:
        raise source.unreached[name]
    if not wheels:
        where = ", ".join(judged.where) or "the index"
        raise Unmet(
            f"`{name}` {version} cannot be put back: {where} has no wheel of it that fits this Python",
            hint="`--find-links` names a folder that has it; `--leave-broken` (`leave_broken=True`) undoes"
            " the change without it",
        )
    file = wheels[0]
    return Artifact(
        name=name,
        version=version,
        filename=file.filename,
        url=file.url,
        hashes=dict(file.hashes),
        size=file.size,
        index=file.index,
    )


def _with(
    found: Companions,
    artifacts: list[Artifact],
    wheels: list[Path],
    versions: Mapping[NormalizedName, str],
) -> Companions:
    installed = dict(found.installed)
    for artifact, wheel in zip(artifacts, wheels, strict=True):
        with wheel.open("rb") as stream:
            metadata = read_wheel_metadata(stream, wheel.name)
        metadata.check(artifact.name, Version(artifact.version), wheel.name)
        installed[artifact.name] = Installed(
            name=artifact.name,
            version=versions[artifact.name],
            requires=metadata.requires,
            extras=metadata.extras,
        )
    return replace(
        found,
        artifacts={**found.artifacts, **{one.name: one for one in artifacts}},
        wheels={**found.wheels, **{one.name: path for one, path in zip(artifacts, wheels, strict=True)}},
        installed=installed,
    )
