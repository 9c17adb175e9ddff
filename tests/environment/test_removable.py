"""What can be removed where it is, for layouts that no whole command is tried on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colablock._vendor.packaging.utils import canonicalize_name
from colablock.environment.accelerator import Accelerator
from colablock.environment.removable import is_out_of_reach, precedes_site, why_irremovable
from colablock.environment.snapshot import Snapshot, snapshot_of
from colablock.runtimes.catalog import load_runtime
from tests.support.runtime import Stub, build_site, make_system_python

pytestmark = pytest.mark.interpreter

DEMO = canonicalize_name("demo")
OTHER = canonicalize_name("other")


def read(python: Path, user: Path) -> Snapshot:
    environ = {"PATH": os.environ["PATH"], "PYTHONUSERBASE": str(user)}
    return snapshot_of(python, environ=environ, accelerator=Accelerator())


def test_the_user_site_of_a_python_hides_its_own_site(tmp_path: Path) -> None:
    python = make_system_python(tmp_path / "usr", "[externally-managed]\nError=no\n")
    (site,) = (tmp_path / "usr").glob("lib/*/site-packages")
    user = tmp_path / "user" / "lib" / site.parent.name / "site-packages"
    build_site(site, [Stub(name="demo", version="1.0"), Stub(name="other", version="1.0")])
    build_site(user, [Stub(name="demo", version="1.5")])
    snapshot = read(python, tmp_path / "user")
    there = snapshot.installed[DEMO]
    assert there.version == "1.5"
    assert (is_out_of_reach(snapshot, there), precedes_site(snapshot, there)) == (True, True)
    assert snapshot.remains == {DEMO: (str(site / "demo-1.0.dist-info"),)}
    assert why_irremovable(snapshot, DEMO) is None
    other = snapshot.installed[OTHER]
    assert (is_out_of_reach(snapshot, other), precedes_site(snapshot, other)) == (False, False)


def test_nothing_of_a_recorded_runtime_is_out_of_reach() -> None:
    snapshot = load_runtime("colab-2026.08-gpu")
    assert not [name for name, one in snapshot.installed.items() if is_out_of_reach(snapshot, one)]
    assert why_irremovable(snapshot, canonicalize_name("torch")) is None


@pytest.mark.parametrize("link", ["share/man", "lib/demo-data"])
def test_links_between_folders_of_data_are_no_obstacle(link: str, tmp_path: Path) -> None:
    """`/usr/local/man` is a link to `share/man` in Debian."""
    python = make_system_python(tmp_path / "usr", "[externally-managed]\nError=no\n")
    (site,) = (tmp_path / "usr").glob("lib/*/site-packages")
    (tmp_path / "usr" / link).mkdir(parents=True)
    (tmp_path / "usr" / "man").symlink_to(link)
    build_site(site, [Stub(name="demo", version="1.0", files={"../../../man/man1/demo.1": "text"})])
    assert why_irremovable(read(python, tmp_path / "user"), DEMO) is None
