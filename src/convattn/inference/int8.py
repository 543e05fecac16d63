"""Matrix products in eight-bit integers, on processors that have instructions for them.

Weights have one step an output channel, activations one a row, found as they come (dynamic
quantisation): no calibration data are needed, and one outlier coarsens its own row alone.

The products run on ``torch._int_mm``, as torchao's do. On a CPU, and not compiled, the dynamic
quantisation of torchao 0.18 takes longer than float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_POINTWISE = ("conv_pw", "conv_pwl")  # what a PatchConvNet's blocks call their 1x1 convolutions
_MIN_FEATURES = 64  # below, little is left to save, in memory or in time
_MIN_CUDA_ROWS = 17  # fewer are refused by cuBLAS


def to_steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as whole numbers from -127 to 127, in steps of its own.

    Args:
        x: (N, C), float32.

    Returns:
        The int8 numbers (N, C), and the size of a step (N, 1), never zero: their product is at
        most half a step from ``x``.

    Examples:
        >>> to_steps(torch.tensor([[127.0, -0.6], [0.0, 0.0]]))[0].tolist()
        [[127, -1], [0, 0]]
    """
    room = x.abs()
    step = room.amax(-1, keepdim=True).div_(127).clamp_min_(torch.finfo(x.dtype).tiny)
    # Fresh memory would cost as much as the arithmetic.
    return torch.div(x, step, out=room).round_().to(torch.int8), step


class Int8Linear(nn.Module):
    """A trained nn.Linear with weights and products in int8, for inference alone.

    Buffers are ``weight`` (out_features, in_features) in int8, ``step`` and ``bias``
    (out_features,) in float32. No gradient passes.

    Args:
        linear: The layer to stand in for; left alone.

    Shape:
        (..., in_features) in any float dtype -> (..., out_features) in float32.

    Examples:
        >>> linear = torch.nn.Linear(64, 96)
        >>> x = torch.randn(2, 7, 9, 64)
        >>> bool((Int8Linear(linear)(x) - linear(x)).abs().max() < 0.1)
        True
    """

    weight: Tensor
    step: Tensor
    bias: Tensor

    @torch.no_grad()
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, step = to_steps(linear.weight.float())
        bias = step.new_zeros(len(step)) if linear.bias is None else linear.bias.float().clone()
        self.register_buffer("weight", weight)
        self.register_buffer("step", step.squeeze(1))
        self.register_buffer("bias", bias)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        rows, row_step = to_steps(x.float().reshape(-1, x.shape[-1]))
        y = self._product(rows).float().mul_(row_step)
        return torch.addcmul(self.bias, y, self.step, out=y).reshape(*x.shape[:-1], len(self.bias))

    def _product(self, rows: Tensor) -> Tensor:
        """Exact products (N, out_features) in int32 of int8 rows (N, in_features)."""
        missing = _MIN_CUDA_ROWS - len(rows)
        if rows.is_cuda and missing > 0:
            padded = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
            return torch._int_mm(padded, self.weight.t())[: len(rows)]
        return torch._int_mm(rows, self.weight.t())

    def extra_repr(self) -> str:
        """The sizes, as nn.Linear shows them."""
        out_features, in_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}"


def quantize_int8(network: nn.Module) -> None:
    """Gives a network's large matrix products to :class:`Int8Linear`, in place.

    These are the nn.Linear layers ``conv_pw`` and ``conv_pwl`` of a PatchConvNet's blocks, before
    or after folding, with 64 channels or more: 87 % of the multiply-adds of ``patchconvnet_s60``.
    All else stays as it is, bit for bit: the stem, depthwise convolutions, squeeze-excite,
    aggregation and classifier. The convolutions and attention of other networks are not taken.

    The blocks' weights take a quarter of the memory. Time is saved from about 384 channels on;
    on a CPU, rounding the rows of narrower maps takes longer than the product saves.

    Args:
        network: In evaluation mode.

    Raises:
        ValueError: If the network has no such layer, or is on a device without int8 products.
    """
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if name in _POINTWISE and isinstance(child, nn.Linear) and _is_large(child)
    ]
    if not found:
        raise ValueError(
            f"{type(network).__name__} has no layer for int8: it needs 1x1 "
            f"convolutions of a PatchConvNet with a multiple of 8 and at least {_MIN_FEATURES} "
            "channels; choose float32 or bfloat16"
        )
    elsewhere = {linear.weight.device.type for _, _, linear in found} - {"cpu", "cuda"}
    if elsewhere:
        raise ValueError(
            f"int8 runs on cpu and cuda, and {type(network).__name__} is on "
            f"{', '.join(sorted(elsewhere))}; move it there, or choose float32 or bfloat16"
        )
    for parent, name, linear in found:
        setattr(parent, name, Int8Linear(linear))


def _is_large(linear: nn.Linear) -> bool:
    sizes = linear.in_features, linear.out_features
    return all(size >= _MIN_FEATURES and size % 8 == 0 for size in sizes)
