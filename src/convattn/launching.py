"""Which of several processes this is that torchrun, srun or Lightning has started for one work."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this is the first of them, which speaks for all."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"


def rank_and_count() -> tuple[int, int]:
    """Number of this process and how many torchrun or srun has started; (0, 1) without them."""
    for rank, count in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and count in os.environ:
            return int(os.environ[rank]), int(os.environ[count])
    return 0, 1


def local_rank() -> int | None:
    """Number of this process on its machine; None without torchrun or srun."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in os.environ:
            return int(os.environ[name])
    return None
