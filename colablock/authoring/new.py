"""A new matrix file: what was asked for → text, checked before it is written."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from colablock._common.fs import write_atomic
from colablock.authoring.from_requirements import MatrixParts, matrix_parts
from colablock.authoring.requirements_reader import read_requirements
from colablock.authoring.template import Start, matrix_text
from colablock.errors import InvalidInput
from colablock.matrix.catalog import Listed, find_matrix, list_matrices
from colablock.matrix.json_schema import SCHEMA_FILE, json_schema
from colablock.matrix.reader import is_path, parse_matrix
from colablock.runtimes.catalog import runtimes

__all__ = ["NewMatrix", "NewMatrixOptions", "schema_text", "write_file", "write_new"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMatrixOptions:
    """What a new matrix is to be.  *requirements* names another tool's file of them.

    *schema_file* asks for the JSON schema beside it; *force* writes over what is there.
    """

    name: str
    output: Path | None = None
    summary: str | None = None
    requires_python: str | None = None
    extends: str | None = None
    requirements: str | None = None
    schema_file: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMatrix:
    """The file that was written, what stands in it, what to know about it, and the commands to go on with."""

    output: Path
    schema_file: Path | None
    parts: MatrixParts
    notes: tuple[str, ...]
    following: tuple[str, ...]


def schema_text() -> str:
    """Return the JSON schema as a file holds it."""
    return json.dumps(json_schema(), indent=2) + "\n"


def write_new(wish: NewMatrixOptions, environ: Mapping[str, str]) -> NewMatrix:
    """Write the matrix that *wish* asks for, a file that loads without a fault.

    Nothing is written where that cannot be done: InvalidInput (InvalidMatrix,
    InvalidRequirements, NotFound) says why.
    """
    if is_path(wish.name):
        raise InvalidInput(
            f"`{wish.name}` is a path, not a name", hint="Give the name alone; `--output` says where it goes"
        )
    parts = (
        matrix_parts(read_requirements(wish.requirements)) if wish.requirements is not None else MatrixParts()
    )
    start = Start(name=wish.name, summary=wish.summary, requires_python=wish.requires_python, parts=parts)
    parse_matrix(matrix_text(start), source=wish.name)
    output = wish.output or Path("matrices") / f"{wish.name}.toml"
    schema_file = output.parent / SCHEMA_FILE
    has_schema_file = wish.schema_file or schema_file.is_file()
    extends = None if wish.extends is None else _extends(wish.extends, wish.name, output, environ)
    text = matrix_text(replace(start, extends=extends, has_schema_file=has_schema_file))
    write_file(output, text, force=wish.force)
    if wish.schema_file and (wish.force or not schema_file.exists()):
        write_file(schema_file, schema_text(), force=True)
    listed = [one for one in list_matrices(environ=environ) if one.name == wish.name]
    return NewMatrix(
        output=output,
        schema_file=schema_file if has_schema_file else None,
        parts=parts,
        notes=(*parts.notes, *_standing(listed, output)),
        following=tuple(_following(listed, output, wish.name)),
    )


def write_file(path: Path, text: str, *, force: bool) -> None:
    """Write a file; replace an existing one only with *force*.  Raises InvalidInput."""
    if not force and path.is_file():
        raise InvalidInput(f"`{path}` exists already", hint="`--force` replaces it")
    write_atomic(path, text.encode())


def _extends(base: str, name: str, output: Path, environ: Mapping[str, str]) -> str:
    """Return how the file at *output* names the matrix *base*, which is there and has no fault."""
    if base == name:
        message = f"a matrix called `{name}` cannot extend `{name}`: it would be found in its place"
        raise InvalidInput(message, hint="Call the new one otherwise")
    find_matrix(base, environ=environ)
    if not is_path(base):
        return base
    relative = Path(os.path.relpath(base, output.parent)).as_posix()
    return relative if is_path(relative) else f"./{relative}"


def _is_at(one: Listed, output: Path) -> bool:
    return os.path.realpath(one.source) == os.path.realpath(output)


def _standing(listed: list[Listed], output: Path) -> Iterator[str]:
    """Yield what there is to know of the other matrices of that name, and of this one among them."""
    for one in listed:
        if _is_at(one, output):
            if one.fault:
                yield f"it cannot be used as it is: {one.fault}"
            if one.shadowed_by:
                yield f"`{one.name}` alone means `{one.shadowed_by}`, which is found first"
        elif one.shadowed_by and _is_at(listed[0], output):
            yield f"`{one.name}` alone no longer means `{one.source}`: this one is found first"


def _following(listed: list[Listed], output: Path, name: str) -> Iterator[str]:
    """Yield the commands that come next; by name where the name leads to the new file."""
    shown = name if listed and _is_at(listed[0], output) else shlex.quote(str(output))
    newest = max(runtimes(), key=lambda runtime: (runtime.date, runtime.name))
    yield f"colablock lock {shown} --all"
    yield f"colablock check {shown}"
    yield f"colablock plan {shown} --runtime {newest.name}"
