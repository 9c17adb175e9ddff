"""The documentation says what is so: generated pages, links, commands and examples."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

import colablock
from colablock.cli.main import build_parser
from tests.support.paths import ROOT

REPOSITORY = ROOT
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in [*(REPOSITORY / name for name in TOP), *(REPOSITORY / "docs").rglob("*.md")]
    if "_build" not in path.parts
)


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of *language* in a page."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    """Yield every use of our command line that a page shows, with the page."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                for part in line.split(" && "):
                    _, found, rest = f" {part}".partition("colablock ")
                    if found:
                        yield page, rest
        text = re.sub(r"^#.*", "", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
        for rest in re.findall(r"`%?colablock ([^`]*[^`.])`", text):
            if " " in rest and "[" not in rest:
                yield page, rest


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, str(REPOSITORY / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_have_targets(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (REPOSITORY / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:colablock|tests|tools|benchmarks|docs)/[\w./-]+)`", text)
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_shown_commands_parse(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)
    assert words, page
    if words[0] == "train" and "--" in words:  # what follows is accelerate's
        words = words[: words.index("--")]
    build_parser().parse_args(words)  # leaves with SystemExit where it does not understand


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_compile(page: str) -> None:
    for block in blocks(page, "python"):
        lines = [line for line in block.splitlines() if not line.startswith("%")]
        compile("\n".join(lines), page, "exec")


def test_errors_that_the_page_about_failures_lists_are_explained() -> None:
    text = (REPOSITORY / "docs" / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    assert len(messages) > 10
    assert [
        message for message in messages if not colablock.explain(f"ImportError: {message}").is_known
    ] == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^<!-- tests -->\n```sh\n.+\n```$", readme, re.MULTILINE)) == 1
    assert "nox" not in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def test_every_environment_variable_is_documented() -> None:
    sources = [path for path in (REPOSITORY / "colablock").rglob("*.py") if "_vendor" not in path.parts]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    page = (REPOSITORY / "docs" / "reference" / "environment-variables.md").read_text(encoding="utf-8")
    used = set(re.findall(r"\bCOLABLOCK_[A-Z_]*[A-Z]\b", text))
    listed = re.findall(r"^\| `(COLABLOCK_[A-Z_]*[A-Z])(?:_<NAME>)?`", page, re.MULTILINE)
    assert used | {"COLABLOCK_INDEX", "COLABLOCK_INDEX_DEFAULT"} == set(listed)
