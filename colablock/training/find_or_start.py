"""A run: what `colablock.train` starts, finds or goes on with, and what can be done with it afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from colablock._common.reporter import Reporter
from colablock.errors import InvalidInput, NotFound, Refused
from colablock.training.preflight.checks import Level, Machine, Preflight, check_run
from colablock.training.preflight.facts import ProvenEnvironment
from colablock.training.preflight.hub import ModelFacts, is_offline, query_model
from colablock.training.preflight.machine import read_machine, read_stack
from colablock.training.preflight.model_config import ModelShape, from_config
from colablock.training.runs.checkpoint_mirror import list_archives, restore, start_mirror, store_of
from colablock.training.runs.checkpoints import accepted_changes, data_digest, move_aside_later, newest_valid
from colablock.training.runs.config import TrainConfig, config_from, config_to, read_yaml
from colablock.training.runs.folder import RunFolder, RunRecord, State
from colablock.training.runs.runners import runner_of
from colablock.training.secrets import secret_stores, secrets_environment
from colablock.training.start import (
    Job,
    begin,
    default_folder,
    git_revision,
    local_path,
    lock_run_folder,
    move_aside,
    prepare_data,
    unused_run_id,
    workarounds_for,
)

__all__ = ["Briefing", "NamedRun", "TrainOptions", "config_of", "train", "values_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What a caller wants of a run.

    *anyway* starts although preflight refuses, *fresh* puts aside what stands in
    the output folder, *resume_anyway* goes on although something changed.
    *mirror* is a folder or ``hf://name/repository`` for whole checkpoints;
    *launch_arguments* go to accelerate, after ours.
    """

    config: TrainConfig
    runner: str | None = None
    fresh: bool = False
    resume_anyway: bool = False
    anyway: bool = False
    mirror: str | None = None
    launch_arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Briefing:
    """What is known before a run starts: shown, so that nobody waits an hour for a surprise.

    *cards* are the names of those that it trains on, none of them for a CPU.  *prepared*
    says what the data came to: numbers, and one row as it is trained on.
    """

    config: TrainConfig
    runner: str
    preflight: Preflight
    folder: Path
    cards: tuple[str, ...] = ()
    workarounds: tuple[str, ...] = ()
    prepared: Mapping[str, Any] | None = None
    resumed_from: str | None = None


class NamedRun(NamedTuple):
    """A run by its name and its folder."""

    id: str
    folder: RunFolder


def config_of(path: Path | None, *, runner: str | None, values: Mapping[str, Any]) -> TrainConfig:
    """Return the config in the file *path*, if there is one, with the *values* that were said beside it.

    Raises InvalidConfig, NotFound.
    """
    found = {**(read_yaml(path) if path is not None else {}), **values}
    source = str(path) if path is not None else ""
    return config_from(found, source=source, passes_through=runner_of(runner).passes_through)


