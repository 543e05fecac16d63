"""What all trainings have in common, whatever the network is trained for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import lightning as L
import torch
from torch import nn

from convattn.config import AugmentConfig, TrainConfig
from convattn.exceptions import LostProcess
from convattn.heartbeat import is_lost_process
from convattn.kernels.recomputation import count_batches_once
from convattn.results import Results
from convattn.train.datamodule import TrainingData
from convattn.train.optim import create_optimizer, create_schedule
from convattn.train.processes import lost_process
from convattn.train.seeding import derive_seed, seed_all


@dataclass(frozen=True, kw_only=True)
class Curves:
    """How a network is judged while it trains, and how that is shown."""

    shares: Mapping[str, str]
    """Column of ``metrics.csv`` -> what people call it, the foremost first; between 0 and 1."""
    measure: str
    """What they are together, in a word or two."""
    loss: str | None
    """Unit of the loss on these images, None if it has none."""
    part: Literal["test", "validation"] = "test"
    """The images that are looked at between epochs."""

    @property
    def title(self) -> str:
        """Stands above the plot of the shares."""
        return f"{self.part} {self.measure}".capitalize()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of ``metrics.csv``."""
        tested = [] if self.loss is None else ["val_loss"]
        return ("step", "epoch", "train_loss", "lr", "images_per_second", *tested, *self.shares)


class TrainingTask(L.LightningModule):
    """A network in training: its optimiser, its schedule, and its randomness step by step.

    A task keeps ``epochs``, ``optimizer_args``, ``schedule_args`` and ``seed`` among its
    hyperparameters, and its network as ``model``.
    """

    curves: Curves
    model: nn.Module

    def on_fit_start(self) -> None:
        """Have batch norms count a batch once where the network recomputes its activations."""
        if any(getattr(module, "grad_checkpointing", False) for module in self.model.modules()):
            count_batches_once(self.model)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set this step's randomness and learning rate from its place in the training alone."""
        seed_all(
            derive_seed(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank, 1)
        )
        self.schedule.step_update(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser; the schedule beside it is set by step number and keeps no state."""
        optimizer = create_optimizer(self.model, **(self.hparams["optimizer_args"] or {}))
        steps = self.trainer.estimated_stepping_batches
        self.schedule = create_schedule(
            optimizer,
            epochs=self.hparams["epochs"],
            steps_per_epoch=max(1, int(steps) // self.hparams["epochs"]),
            **(self.hparams["schedule_args"] or {}),
        )
        return optimizer


class Job(Protocol):
    """One training: its data, its network, and how its run folder shows what came of it."""

    config: TrainConfig
    """With everything filled in that the data tell."""
    data: TrainingData
    curves: Curves
    """Of the images that are looked at between epochs."""

    def make_task(self, checkpoint: Path | None) -> TrainingTask:
        """The network at its random start, or with the weights of ``checkpoint``."""
        ...

    @property
    def augmented(self) -> str:
        """What attention the network was given, in a line."""
        ...

    def show(self, model: nn.Module, folder: Path, *, title: str) -> tuple[Results, Sequence[Path]]:
        """Test the saved network and draw what it sees: the result and the figures."""
        ...


@contextmanager
def described_failure(told: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Training's failures that PyTorch tells in words of its own, in a sentence.

    Args:
        told: Gives what is known of a process that is gone, in words.

    Raises:
        ValueError: If a batch norm got a single number a channel, of one image.
        LostProcess: If another process of several has gone.
    """
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "a batch of one image, and a BatchNorm behind the pool or on a map of one position "
            "has nothing to take the mean of; train with --data.batch-size 2 or more, on as many "
            "images at least"
        ) from None
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise LostProcess(lost_process(told())) from None


def describe_augment(augment: AugmentConfig, *parts: str) -> str:
    """What attention a network was given, in a line.

    Args:
        augment: What was asked for.
        parts: What else is known of it.
    """
    if augment.pool is None and not augment.conv:
        return "no"
    words = []
    if augment.pool is not None:
        words.append(f"pool {augment.pool}")
    if augment.conv:
        words.append(f"conv {' '.join(augment.conv)}")
    words += parts
    if augment.lr_scale != 1:
        words.append(f"new layers' learning rate times {augment.lr_scale:g}")
    if augment.freeze:
        words.append("all but attention and what predicts frozen")
    return ", ".join(words)
