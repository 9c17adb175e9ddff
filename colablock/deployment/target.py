"""What a lock says about the machines that it can be installed on.  No I/O here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from colablock._common.limits import SHOWN
from colablock._common.text import count, option_words, printable
from colablock._common.urls import local_path
from colablock._vendor.packaging.pylock import Package, PackageArchive, PackageSdist, PackageWheel, Pylock
from colablock._vendor.packaging.utils import InvalidWheelFilename, parse_wheel_filename
from colablock.environment.markers_and_tags import environment_for
from colablock.errors import InvalidInput
from colablock.lockfile.pins import applicable_packages
from colablock.lockfile.tool_table import DELTA, table_of

if TYPE_CHECKING:
    from colablock._vendor.packaging.tags import Tag

__all__ = [
    "DeployTarget",
    "Deployment",
    "built_from_sdist",
    "checked_name",
    "installable",
    "is_for_cuda",
    "target_of",
]

_F = TypeVar("_F", PackageWheel, PackageSdist, PackageArchive)
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

    *additions* are requirements beside those of the matrix.  *needs_card* says that the lock has builds for
    CUDA.
    """

    matrix: str
    variant: str | None
    additions: tuple[str, ...] = ()
    python: str
    platform: str
    machine: str
    glibc: tuple[int, int]
    needs_card: bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The options of an apply that choose what the lock was made for, whatever card is there."""
        return option_words({"--variant": self.variant, "--with": list(self.additions)})


def target_of(lock: Pylock) -> DeployTarget:
    """Return the target of *lock*.

    Raises InvalidInput for a lock of another tool, for one runtime, or for another system than Linux.
    """
    table = table_of(lock)
    matrix, python, platform = (str(table.get(key) or "") for key in ("matrix", "python", "platform"))
    if not (_NAME.fullmatch(matrix) and python and platform):
        raise InvalidInput(
            "the lock does not say for which matrix, Python and platform it is",
            hint="Make it with `colablock lock NAME`",
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
        additions=tuple(map(str, table.get("with") or ())),
        python=short,
        platform=platform,
        machine=found[3],
        glibc=(int(found[1]), int(found[2])),
        needs_card=any(is_for_cuda(str(one.name), str(one.version)) for one in lock.packages),
    )


def checked_name(name: str) -> str:
    """Return the *name* of a file.  Raises InvalidInput for one that would end a line or hide text."""
    if printable(name) != name:
        raise InvalidInput(
            f"`{printable(name)[:SHOWN]}` has characters that are not shown, which an export cannot name",
            hint="Give it another name",
        )
    return name


def is_for_cuda(name: str, version: str) -> bool:
    """Whether a distribution is a build for CUDA: ``torch 2.9.0+cu128``, ``nvidia-cublas-cu12 12.8``."""
    return name.startswith("nvidia-") or re.search(r"\+cu\d", version) is not None


def installable(lock: Pylock, target: DeployTarget) -> Pylock:
    """Return *lock* with files that any machine can install: those of an index, by URL, or beside the lock.

    A file in a folder of this machine becomes one beside the lock, with an absolute path.  One that no index
    lists becomes a direct reference.  Raises InvalidInput if a package is an archive of its sources or a
    folder: nobody has said that it may be built.
    """
    without = [str(package.name) for package in applicable_packages(lock) if not _has_files(package)]
    if without:
        names = ", ".join(f"`{printable(name)}`" for name in without)
        raise InvalidInput(
            f"the lock has neither a wheel nor an sdist of {names}"[:1000],
            hint="Give an archive a name and a version in a matrix (`[packages.NAME]`): colablock makes its"
            " wheel, which lies beside the lock",
        )
    tags = environment_for(target.python, target.platform).tags
    return replace(lock, packages=[_installable(package, tags) for package in lock.packages])


def built_from_sdist(lock: Pylock) -> list[str]:
    """Return the packages of an `installable` lock that have to be built, which its matrix allows; sorted."""
    return sorted(
        str(package.name)
        for package in applicable_packages(lock)
        if not package.wheels and (package.archive is None or not _is_wheel(package.archive))
    )


def _has_files(package: Package) -> bool:
    archive = package.archive
    return bool(package.wheels or package.sdist) or (archive is not None and _is_wheel(archive))


def _is_wheel(archive: PackageArchive) -> bool:
    return (archive.url or archive.path or "").partition("#")[0].endswith(".whl")


def _installable(package: Package, tags: tuple[Tag, ...]) -> Package:
    archive = _beside(package.archive) if package.archive is not None else None
    if archive is not None and archive.path is not None and _is_wheel(archive):
        wheel = PackageWheel(path=archive.path, size=archive.size, hashes=archive.hashes)
        return replace(package, archive=None, wheels=[wheel])
    wheels = [_beside(wheel) for wheel in package.wheels or ()]
    sdist = _beside(package.sdist) if package.sdist is not None else None
    files: list[PackageWheel | PackageSdist] = [*wheels, *([sdist] if sdist is not None else [])]
    if package.index is None and files and not any(file.path for file in files):
        best = _best(wheels, tags) if wheels else files[0]
        archive = PackageArchive(url=best.url, size=best.size, hashes=best.hashes)
        return replace(package, wheels=None, sdist=None, archive=archive)
    return replace(package, wheels=wheels or None, sdist=sdist)


def _beside(file: _F) -> _F:
    path = local_path(file.url) if file.url else None
    return replace(file, url=None, path=str(path)) if path is not None else file


def _best(wheels: list[PackageWheel], tags: tuple[Tag, ...]) -> PackageWheel:
    """Return the wheel that an installer would choose for *tags*; the first if none fits."""
    ranks = {tag: rank for rank, tag in enumerate(tags)}

    def rank(wheel: PackageWheel) -> int:
        try:
            return min(ranks.get(tag, len(ranks)) for tag in parse_wheel_filename(wheel.filename)[3])
        except InvalidWheelFilename:
            return len(ranks)

    return min(wheels, key=rank)
