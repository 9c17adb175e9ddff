"""Parsers of files of an environment, of locks, matrices, runtimes, requirements and settings."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from colablock._common.decoding import Malformed
from colablock._common.urls import Mirrors, basename, checked_index, local_path, redacted, split_fragment
from colablock.authoring.from_requirements import matrix_parts
from colablock.authoring.requirements_reader import read_requirements
from colablock.environment import _probe
from colablock.environment.accelerator import Accelerator, parse_nvidia_smi
from colablock.environment.direct_url import archive_sha256, editable_folder, read_direct_url, to_freeze
from colablock.environment.probe import read_answer
from colablock.environment.record import lost_files, read_record, recorded_paths
from colablock.environment.requirements import asks_for_extras, only_with, parse_requirement, required_name
from colablock.environment.snapshot import _assemble
from colablock.errors import ColablockError
from colablock.index.project_pages import read_page
from colablock.lockfile.export import Format, export_text
from colablock.lockfile.lock_source import LockSource
from colablock.lockfile.pins import pins_of
from colablock.lockfile.pylock import read_lock
from colablock.lockfile.store import read_head, read_refusals
from colablock.matrix.catalog import lock_files
from colablock.matrix.lock_pack import LOCK_PACK, pack_locks
from colablock.matrix.model import Matrix
from colablock.matrix.packed_locks import packed_locks
from colablock.matrix.reader import MatrixFile, load_matrix
from colablock.network.auth import Credentials
from colablock.network.settings import read_settings
from colablock.runtimes.document import read_document, write_document
from colablock.runtimes.freeze import parse_freeze
from tests.fuzz.target import METADATA, PROJECT, PYTHON, ROOT, Target, fetcher_in, json_bytes, target

__all__ = ["FILES"]


MATRIX = Matrix(name="demo", source="demo.toml", digest="d" * 64)

# The environment

_RECORD = b"""demo/__init__.py,sha256=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA,10
"demo/a,b.py",sha256=BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB,20
../../../bin/demo,sha256=CCCC,30
demo-1.0.dist-info/METADATA,,
demo-1.0.dist-info/RECORD,,
"""


def _record(data: bytes, folder: Path) -> object:
    (folder / "RECORD").write_bytes(data)
    try:
        rows = read_record(folder) or ()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None  # refused
    return list(recorded_paths("/site", rows)), lost_files(str(folder), {"demo": rows[:50]})


_DIRECT_URL = {
    "url": "https://u:p@h/demo.whl",
    "archive_info": {"hash": "sha256=" + "0" * 64, "hashes": {"sha256": "0" * 64}},
}
_EDITABLE = {"url": "file:///home/demo", "dir_info": {"editable": True}, "subdirectory": "x"}
_VCS = {
    "url": "https://h/x.git",
    "vcs_info": {"vcs": "git", "commit_id": "0" * 40, "requested_revision": "main"},
}


def _direct_url(data: bytes, _folder: Path) -> object:
    origin = read_direct_url(data.decode("utf-8", "replace"))
    return None if origin is None else (archive_sha256(origin), editable_folder(origin), to_freeze(origin))


_METADATA_FILES = ("METADATA", "RECORD", "direct_url.json", "INSTALLER", "top_level.txt", "requires.txt")


def _site(data: bytes, folder: Path, name: str = "METADATA") -> object:
    """Read a folder of distributions, one of which has *data* as the file *name*."""
    info = folder / "demo-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_bytes(METADATA)
    (info / name).write_bytes(data)
    try:
        found = _probe.distributions([str(folder)], [])
    finally:
        (info / name).unlink()
    json.dumps(found)
    return found


_MARKED = "numpy[x]<3,>=1.26 ; python_version >= '3.9' and (extra == 'fast' or os_name in 'posix')"


def _requirement(data: bytes, _folder: Path) -> object:
    line = data.decode("utf-8", "replace")
    requirement = parse_requirement(line)
    if requirement is not None and requirement.marker is not None:
        requirement.marker.evaluate({**PYTHON.markers, "extra": ""})
    return required_name(line), only_with(line), asks_for_extras(line), str(requirement)


@cache
def _answers() -> tuple[bytes, ...]:
    return (json_bytes({**_probe.probe([]), "distributions": [_DISTRIBUTION]}),)


_DISTRIBUTION = {
    "name": "demo", "version": "1.0", "requires": ["x>=1"], "requires_python": ">=3.9", "extras": ["fast"],
    "import_names": ["demo"], "direct_url": None, "provenance_url": None, "installer": "pip",
    "requested": True, "size": 10, "path": "/site/demo-1.0.dist-info",
}  # fmt: skip


def _probe_answer(data: bytes, _folder: Path) -> object:
    answer = read_answer(data.decode("utf-8", "replace"))
    return _assemble(answer, environ={}, modules={}, protect=(), accelerator=Accelerator())


def _smi(data: bytes, _folder: Path) -> object:
    return parse_nvidia_smi(data.decode("utf-8", "replace"))


# Locks and matrices


@cache
def _locks() -> tuple[bytes, ...]:
    small = (ROOT / "matrices" / "pylock.qlora-2024--colab-2025_07-gpu.toml").read_bytes()
    head, *packages = small.split(b"\n[[packages]]\n")
    last, mark, tail = packages[-1].partition(b"\n[tool.colablock]\n")
    return (b"\n[[packages]]\n".join([head, *packages[:3], last]) + mark + tail, _FOREIGN_LOCK)


_FOREIGN_LOCK = b"""lock-version = "1.0"
environments = ["sys_platform == 'linux'"]
requires-python = ">=3.9"
extras = ["x"]
dependency-groups = ["dev"]
default-groups = ["dev"]
created-by = "other"
[[packages]]
name = "demo"
version = "1.0"
marker = "'x' in extras or python_version > '3.8'"
requires-python = ">=3.9"
dependencies = [{name = "base"}]
index = "https://index.example/simple/"
sdist = {name = "demo-1.0.tar.gz", url = "https://h/demo-1.0.tar.gz", size = 10, hashes = {md5 = "00"}}
[[packages.wheels]]
name = "demo-1.0-py3-none-any.whl"
url = "https://h/demo-1.0-py3-none-any.whl"
upload-time = 2024-01-02T03:04:05Z
size = 10
hashes = {sha256 = "0000000000000000000000000000000000000000000000000000000000000000"}
[[packages]]
name = "base"
archive = {url = "https://h/base-1.0.zip", size = 1, hashes = {md5 = "00"}}
[[packages]]
name = "repo"
vcs = {type = "git", url = "https://h/repo.git", commit-id = "0000000000000000000000000000000000000000"}
"""


def _lock(data: bytes, folder: Path) -> object:
    """Read a lock, and do with it what commands do: judge its packages, and export it."""
    path = folder / "pylock.toml"
    path.write_bytes(data)
    read_head(path)
    lock = read_lock(path)
    pins_of(lock, "pylock.toml")
    for kind in Format:
        try:
            export_text(lock, kind, source="pylock.toml")
        except ColablockError:
            continue
    source = LockSource(lock, folder, PYTHON, allow_build=frozenset({":all:"}))
    source.entries()
    for package in lock.packages:
        for candidate in source.judge(package.name).candidates:
            source.metadata(candidate)
    return source.versions


def _pack(data: bytes, folder: Path) -> object:
    (folder / LOCK_PACK).write_bytes(data)
    return [
        (lock.name, len(lock.read_bytes()), read_head(lock), read_lock(lock)) for lock in packed_locks(folder)
    ]


def _pack_json(data: bytes, folder: Path) -> object:
    import gzip  # noqa: PLC0415 - as the module under test

    return _pack(gzip.compress(data, 1), folder)


@cache
def _packs() -> tuple[bytes, ...]:
    return (
        pack_locks({f"pylock.demo--py31{place}.toml": lock.decode() for place, lock in enumerate(_locks())}),
    )


@cache
def _packs_json() -> tuple[bytes, ...]:
    import gzip  # noqa: PLC0415 - as the module under test

    return (gzip.decompress(_packs()[0]),)


def _refusals(data: bytes, folder: Path) -> object:
    (folder / "demo.refused.json").write_bytes(data)
    return read_refusals([folder], MATRIX)


_REFUSALS = {
    "schema": 1,
    "matrix": "demo",
    "matrix-digest": "d" * 64,
    "refused": [{"target": "py312", "variant": None, "reason": "no wheel"}],
}


@cache
def _matrices() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted((ROOT / "matrices").glob("[a-o,q-z]*.toml")))


def _matrix(data: bytes, _folder: Path) -> object:
    matrix = load_matrix(MatrixFile(source="demo.toml", content=data))
    return lock_files(matrix, environ={}, cwd=_folder)


# Runtimes, requirement files and settings


@cache
def _documents() -> tuple[bytes, ...]:
    value = {
        "schema": 1,
        "name": "colab-x",
        "host": "colab",
        "flavour": "gpu",
        "date": "2026-07-01",
        "python": "3.12.11",
        "platform": "manylinux_2_35_x86_64",
        "driver": "550.54.15",
        "shared": [["a", "b"]],
        "distributions": [
            {
                "name": "A",
                "version": "1.0",
                "requires": ["b>=1"],
                "extras": ["x"],
                "size": 10,
                "import_names": ["a"],
            },
            {"name": "b", "version": "2.0", "url": "git+https://h/b@" + "0" * 40, "requires_python": ">=3.9"},
        ],
    }
    return (json_bytes(value),)


def _document(data: bytes, _folder: Path) -> object:
    return write_document(read_document(data.decode("utf-8", "replace"), "x.json"))


_FREEZE = b"""# a comment
numpy==1.26.4
torch==2.4.0+cu121
odd===not-a-version
demo @ https://h/demo-1.0-py3-none-any.whl#sha256=0000000000000000000000000000000000000000000000000000000000000000
local @ file:///home/x/local-1.0.tar.gz
repo @ git+https://h/repo@0123456789
-e git+https://h/x#egg=x
"""


def _freeze(data: bytes, _folder: Path) -> object:
    return parse_freeze(data.decode("utf-8", "replace"), "freeze.txt")


_REQUIREMENTS = b"""--index-url https://u:p@index.example/simple/
--extra-index-url=https://other.example/
-f ./wheels
-c constraints.txt
numpy==1.26.4 --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000 \\
    --hash=sha256:1111111111111111111111111111111111111111111111111111111111111111
