from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from colablock._common.text import seconds_text, size_text
from colablock._vendor.packaging.utils import NormalizedName
from colablock.display.html import plan_to_html, report_to_html
from colablock.display.progress import LiveReporter, PlainReporter, TerminalReporter
from colablock.display.reporters import reporter_for
from colablock.display.text import (
    error_text,
    plan_text,
    render_error,
    render_info,
    render_listing,
    render_matrix,
    render_plan,
    render_report,
    report_text,
)
from colablock.errors import ColablockError, Fault, InvalidMatrix, NoSolution, NotRestored, Refused
from colablock.planning.plan import Action, Breakage, Plan, Remedy, Step, Target
from colablock.transaction.serialise import report_from_json
from colablock.verification.verify import Check, Report
from tests.support.paths import DATA
from tests.support.plans import plan_from_json
from tests.support.screens import Clock, console, stripped

pytestmark = pytest.mark.requirements

CASES = DATA / "display"
PLANS = sorted(path.stem for path in CASES.glob("plan-*.json"))
REPORTS = sorted(path.stem for path in CASES.glob("report-*.json"))


def read_plan(name: str) -> Plan:
    return plan_from_json(json.loads((CASES / f"{name}.json").read_text(encoding="utf-8")))


def read_report(name: str) -> Report:
    return report_from_json(json.loads((CASES / f"{name}.json").read_text(encoding="utf-8")))


def expected(name: str, *, verbose: bool) -> str:
    return (CASES / f"{name}{'.verbose' if verbose else ''}.txt").read_text(encoding="utf-8")


def words(text: str) -> str:
    return " ".join(text.split())


# Plans and reports as text


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_as_text(name: str, *, verbose: bool) -> None:
    to = console()
    render_plan(read_plan(name), to, verbose=verbose)
    assert stripped(to) == expected(name, verbose=verbose)
    assert plan_text(read_plan(name), verbose=verbose) + "\n" == expected(name, verbose=verbose)


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("name", REPORTS)
def test_a_report_as_text(name: str, *, verbose: bool) -> None:
    to = console()
    render_report(read_report(name), to, verbose=verbose)
    assert stripped(to) == expected(name, verbose=verbose)
    assert report_text(read_report(name), verbose=verbose) + "\n" == expected(name, verbose=verbose)


@pytest.mark.parametrize("name", PLANS)
def test_a_line_is_longer_than_the_terminal_only_for_one_long_word(name: str) -> None:
    for line in plan_text(read_plan(name), width=80, verbose=True).splitlines():
        assert len(line) <= 80 or len(line.split()) == 1


@pytest.mark.parametrize("name", PLANS)
def test_verbose_text_loses_nothing(name: str) -> None:
    plan = read_plan(name)
    text = words(plan_text(plan, verbose=True))
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
def test_folded_text_still_names_every_change(name: str) -> None:
    plan = read_plan(name)
    text = words(plan_text(plan))
    assert all(f"{step.name} {step.previous or step.version}" in text for step in plan.steps)
    assert all(f"{breakage.name} {breakage.version} needs" in text for breakage in plan.breakages)


def test_colour_only_adds_colour() -> None:
    plan = read_plan("plan-kernel-breaks-much")
    coloured = console(colour=True)
    render_plan(plan, coloured)
    assert isinstance(coloured.file, io.StringIO)
    assert "\x1b[1;31m" in coloured.file.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured.file.getvalue())
    assert words(plain) == words(plan_text(plan))


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


def test_sizes_that_are_not_known_are_said() -> None:
    named = read_plan("plan-kernel-harmless").steps[1]
    assert named.artifact is not None
    unknown = replace(named, artifact=replace(named.artifact, size=None))
    assert "fetch 1 file of unknown size" in plan_text(plan(unknown))
    assert "fetch at least 44 MB (1 file of unknown size)" in plan_text(plan(named, unknown))


def test_a_plan_without_anything_to_fetch_says_nothing_of_it() -> None:
    step = Step(action=Action.REMOVE, name=NormalizedName("torchao"), reason="why", previous="0.10.0")
    assert plan_text(plan(step)).startswith("m into the kernel: remove 1; no restart\n")


