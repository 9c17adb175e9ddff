"""The no-op check: is the last apply still up to date?"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from colablock._common.fs import make_private
from colablock.environment.snapshot import installed_versions
from colablock.matrix.catalog import find_matrix
from colablock.planning.options import ApplyOptions
from colablock.transaction import apply_record
from colablock.transaction.apply_record import ApplyRecord
from colablock.transaction.serialise import report_to_json
from colablock.transaction.up_to_date import request_key, up_to_date_report
from colablock.verification.verify import Check, Report

MATRIX = 'schema = 1\nname = "demo"\nrequirements = ["demo"]\n'


@pytest.fixture
def applied(tmp_path: Path) -> ApplyOptions:
    """A request with a record of its apply, and one distribution in the site."""
    path = tmp_path / "demo.toml"
    path.write_text(MATRIX)
    (tmp_path / "site" / "demo-1.0.dist-info").mkdir(parents=True)
    ask = ApplyOptions(name=str(path))
    remember(ask, tmp_path / "site")
    return ask


def remember(ask: ApplyOptions, site: Path) -> None:
    check = Check(kind="version", subject="demo", passed=True, detail="1.0")
    report = Report(
        matrix="demo",
        variant=None,
        target="kernel",
        python=sys.executable,
        python_version="3.12.0",
        checks=(check,),
        changed=True,
        needs_restart=True,
        seconds=4.0,
    )
    matrix = find_matrix(ask.name, environ=os.environ)
    record = ApplyRecord(
        name="demo",
        key=request_key(ask, matrix),
        target="kernel",
        python=sys.executable,
        prefix=str(site),
        sites=(str(site),),
        state=apply_record.versions_digest(installed_versions([site])),
        matrix_digest=matrix.digest,
        variant=None,
        report=report_to_json(report),
    )
    apply_record.save(record, apply_record.home_folder(os.environ))


def test_an_up_to_date_apply_is_reported_as_unchanged(applied: ApplyOptions) -> None:
    report = up_to_date_report(applied, os.environ)
    assert report is not None
    assert report.passed
    assert (report.changed, report.needs_restart, report.seconds) == (False, False, 0.0)


def test_an_up_to_date_apply_removes_what_a_killed_one_has_left(
    applied: ApplyOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "colablock-tmp-abcd1234"
    left.mkdir(mode=0o700)
    (left / "demo-1.0-py3-none-any.whl").touch()
    environ = {**os.environ, "COLABLOCK_CACHE_DIR": str(tmp_path / "cache")}
    written = tmp_path / "cache" / "unfinished" / ".new-1"
    make_private(written.parent)
    written.touch()
    assert up_to_date_report(applied, environ) is not None
    assert not left.exists()
    assert not written.exists()


def test_a_changed_environment_is_not_up_to_date(applied: ApplyOptions, tmp_path: Path) -> None:
    (tmp_path / "site" / "demo-1.0.dist-info").rename(tmp_path / "site" / "demo-2.0.dist-info")
    assert up_to_date_report(applied, os.environ) is None


@pytest.mark.parametrize("report", [{}, {"version": 1}, {"version": 9}, {"version": 1, "checks": 10**400}])
def test_a_record_with_a_damaged_report_is_not_up_to_date(
    applied: ApplyOptions, report: dict[str, object]
) -> None:
    home = apply_record.home_folder(os.environ)
    last = apply_record.load("demo", home)
    assert last is not None
    apply_record.save(replace(last, report=report), home)
    assert up_to_date_report(applied, os.environ) is None


@pytest.mark.parametrize(
    "change", [{"with_": ("more",)}, {"protect": ("demo",)}, {"runtime": "colab-2026.08-gpu"}]
)
def test_another_request_is_not_up_to_date(applied: ApplyOptions, change: dict[str, object]) -> None:
    assert up_to_date_report(replace(applied, **change), os.environ) is None  # type: ignore[arg-type]


def test_another_matrix_is_not_up_to_date(applied: ApplyOptions) -> None:
    Path(applied.name).write_text(MATRIX.replace('["demo"]', '["demo>1"]'))
    assert up_to_date_report(applied, os.environ) is None


def test_another_lock_with_the_same_name_is_not_up_to_date(applied: ApplyOptions, tmp_path: Path) -> None:
    lock = tmp_path / "pylock.toml"
    lock.write_text("one")
    ask = replace(applied, lock=lock)
    remember(ask, tmp_path / "site")
    assert up_to_date_report(ask, os.environ) is not None
    lock.write_text("two")
    assert up_to_date_report(ask, os.environ) is None
    lock.unlink()
    assert up_to_date_report(ask, os.environ) is None


def test_the_no_op_check_imports_nothing_heavy() -> None:
    heavy = {"colablock.planning.solver", "colablock.resolver.resolver", "resolvelib", "rich", "urllib3"}
    code = "import sys, colablock.transaction.up_to_date; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()
