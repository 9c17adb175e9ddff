"""Names and ranges of a request are judged before anything is resolved, and a contradiction is said once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from colablock._common.reporter import Reporter
from colablock._vendor.packaging.utils import NormalizedName
from colablock.errors import ColablockError, ExitCode, NoSolution
from colablock.operations.lock import LockResult, lock_matrix
from colablock.operations.plan import plan_change
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions, LockOptions
from tests.support.fixtures import world_fixture
from tests.support.wheels import make_wheel
from tests.support.world import World

RUNTIME = "colab-2026.08-gpu"
MATRIX = """\
schema = 1
name = "tiny"
requirements = ["shapes>=2", "colours>=2"]

[constraints]
lines = { version = "<3", why = "three are too many" }

[variants.cuda]
summary = "with a card"

[variants.cpu]
summary = "without"
"""
SAME = {
    "py3-none-any": ("1.0", "2.0", "3.0"),
    # Python 3.12 has a file of 0.9, and the others do not.
    "cp312-cp312-manylinux_2_17_x86_64": ("0.9",),
}


def fill(folder: Path) -> None:
    """Write an index and a matrix."""
    index = folder / "index"
    for tag, versions in SAME.items():
        for version in versions:
            make_wheel(index, "colours", version, tag=tag)
    make_wheel(index, "shapes", "2.0", requires=["colours"])
    make_wheel(index, "lines", "1.0")
    make_wheel(index, "dull", "1.0", requires=["colours<2"])
    make_wheel(index, "timid", "1.0", requires=["colours<2; python_version >= '3.8' and os_name == 'posix'"])
    make_wheel(index, "marked", "1.0", requires=["colours<2; python_version >= '3.13'"])
    make_wheel(index, "old", "1.0", tag="cp310-cp310-manylinux_2_17_x86_64")
    make_wheel(index, "ancient", "1.0", tag="cp36-cp36m-manylinux_2_17_x86_64")
    (folder / "matrices").mkdir()
    (folder / "matrices" / "tiny.toml").write_text(MATRIX)
    for name in ("requirements.txt", "pylock.toml", "pyproject.toml", "config.yaml", "train.py", "data.json"):
        (folder / name).write_text("")


world = world_fixture(fill, scope="module")


class Stages(Reporter):
    """A reporter that counts the solves."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, title: str) -> None:
        self.stages.append(title)


@dataclass(frozen=True)
class Wrong:
    """Options, the beginning of their error, its hint, and the number of solves before it."""

    options: dict[str, Any]
    message: str
    hint: str | None = None
    solves: int = 0
    code: ExitCode = ExitCode.UNMET
    because: tuple[str, ...] = field(default=())


NAMES = [
    Wrong(
        {"protect": ("torchh",)}, "`torchh` cannot be protected", "did you mean `torch`?", 0, ExitCode.USAGE
    ),
    Wrong({"protect": ("torch", "numpi")}, "`numpi` cannot", "did you mean `numpy`?", 0, ExitCode.USAGE),
    Wrong(
        {"protect": ("xyzzy",)}, "`xyzzy` cannot be protected: it is not installed", None, 0, ExitCode.USAGE
    ),
    *(
        Wrong({option: (text,)}, f"`{text}` is not a valid project name", hint, 0, ExitCode.USAGE)
        for option in ("protect", "reinstall")
        for text, hint in (("-x", None), ("torch>2", "Write the name alone: `torch`"), ("", None))
    ),
    Wrong({"with_": ("shaapes",)}, "no index has `shaapes`", "did you mean `shapes`?", 1),
    Wrong(
        {"with_": ("lines", "transformerz>4")},
        "no index has `transformerz`",
        "did you mean `transformers`?",
        1,
    ),
    Wrong({"with_": ("xyzzy==1",)}, "no index has `xyzzy`", None, 1),
    Wrong({"variant": "gpu"}, "`tiny` has no variant `gpu`", "did you mean `cuda`?", 0, ExitCode.USAGE),
    Wrong({"variant": "cud"}, "`tiny` has no variant `cud`", "did you mean `cuda`?", 0, ExitCode.USAGE),
    *(
        Wrong(
            {"runtime": text},
            f"no runtime is recorded as `{text}`",
            "did you mean `colab-2026.08-gpu` or `colab-2026.08-cpu`?",
            0,
            ExitCode.USAGE,
        )
        for text in ("2026.08", "colab-2026.08", "Colab 2026.08")
    ),
    Wrong(
        {"runtime": "colab-2026-08-gpu"},
        "no runtime is recorded as",
        "did you mean `colab-2026.08-gpu`?",
        0,
        ExitCode.USAGE,
    ),
    *(
        Wrong({"name": name}, f"`{name}` is not a matrix: it is {what}", hint, 0, ExitCode.USAGE)
        for name, what, hint in (
            (
                "requirements.txt",
                "a requirements file",
                "`colablock new NAME --from-requirements requirements.txt`",
            ),
            ("./requirements.txt", "a requirements file", "`colablock new NAME --from-requirements ./requi"),
            ("pyproject.toml", "a project file", "`colablock new NAME --from-requirements pyproject.toml`"),
            ("pylock.toml", "a lock file", "`colablock plan NAME --lock pylock.toml`"),
            ("config.yaml", "a YAML file", "`colablock train NAME --config config.yaml`"),
            ("train.py", "a script", "`colablock run NAME -- python train.py`"),
            ("data.json", "a JSON file", "A matrix is a TOML file: `colablock new NAME` writes one"),
        )
    ),
]
RANGES = [
    Wrong(
        {"with_": ("colours<2",)},
        "no version of `colours` meets every requirement",
        "Change the requirement in `--with`",
        because=(
            "because tiny asks for `colours>=2` (requirements[1])",
            "and tiny asks for `colours<2` (with: colours<2)",
        ),
    ),
    Wrong(
        {"with_": ("colours>=2.5", "colours==2.1")},
        "no version of `colours`",
        because=("with: colours>=2.5", "with: colours==2.1"),
    ),
    Wrong({"with_": ("lines>=3",)}, "no version of `lines`", because=("with: lines>=3", "constraints.lines")),
    Wrong({"with_": ("shapes!=2.*,<3,>=2",)}, "`shapes!=2.*,<3,>=2` excludes every version"),
    # Markers that hold for every Python, and others that leave a conflict for each.
    Wrong(
        {"with_": ("colours<2; python_version >= '3.8'",)},
        "no version of `colours` meets every requirement",
        "Change the requirement in `--with`",
        because=(
            "because tiny asks for `colours>=2` (requirements[1])",
            "and tiny asks for `colours<2` (with",
        ),
    ),
    Wrong({"with_": ("colours<2; sys_platform == 'linux'",)}, "no version of `colours` meets every"),
    Wrong(
        {"with_": ("lines>=3; python_version < '3.12'", "lines>=4; python_version >= '3.12'")},
        "no version of `lines` meets every requirement",
    ),
    Wrong({"with_": ("dull; python_version >= '3.9'",)}, "no version of `colours` meets every", None, 1),
    Wrong({"with_": ("timid",)}, "no version of `colours` meets every requirement", None, 1),
    # The requirements of a candidate that every Python gets, and no version that another Python has.
    Wrong({"with_": ("dull",)}, "no version of `colours` meets every requirement", None, 1),
    Wrong({"with_": ("colours>=4",)}, "no candidate fits `colours>=4`", None, 1),
    Wrong({"with_": ("nothing-at-all",)}, "no index has", None, 1),
]


