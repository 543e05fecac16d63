"""2D relative attention through PyTorch's fused attention, on any device that has it.

The relative term depends on a key through its row and its column alone. So the queries are
lengthened by what they see in every row and column, the keys by the one-hot code of their own row
and column, and an ordinary fused kernel computes the exact result in O(N * (d + H + W)) memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.kernels.tracing import as_number


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor | None, bias_w: Tensor | None
) -> Tensor:
    """Arguments and result as in ``plain``."""
    v_dim = as_number(v.shape[-1])
    # A number, not the larger of two widths: in an exported program that of q depends on the image,
    # and OpenVINO knows no maximum of sizes.
    lacking = max(0, v_dim - as_number(q.shape[-1]))
    if bias_h is not None and bias_w is not None:
        height, width = bias_h.shape[-1], bias_w.shape[-1]
        rows, columns = _one_hot(height, k), _one_hot(width, k)
        code = torch.cat(
            [
                rows[:, None].expand(height, width, height),
                columns[None].expand(height, width, width),
            ],
            dim=-1,
        ).flatten(0, 1)  # (N, H + W)
        q = torch.cat([q, bias_h.to(q.dtype), bias_w.to(q.dtype)], dim=-1)
        # Not expanded to a shape, which a tracer would take for this batch's for ever; what is no
        # number stays none.
        k = torch.cat([k, k[..., :1] * 0 + code], dim=-1)
    # Every fused kernel takes q, k and v of one width, and CUDA's want multiples of 8; without
    # the zeros PyTorch would silently fall back to the one that holds the whole matrix.
    full = (q.shape[-1] + lacking + 7) // 8 * 8
    q, k, v = (F.pad(t, (0, full - t.shape[-1])) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :v_dim]
    # PyTorch's kernel for small maps on the CPU makes zeros of a query that is no number.
    return out + (q - q).sum(-1, keepdim=True) if q.device.type == "cpu" else out


def _one_hot(size: int, like: Tensor) -> Tensor:
    """(size, size); not ``torch.eye``, of which LiteRT makes an operator that it lacks."""
    positions = torch.arange(size, device=like.device)
    return (positions[:, None] == positions).to(like.dtype)
