"""The choice of cards: one process for each that holds the whole model, or the model sharded over all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from colablock._common.text import count, memory_text
from colablock.training.preflight.facts import (
    Card,
    Finding,
    Level,
    Machine,
    Stack,
    has_bf16,
    is_older,
    precision_for,
)
from colablock.training.preflight.memory import Estimate, Setting, estimate
from colablock.training.preflight.model_config import ModelShape
from colablock.training.preflight.runner_profiles import runner_profile
from colablock.training.preflight.shard_rules import shard_obstacle
from colablock.training.preflight.stack_rules import runs_on, wrong_build
from colablock.training.runs.config import TrainConfig
from colablock.training.runs.sharding import DeepSpeed, ShardMode

__all__ = [
    "GQA_WORKAROUND",
    "CardCase",
    "CardChoice",
    "attention_for",
    "setting_for",
    "usable_memory",
]

#: The workaround that has transformers repeat keys and values on cards without flash kernels.
#: See `_has_fused_attention`.
GQA_WORKAROUND = "gqa-before-ampere"
_USABLE = 0.97  # of a card's memory: a T4 of 15 GiB can allocate 14.6


def setting_for(
    shape: ModelShape,
    cards: list[Card],
    stack: Stack,
    runner: str,
    *,
    processes: int = 1,
    shards: int | None = None,
    workarounds: frozenset[str] = frozenset(),
) -> Setting:
    """Return the setting of `estimate` for a run on *cards*; without cards, on the CPU."""
    return Setting(
        precision=precision_for(card.compute_capability for card in cards),
        profile=runner_profile(runner, stack.runners.get(runner)),
        attention=attention_for(shape, cards, stack),
        has_fused_attention=_has_fused_attention(shape, cards, stack, workarounds),
        processes=processes,
        shards=shards,
        on_card=bool(cards),
    )


def usable_memory(card: Card) -> int:
    """Return the bytes of a card's memory that a run can use now."""
    usable = round(card.memory * _USABLE)
    return usable if card.free is None else min(card.free, usable)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardChoice:
    """The chosen cards, by index and as values, with the estimate for a process and the findings.

    *shards* is the number of parts of the model, which are on as many ranks; None if each rank has the whole.
    *unknown* says why there is no estimate although the layers are known; else it is empty.
    """

    indices: tuple[int, ...]
    cards: list[Card]
    estimate: Estimate | None
    findings: tuple[Finding, ...]
    shards: int | None = None
    not_sharded: Finding | None = None  # why the model is not, although a card does not hold it
    unknown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardCase:
    """The run to find cards for, and what it would run on.

    *ranks* is the number of all ranks, if that was given, and *hosts* that of the hosts, which may work in
    one folder (*shares_folder*).  *keeps_shards* is true for a run that goes on from a sharded checkpoint.
    """

    config: TrainConfig
    machine: Machine
    stack: Stack
    runner: str
    workarounds: frozenset[str]
    shard: ShardMode = ShardMode.AUTO
    hosts: int = 1
    shares_folder: bool = False
    ranks: int | None = None
    keeps_shards: bool = False
    has_tokens: bool = False  # *config* has the length of the longest row
    deepspeed: DeepSpeed | None = None  # what the config says of it

    @property
    def processes(self) -> int:
        """The number of ranks on this host, as it was given; else 1."""
        return max(1, (self.ranks or 0) // self.hosts)

    def room(self, cards: list[Card]) -> int:
        """Return the bytes for each process: of its card, or on the CPU its share of this host's memory."""
        return min(map(usable_memory, cards), default=self.machine.ram_free // self.processes)

    def setting(self, shape: ModelShape, cards: list[Card], shards: int | None = None) -> Setting:
        """Return the setting for the chosen *cards*."""
        return setting_for(
            shape,
            cards,
            self.stack,
            self.runner,
            processes=self.ranks or max(len(cards), 1) * self.hosts,
            shards=shards,
            workarounds=self.workarounds,
        )

    def choose(self, shape: ModelShape | None) -> CardChoice:
        """Choose the cards to train on.

        By default, each process holds the whole model, on each card that it fits on.  If that is one card at
        most, the model is sharded over all cards, or over those with the most usable memory.  If that is not
        possible, one process runs on the card with the most.  With fewer ranks than cards, and where other
        hosts have to use as many, these are the cards with the most usable memory.  A number of ranks that
        was given starts on as many cards, or is refused.
        """
        cards = self.machine.cards
        usable = [
            at for at, card in enumerate(cards) if runs_on(card.compute_capability, self.stack.arch_list)
        ]
        number = len(usable)
        findings = []
        if cards and not usable:  # the estimate for the first card is still reported
            findings.append(wrong_build(cards[0], self.stack))
            usable = [0]
        elif len(usable) < len(cards):
            others = ", ".join(card.name for at, card in enumerate(cards) if at not in usable)
            why = "torch has no kernels for it"
            findings.append(Finding(level=Level.NOTE, what=f"not using {others}", why=why))
        by_room = sorted(usable, key=lambda at: (-usable_memory(cards[at]), at))
        roomiest = by_room[:1]
        if self.ranks:
            if 0 < number < self.processes:
                findings.append(_too_many(self.processes, number))
            usable = sorted(by_room[: self.processes])
        is_estimated = shape is not None and shape.unsupported is None
        shards = self.ranks or max(len(usable), 1) * self.hosts
        if self.keeps_shards or (self.shard is ShardMode.FSDP and shards > 1):
            return self._sharded(shape if is_estimated else None, shape, usable, findings, shards)
        if self.shard is ShardMode.FSDP:
            why = "there is one card" if len(cards) == 1 else "there is one process"
            findings.append(Finding(level=Level.NOTE, what="not sharding the model", why=why))
        if self.deepspeed is not None and self.deepspeed.missing:
            findings.append(_missing_file(self.deepspeed.missing))
        if found := self._divided(shape if is_estimated else None, usable, findings, shards):
            return found
        chosen = usable if self.ranks else roomiest  # as many as were asked for start in any case
        if shape is None or not is_estimated:
            if len(chosen) < len(usable):
                findings.append(_one_card_note(len(usable), hosts=self.hosts))
            return self._choice(chosen, None, findings)
        return self._estimated(shape, usable, chosen, findings)

    def _estimated(
        self, shape: ModelShape, usable: list[int], chosen: list[int], findings: list[Finding]
    ) -> CardChoice:
        """Return the choice for a model with an estimate: of those *usable*, or else the cards *chosen*."""
        alone = self._choice(chosen, self._estimate(shape, chosen), findings)
        if len(usable) * self.hosts <= 1:
            return alone
        together = self._estimate(shape, usable)
        fitting = [at for at in usable if together.total <= usable_memory(self.machine.cards[at])]
        if len(fitting) == len(usable):
            findings.append(_process_note(len(usable), len(fitting), together))
            return self._choice(usable, together, findings)
        if len(fitting) > 1 and self._is_free_to_choose:
            some = self._estimate(shape, fitting)
            findings.append(_process_note(len(usable), len(fitting), some, processes=len(fitting)))
            return self._choice(fitting, some, findings)
        if self.shard is ShardMode.AUTO and (found := self._shared(shape, usable, together, alone)):
            return found
        findings.append(_process_note(len(usable), len(fitting), together, processes=len(chosen)))
        return replace(alone, findings=tuple(findings))

    def _sharded(
        self,
        estimated: ModelShape | None,
        shape: ModelShape | None,
        usable: list[int],
        findings: list[Finding],
        shards: int,
    ) -> CardChoice:
        """Return the choice of all cards, because sharding was asked for."""
        if estimated is not None and usable:
            usable = self._cards_for_shards(estimated, usable, findings, least=1 if self.keeps_shards else 2)
            shards = self.ranks or len(usable) * self.hosts
        found = self._estimate(estimated, usable, shards) if estimated is not None else None
        obstacle = self._obstacle(shape, usable)
        if obstacle is not None:
            findings.append(obstacle)
        elif shards > 1:
            findings.append(_shard_note(shards, found, on="cards" if usable else "processes"))
        return self._choice(usable, found, findings, shards)

    def _divided(
        self, shape: ModelShape | None, usable: list[int], findings: list[Finding], ranks: int
    ) -> CardChoice | None:
        """Return the choice of all cards, without an estimate, if DeepSpeed divides the model over them.

        None if it does not, or if each card holds the whole model, which needs more.
        """
        if self.deepspeed is None or not usable or not self.deepspeed.divides(ranks):
            return None
        why = _of_deepspeed(self.deepspeed, ranks)
        if shape is not None:
            whole = self._estimate(shape, usable)
            if whole.total <= self._room(usable):
                return None
            weights = whole.parts["weights"] + whole.parts["embeddings"]
            why += f"; a card with the whole model would need about {memory_text(whole.total)}, "
            why += f"and an equal part of the weights has {memory_text(weights // ranks)}"
        return replace(self._choice(usable, None, findings), unknown=why)

    def _shared(
        self, shape: ModelShape, usable: list[int], whole: Estimate, alone: CardChoice
    ) -> CardChoice | None:
        """Return the choice of cards for a sharded model; None if it cannot be, or only *alone* fits."""
        findings = [*alone.findings]
        usable = self._cards_for_shards(shape, usable, findings, least=2)
        shards = self.ranks or len(usable) * self.hosts
        obstacle = self._obstacle(shape, usable)
        found = self._estimate(shape, usable, shards)
        room = self._room(usable)
        fits_alone = alone.estimate is not None and alone.estimate.total <= self._room(list(alone.indices))
        if obstacle is None and (found.total <= room or not fits_alone):
            findings.append(_shard_note(shards, found, whole, on="cards"))
            return self._choice(usable, found, findings, shards)
        if fits_alone or obstacle is None:
            return None
        return replace(alone, not_sharded=_no_shard_note(shards, found, room, obstacle))

    @property
    def _is_free_to_choose(self) -> bool:
        """Whether it may leave out cards: nobody has said how many, and no other host uses as many."""
        return self.hosts == 1 and self.ranks is None

    def _cards_for_shards(
        self, shape: ModelShape, usable: list[int], findings: list[Finding], *, least: int
    ) -> list[int]:
        """Return the most of *usable* cards that a sharded model fits on, *least* or more; else all.

        Those without bf16, which one is enough to keep a model from being sharded, are left out first.
        """
        cards = self.machine.cards
        best = sorted(
            usable,
            key=lambda at: (not has_bf16(cards[at].compute_capability), -usable_memory(cards[at]), at),
        )
        for number in range(len(usable), least - 1, -1) if self._is_free_to_choose else ():
            if self._shards_fit(shape, some := sorted(best[:number])):
                if number < len(usable):
                    findings.append(_left_out_note(self._cards(best), number))
                return some
        return usable

    def _shards_fit(self, shape: ModelShape, chosen: list[int]) -> bool:
        """Whether the model can be sharded over the *chosen* cards of this host, and fits."""
        found = self._estimate(shape, chosen, len(chosen) * self.hosts)
        return self._obstacle(shape, chosen) is None and found.total <= self._room(chosen)

    def _obstacle(self, shape: ModelShape | None, usable: list[int]) -> Finding | None:
        cards = self._cards(usable)
        apart = 1 if self.shares_folder else self.hosts
        return shard_obstacle(self.config, shape, cards, self.stack, self.runner, hosts=apart)

    def _room(self, chosen: list[int]) -> int:
        return self.room(self._cards(chosen))

    def _cards(self, chosen: list[int]) -> list[Card]:
        return [self.machine.cards[at] for at in chosen]

    def _estimate(self, shape: ModelShape, chosen: list[int], shards: int | None = None) -> Estimate:
        return estimate(self.config, shape, self.setting(shape, self._cards(chosen), shards))

    def _choice(
        self,
        chosen: list[int],
        found: Estimate | None,
        findings: list[Finding],
        shards: int | None = None,
    ) -> CardChoice:
        return CardChoice(
            indices=tuple(chosen),
            cards=self._cards(chosen),
            estimate=found,
            findings=tuple(findings),
            shards=shards,
        )


def _too_many(processes: int, cards: int) -> Finding:
    has = f"{count(cards, 'card')} that torch can use"
    return Finding(
        level=Level.REFUSE,
        what=f"{processes} processes cannot start on this host, which has {has}",
        why="each process has a card of its own",
        fix="lower `--num_processes`, the number on all hosts, or omit it",
    )


def _of_deepspeed(deepspeed: DeepSpeed, ranks: int) -> str:
    does = []
    if ranks > 1:
        does.append(f"{'may divide' if deepspeed.stage is None else 'divides'} the model over {ranks} cards")
    if deepspeed.offloads:
        does.append("keeps weights in the memory of the host")
    return f"DeepSpeed {' and '.join(does)}, and the estimate does not know how"


def _missing_file(name: str) -> Finding:
    return Finding(
        level=Level.WARN,
        what=f"`{name}`, which `deepspeed` names, is not a file on this host",
        why="axolotl reads it when the run starts",
        fix="`axolotl fetch deepspeed_configs` writes those of axolotl into the working folder",
    )


def _left_out_note(cards: list[Card], number: int) -> Finding:
    """Return the note that only the first *number* of *cards* share the model."""
    is_old = not any(has_bf16(card.compute_capability) for card in cards[number:])
    why = "the others do not have bf16" if is_old else "the parts of the model fit on no more of them"
    return Finding(level=Level.NOTE, what=f"using {number} of {len(cards)} cards", why=why)


def _one_card_note(cards: int, *, hosts: int) -> Finding:
    all_of_them = f"`-- --num_processes {cards * hosts}`"  # the number on all hosts
    return Finding(
        level=Level.NOTE,
        what=f"training with 1 process on 1 of {cards} cards",
        why="without a memory estimate it is not known what fits on each",
        fix=f"{all_of_them} has the whole model on each of them, `--shard fsdp` shares one",
    )


def _process_note(cards: int, fitting: int, found: Estimate, *, processes: int = 1) -> Finding:
    size = memory_text(found.total)
    if fitting == cards:
        what = f"training with {count(cards, 'process', 'processes')}, one for each card"
        why = f"the whole model fits on each card ({size})"
    else:
        what = f"training with {count(processes, 'process', 'processes')} on {processes} of {cards} cards"
        where = "only some of the cards" if fitting else "none of the cards"
        why = f"each process holds the whole model ({size}), which fits on {where}"
    return Finding(level=Level.NOTE, what=what, why=why)


def _shard_note(shards: int, found: Estimate | None, whole: Estimate | None = None, *, on: str) -> Finding:
    why = f"each needs about {memory_text(found.total)}" if found is not None else ""
    if whole is not None:
        why += f", and with the whole model {memory_text(whole.total)}"
    return Finding(level=Level.NOTE, what=f"sharding the model over {shards} {on} with FSDP", why=why)


def _no_shard_note(shards: int, found: Estimate, room: int, obstacle: Finding) -> Finding:
    what = f"sharded over {shards} cards it would need about {memory_text(found.total)} of each"
    fix = f"{obstacle.fix}, so that the model can be sharded" if found.total <= room else ""
    return Finding(level=Level.NOTE, what=what, why=f"but {obstacle.what}", fix=fix)


def attention_for(shape: ModelShape | None, cards: list[Card], stack: Stack) -> str:
    """Return transformers' name of the attention: "sdpa", "flash_attention_2" or "eager"."""
    if shape is not None and shape.has_sinks:
        return "eager"
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
