"""Pools: a map in, one vector out, and the weights that say where it came from.

One contract: ``forward`` takes (B, C, H, W) to (B, ``out_features``), for any H and W;
``attention_weights`` gives (B, queries, H, W), whose every map sums to 1. Pools whose output is
linear in what they weigh have ``contributions`` besides: an exact share of each position in any
linear reading of the output.

=========== ==================== =============== ===================================================
name        parameters           linear          what it is
=========== ==================== =============== ===================================================
avg         0                    yes             the mean
max         0                    no              the largest, a channel at a time
gem         1                    no              generalised mean
lse         0                    no              smooth maximum
query       C                    yes             one query, of channels in their own units
residual    2C                   yes             the mean, and one query's difference from it
ep          QC + C^2 / d         yes             efficient probing: Q queries, no keys
simpool     2C^2 + 2C            yes             the mean asks, normed positions answer
abmil       2Ch + 3h + 1         yes             gated attention of multiple-instance learning
class       2KC + K              yes             a query and a weight vector a class: logits
map         10C^2 and more       no              a latent asks, an MLP follows
aggregation 10C^2 and more       no              the paper's: Touvron et al. 2021
=========== ==================== =============== ===================================================

Weights come from features as they are, or normed; values are never normed but in ``simpool``: a
position's length says how much it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convattn.config import pool_layer
from convattn.kernels.tracing import as_number, refuse_scripting
from convattn.layers.aggregation import LearnedAggregation2d
from convattn.modes import is_unmodified
from convattn.text import nearest

_LEAST_VARIANCE = 1e-6


class Pool(nn.Module):
    """What every pool here keeps.

    Args:
        in_features: Channels of the map.
        out_features: Channels of the vector.
    """

    is_linear = False
    """Whether the output is linear in the map once the weights are given."""
    per_class = False
    """Whether each of its maps is of one class."""

    __prepare_scriptable__ = refuse_scripting

    def __init__(self, in_features: int, out_features: int | None = None) -> None:
        super().__init__()
        if in_features < 1:
            raise ValueError(f"in_features={in_features} must be at least 1")
        self.in_features = in_features
        self.out_features = in_features if out_features is None else out_features

    @property
    def num_maps(self) -> int:
        """Maps that all classes share: its queries or heads; 1 where each class has its own."""
        return 1

    def attention_weights(self, x: Tensor) -> Tensor:
        """Where the vector comes from.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, queries, H, W); the positions of a query sum to 1.
        """
        raise NotImplementedError

    def contributions(self, x: Tensor, weight: Tensor) -> Tensor:
        """Exact shares of every position in linear readings of the output.

        Args:
            x: (B, C, H, W).
            weight: (K, out_features), as in a linear layer.

        Returns:
            (B, K, H, W); the sum over positions is ``forward(x) @ weight.T``.

        Raises:
            ValueError: If the pool is not linear.
        """
        raise ValueError(
            f"{type(self).__name__} is not linear in the map: its output has no exact shares; ask "
            "for attention or Grad-CAM"
        )

    def extra_repr(self) -> str:
        """Its widths."""
        return f"{self.in_features}, {self.out_features}"

    def _positions(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, C)."""
        if x.dim() != 4 or as_number(x.shape[1]) != self.in_features:
            raise ValueError(
                f"input of shape {tuple(x.shape)}, expected (B, {self.in_features}, H, W)"
            )
        return x.flatten(2).transpose(1, 2)


def _softmax(logits: Tensor, like: Tensor) -> Tensor:
    """Over the last dimension, in float32 at least."""
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return wide.softmax(-1).to(like.dtype)


def class_maps(x: Tensor, weight: Tensor) -> Tensor:
    """What every position says to linear readings: (B, C, H, W) and (K, C) -> (B, K, H, W)."""
    return torch.einsum("bchw,kc->bkhw", x, weight.to(x.dtype))


def mean_shares(x: Tensor, weight: Tensor) -> Tensor:
    """Shares of every position in linear readings of the mean: CAM over their number.

    Args:
        x: (B, C, H, W).
        weight: (K, C).

    Returns:
        (B, K, H, W).
    """
    return class_maps(x, weight) / (x.shape[2] * x.shape[3])


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
        largest = x.amax((2, 3), keepdim=True)  # or the exponentials would overflow
        powers = (self.r * (x - largest)).exp()
        return largest[..., 0, 0] + powers.mean((2, 3)).log() / self.r

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W): what each position's change changes."""
        return _softmax(self.r * x.flatten(2), x).view_as(x)


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
            return x.to(self.running_var.dtype).var((0, 2, 3), correction=0)

    def _weigh(self, x: Tensor, variance: Tensor) -> Tensor:
        self._positions(x)
        # A row and not a vector: onnxruntime multiplies a transposed map by vectors wrongly.
        query = (self.query * (variance + _LEAST_VARIANCE).rsqrt())[None].to(x.dtype)
        return _softmax(query @ x.flatten(2), x).unflatten(-1, x.shape[2:])

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
        return _softmax(query @ x.flatten(2), x).unflatten(-1, x.shape[2:])

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


