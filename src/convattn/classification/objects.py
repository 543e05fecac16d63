"""Where the objects of test images lie in what a network sees of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convattn.data import ImageFiles, TensorImages, read_image
from convattn.explanation.preprocessing import preprocess

_WHITE = 127
"""What is brighter in a mask is the object."""


def boxed_objects(images: TensorImages, cfg: Mapping[str, Any]) -> Tensor | None:
    """The pixels of each image's box, as the network sees it.

    Args:
        images: Test images.
        cfg: The network's ``pretrained_cfg``.

    Returns:
        (N, H, W) bool, a pixel being inside if its middle is; None if no boxes are known.
    """
    if images.boxes is None:
        return None
    height, width = images.images.shape[2:]
    seen = preprocess(Image.new("RGB", (width, height)), cfg, "crop")
    left, top, right, bottom = seen.region
    rows, columns = (
        low + (torch.arange(size) + 0.5) * (high - low) / size
        for size, low, high in zip(seen.pixels.shape[1:], (top, left), (bottom, right), strict=True)
    )
    xmin, ymin, xmax, ymax = images.boxes[:, :, None].unbind(1)
    across, down = (xmin <= columns) & (columns < xmax), (ymin <= rows) & (rows < ymax)
    return down[:, :, None] & across[:, None, :]


def masked_objects(images: ImageFiles, cfg: Mapping[str, Any], root: Path, folder: Path) -> Tensor:
    """The pixels of each image's mask, as the network sees it.

    Args:
        images: Test images.
        cfg: The network's ``pretrained_cfg``.
        root: Of the data set.
        folder: Holds the masks, white on the object: a PNG of an image's size where the image is
            below ``root``. An image without one shows no object.

    Returns:
        (N, H, W) bool.

    Raises:
        FileNotFoundError: If there is no mask at all.
        ValueError: If a mask has another size than its image.
    """
    found = [
        folder / Path(os.path.relpath(path, root)).with_suffix(".png") for path in images.paths
    ]
    if not any(file.is_file() for file in found):
        raise FileNotFoundError(
            f"{folder} holds no mask of the {len(found):,} test images: {found[0]} does not exist; "
            f"name the folder in which they lie as the images do in {root} (--masks)"
        )
    return torch.stack(_seen_masks(images.paths, found, cfg))


def _seen_masks(
    paths: Sequence[str], files: Sequence[Path], cfg: Mapping[str, Any]
) -> list[Tensor]:
    masks = []
    for path, file in zip(paths, files, strict=True):
        image = read_image(path)
        seen = preprocess(image, cfg, "crop")
        height, width = seen.pixels.shape[1:]
        if not file.is_file():
            masks.append(torch.zeros(height, width, dtype=torch.bool))
            continue
        mask = read_image(file).convert("L")
        if mask.size != image.size:
            raise ValueError(
                f"{file} is {mask.width} x {mask.height} pixels and its image "
                f"{image.width} x {image.height}; expected the same size"
            )
        part = mask.transform(
            (width, height), Image.Transform.EXTENT, seen.region, Image.Resampling.BILINEAR
        )
        masks.append(torch.from_numpy(np.asarray(part) > _WHITE))
    return masks
