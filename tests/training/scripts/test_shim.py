"""The entry point of every rank, in runs in the environment of stand-ins."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from colablock.training.preflight.facts import FP16
from colablock.training.runs.checkpoints.finder import list_checkpoints, newest_valid, verify_checkpoint
from colablock.training.runs.crash import explain
from colablock.training.runs.folder import RunFolder, State
from colablock.training.runs.launch import exit_code_of, free_port
from colablock.training.scripts import FOLDER as SCRIPTS
from colablock.training.scripts.ranks import killed_ranks
from colablock.training.scripts.training_watch import TrainingWatch, exchange_device
from tests.support.reporters import Notes
from tests.support.timing import PATIENCE, until
from tests.support.training_stack import (
    Bench,
    TrainingStack,
    again,
    build_training_stack,
    end_of,
    kill,
    losses_of,
    read_record,
    steps_of,
)

SHIM = SCRIPTS / "shim.py"


@pytest.fixture(scope="module")
def whole(training_stack: TrainingStack, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return an uninterrupted run of six steps, saved every second step."""
    bench = Bench(stack=training_stack, folder=tmp_path_factory.mktemp("whole"))
    return bench.train(bench.job(config=bench.config(save_steps=2), evaluate=4))


def shim_of(folder: RunFolder) -> int:
    """Return the id of the training process, a child of the launcher."""
    launcher = read_record(folder).process
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    until(lambda: children.read_text().split())
    return int(children.read_text().split()[0])


def at_step(folder: RunFolder, step: int) -> None:
    """Wait until a run has written an event of a step."""
    until(lambda: step in steps_of(folder))


def test_a_run_writes_its_events(whole: RunFolder) -> None:
    assert whole.state() is State.DONE
    assert whole.end()["state"] == "done"
    assert whole.end()["step"] == 6
    kinds = [event["event"] for event in whole.metrics() if event["event"] != "step"]
    assert kinds[:2] == ["evaluation", "start"]
    assert kinds[-2:] == ["evaluation", "end"]
    assert steps_of(whole, "save") == [2, 4, 6]
    (began,) = (event for event in whole.metrics() if event["event"] == "start")
    assert (began["step"], began["total_steps"], began["resumed"], began["world_size"]) == (0, 6, False, 1)
    logs = [event for event in whole.metrics() if event["event"] == "log"]
    assert list(losses_of(whole)) == [1, 2, 3, 4, 5, 6]
    tokens = [event["tokens"] for event in logs]
    assert tokens == sorted(tokens)
    assert logs[0].keys() == {
        *("event", "time", "step", "loss", "grad_norm", "learning_rate", "epoch"),
        *("tokens", "seconds", "memory"),  # and no `note`, which is no number
    }
    before, after = (event["loss"] for event in whole.metrics() if event["event"] == "evaluation")
    assert after < before - 0.3


def test_checkpoints_get_manifests_and_rotate(whole: RunFolder) -> None:
    assert [path.name for path in list_checkpoints(whole.path)] == ["checkpoint-6", "checkpoint-4"]
    for path in list_checkpoints(whole.path):
        assert verify_checkpoint(path) == ()
        manifest = json.loads((path / "colablock.json").read_text())
        assert manifest["step"] == int(path.name.partition("-")[2])
        assert manifest["files"].keys() == {
            *("adapter_config.json", "adapter_model.safetensors", "optimizer.pt"),
            *("rng_state.pth", "trainer_state.json", "training_args.bin"),
        }
    saves = [event for event in whole.metrics() if event["event"] == "save"]
    sizes = [path.stat().st_size for path in (whole.path / "checkpoint-6").iterdir()]
    assert saves[-1]["bytes"] == sum(sizes) - (whole.path / "checkpoint-6/colablock.json").stat().st_size
    assert {"adapter_config.json", "tokenizer_config.json"} <= {path.name for path in whole.adapter.iterdir()}


