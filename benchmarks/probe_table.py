"""Where does attention beat the average on frozen networks, by how much, on which kind of data?

    python benchmarks/probe_table.py --root DIR --weights DIR [--networks ...] [--sets ...]
        [--pools ...] [--seeds N] [--page]

The first DIR holds the data sets; the second the state dicts of EfficientNet-Lite0, 1 and 2,
``efficientnet-lite0*.pth`` and so on. Pools are trained on the cached maps as ``convattn probe``
does. On magnetic_tiles a seed is one of five folds that keep the pictures of a tile together;
coco128 and camvid ask which classes an image shows. A seed's rows are appended to
docs/results/probe_table.csv; a row that is there is not made again, so that the table can be
stopped at any time. docs/results/probe_table.md is written from the rows (--page writes it alone).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from convattn.config import DataConfig, ProbeConfig
from convattn.data import ImageFiles, Source, load_source
from convattn.layers import POOLS
from convattn.probing.backbone import open_backbone
from convattn.probing.report import over_seeds, to_csv
from convattn.probing.seeds import Probe, train_seed
from convattn.probing.study import COLUMNS, cache_maps
from convattn.text import markdown_table
from frozen_features import tiles_of
from rows import read_rows

SEEDS = 5
READING, TABLES = "## Reading it", "## Tables"
_SHARE = 0.005  # of a frame, from which on a class of camvid counts as shown
_LEAST = 6  # images of coco128's parts that show a class


@dataclass(frozen=True)
class Network:
    """A backbone and where its weights come from."""

    model: str
    weights: str | None = None
    """Beginning of the file's name; None: there is none."""
    pretrained: bool = False


NETWORKS: Mapping[str, Network] = {
    "lite0": Network("tf_efficientnet_lite0", "efficientnet-lite0"),
    "lite1": Network("tf_efficientnet_lite1", "efficientnet-lite1"),
    "lite2": Network("tf_efficientnet_lite2", "efficientnet-lite2"),
    "lite0-random": Network("tf_efficientnet_lite0"),
    "nano": Network("patchconvnet_nano", pretrained=True),
}
BATCHES = {"coco128": 16, "camvid": 16}  # of 64 they have one to five an epoch, too few to learn
WHOLE_TILES = "magnetic_tiles, 320 uncropped"
FOLDERS = {WHOLE_TILES: "magnetic_tiles"}
VIEWS = {WHOLE_TILES: {"input_size": (3, 320, 320), "crop_pct": 1.0, "crop_mode": "squash"}}
MEASURES = {
    "magnetic_tiles": "balanced_accuracy",
    WHOLE_TILES: "balanced_accuracy",
    "coco128": "map",
    "camvid": "map",
}
NAMES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "map": "mAP"}


@dataclass(frozen=True, kw_only=True)
class Fold(Probe):
    """A part of the cached images is the test."""

    tested: Tensor
    """(N,) bool."""

    @property
    def train(self) -> Tensor:
        """Places of the others."""
        return (~self.tested).nonzero()[:, 0]

    @property
    def test(self) -> Tensor:
        """Places of the test."""
        return self.tested.nonzero()[:, 0]


def load_folder(root: Path) -> Source:
    """A folder with its own split."""
    return load_source("folder", root=root)


def load_tiles(root: Path) -> Source:
    """All images for training: they have folds."""
    source = load_source("folder", root=root / "images")
    parts = (source.train, source.test)
    paths = [path for part in parts if isinstance(part, ImageFiles) for path in part.paths]
    order = torch.tensor(sorted(range(len(paths)), key=paths.__getitem__))
    images = ImageFiles(paths, torch.cat([part.labels for part in parts])).select(order)
    return dataclasses.replace(source, train=images, test=images.select(torch.arange(0)))


def load_tiny(root: Path) -> Source:
    """100 images a class."""
    return load_source("tiny_imagenet", root=root, num_train=4000)


