"""What int8 costs in accuracy on trained networks, and what it saves in time.

    python benchmarks/int8_accuracy.py RUN [RUN ...] [--repeats 15]
        [--out docs/results/int8_accuracy.md]

RUN is a folder that ``convattn train`` has made of a PatchConvNet. Every network sees the test
images of its run in float32, in int8 as ``optimize_for_inference`` makes it, and cast to
bfloat16 as it is, which also a processor without bfloat16 can do, at its leisure; so that its
time is not told. The optimised networks take turns in one process: a ratio is the median over
neighbouring passes, with its quartiles.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import convattn
import pages
from convattn.bench import compare, forward
from convattn.classification.dataset import open_data, test_batches
from convattn.runs import Run
from convattn.text import markdown_table

HEAD = (
    "network",
    "numbers",
    "top-1",
    "top-5",
    "same class as float32",
    "mean difference of a logit",
    "of the logits' spread",
    "time, ratio to float32",
)


class Cast(nn.Module):
    """A network in bfloat16 that takes float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """Logits in bfloat16."""
        return self.network(x.bfloat16())


def logits(network: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> Tensor:
    """(N, classes) of all images, in float32."""
    with torch.inference_mode():
        return torch.cat([network(images).float() for images, _ in loader])


def share_in_first(scores: Tensor, labels: Tensor, count: int) -> float:
    """Images whose class is among the ``count`` most likely ones."""
    best = scores.topk(min(count, scores.shape[1])).indices
    return (best == labels[:, None]).any(1).float().mean().item()


def cells(scores: Tensor, exact: Tensor, labels: Tensor) -> tuple[str, ...]:
    """All columns but the names and the time."""
    same = (scores.argmax(1) == exact.argmax(1)).float().mean().item()
    difference = (scores - exact).abs().mean().item()
    return (
        f"{share_in_first(scores, labels, 1):.2%}",
        f"{share_in_first(scores, labels, 5):.2%}",
        f"{same:.2%}",
        f"{difference:.4f}",
        f"{difference / exact.std().item():.2%}",
    )


def run_rows(run: Path, batch_size: int, repeats: int) -> list[tuple[str, ...]]:
    """A row for each kind of number."""
    config = Run.open(run).config
    model: Any = Run.open(run).load_model()
    model.requires_grad_(False)
    loader, _ = test_batches(
        config.data, open_data(config.data, training=False), model.pretrained_cfg
    )
    labels = torch.cat([batch for _, batch in loader])
    optimised = {
        "float32": convattn.optimize_for_inference(model),
        "int8": convattn.optimize_for_inference(model, dtype=torch.int8),
    }
    images = torch.randn(batch_size, *model.pretrained_cfg["input_size"])
    steps = {name: forward(network, images) for name, network in optimised.items()}
    times = compare(steps, reference="float32", repeats=repeats, title=run.name)
    exact = logits(model, loader)
    arguments = [f"{key}={value}" for key, value in config.model.model_args.items()]
    return [
        (
            f"{' '.join([config.model.name, *arguments])}, {config.data.name}",
            name,
            *cells(logits(network, loader), exact, labels),
            times.cell(name) if name in steps else "",
        )
        for name, network in {**optimised, "bfloat16": Cast(model)}.items()
    ]


def main() -> None:
    """Measure and write."""
    pages.answer_check("int8_accuracy")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--batch-size", type=int, default=8, help="of what is timed")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("docs/results/int8_accuracy.md"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = [
        row
        for run in arguments.runs
        for row in run_rows(run, arguments.batch_size, arguments.repeats)
    ]
    parts = [
        "# What int8 costs in accuracy",
        f"All test images of each run; time of a batch of {arguments.batch_size}: the median and "
        "the median of its ratios to float32, with quartiles.",
        markdown_table(HEAD, rows),
    ]
    text = "\n\n".join(parts) + "\n"
    seeds = ", ".join(str(Run.open(run).config.seed) for run in arguments.runs)
    command = f"python benchmarks/int8_accuracy.py{' RUN' * len(arguments.runs)}"
    pages.publish(arguments.out, text, [pages.provenance(command, "networks", seed=seeds)])
    print(text)


if __name__ == "__main__":
    main()
