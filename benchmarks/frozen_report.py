"""The page and the plot of frozen_pools.py, from its rows alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from convattn.text import markdown_table
from frozen_features import DEFECTS
from study import over_seeds

Row = Mapping[str, str]
REFERENCES = ("avg-bn", "avg")
LIMIT = -0.5
CHOICES = ("score", "cross-entropy")
THIN = DEFECTS[0], DEFECTS[2]
READING, ACCURACY = "## Reading it", "## Accuracy"
TITLES = {
    "hymenoptera": "hymenoptera, 244 images",
    "magnetic_tiles": "magnetic_tiles, 5 folds",
    "tiny_10": "tiny_imagenet_40, 10 images a class",
    "tiny_100": "tiny_imagenet_40, 100 images a class",
    "tiny_500": "tiny_imagenet_40, 500 images a class",
}
INTRODUCTION = """\
One backbone, EfficientNet-Lite0 with ImageNet weights (867 of 1,000 sample pictures right),
frozen; heads on its last map (1280 x 7 x 7, on magnetic tiles 1280 x 10 x 10). A head is a pool,
with `-bn` a BatchNorm without affine behind it, and a linear layer: `ep1` is `ep` with one query
from zero and no values, `ep8` has eight, `class` is pool and classifier at once, `aggregation` is
the paper's block with its LayerScale of 1e-4 and `-ls1` with 1. The rate named is the
classifier's; the pool's is the same, in `-slow` a tenth of it, in the paper's block a thirtieth.
AdamW, weight decay 0.01, batch 64, cosine to zero, 20 epochs (tiny_imagenet_40: 12), the same
images in the same order for every head of a seed.

