"""Cluttered digits: a task that needs a network to look at the right place, made offline."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convattn.data.images import TensorImages
from convattn.files import memory_size

Split = Literal["train", "test"]

_CHUNK = 256  # images drawn together: bounds the memory, and part of what a seed means
_NUM_FRAGMENTS = 6
_NUM_PLACES = 8  # draws of a place for a fragment before it is left out
DIGIT_SIDE = (18 / 64, 28 / 64)  # of the image's side
_LARGEST_DIGIT = 0.9  # a turned one still lies within the image
FRAGMENT_SIDE = (0.40, 0.58)  # of its digit's side: about a sixth to a third of the area
MAX_TURN = 0.26  # radians, 15 degrees
_CROP_SIDES = (80, 95, 113, 135, 160, 190, 226, 256)  # pixels of the photograph
_GLYPH = 32  # side that the 8 x 8 digits are enlarged to, once
_LUMINANCE = (0.299, 0.587, 0.114)


def generate_cluttered_digits(
    num_images: int,
    *,
    split: Split = "train",
    image_size: int = 64,
    seed: int = 0,
    digit_side: tuple[float, float] = DIGIT_SIDE,
) -> TensorImages:
    """One handwritten digit an image, on a photograph, among fragments of other digits.

    The digits are the 1,797 real ones (8 x 8, UCI) and the photographs the two sample images that
    scikit-learn carries. A digit, 18 to 28 pixels high in an image of 64, turned by up to 15
    degrees, stands at a random place in a random colour that is lighter or darker than what lies
    behind it. Two to five fragments, each a sixth to a third of another digit's square and in
    nearly the same colour, lie apart from it and from each other: six are drawn, and those that
    find no free place are left out. Local strokes therefore do not tell the class: the network has
    to find the one whole digit.

    Splits share nothing: of each class every fifth source digit belongs to ``test`` (355 of 1,797)
    and the others to ``train``, fragments included (the writers are the same 13 people); of each
    photograph the left half is ``train``, the right half ``test``.

    The same arguments give the same images, bit for bit; asking for more images appends to
    them. The last four sets asked for are kept in memory and *shared*: clone before writing.

    Args:
        num_images: How many, at least 1.
        image_size: Side of the square images in pixels, at least 32; everything scales with it.
        seed: Any integer from 0.
        digit_side: Smallest and largest height of a digit, of the image's side, at most 0.9.
            Fragments keep their size beside it; on large digits few find room.

    Returns:
        ``images`` (N, 3, S, S) uint8 RGB, ``labels`` (N,), ``boxes`` (N, 4): the tight box of the
        digit's stroke, ``masks`` (N, S, S): its pixels, those at least half covered by it.

    Raises:
        ValueError: If an argument is out of its range.
        ModuleNotFoundError: If scikit-learn, of the ``train`` extra, is not installed.

    Examples:
        >>> digits = generate_cluttered_digits(100, split="test")
        >>> digits.images.shape, digits.boxes.shape
        (torch.Size([100, 3, 64, 64]), torch.Size([100, 4]))
    """
    check_request(num_images, split, image_size, seed, smallest=32)
    low, high = map(float, digit_side)
    if not 0 < low <= high <= _LARGEST_DIGIT:
        raise ValueError(
            f"digit_side={digit_side}; expected two shares of the image's side, the smaller one "
            f"first, above 0 and at most {_LARGEST_DIGIT}"
        )
    return _generate(num_images, split, image_size, seed, (low, high))


def check_request(
    num_images: int, split: Split, image_size: int, seed: int, *, smallest: int
) -> None:
    """Refuse what cannot be drawn; ``smallest`` is the least side of an image in pixels."""
    if num_images < 1:
        raise ValueError(f"num_images={num_images}; expected at least 1 image")
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}; expected 'train' or 'test'")
    if image_size < smallest:
        raise ValueError(
            f"image_size={image_size} has no room for what is drawn; expected at least {smallest}"
        )
    if seed < 0:
        raise ValueError(f"seed={seed}; expected an integer from 0")
    room, need = memory_size(), 4 * num_images * image_size**2
    if need > room:
        raise ValueError(
            f"{num_images:,} images of {image_size} x {image_size} take {need / 1e9:,.0f} GB, and "
            f"this computer has {room / 1e9:,.0f} GB of memory; ask for fewer or smaller ones"
        )


@dataclass(frozen=True)
class Material:
    """What images of one split and size are made of."""

    digits: Tensor  # (D, 1, G, G) ink in 0..1, enlarged
    digit_labels: Tensor  # (D,)
    ink_cells: Tensor  # (D, 64) where the 8 x 8 original has ink
    photographs: tuple[NDArray[np.uint8], ...]  # (3, h, w), the halves at every scale, mirrored too


@functools.lru_cache(maxsize=4)
def _generate(
    num_images: int,
    split: Split,
    image_size: int,
    seed: int,
    digit_side: tuple[float, float] = DIGIT_SIDE,
) -> TensorImages:
    material = load_material(split, image_size)
    images = torch.empty(num_images, 3, image_size, image_size, dtype=torch.uint8)
    labels = torch.empty(num_images, dtype=torch.int64)
    boxes = torch.empty(num_images, 4, dtype=torch.int64)
    masks = torch.empty(num_images, image_size, image_size, dtype=torch.bool)
    for chunk, start in enumerate(range(0, num_images, _CHUNK)):
        # A stream of its own for each chunk, always drawn whole: the images do not depend on
        # how many were asked for.
        rng = np.random.default_rng([seed, int(split == "test"), image_size, chunk])
        drawn = _draw_chunk(material, image_size, rng, digit_side)
        part = slice(start, min(start + _CHUNK, num_images))
        for whole, piece in zip((images, labels, boxes, masks), drawn, strict=True):
            whole[part] = piece[: part.stop - start]
    return TensorImages(images, labels, boxes=boxes, masks=masks)


def _draw_chunk(
    material: Material, image_size: int, rng: np.random.Generator, digit_side: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, labels, boxes and masks of ``_CHUNK`` images."""
    count = _CHUNK
    canvas = crop_photographs(material.photographs, count, image_size, rng)

    source = integers(rng, len(material.digits), count)
    side = uniform(rng, *digit_side, count) * image_size
    turn = uniform(rng, -MAX_TURN, MAX_TURN, count)
    patch = patch_side(digit_side[1] * image_size)
    ink = render(material.digits[source], side, turn, torch.zeros(count, 2), patch)
    stroke = mask_boxes(ink >= 0.5)
    width, height = (stroke[:, 2:] - stroke[:, :2]).unbind(1)
    # The stroke lies within the image; its faint rim may be cut off at the edge.
    left = (uniform(rng, 0, 1, count) * (image_size - width + 1)).long() - stroke[:, 0]
    top = (uniform(rng, 0, 1, count) * (image_size - height + 1)).long() - stroke[:, 1]
    box = stroke + torch.stack([left, top, left, top], 1)
    ink, top, left = ink.unsqueeze(1), top.unsqueeze(1), left.unsqueeze(1)
    colour = contrasting_colour(mean_under(canvas, ink, top, left), rng)

    fragment = patch_side(FRAGMENT_SIDE[1] * digit_side[1] * image_size)
    _paint_fragments(canvas, material, source, side, fragment, colour, box, rng)
    paint(canvas, ink, colour.unsqueeze(1), top, left)

    mask = torch.zeros(count, 1, image_size, image_size)
    paint(mask, ink, torch.ones(count, 1, 1), top, left)
    images = canvas.round_().to(torch.uint8)
    return images, material.digit_labels[source], box, mask[:, 0] >= 0.5


