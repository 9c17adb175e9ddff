"""What `pip freeze` and its kin print is read; what it never prints is refused, all of it at once."""

from __future__ import annotations

import pytest

from colablock.errors import InvalidInput
from colablock.runtimes.freeze import Frozen, parse_freeze

LINES = [
    # a line, the name as spelled, version, URL
    ("Jinja2==3.1.6", "Jinja2", "3.1.6", None),
    ("torch==2.11.0+cu128", "torch", "2.11.0+cu128", None),
    ("old===1.0-final-release", "old", "1.0-final-release", None),
    ("a == 1", "a", "1", None),
    ("google-colab @ file:///colabtools/dist/google_colab-1.0.0.tar.gz", "google-colab", "1.0.0", ...),
    (
        "torch @ https://x.example/cu124/torch-2.6.0%2Bcu124-cp311-cp311-linux_x86_64.whl",
        "torch",
        "2.6.0+cu124",
        ...,
    ),
    (
        "en_core_web_sm @ https://x.example/en_core_web_sm-3.8.0-py3-none-any.whl#sha256=0a",
        "en_core_web_sm",
        "3.8.0",
        ...,
    ),
    ("gateway @ git+https://x.example/gateway@b134e99", "gateway", None, ...),
    ("numpy @ file:///croot/numpy_1708/work", "numpy", None, ...),
    ("extra[one,two] @ https://x.example/extra-1.0.zip", "extra", "1.0", ...),
]


@pytest.mark.parametrize("case", LINES, ids=[case[0][:30] for case in LINES])
def test_a_freeze_line_is_parsed(case: tuple[str, str, str | None, object]) -> None:
    line, spelled, version, url = case
    expected = line.partition(" @ ")[2] if url is ... else None
    assert parse_freeze(line, "f").lines == (Frozen(spelled=spelled, version=version, url=expected),)


def test_comments_blank_and_editable_lines_are_skipped() -> None:
    text = (
        "\ufeff# made by pip\n\na==1  # a remark\r\n"
        "# Editable install with no version control (here==0.1)\n-e /src/here\n"
        "-e git+https://x.example/there@main#egg=there\n"
    )
    found = parse_freeze(text, "f")
    assert [line.spelled for line in found.lines] == ["a"]
    assert found.editable[0] == "/src/here"
    assert found.editable[1].startswith("git+https://x.example/there@main")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a==1\n" * 20_000, "`f.txt` has more than 10,000 lines"),
        ("\na" * 3 + "==" + "1" * 20_000, "line 4 of `f.txt` is longer than 10,000 characters"),
    ],
)
def test_a_freeze_of_absurd_length_is_an_error(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        parse_freeze(text, "f.txt")


def test_credentials_of_a_url_are_dropped() -> None:
    (line,) = parse_freeze("a @ https://me:secret@x.example/a-1-py3-none-any.whl", "f").lines
    assert line.url == "https://x.example/a-1-py3-none-any.whl"


def test_every_bad_line_is_reported_with_its_number() -> None:
    text = "good==1\nnumpy>=1\nPackage    Version\nGood==2\nb==one\n--index-url https://x.example\nfine==1\n"
    with pytest.raises(InvalidInput) as raised:
        parse_freeze(text, "freeze.txt")
    told = str(raised.value).splitlines()
    assert told[0] == "`freeze.txt` has 4 lines that a freeze cannot contain"
    assert [line.split(":")[0].strip() for line in told[1:]] == [f"line {n}" for n in (2, 3, 4, 6)]
    assert "`good` is on line 1 already" in told[3]
    assert "pip list --format=freeze" in (raised.value.hint or "")


@pytest.mark.parametrize("text", ["", "# nothing\n", "-e /src/here\n"])
def test_an_empty_freeze_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="lists no distribution"):
        parse_freeze(text, "f")


def test_a_version_that_is_not_valid_leaves_out_its_own_line() -> None:
    found = parse_freeze("a==1\ndistro-info==1.1build1\nb==one\npytz===2004d\nc==2\n", "f")
    assert [line.spelled for line in found.lines] == ["a", "pytz", "c"]
    assert found.odd == ("distro-info==1.1build1", "b==one")
