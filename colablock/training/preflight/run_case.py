"""A run before it starts, with all that preflight needs of it, and the batch of one that goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from colablock._common.text import count
from colablock.errors import InvalidInput, Refused
from colablock.training.preflight.batch_size import rows_of_step, with_rows_of_step
from colablock.training.preflight.cards import CardCase
from colablock.training.preflight.checks import Preflight, check_run
from colablock.training.preflight.facts import Level, Machine, Stack
from colablock.training.preflight.hub import ModelFacts
from colablock.training.preflight.model_config import ModelShape, from_config
from colablock.training.runs.checkpoints.finder import is_sharded
from colablock.training.runs.config import TrainConfig, config_to
from colablock.training.runs.folder import RunRecord
from colablock.training.runs.sharding import ShardMode, deepspeed_of, shard_mode
from colablock.verification.launch import Ranks

__all__ = ["RunCase", "no_model_hint", "refusal_text", "resumed_mode", "shape_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCase:
    """A run before its start: what preflight checks, once before and once after the tokens exist.

    *ranks* has one process on each host, unless a number was given.  *keeps_shards* is true if the run
    goes on from a sharded checkpoint.
    """

    config: TrainConfig
    runner: str
    machine: Machine
    workarounds: tuple[str, ...]
    facts: ModelFacts
    shape: ModelShape | None
    stack: Stack
    shard: ShardMode
    keeps_shards: bool
    ranks: Ranks

    def check(self, *, longest: int | None = None, sizes_batch: bool = False) -> Preflight:
        """Return the findings; *longest* and *sizes_batch* are those of `check_run`."""
        case = CardCase(
            config=self.config,
            machine=self.machine,
            stack=self.stack,
            runner=self.runner,
            workarounds=frozenset(self.workarounds),
            shard=self.shard,
            hosts=self.ranks.hosts,
            shares_folder=self.ranks.shares_folder,
            ranks=self.ranks.given,
            keeps_shards=self.keeps_shards,
            deepspeed=deepspeed_of(self.config),
        )
        return check_run(
            case,
            self.shape,
            self.facts.access,
            model_config=self.facts.config,
            longest=longest,
            sizes_batch=sizes_batch,
        )

    def check_tokens(self, largest: int) -> None:
        """Raise InvalidInput if the token with the number *largest* is beyond the model's vocabulary."""
        if self.shape is None or largest < self.shape.vocabulary:
            return
        raise InvalidInput(
            f"the data have the token {largest}, and the model has embeddings for {self.shape.vocabulary}",
            hint="Tokens were added to its tokenizer without embeddings: use a model that has them",
        )

    def rows_kept(
        self, preflight: Preflight, record: RunRecord, longest: int | None
    ) -> tuple[Preflight, str]:
        """Return *preflight* with the rows of a step of the run of *record*, and what to tell, if anything.

        They are those of all processes together, so that the losses do not depend on the number of these.
        Raises Refused if the processes cannot share them.
        """
        rows = rows_of_step(record.config, record.processes)
        ranks = self.ranks_of(preflight)
        config = preflight.config
        if rows in (None, rows_of_step(config_to(config), ranks)):
            return preflight, ""
        kept = with_rows_of_step(config, rows, ranks)
        if kept is None:
            raise Refused(
                f"the run `{record.id}` has {rows} rows in a step, which {ranks} processes cannot share",
                hint=f"Go on with {record.processes}, or another number that divides {rows}",
            )
        before = count(record.processes, "process", "processes")
        # The first host may have started already, and written its own number.
        change = f"{ranks} instead of {before}" if ranks != record.processes else before
        told = (
            f"going on with {change}: a step has "
            f"the same {rows} rows, with `micro_batch_size: {kept.micro_batch_size}` and "
            f"`gradient_accumulation_steps: {kept.gradient_accumulation_steps}`"
        )
        return replace(self, config=kept).check(longest=longest), told

    def ranks_of(self, preflight: Preflight) -> int:
        """Return the number of ranks, on all hosts, of a run that is decided on as *preflight* says."""
        return self.ranks.given or preflight.processes * self.ranks.hosts


def resumed_mode(asked: str | None, config: TrainConfig, checkpoint: Path | None) -> tuple[ShardMode, bool]:
    """Return whether to shard, and whether *checkpoint* is sharded: a run goes on as it was saved.

    Raises Refused if *asked*, the value of ``--shard``, says otherwise.
    """
    mode = shard_mode(asked, config)
    if checkpoint is None:
        return mode, False
    keeps_shards = is_sharded(checkpoint)
    wanted = ShardMode.FSDP if keeps_shards else ShardMode.NONE
    if asked not in (None, ShardMode.AUTO.value, wanted.value):
        kind = "sharded" if keeps_shards else "not sharded"
        raise Refused(
            f"{checkpoint.name} is {kind}, and `--shard {asked}` cannot go on from it",
            hint="Leave `--shard` out, or start a new run with `--fresh` or another `--output-dir`",
        )
    return wanted, keeps_shards


def no_model_hint(folder: Path) -> str:
    """Return what to do about a *folder* that is no model."""
    if (folder / "adapter_config.json").is_file():
        return "It has an adapter: set `--model` to the model that the adapter was trained on"
    return "Set `--model` to the folder that has `config.json`, or to a name on the hub"


def shape_of(facts: ModelFacts) -> tuple[ModelShape | None, str]:
    """Return the model's shape, or None and the reason."""
    problem = facts.problem
    if facts.config is not None:
        try:
            return from_config(facts.config), ""
        except InvalidInput as error:
            problem = error.message
    return None, f"cannot read the model's config: {problem}"


def refusal_text(preflight: Preflight) -> str:
    """Return the findings that say that the run would fail, with a line before them."""
    refused = [finding for finding in preflight.findings if finding.level is Level.REFUSE]
    lines = ["not starting the run, which would fail"]
    for finding in refused:
        lines.append(f"  {finding.what}: {finding.why}" if finding.why else f"  {finding.what}")
        lines += [f"    {finding.fix}"] if finding.fix else []
    return "\n".join(lines)