def test_a_killed_run_resumes_with_the_same_result(whole: RunFolder, bench: Bench) -> None:
    job = bench.job(config=bench.config(save_steps=2), evaluate=4)
    with bench.held(at=4) as held:
        folder = bench.begin(job, **held)
        until(lambda: 4 in steps_of(folder, "save"))
        kill(folder)
    assert folder.state() is State.KILLED
    assert not folder.end_file.exists()
    newest = newest_valid(folder.path, Notes())
    assert newest == folder.path / "checkpoint-4"
    for path in list_checkpoints(folder.path)[1:]:  # asked to find one, a trainer would take any
        path.rename(folder.path / "checkpoint-99")
    bench.train(bench.job(config=bench.config(save_steps=2), resume=newest))
    assert folder.state() is State.DONE
    assert [event["step"] for event in folder.metrics() if event.get("resumed")] == [4]
    assert losses_of(folder) == losses_of(whole)
    learnt = [(one.adapter / "adapter_model.safetensors").read_bytes() for one in (folder, whole)]
    assert learnt[0] == learnt[1]


def test_a_stop_request_saves_a_checkpoint(bench: Bench) -> None:
    with bench.held() as held:
        folder = bench.begin(bench.job(config=bench.config(max_steps=1000)), **held)
        at_step(folder, 2)
        folder.request_stop()
    end_of(folder)
    stopped = folder.end()["step"]
    assert folder.state() is State.STOPPED
    assert stopped == 3
    assert newest_valid(folder.path, Notes()) == folder.path / f"checkpoint-{stopped}"
    assert folder.metrics()[-1] == folder.metrics()[-1] | {
        "event": "end",
        "state": "stopped",
        "step": stopped,
    }


def test_a_stop_request_after_the_last_step_has_no_effect(bench: Bench) -> None:
    job = bench.job(config=bench.config(max_steps=3))
    with bench.held() as held:
        folder = bench.begin(job, **held)
        at_step(folder, 2)
        folder.request_stop()
    assert end_of(folder).state() is State.DONE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_a_stop_request(bench: Bench, number: signal.Signals) -> None:
    with bench.held() as held:
        folder = bench.begin(bench.job(config=bench.config(max_steps=1000)), **held)
        at_step(folder, 2)
        os.kill(shim_of(folder), number)
        until(folder.stop_file.exists)
    end_of(folder)
    assert folder.state() is State.STOPPED
    assert verify_checkpoint(folder.path / f"checkpoint-{folder.end()['step']}") == ()


def test_a_signal_ends_a_pool_of_workers(bench: Bench) -> None:
    folder = bench.begin(bench.job(), STAND_IN_POOL="1")
    record = read_record(folder)
    until(lambda: exit_code_of(record.process, record.process_started) is not None)
    assert folder.state() is State.DONE
    assert len(losses_of(folder)) == 6  # the signal to the workers was no wish to stop


def test_a_failure_is_recorded_and_explained(bench: Bench) -> None:
    job = bench.job(config=bench.config(save_steps=2))
    folder = bench.train(job, STAND_IN_FAILS_AT="4")
    assert folder.state() is State.FAILED
    end = folder.end()
    assert end["error"] == "OSError: [Errno 28] No space left on device"
    assert end["traceback"].startswith("Traceback (most recent call last):")
    found = explain(folder)
    assert found is not None
    assert (found.cause, found.checkpoint) == ("disk-full", "checkpoint-2")
    told = Notes()
    assert newest_valid(folder.path, told) == folder.path / "checkpoint-2"  # the half one is passed over
    assert "checkpoint-4 is damaged: it has no manifest" in told.notes[0]
    bench.train(bench.job(config=bench.config(save_steps=2), resume=folder.path / "checkpoint-2"))
    assert folder.state() is State.DONE  # and the old end is gone


