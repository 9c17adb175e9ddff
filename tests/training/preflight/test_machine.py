from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from colablock.environment.accelerator import Accelerator, Device, declared, detect
from colablock.errors import Unmet
from colablock.training.preflight.facts import Card, Stack
from colablock.training.preflight.machine import card_of, is_exclusive, read_machine, system_memory, visible
from tests.support.accelerators import compile_nvml
from tests.support.runtime import Stub, Venv, build_site, site_of
from tests.support.training import read_stack

GIB = 2**30
MIB = 2**20

has_nvml = detect({}).source == "nvml"
without_nvml = pytest.mark.skipif(has_nvml, reason="this machine's own driver answers first")


def nvidia_smi(folder: Path, cards: str, processes: str = "", modes: str = "") -> dict[str, str]:
    """Write an nvidia-smi to *folder*, and return variables that find it first."""
    listed = "Tesla T4, 580.82.07, 15360, 7.5\\n" * cards.count("GPU-")
    script = f"""#!/bin/sh
case "$1" in
  --query-gpu=name*) printf '{listed}' ;;
  --query-gpu=uuid,memory.free) printf '{cards}' ;;
  --query-gpu=compute_mode) printf '{modes}' ;;
  --query-compute-apps=gpu_uuid,pid,used_memory) printf '{processes}' ;;
  *) exit 9 ;;
esac
"""
    path = folder / "nvidia-smi"
    path.write_text(script)
    path.chmod(0o755)
    return {"PATH": f"{folder}:/bin:/usr/bin"}


def t4(free: int | None) -> Card:
    return Card(name="Tesla T4", compute_capability=(7, 5), memory=15 * GIB, free=free)


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write *files* below *root*, and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@without_nvml
def test_a_machine_without_a_card(tmp_path: Path) -> None:
    machine = read_machine({"PATH": str(tmp_path)}, tmp_path / "not" / "there", modules={})
    assert (machine.cards, machine.kernel_memory, machine.other_processes) == ((), 0, ())
    assert machine.ram >= machine.ram_free > 0
    assert machine.disk_free > 0


@without_nvml
def test_free_memory_and_processes_of_a_card_are_read(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"proc/7/comm": "python\n"})
    processes = f"GPU-a, {os.getpid()}, 300\\nGPU-b, {os.getpid()}, 200\\nGPU-a, 7, 4000\\nGPU-b, 8, [N/A]\\n"
    environ = nvidia_smi(tmp_path, "GPU-a, 10000\\nGPU-b, [N/A]\\n", processes)
    machine = read_machine(environ, tmp_path, modules={}, root=root)
    assert machine.cards == (t4(10000 * MIB), t4(None))
    assert machine.kernel_memory == 500 * MIB
    assert machine.other_processes == ("python (pid 7)", "a process outside this container (pid 8)")


VISIBLE = [
    (None, "ab"),
    ("0,1", "ab"),
    ("1", "b"),
    ("1,0", "ba"),
    (" 1 , 0 ", "ba"),
    ("", ""),
    ("-1", ""),
    ("0,-1,1", "a"),
    ("0,7,1", "a"),
    ("1,1", "b"),
    ("GPU-b", "b"),
    ("GPU-b,GPU-a", "ba"),
    ("GPU-", ""),
    ("GPU-c", ""),
    ("MIG-GPU-a/1/0", "a"),  # of the parts of cards a process sees the first
    ("MIG-a,MIG-b", "a"),
    ("NoDevFiles", ""),
]


@without_nvml
@pytest.mark.parametrize(("value", "expected"), VISIBLE)
def test_hidden_cards_are_not_included(value: str | None, expected: str, tmp_path: Path) -> None:
    environ = nvidia_smi(tmp_path, "GPU-a, 1\\nGPU-b, 2\\n", "GPU-a, 7, 4000\\n")
    environ |= {"CUDA_VISIBLE_DEVICES": value} if value is not None else {}
    machine = read_machine(environ, tmp_path, modules={})
    assert [card.free for card in machine.cards] == [{"a": MIB, "b": 2 * MIB}[name] for name in expected]
    assert len(machine.other_processes) == expected.count("a")
    assert len(machine.accelerator.devices) == len(expected)
    assert visible(detect(environ), environ) == machine.accelerator
    assert machine.has_slices is (value is not None and value.startswith("MIG"))


MODES = [("Default\\n", False), ("Default\\nExclusive_Process\\n", True), ("[N/A]\\n", False), ("\\n", False)]


