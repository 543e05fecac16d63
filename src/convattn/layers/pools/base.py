"""What every pool keeps, and what pools share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convattn.kernels.tracing import as_number, refuse_scripting


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


def softmax_over_positions(logits: Tensor, like: Tensor) -> Tensor:
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


def check_divides(name: str, number: int, of: str, width: int) -> None:
    """Refuse a number that does not divide a width, and name the nearest that does.

    Args:
        name: Of the number.
        number: What was given.
        of: Name of the width.
        width: To be divided.

    Raises:
        ValueError: If it does not.
    """
    if number < 1 or width % number:
        good = [n for n in range(1, width + 1) if width % n == 0]
        near = min(good, key=lambda n: abs(n - number))
        raise ValueError(
            f"{name}={number} does not divide {of}={width}; nearest that works: {near}"
        )
