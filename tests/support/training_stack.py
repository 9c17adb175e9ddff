"""An environment with stand-ins of the training libraries (``tests/data/training_stack``), and its runs."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from colablock._common.reporter import Reporter
from colablock.environment.accelerator import Accelerator
from colablock.environment.snapshot import installed_versions
from colablock.matrix.catalog import find_matrix
from colablock.planning.plan import Target
from colablock.training.preflight.facts import FP32, ProvenEnvironment
from colablock.training.prepared_data import prepare_data
from colablock.training.runs.checkpoints.finder import data_digest
from colablock.training.runs.config import Adapter, DataSource, TrainConfig
from colablock.training.runs.folder import RunFolder, RunRecord
from colablock.training.runs.launch import exit_code_of, start_process
from colablock.training.start import Job, start_job
from colablock.transaction.apply_record import ApplyRecord, save, versions_digest
from colablock.transaction.serialise import report_to_json
from colablock.verification.verify import Report
from tests.support.paths import DATA
from tests.support.runtime import Stub, Venv, build_site, make_venv
from tests.support.stubs import CONTENTS
from tests.support.timing import until

__all__ = [
    "Bench",
    "TrainingStack",
    "again",
    "build_training_stack",
    "end_of",
    "kill",
    "losses_of",
    "read_record",
    "stand_in_contents",
    "steps_of",
    "write_model",
]

FOLDER = DATA / "training_stack"
VERSIONS: Mapping[str, str] = {
    "accelerate": "1.15.0",
    "axolotl": "0.18.0",
    "bitsandbytes": "0.50.2",
    "datasets": "4.0.0",
    "huggingface_hub": "1.27.0",
    "peft": "0.21.2",
    "tokenizers": "0.22.2",
    "torch": "2.11.0",
    "transformers": "5.17.0",
    "trl": "1.16.0",
    "unsloth": "2026.10.9",
}
_VOCABULARY = 259
_SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "vocab_size": _VOCABULARY,
}


@dataclass(frozen=True, slots=True)
class TrainingStack(Venv):
    """An environment with stand-ins of the training libraries, and a tiny model."""

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def proven(self, **changes: Any) -> ProvenEnvironment:
        """Return the environment as preflight gets it."""
        usual = ProvenEnvironment(
            matrix="tiny", python=self.python, lock="l" * 64, runner="trl", versions=VERSIONS
        )
        return replace(usual, **changes)

    def apply(self, home: Path, matrix: Path) -> None:
        """Record at *home* that *matrix* was applied to this environment."""
        found = find_matrix(str(matrix))
        versions = installed_versions([str(self.site)])
        version = ".".join(map(str, sys.version_info[:3]))
        report = Report(
            matrix=found.name,
            variant=None,
            target="env",
            python=self.python,
            python_version=version,
            checks=(),
            lock_digest="l" * 64,
        )
        record = ApplyRecord(
            name=found.name,
            key="k",
            target=Target.ENV.value,
            python=self.python,
            prefix=str(self.folder),
            sites=(str(self.site),),
            state=versions_digest(versions),
            matrix_digest=found.digest,
            variant=None,
            pins=versions,
            report=report_to_json(report),
            source=str(matrix),
            versions=versions,
        )
        save(record, home)


def build_training_stack(folder: Path, *, without: Iterable[str] = ()) -> TrainingStack:
    """Make the environment in *folder*, without the distributions *without*."""
    make_venv(folder, sys.executable)
    stack = TrainingStack(folder)
    stubs = [
        Stub(name=name, version=version, import_names=(), files=dict(_files_of(name)))
        for name, version in VERSIONS.items()
        if name not in without
    ]
    # The configs of accelerate and axolotl are YAML.
    build_site(stack.site, [*stubs, Stub(name="PyYAML", version="6.0", import_names=(), files=_yaml_files())])
    write_model(stack.model)
    return stack


def write_model(folder: Path) -> None:
    """Write the tiny model of the stand-ins into *folder*."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(_SHAPE))
    scores = [(at * 37 % 101) / 50 - 1 for at in range(_VOCABULARY)]
    (folder / "model.safetensors").write_text(json.dumps(scores))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "chat_template": "ChatML"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))


def stand_in_contents() -> Mapping[str, Mapping[str, str]]:
    """Return the files that make a recorded index or runtime train, as `stubs.CONTENTS` has those for proofs.

    They say no version: it is that of the distribution which has them.
    """
    contents = {name: dict(files) for name, files in CONTENTS.items()}
    for name in VERSIONS:
        for path, source in _files_of(name):
            where = f"{name}/__init__.py" if path == f"{name}.py" else path
            lines = [line for line in source.splitlines() if not line.startswith("__version__")]
            files = contents.setdefault(name, {})
            files[where] = files.get(where, "") + "\n".join(["", *lines, ""])
    return {**contents, "pyyaml": _yaml_files()}


