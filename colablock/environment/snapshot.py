"""Read one interpreter into a `Snapshot`, which holds all facts that a plan depends on."""

# The paths of 150,000 recorded files stay strings, because path objects take seconds.
# ruff: noqa: PTH100, PTH118, PTH119, PTH120, PTH208

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from colablock._common.fs import expanded, unusable
from colablock._common.process import ChildFailed, find_program
from colablock._records import dataclass
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name, is_normalized_name
from colablock._vendor.packaging.version import InvalidVersion
from colablock.environment import _probe
from colablock.environment.accelerator import Accelerator, detect
from colablock.environment.direct_url import archive_sha256, editable_folder, read_direct_url
from colablock.environment.markers_and_tags import Environment
from colablock.environment.notebook_host import Host, detect_host, modules_of_kernel, versions_when_loaded
from colablock.environment.probe import AnswerStore, ask_interpreter
from colablock.environment.record import readable_rows
from colablock.environment.requirements import (
    applies,
    parse_requirement,
    project_named,
    same_version,
    version_of,
)
from colablock.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from colablock._vendor.packaging.direct_url import DirectUrl

__all__ = [
    "Installed",
    "Snapshot",
    "find_executable",
    "fingerprint",
    "installed_versions",
    "is_version",
    "protected_names",
    "snapshot_of",
    "take_snapshot",
]

