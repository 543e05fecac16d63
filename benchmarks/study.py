"""Does attention help a convnet? A controlled study on real images, all networks trained alike.

    python benchmarks/study.py --tiny-imagenet DIR --fashion-mnist DIR

trains ResNets (plain, squeeze-excite, the light pool, the paper's, attention-augmented convolutions
with three kinds of positions, both kinds of attention) and a PatchConvNet on both data sets: the
same images in the same order, epochs, optimiser and schedule, seeds 0 to 2. Then it tests every
saved network, measures training steps side by side, and writes docs/results/study.md, .png, .csv
(the page's cells; --check compares) and study_runs.csv, a row a run.

A finished run is never made again and an interrupted one goes on, so that the study can be stopped
at any time and grown by --seeds; --minutes stops it by itself. --jobs trains several at once.
--size gpu takes the papers' networks and longer schedules, for one CUDA device; call it again with
the same --runs until all is trained.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import t as student

import pages
from convattn.bench import Comparison, Quartiles, compare, count, training_step
from convattn.classification.dataset import open_data, test_batches
from convattn.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    PoolName,
    TrainConfig,
)
from convattn.exceptions import Interrupted
from convattn.runs import Run, augment_arguments, create_model
from convattn.tasks import resume, train
from convattn.text import markdown_table

PLAIN = "plain"
ALPHA = 0.05
NUM_DRAWS = 1_000
TIMED_STEPS = 12
STOPPED = 130  # status of a run that Ctrl-C has stopped


@dataclass(frozen=True, kw_only=True)
class Network:
    """One row of the study."""

    title: str
    model: str
    model_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pool: PoolName | None = None

    @property
    def made_of(self) -> str:
        """Model, its arguments, and the pool if that is replaced."""
        arguments = [f"{name}={value}" for name, value in self.model_args.items()]
        pool = [] if self.pool is None else [f"pool={self.pool}"]
        return ", ".join([self.model, *arguments, *pool])


@dataclass(frozen=True, kw_only=True)
class Set:
    """One data set, and what is trained on it."""

    title: str
    config: TrainConfig
    networks: tuple[Network, ...]


def family(plain: str, squeezed: Network, augmented: str, patches: Network) -> tuple[Network, ...]:
    """The same nine questions to a family of networks."""
    return (
        Network(title=PLAIN, model=plain),
        squeezed,
        Network(title="light pool", model=plain, pool="attention"),
        Network(title="paper's pool", model=plain, pool="aggregation"),
        Network(title="AA, relative", model=augmented),
        Network(title="AA, sine", model=augmented, model_args={"position": "sine"}),
        Network(title="AA, no positions", model=augmented, model_args={"position": "none"}),
        Network(title="AA, relative + paper's pool", model=augmented, pool="aggregation"),
        patches,
    )


def laptop() -> dict[str, Set]:
    """Small networks, a few epochs."""
    optim = OptimConfig(opt="muon", lr=2e-2, weight_decay=0.05, warmup_epochs=0.4)
    patches = Network(
        title="PatchConvNet", model="patchconvnet_nano", model_args={"embed_dim": 96, "depth": 6}
    )
    every = TrainConfig(recipe="study", optim=optim, channels_last=True, accelerator="cpu")
    return {
        "tiny_imagenet": Set(
            title="Tiny ImageNet, 40 classes, 64 x 64",
            config=dataclasses.replace(
                every,
                data=DataConfig(
                    name="tiny_imagenet", batch_size=128, random_crop_padding=8, label_smoothing=0.1
                ),
                epochs=4,
            ),
            networks=family(
                "resnet18_nano",
                Network(title="squeeze-excite", model="se_resnet18_nano"),
                "aa_resnet18_nano",
                patches,
            ),
        ),
        "fashion_mnist": Set(
            title="Fashion-MNIST, 28 x 28",
            config=dataclasses.replace(
                every,
                data=DataConfig(name="fashion_mnist", batch_size=128, random_crop_padding=2),
                epochs=1,
            ),
            networks=tuple(
                dataclasses.replace(one, model_args={"widen": 1, **one.model_args})
                if "wide" in one.model
                else one
                for one in family(
                    "wide_resnet_nano",
                    Network(
                        title="squeeze-excite",
                        model="wide_resnet_nano",
                        model_args={"squeeze_excite": True},
                    ),
                    "aa_wide_resnet_nano",
                    patches,
                )
            ),
        ),
    }


def gpu() -> dict[str, Set]:
    """The papers' networks and longer schedules, for one CUDA device."""
    sgd = OptimConfig(
        opt="sgd", lr=0.1, weight_decay=5e-4, opt_args={"nesterov": True}, warmup_epochs=3
    )
    every = TrainConfig(
        recipe="study",
        optim=sgd,
        precision="bf16-mixed",
        channels_last=True,
        accelerator="gpu",
        devices=1,
        deterministic=False,
        eval_every=5,
    )
    return {
        "tiny_imagenet": Set(
            title="Tiny ImageNet, 40 classes, 64 x 64",
            config=dataclasses.replace(
                every,
                data=DataConfig(
                    name="tiny_imagenet",
                    batch_size=128,
                    random_crop_padding=8,
                    label_smoothing=0.1,
                    mixup=0.2,
                    num_workers=8,
                ),
                epochs=60,
            ),
            networks=family(
                "resnet34",
                Network(title="squeeze-excite", model="seresnet34"),
                "aa_resnet34",
                Network(
                    title="PatchConvNet",
                    model="patchconvnet_s60",
                    model_args={"patch_size": 8, "depth": 12, "norm": "batchnorm"},
                ),
            ),
        ),
        "fashion_mnist": Set(
            title="Fashion-MNIST, 28 x 28",
            config=dataclasses.replace(
                every,
                data=DataConfig(
                    name="fashion_mnist", batch_size=128, random_crop_padding=2, num_workers=8
                ),
                epochs=20,
            ),
            networks=family(
                "wide_resnet28_10",
                Network(title="squeeze-excite", model="se_wide_resnet28_10"),
                "aa_wide_resnet28_10",
                Network(
                    title="PatchConvNet",
                    model="patchconvnet_s60",
                    model_args={"patch_size": 4, "depth": 12, "norm": "batchnorm"},
                ),
            ),
        ),
    }


