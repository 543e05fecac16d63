"""Attention-augmented networks beside their plain twins, squeeze-and-excitation and CBAM.

    python benchmarks/aa_networks.py [--repeats 7] [--batch-size 8] [--out docs/aa_networks.md]

The networks of a family take turns in one process: a ratio is the median over neighbouring
passes, with its quartiles. A training step is forward, backward and SGD with momentum.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convattn.models  # noqa: F401 registers the models
from side_by_side import Step, forward, side_by_side, table

FAMILIES = {
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


def training_step(model: nn.Module, images: torch.Tensor) -> Step:
    """With its own optimiser; the rate is too small to change anything."""
    model = model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.int64)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def family_table(size: int, family: dict, batch_size: int, repeats: int) -> str:
    """A row a network; ratios to the first."""
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, size, size)
    models = {name: timm.create_model(model, **words) for name, (model, words) in family.items()}
    plain = next(iter(models))
    inference = side_by_side(
        {name: forward(model.eval(), images) for name, model in models.items()}, repeats, plain
    )
    training = side_by_side(
        {name: training_step(model, images) for name, model in models.items()}, repeats, plain
    )
    rows = []
    for name, model in models.items():
        with FlopCounterMode(display=False) as counter:
            forward(model.eval(), images[:1])()
        params = sum(p.numel() for p in model.parameters())
        macs = counter.get_total_flops() / 2
        rows.append(
            (name, f"{params / 1e6:.2f} M", f"{macs / 1e9:.2f} G", inference[name], training[name])
        )
    return table(("network", "parameters", "multiply-adds", "inference", "training step"), rows)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/aa_networks.md"))
    arguments = parser.parse_args()
    parts = [
        "# What attention-augmented networks cost on the CPU",
        f"`python benchmarks/aa_networks.py --repeats {arguments.repeats} --batch-size "
        f"{arguments.batch_size}`, float32, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}. Each cell: the median "
        "time of a batch, and the median of its ratios to the plain network, with quartiles.",
    ]
    for title, (size, family) in FAMILIES.items():
        parts += [
            f"## {title}",
            family_table(size, family, arguments.batch_size, arguments.repeats),
        ]
        print("\n\n".join(parts[-2:]), flush=True)
    arguments.out.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
