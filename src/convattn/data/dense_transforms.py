"""What is done to an image together with its boxes or masks before a network sees them.

Randomness comes from torch's global generator alone: the same state before a call gives the same
floats, in whatever process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from convattn.data.masks import IGNORED

DetectionTransform = Callable[[tv_tensors.Image, dict[str, Any]], tuple[Tensor, dict[str, Any]]]
"""Takes and gives an image and its target: see ``load_detection``."""

SegmentationTransform = Callable[
    [tv_tensors.Image, tv_tensors.Mask], tuple[Tensor, tv_tensors.Mask]
]
"""Takes and gives an image and its mask: see ``load_segmentation``."""

_PER_OBJECT = ("boxes", "labels", "area", "iscrowd", "masks")
_SMALLEST = 1.0  # side in pixels of a box that is still learnt from

_Thing = TypeVar("_Thing", bound=tv_tensors.TVTensor)


def detection_train_transform(
    *,
    image_size: int | None = None,
    max_size: int | None = None,
    scale_jitter: tuple[float, float] | None = None,
    crop_size: tuple[int, int] | None = None,
    hflip: float = 0.5,
    color_jitter: float = 0.0,
) -> DetectionTransform:
    """An image and its objects as a detector is trained with: resized, cropped, mirrored.

    Boxes are clipped at the crop, ``area`` shrinks with its box, and an object is dropped when its
    box falls below a pixel in width or height or nothing of its mask is left. Crowds are dropped.
    The image leaves as floats in 0..1: the detector itself normalises.

    Args:
        image_size: The shorter side in pixels after resizing; None keeps the image's own size.
        max_size: What the longer side may come to; the image then gets smaller.
        scale_jitter: Lowest and highest factor on top, drawn anew for each image.
        crop_size: Height and width of a random crop; what is smaller is padded at the right and
            below with ImageNet's mean.
        hflip: Chance of mirroring left to right.
        color_jitter: Largest relative change of brightness, contrast and saturation.

    Raises:
        ValueError: If a value is out of its range.

    Examples:
        >>> from convattn.data import load_detection
        >>> transform = detection_train_transform(scale_jitter=(0.5, 2.0), crop_size=(64, 80))
        >>> source = load_detection("cluttered_digits", num_train=8, num_test=8)
        >>> image, target = source.train.with_transform(transform)[0]
        >>> image.shape, len(target["boxes"]) == len(target["labels"])
        (torch.Size([3, 64, 80]), True)
    """
    return _DetectionTraining(
        _Geometry(image_size, max_size, scale_jitter, crop_size, hflip), _recolour(color_jitter)
    )


def detection_test_transform() -> DetectionTransform:
    """An image as a detector is tested with: floats in 0..1; the detector itself resizes.

    Examples:
        >>> image = tv_tensors.Image(torch.full((3, 4, 6), 255, dtype=torch.uint8))
        >>> image, _ = detection_test_transform()(image, {})
        >>> image.shape, float(image.max())
        (torch.Size([3, 4, 6]), 1.0)
    """
    return _detection_test


def segmentation_train_transform(
    *,
    image_size: int | None = None,
    scale_jitter: tuple[float, float] | None = None,
    crop_size: tuple[int, int] | None = None,
    hflip: float = 0.5,
    color_jitter: float = 0.0,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
) -> SegmentationTransform:
    """An image and its mask as a segmenter is trained with: resized, cropped, mirrored.

    The mask takes the nearest of its own values. The image leaves normalised.

    Args:
        image_size: The shorter side in pixels after resizing; None keeps the image's own size.
        scale_jitter: Lowest and highest factor on top, drawn anew for each image.
        crop_size: Height and width of a random crop; what is smaller is padded at the right and
            below, the image with ``mean``, the mask with 255.
        hflip: Chance of mirroring left to right.
        color_jitter: Largest relative change of brightness, contrast and saturation.
        mean: Mean of each channel, in 0..1.
        std: Standard deviation of each channel, in 0..1.

    Raises:
        ValueError: If a value is out of its range.

    Examples:
        >>> from convattn.data import load_segmentation
        >>> transform = segmentation_train_transform(scale_jitter=(0.5, 2.0), crop_size=(64, 80))
        >>> source = load_segmentation("cluttered_digits", num_train=8, num_test=8)
        >>> image, mask = source.train.with_transform(transform)[0]
        >>> image.shape, mask.shape
        (torch.Size([3, 64, 80]), torch.Size([64, 80]))
    """
    return _SegmentationTraining(
        _Geometry(image_size, None, scale_jitter, crop_size, hflip),
        _recolour(color_jitter),
        _Normalize(mean, std),
    )


def segmentation_test_transform(
    *,
    image_size: int | None = None,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
) -> SegmentationTransform:
    """An image as a segmenter is tested with: resized and normalised.

    The mask stays as it is: predictions are compared with it at its own size.

    Args:
        image_size: The shorter side in pixels after resizing; None keeps the image's own size.
        mean: Mean of each channel, in 0..1.
        std: Standard deviation of each channel, in 0..1.

    Raises:
        ValueError: If a value is out of its range.

    Examples:
        >>> image = tv_tensors.Image(torch.zeros(3, 40, 60, dtype=torch.uint8))
        >>> mask = tv_tensors.Mask(torch.zeros(40, 60, dtype=torch.int64))
        >>> image, same = segmentation_test_transform(image_size=20)(image, mask)
        >>> image.shape, same is mask
        (torch.Size([3, 20, 30]), True)
    """
    return _SegmentationTest(_Geometry(image_size), _Normalize(mean, std))


@dataclass(frozen=True)
class _DetectionTraining:
    geometry: _Geometry
    recolour: v2.Transform

    def __call__(
        self, image: tv_tensors.Image, target: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        target = _keep(target, ~target["iscrowd"])
        image = self.recolour(image)
        move = self.geometry.draw(*image.shape[-2:])
        boxes = move.pad(move(target["boxes"]), 0)
        moved = {
            **target,
            "boxes": boxes,
            "area": target["area"] * _areas(boxes) / _areas(target["boxes"]),
        }
        visible = ((boxes[:, 2:] - boxes[:, :2]) >= _SMALLEST).all(1)
        if "masks" in target:
            moved["masks"] = move.pad(move(target["masks"]), 0)
            visible &= moved["masks"].flatten(1).amax(1) > 0
        floats = move.pad(_to_floats(move(image)), IMAGENET_DEFAULT_MEAN)
        return floats.as_subclass(Tensor), _keep(moved, visible)


def _detection_test(
    image: tv_tensors.Image, target: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    return _to_floats(image).as_subclass(Tensor), target


@dataclass(frozen=True)
class _SegmentationTraining:
    geometry: _Geometry
    recolour: v2.Transform
    normalize: _Normalize

    def __call__(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask
    ) -> tuple[Tensor, tv_tensors.Mask]:
        image = self.recolour(image)
        move = self.geometry.draw(*image.shape[-2:])
        floats = move.pad(_to_floats(move(image)), self.normalize.mean)
        return self.normalize(floats), move.pad(move(mask), IGNORED)


@dataclass(frozen=True)
class _SegmentationTest:
    geometry: _Geometry
    normalize: _Normalize

    def __call__(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask
    ) -> tuple[Tensor, tv_tensors.Mask]:
        move = self.geometry.draw(*image.shape[-2:])
        return self.normalize(_to_floats(move(image))), mask


@dataclass(frozen=True)
class _Normalize:
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean={self.mean} and std={self.std}; expected three of each, std above 0"
            )

    def __call__(self, image: tv_tensors.Image) -> Tensor:
        mean, std = list(self.mean), list(self.std)
        return F.normalize(image, mean=mean, std=std).as_subclass(Tensor)


@dataclass(frozen=True)
class _Geometry:
    """How images may be moved; ``draw`` settles it for one."""

    image_size: int | None = None
    max_size: int | None = None
    scale_jitter: tuple[float, float] | None = None
    crop_size: tuple[int, int] | None = None
    hflip: float = 0.0

    def __post_init__(self) -> None:
        for name, pixels in (("image_size", self.image_size), ("max_size", self.max_size)):
            if pixels is not None and pixels < 1:
                raise ValueError(f"{name}={pixels}; expected pixels, at least 1")
        if self.crop_size is not None and min(self.crop_size) < 1:
            raise ValueError(
                f"crop_size={self.crop_size}; expected height and width in pixels, at least 1"
            )
        if self.scale_jitter is not None and not (
            0 < self.scale_jitter[0] <= self.scale_jitter[1] < math.inf
        ):
            raise ValueError(
                f"scale_jitter={self.scale_jitter}; expected the lowest and the highest factor, "
                "both above 0"
            )
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip={self.hflip}; expected a chance from 0 to 1")

    def draw(self, height: int, width: int) -> _Move:
        """What is done to one image of this size."""
        scale = 1.0 if self.image_size is None else self.image_size / min(height, width)
        if self.max_size is not None:
            scale = min(scale, self.max_size / max(height, width))
        if self.scale_jitter is not None:
            scale *= torch.empty(1).uniform_(*self.scale_jitter).item()
        size = max(1, round(height * scale)), max(1, round(width * scale))
        crop = size if self.crop_size is None else self.crop_size
        shown = min(size[0], crop[0]), min(size[1], crop[1])
        top, left = (
            int(torch.randint(whole - part + 1, ())) if whole > part else 0
            for whole, part in zip(size, shown, strict=True)
        )
        return _Move(
            size=None if size == (height, width) else size,
            window=None if shown == size else (top, left, *shown),
            flip=self.hflip > 0 and bool(torch.rand(()) < self.hflip),
            padding=(crop[0] - shown[0], crop[1] - shown[1]),
        )


@dataclass(frozen=True)
class _Move:
    """One way to resize, crop and mirror, for an image and all that lies in it."""

    size: tuple[int, int] | None
    window: tuple[int, int, int, int] | None
    """Top, left, height and width of the crop."""
    flip: bool
    padding: tuple[int, int]
    """Rows below and columns at the right."""

    def __call__(self, thing: _Thing) -> _Thing:
        if self.size is not None:
            thing = _resize(thing, self.size)
        if self.window is not None:
            thing = F.crop(thing, *self.window)
        if self.flip:
            thing = F.horizontal_flip(thing)
        return thing

    def pad(self, thing: _Thing, fill: float | tuple[float, ...]) -> _Thing:
        below, right = self.padding
        if below == right == 0:
            return thing
        return F.pad(thing, [0, 0, right, below], fill=fill)


def _resize(thing: _Thing, size: tuple[int, int]) -> _Thing:
    if not isinstance(thing, tv_tensors.Mask):
        return F.resize(thing, list(size), antialias=True)
    # torchvision's nearest takes the upper left corner of a cell, half a pixel from the image's.
    rows, columns = (
        (2 * torch.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, thing.shape[-2:], strict=True)
    )
    nearest = thing.as_subclass(Tensor).index_select(-2, rows).index_select(-1, columns)
    return tv_tensors.wrap(nearest, like=thing)


def _recolour(color_jitter: float) -> v2.Transform:
    if not 0 <= color_jitter < math.inf:
        raise ValueError(f"color_jitter={color_jitter}; expected a relative change from 0")
    if color_jitter == 0:
        return v2.Identity()
    return v2.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter)


def _to_floats(image: tv_tensors.Image) -> tv_tensors.Image:
    return F.to_dtype(image, torch.float32, scale=True)


def _areas(boxes: Tensor) -> Tensor:
    """Of boxes (N, 4): (N,)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _keep(target: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """The target of the objects where ``kept`` (N,) holds."""
    if kept.all():
        return target
    chosen = dict(target)
    for key in target.keys() & _PER_OBJECT:
        rows = target[key][kept]
        wrapped = isinstance(target[key], tv_tensors.TVTensor)
        chosen[key] = tv_tensors.wrap(rows, like=target[key]) if wrapped else rows
    return chosen
