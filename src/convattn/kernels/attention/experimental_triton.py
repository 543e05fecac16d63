"""2D relative attention on CUDA: FlashAttention with the position biases added in registers.

Forward and backward follow FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691): online
softmax in float32 and base 2, and a backward pass that makes the weights anew from the
log-sum-exp. No tensor of all pairs of positions exists, and no two programs write to one place.

Keys come in tiles of ``ROWS`` x ``COLS`` places of the map, both powers of two: whole rows, or
pieces of rows. A key's bias is then the sum of one of ``ROWS`` and one of ``COLS`` numbers of the
query, broadcast in registers; a gather for every pair of query and key would cost more than the
matrix products. A program walks down the map, then to the next pieces: its column biases stay where
they are and so do their gradients, and a tile's row biases are ``ROWS`` numbers a query. Places
beyond the map have a bias of minus infinity, the only mask that logits need. ``_tile_shape`` picks
the pair that computes the fewest such places. Of tiles with 64 keys, maps 7, 14, 28 and 32 wide
take 8 x 8, 4 x 16, 2 x 32 and 2 x 32; 64 and 128 take 1 x 64, the latter in two pieces; 40 takes
8 x 8 in five pieces without any waste, where whole rows would waste 24 keys in 64.

Tiles are chosen by rule and not by autotuning, which would make the first call of every shape
seconds longer, and might give the same seed other bits from run to run.

Inputs may have any strides and are made contiguous: that copies N * d numbers where the kernels do
N * N * d operations, and rows of a length that the compiler knows can be loaded several numbers at
once, odd head sizes too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from convattn.modes import interprets_triton, multiplies_in_tf32

# Channels of a head. Exact float32 products run without matrix units, all in registers.
_MOST_CHANNELS = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}
_LOG2E = tl.constexpr(math.log2(math.e))


def triton_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor | None, bias_w: Tensor | None
) -> Tensor:
    """Attention with a bias for each row and each column of the keys' map.

    Differentiable once in all arguments. Matrix products take numbers of the inputs' type and add
    in float32; those of float32 are exact unless PyTorch's own may use TF32.

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


def refusal(q: Tensor, v: Tensor) -> str | None:
    """Why the kernels cannot take these queries and values; None if they can."""
    if q.device.type != "cuda" and not interprets_triton():
        return f"the Triton kernels need a CUDA device, not {q.device.type}"
    if q.dtype not in _MOST_CHANNELS:
        return f"the Triton kernels take float16, bfloat16 and float32, not {q.dtype}"
    most = _MOST_CHANNELS[q.dtype]
    if max(q.shape[-1], v.shape[-1]) > most:
        return (
            f"the Triton kernels take heads of at most {most} channels in {q.dtype}, not "
            f"{q.shape[-1]} and {v.shape[-1]}"
        )
    return None


