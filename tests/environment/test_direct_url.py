"""Direct references of installed distributions (PEP 610)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colablock._vendor.packaging.direct_url import ArchiveInfo, DirectUrl, DirInfo, VcsInfo
from colablock.environment.direct_url import (
    archive_sha256,
    editable_folder,
    from_freeze,
    is_editable,
    read_direct_url,
    to_freeze,
)

SHA256 = "ab" * 32
WHEEL = "https://files.example/a-1-py3-none-any.whl"


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "\ufffd",
        '"text"',
        '{"archive_info": {}}',
        '{"url": 5, "archive_info": {}}',
        '{"url": "https://x.example/a.whl", "archive_info": 1}',
        '{"url": "https://x.example/a.whl"}',
        '{"url": "https://x.example/a", "archive_info": {}, "dir_info": {}}',
        '{"url": "https://x.example/a", "vcs_info": {"vcs": "git"}}',
    ],
)
def test_an_invalid_file_counts_as_none(text: str | None) -> None:
    assert read_direct_url(text) is None


@pytest.mark.parametrize(
    ("archive", "expected"),
    [
        ({"hashes": {"sha256": SHA256}}, SHA256),
        ({"hash": f"sha256={SHA256}"}, SHA256),
        ({"hashes": {"md5": "00"}}, None),
        ({}, None),
    ],
)
def test_the_hash_of_the_archive(archive: dict[str, object], expected: str | None) -> None:
    origin = read_direct_url(json.dumps({"url": WHEEL, "archive_info": archive}))
    assert origin is not None
    assert origin.url == WHEEL
    assert archive_sha256(origin) == expected


def test_no_hash_without_an_archive() -> None:
    assert archive_sha256(None) is None
    assert archive_sha256(DirectUrl(url="file:///src", dir_info=DirInfo())) is None


@pytest.mark.parametrize("editable", [True, False, None])
def test_only_an_editable_installation_has_a_folder(tmp_path: Path, *, editable: bool | None) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "my project")
    url = (tmp_path / "link").as_uri()
    origin = DirectUrl(url=url, dir_info=DirInfo(editable=editable))
    assert is_editable(origin) is bool(editable)
    assert editable_folder(origin) == (str(tmp_path / "my project") if editable else None)
    assert (is_editable(None), editable_folder(None)) == (False, None)


@pytest.mark.parametrize(
    ("shown", "origin"),
    [
        (
            "git+https://x.example/c@ab",
            DirectUrl(url="https://x.example/c", vcs_info=VcsInfo(vcs="git", commit_id="ab")),
        ),
        ("file:///src/project", DirectUrl(url="file:///src/project", dir_info=DirInfo())),
        ("file:///a-1.tar.gz", DirectUrl(url="file:///a-1.tar.gz", archive_info=ArchiveInfo())),
        (WHEEL, DirectUrl(url=WHEEL, archive_info=ArchiveInfo())),
        (
            f"{WHEEL}#sha256={SHA256}",
            DirectUrl(url=WHEEL, archive_info=ArchiveInfo(hashes={"sha256": SHA256})),
        ),
    ],
)
def test_the_url_that_pip_freeze_shows(shown: str, origin: DirectUrl) -> None:
    assert from_freeze(shown) == origin
    assert to_freeze(origin) == shown


def test_the_subdirectory_is_shown() -> None:
    info = VcsInfo(vcs="git", commit_id="ab")
    origin = DirectUrl(url="https://x.example/c", vcs_info=info, subdirectory="a/b")
    assert to_freeze(origin) == "git+https://x.example/c@ab#subdirectory=a/b"
