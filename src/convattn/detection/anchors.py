"""Anchors, and what refers to them, with the digits that coordinates need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

ASPECT_RATIOS = (0.5, 1.0, 2.0)


class LevelAnchors(AnchorGenerator):
    """torchvision's anchors at the levels' own strides, in float32 at least.

    torchvision divides the padded image's size by the map's, which gives 61 instead of 64 for the
    13 rows of stride 64 in 800 pixels, and computes in the maps' precision: bfloat16 has no odd
    numbers above 256. Where strides divide the image and maps are float32, both are equal.

    Args:
        strides: Pixels a position of each level.
        sizes: Sides of the square anchors of each level, in pixels; each side comes in the aspect
            ratios 0.5, 1 and 2.
    """

    def __init__(self, strides: Sequence[int], sizes: Sequence[Sequence[int]]) -> None:
        super().__init__(tuple(tuple(level) for level in sizes), (ASPECT_RATIOS,) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """(N, 4) anchors of every image, level after level, row by row."""
        first = feature_maps[0]
        self.set_cell_anchors(_at_least_float32(first.dtype), first.device)
        anchors = torch.cat(
            self.grid_anchors(
                [feature_map.shape[-2:] for feature_map in feature_maps],
                [(stride, stride) for stride in self.strides],
            )
        )
        return [anchors] * len(image_list.image_sizes)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def cast_to_full_precision(module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook that hands out a head's predictions in float32 at least.

    Boxes are decoded, and losses computed, in the precision of the predictions, which under
    autocast would be half.

    Args:
        output: Tensors, or lists, tuples or dictionaries of them.
    """
    if isinstance(output, Tensor):
        return output.to(_at_least_float32(output.dtype))
    if isinstance(output, dict):
        return {name: cast_to_full_precision(module, args, part) for name, part in output.items()}
    return [cast_to_full_precision(module, args, part) for part in output]
