"""The notebooks of docs/notebooks: the same cells for three hosts.  docs/generate.py writes them."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent


class Host(NamedTuple):
    """A place where notebooks run."""

    title: str
    badge: str  # an image
    opens: str  # the address that opens a notebook of a repository on GitHub
    begin: str  # what to do before the first cell
    upload: str  # how a file gets there
    folders: str  # Python: where to look for a wheel or a clone
    metadata: dict[str, Any]


HOSTS = {
    "colab": Host(
        title="Colab",
        badge="https://colab.research.google.com/assets/colab-badge.svg",
        opens="https://colab.research.google.com/github/REPOSITORY/blob/main/PATH",
        begin="Choose *Runtime → Change runtime type → T4 GPU*, then *Runtime → Run all*.",
        upload="with the folder icon on the left",
        folders="[Path.cwd()]",
        metadata={"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": []}},
    ),
    "kaggle": Host(
        title="Kaggle",
        badge="https://kaggle.com/static/images/open-in-kaggle.svg",
        opens="https://kaggle.com/kernels/welcome?src=https://github.com/REPOSITORY/blob/main/PATH",
        begin="Choose *GPU T4 x2* as the accelerator, switch *Internet* on, and then *Run All*.",
        upload="with *Add Input → Upload*",
        folders='[Path.cwd(), *Path("/kaggle/input").glob("**/")]',
        metadata={
            "kaggle": {"accelerator": "nvidiaTeslaT4", "isGpuEnabled": True, "isInternetEnabled": True}
        },
    ),
    "jupyter": Host(
        title="Jupyter",
        badge="",
        opens="",
        begin="Run all cells. Without a GPU it trains on the CPU, which takes a few minutes.",
        upload="beside this notebook",
        folders="[Path.cwd(), *Path.cwd().parents]",
        metadata={},
    ),
}
CELLS = {
    "introduction": """\
# Train on ten rows: TITLE

BADGEThis notebook adds an exact QLoRA stack to the runtime, proves it, and trains a small model on ten rows.
BEGIN""",
    "about-install": """\
## Install

From a wheel file or a clone of colablock: upload one UPLOAD. In a clone, `pip wheel --no-deps .` makes the
wheel file. There is no release on PyPI yet; after the first one, write `source = "colablock"`.""",
    "install": """\
from pathlib import Path

source = None  # None: the wheel file or the clone that lies here; after the first release: "colablock"

if source is None:
    folders = FOLDERS
    wheels = [wheel for folder in folders for wheel in sorted(folder.glob("colablock-*.whl"))]
    clones = [clone for folder in folders for clone in (folder, folder / "colablock")]
    found = wheels + [clone for clone in clones if (clone / "matrices" / "qlora-2026.toml").is_file()]
    if not found:
        raise FileNotFoundError("there is no colablock-*.whl here: upload it UPLOAD")
    source = found[0]

%pip install -q -U "{source}"

import hashlib
from importlib.metadata import distribution

installed = distribution("colablock")  # an error here: nothing was installed
is_new = not globals().get("_exit_code")  # that of pip
if isinstance(source, Path) and source.is_file():  # pip leaves another wheel of the same version
    is_new = hashlib.sha256(source.read_bytes()).hexdigest() in (installed.read_text("direct_url.json") or "")
if not is_new:
    print("run `%pip uninstall -y colablock`, then this cell again")
    raise RuntimeError(f"pip has not installed `{source}`: an earlier colablock is still here")
installed.version""",
    "about-data": "## Write ten rows of data",
    "data": """\
import json

answers = {
    "What is a matrix?": "A set of versions that work together, with a reason for each.",
    "What is a lock?": "The exact files of a matrix, with their hashes.",
    "What is a plan?": "The steps from what is installed to what the matrix asks for.",
    "What does apply do?": "It changes the environment and proves the result.",
    "What is a proof?": "An import, a version or a command, tried in a fresh process.",
    "What does rollback do?": "It puts back the files that apply replaced.",
    "What is the kernel?": "The process that runs the cells of a notebook.",
    "What is an isolated environment?": "A folder with a Python of its own, beside the kernel's.",
    "What is a runtime?": "The image that a hosted notebook starts from.",
    "What is a receipt?": "The record of ten training steps on one card.",
}
with open("data.jsonl", "w") as file:
    for prompt, answer in answers.items():
        print(json.dumps({"prompt": prompt, "completion": " " + answer}), file=file)""",
    "about-plan": "## Plan\n\nThis changes nothing. It shows each step with its reason.",
    "plan": """\
import colablock

colablock.plan("qlora-2026")""",
    "about-apply": "## Apply\n\nThis makes the change and proves it. A failed proof undoes it.",
    "apply": 'report = colablock.apply("qlora-2026")',
    "about-train": "## Train\n\nThe marked parts of the row are what the model learns.",
    "train": """\
run = colablock.train(
    "qlora-2026",
    model="Qwen/Qwen2.5-0.5B",
    dataset="data.jsonl",
    sequence_len=128,
    micro_batch_size=2,
    gradient_accumulation_steps=1,
    max_steps=10,
)""",
    "about-use": "## Use the adapter",
    "use": 'print(run.generate("What is a matrix?", max_new_tokens=30)[0])',
    "next": """\
## Next

- Put your own rows into `data.jsonl`, leave out `max_steps`, and pass `output_dir="outputs/mine"`: the
  run of these ten rows stays.
- `run.download()` packs the adapter, `run.merge()` merges it into the model, and `run.push("you/name")`
  uploads it.
- `colablock.rollback()` puts the kernel's environment back as it was.""",
}


def notebooks() -> dict[str, partial[str]]:
    """Return what makes the text of each notebook, by its path in the repository."""
    return {path_of(host): partial(notebook, host) for host in HOSTS}


def path_of(host: str) -> str:
    """Return the path of a notebook in the repository."""
    return f"docs/notebooks/{host}.ipynb"


def repository() -> str:
    """Return the repository on GitHub, ``owner/name``, that pyproject.toml names; empty if it names none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    url: str = project.get("urls", {}).get("Repository", "")
    return url.removeprefix("https://github.com/").rstrip("/")


def badge(host: str) -> str:
    """Return the badge that opens the notebook of a host, as Markdown.

    It is empty if the host has none, and as long as pyproject.toml names no repository.
    """
    where, name = HOSTS[host], repository()
    if not (where.badge and name):
        return ""
    link = where.opens.replace("REPOSITORY", name).replace("PATH", path_of(host))
    return f"[![Open in {where.title}]({where.badge})]({link})"


def notebook(host: str) -> str:
    """Return the notebook for a host in nbformat 4.5, without outputs."""
    where = HOSTS[host]
    words = {
        "TITLE": where.title,
        "BADGE": f"{badge(host)}\n\n".lstrip(),
        "BEGIN": where.begin,
        "UPLOAD": where.upload,
    }
    cells = []
    for name, text in CELLS.items():
        source = text
        for word, value in {**words, "FOLDERS": where.folders}.items():
            source = source.replace(word, value)
        is_text = name.startswith("about-") or name in {"introduction", "next"}
        lines = source.splitlines(keepends=True)
        cell: dict[str, Any] = {"cell_type": "code", "execution_count": None, "outputs": []}
        if is_text:
            cell = {"cell_type": "markdown"}
        cells.append({**cell, "id": name, "metadata": {}, "source": lines})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {**where.metadata, "kernelspec": kernel, "language_info": {"name": "python"}}
    made = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
