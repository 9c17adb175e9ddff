"""`train` on several hosts: the commands for each, and jobs of Slurm, whose commands are stand-ins.

`tests/training/test_slurm.py` has the real ones.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colablock.cli.main import build_parser
from colablock.errors import InvalidInput, Refused
from colablock.training.hosts import check_not_begun, job_arguments, seen_state
from colablock.training.runs.folder import RunFolder, State
from tests.cli.test_train import CommandLine, shell
from tests.support.paths import ROOT
from tests.support.runs import make_record
from tests.support.slurm import in_job, write_commands
from tests.support.timing import PATIENCE, until
from tests.support.training_stack import Bench, losses_of, read_record, steps_of

__all__ = ["shell"]


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    return write_commands(tmp_path / "slurm")


def start(shell: CommandLine, *argv: str, store: str, **more: str) -> subprocess.Popen[str]:
    """Start a call of colablock in a process of its own; *store* is where its ranks meet."""
    (folder := shell.bench.folder / store).mkdir(exist_ok=True)
    environ = {**shell.environ(STAND_IN_STORE=str(folder), **more), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "colablock", *argv]
    return subprocess.Popen(
        command,
        env=environ,
        cwd=shell.bench.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# -- by hand


def test_the_command_for_each_host_is_printed(shell: CommandLine) -> None:
    given = ("train", "tiny", "--config", "my train.yaml", "--mirror", "/m", "--set", "seed=3", "--anyway")
    assert shell(*given, "--hosts", "node1, node2", "--", "--num_processes", "8") == 0
    first, one, second, two = shell.out.splitlines()
    assert (first, second) == ("# on node1", "# on node2")
    assert one == (
        "colablock train tiny --config 'my train.yaml' --set seed=3 --mirror /m --anyway --"
        " --num_machines 2 --machine_rank 0 --main_process_ip node1 --main_process_port 29500"
        " --rdzv_backend static --num_processes 8"
    )
    assert two == one.replace("--machine_rank 0", "--machine_rank 1")
    assert shell(*given, "--json", "--hosts", "a,b,c") == 0
    assert [host["host"] for host in shell.json["hosts"]] == ["a", "b", "c"]


def test_every_option_of_a_call_is_repeated(shell: CommandLine, commands: Path) -> None:
    """Those of the output and of the launch aside; a job waits for its run."""
    (group,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    options = [one for one in group.choices["train"]._actions if one.option_strings]
    aside = {"--help", "--json", "--quiet", "--verbose", "--hosts", "--launcher", "--sbatch"}
    values = {"--runner": "trl", "--shard": "none", "--set": "seed=3", "--output-dir": str(shell.folder.path)}
    model, data = str(shell.bench.stack.model), str(shell.bench.data)
    values |= {"--model": model, "--dataset": data, "--config": str(shell.bench.folder / "c.yaml")}
    (shell.bench.folder / "c.yaml").write_text("seed: 4\n")
    given = []
    for one in options:
        name = next(text for text in one.option_strings if text.startswith("--"))
        if name not in aside:
            given.append([name] if one.nargs == 0 else [name, values.get(name, "given")])
    argv = [word for words in given for word in words]
    assert shell("train", "tiny", *argv, "--hosts", "a,b", "--json") == 0
    words = shell.json["hosts"][1]["command"]
    assert [one for one in given if one[0] not in words or one[-1] not in words] == []
    path = {"PATH": f"{commands}:{os.environ['PATH']}"}
    assert shell("train", "tiny", *argv, "--launcher", "slurm", "--json", **path) == 0
    script = Path(shell.json["script"]).read_text()
    assert [one for one in given if not all(word in script for word in one)] == [["--no-wait"]]


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ("one", "`--hosts` names one host only"),
        ("a,b,a", "`--hosts` names `a` more than once"),
        ("a,,b", "`` is not the name or the address of a host"),
        ("a,b;rm", "`b;rm` is not the name or the address of a host"),
        ("a:29500,b", "`a:29500` is not the name or the address of a host"),
        ("me@a,b", "each host, without a user or a port"),
        ("node[1-3]", "`node[1-3]` is not the name or the address of a host"),
        ("fe80::1%eth0,b", "`fe80::1%eth0` is not the name or the address of a host"),
        ("Node1,node1.", "`--hosts` names `Node1` more than once"),
        ("::1,[0:0::1]", "`--hosts` names `::1` more than once"),
    ],
)
def test_hosts_that_cannot_be_are_refused(shell: CommandLine, hosts: str, words: str) -> None:
    assert shell("train", "tiny", "--hosts", hosts) == 2
    assert words in shell.said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--num_processes", "3"), "`--num_processes 3` cannot be shared evenly by 2 hosts"),
        (("--machine_rank", "1"), "`--machine_rank` of accelerate cannot be used with `--hosts`"),
        (("--main-process-ip=c",), "`--main_process_ip` of accelerate cannot be used with `--hosts`"),
        (("--use_fsdp",), "`--use_fsdp` of accelerate cannot be used: colablock sets it"),
    ],
)
def test_arguments_that_a_host_would_refuse_are_refused(
    shell: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    assert shell("train", "tiny", "--hosts", "a,b", "--", *arguments) == 2
    assert words in shell.said


@pytest.mark.parametrize("given", [("--main_process_port", "4000"), ("--main-process-port=4000",)])
def test_a_port_that_is_given_is_the_only_one(shell: CommandLine, given: tuple[str, ...]) -> None:
    assert shell("train", "tiny", "--hosts", "a,b", "--json", "--", *given) == 0
    for host in shell.json["hosts"]:
        command = host["command"]
        assert [word for word in command if "process" in word and "port" in word] == [given[0]]
        assert command[-len(given) :] == [*given]


def test_addresses_of_ipv6_are_as_accelerate_takes_them(shell: CommandLine) -> None:
    given = ("--hosts", "[2001:db8::1],2001:db8::2", "--json", "--", "--main_process_port", "4000")
    assert shell("train", "tiny", *given) == 0
    first, second = shell.json["hosts"]
    assert (first["host"], second["host"]) == ("2001:db8::1", "2001:db8::2")
    command = second["command"]
    assert command[command.index("--main_process_ip") + 1] == "2001:db8::1"
    assert command[-2:] == ["--main_process_port", "4000"]


def test_hosts_train_together_and_go_on_from_the_same_checkpoint(shell: CommandLine) -> None:
    """On one file system: the second host has a folder of its own, and the checkpoint of the first."""
    other = RunFolder(shell.bench.folder / "host-1" / "run")
    argv = shell.argv(
        "--set", "save_steps=2", "--set", "max_steps=6", "--hosts", "127.0.0.1,localhost", "--json"
    )
    assert shell(*argv) == 0
    words = [host["command"] for host in shell.json["hosts"]]
    with shell.bench.held() as held:
        running = [start(shell, *one[1:], store="first", **held) for one in words]
        until(lambda: 2 in steps_of(shell.folder, "save"), told=lambda: str(shell.folder.metrics()))
        for folder in (shell.folder, other):
            os.killpg(read_record(folder).process, signal.SIGKILL)
    for one in running:
        one.communicate(timeout=PATIENCE)
    assert (shell.folder.state(), other.state()) == (State.KILLED, State.KILLED)
    running = [start(shell, *one[1:], store="second") for one in words]
    said = [one.communicate(timeout=PATIENCE)[0] for one in running]
    assert [one.returncode for one in running] == [0, 0], said
    assert [read_record(one).resumed_from for one in (shell.folder, other)] == ["checkpoint-2"] * 2
    assert (shell.folder.state(), other.state()) == (State.DONE, State.DONE)
    assert read_record(shell.folder).processes == 2


# -- Slurm


def test_the_tasks_of_a_job_train_together(shell: CommandLine, commands: Path) -> None:
    (store := shell.bench.folder / "store").mkdir()
    variables = {**in_job(commands, os.environ["PATH"]), "STAND_IN_STORE": str(store)}
    assert shell.train("--launcher", "slurm", "--json", **variables) == 0
    record = read_record(shell.folder)
    assert list(record.command[:5]) == ["srun", "--ntasks", "2", "--kill-on-bad-exit=1", "--mpi=none"]
    assert "--export=ALL" in record.command  # also after `sbatch --export=NONE`
    assert (record.processes, shell.json["state"]) == (2, "done")
    assert list(losses_of(shell.folder)) == [1, 2, 3, 4, 5, 6]
    assert not (shell.bench.folder / "host-1").exists()


def test_arguments_that_a_job_would_refuse_are_not_submitted(shell: CommandLine, commands: Path) -> None:
    path = {"PATH": f"{commands}:{os.environ['PATH']}"}
    assert shell.train("--launcher", "slurm", "--", "--use_fsdp", **path) == 2
    assert "`--use_fsdp` of accelerate cannot be used" in shell.said
    assert not (commands / "asked").exists()


def test_a_job_with_one_task_needs_no_srun(shell: CommandLine, commands: Path) -> None:
    variables = in_job(commands, os.environ["PATH"], tasks=1)
    assert shell.train("--launcher", "slurm", "--json", **variables) == 0
    assert "srun" not in read_record(shell.folder).command


def test_a_call_in_a_job_submits_another_one_if_it_has_options_for_it(
    shell: CommandLine, commands: Path
) -> None:
    """As in a notebook that runs in a job: the options would be ignored, and its variables would count."""
    (commands / "sbatch").write_text('#!/bin/bash\nenv >"${0%/*}/given"\necho 43\n')
    variables = {**in_job(commands, os.environ["PATH"]), "SLURM_CONF": "/etc/c", "SLURM_MEM_PER_NODE": "1"}
    options = ("--launcher", "slurm", "--sbatch", "nodes=4", "--json")
    assert shell.train(*options, SRUN_CPUS_PER_TASK="2", **variables) == 0
    assert shell.json["job"] == "43"
    assert not shell.folder.record_file.exists()
    names = {line.partition("=")[0] for line in (commands / "given").read_text().splitlines()}
    assert {one for one in names if one.startswith(("SLURM_", "SRUN_"))} == {"SLURM_CONF"}


def test_a_run_in_a_job_on_another_host_is_not_taken_for_killed(shell: CommandLine, commands: Path) -> None:
    """Its processes are not seen here, and Slurm says whether the job is running."""
    variables = in_job(commands, os.environ["PATH"], tasks=1)
    assert shell.train("--launcher", "slurm", **variables) == 0
    record = read_record(shell.folder)
    assert (record.host, record.job) == (socket.gethostname(), "42")
    shell.folder.write_record(replace(record, host="node7", process=2**22 + 1))
    shell.folder.end_file.unlink()
    (shell.folder.path / "stop").touch()
    (commands / "state").write_text("RUNNING\n")
    for more in ([], ["--fresh"], ["--resume-anyway"]):
        assert shell.train(*more, PATH=variables["PATH"]) == 1
        assert "the run `run` is running on `node7`, in the job 42 of Slurm" in shell.said
        assert "hint: `scancel 42` ends it" in shell.said
    assert (shell.folder.path / "stop").exists()
    assert shell.train("--launcher", "slurm", **variables) == 0  # the job itself was queued again
    shell.folder.end_file.unlink()
    (commands / "state").write_text("PENDING\n")
    assert shell.train(PATH=variables["PATH"]) == 0
    shell.folder.write_record(replace(record, process=2**22 + 1))
    shell.folder.end_file.unlink()
    (commands / "state").unlink()  # the job is gone
    assert shell.train(PATH=variables["PATH"]) == 0


def test_a_run_on_another_host_is_running_as_long_as_it_gives_signs(shell: CommandLine) -> None:
    """No Slurm says so: its processes are not seen here, but the file that it writes the time to."""
    assert shell.train() == 0
    record = read_record(shell.folder)
    signs = shell.folder.path / "alive"
    assert abs(float(signs.read_text()) - time.time()) < 600
    long_ago = replace(record, host="node7", process=2**22 + 1, started=1e9)
    shell.folder.write_record(long_ago)
    shell.folder.end_file.unlink()
    signs.write_text(f"{time.time() - 30}")  # the limit is three minutes
    assert (shell("runs", "list"), "running on node7" in shell.out) == (0, True)
    assert (shell("runs", "show"), "run on node7: " in shell.out) == (0, True)
    for more in ([], ["--fresh"], ["--resume-anyway"]):
        signs.write_text(f"{time.time() - 30}")
        assert shell.train(*more) == 1
        assert "the run `run` is running on `node7`: its last sign of life is 3" in shell.said
        assert "`colablock runs stop run` ends it; if `node7` is gone, call again in 3 minutes" in shell.said
    assert shell("runs", "stop", "run") == 0
    assert shell.folder.stop_file.exists()  # the run there obeys
    signs.write_text(f"{time.time() - 300}")
    assert shell("runs", "show") == 0
    assert "the run on `node7` has given no sign of life since" in " ".join(shell.out.split())
    assert shell.train() == 0
    assert read_record(shell.folder).host == socket.gethostname()


@pytest.mark.parametrize(
    ("begun", "facts", "words"),
    [
        (True, {"host": "node7"}, "is running on `node7`: its last sign of life is "),
        (False, {"host": "node7"}, ""),  # it was there before, and the call has judged it
        (True, {}, ""),  # of this host, which has locked the folder
        (True, {"host": "node7", "job": "42"}, ""),  # an earlier start of this job
    ],
)
def test_two_hosts_do_not_start_a_run_in_one_folder(
    bench: Bench, begun: bool, facts: dict[str, str], words: str
) -> None:
    """The second one finds the record of the first when it is about to start."""
    folder = RunFolder(bench.folder / "run")
    folder.path.mkdir()
    known: dict[str, Any] = {"host": socket.gethostname(), **facts}
    folder.write_record(make_record(**known, process=2**22 + 1, process_started=5, started=time.time()))
    began = time.time() - 60 if begun else time.time() + 60
    environ = {"SLURM_JOB_ID": "42", "PATH": "/nowhere"}
    if not words:
        check_not_begun(folder, began, environ)
        return
    with pytest.raises(Refused) as caught:
        check_not_begun(folder, began, environ)
    assert words in caught.value.message


AGO = 300.0  # seconds since the start of a run


@pytest.mark.parametrize(
    ("job", "variables", "sign", "expected"),
    [
        # An earlier start of this job; Slurm says since 22.05 when the job began.
        ("42", {"SLURM_JOB_START_TIME": "{now}"}, 0, State.KILLED),
        ("42", {}, 0, State.KILLED),
        ("42", {"SLURM_JOB_START_TIME": "odd"}, 0, State.KILLED),
        # A second node of the same job, as with `salloc` and `srun --overlap`.
        ("42", {"SLURM_JOB_START_TIME": "{before}"}, 0, Refused),
        ("42", {"SLURM_JOB_START_TIME": "{before}"}, AGO, State.KILLED),
        # Another job, of which the controller says nothing, or that there is none.
        ("41", {"state": "RUNNING", "silent": ""}, 0, Refused),
        ("41", {"state": "RUNNING", "silent": ""}, AGO, State.KILLED),
        ("41", {}, 0, State.KILLED),
        ("41", {"state": "RUNNING"}, AGO, Refused),
        ("41", {"state": "PENDING"}, 0, State.KILLED),
        # A job of another cluster, which has numbers of its own.
        ("41", {"cluster": "there"}, 0, Refused),
        ("41", {"cluster": "there", "state": "RUNNING"}, AGO, State.KILLED),
        ("42", {"cluster": "there", "SLURM_CLUSTER_NAME": "here"}, 0, Refused),
        ("41", {"cluster": "here"}, 0, State.KILLED),
        ("41", {"cluster": "here", "state": "RUNNING"}, AGO, Refused),
    ],
)
def test_what_slurm_cannot_say_the_signs_of_life_do(
    commands: Path, job: str, variables: Mapping[str, str], sign: float, expected: State | type[Refused]
) -> None:
    folder, now = RunFolder(commands / "run"), time.time()
    folder.path.mkdir()
    variables = dict(variables)
    record = make_record(host="node7", job=job, process=5, process_started=5, started=now - AGO)
    record = replace(record, cluster=variables.pop("cluster", ""))
    (folder.path / "alive").write_text(f"{now - sign}")
    environ = dict(in_job(commands, os.environ["PATH"], tasks=1))
    for name, value in variables.items():
        if name.isupper():
            environ[name] = value.format(now=round(now), before=round(now - 2 * AGO))
        else:
            (commands / name).write_text(value)
    if isinstance(expected, State):
        assert seen_state(folder, record, environ) is expected
        return
    with pytest.raises(expected, match="is running on `node7`"):
        seen_state(folder, record, environ)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"SLURM_NTASKS": "two"}, "this is not a job of Slurm: SLURM_JOB_ID is '42', SLURM_NTASKS is 'two'"),
        ({"PATH": "/nowhere"}, "`scontrol` of Slurm cannot be run"),
    ],
)
def test_an_odd_job_is_refused(
    shell: CommandLine, commands: Path, changed: dict[str, str], words: str
) -> None:
    assert shell.train("--launcher", "slurm", **{**in_job(commands, os.environ["PATH"]), **changed}) in (1, 2)
    assert words in shell.said
    assert not shell.folder.record_file.exists()


def test_without_a_number_of_tasks_each_node_is_a_host(commands: Path) -> None:
    """As in a job that was allocated with `salloc --nodes 2`."""
    environ = {**in_job(commands, os.environ["PATH"]), "SLURM_JOB_NUM_NODES": "2"}
    del environ["SLURM_NTASKS"]
    assert job_arguments(environ, has_card=True)[:2] == ("--num_machines", "2")
    assert job_arguments({**environ, "SLURM_JOB_NUM_NODES": "1"}, has_card=True) == ()


@pytest.mark.parametrize(("nodes", "has_card"), [("2", True), ("2", False), ("1", False)])
def test_each_task_is_a_host(commands: Path, nodes: str, *, has_card: bool) -> None:
    environ = {**in_job(commands, os.environ["PATH"]), "SLURM_JOB_NUM_NODES": nodes}
    assert job_arguments(environ, has_card=has_card)[:2] == ("--num_machines", "2")


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_job_takes_the_port_that_is_given(commands: Path, tasks: int) -> None:
    environ = in_job(commands, os.environ["PATH"], tasks=tasks)
    given = ("--main-process-port", "4000", "--num_processes", "2")
    words = job_arguments(environ, given, has_card=False)
    assert words[-len(given) :] == given
    assert [word for word in words if word.startswith("--main") and word.endswith("port")] == [given[0]]


@pytest.mark.parametrize("argument", ["--num-machines=2", "--machine_rank=0", "--main_process_ip=a"])
def test_arguments_that_slurm_sets_are_refused(shell: CommandLine, commands: Path, argument: str) -> None:
    for environ in ({"PATH": f"{commands}:{os.environ['PATH']}"}, in_job(commands, os.environ["PATH"])):
        assert shell.train("--launcher", "slurm", "--", argument, **environ) == 2
        assert "of accelerate cannot be used with `--launcher slurm`, which sets it" in shell.said
    assert not shell.folder.record_file.exists()
    assert not (commands / "asked").exists()


def test_tasks_that_would_share_their_cards_are_refused(commands: Path) -> None:
    environ = {**in_job(commands, os.environ["PATH"], tasks=8), "SLURM_JOB_NUM_NODES": "1"}
    with pytest.raises(InvalidInput, match="has 8 tasks on 1 nodes, and each would use every card") as caught:
        job_arguments(environ, has_card=True)
    assert "ntasks-per-node=1" in (caught.value.hint or "")


def test_a_job_is_submitted(shell: CommandLine, commands: Path) -> None:
    path = {"PATH": f"{commands}:{os.environ['PATH']}"}
    options = ("--sbatch", "nodes=2", "--sbatch", "time=1:00:00", "--sbatch=--exclusive")
    assert shell.train("--launcher", "slurm", "--fresh", "--anyway", *options, **path) == 0
    script = shell.bench.folder / "run.sbatch"
    assert shell.out.split() == ["submitted", "job", "42:", f"`{script}`"]
    assert (commands / "asked").read_text() == f"--parsable {script}\n"
    text = script.read_text()
    lines = text.splitlines()
    for option in (
        "nodes=2",
        "time=1:00:00",
        "exclusive",
        "dependency=singleton",
        "signal=B:USR1@300",
        "requeue",
    ):
        assert f"#SBATCH --{option}" in lines
    assert not [line for line in lines if "gpus" in line]  # the stack has no build for CUDA
    assert f"run={shell.folder.path}" in lines
    assert "#SBATCH --job-name=run-" in text  # and a hash of the folder: jobs with one name wait
    (command,) = (line for line in lines if " -m colablock train tiny " in line)
    assert command.endswith('"${first[@]}" --anyway --launcher slurm &')
    assert "first=(--fresh)" in text  # not when the job is queued again
    subprocess.run(["/bin/bash", "-n", str(script)], check=True)
    assert not shell.folder.path.exists()


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("partition=forbidden", 1, "sbatch: error: invalid partition"),
        ("Nodes", 2, "`Nodes` is not an option of sbatch"),
        ("comment=a\nrm -rf", 2, "is not an option of sbatch"),
    ],
)
def test_a_job_that_cannot_be_is_refused(
    shell: CommandLine, commands: Path, option: str, code: int, words: str
) -> None:
    path = {"PATH": f"{commands}:{os.environ['PATH']}"}
    assert shell.train("--launcher", "slurm", "--sbatch", option, **path) == code
    assert words in shell.said


@pytest.mark.parametrize(
    ("name", "log"),
    [("100%", "100%%-%j.log"), ("%u", "%%u-%j.log"), ("a b's", "'a b\\'s-%j.log'"), ("a\\b", "")],
)
def test_the_log_of_a_job_is_beside_its_folder(
    shell: CommandLine, commands: Path, name: str, log: str
) -> None:
    """`test_slurm.py` has Slurm itself read such names."""
    path = {"PATH": f"{commands}:{os.environ['PATH']}"}
    folder = shell.bench.folder / name / "x" if not log else shell.bench.folder / name
    code = shell.train("--launcher", "slurm", "--output-dir", str(folder), **path)
    if not log:
        assert (code, "its path has a backslash" in shell.said) == (2, True)
        return
    assert code == 0
    text = folder.with_name(f"{name}.sbatch").read_text()
    line = next(line for line in text.splitlines() if line.startswith("#SBATCH --output="))
    assert line.partition("=")[2].replace(f"{folder.parent}/", "") == log


def test_a_job_keeps_the_folder_that_its_script_stops(shell: CommandLine, commands: Path) -> None:
    """Without `--output-dir` the name depends on what else has run."""
    path = {"PATH": f"{commands}:{os.environ['PATH']}"}
    argv = shell.argv()
    at = argv.index("--output-dir")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shell.bench.folder)
        assert shell(*argv[:at], *argv[at + 2 :], "--launcher", "slurm", "--json", **path) == 0
    folder = shell.bench.folder / "outputs" / "model-data"
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    assert f"#SBATCH --job-name=model-data-{name}\n" in Path(shell.json["script"]).read_text()
    assert f"run={folder}\n" in (text := Path(shell.json["script"]).read_text())
    assert f"--output-dir {folder} " in text


def test_a_script_of_somebody_else_is_not_replaced(shell: CommandLine, commands: Path) -> None:
    path = {"PATH": f"{commands}:{os.environ['PATH']}"}
    script = shell.bench.folder / "run.sbatch"
    assert shell.train("--launcher", "slurm", **path) == 0
    assert shell.train("--launcher", "slurm", "--sbatch", "nodes=2", **path) == 0
    assert "#SBATCH --nodes=2\n" in script.read_text()
    script.write_bytes(b"#!/bin/bash\n\xff mine\n")
    assert shell.train("--launcher", "slurm", **path) == 2
    assert "is not a script of colablock, which would replace it" in shell.said
    assert script.read_bytes() == b"#!/bin/bash\n\xff mine\n"


def test_without_slurm_the_script_is_written(shell: CommandLine) -> None:
    assert shell.train("--launcher", "slurm", PATH="/nowhere") == 1
    assert "there is no `sbatch` here to submit it with" in shell.said
    assert (shell.bench.folder / "run.sbatch").is_file()
    assert shell.train("--launcher", "slurm", "--hosts", "a,b") == 2
    assert "`--hosts` cannot be used with `--launcher slurm`" in shell.said
    assert shell.train("--sbatch", "nodes=2") == 2
    assert "hint: Add `--launcher slurm`" in shell.err


def test_a_job_stops_before_its_limit_and_goes_on_when_it_is_queued_again(
    shell: CommandLine, commands: Path
) -> None:
    """The script as Slurm runs it, with the signal that it sends before the limit."""
    path = {"PATH": f"{commands}:{os.environ['PATH']}"}
    assert shell.train("--launcher", "slurm", "--fresh", "--set", "max_steps=8", **path) == 0
    (commands / "asked").unlink()
    with shell.bench.held() as held:
        job = batch(shell, commands, "first", **held)
        until(lambda: 2 in steps_of(shell.folder), told=lambda: str(shell.folder.metrics()))
        job.send_signal(signal.SIGUSR1)
        until(shell.folder.stop_file.exists)
    said, _ = job.communicate(timeout=PATIENCE)
    assert (job.returncode, shell.folder.state()) == (0, State.STOPPED), said
    assert (commands / "asked").read_text() == "requeue 42\n"
    assert (shell.bench.folder / "run.first-42").exists()  # the next start does not begin again
    stopped = max(losses_of(shell.folder))
    assert stopped < 8
    (commands / "asked").unlink()
    job = batch(shell, commands, "second", SLURM_RESTART_COUNT="1")
    said, _ = job.communicate(timeout=PATIENCE)
    assert (job.returncode, shell.folder.state()) == (0, State.DONE), said
    assert steps_of(shell.folder, "start") == [0, stopped]
    assert list(losses_of(shell.folder)) == list(range(1, 9))
    assert not (commands / "asked").exists()
    assert not (shell.bench.folder / "run.first-42").exists()


def batch(shell: CommandLine, commands: Path, store: str, **more: str) -> subprocess.Popen[str]:
    """Run the batch script of a job with two tasks."""
    (folder := shell.bench.folder / store).mkdir()
    variables = {**in_job(commands, os.environ["PATH"]), "STAND_IN_STORE": str(folder), **more}
    return subprocess.Popen(
        ["/bin/bash", str(shell.bench.folder / "run.sbatch")],
        env={**shell.environ(**variables), "PYTHONPATH": str(ROOT)},
        cwd=shell.bench.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
