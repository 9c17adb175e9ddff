"""Pages, metadata and archives that are too large, too deep or of another form: each is refused soon."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.requirements import parse_requirement
from colablock.errors import BadDistribution, FetchFailed
from colablock.index.archive import open_archive
from colablock.index.core_metadata import parse_core_metadata, read_wheel_metadata
from colablock.index.evaluator import Policy, judge_files
from colablock.index.simple_api import parse_page
from tests.support.dict_source import PYTHON_312
from tests.support.timing import takes_at_most

JSON = "application/vnd.pypi.simple.v1+json"
PAGE = "https://index.example/simple/demo/"
GOOD = {"filename": "demo-1.0-py3-none-any.whl", "url": "https://h/demo-1.0-py3-none-any.whl", "hashes": {}}


def page(*files: Mapping[str, Any], **more: Any) -> bytes:
    return json.dumps({"meta": {"api-version": "1.1"}, "name": "demo", "files": files, **more}).encode()


def names(body: bytes, kind: str = JSON) -> list[str]:
    return [file.filename for file in parse_page(body, kind, PAGE).files(None)]


ROWS = {
    "a size that is no number": {"size": "x"},
    "a negative size": {"size": -1},
    "a huge size": {"size": 1 << 60},
    "hashes that are a list": {"hashes": ["x"]},
    "hashes of numbers": {"hashes": {"sha256": 1}},
    "a path as its name": {"filename": "../demo-1.0-py3-none-any.whl"},
    "a Windows path": {"filename": "..\\demo-1.0-py3-none-any.whl"},
    "a control character": {"filename": "demo-1.0\x1b[2J-py3-none-any.whl"},
    "a long name": {"filename": "demo-1.0-py3-none-" + "a" * 300 + ".whl"},
    "no name": {"filename": None},
    "half an address": {"url": "https://[::1/demo.whl"},
    "a line in its URL": {"url": "https://h/x\r\nEvil: y"},
    "two hosts in its URL": {"url": "https://evil.example\\@h/demo-2.0-py3-none-any.whl"},
    "two users in its URL": {"url": "https://h@evil.example@h/demo-2.0-py3-none-any.whl"},
    "a URL that is no text": {"url": {}},
    "a Python that is no text": {"requires-python": 3},
    "a time that is no text": {"upload-time": 5},
    "metadata of another type": {"core-metadata": "yes"},
    "an own size": {"yanked": 3},
}


@pytest.mark.parametrize("change", ROWS.values(), ids=ROWS)
def test_a_file_that_does_not_fit_is_left_out(change: Mapping[str, Any]) -> None:
    other = {**GOOD, "filename": "demo-2.0-py3-none-any.whl"}
    assert names(page({**other, **change}, GOOD)) == [GOOD["filename"]]


REFUSED = {
    "files that do not fit": page({"url": 1}, {"filename": 2}),
    "files that are an object": b'{"meta": {"api-version": "1.0"}, "files": {}}',
    "no object": b"[1]",
    "nested deeply": b'{"meta": {"api-version": "1.0"}, "files": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "nested deeply in what is not read": b'{"x": ' + b'{"a":' * 5000 + b"0" + b"}" * 5000 + b"}",
    "too many files": page(*({"filename": "a", "url": "b"} for _ in range(100_001))),
    "600,000 files": b'{"meta":{"api-version":"1.0"},"files":['
    + b",".join([b'{"filename":"a","url":"b"}'] * 600_000)
    + b"]}",
    "a number of many digits": b'{"meta": {"api-version": ' + b"9" * 10_000 + b'}, "files": []}',
    "not UTF-8": b'{"meta": {"api-version": "\xff"}}',
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_a_page_that_is_none_is_refused_soon(body: bytes) -> None:
    with takes_at_most(2), pytest.raises(FetchFailed, match="is not a page of a simple index"):
        names(body)


MARKUP = (
    "<a ",
    "<!--",
    "<![",
    "</",
    "<!",
    '<a href="',
    "&#",
    "<",
    "<a/",
    "<?",
    "<script>",
    "<a href=x>",
    "<a =",
    "<a href='&#" + "9" * 5000 + ";'>",
)


@pytest.mark.parametrize("unit", MARKUP)
def test_html_takes_linear_time(unit: str) -> None:
    body = (unit * (400_000 // len(unit))).encode()
    with takes_at_most(2), suppress(FetchFailed):  # more than 100,000 links
        names(body, "text/html")


@pytest.mark.parametrize("charset", ["none", "hex", "\0", "a" * 5000, "utf-7", "idna"])
def test_an_unusual_charset_is_read_as_utf_8(charset: str) -> None:
    body = b'<a href="demo-1.0-py3-none-any.whl">x</a>'
    assert names(body, f"text/html; charset={charset}") == [GOOD["filename"]]


def test_html_is_read_as_before() -> None:
    body = b"""<!DOCTYPE html><base href=/files/><!-- <a href="no.whl"> -->
    <script>"<a href='no.whl'>"</script>
    <A CLASS=x HREF='demo-1.0-py3-none-any.whl?a=1&amp;b=2#sha256=0' data-requires-python="&gt;=3.9"
     data-yanked>x</A><a name=y><a href=demo-1.1.tar.gz>"""
    wheel, sdist = parse_page(body, "text/html", PAGE).files(None)
    assert wheel.url == "https://index.example/files/demo-1.0-py3-none-any.whl?a=1&b=2"
    assert (wheel.requires_python, wheel.yanked, wheel.hashes) == (">=3.9", "", {"sha256": "0"})
    assert sdist.filename == "demo-1.1.tar.gz"


def test_wheels_of_many_tags_are_judged_soon() -> None:
    tags = "-".join(".".join(["cp312"] * 9) for _ in range(3))
    body = page(*({**GOOD, "filename": f"demo-1.{n}-{tags}.whl"} for n in range(3_000)))
    with takes_at_most(5):
        judged = judge_files(
            canonicalize_name("demo"),
            parse_page(body, JSON, PAGE).files(None),
            Policy(environment=PYTHON_312),
        )
    assert judged.candidates == ()


LINES = {
    "nested deeply": "a; " + "(" * 5000 + "os_name == 'x'" + ")" * 5000,
    "a long one": "a; " + " or ".join(["os_name == 'x'"] * 1000),
    "a number of many digits": "a==" + "9" * 5000,
    "many blanks": "a===" + " " * 100_000 + "x",
    "a long name": "a" * 100_000,
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_hostile_requirement_is_not_parsed(line: str) -> None:
    with takes_at_most(2):
        assert parse_requirement(line) is None
        with pytest.raises(BadDistribution, match="not a valid requirement"):
            parse_core_metadata(f"Name: demo\nVersion: 1\nRequires-Dist: {line}\n".encode()).parsed(
                "demo.whl"
            )


def test_metadata_with_too_much_is_refused() -> None:
    many = b"Name: demo\nVersion: 1\n" + b"Requires-Dist: a\n" * 30_000
    with pytest.raises(BadDistribution, match="too many requirements"):
        parse_core_metadata(many).parsed("demo.whl")
    with pytest.raises(BadDistribution, match="larger than 16 MiB"):
        parse_core_metadata(b"x" * (17 << 20))


def zipped(members: Mapping[str, bytes]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return written.getvalue()


def lying(data: bytes) -> bytes:
    """Return an archive whose directory announces one byte for each member."""
    at = data.index(b"PK\x01\x02")
    return data[: at + 24] + struct.pack("<L", 1) + data[at + 28 :]


INFO = "demo-1.0.dist-info/METADATA"
WHEELS: Mapping[str, Callable[[], bytes]] = {
    "a bomb": lambda: zipped({INFO: bytes(40 << 20)}),
    "a bomb that announces one byte": lambda: lying(zipped({INFO: bytes(40 << 20)})),
    "many members": lambda: zipped({f"{n}": b"" for n in range(100_001)}),
    "a directory that is not there": lambda: (
        zipped({INFO: b"x"})[:-10] + struct.pack("<LL", 1 << 31, 0) + b"\0\0"
    ),
    "half of it": lambda: zipped({INFO: b"x" * 500})[:-60],
}


@pytest.mark.parametrize("wheel", WHEELS.values(), ids=WHEELS)
def test_a_hostile_wheel_has_no_metadata(wheel: Callable[[], bytes]) -> None:
    with pytest.raises(BadDistribution, match=r"cannot be read as a wheel"):
        read_wheel_metadata(io.BytesIO(wheel()), "demo-1.0-py3-none-any.whl")


def test_a_tar_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "demo-1.0.tar.gz"
    head = (
        b"demo-1.0/x".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % (3 << 30) + b"0" * 12
    )
    head += b"        0".ljust(108, b"\0") + b"ustar\x0000"
    head = head.ljust(512, b"\0")
    head = head[:148] + b"%06o\0 " % sum(head) + head[156:]
    with gzip.open(path, "wb", 1) as file:
        file.write(head)
        for _ in range(40):
            file.write(bytes(1 << 20))
    with pytest.raises(BadDistribution, match="archive"), open_archive(path):
        pass
