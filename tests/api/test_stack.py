"""What the front door takes, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import colablock
from colablock.cli.main import main
from colablock.errors import InvalidInput, InvalidMatrix
from tests.support.wheels import make_wheel


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: colablock.run("x", []), "no command to run"),
        (lambda: colablock.run("x", " "), "no command to run"),
        (lambda: colablock.run("x", "say 'it"), "cannot be split"),
        (lambda: colablock.plan("x", into="foo"), "one of `kernel`, `env`"),
        (lambda: colablock.plan("x", broken="x"), "one of `repair`, `remove`, `leave`"),
        (lambda: colablock.plan("x", default_index="foo"), "neither a URL nor an existing folder"),
        (lambda: colablock.plan("x", default_index="http://[bad"), "not a valid URL"),
        (colablock.plan, "no matrix is named"),
        (lambda: colablock.apply(bundle="none.bundle"), "there is no bundle"),
    ],
)
def test_what_cannot_be_used_is_named(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        call()


def test_paths_and_nothing_are_taken(tmp_path: Path) -> None:
    matrix = tmp_path / "m.toml"
    matrix.write_text("schema = 0\n")
    with pytest.raises(InvalidMatrix):
        colablock.plan(matrix, with_=None, protect=None, find_links=tmp_path, quiet=True)


def test_a_bundle_is_made_and_planned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line says the same as JSON."""
    make_wheel(tmp_path / "links", "shapes", "1.0")
    matrix = tmp_path / "tiny.toml"
    matrix.write_text('schema = 1\nname = "tiny"\nrequirements = ["shapes"]\n')
    for name in ("COLABLOCK_HOME", "COLABLOCK_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    output, links = tmp_path / "tiny.bundle", tmp_path / "links"
    made = colablock.bundle(matrix, output, find_links=links, offline=True, quiet=True)
    assert made["matrix"] == "tiny"
    assert " ".join(str(made).split()).startswith(f"`{output}` has tiny for Python ")
    assert "<" in made._repr_html_()
    matrix.unlink()
    plan = colablock.plan(bundle=output, into="env", quiet=True)
    assert [(step.name, step.version) for step in plan.steps] == [("shapes", "1.0")]
    assert plan.lock == str(output)
    shutil.rmtree(links)
    for question in (["", "shapes"], ["shapes"], ["tiny", "shapes"]):
        said = str(colablock.why(*question, bundle=output, into="env", quiet=True))
        assert said == "install shapes 1.0: requirements[0] asks for shapes"
    for question in ([], ["tiny"]):
        said = str(colablock.why(*question, bundle=output, into="env", quiet=True))
        assert "the target is an isolated environment: requested; Python" in " ".join(said.split())
    printed = io.StringIO()
    monkeypatch.setattr("sys.stdout", printed)
    assert main(["plan", "--bundle", str(output), "--into", "env", "--json"]) == 0
    assert json.loads(printed.getvalue())["matrix"] == "tiny"
