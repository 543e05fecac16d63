"""What a network or a layer costs: parameters, multiply-adds, activations, time and memory.

All variants of one call, its sizes, number formats, eager or compiled, inference or training, take
turns, so that whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import dataclasses
import gc
import io
import itertools
import json
import math
import mmap
import multiprocessing
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convattn.inference.processor import compiler_trouble, emulates
from convattn.kernels.attention import is_out_of_memory
from convattn.layers import AAConv2d, LearnedAggregation2d
from convattn.runs import Run, create_model
from convattn.surgery.records import by, num_params
from convattn.surgery.trace import trace

Dtype = Literal["float32", "bfloat16"]
K = TypeVar("K", bound=Hashable)

OUT_OF_MEMORY = "out of memory"
_COUNTED = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose2d", "convolution", "linear"})
_WARM_UP = 2
_COLOURS = {"float32": "#08519c", "bfloat16": "#d94801"}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured."""

    name: str
    """What it is called."""
    make: Callable[[], nn.Module]
    """Makes it anew; can be pickled, since other processes make it as well."""
    input_size: tuple[int, int, int] | None = None
    """(C, H, W) that it is usually given; None takes the network's ``pretrained_cfg``."""
    is_layer: bool = False
    """Whether it stands inside a network, so that its input needs a gradient, too."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A public layer, and the arguments that it is measured with unless others are given."""

    kind: Callable[..., nn.Module]
    """Its class."""
    channels: str
    """Name of the argument that is the number of channels it reads."""
    size: int
    """Usual height and width of its map."""
    arguments: Mapping[str, Any]
    """The arguments that differ from the class's own, or have no default there."""


LAYERS = {
    "AAConv2d": Layer(
        kind=AAConv2d,
        channels="in_channels",
        size=32,
        arguments={
            "in_channels": 160,
            "out_channels": 160,
            "kernel_size": 3,
            "padding": 1,
            "feat_size": 32,
        },
    ),
    "LearnedAggregation2d": Layer(
        kind=LearnedAggregation2d,
        channels="in_features",
        size=14,
        arguments={"in_features": 384},
    ),
}
"""Layers by the names of their classes: at a stage of AA-Wide-ResNet and at PatchConvNet-S60."""


def layer_subject(name: str, **arguments: Any) -> Subject:
    """A public layer of convattn.

    Args:
        name: In ``LAYERS``.
        arguments: Of the layer; those that are left out are in ``LAYERS``, or the layer's own.

    Raises:
        ValueError: If the layer refuses its arguments.

    Example:
        >>> layer_subject("AAConv2d", in_channels=64).input_size
        (64, 32, 32)
    """
    layer = LAYERS[name]
    chosen = {**layer.arguments, **arguments}
    make = partial(layer.kind, **chosen)
    make()  # refuses wrong arguments now, not in the midst of the measurements
    channels = chosen[layer.channels]
    return Subject(
        name=name, make=make, input_size=(channels, layer.size, layer.size), is_layer=True
    )


def model_subject(name: str, **arguments: Any) -> Subject:
    """A classifier by its name, with random weights.

    Args:
        name: In timm's registry.
        arguments: As ``convattn.runs.create_model`` takes them, ``augment`` among them.
    """
    return Subject(name=name, make=partial(create_model, name, **arguments))


