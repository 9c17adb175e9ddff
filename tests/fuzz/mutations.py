"""Change a valid document by its form: its values, lines or members, and then its bytes.

The same random state gives the same bytes.
"""

from __future__ import annotations

import io
import json
import random
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from colablock._vendor import tomli_w

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["BIG", "FORMS", "STRINGS", "mutated"]

BIG = 40_000  # characters of a long text
#: Integers that Python does not convert to text, and floats that JSON does not have.
_RAW_NUMBERS = ("9" * 5000, "-1", "1e999", "-0", "NaN", "-Infinity", "1" + "0" * 30, "18446744073709551616")
STRINGS = (
    *("", " ", "\0", "\n", "\x1b[2J", "\u202e", "\ud800", "é", "İ", "ß", "\ufeff", "x" * 300),
    *("../../x", "/etc/passwd", "..", ".", "a/../../b", "C:\\x", "\\\\host\\x", "CON", "x\ny", "x\r\ny"),
    *("http://[", "http://[::1", "https://h:99999999/x", "https://h:x/", "https://u:p@h/x", "//h/x"),
    *("file:///etc/passwd", "file://other/x", "file:", "https://\0/", "https://x\ny/", "https://ü.example/"),
    *("https://" + "a" * 300 + ".example/x-1-py3-none-any.whl", "git+https://h/x@y#egg=z", "http:", "::"),
    *("1", "-1", "1.0", "01", "1e400", "9" * 5000, "1." * 300 + "1", "1!1", "1.0+a.b", "==1.*", ">=1,<2"),
    *("2024-01-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2024-13-45T99:99:99Z"),
    *("a>=1; python_version>'3'", "a[b,c]>=1", "a @ https://h/x.whl", "a; extra == 'x'", "a (>=1)", "a>1.*"),
    *("a;" + "(" * 300 + "os_name=='x'" + ")" * 300, "a;" + " or ".join(["os_name=='x'"] * 200)),
    *("true", "false", "null", "none", "sha256", "sha256=", "md5=x", "0" * 64, "f" * 63, "G" * 64),
    *("\n[x]\n", "x = 1", "# x", "--hash=sha256:x", "-r x", "-e .", "--index-url http://x\\"),
    *('"', "'", "\\", "{", "[", "%", "%s", "%00"),
    *("=?utf-8?q?x?=", "Name: x", "Requires-Dist: x", "\n\n", "\t x", ",", ",,", '"a,b",c,d', ";"),
)  # fmt: skip
_LONG = (
    "a",
    "-",
    " ",
    "a-",
    "1.",
    "[",
    "(",
    "{",
    '"',
    "\\",
    "\n",
    ",",
    "a ",
    "é",
    "<a ",
    "&#",
    "or ",
    "~=",
    "0",
    "../",
)

Form = Callable[[bytes, random.Random], bytes]


def mutated(sample: bytes, form: str, rng: random.Random) -> bytes:
    """Return a changed *sample*: mostly by its *form*, sometimes by its bytes, sometimes by both."""
    way = rng.random()
    if way < 0.02:
        return _noise(rng)
    if way < 0.7:
        try:
            sample = FORMS[form](sample, rng)
        except (
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
            zipfile.BadZipFile,
            NotImplementedError,
        ):
            return _bytes(sample, rng)  # the sample is no valid document of this form
        if way < 0.5:
            return sample
    return _bytes(sample, rng)


