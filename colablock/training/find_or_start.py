"""Start a run, resume it, or find the one that is already running."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from colablock._common.fs import working_folder
from colablock._common.reporter import Reporter
from colablock.errors import (
    Fault,
    Interrupted,
    InvalidConfig,
    InvalidInput,
    NotFound,
    Refused,
    interrupted_as,
)
from colablock.training.chat_templates import template_value
from colablock.training.foreign_configs.translation import translate
from colablock.training.git import git_revision
from colablock.training.given_inputs import check_on_hub
from colablock.training.hosts import check_not_begun, seen_state
from colablock.training.preflight.batch_size import with_batch_of
from colablock.training.preflight.checks import Preflight
from colablock.training.preflight.facts import Machine, ProvenEnvironment
from colablock.training.preflight.hub import query_model
from colablock.training.preflight.hub_cache import is_offline
from colablock.training.preflight.machine import read_machine
from colablock.training.preflight.run_case import (
    RunCase,
    no_model_hint,
    refusal_text,
    resumed_mode,
    shape_of,
)
from colablock.training.prepared_data import DataJob, Preparation, local_path, start_preparation
from colablock.training.runs.checkpoints.finder import (
    accepted_changes,
    data_digest,
    move_aside_later,
    newest_valid,
)
from colablock.training.runs.checkpoints.mirror import start_mirror
from colablock.training.runs.checkpoints.restore import restore_checkpoint
from colablock.training.runs.checkpoints.stores import open_store
from colablock.training.runs.config import TrainConfig, config_from, config_to, read_yaml
from colablock.training.runs.folder import RunFolder, RunRecord, State
from colablock.training.runs.launch import EarlyLauncher, ranks_of
from colablock.training.runs.output_folder import (
    default_folder,
    folder_of,
    lock_run_folder,
    mirrored_id,
    set_aside,
    unused_run_id,
    with_own_folder,
)
from colablock.training.runs.progress import attach_hint, stop_command
from colablock.training.runs.runners import runner_of
from colablock.training.runs.sharding import asks_to_shard, with_deepspeed_file
from colablock.training.secrets import mirror_variables, secret_stores, secrets_environment
from colablock.training.start import Job, start_early_for, start_job, steps_of, workarounds_for

__all__ = ["Briefing", "NamedRun", "TrainOptions", "options_of", "train", "values_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of a call of `train`.

    *anyway* starts the run although preflight refuses it.  *fresh* moves the contents of the
    output folder aside.  *resume_anyway* resumes although config, data or lock have changed.
    *mirror* is where checkpoints are mirrored: a folder, or ``hf://name/repository``.
    *sizes_batch* takes the largest `micro_batch_size` that fits the card, for the same batch of a step.
    *shard* is ``auto``, ``fsdp`` or ``none``: whether cards share one model.
    *launch_arguments* are appended to those of accelerate.  *notes* are shown before the start.
    """

    config: TrainConfig
    runner: str | None = None
    fresh: bool = False
    resume_anyway: bool = False
    anyway: bool = False
    mirror: str | None = None
    sizes_batch: bool = False
    shard: str | None = None
    launch_arguments: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Briefing:
    """What is known before a run starts.

    *cards* are the names of the cards that it trains on; empty for a CPU.  *prepared* is the
    result of ``scripts/prepare.py``: numbers, and one row as it is trained on.  *steps* are their number
    and the rows of one.
    """

    config: TrainConfig
    runner: str
    preflight: Preflight
    folder: Path
    cards: tuple[str, ...] = ()
    workarounds: tuple[str, ...] = ()
    prepared: Mapping[str, Any] | None = None
    resumed_from: str | None = None
    steps: tuple[int, int] | None = None


class NamedRun(NamedTuple):
    """A run by its id and its folder."""

    id: str
    folder: RunFolder


def options_of(
    path: Path | None,
    *,
    runner: str | None,
    values: Mapping[str, Any],
    strict: bool = False,
) -> TrainOptions:
    """Return the options of a call: its config is that of the file *path*, if given, changed by *values*.

    The file may be one of axolotl.  The notes have each setting that is not done as written, with what is
    done instead; with *strict* they are faults.  Raises InvalidConfig, NotFound.
    """
    source = str(path) if path is not None else ""
    chosen = runner_of(runner)
    found = translate({**(read_yaml(path) if path is not None else {}), **values}, chosen.name)
    faults = list(found.faults)
    if strict:
        faults += [Fault(path="", message=f"is not done as written: {words}") for words in found.instead]
    try:
        config = config_from(found.values, source=source, passes_through=chosen.passes_through)
    except InvalidConfig as error:
        raise InvalidConfig(source, [*faults, *error.faults]) from error
    if faults:
        raise InvalidConfig(source, faults)
    return TrainOptions(
        config=replace(config, extra=with_deepspeed_file({**config.extra, **found.extra}, path)),
        sizes_batch=found.values.get("micro_batch_size") is None,
        notes=tuple(f"not as written: {words}" for words in found.instead),
    )


