"""PatchConvNet's block on the form that suits the place: contract, forms, conditions, table."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.kernels.patchconv_block.manual_backward import manual_backward
from convattn.kernels.recomputation import recompute
from convattn.kernels.tracing import is_tracing
from convattn.modes import hooks_of, is_unmodified

Norm = nn.LayerNorm | nn.BatchNorm2d | nn.SyncBatchNorm
"""The normalisations that a block may begin with."""


class Block(Protocol):
    """A block's layers and what was set on it."""

    norm: Norm
    conv_pw: nn.Linear
    conv_dw: nn.Conv2d
    conv_pwl: nn.Linear
    gamma: nn.Parameter
    training: bool
    recomputes_gelu: bool

    @property
    def drop_path(self) -> Any:
        """Timm's stochastic depth, with its rate as ``drop_prob``."""

    @property
    def se(self) -> nn.Module:
        """Squeeze-excite: layers ``reduce``, to a quarter of the channels, and ``expand``."""


def normalize(block: Block, x: Tensor) -> Tensor:
    """The normed map, (B, H, W, C), in the dtype of matrix products."""
    if isinstance(block.norm, nn.LayerNorm):
        return block.norm(x).to(compute_dtype(x))
    return block.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def project(block: Block, x: Tensor, scale: float) -> Tensor:
    """The last matrix with layer scale and ``scale`` multiplied into it rather than the map."""
    gamma = block.gamma * scale
    # float16 has no numbers as small as a new network's layer scale times a weight.
    if compute_dtype(x) == torch.float16 or not is_unmodified(block.conv_pwl):
        return gamma * block.conv_pwl(x)
    return F.linear(x, gamma[:, None] * block.conv_pwl.weight, gamma * block.conv_pwl.bias)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Of matrix products with ``x``."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # the compiler of 2.9 follows it
        return torch.get_autocast_dtype(device)
    return x.dtype


def layers_of(block: Block) -> tuple[nn.Module, ...]:
    """In their order."""
    return (block.norm, block.conv_pw, block.conv_dw, *block.se.children(), block.conv_pwl)


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


def fits_manual_backward(block: Block, x: Tensor) -> bool:
    """Whether the backward pass that is written by hand does what autograd would."""
    return (
        block.training
        and torch.is_grad_enabled()
        and not is_tracing()
        and not x.is_meta
        and compute_dtype(x) in {x.dtype, torch.bfloat16} - {torch.float16}
        and isinstance(block.norm, nn.LayerNorm)
        and all(map(is_unmodified, layers_of(block)))
        and all(parameter.requires_grad for parameter in _parameters(block))
    )


def manual_backward_block(block: Block, x: Tensor, scale: float) -> Tensor:
    """The block with the norm's factors and layer scale inside the matrices; differentiable once.

    Args:
        block: Its layers, whose weights are read.
        x: (B, H, W, C).
        scale: Factor of the residual branch.
    """
    first, last, gamma = block.conv_pw, block.conv_pwl, block.gamma * scale
    reduce, expand = block.se.reduce, block.se.expand
    assert isinstance(reduce, nn.Linear)
    assert isinstance(expand, nn.Linear)
    assert isinstance(block.norm, nn.LayerNorm)
    assert block.conv_dw.bias is not None
    dtype = compute_dtype(x)
    return manual_backward(
        x.contiguous(),
        _cast(
            dtype,
            first.weight * block.norm.weight,
            F.linear(block.norm.bias, first.weight, first.bias),
        ),
        _cast(dtype, block.conv_dw.weight, block.conv_dw.bias),
        _cast(dtype, reduce.weight, reduce.bias),
        _cast(dtype, expand.weight, expand.bias),
        _cast(dtype, gamma[:, None] * last.weight, gamma * last.bias),
        eps=block.norm.eps,
        recomputes_gelu=block.recomputes_gelu,
    )


def _parameters(block: Block) -> list[nn.Parameter]:
    return [block.gamma, *(p for layer in layers_of(block) for p in layer.parameters())]


def _cast(dtype: torch.dtype, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight.to(dtype), bias.to(dtype)


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
    if isinstance(block.norm, nn.LayerNorm):
        return recompute(normed, make)
    return nullcontext()  # a norm by batch would count the batch twice


Form = Callable[[Block, Tensor, float], Tensor]
"""A way to compute a block: of the block, its (B, H, W, C) input and a factor of its branch."""

_FORMS: tuple[tuple[Callable[[Block, Tensor], bool], Form], ...] = (
    (fits_in_place, in_place_block),
    (fits_manual_backward, manual_backward_block),
    (fits_recomputing, recomputing_block),
)


def fast_form(block: Block, x: Tensor) -> Form | None:
    """The first form that fits, called with block, ``x`` and a factor of the branch.

    None where the layers have to be called one by one: under tracing, or where hooks watch a pass
    without gradients.

    Args:
        block: Its layers.
        x: (B, H, W, C).
    """
    return next((form for fits, form in _FORMS if fits(block, x)), None)


def apply_form(form: Form, block: Block, x: Tensor) -> Tensor:
    """The block on one of its forms, with stochastic depth where it is trained with some.

    Dropped images are left out of the computation, but with BatchNorm, which would notice.

    Args:
        form: Of the table.
        block: Its layers.
        x: (B, H, W, C).
    """
    rate = block.drop_path.drop_prob if block.training else 0.0
    if not rate:
        return form(block, x, 1.0)
    if not isinstance(block.norm, nn.LayerNorm):
        return x + block.drop_path(recomputing_branch(block, x))
    # Drawn on the CPU, so that nobody waits for a GPU to tell how many are kept.
    drawn = torch.empty(len(x), dtype=x.dtype, device="cpu").bernoulli_(1 - rate)
    kept = drawn.nonzero()[:, 0].to(x.device, non_blocking=True)
    return x.index_copy(0, kept, form(block, x.index_select(0, kept), 1 / (1 - rate)))
