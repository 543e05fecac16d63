"""A probe from a configuration to a run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from convattn.classification.evaluation import predictions_of, summarize
from convattn.config import ProbeConfig
from convattn.data import ImageFiles, Source, TensorImages, train_transform, transform_of
from convattn.data.images import Transform
from convattn.exceptions import Interrupted
from convattn.files import new_run_folder, read_json, reading, replace_atomically, unfinished
from convattn.layers import POOLS
from convattn.modes import default_device
from convattn.ownership import owned
from convattn.probing.backbone import Frozen, check_channels, open_backbone
from convattn.probing.cache import (
    CacheOptions,
    MapCache,
    SeededImages,
    digest_of_images,
    write_maps,
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
from convattn.probing.images import check_apart, find_groups, merge_validation, open_source
from convattn.probing.neighbours import averages, choose_number, vote
from convattn.probing.network import join_tensors, network_cfg, run_config, save_network
from convattn.probing.scores import is_multi_label, score, training_loss
from convattn.runs.card import write_card
from convattn.text import nearest, report
from convattn.world import World, shared_work

KNN, AVERAGE = "knn", "avg"
COLUMNS = (
    *("pool", "seed", "lr", "accuracy", "balanced_accuracy", "cross_entropy", "ece"),
    *("parameters", "seconds"),
)
"""Of ``probe.csv``; what else a row has follows."""
_MORE_COLUMNS = ("weight_decay", "drop_rate", "epoch", "validation_accuracy", "validation_loss")
_OF_SEVERAL = ("map", "macro_f1")
_CROP = (0.5, 1.0)  # share of the image that a further view keeps
_CONFIG, _STATE = "probe.json", "seeds"


@dataclass(frozen=True, kw_only=True)
class ProbedRun:
    """A finished probe."""

    folder: Path
    """The run folder."""
    rows: Sequence[Mapping[str, Any]]
    """Of ``probe.csv``."""
    best: str
    """The pool of the network in the folder."""
    table: str
    """What was found, for people."""


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


def run_probe(config: ProbeConfig) -> ProbedRun | None:
    """Probe a network and leave a run folder.

    Processes that torchrun or srun has started share the images of the maps; then the first trains,
    and the others return None.

    Args:
        config: What is asked for.

    Raises:
        ValueError: If it does not fit the data or the network.
        FileExistsError: If ``config.out`` exists.
        Interrupted: If the user stopped it.
    """
    with shared_work() as world:
        return _run_probe(config, world)


def _run_probe(config: ProbeConfig, world: World) -> ProbedRun | None:
    _check_pools(config.pools)
    default_device(config.device)  # refused before anything is read
    frozen, images = open_backbone(config), _open_images(config)
    source = images.source
    check_channels(frozen, source)
    check_apart(source, config.data)
    if images.own_valid is None:
        for seed in range(config.seeds):  # what cannot be drawn is told before all else
            draw_validation(
                source.train.labels,
                config.val_share,
                seed=seed,
                names=source.class_names,
                groups=images.groups,
            )
    folder = Path(
        world.first_says(
            lambda: str(new_run_folder(config.out, "runs/probe", "convattn probe --resume"))
        )
    )
    if not world.is_first:
        return _go_on(config, folder, frozen, images, world)
    try:
        with owned(folder):
            replace_atomically(folder / _CONFIG, config.to_json().encode())
            return _go_on(config, folder, frozen, images, world)
    except ValueError:
        if not (folder / _STATE).exists():  # nothing was trained that could be gone on with
            shutil.rmtree(folder)
        raise


def resume_probe(folder: Path) -> ProbedRun | None:
    """Go on with a probe that was stopped or killed; it ends as if it never had been.

    Several processes go on as ``run_probe`` has them.

    Args:
        folder: Its folder.

    Raises:
        FileNotFoundError: If it is the folder of no probe.
        ValueError: If the probe has ended.
    """
    file = unfinished(
        folder, config=_CONFIG, end="report.md", what="probe", command="convattn probe"
    )
    with shared_work() as world, owned(folder) if world.is_first else nullcontext():
        config = ProbeConfig.from_json(file.read_text(encoding="utf-8"), str(file))
        return _go_on(config, folder, open_backbone(config), _open_images(config), world)


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The data of a probe, and what of them belongs together or is kept for choosing."""

    source: Source
    groups: Tensor
    own_valid: Tensor | None


def _open_images(config: ProbeConfig) -> _Images:
    source, own_valid = merge_validation(open_source(config.data))
    groups = find_groups(source.train, config.data)
    return _Images(source=source, groups=groups, own_valid=own_valid)


def _go_on(
    config: ProbeConfig, folder: Path, frozen: Frozen, images: _Images, world: World
) -> ProbedRun | None:
    started, source = time.monotonic(), images.source
    again = f"go on with: convattn probe --resume {shlex.quote(str(folder))}"
    world.advice = again
    try:
        cache = cache_maps(config, frozen, source, world)
        world.leave()
        if not world.is_first:
            return None
        cached = time.monotonic()
        probe = Probe(
            config=config,
            cache=cache,
            class_names=source.class_names,
            groups=images.groups,
            own_valid=images.own_valid,
            weights=getattr(source.train, "weights", None),
        )
        results = [train_seed(probe, seed, folder / _STATE) for seed in range(config.seeds)]
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {again}") from None
    times = {"maps": cached - started, "heads": time.monotonic() - cached}
    return _finish(probe, folder, frozen, source, results, times)


