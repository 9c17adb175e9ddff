"""Every command and every cell of the README and of the documentation runs as it is written.

Each page has a reader of its own, with a shell and a kernel in a stand-in of Colab's runtime.  What a page
takes for granted, such as a file of data, is made before.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import uv

from tests.support.documents import RUN, Block, Reader, blocks_of, pages, shows
from tests.support.paths import DATA, ROOT
from tests.support.recorded_index import RecordedIndex
from tests.support.repacked import repack
from tests.support.server import Facts, FolderSource, IndexServer, Source
from tests.support.training_stack import stand_in_contents, write_model
from tests.support.wheels import make_wheel
from tests.support.world import World, notebook_venv, open_world, stack_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow  # whole commands, in stand-ins of whole runtimes

RUNTIME = "colab-2026.08-gpu"
CONTENTS = stand_in_contents()
EXAMPLES = (
    "docs/reference/cli.md"  # those of `--help`, which do not follow each other; test_docs.py parses them
)
MODELS = ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B")
CLONED = ("colablock", "matrices", "tools", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
PLACES = ("/content/drive", "/media/wheels", "/shared/matrices")  # of other machines
MATRIX = """\
schema = 1
name = "{name}"
[packages]
transformers = "==4.41.0"
trl = ">=1"
[verify]
imports = ["trl"]
"""
COMMAND = '#!/bin/sh\nexec "{python}" -m {module} "$@"\n'


class Both:
    """The projects of one source, and of another those that the first does not have."""

    def __init__(self, first: Source, second: Source) -> None:
        self._sources = (first, second)

    def projects(self) -> list[str]:
        return sorted({name for source in self._sources for name in source.projects()})

    def files(self, project: str) -> Mapping[str, Facts] | None:
        return next(filter(None, (source.files(project) for source in self._sources)), None)

    def content(self, filename: str) -> bytes | None:
        return next(filter(None, (source.content(filename) for source in self._sources)), None)


def write_wheels(folder: Path) -> Path:
    """Write wheels of the projects that pages name and no recording has, and return their folder."""
    make_wheel(folder, "text-unidecode", "1.3")
    make_wheel(folder, "python-slugify", "8.0.4", requires=["text-unidecode>=1.3"], import_names=["slugify"])
    for name, version in {"ftfy": "6.3.1", "rapidfuzz": "3.14.0", "wandb": "0.22.0", "foo": "1.0"}.items():
        make_wheel(folder, name, version)
    return folder


def write_small(folder: Path) -> Path:
    """Write wheels of a stack that is solved in no time, and return their folder."""
    for name, version in {
        "torch": "2.4.0",
        "transformers": "4.41.0",
        "trl": "1.0",
        "my-project": "1.0",
    }.items():
        make_wheel(folder, name, version)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    recorded = RecordedIndex("qlora-2026", "qlora-2024", contents=CONTENTS)
    source = Both(recorded, FolderSource(write_wheels(folder / "index")))
    with open_world(folder, source) as found:
        yield found


@pytest.fixture(scope="module")
def small(world: World) -> Iterator[IndexServer]:
    """An index with a small stack."""
    with IndexServer(write_small(world.folder / "small")) as server:
        for project in ("torch", "transformers", "trl"):
            server.release(project, {"torch": "2.4.0", "transformers": "4.41.0", "trl": "1.0"}[project])
        yield server


@pytest.fixture(scope="module")
def clone(world: World) -> Path:
    """Return a clone of this repository, as far as it is installed."""
    folder = world.folder / "clone"
    folder.mkdir()
    for name in CLONED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.wheels"))
        else:
            shutil.copy(source, folder)
    compileall.compile_dir(folder / "colablock", quiet=1)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Pages that one reader follows, and what is there before; see tests/data/pages.toml."""

    pages: tuple[str, ...]
    small: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    folder: str = "."


def groups() -> dict[str, Group]:
    """Return the groups by name."""
    known = tomllib.loads((DATA / "pages.toml").read_text(encoding="utf-8"))
    return {
        name: Group(**{"folder" if key == "in" else key: value for key, value in facts.items()})
        for name, facts in known.items()
    }


