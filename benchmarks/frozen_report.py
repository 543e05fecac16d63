"""The page and the plot of frozen_pools.py, from its rows alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t as student

from convattn.text import markdown_table
from frozen_features import DEFECTS

Row = Mapping[str, str]
REFERENCES = ("avg-bn", "avg")
LIMIT = -0.5
THIN = DEFECTS[0], DEFECTS[2]
READING = "## Reading it"
TITLES = {
    "hymenoptera": "hymenoptera, 244 images",
    "magnetic_tiles": "magnetic_tiles, 5 folds",
    "tiny_10": "tiny_imagenet_40, 10 images a class",
    "tiny_100": "tiny_imagenet_40, 100 images a class",
    "tiny_500": "tiny_imagenet_40, 500 images a class",
}
INTRODUCTION = """\
One backbone, EfficientNet-Lite0 with ImageNet weights, frozen; heads on its last map (1280 x 7 x
7, on magnetic tiles 1280 x 10 x 10). A head is a pool, with `-bn` a BatchNorm without affine
behind it, and a linear layer: `query` is `ep` with one query from zero and no values, `ep8` has
eight, `class` is pool and classifier at once, `aggregation` is the paper's block with its
LayerScale of 1e-4 and `-ls1` with 1; its rate is a thirtieth of its classifier's, which is the one
named here. AdamW, weight decay 0.01, batch 64, cosine to zero, 20 epochs (tiny_imagenet_40: 12),
the same images in the same order for every head of a seed. Learning rates: a grid of factor 3 (six
to begin with, four for the paper's block), widened while the best lies at its edge, chosen on a
fifth of the training part (equal accuracies: by cross-entropy); then the head is trained again on
the whole part and tested once. `frozen_pools.csv` has every run with its grid.

A seed draws the training images, the fifth, the order and the first weights; the test images stay
the same, so the intervals (Student's, 95 %, of the paired differences) say what another seed would
give. On magnetic_tiles a seed is one of five folds. Its pictures of one tile do not share a number
in their names, as is said of them: no number occurs twice. They follow each other, six to a tile,
so a tile is what no leap of more than 100 parts: 224 tiles, kept together in every split. Balanced
accuracy there; the score is accuracy elsewhere.
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
images, over all seeds.
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
    half = float("nan")
    if len(gains) > 1:
        half = float(student(len(gains) - 1).ppf(0.975)) * statistics.stdev(gains)
        half /= len(gains) ** 0.5
    return statistics.mean(gains), half, len(gains)


def interval(found: tuple[float, float, int] | None) -> str:
    """Mean and interval as text."""
    if found is None:
        return ""
    mean, half, count = found
    return f"{mean:+.2f}" + (f" ({mean - half:+.2f} to {mean + half:+.2f})" if count > 1 else "")


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
    """docs/frozen_pools.md and .png; what stands below "Reading it" in the page is kept."""
    file = docs / "frozen_pools.md"
    kept = file.read_text().partition(READING)[2] if file.exists() else "\n"
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
        "# Accuracy",
        "",
    ]
    known = {name: sets[name] for name in TITLES if name in sets}
    by_head = {name: _by_head(rows, names) for name, rows in known.items()}
    for name, heads in by_head.items():
        trained = {head: rows for head, rows in heads.items() if rows[0]["parameters"]}
        lines += [f"## {TITLES[name]}", "", accuracy_table(trained), ""]
    lines += ["# Where the maps point", "", MAPS]
    for name, heads in by_head.items():
        if name != "hymenoptera":
            tiles = name == "magnetic_tiles"
            asked = (
                (*DEFECTS, "defect_tracked") if tiles else ("box", "small_box", "small_box_tiled")
            )
            lines += [f"## Maps: {TITLES[name]}", "", map_table(heads, asked), ""]
    file.write_text("\n".join(lines))
    draw(by_head, docs / "frozen_pools.png")


def _by_head(rows: Sequence[Row], order: Sequence[str]) -> dict[str, list[Row]]:
    names = [*order, "any cell", "length of x"]
    found = {name: [row for row in rows if row["head"] == name] for name in names}
    return {name: rows for name, rows in found.items() if rows}


def draw(sets: Mapping[str, Mapping[str, Sequence[Row]]], file: Path) -> None:
    """Paired differences with their intervals, a panel a set."""
    figure = Figure(figsize=(3.1 * len(sets) + 1.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(sets), squeeze=False, sharey=True)[0]
    names = {head: None for heads in sets.values() for head in heads}
    heads_shown = [head for head in names if head not in (*REFERENCES, "any cell", "length of x")]
    for panel, (title, heads) in zip(panels, sets.items(), strict=True):
        panel.axvline(0, color="grey", linewidth=1)
        panel.axvline(LIMIT, color="C3", linewidth=1, linestyle=":")
        for number, reference in enumerate(REFERENCES):
            for place, head in enumerate(heads_shown):
                found = None
                if head in heads and reference in heads:
                    found = paired(heads[head], heads[reference], score)
                if found is None:
                    continue
                panel.errorbar(
                    found[0],
                    place + 0.13 * (2 * number - 1),
                    xerr=found[1] if found[2] > 1 else None,
                    fmt="os"[number],
                    color=f"C{number}",
                    markerfacecolor="white" if number else f"C{number}",
                    capsize=2,
                    label=f"against {reference}" if place == 0 else None,
                )
        panel.set_title(TITLES[title].replace(", ", "\n"), fontsize=10)
        panel.set_xlabel("points")
        panel.set_xscale("symlog", linthresh=2, linscale=1.5)
        ticks = (-20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20)
        low, high = panel.get_xlim()
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
        panel.set_xlim(low, high)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(heads_shown)), heads_shown)
    panels[0].invert_yaxis()
    panels[0].legend(fontsize=8, loc="best")
    figure.suptitle("Paired difference over the seeds, with 95 % intervals; dotted: -0.5 points")
    figure.savefig(file, dpi=110)
