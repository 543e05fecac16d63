"""Pools and classifiers on cached maps: all of them trained in one reading.

Every head of every learning rate sees the same batches. A head is what a network has behind its
map, ``PooledClassifier``, and learns as it would there: nothing is stacked or approximated. On a
CPU ``torch.func.vmap`` over the heads of a pool takes one to two times as long as one head after
the other. What has no parameters is pooled once for all of its rates.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convattn.config import pool_layer
from convattn.models.pooling import PooledClassifier
from convattn.probing.cache import MapCache
from convattn.probing.scores import is_multi_label, score, training_loss
from convattn.weights import read_checkpoint, write_checkpoint

FACTOR = 3.0
"""Between two learning rates of a grid."""
_RATES = (5e-4, 1.5e-3, 4.5e-3)  # of the classifier behind a BatchNorm, before the grid widens
_RATES_WITHOUT_NORM = (1.5e-3, 4.5e-3, 1.35e-2)
_SLOWER = {"aggregation": 30.0, "map": 30.0}  # the classifier's rate over the pool's
_LOWEST, _HIGHEST = 1e-6, 1e3
_DIVIDING = {"ep": ("num_queries", 32), "map": ("num_heads", 8)}  # the channels, at most so many
_CHECKPOINT_SECONDS = 60.0
_BETWEEN = 20.0  # two checkpoints, at least so many times what one takes
_VALID_BATCH = 256
_LEAST_IMAGES = 5  # of a class


@dataclass(frozen=True)
class Trial:
    """A head of one learning rate, weight decay and dropout."""

    pool: str
    lr: float
    weight_decay: float
    drop_rate: float = 0.0

    @property
    def key(self) -> str:
        """As a file's word."""
        return f"{self.pool} {self.lr:.4g} {self.weight_decay:.4g} {self.drop_rate:.4g}"


@dataclass
class Outcome:
    """What came of a trial; losses of the validation part, where there is one."""

    loss: float = math.inf
    """Least over the epochs."""
    epoch: int = 0
    """Epochs after which it was least."""
    scores: dict[str, float] = field(default_factory=dict)
    """Then."""
    seconds: float = 0.0
    """Forward, backward, optimiser and validation."""
    images: int = 0
    """Images that it was trained on, counted anew in each epoch."""
    losses: list[float] = field(default_factory=list)
    """Of the training, a batch each."""
    valid_losses: list[float] = field(default_factory=list)
    """Of the validation part, an epoch each."""


def pool_options(pool: str, in_features: int) -> dict[str, Any]:
    """Options with which a pool fits a map: queries and heads divide its channels.

    Args:
        pool: Its name.
        in_features: Channels of the map.

    Examples:
        >>> pool_options("ep", 112)
        {'num_queries': 28}
    """
    if pool not in _DIVIDING:
        return {}
    word, most = _DIVIDING[pool]
    return {word: max(n for n in range(1, most + 1) if in_features % n == 0)}


