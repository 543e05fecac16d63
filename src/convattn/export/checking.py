"""A file is read back and compared with its network before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn import __version__
from convattn.explanation.classes import class_names
from convattn.export.dense import DenseNetwork
from convattn.export.networks import WithMaps, classifier_of, image_cfg, noise, output_names
from convattn.files import written_whole
from convattn.modes import check_finite
from convattn.ownership import owned
from convattn.text import json_text

TOLERANCE = 1e-4
"""Largest difference that is allowed, as a share of the largest number."""

Outputs = tuple[Tensor, ...]
"""Logits first."""
Runnable = Callable[[Tensor], Outputs]
"""A network or a file that was opened."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far a file is from its network on one batch."""

    height: int
    """Of the images, in pixels."""
    width: int
    """Of the images, in pixels."""
    batch_size: int
    """Images at once."""
    differences: dict[str, float]
    """Name of each output -> largest difference, as a share of its largest number."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written, and how it was checked."""

    file: Path
    """Where it is."""
    size: int
    """Bytes."""
    checks: tuple[Check, ...]
    """One an image size and batch size."""

    def table(self) -> str:
        """The checks as a small table."""
        names = list(self.checks[0].differences)
        lines = [f"{'pixels':>11}  batch" + "".join(f"  {name:>9}" for name in names)]
        for check in self.checks:
            numbers = "".join(f"  {check.differences[name]:>9.1e}" for name in names)
            size = f"{check.height} x {check.width}"
            lines.append(f"{size:>11}  {check.batch_size:>5}{numbers}")
        return "\n".join(lines)


def checked(
    network: nn.Module,
    file: Path,
    size: tuple[int, int] | None,
    write: Callable[[Path, Tensor, dict[str, str]], None],
    reopen: Callable[[Path], Runnable],
    *,
    images: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a file, read it back, compare, and only then give it its name.

    Args:
        network: A prepared one.
        file: Where to.
        size: Height and width of its images, in pixels; None takes its own.
        write: Given a place, images of the largest batch and the metadata, writes the file there.
        reopen: Opens it.
        images: (B, C, H, W) to compare on, resized to each size; None takes noise.
        tolerance: Largest difference that is allowed, as a share of the largest number.

    Raises:
        ValueError: If the network is no classifier, or the file fails or differs from it.
    """
    cfg = image_cfg(network, size)
    batches = noise(*cfg["input_size"], like=next(network.parameters(), torch.empty(())))
    if images is not None:
        batches = [
            F.interpolate(images[: len(one)], one.shape[2:], mode="bilinear") for one in batches
        ]
    if isinstance(network, DenseNetwork):
        batches = [network.images(batch) for batch in batches]
    example = network.example(batches[-1]) if isinstance(network, DenseNetwork) else batches[-1]
    expected = [_eager(network, batch) for batch in batches]
    if not isinstance(network, DenseNetwork):
        num_classes = expected[0][0].shape[1]
        names = class_names(classifier_of(network), num_classes)
        cfg |= {"num_classes": num_classes, "label_names": names}
    if isinstance(network, WithMaps) and network.head is not None:
        cfg["evidence_bias"] = network.head.bias.tolist()
    metadata = {"convattn_version": __version__, "pretrained_cfg": json_text(cfg)}
    with owned(file), written_whole(file) as part:
        check_free(file, file.suffix)  # what another process has made meanwhile stays
        write(part, example, metadata)
        run = _reopened(reopen, part, file.name)
        checks = tuple(
            Check(
                height=batch.shape[2],
                width=batch.shape[3],
                batch_size=batch.shape[0],
                differences=_differences(run, batch, wanted, network, file.name, tolerance),
            )
            for batch, wanted in zip(batches, expected, strict=True)
        )
    return Exported(file=file, size=file.stat().st_size, checks=checks)


def _reopened(reopen: Callable[[Path], Runnable], part: Path, file: str) -> Runnable:
    try:
        return reopen(part)
    except Exception as error:  # runtimes have classes of their own
        raise ValueError(
            f"{file} cannot be read back, and nothing is kept: {first_line(error)}"
        ) from error


def check_free(path: str | os.PathLike[str], suffix: str) -> Path:
    """The path, where a file may be written.

    Args:
        path: Asked for.
        suffix: That it must have.

    Raises:
        ValueError: If it has another.
        FileExistsError: If there is such a file.
        FileNotFoundError: If there is no folder for it.
    """
    file = Path(path)
    if file.suffix != suffix:
        raise ValueError(f"{file} must end in {suffix}, as {file.with_suffix(suffix).name} does")
    if file.exists():
        raise FileExistsError(f"{file} exists and is never overwritten; give another name")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent} for {file.name}; make it first")
    return file


@contextmanager
def _exactly() -> Iterator[None]:
    """Without gradients, and on CUDA without TF32, whose error is larger than is allowed."""
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        yield


def _eager(network: nn.Module, images: Tensor) -> Outputs:
    """What the network itself gives: logits first."""
    batch_size, _, height, width = images.shape
    try:
        with _exactly():
            outputs = (
                network.expected(images)
                if isinstance(network, DenseNetwork)
                else as_tuple(network(images))
            )
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{type(classifier_of(network)).__name__} fails for {batch_size} images of {height} x "
            f"{width}; only networks that take images of any size are exported: "
            f"{first_line(error)}"
        ) from error
    logits = outputs[0]
    if isinstance(logits, Tensor):
        check_finite(logits, "the network that is exported")
    if isinstance(network, DenseNetwork):
        return outputs
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise ValueError(
            f"{type(classifier_of(network)).__name__} gives no logits (B, num_classes); only "
            "networks that classify images, RetinaNet and UPerNet are exported"
        )
    return outputs


def _differences(
    run: Runnable,
    images: Tensor,
    expected: Outputs,
    network: nn.Module,
    file: str,
    tolerance: float,
) -> dict[str, float]:
    """Of each output; a ValueError where the file fails or differs too much."""
    batch_size, _, height, width = images.shape
    where = f"for {batch_size} images of {height} x {width}; nothing is kept"
    try:
        with _exactly():
            outputs = run(images)
    except Exception as error:  # runtimes have classes of their own
        raise ValueError(f"{file} fails {where}: {first_line(error)}") from error
    if isinstance(network, DenseNetwork):
        outputs = network.aligned(outputs, expected)
    found = {}
    for name, ours, theirs in zip(output_names(network), outputs, expected, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(
                f"{file} gives {name} of shape {tuple(ours.shape)} instead of "
                f"{tuple(theirs.shape)} {where}"
            )
        largest = theirs.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        found[name] = ((ours - theirs).abs().max() / largest).item()
        if not found[name] <= tolerance:  # NaN neither
            raise ValueError(
                f"{file} differs from the network by {found[name]:.1e} of the largest of the "
                f"{name}, {tolerance:.0e} is allowed, {where}"
            )
    if isinstance(network, DenseNetwork):
        with _exactly():
            network.agree(outputs, images)
    return found


def as_tuple(outputs: Any) -> Outputs:
    """Outputs of a network that may give one alone."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def first_line(error: Exception) -> str:
    """The kind of an error, and the beginning of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
