"""The pages with measurements: of memory beside its estimate, and of speed beside other tools."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from tables import ROOT, filled, table

from colablock.training.preflight.memory import estimate
from colablock.training.preflight.runner_profiles import RUNNER_PROFILES, RunnerProfile
from colablock.training.runs.config import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

sys.path.insert(0, str(ROOT))  # tests/support has the shapes that were measured
from tests.support.training import BY_HAND, SHAPES, TRL, a_config

GIB = 2**30
MEMORY_PAGE = ROOT / "docs" / "explanation" / "memory.md"
MEASURED = ROOT / "tests" / "data" / "memory-h100.toml"
SPEED_PAGE = ROOT / "docs" / "explanation" / "speed.md"
RESULTS = ROOT / "benchmarks" / "results.json"  # of the modules of benchmarks


def memory_page() -> str:
    """Return the page of the memory as it is, with tables that hold."""
    measured = tomllib.loads(MEASURED.read_text(encoding="utf-8"))
    tables = {"habits": habits_table(), "by-hand": by_hand_table(measured["by-hand"])}
    tables["measured"] = measured_table(measured["measured"])
    return filled(MEMORY_PAGE, tables)


def speed_page() -> str:
    """Return the page of the speed, with the results of the benchmarks."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    tables = {"contests": contests_table(results), "curves": curves_table(results)}
    tables |= {"real-stack": real_stack_table(results["real-stack"]), "way": way_table(results["way"])}
    return filled(SPEED_PAGE, tables)


def contests_table(results: Mapping[str, Any]) -> str:
    """Return what was measured on, and a row for each contest."""
    where = "a real index" if results["on"]["index"] == "named" else "an index on 127.0.0.1"
    about = (
        f"{measured_on(results['on'])}, with {where}: {turns_of(results['contests'])}. The"
        " rows of `apply` have an index on 127.0.0.1.\n\n"
    )
    return about + rows_of(results["contests"])


def real_stack_table(results: Mapping[str, Any]) -> str:
    """Return what was measured on, and a row for each contest of the real stack."""
    about = f"{measured_on(results['on'])}: {turns_of(results['contests'])}.\n\n"
    return about + rows_of(results["contests"])


def way_table(results: Mapping[str, Any]) -> str:
    """Return what was measured on, and a row for each part of the way to the first step."""

    def row(one: Mapping[str, Any]) -> tuple[str, ...]:
        floor = f"{median(one['floor']):.1f}" if one["floor"] else ""
        return one["about"], f"{median(one['ours']):.1f}", floor, one["beside"]

    fetched = f"{results['fetched'] / 1e6:.0f} MB"
    about = (
        f"{measured_on(results['on'])}, with a real index, from which {fetched} are fetched:"
        f" {turns_of(results['parts'])}.\n\n"
    )
    return about + table("part", "seconds", "done plainly", "what that is", rows=map(row, results["parts"]))


def measured_on(on: Mapping[str, Any]) -> str:
    """Return the date and the machine of a measurement."""
    machine = f"{on['cores']} cores of a {on['machine']} machine with a load of {on['load']}"
    return f"On {on['date']}, Python {on['python']} and {machine}"


def turns_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return of how many turns the figures are."""
    turns = sorted({len(one["ours"]) for one in rows})
    return "one turn" if turns == [1] else f"medians of {' or '.join(map(str, turns))} turns"


def rows_of(contests: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of *contests*."""

    def row(one: Mapping[str, Any]) -> tuple[str, ...]:
        ratios = [mine / other for mine, other in zip(one["ours"], one["theirs"], strict=True)]
        goal = f"{one['limit']:g} s" if one["limit"] is not None else f"{one['aim']:g}" if one["aim"] else ""
        return (
            one["about"],
            one["beside"],
            f"{median(one['ours']):.2f} / {median(one['theirs']):.2f}",
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{one['ours_processor']:.2f} / {one['theirs_processor']:.2f}",
            f"{one['ours_processor'] / one['theirs_processor']:.2f}",
            f"{one['ours_memory']:.0f} / {one['theirs_memory']:.0f}",
            goal,
        )

    head = ("what", "beside", "seconds, ours / other", "ratio", "of the turns")
    more = ("processor, s", "ratio of processor times", "memory, MiB", "goal")
    return table(*head, *more, rows=map(row, contests))


