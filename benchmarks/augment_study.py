"""What does augment() do to a trained network? One ResNet-18, continued in three ways.

    python benchmarks/augment_study.py --root DIR [--runs runs/augment_study]

DIR holds Tiny ImageNet (train.parquet, val.parquet). The recipe ``resnet18_tiny_imagenet`` is
trained once. Then every seed continues from its weights for the same steps: unchanged, with an
attention pool, with the pool and attention-augmented convolutions in the last three stages. Written
are docs/results/augment_study.md and .png: accuracy before and after, parameters, and the time of a
step, measured side by side. A run that is there already is not made again, so that the study can be
stopped at any time.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import nn

import pages
from convattn.bench import Comparison, compare, training_step
from convattn.classification.dataset import open_data, pretrained_cfg, test_batches
from convattn.classification.evaluation import ClassificationResult, evaluate_classification
from convattn.config import AugmentConfig, TrainConfig
from convattn.recipes import RECIPES
from convattn.runs import Run
from convattn.runs.build import augment_arguments, create_model
from convattn.tasks import resume, train

WAYS = {
    "unchanged": AugmentConfig(),
    "attention pool": AugmentConfig(pool="aggregation", lr_scale=5.0),
    "attention pool and convolutions": AugmentConfig(
        pool="aggregation", conv=("last-3-stages",), lr_scale=5.0
    ),
}
SEEDS = (0, 1, 2)
LR = 0.02
EPOCHS = 1
TIMED_STEPS = 15


def configuration(root: Path, out: Path, **changes: Any) -> TrainConfig:
    """The recipe, with its data and folder named."""
    recipe = RECIPES["resnet18_tiny_imagenet"]()
    data = dataclasses.replace(recipe.data, root=str(root))
    return dataclasses.replace(recipe, data=data, out=str(out), **changes)


def run(config: TrainConfig) -> Path:
    """Trains what is not there yet."""
    folder = Path(config.out or "")
    if (folder / "report.md").exists():
        return folder
    if (folder / "checkpoints" / "last.ckpt").exists():
        resume(folder)
    else:
        train(config)
    return folder


def continued(base: Path, root: Path, out: Path, way: AugmentConfig, seed: int) -> TrainConfig:
    """One continuation of the trained network."""
    config = configuration(root, out, augment=way, seed=seed, epochs=EPOCHS)
    return dataclasses.replace(
        config,
        recipe="augment_study",
        model=dataclasses.replace(config.model, checkpoint=str(base)),
        optim=dataclasses.replace(config.optim, lr=LR, warmup_epochs=0.1),
    )


def beginning(base: Path, way: AugmentConfig) -> tuple[nn.Module, float]:
    """The network before it is trained further, and its accuracy."""
    config = Run.open(base).config
    source = open_data(config.data, training=False)
    cfg = pretrained_cfg(config.data, source)
    model = create_model(
        config.model.name,
        num_classes=len(source.class_names),
        checkpoint=base,
        augment=augment_arguments(way, cfg["input_size"]),
    )
    loader, _ = test_batches(config.data, source, cfg)
    result = evaluate_classification(model, loader, class_names=source.class_names)
    assert isinstance(result, ClassificationResult)
    return model, result.top1


def compare_steps(models: dict[str, nn.Module], batch: int = 128) -> Comparison:
    """Training steps, the networks taking turns."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, 64, 64), torch.randint(40, (batch,))
    images = images.to(memory_format=torch.channels_last)
    steps = {
        name: training_step(model.to(memory_format=torch.channels_last), images, labels=labels)
        for name, model in models.items()
    }
    return compare(steps, reference="unchanged", repeats=TIMED_STEPS, title="training steps")


def reached(folder: Path, what: str = "top1") -> float:
    """What a finished run reached on the test images."""
    return json.loads((folder / "evaluation.json").read_text())[what]


