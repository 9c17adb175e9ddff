"""Parsers of state: changes of environments, applies, isolated environments, runs, checkpoints, evidence."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

from colablock._common.decoding import Malformed, decode
from colablock._vendor.packaging.utils import NormalizedName
from colablock.check.results_file import compared
from colablock.display.info_view import envs_document, history_document
from colablock.display.run_view import run_document, runs_document
from colablock.display.text import to_text
from colablock.environment.accelerator import Accelerator
from colablock.environment.site import Site
from colablock.errors import ColablockError
from colablock.matrix.model import Matrix
from colablock.training.evidence import evidence_of, read_apply_receipts
from colablock.training.preflight.model_config import from_config
from colablock.training.receipts import proof_note, read_receipts, receipt_from
from colablock.training.runs.checkpoints.archives import unpack
from colablock.training.runs.checkpoints.finder import verify_checkpoint
from colablock.training.runs.checkpoints.mirror import is_being_mirrored, mirror_notes, record_mirrored
from colablock.training.runs.checkpoints.stores import FolderStore
from colablock.training.runs.crash import explain, tracebacks
from colablock.training.runs.folder import RunFolder, State, list_runs, record_to_json
from colablock.training.runs.loss_curve import curve_svg, evaluation_points, loss_points, sparkline_svg
from colablock.training.runs.progress import follow
from colablock.training.runs.summary import summary_of, summary_to_json
from colablock.transaction.apply_record import ApplyRecord, load
from colablock.transaction.history import damaged_changes, read_history, read_journal
from colablock.transaction.isolated_envs import list_envs
from colablock.transaction.serialise import change_to_json, report_from_json
from colablock.verification.worker import _lines
from tests.fuzz.target import ROOT, Target, json_bytes, target
from tests.support.runs import events_of, make_record
from tests.support.training import read_config

__all__ = ["STATE"]

MATRIX = Matrix(name="demo", source="demo.toml", digest="d" * 64)

# Changes of an environment

SITE = "/fuzz/env/lib/python3.12/site-packages"
STASH = "/fuzz/env/.colablock/changes/0001/stash"


def site_in(folder: str = "/fuzz/env") -> Site:
    site = f"{folder}/lib/python3.12/site-packages"
    return Site(
        python=f"{folder}/bin/python",
        prefix=folder,
        purelib=site,
        platlib=site,
        scripts=f"{folder}/bin",
        data=folder,
        is_venv=True,
    )


_OPERATIONS = [
    {"kind": "out", "source": f"{SITE}/gone", "destination": f"{STASH}/0", "mode": 493},
    {"kind": "mkdir", "source": "", "destination": f"{SITE}/new", "mode": 493},
    {
        "kind": "in",
        "source": "/fuzz/env/.colablock/stage/x",
        "destination": f"{SITE}/new/x",
        "mode": 493,
    },
    {"kind": "rmdir", "source": f"{SITE}/old", "destination": "", "mode": 493},
]
_CHANGE = {
    "schema": 1,
    "pid": 7,
    "forward": False,
    "is_dropped": False,
    "becomes": "changes/0001/record.json",
    "when": "2026-08-01T10:00:00+00:00",
    "matrix": "demo",
    "stack": "ab" * 32,
    "lock": None,
    "runtime": "colab-2026.07-gpu",
    "applied_before": None,
    "before": {"gone": "1.0", "torch": "2.0+cu118"},
    "steps": [{"action": "replace", "name": "torch", "previous": "2.0", "version": "2.1"}],
    "stashed": {"0": f"{SITE}/gone", "1": f"{SITE}/odd\udce9.py"},
    "created": [f"{SITE}/new"],
    "operations": _OPERATIONS,
}


def _journal(data: bytes, folder: Path) -> object:
    (folder / "journal.json").write_bytes(data)
    return read_journal(folder / "journal.json", site_in())


def _history(data: bytes, folder: Path) -> object:
    site = site_in(str(folder.resolve()))
    (site.state / "changes" / "0001").mkdir(parents=True, exist_ok=True)
    (site.state / "changes" / "0001" / "record.json").write_bytes(
        data.replace(b"/fuzz/env", str(folder).encode())
    )
    changes, damaged = read_history(site), damaged_changes(site)
    json.dumps([change_to_json(one) for one in changes])
    return to_text(history_document(changes, damaged)).encode("utf-8", "surrogateescape")


# Applies and environments

_REPORT = {
    "version": 1,
    "matrix": "demo",
    "variant": None,
    "target": "env",
    "python": "/env/bin/python",
    "python_version": "3.12.1",
    "checks": [{"kind": "import", "subject": "torch", "passed": True, "detail": "", "seconds": 0.5}],
    "changed": True,
}
_APPLY = ApplyRecord(
    name="demo",
    key="k" * 64,
    target="env",
    python="/env/bin/python",
    prefix="/env",
    sites=("/env/lib",),
    state="s" * 64,
    matrix_digest="d",
    variant="cpu",
    pins={NormalizedName("torch"): "2.0"},
    unmet=(("a", "b>=1"),),
    report=_REPORT,
    versions={NormalizedName("torch"): "2.0"},
)


def _apply(data: bytes, folder: Path) -> object:
    (folder / "applied").mkdir(exist_ok=True)
    (folder / "applied" / "demo.json").write_bytes(data)
    last = load("demo", folder)
    return last and report_from_json(last.report)


_MANIFEST: dict[str, object] = {
    "lock": "abc",
    "matrix": "demo",
    "matrix_digest": "d",
    "variant": None,
    "python": "/home/envs/abc/bin/python",
    "python_version": "3.12.1",
    "interpreter": "/usr/bin/python3",
    "site": "/home/envs/abc/lib/python3.12/site-packages",
    "created": "2026-08-01T10:00:00+00:00",
    "installed": {},
    "schema": 1,
}


def _environment(data: bytes, folder: Path) -> object:
    env = folder / "envs" / "abc"
    (env / "bin").mkdir(parents=True, exist_ok=True)
    (env / "bin" / "python").touch()
    (env / "colablock.json").write_bytes(data.replace(b"/home/envs", str(folder / "envs").encode()))
    return to_text(envs_document(list_envs(folder))).encode("utf-8", "surrogateescape")


# Runs

_LOG = b"""
--- colablock: started 2026-08-01 10:00:00
Loading: 10%\rLoading: 100%
[rank0]: Traceback (most recent call last):
[rank0]:   File "x.py", line 3, in <module>
[rank0]:     f()
[rank0]: torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total
Traceback (most recent call last):
  File "y.py", line 1, in f
