"""Pools trained from scratch: why the paper's loses, and whether the light one does.

    python benchmarks/pool_ablation.py --tiny-imagenet DIR --fashion-mnist DIR

trains the plain networks of benchmarks/study.py with other pools, as the study trains them, step
for step. Four questions, a stage or two each:

- why: single changes between the average pool and the paper's block, at the study's rate;
- no-loss: each pool at the rate that a fifth of the training images chose for it, then trained on
  all of them and tested once a seed;
- map: a map of 4 x 4 instead of 2 x 2;
- long: three times as many epochs.

Every run is a row of docs/results/pool_ablation.csv, written when it ends: a stopped study goes
on where it stopped. --stages chooses, --minutes stops it after a while, --no-training writes the
page.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
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
from rows import append_rows, read_rows
from study import laptop, over_seeds

LR = 2e-2  # the study's
ADAMW_LR = 1e-3
NUM_TRAIN_TESTED = 5_000
WIDEST = 16  # no rate is tried beyond so many times the study's, or under so small a share
MARGIN = -0.5  # points that a pool may lose to the average
TINY, FASHION = "tiny_imagenet", "fashion_mnist"
MAP_SIZES = {TINY: 2, FASHION: 7}
EPOCHS = {TINY: 4, FASHION: 1}
CHOOSING_EPOCHS = {TINY: 2, FASHION: 1}
NUM_IMAGES = {TINY: 20_000, FASHION: 60_000}
STEP_SECONDS = {TINY: 0.18, FASHION: 0.1}  # about, one thread


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
    """The mean, a LayerNorm behind it, and before it one of the positions or none."""

    def __init__(self, channels: int, *, before: bool) -> None:
        super().__init__()
        self.before = nn.LayerNorm(channels, eps=1e-6) if before else nn.Identity()
        self.behind = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return self.behind(self.before(x.flatten(2).transpose(1, 2)).mean(1))


def average(channels: int) -> nn.Module:
    """As the networks have it, to the last bit."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def residual(channels: int) -> nn.Module:
    """The mean, and one query's difference from it through gates that start at zero."""
    return create_pool("residual", channels)


def one_query(channels: int) -> nn.Module:
    """One query that starts at zero."""
    pool = create_pool("ep", channels, num_queries=1, values=False)
    nn.init.zeros_(cast(nn.Parameter, pool.queries))
    return pool


def paper(channels: int, **options: Any) -> LearnedAggregation2d:
    """The block as ``augment(pool="attention", preserve=False)`` puts it there."""
    return LearnedAggregation2d(channels, 0, **options)


def equal_weights(channels: int) -> nn.Module:
    """The paper's block, whose token and positions all weigh the same."""
    block = paper(channels)
    for layer in (block.attn.q, block.attn.k):
        layer.requires_grad_(False)
        nn.init.zeros_(layer.weight)
    return block


def own_values(channels: int) -> nn.Module:
    """The paper's block whose values are the normed positions: no matrix before, none behind."""
    block = paper(channels)
    nn.init.eye_(block.attn.v.weight)
    block.attn.v.requires_grad_(False)
    block.attn.proj = cast(Any, nn.Identity())
    return block


def without_mlp(channels: int) -> nn.Module:
    """The paper's block as far as its attention."""
    block = paper(channels)
    for part in (block.mlp, block.norm2):
        part.requires_grad_(False)
    block.gamma2 = nn.Parameter(torch.zeros(channels), requires_grad=False)
    return block


def normed(make: Callable[[int], nn.Module], channels: int) -> nn.Module:
    """A pool with BatchNorm behind it."""
    return nn.Sequential(make(channels), nn.BatchNorm1d(channels, eps=1e-6, affine=False))


