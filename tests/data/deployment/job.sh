#!/bin/bash
# Made by `colablock export tiny --python-version 3.12.0 --platform manylinux_2_35_x86_64 --format slurm`
# matrix tiny, Python 3.12.0, manylinux_2_35_x86_64
# Put it beside train.yaml, the training config, and submit it there.
#SBATCH --job-name=tiny
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

colablock apply ./tiny.toml --lock pylock.tiny.toml --into env --yes

# Before the time limit, Slurm sends SIGUSR1: the run saves a checkpoint after its current step, and stops.
run=outputs/tiny
out_of_time=no
trap 'out_of_time=yes; touch "$run/stop" || kill "$training"' USR1

colablock train ./tiny.toml --config train.yaml --output-dir outputs/tiny --launcher slurm &
training=$!
code=138  # 128 + SIGUSR1: the signal has interrupted `wait`
while [ "$code" -eq 138 ]; do
    code=0
    wait "$training" || code=$?
done

if [ "$out_of_time" = yes ] && [ "$code" -eq 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"  # the next start goes on from the checkpoint
fi
exit "$code"
