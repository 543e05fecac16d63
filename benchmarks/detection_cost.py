"""What detection and segmentation cost: parameters, FLOPs and memory, beside the paper's table.

    python benchmarks/detection_cost.py --memory --out docs/results/detection_cost.md

Parameters and FLOPs, two per multiply-add, are counted on the meta device: the same anywhere.
With ``--memory``, one training step (forward, backward, SGD with momentum) and one inference run on
the CPU, each in a process of its own, batch 1, one thread; what is reported is the peak resident
memory less what the interpreter with the libraries holds: weights, gradients, momentum, activations
and all else. Detections are as many as the detector allows, the most that inference can need.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pages
from convattn.bench import Step, num_threads, peak_memory
from convattn.detection import create_detector
from convattn.segmentation import create_segmenter

COCO_CLASSES = 91
SIZES = ((640, 640), (800, 1344))  # the second is 800 x 1333, padded
# Bello et al. 2019: GFLOPs and millions of parameters.
PAPER = {
    "retinanet_resnet50": (182, 33.4),
    "se_retinanet_resnet50": (183, 35.9),
    "aa_retinanet_resnet50": (182, 33.1),
    "retinanet_resnet101": (243, 52.4),
    "se_retinanet_resnet101": (243, 57.2),
    "aa_retinanet_resnet101": (245, 51.7),
}
MEASURED = {
    "aa_retinanet_resnet50": {"score_thresh": 0.0},
    "retinanet_resnet50": {"score_thresh": 0.0},
    "mask_rcnn_patchconvnet_s60": {"box_score_thresh": 0.0},
}
IMAGES = ((400, 667), (600, 1000), (800, 1333), (1200, 2000))
LARGEST_TRAINED = 800


def build(create: Callable[..., nn.Module], name: str, **arguments: Any) -> Any:
    """Without memory behind it."""
    with torch.device("meta"):
        return create(name, **arguments).eval()


def millions(model: nn.Module) -> float:
    """Parameters."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def gflops(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """What a call costs, and its result."""
    with FlopCounterMode(display=False) as counter:
        result = function(*args)
    return counter.get_total_flops() / 1e9, result


def image(height: int, width: int) -> torch.Tensor:
    """An image without memory behind it."""
    return torch.empty(1, 3, height, width, device="meta")


def retinanet_cost(name: str, num_scales: int, size: tuple[int, int]) -> tuple[float, float, float]:
    """Millions of parameters, GFLOPs of the backbone with its pyramid, GFLOPs of the head."""
    model = build(create_detector, name, num_classes=COCO_CLASSES, num_scales=num_scales)
    backbone, maps = gflops(model.backbone, image(*size))
    head, _ = gflops(model.head, list(maps.values()))
    return millions(model), backbone, head


def retinanet_table() -> list[str]:
    """The RetinaNets beside the paper's."""
    lines = [
        "| network | paper: parameters, GFLOPs | 2 anchor sides a level: parameters, GFLOPs | "
        "3 sides, torchvision's: parameters, GFLOPs | 3 sides at 800 x 1333 |",
        "|---|---|---|---|---|",
    ]
    for name, (flops, parameters) in PAPER.items():
        cells = [f"{parameters} M, {flops}"]
        for num_scales, size in ((2, SIZES[0]), (3, SIZES[0]), (3, SIZES[1])):
            count, backbone, head = retinanet_cost(name, num_scales, size)
            cells.append(f"{count:.2f} M, {backbone + head:.1f}")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def mask_rcnn_row(name: str) -> str:
    """Cost of one Mask R-CNN."""
    model = build(create_detector, name, num_classes=COCO_CLASSES)
    cells = []
    for size in SIZES:
        backbone, maps = gflops(model.backbone, image(*size))
        rpn, _ = gflops(model.rpn.head, list(maps.values()))
        cells.append(f"{backbone + rpn:.0f}")
    heads = model.roi_heads
    boxes, _ = gflops(heads.box_head, torch.empty(1000, 256, 7, 7, device="meta"))
    drawn, features = gflops(heads.mask_head, torch.empty(100, 256, 14, 14, device="meta"))
    predicted, _ = gflops(heads.mask_predictor, features)
    regions = f"{boxes:.0f} + {drawn + predicted:.0f}"
    return f"| `{name}` | {millions(model):.2f} M | {' | '.join(cells)} | {regions} |"


def upernet_row(name: str) -> str:
    """Cost of one UPerNet."""
    model = build(create_segmenter, name, num_classes=150)
    cells = [f"{gflops(model, image(*size))[0]:.0f}" for size in SIZES]
    return f"| `{name}`, 150 classes | {millions(model):.2f} M | {' | '.join(cells)} | |"