HEADS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "avg": ("average", average),
    "avg-bn": ("average, BatchNorm", functools.partial(normed, average)),
    "residual": ("residual (light)", residual),
    "residual-bn": ("residual, BatchNorm", functools.partial(normed, residual)),
    "query": ("one query", one_query),
    "paper": ("the paper's block", paper),
    "paper-raw": ("block, values not normed", lambda channels: RawValues(channels, 0)),
    "paper-values": ("block, no matrices of values", own_values),
    "paper-attention": ("block, no MLP", without_mlp),
    "paper-scale1": ("block, LayerScale 1", functools.partial(paper, layer_scale=1.0)),
    "paper-equal": ("block, equal weights", equal_weights),
    "paper-adamw": ("block, matrices on AdamW 1e-3", paper),
    "paper-residual": ("block, residual form", functools.partial(paper, residual=True)),
    "norm-mean-norm": ("norm, mean, norm", functools.partial(NormedMean, before=True)),
    "mean-norm": ("mean, norm", functools.partial(NormedMean, before=False)),
}
"""Title of what stands in the pool's place, and how it is made for so many channels."""
ON_ADAMW = ("paper-adamw",)
WHY = ("avg", "paper", "residual", "norm-mean-norm", "paper-residual", "paper-values", "paper-raw")
WHY_TOO = ("paper-attention", "mean-norm", "paper-equal", "paper-scale1", "paper-adamw", "query")
NO_LOSS = ("avg", "residual", "paper")
NO_LOSS_TOO = ("avg-bn", "residual-bn", "query")
STAGES = ("why", "no-loss", "why-too", "no-loss-too", "map", "long")


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


def usual(data: str, head: str, seed: int, **other: Any) -> Setting:
    """A test as the study would make it, but for what is said otherwise."""
    own: dict[str, Any] = {"map_size": MAP_SIZES[data], "epochs": EPOCHS[data], **other}
    return Setting(data=data, head=head, seed=seed, **own)


class Rows:
    """The runs there are, and a file that grows with them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[Setting, Found] = {}
        for row in read_rows(file):
            self.found[_read(Setting, row)] = _read(Found, row)

    def add(self, setting: Setting, found: Found) -> None:
        """Keep a run."""
        self.found[setting] = found
        row = {**dataclasses.asdict(setting), **dataclasses.asdict(found)}
        append_rows(self.file, list(row), [row])

    def by_seed(self, setting: Setting) -> dict[int, Found]:
        """The runs that differ from ``setting`` in the seed alone."""
        same = {dataclasses.replace(setting, seed=seed): seed for seed in range(100)}
        return {seed: self.found[one] for one, seed in same.items() if one in self.found}


def _read(kind: Any, row: dict[str, str]) -> Any:
    convert: dict[str, type] = {"int": int, "float": float, "str": str}
    return kind(**{f.name: convert[str(f.type)](row[f.name]) for f in dataclasses.fields(kind)})


@functools.cache
def open_job(data: str, root: Path) -> ClassificationJob:
    """The study's job of the plain network; images are read once."""
    of_study = laptop()[data]
    plain = of_study.networks[0]
    images = dataclasses.replace(of_study.config.data, root=str(root))
    model = ModelConfig(name=plain.model, model_args=dict(plain.model_args))
    return ClassificationJob(dataclasses.replace(of_study.config, data=images, model=model))


