from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from colablock._vendor.packaging.utils import NormalizedName
from colablock.display.html import to_html
from colablock.display.plan_view import plan_document
from colablock.display.text import render, to_text
from colablock.planning.plan import Action, Breakage, ImportRisk, Kept, Plan, Remedy, Step, Target, UndoCost
from tests.support.html import Element, body
from tests.support.paths import DATA
from tests.support.plans import plan_from_json
from tests.support.screens import console, stripped

CASES = DATA / "display"
PLANS = sorted(path.stem for path in CASES.glob("plan-*.json"))


def read_plan(name: str) -> Plan:
    return plan_from_json(json.loads((CASES / f"{name}.json").read_text(encoding="utf-8")))


def plan(*steps: Step, target: Target = Target.KERNEL) -> Plan:
    return Plan(
        matrix="m",
        matrix_digest="",
        variant=None,
        target=target,
        why_target="",
        python="",
        python_version="3.12.1",
        steps=steps,
    )


def breakages(number: int) -> tuple[Breakage, ...]:
    return tuple(
        Breakage(
            name=NormalizedName(f"name-{at}"),
            version="1.0",
            requirement="torch==2.8.0; python_version >= '3.9'",
            direct=False,
            because=("torch 2.8.0 is removed",),
            remedy=Remedy.LEAVE,
        )
        for at in range(number)
    )


def words(text: str) -> str:
    return " ".join(text.split())


# Text