SIZES = {"laptop": laptop, "gpu": gpu}


def configuration(data: Set, network: Network, seed: int, root: Path, out: Path) -> TrainConfig:
    """One run of the study."""
    augment = AugmentConfig(pool=network.pool, preserve=network.pool is None)
    return dataclasses.replace(
        data.config,
        data=dataclasses.replace(data.config.data, root=str(root)),
        model=ModelConfig(name=network.model, model_args=dict(network.model_args)),
        augment=augment,
        seed=seed,
        out=str(out),
    )


def place(runs: Path, data: str, network: Network, seed: int) -> Path:
    """The folder of a run."""
    name = "".join(letter if letter.isalnum() else "_" for letter in network.title)
    return runs / data / name / f"seed{seed}"


def is_finished(folder: Path) -> bool:
    """Whether a run has ended."""
    return (folder / "report.md").exists()


def run(config: TrainConfig) -> None:
    """Trains what is not there yet, in this process."""
    folder = Path(config.out or "")
    if (folder / "checkpoints" / "last.ckpt").exists():
        resume(folder)
        return
    if folder.exists():  # killed before its first checkpoint
        number = sum(1 for _ in folder.parent.glob(f"{folder.name}.lost*")) + 1
        folder.rename(folder.with_name(f"{folder.name}.lost{number}"))
    train(config)


def train_all(
    jobs: Sequence[tuple[str, list[str]]], *, at_once: int, deadline: float | None
) -> bool:
    """Run commands, several at once; False when time was up before all had ended."""
    waiting, running = list(jobs), dict[str, subprocess.Popen[bytes]]()
    done, failed, late = 0, 0, False
    environment = dict(os.environ)
    if at_once > 1:
        environment["OMP_NUM_THREADS"] = "1"
    try:
        while waiting or running:
            while waiting and len(running) < at_once and not late:
                name, command = waiting.pop(0)
                print(f"{name} ...", flush=True)
                quiet = subprocess.DEVNULL
                running[name] = subprocess.Popen(command, env=environment, stdout=quiet)
            time.sleep(0.5)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                status = running.pop(name).returncode
                done += 1
                failed += status not in (0, STOPPED)
                said = {0: "trained", STOPPED: "stopped"}.get(status, f"failed, status {status}")
                print(f"{name} {said}, {done} of {len(jobs)}", flush=True)
            if deadline is not None and time.monotonic() > deadline and not late:
                late, waiting = True, []
                print("time is up; the runs under way save a checkpoint", flush=True)
                for process in running.values():
                    process.send_signal(signal.SIGINT)
    except KeyboardInterrupt:
        for process in running.values():  # they have had the same Ctrl-C
            process.wait()
        raise SystemExit("stopped; the same command goes on") from None
    return not late and failed == 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the runs of one network found."""

    network: Network
    hits: np.ndarray
    """Whether each test image was recognised: (seeds, images)."""
    peaks: tuple[float, ...]
    """Share of images whose attention peaks in the object's box, a seed each; or none."""
    parameters: int
    multiply_adds: int

    @property
    def top1(self) -> np.ndarray:
        """Per cent, a seed each."""
        return 100 * self.hits.mean(1)


