"""From which size of object and map on does an attention pool beat the average?

    python benchmarks/law_of_pooling.py --root DIR --weights FILE [--shares ...] [--sides ...]
        [--pools ...] [--tiles | --digits] [--cost | --page | --check]

DIR holds tiny_imagenet_40, camvid and magnetic_tiles, FILE is a plain state dict of
EfficientNet-Lite0. Objects of ten classes, cut out of their pictures by their boxes, are pasted
into street scenes so that they cover a known share of the image; the frozen network sees the same
scenes at several sizes. Pools
are trained on its maps as ``convattn probe`` trains them, in five folds (a seed is a fold: its 400
images are tested by heads of the other 1,600, rates and epochs chosen on a fifth of those).
``oracle`` averages the cells of the object's box alone: what an ideal pool would do.

--tiles asks the same of photographs of magnetic tiles, class by class: how many of the tiles of a
defect are known, on maps of 10 x 10 cells. A seed is one of five folds that keep the pictures of a
tile together; ``oracle`` averages the cells of the defect's mask.

--digits asks it of networks trained from scratch (digits_by_size.py): a seed is one of five.

A fold's result is a row of docs/results/law_of_pooling.csv; a row that is there is not made again,
so that the study can be stopped at any time. --cost tells how long what is missing will take,
--page writes docs/explanation/law_of_pooling.md and .png from the rows alone, --check says which
lines of the page are not what the rows give.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn
from tqdm import tqdm

import digits_by_size
import pages
from convattn.config import ProbeConfig
from convattn.data import transform_of
from convattn.probing.backbone import open_backbone
from convattn.probing.cache import MapCache
from convattn.probing.heads import (
    Training,
    Trial,
    best_trial,
    draw_validation,
    first_rates,
    wider_rates,
)
from convattn.probing.report import over_seeds
from convattn.text import markdown_table
from frozen_features import DEFECTS, read_features
from memory_maps import MemoryMaps
from rows import append_rows, read_rows

DOCS = Path(__file__).resolve().parents[1] / "docs"
DATA = "pasted photographs"
TILES = "magnetic_tiles "
"""Before the name of a class; the accuracy is that of its images."""
SHARES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
SIDES = (128, 224, 448)
POOLS = ("avg", "avg-bn", "query", "residual", "class", "aggregation", "oracle")
CLASSES = range(0, 40, 4)
OF_CLASS, FOLDS = 200, 5
EPOCHS, BATCH, DECAY = 30, 64, 0.01
DROPS = (0.5,)
SCENE = max(SIDES)
_ASIDE = 1.06  # so that points of a share do not hide each other
_FAR = (-80, -40, -20, -10, -5, 0, 5, 10, 20, 40, 80)
COLUMNS = ("data", "object_share", "map_size", "pool", "seed", "accuracy", "lr", "epoch", "seconds")
READING, TABLE = "## Reading it", "## Table"
Key = tuple[float, int, str]


@dataclass(frozen=True)
class Scenes:
    """What scenes are made of."""

    things: Sequence[Image.Image]
    """Objects cut out by their boxes."""
    labels: Tensor
    """(N,): of the objects."""
    frames: Sequence[Image.Image]
    """Of the street."""

    @classmethod
    def read(cls, root: Path) -> Scenes:
        """Objects and frames; mixed, since class after class would make folds of one class."""
        table = pq.read_table(root / "tiny_imagenet_40" / "train.parquet").to_pydict()
        generator = np.random.default_rng(0)
        chosen: list[tuple[int, int]] = []
        for number, label in enumerate(CLASSES):
            places = [place for place, own in enumerate(table["label"]) if own == label]
            chosen += [(int(place), number) for place in generator.permutation(places)[:OF_CLASS]]
        chosen = [chosen[place] for place in generator.permutation(len(chosen))]
        things = []
        for place, _ in chosen:
            with Image.open(io.BytesIO(table["image"][place]["bytes"])) as image:
                left, top, right, bottom = table["bbox"][place]
                things.append(image.convert("RGB").crop((left, top, right + 1, bottom + 1)))
        frames = [Image.open(file) for file in sorted((root / "camvid").glob("*/*.jpg"))]
        return cls(things, torch.tensor([label for _, label in chosen]), frames)

    def make(self, place: int, share: float) -> tuple[Image.Image, tuple[int, int, int, int]]:
        """A scene of SCENE pixels a side, and where its object lies: left, top, right, bottom.

        Frame, cut and the object's relative place are the same for every share.

        Args:
            place: Of the object.
            share: Of the image that it covers, per cent.
        """
        generator = np.random.default_rng(place)
        frame = self.frames[int(generator.integers(len(self.frames)))].convert("RGB")
        side = int(min(frame.size) * generator.uniform(0.6, 1.0))
        x, y = (int(generator.uniform(0, length - side)) for length in frame.size)
        scene = frame.crop((x, y, x + side, y + side)).resize((SCENE, SCENE))
        thing = self.things[place]
        factor = (share / 100 * SCENE**2 / (thing.width * thing.height)) ** 0.5
        width, height = (
            min(SCENE, max(1, round(length * factor))) for length in (thing.width, thing.height)
        )
        left = round(generator.uniform() * (SCENE - width))
        top = round(generator.uniform() * (SCENE - height))
        scene.paste(thing.resize((width, height)), (left, top))
        return scene, (left, top, left + width, top + height)


@torch.inference_mode()
def make_maps(
    scenes: Scenes, share: float, side: int, network: nn.Module, cfg: Mapping[str, Any]
) -> dict[str, MemoryMaps]:
    """What every pool reads: all cells; their average; the average of the box."""
    transform = transform_of({**cfg, "input_size": (3, side, side), "crop_pct": 1.0})
    maps, oracles = [], []
    places = range(len(scenes.labels))
    for start in tqdm(places[::BATCH], desc=f"{share} %, {side} pixels", disable=None, leave=False):
        made = [scenes.make(place, share) for place in places[start : start + BATCH]]
        found = network(torch.stack([transform(scene) for scene, _ in made]))
        boxes = torch.tensor([box for _, box in made])
        weights = digits_by_size.shares_of_cells(boxes, found.shape[-1], SCENE)
        maps.append(found.half())
        oracles.append(torch.einsum("bchw,bhw->bc", found, weights)[..., None, None])
    cells = torch.cat(maps)
    averages = torch.cat([part.float().mean((2, 3), keepdim=True) for part in cells.split(BATCH)])
    return {
        "cells": MemoryMaps(cells, scenes.labels),
        "averages": MemoryMaps(averages, scenes.labels),
        "oracles": MemoryMaps(torch.cat(oracles), scenes.labels),
    }


@dataclass(frozen=True)
class Fold:
    """Which images are learned, and which are asked."""

    number: int
    known: Tensor
    """(N,) numbers of images."""
    drawn: Tensor
    """(N,) bool: of them, which choose rate and epoch."""
    tested: Tensor
    names: Sequence[str]
    """Of the classes."""

    @classmethod
    def of(
        cls, number: int, labels: Tensor, names: Sequence[str], groups: Tensor | None = None
    ) -> Fold:
        """Every fifth image; of images in groups, a fifth of the groups, stratified.

        Args:
            number: Of the fold.
            labels: (N,) class numbers.
            names: Of the classes.
            groups: (N,) numbers; images with the same stay together.
        """
        places = torch.arange(len(labels))
        tested = places % FOLDS == number
        if groups is not None:
            splits = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
            chosen = list(splits.split(places, labels, groups))[number][1]
            tested = torch.zeros(len(labels), dtype=torch.bool)
            tested[torch.from_numpy(chosen)] = True
        known = places[~tested]
        own = None if groups is None else groups[known]
        drawn = draw_validation(labels[known], 0.2, seed=number, names=names, groups=own)
        return cls(number, known, drawn, places[tested], names)


def train_fold(
    maps: Mapping[str, MemoryMaps], pool: str, fold: Fold
) -> tuple[dict[str, Any], Tensor]:
    """Choose a rate, learn all images but the fold's; what is right of those, (N,) bool."""
    started = time.monotonic()
    read = {"avg": "averages", "avg-bn": "averages", "oracle": "oracles"}.get(pool, "cells")
    layer = "avg" if read != "cells" else pool
    norm = pool != "avg"
    cache = cast(MapCache, maps[read])

    def training(trials: Sequence[Trial], fit: Tensor, valid: Tensor | None, **more: Any) -> Any:
        return Training(
            trials,
            cache,
            fit,
            valid,
            num_classes=len(fold.names),
            epochs=EPOCHS,
            batch_size=BATCH,
            seed=fold.number,
            norm=norm,
            **more,
        )

    outcomes: dict[Trial, Any] = {}
    rates = first_rates(norm, None)
    trials = [Trial(layer, rate, DECAY, drop) for rate in rates for drop in DROPS]
    while trials:
        outcomes |= training(trials, fold.known[~fold.drawn], fold.known[fold.drawn]).run()
        trials = wider_rates(outcomes, layer)
    best = best_trial(outcomes, layer)
    ends = {best: max(1, outcomes[best].epoch)}
    last = training([best], fold.known, None, ends=ends)
    last.run()
    said = last.predict(fold.tested, [best])[best].argmax(1)
    found = {
        "lr": f"{best.lr:.4g}",
        "epoch": ends[best],
        "seconds": round(time.monotonic() - started, 1),
    }
    return found, said == cache.labels[fold.tested]


