"""Read the import statements of a module from its source, without running it."""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from colablock._records import dataclass

__all__ = ["ImportTime", "Statement", "read_statements"]


class ImportTime(IntEnum):
    """When an import runs.  For nested imports, the greater value applies."""

    HARD = 0  # whenever the module is imported; a failure is not caught
    GUARDED = 1  # under a condition that is unknown, or with a failure that is caught
    DEFERRED = 2  # inside a function, or when the module runs as a script


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One name of one import statement, with an absolute base (PEP 328).

    ``from base import member as bound``: *member* is None for ``import base``, and ``*`` for all
    names.  *unless* are groups of modules; the statement runs only if one module of each group
    cannot be imported (``except ImportError``).  A *lazy* statement runs when the attribute *bound*
    of the module is accessed: it is in the module's ``__getattr__`` (PEP 562), or in the
    ``TYPE_CHECKING`` block that mirrors it.  A *caught* statement does no harm if it fails: the
    failure is handled, or a condition asks first whether the module is available.
    """

    base: str
    member: str | None
    bound: str
    kind: ImportTime
    line: int
    unless: tuple[frozenset[str], ...] = ()
    lazy: bool = False
    caught: bool = False


def read_statements(
    source: bytes, module: str, *, is_package: bool, markers: Mapping[str, str], deferred: bool = True
) -> tuple[Statement, ...]:
    """Return the imports of *module*, in order of lines, for the environment of *markers* (PEP 508).

    Without *deferred*, only statements are read that run with the import of *module*, which is faster.

    Raises SyntaxError if the running Python cannot parse *source*.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as invalid escapes in the source
        package = module if is_package else module.rpartition(".")[0]
        reader = _StatementReader(package, markers, deferred=deferred)
        try:
            reader.visit(ast.parse(source))
        except (ValueError, RecursionError, MemoryError) as error:  # a null byte, or too deep nesting
            raise SyntaxError(str(error)) from error
    return tuple(reader.found)


