"""2D relative attention by PyTorch's FlexAttention, which builds a kernel around our biases.

On CUDA ``torch.compile`` makes a kernel for every size, up to its ``recompile_limit``; none holds a
tensor of all pairs of positions. The gradients of the biases are gathered by atomic additions, so
that a sum's order, and its last bits, may differ from run to run. On the CPU nothing is compiled,
all pairs are held and there is no backward pass: that is for tests alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention as _uncompiled

_LEAST_CHANNELS = 16  # of FlexAttention's kernels; other powers of two it pads to by itself


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor | None, bias_w: Tensor | None
) -> Tensor:
    """Attention with a bias for each row and each column of the keys' map.

    Differentiable once in all arguments, on CUDA.

    Args:
        q: Scaled queries, (B, heads, N, d).
        k: Keys, as ``q``.
        v: Values, (B, heads, N, d_v).
        bias_h: What each query adds to the keys of each row, (B, heads, N, H); None for none.
        bias_w: The same for each column, (B, heads, N, W), with H * W = N.

    Returns:
        (B, heads, N, d_v).
    """
    padded = (F.pad(t, (0, max(0, _LEAST_CHANNELS - t.shape[-1]))) for t in (q, k, v))
    score_mod = None if bias_h is None or bias_w is None else _adding(bias_h, bias_w)
    return _kernel(q.device.type)(*padded, score_mod=score_mod, scale=1.0)[..., : v.shape[-1]]


@cache
def _kernel(device_type: str) -> Callable[..., Tensor]:
    if device_type == "cuda":
        return torch.compile(_uncompiled, dynamic=False)
    return _uncompiled


def _adding(bias_h: Tensor, bias_w: Tensor) -> Callable[..., Tensor]:
    width = bias_w.shape[-1]

    def add(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = bias_h[batch, head, query, key // width]
        return score + row + bias_w[batch, head, query, key % width]

    return add
