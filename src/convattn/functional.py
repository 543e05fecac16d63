"""The two papers' attention as pure tensor functions, without modules or parameters."""

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.kernels.attention import Backend, attention
from convattn.kernels.attention.biases import key_offsets, relative_biases
from convattn.kernels.attention.plain import attention_weights
from convattn.kernels.tracing import as_number


def _check_relative(
    q: Tensor, k: Tensor, rel_h: Tensor | None, rel_w: Tensor | None, feat_size: tuple[int, int]
) -> None:
    height, width = (as_number(size) for size in feat_size)
    if any(as_number(t.shape[-2]) != height * width for t in (q, k)):
        raise ValueError(
            f"feat_size={height}x{width} needs {height * width} positions, but q has "
            f"{q.shape[-2]} and k has {k.shape[-2]}; flatten the map row by row"
        )
    if (rel_h is None) != (rel_w is None):
        raise ValueError("rel_h and rel_w go together: give both tables or neither")
    for name, table, size in (("rel_h", rel_h, height), ("rel_w", rel_w, width)):
        if table is not None and as_number(table.shape[0]) != 2 * size - 1:
            raise ValueError(
                f"{name} has {table.shape[0]} rows, but feat_size={height}x{width} needs "
                f"{2 * size - 1}; resample it with convattn.layers.resample_table"
            )


