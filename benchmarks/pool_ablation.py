"""Pools trained from scratch: why the paper's loses, and whether the light one does.

    python benchmarks/pool_ablation.py --tiny-imagenet DIR --fashion-mnist DIR

trains the plain networks of benchmarks/study.py with other pools, as the study trains them: the
same images in the same order, augmentation, optimiser and schedule. Four questions, a stage or
two each:

- why: single changes between the average pool and the paper's block, at the study's rate;
- no-loss: each pool at the rate that a fifth of the training images chose for it, then trained on
  all of them and tested once a seed;
- map: a map of 4 x 4 instead of 2 x 2;
- long: three times as many epochs.

Every run is a row of docs/pool_ablation.csv, written when it ends: a stopped study goes on where
it stopped. --stages chooses, --minutes stops it after a while, --no-training writes the page.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import deterministic
from torch.utils.data import DataLoader

from convattn import LearnedAggregation2d, create_pool
from convattn.config import ModelConfig
from convattn.data import TensorImages, transform_of
from convattn.text import markdown_table
from convattn.train.classification import ClassificationJob, ClassificationTask
from convattn.train.datamodule import EpochBatches, SeededBatches
from convattn.train.optim import create_optimizer, create_schedule, optimizer_args, schedule_args
from convattn.train.seeding import derive_seed, seed_all
from study import Set, laptop, over_seeds, signed

LR = 2e-2  # the study's
ADAMW_LR = 1e-3
HELD_OUT = 5  # a fifth of the training images chooses the rate
NUM_TRAIN_TESTED = 5_000
WIDEST = 16  # no rate is tried beyond so many times the study's, or under so small a share
MARGIN = -0.5  # points that a pool may lose to the average
MAP_SIZES = {"tiny_imagenet": 2, "fashion_mnist": 7}
EPOCHS = {"tiny_imagenet": 4, "fashion_mnist": 1}


class RawValues(LearnedAggregation2d):
    """The paper's block; weights come from normed positions, values from them as they are."""

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, C)."""
        tokens, patches, key_token = self._attn_inputs(x)
        weights = self.attn.weights(tokens, patches, key_token)
        raw = x.flatten(2).transpose(1, 2)
        pooled = self.token + self.gamma1 * self.attn.values(weights, raw, self.token)
        return self.norm(pooled + self.gamma2 * self.mlp(self.norm2(pooled)))


class NormedMean(nn.Module):
    """The mean, with a LayerNorm of the positions before it, of itself behind it, or both."""

    def __init__(self, channels: int, *, before: bool, behind: bool) -> None:
        super().__init__()
        self.before = nn.LayerNorm(channels, eps=1e-6) if before else nn.Identity()
        self.behind = nn.LayerNorm(channels, eps=1e-6) if behind else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return self.behind(self.before(x.flatten(2).transpose(1, 2)).mean(1))


def average(channels: int) -> nn.Module:
    """As the networks have it, to the last bit."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def normed(make: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """A pool with BatchNorm behind it."""
    return lambda channels: nn.Sequential(
        make(channels), nn.BatchNorm1d(channels, eps=1e-6, affine=False)
    )


def residual(channels: int) -> nn.Module:
    """The mean, and one query's difference from it through gates that start at zero."""
    return create_pool("residual", channels)


def one_query(channels: int) -> nn.Module:
    """One query that starts at zero."""
    pool = create_pool("ep", channels, num_queries=1, values=False)
    nn.init.zeros_(cast(nn.Parameter, pool.queries))
    return pool


def equal_weights(channels: int) -> nn.Module:
    """The paper's block, whose token and positions all weigh the same."""
    block = LearnedAggregation2d(channels, 0)
    for layer in (block.attn.q, block.attn.k):
        layer.requires_grad_(False)
        nn.init.zeros_(layer.weight)
    return block


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stands in the pool's place."""

    title: str
    make: Callable[[int], nn.Module]
    adamw: bool = False
    """Whether its matrices are trained by AdamW instead of Muon."""


