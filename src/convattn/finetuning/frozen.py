"""The first stage: a pool and a classifier on the maps of the frozen backbone."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convattn.config import FinetuneConfig, PoolName
from convattn.data import TensorImages
from convattn.data.reading import read_size
from convattn.finetuning.images import Images, Split
from convattn.modes import default_device
from convattn.probing.backbone import Frozen, open_backbone
from convattn.probing.cache import MapCache
from convattn.probing.heads import Outcome, Training, Trial, best_trial, first_rates, wider_rates
from convattn.probing.study import cache_maps
from convattn.train.classification import balanced_weights

_DECAY = 0.01
_DROP_RATES = (0.0, 0.5)
_BATCH = 64
_STEPS = 2_000  # of a head's training, about
_FEWEST_EPOCHS, _MOST_EPOCHS = 8, 40
_PATIENCE = 8
_LARGER = 10 / 7  # the side that is tried beside that of the weights, over it
_STRIDE = 32
_LOOKED_AT = 200  # images whose size is asked
_TIMED = (
    3  # batches by which the speed is measured; the first is slower, a busy machine all but one
)


@dataclass(frozen=True)
class View:
    """How a backbone is shown an image."""

    side: int
    """Height and width of what it sees."""
    whole: bool = False
    """Whether the image is squeezed into that; else what its weights cut off is cut off."""

    def __str__(self) -> str:
        return f"{self.side} x {self.side}{' uncropped' if self.whole else ''}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """A frozen backbone at a size, and what it makes of all images."""

    frozen: Frozen
    """The backbone."""
    cache: MapCache
    """Its maps, by the images' numbers."""
    weights: Tensor | None = None
    """(N,) how much each image counts in the loss; None: all alike."""

    @property
    def view(self) -> View:
        """How the backbone is shown an image."""
        cfg = self.frozen.cfg
        return View(int(cfg["input_size"][1]), whole=cfg["crop_mode"] == "squash")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Of a head, what validation images chose."""

    trial: Trial
    """Pool, rate, weight decay and dropout."""
    outcome: Outcome
    """Its least validation loss, and after how many epochs."""
    grid: Mapping[float, float]
    """Learning rate -> least validation loss with this dropout."""


def possible_views(config: FinetuneConfig, images: Images, own: Frozen) -> list[View]:
    """What is tried: the weights' own size, a larger one, and that with nothing cut off.

    The own one alone where a size was asked for, or where most images are smaller than that: what
    is drawn larger than it was photographed is often told better, but not what is tiny.

    Args:
        config: Of the finetuning.
        images: All images.
        own: The backbone as its weights want it.
    """
    side = int(own.cfg["input_size"][1])
    if config.image_size is not None or _usual_side(images) < side:
        return [View(side)]
    larger = round(side * _LARGER / _STRIDE) * _STRIDE
    return [View(side), View(larger), View(larger, whole=True)]


def _usual_side(images: Images) -> float:
    """Median of the shorter sides in pixels, of some of the images."""
    if isinstance(images.all, TensorImages):
        return min(images.all.images.shape[2:])
    step = max(1, len(images.all) // _LOOKED_AT)
    return statistics.median(min(read_size(path)) for path in images.all.paths[::step])


def open_frozen(config: FinetuneConfig, view: View | None = None) -> Frozen:
    """The backbone as it comes.

    Args:
        config: Which, and at which size.
        view: How it is to see instead.
    """
    if view is None:
        return open_backbone(config.of_probe(config.image_size))
    frozen = open_backbone(config.of_probe(view.side))
    if not view.whole:
        return frozen
    return dataclasses.replace(frozen, cfg={**frozen.cfg, "crop_pct": 1.0, "crop_mode": "squash"})


@torch.inference_mode()
def seconds_of_pass(frozen: Frozen, count: int, device: torch.device) -> float:
    """About how long the backbone takes for so many images, by the fastest of a few batches.

    Args:
        frozen: The backbone.
        count: Of images.
        device: Where.
    """
    backbone = frozen.backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = torch.zeros(8, *frozen.cfg["input_size"], device=device)
    found = []
    for _ in range(_TIMED):
        started = time.monotonic()
        backbone(batch).sum().item()
        found.append(time.monotonic() - started)
    return min(found) / len(batch) * count


def map_images(config: FinetuneConfig, frozen: Frozen, images: Images) -> Maps:
    """The maps of all images, out of the cache where they are there.

    Args:
        config: Where they are cached.
        frozen: The backbone.
        images: All images.
    """
    probe = config.of_probe(frozen.cfg["input_size"][1])
    cache = cache_maps(probe, frozen, images.source)
    return Maps(frozen=frozen, cache=cache, weights=images.weights)


def image_weights(
    maps: Maps, fit: Tensor, config: FinetuneConfig, num_classes: int
) -> Tensor | None:
    """How much images count in the loss, of mean 1 over those to learn; None: all alike.

    (N,), or of several classes each (N, K): the yes of a rare class more than its noes.

    Args:
        maps: Have the labels, and the weights that the data have.
        fit: Numbers of the images to learn.
        config: Whether classes are to count the same.
        num_classes: K.
    """
    labels = maps.cache.labels
    if maps.weights is None and config.class_weights == "none":
        return None
    weights = torch.ones(len(labels)) if maps.weights is None else maps.weights
    if config.class_weights == "balanced":
        of_class = torch.tensor(balanced_weights(labels[fit], num_classes))
        if labels.ndim == 1:
            weights = weights * of_class[labels]
        else:
            weights = weights[:, None] * of_class.where(labels.bool(), 1.0)
    return weights / weights[fit].mean()


def _training(
    maps: Maps,
    trials: Sequence[Trial],
    fit: Tensor,
    valid: Tensor | None,
    config: FinetuneConfig,
    num_classes: int,
    *,
    patience: int = _PATIENCE,
    **more: Any,
) -> Training:
    steps = max(1, len(fit) // _BATCH)
    return Training(
        trials,
        maps.cache,
        fit,
        valid,
        num_classes=num_classes,
        epochs=min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, round(_STEPS / steps))),
        patience=patience,
        batch_size=_BATCH,
        seed=config.seed,
        weights=image_weights(maps, fit, config, num_classes),
        device=default_device(config.device),
        **more,
    )


def possible_pools(config: FinetuneConfig) -> tuple[PoolName, ...]:
    """What is tried: the pool that was asked for, or those of ``auto``.

    Args:
        config: Of the finetuning.
    """
    return ("attention", "query") if config.pool == "auto" else (config.pool,)


def choose(
    maps: Maps,
    pool: PoolName,
    splits: Sequence[Split],
    config: FinetuneConfig,
    num_classes: int,
) -> Choice:
    """Rate, dropout and epochs of the head with the least validation loss, the mean over splits.

    Args:
        maps: Of all images.
        pool: Of the head.
        splits: Numbers of the images to learn and of those to choose by.
        config: Of the finetuning.
        num_classes: Classes.
    """
    outcomes: dict[Trial, Outcome] = {}
    trials = [
        Trial(pool, rate, _DECAY, drop_rate)
        for rate in first_rates(True, None)
        for drop_rate in _DROP_RATES
    ]
    while trials:
        if len(splits) == 1:
            outcomes |= _training(maps, trials, *splits[0], config, num_classes).run()
        else:
            outcomes |= _mean_outcomes(maps, trials, splits, config, num_classes)
        trials = wider_rates(outcomes, pool)
    best = best_trial(outcomes, pool)
    return Choice(
        trial=best,
        outcome=outcomes[best],
        grid={
            trial.lr: outcome.loss
            for trial, outcome in sorted(outcomes.items(), key=_rate)
            if trial.drop_rate == best.drop_rate
        },
    )


def _mean_outcomes(
    maps: Maps,
    trials: Sequence[Trial],
    splits: Sequence[Split],
    config: FinetuneConfig,
    num_classes: int,
) -> dict[Trial, Outcome]:
    """What comes of each trial by the mean over all images that are chosen by, epoch by epoch."""
    curves: dict[Trial, list[Tensor]] = {trial: [] for trial in trials}
    for fit, valid in splits:
        found = _training(maps, trials, fit, valid, config, num_classes, patience=_MOST_EPOCHS)
        for trial, outcome in found.run().items():
            curves[trial].append(len(valid) * torch.tensor(outcome.valid_losses))
    count = sum(len(valid) for _, valid in splits)
    means = {
        # a head that diverged has fewer epochs
        trial: torch.stack([curve[: min(map(len, own))] for curve in own]).sum(0) / count
        for trial, own in curves.items()
    }
    return {
        trial: Outcome(loss=float(mean.min()), epoch=int(mean.argmin()) + 1)
        for trial, mean in means.items()
    }


def _rate(item: tuple[Trial, Outcome]) -> float:
    return item[0].lr


def train_head(
    maps: Maps, images: Tensor, choice: Choice, config: FinetuneConfig, num_classes: int
) -> Training:
    """The training of the chosen head on images, at its end.

    Args:
        maps: Of all images.
        images: Numbers of those to learn.
        choice: Rate and epochs.
        config: Of the finetuning.
        num_classes: Classes.
    """
    ends = {choice.trial: max(1, choice.outcome.epoch)}
    training = _training(maps, list(ends), images, None, config, num_classes, ends=ends)
    training.run()
    return training
