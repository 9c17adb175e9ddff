"""Record the public Colab image as it is now, when it differs from the newest that is recorded.

    python tools/record_colab.py [--into FOLDER] [--api URL] [--raw URL] [--offline]

The freezes of the CPU and the GPU image are read from googlecolab/backend-info,
at the commit that its main branch has.  For each that differs a document is
written into FOLDER (default: ``colablock/runtimes/data``), and what changed is
printed in Markdown: the text of a pull request.  Where nothing differs,
nothing is printed.  TPU images are left out.
"""

# A script, no package.

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colablock._common.reporter import Reporter
from colablock._common.urls import redacted
from colablock.display.runtimes_view import diff_document, import_notes
from colablock.display.text import to_text
from colablock.environment.markers_and_tags import environment_for
from colablock.environment.notebook_host import Host
from colablock.errors import ColablockError, InvalidInput
from colablock.network.fetcher import Fetcher
from colablock.network.settings import read_settings
from colablock.runtimes.catalog import load_recording, runtimes, save_recording
from colablock.runtimes.describe import compared
from colablock.runtimes.document import PLATFORM, RecordedRuntime, Recording
from colablock.runtimes.freeze import Freeze, parse_freeze
from colablock.runtimes.import_freeze import import_freeze
from colablock.runtimes.package_releases import Releases

REPOSITORY = "googlecolab/backend-info"
API = "https://api.github.com"
RAW = "https://raw.githubusercontent.com"
INTO = Path(__file__).resolve().parent.parent / "colablock" / "runtimes" / "data"
#: The freeze and the file that names the Python, of each kind of machine.
FILES = {"cpu": ("pip-freeze.txt", "os-info.txt"), "gpu": ("pip-freeze.gpu.txt", "os-info-gpu.txt")}
DRIVER = {
    "cpu": (),
    "gpu": ("the freeze does not tell the driver: add `driver` where a commit message or a notebook does",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image as the repository describes it at a commit."""

    flavour: str
    commit: str
    date: str
    python: str
    freeze: Freeze


def newest_images(fetcher: Fetcher, api: str, raw: str) -> Iterator[Image]:
    """Yield the images at the head of the main branch.  Raises FetchFailed and InvalidInput."""
    url = f"{api}/repos/{REPOSITORY}/commits/main"
    try:
        head = json.loads(fetcher.get_bytes(url))
        commit, date = str(head["sha"]), str(head["commit"]["committer"]["date"])[:10]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"`{url}` does not answer with a commit: {error!r}") from error
    for flavour, (freeze_file, info_file) in FILES.items():
        base = f"{raw}/{REPOSITORY}/{commit}"
        info = fetcher.get_bytes(f"{base}/{info_file}").decode()
        python = re.search(r"^Python (\S+)$", info, re.MULTILINE)
        if python is None:
            raise InvalidInput(f"`{base}/{info_file}` names no Python")
        freeze = parse_freeze(fetcher.get_bytes(f"{base}/{freeze_file}").decode(), freeze_file)
        yield Image(flavour=flavour, commit=commit, date=date, python=python[1], freeze=freeze)


def newest_recording(flavour: str) -> Recording:
    """Return the newest Colab image of that kind which is recorded."""
    names = [one.name for one in runtimes() if one.host is Host.COLAB and one.flavour == flavour]
    return load_recording(names[-1])


def is_recorded(image: Image, recording: Recording) -> bool:
    """Whether *recording* has what *image* has."""
    there = {item.installed.name: item.url or item.installed.version for item in recording.distributions}
    here = {line.name: line.url or line.version for line in image.freeze.lines}
    return here == there and image.python == recording.about.python_version


def label_of(image: Image) -> str:
    """Return year and month; with the day where that month has a runtime already."""
    month = image.date[:7].replace("-", ".")
    taken = {one.name for one in runtimes()}
    return image.date.replace("-", ".") if f"colab-{month}-{image.flavour}" in taken else month


def record(image: Image, before: Recording, into: Path, releases: Releases | None, index: str) -> str:
    """Write the document of *image*, and return in Markdown what changed from *before*."""
    label = label_of(image)
    about = RecordedRuntime(
        name=f"colab-{label}-{image.flavour}",
        label=label,
        flavour=image.flavour,
        python_version=image.python,
        date=image.date,
        distributions=0,
        unknown=0,
        commit=image.commit,
        source=f"{REPOSITORY} {image.commit[:7]} of {image.date}",
    )
    recordings = [load_recording(one.name) for one in runtimes()]
    imported = import_freeze(image.freeze, about, recordings, releases, Reporter())
    path = into / f"{about.name}.json"
    save_recording(imported.recording, path)
    diff = compared(before.about.name, str(path), os.environ)
    text = to_text(diff_document(diff), width=100, verbose=True)
    told = [*import_notes(imported, index), *DRIVER[image.flavour]]
    notes = "\n".join(f"- {note}" for note in told)
    return f"## {about.name}\n\n{notes}\n\n```text\n{text}\n```\n"


def main() -> int:
    """Read the command line, write what is new, and print what changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--into", type=Path, default=INTO)
    parser.add_argument("--api", default=API, help="in place of GitHub's own")
    parser.add_argument("--raw", default=RAW, help="where files of a repository at a commit are served")
    parser.add_argument("--offline", action="store_true", help="ask no index for requirements")
    arguments = parser.parse_args()
    index = read_settings(os.environ).default_index
    fetcher = Fetcher(os.environ)
    try:
        for image in list(newest_images(fetcher, arguments.api.rstrip("/"), arguments.raw.rstrip("/"))):
            before = newest_recording(image.flavour)
            if not is_recorded(image, before):
                environment = environment_for(image.python, PLATFORM)
                releases = None if arguments.offline else Releases(fetcher, environment, index)
                print(record(image, before, arguments.into, releases, redacted(index)))
    except ColablockError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
