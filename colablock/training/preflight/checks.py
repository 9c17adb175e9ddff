"""Whether a training run will start, judged before a byte of weights is fetched.

Everything here takes values and returns values: what the card, the machine, the
target and the hub are like is looked up elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from colablock._common.text import memory_text, size_text
from colablock.training.preflight.facts import (
    Access,
    Card,
    Finding,
    Level,
    Machine,
    Stack,
    is_older,
)
from colablock.training.preflight.memory import (
    Estimate,
    Setting,
    changes_to_fit,
    checkpoint_size,
    estimate,
    least_estimate,
    runner_profile,
)
from colablock.training.preflight.model_config import ModelShape
from colablock.training.preflight.precision import Precision, has_bf16, precision_for
from colablock.training.preflight.stack_rules import (
    access_findings,
    model_findings,
    runner_findings,
    runs_on,
    wrong_build,
)
from colablock.training.runs.config import TrainConfig

__all__ = ["GQA_WORKAROUND", "TIGHT_SHARE", "Preflight", "check_run", "setting_for", "usable_memory"]

#: A mend that has transformers repeat keys and values for cards without flash kernels; see `_is_fused`.
GQA_WORKAROUND = "gqa-before-ampere"
#: How much of the memory that is free a run may take by its estimate, which is no measurement.
TIGHT_SHARE = 0.93

_USABLE = 0.97  # of a card's memory: a T4 of 15 GiB has 14.6 to give
_PROCESS_RAM = 2 * 2**30  # what a process with torch, CUDA and transformers holds beside the model
_SLOW_ON_CPU = 100_000_000  # parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was found, and what was decided.

    *processes* is how many are started, one for each of *cards*, which are indices
    into the machine's; *estimate* is for one process, None where it cannot be made.
    """

    findings: tuple[Finding, ...]
    precision: Precision
    estimate: Estimate | None
    processes: int
    attention: str  # "sdpa", "flash_attention_2" or "eager"
    cards: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing was found that the run would fail by."""
        return all(finding.level is not Level.REFUSE for finding in self.findings)


def check_run(  # noqa: PLR0917 - each is of a type of its own
    config: TrainConfig,
    shape: ModelShape | None,
    machine: Machine,
    stack: Stack,
    access: Access,
    runner: str,
    *,
    workarounds: frozenset[str] = frozenset(),
) -> Preflight:
    """Return what keeps *config* from running here with *runner*, each finding with what can be done.

    *shape* is None where the model's config could not be read; *workarounds* are the
    launch-time corrections that the run will have.
    """
    case = _PreflightCase(config=config, machine=machine, stack=stack, runner=runner, workarounds=workarounds)
    choice = case.choose(shape)
    cards = choice.cards
    precision = precision_for(card.compute_capability for card in cards)
    attention = _attention(shape, cards, stack)
    is_prequantized = shape is not None and shape.quantized == "bitsandbytes"
    findings = [
        *access_findings(access),
        *([] if shape is None else model_findings(config, shape, stack)),
        *runner_findings(
            config, stack, runner, has_card=bool(machine.cards), is_prequantized=is_prequantized
        ),
        *choice.findings,
        *_slice_findings(machine),
        *_precision_findings(shape, cards, precision),
        *_flash_findings(cards, stack, attention),
    ]
    checkpoint = 0
    if shape is None or choice.estimate is None:
        findings.append(_unreckoned(shape))
    else:
        findings += _attention_findings(shape, cards, case.setting(shape, cards))
        findings += _memory_findings(case, shape, cards, choice.estimate)
        findings += _loading_findings(shape, machine, processes=len(cards))
        checkpoint = checkpoint_size(config, shape, case.setting(shape, cards))
    findings += _disk_findings(config, machine, access, checkpoint)
    return Preflight(
        findings=tuple(findings),
        precision=precision,
        estimate=choice.estimate,
        processes=max(len(cards), 1),
        attention=attention,
        cards=choice.at,
    )


def setting_for(
    shape: ModelShape,
    cards: list[Card],
    stack: Stack,
    runner: str,
    *,
    processes: int = 1,
    workarounds: frozenset[str] = frozenset(),
) -> Setting:
    """Return what `estimate` needs to know for a run on *cards*; on none of them: on the CPU."""
    versions = {"trl": stack.trl, "axolotl": stack.axolotl}
    return Setting(
        precision=precision_for(card.compute_capability for card in cards),
        profile=runner_profile(runner, versions.get(runner)),
        attention=_attention(shape, cards, stack),
        is_fused=_is_fused(shape, cards, stack, workarounds),
        processes=processes,
        on_card=bool(cards),
    )


def usable_memory(card: Card) -> int:
    """Return the bytes of a card's memory that a run can have now."""
    usable = round(card.memory * _USABLE)
    return usable if card.free is None else min(card.free, usable)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """The cards to train on, by index and as they are; what a process takes; what is said about it."""

    at: tuple[int, ...]
    cards: list[Card]
    estimate: Estimate | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _PreflightCase:
    """What is to run, and on what."""

    config: TrainConfig
    machine: Machine
    stack: Stack
    runner: str
    workarounds: frozenset[str]

    def setting(self, shape: ModelShape, cards: list[Card]) -> Setting:
        return setting_for(
            shape, cards, self.stack, self.runner, processes=len(cards) or 1, workarounds=self.workarounds
        )

    def choose(self, shape: ModelShape | None) -> _Choice:
        """Return the choice of cards.

        Each process holds the whole model; where not every card has room for it, one
        process on the card with the most room is left.
        """
        cards = self.machine.cards
        usable = [
            at for at, card in enumerate(cards) if runs_on(card.compute_capability, self.stack.arch_list)
        ]
        findings = []
        if cards and not usable:  # what it would take of the card is said nevertheless
            findings.append(wrong_build(cards[0], self.stack))
            usable = [0]
        elif len(usable) < len(cards):
            others = ", ".join(card.name for at, card in enumerate(cards) if at not in usable)
            why = "torch has no kernels for it"
            findings.append(Finding(level=Level.NOTE, what=f"left out: {others}", why=why))
        roomiest = sorted(usable, key=lambda at: (-usable_memory(cards[at]), at))[:1]
        if shape is None or shape.peculiar is not None:
            return self._choice(roomiest, None, findings)
        if len(usable) > 1:
            together = self._reckon(shape, usable)
            fitting = [at for at in usable if together.total <= usable_memory(cards[at])]
            findings.append(_process_note(len(usable), len(fitting), together))
            if len(fitting) == len(usable):
                return self._choice(usable, together, findings)
        return self._choice(roomiest, self._reckon(shape, roomiest), findings)

    def _reckon(self, shape: ModelShape, chosen: list[int]) -> Estimate:
        cards = [self.machine.cards[at] for at in chosen]
        return estimate(self.config, shape, self.setting(shape, cards))

    def _choice(self, chosen: list[int], found: Estimate | None, findings: list[Finding]) -> _Choice:
        return _Choice(
            at=tuple(chosen),
            cards=[self.machine.cards[at] for at in chosen],
            estimate=found,
            findings=tuple(findings),
        )