def draw(folders: dict[str, list[Path]], before: float, file: Path) -> None:
    """Training loss of every run, and accuracy before and after."""
    figure, (curves, bars) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for number, (way, runs) in enumerate(folders.items()):
        for index, folder in enumerate(runs):
            with (folder / "metrics.csv").open() as lines:
                rows = [row for row in csv.DictReader(lines) if row["train_loss"]]
            curves.plot(
                [int(row["step"]) for row in rows],
                [float(row["train_loss"]) for row in rows],
                color=f"C{number}",
                alpha=0.7,
                label=way if index == 0 else None,
            )
        top1 = [100 * reached(folder) for folder in runs]
        bars.scatter([number] * len(top1), top1, color=f"C{number}", zorder=2)
        bars.hlines(statistics.mean(top1), number - 0.25, number + 0.25, color=f"C{number}")
    bars.axhline(100 * before, color="grey", linestyle="--", label="before, all three")
    bars.set_xticks(range(len(folders)), [way.replace(" and ", "\nand ") for way in folders])
    bars.set(ylabel="test top-1 (%)", title="After the same steps: each seed, and the mean")
    bars.margins(x=0.2)
    bars.legend()
    curves.set(xlabel="step", ylabel="training loss", title="Continuing the trained ResNet-18")
    curves.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def page(
    base: Path,
    before: dict[str, float],
    folders: dict[str, list[Path]],
    sizes: dict[str, int],
    steps: Comparison,
) -> str:
    """The page that docs keep."""
    rows = []
    for way, runs in folders.items():
        after = [100 * reached(folder) for folder in runs]
        spread = statistics.stdev(after) if len(after) > 1 else 0.0
        gains = [
            100 * (reached(mine) - reached(other))
            for mine, other in zip(runs, folders["unchanged"], strict=True)
        ]
        rows.append(
            f"| {way} | {100 * before[way]:.2f} % | {' / '.join(f'{x:.2f}' for x in after)} % | "
            f"{statistics.mean(after):.2f} ± {spread:.2f} % | "
            f"{statistics.mean(reached(folder, 'loss') for folder in runs):.3f} | "
            f"{' / '.join(f'{x:+.2f}' for x in gains)} | {sizes[way] / 1e6:.2f} M | "
            f"{steps.ratio(way):.2f} |"
        )
    config = Run.open(folders["unchanged"][0]).config
    base_config = Run.open(base).config
    return "\n".join(
        [
            "# A trained network, continued with attention",
            "",
            "A plain ResNet-18 was trained for "
            f"{base_config.epochs} epochs on 20,000 images of 64 x 64 in 40 classes "
            "(recipe `resnet18_tiny_imagenet`, seed 0), then continued from those weights for "
            f"{config.epochs} more (SGD, lr {config.optim.lr:g}, cosine; new layers 5 times "
            "faster) in three ways with three seeds each. 2,000 test images; one is 0.05 %.",
            "",
            "| continued | top-1 before | top-1 after, seeds 0 / 1 / 2 | mean and deviation | "
            "cross-entropy | against unchanged, same seed | parameters | "
            "time of a step, to unchanged's |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "![training loss, and accuracy before and after](augment_study.png)",
            "",
        ]
    )


def main() -> None:
    """Train what is missing, then measure and write."""
    pages.answer_check("augment_study")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of Tiny ImageNet")
    parser.add_argument("--runs", type=Path, default=Path("runs/augment_study"))
    parser.add_argument("--docs", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    base = run(configuration(arguments.root, arguments.runs / "base"))
    folders: dict[str, list[Path]] = {way: [] for way in WAYS}
    for seed in SEEDS:
        for way, augment in WAYS.items():
            out = arguments.runs / f"{way.replace(' ', '_')}-{seed}"
            folders[way].append(run(continued(base, arguments.root, out, augment, seed)))
            print(f"{way}, seed {seed}: {reached(folders[way][-1]):.2%}", flush=True)
    starts = {way: beginning(base, augment) for way, augment in WAYS.items()}
    before = {way: top1 for way, (_, top1) in starts.items()}
    sizes = {
        way: sum(p.numel() for p in Run.open(runs[0]).load_model().parameters())
        for way, runs in folders.items()
    }
    steps = compare_steps({way: model for way, (model, _) in starts.items()})
    draw(folders, before["unchanged"], arguments.docs / "augment_study.png")
    text = page(base, before, folders, sizes, steps)
    told = f"0 of the first training, {', '.join(map(str, SEEDS))} of those that continue it"
    pages.publish(
        arguments.docs / "augment_study.md",
        text,
        [pages.provenance("python benchmarks/augment_study.py --root DIR", seed=told)],
    )
    print(text)


if __name__ == "__main__":
    main()