def paper(**options: Any) -> Callable[[int], nn.Module]:
    """The block as ``augment(pool="attention", preserve=False)`` puts it there."""
    return lambda channels: LearnedAggregation2d(channels, 0, **options)


def raw_values(channels: int) -> nn.Module:
    """The paper's block that reads positions as they are."""
    return RawValues(channels, 0)


HEADS = {
    "avg": Head(title="average", make=average),
    "avg-bn": Head(title="average, BatchNorm", make=normed(average)),
    "residual": Head(title="residual (light)", make=residual),
    "residual-bn": Head(title="residual, BatchNorm", make=normed(residual)),
    "query": Head(title="one query", make=one_query),
    "paper": Head(title="the paper's block", make=paper()),
    "paper-raw": Head(title="block, values of positions as they are", make=raw_values),
    "paper-scale1": Head(title="block, LayerScale 1", make=paper(layer_scale=1.0)),
    "paper-equal": Head(title="block, equal weights", make=equal_weights),
    "paper-adamw": Head(title="block, matrices on AdamW 1e-3", make=paper(), adamw=True),
    "paper-residual": Head(title="block, residual form", make=paper(residual=True)),
    "norm-mean-norm": Head(
        title="norm of positions, mean, norm",
        make=lambda c: NormedMean(c, before=True, behind=True),
    ),
    "mean-norm": Head(title="mean, norm", make=lambda c: NormedMean(c, before=False, behind=True)),
}
WHY = ("avg", "paper", "paper-raw", "norm-mean-norm", "residual", "mean-norm")
WHY_TOO = ("paper-residual", "paper-equal", "paper-scale1", "paper-adamw", "avg-bn", "query")
NO_LOSS = ("avg", "residual", "paper")
NO_LOSS_TOO = ("avg-bn", "residual-bn", "query")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One run."""

    data: str
    head: str
    seed: int
    map_size: int
    epochs: int
    lr: float = LR
    part: str = "test"
    """Whether it was made to "choose" the rate, or to "test"."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What came of it: per cent, nats, seconds of training."""

    accuracy: float
    cross_entropy: float
    train_accuracy: float
    train_loss: float
    parameters: int
    seconds: float


FIELDS = [field.name for kind in (Setting, Found) for field in dataclasses.fields(kind)]


class Rows:
    """The runs there are, and a file that grows with them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[Setting, Found] = {}
        if file.exists():
            with file.open(newline="") as lines:
                for row in csv.DictReader(lines):
                    self.found[_read(Setting, row)] = _read(Found, row)

    def add(self, setting: Setting, found: Found) -> None:
        """Keep a run."""
        self.found[setting] = found
        new = not self.file.exists()
        with self.file.open("a", newline="") as lines:
            writer = csv.DictWriter(lines, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({**dataclasses.asdict(setting), **dataclasses.asdict(found)})

    def by_seed(self, setting: Setting) -> dict[int, Found]:
        """The runs that differ from ``setting`` in the seed alone."""
        return {
            other.seed: found
            for other, found in sorted(self.found.items(), key=lambda item: item[0].seed)
            if dataclasses.replace(other, seed=setting.seed) == setting
        }


def _read(kind: Any, row: dict[str, str]) -> Any:
    convert: dict[str, type] = {"int": int, "float": float, "str": str}
    return kind(**{f.name: convert[str(f.type)](row[f.name]) for f in dataclasses.fields(kind)})


class Trainer:
    """Trains one setting after the other; the images of each set are read once."""

    def __init__(self, roots: dict[str, Path]) -> None:
        self.sets: dict[str, Set] = laptop()
        self.roots = roots
        self.jobs: dict[str, ClassificationJob] = {}

    def job(self, setting: Setting) -> ClassificationJob:
        """The study's job, for this rate, seed and length."""
        data = self.sets[setting.data]
        if setting.data not in self.jobs:
            plain = data.networks[0]
            images = dataclasses.replace(data.config.data, root=str(self.roots[setting.data]))
            model = ModelConfig(name=plain.model, model_args=dict(plain.model_args))
            config = dataclasses.replace(data.config, data=images, model=model)
            self.jobs[setting.data] = ClassificationJob(config)
        job = self.jobs[setting.data]
        optim = dataclasses.replace(job.config.optim, lr=setting.lr)
        job.config = dataclasses.replace(
            job.config, optim=optim, epochs=setting.epochs, seed=setting.seed
        )
        return job

    def __call__(self, setting: Setting) -> Found:
        """Train and test one network."""
        job, head = self.job(setting), HEADS[setting.head]
        task = job.make_task(None)
        model: Any = task.model
        if setting.map_size != MAP_SIZES[setting.data]:
            keep_resolution(model)
        model.global_pool = head.make(model.num_features)
        images = cast(TensorImages, job.data.train_images)
        test = cast(TensorImages, job.data.test_images)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        if setting.part == "choose":
            held = len(images) // HELD_OUT
            test = images.select(order[:held]).with_transform(transform_of(job.data.cfg))
            images = images.select(order[held:])
            order = torch.arange(len(images))
        started = time.monotonic()
        train_loss = train(task, images, job, adamw=head.adamw)
        seconds = time.monotonic() - started
        seen = images.select(order[-NUM_TRAIN_TESTED:]).with_transform(transform_of(job.data.cfg))
        accuracy, cross_entropy = evaluate(model, test)
        return Found(
            accuracy=accuracy,
            cross_entropy=round(cross_entropy, 5),
            train_accuracy=evaluate(model, seen)[0],
            train_loss=round(train_loss, 5),
            parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
            seconds=round(seconds, 1),
        )


