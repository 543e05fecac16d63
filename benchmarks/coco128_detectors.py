"""What trained weights, and our recipe, are worth to a RetinaNet on 128 images of COCO.

    python benchmarks/coco128_detectors.py COCO128 WEIGHTS --out FILE.csv [--epochs 30] [--seeds 3]

COCO128 holds ``images/{train2017,val2017}`` and ``annotations/detection_{train,val}2017.json``;
WEIGHTS are an EfficientNet-Lite0's. Three rows a seed, of equal networks, pictures and steps:

- ``pretrained``: the recipe ``finetune_retinanet`` from the weights;
- ``scratch``: the same from random weights;
- ``reference``: from the weights by torchvision's reference hyper-parameters for RetinaNet (SGD of
  0.01 for 16 images a step, momentum 0.9, weight decay 1e-4, steps at 16 and 22 of 26 epochs).

A row is written when its run has ended, and rows that are there are not run again: start it anew
to go on. The last lines are means over the seeds with 95 % intervals by Student's t. A run costs
about ``epochs * 128`` images forward and backward at 320 pixels; the first row tells how long that
takes.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from convattn.config import ModelConfig, OptimConfig, TrainConfig
from convattn.recipes import RECIPES
from convattn.tasks import train

COLUMNS = ("variant", "seed", "epochs", "ap50", "ap", "seconds")
VARIANTS = ("pretrained", "scratch", "reference")
# Student's t for 97.5 %, by degrees of freedom.
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}


def config(variant: str, root: Path, weights: Path, *, epochs: int, seed: int) -> TrainConfig:
    """The run of a row."""
    base = RECIPES["finetune_retinanet"].config
    optim = base.optim
    if variant == "reference":
        optim = OptimConfig(
            opt="sgd",
            lr=0.01 * base.data.batch_size / 16,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="multistep",
            decay_milestones=tuple(max(1, round(epochs * at / 26)) for at in (16, 22)),
            warmup_epochs=1,
        )
    return replace(
        base,
        data=replace(
            base.data,
            root=str(root),
            annotations="detection",
            image_size=320,
            num_workers=0,
            scale_jitter=(1.0, 1.0) if variant == "reference" else base.data.scale_jitter,
        ),
        model=ModelConfig(
            name="retinanet",
            backbone="tf_efficientnet_lite0",
            backbone_weights=None if variant == "scratch" else str(weights),
        ),
        optim=optim,
        epochs=epochs,
        eval_every=epochs,
        seed=seed,
        logger=(),
    )


def read_rows(file: Path) -> list[dict[str, str]]:
    """Rows of runs that have ended."""
    if not file.is_file():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def measure(options: argparse.Namespace) -> None:
    """Train what has no row yet."""
    done = {(row["variant"], row["seed"], row["epochs"]) for row in read_rows(options.out)}
    for seed in range(options.seeds):
        for variant in VARIANTS:
            if (variant, str(seed), str(options.epochs)) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = config(
                    variant, options.root, options.weights, epochs=options.epochs, seed=seed
                )
                start = time.monotonic()
                found = train(replace(run, out=f"{folder}/run"))
                seconds = time.monotonic() - start
            assert found is not None
            result = vars(found.result)
            row = (variant, seed, options.epochs, result["ap50"], result["map"], round(seconds))
            is_new = not options.out.is_file()
            with options.out.open("a", newline="") as opened:
                writer = csv.writer(opened, lineterminator="\n")
                writer.writerows([COLUMNS, row] if is_new else [row])
            print(f"{variant} seed {seed}: AP50 {result['ap50']:.2%} in {seconds / 60:.1f} minutes")


def summarize(file: Path, epochs: int) -> None:
    """Mean and interval of each variant."""
    for variant in VARIANTS:
        values = [
            100 * float(row["ap50"])
            for row in read_rows(file)
            if row["variant"] == variant and row["epochs"] == str(epochs)
        ]
        if len(values) < 2:
            continue
        quantile = QUANTILES.get(len(values) - 1, 2.0)
        half = quantile * statistics.stdev(values) / math.sqrt(len(values))
        mean = statistics.mean(values)
        print(f"{variant}: AP50 {mean:.1f} +- {half:.1f} % ({len(values)} seeds)")


def main() -> None:
    """Measure and sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    measure(options)
    summarize(options.out, options.epochs)


if __name__ == "__main__":
    main()
