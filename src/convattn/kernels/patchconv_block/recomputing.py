"""PatchConvNet's block under autograd, which recomputes what it need not keep."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.kernels.patchconv_block.contract import Block, normalize, project
from convattn.kernels.recomputation import recompute
from convattn.kernels.tracing import is_tracing


def fits_recomputing(block: Block, x: Tensor) -> bool:
    """Whether there is a backward pass to spare memory for; a compiler plans its own."""
    return torch.is_grad_enabled() and not is_tracing()


def recomputing_block(block: Block, x: Tensor, scale: float) -> Tensor:
    """``x`` and the branch."""
    return x + recomputing_branch(block, x, scale)


def recomputing_branch(block: Block, x: Tensor, scale: float = 1.0) -> Tensor:
    """The residual branch; keeps five maps of eight, with ``block.recomputes_gelu`` three.

    Args:
        block: Its layers, which are called.
        x: (B, H, W, C).
        scale: Factor of the residual branch.
    """

    def recompute_gelu(active: Tensor, of: Tensor) -> AbstractContextManager[None]:
        return recompute(active, partial(F.gelu, of)) if block.recomputes_gelu else nullcontext()

    normed = normalize(block, x)
    with _recompute_norm(block, normed, lambda: normalize(block, x)):
        wide = block.conv_pw(normed)
    active = F.gelu(wide)
    with recompute_gelu(active, wide):
        mixed = block.conv_dw(active.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    active = F.gelu(mixed)
    with recompute_gelu(active, mixed):
        gate = block.se(active)
        gated = active * gate
    source = partial(F.gelu, mixed) if block.recomputes_gelu else active.detach
    with recompute(gated, lambda: source() * gate):
        return project(block, gated, scale)


def _recompute_norm(
    block: Block, normed: Tensor, make: Callable[[], Tensor]
) -> AbstractContextManager[None]:
    if isinstance(block.norm, nn.BatchNorm2d):  # would count the batch twice
        return nullcontext()
    return recompute(normed, make)
