"""Findings about imports: small packages as data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from colablock._vendor.packaging.utils import NormalizedName
from colablock.check.findings import ExaminedDistribution, ImportFinding, import_findings
from colablock.check.import_names import ImportProvider, ImportProviders, modules_of
from colablock.check.reachable_imports import ReachableImports, find_reachable_imports
from colablock.environment.markers_and_tags import environment_for
from tests.support.paths import DATA

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.stdlib

FOLDER = DATA / "undeclared_imports"
CASES = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.toml"))}


def reached(case: Mapping[str, Any]) -> ReachableImports:
    files = {path: text.removeprefix("\n").encode() for path, text in case["files"].items()}
    markers = environment_for(case.get("python", "3.11.9"), "linux_x86_64").markers
    return find_reachable_imports(files, case["entry"], markers)


def stack(case: Mapping[str, Any]) -> ImportProviders:
    found = {}
    for text, facts in case.get("stack", {}).items():
        name, version = text.split()
        modules = modules_of(facts.get("modules", ()), partial=facts.get("partial", False))
        found[NormalizedName(name)] = ImportProvider(
            name=NormalizedName(name), version=version, modules=modules
        )
    return ImportProviders(found)


def found(case: Mapping[str, Any]) -> tuple[ImportFinding, ...]:
    examined = ExaminedDistribution(
        name=NormalizedName("pkg"),
        version="1.0",
        reachable=reached(case),
        declared=frozenset(map(NormalizedName, case["declared"])),
    )
    requires = {
        NormalizedName(text.split()[0]): map(NormalizedName, facts.get("requires", ()))
        for text, facts in case.get("stack", {}).items()
    }
    return import_findings(examined, stack(case), requires)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "imports" in case])
def test_the_import_walk_reaches_the_expected_modules(name: str) -> None:
    imports = reached(CASES[name]).imports
    walked = list(dict.fromkeys(f"{one.kind.name.lower()} {one.name} {one.where}" for one in imports))
    assert sorted(walked) == sorted(CASES[name]["imports"])
    assert [line.split()[0] for line in walked] == sorted(
        (line.split()[0] for line in walked), key=["hard", "guarded", "deferred"].index
    )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "findings" in case])
def test_the_findings_are_the_expected_ones(name: str) -> None:
    findings = found(CASES[name])
    told = [f"{f.severity.value} {f.fault.value} {f.name} {f.where or '-'}" for f in findings]
    assert told == CASES[name]["findings"]
    if "texts" in CASES[name]:
        assert [finding.text for finding in findings] == CASES[name]["texts"]


@pytest.mark.parametrize(
    "source",
    [
        "import x\nvalue = " + "1 + " * 900 + "1\nimport y\n",
        "import x\nvalue = " + "[" * 90 + "]" * 90 + "\nimport y\n",
    ],
)
def test_a_deeply_nested_expression_is_walked(source: str) -> None:
    walked = reached({"files": {"pkg.py": source}, "entry": ["pkg"]})
    assert [one.name for one in walked.imports] == ["x", "y"]


@pytest.mark.parametrize("source", ["import x\0", "if a: pass\n" + "elif b: pass\n" * 3000, "(" * 5000])
def test_unparsable_sources_are_reported(source: str) -> None:
    walked = reached({"files": {"pkg.py": source}, "entry": ["pkg"]})
    assert [one.path for one in walked.unread] == ["pkg.py"]
    assert walked.unread[0].reason