class EfficientProbingPool(Pool):
    """Several queries, no keys, one matrix of values: EP.

    Psomas et al. 2026, "Attention, Please!", https://arxiv.org/abs/2506.10178. Query q weighs the
    positions by ``softmax_n(q . x_n / sqrt(C))`` and makes its slice of the output of their
    values; without ``values`` the slices are of the map's own channels.

    Args:
        in_features: Channels of the map.
        num_queries: Queries; divides the channels of the output.
        out_features: Channels of the output; None keeps them.
        values: Whether there is a matrix of values.

    Raises:
        ValueError: If ``num_queries`` does not divide the output, or without values the output is
            of another width than the map.

    Examples:
        >>> pool = create_pool("ep", 64, num_queries=8)
        >>> x = torch.randn(2, 64, 7, 9)
        >>> pool(x).shape, pool.attention_weights(x).shape
        (torch.Size([2, 64]), torch.Size([2, 8, 7, 9]))
    """

    is_linear = True

    def __init__(
        self,
        in_features: int,
        *,
        num_queries: int = 32,
        out_features: int | None = None,
        values: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        _check_divides("num_queries", num_queries, "out_features", self.out_features)
        if not values and self.out_features != in_features:
            raise ValueError(
                f"out_features={out_features} needs a matrix of values; leave it out, or set "
                "values=True"
            )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_queries = num_queries
        self.queries = nn.Parameter(
            torch.empty(num_queries, in_features, **where).normal_(std=0.02)
        )
        self.v = nn.Linear(in_features, self.out_features, bias=False, **where) if values else None

    @property
    def num_maps(self) -> int:
        """Its queries."""
        return self.num_queries

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, queries, H, W)."""
        logits = (self.queries * self.in_features**-0.5).to(x.dtype) @ x.flatten(2)
        return _softmax(logits, x).unflatten(-1, x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_features)."""
        positions = self._positions(x)
        weights = self.attention_weights(x).flatten(2)  # (B, Q, N)
        if self.v is not None and self.num_queries < self.out_features and is_unmodified(self.v):
            # A query's weights sum to 1: pool first, project after, each query its own rows.
            pooled = weights @ positions  # (B, Q, C)
            rows = self.v.weight.unflatten(0, (self.num_queries, -1)).to(pooled.dtype)
            return torch.einsum("bqc,qdc->bqd", pooled, rows).flatten(1)
        values = positions if self.v is None else self.v(positions)
        values = values.unflatten(-1, (self.num_queries, -1))
        return torch.einsum("bqn,bnqd->bqd", weights.to(values.dtype), values).flatten(1)

    def contributions(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) and (K, out_features) -> (B, K, H, W)."""
        positions = self._positions(x)
        values = positions if self.v is None else self.v(positions)
        values = values.unflatten(-1, (self.num_queries, -1))  # (B, N, Q, d)
        weights = self.attention_weights(x).flatten(2)
        per_query = weight.unflatten(-1, (self.num_queries, -1)).to(values.dtype)  # (K, Q, d)
        shares = torch.einsum("bnqd,kqd,bqn->bkn", values, per_query, weights.to(values.dtype))
        return shares.unflatten(-1, x.shape[2:])


class SimPool(Pool):
    """The mean asks, the normed positions answer.

    Psomas et al. 2023, "Keep It SimPool", https://arxiv.org/abs/2309.06891, in the form that its
    authors' code runs by default: no exponent, queries from the plain mean, keys and values from
    the normed positions.

    Args:
        in_features: Channels of the map.
        num_heads: Heads; divide the channels.
        norm_eps: Of the LayerNorm.

    Raises:
        ValueError: If ``num_heads`` does not divide ``in_features``.
    """

    is_linear = True  # in the normed positions, whose shares are those of their own place

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 1,
        norm_eps: float = 1e-6,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features)
        _check_divides("num_heads", num_heads, "in_features", in_features)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(in_features, eps=norm_eps, **where)
        self.q = nn.Linear(in_features, in_features, bias=False, **where)
        self.k = nn.Linear(in_features, in_features, bias=False, **where)

    @property
    def num_maps(self) -> int:
        """Its heads."""
        return self.num_heads

    def _weigh(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, heads, N) and normed positions (B, N, C)."""
        normed = self.norm(self._positions(x))
        query = self.q(x.mean((2, 3))).unflatten(-1, (self.num_heads, -1))  # (B, heads, d)
        query = query * (self.in_features // self.num_heads) ** -0.5
        if is_unmodified(self.k):
            rows = self.k.weight.unflatten(0, (self.num_heads, -1)).to(query.dtype)
            probe = torch.einsum("bhd,hdc->bhc", query, rows)
            logits = probe @ normed.transpose(1, 2).to(probe.dtype)
        else:
            keys = self.k(normed).unflatten(-1, (self.num_heads, -1))
            logits = torch.einsum("bhd,bnhd->bhn", query, keys)
        return _softmax(logits, normed), normed

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, H, W)."""
        return self._weigh(x)[0].unflatten(-1, x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        weights, normed = self._weigh(x)
        values = normed.unflatten(-1, (self.num_heads, -1))
        return torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1)

    def contributions(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) and (K, C) -> (B, K, H, W)."""
        weights, normed = self._weigh(x)
        values = normed.unflatten(-1, (self.num_heads, -1))
        per_head = weight.unflatten(-1, (self.num_heads, -1)).to(values.dtype)
        shares = torch.einsum("bnhd,khd,bhn->bkn", values, per_head, weights)
        return shares.unflatten(-1, x.shape[2:])