def curves_table(results: Mapping[str, Any]) -> str:
    """Return a row for each curve: its points, and the exponent."""

    def row(one: Mapping[str, Any]) -> tuple[str, ...]:
        points = (f"{size}: {used:.3f}" for size, used in zip(one["sizes"], one["seconds"], strict=True))
        return one["about"], ", ".join(points), f"{one['exponent']:.2f}"

    return table("what", "processor seconds by size", "exponent", rows=map(row, results["curves"]))


def habits_table() -> str:
    """Return what each runner does, version by version."""

    def row(runner: str, at: int) -> tuple[str, ...]:
        profile = RUNNER_PROFILES[runner][at]
        name = f"{runner} {versions(profile, RUNNER_PROFILES[runner][at - 1] if at else None)}"
        factor = f"{profile.logits:g}{', and the head in float32' if profile.head_in_float32 else ''}"
        kept = profile.embeddings_in_float32
        cast = f"float32{'' if len(kept) > 1 else f' with {kept[0]}'}" if kept else "16 bits"
        return name, factor, tile(profile), cast, "bfloat16" if profile.half_adapters else "float32"

    rows = (row(runner, at) for runner, known in RUNNER_PROFILES.items() for at in range(len(known)))
    return table("runner", "factor", "logits at once", "embeddings", "adapters with bf16", rows=rows)


def versions(profile: RunnerProfile, newer: RunnerProfile | None) -> str:
    """Return for which versions *profile* hold."""
    since = "" if profile.since == "0" else f"from {profile.since}"
    until = f"before {newer.since}" if newer else ""
    return ", ".join(filter(None, [since, until]))


def tile(profile: RunnerProfile) -> str:
    """Return for which part of a batch logits are there at once."""
    if profile.tile is None:
        return "all"
    tokens, entries = profile.tile
    if entries:
        return f"a tile of {tokens:,} tokens × {entries:,} entries"
    share = f", or of a share of {profile.share:g} of them" if profile.share else ""
    return f"of {tokens:,} tokens{share}"


def by_hand_table(points: Iterable[Mapping[str, Any]]) -> str:
    """Return what was measured of a step, beside the estimate."""

    def row(point: Mapping[str, Any]) -> tuple[str, ...]:
        point = {"sequence_len": 2048, **point}
        found = estimate(measured_config(point), SHAPES["1B"], BY_HAND)
        sizes = (found.allocated / GIB, point["allocated"], found.total / GIB)
        return *batch(point), *(f"{size:.2f}" for size in (*sizes, point["reserved"], point["on_device"]))

    head = ("batch × tokens", "checkpointing", "allocated, estimated", "measured", "total, estimated")
    return table(*head, "reserved", "on the device", rows=map(row, points))


def measured_table(points: Sequence[Mapping[str, Any]]) -> str:
    """Return the least memory in which a run finished, beside the estimate, and how far they are apart."""
    above = []

    def row(point: Mapping[str, Any]) -> tuple[str, ...]:
        shape = replace(SHAPES[point["shape"]], vocabulary=point["vocabulary"])
        total = estimate(measured_config(point), shape, TRL).total / GIB
        above.append(total / point["smallest"] - 1)
        sizes = (f"{point['smallest']:.2f}", f"{total:.2f}", f"{above[-1]:.1%}".replace("%", " %"))
        return point["shape"], f"{point['vocabulary']:,}", *batch(point), *sizes

    head = ("model", "vocabulary", "batch × tokens", "checkpointing", "needed", "estimate", "above")
    made = table(*head, rows=map(row, points))
    least, most = (f"{share:.1%}".replace("%", " %") for share in (min(above), max(above)))
    found = f"In these {len(points)} settings the estimate was {least} to {most} above what was needed."
    return f"{made}\n{found}\n"


def measured_config(point: Mapping[str, Any]) -> TrainConfig:
    """Return the config that was measured."""
    keys = ("sequence_len", "micro_batch_size", "gradient_checkpointing")
    return a_config(**{key: point[key] for key in keys})


def batch(point: Mapping[str, Any]) -> tuple[str, str]:
    """Return the batch that was measured, and whether with checkpointing."""
    rows = f"{point['micro_batch_size']} × {point['sequence_len']:,}"
    return rows, "yes" if point["gradient_checkpointing"] else "no"
