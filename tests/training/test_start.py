from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock.environment.accelerator import Accelerator, Device, declared
from colablock.training.git import git_revision
from colablock.training.preflight.cards import GQA_WORKAROUND
from colablock.training.preflight.facts import ProvenEnvironment
from colablock.training.prepared_data import local_path
from colablock.training.start import (
    LOCAL_FILES_WORKAROUND,
    steps_of,
    workarounds_for,
)
from colablock.verification.launch import Ranks
from tests.support.training_stack import Bench, end_of, read_record

WITH_WORKAROUND = ProvenEnvironment(
    matrix="m", python="p", lock="l", runner="axolotl", workarounds=("load-in-4bit-twice",)
)


@pytest.mark.parametrize(
    ("runner", "cards", "workarounds"),
    [
        ("axolotl", [], ("load-in-4bit-twice",)),
        ("axolotl", ["A100"], ("load-in-4bit-twice",)),
        ("axolotl", ["T4"], ("load-in-4bit-twice", GQA_WORKAROUND)),
        ("trl", ["A100"], ()),  # the matrix's mends are for its own runner
        ("trl", ["T4"], (GQA_WORKAROUND,)),
        ("trl", ["A100", "T4"], (GQA_WORKAROUND,)),
        ("trl", ["G4"], ()),  # 12.0 is no less than 8.0
    ],
)
def test_workarounds_come_from_the_matrix_and_the_card(
    runner: str, cards: list[str], workarounds: tuple[str, ...]
) -> None:
    devices = tuple(device for name in cards for device in declared(name).devices)
    accelerator = Accelerator(kind="cuda" if cards else "none", devices=devices)
    assert workarounds_for(WITH_WORKAROUND, runner, accelerator) == workarounds


@pytest.mark.parametrize(
    ("datasets", "fsspec", "is_needed"),
    [
        ("2.14.4", "2025.3.2", True),  # the image 2025.07
        ("2.14.4", "2023.10.0", True),
        ("2.14.4", "2023.9.2", False),
        ("2.15.0", "2023.10.0", False),
        ("4.0.0", "2025.3.0", False),
        ("2.14.4", None, False),
        (None, "2025.3.2", False),
        ("unknown", "2025.3.2", False),
    ],
)
def test_an_old_datasets_beside_a_newer_fsspec_needs_a_workaround(
    datasets: str | None, fsspec: str | None, *, is_needed: bool
) -> None:
    stack = {name: text for name, text in (("datasets", datasets), ("fsspec", fsspec)) if text}
    found = workarounds_for(replace(WITH_WORKAROUND, versions=stack), "trl", Accelerator())
    assert found == ((LOCAL_FILES_WORKAROUND,) if is_needed else ())


def test_a_card_of_unknown_capability_gets_the_workaround_of_an_old_one() -> None:
    unknown = Device(name="?", compute_capability="", memory=1)
    accelerator = Accelerator(kind="cuda", devices=(unknown,))
    assert workarounds_for(WITH_WORKAROUND, "trl", accelerator) == (GQA_WORKAROUND,)