@pytest.mark.parametrize(("modes", "expected"), MODES)
def test_a_card_may_take_one_process_only(modes: str, expected: bool, tmp_path: Path) -> None:
    environ = nvidia_smi(tmp_path, "GPU-a, 1\\n", modes=modes)
    assert is_exclusive(environ) is expected
    assert not is_exclusive({"PATH": ""})


@without_nvml
def test_a_known_accelerator_is_not_detected_again(tmp_path: Path) -> None:
    environ = nvidia_smi(tmp_path, "GPU-a, 1\\nGPU-b, 2\\n") | {"CUDA_VISIBLE_DEVICES": "1"}
    known = Accelerator(kind="cuda", devices=declared("T4").devices + declared("L4").devices, driver="580.1")
    machine = read_machine(environ, tmp_path, accelerator=known, modules={})
    assert machine.accelerator == replace(known, devices=declared("L4").devices)
    assert [(card.name, card.free) for card in machine.cards] == [("NVIDIA L4", 2 * MIB)]


@without_nvml
def test_the_hubs_cache_may_be_on_another_disk(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    assert read_machine(environ, tmp_path, modules={}).cache_free is None
    if (shared := Path("/dev/shm")).stat().st_dev == tmp_path.stat().st_dev:  # noqa: S108
        pytest.skip("there is one file system only")
    machine = read_machine({**environ, "HF_HOME": str(shared / "not-there")}, tmp_path, modules={})
    assert machine.cache_free is not None
    assert machine.cache_free != machine.disk_free


@without_nvml
@pytest.mark.parametrize("cards", ["GPU-a, 1, what\\n", "garbage\\nGPU-a\\n"])
def test_an_answer_for_other_cards_is_ignored(cards: str, tmp_path: Path) -> None:
    machine = read_machine(nvidia_smi(tmp_path, cards), tmp_path, modules={})
    assert machine.cards == (t4(None),)


class Cuda:
    """The ``torch.cuda`` of a kernel."""

    def __init__(self, *reserved: int | Exception, initialized: bool = True) -> None:
        self.reserved = reserved
        self.initialized = initialized

    def is_initialized(self) -> bool:
        return self.initialized

    def device_count(self) -> int:
        return len(self.reserved)

    def memory_reserved(self, at: int) -> int:
        found = self.reserved[at]
        if isinstance(found, Exception):
            raise found
        return found


TORCHES: list[tuple[Mapping[str, Any], int]] = [
    ({}, 0),
    ({"torch": None}, 0),
    ({"torch": SimpleNamespace()}, 0),
    ({"torch": SimpleNamespace(cuda=Cuda(5, 6, initialized=False))}, 0),
    ({"torch": SimpleNamespace(cuda=Cuda(5, 6))}, 11),
    ({"torch": SimpleNamespace(cuda=Cuda(5, RuntimeError("CUDA error")))}, 0),
    ({"torch": SimpleNamespace(cuda=SimpleNamespace())}, 0),
]


@pytest.mark.parametrize(("modules", "held"), TORCHES)
def test_reserved_memory_of_the_kernels_torch_is_read(
    modules: Mapping[str, Any], held: int, tmp_path: Path
) -> None:
    assert read_machine({"PATH": str(tmp_path)}, tmp_path, modules=modules).kernel_memory == held


@without_nvml
def test_the_larger_of_driver_and_torch_counts(tmp_path: Path) -> None:
    environ = nvidia_smi(tmp_path, "GPU-a, 1\\n", f"GPU-a, {os.getpid()}, 300\\n")
    modules = {"torch": SimpleNamespace(cuda=Cuda(5))}
    assert read_machine(environ, tmp_path, modules=modules).kernel_memory == 300 * MIB
    modules = {"torch": SimpleNamespace(cuda=Cuda(GIB))}
    assert read_machine(environ, tmp_path, modules=modules).kernel_memory == GIB


LIBRARY = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } process;
#define AT(device) ((unsigned long)device - 1)
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "580.82.07", size); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(index + 1UL);
    return 0;
}
int nvmlDeviceGetName(void *device, char *text, unsigned size) { strncpy(text, "NVIDIA L4", size); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, memory *info) {
    info->total = 22ULL << 30;
    info->free = (AT(device) + 1) << 30;
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = 8;
    *minor = 9;
    return 0;
}
int nvmlDeviceGetUUID(void *device, char *text, unsigned size) {
    strncpy(text, AT(device) ? "GPU-b" : "GPU-a", size);
    return UUID;
}
#ifdef SLICED
int nvmlDeviceGetMigMode(void *device, unsigned *mode, unsigned *next) {
    *mode = SLICED >> AT(device) & 1;
    *next = 0;
    return SLICED ? 0 : 3;  /* not supported */
}
#endif
#ifdef VERSION
int VERSION(void *device, unsigned *count, process *rows) {
    if (*count < 2) return 7;
    *count = AT(device) ? 0 : 2;
    if (AT(device)) return 0;
    rows[0] = (process){ OWN, 300ULL << 20, -1, -1 };
    rows[1] = (process){ 4000000, -1ULL, -1, -1 };
    return 0;
}
#endif
"""


def library(folder: Path, **macros: object) -> dict[str, str]:
    return compile_nvml(folder, LIBRARY, **{"UUID": 0, **macros})


def l4(free: int | None) -> Card:
    return Card(name="NVIDIA L4", compute_capability=(8, 9), memory=22 * GIB, free=free)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_the_driver_library_is_queried(version: str, tmp_path: Path) -> None:
    environ = library(tmp_path, VERSION=f"nvmlDeviceGetComputeRunningProcesses_{version}")
    machine = read_machine(environ, tmp_path, modules={}, root=tmp_path)
    assert machine.cards == (l4(GIB), l4(2 * GIB))
    assert machine.kernel_memory == 300 * MIB
    assert machine.other_processes == ("a process outside this container (pid 4000000)",)
    machine = read_machine({**environ, "CUDA_VISIBLE_DEVICES": "GPU-b"}, tmp_path, modules={})
    assert (machine.cards, machine.kernel_memory, machine.other_processes) == ((l4(2 * GIB),), 0, ())


def test_a_driver_without_process_lists_reports_free_memory(tmp_path: Path) -> None:
    machine = read_machine(library(tmp_path), tmp_path, modules={})
    assert (machine.cards, machine.kernel_memory, machine.other_processes) == ((l4(GIB), l4(2 * GIB)), 0, ())


@pytest.mark.parametrize(
    ("sliced", "value", "free"),
    [
        (0, None, [1, 2]),
        (1, None, [1]),  # a process sees one slice, of the first card that has some, and no other card
        (2, None, [2]),
        (3, None, [1]),
        (2, "0", [1]),
        (2, "1,0", [2]),
        (3, "1", [2]),
    ],
)
def test_of_cards_with_slices_one_is_used(
    sliced: int, value: str | None, free: list[int], tmp_path: Path
) -> None:
    environ = library(tmp_path, SLICED=sliced)
    environ |= {"CUDA_VISIBLE_DEVICES": value} if value is not None else {}
    machine = read_machine(environ, tmp_path, modules={})
    assert machine.cards == tuple(l4(size * GIB) for size in free)
    assert machine.has_slices is (len(free) == 1 and bool(sliced >> (free[0] - 1) & 1))


def test_a_failing_driver_leaves_free_memory_unknown(tmp_path: Path) -> None:
    machine = read_machine(library(tmp_path, UUID=999), tmp_path, modules={})
    assert machine.cards == (l4(None), l4(None))


def test_an_unknown_capability_is_none() -> None:
    device = Device(name="?", compute_capability="", memory=5)
    assert card_of(device) == Card(name="?", compute_capability=None, memory=5, free=None)


MEMINFO = (
    "MemTotal:       16384 kB\nMemFree:         1024 kB\nMemAvailable:    8192 kB\nHugePages_Total:   0\n"
)
V2 = "sys/fs/cgroup/"
V1 = "sys/fs/cgroup/memory/"
MEMORY: list[tuple[str, dict[str, str], tuple[int, int]]] = [
    ("nothing", {}, (0, 0)),
    ("a machine", {"proc/self/cgroup": "0::/\n"}, (16 * MIB, 8 * MIB)),
    (
        "a container (v2)",
        {
            "proc/self/cgroup": "0::/\n",
            f"{V2}memory.max": f"{4 * MIB}\n",
            f"{V2}memory.current": f"{3 * MIB}\n",
            f"{V2}memory.stat": f"anon 5\ninactive_file {MIB}\n",
        },
        (4 * MIB, 2 * MIB),
    ),
    (
        "no limit (v2)",
        {
            "proc/self/cgroup": "0::/a/b\n",
            f"{V2}a/b/memory.max": "max\n",
            f"{V2}a/memory.max": "max\n",
        },
        (16 * MIB, 8 * MIB),
    ),
    (
        "the limit of a group above (v2)",
        {
            "proc/self/cgroup": "0::/a/b\n",
            f"{V2}a/b/memory.max": f"{6 * MIB}\n",
            f"{V2}a/b/memory.current": f"{MIB}\n",
            f"{V2}a/memory.max": f"{5 * MIB}\n",
            f"{V2}a/memory.current": f"{4 * MIB}\n",
        },
        (5 * MIB, MIB),
    ),
    (
        "more is used than allowed (v2)",
        {
            "proc/self/cgroup": "0::/\n",
            f"{V2}memory.max": f"{4 * MIB}\n",
            f"{V2}memory.current": f"{5 * MIB}\n",
        },
        (4 * MIB, 0),
    ),
    (
        "the host has less to give (v2)",
        {
            "proc/self/cgroup": "0::/\n",
            f"{V2}memory.max": f"{15 * MIB}\n",
            f"{V2}memory.current": "0\n",
        },
        (15 * MIB, 8 * MIB),
    ),
    (
        "a container whose path is the host's (v1)",
        {
            "proc/self/cgroup": "9:name=systemd:/docker/1\n4:cpu,memory:/docker/1\n0::/\n",
            f"{V1}memory.limit_in_bytes": f"{4 * MIB}\n",
            f"{V1}memory.usage_in_bytes": f"{3 * MIB}\n",
            f"{V1}memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * MIB}\n",
        },
        (4 * MIB, 3 * MIB),
    ),
    (
        "no limit (v1)",
        {
            "proc/self/cgroup": "4:memory:/\n",
            f"{V1}memory.limit_in_bytes": "9223372036854771712\n",
            f"{V1}memory.usage_in_bytes": "1\n",
        },
        (16 * MIB, 8 * MIB),
    ),
    ("what is no list of groups", {"proc/self/cgroup": "what\n\n"}, (16 * MIB, 8 * MIB)),
]


@pytest.mark.parametrize(("files", "expected"), [case[1:] for case in MEMORY], ids=[c[0] for c in MEMORY])
def test_memory_is_limited_by_the_container(
    files: dict[str, str], expected: tuple[int, int], tmp_path: Path
) -> None:
    meminfo = {"proc/meminfo": MEMINFO} if files else {}
    assert system_memory(tree(tmp_path, {**meminfo, **files})) == expected


TORCH = {
    "torch/__init__.py": "from torch import _C\n__version__ = '2.11.0+cu128'\nprint('hello')\n",
    "torch/_C.py": "def _cuda_getArchFlags():\n    return 'sm_75 sm_90 compute_90'\n",
}
TRANSFORMERS = {
    "transformers/__init__.py": "__version__ = '5.24.0'\n",
    "transformers/models/__init__.py": "",
    "transformers/models/auto/__init__.py": "",
    "transformers/models/auto/configuration_auto.py": "CONFIG_MAPPING_NAMES = {'llama': 0, 'phi3': 0}\n",
}
ROPE = {"transformers/modeling_rope_utils.py": "ROPE_INIT_FUNCTIONS = {'linear': 0, 'llama3': 0}\n"}
WHOLE = Stack(
    torch="2.11.0+cu128",
    arch_list=("sm_75", "sm_90", "compute_90"),
    transformers="5.24.0",
    trl="1.8.0",
    bitsandbytes="0.50.2",
    axolotl=None,
    flash_attn="2.8.3",
    model_types=frozenset({"llama", "phi3"}),
    rope_types=frozenset({"default", "linear", "llama3"}),
    reporters=frozenset({"tensorboard"}),
)


@pytest.fixture
def python(venv: Venv) -> Path:
    return Path(venv.python)


def install(python: Path, torch: Mapping[str, str], transformers: Mapping[str, str], *more: Stub) -> None:
    stubs = [
        Stub(name="torch", version="2.11.0", import_names=(), files=torch),
        Stub(name="transformers", version="5.24.0", import_names=(), files=transformers),
    ]
    build_site(site_of(python.parents[1]), [*stubs, *more])


def test_the_stack_is_reported_by_the_target(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [("trl", "1.8.0"), ("bitsandbytes", "0.50.2"), ("flash-attn", "2.8.3"), ("tensorboardX", "2.6")]
    install(python, TORCH, TRANSFORMERS | ROPE, *(Stub(name=name, version=text) for name, text in others))
    (tmp_path / "torch.py").write_text("raise RuntimeError('not the one')")
    monkeypatch.chdir(tmp_path)
    assert read_stack(python, {"PATH": "/bin", "PYTHONPATH": str(tmp_path)}) == WHOLE


def test_names_of_the_trainer_are_read_from_its_sources(python: Path) -> None:
    auto = """from collections import OrderedDict
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict([("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel")])
MODEL_FOR_OTHERS: OrderedDict = OrderedDict([("t5", "T5ForConditionalGeneration")])
"""
    names = """import torch
