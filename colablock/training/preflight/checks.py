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
from colablock.training.preflight.cards import CardCase, CardChoice, attention_for, usable_memory
from colablock.training.preflight.facts import (
    Access,
    Card,
    Finding,
    Level,
    Machine,
    Precision,
    Stack,
    has_bf16,
    precision_for,
)
from colablock.training.preflight.memory import (
    Estimate,
    Setting,
    changes_to_fit,
    checkpoint_size,
    least_estimate,
)
from colablock.training.preflight.model_config import ModelShape
from colablock.training.preflight.runner_profiles import runner_profile
from colablock.training.preflight.space_findings import disk_findings, loading_findings
from colablock.training.preflight.stack_rules import (
    access_findings,
    architecture_findings,
    model_findings,
    runner_findings,
    weights_findings,
)
from colablock.training.preflight.unsloth_rules import unsloth_findings
from colablock.training.runs.config import TrainConfig

__all__ = ["TIGHT_SHARE", "Preflight", "check_run"]

#: The share of the free memory up to which an estimate is not called tight.
TIGHT_SHARE = 0.93

_SLOW_ON_CPU = 100_000_000  # parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """The findings about a run, and the decisions for it.

    *processes* is the number of processes, one for each of *cards*, which are indices into the
    machine's cards.  *estimate* is for one process; None if there is no estimate.  *config* is the
    config of the run: with the rows at a time that fit, if that was asked for.  *is_sharded* is
    true if the processes share one model, by FSDP.
    """

    findings: tuple[Finding, ...]
    precision: Precision
    estimate: Estimate | None
    processes: int
    attention: str  # "sdpa", "flash_attention_2" or "eager"
    config: TrainConfig
    cards: tuple[int, ...] = ()
    is_sharded: bool = False

    @property
    def passed(self) -> bool:
        """Whether no finding says that the run would fail."""
        return all(finding.level is not Level.REFUSE for finding in self.findings)


def check_run(
    case: CardCase,
    shape: ModelShape | None,
    access: Access,
    *,
    model_config: Mapping[str, Any] | None = None,
    longest: int | None = None,
    sizes_batch: bool = False,
) -> Preflight:
    """Return the findings for the run of *case*, and the decisions for it.

    *shape* is None if the model's config could not be read; *model_config* is that config.  *longest* is the
    number of tokens of the longest row, once it is known: the memory is estimated for it if it is less than
    `sequence_len`.  With *sizes_batch* the run takes as many rows at a time as fit on its cards.
    """
    given = config = case.config
    case = replace(case, config=_with_longest(config, longest), has_tokens=longest is not None)
    choice = case.choose(shape)
    sized = _sized(case, shape, choice, needed=sizes_batch or longest is not None)
    if sizes_batch:
        case, choice = sized, sized.choose(shape)
        config = replace(
            config,
            micro_batch_size=sized.config.micro_batch_size,
            gradient_accumulation_steps=sized.config.gradient_accumulation_steps,
        )
    precision = precision_for(card.compute_capability for card in choice.cards)
    attention = attention_for(shape, choice.cards, case.stack)
    findings = [
        *_stack_findings(case, config, shape, access, model_config),
        *choice.findings,
        *_slice_findings(case.machine),
        *_precision_findings(shape, choice.cards, precision),
        *_flash_findings(choice.cards, case.stack, attention),
        *_packing_findings(config, attention),
    ]
    if shape is None or choice.estimate is None:
        findings += _findings_without_estimate(case, shape, choice, access, model_config)
    else:
        setting = case.setting(shape, choice.cards, choice.shards)
        findings += _attention_findings(shape, choice.cards, setting)
        findings += _memory_findings(case, shape, choice, choice.estimate)
        findings += batch_findings(given, sized.config, is_taken=sizes_batch)
        processes = len(choice.cards) or (choice.shards or 0) // case.hosts
        findings += loading_findings(
            config, shape, case.machine, setting, processes=processes, shards=choice.shards
        )
    findings += disk_findings(config, case.machine, access, _checkpoint_size(case, shape, choice))
    return Preflight(
        findings=tuple(findings),
        precision=precision,
        estimate=choice.estimate,
        processes=max(len(choice.cards), 1),
        attention=attention,
        cards=choice.indices,
        config=config,
        is_sharded=choice.shards is not None,
    )


def _stack_findings(
    case: CardCase,
    config: TrainConfig,
    shape: ModelShape | None,
    access: Access,
    model_config: Mapping[str, Any] | None,
) -> Iterator[Finding]:
    """Yield the findings that do not depend on the chosen cards."""
    yield from access_findings(access)
    yield from architecture_findings(model_config, config, case.stack)
    if shape is not None:
        yield from model_findings(config, shape, case.stack)
    yield from runner_findings(
        config,
        case.stack,
        case.runner,
        has_card=bool(case.machine.cards),
        is_prequantized=shape is not None and shape.quantized == "bitsandbytes",
    )
    yield from unsloth_findings(case.runner, config, shape, case.machine.cards)


def _sized(case: CardCase, shape: ModelShape | None, choice: CardChoice, *, needed: bool) -> CardCase:
    """Return *case* with the largest batch for the cards; the same without cards or an estimate."""
    if not needed or shape is None or not shape.is_known or choice.estimate is None or not choice.cards:
        return case
    room = TIGHT_SHARE * min(map(usable_memory, choice.cards))
    setting = case.setting(shape, choice.cards, choice.shards)
    return replace(case, config=largest_batch(case.config, shape, setting, room))


def _with_longest(config: TrainConfig, longest: int | None) -> TrainConfig:
    """Return *config* with the length of the rows: a batch is padded to its longest, unless it is packed."""
    if longest is None or config.extra.get("sample_packing") or config.extra.get("pad_to_sequence_len"):
        return config
    return replace(config, sequence_len=max(1, min(config.sequence_len, longest)))


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
            why="a process sees one MIG device and no other card, and the driver reports whole cards",
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


def _checkpoint_size(case: CardCase, shape: ModelShape | None, choice: CardChoice) -> int:
    """Return the bytes of a checkpoint, whether or not the memory is estimated; 0 for unknown layers."""
    if shape is None or shape.unsupported is not None:
        return 0
    return checkpoint_size(case.config, shape, case.setting(shape, choice.cards, choice.shards))


def _findings_without_estimate(
    case: CardCase,
    shape: ModelShape | None,
    choice: CardChoice,
    access: Access,
    model_config: Mapping[str, Any] | None,
) -> Iterator[Finding]:
    """Yield that there is no estimate, and what the size of the weights says."""
    if choice.unknown:
        why = choice.unknown
    elif shape is None:
        why = "the model's `config.json` could not be read"
    else:
        why = f"the model has {shape.unsupported}, and the estimate supports only uniform decoder layers"
    yield Finding(
        level=Level.WARN,
        what="there is no memory estimate for this run",
        why=why,
        fix="try it with `max_steps: 2` first: if memory is too small, the run fails in the first steps",
    )
    if not choice.unknown:
        where, room = "the card's memory" if choice.cards else "memory", case.room(choice.cards)
        shards = choice.shards or 1
        if shards > 1 and not runner_profile(case.runner, case.stack.runners.get(case.runner)).loads_whole:
            where, room = (
                f"the memory of all {shards} {'cards' if choice.cards else 'processes'}",
                room * shards,
            )
        yield from weights_findings(case.config, access, model_config, room, where)


def _memory_findings(
    case: CardCase, shape: ModelShape, choice: CardChoice, found: Estimate
) -> Iterator[Finding]:
    """Yield whether the estimate fits the free memory and, if not, which changes would make it fit."""
    machine, cards = case.machine, choice.cards
    setting = case.setting(shape, cards, choice.shards)
    room = case.room(cards)
    if not shape.is_known:
        what = f"the estimate assumes that the layers of `{shape.model_type}` are like Llama's"
        yield Finding(level=Level.NOTE, what=what)
    needed = _needed(case, choice, found)
    if found.total > room:
        why, freeing = _shortage(case, cards, found, room)
        if choice.not_sharded is not None:
            why += f"; {choice.not_sharded.what}, {choice.not_sharded.why}"
        fixes = _fixes(case, shape, choice, found, freeing)
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


def _needed(case: CardCase, choice: CardChoice, found: Estimate) -> str:
    """Return how much memory the run needs of a card, or all processes on the CPU of this host."""
    shards, cards, processes = choice.shards or 1, choice.cards, case.processes
    of_card = "each card's memory" if shards > 1 else "the card's memory"
    where = of_card if cards else "memory"
    if shards > 1:
        where += f" if it is sharded over {shards} {'cards' if cards else 'processes'}"
    if case.has_tokens:
        where += f" for rows of at most {case.config.sequence_len:,} tokens"
    total, free = found.total, case.room(cards)
    if not cards:
        total, free = total * processes, case.machine.ram_free
        where += f" ({memory_text(found.total)} for each of {processes} processes)" if processes > 1 else ""
    return f"the run needs about {memory_text(total)} of {where}, and {memory_text(free)} are free"


def _fixes(
    case: CardCase, shape: ModelShape, choice: CardChoice, found: Estimate, freeing: list[str]
) -> list[str]:
    """Return the changes that would make a run fit, after those that free memory."""
    cards, fixes = choice.cards, [*freeing]
    setting = case.setting(shape, cards, choice.shards)
    if not cards and choice.shards is None and (fitting := case.machine.ram_free // found.total):
        fixes.append(f"lower `--num_processes` to {fitting * case.hosts}")
    if choice.not_sharded is not None and choice.not_sharded.fix:
        fixes.append(choice.not_sharded.fix)
    if "loading" in found.parts:
        fixes.append("use a matrix with the runner trl, such as `qlora-2026`: it loads a part on each card")
    if changes := changes_to_fit(case.config, shape, setting, case.room(cards)):
        fixes.append(f"it fits with {', or '.join(changes)}")
    elif not fixes:
        of_card = "more cards, or cards" if choice.shards is not None and choice.shards > 1 else "a card"
        kind = of_card if cards else "a machine"
        lowest = least_estimate(case.config, shape, setting).total * (1 if cards else case.processes)
        fixes.append(
            f"use a smaller model, or {kind} with more than {memory_text(lowest)} "
            "(the lowest estimate for this model)"
        )
    return fixes


def _shortage(case: CardCase, cards: list[Card], found: Estimate, room: int) -> tuple[str, list[str]]:
    """Return why too little memory is free, and how to free enough; the latter is empty if nothing can."""
    machine = case.machine
    whole = min((usable_memory(replace(card, free=None)) for card in cards), default=machine.ram)
    if found.total > (whole if cards else whole // case.processes):
        return _largest_parts(found), []
    if not cards:
        why = f"other processes use the rest of {memory_text(whole)}"
        return why, ["end them; restarting a notebook's kernel frees its memory"]
    if found.total <= room + machine.kernel_memory:
        why = f"this kernel uses {memory_text(machine.kernel_memory)} of it"
        return why, ["restart the kernel, or delete the model there and call `torch.cuda.empty_cache()`"]
    if machine.other_processes:
        return f"{', '.join(machine.other_processes)} uses the rest", ["end what uses it"]
    why = f"other processes use {memory_text(whole - room - machine.kernel_memory)} of it"
    return why, ["find them with `nvidia-smi`, and end them"]


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
    "gathered": "layers gathered from all cards",
    "loading": "the whole model while it is loaded",
}
