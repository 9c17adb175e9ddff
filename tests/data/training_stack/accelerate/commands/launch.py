"""Starts a script in one process or several; an argument that the real one does not know is refused."""

import argparse
import os
import subprocess
import sys
import tempfile
import time


def main():
    parser = argparse.ArgumentParser("accelerate launch", allow_abbrev=False)
    for name in (
        "--config_file",
        "--mixed_precision",
        "--dynamo_backend",
        "--main_process_ip",
        "--rdzv_backend",
    ):
        parser.add_argument(name, required=name in ("--config_file", "--mixed_precision", "--dynamo_backend"))
    for name in ("--num_processes", "--num_machines", "--machine_rank", "--num_cpu_threads_per_process"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--main_process_port", type=int)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--multi_gpu", action="store_true")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.num_processes == 1:
        simple_launcher(args)
        return
    command, variables = prepare_simple_launcher_cmd_env(args)
    variables.setdefault("STAND_IN_STORE", tempfile.mkdtemp())
    here = args.num_processes // args.num_machines
    first = args.machine_rank * here
    ranks = [
        subprocess.Popen(command, env={**variables, **_of_rank(args, first + local, local)})
        for local in range(here)
    ]
    sys.exit(_wait(ranks))


def simple_launcher(args):
    command, variables = prepare_simple_launcher_cmd_env(args)
    done = subprocess.run(command, env=variables, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command)


def prepare_simple_launcher_cmd_env(args):
    variables = {
        **os.environ,
        "ACCELERATE_MIXED_PRECISION": args.mixed_precision,
        "ACCELERATE_USE_CPU": str(args.cpu),
        "OMP_NUM_THREADS": str(args.num_cpu_threads_per_process),
    }
    return [sys.executable, args.script, *args.arguments], variables


def _of_rank(args, rank, local):
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(args.num_processes),
        "MASTER_ADDR": args.main_process_ip,
        "MASTER_PORT": str(args.main_process_port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _wait(ranks):
    """Return 0 once all are done; when one fails the others are ended."""
    while True:
        codes = [one.poll() for one in ranks]
        if any(codes):
            for one in ranks:
                one.kill()
                one.wait()
            return 1
        if None not in codes:
            return 0
        time.sleep(0.01)


if __name__ == "__main__":
    main()