GROUPS = groups()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The machine of the readers: its indexes, and what they install."""

    world: World
    small: IndexServer
    clone: Path
    wheels: Path


@pytest.fixture(scope="module")
def place(world: World, small: IndexServer, clone: Path) -> Place:
    wheels = repack(world.folder / "wheels", "hatchling", "colablock")
    return Place(world=world, small=small, clone=clone, wheels=wheels)


@contextmanager
def reader_in(folder: Path, place: Place, group: Group) -> Iterator[Reader]:
    """Return a reader whose files, kernel and home are below *folder*."""
    venv = notebook_venv(folder / "venv", RUNTIME, stack_of(RUNTIME), CONTENTS)
    for name in ("colablock", "pip"):
        (venv.folder / "bin" / name).write_text(COMMAND.format(python=venv.python, module=name))
        (venv.folder / "bin" / name).chmod(0o755)
    (venv.folder / "bin" / "uv").symlink_to(uv.find_uv_bin())
    write_files(folder / "files", place, group)
    # What pip installs is compiled as it is imported: most of it never is.
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(place.wheels), "PIP_COMPILE": "0"}
    if group.small:
        index = {"COLABLOCK_DEFAULT_INDEX": place.small.url, "PIP_INDEX_URL": place.small.url}
    environ = place.world.environ(
        **index,
        **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        COLABLOCK_HOME=str(folder / "home"),
        HF_HUB_OFFLINE="1",
        HOME=str(folder),
        PYTHONDONTWRITEBYTECODE="",
        PATH=f"{venv.folder / 'bin'}:{os.environ['PATH']}",
        PYTHONPATH=str(place.clone),
    )
    places = {one: str(folder / one.strip("/").replace("/", "-")) for one in PLACES}
    with Reader(
        venv=venv,
        folder=folder / "files",
        shell_folder=folder / "files" / group.folder,
        environ=environ,
        instead=places,
    ) as found:
        yield found


def write_files(folder: Path, place: Place, group: Group) -> None:
    """Write the clone, a model, data and the files of *group* into *folder*."""
    for model in MODELS:
        write_model(folder / model)
    (folder / "colablock").symlink_to(place.clone)
    rows = [{"prompt": f"What is {n}?", "completion": f" {n} is a number."} for n in range(10)]
    files = {"data.jsonl": "".join(json.dumps(row) + "\n" for row in rows), **group.files}
    if group.small:
        files |= {f"matrices/{name}.toml": MATRIX.format(name=name) for name in ("qlora-2024", "qlora-2026")}
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def run_of(page: str) -> list[Block]:
    """Return the blocks of a page that somebody runs."""
    return [
        block
        for block in blocks_of(page)
        if (block.language in RUN or block.into is not None) and block.not_run is None
    ]


def outputs_of(page: str) -> dict[int, Block]:
    """Return the blocks with outputs, by the line of the block that prints them."""
    blocks = blocks_of(page)
    return {one.line: other for one, other in pairwise(blocks) if other.is_output}


@pytest.mark.parametrize("name", GROUPS)
def test_pages_run_word_for_word(tmp_path: Path, place: Place, name: str) -> None:
    group = GROUPS[name]
    with reader_in(tmp_path, place, group) as reader:
        for page in group.pages:
            for language, text in group.before.get(page, ()):
                reader.run(language, text, about=f"before {page}")
            outputs = outputs_of(page)
            for block in run_of(page):
                said = reader.follow(block)
                sample = outputs.get(block.line)
                assert sample is None or shows(said, sample.text), f"{sample} is not printed:\n{said}"
            reader.close_shell()


def test_every_page_with_a_block_to_run_has_a_reader() -> None:
    followed = [page for group in GROUPS.values() for page in group.pages]
    found = {page for page in pages() if run_of(page)} - {EXAMPLES}
    assert sorted(followed) == sorted(found)


def test_few_blocks_cannot_run() -> None:
    found = {str(block): block.not_run for page in pages() for block in blocks_of(page) if block.not_run}
    assert len(found) <= 14, found