def run_subject(run: Run) -> Subject:
    """The classifier of a run folder.

    Args:
        run: What ``convattn train`` has made.
    """
    return Subject(name=run.folder.name, make=run.load_model)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What can be counted without computing anything, for one image."""

    parameters: int
    """Numbers that are trained."""
    macs: int
    """Multiply-adds of convolutions and matrix products."""
    activations: int
    """Numbers that convolutions and linear layers make, as timm's tables count them."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a network; it gets a row."""

    size: tuple[int, int]
    """Height and width of the images, or of a layer's map."""
    dtype: Dtype
    """Number format: of everything in inference, of autocast over float32 weights in training."""
    compiled: bool
    """Whether by ``torch.compile``."""
    training: bool
    """Forward, backward and a step of SGD with momentum; else forward alone."""
    batch_size: int
    """Images at once."""

    def __str__(self) -> str:
        return f"{by(self.size)} {self.dtype} {self.mode} {self.step} x {self.batch_size}"

    @property
    def mode(self) -> str:
        """Eager or compiled."""
        return "compiled" if self.compiled else "eager"

    @property
    def step(self) -> str:
        """Inference or training."""
        return "training" if self.training else "inference"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one variant costs; what was not measured is None."""

    name: str
    """What was measured."""
    device: str
    """Where: cpu, or the name of the GPU."""
    height: int
    """Of the image, or of a layer's map."""
    width: int
    """Of the image, or of a layer's map."""
    dtype: Dtype
    """Number format, see ``Variant``."""
    mode: str
    """Eager or compiled."""
    step: str
    """Inference or training."""
    batch_size: int
    """Images at once."""
    parameters: int
    """Numbers that are trained."""
    macs: int
    """Multiply-adds for one image, forward."""
    activations: int
    """Numbers that convolutions and linear layers make of one image."""
    median_ms: float | None
    """Milliseconds of a batch, median."""
    low_ms: float | None
    """Their first quartile."""
    high_ms: float | None
    """Their third quartile."""
    images_per_second: float | None
    """At the median."""
    memory_bytes: int | None
    """Peak: weights, images, activations, and in training gradients and momentum."""
    error: str | None
    """Why something was not measured, for instance "out of memory"."""

    @property
    def measured(self) -> bool:
        """Whether there is anything to tell."""
        return any(one is not None for one in (self.median_ms, self.memory_bytes, self.error))


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What ``measure`` found."""

    name: str
    """What was measured."""
    device: str
    """Where: cpu, or the name of the GPU."""
    threads: int
    """Of the CPU."""
    torch: str
    """Version of PyTorch."""
    rows: tuple[Row, ...]
    """One for every variant."""
    interrupted: bool
    """Whether it was stopped before all was measured."""

    def table(self) -> str:
        """All of it for people."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        where = f"cpu, {threads}" if self.device == "cpu" else self.device
        lines = [
            f"{self.name} on {where}, torch {self.torch}: "
            f"{self.rows[0].parameters / 1e6:.3f} M parameters"
        ]
        counts = {(row.height, row.width): row for row in self.rows}
        for size, row in counts.items():
            lines.append(
                f"{by(size)}: {row.macs / 1e9:.3f} G multiply-adds, "
                f"{row.activations / 1e6:.2f} M activations"
            )
        return "\n".join([*lines, "", *self._measured()])

    def _measured(self) -> Iterator[str]:
        titles = ("size", "dtype", "code", "step", "batch", "ms", "quartiles", "images/s")
        cells = [(*titles, "memory"), *map(_cells, self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row, texts in zip((None, *self.rows), cells, strict=True):
            aligned = [*map(str.ljust, texts[:4], widths), *map(str.rjust, texts[4:], widths[4:])]
            trouble = "" if row is None or row.error is None else f"  {row.error}"
            yield "  ".join(aligned).rstrip() + trouble

    def to_csv(self) -> str:
        """The rows, with their fields as columns; an empty cell was not measured."""
        text = io.StringIO()
        columns = [item.name for item in dataclasses.fields(Row)]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, self.rows))
        return text.getvalue()

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    spread = (
        "" if row.low_ms is None else f"{_short(row.low_ms)} to {_short(cast(float, row.high_ms))}"
    )
    return (
        by((row.height, row.width)),
        row.dtype,
        row.mode,
        row.step,
        str(row.batch_size),
        _short(row.median_ms),
        spread,
        _short(row.images_per_second),
        "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:,.1f} MiB",
    )