class _StatementReader(ast.NodeVisitor):
    """Collects statements.  Its fields hold the context of the current node."""

    def __init__(self, package: str, markers: Mapping[str, str], *, deferred: bool = True) -> None:
        self.found: list[Statement] = []
        self._deferred = deferred
        self._package = package
        self._facts = _facts(markers)
        self._kind = ImportTime.HARD
        self._unless: tuple[frozenset[str], ...] = ()
        self._lazy = False
        self._caught = False

    @contextmanager
    def _inside(
        self,
        kind: ImportTime,
        unless: frozenset[str] = frozenset(),
        *,
        lazy: bool = False,
        caught: bool = False,
    ) -> Iterator[None]:
        before = self._kind, self._unless, self._lazy, self._caught
        self._kind = max(self._kind, kind)
        self._unless += (unless,) if unless else ()
        self._lazy = self._lazy or lazy
        self._caught = self._caught or caught
        yield
        self._kind, self._unless, self._lazy, self._caught = before

    def _visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            self._add(alias.name, None, bound, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._absolute("." * node.level + (node.module or ""), self._package)
        for alias in node.names if base else ():
            self._add(base, alias.name, alias.asname or alias.name, node.lineno)

    def visit(self, node: ast.AST) -> None:
        """Visit a statement and its children.  Expressions may nest deeply, so no recursion visits them."""
        if not isinstance(node, ast.expr):
            super().visit(node)
            return
        if not self._deferred:
            return
        nodes: list[ast.AST] = [node]
        while nodes:
            one = nodes.pop()
            if isinstance(one, ast.Lambda):
                nodes.append(one.args)
                with self._inside(ImportTime.DEFERRED):
                    self.visit(one.body)
                continue
            if isinstance(one, ast.Call):
                self._call(one)
            nodes += ast.iter_child_nodes(one)

    def _call(self, node: ast.Call) -> None:
        """Treat ``importlib.import_module`` and ``__import__`` with a literal as import statements."""
        name = _dotted(node.func).rpartition(".")[2]
        if name not in {"import_module", "__import__"}:
            return
        literals = [one.value if isinstance(one, ast.Constant) else None for one in node.args]
        package = self._package
        if len(literals) > 1 and name == "import_module" and isinstance(literals[1], str):
            package = literals[1]
        if literals and isinstance(literals[0], str) and (base := self._absolute(literals[0], package)):
            self._add(base, None, "", node.lineno)

    def _add(self, base: str, member: str | None, bound: str, line: int) -> None:
        self.found.append(
            Statement(
                base=base,
                member=member,
                bound=bound,
                kind=self._kind,
                line=line,
                unless=self._unless,
                lazy=self._lazy,
                caught=self._caught,
            )
        )

    @staticmethod
    def _absolute(name: str, package: str) -> str:
        """Return the absolute name of a relative one; "" if it leaves the top-level package."""
        tail = name.lstrip(".")
        level = len(name) - len(tail)
        if not level:
            return name
        parts = package.split(".") if package else []
        if level > len(parts):
            return ""
        return ".".join([*parts[: len(parts) - level + 1], *([tail] if tail else [])])

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if not self._deferred:
            return
        self._visit_all(node.decorator_list)
        self.visit(node.args)  # defaults are evaluated at the definition
        with self._inside(
            ImportTime.DEFERRED, lazy=node.name == "__getattr__" and self._kind is not ImportTime.DEFERRED
        ):
            self._visit_all(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_If(self, node: ast.If) -> None:
        for_types = _names_type_checking(node.test)
        as_script = _dotted(node.test.left) == "__name__" if isinstance(node.test, ast.Compare) else False
        holds = None if as_script else _condition(node.test, self._facts)
        if as_script:
            with self._inside(ImportTime.DEFERRED):
                self._visit_all(node.body)
        elif holds is None or for_types:
            caught = any(map(_is_import, node.body)) and _asks_first(node.test)
            with self._inside(ImportTime.GUARDED, lazy=for_types, caught=caught):
                self._visit_all(node.body)
        elif holds:
            self._visit_all(node.body)
        if holds is None and not as_script:
            with self._inside(ImportTime.GUARDED):
                self._visit_all(node.orelse)
        elif not holds:
            self._visit_all(node.orelse)

    def visit_Try(self, node: Any) -> None:
        catching = next((handler for handler in node.handlers if _catches(handler.type)), None)
        guard = ImportTime.HARD if catching is None or _exits(catching) else ImportTime.GUARDED
        first = len(self.found)
        with self._inside(guard, caught=guard is ImportTime.GUARDED):
            self._visit_all(node.body)
            tried = frozenset(one.base for one in self.found[first:] if one.kind <= max(self._kind, guard))
            self._visit_all(node.orelse)
        for handler in node.handlers:
            is_instead = handler is catching and tried
            with self._inside(
                ImportTime.HARD if is_instead else ImportTime.GUARDED, tried if is_instead else frozenset()
            ):
                self._visit_all(handler.body)
        self._visit_all(node.finalbody)

    visit_TryStar = visit_Try  # noqa: N815

    def visit_With(self, node: ast.With) -> None:
        self._visit_all(node.items)
        suppresses = any(map(_suppresses, node.items))
        with self._inside(ImportTime.GUARDED if suppresses else ImportTime.HARD, caught=suppresses):
            self._visit_all(node.body)

    def visit_Match(self, node: Any) -> None:
        with self._inside(ImportTime.GUARDED):
            self.generic_visit(node)


def _dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for a name or attribute, "" for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


_IMPORT_ERRORS = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def _catches(node: ast.expr | None) -> bool:
    """Whether an ``except`` of this type catches a failed import."""
    if node is None:
        return True
    types = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(_dotted(one).rpartition(".")[2] in _IMPORT_ERRORS for one in types)


def _exits(handler: ast.ExceptHandler) -> bool:
    """Whether a handler ends the import anyway: it raises, or exits the process."""
    for node in handler.body:
        call = node.value if isinstance(node, ast.Expr) else None
        name = _dotted(call.func) if isinstance(call, ast.Call) else ""
        if isinstance(node, ast.Raise) or name in {"exit", "quit", "sys.exit", "os._exit"}:
            return True
    return False


def _suppresses(item: ast.withitem) -> bool:
    """Whether a context manager catches failed imports: ``suppress``, or one with ``import`` in its name."""
    if not isinstance(item.context_expr, ast.Call):
        return False
    name = _dotted(item.context_expr.func).rpartition(".")[2]
    return "import" in name or (name == "suppress" and any(map(_catches, item.context_expr.args)))


def _names_type_checking(node: ast.expr) -> bool:
    return _dotted(node).rpartition(".")[2] == "TYPE_CHECKING"


_AVAILABILITY = re.compile(r"avail|find_spec|install|has_|have_|exist|is not None", re.IGNORECASE)


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _asks_first(node: ast.expr) -> bool:
    """Whether a condition looks like one that asks whether a module is available."""
    return _AVAILABILITY.search(ast.unparse(node)) is not None


class _UnknownError(Exception):
    """The value does not follow from the source."""


def _facts(markers: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of an interpreter with *markers*, by the names in source code."""
    version = tuple(int(part) for part in markers["python_full_version"].split(".")[:3] if part.isdigit())
    return {
        "TYPE_CHECKING": False,
        "typing.TYPE_CHECKING": False,
        "sys.version_info": version,
        "sys.version_info.major": version[0],
        "sys.version_info.minor": version[1],
        "version_info": version,
        "sys.platform": markers["sys_platform"],
        "os.name": markers["os_name"],
        "platform.system": markers["platform_system"],
        "platform.machine": markers["platform_machine"],
        "platform.python_implementation": markers["platform_python_implementation"],
        "six.PY2": False,
        "six.PY3": True,
    }


_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,  # codespell:ignore notin
}


def _condition(node: ast.expr, facts: Mapping[str, Any]) -> bool | None:
    """Return the value of a condition; None if it is unknown."""
    try:
        return bool(_value(node, facts))
    except _UnknownError:
        return None


def _value(node: ast.expr, facts: Mapping[str, Any]) -> Any:
    """Return the value of an expression, with the known *facts*.  Raises _UnknownError."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.Name, ast.Attribute)):
        return _fact(_dotted(node), facts)
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(_value(one, facts) for one in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return not _value(node.operand, facts)
    if isinstance(node, ast.BoolOp):
        return _boolean_value(node, facts)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        compare = _COMPARISONS.get(type(node.ops[0]))
        values = _value(node.left, facts), _value(node.comparators[0], facts)
        return _attempt(compare, *values)
    if isinstance(node, ast.Subscript):
        return _attempt(operator.getitem, _value(node.value, facts), _index(node.slice))
    if isinstance(node, ast.Call):
        return _call_value(node, facts)
    raise _UnknownError


def _fact(name: str, facts: Mapping[str, Any]) -> Any:
    if name not in facts:
        raise _UnknownError
    return facts[name]


def _attempt(function: Callable[..., Any] | None, *values: Any) -> Any:
    try:
        return function(*values) if function is not None else _fact("", {})
    except (TypeError, IndexError, KeyError) as error:
        raise _UnknownError from error


def _boolean_value(node: ast.BoolOp, facts: Mapping[str, Any]) -> bool:
    """Return the value of ``and`` or ``or``, which one known part may decide."""
    decides = isinstance(node.op, ast.Or)
    parts = [_condition(part, facts) for part in node.values]
    if decides not in parts and None in parts:
        raise _UnknownError
    return decides if decides in parts else not decides


def _index(node: ast.expr) -> Any:
    """Return the value of a constant subscript: ``[0]`` or ``[:2]``."""
    if isinstance(node, ast.Slice):
        bounds = [part and _value(part, {}) for part in (node.lower, node.upper, node.step)]
        return slice(*bounds)
    return _value(node, {})


def _call_value(node: ast.Call, facts: Mapping[str, Any]) -> Any:
    """Return the value of calls such as ``platform.system()`` and ``sys.platform.startswith("win")``."""
    name = _dotted(node.func)
    if not node.args and name.startswith("platform."):
        return _fact(name, facts)
    if isinstance(node.func, ast.Attribute) and node.func.attr == "startswith" and len(node.args) == 1:
        return _attempt(str.startswith, _value(node.func.value, facts), _value(node.args[0], facts))
    raise _UnknownError