def _process_note(cards: int, fitting: int, found: Estimate) -> Finding:
    if fitting == cards:
        what = f"{cards} processes, one for each card"
        why = f"each card has room for the whole model ({memory_text(found.total)})"
    else:
        what = f"1 process, though there are {cards} cards"
        why = f"each process holds the whole model ({memory_text(found.total)}), and "
        why += f"{'only some cards have' if fitting else 'no card has'} room for it"
    return Finding(level=Level.NOTE, what=what, why=why)


def _attention(shape: ModelShape | None, cards: list[Card], stack: Stack) -> str:
    if stack.flash_attn is not None and _have_flash(cards):
        return "flash_attention_2"
    return "eager" if shape is not None and shape.caps_attention else "sdpa"


def _have_flash(cards: list[Card]) -> bool:
    """Whether all of *cards* run flash attention, whose kernels begin with 8.0."""
    return bool(cards) and all(has_bf16(card.compute_capability) for card in cards)


def _is_fused(shape: ModelShape, cards: list[Card], stack: Stack, workarounds: frozenset[str]) -> bool:
    """Whether torch's attention runs in a kernel that keeps no scores.

    From 4.54 on transformers leaves it to torch to repeat keys and values for the
    query heads that share them, and of torch's kernels only flash attention can.  Where that
    does not run, the scores of all heads are made in float32 (transformers#48633).
    """
    return (
        _have_flash(cards)
        or shape.heads == shape.kv_heads
        or is_older(stack.transformers, "4.54")
        or is_older(stack.torch, "2.5")
        or GQA_WORKAROUND in workarounds
    )


