"""The training functions of the Python API: train, attach to a run, use the result."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.text import nearest
from colablock.api.elsewhere import commands_document, job_document, repeated_call
from colablock.api.front_door import front_door
from colablock.api.stack import Name, open_session
from colablock.api.values import Lines
from colablock.display.briefing_view import briefing_document, receipt_document
from colablock.display.html import to_html
from colablock.display.notebook import is_ending, note_shown, publish, show_as, show_once
from colablock.display.progress import reporter_for
from colablock.display.run_progress import run_display_for
from colablock.display.run_view import runs_document, summary_document
from colablock.display.text import to_text
from colablock.display.view import spoken_in_python
from colablock.environment.notebook_host import current_shell
from colablock.errors import UNCHANGED, Interrupted, InvalidCall, InvalidInput, Refused, TrainingFailed
from colablock.operations.run import proven_environment, run_smoke
from colablock.training import adapter
from colablock.training.find_or_start import NamedRun, TrainOptions, options_of, values_of
from colablock.training.find_or_start import train as start_or_find
from colablock.training.given_inputs import check_given
from colablock.training.hosts import (
    RepeatedCall,
    check_places,
    job_arguments,
    needs_card,
    script_of,
    submits_job,
)
from colablock.training.receipts import Receipt
from colablock.training.runs.config import TrainConfig
from colablock.training.runs.folder import RunFolder, RunRecord, State, find_run, list_runs, stop_run
from colablock.training.runs.loss_curve import write_curve
from colablock.training.runs.output_folder import default_folder, with_own_folder
from colablock.training.runs.progress import attach_hint
from colablock.training.runs.summary import RunSummary, await_mirror, summary_of, watch
from colablock.training.secrets import find_token, secret_stores
from colablock.transaction.apply_record import home_folder

if TYPE_CHECKING:
    from colablock.display.view import Document
    from colablock.operations.session import Session
    from colablock.training.preflight.facts import ProvenEnvironment

__all__ = ["Run", "attach", "runs", "smoke", "train"]

_SLIP = 0.75  # likeness: a key of axolotl is less like an argument

show_as(Receipt, receipt_document)


class Run:
    """A training run.  Each property reads the run folder anew, and returns at once."""

    def __init__(self, named: NamedRun, *, environ: Mapping[str, str] = os.environ) -> None:
        #: The name of the run, for `attach`.
        self.id = named.id
        self._folder = named.folder
        self._environ = environ
        #: The number of the job of Slurm that this call has submitted for it; empty if there is none.
        self.job = ""
        #: The command to run on each of several hosts, by their names; empty for a run of this one.
        self.commands: Mapping[str, str] = {}

    @property
    def folder(self) -> Path:
        """The folder with the log, the metrics, the checkpoints and the trained adapter."""
        return self._folder.path

    @property
    def state(self) -> str:
        """``running``, ``done``, ``stopped`` (at a checkpoint), ``failed``, ``killed`` or ``prepared``."""
        return self._folder.state().value

    @property
    def record(self) -> RunRecord | None:
        """The record of the start: lock, matrix, config, cards, seeds, git revision."""
        return self._folder.record()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All events so far, oldest first."""
        return self._folder.metrics()

    @property
    def summary(self) -> RunSummary:
        """The progress of the run and how it ended."""
        return summary_of(self.id, self._folder)

    @front_door("The run goes on, or has ended by itself: `colablock.runs()` lists it.")
    def follow(self, *, quiet: bool = False) -> Run:
        """Show the progress until the run ends; with *quiet* only wait.

        The first interrupt asks the run to stop at a checkpoint.  The second one stops
        waiting and raises KeyboardInterrupt, so that no later code takes the run for finished.
        A run with a mirror is followed until the mirror has its last checkpoint and its adapter.
        Raises TrainingFailed, with the known cause, if the run failed, and Unmet if the mirror has not
        got all.
        """
        if self.state == State.PREPARED.value:
            hint = f"`squeue --job {self.job}` shows its job" if self.job else None
            raise Refused(f"the run `{self.id}` has not begun", hint=hint)
        with run_display_for(
            self.id, self._folder, environ=self._environ, notebook=True, quiet=quiet
        ) as display:
            summary = watch(self.id, self._folder, display, is_leaving=is_ending)
            summary, fault = await_mirror(summary, display.note, environ=self._environ)
            display.close(summary)
        if summary.state is State.RUNNING:
            doing = "saves a checkpoint and stops" if self._folder.stop_file.exists() else "is still running"
            raise Interrupted(f"The run `{self.id}` {doing}; {attach_hint(self.id)}")
        raise_failure(summary)
        if fault is not None:
            raise fault
        if not quiet:
            note_shown(self)
        return self

    def stop(self) -> None:
        """Ask the run to stop at a checkpoint after its current step, and return at once.

        Raises Refused if it is not running.
        """
        stop_run(self.id, self._folder)

    @front_door("The run and its adapter are as they were.")
    def plot(self, path: str | os.PathLike[str] = "loss.png") -> Path:
        """Draw the loss curve into a PNG or SVG file and return the path."""
        target = Path(path)
        write_curve(self._folder, target, environ=self._environ)
        return target

    @front_door("The run and its adapter are as they were.")
    def generate(self, prompts: str | Sequence[str], **options: Any) -> list[str]:
        """Return the answer of the model to each prompt; *options* are those of `adapter.generate`."""
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        with reporter_for(notebook=True) as reporter:
            options = {"reporter": reporter, **options}
            return adapter.generate(self.folder, asked, environ=self._with_token(), **options)

    @front_door("The run and its adapter are as they were.")
    def merge(
        self,
        output: str | os.PathLike[str] | None = None,
        *,
        base: str | None = None,
        python: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Merge the adapter into the base model, shard by shard, into a new folder; return the folder.

        *base* replaces the base model of the run, which is needed if that one is quantised.
        *python* replaces its interpreter: a path, or the name of an applied matrix.
        """
        target = Path(output or self.folder / "merged")
        with reporter_for(notebook=True) as reporter:
            return adapter.merge(
                self.folder,
                target,
                base=base,
                python=os.fspath(python) if python is not None else None,
                environ=self._with_token(),
                reporter=reporter,
            )

    @front_door("The run and its adapter are as they were.")
    def download(
        self, path: str | os.PathLike[str] | None = None, *, merged: str | os.PathLike[str] | None = None
    ) -> Path:
        """Pack the adapter, or the folder *merged*, into a zip file and return its path.

        In Colab the browser also downloads it.
        """
        zipped, model = (Path(one) if one is not None else None for one in (path, merged))
        with reporter_for(notebook=True) as reporter:
            return adapter.download(self.folder, zipped, merged=model, reporter=reporter)

    @front_door("The run and its adapter are as they were.")
    def push(
        self,
        repo: str,
        *,
        private: bool = True,
        merged: str | os.PathLike[str] | None = None,
        python: str | os.PathLike[str] | None = None,
    ) -> str:
        """Upload the adapter, or the folder *merged*, to the Hub and return its URL.

        A public repository is written to only if *private* is false.  *python* as for `merge`.
        """
        model = Path(merged) if merged is not None else None
        with reporter_for(notebook=True) as reporter:
            return adapter.push(
                self.folder,
                repo,
                private=private,
                merged=model,
                python=os.fspath(python) if python is not None else None,
                environ=self._with_token(),
                reporter=reporter,
            )

    def _with_token(self) -> Mapping[str, str]:
        """Return the environment variables of a child, with the Hub token if one is found."""
        token, _ = find_token("HF_TOKEN", self._environ, secret_stores(self._environ))
        return self._environ if token is None else {**self._environ, "HF_TOKEN": token.value}

    def __repr__(self) -> str:
        return f"<Run {self.id!r} in {str(self.folder)!r}>"

    def __str__(self) -> str:
        return to_text(self._document())

    def _repr_html_(self) -> str:
        return to_html(self._document())

    def _document(self) -> Document:
        """Return its progress or its end; before it begins in a job or on other hosts, how it does."""
        document = None
        if self.state == State.PREPARED.value and self.commands:
            document = commands_document(self.commands)
        elif self.state == State.PREPARED.value and self.job:
            document = job_document(self.job, script_of(self.folder))
        return spoken_in_python(document or summary_document(self.summary))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: FBT001  # IPython's signature
        del cycle
        printer.text(str(self))


show_once(Run)


@front_door("No run was started.")
def train(
    name: Name,
    *,
    model: str | None = None,
    dataset: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    runner: str | None = None,
    wait: bool = True,
    fresh: bool = False,
    resume_anyway: bool = False,
    anyway: bool = False,
    strict: bool = False,
    mirror: str | os.PathLike[str] | None = None,
    shard: str = "auto",
    hosts: Sequence[str] = (),
    launcher: str | None = None,
    sbatch: Sequence[str] = (),
    launch_arguments: Sequence[str] = (),
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train in the environment of the last apply of *name*, and follow the run until it ends.

    *config* is a YAML file or a mapping of its keys.  *model*, *dataset*, *output_dir* and further keys of
    the config override it.  An existing run in the output folder is continued: an interrupted run resumes
    from its newest complete checkpoint, a running one is followed, a finished one is returned.

    - ``wait``: ``False`` returns as soon as the run has started
    - ``fresh``: move an existing run aside and start a new one
    - ``resume_anyway``: resume even if config, data or lock have changed
    - ``anyway``: start even if a preflight check refuses
    - ``strict``: refuse a config with a setting that the runner does not do as written
    - ``mirror``: a mounted folder or ``hf://name/repository`` to copy complete checkpoints to
    - ``shard``: ``"fsdp"`` shares one model among the cards, ``"none"`` gives each its own, and ``"auto"``
      shares it if a card does not hold it
    - ``hosts``: names or addresses of several hosts.  Nothing is started: the command for each is shown, and
      is in `Run.commands`
    - ``launcher``: ``"slurm"`` submits a job and returns at once; in a job, its tasks train.  ``sbatch`` has
      options of its batch script, such as ``["nodes=2", "time=1:00:00"]``
    - ``launch_arguments``: arguments of accelerate

    Raises Refused with all reasons why the run would fail, TrainingFailed if it failed.
    """
    _check_names(settings)
    values = values_of(model, dataset, output_dir, settings)
    given = {key: value for key, value in locals().items() if key in _TrainArguments.__dataclass_fields__}
    return _TrainArguments(**given).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrainArguments:
    """The arguments of a call of `train`; *values* are the keys of the config that it gives itself."""

    name: Name
    config: str | os.PathLike[str] | Mapping[str, Any] | None
    values: Mapping[str, Any]
    runner: str | None
    wait: bool
    fresh: bool
    resume_anyway: bool
    anyway: bool
    strict: bool
    mirror: str | os.PathLike[str] | None
    shard: str
    hosts: Sequence[str]
    launcher: str | None
    sbatch: Sequence[str]
    launch_arguments: Sequence[str]
    quiet: bool

    def run(self) -> Run:
        """Start the run, or find it; or show how it starts elsewhere."""
        name, hosts = os.fspath(self.name), self.hosts
        file = Path(self.config) if isinstance(self.config, (str, os.PathLike)) else None
        values = {**(self.config if isinstance(self.config, Mapping) else {}), **self.values}
        for given in (hosts, self.sbatch):
            if isinstance(given, str) or not all(isinstance(one, str) for one in given):
                raise InvalidInput("`hosts` and `sbatch` must be a list of names or options each")
        check_places(hosts, self.launcher, self.sbatch)
        if not (self.resume_anyway or hosts):
            check_given(
                file,
                values,
                example=lambda model, data: f'colablock.train("{name}", model="{model}", dataset="{data}")',
            )
        with open_session(quiet=self.quiet) as session:
            proven = None if hosts else proven_environment(session, name)
            used = self.runner or (proven.runner if proven else session.matrix(name).train.runner)
            asked = self._options(options_of(file, runner=used, values=values, strict=self.strict))
            call = repeated_call(name, file, values, asked, strict=self.strict)
            if proven is None:
                return self._on_hosts(call, asked.config)
            if self.launcher is not None and submits_job(self.sbatch, os.environ):
                return self._submit(call, asked.config, proven)
            if self.launcher is not None:
                has_card = needs_card(proven.versions)
                launch = job_arguments(os.environ, asked.launch_arguments, has_card=has_card)
                asked = replace(asked, launch_arguments=launch)
            run = self._start_or_find(session, proven, asked)
        return run.follow(quiet=self.quiet) if self.wait else run

    def _options(self, options: TrainOptions) -> TrainOptions:
        """Return *options*, which have the config, with the others of the call."""
        return replace(
            options,
            runner=self.runner,
            fresh=self.fresh,
            resume_anyway=self.resume_anyway,
            anyway=self.anyway,
            mirror=os.fspath(self.mirror) if self.mirror is not None else None,
            shard=self.shard,
            launch_arguments=tuple(self.launch_arguments),
        )

    def _on_hosts(self, call: RepeatedCall, config: TrainConfig) -> Run:
        """Show the command for each host, and return the run that they make."""
        commands, folder = call.on(self.hosts), default_folder(config)
        run = Run(NamedRun(folder.name, RunFolder(folder)))
        run.commands = {host: shlex.join(words) for host, words in commands.items()}
        if not self.quiet:
            _show(commands_document(run.commands))
        return run

    def _submit(self, call: RepeatedCall, config: TrainConfig, proven: ProvenEnvironment) -> Run:
        """Submit a job of Slurm, and return the run that begins in it."""
        done = call.submit(
            default_folder(with_own_folder(config, tuple(call.launch), home_folder(os.environ))),
            self.sbatch,
            is_named=bool(config.output_dir),
            has_card=needs_card(proven.versions),
            environ=os.environ,
        )
        run = Run(NamedRun(done.folder.name, RunFolder(done.folder)))
        run.job = done.job
        if not self.quiet:
            _show(job_document(done.job, done.script))
        return run

    def _start_or_find(self, session: Session, proven: ProvenEnvironment, options: TrainOptions) -> Run:
        named = start_or_find(
            proven,
            options,
            home=home_folder(os.environ),
            environ=os.environ,
            reporter=session.reporter,
            show=(lambda _: None) if self.quiet else (lambda briefing: _show(briefing_document(briefing))),
        )
        return Run(named)


def _check_names(settings: Mapping[str, Any]) -> None:
    """Raise InvalidCall for a key that is none of the config, and nearest to an argument of `train`."""
    arguments = [name for name in inspect.signature(train).parameters if name != "settings"]
    keys = [one.name for one in fields(TrainConfig)]
    for key in settings.keys() - set(keys):
        found = nearest(key, [*arguments, *keys], likeness=_SLIP)
        if found in arguments:
            message = f"`colablock.train()` has no argument `{key}`"
            raise InvalidCall(message, hint=f"did you mean `{found}`?")


@front_door("Nothing was changed.")
def attach(run_id: str | os.PathLike[str] | None = None, *, wait: bool = True) -> Run:
    """Return a run by its name or folder, by default the newest, and follow it if it is running."""
    home = home_folder(os.environ)
    run = Run(NamedRun(*find_run(home, os.fspath(run_id) if run_id is not None else None)))
    return run.follow() if wait and run.state == State.RUNNING.value else run


@front_door("Nothing was changed.")
def runs() -> Lines[Run]:
    """Return the runs that were started on this machine, newest first."""
    found = [Run(NamedRun(name, folder)) for name, folder in list_runs(home_folder(os.environ))]
    return Lines(found).shown_as(lambda some: runs_document([one.summary for one in some]))


@front_door(UNCHANGED)
def smoke(name: Name, *, runner: str | None = None, quiet: bool = False) -> Receipt:
    """Train a tiny model for ten steps, offline, in the environment of the last apply; return the receipt.

    Raises TrainingFailed if the run fails.  Whether the losses are as expected is in the receipt.
    """
    with open_session(quiet=quiet) as session:
        receipt = run_smoke(session, os.fspath(name), runner=runner)
    if not quiet:
        _show(receipt_document(receipt))
        note_shown(receipt)
    return receipt


def raise_failure(summary: RunSummary) -> None:
    """Raise TrainingFailed if the run failed or was killed."""
    if summary.state not in (State.FAILED, State.KILLED):
        return
    explanation = summary.explanation
    if explanation is None:
        raise TrainingFailed(f"the run `{summary.id}` failed", folder=str(summary.folder))
    hint = explanation.advice[0] if explanation.advice else None
    message = f"the run `{summary.id}` failed: {explanation.title}"
    raise TrainingFailed(message, folder=str(summary.folder), hint=hint)


def _show(document: Document) -> None:
    shell = current_shell()
    if shell is None:
        print(to_text(spoken_in_python(document)))  # noqa: T201 - outside a notebook this is where it is read
    else:
        publish(document, shell)
