"""Numbers that a configuration may hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

_MANY = 1_000_000_000

_RANGES: Mapping[str, tuple[float, float]] = {
    "accumulate": (1, _MANY),
    "attn_downsample": (1, 4_096),
    "batch_size": (1, _MANY),
    "every": (1, _MANY),
    "cache_limit": (0, _MANY),
    "checkpoint_every": (0, _MANY),
    "checkpoint_minutes": (0, _MANY),
    "clip_grad": (0, math.inf),
    "color_jitter": (0, _MANY),
    "crop_pct": (0.01, 10),
    "crop_size": (1, 16_384),
    "cutmix": (0, _MANY),
    "decay_epochs": (0, _MANY),
    "decay_milestones": (0, _MANY),
    "devices": (1, 4_096),
    "drop_path_rate": (0, 1),
    "drop_rate": (0, 1),
    "epochs": (0, _MANY),
    "eval_every": (1, _MANY),
    "folds": (0, _MANY),
    "image_size": (1, 16_384),
    "in_chans": (1, 4_096),
    "log_every": (1, _MANY),
    "max_size": (1, 16_384),
    "min_head_dim": (1, _MANY),
    "minutes": (0, _MANY),
    "mixup": (0, _MANY),
    "mlp_ratio": (0, 1_024),
    "num_classes": (1, 10_000_000),
    "num_heads": (1, 65_536),
    "num_nodes": (1, 65_536),
    "num_test": (1, _MANY),
    "num_train": (1, _MANY),
    "num_workers": (0, 1_024),
    "patience": (1, _MANY),
    "pool_heads": (1, 65_536),
    "pool_queries": (1, 65_536),
    "prefetch_factor": (1, 1_024),
    "random_crop_padding": (0, 16_384),
    "ratio": (0.001, 1_000),
    "repeated_augmentation": (1, _MANY),
    "scale": (0, 1_000),
    "scale_jitter": (0, 1_000),
    "seed": (0, 2**63 - 1),
    "seeds": (1, 1_000_000),
    "tile": (32, 16_384),
    "views": (1, 1_000_000),
    "warmup_epochs": (0, _MANY),
    "weight_decay": (0, math.inf),
    "window": (1, 16_384),
}
"""Number of a configuration -> the least and the most that can mean anything; the others may be any
that are finite."""


def check_numbers(config: Any, prefix: str = "") -> None:
    """Refuse numbers beyond any use, NaN and infinities among them.

    Args:
        config: A configuration.
        prefix: Of its fields' names, for errors.

    Raises:
        ValueError: If there is one.
    """
    for item in dataclasses.fields(config):
        given = getattr(config, item.name)
        least, most = _RANGES.get(item.name, (-math.inf, math.inf))
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{prefix}{item.name}={value} is no number; give a finite one")
            if value < least:
                raise ValueError(f"{prefix}{item.name}={value} must be at least {least:,}")
            if value > most:
                raise ValueError(f"{prefix}{item.name}={value} must be at most {most:,}")


def require_at_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is too small.

    Args:
        name: Of the field.
        value: What was given.
        least: What is the least.

    Raises:
        ValueError: If it is below.
    """
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


def require_share(name: str, value: float) -> None:
    """Refuse what is not from 0 to 1.

    Args:
        name: Of the field.
        value: What was given.

    Raises:
        ValueError: If it lies outside.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie between 0 and 1")


def nearest_multiple(value: int, factor: int) -> int:
    """The multiple of a factor, at least once it, that lies nearest to a number."""
    return max(1, round(value / factor)) * factor
