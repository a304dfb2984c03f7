"""The batch file of a run on a SLURM cluster.

Sources: sbatch(1) for `--signal`, `--requeue` and `--open-mode`; srun(1) for `--wait`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

_PORT = 29500  # torchrun's own
_BEFORE_S = 300  # the signal comes so long before the time limit


def batch_file(words: Sequence[str], *, name: str, nodes: int, processes: int) -> str:
    """Return the text of a file for `sbatch`.

    On each machine one `gemb train` starts the machine's processes, which meet at the job's first
    host. Before the time is up they are signalled, save and leave with 75, and the job is queued
    again; it goes on where it was.

    Args:
        words: of the command, from `gemb` on, without what is said here: no --launch, --nnodes,
            --nproc, --rdzv, --resume, -n.
        name: of the job.
        nodes: machines.
        processes: of a machine, one for each of its GPUs.
    """
    command = " ".join(shlex.quote(word) for word in words)
    return f"""#!/bin/bash
#SBATCH --job-name={shlex.quote(name)}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={processes}
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@{_BEFORE_S}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# USR1 comes {_BEFORE_S} s before the time is up: the run saves and leaves with 75.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=0 --wait=60 \\
  {command} \\
  --nnodes {nodes} --nproc {processes} --rdzv "$first:{_PORT}" --resume auto
code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