def test_checkpoints_are_saved_by_time(bench: Bench) -> None:
    folder = bench.train(bench.job(config=bench.config(max_steps=8, logging_steps=100)))
    assert steps_of(folder, "save") == [8]  # the usual interval is ten minutes
    folder.metrics_file.unlink()
    end_of(again(folder, bench.environ(STAND_IN_LEAP="100"), save_seconds=350))
    assert steps_of(folder, "save") == [3, 6, 8]  # before the step that would be too long
    assert "step" in {event["event"] for event in folder.metrics()}  # a beat where nothing is logged


def test_trainable_parameters_are_float32_for_the_scaler(bench: Bench) -> None:
    folder = bench.train(bench.job(precision=FP16))
    assert folder.state() is State.DONE
    end_of(again(folder, bench.environ(), cast_trainable=False))
    assert folder.state() is State.FAILED
    found = explain(folder)
    assert found is not None
    assert found.cause == "fp16-scaler-meets-bf16"


def test_axolotl_trains_only_with_its_workaround(bench: Bench) -> None:
    proven = bench.stack.proven(runner="axolotl")
    folder = bench.train(bench.job(proven=proven))
    assert folder.state() is State.FAILED
    assert folder.end()["error"].startswith("ValueError: You can't pass `load_in_4bit`or `load_in_8bit`")
    found = explain(folder)
    assert found is not None
    assert found.cause == "load-in-4bit-twice"
    bench.train(bench.job(proven=bench.stack.proven(runner="axolotl", workarounds=("load-in-4bit-twice",))))
    assert folder.state() is State.DONE
    assert min(losses_of(folder).values()) < losses_of(folder)[1] - 0.3
    beside = {path.name for path in folder.path.iterdir()}
    assert {path.name for path in folder.adapter.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json")
    }
    assert "adapter_config.json" not in beside


ENDINGS: list[tuple[str, dict[str, Any], int, dict[str, Any]]] = [
    ("import sys; sys.exit()", {}, 0, {"state": "done"}),
    ("import sys; sys.exit(0)", {}, 0, {"state": "done"}),
    ("import sys; sys.exit('no')", {}, 1, {"state": "failed", "error": "SystemExit: no"}),
    ("import sys; sys.exit(3)", {}, 3, {"state": "failed", "error": "SystemExit: 3"}),
    ("raise KeyError('a')", {}, 1, {"state": "failed", "error": "KeyError: 'a'"}),
    ("import no_such_module", {}, 1, {"error": "ModuleNotFoundError: No module named 'no_such_module'"}),
    ("", {"mends": ["no-such-workaround"]}, 1, {"error": "KeyError: 'no-such-workaround'"}),
    (
        "import sys; assert sys.argv == [__file__, 'a', 'b'], sys.argv; assert __name__ == '__main__'",
        {"arguments": ["a", "b"]},
        0,
        {"state": "done"},
    ),
    # On a drive that is mounted there are no links.
    (
        "import errno, os\ndef link(*_): raise OSError(errno.ENOTSUP, 'no')\nos.link = link",
        {"arguments": []},
        0,
        {"state": "done"},
    ),
    # What was learnt cannot be put in its place.
    (
        "open('adapter_config.json', 'w').close(); open('.adapter', 'w').close()",
        {},
        1,
        {"state": "failed", "error": "FileExistsError: [Errno 17] File exists: '{folder}/.adapter'"},
    ),
    # The modules beside the shim do not hide those of others.
    ("import sys; assert not any('colablock' in one for one in sys.path), sys.path", {}, 0, {}),
    (
        "from transformers.integrations.sdpa_attention import use_gqa_in_sdpa as use; assert use(None, None)",
        {},
        0,
        {},
    ),
    (
        "from transformers.integrations import sdpa_attention as s; assert not s.use_gqa_in_sdpa(0, key=1)",
        {"mends": ["gqa-before-ampere"]},
        0,
        {},
    ),
]