def test_what_may_no_longer_import_is_listed_with_its_reason() -> None:
    risk = ImportRisk(
        name=NormalizedName("keras"),
        version="3.10.0",
        modules=("keras",),
        reason="it imports `flow` (keras/core.py:5), and flow 2.19 is removed",
    )
    text = to_text(plan_document(replace(plan(), import_risks=(risk,))))
    assert "May no longer import (1)" in text
    assert f"keras 3.10.0: {risk.reason}" in text


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_plan_as_text(name: str, *, verbose: bool) -> None:
    path = CASES / f"{name}{'.verbose' if verbose else ''}.txt"
    view, to = plan_document(read_plan(name)), console()
    render(view, to, verbose=verbose)
    if "UPDATE_SNAPSHOTS" in os.environ:
        path.write_text(stripped(to), encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    assert stripped(to) == expected
    assert to_text(view, verbose=verbose) + "\n" == expected


@pytest.mark.parametrize("name", PLANS)
def test_only_a_single_long_word_exceeds_the_width(name: str) -> None:
    for line in to_text(plan_document(read_plan(name)), width=80, verbose=True).splitlines():
        assert len(line) <= 80 or len(line.split()) == 1


@pytest.mark.parametrize("name", PLANS)
def test_verbose_text_shows_everything(name: str) -> None:
    plan = read_plan(name)
    text = words(to_text(plan_document(plan), verbose=True))
    for step in plan.steps:
        reason = step.reason
        for version in (step.previous, step.version):
            reason = reason.removeprefix(f"{step.name} {version} ")
        assert words(reason) in text
        assert f"{step.name} " in text
        assert step.artifact is None or step.artifact.filename in text
    for kept in plan.kept:
        assert f"{kept.name} {kept.version} {kept.reason}" in text
    for breakage in plan.breakages:
        assert f"{breakage.name} {breakage.version} needs {breakage.requirement}" in text
        assert all(link in text for link in breakage.because[:-1])
    for modules in plan.restart.values():
        assert ", ".join(modules) in text
    assert all(f"note: {note}" in text for note in plan.notes)


@pytest.mark.parametrize("name", PLANS)
def test_brief_text_names_everything_but_the_dependencies_that_are_installed(name: str) -> None:
    plan = read_plan(name)
    text = words(to_text(plan_document(plan)))
    shown = [step for step in plan.steps if step.requested or step.action is not Action.INSTALL]
    assert all(f"{step.name} {step.previous or step.version}" in text for step in shown)
    assert all(f"{breakage.name} {breakage.version} needs" in text for breakage in plan.breakages)


def test_unknown_sizes_are_reported() -> None:
    named = read_plan("plan-kernel-harmless").steps[1]
    assert named.artifact is not None
    unknown = replace(named, artifact=replace(named.artifact, size=None))
    assert "fetch 1 file of unknown size" in to_text(plan_document(plan(unknown)))
    text = to_text(plan_document(plan(named, unknown)))
    assert "fetch at least 44 MB (1 file of unknown size)" in text


def test_what_is_on_this_machine_is_not_counted_as_a_download() -> None:
    named = read_plan("plan-kernel-harmless").steps[1]
    assert named.artifact is not None
    steps = []
    for name, size in (("torch", 192_000_000), ("peft", 2_000_000), ("trl", 1_000_000)):
        key = NormalizedName(name)
        steps.append(replace(named, name=key, artifact=replace(named.artifact, name=key, size=size)))
    whole, *_ = plans = [
        replace(plan(*steps), at_hand=tuple(map(NormalizedName, names)))
        for names in ((), ("torch",), ("torch", "peft", "trl"))
    ]
    assert [one.fetch_size for one in plans] == [195_000_000, 3_000_000, 0]
    assert {one.file_size for one in plans} == {whole.fetch_size}
    texts = [words(to_text(plan_document(one))) for one in plans]
    for text, headline in zip(texts, ("fetch 195 MB;", "fetch 3.0 MB;", "nothing to fetch;"), strict=True):
        assert headline in text
    assert "files 2 to fetch (3.0 MB), 1 on this machine (192 MB)" in texts[1]
    assert "on this machine" not in texts[0] + texts[2]


def test_plan_without_a_download_does_not_mention_one() -> None:
    step = Step(action=Action.REMOVE, name=NormalizedName("torchao"), reason="why", previous="0.10.0")
    assert to_text(plan_document(plan(step))).startswith("m into the kernel: remove 1; no restart\n")


def test_breakages_by_a_removal_are_grouped_if_they_are_many() -> None:
    few = to_text(plan_document(replace(plan(), breakages=breakages(2))))
    assert "  name-1 1.0 needs torch==2.8.0: left broken\n    because torch 2.8.0 is removed" in few
    many = replace(plan(), breakages=breakages(13))
    text = to_text(plan_document(many))
    assert "Broken only by a removal (13)\n  left broken (13):\n    name-0 1.0 needs torch==2.8.0; " in text
    assert "because" not in text
    assert to_text(plan_document(many), verbose=True).count("because torch 2.8.0 is removed") == 13


def test_long_list_of_kept_distributions_is_folded() -> None:
    kept = tuple(Kept(name=NormalizedName(f"name-{at}"), version="1.0", reason="why") for at in range(30))
    view = plan_document(replace(plan(), kept=kept))
    assert "Keep (30)" in to_text(view)
    assert "name-2" not in to_text(view)
    few = to_text(plan_document(replace(plan(), kept=kept[:3])))
    assert "Keep (3)\n  name-0 1.0, name-1 1.0, name-2 1.0" in few
    assert "name-29 1.0  why" in to_text(view, verbose=True)


@pytest.mark.parametrize(
    ("cost", "note"),
    [
        (
            UndoCost(files=1, bytes=4_400_000_000, seconds=29.0),
            "colablock copies 1 file of the image (4.4 GB), which takes about 29 s; `--no-undo` deletes them",
        ),
        (UndoCost(files=1200, bytes=1000), "colablock copies 1,200 files of the image (1.0 kB); `--no-undo`"),
    ],
)
def test_cost_of_an_undo_is_noted(cost: UndoCost, note: str) -> None:
    assert note in words(to_text(plan_document(replace(plan(), undo_cost=cost))))


# HTML


@pytest.mark.parametrize("name", PLANS)
def test_html_shows_every_change(name: str) -> None:
    plan = read_plan(name)
    text = words(body(to_html(plan_document(plan))).text)
    for step in plan.steps:
        assert f"{step.name} {step.previous or step.version}" in text
        assert words(step.reason.removeprefix(f"{step.name} {step.previous} ")) in text
    for breakage in plan.breakages:
        assert words(f"{breakage.name} {breakage.version} needs {breakage.requirement}") in text
    for kept in plan.kept:
        assert f"{kept.name} {kept.version}" in text
        assert kept.reason in text


def test_long_parts_are_folded() -> None:
    block = body(to_html(plan_document(read_plan("plan-kernel-breaks-much"))))
    folds = [one for one in block.children if isinstance(one, Element) and one.tag == "details"]
    assert {one.all("summary")[0].text: "open" in one.attributes for one in folds} == {
        "Remove (8)": True,
        "Replace (20)": True,
        "Install (20)": True,
        "Broken by a version change (9)": True,
        "Broken only by a removal (14)": False,
        "Restart needed: the kernel has loaded modules of 2 distributions that change": True,
        "Keep (30)": False,
    }
