"""Images to try the page with, from what scikit-learn carries."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from convattn.data import generate_cluttered_digits
from convattn.data.scenes import generate_scenes

_DRAWN = 100  # digits, among which each of the ten occurs
_SCENE_SIDE = 96
_PHOTOGRAPHS = ("a temple roof", "a flower")


@dataclass(frozen=True)
class Sample:
    """An image to try."""

    label: str
    """What it shows."""
    file: bytes
    """The image, as PNG."""


@cache
def digits() -> tuple[Sample, ...]:
    """One cluttered digit of each class, of the test images."""
    drawn = generate_cluttered_digits(_DRAWN, split="test")
    labels = drawn.labels.tolist()
    return tuple(
        Sample(f"a {digit}", _png(drawn.images[labels.index(digit)].permute(1, 2, 0).numpy()))
        for digit in range(10)
    )


@cache
def scenes() -> tuple[Sample, ...]:
    """Test images of digits in clutter."""
    drawn = generate_scenes(10, split="test", image_size=_SCENE_SIDE)
    return tuple(
        Sample("a scene", _png(pixels.permute(1, 2, 0).numpy())) for pixels in drawn.images
    )


@cache
def photographs() -> tuple[Sample, ...]:
    """Scikit-learn's two photographs."""
    images = load_sample_images().images
    return tuple(
        Sample(label, _png(pixels)) for label, pixels in zip(_PHOTOGRAPHS, images, strict=True)
    )


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
