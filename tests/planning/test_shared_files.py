"""Builds of one package, told from the files that distributions record."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.snapshot import Installed
from colablock.errors import BadDistribution
from colablock.planning.shared_files import families, is_whole, modules_of, shared_paths, wheel_claim
from tests.support.runtime import Stub, build_site

NAMESPACE = "__path__ = __import__('pkgutil').extend_path(__path__, __name__)\n"


@dataclass(frozen=True)
class Case:
    """The files of each distribution; *builds* are the pairs that own the same package."""

    files: Mapping[str, Sequence[str] | Mapping[str, str]]
    builds: Sequence[tuple[str, str]] = ()


CASES = {
    "opencv": Case(
        {
            "opencv-python": ["cv2/__init__.py", "cv2/cv2.abi3.so", "cv2/qt/plugins/x.so"],
            "opencv-python-headless": ["cv2/__init__.py", "cv2/cv2.abi3.so"],
        },
        [("opencv-python", "opencv-python-headless")],
    ),
    "psycopg2": Case(
        {
            "psycopg2": ["psycopg2/__init__.py", "psycopg2/_psycopg.cpython-312-x86_64-linux-gnu.so"],
            "psycopg2-binary": ["psycopg2/__init__.py", "psycopg2/_psycopg.cpython-312-x86_64-linux-gnu.so"],
        },
        [("psycopg2", "psycopg2-binary")],
    ),
    "libraries beside the package": Case(
        {
            name: ["cv2/__init__.py", "cv2/cv2.abi3.so", *(f"{name}.libs/lib{i}.so.1" for i in range(30))]
            for name in ("opencv-python", "opencv-contrib-python")
        },
        [("opencv-contrib-python", "opencv-python")],
    ),
    "one package of two": Case(
        {"attrs": ["attr/__init__.py", "attr/_make.py", "attrs/__init__.py"], "attr": ["attr/__init__.py"]},
        [("attr", "attrs")],
    ),
    "a module without a package": Case(
        {
            "six": ["six.py"],
            "six-fork": ["six.py"],
            "magic": ["magic.py"],
            "python-magic": ["magic/__init__.py"],
        },
        [("six", "six-fork")],
    ),
    "packages with nothing but a start": Case(
        {"jwt": ["jwt/__init__.py"], "pyjwt": ["jwt/__init__.py"]}, [("jwt", "pyjwt")]
    ),
    "versioned libraries": Case(
        {
            "nvidia-cudnn-cu11": {"nvidia/__init__.py": "", "nvidia/cudnn/lib/libcudnn.so.9": "11"},
            "nvidia-cudnn-cu12": {"nvidia/__init__.py": "", "nvidia/cudnn/lib/libcudnn.so.9": "12"},
            "nvidia-nccl-cu12": {"nvidia/__init__.py": "", "nvidia/nccl/lib/libnccl.so.2": ""},
        },
        [("nvidia-cudnn-cu11", "nvidia-cudnn-cu12")],
    ),
    "portions of a namespace": Case(
        {
            "google-auth": {"google/__init__.py": NAMESPACE, "google/auth/__init__.py": "1"},
            "google-api": {"google/__init__.py": NAMESPACE, "google/api/__init__.py": "1"},
            "protobuf": {"google/__init__.py": "# Copyright\n", "google/protobuf/__init__.py": "1"},
            "google-only": {"google/__init__.py": NAMESPACE},
        },
    ),
    "a namespace in a namespace": Case(
        {
            "google-cloud-storage": {
                "google/cloud/__init__.py": NAMESPACE,
                "google/cloud/storage/blob.py": "",
            },
            "google-cloud-core": {"google/cloud/__init__.py": NAMESPACE, "google/cloud/client.py": ""},
        },
    ),
    "tests beside the package": Case(
        {
            "one": ["one/__init__.py", "tests/__init__.py", "tests/helper.py", "tests/test_one.py"],
            "two": ["two/__init__.py", "tests/__init__.py", "tests/helper.py"],
        },
    ),
    "data of the same name": Case(
        {
            "one": ["one/__init__.py", "LICENSE", "share/x.txt"],
            "two": ["two/__init__.py", "LICENSE", "share/x.txt"],
        }
    ),
    "sources and chores at the top": Case(
        {
            "one": ["src/main.py", "setup.py", "conftest.py"],
            "two": ["src/main.py", "setup.py", "conftest.py", "two.py"],
        }
    ),
    "a start that two packages add to": Case(
        {"jaraco": ["jaraco/__init__.py", "jaraco/a.py"], "jaraco-b": ["jaraco/__init__.py", "jaraco/b.py"]}
    ),
}


def stubs_of(case: Case) -> list[Stub]:
    made = []
    for name, files in case.files.items():
        texts = files if isinstance(files, Mapping) else dict.fromkeys(files, f"# {name}\nNAME = '{name}'\n")
        made.append(Stub(name=name, version="1", import_names=(), files=texts))
    return made


def installed_in(site: Path, stubs: Sequence[Stub]) -> list[Installed]:
    build_site(site, stubs)
    found = []
    for stub in stubs:
        info = site / f"{stub.name.replace('-', '_')}-{stub.version}.dist-info"
        tops = {path.partition("/")[0].partition(".")[0] for path in stub.files}
        name = canonicalize_name(stub.name)
        found.append(Installed(name=name, version="1", import_names=tuple(tops), path=str(info)))
    return found


def pairs(found: Mapping[NormalizedName, frozenset[NormalizedName]]) -> set[tuple[str, str]]:
    return {(name, other) for name, others in found.items() for other in others if name < other}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_recorded_files_tell_the_builds_of_one_package(case: Case, tmp_path: Path) -> None:
    here = installed_in(tmp_path, stubs_of(case))
    assert pairs(families(here)) == set(case.builds)
    unnamed = [replace(one, import_names=()) for one in here]  # as with an empty top_level.txt
    assert pairs(families(unnamed)) == set(case.builds)
    # A wheel that is not installed counts like a distribution that is.
    for new in here:
        info = Path(new.path or "")
        paths = [line.split(",")[0] for line in (info / "RECORD").read_text().splitlines()]
        others = [one for one in here if one is not new]
        found = families(others, [modules_of(new.name, str(tmp_path), paths)])
        assert pairs(found) == set(case.builds)


def test_the_modules_of_a_wheel_are_those_that_go_into_the_site(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in (
            "a/b.py",
            "a-1.data/purelib/c.py",
            "a-1.data/scripts/d.py",
            "a/e.txt",
            "a-1.dist-info/f.py",
        ):
            archive.writestr(path, "")
    claim = wheel_claim(canonicalize_name("a"), "/s", wheel)
    assert {"/s/a/b.py", "/s/c.py"} <= claim.paths
    assert not {path for path in claim.paths if path.endswith(("e.txt", "f.py"))}


def test_what_is_no_archive_is_no_wheel(tmp_path: Path) -> None:
    path = tmp_path / "a-1.0-py3-none-any.whl"
    path.write_bytes(bytes(3000))
    with pytest.raises(BadDistribution, match="the wheel of a cannot be read: "):
        wheel_claim(canonicalize_name("a"), "/site", path)


def test_a_build_is_whole_if_the_shared_files_are_its_own(tmp_path: Path) -> None:
    first, last = installed_in(tmp_path, stubs_of(CASES["psycopg2"]))
    shared = shared_paths(first, last)
    assert len(shared) == 2
    assert (is_whole(first, shared), is_whole(last, shared)) == (False, True)
    assert is_whole(first, ())
    (tmp_path / "psycopg2" / "__init__.py").unlink()
    assert not is_whole(last, shared)
