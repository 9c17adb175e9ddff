"""Names of users in exported files: each tool has to read the name that was given.

`test_by_their_tools.py` has the tools themselves read them.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from colablock.deployment.dockerfile import dockerfile_text
from colablock.deployment.skypilot import skypilot_text
from colablock.deployment.slurm_job import BatchJob, batch_script
from colablock.deployment.target import target_of
from colablock.errors import InvalidInput
from colablock.lockfile.export import Format, export_text
from colablock.lockfile.pylock import read_lock
from tests.deployment.odd_names import HIDDEN, ODD_NAMES
from tests.support.dockerfiles import instructions
from tests.support.paths import ROOT
from tests.support.slurm import IMPATIENT

TINY = ROOT / "tests" / "data" / "locks" / "pylock.tiny--py312.toml"


def dockerfile(*names: str) -> str:
    return dockerfile_text(read_lock(TINY), source="pylock.toml", wheels=names)


def task(name: str) -> str:
    return skypilot_text(target_of(read_lock(TINY)), ["# a task"], matrix=name, lock=name, file=name)


def job(name: str) -> str:
    command = ["printf", "%s\\n", name]
    options = {"chdir": name, "comment": name}
    return batch_script(
        BatchJob(name=name, command=command, run=name, log=name, options=options, setup=[["true", name]])
    )


def source_of(copy: str) -> str:
    """Return the one path that the first word of a COPY matches, as BuildKit understands it."""
    word, _ = json.loads(copy)
    pattern = re.sub(r"\\(.)", r"\1", word)  # outside of quotes of a shell
    assert not re.search(r"(?<!\\)[$\"']", word)
    plain = re.sub(r"\[\\(.)\]", "", pattern)
    assert not set(plain) & set("*?[\\^"), pattern
    assert plain.strip() == plain
    return re.sub(r"\[\\(.)\]", r"\1", pattern)


def options_of(script: str) -> dict[str, str]:
    """Return the options of a batch script as sbatch reads them."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            name, _, value = read_word(line.removeprefix("#SBATCH ")).partition("=")
            found[name.removeprefix("--")] = value
    return found


def read_word(text: str) -> str:
    """Return the first word of a line as `sbatch` does: a backslash escapes in quotes, too."""
    found, quote, at = "", "", 0
    while at < len(text) and (quote or not text[at].isspace()):
        if text[at] == "\\":
            at += 1
            found += text[at]
        elif quote and text[at] == quote:
            quote = ""
        elif not quote and text[at] in "'\"":
            quote = text[at]
        elif not quote and text[at] == "#":
            break
        else:
            found += text[at]
        at += 1
    assert text[at:].strip() == "", text
    return found


def test_an_image_copies_the_folders_that_were_named() -> None:
    copied = [one for one in instructions(dockerfile(*ODD_NAMES)) if one.value.startswith("[")]
    assert [source_of(one.value) for one in copied] == list(ODD_NAMES)
    targets = [json.loads(one.value)[1] for one in copied]
    assert targets[:2] == ["wheels/", "wheels-2/"]
    (pins,) = (one.document for one in instructions(dockerfile(*ODD_NAMES)) if one.document)
    links = [line for line in pins.splitlines() if line.startswith("--find-links")]
    assert links == [f"--find-links {target.rstrip('/')}" for target in targets]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_task_names_the_files_that_were_given(name: str) -> None:
    text = task(name)
    read = yaml.safe_load(text)
    words = shlex.split(read["setup"].splitlines()[-1])
    assert words[1:5] == ["apply", name, "--lock", name]
    assert shlex.split(read["run"].splitlines()[-1])[1:3] == ["train", name]
    (launch,) = (line for line in text.splitlines() if "sky jobs launch" in line)
    assert shlex.split(launch.removeprefix("#"))[3] == name


def test_a_job_has_the_names_that_were_given(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        options = options_of(job(name))
        assert [options[key] for key in ("output", "chdir", "comment")] == [name] * 3
        assert re.fullmatch(r"[A-Za-z0-9._-]+", options["job-name"])
    scripts = "\n".join(f"( {job(name)} )" for name in ODD_NAMES)
    done = subprocess.run(
        ["/bin/bash", "-s"],
        input=IMPATIENT + scripts,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == list(ODD_NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", HIDDEN)
def test_names_that_hide_text_are_refused(name: str) -> None:
    for write in (dockerfile, task, job):
        with pytest.raises(InvalidInput, match="has characters that are not shown"):
            write(name)


@pytest.mark.parametrize("name", ["a #b", "${HOME}", "x ${A} y"])
def test_requirements_do_not_name_folders_that_pip_would_change(name: str) -> None:
    with pytest.raises(InvalidInput, match="a requirements file cannot name the folder"):
        export_text(read_lock(TINY), Format.REQUIREMENTS, source="l", find_links=[name])


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [("tiny", "tiny"), ("A_b.C", "a-b-c"), ("7b", "task-7b"), ("a--b..c-", "a-b-c"), ("7", "task-7")],
)
def test_a_task_has_a_name_that_skypilot_takes(matrix: str, expected: str) -> None:
    lock = read_lock(TINY).to_dict()
    lock["tool"]["colablock"]["matrix"] = matrix
    target = target_of(type(read_lock(TINY)).from_dict(lock))
    text = skypilot_text(target, ["#"], matrix="m", lock="l", file="f")
    assert yaml.safe_load(text)["name"] == expected
