"""Receipts: the results of smoke runs, with card and versions.

The files ``MATRIX.receipts/CARD.json`` beside a matrix file are evidence that it trains.  A receipt
covers cards with the same compute capability, and its variant of the matrix: as the file was at that
time, with the same versions, or as long as the file asks for its versions.  A plan with other versions
says so.  The smoke runs of this user that passed are in the home of colablock, and count like those
beside the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colablock._common.decoding import is_plain_name, read_bounded
from colablock._common.fs import write_atomic, write_private
from colablock._common.limits import RUN_FILE
from colablock._common.plain_values import from_plain
from colablock._records import dataclass
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.environment.accelerator import Accelerator
from colablock.errors import InvalidInput
from colablock.matrix.model import Absent, Constraint, Matrix, PackageEntry, select_variant
from colablock.transaction.apply_record import RECEIPTS

if TYPE_CHECKING:
    from colablock._vendor.packaging.utils import NormalizedName
    from colablock.training.preflight.facts import ProvenEnvironment

__all__ = [
    "STALE",
    "Receipt",
    "admits",
    "asks_for",
    "card_key",
    "covering_receipt",
    "drop_receipt",
    "is_old",
    "keep_receipt",
    "kept_receipts",
    "proof_note",
    "read_receipts",
    "receipt_from",
    "receipt_to",
    "receipts_folder",
    "write_receipt",
]

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One smoke run.  Losses are in nats per token; *memory* is the peak in bytes.

    *before* and *after* are the losses over fixed rows before and after training, *held* those of
    the run with learning rate 0.  *fell* and *held_still* are the two checks.
    """

    matrix: str
    matrix_digest: str
    variant: str | None
    runner: str
    workarounds: tuple[str, ...]
    lock: str
    python_version: str
    card: str  # its name, or "cpu"
    compute_capability: str | None
    driver: str | None
    cuda: str | None
    precision: str
    quantized: bool  # whether the linear layers were quantised to NF4
    steps: int
    losses: tuple[float, ...]
    before: float
    after: float
    held: tuple[float, float]
    seconds: float
    memory: int
    date: str  # ISO 8601, UTC
    colablock: str
    versions: Mapping[str, str] = field(default_factory=dict)
    runtime: str | None = None
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    @property
    def fell(self) -> bool:
        """Whether the loss fell by more than the difference of two evaluations."""
        return self.after < self.before - MIN_FALL

    @property
    def held_still(self) -> bool:
        """Whether the loss stayed the same with a learning rate of 0."""
        return abs(self.held[1] - self.held[0]) <= MAX_DRIFT

    @property
    def passed(self) -> bool:
        return self.fell and self.held_still


_FIELDS = {"mends": "workarounds"}  # a key of the file → its field
_KEYS = {name: key for key, name in _FIELDS.items()}
#: After this time a receipt is marked as old: drivers, images and indexes have moved on.
STALE = timedelta(days=90)
MIN_FALL = 0.05  # nats per token
MAX_DRIFT = 1e-3
NAMED = 3  # other versions that a note names
MOST_KEPT = 20  # receipts of a matrix in the home of colablock


def receipt_to(receipt: Receipt) -> dict[str, Any]:
    """Return *receipt* as the content of its file."""
    value = {_KEYS.get(name, name): each for name, each in asdict(receipt).items()}
    return {**value, "passed": receipt.passed}


def write_receipt(receipt: Receipt, path: Path) -> None:
    """Write *receipt* to *path* atomically.  Raises InvalidInput if that fails."""
    write_atomic(path, (json.dumps(receipt_to(receipt), indent=2) + "\n").encode())


def receipt_from(value: object, *, source: str) -> Receipt:
    """Return the receipt from the content of its file.  Raises InvalidInput."""
    if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
        raise InvalidInput(f"`{source}` is not a receipt with schema {SCHEMA}")
    try:
        receipt = from_plain(Receipt, {_FIELDS.get(key, key): each for key, each in value.items()}, "receipt")
        _, _ = receipt.held
    except (InvalidInput, ValueError) as error:
        raise InvalidInput(f"`{source}` is not a complete receipt: {error}") from error
    return receipt


def receipts_folder(source: str) -> Path:
    """Return the folder with the receipts of the matrix file *source*."""
    path = Path(source)
    return path.with_name(f"{path.stem}.receipts")


def read_receipts(source: str) -> tuple[Receipt, ...]:
    """Return the receipts of the matrix file *source*, ordered by card; unreadable ones are ignored."""
    return _read_all(receipts_folder(source))


