"""Does ``predict --tile`` find what whole-picture prediction finds, and in how much memory?

    python benchmarks/tiles.py RUN [--side 96] [--tile 640] [--size 3000 4000]

RUN is a run of a detector on cluttered_digits. Generated test images of ``--side`` pixels are laid
side by side on a picture of ``--size``, whose boxes so are known. The picture is predicted whole at
its own scale, and in tiles, each in a process of its own. Told are how much its memory rises at
most (Linux), recall and precision at an IoU of 0.5, and what share of the objects that are found
whole the tiles find, too. No limit is set on the number of boxes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
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


def megabytes(name: str) -> float:
    """Of this process: VmRSS now, VmHWM at the most since ``forget_peak``."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(name))
    return float(line.split()[1]) / 1e3


def forget_peak() -> None:
    """Let the peak of memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(options: argparse.Namespace, tile: int | None, found_file: Path) -> dict[str, float]:
    """Recall, precision, seconds and megabytes of one way; what it finds goes to a file."""
    image, boxes, labels = picture(tuple(options.size), options.side)
    model: Any = Run.open(options.run).load_model()
    if tile is None:
        model.transform.min_size, model.transform.max_size = (min(options.size),), max(options.size)
    model.detections_per_img = model.topk_candidates = 10**6
    forget_peak()
    before = megabytes("VmRSS")
    start = time.monotonic()
    found = detect(model, image, threshold=options.threshold, tile=tile)
    seconds = time.monotonic() - start
    peak = megabytes("VmHWM")
    right = (box_iou(found.boxes, boxes) >= 0.5) & (found.labels[:, None] == labels)
    torch.save(right.any(0), found_file)
    return {
        "objects": len(boxes),
        "found": len(found.boxes),
        "recall": right.any(0).float().mean().item(),
        "precision": right.any(1).float().mean().item() if len(found.boxes) else 0.0,
        "seconds": seconds,
        "megabytes": peak - before,
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
    parser.add_argument("--found", type=Path)
    options = parser.parse_args()
    if options.way is not None:
        tile = options.tile if options.way == "tiles" else None
        print(json.dumps(measure(options, tile, options.found)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {way: Path(folder, f"{way}.pt") for way in ("tiles", "whole")}
        for way, file in files.items():
            words = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--found", str(file)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            print(way, done.stdout.strip(), flush=True)
        tiles, whole = (torch.load(file, weights_only=True) for file in files.values())
    print(f"of {int(whole.sum())} objects found whole the tiles find {int((tiles & whole).sum())}")


if __name__ == "__main__":
    main()
