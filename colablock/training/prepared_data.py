"""Prepare a run in the target: read its stack and tokenise the data, in one process.

The process starts before preflight, which runs meanwhile: most of its time goes to imports of torch and
transformers, which both parts need.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colablock._common.decoding import Malformed, decode, fitted, read_bounded
from colablock._common.fs import expanded, make_private, write_atomic
from colablock._common.limits import RUN_FILE
from colablock._common.reporter import Reporter
from colablock.environment.target_script import TargetProcess, start_target
from colablock.errors import Unmet
from colablock.network.cache import cache_folder, distrusted
from colablock.training.chat_templates import chosen_template
from colablock.training.preflight.facts import ProvenEnvironment, Stack
from colablock.training.preflight.machine import STACK_TIMEOUT, stack_from
from colablock.training.runs.config import OWN_DATA, TrainConfig
from colablock.training.runs.folder import RunFolder
from colablock.training.runs.launch import launch_environment
from colablock.training.runs.runners import runner_of
from colablock.training.scripts import FOLDER as SCRIPTS

__all__ = ["DataJob", "Preparation", "bytecode_folder", "local_path", "prepare_data", "start_preparation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataJob:
    """What the tokens of a run depend on.

    *evaluate* is the number of rows for the evaluation loss before and after training.
    """

    proven: ProvenEnvironment
    config: TrainConfig
    runner: str
    evaluate: int = 0
    offline: bool = False
    data_digest: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


def prepare_data(
    job: DataJob,
    folder: RunFolder,
    environ: Mapping[str, str],
    reporter: Reporter,
    *,
    toy: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Tokenise the data of *job* and return the result of ``scripts/prepare.py``.

    Data that axolotl reads itself are left alone: the result then has no rows.  Cached tokens are
    reused only for the same data and the same settings.  With *toy* the same
    process first makes a tiny model.  Raises InvalidInput for data that cannot be trained on,
    Unmet if the process failed.
    """
    known = _known(job, folder)
    if known is not None:
        return known
    with start_preparation(job, folder, environ, toy=toy, reads_stack=False) as preparation:
        return preparation.tokens(reporter, timeout=timeout)


@contextmanager
def start_preparation(
    job: DataJob,
    folder: RunFolder,
    environ: Mapping[str, str],
    *,
    toy: Mapping[str, Any] | None = None,
    reads_stack: bool = True,
) -> Iterator[Preparation]:
    """Start the process that reads the stack, and tokenises the data of *job* as `prepare_data` does.

    At the end of the block the process is killed, and unfinished tokens are removed.
    """
    known, new = _known(job, folder), _unfinished(folder)
    shutil.rmtree(new, ignore_errors=True)
    data = None if known is not None else {**_data_request(job), "folder": str(new.absolute())}
    environment = launch_environment(job.proven.python, environ, reports=False, offline=job.offline)
    started = start_target(
        job.proven.python,
        SCRIPTS / "prepare.py",
        {"stack": reads_stack, "toy": toy, "data": data},
        environ=environment | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
        secrets=job.secrets,
        bytecode=bytecode_folder(job.proven, environ),
    )
    try:
        with started as process:
            yield Preparation(process, job, folder, known, is_toy=toy is not None)
    finally:
        shutil.rmtree(new, ignore_errors=True)