class GatedAttentionPool(Pool):
    """Gated attention of multiple-instance learning: ABMIL.

    Ilse et al. 2018, https://arxiv.org/abs/1802.04712: ``a = softmax_n(c(tanh(A x_n) * sigmoid(B
    x_n)))``, and the output is the mean of the positions by these weights.

    Args:
        in_features: Channels of the map.
        hidden: Channels of the gate.
    """

    is_linear = True

    def __init__(
        self,
        in_features: int,
        *,
        hidden: int = 128,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features)
        if hidden < 1:
            raise ValueError(f"hidden={hidden} must be at least 1, for example 128")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.a = nn.Linear(in_features, hidden, **where)
        self.b = nn.Linear(in_features, hidden, **where)
        self.c = nn.Linear(hidden, 1, **where)

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H, W)."""
        positions = self._positions(x)
        logits = self.c(self.a(positions).tanh() * self.b(positions).sigmoid())  # (B, N, 1)
        return _softmax(logits.transpose(1, 2), x).unflatten(-1, x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return (self.attention_weights(x).flatten(2) @ self._positions(x)).squeeze(1)

    def contributions(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) and (K, C) -> (B, K, H, W)."""
        return class_maps(x, weight) * self.attention_weights(x)


class _ClassQueries(Pool):
    """A query a class, each with a map and a mean of its own; starts with equal weights."""

    is_linear = True
    per_class = True

    def __init__(
        self,
        in_features: int,
        *,
        num_classes: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features)
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1")
        self.queries = nn.Parameter(
            torch.zeros(num_classes, in_features, device=device, dtype=dtype)
        )

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes, H, W)."""
        self._positions(x)
        logits = (self.queries * self.in_features**-0.5).to(x.dtype) @ x.flatten(2)
        return _softmax(logits, x).unflatten(-1, x.shape[2:])

    def gather(self, x: Tensor) -> Tensor:
        """What each class looks at: (B, C, H, W) -> (B, num_classes, C)."""
        return self.attention_weights(x).flatten(2) @ self._positions(x)


class ClassQueryPool(_ClassQueries):
    """A query and a weight vector a class: pool and classifier at once, a map a class.

    ``logit_k = b_k + sum_n a_kn w_k . x_n`` with ``a_k = softmax_n(q_k . x_n / sqrt(C))``; queries
    start at zero, so that it begins as average pool and linear layer.

    Args:
        in_features: Channels of the map.
        num_classes: Classes, each an output.
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_classes: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_classes=num_classes, device=device, dtype=dtype)
        self.out_features = num_classes
        self.weight = nn.Parameter(torch.empty_like(self.queries))
        nn.init.normal_(self.weight, std=0.02)
        self.bias = nn.Parameter(torch.zeros(num_classes, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        pooled = self.gather(x)
        logits = torch.einsum("bkc,kc->bk", pooled, self.weight.to(pooled.dtype))
        return logits + self.bias.to(pooled.dtype)

    def contributions(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) and (K, num_classes) -> (B, K, H, W), without the bias."""
        shares = class_maps(x, self.weight) * self.attention_weights(x)
        return torch.einsum("bkhw,jk->bjhw", shares, weight.to(shares.dtype))


class ClassTokenPool(_ClassQueries):
    """The queries of ``class`` alone, for a network that has its classifier: a vector a class.

    Its output is (B, num_classes, C): the classifier's row k reads vector k.

    Args:
        in_features: Channels of the map.
        num_classes: Classes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes, C)."""
        return self.gather(x)

    def contributions(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) and (num_classes, C), a row a class -> (B, num_classes, H, W)."""
        return class_maps(x, weight) * self.attention_weights(x)


class LatentAttentionPool(Pool):
    """A latent query asks all positions, a projection and an MLP follow: MAP.

    Zhai et al. 2022, https://arxiv.org/abs/2106.04560; as timm's ``AttentionPoolLatent`` with one
    latent.

    Args:
        in_features: Channels of the map.
        num_heads: Heads; divide the channels.
        mlp_ratio: Hidden channels of the MLP per channel.
        norm_eps: Of the LayerNorm before the MLP.

    Raises:
        ValueError: If ``num_heads`` does not divide ``in_features``.
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features)
        _check_divides("num_heads", num_heads, "in_features", in_features)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = int(in_features * mlp_ratio)
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, in_features, **where))
        nn.init.trunc_normal_(self.latent, std=in_features**-0.5)
        self.q = nn.Linear(in_features, in_features, **where)
        self.kv = nn.Linear(in_features, 2 * in_features, **where)
        self.proj = nn.Linear(in_features, in_features, **where)
        self.norm = nn.LayerNorm(in_features, eps=norm_eps, **where)
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden, **where),
            nn.GELU(),
            nn.Linear(hidden, in_features, **where),
        )

    @property
    def num_maps(self) -> int:
        """Its heads."""
        return self.num_heads

    @property
    def _query(self) -> Tensor:
        """(heads, d), scaled."""
        query: Tensor = self.q(self.latent)[0, 0].unflatten(-1, (self.num_heads, -1))
        return query * (self.in_features // self.num_heads) ** -0.5

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, heads, N) and what each head sees, (B, heads, d): by keys and values."""
        keys, values = self.kv(self._positions(x)).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        logits = torch.einsum("hd,bnhd->bhn", self._query.to(keys.dtype), keys)
        weights = _softmax(logits, values)
        return weights, torch.einsum("bhn,bnhd->bhd", weights, values)

    def _attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same by matrices that are moved to the other side of the positions, where few ask.

        A head's weights sum to 1: its values are pooled first and projected after; and a bias of
        the keys is the same for all positions.
        """
        if not is_unmodified(self.kv):
            return self._project(x)
        positions = self._positions(x)
        keys, rows = self.kv.weight.to(x.dtype).unflatten(0, (2, self.num_heads, -1)).unbind(0)
        asked = torch.einsum("hd,hdc->hc", self._query.to(x.dtype), keys)
        weights = _softmax(asked @ positions.transpose(1, 2), x)
        pooled = torch.einsum("bhc,hdc->bhd", weights @ positions, rows)
        bias = self.kv.bias.to(x.dtype).unflatten(0, (2, self.num_heads, -1))[1]
        return weights, pooled + bias

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, H, W)."""
        return self._attend(x)[0].unflatten(-1, x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        pooled = self.proj(self._attend(x)[1].flatten(1))
        return pooled + self.mlp(self.norm(pooled))


class LearnedAggregationPool(Pool):
    """The paper's block without its classifier; Touvron et al. 2021.

    Args:
        in_features: Channels of the map.
        options: Of :class:`convattn.LearnedAggregation2d`.
    """

    def __init__(self, in_features: int, **options: Any) -> None:
        super().__init__(in_features)
        self.aggregation = LearnedAggregation2d(in_features, 0, **options)

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, H, W), without what the token keeps for itself."""
        weights = self.aggregation.attention_weights(x)[:, :, 0]
        return weights / weights.sum((2, 3), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return self.aggregation(x)


POOLS: Mapping[str, Callable[..., Pool]] = {
    "avg": AveragePool,
    "max": MaxPool,
    "gem": GeMPool,
    "lse": LogSumExpPool,
    "query": QueryPool,
    "residual": ResidualQueryPool,
    "ep": EfficientProbingPool,
    "simpool": SimPool,
    "abmil": GatedAttentionPool,
    "class": ClassQueryPool,
    "map": LatentAttentionPool,
    "aggregation": LearnedAggregationPool,
}
"""Every pool by its name."""

_AUTHORS_NAMES: Mapping[str, Mapping[str, str]] = {
    "ep": {"cls_token": "queries", "v.weight": "v.weight"},
    "simpool": {
        "wq.weight": "q.weight",
        "wk.weight": "k.weight",
        "norm_patches.weight": "norm.weight",
        "norm_patches.bias": "norm.bias",
    },
    "abmil": {
        f"attention_{part}{'' if part == 'c' else '.0'}.{kind}": f"{part}.{kind}"
        for part in "abc"
        for kind in ("weight", "bias")
    },
    "map": {
        "mlp.fc1.weight": "mlp.0.weight",
        "mlp.fc1.bias": "mlp.0.bias",
        "mlp.fc2.weight": "mlp.2.weight",
        "mlp.fc2.bias": "mlp.2.bias",
    },
}
"""Pool -> its authors' names of tensors -> ours, where they differ."""


def create_pool(name: str, in_features: int, **options: Any) -> Pool:
    """A pool by its name.

    Args:
        name: One of ``POOLS``, or "attention" for the default among them.
        in_features: Channels of the map.
        options: Of the pool, see its class.

    Raises:
        ValueError: If there is no such pool, or it refuses an option.

    Examples:
        >>> create_pool("ep", 64, num_queries=8).out_features
        64
    """
    name = pool_layer(name)
    if name not in POOLS:
        raise ValueError(
            f"unknown pool {name!r}; the nearest is {nearest(name, POOLS)!r} of {', '.join(POOLS)}"
        )
    try:
        return POOLS[name](in_features, **options)
    except TypeError as error:
        raise ValueError(f"pool {name!r} refuses its options: {error}") from error


def pool_from_state_dict(name: str, state_dict: Mapping[str, Tensor], **options: Any) -> Pool:
    """A pool out of the tensors of its authors' module, by their names.

    Args:
        name: "ep", "simpool", "abmil" or "map".
        state_dict: The tensors; sizes are read from them.
        options: What they do not tell: ``num_heads`` of simpool and map.

    Raises:
        ValueError: If there is no importer for that pool, or a tensor is missing or one too many.
    """
    if name not in _AUTHORS_NAMES:
        known = ", ".join(_AUTHORS_NAMES)
        raise ValueError(f"there is no importer for the pool {name!r}; there are {known}")
    names = _AUTHORS_NAMES[name]
    tensors = {names.get(key, key): tensor for key, tensor in state_dict.items()}
    if name == "ep" and "queries" in tensors:
        tensors["queries"] = queries = tensors["queries"].flatten(0, -2)
        options |= {"num_queries": len(queries), "values": "v.weight" in tensors}
        if "v.weight" in tensors:
            options["out_features"] = len(tensors["v.weight"])
    if name == "abmil" and "a.weight" in tensors:
        options["hidden"] = len(tensors["a.weight"])
    if name == "map" and "mlp.0.weight" in tensors:
        hidden, width = tensors["mlp.0.weight"].shape
        options["mlp_ratio"] = hidden / width
    first = {"ep": "queries", "simpool": "q.weight", "abmil": "a.weight", "map": "latent"}[name]
    if first not in tensors:
        theirs = next((key for key, ours in names.items() if ours == first), first)
        raise ValueError(
            f"the tensors are not those of the pool {name!r}: {theirs} is not among "
            f"{', '.join(state_dict) or 'none'}"
        )
    pool = create_pool(name, tensors[first].shape[-1], **options).to(tensors[first].dtype)
    own = pool.state_dict()
    if own.keys() != tensors.keys():
        wrong = ", ".join(sorted(own.keys() ^ tensors.keys()))
        raise ValueError(f"the tensors are not those of the pool {name!r}: see {wrong}")
    pool.load_state_dict(tensors)
    return pool


def looks(pool: Pool) -> bool:
    """Whether a pool itself, not one inside it, weighs positions unequally.

    Args:
        pool: Any.
    """
    inside = any(isinstance(child, Pool | LearnedAggregation2d) for child in pool.children())
    return not inside and type(pool) is not AveragePool


def _check_divides(name: str, number: int, of: str, width: int) -> None:
    if number < 1 or width % number:
        good = [n for n in range(1, width + 1) if width % n == 0]
        near = min(good, key=lambda n: abs(n - number))
        raise ValueError(
            f"{name}={number} does not divide {of}={width}; nearest that works: {near}"
        )
