"""PatchConvNet's block as it runs when nothing is to be learned any more."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.inference.folding import fold_block
from convattn.models.patchconvnet import PatchConvBlock


class FoldedPatchConvBlock(nn.Module):
    """A trained block with its norm's factors and layer scale inside the 1x1 convolutions.

    Args:
        block: The trained block; shares its depthwise convolution and its squeeze-excite.

    Shape:
        (B, H, W, dim) -> (B, H, W, dim).
    """

    def __init__(self, block: PatchConvBlock) -> None:
        super().__init__()
        self.eps = None if isinstance(block.norm, nn.BatchNorm2d) else block.norm.eps
        self.conv_pw, self.conv_pwl = fold_block(block)
        self.conv_dw = block.conv_dw
        self.se = block.se

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H, W, dim)."""
        maps = F.gelu(self.conv_pw(self._normed(x)))
        maps = F.gelu(self.conv_dw(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + self.conv_pwl(maps * self.se(maps))

    def _normed(self, x: Tensor) -> Tensor:
        if self.eps is None:
            return x
        if torch.compiler.is_compiling() and x.device.type == "cpu":
            # Sums over rows that lie in the cache; what the compiler makes of layer_norm is slower.
            wide = x.float()
            centred = wide - wide.mean(-1, keepdim=True)
            variance = centred.square().mean(-1, keepdim=True)
            return (centred * torch.rsqrt(variance + self.eps)).to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


def fold_blocks(network: nn.Module) -> None:
    """Puts a folded block in the place of every PatchConvNet block, in place."""
    for name, module in list(network.named_modules()):
        if isinstance(module, PatchConvBlock):
            network.set_submodule(name, FoldedPatchConvBlock(module).eval())
