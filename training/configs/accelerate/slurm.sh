#!/bin/bash
# sbatch training/configs/accelerate/slurm.sh CONFIG [section.key=value …]
# Three minutes before its time is up the job requeues itself: SLURM ends the steps with SIGTERM, on which the run saves
# and leaves, and the job that starts next goes on where it was.
#SBATCH --job-name=brickwork
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
config=$1
shift
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=${hosts%%$'\n'*} # no pipe into head, which under pipefail may end the job
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))
# Steps do not inherit the job's --cpus-per-task. $SLURM_NODEID is each node's own, hence the single quotes.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file training/configs/accelerate/many_nodes.yaml \
        --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * SLURM_GPUS_ON_NODE)) \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$0" \
        training/train_backbone.py --config "$@"' "$address" "$config" "$@" &
wait $! # a trap runs while the shell waits, not while a command runs
