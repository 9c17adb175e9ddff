"""Download the wheels of lock files, and check that colablock would install each.

    python tools/check_wheels.py [--largest MB] [LOCK ...]

The default is every lock of the shipped matrices: about 600 wheels.  A wheel is
checked as it is before an apply unpacks it, and deleted.  The tests hold what is
refused; this shows that no released wheel is.

A refused wheel is printed, and the exit code is 1.
"""

# A script, no package.

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from colablock._common.toml import load_toml
from colablock._common.urls import basename
from colablock.errors import ColablockError
from colablock.index.candidates import File
from colablock.index.wheel_check import check_wheel
from colablock.network.fetcher import Fetcher

MATRICES = Path(__file__).resolve().parent.parent / "matrices"
_WORKERS = 4  # threads; the disk holds a wheel of each


def wheels_of(lock: Path) -> Iterator[File]:
    """Yield the wheels that a lock file has the URL of."""
    for package in load_toml(lock.read_bytes())["packages"]:
        for wheel in package.get("wheels", ()):
            if "url" in wheel:
                size = wheel.get("size")
                yield File(
                    filename=basename(wheel["url"]), url=wheel["url"], hashes=wheel["hashes"], size=size
                )


def refusal(wheel: File) -> str | None:
    """Return why *wheel* cannot be had or installed; None if it can."""
    with tempfile.TemporaryDirectory() as folder:
        fetcher = Fetcher({**os.environ, "COLABLOCK_CACHE_DIR": f"{folder}/cache"})
        try:
            (path,) = fetcher.download([wheel], Path(folder, "files"))
            check_wheel(path)
        except ColablockError as error:
            return f"{wheel.filename}: {error}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, check each wheel once, and print those that are refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--largest", type=float, metavar="MB", help="leave out larger wheels")
    parser.add_argument("locks", nargs="*", type=Path, metavar="LOCK")
    given = parser.parse_args(arguments)
    locks = given.locks or sorted(MATRICES.glob("pylock.*.toml"))
    wheels = {wheel.filename: wheel for lock in locks for wheel in wheels_of(lock)}
    chosen = [one for one in wheels.values() if not given.largest or (one.size or 0) <= given.largest * 1e6]
    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        refused = [line for line in pool.map(refusal, chosen) if line]
    print(*refused, f"{len(chosen) - len(refused)} of {len(chosen)} wheels can be installed", sep="\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
