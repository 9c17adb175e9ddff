"""Start a run: prepare the data, write the job, launch the process."""

from __future__ import annotations

import math
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.environment.accelerator import Accelerator
from colablock.errors import interrupted_as
from colablock.training.preflight.batch_size import ranks_with_rows
from colablock.training.preflight.cards import GQA_WORKAROUND
from colablock.training.preflight.facts import Precision, ProvenEnvironment, has_bf16
from colablock.training.prepared_data import DataJob, bytecode_folder
from colablock.training.runs.config import TrainConfig, config_to
from colablock.training.runs.folder import RunFolder, RunRecord, register
from colablock.training.runs.launch import (
    TASK,
    EarlyLauncher,
    accelerate_config,
    launch_command,
    launch_environment,
    ranks_of,
    start_early,
    start_process,
    with_meeting_point,
    write_job,
)
from colablock.training.runs.output_folder import unused_run_id
from colablock.training.runs.progress import attach_hint
from colablock.training.runs.runners import Entry, RunDecisions, runner_of
from colablock.training.runs.sharding import sharding_for
from colablock.verification.launch import Ranks, Sharding

__all__ = [
    "LOCAL_FILES_WORKAROUND",
    "Job",
    "start_early_for",
    "start_job",
    "steps_of",
    "workarounds_for",
]

#: The workaround that has an older datasets read its own files; an image has it beside a newer fsspec.
LOCAL_FILES_WORKAROUND = "datasets-local-files"
_SAVE_SECONDS = 600.0  # between two checkpoints: the most that a run loses when its runtime is cut off
_EVALUATIONS = 10  # in all, by default
_NEVER = 1_000_000_000  # steps: checkpoints are due by time, not by step


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(DataJob):
    """One start of a run: the config, and everything that was decided about it.

    *cards* are the indices of the cards that the run may see; None leaves CUDA_VISIBLE_DEVICES
    as it is.  With *is_sharded* the processes share one model.  *config_digest* is that of the config as
    it was given.  *estimate* is in bytes.
    *seconds* are those from the call to the start, by what they went to.
    """

    precision: Precision
    workarounds: tuple[str, ...] = ()
    attention: str = "sdpa"
    accelerator: Accelerator = field(default_factory=Accelerator)
    cards: tuple[int, ...] | None = None
    processes: int = 1
    is_sharded: bool = False
    resume: Path | None = None
    estimate: int | None = None
    config_digest: str = ""
    launch_arguments: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_card(self) -> bool:
        return self.accelerator.kind == "cuda"


#: The workaround that has accelerate shard on a CPU, which it leaves out there.
_SHARD_WORKAROUND = "fsdp-on-cpu"


def workarounds_for(proven: ProvenEnvironment, runner: str, accelerator: Accelerator) -> tuple[str, ...]:
    """Return the names of a run's workarounds: the matrix's for its runner, those of card and stack."""
    of_matrix = proven.workarounds if runner == proven.runner else ()
    is_old = not all(has_bf16(device.capability) for device in accelerator.devices)
    of_card = (GQA_WORKAROUND,) if is_old else ()
    return (*of_matrix, *of_card, *_workarounds_of_stack(proven.versions))


def _workarounds_of_stack(versions: Mapping[str, str]) -> tuple[str, ...]:
    """Return the workarounds for conflicts between *versions* that their metadata allows."""
    try:
        found = {name: Version(versions[name]).release for name in ("datasets", "fsspec") if name in versions}
    except InvalidVersion:
        return ()
    takes_local_for_remote = found.get("datasets", (3,)) < (2, 15) and found.get("fsspec", ()) >= (2023, 10)
    return (LOCAL_FILES_WORKAROUND,) if takes_local_for_remote else ()


