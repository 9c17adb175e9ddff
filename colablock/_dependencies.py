"""Whether the dependencies of colablock are there: the source can be imported without an install.

A notebook in the root of a clone imports the folder `colablock`, whatever is installed.  The two ways in, the
functions of `colablock` and the command line, ask here before they load anything that needs a dependency.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["MODULES", "require_dependencies"]

# The modules of `project.dependencies` in pyproject.toml, and what pip calls them where it differs.
MODULES = {"msgspec": "", "resolvelib": "", "rich": "", "urllib3": "", "uv": "", "yaml": "pyyaml"}
_OLD_MODULES = {"tomli": ""} if sys.version_info < (3, 11) else {}


def require_dependencies() -> None:
    """Raise NotInstalled if a dependency is missing.  It looks for modules without importing them."""
    missing = [package or module for module, package in _needed().items() if not _is_there(module)]
    if missing:
        from colablock.errors import NotInstalled  # noqa: PLC0415 - hardly ever needed

        raise NotInstalled(missing, is_source=not _is_installed())


def _needed() -> dict[str, str]:
    return MODULES | _OLD_MODULES


def _is_there(module: str) -> bool:
    """Whether *module* can be imported.  A folder of that name that is no package does not count."""
    if sys.modules.get(module) is not None:
        return True
    try:
        found = find_spec(module)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


def _is_installed() -> bool:
    """Whether this Python has a distribution `colablock`: else the package is a folder of sources."""
    from importlib import metadata  # noqa: PLC0415 - takes 20 ms

    try:
        metadata.distribution("colablock")
    except metadata.PackageNotFoundError:
        return False
    return True
