"""The environment variables of child processes: one list of what each kind of child gets.

A notebook holds tokens in its variables, and a child runs code of others: the build of an sdist, the
modules of a wheel.  So a child gets what its purpose needs, and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from pathlib import Path

from colablock._common.urls import Url

__all__ = [
    "OPT_OUTS",
    "Purpose",
    "absolute_path",
    "child_environment",
    "environment_of",
    "is_secret_variable",
    "opt_outs",
]


class Purpose(Enum):
    """What a child process is for, which decides about its variables."""

    LOCAL = "local"
    """Code that needs no network: probes, proofs, `--help`, git, plots.  It gets the allow-list."""

    BUILD = "build"
    """The build of an sdist: as LOCAL, with a home of its own, and proxies and mirrors without passwords."""

    DOWNLOAD = "download"
    """uv, when it downloads and runs no code: as LOCAL, with proxies and mirrors, and their passwords."""

    KEYRING = "keyring"
    """The command `keyring` of the user: as DOWNLOAD, with the variables of sessions and clouds."""

    TRAINING = "training"
    """The user's training: as COMMAND, without secrets and what launchers tell their processes."""

    COMMAND = "command"
    """The user's own command (`colablock run`): every variable but those for uv, pip and the interpreter."""


OPT_OUTS: Mapping[str, str] = {
    "ANONYMIZED_TELEMETRY": "False",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "WANDB_ERROR_REPORTING": "false",
}
"""Variables that turn off the telemetry of the stack's libraries.  A value that the user sets wins."""

_ALLOWED = frozenset(
    [
        "CURL_CA_BUNDLE",
        "DISPLAY",
        "DYLD_FALLBACK_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "FORCE_COLOR",
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "LOGNAME",
        "MALLOC_ARENA_MAX",
        "NO_COLOR",
        "PATH",
        "PWD",
        "REQUESTS_CA_BUNDLE",
        "SHELL",
        "SOURCE_DATE_EPOCH",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "SYSTEMROOT",
        "TEMP",
        "TERM",
        "TMP",
        "TMPDIR",
        "TOKENIZERS_PARALLELISM",
        "TZ",
        "TZDIR",
        "USER",
        "USERPROFILE",
        "UV_CACHE_DIR",
        "UV_PYTHON_INSTALL_DIR",
        "WINDIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XLA_FLAGS",
    ]
)
# Accelerators, their libraries, number of threads, compilers, and where this machine is.
_ALLOWED_PREFIXES = (
    "ACCELERATE_",
    "ASCEND_",
    "BITSANDBYTES_",
    "BNB_",
    "COLAB_",
    "COVERAGE_",
    "COV_CORE_",
    "CUBLAS",
    "CUDA",
    "CUDNN_",
    "GOMP_",
    "GPU_",
    "HF_",
    "HIP_",
    "HSA_",
    "JAX_",
    "KAGGLE_",
    "KMP_",
    "LC_",
    "LIBTPU_",
    "MIOPEN_",
    "MKL_",
    "NCCL_",
    "NEURON_",
    "NPY_",
    "NUMBA_",
    "NUMEXPR_",
    "NVIDIA_",
    "NVTE_",
    "OMP_",
    "OPENBLAS_",
    "PJRT_",
    "PYENV_",
    "PYTORCH_",
    "ROCM_",
    "ROCR_",
    "SYCL_",
    "TF_",
    "TORCH",
    "TPU_",
    "TRANSFORMERS_",
    "TRITON_",
    "VECLIB_",
    "XLA_",
    "XPU_",
    "ZE_",
)
# Of the variables of Python, those that change no code that is run.
_ALLOWED_OF_PYTHON = frozenset(
    [
        "PYTHONDEVMODE",
        "PYTHONFAULTHANDLER",
        "PYTHONHASHSEED",
        "PYTHONIOENCODING",
        "PYTHONMALLOC",
        "PYTHONNOUSERSITE",
        "PYTHONUNBUFFERED",
        "PYTHONUSERBASE",
        "PYTHONUTF8",
    ]
)
# A build may need compilers; `CARGO_HOME` is not among them, because it holds tokens.
_OF_BUILDS = frozenset(
    [
        "AR",
        "ARCHFLAGS",
        "AS",
        "CC",
        "CFLAGS",
        "CMAKE_ARGS",
        "CMAKE_BUILD_PARALLEL_LEVEL",
        "CMAKE_GENERATOR",
        "CMAKE_PREFIX_PATH",
        "CPATH",
        "CPLUS_INCLUDE_PATH",
        "CPP",
        "CPPFLAGS",
        "CXX",
        "CXXFLAGS",
        "C_INCLUDE_PATH",
        "FC",
        "FFLAGS",
        "FORCE_CUDA",
        "LD",
        "LDFLAGS",
        "LIBRARY_PATH",
        "MACOSX_DEPLOYMENT_TARGET",
        "MAKEFLAGS",
        "MAX_JOBS",
        "NINJAFLAGS",
        "NVCC_APPEND_FLAGS",
        "NVCC_THREADS",
        "PKG_CONFIG_PATH",
        "RANLIB",
        "RUSTFLAGS",
        "RUSTUP_HOME",
    ]
)
_PROXIES = frozenset({"ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"})  # also in lower case
_OF_DOWNLOADS = frozenset(
    {"SSL_CLIENT_CERT", "UV_PYTHON_DOWNLOADS_JSON_URL", "UV_PYTHON_INSTALL_DIR", "UV_PYTHON_INSTALL_MIRROR"}
)
_OF_KEYRINGS = (
    "ARTIFACTS_",
    "AWS_",
    "AZURE_",
    "CLOUDSDK_",
    "DBUS_",
    "GNOME_",
    "GOOGLE_",
    "KDE_",
    "PYTHON_KEYRING_",
    "VSS_",
    "XDG_",
)

