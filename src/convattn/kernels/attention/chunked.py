"""2D relative attention on the CPU: exact, some queries at a time, in memory that fits the cache.

A map is what one head of one image sees. What its queries see in every row and column is made for
some maps at a time, and the logits for a block of their queries; both are used and forgotten, and
the backward pass makes them anew, as FlashAttention does (Dao et al. 2022,
https://arxiv.org/abs/2205.14135). So the memory that grows with the batch is that of queries, keys,
values and output. Every step is a matrix product or a pass over a block: it needs no compiler and
no code of ours below PyTorch. Queries, keys and values lie channels first, (maps, d, N), as a
convolution leaves them: products whose left side is the thin one are up to four times faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convattn.kernels.attention.biases import key_offsets

_NUMBERS_A_THREAD = 2**19  # logits that a thread works on at once: 2 MB of float32
_WIDENED_BELOW = 512  # see ``_Logits``
_SAFE_GAP = {torch.float32: 60.0, torch.float64: 600.0}  # see ``_shift``


def chunked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    feat_size: tuple[int, int],
) -> Tensor:
    """2D relative attention.

    Differentiable once in all arguments. float16 and bfloat16 are computed in float32.

    Args:
        q: Scaled queries, (B, heads, N, d).
        k: Keys, as ``q``.
        v: Values, (B, heads, N, d_v).
        rel_h: Vertical table, (2H - 1, d); row ``y_key - y_query + H - 1``. None for no positions.
        rel_w: Horizontal table, (2W - 1, d).
        feat_size: H and W, with H * W = N.

    Returns:
        (B, heads, N, d_v).
    """
    if rel_h is None or rel_w is None:
        rel_h = rel_w = q.new_empty(0, q.shape[-1])
    return _attention(q, k, v, rel_h, rel_w, *feat_size)[0]


class _Axis:
    """Relative positions along the rows ("y") or the columns ("x") of the map.

    Args:
        letter: Which.
        table: (2 * size - 1, d).
        feat_size: Of the map.
    """

    def __init__(self, letter: str, table: Tensor, feat_size: tuple[int, int]) -> None:
        self.letter = letter
        self.table = table
        self.feat_size = feat_size
        self.size = (len(table) + 1) // 2
        self._offsets = key_offsets(self.size, table.device)
        self._spread = table[self._offsets]  # (size of the query's side, of the key's, d)
        self._spread_grad = torch.zeros_like(self._spread)

    def seen(self, q: Tensor) -> Tensor:
        """What queries (maps, d, N) see at every place of the axis, (maps, N, size)."""
        grid = q.unflatten(-1, self.feat_size)
        return torch.einsum(f"mdyx,{self.letter}sd->myxs", grid, self._spread).flatten(1, 2)

    def back(self, grad: Tensor, q: Tensor) -> Tensor:
        """The queries' gradient, (maps, d, N), from that of ``seen``; gathers the table's."""
        grid, grad = q.unflatten(-1, self.feat_size), grad.unflatten(1, self.feat_size)
        self._spread_grad += torch.einsum(f"mdyx,myxs->{self.letter}sd", grid, grad)
        return torch.einsum(f"myxs,{self.letter}sd->mdyx", grad, self._spread).flatten(2)

    def table_grad(self) -> Tensor:
        """Of all queries so far, as the table."""
        grad = torch.zeros_like(self.table)
        return grad.index_add_(0, self._offsets.flatten(), self._spread_grad.flatten(0, 1))

    def code(self) -> Tensor:
        """The one-hot place of every position, (size, N) of bool."""
        height, width = self.feat_size
        position = torch.arange(height * width)
        own = position // width if self.letter == "y" else position % width
        return own == torch.arange(self.size)[:, None]


def _axes(rel_h: Tensor, rel_w: Tensor, height: int, width: int, dtype: torch.dtype) -> list[_Axis]:
    """Of rows and columns; none without tables."""
    if not len(rel_h):
        return []
    tables = {"y": rel_h.to(dtype), "x": rel_w.to(dtype)}
    return [_Axis(letter, table, (height, width)) for letter, table in tables.items()]


@dataclass(frozen=True)
class _Logits:
    """Computes blocks of ``q . k + what q sees in the key's row and column - shift``.

    On small maps what a query sees are further channels of it, and the one-hot code of its row
    and column picks two of them for a key: matrix products are cheaper than loops over short rows.
    On larger ones it is added, in one pass over the block.
    """

    q: Tensor
    """(maps, D, N)."""
    k: Tensor
    """(maps, D, N)."""
    added: tuple[Tensor, Tensor] | None
    """(maps, N, H) and (maps, N, W)."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor, shift: Tensor, axes: list[_Axis]) -> _Logits:
        seen = [axis.seen(q) for axis in axes]
        if _adds(axes):
            seen[0] -= shift[..., None]
            return cls(q, k, (seen[0], seen[1].contiguous()))
        one = torch.ones(1, k.shape[-1], dtype=torch.bool)
        code = torch.cat([*(axis.code() for axis in axes), one]).to(k.dtype)
        return cls(
            torch.cat([q, *(of_axis.mT for of_axis in seen), -shift[:, None]], dim=1),
            torch.cat([k, code.expand(len(k), -1, -1)], dim=1),
            None,
        )

    def into(self, block: Tensor, maps: slice, rows: slice) -> None:
        """Write those of some queries into ``block``, (some maps, some queries, N)."""
        q, k = self.q[maps, :, rows].mT, self.k[maps]
        if self.added is None:
            torch.bmm(q, k, out=block)
            return
        bias_h, bias_w = (bias[maps, rows] for bias in self.added)
        grid = block.unflatten(-1, (bias_h.shape[-1], bias_w.shape[-1]))
        torch.add(bias_h[..., None], bias_w[..., None, :], out=grid)
        block.baddbmm_(q, k)


