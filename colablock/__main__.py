"""Run the command line: ``python -m colablock``."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line, and end with one line if it is interrupted while it is still being loaded."""
    try:
        if sys.argv[1:] != ["--version"] and not _has_dependencies():
            return 1
        from colablock.cli.main import main as command_line  # noqa: PLC0415 - loaded in the block

        return command_line()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Nothing was changed.\n")
        sys.stderr.flush()
        os._exit(130)


def _has_dependencies() -> bool:
    """Whether the dependencies are there; else the standard error says what is missing."""
    from colablock._dependencies import require_dependencies  # noqa: PLC0415
    from colablock.errors import NotInstalled  # noqa: PLC0415

    try:
        require_dependencies()
    except NotInstalled as error:
        sys.stderr.write(f"error: {error}\nhint: {error.hint}\n")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
