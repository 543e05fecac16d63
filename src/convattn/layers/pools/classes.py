"""A query a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convattn.functional import multiply_tokens
from convattn.layers.pools.base import (
    Pool,
    class_maps,
    softmax_over_positions,
)


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
        return softmax_over_positions(logits, x).unflatten(-1, x.shape[2:])

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
        weight, bias = self.weight.to(pooled.dtype), self.bias.to(pooled.dtype)
        return multiply_tokens(pooled, weight, training=self.training) + bias

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
