"""The law of pooling's digits: networks trained from scratch on digits of a known size.

``law_of_pooling.py --digits`` runs it. The digits stand among clutter; a small residual network
of timm's blocks sees images of 64 pixels on a last map of 4 x 4 or 8 x 8 cells. Everything but the
pool is the same, and no image is seen twice. A rate is chosen for each pool, size and map on
validation images (seed 0), on a grid that goes on while the best lies at its edge; the test images
are seen once a network and seed. Trainings of another length (--steps) take the same rates.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from convattn.data import TensorImages, generate_cluttered_digits
from convattn.probing.heads import make_head
from rates import best_rate, rates_beyond
from rows import append_rows, read_rows

DATA = "cluttered digits"
SHARES = (2.0, 5.0, 20.0, 50.0)
"""Per cent of the image; a digit of 1 % is 8 pixels high, as its source, and cannot be read."""
MAPS = (8, 4)
SIDE, CLASSES = 64, 10
WIDTHS = (32, 64)
SEEDS = 5
STEPS, BATCH, DECAY = 500, 64, 0.05
RATES, FACTOR, WIDEST = (2.5e-3, 5e-3, 1e-2), 2.0, 4.0
NUM_VALIDATION, NUM_TEST = 2048, 4096
RATE_COLUMNS = ("data", "object_share", "map_size", "pool", "lr", "accuracy", "seconds")
_VALIDATION_SEED = 1_000_000
_SQUARE = 0.645
"""Area of a digit's tight box over the square of its height, in the mean."""
_SPREAD, _LARGEST = 1.1, 0.9
Cell = tuple[float, int, str]


def digit_side(share: float) -> tuple[float, float]:
    """Smallest and largest height of digits that cover a share of the image, per cent."""
    side = math.sqrt(share / 100 / _SQUARE)
    return side / _SPREAD, min(side * _SPREAD, _LARGEST)


def draw(share: float, count: int, **options: Any) -> TensorImages:
    """Images of digits that cover a share of them."""
    return generate_cluttered_digits(
        count, image_size=SIDE, digit_side=digit_side(share), **options
    )


class Network(nn.Module):
    """A stem of stride 4, four residual blocks, and a head that may be told where to look.

    Args:
        pool: "avg", "avg-bn", "oracle" or a name of ``convattn.POOLS``.
        cells: Of a side of the last map, 4 or 8.
        seed: Of the head's weights.
    """

    def __init__(self, pool: str, cells: int, seed: int) -> None:
        super().__init__()
        narrow, wide = WIDTHS
        self.oracle = pool == "oracle"
        strides = {8: (1, 2), 4: (2, 2)}[cells]
        self.trunk = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, narrow, 3, 2, 1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()),
            _block(narrow, narrow, strides[0]),
            _block(narrow, narrow, 1),
            _block(narrow, wide, strides[1]),
            _block(wide, wide, 1),
        )
        own = "avg" if pool in ("avg-bn", "oracle") else pool
        self.head = make_head(own, wide, CLASSES, seed=seed, norm=pool != "avg")
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """(B, 3, S, S), and how much of each cell lies in the object (B, h, w) -> (B, K)."""
        x = self.trunk(x)
        if self.oracle:  # whose average is the one over the object
            x = x * (inside * inside[0].numel()).unsqueeze(1)
        return self.head(x)


