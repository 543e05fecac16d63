"""Forms of PatchConvNet's block in training: time and resident memory, side by side.

    python benchmarks/patchconv_block.py [--side 14] [--batch-size 8] [--depth 12] [--repeats 5]
        [--autocast] [--threads 2]

Blocks of S60's width stand on each other. The forms take turns; ratios are to plain autograd in the
same round. The peak of resident memory is that of a fresh process.
"""

from __future__ import annotations

import argparse
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

from convattn.bench import compare
from convattn.kernels.patchconv_block import normalize, project
from convattn.kernels.patchconv_block.forms import manual_backward_block, recomputing_block
from convattn.models.patchconvnet import PatchConvBlock
from convattn.text import markdown_table

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


FORMS: dict[str, Callable[[PatchConvBlock, Tensor], Tensor]] = {
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
    torch.set_num_threads(given.threads)
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--autocast", action="store_true")
    given = parser.parse_args()
    makers = {name: partial(make_step, name, given) for name in FORMS}
    found = compare(
        makers,
        reference="plain autograd",
        repeats=given.repeats,
        warm_up=1,
        makes=True,
        memory=True,
        title="blocks",
    )
    rows = [
        (name, found.cell(name), f"{(found.timings[name].peak_bytes or 0) / 2**20:,.0f}")
        for name in FORMS
    ]
    print(markdown_table(("form", "ms, of plain's", "MiB"), rows))


if __name__ == "__main__":
    main()
