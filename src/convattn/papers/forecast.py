"""What a training would be: its settings, its size, and what it would take of a GPU.

Nothing is trained, downloaded or written. Memory and time are estimates; the report says from what.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from convattn.bench import Counts
from convattn.config import TrainConfig
from convattn.data import GENERATED
from convattn.papers.costs import (
    activation_bytes,
    checkpointed_bytes,
    count_network,
    training_state_bytes,
)
from convattn.surgery.records import by
from convattn.tasks import build_network, task_of

_GREY = ("fashion_mnist", "same_different", "count", "pathfinder")

GpuName = Literal["h100", "a100", "v100", "rtx4090"]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as its maker describes it."""

    title: str
    """Its name for people."""
    half_flops: float
    """Operations a second of dense matrix products at 16 bits."""
    single_flops: float
    """Operations a second at 32 bits, without tensor cores."""
    bandwidth: float
    """Bytes a second to and from its memory."""
    memory: int
    """GiB."""
    has_bfloat16: bool = True
    """Whether it computes at that format."""


GPUS: dict[GpuName, Gpu] = {
    "h100": Gpu(
        title="H100 SXM", half_flops=989e12, single_flops=67e12, bandwidth=3.35e12, memory=80
    ),
    "a100": Gpu(
        title="A100 SXM", half_flops=312e12, single_flops=19.5e12, bandwidth=2.04e12, memory=80
    ),
    "v100": Gpu(
        title="V100 SXM2",
        half_flops=125e12,
        single_flops=15.7e12,
        bandwidth=0.9e12,
        memory=32,
        has_bfloat16=False,
    ),
    "rtx4090": Gpu(
        title="RTX 4090", half_flops=165e12, single_flops=82.6e12, bandwidth=1.01e12, memory=24
    ),
}
"""The makers' figures."""

# The authors of PatchConvNet measured eight networks and sizes on a V100, from 96 to 1,129 images
# a second: half of the peak rate, and so many bytes for each number that a convolution makes, give
# every one of them within 15 %.
_UTILISATION = 0.5
_BYTES_MOVED = 49
_TRAINING_OVER_FORWARD = 3
_USABLE = 0.9  # of a GPU's memory: the rest is CUDA's own and lost between tensors


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is known of the training images."""

    number: int | None
    """How many; None if nobody knows before they are there."""
    num_classes: int
    """Without the background."""
    shape: tuple[int, int, int]
    """(C, H, W) of what the network sees."""
    origin: str
    """Where that is known from, in words."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a training would take; memory and time are estimates."""

    counts: Counts
    """Of the network and one image."""
    images: Images
    """What it would be trained on."""
    steps_per_epoch: int | None
    """Optimiser steps; None where the number of images is not known."""
    devices: int
    """GPUs, over all machines."""
    part: int
    """Images that a GPU sees at once."""
    state_bytes: int
    """Weights, gradients, the optimiser's memory and averaged weights, a GPU."""
    image_bytes: int
    """Kept of an image for the backward pass."""
    image_seconds: float
    """Of a GPU, for one training image."""

    @property
    def memory(self) -> int:
        """Bytes a GPU."""
        return self.state_bytes + self.part * self.image_bytes


def seconds_per_image(counts: Counts, gpu: Gpu, *, half: bool) -> float:
    """Estimated time of one image's forward pass within a large batch.

    Args:
        counts: Of the network and one image.
        gpu: Where.
        half: Whether at 16 bits; else at 32.
    """
    rate = _UTILISATION * (gpu.half_flops if half else gpu.single_flops)
    moved = counts.activations * _BYTES_MOVED * (1 if half else 2)
    return 2 * counts.macs / rate + moved / gpu.bandwidth


