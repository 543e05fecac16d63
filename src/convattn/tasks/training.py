"""Networks from configurations, and their training, whatever their task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from convattn.config import TrainConfig
from convattn.runs import Run, augment_arguments
from convattn.tasks.finding import task_of

if TYPE_CHECKING:
    from convattn.train.run import TrainedRun


def build_network(
    config: TrainConfig, *, num_classes: int, in_chans: int = 3, input_size: Sequence[int]
) -> nn.Module:
    """The network that a run trains, with random weights.

    Args:
        num_classes: Without the background.
        in_chans: Channels of an image.
        input_size: Height and width that attention is made for, where it is added.

    Raises:
        ValueError: If there is no such network, or it refuses its arguments.
    """
    augment = augment_arguments(config.augment, tuple(input_size))
    task = task_of(config.model.name)
    return task.build(config, num_classes=num_classes, in_chans=in_chans, augment=augment)


def train(config: TrainConfig) -> TrainedRun | None:
    """Train a network and leave a run folder, see ``convattn.train.run.train``.

    Args:
        config: The whole run.
    """
    from convattn.train import run

    return run.train(config, task_of(config.model.name).job)


def train_or_resume(config: TrainConfig) -> TrainedRun | None:
    """Train, or go on with what ``config.out`` holds: ``convattn.train.run.train_or_resume``.

    Args:
        config: The whole run, with ``out``.
    """
    from convattn.train import run

    return run.train_or_resume(config, task_of(config.model.name).job)


def resume(folder: str | Path) -> TrainedRun | None:
    """Go on with a run that was stopped or killed, see ``convattn.train.run.resume``.

    Args:
        folder: The run folder.
    """
    from convattn.train import run

    found = Run.open(folder)
    return run.resume(found, task_of(found.config.model.name).job)
