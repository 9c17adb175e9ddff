from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from colablock._common.child_environment import OPT_OUTS
from colablock.errors import InvalidInput, Unmet
from colablock.training.runs.folder import RunFolder
from colablock.training.runs.launch import (
    accelerate_config,
    exit_code_of,
    free_port,
    launch_command,
    launch_environment,
    ranks_of,
    start_process,
    with_meeting_point,
    write_job,
)
from colablock.training.scripts import FOLDER as SCRIPTS
from colablock.training.scripts.ranks import start_time_of
from colablock.verification.launch import Ranks, Sharding
from tests.support.timing import until
from tests.support.training_stack import Bench, read_record

pytestmark = pytest.mark.stdlib

SHIM = str(SCRIPTS / "shim.py")
OUT = RunFolder(Path("/out"))

MET = Ranks(total=2, address="127.0.0.1", port=29501)
# What is asked for, and the whole command, of which {shim} is the one of ours.
COMMANDS: list[tuple[dict[str, Any], str]] = [
    (
        {"precision": "fp32", "ranks": Ranks(), "has_card": False, "threads": 2},
        (
            "--num_processes 1 --num_machines 1 --machine_rank 0 --mixed_precision no --dynamo_backend no"
            " --num_cpu_threads_per_process 2 --cpu"
        ),
    ),
    (
        {"precision": "bf16", "ranks": Ranks(), "has_card": True, "threads": 8},
        (
            "--num_processes 1 --num_machines 1 --machine_rank 0 --mixed_precision bf16 --dynamo_backend no"
            " --num_cpu_threads_per_process 8"
        ),
    ),
    (
        {"precision": "fp16", "ranks": MET, "has_card": True, "threads": 4},
        (
            "--num_processes 2 --num_machines 1 --machine_rank 0 --mixed_precision fp16 --dynamo_backend no"
            " --num_cpu_threads_per_process 4 --multi_gpu --main_process_ip 127.0.0.1"
            " --main_process_port 29501"
        ),
    ),
    (
        {"precision": "fp32", "ranks": MET, "has_card": False, "threads": 1},
        (
            "--num_processes 2 --num_machines 1 --machine_rank 0 --mixed_precision no --dynamo_backend no"
            " --num_cpu_threads_per_process 1 --multi_gpu --main_process_ip 127.0.0.1"
            " --main_process_port 29501"
        ),
    ),
    (
        {
            "precision": "bf16",
            "ranks": Ranks(total=2, hosts=2, host=1, address="10.0.0.1", port=29501),
            "has_card": True,
            "threads": 8,
            "extra": ["--rdzv_backend", "c10d"],
        },
        (
            "--num_processes 2 --num_machines 2 --machine_rank 1 --mixed_precision bf16 --dynamo_backend no"
            " --num_cpu_threads_per_process 8 --multi_gpu --main_process_ip 10.0.0.1"
            " --main_process_port 29501 --rdzv_backend c10d"
        ),
    ),
    (
        {"precision": "bf16", "ranks": MET, "has_card": True, "threads": 4, "sharding": Sharding()},
        (
            "--num_processes 2 --num_machines 1 --machine_rank 0 --mixed_precision bf16 --dynamo_backend no"
            " --num_cpu_threads_per_process 4 --use_fsdp --fsdp_version 2"
            " --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_state_dict_type SHARDED_STATE_DICT"
            " --fsdp_reshard_after_forward true --fsdp_activation_checkpointing true"
            " --fsdp_offload_params false --fsdp_cpu_ram_efficient_loading true"
            " --fsdp_sync_module_states true --main_process_ip 127.0.0.1 --main_process_port 29501"
        ),
    ),
    (  # a run of several ranks that goes on with one
        {
            "precision": "fp32",
            "ranks": Ranks(),
            "has_card": False,
            "threads": 1,
            "sharding": Sharding(
                layers=("OneLayer", "OtherLayer"),
                activation_checkpointing=False,
                reshard_after_forward=False,
            ),
        },
        (
            "--num_processes 1 --num_machines 1 --machine_rank 0 --mixed_precision no --dynamo_backend no"
            " --num_cpu_threads_per_process 1 --use_fsdp --fsdp_version 2"
            " --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP"
            " --fsdp_transformer_layer_cls_to_wrap OneLayer,OtherLayer"
            " --fsdp_state_dict_type SHARDED_STATE_DICT"
            " --fsdp_reshard_after_forward false --fsdp_activation_checkpointing false"
            " --fsdp_offload_params false --fsdp_cpu_ram_efficient_loading true"
            " --fsdp_sync_module_states true"
        ),
    ),
]


