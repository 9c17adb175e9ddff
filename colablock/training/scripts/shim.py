"""What every rank of a run starts with: the standard library only, and no module of colablock.

``accelerate launch ... shim.py RUN_FOLDER`` reads ``job.json`` there, applies
the named mends, adds a callback to the trainer of whatever runner it starts,
and says in ``end.json`` how it ended.  The files and their fields are those of
`colablock.training.runs.folder`.
"""

# What is trained with is imported where it is, and not there where this is checked.
# ruff: noqa: PLC0415, E402
# mypy: disable-error-code="import-not-found,misc"

import sys

# The folder of this file holds modules of colablock, some with names of the standard library's.
del sys.path[0]

import functools
import hashlib
import json
import os
import resource
import runpy
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "colablock.json"
BEAT = 0.5  # seconds between two events of steps that log nothing
BLOCK = 1 << 20


def main(folder: Path) -> None:
    """Run the job of *folder* in this rank."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    ending = Ending(folder)
    stop_on_signals(folder)
    try:
        agree(job, rank, world)
        for name in job["mends"]:
            WORKAROUNDS[name]()
        watch = Watch(folder, job, rank, world)
        hook(watch, job)
        try:
            start(job, folder)
        except SystemExit as left:
            if left.code not in (None, 0):
                raise
        state = "stopped" if watch.was_stopped else "done"
        if rank == 0:
            gather_adapter(folder)
            watch.tell("end", step=watch.step, state=state)
    except BaseException as error:
        ending.failed(error)
        raise
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # another host has a folder of its own
        ending.ended(state, watch.step)


def start(job: dict[str, Any], folder: Path) -> None:
    """Start the runner as its own command would."""
    sys.argv = [job["entry"], *job["arguments"]]
    os.chdir(folder)
    if job["entry"].endswith(".py"):
        runpy.run_path(job["entry"], run_name="__main__")
    else:
        runpy.run_module(job["entry"], run_name="__main__", alter_sys=True)


def stop_on_signals(folder: Path) -> None:
    """Have whoever ends this process from outside get a checkpoint, as who asks for a stop does.

    A process that is forked off ends as it would: a pool of workers is ended by this very signal.
    It waits until the new process has its own way with it: Python forgets what arrives before.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    masks: list[Any] = []

    def ask(_number: int, _frame: Any) -> None:
        (folder / "stop").touch()

    def hold() -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, numbers))

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    def be_plain() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        let_go()

    for number in numbers:
        signal.signal(number, ask)
    os.register_at_fork(before=hold, after_in_parent=let_go, after_in_child=be_plain)


def gather_adapter(folder: Path) -> None:
    """Have what was learnt in ``adapter/``: axolotl leaves it beside its checkpoints."""
    learnt = [*folder.glob("adapter_*"), *folder.glob("*token*"), *folder.glob("chat_template*")]
    if not any(path.name == "adapter_config.json" for path in learnt):
        return
    new = folder / ".adapter"
    new.mkdir(exist_ok=True)
    for path in learnt:
        path.replace(new / path.name)
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of a start before, that was stopped
    new.rename(folder / "adapter")


