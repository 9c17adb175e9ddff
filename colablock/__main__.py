"""Run the command line: ``python -m colablock``."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line, and end with one line if it is interrupted while it is still being loaded."""
    try:
        from colablock.cli.main import main as command_line  # noqa: PLC0415 - loaded in the block

        return command_line()
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Nothing was changed.\n")
        sys.stderr.flush()
        os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
