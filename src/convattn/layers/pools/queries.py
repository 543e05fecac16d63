"""One query: alone, as a difference from the mean, or behind a gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convattn.layers.pools.base import (
    Pool,
    class_maps,
    mean_shares,
    softmax_over_positions,
)

_LEAST_VARIANCE = 1e-6


class QueryPool(Pool):
    """One query, which asks every channel in units of its own deviation; begins as the average.

    ``sum_n a_n x_n`` with ``a = softmax_n(q . (x_n / s))``; s is the deviation of each channel
    over images and positions, of the batch in training and a running one in evaluation. A step of
    the query, whose elements all learn at one rate, then counts alike in every channel, and as
    much in wide maps as in narrow ones: there is no division by sqrt(C).

    Args:
        in_features: Channels of the map.
        momentum: Of the running variance, after as many batches as make it the mean of all.

    Raises:
        ValueError: If the momentum is not above 0 and at most 1.

    Example:
        >>> x = torch.randn(2, 8, 3, 5)
        >>> torch.allclose(QueryPool(8)(x), x.mean((2, 3)), atol=1e-6)
        True
    """

    is_linear = True
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        momentum: float = 0.1,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features)
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum={momentum} must lie above 0 and at most at 1, as 0.1 does")
        self.momentum = momentum
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query = nn.Parameter(torch.zeros(in_features, **where))
        self.register_buffer("running_var", torch.ones(in_features, **where))
        self.register_buffer("num_batches_tracked", torch.zeros((), device=device).long())

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H, W)."""
        return self._weigh(x, self._variance(x))

    def _variance(self, x: Tensor) -> Tensor:
        """(C,), of the batch in training."""
        if not self.training or x.shape[0] == 0:
            return self.running_var
        with torch.no_grad():
            # As BatchNorm does it: ``x.var`` takes ten to fifty times as long on a CPU.
            x = x.to(self.running_var.dtype)
            found = torch.native_batch_norm(x, None, None, None, None, True, 0.0, _LEAST_VARIANCE)
            return (found[2].square().reciprocal() - _LEAST_VARIANCE).clamp(min=0)

    def _weigh(self, x: Tensor, variance: Tensor) -> Tensor:
        self._positions(x)
        # A row and not a vector: onnxruntime multiplies a transposed map by vectors wrongly.
        query = (self.query * (variance + _LEAST_VARIANCE).rsqrt())[None].to(x.dtype)
        return softmax_over_positions(query @ x.flatten(2), x).unflatten(-1, x.shape[2:])

    def _remember(self, variance: Tensor) -> None:
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = self.num_batches_tracked.reciprocal().clamp(min=self.momentum)
            self.running_var.lerp_(variance, share.to(variance.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        variance = self._variance(x)
        weights = self._weigh(x, variance)
        if self.training and x.shape[0]:
            self._remember(variance)
        return (weights.flatten(2) @ self._positions(x)).squeeze(1)

    def contributions(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) and (K, C) -> (B, K, H, W)."""
        return class_maps(x, weight) * self.attention_weights(x)


class _Residual(Pool):
    """The mean, and through a gate a channel what something else is beside it."""

    gate: nn.Parameter

    def _other(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        raise NotImplementedError

    def _other_shares(self, x: Tensor, weight: Tensor) -> Tensor:
        """Its ``contributions``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        mean = x.mean((2, 3))
        return mean + self.gate.to(x.dtype) * (self._other(x) - mean)

    def contributions(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) and (K, C) -> (B, K, H, W)."""
        weight, gate = weight.to(x.dtype), self.gate.to(x.dtype)
        return mean_shares(x, weight * (1 - gate)) + self._other_shares(x, weight * gate)


class ResidualQueryPool(_Residual):
    """The mean, and through a gate a channel one query's difference from it.

    ``mean + gate * (sum_n a_n x_n - mean)`` with ``a = softmax_n(q . x_n / sqrt(C))``. Begins as
    the average pool, in one of two ways: with gates of zero, or with a query of zero. With both
    at zero nothing could ever learn, since each one's gradient is a multiple of the other.

    Args:
        in_features: Channels of the map.
        gate: What every gate begins with.
        query_std: Deviation of the random query at the start; 0 for equal weights.

    Raises:
        ValueError: If gates and query both begin at zero, or the deviation is negative.

    Examples:
        >>> x = torch.randn(2, 8, 3, 5)
        >>> torch.allclose(ResidualQueryPool(8)(x), x.mean((2, 3)), atol=1e-6)
        True
    """

    is_linear = True

    def __init__(
        self,
        in_features: int,
        *,
        gate: float = 0.0,
        query_std: float = 0.02,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features)
        if query_std < 0:
            raise ValueError(f"query_std={query_std} is negative; for instance 0.02")
        if gate == 0 and query_std == 0:
            raise ValueError(
                "gate=0 and query_std=0 together have no gradient, ever; begin with one of them, "
                "for instance gate=1"
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.query = nn.Parameter(torch.empty(in_features, **where).normal_(std=query_std))
        self.gate = nn.Parameter(torch.full((in_features,), float(gate), **where))

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H, W), of the query alone."""
        self._positions(x)
        # A row and not a vector: onnxruntime multiplies a transposed map by vectors wrongly.
        query = (self.query[None] * self.in_features**-0.5).to(x.dtype)
        return softmax_over_positions(query @ x.flatten(2), x).unflatten(-1, x.shape[2:])

    def _other(self, x: Tensor) -> Tensor:
        return (self.attention_weights(x).flatten(2) @ self._positions(x)).squeeze(1)

    def _other_shares(self, x: Tensor, weight: Tensor) -> Tensor:
        return class_maps(x, weight) * self.attention_weights(x)


class GatedPool(_Residual):
    """The mean, and through a gate a channel another pool's difference from it.

    Begins as the average pool whatever the other is: the gates start at zero.

    Args:
        pool: Of as many channels out as in.

    Raises:
        ValueError: If the pool changes the number of channels.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(pool.in_features)
        if pool.out_features != pool.in_features:
            raise ValueError(
                f"a pool of {pool.in_features} to {pool.out_features} channels cannot begin as the "
                "average, which keeps them"
            )
        self.pool = pool
        self.is_linear = pool.is_linear
        self.gate = nn.Parameter(torch.zeros(pool.in_features, device=device, dtype=dtype))

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, queries, H, W), of the other pool alone."""
        return self.pool.attention_weights(x)

    def _other(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(x)
        return pooled

    def _other_shares(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.pool.contributions(x, weight)
