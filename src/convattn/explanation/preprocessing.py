"""What a network is given of an image, and where that lies on the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from PIL import Image
from timm.data import resolve_data_config
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize as resize_tensor

from convattn.data import transform_of
from convattn.data.reading import MAX_PIXELS

View = Literal["auto", "crop", "whole"]

_MOST_ELONGATED = 16  # times the shorter side; already 16 times the cells of a square


@dataclass(frozen=True)
class Preprocessed:
    """What a network is given of an image, and where that lies on the image.

    Attributes:
        pixels: (C, H, W), normalised.
        region: Left, top, right and bottom of what ``pixels`` covers, in pixels of the image;
            beyond its edges where the transform pads.
    """

    pixels: Tensor
    region: tuple[float, float, float, float]


def preprocess(image: Image.Image, cfg: Mapping[str, Any], view: View = "auto") -> Preprocessed:
    """What a network is given of an image.

    ``"crop"`` is the transform that the network is tested with, to the bit. ``"whole"`` is the
    same without its crop: all of the image, at the scale that the network was trained for, so
    of another size than ``input_size``. ``"auto"`` is the crop, except of an image at least twice
    as long as wide or wide as long, of which a square crop hides more than half; networks with
    ``fixed_input_size`` are always given the crop.

    Args:
        image: In RGB, as ``read_image`` gives it; converted for networks of one channel.
        cfg: The network's ``pretrained_cfg``; what it lacks is timm's default.

    Raises:
        ValueError: If there is no such view, the network takes neither grey nor RGB, or the
            image is so long and thin that the resized one would fill the memory or vanish.

    Example:
        >>> cfg = {"input_size": (3, 64, 64), "crop_pct": 1.0}
        >>> preprocess(Image.new("RGB", (300, 100)), cfg, "crop").region
        (100.0, 0.0, 200.0, 100.0)
    """
    if view not in get_args(View):
        raise ValueError(f"view={view!r}; expected one of {', '.join(get_args(View))}")
    channels = _check_channels(cfg)
    transform = transform_of(cfg)
    resize, crop, normalize = transform.pil.transforms
    resized = _resized_size(image.size, resize)
    whole = view == "whole" or (view == "auto" and _is_panorama(image, cfg))
    if whole and max(image.size) > _MOST_ELONGATED * min(image.size):
        raise ValueError(
            f"an image of {image.width} x {image.height} pixels is too long to be seen whole, at "
            f"most {_MOST_ELONGATED} times its shorter side; crop it first"
        )
    _check_resized(image.size, resized)
    if channels == 1:
        image = image.convert("L")
    if whole:
        region = (0.0, 0.0, float(image.width), float(image.height))
        return Preprocessed(normalize(resize(image)), region)
    height, width = crop.size
    left, right = _centre_crop_region(image.width, resized[0], width)
    top, bottom = _centre_crop_region(image.height, resized[1], height)
    return Preprocessed(transform(image), (left, top, right, bottom))


def _check_channels(cfg: Mapping[str, Any]) -> int:
    resolved = resolve_data_config(pretrained_cfg=dict(cfg))
    channels, mean = resolved["input_size"][0], resolved["mean"]
    if channels not in (1, 3):
        raise ValueError(
            f"the network takes {channels} channels, where an image has 3, or 1 of grey; give "
            "the network a tensor of your own"
        )
    if len(mean) != channels:
        raise ValueError(
            f"the network's configuration has input_size={tuple(resolved['input_size'])} and "
            f"mean={tuple(mean)}; expected one mean and one std a channel"
        )
    return int(channels)


def _is_panorama(image: Image.Image, cfg: Mapping[str, Any]) -> bool:
    return max(image.size) >= 2 * min(image.size) and not cfg.get("fixed_input_size")


def _resized_size(size: tuple[int, int], resize: Any) -> tuple[int, int]:
    """Width and height that ``resize``, timm's or torchvision's, gives an image of ``size``."""
    # Of a tensor without memory: so the rules stay theirs.
    probe = torch.empty(1, size[1], size[0], device="meta")
    if isinstance(resize, ResizeKeepRatio):
        height, width = resize.get_params(probe, resize.size, resize.longest)
    else:
        height, width = resize_tensor(probe, resize.size, InterpolationMode.NEAREST).shape[1:]
    return width, height


def _check_resized(size: tuple[int, int], resized: tuple[int, int]) -> None:
    # Pillow resizes the width first: between its two steps stands the new width by the old height.
    largest = resized[0] * max(resized[1], size[1])
    if min(resized) < 1 or largest > MAX_PIXELS:
        raise ValueError(
            f"an image of {size[0]} x {size[1]} pixels is too long and thin to be resized to "
            f"{resized[0]} x {resized[1]}; crop it first"
        )


def _centre_crop_region(length: int, resized: int, cropped: int) -> tuple[float, float]:
    """Where a centre crop, or padding, of a resized side starts and ends on the image's side.

    To whole resized pixels, rounded as torchvision's ``center_crop`` and timm's
    ``center_crop_or_pad`` do.
    """
    pad = (cropped - resized) // 2
    start = -pad if cropped > resized else round((resized - cropped) / 2)
    return start * length / resized, (start + cropped) * length / resized
