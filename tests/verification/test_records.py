"""The proof of the files that a change touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from colablock.planning.plan import Action, Breakage, Plan, Remedy, Step, Target
from colablock.verification.records import record_checks
from tests.support.runtime import Stub, build_site


def build(name: str, version: str, *, package: str = "cv2", **more: str) -> Stub:
    files = {f"{package}/core.py": version, f"{package}/build.py": name, **more}
    return Stub(name=name, version=version, import_names=(package,), files=files)


STANDS = build("stands", "1", package="stands", **{"tests/helper.py": "of stands"})
NEW = build("new", "2", package="new", **{"tests/helper.py": "of new"})
PLAN = Plan(
    matrix="m",
    matrix_digest="0",
    variant=None,
    target=Target.KERNEL,
    why_target="",
    python="",
    python_version="3.12",
    steps=(Step(action=Action.INSTALL, name=NEW.name, reason="", version="2"),),  # type: ignore[arg-type]
)


def spoil(path: str, text: str | None) -> Callable[[Path], None]:
    def change(site: Path) -> None:
        if text is None:
            (site / path).unlink()
        else:
            (site / path).write_text(text)

    return change


def nothing(_site: Path) -> None:
    pass


CASES = {
    "all files are there": ((NEW,), nothing, {}),
    "a new file is missing": ((NEW,), spoil("new/core.py", None), {"new": "core.py` is missing"}),
    "a new file has another size": ((NEW,), spoil("new/core.py", "22"), {"new": "has 2 bytes instead of 1"}),
    "a file of nobody's": (
        (STANDS, NEW),
        spoil("tests/helper.py", "?"),
        {"new": "differs", "stands": "differs"},
    ),
    "tests of another project": ((STANDS, NEW), nothing, {}),
    "what others lack was lacking before": ((STANDS, NEW), spoil("stands/core.py", None), {}),
    "builds of one version": ((build("old", "2", package="new"), NEW), nothing, {}),
    "builds of two versions": ((build("old", "1", package="new"), NEW), nothing, {"old": "is that of new 2"}),
    "the new one has lost": ((NEW, build("old", "1", package="new")), nothing, {"new": "is that of old 1"}),
}


@pytest.mark.parametrize(("stubs", "change", "failed"), CASES.values(), ids=CASES)
def test_what_the_change_touched_is_compared_with_the_records(
    stubs: tuple[Stub, ...], change: Callable[[Path], None], failed: dict[str, str], tmp_path: Path
) -> None:
    build_site(tmp_path, stubs)
    change(tmp_path)
    touched = [str(tmp_path / "new"), str(tmp_path / "tests" / "helper.py")]
    checks = record_checks([str(tmp_path), str(tmp_path)], touched, PLAN)
    assert {check.subject: check.passed for check in checks if not check.passed} == dict.fromkeys(
        failed, False
    )
    for check in checks:
        assert check.kind == "files"
        assert failed.get(check.subject, "") in check.detail
    if not failed:
        assert (len(checks), checks[0].subject.split()[1]) == (1, "distribution" + "s" * (len(stubs) > 1))


def test_what_the_plan_leaves_broken_is_not_checked(tmp_path: Path) -> None:
    build_site(tmp_path, CASES["builds of two versions"][0])
    listed = Breakage(
        name="old",  # type: ignore[arg-type]
        version="1",
        requirement="files",
        direct=True,
        because=(),
        remedy=Remedy.LEAVE,
    )
    (check,) = record_checks([str(tmp_path)], [str(tmp_path / "new")], replace(PLAN, breakages=(listed,)))
    assert check.passed
    assert "__init__.py of old is that of new" in check.detail
