from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.snapshot import snapshot_of
from colablock.errors import InvalidInput, NotFound, Unmet
from colablock.matrix.model import Verify
from colablock.planning.plan import Action, Breakage, Plan, Remedy, Step, Target
from colablock.verification.verify import Check, Report, files_checks, prove, run_in
from tests.support.runtime import Stub, build_site, make_venv, site_of
from tests.support.timing import PATIENCE, state_of, until
from tests.support.trees import listing

pytestmark = pytest.mark.interpreter

VANISH = "import os; print('oh', flush=True); os._exit(3)\n"  # Python would lose what is buffered
SEGFAULT = "import ctypes; ctypes.string_at(0)\n"
ENVIRONMENT = """\
import os, sys
assert os.listdir(os.getcwd()) == ["output"], os.getcwd()
assert sys.stdin.read() == ""
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    assert os.environ[name] == "1", name
for name in ("MPLBACKEND", "PYTHONPATH", "UV_CONSTRAINT", "PIP_INDEX_URL"):
    assert name not in os.environ, name
assert os.environ["LD_LIBRARY_PATH"] == "/gpu"
assert os.environ["HF_HOME"].startswith(os.path.dirname(os.getcwd()))
print("noise on standard output")
"""

STUBS = (
    Stub(
        name="good",
        version="1.5",
        requires=("lib>=2", "lib[more]>=2", "absent; python_version < '3'", "not ! a requirement"),
        files={"good/__init__.py": "__version__ = '1.5'\nclass Thing:\n    inner = 1\n"},
    ),
    Stub(
        name="lib",
        version="2.0",
        requires=("bonus>=0.9; extra == 'more'", "nobody; extra == 'less'"),
        extras=("more", "less"),
    ),
    Stub(name="bonus", version="1.0rc1"),
    Stub(name="bad", version="1", files={"bad/__init__.py": "def f():\n    import nowhere\nf()\n"}),
    Stub(name="leaves", version="1", files={"leaves/__init__.py": "raise SystemExit('no GPU')\n"}),
    Stub(name="crash", version="1", files={"crash/__init__.py": SEGFAULT}),
    Stub(name="vanish", version="1", files={"vanish/__init__.py": VANISH}),
    Stub(name="hang", version="1", files={"hang/__init__.py": "import time; time.sleep(600)\n"}),
    Stub(name="around", version="1", files={"around/__init__.py": ENVIRONMENT}),
    Stub(name="index", version="1", files={"index/__init__.py": "mine = True\n"}),
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    venv = tmp_path_factory.mktemp("target") / "env"
    executable = make_venv(venv, sys.executable)
    build_site(site_of(venv), STUBS)
    for name, text in {
        "fine": "exit 0",
        "fails": "echo went wrong >&2; exit 7",
        "sleeps": "sleep 600",
    }.items():
        (venv / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (venv / "bin" / name).chmod(0o755)
    return executable


def proved(
    python: Path,
    *,
    environ: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
    **verify: tuple[object, ...],
) -> dict[str, Check]:
    wanted = Verify(**verify)  # type: ignore[arg-type]
    checks = prove(python, verify=wanted, pins={}, environ=environ or os.environ, timeout=timeout)
    return {check.subject: check for check in checks}


def test_imports_pass_with_version_and_attribute(python: Path) -> None:
    checks = proved(python, imports=("good", "good:Thing.inner", "bonus"))
    assert [check.passed for check in checks.values()] == [True, True, True]
    assert checks["good"].detail == "1.5"
    assert checks["good"].seconds > 0


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("bad", "ModuleNotFoundError: No module named 'nowhere'"),
        ("good:Thing.missing", "has no attribute 'missing'"),
        ("nowhere.at_all", "No module named 'nowhere'"),
        ("leaves", "SystemExit: no GPU"),
    ],
)
def test_a_failed_import_has_the_end_of_its_traceback(python: Path, name: str, detail: str) -> None:
    check = proved(python, imports=(name, "good"))[name]
    assert not check.passed
    assert detail in check.detail.splitlines()[-1]
    assert len(check.detail.splitlines()) <= 8


