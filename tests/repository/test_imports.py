"""Imports run one way, and importing colablock costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import colablock

ROOT = Path(colablock.__file__).parent
VENDORED = ROOT / "_vendor"

# What the front door, or the line that only prints help, has no use for.
HEAVY = frozenset(
    {"IPython", "asyncio", "resolvelib", "rich", "torch", "transformers", "urllib3", "uv", "yaml"}
)


def sources() -> dict[str, Path]:
    """Return the modules of colablock, without the vendored ones, by their full name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        if VENDORED not in path.parents:
            parts = path.relative_to(ROOT.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(node: ast.AST, *, with_types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield every import below *node*, those in functions too: a deferred loop is a loop."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif with_types or not is_for_types_only(child):
            yield from imports(child, with_types=with_types)
        elif isinstance(child, ast.If):
            for other in child.orelse:
                yield from imports(other, with_types=with_types)


def imported(statement: ast.Import | ast.ImportFrom, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of *known* that one import statement reaches."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names if alias.name in known)
        return
    assert statement.level == 0, f"line {statement.lineno}: relative imports hide where a name comes from"
    module = statement.module or ""
    below = [f"{module}.{alias.name}" for alias in statement.names]
    yield from (name for name in below if name in known)
    if module in known and not all(name in known for name in below):
        yield module


def graph(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return what each module imports.

    The front door names what it offers for type checkers; that is no import when the program runs.
    """
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        statements = imports(tree, with_types=name != "colablock")
        edges[name] = {to for statement in statements for to in imported(statement, known)} - {name}
    return edges


def test_imports_run_one_way() -> None:
    try:
        TopologicalSorter(graph(sources())).prepare()
    except CycleError as error:
        pytest.fail("a loop: " + " -> ".join(error.args[1]))


def test_a_loop_behind_a_function_or_for_types_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f():\n    from b import g\n")
    (tmp_path / "b.py").write_text("if TYPE_CHECKING:\n    import a\n")
    edges = graph({"a": tmp_path / "a.py", "b": tmp_path / "b.py"})
    assert edges == {"a": {"b"}, "b": {"a"}}


def test_errors_import_nothing_of_ours() -> None:
    assert graph(sources())["colablock.errors"] == set()


def test_only_the_command_line_knows_the_command_line() -> None:
    knowing = {name for name, to in graph(sources()).items() if "colablock.cli" in to}
    assert knowing <= {
        "colablock.__main__",
        "colablock.cli.notebook_magics",
    }  # the cell magic reads a command line


def test_the_unvendored_packaging_is_never_imported() -> None:
    wrong = [
        f"{name}:{statement.lineno}"
        for name, path in sources().items()
        for statement in imports(ast.parse(path.read_text(encoding="utf-8")), with_types=True)
        for module in (
            [statement.module or ""]
            if isinstance(statement, ast.ImportFrom)
            else [alias.name for alias in statement.names]
        )
        if module.split(".")[0] in {"packaging", "tomli_w"}
    ]
    assert wrong == []


def loaded_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after *statement*."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return set(ended.stdout.split())


@pytest.mark.parametrize("statement", ["import colablock", "import colablock.cli.main"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    assert loaded_after(statement) & HEAVY == set()


def test_a_command_that_only_lists_loads_no_more_than_what_prints() -> None:
    command = "import contextlib, io; from colablock.cli.main import main"
    listing = "with contextlib.redirect_stdout(io.StringIO()): main(['list'])"
    assert loaded_after(f"{command}\n{listing}") & HEAVY == {"rich", "uv"}
