"""Images of what the rest of this package finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from convattn.explanation.faithfulness import Report
from convattn.explanation.heatmap import Explanation
from convattn.explanation.overlay import overlay

_NAMES = {"attention": "attention", "gradcam": "Grad-CAM"}
_MOST_NAMED, _MOST_CELLS, _MOST_PAIRS = 40, 500, 20  # of a confusion matrix
FIGURE_SIDE = 480
"""Pixels of the longer side that an image in a figure is drawn with at most."""
_METHOD_COLOURS = {
    "attention": "#d94801",
    "gradcam": "#08519c",
    "centre": "#54278f",
    "random": "#969696",
}


def draw_explanations(
    rows: Sequence[Sequence[Explanation]], out: Path, *, title: str | None = None
) -> None:
    """A sheet: each image, what it was taken for, and its overlay for each class explained.

    Args:
        rows: An image's explanations each, at least one.
    """
    columns = 2 + max(map(len, rows))
    aspects = [row[0].image.height / row[0].image.width for row in rows]
    heights = [min(max(aspect, 0.45), 1.6) for aspect in aspects]
    width = 2.6
    figure = Figure(
        figsize=(width * columns, width * sum(heights) + 0.35 * len(rows) + 0.5),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    if title is not None:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row, axes in zip(rows, grid, strict=True):
        for one in axes:
            one.axis("off")
        _show(axes[0], row[0].overlay(opacity=0, max_side=FIGURE_SIDE), "image")
        _draw_bars(axes[1], row[0])
        axes[1].set_box_aspect(row[0].image.height / row[0].image.width)
        for explanation, one in zip(row, axes[2:], strict=False):
            target = explanation.target
            label = f"{_short(target.name)}  {target.probability:.0%}"
            _show(one, explanation.overlay(max_side=FIGURE_SIDE), label)
            how = _NAMES[explanation.method]
            if not explanation.class_specific:
                how += ", the same for every class"
            one.set_xlabel(how, fontsize=7, color="#636363")
    figure.savefig(out, dpi=110)


def draw_layers(
    image: Image.Image,
    layers: Mapping[str, Sequence[NDArray[np.float32]]],
    out: Path,
    *,
    title: str | None = None,
    query: tuple[float, float] | None = None,
) -> None:
    """One image through all attention layers: a row a layer, the mean and every head.

    Args:
        layers: By name the heat maps of its heads, see ``attention_through``.
        query: y and x of the pixel that looks, marked by a cross; None: all look.
    """
    columns = 1 + max(map(len, layers.values()))
    aspect = min(max(image.height / image.width, 0.45), 1.6)
    width = 1.5
    figure = Figure(
        figsize=(width * columns + 0.3, (width * aspect + 0.12) * len(layers) + 0.7),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    if title is not None:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    grid = figure.subplots(len(layers), columns, squeeze=False)
    for row, ((name, heads), axes) in enumerate(zip(layers.items(), grid, strict=True)):
        axes[0].set_ylabel(name, fontsize=7)
        maps = [np.mean(heads, axis=0), *heads]
        titles = ["mean of heads", *(f"head {head}" for head in range(len(heads)))]
        for one, heat, label in zip(axes, maps, titles, strict=False):
            _show(one, overlay(image, heat), None if row else label)
            if query is not None:
                one.plot(query[1], query[0], "+", color="#31f4ff", markersize=9, markeredgewidth=2)
        for one in axes[len(maps) :]:
            one.axis("off")
    figure.savefig(out, dpi=110)


def _show(axes: Any, image: Image.Image, label: str | None) -> None:
    axes.imshow(np.asarray(image))
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if label is not None:
        axes.set_title(label, fontsize=9)


def _draw_bars(axes: Any, explanation: Explanation) -> None:
    """The likeliest classes, the explained ones not marked: they stand over their overlays."""
    axes.set_axis_on()
    top = explanation.top
    places = range(len(top))
    axes.barh(places, [one.probability for one in top], height=0.75, color="#9ecae1")
    for place, one in zip(places, top, strict=True):
        label = f"{_short(one.name)}  {one.probability:.1%}"
        axes.text(0.02, place, label, va="center", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(4.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title("taken for", fontsize=9)


def _short(name: str) -> str:
    """The first of ImageNet's names, cut where it would run into its neighbour."""
    first = name.split(", ")[0]
    return first if len(first) <= 22 else first[:21] + "…"


