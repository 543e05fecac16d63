"""What queries see in every row and every column of the map: numbers that most kernels read."""

import torch
from torch import Tensor


def key_offsets(size: int, device: torch.device) -> Tensor:
    """Row of a (2 * size - 1) table that holds the offset key - query, as (query, key)."""
    steps = torch.arange(size, device=device)
    return steps[None, :] - steps[:, None] + size - 1


def relative_biases(
    q: Tensor, rel_h: Tensor | None, rel_w: Tensor | None, feat_size: tuple[int, int]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """What the scaled queries see in every row and every column of the map.

    Returns:
        (B, heads, H*W, H) and (B, heads, H*W, W); None without tables.
    """
    if rel_h is None or rel_w is None:
        return None, None
    height, width = feat_size
    grid = q.unflatten(-2, (height, width))  # (B, heads, H, W, d)
    table_h = rel_h[key_offsets(height, q.device)]  # (H, H, d)
    table_w = rel_w[key_offsets(width, q.device)]  # (W, W, d)
    bias_h = torch.einsum("bnhwd,hyd->bnhwy", grid, table_h)
    bias_w = torch.einsum("bnhwd,wxd->bnhwx", grid, table_w)
    return bias_h.flatten(2, 3), bias_w.flatten(2, 3)
