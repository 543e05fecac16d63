"""How sure a mean over images is: bootstrap intervals, drawn anew from the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FEWEST_IMAGES = 20
"""That an interval is given for."""

_DRAWS = 1000
_LOW, _HIGH = 0.025, 0.975


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure of some images, and where 95 % of those lie that are drawn anew from them."""

    value: float
    """Of the images themselves."""
    low: float
    """A fortieth of the draws lie below."""
    high: float
    """A fortieth of the draws lie above."""
    num_images: int
    """That have an answer."""

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(
    values: Tensor, reduce: Callable[[Tensor], Tensor] | None = None, *, seed: int = 0
) -> Interval | None:
    """The mean over images, or what follows from the means of several columns.

    Args:
        values: (N,) or (N, K); rows with a NaN have no answer.
        reduce: Means (R, K) -> figures (R,); None takes the first column's.
        seed: Of the draws.

    Returns:
        None if fewer than ``FEWEST_IMAGES`` have an answer.

    Examples:
        >>> print(interval(torch.arange(100.0)), interval(torch.ones(3)))
        49.500 [43.998, 55.290] None
    """
    columns = values.double().reshape(len(values), -1)
    columns = columns[~columns.isnan().any(1)]
    count = len(columns)
    if count < FEWEST_IMAGES:
        return None
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), _DRAWS)
    means = torch.cat([columns.mean(0, keepdim=True), torch.from_numpy(drawn / count) @ columns])
    value, *others = (means[:, 0] if reduce is None else reduce(means)).tolist()
    low, high = np.quantile(others, (_LOW, _HIGH))
    return Interval(value=value, low=float(low), high=float(high), num_images=count)


def images_to_decide(found: Interval) -> int:
    """About how many images an interval needs to leave 0 out, if its value stays.

    Args:
        found: Of a difference; its interval has 0 in it.
    """
    half = (found.high - found.low) / 2
    return math.ceil(found.num_images * (half / max(abs(found.value), 1e-9)) ** 2)
