"""Pools of other papers, as their authors publish them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convattn.layers.pools.base import (
    Pool,
    check_divides,
    class_maps,
    softmax_over_positions,
)
from convattn.modes import is_unmodified


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
        >>> from convattn import create_pool
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
        check_divides("num_queries", num_queries, "out_features", self.out_features)
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
        return softmax_over_positions(logits, x).unflatten(-1, x.shape[2:])

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
        check_divides("num_heads", num_heads, "in_features", in_features)
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
        return softmax_over_positions(logits, normed), normed

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
        return softmax_over_positions(logits.transpose(1, 2), x).unflatten(-1, x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return (self.attention_weights(x).flatten(2) @ self._positions(x)).squeeze(1)

    def contributions(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) and (K, C) -> (B, K, H, W)."""
        return class_maps(x, weight) * self.attention_weights(x)
