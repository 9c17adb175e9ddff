"""Read a matrix file (TOML, schema 1); all faults of the file are collected before one is raised."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from colablock._common.limits import SHOWN
from colablock._common.text import near, nearest
from colablock._common.toml import as_key_twice, read_text_file
from colablock._common.urls import Url
from colablock._records import dataclass
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.errors import Fault, InvalidInput, InvalidMatrix, NotFound
from colablock.matrix.model import (
    Absent,
    Constraint,
    Index,
    Matrix,
    Options,
    PackageEntry,
    SystemRequirements,
    Train,
    Variant,
    Verify,
    entry_of,
    merged,
)
from colablock.matrix.values import Table, join, project_name, type_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Find", "MatrixFile", "is_path", "load_matrix", "parse_matrix", "read_file"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixFile:
    """The content of one matrix file.  *source* is its name in messages; *path* is None in an archive."""

    source: str
    content: bytes
    path: Path | None = None


Find = Callable[[str], MatrixFile]  # raises NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class _MatrixDraft:
    """One file without its base: the matrix, and the keys that the file sets (``verify.imports``)."""

    matrix: Matrix
    given: frozenset[str]
    extends: str | None


def is_path(text: str) -> bool:
    """Whether *text* is the path of a file, not the name of a matrix."""
    separators = {"/", os.sep} | ({os.altsep} if os.altsep else set())
    return text.endswith(".toml") or any(separator in text for separator in separators)


def parse_matrix(text: str, source: str = "<text>", *, find: Find | None = None) -> Matrix:
    """Parse the text of a matrix file.  Raises InvalidMatrix with all faults."""
    return load_matrix(MatrixFile(source=source, content=text.encode("utf-8", "surrogatepass")), find=find)


def read_file(path: Path) -> MatrixFile:
    """Read the file at *path*.  Raises NotFound if it does not exist, InvalidInput if it is unreadable."""
    try:
        return MatrixFile(source=str(path), content=read_text_file(path), path=path)
    except FileNotFoundError:
        raise NotFound(f"there is no matrix file `{path}`", hint=_near_file(path)) from None
    except OSError as error:
        raise InvalidInput(f"the matrix file `{path}` cannot be read: {error.strerror}") from error


def _near_file(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no folder `{path.parent}` either"
    found = nearest(path.name, [other.name for other in path.parent.glob("*.toml")])
    return f"did you mean `{path.with_name(found)}`?" if found else None


def load_matrix(file: MatrixFile, *, find: Find | None = None) -> Matrix:
    """Return the matrix of *file*, merged over the matrix it extends.  Raises InvalidMatrix."""
    faults: list[Fault] = []
    matrix = _load(file, find, faults, above=())
    if matrix is not None:
        faults += _cross_faults(matrix)
    if faults or matrix is None:
        raise InvalidMatrix(file.source, faults)
    return matrix


def _load(
    file: MatrixFile, find: Find | None, faults: list[Fault], *, above: tuple[str, ...]
) -> Matrix | None:
    """Return the matrix of *file* merged over its base; *above* are the files that extend it."""
    data = _toml(file.content, faults)
    draft = None if data is None else _read(data, file, faults)
    if draft is None or draft.extends is None:
        return None if draft is None else draft.matrix
    base_file = _base(draft.extends, file, find, faults, above=(*above, _identity(file)))
    if base_file is None:
        return draft.matrix
    base_faults: list[Fault] = []
    base = _load(base_file, find, base_faults, above=(*above, _identity(file)))
    faults += [replace(fault, path=f"{base_file.source}: {fault.path}") for fault in base_faults]
    return draft.matrix if base is None else _over(draft, base)


def _identity(file: MatrixFile) -> str:
    return str(file.path.resolve()) if file.path else file.source


def _base(
    name: str, file: MatrixFile, find: Find | None, faults: list[Fault], *, above: Sequence[str]
) -> MatrixFile | None:
    """Return the file that *file* extends; None, with a fault, if there is none."""
    try:
        if is_path(name) or find is None:
            if file.path is None and not Path(name).is_absolute():
                faults.append(Fault(path="extends", message=f"`{name}` cannot be looked up from here"))
                return None
            beside = (file.path or Path()).parent
            found = read_file(beside / (name if is_path(name) else f"{name}.toml"))
        else:
            found = find(name)
    except InvalidInput as error:
        faults.append(Fault(path="extends", message=error.message, hint=error.hint))
        return None
    if _identity(found) in above:
        faults.append(Fault(path="extends", message=f"`{name}` is part of a cycle of `extends`"))
        return None
    return found


def _toml(content: bytes, faults: list[Fault]) -> Mapping[str, object] | None:
    """Return the top table of a TOML document; None, with a fault, if it is invalid."""
    try:
        data: Mapping[str, object] = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"is not UTF-8: byte 0x{content[error.start]:02x} in line {line}"
        faults.append(Fault(path="", message=message, hint="save the file as UTF-8"))
    except tomllib.TOMLDecodeError as error:
        message = as_key_twice(content, str(error)) or str(error)
        message = message.replace("end of document", f"end of document, line {content.count(10) + 1}")
        faults.append(Fault(path="", message=f"is not TOML: {message}"))
    except ValueError as error:  # a number with thousands of digits
        faults.append(Fault(path="", message=f"is not TOML: {str(error)[:SHOWN]}"))
    except RecursionError:
        faults.append(Fault(path="", message="is nested too deeply to be read"))
    else:
        return data
    return None


def _read(data: Mapping[str, object], file: MatrixFile, faults: list[Fault]) -> _MatrixDraft | None:
    """Return the matrix of one file without its base; None if its schema is not supported."""
    schema = data.get("schema")
    if isinstance(schema, int) and not isinstance(schema, bool) and schema != SCHEMA_VERSION:
        newer = "a newer colablock may read it" if schema > SCHEMA_VERSION else None
        message = f"schema {schema} is not supported: this colablock reads schema {SCHEMA_VERSION}"
        faults.append(Fault(path="schema", message=message, hint=newer))
        return None
    top = Table(data, section="", path="", faults=faults)
    top.get("schema", int)
    options, verify, train = (_section(top, key) for key in ("options", "verify", "train"))
    matrix = Matrix(
        name=top.get("name", str) or "",
        source=file.source,
        digest=sha256(file.content).hexdigest(),
        summary=top.get("summary", str),
        requires_python=top.get("requires-python", SpecifierSet) or SpecifierSet(),
        prerelease=top.get("prerelease", str) or "if-necessary-or-explicit",
        exclude_newer=top.get("exclude-newer", datetime),
        indexes=_indexes(top),
        packages=_packages(top),
        constraints=tuple(_constraints(top)),
        absent=tuple(_absent(top)),
        options=Options(
            allow_build=frozenset(options.several("allow-build", str) or ()),
            no_binary=frozenset(options.several("no-binary", str) or ()),
        ),
        variants=dict(_variants(top)),
        verify=Verify(
            imports=verify.several("imports", str) or (),
            commands=verify.several("commands", tuple) or (),
            capabilities=verify.several("capabilities", str) or (),
        ),
        train=Train(runner=train.get("runner", str), workarounds=_workarounds(train)),
    )
    given = {*data, *(f"{part.path}.{key}" for part in (options, verify, train) for key in part.data)}
    if "train.mends" in given:
        given.add("train.workarounds")
    return _MatrixDraft(matrix=matrix, given=frozenset(given), extends=top.get("extends", str))


def _section(top: Table, key: str) -> Table:
    """Return the table *key*; empty if the file has none."""
    return Table(top.table(key), section=key, path=key, faults=top.faults)


def _workarounds(train: Table) -> tuple[str, ...]:
    """Return ``train.workarounds``, or ``train.mends``, which is its older name."""
    if "workarounds" in train and "mends" in train:
        train.fault("mends", "is an older name of `workarounds`, and both are given", "leave `mends` out")
    found = train.several("workarounds", str) or ()
    return found or train.several("mends", str) or ()


def _indexes(top: Table) -> tuple[Index, ...]:
    indexes: dict[str, Index] = {}
    for place, data in enumerate(top.tables("index")):
        table = Table(data, section="index[]", path=f"index[{place}]", faults=top.faults)
        name, url = table.get("name", str), table.get("url", str)
        default, newer = table.get("default", bool), table.get("exclude-newer", object)
        hosts = table.several("file-hosts", str)
        moment = newer if isinstance(newer, (datetime, bool)) else None
        if name in indexes:
            table.fault("name", f"the index `{name}` is declared twice")
        elif name is not None:
            # An index without a valid URL is declared as well: the packages that name it are not at fault.
            indexes[name] = Index(
                name=name,
                url=Url(url or ""),
                default=bool(default),
                exclude_newer=moment,
                file_hosts=hosts or (),
            )
    return tuple(indexes.values())


def _entries(table: Table, key: str, section: str) -> Iterator[tuple[NormalizedName, Table, int]]:
    """Yield the entries below *key*: the name, the entry, and the number of entries of that name."""
    path, seen = table.where(key), dict[NormalizedName, str]()
    for written, raw in table.table(key).items():
        where, name = join(path, written), project_name(written)
        if name is None:
            table.faults.append(
                Fault(path=where, message=f"`{written}` is not a valid project name (PEP 508)")
            )
            continue
        if name in seen:
            message = f"`{name}` is declared twice: `{seen[name]}` is the same project"
            several = "several entries for one project are an array of tables with a marker each"
            hint = None if key == "absent" else several
            table.faults.append(Fault(path=where, message=message, hint=hint))
            continue
        seen[name] = where
        entries = list(_tables_of(raw, section, where, table.faults))
        yield from ((name, entry, len(entries)) for entry in entries)


def _tables_of(raw: object, section: str, path: str, faults: list[Fault]) -> Iterator[Table]:
    """Yield the tables of one entry: a specifier is short for a table, an array holds several."""
    if isinstance(raw, str):
        yield Table({"version": raw}, section=section, path=path, faults=faults, short=True)
    elif isinstance(raw, dict):
        yield Table(raw, section=section, path=path, faults=faults)
    elif isinstance(raw, list) and raw and section != "absent.<name>":
        for place, element in enumerate(raw):
            where = f"{path}[{place}]"
            if isinstance(element, dict):
                yield Table(element, section=section, path=where, faults=faults)
            else:
                faults.append(Fault(path=where, message=f"must be a table, not {type_name(element)}"))
    elif raw == []:
        faults.append(Fault(path=path, message="must not be an empty array"))
    else:
        faults.append(Fault(path=path, message=f"must be a specifier or a table, not {type_name(raw)}"))


def _packages(top: Table) -> tuple[PackageEntry, ...]:
    """Return the entries of ``[packages]``, then those of ``requirements``.

    The list may name a project several times: the versions have to meet every line, and the
    extras are those of all lines.
    """
    entries = list(_package_entries(top))
    tables = {entry.name: entry for entry in entries}
    urls: dict[tuple[NormalizedName, str], PackageEntry] = {}
    for place, requirement in top.numbered("requirements", Requirement):
        entry = entry_of(requirement, path=f"requirements[{place}]")
        other = tables.get(entry.name, entry)
        if other is not entry and (entry.marker is None or other.marker is None):
            message = f"`{entry.name}` is declared twice: `{other.path}` is the same project"
            hint = "several entries for one project need a marker each"
            top.faults.append(Fault(path=entry.path, message=message, hint=hint))
        elif entry.url is not None:
            first = urls.setdefault((entry.name, str(entry.marker)), entry)
            if first.url != entry.url:
                message = f"`{entry.name}` has two URLs: `{first.path}` names `{first.url}`"
                top.faults.append(Fault(path=entry.path, message=message, hint="leave one of them out"))
        entries.append(entry)
    return tuple(entries)


def _package_entries(table: Table) -> Iterator[PackageEntry]:
    for name, entry, count in _entries(table, "packages", "packages.<name>"):
        marker, url = entry.get("marker", Marker), entry.get("url", str)
        if count > 1 and "marker" not in entry:
            entry.fault("marker", "is missing: several entries for one project need a marker each")
        _check_origin(entry)
        by_url = "url" in entry
        version = entry.get("version", str, as_type="version") if by_url else None
        specifier = None if by_url else entry.get("version", SpecifierSet)
        yield PackageEntry(
            name=name,
            path=entry.path,
            specifier=specifier or SpecifierSet(),
            extras=frozenset(entry.several("extras", str) or ()),
            marker=marker,
            index=entry.get("index", str),
            prefer_local=entry.get("prefer-local", str),
            url=Url(url) if url is not None else None,
            version=version,
            sha256=entry.get("sha256", str),
            source_root=entry.get("source-root", str),
            requires_dist=entry.several("requires-dist", Requirement),
            why=entry.get("why", str),
        )


def _check_origin(entry: Table) -> None:
    """Add a fault for keys of an entry that contradict each other about its source."""
    if "url" in entry:
        for key in ("index", "prefer-local"):
            if key in entry:
                entry.fault(key, "cannot be used with `url`, which names a single file")
        return
    for key in ("source-root", "sha256"):
        if key in entry:
            entry.fault(key, "needs `url`: it describes the archive at that URL")


def _constraints(table: Table) -> Iterator[Constraint]:
    for name, entry, count in _entries(table, "constraints", "constraints.<name>"):
        if count > 1 and "marker" not in entry:
            entry.fault("marker", "is missing: several entries for one project need a marker each")
        yield Constraint(
            name=name,
            path=entry.path,
            specifier=entry.get("version", SpecifierSet) or SpecifierSet(),
            marker=entry.get("marker", Marker),
            why=entry.get("why", str),
        )


def _absent(table: Table) -> Iterator[Absent]:
    for name, entry, _count in _entries(table, "absent", "absent.<name>"):
        specifier = entry.get("version", SpecifierSet) or SpecifierSet()
        yield Absent(name=name, path=entry.path, specifier=specifier, why=entry.get("why", str))


def _variants(top: Table) -> Iterator[tuple[str, Variant]]:
    for name, raw in top.table("variants").items():
        path = join("variants", name)
        if canonicalize_name(name) != name or project_name(name) is None:
            rule = "use lower-case letters and digits, with single `-` between them"
            message = f"`{name}` is not a valid variant name: {rule}"
            top.faults.append(Fault(path=path, message=message))
        if not isinstance(raw, dict):
            top.faults.append(Fault(path=path, message=f"must be a table, not {type_name(raw)}"))
            continue
        table = Table(raw, section="variants.<name>", path=path, faults=top.faults)
        yield (
            name,
            Variant(
                name=name,
                summary=table.get("summary", str),
                system=_system(table),
                packages=tuple(_package_entries(table)),
                constraints=tuple(_constraints(table)),
                absent=tuple(_absent(table)),
            ),
        )


def _system(variant: Table) -> SystemRequirements:
    key = "system-requirements"
    section = f"variants.<name>.{key}"
    table = Table(variant.table(key), section=section, path=variant.where(key), faults=variant.faults)
    return SystemRequirements(
        accelerator=table.get("accelerator", str),
        driver=table.get("driver", SpecifierSet),
        compute_capability=table.get("compute-capability", SpecifierSet),
        why=table.get("why", str),
    )


def _over(draft: _MatrixDraft, base: Matrix) -> Matrix:
    """Return *draft* merged over its base by name; the entries of *draft* win."""
    near, given = draft.matrix, draft.given
    taken = {
        field: getattr(base, field)
        for field in ("summary", "requires_python", "prerelease", "exclude_newer")
        if field.replace("_", "-") not in given
    }
    indexes = {index.name: index for index in (*base.indexes, *near.indexes)}
    return replace(
        near,
        **taken,
        digest=sha256(f"{near.digest} over {base.digest}".encode()).hexdigest(),
        indexes=tuple(indexes.values()),
        packages=merged(base.packages, near.packages),
        constraints=merged(base.constraints, near.constraints),
        absent=merged(base.absent, near.absent),
        options=Options(
            allow_build=(near if "options.allow-build" in given else base).options.allow_build,
            no_binary=(near if "options.no-binary" in given else base).options.no_binary,
        ),
        variants=_variants_over(near.variants, base.variants),
        verify=Verify(
            imports=(near if "verify.imports" in given else base).verify.imports,
            commands=(near if "verify.commands" in given else base).verify.commands,
            capabilities=(near if "verify.capabilities" in given else base).verify.capabilities,
        ),
        train=Train(
            runner=(near if "train.runner" in given else base).train.runner,
            workarounds=(near if "train.workarounds" in given else base).train.workarounds,
        ),
    )


def _variants_over(near: Mapping[str, Variant], base: Mapping[str, Variant]) -> Mapping[str, Variant]:
    """Return the variants of both, those of *near* first, since they are tried in this order."""
    variants = {}
    for name, variant in near.items():
        under = base.get(name, Variant(name=name))
        variants[name] = Variant(
            name=name,
            summary=variant.summary or under.summary,
            system=_system_over(variant.system, under.system),
            packages=merged(under.packages, variant.packages),
            constraints=merged(under.constraints, variant.constraints),
            absent=merged(under.absent, variant.absent),
        )
    return {**variants, **{name: variant for name, variant in base.items() if name not in near}}


def _system_over(near: SystemRequirements, base: SystemRequirements) -> SystemRequirements:
    """Return *near*; *base* with its reason if it sets no condition."""
    return near if near != SystemRequirements() else replace(base, why=near.why or base.why)


def _cross_faults(matrix: Matrix) -> Iterator[Fault]:
    """Yield the faults that concern several entries: default indexes and undeclared indexes."""
    declared = [index.name for index in matrix.indexes]
    defaults = [index.name for index in matrix.indexes if index.default]
    if len(defaults) > 1:
        names = " and ".join(f"`{name}`" for name in defaults)
        yield Fault(path="index", message=f"{names} are all the default index, and there can be only one")
    entries = [*matrix.packages, *(entry for one in matrix.variants.values() for entry in one.packages)]
    for entry in entries:
        if entry.index is not None and entry.index not in declared:
            path, known = join(entry.path, "index"), ", ".join(f"`{name}`" for name in declared)
            hint = near(entry.index, declared) or (
                f"declared are {known}" if known else "declare it in an `[[index]]`"
            )
            yield Fault(path=path, message=f"the index `{entry.index}` is not declared", hint=hint)
