"""Beyond which distance do attention convolutions see what others cannot?

    python benchmarks/law_of_aa.py [--tasks ...] [--networks ...] [--seeds N] [--minutes M]
        [--cost | --page | --check]

Tasks of which no part of the image knows the answer, made by code; small residual networks on one
map of 16 x 16 cells, so that the receptive field is known exactly, with as many parameters each.
They learn pairs that fit into the plain network's field first, then pairs at all distances, and
are tested at each. A network's rate is the best of three, and of more while the best lies at the
edge, on validation images (seed 0); the test images are seen once a network and seed.

A trained network is as many rows of docs/results/law_of_aa.csv as there are distances, and a tried
rate a row of docs/results/law_of_aa_rates.csv; what is there is not made again, so that the study
can be stopped at any time. --cost tells how long what is missing will take, --page writes
docs/explanation/law_of_aa.md and its pictures from the rows alone, --check says which lines of the
page are not what the rows give.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from timm.layers import GlobalContext, SqueezeExcite
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import pages
from convattn import AAConv2d
from convattn.data import (
    TensorImages,
    generate_count,
    generate_pathfinder,
    generate_same_different,
)
from convattn.data.long_range import DISTANCES, GROUP_SIDE, SHAPE_SIDE
from convattn.data.pathfinder import DASHES
from convattn.probing.report import over_seeds
from convattn.text import markdown_table
from rates import best_rate, rates_beyond
from rows import append_rows, read_rows

DOCS = Path(__file__).resolve().parents[1] / "docs"
TASKS: dict[str, Callable[..., TensorImages]] = {
    "same_different": generate_same_different,
    "count": generate_count,
    "pathfinder": generate_pathfinder,
}
OPTION = {"same_different": "distances", "count": "distances", "pathfinder": "dashes"}
SPANS = {"same_different": SHAPE_SIDE, "count": GROUP_SIDE}
"""Pixels that the outer edges of two things lie further apart than their centres."""
DISTANCES_OF: dict[str, tuple[int, ...]] = {
    "same_different": DISTANCES,
    "count": DISTANCES,
    "pathfinder": DASHES,
}
NETWORKS = ("plain", "aa-relative", "se", "large-kernel", "aa-none", "gc", "aa-sine")
CHANNELS, BLOCKS, CELL = 24, 3, 4
LARGE = 13
NUM_HEADS = 2
STEPS, BATCH, DECAY = 800, 64, 0.01
NEAR_STEPS = STEPS // 2
RATES, FACTOR, WIDEST = (1e-2, 2e-2, 4e-2), 2.0, 4
NUM_VALIDATION, NUM_TEST = 2048, 512
_VALIDATION_SEED = 1_000_000
COLUMNS = ("task", "distance", "network", "seed", "accuracy", "lr", "seconds")
RATE_COLUMNS = ("task", "network", "lr", "accuracy", "seconds")
READING, TABLE = "## Reading it", "## Table"
Row = Mapping[str, str]


# ------------------------------------------------------------------------------------ networks


class Block(nn.Module):
    """A spatial layer and a pointwise one, gated where the network has gates, over a shortcut.

    Args:
        network: One of ``NETWORKS``.
        width: Channels between the two layers.
    """

    def __init__(self, network: str, width: int) -> None:
        super().__init__()
        self.spatial = _spatial(network, width)
        self.norm = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, CHANNELS, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(CHANNELS)
        gates = {"se": SqueezeExcite, "gc": GlobalContext}
        self.gate = (
            gates[network](CHANNELS, rd_ratio=0.25, rd_divisor=1)
            if network in gates
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        inner = self.norm(self.spatial(x)).relu()
        return (x + self.gate(self.last_norm(self.pointwise(inner)))).relu()


def _spatial(network: str, width: int) -> nn.Module:
    if network.startswith("aa-"):
        return AAConv2d(
            CHANNELS,
            width,
            3,
            padding=1,
            bias=False,
            num_heads=NUM_HEADS,
            qk_ratio=0.5,
            v_ratio=0.5,
            min_head_dim=8,
            position=network.removeprefix("aa-"),  # type: ignore[arg-type]
            feat_size=64 // CELL,
            attn_downsample=2,
        )
    if network == "large-kernel":
        return nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, LARGE, padding=LARGE // 2, groups=CHANNELS, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.Conv2d(CHANNELS, width, 1, bias=False),
        )
    return nn.Conv2d(CHANNELS, width, 3, padding=1, bias=False)


def make_network(network: str, width: int | None = None) -> nn.Sequential:
    """Stem, blocks, average, linear: (B, 1, 64, 64) -> (B, 2).

    Args:
        network: One of ``NETWORKS``.
        width: Of the blocks; None: the one that has about as many parameters as "plain".
    """
    half = CHANNELS // 2
    stem = [nn.Conv2d(1, half, 3, 2, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU()]
    stem += [nn.Conv2d(half, CHANNELS, 3, 2, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    width = width_of(network) if width is None else width
    blocks = [Block(network, width) for _ in range(BLOCKS)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 2)]
    return nn.Sequential(*stem, *blocks, *head).to(memory_format=torch.channels_last)


@functools.cache
def width_of(network: str) -> int:
    """The even width of blocks that has about as many parameters as the plain network."""
    if network == "plain":
        return CHANNELS
    wanted = count_parameters("plain", CHANNELS)
    widths = range(CHANNELS // 2, 6 * CHANNELS, 2)
    return min(widths, key=lambda width: abs(count_parameters(network, width) - wanted))


def count_parameters(network: str, width: int | None = None) -> int:
    """Of a network, at a width of its blocks."""
    with torch.random.fork_rng(devices=[]):
        return sum(parameter.numel() for parameter in make_network(network, width).parameters())


def receptive_field(network: str) -> float:
    """Pixels a side that a cell of the last map sees; infinite where it sees all."""
    if network not in ("plain", "large-kernel"):
        return math.inf
    kernel = 3 if network == "plain" else LARGE
    stem = 1 + 2 * 1 + 2 * 2  # two 3 x 3 kernels, at strides of 1 and 2 pixels
    return stem + BLOCKS * (kernel - 1) * CELL


# ------------------------------------------------------------------------------------ training


def near(task: str) -> tuple[int, ...]:
    """The distances that fit into the plain network's field; of paths, the shortest."""
    if task == "pathfinder":
        return DASHES[:1]
    field = receptive_field("plain")
    return tuple(d for d in DISTANCES_OF[task] if d + SPANS[task] <= field)


