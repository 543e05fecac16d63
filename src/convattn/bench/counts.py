"""What can be counted of a network without computing anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from convattn.surgery.records import num_params
from convattn.surgery.trace import trace

_COUNTED = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose2d", "convolution", "linear"})


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What can be counted without computing anything, for one image."""

    parameters: int
    """Numbers that are trained."""
    macs: int
    """Multiply-adds of convolutions and matrix products."""
    activations: int
    """Numbers that convolutions and linear layers make, as timm's tables count them."""


def count(network: nn.Module, input_size: tuple[int, int, int]) -> Counts:
    """Parameters, multiply-adds and activations, without computing anything.

    Args:
        network: A network or a layer; left as it was.
        input_size: (C, H, W) of one image or map.

    Raises:
        ValueError: If it cannot run on such an image.

    Examples:
        >>> count(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 10, 20))
        Counts(parameters=216, macs=43200, activations=1600)
    """
    run = trace(network, input_size, count_macs=True)
    made = (math.prod(value.shape) for value in run.values if value.op in _COUNTED)
    return Counts(parameters=num_params(network), macs=run.macs, activations=sum(made))