def keep_resolution(model: Any) -> None:
    """Take the stride out of the last stage: a map of twice the side."""
    first = model.layer4[0]
    for conv in (first.conv1, first.downsample[0]):
        assert conv.stride == (2, 2)
        conv.stride = (1, 1)


def train(
    task: ClassificationTask, images: TensorImages, job: ClassificationJob, *, adamw: bool
) -> float:
    """The study's training, step by step; the mean loss of the last hundred steps."""
    config = job.config
    batches = EpochBatches(len(images), config.data.batch_size, seed=config.seed)
    loader: DataLoader[Any] = DataLoader(SeededBatches(images), batch_sampler=cast(Any, batches))
    model: Any = task.model
    optimizer = create_optimizer(model, **optimizer_args(config))
    if adamw:
        matrices_on_adamw(optimizer, model.global_pool, ADAMW_LR / config.optim.lr)
    schedule = create_schedule(
        optimizer,
        epochs=config.epochs,
        steps_per_epoch=batches.steps,
        **schedule_args(config),
    )
    losses: list[float] = []
    model.train()
    for epoch in range(config.epochs):
        batches.set_epoch(epoch)
        for number, batch in enumerate(loader):
            seed_all(derive_seed(config.seed, epoch, number, 0, 1))
            schedule.step_update(len(losses))
            loss = task.training_step(batch, number)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return float(np.mean(losses[-100:]))


def matrices_on_adamw(optimizer: torch.optim.Optimizer, pool: nn.Module, lr_scale: float) -> None:
    """Have timm's Muon train the matrices of ``pool`` by AdamW at a rate of their own."""
    chosen = {id(parameter) for parameter in pool.parameters() if parameter.dim() > 1}
    for group in list(optimizer.param_groups):
        theirs = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if theirs:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
            scale = {"params": theirs, "lr_scale": lr_scale, "use_fallback": True}
            optimizer.add_param_group({**group, **scale})


def evaluate(model: nn.Module, images: TensorImages) -> tuple[float, float]:
    """Top-1 in per cent, and cross-entropy in nats."""
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch, _ in DataLoader(images, batch_size=128)])
    right = logits.argmax(1) == images.labels
    loss = nn.functional.cross_entropy(logits, images.labels)
    return round(100 * float(right.double().mean()), 4), float(loss)


Run = Callable[[Setting], Found]


def usual(data: str, head: str, seed: int, **other: Any) -> Setting:
    """A test as the study would make it, but for what is said otherwise."""
    own: dict[str, Any] = {"map_size": MAP_SIZES[data], "epochs": EPOCHS[data], **other}
    return Setting(data=data, head=head, seed=seed, **own)


