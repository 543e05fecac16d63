"""PatchConvNet's block as the paper has it: the oracle of the forms that are faster."""

import torch.nn.functional as F
from torch import Tensor

from convattn.kernels.patchconv_block.forms import Block, normalize


def plain_branch(block: Block, x: Tensor) -> Tensor:
    """The residual branch, a channels-first convolution at a time.

    Touvron et al. 2021, https://arxiv.org/abs/2112.13692, figure 2.

    Args:
        block: Its layers.
        x: (B, H, W, C).

    Returns:
        (B, H, W, C).
    """
    maps = normalize(block, x).permute(0, 3, 1, 2)
    maps = F.gelu(F.conv2d(maps, block.conv_pw.weight[..., None, None], block.conv_pw.bias))
    maps = F.gelu(block.conv_dw(maps))
    maps = maps * block.se(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    maps = F.conv2d(maps, block.conv_pwl.weight[..., None, None], block.conv_pwl.bias)
    return block.gamma * maps.permute(0, 2, 3, 1)
