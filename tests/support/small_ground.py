"""A virtual environment with three distributions, and a change that removes, replaces and adds one."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from colablock._vendor.packaging.utils import NormalizedName, canonicalize_name
from colablock.environment.snapshot import Snapshot, fingerprint, snapshot_of
from colablock.planning.plan import Action, Artifact, Plan, Step, Target
from colablock.transaction.apply import apply_plan
from colablock.verification.verify import Check
from tests.support.runtime import Stub, build_site, make_venv, site_of
from tests.support.wheels import make_wheel

__all__ = ["PASSED", "STANDING", "SmallGround", "remove"]

PASSED = (Check(kind="import", subject="new", passed=True),)
STANDING = (
    Stub(
        name="gone",
        version="1.0",
        files={
            "gone/deep/__init__.py": "",
            "gone/data.txt": "d",
            "shared/gone.py": "",
            "shared/both.py": "both",
            "gone_single.py": "",
        },
    ),
    Stub(name="moved", version="1.0", files={"moved/old.py": "old", "../../../bin/moved": "#!python\n"}),
    Stub(
        name="stays",
        version="1.0",
        files={"shared/stays.py": "", "shared/both.py": "both", "shared/__init__.py": ""},
    ),
)


class SmallGround:
    """A virtual environment with three distributions, and a folder of wheels for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = folder / "env"
        self.python = str(make_venv(self.venv, sys.executable))
        self.site = site_of(self.venv)
        build_site(self.site, STANDING)
        (self.site / "gone" / "__pycache__").mkdir()
        (self.site / "gone" / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"x")
        (self.site / "shared" / "__pycache__").mkdir()
        (self.site / "shared" / "__pycache__" / "gone.cpython-311.pyc").write_bytes(b"x")
        (self.site / "shared" / "__pycache__" / "stays.cpython-311.pyc").write_bytes(b"x")
        self.files: dict[NormalizedName, Path] = {}

    def snapshot(self) -> Snapshot:
        return snapshot_of(Path(self.python), environ=os.environ)

    def plan(self, *steps: Step) -> Plan:
        return Plan(
            matrix="tiny",
            matrix_digest="0",
            variant=None,
            target=Target.KERNEL,
            why_target="asked for",
            python=self.python,
            python_version="3",
            steps=steps,
            fingerprint=fingerprint(self.snapshot()),
        )

    def put(
        self, wheel: Path, *, requested: bool = False, direct: bool = False, previous: str | None = None
    ) -> Step:
        """Return the step that installs *wheel*."""
        name, version = wheel.name.split("-")[:2]
        key = canonicalize_name(name)
        self.files[key] = wheel
        artifact = Artifact(
            name=key,
            version=version,
            filename=wheel.name,
            url=f"https://files.example/{wheel.name}",
            hashes={"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()},
            direct=direct,
        )
        return Step(
            action=Action.REPLACE if previous else Action.INSTALL,
            name=key,
            reason="the matrix names it",
            version=version,
            previous=previous,
            artifact=artifact,
            requested=requested,
        )

    def apply(self, *steps: Step, checks: tuple[Check, ...] = PASSED, **options: object) -> tuple[Check, ...]:
        call: Mapping[str, object] = {"prove": lambda _: checks, "environ": os.environ, **options}
        return apply_plan(self.plan(*steps), self.snapshot(), self.files, **call)  # type: ignore[arg-type]

    def steps(self) -> tuple[Step, ...]:
        """Return a change of all three kinds."""
        wheels = self.folder / "wheels"
        wheels.mkdir(exist_ok=True)
        new = make_wheel(
            wheels,
            "new",
            "2.0",
            modules={"new/__init__.py": "", "shared/new.py": ""},
            scripts={"new-command": "new:main"},
            data_files={"data/share/new/x.txt": "x"},
        )
        moved = make_wheel(
            wheels, "moved", "2.0+cpu", modules={"moved/__init__.py": "", "moved/fresh.py": ""}
        )
        return (remove("gone"), self.put(moved, previous="1.0"), self.put(new, requested=True))


def remove(name: str) -> Step:
    return Step(action=Action.REMOVE, name=canonicalize_name(name), reason="[absent]", previous="1.0")
