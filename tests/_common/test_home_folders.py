"""Home folders in paths: `~` and `~user`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from colablock._common import urls
from colablock._common.fs import expanded
from colablock.authoring.requirements_reader import read_requirements
from colablock.errors import InvalidInput, InvalidRequirements
from colablock.network.settings import read_settings
from colablock.network.tls import ssl_context
from colablock.runtimes.freeze import parse_freeze
from colablock.training.prepared_data import local_path
from colablock.training.runs.checkpoints.stores import open_store
from colablock.training.secrets import is_on_hub
from tests.support.paths import ROOT

HOMELESS: Mapping[str, Callable[[str], object]] = {
    "a path of a variable": lambda path: expanded(path, "HOME"),
    "find-links": urls.local_path,
    "the mirror of the default index": lambda path: read_settings(
        {"COLABLOCK_INDEX_DEFAULT": path}, indexes=()
    ),
    "a model": local_path,
    "a model, hub or not": is_on_hub,
    "a checkpoint mirror": lambda path: open_store(path, python=sys.executable, environ={}),
    "certificates": lambda path: ssl_context({"SSL_CERT_FILE": path}),
}


@pytest.mark.parametrize("read", HOMELESS.values(), ids=HOMELESS)
def test_the_home_of_an_unknown_user_is_an_error(read: Callable[[str], object]) -> None:
    with pytest.raises(InvalidInput, match=r"the home folder of `~ransformers/x`"):
        read("~ransformers/x")


def test_only_one_function_expands_home_folders() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "colablock").rglob("*.py")
        if ".expanduser(" in path.read_text() and "_vendor" not in path.parts
    }
    # The scripts run in the target, which has no colablock: one with paths that were expanded before, and
    # one with the cache of the hub, whose default is in the home folder.
    scripts = {"colablock/training/scripts/ranks.py", "colablock/training/scripts/rows/sources.py"}
    assert found == {"colablock/_common/fs.py", "colablock/_common/urls.py", *scripts}


LINES = (
    "~ransformers==4.41.0",
    "~x/demo-1.0-py3-none-any.whl",
    "demo @ ~x/demo-1.0-py3-none-any.whl",
    "-r ~x",
    "-c ~x",
    "--requirement=~x/more.txt",
    "-f ~x",
    "--find-links ~x/wheels",
    "--index-url ~x",
    "--extra-index-url=~x/simple",
)


def test_each_line_with_such_a_path_is_a_fault_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("demo==1\n" + "\n".join(LINES))
    with pytest.raises(InvalidRequirements) as caught:
        read_requirements(str(tmp_path / "a.txt"))
    found = [(fault.path.rpartition(":")[2], fault.message) for fault in caught.value.faults]
    assert [number for number, _ in found] == [str(number) for number in range(2, len(LINES) + 2)]
    assert all("is not known" in message for _, message in found)


def test_a_leftover_in_a_freeze_is_a_fault_with_its_number() -> None:
    with pytest.raises(InvalidInput, match=r"line 2: neither .* `~ransformers==4\.41\.0`"):
        parse_freeze("demo==1\n~ransformers==4.41.0\n", "freeze.txt")
