"""One seed of a probe: rates and epochs chosen, heads trained on the whole, tested once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from convattn.config import ProbeConfig
from convattn.files import read_json, reading, replace_atomically
from convattn.layers import POOLS
from convattn.modes import default_device
from convattn.probing.cache import (
    MapCache,
)
from convattn.probing.heads import (
    Outcome,
    Training,
    Trial,
    best_trial,
    draw_validation,
    first_rates,
    num_parameters,
    wider_rates,
)
from convattn.probing.neighbours import averages, choose_number, vote
from convattn.probing.scores import score, training_loss
from convattn.text import report

KNN, AVERAGE = "knn", "avg"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is trained on which maps."""

    config: ProbeConfig
    """What was asked for."""
    cache: MapCache
    """The maps."""
    class_names: Sequence[str]
    """Of the data."""
    groups: Tensor | None = None
    """(num_train,) numbers of what no split may part; None: each image stands alone."""
    own_valid: Tensor | None = None
    """Places of the data set's own validation images, which every seed then chooses by."""
    weights: Tensor | None = None
    """(num_train,) how much each image counts in the loss; None: all alike."""

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of what is trained, the average first."""
        asked = self.config.pools or tuple(POOLS)
        return (AVERAGE, *(name for name in asked if name not in (AVERAGE, KNN)))

    @property
    def train(self) -> Tensor:
        """Places of the training images."""
        return torch.arange(self.cache.num_train)

    @property
    def test(self) -> Tensor:
        """Places of the test images."""
        return torch.arange(self.cache.num_train, len(self.cache.labels))

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Places of the images to fit, and of those to choose by."""
        if self.own_valid is not None:
            return self.train[~torch.isin(self.train, self.own_valid)], self.own_valid
        chosen = draw_validation(
            self.cache.labels[self.train],
            self.config.val_share,
            seed=seed,
            names=self.class_names,
            groups=None if self.groups is None else self.groups[self.train],
        )
        return self.train[~chosen], self.train[chosen]


def train_seed(probe: Probe, seed: int, folder: Path) -> SeedResult:
    """All heads of a seed: rates and epochs chosen, trained on the whole, tested once.

    What was done is kept in the folder, and not done again.

    Args:
        probe: What is trained on what.
        seed: Of the validation part, the order and the first weights.
        folder: Where the state is kept; its earlier seeds' rates begin the grids.
    """
    folder.mkdir(exist_ok=True)
    state = _SeedState(folder, seed)
    if state.result is not None:
        return SeedResult.read(folder, seed)
    outcomes = _choose(probe, seed, state)
    chosen = {pool: best_trial(outcomes, pool) for pool in probe.pools}
    training = _refit(probe, seed, chosen, outcomes, state)
    logits = {trial.pool: x for trial, x in _test(probe, training).items()}
    rows = [_row(probe, seed, trial, outcomes, training, logits) for trial in chosen.values()]
    row, logits[KNN] = _knn(probe, seed)
    if seed == 0:
        for trial, head in training.heads.items():
            file = folder / f"{trial.pool}.safetensors"
            tensors = {name: x.cpu().contiguous() for name, x in head.state_dict().items()}
            replace_atomically(file, safetensors.torch.save(tensors))
    result = SeedResult(
        seed=seed,
        rows=[row, *rows],
        logits=logits,
        images=sum(outcome.images for outcome in (*outcomes.values(), *training.outcomes.values())),
        grids={
            pool: {t.lr: outcomes[t].loss for t in sorted(outcomes, key=_rate) if t.pool == pool}
            for pool in probe.pools
        },
    )
    result.write(folder)
    state.forget()
    report(
        f"seed {seed} of {probe.config.seeds}: "
        + ", ".join(f"{row['pool']} {row['accuracy']:.1%}" for row in result.rows)
    )
    return result


def _rate(trial: Trial) -> tuple[float, float, float]:
    return trial.lr, trial.weight_decay, trial.drop_rate


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """What a seed found."""

    seed: int
    """Its number."""
    rows: Sequence[Mapping[str, Any]]
    """Of ``probe.csv``."""
    logits: Mapping[str, Tensor]
    """Of the test images, (N, K), by pool."""
    images: int
    """Images that heads were trained on, counted anew for each head and epoch."""
    grids: Mapping[str, Mapping[float, float]]
    """Pool -> learning rate -> validation loss."""

    def write(self, folder: Path) -> None:
        """Keep it, whole or not at all."""
        content = safetensors.torch.save({k: x.contiguous() for k, x in self.logits.items()})
        replace_atomically(folder / f"{self.seed}.safetensors", content)
        values = {"rows": self.rows, "images": self.images, "grids": self.grids}
        replace_atomically(folder / f"{self.seed}.json", (json.dumps(values) + "\n").encode())

    @classmethod
    def read(cls, folder: Path, seed: int) -> SeedResult:
        """What ``write`` kept."""
        file, tensors = folder / f"{seed}.json", folder / f"{seed}.safetensors"
        with reading(file, f"delete {file} and {tensors} to have seed {seed} trained anew"):
            values = read_json(file, "")
            return cls(
                seed=seed,
                rows=values["rows"],
                images=values["images"],
                grids={
                    pool: {float(rate): loss for rate, loss in grid.items()}
                    for pool, grid in values["grids"].items()
                },
                logits=safetensors.torch.load_file(tensors),
            )


