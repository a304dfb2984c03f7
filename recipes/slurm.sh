#!/bin/bash
# A training run on a SLURM cluster, which is queued again until it has ended.
#
#   gemb recipes cp slurm.sh job.sh          then change the lines #SBATCH to your cluster's, and:
#   sbatch job.sh finetune.yaml optimizer.lr=1e-5 -o /shared/runs/a
#
# The arguments are those of gemb train; RUN is a folder on a disk that all machines see. On each
# machine one gemb train starts a process for each GPU, with torchrun's variables; they meet at the
# job's first host. USR1 comes 300 s before the time is up: the run saves its state and leaves with 75, and the
# job is queued again and goes on there. The same run without SLURM is, on each of two machines:
#
#   gemb train finetune.yaml -o /shared/runs/a --nnodes 2 --nproc 8 --rdzv HOST:29500 --resume auto
#
# Sources: sbatch(1) for --signal, --requeue and --open-mode; srun(1) for --wait.
#SBATCH --job-name=gemb
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=0 --wait=60 \
  gemb train "$@" \
  --nnodes "$SLURM_NNODES" --nproc "${SLURM_GPUS_ON_NODE:-auto}" --rdzv "$first:29500" --resume auto
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
