"""What a map is measured by, one number an image, or one a threshold.

On the object: its peak, its energy, and what of it passes a threshold, as pixels and as boxes.
By the network: what fades when pixels are imputed (ROAD). By itself: whether it stays when
the image hardly moves, and whether it sums to what it explains. Deletion and insertion are in
``convattn.explanation.faithfulness``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convattn.explanation.classes import class_probabilities
from convattn.explanation.faithfulness import hottest_first
from convattn.explanation.geometry import Grid

THRESHOLDS: tuple[float, ...] = tuple(step / 20 for step in range(20))
"""Of a map's largest value."""
OVERLAPS: tuple[float, ...] = (0.3, 0.5, 0.7)
"""Of boxes, that MaxBoxAccV2 asks for."""
PERCENTILES: tuple[int, ...] = (10, 30, 50, 70, 90)
"""Shares of the pixels that ROAD keeps."""

_NOISE = 0.01  # of what is imputed, as Rong et al. have it
# Of the pixels around one, row and column: Rong et al. 2022.
_NEIGHBOURS = tuple(
    ((row, column), 1 / 6 if 0 in (row, column) else 1 / 12)
    for row in (-1, 0, 1)
    for column in (-1, 0, 1)
    if (row, column) != (0, 0)
)


def peak_in_mask(maps: Tensor, masks: Tensor, grid: Grid) -> Tensor:
    """As ``peak_in_box``, of an object by its pixels.

    Args:
        maps: (B, h, w).
        masks: The object's pixels, (B, H, W) bool; an image without any has no answer.
        grid: Where the cells lie.

    Returns:
        (B,) of 0 and 1, NaN without an object.
    """
    strongest, peak = maps.flatten(1).max(1)
    rows, columns = (
        points.floor().long().clamp(0, size - 1).to(maps.device)
        for points, size in zip((grid.rows, grid.columns), grid.image_size, strict=True)
    )
    width = maps.shape[2]
    images = torch.arange(len(maps), device=maps.device)
    hit = masks[images, rows[peak // width], columns[peak % width]] & (strongest > 0)
    return _where_objects(hit.double(), masks)


def energy_in_mask(maps: Tensor, masks: Tensor, grid: Grid) -> Tensor:
    """As ``energy_in_box``, of an object by its pixels.

    Args:
        maps: (B, h, w).
        masks: The object's pixels, (B, H, W) bool.
        grid: Where the cells lie.

    Returns:
        (B,) between 0 and 1, NaN without an object.
    """
    heat = grid.heat(maps).clamp(min=0)
    inside = (heat * masks).sum((1, 2))
    share = inside / heat.sum((1, 2)).clamp(min=torch.finfo(heat.dtype).tiny)
    return _where_objects(share.double(), masks)


def _where_objects(values: Tensor, masks: Tensor) -> Tensor:
    return values.masked_fill(~masks.flatten(1).any(1), math.nan)


def mask_overlaps(heats: Tensor, masks: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """Overlap (IoU) of an object's pixels with those where a heat map passes thresholds.

    Args:
        heats: (B, H, W); what is negative counts as 0.
        masks: The object's pixels, (B, H, W) bool.
        thresholds: Of each map's largest value, which a pixel has to exceed.

    Returns:
        (B, thresholds) float64, NaN without an object.
    """
    heats = heats.clamp(min=0)
    limits = heats.amax((1, 2), keepdim=True)
    found = []
    for threshold in thresholds:
        hot = heats > threshold * limits
        union = (hot | masks).sum((1, 2))
        found.append((hot & masks).sum((1, 2)).double() / union.clamp(min=1))
    return torch.stack([_where_objects(values, masks) for values in found], 1)


def box_overlaps(heats: Tensor, masks: Tensor, thresholds: Sequence[float] = THRESHOLDS) -> Tensor:
    """Overlap (IoU) of an object's box with the best box of what passes thresholds.

    Boxes are those of connected regions, whose pixels touch by a side or corner: of the heat
    map's, the one that overlaps most, as MaxBoxAccV2 has it, Choe et al. 2020,
    https://arxiv.org/abs/2007.04178.

    Args:
        heats: (B, H, W); what is negative counts as 0.
        masks: The object's pixels, (B, H, W) bool; its box is that of all of them.
        thresholds: Of each map's largest value, which a pixel has to exceed.

    Returns:
        (B, thresholds) float64, NaN without an object.
    """
    found = np.full((len(heats), len(thresholds)), math.nan)
    for number, (heat, mask) in enumerate(
        zip(heats.clamp(min=0).cpu().numpy(), masks.cpu().numpy(), strict=True)
    ):
        if mask.any():
            box = _box_of(mask)
            found[number] = [
                _best_overlap(heat > threshold * heat.max(), box) for threshold in thresholds
            ]
    return torch.from_numpy(found)


def _box_of(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _best_overlap(hot: NDArray[np.bool_], box: tuple[slice, slice]) -> float:
    from scipy.ndimage import find_objects, label

    regions, _ = label(hot, structure=np.ones((3, 3)))
    return max((_overlap(region, box) for region in find_objects(regions)), default=0.0)


def _overlap(one: tuple[slice, slice], other: tuple[slice, slice]) -> float:
    inside = math.prod(
        max(min(a.stop, b.stop) - max(a.start, b.start), 0) for a, b in zip(one, other, strict=True)
    )
    areas = (math.prod(side.stop - side.start for side in box) for box in (one, other))
    return inside / (sum(areas) - inside)


def road(
    model: nn.Module,
    images: Tensor,
    heats: Tensor,
    targets: Tensor,
    *,
    percentiles: Sequence[int] = PERCENTILES,
    seed: int = 0,
    noise: float = _NOISE,
) -> Tensor:
    """How much more the network needs the hottest pixels than the coldest.

    ROAD, Rong et al. 2022, https://arxiv.org/abs/2202.00449, as pytorch-grad-cam's
    ``ROADCombined``: the class's probability when the coldest pixels are imputed, less that when
    the hottest are, halved, in the mean over how many stay. An imputed pixel is the weighted mean
    of those around it, and noise: what is taken leaves no edges that would betray it.

    Args:
        model: In evaluation mode.
        images: (B, C, H, W), normalised, on the model's device.
        heats: (B, H, W).
        targets: (B,) class numbers.
        percentiles: Shares of the pixels that stay, in per cent.
        seed: Of the noise.
        noise: Its standard deviation.

    Returns:
        (B,) between -0.5 and 0.5: a true map's is large.
    """
    places = hottest_first(heats).cpu()
    count = heats[0].numel()
    scores = []
    for percentile in percentiles:
        kept = math.ceil(percentile / 100 * (count - 1))
        with_hottest, with_coldest = (
            _probabilities(model, impute(images, stays, seed=seed, noise=noise), targets)
            for stays in (places < kept, places >= count - kept)
        )
        scores.append((with_hottest - with_coldest) / 2)
    return torch.stack(scores).mean(0)


def _probabilities(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        shares = class_probabilities(model, model(images))
    return shares.gather(1, targets[:, None])[:, 0].double()


def impute(images: Tensor, stays: Tensor, *, seed: int = 0, noise: float = _NOISE) -> Tensor:
    """Images in which pixels are the weighted means of those around them, and noise.

    Args:
        images: (B, C, H, W).
        stays: Which pixels are as they were, (B, H, W) bool, at least one an image.
        seed: Of the noise.
        noise: Its standard deviation.

    Returns:
        (B, C, H, W).
    """
    generator = torch.Generator().manual_seed(seed)
    filled = images.clone()
    for image, known in zip(filled, stays.flatten(1).cpu().numpy(), strict=True):
        pixels = image.flatten(1).cpu().double().numpy().T  # (H * W, C)
        found = torch.from_numpy(_solve(pixels, known, tuple(image.shape[1:])))
        found += noise * torch.randn(found.shape, generator=generator)
        gone = torch.from_numpy(~known).to(image.device)
        image.view(len(image), -1)[:, gone] = found.T.to(image)
    return filled


def _solve(
    pixels: NDArray[np.float64], known: NDArray[np.bool_], size: tuple[int, ...]
) -> NDArray[np.float64]:
    """The unknown pixels, (unknown, C), each the weighted mean of those around it."""
    from scipy.sparse.linalg import splu

    rows = _differences(*size)[~known]
    factors = splu(
        rows[:, ~known].tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}
    )
    found: NDArray[np.float64] = factors.solve(-(rows[:, known] @ pixels[known]))
    return found


@cache
def _differences(height: int, width: int) -> Any:
    """Each pixel less the weighted mean of those around it, as a sparse matrix of all pixels."""
    from scipy.sparse import coo_matrix

    numbers = np.arange(height * width).reshape(height, width)
    entries = []
    for (down, right), weight in _NEIGHBOURS:
        own = numbers[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
        other = numbers[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
        entries.append((own.ravel(), other.ravel(), -weight))
        entries.append((own.ravel(), own.ravel(), weight))
    at, of = (np.concatenate([entry[axis] for entry in entries]) for axis in (0, 1))
    values = np.concatenate([np.full(len(own), weight) for own, _, weight in entries])
    return coo_matrix((values, (at, of)), shape=(numbers.size, numbers.size)).tocsr()


def max_sensitivity(
    look: Callable[[Tensor], Tensor], images: Tensor, maps: Tensor, moves: Iterable[Tensor]
) -> Tensor:
    """By how much a map changes, of its own size, when the image hardly does.

    Yeh et al. 2019, https://arxiv.org/abs/1901.09392, as captum's ``sensitivity_max``: the largest
    of some draws.

    Args:
        look: Images (B, C, H, W) -> maps (B, h, w).
        images: (B, C, H, W), normalised.
        maps: What it gives of them.
        moves: What is added to the images, (B, C, H, W) each; at least one.

    Returns:
        (B,) float64, from 0: 0 for a map that stays.
    """
    norms = maps.flatten(1).double().norm(dim=1)
    norms = torch.where(norms == 0, 1.0, norms)
    changes = [
        (look(images + move) - maps).flatten(1).double().norm(dim=1) / norms for move in moves
    ]
    return torch.stack(changes).amax(0)


def small_moves(images: Tensor, num_samples: int, radius: float, seed: int) -> Iterator[Tensor]:
    """Uniform draws that move no value of the images further than a radius.

    Args:
        images: (B, C, H, W).
        num_samples: Draws.
        radius: In units of the normalised image.
        seed: Of the draws.

    Yields:
        (B, C, H, W).
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_samples):
        yield radius * (2 * torch.rand(images.shape, generator=generator) - 1).to(images)


def sum_error(maps: Tensor, rest: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """How far a map's sum is from the logit that it claims to part.

    Args:
        maps: (B, h, w).
        rest: What of the logit no place has, (B,).
        logits: (B, classes).
        targets: (B,) class numbers.

    Returns:
        (B,) float64: of the largest of the image's logits.
    """
    wanted = logits.gather(1, targets[:, None])[:, 0].double()
    found = maps.double().sum((1, 2)) + rest.double()
    return (found - wanted).abs() / logits.double().abs().amax(1).clamp(min=1e-12)
