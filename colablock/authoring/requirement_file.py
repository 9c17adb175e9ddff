"""The content of a file of another tool that lists requirements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from colablock._vendor.packaging.requirements import Requirement

__all__ = ["FoundRequirement", "RequirementFile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRequirement:
    """A requirement and its location: ``a.txt:12``, ``pyproject.toml:project.dependencies[0]``.

    *hashes* are those of the accepted files, as ``sha256:...``.  *index* is the required index, if
    the file names one.
    """

    requirement: Requirement
    where: str
    hashes: tuple[str, ...] = ()
    index: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequirementFile:
    """The content of a requirements file and the files it includes, in order.

    *indexes* are used in addition to *default_index*, which is None if the file does not set it.
    *index_names* are the names that the file gives to indexes, by URL.  *find_links* are folders
    and pages with files.  URLs have no user and password.  *requires_python*, *prerelease*,
    *exclude_newer* and *no_binary* are as in a matrix.  *notes* list everything in the file that
    has no field here.
    """

    requirements: tuple[FoundRequirement, ...] = ()
    constraints: tuple[FoundRequirement, ...] = ()
    indexes: tuple[str, ...] = ()
    default_index: str | None = None
    index_names: Mapping[str, str] = field(default_factory=dict)
    find_links: tuple[str, ...] = ()
    requires_python: str | None = None
    prerelease: str | None = None
    exclude_newer: datetime | None = None
    no_binary: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
