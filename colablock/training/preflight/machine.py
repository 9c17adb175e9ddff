"""What a run meets: the cards with their free memory, who holds the rest, memory and disk; and the stack."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from colablock.environment.target_script import ask_target
from colablock.errors import Unmet
from colablock.training.preflight.facts import Card, Machine, Stack
from colablock.training.preflight.hub import HubCache
from colablock.training.scripts import FOLDER as SCRIPTS

__all__ = ["card_of", "read_machine", "read_stack", "system_memory", "visible"]

_STACK_SECONDS = 300.0  # the first import of torch from a cold disk
_UNKNOWN = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Use:
    """How a card is used now.  *processes* are pairs of a process' number and the bytes that it holds."""

    uuid: str
    free: int | None
    processes: tuple[tuple[int, int], ...] = ()


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
    """Return what there is for a run that writes into *folder*; never raises.

    *accelerator* is what this machine has, where that is known already.  Of the cards
    those count that ``CUDA_VISIBLE_DEVICES`` leaves.  What this kernel
    holds of them is told by the driver or, in a container where it knows no process
    numbers, by the torch among *modules*.
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
    cache = HubCache.of(environ).folder
    return Machine(
        cards=cards,
        ram=ram,
        ram_free=ram_free,
        disk_free=free_space(folder),
        cache_free=None if is_same_disk(cache, folder) else free_space(cache),
        held=max(held.pop(own, 0), _held_by_torch(modules)),
        holders=tuple(_named(process, root) for process in sorted(held)),
        accelerator=_seen(accelerator, seen),
        has_slices=bool(seen) and _names_slices(environ),
    )


def visible(accelerator: Accelerator, environ: Mapping[str, str]) -> Accelerator:
    """Return *accelerator* with the cards that CUDA shows a process with these variables, in their order."""
    uses = _uses(environ, len(accelerator.devices)) if accelerator.devices else []
    return _seen(accelerator, _visible(environ, uses))


def _seen(accelerator: Accelerator, places: Sequence[int]) -> Accelerator:
    if not places:
        return Accelerator()
    return replace(accelerator, devices=tuple(accelerator.devices[at] for at in places))


def read_stack(python: Path, environ: Mapping[str, str]) -> Stack:
    """Return what the environment of *python* trains with, as it says itself in a process of its own.

    Raises Unmet where torch or transformers is missing or does not import there.
    """
    told = ask_target(
        python,
        SCRIPTS / "describe_stack.py",
        {},
        doing="tell its stack",
        environ=environ,
        timeout=_STACK_SECONDS,
    )
    if "error" in told:
        hint = "`colablock verify` says what else does not work there"
        raise Unmet(f"the environment of `{python}` cannot train: {told['error']}", hint=hint)
    return Stack(
        torch=told["torch"],
        arch_list=tuple(told["arch_list"]),
        transformers=told["transformers"],
        trl=told["trl"],
        bitsandbytes=told["bitsandbytes"],
        axolotl=told["axolotl"],
        flash_attn=told["flash_attn"],
        model_types=frozenset(told["model_types"]),
        rope_types=frozenset(told["rope_types"]),
        reporters=frozenset(told["reporters"]),
    )


def system_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Return the memory that this process may use, and how much of it is free; 0 where nothing tells.

    A container has less than its host: the smallest limit of its control groups counts.
    """
    fields = dict(_pairs(_text(root / "proc/meminfo").replace(" kB", "")))
    total, free = fields.get("MemTotal", 0) << 10, fields.get("MemAvailable", 0) << 10
    for limit, used in _limits(root):
        if limit < total:
            total, free = limit, min(free, max(limit - used, 0))
    return total, free


def card_of(device: Device, free: int | None = None) -> Card:
    """Return a device as a card."""
    return Card(name=device.name, compute_capability=device.capability, memory=device.memory, free=free)