def test_the_revision_is_the_commit_of_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = shutil.which("git") or pytest.skip("there is no git here")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    environ = dict(os.environ)

    def run(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run([git, *identity, *words], cwd=tmp_path, check=True)

    assert git_revision(tmp_path, environ) is None
    run("init", "-q")
    (tmp_path / "a").write_text("1")
    assert git_revision(tmp_path, environ) is None  # nothing is committed
    run("add", "a")
    run("commit", "-q", "-m", "first")
    (tmp_path / "untracked").write_text("")
    clean = git_revision(tmp_path, environ)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert git_revision(tmp_path, environ) == f"{clean}+"
    assert git_revision(tmp_path, {"PATH": "/none"}) is None


def test_reading_the_revision_runs_nothing_of_the_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = shutil.which("git") or pytest.skip("there is no git here")
    clone, trap, bad = tmp_path / "clone", tmp_path / "trap", tmp_path / "bad"
    bad.write_text(f"#!/bin/sh\necho $0 >> '{trap}'\n")
    bad.chmod(0o755)
    clone.mkdir()

    def run(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
        subprocess.run([git, *identity, "-C", str(clone), *words], check=True)

    run("init", "-q")
    for name in ("a", "b"):
        (clone / name).write_text("1")
    (clone / ".gitattributes").write_text("a filter=evil\nb filter=x=y.z diff=evil\n")
    run("add", ".")
    run("commit", "-q", "-m", "first")
    for key in (
        "core.fsmonitor",
        "core.sshCommand",
        "core.pager",
        "credential.helper",
        "diff.evil.textconv",
        "diff.evil.command",
        "diff.external",
        "filter.evil.clean",
        "filter.evil.process",
        "filter.x=y.z.clean",
        "filter.x=y.z.smudge",
    ):
        run("config", key, str(bad))
    run("config", "filter.evil.required", "true")
    included = tmp_path / "included"
    included.write_text(f'[filter "x=y.z"]\nprocess = {bad}\n')
    run("config", "include.path", str(included))
    for hook in ("post-index-change", "pre-commit", "fsmonitor-watchman", "post-checkout"):
        (clone / ".git/hooks" / hook).write_text(bad.read_text())
        (clone / ".git/hooks" / hook).chmod(0o755)
    monkeypatch.chdir(clone)  # `git` is in the working folder as well
    bad.rename(clone / "git")
    shutil.copy(clone / "git", bad)
    assert not trap.exists()
    for name in ("a", "b"):
        (clone / name).write_text("2")
    trapped = {"GIT_SSH_COMMAND": str(bad), "GIT_PAGER": str(bad), "GIT_EXTERNAL_DIFF": str(bad)}
    found = git_revision(clone, {**os.environ, **trapped, "PATH": f".:{os.environ['PATH']}"})
    assert found is not None
    assert found.endswith("+")
    assert not trap.exists()


def test_only_existing_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert local_path("model") == str(tmp_path / "model")
    assert local_path("./model") == str(tmp_path / "model")
    assert local_path("someone/model") == "someone/model"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/model") == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("keys", "rows", "steps"),
    [
        ({}, 16, 6),  # two at a time, of two batches, in four processes
        ({"context_parallel_size": 2}, 8, 12),
        ({"sequence_parallel_degree": 4}, 4, 24),
        ({"context_parallel_size": 2, "tensor_parallel_size": 2}, 4, 24),
        ({"context_parallel_size": None, "tensor_parallel_size": 1}, 16, 6),
    ],
)
def test_processes_that_share_their_rows_count_once(
    bench: Bench, keys: dict[str, Any], rows: int, steps: int
) -> None:
    """axolotl counts the steps as well."""
    job = bench.job(config=bench.config(max_steps=None, num_epochs=1, extra=keys))
    assert steps_of(job, {"train_rows": 96}, Ranks(total=4)) == (steps, rows)


def test_the_job_file_has_everything_for_the_shim(bench: Bench) -> None:
    job = bench.job(config=bench.config(max_steps=None, num_epochs=3, warmup_ratio=0.1), evaluate=2)
    folder = bench.begin(job)
    told = json.loads(folder.job_file.read_text())
    assert {key: told[key] for key in told if key not in ("config", "entry", "arguments", "evaluate")} == {
        "schema": 1,
        "id": "run",
        "mends": [],
        "lock": "l" * 64,
        "cast_trainable": True,
        "save_seconds": 600.0,
        "save_steps": 1_000_000_000,
        "resume": None,
        "precision": "fp32",
        "dtype": "float32",
        "attention": "sdpa",
        "warmup_steps": 1,
        "eval_steps": 0,
        "data": job.data_digest,
        "rows": 12,
        "processes": 1,
    }
    assert len(told["evaluate"]) == 2
    assert read_record(folder).total_steps == 9  # 12 rows, 4 a step, 3 times
    end_of(folder)
    assert folder.metrics()[-1]["step"] == 9
    bench.begin(bench.job(config=bench.config(save_steps=3, max_steps=3)))
    told = json.loads(folder.job_file.read_text())
    assert (told["save_steps"], told["save_seconds"]) == (3, 1e9)  # the user's own interval, and no clock
    end_of(folder)


@pytest.mark.parametrize(
    ("changes", "recomputes"),
    [({}, True), ({"lora_dropout": 0.1}, False), ({"gradient_checkpointing": False}, False)],
)
def test_a_sharded_run_is_launched_with_every_argument(
    bench: Bench, changes: dict[str, Any], recomputes: bool
) -> None:
    shards = {"reshard_after_forward": False, "transformer_layer_cls_to_wrap": "OneLayer, OtherLayer,"}
    config = bench.config(fsdp_config=shards, fsdp_version=2, **changes)
    folder = bench.begin(bench.job(config=config, processes=2, is_sharded=True))
    end_of(folder)  # the stand-in of accelerate does not shard
    record, job = read_record(folder), json.loads(folder.job_file.read_text())
    assert (record.is_sharded, record.processes) == (True, 2)
    command = " ".join(record.command)
    assert "--use_fsdp --fsdp_version 2" in command
    assert "--fsdp_transformer_layer_cls_to_wrap OneLayer,OtherLayer" in command
    assert "--fsdp_reshard_after_forward false" in command
    assert f"--fsdp_activation_checkpointing {str(recomputes).lower()}" in command
    assert "--multi_gpu" not in command
    assert (job["shards"], job["shards_recompute"]) == (True, recomputes)
    assert job["mends"] == ["fsdp-on-cpu"]
    assert (folder.path / "accelerate.yaml").read_text().count("FSDP") == 1


def test_axolotl_shards_by_itself(bench: Bench) -> None:
    job = bench.job(runner="axolotl", processes=2, is_sharded=True)
    folder = bench.begin(job)
    end_of(folder)
    assert "--use_fsdp" not in read_record(folder).command
    assert "fsdp_version: 2" in folder.config_file.read_text()
    assert json.loads(folder.job_file.read_text())["shards"] is True
