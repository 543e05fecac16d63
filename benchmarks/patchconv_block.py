"""Forms of PatchConvNet's block in training: CPU seconds and resident memory, side by side.

    python benchmarks/patchconv_block.py [--side 14] [--batch-size 8] [--depth 12] [--rounds 5]
        [--autocast] [--threads 2]

Blocks of S60's width stand on each other. The forms take turns; ratios are to plain autograd in the
same round, of the CPU's time and not the clock's, so that whatever else a machine does counts
less. The peak of resident memory is that of a fresh process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from convattn.kernels.patchconv_block import normalize, project
from convattn.kernels.patchconv_block.manual_backward import manual_backward_block
from convattn.kernels.patchconv_block.recomputing import recomputing_block
from convattn.models.patchconvnet import PatchConvBlock
from side_by_side import extra_peak, table

Step = Callable[[], object]
DIM = 384
PRODUCTS = {
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.convolution.default,
}


def by_autograd(block: PatchConvBlock, x: Tensor) -> Tensor:
    """Keeps whatever autograd keeps."""
    maps = F.gelu(block.conv_pw(normalize(block, x)))
    maps = F.gelu(block.conv_dw(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    return x + project(block, maps * block.se(maps), 1.0)


def selective(block: PatchConvBlock, x: Tensor) -> Tensor:
    """PyTorch's own checkpointing, which keeps the results of products alone."""

    def policy(context: object, operator: object, *args: object, **kwargs: object) -> object:
        kept = operator in PRODUCTS
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    run = partial(by_autograd, block)
    return checkpoint(run, x, use_reentrant=False, context_fn=contexts)


def whole(block: PatchConvBlock, x: Tensor) -> Tensor:
    """Keeps the input alone."""
    return checkpoint(partial(by_autograd, block), x, use_reentrant=False)


def ours(form: Callable[..., Tensor], recomputes: bool, block: PatchConvBlock, x: Tensor) -> Tensor:
    """A form of the table."""
    block.recomputes_gelu = recomputes
    return form(block, x, 1.0)


FORMS = {
    "plain autograd": by_autograd,
    "recomputing": partial(ours, recomputing_block, False),
    "recomputing, GELUs too": partial(ours, recomputing_block, True),
    "manual_backward": partial(ours, manual_backward_block, False),
    "manual_backward, GELUs too": partial(ours, manual_backward_block, True),
    "selective checkpoint": selective,
    "checkpoint": whole,
}


def make_step(name: str, given: argparse.Namespace) -> Step:
    """A pass through all blocks, and the gradients."""
    torch.manual_seed(0)
    blocks = [PatchConvBlock(DIM, layer_scale=0.1).train() for _ in range(given.depth)]
    x = torch.randn(given.batch_size, given.side, given.side, DIM, requires_grad=True)
    leaves = [x, *(parameter for block in blocks for parameter in block.parameters())]

    def step() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=given.autocast):
            y = x
            for block in blocks:
                y = FORMS[name](block, y)
        return torch.autograd.grad(y.sum(), leaves)

    return step


def measure_peak(name: str) -> str:
    """Megabytes, in a process of its own."""
    command = [sys.executable, *sys.argv, "--peak-of", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--peak-of", choices=FORMS, help="print one form's megabytes alone")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak_of:
        small = argparse.Namespace(**vars(given) | {"side": 2, "batch_size": 1})
        make_step(given.peak_of, small)()
        print(f"{extra_peak(make_step(given.peak_of, given)):.0f}")
        return
    steps = {name: make_step(name, given) for name in FORMS}
    times: dict[str, list[float]] = {name: [] for name in FORMS}
    for turn in range(given.rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if turn:  # the first passes only warm up
                times[name].append(time.process_time() - start)
    rows = []
    for name, taken in times.items():
        ratios = [mine / plain for mine, plain in zip(taken, times["plain autograd"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        spread = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        rows.append((name, f"{statistics.median(taken):.2f} s", spread, measure_peak(name)))
    print(table(("form", "CPU time", "of plain's", "MB"), rows))


if __name__ == "__main__":
    main()
