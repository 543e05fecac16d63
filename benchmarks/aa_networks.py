"""Attention-augmented networks beside their plain twins, squeeze-and-excitation and CBAM.

    python benchmarks/aa_networks.py [--repeats 7] [--batch-size 8]
        [--out docs/results/aa_networks.md]

The networks of a family take turns in one process: a ratio is the median over neighbouring
passes, with its quartiles. A training step is forward, backward and SGD with momentum.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch

import pages
from convattn.bench import compare, count, forward, training_step
from convattn.text import markdown_table

Family = dict[str, tuple[str, dict[str, Any]]]
"""Rows: the model and its arguments."""

FAMILIES: dict[str, tuple[int, Family]] = {
    "ResNet-50, 224 x 224": (
        224,
        {
            "resnet50": ("resnet50", {}),
            "aa_resnet50": ("aa_resnet50", {}),
            "seresnet50": ("seresnet50", {}),
            "resnet50 with CBAM": ("resnet50", {"block_args": {"attn_layer": "cbam"}}),
        },
    ),
    "Wide-ResNet-28-10, 32 x 32": (
        32,
        {
            "wide_resnet28_10": ("wide_resnet28_10", {}),
            "aa_wide_resnet28_10": ("aa_wide_resnet28_10", {}),
        },
    ),
    "MnasNet, 224 x 224": (
        224,
        {"mnasnet_100": ("mnasnet_100", {}), "aa_mnasnet_100": ("aa_mnasnet_100", {})},
    ),
}


def family_table(size: int, family: Family, batch_size: int, repeats: int) -> str:
    """A row a network; ratios to the first."""
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, size, size)
    models = {name: timm.create_model(model, **words) for name, (model, words) in family.items()}
    plain = next(iter(models))
    inference = compare(
        {name: forward(model.eval(), images) for name, model in models.items()},
        reference=plain,
        repeats=repeats,
        title="inference",
    )
    training = compare(
        {name: training_step(model, images) for name, model in models.items()},
        reference=plain,
        repeats=repeats,
        title="training",
    )
    rows = []
    for name, model in models.items():
        counts = count(model.eval(), (3, size, size))
        sizes = f"{counts.parameters / 1e6:.2f} M", f"{counts.macs / 1e9:.2f} G"
        rows.append((name, *sizes, inference.cell(name), training.cell(name)))
    return markdown_table(
        ("network", "parameters", "multiply-adds", "inference", "training step"), rows
    )


def main() -> None:
    """Measure and write."""
    pages.answer_check("aa_networks")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/results/aa_networks.md"))
    arguments = parser.parse_args()
    parts = [
        "# What attention-augmented networks cost on the CPU",
        "In float32. Each cell: the median time of a batch, and the median of its ratios to the "
        "plain network, with quartiles.",
    ]
    for title, (size, family) in FAMILIES.items():
        parts += [
            f"## {title}",
            family_table(size, family, arguments.batch_size, arguments.repeats),
        ]
        print("\n\n".join(parts[-2:]), flush=True)
    command = (
        f"python benchmarks/aa_networks.py --repeats {arguments.repeats} "
        f"--batch-size {arguments.batch_size}"
    )
    pages.publish(arguments.out, "\n\n".join(parts) + "\n", [pages.provenance(command)])


if __name__ == "__main__":
    main()
