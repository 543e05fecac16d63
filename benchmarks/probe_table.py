"""Where does attention beat the average on frozen convnets, by how much, on which kind of data?

    python benchmarks/probe_table.py --root DIR --weights DIR [--networks ...] [--sets ...] [--page]

The first DIR holds hymenoptera, magnetic_tiles and tiny_imagenet_40; the second the state dicts of
EfficientNet-Lite0, 1 and 2, ``efficientnet-lite0*.pth`` and so on. Every pool is trained on the
cached maps as ``convattn probe`` does, five seeds; on magnetic_tiles a seed is one of five folds
that keep the pictures of a tile together. A seed's rows are appended to docs/probe_table.csv; one
that is there is not made again, so that the table can be stopped at any time.
docs/probe_table.md is written from the rows (--page writes it alone).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from convattn.config import DataConfig, ProbeConfig
from convattn.data import ImageFiles, Source, load_source
from convattn.data.images import TensorImages
from convattn.probing.backbone import open_backbone
from convattn.probing.heads import Trial
from convattn.probing.report import over_seeds, to_csv
from convattn.probing.study import COLUMNS, Probe, cache_maps, train_seed, training_of
from convattn.text import markdown_table
from frozen_features import tiles_of

SEEDS = 5
READING, TABLES = "## Reading it", "## Tables"
_TRIALS, _EPOCHS = 4.5, 10  # of a pool and seed, as they came out


@dataclass(frozen=True)
class Network:
    """A backbone and where its weights come from."""

    model: str
    weights: str | None
    """Beginning of the file's name; None: random."""


NETWORKS: Mapping[str, Network] = {
    "lite0": Network("tf_efficientnet_lite0", "efficientnet-lite0"),
    "lite1": Network("tf_efficientnet_lite1", "efficientnet-lite1"),
    "lite2": Network("tf_efficientnet_lite2", "efficientnet-lite2"),
    "lite0-random": Network("tf_efficientnet_lite0", None),
}
SETS: Mapping[str, DataConfig] = {
    "hymenoptera": DataConfig(name="folder"),
    "magnetic_tiles": DataConfig(name="folder"),
    "tiny_imagenet_40": DataConfig(name="tiny_imagenet", num_train=4000),
}
MEASURES = {"magnetic_tiles": "balanced_accuracy"}


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


def configure(network: str, data: str, arguments: argparse.Namespace) -> ProbeConfig:
    """What is probed."""
    kind = NETWORKS[network]
    weights = None
    if kind.weights is not None:
        (file,) = arguments.weights.rglob(f"{kind.weights}*.pth")
        weights = str(file)
    folder = arguments.root / data
    root = folder / "images" if data == "magnetic_tiles" else folder
    return ProbeConfig(
        data=dataclasses.replace(SETS[data], root=str(root)),
        model=kind.model,
        weights=weights,
        random=weights is None,
        pools=tuple(arguments.pools),
        seeds=SEEDS,
        cache=str(arguments.cache),
    )


def load(config: ProbeConfig, data: str) -> Source:
    """The images; of a set with folds all of them are for training."""
    own = config.data
    source = load_source(own.name, root=own.root, num_train=own.num_train)
    if data != "magnetic_tiles":
        return source
    parts = [source.train, source.test]
    paths = [path for part in parts for path in _paths(part)]
    labels = torch.cat([part.labels for part in parts])
    order = torch.tensor(sorted(range(len(paths)), key=paths.__getitem__))
    images = ImageFiles(paths, labels).select(order)
    nothing = images.select(torch.arange(0))
    return dataclasses.replace(source, train=images, test=nothing)


def _paths(images: TensorImages | ImageFiles) -> Sequence[str]:
    assert isinstance(images, ImageFiles)
    return images.paths


def folds(source: Source, probe: Probe) -> list[Probe]:
    """A probe a seed."""
    if len(source.test):
        return [probe] * SEEDS
    tiles = tiles_of(_paths(source.train))
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
    return found


