"""The processes of one training: how many a launcher has started, and which of them is gone."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from convattn import heartbeat
from convattn.config import TrainConfig
from convattn.launching import rank_and_count
from convattn.text import one_line
from convattn.world import meet


@dataclass(frozen=True, kw_only=True)
class Started:
    """Processes that a launcher has started for a training."""

    launcher: str
    """Its command."""
    devices: int
    """How many there are on a machine."""
    num_nodes: int
    """Machines."""


def started() -> Started | None:
    """What torchrun or srun has started; None: this process starts others itself."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        devices = int(environment["LOCAL_WORLD_SIZE"])
        machines = int(environment["WORLD_SIZE"]) // devices
        return Started(launcher="torchrun", devices=devices, num_nodes=machines)
    if SLURMEnvironment.detect():
        machines = int(environment.get("SLURM_NNODES", 1))
        devices = int(environment["SLURM_NTASKS"]) // machines
        return Started(launcher="srun", devices=devices, num_nodes=machines)
    return None


def check_processes(config: TrainConfig) -> None:
    """Refuse numbers of processes that the launcher has not started.

    Raises:
        ValueError: If ``devices`` or ``num_nodes`` is another than the launcher's.
    """
    found = started()
    if found is None:
        return
    for name, flag in (("devices", "--devices"), ("num_nodes", "--num-nodes")):
        asked, there = getattr(config, name), getattr(found, name)
        if asked != getattr(TrainConfig(), name) and asked != there:
            raise ValueError(
                f"{flag} {asked}, and {found.launcher} has started {found.num_nodes} x "
                f"{found.devices} processes (machines x processes of each); leave {flag} out"
            )


def processes_of(config: TrainConfig) -> dict[str, Any]:
    """Lightning's ``devices`` and ``num_nodes``: what a launcher has started, or what is asked."""
    found = started() or config
    return {"devices": found.devices, "num_nodes": found.num_nodes}


def meet_by_srun(advice: str) -> Any:
    """Wait for all processes that srun has started; who has not come is told.

    Args:
        advice: How to go on, in words, should one not come.

    Returns:
        What has to be held until they train.

    Raises:
        LostProcess: If one does not come within five minutes.
        ValueError: If the port where they meet is taken.
    """
    found = started()
    rank, count = rank_and_count()
    if found is None or found.launcher != "srun" or count == 1:
        return None
    return meet(rank, count, advice)


def slurm_job() -> str | None:
    """Number of the SLURM job that this process is of, as ``scontrol`` takes it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def requeue(job: str) -> str:
    """Have SLURM start the job again: what came of it, in words."""
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"job {job} could not be requeued ({one_line(error)}): submit it again"
    return f"job {job} is requeued"


class Heartbeat(heartbeat.Heartbeat, Callback):
    """Has every process of a training end, and tell why, soon after one of them is gone.

    Args:
        advice: How to go on, in words, for a process that its thread ends.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, where there are several processes."""
        if trainer.world_size > 1:
            _relieve_observer()
            store = torch.distributed.distributed_c10d._get_default_store()
            self.begin(store.clone(), trainer.global_rank, trainer.world_size)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop: whoever has trained to the end may leave."""
        self.end()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Find out whose connection was lost, or tell the others why this process ends."""
        self.failed(exception)


def _relieve_observer() -> None:
    """End Lightning's thread that kills all processes, without a word, once one it started is gone.

    It has no switch; until here nobody else would have seen to that.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            cast(Any, thread)._run = lambda: True


def lost_process(told: str | None) -> str:
    """What a process says that has lost another.

    Args:
        told: What is known of it.
    """
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    count = torch.distributed.get_world_size() if there else "several"
    words = told or "lost another process, which was killed or ended"
    return f"process {rank_zero_only.rank} of {count} {words}"