def keep_receipt(receipt: Receipt, home: Path) -> None:
    """Write *receipt*, which passed, to *home* in place of one for the same stack and card, if possible.

    The newest of a matrix are kept.
    """
    if not is_plain_name(receipt.matrix):
        return
    file = _kept_file(home, receipt, receipt.runner, receipt.compute_capability)
    with suppress(OSError):
        write_private(file, (json.dumps(receipt_to(receipt), indent=2) + "\n").encode())
        kept = file.parent.glob("*.json")
        newest_first = sorted(kept, key=lambda path: path.stat().st_mtime, reverse=True)
        for path in newest_first[MOST_KEPT:]:
            path.unlink(missing_ok=True)


def drop_receipt(stack: ProvenEnvironment, runner: str, accelerator: Accelerator, home: Path) -> bool:
    """Delete the kept receipt of *stack* for such a card; return whether there was one."""
    device = accelerator.devices[0] if accelerator.kind == "cuda" else None
    file = _kept_file(home, stack, runner, device.compute_capability if device else None)
    try:
        file.unlink()
    except OSError:
        return False
    return True


def _kept_file(
    home: Path, stack: Receipt | ProvenEnvironment, runner: str, compute_capability: str | None
) -> Path:
    facts = (stack.variant, runner, compute_capability, sorted(stack.versions.items()))
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return home / RECEIPTS / stack.matrix / f"{name}.json"


def kept_receipts(home: Path, name: str) -> tuple[Receipt, ...]:
    """Return the receipts of the matrix *name* in *home*; unreadable ones are ignored."""
    return _read_all(home / RECEIPTS / name) if is_plain_name(name) else ()


def _read_all(folder: Path) -> tuple[Receipt, ...]:
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(read_bounded(path, RUN_FILE))
            found.append(receipt_from(value, source=str(path)))
        except (OSError, ValueError, RecursionError, InvalidInput):  # noqa: PERF203 - a handful of files
            continue
    return tuple(found)


def covering_receipt(
    receipts: Iterable[Receipt],
    accelerator: Accelerator,
    *,
    digest: str,
    variant: str | None = None,
    pins: Mapping[NormalizedName, str] | None = None,
    asked: Matrix | None = None,
) -> Receipt | None:
    """Return a passed receipt for such a card and such a stack; None if there is none.

    The stack is that of the matrix file with *digest*, has the versions *pins*, or is one that the
    matrix *asked* admits.
    With *variant* only receipts of that variant count.  The receipt is the one with the fewest versions
    other than *pins*.
    """
    key = card_key(accelerator)
    found = (
        receipt
        for receipt in receipts
        if key
        and key == ("cpu" if receipt.compute_capability is None else receipt.compute_capability)
        and _is_about(receipt, digest, variant, pins, asked)
    )
    return min(found, key=lambda one: len(_other_versions(one, pins)), default=None)


def proof_note(
    source: str,
    name: str,
    accelerator: Accelerator,
    *,
    digest: str,
    variant: str | None = None,
    pins: Mapping[NormalizedName, str] | None = None,
    asked: Matrix | None = None,
    kept: Iterable[Receipt] = (),
) -> str:
    """Return a sentence that says whether a receipt of the matrix file *source* covers such a card and stack.

    The receipts *kept* count, too.  A receipt with other versions than *pins* is said to have them.
    *digest*, *variant*, *pins* and *asked* are those of `covering_receipt`.
    """
    stack: dict[str, Any] = {"digest": digest, "variant": variant, "pins": pins, "asked": asked}
    test = f"`colablock smoke {name}`"
    receipts = (*read_receipts(source), *kept)
    if accelerator.kind == "cuda" and not accelerator.devices:  # a recorded runtime, with any card
        found_on = [one for one in receipts if one.card != "cpu" and _is_about(one, **stack)]
        if not found_on:
            return f"training with it is not proven on any card; {test} tests it on the card of the machine"
        others = min((_other_versions(one, pins) for one in found_on), key=len)
        same = (one.card for one in found_on if _other_versions(one, pins) == others)
        where = ", ".join(dict.fromkeys(same)) + _with(others, asked)
        return f"training with it is proven on {where}; {test} tests it on the card of the machine"
    found = covering_receipt(receipts, accelerator, **stack)
    if found is not None:
        where = "a CPU" if found.card == "cpu" else found.card
        others = _other_versions(found, pins)
        proven = f"training with it is proven on {where} ({found.date[:10]}){_with(others, asked)}"
        return f"{proven}; {test} tests these versions in minutes" if others else proven
    here = accelerator.devices[0].name if accelerator.devices else "a CPU"
    return f"training with it is not proven on {here}; {test} tests it in minutes"


