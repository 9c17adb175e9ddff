from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import colablock
from colablock._vendor.packaging.markers import Marker, default_environment
from colablock._vendor.packaging.tags import Tag, sys_tags
from colablock._vendor.packaging.version import Version
from colablock.environment import _probe
from colablock.environment.markers_and_tags import Environment, environment_for
from colablock.errors import InvalidInput
from tests.support.runtime import find_python

pytestmark = pytest.mark.interpreter

PACKAGE = Path(colablock.__path__[0])
ASK_PACKAGING = """
import json, sys
sys.path.insert(0, sys.argv[1])
from colablock._vendor.packaging.markers import default_environment
from colablock._vendor.packaging.tags import sys_tags
print(json.dumps([default_environment(), [str(tag) for tag in sys_tags()]]))
"""


def tag_names(environment: Environment) -> list[str]:
    return [str(tag) for tag in environment.tags]


def test_tags_and_markers_agree_with_packaging() -> None:
    environment = Environment.from_facts(_probe.interpreter_facts())
    assert environment.markers == {**default_environment()}
    assert list(environment.tags) == list(sys_tags())


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_tags_and_markers_of_another_interpreter_agree_with_packaging(version: str) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    told = subprocess.run(
        [python, "-I", "-c", ASK_PACKAGING, str(PACKAGE.parent)], capture_output=True, text=True, check=True
    )
    markers, tags = json.loads(told.stdout)
    answer = subprocess.run([python, "-I", _probe.__file__], capture_output=True, text=True, check=True)
    facts = json.loads(answer.stdout.split(_probe.MARK)[1])["facts"]
    environment = Environment.from_facts(facts)
    assert environment.markers == markers
    assert tag_names(environment) == tags


TARGETS: dict[str, dict[str, str]] = {
    "manylinux_2_35_x86_64": {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
    },
    "musllinux_1_2_aarch64": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "macosx_14_0_arm64": {
        "sys_platform": "darwin",
        "platform_system": "Darwin",
        "platform_machine": "arm64",
        "os_name": "posix",
    },
    "win_amd64": {
        "sys_platform": "win32",
        "platform_system": "Windows",
        "platform_machine": "AMD64",
        "os_name": "nt",
    },
    "win32": {"platform_machine": "x86"},
}


@pytest.mark.parametrize(("platform", "expected"), TARGETS.items())
def test_a_platform_determines_its_markers(platform: str, expected: dict[str, str]) -> None:
    markers = environment_for("3.12.4", platform).markers
    assert expected.items() <= markers.items()
    assert set(markers) == set(default_environment())
    assert markers["python_full_version"] == markers["implementation_version"] == "3.12.4"
    assert markers["implementation_name"] == "cpython"


TAGS = [
    ("manylinux_2_35_x86_64", "manylinux_2_35_x86_64", True),
    ("manylinux_2_35_x86_64", "manylinux_2_17_x86_64", True),
    ("manylinux_2_35_x86_64", "manylinux2014_x86_64", True),
    ("manylinux_2_35_x86_64", "manylinux2010_x86_64", True),
    ("manylinux_2_35_x86_64", "manylinux1_x86_64", True),
    ("manylinux_2_35_x86_64", "linux_x86_64", True),
    ("manylinux_2_35_x86_64", "manylinux_2_36_x86_64", False),
    ("manylinux_2_35_x86_64", "manylinux_2_17_aarch64", False),
    ("manylinux_2_35_x86_64", "musllinux_1_1_x86_64", False),
    ("manylinux_2_28_aarch64", "manylinux2014_aarch64", True),
    ("manylinux_2_28_aarch64", "manylinux2010_aarch64", False),
    ("manylinux2014_x86_64", "manylinux_2_17_x86_64", True),
    ("manylinux2014_x86_64", "manylinux_2_18_x86_64", False),
    ("linux_x86_64", "manylinux_2_28_x86_64", True),
    ("linux_x86_64", "manylinux_2_29_x86_64", False),
    ("Linux-x86_64", "linux_x86_64", True),
    ("musllinux_1_2_x86_64", "musllinux_1_0_x86_64", True),
    ("musllinux_1_2_x86_64", "musllinux_1_3_x86_64", False),
    ("musllinux_1_2_x86_64", "manylinux2014_x86_64", False),
    ("macosx_14_0_arm64", "macosx_11_0_arm64", True),
    ("macosx_14_0_arm64", "macosx_11_0_universal2", True),
    ("macosx_14_0_arm64", "macosx_15_0_arm64", False),
    ("win_amd64", "win_amd64", True),
    ("win_amd64", "win32", False),
]


