"""2D relative attention by its definition: holds all pairs of positions; the others' oracle."""

from torch import Tensor


def attention_weights(q: Tensor, k: Tensor, bias_h: Tensor | None, bias_w: Tensor | None) -> Tensor:
    """The weights, (B, heads, Q, N) after softmax, for Q queries; arguments as in ``chunked``."""
    logits = q @ k.mT
    if bias_h is not None and bias_w is not None:
        grid = logits.unflatten(-1, (bias_h.shape[-1], bias_w.shape[-1]))
        logits = (grid + bias_h[..., None] + bias_w[..., None, :]).flatten(-2)
    return logits.softmax(dim=-1)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor | None, bias_w: Tensor | None
) -> Tensor:
    """Arguments and result as in ``chunked``."""
    return attention_weights(q, k, bias_h, bias_w).to(v.dtype) @ v
