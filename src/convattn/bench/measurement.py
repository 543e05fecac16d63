"""What a network or a layer costs: parameters, multiply-adds, activations, time and memory.

All variants of one call, its sizes, number formats, eager or compiled, inference or training, take
turns, so that whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convattn.bench.comparison import Quartiles, interleave
from convattn.bench.counts import Counts, count
from convattn.bench.memory import peak_memory
from convattn.bench.report import Costs, Dtype, Row, Variant
from convattn.bench.steps import Step, StepError, describe_error, num_threads, step_seconds
from convattn.bench.subjects import Subject
from convattn.inference.processor import compiler_trouble, emulates
from convattn.surgery.records import by
from convattn.text import one_line

_WARM_UP = 2


def measure(
    subject: Subject,
    *,
    sizes: Sequence[int] | None = None,
    batch_size: int = 8,
    dtypes: Sequence[Dtype] = ("float32",),
    compiled: bool = False,
    training: bool = True,
    device: str | None = None,
    repeats: int = 10,
    threads: int | None = None,
    progress: Callable[[int, int, str], Any] | None = None,
    warn: Callable[[str], Any] = warnings.warn,
) -> Costs:
    """Count, then measure memory, then time: batch 1, a whole batch, and a training step.

    On the CPU each memory is that of a process of its own, as ``multiprocessing`` starts them: a
    script that calls this needs ``if __name__ == "__main__":``. What runs out of memory says so in
    its row, and the rest goes on; Ctrl-C ends it and keeps what was measured.

    Args:
        subject: What to measure.
        sizes: Heights and widths of the images, or of a layer's map; None takes its own.
        batch_size: Images at once, for throughput and training.
        dtypes: Number formats.
        compiled: Measure with ``torch.compile`` as well; without a compiler, ``warn`` is told.
        training: Measure a training step as well.
        device: cpu or cuda; None takes the GPU if there is one.
        repeats: Times that are taken of each variant, after two for warming up.
        threads: Of the CPU; None takes PyTorch's number.
        progress: Called with the measurements done, their total, and what comes next.
        warn: Told in a sentence what is not as it was asked for.

    Raises:
        ValueError: If an argument has no meaning, or the network refuses a size.
    """
    place = _device(device)
    for name, value in (("batch_size", batch_size), ("repeats", repeats), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if not dtypes:
        raise ValueError("dtypes is empty; give float32, bfloat16 or both")
    network = subject.make()
    channels, *own = subject.input_size or cast(Any, network).pretrained_cfg["input_size"]
    sides = [(side, side) for side in dict.fromkeys(sizes)] if sizes else [(own[0], own[1])]
    counts = {side: _count(subject, network, (channels, *side), own) for side in sides}
    del network
    if "bfloat16" in dtypes and emulates(torch.bfloat16, place):
        warn("this processor has no bfloat16 instructions: it emulates them, which takes longer")
    modes = [False, True] if compiled and _compiles(place, warn) else [False]
    steps = dict.fromkeys([(False, 1), (False, batch_size), *([(True, batch_size)] * training)])
    found = {
        Variant(size=side, dtype=dtype, compiled=mode, training=train, batch_size=images): _Found()
        for side, dtype, mode, (train, images) in itertools.product(
            sides, dict.fromkeys(dtypes), modes, steps
        )
    }
    networks = _Networks(subject=subject, channels=channels, device=place)
    interrupted = False
    with num_threads(threads):
        used = torch.get_num_threads()
        try:
            _measure(networks, found, repeats, progress or (lambda *_: None))
        except KeyboardInterrupt:
            interrupted = True
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    rows = (
        _row(subject.name, where, variant, counts[variant.size], one)
        for variant, one in found.items()
    )
    return Costs(
        name=subject.name,
        device=where,
        threads=used,
        torch=torch.__version__,
        rows=tuple(row for row in rows if row.measured),
        interrupted=interrupted,
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if kind not in there or not (number.isdigit() or not number):
        raise ValueError(f"device={name!r} is not cpu, cuda or the like of cuda:1")
    if int(number or 0) >= there[kind]:
        raise ValueError(f"device={name!r}, but there are {there[kind]} of {kind}; try cpu")
    return torch.device(name)


def _count(
    subject: Subject, network: nn.Module, input_size: tuple[int, int, int], own: Sequence[int]
) -> Counts:
    """As ``count``; the error names the size."""
    if min(input_size) < 1:
        raise ValueError(f"sizes={input_size[1]} is no height and width in pixels; try {own[0]}")
    try:
        return count(network, input_size)
    except ValueError as error:
        reason = one_line(error.__cause__ or error).rstrip(".")
        raise ValueError(
            f"{subject.name} refuses sizes={input_size[1]}: {reason}; its own size is "
            f"{by((own[0], own[1]))}"
        ) from error


def _compiles(device: torch.device, warn: Callable[[str], Any]) -> bool:
    """Whether ``torch.compile`` works here; else why not is told."""
    trouble = compiler_trouble(device)
    if trouble is not None:
        warn(f"torch.compile does not work here, so nothing is measured compiled: {trouble}")
    return trouble is None


@dataclass
class _Found:
    """What is known of a variant so far."""

    seconds: list[float] = field(default_factory=list)
    memory: int | None = None
    error: str | None = None


def _row(name: str, device: str, variant: Variant, counts: Counts, found: _Found) -> Row:
    low, middle, high = (
        [1e3 * one for one in Quartiles.of(found.seconds)] if found.seconds else [None] * 3
    )
    return Row(
        name=name,
        device=device,
        height=variant.size[0],
        width=variant.size[1],
        dtype=variant.dtype,
        mode=variant.mode,
        step=variant.step,
        batch_size=variant.batch_size,
        **dataclasses.asdict(counts),
        median_ms=middle,
        low_ms=low,
        high_ms=high,
        images_per_second=None if middle is None else variant.batch_size / middle * 1e3,
        memory_bytes=found.memory,
        error=found.error,
    )


def _measure(
    networks: _Networks,
    found: Mapping[Variant, _Found],
    repeats: int,
    progress: Callable[[int, int, str], Any],
) -> None:
    """Fill in what is found, memory first: what has no room is not timed."""
    with_memory = [variant for variant in found if networks.tells_memory(variant)]
    rounds = repeats + _WARM_UP
    total = len(with_memory) + rounds * len(found)
    for done, variant in enumerate(with_memory):
        progress(done, total, f"memory of {variant}")
        try:
            found[variant].memory = networks.peak_memory(variant)
        except StepError as error:
            found[variant].error = str(error)
    steps: dict[Variant, Step] = {}
    for variant, one in found.items():
        if one.error is None:
            progress(len(with_memory), total, f"making {variant}")
            try:
                steps[variant] = networks.step(variant)
            except Exception as error:
                one.error = describe_error(error)
    seconds = partial(step_seconds, device=networks.device)
    with _allow_recompiling(found):
        places = {variant: place for place, variant in enumerate(found)}
        for turn, variant, result in interleave(steps, rounds, seconds):
            if isinstance(result, Exception):
                found[variant].error = describe_error(result)
            elif turn >= _WARM_UP:
                found[variant].seconds.append(result)
            done = len(with_memory) + turn * len(found) + places[variant] + 1
            progress(done, total, f"round {turn + 1} of {rounds}")


def _allow_recompiling(variants: Iterable[Variant]) -> contextlib.AbstractContextManager[Any]:
    """Code may be compiled again for every variant, where eight times is the limit otherwise."""
    number = sum(variant.compiled for variant in variants)
    if number <= 8:
        return contextlib.nullcontext()
    limit: contextlib.AbstractContextManager[Any] = torch._dynamo.config.patch(
        recompile_limit=number
    )
    return limit


@dataclass
class _Networks:
    """Makes the steps of the variants; those that can share a network do."""

    subject: Subject
    channels: int
    device: torch.device
    _made: dict[tuple[bool, torch.dtype], nn.Module] = field(default_factory=dict)
    _optimizers: dict[nn.Module, torch.optim.Optimizer] = field(default_factory=dict)

    def step(self, variant: Variant) -> Step:
        """What is timed: one forward pass, or one training step."""
        dtype = torch.float32 if variant.training else getattr(torch, variant.dtype)
        network = self._network(variant.training, dtype)
        run = torch.compile(network, dynamic=False) if variant.compiled else network
        shape = (variant.batch_size, self.channels, *variant.size)
        images = torch.randn(shape, device=self.device, dtype=dtype)
        if not variant.training:
            return torch.inference_mode()(partial(run, images))
        images.requires_grad_(self.subject.is_layer)
        mixed = torch.autocast(
            self.device.type, torch.bfloat16, enabled=variant.dtype == "bfloat16"
        )
        return partial(_train, run, self._optimizers[network], images, mixed)

    def _network(self, training: bool, dtype: torch.dtype) -> nn.Module:
        key = training, dtype
        if key not in self._made:
            network = self.subject.make().to(self.device, dtype).train(training)
            if training:
                # A step of no length costs as much, and leaves the weights as they are.
                self._optimizers[network] = torch.optim.SGD(
                    network.parameters(), lr=0.0, momentum=0.9
                )
            self._made[key] = network
        return self._made[key]

    def tells_memory(self, variant: Variant) -> bool:
        """Whether memory can be measured: on the CPU the compiler's own would be part of it."""
        if self.device.type == "cuda":
            return True
        return not variant.compiled and sys.platform != "win32"

    def peak_memory(self, variant: Variant) -> int:
        """Bytes at the peak of a step; the momentum is there from the second one on."""
        fresh = _Networks(subject=self.subject, channels=self.channels, device=self.device)
        make = partial(fresh.step, variant)
        return peak_memory(make, device=self.device, passes=2, count_making=True)


def _train(
    network: Callable[[Tensor], Any],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    mixed: torch.autocast,
) -> None:
    optimizer.zero_grad()
    images.grad = None
    with mixed:
        out = network(images)
    first = next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
    first.float().square().mean().backward()
    optimizer.step()
