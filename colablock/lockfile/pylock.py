"""Write and read lock files (PEP 751).  The same resolution gives the same bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from colablock._common.limits import SHOWN
from colablock._common.toml import NotToml, load_toml, read_text_file
from colablock._common.urls import Url
from colablock._vendor import tomli_w
from colablock._vendor.packaging.markers import Marker
from colablock._vendor.packaging.pylock import (
    Package,
    Pylock,
    PylockUnsupportedVersionError,
    PylockValidationError,
    is_valid_pylock_path,
)
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock._vendor.packaging.version import Version
from colablock.environment.requirements import parse_requirement
from colablock.errors import InvalidInput
from colablock.index.candidates import Candidate, CandidateOrigin
from colablock.lockfile.fields import field_faults
from colablock.lockfile.package_files import Wheel, package_files
from colablock.lockfile.parsed import parsed
from colablock.lockfile.tool_table import CREATED_BY, LockOrigin, lock_table
from colablock.matrix.packed_locks import PackedLock

if TYPE_CHECKING:
    from pathlib import Path

    from colablock.environment.markers_and_tags import Environment
    from colablock.matrix.model import Matrix
    from colablock.matrix.packed_locks import LockFile
    from colablock.network.cache import Cache
    from colablock.resolver.model import Pin, Resolution

__all__ = ["check_lock_name", "lock_digest", "make_lock", "read_lock", "write_lock"]

_SHOWN_FAULTS = 5
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')


def make_lock(
    resolution: Resolution,
    matrix: Matrix,
    *,
    wheels: Mapping[NormalizedName, Wheel] | None = None,
    origin: LockOrigin | None = None,
    repairs: Iterable[Pin] = (),
    all_files: bool = False,
) -> Pylock:
    """Return the PEP 751 lock of *resolution*: a delta if distributions are installed, else a complete lock.

    A delta lists the distributions to install, with the *repairs* of others
    that the stack breaks.  The installed distributions that it relies on are
    not listed but assumed.  *wheels* are those of rebuilt packages.  Each
    package lists the files that the target can install, with *all_files* the
    files of every platform.

    Raises BadDistribution for a file that its index lists without a hash, since
    a lock without one proves nothing.
    """
    environment = resolution.request.environment
    pins = {name: pin for name, pin in resolution.pins.items() if not pin.is_installed}
    repaired = {pin.name: pin for pin in repairs}
    listed = {**pins, **repaired}
    packages = [
        _package(
            pin, (wheels or {}).get(name), listed.keys(), is_repair=name in repaired, all_files=all_files
        )
        for name, pin in sorted(listed.items())
    ]
    version = environment.python_version
    return Pylock(
        lock_version=Version("1.0"),
        environments=[_environment_marker(environment)],
        requires_python=SpecifierSet(f"=={version.major}.{version.minor}.*"),
        created_by=CREATED_BY,
        packages=packages,
        tool={CREATED_BY: lock_table(resolution, matrix, origin or LockOrigin(), all_files=all_files)},
    )


def write_lock(lock: Pylock) -> bytes:
    """Return the bytes of the lock file, which is a valid one.  The same lock gives the same bytes."""
    lock.validate()
    return _text_of(lock)


def _text_of(lock: Pylock) -> bytes:
    text = tomli_w.dumps(dict(lock.to_dict()), multiline_strings=False)
    return _STRING.sub(_unescaped, text).encode()


def _unescaped(match: re.Match[str]) -> str:
    """Return a string as a TOML literal string if that spares escaped quotes, which markers have many of."""
    inner = match[0][1:-1].replace('\\"', '"')
    plain = '"' in inner and "'" not in inner and "\\" not in inner
    return f"'{inner}'" if plain else match[0]


def lock_digest(lock: Pylock) -> str:
    """Return the sha256 (hex) of the bytes of the lock, which names the environment made from it."""
    return hashlib.sha256(_text_of(lock)).hexdigest()


def read_lock(path: LockFile, cache: Cache | None = None) -> Pylock:
    """Return the lock in *path*.  Raises InvalidInput if it is not a lock (PEP 751).

    With *cache*, a lock that was read before is not parsed again.
    """

    def checked(text: bytes) -> dict[str, Any]:
        data = load_toml(text)
        faults = list(islice(field_faults(data), _SHOWN_FAULTS))
        if faults:
            hint = "Make the lock again, for example with `colablock lock NAME`"
            raise InvalidInput(
                "\n".join([f"the lock `{path}` is not valid", *map("  {}".format, faults)]), hint=hint
            )
        return data

    try:
        text = path.read_bytes() if isinstance(path, PackedLock) else read_text_file(path)
        return parsed(text, checked, lambda data: Pylock.from_dict(_with_urls(data)), cache)
    except OSError as error:
        raise InvalidInput(f"`{path}` cannot be read: {error.strerror}") from error
    except NotToml as error:
        raise InvalidInput(f"`{path}` is not TOML: {error}") from error
    except (PylockValidationError, PylockUnsupportedVersionError, ValueError, TypeError) as error:
        raise InvalidInput(f"`{path}` is not a lock file (PEP 751): {str(error)[:SHOWN]}") from error


def _with_urls(value: Any) -> Any:
    """Return the content of a lock whose URLs have no credentials in their text."""
    if isinstance(value, dict):
        return {
            key: Url(one) if key in {"index", "url"} and isinstance(one, str) else _with_urls(one)
            for key, one in value.items()
        }
    return [_with_urls(one) for one in value] if isinstance(value, list) else value


def check_lock_name(path: Path) -> None:
    """Raise InvalidInput for a file name that installers do not accept (PEP 751, file name)."""
    if not is_valid_pylock_path(path):
        hint = "Name it `pylock.toml`, or `pylock.NAME.toml` with no dot in NAME"
        raise InvalidInput(f"`{path.name}` is not a name for a lock file", hint=hint)


def _environment_marker(environment: Environment) -> Marker:
    markers = environment.markers
    return Marker(
        f'sys_platform == "{markers["sys_platform"]}" and platform_machine == "{markers["platform_machine"]}"'
        f' and implementation_name == "{markers["implementation_name"]}"'
    )


def _package(
    pin: Pin,
    rebuilt: Wheel | None,
    listed: Container[NormalizedName],
    *,
    is_repair: bool,
    all_files: bool,
) -> Package:
    """Return the package of *pin*.

    Its own table has ``requires-dist``, the requirements that apply here,
    ``extras`` in use, ``made-from`` with the file that a rebuilt wheel comes
    from, and ``repair`` if the stack would break it otherwise.
    """
    candidate = pin.candidate
    tool: dict[str, Any] = {"requires-dist": sorted(pin.requires)}
    if is_repair:
        tool["repair"] = True
    if pin.extras:
        tool["extras"] = sorted(pin.extras)
    if rebuilt is not None and candidate.file is not None and candidate.origin is not CandidateOrigin.LOCK:
        promised = {"hashes": dict(rebuilt.promised)} if rebuilt.promised else {}
        tool["made-from"] = {"url": candidate.file.url, **promised}
    return Package(
        name=pin.name,
        version=pin.version,
        requires_python=_requires_python(candidate),
        dependencies=[{"name": name} for name in _needed(pin) if name in listed] or None,
        index=candidate.file.index if candidate.file and rebuilt is None else None,
        tool={CREATED_BY: tool},
        **package_files(candidate, rebuilt, all_files=all_files),
    )


def _needed(pin: Pin) -> list[NormalizedName]:
    parsed = (parse_requirement(line) for line in pin.requires)
    return sorted({canonicalize_name(r.name) for r in parsed if r is not None} - {pin.name})


def _requires_python(candidate: Candidate) -> SpecifierSet | None:
    text = candidate.file.requires_python if candidate.file else None
    return SpecifierSet(text) if text else None
