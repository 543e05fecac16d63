"""Pools that ask nothing: mean, largest, and two between them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convattn.layers.pools.base import (
    Pool,
    mean_shares,
    softmax_over_positions,
)


class AveragePool(Pool):
    """The mean of all positions.

    Examples:
        >>> AveragePool(8)(torch.ones(2, 8, 3, 5)).shape
        torch.Size([2, 8])
    """

    is_linear = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        self._positions(x)
        return x.mean((2, 3))

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H, W), all equal."""
        ones = torch.ones_like(x[:, :1])
        return ones / (x.shape[2] * x.shape[3])

    def contributions(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) and (K, C) -> (B, K, H, W)."""
        return mean_shares(x, weight)


class MaxPool(Pool):
    """The largest value of each channel."""

    @property
    def num_maps(self) -> int:
        """A map a channel."""
        return self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        self._positions(x)
        return x.amax((2, 3))

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W): where each channel has its largest value."""
        flat = x.flatten(2)
        chosen = torch.zeros_like(flat).scatter_(2, flat.argmax(2, keepdim=True), 1.0)
        return chosen.view_as(x)


class GeMPool(Pool):
    """Generalised mean; Radenovic et al. 2018, https://arxiv.org/abs/1711.02512.

    Args:
        in_features: Channels of the map.
        p: Initial exponent: 1 is the mean of what is positive, large ones near the maximum.
        eps: Least value that takes part.
    """

    def __init__(
        self,
        in_features: int,
        *,
        p: float = 3.0,
        eps: float = 1e-6,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features)
        if not p > 0:
            raise ValueError(f"p={p} must be above 0, for example 3")
        self.p = nn.Parameter(torch.full((1,), p, device=device, dtype=dtype))
        self.eps = eps

    @property
    def num_maps(self) -> int:
        """A map a channel."""
        return self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        self._positions(x)
        powers = x.clamp(min=self.eps).pow(self.p)
        return powers.mean((2, 3)).pow(1 / self.p)

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W): shares of the powers that are averaged."""
        powers = x.clamp(min=self.eps).pow(self.p)
        return powers / powers.sum((2, 3), keepdim=True)


class LogSumExpPool(Pool):
    """Smooth maximum; Pinheiro & Collobert 2015, https://arxiv.org/abs/1411.6228.

    Args:
        in_features: Channels of the map.
        r: Sharpness: 0 would be the mean, large ones are near the maximum.
    """

    def __init__(self, in_features: int, *, r: float = 10.0) -> None:
        super().__init__(in_features)
        if not r > 0:
            raise ValueError(f"r={r} must be above 0, for example 10")
        self.r = r

    @property
    def num_maps(self) -> int:
        """A map a channel."""
        return self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        self._positions(x)
        count = x.new_ones(()) * (x.shape[2] * x.shape[3])  # a symbol in an exported program
        return ((self.r * x).logsumexp((2, 3)) - count.log()) / self.r

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W): what each position's change changes."""
        return softmax_over_positions(self.r * x.flatten(2), x).view_as(x)
