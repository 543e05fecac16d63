"""PatchConvNet's block on CUDA, for inference: three kernels, and every map moves once a step.

The block of Touvron et al. 2021, https://arxiv.org/abs/2112.13692, with the affine part of its
LayerNorm and its LayerScale folded into the matrices beside them. All maps lie channels last:

1. ``norm_linear_gelu``: a program takes the mean of its rows, and in a second pass multiplies the
   centred rows and adds up their squares. The deviation is a factor of a whole row, so the sums
   are scaled when they are done, and no normalised map exists.
2. ``depthwise_gelu_sums``: a program walks down some rows of the map and loads each of them once,
   for the three rows of outputs that see it. The squeeze's sums are taken on the way.
3. ``scale_linear_residual``: the gate meets the map in registers, the residual the sums.

Numbers are loaded and multiplied as they come, and added in float32. Products of float32 are exact
unless PyTorch's own may use TF32. Arguments are made contiguous. Tiles are chosen by rule and not
by autotuning, as in ``triton_attention``.

The operators are opaque to compilers, which still keep one graph. ``torch.library.triton_op`` would
show the kernels, but nothing can be fused with them, and interpreted ones cannot be traced.
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

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_INTERPRETED = interprets_triton()
_SQRT_HALF = tl.constexpr(math.sqrt(0.5))


def norm_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``gelu(layer_norm(x) @ weight.T + bias)``; the norm has no affine part, the GELU is exact.

    Mean and deviation are taken in float32, in two passes. Not differentiable.

    Args:
        x: (..., C), in float32, float16 or bfloat16, as are all arguments.
        weight: (K, C).
        bias: (K,).
        eps: What the norm adds to the variance.

    Returns:
        (..., K), contiguous.

    Raises:
        ValueError: If a shape, dtype or device does not fit, or ``refusal`` gives a reason.
    """
    channels, outputs = x.shape[-1], weight.shape[0]
    _check(x, weight=(weight, (outputs, channels)), bias=(bias, (outputs,)))
    return _norm_linear_gelu(x, weight, bias, eps)


def depthwise_gelu_sums(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """GELU of a depthwise 3x3 convolution with padding 1; and its sums over every map.

    The sums are of float32 numbers, before they are rounded to the map's type, and the same to the
    bit in every call. Not differentiable.

    Args:
        x: (B, H, W, C), in float32, float16 or bfloat16, as are all arguments.
        weight: (C, 1, 3, 3), as nn.Conv2d has it.
        bias: (C,).

    Returns:
        (B, H, W, C), contiguous, and (B, C) in float32.

    Raises:
        ValueError: If a shape, dtype or device does not fit, or ``refusal`` gives a reason.
    """
    _check_dimensions(x, "(B, H, W, C)", 4)
    channels = x.shape[-1]
    _check(x, weight=(weight, (channels, 1, 3, 3)), bias=(bias, (channels,)))
    out, sums = _depthwise_gelu_sums(x, weight, bias)
    return out, sums.sum(1)


def scale_linear_residual(
    x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, residual: Tensor
) -> Tensor:
    """``residual + (x * gate[:, None]) @ weight.T + bias``.

    Not differentiable.

    Args:
        x: (B, N, C), in float32, float16 or bfloat16, as are all arguments.
        gate: Factors of every image's channels, (B, C).
        weight: (K, C).
        bias: (K,).
        residual: (B, N, K).

    Returns:
        (B, N, K), contiguous.

    Raises:
        ValueError: If a shape, dtype or device does not fit, or ``refusal`` gives a reason.
    """
    _check_dimensions(x, "(B, N, C)", 3)
    (batch, size, channels), outputs = x.shape, weight.shape[0]
    _check(
        x,
        gate=(gate, (batch, channels)),
        weight=(weight, (outputs, channels)),
        bias=(bias, (outputs,)),
        residual=(residual, (batch, size, outputs)),
    )
    return _scale_linear_residual(x, gate, weight, bias, residual)


def refusal(x: Tensor) -> str | None:
    """Why the kernels cannot take a tensor; None if they can."""
    if x.device.type not in ("cuda", "meta") and not _INTERPRETED:
        return f"the Triton kernels need a CUDA device, not {x.device.type}"
    if x.dtype not in _DTYPES:
        return f"the Triton kernels take float16, bfloat16 and float32, not {x.dtype}"
    return None


def _check_dimensions(x: Tensor, expected: str, count: int) -> None:
    if x.ndim != count:
        raise ValueError(f"x is {tuple(x.shape)}, which is not {expected}: reshape it")


def _check(x: Tensor, **others: tuple[Tensor, tuple[int, ...]]) -> None:
    """Raises a ValueError unless all tensors suit the kernels and have the shapes beside them."""
    reason = refusal(x)
    if reason is not None:
        raise ValueError(f"{reason}: use PyTorch's own operations there")
    for name, (tensor, shape) in others.items():
        if (tensor.shape, tensor.dtype, tensor.device) != (shape, x.dtype, x.device):
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}; with x "
                f"{tuple(x.shape)} it must be {tuple(shape)} of {x.dtype} on {x.device}"
            )


