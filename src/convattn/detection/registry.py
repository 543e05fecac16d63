"""Detectors by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from convattn.detection.mask_rcnn import (
    mask_rcnn,
    mask_rcnn_patchconvnet_s60,
    mask_rcnn_patchconvnet_s120,
)
from convattn.detection.retinanet import (
    aa_retinanet_resnet50,
    aa_retinanet_resnet101,
    retinanet,
    retinanet_resnet50,
    retinanet_resnet101,
    se_retinanet_resnet50,
    se_retinanet_resnet101,
)
from convattn.text import nearest

DETECTORS: dict[str, Callable[..., nn.Module]] = {
    function.__name__: function
    for function in (
        retinanet,
        retinanet_resnet50,
        retinanet_resnet101,
        se_retinanet_resnet50,
        se_retinanet_resnet101,
        aa_retinanet_resnet50,
        aa_retinanet_resnet101,
        mask_rcnn,
        mask_rcnn_patchconvnet_s60,
        mask_rcnn_patchconvnet_s120,
    )
}
"""Every detector by its name, as ``create_detector`` takes it."""


_FIND_MASKS = frozenset({"mask_rcnn", "mask_rcnn_patchconvnet_s60", "mask_rcnn_patchconvnet_s120"})


def finds_masks(name: str) -> bool:
    """Whether a detector finds masks, too.

    Args:
        name: One of ``DETECTORS``.
    """
    return name in _FIND_MASKS


def create_detector(name: str, *, num_classes: int, **arguments: Any) -> nn.Module:
    """A detector by its name.

    Args:
        name: One of ``DETECTORS``: "retinanet" and "mask_rcnn" on any ``backbone``, or a network
            of the papers.
        num_classes: Classes and the background.
        **arguments: As ``retinanet`` and ``mask_rcnn`` have them.

    Returns:
        Training: ``model(images, targets)`` is a dictionary of losses. Evaluation:
        ``model(images)`` is a list with ``boxes``, ``labels``, ``scores``, and of Mask R-CNN
        ``masks``, for each image in its own pixels. Labels start at 1.

    Raises:
        ValueError: If there is no such detector, or it refuses an argument.

    Examples:
        >>> import convattn
        >>> model = create_detector("retinanet", num_classes=3, backbone="aa_resnet_nano")
        >>> type(model).__name__
        'RetinaNet'
    """
    if name not in DETECTORS:
        near = nearest(name, DETECTORS)
        raise ValueError(f"unknown detector {name!r}; the nearest is {near!r}")
    if num_classes < 2:
        raise ValueError(
            f"num_classes={num_classes} leaves no class beside the background; give at least 2"
        )
    try:
        return DETECTORS[name](num_classes=num_classes, **arguments)
    except TypeError as error:
        raise ValueError(f"detector {name!r} refuses its arguments: {error}") from error
