"""Mirrors of indexes: requests go to the mirror; locks and messages name the index."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from colablock._common.fs import file_digest
from colablock._common.urls import Mirrors
from colablock.cli.main import main
from colablock.errors import ExitCode, FetchFailed
from colablock.network.fetcher import Fetcher
from tests.support.fixtures import index_fixture
from tests.support.server import Fault, IndexServer
from tests.support.wheels import make_wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WHEEL = "demo-1.0-py3-none-any.whl"
OWN = "https://index.invalid/whl/cu118"
NAMED = f"""\
schema = 1
name = "tiny"

[[index]]
name = "pytorch-cu118"
url = "{OWN}"

[packages]
demo = {{ index = "pytorch-cu118" }}
"""
INDEXED = '{ index = "pytorch-cu118" }'
PLAIN = 'schema = 1\nname = "tiny"\nrequirements = ["demo"]\n'
DEFAULT = "https://default.invalid/simple/"
BELOW: Mapping[str, Any] = {"prefix": "/mirror/", "files": "/mirror/files/"}


@dataclass(frozen=True, kw_only=True)
class MirrorCase:
    """A matrix, the server that mirrors its index, and the URLs in the lock.

    *page* replaces the page of the server; ``{sha256}`` is the hash of the wheel.  In *environ*, *page* and
    *url*, ``{place}`` is the URL of the mirror with a password, and ``{root}`` that of the server.
    """

    matrix: str = NAMED
    server: Mapping[str, Any] = field(default_factory=dict)
    page: str = ""
    environ: Mapping[str, str] = field(default_factory=lambda: {"COLABLOCK_INDEX_PYTORCH_CU118": "{place}"})
    index: str = OWN
    url: str


CASES = {
    "files below the mirror": MirrorCase(server=BELOW, url=f"{OWN}/files/{WHEEL}"),
    "files beside it": MirrorCase(url=f"{{root}}/files/{WHEEL}"),
    "files beside it, in COLABLOCK_MIRRORS": MirrorCase(
        environ={
            "COLABLOCK_INDEX_PYTORCH_CU118": "{place}",
            "COLABLOCK_MIRRORS": "https://files.invalid/={root}/files/",
        },
        url=f"https://files.invalid/{WHEEL}",
    ),
    "relative links below it": MirrorCase(
        server=BELOW,
        page=f'<a href="../files/{WHEEL}#sha256={{sha256}}">demo</a>',
        url=f"{OWN}/files/{WHEEL}",
    ),
    "relative links beside it": MirrorCase(
        page=f'<a href="../../files/{WHEEL}#sha256={{sha256}}">demo</a>', url=f"{{root}}/files/{WHEEL}"
    ),
    "links with a password": MirrorCase(
        page=f'<a href="{{place}}../files/{WHEEL}#sha256={{sha256}}">demo</a>',
        url=f"{{root}}/simple/../files/{WHEEL}",
    ),
    "the default index": MirrorCase(
        matrix=PLAIN,
        server=BELOW,
        environ={"COLABLOCK_INDEX_DEFAULT": "{place}"},
        index=DEFAULT,
        url=f"{DEFAULT}files/{WHEEL}",
    ),
    "the default index of the matrix": MirrorCase(
        matrix=NAMED.replace('cu118"\n\n', 'cu118"\ndefault = true\n\n').replace(INDEXED, '""'),
        server=BELOW,
        environ={"COLABLOCK_INDEX_DEFAULT": "{place}"},
        url=f"{OWN}/files/{WHEEL}",
    ),
    "an index called default": MirrorCase(
        matrix=NAMED.replace("pytorch-cu118", "default"),
        server=BELOW,
        environ={"COLABLOCK_INDEX_DEFAULT": "{place}"},
        url=f"{OWN}/files/{WHEEL}",
    ),
}


def fill(folder: Path) -> None:
    make_wheel(folder, "demo", "1.0")


index = index_fixture(fill)


def lock(tmp_path: Path, matrix: str, environ: Mapping[str, str], *argv: str) -> int:
    path = tmp_path / "tiny.toml"
    path.write_text(matrix, encoding="utf-8")
    output = tmp_path / "pylock.toml"
    command = ["lock", str(path), "--default-index", DEFAULT, "--output", str(output), *argv]
    return main(command, {**os.environ, "COLABLOCK_RETRIES": "0", **environ})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_lock_names_the_index_and_not_its_mirror(
    case: MirrorCase, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with IndexServer(index, auth=("me", "secret"), **case.server) as server:
        place = server.url.replace("://", "://me:secret@")
        if case.page:
            digest = file_digest(index / WHEEL)
            body = case.page.format(sha256=digest, place=place).encode()
            server.fault(f"{server.prefix}demo/", Fault(body=body, content_type="text/html"))
        environ = {name: value.format(place=place, root=server.root) for name, value in case.environ.items()}
        assert lock(tmp_path, case.matrix, environ) == ExitCode.DONE, capsys.readouterr().err
        text = (tmp_path / "pylock.toml").read_text(encoding="utf-8")
        (package,) = tomllib.loads(text)["packages"]
        (wheel,) = package["wheels"]
        assert (package["index"], wheel["url"]) == (case.index, case.url.format(root=server.root))
        assert "secret" not in text + capsys.readouterr().err


def test_files_of_a_lock_are_fetched_from_the_mirror(index: Path, tmp_path: Path) -> None:
    with IndexServer(index, **BELOW) as server:
        mirrors = [(OWN, server.url)]
        fetcher = Fetcher(os.environ, cache=tmp_path / "cache", mirrors=mirrors, sleep=lambda _: None)
        assert fetcher.get_bytes(f"{OWN}/files/{WHEEL}") == (index / WHEEL).read_bytes()
        assert server.paths == [f"/mirror/files/{WHEEL}"]
        # A URL that only starts like the index is not mirrored.
        with pytest.raises(FetchFailed, match=r"the host `index\.invalid` cannot be resolved"):
            fetcher.get_bytes(f"{OWN}0/files/{WHEEL}")


def test_a_folder_can_be_a_mirror(index: Path, tmp_path: Path) -> None:
    page = tmp_path / "mirror" / "demo" / "index.html"
    page.parent.mkdir(parents=True)
    digest = file_digest(index / WHEEL)
    page.write_text(f'<a href="{WHEEL}#sha256={digest}">demo</a>', encoding="utf-8")
    (index / WHEEL).rename(page.parent / WHEEL)
    environ = {"COLABLOCK_INDEX_PYTORCH_CU118": str(tmp_path / "mirror")}
    assert lock(tmp_path, NAMED, environ) == ExitCode.DONE
    (package,) = tomllib.loads((tmp_path / "pylock.toml").read_text(encoding="utf-8"))["packages"]
    assert package["wheels"][0]["url"] == f"{OWN}/demo/{WHEEL}"


def test_the_cache_keeps_pages_of_each_mirror_apart(tmp_path: Path) -> None:
    make_wheel(tmp_path / "one", "demo", "1.0")
    make_wheel(tmp_path / "two", "demo", "2.0")
    with IndexServer(tmp_path / "one") as one, IndexServer(tmp_path / "two") as two:
        for server, version in ((one, "1.0"), (two, "2.0")):
            for offline in (False, True):
                fetcher = Fetcher(
                    os.environ, cache=tmp_path / "cache", offline=offline, mirrors=[(OWN, server.url)]
                )
                page = fetcher.get_page(f"{OWN}/demo/")
                assert page is not None
                assert page.url == f"{OWN}/demo/"
                assert f"demo-{version}".encode() in page.body


def test_a_mirror_of_several_indexes_maps_links_to_the_requested_one() -> None:
    pairs = [("https://a.invalid/simple", "http://m/all/"), ("https://longer.invalid/simple", "http://m/all")]
    mirrors = Mirrors().and_indexes(pairs)
    for asked in ("https://a.invalid/simple/", "https://longer.invalid/simple/"):
        assert mirrors.to_mirror(f"{asked}demo/") == "http://m/all/demo/"
        assert mirrors.to_canonical("http://m/all/demo.whl", f"{asked}demo/") == f"{asked}demo.whl"


@pytest.mark.parametrize("index", [OWN, f"{OWN}/", f"{OWN}/".replace("://", "://a:b@")])
def test_builds_use_the_mirror(index: str, tmp_path: Path) -> None:
    mirrored = Fetcher(os.environ, cache=tmp_path, mirrors=[(OWN, "https://me:secret@m.invalid/x")])
    assert mirrored.address(index) == "https://m.invalid/x/"
    assert mirrored.for_child(index) == "https://me:secret@m.invalid/x/"
    other = "https://a:b%2F@other.invalid/simple"
    assert mirrored.address(other) == "https://other.invalid/simple"
    assert mirrored.for_child(other) == other


# -- messages

SAID = {
    "refused": (
        {"status": 403},
        "`https://index.invalid/whl/cu118/demo/` answered 403 (Forbidden) hint: Correct the user",
    ),
    "unavailable": (
        {"status": 503},
        "answered 503 (Service Unavailable) hint: Try again later, or set COLABLOCK_INDEX_PYTORCH_CU118",
    ),
    "reset": ({"reset": True}, "the response of `https://index.invalid/whl/cu118/demo/` was incomplete"),
}


@pytest.mark.parametrize("case", SAID.values(), ids=SAID)
def test_a_failure_names_the_index(
    case: tuple[Mapping[str, Any], str], index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with IndexServer(index) as server:
        server.fault("/simple/demo/", Fault(**case[0]))
        place = server.url.replace("://", "://me:secret@")
        assert lock(tmp_path, NAMED, {"COLABLOCK_INDEX_PYTORCH_CU118": place}) == ExitCode.UNMET
    said = " ".join(capsys.readouterr().err.replace("[fetch-failed]", "").split())
    assert case[1] in said
    assert "demo cannot be looked up in the index `pytorch-cu118`: " in said
    assert "secret" not in said


def test_an_unreachable_mirror_is_named_as_a_mirror(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"COLABLOCK_INDEX_PYTORCH_CU118": "http://me:secret@127.0.0.1:9/simple"}
    assert lock(tmp_path, NAMED, environ) == ExitCode.UNMET
    said = " ".join(capsys.readouterr().err.replace("[fetch-failed]", "").split())
    assert "no connection to `127.0.0.1` (the mirror of `index.invalid`): Connection refused" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("variable", "note"),
    [
        ("COLABLOCK_INDEX_PYTORCH_CU181", "did you mean `COLABLOCK_INDEX_PYTORCH_CU118`?"),
        ("COLABLOCK_INDEX_X", "it has `COLABLOCK_INDEX_DEFAULT`, `COLABLOCK_INDEX_PYTORCH_CU118`"),
    ],
)
def test_a_variable_without_an_index_is_noted(
    variable: str, note: str, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with IndexServer(index) as server:
        environ = {"COLABLOCK_INDEX_PYTORCH_CU118": server.url, variable: "https://me:secret@x.invalid/"}
        assert lock(tmp_path, NAMED, environ) == ExitCode.DONE
    said = " ".join(capsys.readouterr().err.split())
    assert f"note: {variable} does not name an index of this matrix: {note} " in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "mirror.example",
            "COLABLOCK_INDEX_DEFAULT: `mirror.example` is neither a URL nor an existing",
        ),
        (
            "https://me:secret@x.invalid/?a=b",
            "`https://x.invalid/?a=b` in COLABLOCK_INDEX_DEFAULT is not a valid mirror",
        ),
    ],
)
def test_an_invalid_mirror_is_invalid_input(
    value: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lock(tmp_path, PLAIN, {"COLABLOCK_INDEX_DEFAULT": value}) == ExitCode.USAGE
    said = " ".join(capsys.readouterr().err.replace("[invalid-input]", "").split())
    assert words in said
    assert "secret" not in said


def test_a_variable_of_two_indexes_is_invalid_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = '[[index]]\nname = "pytorch.cu118"\nurl = "https://other.invalid/"\n\n[packages]'
    environ = {"COLABLOCK_INDEX_PYTORCH_CU118": "https://m.invalid/"}
    assert lock(tmp_path, NAMED.replace("[packages]", other), environ) == ExitCode.USAGE
    said = " ".join(capsys.readouterr().err.replace("[invalid-input]", "").split())
    assert "is the variable of two indexes: `pytorch-cu118` and `pytorch.cu118`" in said
