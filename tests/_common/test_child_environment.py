"""What each kind of child process gets of the variables of a notebook."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from colablock._common.child_environment import (
    OPT_OUTS,
    Purpose,
    absolute_path,
    child_environment,
    environment_of,
    is_secret_variable,
    opt_outs,
)
from tests.support.runtime import make_venv

pytestmark = pytest.mark.stdlib

SECRETS = {
    "ANTHROPIC_API_KEY": "s",
    "AWS_ACCESS_KEY_ID": "s",
    "AWS_PROFILE": "s",
    "AWS_SECRET_ACCESS_KEY": "s",
    "AZURE_CLIENT_SECRET": "s",
    "COLAB_JUPYTER_TOKEN": "s",
    "DATABASE_URL": "postgres://me:secret@db.example/x",
    "GITHUB_PAT": "s",
    "GOOGLE_APPLICATION_CREDENTIALS": "s",
    "HF_TOKEN": "s",
    "HF_TOKEN_PATH": "s",
    "HUGGING_FACE_HUB_TOKEN": "s",
    "KAGGLE_KEY": "s",
    "KAGGLE_USER_SECRETS_TOKEN": "s",
    "MY_PASSWORD": "s",
    "SSH_AUTH_SOCK": "s",
    "TBE_EPHEM_CREDS_ADDR": "s",
    "TWINE_PASSWORD": "s",
    "WANDB_API_KEY": "s",
    "my_secret": "s",
}
# Variables for uv, pip and the interpreter: no child of ours gets them.
DROPPED = {
    "CONDA_PREFIX": "/opt/conda",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PIP_INDEX_URL": "http://pip",
    "PYTHONHOME": "/nowhere",
    "PYTHONPATH": "/env/python",
    "PYTHONSTARTUP": "x.py",
    "UV_CONSTRAINT": "/nowhere",
    "UV_DEFAULT_INDEX": "https://me:secret@index.example/simple/",
    "UV_SYSTEM_PYTHON": "1",
    "VIRTUAL_ENV": "/env",
    "pip_no_deps": "1",
}
MACHINE = {
    "COLAB_GPU": "1",
    "CUDA_VISIBLE_DEVICES": "0",
    "HF_HOME": "/hub",
    "HOME": "/home/me",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "LD_LIBRARY_PATH": "/usr/lib64-nvidia",
    "LD_PRELOAD": "libtcmalloc.so",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "OMP_NUM_THREADS": "2",
    "PATH": "/usr/bin",
    "PYTHONUTF8": "1",
    "SSL_CERT_FILE": "ca.pem",
    "TMPDIR": "/scratch",
    "TPU_NAME": "t",
    "UV_CACHE_DIR": "/cache",
    "UV_PYTHON_INSTALL_DIR": "/pythons",
    "XLA_FLAGS": "x",
}
CLOUDS = {name: "s" for name in SECRETS if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))}
OTHERS = {"EDITOR": "vi", "MY_SETTING": "1", "WANDB_PROJECT": "p"}
PROXY = "http://me:secret@proxy.example:3128"
DOWNLOADS = {
    "HTTPS_PROXY": PROXY,
    "NO_PROXY": "localhost",
    "UV_PYTHON_INSTALL_MIRROR": "https://a:b@m.example/",
}
NOTEBOOK = {**SECRETS, **DROPPED, **MACHINE, **OTHERS, **DOWNLOADS}
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.parametrize(
    ("purpose", "expected"),
    [
        (Purpose.LOCAL, MACHINE),
        (Purpose.DOWNLOAD, {**MACHINE, **DOWNLOADS}),
        (Purpose.BUILD, {**{k: v for k, v in MACHINE.items() if k != "HOME"}, "NO_PROXY": "localhost"}),
        (
            Purpose.KEYRING,
            {
                **MACHINE,
                **DOWNLOADS,
                **{k: "s" for k in SECRETS if k.startswith(("AWS_", "AZURE_", "GOOGLE_"))},
            },
        ),
        (Purpose.TRAINING, {**MACHINE, **OTHERS, "HTTPS_PROXY": PROXY, "NO_PROXY": "localhost"}),
        (Purpose.COMMAND, {**MACHINE, **OTHERS, **DOWNLOADS, **SECRETS}),
    ],
    ids=lambda value: value.value if isinstance(value, Purpose) else "",
)
def test_each_child_gets_what_its_purpose_needs(purpose: Purpose, expected: dict[str, str]) -> None:
    more = {} if purpose is Purpose.COMMAND else NO_BYTECODE
    assert child_environment(purpose, NOTEBOOK) == {**expected, **more}


LAUNCHED = """
RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK ROLE_NAME NODE_RANK MASTER_ADDR MASTER_PORT
TORCHELASTIC_USE_AGENT_STORE OMPI_COMM_WORLD_SIZE MV2_COMM_WORLD_RANK PMI_SIZE MPI_LOCALRANKID
ACCELERATE_USE_FSDP ACCELERATE_MIXED_PRECISION ACCELERATE_GRADIENT_ACCUMULATION_STEPS FSDP_VERSION
FSDP_TRANSFORMER_CLS_TO_WRAP PARALLELISM_CONFIG_TP_SIZE
"""


def test_a_training_has_no_part_in_another_launch() -> None:
    kept = {"NCCL_DEBUG": "INFO", "TORCH_DISTRIBUTED_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "eth0"}
    given = {**dict.fromkeys(LAUNCHED.split(), "1"), **kept}
    assert child_environment(Purpose.TRAINING, given) == {**kept, **NO_BYTECODE}
    assert child_environment(Purpose.COMMAND, given) == given


@pytest.mark.parametrize("purpose", Purpose)
def test_only_the_users_command_writes_bytecode(purpose: Purpose) -> None:
    environ = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": "/bytecode"}
    expected = environ if purpose is Purpose.COMMAND else NO_BYTECODE
    assert child_environment(purpose, environ) == expected


@pytest.mark.parametrize("proxy", ["http://proxy.example:3128", "proxy.example:3128"])
def test_a_build_gets_a_proxy_without_a_password(proxy: str) -> None:
    environ = {"HTTP_PROXY": "me:secret@proxy.example:3128", "https_proxy": proxy}
    assert child_environment(Purpose.BUILD, environ) == {"https_proxy": proxy, **NO_BYTECODE}


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_known_by_their_names(name: str) -> None:
    assert is_secret_variable(name) is (name != "DATABASE_URL")


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "PWD", "KEYBOARD", "MONKEY", "PATH"])
def test_other_names_are_no_secrets(name: str) -> None:
    assert not is_secret_variable(name)


def test_extra_variables_win() -> None:
    made = child_environment(Purpose.LOCAL, {"PATH": "/a", "MPLBACKEND": "x"}, PATH="/b", MPLBACKEND="agg")
    assert made == {"PATH": "/b", "MPLBACKEND": "agg", **NO_BYTECODE}


def test_programs_are_not_taken_from_the_working_folder() -> None:
    assert absolute_path({"PATH": ":/usr/bin::.:bin:/bin:"}) == "/usr/bin:/bin"
    assert child_environment(Purpose.LOCAL, {"PATH": ".:/usr/bin"}) == {"PATH": "/usr/bin", **NO_BYTECODE}
    assert child_environment(Purpose.COMMAND, {"PATH": ".:/usr/bin"}) == {"PATH": ".:/usr/bin"}


def test_telemetry_is_off_unless_the_user_sets_it() -> None:
    assert opt_outs({}) == OPT_OUTS
    found = opt_outs({"DO_NOT_TRACK": "0", "HF_HUB_DISABLE_TELEMETRY": ""})
    assert (found["DO_NOT_TRACK"], found["HF_HUB_DISABLE_TELEMETRY"]) == ("0", "1")


def test_the_scripts_of_an_environment_come_first_on_path(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "env", sys.executable)
    found = environment_of(python, NOTEBOOK)
    assert found["PATH"] == f"{python.parent}{os.pathsep}/usr/bin"
    assert found["VIRTUAL_ENV"] == str(tmp_path / "env")
    assert set(found) == {*MACHINE, *NO_BYTECODE, "VIRTUAL_ENV"}


def test_a_base_interpreter_has_no_virtual_env_variable() -> None:
    assert "VIRTUAL_ENV" not in environment_of(Path(sys.base_prefix) / "bin" / "python3", NOTEBOOK)
