"""Exported networks in onnxruntime beside PyTorch.

    python benchmarks/export_latency.py [--repeats 15] [--networks NAME ...] [--out FILE]

The ways to run a network take turns in one process: a ratio is the median over neighbouring
passes, with its quartiles. Weights are random, which changes no time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import timm
import torch
import torchvision
from torch import nn

import convattn
import pages
from convattn.bench import Step, compare, forward
from convattn.export import Exported, export_onnx
from convattn.text import markdown_table

BATCH_SIZES = (1, 8)
SIZE = 224


def augmented_resnet50() -> nn.Module:
    """torchvision's, with attention in its last three stages and in place of its pool."""
    model = torchvision.models.resnet50()
    return convattn.augment(model, pool="attention", conv="last-3-stages")


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "aa_resnet50": lambda: timm.create_model("aa_resnet50"),
    "patchconvnet_s60": lambda: timm.create_model("patchconvnet_s60"),
    "torchvision's resnet50, augmented": augmented_resnet50,
}


def in_onnxruntime(file: Path, images: torch.Tensor) -> Step:
    """A pass of the file, on as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = {"images": images.numpy()}
    return lambda: session.run(None, inputs)


def row(name: str, model: nn.Module, exported: Exported, repeats: int) -> tuple[str, ...]:
    """Size, agreement and times of a network."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    worst = max(check.differences["logits"] for check in exported.checks)
    cells: list[str] = []
    for batch_size in BATCH_SIZES:
        images = torch.randn(batch_size, 3, SIZE, SIZE)
        steps = {
            "PyTorch": forward(model, images),
            "optimised": forward(convattn.optimize_for_inference(model), images),
            "onnxruntime": in_onnxruntime(exported.file, images),
        }
        found = compare(steps, reference="PyTorch", repeats=repeats, title=name)
        cells += map(found.cell, steps)
    return name, f"{exported.size / 1e6:.1f} MB", f"{weights / 1e6:.1f} MB", f"{worst:.0e}", *cells


def main() -> None:
    """Export, measure and write."""
    pages.answer_check("export_latency")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path("docs/results/export_latency.md"))
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(arguments.networks):
            torch.manual_seed(0)
            model = NETWORKS[name]().eval()
            exported = export_onnx(model, Path(folder) / f"{number}.onnx", size=(SIZE, SIZE))
            rows.append(row(name, model, exported, arguments.repeats))
            print(*rows[-1], sep="\n  ", flush=True)
    ways = [
        f"{way}, batch {batch_size}"
        for batch_size in BATCH_SIZES
        for way in ("PyTorch", "`optimize_for_inference`", "onnxruntime")
    ]
    parts = [
        "# Exported networks in onnxruntime",
        f"In float32, {SIZE} x {SIZE}. Times: the median of a batch, and the median of its ratios "
        "to PyTorch's own pass, with quartiles. The difference is the largest of the six checks, "
        "as a share of the largest logit.",
        markdown_table(("network", "file", "weights", "difference", *ways), rows),
    ]
    about = pages.provenance(f"python benchmarks/export_latency.py --repeats {arguments.repeats}")
    about["machine"] += f", onnxruntime {onnxruntime.__version__}"
    pages.publish(arguments.out, "\n\n".join(parts) + "\n", [about])


if __name__ == "__main__":
    main()
