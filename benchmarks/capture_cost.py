"""What looking costs: a forward pass with ``capture_attention`` over one without.

    python benchmarks/capture_cost.py [--model patchconvnet_s60] [--batch 1] [--repeats 15]

Both take turns in one process, so that whatever else the machine does meets both alike. Printed
are the medians of the ratios of neighbouring passes, with their quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext

import timm
import torch

from convattn import AAConv2d, capture_attention
from convattn.explanation import attention_layers


def seconds(model, images, context) -> float:
    """One pass inside a context, its set-up and end included."""
    start = time.perf_counter()
    with torch.inference_mode(), context:
        model(images)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="patchconvnet_s60")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(arguments.model).eval()
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    ways = {"all": {}}
    if any(isinstance(layer, AAConv2d) for layer in attention_layers(model).values()):
        ways |= {"queries=[(0, 0)]": {"queries": [(0, 0)]}, 'queries="mean"': {"queries": "mean"}}
    for name, words in ways.items():
        ratios, plain = [], []
        for turn in range(arguments.repeats + 1):
            without = seconds(model, images, nullcontext())
            ratio = seconds(model, images, capture_attention(model, **words)) / without
            if turn:  # the first pass only warms up
                ratios.append(ratio)
                plain.append(without)
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{arguments.model} {arguments.batch} x {arguments.size}, {name}: "
            f"{middle:.3f} ({low:.3f} to {high:.3f}) of {1e3 * statistics.median(plain):.0f} ms"
        )


if __name__ == "__main__":
    main()
