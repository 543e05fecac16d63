"""2D relative attention on the CPU: exact, some queries at a time, in memory that fits the cache.

The logits of a block of queries are made, used and forgotten; the backward pass makes them anew,
as FlashAttention does (Dao et al. 2022, https://arxiv.org/abs/2205.14135).
Every step is a matrix product or a pass over a block, so that it needs no compiler and no code of
our own below PyTorch. Queries, keys and values lie channels first, (maps, d, N), as a convolution
leaves them: products whose left side is the thin one are up to four times faster that way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_NUMBERS_A_THREAD = 2**19  # logits that a thread works on at once: 2 MB of float32
_WIDENED_BELOW = 512  # see ``_Logits``
_SAFE_GAP = {torch.float32: 60.0, torch.float64: 600.0}  # see ``_shift``


def chunked_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor | None, bias_w: Tensor | None
) -> Tensor:
    """Attention with a bias for each row and each column of the keys' map.

    Differentiable once in all arguments. float16 and bfloat16 are computed in float32.

    Args:
        q: Scaled queries, (B, heads, N, d).
        k: Keys, as ``q``.
        v: Values, (B, heads, N, d_v).
        bias_h: What each query adds to the keys of each row, (B, heads, N, H); None for none.
        bias_w: The same for each column, (B, heads, N, W), with H * W = N.

    Returns:
        (B, heads, N, d_v).
    """
    if bias_h is None or bias_w is None:
        bias_h = bias_w = q.new_empty(*q.shape[:-1], 0)
    return _attention(q, k, v, bias_h, bias_w)[0]


@dataclass(frozen=True)
class _Logits:
    """Computes blocks of ``q . k + bias_h[row] + bias_w[column] - shift``.

    On small maps the biases are further channels of the queries, which the one-hot code of its row
    and column picks out of a key: matrix products are cheaper than loops over short rows. On
    larger ones they are added, one pass over the block.
    """

    q: Tensor
    """(maps, D, N)."""
    k: Tensor
    """(maps, D, N)."""
    added: tuple[Tensor, Tensor] | None
    """(maps, N, H) and (maps, N, W)."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor, bias_h: Tensor, bias_w: Tensor, shift: Tensor) -> _Logits:
        height, width = bias_h.shape[1], bias_w.shape[1]
        if (height + width) * width >= _WIDENED_BELOW:
            return cls(q, k, ((bias_h - shift[:, None]).mT.contiguous(), bias_w.mT.contiguous()))
        code = _code(height, width, k.shape[-1]).to(k.dtype)
        return cls(
            torch.cat([q, bias_h, bias_w, -shift[:, None]], dim=1),
            torch.cat([k, code.expand(k.shape[0], -1, -1)], dim=1),
            None,
        )

    def into(self, block: Tensor, maps: slice, rows: slice) -> None:
        """Write them into ``block``, (some maps, some queries, N)."""
        q, k = self.q[maps, :, rows].mT, self.k[maps]
        if self.added is None:
            torch.bmm(q, k, out=block)
            return
        bias_h, bias_w = (bias[maps, rows] for bias in self.added)
        grid = block.unflatten(-1, (bias_h.shape[-1], bias_w.shape[-1]))
        torch.add(bias_h[..., None], bias_w[..., None, :], out=grid)
        block.baddbmm_(q, k)


def _code(height: int, width: int, size: int) -> Tensor:
    """The one-hot row and column of every position, and a one, (H + W + 1, N) of bool."""
    position = torch.arange(size)
    rows = position // max(width, 1) == torch.arange(height)[:, None]
    columns = position % max(width, 1) == torch.arange(width)[:, None]
    return torch.cat([rows, columns, torch.ones(1, size, dtype=torch.bool)])