# What each host starts, accelerate's own arguments, and how many there are in all, on how many hosts.
RANKS: list[tuple[int, str, tuple[int, int, int]]] = [
    (1, "", (1, 1, 1)),
    (2, "", (2, 1, 2)),
    (1, "--num_processes 2", (2, 1, 2)),
    (1, "--num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1", (2, 2, 1)),
    (4, "--num-machines=2 --main_process_ip 10.0.0.1", (8, 2, 4)),
    (4, "--num_machines 2 --num_processes=4 --main-process-ip=10.0.0.1", (4, 2, 2)),
]


@pytest.mark.parametrize(("processes", "extra", "expected"), RANKS)
def test_ranks_are_counted_over_all_hosts(processes: int, extra: str, expected: tuple[int, int, int]) -> None:
    found = ranks_of(processes, extra.split())
    assert (found.total, found.hosts, found.per_host) == expected


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("--num_processes 2", ("127.0.0.1", True)),
        ("--num_processes 2 --main_process_port 5", ("127.0.0.1", 5)),
        ("--num_processes 2 --main_process_ip 10.0.0.1 --main_process_port 5", ("10.0.0.1", 5)),
        ("--num_processes 1", (None, None)),
        ("--num_machines 2 --main_process_ip h --main_process_port 5 --machine_rank 1", ("h", 5)),
        ("--num_machines 2 --main_process_ip h", ("h", None)),
    ],
)
def test_the_ranks_of_one_host_meet_at_a_free_port(extra: str, expected: tuple[Any, Any]) -> None:
    found = with_meeting_point(ranks_of(1, extra.split()))
    address, port = expected
    assert found.address == address
    assert (found.port is not None and found.port > 0) if port is True else found.port == port


def test_the_threads_of_a_rank_can_be_given() -> None:
    given = ranks_of(2, ["--num_cpu_threads_per_process", "5"])
    assert (given.total, given.threads({"OMP_NUM_THREADS": "3"})) == (2, 5)
    assert ranks_of(2).threads({"OMP_NUM_THREADS": "3"}) == 3
    assert ranks_of(2).threads({"SLURM_CPUS_PER_TASK": "12"}) == 6


def test_an_invalid_number_of_ranks_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--num_processes"):
        ranks_of(1, ["--num_processes", "many"])


@pytest.mark.parametrize(("asked", "arguments"), COMMANDS)
def test_the_command_has_every_argument(asked: Mapping[str, Any], arguments: str) -> None:
    head = ["/env/bin/python", str(SCRIPTS / "launcher.py"), "--config_file", "/out/accelerate.yaml"]
    assert launch_command("/env/bin/python", OUT, **asked) == [*head, *arguments.split(), SHIM, "/out"]


