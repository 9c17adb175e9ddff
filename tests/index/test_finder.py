"""Pages into files, files into candidates or refusals, and the sources that join it all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from colablock._common.decoding import decode, encode
from colablock._common.fs import file_digest
from colablock._common.urls import Url
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.api.stack import open_session
from colablock.environment.markers_and_tags import environment_for
from colablock.environment.snapshot import Installed
from colablock.errors import BadDistribution, FetchFailed
from colablock.index.build import Builder
from colablock.index.candidates import Candidate, CandidateOrigin, File, ProjectCandidates, Reason
from colablock.index.evaluator import FilesByVersion, Policy, judge_files
from colablock.index.finder import IndexSource
from colablock.index.prefetch import ReadOnce
from colablock.index.simple_api import Listing, parse_page
from colablock.matrix.model import Index, Matrix, Options, PackageEntry, SystemRequirements, Variant
from colablock.network.fetcher import Fetcher
from colablock.network.settings import Settings
from tests.support.fetching import source_of
from tests.support.fixtures import index_fixture
from tests.support.server import Fault, IndexServer
from tests.support.small_matrices import entry
from tests.support.timing import PATIENCE
from tests.support.wheels import make_sdist, make_wheel

pytestmark = pytest.mark.requirements

PY312 = environment_for("3.12.4", "manylinux_2_28_x86_64")
PY313 = environment_for("3.13.1", "manylinux_2_28_x86_64")
PAGE = "https://index.example/simple/demo/"
JSON = "application/vnd.pypi.simple.v1+json"
NEW_YEAR = datetime(2024, 1, 1, tzinfo=timezone.utc)
DEMO = NormalizedName("demo")


def files(*names: str, **facts: object) -> list[File]:
    return [File(filename=name, url=f"https://x/{name}", **facts) for name in names]  # type: ignore[arg-type]


def judged(
    *names: str, policy: Policy | None = None, name: str = "demo", **facts: object
) -> ProjectCandidates:
    return judge_files(canonicalize_name(name), files(*names, **facts), policy or Policy(environment=PY312))


def only_reason(result: ProjectCandidates) -> tuple[Reason, str]:
    assert result.candidates == ()
    (rejection,) = result.rejections
    return rejection.reason, rejection.detail


def names_of(candidates: Iterable[Candidate]) -> list[str]:
    return [str(candidate) for candidate in candidates]


# -- pages


def page_of(*entries: dict[str, object], **more: object) -> bytes:
    return json.dumps(
        {"meta": {"api-version": "1.1"}, "name": "demo", "files": list(entries), **more}
    ).encode()


def test_a_json_page_is_read_whole() -> None:
    entry: dict[str, object] = {
        "filename": "demo-1.0-py3-none-any.whl",
        "url": "../../files/demo-1.0-py3-none-any.whl#sha256=ff",
        "hashes": {"sha256": "ab"},
        "size": 12,
        "upload-time": "2024-05-06T07:08:09.123456Z",
        "requires-python": ">=3.9",
        "yanked": "broken",
        "core-metadata": {"sha256": "cd"},
    }
    (file,) = parse_page(page_of(entry), JSON, PAGE).files("https://index.example/simple/")
    assert file == File(
        filename="demo-1.0-py3-none-any.whl",
        url="https://index.example/files/demo-1.0-py3-none-any.whl",
        hashes={"sha256": "ab"},
        size=12,
        upload_time=datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone.utc),
        requires_python=">=3.9",
        yanked="broken",
        core_metadata={"sha256": "cd"},
        index="https://index.example/simple/",
    )


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ({}, (None, False, None)),
        ({"yanked": False, "core-metadata": False}, (None, False, None)),
        ({"yanked": None, "core-metadata": None}, (None, False, None)),
        ({"yanked": True, "core-metadata": True}, ("", True, None)),
        ({"dist-info-metadata": {"sha256": "ab"}}, (None, {"sha256": "ab"}, None)),
        ({"upload-time": "2024-05-06T07:08:09Z"}, (None, False, 1714979289.0)),
        ({"upload-time": "2024-05-06T07:08:09.5Z"}, (None, False, 1714979289.5)),
        ({"upload-time": "long ago"}, (None, False, None)),
    ],
)
def test_optional_keys_of_a_json_page(said: dict[str, object], known: tuple[object, ...]) -> None:
    entry: dict[str, object] = {"filename": "d-1.whl", "url": "https://x/d-1.whl", "hashes": {}, **said}
    (file,) = parse_page(page_of(entry), JSON, PAGE).files(None)
    stamp = file.upload_time.timestamp() if file.upload_time else None
    assert (file.yanked, file.core_metadata, stamp) == known


HTML = """<!DOCTYPE html><html><head>
<meta name="pypi:repository-version" content="1.3"><base href="https://files.example/f/">
</head><body><a href="demo-1.0-py3-none-any.whl#sha256=AB" data-requires-python="&gt;=3.8"
 data-yanked="bad &amp; worse" data-dist-info-metadata="sha256=cd">demo-1.0-py3-none-any.whl</a>