def _blocks(maps: int, positions: int) -> tuple[int, int]:
    """How many maps, and how many of their queries, are worked on at once."""
    numbers = _NUMBERS_A_THREAD * torch.get_num_threads()
    if positions * positions > numbers:
        return 1, max(1, numbers // positions)
    return max(1, min(maps, numbers // (positions * positions))), positions


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _shift(q: Tensor, k: Tensor, bias_h: Tensor, bias_w: Tensor) -> tuple[Tensor, Tensor]:
    """An upper bound of each query's logits, where exponentials of what is below it are exact.

    It spares a pass over the logits in search of their maximum. That lies between the mean and
    the bound; where the two are so far apart that exponentials could underflow, the shift is 0
    and the maximum must be found.

    Returns:
        (maps, N), and whether a map needs no maximum, (maps,) of bool.
    """
    q_square, k_square = (t.square().sum(1) for t in (q, k))  # ``norm`` is twenty times slower
    bound = (q_square * k_square.amax(-1, keepdim=True)).sqrt()
    mean = (k.mean(-1, keepdim=True).mT @ q)[:, 0]
    for bias in (bias_h, bias_w):
        if bias.shape[1]:
            bound = bound + bias.amax(1)
            mean = mean + bias.mean(1)
    safe = (bound - mean).amax(-1) < _SAFE_GAP[q.dtype]
    return bound.where(safe[:, None], 0), safe


def _channels_first(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, heads, N, d) -> (B * heads, d, N)."""
    return tensor.mT.flatten(0, 1).to(dtype).contiguous()


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def forward(
    q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The output; the maximum of each query's logits, where it was sought; the sum of exponentials.

    Biases of 0 columns stand for none. The log-sum-exp would do for a gradient, but it rounds:
    large logits would lose the digits that a softmax keeps.
    """
    dtype = _computed_in(q.dtype)
    flat_q, flat_k, flat_v, flat_h, flat_w = (
        _channels_first(t, dtype) for t in (q, k, v, bias_h, bias_w)
    )
    maps, _, size = flat_q.shape
    shift, safe = _shift(flat_q, flat_k, flat_h, flat_w)
    logits = _Logits.of(flat_q, flat_k, flat_h, flat_w, shift)
    top = torch.zeros_like(shift)
    # A row of ones among the values gives the softmax's denominator.
    values = torch.cat([flat_v, flat_v.new_ones(maps, 1, size)], dim=1)
    sums = torch.empty_like(values)
    many, rows_at_once = _blocks(maps, size)
    memory = flat_q.new_empty(many * rows_at_once * size)
    for some in _slices(maps, many):
        for rows in _slices(size, rows_at_once):
            block = _block(memory, some, rows, size)
            logits.into(block, some, rows)
            if not safe[some].all():
                top[some, rows] = block.amax(-1)
                block.sub_(top[some, rows, None])
            block.exp_()
            sums[some, :, rows] = torch.bmm(values[some], block.mT)
    out, total = sums[:, :-1] / sums[:, -1:], sums[:, -1].clone()
    shape = q.shape[:2]
    return (
        out.unflatten(0, shape).mT.to(v.dtype),
        top.unflatten(0, shape),
        total.unflatten(0, shape),
    )


def _block(memory: Tensor, maps: slice, rows: slice, size: int) -> Tensor:
    shape = (maps.stop - maps.start, rows.stop - rows.start, size)
    return memory[: shape[0] * shape[1] * size].view(shape)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_h: Tensor,
    bias_w: Tensor,
    out: Tensor,
    top: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five inputs of ``forward``, given that of the output."""
    dtype = _computed_in(q.dtype)
    grad_out, flat_q, flat_k, flat_v, flat_h, flat_w, flat_out = (
        _channels_first(t, dtype) for t in (grad, q, k, v, bias_h, bias_w, out)
    )
    height, width = bias_h.shape[-1], bias_w.shape[-1]
    maps, dim, size = flat_q.shape
    shift, safe = _shift(flat_q, flat_k, flat_h, flat_w)
    logits = _Logits.of(flat_q, flat_k, flat_h, flat_w, shift)
    flat_top = top.flatten(0, 1)
    # dS = P * (dO V^T - delta); a row of ones among the values lets one product do both. What
    # would divide the exponentials in P divides the few numbers beside them instead.
    grad_out = grad_out / total.flatten(0, 1)[:, None]
    delta = (grad_out * flat_out).sum(1, keepdim=True)
    left = torch.cat([grad_out, -delta], dim=1)
    right = torch.cat([flat_v, flat_v.new_ones(maps, 1, size)], dim=1)

    grad_q = torch.empty_like(logits.q)
    grad_k, grad_v = torch.zeros_like(flat_k), torch.zeros_like(flat_v)
    grad_h, grad_w = (flat_q.new_empty(maps, size, side) for side in (height, width))
    ones = flat_q.new_ones(width)
    many, rows_at_once = _blocks(maps, size)
    memory, further = flat_q.new_empty(2, many * rows_at_once * size)
    for some in _slices(maps, many):
        for rows in _slices(size, rows_at_once):
            weights = _block(memory, some, rows, size)
            logits.into(weights, some, rows)
            if not safe[some].all():
                weights.sub_(flat_top[some, rows, None])
            weights.exp_()
            grad_v[some].baddbmm_(grad_out[some, :, rows], weights)
            slopes = _block(further, some, rows, size)
            torch.bmm(left[some, :, rows].mT, right[some], out=slopes)
            slopes.mul_(weights)
            grad_q[some, :, rows] = torch.bmm(logits.k[some], slopes.mT)
            grad_k[some].baddbmm_(flat_q[some, :, rows], slopes)
            if logits.added is not None:
                grid = slopes.unflatten(-1, (height, width))
                grad_h[some, rows] = grid @ ones
                torch.sum(grid, -2, out=grad_w[some, rows])
    if logits.added is None:
        parts = grad_q.split([dim, height, width, 1], dim=1)
        grad_q = parts[0].clone()
        grad_h, grad_w = (t.mT.clone(memory_format=torch.contiguous_format) for t in parts[1:3])
    heads = q.shape[:2]
    return (
        grad_q.unflatten(0, heads).mT.to(q.dtype),
        grad_k.unflatten(0, heads).mT.to(k.dtype),
        grad_v.unflatten(0, heads).mT.to(v.dtype),
        grad_h.unflatten(0, heads).to(bias_h.dtype),
        grad_w.unflatten(0, heads).to(bias_w.dtype),
    )


_attention = torch.library.custom_op(
    "convattn::chunked_attention", forward, mutates_args=(), device_types="cpu"
)
_attention_backward = torch.library.custom_op(
    "convattn::chunked_attention_backward", backward, mutates_args=(), device_types="cpu"
)


@_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    out = v.new_empty(v.mT.shape).mT
    top, total = (q.new_empty(q.shape[:-1], dtype=_computed_in(q.dtype)) for _ in range(2))
    return out, top, total


@_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_h: Tensor,
    bias_w: Tensor,
    out: Tensor,
    top: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (t.new_empty(t.mT.shape).mT for t in (q, k, v))
    grad_h, grad_w = (t.new_empty(t.shape) for t in (bias_h, bias_w))
    return grad_q, grad_k, grad_v, grad_h, grad_w


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    return _attention_backward(grad, *ctx.saved_tensors)


_attention.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.convattn.chunked_attention)
def _flops(q: tuple[int, ...], k: Any, v: tuple[int, ...], *_: Any, **__: Any) -> int:
    batch, heads, size, dim = q
    return 2 * batch * heads * size**2 * (dim + v[-1])


@register_flop_formula(torch.ops.convattn.chunked_attention_backward)
def _backward_flops(
    grad: Any, q: tuple[int, ...], k: Any, v: tuple[int, ...], *_: Any, **__: Any
) -> int:
    batch, heads, size, dim = q
    return 2 * batch * heads * size**2 * (3 * dim + 2 * v[-1])
