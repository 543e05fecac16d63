"""PatchConvNet's block as it runs when nothing is to be learned any more."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.inference.folding import fold_block
from convattn.models.patchconvnet import PatchConvBlock, PatchConvNet

Kernels = Literal["torch", "experimental_triton"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)


_MANY_POSITIONS = 1024  # below, matrix products are faster than 1x1 convolutions


def _compiles_on_cpu(x: Tensor) -> bool:
    return torch.compiler.is_compiling() and x.device.type == "cpu"


def _gelu(x: Tensor) -> Tensor:
    """GELU, in the memory of ``x`` unless a gradient is recorded: new memory costs most of it."""
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


class InplaceGELU(nn.Module):
    """For maps that nobody else reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return _gelu(x)


class FoldedPatchConvBlock(nn.Module):
    """A trained block with its norm's factors and layer scale inside the 1x1 convolutions.

    Args:
        block: The trained block; shares its depthwise convolution and its squeeze-excite.

    Attributes:
        kernels: "torch", or "experimental_triton" for three kernels in the place of eight
            operations on CUDA; what they cannot take goes to "torch". May be set at any time.

    Shape:
        (B, H, W, dim) -> (B, H, W, dim).
    """

    def __init__(self, block: PatchConvBlock) -> None:
        super().__init__()
        self.eps = None if isinstance(block.norm, nn.BatchNorm2d) else block.norm.eps
        self.conv_pw, self.conv_pwl = fold_block(block)
        self.conv_dw = block.conv_dw
        self.se = block.se
        self.kernels: Kernels = "torch"

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        if self.kernels == "experimental_triton" and self._fits_triton(x):
            return self._by_kernels(x)
        if _compiles_on_cpu(x) and x[..., 0].numel() >= _MANY_POSITIONS and self._is_unquantised():
            return self._by_convolutions(x)
        maps = _gelu(self.conv_pw(self._normed(x)))
        maps = _gelu(self.conv_dw(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        if maps.requires_grad:
            return x + self.conv_pwl(maps * self.se(maps))
        return self.conv_pwl(maps.mul_(self.se(maps))).add_(x)

    def _normed(self, x: Tensor) -> Tensor:
        if self.eps is None:
            return x
        if _compiles_on_cpu(x):
            # Sums over rows that lie in the cache; what the compiler makes of layer_norm is slower.
            wide = x.float()
            centred = wide - wide.mean(-1, keepdim=True)
            variance = centred.square().mean(-1, keepdim=True)
            return (centred * torch.rsqrt(variance + self.eps)).to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)

    def _is_unquantised(self) -> bool:
        """Whether nothing else has taken the place of the 1x1 convolutions."""
        return type(self.conv_pw) is type(self.conv_pwl) is nn.Linear

    def _by_convolutions(self, x: Tensor) -> Tensor:
        """As Inductor recognises what oneDNN can fuse: with a GELU, and with the residual."""
        first, last = self.conv_pw, self.conv_pwl
        normed = self._normed(x).permute(0, 3, 1, 2)
        x = x.permute(0, 3, 1, 2)
        maps = F.gelu(F.conv2d(normed, first.weight[..., None, None], first.bias))
        maps = F.gelu(self.conv_dw(maps))
        gated = maps * self.se.from_mean(maps.mean((2, 3)))[..., None, None]
        out = x + F.conv2d(gated, last.weight[..., None, None], last.bias)
        return out.permute(0, 2, 3, 1)

    def _fits_triton(self, x: Tensor) -> bool:
        # Triton is absent on some machines.
        from convattn.kernels.patchconv_block.experimental_triton import refusal

        return self._is_unquantised() and self.eps is not None and refusal(x) is None

    def _by_kernels(self, x: Tensor) -> Tensor:
        from convattn.kernels.patchconv_block.experimental_triton import (
            depthwise_gelu_sums,
            norm_linear_gelu,
            scale_linear_residual,
        )

        assert self.eps is not None
        first, middle, last = self.conv_pw, self.conv_dw, self.conv_pwl
        assert middle.bias is not None
        maps = norm_linear_gelu(x, first.weight, first.bias, self.eps)
        maps, sums = depthwise_gelu_sums(maps, middle.weight, middle.bias)
        gate = self.se.from_mean((sums / (x.shape[1] * x.shape[2])).to(x.dtype))
        out = scale_linear_residual(
            maps.flatten(1, 2), gate, last.weight, last.bias, x.flatten(1, 2)
        )
        return out.view_as(x)


def fold_blocks(network: nn.Module, kernels: Kernels) -> None:
    """Puts a folded block in the place of every PatchConvNet block, and spares memory in the stem.

    Args:
        network: Altered in place.
        kernels: Of the blocks.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, PatchConvNet):
            for place, part in module.stem.named_children():
                if isinstance(part, nn.GELU):
                    module.stem.set_submodule(place, InplaceGELU())
        if isinstance(module, PatchConvBlock):
            folded = FoldedPatchConvBlock(module).eval()
            folded.kernels = kernels
            network.set_submodule(name, folded)
