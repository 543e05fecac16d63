"""What was done to a network of timm's, kept on it, so that timm can make it anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from convattn.surgery.records import AugmentOptions, Plan

AUGMENTED = "augmented"
"""timm's name of networks that ``augment`` was given, and of the recipe in ``pretrained_cfg``."""


def keep_recipe(model: nn.Module, found: Plan, options: AugmentOptions) -> None:
    """Note base and arguments where timm looks when it saves a network; others are left alone.

    They stand in ``pretrained_cfg``, and among the arguments that newer versions of timm note in
    ``config.json``. Who augments twice gets two steps.

    Args:
        model: The augmented one.
        found: What was replaced.
        options: What was asked for.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, Mapping) or not cfg.get("architecture"):
        return
    convs = [item.name for item in found.convs if item.replaced]
    step: dict[str, Any] = dataclasses.asdict(dataclasses.replace(options, conv=convs or None))
    step["input_size"] = list(found.input_size)
    step = {name: value for name, value in step.items() if value is not None}
    before = cfg.get(AUGMENTED) or {"base": cfg["architecture"], "augment": []}
    recipe = {"base": before["base"], "augment": [*before["augment"], step]}
    model.pretrained_cfg = {  # type: ignore[assignment]
        **cfg,
        "architecture": AUGMENTED,
        AUGMENTED: recipe,
    }
    arguments = getattr(model, "_model_args", None)
    if arguments is not None:
        model._model_args = {**arguments, **recipe}  # type: ignore[assignment]