def _short(value: float | None) -> str:
    """Three digits, or all of a larger number."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def count(network: nn.Module, input_size: tuple[int, int, int]) -> Counts:
    """Parameters, multiply-adds and activations, without computing anything.

    Args:
        network: A network or a layer; left as it was.
        input_size: (C, H, W) of one image or map.

    Raises:
        ValueError: If it cannot run on such an image.

    Example:
        >>> count(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 10, 20))
        Counts(parameters=216, macs=43200, activations=1600)
    """
    run = trace(network, input_size, count_macs=True)
    made = (math.prod(value.shape) for value in run.values if value.op in _COUNTED)
    return Counts(parameters=num_params(network), macs=run.macs, activations=sum(made))


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
    workshop = _Workshop(subject=subject, channels=channels, device=place)
    interrupted = False
    with _num_threads(threads):
        used = torch.get_num_threads()
        try:
            _measure(workshop, found, repeats, progress or (lambda *_: None))
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
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
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


@contextlib.contextmanager
def _num_threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Found:
    """What is known of a variant so far."""

    seconds: list[float] = field(default_factory=list)
    memory: int | None = None
    error: str | None = None


def _row(name: str, device: str, variant: Variant, counts: Counts, found: _Found) -> Row:
    low, middle, high = (
        [float(ms) for ms in np.percentile(found.seconds, [25, 50, 75]) * 1e3]
        if found.seconds
        else [None] * 3
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
    workshop: _Workshop,
    found: Mapping[Variant, _Found],
    repeats: int,
    progress: Callable[[int, int, str], Any],
) -> None:
    """Fill in what is found, memory first: what has no room is not timed."""
    with_memory = [variant for variant in found if workshop.tells_memory(variant)]
    rounds = repeats + _WARM_UP
    total = len(with_memory) + rounds * len(found)
    for done, variant in enumerate(with_memory):
        progress(done, total, f"memory of {variant}")
        answer = workshop.memory(variant)
        if isinstance(answer, int):
            found[variant].memory = answer
        else:
            found[variant].error = answer
    steps: dict[Variant, Callable[[], Any]] = {}
    for variant, one in found.items():
        if one.error is None:
            progress(len(with_memory), total, f"making {variant}")
            try:
                steps[variant] = workshop.step(variant)
            except Exception as error:
                one.error = _trouble(error)
    with _many_versions(found):
        places = {variant: place for place, variant in enumerate(found)}
        for turn, variant, result in take_turns(steps, rounds, workshop.seconds):
            if isinstance(result, Exception):
                found[variant].error = _trouble(result)
            elif turn >= _WARM_UP:
                found[variant].seconds.append(result)
            done = len(with_memory) + turn * len(found) + places[variant] + 1
            progress(done, total, f"round {turn + 1} of {rounds}")


def _many_versions(variants: Iterable[Variant]) -> contextlib.AbstractContextManager[Any]:
    """Lets code be compiled anew for every variant, where eight times is the limit otherwise."""
    number = sum(variant.compiled for variant in variants)
    if number <= 8:
        return contextlib.nullcontext()
    limit: contextlib.AbstractContextManager[Any] = torch._dynamo.config.patch(
        recompile_limit=number
    )
    return limit


def take_turns(
    steps: Mapping[K, Callable[[], Any]],
    rounds: int,
    seconds: Callable[[Callable[[], Any]], float],
) -> Iterator[tuple[int, K, float | Exception]]:
    """Time each step once, then each once more, and so on.

    Args:
        steps: What to time; one that fails is left out from then on.
        rounds: How often.
        seconds: Runs a step and tells how long it took.

    Yields:
        The number of the round, the step's key, and its seconds or how it failed.

    Example:
        >>> [key for _, key, _ in take_turns({"a": list, "b": dict}, 2, lambda step: 0.0)]
        ['a', 'b', 'a', 'b']
    """
    left = dict(steps)
    for turn in range(rounds):
        for key, step in list(left.items()):
            result: float | Exception
            try:
                result = seconds(step)
            except Exception as error:
                result = error
                del left[key]
            yield turn, key, result


def _trouble(error: Exception) -> str:
    """Why a step failed, in a line."""
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return OUT_OF_MEMORY
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


@dataclass
class _Workshop:
    """Makes the steps of the variants; those that can share a network do."""

    subject: Subject
    channels: int
    device: torch.device
    _made: dict[tuple[bool, torch.dtype], nn.Module] = field(default_factory=dict)
    _optimisers: dict[nn.Module, torch.optim.Optimizer] = field(default_factory=dict)

    def step(self, variant: Variant) -> Callable[[], Any]:
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
        return partial(_train, run, self._optimisers[network], images, mixed)

    def _network(self, training: bool, dtype: torch.dtype) -> nn.Module:
        key = training, dtype
        if key not in self._made:
            network = self.subject.make().to(self.device, dtype).train(training)
            if training:
                # A step of no length costs as much, and leaves the weights as they are.
                self._optimisers[network] = torch.optim.SGD(
                    network.parameters(), lr=0.0, momentum=0.9
                )
            self._made[key] = network
        return self._made[key]

    def seconds(self, step: Callable[[], Any]) -> float:
        """How long a step takes."""
        if self.device.type == "cpu":
            start = time.perf_counter()
            step()
            return time.perf_counter() - start
        with torch.cuda.device(self.device):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            first.record()
            step()
            last.record()
            torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3

    def tells_memory(self, variant: Variant) -> bool:
        """Whether memory can be measured: on the CPU the compiler's own would be part of it."""
        if self.device.type == "cuda":
            return True
        return not variant.compiled and sys.platform != "win32"

    def memory(self, variant: Variant) -> int | str:
        """Bytes at the peak of a step, or why there are none."""
        fresh = _Workshop(subject=self.subject, channels=self.channels, device=self.device)
        if self.device.type == "cpu":
            return _in_own_process(fresh, variant)
        try:
            return _allocated_memory(fresh, variant)
        except Exception as error:
            return _trouble(error)
        finally:
            del fresh
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()


