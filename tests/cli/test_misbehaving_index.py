"""An index that misbehaves on purpose: what the command line makes of it, and what it says.

One table for the whole list.  Each case is a small index, what is wrong with it, and the outcome of
``colablock lock``: the exit code with all that stands on standard error, or the version that was locked.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from colablock.cli.main import main
from colablock.errors import ExitCode
from tests.support.fixtures import index_fixture
from tests.support.server import CERTIFICATE, Fault, IndexServer
from tests.support.wheels import make_wheel

pytestmark = pytest.mark.slow  # against servers, and nothing in it depends on the Python

PROGRESS = re.compile(r"Resolving tiny |  (stopped after )?(1 resolved, )?[0-9.]+ s$")
PAGE = "/simple/demo/"
NEWEST = "demo-2.0-py3-none-any.whl"
FILE = f"/files/{NEWEST}"
METADATA = f"{FILE}.metadata"
MATRIX = """\
schema = 1
name = "tiny"

[packages]
demo = "{specifier}"
"""


@dataclass(frozen=True, kw_only=True)
class IndexCase:
    """What is wrong with the index, and what comes of it.

    *says* is all of standard error but for the lines of progress, on one line, with ``{url}`` and
    ``{root}`` of the server in it; *tag* the reference of the error.  *demo* is the version in the lock,
    None where there is none; *asked* the paths that were asked for, where those matter.
    """

    server: Mapping[str, Any] = field(default_factory=dict)
    faults: Mapping[str, Fault] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    redirects: Mapping[str, str] = field(default_factory=dict)
    status: tuple[str, str] | None = None
    specifier: str = ">=1"
    more: str = ""
    argv: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    code: ExitCode = ExitCode.DONE
    says: str = ""
    tag: str = ""
    demo: str | None = None
    asked: Sequence[str] | None = None


def failed(says: str, hint: str = "", *, tag: str = "fetch-failed", **facts: Any) -> IndexCase:
    """Return a case in which nothing can be locked; what fails is tried once."""
    environ = {**ALONE, **facts.pop("environ", {})}
    told = f"error: {says}" + (f" hint: {hint}" if hint else "")
    return IndexCase(code=ExitCode.UNMET, says=told, tag=tag, environ=environ, **facts)


def unread(says: str, hint: str = "", **facts: Any) -> IndexCase:
    """Return a case in which the page of the project cannot be read."""
    return failed(f"demo cannot be looked up in the index `default`: {says}", hint, **facts)


def unreached(url: str, says: str, hint: str, **facts: Any) -> IndexCase:
    """Return a case in which nobody answers at the index *url*."""
    case = failed(f"demo cannot be looked up in the index `default` at `{url}`: {says}", hint, **facts)
    if not url.startswith("http://index."):
        return case
    note = f"note: `{url}` is read over http: others on the network can change what it lists"
    return replace(case, says=f"{note} {case.says}")


def unknown(says: str, hint: str = "", **facts: Any) -> IndexCase:
    """Return a case in which it cannot be learnt what the newest version needs."""
    whole = (
        f"the metadata of demo 2.0 cannot be read from `{NEWEST}`, which the index `{{url}}` lists: {says}"
    )
    return failed(whole, hint, **facts)


def unsolved(says: str, asks: str = "demo>=1", **facts: Any) -> IndexCase:
    """Return a case in which no candidate is left."""
    whole = f"no candidate fits `{asks}` because tiny asks for `{asks}` (packages.demo) and {says}"
    return failed(whole, tag="no-solution", **facts)


def done(version: str = "2.0", says: str = "", **facts: Any) -> IndexCase:
    """Return a case that ends well, with what is noted."""
    return IndexCase(demo=version, says=f"note: {says}" if says else "", **facts)


ALONE = {
    **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), ""),
    **dict.fromkeys(("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"), ""),
    "COLABLOCK_RETRIES": "0",
}
MIRROR = "set COLABLOCK_INDEX_DEFAULT to a mirror of it"
LATER = f"Try again later, or {MIRROR}"
LONGER = f"Try again later, or raise the limit with COLABLOCK_TIMEOUT (in seconds), or {MIRROR}"
NETWORK = f"Check the network connection, and HTTPS_PROXY if you use a proxy, or {MIRROR}"
WHO = (
    "Give a user and password for `127.0.0.1` in the URL of the index or in netrc, or query the keyring"
    " with `COLABLOCK_KEYRING_PROVIDER=subprocess`"
)
SIMPLE = "Check that the URL is that of a simple index (PEP 503): it often ends with `/simple/`"
NO_FILES = "its page at `{url}demo/` lists no files"
NO_TIME = (
    "demo {version} has no upload time: `{{url}}` gives none, so `exclude-newer` cannot be judged"
    " (`exclude-newer = false` in that [[index]] takes its files of any age)"
)
API_1 = b'{"meta": {"api-version": "1.0"}, "files": []}'
CASES: Mapping[str, IndexCase] = {
    "nothing wrong": done(asked=[PAGE, METADATA]),
    # Slow, and cut off
    "slow": done(faults={PAGE: Fault(delay=0.3)}),
    "too slow": unread(
        "`{url}demo/` sent nothing for 0.2 seconds",
        LONGER,
        faults={PAGE: Fault(delay=1.0)},
        environ={"COLABLOCK_TIMEOUT": "0.2"},
    ),
    "too slow, twice": unread(
        "`{url}demo/` sent nothing for 0.2 seconds, 2 times",
        LONGER,
        faults={PAGE: Fault(delay=1.0)},
        environ={"COLABLOCK_TIMEOUT": "0.2", "COLABLOCK_RETRIES": "1"},
    ),
    "stuck in the middle": unread(
        "`{url}demo/` sent nothing for 0.2 seconds",
        LONGER,
        faults={PAGE: Fault(pause=1.0)},
        environ={"COLABLOCK_TIMEOUT": "0.2"},
    ),
    "a page cut off once": done(faults={PAGE: Fault(truncate=20, times=1)}, asked=[PAGE, PAGE, METADATA]),
    "a page cut off": unread(
        "the response of `{url}demo/` was incomplete: the body ended after 20 of 45 bytes",
        LATER,
        faults={PAGE: Fault(truncate=20, body=API_1)},
    ),
    "metadata cut off once": done(faults={METADATA: Fault(truncate=20, times=1)}),
    "metadata cut off": unknown(
        "the response of `{root}" + METADATA + "` was incomplete: the body ended after 20 of 46 bytes",
        "Try again later",
        faults={METADATA: Fault(truncate=20)},
    ),
    "reset once": done(faults={PAGE: Fault(reset=True, times=1)}),
    "reset": unread(
        "the response of `{url}demo/` was incomplete: Connection reset by peer",
        LATER,
        faults={PAGE: Fault(reset=True)},
    ),
    # Statuses
    "429 with Retry-After in seconds": done(
        faults={PAGE: Fault(status=429, retry_after="1", times=1)}, asked=[PAGE, PAGE, METADATA]
    ),
    "503 with Retry-After as a date": done(
        faults={PAGE: Fault(status=503, retry_after="{soon}", times=1)}, asked=[PAGE, PAGE, METADATA]
    ),
    "429 for ever": unread(
        "`{url}demo/` answered 429 (Too Many Requests)", LATER, faults={PAGE: Fault(status=429)}
    ),
    "500 once": done(faults={PAGE: Fault(status=500, times=1)}),
    "500": unread(
        "`{url}demo/` answered 500 (Internal Server Error)", LATER, faults={PAGE: Fault(status=500)}
    ),
    "502 of a file": unknown(
        "`{root}" + METADATA + "` answered 502 (Bad Gateway)",
        "Try again later",
        faults={METADATA: Fault(status=502)},
    ),
    "401": unread("`{url}demo/` answered 401 (Unauthorized)", WHO, faults={PAGE: Fault(status=401)}),
    "403": unread("`{url}demo/` answered 403 (Forbidden)", WHO, faults={PAGE: Fault(status=403)}),
    "403 for who is known": unread(
        "`{url}demo/` answered 403 (Forbidden)",
        "Correct the user and password for `127.0.0.1`: the server does not accept them",
        faults={PAGE: Fault(status=403)},
        argv=["{with_password}"],
    ),
    "407": unread(
        "`{url}demo/` answered 407 (Proxy Authentication Required)", faults={PAGE: Fault(status=407)}
    ),
    "404": failed(
        "no index has `demo` because tiny asks for `demo>=1` (packages.demo) and it was searched for in"
        " {url}",
        "Check the spelling of `demo` in `{matrix}`",
        tag="no-solution",
        faults={PAGE: Fault(status=404)},
    ),
    "410": unread("`{url}demo/` answered 410 (Gone)", faults={PAGE: Fault(status=410)}),
    "a file that is not there": unknown(
        "`{root}" + FILE + "` does not exist (404)",
        "The index lists a file that it does not have. Try again later, or use another index or mirror",
        server={"announce_metadata": False},
        faults={FILE: Fault(status=404)},
    ),
    # Hosts
    "nobody there": unreached(
        "http://127.0.0.1:9/simple/",
        "no connection to `127.0.0.1`: Connection refused",
        NETWORK,
        argv=["http://127.0.0.1:9/simple/"],
    ),
    "a host that is not known": unreached(
        "http://index.invalid/simple/",
        "the host `index.invalid` cannot be resolved",
        NETWORK,
        argv=["http://index.invalid/simple/"],
    ),
    "a proxy that is not there": unreached(
        "http://index.invalid/simple/",
        "the proxy `http://127.0.0.1:9` does not connect to `index.invalid`: Connection refused",
        f"Correct HTTP_PROXY, or add `index.invalid` to NO_PROXY, or {MIRROR}",
        argv=["http://index.invalid/simple/"],
        environ={"HTTP_PROXY": "http://me:secret@127.0.0.1:9"},
    ),
    "no certificate to trust": unreached(
        "{url}",
        "the certificate of `127.0.0.1` is not trusted: self-signed certificate",
        "Set SSL_CERT_FILE to a file with the certificate of its issuer: the proxy or index of a company"
        " often has its own one",
        server={"tls": True},
    ),
    "plain HTTP where TLS is spoken": unreached(
        "{https}",
        "no encrypted connection to `127.0.0.1`: the server does not use TLS",
        "Use a URL with `http://` if the server has no encryption",
        argv=["{https}"],
    ),
    # Redirects
    "redirected": done(redirects={"/old/demo/": PAGE}, argv=["{root}/old/"]),
    "redirected in a circle": unread(
        "`{url}demo/` redirects more than 10 times",
        "Check the URL of the index: it redirects in a loop",
        redirects={PAGE: "/b/", "/b/": PAGE},
    ),
    "redirected to plain HTTP": unread(
        "`{url}demo/` redirects to an unencrypted address at `127.0.0.1`",
        "Use another index, or ask the operator of this one to correct the redirect",
        server={"tls": True},
        redirects={PAGE: "http://127.0.0.1:9/simple/demo/"},
        environ={"SSL_CERT_FILE": str(CERTIFICATE)},
    ),
    # Pages
    "HTML only": done(server={"formats": ["html"]}),
    "wrong content type": unread(
        "`{url}demo/` is neither a JSON nor an HTML page but `text/plain`",
        SIMPLE,
        faults={PAGE: Fault(content_type="text/plain")},
    ),
    "a login in place of the page": unsolved(
        NO_FILES, faults={PAGE: Fault(body=b"<h1>Log in</h1>", content_type="text/html")}
    ),
    "an empty page": unread(
        "`{url}demo/` is not a page of a simple index: it is empty", SIMPLE, faults={PAGE: Fault(body=b"")}
    ),
    "half a page": unread(
        "`{url}demo/` is not a page of a simple index: Input data was truncated",
        SIMPLE,
        faults={PAGE: Fault(body=API_1[:20])},
    ),
    "a page of another API": unread(
        "`{url}demo/` is not a page of a simple index: Object missing required field `meta`",
        SIMPLE,
        faults={PAGE: Fault(body=b'{"message": "hello"}')},
    ),
    "a page of a later API": unread(
        "`{url}demo/` has version 2.0 of the simple API, and colablock reads version 1",
        "a newer colablock may read it",
        faults={PAGE: Fault(body=API_1.replace(b"1.0", b"2.0"))},
    ),
    "a page without files": unsolved(NO_FILES, faults={PAGE: Fault(body=API_1)}),
    "garbage for gzip": unread(
        "`{url}demo/` sent a body that cannot be decompressed: Error -3 while decompressing data: incorrect"
        " header check",
        LATER,
        faults={PAGE: Fault(body=b"x" * 99, headers={"Content-Encoding": "gzip"})},
    ),
    "a page without end": unread(
        "`{url}demo/` sends more than 64 MiB, too much for the page of an index",
        "Check the URL of the index",
        faults={PAGE: Fault(body=gzip.compress(bytes(130 << 20), 1), headers={"Content-Encoding": "gzip"})},
    ),
    # What a page says of files
    "no metadata files": done(server={"announce_metadata": False}, asked=[PAGE, FILE]),
    "metadata files that are announced and not there": done(
        faults={METADATA: Fault(status=404)}, asked=[PAGE, METADATA, FILE]
    ),
    "no range support": done(server={"announce_metadata": False, "ranges": False}, asked=[PAGE, FILE, FILE]),
    "no sizes": done(server={"sizes": False}),
    "no upload times": done(server={"upload_times": False}),
    "no upload times for a cutoff": unsolved(
        f"{NO_TIME.format(version='2.0')} and {NO_TIME.format(version='1.0')}",
        server={"upload_times": False},
        more="exclude-newer = 2024-06-01T00:00:00Z\n",
    ),
    "wrong hash of the metadata": done(
        "1.0",
        f"not using demo 2.0: `{NEWEST}.metadata` from `{{root}}{METADATA}` has the sha256"
        f" hash {hashlib.sha256(b'Name: demo').hexdigest()}, expected {{metadata}}",
        faults={METADATA: Fault(body=b"Name: demo")},
    ),
    "wrong hash of a file": done(
        "1.0",
        f"not using demo 2.0: `{NEWEST}` from `{{root}}{FILE}` has the sha256 hash {{file}}, expected"
        f" {'0' * 64}",
        server={"announce_metadata": False, "ranges": False},
        facts={NEWEST: {"sha256": "0" * 64}},
    ),
    "wrong hash of the only file": failed(
        "no version of `demo` has valid metadata because tiny asks for `demo==2.0` (packages.demo)"
        f" and `{NEWEST}` from `{{root}}{FILE}` has the sha256 hash {{file}}, expected {'0' * 64}",
        tag="no-solution",
        specifier="==2.0",
        server={"announce_metadata": False, "ranges": False},
        facts={NEWEST: {"sha256": "0" * 64}},
    ),
    "no hash": done(
        says=f"`{NEWEST}` is listed without a sha256, sha384 or sha512: the lock has the hash of the file"
        f" that was fetched from `{{root}}{FILE}`",
        faults={PAGE: Fault(body=f'<a href="{FILE}">demo</a>'.encode(), content_type="text/html")},
    ),
    "no wheel under the name of one": done(
        "1.0",
        f"not using demo 2.0: `{NEWEST}` cannot be read as a wheel: File is not a zip file",
        server={"announce_metadata": False},
        faults={FILE: Fault(body=b"no wheel")},
    ),
    "yanked": done("1.0", facts={NEWEST: {"yanked": "broken on Sundays"}}),
    "yanked and asked for": done(
        "2.0",
        "demo 2.0 was yanked from its index: broken on Sundays",
        facts={NEWEST: {"yanked": "broken on Sundays"}},
        specifier="==2.0",
    ),
    "yanked and needed": unsolved(
        "demo 2.0 was yanked: broken on Sundays, and only `==` selects a yanked version",
        asks="demo>=2",
        facts={NEWEST: {"yanked": "broken on Sundays"}},
        specifier=">=2",
    ),
    "quarantined": unsolved(
        "its index has put demo in quarantine (quarantined: looks like malware)",
        status=("quarantined", "looks like malware"),
    ),
    "archived": done(
        says="the index marks demo as not active: archived: use `other`",
        status=("archived", "use `other`"),
    ),
    "deprecated, in HTML": done(
        says="the index marks demo as not active: deprecated: use `other`",
        server={"formats": ["html"]},
        status=("deprecated", "use `other`"),
    ),
    # Offline
    "offline": unread(
        "`{url}demo/` is not in the cache, and colablock is offline",
        "Run this once without `--offline` and COLABLOCK_OFFLINE, or name a folder with `--find-links`",
        argv=["--offline"],
    ),
}


def fill(folder: Path) -> None:
    for version in ("1.0", "2.0"):
        make_wheel(folder, "demo", version)


index = index_fixture(fill)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_comes_of_an_index_that_misbehaves(
    case: IndexCase, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(case.more + MATRIX.format(specifier=case.specifier))
    with IndexServer(index, **case.server) as server:
        prepare(server, case)
        known = places(server, index)
        code, out, err = lock(matrix, case, known, capsys)
    told = case.says.format(**known, matrix=matrix)
    tag = f" [{case.tag}] "
    assert (tag in err) == (case.tag != "")
    assert (code, err.replace(tag, " ")) == (case.code, told)
    assert (f'name = "demo"\nversion = "{case.demo}"' in out) == (case.demo is not None)
    assert case.asked is None or server.paths == list(case.asked)


def places(server: IndexServer, index: Path) -> dict[str, str]:
    """Return what the texts of a case may name."""
    wheel = index / NEWEST
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read("demo-2.0.dist-info/METADATA")
    return {
        "url": server.url,
        "root": server.root,
        "https": server.url.replace("http:", "https:"),
        "with_password": server.url.replace("://", "://me:secret@"),
        "file": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "metadata": hashlib.sha256(metadata).hexdigest(),
    }


def prepare(server: IndexServer, case: IndexCase) -> None:
    soon = formatdate(time.time() + 1.5, usegmt=True)
    for path, fault in case.faults.items():
        after = fault.retry_after and fault.retry_after.format(soon=soon)
        server.fault(path, replace(fault, retry_after=after))
    for path, to in case.redirects.items():
        server.redirect(path, to)
    for filename, facts in case.facts.items():
        server.set(filename, **facts)
    if case.status is not None:
        server.status("demo", *case.status)


def lock(
    matrix: Path, case: IndexCase, known: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Return exit code, standard output, and standard error on one line, of ``colablock lock``."""
    argv = [argument.format(**known) for argument in case.argv]
    default = argv.pop(0) if argv and not argv[0].startswith("-") else known["url"]
    environ = {**os.environ, "COLUMNS": "80", **case.environ}
    code = main(["lock", str(matrix), "--default-index", default, "--output", "-", *argv], environ)
    captured = capsys.readouterr()
    assert "secret" not in captured.out + captured.err
    lines = [line for line in captured.err.splitlines() if not PROGRESS.match(line)]
    return code, captured.out, " ".join(" ".join(lines).split())