torch[x]>=2 ; python_version > '3.8'  # comment
demo @ https://h/demo-1.0-py3-none-any.whl
./local-1.0.tar.gz
https://h/x-1.0-py3-none-any.whl#egg=x
git+https://github.com/a/b.git@main#egg=b
"""


def _read_file(data: bytes, folder: Path, name: str = "requirements.txt", group: str = "") -> object:
    (folder / "constraints.txt").write_text("numpy<3\n")
    path = folder / name
    path.write_bytes(data)
    return matrix_parts(read_requirements(f"{path}{group}"))


_GROUPS = (
    PROJECT
    + b"""[dependency-groups]
dev = ["x", {include-group = "test"}]
test = ["pytest>=8"]
"""
)

_UV = b"""[project]
name = "demo"
requires-python = ">=3.11"
dependencies = ["torch>=2", "a", "b[x]", "torch==2.4.0+cu118"]
optional-dependencies = { gpu = ["demo[other]", "x"], other = ["y"] }
[tool.uv]
constraint-dependencies = ["numpy<2"]
override-dependencies = ["a==2"]
prerelease = "allow"
exclude-newer = "2026-09-01T00:00:00Z"
no-binary-package = ["a"]
extra-index-url = ["https://download.pytorch.org/whl/cu118"]
[tool.uv.sources]
torch = [{ index = "cpu", marker = "sys_platform == 'linux'" }, { index = "cpu", extra = "gpu" }]
a = { git = "https://github.com/o/r", rev = "abc", subdirectory = "x" }
b = { path = "../b" }
[[tool.uv.index]]
name = "cpu"
url = "https://download.pytorch.org/whl/cpu"
explicit = true
[[tool.pdm.source]]
name = "pypi"
url = "https://u:p@mirror.example/simple"
"""
_POETRY = b"""[tool.poetry.dependencies]
python = "^3.10"
a = "^1.2.3"
b = { version = "~1", extras = ["x"], markers = "os_name == 'nt'", python = ">=3.9", source = "s" }
c = [{ version = "1.*", platform = "linux" }, { git = "https://github.com/o/r", tag = "v1" }]
[tool.poetry.group.dev.dependencies]
d = "*"
[[tool.poetry.source]]
name = "s"
url = "https://s.example/simple"
priority = "explicit"
"""
_SCRIPT = b"""# /// script
# requires-python = ">=3.11"
# dependencies = ["a>=1"]
# [tool.uv.sources]
# a = { url = "https://h.example/a-1.0.tar.gz" }
# ///
import a
"""

_NETRC = b"""machine index.example
  login user
  password secret
