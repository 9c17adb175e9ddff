"""An environment with one distribution, `demo` 1.0, and a matrix that asks for 2.0 of a folder of wheels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from colablock.operations.apply import carry_out
from colablock.operations.plan import plan_change
from colablock.operations.session import Session
from colablock.planning.options import ApplyOptions
from colablock.planning.plan import Plan, Target
from colablock.verification.verify import Report
from tests.support.hostile import Target as Place
from tests.support.hostile import make_target
from tests.support.reporters import Notes
from tests.support.runtime import Stub
from tests.support.wheels import make_wheel

__all__ = ["DEMO", "MATRIX", "Standing", "make_standing"]

DEMO = Stub(name="demo", version="1.0", files={"demo/old.py": "x = 1\n"})
MATRIX = """\
schema = 1
name = "tiny"
[packages]
demo = "==2.0"
[verify]
imports = ["demo"]
"""
ASK = """\
import importlib.metadata, json
version = importlib.metadata.version("demo")
import demo
print("\\n" + json.dumps([version, demo.__version__]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An environment with `demo` 1.0, and a matrix that asks for 2.0 of the folder of wheels."""

    place: Place
    environ: dict[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)

    @property
    def site(self) -> Path:
        return self.place.venv.site

    @property
    def info(self) -> Path:
        return self.site / "demo-1.0.dist-info"

    def session(self) -> Session:
        folders = {
            "COLABLOCK_HOME": str(self.place.home),
            "COLABLOCK_CACHE_DIR": str(self.place.folder / "cache"),
        }
        return Session(environ={**os.environ, **folders, **self.environ}, reporter=self.notes)

    def options(self, into: Target | None = Target.KERNEL) -> ApplyOptions:
        return ApplyOptions(
            name=str(self.place.folder / "tiny.toml"),
            python=self.place.venv.python,
            into=into,
            find_links=(str(self.place.wheels),),
            offline=True,
        )

    def plan(self, into: Target | None = Target.KERNEL) -> Plan:
        return plan_change(self.session(), self.options(into)).plan

    def apply(self, into: Target | None = Target.KERNEL) -> Report:
        session, options = self.session(), self.options(into)
        return carry_out(session, options, plan_change(session, options))

    def answers(self) -> list[str]:
        """Return what a fresh interpreter says: the version of the metadata, and that of the module."""
        command = [self.place.venv.python, "-B", "-c", ASK]
        done = subprocess.run(
            command, cwd="/", env={"PATH": "/bin"}, capture_output=True, text=True, check=True
        )
        found: list[str] = json.loads(done.stdout.splitlines()[-1])
        return found

    def copy_info(self, name: str, version: str) -> Path:
        """Copy the metadata folder of `demo`, with another *version* in it, to the folder *name*."""
        shutil.copytree(self.info, self.site / name)
        metadata = self.site / name / "METADATA"
        metadata.write_text(metadata.read_text().replace("Version: 1.0", f"Version: {version}"))
        return self.site / name


def make_standing(folder: Path) -> Standing:
    """Make the environment, its matrix `tiny.toml`, and the wheel of `demo` 2.0 in *folder*."""
    place = make_target(folder, [DEMO])
    make_wheel(place.wheels, "demo", "2.0")
    (folder / "tiny.toml").write_text(MATRIX)
    return Standing(place=place)
