"""The software bill of materials of the wheel (PEP 770): the vendored projects, in CycloneDX 1.6.

`tools/pack_locks.py` puts it into ``.dist-info/sboms/``.  What the wheel requires is in its METADATA,
and is no part of it.  The versions and hashes are those of ``colablock/_vendor/vendor.txt``, which
``nox -s vendor`` compares with the sources.
"""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

__all__ = ["NAME", "wheel_sbom"]

NAME = "colablock.cdx.json"
#: The licence of each vendored project, as an SPDX expression.
LICENCES = {"packaging": "Apache-2.0 OR BSD-2-Clause", "tomli-w": "MIT"}


def wheel_sbom(root: Path) -> str:
    """Return the document for the checkout or sdist at *root*.  The same sources give the same text."""
    version = runpy.run_path(str(root / "colablock" / "_version.py"))["__version__"]
    vendored = _vendored((root / "colablock" / "_vendor" / "vendor.txt").read_text(encoding="utf-8"))
    refs = [one["bom-ref"] for one in vendored]
    own = f"pkg:pypi/colablock@{version}"
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": "colablock",
                "version": version,
                "purl": own,
                "licenses": [{"expression": "Apache-2.0"}],
            }
        },
        "components": vendored,
        "dependencies": [{"ref": own, "dependsOn": refs}, *({"ref": ref, "dependsOn": []} for ref in refs)],
    }
    return json.dumps(bill, indent=2) + "\n"


def _vendored(text: str) -> list[dict[str, Any]]:
    """Return a component for each pin of vendor.txt.  The first hash of a pin is that of its wheel."""
    components = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.-]+)==(\S+)\s+--hash=sha256:([0-9a-f]{64})(\s+--hash=\S+)*\s*", line)
        if match is None:
            message = f"vendor.txt: {line!r} is not a pin with hashes"
            raise ValueError(message)
        name, version = re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]
        purl = f"pkg:pypi/{name}@{version}"
        components.append(
            {
                "type": "library",
                "bom-ref": purl,
                "name": name,
                "version": version,
                "purl": purl,
                "hashes": [{"alg": "SHA-256", "content": match[3]}],
                "licenses": [{"expression": LICENCES[name]}],
                "properties": [{"name": "colablock:path", "value": f"colablock/_vendor/{match[1]}"}],
            }
        )
    return components