def load_coco(root: Path) -> Source:
    """Which of the classes that both parts show in six images or more."""
    found: list[tuple[list[str], list[set[str]]]] = []
    for part in ("train2017", "val2017"):
        listed = json.loads((root / "annotations" / f"detection_{part}.json").read_text())
        names = {category["id"]: category["name"] for category in listed["categories"]}
        shown: dict[int, set[str]] = {image["id"]: set() for image in listed["images"]}
        for box in listed["annotations"]:
            shown[box["image_id"]].add(names[box["category_id"]])
        paths = [str(root / "images" / part / image["file_name"]) for image in listed["images"]]
        found.append((paths, list(shown.values())))
    classes = sorted(
        name
        for name in set().union(*found[0][1])
        if all(sum(name in shown for shown in part) >= _LEAST for _, part in found)
    )
    labels = [
        torch.tensor([[name in shown for name in classes] for shown in part]) for _, part in found
    ]
    return _of_several("coco128", classes, [paths for paths, _ in found], labels)


def load_camvid(root: Path) -> Source:
    """Which of the classes that some frames of both parts show, and some do not."""
    names = (root / "classes.txt").read_text().split()[:11]
    paths: list[list[str]] = []
    labels: list[Tensor] = []
    for part in ("train", "val"):
        files = sorted((root / part).glob("*.jpg"))
        masks = [np.asarray(Image.open(root / f"{part}annot" / f"{f.stem}.png")) for f in files]
        counts = [np.bincount(mask.ravel(), minlength=12)[:11] / mask.size for mask in masks]
        paths.append([str(file) for file in files])
        labels.append(torch.from_numpy(np.stack(counts) >= _SHARE))
    kept = [k for k in range(11) if all(0.1 <= x[:, k].double().mean() <= 0.9 for x in labels)]
    return _of_several(
        "camvid", [names[k] for k in kept], paths, [shown[:, kept] for shown in labels]
    )


def _of_several(
    name: str, classes: Sequence[str], paths: Sequence[list[str]], labels: Sequence[Tensor]
) -> Source:
    train, test = (ImageFiles(p, x) for p, x in zip(paths, labels, strict=True))
    return Source(
        name=name,
        class_names=tuple(classes),
        train=train,
        test=test,
        multi_label=True,
        image_size=None,
        in_chans=3,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )


SETS: Mapping[str, Callable[[Path], Source]] = {
    "hymenoptera": load_folder,
    "magnetic_tiles": load_tiles,
    WHOLE_TILES: load_tiles,
    "coco128": load_coco,
    "camvid": load_camvid,
    "tiny_imagenet_40": load_tiny,
}


def configure(network: str, data: str, arguments: argparse.Namespace) -> ProbeConfig:
    """What is probed."""
    kind, weights = NETWORKS[network], None
    if kind.weights is not None:
        (file,) = arguments.weights.rglob(f"{kind.weights}*.pth")
        weights = str(file)
    return ProbeConfig(
        data=DataConfig(name="folder", root=str(arguments.root / FOLDERS.get(data, data))),
        model=kind.model,
        weights=weights,
        pretrained=kind.pretrained,
        random=weights is None and not kind.pretrained,
        seeds=arguments.seeds,
        batch_size=BATCHES.get(data, 64),
        cache=str(arguments.cache),
        device="cpu",
    )


def probes_of(source: Source, probe: Probe) -> list[Probe]:
    """A probe a seed."""
    if len(source.test):
        return [probe] * probe.config.seeds
    assert isinstance(source.train, ImageFiles)
    tiles = tiles_of(source.train.paths)
    kind = StratifiedGroupKFold(SEEDS, shuffle=True, random_state=0)
    found: list[Probe] = []
    for _, held in kind.split(torch.zeros(len(tiles)), source.train.labels, tiles):
        tested = torch.zeros(len(tiles), dtype=torch.bool)
        tested[torch.from_numpy(held)] = True
        found.append(
            Fold(
                config=probe.config,
                cache=probe.cache,
                class_names=probe.class_names,
                groups=tiles,
                tested=tested,
            )
        )
    return found[: probe.config.seeds]