@pytest.mark.parametrize(
    ("has_gpu", "error", "outcome"),
    [
        (False, "NotImplementedError", (True, True)),
        (True, "NotImplementedError", (False, False)),
        (False, "ImportError", (False, False)),
        (None, "NotImplementedError", (False, False)),  # nothing has imported torch
    ],
)
def test_an_import_that_refuses_a_machine_without_a_gpu_is_skipped(
    tmp_path: Path, has_gpu: bool | None, error: str, outcome: tuple[bool, bool]
) -> None:
    executable = make_venv(tmp_path / "env", sys.executable)
    torch = f"class cuda:\n    is_available = staticmethod(lambda: {has_gpu})\n"
    site = build_site(site_of(tmp_path / "env"), [Stub(name="torch", version="2")])
    (site / "torch" / "__init__.py").write_text(torch)
    (site / "kernels.py").write_text(f"raise {error}('You need a GPU.')\n")
    names = ("kernels",) if has_gpu is None else ("torch", "kernels")
    check = proved(executable, imports=names)["kernels"]
    assert (check.passed, check.skipped) == outcome
    assert "You need a GPU." in check.detail
    assert check.detail.startswith("skipped: there is no GPU here, and kernels refuses") is check.skipped


def test_an_import_that_crashes_is_named_and_the_others_run(python: Path) -> None:
    checks = proved(python, imports=("good", "crash", "bonus", "vanish", "lib"))
    assert {name: check.passed for name, check in checks.items()} == {
        "good": True,
        "crash": False,
        "bonus": True,
        "vanish": False,
        "lib": True,
    }
    assert "SIGSEGV" in checks["crash"].detail
    assert checks["vanish"].detail == "the process ended with status 3\noh"


def test_an_import_that_hangs_is_ended(python: Path) -> None:
    started = time.monotonic()
    checks = proved(python, imports=("hang", "good"), timeout=1.5)
    assert not checks["hang"].passed
    assert "1.5 seconds" in checks["hang"].detail
    assert checks["good"].passed
    assert time.monotonic() - started < PATIENCE  # it sleeps for longer


def test_proofs_have_the_variables_of_a_training_process(python: Path) -> None:
    environ = {
        **os.environ,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": "/nowhere",
        "UV_CONSTRAINT": "/nowhere",
        "PIP_INDEX_URL": "http://nowhere",
        "LD_LIBRARY_PATH": "/gpu",
    }
    check = proved(python, imports=("around",), environ=environ)["around"]
    assert check.passed, check.detail


def test_modules_of_colablock_do_not_hide_modules_of_the_target(python: Path) -> None:
    assert proved(python, imports=("index:mine",))["index:mine"].passed


def test_proofs_leave_nothing_in_the_environment(python: Path) -> None:
    before = listing(python.parents[1])
    proved(python, imports=("good", "lib", "bad"), commands=(("fine",),))
    assert listing(python.parents[1]) == before


def test_bytecode_is_written_if_requested(tmp_path: Path) -> None:
    executable = make_venv(tmp_path / "env", sys.executable)
    site = build_site(site_of(tmp_path / "env"), [Stub(name="good", version="1")])
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    prove(executable, verify=Verify(imports=("good",)), pins={}, environ=environ, bytecode=(str(site),))
    assert list((site / "good" / "__pycache__").glob("*.pyc"))


def test_commands_come_from_the_environment(python: Path) -> None:
    commands = (("fine", "--help"), ("fails",), ("sh", "-c", "true"), ("python", "-c", "import good"))
    checks = proved(python, commands=commands)
    assert {name: check.passed for name, check in checks.items()} == {
        "fine --help": True,
        "fails": False,
        "sh -c true": False,
        "python -c import good": True,
    }
    assert checks["fails"].detail == "the process ended with status 7\nwent wrong"
    assert "no command `sh`" in checks["sh -c true"].detail