def _precision_findings(
    shape: ModelShape | None, cards: list[Card], precision: Precision
) -> Iterator[Finding]:
    if precision.fp16:
        without = next(card for card in cards if not has_bf16(card.compute_capability))
        if without.compute_capability is None:
            yield Finding(
                level=Level.WARN,
                what=f"the compute capability of the {without.name} is not known: it trains in fp16",
                why="neither NVML nor nvidia-smi tells it, and fp16 is what every card can",
            )
        else:
            yield Finding(
                level=Level.NOTE,
                what="trains in fp16",
                why=f"the {without.name} has no units for bf16, which begin with compute capability 8.0 "
                "(it has {}.{})".format(*without.compute_capability),
            )
        if shape is not None and shape.model_type.startswith("gemma3"):
            yield Finding(
                level=Level.WARN,
                what="models of type `gemma3` overflow in fp16",
                why="their activations go beyond its 65504, and the loss becomes NaN (transformers#39972)",
                fix="a card of compute capability 8.0 or later, or a model of another family",
            )
    elif not cards:
        yield Finding(level=Level.NOTE, what="trains in fp32", why="there is no card")
        if shape is not None and shape.parameters > _SLOW_ON_CPU:
            yield Finding(
                level=Level.WARN,
                what=f"a CPU takes very long for {shape.parameters / 1e9:.1f} billion parameters",
                why="each step computes with all of them for every token",
                fix="choose a runtime with a card, or a smaller model",
            )


def _slice_findings(machine: Machine) -> Iterator[Finding]:
    if machine.has_slices:
        yield Finding(
            level=Level.WARN,
            what=f"a part of the {machine.cards[0].name} trains, and is reckoned with as the whole",
            why="the driver tells the memory of whole cards, and `CUDA_VISIBLE_DEVICES` names a MIG device",
            fix="see with `nvidia-smi -L` how much that part has, and compare it with the estimate",
        )


def _flash_findings(cards: list[Card], stack: Stack, attention: str) -> Iterator[Finding]:
    if stack.flash_attn is not None and cards and attention != "flash_attention_2":
        yield Finding(
            level=Level.NOTE,
            what=f"flash-attn {stack.flash_attn} is left aside",
            why="its kernels begin with compute capability 8.0",
        )


def _attention_findings(shape: ModelShape, cards: list[Card], setting: Setting) -> Iterator[Finding]:
    if setting.attention == "eager":
        yield Finding(
            level=Level.NOTE,
            what="attention is computed without a fused kernel",
            why=f"models of type `{shape.model_type}` cap their scores, which torch's cannot do",
        )
    elif setting.keeps_scores and cards:
        yield Finding(
            level=Level.NOTE,
            what="attention makes the scores of all heads at once",
            why="transformers leaves it to torch to share keys among query heads, and of torch's kernels "
            "that run below compute capability 8.0 none does",
        )


def _unreckoned(shape: ModelShape | None) -> Finding:
    what = "what memory the run takes is not reckoned"
    if shape is None:
        why = "the model's `config.json` could not be read"
    else:
        why = f"the model has {shape.peculiar}, and the formula is for like layers"
    return Finding(
        level=Level.WARN,
        what=what,
        why=why,
        fix="try it with `max_steps: 2` first: it runs out of memory at once, or not at all",
    )


def _memory_findings(
    case: _PreflightCase, shape: ModelShape, cards: list[Card], found: Estimate
) -> Iterator[Finding]:
    """Yield whether the estimate fits what is free, and if not, what would."""
    machine, setting = case.machine, case.setting(shape, cards)
    room = min((usable_memory(card) for card in cards), default=machine.ram_free)
    where = "the card's memory" if cards else "memory"
    if not shape.is_known:
        what = f"the estimate takes the layers of `{shape.model_type}` to be like Llama's"
        yield Finding(level=Level.NOTE, what=what)
    needed = f"about {memory_text(found.total)} of {where} are needed"
    if found.total > room:
        why, fix = _shortage(machine, cards, found, room)
        ways = changes_to_fit(case.config, shape, setting, room)
        fixes = [fix] if fix else []
        if ways:
            fixes.append(f"it fits with {', or '.join(ways)}")
        elif not fix:
            kind = "a card" if cards else "a machine"
            lowest = memory_text(least_estimate(case.config, shape, setting).total)
            fixes.append(f"a smaller model, or {kind} with more than {lowest}, its least at any setting")
        what = f"{needed}, and {memory_text(room)} are free"
        yield Finding(level=Level.REFUSE, what=what, why=why, fix="; or ".join(fixes))
        return
    if found.total > room * TIGHT_SHARE:
        easier = changes_to_fit(case.config, shape, setting, round(room * TIGHT_SHARE))
        yield Finding(
            level=Level.WARN,
            what=f"it is tight: {needed}, and {memory_text(room)} are free",
            why=_largest_parts(found),
            fix=f"there is more room with {', or '.join(easier)}"
            if easier
            else "leave nothing else running beside it",
        )
    if machine.held and cards:
        yield Finding(
            level=Level.NOTE,
            what=f"this kernel holds {memory_text(machine.held)} of the card's memory",
            why="training runs in a process of its own, and has what is left",
        )


