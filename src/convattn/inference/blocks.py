"""PatchConvNet's block as it runs when nothing is to be learned any more."""

from typing import Literal, get_args

from torch import Tensor, nn

from convattn.inference.folding import fold_block
from convattn.kernels.patchconv_block.folded import folded_form, gelu_in_place
from convattn.models.patchconvnet import PatchConvBlock, PatchConvNet

Kernels = Literal["torch", "experimental_triton"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)


class InplaceGELU(nn.Module):
    """For maps that nobody else reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return gelu_in_place(x)


class FoldedPatchConvBlock(nn.Module):
    """A trained block with its norm's factors and layer scale inside the 1x1 convolutions.

    Args:
        block: The trained block; shares its depthwise convolution and its squeeze-excite.

    Attributes:
        kernels: "torch", or "experimental_triton" for three kernels in the place of eight
            operations on CUDA; what they cannot take goes to "torch". May be set at any time.

    Shape:
        (B, dim, H, W) -> (B, dim, H, W).
    """

    conv_pw: nn.Module  # a Linear, until something else takes its place
    conv_pwl: nn.Module

    def __init__(self, block: PatchConvBlock) -> None:
        super().__init__()
        self.eps = block.norm.eps if isinstance(block.norm, nn.LayerNorm) else None
        self.conv_pw, self.conv_pwl = fold_block(block)
        self.conv_dw = block.conv_dw
        self.se = block.se
        self.kernels: Kernels = "torch"

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, dim, H, W)."""
        x = x.permute(0, 2, 3, 1)
        return folded_form(self, x)(self, x).permute(0, 3, 1, 2)


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
