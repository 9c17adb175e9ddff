"""Write a new matrix file, which is checked before it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from colablock._common.fs import write_atomic
from colablock._common.text import command_line
from colablock.authoring.from_requirements import MatrixParts, matrix_parts
from colablock.authoring.local_labels import LabelBinding
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
    """The options of `write_new`.  *requirements* names a requirements file of another tool.

    *schema_file* writes the JSON schema beside the matrix.  *force* overwrites existing files.
    *agrees* is asked once for each index whether packages with a local label come from it.
    """

    name: str
    output: Path | None = None
    summary: str | None = None
    requires_python: str | None = None
    extends: str | None = None
    requirements: str | None = None
    schema_file: bool = False
    force: bool = False
    agrees: Callable[[LabelBinding], bool] = lambda _binding: True


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMatrix:
    """The written file and its parts, notes about it, and the next commands."""

    output: Path
    schema_file: Path | None
    parts: MatrixParts
    notes: tuple[str, ...]
    following: tuple[str, ...]  # commands


def schema_text() -> str:
    """Return the content of the JSON schema file."""
    return json.dumps(json_schema(), indent=2) + "\n"


def write_new(options: NewMatrixOptions, environ: Mapping[str, str]) -> NewMatrix:
    """Write the matrix for *options*.  The file is valid.

    Raises InvalidInput (InvalidMatrix, InvalidRequirements, NotFound) and writes nothing if that is
    not possible.
    """
    if is_path(options.name):
        raise InvalidInput(
            f"`{options.name}` is a path, not a name", hint="Give only the name; `--output` sets the path"
        )
    parts = (
        matrix_parts(read_requirements(options.requirements), options.agrees)
        if options.requirements is not None
        else MatrixParts()
    )
    start = Start(
        name=options.name, summary=options.summary, requires_python=options.requires_python, parts=parts
    )
    parse_matrix(matrix_text(start), source=options.name)
    output = options.output or Path("matrices") / f"{options.name}.toml"
    schema_file = output.parent / SCHEMA_FILE
    has_schema_file = options.schema_file or schema_file.is_file()
    extends = None if options.extends is None else _extends(options.extends, options.name, output, environ)
    text = matrix_text(replace(start, extends=extends, has_schema_file=has_schema_file))
    write_file(output, text, force=options.force)
    if options.schema_file and (options.force or not schema_file.exists()):
        write_file(schema_file, schema_text(), force=True)
    listed = [one for one in list_matrices(environ=environ) if one.name == options.name]
    return NewMatrix(
        output=output,
        schema_file=schema_file if has_schema_file else None,
        parts=parts,
        notes=(*parts.notes, *_name_notes(listed, output)),
        following=tuple(_next_commands(listed, output, options.name)),
    )


def write_file(path: Path, text: str, *, force: bool) -> None:
    """Write a file; replace an existing one only with *force*.  Raises InvalidInput."""
    if not force and path.is_file():
        raise InvalidInput(f"`{path}` already exists", hint="`--force` replaces it")
    write_atomic(path, text.encode())


def _extends(base: str, name: str, output: Path, environ: Mapping[str, str]) -> str:
    """Return how the file at *output* names the matrix *base*.  Raises the errors of `find_matrix`."""
    if base == name:
        message = f"a matrix named `{name}` cannot extend `{name}`: the name would refer to itself"
        raise InvalidInput(message, hint="Use another name for the new matrix")
    find_matrix(base, environ=environ)
    if not is_path(base):
        return base
    relative = Path(os.path.relpath(base, output.parent)).as_posix()
    return relative if is_path(relative) else f"./{relative}"


def _is_at(one: Listed, output: Path) -> bool:
    return os.path.realpath(one.source) == os.path.realpath(output)


def _name_notes(listed: list[Listed], output: Path) -> Iterator[str]:
    """Yield notes about the new matrix, and about other matrices with its name."""
    for one in listed:
        if _is_at(one, output):
            if one.fault:
                yield f"it cannot be used: {one.fault}"
            if one.shadowed_by:
                yield f"the name `{one.name}` refers to `{one.shadowed_by}`, which is found first"
        elif one.shadowed_by and _is_at(listed[0], output):
            yield f"the name `{one.name}` no longer refers to `{one.source}`: the new matrix is found first"


def _next_commands(listed: list[Listed], output: Path, name: str) -> Iterator[str]:
    """Yield the next commands, with the name of the matrix if it refers to the new file, else its path."""
    shown = name if listed and _is_at(listed[0], output) else str(output)
    newest = max(runtimes(), key=lambda runtime: (runtime.date, runtime.name))
    yield command_line("lock", shown, "--all")
    yield command_line("check", shown, "--update")
    yield command_line("plan", shown, "--runtime", newest.name)
