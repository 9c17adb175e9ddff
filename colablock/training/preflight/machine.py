"""Read the facts for preflight: cards, memory, disk space, other processes, and the stack of the target."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from colablock._common.decoding import Malformed, fitted
from colablock._common.fs import free_space, is_same_disk
from colablock.environment.accelerator import (
    Accelerator,
    Device,
    DriverError,
    NvmlMemory,
    call_nvml,
    detect,
    nvml_devices,
    open_nvml,
    run_nvidia_smi,
)
from colablock.errors import Unmet
from colablock.training.preflight.facts import Card, Machine, Stack
from colablock.training.preflight.hub_cache import HubCache

__all__ = [
    "STACK_TIMEOUT",
    "card_of",
    "is_exclusive",
    "read_machine",
    "stack_from",
    "system_memory",
    "visible",
]

#: Seconds for the target to report its stack: the first import of torch from a cold disk is slow.
STACK_TIMEOUT = 300.0

_UNKNOWN = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """The current use of a card.  *processes* are pairs of a process id and the bytes that it uses.

    With *is_sliced*, processes see slices of the card (MIG).
    """

    uuid: str
    free: int | None
    processes: tuple[tuple[int, int], ...] = ()
    is_sliced: bool = False


class _Process(ctypes.Structure):
    """``nvmlProcessInfo_t`` since its second version."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


def read_machine(
    environ: Mapping[str, str],
    folder: Path,
    *,
    accelerator: Accelerator | None = None,
    modules: Mapping[str, Any] = sys.modules,
    root: Path = Path("/"),
) -> Machine:
    """Return the state of this machine for a run that writes to *folder*; never raises.

    *accelerator* is this machine's, if it is known already.  Only cards in
    ``CUDA_VISIBLE_DEVICES`` are included.  The memory that this process uses comes from the
    driver.  In a container the driver may not see process ids; then it comes from the torch in
    *modules*.
    """
    accelerator = accelerator or detect(environ)
    devices = accelerator.devices
    uses = _uses(environ, len(devices)) if devices else []
    seen = _visible(environ, uses)
    cards = tuple(card_of(devices[at], uses[at].free) for at in seen)
    own = os.getpid()
    held: dict[int, int] = {}
    for at in seen:
        for process, size in uses[at].processes:
            held[process] = held.get(process, 0) + size
    ram, ram_free = system_memory(root)
    cache = HubCache.from_environ(environ).folder
    return Machine(
        cards=cards,
        ram=ram,
        ram_free=ram_free,
        disk_free=free_space(folder),
        cache_free=None if is_same_disk(cache, folder) else free_space(cache),
        kernel_memory=max(held.pop(own, 0), _reserved_by_torch(modules)),
        other_processes=tuple(_process_name(process, root) for process in sorted(held)),
        accelerator=_seen(accelerator, seen),
        has_slices=bool(seen) and (_names_slices(environ) or uses[seen[0]].is_sliced),
    )


def is_exclusive(environ: Mapping[str, str]) -> bool:
    """Whether a card takes only one process at a time, as its compute mode says; false if it is unknown."""
    modes = _rows(environ, "--query-gpu=compute_mode")
    return any(row[0].startswith("Exclusive") for row in modes)


def visible(accelerator: Accelerator, environ: Mapping[str, str]) -> Accelerator:
    """Return *accelerator* with only the cards that CUDA shows to a process with *environ*, in that order."""
    uses = _uses(environ, len(accelerator.devices)) if accelerator.devices else []
    return _seen(accelerator, _visible(environ, uses))


def _seen(accelerator: Accelerator, places: Sequence[int]) -> Accelerator:
    if not places:
        return Accelerator()
    return replace(accelerator, devices=tuple(accelerator.devices[at] for at in places))


def stack_from(answer: Mapping[str, Any], python: Path | str, matrix: str = "NAME") -> Stack:
    """Return the stack that a process of *python*, to which *matrix* was applied, has reported.

    Raises Unmet if torch or transformers is missing or cannot be imported.
    """
    if "error" in answer:
        hint = (
            f"`colablock verify {matrix}` checks what the matrix asks for; one that trains has torch,"
            " transformers and a training library under `[packages]`"
        )
        raise Unmet(f"the environment of `{python}` cannot train: {answer['error']}", hint=hint)
    try:
        return fitted(dict(answer), Stack)
    except Malformed as error:
        raise Unmet(f"`{python}` could not report its stack: {error}") from error