def expected_seconds(probe: Probe) -> float:
    """What a seed should take, by a step of each pool."""
    fit, _ = probe.split(0)
    total = 0.0
    for pool in probe.pools:
        training = training_of(probe, [Trial(pool, 1e-4, 0.01)], fit[:128], None, seed=0)
        training.ends = dict.fromkeys(training.ends, 1)
        started = time.perf_counter()
        training.run()
        total += (time.perf_counter() - started) / training.steps_per_epoch
    steps = (_TRIALS + 1) * _EPOCHS * len(fit) / probe.config.batch_size
    return total * steps


def make_rows(arguments: argparse.Namespace, file: Path) -> None:
    """Every seed that has no rows yet."""
    done = {(row["network"], row["data"], row["seed"]) for row in read_rows(file)}
    for data in arguments.sets:
        for network in arguments.networks:
            wanted = [s for s in range(SEEDS) if (network, data, str(s)) not in done]
            if not wanted:
                continue
            config = configure(network, data, arguments)
            source = load(config, data)
            cache = cache_maps(config, open_backbone(config), source)
            probe = Probe(config=config, cache=cache, class_names=source.class_names)
            probes = folds(source, probe)
            seconds = expected_seconds(probes[0]) * len(wanted)
            print(f"{data}, {network}: {len(wanted)} seeds, {seconds / 60:.0f} minutes", flush=True)
            for seed in wanted:
                result = train_seed(probes[seed], seed, arguments.cache / f"{data}-{network}")
                append(file, [{"network": network, "data": data, **row} for row in result.rows])


def append(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows to the end of a table."""
    head, *lines = to_csv(rows, ("network", "data", *COLUMNS)).splitlines(keepends=True)
    new = not file.exists()
    with file.open("a") as table:
        table.writelines([head, *lines] if new else lines)


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows so far."""
    if not file.exists():
        return []
    with file.open() as table:
        return list(csv.DictReader(table))


def write_page(rows: Sequence[Mapping[str, str]], file: Path, machine: str, date: str) -> None:
    """docs/probe_table.md; what stands below "Reading it" is kept."""
    written = file.read_text() if file.exists() else ""
    kept = written.partition(READING)[2].partition(TABLES)[0].strip()
    lines = [
        "# Pools on frozen convnets",
        "",
        "```",
        "python benchmarks/probe_table.py --root DIR --weights DIR",
        "```",
        "",
        f"Torch {torch.__version__.split('+')[0]}, one thread of {machine}; {date}; seeds 0 to 4, "
        "on magnetic_tiles five folds that keep the pictures of a tile together. As `convattn "
        "probe` trains; differences are paired over the seeds, with Student's 95 % intervals.",
        "",
        READING,
        "",
        kept,
        "",
        TABLES,
        "",
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        of_data = [row for row in rows if row["data"] == data]
        for network in dict.fromkeys(row["network"] for row in of_data):
            own = [row for row in of_data if row["network"] == network]
            lines += [f"### {data}, {network}", "", table_of(own, data), ""]
    file.write_text("\n".join(lines))


def table_of(rows: Sequence[Mapping[str, str]], data: str) -> str:
    """A line a pool."""
    measure = MEASURES.get(data, "accuracy")
    by_pool = {
        pool: [row for row in rows if row["pool"] == pool]
        for pool in dict.fromkeys(row["pool"] for row in rows)
    }
    average = [float(row[measure]) for row in by_pool["avg"]]
    lines = []
    for pool, own in by_pool.items():
        values = [float(row[measure]) for row in own]
        gains = [a - b for a, b in zip(values, average, strict=True)]
        lines.append(
            (
                pool,
                f"{int(own[0]['parameters']):,}",
                over_seeds(values).percent(),
                "" if pool == "avg" else over_seeds(gains).percent(signed=True),
                f"{sum(float(row['cross_entropy']) for row in own) / len(own):.3f}",
                f"{sum(float(row['seconds']) for row in own) / len(own):.0f}",
            )
        )
    name = measure.replace("_", " ")
    head = ("pool", "parameters", f"{name}, %", "points over avg", "cross-entropy", "s a seed")
    return markdown_table(head, lines)


def main() -> None:
    """Make what is missing, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/probe_table"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--pools", nargs="*", default=[])
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs")
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
