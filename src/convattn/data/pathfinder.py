"""Pathfinder: are two discs the ends of one dashed path? Made offline."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convattn.data.cluttered_digits import Split, check_request, uniform
from convattn.data.images import TensorImages

DASHES: tuple[int, ...] = (6, 9, 14)
"""Dashes of either long path."""
LEAST_SIDE = 64
_PAIRS = 128  # of a positive and a negative image, drawn together: part of what a seed means
_DRAWN = 512  # images tried at a time
_STEP, _DASH = 4.0, 2.5  # pixels from dash to dash, and length of a dash
_TURN = 0.3  # radians, standard deviation from dash to dash
_MARGIN = 4.0  # pixels between paths and the edge
_CLEARANCE = 6.5  # pixels between paths; a gap in one is less than half of it
_DISC = 2.0  # radius in pixels
_ALIKE = 1.5  # pixels that the discs' distances differ by in the two images of a pair
_DISTRACTORS, _PLACES = 4, 12


def generate_pathfinder(
    num_images: int,
    *,
    split: Split = "train",
    image_size: int = 64,
    seed: int = 0,
    dashes: Sequence[int] = DASHES,
) -> TensorImages:
    """Two discs among dashed paths: class 1 ("joined") if one path joins them, else 0 ("apart").

    After Linsley et al. 2018, https://arxiv.org/abs/1805.08315. An image has two long paths of
    equally many dashes, 4 pixels from dash to dash, and up to four short ones of a third of that;
    paths keep 6.5 pixels apart, and gaps within one are 1.5. The discs are both ends of one long
    path, or an end of each; either class has the same distances between them.

    The same arguments give the same images, bit for bit; asking for more images appends to them.

    Args:
        num_images: How many, at least 1.
        split: "train" and "test" images are drawn apart.
        image_size: Side of the square images in pixels, at least 64; dashes stay as they are.
        seed: Any integer from 0.
        dashes: Of a long path, each number as frequent, from 3 to 14.

    Returns:
        ``images`` (N, 1, S, S) uint8 grey, ``labels`` (N,).

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> paths = generate_pathfinder(100, split="test", dashes=(6,))
        >>> paths.images.shape
        torch.Size([100, 1, 64, 64])
    """
    check_request(num_images, split, image_size, seed, smallest=LEAST_SIDE)
    if not dashes or not all(3 <= number <= max(DASHES) for number in dashes):
        raise ValueError(f"dashes={tuple(dashes)}; expected numbers from 3 to {max(DASHES)}")
    return _generate(num_images, split, image_size, seed, tuple(dashes))


@functools.lru_cache(maxsize=4)
def _generate(
    num_images: int, split: Split, image_size: int, seed: int, dashes: Sequence[int]
) -> TensorImages:
    each = -(-_PAIRS // len(dashes))
    images, labels = [], []
    for chunk in range(-(-num_images // (2 * each * len(dashes)))):
        # A stream of its own for each chunk, always drawn whole, as in cluttered_digits.
        rng = np.random.default_rng([seed, int(split == "test"), image_size, chunk, *dashes])
        drawn = torch.cat([_draw_pairs(each, number, image_size, rng) for number in dashes])
        label = (torch.arange(len(drawn)) // each + 1) % 2
        order = torch.from_numpy(rng.permutation(len(drawn)))
        images.append(drawn[order])
        labels.append(label[order])
    return TensorImages(torch.cat(images)[:num_images], torch.cat(labels)[:num_images])


def _draw_pairs(pairs: int, dashes: int, image_size: int, rng: np.random.Generator) -> Tensor:
    """Positive images, then as many negative ones: (2 * pairs, 1, S, S) bytes."""
    found: list[tuple[Tensor, Tensor]] = []
    while sum(len(paths) for paths, _ in found) < 2 * pairs:
        found.append(_matched(_two_paths(dashes, image_size, rng), rng))
    kept = [torch.cat([part[side] for part in _halves(found)])[:pairs] for side in range(2)]
    ends = [torch.cat([part[side] for part in _halves(found, 1)])[:pairs] for side in range(2)]
    paths, discs = torch.cat(kept), torch.cat(ends)  # (B, 2, V, 2), (B, 2, 2)
    return _paint(_with_distractors(paths, dashes, image_size, rng), discs, image_size, rng)


def _halves(found: Sequence[tuple[Tensor, Tensor]], which: int = 0) -> list[tuple[Tensor, ...]]:
    return [part[which].chunk(2) for part in found]


def _two_paths(dashes: int, image_size: int, rng: np.random.Generator) -> Tensor:
    """Images of two paths that keep clear of each other: (B, 2, V, 2) vertices, x and y."""
    paths = _walk(_DRAWN * 2, dashes, image_size, rng).view(_DRAWN, 2, -1, 2)
    return paths[_nearest(paths[:, 0], paths[:, 1]) >= _CLEARANCE]


def _walk(count: int, dashes: int, image_size: int, rng: np.random.Generator) -> Tensor:
    """Paths anywhere in the image: (count, dashes + 1, 2)."""
    turns = torch.from_numpy(rng.standard_normal((count, dashes), dtype=np.float32)) * _TURN
    heading = uniform(rng, 0, 2 * math.pi, count, 1) + turns.cumsum(1)
    steps = _STEP * torch.stack([heading.cos(), heading.sin()], 2)
    path = torch.cat([torch.zeros(count, 1, 2), steps.cumsum(1)], 1)
    low, high = path.amin(1), path.amax(1)
    room = image_size - 1 - 2 * _MARGIN - (high - low)
    corner = _MARGIN + uniform(rng, 0, 1, count, 2) * room.clamp(min=0)
    return path + (corner - low).unsqueeze(1)


def _nearest(one: Tensor, other: Tensor) -> Tensor:
    """Pixels between paths (..., V, 2), (...,)."""
    return torch.cdist(_denser(one), _denser(other)).flatten(-2).amin(-1)


def _denser(path: Tensor) -> Tensor:
    """A path's vertices and the middles between them."""
    return torch.cat([path, (path[..., 1:, :] + path[..., :-1, :]) / 2], -2)