def draw(task: str, count: int, distances: Sequence[int], **options: Any) -> TensorImages:
    """Images of a task at distances."""
    return TASKS[task](count, **{OPTION[task]: distances}, **options)


def pixels(images: Tensor) -> Tensor:
    """Bytes as what the networks see."""
    return ((images.float() - 45) / 40).to(memory_format=torch.channels_last)


def train(task: str, network: str, lr: float, seed: int, steps: int = STEPS) -> nn.Module:
    """A network from its random start; no image is seen twice."""
    torch.manual_seed(seed)
    model = make_network(network)
    near_steps = steps * NEAR_STEPS // STEPS
    parts = (
        draw(task, near_steps * BATCH, near(task), seed=2 * seed),
        draw(task, (steps - near_steps) * BATCH, DISTANCES_OF[task], seed=2 * seed + 1),
    )
    images = torch.cat([part.images for part in parts])
    labels = torch.cat([part.labels for part in parts])
    optimizer = create_optimizer_v2(model, opt="muon", lr=lr, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(_share, steps=steps))
    for batch, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        loss = F.cross_entropy(model(pixels(batch)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _share(step: int, steps: int) -> float:
    """Of the highest rate: a tenth of the steps to warm up, and a cosine down to zero."""
    return min(1.0, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2


@torch.inference_mode()
def evaluate(model: nn.Module, images: TensorImages) -> float:
    """Share of the images whose class is found."""
    said = torch.cat([model(pixels(batch)).argmax(1) for batch in images.images.split(BATCH)])
    return float((said == images.labels).double().mean())


class Study:
    """What is there, and what makes the rest."""

    def __init__(self, results: Path) -> None:
        self.file = results / "law_of_aa.csv"
        self.rates_file = results / "law_of_aa_rates.csv"

    def rates(self, task: str, network: str) -> dict[float, float]:
        """Rates that were tried and their validation accuracy."""
        return {
            float(row["lr"]): float(row["accuracy"])
            for row in read_rows(self.rates_file)
            if (row["task"], row["network"]) == (task, network)
        }

    def best_model(self, task: str, network: str) -> tuple[float, nn.Module | None]:
        """The chosen rate, and its network of seed 0 where it was trained just now."""
        models: dict[float, nn.Module] = {}
        while wanted := rates_to_try(self.rates(task, network)):
            lr, started = wanted[0], time.monotonic()
            models[lr] = train(task, network, lr, seed=0)
            validation = draw(task, NUM_VALIDATION, DISTANCES_OF[task], seed=_VALIDATION_SEED)
            row = {
                "task": task,
                "network": network,
                "lr": f"{lr:g}",
                "accuracy": round(evaluate(models[lr], validation), 4),
                "seconds": round(time.monotonic() - started, 1),
            }
            append_rows(self.rates_file, RATE_COLUMNS, [row])
            print(time.strftime("%H:%M"), *row.values(), flush=True)
        best = best_rate(self.rates(task, network))
        return best, models.get(best)

    def add(self, task: str, network: str, seed: int) -> None:
        """Train, test at all distances and keep."""
        started = time.monotonic()
        lr, model = self.best_model(task, network)
        if model is None or seed != 0:
            model = train(task, network, lr, seed)
        seconds = round(time.monotonic() - started, 1)
        rows = []
        for distance in DISTANCES_OF[task]:
            found = evaluate(model, draw(task, NUM_TEST, (distance,), split="test"))
            place = (task, distance, network, seed, round(found, 4), f"{lr:g}", seconds)
            rows.append(dict(zip(COLUMNS, place, strict=True)))
        append_rows(self.file, COLUMNS, rows)
        print(time.strftime("%H:%M"), task, network, seed, [row["accuracy"] for row in rows])


def rates_to_try(tried: Mapping[float, float]) -> list[float]:
    """The grid, then half or twice the best while that lies at its edge."""
    return rates_beyond(tried, RATES, factor=FACTOR, widest=WIDEST)


def missing_of(rows: Sequence[Row], arguments: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Task, network and seed of what is not there: a task, then a seed of all networks."""
    there = {(row["task"], row["network"], int(row["seed"])) for row in rows}
    return [
        (task, network, seed)
        for task in arguments.tasks
        for seed in range(arguments.seeds)
        for network in arguments.networks
        if (task, network, seed) not in there
    ]


def make_rows(arguments: argparse.Namespace, study: Study) -> None:
    """Every row that is asked for and not there yet."""
    started = time.monotonic()
    missing = missing_of(read_rows(study.file), arguments)
    if not missing:
        return
    print(tell_cost(missing, study), flush=True)
    for task, network, seed in () if arguments.cost else missing:
        if time.monotonic() - started > 60 * arguments.minutes:
            print("stopped; the same command goes on")
            return
        study.add(task, network, seed)


def tell_cost(missing: Sequence[tuple[str, str, int]], study: Study) -> str:
    """How long what is missing will take, by some steps of each network."""
    total, runs = 0.0, 0
    seconds = {network: _step_seconds(network) for network in {key[1] for key in missing}}
    for task, network, seed in missing:
        tried = study.rates(task, network)
        count = max(1, len(rates_to_try(tried))) if seed == 0 else 1
        runs += count
        total += count * STEPS * seconds[network]
    return f"{len(missing)} tests, {runs} trainings or more: about {total / 60:.0f} minutes"


def _step_seconds(network: str) -> float:
    model = make_network(network)
    batch = pixels(torch.zeros(BATCH, 1, 64, 64, dtype=torch.uint8))
    found = []
    for _ in range(3):
        started = time.monotonic()
        model(batch).sum().backward()
        found.append(time.monotonic() - started)
    return min(found)


# ------------------------------------------------------------------------------------ the page


TIMM_COMMIT = "aa4b5850 of 2026-08-08"
TIMM: tuple[tuple[str, int, float, float, float, float, int], ...] = (
    ("resnet26t.ra2_in1k", 256, 16.01, 77.878, 5.960, 25.874, 4798),
    ("ecaresnet26t.ra2_in1k", 256, 16.01, 78.894, 12.267, 26.503, 4366),
    ("botnet26t_256.c1_in1k", 256, 12.49, 79.256, 11.507, 25.440, 4165),
    ("halonet26t.a1h_in1k", 256, 12.48, 79.134, 10.840, 25.738, 4158),
    ("lambda_resnet26t.c1_in1k", 256, 10.96, 79.126, 11.293, 26.361, 4193),
    ("resnet33ts.ra2_in1k", 256, 19.68, 79.216, 8.987, 27.187, 4170),
    ("eca_resnet33ts.ra2_in1k", 256, 19.68, 80.084, 13.987, 29.099, 4102),
    ("seresnet33ts.ra2_in1k", 256, 19.78, 80.380, 14.280, 28.338, 4038),
    ("gcresnet33ts.ra2_in1k", 256, 19.88, 80.072, 13.640, 27.599, 4075),
    ("sehalonet33ts.ra2_in1k", 256, 13.69, 80.976, 18.040, 28.780, 2863),
    ("resnext26ts.ra2_in1k", 256, 10.30, 76.768, 4.693, 23.883, 4989),
    ("eca_resnext26ts.ch_in1k", 256, 10.30, 77.446, 8.120, 24.669, 4936),
    ("seresnext26ts.ch_in1k", 256, 10.39, 77.860, 6.987, 24.701, 4825),
    ("gcresnext26ts.ch_in1k", 256, 10.48, 77.810, 8.573, 24.017, 4873),
    ("bat_resnext26ts.ch_in1k", 256, 10.73, 78.280, 8.920, 25.501, 3900),
    ("resnet50.a1_in1k", 224, 25.56, 80.382, 9.973, 29.641, 4218),
    ("seresnet50.a1_in1k", 224, 28.09, 80.012, 11.400, 28.747, 3649),
    ("resnet50.a2_in1k", 224, 25.56, 79.828, 7.507, 27.393, 4218),
    ("seresnet50.a2_in1k", 224, 28.09, 80.102, 10.107, 27.784, 3649),
    ("resnet50.a3_in1k", 224, 25.56, 78.052, 6.333, 25.068, 4218),
    ("seresnet50.a3_in1k", 224, 28.09, 77.036, 5.507, 24.809, 3649),
)
"""Model, side, millions of parameters, top-1 on ImageNet, -A and -Sketch, images a second.

Of timm's results-imagenet.csv, results-imagenet-a.csv, results-sketch.csv and
benchmark-infer-amp-nchw-pt240-cu124-rtx4090.csv; a twin is below its plain network, which is the
one without attention.
"""
PLAIN = ("resnet26t", "resnet33ts", "resnext26ts", "resnet50")

Found = Mapping[tuple[str, str, int], Mapping[int, float]]


def found_of(rows: Sequence[Row]) -> dict[tuple[str, str, int], dict[int, float]]:
    """(task, network, distance) -> seed -> accuracy."""
    found: dict[tuple[str, str, int], dict[int, float]] = {}
    for row in rows:
        key = (row["task"], row["network"], int(row["distance"]))
        found.setdefault(key, {})[int(row["seed"])] = float(row["accuracy"])
    return found


def tasks_of(found: Found) -> list[str]:
    """Those with rows."""
    return [task for task in TASKS if any(key[0] == task for key in found)]


def page_of(study: Study, written: str, made: str) -> str:
    """The page; what stands below "Reading it" in the written one is kept."""
    found, rates = found_of(read_rows(study.file)), read_rows(study.rates_file)
    kept = written.partition(READING)[2].partition(TABLE)[0].strip()
    seconds = [float(row["seconds"]) for row in rates]
    lines = [
        "# Beyond which distance attention convolutions help",
        "",
        "![Accuracy against distance](law_of_aa.png)",
        "",
        "```sh",
        "python benchmarks/law_of_aa.py",
        "```",
        "",
        f"Networks of {BLOCKS} residual blocks of {CHANNELS} channels on a map of 16 x 16 cells of "
        f"{CELL} pixels, equal in parameters but for a few per cent; a cell of the last map of "
        f"`plain` sees {receptive_field('plain'):g} x {receptive_field('plain'):g} pixels. {STEPS} "
        f"steps of {BATCH} new images (Muon, cosine), half of them of what fits into that field, "
        f"then of all distances; rates chosen on {NUM_VALIDATION:,} validation images among "
        f"{', '.join(f'{rate:g}' for rate in RATES)} and more at the edge, seed 0; {NUM_TEST} test "
        "images a distance. Accuracy in per cent (chance is 50), Student's 95 % intervals over the "
        "seeds where there are three. "
        f"{len(rates)} rates tried, {sum(seconds) / max(1, len(seconds)):.0f} seconds each. {made}",
        "",
        "![The tasks, distance and answer](law_of_aa_images.png)",
        "",
        "*Are both shapes the same? Are there as many upright crosses as slanted ones? Does a path "
        "join the discs? The number is the distance: pixels between the centres, or dashes.*",
        "",
        READING,
        "",
        kept,
        "",
        TABLE,
        "",
        *(line for task in tasks_of(found) for line in _section(found, rates, task)),
        "## What timm's own pairs say",
        "",
        "Networks with attention below their twins without, of the same size of image: top-1 in "
        "per cent on ImageNet, ImageNet-A and ImageNet-Sketch, in brackets points over the twin; "
        f"images a second in half precision on an RTX 4090. From `results/` of timm ({TIMM_COMMIT})"
        ". Where the letters behind the dot differ, so did the training: such a gain is not "
        "attention's alone.",
        "",
        timm_table(),
        "",
    ]
    return "\n".join(lines)


def write_page(study: Study, docs: Path, made: str) -> None:
    """docs/explanation/law_of_aa.md and its pictures."""
    file, found = docs / "law_of_aa.md", found_of(read_rows(study.file))
    file.write_text(page_of(study, file.read_text() if file.exists() else "", made))
    draw_figure(found, tasks_of(found), docs / "law_of_aa.png")
    draw_examples(docs / "law_of_aa_images.png")


def _section(found: Found, rates: Sequence[Row], task: str) -> list[str]:
    """The table of a task."""
    unit = "dashes" if task == "pathfinder" else "px"
    distances = DISTANCES_OF[task]
    lines = []
    for network in NETWORKS:
        cells = [found.get((task, network, distance), {}) for distance in distances]
        if any(cells):
            tried = [row for row in rates if (row["task"], row["network"]) == (task, network)]
            best = max(tried, key=lambda row: float(row["accuracy"]))["lr"] if tried else ""
            texts = [over_seeds(list(cell.values())).percent() if cell else "" for cell in cells]
            size = f"{count_parameters(network):,}"
            lines.append((network, size, best, str(max(map(len, cells))), *texts))
    head = ("network", "parameters", "rate", "seeds", *(f"{d} {unit}" for d in distances))
    return [f"### {task}", "", markdown_table(head, lines), ""]


def timm_table() -> str:
    """Attention networks beside their plain twins."""
    lines, twin = [], TIMM[0]
    for row in TIMM:
        plain = row[0].partition(".")[0] in PLAIN
        twin = row if plain else twin
        scores = [
            f"{own:.1f}" if plain else f"{own:.1f} ({own - other:+.1f})"
            for own, other in zip(row[3:6], twin[3:6], strict=True)
        ]
        name = row[0] if plain else f"↳ {row[0]}"
        lines.append((name, str(row[1]), f"{row[2]:.1f} M", *scores, f"{row[6]:,}"))
    head = ("network", "side", "parameters", "ImageNet", "-A", "-Sketch", "images a second")
    return markdown_table(head, lines)


def reach_of(task: str, distance: int) -> float:
    """The side of the square that holds both things, over the plain field; of paths, dashes."""
    if task == "pathfinder":
        return distance
    return (distance + SPANS[task]) / receptive_field("plain")


def draw_figure(found: Found, tasks: Sequence[str], file: Path) -> None:
    """A panel a task: accuracy of each network against distance over the plain field."""
    columns = max(1, len(tasks))
    size = (4.2 * columns + 2.4, 4)
    figure, panels = plt.subplots(
        1, columns, figsize=size, sharey=True, layout="constrained", squeeze=False
    )
    shown = {}
    for panel, task in zip(panels[0], tasks, strict=False):
        panel.axhline(50, color="grey", linewidth=0.8)
        if task != "pathfinder":
            panel.axvline(1, color="grey", linewidth=0.8, linestyle="--")
        for number, network in enumerate(NETWORKS):
            places = [d for d in DISTANCES_OF[task] if (task, network, d) in found]
            gained = [over_seeds(list(found[task, network, d].values())) for d in places]
            if places:
                shown[network] = panel.errorbar(
                    [reach_of(task, d) for d in places],
                    [100 * one.mean for one in gained],
                    [100 * ((one.high or one.mean) - one.mean) for one in gained],
                    color=f"C{number}",
                    marker="o",
                    markersize=4,
                    capsize=3,
                )
        panel.set_title(task)
        across = "dashes" if task == "pathfinder" else "pair's extent / plain network's field"
        panel.set_xlabel(across)
        panel.set_ylim(40, 102)
    panels[0][0].set_ylabel("accuracy, %")
    figure.legend(shown.values(), shown.keys(), loc="outside right center", frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_examples(file: Path) -> None:
    """A row a task: an image of each class at the least, a middle and the largest distance."""
    size = (8.4, 4.6)
    figure, panels = plt.subplots(len(TASKS), 6, figsize=size, layout="constrained")
    for row, task in zip(panels, TASKS, strict=True):
        distances = DISTANCES_OF[task]
        for place, distance in enumerate(
            (distances[0], distances[len(distances) // 2], max(distances))
        ):
            images = draw(task, 64, (distance,), split="test")
            for label in range(2):
                panel = row[2 * place + label]
                chosen = int((images.labels == label).nonzero()[0])
                panel.imshow(images.images[chosen, 0].numpy(), cmap="gray", vmin=0, vmax=255)
                panel.set_title(f"{distance}: {'yes' if label else 'no'}", fontsize=8)
                panel.set_xticks([])
                panel.set_yticks([])
        row[0].set_ylabel(task)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    """Make what is missing, then the page."""
    kept = Study(DOCS / "results")
    pages.answer_check_of_rows(
        DOCS / "explanation" / "law_of_aa.md",
        lambda text: page_of(kept, text, pages.made_line_of(text)),
    )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after these")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--cost", action="store_true", help="tell the cost alone")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--machine", default="a CPU")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    arguments = parser.parse_args()
    study = Study(arguments.docs / "results")
    if not arguments.page:
        make_rows(arguments, study)
    if not arguments.cost:
        made = pages.made_line(arguments.machine, arguments.date)
        write_page(study, arguments.docs / "explanation", made)


if __name__ == "__main__":
    main()