def forecast(config: TrainConfig, gpu: Gpu) -> Forecast:
    """What a training would take.

    Args:
        gpu: Of its devices; ``auto`` counts as one.

    Raises:
        ValueError: If the configuration and the data, or the data and the network do not fit.
        FileNotFoundError: If the data set's folder is named and not there, or incomplete.
    """
    config.check_task(task_of(config.model.name).name)
    images = _images(config)
    config.with_classes(images.num_classes)
    channels, *size = images.shape

    def network() -> nn.Module:
        with torch.device("meta"):
            return build_network(
                config, num_classes=images.num_classes, in_chans=channels, input_size=size
            )

    mixed = config.precision.endswith("mixed")
    counts = count_network(network(), images.shape)
    devices = (1 if config.devices == "auto" else config.devices) * config.num_nodes
    held = activation_bytes(network(), images.shape, mixed=mixed)
    if config.grad_checkpointing:
        held = checkpointed_bytes(network(), images.shape, mixed=mixed, plain=held)
    number, batch_size = images.number, config.data.batch_size
    if number is not None and number < batch_size:
        raise ValueError(
            f"data.batch_size={batch_size} is more than the {number} training images; choose at "
            f"most {number}"
        )
    return Forecast(
        counts=counts,
        images=images,
        steps_per_epoch=None if number is None else number // batch_size,
        devices=devices,
        part=math.ceil(batch_size / devices / config.accumulate),
        state_bytes=training_state_bytes(network(), config, devices),
        image_bytes=2 * held if config.precision == "64-true" else held,
        image_seconds=_TRAINING_OVER_FORWARD * seconds_per_image(counts, gpu, half=mixed),
    )


def _images(config: TrainConfig) -> Images:
    """Opened where they are, else as they were published."""
    data, task = config.data, task_of(config.model.name)
    generated = data.name in GENERATED
    if data.root is not None and not generated:
        found = task.describe(config)
        return Images(
            number=found.num_train,
            num_classes=found.num_classes,
            shape=found.shape,
            origin=f"found in {data.root}",
        )
    number, num_classes = task.published.get(data.name, (None, None))
    origin = "generated" if generated else "as published; give --data.root DIR"
    if num_classes is None:
        num_classes = config.model.num_classes or task.assumed_classes
        origin = "assumed; give --data.root DIR"
    return Images(
        number=data.num_train or number,
        num_classes=num_classes,
        shape=(1 if data.name in _GREY else 3, *task.assumed_size(data)),
        origin=origin,
    )


