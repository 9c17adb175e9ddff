"""The smoke run: ten real training steps with a tiny model and text, offline, to prove that a stack trains.

It takes the same steps as a run: tokenised data, launch, runner, callback, adapter.  It trains
twice: once to check that a fixed loss falls, and once with learning rate 0 to check that training
is what makes it fall.  The two run at the same time, unless the card takes one process only, and
each in its own process, so that neither can change the other.  They import the stack while model
and data are made.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import zip_longest
from pathlib import Path
from typing import Any

from colablock._common.fs import make_private
from colablock._common.process import last_lines
from colablock._common.reporter import Reporter
from colablock._common.scratch import scratch_folder
from colablock._version import __version__
from colablock.environment.accelerator import Accelerator, has_nf4
from colablock.errors import Refused, TrainingFailed, Unmet
from colablock.training.preflight.facts import Precision, ProvenEnvironment, precision_for
from colablock.training.preflight.machine import is_exclusive
from colablock.training.preflight.unsloth_rules import NO_CARD
from colablock.training.preflight.unsloth_rules import RUNNER as UNSLOTH
from colablock.training.prepared_data import prepare_data
from colablock.training.receipts import Receipt
from colablock.training.runs.config import Adapter, DataSource, TrainConfig
from colablock.training.runs.folder import RunFolder, RunRecord, State
from colablock.training.runs.launch import EarlyLauncher, exit_code_of
from colablock.training.runs.loss_curve import number_of
from colablock.training.start import Job, start_early_for, start_job, workarounds_for

__all__ = ["STEPS", "smoke"]

STEPS = 10
_RATE = 1e-2
_SEED = 0
# Threads of a tiny model mostly wait for each other: where others use the cores, that takes seconds a step.
_ONE_THREAD = ("--num_cpu_threads_per_process", "1")
_ROWS = 8  # for the evaluation loss
_HERE = Path(__file__).parent
_TEXT = _HERE / "toy.jsonl"
_PAUSE = 0.1


def smoke(
    proven: ProvenEnvironment,
    *,
    runner: str,
    accelerator: Accelerator,
    environ: Mapping[str, str],
    reporter: Reporter,
    timeout: float = 1800.0,
) -> Receipt:
    """Train the tiny model in the environment *proven* and return the receipt, passed or not.

    Raises TrainingFailed with the last lines of the log if a run fails, Unmet if the tiny model
    cannot be made, Refused if *runner* needs a card.  *timeout* is in seconds.
    """
    started = time.monotonic()
    has_card = accelerator.kind == "cuda"
    if runner == UNSLOTH and not has_card:
        raise Refused(f"{NO_CARD.what}: {NO_CARD.why}", hint=f"{NO_CARD.fix[0].upper()}{NO_CARD.fix[1:]}")
    quantized, notes = _can_quantize(proven, has_card=has_card)
    with scratch_folder() as scratch:
        attempt = _Attempt(
            proven=proven,
            runner=runner,
            precision=precision_for(device.capability for device in accelerator.devices[:1]),
            accelerator=replace(accelerator, devices=accelerator.devices[:1]),
            adapter=Adapter.QLORA if quantized else Adapter.LORA,
            scratch=scratch,
            environ=environ,
            reporter=reporter,
            deadline=started + timeout,
        )
        learning, holding = attempt.train_twice()
    receipt = attempt.receipt(learning, holding, seconds=round(time.monotonic() - started, 1))
    return replace(receipt, notes=tuple(notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    proven: ProvenEnvironment
    runner: str
    precision: Precision
    accelerator: Accelerator
    adapter: Adapter
    scratch: Path
    environ: Mapping[str, str]
    reporter: Reporter
    deadline: float

    @property
    def workarounds(self) -> tuple[str, ...]:
        return workarounds_for(self.proven, self.runner, self.accelerator)

    @property
    def model(self) -> Path:
        return self.scratch / "model"

    @property
    def prepared_folder(self) -> RunFolder:
        """The folder with the tokenised data of both trainings."""
        return RunFolder(self.scratch / "prepared")

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of a run, with every cache in the scratch folder."""
        caches = {"HF_HOME": "huggingface", "TRITON_CACHE_DIR": "triton"}
        return {**self.environ, **{name: str(self.scratch / folder) for name, folder in caches.items()}}

    def train_twice(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Train with the learning rate and with 0; return the events of both."""
        rates = {"learning": _RATE, "holding": 0.0}
        runs = {RunFolder(make_private(self.scratch / name)): rate for name, rate in rates.items()}
        alone = self.accelerator.kind == "cuda" and is_exclusive(self.environ)
        with ExitStack() as ending:
            launchers = [
                ending.enter_context(self._early(folder)) for folder in list(runs)[: 1 if alone else 2]
            ]
            prepared = self.prepare()
            self.reporter.stage(f"Training {STEPS} steps, and {STEPS} with learning rate 0")
            records: dict[RunFolder, RunRecord] = {}
            for (folder, rate), early in zip_longest(runs.items(), launchers):
                shutil.copytree(self.prepared_folder.data, folder.data)
                records[folder] = start_job(
                    self._job(rate),
                    prepared,
                    folder,
                    home=self.scratch,
                    environ=self.variables,
                    early=early,
                )
                ending.callback(_kill, records[folder])  # its folder will be deleted
                if alone:
                    self._wait(records[folder], folder)
            for folder, record in records.items():
                self._wait(record, folder)
        learning, holding = (folder.metrics() for folder in runs)
        return learning, holding

    def _early(self, folder: RunFolder) -> AbstractContextManager[EarlyLauncher | None]:
        data = self._job(_RATE)
        return start_early_for(data, folder, self.variables, self.accelerator, data.launch_arguments)

    def prepare(self) -> dict[str, Any]:
        """Make the tiny model, its tokenizer and the tokenised data; return the result of ``prepare.py``."""
        toy = {"folder": str(self.model), "text": str(_TEXT), "seed": _SEED}
        left = max(self.deadline - time.monotonic(), 0.0)
        try:
            return prepare_data(
                self._job(_RATE), self.prepared_folder, self.variables, self.reporter, toy=toy, timeout=left
            )
        except Unmet as error:
            if time.monotonic() < self.deadline:
                raise
            raise _timed_out() from error

    def receipt(
        self, learning: list[dict[str, Any]], holding: list[dict[str, Any]], *, seconds: float
    ) -> Receipt:
        """Return the receipt for the events of the run that learns and of the one with learning rate 0."""
        has_card = self.accelerator.kind == "cuda"
        device = self.accelerator.devices[0] if has_card else None
        before, after = _evaluations(learning)
        return Receipt(
            matrix=self.proven.matrix,
            matrix_digest=self.proven.matrix_digest,
            variant=self.proven.variant,
            runner=self.runner,
            workarounds=self.workarounds,
            lock=self.proven.lock,
            python_version=self.proven.python_version,
            card=device.name if device else "cpu",
            compute_capability=device.compute_capability if device else None,
            driver=self.accelerator.driver if has_card else None,
            cuda=self.accelerator.cuda if has_card else None,
            precision=self.precision.name,
            quantized=self.adapter is Adapter.QLORA,
            steps=int(max(_numbers(learning, "step", of="end"), default=0)),
            losses=tuple(_numbers(learning, "loss", of="log")),
            before=before,
            after=after,
            held=_evaluations(holding),
            seconds=seconds,
            memory=int(max(_numbers(learning, "memory", of="log"), default=0)),
            date=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            colablock=__version__,
            versions=dict(self.proven.versions),
            runtime=self.environ.get("COLAB_RELEASE_TAG"),
        )

    def _job(self, learning_rate: float) -> Job:
        return Job(
            proven=self.proven,
            runner=self.runner,
            workarounds=self.workarounds,
            config=TrainConfig(
                base_model=str(self.model),
                datasets=(DataSource(path=str(_TEXT)),),
                adapter=self.adapter,
                sequence_len=64,
                micro_batch_size=4,
                gradient_accumulation_steps=1,
                max_steps=STEPS,
                learning_rate=learning_rate,
                lr_scheduler="constant",
                warmup_ratio=0.0,
                max_grad_norm=1.0,
                seed=_SEED,
            ),
            precision=self.precision,
            accelerator=self.accelerator,
            cards=(0,) if self.accelerator.kind == "cuda" else None,
            evaluate=_ROWS,
            offline=True,
            launch_arguments=_ONE_THREAD,
        )

    def _wait(self, record: RunRecord, folder: RunFolder) -> None:
        """Report the progress until the run has ended.  Raises TrainingFailed if it fails or is late."""
        while exit_code_of(record.process, record.process_started) is None:
            if time.monotonic() > self.deadline:
                raise _timed_out()
            events = (event for event in folder.metrics() if event.get("event") in ("step", "log"))
            steps = [int(step) for event in events if (step := number_of(event, "step"))]
            if steps:
                self.reporter.step(f"step {steps[-1]}", min(steps[-1], STEPS), STEPS)
            time.sleep(_PAUSE)
        if folder.state() is not State.DONE:
            raise _failed(folder)


def _kill(record: RunRecord) -> None:
    """Kill the session of a launcher, and wait for its end."""
    if exit_code_of(record.process, record.process_started) is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(record.process, signal.SIGKILL)
    while exit_code_of(record.process, record.process_started) is None:
        time.sleep(_PAUSE)


def _timed_out() -> TrainingFailed:
    hint = "End other processes that use the CPU or the card (`top` and `nvidia-smi` list them)"
    return TrainingFailed("the smoke run timed out", hint=hint)


def _failed(folder: RunFolder) -> TrainingFailed:
    end = folder.end()
    output = str(end.get("traceback") or "") or folder.log.read_text(encoding="utf-8", errors="replace")
    return TrainingFailed(f"the smoke run failed\n{last_lines(output, indent='  ')}")


def _numbers(events: Iterable[Mapping[str, Any]], key: str, *, of: str) -> list[float]:
    found = (number_of(event, key) for event in events if event.get("event") == of)
    return [value for value in found if value is not None]


def _evaluations(events: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the evaluation loss before and after training."""
    told = [event for event in events if event.get("event") == "evaluation"]
    found = {event.get("when"): number_of(event, "loss") for event in told}
    before, after = found.get("before"), found.get("after")
    if before is None or after is None:
        raise TrainingFailed("the smoke run did not write its evaluation loss before and after training")
    return before, after


def _can_quantize(proven: ProvenEnvironment, *, has_card: bool) -> tuple[bool, list[str]]:
    """Return whether NF4 works here, and notes if it does not."""
    version = proven.versions.get("bitsandbytes")
    if version is None:
        return False, ["this stack has no bitsandbytes: trained LoRA without quantisation"]
    if has_nf4(version, has_gpu=has_card):
        return True, []
    return False, [f"bitsandbytes {version} needs a card to quantise: trained LoRA without quantisation"]
