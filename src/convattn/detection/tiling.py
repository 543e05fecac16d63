"""Objects on images larger than a detector sees at once, and on their mirror images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

Found = Mapping[str, Tensor]

_LEAST_OVERLAP = 1 / 4  # of a tile
_MOST_OVERLAP = 3 / 4
_EDGE = 2.0  # pixels; a box that ends nearer to a tile's edge is taken to go on beyond it
_COVERED = 0.6  # of a box that was cut, by which another stands for it


def detect_in_tiles(model: nn.Module, pixels: Tensor, tile: int) -> dict[str, Tensor]:
    """Find objects tile by tile, each seen at its own scale, and merge what several tiles found.

    Tiles overlap by as much as the largest object that training saw, if the model's
    ``pretrained_cfg`` tells by ``largest_object``, by a quarter at least and three quarters at
    most. A box that a tile's edge has cut gives way to one of its class that covers it.

    Args:
        model: A detector in evaluation mode; left as it is.
        pixels: (3, H, W) of 0 to 1, on the model's device.
        tile: Side of a tile in pixels.

    Returns:
        As torchvision's detectors: ``boxes``, ``labels`` and ``scores``, the surest first. Masks
        are left out: they would be as large as the image.
    """
    height, width = pixels.shape[1:]
    largest = cast(Any, model).pretrained_cfg.get("largest_object") or 0
    overlap = round(min(max(largest, tile * _LEAST_OVERLAP), tile * _MOST_OVERLAP))
    parts = []
    with _own_scale(model):
        for top, left in product(_starts(height, tile, overlap), _starts(width, tile, overlap)):
            seen = pixels[:, top : top + tile, left : left + tile]
            (found,) = model([seen])
            parts.append(_on_image(found, top, left, seen.shape[1:], (height, width)))
    boxes, labels, scores, cut = (torch.cat(list(column)) for column in zip(*parts, strict=True))
    threshold = getattr(model, "nms_thresh", 0.5)
    kept = batched_nms(boxes, scores, labels, threshold)
    kept = kept[~_covered(boxes[kept], labels[kept], cut[kept])]
    return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}


def detect_flipped(
    call: Callable[[Tensor], Found], pixels: Tensor, threshold: float
) -> dict[str, Tensor]:
    """What is found on an image and on its mirror image, of boxes that overlap the surest.

    Args:
        call: Finds boxes, labels and scores.
        pixels: (3, H, W).
        threshold: IoU from which boxes of a class are one.
    """
    own, mirrored = call(pixels), call(pixels.flip(2))
    left, top, right, bottom = mirrored["boxes"].unbind(1)
    width = pixels.shape[2]
    boxes = torch.cat([own["boxes"], torch.stack([width - right, top, width - left, bottom], 1)])
    labels, scores = (torch.cat([own[name], mirrored[name]]) for name in ("labels", "scores"))
    kept = batched_nms(boxes, scores, labels, threshold)
    return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """First pixel of each tile along a side; the last one ends with the image."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, max(1, tile - overlap)), size - tile]


def _on_image(
    found: Found, top: int, left: int, seen: torch.Size, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes of a tile on the image, labels, scores, and which the tile's edge has cut."""
    boxes = found["boxes"]
    height, width = seen
    ends = torch.stack(
        [
            (boxes[:, 0] < _EDGE) & (left > 0),
            (boxes[:, 1] < _EDGE) & (top > 0),
            (boxes[:, 2] > width - _EDGE) & (left + width < size[1]),
            (boxes[:, 3] > height - _EDGE) & (top + height < size[0]),
        ]
    )
    shifted = boxes + boxes.new_tensor([left, top, left, top])
    return shifted, found["labels"], found["scores"], ends.any(0)


def _covered(boxes: Tensor, labels: Tensor, cut: Tensor) -> Tensor:
    """Which boxes (N, 4) were cut and are covered by a larger one of their class, (N,)."""
    covered = torch.zeros_like(cut)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for place in cut.nonzero()[:, 0].tolist():
        others = (labels == labels[place]) & (areas > areas[place])
        corner = torch.maximum(boxes[place, :2], boxes[others, :2])
        sides = (torch.minimum(boxes[place, 2:], boxes[others, 2:]) - corner).clamp(min=0)
        covered[place] = bool((sides.prod(1) >= _COVERED * areas[place]).any())
    return covered


@contextmanager
def _own_scale(model: nn.Module) -> Iterator[None]:
    """Images come to the detector as they are, within the block."""
    transform = cast(Any, model).transform
    transform.resize = lambda image, target=None: (image, target)
    try:
        yield
    finally:
        del transform.resize
