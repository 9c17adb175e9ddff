"""What each package hands on: the names in its `__all__`, imported on first use."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules, walk_packages
from types import ModuleType

import pytest

import colablock
from tests.support.paths import ROOT

API_PAGE = ROOT / "docs" / "reference" / "python-api.md"
PACKAGES = [
    "colablock",
    *(
        found.name
        for found in walk_packages(colablock.__path__, "colablock.")
        if found.ispkg and not found.name.startswith("colablock._vendor")
    ),
]


def documented() -> list[str]:
    """Return the full names of the functions and classes of the reference page."""
    text = API_PAGE.read_text(encoding="utf-8")
    return re.findall(r"^\.\. auto(?:function|class):: ([\w.]+)", text, re.MULTILINE)


def surface(package: ModuleType) -> Iterator[str]:
    yield from getattr(package, "__all__", ())


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_of_a_surface_resolves(name: str) -> None:
    package = import_module(name)
    assert [one for one in surface(package) if not hasattr(package, one)] == []
    assert [one for one in surface(package) if one not in dir(package)] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_no_name_of_a_surface_is_the_name_of_a_module(name: str) -> None:
    # Importing the module would replace the function: it becomes an attribute of the package.
    package = import_module(name)
    modules = {found.name for found in iter_modules(package.__path__)}
    assert modules & {*surface(package)} == set()


@pytest.mark.parametrize("name", PACKAGES[1:])
def test_a_package_says_what_comes_in_and_what_goes_out(name: str) -> None:
    text = import_module(name).__doc__ or ""
    assert re.fullmatch(r"[^\n]+\n\nIn: .+  Out: .+\n", text), text


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"`colablock\.planning` has no attribute `Plans`"):
        import_module("colablock.planning").Plans  # noqa: B018 - asking is the test


def test_importing_a_package_loads_none_of_its_modules() -> None:
    code = f"import sys, {', '.join(PACKAGES)}\nprint(*sorted(m for m in sys.modules if 'colablock' in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()) - {*PACKAGES} == {"colablock._version"}


@pytest.mark.parametrize("path", documented())
def test_what_the_reference_names_is_imported_from_there(path: str) -> None:
    home, _, name = path.rpartition(".")
    package = import_module(home)
    # `colablock.check` is a package that can be called, so `__all__` cannot have it.
    assert name in {*surface(package), *dir(package)}, f"{home} does not hand on {name}"


def test_a_misspelt_name_of_a_surface_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="no attribute `rollbck`: did you mean `rollback`"):
        getattr(colablock, "rollbck")  # noqa: B009
    assert not hasattr(colablock, "__wrapped__")
