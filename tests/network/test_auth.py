"""Credentials from URLs, netrc and the keyring, and trusted certificates."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from colablock._common.fs import file_digest
from colablock._vendor.packaging.utils import NormalizedName
from colablock.cli.main import main
from colablock.errors import ExitCode, FetchFailed
from colablock.network.auth import Credentials
from tests.support.fetching import fetcher_in, source_of
from tests.support.fixtures import index_fixture, server_fixture
from tests.support.server import CERTIFICATE, Fault, IndexServer
from tests.support.wheels import make_wheel

NONE = dict.fromkeys(("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "SSL_CLIENT_CERT"), "")
USER, PASSWORD = "user@x", "s3:cret"
KEYRING = """\
#!{python}
import sys
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if sys.stdin.read() or {silent!r}:
    sys.exit("it asks for a password")
try:
    open("/dev/tty").close()
except OSError:
    pass
else:
    sys.exit("it has a terminal to ask at")
known = {known!r}
service = sys.argv[-1] if "creds" in sys.argv else sys.argv[-2]
if service not in known:
    sys.exit(1)
user, password = known[service]
if "creds" in sys.argv:
    print(user)
elif sys.argv[-1] != user:
    sys.exit(1)
print(password)
"""


@dataclass(frozen=True)
class Keyring:
    """A fake ``keyring`` command."""

    folder: Path

    def knows(self, known: Mapping[str, tuple[str, str]], *, silent: bool = False) -> dict[str, str]:
        """Let it know *known*, and return the variables with which it is found and asked."""
        script = self.folder / "bin" / "keyring"
        script.parent.mkdir(exist_ok=True)
        facts = {"python": sys.executable, "log": str(self.log), "silent": silent, "known": known}
        script.write_text(KEYRING.format(**facts), encoding="utf-8")
        script.chmod(0o755)
        return {"PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}"}

    @property
    def log(self) -> Path:
        return self.folder / "keyring.log"

    @property
    def asked(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path)


def fill(folder: Path) -> None:
    make_wheel(folder, "demo", "1.0", requires=["dep"])
    make_wheel(folder, "dep", "1.0")


index = index_fixture(fill)
server = server_fixture(auth=(USER, PASSWORD))


def sent(server: IndexServer) -> list[bool]:
    """Return for each request whether it had credentials."""
    return ["authorization" in request.headers for request in server.requests]


# -- URLs


def test_the_url_with_the_longest_common_path_gives_the_credentials() -> None:
    known = Credentials({})
    assert known.learn("https://a:1@host/one/simple/") == "https://host/one/simple/"
    known.learn("https://b:2@host/two/simple/")
    known.learn("https://c:3@host:8443/simple/")
    assert known.find("https://host/one/simple/demo/") == ("a", "1")
    assert known.find("https://host/two/files/demo.whl") == ("b", "2")
    assert known.find("https://host:8443/two/simple/demo/") == ("c", "3")
    assert known.find("http://host/one/simple/demo/") is None  # another origin, without TLS


def test_a_token_without_a_password_is_a_user_name() -> None:
    known = Credentials({})
    known.learn("https://t%40ken@host/simple/")
    assert known.find("https://host/simple/demo/") == ("t@ken", "")


def test_credentials_do_not_follow_a_redirect_to_another_host(index: Path, tmp_path: Path) -> None:
    with IndexServer(index) as other, IndexServer(index) as server:
        server.redirect("/simple/demo/", f"{other.url}demo/")
        url = server.url.replace("://", "://user:secret@")
        assert fetcher_in(tmp_path, NONE).get_page(f"{url}demo/") is not None
    assert (sent(server), sent(other)) == ([True], [False])


def test_credentials_in_links_of_a_page_are_used_but_not_recorded(index: Path, tmp_path: Path) -> None:
    with IndexServer(index, auth=(USER, PASSWORD)) as files, IndexServer(index) as other:
        link = files.file_url("demo-1.0-py3-none-any.whl").replace("://", "://user%40x:s3%3Acret@")
        digest = file_digest(index / "demo-1.0-py3-none-any.whl")
        page = f'<a href="{link}#sha256={digest}">demo</a>'.encode()
        other.fault("/simple/demo/", Fault(body=page, content_type="text/html"))
        source = source_of(fetcher_in(tmp_path, NONE), other.url)
        (candidate,) = source.judge(NormalizedName("demo")).candidates
        assert candidate.file is not None
        assert candidate.file.url == files.file_url("demo-1.0-py3-none-any.whl")
        assert [str(one) for one in source.metadata(candidate).requires] == ["dep"]


# -- netrc


def test_an_invalid_netrc_is_reported_when_a_request_is_refused(server: IndexServer, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user passwort secret\n", encoding="utf-8")
    ours = fetcher_in(tmp_path, {"NETRC": str(netrc)})
    ours.learn_credentials(server.url)
    with pytest.raises(FetchFailed) as caught:
        ours.get_page(f"{server.url}demo/")
    assert f"`{netrc}` is invalid: bad follower token 'passwort'" in (caught.value.hint or "")


def test_a_password_of_netrc_goes_only_to_the_addresses_of_the_user(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine index.example login user password secret\n", encoding="utf-8")
    known = Credentials({"NETRC": str(netrc)})
    known.learn("http://index.example:8080/simple/", is_index=True)
    assert known.find("https://index.example/x") == ("user", "secret")
    assert known.find("https://index.example:443/x") == ("user", "secret")
    assert known.find("http://index.example:8080/files/x") == ("user", "secret")
    for other in ("http://index.example", "http://index.example:81", "https://index.example:8443"):
        known.learn(f"{other}/x")  # a link or a redirect, not the index of the user
        assert known.find(f"{other}/x") is None
        assert f"not used for `{other}`" in known.advice(f"{other}/x")


def test_a_netrc_password_does_not_follow_a_redirect_to_another_port(index: Path, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n", encoding="utf-8")
    with IndexServer(index) as other, IndexServer(index, auth=(USER, PASSWORD)) as server:
        server.redirect("/simple/demo/", f"{other.url}demo/")
        ours = fetcher_in(tmp_path, {"NETRC": str(netrc)})
        ours.learn_credentials(server.url)
        assert ours.get_page(f"{server.url}demo/") is not None
    assert (sent(server)[-1:], sent(other)) == ([True], [False])


# -- secret parameters


def test_a_secret_parameter_is_sent_to_its_url_only_and_not_kept(index: Path, tmp_path: Path) -> None:
    with IndexServer(index) as server:
        ours = fetcher_in(tmp_path, NONE)
        page = ours.get_page(f"{server.url}demo/?a=1&X-Amz-Signature=s3cret")
        assert page is not None
        assert page.url == f"{server.url}demo/?a=1"
        ours.get_page(f"{server.url}dep/?a=1")
        assert [one.query for one in server.requests] == ["a=1&X-Amz-Signature=s3cret", "a=1"]
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert kept == []


# -- the keyring


def test_the_keyring_is_queried_only_if_enabled(
    server: IndexServer, keyring: Keyring, tmp_path: Path
) -> None:
    environ = keyring.knows({server.url: (USER, PASSWORD)})
    with pytest.raises(FetchFailed) as caught:
        fetcher_in(tmp_path, environ).get_page(f"{server.url}demo/")
    assert keyring.asked == []
    assert "COLABLOCK_KEYRING_PROVIDER=subprocess" in (caught.value.hint or "")


@pytest.mark.parametrize("place", ["index", "host"])
def test_the_keyring_is_queried_once_for_a_host_that_refuses(
    server: IndexServer, keyring: Keyring, tmp_path: Path, place: str
) -> None:
    host = server.root.removeprefix("http://")
    environ = keyring.knows({server.url if place == "index" else host: (USER, PASSWORD)})
    ours = fetcher_in(tmp_path, environ, keyring=True)
    ours.learn_credentials(server.url)
    threads = [
        threading.Thread(target=ours.get_page, args=(f"{server.url}{name}/",)) for name in ("demo", "dep")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ours.get_page(f"{server.url}demo/") is not None
    asked = [f"--mode creds get {server.url}", f"--mode creds get {host}"]
    assert keyring.asked == asked[: 1 if place == "index" else 2]


def test_the_keyring_gives_the_password_for_a_user_in_the_url(
    server: IndexServer, keyring: Keyring, tmp_path: Path
) -> None:
    environ = keyring.knows({server.url: (USER, PASSWORD)})
    ours = fetcher_in(tmp_path, environ, keyring=True)
    ours.learn_credentials(server.url.replace("://", "://user%40x@"))
    assert ours.get_page(f"{server.url}demo/") is not None
    assert keyring.asked == [f"get {server.url} {USER}"]
    assert sent(server) == [True]  # without a refused request before


def test_the_keyring_is_not_queried_if_a_password_is_known(
    server: IndexServer, keyring: Keyring, tmp_path: Path
) -> None:
    environ = keyring.knows({})
    ours = fetcher_in(tmp_path, environ, keyring=True)
    assert ours.get_page(f"{server.url.replace('://', '://user%40x:s3%3Acret@')}demo/") is not None
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n", encoding="utf-8")
    again = fetcher_in(tmp_path / "again", {**environ, "NETRC": str(netrc)}, keyring=True)
    again.learn_credentials(server.url)
    assert again.get_page(f"{server.url}demo/") is not None
    assert keyring.asked == []


def test_the_keyring_is_not_queried_for_a_public_host(index: Path, keyring: Keyring, tmp_path: Path) -> None:
    with IndexServer(index) as server:
        assert (
            fetcher_in(tmp_path, keyring.knows({}), keyring=True).get_page(f"{server.url}demo/") is not None
        )
    assert keyring.asked == []


@pytest.mark.parametrize("silent", [True, False])
def test_a_keyring_without_an_entry_is_not_queried_again(
    server: IndexServer, keyring: Keyring, tmp_path: Path, *, silent: bool
) -> None:
    ours = fetcher_in(tmp_path, keyring.knows({}, silent=silent), keyring=True)
    ours.learn_credentials(server.url)
    for _ in range(2):
        with pytest.raises(FetchFailed) as caught:
            ours.get_page(f"{server.url}demo/")
        assert (caught.value.hint or "").endswith("or add them to the keyring: it has none for this host")
    assert len(keyring.asked) == 2  # for the index and for its host


def test_a_missing_keyring_command_is_reported(server: IndexServer, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed) as caught:
        fetcher_in(tmp_path, {"PATH": str(tmp_path)}, keyring=True).get_page(f"{server.url}demo/")
    assert "install `keyring`" in (caught.value.hint or "")


MATRIX = 'schema = 1\nname = "tiny"\nrequirements = ["demo"]\n'


@pytest.mark.parametrize(
    ("variable", "note"),
    [
        ("COLABLOCK_KEYRING_PROVIDER", ""),
        (
            "PIP_KEYRING_PROVIDER",
            "note: querying the keyring for passwords, as set in PIP_KEYRING_PROVIDER\n",
        ),
        ("UV_KEYRING_PROVIDER", "note: querying the keyring for passwords, as set in UV_KEYRING_PROVIDER\n"),
    ],
)
def test_no_output_contains_a_password(
    server: IndexServer, keyring: Keyring, capsys: pytest.CaptureFixture[str], *, variable: str, note: str
) -> None:
    tmp_path = keyring.folder
    matrix, cache = tmp_path / "tiny.toml", tmp_path / "cache"
    matrix.write_text(MATRIX, encoding="utf-8")
    known = keyring.knows({server.url: (USER, PASSWORD)})
    environ = {**os.environ, **known, variable: "subprocess", "COLABLOCK_CACHE_DIR": str(cache)}
    index = server.url.replace("://", "://user%40x@")
    argv = ["lock", str(matrix), "--default-index", index, "-v", "-o", str(tmp_path / "pylock.toml")]
    assert main(argv, environ) == ExitCode.DONE
    server.auth = (USER, "another")
    assert main([*argv[:4], "--with", "more", "-v", "-o", "-"], environ) == ExitCode.UNMET
    said = capsys.readouterr()
    assert note in said.err
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".log"]
    shown = [said.out.encode(), said.err.encode(), *(str(path).encode() for path in cache.rglob("*"))]
    ours = [data for data in written if not data.startswith(b"#!")]  # without the fake keyring
    for secret in (b"s3:cret", b"s3%3Acret", b"user%40x"):
        assert not any(secret in data for data in (*ours, *shown))


def test_an_unknown_keyring_provider_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(MATRIX, encoding="utf-8")
    assert main(["lock", str(matrix)], {**os.environ, "COLABLOCK_KEYRING_PROVIDER": "import"}) == 2
    assert "`import` in COLABLOCK_KEYRING_PROVIDER" in capsys.readouterr().err


# -- certificates


@pytest.fixture
def encrypted(index: Path) -> Iterator[IndexServer]:
    with IndexServer(index, tls=True) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of certificates, named as OpenSSL requires."""
    there = tmp_path / "certificates"
    there.mkdir()
    (there / "688adf85.0").write_bytes(CERTIFICATE.read_bytes())
    return there


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_file_of_certificates_is_trusted(encrypted: IndexServer, tmp_path: Path, variable: str) -> None:
    ours = fetcher_in(tmp_path, {**NONE, variable: str(CERTIFICATE)})
    assert ours.get_page(f"{encrypted.url}demo/") is not None


