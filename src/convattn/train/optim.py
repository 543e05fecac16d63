"""timm's optimisers and schedules by name, from flat arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm.optim
import timm.scheduler
import torch
from timm.scheduler.multistep_lr import MultiStepLRScheduler
from torch import nn

from convattn.config import TrainConfig
from convattn.surgery import new_parameters
from convattn.text import nearest


def create_optimizer(
    model: nn.Module,
    *,
    opt: str,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    betas: Sequence[float] | None = None,
    opt_args: Mapping[str, Any] | None = None,
    layer_decay: float | None = None,
    new_lr_scale: float = 1.0,
) -> torch.optim.Optimizer:
    """The optimiser of a model's trainable parameters.

    Weight decay spares 1-D parameters (biases, norms, LayerScale) and what the model names in
    ``no_weight_decay()`` (class tokens). Learning rates of layers relative to ``lr`` are the
    groups' ``lr_scale``, which ``create_schedule`` heeds, in the warm-up and at the end, too.

    Args:
        opt: timm's name of the optimiser.
        lr: Highest learning rate.
        weight_decay: Decay of the parameters that are not spared.
        momentum: For the optimisers that have one.
        betas: Decay of the first and second moment, for Adam's family; None keeps the default.
        opt_args: Further arguments of the optimiser.
        layer_decay: Factor on the learning rate per layer, from the head down.
        new_lr_scale: Further factor on the learning rate of the attention that ``augment`` added.

    Raises:
        ValueError: If timm knows no such optimiser, or it takes no such argument.
    """
    names = timm.optim.list_optimizers()
    if opt not in names:
        raise ValueError(f"unknown optimiser {opt!r}; the nearest is {nearest(opt, names)!r}")
    arguments = dict(opt_args or {})
    if betas is not None:
        arguments["betas"] = tuple(betas)
    try:
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            model,
            opt=opt,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            layer_decay=layer_decay,
            **arguments,
        )
    except TypeError as error:
        raise ValueError(f"optimiser {opt!r} refuses its arguments: {error}") from None
    if new_lr_scale != 1:
        _scale_new(optimizer, model, new_lr_scale)
    return optimizer


def _scale_new(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Move the parameters that attention brought into groups with a learning rate of their own."""
    names = new_parameters(model)
    new = {id(parameter) for name, parameter in model.named_parameters() if name in names}
    for group in list(optimizer.param_groups):
        theirs = [parameter for parameter in group["params"] if id(parameter) in new]
        others = [parameter for parameter in group["params"] if id(parameter) not in new]
        scaled = {**group, "params": theirs, "lr_scale": group.get("lr_scale", 1.0) * factor}
        if not others:
            group.update(scaled)
        elif theirs:
            group["params"] = others
            optimizer.add_param_group(scaled)


def create_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    schedule: str,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_lr: float = 0.0,
    min_lr: float = 0.0,
    decay_rate: float = 0.1,
    decay_epochs: float = 30.0,
    decay_milestones: Sequence[int] = (),
) -> timm.scheduler.scheduler.Scheduler:
    """The learning rate as a function of the optimiser step alone: ``step_update(step)`` sets it.

    Args:
        optimizer: Whose learning rates are set.
        schedule: timm's name of the schedule.
        epochs: Length of the training, warm-up included.
        steps_per_epoch: Optimiser steps an epoch.
        warmup_epochs: Epochs of linear rise.
        warmup_lr: Learning rate of the first step of that rise.
        min_lr: Learning rate at the end.
        decay_rate: Factor of a step, or power of a poly schedule.
        decay_epochs: Epochs between two steps.
        decay_milestones: Epochs at whose first step a multistep schedule steps.
    """
    created, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched=schedule,
        num_epochs=epochs,
        decay_epochs=decay_epochs,
        decay_milestones=list(decay_milestones),
        decay_rate=decay_rate,
        min_lr=min_lr,
        warmup_lr=warmup_lr,
        warmup_epochs=warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    if isinstance(created, MultiStepLRScheduler):  # timm's steps one step before a milestone
        created.decay_t = [step + 1 for step in created.decay_t]
    return created


def optimizer_args(config: TrainConfig) -> dict[str, Any]:
    """Arguments of ``create_optimizer``."""
    optim = config.optim
    return {
        "opt": optim.opt,
        "lr": optim.lr,
        "weight_decay": optim.weight_decay,
        "momentum": optim.momentum,
        "betas": optim.betas,
        "opt_args": optim.opt_args,
        "layer_decay": optim.layer_decay,
        "new_lr_scale": config.augment.lr_scale,
    }


def schedule_args(config: TrainConfig) -> dict[str, Any]:
    """Arguments of ``create_schedule`` but for the lengths."""
    optim = config.optim
    return {
        "schedule": optim.schedule,
        "warmup_epochs": optim.warmup_epochs,
        "warmup_lr": optim.warmup_lr,
        "min_lr": optim.min_lr,
        "decay_rate": optim.decay_rate,
        "decay_epochs": optim.decay_epochs,
        "decay_milestones": optim.decay_milestones,
    }
