"""What the benchmarks of speed share: steps that take turns, ratios, tables, peak memory."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from convattn.bench import take_turns

Step = Callable[[], object]


def forward(function, *inputs) -> Step:
    """A pass without gradients."""

    def step() -> None:
        with torch.no_grad():
            function(*inputs)

    return step


def forward_backward(function, *inputs) -> Step:
    """A pass and the gradients of the inputs, and of a layer's parameters."""
    parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
    leaves = [*inputs, *parameters]

    def step() -> None:
        out = function(*inputs)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def seconds(step: Step) -> float:
    """One pass."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def side_by_side(steps: dict[str, Step], repeats: int, against: str) -> dict[str, str]:
    """Cells of a table: milliseconds, and how many times those of ``against``."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn, name, taken in take_turns(steps, repeats + 2, seconds):
        if isinstance(taken, Exception):
            raise taken
        if turn > 1:  # the first passes only warm up
            times[name].append(taken)
    cells = {}
    for name, taken in times.items():
        ratios = [mine / theirs for mine, theirs in zip(taken, times[against], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        cells[name] = (
            f"{1e3 * statistics.median(taken):.1f} ms, {middle:.2f} ({low:.2f} to {high:.2f})"
        )
    return cells


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """In Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def extra_peak(step: Step) -> float:
    """Megabytes that a step takes beyond what this process held; Linux only."""
    before, _ = _resident()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    step()
    return (_resident()[1] - before) / 1e6


def _resident() -> tuple[int, int]:
    """Bytes of this process in memory, now and at most."""
    status = Path("/proc/self/status").read_text()
    held = {name: 1024 * int(kb) for name, kb in re.findall(r"(\w+):\s+(\d+) kB", status)}
    return held["VmRSS"], held["VmHWM"]