@pytest.mark.parametrize("variable", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_a_folder_of_certificates_is_trusted(
    encrypted: IndexServer, tmp_path: Path, folder: Path, variable: str
) -> None:
    value = f"/nowhere{os.pathsep}{folder}" if variable == "SSL_CERT_DIR" else str(folder)
    assert fetcher_in(tmp_path, {**NONE, variable: value}).get_page(f"{encrypted.url}demo/") is not None


@pytest.mark.parametrize(
    ("environ", "advice"),
    [
        ({}, "Set SSL_CERT_FILE to a file with the certificate of its issuer"),
        ({"SSL_CERT_FILE": "/gone.pem"}, "Correct SSL_CERT_FILE: `/gone.pem` does not exist"),
        ({"SSL_CERT_DIR": "{empty}"}, "of its issuer to SSL_CERT_DIR (`{empty}`)"),
        ({"REQUESTS_CA_BUNDLE": "{empty}"}, "of its issuer to REQUESTS_CA_BUNDLE (`{empty}`)"),
    ],
)
def test_an_untrusted_certificate_is_reported_with_a_hint(
    encrypted: IndexServer, tmp_path: Path, environ: dict[str, str], advice: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    mine = {name: value.format(empty=empty) for name, value in environ.items()}
    with pytest.raises(FetchFailed, match="is not trusted: self-signed certificate") as caught:
        fetcher_in(tmp_path, {**NONE, **mine}).get_page(f"{encrypted.url}demo/")
    assert advice.format(empty=empty) in (caught.value.hint or "")
    assert encrypted.requests == []


def test_a_certificate_for_another_host_is_reported(encrypted: IndexServer, tmp_path: Path) -> None:
    url = encrypted.url.replace("127.0.0.1", "localhost")
    with pytest.raises(
        FetchFailed, match="certificate of `localhost` is not trusted: Hostname mismatch"
    ) as caught:
        fetcher_in(tmp_path, {**NONE, "SSL_CERT_FILE": str(CERTIFICATE)}).get_page(f"{url}demo/")
    assert caught.value.hint == "Use a host name that the certificate contains"


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CLIENT_CERT"])
def test_a_file_without_certificates_is_invalid_input(
    variable: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(MATRIX, encoding="utf-8")
    environ = {**os.environ, **NONE, variable: str(matrix)}
    index = "http://127.0.0.1:9/simple/"
    assert main(["lock", str(matrix), "--default-index", index], environ) == ExitCode.USAGE
    said = " ".join(capsys.readouterr().err.split())
    assert f"in {variable} cannot be used: it contains no certificate" in said
