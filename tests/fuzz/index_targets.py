"""Parsers of what indexes, caches and archives hold."""

from __future__ import annotations

import io
import shutil
import zipfile
from functools import cache, partial
from pathlib import Path

from colablock._common.urls import Url
from colablock.bundles.manifest import FORMAT, BundleManifest
from colablock.bundles.reader import Bundle
from colablock.bundles.writer import Source, write_bundle
from colablock.check.advisories import AuditedRelease, AuditResult, read_news
from colablock.display.check_view import audit_document
from colablock.display.text import to_text
from colablock.index.candidates import File
from colablock.index.core_metadata import parse_core_metadata, read_wheel_metadata, static_metadata
from colablock.index.evaluator import judge_files, parse_wheel_name
from colablock.index.metadata_fetcher import MetadataSource, contents_key
from colablock.index.project_pages import read_page
from colablock.index.rebuilt_wheel import rebuild
from colablock.index.simple_api import parse_page
from colablock.matrix.model import PackageEntry
from colablock.network.cache import PARSED, Cache
from colablock.network.cache_prune import clean, contents, prune
from colablock.network.fetcher import Fetcher
from colablock.network.page_cache import PageCache
from tests.fuzz.target import DEMO, METADATA, POLICY, PROJECT, Target, fetcher_in, json_bytes, target
from tests.support.wheels import make_sdist, make_wheel

__all__ = ["INDEX"]


# Indexes

_PAGE = {
    "meta": {"api-version": "1.1"},
    "name": "demo",
    "project-status": {"status": "archived", "reason": "done"},
    "versions": ["1.0", "1.1"],
    "files": [
        {
            "filename": "demo-1.0-cp312-cp312-manylinux_2_17_x86_64.whl",
            "url": "https://files.example/demo-1.0-cp312-cp312-manylinux_2_17_x86_64.whl#sha256=" + "a" * 64,
            "hashes": {"sha256": "a" * 64},
            "requires-python": ">=3.9",
            "size": 1000,
            "upload-time": "2024-01-02T03:04:05.678901Z",
            "yanked": False,
            "core-metadata": {"sha256": "b" * 64},
        },
        {
            "filename": "demo-1.1.tar.gz",
            "url": "../../demo-1.1.tar.gz",
            "hashes": {"sha256": "c" * 64},
            "yanked": "broken",
            "dist-info-metadata": True,
            "upload-time": "2024-01-02T03:04:05Z",
        },
    ],
}
_HTML = b"""<!DOCTYPE html>
<html><head><meta name="pypi:repository-version" content="1.1">
<meta name="pypi:project-status" content="archived"><meta name="pypi:project-status-reason" content="x">
<base href="https://index.example/simple/demo/">
</head><body>
<a href="../../demo-1.0-py3-none-any.whl#sha256=00000000000000000000000000000000" data-yanked="x &amp; y"
 data-requires-python="&gt;=3.9" data-core-metadata="sha256=00">demo-1.0-py3-none-any.whl</a>
<a href="https://files.example/demo-2.0.tar.gz?x=y" data-dist-info-metadata="true">demo-2.0.tar.gz</a>
<!-- x --><script>y</script>
</body></html>
"""
_PAGE_URL = "https://index.example/simple/demo/"


def _page(data: bytes, _folder: Path, content_type: str = "application/vnd.pypi.simple.v1+json") -> object:
    listing = parse_page(data, content_type, _PAGE_URL)
    files = listing.files(_PAGE_URL)
    judged = judge_files(DEMO, files, POLICY)
    return [str(one) for one in (*judged.candidates, *judged.rejections)]


_ADVISORIES = {
    "info": {"name": "demo", "yanked": True, "yanked_reason": "broken"},
    "vulnerabilities": [
        {
            "id": "GHSA-48p4-8xcf-vxj5",
            "aliases": ["CVE-2025-50182"],
            "summary": None,
            "details": "One line.\nAnother.",
            "fixed_in": ["2.5.0", "1.26.20"],
            "link": "https://osv.example/x",
            "withdrawn": None,
        },
        {"id": "PYSEC-1", "aliases": ["CVE-2025-50182"], "withdrawn": "2025-01-01T00:00:00Z"},
    ],
}


def _advisories(data: bytes, _folder: Path) -> object:
    news = read_news(data, _PAGE_URL)
    if news is None:
        return None
    release = AuditedRelease(
        name="demo",
        version="1.0",
        asked="1.0",
        index=_PAGE_URL,
        advisories=news.advisories,
        yanked=news.yanked,
    )
    result = AuditResult(matrix="demo", locks=("x",), checked=1, findings=(release,))
    return result.facts(), to_text(audit_document(result))