def relative_attention_weights_2d(
    q: Tensor,
    k: Tensor,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
    *,
    feat_size: tuple[int, int],
    queries: Tensor | None = None,
) -> Tensor:
    """The attention of every position of a map to every other, after softmax.

    Holds the whole (H*W x H*W) matrix, or the rows of it that are asked for: for looking at, and
    as the oracle of :func:`relative_attention_2d`.

    Args:
        q: Queries, (B, heads, H*W, d), row by row, not scaled.
        k: Keys, as ``q``.
        rel_h: Vertical table, (2H - 1, d); row ``y_key - y_query + H - 1``.
        rel_w: Horizontal table, (2W - 1, d); row ``x_key - x_query + W - 1``.
        feat_size: Height and width of the map.
        queries: Positions whose rows are wanted, (Q,) int64, ``y * W + x``; None gives all.

    Returns:
        (B, heads, H*W, H*W), or (B, heads, Q, H*W); the last dimension sums to 1.

    Raises:
        ValueError: If the tables or the number of positions do not fit ``feat_size``.
    """
    _check_relative(q, k, rel_h, rel_w, feat_size)
    q = q * q.shape[-1] ** -0.5
    if queries is None:
        return attention_weights(q, k, *relative_biases(q, rel_h, rel_w, feat_size))
    q = q[..., queries, :]
    bias_h = bias_w = None
    if rel_h is not None and rel_w is not None:
        height, width = feat_size
        table_h = rel_h[key_offsets(height, q.device)[queries // width]]  # (Q, H, d)
        table_w = rel_w[key_offsets(width, q.device)[queries % width]]  # (Q, W, d)
        bias_h = torch.einsum("bnqd,qyd->bnqy", q, table_h)
        bias_w = torch.einsum("bnqd,qxd->bnqx", q, table_w)
    return attention_weights(q, k, bias_h, bias_w)


def relative_attention_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
    *,
    feat_size: tuple[int, int],
    backend: Backend | None = None,
) -> Tensor:
    r"""2D relative self-attention over a flattened feature map.

    Bello et al. 2019, https://arxiv.org/abs/1904.09925, section 3:

    .. math:: l_{ij} = q_i \cdot (k_j + r^W_{x_j - x_i} + r^H_{y_j - y_i}) / \sqrt{d}

    Never holds an (H*W x H*W) tensor, forward or backward, but for the backend "plain".

    Args:
        q: Queries, (B, heads, H*W, d), row by row, not scaled.
        k: Keys, as ``q``.
        v: Values, (B, heads, H*W, d_v).
        rel_h: Vertical table, (2H - 1, d); row ``y_key - y_query + H - 1``. None for no positions.
        rel_w: Horizontal table, (2W - 1, d); row ``x_key - x_query + W - 1``.
        feat_size: Height and width of the map.
        backend: The kernel, see :mod:`convattn.kernels`: "auto", "plain", "chunked", "sdpa",
            "experimental_flex" or "experimental_triton". None takes the environment variable
            ``CONVATTN_ATTENTION_BACKEND``'s, or "auto".

    Returns:
        (B, heads, H*W, d_v).

    Raises:
        ValueError: If the tables or the number of positions do not fit ``feat_size``, or the
            backend does not exist or does not run where the tensors are.

    Examples:
        >>> q = k = v = torch.randn(1, 2, 15, 4)
        >>> out = relative_attention_2d(
        ...     q, k, v, torch.randn(5, 4), torch.randn(9, 4), feat_size=(3, 5)
        ... )
        >>> out.shape
        torch.Size([1, 2, 15, 4])
    """
    _check_relative(q, k, rel_h, rel_w, feat_size)
    q = q * q.shape[-1] ** -0.5
    return attention(q, k, v, rel_h, rel_w, feat_size=feat_size, backend=backend)


def aggregation_weights(
    x: Tensor,
    query: Tensor,
    key_weight: Tensor,
    key_bias: Tensor | None = None,
    *,
    num_heads: int = 1,
    token: Tensor | None = None,
) -> Tensor:
    """How much each learned query takes from each patch, after softmax.

    The queries come from parameters, not from the image. So ``q . (W_k x_j)`` is computed as
    ``(W_k^T q) . x_j``, one vector a head and query instead of a projection of every patch,
    wherever that is cheaper.

    Args:
        x: Patches, (B, N, C).
        query: Projected queries, (K, C), not scaled.
        key_weight: (C, C), as in a linear layer.
        key_bias: (C,). The softmax does not feel it; given, it takes part in the graph.
        num_heads: Heads; C is divided by them.
        token: Further keys that stand before the patches, the same for every image, (T, C).

    Returns:
        (B, heads, K, T + N); the last dimension sums to 1.

    Raises:
        ValueError: If C is not divisible by ``num_heads``.
    """
    num_queries, dim = (as_number(size) for size in query.shape)
    if dim % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide the {dim} channels")
    head_dim = dim // num_heads
    q = query.unflatten(-1, (num_heads, head_dim)).transpose(0, 1) * head_dim**-0.5  # (heads, K, d)
    if num_heads * num_queries <= dim:
        probe = (q @ key_weight.unflatten(0, (num_heads, head_dim))).flatten(0, 1)  # (heads*K, C)
        bias = None
        if key_bias is not None:
            bias = (q @ key_bias.unflatten(0, (num_heads, head_dim, 1))).flatten()
        logits = F.linear(x, probe, bias).transpose(1, 2)  # (B, heads*K, N)
        logits = logits.unflatten(1, (num_heads, num_queries))
        own = None if token is None else F.linear(token, probe, bias).T
        if own is not None:
            own = own.reshape(num_heads, num_queries, -1).expand(x.shape[0], -1, -1, -1)
            logits = torch.cat([own, logits], dim=-1)
        return logits.softmax(dim=-1)
    keys = F.linear(x, key_weight, key_bias)
    own_keys = None if token is None else F.linear(token, key_weight, key_bias)
    return weights_by_keys(query, keys, num_heads=num_heads, token=own_keys)


def weights_by_keys(
    query: Tensor, keys: Tensor, *, num_heads: int = 1, token: Tensor | None = None
) -> Tensor:
    """:func:`aggregation_weights` of keys that are made already.

    Args:
        query: Projected queries, (K, C), not scaled.
        keys: (B, N, C).
        num_heads: Heads; C is divided by them.
        token: Further keys before these, the same for every image, (T, C).

    Returns:
        (B, heads, K, T + N); the last dimension sums to 1.
    """
    query, keys = query.unflatten(-1, (num_heads, -1)), keys.unflatten(-1, (num_heads, -1))
    query = query * query.shape[-1] ** -0.5
    logits = torch.einsum("khd,bnhd->bhkn", query, keys)
    if token is not None:
        own = torch.einsum("khd,thd->hkt", query, token.unflatten(-1, (num_heads, -1)))
        logits = torch.cat([own.expand(keys.shape[0], -1, -1, -1), logits], dim=-1)
    return logits.softmax(dim=-1)


def aggregate(
    x: Tensor,
    query: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    *,
    num_heads: int = 1,
    token: Tensor | None = None,
) -> Tensor:
    """Attention pooling: each learned query takes a weighted mean of the values of all patches.

    Touvron et al. 2021, https://arxiv.org/abs/2112.13692. Exact, in the cheaper order for the
    shape: attention weights sum to 1, so with few queries the patches are pooled first and the
    pooled vectors projected (``sum_j a_j W_v x_j = W_v sum_j a_j x_j``), with many the patches
    are projected first.

    Args:
        x: Patches, (B, N, C).
        query: Projected queries, (K, C), not scaled.
        key_weight: (C, C), as in a linear layer.
        value_weight: (C, C), as in a linear layer.
        key_bias: (C,).
        value_bias: (C,).
        num_heads: Heads; C is divided by them.
        token: Further keys and values before the patches, the same for every image, (T, C).

    Returns:
        (B, K, C), before any output projection.

    Raises:
        ValueError: If C is not divisible by ``num_heads``.

    Examples:
        >>> weight = torch.eye(8)
        >>> aggregate(torch.randn(2, 49, 8), torch.zeros(1, 8), weight, weight).shape
        torch.Size([2, 1, 8])
    """
    weights = aggregation_weights(x, query, key_weight, key_bias, num_heads=num_heads, token=token)
    return weighted_values(weights, x, value_weight, value_bias, num_heads=num_heads, token=token)


def weighted_values(
    weights: Tensor,
    x: Tensor,
    value_weight: Tensor | None = None,
    value_bias: Tensor | None = None,
    *,
    num_heads: int = 1,
    token: Tensor | None = None,
) -> Tensor:
    """Mean of the values of all patches by given attention weights.

    Args:
        weights: (B, heads, K, T + N); the last dimension sums to 1.
        x: Patches, (B, N, C).
        value_weight: (C, C), as in a linear layer. None: the values are the patches themselves.
        value_bias: (C,).
        num_heads: Heads; each computes its share of the C channels.
        token: Further values before the patches, the same for every image, (T, C).

    Returns:
        (B, K, C).
    """
    weights = weights.to(x.dtype)
    num_queries, dim = as_number(weights.shape[2]), as_number(x.shape[-1])
    head_dim = dim // num_heads
    own = None
    if token is not None:
        own, weights = weights.split([token.shape[0], x.shape[1]], dim=-1)
    # By the number of queries alone, never of patches: that may be a symbol of an exported program.
    if value_weight is not None and num_heads * num_queries <= dim:
        pooled = weights.flatten(1, 2) @ x  # (B, heads*K, C)
        if own is not None and token is not None:
            pooled = pooled + own.flatten(1, 2) @ token.to(x.dtype)
        if num_heads == 1:
            bias = None if value_bias is None else value_bias.to(pooled.dtype)
            return F.linear(pooled, value_weight.to(pooled.dtype), bias)
        pooled = pooled.unflatten(1, (num_heads, num_queries))
        weight = value_weight.unflatten(0, (num_heads, head_dim))
        out = torch.einsum("bhkc,hdc->bkhd", pooled, weight.to(pooled.dtype)).flatten(-2)
        return out if value_bias is None else out + value_bias.to(out.dtype)
    values = x if value_weight is None else F.linear(x, value_weight, value_bias)
    out = torch.einsum("bhkn,bnhd->bkhd", weights, values.unflatten(-1, (num_heads, head_dim)))
    if own is not None and token is not None:
        own_values = token if value_weight is None else F.linear(token, value_weight, value_bias)
        own_values = own_values.unflatten(-1, (num_heads, head_dim))
        out = out + torch.einsum("bhkt,thd->bkhd", own, own_values.to(out.dtype))
    return out.flatten(-2)


def multiply_tokens(x: Tensor, weight: Tensor, *, training: bool) -> Tensor:
    """Each token's product with a row of its own.

    Args:
        x: Tokens, (B, K, C).
        weight: (K, C).
        training: Whether gradients will be asked for: the sum of a product has them in two thirds
            of the time. Else it is none, since OpenVINO adds a bias wrongly to that in batches.

    Returns:
        (B, K).
    """
    if training:
        return (x * weight.to(x.dtype)).sum(-1)
    return torch.einsum("bkc,kc->bk", x, weight)