def chosen_rate(data: str, head: str, run: Run) -> float:
    """The best of three rates, and of more while the best lies at an edge."""
    factors, accuracy = [0.5, 1.0, 2.0], dict[float, float]()
    while True:
        for factor in factors:
            if factor not in accuracy:
                epochs = math.ceil(EPOCHS[data] / 2)
                other = {"epochs": epochs, "lr": LR * factor, "part": "choose"}
                accuracy[factor] = run(usual(data, head, 0, **other)).accuracy
        best = max(factors, key=lambda factor: (accuracy[factor], -abs(math.log(factor))))
        if best == factors[0] and best > 1 / WIDEST:
            factors.insert(0, best / 2)
        elif best == factors[-1] and best < WIDEST:
            factors.append(best * 2)
        else:
            return LR * best


def no_loss(heads: Iterable[str], sets: Iterable[str], seeds: Iterable[int], run: Run) -> None:
    """Choose rates and test: all heads of a seed before the next seed."""
    for data in sets:
        rates = {head: chosen_rate(data, head, run) for head in heads}
        for seed in seeds:
            for head, lr in rates.items():
                run(usual(data, head, seed, lr=lr))


def stages(
    options: argparse.Namespace, sets: Sequence[str], run: Run
) -> Iterator[Callable[[], Any]]:
    """What is to be done, what matters most first."""
    few, many = range(options.seeds_why), range(options.seeds)
    tiny = "tiny_imagenet"

    def at(seeds: Iterable[int], heads: Iterable[str], **other: Any) -> Callable[[], Any]:
        return lambda: [run(usual(tiny, head, seed, **other)) for seed in seeds for head in heads]

    everything = {
        "why": at(few, WHY),
        "no-loss": lambda: no_loss(NO_LOSS, sets, many, run),
        "why-too": at(few, WHY_TOO),
        "no-loss-too": lambda: no_loss(NO_LOSS_TOO, sets, many, run),
        "map": at(few, NO_LOSS, map_size=4),
        "long": at(few, NO_LOSS, epochs=12),
    }
    for name in options.stages or everything:
        if tiny in sets or "no-loss" in name:
            yield everything[name]


class TimeIsUp(Exception):
    """The study stops here for now."""


def spread(values: Sequence[float]) -> str:
    """Mean and deviation."""
    deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{deviation}"


def gain(mine: dict[int, Found], other: dict[int, Found]) -> tuple[np.ndarray, float, float]:
    """Differences at equal seeds, their mean, and half of its Student 95 % interval."""
    both = [seed for seed in mine if seed in other]
    gains = np.array([mine[seed].accuracy - other[seed].accuracy for seed in both])
    return gains, *(over_seeds(gains) if len(both) else (math.nan, math.nan))


def interval(mean: float, half: float) -> str:
    """In a cell."""
    if math.isnan(half):
        return "" if math.isnan(mean) else f"{signed(mean)} (one seed)"
    return f"{signed(mean)} ({signed(mean - half)} to {signed(mean + half)})"


def verdict(mean: float, half: float) -> str:
    """Whether a pool is within the margin of the average."""
    if math.isnan(mean):
        return ""
    if mean - half > MARGIN:
        return "yes, the whole interval"
    return "the mean only" if mean > MARGIN else "no"


Group = dict[str, dict[int, Found]]
"""Heads of one comparison, and their runs by seed."""


def group(rows: Rows, heads: Iterable[str], **other: Any) -> Group:
    """The heads that there are runs of on Tiny ImageNet."""
    found = {head: rows.by_seed(usual("tiny_imagenet", head, 0, **other)) for head in heads}
    return {head: runs for head, runs in found.items() if runs}