default login x password y
macdef init
  cd x

"""
_PIP_CONF = b"""[global]
index-url = https://u:p@index.example/simple/
find-links =
    /wheels
    https://h/links
[install]
extra-index-url = https://x
"""


def _netrc(data: bytes, folder: Path) -> object:
    (folder / ".netrc").write_bytes(data)
    (folder / ".netrc").chmod(0o600)
    credentials = Credentials({"HOME": str(folder)})
    return credentials.find("https://index.example/x"), credentials.advice("https://index.example/x")


def _pip_conf(data: bytes, folder: Path) -> object:
    (folder / "pip.conf").write_bytes(data)
    environ = {
        "PIP_CONFIG_FILE": str(folder / "pip.conf"),
        "XDG_CONFIG_DIRS": str(folder),
        "HOME": str(folder),
    }
    return read_settings(environ, indexes=())


def _url(data: bytes, folder: Path) -> object:
    url = data.decode("utf-8", "surrogateescape")
    plain, _ = split_fragment(url)
    with suppress(ColablockError):
        Mirrors.parse(f"https://index.example/={url}")
    with suppress(ColablockError):
        checked_index(url)
    Mirrors().and_indexes([(url, "https://m/")]).to_canonical(url)
    return redacted(url), basename(plain), local_path(url), fetcher_in(folder).local(url)


def _index_url(data: bytes, folder: Path) -> object:
    """Use *data* as the URL of an index, offline."""
    url = data.decode("utf-8", "surrogateescape")
    return read_page(fetcher_in(folder), url, None)


FILES: tuple[Target, ...] = (
    target("record", "lines", _record, _RECORD, weight=4),
    target(
        "direct-url",
        "json",
        _direct_url,
        json_bytes(_DIRECT_URL),
        json_bytes(_EDITABLE),
        json_bytes(_VCS),
        weight=3,
    ),
    target("installed-metadata", "lines", _site, METADATA, weight=2),
    target("installed-record", "lines", partial(_site, name="RECORD"), _RECORD),
    target("top-level", "lines", partial(_site, name="top_level.txt"), b"demo\n_demo\n"),
    target(
        "requires-txt",
        "lines",
        partial(_site, name="requires.txt"),
        b"x>=1\n\n[fast:python_version>'3']\ny\n",
    ),
    target(
        "requirement",
        "lines",
        _requirement,
        _MARKED.encode(),
        b"a @ https://h/a.whl ; os_name == 'x'",
        weight=4,
    ),
    Target(
        name="probe-answer",
        form="json",
        samples=_answers,
        call=_probe_answer,
        documented=(ColablockError, Malformed),
        weight=3,
    ),
    target("nvidia-smi", "lines", _smi, b"Tesla T4, 550.54.15, 15360, 7.5\n"),
    Target(name="lock", form="toml", samples=_locks, call=_lock, weight=6),
    Target(name="lock-pack", form="bytes", samples=_packs, call=_pack),
    Target(name="lock-pack-json", form="lines", samples=_packs_json, call=_pack_json),
    target("refusals", "json", _refusals, json_bytes(_REFUSALS), weight=2),
    Target(name="matrix", form="toml", samples=_matrices, call=_matrix, weight=4),
    Target(name="runtime", form="json", samples=_documents, call=_document, weight=3),
    target("freeze", "lines", _freeze, _FREEZE, weight=2),
    target("requirements-txt", "lines", _read_file, _REQUIREMENTS, weight=3),
    target("pyproject", "toml", partial(_read_file, name="pyproject.toml"), PROJECT),
    target(
        "pyproject-group", "toml", partial(_read_file, name="pyproject.toml", group=":dev"), _GROUPS, weight=2
    ),
    target("pyproject-uv", "toml", partial(_read_file, name="pyproject.toml"), _UV, weight=2),
    target("pyproject-extra", "toml", partial(_read_file, name="pyproject.toml", group=":gpu"), _UV),
    target("pyproject-poetry", "toml", partial(_read_file, name="pyproject.toml"), _POETRY),
    target("script", "lines", partial(_read_file, name="train.py"), _SCRIPT),
    target("pylock-requirements", "toml", partial(_read_file, name="pylock.toml"), _FOREIGN_LOCK, weight=2),
    target("netrc", "lines", _netrc, _NETRC),
    target("pip-conf", "lines", _pip_conf, _PIP_CONF),
    target(
        "url",
        "lines",
        _url,
        b"https://u:p@index.example:8443/simple/x-1.0.whl?q#sha256=00&egg=x",
        b"file:///x",
        weight=2,
    ),
    target("index-url", "lines", _index_url, b"https://u:p@index.example:8443/simple/", b"/tmp", weight=2),
)
