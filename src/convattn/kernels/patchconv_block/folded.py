"""PatchConvNet's block when nothing is learned any more.

The norm's factors and layer scale lie in the matrices beside them. The first form that fits:

=================== ==================================== ========================================
form                where                                what it is
=================== ==================================== ========================================
experimental_triton CUDA, asked for                      three kernels for eight operations
convolutions        compiled on the CPU, many positions  what oneDNN fuses: with GELU and residual
matrices            everywhere else                      maps in the memory of the last one
=================== ==================================== ========================================
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MANY_POSITIONS = 1024  # below, matrix products are faster than 1x1 convolutions


class FoldedBlock(Protocol):
    """A folded block's layers and what was set on it."""

    eps: float | None
    """What the norm adds to the variance; None where it is a BatchNorm, folded whole."""
    conv_pw: nn.Module
    conv_dw: nn.Conv2d
    conv_pwl: nn.Module
    kernels: Any

    @property
    def se(self) -> Any:
        """Squeeze-excite, which also takes a map's mean: ``from_mean``."""


FoldedForm = Callable[[Any, Tensor], Tensor]


def folded_form(block: FoldedBlock, x: Tensor) -> FoldedForm:
    """The form that suits the place, called with block and ``x``.

    Args:
        block: Its layers.
        x: (B, H, W, C).
    """
    return next(form for fits, form in _FORMS if fits(block, x))


def gelu_in_place(x: Tensor) -> Tensor:
    """GELU, in the memory of ``x`` unless a gradient is recorded: new memory costs most of it."""
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def fits_triton(block: FoldedBlock, x: Tensor) -> bool:
    """Whether the kernels were asked for and can take the map."""
    if block.kernels != "experimental_triton" or not _has_plain_matrices(block):
        return False
    # Triton is absent on some machines.
    from convattn.kernels.patchconv_block.experimental_triton import refusal

    return block.eps is not None and refusal(x) is None


def triton_block(block: FoldedBlock, x: Tensor) -> Tensor:
    """Three kernels in the place of eight operations."""
    from convattn.kernels.patchconv_block.experimental_triton import (
        depthwise_gelu_sums,
        norm_linear_gelu,
        scale_linear_residual,
    )

    first, middle, last = _matrix(block.conv_pw), block.conv_dw, _matrix(block.conv_pwl)
    assert block.eps is not None
    assert middle.bias is not None
    maps = norm_linear_gelu(x, first.weight, first.bias, block.eps)
    maps, sums = depthwise_gelu_sums(maps, middle.weight, middle.bias)
    gate = block.se.from_mean((sums / (x.shape[1] * x.shape[2])).to(x.dtype))
    flat, residual = maps.flatten(1, 2), x.flatten(1, 2)
    return scale_linear_residual(flat, gate, last.weight, last.bias, residual).view_as(x)


def fits_convolutions(block: FoldedBlock, x: Tensor) -> bool:
    """Whether Inductor compiles it for the CPU, and 1x1 convolutions pay there."""
    many = x[..., 0].numel() >= _MANY_POSITIONS
    return _compiles_on_cpu(x) and many and _has_plain_matrices(block)


def convolutions_block(block: FoldedBlock, x: Tensor) -> Tensor:
    """As Inductor recognises what oneDNN can fuse: with a GELU, and with the residual."""
    first, last = _matrix(block.conv_pw), _matrix(block.conv_pwl)
    normed = _normalize(block, x).permute(0, 3, 1, 2)
    x = x.permute(0, 3, 1, 2)
    maps = F.gelu(F.conv2d(normed, first.weight[..., None, None], first.bias))
    maps = F.gelu(block.conv_dw(maps))
    gated = maps * block.se.from_mean(maps.mean((2, 3)))[..., None, None]
    out = x + F.conv2d(gated, last.weight[..., None, None], last.bias)
    return out.permute(0, 2, 3, 1)


def matrices_block(block: FoldedBlock, x: Tensor) -> Tensor:
    """Every map in the memory of the last, unless gradients are recorded."""
    maps = gelu_in_place(block.conv_pw(_normalize(block, x)))
    maps = gelu_in_place(block.conv_dw(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    if maps.requires_grad:
        return x + block.conv_pwl(maps * block.se(maps))
    out: Tensor = block.conv_pwl(maps.mul_(block.se(maps)))
    return out.add_(x)


_FORMS: tuple[tuple[Callable[[Any, Tensor], bool], FoldedForm], ...] = (
    (fits_triton, triton_block),
    (fits_convolutions, convolutions_block),
    (lambda block, x: True, matrices_block),
)


def _normalize(block: FoldedBlock, x: Tensor) -> Tensor:
    if block.eps is None:
        return x
    if _compiles_on_cpu(x):
        # Sums over rows that lie in the cache; what the compiler makes of layer_norm is slower.
        wide = x.float()
        centred = wide - wide.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return (centred * torch.rsqrt(variance + block.eps)).to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], eps=block.eps)


def _compiles_on_cpu(x: Tensor) -> bool:
    return torch.compiler.is_compiling() and x.device.type == "cpu"


def _has_plain_matrices(block: FoldedBlock) -> bool:
    """Whether nothing else, int8 for example, has taken the place of the 1x1 convolutions."""
    return type(block.conv_pw) is type(block.conv_pwl) is nn.Linear


def _matrix(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    return layer
