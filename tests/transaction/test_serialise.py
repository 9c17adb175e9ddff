from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colablock._vendor.packaging.utils import NormalizedName
from colablock.errors import InvalidInput
from colablock.planning.plan import Action, Artifact, Breakage, Kept, Plan, Remedy, Step, Target
from colablock.transaction.serialise import plan_to_json, report_from_json, report_to_json
from colablock.verification.verify import Check, Report
from tests.support.plans import plan_from_json

pytestmark = pytest.mark.stdlib

text = st.text(max_size=12)
lines = st.lists(text, max_size=3).map(tuple)
names = st.from_regex(r"[a-z0-9]+(-[a-z0-9]+)?", fullmatch=True).map(NormalizedName)
seconds = st.floats(min_value=0, allow_nan=False, allow_infinity=False)

artifacts = st.builds(
    Artifact,
    name=names,
    version=text,
    filename=text,
    url=text,
    hashes=st.dictionaries(text, text, max_size=2),
    size=st.none() | st.integers(min_value=0),
    index=st.none() | text,
    build=st.booleans(),
    rebuilt=st.none() | text,
    direct=st.booleans(),
)
steps = st.builds(
    Step,
    action=st.sampled_from(Action),
    name=names,
    reason=text,
    version=st.none() | text,
    previous=st.none() | text,
    artifact=st.none() | artifacts,
    requested=st.booleans(),
)
breakages = st.builds(
    Breakage,
    name=names,
    version=text,
    requirement=text,
    direct=st.booleans(),
    because=lines,
    remedy=st.sampled_from(Remedy),
)
plans = st.builds(
    Plan,
    matrix=text,
    matrix_digest=text,
    variant=st.none() | text,
    target=st.sampled_from(Target),
    why_target=text,
    python=text,
    python_version=text,
    steps=st.lists(steps, max_size=3).map(tuple),
    kept=st.lists(st.builds(Kept, name=names, version=text, reason=text), max_size=2).map(tuple),
    breakages=st.lists(breakages, max_size=2).map(tuple),
    restart=st.dictionaries(names, lines, max_size=2),
    fingerprint=text,
    notes=lines,
    requirements=lines,
)
checks = st.builds(Check, kind=text, subject=text, passed=st.booleans(), detail=text, seconds=seconds)
reports = st.builds(
    Report,
    matrix=text,
    variant=st.none() | text,
    target=st.sampled_from(["kernel", "env"]),
    python=text,
    python_version=text,
    checks=st.lists(checks, max_size=3).map(tuple),
    lock_digest=text,
    changed=st.booleans(),
    seconds=seconds,
    needs_restart=st.booleans(),
    notes=lines,
)


@given(plans)
def test_a_plan_survives_the_round_trip(plan: Plan) -> None:
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


@given(reports)
def test_a_report_survives_the_round_trip(report: Report) -> None:
    assert report_from_json(json.loads(json.dumps(report_to_json(report)))) == report


def smallest_plan() -> dict[str, Any]:
    artifact = Artifact(name=NormalizedName("trl"), version="1", filename="f", url="u", size=7)
    step = Step(action=Action.INSTALL, name=NormalizedName("trl"), reason="r", version="1", artifact=artifact)
    plan = Plan(
        matrix="m",
        matrix_digest="d",
        variant=None,
        target=Target.ENV,
        why_target="w",
        python="p",
        python_version="3.12.1",
        steps=(step,),
        restart={NormalizedName("numpy"): ("numpy",)},
    )
    return plan_to_json(plan)


def test_the_written_form_has_its_version_and_derived_values() -> None:
    written = smallest_plan()
    assert (written["version"], written["fetch_size"], written["needs_restart"]) == (1, 7, True)
    report = Report(matrix="m", variant=None, target="env", python="p", python_version="3", checks=())
    assert report_to_json(report)["passed"] is True


def test_unknown_keys_are_ignored_and_optional_keys_can_be_missing() -> None:
    written = {**smallest_plan(), "added-later": 1}
    del written["notes"]
    assert plan_from_json(written).notes == ()


def with_step(**changes: object) -> dict[str, Any]:
    written = smallest_plan()
    written["steps"][0].update(changes)
    return written


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ({**smallest_plan(), "version": 2}, "plan: version 2"),
        ({}, "plan: version None"),
        ({**smallest_plan(), "matrix": 3}, "plan.matrix must be a str, not 3"),
        ({**smallest_plan(), "target": "moon"}, "plan.target must be one of `kernel`, `env`, not 'moon'"),
        ({**smallest_plan(), "steps": {}}, "plan.steps must be a list"),
        ({**smallest_plan(), "steps": ["x"]}, "plan.steps[0] must be a table"),
        ({**smallest_plan(), "restart": []}, "plan.restart must be a table"),
        (with_step(requested=1), "plan.steps[0].requested must be a bool"),
        (with_step(artifact={"name": "a"}), "plan.steps[0].artifact.version is missing"),
        ({"version": 1}, "plan.matrix is missing"),
    ],
)
def test_a_fault_is_named_with_its_path(written: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        plan_from_json(written)
    assert path in str(caught.value)


def test_an_integer_is_read_as_a_float() -> None:
    report = Report(matrix="m", variant=None, target="env", python="p", python_version="3", checks=())
    read = report_from_json({**report_to_json(report), "seconds": 3})
    assert read == Report(**{**{n: getattr(report, n) for n in report.__slots__}, "seconds": 3.0})
