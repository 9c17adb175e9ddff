"""The limits of the code: sizes of modules, packages, functions and classes, one meaning of a class name.

The lines are those of a file: code, comments, docstrings, and blank lines.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.paths import ROOT

LONGEST_MODULE = 500
SHORTEST_MODULE = 30
LONGEST_FUNCTION = 60
MOST_METHODS = 20
MOST_MODULES = 15
#: Files whose names Python and the build ask for.
NAMED_BY_OTHERS = ("__init__.py", "__main__.py", "_version.py")

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def sources() -> dict[Path, str]:
    """Return the texts of the Python files outside the tests, without copies of other projects."""
    files = (
        file for folder in ("benchmarks", "colablock", "docs", "tools") for file in _files(ROOT / folder)
    )
    return {file.relative_to(ROOT): file.read_text(encoding="utf-8") for file in files}


def _files(folder: Path) -> Iterator[Path]:
    yield from (file for file in sorted(folder.rglob("*.py")) if not {"_vendor", "_build"} & {*file.parts})


@cache
def definitions() -> list[tuple[str, Definition | ast.ClassDef]]:
    """Return each function and class, with its place."""
    return [
        (f"{path}:{node.lineno} {node.name}", node)
        for path, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (Definition, ast.ClassDef))
    ]


def test_a_module_is_neither_long_nor_a_crumb() -> None:
    lines = {path: text.count("\n") for path, text in sources().items() if path.name not in NAMED_BY_OTHERS}
    found = {str(path): n for path, n in lines.items() if not SHORTEST_MODULE <= n <= LONGEST_MODULE}
    assert found == {}


def test_a_package_has_few_modules() -> None:
    counted = Counter(str(path.parent) for path in sources() if path.name != "__init__.py")
    assert {package: n for package, n in counted.items() if n > MOST_MODULES} == {}


def test_a_function_fits_on_a_screen() -> None:
    found = {
        place: length
        for place, node in definitions()
        if isinstance(node, Definition)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert found == {}


def test_a_class_has_few_methods() -> None:
    found = {
        place: methods
        for place, node in definitions()
        if isinstance(node, ast.ClassDef)
        if (methods := sum(isinstance(one, Definition) for one in node.body)) > MOST_METHODS
    }
    assert found == {}


def test_a_class_name_means_one_thing() -> None:
    places = defaultdict(list)
    for place, node in definitions():
        if isinstance(node, ast.ClassDef) and place.startswith("colablock/"):
            places[node.name].append(place)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