def train_and_test(setting: Setting, job: ClassificationJob) -> Found:
    """One network, from its random start."""
    optim = dataclasses.replace(job.config.optim, lr=setting.lr)
    changes: dict[str, Any] = {"optim": optim, "epochs": setting.epochs, "seed": setting.seed}
    job.config = dataclasses.replace(job.config, **changes)
    task = job.make_task(None)
    model: Any = task.model
    if setting.map_size != MAP_SIZES[setting.data]:  # take the stride out of the last stage
        model.layer4[0].conv1.stride = model.layer4[0].downsample[0].stride = (1, 1)
    model.global_pool = HEADS[setting.head][1](model.num_features)
    images = cast(TensorImages, job.data.train_images)
    test = cast(TensorImages, job.data.val_images)
    as_tested = transform_of(job.data.cfg)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    if setting.part == "choose":
        test = images.select(order[: len(order) // 5]).with_transform(as_tested)
        images = images.select(order[len(order) // 5 :])
        order = torch.arange(len(images))
    started = time.monotonic()
    train_loss = train(task, images, job, adamw=setting.head in ON_ADAMW)
    seconds = time.monotonic() - started
    accuracy, cross_entropy = evaluate(model, test)
    seen = images.select(order[-NUM_TRAIN_TESTED:]).with_transform(as_tested)
    return Found(
        accuracy=accuracy,
        cross_entropy=round(cross_entropy, 5),
        train_accuracy=evaluate(model, seen)[0],
        train_loss=round(train_loss, 5),
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        seconds=round(seconds, 1),
    )


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
    lengths: dict[str, Any] = {"epochs": config.epochs, "steps_per_epoch": batches.steps}
    schedule = create_schedule(optimizer, **lengths, **schedule_args(config))
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


Run = Callable[[Setting], float]
"""Gives a setting's accuracy."""


def chosen_rate(data: str, head: str, run: Run) -> tuple[float, dict[float, float]]:
    """The best of three rates, and of more while the best lies at an edge; all that were tried."""
    tried: dict[float, float] = {}
    wanted = {LR / 2, LR, LR * 2}
    while wanted:
        for lr in sorted(wanted):
            other = {"epochs": CHOOSING_EPOCHS[data], "lr": lr, "part": "choose"}
            tried[lr] = run(usual(data, head, 0, **other))
        best = max(tried, key=lambda lr: (tried[lr], -abs(math.log(lr / LR))))
        beyond = {best / 2} if best == min(tried) else {best * 2} if best == max(tried) else set()
        wanted = {lr for lr in beyond if 1 / WIDEST <= lr / LR <= WIDEST}
    return best, tried


def do(stage: str, sets: Sequence[str], options: argparse.Namespace, run: Run) -> None:
    """One stage: all pools of a seed before the next seed."""
    if stage.startswith("no-loss"):
        few = NO_LOSS if stage == "no-loss" else NO_LOSS_TOO
        for data in sets:
            rates = {head: chosen_rate(data, head, run)[0] for head in few}
            for seed in range(options.seeds):
                for head, lr in rates.items():
                    run(usual(data, head, seed, lr=lr))
    elif TINY in sets:
        heads = {"why": WHY, "why-too": WHY_TOO}.get(stage, NO_LOSS)
        changes = {"map": {"map_size": 4}, "long": {"epochs": 12}}.get(stage, {})
        for seed in range(options.seeds_why):
            for head in heads:
                run(usual(TINY, head, seed, **changes))


Group = dict[str, dict[int, Found]]
"""Heads of one comparison, and their runs by seed."""


def gain(
    found: Group, head: str, reference: str, what: str = "accuracy"
) -> tuple[np.ndarray, float, float]:
    """Differences at equal seeds, their mean, and half of its Student 95 % interval."""
    mine, other = found[head], found.get(reference, {})
    both = [(getattr(mine[s], what), getattr(other[s], what)) for s in mine if s in other]
    gains = np.array([one - of_reference for one, of_reference in both])
    return gains, *(over_seeds(gains) if len(gains) else (math.nan, math.nan))


def interval(mean: float, half: float, digits: int = 2) -> str:
    """In a cell."""
    if math.isnan(half):
        return "" if math.isnan(mean) else f"{mean:+.{digits}f} (one seed)"
    return f"{mean:+.{digits}f} ({mean - half:+.{digits}f} to {mean + half:+.{digits}f})"


TO_AVERAGE = "to average (points, 95 %)"


def table(found: Group, rates: dict[str, str]) -> str:
    """A row a head: beside the average, and beside the paper's block."""
    lines = []
    for head, runs in found.items():
        values = [run.accuracy for run in runs.values()]
        deviation = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        _, mean, half = gain(found, head, "avg")
        within = "yes, all of the interval" if mean - half > MARGIN else "the mean only"
        line = {
            "pool": HEADS[head][0],
            "parameters": f"{next(iter(runs.values())).parameters / 1e3:.0f} k",
            "rate (held-out top-1 at each)": rates.get(head, ""),
            "top-1 by seed (%)": " / ".join(f"{value:.2f}" for value in values),
            "mean and deviation": f"{np.mean(values):.2f}{deviation}",
            "training top-1": f"{np.mean([run.train_accuracy for run in runs.values()]):.1f}",
            "cross-entropy": f"{np.mean([run.cross_entropy for run in runs.values()]):.3f}",
            TO_AVERAGE: interval(mean, half),
            f"above {MARGIN}?": within if mean > MARGIN else "no",
            "to the paper's block": interval(*gain(found, head, "paper")[1:]),
            "cross-entropy, to average": interval(
                *gain(found, head, "avg", "cross_entropy")[1:], digits=3
            ),
        }
        if head == "avg":
            line |= dict.fromkeys((TO_AVERAGE, f"above {MARGIN}?", "cross-entropy, to average"), "")
        if head == "paper":
            line["to the paper's block"] = ""
        if not rates:
            del line["rate (held-out top-1 at each)"]
        lines.append(line)
    return markdown_table(tuple(lines[0]), [tuple(line.values()) for line in lines])


def tested(rows: Rows, data: str) -> tuple[Group, dict[str, str]]:
    """Heads whose rate is chosen: their tests, and in words how it was chosen."""
    found, rates = Group(), {}
    for head in (*NO_LOSS, *NO_LOSS_TOO):
        try:
            lr, tried = chosen_rate(data, head, lambda setting: rows.found[setting].accuracy)
        except KeyError:  # not all are tried yet
            continue
        if runs := rows.by_seed(usual(data, head, 0, lr=lr)):
            found[head] = runs
            others = ", ".join(f"{rate:g}: {tried[rate]:.1f}" for rate in sorted(tried))
            rates[head] = f"{lr:g} ({others})"
    return found, rates


def write(rows: Rows, page: Path) -> None:
    """The page and its plot; "Reading it" stays as it is."""

    def tiny(heads: Iterable[str], **other: Any) -> Group:
        runs = {head: rows.by_seed(usual(TINY, head, 0, **other)) for head in heads}
        return {head: of_head for head, of_head in runs.items() if of_head}

    at_study = "Tiny ImageNet, 40 classes, 64 x 64, `resnet18_nano`, every pool at rate 0.02"
    choosing = (
        "A pool's rate is the best of 0.01, 0.02 and 0.04, and of half or twice that while the "
        "best lies at an edge, on a fifth of the training images (seed 0; networks trained on the "
        "others"
    )
    parts: list[tuple[str, str, Group, dict[str, str]]] = [
        ("Why the paper's pool loses", f"{at_study}: map of 2 x 2, 4 epochs.", tiny(HEADS), {}),
        (
            "No loss: Tiny ImageNet, each pool at its rate",
            f"{choosing} for 2 epochs). Then 4 epochs on all, tested once a seed.",
            *tested(rows, TINY),
        ),
        (
            "No loss: Fashion-MNIST, each pool at its rate",
            f"{choosing} for 1 epoch). Then 1 epoch on all, tested once a seed; "
            "`wide_resnet_nano`, widen=1, map of 7 x 7.",
            *tested(rows, FASHION),
        ),
        (
            "A map of 4 x 4",
            f"{at_study}: the last stage without its stride, 4 epochs.",
            tiny(NO_LOSS, map_size=4),
            {},
        ),
        ("12 epochs", f"{at_study}: map of 2 x 2, 12 epochs.", tiny(NO_LOSS, epochs=12), {}),
    ]
    parts = [part for part in parts if part[2]]
    hours = sum(found.seconds for found in rows.found.values()) / 3600
    lines = [
        "# Pools trained from scratch: why the paper's loses, and whether the light one does",
        "",
        "```sh",
        "python benchmarks/pool_ablation.py --tiny-imagenet DIR --fashion-mnist DIR",
        "```",
        "",
        f"Torch {torch.__version__.split('+')[0]}, AMD EPYC, one of 2 cores (AVX-512, no AMX), one "
        f"thread, 28 to 30 November 2026; {len(rows.found)} runs, {hours:.1f} hours. Networks, "
        "images, augmentation, optimiser (muon) and schedule are those of [study.md](study.md), "
        "step for step. Runs of equal seed start from the same weights but for the pool's and see "
        "the same images in the same order. Intervals are Student's, 95 %, of the mean difference "
        "at equal seeds. `pool_ablation.csv` beside this page holds every run.",
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
    size = (8, 0.9 * len(parts) + 0.38 * sum(heights))
    figure, axes = plt.subplots(
        len(parts), 1, figsize=size, height_ratios=heights, layout="constrained", squeeze=False
    )
    for panel, (title, found) in zip(axes[:, 0], parts, strict=True):
        heads = [head for head in reversed(found) if head != "avg"]
        for height, head in enumerate(heads):
            gains, mean, half = gain(found, head, "avg")
            panel.scatter(gains, [height] * len(gains), s=14, color="grey", label="a seed")
            half = 0.0 if math.isnan(half) else half
            style: dict[str, Any] = {"fmt": "o", "color": "C0", "capsize": 4}
            panel.errorbar(mean, height, xerr=half, label="mean, 95 %", **style)
        panel.axvline(0, color="black", lw=0.8)
        panel.axvline(MARGIN, color="C3", lw=0.8, ls="--", label=f"{MARGIN} points")
        panel.set_yticks(range(len(heads)), [HEADS[head][0] for head in heads])
        panel.set_title(title, fontsize=10, loc="left")
        panel.grid(axis="x", alpha=0.3)
        panel.margins(y=0.15)
    axes[-1, 0].set_xlabel("top-1 over the average pool's (points)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


class TimeIsUp(Exception):
    """The study stops here for now."""


def main() -> None:
    """Train what is missing and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny-imagenet", type=Path, help="folder of train.parquet, val.parquet")
    parser.add_argument("--fashion-mnist", type=Path, help="folder of the four IDX files")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--seeds", type=int, default=5, help="of no-loss")
    parser.add_argument("--seeds-why", type=int, default=3, help="of the other stages")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after these")
    parser.add_argument("--no-training", action="store_true", help="write what is there")
    parser.add_argument("--out", type=Path, default=Path("docs/results/pool_ablation.md"))
    options = parser.parse_args()
    given = {TINY: options.tiny_imagenet, FASHION: options.fashion_mnist}
    sets = [name for name, root in given.items() if root is not None]
    rows = Rows(options.out.with_suffix(".csv"))
    planned: dict[Setting, float] = {}
    started = time.monotonic()
    torch.use_deterministic_algorithms(True)
    cast(Any, deterministic).fill_uninitialized_memory = False

    def plan(setting: Setting) -> float:
        images = NUM_IMAGES[setting.data] * (0.8 if setting.part == "choose" else 1)
        planned[setting] = STEP_SECONDS[setting.data] * setting.epochs * images / 128 / 60
        return -abs(math.log(setting.lr / LR))  # as if the study's rate were the best

    def run(setting: Setting) -> float:
        if setting not in rows.found:
            if time.monotonic() - started > 60 * options.minutes:
                raise TimeIsUp
            rows.add(setting, train_and_test(setting, open_job(setting.data, given[setting.data])))
            minutes = (time.monotonic() - started) / 60
            print(f"{minutes:.1f} min: {setting}: {rows.found[setting].accuracy:.2f} %", flush=True)
        return rows.found[setting].accuracy

    try:
        for stage in () if options.no_training else options.stages:
            planned.clear()
            do(stage, sets, options, plan)
            left = [cost for setting, cost in planned.items() if setting not in rows.found]
            print(f"{stage}: {len(left)} runs, about {sum(left):.0f} minutes", flush=True)
            do(stage, sets, options, run)
            write(rows, options.out)
    except (TimeIsUp, KeyboardInterrupt):
        print("stopped; the same command goes on")
    write(rows, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