def recognised(folder: Path) -> np.ndarray:
    """Which test images the saved network gets right; kept beside it."""
    file = folder / "recognised.npy"
    if not file.exists():
        model: Any = Run.open(folder).load_model()
        data = Run.open(folder).config.data
        source = open_data(data, training=False)
        loader, _ = test_batches(data, source, model.pretrained_cfg)
        with torch.inference_mode():
            right = [model(images).argmax(1) == labels for images, labels in loader]
        fresh = file.with_suffix(".tmp.npy")
        np.save(fresh, torch.cat(right).numpy())
        fresh.rename(file)
    return np.load(file)


def gather(data: str, networks: Sequence[Network], seeds: Sequence[int], runs: Path) -> list[Row]:
    """The rows of the networks that all seeds of are there."""
    rows = []
    for network in networks:
        folders = [place(runs, data, network, seed) for seed in seeds]
        if not all(map(is_finished, folders)):
            print(f"{data}: {network.title} is not trained with every seed yet", file=sys.stderr)
            continue
        found = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
        hits = np.stack([recognised(folder) for folder in folders])
        for folder, one, mine in zip(folders, found, hits, strict=True):
            if abs(one["top1"] - mine.mean()) > 2e-3:
                raise ValueError(f"{folder} says {one['top1']:.4f}, tested anew {mine.mean():.4f}")
        model: Any = Run.open(folders[0]).load_model()
        counts = count(model, model.pretrained_cfg["input_size"])
        peaks = tuple(one["peak_in_box"] for one in found if one["peak_in_box"] is not None)
        rows.append(
            Row(
                network=network,
                hits=hits,
                peaks=peaks,
                parameters=counts.parameters,
                multiply_adds=counts.macs,
            )
        )
    return rows


def over_seeds(gains: np.ndarray) -> tuple[float, float]:
    """Half width of the mean's interval over other seeds, same test images; mean first."""
    mean = float(gains.mean())
    if len(gains) < 2:
        return mean, math.nan
    half = (
        student(len(gains) - 1).ppf(1 - ALPHA / 2)
        * float(gains.std(ddof=1))
        / math.sqrt(len(gains))
    )
    return mean, half


