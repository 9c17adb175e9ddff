from __future__ import annotations

from pathlib import Path

import pytest

from colablock.environment.accelerator import (
    Accelerator,
    Device,
    cuda_of_driver,
    declared,
    detect,
    has_nf4,
    parse_nvidia_smi,
)
from colablock.errors import NotFound
from tests.support.accelerators import compile_nvml

GIB = 2**30

PARSED = [
    (
        "Tesla T4, 580.82.07, 15360, 7.5\n",
        Accelerator(
            kind="cuda",
            driver="580.82.07",
            cuda="13.0",
            devices=(Device(name="Tesla T4", compute_capability="7.5", memory=15 * GIB),),
            source="nvidia-smi",
        ),
    ),
    (
        "Tesla T4, 535.54.03, 15360, 7.5\r\nTesla P100-PCIE-16GB, 535.54.03, 16384, 6.0\r\n",
        Accelerator(
            kind="cuda",
            driver="535.54.03",
            cuda="12.2",
            devices=(
                Device(name="Tesla T4", compute_capability="7.5", memory=15 * GIB),
                Device(name="Tesla P100-PCIE-16GB", compute_capability="6.0", memory=16 * GIB),
            ),
            source="nvidia-smi",
        ),
    ),
    (
        "NVIDIA GB10, 580.95.05, [N/A], 12.1\n",  # memory is shared with the host
        Accelerator(
            kind="cuda",
            driver="580.95.05",
            cuda="13.0",
            devices=(Device(name="NVIDIA GB10", compute_capability="12.1", memory=0),),
            source="nvidia-smi",
        ),
    ),
]


@pytest.mark.parametrize(("output", "expected"), PARSED)
def test_the_output_of_nvidia_smi_is_parsed(output: str, expected: Accelerator) -> None:
    assert parse_nvidia_smi(output) == expected


@pytest.mark.parametrize("output", ["", "\n", "No devices were found\n", "a, b\n"])
def test_output_without_cards_gives_a_reason(output: str) -> None:
    assert parse_nvidia_smi(output) == "nvidia-smi lists no card"


@pytest.mark.parametrize(
    ("driver", "cuda"),
    [
        ("580.82.07", "13.0"),
        ("570.124.06", "12.8"),
        ("550.54.15", "12.4"),
        ("525.60.13", "12.0"),
        ("520.61.05", "11.8"),
        ("470.42.01", "11.4"),
        ("390.10", None),
        ("unknown", None),
        ("", None),
    ],
)
def test_a_driver_supports_a_cuda_version(driver: str, cuda: str | None) -> None:
    assert cuda_of_driver(driver) == cuda


@pytest.mark.parametrize(
    ("name", "capability", "gib"),
    [
        ("T4", "7.5", 15),
        ("L4", "8.9", 22),
        ("A100", "8.0", 40),
        ("h100", "9.0", 80),
        ("G4", "12.0", 95),
        ("P100", "6.0", 16),
    ],
)
def test_a_declared_card_has_its_capability_and_memory(name: str, capability: str, gib: int) -> None:
    accelerator = declared(name)
    assert (accelerator.kind, accelerator.source) == ("cuda", "declared")
    (device,) = accelerator.devices
    assert (device.compute_capability, device.memory) == (capability, gib * GIB)


def test_no_card_is_declared_as_none() -> None:
    assert declared("none") == Accelerator(source="declared")


def test_an_unknown_card_is_rejected_with_a_suggestion() -> None:
    with pytest.raises(NotFound) as raised:
        declared("A10")
    assert "`A100`" in (raised.value.hint or "")


def program(folder: Path, script: str) -> dict[str, str]:
    """Put an nvidia-smi into *folder*, and return variables with which it is found first."""
    folder.mkdir(exist_ok=True)
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:/bin:/usr/bin"}


has_nvml = detect({}).source == "nvml"
without_nvml = pytest.mark.skipif(has_nvml, reason="this machine's own driver answers first")


@without_nvml
def test_nvidia_smi_is_used_without_nvml(tmp_path: Path) -> None:
    environ = program(tmp_path, 'echo "$1" > "$0.asked"; echo "Tesla T4, 580.82.07, 15360, 7.5"')
    assert detect(environ) == PARSED[0][1]
    asked = (tmp_path / "nvidia-smi.asked").read_text().strip()
    assert asked == "--query-gpu=name,driver_version,memory.total,compute_cap"


