"""What trained weights, and our recipe, are worth to a RetinaNet on 128 images of COCO.

    python benchmarks/coco128_detectors.py COCO128 WEIGHTS --out FILE.csv [--epochs 8] [--seeds 3]

COCO128 holds ``images/{train2017,val2017}`` and ``annotations/detection_{train,val}2017.json``;
WEIGHTS are an EfficientNet-Lite0's. Of the 80 classes persons alone are to be found: most others
have too few objects among 128 images. Three rows a seed, of equal networks, images and steps:

- ``pretrained``: the recipe ``finetune_retinanet`` from the weights;
- ``scratch``: the same from random weights;
- ``reference``: torchvision's RetinaNet from the weights, in a plain loop with the hyper-parameters
  of torchvision's reference script: SGD of 0.01 for 16 images a step, momentum 0.9, weight decay
  1e-4 of everything, the first epoch warms up, steps at 16 and 22 of 26 epochs, mirrored images.

The networks are small: 128 channels, two convolutions in the head, begun as torchvision's, and
anchors from two strides on, as the images are small, too.
A row is written when its run has ended, and rows that are there are not run again: start it anew
to go on. The last lines are means over the seeds, and of each other variant what ``pretrained`` is
ahead of it, seed by seed, with 95 % intervals by Student's t.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from scipy.stats import t as student
from torch.utils.data import DataLoader

from convattn.config import ModelConfig, TrainConfig
from convattn.data.batches import collate_lists
from convattn.data.dense_transforms import detection_train_transform
from convattn.detection.dataset import open_data, pretrained_cfg, test_batches
from convattn.detection.evaluation import DetectionResult, evaluate_detection
from convattn.recipes import RECIPES
from convattn.runs import create_dense_model, starting_cfg
from convattn.tasks import train

COLUMNS = ("variant", "seed", "epochs", "image_size", "batch_size", "ap50", "ap")
VARIANTS = ("pretrained", "scratch", "reference")
HEAD: dict[str, Any] = {"channels": 128, "head_convs": 2, "anchor_scale": 2.0}
WANTED = "person"
EPOCHS, STEPS = 26, (16, 22)
"""Of torchvision's reference, whose learning rate falls at these epochs."""


def only_wanted(root: Path, folder: Path) -> Path:
    """COCO128 with the objects of the one class; all images stay."""
    (folder / "annotations").mkdir()
    (folder / "images").symlink_to((root / "images").resolve())
    for split in ("train2017", "val2017"):
        name = f"annotations/detection_{split}.json"
        content = json.loads((root / name).read_text())
        kept = [one for one in content["categories"] if one["name"] == WANTED]
        objects = [one for one in content["annotations"] if one["category_id"] == kept[0]["id"]]
        content |= {"categories": kept, "annotations": objects}
        (folder / name).write_text(json.dumps(content))
    return folder


def config(variant: str, options: argparse.Namespace, seed: int) -> TrainConfig:
    """The run of a row."""
    base = RECIPES["finetune_retinanet"].config
    return replace(
        base,
        data=replace(
            base.data,
            root=str(options.root),
            annotations="detection",
            image_size=options.image_size,
            batch_size=options.batch_size,
            num_workers=0,
        ),
        model=ModelConfig(
            name="retinanet",
            backbone="tf_efficientnet_lite0",
            backbone_weights=None if variant == "scratch" else str(options.weights),
            model_args=HEAD,
        ),
        epochs=options.epochs,
        eval_every=options.epochs,
        seed=seed,
        logger=(),
    )


def train_as_torchvision(config: TrainConfig) -> DetectionResult:
    """Train and test in a plain loop with the reference's hyper-parameters."""
    torch.manual_seed(config.seed)
    source = open_data(config.data, masks=False)
    cfg = pretrained_cfg(config.data, source, starting_cfg(config.model))
    weights = config.model.backbone_weights
    model: Any = create_dense_model(
        config.model.name,
        cfg=cfg,
        backbone=config.model.backbone,
        backbone_weights=None if weights is None else Path(weights),
        **HEAD,
    ).to(memory_format=torch.channels_last)
    transform = detection_train_transform(image_size=cfg["image_size"], max_size=cfg["max_size"])
    batches = DataLoader(
        source.train.with_transform(transform),
        config.data.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collate_lists,
    )
    model.transform.resize_training = False
    rate = 0.01 * config.data.batch_size / 16
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 1000, total_iters=len(batches) - 1)
    milestones = [max(1, round(config.epochs * at / EPOCHS)) for at in STEPS]
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    model.train()
    for epoch in range(config.epochs):
        for images, targets in batches:
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if epoch == 0:
                warmup.step()
        steps.step()
    batches = test_batches(config.data, source)
    result, _ = evaluate_detection(model, batches, class_names=source.class_names, has_masks=False)
    return result


def run(variant: str, options: argparse.Namespace, seed: int) -> DetectionResult:
    """Train a network and test it."""
    chosen = config(variant, options, seed)
    if variant == "reference":
        return train_as_torchvision(chosen)
    with TemporaryDirectory() as folder:
        found = train(replace(chosen, out=f"{folder}/run"))
    assert found is not None
    assert isinstance(found.result, DetectionResult)
    return found.result


def read_rows(file: Path, options: argparse.Namespace) -> list[dict[str, str]]:
    """Rows of runs of this setting that have ended."""
    if not file.is_file():
        return []
    wanted = {name: str(getattr(options, name)) for name in COLUMNS[2:5]}
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return [row for row in rows if wanted.items() <= row.items()]


def measure(options: argparse.Namespace) -> None:
    """Train what has no row yet."""
    done = {(row["variant"], row["seed"]) for row in read_rows(options.out, options)}
    for seed in range(options.seeds):
        for variant in VARIANTS:
            if (variant, str(seed)) in done:
                continue
            start = time.monotonic()
            result = run(variant, options, seed)
            minutes = (time.monotonic() - start) / 60
            setting = (options.epochs, options.image_size, options.batch_size)
            shares = (f"{share:.5f}" for share in (result.ap50 or 0, result.map or 0))
            row = (variant, seed, *setting, *shares)
            is_new = not options.out.is_file()
            with options.out.open("a", newline="") as opened:
                writer = csv.writer(opened, lineterminator="\n")
                writer.writerows([COLUMNS, row] if is_new else [row])
            print(f"{variant} seed {seed}: AP50 {result.ap50:.2%} in {minutes:.1f} min", flush=True)


def with_interval(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval."""
    count = len(values)
    half = float(student.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5
    return f"{statistics.mean(values):.2f} +- {half:.2f}"


def summarize(options: argparse.Namespace) -> None:
    """Each variant's mean, and what the first is ahead of it."""
    rows = read_rows(options.out, options)
    found = {
        variant: [100 * float(row["ap50"]) for row in rows if row["variant"] == variant]
        for variant in VARIANTS
    }
    if min(map(len, found.values())) < 2:
        return
    first = found[VARIANTS[0]]
    for variant, values in found.items():
        ahead = [one - other for one, other in zip(first, values, strict=True)]
        told = "" if variant == VARIANTS[0] else f"; pretrained ahead by {with_interval(ahead)}"
        print(f"AP50 {variant}: {with_interval(values)} %{told}")


def main() -> None:
    """Measure and sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        options.root = only_wanted(options.root, Path(folder))
        measure(options)
    summarize(options)


if __name__ == "__main__":
    main()
