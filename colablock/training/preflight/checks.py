"""Preflight: check whether a training run will start, before any weights are downloaded.

The functions here take values and return values.  The facts about card, machine, target and hub
are read elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from colablock._common.text import memory_text
from colablock.training.preflight.batch_size import batch_findings, largest_batch
from colablock.training.preflight.facts import (
    Access,
    Card,
    Finding,
    Level,
    Machine,
    Precision,
    Stack,
    has_bf16,
    is_older,
    precision_for,
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
from colablock.training.preflight.space_findings import disk_findings, loading_findings
from colablock.training.preflight.stack_rules import (
    access_findings,
    architecture_findings,
    model_findings,
    runner_findings,
    runs_on,
    weights_findings,
    wrong_build,
)
from colablock.training.preflight.unsloth_rules import unsloth_findings
from colablock.training.runs.config import TrainConfig

__all__ = ["GQA_WORKAROUND", "TIGHT_SHARE", "Preflight", "check_run", "setting_for", "usable_memory"]

#: The workaround that has transformers repeat keys and values on cards without flash kernels.
#: See `_has_fused_attention`.
GQA_WORKAROUND = "gqa-before-ampere"
#: The share of the free memory up to which an estimate is not called tight.
TIGHT_SHARE = 0.93

_USABLE = 0.97  # of a card's memory: a T4 of 15 GiB can allocate 14.6
_SLOW_ON_CPU = 100_000_000  # parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """The findings about a run, and the decisions for it.

    *processes* is the number of processes, one for each of *cards*, which are indices into the
    machine's cards.  *estimate* is for one process; None if there is no estimate.  *config* is the
    config of the run: with the rows at a time that fit, if that was asked for.
    """

    findings: tuple[Finding, ...]
    precision: Precision
    estimate: Estimate | None
    processes: int
    attention: str  # "sdpa", "flash_attention_2" or "eager"
    config: TrainConfig
    cards: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no finding says that the run would fail."""
        return all(finding.level is not Level.REFUSE for finding in self.findings)


def check_run(  # noqa: PLR0917 - each has its own type
    config: TrainConfig,
    shape: ModelShape | None,
    machine: Machine,
    stack: Stack,
    access: Access,
    runner: str,
    *,
    workarounds: frozenset[str] = frozenset(),
    model_config: Mapping[str, Any] | None = None,
    longest: int | None = None,
    sizes_batch: bool = False,
) -> Preflight:
    """Return the findings for *config* with *runner* on this machine, and the decisions for the run.

    *shape* is None if the model's config could not be read; *model_config* is that config.
    *workarounds* are those that the run will apply.  *longest* is the number of tokens of the longest
    row, once it is known: the memory is estimated for it if it is less than `sequence_len`.  With
    *sizes_batch* the run takes as many rows at a time as fit on its cards.
    """
    case = _PreflightCase(
        config=_with_longest(config, longest),
        machine=machine,
        stack=stack,
        runner=runner,
        workarounds=workarounds,
        has_tokens=longest is not None,
    )
    choice = case.choose_cards(shape)
    sized = case.sized(shape, choice, needed=sizes_batch or longest is not None)
    sizing = [*batch_findings(config, sized.config, is_taken=sizes_batch)]
    if sizes_batch:
        case, choice = sized, sized.choose_cards(shape)
        config = replace(
            config,
            micro_batch_size=sized.config.micro_batch_size,
            gradient_accumulation_steps=sized.config.gradient_accumulation_steps,
        )
    cards = choice.cards
    precision = precision_for(card.compute_capability for card in cards)
    attention = _attention(shape, cards, stack)
    is_prequantized = shape is not None and shape.quantized == "bitsandbytes"
    findings = [
        *access_findings(access),
        *architecture_findings(model_config, config, stack),
        *([] if shape is None else model_findings(config, shape, stack)),
        *runner_findings(
            config, stack, runner, has_card=bool(machine.cards), is_prequantized=is_prequantized
        ),
        *unsloth_findings(runner, config, shape, machine.cards),
        *choice.findings,
        *_slice_findings(machine),
        *_precision_findings(shape, cards, precision),
        *_flash_findings(cards, stack, attention),
        *_packing_findings(config, attention),
    ]
    checkpoint = 0
    if shape is None or choice.estimate is None:
        findings.append(_no_estimate(shape))
        room = min((usable_memory(card) for card in cards), default=machine.ram_free)
        where = "the card's memory" if cards else "memory"
        findings += weights_findings(config, access, model_config, room, where)
    else:
        findings += _attention_findings(shape, cards, case.setting(shape, cards))
        findings += _memory_findings(case, shape, cards, choice.estimate)
        findings += sizing
        findings += loading_findings(shape, machine, processes=len(cards))
        checkpoint = checkpoint_size(config, shape, case.setting(shape, cards))
    findings += disk_findings(config, machine, access, checkpoint)
    return Preflight(
        findings=tuple(findings),
        precision=precision,
        estimate=choice.estimate,
        processes=max(len(cards), 1),
        attention=attention,
        cards=choice.indices,
        config=config,
    )