@pytest.mark.parametrize(("script", "job", "code", "end"), ENDINGS)
def test_the_shim_ends_like_the_runner(
    bench: Bench, script: str, job: dict[str, Any], code: int, end: dict[str, Any]
) -> None:
    entry = bench.folder / "entry.py"
    entry.write_text(script)
    usual: dict[str, Any] = {"entry": str(entry), "arguments": [], "mends": [], "lock": "l"}
    usual |= {"cast_trainable": False, "config": {"seed": 42}}
    (bench.folder / "job.json").write_text(json.dumps({**usual, **job}))
    done = run_shim(bench)
    assert done.returncode == code, done.stderr
    found = RunFolder(bench.folder).end()
    assert {key: found[key] for key in end} == {
        key: value.replace("{folder}", str(bench.folder)) for key, value in end.items()
    }
    assert not list(bench.folder.glob(".end-*"))
    if code == 0 and job:  # of several ranks the first word counts
        entry.write_text("raise ValueError")
        assert run_shim(bench).returncode == 1
        assert RunFolder(bench.folder).end() == found


@pytest.mark.parametrize(
    ("is_remote", "after"),
    [
        (lambda files: files.protocol != "file", "file"),  # datasets 2.14
        (lambda files: not isinstance(files, LocalFiles), ("file", "local")),  # from 2.15 on
        (None, ("file", "local")),  # no datasets
    ],
)
def test_an_old_datasets_reads_its_own_files(
    is_remote: Callable[[Any], bool] | None, after: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFiles, "protocol", ("file", "local"))
    modules: dict[str, Any] = {"fsspec.implementations.local": SimpleNamespace(LocalFileSystem=LocalFiles)}
    modules["datasets.filesystems"] = SimpleNamespace(is_remote_filesystem=is_remote) if is_remote else None
    for name, module in modules.items():
        for parent in accumulate(name.split(".")[:-1], "{}.{}".format):
            monkeypatch.setitem(sys.modules, parent, SimpleNamespace())
        monkeypatch.setitem(sys.modules, name, module)
    runpy.run_path(str(SCRIPTS / "workarounds.py"))["WORKAROUNDS"]["datasets-local-files"]()
    assert LocalFiles.protocol == after
    assert is_remote is None or not is_remote(LocalFiles())


class LocalFiles:
    """Stands for fsspec's class of local files, with the protocols that it has since 2023.10."""

    protocol: Any = ("file", "local")


def test_an_incomplete_line_does_not_damage_the_next(bench: Bench) -> None:
    config = bench.config(save_steps=2)
    with bench.held() as held:
        folder = bench.begin(bench.job(config=config), **held)
        until(lambda: 2 in steps_of(folder, "save"))
        kill(folder)
    with folder.metrics_file.open("a") as file:
        file.write('{"event": "st')
    again(folder, bench.environ(), resume=str(newest_valid(folder.path, Notes())))
    assert end_of(folder).state() is State.DONE
    assert len(steps_of(folder, "start")) == 2


