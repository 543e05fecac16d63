"""Pools beside each other: parameters, multiply-adds, time; EP beside its authors' module.

    python benchmarks/pools.py [--authors ep.py] [--repeats 15] [--out docs/results/pools_cost.md]

``--authors`` is the file ``poolings/ep.py`` of the repository billpsomas/efficient-probing. Passes
take turns; ratios are to the average pool, and of EP to our own, in the same round.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pages
from convattn import POOLS, create_pool, pool_from_state_dict
from convattn.bench import Step, compare, forward, forward_backward
from convattn.papers.costs import count_macs
from convattn.surgery.records import num_params
from convattn.text import markdown_table

OPTIONS: dict[str, dict[str, Any]] = {"class": {"num_classes": 1000}}
SIZES = ((512, 7), (2048, 7), (2048, 14))


class Rows(nn.Module):
    """The authors' pool of (B, N, C), given a map, as a convnet makes it."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return self.pool(x.flatten(2).transpose(1, 2))


def pool_rows(channels: int, side: int, batch_size: int, repeats: int) -> list[tuple[str, ...]]:
    """A row a pool."""
    torch.manual_seed(0)
    pools = {name: create_pool(name, channels, **OPTIONS.get(name, {})) for name in POOLS}
    x = torch.rand(batch_size, channels, side, side)
    found = {
        kind: compare(
            {name: make(pool, x.clone().requires_grad_()) for name, pool in pools.items()},
            reference="avg",
            repeats=repeats,
            title=f"{channels} channels, {kind}",
        )
        for kind, make in (("inference", forward), ("gradients", forward_backward))
    }
    rows = []
    for name, pool in pools.items():
        with torch.device("meta"):
            bare = create_pool(name, channels, **OPTIONS.get(name, {}))
        macs = count_macs(bare, (channels, side, side))
        times = [found[kind].cell(name) for kind in ("inference", "gradients")]
        size = f"{num_params(pool) / 1e3:,.1f} k"
        rows.append((name, size, f"{macs / 1e6:,.2f} M", *times))
    return rows


def authors_rows(authors: Path, repeats: int) -> list[tuple[str, ...]]:
    """EP at N=196, C=768, Q=32, batch 64."""
    torch.manual_seed(0)
    theirs = runpy.run_path(str(authors))["EfficientProbing"](768, num_queries=32)
    ours = pool_from_state_dict("ep", theirs.state_dict())
    wrapped = Rows(theirs)
    rows = []
    layouts = (("channels first", torch.contiguous_format), ("channels last", torch.channels_last))
    for layout, memory_format in layouts:
        x = torch.randn(64, 768, 14, 14).contiguous(memory_format=memory_format)
        torch.testing.assert_close(ours(x), wrapped(x), rtol=1e-4, atol=1e-5)
        for kind, make in (("inference", forward), ("gradients", forward_backward)):
            steps: dict[str, Step] = {
                "authors": make(wrapped, x.clone().requires_grad_()),
                "ours": make(ours, x.clone().requires_grad_()),
            }
            found = compare(steps, reference="ours", repeats=repeats, title=f"EP, {kind}")
            rows.append((f"{layout}, {kind}", *(found.cell(name) for name in steps)))
    return rows


def main() -> None:
    """Measure and print."""
    pages.answer_check("pools_cost")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    parts = [
        "# What pools cost",
        f"Batch {given.batch_size}; milliseconds, and times the average pool's in the same round.",
    ]
    for channels, side in SIZES:
        head = ("pool", "parameters", "multiply-adds", "inference", "with gradients")
        rows = pool_rows(channels, side, given.batch_size, given.repeats)
        parts += [f"## {channels} channels, {side} x {side}", markdown_table(head, rows)]
    if given.authors is not None:
        table = markdown_table(
            ("", "the authors' module", "ours"), authors_rows(given.authors, given.repeats)
        )
        parts += ["## EP: 768 channels, 14 x 14, 32 queries, batch 64", table]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if given.out is not None:
        authors = "" if given.authors is None else " --authors ep.py"
        command = f"python benchmarks/pools.py{authors} --repeats {given.repeats}"
        pages.publish(given.out, text, [pages.provenance(command)])


if __name__ == "__main__":
    main()