ValueError: bad

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "y.py", line 1, in f
RuntimeError: died with <Signals.SIGKILL: 9>. exitcode : -9
"""
_END = {"state": "failed", "step": 40, "error": "ValueError: no", "traceback": "Traceback", "time": 1.79e9}
_EVENTS = events_of([3.0, 2.5, 2.0], save_every=2)
_METRICS = "".join(
    f"{json.dumps(one)}\n" for one in [*_EVENTS, {"event": "evaluation", "when": "before", "loss": 3}]
)


def _run(data: bytes, folder: Path, name: str = "run.json") -> object:
    """Show a run, one of whose files is *data*."""
    run = RunFolder(folder / "run")
    run.path.mkdir(exist_ok=True)
    run.record_file.write_text(json.dumps(record_to_json(make_record())))
    run.end_file.write_text(json.dumps(_END))
    run.metrics_file.write_text(_METRICS)
    (run.path / name).write_bytes(data)
    summary = summary_of("run", run)
    json.dumps(summary_to_json(summary), allow_nan=False)
    text = to_text(run_document(summary)) + to_text(runs_document([summary]))
    return text.encode("utf-8", "surrogateescape")


def _metrics(data: bytes, folder: Path) -> object:
    run = RunFolder(folder / "only")
    run.path.mkdir(exist_ok=True)
    run.metrics_file.write_bytes(data)
    list(follow(run, sleep=lambda _: None))
    events = run.metrics()
    points, evaluations = loss_points(events), evaluation_points(events)
    sparkline_svg(points)
    return curve_svg(points, evaluations=evaluations) if points else None


def _log(data: bytes, folder: Path) -> object:
    run = RunFolder(folder / "log")
    run.path.mkdir(exist_ok=True)
    run.log.write_bytes(data)
    return explain(run, state=State.KILLED, events=[], exit_code=-9), tracebacks(
        data.decode(errors="replace")
    )


def _registration(data: bytes, folder: Path) -> object:
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "runs" / "a.json").write_bytes(data)
    return [run.state() for _, run in list_runs(folder)]


def _mirror(data: bytes, folder: Path) -> object:
    for name in ("mirror.json", "mirror.txt", "mirror.process"):
        (folder / name).write_bytes(data)
    assert not is_being_mirrored(folder)
    record_mirrored(folder, FolderStore(folder / "drive"), "a", "b")
    return mirror_notes(folder)


# Checkpoints

_CHECKPOINT = {
    "schema": 1,
    "files": {
        "model": {"size": 5, "sha256": hashlib.sha256(b"model").hexdigest()},
        "a/b": {"size": 0, "sha256": ""},
    },
}


def _manifest(data: bytes, folder: Path) -> object:
    checkpoint = folder / "checkpoint-5"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "model").write_bytes(b"model")
    (checkpoint / "colablock.json").write_bytes(data)
    return verify_checkpoint(checkpoint)


@cache
def _archives() -> tuple[bytes, ...]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("run.json", b"{}"), ("checkpoint-5/model", b"model"), ("checkpoint-5/é", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return (buffer.getvalue(),)


_TRIES = iter(range(1 << 60))


def _archive(data: bytes, folder: Path) -> object:
    (folder / "a.tar").write_bytes(data)
    into = folder / "into" / str(next(_TRIES))
    into.mkdir(parents=True)
    unpack(folder / "a.tar", into, "checkpoint-5")
    outside = [path for path in folder.rglob("*") if path.is_file() and into not in path.parents]
    assert all("into" in path.parts or path.name == "a.tar" for path in outside), outside
    return None


# Evidence, configs and answers


def _receipt(data: bytes, folder: Path) -> object:
    (folder / "demo.receipts").mkdir(exist_ok=True)
    (folder / "demo.receipts" / "T4.json").write_bytes(data)
    evidence_of(replace(MATRIX, source=str(folder / "demo.toml")))
    found = read_receipts(str(folder / "demo.toml"))
    for one in found:
        proof_note(str(folder / "demo.toml"), "demo", Accelerator(), digest=one.matrix_digest)
    return receipt_from(decode(data, dict, by_python=True), source="r")


def _applied(data: bytes, folder: Path) -> object:
    (folder / "demo.receipts").mkdir(exist_ok=True)
    (folder / "demo.receipts" / "applied.json").write_bytes(data)
    evidence_of(replace(MATRIX, source=str(folder / "demo.toml")))
    return len(read_apply_receipts(str(folder / "demo.toml")))


_APPLIED = {
    "matrix": "demo",
    "matrix_digest": "0" * 64,
    "variant": None,
    "lock": "0" * 64,
    "target": "env",
    "python_version": "3.12.3",
    "card": "cpu",
    "checks": 9,
    "imports": ["torch"],
    "date": "2026-11-25T10:00:00Z",
    "colablock": "0.1.0",
    "versions": {"torch": "2.15.0"},
    "runtime": None,
    "kind": "apply",
    "schema": 1,
}


def _results(data: bytes, folder: Path) -> object:
    (folder / "demo.checks.json").write_bytes(data)
    evidence_of(replace(MATRIX, source=str(folder / "demo.toml")))
    found = compared(MATRIX, folder, ())
    return json.dumps(found.facts())


def _config(data: bytes, folder: Path) -> object:
    (folder / "config.yaml").write_bytes(data)
    return read_config(folder / "config.yaml", passes_through=True).digest()


_TRAIN = b"""base_model: org/model
datasets: [{path: data.jsonl, type: alpaca}]
adapter: qlora
learning_rate: 2e-4
lora_target_modules: [q_proj]
more: {a: 1}
"""
_LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "quantization_config": {"quant_method": "bitsandbytes"},
}


def _proofs(data: bytes, _folder: Path) -> object:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as answers:
        with os.fdopen(writing, "wb") as file:
            file.write(data[:_PIPE])
        return list(_lines(answers, 1.0))


_PIPE = 60_000  # bytes that a pipe holds
_PROOF = {
    "event": "end",
    "kind": "import",
    "subject": "torch",
    "passed": True,
    "seconds": 0.5,
    "facts": {"a": 1},
}


def _model(data: bytes, _folder: Path) -> object:
    return from_config(decode(data, dict, by_python=True))


def _matrix_file(pattern: str) -> Callable[[], tuple[bytes, ...]]:
    return lambda: tuple(path.read_bytes() for path in sorted((ROOT / "matrices").glob(pattern))[:1])


_ERRORS = (ColablockError, Malformed)

STATE: tuple[Target, ...] = (
    target("journal", "json", _journal, json_bytes(_CHANGE), documented=_ERRORS, weight=2),
    target("record of a change", "json", _history, json_bytes(_CHANGE), weight=2),
    target("record of an apply", "json", _apply, json_bytes(asdict(_APPLY)), weight=2),
    target("manifest of an environment", "json", _environment, json_bytes(_MANIFEST)),
    target("run record", "json", _run, json_bytes(record_to_json(make_record())), weight=2),
    target("end of a run", "json", partial(_run, name="end.json"), json_bytes(_END)),
    target("metrics of a shown run", "lines", partial(_run, name="metrics.jsonl"), _METRICS.encode()),
    target("metrics", "lines", _metrics, _METRICS.encode(), weight=2),
    target("log of a run", "lines", _log, _LOG),
    target("registration of a run", "json", _registration, json_bytes({"folder": "/runs/a"})),
    target("mirror", "json", _mirror, json_bytes({"/drive": {"a-checkpoint-5.tar": "0" * 64}})),
    target("manifest of a checkpoint", "json", _manifest, json_bytes(_CHECKPOINT)),
    Target(
        name="archive of a checkpoint",
        form="bytes",
        samples=_archives,
        call=_archive,
        documented=(ColablockError, OSError, ValueError, tarfile.TarError),
    ),
    Target(
        name="receipt",
        form="json",
        samples=_matrix_file("*.receipts/*.json"),
        call=_receipt,
        documented=_ERRORS,
    ),
    target("receipt of an apply", "json", _applied, json_bytes(_APPLIED)),
    Target(name="results of a check", form="json", samples=_matrix_file("*.checks.json"), call=_results),
    target("answers of proofs", "lines", _proofs, json_bytes(_PROOF) + b"\n" + json_bytes(_PROOF) + b"\n"),
    target("training config", "lines", _config, _TRAIN),
    target("config of a model", "json", _model, json_bytes(_LLAMA), documented=_ERRORS),
)
