"""Audits: which index is asked about what, what is told, and that silence is never taken for safety."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import colablock
from tests.support.fixtures import PAINTING, world_fixture
from tests.support.server import Fault, IndexServer
from tests.support.wheels import make_wheel
from tests.support.world import Done, World

GHSA = {
    "id": "GHSA-48p4-8xcf-vxj5",
    "aliases": ["CVE-2025-50182"],
    "summary": "redirects are not\ncontrolled \x1b[31min browsers",
    "details": "long",
    "fixed_in": ["2.5.0"],
    "link": "https://osv.example/GHSA-48p4-8xcf-vxj5",
    "source": "osv",
    "withdrawn": None,
}
PYSEC = {
    **GHSA,
    "id": "PYSEC-2025-9",
    "aliases": ["CVE-2025-50182"],
    "summary": None,
    "fixed_in": ["2.10.0", "2.5.0"],
}
WITHDRAWN = {**GHSA, "id": "GHSA-gone", "aliases": [], "withdrawn": "2025-01-01T00:00:00Z"}


def fill(folder: Path) -> None:
    make_wheel(folder / "index", "colours", "2.0", requires=["shapes", "pencils"])
    make_wheel(folder / "index", "shapes", "1.0+cu121")
    make_wheel(folder / "index", "pencils", "3.0")
    (folder / "matrices").mkdir()
    (folder / "matrices" / "painting.toml").write_text(PAINTING)


world = world_fixture(fill)


@pytest.fixture
def server(world: World) -> IndexServer:
    """Have a page about each release, with nothing to tell."""
    for name, version in (("colours", "2.0"), ("shapes", "1.0"), ("pencils", "3.0")):
        world.server.release(name, version)
    return world.server


def audit(world: World, *argv: str, code: int = 0) -> Any:
    done = world.run("audit", "painting", "--json", *argv)
    assert done.code == code, done.err + done.out
    return done.json


def shown(world: World, *argv: str, code: int = 0) -> Done:
    done = world.run("audit", *argv, COLUMNS="400")
    assert done.code == code, done.err + done.out
    return done


@pytest.mark.usefixtures("server")
def test_a_lock_without_known_vulnerabilities_says_how_many_releases_were_asked_about(world: World) -> None:
    assert shown(world, "painting").out == "painting: no known vulnerabilities in 3 releases\n"
    value = audit(world)
    assert value["is_clean"]
    assert (value["matrix"], value["checked"], value["findings"], value["unchecked"]) == (
        "painting",
        3,
        [],
        [],
    )


def test_a_vulnerability_is_told_with_its_ids_its_fix_and_who_requires_the_package(
    world: World, server: IndexServer
) -> None:
    server.release("shapes", "1.0", WITHDRAWN, PYSEC, GHSA)
    server.release("colours", "2.0", {**GHSA, "id": "GHSA-two", "aliases": [], "fixed_in": []})
    assert shown(world, "painting", code=1).out == (
        "painting: 2 known vulnerabilities in 2 of 3 releases\n"
        "\n"
        "Vulnerabilities\n"
        "  colours 2.0 (in the matrix)\n"
        "    GHSA-two: redirects are not controlled \\x1b[31min browsers; no release fixes it\n"
        "  shapes 1.0+cu121 (required by colours)\n"
        "    GHSA-48p4-8xcf-vxj5 (CVE-2025-50182, PYSEC-2025-9): "
        "redirects are not controlled \\x1b[31min browsers; fixed in 2.5.0, 2.10.0\n"
    )
    colours, shapes = audit(world, code=1)["findings"]
    assert (colours["is_direct"], shapes["is_direct"]) == (True, False)
    assert shapes["required_by"] == ["colours"]
    assert (shapes["version"], shapes["asked"]) == ("1.0+cu121", "1.0")
    (advisory,) = shapes["advisories"]  # two databases, one vulnerability
    assert advisory["aliases"] == ["CVE-2025-50182", "PYSEC-2025-9"]
    assert advisory["fixed_in"] == ["2.5.0", "2.10.0"]


def test_an_ignored_vulnerability_is_named_and_does_not_fail(world: World, server: IndexServer) -> None:
    server.release("shapes", "1.0", PYSEC, GHSA)
    value = audit(world, "--ignore", "CVE-2025-50182", "--ignore", "CVE-0")
    assert [one["advisories"] for one in value["findings"]] == [[]]
    assert value["findings"][0]["ignored"][0]["id"] == "GHSA-48p4-8xcf-vxj5"
    assert value["unused_ignores"] == ["CVE-0"]
    out = shown(world, "painting", "--ignore", "PYSEC-2025-9", "--ignore", "CVE-0").out
    assert "no known vulnerabilities in 3 releases" in out
    assert "ignored: GHSA-48p4-8xcf-vxj5 (shapes 1.0+cu121)" in out
    assert "note: nothing has the id CVE-0" in out


def test_yanked_releases_and_closed_projects_are_told(world: World, server: IndexServer) -> None:
    server.release("pencils", "3.0", yanked=True, yanked_reason="broken on Sundays")
    server.status("shapes", "archived", "use circles")
    out = shown(world, "painting").out
    assert "pencils 3.0\n    yanked: broken on Sundays" in out
    assert "shapes 1.0+cu121\n    the project is archived: use circles" in out


def test_a_quarantined_project_fails(world: World, server: IndexServer) -> None:
    lock = world.folder / "pylock.toml"
    assert world.run("lock", "painting", "-o", str(lock)).code == 0
    server.status("shapes", "quarantined", "malware")
    done = shown(world, "--lock", str(lock), code=1)
    assert "painting: no known vulnerabilities in 3 releases, 1 quarantined project" in done.out


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (None, "has no advisories of shapes 1.0"),
        ({"info": {}}, "has no advisories of shapes 1.0"),
        (403, "answered 403"),
    ],
)
def test_a_release_that_the_index_says_nothing_about_is_not_called_safe(
    world: World, server: IndexServer, page: Any, reason: str
) -> None:
    path = "/pypi/shapes/1.0/json"
    fault = Fault(status=404) if page is None else Fault(status=page) if isinstance(page, int) else None
    server.fault(path, fault or Fault(body=json.dumps(page).encode()))
    out = shown(world, "painting").out
    assert out.startswith("painting: no known vulnerabilities in 2 releases: 1 not checked\n")
    assert "Not checked\n  shapes 1.0+cu121\n" in out
    assert reason in " ".join(out.split())


def test_an_index_without_advisories_gives_no_result(world: World) -> None:
    done = shown(world, "painting", code=1)
    assert "no release could be checked: colours: " in done.err
    assert "known vulnerabilities" not in done.out


@pytest.mark.parametrize(
    "body",
    [
        b"<html>no JSON here</html>",
        b'{"vulnerabilities": [{"id": 1}]}',
        b'{"vulnerabilities": {}}',
        b"[" * 100_000,
        b'{"vulnerabilities": [{"id": "a", "fixed_in": "2.0"}]}',
        b"\xff\xfe",
    ],
)
def test_a_page_of_another_form_is_an_error_that_names_it(
    world: World, server: IndexServer, body: bytes
) -> None:
    server.fault("/pypi/shapes/1.0/json", Fault(body=body))
    done = shown(world, "painting", code=1)
    assert "/pypi/shapes/1.0/json` has no advisories: " in " ".join(done.err.split())
    assert "known vulnerabilities" not in done.out


def test_an_index_that_fails_gives_no_result(world: World, server: IndexServer) -> None:
    server.fault("/pypi/shapes/1.0/json", Fault(status=503, retry_after="0"))
    done = world.run("audit", "painting", COLABLOCK_RETRIES="0", COLUMNS="400")
    assert done.code == 1
    assert "answered 503" in done.err


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("cached", [False, True])
def test_offline_there_is_no_audit(world: World, cached: bool) -> None:
    lock = world.folder / "pylock.toml"
    assert world.run("lock", "painting", "-o", str(lock)).code == 0
    if cached:
        shown(world, "painting")
    done = shown(world, "--lock", str(lock), "--offline", code=1)
    assert "an audit needs the network" in done.err
    assert done.out == ""


def test_a_package_is_asked_about_only_at_an_index_of_the_matrix(world: World, server: IndexServer) -> None:
    """A private name is not told to another index, and a lock cannot choose who is asked."""
    with IndexServer(world.folder / "none") as stranger:
        sha256 = {"sha256": "a" * 64}

        def package(name: str, **facts: Any) -> dict[str, Any]:
            file = f"{name}-1.0-py3-none-any.whl"
            return {"name": name, "version": "1.0", **facts} | (
                {}
                if "archive" in facts
                else {"wheels": [{"url": f"{stranger.root}/{file}", "hashes": sha256}]}
            )

        lock = world.folder / "pylock.toml"
        packages = [
            package("secret", index=stranger.url),
            package("linked"),
            package("tarball", archive={"url": f"{stranger.root}/t.zip", "hashes": sha256}),
            package("shapes", index=server.url.rstrip("/")),
        ]
        lock.write_text(_toml(packages), encoding="utf-8")
        server.forget_requests()
        done = world.run("audit", "--lock", str(lock), "--json")
        assert done.code == 0, done.err
        assert stranger.requests == []
    assert not [path for path in server.paths if "secret" in path or "linked" in path]
    reasons = {one["name"]: one["reason"] for one in done.json["unchecked"]}
    assert sorted(reasons) == ["linked", "secret", "tarball"]
    assert "is neither one of the matrix nor the default index" in reasons["secret"]
    assert "not from an index" in reasons["linked"]
    assert done.json["checked"] == 1


def _toml(packages: list[dict[str, Any]]) -> str:
    from colablock._vendor import tomli_w  # noqa: PLC0415 - of this one test

    return tomli_w.dumps({"lock-version": "1.0", "created-by": "another tool", "packages": packages})


def test_builds_of_pytorch_are_asked_about_at_the_default_index(world: World, server: IndexServer) -> None:
    url = "https://download.pytorch.org/whl/cu121"
    server.release("torch", "2.4.0", GHSA)
    wheel = {"url": f"{url}/torch-2.4.0%2Bcu121-py3-none-any.whl", "hashes": {"sha256": "a" * 64}}
    files = "https://files.pythonhosted.org/shapes-1.0-py3-none-any.whl"
    torch = {"name": "torch", "version": "2.4.0+cu121", "index": url, "wheels": [wheel]}
    shapes = {"name": "shapes", "version": "1.0", "wheels": [{"url": files, "hashes": {"sha256": "a" * 64}}]}
    lock = world.folder / "pylock.toml"
    lock.write_text(_toml([torch, shapes]), encoding="utf-8")
    done = world.run("audit", "--lock", str(lock), "--json")
    assert done.code == 1, done.err
    assert [(one["name"], one["asked"]) for one in done.json["findings"]] == [("torch", "2.4.0")]
    assert (done.json["checked"], done.json["unchecked"]) == (2, [])


def test_every_lock_beside_the_matrix_is_audited_with_all(world: World, server: IndexServer) -> None:
    for asked in ("painting", "matrices/painting.toml"):
        done = shown(world, asked, "--all", code=2)
        assert "painting has no locks beside it" in done.err
        assert f"`colablock lock {asked} --all`" in done.err
    for runtime in ("colab-2026.08-cpu", "colab-2026.08-gpu"):
        assert world.run("lock", "painting", "--runtime", runtime).code == 0
    server.release("shapes", "1.0", GHSA)
    server.forget_requests()
    value = audit(world, "--all", code=1)
    names = [f"pylock.painting--colab-2026_08-{kind}.toml" for kind in ("cpu", "gpu")]
    assert value["locks"] == names
    assert value["findings"][0]["locks"] == names
    assert server.paths.count("/pypi/shapes/1.0/json") == 1
    assert value["assumed"] == 0
    assert "`--all` takes the locks beside a matrix" in shown(world, "--all", code=2).err


def test_credentials_of_the_index_are_used_and_not_shown(world: World, server: IndexServer) -> None:
    server.auth = ("me", "secret")
    server.release("shapes", "1.0", GHSA)
    index = server.url.replace("://", "://me:secret@")
    done = world.run("audit", "painting", "--json", COLABLOCK_DEFAULT_INDEX=index)
    assert done.code == 1, done.err
    assert "secret" not in done.out + done.err
    done = world.run("audit", "painting", COLABLOCK_DEFAULT_INDEX=index.replace("secret", "wr0ng"))
    assert done.code == 1
    assert "wr0ng" not in done.out + done.err


def test_a_mirror_of_the_index_is_asked_in_its_place(world: World, server: IndexServer) -> None:
    lock = world.folder / "pylock.toml"
    assert world.run("lock", "painting", "-o", str(lock)).code == 0
    text = lock.read_text(encoding="utf-8").replace(server.url, "https://pypi.org/simple/")
    lock.write_text(text, encoding="utf-8")
    done = world.run(
        "audit",
        "--lock",
        str(lock),
        "--json",
        COLABLOCK_DEFAULT_INDEX="",
        COLABLOCK_INDEX_DEFAULT=server.url,
        UV_DEFAULT_INDEX="",
        PIP_INDEX_URL="",
        PIP_CONFIG_FILE="/dev/null",
    )
    assert done.code == 0, done.err
    assert done.json["checked"] == 3


def test_the_api_returns_and_prints_the_result(
    world: World, server: IndexServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.release("shapes", "1.0", GHSA)
    monkeypatch.chdir(world.folder)
    for name, value in world.environ().items():
        monkeypatch.setenv(name, value)
    result = colablock.audit("painting")
    assert not result.is_clean
    assert "1 known vulnerability in 1 of 3 releases" in capsys.readouterr().out
    assert colablock.audit("painting", ignore="CVE-2025-50182", quiet=True).is_clean
    assert capsys.readouterr().out == ""
