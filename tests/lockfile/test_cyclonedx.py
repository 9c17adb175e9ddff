"""The CycloneDX export: valid by the official schema, complete, and the same bytes each time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

import colablock
from colablock._vendor.packaging.pylock import Pylock
from colablock.lockfile.export import Format, export_text
from colablock.lockfile.pylock import read_lock
from tests.support.fixtures import painting, world_fixture
from tests.support.paths import ROOT
from tests.support.world import World

PYPI = "https://pypi.org/simple"
FILES = "https://files.pythonhosted.org"
A, B = "a" * 64, "b" * 64

world = world_fixture(painting)


def wheel(name: str, version: str = "1.0", host: str = FILES, **more: Any) -> Any:
    file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return {"name": file, "url": f"{host}/{file}", "hashes": {"sha256": A}, **more}


def package(name: str, version: str = "1.0", **facts: Any) -> dict[str, Any]:
    if not facts.keys() & {"wheels", "archive", "vcs", "directory"}:
        facts["wheels"] = [wheel(name, version)]
    return {"name": name, "version": version, **facts}


def bill_of(*packages: Mapping[str, Any], moment: datetime | None = None, **ours: Any) -> Any:
    """Return the document of a lock, after the schema has judged it."""
    tool = {"tool": {"colablock": ours}} if ours else {}
    lock = Pylock.from_dict(
        {"lock-version": "1.0", "created-by": "colablock", "packages": list(packages), **tool}
    )
    text = export_text(lock, Format.CYCLONEDX, source="pylock.toml", moment=moment)
    return judged(text)


def judged(text: str) -> Any:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    refs = {one["bom-ref"] for one in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert len(refs) == len(bill["components"]) + 1
    assert {one["ref"] for one in bill["dependencies"]} == refs
    assert all(set(one["dependsOn"]) <= refs for one in bill["dependencies"])
    for one in bill["components"]:
        if "purl" in one:  # the reference implementation reads it, and writes it the same
            assert PackageURL.from_string(one["purl"]).to_string() == one["purl"]
    return bill


def edges(bill: Any) -> dict[str, list[str]]:
    return {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}


def properties(component: Any) -> dict[str, str]:
    return {one["name"].removeprefix("colablock:"): one["value"] for one in component.get("properties", ())}


def test_a_component_has_its_files_with_their_hashes() -> None:
    hashes = {"sha256": B, "sha512": "c" * 128, "md5": "d" * 32}
    other = {"url": f"{FILES}/shapes-1.0-py3-none-win_amd64.whl", "hashes": hashes}
    files = [wheel("shapes"), other]
    (component,) = bill_of(package("shapes", index=PYPI, wheels=files))["components"]
    assert (component["name"], component["version"]) == ("shapes", "1.0")
    assert component["purl"] == component["bom-ref"] == "pkg:pypi/shapes@1.0"
    assert "hashes" not in component  # it has two files
    assert component["externalReferences"] == [
        {
            "type": "distribution",
            "url": f"{FILES}/shapes-1.0-py3-none-any.whl",
            "hashes": [{"alg": "SHA-256", "content": A}],
        },
        {
            "type": "distribution",
            "url": f"{FILES}/shapes-1.0-py3-none-win_amd64.whl",
            "hashes": [
                {"alg": "MD5", "content": "d" * 32},
                {"alg": "SHA-256", "content": B},
                {"alg": "SHA-512", "content": "c" * 128},
            ],
        },
    ]
    (component,) = bill_of(package("shapes"))["components"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": A}]


@pytest.mark.parametrize(
    ("facts", "purl"),
    [
        ({"index": PYPI}, "pkg:pypi/torch@1.0"),
        ({"index": f"{PYPI}/"}, "pkg:pypi/torch@1.0"),
        (
            {"version": "2.4.0+cu121", "index": "https://me:secret@download.pytorch.org/whl/cu121"},
            "pkg:pypi/torch@2.4.0%2Bcu121?repository_url=https://download.pytorch.org/whl/cu121",
        ),
        (
            {"wheels": [wheel("torch", host="https://find-links.example/a b")]},
            "pkg:pypi/torch@1.0?download_url=https://find-links.example/a%20b/torch-1.0-py3-none-any.whl",
        ),
        (
            {"archive": {"url": "https://me:secret@x.example/t.zip?a=1&b=2", "hashes": {"sha256": A}}},
            "pkg:pypi/torch@1.0?download_url=https://x.example/t.zip%3Fa%3D1%26b%3D2",
        ),
        (
            {"vcs": {"type": "git", "url": "https://me:secret@x.example/torch.git", "commit-id": "f" * 40}},
            f"pkg:pypi/torch@1.0?vcs_url=git%2Bhttps://x.example/torch.git%40{'f' * 40}",
        ),
        ({"directory": {"path": "../my torch"}}, None),
    ],
)
def test_the_package_url_says_where_a_package_comes_from(facts: dict[str, Any], purl: str | None) -> None:
    bill = bill_of(package("torch", **facts))
    assert bill["components"][0].get("purl") == purl
    assert "secret" not in json.dumps(bill)


def test_a_rebuilt_wheel_names_the_file_that_it_was_made_from() -> None:
    made: Any = {"path": "lock.wheels/axolotl-0.4.0+colablock.1-py3-none-any.whl", "hashes": {"sha256": A}}
    origin = "https://github.example/axolotl/v0.4.0.tar.gz"
    tool = {"colablock": {"made-from": {"url": origin}, "extras": ["deepspeed"], "repair": True}}
    (component,) = bill_of(package("axolotl", "0.4.0+colablock.1", wheels=[made], tool=tool))["components"]
    assert component["purl"] == f"pkg:pypi/axolotl@0.4.0%2Bcolablock.1?download_url={origin}"
    assert component["externalReferences"][0]["url"] == made["path"].replace("+", "%2B")
    assert properties(component) == {"made-from": origin, "extras": "deepspeed", "repair": "true"}


def test_the_dependencies_are_those_of_the_lock() -> None:
    def needs(*lines: str) -> dict[str, Any]:
        return {"colablock": {"requires-dist": list(lines)}}

    bill = bill_of(
        package("paint", tool=needs("Shapes[round]>=1; python_version >= '3.8'", "colours", "absent")),
        package("shapes", tool=needs("shapes[round]", "numpy>=1")),
        package("colours", tool=needs()),
        requirements=["paint==1.0"],
        assumes={"numpy": "2.0.2"},
        kind="delta",
        runtime="colab-2026.08-gpu",
        matrix="demo",
        variant="gpu",
        python="3.12.4",
    )
    assert edges(bill) == {
        "lock": ["pkg:pypi/paint@1.0"],
        "pkg:pypi/paint@1.0": ["pkg:pypi/colours@1.0", "pkg:pypi/shapes@1.0"],
        "pkg:pypi/shapes@1.0": ["pkg:pypi/numpy@2.0.2"],
        "pkg:pypi/colours@1.0": [],
        "pkg:pypi/numpy@2.0.2": [],
    }
    assumed = next(one for one in bill["components"] if one["name"] == "numpy")
    assert properties(assumed) == {"assumed": "true"}
    assert "externalReferences" not in assumed
    assert bill["metadata"]["component"]["name"] == "demo"
    assert properties(bill["metadata"]) == {
        "kind": "delta",
        "python": "3.12.4",
        "runtime": "colab-2026.08-gpu",
        "variant": "gpu",
    }
    (tool,) = bill["metadata"]["tools"]["components"]
    assert (tool["name"], tool["version"]) == ("colablock", colablock.__version__)


def test_a_lock_of_another_tool_depends_on_what_nothing_in_it_requires() -> None:
    bill = bill_of(package("paint", dependencies=[{"name": "shapes"}]), package("shapes"))
    assert edges(bill)["lock"] == ["pkg:pypi/paint@1.0"]
    assert edges(bill)["pkg:pypi/paint@1.0"] == ["pkg:pypi/shapes@1.0"]
    assert bill["metadata"]["component"]["name"] == "lock"


def test_a_release_that_is_listed_twice_has_two_references() -> None:
    twice = [package("shapes", marker=f"sys_platform {op} 'linux'", index=PYPI) for op in ("==", "!=")]
    bill = bill_of(*twice, package("x", marker="'x' in extras"))
    assert [one["bom-ref"] for one in bill["components"]] == ["pkg:pypi/shapes@1.0", "pkg:pypi/shapes@1.0#2"]
    assert "linux" in properties(bill["components"][0])["marker"]


def test_no_value_breaks_out_of_the_document() -> None:
    odd = 'a"}\n\x1b[31m\u202e'
    bill = bill_of(
        package("shapes", wheels=[wheel("shapes", hashes={"sha256": A, "odd\n": 'x"', "sha512": "no hex"})]),
        matrix=odd,
        variant=odd,
        assumes={"numpy": odd},
    )
    assert properties(bill["metadata"])["variant"] == odd
    (hashed,) = [one for one in bill["components"] if one["name"] == "shapes"]
    assert hashed["hashes"] == [{"alg": "SHA-256", "content": A}]


def test_the_bytes_depend_on_the_lock_alone() -> None:
    one, two = package("shapes", index=PYPI), package("paint")
    bill = bill_of(one, two)
    assert bill == bill_of(two, one)
    assert "timestamp" not in bill["metadata"]
    assert bill["serialNumber"] != bill_of(one)["serialNumber"]
    dated = bill_of(one, two, moment=datetime(2026, 8, 1, tzinfo=timezone.utc))
    assert dated["metadata"].pop("timestamp") == "2026-08-01T00:00:00Z"
    assert dated == bill


def test_a_shipped_lock_has_every_package_and_every_hash() -> None:
    lock = read_lock(ROOT / "matrices" / "pylock.qlora-2025--colab-2025_10-cpu.toml")
    bill = judged(export_text(lock, Format.CYCLONEDX, source="shipped"))
    listed = [one for one in bill["components"] if "assumed" not in properties(one)]
    assert len(listed) == len(lock.packages)
    assert all(link.get("hashes") for one in listed for link in one["externalReferences"])


# -- the command


def test_the_command_writes_a_document_with_the_time_of_the_build(world: World) -> None:
    output = world.folder / "bom.json"
    argv = ("export", "painting.toml", "--format", "cyclonedx")
    done = world.run(*argv, "-o", str(output), SOURCE_DATE_EPOCH="1785542400")
    assert done.code == 0, done.err
    bill = judged(output.read_text(encoding="utf-8"))
    assert bill["metadata"]["timestamp"] == "2026-08-01T00:00:00Z"
    purl = f"pkg:pypi/colours@2.0?repository_url={world.server.url}"
    assert [one["purl"] for one in bill["components"]] == [purl]
    assert edges(bill)["lock"] == [purl]
    done = world.run(*argv, SOURCE_DATE_EPOCH="yesterday")
    assert done.code == 2
    assert "SOURCE_DATE_EPOCH is 'yesterday', which is not a time" in done.err
