"""The accelerator of this machine: driver, CUDA version, compute capability and memory."""

# The loader of shared libraries takes strings.
# ruff: noqa: PTH110, PTH118

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from colablock._common.child_environment import Purpose, child_environment
from colablock._common.process import ChildFailed, find_program, run_child
from colablock._common.text import near
from colablock._records import dataclass
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

#: The first release of bitsandbytes that quantises to 4 bits (NF4) without a GPU: it registers CPU kernels
#: for ``quantize_4bit``; 0.45 needs CUDA.  Scripts that run in a target receive this value with their job.
NF4_ON_CPU = (0, 46)
_GIB = 2**30
_QUERY = "name,driver_version,memory.total,compute_cap"
_SECONDS = 20.0  # with a faulty driver nvidia-smi can take minutes

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
    """One card.  *compute_capability* is like ``"7.5"``, or empty if unknown; *memory* is in bytes."""

    name: str
    compute_capability: str
    memory: int

    @property
    def capability(self) -> tuple[int, int] | None:
        """The compute capability as a pair of numbers; None if it is unknown."""
        major, _, minor = self.compute_capability.partition(".")
        return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """The accelerator that a training stack must support; ``kind == "none"`` means that there is none.

    *driver* is the version of the driver, *cuda* the newest CUDA version that the
    driver supports.  *source* is ``nvml``, ``nvidia-smi``, ``recorded``, ``declared``
    or ``none``.
    """

    kind: str = "none"  # "cuda", "tpu" or "none"
    driver: str | None = None
    cuda: str | None = None
    devices: tuple[Device, ...] = ()
    source: str = "none"
    note: str | None = None


#: The cards that hosted notebooks offer, by their name in the menu.
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


#: The names of the cards, in the order of the tables.
CARDS = tuple(_DECLARED)


def declared(name: str) -> Accelerator:
    """Return the accelerator with this *name* (``T4``, ``none``, ...).  Raises NotFound."""
    wanted = name.strip().upper()
    if wanted == "NONE":
        return Accelerator(source="declared")
    if wanted in _DECLARED:
        return Accelerator(kind="cuda", devices=(_DECLARED[wanted],), source="declared")
    known = [*_DECLARED, "none"]
    hint = near(wanted, known) or f"the known accelerators are {', '.join(known)}"
    message = f"the accelerator `{name}` is unknown"
    raise NotFound(message, hint=hint)


def detect(environ: Mapping[str, str]) -> Accelerator:
    """Return the accelerator of this machine.  Never raises; *note* says why there is none."""
    found = _ask_nvml(environ)
    if isinstance(found, str):
        why = found
        found = _ask_nvidia_smi(environ)
        if isinstance(found, str):
            return _without_gpu(environ, f"{why}; {found}")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return replace(found, note=f"CUDA_VISIBLE_DEVICES is `{visible}`, so a process may see fewer cards")


def _without_gpu(environ: Mapping[str, str], note: str) -> Accelerator:
    for name in ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR"):
        if environ.get(name):
            return Accelerator(kind="tpu", note=f"{name} is `{environ[name]}`")
    return Accelerator(note=note)


def cuda_of_driver(driver: str) -> str | None:
    """Return the newest CUDA version that a Linux *driver* supports, by NVIDIA's release notes."""
    try:
        major, minor = (int(part) for part in driver.split(".")[:2])
    except ValueError:
        return None
    for first, cuda in _CUDA_OF_DRIVER:
        if (major, minor) >= first:
            return cuda
    return None


def parse_nvidia_smi(output: str) -> Accelerator | str:
    """Parse the output of ``nvidia-smi --format=csv,noheader,nounits``; return why if it lists no card."""
    devices, driver = [], None
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(_QUERY.split(",")):
            continue
        try:
            memory = int(float(fields[2]) * 2**20)
        except (ValueError, OverflowError):  # "[N/A]" where memory is shared with the host
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
    """Return the output of nvidia-smi for the option *question*, one row per line.  Raises DriverError."""
    program = find_program("nvidia-smi", environ)
    if program is None:
        message = "there is no nvidia-smi"
        raise DriverError(message)
    command = [program, question, "--format=csv,noheader,nounits"]
    try:
        return run_child(command, environ=child_environment(Purpose.LOCAL, environ), timeout=_SECONDS).text
    except ChildFailed as error:
        said = (error.output.error_text or error.output.text).strip().splitlines()
        raise DriverError(f"nvidia-smi failed: {said[0] if said else error}") from error


class DriverError(Exception):
    """NVML or nvidia-smi failed."""


class NvmlMemory(ctypes.Structure):
    """``nvmlMemory_t``: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _ask_nvml(environ: Mapping[str, str]) -> Accelerator | str:
    """Return the accelerator that NVML reports, or the reason why it reports none."""
    try:
        with open_nvml(environ) as library:
            return _read_nvml(library)
    except (DriverError, OSError, ValueError) as error:
        return str(error)


@contextmanager
def open_nvml(environ: Mapping[str, str]) -> Iterator[ctypes.CDLL]:
    """Load and initialise NVML, the library of the driver.  Raises DriverError."""
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
    """Return the NVML library; None if it is not found."""
    # The loader read LD_LIBRARY_PATH when this process started; *environ* may have another value.
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
    """Call a function of NVML.  Raises DriverError if it fails."""
    try:
        status = getattr(library, function)(*arguments)
    except AttributeError as error:
        message = f"NVML failed: it has no function {function}"
        raise DriverError(message) from error
    if status != 0:
        message = f"NVML failed: {function} returned {status}"
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
    """Yield the NVML handle of each card, in the order of the driver.  Raises DriverError."""
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
    """Return the accelerators that a recorded runtime may have, by their menu names."""
    if recorded.kind != "cuda":
        return {"none": Accelerator()}
    return {card: replace(declared(card), driver=recorded.driver, cuda=recorded.cuda) for card in CARDS}


def has_nf4(bitsandbytes: str, *, has_gpu: bool) -> bool:
    """Whether this version of bitsandbytes quantises to 4 bits (NF4) on a machine with or without a GPU.

    True if the version is not valid (PEP 440), because then nothing is known about it.
    """
    try:
        return has_gpu or Version(bitsandbytes).release >= NF4_ON_CPU
    except InvalidVersion:
        return True