def values_of(
    model: str | None,
    dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    output_dir: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the arguments of a call as keys of a config."""
    values = dict(settings)
    if model is not None:
        values["base_model"] = _named(model, "the model")
    if dataset is not None:
        several = list(dataset) if isinstance(dataset, (list, tuple, set)) else [dataset]
        values["datasets"] = [_named(one, "a dataset") for one in several]
    if output_dir is not None:
        values["output_dir"] = os.fspath(output_dir)
    return values


def _named(value: object, what: str) -> str:
    """Return a path or a name as a string.  Raises InvalidInput for anything else, such as rows."""
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    message = f"{what} is a file, a folder or a name on the hub, not a value of type `{type(value).__name__}`"
    raise InvalidInput(message, hint="Write rows to a file such as `data.jsonl`, one JSON object a line")


def train(
    proven: ProvenEnvironment,
    options: TrainOptions,
    *,
    home: Path,
    environ: Mapping[str, str],
    reporter: Reporter,
    show: Callable[[Briefing], None] = lambda _: None,
) -> NamedRun:
    """Start the run of an output folder in the environment *proven*, resume it, or find it.

    A run that is running or done is found.  A run that ended early is resumed from its newest
    valid checkpoint.  *show* gets the briefing before the run starts.  Returns at once.
    Raises Refused if preflight or a changed input forbids the run, InvalidInput for data or
    settings that cannot be used.
    """
    given = options.config
    template = template_value(given.chat_template)
    config = replace(given, base_model=local_path(given.base_model), chat_template=template)
    config = with_own_folder(config, options.launch_arguments, home, reporter)
    options = replace(options, config=config)
    folder = RunFolder(folder_of(config, options.launch_arguments))
    secrets, notes = secrets_environment(config, environ, secret_stores(environ))
    for note in (*options.notes, *notes):
        reporter.note(note)
    mirror_environ = mirror_variables(options.mirror or "", environ)
    # Open the mirror first: an unusable target is reported now and not after hours.
    if options.mirror is not None:
        open_store(options.mirror, python=proven.python, environ=mirror_environ)
    with lock_run_folder(folder.path):
        host = ranks_of(1, options.launch_arguments).host
        run = NamedRun(unused_run_id(home, folder.path, reporter, host=host), folder)
        mirrored = mirrored_id(home, config, run.id, host)
        call = _TrainCall(
            proven=proven,
            options=options,
            runner=runner_of(options.runner or proven.runner).name,
            run=run,
            mirrored=mirrored,
            data=data_digest(options.config.datasets),
            home=home,
            environ=environ,
            secrets=secrets,
            reporter=reporter,
            show=show,
            began=time.time(),
        )
        call.find_or_start()
    # Also for a run that is done: its last checkpoints may not be mirrored yet.  Host 0 has them all.
    if options.mirror and folder.path == default_folder(config):
        with interrupted_as(f"The run `{run.id}` goes on, without its mirror; {attach_hint(run.id)}."):
            start_mirror(folder.path, options.mirror, python=proven.python, environ=mirror_environ)
    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrainCall:
    """One call of `train` with its folder locked.

    *mirrored* is the id of the run in a mirror, *data* the digest of the data, *began* the time of the call.
    """

    proven: ProvenEnvironment
    options: TrainOptions
    runner: str
    run: NamedRun
    mirrored: str
    data: str
    home: Path
    environ: Mapping[str, str]
    secrets: Mapping[str, str]
    reporter: Reporter
    show: Callable[[Briefing], None]
    began: float

    def find_or_start(self) -> None:
        """Find the run in the folder, resume it, or start one."""
        folder, options = self.run.folder, self.options
        record = folder.record()
        state = seen_state(folder, record, self.environ) if record is not None else State.PREPARED
        if record is not None and state is State.RUNNING:
            if options.fresh:
                raise Refused(f"the run `{record.id}` is running", hint=stop_command(record.id))
            self.reporter.note(f"following the run `{record.id}`, which is already running")
            return
        folder.stop_file.unlink(missing_ok=True)  # a later one is for the run that this call starts
        if options.fresh:
            self._start_over()
            return
        if (fault := folder.fault()) is not None:
            raise InvalidInput(fault, hint="`--fresh` moves the folder aside and starts a new run")
        first = default_folder(options.config)  # of host 0; there if the hosts share it
        is_missing = record is None if first == folder.path else not first.is_dir()
        if options.mirror and is_missing:
            record = self._restored(options.mirror) or record
        checkpoints = first if first.is_dir() else folder.path
        if record is None:
            self._start(None if first == folder.path else newest_valid(checkpoints, self.reporter))
            return
        is_unchanged = self._is_unchanged(record, is_done=state is State.DONE)
        if state is not State.DONE:
            found = newest_valid(checkpoints, self.reporter)
            if found is None and options.mirror and self._restored(options.mirror, only_own=True) is not None:
                found = newest_valid(folder.path, self.reporter)
            self._start(found)
        elif is_unchanged:
            self.reporter.note(f"the run `{record.id}` is already done: `--fresh` trains again")
        else:
            # Its schedule is complete, so that no later call can resume from its checkpoints.
            self._start_over()

    def _start_over(self) -> None:
        """Start in an empty folder; the old contents are kept under another name."""
        host = ranks_of(1, self.options.launch_arguments).host
        with set_aside(self.run.folder.path, self.home, self.reporter, host=host):
            self._start(None)

    def _restored(self, mirror: str, *, only_own: bool = False) -> RunRecord | None:
        """Restore the run from its mirror and return its record; None if the mirror has no checkpoint.

        *only_own* is that of `restore_checkpoint`.  Raises Unmet if the mirror has no valid one.
        """
        folder = self.run.folder
        variables = mirror_variables(mirror, self.environ)
        store = open_store(mirror, python=self.proven.python, environ=variables)
        try:
            restore_checkpoint(store, self.mirrored, folder.path, reporter=self.reporter, only_own=only_own)
        except NotFound:  # the first start
            return None
        return folder.record()

    def _is_unchanged(self, record: RunRecord, *, is_done: bool) -> bool:
        """Return whether runner, config, data and lock are those of *record*.

        Raises Refused for a change unless *resume_anyway* is set.
        """
        options = self.options
        if record.runner != self.runner and not options.resume_anyway:
            hint = "`--resume-anyway` resumes with the other runner, another `--output-dir` starts a new run"
            message = f"the run `{record.id}` used the runner {record.runner}, not {self.runner}"
            raise Refused(message, hint=hint)
        changes = accepted_changes(
            record,
            options.config.digest(),
            self.data,
            self.proven.lock,
            config=config_to(self._sized_as(record)),
            versions=self.proven.versions,
            anyway=options.resume_anyway,
            is_done=is_done,
        )
        for change in changes:
            self.reporter.note(change)
        return not changes and record.runner == self.runner

    def _sized_as(self, record: RunRecord | None) -> TrainConfig:
        """Return the config, with the rows at a time that the run of *record* has chosen for it."""
        config = self.options.config
        if not self.options.sizes_batch or record is None:
            return config
        return with_batch_of(config, record.config)

    def _start(self, checkpoint: Path | None) -> None:
        data = DataJob(
            proven=self.proven,
            config=self.options.config,
            runner=self.runner,
            offline=is_offline(self.environ),
            data_digest=self.data,
            secrets=self.secrets,
        )
        environ, folder, options = self.environ, self.run.folder, self.options
        with start_preparation(data, folder, environ) as preparation:
            check_on_hub(data.config, self.secrets, environ, reads=not (checkpoint or preparation.has_tokens))
            machine = read_machine(environ, folder.path, accelerator=self.proven.accelerator)
            started = start_early_for(data, folder, environ, machine.accelerator, options.launch_arguments)
            with started as early:
                self._start_prepared(checkpoint, machine, preparation, early)

    def _start_prepared(
        self,
        checkpoint: Path | None,
        machine: Machine,
        preparation: Preparation,
        early: EarlyLauncher | None,
    ) -> None:
        environ, folder = self.environ, self.run.folder
        workarounds = workarounds_for(self.proven, self.runner, machine.accelerator)
        case = self._case(machine, workarounds, preparation, checkpoint)
        preflight = case.check()
        if not preflight.passed and not case.check(longest=1).passed:
            self._refuse(preflight)
        # Else only the memory for the longest rows is too small: the data may have none of them.
        prepared = preparation.tokens(self.reporter)
        longest = int(prepared["longest"]) if prepared["rows"] else None
        if longest is not None:
            case.check_tokens(int(prepared.get("largest") or 0))
        preflight = self._decided(case, longest, is_resumed=checkpoint is not None)
        if not preflight.passed:
            self._refuse(preflight)
        job = replace(self._job(preflight, case, checkpoint), seconds=preparation.seconds)
        self.reporter.stage_finished()
        self.show(
            Briefing(
                config=job.config,
                runner=self.runner,
                preflight=preflight,
                folder=folder.path,
                cards=tuple(device.name for device in job.accelerator.devices),
                workarounds=workarounds,
                prepared=prepared if prepared["rows"] else None,
                resumed_from=checkpoint.name if checkpoint else None,
                steps=steps_of(job, prepared, ranks_of(job.processes, job.launch_arguments))
                if prepared["rows"]
                else None,
            )
        )
        if folder.stop_file.exists():
            raise Interrupted(f"The run `{self.run.id}` was asked to stop, and has not been started.")
        check_not_begun(folder, self.began, environ)
        move_aside_later(folder.path, checkpoint)
        revision = git_revision(working_folder(), environ)
        start_job(job, prepared, folder, home=self.home, environ=environ, revision=revision, early=early)

    def _decided(self, case: RunCase, longest: int | None, *, is_resumed: bool) -> Preflight:
        """Return the findings and decisions for the tokens; a resumed run keeps its rows in a step.

        Raises Refused if it cannot.
        """
        record = self._record_of_run() if is_resumed else None
        preflight = self._with_batch(case, longest, record)
        if record is not None and record.config_digest == self.options.config.digest():
            preflight, told = case.rows_kept(preflight, record, longest)
            if told:
                self.reporter.note(told)
        return preflight

    def _record_of_run(self) -> RunRecord | None:
        """Return the record of host 0, which has saved the checkpoints, or else that of this host."""
        return RunFolder(default_folder(self.options.config)).record() or self.run.folder.record()

    def _with_batch(self, case: RunCase, longest: int | None, record: RunRecord | None) -> Preflight:
        """Return the findings with the batch of *record*, if it is given and fits, or with the largest."""
        recorded = self._sized_as(record) if record is not None else case.config
        if recorded != case.config:
            as_before = replace(case, config=recorded).check(longest=longest)
            if as_before.passed:
                return as_before
        # Hosts have to agree on the rows at a time, and their cards may differ.
        sizes = self.options.sizes_batch and case.ranks.hosts == 1
        return case.check(longest=longest, sizes_batch=sizes)

    def _job(self, preflight: Preflight, case: RunCase, checkpoint: Path | None) -> Job:
        """Return the job on the cards that *preflight* has chosen."""
        devices = tuple(case.machine.accelerator.devices[card] for card in preflight.cards)
        accelerator = replace(case.machine.accelerator, devices=devices)
        return Job(
            proven=self.proven,
            config=preflight.config,
            config_digest=self.options.config.digest(),
            runner=self.runner,
            workarounds=case.workarounds,
            precision=preflight.precision,
            attention=preflight.attention,
            accelerator=accelerator,
            cards=preflight.cards if accelerator.kind == "cuda" else None,
            processes=preflight.processes,
            is_sharded=preflight.is_sharded,
            resume=checkpoint,
            offline=is_offline(self.environ),
            estimate=preflight.estimate.total if preflight.estimate else None,
            data_digest=self.data,
            secrets=self.secrets,
            launch_arguments=self.options.launch_arguments,
        )

    def _refuse(self, preflight: Preflight) -> None:
        """Raise Refused with the findings that say that the run would fail, unless it is forced."""
        if not self.options.anyway:
            raise Refused(refusal_text(preflight), hint="`--anyway` starts the run despite these findings")

    def _case(
        self,
        machine: Machine,
        workarounds: tuple[str, ...],
        preparation: Preparation,
        checkpoint: Path | None,
    ) -> RunCase:
        """Read what preflight needs about the model and the stack."""
        config, environ = self.options.config, self.environ
        self.reporter.stage("Checking the model, the card and the stack")
        facts = query_model(config.base_model, config.revision, self.secrets.get("HF_TOKEN"), environ)
        if facts.config is None and Path(config.base_model).is_dir():
            raise InvalidInput(facts.problem, hint=no_model_hint(Path(config.base_model)))
        shape, problem = shape_of(facts)
        if problem:
            self.reporter.note(problem)
        mode, keeps_shards = resumed_mode(self.options.shard, config, checkpoint)
        if checkpoint is not None and asks_to_shard(config) and not keeps_shards:
            self.reporter.note(f"{checkpoint.name} is not sharded: the run goes on without sharding")
        return RunCase(
            shard=mode,
            keeps_shards=keeps_shards,
            ranks=ranks_of(1, self.options.launch_arguments),
            config=config,
            runner=self.runner,
            machine=machine,
            workarounds=workarounds,
            facts=facts,
            shape=shape,
            stack=preparation.stack(),
        )