class _QueryGradient:
    """Gathers the queries' gradient from those of the logits' blocks, for some maps."""

    def __init__(self, q: Tensor, logits: _Logits, axes: list[_Axis]) -> None:
        self.q = q
        self.logits = logits
        self.axes = axes
        self._grad = torch.empty_like(logits.q)
        self._seen = [q.new_empty(len(q), q.shape[-1], axis.size) for axis in axes]

    def add(self, slopes: Tensor, maps: slice, rows: slice) -> None:
        """``slopes``, (some maps, some queries, N): the gradient of ``into``'s block."""
        self._grad[maps, :, rows] = torch.bmm(self.logits.k[maps], slopes.mT)
        if self.logits.added is not None:
            grid = slopes.unflatten(-1, [axis.size for axis in self.axes])
            of_rows, of_columns = self._seen
            of_rows[maps, rows] = grid @ grid.new_ones(grid.shape[-1])
            torch.sum(grid, -2, out=of_columns[maps, rows])

    def total(self) -> Tensor:
        """(maps, d, N), after all blocks."""
        grad, seen = self._grad, self._seen
        if self.logits.added is None:
            sizes = [axis.size for axis in self.axes]
            grad, *rest, _ = grad.split([self.q.shape[1], *sizes, 1], dim=1)
            seen = [of_axis.mT for of_axis in rest]
        for axis, of_axis in zip(self.axes, seen, strict=True):
            grad = grad + axis.back(of_axis, self.q)
        return grad


def _adds(axes: list[_Axis]) -> bool:
    sizes = [axis.size for axis in axes]
    return bool(axes) and sum(sizes) * sizes[1] >= _WIDENED_BELOW


