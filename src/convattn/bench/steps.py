"""Steps that are timed: passes through a function or a network, and how long one takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.kernels.attention import is_out_of_memory
from convattn.text import one_line

Step = Callable[[], Any]
"""What is timed; it takes nothing, and what it gives is not looked at."""

OUT_OF_MEMORY = "out of memory"
"""What ``describe_error`` says of a step that found no room."""


class StepError(RuntimeError):
    """A step that failed; the message is one line."""


def describe_error(error: Exception) -> str:
    """Why a step failed, in a line."""
    if isinstance(error, StepError):
        return str(error)
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {one_line(error)}"[:200]


def step_seconds(step: Step, device: torch.device | str = "cpu") -> float:
    """How long one step takes: by the CPU's clock, or between two events of a GPU.

    Args:
        device: Where the step computes.
    """
    device = torch.device(device)
    if device.type == "cpu":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        step()
        last.record()
        torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def forward(function: Callable[..., Any], *inputs: Tensor) -> Step:
    """A pass without gradients."""

    def step() -> Any:
        with torch.no_grad():
            return function(*inputs)

    return step


def forward_backward(function: Callable[..., Tensor], *inputs: Tensor) -> Step:
    """A pass and the gradients of the inputs, and of a layer's parameters."""
    parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
    leaves = [*inputs, *parameters]

    def step() -> None:
        out = function(*inputs)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def training_step(
    network: nn.Module,
    images: Tensor,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    labels: Tensor | None = None,
    autocast: bool = False,
    compiled: bool = False,
) -> Step:
    """Forward, cross entropy, backward and a step of the optimiser; gives the loss.

    Args:
        network: Set to training.
        images: A batch, on the network's device.
        optimizer: None takes SGD with momentum, at a rate that changes nothing.
        labels: None takes class 0 for all images.
        autocast: Whether in bfloat16 where autocast says so.
        compiled: Whether by ``torch.compile``.
    """
    network = network.train()
    run = torch.compile(network) if compiled else network
    if optimizer is None:
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-12, momentum=0.9)
    if labels is None:
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(run(images).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@contextmanager
def num_threads(number: int | None) -> Iterator[None]:
    """So many threads of the CPU inside the context; None keeps PyTorch's number."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)
