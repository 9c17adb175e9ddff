"""What of an interpreter a solve depends on: markers (PEP 508) and tags (PEP 425)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from colablock._vendor.packaging.tags import Tag
from colablock._vendor.packaging.version import Version

__all__ = ["Environment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The markers and the wheel tags (best first) of one Python on one platform."""

    markers: Mapping[str, str]
    tags: tuple[Tag, ...]

    @property
    def python_version(self) -> Version:
        """The full Python version, such as ``3.12.11``."""
        return Version(self.markers["python_full_version"])

    # TODO(snapshot helper): from_facts(), for_target(python_version, platform)