def _shift(q: Tensor, k: Tensor, axes: list[_Axis]) -> tuple[Tensor, Tensor]:
    """An upper bound of each query's logits, where exponentials of what is below it are exact.

    It spares a pass over the logits in search of their maximum. That lies between the logit of
    the query's own position and the product of lengths; where the two are so far apart that
    exponentials could underflow, the shift is 0 and the maximum must be found.

    Returns:
        (maps, N), and whether a map needs no maximum, (maps,) of bool.
    """
    reach, own = _length(k, 1).amax(-1, keepdim=True), k
    for axis in axes:
        reach = reach + _length(axis.table, 1).amax()
        own = own + axis.table[axis.size - 1][:, None]
    bound = _length(q, 1) * reach
    safe = (bound - (q * own).sum(1)).amax(-1) < _SAFE_GAP[q.dtype]
    return bound.where(safe[:, None], 0), safe


def _length(vectors: Tensor, dim: int) -> Tensor:
    return vectors.square().sum(dim).sqrt()  # ``norm`` is twenty times slower


class _Work:
    """In which parts a call is done: groups of maps, and blocks of some of their queries."""

    def __init__(self, q: Tensor, axes: list[_Axis]) -> None:
        self._maps, _, positions = q.shape
        numbers = _NUMBERS_A_THREAD * torch.get_num_threads()
        self._some = max(1, min(self._maps, numbers // positions**2))
        self._queries = max(1, min(positions, numbers // positions))
        seen = positions * sum(axis.size for axis in axes)
        # A whole number of blocks, as many as what their queries see allows.
        self._group = max(1, numbers // max(1, seen * self._some)) * self._some
        self._block_shape = (self._some, self._queries, positions)

    def groups(self) -> Iterator[slice]:
        """For which what queries see is made at once."""
        return _slices(self._maps, self._group)

    def blocks(self, group: slice) -> Iterator[tuple[slice, slice, slice]]:
        """For which logits are made at once: maps of the call, the same of the group, queries."""
        for within in _slices(group.stop - group.start, self._some):
            some = slice(group.start + within.start, group.start + within.stop)
            for rows in _slices(self._block_shape[2], self._queries):
                yield some, within, rows

    def memory(self, like: Tensor) -> Tensor:
        """For the logits of a block."""
        return like.new_empty(math.prod(self._block_shape))

    def view(self, memory: Tensor, some: slice, rows: slice) -> Tensor:
        """The part of the memory that a block needs."""
        shape = (some.stop - some.start, rows.stop - rows.start, self._block_shape[2])
        return memory[: math.prod(shape)].view(shape)


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _channels_first(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, heads, N, d) -> (B * heads, d, N)."""
    return tensor.mT.flatten(0, 1).to(dtype).contiguous()


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def forward(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The output; the maximum of each query's logits, where it was sought; the sum of exponentials.

    Tables of 0 rows stand for none. The log-sum-exp would do for a gradient, but it rounds: large
    logits would lose the digits that a softmax keeps.
    """
    dtype = _computed_in(q.dtype)
    flat_q, flat_k, flat_v = (_channels_first(t, dtype) for t in (q, k, v))
    maps, _, size = flat_q.shape
    axes = _axes(rel_h, rel_w, height, width, dtype)
    shift, safe = _shift(flat_q, flat_k, axes)
    top = torch.zeros_like(shift)
    # A row of ones among the values gives the softmax's denominator.
    values = torch.cat([flat_v, flat_v.new_ones(maps, 1, size)], dim=1)
    sums = torch.empty_like(values)
    work = _Work(flat_q, axes)
    memory = work.memory(flat_q)
    for group in work.groups():
        logits = _Logits.of(flat_q[group], flat_k[group], shift[group], axes)
        for some, within, rows in work.blocks(group):
            block = work.view(memory, some, rows)
            logits.into(block, within, rows)
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


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    height: int,
    width: int,
    out: Tensor,
    top: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five tensors given to ``forward``, from that of the output."""
    dtype = _computed_in(q.dtype)
    grad_out, flat_q, flat_k, flat_v, flat_out = (
        _channels_first(t, dtype) for t in (grad, q, k, v, out)
    )
    maps, _, size = flat_q.shape
    axes = _axes(rel_h, rel_w, height, width, dtype)
    shift, safe = _shift(flat_q, flat_k, axes)
    flat_top = top.flatten(0, 1)
    # dS = P * (dO V^T - delta); a row of ones among the values lets one product do both. What
    # would divide the exponentials in P divides the few numbers beside them instead.
    grad_out = grad_out / total.flatten(0, 1)[:, None]
    delta = (grad_out * flat_out).sum(1, keepdim=True)
    left = torch.cat([grad_out, -delta], dim=1)
    right = torch.cat([flat_v, flat_v.new_ones(maps, 1, size)], dim=1)
    grad_q = torch.empty_like(flat_q)
    grad_k, grad_v = torch.zeros_like(flat_k), torch.zeros_like(flat_v)
    work = _Work(flat_q, axes)
    memory, further = work.memory(flat_q), work.memory(flat_q)
    for group in work.groups():
        logits = _Logits.of(flat_q[group], flat_k[group], shift[group], axes)
        of_queries = _QueryGradient(flat_q[group], logits, axes)
        for some, within, rows in work.blocks(group):
            weights, slopes = (work.view(m, some, rows) for m in (memory, further))
            logits.into(weights, within, rows)
            if not safe[some].all():
                weights.sub_(flat_top[some, rows, None])
            weights.exp_()
            grad_v[some].baddbmm_(grad_out[some, :, rows], weights)
            torch.bmm(left[some, :, rows].mT, right[some], out=slopes)
            slopes.mul_(weights)
            of_queries.add(slopes, within, rows)
            grad_k[some].baddbmm_(flat_q[some, :, rows], slopes)
        grad_q[group] = of_queries.total()
    grads = (t.unflatten(0, q.shape[:2]).mT.to(q.dtype) for t in (grad_q, grad_k, grad_v))
    of_tables = [axis.table_grad().to(rel_h.dtype) for axis in axes]
    return (*grads, *(of_tables or [torch.empty_like(rel_h), torch.empty_like(rel_w)]))


_attention = torch.library.custom_op(
    "convattn::chunked_attention", forward, mutates_args=(), device_types="cpu"
)
_attention_backward = torch.library.custom_op(
    "convattn::chunked_attention_backward", backward, mutates_args=(), device_types="cpu"
)


@_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, height: int, width: int
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
    rel_h: Tensor,
    rel_w: Tensor,
    height: int,
    width: int,
    out: Tensor,
    top: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (t.new_empty(t.mT.shape).mT for t in (q, k, v))
    return grad_q, grad_k, grad_v, rel_h.new_empty(rel_h.shape), rel_w.new_empty(rel_w.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.height, ctx.width = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # read once: checkpointing recomputes them
    grads = _attention_backward(grad, *saved[:5], ctx.height, ctx.width, *saved[5:])
    return (*grads, None, None)


_attention.register_autograd(_differentiate, setup_context=_keep)


def _flops(
    q: tuple[int, ...], v: tuple[int, ...], rel_h: tuple[int, ...], rel_w: tuple[int, ...]
) -> tuple[int, int, int]:
    """Of the queries' products with keys, of the weights' with values, and of positions."""
    batch, heads, size, dim = q
    queries = 2 * batch * heads * size
    seen = (rel_h[0] + rel_w[0] + 2) // 2 if rel_h[0] else 0  # H + W
    return queries * size * dim, queries * size * v[-1], queries * seen * dim


@register_flop_formula(torch.ops.convattn.chunked_attention)
def _forward_flops(q: Any, k: Any, v: Any, rel_h: Any, rel_w: Any, *_: Any, **__: Any) -> int:
    return sum(_flops(q, v, rel_h, rel_w))


@register_flop_formula(torch.ops.convattn.chunked_attention_backward)
def _backward_flops(
    grad: Any, q: Any, k: Any, v: Any, rel_h: Any, rel_w: Any, *_: Any, **__: Any
) -> int:
    keys, values, seen = _flops(q, v, rel_h, rel_w)
    return 3 * keys + 2 * values + 3 * seen
