"""Export a lock: requirements with hashes, constraints, a script's metadata block, or a CycloneDX document.

No I/O here.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from enum import Enum
from itertools import chain
from typing import Any

from colablock._common.limits import SHOWN
from colablock._common.text import command_line, option_words, printable
from colablock._common.toml import in_utc
from colablock._common.urls import local_path, redacted
from colablock._vendor import tomli_w
from colablock._vendor.packaging.pylock import Package, PackageArchive, PackageSdist, PackageWheel, Pylock
from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.requirements import parse_requirement
from colablock.errors import Fault, InvalidInput, InvalidRequirements
from colablock.lockfile.cyclonedx import cyclonedx_text
from colablock.lockfile.pins import LockedPin, default_index_of, hash_texts, pins_of
from colablock.lockfile.tool_table import table_of
from colablock.network.settings import DEFAULT_INDEX

__all__ = [
    "Format",
    "checked_line",
    "export_text",
    "files_beside",
    "header_lines",
    "parents_of",
    "target_text",
]

_CONTINUED = " \\"
_COMMENT = re.compile(r"(^|\s)#")
_VARIABLE = re.compile(r"\$\{[^}]*\}")
_PLAIN_URL = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&()*+,;=%-]+")


class Format(Enum):
    """The formats that a lock can be exported to."""

    REQUIREMENTS = "requirements"
    CONSTRAINTS = "constraints"
    NOTEBOOK = "notebook"
    CYCLONEDX = "cyclonedx"


def export_text(
    lock: Pylock,
    form: Format,
    *,
    source: str,
    matrix: str | None = None,
    find_links: Sequence[str] = (),
    moment: datetime | None = None,
) -> str:
    """Return *lock* in the format *form*.

    *source* names the lock in messages, and *matrix* is what the user calls the matrix.
    *find_links* are the folders of the wheels beside the lock, as the new file has to name
    them.  *moment* is the timestamp of a CycloneDX document.  Raises InvalidRequirements if a package
    is not an exact pin of a release, InvalidInput if *form* cannot express the
    lock, or if a value of the lock would add a line or an option to the text.
    """
    if form is Format.CYCLONEDX:
        return cyclonedx_text(lock, moment=moment)
    pins, faults = pins_of(lock, source)
    if form is Format.REQUIREMENTS:
        unhashed = (pin for pin in pins if not pin.hashes)
        faults += [Fault(path=pin.where, message=f"{pin.package.name} has no sha256") for pin in unhashed]
    if faults:
        raise InvalidRequirements(source, faults)
    pins.sort(key=lambda pin: _by_name(_line(pin)))
    write = {
        Format.REQUIREMENTS: _requirements,
        Format.CONSTRAINTS: _constraints,
        Format.NOTEBOOK: _script,
    }[form]
    lines = chain(
        header_lines(lock, pins, form.value, called=matrix),
        write(lock, pins, (*find_links, *_local_folders(pins))),
    )
    return "".join(f"{checked_line(line, source)}\n" for line in lines)


def files_beside(lock: Pylock) -> dict[str, list[str]]:
    """Return the hashes (``sha256:...``) of each file beside *lock*, by its path from there; sorted."""
    files = (file for package in lock.packages for file in _files(package))
    return dict(sorted((file.path, hash_texts(file.hashes)) for file in files if file.path and not file.url))


# -- the formats


def _requirements(lock: Pylock, pins: Sequence[LockedPin], find_links: Sequence[str]) -> Iterator[str]:
    """Yield a requirements file in the layout of pip-compile: sorted pins, with hashes and comments."""
    default, extra = _indexes(pins)
    options = [f"--index-url {_word(default)}"] if default else []
    options += [f"--extra-index-url {_word(url)}" for url in extra]
    options += [f"--find-links {_folder_word(folder)}" for folder in dict.fromkeys(find_links)]
    yield from options
    yield from [""] if options else []
    parents = parents_of(lock)
    for pin in pins:
        *others, last = [_line(pin), *(f"    --hash={text}" for text in pin.hashes)]
        yield from (f"{line}{_CONTINUED}" for line in others)
        yield last
        yield from _via(sorted(parents[pin.package.name]))
        if (index := _index(pin)) in extra:
            yield f"    # from {_word(index or '')}"  # as `uv pip compile --emit-index-annotation` writes it


def _constraints(lock: Pylock, pins: Sequence[LockedPin], _find_links: Sequence[str]) -> Iterator[str]:
    """Yield the versions, including those of the distributions that a delta assumes."""
    assumed = [_assumed(name, version) for name, version in _about(lock, "assumes", {}).items()]
    yield from sorted(dict.fromkeys([*map(_version_line, pins), *assumed]), key=_by_name)


def _script(lock: Pylock, pins: Sequence[LockedPin], find_links: Sequence[str]) -> Iterator[str]:
    """Yield a block of inline script metadata (PEP 723)."""
    if assumed := _about(lock, "assumes", {}):
        count = len(assumed)
        message = (
            f"the lock assumes {count} installed distributions, and a script gets an environment of its own"
        )
        raise InvalidInput(message, hint="Use a complete lock, which assumes none: omit `--runtime`")
    data: dict[str, Any] = {}
    if lock.requires_python:
        data["requires-python"] = str(lock.requires_python)
    data["dependencies"] = [_line(pin) for pin in pins]
    if settings := _uv_settings(lock, pins, find_links):
        data["tool"] = {"uv": settings}
    yield "# /// script"
    for line in tomli_w.dumps(data, multiline_strings=False).splitlines():
        yield f"# {line}".rstrip()
    yield "# ///"


def _uv_settings(lock: Pylock, pins: Sequence[LockedPin], find_links: Sequence[str]) -> dict[str, Any]:
    """Return the settings with which uv finds the same files; empty if its defaults do."""
    settings: dict[str, Any] = {}
    cutoff = _about(lock, "exclude-newer", None)
    # uv treats a file without an upload time as newer than the cutoff.
    if cutoff and all(file.upload_time for pin in pins for file in _files(pin.package)):
        settings["exclude-newer"] = _rfc3339(cutoff)
    if find_links:
        settings["find-links"] = list(dict.fromkeys(find_links))
    default, extra = _indexes(pins)
    indexes: list[dict[str, Any]] = [{"url": default, "default": True}] if default else []
    # `explicit`: the index is used only for the packages that name it.
    indexes += [{"name": _slug(url), "url": url, "explicit": True} for url in extra]
    if indexes:
        settings["index"] = indexes
    named = {pin.package.name: _index(pin) for pin in pins}
    sources = {str(name): {"index": _slug(url)} for name, url in sorted(named.items()) if url in extra}
    if sources:
        settings["sources"] = sources
    return settings


# -- parts of the formats


def checked_line(line: str, source: str) -> str:
    """Return one line of an export.  Raises InvalidInput if a reader would take it for another one.

    Its values come from the lock *source*, which somebody else may have written.
    """
    value = line.removesuffix(_CONTINUED)
    # pip cuts a line at ` #`, joins it with the next one after a backslash, and replaces `${NAME}` by the
    # variable of that name: a token, for example.
    is_comment = value.lstrip().startswith("#")
    odd = not is_comment and (value.endswith("\\") or _COMMENT.search(value) or _VARIABLE.search(value))
    if odd or printable(value) != value:
        shown = printable(value)[:SHOWN]
        raise InvalidInput(
            f"`{source}` has a value that would change the meaning of a line of the export: {shown}",
            hint="Make the lock again from its matrix",
        )
    return line


def _word(value: str) -> str:
    """Return the argument of an option.  Raises InvalidInput if it would be more than one."""
    if shlex.quote(value) != value and not _PLAIN_URL.fullmatch(value):
        raise InvalidInput(
            f"the lock names the index `{printable(value)[:SHOWN]}`, which is not a plain URL",
            hint="Make the lock again from its matrix",
        )
    return value


def _folder_word(folder: str) -> str:
    """Return a folder as the argument of an option.  Raises InvalidInput for a name that pip would change."""
    word = shlex.quote(folder)
    if _COMMENT.search(word) or _VARIABLE.search(word):
        raise InvalidInput(
            f"a requirements file cannot name the folder `{printable(folder)[:SHOWN]}`",
            hint="pip cuts a line at ` #`, and replaces `${NAME}` by a variable: give it another name",
        )
    return word


def _assumed(name: str, version: str) -> str:
    """Return the constraint of an assumed distribution.  Raises InvalidInput if it is another requirement."""
    requirement = parse_requirement(f"{name}=={version}")
    if requirement is None or requirement.url or requirement.marker or len(requirement.specifier) != 1:
        shown = printable(f"{name}=={version}")[:SHOWN]
        raise InvalidInput(f"the lock assumes `{shown}`, which is not a name and version")
    return f"{canonicalize_name(name)}=={version}"


def header_lines(
    lock: Pylock, pins: Sequence[LockedPin], form: str, *, called: str | None = None
) -> Iterator[str]:
    """Yield the comments at the top: how the file is made, for which target, and what it assumes.

    *called* is the name or the path by which the user has named the matrix.
    """
    keys = ("matrix", "variant", "python", "platform", "runtime")
    matrix, variant, python, platform, runtime = (_about(lock, key, None) for key in keys)
    if matrix is None:
        yield f"# The pins of a lock file (PEP 751) made by {lock.created_by}"
    else:
        target = {"--runtime": runtime} if runtime else {"--python-version": python, "--platform": platform}
        shown = None if form == Format.REQUIREMENTS.value else form
        additions = list(_about(lock, "with", ()))
        words = option_words({"--variant": variant, "--with": additions, **target, "--format": shown})
        yield f"# Made by `{command_line('export', called or matrix, *words)}`"
        yield f"# matrix {target_text(lock)}"
        for name in map(str, filter(None, map(_off_index, pins))):
            yield f"# {name} is on no index: name the page of its files with `--find-links`"
    if cutoff := _about(lock, "exclude-newer", None):
        yield f"# without files uploaded after {_rfc3339(cutoff)}"
    where = f" in {runtime}" if runtime else ""
    for name, version in sorted(_about(lock, "assumes", {}).items()):
        yield f"# assumes {name}=={version}, already installed{where}"
    yield ""


def target_text(lock: Pylock) -> str | None:
    """Return matrix, variant, Python and platform of *lock* in words; None if colablock did not make it."""
    matrix, variant, python, platform = (
        _about(lock, key, None) for key in ("matrix", "variant", "python", "platform")
    )
    if matrix is None:
        return None
    return f"{matrix}{f' ({variant})' if variant else ''}, Python {python}, {platform}"


def _about(lock: Pylock, key: str, otherwise: Any) -> Any:
    """Return the value of *key* in the table of the lock, *otherwise* if it is not there."""
    return table_of(lock).get(key, otherwise)


def _by_name(line: str) -> tuple[str, str]:
    """Return the sort key of a line: by name first, so that `pydantic` comes before `pydantic-core`."""
    return _name(line), line


def _line(pin: LockedPin) -> str:
    return _spaced(pin.requirement)


def _version_line(pin: LockedPin) -> str:
    """Return the pin as a constraint: its version, if that is known."""
    package, marker = pin.package, pin.requirement.marker
    if package.version is None:
        return _line(pin)
    return f"{package.name}=={package.version}" + (f" ; {marker}" if marker else "")


def _spaced(requirement: Requirement) -> str:
    marker, requirement = requirement.marker, Requirement(str(requirement))
    requirement.marker = None
    return f"{requirement} ; {marker}" if marker else str(requirement)


def _via(names: Sequence[str]) -> Iterator[str]:
    if len(names) == 1:
        yield f"    # via {names[0]}"
    elif names:
        yield "    # via"
        yield from (f"    #   {name}" for name in names)


def parents_of(lock: Pylock) -> defaultdict[str, set[str]]:
    """Return who requires each name: the packages, and the matrix for the roots."""
    parents: defaultdict[str, set[str]] = defaultdict(set)
    matrix = _about(lock, "matrix", None)
    for line in _about(lock, "requirements", ()) if matrix else ():
        parents[_name(line)].add(matrix)
    for package in lock.packages:
        lines = table_of(package).get("requires-dist")
        names = (str(needed.get("name", "")) for needed in package.dependencies or ())
        for name in map(_name, names if lines is None else lines):
            if name != package.name:  # a package may require its own extra
                parents[name].add(package.name)
    return parents


def _name(line: str) -> str:
    requirement = parse_requirement(line)
    return canonicalize_name(requirement.name) if requirement else ""


def _files(package: Package) -> list[PackageWheel | PackageSdist | PackageArchive]:
    listed = (*(package.wheels or ()), package.sdist, package.archive)
    return [file for file in listed if file is not None]


def _local_folders(pins: Iterable[LockedPin]) -> list[str]:
    """Return the local folders of the files that the lock lists, sorted."""
    files = (file for pin in pins if pin.package.archive is None for file in _files(pin.package))
    paths = (local_path(file.url) for file in files if file.url)
    return sorted({str(path.parent) for path in paths if path is not None})


def _off_index(pin: LockedPin) -> str | None:
    """Return the name of a package whose files come from a page of links, not from an index."""
    package = pin.package
    remote = [file for file in _files(package) if file.url and local_path(file.url) is None]
    return package.name if remote and package.index is None and package.archive is None else None


def _index(pin: LockedPin) -> str | None:
    return redacted(pin.package.index) if pin.package.index else None


def _indexes(pins: Sequence[LockedPin]) -> tuple[str | None, tuple[str, ...]]:
    """Return the index that replaces PyPI, if any, and the additional indexes."""
    used = {url for url in map(_index, pins) if url}
    known = {url for url in used if url.rstrip("/") == DEFAULT_INDEX.rstrip("/")}
    if known or not used:
        return None, tuple(sorted(used - known))
    default = default_index_of([pin.package for pin in pins])
    return default, tuple(sorted(used - {default}))


def _slug(url: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", url.partition("://")[2].lower()))


def _rfc3339(moment: datetime) -> str:
    return in_utc(moment).isoformat().replace("+00:00", "Z")