def make_head(
    pool: str,
    in_features: int,
    num_classes: int,
    *,
    seed: int,
    norm: bool = True,
    drop_rate: float = 0.0,
) -> PooledClassifier:
    """A head with the first weights of a seed.

    Args:
        pool: Its name.
        in_features: Channels of the map.
        num_classes: Classes.
        seed: Of its weights.
        norm: Whether a BatchNorm follows the pool.
        drop_rate: Dropout before the classifier.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = pool_options(pool, in_features)
        return PooledClassifier(in_features, num_classes, pool, drop_rate, norm=norm, **options)


def first_rates(norm: bool, best: float | None) -> tuple[float, ...]:
    """The rates that a grid begins with.

    Args:
        norm: Whether a BatchNorm follows the pool.
        best: What an earlier seed chose; None: what docs/results/frozen_pools.md found.
    """
    if best is not None:
        return best / FACTOR, best, best * FACTOR
    return _RATES if norm else _RATES_WITHOUT_NORM


def wider_rates(outcomes: Mapping[Trial, Outcome], pool: str) -> list[Trial]:
    """The rates beyond the edge of a pool's grid if the best one lies there; else none.

    Args:
        outcomes: Of all trials so far.
        pool: Its name.
    """
    best = best_trial(outcomes, pool)
    same = [trial.lr for trial in outcomes if replace(trial, lr=best.lr) == best]
    rates = []
    if best.lr == min(same) and best.lr > _LOWEST:
        rates.append(best.lr / FACTOR)
    if best.lr == max(same) and best.lr < _HIGHEST:
        rates.append(best.lr * FACTOR)
    return [replace(best, lr=rate) for rate in rates]


def best_trial(outcomes: Mapping[Trial, Outcome], pool: str) -> Trial:
    """The trial of a pool with the least validation loss; of equal ones the slower and plainer.

    Args:
        outcomes: Of all trials.
        pool: Its name.
    """
    own = [trial for trial in outcomes if trial.pool == pool]
    return min(own, key=lambda t: (outcomes[t].loss, t.lr, t.weight_decay, t.drop_rate))


class Training:
    """Heads that are trained on the same batches.

    Args:
        trials: What is trained.
        cache: The maps.
        fit: (N,) images that are trained on, as ``cache.rows`` counts them.
        valid: Images that tell when a head is trained no further; None: there is no end before
            ``epochs``.
        num_classes: Classes.
        epochs: Length of the cosine schedule of the rate; or for each trial after how many epochs
            of that it ends.
        patience: Epochs without a better validation loss.
        batch_size: Images a step; what is left of an epoch is not a batch.
        seed: Of the first weights, and of the order.
        norm: Whether a BatchNorm follows the pools.
        weights: How much each image, or of several classes each of them, counts in the loss of the
            training, of mean 1 over ``fit``, by its number: (M,) or (M, K); None: all alike.
        device: Where to compute.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        cache: MapCache,
        fit: Tensor,
        valid: Tensor | None,
        *,
        num_classes: int,
        epochs: int,
        ends: Mapping[Trial, int] | None = None,
        patience: int = 3,
        batch_size: int = 64,
        seed: int = 0,
        norm: bool = True,
        weights: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.cache, self.fit, self.valid, self.weights = cache, fit, valid, weights
        self.epochs, self.patience, self.seed = epochs, patience, seed
        self.batch_size = min(batch_size, len(fit))
        self.device = device or torch.device("cpu")
        self.ends = dict(ends) if ends is not None else dict.fromkeys(trials, epochs)
        self.outcomes = {trial: Outcome() for trial in trials}
        self.heads = {
            trial: make_head(
                trial.pool,
                cache.shape[0],
                num_classes,
                seed=seed,
                norm=norm,
                drop_rate=trial.drop_rate,
            ).to(self.device)
            for trial in trials
        }
        if is_multi_label(cache.labels):
            for head in self.heads.values():
                _begin_with_shares(head, cache.labels[fit])
        self.optimizers = {trial: _optimizer(head, trial) for trial, head in self.heads.items()}
        self.active = list(trials)
        self.epoch = 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, at least one."""
        return len(self.fit) // self.batch_size

    def run(
        self, checkpoint: Path | None = None, progress: Callable[[int], None] | None = None
    ) -> dict[Trial, Outcome]:
        """Train all heads to their ends.

        Args:
            checkpoint: File that the state is kept in while it goes on, and taken from if it is
                there.
            progress: Called after each step with the number of heads in it.

        Returns:
            What came of each.
        """
        if checkpoint is not None and checkpoint.is_file():
            self.load(checkpoint)
        saved, took = time.monotonic(), 0.0
        while self.active:
            self._train_epoch(progress)
            self.epoch += 1
            if self.valid is not None:
                self._validate()
            self.active = [trial for trial in self.active if self._goes_on(trial)]
            since = time.monotonic() - saved
            if checkpoint is not None and since > max(_CHECKPOINT_SECONDS, _BETWEEN * took):
                started = time.monotonic()
                self.save(checkpoint)
                saved = time.monotonic()
                took = saved - started
        return self.outcomes

    def _goes_on(self, trial: Trial) -> bool:
        outcome = self.outcomes[trial]
        if self.epoch >= self.ends[trial] or not math.isfinite(outcome.losses[-1]):
            return False
        return self.valid is None or self.epoch - outcome.epoch < self.patience

    def _train_epoch(self, progress: Callable[[int], None] | None) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = self.fit[torch.randperm(len(self.fit), generator=generator)]
        views = torch.randint(self.cache.views, (len(order),), generator=generator)
        for step in range(self.steps_per_epoch):
            place = slice(step * self.batch_size, (step + 1) * self.batch_size)
            x = self._read(self.cache.rows(order[place], views[place]))
            labels = self.cache.labels[order[place]].to(self.device)
            number = self.epoch * self.steps_per_epoch + step
            weights = None if self.weights is None else self.weights[order[place]].to(self.device)
            self._train_step(x, labels, weights, number)
            if progress is not None:
                progress(len(self.active))

    def _train_step(self, x: Tensor, labels: Tensor, weights: Tensor | None, number: int) -> None:
        at = number / (self.epochs * self.steps_per_epoch)
        share = 0.5 * (1 + math.cos(math.pi * at))
        masks = self.seed * 1_000_003 + number
        for trials in self._by_pool():
            started = time.perf_counter()
            heads = [self.heads[trial].train() for trial in trials]
            found = logits_of(heads, x, masks=masks)
            losses = [training_loss(logits, labels, weights) for logits in found]
            torch.stack(losses).sum().backward()
            for trial, loss in zip(trials, losses, strict=True):
                optimizer = self.optimizers[trial]
                for group in optimizer.param_groups:
                    group["lr"] = share * group["initial_lr"]
                optimizer.step()
                optimizer.zero_grad()
                self.outcomes[trial].losses.append(float(loss.detach()))
                self.outcomes[trial].images += len(x)
            self._took(trials, started)

    @torch.inference_mode()
    def _validate(self) -> None:
        assert self.valid is not None
        found = self.predict(self.valid, self.active)
        labels = self.cache.labels[self.valid]
        for trial, logits in found.items():
            loss, outcome = float(training_loss(logits.double(), labels)), self.outcomes[trial]
            outcome.valid_losses.append(loss)
            if loss < outcome.loss:
                outcome.loss, outcome.epoch = loss, self.epoch
                outcome.scores = score(logits, labels)

    @torch.inference_mode()
    def predict(self, images: Tensor, trials: Sequence[Trial]) -> dict[Trial, Tensor]:
        """Logits of images as the network is tested with them, (N, K) each.

        Args:
            images: (N,), as ``cache.rows`` counts them.
            trials: Whose.
        """
        parts: dict[Trial, list[Tensor]] = {trial: [] for trial in trials}
        for batch in images.split(_VALID_BATCH):
            x = self._read(self.cache.rows(batch))
            for group in self._by_pool(trials):
                started = time.perf_counter()
                heads = [self.heads[trial].eval() for trial in group]
                for trial, logits in zip(group, logits_of(heads, x), strict=True):
                    parts[trial].append(logits.cpu())
                self._took(group, started)
        return {trial: torch.cat(found) for trial, found in parts.items()}

    def _read(self, rows: Tensor) -> Tensor:
        """(B, C, h, w), channels last: a pool's products with all positions are one each."""
        x = self.cache.read(rows).to(self.device)
        return x.contiguous(memory_format=torch.channels_last)

    def _by_pool(self, trials: Sequence[Trial] | None = None) -> list[list[Trial]]:
        groups: dict[str, list[Trial]] = {}
        for trial in self.active if trials is None else trials:
            groups.setdefault(trial.pool, []).append(trial)
        return list(groups.values())

    def _took(self, trials: Sequence[Trial], started: float) -> None:
        for trial in trials:
            self.outcomes[trial].seconds += (time.perf_counter() - started) / len(trials)

    def save(self, file: Path) -> None:
        """Keep the state, whole or not at all."""
        state = {
            "epoch": self.epoch,
            "active": [trial.key for trial in self.active],
            "trials": {
                trial.key: {
                    "head": head.state_dict(),
                    "optimizer": self.optimizers[trial].state_dict(),
                    "outcome": vars(self.outcomes[trial]),
                }
                for trial, head in self.heads.items()
            },
        }
        write_checkpoint(file, state)

    def load(self, file: Path) -> None:
        """Take up what ``save`` kept.

        Raises:
            ValueError: If it is of other trials.
        """
        state = read_checkpoint(file, f"delete {file} to have its heads trained anew")
        if list(state["trials"]) != [trial.key for trial in self.heads]:
            raise ValueError(f"{file} is of other heads than are to be trained; delete it")
        for trial, head in self.heads.items():
            kept = state["trials"][trial.key]
            head.load_state_dict(kept["head"])
            self.optimizers[trial].load_state_dict(kept["optimizer"])
            self.outcomes[trial] = Outcome(**kept["outcome"])
        self.epoch = state["epoch"]
        self.active = [trial for trial in self.heads if trial.key in state["active"]]


