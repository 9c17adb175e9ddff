"""A trainer with the seams of the real one: callbacks, checkpoints that rotate, and going on from one."""

import errno
import json
import math
import os
import random
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch

_SPEED = float(os.environ.get("STAND_IN_SPEED", "100"))  # of a table of scores, by the rate of weights
_FORGETS = 0.9


@dataclass
class TrainingArguments:
    output_dir: str
    max_steps: int = -1
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch"
    gradient_checkpointing: bool = False
    gradient_checkpointing_kwargs: dict = None
    bf16: bool = False
    fp16: bool = False
    logging_steps: int = 500
    save_strategy: str = "steps"
    save_steps: int = 500
    save_total_limit: int = None
    eval_strategy: str = "no"
    eval_steps: int = None
    seed: int = 42
    data_seed: int = None
    report_to: str = "all"
    run_name: str = None
    use_cpu: bool = False
    dataloader_pin_memory: bool = True
    ddp_find_unused_parameters: bool = None
    disable_tqdm: bool = False
    auto_find_batch_size: bool = False

    @property
    def train_batch_size(self):
        return self.per_device_train_batch_size


@dataclass
class TrainerState:
    epoch: float = 0.0
    global_step: int = 0
    max_steps: int = 0
    train_batch_size: int = None
    log_history: list = field(default_factory=list)

    def save_to_json(self, path):
        Path(path).write_text(json.dumps(asdict(self)))

    @classmethod
    def load_from_json(cls, path):
        return cls(**json.loads(Path(path).read_text()))


@dataclass
class TrainerControl:
    should_training_stop: bool = False
    should_save: bool = False


class TrainerCallback:
    def on_train_begin(self, args, state, control, **kwargs): ...

    def on_step_end(self, args, state, control, **kwargs): ...

    def on_log(self, args, state, control, **kwargs): ...

    def on_save(self, args, state, control, **kwargs): ...

    def on_train_end(self, args, state, control, **kwargs): ...


def note(word):
    if (file := os.environ.get("STAND_IN_NOTES")) is not None:
        with Path(file).open("a", encoding="utf-8") as notes:
            notes.write(f"{word}\n")


def leap(seconds):
    """Put the clock of this process forward, so that a step takes *seconds* more."""
    monotonic = time.monotonic
    time.monotonic = lambda: monotonic() + seconds


def gate():
    """Return the last step that may be taken: while a test acts, it keeps a file with the number."""
    try:
        return int(Path(os.environ["STAND_IN_GATE"]).read_text(encoding="ascii"))
    except (KeyError, FileNotFoundError):
        return math.inf


