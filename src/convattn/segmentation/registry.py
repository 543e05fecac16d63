"""Segmenters by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from convattn.segmentation.upernet import (
    upernet,
    upernet_patchconvnet_b60,
    upernet_patchconvnet_b120,
    upernet_patchconvnet_l120,
    upernet_patchconvnet_s60,
)
from convattn.text import nearest

SEGMENTERS: dict[str, Callable[..., nn.Module]] = {
    function.__name__: function
    for function in (
        upernet,
        upernet_patchconvnet_s60,
        upernet_patchconvnet_b60,
        upernet_patchconvnet_b120,
        upernet_patchconvnet_l120,
    )
}
"""Name -> the function that makes the segmenter; "upernet" takes any backbone."""


def create_segmenter(name: str, *, num_classes: int, **arguments: Any) -> nn.Module:
    """A segmenter by its name.

    It takes normalised images (B, 3, H, W) of any size and gives logits
    (B, num_classes, H, W); in training a pair of them, the second for the auxiliary loss.

    Args:
        name: One of ``SEGMENTERS``.
        num_classes: Classes, at most 255.
        arguments: Arguments of the segmenter; see ``upernet``.

    Raises:
        ValueError: If there is no such segmenter, or it refuses an argument.

    Examples:
        >>> model = create_segmenter(
        ...     "upernet", num_classes=3, backbone="patchconvnet_nano", channels=32
        ... )
        >>> model.num_classes
        3
    """
    if name not in SEGMENTERS:
        near = nearest(name, SEGMENTERS)
        raise ValueError(f"unknown segmenter {name!r}; the nearest is {near!r}")
    try:
        return SEGMENTERS[name](num_classes=num_classes, **arguments)
    except TypeError as error:
        raise ValueError(f"segmenter {name!r} refuses its arguments: {error}") from error