@pytest.mark.parametrize(("platform", "tag", "fits"), TAGS)
def test_a_platform_accepts_the_wheels_of_older_ones(platform: str, tag: str, fits: bool) -> None:
    environment = environment_for("3.12", platform)
    assert (Tag("cp312", "cp312", tag) in environment.tags) is fits
    assert (Tag("cp38", "abi3", tag) in environment.tags) is fits
    assert Tag("py3", "none", "any") in environment.tags


def test_the_best_tag_comes_first() -> None:
    names = tag_names(environment_for("3.12", "manylinux_2_35_x86_64"))
    order = [
        "cp312-cp312-manylinux_2_35_x86_64",
        "cp312-cp312-manylinux_2_17_x86_64",
        "cp312-abi3-manylinux_2_35_x86_64",
        "cp311-abi3-manylinux_2_35_x86_64",
        "py3-none-manylinux_2_35_x86_64",
        "py3-none-any",
    ]
    assert sorted(order, key=names.index) == order


VERSIONS = [
    ("3.12", "3.12.0", "3.12"),
    ("3.12.4", "3.12.4", "3.12"),
    (" 3.10.13 ", "3.10.13", "3.10"),
    ("3.14.0rc2", "3.14.0rc2", "3.14"),
    ("3.13t", "3.13.0", "3.13"),
]


@pytest.mark.parametrize(("written", "full", "short"), VERSIONS)
def test_accepted_forms_of_a_python_version(written: str, full: str, short: str) -> None:
    environment = environment_for(written, "win_amd64")
    assert environment.markers["python_full_version"] == full
    assert environment.python_version == Version(full)
    assert environment.short == environment.markers["python_version"] == short


def test_a_free_threaded_python_accepts_only_its_own_abi() -> None:
    tags = environment_for("3.13t", "win_amd64").tags
    assert Tag("cp313", "cp313t", "win_amd64") in tags
    assert Tag("cp313", "cp313", "win_amd64") not in tags
    assert Tag("cp313", "abi3", "win_amd64") not in tags


