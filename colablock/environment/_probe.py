"""Print the facts of an interpreter and its installed distributions as one line of JSON.

Another interpreter runs this file as ``EXE -I _probe.py``, or as ``EXE -I _probe.py facts``
for the facts only.  So it uses the standard library of Python 3.8 and nothing of colablock.
For the running interpreter the same functions are called in process.
"""

# Paths stay strings: seven hundred folders are read, and path objects double the time.  Modules that few
# interpreters need are imported where they are used, because every interpreter found runs this file.
# ruff: noqa: PLC0415, PTH100, PTH110, PTH112, PTH113, PTH118, PTH119, PTH120, PTH123, PTH207, PTH208

from __future__ import annotations

import glob
import importlib
import importlib.machinery
import json
import os
import platform
import re
import site
import sys
import sysconfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

__all__ = [
    "FORMAT",
    "MARK",
    "ONLY_FACTS",
    "distributions",
    "import_path",
    "interpreter_facts",
    "missing_modules",
    "probe",
]

FORMAT = 1
#: The start of the line with the answer.  Other lines may come from a `.pth` file.
MARK = "colablock-probe "
#: The argument for the facts only, with the modules that the interpreter was built without.
ONLY_FACTS = "facts"

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_FILE_SIZE = re.compile(rb",(\d+)\r?$", re.MULTILINE)
_IN_PACKAGE = re.compile(rb'^"?([^/\\,"\r\n]+)/[^,"\n]*\.(?:py|so|pyd)"?,', re.MULTILINE)
_TOP_FILE = re.compile(rb'^"?([^/\\,"\r\n]+\.(?:py|so|pyd|pth))"?,', re.MULTILINE)
_BLANK_LINE = re.compile(rb"\n\r?\n")
_SYSTEM_SITE = re.compile(r"^include-system-site-packages\s*=\s*true\s*$", re.MULTILINE)
#: The folders in which an installer works.
_SITES = ("site-packages", "dist-packages")
_SHOWN = 10  # names in a note
_SECTION = re.compile(r"\[([^:\]]*):?([^\]]*)\]")
_SINGLE = ("name", "version", "requires-python")
# Every training stack needs these modules.  A build may lack `_ssl`, or what that links to.  `ssl` is always
# there, and to import it takes a sixth of the time of an answer.
_NEEDED = ("ctypes", "_ssl", "zlib")
_MANY = ("requires-dist", "provides-extra", "import-name", "import-namespace")


