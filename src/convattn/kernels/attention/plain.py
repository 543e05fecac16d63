"""2D relative attention by its definition: holds all pairs of positions; the others' oracle."""

from torch import Tensor


def attention_weights(q: Tensor, k: Tensor, bias_h: Tensor | None, bias_w: Tensor | None) -> Tensor:
    """Softmax of ``q . k + bias_h[row of the key] + bias_w[column of the key]``.

    Args:
        q: Scaled queries, (B, heads, Q, d).
        k: Keys, (B, heads, N, d).
        bias_h: What each query adds to the keys of each row, (B, heads, Q, H); None for none.
        bias_w: The same for each column, (B, heads, Q, W), with H * W = N.

    Returns:
        (B, heads, Q, N).
    """
    logits = q @ k.mT
    if bias_h is not None and bias_w is not None:
        grid = logits.unflatten(-1, (bias_h.shape[-1], bias_w.shape[-1]))
        logits = (grid + bias_h[..., None] + bias_w[..., None, :]).flatten(-2)
    return logits.softmax(dim=-1)


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor | None, bias_w: Tensor | None
) -> Tensor:
    """The values' mean by ``attention_weights``, (B, heads, Q, d_v)."""
    return attention_weights(q, k, bias_h, bias_w).to(v.dtype) @ v
