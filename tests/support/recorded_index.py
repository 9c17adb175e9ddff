"""A recorded part of a real index, served as small real wheels with the real metadata.

::

    with IndexServer(RecordedIndex("qlora-2024")) as server:
        ...                                         # solve and install against server.url

The recordings lie in ``tests/data`` and are made by ``tools/record_index.py``.  A wheel has the recorded
file name and requirements, stubs of the real import names, and the real console scripts, which say their
name and succeed.  Hashes and sizes are those of what is really served.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.support.paths import DATA
from tests.support.server import Facts, project_of
from tests.support.stubs import CONTENTS
from tests.support.wheels import metadata_text, sdist_bytes, tar_bytes, wheel_bytes

__all__ = ["RecordedIndex", "axolotl_archive"]

LINUX = "x86_64"
SCRIPT = """
def {function}():
    import sys
    print("{script}", *sys.argv[1:])
    return 0
"""
#: Import names where the recording has none: a project of which no wheel was read.
IMPORT_NAMES: Mapping[str, tuple[str, ...]] = {"fire": ("fire",)}


class RecordedIndex:
    """A `Source` over one or more recordings; a later one adds versions to an earlier.

    *contents* adds files to the wheels of a project (path to source), *everywhere* lists the wheels for
    other systems than Linux on x86-64 too.
    """

    def __init__(
        self,
        *names: str,
        contents: Mapping[str, Mapping[str, str]] | None = None,
        everywhere: bool = False,
        folder: Path = DATA,
    ) -> None:
        self._paths = [folder / f"index-{name}.json.gz" for name in names]
        self._contents = {**CONTENTS, **(contents or {})}
        self._everywhere = everywhere

    @cached_property
    def recorded(self) -> dict[str, dict[str, Any]]:
        """The recorded ``versions``, ``imports`` and ``scripts`` of each project."""
        projects: dict[str, dict[str, Any]] = {}
        for path in self._paths:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for name, project in json.load(file)["projects"].items():
                    mine = projects.setdefault(name, {**project, "versions": {}})
                    mine["versions"] = {**project["versions"], **mine["versions"]}
        return projects

    @cached_property
    def shared(self) -> frozenset[str]:
        """Import names of several projects.  Their stubs are empty, like those of namespace packages."""
        counted = Counter(top for project in self.recorded.values() for top in project["imports"])
        return frozenset(top for top, count in counted.items() if count > 1)

    @cached_property
    def cutoff(self) -> str | None:
        """The cutoff of the first recording.  None: it has none, and shows the day it was made."""
        with gzip.open(self._paths[0], "rt", encoding="utf-8") as file:
            cutoff: str | None = json.load(file)["cutoff"]
        return cutoff

    def projects(self) -> Iterable[str]:
        return self.recorded.keys()

    def files(self, project: str) -> Mapping[str, Facts] | None:
        found = self.recorded.get(project)
        if found is None:
            return None
        return {
            filename: _facts(release, own)
            for release in found["versions"].values()
            for filename, own in release["files"].items()
            if self._everywhere or _is_for_linux(filename)
        }

    def content(self, filename: str) -> bytes | None:
        name = project_of(filename)
        project = self.recorded.get(name, {"versions": {}})
        for version, release in project["versions"].items():
            if filename in release["files"]:
                return self._made(name, version, project, release, filename)
        return None

    def _made(
        self, name: str, version: str, project: Mapping[str, Any], release: Mapping[str, Any], filename: str
    ) -> bytes:
        written = release.get("name", name)
        modules = self._modules(name, version, project)
        described: dict[str, Any] = {
            "requires": release.get("needs", ()),
            "requires_python": release.get("requires-python"),
            "extras": release.get("extras", ()),
        }
        if filename.endswith(".whl"):
            metadata = metadata_text(written, version, **described)
            return wheel_bytes(
                filename,
                name=written,
                version=version,
                metadata=metadata,
                modules=modules,
                scripts=project["scripts"],
            )
        return sdist_bytes(
            written,
            version,
            static=False,
            modules=modules,
            scripts=project["scripts"],
            zipped=filename.endswith(".zip"),
            **described,
        )

    def _modules(self, name: str, version: str, project: Mapping[str, Any]) -> Mapping[str, str]:
        names = project["imports"] or IMPORT_NAMES.get(name, (name.replace("-", "_"),))
        stub = f'__version__ = "{version}"\n'
        modules = {
            f"{top}/__init__.py": "" if top in self.shared else stub
            for top in names
            if top not in sys.stdlib_module_names
        }
        for path, source in self._contents.get(name, {}).items():
            modules[path] = modules.get(path, "") + source
        for script, target in project["scripts"].items():
            _add_script(modules, script, target)
        return modules


def axolotl_archive(folder: Path) -> Path:
    """Write a stand-in of the source archive of axolotl 0.4.0 and return its path.

    As in the real one the modules lie under ``src``, a plain build holds none of them, and the
    requirements contradict everything of its time.
    """
    files = {
        "setup.py": "from setuptools import find_packages, setup\n\nsetup(\n    name='axolotl',\n"
        "    version='0.4.0',\n    package_dir={'': 'src'},\n    packages=find_packages(),\n"
        "    install_requires=['transformers==4.37.0', 'tokenizers==0.15.0', 'peft==0.7.0'],\n)\n",
        "README.md": "# axolotl\n",
        "src/axolotl/__init__.py": "",
        "src/axolotl/cli/__init__.py": "",
        "src/axolotl/cli/train.py": "import pkg_resources\nimport transformers\n",
        "src/axolotl/utils/__init__.py": "",
    }
    content = tar_bytes({f"axolotl-0.4.0/{path}": text.encode() for path, text in files.items()})
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "v0.4.0.tar.gz"
    target.write_bytes(content)
    return target


def _facts(release: Mapping[str, Any], own: Mapping[str, Any]) -> Facts:
    return Facts(
        upload_time=own.get("uploaded", release["uploaded"]),
        requires_python=own.get("requires-python", release.get("requires-python")),
        yanked=own.get("yanked", False),
    )


def _is_for_linux(filename: str) -> bool:
    if not filename.endswith(".whl"):
        return filename.endswith((".tar.gz", ".zip"))
    platform = filename.removesuffix(".whl").rpartition("-")[2]
    return platform == "any" or ("linux" in platform and LINUX in platform)


def _add_script(modules: dict[str, str], script: str, target: str) -> None:
    """Add the function that the entry point of a console script names."""
    module, _, attribute = target.partition(":")
    parts = module.split(".")
    top = parts[0]
    if not attribute.isidentifier() or not any(path.startswith(f"{top}/") for path in modules):
        return
    portion = any(path == f"{top}/__init__.py" for path in modules)
    for depth in range(1 if portion else 2, len(parts) + 1):
        as_module = f"{'/'.join(parts[:depth])}.py"
        if as_module in modules:
            if f"def {attribute}(" in modules[as_module]:
                return  # a stand-in that does more
            modules[as_module] += SCRIPT.format(function=attribute, script=script)
            return
        modules.setdefault(f"{'/'.join(parts[:depth])}/__init__.py", "")
    modules[f"{'/'.join(parts)}/__init__.py"] += SCRIPT.format(function=attribute, script=script)
