from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from colablock.training.runs.crash import explain, tracebacks
from colablock.training.runs.known_crashes import cause_of_signal, known_causes
from tests.support.paths import DATA
from tests.support.runs import events_of, make_record, make_run, sleeping_process

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CASES = tomllib.loads((DATA / "crashes.toml").read_text(encoding="utf-8"))["case"]
LINES = tomllib.loads((DATA / "crash_lines.toml").read_text(encoding="utf-8"))["lines"]
RECORD = ("model", "precision", "processes", "runner")


def machine(path: Path, case: dict[str, Any]) -> Path:
    """Return the root of a machine whose kernel reports the facts of *case*."""
    (path / "sys/fs/cgroup").mkdir(parents=True)
    (path / "proc").mkdir()
    if "oom_kill" in case:
        text = f"low 0\nhigh 0\nmax 9\noom 2\noom_kill {case['oom_kill']}\noom_group_kill 0\n"
        (path / "sys/fs/cgroup/memory.events").write_text(text)
    (path / "proc/stat").write_text(f"cpu 1 2 3\nbtime {case.get('boot', 1780000000)}\nprocesses 9\n")
    return path


@pytest.mark.parametrize("case", CASES, ids=[case["about"] for case in CASES])
def test_known_causes_are_recognised(case: dict[str, Any], tmp_path: Path) -> None:
    facts = {name: case[name] for name in RECORD if name in case}
    config = {**make_record().config, **case.get("config", {})}
    end = None
    if "error" in case:
        frames = '  File "/x/_shim.py", line 99, in main\n    train()\n'
        text = f"Traceback (most recent call last):\n{frames}{case['error']}\n"
        line = case["error"] if not case["error"].startswith(" ") else case["error"].splitlines()[-1]
        end = {"state": "failed", "error": line, "traceback": text}
    folder = make_run(tmp_path / "run", log=case.get("log", ""), end=end, config=config, **facts)
    system = machine(tmp_path / "root", case)
    found = explain(folder, exit_code=case.get("exit_code"), system=system)
    assert found is not None
    assert found.cause == case["cause"]
    assert found.rank == case.get("rank")
    assert found.log == str(folder.log)
    for words in case.get("says", ()):
        assert any(words in one for one in found.details), found.details
    for words in case.get("advises", ()):
        assert any(words in one for one in found.advice), found.advice
    for words in case.get("not", ()):
        assert not any(words in one for one in (*found.details, *found.advice))
    assert "{" not in "".join((found.means, *found.advice, *found.details)).replace("{'", "")
    if found.is_known:
        assert found.advice


def test_every_cause_with_a_pattern_has_a_case() -> None:
    told = {one.name for one in known_causes() if one.pattern or one.general or one.whole}
    assert told - {case["cause"] for case in CASES} - LINES.keys() == set()
    assert len({cause.name for cause in known_causes()}) == len(known_causes())


def test_every_text_follows_the_style() -> None:
    for cause in known_causes():
        texts = [cause.means, *(one.text for one in cause.advice), *(one.text for one in cause.details)]
        assert not any(text.endswith(".") or "  " in text for text in texts), cause.name
        assert all(
            one.text[0].isupper() or one.text.startswith(("`", "colablock", "fp16")) for one in cause.advice
        )
        assert {one.look_up for one in known_causes()} == {"", "disk", "kills", "memory", "shared-memory"}
    assert cause_of_signal(0) is None


def test_an_unknown_failure_shows_its_exception(tmp_path: Path) -> None:
    frames = "".join(f'  File "/x/{number}.py", line 1, in f\n    f()\n' for number in range(40))
    text = f"Traceback (most recent call last):\n{frames}pkg.Strange: it\nwas so\n"
    end = {"state": "failed", "error": "pkg.Strange: it\nwas so", "traceback": text}
    events = events_of([5.0, 4.0, 3.0], total=9, save_every=2)
    folder = make_run(tmp_path / "run", end=end, events=events)
    (folder.path / "checkpoint-2").mkdir()
    found = explain(folder)
    assert found is not None
    assert (found.cause, found.is_known, found.advice) == ("unknown", False, ())
    assert found.line == found.title == "pkg.Strange: it"
    assert found.trace[-2:] == ("pkg.Strange: it", "was so")
    assert len(found.trace) == 12
    assert (found.step, found.checkpoint) == (3, "checkpoint-2")


def test_the_advice_names_the_matrix_as_it_was_applied(tmp_path: Path) -> None:
    end = {"state": "failed", "error": "ModuleNotFoundError: No module named 'peft'", "traceback": ""}
    for source, word in {"/my matrices/own.toml": "'/my matrices/own.toml'", "": "own"}.items():
        folder = make_run(tmp_path / (word[-4:]), end=end, matrix="own", source=source)
        found = explain(folder)
        assert found is not None
        assert any(f"`colablock apply {word}`" in one for one in found.advice), found.advice