def _with_longest(config: TrainConfig, longest: int | None) -> TrainConfig:
    """Return *config* with the length of the rows: a batch is padded to its longest, unless it is packed."""
    if longest is None or config.extra.get("sample_packing") or config.extra.get("pad_to_sequence_len"):
        return config
    return replace(config, sequence_len=max(1, min(config.sequence_len, longest)))


def setting_for(
    shape: ModelShape,
    cards: list[Card],
    stack: Stack,
    runner: str,
    *,
    processes: int = 1,
    workarounds: frozenset[str] = frozenset(),
) -> Setting:
    """Return the setting of `estimate` for a run on *cards*; without cards, on the CPU."""
    return Setting(
        precision=precision_for(card.compute_capability for card in cards),
        profile=runner_profile(runner, stack.runners.get(runner)),
        attention=_attention(shape, cards, stack),
        has_fused_attention=_has_fused_attention(shape, cards, stack, workarounds),
        processes=processes,
        on_card=bool(cards),
    )


def usable_memory(card: Card) -> int:
    """Return the bytes of a card's memory that a run can use now."""
    usable = round(card.memory * _USABLE)
    return usable if card.free is None else min(card.free, usable)


@dataclass(frozen=True, slots=True, kw_only=True)
class _CardChoice:
    """The chosen cards, by index and as values, with the estimate for a process and the findings."""

    indices: tuple[int, ...]
    cards: list[Card]
    estimate: Estimate | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _PreflightCase:
    """The run to check, and what it would run on."""

    config: TrainConfig
    machine: Machine
    stack: Stack
    runner: str
    workarounds: frozenset[str]
    has_tokens: bool = False  # *config* has the length of the longest row

    def setting(self, shape: ModelShape, cards: list[Card]) -> Setting:
        return setting_for(
            shape,
            cards,
            self.stack,
            self.runner,
            processes=len(cards) or 1,
            workarounds=self.workarounds,
        )

    def sized(self, shape: ModelShape | None, choice: _CardChoice, *, needed: bool) -> _PreflightCase:
        """Return the case with the largest batch for the cards; the same without cards or an estimate."""
        if not needed or shape is None or not shape.is_known or choice.estimate is None or not choice.cards:
            return self
        room = TIGHT_SHARE * min(map(usable_memory, choice.cards))
        return replace(
            self, config=largest_batch(self.config, shape, self.setting(shape, choice.cards), room)
        )

    def choose_cards(self, shape: ModelShape | None) -> _CardChoice:
        """Choose the cards to train on.

        Each process holds the whole model.  If the model does not fit on every card, one process
        runs on the card with the most usable memory.
        """
        cards = self.machine.cards
        usable = [
            at for at, card in enumerate(cards) if runs_on(card.compute_capability, self.stack.arch_list)
        ]
        findings = []
        if cards and not usable:  # the estimate for the first card is still reported
            findings.append(wrong_build(cards[0], self.stack))
            usable = [0]
        elif len(usable) < len(cards):
            others = ", ".join(card.name for at, card in enumerate(cards) if at not in usable)
            why = "torch has no kernels for it"
            findings.append(Finding(level=Level.NOTE, what=f"not using {others}", why=why))
        roomiest = sorted(usable, key=lambda at: (-usable_memory(cards[at]), at))[:1]
        if shape is None or shape.unsupported is not None:
            return self._choice(roomiest, None, findings)
        if len(usable) > 1:
            together = self._estimate(shape, usable)
            fitting = [at for at in usable if together.total <= usable_memory(cards[at])]
            findings.append(_process_note(len(usable), len(fitting), together))
            if len(fitting) == len(usable):
                return self._choice(usable, together, findings)
        return self._choice(roomiest, self._estimate(shape, roomiest), findings)

    def _estimate(self, shape: ModelShape, chosen: list[int]) -> Estimate:
        cards = [self.machine.cards[at] for at in chosen]
        return estimate(self.config, shape, self.setting(shape, cards))

    def _choice(self, chosen: list[int], found: Estimate | None, findings: list[Finding]) -> _CardChoice:
        return _CardChoice(
            indices=tuple(chosen),
            cards=[self.machine.cards[at] for at in chosen],
            estimate=found,
            findings=tuple(findings),
        )


