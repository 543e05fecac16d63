"""One look at every image of a data set: its header, its pixels, and what is known of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from convattn.checks import quality
from convattn.data.reading import read_header
from convattn.data.workers import end_with_reader
from convattn.exceptions import UnreadableImageError
from convattn.modes import num_cores

_WORTH_WORKERS = 200  # images
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Look:
    """What an image showed."""

    size: tuple[int, int] | None
    """Width and height, upright; None if it is unreadable."""
    format: str = "unknown"
    """Pillow's name of the file's."""
    traits: tuple[str, ...] = ()
    """As in ``Header``; an image is grey, too, if all its pixels are."""
    fault: str | None = None
    """Why the image, or its mask, cannot be read."""
    measures: dict[str, float] = field(default_factory=dict)
    """As ``quality.measure`` gives them; nothing if they are not taken."""
    fingerprint: str | None = None
    """As ``quality.fingerprint`` gives it."""
    boxes: NDArray[np.float32] | None = None
    """(N, 4): xmin, ymin, xmax, ymax in pixels."""
    labels: NDArray[np.int64] | None = None
    """(N,): of the boxes, from 1."""
    pixels: NDArray[np.int64] | None = None
    """(256,): how many are of each class index, 255 of none."""


def look_at(images: Any, *, decode: bool, num_workers: int | None) -> Iterator[Look]:
    """Look at the images of a part, in order, with a line of progress.

    Args:
        images: A part of a source, without a transform.
        decode: Whether to read all pixels, and with them the masks; else headers alone.
        num_workers: Processes that look; None takes one a core if there is enough to look at.
    """
    if num_workers is None:
        num_workers = num_cores() if len(images) >= _WORTH_WORKERS else 0
    loader = DataLoader(
        _Looks(images, decode=decode, measured=decode and quality.is_installed()),
        batch_size=_AT_ONCE,
        num_workers=num_workers,
        worker_init_fn=end_with_reader,
        collate_fn=list,
    )
    progress = tqdm(
        total=len(images), unit=" images", desc="looking", disable=None, delay=1, leave=False
    )
    with progress:
        for looks in loader:
            yield from looks
            progress.update(len(looks))


class _Looks(Dataset[Look]):
    def __init__(self, images: Any, *, decode: bool, measured: bool) -> None:
        self.images = images
        self.decode = decode
        self.measured = measured
        self.files = files_of(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Look:
        torch.set_num_threads(1)
        try:
            return self._look(index)
        except UnreadableImageError as error:
            return Look(size=None, fault=str(error))

    def _look(self, index: int) -> Look:
        header = None if self.files is None else read_header(self.files[index])
        if not self.decode and header is not None:
            return Look(size=header.size, format=header.format, traits=header.traits)
        image, truth = as_pictured(*self.images[index])
        traits = () if header is None else header.traits
        if "grey" not in traits and _is_grey(image):
            traits = ("grey", *traits)
        is_dict = isinstance(truth, dict)
        return Look(
            size=image.size,
            format="pixels" if header is None else header.format,
            traits=traits,
            measures=quality.measure(image) if self.measured else {},
            fingerprint=quality.fingerprint(image) if self.measured else None,
            boxes=np.asarray(truth["boxes"], np.float32) if is_dict else None,
            labels=np.asarray(truth["labels"], np.int64) if is_dict else None,
            pixels=_count_pixels(truth) if _is_mask(truth) else None,
        )


def files_of(images: Any) -> Sequence[str] | None:
    """Paths of the images of a part, None if they are no files."""
    names: Sequence[str] | None = getattr(images, "paths", getattr(images, "names", None))
    return names if names and os.path.exists(names[0]) else None


def as_pictured(image: Any, truth: Any) -> tuple[Image.Image, Any]:
    """An item of a source, its image one of Pillow's, in RGB.

    Args:
        image: One of Pillow's, or bytes (C, H, W).
        truth: What is known of it.
    """
    if isinstance(image, Tensor):
        image = to_pil_image(image.as_subclass(Tensor)).convert("RGB")
    return image, truth


def _is_mask(truth: Any) -> bool:
    return isinstance(truth, Tensor) and truth.ndim == 2


def _count_pixels(mask: Tensor) -> NDArray[np.int64]:
    return np.bincount(np.asarray(mask).ravel(), minlength=256)


def _is_grey(image: Image.Image) -> bool:
    pixels = np.asarray(image)
    return bool(
        (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    )
