"""Undeclared imports of replaced packages, from archives and wheels to findings."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.check.findings import ExaminedDistribution, ImportFinding, import_findings
from colablock.check.import_names import ImportProvider, ImportProviders, modules_of
from colablock.check.reachable_imports import find_reachable_imports
from colablock.check.undeclared_imports import undeclared_import_findings
from colablock.environment.accelerator import Accelerator
from colablock.environment.markers_and_tags import environment_for
from colablock.environment.snapshot import Installed, Snapshot
from colablock.index.candidates import Candidate, CandidateOrigin
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.pylock import make_lock
from colablock.matrix.catalog import find_matrix
from colablock.matrix.model import Matrix, PackageEntry, Train, Verify, select_variant
from colablock.network.settings import read_settings
from colablock.planning.solver import Solver
from colablock.resolver.model import Pin
from tests.support.fetching import received
from tests.support.paths import DATA
from tests.support.recorded_index import IMPORT_NAMES, RecordedIndex
from tests.support.server import IndexServer
from tests.support.small_matrices import entry, matrix_of, prepared
from tests.support.wheels import make_sdist, make_wheel, tar_bytes
from tests.support.world import ARCHIVES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AXOLOTL = tomllib.loads((DATA / "axolotl-0.4.0-imports.toml").read_text(encoding="utf-8"))
SOURCES = {path: text.encode() for path, text in AXOLOTL.items()}
TARGET = environment_for("3.11.9", "manylinux_2_35_x86_64")
OWN = canonicalize_name("own")


# -- axolotl 0.4.0, as the shipped matrix has it

DECLARED = ("fire", "pyyaml", "huggingface-hub")  # what the hand-written recipe installs for it
MISSING = {
    *("addict", "art", "colorama", "evaluate", "fastchat", "gradio", "mlflow", "numba", "optimum", "pynvml"),
    "trl",
}
UNDECLARED = {"huggingface_hub", "pandas", "pkg_resources", "safetensors", "termcolor", "torch", "tqdm"}
# What it imports for some models and some kinds of data only.
OPTIONAL = {
    *("aiobotocore", "deepspeed", "einops", "flash_attn", "gcsfs", "mamba_ssm", "s3fs", "torchdistx"),
    "xformers",
}


def tops(findings: Iterable[ImportFinding], fault: str, severity: str) -> set[str]:
    chosen = (one for one in findings if (one.fault.value, one.severity.value) == (fault, severity))
    return {finding.name.partition(".")[0] for finding in chosen}


def judged(declared: Iterable[str]) -> tuple[ImportFinding, ...]:
    """Return the findings of axolotl beside everything that is recorded, apart from what is optional."""
    providers = {}
    for name, project in RecordedIndex("qlora-2024").recorded.items():
        names = set(project["imports"] or IMPORT_NAMES.get(name, ())) - OPTIONAL
        modules = modules_of([f"{top}.py" for top in names], partial=True)
        providers[NormalizedName(name)] = ImportProvider(
            name=NormalizedName(name), version="1.0", modules=modules
        )
    examined = ExaminedDistribution(
        name=NormalizedName("axolotl"),
        version="0.4.0",
        reachable=find_reachable_imports(SOURCES, ["axolotl.cli.train"], TARGET.markers),
        declared=frozenset(map(canonicalize_name, declared)),
    )
    return import_findings(examined, ImportProviders(providers), {})


def test_the_shipped_matrix_declares_all_that_axolotl_imports(tmp_path: Path) -> None:
    matrix = find_matrix("qlora-2024", environ={}, cwd=tmp_path)
    (entry,) = (entry for entry in matrix.packages if entry.name == "axolotl")
    declared = [requirement.name for requirement in entry.requires_dist or ()]
    findings = judged(declared)
    assert {(finding.fault.value, finding.severity.value) for finding in findings} == {("missing", "notice")}
    assert tops(findings, "missing", "notice") == OPTIONAL


def test_the_declarations_of_axolotl_are_judged_by_the_import_walk() -> None:
    declared = "accelerate addict art bitsandbytes colorama datasets evaluate fire fschat gradio mlflow numba"
    declared += " numpy optimum peft pynvml pyyaml tensorboard tokenizers transformers trl wandb"
    findings = judged(declared.split())
    assert tops(findings, "missing", "error") == set()
    assert tops(findings, "undeclared", "notice") == UNDECLARED
    assert tops(findings, "in-vain", "notice") == {"tensorboard", "tokenizers"}


@pytest.fixture(scope="module")
def recorded() -> Iterator[IndexServer]:
    """The recorded index, its wheels with the modules that axolotl imports of them."""
    owners = {
        top: name
        for name, project in RecordedIndex("qlora-2024").recorded.items()
        for top in project["imports"]
    }
    contents: dict[str, dict[str, str]] = {}
    for one in find_reachable_imports(SOURCES, ["axolotl.cli.train"], TARGET.markers).imports:
        owner = owners.get(one.name.partition(".")[0])
        if owner is not None and "." in one.name:
            contents.setdefault(owner, {})[f"{one.name.replace('.', '/')}/__init__.py"] = ""
    with IndexServer(RecordedIndex("qlora-2024", contents=contents)) as server:
        yield server


@pytest.mark.slow
def test_three_requirements_are_not_enough_for_axolotl(recorded: IndexServer, tmp_path: Path) -> None:
    files = {f"axolotl-0.4.0/src/{path}": text for path, text in SOURCES.items()}
    (tmp_path / "v0.4.0.tar.gz").write_bytes(tar_bytes({"axolotl-0.4.0/setup.py": b"", **files}))
    environ = {
        **os.environ,
        "COLABLOCK_CACHE_DIR": str(tmp_path / "cache"),
        "COLABLOCK_DEFAULT_INDEX": recorded.url,
        "COLABLOCK_MIRRORS": f"{ARCHIVES}={tmp_path.as_uri()}/",
    }
    matrix = select_variant(find_matrix("qlora-2024", environ=environ), Accelerator(), "cu121")
    lines = tuple(map(Requirement, DECLARED))
    packages = (replace(e, requires_dist=lines) if e.name == "axolotl" else e for e in matrix.packages)
    solver = Solver(
        matrix=replace(matrix, packages=tuple(packages)),
        kernel=Snapshot(environment=TARGET, python=sys.executable, prefix="", site="", installed={}),
        settings=read_settings(environ, default_index=None, find_links=(), offline=False),
        environ=environ,
        reporter=Reporter(),
    )
    resolution, preparer = solver.from_nothing(TARGET, "")
    findings = undeclared_import_findings(solver.matrix, resolution.pins, preparer, TARGET)
    assert tops(findings, "missing", "error") == MISSING
    assert tops(findings, "missing", "notice") == OPTIONAL
    assert tops(findings, "undeclared", "notice") >= UNDECLARED - {"huggingface_hub"}
    told = next(finding for finding in findings if finding.name.startswith("termcolor"))
    assert told.text.endswith("is installed only because fire requires it")
    assert findings[0].to_json() == {
        "package": "axolotl",
        "version": "0.4.0",
        "kind": "missing",
        "severity": "error",
        "name": "gradio",
        "where": "axolotl/cli/__init__.py:10",
        "detail": "imports `gradio` (axolotl/cli/__init__.py:10), which nothing in the stack provides",
    }


# -- small packages


def own(folder: Path, files: Mapping[str, str], *requires: str, **facts: Any) -> PackageEntry:
    """Return an entry of an archive of *files*, with its requirements replaced."""
    path = folder / "own-1.0.tar.gz"
    path.write_bytes(tar_bytes({f"own-1.0/{name}": text.encode() for name, text in files.items()}))
    lines = tuple(map(Requirement, requires))
    return entry("own", url=path.as_uri(), version="1.0", requires_dist=lines, **facts)


def told(matrix: Matrix, folder: Path, **how: Any) -> list[str]:
    preparer, resolution = prepared(matrix, TARGET, links=folder / "links", **how)
    findings = undeclared_import_findings(matrix, resolution.pins, preparer, TARGET)
    return [f"{finding.severity.value} {finding.fault.value} {finding.name}" for finding in findings]


def test_only_packages_with_replaced_requirements_are_examined(tmp_path: Path) -> None:
    make_wheel(tmp_path / "links", "careless", "1.0", modules={"careless.py": "import nowhere\n"})
    replaced = own(tmp_path, {"own.py": "import careless, nowhere\n"}, "careless")
    assert told(matrix_of(entry("careless"), replaced), tmp_path) == ["error missing nowhere"]
    assert told(matrix_of(entry("careless")), tmp_path) == []


def test_an_archive_without_buildable_modules_is_an_error(tmp_path: Path) -> None:
    hidden = own(tmp_path, {"setup.py": "", "src/own/__init__.py": ""})
    preparer, resolution = prepared(matrix_of(hidden), TARGET, links=tmp_path / "links")
    (finding,) = undeclared_import_findings(matrix_of(hidden), resolution.pins, preparer, TARGET)
    assert finding.severity.value == "error"
    assert finding.text == (
        "own 1.0 installs no modules: `own-1.0.tar.gz` contains no importable module"
        " at its top (no `source-root` is given)"
    )
    assert told(matrix_of(replace(hidden, source_root="src")), tmp_path) == []


@pytest.mark.parametrize("requires", [None, ()])
def test_a_wheel_without_modules_is_an_error(tmp_path: Path, requires: tuple[()] | None) -> None:
    wheel = make_wheel(tmp_path, "own", "1.0", modules={})
    hollow = entry("own", url=wheel.as_uri(), requires_dist=requires)
    assert told(matrix_of(hollow), tmp_path) == ["error no-modules own"]


FILES = {
    "src/own/__init__.py": "",
    "src/own/cli.py": "import of_cli\n",
    "src/own/job.py": "import of_job\n",
    "src/own/api.py": "import of_api\n",
    "src/own/idle.py": "import of_idle\n",
    "src/other.py": "import of_other\n",
    "pyproject.toml": '[project]\nname = "own"\nversion = "1.0"\n[project.scripts]\nrun = "own.cli:main"\n',
}


@pytest.mark.parametrize(
    ("proofs", "files", "reached"),
    [
        ({}, FILES, ["of_cli"]),
        ({"imports": ("own.api:run", "torch")}, FILES, ["of_api", "of_cli"]),
        ({"commands": (("run", "--help"),)}, FILES, ["of_cli"]),
        ({"commands": (("accelerate", "launch", "-m", "own.job"),)}, FILES, ["of_cli", "of_job"]),
        ({"imports": ("torch",)}, {**FILES, "pyproject.toml": ""}, ["of_other"]),
    ],
)
def test_the_walk_enters_a_package_at_its_used_modules(
    tmp_path: Path, proofs: Any, files: Mapping[str, str], reached: list[str]
) -> None:
    matrix = matrix_of(own(tmp_path, files, source_root="src"), verify=Verify(**proofs))
    assert sorted(told(matrix, tmp_path)) == [f"error missing {name}" for name in reached]


def test_the_training_runner_is_an_entry_point(tmp_path: Path) -> None:
    files = {"axolotl/__init__.py": "", "axolotl/cli/train.py": "import nowhere\n"}
    matrix = matrix_of(own(tmp_path, files), train=Train(runner="axolotl"))
    assert told(matrix, tmp_path) == ["error missing nowhere"]


def test_a_missing_entry_point_is_an_error(tmp_path: Path) -> None:
    matrix = matrix_of(own(tmp_path, {"own/__init__.py": ""}), verify=Verify(imports=("own.gone",)))
    preparer, resolution = prepared(matrix, TARGET, links=tmp_path / "links")
    (finding,) = undeclared_import_findings(matrix, resolution.pins, preparer, TARGET)
    assert finding.text == "own 1.0 is started at `own.gone`, which it does not have itself"
    assert finding.where == ""


def test_an_sdist_provides_its_modules(tmp_path: Path) -> None:
    make_sdist(tmp_path / "links", "flat", "1.0", modules={"flat/__init__.py": ""})
    source = {"own.py": "import flat.inside, nowhere\n"}
    matrix = matrix_of(own(tmp_path, source, "flat"), entry("flat"))
    matrix = replace(matrix, options=replace(matrix.options, allow_build=frozenset({"flat"})))
    assert told(matrix, tmp_path) == ["error missing nowhere"]


def test_only_the_file_list_of_a_remote_wheel_is_fetched(tmp_path: Path) -> None:
    links = tmp_path / "links"
    wheel = make_wheel(
        links,
        "large",
        "1.0",
        modules={"large/__init__.py": "", "large/data.py": f"# {os.urandom(200_000).hex()}"},
    )
    make_wheel(links, "aside", "1.0")
    replaced = own(tmp_path, {"own.py": "import large.data\n"}, "large")
    matrix = matrix_of(replaced, entry("aside"))
    with IndexServer(links) as server:
        preparer, resolution = prepared(matrix, TARGET, index=server.url)
        before = len(server.requests)
        fetched = received(preparer.fetcher)
        assert undeclared_import_findings(matrix, resolution.pins, preparer, TARGET) == ()
        asked = [request.path for request in server.requests[before:]]
        assert asked
        assert all(path.endswith(wheel.name) for path in asked)  # `aside` is not looked at: nothing is open
        assert received(preparer.fetcher) - fetched < wheel.stat().st_size / 2
        before = len(server.requests)
        assert undeclared_import_findings(matrix, resolution.pins, preparer, TARGET) == ()
        assert len(server.requests) == before


def test_undeclared_imports_are_found_from_a_lock(tmp_path: Path) -> None:
    make_wheel(tmp_path / "links", "used", "1.0")
    make_wheel(tmp_path / "links", "idle", "1.0")
    matrix = matrix_of(own(tmp_path, {"own.py": "import used, nowhere\n"}, "used", "idle"))
    preparer, resolution = prepared(matrix, TARGET, links=tmp_path / "links")
    lock = make_lock(
        resolution, matrix, wheels=preparer.wheels_beside(resolution, tmp_path / "pylock.demo.toml")
    )
    locked = LockSource(lock=lock, folder=tmp_path, environment=TARGET)
    expected = ["error missing nowhere", "notice in-vain idle"]
    assert told(matrix, tmp_path, source=locked) == told(matrix, tmp_path) == expected


def test_installed_distributions_provide_their_top_level_names(tmp_path: Path) -> None:
    matrix = matrix_of(own(tmp_path, {"own.py": "import there.deep, nowhere\n"}))
    preparer, resolution = prepared(matrix, TARGET, links=tmp_path / "links")
    name = NormalizedName("there")
    installed = Installed(name=name, version="2.0", import_names=("there",))
    candidate = Candidate(
        name=name, version=Version("2.0"), origin=CandidateOrigin.INSTALLED, installed=installed
    )
    pins = {**resolution.pins, name: Pin(name=name, candidate=candidate)}
    texts = [finding.text for finding in undeclared_import_findings(matrix, pins, preparer, TARGET)]
    assert texts == [
        "own 1.0 imports `nowhere` (own.py:1), which nothing in the stack provides",
        "own 1.0 imports `there.deep` (own.py:1), undeclared: no declared requirement brings in there 2.0",
    ]