class Ending:
    """Writes ``end.json`` once: the first word of any rank counts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ended(self, state: str, step: int) -> None:
        self._write({"state": state, "step": step, "time": time.time()})

    def failed(self, error: BaseException) -> None:
        told = traceback.format_exc()
        words = "".join(traceback.format_exception_only(type(error), error)).strip()
        self._write({"state": "failed", "error": words, "traceback": told, "time": time.time()})

    def _write(self, value: dict[str, Any]) -> None:
        new = self._folder / f".end-{os.getpid()}"
        new.write_text(json.dumps(value), encoding="utf-8")
        end = self._folder / "end.json"
        try:
            os.link(new, end)
        except FileExistsError:
            pass
        except OSError:  # no links here: a drive that is mounted
            if not end.exists():
                new.replace(end)
        finally:
            new.unlink(missing_ok=True)


def agree(job: Mapping[str, Any], rank: int, world: int) -> None:
    """Leave unless every rank has the stack and the checkpoint of rank 0.

    Else their gradients would be of different programs, or of different steps.
    """
    if world == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from datetime import timedelta

    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(minutes=10))
    checkpoint = Path(job["resume"]).name if job["resume"] else "none"
    store.set(f"colablock/{rank}", json.dumps([job["lock"], checkpoint]))
    told = [json.loads(store.get(f"colablock/{one}")) for one in range(world)]
    for at, words in enumerate(
        (
            "has another stack than rank 0: its lock is {:.12}, not {:.12}",
            "begins at another checkpoint than rank 0: at {}, not {}",
        )
    ):
        odd = [one for one in range(world) if told[one][at] != told[0][at]]
        if odd:
            ranks = ", ".join(str(one) for one in odd)
            raise SystemExit(f"rank {ranks} {words.format(told[odd[0]][at], told[0][at])}")


# -- mends: corrections of known clashes, by name


def load_in_4bit_twice() -> None:
    """Drop `load_in_4bit` beside a `quantization_config` that says it.

    axolotl 0.4.0 passes both; transformers refuses that since 4.38.
    """
    from transformers.modeling_utils import PreTrainedModel

    plain = PreTrainedModel.from_pretrained.__func__

    @functools.wraps(plain)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("quantization_config") is not None:
            kwargs.pop("load_in_4bit", None)
            kwargs.pop("load_in_8bit", None)
        return plain(cls, *args, **kwargs)

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)


def gqa_before_ampere() -> None:
    """Have transformers repeat keys and values itself on cards that lack flash kernels.

    Asked to share them (`enable_gqa`), torch takes its plain kernel there, which keeps the scores
    of all heads: 34 GiB in place of 4 for 8,192 tokens of a 1B model.
    """
    try:
        from transformers.integrations import sdpa_attention
    except ImportError:
        return  # an older one, which always repeats them
    if hasattr(sdpa_attention, "use_gqa_in_sdpa"):
        sdpa_attention.use_gqa_in_sdpa = lambda *_, **__: False


WORKAROUNDS: dict[str, Callable[[], None]] = {
    "gqa-before-ampere": gqa_before_ampere,
    "load-in-4bit-twice": load_in_4bit_twice,
}


# -- the hooks of the trainer


def hook(watch: "Watch", job: dict[str, Any]) -> None:
    """Have every trainer of transformers, or one derived from it, be watched.

    A trainer takes callbacks when it is made; its `train` is given the
    checkpoint, by its path: asked to find one, it takes the highest number unread.
    Some draw the adapters before a trainer sets its seed, so it is set here.
    """
    import torch
    from transformers import Trainer

    torch.manual_seed(job["config"]["seed"])
    make, train, training_step = Trainer.__init__, Trainer.train, Trainer.training_step
    load = getattr(Trainer, "_load_from_checkpoint", None)  # no event tells of it

    @functools.wraps(make)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.add_callback(watch.callback())

    @functools.wraps(train)
    def train_from(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        del resume_from_checkpoint
        if job["cast_trainable"]:
            cast_trainable(self.model)
        watch.evaluate(self, "before")
        found = train(self, job["resume"], *args, **kwargs)
        watch.evaluate(self, "after")
        return found

    def load_as_it_was(self: Any, *args: Any, **kwargs: Any) -> None:
        types = {name: one.dtype for name, one in self.model.named_parameters() if one.requires_grad}
        load(self, *args, **kwargs)
        for name, one in self.model.named_parameters():
            if name in types:  # peft makes what it loads float32
                one.data = one.data.to(types[name])

    @functools.wraps(training_step)
    def counted_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        ids = inputs.get("input_ids")
        watch.tokens += ids.numel() if ids is not None else 0
        return training_step(self, model, inputs, *args, **kwargs)

    Trainer.__init__, Trainer.train, Trainer.training_step = init, train_from, counted_step
    if load is not None:
        Trainer._load_from_checkpoint = load_as_it_was  # noqa: SLF001


def cast_trainable(model: Any) -> None:
    """Make what is trained float32, where it is not trained in bf16.

    trl casts the adapters of a model in 4 bits to bf16 (trl#4901), whatever the card, and the
    scaler of fp16 refuses their gradients.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


class Watch:
    """Tells how the training goes, stops it when asked to, and seals its checkpoints."""

    def __init__(self, folder: Path, job: dict[str, Any], rank: int, world: int) -> None:
        self.tokens = 0
        self.step = 0
        self.was_stopped = False
        self._folder, self._job = folder, job
        self._rank, self._world = rank, world
        self._file = open_lines(folder / "metrics.jsonl") if rank == 0 else None
        self._began = self._told = self._saved = self._last_step = time.monotonic()
        self._longest = 0.0

    def tell(self, event: str, **facts: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"event": event, "time": time.time(), **facts}) + "\n")
            self._file.flush()

    def callback(self) -> Any:
        """Return the callback: its base class is the target's own."""
        from transformers import TrainerCallback

        watch = self

        class Callback(TrainerCallback):
            def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
                watch.begin(state)

            def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
                watch.stepped(state, control)

            def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
                watch.logged(state, logs or {})

            def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
                watch.saved(args, state)

        return Callback()

    def begin(self, state: Any) -> None:
        self._began = self._told = self._saved = self._last_step = time.monotonic()
        self.tell(
            "start",
            step=state.global_step,
            total_steps=state.max_steps,
            resumed=state.global_step > 0,
            world_size=self._world,
        )

    def stepped(self, state: Any, control: Any) -> None:
        """Go on, save or stop; every rank does the same, as rank 0 sees it."""
        now = time.monotonic()
        self.step = state.global_step
        self._longest = max(self._longest, now - self._last_step)
        self._last_step = now
        if now - self._told >= BEAT:
            self._told = now
            self.tell("step", step=self.step, tokens=self.tokens, seconds=now - self._began)
        wants_stop = (self._folder / "stop").exists()
        is_due = now - self._saved + self._longest >= self._job["save_seconds"]
        wants_stop, is_due = self._as_rank_0(wants_stop, is_due)
        if wants_stop and self.step < state.max_steps:
            self.was_stopped = True
            control.should_training_stop = True
        if wants_stop or is_due:
            control.should_save = True

    def _as_rank_0(self, *flags: bool) -> tuple[bool, ...]:
        """Return the flags of rank 0: a save is a meeting of all ranks, and clocks differ."""
        if self._world == 1:
            return flags
        import torch

        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        both = torch.tensor([int(flag) for flag in flags], device=device)
        torch.distributed.broadcast(both, src=0)
        return tuple(bool(one) for one in both.tolist())

    def logged(self, state: Any, logs: dict[str, Any]) -> None:
        numbers = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
        facts: dict[str, Any] = {"tokens": self.tokens, "seconds": time.monotonic() - self._began}
        self.tell("log", **{**numbers, **facts, "step": state.global_step, **memory()})
        self._told = time.monotonic()

    def saved(self, args: Any, state: Any) -> None:
        """Seal the checkpoint: from here on it counts."""
        started = time.monotonic()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._world > 1:  # each rank writes files of its own
            import torch

            torch.distributed.barrier()
        if self._rank == 0 and folder.is_dir():
            size = seal(folder, state.global_step)
            seconds = time.monotonic() - started
            self.tell("save", step=state.global_step, path=folder.name, bytes=size, seconds=seconds)
        self._saved = self._last_step = time.monotonic()

    def evaluate(self, trainer: Any, when: str) -> None:
        """Tell the loss over the job's fixed rows, when it has some."""
        rows = self._job.get("evaluate") or []
        if not rows:
            return
        import torch

        model = trainer.model
        was_training, device = model.training, next(model.parameters()).device
        model.eval()
        losses = []
        with torch.no_grad(), trainer.accelerator.autocast():
            for row in rows:
                ids = torch.tensor([row["input_ids"]], device=device)
                labels = torch.tensor([row["labels"]], device=device)
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
                losses.append(
                    torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100).item()
                )
        model.train(was_training)
        self.tell("evaluation", step=self.step, when=when, loss=sum(losses) / len(losses))