@pytest.mark.parametrize(
    ("processes", "has_card", "sharding", "kind"),
    [
        (1, True, None, "NO"),
        (1, False, None, "NO"),
        (2, True, None, "MULTI_GPU"),
        (2, False, None, "MULTI_CPU"),
        (2, True, Sharding(), "FSDP"),
        (1, False, Sharding(), "FSDP"),
    ],
)
def test_the_users_accelerate_config_is_replaced(
    processes: int, has_card: bool, sharding: Sharding | None, kind: str
) -> None:
    ranks = Ranks(total=processes)
    text = accelerate_config(precision="fp16", ranks=ranks, has_card=has_card, sharding=sharding)
    found = yaml.safe_load(text)
    assert (found["distributed_type"], found["use_cpu"]) == (kind, not has_card)
    assert found.get("fsdp_config") == (sharding and sharding.values())
    assert (found["num_processes"], found["num_machines"], found["mixed_precision"]) == (processes, 1, "fp16")
    assert yaml.safe_load(accelerate_config(precision="fp32", ranks=ranks, has_card=True))[
        "mixed_precision"
    ] == ("no")


NOTEBOOK = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONPATH": "/env/python",
    "PYTHONHOME": "/usr",
    "PYTHONSTARTUP": "/home/someone/.pythonrc",
    "PIP_CONSTRAINT": "/none.txt",
    "PIP_INDEX_URL": "https://example.com",
    "UV_SYSTEM_PYTHON": "true",
    "UV_CONSTRAINT": "/none.txt",
    "VIRTUAL_ENV": "/other",
}
KEPT = {
    "LD_LIBRARY_PATH": "/usr/lib64-nvidia",
    "LD_PRELOAD": "/usr/lib/libtcmalloc.so",
    "CUDA_VISIBLE_DEVICES": "1",
    "CUDA_HOME": "/usr/local/cuda",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "NCCL_DEBUG": "INFO",
    "HF_HOME": "/hub",
    "HF_ENDPOINT": "https://mirror.example.com",
    "HTTPS_PROXY": "http://proxy:3128",
    "no_proxy": "localhost",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
TOLD = {
    **OPT_OUTS,
    "GRADIO_ANALYTICS_ENABLED": "True",  # as the user sets it
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONFAULTHANDLER": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s",
    "HF_TOKEN": "s",
    "MY_PASSWORD": "s",
    "DATABASE_URL": "postgres://me:s@db.example/x",
    "WANDB_API_KEY": "s",
}
OFF = {"WANDB_MODE": "disabled", "WANDB_DISABLED": "true"}
HUB_OFF = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ({"reports": False}, OFF),
        ({"reports": True}, {}),
        ({"reports": True, "offline": True}, HUB_OFF),
        ({"reports": True, "cards": (0,)}, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ({"reports": True, "cards": ()}, {"CUDA_VISIBLE_DEVICES": "", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ({"reports": True, "secrets": {"HF_TOKEN": "hf_a", "WANDB_API_KEY": "b"}}, {"HF_TOKEN": "hf_a"}),
    ],
)
def test_notebook_variables_are_cleaned_for_a_child(asked: dict[str, Any], more: dict[str, str]) -> None:
    environ = {**NOTEBOOK, **KEPT, **SECRETS, "PATH": "/usr/bin", "GRADIO_ANALYTICS_ENABLED": "True"}
    found = launch_environment("/env/bin/python", environ, **asked)
    expected = {**KEPT, **TOLD, "PATH": "/env/bin:/usr/bin", **asked.get("secrets", {}), **more}
    assert found == expected


def test_the_users_wandb_mode_is_kept() -> None:
    environ = {"WANDB_MODE": "offline"}
    assert launch_environment("/env/bin/python", environ, reports=True)["WANDB_MODE"] == "offline"
    assert launch_environment("/env/bin/python", environ, reports=False)["WANDB_MODE"] == "disabled"


TELLS = """
import json, os, sys
print("to both", file=sys.stderr)
stat = os.stat(0)
null = os.stat(os.devnull)
print(json.dumps({
    "null": (stat.st_dev, stat.st_ino) == (null.st_dev, null.st_ino),
    "leads": os.getsid(0) == os.getpid(),
    "cwd": os.getcwd(),
    "variables": dict(os.environ),
}))
sys.exit(7)
"""


def test_a_run_has_its_own_session_and_log(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.end_file.write_text("{}")
    started = start_process(
        [sys.executable, "-I", "-c", TELLS], folder, {"ONLY": "this", "LC_CTYPE": "C.UTF-8"}
    )
    assert started.command == (sys.executable, "-I", "-c", TELLS)
    until(lambda: exit_code_of(started.process, started.process_started) is not None)
    assert exit_code_of(started.process, started.process_started) == 7
    assert exit_code_of(started.process, started.process_started - 1) is None  # an older one of that number
    assert start_time_of(started.process) == 0  # reaped
    assert not folder.end_file.exists()  # what the last run left
    marked, said, told = folder.log.read_text().split("\n", 3)[1:]
    assert marked.startswith("--- colablock: started ")
    assert said == "to both"
    assert json.loads(told) == {
        "null": True,
        "leads": True,
        "cwd": str(tmp_path.resolve()),
        "variables": {"ONLY": "this", "LC_CTYPE": "C.UTF-8"},
    }
    start_process([sys.executable, "-c", ""], folder, {})
    assert folder.log.read_text().count("--- colablock: started ") == 2


def test_a_failed_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unmet, match=r"could not start the run: .*No such file"):
        start_process([str(tmp_path / "none")], RunFolder(tmp_path), {})


def test_the_exit_code_of_a_run_of_another_process_is_unknown() -> None:
    assert exit_code_of(os.getpid(), start_time_of(os.getpid())) is None


def test_secrets_reach_the_child_and_no_file(bench: Bench) -> None:
    entry = bench.folder / "entry.py"
    entry.write_text("import json, os; print(json.dumps(dict(os.environ)))")
    job = bench.job(secrets={"HF_TOKEN": "hf_secret"})
    folder = bench.train(job, MPLBACKEND="agg", LD_LIBRARY_PATH="/usr/lib64-nvidia", PIP_INDEX_URL="x")
    assert "hf_secret" not in repr(job)
    assert not [
        path for path in bench.folder.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()
    ]
    write_job(
        folder,
        {**json.loads(folder.job_file.read_text()), "entry": str(entry)},
        (folder.path / "accelerate.yaml").read_text(),
    )
    environment = launch_environment(
        bench.stack.python,
        bench.environ(MPLBACKEND="agg", LD_LIBRARY_PATH="/usr/lib64-nvidia", PIP_INDEX_URL="x"),
        reports=False,
        secrets=job.secrets,
    )
    started = start_process(read_record(folder).command, folder, environment)
    until(lambda: exit_code_of(started.process, started.process_started) is not None)
    (line,) = [one for one in folder.log.read_text().splitlines() if one.startswith("{")]
    found = json.loads(line)
    assert found["HF_TOKEN"] == "hf_secret"
    assert found["LD_LIBRARY_PATH"] == "/usr/lib64-nvidia"
    assert not {"MPLBACKEND", "PIP_INDEX_URL", "PYTHONPATH"} & found.keys()
    assert found["ACCELERATE_USE_CPU"] == "True"


def test_ports_and_threads_come_from_this_host() -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", free_port()))
    whole = ranks_of(1).threads({})
    assert whole == len(os.sched_getaffinity(0))
    assert ranks_of(10_000).threads({}) == 1
    assert [ranks_of(1).threads({"OMP_NUM_THREADS": text}) for text in ("", "0")] == [whole, whole]
    assert ranks_of(8).threads({"OMP_NUM_THREADS": "3"}) == 3  # what accelerate takes, too


def test_a_file_in_the_run_folder_cannot_hide_the_launcher(tmp_path: Path) -> None:
    package = tmp_path / "site" / "accelerate" / "commands"
    package.mkdir(parents=True)
    (package / "launch.py").write_text("import sys\ndef main(): print('launched', *sys.argv[1:])")
    run = tmp_path / "run"
    (run / "accelerate").mkdir(parents=True)
    (run / "accelerate" / "__init__.py").write_text("raise SystemExit('hidden')")
    (run / "runpy.py").write_text("raise SystemExit('hidden')")
    command = launch_command(
        sys.executable, RunFolder(run), precision="fp32", ranks=Ranks(), has_card=False, threads=1
    )
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, cwd=run, env=environ, capture_output=True, text=True, check=False)
    assert (done.stdout.partition(" ")[0], done.stderr) == ("launched", "")


@pytest.mark.parametrize(
    ("extra", "hint"),
    [
        ("--use_fsdp", "`--shard fsdp` shares one model"),
        ("--fsdp_offload_params true", "keys of `fsdp_config` say how"),
        ("--fsdp-offload-params=true", "keys of `fsdp_config` say how"),
        ("--use_deepspeed", "axolotl has the key `deepspeed`"),
        ("--deepspeed_config_file zero3.json", "axolotl has the key `deepspeed`"),
        ("--zero_stage=3", "axolotl has the key `deepspeed`"),
        ("--num_processes 2 --mixed_precision fp16", "the precision follows from the cards"),
        ("--config_file my.yaml", "gives accelerate each of its arguments"),
        ("--gpu_ids 0,1", "`CUDA_VISIBLE_DEVICES` chooses the cards"),
        ("--cpu", "`CUDA_VISIBLE_DEVICES=` leaves no card"),
        ("--gradient_clipping 1", "the config has the keys"),
        ("--max_restarts 1", "goes on from the newest checkpoint"),  # which a restart does not take
        ("-m", "starts the training of colablock"),
        ("--no-python", "starts the training of colablock"),
    ],
)
def test_arguments_that_a_run_would_leave_out_are_refused(extra: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match="of accelerate cannot be used: colablock sets it") as caught:
        ranks_of(2, extra.split())
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("hosts", [2, 3])
def test_processes_that_hosts_cannot_share_are_refused(hosts: int) -> None:
    with pytest.raises(InvalidInput, match=f"`--num_processes 7` cannot be shared evenly by {hosts} hosts"):
        ranks_of(1, f"--num_machines {hosts} --num_processes 7 --main_process_ip h".split())


def test_a_rendezvous_that_numbers_the_hosts_itself_is_refused() -> None:
    """Host 1 could become the first one, and save the checkpoints."""
    with pytest.raises(InvalidInput, match="`--rdzv_backend c10d` cannot be used"):
        ranks_of(1, ["--num_machines", "2", "--machine_rank", "1", "--rdzv-backend=c10d"])
    usual = "--num_machines 2 --main_process_ip 10.0.0.1 --rdzv_backend static"
    assert ranks_of(1, usual.split()).hosts == 2


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("--num_processes -2", "`--num_processes -2` of accelerate cannot be used: it is 1 or more"),
        ("--num_processes=0", "it is 1 or more"),
        ("--num_machines 0", "it is 1 or more"),
        ("--machine_rank 1", "it is from 0 to 0"),
        ("--num_machines 2 --main_process_ip h --machine_rank 2", "it is from 0 to 1"),
        ("--num_machines 2 --main_process_ip h --main_process_port 0", "it is from 1 to 65535"),
        ("--num_processes 2 --main_process_port 70000", "it is from 0 to 65535"),
        ("--num_machines 2 --machine_rank 1", "several hosts need `--main_process_ip`"),
        ("train.py --num_processes 2", "`train.py` is not an argument of accelerate"),
    ],
)
def test_what_no_run_has_and_hosts_would_wait_for_in_vain_is_refused(extra: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        ranks_of(2, extra.split())


def test_other_arguments_of_accelerate_are_passed_on() -> None:
    extra = ("--tee 3 --num_cpu_threads_per_process 2 --rdzv_conf a=b --same_network"
             " --log_dir --use_x fsdp_x")  # fmt: skip
    assert ranks_of(3, extra.split()).total == 3