def _paint_fragments(
    canvas: Tensor,
    material: Material,
    digit: Tensor,
    digit_side: Tensor,
    patch: int,
    digit_colour: Tensor,
    digit_box: Tensor,
    rng: np.random.Generator,
) -> None:
    shape = len(canvas), _NUM_FRAGMENTS
    # Any source digit but the image's own; its class is drawn without regard to the label, so
    # that the fragments say nothing about it.
    shift = 1 + integers(rng, len(material.digits) - 1, *shape)
    source = ((digit.unsqueeze(1) + shift) % len(material.digits)).flatten()
    lottery = uniform(rng, 0, 1, len(source), 64)
    cell = (lottery * material.ink_cells[source]).argmax(1)
    centre = torch.stack([cell % 8, cell // 8], 1).add(0.5).div(4).sub(1)
    window = uniform(rng, *FRAGMENT_SIDE, len(source), 2)
    side = digit_side.repeat_interleave(_NUM_FRAGMENTS)
    turn = uniform(rng, -MAX_TURN, MAX_TURN, len(source))
    ink = render(material.digits[source], side, turn, centre, patch, window)

    room = canvas.shape[-1] - patch + 1
    corners = integers(rng, room, *shape, _NUM_PLACES, 2)
    placed, corner = place_squares(corners, patch, digit_box)
    ink = ink.view(*shape, patch, patch) * placed[:, :, None, None]
    colour = digit_colour.unsqueeze(1) + uniform(rng, -20, 20, *shape, 3)
    paint(canvas, ink, colour.clamp_(0, 255), corner[:, :, 1], corner[:, :, 0])


def place_squares(corners: Tensor, side: int, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Give each square the first of its places that is free.

    Args:
        corners: Upper left corners to try, (B, K, places, 2) as x, y.
        side: Of all the squares.
        taken: A box in each image to keep clear of, (B, 4).

    Returns:
        Whether a square found a place, (B, K) bool, and its corner, (B, K, 2).
    """
    placed, chosen = place_boxes(torch.cat([corners, corners + side], 3), taken.unsqueeze(1))
    return placed, chosen[:, :, :2]


def place_boxes(boxes: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Give each of K things the first of its places that is free, the first thing first.

    Args:
        boxes: The places to try, (B, K, places, 4).
        taken: Boxes in each image to keep clear of, (B, T, 4).

    Returns:
        Whether a thing found a place, (B, K) bool, and that place, (B, K, 4).
    """
    occupied = taken  # (B, boxes so far, 4)
    placed, chosen = [], []
    for candidates in boxes.unbind(1):
        low, high = candidates.unsqueeze(2).split(2, 3)  # (B, places, 1, 2)
        other_low, other_high = occupied.unsqueeze(1).split(2, 3)
        apart = ((low >= other_high) | (high <= other_low)).any(3)
        free = apart.all(2)  # (B, places)
        first = free.int().argmax(1)
        box = candidates[torch.arange(len(candidates)), first]
        placed.append(free.any(1))
        chosen.append(box)
        # One without a place stays in the list as an empty box, which nothing touches.
        occupied = torch.cat([occupied, (box * placed[-1].unsqueeze(1)).unsqueeze(1)], 1)
    return torch.stack(placed, 1), torch.stack(chosen, 1)


def paint(canvas: Tensor, ink: Tensor, colour: Tensor, top: Tensor, left: Tensor) -> None:
    """Lay K translucent patches over each image, in place; what lies outside is cut off.

    Args:
        canvas: (B, C, S, S), changed.
        ink: How opaque each patch is, (B, K, P, P) in 0..1. No two patches of an image may both
            have ink at the same place.
        colour: (B, K, C).
        top: Row of the patch's first row, (B, K) int64, may be negative.
        left: Column of its first column, alike.
    """
    inside, index = _patch_index(canvas.shape[-1], ink.shape[-1], top, left)
    alpha = ink.flatten(2) * inside  # (B, K, P * P)
    for channel, tone in zip(canvas.flatten(2).unbind(1), colour.unbind(2), strict=True):
        change = channel.gather(1, index.flatten(1)).view(index.shape)
        change = change.neg_().add_(tone.unsqueeze(2)).mul_(alpha)
        # Adding zeros keeps the clamped indices of the pixels outside harmless.
        channel.scatter_add_(1, index.flatten(1), change.flatten(1))


def mean_under(canvas: Tensor, ink: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Mean luminance behind the ink of one patch an image (B, 1, P, P), in 0..1: (B,)."""
    inside, index = _patch_index(canvas.shape[-1], ink.shape[-1], top, left)
    weight = ink.flatten(1) * inside.flatten(1)
    mean = torch.zeros(len(canvas))
    for channel, share in zip(canvas.flatten(2).unbind(1), _LUMINANCE, strict=True):
        mean += share * (channel.gather(1, index.flatten(1)) * weight).sum(1)
    return mean / weight.sum(1) / 255


def _patch_index(size: int, patch: int, top: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the patches' pixels lie in the image, and where: both (B, K, P * P)."""
    rows = top.unsqueeze(2) + torch.arange(patch)
    columns = left.unsqueeze(2) + torch.arange(patch)
    row_in, column_in = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
    inside = row_in.unsqueeze(3) & column_in.unsqueeze(2)
    index = rows.clamp(0, size - 1).unsqueeze(3) * size + columns.clamp(0, size - 1).unsqueeze(2)
    return inside.flatten(2), index.flatten(2)


def render(
    digits: Tensor,
    side: Tensor,
    turn: Tensor,
    centre: Tensor,
    patch: int,
    window: Tensor | None = None,
) -> Tensor:
    """Draw each digit ``side`` pixels high into a patch, turned: (B, P, P) opacity.

    ``centre`` (B, 2) is the point of the digit, in -1..1, that the patch's middle shows; only what
    lies in ``window`` (B, 2), of the digit's width and height, around it is drawn.
    """
    scale = patch / side
    cos, sin = torch.cos(turn) * scale, torch.sin(turn) * scale
    theta = torch.stack(
        [torch.stack([cos, -sin, centre[:, 0]], 1), torch.stack([sin, cos, centre[:, 1]], 1)], 1
    )
    grid = F.affine_grid(theta, [len(digits), 1, patch, patch], align_corners=False)
    ink = F.grid_sample(digits, grid, align_corners=False)[:, 0]
    # Brings the blur of the enlargement back to a stroke with a soft rim.
    ink = ink.sub_(0.32).div_(0.3).clamp_(0, 1)
    if window is not None:
        near = grid.sub_(centre[:, None, None]).abs_() <= window[:, None, None]
        ink = ink * (near[..., 0] & near[..., 1])
    return ink


def patch_side(side: float) -> int:
    """Pixels that a square of ``side`` needs when turned as far as we turn."""
    return int(np.ceil(side * (np.cos(MAX_TURN) + np.sin(MAX_TURN))))


def contrasting_colour(behind: Tensor, rng: np.random.Generator) -> Tensor:
    """A random colour clearly lighter or darker than the luminance ``behind`` (B,): (B, 3).

    ``behind`` is in 0..1, the colour in 0..255.
    """
    count = len(behind)
    step = uniform(rng, 0.4, 0.6, count)
    # Where both directions have room either may be taken, else the one that has.
    lighter = torch.where(
        (behind - step > 0) & (behind + step < 1), uniform(rng, 0, 1, count) < 0.5, behind < 0.5
    )
    target = torch.where(lighter, behind + step, behind - step).unsqueeze(1)
    tint = uniform(rng, -0.25, 0.25, count, 3)
    tint = tint - (tint * torch.tensor(_LUMINANCE)).sum(1, keepdim=True)
    return (target + tint).mul_(255).clamp_(0, 255)


def crop_photographs(
    photographs: tuple[NDArray[np.uint8], ...],
    count: int,
    image_size: int,
    rng: np.random.Generator,
) -> Tensor:
    """Random crops, flips, contrast and brightness: (B, 3, S, S) in 0..255."""
    which = rng.integers(len(photographs), size=count)
    places = rng.random((count, 2))
    crops = np.empty((count, 3, image_size, image_size), dtype=np.uint8)
    # The scales and mirror images were made beforehand, so that a crop is a plain copy of a
    # window; one slice an image is faster than any index over all of them.
    for crop, photograph, place in zip(crops, which, places, strict=True):
        chosen = photographs[photograph]
        room = chosen.shape[1] - image_size + 1, chosen.shape[2] - image_size + 1
        y, x = int(place[0] * room[0]), int(place[1] * room[1])
        crop[:] = chosen[:, y : y + image_size, x : x + image_size]
    contrast = uniform(rng, 0.5, 0.9, count, 1, 1, 1)
    brightness = uniform(rng, -0.12, 0.12, count, 1, 1, 1)
    offset = 255 * (0.5 * (1 - contrast) + brightness)
    return torch.from_numpy(crops).float().mul_(contrast).add_(offset).clamp_(0, 255)


def load_material(split: Split, image_size: int) -> Material:
    """Digits and photographs of a split, for images of one size."""
    try:
        from sklearn.datasets import load_digits, load_sample_image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "cluttered_digits needs scikit-learn: pip install 'convattn[train]'", name="sklearn"
        ) from error
    values, labels = load_digits(return_X_y=True)
    chosen = split_digits(labels, split)
    small = torch.from_numpy(values[chosen]).float().div_(16).view(-1, 1, 8, 8)
    digits = F.interpolate(small, size=(_GLYPH, _GLYPH), mode="bicubic").clamp_(0, 1)
    photographs = []
    for name in ("china.jpg", "flower.jpg"):
        half = photograph_half(load_sample_image(name), split)
        whole = torch.tensor(half).permute(2, 0, 1).unsqueeze(0).float()
        for crop_side in _CROP_SIDES:
            size = [round(length * image_size / crop_side) for length in half.shape[:2]]
            scaled = F.interpolate(whole, size=size, mode="bilinear", antialias=True)
            pixels = scaled[0].round_().to(torch.uint8).numpy()
            photographs += [pixels, pixels[:, :, ::-1]]
    return Material(
        digits=digits,
        digit_labels=torch.from_numpy(labels[chosen]),
        ink_cells=(small.flatten(1) > 0.5).float(),
        photographs=tuple(photographs),
    )


def split_digits(labels: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """Indices of the source digits of a split: of each class, every fifth is for ``test``."""
    order = np.argsort(labels, kind="stable")
    rank = np.empty_like(order)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return np.flatnonzero((rank % 5 == 4) == (split == "test"))


def photograph_half(photograph: NDArray[np.uint8], split: Split) -> NDArray[np.uint8]:
    """The left half of an (H, W, 3) photograph for ``train``, the right one for ``test``."""
    middle = photograph.shape[1] // 2
    return photograph[:, :middle] if split == "train" else photograph[:, middle:]


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes (N, 4) of masks (N, H, W), each with at least one pixel: see TensorImages."""
    columns, rows = masks.any(1).int(), masks.any(2).int()  # (N, W), (N, H)
    return torch.stack(
        [
            columns.argmax(1),
            rows.argmax(1),
            columns.shape[1] - columns.flip(1).argmax(1),
            rows.shape[1] - rows.flip(1).argmax(1),
        ],
        1,
    )


def uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Floats from ``low`` to ``high``."""
    return torch.from_numpy(rng.random(shape, dtype=np.float32)) * (high - low) + low


def integers(rng: np.random.Generator, high: int, *shape: int) -> Tensor:
    """Whole numbers from 0, below ``high``."""
    return torch.from_numpy(rng.integers(high, size=shape))