def _matched(paths: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Images and discs: of pairs, all positive ones first, then the negative ones.

    The discs of a negative image, an end of each path, are as far apart as those of its positive
    one, the ends of its first path.
    """
    half = len(paths) // 2
    positive, negative = paths[:half], paths[half : 2 * half]
    ends = positive[:, 0, [0, -1]]  # (P, 2, 2)
    wanted = (ends[:, 0] - ends[:, 1]).norm(dim=1)
    choices = torch.stack([negative[:, 0, [0, 0, -1, -1]], negative[:, 1, [0, -1, 0, -1]]], 2)
    lengths = (choices[:, :, 0] - choices[:, :, 1]).norm(dim=2)  # (P, 4)
    off = (lengths - wanted.unsqueeze(1)).abs()
    good = off.amin(1) < _ALIKE
    crossing = choices[torch.arange(half), off.argmin(1)]
    return torch.cat([positive[good], negative[good]]), torch.cat([ends[good], crossing[good]])


def _with_distractors(
    paths: Tensor, dashes: int, image_size: int, rng: np.random.Generator
) -> list[Tensor]:
    """The long paths (B, V, 2) and short ones; one that found no place is none, of NaN."""
    count, there = len(paths), list(paths.unbind(1))
    for _ in range(_DISTRACTORS):
        short = _walk(count * _PLACES, max(1, dashes // 3), image_size, rng)
        short = short.view(count, _PLACES, -1, 2)
        free = torch.ones(count, _PLACES, dtype=torch.bool)
        for path in there:
            gap = _nearest(short, path.unsqueeze(1))
            free &= ~(gap < _CLEARANCE)  # NaN is far from everything
        chosen = short[torch.arange(count), free.int().argmax(1)]
        chosen[~free.any(1)] = math.nan
        there.append(chosen)
    return there


def _paint(
    paths: Sequence[Tensor], discs: Tensor, image_size: int, rng: np.random.Generator
) -> Tensor:
    """Dashes and discs on noise: (B, 1, S, S) bytes."""
    count = len(discs)
    along = (_STEP - _DASH) / 2 / _STEP + torch.linspace(0, _DASH / _STEP, 6)
    dashes = [
        path[:, :-1, None] + (path[:, 1:] - path[:, :-1])[:, :, None] * along[:, None]
        for path in paths
    ]
    points = torch.cat([dash.flatten(1, 2) for dash in dashes], 1)
    offsets = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    offsets = offsets[offsets.double().norm(dim=1) <= _DISC]
    filled = (discs.round().unsqueeze(2) + offsets).flatten(1, 2)
    points = torch.cat([points, filled], 1)
    absent = points.isnan().any(2)
    pixels = points.nan_to_num(0).round().long()
    index = torch.where(absent, image_size**2, pixels[:, :, 1] * image_size + pixels[:, :, 0])
    ink = torch.zeros(count, image_size**2 + 1).scatter_(1, index, 1.0)[:, :-1]
    noise = uniform(rng, 20, 60, count, image_size**2)
    colour = uniform(rng, 130, 235, count, 1)
    image = torch.where(ink > 0, colour, noise).round_().to(torch.uint8)
    return image.view(count, 1, image_size, image_size)