@pytest.mark.parametrize("state", ["done", "stopped"])
def test_a_successful_run_has_no_explanation(tmp_path: Path, state: str) -> None:
    assert explain(make_run(tmp_path / "run", events=events_of([5.0]), end={"state": state})) is None


def test_an_unfinished_run_has_no_explanation(tmp_path: Path) -> None:
    with sleeping_process() as process:
        assert explain(make_run(tmp_path / "run", log="MemoryError", **process)) is None
    assert explain(make_run(tmp_path / "other", process=0)) is None


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "end", [{"state": "done"}, {"state": "failed", "error": "SomeError: x", "traceback": ""}]
)
def test_a_nan_loss_is_explained(tmp_path: Path, precision: str, end: dict[str, str]) -> None:
    events = events_of([5.0, math.nan, 4.0, math.inf, math.nan])
    found = explain(make_run(tmp_path / "run", events=events, end=end, precision=precision))
    assert found is not None
    assert found.cause == "loss-not-finite"
    assert "nan from step 4 on" in found.means
    assert "`learning_rate` (now 0.0002)" in found.advice[0]
    assert any("fp16" in one for one in found.advice) == (precision == "fp16")


def test_a_known_failure_takes_precedence_over_a_nan_loss(tmp_path: Path) -> None:
    end = {"state": "failed", "error": "OSError: [Errno 28] No space left on device", "traceback": ""}
    found = explain(make_run(tmp_path / "run", events=events_of([math.nan]), end=end))
    assert found is not None
    assert found.cause == "disk-full"


def test_the_last_checkpoint_has_to_exist(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", events=events_of([5.0] * 6, save_every=2))
    (folder.path / "checkpoint-4").mkdir()
    found = explain(folder, system=tmp_path)
    assert found is not None
    assert found.checkpoint == "checkpoint-4"
    assert "Start the run again: it resumes from checkpoint-4" in found.advice


# Tracebacks in a log


CHAIN = """\
warming up
Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'a'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "b.py", line 1, in <module>
    call(
    ^^^^^
ValueError: first line
  second line
third line

something else
"""


def test_chained_exceptions_are_one_failure() -> None:
    (found,) = tracebacks(CHAIN)
    assert found.line == "ValueError: first line"
    assert found.messages.splitlines() == [
        "KeyError: 'a'",
        "ValueError: first line",
        "  second line",
        "third line",
    ]
    assert found.text.startswith("Traceback")
    assert "something else" not in found.text
    assert found.at == 1


def test_interleaved_failures_of_ranks_are_separated() -> None:
    lines = CHAIN.splitlines()[1:]
    mixed = "\n".join(f"[rank{rank}]: {line}" for line in lines for rank in (1, 0))
    found = tracebacks(mixed)
    assert [one.rank for one in found] == [1, 0]
    assert {one.line for one in found} == {"ValueError: first line"}
    assert found[0].messages == found[1].messages


def test_without_rank_prefixes_the_first_of_the_last_failures_counts(tmp_path: Path) -> None:
    one = "Traceback (most recent call last):\n  File 'x'\n{}\n\n"
    errors = ["Handled: long ago", "OSError: [Errno 28] No space left on device", "ValueError: later"]
    folder = make_run(tmp_path / "run", log="".join(one.format(error) for error in errors), processes=2)
    found = explain(folder)
    assert found is not None
    assert found.line == errors[1]
    folder.write_record(make_record(processes=1))
    found = explain(folder)
    assert found is not None
    assert found.line == errors[2]


@pytest.mark.parametrize(
    "log", ["", "Traceback (most recent call last):", "Traceback (most recent call last):\n  x\n"]
)
def test_a_truncated_log_is_accepted(tmp_path: Path, log: str) -> None:
    assert all(one.line == "" for one in tracebacks(log))
    assert explain(make_run(tmp_path / "run", log=log), system=tmp_path) is not None


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (
            "sys/fs/cgroup/memory/memory.oom_control",
            "oom_kill_disable 0\noom_kill 1\n",
            "1 process in this container",
        ),
        ("sys/fs/cgroup/memory/memory.oom_control", "oom_kill 0\n", "does not count it"),
        ("proc/vmstat", "nr_free 1\noom_kill 0\n", "not killed any process on this machine"),
        ("proc/vmstat", "oom_kill 3\n", "3 processes on this machine"),
    ],
)
def test_the_oom_counter_is_read_from_several_files(tmp_path: Path, file: str, text: str, words: str) -> None:
    place = tmp_path / "root" / file
    place.parent.mkdir(parents=True)
    place.write_text(text)
    found = explain(make_run(tmp_path / "run"), system=tmp_path / "root")
    assert found is not None
    assert any(words in one for one in found.details), found.details
