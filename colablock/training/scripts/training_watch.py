"""Watch a training: events, stops on request, and the manifests of checkpoints.

``shim.py`` runs this file in the target.  It needs the standard library and the target.
"""

# Modules of the target are imported where they are used.  They are not installed where this is checked.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found,misc"

import functools
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "colablock.json"
STEP_EVENT_SECONDS = 0.5  # the least time between events of steps without a log event
BLOCK = 1 << 20


def hook_trainer(watch: "TrainingWatch", job: dict[str, Any]) -> None:
    """Patch transformers' Trainer, and so every class derived from it, to report to *watch*.

    The callback is added when a trainer is created.  `train` gets the path of the checkpoint to
    resume from: left to itself, it would take the one with the highest step without verifying it.
    Some runners initialise the adapters before a trainer sets its seed, so the seed is set here.
    """
    import torch
    from transformers import Trainer

    torch.manual_seed(job["config"]["seed"])
    watch.memory.guard(torch)
    make, train = Trainer.__init__, Trainer.train
    load = getattr(Trainer, "_load_from_checkpoint", None)  # there is no callback for it

    @functools.wraps(make)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if watch.shards:
            watch.shards["keep_precision"](self.accelerator, torch)
        self.add_callback(watch.callback())
        step = self.training_step

        def counted_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            ids = inputs.get("input_ids")
            watch.tokens += ids.numel() if ids is not None else 0
            return step(model, inputs, *args, **kwargs)

        self.training_step = counted_step  # of the object: Unsloth replaces that of the class

    @functools.wraps(train)
    def train_resumed(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        del resume_from_checkpoint
        if job["cast_trainable"]:
            cast_trainable(self.model)
        watch.evaluate(self, "before")
        if job["resume"]:
            keep_batch_size(self.args)
        found = train(self, job["resume"], *args, **kwargs)
        watch.evaluate(self, "after")
        watch.write_peaks()
        return found

    def load_in_same_type(self: Any, *args: Any, **kwargs: Any) -> None:
        types = {name: one.dtype for name, one in self.model.named_parameters() if one.requires_grad}
        load(self, *args, **kwargs)
        for name, one in self.model.named_parameters():
            if name in types:  # peft loads everything as float32
                one.data = one.data.to(types[name])

    Trainer.__init__, Trainer.train = init, train_resumed
    if load is not None:
        Trainer._load_from_checkpoint = load_in_same_type  # noqa: SLF001


def keep_batch_size(args: Any) -> None:
    """Have a run that goes on take the rows at a time of *args*.

    transformers before 5.0 takes those of the checkpoint, and another number of ranks has others.
    """
    from transformers import TrainerState

    load = TrainerState.load_from_json.__func__

    @functools.wraps(load)
    def load_from_json(cls: Any, *given: Any, **kwargs: Any) -> Any:
        state = load(cls, *given, **kwargs)
        if not args.auto_find_batch_size:
            state.train_batch_size = args.train_batch_size
        return state

    TrainerState.load_from_json = classmethod(load_from_json)


def cast_trainable(model: Any) -> None:
    """Cast trainable parameters to float32, for runs that do not train in bf16.

    trl casts the adapters of a 4-bit model to bf16 on any card (trl#4901), and the gradient scaler
    of fp16 does not support their gradients.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class TrainingWatch:
    """Writes events of the training, stops it on request, and writes manifests of checkpoints."""

    def __init__(
        self,
        folder: Path,
        job: dict[str, Any],
        *,
        rank: int,
        world: int,
        shards: Mapping[str, Any],
        began: float,
    ) -> None:
        """*began* is when the process did, by `time.monotonic`.

        *shards* has what ``shards.py`` defines if the model is sharded, else nothing.
        """
        self.tokens = 0
        self.step = 0
        self.stopped_early = False
        self.memory = PeakMemory()
        self._folder, self._job = folder, job
        self.shards, self._rank, self._world = shards, rank, world
        self._file = open_jsonl(folder / "metrics.jsonl") if rank == 0 else None
        self._started = began
        self._began = self._last_event = self._saved = self._last_step = time.monotonic()
        self._longest = 0.0
        self._is_first = True

    def write_event(self, event: str, **facts: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"event": event, "time": time.time(), **facts}) + "\n")
            self._file.flush()

    def callback(self) -> Any:
        """Return the callback.  Its base class is the target's."""
        from transformers import TrainerCallback

        watch = self

        class Callback(TrainerCallback):
            def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
                watch.begin(state)

            def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
                watch.stepped(state, control)

            def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
                watch.logged(state, logs or {})

            def on_save(
                self, args: Any, state: Any, _: Any, model: Any = None, optimizer: Any = None, **__: Any
            ) -> None:
                watch.saved(args, state, model, optimizer)

        return Callback()

    def begin(self, state: Any) -> None:
        if self.shards:  # each card may have had the whole model
            free_cache()
        self._began = self._last_event = self._saved = self._last_step = time.monotonic()
        self.write_event(
            "start",
            step=state.global_step,
            total_steps=state.max_steps,
            resumed=state.global_step > 0,
            world_size=self._world,
            loading=self._began - self._started,
        )

    def stepped(self, state: Any, control: Any) -> None:
        """Continue, save or stop.  Every rank follows the decision of rank 0."""
        now = time.monotonic()
        self.step = state.global_step
        self._longest = max(self._longest, now - self._last_step)
        self._last_step = now
        is_first, self._is_first = self._is_first, False
        if is_first or now - self._last_event >= STEP_EVENT_SECONDS:
            self._last_event = now
            self.write_event("step", step=self.step, tokens=self.tokens, seconds=now - self._began)
        stop_requested = (self._folder / "stop").exists()
        save_due = now - self._saved + self._longest >= self._job["save_seconds"]
        stop_requested, save_due = self._from_rank_0(stop_requested, save_due)
        if stop_requested and self.step < state.max_steps:
            self.stopped_early = True
            control.should_training_stop = True
        if stop_requested or save_due:
            control.should_save = True
        if control.should_save and self.shards:  # parts are exchanged to save them
            free_cache()

    def _from_rank_0(self, *flags: bool) -> tuple[bool, ...]:
        """Return the flags of rank 0: all ranks have to save together, and their clocks differ."""
        if self._world == 1:
            return flags
        import torch

        both = torch.tensor([int(flag) for flag in flags], device=exchange_device(torch))
        torch.distributed.broadcast(both, src=0)
        return tuple(bool(one) for one in both.tolist())

    def logged(self, state: Any, logs: dict[str, Any]) -> None:
        numbers = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
        facts: dict[str, Any] = {"tokens": self.tokens, "seconds": time.monotonic() - self._began}
        self.write_event("log", **{**numbers, **facts, "step": state.global_step, **self.memory.facts()})
        self._last_event = time.monotonic()

    def saved(self, args: Any, state: Any, model: Any, optimizer: Any = None) -> None:
        """Write the manifest of the checkpoint, which makes it valid."""
        started = time.monotonic()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.shards:
            self.shards["save_adapter"](model, folder, writes=self._rank == 0)
        if self._world > 1:  # each rank writes its own files
            import torch

            torch.distributed.barrier()
        if self._rank == 0 and folder.is_dir():
            keep_template(folder, self._job.get("chat_template"))
            if self.shards:
                self.shards["check_shards"](folder, model, optimizer)
            facts = {
                "bytes": write_manifest(folder, state.global_step),
                "seconds": time.monotonic() - started,
            }
            self.write_event("save", step=state.global_step, path=folder.name, **facts)
        self._saved = self._last_step = time.monotonic()

    def write_peaks(self) -> None:
        """Write the peaks of the memory of every rank, if there are several."""
        if self._world == 1:
            return
        import torch

        peaks: list[Any] = [None] * self._world
        torch.distributed.all_gather_object(peaks, self.memory.facts())
        self.write_event("memory", step=self.step, ranks=peaks)

    def evaluate(self, trainer: Any, when: str) -> None:
        """Write the loss over the job's evaluation rows, if it has any."""
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
        self.write_event("evaluation", step=self.step, when=when, loss=sum(losses) / len(losses))


def free_cache() -> None:
    """Give memory that torch keeps for itself back to the card: NCCL has an allocator of its own.

    With 8.0 GiB free, an 8B model that takes 7.9 was trained, and its first checkpoint failed in NCCL.
    """
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_available():
        cuda.empty_cache()


def exchange_device(torch: Any) -> str:
    """Return the kind of device whose tensors the ranks can exchange.

    A group may have a backend for each kind, and then has no name: axolotl begins it for the cards alone.
    """
    on_cards = torch.cuda.is_available() and torch.distributed.get_backend() != "gloo"
    return "cuda" if on_cards else "cpu"


def open_jsonl(path: Path) -> Any:
    """Open a file to append lines; an incomplete last line is ended, so that the next one is intact."""
    is_incomplete = False
    if path.is_file() and (size := path.stat().st_size):
        with path.open("rb") as before:
            before.seek(size - 1)
            is_incomplete = before.read() != b"\n"
    file = path.open("a", encoding="utf-8")
    if is_incomplete:
        file.write("\n")
    return file


class PeakMemory:
    """The peak memory of this rank in bytes, kept here because runners reset the counters of torch."""

    def __init__(self) -> None:
        self._peaks: dict[str, int] = {}

    def guard(self, torch: Any) -> None:
        """Read the counters before they are reset: every function of torch for it calls one of these."""
        for name in ("_cuda_resetPeakMemoryStats", "_accelerator_resetPeakStats"):
            if (reset := getattr(getattr(torch, "_C", None), name, None)) is not None:
                setattr(torch._C, name, lambda *args, _reset=reset: (self.facts(), _reset(*args))[1])  # noqa: SLF001

    def facts(self) -> dict[str, int]:
        """Return the peaks so far: on the card or, without one, of the process."""
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is None or not cuda.is_available():
            return {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        now = {"memory": cuda.max_memory_allocated(), "memory_reserved": cuda.max_memory_reserved()}
        self._peaks = {name: max(value, self._peaks.get(name, 0)) for name, value in now.items()}
        return self._peaks


def write_manifest(folder: Path, step: int) -> int:
    """Write the manifest of a checkpoint, after syncing its files; return their total size in bytes."""
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
    """Yield the files of a checkpoint except its manifest."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, f".{MANIFEST}"):
            yield path


def keep_template(folder: Path, template: str | None) -> None:
    """Write the chat template of the run to the tokenizer in *folder*: a runner may save it without."""
    settings, own = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    if template is None or not settings.is_file():
        return
    if own.is_file():
        own.write_text(template, encoding="utf-8")
        return
    known = json.loads(settings.read_text(encoding="utf-8"))
    if known.get("chat_template") != template:
        known["chat_template"] = template
        settings.write_text(json.dumps(known, indent=2, ensure_ascii=False), encoding="utf-8")
