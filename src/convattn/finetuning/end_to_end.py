"""The second stage: the whole network trained on, from where the first has left it."""

from __future__ import annotations

import csv
import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from convattn.config import FinetuneConfig, OptimConfig, TrainConfig
from convattn.data import Source
from convattn.finetuning.images import ENOUGH, Images
from convattn.finetuning.results import fit_temperature
from convattn.modes import default_device
from convattn.text import report
from convattn.train.classification import ClassificationJob
from convattn.train.run import fit

MOST_EPOCHS = 12
FEWEST_EPOCHS = 3
_FEWEST_STEPS, _SMALLEST_BATCH, _LARGEST_BATCH = 8, 8, 32
_RATE = 1e-4
_DECAY = 0.05
_PATIENCE = 4
_CROP = (0.7, 1.0)  # share of the image that is seen at once
_SLACK = 1.3  # for what is not the network's own work
_TIMED = 16  # images of the batch by which the speed is measured


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds that an image takes."""

    training: float
    """Forward and backward."""
    testing: float
    """Forward."""

    def of_epoch(self, num_fit: float, num_valid: float) -> float:
        """Seconds of an epoch.

        Args:
            num_fit: Images that are learnt.
            num_valid: Images that are looked at afterwards.
        """
        return num_fit * self.training + num_valid * self.testing


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A network after the second stage."""

    tensors: Mapping[str, Tensor]
    """By its names."""
    epoch: int
    """The epoch that was kept."""
    curve: tuple[tuple[float, float, float], ...]
    """Epoch, training loss and validation loss; none where nothing was validated."""


