"""A world for tests: an index, a source archive, interpreters, and a home for colablock.

::

    with open_world(folder, RecordedIndex("qlora-2026")) as world:
        venv = world.stand_in("colab-2026.08-gpu")
        done = world.run("plan", "qlora-2026", "--python", venv.python)
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import uv

from colablock._vendor.packaging.requirements import Requirement
from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.requirements import parse_requirement
from colablock.runtimes.catalog import load_runtime, recorded_distributions
from tests.support.paths import ROOT
from tests.support.recorded_index import axolotl_archive
from tests.support.runtime import Stub, Venv, build_runtime, build_site, find_python
from tests.support.server import Facts, IndexServer, Source
from tests.support.stubs import CONTENTS
from tests.support.timing import PATIENCE
from tests.support.warm import run_warm

__all__ = [
    "Done",
    "Hiding",
    "World",
    "needed_by",
    "new_complaints",
    "notebook_venv",
    "open_world",
    "run_cells",
    "shown",
    "sockets",
    "stack_of",
]

# What the stack stands on in an image; datasets asks for the http extra of fsspec, which is aiohttp.
ROOTS = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "huggingface-hub"),
    *("torchao", "aiohttp", "pyarrow"),
)
ARCHIVES = "https://github.com/axolotl-ai-cloud/axolotl/archive/refs/tags/"
COMMAND = "#!{python}\nimport sys\nprint('accelerate', *sys.argv[1:])\n"


class Hiding:
    """A source without some of its projects."""

    def __init__(self, source: Source, *hidden: str) -> None:
        self._source = source
        self._hidden = frozenset(hidden)

    def projects(self) -> list[str]:
        return [name for name in self._source.projects() if name not in self._hidden]

    def files(self, project: str) -> Mapping[str, Facts] | None:
        return None if project in self._hidden else self._source.files(project)

    def content(self, filename: str) -> bytes | None:
        return self._source.content(filename)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


def succeeds(done: Done) -> Done:
    """Return *done*, which has to have exit code 0."""
    assert done.code == 0, done.err
    return done


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """An index, and folders for commands.  *extra* variables are set for every command."""

    folder: Path
    server: IndexServer
    extra: Mapping[str, str] = field(default_factory=dict)

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment variables of a process in this world."""
        archives = self.folder / "archives"
        mine = {
            "COLABLOCK_CACHE_DIR": str(self.folder / "cache"),
            "COLABLOCK_DEFAULT_INDEX": self.server.url,
            "COLABLOCK_HOME": str(self.folder / "home"),
            "COLABLOCK_MIRRORS": f"{ARCHIVES}={archives.as_uri()}/",
            "UV_CACHE_DIR": str(self.folder / "uv-cache"),
            "COLUMNS": "80",
            "NO_COLOR": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",  # trees are compared, and a command may write its own
        }
        return {**os.environ, **mine, **self.extra, **more}

    def run(self, *argv: str, cwd: Path | None = None, **more: str) -> Done:
        """Run colablock's command line in a process of its own."""
        code, out, err = run_warm(argv, self.environ(**more), cwd or self.folder)
        return Done(code=code, out=out, err=err)

    def stand_in(self, runtime: str) -> Venv:
        """Return the stand-in of a recorded runtime.  Copy it to change it.

        Skips the test if the runtime's Python is missing.
        """
        folder = self.folder / runtime
        short = load_runtime(runtime).environment.short
        python = find_python(short)
        if python is None:
            pytest.skip(f"there is no Python {short} here for a stand-in of {runtime}")
        if not folder.is_dir():
            site = build_runtime(runtime, folder, python)
            _living(site, runtime, folder)
        return Venv(folder)

    def uv(self, *argv: str) -> Done:
        """Run uv with the configuration of this world only."""
        done = subprocess.run(
            [uv.find_uv_bin(), *argv],
            env={**self.environ(), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)


@contextmanager
def open_world(folder: Path, source: Path | Source, **extra: str) -> Iterator[World]:
    """Serve *source* on 127.0.0.1 for the block.  All files are below *folder*."""
    axolotl_archive(folder / "archives")
    with IndexServer(source) as server:
        yield World(folder=folder, server=server, extra=extra)


def _living(
    site: Path,
    runtime: str,
    venv: Path,
    only: Collection[str] | None = None,
    contents: Mapping[str, Mapping[str, str]] = CONTENTS,
) -> None:
    """Write stubs with all that the proofs import into *site*, and the command ``accelerate``.

    With *only*, write these distributions of the runtime instead of those of the stack.
    """
    stubs = []
    for item in recorded_distributions(runtime):
        known = item.installed
        if (known.name not in contents) if only is None else (known.name not in only):
            continue
        stub = f'__version__ = "{known.version}"\n'
        names = known.import_names or (known.name.replace("-", "_"),)
        files = {f"{name}/__init__.py": stub for name in names}
        for path, source in contents.get(known.name, {}).items():
            files[path] = files.get(path, "") + source
        if known.name == "accelerate":
            files["../../../bin/accelerate"] = COMMAND.format(python=venv / "bin" / "python")
        stubs.append(
            Stub(
                name=item.spelled,
                version=known.version,
                requires=known.requires,
                requires_python=known.requires_python,
                extras=known.extras,
                import_names=names,
                files=files,
            )
        )
    build_site(site, stubs)
    (venv / "bin" / "accelerate").chmod(0o755)


def new_complaints(before: Done, after: Done) -> set[str]:
    """Return the names that ``uv pip check`` reports after a change and did not before."""
    return _complaints(after) - _complaints(before)


def _complaints(done: Done) -> set[str]:
    return set(re.findall(r"^The package `([^`]+)` requires", done.out + done.err, re.MULTILINE))


def notebook_venv(
    folder: Path,
    runtime: str | None,
    names: Collection[str] = (),
    contents: Mapping[str, Mapping[str, str]] = CONTENTS,
) -> Venv:
    """Return an environment with the distributions *names* of *runtime*, in which a real kernel starts.

    With None for a runtime it is empty.  *contents* are files of its distributions.

    The kernel and colablock with all that they need are those of the environment that runs the tests.
    Skips the test where there is none.
    """
    pytest.importorskip("ipykernel")
    venv = Venv.make(folder)
    ours = needed_by("ipykernel", "colablock")
    if runtime is not None:
        named = [name for name in names if name not in ours]
        _living(venv.site, runtime, folder, only=named, contents=contents)
    paths = dict.fromkeys([str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (venv.site / "tests.pth").write_text("".join(f"{path}\n" for path in paths))
    return venv


def stack_of(runtime: str) -> set[NormalizedName]:
    """Return the distributions of a training stack in *runtime*, and all that they need there."""
    image = load_runtime(runtime)
    variables = {**image.environment.markers, "extra": ""}
    found: set[NormalizedName] = set()
    waiting = [canonicalize_name(name) for name in ROOTS]
    while waiting:
        name = waiting.pop()
        if name in found or name not in image.installed:
            continue
        found.add(name)
        requirements = filter(None, map(parse_requirement, image.installed[name].requires))
        waiting += [
            canonicalize_name(one.name)
            for one in requirements
            if one.marker is None or one.marker.evaluate(variables)
        ]
    return found


def needed_by(*names: str) -> set[str]:
    """Return *names* and all their dependencies that are installed with the tests."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        requirements = map(Requirement, lines)
        waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate()]
    return found


def run_cells(
    world: World, venv: Venv, folder: Path, *cells: str, timeout: int = PATIENCE
) -> list[list[dict[str, Any]]]:
    """Run *cells* as a notebook in a kernel of *venv*, and return the outputs of each cell."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    jupyter_client = pytest.importorskip("jupyter_client")
    manager = jupyter_client.AsyncKernelManager(**kernel_options(venv, folder))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        notebook, km=manager, timeout=timeout, startup_timeout=timeout, allow_errors=True
    )
    client.execute(cwd=str(folder), env=world.environ(COLABLOCK_HOME=str(folder / "home")))
    return [[dict(output) for output in cell.outputs] for cell in notebook.cells]


def kernel_options(venv: Venv, folder: Path) -> dict[str, Any]:
    """Return the options of a kernel manager for a kernel in *venv*."""
    jupyter_client = pytest.importorskip("jupyter_client")
    spec = {
        "argv": [venv.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "stand-in",
        "language": "python",
    }
    (folder / "kernels" / "stand-in").mkdir(parents=True, exist_ok=True)
    (folder / "kernels" / "stand-in" / "kernel.json").write_text(json.dumps(spec))
    specs = jupyter_client.kernelspec.KernelSpecManager(kernel_dirs=[str(folder / "kernels")])
    return {"kernel_name": "stand-in", "kernel_spec_manager": specs, **sockets()}


def sockets() -> dict[str, Any]:
    """Return the options of a kernel manager for sockets of Linux without a path (unix(7)).

    The usual ports are free when they are chosen, and may be taken when the kernel listens.
    """
    return {"transport": "ipc", "ip": f"@{uuid.uuid4().hex}"}


def shown(outputs: list[dict[str, Any]], kind: str = "text/plain") -> str:
    """Return the output of a cell of one kind.  Streams and errors are plain text."""
    parts = []
    for output in outputs:
        if output["output_type"] in {"display_data", "execute_result"}:
            parts.append(output["data"].get(kind, ""))
        elif output["output_type"] == "stream" and kind == "text/plain":
            parts.append(output["text"])
        elif output["output_type"] == "error" and kind == "text/plain":
            parts.append("\n".join(output["traceback"]))
    return "\n".join(parts)
