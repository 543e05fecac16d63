"""Cluttered scenes: several digits an image, for detection and segmentation, made offline."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convattn.data.cluttered_digits import (
    FRAGMENT_SIDE,
    MAX_TURN,
    Material,
    Split,
    check_request,
    contrasting_colour,
    crop_photographs,
    integers,
    load_material,
    mask_boxes,
    mean_under,
    paint,
    patch_side,
    place_boxes,
    render,
    uniform,
)

MAX_DIGITS = 5
"""No scene holds more whole digits."""

SCENES_MEAN = (0.401, 0.413, 0.384)
"""Mean of each channel, in 0..1."""
SCENES_STD = (0.255, 0.205, 0.211)
"""Standard deviation of each channel, in 0..1."""

_CHUNK = 128  # images drawn together: bounds the memory, and part of what a seed means
_EMPTY_SHARE = 0.05  # of the images have no digit
_FRAGMENTS = (2, 5)  # fewest and most in an image
_NUM_PLACES = 32  # draws of a place for a digit or fragment before it is left out
_DIGIT_SIDE = (18 / 96, 28 / 96)  # of the image's side
_TEST_SEED = 0
_SALT = 1  # keeps the random numbers apart from those of cluttered_digits


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Images with up to five digits each. A digit's label is its value + 1; 0 is no digit."""

    images: Tensor
    """(N, 3, S, S) uint8 RGB."""
    labels: Tensor
    """(N, 5) int64, 1 to 10; behind an image's last digit 0."""
    boxes: Tensor
    """(N, 5, 4) int64: xmin, ymin, xmax, ymax, the maxima one past the stroke; else 0."""
    instances: Tensor
    """(N, S, S) uint8: 1 where the image's first digit is, 2 for its second, ... and 0."""

    def __len__(self) -> int:
        return len(self.images)

    def objects(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (n, 4), labels (n,) and masks (n, S, S) bool of one image's n digits."""
        labels = self.labels[index]
        count = int(labels.count_nonzero())
        numbers = torch.arange(1, count + 1, dtype=torch.uint8)
        masks = self.instances[index] == numbers.view(-1, 1, 1)
        return self.boxes[index, :count], labels[:count], masks

    def semantic(self, index: int) -> Tensor:
        """The label of every pixel of one image, (S, S) int64, 0 where no digit is."""
        label_of = torch.cat([torch.zeros(1, dtype=torch.int64), self.labels[index]])
        return label_of[self.instances[index].long()]


def generate_scenes(
    num_images: int, *, split: Split = "train", image_size: int = 96, seed: int = 0
) -> Scenes:
    """Up to five handwritten digits an image, on a photograph, among fragments of other digits.

    Made of the same digits and photographs as ``cluttered_digits``, and like there splits share
    nothing. One image in twenty has no digit, the others one to five; each is 18 to 28 pixels
    high in an image of 96, turned by up to 15 degrees, in a colour of its own that is lighter or
    darker than what lies behind it. Two to five fragments, each a sixth to a third of a digit's
    square, are coloured alike. Digits and fragments keep clear of each other and lie within the
    image; the rare one for which no free place is found is left out.

    The same arguments give the same images, bit for bit; asking for more images appends to
    them. The last four sets asked for are kept in memory and *shared*: clone before writing.

    Args:
        num_images: How many, at least 1.
        image_size: Side of the square images in pixels, at least 48; everything scales with it.
        seed: Any integer from 0.

    Returns:
        The images; a digit's pixels are those at least half covered by its stroke, and its box
        is tight around them.

    Raises:
        ValueError: If an argument is out of its range.
        ModuleNotFoundError: If scikit-learn, of the ``train`` extra, is not installed.

    Examples:
        >>> scenes = generate_scenes(10, split="test")
        >>> boxes, labels, masks = scenes.objects(0)
        >>> scenes.images.shape, len(boxes) == len(labels) == len(masks)
        (torch.Size([10, 3, 96, 96]), True)
    """
    check_request(num_images, split, image_size, seed, smallest=48)
    return _generate(num_images, split, image_size, seed)


@functools.lru_cache(maxsize=4)
def _generate(num_images: int, split: Split, image_size: int, seed: int) -> Scenes:
    material = load_material(split, image_size)
    scenes = Scenes(
        images=torch.empty(num_images, 3, image_size, image_size, dtype=torch.uint8),
        labels=torch.empty(num_images, MAX_DIGITS, dtype=torch.int64),
        boxes=torch.empty(num_images, MAX_DIGITS, 4, dtype=torch.int64),
        instances=torch.empty(num_images, image_size, image_size, dtype=torch.uint8),
    )
    for chunk, start in enumerate(range(0, num_images, _CHUNK)):
        # A stream of its own for each chunk, always drawn whole, as in cluttered_digits.
        rng = np.random.default_rng([seed, int(split == "test"), image_size, chunk, _SALT])
        drawn = _draw_chunk(material, image_size, rng)
        part = slice(start, min(start + _CHUNK, num_images))
        for name, piece in vars(drawn).items():
            getattr(scenes, name)[part] = piece[: part.stop - start]
    return scenes


def _draw_chunk(material: Material, image_size: int, rng: np.random.Generator) -> Scenes:
    """``_CHUNK`` images."""
    canvas = crop_photographs(material.photographs, _CHUNK, image_size, rng)
    source = integers(rng, len(material.digits), _CHUNK, MAX_DIGITS)
    ink = torch.cat(
        [
            _draw_digits(material.digits[source.flatten()], image_size, rng),
            _draw_fragments(material, image_size, rng),
        ],
        1,
    )  # (B, K, P, P)
    placed, corner = _place(ink, _draw_wanted(rng), image_size, rng)
    left, top = corner.unbind(2)
    colours = [
        contrasting_colour(mean_under(canvas, *one), rng)
        for one in zip(ink.split(1, 1), top.split(1, 1), left.split(1, 1), strict=True)
    ]
    ink *= placed[:, :, None, None]
    paint(canvas, ink, torch.stack(colours, 1), top, left)

    # Those left out move behind the others, so that the digits are numbered without gaps.
    order = placed[:, :MAX_DIGITS].int().argsort(dim=1, descending=True, stable=True)
    row = torch.arange(_CHUNK).unsqueeze(1)
    stroke, corner, placed = ink[row, order] >= 0.5, corner[row, order], placed[row, order]
    boxes = mask_boxes(stroke.flatten(0, 1)).view(_CHUNK, MAX_DIGITS, 4) + corner.repeat(1, 1, 2)
    instances = torch.zeros(_CHUNK, 1, image_size, image_size)
    numbers = torch.arange(1.0, MAX_DIGITS + 1).view(1, -1, 1).expand(_CHUNK, -1, 1)
    paint(instances, stroke.float(), numbers, corner[:, :, 1], corner[:, :, 0])
    return Scenes(
        images=canvas.round_().to(torch.uint8),
        labels=(material.digit_labels[source[row, order]] + 1) * placed,
        boxes=boxes * placed.unsqueeze(2),
        instances=instances[:, 0].to(torch.uint8),
    )


def _draw_digits(digits: Tensor, image_size: int, rng: np.random.Generator) -> Tensor:
    """Ink of the whole digits, (B, 5, P, P)."""
    side = uniform(rng, *_DIGIT_SIDE, len(digits)) * image_size
    turn = uniform(rng, -MAX_TURN, MAX_TURN, len(digits))
    ink = render(digits, side, turn, torch.zeros(len(digits), 2), _patch(image_size))
    return ink.unflatten(0, (_CHUNK, MAX_DIGITS))


def _draw_fragments(material: Material, image_size: int, rng: np.random.Generator) -> Tensor:
    """Ink of the fragments, (B, 5, P, P), each around a point of the stroke of its digit."""
    shape = _CHUNK, _FRAGMENTS[1]
    count = shape[0] * shape[1]
    source = integers(rng, len(material.digits), count)
    cell = (uniform(rng, 0, 1, count, 64) * material.ink_cells[source]).argmax(1)
    centre = torch.stack([cell % 8, cell // 8], 1).add(0.5).div(4).sub(1)
    window = uniform(rng, *FRAGMENT_SIDE, count, 2)
    side = uniform(rng, *_DIGIT_SIDE, count) * image_size
    turn = uniform(rng, -MAX_TURN, MAX_TURN, count)
    ink = render(material.digits[source], side, turn, centre, _patch(image_size), window)
    return ink.unflatten(0, shape)


def _patch(image_size: int) -> int:
    return patch_side(_DIGIT_SIDE[1] * image_size)


def _draw_wanted(rng: np.random.Generator) -> Tensor:
    """Which digits and fragments each image is to have, (B, 5 + 5) bool."""
    digits = 1 + integers(rng, MAX_DIGITS, _CHUNK)
    digits *= uniform(rng, 0, 1, _CHUNK) >= _EMPTY_SHARE
    fragments = _FRAGMENTS[0] + integers(rng, _FRAGMENTS[1] - _FRAGMENTS[0] + 1, _CHUNK)
    return torch.cat(
        [
            torch.arange(most) < count.unsqueeze(1)
            for most, count in ((MAX_DIGITS, digits), (_FRAGMENTS[1], fragments))
        ],
        1,
    )


def _place(
    ink: Tensor, wanted: Tensor, image_size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Whether each patch has a place, (B, K) bool, and its corner there, (B, K, 2) as x, y.

    What is kept apart is all that has ink, the soft rim too.
    """
    inked = mask_boxes(ink.flatten(0, 1) > 0).view(*wanted.shape, 1, 4)
    low, high = inked.split(2, 3)
    room = image_size - (high - low) + 1
    places = (uniform(rng, 0, 1, *wanted.shape, _NUM_PLACES, 2) * room).long()
    boxes = torch.cat([places, places + high - low], 3)
    # An empty box at the origin is in nobody's way.
    boxes *= wanted[:, :, None, None]
    placed, chosen = place_boxes(boxes, boxes.new_zeros(len(boxes), 0, 4))
    return placed & wanted, chosen[:, :, :2] - low[:, :, 0]


def draw_scenes(
    image_size: int | None, num_train: int | None, num_test: int | None, seed: int
) -> tuple[Scenes, Scenes]:
    """Training and test scenes: 4,000 and 500 of 96 x 96 unless told otherwise."""
    size = 96 if image_size is None else image_size
    train = generate_scenes(4_000 if num_train is None else num_train, image_size=size, seed=seed)
    test = generate_scenes(
        500 if num_test is None else num_test, split="test", image_size=size, seed=_TEST_SEED
    )
    return train, test


def scene_names(scenes: Scenes) -> list[str]:
    """What an error calls each image."""
    return [f"image {index}" for index in range(len(scenes))]