def make_rows(arguments: argparse.Namespace, file: Path) -> None:
    """Every row that is asked for and not there yet."""
    for data in arguments.sets:
        for network in arguments.networks:
            rows = [r for r in read_rows(file) if (r["network"], r["data"]) == (network, data)]
            done = {(row["pool"], int(row["seed"])) for row in rows}
            seeds = range(arguments.seeds)
            pools = tuple(p for p in arguments.pools if any((p, s) not in done for s in seeds))
            if not pools:
                continue
            config = dataclasses.replace(configure(network, data, arguments), pools=pools)
            source = SETS[data](arguments.root / FOLDERS.get(data, data))
            frozen = open_backbone(config)
            frozen = dataclasses.replace(frozen, cfg={**frozen.cfg, **VIEWS.get(data, {})})
            cache = cache_maps(config, frozen, source)
            probe = Probe(config=config, cache=cache, class_names=source.class_names)
            state = arguments.cache / "-".join((data, network, *pools))
            for seed, own in enumerate(probes_of(source, probe)):
                result = train_seed(own, seed, state)
                new = [row for row in result.rows if (row["pool"], seed) not in done]
                append(file, [{"network": network, "data": data, **row} for row in new])
                print(time.strftime("%H:%M"), data, network, pools, seed, flush=True)


def append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows to the end of a table."""
    columns = ("network", "data", *COLUMNS, "map", "macro_f1", "validation_loss")
    head, *lines = to_csv(rows, columns).splitlines(keepends=True)
    new = not file.exists()
    with file.open("a") as table:
        table.writelines([head, *lines] if new else lines)


def write_page(rows: Sequence[Mapping[str, str]], file: Path, machine: str, date: str) -> None:
    """docs/results/probe_table.md; what stands below "Reading it" is kept."""
    written = file.read_text() if file.exists() else ""
    kept = written.partition(READING)[2].partition(TABLES)[0].strip()
    lines = [
        "# Pools on frozen networks",
        "",
        "```sh",
        "python benchmarks/probe_table.py --root DIR --weights DIR",
        "```",
        "",
        f"Torch {torch.__version__.split('+')[0]}, one thread of {machine}; {date}; seeds from 0 "
        "on, as many as stand beside a mean, on magnetic_tiles five folds that keep the pictures "
        "of a tile together. As `convattn probe` trains (coco128 and camvid in batches of 16), "
        "each network at the image size of its weights unless the title says another. The first "
        "line of a table is the average pool; under it points above it, paired over the seeds, "
        "with Student's 95 % intervals. "
        "probe_table.csv has every run.",
        "",
        READING,
        "",
        kept,
        "",
        TABLES,
        "",
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        measure = MEASURES.get(data, "accuracy")
        of_data = [row for row in rows if row["data"] == data]
        lines += [f"### {data}: {NAMES[measure]}, %", "", table_of(of_data, measure), ""]
    file.write_text("\n".join(lines))


def table_of(rows: Sequence[Mapping[str, str]], measure: str) -> str:
    """A line a pool, a column a network."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row["network"], row["pool"]), {})[row["seed"]] = float(row[measure])
    networks = [n for n in NETWORKS if (n, "avg") in found]

    def cell(network: str, pool: str) -> str:
        own, average = found.get((network, pool)), found[network, "avg"]
        if own is None:
            return ""
        if pool == "avg":
            return f"{over_seeds(list(own.values())).percent()}, {len(own)} seeds"
        return over_seeds([x - average[seed] for seed, x in own.items()]).percent(signed=True)

    shown = {pool for _, pool in found}
    pools = [pool for pool in ("avg", "knn", *POOLS) if pool in shown]
    lines = [(pool, *(cell(n, pool) for n in networks)) for pool in dict.fromkeys(pools)]
    return markdown_table(("pool", *networks), lines)


def main() -> None:
    """Make what is missing, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/probe_table"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--pools", nargs="+", default=list(POOLS), choices=list(POOLS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs" / "results")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--machine", default="a CPU")
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    arguments = parser.parse_args()
    file = arguments.docs / "probe_table.csv"
    if not arguments.page:
        make_rows(arguments, file)
    write_page(
        read_rows(file), arguments.docs / "probe_table.md", arguments.machine, arguments.date
    )


if __name__ == "__main__":
    main()