def _process_note(cards: int, fitting: int, found: Estimate) -> Finding:
    size = memory_text(found.total)
    if fitting == cards:
        what = f"training with {cards} processes, one for each card"
        why = f"the whole model fits on each card ({size})"
    else:
        what = f"training with 1 process on 1 of {cards} cards"
        where = "only some of the cards" if fitting else "none of the cards"
        why = f"each process holds the whole model ({size}), which fits on {where}"
    return Finding(level=Level.NOTE, what=what, why=why)


def _attention(shape: ModelShape | None, cards: list[Card], stack: Stack) -> str:
    if stack.flash_attn is not None and _have_flash(cards):
        return "flash_attention_2"
    return "eager" if shape is not None and shape.has_softcapping else "sdpa"


def _have_flash(cards: list[Card]) -> bool:
    """Whether all of *cards* run flash attention, which needs compute capability 8.0."""
    return bool(cards) and all(has_bf16(card.compute_capability) for card in cards)


def _has_fused_attention(
    shape: ModelShape, cards: list[Card], stack: Stack, workarounds: frozenset[str]
) -> bool:
    """Whether torch's attention runs in a kernel that does not store the scores.

    From 4.54 on, transformers lets torch share keys and values among query heads.  Of torch's
    kernels only flash attention supports that.  On cards without it, torch stores the scores of
    all heads in float32 (transformers#48633).
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
                what=f"training in fp16, because the compute capability of the {without.name} is unknown",
                why="neither NVML nor nvidia-smi reports it, and every card supports fp16",
            )
        else:
            yield Finding(
                level=Level.NOTE,
                what="training in fp16",
                why="bf16 needs compute capability 8.0, and the {} has {}.{}".format(
                    without.name, *without.compute_capability
                ),
            )
        if shape is not None and shape.model_type.startswith("gemma3"):
            yield Finding(
                level=Level.WARN,
                what="models of type `gemma3` overflow in fp16",
                why="their activations exceed 65504, and the loss becomes NaN (transformers#39972)",
                fix="use a card with compute capability 8.0 or later, or a model of another family",
            )
    elif not cards:
        yield Finding(level=Level.NOTE, what="training in fp32", why="this machine has no card")
        if shape is not None and shape.parameters > _SLOW_ON_CPU:
            yield Finding(
                level=Level.WARN,
                what=f"training {shape.parameters / 1e9:.1f} billion parameters on a CPU is very slow",
                why="every step computes with all of them for every token",
                fix="use a runtime with a card, or a smaller model",
            )


def _slice_findings(machine: Machine) -> Iterator[Finding]:
    if machine.has_slices:
        yield Finding(
            level=Level.WARN,
            what=f"training on a slice of the {machine.cards[0].name}, but estimating for the whole card",
            why="`CUDA_VISIBLE_DEVICES` names a MIG device, and the driver reports the memory of whole cards",
            fix="compare the estimate with the memory of the slice, which `nvidia-smi -L` lists",
        )


def _flash_findings(cards: list[Card], stack: Stack, attention: str) -> Iterator[Finding]:
    if stack.flash_attn is not None and cards and attention != "flash_attention_2":
        yield Finding(
            level=Level.NOTE,
            what=f"not using flash-attn {stack.flash_attn}",
            why="its kernels need compute capability 8.0",
        )


def _packing_findings(config: TrainConfig, attention: str) -> Iterator[Finding]:
    if config.extra.get("sample_packing") and attention != "flash_attention_2":
        yield Finding(
            level=Level.WARN,
            what="not packing rows, although the config has `sample_packing: true`",
            why="without flash attention, the tokens of one row would see those of another",
            fix="raise `micro_batch_size` for the same number of tokens in a step, or add flash-attn to the "
            "stack on a card with compute capability 8.0 or later",
        )


def _attention_findings(shape: ModelShape, cards: list[Card], setting: Setting) -> Iterator[Finding]:
    if setting.attention == "eager":
        yield Finding(
            level=Level.NOTE,
            what="computing attention without a fused kernel",
            why=f"models of type `{shape.model_type}` cap the scores, which torch's kernels do not support",
        )
    elif setting.stores_scores and cards:
        yield Finding(
            level=Level.NOTE,
            what="attention stores the scores of all heads",
            why="transformers lets torch share keys among query heads, which torch's kernels for cards "
            "below compute capability 8.0 do not support",
        )


def _no_estimate(shape: ModelShape | None) -> Finding:
    if shape is None:
        why = "the model's `config.json` could not be read"
    else:
        why = f"the model has {shape.unsupported}, and the estimate supports only uniform decoder layers"
    return Finding(
        level=Level.WARN,
        what="there is no memory estimate for this run",
        why=why,
        fix="try it with `max_steps: 2` first: if memory is too small, the run fails in the first steps",
    )


def _memory_findings(
    case: _PreflightCase, shape: ModelShape, cards: list[Card], found: Estimate
) -> Iterator[Finding]:
    """Yield whether the estimate fits the free memory and, if not, which changes would make it fit."""
    machine, setting = case.machine, case.setting(shape, cards)
    room = min((usable_memory(card) for card in cards), default=machine.ram_free)
    where = "the card's memory" if cards else "memory"
    if not shape.is_known:
        what = f"the estimate assumes that the layers of `{shape.model_type}` are like Llama's"
        yield Finding(level=Level.NOTE, what=what)
    rows = f" for rows of at most {case.config.sequence_len:,} tokens" if case.has_tokens else ""
    needed = (
        f"the run needs about {memory_text(found.total)} of {where}{rows}, and {memory_text(room)} are free"
    )
    if found.total > room:
        why, fix = _shortage(machine, cards, found, room)
        changes = changes_to_fit(case.config, shape, setting, room)
        fixes = [fix] if fix else []
        if changes:
            fixes.append(f"it fits with {', or '.join(changes)}")
        elif not fix:
            kind = "a card" if cards else "a machine"
            lowest = memory_text(least_estimate(case.config, shape, setting).total)
            fixes.append(
                f"use a smaller model, or {kind} with more than {lowest} (the lowest estimate for this model)"
            )
        yield Finding(level=Level.REFUSE, what=needed, why=why, fix="; or ".join(fixes))
        return
    if found.total > room * TIGHT_SHARE:
        changes = changes_to_fit(case.config, shape, setting, round(room * TIGHT_SHARE))
        yield Finding(
            level=Level.WARN,
            what=f"memory is tight: {needed}",
            why=_largest_parts(found),
            fix=f"it needs less with {', or '.join(changes)}"
            if changes
            else "run nothing else on this card"
            if cards
            else "run nothing else on this machine",
        )
    if machine.kernel_memory and cards:
        yield Finding(
            level=Level.NOTE,
            what=f"this kernel uses {memory_text(machine.kernel_memory)} of the card's memory",
            why="the run is a process of its own and has the rest",
        )


def _shortage(machine: Machine, cards: list[Card], found: Estimate, room: int) -> tuple[str, str]:
    """Return why too little memory is free, and how to free enough; the latter is empty if nothing can."""
    whole = min((round(card.memory * _USABLE) for card in cards), default=machine.ram)
    if found.total > whole:
        return _largest_parts(found), ""
    if not cards:
        return (
            f"other processes use the rest of {memory_text(whole)}",
            "end them; restarting a notebook's kernel frees its memory",
        )
    if found.total <= room + machine.kernel_memory:
        why = f"this kernel uses {memory_text(machine.kernel_memory)} of it"
        return why, "restart the kernel, or delete the model there and call `torch.cuda.empty_cache()`"
    if machine.other_processes:
        return f"{', '.join(machine.other_processes)} uses the rest", "end what uses it"
    why = f"other processes use {memory_text(whole - room - machine.kernel_memory)} of it"
    return why, "find them with `nvidia-smi`, and end them"


def _largest_parts(found: Estimate) -> str:
    parts = sorted(found.parts.items(), key=lambda part: -part[1])[:3]
    return "the largest parts are " + ", ".join(
        f"{_PARTS.get(name, name)} ({memory_text(size)})" for name, size in parts
    )


_PARTS = {
    "loss": "logits for the loss",
    "one layer": "the backward pass of a layer",
    "optimizer": "optimizer states",
    "context": "the CUDA context",
}
