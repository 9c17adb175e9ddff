"""Isolation of every test from the settings of this machine, and fixtures that are the same everywhere."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from colablock.network.fetcher import Fetcher
from colablock.training.runs.summary import watch
from tests.support.fetching import fetcher_in
from tests.support.fixtures import index_fixture, server_fixture, venv_fixture
from tests.support.stack import Stack, make_stack
from tests.support.training_stack import Bench, TrainingStack, build_training_stack

# A shared runner may stall in the middle of an example: none has a deadline, and to make them may take long.
# `thorough` is for CI, `exhaustive` for the properties of code that has just changed.  In CI the examples are
# the same each time, as in Hypothesis's own profile for it: a failure is due to the change that is tested.
for _profile, _examples in {"default": 40, "thorough": 75, "exhaustive": 400}.items():
    settings.register_profile(
        _profile,
        deadline=None,
        max_examples=_examples,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=_profile == "thorough",
    )
settings.load_profile("default")

SETTINGS_OF_OTHERS = ("PIP_", "UV_", "COLABLOCK_", "XDG_")
OTHERS = frozenset(
    {"CLICOLOR", "COLUMNS", "FORCE_COLOR", "MPLBACKEND", "NETRC", "NO_COLOR", "PYENV_VERSION", "VIRTUAL_ENV"}
)

UV_PYTHONS = "UV_PYTHON_INSTALL_DIR", ".local/share/uv/python"
OLDEST = (3, 10)  # of the Pythons that colablock is for

MEMORY = Path("/dev/shm")  # noqa: S108
ROOM = 4 << 30  # twice what the tests of two workers take at the same time

EVERY_FAULT = "--every-fault"
WORLDS = frozenset({"summer", "today", "world"})  # fixtures, see tests/support/world.py


def _has_room_in_memory() -> bool:
    try:
        status = os.statvfs(MEMORY)
        facts = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return False
    available = re.search(r"^MemAvailable: +(\d+) kB$", facts, re.MULTILINE)
    free = status.f_bavail * status.f_frsize
    return available is not None and min(free, int(available[1]) << 10) >= ROOM


# The tests write many small files, and the transaction flushes each to the disk: in memory this takes a
# third of the time.  pytest reads the variable when it makes the first temporary folder.
if _has_room_in_memory():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


# A shell starts what is in its background with SIGINT ignored, and the children of a test would inherit that:
# commands that a test interrupts would never end.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the complete fault injection."""
    parser.addoption(EVERY_FAULT, action="store_true", help="interrupt a change at every operation")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that run commands in a world as slow, before slow tests are deselected."""
    for item in items:
        if not WORLDS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print measured figures, and with ``--every-fault`` how often a change was interrupted."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name.startswith("stopped: "):
                counts[name] += value
            elif name == "figures":
                terminalreporter.write_line(value)
    if config.getoption(EVERY_FAULT) and counts:
        terminalreporter.section(f"{sum(counts.values())} times a change was stopped", sep="-")
        for name, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count:6} {name}")


def _own_pyenv(folder: Path) -> Path:
    """Give *folder* links to the Pythons of pyenv that count: many commands start each that there is."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    (folder / "versions").mkdir()
    for version in root.glob("versions/*"):
        numbers = re.match(r"(\d+)\.(\d+)\.", version.name)
        if numbers and (int(numbers[1]), int(numbers[2])) >= OLDEST:
            (folder / "versions" / version.name).symlink_to(version)
    (folder / "shims").symlink_to(root / "shims")
    if (root / "version").is_file():  # what the shims start
        chosen = (root / "version").read_text(encoding="utf-8").split()
        kept = [name for name in chosen if (folder / "versions" / name).exists()]
        (folder / "version").write_text("".join(f"{name}\n" for name in kept), encoding="utf-8")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the session an empty home, without the settings of pip, uv and colablock.

    Proxies stay, except for the servers of the tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(SETTINGS_OF_OTHERS) or name in OTHERS:
                patch.delenv(name)
        # Interpreters in the home of this machine are still found.
        name, folder = UV_PYTHONS
        patch.setenv(name, os.environ.get(name, str(Path.home() / folder)))
        patch.setenv("PYENV_ROOT", str(_own_pyenv(tmp_path_factory.mktemp("pyenv"))))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        # pip would still read the files of this machine, in /etc for example.
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("UV_NO_CONFIG", "1")
        for name in ("NO_PROXY", "no_proxy"):
            direct = ["127.0.0.1", "localhost", *filter(None, [os.environ.get(name)])]
            patch.setenv(name, ",".join(direct))
        yield


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own home and cache of colablock."""
    monkeypatch.setenv("COLABLOCK_HOME", str(tmp_path / "colablock-home"))
    monkeypatch.setenv("COLABLOCK_CACHE_DIR", str(tmp_path / "colablock-cache"))


venv = venv_fixture()
index = index_fixture()
server = server_fixture()


@pytest.fixture
def waits() -> list[float]:
    """Give the list to which `fetcher` adds how many seconds it would have slept."""
    return []


@pytest.fixture
def fetcher(tmp_path: Path, waits: list[float]) -> Fetcher:
    """Give a fetcher with a cache of its own that never sleeps."""
    return fetcher_in(tmp_path, sleep=waits.append)


@pytest.fixture(scope="session")
def training_stack(tmp_path_factory: pytest.TempPathFactory) -> TrainingStack:
    """Give an environment with stand-ins of the training libraries."""
    return build_training_stack(tmp_path_factory.mktemp("stack") / "env")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Give the real stack, with a home of its own."""
    return make_stack(tmp_path_factory)


@pytest.fixture
def bench(training_stack: TrainingStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Give a folder for the runs of a test; who follows one in this process looks often."""
    monkeypatch.setattr(watch, "__kwdefaults__", {**(watch.__kwdefaults__ or {}), "poll": 0.02})
    return Bench(stack=training_stack, folder=tmp_path)
