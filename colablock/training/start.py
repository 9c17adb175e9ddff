"""The hand-off: what is asked for → tokens, decisions, and a process that trains."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colablock._common.fs import flock, write_atomic
from colablock._common.process import ChildFailed, run_child
from colablock._common.reporter import Reporter
from colablock.environment.accelerator import Accelerator
from colablock.environment.target_script import ask_target
from colablock.errors import InvalidInput, Refused
from colablock.training.preflight.checks import GQA_WORKAROUND
from colablock.training.preflight.facts import ProvenEnvironment
from colablock.training.preflight.precision import Precision, has_bf16
from colablock.training.runs.config import TrainConfig, config_to
from colablock.training.runs.folder import RunFolder, RunRecord, list_runs, register
from colablock.training.runs.launch import (
    accelerate_config,
    launch_command,
    launch_environment,
    ranks_of,
    start,
    threads_for,
    write_job,
)
from colablock.training.runs.runners import RunDecisions, runner_of
from colablock.training.scripts import FOLDER as SCRIPTS

__all__ = [
    "Job",
    "begin",
    "default_folder",
    "git_revision",
    "local_path",
    "lock_run_folder",
    "move_aside",
    "prepare_data",
    "unused_run_id",
    "workarounds_for",
]

_SAVE_SECONDS = 600.0  # between two checkpoints: what a cut runtime loses at most
_NEVER = 1_000_000_000  # steps: the clock decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One start: the config and everything that was decided about it.

    *evaluate* is how many rows the fixed evaluation loss is taken over, before and after.
    """

    proven: ProvenEnvironment
    config: TrainConfig
    runner: str
    precision: Precision
    workarounds: tuple[str, ...] = ()
    attention: str = "sdpa"
    accelerator: Accelerator = field(default_factory=Accelerator)
    cards: tuple[int, ...] | None = None  # those it may see; None: as the variables say
    processes: int = 1
    resume: Path | None = None
    evaluate: int = 0
    offline: bool = False
    estimate: int | None = None
    data_digest: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    launch_arguments: tuple[str, ...] = ()


def workarounds_for(proven: ProvenEnvironment, runner: str, accelerator: Accelerator) -> tuple[str, ...]:
    """Return the named corrections of a run: those of the matrix for its runner, and those of the card."""
    of_matrix = proven.workarounds if runner == proven.runner else ()
    is_old = not all(has_bf16(device.capability) for device in accelerator.devices)
    return (*of_matrix, GQA_WORKAROUND) if is_old else of_matrix


def default_folder(config: TrainConfig) -> Path:
    """Return where a run goes: by the names of model and data where nobody says, to be found again."""
    if config.output_dir:
        return Path(config.output_dir).expanduser().absolute()
    model = Path(config.base_model.rstrip("/")).name
    data = Path(config.datasets[0].path.rstrip("/")).name.partition(".")[0]
    return (Path("outputs") / f"{model}-{data}").absolute()


def unused_run_id(home: Path, folder: Path) -> str:
    """Return the name of the run in *folder*: the folder's own, with a number where another run has it."""
    known = dict(list_runs(home))
    name, number = folder.name, 1
    while name in known and known[name].path != folder and known[name].path.exists():
        number += 1
        name = f"{folder.name}-{number}"
    return name


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Hold the folder of a run while it is started.  Raises Refused where another call does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InvalidInput(f"the output folder `{folder}` cannot be used: {error.strerror}") from error
    try:
        with suppress(OSError):  # a file system without locks, as NFS is for folders
            if not flock(descriptor, wait=False):
                raise Refused(f"another call is starting a run in `{folder}`")
        yield
    finally:
        os.close(descriptor)


def move_aside(folder: Path) -> Path | None:
    """Give the name of *folder* free for a fresh run; return where what was there is now, None if nothing."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def prepare_data(
    job: Job,
    folder: RunFolder,
    environ: Mapping[str, str],
    reporter: Reporter,
    *,
    toy: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Make the tokens of *job* and return what is to be said of them; see ``scripts/prepare.py``.

    Those that stand are taken where they were made of the same.  *toy* has
    a tiny model made before them, by the same process.  Raises InvalidInput for
    data that cannot be trained on, Unmet where making them failed.
    """
    asked = _data_of(job)
    made_of = hashlib.sha256(json.dumps([asked, job.data_digest]).encode()).hexdigest()
    result_file = folder.data / "result.json"
    if result_file.is_file():
        known: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
        if known.get("made_of") == made_of:
            return known
    reporter.stage(
        "Reading the data and making tokens" if toy is None else "Making a tiny model and its tokens"
    )
    shutil.rmtree(folder.data, ignore_errors=True)
    environment = launch_environment(
        job.proven.python, environ, reports=False, secrets=job.secrets, offline=job.offline
    ) | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    result: dict[str, Any] = ask_target(
        job.proven.python,
        SCRIPTS / "prepare.py",
        {"toy": toy, "data": {**asked, "folder": str(folder.data.absolute())}},
        doing="prepare the data" if toy is None else "make a tiny model and its tokens",
        environ=environment,
        timeout=timeout,
    )
    result["made_of"] = made_of
    write_atomic(result_file, json.dumps(result).encode())
    return result