def measure_speed(model: nn.Module, size: tuple[int, int, int], device: torch.device) -> Speed:
    """How long an image takes.

    Args:
        model: The whole network.
        size: (C, H, W) of an image.
        device: Where.
    """
    model = cast(nn.Module, model.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    images = torch.zeros(_TIMED, *size, device=device)
    model.train()
    _seconds(model, images[:2])
    training = _seconds(model, images)
    with torch.inference_mode():
        model.eval()
        testing = _seconds(model, images)
    model.zero_grad()
    return Speed(training=training / _TIMED, testing=testing / _TIMED)


def _seconds(model: nn.Module, images: Tensor) -> float:
    started = time.monotonic()
    loss = model(images).float().square().mean()
    if model.training:
        loss.backward()
    loss.item()
    return time.monotonic() - started


def plan_epochs(
    model: nn.Module,
    size: tuple[int, int, int],
    config: FinetuneConfig,
    *,
    fit: int,
    train: int,
    test: int,
    seconds: float,
) -> int:
    """How many epochs of training end to end there is time for.

    None where that is too few, or where too few images could tell whether it is better; either is
    told.

    Args:
        model: The network.
        size: (C, H, W) of an image.
        config: What was asked for.
        fit: Images that are learnt while the others choose the epoch.
        train: Images that are learnt in the end.
        test: Images of the test.
        seconds: That are left.
    """
    if config.epochs == 0:
        return 0
    if config.epochs is None and train - fit < ENOUGH:
        report(
            f"only the head is trained: {train - fit} validation images are too few to tell "
            "whether more is better; --epochs 8 trains the whole network all the same"
        )
        return 0
    speed = measure_speed(model, size, default_device(config.device))
    share = 1 - 1 / config.folds if config.folds else 0.0
    folds = config.folds * share * fit  # images that the folds learn in an epoch, together
    held_out = config.folds * share * (train - fit)
    epoch = _SLACK * speed.of_epoch(fit + train + folds, train - fit + held_out)
    after = _SLACK * speed.testing * (test + (train if config.folds else 0))
    there_is_time_for = int((seconds - after) / epoch)
    if config.epochs is not None:
        if there_is_time_for < config.epochs:
            report(
                f"{config.epochs} epochs end to end take about "
                f"{(config.epochs * epoch + after) / 60:.2g} minutes, more than --minutes"
            )
        return config.epochs
    if there_is_time_for < FEWEST_EPOCHS:
        minutes = config.minutes + (FEWEST_EPOCHS * epoch + after - seconds) / 60
        report(
            "only the head is trained: an epoch end to end takes about "
            f"{epoch / 60:.2g} minutes; --minutes {math.ceil(minutes)} would do"
        )
        return 0
    return min(MOST_EPOCHS, there_is_time_for)


def run_config(
    own: TrainConfig,
    config: FinetuneConfig,
    start: Path,
    *,
    epochs: int,
    drop_rate: float,
    num_fit: int,
    validated: bool,
) -> TrainConfig:
    """The configuration of the training.

    Args:
        own: Of the run, with its network.
        config: What was asked for.
        start: File of the network after the first stage.
        epochs: Of the schedule.
        drop_rate: Before the classifier.
        num_fit: Images that are learnt.
        validated: Whether there are validation images, which then choose the epoch.
    """
    device = default_device(config.device)
    batch_size = min(num_fit, _LARGEST_BATCH, max(_SMALLEST_BATCH, num_fit // _FEWEST_STEPS))
    return dataclasses.replace(
        own,
        model=dataclasses.replace(own.model, checkpoint=str(start), drop_rate=drop_rate),
        epochs=epochs,
        data=dataclasses.replace(own.data, batch_size=batch_size, scale=_CROP, hflip=0.5),
        optim=OptimConfig(
            opt="adamw",
            lr=_RATE,
            weight_decay=_DECAY,
            warmup_epochs=min(1.0, epochs / 4),
            warmup_lr=_RATE / 10,
            freeze_batch_norm=True,
            class_weights="balanced" if config.class_weights == "balanced" else None,
        ),
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=1,
        channels_last=True,
        keep="best" if validated else "last",
        patience=_PATIENCE if validated else None,
        eval_every=1 if validated else epochs + 1,
        logger=(),
        log_every=max(1, num_fit // batch_size),
        checkpoint_minutes=1.0,
    )


def train_end_to_end(
    own: TrainConfig,
    config: FinetuneConfig,
    images: Images,
    start: Path,
    folder: Path,
    *,
    epochs: int,
    drop_rate: float,
    fit_on: Tensor,
    valid: Tensor | None,
) -> Trained:
    """Train a network on, or go on with that.

    Args:
        own: Configuration of the run, with its network.
        config: What was asked for.
        images: All images.
        start: File of the network after the first stage, with what it needs of an image.
        folder: Where checkpoints are kept meanwhile.
        epochs: Of the schedule.
        drop_rate: Before the classifier.
        fit_on: Numbers of the images to learn.
        valid: Of those that choose the epoch; None keeps the last one.
    """
    folder.mkdir(exist_ok=True)
    train = run_config(
        own,
        config,
        start,
        epochs=epochs,
        drop_rate=drop_rate,
        num_fit=len(fit_on),
        validated=valid is not None,
    )
    fitted = fit(train, partial(ClassificationJob, source=_source(images, fit_on, valid)), folder)
    assert fitted is not None  # one process
    curve = _curve(folder / "metrics.csv") if valid is not None else ()
    return Trained(tensors=fitted.weights, epoch=fitted.epoch, curve=curve)


def _source(images: Images, fit_on: Tensor, valid: Tensor | None) -> Source:
    return dataclasses.replace(
        images.source,
        train=images.all.select(fit_on),
        val=None if valid is None else images.all.select(valid),
    )


def _curve(file: Path) -> tuple[tuple[float, float, float], ...]:
    """Of ``metrics.csv``: epoch, training loss and validation loss where both are known."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    found, loss = [], math.nan
    for row in rows:
        if row.get("train_loss"):
            loss = float(row["train_loss"])
        if row.get("val_loss"):
            found.append((float(row["epoch"]), loss, float(row["val_loss"])))
    return tuple(found)


def is_better(before: Tensor, after: Tensor, labels: Tensor) -> bool:
    """Whether the loss is less by more than its standard error, both at their best temperatures.

    Args:
        before: (V, K) logits of validation images.
        after: Others of the same.
        labels: Their classes.
    """
    gains = _losses(before, labels) - _losses(after, labels)
    error = float(gains.std(correction=1)) / math.sqrt(len(gains))
    report(
        f"trained end to end: validation loss {float(gains.mean()):+.4f} less, "
        f"standard error {error:.4f}"
    )
    return float(gains.mean()) > error


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(V,) losses of images at the best temperature."""
    calibrated = logits.double() / fit_temperature(logits, labels)
    if labels.ndim == 1:
        return nn.functional.cross_entropy(calibrated, labels, reduction="none")
    return nn.functional.binary_cross_entropy_with_logits(
        calibrated, labels.double(), reduction="none"
    ).mean(1)