@triton.jit
def _load(
    matrix: tl.tensor, rows: tl.tensor, mask: tl.tensor, DIM: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """Rows of an (N, DIM) matrix; zeros where masked and beyond DIM."""
    columns = tl.arange(0, BLOCK)
    places = matrix + rows[:, None] * DIM + columns[None, :]
    return tl.load(places, mask=mask[:, None] & (columns < DIM)[None, :], other=0.0)


@triton.jit
def _store(
    matrix: tl.tensor,
    rows: tl.tensor,
    mask: tl.tensor,
    values: tl.tensor,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    places = matrix + rows[:, None] * DIM + columns[None, :]
    values = values.to(matrix.dtype.element_ty)
    tl.store(places, values, mask=mask[:, None] & (columns < DIM)[None, :])


@triton.jit
def _biases(
    matrix: tl.tensor,
    queries: tl.tensor,
    first: tl.tensor,
    size: tl.tensor,
    COUNT: tl.constexpr,
    BIASED: tl.constexpr,
) -> tl.tensor:
    """(queries, COUNT) biases in base 2, from column ``first`` of an (N, size) matrix."""
    columns = first + tl.arange(0, COUNT)
    inside = (columns < size)[None, :]
    if BIASED:
        places = matrix + queries[:, None] * size + columns[None, :]
        return tl.load(places, mask=inside, other=float("-inf")).to(tl.float32) * _LOG2E
    return tl.where(inside, 0.0, float("-inf")).broadcast_to(queries.shape[0], COUNT)


@triton.jit
def _keys(
    y: tl.tensor,
    x: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Positions of a tile's keys, and which of them are on the map."""
    step = tl.arange(0, ROWS * COLS)
    column = x + step % COLS
    position = (y + step // COLS) * width + column
    return position, (column < width) & (position < size)


@triton.jit
def _logits(
    q_tile: tl.tensor,
    k_tile: tl.tensor,
    h_bias: tl.tensor,
    w_bias: tl.tensor,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """(queries, keys) in base 2."""
    products = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
    bias = h_bias[:, :, None] + w_bias[:, None, :]
    return products * _LOG2E + tl.reshape(bias, products.shape)


@triton.jit
def _forward(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    bias_h: tl.tensor,
    bias_w: tl.tensor,
    out: tl.tensor,
    logsumexp: tl.tensor,
    size: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    D: tl.constexpr,
    V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BIASED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """A program takes a block of queries of one image and head."""
    blocks = tl.cdiv(size, QUERIES)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    start = pair * size
    rows = (tl.program_id(0) % blocks) * QUERIES + tl.arange(0, QUERIES)
    inside = rows < size
    # Queries beyond the map repeat the last one: its biases are there to be read.
    queries = tl.minimum(rows, size - 1)
    q_tile = _load(q + start * D, queries, inside, D, BLOCK_D)
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, BLOCK_V], tl.float32)
    for x in range(0, width, COLS):
        w_bias = _biases(bias_w + start * width, queries, x, width, COLS, BIASED)
        for y in range(0, height, ROWS):
            h_bias = _biases(bias_h + start * height, queries, y, height, ROWS, BIASED)
            keys, valid = _keys(y, x, size, width, ROWS, COLS)
            k_tile = _load(k + start * D, keys, valid, D, BLOCK_D)
            v_tile = _load(v + start * V, keys, valid, V, BLOCK_V)
            logits = _logits(q_tile, k_tile, h_bias, w_bias, PRECISION)
            higher = tl.maximum(top, tl.max(logits, 1))
            fade = tl.exp2(top - higher)
            weights = tl.exp2(logits - higher[:, None])
            total = total * fade + tl.sum(weights, 1)
            sums = tl.dot(
                weights.to(v_tile.dtype), v_tile, sums * fade[:, None], input_precision=PRECISION
            )
            top = higher
    _store(out + start * V, rows, inside, sums / total[:, None], V, BLOCK_V)
    tl.store(logsumexp + start + rows, top + tl.log2(total), mask=inside)


@triton.jit
def _backward_queries(
    grad: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    bias_h: tl.tensor,
    bias_w: tl.tensor,
    out: tl.tensor,
    logsumexp: tl.tensor,
    delta: tl.tensor,
    grad_q: tl.tensor,
    grad_h: tl.tensor,
    grad_w: tl.tensor,
    size: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    D: tl.constexpr,
    V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BIASED: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Gradients that belong to queries, and ``delta`` for ``_backward_keys``."""
    blocks = tl.cdiv(size, QUERIES)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    start = pair * size
    rows = (tl.program_id(0) % blocks) * QUERIES + tl.arange(0, QUERIES)
    inside = rows < size
    queries = tl.minimum(rows, size - 1)
    q_tile = _load(q + start * D, queries, inside, D, BLOCK_D)
    grad_tile = _load(grad + start * V, queries, inside, V, BLOCK_V)
    out_tile = _load(out + start * V, queries, inside, V, BLOCK_V)
    shift = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
    tl.store(delta + start + rows, shift, mask=inside)
    scale = tl.load(logsumexp + start + queries)
    q_sums = tl.zeros([QUERIES, BLOCK_D], tl.float32)
    for x in range(0, width, COLS):
        w_bias = _biases(bias_w + start * width, queries, x, width, COLS, BIASED) - scale[:, None]
        w_sums = tl.zeros([QUERIES, ROWS * COLS], tl.float32)
        for y in range(0, height, ROWS):
            h_bias = _biases(bias_h + start * height, queries, y, height, ROWS, BIASED)
            keys, valid = _keys(y, x, size, width, ROWS, COLS)
            k_tile = _load(k + start * D, keys, valid, D, BLOCK_D)
            v_tile = _load(v + start * V, keys, valid, V, BLOCK_V)
            weights = tl.exp2(_logits(q_tile, k_tile, h_bias, w_bias, PRECISION))
            slopes = tl.dot(grad_tile, tl.trans(v_tile), input_precision=PRECISION)
            slopes = weights * (slopes - shift[:, None])
            q_sums = tl.dot(slopes.to(k_tile.dtype), k_tile, q_sums, input_precision=PRECISION)
            if BIASED:
                w_sums += slopes
                h_sums = tl.sum(tl.reshape(slopes, [QUERIES, ROWS, COLS]), 2)
                h_rows = y + tl.arange(0, ROWS)
                h_places = grad_h + start * height + rows[:, None] * height + h_rows[None, :]
                h_mask = inside[:, None] & (h_rows < height)[None, :]
                if WHOLE_ROWS:
                    tl.store(h_places, h_sums.to(grad_h.dtype.element_ty), mask=h_mask)
                else:  # only this program adds here, so that the order of its sums never changes
                    tl.atomic_add(h_places, h_sums, mask=h_mask, sem="relaxed")
        if BIASED:
            w_sums_all = tl.sum(tl.reshape(w_sums, [QUERIES, ROWS, COLS]), 1)
            w_columns = x + tl.arange(0, COLS)
            w_places = grad_w + start * width + rows[:, None] * width + w_columns[None, :]
            w_mask = inside[:, None] & (w_columns < width)[None, :]
            tl.store(w_places, w_sums_all.to(grad_w.dtype.element_ty), mask=w_mask)
    _store(grad_q + start * D, rows, inside, q_sums, D, BLOCK_D)


@triton.jit
def _backward_keys(
    grad: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    bias_h: tl.tensor,
    bias_w: tl.tensor,
    logsumexp: tl.tensor,
    delta: tl.tensor,
    grad_k: tl.tensor,
    grad_v: tl.tensor,
    size: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    D: tl.constexpr,
    V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BIASED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Gradients that belong to a tile of keys.

    Logits are (keys, queries) here: weights leave one product as the left side of the next.
    """
    pieces = tl.cdiv(width, COLS)
    tiles = pieces * tl.cdiv(height, ROWS)
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    start = pair * size
    tile = tl.program_id(0) % tiles
    y, x = tile // pieces * ROWS, tile % pieces * COLS
    keys, valid = _keys(y, x, size, width, ROWS, COLS)
    k_tile = _load(k + start * D, keys, valid, D, BLOCK_D)
    v_tile = _load(v + start * V, keys, valid, V, BLOCK_V)
    k_sums = tl.zeros([ROWS * COLS, BLOCK_D], tl.float32)
    v_sums = tl.zeros([ROWS * COLS, BLOCK_V], tl.float32)
    for first in range(0, size, QUERIES):
        rows = first + tl.arange(0, QUERIES)
        inside = rows < size
        queries = tl.minimum(rows, size - 1)
        h_bias = _biases(bias_h + start * height, queries, y, height, ROWS, BIASED)
        w_bias = _biases(bias_w + start * width, queries, x, width, COLS, BIASED)
        q_tile = _load(q + start * D, queries, inside, D, BLOCK_D)
        grad_tile = _load(grad + start * V, queries, inside, V, BLOCK_V)
        shift = tl.load(delta + start + queries)
        # Infinite, so that what lies beyond the map weighs nothing.
        scale = tl.load(logsumexp + start + rows, mask=inside, other=float("inf"))
        bias = tl.trans(h_bias)[:, None, :] + tl.trans(w_bias)[None, :, :] - scale[None, None, :]
        products = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
        weights = tl.exp2(products * _LOG2E + tl.reshape(bias, products.shape))
        v_sums = tl.dot(weights.to(grad_tile.dtype), grad_tile, v_sums, input_precision=PRECISION)
        slopes = tl.dot(v_tile, tl.trans(grad_tile), input_precision=PRECISION)
        slopes = weights * (slopes - shift[None, :])
        k_sums = tl.dot(slopes.to(q_tile.dtype), q_tile, k_sums, input_precision=PRECISION)
    _store(grad_k + start * D, keys, valid, k_sums, D, BLOCK_D)
    _store(grad_v + start * V, keys, valid, v_sums, V, BLOCK_V)


def _tile_shape(height: int, width: int, keys: int) -> tuple[int, int]:
    """Rows and columns of a tile of ``keys`` keys: those that cover the map with fewest tiles."""

    def tiles(cols: int) -> int:
        return math.ceil(width / cols) * math.ceil(height * cols / keys)

    # The widest of the best: with whole rows, row biases have one program's one sum as gradient.
    cols = min((2**i for i in range(keys.bit_length() - 1, 2, -1)), key=tiles)
    return keys // cols, cols


def _channels(dim: int) -> int:
    """Channels that a tile has room for: tl.dot wants powers of two from 16 on."""
    return max(16, triton.next_power_of_2(dim))


@dataclass(frozen=True)
class _Block:
    """How much a program works on at once."""

    queries: int
    keys: int
    warps: int
    stages: int
    """Tiles that are loaded while another is computed, and that one."""

    @classmethod
    def of(cls, q: Tensor, v: Tensor, *, backward: bool) -> _Block:
        """The largest that compiles without spilling registers or taking 99 KB."""
        channels = max(_channels(q.shape[-1]), _channels(v.shape[-1]))
        if q.dtype == torch.float32:
            if channels > 64:
                return cls(queries=16, keys=16, warps=4, stages=2)
            return cls(queries=32, keys=32, warps=8 if channels > 32 else 4, stages=2)
        if channels > 128:
            return cls(queries=32, keys=32, warps=4, stages=1)
        return cls(queries=64, keys=32 if backward and channels > 32 else 64, warps=4, stages=2)


def _options(
    q: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor, *, backward: bool
) -> dict[str, Any]:
    """Sizes, tiles and how to compile: the same words for every kernel."""
    size, dim, v_dim = q.shape[-2], q.shape[-1], v.shape[-1]
    block = _Block.of(q, v, backward=backward)
    biased = bias_w.shape[-1] > 0
    # Without biases a map of one column will do: no place of its tiles but the last lies beyond.
    height, width = (bias_h.shape[-1], bias_w.shape[-1]) if biased else (size, 1)
    rows, cols = _tile_shape(height, width, block.keys) if biased else (block.keys, 1)
    exact = q.dtype != torch.float32 or not multiplies_in_tf32()
    return {
        "size": size,
        "height": height,
        "width": width,
        "D": dim,
        "V": v_dim,
        "BLOCK_D": _channels(dim),
        "BLOCK_V": _channels(v_dim),
        "QUERIES": block.queries,
        "ROWS": rows,
        "COLS": cols,
        "BIASED": biased,
        "PRECISION": "ieee" if exact else "tf32",
        "num_warps": block.warps,
        "num_stages": block.stages,
        "enable_fp_fusion": True,  # unsaid, Triton 3.9 warns that its default will change
    }


@torch.library.custom_op("convattn::triton_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor
) -> tuple[Tensor, Tensor]:
    options = _options(q, v, bias_h, bias_w, backward=False)
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    logsumexp = q.new_empty(q.shape[:-1], dtype=torch.float32)
    inputs = [t.contiguous() for t in (q, k, v, bias_h, bias_w)]
    programs = q.shape[0] * q.shape[1] * triton.cdiv(q.shape[2], options["QUERIES"])
    with torch.cuda.device_of(q):
        _forward[(programs,)](*inputs, out, logsumexp, **options)
    return out, logsumexp


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor) -> tuple[Tensor, Tensor]:
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    return out, q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("convattn::triton_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_h: Tensor,
    bias_w: Tensor,
    out: Tensor,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = _options(q, v, bias_h, bias_w, backward=True)
    pieces = triton.cdiv(options["width"], options["COLS"])
    grad, q, k, v, bias_h, bias_w = (t.contiguous() for t in (grad, q, k, v, bias_h, bias_w))
    grad_q, grad_k, grad_v, grad_w = (torch.empty_like(t) for t in (q, k, v, bias_w))
    # The row sums of several pieces meet in float32.
    grad_h = (
        torch.empty_like(bias_h) if pieces == 1 else torch.zeros_like(bias_h, dtype=torch.float32)
    )
    delta = torch.empty_like(logsumexp)
    pairs = q.shape[0] * q.shape[1]
    blocks = triton.cdiv(q.shape[2], options["QUERIES"])
    tiles = pieces * triton.cdiv(options["height"], options["ROWS"])
    inputs = (grad, q, k, v, bias_h, bias_w)
    with torch.cuda.device_of(q):
        _backward_queries[(pairs * blocks,)](
            *inputs,
            out,
            logsumexp,
            delta,
            grad_q,
            grad_h,
            grad_w,
            WHOLE_ROWS=pieces == 1,
            **options,
        )
        _backward_keys[(pairs * tiles,)](*inputs, logsumexp, delta, grad_k, grad_v, **options)
    return grad_q, grad_k, grad_v, grad_h.to(bias_h.dtype), grad_w


@_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_h: Tensor,
    bias_w: Tensor,
    out: Tensor,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = [t.new_empty(t.shape) for t in (q, k, v, bias_h, bias_w)]
    return grads[0], grads[1], grads[2], grads[3], grads[4]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return _attention_backward(grad, *ctx.saved_tensors)


_attention.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.convattn.triton_attention)
def _flops(q: tuple[int, ...], k: Any, v: tuple[int, ...], *_: Any, **__: Any) -> int:
    batch, heads, size, dim = q
    return 2 * batch * heads * size**2 * (dim + v[-1])


@register_flop_formula(torch.ops.convattn.triton_attention_backward)
def _backward_flops(
    grad: Any, q: tuple[int, ...], k: Any, v: tuple[int, ...], *_: Any, **__: Any
) -> int:
    batch, heads, size, dim = q
    return 2 * batch * heads * size**2 * (3 * dim + 2 * v[-1])