def test_a_command_that_nothing_can_wait_for_is_ended(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"

    def refused(_: object) -> None:
        until(started.is_symlink)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("colablock.verification.worker.Thread.start", refused)
    code = f"import os, time; os.symlink(str(os.getpid()), {str(started)!r}); time.sleep(60)"
    with pytest.raises(RuntimeError, match="new thread"):
        proved(python, commands=(("python", "-c", code),))
    assert state_of(int(started.readlink().name)) == "Z"


def test_commands_run_beside_the_imports(python: Path) -> None:
    """The import waits for a file of the command, which starts beside it."""
    waits = f"import os, time\nuntil = time.monotonic() + {PATIENCE}\n"
    waits += "while not os.path.exists('../went') and time.monotonic() < until: time.sleep(0.02)\n"
    site = site_of(python.parents[1])
    (site / "waits.py").write_text(f"{waits}assert os.path.exists('../went')\n")
    command = ("python", "-c", "import os; open('../went', 'x'); assert os.listdir() == ['output']")
    try:
        checks = proved(python, imports=("waits",), commands=(command,))
    finally:
        (site / "waits.py").unlink()
    assert [check.passed for check in checks.values() if check.kind in ("import", "command")] == [True, True]


LAUNCH = """\
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--config_file", required=True)
for name, value in {"num_processes": "1", "num_machines": "1", "machine_rank": "0"}.items():
    parser.add_argument(f"--{name}", choices=[value], required=True)
for name in ("mixed_precision", "dynamo_backend"):
    parser.add_argument(f"--{name}", choices=["no"], required=True)
parser.add_argument("--num_cpu_threads_per_process", type=int, required=True)
parser.add_argument("--cpu", action="store_true", required=True)
parser.add_argument("script")
given = parser.parse_args()
with open(given.config_file) as config:
    assert json.load(config)["use_cpu"] is True
with open(given.script) as script:
    assert script.read() == ""
"""


def test_accelerate_launch_is_proven_by_what_training_runs(tmp_path: Path) -> None:
    launch = f"import argparse, json\nassert __name__ == '__main__'\n{LAUNCH}"
    files = {
        "accelerate/__init__.py": "",
        "accelerate/commands/__init__.py": "",
        "accelerate/commands/launch.py": launch,
    }
    executable = make_venv(tmp_path / "env", sys.executable)
    site = build_site(site_of(tmp_path / "env"), [Stub(name="accelerate", version="1", files=files)])
    script = executable.with_name("accelerate")
    script.write_text(f"#!{executable}\nraise SystemExit('the script was run')\n")
    script.chmod(0o755)
    help_text = ("accelerate", "launch", "--help")
    for commands in ((help_text,), (help_text, ("accelerate", "launch", "--no-such-option"))):
        checks = [
            check for check in proved(executable, commands=commands).values() if check.kind == "command"
        ]
        assert [check.passed for check in checks] == [True, False][: len(commands)]
        assert [check.subject for check in checks] == [" ".join(command) for command in commands]
        ran = "run as `python -m accelerate.commands.launch`"
        assert [check.detail.splitlines()[0] for check in checks] == [
            f"{ran} with the arguments of training",
            ran,
        ][: len(commands)]

    def told() -> str:
        check = proved(executable, commands=(help_text,))["accelerate launch --help"]
        assert not check.passed
        return check.detail

    # A script that could not start, and one of another interpreter, are run themselves.
    script.write_text(f"#!{tmp_path}/away/python\n")
    assert "cannot be run: No such file or directory" in told()
    script.write_text("#!/bin/sh\necho another; exit 1\n")
    assert "another" in told()
    script.chmod(0o644)
    assert "no command `accelerate`" in told()
    script.unlink()
    assert "no command `accelerate`" in told()
    (site / "accelerate" / "commands" / "launch.py").unlink()
    assert "no command `accelerate`" in told()


def test_accelerate_in_the_working_folder_proves_nothing(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "accelerate" / "commands" / "launch.py"
    module.parent.mkdir(parents=True)
    module.touch()
    monkeypatch.chdir(tmp_path)
    check = proved(python, commands=(("accelerate", "launch", "--help"),))["accelerate launch --help"]
    assert (check.passed, "no command `accelerate`" in check.detail) == (False, True)


def test_a_command_that_hangs_is_ended(python: Path) -> None:
    check = proved(python, commands=(("sleeps",),), timeout=0.5)["sleeps"]
    assert not check.passed
    assert "0.5 seconds" in check.detail


def pins(**versions: str) -> dict[object, str]:
    return {canonicalize_name(name): version for name, version in versions.items()}


def test_versions_are_read_in_the_target(python: Path) -> None:
    wanted = pins(good="1.5.0", lib="3.0", nobody="1")
    checks = prove(python, verify=Verify(), pins=wanted, environ=os.environ)  # type: ignore[arg-type]
    found = {check.subject: check for check in checks if check.kind == "version"}
    assert found["good"].passed
    assert found["lib"].detail == "expected 3.0, but 2.0 is installed"
    assert found["nobody"].detail == "expected 1, but it is not installed"


REQUIREMENTS = [
    pytest.param((), (), "", id="all met"),
    pytest.param(
        (Stub(name="good", version="1.5", requires=("lib>=3",)),),
        (),
        "good 1.5 requires `lib>=3`, but 2.0 is installed",
        id="other version",
    ),
    pytest.param(
        (Stub(name="good", version="1.5", requires=("lib[less]",)),),
        (),
        "good 1.5 requires `lib[less]`, which requires `nobody; extra == 'less'`, but it is not installed",
        id="of an extra",
    ),
    pytest.param(
        (Stub(name="good", version="1.5", requires=("lib[less]",)),),
        (("lib", "nobody; extra == 'less'"),),
        "",
        id="of an extra, expected",
    ),
    pytest.param(
        (Stub(name="good", version="1.5", requires=("lib>=3",)),), (("good", "lib>=3"),), "", id="expected"
    ),
]


@pytest.mark.parametrize(("changes", "expected", "detail"), REQUIREMENTS)
def test_requirements_of_the_pins_are_met(
    tmp_path: Path, changes: tuple[Stub, ...], expected: tuple[tuple[str, str], ...], detail: str
) -> None:
    executable = make_venv(tmp_path / "env", sys.executable)
    build_site(site_of(tmp_path / "env"), [*STUBS[:3], *changes])
    checks = prove(
        executable,
        verify=Verify(),
        pins=pins(good="1.5"),  # type: ignore[arg-type]
        environ=os.environ,
        expected_unmet=expected,
    )
    (check,) = (check for check in checks if check.kind == "requirements")
    assert (check.passed, check.detail) == (not detail, detail)


LEFT = Breakage(
    name=canonicalize_name("third"),
    version="1",
    requirement="lib[more]<3",
    direct=True,
    because=(),
    remedy=Remedy.LEAVE,
)
WHOLE = [("3 other distributions", True, "")]
BROKEN = [("third", False, "third 1 requires `lib[more]<3`, but 3.0 is installed")]
BROKEN_EXTRA = [
    (
        "third",
        False,
        "third 1 requires `lib[more]<3`, which requires `bonus>=2; extra == 'more'`, but 1.0rc1 is installed",
    )
]


@pytest.mark.parametrize(
    ("stub", "changed", "breakages", "found"),
    [
        (None, "lib", (), WHOLE),
        (Stub(name="lib", version="3.0"), "lib", (), BROKEN),
        (Stub(name="lib", version="3.0"), "lib", (replace(LEFT, remedy=Remedy.REPAIR),), BROKEN),
        (Stub(name="lib", version="3.0"), "lib", (LEFT,), [("2 other distributions", True, "")]),
        # This interpreter sees another `lib` than the proofs do: not by this change.
        (Stub(name="lib", version="3.0"), "good", (), WHOLE),
        (Stub(name="lib", version="2.5", requires=("bonus>=2; extra == 'more'",)), "lib", (), BROKEN_EXTRA),
        # `fourth` asks for `lib[less]`, which was unmet before.
        (Stub(name="lib", version="2.5", requires=("gone; extra == 'less'",)), "lib", (), WHOLE),
    ],
    ids=["whole", "broken", "not repaired", "listed", "not by the plan", "broken extra", "unmet extra"],
)
def test_a_change_breaks_no_other_distribution_that_is_not_listed(
    tmp_path: Path,
    stub: Stub | None,
    changed: str,
    breakages: tuple[Breakage, ...],
    found: list[tuple[str, bool, str]],
) -> None:
    executable = make_venv(tmp_path / "env", sys.executable)
    beside = [
        Stub(name="third", version="1", requires=("lib[more]<3", "gone")),
        Stub(name="fourth", version="1", requires=("lib[less]; python_version > '3'",)),
    ]
    site = build_site(site_of(tmp_path / "env"), [*STUBS[:3], *beside])
    before = snapshot_of(executable, environ=os.environ)
    if stub is not None:
        shutil.rmtree(site / f"{stub.name}-2.0.dist-info")
        build_site(site, [stub])
    plan = Plan(
        matrix="m",
        matrix_digest="",
        variant=None,
        target=Target.KERNEL,
        why_target="",
        python=str(executable),
        python_version="3",
        steps=(Step(action=Action.REPLACE, name=canonicalize_name(changed), reason=""),),
        breakages=breakages,
    )
    checks = prove(
        executable,
        verify=Verify(),
        pins=pins(good="1.5", lib=stub.version if stub is not None else "2.0"),  # type: ignore[arg-type]
        environ=os.environ,
        plan=plan,
        before=before,
    )
    told = [check for check in checks if check.kind == "breakage"]
    assert [(check.subject, check.passed, check.detail) for check in told] == found


def test_missing_and_replaced_files_are_named(tmp_path: Path) -> None:
    files = {f"mine/{number}.py": "x" for number in range(8)}
    stubs = [
        Stub(name="Mine.Own", version="1", files={**files, "both.py": "1"}),
        Stub(name="too", version="1", files={"both.py": "22", "too/__pycache__/x.pyc": "x"}),
        Stub(name="of-the-image", version="1", files={"of_the_image/big.py": "x"}),
    ]
    site = build_site(tmp_path, stubs)
    for name in ("Mine_Own", "too"):
        record = site / f"{name}-1.dist-info" / "RECORD"
        rows = [line for line in record.read_text().splitlines() if "INSTALLER" not in line]
        record.write_text("\n".join(rows))
        (site / f"{name}-1.dist-info" / "INSTALLER").write_text("colablock\n")
    stack = pins(mine_own="1", too="1", of_the_image="1")
    (site / "too" / "__pycache__" / "x.pyc").unlink()
    (site / "of_the_image" / "big.py").unlink()
    (whole,) = files_checks([str(site)], stack)  # type: ignore[arg-type]
    assert (whole.kind, whole.subject, whole.passed) == ("files", "2 distributions", True)
    for path in files:
        (site / path).unlink()
    (site / "too" / "__init__.py").write_text("")
    lost, replaced = files_checks([str(site)], stack)  # type: ignore[arg-type]
    assert (lost.subject, lost.passed, replaced.passed) == ("mine-own", False, False)
    assert lost.detail.splitlines() == [*[f"`mine/{n}.py` is missing" for n in range(5)], "and 3 more"]
    assert (replaced.subject, replaced.detail) == ("too", "`too/__init__.py` has 0 bytes instead of 18")


TORCH = """\
class cuda:
    @staticmethod
    def is_available():
        return False
"""
ROPE_KNOWN = "ROPE_INIT_FUNCTIONS = {'llama3': None}\n"


@pytest.mark.parametrize(
    ("stubs", "capability", "outcome", "detail"),
    [
        ((), "nf4", (False, False), "No module named 'torch'"),
        (
            (
                Stub(name="torch", version="2.4", files={"torch/__init__.py": TORCH}),
                Stub(name="bitsandbytes", version="0.43.3"),
            ),
            "nf4",
            (True, True),
            "no GPU here, and bitsandbytes 0.43.3",
        ),
        ((), "llama3-rope", (False, False), "No module named 'transformers'"),
        ((), "telepathy", (False, False), "KeyError: 'telepathy'"),
    ],
)
def test_a_capability_is_proven_or_has_a_reason(
    tmp_path: Path, stubs: tuple[Stub, ...], capability: str, outcome: tuple[bool, bool], detail: str
) -> None:
    executable = make_venv(tmp_path / "env", sys.executable)
    build_site(site_of(tmp_path / "env"), stubs)
    check = proved(executable, capabilities=(capability,))[capability]
    assert (check.kind, check.passed, check.skipped) == ("capability", *outcome)
    assert detail in check.detail


def test_progress_is_reported(python: Path) -> None:
    class Notes(Reporter):
        def __init__(self) -> None:
            self.steps: list[tuple[str, int, int]] = []

        def step(self, text: str, done: int, total: int, *, is_sized: bool = False) -> None:
            assert not is_sized
            self.steps.append((text, done, total))

    told = Notes()
    prove(python, verify=Verify(imports=("good", "bad")), pins={}, environ=os.environ, reporter=told)
    assert told.steps == [("import good", 1, 2), ("import bad", 2, 2)]
    # It counts as the report does: files, versions and requirements, too.
    pins = {canonicalize_name("good"): "1"}
    told = Notes()
    checks = prove(
        python, verify=Verify(imports=("good",)), pins=pins, environ=os.environ, reporter=told, earlier=1
    )
    assert told.steps == [("versions", 3, 4), ("import good", 4, 4)]
    assert len(checks) == 3


def test_an_interpreter_that_does_not_run_is_an_error() -> None:
    with pytest.raises(Unmet, match="/no/such/python"):
        prove("/no/such/python", verify=Verify(), pins={}, environ=os.environ)


def test_a_report_passes_if_all_its_checks_pass() -> None:
    checks = (Check(kind="import", subject="a", passed=True), Check(kind="import", subject="b", passed=False))
    report = Report(matrix="m", variant=None, target="env", python="p", python_version="3", checks=checks[:1])
    assert report.passed
    assert not Report(
        matrix="m", variant=None, target="env", python="p", python_version="3", checks=checks
    ).passed


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["fine"], 0),
        (["fails"], 7),
        (["python", "-c", "import good, os, sys; sys.exit('MPLBACKEND' in os.environ)"], 0),
        (["python", "-c", "import os, sys; sys.exit(sys.prefix != os.environ['VIRTUAL_ENV'])"], 0),
    ],
)
def test_a_command_runs_in_the_environment(python: Path, argv: list[str], status: int) -> None:
    assert run_in(python, argv, {**os.environ, "MPLBACKEND": "x"}) == status


