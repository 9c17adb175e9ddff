"""Make the matrix of a month from that of the month before, with the newest releases that go together.

::

    python tools/monthly_matrix.py matrices/qlora-2026-12.toml qlora-2027-01 [--at 2026-12-30T12:00:00Z]

Each exact pin of the old file may rise.  One solve from nothing, by the index as it stands at the given time
(by default now), finds the newest releases, and the new file beside the old one pins them.  Reasons and
comments stay as they are, and the month in the texts changes.  The moved pins are printed: read the reasons
and the summary, which may speak of the old versions.

Then lock, check and prove it as CONTRIBUTING says under "Make the matrix of the month".
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLATFORM = "manylinux_2_35_x86_64"
_SECTION = re.compile(r"^\[(?:variants\.[\w-]+\.)?packages\.(?P<name>[\w-]+)\]$", re.MULTILINE)
_PIN = re.compile(r'^(?P<key>version = )"==(?P<version>[^"]+)"', re.MULTILINE)
_MONTH = re.compile(r"(?P<year>\d{4})-(?P<month>\d{2})")


def main() -> None:
    """Write the new matrix, and print what moved."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("name")
    parser.add_argument("--at", type=_time, default=datetime.now(timezone.utc).replace(microsecond=0))
    parser.add_argument("--python-version", default="3.12", metavar="X.Y", help="the Python of the solve")
    given = parser.parse_args()
    new: Path = given.old.with_name(f"{given.name}.toml")
    if new.exists():
        parser.error(f"{new} exists")
    before = given.old.read_text(encoding="utf-8")
    text = renamed(before, given.name, given.at)
    found = solved(raised(text), given.python_version)
    new.write_text(pinned(text, found), encoding="utf-8")
    print(f"wrote {new}")
    for name, version in pins_of(before).items():
        print(
            f"  {name} {version}" + (f" -> {found[name]}" if found[name] != version else ", still the newest")
        )


def renamed(text: str, name: str, at: datetime) -> str:
    """Return the matrix *text* with another name, cut-off and month."""
    text = re.sub(r'^name = "[^"]+"', f'name = "{name}"', text, count=1, flags=re.MULTILINE)
    when = at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = re.sub(r"^exclude-newer = \S+", f"exclude-newer = {when}", text, count=1, flags=re.MULTILINE)
    month = _MONTH.search(name)
    if month is None:
        return text
    title = datetime(int(month["year"]), int(month["month"]), 1, tzinfo=timezone.utc).strftime("%B %Y")
    return re.sub(r"(start of )\w+ \d{4}", rf"\g<1>{title}", text)


def raised(text: str) -> str:
    """Return the matrix *text* with each exact pin as the least version."""
    return _PIN.sub(r'\g<key>">=\g<version>"', text)


def pinned(text: str, found: Mapping[str, str]) -> str:
    """Return the matrix *text* with each exact pin at the version in *found*."""
    parts = _SECTION.split(text)
    for at in range(1, len(parts), 2):
        name = parts[at]
        parts[at + 1] = _PIN.sub(
            lambda pin, name=name: f'{pin["key"]}"=={found[name]}"', parts[at + 1], count=1
        )
    headings = iter([*(match[0] for match in _SECTION.finditer(text)), ""])
    return "".join(part if at % 2 == 0 else next(headings) for at, part in enumerate(parts))


def pins_of(text: str) -> dict[str, str]:
    """Return the version of each project that the matrix *text* pins exactly."""
    entries = tomllib.loads(text)["packages"].items()
    return {name: entry["version"][2:] for name, entry in entries if entry["version"].startswith("==")}


def solved(text: str, python: str) -> dict[str, str]:
    """Return the public version of each project in a solve of the matrix *text* from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        matrix = Path(folder, f"{tomllib.loads(text)['name']}.toml")
        matrix.write_text(text, encoding="utf-8")
        variant = next(iter(tomllib.loads(text)["variants"]))
        target = ["--variant", variant, "--python-version", python, "--platform", PLATFORM]
        command = [sys.executable, "-m", "colablock", "lock", str(matrix), *target, "--output", "-"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has said why
    packages = tomllib.loads(done.stdout)["packages"]
    return {one["name"]: one["version"].partition("+")[0] for one in packages}


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


if __name__ == "__main__":
    main()