def other_table() -> list[str]:
    """What the papers give no cost for."""
    return [
        "| network | parameters | GFLOPs at 640 x 640 | at 800 x 1333 | of 1000 regions' boxes and "
        "100 masks |",
        "|---|---|---|---|---|",
        *map(mask_rcnn_row, ("mask_rcnn_patchconvnet_s60", "mask_rcnn_patchconvnet_s120")),
        upernet_row("upernet_patchconvnet_s60"),
    ]


def step_of(name: str, mode: str, height: int, width: int) -> Step:
    """What is measured: making a detector and running one step of it."""

    def step() -> None:
        torch.manual_seed(0)
        model = create_detector(
            name, num_classes=COCO_CLASSES, min_size=height, max_size=width, **MEASURED[name]
        )
        images = [torch.rand(3, height, width)]
        if mode == "inference":
            with torch.inference_mode():
                model.eval()(images)
            return
        corners = torch.rand(10, 2, 2).sort(1).values * torch.tensor([width, height])
        target = {
            "boxes": corners.flatten(1),
            "labels": torch.randint(1, COCO_CLASSES, (10,)),
            "masks": torch.randint(0, 2, (10, height, width), dtype=torch.uint8),
        }
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        sum(model(images, [target]).values()).backward()
        optimizer.step()

    return step


def gigabytes(name: str, mode: str, height: int, width: int) -> float:
    """At the step's peak, in a process of its own."""
    start = time.perf_counter()
    with num_threads(1):
        peak = peak_memory(partial(step_of, name, mode, height, width)) / 1e9
    seconds = time.perf_counter() - start
    print(f"{name} {mode} {height}x{width}: {peak:.2f} GB, {seconds:.0f} s", flush=True)
    return peak


def memory_table() -> list[str]:
    """Peaks of all networks at all sizes; takes minutes."""
    heads = [f"{height} x {width}" for height, width in IMAGES]
    lines = [f"| GB | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in MEASURED:
        for mode in ("training", "inference"):
            cells = [
                f"{gigabytes(name, mode, height, width):.2f}"
                if mode == "inference" or height <= LARGEST_TRAINED
                else ""
                for height, width in IMAGES
            ]
            lines.append(f"| `{name}`, {mode} | {' | '.join(cells)} |")
    return lines


def page(memory: bool) -> str:
    """The page in docs."""
    lines = [
        "# What detection and segmentation cost",
        "",
        "## RetinaNet",
        "",
        "Beside the table of Bello et al. 2019; 640 x 640 pixels, GFLOPs two per multiply-add, 91",
        "classes with the background.",
        "",
        *retinanet_table(),
        "",
        "torchvision's head predicts 3 anchor sides x 3 shapes a place. That gives neither of the",
        "paper's columns; 2 sides, `num_scales=2`, give both for the plain and the squeeze-excite",
        "networks, to the digit printed in parameters and within 0.4 % in GFLOPs. So the paper's",
        "head had 6 anchors a place; inferred, it does not say.",
        "",
        "Inferred of the augmented networks: 8 heads of at least 8 channels instead of 20, since",
        "attention takes 0.3 and 0.7 M parameters away (with 20 it would add 0.3 and 0.9 M); and",
        "attention on maps smaller by 2 in the stages of strides 8 and 16. Downsampled at stride 8",
        "alone, as in the classifiers, it would be 186 and 254 GFLOPs. Tables are made for 640 x",
        "640. AA-RetinaNet-101 has 0.1 M more than the paper's.",
        "",
        "## Mask R-CNN and UPerNet",
        "",
        *other_table(),
        "",
    ]
    if memory:
        lines += [
            "## Memory",
            "",
            "Peak resident memory of one training step and one inference, batch 1, float32, less",
            "what the interpreter with its libraries holds: weights, gradients, momentum,",
            "activations and all else. Detections are as many as the detector allows.",
            "",
            *memory_table(),
            "",
            "Attention is computed without a tensor of all pairs of positions, so memory grows",
            "about as the image's area does. `model.set_grad_checkpointing()` trades time for",
            "memory.",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    pages.answer_check("detection_cost")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/results/detection_cost.md"))
    args = parser.parse_args()
    flag = " --memory" if args.memory else ""
    about = pages.provenance(f"python benchmarks/detection_cost.py{flag}")
    about["machine"] += f", torchvision {torchvision.__version__}"
    pages.publish(args.out, page(args.memory), [about])


if __name__ == "__main__":
    main()