def planned(world: World, options: dict[str, Any]) -> tuple[ColablockError, list[str]]:
    """Return the error of a plan, and the solves that were started before it."""
    reporter = Stages()
    session = Session(environ=world.environ(), reporter=reporter)
    with pytest.raises(ColablockError) as caught:
        plan_change(session, ApplyOptions(**{"name": "tiny", "runtime": RUNTIME, **options}))
    return caught.value, [stage for stage in reporter.stages if stage.startswith("Resolving")]


@pytest.fixture(autouse=True)
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)


@pytest.mark.parametrize("wrong", [*NAMES, *RANGES], ids=lambda wrong: str(wrong.options))
def test_a_wrong_request_ends_before_it_is_resolved_twice(wrong: Wrong, world: World) -> None:
    error, solves = planned(world, wrong.options)
    assert str(error).startswith(wrong.message), str(error)
    assert (error.hint or "").startswith(wrong.hint or "")
    assert (error.exit_code, len(solves)) == (wrong.code, wrong.solves), str(error)
    for text in wrong.because:
        assert text in str(error)
    if wrong.because:
        assert len(str(error).splitlines()) == 1 + len(wrong.because)


def test_a_conflict_of_one_python_is_tried_with_another(world: World) -> None:
    session = Session(environ=world.environ())
    colours = "colours<2; python_full_version >= '3.13.1'"
    for name, python in (("marked", "3.12"), ("old", "3.10"), (colours, "3.12")):
        plan = plan_change(session, ApplyOptions(name="tiny", runtime=RUNTIME, with_=(name,))).plan
        assert plan.python_version.startswith(python), name


def test_the_same_reason_is_said_once_for_all_pythons(world: World) -> None:
    error, solves = planned(world, {"with_": ("ancient",)})
    assert isinstance(error, NoSolution)
    assert len(solves) == 5
    assert str(error).count("ancient 1.0 has no wheel") <= 4
    assert str(error).count("because") <= 4


def test_a_name_to_upgrade_is_one_of_a_lock(world: World, tmp_path: Path) -> None:
    session = Session(environ=world.environ())
    options = ApplyOptions(name="tiny", use_locks=False)
    wanted = LockOptions(output=tmp_path / "pylock.tiny.toml")

    def upgrade(name: str) -> LockResult:
        return lock_matrix(
            session, options, replace(wanted, upgrade_packages=frozenset([NormalizedName(name)]))
        )

    for far in ("Omit `--upgrade-package`", "`--upgrade` moves every package"):
        for name, hint in (("coluors", "did you mean `colours`?"), ("xyzzy", far)):
            with pytest.raises(ColablockError, match=f"`{name}` cannot be upgraded: no lock of") as caught:
                upgrade(name)
            assert caught.value.hint == hint
        assert upgrade("colours").moved == ()  # writes the lock