def _content_type(data: bytes, folder: Path) -> object:
    return _page(_HTML, folder, data.decode("latin-1"))


def _index_file(folder: Path) -> Path:
    path = folder / "simple" / "index.json"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_bytes(json_bytes(_PAGE))
    return path


def _cached_listing(data: bytes, folder: Path) -> object:
    """Read a page of which the cache has the lines *data*."""
    fetcher, url, entry = _stored_listing(folder)
    head = (fetcher.cache.read(PARSED, entry) or b"").partition(b"\n")[0]
    fetcher.cache.write(PARSED, entry, head + b"\n" + data)
    found = read_page(fetcher, url, None, DEMO)
    assert found is not None
    judged = judge_files(DEMO, found[0], POLICY)
    return [str(one) for one in (*judged.candidates, *judged.rejections)]


def _stored_listing(folder: Path) -> tuple[Fetcher, str, str]:
    """Read a page, and return its URL and the key of its entry."""
    fetcher, url = fetcher_in(folder), str(_index_file(folder))
    shutil.rmtree(fetcher.cache.folder / PARSED, ignore_errors=True)
    read_page(fetcher, url, None, DEMO)
    (entry,) = (path for path in (fetcher.cache.folder / PARSED).rglob("*") if path.is_file())
    return fetcher, url, entry.name


@cache
def _listing_samples() -> tuple[bytes, ...]:
    import tempfile  # noqa: PLC0415 - once

    with tempfile.TemporaryDirectory() as name:
        fetcher, _, entry = _stored_listing(Path(name))
        data = fetcher.cache.read(PARSED, entry)
    assert data is not None
    return (data.partition(b"\n")[2],)


_HEAD = {
    "url": _PAGE_URL,
    "base": _PAGE_URL,
    "type": "text/html",
    "sha256": "0" * 64,
    "stored": "1700000000.0",
    "max-age": "600",
    "etag": '"x"',
    "modified": "",
}


def _cached_page(data: bytes, folder: Path) -> object:
    entries = Cache(folder / "cache")
    entries.write("pages", "key", data)
    pages = PageCache(entries, lambda: 1700000100.0)
    cached = pages.read("key")
    return None if cached is None else (pages.is_fresh(cached), cached.validators)


def _cached_metadata(data: bytes, folder: Path) -> object:
    fetcher = fetcher_in(folder)
    wheel = folder / "demo-1.0-py3-none-any.whl"
    if not wheel.exists():
        make_wheel(folder, "demo", "1.0", requires=["x>=1"])
    file = File(filename=wheel.name, url=wheel.as_uri(), hashes={"sha256": "a" * 64})
    key = contents_key(fetcher, file)
    assert key is not None
    fetcher.cache.write("metadata", key, data)
    return MetadataSource(fetcher).read(DEMO, None, file).parsed(wheel.name)


def _pruned(data: bytes, folder: Path, kind: str = "pages") -> object:
    cache = Cache(folder / "cache")
    cache.write(kind, "key", data)
    path = cache.path("files", "e" * 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    del cache
    return contents(folder / "cache"), clean(folder / "cache", ["demo"]), prune(folder / "cache", now=1e12)


# Metadata and archives


def _metadata(data: bytes, _folder: Path) -> object:
    found = parse_core_metadata(data)
    found.check("demo", None, "demo.whl")
    return found.parsed("demo.whl")


def _metadata_of_wheel(data: bytes, _folder: Path) -> object:
    return read_wheel_metadata(io.BytesIO(data), "demo-1.0-py3-none-any.whl").parsed("demo")


@cache
def _wheels() -> tuple[bytes, ...]:
    import tempfile  # noqa: PLC0415 - once

    with tempfile.TemporaryDirectory() as name:
        return (
            make_wheel(
                Path(name), "demo", "1.0", requires=["x>=1"], scripts={"demo": "demo:main"}
            ).read_bytes(),
        )


@cache
def _bundles() -> tuple[bytes, ...]:
    import tempfile  # noqa: PLC0415 - once

    names = ("tiny.toml", "pylock.tiny.toml", "files/demo-1.0-py3-none-any.whl")
    manifest = BundleManifest(
        format=FORMAT,
        matrix="tiny",
        kind="complete",
        python="3.12.11",
        platform="manylinux_2_35_x86_64",
        matrix_file=names[0],
        lock_file=names[1],
    )
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "tiny.bundle")
        write_bundle(path, manifest, {one: Source.of(one.encode()) for one in names})
        return (path.read_bytes(),)


