"""Stand-ins for installed environments: site-packages full of one-line stubs."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from colablock._vendor.packaging.utils import NormalizedName
from colablock.environment.snapshot import installed_versions
from colablock.runtimes.catalog import load_runtime, recorded_distributions
from colablock.runtimes.document import RecordedDistribution
from tests.support.timing import PATIENCE

__all__ = [
    "Stub",
    "Venv",
    "build_runtime",
    "build_site",
    "find_python",
    "make_system_python",
    "make_venv",
    "site_of",
]

#: That of this machine, with the Pythons that commands of tests do not see.
_PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")


@dataclass(frozen=True, kw_only=True)
class Stub:
    """One distribution to write.  *files* are added to its one-line packages, or replace them."""

    name: str
    version: str
    requires: tuple[str, ...] = ()
    requires_python: str | None = None
    extras: tuple[str, ...] = ()
    import_names: tuple[str, ...] | None = None  # None: the name, with underscores
    direct_url: Mapping[str, object] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    requested: bool = False


@dataclass(frozen=True, slots=True)
class Venv:
    """A virtual environment in *folder*."""

    folder: Path

    @staticmethod
    def make(folder: Path, *stubs: Stub) -> Venv:
        """Make one of the running Python, without pip, with *stubs* installed."""
        make_venv(folder, sys.executable)
        made = Venv(folder)
        build_site(made.site, stubs)
        return made

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def site(self) -> Path:
        return site_of(self.folder)

    def versions(self) -> Mapping[NormalizedName, str]:
        return installed_versions([str(self.site)])

    def copy(self, folder: Path) -> Venv:
        """Return a copy in *folder*, whose commands start the copy's interpreter."""
        shutil.copytree(self.folder, folder, symlinks=True)
        for command in (folder / "bin").iterdir():
            if not command.is_symlink():
                command.write_text(command.read_text().replace(str(self.folder), str(folder)))
        return Venv(folder)


def build_runtime(
    name: str, into: Path, python: str | None = None, *, only: Collection[str] | None = None
) -> Path:
    """Write the distributions of a recorded runtime, or *only* some, and return their site folder.

    With *python*, an interpreter of the runtime's minor version, *into*
    becomes a virtual environment; else it is the site itself.
    """
    snapshot = load_runtime(name)
    site = into
    if python is not None:
        make_venv(into, python)
        site = site_of(into)
        if site.parent.name != f"python{snapshot.environment.short}":
            message = f"{name} has Python {snapshot.environment.short}, not that of {python}"
            raise ValueError(message)
    recorded = list(recorded_distributions(name))
    tops = Counter(top for item in recorded for top in item.installed.import_names)
    namespaces = {top for top, number in tops.items() if number > 1}
    some = [item for item in recorded if only is None or item.spelled in only]
    stubs = [_stub(item, snapshot.shared.keys(), namespaces) for item in some]
    return build_site(site, stubs)


def build_site(into: Path, distributions: Iterable[Stub]) -> Path:
    """Write *distributions* into the folder *into*, and return it."""
    for stub in distributions:
        _write(into, stub)
    return into


def make_venv(into: Path, python: str) -> Path:
    """Make an empty virtual environment without pip, and return its interpreter."""
    if python == sys.executable:  # ten times faster than in another process
        venv.create(into, symlinks=True)
    else:
        subprocess.run([python, "-I", "-m", "venv", "--without-pip", str(into)], check=True)
    return into / "bin" / "python"


def make_system_python(into: Path, marker: str) -> Path:
    """Make an externally managed Python that is no virtual environment, and return its interpreter.

    Its standard library is symbolic links to that of the running Python.
    """
    home = Path(sysconfig.get_path("stdlib"))
    library = into / "lib" / home.name
    (library / "site-packages").mkdir(parents=True)
    for path in home.iterdir():
        if path.name not in {"site-packages", "EXTERNALLY-MANAGED"}:
            (library / path.name).symlink_to(path)
    (library / "EXTERNALLY-MANAGED").write_text(marker)
    python = into / "bin" / "python"
    python.parent.mkdir()
    shutil.copy2(Path(sys.executable).resolve(), python)
    return python


def site_of(folder: Path) -> Path:
    """Return the site-packages of a virtual environment."""
    (site,) = folder.glob("lib/python*/site-packages")
    return site


@cache
def find_python(version: str) -> str | None:
    """Return a working interpreter of the minor *version* (``3.12``); None where there is none."""
    for candidate in _candidates(version):
        command = [candidate, "-I", "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        except OSError:
            continue
        if done.stdout.strip() == version:
            return candidate
    return None


def _candidates(version: str) -> Iterator[str]:
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        yield sys.executable
    if found := shutil.which(f"python{version}"):
        yield found
    yield from map(str, sorted(_PYENV.glob(f"versions/{version}.*/bin/python"), reverse=True))
    if uv := shutil.which("uv"):
        command = [uv, "python", "find", "--no-project", "--no-python-downloads", version]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            yield done.stdout.strip()


def _stub(item: RecordedDistribution, sharing: Iterable[object], namespaces: Collection[str]) -> Stub:
    known = item.installed
    names = known.import_names or (re.sub(r"[-.]+", "_", item.spelled),)
    # A stub that hid a module of the standard library would break the interpreter.
    names = tuple(f"{name}_dist" if name in sys.stdlib_module_names else name for name in names)
    if known.name in sharing:  # a build of a package that has others
        files = {f"{names[0]}/_build.py": f'OF = "{known.name}"\n'}
    else:  # as in real wheels, the start of a namespace is empty
        files = {f"{top}/__init__.py": "" for top in names if top in namespaces}
    return Stub(
        name=item.spelled,
        version=known.version,
        requires=known.requires,
        requires_python=known.requires_python,
        extras=known.extras,
        import_names=names,
        direct_url=known.direct_url.to_dict() if known.direct_url is not None else None,
        files=files,
    )


def _write(site: Path, stub: Stub) -> None:
    stem = re.sub(r"[-.]+", "_", stub.name)
    info = f"{stem}-{stub.version}.dist-info"
    modules = (stem,) if stub.import_names is None else stub.import_names
    files = {
        **{f"{module}/__init__.py": f'__version__ = "{stub.version}"\n' for module in modules},
        **stub.files,
        f"{info}/METADATA": _metadata(stub),
        f"{info}/INSTALLER": "pip\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: stub\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/top_level.txt": "".join(f"{module}\n" for module in modules),
    }
    if stub.direct_url is not None:
        files[f"{info}/direct_url.json"] = json.dumps(stub.direct_url)
    if stub.requested:
        files[f"{info}/REQUESTED"] = ""
    rows = []
    for name, text in files.items():
        data = text.encode()
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}\n")
    (site / info / "RECORD").write_text("".join(rows) + f"{info}/RECORD,,\n")


def _metadata(stub: Stub) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {stub.name}", f"Version: {stub.version}"]
    lines += [f"Requires-Python: {stub.requires_python}"] if stub.requires_python else []
    lines += [f"Provides-Extra: {extra}" for extra in stub.extras]
    lines += [f"Requires-Dist: {requirement}" for requirement in stub.requires]
    return "\n".join([*lines, "", "What it is for.", ""])