def _data_of(job: Job) -> dict[str, Any]:
    """Return what the tokens are made of."""
    config = job.config
    sources = [
        {
            "path": local_path(one.path),
            "type": one.form.value if one.form else None,
            "split": one.split,
            "name": one.name,
        }
        for one in config.datasets
    ]
    return {
        "base_model": config.base_model,
        "revision": config.revision,
        "chat_template": config.chat_template,
        "datasets": sources,
        "sequence_len": config.sequence_len,
        "train_on_inputs": config.train_on_inputs,
        "val_set_size": config.val_set_size if runner_of(job.runner).splits else 0,
        "seed": config.seed,
        "evaluate": job.evaluate,
    }


def begin(
    job: Job,
    prepared: Mapping[str, Any],
    folder: RunFolder,
    *,
    home: Path,
    environ: Mapping[str, str],
    revision: str | None = None,
) -> RunRecord:
    """Start *job* on the tokens that were *prepared* and return its record; the process goes on by itself."""
    config, precision = job.config, job.precision
    runner = runner_of(job.runner)
    rows = int(prepared["train_rows"])
    ranks = ranks_of(job.processes, job.launch_arguments)
    a_step = config.micro_batch_size * config.gradient_accumulation_steps * ranks.total
    total = config.max_steps or max(1, math.ceil(config.num_epochs * math.ceil(rows / a_step)))
    has_card = job.accelerator.kind == "cuda"
    decided = RunDecisions(
        precision=precision.name,
        dtype=precision.compute,
        attention=job.attention,
        has_card=has_card,
        warmup_steps=math.ceil(config.warmup_ratio * total),
        total_steps=total,
        has_eval=bool(config.val_set_size),
        pads_with_eos=prepared["pad_token"] is None,
        eos_token=prepared["eos_token"],
    )
    entry = runner.write(config, decided, folder)
    run_id = unused_run_id(home, folder.path)
    environment = launch_environment(
        job.proven.python,
        environ,
        reports=bool(config.report_to),
        has_card=has_card,
        cards=job.cards,
        secrets=job.secrets,
        offline=job.offline,
    )
    write_job(
        folder,
        {
            "schema": 1,
            "id": run_id,
            "entry": entry.entry,
            "arguments": entry.arguments,
            "mends": job.workarounds,
            "lock": job.proven.lock,
            "cast_trainable": precision.cast_trainable,
            "save_seconds": _SAVE_SECONDS if config.save_steps is None else float(_NEVER),
            "save_steps": config.save_steps or _NEVER,
            "resume": str(job.resume) if job.resume else None,
            "evaluate": prepared.get("evaluate", []),
            "config": config_to(config),
            "precision": decided.precision,
            "dtype": decided.dtype,
            "attention": decided.attention,
            "warmup_steps": decided.warmup_steps,
            "eval_steps": config.eval_steps or decided.eval_steps,
        },
        accelerate_config(precision=decided.precision, processes=ranks.total, has_card=has_card),
    )
    command = launch_command(
        job.proven.python,
        folder,
        precision=decided.precision,
        processes=job.processes,
        has_card=has_card,
        threads=threads_for(ranks.here),
        extra=job.launch_arguments,
    )
    record = RunRecord(
        id=run_id,
        matrix=job.proven.matrix,
        runner=job.runner,
        python=job.proven.python,
        lock=job.proven.lock,
        config=config_to(config),
        forms=tuple(prepared["forms"]),
        config_digest=config.digest(),
        data_digest=job.data_digest,
        model=config.base_model,
        workarounds=job.workarounds,
        precision=decided.precision,
        processes=ranks.total,
        runtime=environ.get("COLAB_RELEASE_TAG") or environ.get("KAGGLE_KERNEL_RUN_TYPE"),
        cards=tuple(device.name for device in job.accelerator.devices),
        driver=job.accelerator.driver,
        seed=config.seed,
        git_revision=revision,
        versions=dict(job.proven.versions),
        started=time.time(),
        resumed_from=job.resume.name if job.resume else None,
        total_steps=total,
        command=tuple(command),
        estimate=job.estimate,
    )
    folder.write_record(record)  # before the start: a run that is killed at once is known
    started = start(command, folder, environment)
    record = replace(record, process=started.process, process_started=started.process_started)
    folder.write_record(record)
    register(home, run_id, folder.path)
    return record


def git_revision(folder: Path, environ: Mapping[str, str]) -> str | None:
    """Return the commit of the clone *folder*, with ``+`` where something is changed; None for no clone."""
    git = shutil.which("git", path=environ.get("PATH"))
    if git is None:
        return None
    with suppress(ChildFailed):

        def ask(*words: str) -> str:
            return run_child([git, "-C", str(folder), *words], environ=environ, timeout=10).text.strip()

        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "-uno") else "")
    return None


def local_path(path: str) -> str:
    """Return a path that exists as an absolute one, since the run has its own folder; else the hub's name."""
    found = Path(path).expanduser()
    return str(found.absolute()) if found.exists() else path
