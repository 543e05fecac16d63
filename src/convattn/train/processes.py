"""The processes of one training: how many a launcher has started, and which of them is gone."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from convattn.config import TrainConfig
from convattn.exceptions import INTERRUPTED, Interrupted, NonFiniteError
from convattn.text import one_line, report

_SECONDS_BETWEEN_BEATS = 1.0
_SECONDS_TO_BEAT = 3.5  # a process that lives counts up at least twice in them
_SECONDS_OF_SILENCE = 20.0
_SECONDS_TO_END = 5.0  # of a process that may find out by itself that another is gone


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


def is_lost_process(error: BaseException) -> bool:
    """Whether gloo or NCCL says that the one at the other end is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    lost = "gloo" in str(error).lower() and any(word in str(error) for word in words)
    return isinstance(error, RuntimeError) and lost


class Heartbeat(Callback):
    """Has every process of a training end, and tell why, soon after one of them is gone.

    Each counts up a number of its own in the store where they met, from a thread. Who loses a
    connection sees by the numbers whose it was; who waits for one that says nothing any more is
    ended by its thread.

    Args:
        advice: How to go on, in words, for a process that its thread ends.
    """

    def __init__(self, advice: Callable[[], str]) -> None:
        self.advice = advice
        self.told: str | None = None
        self._store: Any = None
        self._rank, self._count = 0, 1
        self._heard = 0.0
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin, where there are several processes."""
        if trainer.world_size > 1:
            _relieve_observer()
            store = torch.distributed.distributed_c10d._get_default_store()
            self.begin(store.clone(), trainer.global_rank, trainer.world_size)

    def begin(self, store: Any, rank: int, count: int) -> None:
        """Count up in a store of all processes, from a thread.

        Args:
            store: This thread's own connection to it.
            rank: Of this process.
            count: Number of processes.
        """
        self._store, self._rank, self._count = store, rank, count
        self._heard = time.monotonic()
        for target in (self._watch, self._guard):
            thread = threading.Thread(target=target, name="heartbeat", daemon=True)
            self._threads.append(thread)
            thread.start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop: whoever has trained to the end may leave."""
        self.end()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Find out whose connection was lost, or tell the others why this process ends."""
        if self._store is None:
            return
        if is_lost_process(exception):
            self.told = self._who()
        elif not isinstance(exception, Interrupted | NonFiniteError):  # which all meet together
            words = one_line(exception) or type(exception).__name__
            self._tell(f"stopped, as process {self._rank} failed: {words}")
        self.end()

    def end(self) -> None:
        """Stop counting."""
        self._over.set()
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)
        self._threads, self._store = [], None

    def _counts(self) -> list[int]:
        return [self._store.add(f"convattn/beat/{rank}", 0) for rank in range(self._count)]

    def _said(self) -> str | None:
        """What one of the processes has told all."""
        found = self._store.check(["convattn/lost"])
        return self._store.get("convattn/lost").decode() if found else None

    def _tell(self, words: str) -> str:
        """Tell all, if nobody has before; what was told."""
        try:
            said: bytes = self._store.compare_set("convattn/lost", "", words)
        except RuntimeError:
            return self._lost([0])
        return said.decode()

    def _lost(self, ranks: list[int]) -> str:
        """Of process 0 there is nothing to be found out once its store is gone."""
        one = len(ranks) == 1
        named = f"process {ranks[0]}" if one else f"processes {', '.join(map(str, ranks))}"
        return f"lost {named}, which {'was' if one else 'were'} killed or ended"

    def _who(self) -> str | None:
        """Whose connection was lost, in words; None if all live."""
        try:
            before, end = self._counts(), time.monotonic() + _SECONDS_TO_BEAT
            while self._said() is None and time.monotonic() < end:
                time.sleep(0.2)
            said = self._said()
            if said is not None:
                return said
            after = self._counts()
        except RuntimeError:
            return self._lost([0])
        silent = [rank for rank in range(self._count) if before[rank] == after[rank]]
        return self._tell(self._lost(silent)) if silent else None

    def _watch(self) -> None:
        counts, since = [-1] * self._count, [0.0] * self._count
        while not self._over.wait(_SECONDS_BETWEEN_BEATS):
            try:
                self._store.add(f"convattn/beat/{self._rank}", 1)
                fresh, words = self._counts(), self._said()
            except RuntimeError:
                self._end_process(self._lost([0]))
                return
            self._heard = now = time.monotonic()
            since = [
                then if old == new else now
                for then, old, new in zip(since, counts, fresh, strict=True)
            ]
            counts = fresh
            silent = [rank for rank, then in enumerate(since) if now - then > _SECONDS_OF_SILENCE]
            if words is None and silent:
                words = self._tell(self._lost(silent))
            if words is not None:
                self._end_process(words)
                return

    def _guard(self) -> None:
        """End this process if the store answers no more, which ``_watch`` waits for in vain."""
        while not self._over.wait(_SECONDS_BETWEEN_BEATS):
            if time.monotonic() - self._heard > _SECONDS_OF_SILENCE:
                self._end_process(self._lost([0]))
                return

    def _end_process(self, words: str) -> None:
        """End this process, unless it finds out by itself; it may hang where nothing else helps."""
        if self._over.wait(_SECONDS_TO_END):
            return
        report(f"process {self._rank} of {self._count} {words}; {self.advice()}", by_each=True)
        os._exit(INTERRUPTED)


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