def run_shim(bench: Bench) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [bench.stack.python, str(SHIM), str(bench.folder)],
        env={name: value for name, value in bench.environ().items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_several_ranks_train_save_and_stop_together(bench: Bench) -> None:
    job = bench.job(config=bench.config(max_steps=1000), processes=2)
    with bench.held() as held:
        folder = bench.begin(job, TMPDIR=str(bench.folder), **held)
        at_step(folder, 2)
        folder.request_stop()
    end_of(folder)
    assert folder.state() is State.STOPPED
    stopped = folder.end()["step"]
    checkpoint = folder.path / f"checkpoint-{stopped}"
    assert verify_checkpoint(checkpoint) == ()
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    (began,) = (event for event in folder.metrics() if event["event"] == "start")  # one rank tells
    assert began["world_size"] == 2


def test_a_killed_rank_is_seen_at_once(bench: Bench) -> None:
    job = bench.job(config=bench.config(max_steps=1000), processes=2)
    with bench.held() as held:
        folder = bench.begin(job, TMPDIR=str(bench.folder), **held)
        at_step(folder, 2)
        assert killed_ranks(folder.path) == []
        process = int((folder.path / "ranks" / "1").read_text().split()[0])
        os.kill(process, signal.SIGKILL)
        until(lambda: 1 in killed_ranks(folder.path))  # the launcher may have ended the other one, too
        end_of(folder)
    assert folder.state() in (State.KILLED, State.FAILED)


def test_a_failed_rank_does_not_wait_for_others_at_its_end(tmp_path: Path) -> None:
    """As NCCL does where a rank is gone: the launcher would kill it after half a minute."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, time\natexit.register(time.sleep, 3600)\n")
    done = subprocess.run(
        [sys.executable, str(SHIM), str(tmp_path)],
        env={**os.environ, "WORLD_SIZE": "2", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("FileNotFoundError: ")  # there is no job


@pytest.mark.parametrize("is_apart", [True, False])
def test_a_rank_in_a_session_of_its_own_is_noted(bench: Bench, tmp_path: Path, *, is_apart: bool) -> None:
    """Also if it is the only one, as of a sharded run: it outlives its launcher."""
    (entry := tmp_path / "entry.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "found = [one.name for one in Path(sys.argv[1], 'ranks').glob('*')]\n"
        "Path(sys.argv[1], 'found').write_text(' '.join(found))\n"
    )
    job: dict[str, Any] = {"entry": str(entry), "arguments": [str(tmp_path)], "config": {"seed": 0}}
    job |= {"mends": [], "resume": None, "cast_trainable": False}
    (tmp_path / "job.json").write_text(json.dumps(job))
    variables = {"TORCHELASTIC_RUN_ID": "none"} if is_apart else {}
    command = [bench.stack.python, str(SHIM), str(tmp_path)]
    subprocess.run(command, env=bench.environ(**variables), check=True)
    assert (tmp_path / "found").read_text() == ("0" if is_apart else "")
    assert not list(tmp_path.glob("ranks/*"))


@pytest.mark.parametrize("shares_folder", [True, False])
def test_a_rank_of_another_host_does_not_end_a_run_in_a_shared_folder(
    bench: Bench, tmp_path: Path, *, shares_folder: bool
) -> None:
    """Rank 0 saves the adapter meanwhile, and may fail."""
    (entry := tmp_path / "entry.py").touch()
    job: dict[str, Any] = {"entry": str(entry), "arguments": [], "mends": [], "config": {"seed": 0}}
    job |= {"resume": None, "cast_trainable": False, "shares_folder": shares_folder}
    (tmp_path / "job.json").write_text(json.dumps(job))
    subprocess.run(
        [bench.stack.python, str(SHIM), str(tmp_path)],
        env=bench.environ(RANK="2", LOCAL_RANK="0", WORLD_SIZE="4"),
        check=True,
    )
    assert (tmp_path / "end.json").exists() != shares_folder


@pytest.mark.parametrize(
    ("backend", "has_card", "device"),
    [
        ("nccl", True, "cuda"),
        ("undefined", True, "cuda"),  # axolotl's
        ("gloo", True, "cpu"),
        ("gloo", False, "cpu"),
        ("undefined", False, "cpu"),
    ],
)
def test_ranks_exchange_tensors_where_their_backend_is(backend: str, has_card: bool, device: str) -> None:
    torch: Any = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: has_card),
        distributed=SimpleNamespace(get_backend=lambda: backend),
    )
    assert exchange_device(torch) == device


# How the shim is run: the path of it, and the first folder of the import path.
PATHS = {
    "as a script": (str(SHIM), str(SCRIPTS)),
    "through a link": ("LINK", str(SCRIPTS)),
    "again, by a spawned process": (str(SHIM), ""),
}


@pytest.mark.parametrize(("path", "first"), PATHS.values(), ids=PATHS.keys())
def test_the_import_path_has_only_the_targets_folders(tmp_path: Path, path: str, first: str) -> None:
    link = tmp_path / "shim.py"
    link.symlink_to(SHIM)
    begin = f"import runpy, sys; usual = sys.path[1:]; sys.path[0] = {first!r}"
    run = f"runpy.run_path({path.replace('LINK', str(link))!r}, run_name='shim')"
    expected = "usual" if first else "['', *usual]"
    code = f"{begin}; {run}; assert sys.path == {expected}, sys.path"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_peak_of_memory_outlives_a_reset_by_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"allocated": 7, "reserved": 9}
    torch = SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: True,
            max_memory_allocated=lambda: now["allocated"],
            max_memory_reserved=lambda: now["reserved"],
        ),
        _C=SimpleNamespace(_cuda_resetPeakMemoryStats=lambda _device: now.update(allocated=1, reserved=1)),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    memory = runpy.run_path(str(SCRIPTS / "training_watch.py"))["PeakMemory"]()
    memory.guard(torch)
    torch._C._cuda_resetPeakMemoryStats(0)
    assert now == {"allocated": 1, "reserved": 1}
    assert memory.facts() == {"memory": 7, "memory_reserved": 9}
    now["allocated"] = 8
    assert memory.facts() == {"memory": 8, "memory_reserved": 9}


def test_sharded_runs_give_cached_memory_back_before_steps_and_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[int] = []
    cuda = SimpleNamespace(is_available=lambda: True, empty_cache=lambda: freed.append(watch.step))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    job = {"save_seconds": 1e9}
    watch: TrainingWatch
    for shards in ({}, {"save_adapter": None}):
        watch = TrainingWatch(tmp_path, job, rank=1, world=1, shards=shards, began=0.0)
        watch.begin(SimpleNamespace(global_step=0, max_steps=8))
        for step, is_due in ((1, False), (2, True)):
            control = SimpleNamespace(should_save=is_due, should_training_stop=False)
            watch.stepped(SimpleNamespace(global_step=step, max_steps=8), control)
    assert freed == [0, 2]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({}, ""),
        (
            {"lock": "0ther" + "l" * 59},
            "rank 1 has a different lock than rank 0: 0therlllllll instead of llllllllllll",
        ),
        (
            {"resume": Path("checkpoint-4")},
            "rank 1 resumes from a different checkpoint than rank 0: checkpoint-4 instead of none",
        ),
        (
            {"settings": {"learning_rate": 0.5}},
            "rank 1 has another job than rank 0: learning_rate is 0.5 instead of 0.01",
        ),
        (
            {"settings": {"micro_batch_size": 1, "gradient_accumulation_steps": 4}},
            (
                "rank 1 has another job than rank 0: "
                "micro_batch_size is 1 instead of 2, gradient_accumulation_steps is 4 instead of 2"
            ),
        ),
        ({"data_digest": "d2"}, "rank 1 has another job than rank 0: data is d2 instead of d1"),
        (
            {"without": "unsloth"},
            "rank 1 has other distributions than rank 0, such as nothing instead of unsloth==2026.10.9",
        ),
    ],
)
def test_a_rank_with_another_lock_checkpoint_stack_or_job_fails(
    bench: Bench, other: dict[str, Any], words: str
) -> None:
    store, port = bench.folder / "store", str(free_port())
    store.mkdir()
    hosts = []
    for rank, own in enumerate(({}, other)):
        several = ("--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank))
        place = ("--main_process_ip", "127.0.0.1", "--main_process_port", port)
        stack = bench.stack
        if "without" in own:
            stack = build_training_stack(bench.folder / "other", without=[own["without"]])
        proven = stack.proven(lock=own.get("lock", "l" * 64))
        job = bench.job(
            proven=proven,
            config=bench.config(**own.get("settings", {})),
            data_digest=own.get("data_digest", "d1"),
            resume=own.get("resume"),
            launch_arguments=(*several, *place),
        )
        hosts.append(bench.begin(job, f"host-{rank}", STAND_IN_STORE=str(store)))
    first, second = map(end_of, hosts)
    if not other:
        assert first.state() is State.DONE
        assert steps_of(second) == []  # rank 0 tells
        return
    assert (first.state(), second.state()) == (State.FAILED, State.FAILED)
    assert first.end()["error"] == second.end()["error"] == f"SystemExit: {words}"