@triton.jit
def _gelu(x: tl.tensor) -> tl.tensor:
    return 0.5 * x * (1.0 + tl.erf(x * _SQRT_HALF))


@triton.jit
def _load(
    matrix: tl.tensor, rows: tl.tensor, count: tl.tensor, columns: tl.tensor, WIDTH: tl.constexpr
) -> tl.tensor:
    """A tile of a (count, WIDTH) matrix; zeros beyond it."""
    places = matrix + rows[:, None] * WIDTH + columns[None, :]
    return tl.load(places, mask=(rows < count)[:, None] & (columns < WIDTH)[None, :], other=0.0)


@triton.jit
def _store(
    matrix: tl.tensor,
    rows: tl.tensor,
    count: tl.tensor,
    columns: tl.tensor,
    values: tl.tensor,
    WIDTH: tl.constexpr,
) -> None:
    places = matrix + rows[:, None] * WIDTH + columns[None, :]
    values = values.to(matrix.dtype.element_ty)
    tl.store(places, values, mask=(rows < count)[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def _load_vector(vector: tl.tensor, places: tl.tensor, SIZE: tl.constexpr) -> tl.tensor:
    return tl.load(vector + places, mask=places < SIZE, other=0.0).to(tl.float32)


@triton.jit
def _norm_linear_gelu_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    eps: tl.tensor,
    C: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """A program takes some rows of all, and some of their outputs."""
    pieces = tl.cdiv(K, COLS)
    columns = tl.program_id(0) % pieces * COLS + tl.arange(0, COLS)
    start = (tl.program_id(0) // pieces).to(tl.int64) * ROWS
    count = size - start
    x += start * C
    rows = tl.arange(0, ROWS)
    steps = tl.arange(0, STEP)
    sums = tl.zeros([ROWS], tl.float32)
    for first in range(0, C, STEP):
        tile = _load(x, rows, count, first + steps, C)
        sums += tl.sum(tile.to(tl.float32), 1)
    mean = sums / C
    squares = tl.zeros([ROWS], tl.float32)
    products = tl.zeros([ROWS, COLS], tl.float32)
    for first in range(0, C, STEP):
        channels = first + steps
        tile = _load(x, rows, count, channels, C)
        centred = tl.where((channels < C)[None, :], tile.to(tl.float32) - mean[:, None], 0.0)
        squares += tl.sum(centred * centred, 1)
        matrix = tl.trans(_load(weight, columns, K, channels, C))
        products = tl.dot(centred.to(tile.dtype), matrix, products, input_precision=PRECISION)
    scale = tl.rsqrt(squares / C + eps)
    values = products * scale[:, None] + _load_vector(bias, columns, K)[None, :]
    _store(out + start * K, rows, count, columns, _gelu(values), K)


@triton.jit
def _scale_linear_residual_kernel(
    x: tl.tensor,
    gate: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    C: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """A program takes some rows of one image, which have one gate, and some of their outputs."""
    pieces = tl.cdiv(K, COLS)
    tiles = tl.cdiv(size, ROWS)
    columns = tl.program_id(0) % pieces * COLS + tl.arange(0, COLS)
    image = (tl.program_id(0) // pieces // tiles).to(tl.int64)
    above = tl.program_id(0) // pieces % tiles * ROWS
    start = image * size + above
    count = size - above
    x += start * C
    gate += image * C
    rows = tl.arange(0, ROWS)
    steps = tl.arange(0, STEP)
    products = tl.zeros([ROWS, COLS], tl.float32)
    for first in range(0, C, STEP):
        channels = first + steps
        tile = _load(x, rows, count, channels, C)
        scaled = tile.to(tl.float32) * _load_vector(gate, channels, C)[None, :]
        matrix = tl.trans(_load(weight, columns, K, channels, C))
        products = tl.dot(scaled.to(tile.dtype), matrix, products, input_precision=PRECISION)
    kept = _load(residual + start * K, rows, count, columns, K).to(tl.float32)
    values = kept + (products + _load_vector(bias, columns, K)[None, :])
    _store(out + start * K, rows, count, columns, values, K)


@triton.jit
def _load_row(
    row: tl.tensor,
    columns: tl.tensor,
    width: tl.tensor,
    channels: tl.tensor,
    seen: tl.tensor,
    C: tl.constexpr,
) -> tl.tensor:
    """(columns, channels) of a map's row; zeros beyond the map, or all if the row is not seen."""
    inside = (columns >= 0) & (columns < width) & seen
    places = row + columns[:, None] * C + channels[None, :]
    mask = inside[:, None] & (channels < C)[None, :]
    return tl.load(places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_taps(
    weight: tl.tensor, channels: tl.tensor, ROW: tl.constexpr, C: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """A row of every channel's 3x3 weights, (1, channels) each."""
    first = channels * 9 + 3 * ROW
    left = _load_vector(weight, first, 9 * C)
    middle = _load_vector(weight, first + 1, 9 * C)
    right = _load_vector(weight, first + 2, 9 * C)
    return left[None, :], middle[None, :], right[None, :]


@triton.jit
def _depthwise_gelu_sums_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    sums: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """A program takes ``ROWS`` x ``COLS`` places of one image, and some channels.

    Two rows of outputs grow at a time: ``begun`` has met the row above it, ``nearly`` its own too.
    """
    blocks = tl.cdiv(C, CHANNELS)
    pieces = tl.cdiv(width, COLS)
    tiles = pieces * tl.cdiv(height, ROWS)
    channels = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    tile = tl.program_id(0) // blocks
    columns = tile % pieces * COLS + tl.arange(0, COLS)
    top = tile % tiles // pieces * ROWS
    bottom = tl.minimum(top + ROWS, height)
    start = (tile // tiles).to(tl.int64) * height * width * C
    x += start
    out += start
    above_l, above_m, above_r = _load_taps(weight, channels, 0, C)
    own_l, own_m, own_r = _load_taps(weight, channels, 1, C)
    below_l, below_m, below_r = _load_taps(weight, channels, 2, C)
    empty = _load_vector(bias, channels, C)[None, :].broadcast_to(COLS, CHANNELS)
    begun = empty
    nearly = empty
    total = tl.zeros([COLS, CHANNELS], tl.float32)
    for y in tl.range(top - 1, bottom + 1, num_stages=STAGES):
        row = x + y * width * C
        seen = (y >= 0) & (y < height)
        left = _load_row(row, columns - 1, width, channels, seen, C)
        middle = _load_row(row, columns, width, channels, seen, C)
        right = _load_row(row, columns + 1, width, channels, seen, C)
        done = nearly + (left * below_l + middle * below_m + right * below_r)
        nearly = begun + (left * own_l + middle * own_m + right * own_r)
        begun = empty + (left * above_l + middle * above_m + right * above_r)
        if y > top:
            values = _gelu(done)
            _store(out + (y - 1) * width * C, columns, width, channels, values, C)
            total += tl.where((columns < width)[:, None], values, 0.0)
    tl.store(sums + tile.to(tl.int64) * C + channels, tl.sum(total, 0), mask=channels < C)


_FUSED = {"enable_fp_fusion": True}  # unsaid, Triton 3.9 warns that its default will change

# Rows, columns and channels that a program of the depthwise kernel takes. Ten rows are loaded for
# eight of outputs; 16 columns suit maps 14 and 32 wide; with four numbers a thread the nine weights
# of its channels are 36 registers of about 90, which leaves an sm80 multiprocessor 20 warps.
_DEPTHWISE: dict[str, Any] = {
    "ROWS": 8,
    "COLS": 16,
    "CHANNELS": 32,
    "STAGES": 3,
    "num_warps": 4,
    **_FUSED,
}


@dataclass(frozen=True)
class _Tile:
    """What a program of a matrix product works on at once.

    None spills registers, or takes 99 KB of shared memory: the least that GPUs have since sm80.
    """

    rows: int
    columns: int
    step: int
    warps: int
    stages: int
    """Steps that are loaded while another is computed, and that one."""

    @classmethod
    def of(cls, dtype: torch.dtype, images: int, size: int, outputs: int) -> _Tile:
        """For a matrix product of (images, size) rows, with ``outputs`` numbers each."""
        if dtype == torch.float32:  # exact, and so without matrix units
            return cls(rows=64, columns=64, step=32, warps=8, stages=2)
        # The sums are 64 registers a thread of 128 on sm90, so that two programs share a unit.
        large = cls(rows=128, columns=128, step=32, warps=8, stages=4)
        programs = images * _cdiv(size, large.rows) * _cdiv(outputs, large.columns)
        # Fewer would leave multiprocessors of an A100 without work.
        if programs < 108 or size <= 64:
            return cls(rows=64, columns=32, step=64, warps=4, stages=3)
        return large


def _cdiv(number: int, divisor: int) -> int:
    """Rounded up; ``triton.cdiv`` takes no symbolic sizes."""
    return -(-number // divisor)


def _options(weight: Tensor, images: int, size: int) -> dict[str, Any]:
    """How to launch a product of (images, size) rows with a matrix (K, C)."""
    outputs, channels = weight.shape
    tile = _Tile.of(weight.dtype, images, size, outputs)
    exact = not multiplies_in_tf32()
    return {
        "size": size,
        "C": channels,
        "K": outputs,
        "ROWS": tile.rows,
        "COLS": tile.columns,
        "STEP": tile.step,
        "PRECISION": "ieee" if exact else "tf32",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **_FUSED,
    }


def _programs(images: int, options: dict[str, Any]) -> tuple[int]:
    rows = images * _cdiv(options["size"], options["ROWS"])
    return (rows * _cdiv(options["K"], options["COLS"]),)


@torch.library.custom_op("convattn::norm_linear_gelu", mutates_args=())
def _norm_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    options = _options(weight, 1, x.shape[:-1].numel())
    out = x.new_empty(*x.shape[:-1], len(weight))
    inputs = [t.contiguous() for t in (x, weight, bias)]
    with torch.cuda.device_of(x):
        _norm_linear_gelu_kernel[_programs(1, options)](*inputs, out, eps=eps, **options)
    return out


@_norm_linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("convattn::depthwise_gelu_sums", mutates_args=())
def _depthwise_gelu_sums(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The map, and the sums of every tile of it, (B, tiles, C)."""
    (_, height, width, channels), (out, sums) = x.shape, _map_and_sums(x)
    programs = sums.shape[:2].numel() * _cdiv(channels, _DEPTHWISE["CHANNELS"])
    inputs = [t.contiguous() for t in (x, weight, bias)]
    with torch.cuda.device_of(x):
        _depthwise_gelu_sums_kernel[(programs,)](
            *inputs, out, sums, height, width, C=channels, **_DEPTHWISE
        )
    return out, sums


@_depthwise_gelu_sums.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _map_and_sums(x)


def _map_and_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the results."""
    batch, height, width, channels = x.shape
    tiles = _cdiv(height, _DEPTHWISE["ROWS"]) * _cdiv(width, _DEPTHWISE["COLS"])
    return x.new_empty(x.shape), x.new_empty(batch, tiles, channels, dtype=torch.float32)


@torch.library.custom_op("convattn::scale_linear_residual", mutates_args=())
def _scale_linear_residual(
    x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, residual: Tensor
) -> Tensor:
    images, size, _ = x.shape
    options = _options(weight, images, size)
    out = residual.new_empty(residual.shape)
    inputs = [t.contiguous() for t in (x, gate, weight, bias, residual)]
    with torch.cuda.device_of(x):
        _scale_linear_residual_kernel[_programs(images, options)](*inputs, out, **options)
    return out


@_scale_linear_residual.register_fake
def _(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return residual.new_empty(residual.shape)


@register_flop_formula(torch.ops.convattn.norm_linear_gelu)
def _norm_linear_gelu_flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


@register_flop_formula(torch.ops.convattn.depthwise_gelu_sums)
def _depthwise_gelu_sums_flops(x: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * 9 * math.prod(x)


@register_flop_formula(torch.ops.convattn.scale_linear_residual)
def _scale_linear_residual_flops(
    x: tuple[int, ...], gate: Any, weight: tuple[int, ...], *_: Any, **__: Any
) -> int:
    return 2 * math.prod(x) * weight[0]