class OptimizerNames(ExplicitEnum):
    '''Names.'''
    ADAMW_TORCH = "adamw_torch"
    SGD = "sgd"
"""
    files = {
        "transformers/models/auto/modeling_auto.py": auto,
        "transformers/training_args.py": names,
        "transformers/trainer_utils.py": "class SchedulerType(:\n",
    }
    install(python, TORCH, TRANSFORMERS | files)
    stack = read_stack(python, {})
    assert stack.causal_types == {"llama", "gpt2"}
    assert stack.optimizers == {"adamw_torch", "sgd"}
    assert stack.schedulers == frozenset()


@pytest.mark.parametrize(
    ("fork", "liger", "plugins"),
    [
        ("AXOLOTL_CCE_FORK = 1\n", True, {"cut_cross_entropy", "grokfast", "liger"}),
        ("PATCH_FNS = {}\n", True, {"grokfast", "liger"}),  # the original project
        (None, False, {"grokfast"}),
    ],
)
def test_plugins_of_axolotl_are_found_without_running_them(
    python: Path, fork: str | None, liger: bool, plugins: set[str]
) -> None:
    fails = "raise RuntimeError('imported')\n"
    names = ("cut_cross_entropy", "grokfast", "liger")
    files = {f"axolotl/integrations/{name}/__init__.py": fails for name in names}
    more = [
        Stub(name="axolotl", version="0.18.0", import_names=(), files={"axolotl/__init__.py": fails} | files)
    ]
    if fork is not None:
        patch = {"cut_cross_entropy/__init__.py": fails, "cut_cross_entropy/transformers/patch.py": fork}
        more.append(Stub(name="cut-cross-entropy", version="25.5", import_names=(), files=patch))
    if liger:
        kernel = {"liger_kernel/__init__.py": fails}
        more.append(Stub(name="liger-kernel", version="0.8.0", import_names=(), files=kernel))
    install(python, TORCH, TRANSFORMERS | ROPE, *more)
    assert read_stack(python, {}).axolotl_plugins == plugins


def test_an_old_stack_without_cuda_is_read(python: Path) -> None:
    build = {"torch/__init__.py": "from torch import _C\n__version__ = '2.4.0+cpu'\n"}
    old = {**TORCH, **build, "torch/_C.py": ""}
    install(python, old, TRANSFORMERS)
    stack = read_stack(python, {})
    assert (stack.torch, stack.arch_list) == ("2.4.0+cpu", ())
    assert stack.rope_types == {"default", "linear", "dynamic"}
    assert (stack.trl, stack.bitsandbytes, stack.flash_attn) == (None, None, None)
    assert stack.reporters == frozenset()


CUT_OFF = "import os, sys; open(sys.argv[2], 'w').write('{'); print('no', flush=True); os._exit(0)"
BROKEN: list[tuple[dict[str, str], dict[str, str], str]] = [
    ({}, {}, "torch cannot be imported: (AttributeError|ModuleNotFoundError)"),
    (
        {"torch/__init__.py": "import _no_such"},
        {},
        "torch cannot be imported: ModuleNotFoundError: No module",
    ),
    (
        TORCH,
        {"transformers/__init__.py": "raise OSError('libcudart')"},
        "transformers .*: OSError: libcudart",
    ),
    (
        {"torch/__init__.py": "import os; os._exit(7)"},
        {},
        r"could not report its stack: the process ended with status 7",
    ),
    (
        {"torch/__init__.py": CUT_OFF},
        {},
        "could not report its stack: the process ended with status 0\n  no",
    ),
]


@pytest.mark.parametrize(("torch", "transformers", "words"), BROKEN)
def test_a_stack_that_cannot_train_is_an_error(
    torch: dict[str, str], transformers: dict[str, str], words: str, python: Path
) -> None:
    install(python, torch, transformers)
    with pytest.raises(Unmet, match=words):
        read_stack(python, {})


def test_a_missing_interpreter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unmet, match="could not report its stack: No such file"):
        read_stack(tmp_path / "none", {})