def logits_of(
    heads: Sequence[PooledClassifier], x: Tensor, *, masks: int | None = None
) -> list[Tensor]:
    """(B, K) of heads with the same pool; one without parameters pools once for all.

    Args:
        heads: At least one.
        x: (B, C, h, w).
        masks: Seed of the dropout, which every head is given anew: what is left out is the same
            for all of them, and whatever is trained beside. None: whatever comes.
    """
    pool = heads[0].pool.pool
    pooled = None if any(True for _ in pool.parameters()) else pool(x)
    found = []
    drops = masks is not None and any(head.drop.p for head in heads)
    with torch.random.fork_rng([x.device] if x.is_cuda else [], enabled=drops):
        for head in heads:
            if masks is not None and drops:
                _seed(masks, x.device)
            rest = head.fc(head.drop(head.pool.norm(pooled))) if pooled is not None else head(x)
            found.append(rest)
    return found


def _seed(seed: int, device: torch.device) -> None:
    """Of one device alone: ``torch.manual_seed`` takes longer than a small head's step."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@torch.no_grad()
def _begin_with_shares(head: PooledClassifier, labels: Tensor) -> None:
    """Biases at the log-odds of the classes: most images lack most of them, (N, K)."""
    shares = (labels.double().sum(0) + 0.5) / (len(labels) + 1)
    (bias,) = (x for name, x in head.fc.named_parameters() if name.endswith("bias"))
    bias.copy_(shares.logit())


def _optimizer(head: PooledClassifier, trial: Trial) -> torch.optim.Optimizer:
    slower = _SLOWER.get(pool_layer(trial.pool), 1.0)
    groups = [
        {"params": list(head.pool.parameters()), "lr": trial.lr / slower},
        {"params": list(head.fc.parameters()), "lr": trial.lr},
    ]
    groups = [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, weight_decay=trial.weight_decay, fused=True)


def num_parameters(head: PooledClassifier) -> int:
    """What is trained of a head."""
    return sum(parameter.numel() for parameter in head.parameters())


def draw_validation(
    labels: Tensor,
    share: float,
    *,
    seed: int,
    names: Sequence[str],
    groups: Tensor | None = None,
) -> Tensor:
    """Which training images tell how good a head is, (N,) bool: a share of each class.

    Args:
        labels: (N,) class numbers, or (N, K) of 0 and 1.
        share: Of them.
        seed: Of the draw.
        names: Of the classes.
        groups: (N,) numbers; images with the same are in one part. None: each stands alone.

    Raises:
        ValueError: If a class has fewer than 5 images, or all of them in one group.
    """
    groups = torch.arange(len(labels)) if groups is None else groups
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    if is_multi_label(labels):
        drawn = groups[order[: max(1, round(share * len(labels)))]]
        return torch.isin(groups, drawn)
    counts = torch.bincount(labels, minlength=len(names))
    few = int(counts.argmin())
    if counts[few] < _LEAST_IMAGES:
        raise ValueError(
            f"class {names[few]!r} has {int(counts[few])} training images, and {_LEAST_IMAGES} of "
            "each are needed to set some aside for choosing rates; add some, or leave the class out"
        )
    taken: set[int] = set()
    for number in labels.unique():
        own = groups[order[labels[order] == number]].tolist()
        sizes, wanted = Counter(own), max(1, round(share * len(own)))
        found = sum(sizes[group] for group in taken & sizes.keys())
        for group in own:
            if found >= wanted:
                break
            if group not in taken:
                taken.add(group)
                found += sizes[group]
        if found == len(own):
            raise ValueError(
                f"the images of class {names[int(number)]!r} belong to too few groups to set some "
                "aside for choosing rates; add images of others"
            )
    return torch.isin(groups, torch.tensor(sorted(taken)))