def _block(width: int, planes: int, stride: int) -> nn.Module:
    shortcut = None
    if stride != 1 or width != planes:
        shortcut = nn.Sequential(
            nn.Conv2d(width, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
        )
    return BasicBlock(width, planes, stride, shortcut)


def shares_of_cells(boxes: Tensor, cells: int, side: int = SIDE) -> Tensor:
    """How much of each cell of a map lies in boxes: (B, h, w), of sum 1.

    Args:
        boxes: (B, 4): left, top, right, bottom in pixels.
        cells: Of a side of the map.
        side: Of the image in pixels.
    """
    edges = torch.linspace(0, side, cells + 1)
    left, top, right, bottom = boxes.float().unsqueeze(2).unbind(1)
    across = (edges[1:].minimum(right) - edges[:-1].maximum(left)).clamp(min=0)
    down = (edges[1:].minimum(bottom) - edges[:-1].maximum(top)).clamp(min=0)
    areas = down.unsqueeze(2) * across.unsqueeze(1)
    return areas / areas.sum((1, 2), keepdim=True)


def _batches(images: TensorImages, cells: int, size: int) -> Iterator[tuple[Tensor, ...]]:
    """What a network sees of some images, how much of each cell lies in their digits, labels."""
    assert images.boxes is not None
    parts = (images.images.split(size), images.boxes.split(size), images.labels.split(size))
    for pixels, boxes, labels in zip(*parts, strict=True):
        seen = ((pixels.float() / 255 - 0.5) / 0.25).to(memory_format=torch.channels_last)
        yield seen, shares_of_cells(boxes, cells), labels


def train(cell: Cell, lr: float, seed: int, steps: int = STEPS) -> Network:
    """A network from its random start.

    Args:
        cell: Share, map's size and pool.
        lr: Highest rate of Muon.
        seed: Of weights and images.
        steps: Of a batch each.
    """
    share, cells, pool = cell
    torch.manual_seed(seed)
    model = Network(pool, cells, seed)
    images = draw(share, steps * BATCH, seed=seed)
    optimizer = create_optimizer_v2(model, opt="muon", lr=lr, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    for seen, inside, labels in _batches(images, cells, BATCH):
        loss = F.cross_entropy(model(seen, inside), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def evaluate(model: Network, images: TensorImages, cells: int) -> float:
    """Share of the images whose class is found."""
    right = sum(
        int((model(seen, inside).argmax(1) == labels).sum())
        for seen, inside, labels in _batches(images, cells, 4 * BATCH)
    )
    return right / len(images.labels)


def data_of(steps: int) -> str:
    """What the table calls digits that were learned for so long."""
    return DATA if steps == STEPS else f"{DATA}, {steps:,} steps"


def place_of(cell: Cell, steps: int = STEPS) -> dict[str, str]:
    """A cell as its columns of the table."""
    share, cells, pool = cell
    return {
        "data": data_of(steps),
        "object_share": f"{share:g}",
        "map_size": str(cells),
        "pool": pool,
    }


def rates_to_try(tried: Mapping[float, float]) -> list[float]:
    """The grid, then half or twice the best while that lies at its edge."""
    return rates_beyond(tried, RATES, factor=FACTOR, widest=WIDEST)


def missing_of(rows: Sequence[Mapping[str, str]], arguments: argparse.Namespace) -> list[Cell]:
    """Cells that have not all their seeds: a map's and share's pools together."""
    asked = [
        (share, cells, pool)
        for cells in arguments.maps
        for share in arguments.shares
        for pool in arguments.pools
    ]
    return [cell for cell in asked if len(_seeds_of(rows, cell, arguments.steps)) < SEEDS]


def _seeds_of(rows: Sequence[Mapping[str, str]], cell: Cell, steps: int) -> set[int]:
    place = place_of(cell, steps).items()
    return {int(row["seed"]) for row in rows if place <= row.items()}


def make_rows(arguments: argparse.Namespace, file: Path, columns: Sequence[str]) -> None:
    """Every row that is asked for and not there yet.

    Args:
        arguments: ``maps``, ``shares``, ``pools``, ``steps`` and ``cost``.
        file: The law's table; the tried rates lie beside it.
        columns: Of the table.
    """
    rates_file, steps = file.with_name("law_of_pooling_rates.csv"), arguments.steps

    def tried(cell: Cell) -> dict[float, float]:
        place = place_of(cell).items()
        found = [row for row in read_rows(rates_file) if place <= row.items()]
        return {float(row["lr"]): float(row["accuracy"]) for row in found}

    missing = missing_of(read_rows(file), arguments)
    runs = sum(
        SEEDS - len(_seeds_of(read_rows(file), cell, steps)) + len(rates_to_try(tried(cell)))
        for cell in missing
    )
    if not missing:
        return
    seconds = _training_seconds(missing[0]) * steps / STEPS
    print(f"{data_of(steps)}: {runs} trainings or more, {seconds:.0f} s each", flush=True)
    if arguments.cost:
        return

    def learn(cell: Cell, lr: float) -> Network:
        """A rate's network of seed 0, and its row."""
        share, cells, _ = cell
        started = time.monotonic()
        model = train(cell, lr, seed=0)
        accuracy = evaluate(model, draw(share, NUM_VALIDATION, seed=_VALIDATION_SEED), cells)
        row = {**place_of(cell), "lr": f"{lr:g}", "accuracy": round(accuracy, 4)}
        row |= {"seconds": round(time.monotonic() - started, 1)}
        append_rows(rates_file, RATE_COLUMNS, [row])
        print(time.strftime("%H:%M"), *row.values(), flush=True)
        return model

    def add(cell: Cell, seed: int, model: Network | None = None) -> None:
        """Train unless it is trained, test and keep."""
        share, cells, _ = cell
        lr, started = best_rate(tried(cell)), time.monotonic()
        model = model or train(cell, lr, seed, steps)
        accuracy = evaluate(model, draw(share, NUM_TEST, split="test"), cells)
        row = {
            **place_of(cell, steps),
            "seed": seed,
            "accuracy": round(accuracy, 4),
            "lr": f"{lr:g}",
        }
        row |= {"epoch": 1, "seconds": round(time.monotonic() - started, 1)}
        append_rows(file, columns, [row])
        print(time.strftime("%H:%M"), *row.values(), flush=True)

    # A seed's images are those of all pools, and are drawn once.
    for group in dict.fromkeys(cell[:2] for cell in missing):
        own = [cell for cell in missing if cell[:2] == group]
        for cell in own:
            models = {}
            while wanted := rates_to_try(tried(cell)):
                models[wanted[0]] = learn(cell, wanted[0])
            if 0 not in _seeds_of(read_rows(file), cell, steps):
                add(cell, 0, models.get(best_rate(tried(cell))) if steps == STEPS else None)
        for seed in range(1, SEEDS):
            for cell in own:
                if seed not in _seeds_of(read_rows(file), cell, steps):
                    add(cell, seed)


def _training_seconds(cell: Cell) -> float:
    """By a short one."""
    train(cell, RATES[0], seed=0, steps=5)
    started = time.monotonic()
    train(cell, RATES[0], seed=0, steps=15)
    return (time.monotonic() - started) * STEPS / 15
