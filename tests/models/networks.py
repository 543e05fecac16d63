"""Networks without memory behind their tensors, for counting what is in them."""

from functools import cache

import timm
import torch

import convattn  # noqa: F401  (registers the models)
from convattn.layers import AAConv2d


@cache
def build(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs).eval()


def augmented(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, AAConv2d)}


def plain(model):
    """Without the padding of the fused path, which would count as work."""
    for layer in augmented(model).values():
        layer.fused_attn = False
    return model
