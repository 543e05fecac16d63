"""What the forms of PatchConvNet's block are given, and when reading weights is enough."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.modes import hooks_of

Norm = nn.LayerNorm | nn.BatchNorm2d


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
    if isinstance(block.norm, nn.BatchNorm2d):
        return block.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return block.norm(x).to(compute_dtype(x))


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
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def is_unmodified(layer: nn.Module) -> bool:
    """Whether reading its parameters does all that calling it would."""
    return type(layer) in (nn.Linear, nn.Conv2d, nn.LayerNorm) and not hooks_of(layer)


def layers_of(block: Block) -> tuple[nn.Module, ...]:
    """In their order."""
    return (block.norm, block.conv_pw, block.conv_dw, *block.se.children(), block.conv_pwl)