@contextmanager
def start_early_for(
    data: DataJob,
    folder: RunFolder,
    environ: Mapping[str, str],
    accelerator: Accelerator,
    launch_arguments: tuple[str, ...] = (),
) -> Iterator[EarlyLauncher | None]:
    """Start the launcher of a run on every card of *accelerator* before the run is decided on.

    If the decision is another one, the launcher starts over.
    """
    if TASK in launch_arguments:  # it runs in the tasks of a job
        yield None
        return
    cards = tuple(range(len(accelerator.devices))) if accelerator.kind == "cuda" else None
    ranks = ranks_of(len(cards or ()) or 1, launch_arguments)
    environment = _environment(data, folder, environ, ranks, has_card=cards is not None, cards=cards)
    modules = runner_of(data.runner).modules
    if ranks.total > 1:  # the stack is imported by the ranks
        modules = modules[:1]
    with start_early(data.proven.python, folder, environment, modules) as early:
        yield early


def _environment(
    job: DataJob,
    folder: RunFolder,
    environ: Mapping[str, str],
    ranks: Ranks,
    *,
    has_card: bool,
    cards: tuple[int, ...] | None,
) -> dict[str, str]:
    return launch_environment(
        job.proven.python,
        environ,
        reports=bool(job.config.report_to),
        has_card=has_card,
        cards=cards,
        threads=ranks.threads(environ),
        secrets=job.secrets,
        offline=job.offline,
        bytecode=bytecode_folder(job.proven, environ),
        runner=runner_of(job.runner).variables(folder),
    )


def start_job(
    job: Job,
    prepared: Mapping[str, Any],
    folder: RunFolder,
    *,
    home: Path,
    environ: Mapping[str, str],
    revision: str | None = None,
    early: EarlyLauncher | None = None,
) -> RunRecord:
    """Start *job* with the *prepared* data and return its record.  The process runs on its own.

    It is the process of *early*, if given.
    """
    ranks = with_meeting_point(ranks_of(job.processes, job.launch_arguments))
    decisions = _decide(job, prepared, ranks)
    run_id = unused_run_id(home, folder.path, host=ranks.host)
    environment = _environment(job, folder, environ, ranks, has_card=job.has_card, cards=job.cards)
    entry = runner_of(job.runner).write(job.config, decisions, folder)
    sharding = sharding_for(job.config) if job.is_sharded and job.runner == "trl" else None
    config = accelerate_config(
        precision=decisions.precision, ranks=ranks, has_card=job.has_card, sharding=sharding
    )
    write_job(
        folder,
        _job_file(job, run_id, entry, decisions, prepared, ranks=ranks, sharding=sharding),
        config,
    )
    command = launch_command(
        job.proven.python,
        folder,
        precision=decisions.precision,
        ranks=ranks,
        has_card=job.has_card,
        threads=ranks.threads(environ),
        extra=job.launch_arguments,
        sharding=sharding,
    )
    record = replace(
        _record(job, run_id, decisions, prepared),
        processes=ranks.total,
        runtime=environ.get("COLAB_RELEASE_TAG") or environ.get("KAGGLE_KERNEL_RUN_TYPE"),
        git_revision=revision,
        started=time.time(),
        mark=_mark_of(folder, job.resume),
        command=tuple(command),
        host=socket.gethostname(),
        job=environ.get("SLURM_JOB_ID", ""),
        cluster=environ.get("SLURM_CLUSTER_NAME", ""),
    )
    folder.write_record(record)  # before the start, so that a run that is killed at once has a record
    started = start_process(command, folder, environment, early)
    with interrupted_as(f"The run `{run_id}` goes on; {attach_hint(run_id)}."):
        record = replace(record, process=started.process, process_started=started.process_started)
        folder.write_record(record)
        register(home, run_id, folder.path)
    return record


def _mark_of(folder: RunFolder, resume: Path | None) -> str:
    """Return the mark of the run in *folder*: a run that starts from the beginning is another one."""
    before = folder.record() if resume is not None else None
    return before.mark if before is not None else secrets.token_hex(4)


def steps_of(job: Job, prepared: Mapping[str, Any], ranks: Ranks) -> tuple[int, int]:
    """Return the number of steps of *job* with *prepared* data, and the rows of a step on all *ranks*."""
    config = job.config
    rows = config.micro_batch_size * config.gradient_accumulation_steps
    rows *= ranks_with_rows(config.extra, ranks.total)
    steps_per_epoch = math.ceil(int(prepared["train_rows"]) / rows)
    return config.max_steps or max(1, math.ceil(config.num_epochs * steps_per_epoch)), rows


