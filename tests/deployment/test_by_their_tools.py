"""Exports judged by the tools that read them: hadolint, the parser of BuildKit, shellcheck, SkyPilot.

``nox -s exports`` installs these tools.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.deployment import test_odd_names as names
from tests.deployment.odd_names import ODD_NAMES
from tests.support.dockerfiles import instructions
from tests.support.paths import ROOT

GOLDEN = ROOT / "tests" / "data" / "deployment"
TARGET = ("--python-version", "3.12", "--platform", "manylinux_2_35_x86_64")
NAMES = {"dockerfile": "Dockerfile", "skypilot": "task.yaml", "slurm": "job.sh"}

# In a process of its own: it takes seconds to import.
READ_TASK = """
import json, sys, sky
for path in sys.argv[1:]:
    task = sky.Task.from_yaml(path)
    spot = [[one.use_spot, one.job_recovery["strategy"]] for one in task.resources]
    print(json.dumps({"spot": spot, "envs": task.envs, "setup": task.setup, "run": task.run}))
"""

pytestmark = pytest.mark.skipif(find_spec("sky") is None, reason="`nox -s exports` installs SkyPilot")


@pytest.fixture(scope="module", params=["small", "shipped"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the three exports: of a small lock, and of a shipped matrix."""
    if request.param == "small":
        return GOLDEN
    folder = tmp_path_factory.mktemp("deploy")
    for form, name in NAMES.items():
        command = (
            "-m",
            "colablock",
            "export",
            "qlora-2026",
            *TARGET,
            "--format",
            form,
            "-o",
            str(folder / name),
        )
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    return folder


def accepts(*command: str) -> None:
    """Run a linter beside this interpreter; it has to find nothing."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_hadolint_accepts_the_dockerfile(exported: Path) -> None:
    accepts("hadolint", str(exported / "Dockerfile"))


def test_buildkit_reads_the_dockerfile_as_the_tests_do(exported: Path) -> None:
    dockerfile: Any = pytest.importorskip("dockerfile")
    found = dockerfile.parse_file(str(exported / "Dockerfile"))
    ours = instructions((exported / "Dockerfile").read_text())
    assert [one.cmd for one in found] == [one.word for one in ours]
    assert [one.heredocs[0].content if one.heredocs else "" for one in found] == [
        one.document for one in ours
    ]
    mounts = [flag for one in found for flag in one.flags if flag.startswith("--mount=type=cache,")]
    assert len(mounts) == 1


def test_buildkit_and_hadolint_read_the_names_of_folders(tmp_path: Path) -> None:
    """`test_odd_names.py` checks which folders the words name."""
    dockerfile: Any = pytest.importorskip("dockerfile")
    (file := tmp_path / "Dockerfile").write_text(names.dockerfile(*ODD_NAMES))
    copied = [one for one in dockerfile.parse_file(str(file)) if one.cmd == "COPY" and not one.heredocs]
    assert all((one.json, len(one.value), one.flags) == (True, 2, ()) for one in copied)
    ours = [one.value for one in instructions(file.read_text()) if one.value.startswith("[")]
    assert [list(one.value) for one in copied] == list(map(json.loads, ours))
    accepts("hadolint", str(file))


def test_skypilot_and_shellcheck_read_the_names_of_files(tmp_path: Path) -> None:
    tasks = [tmp_path / f"{at}.yaml" for at in range(len(ODD_NAMES))]
    for file, name in zip(tasks, ODD_NAMES, strict=True):
        file.write_text(names.task(name))
        file.with_suffix(".sh").write_text(names.job(name))
    command = [sys.executable, "-c", READ_TASK, *map(str, tasks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read = map(json.loads, done.stdout.splitlines()[-len(ODD_NAMES) :])
    assert [shlex.split(one["setup"].splitlines()[-1])[2] for one in read] == list(ODD_NAMES)
    # Its style is that of people: `'$HOME'` may be a slip, but not here.
    accepts("shellcheck", "--severity=error", *(str(file.with_suffix(".sh")) for file in tasks))


def test_shellcheck_accepts_the_batch_script(exported: Path) -> None:
    accepts("shellcheck", str(exported / "job.sh"))


def test_skypilot_accepts_the_task(exported: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", READ_TASK, str(exported / "task.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout.splitlines()[-1])
    assert {tuple(one) for one in task["spot"]} == {(True, "EAGER_NEXT_REGION")}
    assert set(task["envs"]) == {"COLABLOCK", "CONFIG", "MIRROR"}
    (script := tmp_path / "task.sh").write_text(f"#!/bin/bash\n{task['setup']}\n{task['run']}\n")
    accepts("shellcheck", str(script))
    # Without a mirror the task stops before it installs anything.
    shell = ["/bin/bash", "-c", task["setup"]]
    done = subprocess.run(shell, env={"MIRROR": ""}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "name a mirror" in done.stderr
