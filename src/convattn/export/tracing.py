"""A network's operators for any batch, height and width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import floordiv

import torch
from packaging.version import Version
from timm.layers import padding
from torch import SymInt, Tensor, _meta_registrations, nn
from torch.export import Dim, ExportedProgram

from convattn.export.checking import first_line
from convattn.export.networks import classifier_of
from convattn.layers import AAConv2d
from convattn.surgery.copying import fix_computed_weights

AXES = {0: "batch", 2: "height", 3: "width"}
"""Those of the images whose sizes are free."""

POOLS_ANY_SIZE = Version(torch.__version__).release >= (2, 14)
"""Whether this PyTorch traces pooling for maps of any size. Earlier ones corrected the sign of a
division that needs none, and what the correction asked of the example's size became a condition on
every size: images of 81 x 81 were refused."""


def trace(network: nn.Module, example: Tensor) -> ExportedProgram:
    """The network's operators for any batch, height and width.

    Args:
        network: Its attention convolutions use PyTorch's own kernel from then on, and what hooks
            compute of its weights stays as it is.
        example: Images, (B, C, H, W).

    Raises:
        ValueError: If it cannot be traced.
    """
    fix_computed_weights(network)
    for layer in network.modules():
        if isinstance(layer, AAConv2d):
            layer.attn_backend = "sdpa"  # PyTorch's own, whatever the layer or the variable asks
    sizes = dict.fromkeys(AXES, Dim.DYNAMIC)
    try:
        with _traceable_same_padding(), _traceable_pooling():
            return torch.export.export(network, (example,), dynamic_shapes=(sizes,))
    except Exception as error:  # of many kinds, from anywhere in the tracer
        raise ValueError(
            f"{type(classifier_of(network)).__name__} cannot be exported for any batch and image "
            f"size: {first_line(error)}"
        ) from error


@contextmanager
def _traceable_same_padding() -> Iterator[None]:
    """Let timm's "same" padding be computed without rounding, which no tracer can simplify.

    The size behind a layer is then (size - 1) // stride + 1, and behind several it stays as short.
    """
    rounding = padding.get_same_padding
    padding.get_same_padding = _same_padding
    try:
        yield
    finally:
        padding.get_same_padding = rounding


@contextmanager
def _traceable_pooling() -> Iterator[None]:
    """Let every PyTorch pool a map of any size, see ``POOLS_ANY_SIZE``."""
    if POOLS_ANY_SIZE:
        yield
        return
    dividing = _meta_registrations.div_rtn
    _meta_registrations.div_rtn = floordiv
    try:
        yield
    finally:
        _meta_registrations.div_rtn = dividing


def _same_padding(size: int | SymInt, kernel_size: int, stride: int, dilation: int) -> int | SymInt:
    """What is added to a height or width, both sides together."""
    extent = dilation * (kernel_size - 1) + 1
    added = (size - 1) // stride * stride + extent - size
    return added if extent >= stride else torch.sym_max(added, 0)