# Variables that change the behaviour of uv, pip or an interpreter.  Notebooks preset some of them:
# ipykernel sets an MPLBACKEND that only its kernel has, hosted runtimes UV_SYSTEM_PYTHON and UV_CONSTRAINT.
_DROPPED_PREFIXES = ("UV_", "PIP_", "CONDA_")
_DROPPED = frozenset(
    {
        "MPLBACKEND",
        "PYTHONEXECUTABLE",
        "PYTHONHOME",
        "PYTHONINSPECT",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
        "VIRTUAL_ENV_PROMPT",
        "_CONDA_EXE",
        "__PYVENV_LAUNCHER__",
    }
)
# What `torchrun`, `mpirun` or an earlier `accelerate launch` tells the processes that it starts, as a pod of
# several has it: a training with them would wait for ranks that nobody starts, or follow other settings.
_OF_LAUNCHERS = re.compile(
    r"RANK|(?:LOCAL|GROUP|ROLE|NODE)_RANK|(?:(?:LOCAL|GROUP|ROLE)_)?WORLD_SIZE|ROLE_NAME|MASTER_(?:ADDR|PORT)"
    r"|TORCHELASTIC_.*|(?:OMPI|MV2)_COMM_WORLD_.*|PMI_(?:RANK|SIZE)|MPI_LOCAL(?:RANKID|NRANKS)"
    r"|FSDP_.*|MEGATRON_LM_.*|PARALLELISM_CONFIG_.*"
    r"|ACCELERATE_(?:USE|MIXED|DOWNCAST|GRADIENT|DYNAMO|DEEPSPEED|CONFIG|TORCH_DEVICE).*"
)
# Where uv stores and finds files is the user's choice and does not change results.
_KEPT = frozenset({"UV_CACHE_DIR", *_OF_DOWNLOADS})

_SECRET = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSW|PASSPHRASE|CRED|APIKEY|ACCESS_?KEY"
    r"|(?:^|_)(?:KEY|KEYS|PASS|PWD|PAT|AUTH|COOKIE|JWT|DSN)(?:_|$)"
)
_OF_CLOUDS = ("AWS_", "AZURE_", "CLOUDSDK_", "GCLOUD_", "GCP_", "GOOGLE_", "OCI_", "S3_")
_NO_SECRETS = frozenset({"PWD", "OLDPWD"})