def text(rng: random.Random) -> str:
    """Return a text that parsers dislike: a special one, a long one, or a few characters."""
    way = rng.random()
    if way < 0.7:
        return rng.choice(STRINGS)
    if way < 0.8:
        unit = rng.choice(_LONG)
        return unit * (rng.choice((100, 3000, BIG)) // len(unit))
    return "".join(
        chr(rng.choice((rng.randrange(128), rng.randrange(0x3000)))) for _ in range(rng.randrange(20))
    )


def _noise(rng: random.Random) -> bytes:
    return rng.choice((b"", b"\0", rng.randbytes(rng.randrange(200)), text(rng).encode("utf-8", "replace")))


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Return *data* with one to four places changed, cut off, doubled or replaced."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 1, 2, 8, 64)))
        way = rng.randrange(6)
        if way == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            del changed[at:end]
        elif way == 2:
            changed[at:at] = text(rng).encode("utf-8", "surrogatepass")
        elif way == 3:
            changed[at:end] = rng.randbytes(end - at)
        elif way == 4:
            changed[at:at] = changed[at:end] * rng.choice((1, 2, 50))
        else:
            del changed[at:]
    return bytes(changed)


# Values of JSON and TOML


def _value(rng: random.Random) -> Any:
    way = rng.randrange(8)
    if way < 4:
        return text(rng)
    if way == 4:
        return rng.choice((None, True, False, 0, -1, 1, 1 << 31, 1 << 63, 10**30, 1.5, 1e300, -0.0))
    if way == 5:
        return rng.choice(([], {}, [None], [[]], {"": None}, [{}], ["x"], {"x": "y"}, [0] * 2000))
    if way == 6:
        return _nested(rng.choice((3, 70, 300, 900)), rng)
    return [text(rng) for _ in range(rng.randrange(4))]


def _nested(depth: int, rng: random.Random) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def _containers(value: Any) -> list[Any]:
    """Return every array and object in *value*, the outer ones first."""
    found, level = [], [value]
    while level:
        level = [one for one in level if isinstance(one, (dict, list))]
        found += level
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return found


def _change(value: Any, rng: random.Random) -> Any:
    """Return *value* with one to three of its parts changed."""
    value = deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        containers = [one for one in _containers(value) if one]
        if not containers or rng.random() < 0.02:
            return _value(rng)
        inside = rng.choice(containers)
        key = rng.choice(list(inside)) if isinstance(inside, dict) else rng.randrange(len(inside))
        way = rng.randrange(8)
        if way < 4:
            inside[key] = _value(rng)
        elif way == 4:
            del inside[key]
        elif way == 5 and isinstance(inside[key], str):
            inside[key] = _spliced(inside[key], rng)
        elif isinstance(inside, dict):
            inside[text(rng)] = inside[key] if way == 6 else inside.pop(key)
        else:
            inside[key:key] = [deepcopy(inside[key])] * rng.choice((1, 2, 40))
    return value


def _spliced(inner: str, rng: random.Random) -> str:
    at = rng.randrange(len(inner) + 1)
    return inner[:at] + text(rng) + inner[at + rng.choice((0, 0, 1, 5)) :]


def _json(sample: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return _with_raw(sample, rng)
    changed = _change(json.loads(sample), rng)
    try:
        return json.dumps(changed, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"[" * 5000 + b"]" * rng.choice((5000, 0))


def _with_raw(sample: bytes, rng: random.Random) -> bytes:
    """Return *sample* with a number or a value that ``json.dumps`` does not write."""
    at = sample.find(b":", rng.randrange(len(sample) or 1))
    ends = [end for end in (sample.find(mark, at) for mark in b",}") if end > at >= 0]
    raw = rng.choice((*_RAW_NUMBERS, "[" * 5000 + "]" * 5000, '{"a":' * 5000 + "0" + "}" * 5000, '"\\ud800"'))
    return sample[: at + 1] + raw.encode() + sample[min(ends, default=len(sample)) :]


def _toml(sample: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        lines = sample.split(b"\n")
        lines.insert(rng.randrange(len(lines) + 1), b"a = " + b"[" * 900 + b"]" * 900)
        return b"\n".join(lines)
    if rng.random() < 0.3:
        return _lines(sample, rng)
    return tomli_w.dumps(_change(tomllib.loads(sample.decode()), rng)).encode("utf-8", "surrogatepass")


# Lines


def _lines(sample: bytes, rng: random.Random) -> bytes:
    """Return *sample* with one to three of its lines removed, repeated, changed, folded or swapped."""
    lines = sample.decode("utf-8", "surrogateescape").split("\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        way = rng.randrange(6)
        if way == 0 and len(lines) > 1:
            del lines[at]
        elif way == 1:
            lines[at:at] = [lines[at]] * rng.choice((1, 3, 2000))
        elif way == 2:
            lines[at] = rng.choice(("", " ", "\t")) + text(rng)
        elif way == 3:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines[at] = _spliced(lines[at], rng)
    return rng.choice(("\n", "\n", "\n", "\r\n", "\r", "\x0b")).join(lines).encode("utf-8", "surrogatepass")


# Archives


def _zip(sample: bytes, rng: random.Random) -> bytes:
    """Return the zip archive *sample* with members that are changed, renamed, doubled or huge."""
    with zipfile.ZipFile(io.BytesIO(sample)) as archive:
        members = [(one.filename, archive.read(one)) for one in archive.infolist()]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(members))
        name, data = members[at]
        way = rng.randrange(7)
        if way < 3:
            members[at] = name, mutated(data, "lines", rng)
        elif way == 3:
            members[at] = _spliced(name, rng)[:20_000].encode("utf-8", "replace").decode() or "x", data
        elif way == 4:
            members.insert(at, (name, data))
        elif way == 5:
            members[at] = name, data + rng.choice((b"\0", b"x\n", b"Name: x\n")) * rng.choice((10, 300_000))
        elif len(members) > 1:
            del members[at]
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, data in members:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = rng.choice((0o100644, 0o100755, 0o120777, 0o040755, 0)) << 16
            archive.writestr(entry, data, rng.choice((0, 8, 8, 12, 14)))
    return written.getvalue()


FORMS: Mapping[str, Form] = {"json": _json, "toml": _toml, "lines": _lines, "zip": _zip, "bytes": _bytes}
