"""A URL whose text has no credentials, and the masking of other text."""

from __future__ import annotations

import copy
import json
import pickle
import random
from urllib.parse import urlsplit

import pytest
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from colablock._common.urls import Url, is_unclear, redacted, split_credentials
from colablock._masking import MASK, masked
from colablock.errors import Fault, FetchFailed, InvalidInput, InvalidMatrix, NoSolution
from tests.support.timing import takes_at_most

pytestmark = pytest.mark.stdlib

SECRET = "hunter2"

# The URL, and its text.
URLS = {
    "user and password": (f"https://u:{SECRET}@host.example/x", "https://host.example/x"),
    "only a token": (f"https://{SECRET}@host.example/x", "https://host.example/x"),
    "an at in the password": (f"https://u:p@{SECRET}@host.example/x", "https://host.example/x"),
    "percent-encoded": (f"https://u%40:{SECRET}%2F%40@host.example/x", "https://host.example/x"),
    "uppercase scheme": (f"HTTPS://u:{SECRET}@HOST.example/x", "https://HOST.example/x"),
    "a port": (f"http://u:{SECRET}@host.example:81/x", "http://host.example:81/x"),
    "IPv6": (f"http://u:{SECRET}@[::1]:81/x", "http://[::1]:81/x"),
    "git": (f"git+https://u:{SECRET}@host.example/o/r@v1#egg=r", "git+https://host.example/o/r@v1#egg=r"),
    "git over ssh": (f"git+ssh://u:{SECRET}@host.example/o/r@v1", "git+ssh://host.example/o/r@v1"),
    "a token": (f"https://host.example/x?a=1&token={SECRET}&b=2", "https://host.example/x?a=1&b=2"),
    "S3": (
        f"https://host.example/x?X-Amz-Date=1&X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
        "https://host.example/x?X-Amz-Date=1",
    ),
    "Azure": (f"https://host.example/x?sv=1&sig={SECRET}", "https://host.example/x?sv=1"),
    "a fragment": (
        f"https://host.example/x#access_token={SECRET}",
        "https://host.example/x#access_token=****",
    ),
    "bad brackets": (f"https://u:{SECRET}@[bad", "https://[bad"),
    "a slash in the password": (f"https://u:pa/{SECRET}@host.example", "https://host.example"),
    "a question mark in it": (f"https://u:pa?{SECRET}@host.example", "https://host.example"),
    "a hash in it": (f"https://u:12#{SECRET}@host.example", "https://host.example"),
    "a space in it": (f"https://u:pa {SECRET}@host.example", "https://host.example"),
    "a newline in it": (f"https://u:pa\n{SECRET}@host.example", "https://host.example"),
    "one slash": (f"https:/u:{SECRET}@host.example", "https:/host.example"),
    "four slashes": (f"https:////u:{SECRET}@host.example", "https:////host.example"),
    "backslashes": (f"https:\\\\u:{SECRET}@host.example", "host.example"),
    "no slashes": (f"https:u:{SECRET}@host.example", "host.example"),
    "no scheme": (f"u:{SECRET}@host.example/x", "host.example/x"),
    "no scheme, two slashes": (f"//u:{SECRET}@host.example/x", "//host.example/x"),
    "no user": (f"https://:{SECRET}@host.example/x", "https://host.example/x"),
    "no at": (f"https://u:{SECRET}/simple/", "https://u:****/simple/"),
    "an at that is percent-encoded": (f"https://u:{SECRET}%40host.example/x", "https://u:****/x"),
    "an at of another alphabet": (f"https://u:{SECRET}\uff20host.example/x", "https://u:****/x"),
    "a name that is percent-encoded": (f"https://host.example/x?%74oken={SECRET}", "https://host.example/x"),
    "a semicolon in a token": (f"https://host.example/x?token=a;{SECRET}", "https://host.example/x"),
    "a personal token": (f"https://host.example/x?pat={SECRET}", "https://host.example/x"),
    "hub": (f"hf://{SECRET}@org/name", "hf://org/name"),
}
# Nothing secret: the text is the URL.
PLAIN = [
    "",
    "/data/u:x@y/wheels",
    "./u:x@y",
    "file:///home/u@x/demo-1.0.whl",
    "git+https://host.example/o/r@v1.0#subdirectory=a",
    "git+ssh://git@host.example/o/r@v1",
    "https://[::1]:81/a@b",
    "https://host.example/a@b?c=d#sha256=00",
    "https://host.example:81/o/r@main",
    "wheels",
]


@pytest.mark.parametrize("case", URLS)
def test_the_text_of_a_url_has_no_credentials(case: str) -> None:
    whole, plain = URLS[case]
    url = Url(whole)
    assert str(url) == plain
    assert url.with_credentials() == whole
    assert redacted(whole) == plain
    for text in (repr(url), f"{url}", json.dumps({"url": url}), url + "x", repr({"a": url}), url.upper()):
        assert SECRET not in text.lower()
    for copied in (copy.copy(url), copy.deepcopy(url), pickle.loads(pickle.dumps(url))):  # noqa: S301
        assert copied == plain
        assert SECRET not in copied.with_credentials()


@pytest.mark.parametrize("text", PLAIN)
def test_other_urls_and_paths_stay_as_they_are(text: str) -> None:
    assert str(Url(text)) == text
    assert Url(text).with_credentials() == text