def _shortage(machine: Machine, cards: list[Card], found: Estimate, room: int) -> tuple[str, str]:
    """Return why too little is free, and what frees enough; the latter is empty where nothing can."""
    whole = min((round(card.memory * _USABLE) for card in cards), default=machine.ram)
    if found.total > whole:
        return _largest_parts(found), ""
    if not cards:
        return (
            f"of {memory_text(whole)} the rest is in use",
            "end what uses it; a restarted kernel holds nothing",
        )
    if found.total <= room + machine.held:
        why = f"this kernel itself holds {memory_text(machine.held)} of it"
        return why, "restart the kernel, or delete the model there and call `torch.cuda.empty_cache()`"
    if machine.holders:
        return f"it is held by {', '.join(machine.holders)}", "end what holds it"
    why = f"something else holds {memory_text(whole - room - machine.held)} of it"
    return why, "see with `nvidia-smi` what holds it, and end that"


def _largest_parts(found: Estimate) -> str:
    parts = sorted(found.parts.items(), key=lambda part: -part[1])[:3]
    return "most of it is " + ", ".join(
        f"{_PARTS.get(name, name)} ({memory_text(size)})" for name, size in parts
    )


_PARTS = {
    "loss": "logits for the loss",
    "one layer": "the backward pass of a layer",
    "optimizer": "states of the optimizer",
    "context": "what CUDA takes",
}


def _loading_findings(shape: ModelShape, machine: Machine, *, processes: int) -> Iterator[Finding]:
    """Yield whether there is memory to load the model with."""
    tensor = shape.vocabulary * shape.hidden * 2  # the largest: files are mapped and read one by one
    ram = processes * (_PROCESS_RAM + tensor)
    if ram > machine.ram_free:
        yield Finding(
            level=Level.REFUSE,
            what=f"about {memory_text(ram)} of the machine's memory are needed to load the model, "
            f"and {memory_text(machine.ram_free)} are free",
            why=f"{'each process' if processes > 1 else 'a process'} holds "
            f"{memory_text(_PROCESS_RAM)} and a tensor",
            fix="free some (a restarted kernel holds nothing), or choose a runtime with more memory",
        )


def _disk_findings(
    config: TrainConfig, machine: Machine, access: Access, checkpoint: int
) -> Iterator[Finding]:
    """Yield whether there is disk for the model and for checkpoints of *checkpoint* bytes each."""
    weights, checkpoints = access.weights, (config.save_total_limit + 1) * checkpoint
    fetched = f"{size_text(weights)} of weights are to be fetched"
    taken = f"{config.save_total_limit} checkpoints and one more on the way take {size_text(checkpoints)}"
    elsewhere = "point `HF_HOME` at a larger disk"
    if machine.cache_free is not None:
        yield from _shortage_of_disk(weights, machine.cache_free, " for the hub's cache", fetched, elsewhere)
        other = "name an `output_dir` on a larger disk"
        yield from _shortage_of_disk(checkpoints, machine.disk_free, " for the run", taken, other)
        return
    ways = elsewhere if checkpoints <= machine.disk_free else ""
    why = f"{fetched}, and {taken}" if checkpoints else fetched
    yield from _shortage_of_disk(weights + checkpoints, machine.disk_free, "", why, ways)


def _shortage_of_disk(need: int, free: int, where: str, why: str, elsewhere: str) -> Iterator[Finding]:
    if need > free:
        yield Finding(
            level=Level.REFUSE,
            what=f"{size_text(need)} of disk are needed{where}, and {size_text(free)} are free",
            why=why,
            fix=f"free {size_text(need - free)}{', or ' + elsewhere if elsewhere else ''}",
        )