def _bundle(data: bytes, folder: Path) -> object:
    """Open a bundle, and read what it has."""
    path = folder / "tiny.bundle"
    path.write_bytes(data)
    bundle = Bundle.open(path)
    into = folder / "into"
    into.mkdir(exist_ok=True)
    for member in bundle.manifest.members:
        bundle.copy(member, into / member.filename)
    bundle.unpack(into)
    return bundle.manifest.encoded()


@cache
def _sdists() -> tuple[bytes, ...]:
    import tempfile  # noqa: PLC0415 - once

    with tempfile.TemporaryDirectory() as name:
        return tuple(
            make_sdist(Path(name), "demo", "1.0", requires=["x>=1"], static=static).read_bytes()
            for static in (True, False)
        )


@cache
def _source_zips() -> tuple[bytes, ...]:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("demo-1.0/pyproject.toml", PROJECT)
        archive.writestr("demo-1.0/PKG-INFO", METADATA)
        archive.writestr("demo-1.0/demo/__init__.py", "x = 1\n")
    return (written.getvalue(),)


def _sdist(data: bytes, folder: Path) -> object:
    path = folder / "demo-1.0.tar.gz"
    path.write_bytes(data)
    return static_metadata(path)


def _sdist_project(data: bytes, folder: Path) -> object:
    """Rebuild an sdist whose ``pyproject.toml`` is *data*."""
    path = folder / "demo-1.0.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("demo-1.0/pyproject.toml", data)
        archive.writestr("demo-1.0/demo/__init__.py", "x = 1\n")
    entry = PackageEntry(name=DEMO, path="packages.demo", url=Url("https://h/demo-1.0.zip"), source_root=".")
    return rebuild(entry, path, cache=Cache(folder / "cache"))


def _rebuilt(data: bytes, folder: Path, name: str = "demo-1.0-py3-none-any.whl") -> object:
    path = folder / name
    path.write_bytes(data)
    root = None if name.endswith(".whl") else "."
    entry = PackageEntry(
        name=DEMO, path="packages.demo", url=Url(f"https://h/{name}"), requires_dist=(), source_root=root
    )
    return rebuild(entry, path, cache=Cache(folder / "cache"))


def _wheel_name(data: bytes, _folder: Path) -> object:
    name = data.decode("utf-8", "replace")
    files = [File(filename=name, url="https://h/x"), File(filename=f"{name}.tar.gz", url="https://h/x")]
    judged = judge_files(DEMO, files, POLICY)
    return parse_wheel_name(name), judged


INDEX: tuple[Target, ...] = (
    target("index-page-json", "json", _page, json_bytes(_PAGE), weight=3),
    target("index-page-html", "lines", partial(_page, content_type="text/html"), _HTML, weight=3),
    target("content-type", "lines", _content_type, b"text/html; charset=utf-8", b"application/json"),
    Target(name="cached-listing", form="lines", samples=_listing_samples, call=_cached_listing, weight=2),
    target("advisories", "json", _advisories, json_bytes(_ADVISORIES)),
    target("cached-page", "lines", _cached_page, json_bytes(_HEAD) + b"\n<html>", weight=2),
    target("cached-page-head", "json", _cached_page, json_bytes(_HEAD)),
    target(
        "cached-metadata",
        "json",
        _cached_metadata,
        json_bytes(
            {
                "name": "demo",
                "version": "1.0",
                "requires": ["x>=1"],
                "requires_python": ">=3",
                "extras": ["y"],
                "summary": None,
            }
        ),
        weight=2,
    ),
    target("pruned-page", "json", _pruned, json_bytes(_HEAD)),
    Target(name="pruned-file", form="zip", samples=_wheels, call=partial(_pruned, kind="metadata")),
    target("core-metadata", "lines", _metadata, METADATA, weight=4),
    Target(name="wheel-metadata", form="zip", samples=_wheels, call=_metadata_of_wheel, weight=3),
    Target(name="bundle", form="zip", samples=_bundles, call=_bundle, weight=2),
    Target(name="sdist", form="bytes", samples=_sdists, call=_sdist, weight=2),
    Target(name="source-zip", form="zip", samples=_source_zips, call=_sdist, weight=2),
    target("sdist-project", "toml", _sdist_project, PROJECT, weight=2),
    Target(name="rebuilt-wheel", form="zip", samples=_wheels, call=_rebuilt, weight=2),
    Target(
        name="rebuilt-archive",
        form="zip",
        samples=_source_zips,
        call=partial(_rebuilt, name="demo-1.0.zip"),
        weight=2,
    ),
    target(
        "file-name",
        "lines",
        _wheel_name,
        b"demo-1.0-1x-cp310.cp312-abi3.none-manylinux_2_17_x86_64.whl",
        b"demo-1.0.tar.gz",
        documented=(ValueError,),
        weight=2,
    ),
)