def _decide(job: Job, prepared: Mapping[str, Any], ranks: Ranks) -> RunDecisions:
    """Return the settings that follow from the card, the data and the number of ranks."""
    config = job.config
    total, _ = steps_of(job, prepared, ranks)
    return RunDecisions(
        precision=job.precision.name,
        dtype=job.precision.compute,
        attention=job.attention,
        has_card=job.has_card,
        warmup_steps=math.ceil(config.warmup_ratio * total)
        if config.warmup_steps is None
        else config.warmup_steps,
        total_steps=total,
        has_eval=bool(config.val_set_size),
        is_sharded=job.is_sharded,
        evaluations=_evaluations(config),
        pads_with_eos=prepared["pad_token"] is None,
        eos_token=prepared["eos_token"],
    )


def _evaluations(config: TrainConfig) -> int:
    """Return the number of evaluations: ten in all, or as many for each epoch as axolotl's key says."""
    per_epoch = config.extra.get("evals_per_epoch")
    if not isinstance(per_epoch, (int, float)) or isinstance(per_epoch, bool) or not 0 < per_epoch < _NEVER:
        return _EVALUATIONS
    return max(1, round(per_epoch * max(config.num_epochs, 1)))


def _job_file(
    job: Job,
    run_id: str,
    entry: Entry,
    decisions: RunDecisions,
    prepared: Mapping[str, Any],
    *,
    ranks: Ranks,
    sharding: Sharding | None,
) -> dict[str, object]:
    """Return the content of ``job.json``, which the shim and the runners read."""
    config = job.config
    return {
        "schema": 1,
        "id": run_id,
        "entry": entry.entry,
        "arguments": entry.arguments,
        "mends": [*job.workarounds, *([_SHARD_WORKAROUND] if sharding and not job.has_card else [])],
        "lock": job.proven.lock,
        "cast_trainable": job.precision.cast_trainable,
        "save_seconds": _SAVE_SECONDS if config.save_steps is None else float(_NEVER),
        "save_steps": config.save_steps or _NEVER,
        "resume": str(job.resume) if job.resume else None,
        "evaluate": prepared.get("evaluate", []),
        "config": config_to(config),
        "precision": decisions.precision,
        "dtype": decisions.dtype,
        "attention": decisions.attention,
        "warmup_steps": decisions.warmup_steps,
        "eval_steps": config.eval_steps or decisions.eval_steps,
        "data": job.data_digest,
        "rows": prepared["train_rows"],
        "processes": ranks.total,
        **({"shares_folder": True} if ranks.shares_folder else {}),
        **({"chat_template": prepared["chat_template"]} if prepared.get("chat_template") else {}),
        **({"imports_first": entry.imports_first} if entry.imports_first else {}),
        **({"shards": True} if job.is_sharded else {}),
        **({"shards_recompute": sharding.activation_checkpointing} if sharding else {}),
    }


def _record(job: Job, run_id: str, decisions: RunDecisions, prepared: Mapping[str, Any]) -> RunRecord:
    """Return the record of *job*, without the facts that only the start knows."""
    return RunRecord(
        id=run_id,
        matrix=job.proven.matrix,
        source=job.proven.source,
        runner=job.runner,
        python=job.proven.python,
        lock=job.proven.lock,
        config=config_to(job.config),
        forms=tuple(prepared["forms"]),
        thinks=bool(prepared.get("thinks")),
        config_digest=job.config_digest or job.config.digest(),
        data_digest=job.data_digest,
        model=job.config.base_model,
        workarounds=job.workarounds,
        precision=decisions.precision,
        cards=tuple(device.name for device in job.accelerator.devices),
        driver=job.accelerator.driver,
        seed=job.config.seed,
        versions=dict(job.proven.versions),
        resumed_from=job.resume.name if job.resume else None,
        total_steps=decisions.total_steps if prepared["rows"] else job.config.max_steps,
        estimate=job.estimate,
        is_sharded=job.is_sharded,
        seconds={name: round(taken, 2) for name, taken in job.seconds.items()},
    )
