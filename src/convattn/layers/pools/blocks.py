"""Pools with an MLP behind them: a latent that asks, and the paper's block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convattn.layers.aggregation import LearnedAggregation2d
from convattn.layers.pools.base import (
    Pool,
    check_divides,
    softmax_over_positions,
)
from convattn.modes import is_unmodified


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
        check_divides("num_heads", num_heads, "in_features", in_features)
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
        weights = softmax_over_positions(logits, values)
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
        weights = softmax_over_positions(asked @ positions.transpose(1, 2), x)
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
