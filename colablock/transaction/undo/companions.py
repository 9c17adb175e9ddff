"""Distributions that others moved since a change, and that its undo puts back as well."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from colablock.environment.snapshot import Installed, Snapshot
from colablock.planning.plan import Action, Artifact, Plan, Step, Target
from colablock.transaction.disk_space import check_room, more_room, unpacked_size
from colablock.transaction.history import STAGE
from colablock.transaction.staging import Staged, stage

if TYPE_CHECKING:
    from colablock._common.reporter import Reporter
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.environment.site import Site

__all__ = ["Companions", "current_of", "stage_companions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """The distributions to put back: the file of each, the wheel on disk, and its metadata.

    *refused* says why others are not: the index may have another project of that name.
    """

    artifacts: Mapping[NormalizedName, Artifact] = field(default_factory=dict)
    wheels: Mapping[NormalizedName, Path] = field(default_factory=dict)
    installed: Mapping[NormalizedName, Installed] = field(default_factory=dict)
    refused: Mapping[NormalizedName, str] = field(default_factory=dict)


def current_of(names: Iterable[NormalizedName], site: Site, snapshot: Snapshot) -> tuple[Installed, ...]:
    """Return the installed distributions of *site* with these *names*."""
    found = (snapshot.installed.get(name) for name in names)
    return tuple(
        there
        for there in found
        if there is not None and there.path and site.holds(os.path.realpath(there.path))
    )


def stage_companions(
    companions: Companions,
    names: Iterable[NormalizedName],
    *,
    site: Site,
    state: Path,
    environ: Mapping[str, str],
    reporter: Reporter,
) -> Staged | None:
    """Unpack those of *companions* with these *names* in the state folder; None if there are none.

    Raises BadDistribution or Unmet.
    """
    chosen = sorted(names)
    if not chosen:
        return None
    check_room(unpacked_size(companions.wheels[name] for name in chosen), state, hint=more_room(site))
    plan = Plan(
        matrix="",
        matrix_digest="",
        variant=None,
        target=Target.KERNEL,
        why_target="",
        python=site.python,
        python_version="",
        steps=tuple(_step(companions.artifacts[name]) for name in chosen),
    )
    return stage(
        plan,
        companions.wheels,
        python=site.python,
        into=state / STAGE,
        environ=environ,
        reporter=reporter,
        site=site,
    )


def _step(artifact: Artifact) -> Step:
    return Step(
        action=Action.INSTALL,
        name=artifact.name,
        reason="put back",
        version=artifact.version,
        artifact=artifact,
    )
