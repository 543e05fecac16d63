"""Does what explains a detector's box lie in the box, and is that more than chance?

    python benchmarks/energy_in_boxes.py RUN --out FILE.csv [--images 200]

RUN is a run of a detector on cluttered_digits with attention convolutions in its backbone. Of every
test image the surest box counts that overlaps an object of its class by an IoU of 0.5. Measured is
the share of the heat that lies in the box: of HiResCAM; and of the attention of every layer from
the middle of the box. What they are compared with, box by box:

- ``uniform``: the box's share of the image, which heat drawn at random has on average;
- ``centre``: a bell round the middle of the image, its deviation a quarter of the side;
- of each map its own shape without this image: HiResCAM of the next image's box, and the attention
  from the same point on the next image.

Rows are means over images with 95 % bootstrap intervals, of the shares and of the differences.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import to_pil_image

from convattn.data.scenes import generate_scenes
from convattn.detection.explanation import attention_of_point, explain_boxes
from convattn.explanation import attention_layers
from convattn.explanation.dense import DenseExplanation
from convattn.explanation.truth.intervals import interval
from convattn.runs import Run

Boxes = list[tuple[Any, DenseExplanation]]


def right_boxes(model: Any, count: int) -> Iterator[tuple[Any, DenseExplanation]]:
    """Test images and their surest boxes, explained, where these are right."""
    names = model.pretrained_cfg["label_names"]
    side = model.pretrained_cfg["image_size"]
    scenes = generate_scenes(count, split="test", image_size=side)
    for number in range(count):
        image = to_pil_image(scenes.images[number])
        boxes, labels, _ = scenes.objects(number)
        try:
            (found,) = explain_boxes(model, image)
        except ValueError:  # it finds none
            continue
        label = names.index(found.name) + 1
        overlaps = box_iou(torch.tensor([found.box]), boxes[labels == label].float())
        if (overlaps >= 0.5).any():
            yield image, found


def middle(box: tuple[float, ...]) -> tuple[float, float]:
    """Row and column of a box's middle."""
    return (box[1] + box[3]) / 2, (box[0] + box[2]) / 2


def bell(found: DenseExplanation) -> DenseExplanation:
    """Heat round the middle of the image."""
    rows, columns = (
        np.exp(-((np.arange(side) + 0.5 - side / 2) ** 2) / (2 * (side / 4) ** 2))
        for side in found.heat.shape
    )
    heat = torch.from_numpy(rows[:, None] * columns[None])
    return DenseExplanation.of(found.image, heat, method="centre")


def measure(model: Any, boxes: Boxes) -> dict[str, list[float]]:
    """Name of each way -> the share in each box."""
    shares: dict[str, list[float]] = {}
    layers = list(attention_layers(model))
    for place, (image, found) in enumerate(boxes):
        other, of_other = boxes[(place + 1) % len(boxes)]
        box = found.box
        assert box is not None
        uniform = DenseExplanation.of(image, torch.ones(found.heat.shape), method="uniform")
        ways = {"HiResCAM": found, "HiResCAM of the next image": of_other}
        for layer in layers:
            name = f"attention of {layer.split('.model.')[-1]}"
            ways[name] = attention_of_point(model, image, middle(box), layer=layer)
            elsewhere = attention_of_point(model, other, middle(box), layer=layer)
            ways[f"{name} on the next image"] = elsewhere
        for name, one in {**ways, "uniform": uniform, "centre": bell(found)}.items():
            shares.setdefault(name, []).append(one.share_inside(box))
    return shares


def rows(shares: dict[str, list[float]]) -> Iterator[tuple[object, ...]]:
    """Each way's share, and how much it is above what it is compared with."""
    columns = {name: torch.tensor(values) for name, values in shares.items()}
    for name, values in columns.items():
        others: list[str] = []
        if name.startswith(("HiRes", "attention")) and "next image" not in name:
            own = (one for one in columns if one.startswith(f"{name} o") and "next" in one)
            others = ["uniform", "centre", *own]
        for other in (None, *others):
            found = interval(values if other is None else values - columns[other])
            assert found is not None
            above = "" if other is None else other
            numbers = (f"{one:.4f}" for one in (found.value, found.low, found.high))
            yield (name, above, *numbers, found.num_images)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    model = Run.open(options.run).load_model()
    table: list[tuple[object, ...]] = [("map", "above", "share", "low", "high", "boxes")]
    table += rows(measure(model, list(right_boxes(model, options.images))))
    with options.out.open("w", newline="") as opened:
        csv.writer(opened, lineterminator="\n").writerows(table)
    for row in table:
        print("  ".join(map(str, row)))


if __name__ == "__main__":
    main()