@pytest.mark.parametrize("version", ["", "3", "312", "2.7", "4.0", "3.12.x", "three", "3.12.4.5", ">=3.12"])
def test_an_unsupported_python_version_is_rejected(version: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        environment_for(version, "win_amd64")
    assert f"`{version}`" in str(raised.value)
    assert raised.value.hint is not None


@pytest.mark.parametrize(
    "platform",
    [
        "",
        "linux",
        "x86_64",
        "manylinux_2_35",
        "manylinux_2_35_z80",
        "manylinux_2_4_x86_64",
        "manylinux_2_16_aarch64",
        "manylinux_3_1_x86_64",
        "manylinux2015_x86_64",
        "manylinux2010_aarch64",
        "macosx_14_arm64",
        "macosx_14_0_ppc",
        "win64",
        "any",
    ],
)
def test_an_unsupported_platform_is_rejected(platform: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        environment_for("3.12", platform)
    assert f"`{platform}`" in str(raised.value)
    assert "manylinux_2_35_x86_64" in (raised.value.hint or "")


def test_markers_are_evaluated_for_the_environment() -> None:
    markers = {**environment_for("3.12", "manylinux_2_35_x86_64").markers, "extra": ""}
    assert Marker("sys_platform == 'linux' and python_version >= '3.10'").evaluate(markers)
    assert not Marker("platform_release >= '5'").evaluate(markers)


def facts(**changes: Any) -> dict[str, Any]:
    markers = {**environment_for("3.12", "manylinux_2_35_x86_64").markers, **changes.pop("markers", {})}
    return {"markers": markers, "version": [3, 12], "platform": "linux-x86_64", "glibc": [2, 35], **changes}


FACTS: list[tuple[dict[str, Any], str, str]] = [
    # what the interpreter says, the first tag, one that must be there
    (facts(), "cp312-cp312-linux_x86_64", "cp312-cp312-manylinux_2_35_x86_64"),
    (facts(debug=True), "cp312-cp312d-linux_x86_64", "cp312-cp312-linux_x86_64"),
    (facts(is_32bit=True), "cp312-cp312-linux_i686", "cp312-cp312-manylinux_2_5_i686"),
    (
        facts(is_32bit=True, platform="linux-aarch64"),
        "cp312-cp312-linux_armv8l",
        "cp312-cp312-manylinux_2_17_armv7l",
    ),
    (facts(glibc=None, musl=[1, 2]), "cp312-cp312-linux_x86_64", "cp312-cp312-musllinux_1_1_x86_64"),
    (
        facts(platform="win-amd64", markers={"platform_system": "Windows"}),
        "cp312-cp312-win_amd64",
        "py3-none-win_amd64",
    ),
    (
        facts(
            version=[3, 10],
            ext_suffix=".pypy310-pp73-x86_64-linux-gnu.so",
            markers={"implementation_name": "pypy"},
        ),
        "pp310-pypy310_pp73-linux_x86_64",
        "pp3-none-any",
    ),
    (
        facts(
            ext_suffix=".graalpy230-310-native-x86_64-linux.so", markers={"implementation_name": "graalpy"}
        ),
        "graalpy312-graalpy230_310_native-linux_x86_64",
        "py3-none-any",
    ),
    (
        facts(macos=[14, 2, "arm64"], platform="macosx-11.0-arm64", markers={"platform_system": "Darwin"}),
        "cp312-cp312-macosx_14_0_arm64",
        "cp312-cp312-macosx_11_0_universal2",
    ),
]


@pytest.mark.parametrize(("told", "first", "also"), FACTS)
def test_tags_follow_from_the_facts_of_an_interpreter(told: dict[str, Any], first: str, also: str) -> None:
    names = tag_names(Environment.from_facts(told))
    assert names[0] == first
    assert also in names


def test_a_python_built_from_a_checkout_has_a_valid_version() -> None:
    told = facts(markers={"python_full_version": "3.15.0a1+"})
    assert Environment.from_facts(told).python_version == Version("3.15.0a1+local")


@pytest.mark.parametrize(
    "told", [{}, {"markers": {}}, facts(version=None), facts(markers={"python_full_version": "x"})]
)
def test_invalid_facts_are_rejected(told: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Environment.from_facts(told)


def test_threads_that_ask_at_the_same_time_find_every_tag() -> None:
    """The ranks are made when they are first asked for, by any thread of a solve."""
    found: list[tuple[int, int]] = []

    class Asking(Tag):
        """A tag that another thread reads the ranks beside, once."""

        def __str__(self) -> str:
            if not found:
                found.append((0, 0))
                with ThreadPoolExecutor(1) as pool:
                    found.append(pool.submit(sizes).result())
            return super().__str__()

    def sizes() -> tuple[int, int]:
        return len(environment.ranks), len(environment.interpreters)

    known = environment_for("3.12", "manylinux_2_35_x86_64")
    first, *rest = known.tags
    environment = Environment(
        markers=known.markers,
        tags=(first, Asking(rest[0].interpreter, rest[0].abi, rest[0].platform), *rest[1:]),
    )
    own = sizes()
    assert found[1:] == [own]
    assert own[0] == len(environment.tags)
