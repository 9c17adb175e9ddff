"""Matrices in memory, and the preparer of the wheels of their resolution."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.markers_and_tags import Environment
from colablock.index.build import Builder
from colablock.index.finder import IndexSource
from colablock.matrix.model import Matrix, PackageEntry
from colablock.network.fetcher import Fetcher
from colablock.planning.wheels import WheelPreparer
from colablock.resolver.model import Request, Resolution
from colablock.resolver.resolver import resolve

__all__ = ["entry", "matrix_of", "prepared"]


def entry(name: str, **facts: Any) -> PackageEntry:
    """Return the matrix entry of a project."""
    return PackageEntry(name=canonicalize_name(name), path=f"packages.{name}", **facts)


def matrix_of(*packages: PackageEntry, **facts: Any) -> Matrix:
    """Return a matrix with the entries *packages*."""
    return Matrix(name="demo", source="demo.toml", digest="0" * 64, packages=packages, **facts)


def prepared(
    matrix: Matrix,
    environment: Environment,
    *,
    links: Path | None = None,
    index: str | None = None,
    source: Any = None,
) -> tuple[WheelPreparer, Resolution]:
    """Resolve *matrix* over the folder *links* or an index; return the preparer of the wheels, too.

    Without an index the resolution is offline.
    """
    find_links = [] if links is None else [str(links)]
    fetcher = Fetcher(os.environ, offline=index is None)
    builder = Builder(
        python=sys.executable,
        environment=environment,
        cache=fetcher.cache,
        environ=os.environ,
        find_links=find_links,
        offline=index is None,
    )
    source = source or IndexSource.for_matrix(
        matrix,
        environment=environment,
        fetcher=fetcher,
        default_index=index or Path("/no-index").as_uri(),
        find_links=find_links,
        build=builder,
    )
    preparer = WheelPreparer(
        source=source,
        fetcher=fetcher,
        builder=builder,
        entries={one.name: one for one in matrix.packages},
        allow_build=matrix.options.allow_build,
    )
    return preparer, resolve(Request(environment=environment, roots=matrix.packages), source)
