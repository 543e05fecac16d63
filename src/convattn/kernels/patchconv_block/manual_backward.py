"""PatchConvNet's residual block for training, with a backward pass written by hand.

The block of Touvron et al. 2021, https://arxiv.org/abs/2112.13692, with the affine part of its
LayerNorm and its LayerScale folded into the matrices beside them. Whatever is used only once is
computed in memory that is there already, and no map is made in the forward pass that is not kept.
That is faster, since fresh memory costs as much as the arithmetic of a pointwise operation, and on
the CPU it is what keeps memory small: the allocator can hardly use the holes between maps that
stay.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_gelu_backward = torch.ops.aten.gelu_backward.grad_input


def manual_backward(
    x: Tensor,
    first: tuple[Tensor, Tensor],
    depthwise: tuple[Tensor, Tensor],
    reduce: tuple[Tensor, Tensor],
    expand: tuple[Tensor, Tensor],
    last: tuple[Tensor, Tensor],
    *,
    eps: float,
    recomputes_gelu: bool,
) -> Tensor:
    """A residual block; differentiable once, in all tensors.

    The weights may be bfloat16 beside a wider ``x``, as under autocast: then the branch's maps and
    products are, and the norm and the sum of the branches are not.

    Args:
        x: (B, H, W, C), contiguous.
        first: Weight (C, C) and bias (C,) of the matrix after the norm, with the norm's own inside.
        depthwise: Weight (C, 1, 3, 3) and bias (C,).
        reduce: Weight (R, C) and bias (R,) of squeeze-excite's first matrix.
        expand: Weight (C, R) and bias (C,) of its second.
        last: Weight (C, C) and bias (C,) of the last matrix, with layer scale inside.
        eps: Of the norm.
        recomputes_gelu: Keep three maps for the backward pass, ``x`` among them, instead of five.

    Returns:
        (B, H, W, C).
    """
    return _ManualBackward.apply(
        x, *first, *depthwise, *reduce, *expand, *last, eps, recomputes_gelu
    )


class _ManualBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        w1, b1, wd, bd, wr, br, we, be, w2, b2, eps, ctx.recomputes_gelu = given
        normed, mean, rstd = _normed(x, eps)
        wide = F.linear(normed.to(w1.dtype), w1, b1)
        active = F.gelu(wide)
        mixed = _depthwise(active, wd, bd)
        kept = [active]
        if ctx.recomputes_gelu:
            kept, gated = [], torch.ops.aten.gelu.out(mixed, out=active)
        else:
            gated = F.gelu(mixed)
            kept.append(gated)
        squeezed = gated.mean((1, 2))
        hidden = F.linear(squeezed, wr, br).relu_()
        gate = F.linear(hidden, we, be).sigmoid_()
        gated.mul_(gate[:, None, None])
        if x.dtype == w2.dtype:
            out = _rows(torch.add(x, b2, out=normed))
            torch.addmm(out, _rows(gated), w2.t(), out=out)
        else:
            torch.add(x, F.linear(gated, w2, b2), out=normed)
        small = (mean, rstd, squeezed, hidden, gate)
        ctx.save_for_backward(x, wide, mixed, *small, w1, wd, wr, we, w2, *kept)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, wide, mixed, mean, rstd, squeezed, hidden, gate, w1, wd, wr, we, w2, *kept = (
            ctx.saved_tensors
        )
        channels = x.shape[-1]
        grad = grad.contiguous()
        active2 = F.gelu(mixed)
        gated = active2 * gate[:, None, None] if ctx.recomputes_gelu else kept[1]
        grad_out = grad.to(w2.dtype)
        grad_w2 = _rows(grad_out).t() @ _rows(gated)
        grad_b2 = _rows(grad_out).sum(0)
        grad_map = (_rows(grad_out) @ w2).view_as(x)

        # Squeeze-excite.
        grad_gate = active2.mul_(grad_map).sum((1, 2))
        grad_logit = grad_gate * gate * (1 - gate)
        grad_hidden = (grad_logit @ we).mul_(hidden > 0)
        grad_mean = (grad_hidden @ wr).div_(x.shape[1] * x.shape[2])
        torch.addcmul(grad_mean[:, None, None], grad_map, gate[:, None, None], out=grad_map)

        _gelu_backward(grad_map, mixed, grad_input=grad_map)
        scratch = active2
        active = torch.ops.aten.gelu.out(wide, out=scratch) if ctx.recomputes_gelu else kept[0]
        grad_wide, grad_wd, grad_bd = torch.ops.aten.convolution_backward(
            grad_map.permute(0, 3, 1, 2),
            active.permute(0, 3, 1, 2),
            wd,
            [channels],
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            channels,
            [True, True, True],
        )
        grad_wide = grad_wide.permute(0, 2, 3, 1).contiguous()
        _gelu_backward(grad_wide, wide, grad_input=grad_wide)
        if x.dtype == w1.dtype:
            normed = torch.sub(x, mean, out=scratch).mul_(rstd)
        else:  # rounded once
            normed = torch.sub(x, mean).mul_(rstd).to(w1.dtype)
        grad_w1 = _rows(grad_wide).t() @ _rows(normed)
        grad_b1 = _rows(grad_wide).sum(0)
        grad_normed = torch.mm(_rows(grad_wide), w1, out=_rows(grad_map)).view_as(x)
        grad_x = torch.ops.aten.native_layer_norm_backward(
            grad_normed.to(x.dtype), x, [channels], mean, rstd, None, None, [True, False, False]
        )[0]
        return (
            grad_x.add_(grad),
            *(grad_w1, grad_b1),
            *(grad_wd, grad_bd),
            *(grad_hidden.t() @ squeezed, grad_hidden.sum(0)),
            *(grad_logit.t() @ hidden, grad_logit.sum(0)),
            *(grad_w2, grad_b2),
            *(None, None),
        )


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.native_layer_norm(x, [x.shape[-1]], None, None, eps)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    maps = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight))
    return maps.permute(0, 2, 3, 1).contiguous()


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])
