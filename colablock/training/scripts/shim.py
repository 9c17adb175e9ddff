"""The entry point of every rank of a run.  It needs only the standard library.

``accelerate launch ... shim.py RUN_FOLDER`` reads ``job.json``, applies the workarounds of the run,
adds a callback to the trainer of the runner, starts the runner, and writes to ``end.json`` how it
ended.  `colablock.training.runs.folder` describes the files.
"""

import os
import sys

# The folder of this file has modules of colablock, which could hide those of the target.  A process that
# `multiprocessing` spawns runs this file again, with the path as it is then.
if os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):  # noqa: PTH120
    del sys.path[0]

import importlib
import json
import runpy
import shutil
import signal
import socket
import stat
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
FOLDER = Path(__file__).resolve().parent
SIGN_SECONDS = 15.0  # between two signs of life


def main(folder: Path) -> None:
    """Run the job in *folder* in this rank."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    end = RunEnd(folder)
    stop_on_signals(folder)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        start_signs(folder / "alive")
    # A launcher of several has each rank in a session of its own, also the one rank of a sharded run.
    is_apart = world > 1 or "TORCHELASTIC_RUN_ID" in os.environ
    ranks = functions_of("ranks") if is_apart else {}
    shards = functions_of("shards") if job.get("shards") else {}
    if shards:
        shards["avoid_gaps"](os.environ)
    alive = ranks["note_rank"](folder, rank, end) if is_apart else None
    try:
        if world > 1:
            ranks["check_ranks"](job, rank, world, folder)
        prepare_stack(job, shards)
        watching = functions_of("training_watch")
        watch = watching["TrainingWatch"](folder, job, rank=rank, world=world, shards=shards, began=BEGAN)
        watching["hook_trainer"](watch, job)
        try:
            run_entry(job, folder)
        except SystemExit as exit_:
            if exit_.code not in (None, 0):
                raise
        state = "stopped" if watch.stopped_early else "done"
        if rank == 0:
            collect_adapter(folder)
            watching["keep_template"](folder / "adapter", job.get("chat_template"))
            watch.write_event("end", step=watch.step, state=state)
    except BaseException as error:
        if alive is None or not end.lost(ranks["killed_before"](folder, error)):
            end.failed(error)
        raise
    finally:
        if alive is not None:  # it stays if the process is killed
            alive.unlink(missing_ok=True)
    # Each host has a run folder of its own.  If they share one, rank 0 may still save the adapter there.
    if rank == 0 or (int(os.environ.get("LOCAL_RANK", "0")) == 0 and not job.get("shares_folder")):
        end.ended(state, watch.step)


def prepare_stack(job: dict[str, Any], shards: dict[str, Any]) -> None:
    """Import what has to come first, and change the stack as the run needs it."""
    for name in job.get("imports_first", ()):
        importlib.import_module(name)
    for name in job["mends"]:
        functions_of("workarounds")["WORKAROUNDS"][name]()
    if shards:
        shards["keep_adapters"]()
        shards["copy_bits"]()


def start_signs(file: Path) -> None:
    """Give the first sign at once, since a thread may start late, and the others in the background."""
    give_sign(file)
    threading.Thread(target=give_signs, args=(file,), daemon=True).start()


def give_signs(file: Path) -> None:
    """Write the time to *file* as long as this process lives: other hosts see no processes of this one."""
    while True:
        give_sign(file)
        time.sleep(SIGN_SECONDS)


def give_sign(file: Path) -> None:
    """Write the time to *file*, if that is possible."""
    new = file.with_name(f".{file.name}-{socket.gethostname()}-{os.getpid()}")
    text = f"{time.time():.0f}\n"
    try:
        write_new(new, text)
        new.replace(file)
    except OSError:
        with suppress(OSError):  # a file system that is gone for a moment
            new.unlink(missing_ok=True)
        with suppress(OSError):
            overwrite(file, text)


def write_new(file: Path, text: str) -> None:
    """Write *text* to a file of this process alone, and follow no link that is there."""
    file.unlink(missing_ok=True)
    with file.open("x", encoding="utf-8") as opened:
        opened.write(text)


def overwrite(file: Path, text: str) -> None:
    """Write *text* over as many bytes of *file*, which needs no space on a full disk."""
    number = os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        facts = os.fstat(number)
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
            os.pwrite(number, text.encode(), 0)
    finally:
        os.close(number)


def functions_of(name: str) -> dict[str, Any]:
    """Return what the file *name* beside this one defines; its folder is not on the import path."""
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def run_entry(job: dict[str, Any], folder: Path) -> None:
    """Run the runner's file or module, like its own command."""
    sys.argv = [job["entry"], *job["arguments"]]
    os.chdir(folder)
    if job["entry"].endswith(".py"):
        runpy.run_path(job["entry"], run_name="__main__")
    else:
        runpy.run_module(job["entry"], run_name="__main__", alter_sys=True)


def stop_on_signals(folder: Path) -> None:
    """Treat SIGINT, SIGTERM and SIGUSR1 as a request to save a checkpoint and stop.

    Slurm can send the last one before a time limit.

    Forked processes get the default handlers back, since pools end their workers with these signals.
    The signals are blocked during a fork, because Python would lose one that arrives before the
    child has reset its handlers.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    masks: list[Any] = []

    def request_stop(_number: int, _frame: Any) -> None:
        (folder / "stop").touch()

    def block() -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, numbers))

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    def reset() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        unblock()

    for number in numbers:
        signal.signal(number, request_stop)
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def collect_adapter(folder: Path) -> None:
    """Move the adapter to ``adapter/``: axolotl saves it beside its checkpoints."""
    files = [*folder.glob("adapter_*"), *folder.glob("*token*"), *folder.glob("chat_template*")]
    if not any(path.name == "adapter_config.json" for path in files):
        return
    (new := folder / ".adapter").mkdir(exist_ok=True)
    for path in files:
        path.replace(new / path.name)
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of an earlier start that was stopped
    new.rename(folder / "adapter")


class RunEnd:
    """Writes ``end.json`` once: the first rank that ends writes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ended(self, state: str, step: int) -> None:
        self._write({"state": state, "step": step, "time": time.time()})

    def failed(self, error: BaseException) -> None:
        trace = traceback.format_exc()
        message = "".join(traceback.format_exception_only(type(error), error)).strip()
        self._write({"state": "failed", "error": message, "traceback": trace, "time": time.time()})

    def lost(self, ranks: list[int]) -> bool:
        """Write that *ranks* were killed, and return true, if there are any."""
        if ranks:
            error = f"RankKilled: the process of rank {', '.join(map(str, ranks))} was killed"
            self._write({"state": "failed", "error": error, "time": time.time()})
        return bool(ranks)

    def has_failed(self) -> bool:
        """Whether a rank has written that it failed."""
        try:
            ended = json.loads((self._folder / "end.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(ended.get("state") == "failed")

    def _write(self, value: dict[str, Any]) -> None:
        new = self._folder / f".end-{os.getpid()}"
        write_new(new, json.dumps(value))
        end = self._folder / "end.json"
        try:
            os.link(new, end)
        except FileExistsError:
            pass
        except OSError:  # a file system without links, such as a mounted drive
            if not end.exists():
                new.replace(end)
        finally:
            new.unlink(missing_ok=True)


def fail_at_once() -> None:
    """End this process, which has an exception: its end in order may wait for ranks that are gone."""
    sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).absolute())
    except Exception:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            fail_at_once()
        raise