def _names_slices(environ: Mapping[str, str]) -> bool:
    return environ.get("CUDA_VISIBLE_DEVICES", "").strip().startswith("MIG-")


def _visible(environ: Mapping[str, str], uses: Sequence[_Use]) -> list[int]:
    """Return the places of the cards that CUDA shows: it stops at the first that it does not know.

    Of the parts of a card (MIG) a process sees the first one only.
    """
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
    """Return how each of *count* cards is used, in the driver's order; nothing is known of those left out."""
    found = _ask_nvml(environ) or _ask_nvidia_smi(environ)
    return found if len(found) == count else [_Use(uuid="", free=None)] * count


def _ask_nvml(environ: Mapping[str, str]) -> list[_Use]:
    with suppress(DriverError, OSError, ValueError), open_nvml(environ) as library:
        return [_read_use(library, device) for device in nvml_devices(library)]
    return []


def _read_use(library: ctypes.CDLL, device: ctypes.c_void_p) -> _Use:
    memory, uuid = NvmlMemory(), ctypes.create_string_buffer(96)
    call_nvml(library, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    call_nvml(library, "nvmlDeviceGetUUID", device, uuid, ctypes.c_uint(len(uuid)))
    return _Use(
        uuid=uuid.value.decode("ascii", "replace"),
        free=memory.free,
        processes=tuple(_processes(library, device)),
    )


def _processes(library: ctypes.CDLL, device: ctypes.c_void_p) -> Iterator[tuple[int, int]]:
    """Yield who computes on *device*; nothing where the driver is older than the question."""
    rows = (_Process * 256)()
    count = ctypes.c_uint(len(rows))
    for version in ("v3", "v2"):
        with suppress(DriverError):
            function = f"nvmlDeviceGetComputeRunningProcesses_{version}"
            call_nvml(library, function, device, ctypes.byref(count), rows)
            for row in rows[: count.value]:
                yield row.pid, 0 if row.used == _UNKNOWN else row.used
            return


def _ask_nvidia_smi(environ: Mapping[str, str]) -> list[_Use]:
    holding: dict[str, list[tuple[int, int]]] = {}
    for row in _rows(environ, "--query-compute-apps=gpu_uuid,pid,used_memory"):
        if len(row) == 3 and row[1].isdecimal():  # noqa: PLR2004 - as asked
            holding.setdefault(row[0], []).append((int(row[1]), _mebibytes(row[2]) or 0))
    return [
        _Use(uuid=row[0], free=_mebibytes(row[1]), processes=tuple(holding.get(row[0], ())))
        for row in _rows(environ, "--query-gpu=uuid,memory.free")
        if len(row) == 2  # noqa: PLR2004 - as asked
    ]


def _rows(environ: Mapping[str, str], question: str) -> list[list[str]]:
    try:
        lines = run_nvidia_smi(environ, question).splitlines()
    except DriverError:
        return []
    return [[field.strip() for field in line.split(",")] for line in lines]


def _mebibytes(text: str) -> int | None:
    return int(text) << 20 if text.isdecimal() else None  # "[N/A]" where nobody knows


def _held_by_torch(modules: Mapping[str, Any]) -> int:
    """Return what the torch of this kernel keeps of all cards, without its context of some hundred MB."""
    cuda = getattr(modules.get("torch"), "cuda", None)
    try:
        if cuda is None or not cuda.is_initialized():
            return 0
        return sum(int(cuda.memory_reserved(at)) for at in range(cuda.device_count()))
    except Exception:  # noqa: BLE001 - a torch that was replaced on disk, or stands in for one
        return 0


def _named(process: int, root: Path) -> str:
    name = _text(root / "proc" / str(process) / "comm").strip()
    return f"{name} (pid {process})" if name else f"a process outside of this container (pid {process})"


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use of every control group that this process is in (cgroups(7)).

    Pages of files that nobody asked for lately are used, and free for the asking.
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
