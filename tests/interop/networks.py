"""Networks to give to other tools: ours, and a plain one of timm's beside them."""

import timm
import torch
from torch import nn

from convattn import augment

NETWORKS = {
    "plain": lambda: timm.create_model("resnet10t", num_classes=5),
    "aa_resnet_nano": lambda: timm.create_model("aa_resnet_nano", num_classes=5),
    "patchconvnet_nano": lambda: timm.create_model("patchconvnet_nano", num_classes=5),
    "augmented": lambda: augment(
        timm.create_model("resnet10t", num_classes=5),
        pool="attention",
        conv="last-2-stages",
        input_size=64,
    ),
    "aggregation": lambda: augment(
        timm.create_model("resnet10t", num_classes=5), pool="aggregation", input_size=64
    ),
}


def woken(name: str) -> nn.Module:
    """With values in what starts at zero, which would hide errors."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def images(batch: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())
