"""A second index that has a higher version of every name of a shipped matrix is never chosen.

The first index has what the shipped locks list, with names spelled in other ways in the requirements.
The second one has 999.0 of each name under two spellings, and the locked version with a local label,
which sorts above it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor import tomli_w
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.cli.main import main
from colablock.errors import ExitCode
from colablock.lockfile.store import LockHead, read_head
from colablock.runtimes.catalog import recorded_distributions
from tests.support.paths import ROOT
from tests.support.recorded_index import axolotl_archive
from tests.support.server import Facts, IndexServer, project_of
from tests.support.wheels import metadata_text, sdist_bytes, wheel_bytes
from tests.support.world import ARCHIVES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OLD = Facts(upload_time="2020-01-01T00:00:00Z", requires_python=None)  # older than any cutoff
BAIT = "bait"


def spelled(name: str) -> str:
    """Return another spelling of a name: ``Foo._Bar`` for ``foo-bar``."""
    return "._".join(part.capitalize() for part in name.split("-"))


def respelled(requirement: str) -> str:
    parsed = Requirement(requirement)
    parsed.name = spelled(canonicalize_name(parsed.name))
    return str(parsed)


@dataclass(frozen=True)
class Release:
    """A release: its file, and what it requires."""

    name: str
    version: str
    filename: str
    requires: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()


class Releases:
    """A `Source` of small wheels."""

    def __init__(self, releases: Iterable[Release]) -> None:
        self._releases = {release.filename: release for release in releases}
        self._of: dict[str, dict[str, Facts]] = {}
        for filename in self._releases:
            self._of.setdefault(project_of(filename), {})[filename] = OLD

    def projects(self) -> Iterable[str]:
        return self._of

    def files(self, project: str) -> Mapping[str, Facts] | None:
        return self._of.get(project)

    def content(self, filename: str) -> bytes | None:
        release = self._releases.get(filename)
        if release is None:
            return None
        described: dict[str, Any] = {"requires": release.requires, "extras": release.extras}
        if not filename.endswith(".whl"):
            return sdist_bytes(release.name, release.version, static=True, **described)
        metadata = metadata_text(release.name, release.version, **described)
        return wheel_bytes(filename, name=release.name, version=release.version, metadata=metadata)


@dataclass(frozen=True)
class Shipped:
    """A shipped lock with its head, and the text of its matrix."""

    path: Path

    @cached_property
    def head(self) -> LockHead:
        head = read_head(self.path)
        assert head is not None
        return head

    @property
    def has_packages(self) -> bool:
        return "\n[[packages]]\n" in self.path.read_text("utf-8")

    @cached_property
    def packages(self) -> list[dict[str, Any]]:
        packages: list[dict[str, Any]] = tomllib.loads(self.path.read_text("utf-8"))["packages"]
        return packages

    @cached_property
    def matrix(self) -> dict[str, Any]:
        return tomllib.loads((ROOT / "matrices" / f"{self.head.matrix}.toml").read_text("utf-8"))

    @property
    def variant(self) -> str | None:
        return self.head.variant

    @property
    def argv(self) -> tuple[str, ...]:
        """The options of ``colablock lock`` for the target of the lock."""
        variant = ("--variant", self.variant or "")
        if self.head.runtime is not None:
            return ("--runtime", self.head.runtime, *variant)
        return ("--python-version", self.head.python, "--platform", self.head.platform, *variant)

    @cached_property
    def wanted(self) -> set[str]:
        """The locked names that the matrix declares, or that a locked package requires.

        A name that only the package of another index requires belongs to that index.
        """
        declared = {canonicalize_name(name) for name in self.matrix["packages"]}
        tables = [one.get("tool", {}).get("colablock", {}) for one in self.packages]
        lines = [
            line for table in tables if not table.get("repair") for line in table.get("requires-dist", ())
        ]
        required = {canonicalize_name(Requirement(line).name) for line in lines}
        return {one["name"] for one in self.packages} & (declared | required)

    @property
    def names(self) -> set[str]:
        declared = [self.matrix, *self.matrix["variants"].values()]
        return {canonicalize_name(name) for part in declared for name in part.get("packages", {})} | {
            one["name"] for one in self.packages
        }

    def releases(self) -> Iterator[Release]:
        """Yield what the lock lists, and what the runtime has of the same or other names."""
        for one in self.packages:
            table = one.get("tool", {}).get("colablock", {})
            if "made-from" in table:
                continue
            for file in one.get("wheels") or [one["sdist"]]:
                yield Release(
                    name=one["name"],
                    version=one["version"],
                    filename=file.get("name") or file["url"].rpartition("/")[2],
                    requires=tuple(map(respelled, table.get("requires-dist", ()))),
                    extras=tuple(table.get("extras", ())),
                )
        for item in recorded_distributions(self.head.runtime) if self.head.runtime else ():
            known = item.installed
            yield Release(
                name=known.name,
                version=str(known.version),
                filename=f"{known.name.replace('-', '_')}-{known.version}-py3-none-any.whl",
                requires=tuple(map(str, known.requires)),
                extras=tuple(known.extras),
            )

    def higher(self) -> Iterator[Release]:
        """Yield the releases of the second index."""
        locked = {one["name"]: one["version"].partition("+")[0] for one in self.packages}
        for name in sorted(self.names):
            file_name = name.replace("-", "_")
            versions = {"999.0": file_name, "999.1": file_name.title()}
            if name in locked:
                versions[f"{locked[name]}+evil.999"] = file_name
            for version, written in versions.items():
                yield Release(name=name, version=version, filename=f"{written}-{version}-py3-none-any.whl")
        yield Release(
            name=BAIT,
            version="999.0",
            filename=f"{BAIT}-999.0-py3-none-any.whl",
            requires=tuple(map(spelled, sorted(self.wanted))),
        )


@dataclass(frozen=True)
class Servers:
    first: IndexServer
    second: IndexServer


def for_another_package(servers: Servers, matrix: dict[str, Any], folder: Path) -> dict[str, str]:
    """Name the second index in each variable, in pip.conf, and in the matrix: for one package, and for none.

    That package requires every name that others require.
    """
    evil = servers.second.url
    conf = folder / "pip.conf"
    conf.write_text(f"[global]\nextra-index-url = {evil}\n", encoding="utf-8")
    more = [{"name": "unrelated", "url": evil}, {"name": "second", "url": evil}]
    matrix.setdefault("index", []).extend(more)
    matrix["packages"][BAIT] = {"index": "second"}
    variables = ("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_INDEX")
    return {"PIP_CONFIG_FILE": str(conf), **dict.fromkeys(variables, evil)}


def as_the_default(servers: Servers, matrix: dict[str, Any], folder: Path) -> dict[str, str]:
    """Take every declared package from the first index, and make the second one the default."""
    assert folder.is_dir()
    matrix.setdefault("index", []).append({"name": "first", "url": servers.first.url})
    for part in (matrix, *matrix["variants"].values()):
        entries = part.setdefault("packages", {})
        rebuilt = [
            line for one in entries.values() if isinstance(one, dict) for line in one.get("requires-dist", ())
        ]
        for line in rebuilt:
            name = canonicalize_name(Requirement(line).name)
            if name not in {canonicalize_name(one) for one in matrix["packages"]}:
                entries[name] = {}
        for name, entry in entries.items():
            table = {"version": entry} if isinstance(entry, str) else entry
            if "url" not in table:
                table.setdefault("index", "first")
            entries[name] = {key: value for key, value in table.items() if value != ""}
    return {"COLABLOCK_DEFAULT_INDEX": servers.second.url}


WAYS = {"another package": for_another_package, "the default": as_the_default}
LOCKS = [Shipped(path) for path in sorted((ROOT / "matrices").glob("pylock.*.toml"))]


def of_each_matrix(locks: Iterable[Shipped]) -> list[Shipped]:
    """Return one complete lock for each matrix and variant, and one for its latest runtime with a GPU."""
    chosen: dict[tuple[str, str | None, bool], Shipped] = {}
    for lock in locks:
        if lock.has_packages and (lock.head.runtime is None or lock.head.runtime.endswith("-gpu")):
            chosen[lock.head.matrix, lock.head.variant, lock.head.runtime is None] = lock
    return list(chosen.values())


CHOSEN = of_each_matrix(LOCKS)
# What an installed package requires comes from the default index, so that is not tried with runtimes.
CASES = [
    pytest.param(lock, way, id=f"{lock.path.name.split('.')[1]}-{lock.variant}-{title}")
    for lock in CHOSEN
    for title, way in WAYS.items()
    if lock.head.runtime is None or way is not as_the_default
]


def test_each_matrix_and_variant_is_tried() -> None:
    tried = {(lock.head.matrix, lock.variant) for lock in CHOSEN if lock.head.runtime is None}
    paths = [path for path in (ROOT / "matrices").glob("*.toml") if not path.name.startswith("pylock.")]
    tables = [tomllib.loads(path.read_text("utf-8")) for path in paths]
    assert tried == {(table["name"], variant) for table in tables for variant in table["variants"]}


@pytest.mark.slow
@pytest.mark.parametrize(("shipped", "way"), CASES)
def test_a_second_index_is_never_chosen(
    shipped: Shipped,
    way: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    axolotl_archive(tmp_path / "archives")
    monkeypatch.chdir(tmp_path)
    matrix = tomllib.loads((ROOT / "matrices" / f"{shipped.head.matrix}.toml").read_text("utf-8"))
    named = [index["name"] for index in matrix.get("index", ())]
    with (
        IndexServer(Releases(shipped.releases())) as first,
        IndexServer(Releases(shipped.higher())) as second,
    ):
        environ = {
            "COLABLOCK_CACHE_DIR": str(tmp_path / "cache"),
            "COLABLOCK_HOME": str(tmp_path / "home"),
            "COLABLOCK_DEFAULT_INDEX": first.url,
            "COLABLOCK_MIRRORS": f"{ARCHIVES}={(tmp_path / 'archives').as_uri()}/",
            **{f"COLABLOCK_INDEX_{name.upper().replace('-', '_')}": first.url for name in named},
            **way(Servers(first, second), matrix, tmp_path),
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        path = tmp_path / f"{shipped.head.matrix}.toml"
        path.write_text(tomli_w.dumps(matrix), encoding="utf-8")
        code = main(["lock", str(path), *shipped.argv, "--upgrade", "--output", "-"])
        out, err = capsys.readouterr()
        assert code == ExitCode.DONE, err
        found = {one["name"]: one for one in tomllib.loads(out)["packages"]}
        from_second = {name for name, one in found.items() if second.root in str(one)}
        asked = {request.path for request in second.requests}
    belongs = {BAIT} if way is for_another_package else set()
    assert from_second == belongs
    assert not [name for name, one in found.items() if "evil" in one["version"]]
    if way is for_another_package:
        assert {path for path in asked if BAIT not in path} == set()
    assert found.keys() - belongs <= shipped.names
    print(f"{shipped.path.name} {shipped.variant}: {len(found.keys() - belongs)} names")
