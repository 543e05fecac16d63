"""What was measured: rows, a table for people, CSV and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from convattn.surgery.records import by
from convattn.text import csv_text, json_text

Dtype = Literal["float32", "bfloat16"]
"""Number formats that are measured."""


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
        columns = [item.name for item in dataclasses.fields(Row)]
        return csv_text([columns, *(dataclasses.asdict(row).values() for row in self.rows)])

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json_text(dataclasses.asdict(self), indent=2) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    spread = (
        "" if row.low_ms is None else f"{short(row.low_ms)} to {short(cast(float, row.high_ms))}"
    )
    return (
        by((row.height, row.width)),
        row.dtype,
        row.mode,
        row.step,
        str(row.batch_size),
        short(row.median_ms),
        spread,
        short(row.images_per_second),
        "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:,.1f} MiB",
    )


def short(value: float | None) -> str:
    """Three digits, or all of a larger number; "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