Learning rates: a grid of factor 3, six to begin with (four for the paper's block), widened until
the best lies inside, judged on a fifth of the training part; then the head is trained again on the
whole part and tested once. The best by the score is what is usual (equal scores: by
cross-entropy), but the fifth is small, 49 images of hymenoptera, and what it chooses is partly
chance; the best by cross-entropy is steadier. Both are reported. `frozen_pools.csv` has every run
with its grid.

A seed draws the training images, the fifth, the order and the first weights; the test images stay
the same, so the intervals (Student's, 95 %, of the paired differences) say what another seed would
give. On magnetic_tiles a seed is one of five folds. Pictures of one tile do not share a number
there, no number occurs twice; they follow each other, six to a tile, so a new tile begins where
the numbers leap by more than 100: 224 tiles, kept together in every split. The score is balanced
accuracy there, accuracy elsewhere.
"""
MAPS = """\
Evidence is the exact share of the true class's logit (`pool.contributions`, BatchNorm folded; the
script asserts that it adds up to the logit); of the average pool it is CAM, and Grad-CAM of that
head has the same peak. Attention is the pool's own weights (the true class's query in `class`, the
mean over several queries). Peak in the box: the point that the strongest cell looks at, as in
`convattn.explanation`, lies in the box; small boxes cover less than 30 % of the image, `tiled`
takes the middles of equal tiles for those points instead. On magnetic_tiles the strongest cell, a
square of 32 pixels, holds a pixel of the mask; `tracked` moves the squares to where the cells look
(15.5 pixels down and right). `any cell` is chance, `length of x` the peak of |x|. Percent of
images, over all seeds. Of the heads whose rate cross-entropy chose; the others are in the CSV.
"""


def score(row: Row) -> float:
    """What is compared, in percent."""
    name = "balanced_accuracy" if row["data"] == "magnetic_tiles" else "accuracy"
    return 100 * float(row[name])


def share(row: Row, question: str) -> float | None:
    """Percent of the images whose peak points at the object."""
    hits, _, images = row[question].partition("/")
    return 100 * float(hits) / float(images) if images and float(images) else None


def pooled(rows: Sequence[Row], question: str) -> str:
    """The percentage over the images of all rows."""
    pairs = [row[question].split("/") for row in rows if row[question]]
    images = sum(float(pair[1]) for pair in pairs)
    return f"{100 * sum(float(pair[0]) for pair in pairs) / images:.1f}" if images else ""


def paired(
    rows: Sequence[Row], others: Sequence[Row], value: Callable[[Row], float | None]
) -> tuple[float, float, int] | None:
    """Mean difference over the seeds that both have, half its 95 % interval, their number."""
    theirs = {row["seed"]: value(row) for row in others}
    gains = []
    for row in rows:
        mine, other = value(row), theirs.get(row["seed"])
        if mine is not None and other is not None:
            gains.append(mine - other)
    if not gains:
        return None
    return *over_seeds(np.array(gains)), len(gains)


def interval(found: tuple[float, float, int] | None) -> str:
    """Mean and interval as text."""
    if found is None:
        return ""
    mean, half, count = found
    return f"{mean:+.2f}" + (f" ({mean - half:+.2f} to {mean + half:+.2f})" if count > 2 else "")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def accuracy_table(heads: Mapping[str, Sequence[Row]]) -> str:
    """A line a head."""
    lines = []
    for name, rows in heads.items():
        rates = sorted(float(row["lr"]) for row in rows)
        cells = [name, f"{int(rows[0]['parameters']):,}", str(len(rows))]
        cells += [spread([score(row) for row in rows])]
        cells += [spread([float(row["cross_entropy"]) for row in rows], 3)]
        cells += [f"{statistics.median_low(rates):g} ({rates[0]:g} to {rates[-1]:g})"]
        verdicts = []
        for reference in REFERENCES:
            found = None
            if reference in heads and reference != name:
                found = paired(rows, heads[reference], score)
            cells.append(interval(found))
            if found is not None:
                verdicts.append(f"{reference}: {'yes' if found[0] > LIMIT else 'no'}")
        cells.append("" if name in REFERENCES else ", ".join(verdicts))
        lines.append(cells)
    columns = ("head", "parameters", "seeds", "score, %", "cross-entropy", "rate, median and range")
    differences = [f"against {reference}" for reference in REFERENCES]
    return markdown_table((*columns, *differences, "mean above -0.5"), lines)


def map_table(heads: Mapping[str, Sequence[Row]], questions: Sequence[str]) -> str:
    """A line a map: percentages, and where boxes are known the difference to CAM."""
    lines = []
    for name, rows in heads.items():
        for kind in ("evidence", "attention"):
            if not rows[0][f"{kind}_{questions[0]}"]:
                continue
            label = name if rows[0]["parameters"] == "" else f"{name}, {kind}"
            line = [label, *(pooled(rows, f"{kind}_{question}") for question in questions)]
            cam = heads.get("avg", ())
            if "small_box" in questions:
                line.append(_against_cam(rows, cam, kind, "small_box"))
            else:
                line += [_times_cam(rows, cam, kind, name) for name in THIN]
            lines.append(line)
    last = ["small box, against CAM of avg"]
    if "small_box" not in questions:
        last = [f"{name}, times CAM of avg" for name in THIN]
    return markdown_table(
        ("map", *(question.replace("_", " ") for question in questions), *last), lines
    )


def _against_cam(rows: Sequence[Row], cam: Sequence[Row], kind: str, question: str) -> str:
    if kind == "evidence" and rows == cam:
        return ""
    others = [{**row, f"{kind}_{question}": row[f"evidence_{question}"]} for row in cam]
    return interval(paired(rows, others, lambda row: share(row, f"{kind}_{question}")))


def _times_cam(rows: Sequence[Row], cam: Sequence[Row], kind: str, question: str) -> str:
    mine, other = pooled(rows, f"{kind}_{question}"), pooled(cam, f"evidence_{question}")
    return f"{float(mine) / float(other):.2f}" if mine and other and float(other) else ""


def write_page(
    sets: Mapping[str, Sequence[Row]], order: Iterable[str], docs: Path, machine: str, date: str
) -> None:
    """docs/results/frozen_pools.md and .png; what stands below "Reading it" in the page is kept."""
    file = docs / "frozen_pools.md"
    written = file.read_text() if file.exists() else ""
    kept = written.partition(READING)[2].partition(ACCURACY)[0]
    names = list(order)
    lines = [
        "# Light attention pools on frozen features",
        "",
        "```",
        "python benchmarks/frozen_pools.py --root DIR --weights FILE",
        "```",
        "",
        f"Torch {torch.__version__.split('+')[0]}, one thread of {machine}; {date}; seeds 0 to 4.",
        "",
        INTRODUCTION,
        "![paired differences to the average pool](frozen_pools.png)",
        "",
        f"{READING}{kept.rstrip()}",
        "",
        ACCURACY,
        "",
    ]
    known = {name: sets[name] for name in TITLES if name in sets}
    chosen = {
        how: {name: _by_head(rows, names, how) for name, rows in known.items()} for how in CHOICES
    }
    for name in known:
        lines += [f"### {TITLES[name]}", ""]
        for how, by_head in chosen.items():
            table = {head: rows for head, rows in by_head[name].items() if rows[0]["parameters"]}
            lines += [f"Rate by the validation part's {how}:", "", accuracy_table(table), ""]
    lines += ["## Where the maps point", "", MAPS]
    for name, heads in chosen[CHOICES[1]].items():
        if name != "hymenoptera":
            tiles = name == "magnetic_tiles"
            boxes = ("box", "small_box", "small_box_tiled")
            asked = (*DEFECTS, "defect_tracked") if tiles else boxes
            lines += [f"### Maps: {TITLES[name]}", "", map_table(heads, asked), ""]
    file.write_text("\n".join(lines))
    draw(chosen, docs / "frozen_pools.png")


def _by_head(rows: Sequence[Row], order: Sequence[str], how: str) -> dict[str, list[Row]]:
    names = [*order, "any cell", "length of x"]
    found = {
        name: [row for row in rows if row["head"] == name and row["chosen_by"] in ("", how)]
        for name in names
    }
    return {name: rows for name, rows in found.items() if rows}


def draw(chosen: Mapping[str, Mapping[str, Mapping[str, Sequence[Row]]]], file: Path) -> None:
    """Paired differences with their intervals: a row a way to choose the rate, a column a set."""
    sets = chosen[CHOICES[0]]
    names = {head: None for heads in sets.values() for head, rows in heads.items() if _is_new(rows)}
    figure = Figure(figsize=(2.7 * len(sets) + 1.6, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(chosen), len(sets), squeeze=False, sharey=True, sharex="col")
    for place, (how, by_set) in enumerate(chosen.items()):
        row = panels[place]
        row[0].set_ylabel(f"rate by validation {how}")
        for panel, (title, heads) in zip(row, by_set.items(), strict=True):
            _plot_differences(panel, heads, list(names))
            if place == 0:
                panel.set_title(TITLES[title].replace(", ", "\n"), fontsize=10)
            if place == len(panels) - 1:
                panel.set_xlabel("points")
    panels[0][0].invert_yaxis()
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    figure.suptitle("Paired difference over the seeds, with 95 % intervals; dotted: -0.5 points")
    figure.savefig(file, dpi=110)


def _is_new(rows: Sequence[Row]) -> bool:
    return rows[0]["parameters"] != "" and rows[0]["head"] not in REFERENCES


def _plot_differences(panel: Any, heads: Mapping[str, Sequence[Row]], names: Sequence[str]) -> None:
    panel.axvline(0, color="grey", linewidth=1)
    panel.axvline(LIMIT, color="C3", linewidth=1, linestyle=":")
    for number, reference in enumerate(REFERENCES):
        for place, head in enumerate(names):
            found = paired(heads.get(head, ()), heads.get(reference, ()), score)
            if found is not None:
                panel.errorbar(
                    found[0],
                    place + 0.13 * (2 * number - 1),
                    xerr=found[1] if found[2] > 2 else None,
                    fmt="os"[number],
                    color=f"C{number}",
                    markerfacecolor="white" if number else f"C{number}",
                    markersize=5,
                    capsize=2,
                    label=f"against {reference}" if place == 0 else None,
                )
    panel.set_yticks(range(len(names)), names)
    panel.grid(axis="x", alpha=0.3)
