from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import colablock
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.cli.main import main
from colablock.cli.notebook_magics import Magic
from colablock.display.run_view import explanation_document
from colablock.display.text import to_text
from colablock.errors import InvalidInput
from colablock.operations.failure import explain_failure
from colablock.operations.session import Session
from colablock.training.runs.crash import Explanation
from colablock.transaction import apply_record
from colablock.transaction.apply_record import ApplyRecord
from tests.support.runtime import Stub, Venv

UNKNOWN = "it is none of the failures that colablock knows"
TEXT = """step 1
Traceback (most recent call last):
  File "/x/train.py", line 9, in <module>
    main()
KeyError: 'qwen3'
"""


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    return {**os.environ, "COLABLOCK_HOME": str(tmp_path / "home"), "COLUMNS": "100", "CI": "true"}


def typed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_file_is_explained(
    tmp_path: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "train.log"
    log.write_text(TEXT)
    assert main(["explain", str(log)], environ) == 0
    shown = capsys.readouterr().out
    assert "the installed transformers does not support this model" in shown
    assert "its type is `qwen3`" in shown
    assert "Use a matrix with a newer transformers (the matrix `qlora-2026-12` has" in " ".join(shown.split())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_log_of_powershell_is_explained(
    encoding: str, tmp_path: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "my log.txt"
    log.write_bytes(TEXT.replace("\n", "\r\n").encode(encoding))
    assert main(["explain", str(log)], environ) == 0
    assert "its type is `qwen3`" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_log_with_zeros_is_explained(
    place: str, tmp_path: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file has them at its end after a power failure, and before it if it was cut while it was written."""
    zeros, log = bytes(4096), tmp_path / "log.txt"
    log.write_bytes(zeros + TEXT.encode() if place == "before" else TEXT.encode() + zeros)
    assert main(["explain", str(log)], environ) == 0
    assert "its type is `qwen3`" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["-"]])
def test_standard_input_is_explained(
    argv: list[str],
    environ: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed(monkeypatch, b"x\n" * 400_000 + TEXT.encode() + b"\xff")
    assert main(["explain", "--json", *argv], environ) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cause"], found["line"]) == ("unknown-architecture", "KeyError: 'qwen3'")
    assert found["details"] == ["its type is `qwen3`"]


def test_the_versions_are_those_where_the_program_ran(
    environ: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "site" / "transformers-4.46.3.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    typed(monkeypatch, TEXT.encode())
    assert main(["explain"], environ) == 0
    assert "transformers 4.46.3 is installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [("none.log", "cannot read `none.log`"), (".", "Is a directory"), ("empty.log", "it is empty")],
)
def test_what_cannot_be_read_is_said(
    name: str,
    words: str,
    environ: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(environ["COLABLOCK_HOME"]).parent
    monkeypatch.chdir(folder)
    (folder / "empty.log").write_text("\n")
    assert main(["explain", name], environ) == 2
    assert words in capsys.readouterr().err


def test_the_function_takes_text_and_exceptions() -> None:
    found = colablock.explain("ValueError: Attempting to unscale FP16 gradients.", quiet=True)
    assert isinstance(found, Explanation)
    assert found.cause == "fp16-parameters"
    assert colablock.explain(ValueError("Attempting to unscale FP16 gradients.")).cause == found.cause
    own = colablock.explain(colablock.ColablockError("no", hint="Do it"), quiet=True)
    assert (own.means, own.advice) == ("no", ("Do it",))


def test_the_magic_explains_the_last_exception(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("last_exc", "last_value"):
        monkeypatch.delattr(sys, name, raising=False)
    with pytest.raises(InvalidInput, match="no cell of this notebook"):
        Magic()("explain")
    monkeypatch.setattr(sys, "last_value", KeyError("qwen3"), raising=False)
    Magic()("explain")
    assert "does not support this model" in capsys.readouterr().out


def test_an_unknown_cause_is_said(
    environ: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, TEXT.replace("qwen3", "kwen").encode())
    assert main(["explain"], environ) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("KeyError: 'kwen'\ncause: unknown: it is none of the failures")
    assert "\nend of the traceback\n" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # A line alone is said once, and so is the cause.
        ("SomeError: nobody knows", ["SomeError: nobody knows", f"cause: unknown: {UNKNOWN}"]),
        (
            "step 1\nstep 2",
            [f"the cause of this failure is unknown: {UNKNOWN}", "end of the log", "step 1", "step 2"],
        ),
        (
            "Cell In[3], line 1\n----> 1 f()\n\nSomeError: nobody knows",
            [
                "SomeError: nobody knows",
                f"cause: unknown: {UNKNOWN}",
                "end of the traceback",
                "Cell In[3], line 1",
                "----> 1 f()",
                "SomeError: nobody knows",
            ],
        ),
    ],
)
def test_an_unknown_cause_is_said_once(text: str, shown: list[str]) -> None:
    found = to_text(explanation_document(colablock.explain(text, quiet=True)), width=100)
    assert [line.strip() for line in found.splitlines() if line.strip()] == shown


def applied(venv: Venv, home: Path, name: str, **pins: str) -> None:
    """Record that the matrix *name* was applied to *venv*, with these *pins*."""
    record = ApplyRecord(
        name=name,
        key="",
        target="env",
        python=venv.python,
        prefix=str(venv.folder),
        sites=(str(venv.site),),
        state="",
        matrix_digest="",
        variant=None,
        pins={canonicalize_name(one): version for one, version in pins.items()},
    )
    apply_record.save(record, home)


def test_the_environment_is_that_of_the_text_or_of_the_last_apply(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    home, session = tmp_path / "home", Session(environ=environ)
    venvs = [Venv.make(tmp_path / str(at), Stub(name="peft", version=f"0.{at}")) for at in (1, 2)]
    for venv in venvs:
        applied(venv, home, f"tiny-{venv.folder.name}")
        os.utime(home / "applied" / f"tiny-{venv.folder.name}.json", (int(venv.folder.name),) * 2)
    text = "{where}ModuleNotFoundError: No module named 'transformers'"
    frame = f'Traceback (most recent call last):\n  File "{venvs[0].folder}/lib/x.py", line 1, in f\n'
    for where, version in (("", "0.2"), (frame, "0.1")):
        found = explain_failure(session, text.format(where=where))
        assert f"peft {version} is installed" in "\n".join(found.details)
        assert f"colablock apply tiny-{version[-1]}`" in found.advice[0]


ARGUMENT = "TypeError: SFTTrainer.__init__() got an unexpected keyword argument 'max_seq_length'"


@pytest.mark.parametrize(
    ("name", "text", "advised"),
    [
        # What was applied is there: applying it again mends nothing.
        ("qlora-2026", ARGUMENT, "Change the script: "),
        # A matrix without the package at fault.
        ("my-stack", ARGUMENT, "Change the script: "),
        ("qlora-2026", "ModuleNotFoundError: No module named 'trl'", "colablock run qlora-2026 -- python"),
    ],
)
def test_an_apply_is_advised_only_if_it_mends(
    name: str, text: str, advised: str, environ: Mapping[str, str], tmp_path: Path
) -> None:
    stubs = [Stub(name="trl", version="1.16.0"), Stub(name="ftfy", version="6.0")]
    venv = Venv.make(tmp_path / "env", *stubs)
    pins = {"trl": "1.16.0"} if name == "qlora-2026" else {"ftfy": "6.0"}
    applied(venv, tmp_path / "home", name, **pins)
    folder = tmp_path / "matrices"
    folder.mkdir()
    (folder / "my-stack.toml").write_text('schema = 1\nname = "my-stack"\nrequirements = ["ftfy"]\n')
    more = {**environ, "COLABLOCK_MATRICES": str(folder)}
    found = "\n".join(explain_failure(Session(environ=more), text).advice)
    assert "colablock apply" not in found
    assert found.startswith(advised) or f"`{advised}" in found


NMS = """Traceback (most recent call last):
  File "{site}/torchvision/ops.py", line 7, in <module>
RuntimeError: operator torchvision::nms does not exist
"""


def in_an_applied_env(home: Path, folder: Path, *names: str) -> None:
    """Record that qlora-2026 was applied to an environment with *names*, and is there as it was."""
    venv = Venv.make(folder, *(Stub(name=one, version="2.4") for one in names))
    applied(venv, home, "qlora-2026", **dict.fromkeys(names, "2.4"))


def test_versions_of_another_machine_are_not_known(environ: Mapping[str, str], tmp_path: Path) -> None:
    """A log of Colab is explained on a machine where a matrix was applied, which has not mended it."""
    in_an_applied_env(tmp_path / "home", tmp_path / "env", "torch")
    for site in (
        "/usr/local/lib/python3.7/dist-packages",
        "C:\\ai\\env\\Lib\\site-packages",
        "~/none/site-packages",
    ):
        found = explain_failure(Session(environ=environ), NMS.format(site=site))
        named = str(Path(site).expanduser())
        assert found.details == (
            f"the versions are not known: the packages in {named} are not on this machine",
        )
        assert "colablock apply qlora-" in found.advice[0]


def test_versions_are_read_where_the_files_of_the_text_are(
    environ: Mapping[str, str], tmp_path: Path
) -> None:
    in_an_applied_env(tmp_path / "home", tmp_path / "env", "torch")
    conda = Venv.make(tmp_path / "conda", Stub(name="torch", version="2.5.1"))
    found = explain_failure(Session(environ=environ), NMS.format(site=conda.site))
    assert found.details[0].startswith("torch 2.5.1 is installed")
    assert "colablock apply qlora-" in found.advice[0]


def test_a_guessed_environment_is_called_one(environ: Mapping[str, str], tmp_path: Path) -> None:
    """A message alone does not say where the program ran, and the stack of the last apply is whole."""
    in_an_applied_env(tmp_path / "home", tmp_path / "env", "numpy")
    session = Session(environ=environ)
    found = explain_failure(
        session, "ValueError: numpy.dtype size changed, may indicate binary incompatibility"
    )
    assert found.details == (
        "numpy 2.4 is installed",
        "the text does not say where the program ran: qlora-2026 was applied last",
    )
    assert found.advice == (
        "In a notebook, restart the kernel: the old numpy stays loaded",
        "If it ran in another environment, start it with `colablock run qlora-2026 -- python YOUR_SCRIPT.py`",
    )
    installer = explain_failure(session, "error: externally-managed-environment")
    assert "`colablock apply qlora-2026 --into env`" in installer.advice[0]


def test_a_missing_package_names_the_matrix_that_has_it(environ: Mapping[str, str], tmp_path: Path) -> None:
    in_an_applied_env(tmp_path / "home", tmp_path / "env", "transformers", "bitsandbytes")
    session = Session(environ=environ)
    found = explain_failure(session, "ModuleNotFoundError: No module named 'unsloth'")
    assert "colablock apply qlora-2026-unsloth`" in found.advice[0]
    text = "importlib.metadata.PackageNotFoundError: No package metadata was found for bitsandbytes"
    assert "colablock run qlora-2026 -- python" in explain_failure(session, text).advice[0]


def test_an_exception_is_of_this_environment(environ: Mapping[str, str], tmp_path: Path) -> None:
    in_an_applied_env(tmp_path / "home", tmp_path / "env", "transformers")
    error = "ModuleNotFoundError: No module named 'transformers'"
    found = explain_failure(Session(environ=environ), error, is_here=True)
    assert found.details[1].startswith("transformers is not installed; the matrix ")


def test_without_arguments_the_last_exception_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("last_exc", "last_value"):
        monkeypatch.delattr(sys, name, raising=False)
    with pytest.raises(InvalidInput, match="no cell of this notebook has raised an exception yet"):
        colablock.explain()
    monkeypatch.setattr(sys, "last_value", KeyError("qwen3"), raising=False)
    assert colablock.explain(quiet=True).cause == "unknown-architecture"


def test_the_explanation_of_an_own_error_is_shown_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens no session, which is what tells a notebook how to show values."""
    told: list[bool] = []
    monkeypatch.setattr("colablock.api.stack.register_displays", lambda: told.append(True))
    colablock.explain(InvalidInput("no"), quiet=True)
    assert told