class Trainer:
    def __init__(
        self, model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, callbacks=None
    ):
        self.model, self.args, self.data_collator = model, args, data_collator
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.callbacks = list(callbacks or ())
        self.state, self.control = TrainerState(), TrainerControl()
        self.accelerator = SimpleNamespace(autocast=nullcontext)
        self._momentum = [0.0] * len(model.scores.data.values)
        if os.environ.get("STAND_IN_POOL"):
            import multiprocessing  # noqa: PLC0415 - most runs start without

            fork = multiprocessing.get_context("fork")
            workers = [fork.Process(target=time.sleep, args=(600,)) for _ in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:  # as a pool does with those that are at work
                worker.terminate()
                worker.join()

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def is_world_process_zero(self):
        return os.environ.get("RANK", "0") == "0"

    def train(self, resume_from_checkpoint=None, **kwargs):
        del kwargs
        args = self.args
        random.seed(args.seed)
        self._train_batch_size = args.train_batch_size
        if resume_from_checkpoint is not None:
            self._load(Path(resume_from_checkpoint))
            if self.state.train_batch_size is not None:  # as releases before 5.0 do
                self._train_batch_size = self.state.train_batch_size
        state = self.state
        whole = self._train_batch_size * args.gradient_accumulation_steps
        of_epoch = math.ceil(len(self.train_dataset) / whole)
        state.train_batch_size = self._train_batch_size
        state.max_steps = (
            args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * of_epoch)
        )
        self._tell("on_train_begin")
        note("begin")
        while state.global_step < state.max_steps:
            while state.global_step >= gate():
                time.sleep(0.01)
            loss = self._step(whole)
            state.global_step += 1
            state.epoch = state.global_step / of_epoch
            time.sleep(float(os.environ.get("STAND_IN_PAUSE", "0")))
            leap(float(os.environ.get("STAND_IN_LEAP", "0")))
            self.control.should_save = state.global_step % args.save_steps == 0
            if state.global_step >= state.max_steps:
                self.control.should_training_stop = self.control.should_save = True
            self._tell("on_step_end")
            if state.global_step % args.logging_steps == 0:
                self.log({"loss": loss, "grad_norm": 1.0, "learning_rate": self._rate(), "note": "no number"})
            if args.eval_strategy == "steps" and state.global_step % args.eval_steps == 0:
                self.log({"eval_loss": self._mean(self.eval_dataset[:])})
            if self.control.should_save:
                self._save()
            if self.control.should_training_stop:
                break
        note("end")
        self.log({"train_runtime": 1.0})
        self._tell("on_train_end")

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Return the loss of a batch and keep its gradient."""
        del num_items_in_batch
        if self.args.fp16 and model.adapter.dtype == torch.bfloat16:
            raise NotImplementedError(
                "\"_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16'"
            )
        labels = [one for row in inputs["labels"].values for one in row[1:] if one != -100]
        scores = model.total()
        powers = [math.exp(one) for one in scores]
        whole = sum(powers)
        gradient = [one / whole for one in powers]
        for label in labels:
            gradient[label] -= 1 / len(labels)
        parts = self.args.gradient_accumulation_steps
        self._momentum = [old + new / parts for old, new in zip(self._momentum, gradient)]  # noqa: B905
        return math.log(whole) - sum(scores[label] for label in labels) / len(labels)

    def log(self, logs):
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._tell("on_log", logs={**logs, "epoch": self.state.epoch})

    def save_model(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(self.model.peft_config))
        (folder / "adapter_model.safetensors").write_text(json.dumps(self.model.adapter.data.values))

    def _step(self, whole):
        args, rows = self.args, self.train_dataset
        first = self.state.global_step * whole
        self._momentum = [_FORGETS * one for one in self._momentum]
        loss = 0.0
        for part in range(args.gradient_accumulation_steps):
            begin = first + part * self._train_batch_size
            places = [(begin + at) % len(rows) for at in range(self._train_batch_size)]
            inputs = self.data_collator([rows[at] for at in places])
            loss += self.training_step(self.model, inputs) / args.gradient_accumulation_steps
        rate = self._rate() * _SPEED
        adapter = self.model.adapter.data
        noise = random.random() * 1e-6  # what a checkpoint without the state of chance gets wrong
        adapter.values = [
            value - rate * (slope + noise)
            for value, slope in zip(adapter.values, self._momentum)  # noqa: B905
        ]
        return loss

    def _rate(self):
        args, step = self.args, self.state.global_step
        if args.lr_scheduler_type == "constant":
            return args.learning_rate
        return args.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.state.max_steps))

    def _mean(self, rows):
        labels = [label for row in rows for label in row["labels"][1:]]
        scores = torch.tensor([self.model.total()])
        return torch.nn.functional.cross_entropy(scores, torch.tensor(labels)).item()

    def _save(self):
        rank = os.environ.get("RANK")
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(exist_ok=True)
        name = f"rng_state_{rank}.pth" if os.environ.get("WORLD_SIZE", "1") != "1" else "rng_state.pth"
        (folder / name).write_text(json.dumps(random.getstate()))
        if self.is_world_process_zero():
            self.save_model(folder)
            if os.environ.get("STAND_IN_FAILS_AT") == str(self.state.global_step):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            (folder / "optimizer.pt").write_text(json.dumps(self._momentum))
            (folder / "training_args.bin").write_text(json.dumps(asdict(self.args)))
            self.state.save_to_json(folder / "trainer_state.json")
            kept = sorted(folder.parent.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
            for old in kept[: -self.args.save_total_limit]:
                shutil.rmtree(old)
        self._tell("on_save")

    def _load(self, folder):
        self.state = TrainerState.load_from_json(folder / "trainer_state.json")
        self.model.adapter.data.values = json.loads((folder / "adapter_model.safetensors").read_text())
        self._momentum = json.loads((folder / "optimizer.pt").read_text())
        version, numbers, spare = json.loads(next(folder.glob("rng_state*")).read_text())
        random.setstate((version, tuple(numbers), spare))

    def _tell(self, event, **facts):
        for callback in self.callbacks:
            getattr(callback, event)(self.args, self.state, self.control, **facts)