class _SeedState:
    """What a seed has done so far, in its folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.result = folder / f"{seed}.json" if (folder / f"{seed}.json").is_file() else None
        self._rounds = folder / f"{seed}-rounds.json"

    def checkpoint(self, part: str) -> Path:
        return self.folder / f"{self.seed}-{part}.ckpt"

    def read_rounds(self) -> list[dict[Trial, Outcome]]:
        if not self._rounds.is_file():
            return []
        with reading(self._rounds, f"delete {self.folder} to have the heads trained anew"):
            return [
                {Trial(*trial): Outcome(**outcome) for trial, outcome in done}
                for done in json.loads(self._rounds.read_text())
            ]

    def write_rounds(self, rounds: Sequence[Mapping[Trial, Outcome]]) -> None:
        content = [
            [[dataclasses.astuple(trial), vars(outcome)] for trial, outcome in done.items()]
            for done in rounds
        ]
        replace_atomically(self._rounds, json.dumps(content).encode())

    def forget(self) -> None:
        """Nothing of it is needed any more."""
        for file in (self._rounds, *self.folder.glob(f"{self.seed}-*.ckpt")):
            file.unlink(missing_ok=True)


def _choose(probe: Probe, seed: int, state: _SeedState) -> dict[Trial, Outcome]:
    """Every grid, widened until no pool's best rate is at an edge."""
    rounds = state.read_rounds()
    outcomes: dict[Trial, Outcome] = {}
    for done in rounds:
        outcomes |= done
    fit, valid = probe.split(seed)
    while pending := _pending(probe, outcomes, state):
        training = training_of(probe, pending, fit, valid, seed=seed)
        checkpoint = state.checkpoint(f"round{len(rounds)}")
        with tqdm(desc=f"seed {seed}, {len(pending)} heads", disable=None, leave=False) as bar:
            rounds.append(training.run(checkpoint, lambda heads: bar.update() and None))
        outcomes |= rounds[-1]
        state.write_rounds(rounds)
    return outcomes


def _pending(probe: Probe, outcomes: Mapping[Trial, Outcome], state: _SeedState) -> list[Trial]:
    config = probe.config
    if outcomes:
        return [trial for pool in probe.pools for trial in wider_rates(outcomes, pool)]
    earlier: dict[str, float] = {}
    if state.seed:
        for row in SeedResult.read(state.folder, state.seed - 1).rows:
            if row["lr"] != "":
                earlier[row["pool"]] = row["lr"]
    return [
        Trial(pool, rate, decay, drop_rate)
        for pool in probe.pools
        for rate in first_rates(config.norm, earlier.get(pool))
        for decay in config.weight_decays
        for drop_rate in config.drop_rates
    ]


def training_of(
    probe: Probe, trials: Sequence[Trial], fit: Tensor, valid: Tensor | None, **more: Any
) -> Training:
    """Heads of a probe, ready to be trained with its settings.

    Args:
        probe: What is trained on what.
        trials: The heads.
        fit: Places of the images that they are trained on.
        valid: Places of those that they are judged by.
        **more: Of ``Training``.
    """
    config, weights = probe.config, probe.weights
    return Training(
        trials,
        probe.cache,
        fit,
        valid,
        num_classes=len(probe.class_names),
        epochs=config.epochs,
        patience=config.patience,
        batch_size=config.batch_size,
        norm=config.norm,
        weights=None if weights is None else weights / weights[fit].mean(),
        device=default_device(config.device),
        **more,
    )


def _refit(
    probe: Probe,
    seed: int,
    chosen: Mapping[str, Trial],
    outcomes: Mapping[Trial, Outcome],
    state: _SeedState,
) -> Training:
    """The chosen heads trained anew on all training images, each as long as was best."""
    ends = {trial: max(1, outcomes[trial].epoch) for trial in chosen.values()}
    training = training_of(probe, list(ends), probe.train, None, seed=seed, ends=ends)
    training.run(state.checkpoint("refit"))
    return training


def _test(probe: Probe, training: Training) -> dict[Trial, Tensor]:
    return training.predict(probe.test, list(training.heads))


def _row(
    probe: Probe,
    seed: int,
    trial: Trial,
    outcomes: Mapping[Trial, Outcome],
    training: Training,
    logits: Mapping[str, Tensor],
) -> dict[str, Any]:
    chosen = outcomes[trial]
    seconds = training.outcomes[trial].seconds + sum(
        outcome.seconds for other, outcome in outcomes.items() if other.pool == trial.pool
    )
    return {
        "pool": trial.pool,
        "seed": seed,
        "lr": trial.lr,
        **score(logits[trial.pool], probe.cache.labels[probe.test]),
        "parameters": num_parameters(training.heads[trial]),
        "seconds": round(seconds, 2),
        "weight_decay": trial.weight_decay,
        "drop_rate": trial.drop_rate,
        "epoch": chosen.epoch,
        "validation_accuracy": chosen.scores.get("accuracy", 0.0),
        "validation_loss": chosen.loss,
    }


def _knn(probe: Probe, seed: int) -> tuple[dict[str, Any], Tensor]:
    started = time.perf_counter()
    cache, (fit, valid) = probe.cache, probe.split(seed)
    vectors, classes = averages(cache), len(probe.class_names)
    number = choose_number(vectors, cache.labels, fit, valid, classes)
    said = vote(vectors, cache.labels, fit, valid, classes, number)
    logits = vote(vectors, cache.labels, probe.train, probe.test, classes, number)
    return {
        "pool": KNN,
        "seed": seed,
        "lr": "",
        **score(logits, cache.labels[probe.test]),
        "parameters": 0,
        "seconds": round(time.perf_counter() - started, 2),
        "weight_decay": "",
        "drop_rate": "",
        "epoch": "",
        "validation_accuracy": score(said, cache.labels[valid])["accuracy"],
        "validation_loss": float(training_loss(said.double(), cache.labels[valid])),
    }, logits