def test_a_url_is_made_once() -> None:
    url = Url(f"https://u:{SECRET}@h/")
    assert Url(url) is url
    assert split_credentials(url) == ("https://h/", ("u", SECRET))


@pytest.mark.parametrize("case", URLS)
def test_credentials_in_any_text_are_masked(case: str) -> None:
    for text in ("{}", "the line `foo @ {}` is invalid", "a {}\nb {}", "--index-url={} and more", '"{}"'):
        shown = masked(text.replace("{}", URLS[case][0]))
        assert SECRET not in shown
        assert MASK in shown


def test_the_host_in_a_message_of_urllib_is_masked() -> None:
    with pytest.raises(FetchFailed) as caught:
        split_credentials(f"https://u:{SECRET}\uff20host.example/x")
    assert SECRET not in str(caught.value)
    assert SECRET not in masked(f"netloc 'u:{SECRET}\uff20host' contains invalid characters")


@pytest.mark.parametrize(
    "text",
    [
        *PLAIN[4:],
        "https://host.example:81, then http://127.0.0.1:8080.",
        "Write it as `http://USER:PASSWORD@proxy.example:3128`",
        "git@host.example:o/r.git",
        "image:latest@sha256:00ff",
        "mail me@host.example",
        "packages.torch.version: `>=1 ; python_version == '3.10'`",
        "token_type=x, hf_transfer, tokens=12",
    ],
)
def test_other_text_is_not_masked(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Basic dTpodW50ZXIyaHVudGVyMg==",
        "'Authorization': 'Bearer abcdefghijkl'",
        "sent bearer abcdefghijkl",
        f"hf_{'a' * 34}",
        f"ghp_{'a' * 36}",
        f"github_pat_{'a' * 40}",
        f"glpat-{'a' * 20}",
        "AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_known_tokens_are_masked(text: str) -> None:
    shown = masked(f"said {text!r}")
    assert shown.rstrip("\"'").endswith(MASK)
    assert len(shown) < len(text)


@pytest.mark.parametrize(
    "text",
    ["a", "@", "a:@b", "://", "://a:b", "://a:b@", "?a=", "u:p@", "bearer ", "hf_", "//a:" + " " * 250],
)
def test_masking_takes_linear_time(text: str) -> None:
    long = text * (300_000 // len(text))
    with takes_at_most(2):
        masked(f"{long}@")


def test_errors_mask_their_texts() -> None:
    leak = URLS["user and password"][0]
    faults = [Fault(path=leak, message=f"`{leak}` is invalid", hint=f"not {leak}")]
    errors = [
        InvalidInput(leak, hint=leak),
        InvalidMatrix(leak, faults),
        FetchFailed(leak, url=leak),
        NoSolution("no", because=[leak], hint=leak),
    ]
    for error in errors:
        assert SECRET not in f"{error} {error.args} {error.message} {error.hint} {vars(error)}"
    assert SECRET not in repr(faults)


def test_an_invalid_url_is_reported_without_its_password() -> None:
    with pytest.raises(FetchFailed) as caught:
        split_credentials(URLS["bad brackets"][0])
    assert str(caught.value) == "`https://[bad` is not a valid URL: Invalid IPv6 URL"


PIECES = [
    *(
        "https://",
        "http://",
        "https:",
        "git+ssh://",
        "//",
        "/",
        "\\",
        "@",
        ":",
        "?",
        "#",
        "[",
        "]",
        "..",
        ";",
    ),
    *("%2f", "%40", "%5c", "\t", "\n", " ", "\u3002", "\uff0f", "\uff20", "\u2100", "token=", "&", "443"),
    *("files.example", "files.example", "evil.example", "evil.example", "a"),
]


def test_a_url_with_a_clear_host_has_the_same_host_for_every_reader() -> None:
    """The check of sources and urllib3, which sends the request, find one host in what passes."""
    draw = random.Random(13)
    passed = 0
    for _ in range(60_000):
        url = "https://" * draw.randint(0, 1) + "".join(draw.choices(PIECES, k=draw.randint(1, 8)))
        try:
            plain = split_credentials(url)[0]
            clear = not is_unclear(url) and urlsplit(url).netloc
            found = parse_url(plain).host if plain.startswith("http") else None
        except (FetchFailed, ValueError, LocationParseError):
            continue
        if found:
            assert found == urlsplit(plain).hostname, url
        if clear and found:
            assert found == urlsplit(url).hostname, url
            assert redacted(plain) == plain, url
            passed += 1
    assert passed > 1000


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example\\@files.example/a",
        "https://evil.example\\\\@files.example/a",
        "https://files.example\\.evil.example/a",
        "https://a@evil.example@files.example/a",
        "https://evil.example:1#@files.example/a",
        "https://evil.example:1?@files.example/a",
        "https://files.example%2f.evil.example/a",
        "https://files.\texample/a",
        "https://files.example\n/a",
        "https://files.example /a",
        " https://files.example/a",
        "ht\ttps://files.example/a",
    ],
)
def test_a_url_without_a_clear_host_is_known(url: str) -> None:
    assert is_unclear(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://files.example/a b/%40",
        "https://evil.example?@files.example/a",
        "https://files.example:8443",
        "http://[::1]:8080/a",
        "https://user:word@files.example/a?b=c@d",
        "https://files.example/a@1/b.tar.gz",
        "file:///srv/a%20b.whl",
    ],
)
def test_a_url_with_a_clear_host_is_used(url: str) -> None:
    assert not is_unclear(url)