def draw_faithfulness(report: Report, out: Path, *, title: str) -> None:
    """Curves of deletion and insertion; where boxes are known, pointing game and energy as bars."""
    width = 9.0 if report.box_share is None else 14.0
    figure = Figure(figsize=(width, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    plot_faithfulness(figure, [report])
    figure.savefig(out, dpi=110)


def plot_faithfulness(figure: Any, reports: Sequence[Report]) -> None:
    """The panels of ``draw_faithfulness`` on a figure or subfigure.

    Args:
        figure: Where to draw; four panels side by side, two without boxes.
        reports: Of one or several networks that were measured with the same methods: their mean is
            drawn. A bar of one carries its standard error, of several a dot for each.
    """
    boxed = all(report.box_share is not None for report in reports)
    widths = [1.3, 1.3, 1, 1] if boxed else [1, 1]
    panels = figure.subplots(1, len(widths), width_ratios=widths)
    for axes, name, better, what in (
        (panels[0], "deletion", "lower", "hottest pixels taken away (%)"),
        (panels[1], "insertion", "higher", "hottest pixels brought back (%)"),
    ):
        _plot_curves(axes, reports, name)
        axes.set_title(f"{name.capitalize()}, {better} is truer", fontsize=11)
        axes.set(xlabel=what, xlim=(0, 100), ylim=(0, 1))
    panels[0].set_ylabel("probability of the predicted class")
    bars = (("pointing", "Peak in the box"), ("energy", "Energy in the box"))
    for axes, (name, label) in zip(panels[2:], bars, strict=False):
        _plot_bars(axes, reports, name)
        axes.set_title(label, fontsize=11)
        axes.set(ylim=(0, 109), yticks=range(0, 101, 20))
    if boxed:
        panels[2].set_ylabel("per cent")
    for axes in panels:
        axes.grid(alpha=0.3, axis="y" if axes in panels[2:] else "both")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def _plot_curves(axes: Any, reports: Sequence[Report], name: str) -> None:
    for method in reports[0].methods:
        scores = [report.methods[method] for report in reports]
        curve = np.mean([getattr(score, f"{name}_curve") for score in scores], axis=0)
        area = np.mean([getattr(score, name).mean for score in scores])
        share = np.linspace(0, 100, len(curve))
        colour = _METHOD_COLOURS[method]
        axes.plot(share, curve, color=colour, linewidth=2, label=f"{method}  {area:.3f}")
    axes.legend(title="area under the curve", title_fontsize=9, fontsize=9, frameon=False)


def _plot_bars(axes: Any, reports: Sequence[Report], name: str) -> None:
    methods = list(reports[0].methods)
    for place, method in enumerate(methods):
        scores = [getattr(report.methods[method], name) for report in reports]
        values = [100 * score.mean for score in scores]
        height = float(np.mean(values))
        axes.bar(place, height, width=0.7, color=_METHOD_COLOURS[method], alpha=0.85)
        highest = max(values)
        if len(reports) == 1:
            error = 100 * scores[0].error
            axes.errorbar(place, height, error, color="black", capsize=4, linewidth=1.2)
            highest += error
        else:
            axes.plot([place] * len(values), values, "o", color="black", markersize=3.5)
        axes.text(place, highest + 2, f"{height:.1f}", ha="center", fontsize=9)
    if name == "energy":
        share = 100 * float(np.mean([report.box_share for report in reports]))
        label = f"area of the box, {share:.1f}"
        axes.axhline(share, color="#252525", linestyle="--", linewidth=1.2, label=label)
        axes.legend(loc="upper right", fontsize=9, frameon=False)
    axes.set_xticks(range(len(methods)), methods, fontsize=9)
    axes.tick_params(axis="x", length=0)


def draw_confusion(
    labels: NDArray[np.int64],
    taken: NDArray[np.int64],
    names: Sequence[str],
    out: Path,
    *,
    title: str,
) -> None:
    """Which class is taken for which: a matrix with names, or an image of it and the worst pairs.

    Rows and columns are the classes that have images. What is taken for a class without images
    is counted in a column of its own.

    Args:
        labels: Right class of each image, (N,).
        taken: Class that it was taken for, (N,).
        names: Name of each class number.
    """
    classes = np.unique(labels)
    place = np.full(len(names), len(classes))
    place[classes] = np.arange(len(classes))
    shown = [_short(names[number]) for number in classes]
    if len(classes) <= _MOST_NAMED:
        figure = _confusion_matrix(place[labels], place[taken], shown)
    else:
        figure = Figure(figsize=(14, 7), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        _draw_confusion_image(left, place[labels], place[taken], len(classes))
        _draw_confused_pairs(right, labels, taken, names)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    figure.savefig(out, dpi=110)


def _confusion_matrix(
    rows: NDArray[np.int64], columns: NDArray[np.int64], names: Sequence[str]
) -> Figure:
    """Counts of each class, coloured by their share of the row."""
    others = int(columns.max()) == len(names)
    counts = np.zeros((len(names), len(names) + others), np.int64)
    np.add.at(counts, (rows, columns), 1)
    shares = counts / counts.sum(1, keepdims=True)
    side = max(5.0, 0.32 * len(names) + 2.2)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.6 else "black"
        text = f"{counts[row, column]}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(counts.shape[1]), [*names, *["others"] * others], rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="taken for", ylabel="right class")
    axes.tick_params(length=0)
    return figure


def _draw_confusion_image(
    axes: Any, rows: NDArray[np.int64], columns: NDArray[np.int64], count: int
) -> None:
    """The matrix with one cell for several classes where there are more than pixels to see."""
    cells = min(count, _MOST_CELLS)
    inside = columns < count
    counts = np.zeros((cells, cells))
    np.add.at(counts, (rows[inside] * cells // count, columns[inside] * cells // count), 1)
    totals = np.bincount(rows * cells // count, minlength=cells)
    shares = 100 * counts / totals[:, None]
    extent = (-0.5, count - 0.5, count - 0.5, -0.5)
    # The rarest confusion gets a colour that can be told from white.
    norm = LogNorm(vmin=30 / max(30, int(totals.max())), vmax=100)
    masked = np.ma.masked_equal(shares, 0)
    image = axes.imshow(masked, cmap="magma_r", norm=norm, extent=extent, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="per cent of the row", shrink=0.8, format="%g")
    axes.set(xlabel="taken for, place among the classes", ylabel="right class")
    away = np.count_nonzero(~inside)
    note = f", {away:,} taken for classes without images" if away else ""
    axes.set_title(f"{count:,} classes{note}", fontsize=11)


def _draw_confused_pairs(
    axes: Any, labels: NDArray[np.int64], taken: NDArray[np.int64], names: Sequence[str]
) -> None:
    """The pairs that are confused most often, with their share of the class's images."""
    wrong = labels != taken
    pairs, times = np.unique(np.stack([labels[wrong], taken[wrong]], 1), axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")[:_MOST_PAIRS]
    places = range(len(order))
    axes.barh(places, times[order], height=0.75, color="#9ecae1")
    for place, (label, other), number in zip(places, pairs[order], times[order], strict=True):
        share = number / np.count_nonzero(labels == label)
        text = f" {_short(names[label])} \N{RIGHTWARDS ARROW} {_short(names[other])}"
        axes.text(0, place, f"{text}  {number} ({share:.0%})", va="center", fontsize=8)
    axes.set(ylim=(_MOST_PAIRS - 0.5, -0.5), xlim=(0, 1.05 * times.max(initial=1)))
    axes.set(yticks=[], xlabel="images")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title("Most frequent confusions (share of the class)", fontsize=11)