def missing_of(rows: Sequence[Mapping[str, str]], arguments: argparse.Namespace) -> list[Key]:
    """Share, side and pool of what has not all its rows yet, in the order of making."""
    counts: dict[tuple[float, int, str], int] = {}
    for row in (row for row in rows if row["data"] == DATA):
        key = (float(row["object_share"]), int(row["map_size"]) * 32, row["pool"])
        counts[key] = counts.get(key, 0) + 1
    asked = [
        (share, side, pool)
        for share in arguments.shares
        for side in arguments.sides
        for pool in arguments.pools
    ]
    return [key for key in asked if counts.get(key, 0) < FOLDS]


def make_rows(arguments: argparse.Namespace, file: Path) -> None:
    """Every row that is asked for and not there yet."""
    missing = missing_of(read_rows(file), arguments)
    if not missing:
        return
    scenes = Scenes.read(arguments.root)
    frozen = open_backbone(
        ProbeConfig(model="tf_efficientnet_lite0", weights=str(arguments.weights))
    )
    network = frozen.backbone.eval()
    print(tell_cost(missing, network), flush=True)
    if arguments.cost:
        return
    for share, side in dict.fromkeys(key[:2] for key in missing):
        maps = make_maps(scenes, share, side, network, frozen.cfg)
        for pool in (pool for *cell, pool in missing if tuple(cell) == (share, side)):
            for fold in range(FOLDS):
                place = {"data": DATA, "object_share": share, "map_size": side // 32, "pool": pool}
                key = {name: str(value) for name, value in {**place, "seed": fold}.items()}
                if any(key.items() <= row.items() for row in read_rows(file)):
                    continue
                parts = Fold.of(fold, scenes.labels, [str(label) for label in CLASSES])
                found, right = train_fold(maps, pool, parts)
                accuracy = round(float(right.double().mean()), 4)
                append_rows(file, COLUMNS, [{**key, **found, "accuracy": accuracy}])
                print(time.strftime("%H:%M"), *key.values(), accuracy, flush=True)


def make_tile_rows(arguments: argparse.Namespace, file: Path) -> None:
    """The tiles' rows that are not there yet, a class each."""
    there = {(row["pool"], row["seed"]) for row in read_rows(file) if row["data"].startswith(TILES)}
    asked = [(pool, fold) for pool in arguments.pools for fold in range(FOLDS)]
    missing = [key for key in asked if (key[0], str(key[1])) not in there]
    print(f"magnetic tiles: {len(missing)} trainings, a minute or more each (the paper's block 5)")
    if arguments.cost or not missing:
        return
    features = read_features("magnetic_tiles", arguments.root, arguments.weights, arguments.cache)
    cells = torch.from_numpy(np.array(features.maps)).unflatten(2, features.size)
    objects = features.questions[DEFECTS[0]].truth.float()  # cells of the masks, of every class
    objects = torch.where(objects.sum(1, keepdim=True) > 0, objects, 1.0)
    oracles = torch.stack(
        [
            (x.flatten(1).float() * one).sum(1) / one.sum()
            for x, one in zip(cells, objects, strict=True)
        ]
    )
    labels = features.labels
    maps = {
        "cells": MemoryMaps(cells, labels),
        "averages": MemoryMaps(features.means[..., None, None], labels),
        "oracles": MemoryMaps(oracles[..., None, None], labels),
    }
    names = sorted([*DEFECTS, "free"])
    shares = {
        name: share_of_masks(arguments.root / "magnetic_tiles" / "masks" / name) for name in names
    }
    for pool, number in missing:
        fold = Fold.of(number, labels, names, features.groups)
        found, right = train_fold(maps, pool, fold)
        rows = [
            {
                "data": TILES + name,
                "object_share": f"{shares[name]:.2g}",
                "map_size": features.size[0],
                "pool": pool,
                "seed": number,
                "accuracy": round(float(right[labels[fold.tested] == place].double().mean()), 4),
                **found,
            }
            for place, name in enumerate(names)
        ]
        append_rows(file, COLUMNS, rows)
        print(time.strftime("%H:%M"), pool, number, *(row["accuracy"] for row in rows), flush=True)


def share_of_masks(folder: Path) -> float:
    """How much of an image the object covers in the mean, per cent; 100 without masks."""
    shares = [
        float((np.asarray(Image.open(file).convert("L")) > 127).mean())
        for file in sorted(folder.glob("*.png"))
    ]
    return 100 * sum(shares) / len(shares) if shares else 100.0


def tell_cost(missing: Sequence[Key], network: nn.Module) -> str:
    """How long what is missing will take, by one batch through the network and one step a pool."""
    cells = list(dict.fromkeys(key[:2] for key in missing))
    passes = {
        side: _seconds(lambda side=side: network(torch.zeros(8, 3, side, side))) for side in SIDES
    }
    count = OF_CLASS * len(CLASSES)
    total = sum(passes[side] / 8 * count for _, side in cells)
    steps = FOLDS * 4 * count // BATCH * 12  # four rates, twelve epochs: about what is usual
    for _, side, pool in missing:
        if pool not in ("avg", "avg-bn", "oracle"):
            maps = MemoryMaps(
                torch.randn(BATCH, 1280, side // 32, side // 32), torch.arange(BATCH) % 10
            )
            trials = [Trial(pool, 1e-3, DECAY)]
            fit = torch.arange(BATCH)
            cache = cast(MapCache, maps)
            one = Training(trials, cache, fit, None, num_classes=10, epochs=2, batch_size=BATCH)
            total += steps * _seconds(one._train_epoch, None)
    return f"{len(cells)} cells, {len(missing)} pools in them: about {total / 60:.0f} minutes"


def _seconds(step: Callable[..., Any], *arguments: Any) -> float:
    found = []
    for _ in range(2):
        started = time.monotonic()
        step(*arguments)
        found.append(time.monotonic() - started)
    return min(found)


# ------------------------------------------------------------------------------------- the page


Found = Mapping[tuple[int, str, float], Mapping[int, float]]


def found_of(
    rows: Sequence[Mapping[str, str]], data: str = DATA
) -> dict[tuple[int, str, float], dict[int, float]]:
    """(map's size, pool, share) -> fold or seed -> accuracy."""
    found: dict[tuple[int, str, float], dict[int, float]] = {}
    for row in (row for row in rows if row["data"] == data):
        key = (int(row["map_size"]), row["pool"], float(row["object_share"]))
        found.setdefault(key, {})[int(row["seed"])] = float(row["accuracy"])
    return found


def gains(found: Found, size: int, pool: str) -> Iterator[tuple[float, Any]]:
    """Share and gain over the average behind a BatchNorm, paired over the folds."""
    for share in SHARES:
        own, average = found.get((size, pool, share)), found.get((size, "avg-bn", share))
        if own and average and own.keys() == average.keys() and len(own) == FOLDS:
            yield share, over_seeds([own[fold] - average[fold] for fold in sorted(own)])


def page_of(rows: Sequence[Mapping[str, str]], written: str, made: str) -> str:
    """The page; what stands below "Reading it" in the written one is kept."""
    found = found_of(rows)
    kept = written.partition(READING)[2].partition(TABLE)[0].strip()
    lines = [
        "# From which size of object and map on attention pools help",
        "",
        "![Gain over the average](law_of_pooling.png)",
        "",
        "```sh",
        "python benchmarks/law_of_pooling.py --root DIR --weights FILE",
        "```",
        "",
        f"Objects of ten classes of Tiny ImageNet in street scenes of CamVid, {OF_CLASS} a class, "
        "covering a known share of the image; frozen EfficientNet-Lite0, the same scenes at "
        f"{', '.join(map(str, SIDES))} pixels; five folds, rates and epochs chosen within the "
        f"training images of each, dropout {DROPS[0]:g} before every classifier; accuracy in per "
        "cent (chance is 10) and, for other pools than the average behind a BatchNorm "
        "(`avg-bn`), points above it, paired over the folds, with "
        f"Student's 95 % intervals. {made}",
        "",
        READING,
        "",
        kept,
        "",
        TABLE,
        "",
    ]
    lines += _tables(found, "### {0} x {0} cells")
    for name in digits_in(rows):
        lines += [
            f"### {name.capitalize()}, from scratch",
            "",
            *([_about_digits(), ""] if name == digits_by_size.DATA else []),
            *_tables(found_of(rows, name), "#### {0} x {0} cells, " + name),
        ]
    tiles = tile_table(rows)
    if tiles:
        lines += [
            "### Magnetic tiles, 10 x 10 cells",
            "",
            "Per cent of the tiles of a class that are known, in five folds that keep the pictures "
            "of a tile together, and points above the average behind a BatchNorm, paired; in "
            "brackets how much of its image the defect covers in the mean.",
            "",
            tiles,
            "",
        ]
    return "\n".join(lines)


def write_page(rows: Sequence[Mapping[str, str]], docs: Path, made: str) -> None:
    """docs/explanation/law_of_pooling.md and .png."""
    file = docs / "law_of_pooling.md"
    file.write_text(page_of(rows, file.read_text() if file.exists() else "", made))
    draw(rows, docs / "law_of_pooling.png")


def digits_in(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """What the rows call digits, by the length of training, the shortest first."""
    names = {row["data"] for row in rows if row["data"].startswith(digits_by_size.DATA)}
    return sorted(names, key=lambda name: (len(name), name))


def _about_digits() -> str:
    own = digits_by_size
    return (
        f"Handwritten digits among fragments on photographs, {own.SIDE} pixels a side; {own.STEPS} "
        f"steps of {own.BATCH} images, none seen twice, unless it is said; {own.SEEDS} seeds, "
        f"{own.NUM_TEST:,} test images; rates of Muon chosen for each pool, size and map on "
        "validation images; else as above."
    )


def _tables(found: Found, heading: str) -> list[str]:
    """Lines: a table for each map's size, the smallest first."""
    lines = []
    for size in sorted({size for size, *_ in found}):
        shares = [s for s in SHARES if (size, "avg-bn", s) in found]
        if shares:
            lines += [heading.format(size), "", _table(found, size, shares), ""]
    return lines


def _table(found: Found, size: int, shares: Sequence[float]) -> str:
    lines = []
    for pool in POOLS:
        cells: Mapping[float, str] = {
            s: gain.percent(signed=True) for s, gain in gains(found, size, pool)
        }
        if pool == "avg-bn":
            own = {s: found[size, pool, s] for s in shares}
            cells = {s: over_seeds(list(values.values())).percent() for s, values in own.items()}
        if cells:
            lines.append((pool, *(cells.get(share, "") for share in shares)))
    return markdown_table(("pool", *(f"object {share:g} %" for share in shares)), lines)


def tile_table(rows: Sequence[Mapping[str, str]]) -> str:
    """The tiles' classes, and the pools' gain on each; nothing without the average's rows."""
    own: dict[tuple[str, str], dict[int, float]] = {}
    shares: dict[str, str] = {}
    for row in rows:
        if row["data"].startswith(TILES):
            name = row["data"].removeprefix(TILES)
            shares[name] = row["object_share"]
            own.setdefault((row["pool"], name), {})[int(row["seed"])] = float(row["accuracy"])
    lines = []
    for pool in POOLS:
        cells = []
        for name in shares:
            found, average = own.get((pool, name), {}), own.get(("avg-bn", name), {})
            if len(found) < FOLDS or len(average) < FOLDS:
                break
            if pool == "avg-bn":
                cells.append(over_seeds(list(found.values())).percent())
            else:
                differences = [found[fold] - average[fold] for fold in range(FOLDS)]
                cells.append(over_seeds(differences).percent(signed=True))
        else:
            lines.append((pool, *cells))
    if not shares or not lines:
        return ""
    heads = [name if name == "free" else f"{name} ({share} %)" for name, share in shares.items()]
    return markdown_table(("pool", *heads), lines)


def draw(rows: Sequence[Mapping[str, str]], file: Path) -> None:
    """A panel a map's size: gain of each pool over the average, against the object's share."""
    kinds = [(found_of(rows, DATA), "photographs, frozen")]
    kinds += [(found_of(rows, name), f"{name}, from scratch") for name in digits_in(rows)]
    panels = [
        (found, size, name)
        for found, name in kinds
        for size in sorted({size for size, *_ in found})
        if any(len(list(gains(found, size, pool))) for pool in POOLS if pool != "avg-bn")
    ]
    figure, grid = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 4), squeeze=False, layout="constrained"
    )
    first: dict[str, Any] = {}
    for panel, (found, size, name) in zip(grid[0], panels, strict=True):
        if name in first:
            panel.sharey(first[name])
        else:
            panel.set_ylabel("points over the average")
        first.setdefault(name, panel)
        panel.axhline(0, color="grey", linewidth=0.8)
        for number, pool in enumerate(name for name in POOLS if name != "avg-bn"):
            points = list(gains(found, size, pool))
            if points:
                x = [share * _ASIDE ** (number - 2) for share, _ in points]
                y = [100 * gain.mean for _, gain in points]
                half = [100 * (gain.high - gain.mean) for _, gain in points]
                panel.errorbar(
                    x, y, half, label=pool, color=f"C{number}", marker="o", capsize=3, markersize=4
                )
        if not name.startswith("photographs"):  # what fails to learn at all is far below
            panel.set_yscale("symlog", linthresh=10)
            panel.set_yticks(_FAR, [str(points) for points in _FAR])
        panel.set_xscale("log")
        panel.set_xticks(SHARES, [f"{share:g}" for share in SHARES])
        panel.minorticks_off()
        panel.set_title(f"{name}\n{size} x {size} cells", fontsize="medium")
        panel.set_xlabel("object, % of the image")
    drawn = [panel.get_legend_handles_labels() for panel in grid[0]]
    shown = {label: handle for pair in drawn for handle, label in zip(*pair, strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside right center", frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    """Make what is missing, then the page."""
    rows, page = DOCS / "results" / "law_of_pooling.csv", DOCS / "explanation" / "law_of_pooling.md"
    pages.answer_check_of_rows(
        page, lambda text: page_of(read_rows(rows), text, pages.made_line_of(text))
    )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--shares", nargs="+", type=float)
    parser.add_argument("--sides", nargs="+", type=int, default=list(SIDES), choices=SIDES)
    parser.add_argument("--pools", nargs="+", default=list(POOLS), choices=POOLS)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--tiles", action="store_true", help="magnetic tiles instead of scenes")
    instead.add_argument("--digits", action="store_true", help="networks from scratch on digits")
    maps = digits_by_size.MAPS
    parser.add_argument("--maps", nargs="+", type=int, default=list(maps), choices=maps)
    steps = digits_by_size.STEPS
    parser.add_argument("--steps", type=int, default=steps, help="of a training on digits")
    parser.add_argument("--cache", type=Path, default=Path("runs/maps"), help="of the tiles' maps")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--cost", action="store_true", help="tell the cost alone")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--machine", default="a CPU")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    arguments = parser.parse_args()
    arguments.shares = arguments.shares or (digits_by_size.SHARES if arguments.digits else SHARES)
    file = arguments.docs / "results" / "law_of_pooling.csv"
    if arguments.page:
        pass
    elif arguments.digits:
        digits_by_size.make_rows(arguments, file, COLUMNS)
    else:
        (make_tile_rows if arguments.tiles else make_rows)(arguments, file)
    if not arguments.cost:
        made = pages.made_line(arguments.machine, arguments.date)
        write_page(read_rows(file), arguments.docs / "explanation", made)


if __name__ == "__main__":
    main()
