"""Run the command line: ``python -m colablock``."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from contextlib import suppress

__all__ = ["main", "run"]

_OBJECTS = 100_000  # more before each search for cycles, of which a command makes few


def run() -> None:
    """Run the command line, and end this process.

    Freeing its objects one by one takes 20 ms, so only the exit handlers run.  With another thread, or under
    a debugger or profiler, Python ends as usual.
    """
    gc.set_threshold(_OBJECTS)
    code = main()
    tools = getattr(sys, "monitoring", None)  # Python 3.12
    is_watched = sys.gettrace() or sys.getprofile() or (tools and any(map(tools.get_tool, range(6))))
    if not is_watched and not sys.flags.inspect and threading.active_count() == 1:
        with suppress(OSError, ValueError):  # Python says at its end that the output cannot be written
            atexit._run_exitfuncs()  # noqa: SLF001 - as Python does
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


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
    run()