def _train(
    network: Callable[[Tensor], Any],
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    mixed: torch.autocast,
) -> None:
    optimiser.zero_grad()
    images.grad = None
    with mixed:
        out = network(images)
    first = next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
    first.float().square().mean().backward()
    optimiser.step()


def _allocated_memory(workshop: _Workshop, variant: Variant) -> int:
    """On CUDA; the first step alone chooses kernels and makes the momentum."""
    device = workshop.device
    before = torch.cuda.memory_allocated(device)
    step = workshop.step(variant)
    step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _in_own_process(workshop: _Workshop, variant: Variant) -> int | str:
    """On the CPU: what a process of its own answers, or how it died."""
    # A server that has imported everything starts a process in milliseconds instead of seconds;
    # elsewhere than on Linux, forks and system libraries do not go together.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    process = cast(Any, context).Process(
        target=_answer, args=(theirs, workshop, variant, torch.get_num_threads()), daemon=True
    )
    process.start()
    theirs.close()
    try:
        return cast(int | str, ours.recv())
    except EOFError:
        process.join()
        # That is how the system ends who takes the last of its memory.
        if process.exitcode == -signal.SIGKILL:
            return OUT_OF_MEMORY
        return f"the process that measures memory ended with status {process.exitcode}"
    finally:
        ours.close()
        process.kill()
        process.join()


