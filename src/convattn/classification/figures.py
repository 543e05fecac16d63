"""Figures of a classifier: where it looks on test images, and what it takes for what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchvision.transforms.functional import to_pil_image

from convattn.charts import confusion_figure
from convattn.classification.predictions import THRESHOLD
from convattn.explanation import attention_maps
from convattn.explanation.overlay import overlay
from convattn.text import figure_text, shorten_name

_FEW = 3  # names of one image
_MOST_NAMED, _MOST_CELLS, _MOST_PAIRS = 40, 500, 20  # of a confusion matrix


def draw_attention(
    model: nn.Module,
    images: Tensor,
    labels: Sequence[int] | Tensor,
    out: Path,
    *,
    class_names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    boxes: Tensor | None = None,
    title: str,
) -> None:
    """Test images beside themselves with the attention laid over.

    Args:
        model: The trained classifier, which has attention.
        images: (B, C, H, W), normalised; 12 fill the page.
        labels: The true class numbers; or which classes an image has, (B, K) of 0 and 1.
        out: The PNG to write.
        class_names: Name of each class number.
        mean: Of the normalisation, per channel.
        std: Of the normalisation, per channel.
        boxes: (B, 4) in pixels, drawn where there are any.
        title: Stands above.

    Raises:
        ValueError: If the model has no attention.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits, maps, grid = attention_maps(model.eval(), images.to(device))
    guesses, truths = _named(logits.cpu(), labels, class_names)
    size = grid.image_size
    heats = grid.heat(maps).cpu().numpy()
    scale, shift = (torch.tensor(values).view(-1, 1, 1) for values in (std, mean))
    shown = [to_pil_image(image) for image in (images * scale + shift).clamp(0, 1)]
    # One axes for the whole page: matplotlib takes seconds to lay out dozens of them.
    num_pairs, gap, title_height = min(4, len(images)), 0.06, 0.2
    tall = size[0] / size[1]
    num_rows = math.ceil(len(images) / num_pairs)
    width, height = num_pairs * (2 + 3 * gap) - 2 * gap, num_rows * (tall + title_height)
    figure = Figure(figsize=(13, 13 * height / width + 0.55), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(figure_text(title), fontsize=13, fontweight="bold")
    axes = figure.subplots()
    axes.axis("off")
    for index, (image, heat) in enumerate(zip(shown, heats, strict=True)):
        image = image.convert("RGB")
        row, pair = divmod(index, num_pairs)
        top = row * (tall + title_height) + title_height
        left = pair * (2 + 3 * gap)
        right = left + 1 + gap
        guess, truth = guesses[index], truths[index]
        verdict, colour = ("✓", "#006d2c") if guess == truth else ("✗", "#cb181d")
        for panel, start, label, ink in (
            (image, left, figure_text(_few(truth)), "black"),
            (overlay(image, heat), right, f"{verdict} {figure_text(_few(guess))}", colour),
        ):
            axes.imshow(panel, extent=(start, start + 1, top + tall, top))
            axes.text(start + 0.5, top - 0.04, label, ha="center", fontsize=10, color=ink)
        if boxes is not None:
            xmin, ymin, xmax, ymax = boxes[index].tolist()
            axes.add_patch(
                Rectangle(
                    (right + xmin / size[1], top + ymin / size[1]),
                    (xmax - xmin) / size[1],
                    (ymax - ymin) / size[1],
                    fill=False,
                    edgecolor="white",
                    linewidth=1.2,
                )
            )
    axes.set(xlim=(0, width), ylim=(height, 0))
    figure.savefig(out, dpi=110)


def _named(
    logits: Tensor, labels: Sequence[int] | Tensor, class_names: Sequence[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """The classes that each image is taken for, and those that it has."""
    if isinstance(labels, Tensor) and labels.ndim == 2:
        taken, there = logits.sigmoid() >= THRESHOLD, labels.bool()
    else:
        num_classes = len(class_names)
        taken = one_hot(logits.argmax(1), num_classes)
        there = one_hot(torch.as_tensor(labels), num_classes)

    def names(rows: Tensor) -> list[list[str]]:
        return [[class_names[one] for one in row.nonzero()[:, 0].tolist()] for row in rows]

    return names(taken), names(there)


def _few(names: Sequence[str]) -> str:
    """The one name; or the first of several, shortened."""
    if len(names) == 1:
        return names[0]
    more = f" +{len(names) - _FEW}" if len(names) > _FEW else ""
    return ", ".join(map(shorten_name, names[:_FEW])) + more or "none"


def draw_average_precisions(per_class: Mapping[str, float], out: Path, *, title: str) -> None:
    """The average precision of each class as a bar, the worst first; the worst 40 of many.

    Args:
        per_class: Average precision by the class's name.
        out: The PNG to write.
        title: Stands above.
    """
    worst = sorted(per_class.items(), key=lambda one: one[1])[:_MOST_NAMED]
    figure = Figure(figsize=(9, max(2.5, 0.26 * len(worst) + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(figure_text(title), fontsize=11, fontweight="bold")
    axes = figure.subplots()
    places = range(len(worst))
    axes.barh(places, [value for _, value in worst], height=0.75, color="#9ecae1")
    for place, (_, value) in enumerate(worst):
        axes.text(min(value, 0.93) + 0.005, place, f"{value:.1%}", va="center", fontsize=8)
    axes.set_yticks(places, [figure_text(shorten_name(name)) for name, _ in worst], fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(worst) - 0.5, -0.5), xlabel="average precision")
    axes.spines[["top", "right"]].set_visible(False)
    if len(worst) < len(per_class):
        axes.set_title(f"The worst {len(worst)} of {len(per_class):,} classes", fontsize=9)
    figure.savefig(out, dpi=110)


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
    shown = [names[number] for number in classes]
    if len(classes) <= _MOST_NAMED:
        figure = _confusion_matrix(place[labels], place[taken], shown)
    else:
        figure = Figure(figsize=(14, 7), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
        _draw_confusion_image(left, place[labels], place[taken], len(classes))
        _draw_confused_pairs(right, labels, taken, names)
    FigureCanvasAgg(figure)
    figure.suptitle(figure_text(title), fontsize=11, fontweight="bold")
    figure.savefig(out, dpi=110)


def _confusion_matrix(
    rows: NDArray[np.int64], columns: NDArray[np.int64], names: Sequence[str]
) -> Figure:
    """Counts of each class, coloured by their share of the row."""
    others = int(columns.max()) == len(names)
    counts = np.zeros((len(names), len(names) + others), np.int64)
    np.add.at(counts, (rows, columns), 1)
    return confusion_figure(counts, names, [*names, *["others"] * others])


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
        ours, theirs = (figure_text(shorten_name(names[one])) for one in (label, other))
        text = f" {ours} \N{RIGHTWARDS ARROW} {theirs}"
        axes.text(0, place, f"{text}  {number} ({share:.0%})", va="center", fontsize=8)
    axes.set(ylim=(_MOST_PAIRS - 0.5, -0.5), xlim=(0, 1.05 * times.max(initial=1)))
    axes.set(yticks=[], xlabel="images")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title("Most frequent confusions (share of the class)", fontsize=11)
