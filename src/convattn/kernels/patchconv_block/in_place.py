"""PatchConvNet's block without gradients: every map is computed in the memory of the last."""

import torch
from torch import Tensor

from convattn.kernels.patchconv_block.contract import (
    Block,
    is_unmodified,
    layers_of,
    normalize,
    project,
)
from convattn.kernels.tracing import is_tracing
from convattn.modes import hooks_of


def fits_in_place(block: Block, x: Tensor) -> bool:
    """Whether nobody would notice that a layer's result is altered in place."""
    return (
        not torch.is_grad_enabled()
        and not is_tracing()
        and not hooks_of(block.se)
        and all(map(is_unmodified, layers_of(block)[1:]))
    )


def in_place_block(block: Block, x: Tensor, scale: float) -> Tensor:
    """The block in the memory of two maps: new pages can cost half the time.

    Args:
        block: Its layers.
        x: (B, H, W, C).
        scale: Factor of the residual branch.
    """
    maps = torch.ops.aten.gelu_(block.conv_pw(normalize(block, x)))
    maps = torch.ops.aten.gelu_(block.conv_dw(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    branch = project(block, maps.mul_(block.se(maps)), scale)
    return branch.add_(x) if branch.dtype == x.dtype else x + branch
