"""Images of what the rest of this package finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from convattn.explanation.faithfulness import Report
from convattn.explanation.heatmap import Explanation
from convattn.explanation.overlay import overlay
from convattn.explanation.truth.intervals import Interval
from convattn.explanation.truth.report import MEASURES, TruthReport
from convattn.text import figure_text, shorten_name

_NAMES = {"attention": "attention", "gradcam": "Grad-CAM", "evidence": "evidence"}
FIGURE_SIDE = 480
"""Pixels of the longer side that an image in a figure is drawn with at most."""
_METHOD_COLOURS = {
    "evidence": "#238b45",
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
        figure.suptitle(figure_text(title), fontsize=12, fontweight="bold")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row, axes in zip(rows, grid, strict=True):
        for one in axes:
            one.axis("off")
        _show(axes[0], row[0].overlay(opacity=0, max_side=FIGURE_SIDE), "image")
        _draw_bars(axes[1], row[0])
        axes[1].set_box_aspect(row[0].image.height / row[0].image.width)
        for explanation, one in zip(row, axes[2:], strict=False):
            target = explanation.target
            label = f"{figure_text(shorten_name(target.name))}  {target.probability:.0%}"
            _show(one, explanation.overlay(max_side=FIGURE_SIDE), label)
            how = _NAMES[explanation.method]
            if not explanation.class_specific:
                how += ", the same for every class"
            if explanation.bias is not None:
                how = explanation.describe_sum()
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
        figure.suptitle(figure_text(title), fontsize=11, fontweight="bold")
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
        label = f"{figure_text(shorten_name(one.name))}  {one.probability:.1%}"
        axes.text(0.02, place, label, va="center", fontsize=8)
    axes.set(xlim=(0, 1), ylim=(4.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title("taken for", fontsize=9)


def draw_faithfulness(report: Report, out: Path, *, title: str) -> None:
    """Curves of deletion and insertion; where boxes are known, pointing game and energy as bars."""
    width = 9.0 if report.box_share is None else 14.0
    figure = Figure(figsize=(width, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(figure_text(title), fontsize=13, fontweight="bold")
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


_VERDICT_COLOURS = {"believe": "#238b45", "doubt": "#d98f01", "do not believe": "#b3191f"}
_PANELS_A_ROW = 4


def draw_truth(report: TruthReport, out: Path, *, title: str) -> None:
    """A panel a measure: every method's figure and its interval, in its verdict's colour."""
    shown = [
        name
        for name in MEASURES
        if any(isinstance(cells[name], Interval) for cells in report.cells.values())
    ]
    methods = list(report.cells)
    num_rows = -(-len(shown) // _PANELS_A_ROW)
    height = (0.28 * len(methods) + 0.8) * num_rows + 0.9
    figure = Figure(figsize=(13, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(figure_text(title), fontsize=13, fontweight="bold")
    panels = figure.subplots(num_rows, _PANELS_A_ROW, squeeze=False, sharey=True)
    for axes, name in zip(panels.flat, shown, strict=False):
        for place, method in enumerate(methods):
            colour = _VERDICT_COLOURS[report.verdicts[method].word]
            _plot_interval(axes, place, report.cells[method][name], colour)
        axes.set_title(f"{name} ({MEASURES[name].truer})", fontsize=10)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(alpha=0.3, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for row in panels:
        row[0].set_yticks(range(len(methods)), methods, fontsize=9)
        row[0].set_ylim(len(methods) - 0.5, -0.5)
    handles = [
        figure.axes[0].plot([], [], "o", color=colour, label=word)[0]
        for word, colour in _VERDICT_COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(out, dpi=110)


def _plot_interval(axes: Any, place: int, cell: Interval | str, colour: str) -> None:
    if isinstance(cell, str):
        left = axes.get_yaxis_transform()
        axes.text(0.02, place, "n/a", fontsize=7, color="#969696", va="center", transform=left)
        return
    axes.plot([cell.low, cell.high], [place, place], color=colour, linewidth=2)
    axes.plot(cell.value, place, "o", color=colour, markersize=5)
