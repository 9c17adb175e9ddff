"""The accelerator of this machine as facts: driver, CUDA, compute capability, memory."""

# The loader of shared libraries takes strings.
# ruff: noqa: PTH110, PTH118

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from colablock._common.process import ChildFailed, clean_environment, run_child
from colablock._common.text import near
from colablock._vendor.packaging.version import InvalidVersion, Version
from colablock.errors import NotFound

__all__ = [
    "CARDS",
    "NF4_ON_CPU",
    "Accelerator",
    "Device",
    "DriverError",
    "NvmlMemory",
    "accelerators_of",
    "call_nvml",
    "cuda_of_driver",
    "declared",
    "detect",
    "has_nf4",
    "nvml_devices",
    "open_nvml",
    "parse_nvidia_smi",
    "run_nvidia_smi",
]

#: The first bitsandbytes that quantises to 4 bits (NF4) without a GPU, as a release: it registers the kernels
#: of ``quantize_4bit`` for CPUs, and 0.45 asks for CUDA.  A script in a target gets this with its job.
NF4_ON_CPU = (0, 46)
_GIB = 2**30
_QUERY = "name,driver_version,memory.total,compute_cap"
_SECONDS = 20.0  # a sick driver can keep nvidia-smi waiting for minutes

#: The first driver of each CUDA release on Linux, newest first (NVIDIA's CUDA release notes, table 3).
_CUDA_OF_DRIVER = (
    ((590, 44), "13.1"),
    ((580, 65), "13.0"),
    ((575, 51), "12.9"),
    ((570, 26), "12.8"),
    ((560, 28), "12.6"),
    ((555, 42), "12.5"),
    ((550, 54), "12.4"),
    ((545, 23), "12.3"),
    ((535, 54), "12.2"),
    ((530, 30), "12.1"),
    ((525, 60), "12.0"),
    ((520, 61), "11.8"),
    ((515, 43), "11.7"),
    ((510, 39), "11.6"),
    ((495, 29), "11.5"),
    ((470, 42), "11.4"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One card.  *compute_capability* as in ``"7.5"``, empty where nobody tells; *memory* in bytes."""

    name: str
    compute_capability: str
    memory: int

    @property
    def capability(self) -> tuple[int, int] | None:
        """The compute capability as numbers that compare; None where nobody tells."""
        major, _, minor = self.compute_capability.partition(".")
        return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """What a training stack has to fit; ``kind == "none"`` is a fact too.

    *driver* is the driver's version, *cuda* the newest CUDA version that the
    driver supports.  *source* says how it was learnt: ``nvml``,
    ``nvidia-smi``, ``recorded``, ``declared`` or ``none``.
    """

    kind: str = "none"  # "cuda", "tpu" or "none"
    driver: str | None = None
    cuda: str | None = None
    devices: tuple[Device, ...] = ()
    source: str = "none"
    note: str | None = None


#: The cards that hosted notebooks give out, by the name in their menus.
_DECLARED = {
    "T4": Device(name="Tesla T4", compute_capability="7.5", memory=15 * _GIB),
    "L4": Device(name="NVIDIA L4", compute_capability="8.9", memory=22 * _GIB),
    "A100": Device(name="NVIDIA A100-SXM4-40GB", compute_capability="8.0", memory=40 * _GIB),
    "H100": Device(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", memory=80 * _GIB),
    "G4": Device(
        name="NVIDIA RTX PRO 6000 Blackwell Server Edition", compute_capability="12.0", memory=95 * _GIB
    ),
    "P100": Device(name="Tesla P100-PCIE-16GB", compute_capability="6.0", memory=16 * _GIB),
}


#: Their names, in the order in which tables show them.
CARDS = tuple(_DECLARED)


def declared(name: str) -> Accelerator:
    """Return the accelerator that *name* (``T4``, ``none``, ...) stands for.  Raises NotFound."""
    wanted = name.strip().upper()
    if wanted == "NONE":
        return Accelerator(source="declared")
    if wanted in _DECLARED:
        return Accelerator(kind="cuda", devices=(_DECLARED[wanted],), source="declared")
    known = [*_DECLARED, "none"]
    hint = near(wanted, known) or f"known ones are {', '.join(known)}"
    message = f"no accelerator is known as `{name}`"
    raise NotFound(message, hint=hint)


def detect(environ: Mapping[str, str]) -> Accelerator:
    """Return what accelerator this machine has; never raises, and says in *note* why there is none."""
    found = _ask_nvml(environ)
    if isinstance(found, str):
        why = found
        found = _ask_nvidia_smi(environ)
        if isinstance(found, str):
            return _without_gpu(environ, f"{why}; {found}")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return replace(found, note=f"CUDA_VISIBLE_DEVICES is `{visible}`: a process may see fewer of the cards")


def _without_gpu(environ: Mapping[str, str], note: str) -> Accelerator:
    for name in ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR"):
        if environ.get(name):
            return Accelerator(kind="tpu", note=f"{name} is `{environ[name]}`")
    return Accelerator(note=note)


def cuda_of_driver(driver: str) -> str | None:
    """Return the newest CUDA version that a Linux *driver* supports, as NVIDIA's release notes say."""
    try:
        major, minor = (int(part) for part in driver.split(".")[:2])
    except ValueError:
        return None
    for first, cuda in _CUDA_OF_DRIVER:
        if (major, minor) >= first:
            return cuda
    return None


def parse_nvidia_smi(output: str) -> Accelerator | str:
    """Return the accelerator of ``nvidia-smi --format=csv,noheader,nounits``, or why it shows none."""
    devices, driver = [], None
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(_QUERY.split(",")):
            continue
        try:
            memory = int(float(fields[2]) * 2**20)
        except ValueError:  # "[N/A]" where memory is shared with the host
            memory = 0
        driver = fields[1]
        capability = fields[3] if fields[3][:1].isdigit() else ""
        devices.append(Device(name=fields[0], compute_capability=capability, memory=memory))
    if not devices or driver is None:
        return "nvidia-smi lists no card"
    cuda = cuda_of_driver(driver)
    return Accelerator(kind="cuda", driver=driver, cuda=cuda, devices=tuple(devices), source="nvidia-smi")


def _ask_nvidia_smi(environ: Mapping[str, str]) -> Accelerator | str:
    try:
        return parse_nvidia_smi(run_nvidia_smi(environ, f"--query-gpu={_QUERY}"))
    except DriverError as error:
        return str(error)


def run_nvidia_smi(environ: Mapping[str, str], question: str) -> str:
    """Return what nvidia-smi answers to *question*, a row for each line.  Raises DriverError."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        message = "there is no nvidia-smi"
        raise DriverError(message)
    command = [program, question, "--format=csv,noheader,nounits"]
    try:
        return run_child(command, environ=clean_environment(environ), timeout=_SECONDS).text
    except ChildFailed as error:
        said = (error.output.error_text or error.output.text).strip().splitlines()
        raise DriverError(f"nvidia-smi failed: {said[0] if said else error}") from error


class DriverError(Exception):
    """A question that the driver, its library or its program, did not answer."""


class NvmlMemory(ctypes.Structure):
    """``nvmlMemory_t``: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _ask_nvml(environ: Mapping[str, str]) -> Accelerator | str:
    """Return what the driver's own library says, or why it says nothing."""
    try:
        with open_nvml(environ) as library:
            return _read_nvml(library)
    except (DriverError, OSError, ValueError) as error:
        return str(error)


@contextmanager
def open_nvml(environ: Mapping[str, str]) -> Iterator[ctypes.CDLL]:
    """Give the driver's own library, ready to be asked.  Raises DriverError."""
    library = _load_nvml(environ)
    if library is None:
        message = "there is no NVML library"
        raise DriverError(message)
    call_nvml(library, "nvmlInit_v2")
    try:
        yield library
    finally:
        call_nvml(library, "nvmlShutdown")


def _load_nvml(environ: Mapping[str, str]) -> ctypes.CDLL | None:
    """Return the driver's own library, None where there is none."""
    # The loader has read LD_LIBRARY_PATH when this process began; *environ* may know better.
    folders = [folder for folder in environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    for folder in [*folders, "", "/usr/lib64-nvidia"]:
        path = os.path.join(folder, "libnvidia-ml.so.1")
        if folder and not os.path.exists(path):
            continue
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def call_nvml(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Call a function of the driver's library.  Raises DriverError where it does not succeed."""
    try:
        status = getattr(library, function)(*arguments)
    except AttributeError as error:
        message = f"NVML did not answer: it has no {function}"
        raise DriverError(message) from error
    if status != 0:
        message = f"NVML did not answer: {function} returned {status}"
        raise DriverError(message)


def _read_nvml(library: ctypes.CDLL) -> Accelerator | str:
    driver = ctypes.create_string_buffer(96)
    call_nvml(library, "nvmlSystemGetDriverVersion", driver, ctypes.c_uint(len(driver)))
    cuda = ctypes.c_int()
    call_nvml(library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(cuda))
    devices = tuple(_read_devices(library))
    if not devices:
        return "the driver lists no card"
    return Accelerator(
        kind="cuda",
        driver=driver.value.decode("ascii", "replace"),
        cuda=f"{cuda.value // 1000}.{cuda.value % 1000 // 10}",
        devices=devices,
        source="nvml",
    )


def nvml_devices(library: ctypes.CDLL) -> Iterator[ctypes.c_void_p]:
    """Yield the driver's handle of each card, in its order.  Raises DriverError."""
    count = ctypes.c_uint()
    call_nvml(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    for index in range(count.value):
        device = ctypes.c_void_p()
        call_nvml(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
        yield device


def _read_devices(library: ctypes.CDLL) -> Iterator[Device]:
    for device in nvml_devices(library):
        name = ctypes.create_string_buffer(96)
        call_nvml(library, "nvmlDeviceGetName", device, name, ctypes.c_uint(len(name)))
        memory = NvmlMemory()
        call_nvml(library, "nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
        major, minor = ctypes.c_int(), ctypes.c_int()
        call_nvml(
            library,
            "nvmlDeviceGetCudaComputeCapability",
            device,
            ctypes.byref(major),
            ctypes.byref(minor),
        )
        yield Device(
            name=name.value.decode("utf-8", "replace"),
            compute_capability=f"{major.value}.{minor.value}",
            memory=memory.total,
        )


def accelerators_of(recorded: Accelerator) -> dict[str, Accelerator]:
    """Return the accelerators that a runtime recorded with *recorded* may have, by their menu names."""
    if recorded.kind != "cuda":
        return {"none": Accelerator()}
    return {card: replace(declared(card), driver=recorded.driver, cuda=recorded.cuda) for card in CARDS}


def has_nf4(bitsandbytes: str, *, has_gpu: bool) -> bool:
    """Whether this version of bitsandbytes quantises to 4 bits (NF4) on a machine with or without a GPU.

    True for what is not a valid version (PEP 440): nothing is known against it.
    """
    try:
        return has_gpu or Version(bitsandbytes).release >= NF4_ON_CPU
    except InvalidVersion:
        return True
