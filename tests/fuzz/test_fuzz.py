"""Replay every input that once was a fault, and try a few new ones.  `nox -s fuzz` tries 100,000 new ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.harness import check, corpus_of, input_at
from tests.fuzz.mutations import FORMS
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

#: Targets with a sample that is refused: no network, a repository that cannot be pinned, no wheel, no page.
REFUSED = frozenset(
    {"content-type", "file-name", "index-url", "lock", "pylock-requirements", "requirements-txt"}
)
FEW = 30  # inputs of each parser
parsers = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@parsers
def test_samples_are_valid(target: Target, tmp_path: Path) -> None:
    assert target.form in FORMS
    for sample in target.samples():
        refused, finding, _ = check(target, sample, tmp_path)
        assert finding is None
        assert not refused or target.name in REFUSED


@parsers
def test_former_findings_stay_mended(target: Target, tmp_path: Path) -> None:
    for path in corpus_of(target):
        finding = check(target, path.read_bytes(), tmp_path)[1]
        assert finding is None, path


@parsers
def test_new_inputs_raise_only_what_is_documented(target: Target, tmp_path: Path) -> None:
    for place in range(FEW):
        finding = check(target, input_at(target, place), tmp_path)[1]
        assert finding is None, f"input {place}: {finding.kind} {finding.where}"
