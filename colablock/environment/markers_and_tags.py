"""The environment of a Python that a solve depends on: markers (PEP 508) and wheel tags (PEP 425)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from colablock._records import dataclass
from colablock._vendor.packaging.specifiers import SpecifierSet
from colablock._vendor.packaging.tags import (
    INTERPRETER_SHORT_NAMES,
    Tag,
    compatible_tags,
    cpython_tags,
    generic_tags,
    mac_platforms,
)
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.errors import InvalidInput

if TYPE_CHECKING:
    from colablock._vendor.packaging.markers import Marker

__all__ = ["Environment", "environment_for", "markers_by_python", "platform_family"]

_MINORS = range(9, 16)
_LATE_MICRO = 99
#: The glibc that a bare ``linux_<arch>`` stands for.  Most wheels are built for it.
_COMMON_GLIBC = (2, 28)
#: The older names of three glibc versions (PEP 600).
_LEGACY_MANYLINUX = {(2, 17): "manylinux2014", (2, 12): "manylinux2010", (2, 5): "manylinux1"}
_LINUX_MACHINES = frozenset(
    {"aarch64", "armv7l", "armv8l", "i686", "loongarch64", "ppc64", "ppc64le", "riscv64", "s390x", "x86_64"}
)
_WINDOWS_MACHINES = {"win_amd64": "AMD64", "win_arm64": "ARM64", "win32": "x86"}
_PLATFORM_HINT = (
    "a platform is a wheel tag such as `manylinux_2_35_x86_64`, `macosx_14_0_arm64` or `win_amd64`"
)
_MARKER_NAMES = (
    "implementation_name",
    "implementation_version",
    "os_name",
    "platform_machine",
    "platform_python_implementation",
    "platform_release",
    "platform_system",
    "platform_version",
    "python_full_version",
    "python_version",
    "sys_platform",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The markers and the wheel tags (best first) of one Python on one platform."""

    markers: Mapping[str, str]
    tags: tuple[Tag, ...]
    # Threads may ask at the same time: each list gets its one value when that is whole.
    _ranks: list[dict[str, int]] = field(default_factory=list, init=False, repr=False, compare=False)
    _pairs: list[set[tuple[str, str]]] = field(default_factory=list, init=False, repr=False, compare=False)
    _held: list[dict[tuple[int, str], tuple[Marker, bool]]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def ranks(self) -> Mapping[str, int]:
        """The rank of each tag by its text, the most preferred first.  Hashing a thousand tags takes long."""
        if not self._ranks:
            self._ranks.append({str(tag): rank for rank, tag in enumerate(self.tags)})
        return self._ranks[0]

    @property
    def interpreters(self) -> AbstractSet[tuple[str, str]]:
        """The pairs of an interpreter and an ABI in the tags."""
        if not self._pairs:
            self._pairs.append({(tag.interpreter, tag.abi) for tag in self.tags})
        return self._pairs[0]

    def holds(self, marker: Marker, extra: str = "") -> bool:
        """Whether *marker* holds here, with *extra*.  The answer is kept: many ask for the same marker."""
        if not self._held:
            self._held.append(_answers(tuple(sorted(self.markers.items()))))
        held = self._held[0]
        found = held.get((id(marker), extra))
        if found is None:
            # It keeps the marker, so that no other one gets its id.
            found = held[id(marker), extra] = marker, marker.evaluate({**self.markers, "extra": extra})
        return found[1]

    @property
    def python_version(self) -> Version:
        """The full Python version, such as ``3.12.11``."""
        return Version(self.markers["python_full_version"])

    @property
    def short(self) -> str:
        """The version without its micro part, such as ``3.12``."""
        return self.markers["python_version"]

    @property
    def platform(self) -> str:
        """The newest compatible platform tag (PEP 600, PEP 656)."""
        platforms = [tag.platform for tag in self.tags]
        named = (one for one in platforms if one.startswith(("manylinux_", "musllinux_")))
        return next(named, platforms[0])

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Environment:
        """Return the environment of an interpreter from its *facts* (see ``_probe.py``)."""
        try:
            markers = {name: str(facts["markers"][name]) for name in _MARKER_NAMES}
            # CPython built from a checkout has the version `3.14.0a1+`, which is not valid (PEP 440).
            if markers["python_full_version"].endswith("+"):
                markers["python_full_version"] += "local"
            Version(markers["python_full_version"])
            return cls(markers=markers, tags=_one(tuple(_tags(facts))))
        except (KeyError, TypeError, ValueError, InvalidVersion) as error:
            message = f"the interpreter reports invalid facts: {error!r}"
            raise InvalidInput(message) from error


@lru_cache(maxsize=64)
def _answers(
    markers: tuple[tuple[str, str], ...],  # noqa: ARG001 - the key
) -> dict[tuple[int, str], tuple[Marker, bool]]:
    """Return the answers of `holds`, which environments with the same *markers* share."""
    return {}


@lru_cache(maxsize=64)
def _one(tags: tuple[Tag, ...]) -> tuple[Tag, ...]:
    """Return the same object for equal tags, so that comparing a thousand tags takes no time."""
    return tags


@lru_cache(maxsize=64)  # each has a thousand tags, and few are used, many times
def environment_for(python_version: str, platform: str) -> Environment:
    """Return the environment of CPython *python_version* on *platform*, without an interpreter.

    *python_version* is ``3.12``, ``3.12.4`` or, free-threaded, ``3.13t``;
    without a micro part it means ``.0``.  *platform* is a wheel tag: a
    manylinux or musllinux tag includes every older one of its kind, and
    ``linux_x86_64`` means ``manylinux_2_28_x86_64``.  The markers of the
    running machine (``platform_release``, ``platform_version``) are empty.
    Raises InvalidInput for any other version or platform.
    """
    match = re.fullmatch(r"3\.(\d{1,2})(?:\.(\d{1,3}))?((?:a|b|rc)\d+)?(t)?", python_version.strip())
    if match is None:
        message = f"`{python_version}` is not a supported Python version"
        raise InvalidInput(message, hint="write it as `3.12` or `3.12.4`")
    minor, micro, pre = int(match[1]), int(match[2] or 0), match[3] or ""
    facts = _platform_facts(platform)
    full = f"3.{minor}.{micro}{pre}"
    facts["markers"] |= {
        "implementation_name": "cpython",
        "implementation_version": full,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_version": "",
        "python_full_version": full,
        "python_version": f"3.{minor}",
    }
    facts |= {"version": [3, minor], "free_threaded": match[4] is not None, "debug": False}
    return Environment.from_facts(facts)


def markers_by_python(environment: Environment, allowed: SpecifierSet) -> list[dict[str, str]]:
    """Return the markers of each Python that *allowed* admits, on the platform of *environment*.

    These are the first and a late micro version of each minor version that a stack can be made for.
    """
    found = []
    for minor in _MINORS:
        for micro in (0, _LATE_MICRO):
            full = f"3.{minor}.{micro}"
            if allowed.contains(full, prereleases=True):
                python = {"python_version": f"3.{minor}", "python_full_version": full}
                found.append({**environment.markers, **python, "implementation_version": full, "extra": ""})
    return found


def platform_family(platform: str) -> tuple[str, str]:
    """Return the system or C library of a platform tag, without a version, and its machine.

    ``manylinux_2_35_x86_64`` gives ``("manylinux", "x86_64")`` (PEP 600, PEP 656).
    """
    match = re.fullmatch(r"([a-z]+)(?:_\d+_\d+_|_)?(\w*)", platform)
    return (match[1], match[2]) if match else (platform, "")


def _tags(facts: Mapping[str, Any]) -> Iterator[Tag]:
    """Yield the tags of ``packaging.tags.sys_tags`` in the interpreter of *facts*, in the same order."""
    version = [int(part) for part in facts["version"][:2]]
    platforms = list(_platforms(facts))
    implementation = facts["markers"]["implementation_name"]
    short = INTERPRETER_SHORT_NAMES.get(implementation, implementation)
    interpreter = f"{short}{version[0]}{version[1]}"
    if short == "cp":
        yield from cpython_tags(version, _cpython_abis(interpreter, facts), platforms)
    else:
        yield from generic_tags(interpreter, _generic_abis(str(facts.get("ext_suffix"))), platforms)
    yield from compatible_tags(version, {"cp": interpreter, "pp": "pp3"}.get(short), platforms)


def _cpython_abis(interpreter: str, facts: Mapping[str, Any]) -> list[str]:
    abi = f"{interpreter}t" if facts.get("free_threaded") else interpreter
    # Since Python 3.8 a debug build also loads the extension modules of a release build.
    return [f"{abi}d", abi] if facts.get("debug") else [abi]


def _generic_abis(ext_suffix: str) -> list[str]:
    """Return the ABI in the suffix of extension modules: ``.pypy310-pp73-...so`` gives ``pypy310_pp73``."""
    soabi = ext_suffix.lstrip(".").rpartition(".")[0]
    if not soabi:
        return []
    words = soabi.split("-")
    kept = 2 if words[0].startswith("pypy") else 3 if words[0].startswith("graalpy") else len(words)
    return ["_".join(words[:kept])]


def _platforms(facts: Mapping[str, Any]) -> Iterable[str]:
    """Return the platform tags, best first, in the order of ``packaging.tags``."""
    name = re.sub(r"[-. ]", "_", facts["platform"])
    if facts["markers"]["platform_system"] == "Darwin":
        major, minor, machine = facts["macos"]
        return mac_platforms((int(major), int(minor)), machine)
    if not name.startswith("linux_"):
        return [name]
    machine = name.removeprefix("linux_")
    if facts.get("is_32bit"):  # a 32-bit Python on a 64-bit kernel
        machine = {"x86_64": "i686", "aarch64": "armv8l"}.get(machine, machine)
    machines = ["armv8l", "armv7l"] if machine == "armv8l" else [machine]
    return _linux_platforms(machines, facts.get("glibc"), facts.get("musl"))


def _linux_platforms(machines: list[str], glibc: list[int] | None, musl: list[int] | None) -> Iterator[str]:
    for machine in machines:
        yield f"linux_{machine}"
    for machine in machines if glibc else ():
        major, newest = glibc or (0, 0)
        for minor in range(newest, _oldest_glibc(machine) - 1, -1):
            yield f"manylinux_{major}_{minor}_{machine}"
            if legacy := _LEGACY_MANYLINUX.get((major, minor)):
                yield f"{legacy}_{machine}"
    for machine in machines if musl else ():
        major, newest = musl or (0, 0)
        yield from (f"musllinux_{major}_{minor}_{machine}" for minor in range(newest, -1, -1))


def _oldest_glibc(machine: str) -> int:
    """Return the minor version of the oldest glibc of a manylinux tag (PEP 600; PEP 513 for x86)."""
    return 5 if machine in {"x86_64", "i686"} else 17


def _platform_facts(platform: str) -> dict[str, Any]:
    """Return the facts that a platform tag determines.  Raises InvalidInput."""
    name = re.sub(r"[-. ]", "_", platform.strip().lower())
    if name in _WINDOWS_MACHINES:
        markers = _platform_markers("nt", "win32", "Windows", _WINDOWS_MACHINES[name])
        return {"platform": name, "markers": markers}
    if match := re.fullmatch(r"macosx_(\d{2})_(\d{1,2})_(arm64|x86_64)", name):
        markers = _platform_markers("posix", "darwin", "Darwin", match[3])
        return {"platform": name, "markers": markers, "macos": [int(match[1]), int(match[2]), match[3]]}
    return _linux_facts(name, platform)


def _linux_facts(name: str, platform: str) -> dict[str, Any]:
    match = re.fullmatch(r"(linux|manylinux1|manylinux20\d\d|(?:many|musl)linux_\d+_\d+)_(\w+)", name)
    if match is None or match[2] not in _LINUX_MACHINES:
        message = f"`{platform}` is not a supported platform"
        raise InvalidInput(message, hint=_PLATFORM_HINT)
    kind, machine = match[1], match[2]
    markers = _platform_markers("posix", "linux", "Linux", machine)
    facts = {"platform": f"linux_{machine}", "markers": markers}
    if kind.startswith("musllinux_"):
        return {**facts, "musl": [int(part) for part in kind.split("_")[1:]]}
    legacy = {alias: version for version, alias in _LEGACY_MANYLINUX.items()}
    glibc = _COMMON_GLIBC if kind == "linux" else legacy.get(kind, (0, 0))
    if kind.startswith("manylinux_"):
        _, major, minor = kind.split("_")
        glibc = (int(major), int(minor))
    if not (2, _oldest_glibc(machine)) <= glibc < (2, 100):
        message = f"the glibc of `{platform}` must be 2.{_oldest_glibc(machine)} or newer"
        raise InvalidInput(message, hint=_PLATFORM_HINT)
    return {**facts, "glibc": list(glibc)}


def _platform_markers(os_name: str, sys_platform: str, system: str, machine: str) -> dict[str, str]:
    return {
        "os_name": os_name,
        "sys_platform": sys_platform,
        "platform_system": system,
        "platform_machine": machine,
    }