def test_a_missing_command_is_named(python: Path) -> None:
    with pytest.raises(NotFound, match="no-such-command"):
        run_in(python, ["no-such-command"], os.environ)


@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        ("/etc/passwd/x", NotFound, "/etc/passwd/x"),
        ("x" * 300, InvalidInput, "File name too long"),
        ("plain", InvalidInput, "Exec format error"),
    ],
)
def test_a_command_that_cannot_be_run_has_a_reason(
    command: str, error: type[InvalidInput], words: str, python: Path
) -> None:
    plain = python.parent / "plain"
    plain.write_text("exit 0\n")
    plain.chmod(0o755)
    with pytest.raises(error, match=words):
        run_in(python, [command], os.environ)


def test_a_command_ended_by_a_signal_has_the_status_of_a_shell(python: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    assert run_in(python, ["python3", "-c", code], os.environ) == 128 + signal.SIGTERM


SAVES = """\
import pathlib, sys, time
try:
    pathlib.Path(sys.argv[1], "started").touch()
    time.sleep(600)
except KeyboardInterrupt:
    time.sleep(1)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(9)
"""
RUNS = """\
import os, sys
from colablock.verification.verify import run_in
sys.exit(run_in(sys.argv[1], sys.argv[2:], os.environ))
"""


def test_an_interrupted_command_may_finish(python: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNS, str(python), "python", "-c", SAVES, str(tmp_path)]
    with subprocess.Popen(command, start_new_session=True) as process:
        until((tmp_path / "started").exists)
        until(lambda: state_of(process.pid) == "S")  # it waits for the command
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) == 9
    assert (tmp_path / "saved").exists()