def test_control_characters_reach_no_terminal_and_no_page() -> None:
    evil = Step(action=Action.INSTALL, name=NormalizedName("x"), reason="a\x1b[2Jb\x07", version="1\x9b2")
    for shown in (plan_text(plan(evil)), plan_to_html(plan(evil))):
        assert not any(ord(character) < 0x20 and character != "\n" for character in shown)
        assert "\x9b" not in shown


def test_a_failed_check_shows_the_last_lines_of_its_traceback() -> None:
    detail = "\n".join(f"line {number}" for number in range(40))
    check = Check(kind="import", subject="torch", passed=False, detail=detail, seconds=1.0)
    report = replace(read_report("report-failed"), checks=(check,))
    short, long = report_text(report).split(), report_text(report, verbose=True)
    assert short.count("line") == 12
    assert "line 39" in report_text(report)
    assert "line 0\n" in long


def test_a_report_without_checks_does_not_claim_a_proof() -> None:
    report = replace(read_report("report-proven"), checks=())
    assert report_text(report).startswith("qlora-2024 (cu121) in the kernel: nothing was checked\n")
    assert "PASS" not in report_to_html(report)


# HTML


class Page(HTMLParser):
    """Reads a page; fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += f" {data} "


ALLOWED = {"b", "code", "details", "div", "li", "p", "pre", "span", "style", "summary", "ul"}


@pytest.mark.parametrize("name", [*PLANS, *REPORTS])
def test_a_page_is_well_formed_and_loads_nothing(name: str) -> None:
    html = plan_to_html(read_plan(name)) if name in PLANS else report_to_html(read_report(name))
    page = Page(html)
    assert set(page.tags) <= ALLOWED
    assert {attribute for attribute, _ in page.attributes} <= {"class", "open"}
    assert "url(" not in html
    assert "@import" not in html


@pytest.mark.parametrize("name", PLANS)
def test_a_page_shows_every_change(name: str) -> None:
    plan = read_plan(name)
    text = words(Page(plan_to_html(plan)).text)
    for step in plan.steps:
        assert f"{step.name} " in text
    for breakage in plan.breakages:
        assert words(f"{breakage.name} {breakage.version} needs {breakage.requirement}") in text
    for kept in plan.kept:
        assert f"{kept.name} {kept.version}" in text


def test_every_style_rule_is_our_own() -> None:
    html = plan_to_html(read_plan("plan-env"))
    style = html.split("<style>")[1].split("</style>")[0]
    assert all(rule.startswith(".colablock") for rule in style.splitlines())


HOSTILE = '<script>alert("1")</script>&amp;\'"><img src=x onerror=y>'


def test_a_hostile_word_stays_a_word() -> None:
    step = Step(
        action=Action.INSTALL, name=NormalizedName(HOSTILE), reason=HOSTILE, version=HOSTILE, previous=HOSTILE
    )
    breakage = Breakage(
        name=NormalizedName(HOSTILE),
        version=HOSTILE,
        requirement=HOSTILE,
        direct=True,
        because=(HOSTILE, "x"),
        remedy=Remedy.LEAVE,
    )
    evil = replace(
        plan(step, replace(step, action=Action.REMOVE)),
        matrix=HOSTILE,
        variant=HOSTILE,
        why_target=HOSTILE,
        python=HOSTILE,
        breakages=(breakage,),
        restart={NormalizedName(HOSTILE): (HOSTILE,)},
        notes=(HOSTILE,),
    )
    check = Check(kind=HOSTILE, subject=HOSTILE, passed=False, detail=HOSTILE)
    report = Report(
        matrix=HOSTILE,
        variant=HOSTILE,
        target=HOSTILE,
        python=HOSTILE,
        python_version=HOSTILE,
        checks=(check, replace(check, passed=True)),
        notes=(HOSTILE,),
    )
    for page in (Page(plan_to_html(evil)), Page(report_to_html(report))):
        assert set(page.tags) <= ALLOWED
        assert words(HOSTILE) in words(page.text)


def test_a_failure_is_open_and_what_passed_is_folded() -> None:
    html = report_to_html(read_report("report-failed"))
    assert "<details open><summary>1 check failed</summary>" in html
    assert "<details><summary>44 checks passed</summary>" in html
    assert "OSError: libcudart.so.12" in html


# Errors

ERRORS: list[tuple[ColablockError, str]] = [
    (
        NoSolution(
            "`example-kernels>=0.4` fits no candidate",
            because=(
                "because example-kernels 0.4.0 and 0.4.1 need torch>=2.8",
                "and the matrix keeps the preinstalled torch 2.6.0+cu124",
            ),
            hint="Let `torch` be replaced with `--replace torch`, or ask for `example-kernels<0.4`",
        ),
        """\
