"""Run targets on many inputs in child processes, and keep what is found.

Each input may raise only what its target documents, take two seconds of processor time, and need 200 MB.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.mutations import mutated
from tests.fuzz.strategies import documents
from tests.fuzz.target import Target
from tests.support.timing import slowness

__all__ = ["CORPUS", "SEED", "Finding", "Tally", "check", "corpus_of", "fuzz", "input_at"]

SEED = 20_260_801
SECONDS = 2.0
MEMORY = 200 << 20
CORPUS = Path(__file__).parent / "corpus"
_LONGEST = 2 << 20  # bytes of an input, which is no part of what is measured
_HANG = 20.0  # seconds without an answer, after which the child is killed
_GENERATED = 10  # one input in so many comes from hypothesis


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a target must not do: an exception, a hang, too much time or memory.  *where* groups the same."""

    target: str
    kind: str
    where: str
    data: bytes = b""

    @property
    def key(self) -> tuple[str, str, str]:
        """The same for the same fault of the same target."""
        return self.target, self.kind, self.where


@dataclass(slots=True)
class Tally:
    """How many inputs a target has read, how many of them it refused, and what was found."""

    target: str
    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    memory: int = 0  # bytes above the start, at the peak
    findings: dict[tuple[str, str, str], Finding] = field(default_factory=dict)


def input_at(target: Target, place: int, base: int = SEED) -> bytes:
    """Return the input number *place* of *target*; it depends on nothing else."""
    rng = random.Random(f"{base}/{target.name}/{place}")
    return mutated(rng.choice(target.samples()), target.form, rng)[:_LONGEST]


def corpus_of(target: Target) -> list[Path]:
    """Return the inputs of *target* that once were findings."""
    return sorted((CORPUS / target.name).glob("*"))


def check(target: Target, data: bytes, folder: Path) -> tuple[bool, Finding | None, float]:
    """Return whether *target* refused *data*, what was found, and the processor time in seconds."""
    refused, finding = False, None
    started = time.process_time()
    try:
        target.call(data, folder)
    except target.documented:
        refused = True
    except MemoryError:
        finding = Finding(target=target.name, kind="memory", where="MemoryError", data=data)
    except Exception as error:  # noqa: BLE001 - every other exception is what is looked for
        finding = Finding(target=target.name, kind=type(error).__name__, where=_place(error), data=data)
    taken = time.process_time() - started
    if finding is None and taken > SECONDS and taken > SECONDS * slowness():
        finding = Finding(target=target.name, kind="slow", where="", data=data)
    return refused, finding, taken


def _place(error: BaseException) -> str:
    """Return the last line of colablock, and the last line at all, that *error* comes from."""
    frames = traceback.extract_tb(error.__traceback__)[-100:]
    own = [one for one in frames if "/colablock/" in one.filename and "_vendor" not in one.filename]
    shown = [f"{Path(one.filename).name}:{one.name}" for one in (*own[-1:], *frames[-1:])]
    return " ".join([*dict.fromkeys(shown), str(error)[:80].replace("\n", " ") if not own else ""]).strip()


# A child process


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Let this process take 200 MB more than it has, during the block."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _work(target: Target, places: range, base: int, at: Connection, progress: Callable[[int], None]) -> None:
    """Run *places* of *target*, and send the tally through *at*."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tally = Tally(target.name)
    home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=home) as name:
        folder = Path(name)
        check(target, target.samples()[0], folder)  # imports are no part of what an input costs
        start = _peak()

        def one(data: bytes) -> None:
            with _limited_memory():
                refused, finding, taken = check(target, data, folder)
            tally.inputs += 1
            tally.refused += refused
            tally.slowest = max(tally.slowest, taken)
            if finding is not None:
                known = tally.findings.setdefault(finding.key, finding)
                if len(finding.data) < len(known.data):
                    tally.findings[finding.key] = finding

        for place in places:
            progress(place)
            one(input_at(target, place, base))
        progress(-1)
        _generated(target, len(places) // _GENERATED, base + places.start, one)
        tally.memory = _peak() - start
    at.send(tally)
    at.close()


def _generated(target: Target, count: int, base: int, one: Callable[[bytes], None]) -> None:
    if not count:
        return

    @seed(base)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(documents(target))
    def run(data: bytes) -> None:
        one(data)

    run()


# The parent


def fuzz(target: Target, places: range, base: int = SEED) -> Tally:
    """Return the tally of *target* for these places, run in a child that is killed if it hangs."""
    total = Tally(target.name)
    context = multiprocessing.get_context("fork")
    while places:
        receiver, sender = context.Pipe(duplex=False)
        at = context.Value("q", places.start)

        def progress(place: int, at: object = at) -> None:
            at.value = place  # type: ignore[attr-defined]

        child = context.Process(target=_work, args=(target, places, base, sender, progress))
        child.start()
        sender.close()
        answer = _answer(receiver, at)
        if answer is not None:
            child.join()
            _add(total, answer)
            return total
        child.kill()
        child.join()
        place = at.value if at.value >= 0 else places.stop - 1
        kind = "hang" if child.exitcode == -signal.SIGKILL else f"exit {child.exitcode}"
        data = input_at(target, place, base)
        _add(total, Tally(target.name, inputs=place - places.start + 1))
        found = Finding(target=target.name, kind=kind, where="", data=data)
        total.findings.setdefault(found.key, found)
        places = range(place + 1, places.stop)
    return total


def _answer(receiver: Connection, at: object) -> Tally | None:
    """Return what the child sends; None if it dies, or makes no progress for a while."""
    last, since = None, time.monotonic()
    while True:
        try:
            if receiver.poll(0.5):
                answer: Tally = receiver.recv()
                return answer
        except EOFError:
            return None
        place = at.value  # type: ignore[attr-defined]
        if place != last:
            last, since = place, time.monotonic()
        elif time.monotonic() - since > (_HANG if place >= 0 else 20 * _HANG):
            return None


def _add(total: Tally, part: Tally) -> None:
    total.inputs += part.inputs
    total.refused += part.refused
    total.slowest = max(total.slowest, part.slowest)
    total.memory = max(total.memory, part.memory)
    for key, finding in part.findings.items():
        total.findings.setdefault(key, finding)


def smaller(target: Target, finding: Finding, folder: Path, tries: int = 300) -> bytes:
    """Return a shorter input with the same finding, as far as cutting pieces out goes."""
    data = finding.data
    for candidate_size in (2, 4, 8, 16, 64):
        for piece in _pieces(data, candidate_size):
            tries -= 1
            if tries < 0:
                return data
            found = check(target, piece, folder)[1]
            if found is not None and found.key == finding.key:
                data = piece
                break
    return data


def _pieces(data: bytes, count: int) -> Iterator[bytes]:
    step = max(1, len(data) // count)
    yield from (data[:at] + data[at + step :] for at in range(0, len(data), step))


def keep(finding: Finding, data: bytes) -> Path:
    """Write *data* to the corpus, and return the path."""
    path = CORPUS / finding.target / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
