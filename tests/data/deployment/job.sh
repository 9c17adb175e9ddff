#!/bin/bash
# Made by `colablock export tiny --python-version 3.12.0 --platform manylinux_2_35_x86_64 --format slurm`
# matrix tiny, Python 3.12.0, manylinux_2_35_x86_64
# Put it beside train.yaml, the training config, and submit it there.
# The command colablock has to be on the PATH of the nodes.
#SBATCH --job-name=tiny
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --dependency=singleton
#SBATCH --output=%x-%j.log

set -euo pipefail

# Before the time limit, Slurm sends SIGUSR1: the run saves a checkpoint after its current step, and stops.
run=outputs/tiny
out_of_time=no
trap out_of_time=yes USR1

colablock apply ./tiny.toml --lock pylock.tiny.toml --into env --yes

code=130  # the job was interrupted before its run began
if [ "$out_of_time" = no ]; then
    colablock train ./tiny.toml --config train.yaml --output-dir outputs/tiny --launcher slurm &
    training=$!
    while kill -0 "$training" 2>/dev/null; do
        if [ "$out_of_time" = yes ]; then
            # Ask until it ends: a call that has only begun removes the request to an earlier one.
            touch "$run/stop" 2>/dev/null || kill "$training" || true
        fi
        # Not `wait`: if a signal interrupts it while the process ends, bash loses the exit code.
        sleep 1 || true
    done
    code=0
    wait "$training" || code=$?
fi

if [ "$out_of_time" = yes ]; then
    case "$code" in
        0) scontrol requeue "$SLURM_JOB_ID" ;;  # the next start goes on from the checkpoint
        130 | 143)  # interrupted before the first step; 143 is 128 + SIGTERM
            if [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
                scontrol requeue "$SLURM_JOB_ID"
            else
                echo "the job has no time for its run to begin, and is not queued again: raise its limit" >&2
            fi
            ;;
    esac
fi
exit "$code"