def _check_pools(pools: Sequence[str]) -> None:
    known = (KNN, "attention", *POOLS)
    for name in pools:
        if name not in known:
            raise ValueError(
                f"unknown pool {name!r}; the nearest is {nearest(name, known)!r} of "
                f"{', '.join(known)}"
            )
        if pools.count(name) > 1:
            raise ValueError(f"the pool {name!r} is named twice; once is enough")


def cache_folder() -> Path:
    """Where maps are cached unless told otherwise."""
    own = os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path.home() / ".cache") / "convattn" / "maps"


def cache_maps(
    config: ProbeConfig, frozen: Frozen, source: Source, world: World | None = None
) -> MapCache:
    """The maps of a data set, out of the cache where they are there.

    Args:
        config: Views, number format, place and limit.
        frozen: The network.
        source: The images.
        world: The processes that share them; None: this one alone.

    Raises:
        ValueError: As ``write_maps``.
    """
    cfg, transform = frozen.cfg, transform_of(frozen.cfg)
    train: list[Any] = [_seen(source.train, transform)]
    for view in range(1, config.views):
        varied = train_transform(
            tuple(cfg["input_size"][1:]),
            scale=_CROP,
            interpolation=cfg["interpolation"],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
        )
        train.append(SeededImages(_seen(source.train, varied), view))
    device = default_device(config.device)
    about = {
        "network": frozen.name,
        "layer": frozen.backbone.layer,
        "transform": {name: _plain(value) for name, value in cfg.items()},
        "train": digest_of_images(source.train),
        "test": digest_of_images(source.test),
    }
    shape = frozen.shape
    backbone = frozen.backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return write_maps(
        backbone,
        train,
        _seen(source.test, transform),
        labels=torch.cat([source.train.labels, source.test.labels]),
        shape=shape,
        about=about,
        options=CacheOptions(
            root=Path(config.cache) if config.cache else cache_folder(),
            name="-".join(
                (_data_name(source, config), frozen.name.replace("/", "-"), frozen.backbone.layer)
            ),
            dtype=config.cache_dtype,
            limit=config.cache_limit,
            num_workers=config.data.num_workers,
            device=device,
        ),
        world=world or World(),
    )


def _seen(images: TensorImages | ImageFiles, transform: Transform) -> TensorImages | ImageFiles:
    """Images and labels alone, weights aside."""
    seen = images.with_transform(transform)
    if isinstance(seen, ImageFiles):
        seen.weights = None
    return seen


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------ one seed


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


# ----------------------------------------------------------------------------------- the folder


def _finish(
    probe: Probe,
    folder: Path,
    frozen: Frozen,
    source: Source,
    results: Sequence[SeedResult],
    times: Mapping[str, float],
) -> ProbedRun:
    from convattn.probing import figures
    from convattn.probing.report import Findings, to_csv, write_report

    rows = [row for result in results for row in result.rows]
    several = is_multi_label(probe.cache.labels)
    columns = (*COLUMNS, *(_OF_SEVERAL if several else ()), *_MORE_COLUMNS)
    replace_atomically(folder / "probe.csv", to_csv(rows, columns).encode())
    findings = Findings(
        rows=rows,
        labels=probe.cache.labels[probe.test],
        logits=[result.logits for result in results],
        images=sum(result.images for result in results),
        cached=len(probe.cache),
        times=times,
        num_valid=None if probe.own_valid is None else len(probe.own_valid),
    )
    best = findings.best
    head = safetensors.torch.load_file(folder / _STATE / f"{best}.safetensors")
    of_run = run_config(
        "probe",
        probe.config.data,
        frozen,
        best,
        len(source.class_names),
        norm=probe.config.norm,
        epochs=probe.config.epochs,
    )
    save_network(folder, join_tensors(frozen, head), network_cfg(frozen, source), of_run)
    result = summarize(
        predictions_of(results[0].logits[best].double(), findings.labels),
        class_names=source.class_names,
        images_per_second=0.0,
    )
    replace_atomically(folder / "evaluation.json", result.to_json().encode())
    write_card(folder)
    figures.draw_accuracies(
        findings, folder / "accuracy.png", title=_title(frozen, source, probe.config)
    )
    figures.draw_evidence(
        folder,
        source.test,
        results[0].logits[best],
        source.class_names,
        title=f"pool {best}, seed 0",
    )
    for file in (folder / _STATE).glob("*"):
        if file.stem not in map(str, range(len(results))):
            file.unlink()
    text = write_report(
        findings, probe.config, folder, network=frozen, source=source, grids=results[0].grids
    )
    replace_atomically(folder / "report.md", text.encode())
    return ProbedRun(folder=folder, rows=rows, best=best, table=findings.table())


def _title(frozen: Frozen, source: Source, config: ProbeConfig) -> str:
    return (
        f"{_data_name(source, config)} on the {frozen.backbone.layer} map of {frozen.name}, frozen"
    )


def _data_name(source: Source, config: ProbeConfig) -> str:
    """What people call the data: a folder by its own name."""
    return source.name if config.data.root is None else Path(config.data.root).resolve().name