class Preparation:
    """The process in the target.  *seconds* are those that each finished part took."""

    def __init__(
        self,
        process: TargetProcess,
        job: DataJob,
        folder: RunFolder,
        known: dict[str, Any] | None,
        *,
        is_toy: bool = False,
    ) -> None:
        self._process, self._job, self._folder, self._known = process, job, folder, known
        self._is_toy = is_toy
        self._began = time.monotonic()
        self.seconds: dict[str, float] = {}

    @property
    def has_tokens(self) -> bool:
        """Whether the tokens of an earlier start serve, so that no data is read."""
        return self._known is not None

    def stack(self) -> Stack:
        """Return the stack of the target.  Raises Unmet if torch or transformers cannot be imported."""
        found = self._process.part("stack", doing="report its stack", timeout=STACK_TIMEOUT, answers=dict)
        self._pass("facts")
        return stack_from(found, self._job.proven.python, self._job.proven.matrix)

    def tokens(self, reporter: Reporter, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the result of ``scripts/prepare.py``, and keep the tokens in the folder of the run."""
        if self._known is not None:
            return self._known
        reporter.stage("Making a tiny model and its data" if self._is_toy else "Tokenising the data")
        doing = "make a tiny model and its data" if self._is_toy else "prepare the data"
        result: dict[str, Any] = self._process.answer(doing=doing, timeout=timeout, answers=dict)
        try:
            result = {**_checked(result), "made_of": _made_of(self._job)}
        except Malformed as error:
            raise Unmet(f"the result of `{self._job.proven.python}` cannot be read: {error}") from error
        new = _unfinished(self._folder)
        write_atomic(new / "result.json", json.dumps(result).encode())
        shutil.rmtree(self._folder.data, ignore_errors=True)
        new.rename(self._folder.data)
        self._pass("tokens")
        return result

    def _pass(self, part: str) -> None:
        self.seconds[part] = time.monotonic() - self._began - sum(self.seconds.values())


def bytecode_folder(proven: ProvenEnvironment, environ: Mapping[str, str]) -> Path | None:
    """Return the folder in the cache for the bytecode of a stack; None if the environment has its own.

    Without any, each process compiles the whole stack.  Python compares bytecode with its source by
    size and time only, so that the name of the folder depends on the versions.
    """
    found = [folder for site in proven.sites if (folder := Path(site, "torch")).is_dir()]
    cache = cache_folder(environ).absolute()
    if not found or any((folder / "__pycache__").is_dir() for folder in found) or distrusted(cache):
        return None
    state = json.dumps([proven.python, proven.lock, sorted(proven.versions.items())])
    key = hashlib.sha256(state.encode()).hexdigest()
    folder = cache / "bytecode" / key[:2] / key
    try:
        os.utime(make_private(folder))  # it was used
    except OSError:
        return None
    return folder


def _unfinished(folder: RunFolder) -> Path:
    return folder.data.with_name(f".{folder.data.name}")


def _made_of(job: DataJob) -> str:
    return hashlib.sha256(json.dumps([_data_request(job), job.data_digest]).encode()).hexdigest()


def _known(job: DataJob, folder: RunFolder) -> dict[str, Any] | None:
    """Return the result for data that axolotl reads itself, or for tokens that are there already."""
    if OWN_DATA in job.config.extra:
        return dict(_UNREAD)
    try:
        known = decode(read_bounded(folder.data / "result.json", RUN_FILE), dict, by_python=True)
        return _checked(known) if known.get("made_of") == _made_of(job) else None
    except (OSError, Malformed):
        return None  # not prepared yet, or not by us


_UNREAD: Mapping[str, Any] = {
    **dict.fromkeys(("rows", "tokens", "trained", "cut", "lost", "dropped", "longest", "train_rows"), 0),
    "forms": ["axolotl"],
    "pad_token": "",
    "eos_token": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """The parts of the result of ``scripts/prepare.py`` that are used."""

    rows: int
    tokens: int
    trained: int
    cut: int
    lost: int
    dropped: int
    longest: int
    train_rows: int
    forms: tuple[str, ...]
    pad_token: str | None
    eos_token: str | None
    notes: tuple[str, ...] = ()
    thinks: bool = False
    chat_template: str | None = None


def _checked(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return *result* if it has the parts that are used.  Raises Malformed."""
    fitted(dict(result), _Prepared)
    return dict(result)


def _data_request(job: DataJob) -> dict[str, Any]:
    """Return everything that the tokens depend on, except the contents of the data."""
    config = job.config
    template = chosen_template(config.chat_template)
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
        "chat_template": template.text,
        "keeps_template": template.is_fallback,
        "template_of_axolotl": template.of_axolotl,
        "datasets": sources,
        "sequence_len": config.sequence_len,
        "train_on_inputs": config.train_on_inputs,
        "held_share": config.val_set_size,
        "val_set_size": config.val_set_size if runner_of(job.runner).splits else 0,
        "seed": config.seed,
        "evaluate": job.evaluate,
    }


def local_path(path: str) -> str:
    """Return *path* as an absolute path if it exists, since a run works in its own folder.

    Any other value is a name on the hub and is returned unchanged.
    """
    found = expanded(path, "a model or dataset")
    return str(found.absolute()) if found.exists() else path