def open_lines(path: Path) -> Any:
    """Return a file to add lines to; one that was cut off there does not take the next with it."""
    is_cut = False
    if path.is_file() and (size := path.stat().st_size):
        with path.open("rb") as before:
            before.seek(size - 1)
            is_cut = before.read() != b"\n"
    file = path.open("a", encoding="utf-8")
    if is_cut:
        file.write("\n")
    return file


def memory() -> dict[str, int]:
    """Return the peak bytes of this rank: of its card, or of this process where there is none."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return {
            "memory": torch.cuda.max_memory_allocated(),
            "memory_reserved": torch.cuda.max_memory_reserved(),
        }
    return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def seal(folder: Path, step: int) -> int:
    """Write the manifest of a checkpoint, last and synced; return the bytes that it covers."""
    files, total = {}, 0
    for path in files_below(folder):
        with path.open("rb") as file:
            hasher = hashlib.sha256()
            while block := file.read(BLOCK):
                hasher.update(block)
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        files[path.relative_to(folder).as_posix()] = {"size": size, "sha256": hasher.hexdigest()}
        total += size
    new = folder / f".{MANIFEST}"
    with new.open("w", encoding="utf-8") as out:
        json.dump({"schema": 1, "step": step, "files": files}, out)
        out.flush()
        os.fsync(out.fileno())
    new.replace(folder / MANIFEST)
    return total


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint but its manifest."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, f".{MANIFEST}"):
            yield path


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
