"""What a network is given of an image, and where that lies on the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image
from timm.data import resolve_data_config
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import get_image_size
from torchvision.transforms.functional import resize as resize_tensor

from convattn.data import ImageSource, read_image, transform_of
from convattn.data.bands import read_bands
from convattn.data.reading import MAX_PIXELS
from convattn.data.transforms import EvalTransform

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


def preprocess(
    image: Image.Image | Tensor, cfg: Mapping[str, Any], view: View = "auto"
) -> Preprocessed:
    """What a network is given of an image.

    ``"crop"`` is the transform that the network is tested with, to the bit. ``"whole"`` is the
    same without its crop: all of the image, at the scale that the network was trained for, so
    of another size than ``input_size``. ``"auto"`` is the crop, except of an image at least twice
    as long as wide or wide as long, of which a square crop hides more than half; networks with
    ``fixed_input_size`` are always given the crop.

    Args:
        image: In RGB, as ``read_image`` gives it; converted for networks of one channel. For one of
            other channels bytes (C, H, W), as ``read_bands`` gives them.
        cfg: The network's ``pretrained_cfg``; what it lacks is timm's default.

    Raises:
        ValueError: If there is no such view, the network takes other channels than the image has,
            or the image is so long and thin that the resized one would fill the memory or vanish.

    Examples:
        >>> cfg = {"input_size": (3, 64, 64), "crop_pct": 1.0}
        >>> preprocess(Image.new("RGB", (300, 100)), cfg, "crop").region
        (100.0, 0.0, 200.0, 100.0)
    """
    if view not in get_args(View):
        raise ValueError(f"view={view!r}; expected one of {', '.join(get_args(View))}")
    _check_channels(cfg, None if isinstance(image, Image.Image) else len(image))
    transform = transform_of(cfg)
    resize, crop, normalize = transform.pil.transforms
    width, height = size = tuple(get_image_size(image))
    resized = _resized_size(size, resize)
    whole = view == "whole" or (view == "auto" and _is_panorama(size, cfg))
    if whole and max(size) > _MOST_ELONGATED * min(size):
        raise ValueError(
            f"an image of {width} x {height} pixels is too long to be seen whole, at "
            f"most {_MOST_ELONGATED} times its shorter side; crop it first"
        )
    _check_resized(size, resized)
    if isinstance(image, Image.Image) and _num_channels(cfg) == 1:
        image = image.convert("L")
    if whole:
        return Preprocessed(normalize(resize(image)), (0.0, 0.0, float(width), float(height)))
    left, right = _centre_crop_region(width, resized[0], crop.size[1])
    top, bottom = _centre_crop_region(height, resized[1], crop.size[0])
    return Preprocessed(transform(image), (left, top, right, bottom))


def read_as_seen(source: ImageSource, cfg: Mapping[str, Any]) -> Image.Image | Tensor:
    """An image as ``preprocess`` wants it for a network.

    Args:
        source: As for ``read_image``; for a network of other channels than 1 or 3 the path of a
            file with as many bands.
        cfg: The network's ``pretrained_cfg``; what it lacks is timm's default.

    Returns:
        In RGB, or its bands as bytes (C, H, W).

    Raises:
        FileNotFoundError: If there is nothing at the path.
        UnreadableImageError: If it is no image, or has another number of bands.
    """
    channels = _num_channels(cfg)
    if channels in (1, 3) or not isinstance(source, str | Path) or not Path(source).is_file():
        return read_image(source)
    return read_bands(str(source), channels)


def check_elongation(image: Image.Image | Tensor, transform: EvalTransform) -> None:
    """Refuse an image so long and thin that the resized one would fill the memory or vanish.

    Args:
        image: Of PIL, or bytes (C, H, W).
        transform: Resizes it.

    Raises:
        ValueError: If it is.
    """
    width, height = size = tuple(get_image_size(image))
    # What any other is resized to is small enough.
    if max(size) > _MOST_ELONGATED * min(size):
        _check_resized((width, height), _resized_size((width, height), transform.pil.transforms[0]))


def _num_channels(cfg: Mapping[str, Any]) -> int:
    return int(resolve_data_config(pretrained_cfg=dict(cfg))["input_size"][0])


def _check_channels(cfg: Mapping[str, Any], given: int | None) -> None:
    resolved = resolve_data_config(pretrained_cfg=dict(cfg))
    channels, mean = resolved["input_size"][0], resolved["mean"]
    if given is None and channels not in (1, 3):
        raise ValueError(
            f"the network takes {channels} channels, where an image has 3, or 1 of grey; give "
            "the path of a file with as many bands"
        )
    if given is not None and given != channels:
        raise ValueError(
            f"the image has {given} bands and the network takes {channels} channels; give an image "
            "with as many"
        )
    if len(mean) != channels:
        raise ValueError(
            f"the network's configuration has input_size={tuple(resolved['input_size'])} and "
            f"mean={tuple(mean)}; expected one mean and one std a channel"
        )


def _is_panorama(size: tuple[int, int], cfg: Mapping[str, Any]) -> bool:
    return max(size) >= 2 * min(size) and not cfg.get("fixed_input_size")


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
