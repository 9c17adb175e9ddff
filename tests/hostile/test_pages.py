"""Pages of an index that list files which must not be installed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from colablock.cli.main import main
from colablock.errors import ExitCode
from tests.support.hostile import INTO, Target
from tests.support.server import CERTIFICATE, Fault, IndexServer
from tests.support.wheels import make_wheel

WHEEL = "demo-1.0-py3-none-any.whl"
MATRIX = 'schema = 1\nname = "tiny"\n[packages]\ndemo = ""\n'
PAGE = "/simple/demo/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """The index over https and another server over http, with the same wheel in *folder*."""

    index: IndexServer
    plain: IndexServer
    folder: Path

    def hashes(self, name: str) -> str:
        """Return the hash of the wheel (hex)."""
        return hashlib.new(name, (self.folder / WHEEL).read_bytes()).hexdigest()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    folder = tmp_path / "files"
    folder.mkdir()
    make_wheel(folder, "demo", "1.0")
    with IndexServer(folder, tls=True) as index, IndexServer(folder) as plain:
        yield Servers(index=index, plain=plain, folder=folder)


@pytest.fixture
def in_target(target: Target, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Target:
    """Give an environment whose default index is the one over https."""
    monkeypatch.chdir(target.folder)
    for name, value in {
        "COLABLOCK_HOME": str(target.home),
        "COLABLOCK_CACHE_DIR": str(target.folder / "cache"),
        "COLABLOCK_DEFAULT_INDEX": servers.index.url,
        "SSL_CERT_FILE": str(CERTIFICATE),
        "COLABLOCK_RETRIES": "0",
    }.items():
        monkeypatch.setenv(name, value)
    (target.folder / "tiny.toml").write_text(MATRIX, encoding="utf-8")
    return target


def apply(target: Target, into: str, *more: str) -> int:
    return main(["apply", "tiny.toml", "--into", into, "--python", target.venv.python, "--yes", *more])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what standard error says, on one line and without the tag at its edge."""
    return " ".join(re.sub(r"\[[a-z-]+\]\n", "\n", capsys.readouterr().err).split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A link of a page: its address and hashes.  ``{hash}`` stands for the true hash of an algorithm.

    ``{https}`` and ``{http}`` are the roots of the servers, and ``{folder}`` is the local folder.
    """

    says: str
    url: str = "{https}/files/" + WHEEL
    hashes: dict[str, str] = field(default_factory=lambda: {"sha256": "true"})


UNHASHED = f"`{WHEEL}` is listed without a sha256, sha384 or sha512"
CASES = {
    "no hash": Case(hashes={}, says=UNHASHED),
    "md5": Case(hashes={"md5": "true"}, says=UNHASHED),
    "sha1": Case(hashes={"sha1": "true"}, says=UNHASHED),
    "sha224": Case(hashes={"sha224": "true"}, says=UNHASHED),
    "an unknown hash": Case(hashes={"sha257": "00"}, says=UNHASHED),
    "a hash in upper case": Case(hashes={"SHA256": "true"}, says=UNHASHED),
    "http": Case(url="{http}/files/" + WHEEL, says="would be fetched over http, and its page is over https"),
    "http in upper case": Case(
        url="{HTTP}/files/" + WHEEL,
        says="would be fetched over http, and its page is over https",
    ),
    "a local file": Case(url="file://{folder}/" + WHEEL, says="is a local file, and its page is remote"),
    "a plain path": Case(url="/etc/" + WHEEL, says="does not exist (404)"),
    "another scheme": Case(url="ftp://127.0.0.1/" + WHEEL, says="has an address of the scheme `ftp`"),
    "a second hash that is wrong": Case(
        hashes={"sha256": "true", "sha512": "0" * 128}, says="has the sha512 hash"
    ),
    "a first hash that is wrong": Case(
        hashes={"sha512": "true", "sha256": "0" * 64}, says="has the sha256 hash"
    ),
    "a hash that is none": Case(hashes={"sha256": ""}, says="has the sha256 hash"),
}


def page(case: Case, servers: Servers, form: str) -> Fault:
    """Return the page that lists the one file of *case* as JSON or HTML."""
    plain = servers.plain.root
    url = case.url.format(
        https=servers.index.root, http=plain, HTTP=plain.replace("http", "HTTP"), folder=servers.folder
    )
    hashes = {
        name: servers.hashes(name.lower()) if text == "true" else text for name, text in case.hashes.items()
    }
    if form == "json":
        entry = {"filename": WHEEL, "url": url, "hashes": hashes}
        body = json.dumps({"meta": {"api-version": "1.1"}, "name": "demo", "files": [entry]})
        return Fault(body=body.encode(), content_type="application/vnd.pypi.simple.v1+json")
    fragment = "&".join(f"{name}={value}" for name, value in hashes.items())
    return Fault(body=f'<a href="{url}#{fragment}">{WHEEL}</a>'.encode(), content_type="text/html")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_that_its_page_does_not_prove_is_not_installed(
    case: Case, in_target: Target, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    servers.index.fault(PAGE, page(case, servers, "json"))
    for into in INTO:
        with in_target.unchanged():
            code = apply(in_target, into)
        text = said(capsys)
        assert code == ExitCode.UNMET, text
        assert case.says in text


HTML = ("no hash", "md5", "an unknown hash", "http", "a local file")


@pytest.mark.parametrize("name", HTML)
def test_a_link_of_an_html_page_is_judged_alike(
    name: str, in_target: Target, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    servers.index.fault(PAGE, page(CASES[name], servers, "html"))
    with in_target.unchanged():
        assert apply(in_target, "kernel") == ExitCode.UNMET
    assert CASES[name].says in said(capsys)


@pytest.mark.parametrize("name", HTML)
def test_a_page_of_find_links_is_judged_alike(
    name: str, in_target: Target, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    servers.index.fault("/links/", replace(page(CASES[name], servers, "html"), status=200))
    servers.index.fault(PAGE, Fault(status=404))
    with in_target.unchanged():
        code = apply(in_target, "kernel", "--find-links", f"{servers.index.root}/links/")
    text = said(capsys)
    assert code == ExitCode.UNMET, text
    assert CASES[name].says in text


@pytest.mark.parametrize("hashes", [{"sha256": "true"}, {"sha384": "true"}, {"sha512": "true", "md5": "00"}])
def test_a_strong_hash_is_enough(hashes: dict[str, str], in_target: Target, servers: Servers) -> None:
    servers.index.fault(PAGE, page(Case(hashes=hashes, says=""), servers, "json"))
    assert apply(in_target, "kernel") == ExitCode.DONE
    assert (in_target.venv.site / "demo").is_dir()


@pytest.mark.parametrize("to", ["{http}{path}", "file:///srv{path}", "ftp://127.0.0.1{path}"])
@pytest.mark.parametrize("path", [PAGE, f"/files/{WHEEL}", f"/files/{WHEEL}.metadata"])
def test_a_redirect_does_not_leave_https(
    path: str, to: str, in_target: Target, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    servers.index.redirect(path, to.format(http=servers.plain.root, path=path))
    with in_target.unchanged():
        assert apply(in_target, "kernel") == ExitCode.UNMET
    text = said(capsys)
    assert "redirects to an " in text
    assert servers.plain.requests == []


def test_an_archive_over_http_needs_a_hash(in_target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    text = MATRIX.replace('demo = ""', f'demo = {{ url = "http://files.invalid/{WHEEL}" }}')
    (in_target.folder / "tiny.toml").write_text(text, encoding="utf-8")
    with in_target.unchanged():
        assert apply(in_target, "kernel") == ExitCode.UNMET
    assert "which is fetched over http, without a sha256" in said(capsys)


# -- metadata that is not the wheel's own


def test_metadata_of_one_index_is_not_believed_for_another(in_target: Target, servers: Servers) -> None:
    """Another index lists the true hash of the wheel, and metadata that plants a requirement."""
    lying = b"Metadata-Version: 2.1\nName: demo\nVersion: 1.0\nRequires-Dist: planted\n"
    with IndexServer(servers.folder) as other:
        other.fault(f"/files/{WHEEL}.metadata", Fault(status=200, body=lying))
        entry = {
            "filename": WHEEL,
            "url": other.file_url(WHEEL),
            "hashes": {"sha256": servers.hashes("sha256")},
            "core-metadata": {"sha256": hashlib.sha256(lying).hexdigest()},
        }
        other.fault(PAGE, _json(entry))
        argv = ["plan", "tiny.toml", "--into", "kernel", "--python", in_target.venv.python]
        assert main([*argv, "--default-index", other.url]) == ExitCode.UNMET  # `planted` is nowhere
    assert apply(in_target, "kernel") == ExitCode.DONE


LIES = {
    "a requirement that is not there": ("Requires-Dist: other\n", "Requires-Dist has `other`"),
    "a requirement less": ("", "Requires-Dist has `dep`"),
    "another Python": ("Requires-Dist: dep\nRequires-Python: >=3\n", "Requires-Python has `>=3`"),
    "an extra that is not there": ("Requires-Dist: dep\nProvides-Extra: x\n", "Provides-Extra has `x`"),
}


@pytest.mark.parametrize("into", INTO)
@pytest.mark.parametrize("lie", LIES)
def test_a_wheel_that_differs_from_its_metadata_file_is_refused(
    lie: str, into: str, in_target: Target, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    """The metadata is that of the page, hash included, but not that of the wheel."""
    fields, says = LIES[lie]
    make_wheel(servers.folder, "demo", "2.0", requires=["dep"])
    make_wheel(servers.folder, "dep", "1.0")
    make_wheel(servers.folder, "other", "1.0")
    wheel = "demo-2.0-py3-none-any.whl"
    lying = f"Metadata-Version: 2.1\nName: demo\nVersion: 2.0\n{fields}".encode()
    entry = {
        "filename": wheel,
        "url": servers.index.file_url(wheel),
        "hashes": {"sha256": hashlib.sha256((servers.folder / wheel).read_bytes()).hexdigest()},
        "core-metadata": {"sha256": hashlib.sha256(lying).hexdigest()},
    }
    servers.index.fault(PAGE, _json(entry))
    servers.index.fault(f"/files/{wheel}.metadata", Fault(status=200, body=lying))
    with in_target.unchanged():
        code = apply(in_target, into)
    text = said(capsys)
    assert code == ExitCode.UNMET, text
    assert f"`{wheel}` is not what the plan was made for" in text
    assert says in text
    servers.index.fault(f"/files/{wheel}.metadata", Fault(status=404))
    assert apply(in_target, into) == ExitCode.DONE  # the lie is not kept


def test_a_metadata_file_with_another_hash_is_refused(
    in_target: Target, servers: Servers, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {
        "filename": WHEEL,
        "url": servers.index.file_url(WHEEL),
        "hashes": {"sha256": servers.hashes("sha256")},
        "core-metadata": {"sha256": "0" * 64},
    }
    servers.index.fault(PAGE, _json(entry))
    with in_target.unchanged():
        assert apply(in_target, "kernel") == ExitCode.UNMET
    assert f"`{WHEEL}.metadata`" in said(capsys)


def _json(entry: Mapping[str, object]) -> Fault:
    body = json.dumps({"meta": {"api-version": "1.1"}, "name": "demo", "files": [entry]})
    return Fault(body=body.encode(), content_type="application/vnd.pypi.simple.v1+json")
