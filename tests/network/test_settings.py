"""Settings for indexes: precedence and notes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from colablock._common.urls import Url
from colablock.network.settings import DEFAULT_INDEX, Settings, read_settings
from colablock.operations.info import machine_facts

pytestmark = pytest.mark.requirements

A, B, C = (f"https://{name}.example/simple/" for name in "abc")
PIP_CONF = f"[global]\nindex-url = {A}\n"


@dataclass(frozen=True)
class SettingsCase:
    """Variables, pip configuration files (in the home folder) and arguments, and the expected settings."""

    environ: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    index: str = DEFAULT_INDEX
    links: Sequence[str] = ()
    notes: Sequence[str] = ()
    offline: bool = False
    keyring: bool = False


FROM_UV = ["using the default index from UV_DEFAULT_INDEX"]
FROM_PIP = ["using the default index from pip's configuration"]
CASES = {
    "nothing": SettingsCase(),
    "argument": SettingsCase({"COLABLOCK_DEFAULT_INDEX": B}, arguments={"default_index": A}, index=A),
    "own variable": SettingsCase({"COLABLOCK_DEFAULT_INDEX": A, "UV_DEFAULT_INDEX": B}, index=A),
    "uv": SettingsCase(
        {"UV_DEFAULT_INDEX": A, "UV_INDEX_URL": B, "PIP_INDEX_URL": C}, index=A, notes=FROM_UV
    ),
    "uv with a name": SettingsCase({"UV_DEFAULT_INDEX": f"mine={A}?x=y"}, index=f"{A}?x=y", notes=FROM_UV),
    "old variable of uv": SettingsCase(
        {"UV_INDEX_URL": A, "PIP_INDEX_URL": B},
        index=A,
        notes=["using the default index from UV_INDEX_URL"],
    ),
    "pip": SettingsCase(
        {"PIP_INDEX_URL": A},
        {".config/pip/pip.conf": f"[global]\nindex-url = {B}\n"},
        index=A,
        notes=["using the default index from PIP_INDEX_URL"],
    ),
    "empty variables": SettingsCase(
        {"COLABLOCK_DEFAULT_INDEX": "", "UV_DEFAULT_INDEX": "", "PIP_INDEX_URL": ""}
    ),
    "pip.conf": SettingsCase(files={".config/pip/pip.conf": PIP_CONF}, index=A, notes=FROM_PIP),
    "old place of pip.conf": SettingsCase(files={".pip/pip.conf": PIP_CONF}, index=A, notes=FROM_PIP),
    "the nearer pip.conf": SettingsCase(
        files={".pip/pip.conf": f"[global]\nindex-url = {B}", ".config/pip/pip.conf": PIP_CONF},
        index=A,
        notes=FROM_PIP,
    ),
    "[install] before [global]": SettingsCase(
        files={".config/pip/pip.conf": f"[install]\nindex_url = {A}\n[global]\nindex-url = {B}\n"},
        index=A,
        notes=FROM_PIP,
    ),
    "another section": SettingsCase(files={".config/pip/pip.conf": f"[download]\nindex-url = {A}\n"}),
    "XDG_CONFIG_HOME": SettingsCase(
        {"XDG_CONFIG_HOME": "{home}/xdg"}, {"xdg/pip/pip.conf": PIP_CONF}, index=A, notes=FROM_PIP
    ),
    "XDG_CONFIG_DIRS": SettingsCase(
        {"XDG_CONFIG_DIRS": "{home}/one:{home}/two"},
        {"one/pip/pip.conf": PIP_CONF, "two/pip/pip.conf": f"[global]\nindex-url = {B}\n"},
        index=A,
        notes=FROM_PIP,
    ),
    "the environment's pip.conf": SettingsCase(
        {"VIRTUAL_ENV": "{home}/venv"},
        {"venv/pip.conf": PIP_CONF, ".config/pip/pip.conf": f"[global]\nindex-url = {B}\n"},
        index=A,
        notes=FROM_PIP,
    ),
    "PIP_CONFIG_FILE": SettingsCase(
        {"PIP_CONFIG_FILE": "{home}/my.conf"},
        {"my.conf": PIP_CONF, ".config/pip/pip.conf": f"[global]\nindex-url = {B}\n"},
        index=A,
        notes=FROM_PIP,
    ),
    "no configuration wanted": SettingsCase(
        {"PIP_CONFIG_FILE": os.devnull}, {".config/pip/pip.conf": PIP_CONF, ".pip/pip.conf": PIP_CONF}
    ),
    "an invalid pip.conf": SettingsCase(
        files={".config/pip/pip.conf": "index-url", ".pip/pip.conf": PIP_CONF}, index=A, notes=FROM_PIP
    ),
    "percent signs": SettingsCase(
        files={".config/pip/pip.conf": "[global]\nindex-url = https://a.example/a%20b/\n"},
        index="https://a.example/a%20b/",
        notes=FROM_PIP,
    ),
    "links as an argument": SettingsCase(
        {"COLABLOCK_FIND_LINKS": "b"}, arguments={"find_links": ["a b"]}, links=["a b"]
    ),
    "own links": SettingsCase({"COLABLOCK_FIND_LINKS": "a  b\n", "UV_FIND_LINKS": "c"}, links=["a", "b"]),
    "links of uv": SettingsCase(
        {"UV_FIND_LINKS": "/with space, b", "PIP_FIND_LINKS": "c"},
        links=["/with space", "b"],
        notes=["using find-links from UV_FIND_LINKS"],
    ),
    "links of pip": SettingsCase(
        {"PIP_FIND_LINKS": "a b"}, links=["a", "b"], notes=["using find-links from PIP_FIND_LINKS"]
    ),
    "links of pip.conf": SettingsCase(
        files={".config/pip/pip.conf": "[global]\nfind-links =\n    a\n    b\n"},
        links=["a", "b"],
        notes=["using find-links from pip's configuration"],
    ),
    "further indexes": SettingsCase(
        {"PIP_EXTRA_INDEX_URL": B},
        notes=["not using the extra indexes from PIP_EXTRA_INDEX_URL: a matrix names its own indexes"],
    ),
    "offline": SettingsCase({"COLABLOCK_OFFLINE": "1"}, offline=True),
    "not offline": SettingsCase({"COLABLOCK_OFFLINE": "0"}),
    "keyring": SettingsCase(
        {"COLABLOCK_KEYRING_PROVIDER": "subprocess", "PIP_KEYRING_PROVIDER": "disabled"}, keyring=True
    ),
    "no keyring": SettingsCase(
        {"COLABLOCK_KEYRING_PROVIDER": "disabled", "UV_KEYRING_PROVIDER": "subprocess"}
    ),
    "keyring of uv": SettingsCase(
        {"UV_KEYRING_PROVIDER": "subprocess"},
        keyring=True,
        notes=["querying the keyring for passwords, as set in UV_KEYRING_PROVIDER"],
    ),
    "keyring of pip.conf": SettingsCase(
        files={".config/pip/pip.conf": "[global]\nkeyring-provider = subprocess\n"},
        keyring=True,
        notes=["querying the keyring for passwords, as set in pip's configuration"],
    ),
    "a keyring that pip imports": SettingsCase({"PIP_KEYRING_PROVIDER": "import"}),
    "offline as an argument": SettingsCase(arguments={"offline": True}, offline=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_setting_with_the_highest_precedence_wins(case: SettingsCase, tmp_path: Path) -> None:
    found = read_settings(environ_of(case, tmp_path), **case.arguments)
    assert found == Settings(
        default_index=Url(case.index),
        find_links=tuple(map(Url, case.links)),
        links_override="find_links" in case.arguments,
        offline=case.offline,
        keyring=case.keyring,
        notes=tuple(case.notes),
    )


@pytest.mark.parametrize("variable", ["COLABLOCK_FIND_LINKS", "PIP_FIND_LINKS", "UV_FIND_LINKS"])
def test_the_path_of_a_folder_is_not_split(variable: str, tmp_path: Path) -> None:
    folder = tmp_path / "my wheels, of 2026"
    folder.mkdir()
    assert read_settings({"HOME": str(tmp_path), variable: f"{folder}\n"}).find_links == (str(folder),)


def environ_of(case: SettingsCase, home: Path) -> dict[str, str]:
    for name, text in case.files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    # Ignore the /etc/xdg of this machine.
    base = {"HOME": str(home), "XDG_CONFIG_DIRS": str(home / "none")}
    return {**base, **{name: value.format(home=home) for name, value in case.environ.items()}}


def test_settings_need_no_home_folder() -> None:
    assert read_settings({"XDG_CONFIG_DIRS": "/nowhere"}).find_links == ()


SECRET = "s3cret"
PRIVATE = f"https://me:{SECRET}@a.example/simple/"


@pytest.mark.parametrize("name", ["COLABLOCK_DEFAULT_INDEX", "UV_DEFAULT_INDEX", "PIP_INDEX_URL"])
def test_passwords_are_used_and_not_shown(name: str, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), name: PRIVATE, "COLABLOCK_FIND_LINKS": PRIVATE}
    found = read_settings(environ)
    assert found.default_index.with_credentials() == PRIVATE
    assert [link.with_credentials() for link in found.find_links] == [PRIVATE]
    assert SECRET not in repr(found)
    assert SECRET not in " ".join(found.notes)
    shown = machine_facts(environ)
    assert shown["default_index"] == "https://a.example/simple/"
    assert shown["find_links"] == ["https://a.example/simple/"]
    assert SECRET not in repr(shown)


def test_a_password_in_extra_indexes_is_not_shown(tmp_path: Path) -> None:
    assert SECRET not in repr(machine_facts({"HOME": str(tmp_path), "PIP_EXTRA_INDEX_URL": PRIVATE}))


@pytest.mark.parametrize("kind", ["a pipe", "endless"])
def test_a_configuration_of_pip_that_never_ends_is_not_used(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "pip"
    folder.mkdir(parents=True)
    if kind == "a pipe":
        os.mkfifo(folder / "pip.conf")
    else:
        (folder / "pip.conf").symlink_to("/dev/zero")
    assert (
        str(read_settings({"HOME": str(tmp_path), "XDG_CONFIG_DIRS": "/nowhere"}).default_index)
        == DEFAULT_INDEX
    )