def tested(rows: Rows, data: str) -> tuple[Group, dict[str, tuple[float, str]]]:
    """Heads with a chosen rate: their tests; the rate, and what each rate gave on the part."""
    tests: Group = {}
    rates = {}
    for head in (*NO_LOSS, *NO_LOSS_TOO):
        tried: dict[float, float] = {}

        def known(setting: Setting, tried: dict[float, float] = tried) -> Found:
            tried[setting.lr] = rows.found[setting].accuracy
            return rows.found[setting]

        try:
            lr = chosen_rate(data, head, known)
        except KeyError:  # not all are tried yet
            continue
        if runs := rows.by_seed(usual(data, head, 0, lr=lr)):
            tests[head] = runs
            rates[head] = lr, ", ".join(f"{r:g}: {tried[r]:.1f}" for r in sorted(tried))
    return tests, rates


def table(found: Group, rates: dict[str, tuple[float, str]] | None = None) -> str:
    """A row a head: beside the average, and beside the paper's block."""
    lines = []
    for head, runs in found.items():
        values = [run.accuracy for run in runs.values()]
        line = [HEADS[head].title, f"{next(iter(runs.values())).parameters / 1e3:.0f} k"]
        if rates is not None:
            line += [f"{rates[head][0]:g}", rates[head][1]]
        line += [" / ".join(f"{value:.2f}" for value in values), spread(values)]
        line += [f"{np.mean([run.train_accuracy for run in runs.values()]):.1f}"]
        line += [f"{np.mean([run.cross_entropy for run in runs.values()]):.3f}"]
        for reference in ("avg", "paper"):
            _, mean, half = gain(runs, found.get(reference, {}))
            line.append("" if head == reference else interval(mean, half))
            if reference == "avg":
                line.append("" if head == reference else verdict(mean, half))
        lines.append(tuple(line))
    names = ["pool", "parameters", *(["rate", "rate: held-out top-1"] if rates is not None else [])]
    names += ["top-1 by seed (%)", "mean and deviation", "training top-1", "cross-entropy"]
    names += ["to average (points, 95 %)", f"above {MARGIN}?", "to the paper's block"]
    return markdown_table(tuple(names), lines)


def write(rows: Rows, seconds_of: str, page: Path) -> None:
    """The page and its plot; "Reading it" is kept as it is."""
    why = group(rows, (*WHY, *WHY_TOO))
    parts: list[tuple[str, str, Group, dict[str, tuple[float, str]] | None]] = [
        (
            "Why the paper's pool loses",
            "Tiny ImageNet, 40 classes, 64 x 64, `resnet18_nano`, map of 2 x 2, 4 epochs; muon at "
            "the study's rate of 0.02 for every pool.",
            why,
            None,
        )
    ]
    for data, words in (("tiny_imagenet", "Tiny ImageNet"), ("fashion_mnist", "Fashion-MNIST")):
        side = MAP_SIZES[data]
        text = (
            f"Map of {side} x {side}, {EPOCHS[data]} epochs. A pool's rate is the best of 0.01, "
            "0.02, 0.04 on a fifth of the training images, of networks trained on the others for "
            f"{math.ceil(EPOCHS[data] / 2)} epochs (seed 0); twice or half the rate is tried while "
            "the best lies at an edge. Then all training images, and one test a seed."
        )
        parts.append((f"No loss: {words}, every pool at its own rate", text, *tested(rows, data)))
    text = "Tiny ImageNet as above, rate 0.02, the stride of the last stage taken out."
    parts.append(("A map of 4 x 4", text, group(rows, NO_LOSS, map_size=4), None))
    text = "Tiny ImageNet as above, rate 0.02, map of 2 x 2, three times the epochs."
    parts.append(("12 epochs", text, group(rows, NO_LOSS, epochs=12), None))
    parts = [part for part in parts if part[2]]
    lines = [
        "# Pools trained from scratch: why the paper's loses, and whether the light one does",
        "",
        "```sh",
        "python benchmarks/pool_ablation.py --tiny-imagenet DIR --fashion-mnist DIR",
        "```",
        "",
        f"Torch {torch.__version__.split('+')[0]}, AMD EPYC, one thread of 2 cores (AVX-512, no "
        f"AMX), 28 November 2026; {seconds_of}. The networks, images, augmentation, optimiser and "
        "schedule are those of [study.md](study.md); runs of equal seed start from the same "
        "weights but for the pool's and see the same images in the same order. Intervals are "
        "Student's, 95 %, of the mean difference at equal seeds: what other seeds would give on "
        "these test images. `pool_ablation.csv` beside this page holds every run.",
        "",
        f"![differences from the average pool]({page.with_suffix('.png').name})",
        "",
    ]
    for title, text, found, rates in parts:
        lines += [f"## {title}", "", text, "", table(found, rates), ""]
    if page.exists() and "## Reading it" in (old := page.read_text()):
        lines += ["## Reading it" + old.split("## Reading it")[1].rstrip(), ""]
    page.write_text("\n".join(lines))
    draw([(title, found) for title, _, found, _ in parts], page.with_suffix(".png"))


