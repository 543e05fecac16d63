"""Time and memory against resolution, as an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convattn.bench.report import Costs, Row, short

_COLOURS = {"float32": "#08519c", "bfloat16": "#d94801"}


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
        axes.text(place, high, short(middle), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(rows)), [f"{row.dtype}\n{row.mode}" for row in rows], fontsize=9)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.margins(y=0.12)
    axes.tick_params(axis="x", length=0)
