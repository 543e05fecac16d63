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