<a href="/demo-2.0%2Bcu118-py3-none-any.whl" data-core-metadata="true" data-yanked>2</a>
<a name="x">no link</a>
</body></html>"""


@pytest.mark.parametrize("content_type", ["text/html", "application/vnd.pypi.simple.v1+html; charset=utf-8"])
def test_an_html_page_is_read_whole(content_type: str) -> None:
    first, second = parse_page(HTML.encode(), content_type, PAGE).files(None)
    assert first == File(
        filename="demo-1.0-py3-none-any.whl",
        url="https://files.example/f/demo-1.0-py3-none-any.whl",
        hashes={"sha256": "ab"},
        requires_python=">=3.8",
        yanked="bad & worse",
        core_metadata={"sha256": "cd"},
    )
    assert second.filename == "demo-2.0+cu118-py3-none-any.whl"
    assert second.url == "https://files.example/demo-2.0%2Bcu118-py3-none-any.whl"
    assert (second.yanked, second.core_metadata) == ("", True)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"meta": {"api-version": "2.0"}, "name": "demo", "files": []}', JSON),
        (b'<html><meta name="pypi:repository-version" content="2.0"></html>', "text/html"),
        (b"not JSON", JSON),
        (b'{"files": [1]}', JSON),
        (b'{"meta": {"api-version": "1.0"}, "files": [{"filename": "x"}]}', JSON),
        (b"%PDF", "application/pdf"),
    ],
)
def test_a_malformed_page_or_unknown_api_version_raises(body: bytes, content_type: str) -> None:
    with pytest.raises(FetchFailed) as caught:
        parse_page(body, content_type, "https://user:secret@index.example/simple/demo/")
    assert caught.value.url == PAGE
    assert "secret" not in str(caught.value)


def test_a_listing_round_trips_through_the_cache() -> None:
    listing = parse_page(HTML.encode(), "text/html", PAGE)
    assert decode(encode(listing), Listing).files("i") == listing.files("i")


# -- judging


def test_candidates_are_newest_first_by_pep_440() -> None:
    versions = ["1.0", "1.0.post1", "1.0rc1", "1!0.1", "1.0+cpu", "1.0.dev3", "0.9", "1.0+cu118"]
    result = judged(*(f"demo-{version}-py3-none-any.whl" for version in versions))
    expected = ["1!0.1", "1.0.post1", "1.0+cu118", "1.0+cpu", "1.0", "1.0rc1", "1.0.dev3", "0.9"]
    assert [str(candidate.version) for candidate in result.candidates] == expected
    assert result.rejections == ()


def test_files_are_best_first_and_all_are_kept() -> None:
    names = [
        "demo-1.0.tar.gz",
        "demo-1.0-py3-none-any.whl",
        "demo-1.0-cp312-cp312-win_amd64.whl",
        "demo-1.0-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "demo-1.0-cp38-abi3-manylinux_2_28_x86_64.whl",
        "demo-1.0-2-py3-none-any.whl",
        "demo-1.0-10-py3-none-any.whl",
    ]
    (candidate,) = judged(*names).candidates
    assert [file.filename for file in candidate.files] == [names[3], names[4], names[6], names[5], names[1]]
    assert {file.filename for file in candidate.all_files} == set(names)
    allowed = Policy(environment=PY312, allow_build=frozenset({"demo"}))
    (candidate,) = judged(*names, policy=allowed).candidates
    assert candidate.files[-1].filename == "demo-1.0.tar.gz"


@pytest.mark.parametrize(
    ("names", "python", "reason", "words"),
    [
        (
            ["torch-2.4.0-cp38-cp38-manylinux1_x86_64.whl", "torch-2.4.0-cp310-cp310-win_amd64.whl"],
            PY313,
            Reason.TAGS,
            "torch 2.4.0 has no wheel for Python 3.13: cp38, cp310 only",
        ),
        (
            ["torch-2.4.0-cp312-cp312-manylinux1_x86_64.whl", "torch-2.4.0.tar.gz"],
            PY313,
            Reason.TAGS,
            (
                "torch 2.4.0 has no wheel for Python 3.13: cp312 only;"
                " building its source distribution is not allowed (options.allow-build)"
            ),
        ),
        (
            ["torch-2.4.0-cp312-cp312-win_amd64.whl", "torch-2.4.0-cp312-cp312-macosx_11_0_arm64.whl"],
            PY312,
            Reason.TAGS,
            (
                "torch 2.4.0 has no wheel for linux x86_64 (manylinux_2_28_x86_64):"
                " macosx_11_0_arm64, win_amd64 only"
            ),
        ),
        (
            ["torch-2.4.0-cp313-cp313t-manylinux_2_28_x86_64.whl"],
            PY313,
            Reason.TAGS,
            "torch 2.4.0 has no wheel for Python 3.13 with ABI cp313: cp313-cp313t only",
        ),
        (
            ["torch-2.4.0.tar.gz"],
            PY313,
            Reason.SDIST,
            "torch 2.4.0 has only a source distribution, and building is not allowed (options.allow-build)",
        ),
    ],
)
def test_a_version_without_a_usable_file_has_a_reason(
    names: list[str], python: object, reason: Reason, words: str
) -> None:
    policy = replace(Policy(environment=PY312), environment=python)  # type: ignore[arg-type]
    assert only_reason(judged(*names, policy=policy, name="torch")) == (reason, words)


def test_requires_python_is_judged_for_each_file() -> None:
    name = "demo-1.0-py3-none-any.whl"
    reason, words = only_reason(judged(name, requires_python=">=3.13"))
    assert (reason, words) == (Reason.REQUIRES_PYTHON, "demo 1.0 needs Python >=3.13, and this is 3.12.4")
    (candidate,) = judged(name, requires_python="not a specifier").candidates
    assert candidate.files[0].requires_python is None
    mixed = [*files(name, requires_python=">=3.13"), *files("demo-1.0-1-py3-none-any.whl")]
    (candidate,) = judge_files(DEMO, mixed, Policy(environment=PY312)).candidates
    assert [file.filename for file in candidate.files] == ["demo-1.0-1-py3-none-any.whl"]


def test_no_binary_leaves_the_sdist() -> None:
    names = ["demo-1.0-py3-none-any.whl", "demo-1.0.tar.gz"]
    policy = Policy(environment=PY312, no_binary=frozenset({":all:"}))
    reason, _ = only_reason(judged(*names, policy=policy))
    assert reason is Reason.NO_BINARY
    (candidate,) = judged(*names, policy=replace(policy, allow_build=frozenset({"demo"}))).candidates
    assert [file.filename for file in candidate.files] == ["demo-1.0.tar.gz"]


def test_a_yanked_version_stays_a_marked_candidate() -> None:
    result = judged("demo-1.0-py3-none-any.whl", yanked="broken")
    assert result.candidates[0].files[0].yanked == "broken"
    assert [(r.reason, r.detail) for r in result.rejections] == [
        (Reason.YANKED, "demo 1.0 was yanked: broken")
    ]


def test_a_file_that_is_not_yanked_precedes_a_better_yanked_one() -> None:
    good = files("demo-1.0-py3-none-any.whl")
    yanked = files("demo-1.0-cp312-cp312-manylinux_2_28_x86_64.whl", yanked="")
    result = judge_files(DEMO, [*yanked, *good], Policy(environment=PY312))
    assert result.candidates[0].files == (good[0],)
    assert result.rejections == ()


def test_files_after_the_cutoff_are_rejected_with_a_reason() -> None:
    policy = Policy(environment=PY312, exclude_newer=NEW_YEAR)
    name = "demo-1.0-py3-none-any.whl"
    assert judged(name, policy=policy, upload_time=datetime(2023, 12, 31, tzinfo=timezone.utc)).candidates
    reason, words = only_reason(judged(name, policy=policy, upload_time=NEW_YEAR))
    assert reason is Reason.TOO_NEW
    assert words == "demo 1.0 was uploaded on 2024-01-01, and exclude-newer is 2024-01-01"
    reason, words = only_reason(judged(name, policy=policy, index="https://index.example/simple/"))
    assert reason is Reason.NO_UPLOAD_TIME
    assert "https://index.example/simple/" in words
    naive = replace(policy, exclude_newer=NEW_YEAR.replace(tzinfo=None))
    assert only_reason(judged(name, policy=naive, upload_time=NEW_YEAR))[0] is Reason.TOO_NEW


def test_files_uploaded_after_the_cutoff_are_not_among_all_files() -> None:
    old = files("demo-1.0-py3-none-any.whl", upload_time=datetime(2023, 1, 1, tzinfo=timezone.utc))
    new = files("demo-1.0-1-py3-none-any.whl", upload_time=datetime(2025, 1, 1, tzinfo=timezone.utc))
    policy = Policy(environment=PY312, exclude_newer=NEW_YEAR)
    (candidate,) = judge_files(DEMO, [*old, *new], policy).candidates
    assert candidate.all_files == tuple(old)


@pytest.mark.parametrize(
    ("filename", "reason"),
    [
        ("other-1.0-py3-none-any.whl", Reason.OTHER_PROJECT),
        ("demo-one-py3-none-any.whl", Reason.UNREADABLE),
        ("demo-1.0.whl", Reason.UNREADABLE),
        ("demo-1.0-x-py3-none-any.whl", Reason.UNREADABLE),
        ("demo.tar.gz", Reason.UNREADABLE),
        ("demo-latest.zip", Reason.UNREADABLE),
        ("demo-1.0.exe", None),
        ("demo-1.0-py3.9.egg", None),
        ("demo-1.0.tar.gz.asc", None),
    ],
)
def test_an_invalid_file_name_is_rejected(filename: str, reason: Reason | None) -> None:
    result = judged(filename)
    assert result.candidates == ()
    assert [rejection.reason for rejection in result.rejections] == ([] if reason is None else [reason])


@pytest.mark.parametrize(
    ("project", "filename", "version"),
    [
        ("my-demo", "my-demo-1.0.tar.gz", "1.0"),
        ("my-demo", "My_Demo-1.0.zip", "1.0"),
        ("my-demo", "my.demo-1.0-1.tar.gz", "1.0.post1"),
        ("demo-2", "demo-2-3.tar.gz", "3"),
    ],
)
def test_old_sdist_names_are_parsed(project: str, filename: str, version: str) -> None:
    policy = Policy(environment=PY312, allow_build=frozenset({project}))
    (candidate,) = judged(filename, policy=policy, name=project).candidates
    assert candidate.version == Version(version)


# -- sources


def fill(folder: Path) -> None:
    make_wheel(folder, "demo", "1.0", requires=["dep>=1"])
    make_wheel(folder, "demo", "2.0", requires=["dep>=2", 'extra-dep; extra == "more"'], extras=["more"])
    make_wheel(folder, "dep", "2.1", requires_python=">=3.9")


index = index_fixture(fill)


def entries_of(name: str, **facts: Any) -> dict[NormalizedName, PackageEntry]:
    one = entry(name, **facts)
    return {one.name: one}


def lines(requirements: Sequence[Requirement]) -> list[str]:
    return [str(requirement) for requirement in requirements]


@pytest.mark.parametrize("formats", [("json",), ("html",), ("html", "json")])
def test_an_index_is_read_in_either_format(index: Path, fetcher: Fetcher, formats: tuple[str, ...]) -> None:
    with IndexServer(index, formats=formats) as server:
        source = source_of(fetcher, server.url)
        result = source.judge(DEMO)
        assert names_of(result.candidates) == ["demo 2.0", "demo 1.0"]
        assert result.where == (server.url,)
        best = result.candidates[0]
        assert best.file is not None
        assert best.file.index == server.url
        assert (
            best.file.hashes["sha256"]
            == hashlib.sha256((index / best.file.filename).read_bytes()).hexdigest()
        )
        found = source.metadata(best)
        assert lines(found.requires) == ["dep>=2", 'extra-dep; extra == "more"']
        assert found.extras == {"more"}
        # The page once, the metadata once, however often it is asked.
        source.judge(DEMO)
        source.metadata(best)
        assert len(server.requests) == 2
        assert server.paths[1].endswith(".whl.metadata")


def test_files_are_read_for_the_versions_that_somebody_looks_at() -> None:
    read: list[str] = []
    versions = [Version(text) for text in ("3.0", "2.0", "1.0")]

    def files_of(version: Version) -> list[File]:
        read.append(str(version))
        return files(f"demo-{version}-py3-none-any.whl" if str(version) != "3.0" else "demo-3.0.tar.gz")

    listed = FilesByVersion(versions=versions, read=files_of, others=lambda: files("other-1.0.zip"))
    judged = judge_files(DEMO, listed, Policy(environment=PY312))
    assert (bool(judged.candidates), read) == (True, ["3.0", "2.0"])
    assert str(judged.candidates[0]) == "demo 2.0"
    assert read == ["3.0", "2.0"]
    assert names_of(judged.candidates) == ["demo 2.0", "demo 1.0"]
    assert [str(one.version) for one in judged.rejections] == ["None", "3.0"]
    assert read == ["3.0", "2.0", "1.0"]


def test_one_page_is_that_of_a_project_and_of_links(server: IndexServer, tmp_path: Path) -> None:
    links = f"{server.url}demo/"
    for find_links in ((links,), (), (links,)):
        source = source_of(Fetcher(os.environ, cache=tmp_path), server.url, find_links=find_links)
        judged = source.judge(DEMO)
        assert names_of(judged.candidates) == ["demo 2.0", "demo 1.0"]
        origin = CandidateOrigin.FIND_LINKS if find_links else CandidateOrigin.INDEX
        assert {one.origin for one in judged.candidates} == {origin}


def test_expected_versions_are_fetched_before_somebody_asks(server: IndexServer, fetcher: Fetcher) -> None:
    reads = ReadOnce()
    source = source_of(fetcher, server.url, reads=reads)
    source.expect({DEMO: Version("1.0"), NormalizedName("unknown"): None})
    wanted = {"/files/demo-1.0-py3-none-any.whl.metadata", "/simple/demo/", "/simple/unknown/"}
    deadline = time.monotonic() + 30
    while not wanted <= set(server.paths) and time.monotonic() < deadline:
        time.sleep(0.01)
    reads.close()
    # What demo 1.0 requires is fetched in advance, too.
    assert {path for path in server.paths if not re.search(r"/dep[-/]", path)} == wanted


def test_an_unknown_project_is_not_found(server: IndexServer, fetcher: Fetcher) -> None:
    result = source_of(fetcher, server.url).judge(NormalizedName("unknown"))
    assert (result.found, result.candidates, result.where) == (False, (), (server.url,))


def test_a_failing_index_raises(server: IndexServer, fetcher: Fetcher) -> None:
    server.fault("/simple/demo/", Fault(status=403))
    source = source_of(fetcher, server.url)
    for _ in range(2):
        with pytest.raises(FetchFailed):
            source.judge(DEMO)
    assert len(server.requests) == 1


def test_parsed_pages_and_metadata_are_kept_for_the_next_process(
    server: IndexServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    first = source_of(fetcher, server.url)
    first.metadata(first.judge(DEMO).candidates[0])
    server.forget_requests()
    second = source_of(Fetcher(os.environ, cache=tmp_path / "cache"), server.url)
    assert second.judge(DEMO) == first.judge(DEMO)
    assert second.metadata(second.judge(DEMO).candidates[0]) == first.metadata(
        first.judge(DEMO).candidates[0]
    )
    assert [request.status for request in server.requests] == [304]


def test_a_quarantined_project_says_so(server: IndexServer, fetcher: Fetcher) -> None:
    status = {"status": "quarantined", "reason": "malware"}
    body = page_of(**{"project-status": status})
    server.fault("/simple/demo/", Fault(body=body, content_type=JSON))
    reason, words = only_reason(source_of(fetcher, server.url).judge(DEMO))
    assert reason is Reason.EXCLUDED
    assert "quarantined: malware" in words


def test_an_index_in_a_folder_is_read_like_any_other(index: Path, fetcher: Fetcher) -> None:
    page = index.parent / "simple" / "demo" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('<a href="../../index/demo-2.0-py3-none-any.whl">x</a>', encoding="utf-8")
    source = source_of(fetcher, (index.parent / "simple").as_uri())
    (candidate,) = source.judge(DEMO).candidates
    assert lines(source.metadata(candidate).requires)[0] == "dep>=2"
    assert not source.judge(NormalizedName("dep")).found


# -- which index


def test_an_index_named_for_a_package_is_the_only_one_asked(
    server: IndexServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    make_wheel(tmp_path / "own", "demo", "0.5")
    with IndexServer(tmp_path / "own") as own:
        source = source_of(
            fetcher,
            server.url,
            indexes=[Index(name="own", url=Url(own.url))],
            entries={**entries_of("demo", index="own"), **entries_of("dep", index="own")},
        )
        result = source.judge(DEMO)
        assert names_of(result.candidates) == ["demo 0.5"]
        assert result.where == (own.url,)
        assert not source.judge(NormalizedName("dep")).found
    assert server.requests == []


def test_the_first_default_index_that_knows_a_name_is_used(
    server: IndexServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    make_wheel(tmp_path / "own", "demo", "0.5")
    with IndexServer(tmp_path / "own") as own:
        source = source_of(fetcher, own.url, server.url)
        assert names_of(source.judge(DEMO).candidates) == ["demo 0.5"]
        dep = source.judge(NormalizedName("dep"))
        assert names_of(dep.candidates) == ["dep 2.1"]
        assert dep.where == (own.url, server.url)


def test_an_index_marked_default_replaces_the_default(server: IndexServer, fetcher: Fetcher) -> None:
    own = Index(name="own", url=Url(server.url), default=True)
    source = source_of(fetcher, "http://127.0.0.1:9/simple/", indexes=[own])
    assert source.judge(DEMO).found


def test_an_index_without_upload_times_needs_to_say_so(index: Path, fetcher: Fetcher) -> None:
    policy = Policy(environment=PY312, exclude_newer=NEW_YEAR)
    with IndexServer(index, upload_times=False) as server:
        refused = source_of(fetcher, server.url, policy=policy).judge(DEMO)
        assert {rejection.reason for rejection in refused.rejections} == {Reason.NO_UPLOAD_TIME}
        own = Index(name="own", url=Url(server.url), default=True, exclude_newer=False)
        assert source_of(fetcher, indexes=[own], policy=policy).judge(DEMO).candidates


def test_an_index_may_have_a_cutoff_of_its_own(server: IndexServer, fetcher: Fetcher) -> None:
    later = datetime(2024, 6, 1, tzinfo=timezone.utc)
    index = Index(name="own", url=Url(server.url), default=True, exclude_newer=later)
    policy = Policy(environment=PY312, exclude_newer=NEW_YEAR)
    assert source_of(fetcher, indexes=[index], policy=policy).judge(DEMO).candidates
    assert not source_of(fetcher, server.url, policy=policy).judge(DEMO).candidates


def test_the_preferred_local_label_comes_first(fetcher: Fetcher, tmp_path: Path) -> None:
    for version in ("1.0", "1.0+cpu", "2.0", "2.0+cu118", "1.5+cpu.1"):
        make_wheel(tmp_path / "builds", "demo", version)
    with IndexServer(tmp_path / "builds") as server:
        source = source_of(fetcher, server.url, entries=entries_of("demo", prefer_local="cpu"))
        found = names_of(source.judge(DEMO).candidates)
    assert found == ["demo 1.5+cpu.1", "demo 1.0+cpu", "demo 2.0+cu118", "demo 2.0", "demo 1.0"]


def test_a_gpu_variant_takes_no_cpu_build(fetcher: Fetcher, tmp_path: Path) -> None:
    make_wheel(tmp_path / "links", "demo", "2.1+cpu")
    make_wheel(tmp_path / "links", "demo", "2.0")
    variants = {
        name: Variant(name=name, system=SystemRequirements(accelerator=name)) for name in ("cuda", "none")
    }
    matrix = Matrix(name="m", source="m.toml", digest="0", variants=variants)
    found = {}
    for name in variants:
        source = IndexSource.for_matrix(
            replace(matrix, variant=name),
            environment=PY312,
            fetcher=fetcher,
            default_index=str(tmp_path / "empty"),
            find_links=[str(tmp_path / "links")],
        )
        found[name] = names_of(source.judge(DEMO).candidates)
    assert found == {"cuda": ["demo 2.0"], "none": ["demo 2.1+cpu", "demo 2.0"]}


def test_credentials_of_an_index_are_used_and_not_recorded(index: Path, fetcher: Fetcher) -> None:
    with IndexServer(index, auth=("user", "secret"), announce_metadata=False) as server:
        source = source_of(fetcher, server.url.replace("http://", "http://user:secret@"))
        result = source.judge(DEMO)
        assert lines(source.metadata(result.candidates[0]).requires)[0] == "dep>=2"
    assert "secret" not in repr(result)


# -- find-links


@pytest.mark.parametrize("form", ["path", "uri"])
def test_find_links_come_before_any_index(
    server: IndexServer, fetcher: Fetcher, tmp_path: Path, form: str
) -> None:
    own = make_wheel(tmp_path / "links", "demo", "1.0", requires=["own-dep"])
    make_wheel(tmp_path / "links", "demo", "0.1")
    (tmp_path / "links" / "notes.txt").write_text("no wheel", encoding="utf-8")
    link = str(own.parent) if form == "path" else own.parent.as_uri()
    source = source_of(fetcher, server.url, find_links=[link], policy=Policy(environment=PY312))
    found = source.judge(DEMO)
    assert [(str(c), c.origin) for c in found.candidates] == [
        ("demo 1.0", CandidateOrigin.FIND_LINKS),
        ("demo 0.1", CandidateOrigin.FIND_LINKS),
        ("demo 2.0", CandidateOrigin.INDEX),
    ]
    assert found.candidates[0].file == File(
        filename=own.name,
        url=own.as_uri(),
        hashes={"sha256": hashlib.sha256(own.read_bytes()).hexdigest()},
        size=own.stat().st_size,
    )
    assert lines(source.metadata(found.candidates[0]).requires) == ["own-dep"]


def test_find_links_are_enough_offline(tmp_path: Path) -> None:
    make_wheel(tmp_path / "links", "demo", "1.0")
    offline = Fetcher(os.environ, cache=tmp_path / "cache", offline=True)
    source = source_of(offline, "https://index.invalid/simple/", find_links=[str(tmp_path / "links")])
    assert names_of(source.judge(DEMO).candidates) == ["demo 1.0"]
    other = source.judge(NormalizedName("other"))
    assert (other.candidates, other.found) == ((), False)
    assert "offline" in other.rejections[0].detail
    assert source.unreached[NormalizedName("other")].message == other.rejections[0].detail


def test_the_cutoff_does_not_apply_to_find_links(fetcher: Fetcher, tmp_path: Path) -> None:
    make_wheel(tmp_path / "links", "demo", "1.0")
    policy = Policy(environment=PY312, exclude_newer=NEW_YEAR)
    source = source_of(fetcher, find_links=[str(tmp_path / "links")], policy=policy)
    assert source.judge(DEMO).candidates
    assert not source.judge(NormalizedName("dep")).found


def test_find_links_may_be_a_page(index: Path, server: IndexServer, fetcher: Fetcher) -> None:
    links = "".join(
        f'<a href="/files/{path.name}#sha256={file_digest(path)}">{path.name}</a>'
        for path in sorted(index.iterdir())
    )
    page = index.parent / "links.html"
    page.write_text(links.replace("/files/", f"{server.root}/files/"), encoding="utf-8")
    source = source_of(fetcher, find_links=[str(page)])
    candidate = source.judge(DEMO).candidates[0]
    assert (str(candidate), candidate.origin) == ("demo 2.0", CandidateOrigin.FIND_LINKS)
    assert lines(source.metadata(candidate).requires)[0] == "dep>=2"


def test_a_missing_find_links_folder_raises(fetcher: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="no folder"):
        source_of(fetcher, find_links=[str(tmp_path / "gone")]).judge(DEMO)


# -- direct references


def test_a_direct_reference_to_a_wheel_is_a_candidate(
    server: IndexServer, fetcher: Fetcher, index: Path
) -> None:
    wheel = index / "demo-1.0-py3-none-any.whl"
    url = server.file_url(wheel.name)
    source = source_of(fetcher, server.url, entries=entries_of("demo", url=url))
    (candidate,) = source.judge(DEMO).candidates
    assert (str(candidate), candidate.origin) == ("demo 1.0", CandidateOrigin.DIRECT)
    assert candidate.file is not None
    # A lock needs a hash, so one that is not given is found out.
    assert candidate.file.hashes == {"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    assert lines(source.metadata(candidate).requires) == ["dep>=1"]
    assert "/simple/demo/" not in server.paths


def test_a_local_wheel_with_a_wrong_hash_is_refused(fetcher: Fetcher, index: Path) -> None:
    url = f"{index / 'demo-1.0-py3-none-any.whl'}#sha256={'0' * 64}"
    source = source_of(fetcher, entries=entries_of("demo", url=url))
    (candidate,) = source.judge(DEMO).candidates
    with pytest.raises(BadDistribution, match=r"hash .*, expected"):
        source.metadata(candidate)


def test_a_direct_reference_that_does_not_fit_is_rejected(fetcher: Fetcher, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "demo", "1.0", tag="cp39-cp39-win_amd64")
    result = source_of(fetcher, entries=entries_of("demo", url=str(wheel))).judge(DEMO)
    assert only_reason(result)[0] is Reason.TAGS


def test_a_source_archive_needs_allow_build(fetcher: Fetcher, tmp_path: Path) -> None:
    sdist = make_sdist(tmp_path, "demo", "1.2", requires=["dep"])
    entries = entries_of("demo", url=sdist.as_uri())
    assert only_reason(source_of(fetcher, entries=entries).judge(DEMO))[0] is Reason.SDIST
    policy = Policy(environment=PY312, allow_build=frozenset({"demo"}))
    source = source_of(fetcher, entries=entries, policy=policy)
    (candidate,) = source.judge(DEMO).candidates
    assert str(candidate) == "demo 1.2"
    assert lines(source.metadata(candidate).requires) == ["dep"]


def test_a_rebuilt_archive_is_known_without_fetching_it(fetcher: Fetcher) -> None:
    facts = {
        "url": "http://127.0.0.1:9/v0.4.0.tar.gz",
        "version": "0.4.0",
        "sha256": "ab" * 32,
        "source_root": "src",
        "requires_dist": (Requirement("fire"), Requirement("art")),
    }
    source = source_of(fetcher, entries=entries_of("axolotl", **facts))
    (candidate,) = source.judge(NormalizedName("axolotl")).candidates
    assert str(candidate.version).startswith("0.4.0+colablock.")
    assert lines(source.metadata(candidate).requires) == ["fire", "art"]
    changed = source_of(
        fetcher, entries=entries_of("axolotl", **{**facts, "requires_dist": (Requirement("fire"),)})
    )
    assert changed.judge(NormalizedName("axolotl")).candidates[0].version != candidate.version


def test_an_index_package_with_replaced_requirements_has_our_label(
    server: IndexServer, fetcher: Fetcher
) -> None:
    source = source_of(
        fetcher, server.url, entries=entries_of("demo", requires_dist=(Requirement("only-this"),))
    )
    newest, older = source.judge(DEMO).candidates
    assert newest.version.public == "2.0"
    assert str(newest.version.local).startswith("colablock.")
    assert newest.version.local != older.version.local
    assert SpecifierSet("==2.0").contains(newest.version)
    assert lines(source.metadata(newest).requires) == ["only-this"]


@pytest.mark.parametrize(
    ("url", "words", "hint"),
    [
        (
            "git+https://github.com/owner/repo.git@v1.0",
            "names the repository",
            "https://github.com/owner/repo/archive/v1.0.tar.gz",
        ),
        ("git+https://forge.example/owner/repo", "names the repository", "archive of one commit"),
        ("https://forge.example/page", "neither a wheel nor an archive", ".tar.gz"),
    ],
)
def test_an_unsupported_direct_reference_is_refused_with_a_hint(
    fetcher: Fetcher, url: str, words: str, hint: str
) -> None:
    with pytest.raises(FetchFailed, match=words) as caught:
        source_of(fetcher, entries=entries_of("demo", url=url)).judge(DEMO)
    assert hint in (caught.value.hint or "")


def test_a_folder_as_a_direct_reference_is_refused(fetcher: Fetcher, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="names the folder"):
        source_of(fetcher, entries=entries_of("demo", url=str(tmp_path))).judge(DEMO)


def test_requirements_of_an_sdist_come_from_its_build(fetcher: Fetcher, tmp_path: Path) -> None:
    make_sdist(tmp_path / "old", "demo", "1.0", requires=["dep"], static=False)
    builder = Builder(python=sys.executable, environment=PY312, cache=fetcher.cache, environ=os.environ)
    policy = Policy(environment=PY312, allow_build=frozenset({"demo"}))
    with IndexServer(tmp_path / "old") as server:
        source = source_of(fetcher, server.url, policy=policy, build=builder)
        (candidate,) = source.judge(DEMO).candidates
        assert lines(source.metadata(candidate).requires) == ["dep"]


# -- the rest


def test_installed_candidates_have_their_own_metadata(fetcher: Fetcher) -> None:
    there = Installed(name=DEMO, version="1.0", requires=("dep>=1", "broken line >="), extras=("More",))
    candidate = Candidate(
        name=DEMO, version=Version("1.0"), origin=CandidateOrigin.INSTALLED, installed=there
    )
    found = source_of(fetcher).metadata(candidate)
    assert lines(found.requires) == ["dep>=1"]
    assert found.extras == {"more"}


def test_prefetching_fetches_requirements_ahead(server: IndexServer, fetcher: Fetcher) -> None:
    reads = ReadOnce()
    entries = entries_of("demo", specifier=SpecifierSet("==1.0"))
    source = source_of(fetcher, server.url, entries=entries, reads=reads)
    source.prefetch([DEMO])
    deadline = time.monotonic() + 30
    while len(server.requests) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)  # a page and a metadata file of demo 1.0 and of dep
    reads.close(wait=True)
    server.forget_requests()
    one, dep = source.judge(DEMO).candidates[1], source.judge(NormalizedName("dep")).candidates[0]
    assert lines(source.metadata(one).requires) == ["dep>=1"]
    assert source.metadata(dep).requires_python == ">=3.9"
    assert server.requests == []


def test_prefetching_never_raises(fetcher: Fetcher) -> None:
    reads = ReadOnce()
    source = source_of(fetcher, "http://127.0.0.1:9/simple/", reads=reads)
    source.prefetch([DEMO])
    with pytest.raises(FetchFailed):
        source.judge(DEMO)
    reads.close()
    source.prefetch([NormalizedName("late")])


def test_what_waits_to_be_read_ahead_is_not_read_after_the_end_of_the_call() -> None:
    """The process would end only when all of it is read."""
    reads, gate = ReadOnce(), threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        gate.wait(PATIENCE)
        done.append(number)

    for number in range(100):
        reads.ahead(work, number)
    with open_session(quiet=True) as session:
        settings = Settings(default_index=Url("http://127.0.0.1:9/simple/"))
        session.readers[settings] = Fetcher(os.environ), reads
    reads.ahead(work, 100)
    gate.set()
    reads.close(wait=True)
    assert set(done) <= set(range(16))


def test_the_source_of_a_matrix_follows_markers_and_options(
    server: IndexServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    make_sdist(tmp_path / "own", "built", "1.0")
    make_wheel(tmp_path / "own", "demo", "0.1")
    with IndexServer(tmp_path / "own") as own:
        marked = Requirement("demo; python_version < '3'").marker
        matrix = Matrix(
            name="m",
            source="<text>",
            digest="",
            indexes=(Index(name="own", url=Url(own.url)),),
            packages=(
                *replace_all(entries_of("demo", index="own", marker=marked)),
                *replace_all(entries_of("demo", specifier=SpecifierSet("<2"))),
                *replace_all(entries_of("built", index="own")),
            ),
            options=Options(allow_build=frozenset({"built"})),
        )
        source = IndexSource.for_matrix(matrix, environment=PY312, fetcher=fetcher, default_index=server.url)
        # The entry that names an index does not hold here.
        assert names_of(source.judge(DEMO).candidates) == ["demo 2.0", "demo 1.0"]
        assert names_of(source.judge(NormalizedName("built")).candidates) == ["built 1.0"]


def replace_all(entries: dict[NormalizedName, PackageEntry]) -> Iterable[PackageEntry]:
    return entries.values()


def test_yanked_and_requires_python_of_a_real_page(server: IndexServer, fetcher: Fetcher) -> None:
    server.set("demo-2.0-py3-none-any.whl", yanked=True)
    server.set("demo-1.0-py3-none-any.whl", requires_python=">=3.13")
    result = source_of(fetcher, server.url).judge(DEMO)
    assert [c.files[0].yanked for c in result.candidates] == [""]
    assert {r.reason for r in result.rejections} == {Reason.YANKED, Reason.REQUIRES_PYTHON}


@pytest.mark.parametrize("body", [b"<h1>Log in</h1>", b'<a href="/help">Help</a>'])
def test_a_page_without_files_is_reported_by_its_url(
    body: bytes, server: IndexServer, fetcher: Fetcher
) -> None:
    server.fault("/simple/demo/", Fault(body=body, content_type="text/html"))
    _, words = only_reason(source_of(fetcher, server.url).judge(DEMO))
    assert words == f"its page at `{server.url}demo/` lists no files"
