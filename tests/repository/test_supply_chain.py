"""What a release depends on: actions by commit, requirements by hash, and where code of others may run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: (?P<action>[\w./-]+)@(?P<commit>[0-9a-f]{40}) # (?P<version>v\d+\.\d+\.\d+)$")
INSTALLS = re.compile(r"\b(pip|uv|pipx|npm|apt-get|curl|wget)\b|\bpython\b|\.ci/run")
WRITES = {"contents": "write", "pull-requests": "write", "id-token": "write", "attestations": "write"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs() -> list[Any]:
    found = [(path.stem, name, job) for path in WORKFLOWS for name, job in load(path)["jobs"].items()]
    return [pytest.param(job, id=f"{workflow}-{name}") for workflow, name, job in found]


def test_actions_are_pinned_by_commit_and_each_has_one() -> None:
    pins: dict[str, set[tuple[str, str]]] = {}
    for path in WORKFLOWS:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "uses:" in line:
                match = PINNED.search(line)
                assert match, f"{path.name}: {line}"
                pins.setdefault(match["action"], set()).add((match["commit"], match["version"]))
    assert all(len(found) == 1 for found in pins.values()), pins


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_no_rights_but_those_of_its_jobs(path: Path) -> None:
    assert load(path)["permissions"] == {}


@pytest.mark.parametrize("job", jobs())
def test_a_job_that_may_write_runs_no_code_of_others(job: Any) -> None:
    assert "permissions" in job
    assert "timeout-minutes" in job
    runs = [step["run"] for step in job["steps"] if "run" in step]
    if set(job["permissions"].values()) != {"read"}:
        assert job["permissions"].items() <= WRITES.items()
        assert not [run for run in runs if INSTALLS.search(run)]
    for step in job["steps"]:
        assert "${{" not in step.get("run", ""), "a value in a script is run as code"
        if "checkout@" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
    for line in "\n".join(runs).splitlines():
        if "pip install" in line:
            assert "--require-hashes" in line or "--no-index" in line


def test_only_the_published_files_get_an_identity() -> None:
    release = load(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    named = {name for name, job in release.items() if "id-token" in job["permissions"]}
    assert named == {"attest", "publish"}
    assert release["publish"]["environment"]["name"] == "pypi"
    assert set(release["publish"]["needs"]) == {"attest", "test"}


@pytest.mark.parametrize("name", ["release", "runtime"])
def test_requirements_of_the_workflows_are_pinned_by_hash(name: str) -> None:
    text = (ROOT / ".github" / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = [part for part in re.split(r"\n(?=\S)", text.replace("\\\n", " ")) if part.strip()]
    assert entries
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+.*?(\s+--hash=sha256:[0-9a-f]{64})+", entry, re.DOTALL), entry
    assert "://" not in text  # no index of one machine
    listed = {canonicalize_name(re.split(r"==", entry)[0]) for entry in entries}
    if name == "runtime":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        required = [Requirement(line) for line in project["dependencies"]]
        assert {canonicalize_name(one.name) for one in required} <= listed
        for one in required:
            (pin,) = re.findall(rf"^{re.escape(one.name)}==(\S+)", text, re.MULTILINE | re.IGNORECASE)
            assert one.specifier.contains(pin), f"run `nox -s pins`: {one} does not allow {pin}"
    else:
        asked = (ROOT / ".github" / "requirements" / "release.in").read_text(encoding="utf-8")
        assert {line for line in asked.splitlines() if not line.startswith("#")} <= listed


def test_vendored_projects_are_pinned_by_hash() -> None:
    text = (ROOT / "colablock" / "_vendor" / "vendor.txt").read_text(encoding="utf-8")
    for line in text.replace("\\\n", " ").splitlines():
        assert re.fullmatch(r"[\w.-]+==\S+(\s+--hash=sha256:[0-9a-f]{64}){2}", line.strip())


def test_the_files_of_the_recording_are_judged_before_they_are_committed(tmp_path: Path) -> None:
    """The artifact comes from a job that ran code of others: only documents of runtimes are taken."""
    workflow = load(ROOT / ".github" / "workflows" / "record-runtime.yml")
    script = workflow["jobs"]["propose"]["steps"][-1]["run"]
    (pattern,) = re.findall(r"! -regex '(.*)'\)", script)
    names = {"body.md": True, "colab-2026.08-gpu.json": True}
    names |= {"colab-2026.08-gpu.json.py": False, "x.json": False, "colab-$(id)-gpu.json": False}
    names |= {"colab-2026.08-gpu json": False, ".git": False}
    for name in names:
        (tmp_path / name).write_text("")
    command = ["find", ".", "-mindepth", "1", "!", "-regex", pattern]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    assert {name for name, good in names.items() if not good} == {name[2:] for name in found if name}