@without_nvml
def test_hidden_cards_are_noted(tmp_path: Path) -> None:
    environ = program(tmp_path, 'echo "Tesla T4, 580.82.07, 15360, 7.5"')
    accelerator = detect({**environ, "CUDA_VISIBLE_DEVICES": ""})
    assert len(accelerator.devices) == 1
    assert "CUDA_VISIBLE_DEVICES" in (accelerator.note or "")


FAILURES = [
    ("echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9", "could not talk"),
    ("echo 'no permission' >&2; exit 4", "no permission"),
    ("exit 3", "ended with status 3"),
    ("exit 0", "lists no card"),
    ("printf '\\377\\376, garbage'", "lists no card"),
]


@without_nvml
@pytest.mark.parametrize(("script", "why"), FAILURES)
def test_a_failing_nvidia_smi_gives_no_accelerator_and_the_reason(
    tmp_path: Path, script: str, why: str
) -> None:
    accelerator = detect(program(tmp_path, script))
    assert (accelerator.kind, accelerator.source, accelerator.devices) == ("none", "none", ())
    assert why in (accelerator.note or "")


@without_nvml
def test_an_nvidia_smi_that_cannot_be_run_gives_no_accelerator(tmp_path: Path) -> None:
    environ = program(tmp_path, "")
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF nonsense")
    assert detect(environ).kind == "none"


@without_nvml
def test_no_accelerator_has_a_note_with_the_reasons(tmp_path: Path) -> None:
    accelerator = detect({"PATH": str(tmp_path)})
    assert accelerator.kind == "none"
    assert accelerator.note == "there is no NVML library; there is no nvidia-smi"


@without_nvml
def test_a_tpu_is_detected_by_the_variables_of_its_host(tmp_path: Path) -> None:
    assert detect({"PATH": str(tmp_path), "TPU_ACCELERATOR_TYPE": "v5litepod-1"}).kind == "tpu"


LIBRARY = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
static int started;
int nvmlInit_v2(void) { started = 1; return INIT; }
int nvmlShutdown(void) { started = 0; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    strncpy(text, "580.82.07", size);
    return !started;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = COUNT; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(0x7f0000000001UL + index);
    return 0;
}
int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    strncpy(text, "NVIDIA L4", size);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory *info) {
    info->total = 22ULL << 30;
    return (unsigned long)device < 0x7f0000000001UL;
}
#ifndef OLD
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = 8;
    *minor = 9;
    return 0;
}
#endif
"""


def library(folder: Path, **macros: object) -> dict[str, str]:
    return compile_nvml(folder, LIBRARY, **{"INIT": 0, "COUNT": 2, **macros})


def test_nvml_is_used_first(tmp_path: Path) -> None:
    environ = library(tmp_path)
    program(tmp_path, "exit 1")
    card = Device(name="NVIDIA L4", compute_capability="8.9", memory=22 * GIB)
    assert detect(environ) == Accelerator(
        kind="cuda", driver="580.82.07", cuda="13.0", devices=(card, card), source="nvml"
    )


@pytest.mark.parametrize(
    ("macros", "why"),
    [
        ({"INIT": 9}, "nvmlInit_v2 returned 9"),  # the driver is not loaded
        ({"COUNT": 0}, "the driver lists no card"),
        ({"OLD": 1}, "it has no function nvmlDeviceGetCudaComputeCapability"),
    ],
)
def test_nvidia_smi_is_used_if_nvml_fails(tmp_path: Path, macros: dict[str, object], why: str) -> None:
    environ = library(tmp_path, **macros)
    assert why in (detect(environ).note or "")
    program(tmp_path, 'echo "Tesla T4, 580.82.07, 15360, 7.5"')
    assert detect({**environ, "PATH": f"{tmp_path}:/bin"}) == PARSED[0][1]


def test_a_file_that_is_no_library_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("stub")
    environ = {"LD_LIBRARY_PATH": str(tmp_path), "PATH": str(tmp_path)}
    assert detect(environ) == detect({"PATH": str(tmp_path)})


@pytest.mark.parametrize(
    ("version", "on_cpu"),
    [("0.43.3", False), ("0.45.5", False), ("0.46.0.dev0", True), ("0.46", True), ("1", True), ("odd", True)],
)
def test_bitsandbytes_quantises_on_a_gpu_and_later_on_a_cpu(version: str, *, on_cpu: bool) -> None:
    assert has_nf4(version, has_gpu=True)
    assert has_nf4(version, has_gpu=False) is on_cpu
