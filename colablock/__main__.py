"""Run the command line: ``python -m colablock``."""

from __future__ import annotations

import sys

from colablock.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
