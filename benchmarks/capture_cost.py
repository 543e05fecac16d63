"""What looking costs: a forward pass with ``capture_attention`` over one without.

    python benchmarks/capture_cost.py [--model patchconvnet_s60] [--batch 1] [--repeats 15]

Both take turns in one process, so that whatever else the machine does meets both alike. Printed
are the medians of the ratios of neighbouring passes, with their quartiles.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from convattn import AAConv2d, capture_attention
from convattn.bench import Step, compare
from convattn.explanation import attention_layers


def captured(model: nn.Module, images: Tensor, words: dict[str, Any]) -> Step:
    """A pass with the set-up and the end of capturing."""

    def step() -> None:
        with torch.inference_mode(), capture_attention(model, **words):
            model(images)

    return step


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
    ways: dict[str, dict[str, Any]] = {"all": {}}
    if any(isinstance(layer, AAConv2d) for layer in attention_layers(model).values()):
        ways |= {"queries=[(0, 0)]": {"queries": [(0, 0)]}, 'queries="mean"': {"queries": "mean"}}
    for name, words in ways.items():
        steps: dict[str, Step] = {"plain": torch.inference_mode()(partial(model, images))}
        steps[name] = captured(model, images, words)
        found = compare(steps, reference="plain", repeats=arguments.repeats, warm_up=1, title=name)
        print(
            f"{arguments.model} {arguments.batch} x {arguments.size}, {name}: "
            f"{found.ratio(name):.3f} of {found.milliseconds('plain').median:.0f} ms"
        )


if __name__ == "__main__":
    main()