@lru_cache(maxsize=1024)
def is_secret_variable(name: str) -> bool:
    """Return whether *name* is that of a secret: ``HF_TOKEN``, ``AWS_PROFILE``, ``X_API_KEY``."""
    upper = name.upper()
    if upper in _NO_SECRETS:
        return False
    return upper.startswith(_OF_CLOUDS) or _SECRET.search(upper) is not None


def child_environment(purpose: Purpose, environ: Mapping[str, str], **extra: str) -> dict[str, str]:
    """Return the variables of *environ* that a child for *purpose* gets, and *extra*.

    Only the user's own command writes bytecode, and reads it from a folder of the user.
    """
    found = {name: value for name, value in environ.items() if _passes(purpose, name, value)}
    if purpose is not Purpose.COMMAND:
        # Bytecode in the environment would be a change of it, which no journal lists.
        found["PYTHONDONTWRITEBYTECODE"] = "1"
        found.pop("PYTHONPYCACHEPREFIX", None)
    if "PATH" in found and purpose is not Purpose.COMMAND:
        found["PATH"] = absolute_path(environ)
    return found | extra


def environment_of(
    python: str | Path, environ: Mapping[str, str], purpose: Purpose = Purpose.LOCAL, **extra: str
) -> dict[str, str]:
    """Return the variables for a child in the environment of *python*, with its scripts first on PATH."""
    folder = Path(python).absolute().parent
    found = child_environment(purpose, environ)
    found["PATH"] = os.pathsep.join([str(folder), *filter(None, [found.get("PATH")])])
    if (folder.parent / "pyvenv.cfg").is_file():
        found["VIRTUAL_ENV"] = str(folder.parent)
    return found | extra


def absolute_path(environ: Mapping[str, str]) -> str:
    """Return PATH without its relative entries.  An empty entry is the working folder."""
    folders = environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if os.path.isabs(folder))  # noqa: PTH117 - strings


def opt_outs(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that turn off telemetry, as the user sets them or else as in ``OPT_OUTS``."""
    return {name: environ.get(name) or value for name, value in OPT_OUTS.items()}


def _passes(purpose: Purpose, name: str, value: str) -> bool:
    if purpose is Purpose.COMMAND:
        return not _is_dropped(name)
    if purpose is Purpose.TRAINING:  # it downloads models, so it gets the proxies
        is_dropped = _is_dropped(name) or _OF_LAUNCHERS.fullmatch(name) is not None
        return not is_dropped and (name.upper() in _PROXIES or not _is_secret(name, value))
    has_passwords = purpose in (Purpose.DOWNLOAD, Purpose.KEYRING)
    return _is_allowed(purpose, name) and (has_passwords or not _is_secret(name, value))


def _is_allowed(purpose: Purpose, name: str) -> bool:
    if purpose is Purpose.BUILD and name.startswith(("HOME", "XDG_")):
        return False
    if name in _ALLOWED or name in _ALLOWED_OF_PYTHON or name.startswith(_ALLOWED_PREFIXES):
        return not is_secret_variable(name)
    if purpose is Purpose.LOCAL:
        return False
    if name.upper() in _PROXIES or name in _OF_DOWNLOADS:
        return True
    if purpose is Purpose.BUILD:
        return name in _OF_BUILDS
    return purpose is Purpose.KEYRING and name.startswith(_OF_KEYRINGS)


def _is_secret(name: str, value: str) -> bool:
    """Return whether a variable is named like a secret, or holds a URL with credentials."""
    has_url = "://" in value or name.upper() in _PROXIES
    return is_secret_variable(name) or (has_url and any(Url(one) != one for one in value.split()))


def _is_dropped(name: str) -> bool:
    if name in _KEPT:
        return False
    return name in _DROPPED or name.upper().startswith(_DROPPED_PREFIXES)
