"""Tasks of which no part of the image knows the answer: two things have to be compared."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convattn.data.cluttered_digits import Split, check_request, integers, paint, uniform
from convattn.data.images import TensorImages

DISTANCES: tuple[int, ...] = (12, 14, 17, 20, 26, 34, 42, 52)
"""Pixels between the centres of the two things."""
SHAPE_SIDE = 9
GROUP_SIDE = 11
LEAST_SIDE = 64
MOST_MARKS = 4
_CHUNK = 256  # images drawn together: part of what a seed means
_CELL = 3  # pixels of a shape's square
_PENTOMINOES = (
    ".## ##. .#.",  # F
    "### .#. .#.",  # T
    "#.. #.. ###",  # V
    "#.. ##. .##",  # W
    ".#. ### .#.",  # X
    "##. .#. .##",  # Z
    ".## .#. ##.",  # Z, mirrored
    "##. .## .#.",  # F, mirrored
)
_MARKS = (".#. ### .#.", "#.# .#. #.#")  # as much ink in each


def generate_same_different(
    num_images: int,
    *,
    split: Split = "train",
    image_size: int = 64,
    seed: int = 0,
    distances: Sequence[int] = DISTANCES,
) -> TensorImages:
    """Two shapes an image, the same or not: class 1 ("same") or 0 ("different").

    A shape is one of eight pentominoes, 9 x 9 pixels, never turned; two of different kind have as
    much ink as two of the same. Each kind is as frequent in either class and in either place, so
    that whoever sees one shape at a time, and adds up what it sees, knows nothing. Their centres
    lie one of ``distances`` apart, in a row or in a column.

    The same arguments give the same images, bit for bit; asking for more images appends to them.

    Args:
        num_images: How many, at least 1.
        split: "train" and "test" images are drawn apart.
        image_size: Side of the square images in pixels, at least 64; shapes and distances stay.
        seed: Any integer from 0.
        distances: Pixels, each as likely, from 12 to ``image_size`` - 12.

    Returns:
        ``images`` (N, 1, S, S) uint8 grey, ``labels`` (N,).

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> pairs = generate_same_different(100, split="test", distances=(40,))
        >>> pairs.images.shape
        torch.Size([100, 1, 64, 64])
    """
    _check(num_images, split, image_size, seed, distances)
    return _generate("same_different", num_images, split, image_size, seed, tuple(distances))


def generate_count(
    num_images: int,
    *,
    split: Split = "train",
    image_size: int = 64,
    seed: int = 0,
    distances: Sequence[int] = DISTANCES,
) -> TensorImages:
    """Two groups of marks an image, as many in both or not: class 1 ("equal") or 0 ("unequal").

    One group is of one to four upright crosses, the other of one to four slanted ones, each mark
    3 x 3 pixels of as much ink, in a square of 11 x 11. Every number is as frequent in either class
    and in either group, so that an average over the image cannot tell the classes by a linear
    head, though it knows both numbers. All else is as in ``generate_same_different``.

    Args:
        num_images: How many, at least 1.
        split: "train" and "test" images are drawn apart.
        image_size: Side of the square images in pixels, at least 64; marks and distances stay.
        seed: Any integer from 0.
        distances: Pixels between the groups' centres, each as likely, from 12 to ``image_size`` -
            12.

    Returns:
        ``images`` (N, 1, S, S) uint8 grey, ``labels`` (N,).

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> groups = generate_count(100, split="test")
        >>> groups.images.shape
        torch.Size([100, 1, 64, 64])
    """
    _check(num_images, split, image_size, seed, distances)
    return _generate("count", num_images, split, image_size, seed, tuple(distances))


def _check(
    num_images: int, split: Split, image_size: int, seed: int, distances: Sequence[int]
) -> None:
    check_request(num_images, split, image_size, seed, smallest=LEAST_SIDE)
    most = image_size - min(DISTANCES)
    if not distances or not all(min(DISTANCES) <= distance <= most for distance in distances):
        raise ValueError(
            f"distances={tuple(distances)}; expected pixels from {min(DISTANCES)} to {most} in "
            f"images of {image_size} x {image_size}"
        )


@functools.lru_cache(maxsize=4)
def _generate(
    task: str, num_images: int, split: Split, image_size: int, seed: int, distances: Sequence[int]
) -> TensorImages:
    draw = _two_shapes if task == "same_different" else _two_groups
    images, labels = [], []
    for chunk in range(-(-num_images // _CHUNK)):
        # A stream of its own for each chunk, always drawn whole, as in cluttered_digits.
        rng = np.random.default_rng([seed, int(split == "test"), image_size, chunk, *distances])
        label = torch.from_numpy(rng.permutation(_CHUNK) % 2)
        ink = draw(label, rng)
        distance = torch.tensor(distances)[integers(rng, len(distances), _CHUNK)]
        images.append(_paint_pair(ink, distance, image_size, rng))
        labels.append(label)
    return TensorImages(torch.cat(images)[:num_images], torch.cat(labels)[:num_images])


def _two_shapes(label: Tensor, rng: np.random.Generator) -> Tensor:
    """Two shapes an image: (B, 2, 9, 9)."""
    shapes = _bitmaps(_PENTOMINOES).repeat_interleave(_CELL, 1).repeat_interleave(_CELL, 2)
    return shapes[_pairs(label, len(shapes), rng)]


def _two_groups(label: Tensor, rng: np.random.Generator) -> Tensor:
    """A group of each kind of mark an image, in either order: (B, 2, 11, 11)."""
    count = len(label)
    numbers = 1 + _pairs(label, MOST_MARKS, rng)
    rank = uniform(rng, 0, 1, count, 2, 9).argsort(2)
    there = (rank < numbers.unsqueeze(2)).float()  # (B, 2, 9)
    kind = integers(rng, 2, count, 1).repeat(1, 2)
    kind[:, 1] = 1 - kind[:, 1]
    mark = torch.nn.functional.pad(_bitmaps(_MARKS), (0, 1, 0, 1))[kind]  # (B, 2, 4, 4)
    cells = there.view(count, 2, 3, 1, 3, 1) * mark.view(count, 2, 1, 4, 1, 4)
    return cells.reshape(count, 2, 12, 12)[:, :, :GROUP_SIDE, :GROUP_SIDE]


def _bitmaps(drawn: Sequence[str]) -> Tensor:
    """(K, 3, 3) of 0 and 1."""
    return torch.tensor([[[float(c == "#") for c in row] for row in d.split()] for d in drawn])


def _pairs(label: Tensor, kinds: int, rng: np.random.Generator) -> Tensor:
    """Two kinds an image, (B, 2), equal where the label is 1; each uniform in either class."""
    first = integers(rng, kinds, len(label))
    shift = 1 + integers(rng, kinds - 1, len(label))
    return torch.stack([first, (first + shift * (1 - label)) % kinds], 1)


def _paint_pair(ink: Tensor, distance: Tensor, image_size: int, rng: np.random.Generator) -> Tensor:
    """Lay two things on noise, a distance apart: (B, 1, S, S) bytes."""
    count, _, side, _ = ink.shape
    along = distance * (2 * integers(rng, 2, count) - 1)
    room = image_size - side
    turned = integers(rng, 2, count)
    step = torch.stack([along * turned, along * (1 - turned)], 1)
    low = (-step).clamp(min=0)
    first = low + (uniform(rng, 0, 1, count, 2) * (room - step.abs() + 1)).long()
    corners = torch.stack([first, first + step], 1)  # (B, 2, x and y)
    canvas = uniform(rng, 20, 60, count, 1, image_size, image_size)
    colour = uniform(rng, 180, 235, count, 1, 1).repeat(1, 2, 1)
    paint(canvas, ink, colour, corners[:, :, 1], corners[:, :, 0])
    return canvas.round_().to(torch.uint8)
