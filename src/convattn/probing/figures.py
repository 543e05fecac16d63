"""Pictures of a probe: accuracy against parameters, and where its network looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from convattn.data import ImageFiles, TensorImages, read_image
from convattn.explanation import explain_classes
from convattn.explanation.figures import draw_explanations
from convattn.probing.report import KNN, REFERENCE, Findings, over_seeds
from convattn.probing.scores import is_multi_label
from convattn.runs import Run
from convattn.text import figure_text, report

_NUM_IMAGES = 8


def draw_accuracies(findings: Findings, out: Path, *, title: str) -> None:
    """Two panels: means over seeds against parameters, and differences to the average pool.

    Args:
        findings: What was found.
        out: The PNG to write.
        title: Stands above.
    """
    first, name = next(iter(findings.measures.items()))
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(figure_text(title), fontsize=12, fontweight="bold")
    left, right = figure.subplots(1, 2)
    shown = [pool for pool in findings.pools if pool != KNN]
    sizes = [findings.values(pool, "parameters")[0] for pool in shown]
    beside = max(2.0, max(sizes) / min(sizes)) ** 0.012  # those of one size stand side by side
    for place, pool in enumerate(shown):
        found = over_seeds(findings.values(pool, first))
        error = None
        if found.low is not None:
            error = 100 * (found.mean - found.low)
        left.errorbar(
            sizes[place] * beside ** sizes[:place].count(sizes[place]),
            100 * found.mean,
            yerr=error,
            fmt="o",
            color=f"C{place % 10}" if place < 10 else "black",
            capsize=3,
            label=pool,
        )
    if KNN in findings.pools:
        mean = 100 * over_seeds(findings.values(KNN, first)).mean
        left.axhline(mean, color="grey", linestyle="--", linewidth=1, label=KNN)
    left.set(xscale="log", xlabel="parameters of pool and classifier", ylabel=f"{name}, per cent")
    left.set_ylim(top=min(100.5, left.get_ylim()[1]))
    left.legend(fontsize=8, frameon=False, ncols=2)
    compared = [pool for pool in findings.pools if pool != REFERENCE]
    for place, pool in enumerate(compared):
        found = findings.difference(pool, first)
        error = None if found.high is None else 100 * (found.high - found.mean)
        seeds, images = ("over seeds", "over test images") if place == 0 else (None, None)
        right.errorbar(
            100 * found.mean, place - 0.12, xerr=error, fmt="o", color="C0", capsize=3, label=seeds
        )
        if first == "accuracy":
            drawn = findings.difference_over_images(pool)
            assert drawn.low is not None
            assert drawn.high is not None
            low, high = 100 * (drawn.mean - drawn.low), 100 * (drawn.high - drawn.mean)
            right.errorbar(
                100 * drawn.mean,
                place + 0.12,
                xerr=[[low], [high]],
                fmt="s",
                color="C1",
                markerfacecolor="white",
                capsize=3,
                label=images,
            )
    right.axvline(0, color="grey", linewidth=1)
    right.set_yticks(range(len(compared)), compared)
    right.set_ylim(len(compared) - 0.5, -0.5)
    right.set(xlabel=f"{name}: points over {REFERENCE}, 95 % intervals")
    if compared:
        right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110)


def draw_evidence(
    folder: Path,
    images: TensorImages | ImageFiles,
    logits: Tensor,
    class_names: Sequence[str],
    *,
    title: str,
) -> None:
    """``evidence.png``: test images, half of them mistakes where there are, with their maps.

    The first map of an image is that of its own class, the second of the likeliest other.

    Args:
        folder: The run folder, whose network is explained.
        images: The test images.
        logits: (N, K), what the network says of them.
        class_names: Of the data.
        title: Stands above.
    """
    model = Run.open(folder).load_model()
    rows = []
    try:
        for place in choose_images(logits, images.labels).tolist():
            classes = _classes_shown(logits[place], images.labels[place])
            image = _image(images, place)
            rows.append(explain_classes(model, image, classes))
    except ModuleNotFoundError as error:
        report(f"no sheet of images: this pool is shown by {error.name}, of the explain extra")
        return
    if is_multi_label(images.labels):
        shown = "maps of up to two classes that an image shows"
    else:
        shown = (
            "the surest mistakes first; left map: the true class, right map: the likeliest other"
        )
    draw_explanations(rows, folder / "evidence.png", title=f"{title}: {shown}")


def choose_images(logits: Tensor, labels: Tensor) -> Tensor:
    """Up to eight test images, the surest mistakes and the rest in turns of the classes.

    Args:
        logits: (N, K).
        labels: (N,), or (N, K) of 0 and 1.
    """
    if is_multi_label(labels):
        return torch.arange(min(_NUM_IMAGES, len(labels)))
    sure, said = logits.softmax(1).max(1)
    wrong = (said != labels).nonzero()[:, 0]
    wrong = wrong[sure[wrong].argsort(descending=True)][: _NUM_IMAGES // 2]
    turns = torch.zeros(len(labels), dtype=torch.int64)
    for number in labels.unique():
        own = labels == number
        turns[own] = torch.arange(int(own.sum()))
    right = (said == labels).nonzero()[:, 0]
    right = right[(turns[right] * (int(labels.max()) + 1) + labels[right]).argsort()]
    return torch.cat([wrong, right])[:_NUM_IMAGES]


def _classes_shown(logits: Tensor, label: Tensor) -> list[int]:
    ranked: list[int] = logits.argsort(descending=True).tolist()
    if label.dim():
        own = label.nonzero()[:, 0].tolist()[:2]
        return own or ranked[:1]
    others = [number for number in ranked if number != int(label)]
    return [int(label), *others[:1]]


def _image(images: TensorImages | ImageFiles, place: int) -> Image.Image:
    if isinstance(images, ImageFiles):
        return read_image(images.paths[place])
    image: Image.Image = to_pil_image(images.images[place]).convert("RGB")
    return image
