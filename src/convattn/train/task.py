"""What all trainings have in common, whatever the network is trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import lightning as L
import torch
from torch import nn

from convattn.config import AugmentConfig, TrainConfig
from convattn.results import Results
from convattn.train.datamodule import TrainingData
from convattn.train.optim import create_optimizer, create_schedule
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