def over_images(mine: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Interval of the mean gain over other test images, these networks: paired bootstrap."""
    each = 100 * (mine.astype(float) - other).mean(0)
    random = np.random.default_rng(0)
    means = [each[random.integers(len(each), size=len(each))].mean() for _ in range(NUM_DRAWS)]
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def compare_steps(data: Set, folder: Path, networks: Sequence[Network]) -> Comparison:
    """Training steps beside the plain network's."""
    run = Run.open(folder)
    trained, config = run.load_model(), run.config
    cfg: dict[str, Any] = cast(Any, trained).pretrained_cfg
    device = "cuda" if data.config.accelerator == "gpu" else "cpu"
    torch.manual_seed(0)
    batch = config.data.batch_size
    images = torch.randn(batch, *cfg["input_size"], device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(cfg["num_classes"], (batch,), device=device)
    steps = {}
    for one in networks:
        augment = AugmentConfig(pool=one.pool, preserve=one.pool is None)
        model = create_model(
            one.model,
            num_classes=cfg["num_classes"],
            in_chans=cfg["input_size"][0],
            augment=augment_arguments(augment, cfg["input_size"]),
            **one.model_args,
        )
        model = model.to(device).to(memory_format=torch.channels_last)
        steps[one.title] = training_step(model, images, labels=labels)
    return compare(
        steps, reference=PLAIN, repeats=TIMED_STEPS, device=device, title=f"steps, {data.title}"
    )


def signed(value: float) -> str:
    """With its sign."""
    return f"{value:+.2f}"


def cells(row: Row, plain: Row, ratio: Quartiles) -> tuple[str, ...]:
    """One line of the table."""
    gains = row.top1 - plain.top1
    mean, half = over_seeds(gains)
    low, high = over_images(row.hits, plain.hits)
    deviation = f" ± {row.top1.std(ddof=1):.2f}" if len(gains) > 1 else ""
    itself = row is plain
    return (
        row.network.title,
        row.network.made_of,
        f"{row.parameters / 1e6:.2f} M",
        f"{row.multiply_adds / 1e6:.1f} M",
        f"{ratio:.2f}",
        " / ".join(f"{value:.2f}" for value in row.top1),
        f"{row.top1.mean():.2f}{deviation}",
        "" if itself else f"{signed(mean)} ({signed(mean - half)} to {signed(mean + half)})",
        "" if itself else f"{signed(low)} to {signed(high)}",
        f"{100 * statistics.mean(row.peaks):.1f}" if row.peaks else "",
    )


HEAD = (
    "network",
    "model",
    "parameters",
    "multiply-adds",
    "training step, to plain's",
    "top-1 by seed (%)",
    "mean and deviation (%)",
    "gain over plain, same seed (points, 95 % over seeds)",
    "the same, 95 % over test images",
    "attention peak in the box (%)",
)


def draw(found: Mapping[str, tuple[Set, list[Row]]], file: Path) -> None:
    """Gains over the plain network: every seed, the mean and its interval."""
    figure, axes = plt.subplots(
        1, len(found), figsize=(6.2 * len(found), 4.6), layout="constrained", squeeze=False
    )
    for panel, (data, rows) in zip(axes[0], found.values(), strict=True):
        plain = next(row for row in rows if row.network.title == PLAIN)
        others = [row for row in rows if row is not plain]
        for height, row in enumerate(reversed(others)):
            gains = row.top1 - plain.top1
            mean, half = over_seeds(gains)
            low, high = over_images(row.hits, plain.hits)
            panel.errorbar(
                mean, height, xerr=half, fmt="o", color="C0", capsize=4, label="mean, 95 % (seeds)"
            )
            panel.plot([low, high], [height - 0.22] * 2, color="C1", lw=3, label="95 % (images)")
            panel.scatter(gains, [height + 0.18] * len(gains), s=14, color="grey", label="a seed")
        panel.axvline(0, color="black", lw=0.8)
        names = [f"{row.network.title}\n{row.parameters / 1e6:.2f} M" for row in reversed(others)]
        panel.set_yticks(range(len(others)), names)
        panel.set(xlabel=f"top-1 over plain's {plain.top1.mean():.1f} % (points)", title=data.title)
        panel.grid(axis="x", alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def page_of(
    found: Mapping[str, tuple[Set, list[Row]]],
    steps: Mapping[str, Comparison],
    options: argparse.Namespace,
) -> str:
    """The page without what is read in it, which a page that is there keeps."""
    optim = next(iter(found.values()))[0].config.optim
    lines = [
        "# Does attention help a convnet? A controlled study",
        "",
        f"Networks of {options.size} size. Every network of a data set saw the same images in the "
        "same order, with the same augmentation, number of epochs, "
        f"{optim.opt} at learning rate {optim.lr:g} and schedule; nothing was tuned for one of "
        "them. The first interval is Student's over the seeds (what another seed would give on "
        "these test images), the second a bootstrap over the test images (what these networks "
        "would give on others). `study_runs.csv` beside this page holds every run with its "
        "command.",
        "",
        f"![gains over the plain network]({options.out.with_suffix('.png').name})",
        "",
    ]
    for name, (data, rows) in found.items():
        config = data.config
        plain = next(row for row in rows if row.network.title == PLAIN)
        lines += [
            f"## {data.title}",
            "",
            f"Epochs: {config.epochs}, in batches of {config.data.batch_size}; "
            f"{plain.hits.shape[1]:,} test images.",
            "",
            markdown_table(
                HEAD, [cells(row, plain, steps[name].ratio(row.network.title)) for row in rows]
            ),
            "",
        ]
    return "\n".join(lines)


def write(
    found: Mapping[str, tuple[Set, list[Row]]],
    steps: Mapping[str, Comparison],
    options: argparse.Namespace,
) -> None:
    """The page with its tables as CSV, its image, and a row a run."""
    seeds = " ".join(map(str, options.seeds))
    command = (
        "python benchmarks/study.py --tiny-imagenet DIR --fashion-mnist DIR "
        f"--size {options.size} --seeds {seeds}"
    )
    pages.publish(
        options.out, page_of(found, steps, options), [pages.provenance(command, seed=seeds)]
    )
    draw(found, options.out.with_suffix(".png"))
    write_runs(found, options)


def write_runs(found: Mapping[str, tuple[Set, list[Row]]], options: argparse.Namespace) -> None:
    """A row a run, with its command."""
    file = options.out.with_name(f"{options.out.stem}_runs.csv")
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(("data", "network", "model", "seed", "top1", "epochs", "date", "command"))
        for name, (data, rows) in found.items():
            for row in rows:
                for seed, top1 in zip(options.seeds, row.top1, strict=True):
                    folder = place(options.runs, name, row.network, seed)
                    made = time.localtime((folder / "report.md").stat().st_mtime)
                    command = (
                        f"python benchmarks/study.py --{name.replace('_', '-')} DIR "
                        f"--size {options.size} --seeds {seed}"
                    )
                    writer.writerow(
                        (
                            name,
                            row.network.title,
                            row.network.made_of,
                            seed,
                            f"{top1 / 100:.4f}",
                            data.config.epochs,
                            time.strftime("%Y-%m-%d", made),
                            command,
                        )
                    )


def missing(
    sets: Mapping[str, Set], roots: Mapping[str, Path], options: argparse.Namespace
) -> Iterator[tuple[str, list[str]]]:
    """Name and command of every run that is not there yet: all networks of a seed first."""
    for seed in options.seeds:
        for name, root in roots.items():
            for number, network in enumerate(sets[name].networks):
                if not is_finished(place(options.runs, name, network, seed)):
                    command = [sys.executable, __file__, "--size", options.size]
                    command += [f"--{name.replace('_', '-')}", str(root), "--runs"]
                    command += [str(options.runs), "--one", name, str(number), str(seed)]
                    yield f"{name}, {network.title}, seed {seed}", command


def main() -> int:
    """Train what is missing, then test, measure and write."""
    pages.answer_check("study")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny-imagenet", type=Path, help="folder of train.parquet, val.parquet")
    parser.add_argument("--fashion-mnist", type=Path, help="folder of the four IDX files")
    parser.add_argument("--size", choices=SIZES, default="laptop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--jobs", type=int, default=1, help="trained at once, one thread each")
    parser.add_argument("--minutes", type=float, help="stop training after so long")
    parser.add_argument("--no-training", action="store_true", help="write what is there")
    parser.add_argument("--out", type=Path, default=Path("docs/results/study.md"))
    parser.add_argument("--one", nargs=3, metavar=("DATA", "NETWORK", "SEED"), help="train one run")
    options = parser.parse_args()
    given = {"tiny_imagenet": options.tiny_imagenet, "fashion_mnist": options.fashion_mnist}
    roots = {name: root.resolve() for name, root in given.items() if root is not None}
    if not roots:
        parser.error("name at least one of --tiny-imagenet and --fashion-mnist")
    sets = SIZES[options.size]()
    if options.one:
        name, number, seed = options.one[0], int(options.one[1]), int(options.one[2])
        network = sets[name].networks[number]
        out = place(options.runs, name, network, seed)
        try:
            run(configuration(sets[name], network, seed, roots[name], out))
        except Interrupted:
            return STOPPED
        return 0
    if not options.no_training:
        deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
        jobs = list(missing(sets, roots, options))
        if not train_all(jobs, at_once=options.jobs, deadline=deadline):
            print("not all is trained; the same command goes on", file=sys.stderr)
            return 1
    found = {
        name: (sets[name], gather(name, sets[name].networks, options.seeds, options.runs))
        for name in roots
    }
    steps = {}
    for name, (data, rows) in found.items():
        folder = place(options.runs, name, rows[0].network, options.seeds[0])
        steps[name] = compare_steps(data, folder, [row.network for row in rows])
    write(found, steps, options)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
