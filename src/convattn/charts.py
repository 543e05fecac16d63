"""Charts of what a test found: which class is taken for which, precision over recall."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from convattn.text import figure_text, shorten_name

_MOST_NAMED = 40
_MOST_CURVES = 12
_LETTERS_AN_INCH = 11  # of a title


def draw_counts(
    counts: NDArray[np.int64],
    rows: Sequence[str],
    columns: Sequence[str],
    out: Path,
    *,
    title: str,
) -> None:
    """A confusion matrix; of many classes the 40 most frequent, the others summed up.

    Args:
        counts: (R, C) of the true and the found class.
        rows: Name of each true class; the columns' first ones are the same.
        columns: Name of each found class.
        out: The PNG to write.
        title: Stands above.
    """
    if len(rows) > _MOST_NAMED:
        counts, rows, columns = _without_rare(counts, rows, columns)
    figure = confusion_figure(counts, rows, columns)
    FigureCanvasAgg(figure)
    _entitle(figure, title)
    figure.savefig(out, dpi=110)


def _entitle(figure: Figure, title: str) -> None:
    """A title of as many lines as the figure's width asks for."""
    lines = textwrap.wrap(figure_text(title), int(_LETTERS_AN_INCH * figure.get_figwidth()))
    figure.suptitle("\n".join(lines), fontsize=11, fontweight="bold")


def _without_rare(
    counts: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str]
) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """The matrix of the most frequent classes, in their order, and of "others"."""
    frequent = np.sort(np.argsort(-counts.sum(1), kind="stable")[: _MOST_NAMED - 1])
    folded = counts
    for axis, size in enumerate(counts.shape):
        rare = np.setdiff1d(np.arange(size), frequent)
        parts = [folded.take(frequent, axis), folded.take(rare, axis).sum(axis, keepdims=True)]
        folded = np.concatenate(parts, axis)
    names = [[*(one[place] for place in frequent), "others"] for one in (rows, columns)]
    return folded, names[0], names[1]


def confusion_figure(
    counts: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Counts of each pair of classes, coloured by their share of the row.

    Args:
        counts: (R, C) of the true and the found class.
        rows: Name of each true class.
        columns: Name of each found class.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(5.0, 0.32 * len(rows) + 2.2)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.6 else "black"
        text = _short_count(int(counts[row, column]))
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(columns)), _shown(columns), rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), _shown(rows), fontsize=8)
    axes.set(xlabel="taken for", ylabel="right class")
    axes.tick_params(length=0)
    return figure


def _shown(names: Sequence[str]) -> list[str]:
    return [figure_text(shorten_name(name)) for name in names]


def _short_count(count: int) -> str:
    """A count that fits into a cell: thousands and millions are rounded."""
    if count >= 1_000_000:
        return f"{count / 1_000_000:.3g}M"
    return f"{count / 1_000:.3g}k" if count >= 10_000 else str(count)


def draw_precision_recall(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    areas: Mapping[str, float],
    out: Path,
    *,
    title: str,
) -> None:
    """Precision over recall of each class; of many classes the 6 best and the 6 worst.

    Args:
        curves: Recall and precision by the class's name.
        areas: Area under each.
        out: The PNG to write.
        title: Stands above.
    """
    order = sorted(areas, key=lambda name: -areas[name])
    half = _MOST_CURVES // 2
    shown = order if len(order) <= _MOST_CURVES else [*order[:half], *order[-half:]]
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    _entitle(figure, title)
    axes: Any = figure.subplots()
    for number, name in enumerate(shown):
        label = f"{figure_text(shorten_name(name))}  {areas[name]:.1%}"
        style = "-" if number < 10 else "--"
        axes.plot(*curves[name], style, color=f"C{number % 10}", linewidth=1.5, label=label)
    if shown:
        left_out = f", {len(shown)} of {len(order)}" if len(shown) < len(order) else ""
        axes.legend(
            title=f"AP50{left_out}", fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5)
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)
