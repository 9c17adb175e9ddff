from __future__ import annotations

import json
from dataclasses import replace

import pytest

from colablock.display.html import to_html
from colablock.display.report_view import report_document
from colablock.display.text import render, to_text
from colablock.transaction.serialise import report_from_json
from colablock.verification.verify import Check, Report
from tests.support.html import body
from tests.support.paths import DATA
from tests.support.screens import console, stripped

CASES = DATA / "display"
REPORTS = sorted(path.stem for path in CASES.glob("report-*.json"))


def read_report(name: str) -> Report:
    return report_from_json(json.loads((CASES / f"{name}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("name", REPORTS)
def test_report_as_text(name: str, *, verbose: bool) -> None:
    expected = (CASES / f"{name}{'.verbose' if verbose else ''}.txt").read_text(encoding="utf-8")
    view, to = report_document(read_report(name)), console()
    render(view, to, verbose=verbose)
    assert stripped(to) == expected
    assert to_text(view, verbose=verbose) + "\n" == expected


IMPORT = Check(kind="import", subject="torch", passed=True, seconds=5.0)
COMMAND = Check(kind="command", subject="accelerate launch --help", passed=True, seconds=4.0)


def test_failed_check_shows_the_last_lines_of_its_traceback() -> None:
    detail = "\n".join(f"line {number}" for number in range(40))
    check = Check(kind="import", subject="torch", passed=False, detail=detail, seconds=1.0)
    view = report_document(replace(read_report("report-failed"), checks=(check,)))
    brief, verbose = to_text(view), to_text(view, verbose=True)
    assert brief.split().count("line") == 12
    assert "(28 more above: -v)" in brief
    assert "line 39" in brief
    assert "line 0\n" in verbose
    assert "more above" not in verbose


def test_report_without_checks_does_not_claim_a_proof() -> None:
    view = report_document(replace(read_report("report-proven"), checks=()))
    assert to_text(view).startswith("qlora-2024 (cu121) in the kernel: nothing was checked\n")
    assert "PASS" not in to_html(view)


def test_few_version_checks_are_rows() -> None:
    checks = [Check(kind="version", subject=f"name-{at}", passed=True, detail="1.0") for at in range(3)]
    text = to_text(report_document(replace(read_report("report-proven"), checks=tuple(checks))))
    assert "  PASS  version  name-2: 1.0" in text
    assert "as pinned" not in text


def test_a_command_says_that_it_runs_beside_the_imports() -> None:
    report = replace(read_report("report-proven"), checks=(COMMAND, IMPORT))
    beside = "accelerate launch --help (beside the imports)"
    assert beside in to_text(report_document(report))
    for alone in ((COMMAND,), (replace(COMMAND, seconds=0.2), IMPORT)):
        assert "beside" not in to_text(report_document(replace(report, checks=alone)))


def test_report_of_a_change_names_the_command_that_undoes_it() -> None:
    report = replace(read_report("report-proven"), changed=True, undo="colablock rollback")
    assert "undo: colablock rollback" in to_text(report_document(report))
    assert "undo" not in to_text(report_document(replace(report, changed=False)))


def test_failure_is_open_and_passed_checks_are_folded() -> None:
    block = body(to_html(report_document(read_report("report-failed"))))
    folds = {one.all("summary")[0].text: "open" in one.attributes for one in block.all("details")}
    assert folds == {"Failed (1)": True, "Passed (44)": False, "and 40 versions as pinned": False}
    assert "OSError: libcudart.so.12" in block.one("pre").text
    assert block.one("p", "cl-head").one("span", "cl-bad").text == "FAIL"


def test_html_lists_every_version() -> None:
    report = read_report("report-proven")
    text = body(to_html(report_document(report))).text
    assert all(f"{one.subject} {one.detail}" in text for one in report.checks if one.kind == "version")
