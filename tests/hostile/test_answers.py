"""Answers of processes in a target environment, whose packages can write anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from colablock.environment.target_script import ask_target
from colablock.errors import InvalidInput, Unmet
from colablock.verification.worker import Child, run_jobs
from tests.support.timing import PATIENCE

ANSWERS: Mapping[str, tuple[str, str]] = {
    "nothing": ("", "the process ended with status 0"),
    "half": ('{"answer": [', "the process ended with status 0"),
    "no object": ("[]", "the process ended with status 0"),
    "deep": ("[" * 100_000, "the process ended with status 0"),
    "no text": ("\xff\xfe", "the process ended with status 0"),
    "another type": ('{"answer": [1]}', "its answer cannot be read: Expected `str`, got `int`"),
    "another shape": ('{"answer": "x"}', "its answer cannot be read: Expected `array`, got `str`"),
    "a hint that is a list": ('{"refused": "no", "hint": [1]}', "no"),
}


@pytest.mark.parametrize(("text", "words"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_none_is_an_error(text: str, words: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nopen(sys.argv[2], 'w').write({text!r})\n")
    with pytest.raises(Unmet) as caught:
        ask_target(sys.executable, script, {}, doing="tell", environ={}, answers=list[str])
    assert words in str(caught.value)
    assert caught.value.hint is None


@pytest.mark.parametrize("make", ["os.mkfifo(path)", "os.mkdir(path)", "os.symlink(path, path)"])
def test_something_else_in_place_of_the_answer_is_an_error(make: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys\npath = sys.argv[2]\n{make}\n")
    with pytest.raises(Unmet, match="could not tell: the process ended with status 0"):
        ask_target(sys.executable, script, {}, doing="tell", environ={})


def test_an_answer_that_fits_is_returned(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nopen(sys.argv[2], 'w').write('{\"answer\": [\"\\\\udce9\"]}')\n")
    answers: Any = list[str]
    assert ask_target(sys.executable, script, {}, doing="tell", environ={}, answers=answers) == ["\udce9"]
    script.write_text("import sys\nopen(sys.argv[2], 'w').write('{\"invalid\": \"no\"}')\n")
    with pytest.raises(InvalidInput, match="no"):
        ask_target(sys.executable, script, {}, doing="tell", environ={})


LINES = {
    "not JSON": b"garbage\n",
    "a list": b"[1, 2]\n",
    "no kind": b'{"event": "end"}\n',
    "a text for a truth": b'{"event": "end", "kind": "import", "passed": "yes"}\n',
    "deep": b"[" * 5000 + b"\n",
    "no text": b"\xff\xfe\n",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_module_that_writes_to_the_answers_fails_its_proof_alone(line: bytes, tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "hostile.py").write_text(f"import os, sys\nos.write(int(sys.argv[1]), {line!r})\n")
    (tmp_path / "empty").mkdir()
    environ = {**os.environ, "PYTHONPATH": str(modules)}
    child = Child(python=sys.executable, environ=environ, folder=tmp_path / "empty", timeout=PATIENCE)
    results = list(run_jobs(child, [("import", "json"), ("import", "hostile"), ("import", "math")]))
    assert [(one.subject, one.passed) for one in results] == [
        ("json", True),
        ("hostile", False),
        ("math", True),
    ]
    assert "its answer cannot be read" in results[1].detail