def _yaml_files() -> dict[str, str]:
    """Return the pure Python of PyYAML, which is enough of it."""
    return {f"yaml/{path.name}": path.read_text() for path in Path(yaml.__file__).parent.glob("*.py")}


def _files_of(name: str) -> Iterable[tuple[str, str]]:
    module, package = FOLDER / f"{name}.py", FOLDER / name
    for path in [module] if module.is_file() else sorted(package.rglob("*.py")):
        yield path.relative_to(FOLDER).as_posix(), path.read_text()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The folder of the runs of a stack.  *extra* variables are set in every process."""

    stack: TrainingStack
    folder: Path
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @cached_property
    def data(self) -> Path:
        path = self.folder / "data.jsonl"
        rows = [{"text": "a kernel begins empty " * (at % 3 + 1)} for at in range(12)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment variables of a process."""
        own = {"COLABLOCK_HOME": str(self.home), "COLUMNS": "80", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
        return {**os.environ, **own, **self.extra, **more}

    @contextmanager
    def held(self, *, at: int = 2) -> Iterator[dict[str, str]]:
        """Yield the environment variables of a run that takes no step after *at* while this is open."""
        gate = self.folder / "gate"
        gate.write_text(f"{at}")
        try:
            yield {"STAND_IN_GATE": str(gate)}
        finally:
            gate.unlink()

    def config(self, **changes: Any) -> TrainConfig:
        usual = TrainConfig(
            base_model=str(self.stack.model),
            datasets=(DataSource(path=str(self.data)),),
            adapter=Adapter.QLORA,
            sequence_len=64,
            micro_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=6,
            learning_rate=1e-2,
            output_dir=str(self.folder / "run"),
        )
        return replace(usual, **changes)

    def job(self, *, proven: ProvenEnvironment | None = None, **changes: Any) -> Job:
        """Return a job as preflight makes it on a machine without a GPU."""
        proven = proven or self.stack.proven()
        usual = Job(
            proven=proven,
            config=self.config(),
            runner=proven.runner or "trl",
            precision=FP32,
            accelerator=Accelerator(),
            workarounds=proven.workarounds,
        )
        job = replace(usual, **changes)
        return job if job.data_digest else replace(job, data_digest=data_digest(job.config.datasets))

    def begin(self, job: Job, name: str = "run", **more: str) -> RunFolder:
        """Start *job* in the folder *name*, and return the folder.  Existing tokens are reused."""
        folder, environ = RunFolder(self.folder / name), self.environ(**more)
        prepared = prepare_data(job, folder, environ, Reporter())
        start_job(job, prepared, folder, home=self.home, environ=environ)
        return folder

    def train(self, job: Job, name: str = "run", **more: str) -> RunFolder:
        """Start *job* and wait for its end."""
        return end_of(self.begin(job, name, **more))


def end_of(folder: RunFolder) -> RunFolder:
    """Wait until the launcher of the run has ended, and return the folder."""
    record = read_record(folder)
    until(lambda: exit_code_of(record.process, record.process_started) is not None)
    until(lambda: not folder.is_alive())  # its ranks may take a moment longer
    return folder


def read_record(folder: RunFolder) -> RunRecord:
    record = folder.record()
    assert record is not None
    return record


def kill(folder: RunFolder) -> None:
    """Kill every process of the run, as the loss of the runtime does."""
    os.killpg(read_record(folder).process, signal.SIGKILL)
    end_of(folder)


def again(folder: RunFolder, environ: Mapping[str, str], **job: Any) -> RunFolder:
    """Start the command of an ended run again with changed values in its job; return the folder."""
    known = json.loads(folder.job_file.read_text())
    folder.job_file.write_text(json.dumps({**known, **job}))
    record = read_record(folder)
    started = start_process(record.command, folder, environ)
    known_as = replace(record, process=started.process, process_started=started.process_started)
    folder.write_record(known_as)
    return folder


def losses_of(folder: RunFolder) -> dict[int, float]:
    """Return the loss of each step.  Of a repeated step the later event counts."""
    return {
        event["step"]: event["loss"]
        for event in folder.metrics()
        if "loss" in event and event["event"] == "log"
    }


def steps_of(folder: RunFolder, event: str = "log") -> list[int]:
    """Return the steps of all events of one kind, in order."""
    return [one["step"] for one in folder.metrics() if one["event"] == event]