def _other_versions(receipt: Receipt, pins: Mapping[NormalizedName, str] | None) -> dict[str, str]:
    """Return the versions of *receipt* that are not those of *pins*, "" for a project that it lacks.

    As in a specifier, a version without a local label stands for each of its builds.
    """
    of_pins = {str(name): (receipt.versions.get(name, ""), text) for name, text in (pins or {}).items()}
    return {name: has for name, (has, text) in of_pins.items() if not _is_same(has, text)}


def _is_same(one: str, other: str) -> bool:
    (public, _, label), (its_public, _, its_label) = one.partition("+"), other.partition("+")
    return public == its_public and (label == its_label or not (label and its_label))


def _with(others: Mapping[str, str], asked: Matrix | None) -> str:
    """Return what a note adds for these *others*: up to three, those that the matrix names first."""
    if not others:
        return ""
    named = [str(entry.name) for entry in asked.packages if entry.name in others] if asked else []
    first = list(dict.fromkeys((*named, *sorted(others))))[:NAMED]
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    texts = [f"{name} {others[name]}" if others[name] else f"no {name}" for name in first]
    return f" with other versions only ({', '.join(texts)}{more})"


def is_old(date: str, now: datetime) -> bool:
    """Whether *date* (ISO 8601, UTC) is long ago; False for a text that is no date."""
    try:
        return now - datetime.fromisoformat(f"{date[:19]}+00:00") > STALE
    except ValueError:
        return False


def _is_about(
    receipt: Receipt,
    digest: str,
    variant: str | None,
    pins: Mapping[NormalizedName, str] | None,
    asked: Matrix | None,
) -> bool:
    """Whether *receipt* passed with that variant: of that file, with these versions, or as *asked* admits."""
    if not receipt.passed or (variant is not None and receipt.variant != variant):
        return False
    is_same = bool(pins) and all(receipt.versions.get(name) == text for name, text in (pins or {}).items())
    return is_same or receipt.matrix_digest == digest or (asked is not None and admits(asked, receipt))


def admits(matrix: Matrix, receipt: Receipt) -> bool:
    """Whether *matrix*, as its file is now, asks for the stack of *receipt*, and no further workarounds.

    So a new comment or a wider range makes no receipt void.
    """
    if receipt.runner == matrix.train.runner and set(matrix.train.workarounds) - set(receipt.workarounds):
        return False
    return asks_for(matrix, receipt.variant, receipt.python_version, receipt.versions)


def asks_for(matrix: Matrix, variant: str | None, python: str, versions: Mapping[str, str]) -> bool:
    """Whether *variant* of *matrix* asks for a stack of these *versions* on this Python."""
    if variant != matrix.variant:
        if variant not in matrix.variants:
            return False
        matrix = select_variant(matrix, Accelerator(), variant)
    entries: tuple[PackageEntry | Constraint, ...] = (*matrix.packages, *matrix.constraints)
    try:
        is_its_python = matrix.requires_python.contains(python, prereleases=True)
        return (
            is_its_python
            and all(_has(versions, entry) for entry in entries)
            and not any(_is_forbidden(versions, absent) for absent in matrix.absent)
        )
    except InvalidVersion:
        return False


def _has(versions: Mapping[str, str], entry: PackageEntry | Constraint) -> bool:
    """Whether *versions* are as *entry* asks; a constraint and a marker ask for no package."""
    text = versions.get(entry.name)
    if text is None:
        return entry.marker is not None or not isinstance(entry, PackageEntry)
    version = Version(text)
    archive = entry.version if isinstance(entry, PackageEntry) and entry.url else None
    if archive is not None and version.public != Version(archive).public:
        return False
    return entry.specifier.contains(version, prereleases=True)


def _is_forbidden(versions: Mapping[str, str], absent: Absent) -> bool:
    """Whether *versions* have a version that *absent* forbids."""
    text = versions.get(absent.name)
    return text is not None and absent.specifier.contains(Version(text), prereleases=True)


def card_key(accelerator: Accelerator) -> str:
    """Return the key of machines that run the same kernels: a compute capability such as ``9.0``, or ``cpu``.

    The key is empty if the compute capability of a card is unknown.
    """
    capabilities = [device.capability for device in accelerator.devices]
    known = [one for one in capabilities if one is not None]
    if len(known) < len(capabilities):
        return ""
    return "{}.{}".format(*min(known)) if known else "cpu"