_PROBE_SECONDS = 120.0  # a cold network disk may be slow, but a hang must end
_ROOTS = ("data", "purelib", "platlib", "scripts")
_GOOGLE_COLAB = canonicalize_name("google-colab")
_COLABLOCK = canonicalize_name("colablock")
#: The distributions that a running kernel or its server has loaded, or loads at its next start.
_KERNEL = frozenset(
    canonicalize_name(name)
    for name in (
        "comm",
        "ipykernel",
        "ipython",
        "jupyter-client",
        "jupyter-core",
        "jupyter-kernel-gateway",
        "jupyter-server",
        "jupyterlab",
        "matplotlib-inline",
        "notebook",
        "pyzmq",
        "tornado",
        "traitlets",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """One installed distribution.  Its requirement lines are not parsed."""

    name: NormalizedName
    version: str
    requires: tuple[str, ...] = ()  # Requires-Dist, as written
    requires_python: str | None = None
    extras: tuple[str, ...] = ()  # Provides-Extra
    import_names: tuple[str, ...] = ()  # top-level
    direct_url: DirectUrl | None = None  # PEP 610
    installer: str | None = None
    requested: bool = False
    size: int | None = None  # bytes on disk, from RECORD
    sha256: str | None = None  # of the file that it was installed from, if recorded (PEP 710)
    path: str | None = None  # the .dist-info (or .egg-info) folder; None in a recorded runtime
    is_known: bool = True  # false if a recorded runtime does not tell its requirements


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of one interpreter, live or recorded.

    *loaded* maps a distribution to its modules that the kernel has loaded, *in_memory* to their version.
    *shared* maps a distribution to others that own some of the same files with
    different contents.  A top-level ``__init__.py`` does not count, because the portions
    of old namespace packages each ship one.  *protected* distributions must not change.
    *unreadable* are distributions with an invalid version (PEP 440): no specifier allows it, and their
    requirements count as those of *installed*, see `everything`.
    *remains* maps a name to its metadata folders that do not count: hidden by another one, or
    without metadata.  `importlib.metadata` may find them in place of a new version.  *roots* are the
    folders that the interpreter installs into, links resolved, and *search_path* those that it imports
    from; both are empty for a recorded runtime.
    """

    environment: Environment
    python: str  # the executable; "" for a recorded runtime
    prefix: str
    site: str  # where pure modules go (purelib)
    installed: Mapping[NormalizedName, Installed]
    loaded: Mapping[NormalizedName, tuple[str, ...]] = field(default_factory=dict)
    in_memory: Mapping[NormalizedName, str] = field(default_factory=dict)
    shared: Mapping[NormalizedName, frozenset[NormalizedName]] = field(default_factory=dict)
    protected: frozenset[NormalizedName] = frozenset()
    accelerator: Accelerator = field(default_factory=Accelerator)
    host: Host = Host.PLAIN
    externally_managed: str | None = None  # the message of an externally managed environment (PEP 668)
    has_headers: bool = True  # whether Python.h exists, which Triton needs
    source: str = "live"  # or the name of a recorded runtime
    date: str | None = None  # of a recorded runtime
    notes: tuple[str, ...] = ()  # for the user: what could not be read, and why
    unreadable: Mapping[NormalizedName, Installed] = field(default_factory=dict)
    remains: Mapping[NormalizedName, tuple[str, ...]] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    search_path: tuple[str, ...] = ()

    def other_records(self, *names: NormalizedName) -> Iterator[Installed]:
        """Yield the metadata folders that do not count (*remains*), each without version and requirements.

        With *names*, only those of these distributions.
        """
        for name in names or self.remains:
            for path in self.remains.get(name, ()):
                yield Installed(name=name, version="", path=path)

    @property
    def everything(self) -> Mapping[NormalizedName, Installed]:
        """What is *installed*, and what is *unreadable*."""
        return {**self.installed, **self.unreadable}

    def loaded_otherwise(self, name: NormalizedName, version: str | None) -> tuple[str, ...]:
        """Return the loaded modules of *name*, if they are not from *version*; None means removed."""
        is_same = version is not None and same_version(self.in_memory.get(name, ""), version)
        return () if is_same else self.loaded.get(name, ())


def take_snapshot(
    *,
    protect: Iterable[str] = (),
    loaded_modules: Mapping[str, ModuleType] | None = None,
    environ: Mapping[str, str],
    accelerator: Accelerator | None = None,
) -> Snapshot:
    """Return the snapshot of the running interpreter.

    *loaded_modules* is ``sys.modules`` if this process is the kernel of the notebook,
    else None.  The accelerator is detected unless it is given.
    """
    modules = modules_of_kernel(loaded_modules or {})
    snapshot = _assemble(
        _probe.probe(_probe.import_path(environ)),
        environ=environ,
        modules=modules,
        protect=protect,
        accelerator=accelerator,
    )
    loaded = _loaded(modules, snapshot.installed)
    versions = {name: snapshot.installed[name].version for name in loaded}
    return replace(snapshot, loaded=loaded, in_memory=versions_when_loaded(loaded, modules, versions))


def snapshot_of(
    python: str | Path,
    *,
    protect: Iterable[str] = (),
    environ: Mapping[str, str],
    accelerator: Accelerator | None = None,
    store: AnswerStore | None = None,
) -> Snapshot:
    """Return the snapshot of the interpreter *python*, or of the environment in that folder.

    With *store*, the interpreter is started only if its environment has changed.  Raises NotFound
    if there is no interpreter, and InvalidInput if it does not run as a supported Python.
    """
    answer = _ask(find_executable(python, environ), environ, store)
    return _assemble(answer, environ=environ, modules={}, protect=protect, accelerator=accelerator)


def installed_versions(site_paths: Iterable[str | Path]) -> dict[NormalizedName, str]:
    """Return the installed versions by name, read from the names of ``.dist-info`` folders only.

    It opens no file, so it is a fast check whether anything has changed.  Of two with the
    same name the first on *site_paths* counts, in one folder the first by name.
    Legacy installations without a ``.dist-info`` folder are not included.
    """
    found: dict[NormalizedName, str] = {}
    for folder in site_paths:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for entry in sorted(names):
            name, _, version = entry.removesuffix(".dist-info").partition("-")
            if entry.endswith(".dist-info") and version and is_normalized_name(canonicalize_name(name)):
                found.setdefault(canonicalize_name(name), version)
    return found


def fingerprint(snapshot: Snapshot) -> str:
    """Return a digest of the installed versions and their direct references."""
    lines = []
    for name, installed in sorted(snapshot.everything.items()):
        origin = json.dumps(installed.direct_url.to_dict(), sort_keys=True) if installed.direct_url else ""
        lines.append(f"{name}=={installed.version} {origin}\n")
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def protected_names(
    installed: Mapping[NormalizedName, Installed],
    environment: Environment,
    host: Host,
    protect: Iterable[str] = (),
) -> frozenset[NormalizedName]:
    """Return the installed distributions that must not change.

    These are colablock, google-colab and its direct requirements, the distributions of a
    running kernel, and *protect*.  Names that are not installed are omitted.  Raises
    InvalidInput if a name in *protect* is not a valid project name.
    """
    wanted = {_COLABLOCK, _GOOGLE_COLAB}
    for text in protect:
        wanted.add(project_named(text))
    if host is not Host.PLAIN:
        wanted.update(_KERNEL)
    if _GOOGLE_COLAB in installed:
        wanted.update(_direct_requirements(installed[_GOOGLE_COLAB], environment))
    return frozenset(wanted.intersection(installed))


def _installed(records: Iterable[Mapping[str, Any]]) -> dict[NormalizedName, Installed]:
    """Return the distributions of a probe's answer."""
    found = {}
    for record in records:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        origin = read_direct_url(values.pop("direct_url"))
        provenance = read_direct_url(values.pop("provenance_url"))  # it has the same format (PEP 710)
        sha256 = archive_sha256(provenance) or archive_sha256(origin)
        installed = Installed(**values, direct_url=origin, sha256=sha256)
        found[installed.name] = installed
    return found


def _assemble(
    answer: Mapping[str, Any],
    *,
    environ: Mapping[str, str],
    modules: Mapping[str, ModuleType],
    protect: Iterable[str],
    accelerator: Accelerator | None,
) -> Snapshot:
    """Return the snapshot of a probe's *answer*, without the loaded modules."""
    facts = answer["facts"]
    environment = Environment.from_facts(facts)
    installed = _installed(answer["distributions"])
    host = detect_host(environ, modules)
    protect = tuple(protect)
    return Snapshot(
        environment=environment,
        python=facts["executable"],
        prefix=facts["prefix"],
        site=facts["paths"]["purelib"],
        installed=installed,
        shared=_shared(installed),
        protected=protected_names(installed, environment, host, protect),
        accelerator=accelerator or detect(environ),
        host=host,
        externally_managed=facts["externally_managed"],
        has_headers=facts["has_headers"],
        roots=tuple(dict.fromkeys(os.path.realpath(facts["paths"][kind]) for kind in _ROOTS)),
        search_path=tuple(answer["search_path"]),
        remains={canonicalize_name(name): tuple(paths) for name, paths in answer["remains"].items()},
        notes=(*answer["notes"], *_remarks(installed, protect)),
    )


def _remarks(installed: Mapping[NormalizedName, Installed], protect: Iterable[str]) -> Iterator[str]:
    """Yield the notes for the user."""
    for name, distribution in installed.items():
        if not is_version(distribution.version):
            yield f"{name} has the version `{distribution.version}`, which is not valid (PEP 440)"
    for text in protect:
        if canonicalize_name(text) not in installed:
            yield f"{text} cannot be protected, because it is not installed"


def is_version(text: str) -> bool:
    """Whether *text* is a valid version (PEP 440).  An installed distribution may have any text."""
    try:
        version_of(text)
    except InvalidVersion:
        return False
    return True


def _direct_requirements(installed: Installed, environment: Environment) -> Iterator[NormalizedName]:
    """Yield the names that *installed* itself requires, without its extras."""
    for line in installed.requires:
        requirement = parse_requirement(line)
        if requirement is not None and applies(requirement, environment):
            yield canonicalize_name(requirement.name)


def find_executable(python: str | Path, environ: Mapping[str, str]) -> Path:
    """Return the executable of a path, of the folder of an environment, or of a command.  Raises NotFound.

    A name without a slash is a command first: a file of the working folder may have that name.
    """
    is_command = isinstance(python, str) and os.sep not in python
    python = expanded(str(python), "the interpreter")
    found = find_program(str(python), environ) if is_command else None
    if found is not None:
        return Path(found).absolute()
    for candidate in (python, python / "bin" / "python", python / "Scripts" / "python.exe"):
        if os.path.isfile(candidate):  # noqa: PTH113 - Path raises an error for a long name
            return candidate.absolute()
    found = find_program(str(python), environ) if len(python.parts) == 1 else None
    if found is None:
        message = f"no interpreter found at `{python}`"
        raise NotFound(message)
    return Path(found).absolute()


def _ask(executable: Path, environ: Mapping[str, str], store: AnswerStore | None) -> dict[str, Any]:
    """Return the answer of the probe, run by *executable*.  Raises InvalidInput, Unmet."""
    try:
        return ask_interpreter(executable, environ, timeout=_PROBE_SECONDS, store=store)
    except ChildFailed as error:
        if error.status is None:
            raise unusable(error.__cause__, f"`{executable}` cannot be run: {error}") from error
        message = f"`{executable}` does not run as Python: {error}"
        raise InvalidInput(message, hint="use an interpreter of Python 3.8 or newer") from error


def _rows(path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the hash of each file that a distribution records."""
    rows = readable_rows(Path(path))
    if rows:
        yield from (row[:2] for row in rows if row.path)
    else:
        yield from _legacy_rows(path)


def _legacy_rows(path: str) -> Iterator[tuple[str, str]]:
    """Yield the files of an ``.egg-info``, which lists them relative to itself and without hashes."""
    try:
        text = Path(path, "installed-files.txt").read_text("utf-8", "surrogateescape")
    except OSError:
        return
    own = os.path.basename(path)
    for line in text.splitlines():
        if line:
            yield os.path.normpath(os.path.join(own, line)), ""


def _shared(
    installed: Mapping[NormalizedName, Installed],
) -> dict[NormalizedName, frozenset[NormalizedName]]:
    """Return the distributions that share files with different contents (see Snapshot).

    Only distributions with the same import name can share files, so most records are not read.
    """
    by_import: dict[str, list[Installed]] = defaultdict(list)
    for distribution in installed.values():
        for import_name in distribution.import_names:
            by_import[import_name].append(distribution)
    contested = {name for name, owners in by_import.items() if len(owners) > 1}
    owners: dict[str, list[tuple[NormalizedName, str]]] = defaultdict(list)
    for distribution in installed.values():
        if distribution.path is not None and contested.intersection(distribution.import_names):
            folder = os.path.dirname(distribution.path)
            for path in _contested_files(distribution.path, contested):
                owners[f"{folder}/{path[0]}"].append((distribution.name, path[1]))
    return _rivals(owners.values())


def _contested_files(record: str, contested: Container[str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the hash of each file below an import name that several distributions have."""
    for path, digest in _rows(record):
        top, slash, rest = path.partition("/")
        # Each portion of an old namespace package ships its `__init__.py`.
        if digest and rest != "__init__.py" and (top if slash else top.split(".")[0]) in contested:
            yield path, digest


def _rivals(
    owners: Iterable[list[tuple[NormalizedName, str]]],
) -> dict[NormalizedName, frozenset[NormalizedName]]:
    found: dict[NormalizedName, set[NormalizedName]] = defaultdict(set)
    for claims in owners:
        for name, digest in claims if len(claims) > 1 else ():
            found[name].update(other for other, its in claims if its != digest)
    return {name: frozenset(others) for name, others in found.items() if others}


def _loaded(
    modules: Mapping[str, ModuleType], installed: Mapping[NormalizedName, Installed]
) -> dict[NormalizedName, tuple[str, ...]]:
    """Return the loaded modules of each distribution, found by the files of the modules."""
    names_of = _modules_by_file(modules, installed.values())
    tops = {name.partition(".")[0] for names in names_of.values() for name in names}
    # Distributions whose import names are loaded come first, so that few other records are read.
    likely = sorted(installed.values(), key=lambda item: tops.isdisjoint(item.import_names))
    found: dict[NormalizedName, list[str]] = defaultdict(list)
    for distribution in likely:
        if not names_of:
            break
        for file in _owned(distribution, names_of.keys()):
            found[distribution.name] += names_of.pop(file)
    return {name: tuple(sorted(found[name])) for name in sorted(found)}


def _modules_by_file(
    modules: Mapping[str, ModuleType], installed: Iterable[Installed]
) -> dict[str, list[str]]:
    """Return the names of the modules of each file that an installed distribution may own."""
    homes: set[str] = set()
    for distribution in installed:
        homes.add(os.path.dirname(distribution.path or ""))
        homes.add(editable_folder(distribution.direct_url) or "")
    below = tuple(os.path.realpath(home) + os.sep for home in homes - {""})
    names_of: dict[str, list[str]] = defaultdict(list)
    real: dict[str, str] = {}
    for name, module in modules.items():
        if file := _file_of(module):
            folder, base = os.path.split(file)
            if folder not in real:
                real[folder] = os.path.realpath(folder)
            if (path := os.path.join(real[folder], base)).startswith(below):
                names_of[path].append(name)
    return names_of


def _file_of(module: object) -> str | None:
    """Return the file of a module.  It reads no attribute, because that would import lazy modules."""
    try:
        file = vars(module).get("__file__")
    except Exception:  # noqa: BLE001  # sys.modules may hold any object
        return None
    return os.path.abspath(file) if isinstance(file, str) else None


def _owned(installed: Installed, files: AbstractSet[str]) -> AbstractSet[str]:
    """Return those of *files* that *installed* records, or that lie in the folders of its modules."""
    if installed.path is None:
        return frozenset()
    folder = os.path.realpath(os.path.dirname(installed.path))
    # Paths with `..` lead to scripts and data, not to modules.
    recorded = {os.path.join(folder, path) for path, _ in _rows(installed.path)}
    if root := editable_folder(installed.direct_url):
        below: tuple[str, ...] = (root + os.sep,)
    elif not recorded:
        stems = [os.path.join(folder, name) for name in installed.import_names]
        below = tuple(stem + end for stem in stems for end in (os.sep, "."))
    else:
        return recorded & files
    return {file for file in files if file in recorded or file.startswith(below)}
