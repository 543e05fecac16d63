"""Does attention lie on the object, and does the network need what it shows?

    python benchmarks/localisation.py RUN [RUN ...] --out docs/results/localisation.md
        [--num-images 1000]

RUN is a finished run folder on a data set whose boxes are known; several runs of one recipe are
its seeds. Each is measured on its test images, in the order of ``convattn evaluate``: attention
and Grad-CAM against a random map and one of the image's middle. Written are a table for each
recipe, with the mean and the range over the seeds, and a plot beside it of the same name.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import pages
from convattn.classification.dataset import open_data, test_batches
from convattn.config import TrainConfig
from convattn.explanation.faithfulness import Report, measure_faithfulness
from convattn.explanation.figures import plot_faithfulness
from convattn.runs import Run

NAMES = {
    "attention": "attention",
    "gradcam": "Grad-CAM",
    "random": "random cells",
    "centre": "the image's middle",
}


def first(batches: Iterable[Sequence[Tensor]], number: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first images of a loader, in its batches."""
    for images, labels in batches:
        yield images[:number], labels[:number]
        number -= len(images)
        if number <= 0:
            return


def name_of(config: TrainConfig) -> str:
    """What runs that differ by their seed share."""
    attention = " with attention" if config.augment.pool or config.augment.conv else ""
    return f"{config.model.name}{attention} on {config.data.name}, recipe {config.recipe}"


def measured(run: Path, config: TrainConfig, num_images: int) -> Report:
    """What the maps of a run's network are worth."""
    model: Any = Run.open(run).load_model()
    source = open_data(config.data, training=False)
    loader, boxes = test_batches(config.data, source, model.pretrained_cfg)
    if boxes is None:
        raise SystemExit(f"{run}: the boxes of {config.data.name} are not known")

    with tqdm(desc=str(run), unit=" images", disable=None) as bar:
        report = measure_faithfulness(
            model,
            first(loader, num_images),
            boxes=boxes[:num_images],
            progress=lambda done: bar.update(done - bar.n),
        )
    print(f"{run}\n{report.table()}\n", flush=True)
    return report


def over_seeds(values: Sequence[float], digits: int) -> str:
    """The mean and, of several, the range."""
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def section(name: str, reports: Sequence[Report], seeds: Sequence[int]) -> list[str]:
    """A recipe's table, and what to hold it against."""
    rows = []
    for method in reports[0].methods:
        scores = [report.methods[method] for report in reports]
        cells = [
            over_seeds([100 * score.pointing.mean for score in scores if score.pointing], 1) + " %",
            over_seeds([100 * score.energy.mean for score in scores if score.energy], 1) + " %",
            over_seeds([score.deletion.mean for score in scores], 3),
            over_seeds([score.insertion.mean for score in scores], 3),
        ]
        rows.append(f"| {NAMES[method]} | {' | '.join(cells)} |")
    empty = sum(report.methods["gradcam"].num_empty for report in reports)
    count = reports[0].num_images
    return [
        f"## {name}",
        "",
        f"{count:,} test images; seeds {', '.join(map(str, seeds))} reach a top-1 of "
        f"{' / '.join(f'{report.top1:.2%}' for report in reports)}. The box covers "
        f"{reports[0].box_share:.1%} of the image: the energy of a map that is the same "
        f"everywhere. Of {count * len(reports):,} Grad-CAM maps {empty:,} are 0 throughout.",
        "",
        "| map | peak in the box | energy in the box | deletion (lower is truer) | "
        "insertion (higher is truer) |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def page(sections: Sequence[Sequence[str]], plot: Path) -> str:
    """The page that docs keep."""
    return "\n".join(
        [
            "# Does the map tell the truth?",
            "",
            "Means over the seeds, in brackets their range. Peak (the pointing game) and energy "
            "are those of the true "
            "class's map; deletion and insertion are areas under the curves of the predicted "
            "class, in 16 steps. How to read it: [explain.md](../howto/explain.md).",
            "",
            *(line for lines in sections for line in lines),
            f"![curves of deletion and insertion, peak and energy in the box]({plot.name})",
            "",
        ]
    )


def draw(groups: dict[str, list[Report]], file: Path) -> None:
    """A row of panels for each recipe; a dot is a seed."""
    figure = Figure(figsize=(14, 4.1 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(groups), 1, squeeze=False)[:, 0]
    for row, (name, reports) in zip(rows, groups.items(), strict=True):
        row.suptitle(name, fontsize=13, fontweight="bold")
        plot_faithfulness(row, reports)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Measure every run, then write the page and its plot."""
    pages.answer_check("localisation")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a finished run folder")
    parser.add_argument("--out", type=Path, default=Path("docs/results/localisation.md"))
    parser.add_argument("--num-images", type=int, default=1000, help="test images of each run")
    arguments = parser.parse_args()
    groups: dict[str, list[Report]] = {}
    seeds: dict[str, list[int]] = {}
    for run in arguments.runs:
        config = Run.open(run).config
        report = measured(run, config, arguments.num_images)
        groups.setdefault(name_of(config), []).append(report)
        seeds.setdefault(name_of(config), []).append(config.seed)
    plot = arguments.out.with_suffix(".png")
    draw(groups, plot)
    sections = [section(name, reports, seeds[name]) for name, reports in groups.items()]
    text = page(sections, plot)
    told = ", ".join(map(str, sorted({seed for each in seeds.values() for seed in each})))
    about = pages.provenance("python benchmarks/localisation.py RUN ...", seed=told)
    pages.publish(arguments.out, text, [about])
    print(text)


if __name__ == "__main__":
    main()