def draw(parts: Sequence[tuple[str, Group]], file: Path) -> None:
    """Differences from the average pool: seeds, their mean and its interval."""
    heights = [len(found) for _, found in parts]
    figure, axes = plt.subplots(
        len(parts),
        1,
        figsize=(8, 0.9 * len(parts) + 0.38 * sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for panel, (title, found) in zip(axes[:, 0], parts, strict=True):
        heads = [head for head in reversed(found) if head != "avg"]
        for height, head in enumerate(heads):
            gains, mean, half = gain(found[head], found.get("avg", {}))
            panel.scatter(gains, [height] * len(gains), s=14, color="grey", label="a seed")
            half = 0.0 if math.isnan(half) else half
            panel.errorbar(
                mean, height, xerr=half, fmt="o", color="C0", capsize=4, label="mean, 95 %"
            )
        panel.axvline(0, color="black", lw=0.8)
        panel.axvline(MARGIN, color="C3", lw=0.8, ls="--", label=f"{MARGIN} points")
        panel.set_yticks(range(len(heads)), [HEADS[head].title for head in heads])
        panel.set_title(title, fontsize=10, loc="left")
        panel.grid(axis="x", alpha=0.3)
        panel.margins(y=0.15)
    axes[-1, 0].set_xlabel("top-1 over the average pool's (points)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train what is missing and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny-imagenet", type=Path, help="folder of train.parquet, val.parquet")
    parser.add_argument("--fashion-mnist", type=Path, help="folder of the four IDX files")
    parser.add_argument("--stages", nargs="+", help="why no-loss why-too no-loss-too map long")
    parser.add_argument("--seeds", type=int, default=5, help="of the comparison at chosen rates")
    parser.add_argument("--seeds-why", type=int, default=3, help="of the others")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after these")
    parser.add_argument("--no-training", action="store_true", help="write what is there")
    parser.add_argument("--out", type=Path, default=Path("docs/pool_ablation.md"))
    options = parser.parse_args()
    given = {"tiny_imagenet": options.tiny_imagenet, "fashion_mnist": options.fashion_mnist}
    roots = {name: root for name, root in given.items() if root is not None}
    rows, trainer = Rows(options.out.with_suffix(".csv")), Trainer(roots)
    started = time.monotonic()
    torch.use_deterministic_algorithms(True)
    cast(Any, deterministic).fill_uninitialized_memory = False

    def run(setting: Setting) -> Found:
        if setting not in rows.found:
            if time.monotonic() - started > 60 * options.minutes:
                raise TimeIsUp
            rows.add(setting, trainer(setting))
            found = rows.found[setting]
            print(
                f"{(time.monotonic() - started) / 60:5.1f} min  {setting.part:6} {setting.data} "
                f"{setting.head}, map {setting.map_size}, epochs {setting.epochs}, rate "
                f"{setting.lr:g}, seed {setting.seed}: {found.accuracy:.2f} %, "
                f"{found.seconds:.0f} s",
                flush=True,
            )
        return rows.found[setting]

    try:
        if not options.no_training:
            for stage in stages(options, list(roots), run):
                stage()
                write(rows, f"{len(rows.found)} runs", options.out)
    except (TimeIsUp, KeyboardInterrupt):
        print("stopped; the same command goes on")
    total = sum(found.seconds for found in rows.found.values()) / 3600
    write(rows, f"{len(rows.found)} runs, {total:.1f} hours of training", options.out)
    print(options.out)


if __name__ == "__main__":
    main()
