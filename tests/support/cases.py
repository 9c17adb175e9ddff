"""A resolver case: one TOML file under ``tests/cases`` with an index and the expected result.

::

    about = "what the case shows"
    python = "3.12"                                 # of the target; so are the next two
    platform = "manylinux_2_35_x86_64"
    requires-python = ">=3.10"                      # of the matrix
    require = ["app>=1", "lib @ {local}/lib-1.0-py3-none-any.whl"]
    constraints = ["other<2"]
    prerelease = "if-necessary-or-explicit"
    allow-build = ["app"]
    exclude-newer = "2024-09-01T00:00:00Z"
    find-links = true                               # the local folder counts as --find-links
    clutter = ["app-1.0.egg"]                       # further names on the index page
    without-uv = "why only our own resolver is asked"
    server = { metadata = false }                   # switches of the IndexServer

    [index."app 1.0"]                               # one release; [local."app 1.0"]: in the local folder
    needs = ["lib>=1"]
    extras = ["fast"]
    requires-python = ">=3.10"
    tags = ["cp312-cp312-manylinux_2_17_x86_64"]    # a wheel for each; default: one py3-none-any
    sdist = "static"                                # or "built", or "legacy" (name not normalized)
    yanked = "reason"
    yanked-files = { "app-1.0-py3-none-any.whl" = "reason" }
    uploaded = "2024-08-01T00:00:00Z"               # "": no upload time
    page-says-python = false                        # only the metadata tells Requires-Python

    [versions.app]                                  # releases 1.0, 1.1, ... with {i} put in
    count = 40
    needs = ["lib==1.{i}"]

    [expect]
    unique = true                                   # only one answer is right
    pins = { app = "1.0" }                          # or: unsatisfiable = true, names = ["in the report"]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.server import FROM_FILE, UPLOAD_TIME, IndexServer
from tests.support.wheels import make_sdist, make_wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Expected", "Release", "ResolverCase", "ServedCase", "load_case"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One version of a project, and what the index says about it."""

    name: str
    version: str
    needs: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    requires_python: str | None = None
    tags: tuple[str, ...] = ()
    sdist: str | None = None
    yanked: str | bool = False
    yanked_files: Mapping[str, str] = field(default_factory=dict)
    uploaded: str = UPLOAD_TIME
    page_says_python: bool = True

    def write(self, folder: Path) -> list[Path]:
        """Write the files of this release into *folder*."""
        common: dict[str, Any] = {
            "requires": self.needs,
            "extras": self.extras,
            "requires_python": self.requires_python,
        }
        tags = self.tags or (() if self.sdist else ("py3-none-any",))
        paths = [make_wheel(folder, self.name, self.version, tag=tag, **common) for tag in tags]
        if self.sdist:
            old_name = self.sdist == "legacy"
            paths.append(
                make_sdist(
                    folder,
                    self.name,
                    self.version,
                    static=self.sdist != "built",
                    legacy_name=old_name,
                    **common,
                )
            )
        return paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The expected result: pins, or a conflict report that contains *names*."""

    unsatisfiable: bool = False
    names: tuple[str, ...] = ()
    unique: bool = False
    pins: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverCase:
    """One file under ``tests/cases``."""

    about: str
    require: tuple[str, ...]
    index: tuple[Release, ...]
    local: tuple[Release, ...]
    expect: Expected
    python: str = "3.12"
    platform: str = "manylinux_2_35_x86_64"
    requires_python: str = ""
    constraints: tuple[str, ...] = ()
    prerelease: str = "if-necessary-or-explicit"
    allow_build: tuple[str, ...] = ()
    exclude_newer: str | None = None
    find_links: bool = False
    clutter: tuple[str, ...] = ()
    without_uv: str | None = None
    server: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def world(self, folder: Path) -> Iterator[ServedCase]:
        """Write the files of the case under *folder*, and serve them."""
        remote, local = folder / "index", folder / "local"
        for place in (remote, local):
            place.mkdir()
        for name in self.clutter:
            (remote / name).write_bytes(b"not what it says")
        for release in self.local:
            release.write(local)
        with IndexServer(remote, **self.server) as server:
            for release in self.index:
                for path in release.write(remote):
                    server.set(
                        path.name,
                        yanked=release.yanked_files.get(path.name, release.yanked),
                        upload_time=release.uploaded or None,
                        requires_python=FROM_FILE if release.page_says_python else None,
                    )
            require = tuple(line.format(local=local.as_uri()) for line in self.require)
            yield ServedCase(case=self, server=server, local=local, require=require)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCase:
    """A case whose index is served.  The paths in *require* are those of the local folder."""

    case: ResolverCase
    server: IndexServer
    local: Path
    require: tuple[str, ...]


def load_case(path: Path) -> ResolverCase:
    """Read a case file.  An unknown key is an error."""
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    index = [*_releases(table.pop("index", {})), *_series(table.pop("versions", {}))]
    local = _releases(table.pop("local", {}))
    expect = Expected(**_fields(table.pop("expect")))
    return ResolverCase(index=tuple(index), local=tuple(local), expect=expect, **_fields(table))


def _releases(tables: Mapping[str, Mapping[str, Any]]) -> list[Release]:
    keys = [key.split() for key in tables]
    return [
        Release(name=name, version=version, **_fields(table))
        for (name, version), table in zip(keys, tables.values(), strict=True)
    ]


def _series(tables: Mapping[str, Mapping[str, Any]]) -> Iterator[Release]:
    for name, table in tables.items():
        needs: Sequence[str] = table.get("needs", ())
        for i in range(table["count"]):
            yield Release(name=name, version=f"1.{i}", needs=tuple(line.format(i=i) for line in needs))


def _fields(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.replace("-", "_"): tuple(value) if isinstance(value, list) else value
        for key, value in table.items()
    }
