"""Build hook of hatchling: put the locks of the shipped matrices into a wheel as one file, and its SBOM.

See `colablock.matrix.lock_pack` for the reason and the format of the pack, and `tools/sbom.py` for the
SBOM.  An editable install uses the files of the checkout, and an sdist has them as they are.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# An old pip builds the wheel to read its metadata, and then says that this Python is too old for it.
_IS_TOO_OLD = sys.version_info < (3, 10)


class PackLocks(BuildHookInterface[Any]):
    """Adds the pack and the SBOM; ``exclude`` in `pyproject.toml` leaves the lock files out."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the pack and the SBOM to temporary files, which the wheel includes."""
        if version == "editable" or _IS_TOO_OLD:
            return
        root = Path(self.root)
        # The module needs nothing else of colablock, which need not be importable here.
        module = runpy.run_path(str(root / "colablock" / "matrix" / "lock_pack.py"))
        locks = {path.name: path.read_bytes().decode() for path in (root / "matrices").glob("pylock.*.toml")}
        self._folder = tempfile.TemporaryDirectory(prefix="colablock-")
        pack = Path(self._folder.name) / module["LOCK_PACK"]
        pack.write_bytes(module["pack_locks"](locks))
        build_data["force_include"][str(pack)] = f"colablock/matrices/{pack.name}"
        sbom = runpy.run_path(str(root / "tools" / "sbom.py"))
        bill = Path(self._folder.name) / sbom["NAME"]
        bill.write_text(sbom["wheel_sbom"](root), encoding="utf-8")
        build_data["sbom_files"].append(str(bill))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Delete the temporary files."""
        if not (version == "editable" or _IS_TOO_OLD):
            self._folder.cleanup()