def _answer(pipe: Connection, workshop: _Workshop, variant: Variant, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    torch.set_num_threads(threads)
    try:
        pipe.send(_resident_memory(workshop, variant))
    except Exception as error:
        pipe.send(_trouble(error))


def _resident_memory(workshop: _Workshop, variant: Variant) -> int:
    """In a process of its own; the momentum is there from the second step on."""
    _give_back()
    before, _ = _resident()
    step = workshop.step(variant)
    _give_back()
    step()
    step()
    _, peak = _resident()
    return max(mmap.PAGESIZE, peak - before)


def _give_back() -> None:
    """Memory that is free goes to the system, and the peak is forgotten, as far as Linux can.

    Weights are read or converted beside others, which is no part of a step. Other C libraries than
    glibc have no such call, and a sandbox may refuse to lower the peak: then it counts.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _resident() -> tuple[int, int]:
    """Bytes of this process in memory, now and at most; on Linux without those of libraries.

    Of a library more and more is read in as it is used, which is no cost of the network.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        held = {name: 1024 * int(kb) for name, kb in re.findall(r"(\w+):\s+(\d+) kB", status)}
        return held["RssAnon"], held["VmHWM"] - held["RssFile"] - held["RssShmem"]
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return peak, peak


def draw_costs(costs: Costs, out: Path) -> None:
    """Time and memory against resolution, a column a kind of step, a line a number format.

    Args:
        costs: What ``measure`` found, at least one row.
        out: The PNG to write.
    """
    # What measures memory shall not hold matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys((row.step, row.batch_size) for row in costs.rows))
    figure = Figure(figsize=(0.8 + 3.9 * len(kinds), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{costs.name} on {costs.device}", fontsize=13, fontweight="bold")
    grid = figure.subplots(2, len(kinds), squeeze=False, sharex="col", sharey="row")
    plot = _plot_lines if len({row.height for row in costs.rows}) > 1 else _plot_bars
    for (step, batch_size), column in zip(kinds, grid.T, strict=True):
        rows = [row for row in costs.rows if (row.step, row.batch_size) == (step, batch_size)]
        plot(column[0], rows, _milliseconds)
        plot(column[1], rows, _mebibytes)
        column[0].set_title(f"{step}, batch {batch_size}", fontsize=11)
        for axes in column:
            axes.grid(alpha=0.3, axis="both" if plot is _plot_lines else "y")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("milliseconds a batch, and quartiles")
    grid[1, 0].set_ylabel("MiB at the peak")
    if plot is _plot_lines:
        grid[0, 0].legend(frameon=False, fontsize=9, loc="upper left")
        for axes in grid[1]:
            axes.set_xlabel("height and width in pixels")
    figure.savefig(out, dpi=110)


def _milliseconds(row: Row) -> tuple[float, float, float] | None:
    """First quartile, median and third quartile."""
    if row.low_ms is None or row.median_ms is None or row.high_ms is None:
        return None
    return row.low_ms, row.median_ms, row.high_ms


def _mebibytes(row: Row) -> tuple[float, float, float] | None:
    """The peak, which has no spread."""
    if row.memory_bytes is None:
        return None
    peak = row.memory_bytes / 2**20
    return peak, peak, peak


_Cost = Callable[[Row], tuple[float, float, float] | None]


def _plot_lines(axes: Any, rows: Sequence[Row], cost: _Cost) -> None:
    from matplotlib.ticker import LogFormatter

    for dtype, mode in dict.fromkeys((row.dtype, row.mode) for row in rows):
        mine = [row for row in rows if (row.dtype, row.mode) == (dtype, mode)]
        points = [(row.height, found) for row in mine if (found := cost(row)) is not None]
        if points:
            sides, spreads = zip(*sorted(points), strict=True)
            low, middle, high = np.array(spreads).T
            axes.errorbar(
                sides,
                middle,
                [middle - low, high - middle],
                color=_COLOURS[dtype],
                linestyle="-" if mode == "eager" else "--",
                marker="o",
                markersize=4,
                capsize=3,
                label=f"{dtype}, {mode}",
            )
    ticks = sorted({row.height for row in rows})
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


def _plot_bars(axes: Any, rows: Sequence[Row], cost: _Cost) -> None:
    for place, row in enumerate(rows):
        found = cost(row)
        if found is None:
            axes.text(place, 0, row.error or "not measured", ha="center", va="bottom", fontsize=9)
            continue
        low, middle, high = found
        alpha = 0.85 if row.mode == "eager" else 0.5
        axes.bar(place, middle, width=0.6, color=_COLOURS[row.dtype], alpha=alpha)
        if high > low:
            axes.errorbar(
                place, middle, [[middle - low], [high - middle]], color="black", capsize=4
            )
        axes.text(place, high, _short(middle), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(rows)), [f"{row.dtype}\n{row.mode}" for row in rows], fontsize=9)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.margins(y=0.12)
    axes.tick_params(axis="x", length=0)