def report(config: TrainConfig, *, summary: str, gpu: GpuName = "h100") -> str:
    """What ``convattn train RECIPE --dry-run`` prints.

    Args:
        summary: What its recipe is, in a sentence.
        gpu: One of ``GPUS``.

    Raises:
        ValueError: As :func:`forecast`.
        FileNotFoundError: As :func:`forecast`.
    """
    machine = GPUS[gpu]
    trained = config.with_precision(gpu=True, bfloat16=machine.has_bfloat16)
    found = forecast(trained, machine)
    rows = {
        **dict(_settings(config)),
        "images": _describe_images(config, found.images),
        "network": _describe_network(config, found),
        "steps": _describe_steps(config, found),
        "memory": _describe_memory(config, found, machine),
        "time": _describe_time(config, found, machine),
    }
    width = max(map(len, rows))
    lines = [
        textwrap.fill(
            text,
            width=100,
            initial_indent=f"{name:<{width}}  ",
            subsequent_indent=" " * (width + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in rows.items()
        if text
    ]
    return "\n".join([f"{config.recipe}: {summary}", "", *lines, "", "Nothing was run."])


def _settings(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Every part of the configuration, with what in it is no default."""
    default = TrainConfig()
    parts = {
        item.name: (getattr(config, item.name), getattr(default, item.name))
        for item in dataclasses.fields(config)
    }
    whole = {name: pair for name, pair in parts.items() if dataclasses.is_dataclass(pair[0])}
    for name, (part, other) in whole.items():
        pairs = {
            item.name: (getattr(part, item.name), getattr(other, item.name))
            for item in dataclasses.fields(part)
        }
        yield name, _differing(pairs)
    rest = {name: pair for name, pair in parts.items() if name not in whole and name != "recipe"}
    yield "run", _differing(rest)


def _differing(pairs: dict[str, tuple[Any, Any]]) -> str:
    text = (f"{name} {_short(value)}" for name, (value, other) in pairs.items() if value != other)
    return ", ".join(text)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={_short(item)}" for name, item in value.items())
    if isinstance(value, tuple):
        return " ".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _describe_images(config: TrainConfig, images: Images) -> str:
    number = "an unknown number" if images.number is None else f"{images.number:,}"
    return (
        f"{config.data.name}, {number} for training, {images.num_classes:,} classes "
        f"({images.origin})"
    )


def _describe_network(config: TrainConfig, found: Forecast) -> str:
    model = config.model
    start = "random weights"
    if model.pretrained:
        start = "its released weights"
    if model.checkpoint is not None:
        there = "" if Path(model.checkpoint).exists() else ", which is not there"
        start = f"{model.checkpoint}{there}"
    if model.backbone_weights is not None:
        there = "" if Path(model.backbone_weights).exists() else ", which is not there"
        start = f"the backbone of {model.backbone_weights}{there}"
    return (
        f"{model.title}, {found.counts.parameters / 1e6:.2f} M parameters, "
        f"{found.counts.macs / 1e9:.3g} G multiply-adds for an image of "
        f"{by(found.images.shape[1:])}; starts from {start}"
    )


def _describe_steps(config: TrainConfig, found: Forecast) -> str:
    devices = f"{found.devices} GPU{'s' if found.devices > 1 else ''}"
    auto = " (devices is auto: give --devices)" if config.devices == "auto" else ""
    parts = f", in {config.accumulate} parts" if config.accumulate > 1 else ""
    batch = (
        f"{config.data.batch_size:,} images, {found.part:,} at once on each of {devices}"
        f"{parts}{auto}"
    )
    if found.steps_per_epoch is None:
        return f"{config.epochs} epochs of unknown length, of {batch}"
    total = config.epochs * found.steps_per_epoch
    return f"{config.epochs} epochs x {found.steps_per_epoch:,} = {total:,} steps of {batch}"


def _describe_memory(config: TrainConfig, found: Forecast, gpu: Gpu) -> str:
    room = _USABLE * gpu.memory * 2**30
    text = (
        f"about {_gib(found.memory)} a GPU, estimated: {_gib(found.state_bytes)} for weights, "
        f"gradients and the optimiser, {_gib(found.image_bytes)} an image"
    )
    if found.memory <= room:
        return f"{text}; {gpu.title} has {gpu.memory} GiB: it fits"
    return f"{text}; {gpu.title} has {gpu.memory} GiB: too little{_advice(config, found, room)}"


def _advice(config: TrainConfig, found: Forecast, room: float) -> str:
    """In how many parts the batch fits."""
    share = config.data.batch_size // found.devices
    fitting = int((room - found.state_bytes) // found.image_bytes)
    parts = (number for number in range(1, share + 1) if share % number == 0)
    accumulate = next((number for number in parts if share // number <= fitting), None)
    return "" if accumulate is None else f", --accumulate {accumulate} would do"


def _describe_time(config: TrainConfig, found: Forecast, gpu: Gpu) -> str:
    rate = found.devices / found.image_seconds
    assumed = (
        f"assuming {_UTILISATION:.0%} of the peak rate, {_BYTES_MOVED} bytes to and from memory "
        "for each number that a convolution makes at 16 bits (both fitted to what PatchConvNet's "
        f"authors measured on a V100), and {_TRAINING_OVER_FORWARD} forward passes a training "
        "step; without tests, and without waiting for images or, as small networks do, for "
        "kernels to start"
    )
    text = f"{rate:,.0f} images a second on {found.devices} x {gpu.title}"
    if config.precision == "bf16-mixed" and not gpu.has_bfloat16:
        text += ", which has no bfloat16: as fast as this with --precision 16-mixed"
    if found.steps_per_epoch is None:
        return f"{text}, estimated: {assumed}"
    seconds = config.epochs * found.steps_per_epoch * config.data.batch_size / rate
    return f"about {_duration(seconds)}, {text}, estimated: {assumed}"


def _gib(size: float) -> str:
    gib = size / 2**30
    if gib < 1:
        return f"{_three_digits(1024 * gib)} MiB"
    return f"{_three_digits(gib)} GiB"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{_one_digit(seconds / length)} {unit}"
    return f"{_one_digit(seconds)} seconds"


def _one_digit(value: float) -> str:
    """An estimate knows no more: 26 is 30."""
    return f"{float(f'{value:.1g}'):g}"