def values_of(
    model: str | None,
    dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    output_dir: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what was said beside a config, as its keys."""
    values = dict(settings)
    if model is not None:
        values["base_model"] = os.fspath(model)
    if dataset is not None:
        several = [dataset] if isinstance(dataset, (str, os.PathLike)) else list(dataset)
        values["datasets"] = [os.fspath(one) for one in several]
    if output_dir is not None:
        values["output_dir"] = os.fspath(output_dir)
    return values


def train(
    proven: ProvenEnvironment,
    asked: TrainOptions,
    *,
    home: Path,
    environ: Mapping[str, str],
    reporter: Reporter,
    show: Callable[[Briefing], None] = lambda _: None,
) -> NamedRun:
    """Start a run in the environment *proven*, go on with the one that stands in its folder, or find it.

    One that runs is found, and so is one that is done; one that ended early goes
    on from its newest whole checkpoint.  *show* is given what is known before
    anything starts.  Returns at once.  Raises Refused where preflight or a change
    since forbids it, InvalidInput for data or settings that are no use.
    """
    config = replace(asked.config, base_model=local_path(asked.config.base_model))
    asked = replace(asked, config=config)
    folder = RunFolder(default_folder(config))
    secrets, notes = secrets_environment(config, environ, secret_stores(environ))
    for note in notes:
        reporter.note(note)
    mirrored = {**environ, **secrets}
    # One that is no use is known now, not after hours.
    store = store_of(asked.mirror, python=proven.python, environ=mirrored) if asked.mirror else None
    with lock_run_folder(folder.path):
        run = NamedRun(unused_run_id(home, folder.path), folder)
        if asked.fresh and store is not None and list_archives(store, run.id):
            hint = "Name another mirror, or another `output_dir`"
            raise Refused(f"the mirror holds checkpoints of an earlier run `{run.id}`", hint=hint)
        way = _RunPreparation(
            proven=proven,
            asked=asked,
            runner=runner_of(asked.runner or proven.runner).name,
            run=run,
            data=data_digest(asked.config.datasets),
            home=home,
            environ=environ,
            secrets=secrets,
            reporter=reporter,
            show=show,
        )
        way.go()
    if asked.mirror:  # of one that is over, too: its last checkpoints may not be there yet
        start_mirror(folder.path, asked.mirror, environ=mirrored)
    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunPreparation:
    """From what was asked to a process that trains; *data* is the digest of the data."""

    proven: ProvenEnvironment
    asked: TrainOptions
    runner: str
    run: NamedRun
    data: str
    home: Path
    environ: Mapping[str, str]
    secrets: Mapping[str, str]
    reporter: Reporter
    show: Callable[[Briefing], None]

    def go(self) -> None:
        """Find the run that stands, go on with it, or start one."""
        folder, asked = self.run.folder, self.asked
        record, state = folder.record(), folder.state()
        if record is not None and state is State.RUNNING:
            if asked.fresh:
                raise Refused(f"the run `{record.id}` is going on", hint=f"`colablock runs stop {record.id}`")
            self.reporter.note(f"the run `{record.id}` is going on already: it is followed")
            return
        if asked.fresh:
            self._start_anew()
            return
        if asked.mirror and record is None:
            record = self._restored(asked.mirror)
        if record is None:
            self._start(None)
            return
        is_same = self._may_go_on(record)
        if state is not State.DONE:
            self._start(newest_valid(folder.path, self.reporter))
        elif is_same:
            self.reporter.note(f"the run `{record.id}` is done: `--fresh` trains again")
        else:
            # Its schedule is over: none of its checkpoints is a place to go on from, now or later.
            self._start_anew()

    def _start_anew(self) -> None:
        """Start in an empty folder of the same name; what stood there stays, under another."""
        folder = self.run.folder.path
        aside = move_aside(folder)
        if aside is None:
            self._start(None)
            return
        self.reporter.note(f"what stood in `{folder}` is in `{aside}` now")
        with lock_run_folder(folder):  # what was claimed has another name now
            self._start(None)

    def _restored(self, mirror: str) -> RunRecord | None:
        """Return the record of a run that only its mirror holds any more, brought back; None without one."""
        folder = self.run.folder
        store = store_of(mirror, python=self.proven.python, environ={**self.environ, **self.secrets})
        try:
            restore(store, self.run.id, folder.path, reporter=self.reporter)
        except NotFound:  # a first start
            return None
        return folder.record()

    def _may_go_on(self, record: RunRecord) -> bool:
        """Return whether nothing that counts has changed.  Raises Refused where it has, unless allowed."""
        asked = self.asked
        if record.runner != self.runner and not asked.resume_anyway:
            hint = "`--resume-anyway` goes on with another runner, another `output_dir` starts anew"
            raise Refused(f"the run `{record.id}` was made by {record.runner}, not {self.runner}", hint=hint)
        changes = accepted_changes(
            record,
            asked.config.digest(),
            self.data,
            self.proven.lock,
            config=config_to(asked.config),
            anyway=asked.resume_anyway,
        )
        for change in changes:
            self.reporter.note(change)
        return not changes and record.runner == self.runner

    def _start(self, checkpoint: Path | None) -> None:
        config, environ, folder = self.asked.config, self.environ, self.run.folder
        machine = read_machine(environ, folder.path, accelerator=self.proven.accelerator)
        workarounds = workarounds_for(self.proven, self.runner, machine.accelerator)
        preflight = self._preflight(machine, workarounds, self.secrets.get("HF_TOKEN"))
        devices = tuple(machine.accelerator.devices[card] for card in preflight.cards)
        accelerator = replace(machine.accelerator, devices=devices)
        job = Job(
            proven=self.proven,
            config=config,
            runner=self.runner,
            workarounds=workarounds,
            precision=preflight.precision,
            attention=preflight.attention,
            accelerator=accelerator,
            cards=preflight.cards if accelerator.kind == "cuda" else None,
            processes=preflight.processes,
            resume=checkpoint,
            offline=is_offline(environ),
            estimate=preflight.estimate.total if preflight.estimate else None,
            data_digest=self.data,
            secrets=self.secrets,
            launch_arguments=self.asked.launch_arguments,
        )
        prepared = prepare_data(job, folder, environ, self.reporter)
        self.show(
            Briefing(
                config=config,
                runner=self.runner,
                preflight=preflight,
                folder=folder.path,
                cards=tuple(device.name for device in devices),
                workarounds=workarounds,
                prepared=prepared,
                resumed_from=checkpoint.name if checkpoint else None,
            )
        )
        move_aside_later(folder.path, checkpoint)
        revision = git_revision(Path.cwd(), environ)
        begin(job, prepared, folder, home=self.home, environ=environ, revision=revision)

    def _preflight(self, machine: Machine, workarounds: tuple[str, ...], token: str | None) -> Preflight:
        """Return what was found.  Raises Refused for what the run would fail by."""
        config, environ = self.asked.config, self.environ
        self.reporter.stage("Looking at the model, the card and the stack")
        facts = query_model(config.base_model, config.revision, token, environ)
        shape, problem = _shape_of(facts)
        if problem:
            self.reporter.note(problem)
        preflight = check_run(
            config,
            shape,
            machine,
            read_stack(Path(self.proven.python), environ),
            facts.access,
            self.runner,
            workarounds=frozenset(workarounds),
        )
        if not (preflight.passed or self.asked.anyway):
            raise Refused(_refusal(preflight), hint="`--anyway` starts it all the same")
        return preflight


def _shape_of(facts: ModelFacts) -> tuple[ModelShape | None, str]:
    """Return the model's shape, or None and why it cannot be told."""
    problem = facts.problem
    if facts.config is not None:
        try:
            return from_config(facts.config), ""
        except InvalidInput as error:
            problem = error.message
    return None, f"the model's config cannot be read: {problem}"


def _refusal(preflight: Preflight) -> str:
    refused = [finding for finding in preflight.findings if finding.level is Level.REFUSE]
    lines = ["this run would fail, so it is not started"]
    for finding in refused:
        lines.append(f"  {finding.what}: {finding.why}" if finding.why else f"  {finding.what}")
        lines += [f"    {finding.fix}"] if finding.fix else []
    return "\n".join(lines)
