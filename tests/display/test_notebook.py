from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from colablock.cli.notebook_magics import CommandFailed, Magic
from colablock.display.notebook import KernelRestarts, restart_kernel, restart_prompt, show
from colablock.environment.notebook_host import in_colab, in_notebook
from colablock.errors import ColablockError, InvalidInput
from colablock.transaction.serialise import report_from_json
from tests.support.paths import DATA
from tests.support.screens import FakeShell
from tests.support.timing import PATIENCE
from tests.support.world import sockets

CASES = DATA / "display"


# Outside a notebook


def test_plain_interpreter_is_not_a_notebook() -> None:
    assert not in_notebook()
    report = report_from_json(json.loads((CASES / "report-proven.json").read_text(encoding="utf-8")))
    show(report)
    restart_prompt(["numpy"])
    restart_kernel(["numpy"])


def test_ipython_in_a_terminal_is_not_a_notebook() -> None:
    pytest.importorskip("IPython")
    code = (
        "from IPython.core.interactiveshell import InteractiveShell; InteractiveShell.instance();"
        "from colablock.cli.notebook_magics import in_notebook; print(in_notebook())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_colab_is_recognised_by_its_variable() -> None:
    assert in_colab({"COLAB_RELEASE_TAG": "release-colab"})
    assert not in_colab({})


# The restart prompt


def test_restart_prompt_is_a_sentence() -> None:
    shell = FakeShell()
    restart_prompt(["numpy", "numpy.linalg", "PIL._imaging"], shell=shell, colab=False)
    assert shell.display_pub.plain() == [
        "Restart the kernel before you go on: it has loaded PIL, numpy as they were before"
    ]
    restart_prompt([], shell=shell, colab=True)
    assert len(shell.display_pub.sent) == 1


def test_on_colab_a_button_follows_the_sentence() -> None:
    shell = FakeShell()
    restart_prompt(["numpy", "numpy.linalg", "PIL._imaging"], shell=shell, colab=True)
    (sentence, _, _), (button, _, _) = shell.display_pub.sent
    assert "text/plain" in sentence
    assert list(button) == ["application/vnd.colab-display-data+json"]
    warning = button["application/vnd.colab-display-data+json"]
    assert warning["pip_warning"] == {"packages": ["PIL", "numpy"]}


def test_kernel_restarts_only_if_it_has_loaded_old_modules() -> None:
    shell = FakeShell()
    restart_kernel([], shell=shell)
    assert shell.kernel.ends == []
    with pytest.raises(KernelRestarts, match="has loaded PIL, numpy as they were before: go on below"):
        restart_kernel(["numpy", "numpy.linalg", "PIL._imaging"], then="go on below", shell=shell)
    assert shell.kernel.ends == [True]


# The magics


class Called:
    """Stands for the command line and `colablock.run`."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.calls: list[tuple[object, ...]] = []

    def main(self, argv: Sequence[str]) -> int:
        self.calls.append(tuple(argv))
        return self.code

    def run(self, name: str, argv: Sequence[str]) -> int:
        self.calls.append((name, *argv))
        return subprocess.run([sys.executable, *argv[1:]], check=False).returncode


def test_line_magic_runs_a_command() -> None:
    called = Called()
    Magic(main=called.main)("plan 'my matrix' --json")
    assert called.calls == [("plan", "my matrix", "--json")]


def test_nonzero_exit_code_fails_the_cell() -> None:
    with pytest.raises(CommandFailed, match="`colablock plan demo` ended with exit code 1") as caught:
        Magic(main=Called(1).main)("plan demo")
    assert caught.value.code == 1


@pytest.mark.parametrize(("ended", "code"), [(SystemExit(2), 2), (SystemExit("message"), 1)])
def test_command_line_that_exits_fails_the_cell(ended: SystemExit, code: int) -> None:
    def main(_: Sequence[str]) -> int:
        raise ended

    with pytest.raises(CommandFailed) as caught:
        Magic(main=main)("plan --nonsense")
    assert caught.value.code == code


def test_help_does_not_fail_the_cell() -> None:
    def main(_: Sequence[str]) -> int:
        raise SystemExit

    Magic(main=main)("--help")


def test_cell_runs_as_a_script_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper.py").write_text("value = 'from beside'\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    cell = (
        "import json, sys, helper\n"
        "from pathlib import Path\n"
        "found = [__name__, sys.argv[1:], helper.value, Path(sys.argv[0]).name, 'é']\n"
        "Path('found.json').write_text(json.dumps(found))\n"
    )
    called = Called()
    Magic(run=called.run)("run demo -- --steps 3", cell)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found == ["__main__", ["--steps", "3"], "from beside", "cell.py", "é"]
    assert called.calls[0][:2] == ("demo", "python")
    assert not Path(str(called.calls[0][4])).exists()


def test_failing_script_fails_the_cell() -> None:
    with pytest.raises(CommandFailed, match="`colablock run demo` ended with exit code 3"):
        Magic(run=Called().run)("run demo", "raise SystemExit(3)\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plan demo", "takes no command but `run`"),
        ("", "takes no command but `run`"),
        ("run one two", "takes one name, not 2"),
        ("run 'one", "cannot be split into words"),
    ],
)
def test_invalid_cell_magic_is_refused(line: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Magic(run=Called().run)(line, "pass\n")


# A real kernel

SETUP = """
import json, sys
from pathlib import Path
from colablock.cli.notebook_magics import load_ipython_extension
from colablock.display.notebook import show
from colablock.display.progress import reporter_for
from colablock.environment.notebook_host import in_notebook
from colablock.planning.plan import Plan
from colablock.transaction.serialise import read_form, report_from_json
folder = Path(FOLDER)
plan = read_form(Plan, json.loads((folder / "plan-kernel-breaks-much.json").read_text()), "plan")
report = report_from_json(json.loads((folder / "report-failed.json").read_text()))
for _ in range(2):
    load_ipython_extension(get_ipython())
assert in_notebook()
assert "rich" not in sys.modules
"""

CELLS = {
    "plan": "plan",
    "progress": """
with reporter_for(None, notebook=True) as reporter:
    reporter.stage("Resolving demo")
    for number in range(50):
        reporter.resolving(f"name-{number}", number)
    reporter.step("install", 1, 1)
""",
    "shown and returned": "show(report)\nreport",
    "returned later": "report",
    "explained": "import colablock\nfound = colablock.explain('SomeError: nobody knows')\nfound",
    "told": """
from colablock.api.stack import tell
from colablock.api.values import Lines
from colablock.display.view import Document, Note
lines = Lines(["one"]).shown_as(lambda found: Document(blocks=tuple(map(Note, found))))
tell(lines)
lines
""",
    "told later": "lines",
    "noted": """
from dataclasses import replace
from colablock.display.notebook import told_in_cell
with reporter_for(None, notebook=True, told=told_in_cell()) as reporter:
    reporter.note("using ./x.toml, a copy")
noted = replace(plan, shadow="using ./x.toml, a copy", notes=("a note of the plan",))
show(noted)
show(replace(report, notes=("a note of the plan", "a note of its own")))
noted
""",
    "noted later": "noted",
    "magic": """
from colablock.cli.notebook_magics import Magic
import subprocess
run = lambda name, argv: print(name) or subprocess.run([sys.executable, *argv[1:]]).returncode
get_ipython().register_magic_function(Magic(run=run, main=lambda argv: 2), "line_cell", "colablock")
""",
    "cell of the last report": "%%colablock run\nprint(6 * 7)",
    "line that fails": "%colablock plan demo",
    "error": """
from colablock.errors import NoSolution
raise NoSolution("no candidate fits `x`", because=("a needs b",), hint="Ask for `c`")
""",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Return the outputs of each cell, run in a real kernel."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager  # noqa: PLC0415
    from jupyter_client.manager import AsyncKernelManager  # noqa: PLC0415

    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(argv=command, display_name=kernel_name, language="python")

    book = nbformat.v4.new_notebook()
    sources = [SETUP.replace("FOLDER", repr(str(CASES))), *CELLS.values()]
    book.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    manager = AsyncKernelManager(kernel_spec_manager=ThisPython(), **sockets())
    client = nbclient.NotebookClient(
        book, km=manager, timeout=PATIENCE, startup_timeout=PATIENCE, allow_errors=True
    )
    client.execute(cwd=str(tmp_path_factory.mktemp("notebook")))
    assert book.cells[0].outputs == []
    return {name: cell.outputs for name, cell in zip(CELLS, book.cells[1:], strict=True)}


Outputs = dict[str, list[dict[str, Any]]]


def test_plan_shows_itself_in_a_cell(outputs: Outputs) -> None:
    (shown,) = outputs["plan"]
    assert shown["data"]["text/html"].startswith('<div class="colablock">')
    assert shown["data"]["text/plain"].startswith("qlora-2024 (cu121) into the kernel: remove 8")


def test_progress_leaves_one_output(outputs: Outputs) -> None:
    (shown,) = outputs["progress"]
    assert shown["data"]["text/plain"].startswith("Done in ")
    assert "Resolving demo: 1 of 1" in shown["data"]["text/html"]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("shown and returned", "OSError: libcudart.so.12"),
        ("returned later", "OSError: libcudart.so.12"),
        ("explained", "SomeError: nobody knows"),
        ("told", "one"),
        ("told later", "one"),
    ],
)
def test_a_value_is_shown_once_in_its_cell(outputs: Outputs, cell: str, words: str) -> None:
    (shown,) = outputs[cell]
    is_result = cell.endswith("later")
    assert shown["output_type"] == ("execute_result" if is_result else "display_data")
    assert words in shown["data"]["text/html"]
    assert words in shown["data"]["text/plain"]


def test_a_note_is_said_once_in_a_cell(outputs: Outputs) -> None:
    for form in ("text/html", "text/plain"):
        said = [one["data"][form] for one in outputs["noted"]]
        notes = ("using ./x.toml, a copy", "a note of the plan", "a note of its own")
        assert [["".join(said).count(note) for note in notes], len(said)] == [[1, 1, 1], 4]
        assert "using ./x.toml, a copy" in said[0]
        assert all(note in outputs["noted later"][0]["data"][form] for note in notes[:2])


def test_cell_without_a_name_runs_in_the_last_environment(outputs: Outputs) -> None:
    assert outputs["magic"] == []
    text = "".join(output["text"] for output in outputs["cell of the last report"])
    assert text.split() == ["qlora-2024", "42"]


def test_failed_command_and_error_show_no_traceback(outputs: Outputs) -> None:
    (failed,) = outputs["line that fails"]
    assert failed["traceback"] == ["`colablock plan demo` ended with exit code 2"]
    (error,) = outputs["error"]
    first, *others = error["traceback"]
    assert first.split() == ["error:", "no", "candidate", "fits", "`x`", "[no-solution]"]
    assert others == ["  because a needs b", "", "hint: Ask for `c`"]


def test_errors_are_unchanged_until_displays_are_registered() -> None:
    assert not hasattr(ColablockError, "_render_traceback_")