def system_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Return the bytes of memory that this process may use, and the free bytes; 0 if unknown.

    In a container the smallest limit of its control groups applies.
    """
    fields = dict(_pairs(_text(root / "proc/meminfo").replace(" kB", "")))
    total, free = fields.get("MemTotal", 0) << 10, fields.get("MemAvailable", 0) << 10
    for limit, used in _limits(root):
        if limit < total:
            total, free = limit, min(free, max(limit - used, 0))
    return total, free


def card_of(device: Device, free: int | None = None) -> Card:
    """Return the card of a device."""
    return Card(name=device.name, compute_capability=device.capability, memory=device.memory, free=free)


def _names_slices(environ: Mapping[str, str]) -> bool:
    return environ.get("CUDA_VISIBLE_DEVICES", "").strip().startswith("MIG-")


def _visible(environ: Mapping[str, str], uses: Sequence[_Use]) -> list[int]:
    """Return the indices of the cards that CUDA shows.

    A process sees only the first of several MIG slices, and no card beside it.
    """
    found = _named(environ, uses)
    return [at for at in found if uses[at].is_sliced][:1] or found


def _named(environ: Mapping[str, str], uses: Sequence[_Use]) -> list[int]:
    """Return the indices of the cards in CUDA_VISIBLE_DEVICES.  CUDA stops at the first invalid entry."""
    count = len(uses)
    text = environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return list(range(count))
    if _names_slices(environ):
        return list(range(count))[:1]
    found: list[int] = []
    for word in (part.strip() for part in text.split(",")):
        if word.isdecimal():
            places = [int(word)] if int(word) < count else []
        else:
            places = [at for at, use in enumerate(uses) if word and use.uuid.startswith(word)]
        if len(places) != 1 or places[0] in found:
            break
        found += places
    return found


def _uses(environ: Mapping[str, str], count: int) -> list[_Use]:
    """Return the use of each of *count* cards in the driver's order; without values if it is unknown."""
    found = _query_nvml(environ) or _query_nvidia_smi(environ)
    return found if len(found) == count else [_Use(uuid="", free=None)] * count


def _query_nvml(environ: Mapping[str, str]) -> list[_Use]:
    with suppress(DriverError, OSError, ValueError), open_nvml(environ) as library:
        return [_read_use(library, device) for device in nvml_devices(library)]
    return []


def _read_use(library: ctypes.CDLL, device: ctypes.c_void_p) -> _Use:
    memory, uuid = NvmlMemory(), ctypes.create_string_buffer(96)
    call_nvml(library, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    call_nvml(library, "nvmlDeviceGetUUID", device, uuid, ctypes.c_uint(len(uuid)))
    mode, next_mode = ctypes.c_uint(), ctypes.c_uint()
    with suppress(DriverError):  # a card or a driver without MIG
        call_nvml(library, "nvmlDeviceGetMigMode", device, ctypes.byref(mode), ctypes.byref(next_mode))
    return _Use(
        uuid=uuid.value.decode("ascii", "replace"),
        free=memory.free,
        processes=tuple(_processes(library, device)),
        is_sliced=mode.value == 1,
    )


def _processes(library: ctypes.CDLL, device: ctypes.c_void_p) -> Iterator[tuple[int, int]]:
    """Yield the processes that compute on *device*; nothing if the driver does not have the function."""
    rows = (_Process * 256)()
    count = ctypes.c_uint(len(rows))
    for version in ("v3", "v2"):
        with suppress(DriverError):
            function = f"nvmlDeviceGetComputeRunningProcesses_{version}"
            call_nvml(library, function, device, ctypes.byref(count), rows)
            for row in rows[: count.value]:
                yield row.pid, 0 if row.used == _UNKNOWN else row.used
            return


def _query_nvidia_smi(environ: Mapping[str, str]) -> list[_Use]:
    holding: dict[str, list[tuple[int, int]]] = {}
    for row in _rows(environ, "--query-compute-apps=gpu_uuid,pid,used_memory"):
        if len(row) == 3 and row[1].isdecimal():  # noqa: PLR2004 - three fields were queried
            holding.setdefault(row[0], []).append((int(row[1]), _mebibytes(row[2]) or 0))
    return [
        _Use(uuid=row[0], free=_mebibytes(row[1]), processes=tuple(holding.get(row[0], ())))
        for row in _rows(environ, "--query-gpu=uuid,memory.free")
        if len(row) == 2  # noqa: PLR2004 - two fields were queried
    ]


def _rows(environ: Mapping[str, str], question: str) -> list[list[str]]:
    try:
        lines = run_nvidia_smi(environ, question).splitlines()
    except DriverError:
        return []
    return [[field.strip() for field in line.split(",")] for line in lines]


def _mebibytes(text: str) -> int | None:
    return int(text) << 20 if text.isdecimal() else None  # "[N/A]" if unknown


def _reserved_by_torch(modules: Mapping[str, Any]) -> int:
    """Return the bytes that this process's torch has reserved on all cards, without the CUDA context."""
    cuda = getattr(modules.get("torch"), "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return 0
        return sum(int(cuda.memory_reserved(at)) for at in range(cuda.device_count()))
    except Exception:  # noqa: BLE001 - torch may have been replaced on disk, or be a stub
        return 0


def _process_name(process: int, root: Path) -> str:
    name = _text(root / "proc" / str(process) / "comm").strip()
    return f"{name} (pid {process})" if name else f"a process outside this container (pid {process})"


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit and the use of every control group of this process, in bytes (cgroups(7)).

    Inactive file pages are subtracted from the use, since the kernel frees them on demand.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "-", "")
        if controllers == "":
            names = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = (
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        base, limit, usage, idle = names
        inner = Path(path.lstrip("/"))
        for group in (root / base / one for one in (inner, *inner.parents)):
            allowed, used = _text(group / limit).strip(), _text(group / usage).strip()
            if allowed.isdecimal() and used.isdecimal():
                idling = dict(_pairs(_text(group / "memory.stat"))).get(idle, 0)
                yield int(allowed), max(int(used) - idling, 0)


def _pairs(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) == 2 and words[1].isdecimal():  # noqa: PLR2004 - a name and a number
            yield words[0], int(words[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