def probe(search_path: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the facts, the distributions on *search_path* (default: ``sys.path``), and notes."""
    notes: list[str] = []
    remains: dict[str, list[str]] = {}
    facts = interpreter_facts()
    folders = list(_folders(import_path(os.environ) if search_path is None else search_path))
    found = distributions(folders, notes, remains)
    return {
        "format": FORMAT,
        "facts": facts,
        "search_path": folders,
        "distributions": found,
        "remains": remains,
        "notes": notes,
    }


def interpreter_facts() -> dict[str, Any]:
    """Return the facts that determine compatible wheels, installation folders and permitted changes."""
    paths = sysconfig.get_paths()
    glibc = _glibc()
    return {
        "markers": _markers(),
        "version": list(sys.version_info[:2]),
        "ext_suffix": sysconfig.get_config_var("EXT_SUFFIX"),
        "free_threaded": sys.version_info >= (3, 13) and bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "debug": _is_debug_build(),
        "is_32bit": sys.maxsize <= 2**32,
        "platform": sysconfig.get_platform(),
        "glibc": glibc,
        "musl": None if glibc else _musl(),
        "macos": _macos() if sys.platform == "darwin" else None,
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "base_executable": _base_executable(),
        "paths": paths,
        "has_headers": os.path.exists(os.path.join(paths["include"], "Python.h")),
        "externally_managed": _externally_managed(paths["stdlib"]),
    }


def import_path(environ: Mapping[str, str]) -> list[str]:
    """Return the import path of an interpreter that trains: with the user site, as far as it is enabled.

    ``PYTHONPATH`` and the working folder, which this process may have on its path, are left out.
    """
    paths = sysconfig.get_paths()
    sites = [*getattr(site, "getsitepackages", list)(), paths["purelib"], paths["platlib"]]
    own = set(map(os.path.realpath, sites))
    callers = {os.path.realpath(item) for item in environ.get("PYTHONPATH", "").split(os.pathsep) if item}
    path: list[Any] = sys.path  # imports ignore an entry that is not a string
    found = [item for item in path if isinstance(item, str) and item]
    if found and os.path.exists(".") and os.path.realpath(found[0]) in {os.path.realpath(".")} - own:
        del found[0]  # `python -m` puts the working folder there
    found = [item for item in found if os.path.realpath(item) not in callers - own]
    user = _user_site()
    if user is not None and user not in found:
        outer = own if sys.prefix == sys.base_prefix else own - {os.path.realpath(paths["purelib"])}
        places = [at for at, item in enumerate(found) if os.path.realpath(item) in outer]
        found.insert(places[0] if places else len(found), user)
    return found


def _user_site() -> str | None:
    """Return the user site that an interpreter uses that is not isolated, unlike this one; else None."""
    is_off = not sys.flags.no_user_site or bool(os.environ.get("PYTHONNOUSERSITE"))
    if sys.prefix != sys.base_prefix:
        config = _text(sys.prefix, "pyvenv.cfg").lower()
        is_off = is_off or not _SYSTEM_SITE.search(config)
    folder = site.getusersitepackages()
    return folder if not is_off and os.path.isdir(folder) else None


def missing_modules() -> list[str]:
    """Return the import errors of modules that every stack needs and that a build of Python may lack."""
    return [fault for fault in map(_import_fault, _NEEDED) if fault]


def _import_fault(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        return str(error)
    return None


def _base_executable() -> str:
    """Return the real path of the base interpreter: of this one, if it is not in a virtual environment."""
    base = getattr(sys, "_base_executable", "") or sys.executable
    if sys.prefix != sys.base_prefix:  # before 3.11 a copied executable names itself as its base
        likely = os.path.join(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info))
        base = likely if os.path.isfile(likely) else base
    return os.path.realpath(base)


def _markers() -> dict[str, str]:
    info = sys.implementation.version
    implementation = f"{info.major}.{info.minor}.{info.micro}"
    if info.releaselevel != "final":
        implementation += info.releaselevel[0] + str(info.serial)
    return {
        "implementation_name": sys.implementation.name,
        "implementation_version": implementation,
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_python_implementation": platform.python_implementation(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
    }


def _is_debug_build() -> bool:
    flag = sysconfig.get_config_var("Py_DEBUG")
    if flag is not None:
        return bool(flag)
    # Windows has no such variable.
    return hasattr(sys, "gettotalrefcount") or "_d.pyd" in importlib.machinery.EXTENSION_SUFFIXES


def _glibc() -> list[int] | None:
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        return None
    match = re.match(r"glibc (\d+)\.(\d+)", text)
    return [int(match.group(1)), int(match.group(2))] if match else None


def _musl() -> list[int] | None:
    """Return the version that the loader of musl prints.  musl has no function for it."""
    if not sys.platform.startswith("linux"):
        return None
    import subprocess

    for loader in sorted(glob.glob("/lib/ld-musl-*.so.1")):
        try:
            answer = subprocess.run([loader], stderr=subprocess.PIPE, check=False).stderr
        except OSError:
            continue
        match = re.search(rb"Version (\d+)\.(\d+)", answer)
        if match:
            return [int(match.group(1)), int(match.group(2))]
    return None


def _macos() -> list[Any]:
    """Return the major version, the minor version and the machine, as ``packaging.tags`` does."""
    version, _, machine = platform.mac_ver()
    if version.startswith("10.16"):
        import subprocess

        # A Python built with an old SDK gets 10.16 on every newer system.
        command = [sys.executable, "-sSB", "-c", "import platform; print(platform.mac_ver()[0])"]
        environ = dict(os.environ, SYSTEM_VERSION_COMPAT="0")
        version = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True).stdout.decode()
    major, minor = [*version.strip().split("."), "0"][:2]
    return [int(major), int(minor), machine]


def _externally_managed(stdlib: str) -> str | None:
    """Return the message of an externally managed environment (PEP 668); None in a virtual environment."""
    marker = os.path.join(stdlib, "EXTERNALLY-MANAGED")
    if sys.prefix != sys.base_prefix or not os.path.isfile(marker):
        return None
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(marker, encoding="utf-8")
        return parser["externally-managed"]["error"].strip()
    except (configparser.Error, KeyError, UnicodeDecodeError, OSError):
        return "this Python is managed by the system that installed it"


def distributions(
    search_path: Iterable[str], notes: list[str], remains: dict[str, list[str]] | None = None
) -> list[dict[str, Any]]:
    """Return the installed distributions on *search_path*.

    Of two with the same name the first counts, as for imports.  *notes* gets a line for each
    hidden one, and for each that cannot be read.  *remains* gets the paths of these by name:
    `importlib.metadata` may find them in place of a new version.
    """
    found: dict[str, dict[str, Any]] = {}
    remains = {} if remains is None else remains
    for folder in _folders(search_path):
        for entry in _entries(folder, notes):
            path = os.path.join(folder, entry)
            record = _read_distribution(path, notes)
            if record is None:
                remains.setdefault(_normalized(_stem(path)[0]), []).append(path)
                continue
            first = found.setdefault(record["name"], record)
            if first is not record:
                other = f"{record['version']} in {folder}"
                notes.append(f"{record['name']} {other} is hidden by {first['version']} in {first['path']}")
                remains.setdefault(record["name"], []).append(path)
    return list(found.values())


def _folders(search_path: Iterable[Any]) -> Iterator[str]:
    """Yield the folders of a search path, each real folder once (`lib64` is often a link)."""
    seen = set()
    for item in search_path:
        if not isinstance(item, str):  # imports ignore such an entry too
            continue
        try:
            folder = os.path.abspath(item)  # "" is the working directory, which may not exist any more
        except OSError:
            continue
        real = os.path.realpath(folder)
        if real not in seen and os.path.isdir(folder):
            seen.add(real)
            yield folder


def _entries(folder: str, notes: list[str]) -> Iterator[str]:
    """Yield the metadata entries of a folder, in the order of importlib.metadata."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        notes.append(f"{folder} cannot be read: {error.strerror}")
        return
    is_egg = folder.lower().endswith(".egg")
    leftovers = []
    for name in names:
        lowered = name.lower()
        is_entry = lowered.endswith((".dist-info", ".egg-info")) or (is_egg and lowered == "egg-info")
        if _is_leftover(folder, name, is_entry=is_entry):
            leftovers.append(name)
        elif is_entry:
            yield name
    if leftovers:
        notes.append(_leftovers_note(folder, sorted(leftovers)))


def _is_leftover(folder: str, name: str, *, is_entry: bool) -> bool:
    """Whether pip was killed when it had renamed this entry to remove it: ``demo`` to ``~emo``."""
    if not is_entry:
        return name.startswith("~") and os.path.basename(folder) in _SITES
    return name.startswith(("~", "-"))  # the second is of pip before 20


def _leftovers_note(folder: str, names: list[str]) -> str:
    import shlex

    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    paths = " ".join(shlex.quote(os.path.join(folder, name)) for name in names[:_SHOWN])
    why = "left from an uninstallation that was interrupted"
    return f"ignoring {shown}{more} in {folder}: {why}; to delete: `rm -r {paths}`"


def _stem(path: str) -> list[str]:
    """Return the parts of the name of a metadata entry: the project, the version, and what follows."""
    return os.path.basename(path).rsplit(".", 1)[0].split("-")


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _read_distribution(path: str, notes: list[str]) -> dict[str, Any] | None:
    """Return one distribution; None, with a note, if *path* holds none."""
    try:
        is_folder = os.path.isdir(path)
        names = set(os.listdir(path)) if is_folder else set()
        headers = _headers(path, names) if is_folder else _read_headers(path)
    except OSError as error:
        notes.append(f"{path} cannot be read: {error.strerror}")
        return None
    if headers is None:
        notes.append(f"ignoring {path}: it has no metadata")
        return None
    stem = _stem(path)
    name = headers["name"] or (stem[0] if stem[0] != "EGG" else "")
    version = headers["version"] or (stem[1] if len(stem) > 1 else "")
    if not _NAME.match(name) or not version:
        notes.append(f"ignoring {path}: `{name}` `{version}` is not a valid name and version")
        return None
    # importlib.metadata, pip and uv find a distribution by the name of its folder.
    if stem[0] not in (name, "EGG") and _is_renamed(stem, name, version):
        notes.append(f"ignoring {path}: it was renamed, because its metadata names `{name}`")
        return None
    return _describe(path, names, headers, name, version)


def _is_renamed(stem: list[str], name: str, version: str) -> bool:
    """Whether the name of the folder is not that of the distribution *name*; `my-project-1.0` may be."""
    own, called = _normalized(name), _normalized("-".join(stem))
    return own != _normalized(stem[0]) and not called.startswith(f"{own}-{_normalized(version)}")


def _describe(path: str, names: set[str], headers: dict[str, Any], name: str, version: str) -> dict[str, Any]:
    data = _read(os.path.join(path, "RECORD")) if "RECORD" in names else b""
    requires, extras = headers["requires-dist"], headers["provides-extra"]
    if not requires and "requires.txt" in names:  # setuptools before it wrote Requires-Dist
        requires, extras = _requires_txt(_text(path, "requires.txt"))
    return {
        "name": _normalized(name),
        "version": version,
        "requires": requires,
        "requires_python": headers["requires-python"],
        "extras": extras,
        "import_names": _import_names(path, names, headers, data),
        "direct_url": _text(path, "direct_url.json") if "direct_url.json" in names else None,
        "provenance_url": _text(path, "provenance_url.json") if "provenance_url.json" in names else None,
        "installer": _text(path, "INSTALLER").strip() or None if "INSTALLER" in names else None,
        "requested": "REQUESTED" in names,
        "size": sum(map(int, _FILE_SIZE.findall(data))) if data else None,
        "path": path,
    }


def _headers(path: str, names: set[str]) -> dict[str, Any] | None:
    for name in ("METADATA", "PKG-INFO"):
        if name in names:
            return _read_headers(os.path.join(path, name))
    return None


def _read_headers(path: str) -> dict[str, Any]:
    """Return the headers of core metadata that are used.  The body after the blank line is not read."""
    with open(path, "rb") as file:
        data = file.read(8192)
        while not _BLANK_LINE.search(data):
            more = file.read(65536)
            if not more:
                break
            data += more
    text = _BLANK_LINE.split(data, maxsplit=1)[0].decode("utf-8", "replace")
    headers: dict[str, Any] = dict.fromkeys(_SINGLE)
    headers.update((key, []) for key in _MANY)
    last = None
    for line in text.lstrip("\ufeff").replace("\r\n", "\n").split("\n"):
        if line.startswith((" ", "\t")):
            if last in _MANY:  # a folded line
                headers[last][-1] += " " + line.strip()
            continue
        key, _, value = line.partition(":")
        last = key.lower()
        if last in _MANY:
            headers[last].append(value.strip())
        elif last in _SINGLE and headers[last] is None:
            headers[last] = value.strip() or None
    return headers


def _import_names(path: str, names: set[str], headers: dict[str, Any], data: bytes) -> list[str]:
    """Return the top-level import names: declared (PEP 794), else of ``top_level.txt``, else of the files."""
    declared = headers["import-name"] + headers["import-namespace"]
    if declared:
        tops = {item.split(";")[0].split(".")[0].strip() for item in declared}
    elif "top_level.txt" in names:
        tops = {re.split(r"[./\\]", line.strip())[0] for line in _text(path, "top_level.txt").split("\n")}
    else:
        tops = _names_of_files(os.path.dirname(path), data)
    return sorted(name for name in tops if name.isidentifier() and name != "__pycache__")


def _names_of_files(folder: str, data: bytes) -> set[str]:
    tops = {name.decode("utf-8", "replace") for name in set(_IN_PACKAGE.findall(data))}
    for raw in _TOP_FILE.findall(data):
        file = raw.decode("utf-8", "replace")
        if file.endswith(".pth"):
            tops |= _names_of_pth(os.path.join(folder, file))
        elif not file.startswith("__editable__"):
            tops.add(file.split(".")[0])
    return tops


def _names_of_pth(path: str) -> set[str]:
    """Return the names that the `.pth` file of an editable installation makes importable."""
    tops = set()
    for line in _read(path).decode("utf-8", "replace").splitlines():
        if line.startswith(("#", "import ", "import\t")) or not os.path.isdir(line.strip()):
            continue
        for name in os.listdir(line.strip()):
            child = os.path.join(line.strip(), name)
            if name.endswith(".py") or os.path.isfile(os.path.join(child, "__init__.py")):
                tops.add(name.split(".")[0])
    return tops


def _requires_txt(text: str) -> tuple[list[str], list[str]]:
    """Return the requirements and extras of an `.egg-info`.  `[extra:marker]` is for the lines below it."""
    requires, extras = [], []
    extra = marker = ""
    for raw in text.splitlines():
        line = raw.strip()
        section = _SECTION.match(line)
        if section:
            extra, marker = section.group(1).strip(), section.group(2).strip()
            if extra and extra not in extras:
                extras.append(extra)
        elif line and not line.startswith("#"):
            conditions = [f"({marker})"] if marker else []
            conditions += [f'extra == "{extra}"'] if extra else []
            # A direct reference needs a space before its marker.
            joined = f" ; {' and '.join(conditions)}" if conditions else ""
            requires.append(line + joined)
    return requires, extras


def _text(path: str, name: str) -> str:
    return _read(os.path.join(path, name)).decode("utf-8", "replace")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


if __name__ == "__main__":
    if sys.argv[1:] == [ONLY_FACTS]:
        answer = {"format": FORMAT, "facts": interpreter_facts(), "missing": missing_modules()}
    else:
        answer = probe()
    # Something that has run at start-up may have replaced sys.stdout, and has perhaps not flushed it.
    if sys.stdout is not None:
        sys.stdout.flush()
    with open(1, "wb", closefd=False) as output:
        output.write(("\n" + MARK + json.dumps(answer) + "\n").encode())
