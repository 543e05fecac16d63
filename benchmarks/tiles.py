"""Does ``predict --tile`` find what whole-picture prediction finds, and in how much memory?

    python benchmarks/tiles.py RUN [--side 96] [--tile 640] [--size 3000 4000]

RUN is a run of a detector on cluttered_digits. Generated test images of ``--side`` pixels are laid
side by side on a picture of ``--size``, whose boxes so are known. The picture is predicted whole at
its own scale, and in tiles, each in a process of its own; its peak memory is told beside recall and
precision at an IoU of 0.5.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import to_pil_image

from convattn.data.scenes import generate_scenes
from convattn.detection.prediction import detect
from convattn.runs import Run


def picture(size: tuple[int, int], side: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A mosaic of scenes, and its boxes and labels."""
    rows, columns = size[0] // side, size[1] // side
    scenes = generate_scenes(64, split="test", image_size=side)
    pixels = torch.zeros(3, *size, dtype=torch.uint8)
    boxes, labels = [], []
    for number in range(rows * columns):
        top, left = number // columns * side, number % columns * side
        scene = number % 64
        pixels[:, top : top + side, left : left + side] = scenes.images[scene]
        own, names, _ = scenes.objects(scene)
        boxes.append(own.float() + torch.tensor([left, top, left, top]))
        labels.append(names)
    return to_pil_image(pixels), torch.cat(boxes), torch.cat(labels)


def measure(options: argparse.Namespace, tile: int | None) -> dict[str, float]:
    """Recall, precision, seconds and gigabytes of one way."""
    image, boxes, labels = picture(tuple(options.size), options.side)
    model: Any = Run.open(options.run).load_model()
    if tile is None:
        model.transform.min_size, model.transform.max_size = (min(options.size),), max(options.size)
    model.detections_per_img = 10**6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    found = detect(model, image, threshold=options.threshold, tile=tile)
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    right = (box_iou(found.boxes, boxes) >= 0.5) & (found.labels[:, None] == labels)
    return {
        "objects": len(boxes),
        "found": len(found.boxes),
        "recall": right.any(0).float().mean().item(),
        "precision": right.any(1).float().mean().item() if len(found.boxes) else 0.0,
        "seconds": seconds,
        "gigabytes": (after - before) / 1e6,
    }


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--tile", type=int, default=640)
    parser.add_argument("--size", type=int, nargs=2, default=(3000, 4000))
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--way", choices=("whole", "tiles"))
    options = parser.parse_args()
    if options.way is not None:
        print(json.dumps(measure(options, options.tile if options.way == "tiles" else None)))
        return
    for way in ("tiles", "whole"):
        words = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        print(way, done.stdout.strip() or done.stderr.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