error: `example-kernels>=0.4` fits no candidate                    [no-solution]
  because example-kernels 0.4.0 and 0.4.1 need torch>=2.8
  and the matrix keeps the preinstalled torch 2.6.0+cu124

hint: Let `torch` be replaced with `--replace torch`, or ask for
`example-kernels<0.4`
""",
    ),
    (
        InvalidMatrix(
            "m.toml",
            [
                Fault(path="packages.torch.verison", message="unknown key", hint="did you mean `version`?"),
                Fault(path="schema", message="is missing"),
            ],
        ),
        """\
error: the matrix `m.toml` has 2 faults                         [invalid-matrix]
  packages.torch.verison: unknown key (did you mean `version`?)
  schema: is missing
""",
    ),
    (
        Refused(
            "the plan was made for another state of this environment, which has changed since then: numpy"
        ),
        """\
error: the plan was made for another state of this environment, which  [refused]
       has changed since then: numpy
""",
    ),
    (
        NotRestored("3 files could not be put back", stash="/site/.stash/1"),
        """\
error: 3 files could not be put back                              [not-restored]
  what was moved away lies in `/site/.stash/1`
""",
    ),
]


@pytest.mark.parametrize(("error", "shown"), ERRORS, ids=lambda value: getattr(value, "reference", ""))
def test_an_error(error: ColablockError, shown: str) -> None:
    to = console()
    render_error(error, to)
    assert stripped(to) == shown
    assert error_text(error) + "\n" == shown


# Facts


def test_facts_are_listed_with_their_names() -> None:
    to = console()
    facts = {
        "version": "1",
        "externally_managed": False,
        "accelerator": None,
        "matrices": [
            {"name": "a", "summary": "one", "variants": ["cpu", "cu118"]},
            {"name": "b", "date": None},
        ],
        "python": {"executable": "/bin/python"},
    }
    render_info(facts, to)
    assert stripped(to) == (
        "  version             1\n"
        "  externally managed  no\n"
        "  accelerator         none\n"
        "\n"
        "Matrices (2)\n"
        "  a  one; variants: cpu, cu118\n"
        "  b\n"
        "\n"
        "Python (1)\n"
        "  executable  /bin/python\n"
    )
    for render in (render_listing, render_matrix):
        again = console()
        render(facts, again)
        assert stripped(again) == stripped(to)


# Words


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (45_400_000, "45 MB"),
        (999_700, "1.0 MB"),
        (2_900_000_000, "2.9 GB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_a_size(size: int, shown: str) -> None:
    assert size_text(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s")]
)
def test_a_duration(seconds: float, shown: str) -> None:
    assert seconds_text(seconds) == shown


# Progress


def work(reporter: LiveReporter, clock: Clock) -> None:
    with reporter:
        reporter.stage("Resolving demo for Python 3.12")
        for number, name in enumerate(["torch", "numpy"]):
            clock.now += 1
            reporter.resolving(name, number + 1)
        reporter.note("no `+cpu` wheel [of torch] was found")
        reporter.fetch_started(2, 90_000_000)
        clock.now += 6
        reporter.fetched("torch.whl", 60_000_000)
        clock.now += 3
        reporter.fetched("numpy.whl", 30_000_000)
        reporter.fetch_finished()
        reporter.stage("Putting 2 distributions in place")
        reporter.step("install torch", 1, 2)
        clock.now += 1
        reporter.step("install numpy", 2, 2)


def test_progress_without_a_terminal_is_single_lines() -> None:
    to, clock = console(), Clock(100.0)
    work(PlainReporter(to, clock=clock), clock)
    assert stripped(to) == (
        "Resolving demo for Python 3.12\n"
        "note: no `+cpu` wheel [of torch] was found\n"
        "  2 decided, 2.0 s\n"
        "Fetching 2 files - 90 MB\n"
        "  Fetching 2 files - 60 MB of 90 MB, 10 MB/s - torch.whl\n"
        "  90 MB, 10 MB/s, 9.0 s\n"
        "Putting 2 distributions in place\n"
        "  2 of 2, 1.0 s\n"
    )


def test_progress_on_a_terminal_leaves_what_the_stages_came_to() -> None:
    to, clock = console(colour=True), Clock(100.0)
    work(TerminalReporter(to, clock=clock), clock)
    assert isinstance(to.file, io.StringIO)
    shown = to.file.getvalue()
    assert "\x1b[?25l" in shown  # it draws ...
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # ... and gives the cursor back
    for line in (
        "Resolving demo for Python 3.12: 2 decided, 2.0 s\n",
        "note: no `+cpu` wheel [of torch] was found\n",
        "Fetching 2 files: 90 MB, 10 MB/s, 9.0 s\n",
        "Putting 2 distributions in place: 2 of 2, 1.0 s\n",
    ):
        assert line in shown


def test_what_stopped_is_said() -> None:
    to, clock = console(), Clock(100.0)
    reporter = PlainReporter(to, clock=clock)
    reporter.stage("Proving demo")
    reporter.step("import torch", 1, 3)
    with pytest.raises(KeyError), reporter:
        raise KeyError
    assert stripped(to) == "Proving demo\n  stopped after 1 of 3, 0.0 s\n"


@pytest.mark.parametrize("kind", [PlainReporter, TerminalReporter])
def test_a_closed_stream_stops_no_work(kind: type[PlainReporter | TerminalReporter]) -> None:
    to, clock = console(colour=kind is TerminalReporter), Clock(100.0)
    to.file.close()
    work(kind(to, clock=clock), clock)


def test_many_threads_may_report() -> None:
    to = console()
    reporter = PlainReporter(to)
    reporter.fetch_started(8, 8000)

    def fetch(number: int) -> None:
        for _ in range(100):
            reporter.fetched(f"{number}.whl", 10)

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reporter.close()
    assert "  8.0 kB, " in stripped(to)


@pytest.mark.parametrize(
    ("environ", "terminal", "options", "kind"),
    [
        ({}, True, {}, TerminalReporter),
        ({"NO_COLOR": "1"}, True, {}, TerminalReporter),
        ({"CI": "false"}, True, {}, TerminalReporter),
        ({"CI": "true"}, True, {}, PlainReporter),
        ({}, False, {}, PlainReporter),
        ({}, True, {"progress": False}, PlainReporter),
        ({}, True, {"quiet": True}, LiveReporter),
        ({}, True, {"notebook": True}, TerminalReporter),  # no kernel runs here
    ],
)
def test_the_reporter_fits_the_place(
    environ: dict[str, str], *, terminal: bool, options: dict[str, bool], kind: type[LiveReporter]
) -> None:
    to = Console(file=io.StringIO(), force_terminal=terminal, _environ={"TERM": "xterm"})
    assert type(reporter_for(to, environ=environ, **options)) is kind


def test_without_a_place_to_draw_it_is_silent() -> None:
    reporter = reporter_for(None)
    work(reporter, Clock(100.0))
    assert type(reporter) is LiveReporter


def test_rich_is_loaded_by_drawing_alone() -> None:
    modules = "sys, colablock.display.reporters, colablock.cli.notebook_magics"
    code = f"import {modules}; print({{'rich', 'IPython'}} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
