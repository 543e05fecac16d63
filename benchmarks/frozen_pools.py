"""On frozen features, does a light attention pool lose to the average, and where does it point?

    python benchmarks/frozen_pools.py --root DIR --weights FILE [--cache DIR] [--sets ...]

DIR holds hymenoptera, magnetic_tiles and tiny_imagenet_40; FILE a plain state dict of
EfficientNet-Lite0. One pass through the backbone writes the last maps of a data set into the cache.
Every head is then trained at all learning rates of its grid on the same batches; the rate is chosen
on a fifth of the training part, the head trained again on the whole of it and tested once. A run is
a row of docs/results/frozen_pools.csv; a row that is there is not made again, so that the study can
be stopped at any time. docs/results/frozen_pools.md and .png are written from the rows alone
(--page).
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional as F

from convattn.layers import Pool, create_pool
from convattn.layers.pools import (
    AveragePool,
    ClassQueryPool,
    EfficientProbingPool,
    ResidualQueryPool,
)
from frozen_features import DEFECTS, Features, read_features
from frozen_report import write_page
from rows import append_rows, read_rows

BATCH, WEIGHT_DECAY, FACTOR = 64, 0.01, 3.0
RATES = tuple(5e-4 * FACTOR**step for step in range(6))
QUESTIONS = ("box", "small_box", "small_box_tiled", *DEFECTS, "defect_tracked")


@dataclass(frozen=True)
class Kind:
    """What a head is: pool, perhaps BatchNorm without affine, linear classifier."""

    pool: str
    options: Mapping[str, Any] = field(default_factory=dict)
    norm: bool = False
    from_zero: bool = False
    """Queries start at zero."""
    rates: tuple[float, ...] = RATES
    """Of the classifier; the grid before it is widened."""
    slower: float = 1.0
    """The classifier's rate over the pool's."""


_ONE = {"num_queries": 1, "values": False}
HEADS: Mapping[str, Kind] = {
    "avg": Kind("avg"),
    "avg-bn": Kind("avg", norm=True),
    "ep1": Kind("ep", _ONE, from_zero=True),
    "ep1-bn": Kind("ep", _ONE, norm=True, from_zero=True),
    "residual-bn": Kind("residual", norm=True),
    "residual": Kind("residual"),
    "ep1-bn-slow": Kind("ep", _ONE, norm=True, from_zero=True, slower=10),
    "residual-bn-slow": Kind("residual", norm=True, slower=10),
    "class": Kind("class"),
    "ep8-bn": Kind("ep", {"num_queries": 8, "values": False}, norm=True),
    "abmil-bn": Kind("abmil", norm=True),
    "aggregation": Kind("aggregation", rates=RATES[:4], slower=30),
    "aggregation-ls1": Kind("aggregation", {"layer_scale": 1.0}, rates=RATES[:4], slower=30),
}


@dataclass(frozen=True)
class Task:
    """A training set of a size, and how long every head is trained on it."""

    data: str
    images_a_class: int | None
    epochs: int
    measure: str = "accuracy"


TASKS: Mapping[str, Task] = {
    "hymenoptera": Task("hymenoptera", None, 20),
    "magnetic_tiles": Task("magnetic_tiles", None, 20, "balanced_accuracy"),
    "tiny_10": Task("tiny_imagenet_40", 10, 12),
    "tiny_100": Task("tiny_imagenet_40", 100, 12),
    "tiny_500": Task("tiny_imagenet_40", 500, 12),
}


# --------------------------------------------------------------------------------------- training


class Head(nn.Module):
    """Pool, perhaps BatchNorm, classifier."""

    def __init__(self, kind: Kind, in_features: int, num_classes: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        own = {"num_classes": num_classes} if kind.pool == "class" else {}
        self.pool: Pool = create_pool(kind.pool, in_features, **kind.options, **own)
        if kind.from_zero:
            nn.init.zeros_(self.pool.get_parameter("queries"))
        width = self.pool.out_features
        norm = nn.BatchNorm1d(width, eps=1e-6, affine=False) if kind.norm else None
        self.norm: Any = norm or nn.Identity()
        self.fc: Any = nn.Identity() if own else nn.Linear(width, num_classes)

    def reading(self) -> tuple[Tensor, Tensor]:
        """The logits as weight (K, out_features) and bias (K,), BatchNorm folded."""
        if isinstance(self.pool, ClassQueryPool):
            return torch.eye(self.pool.out_features), self.pool.bias
        weight, bias = self.fc.weight, self.fc.bias
        if not isinstance(self.norm, nn.Identity):
            weight = weight * (self.norm.running_var + self.norm.eps).rsqrt()
            bias = bias - weight @ self.norm.running_mean
        return weight, bias


def pool_together(heads: Sequence[Head], features: Features, indices: Tensor) -> list[Tensor]:
    """What every head's pool makes of the images, (B, out_features) each.

    The light pools of all rates share their products with the map; ``find_peaks`` asserts that this
    gives what the pools themselves give.
    """
    pools: list[Any] = [head.pool for head in heads]
    mean = features.means[indices]
    if isinstance(pools[0], AveragePool):
        return [mean] * len(heads)
    x = features.read(indices)
    if isinstance(pools[0], ResidualQueryPool):
        weights = _weights(torch.stack([pool.query for pool in pools]), x)
        looked = (weights @ x.mT).unbind(1)  # (B, C) each
        return [mean + pool.gate * (seen - mean) for pool, seen in zip(pools, looked, strict=True)]
    if isinstance(pools[0], EfficientProbingPool) and pools[0].v is None:
        count = pools[0].num_queries
        weights = _weights(torch.cat([pool.queries for pool in pools]), x)
        weights = weights.unflatten(1, (-1, count)).transpose(1, 2)  # (B, Q, heads, n)
        slices = weights @ x.unflatten(1, (count, -1)).mT  # (B, Q, heads, d)
        return [seen.flatten(1) for seen in slices.unbind(2)]
    if isinstance(pools[0], ClassQueryPool):
        weights = _weights(torch.cat([pool.queries for pool in pools]), x)
        shares = weights * (torch.cat([pool.weight for pool in pools]) @ x)
        logits = shares.sum(2).unflatten(1, (len(pools), -1)).unbind(1)
        return [own + pool.bias for pool, own in zip(pools, logits, strict=True)]
    return [pool(x.unflatten(2, features.size)) for pool in pools]


def _weights(queries: Tensor, x: Tensor) -> Tensor:
    """(Q, C) and (B, C, n) -> (B, Q, n), each summing to 1."""
    return (queries * x.shape[1] ** -0.5 @ x).softmax(-1)


def logits_of(heads: Sequence[Head], features: Features, indices: Tensor) -> list[Tensor]:
    """(B, K) of every head."""
    pooled = pool_together(heads, features, indices)
    return [head.fc(head.norm(x)) for head, x in zip(heads, pooled, strict=True)]


def train(
    kind: Kind,
    features: Features,
    indices: Tensor,
    rates: Sequence[float],
    epochs: int,
    seed: int,
    max_steps: int | None = None,
) -> tuple[list[Head], list[float]]:
    """A head a rate, all on the same batches; and the loss of each in its last epoch."""
    channels, classes = features.means.shape[1], int(features.labels.max()) + 1
    heads = [Head(kind, channels, classes, seed) for _ in rates]
    groups = []
    for head, rate in zip(heads, rates, strict=True):
        slow = 1 if isinstance(head.fc, nn.Identity) else kind.slower
        groups.append({"params": list(head.pool.parameters()), "lr": rate / slow})
        groups.append({"params": list(head.fc.parameters()), "lr": rate})
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
    steps = epochs * (len(indices) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    generator = torch.Generator().manual_seed(seed)
    history: list[Tensor] = []
    for _ in range(epochs):
        order = indices[torch.randperm(len(indices), generator=generator)]
        for start in range(0, len(order) - BATCH + 1, BATCH):  # never a small last batch
            batch = order[start : start + BATCH].sort().values
            labels = features.labels[batch]
            losses = [F.cross_entropy(x, labels) for x in logits_of(heads, features, batch)]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
            history.append(torch.stack(losses).detach())
            if len(history) == max_steps:
                return heads, []
    last = torch.stack(history[-(len(indices) // BATCH) :]).mean(0)
    return [head.eval() for head in heads], last.tolist()


@torch.inference_mode()
def judge(heads: Sequence[Head], features: Features, indices: Tensor) -> list[dict[str, float]]:
    """Accuracy, balanced accuracy and cross-entropy of each head."""
    parts = [logits_of(heads, features, batch) for batch in indices.split(4 * BATCH)]
    labels = features.labels[indices]
    found = []
    for logits in map(torch.cat, zip(*parts, strict=True)):
        predicted = logits.argmax(1)
        loss = float(F.cross_entropy(logits, labels))
        found.append(
            {
                "accuracy": float((predicted == labels).float().mean()),
                "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
                "cross_entropy": loss if math.isfinite(loss) else math.inf,
            }
        )
    return found


def choose_rates(
    kind: Kind, task: Task, features: Features, fit: Tensor, valid: Tensor, seed: int
) -> tuple[dict[str, float], dict[float, dict[str, float]]]:
    """The best rates on the validation part, the grid widened until none is an edge of it.

    One by the task's measure, of equal ones by cross-entropy; and one by cross-entropy alone, which
    a small part tells with less noise.
    """
    grid: dict[float, dict[str, float]] = {}
    rates = list(kind.rates)
    more = 1 if kind.pool == "aggregation" else 2
    while rates:
        heads, _ = train(kind, features, fit, rates, task.epochs, seed)
        grid |= dict(zip(rates, judge(heads, features, valid), strict=True))
        loss = {rate: found["cross_entropy"] for rate, found in grid.items()}
        best = {
            "score": max(grid, key=lambda rate: (grid[rate][task.measure], -loss[rate])),
            "cross-entropy": min(grid, key=lambda rate: loss[rate]),
        }
        low, high, rates = min(grid), max(grid), []
        if low in best.values() and low > 1e-6:
            rates += [low / FACTOR ** (number + 1) for number in range(more)]
        if high in best.values() and high < 1e3:
            rates += [high * FACTOR ** (number + 1) for number in range(more)]
    return best, dict(sorted(grid.items()))


# ------------------------------------------------------------------------------- where maps point


@torch.inference_mode()
def find_peaks(head: Head, features: Features, test: Tensor) -> dict[str, str]:
    """How often evidence and attention of the true class point at the object: hits / images."""
    peaks: dict[str, list[Tensor]] = {"evidence": [], "attention": []}
    weight, bias = head.reading()
    for batch in test.split(BATCH):
        x, rows = features.read(batch).unflatten(2, features.size), torch.arange(len(batch))
        labels = features.labels[batch]
        if head.pool.is_linear:
            shares = head.pool.contributions(x, weight)
            (logits,) = logits_of([head], features, batch)
            wide = 1e-3 * float(logits.abs().max())
            torch.testing.assert_close(shares.sum((2, 3)) + bias, logits, rtol=1e-3, atol=wide)
            peaks["evidence"].append(shares[rows, labels])
        if not isinstance(head.pool, AveragePool):
            looks = head.pool.attention_weights(x)
            own = isinstance(head.pool, ClassQueryPool)
            peaks["attention"].append(looks[rows, labels] if own else looks.mean(1))
    return {
        f"{kind}_{name}": hits
        for kind, maps in peaks.items()
        if maps
        for name, hits in ask(torch.cat(maps).flatten(1), features, test).items()
    }


def ask(maps: Tensor, features: Features, test: Tensor) -> dict[str, str]:
    """(N, n) -> by question hits / images; a map that is the same everywhere points nowhere."""
    peak, points = maps.argmax(1, keepdim=True), maps.amax(1) > maps.amin(1)
    return {
        name: count_hits(question.truth[test].gather(1, peak)[:, 0] & points, question.images[test])
        for name, question in features.questions.items()
    }


def count_hits(hit: Tensor, chosen: Tensor) -> str:
    """Hits / images, over the chosen ones."""
    return f"{float(hit[chosen].float().sum()):g}/{int(chosen.sum())}"


# ---------------------------------------------------------------------------------------- the rows

COLUMNS = (
    *("data", "images_a_class", "head", "seed", "epochs", "chosen_by", "lr", "validation"),
    *("accuracy", "balanced_accuracy", "cross_entropy", "train_loss", "parameters", "seconds"),
    *(f"{kind}_{name}" for kind in ("evidence", "attention") for name in QUESTIONS),
    "grid",
)
"""``grid`` holds rate:measure:cross-entropy on the validation part, ``evidence_`` hits/images."""


def split(task: Task, features: Features, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers of images: to fit, to choose the rate, both together, to test."""

    def fifth(indices: Tensor, draw: int, number: int) -> tuple[Tensor, Tensor]:
        labels, groups = features.labels[indices], features.groups[indices]
        grouped = len(groups.unique()) < len(groups)
        kind = StratifiedGroupKFold if grouped else StratifiedKFold
        folds = kind(5, shuffle=True, random_state=draw)
        kept, held = list(folds.split(indices, labels, groups if grouped else None))[number]
        return indices[torch.from_numpy(kept)], indices[torch.from_numpy(held)]

    everything = torch.arange(len(features.labels))
    if not features.num_train:
        train_part, test = fifth(everything, seed // 5, seed % 5)
    else:
        train_part, test = everything[: features.num_train], everything[features.num_train :]
    if task.images_a_class:
        generator = torch.Generator().manual_seed(seed)
        drawn = train_part[torch.randperm(len(train_part), generator=generator)]
        labels = features.labels[drawn]
        few = [drawn[labels == label][: task.images_a_class] for label in labels.unique()]
        train_part = torch.cat(few).sort().values
    fit, valid = fifth(train_part, seed, 0)
    return fit, valid, train_part, test


def make_run(task: Task, name: str, features: Features, seed: int) -> list[dict[str, Any]]:
    """One run: choose, train again, test; a row for each way to choose."""
    start, kind = time.perf_counter(), HEADS[name]
    fit, valid, train_part, test = split(task, features, seed)
    best, grid = choose_rates(kind, task, features, fit, valid, seed)
    rates = sorted(set(best.values()))
    heads, losses = train(kind, features, train_part, rates, task.epochs, seed)
    results = judge(heads, features, test)
    seconds = time.perf_counter() - start
    tried = [f"{r:.3g}:{grid[r][task.measure]:.4f}:{grid[r]['cross_entropy']:.4f}" for r in grid]
    of_rates = {
        rate: {
            "head": name,
            "lr": f"{rate:.3g}",
            "validation": f"{grid[rate][task.measure]:.4f}",
            "train_loss": f"{loss:.4f}",
            "parameters": sum(parameter.numel() for parameter in head.parameters()),
            "seconds": f"{seconds:.0f}",
            "grid": " ".join(tried),
            **{key: f"{value:.5f}" for key, value in result.items()},
            **find_peaks(head, features, test),
        }
        for rate, head, loss, result in zip(rates, heads, losses, results, strict=True)
    }
    return [{"chosen_by": how, **of_rates[rate]} for how, rate in best.items()]


def ignorant_rows(features: Features, test: Tensor) -> list[dict[str, Any]]:
    """Maps that know no class: any cell, by its chance, and the positions' lengths."""
    chance = {
        name: count_hits(question.truth[test].float().mean(1), question.images[test])
        for name, question in features.questions.items()
    }
    lengths = ask(features.lengths[test], features, test)
    found = {"any cell": chance, "length of x": lengths}
    return [
        {"head": head} | {f"evidence_{name}": hits for name, hits in answers.items()}
        for head, answers in found.items()
    ]


def expected_seconds(task: Task, kind: Kind, features: Features) -> float:
    """What a run should take, by a few steps of it."""
    fit, _, train_part, _ = split(task, features, 0)
    seconds = 0.0
    for indices, rates in ((fit, kind.rates), (train_part, kind.rates[:1])):
        train(kind, features, indices, rates, 1, 0, max_steps=1)
        start = time.perf_counter()
        train(kind, features, indices, rates, 2, 0, max_steps=4)
        seconds += (time.perf_counter() - start) / 4 * (len(indices) // BATCH) * task.epochs
    return seconds


def make_rows(arguments: argparse.Namespace, file: Path) -> None:
    """Every run that has no row yet."""
    opened: dict[str, Features] = {}
    for set_name in arguments.sets:
        task = TASKS[set_name]
        wanted = [(name, seed) for seed in arguments.seeds for name in arguments.heads]
        done = {
            (row["head"], int(row["seed"])) for row in read_rows(file) if set_of(row) == set_name
        }
        wanted = [run for run in wanted if run not in done]
        if not wanted:
            continue
        if task.data not in opened:
            opened = {
                task.data: read_features(
                    task.data, arguments.root, arguments.weights, arguments.cache
                )
            }
        features = opened[task.data]
        costs = {name: expected_seconds(task, HEADS[name], features) for name in dict(wanted)}
        total = sum(costs[name] for name, _ in wanted)
        each = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in costs.items())
        print(
            f"{set_name}: {len(wanted)} runs, {total / 60:.0f} minutes or more: {each}", flush=True
        )
        about = {"data": task.data, "images_a_class": task.images_a_class, "epochs": task.epochs}
        for name, seed in wanted:
            rows = make_run(task, name, features, seed)
            shown = "; ".join(f"{row[task.measure]} at {row['lr']}" for row in rows)
            shown += f" of {rows[0]['grid']}; {rows[0]['seconds']} s"
            if features.questions and ("any cell", seed) not in done:
                rows += ignorant_rows(features, split(task, features, seed)[3])
                done.add(("any cell", seed))
            append_rows(file, COLUMNS, [{**about, "seed": seed, **row} for row in rows])
            print(f"{time.strftime('%H:%M')} {set_name} {name} seed {seed}: {shown}", flush=True)


def set_of(row: Mapping[str, str]) -> str:
    """The task that a row belongs to."""
    about = (row["data"], row["images_a_class"])
    return next(
        name for name, task in TASKS.items() if (task.data, str(task.images_a_class or "")) == about
    )


def main() -> None:
    """Make what is missing, then write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, help="folder of the data sets")
    parser.add_argument("--weights", type=Path, help="state dict of EfficientNet-Lite0")
    parser.add_argument("--cache", type=Path, default=Path("runs/frozen_pools"))
    parser.add_argument("--docs", type=Path, default=Path("docs/results"))
    parser.add_argument("--sets", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--machine", default=f"an {platform.machine()} CPU", help="for the page")
    parser.add_argument("--page", action="store_true", help="only write page and plot anew")
    arguments = parser.parse_args()
    file = arguments.docs / "frozen_pools.csv"
    if not arguments.page:
        make_rows(arguments, file)
    sets: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(file):
        sets.setdefault(set_of(row), []).append(row)
    date = time.strftime("%-d %B %Y")
    write_page(sets, HEADS, arguments.docs, arguments.machine, date)


if __name__ == "__main__":
    main()
