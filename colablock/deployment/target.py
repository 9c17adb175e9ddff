"""What a lock says about the machines that it can be installed on.  No I/O here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from colablock._common.limits import SHOWN
from colablock._common.text import count, printable
from colablock._common.urls import local_path
from colablock._vendor.packaging.pylock import Package, PackageArchive, PackageWheel, Pylock
from colablock._vendor.packaging.utils import InvalidWheelFilename, parse_wheel_filename
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import InvalidInput
from colablock.lockfile.pins import applicable_packages
from colablock.lockfile.tool_table import DELTA, table_of

if TYPE_CHECKING:
    from colablock._vendor.packaging.tags import Tag

__all__ = ["DeployTarget", "Deployment", "installable", "is_for_cuda", "target_of"]

_GLIBC = re.compile(r"manylinux_(\d{1,3})_(\d{1,3})_([a-z0-9_]{1,32})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Deployment(Enum):
    """The files that a lock can be exported to, to set its stack up elsewhere."""

    DOCKERFILE = "dockerfile"
    SKYPILOT = "skypilot"
    SLURM = "slurm"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployTarget:
    """The target of a complete lock: *python* is ``3.12``, *machine* ``x86_64``, *glibc* ``(2, 35)``.

    *needs_card* says that the lock has builds for CUDA.
    """

    matrix: str
    variant: str | None
    python: str
    platform: str
    machine: str
    glibc: tuple[int, int]
    needs_card: bool


def target_of(lock: Pylock) -> DeployTarget:
    """Return the target of *lock*.

    Raises InvalidInput for a lock of another tool, for one runtime, or for another system than Linux.
    """
    table = table_of(lock)
    matrix, python, platform = (str(table.get(key) or "") for key in ("matrix", "python", "platform"))
    if not (_NAME.fullmatch(matrix) and python and platform):
        raise InvalidInput(
            "the lock does not say for which matrix, Python and platform it is",
            hint="Make it with `colablock lock`",
        )
    if table.get("kind") == DELTA or table.get("assumes"):
        assumed = count(len(table.get("assumes") or ()), "installed distribution")
        raise InvalidInput(
            f"the lock assumes {assumed} of one runtime, which other machines do not have",
            hint="Use a complete lock: omit `--runtime`, and name the target with `--python-version` and"
            " `--platform`",
        )
    short = environment_for(python, platform).short
    found = _GLIBC.fullmatch(platform)
    if found is None:
        raise InvalidInput(
            f"the lock is for `{printable(platform)[:SHOWN]}`, and these machines run Linux with glibc",
            hint="Name such a target: `--platform manylinux_2_35_x86_64`",
        )
    return DeployTarget(
        matrix=matrix,
        variant=table.get("variant"),
        python=short,
        platform=platform,
        machine=found[3],
        glibc=(int(found[1]), int(found[2])),
        needs_card=any(is_for_cuda(str(one.name), str(one.version)) for one in lock.packages),
    )


def is_for_cuda(name: str, version: str) -> bool:
    """Whether a distribution is a build for CUDA: ``torch 2.9.0+cu128``, ``nvidia-cublas-cu12 12.8``."""
    return name.startswith("nvidia-") or re.search(r"\+cu\d", version) is not None


def installable(lock: Pylock, target: DeployTarget) -> Pylock:
    """Return *lock* with files that any machine can install: wheels of an index, by URL, or beside the lock.

    A wheel in a folder of this machine becomes one beside the lock, with an absolute path.  A wheel that no
    index lists becomes a direct reference.  Raises InvalidInput if a package has no wheel: a build runs code
    that the lock does not pin.
    """
    without = [str(package.name) for package in applicable_packages(lock) if not _has_wheel(package)]
    if without:
        names = ", ".join(f"`{printable(name)}`" for name in without)
        raise InvalidInput(
            f"the lock has no wheel of {names}: a build would run code that the lock does not pin"[:1000],
            hint="Lock versions that have wheels, or give an archive a name with `[packages]` in a matrix, so"
            " that colablock builds its wheel beside the lock",
        )
    tags = environment_for(target.python, target.platform).tags
    return replace(lock, packages=[_installable(package, tags) for package in lock.packages])


def _has_wheel(package: Package) -> bool:
    archive = package.archive
    return bool(package.wheels) or (
        archive is not None and (archive.url or archive.path or "").partition("#")[0].endswith(".whl")
    )


def _installable(package: Package, tags: tuple[Tag, ...]) -> Package:
    wheels = [_beside(wheel) for wheel in package.wheels or ()]
    if package.index is None and wheels and not any(wheel.path for wheel in wheels):
        best = _best(wheels, tags)
        archive = PackageArchive(url=best.url, size=best.size, hashes=best.hashes)
        return replace(package, wheels=None, sdist=None, archive=archive)
    return replace(package, wheels=wheels) if wheels else package


def _beside(wheel: PackageWheel) -> PackageWheel:
    path = local_path(wheel.url) if wheel.url else None
    return replace(wheel, url=None, path=str(path)) if path is not None else wheel


def _best(wheels: list[PackageWheel], tags: tuple[Tag, ...]) -> PackageWheel:
    """Return the wheel that an installer would choose for *tags*; the first if none fits."""
    ranks = {tag: rank for rank, tag in enumerate(tags)}

    def rank(wheel: PackageWheel) -> int:
        try:
            return min(ranks.get(tag, len(ranks)) for tag in parse_wheel_filename(wheel.filename)[3])
        except InvalidWheelFilename:
            return len(ranks)

    return min(wheels, key=rank)
