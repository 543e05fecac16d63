"""A finetuning from its configuration to a run folder with its report."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from convattn.config import FinetuneConfig, PoolName
from convattn.exceptions import Interrupted
from convattn.files import new_run_folder, replace_atomically, unfinished
from convattn.finetuning import end_to_end as second_stage
from convattn.finetuning import frozen as first_stage
from convattn.finetuning.folder import REPORT, FinetunedRun, write_run
from convattn.finetuning.frozen import Choice, View
from convattn.finetuning.images import Images, Split, open_images
from convattn.finetuning.network import Folds, Network
from convattn.finetuning.setup import Setup
from convattn.modes import default_device
from convattn.ownership import owned
from convattn.probing.backbone import Frozen, check_channels
from convattn.probing.heads import Training
from convattn.probing.network import join_tensors
from convattn.probing.scores import score
from convattn.text import report

_CONFIG, _STAGES = "finetune.json", "stages"
_FILE = ".safetensors"
_SHARE_OF_LARGER = 0.4  # of the time left, for another view of the images


def run_finetune(config: FinetuneConfig) -> FinetunedRun:
    """Train, test and explain a classifier, and leave a run folder.

    Args:
        config: What is asked for.

    Raises:
        ValueError: If it does not fit the data or the network, or the time is too short.
        FileExistsError: If ``config.out`` exists.
        Interrupted: If the user stopped it.
    """
    default_device(config.device)  # refused before anything is read
    images = open_images(config)
    frozen = first_stage.open_frozen(config)
    _check(images, frozen, config)
    folder = new_run_folder(config.out, "runs/finetune", "convattn finetune --resume")
    with owned(folder):
        replace_atomically(folder / _CONFIG, config.to_json().encode())
        return _go_on(config, folder, images, frozen)


def resume_finetune(folder: Path) -> FinetunedRun:
    """Go on with a finetuning that was stopped or killed.

    Args:
        folder: Its folder.

    Raises:
        FileNotFoundError: If it is the folder of none.
        ValueError: If it has ended.
    """
    file = unfinished(
        folder, config=_CONFIG, end=REPORT, what="finetuning", command="convattn finetune"
    )
    with owned(folder):
        config = FinetuneConfig.from_json(file.read_text(encoding="utf-8"), str(file))
        frozen = first_stage.open_frozen(config)
        return _go_on(config, folder, open_images(config), frozen)


def _check(images: Images, frozen: Frozen, config: FinetuneConfig) -> None:
    check_channels(frozen, images.source)
    if config.kept_target != FinetuneConfig().kept_target and images.source.multi_label:
        raise ValueError(
            "kept_target is for images of one class each, and these may have several, each by a "
            "threshold of its own; leave it out"
        )
    images.splits(images.train, config.val_share, config.seed)
    if config.folds:
        folds = images.folds(images.train, config.folds, config.seed)
        for fold in range(config.folds):
            images.splits(images.train[folds != fold], config.val_share, config.seed)
    seconds = first_stage.seconds_of_pass(frozen, len(images.all), default_device(config.device))
    if seconds > 60 * config.minutes:
        raise ValueError(
            f"minutes={config.minutes:g} is too little: {frozen.name} alone takes about "
            f"{seconds / 60:.2g} minutes to see {len(images.all):,} images once; give at least "
            f"--minutes {2 * seconds / 60:.2g}, or fewer images (--data.num-train)"
        )


def _go_on(config: FinetuneConfig, folder: Path, images: Images, frozen: Frozen) -> FinetunedRun:
    deadline, stages = time.monotonic() + 60 * config.minutes, folder / _STAGES
    stages.mkdir(exist_ok=True)
    try:
        setup, choice = _with_maps(config, images, frozen, stages, deadline)
        network = _train(setup, images.train, stages / "frozen", choice)
        epochs = _plan_epochs(setup, network, stages / "epochs.json", deadline)
        if epochs:
            network = _train_whole(setup, network, stages, epochs)
        folds = _train_folds(setup, stages, network.epochs) if config.folds else None
        return write_run(setup, folder, network, folds)
    except (KeyboardInterrupt, Interrupted):
        again = f"convattn finetune --resume {shlex.quote(str(folder))}"
        raise Interrupted(f"interrupted; go on with: {again}") from None


def _with_maps(
    config: FinetuneConfig, images: Images, own: Frozen, stages: Path, deadline: float
) -> tuple[Setup, Choice | None]:
    """The backbone as validation images like it best to see, its maps, and its pool and head.

    The head is None where there was no choice.
    """
    file, pools = stages / "view.json", first_stage.possible_pools(config)
    if file.is_file():
        kept = json.loads(file.read_text())
        pools = (kept.pop("pool", config.pool),)
        views = [View(**kept)]
    else:
        views = first_stage.possible_views(config, images, own)
    found: dict[View, tuple[Setup, Choice | None]] = {}
    losses: dict[View, float] = {}
    seconds = 0.0  # for the head of the first view; others take longer as their maps are larger
    for view in views:
        frozen = first_stage.open_frozen(config, view) if found or file.is_file() else own
        head = seconds * (view.side / views[0].side) ** 2
        left = deadline - time.monotonic() - config.folds * head  # of which one view is taken
        if found and _is_too_long(config, frozen, view, images, head, left):
            continue
        maps = first_stage.map_images(config, frozen, images)
        setup, choice = Setup(config=config, images=images, maps=maps, pool=pools[0]), None
        if len(views) > 1 or len(pools) > 1:
            started = time.monotonic()
            setup, choice = _best_pool(setup, pools)
            seconds = seconds or time.monotonic() - started
            losses[view] = choice.outcome.loss
            report(f"images of {view}: validation loss {choice.outcome.loss:.4f}")
        found[view] = setup, choice
    best = min(losses, key=losses.__getitem__) if losses else views[0]
    chosen = {**dataclasses.asdict(best), "pool": found[best][0].pool}
    replace_atomically(file, json.dumps(chosen).encode())
    return found[best]


def _best_pool(setup: Setup, pools: Sequence[PoolName]) -> tuple[Setup, Choice]:
    """The pool that validation images find best, and its head; of equal ones the first."""
    found = []
    for pool in pools:
        own = dataclasses.replace(setup, pool=pool)
        found.append((own, _choose(own, setup.images.train)))
        if len(pools) > 1:
            view, loss = setup.maps.view, found[-1][1].outcome.loss
            report(f"pool {pool}, images of {view}: validation loss {loss:.4f}")
    return min(found, key=lambda one: one[1].outcome.loss)


def _is_too_long(
    config: FinetuneConfig,
    frozen: Frozen,
    view: View,
    images: Images,
    seconds: float,
    left: float,
) -> bool:
    """Whether maps and head, of so many seconds, take too much of the time left, which is told."""
    device = default_device(config.device)
    seconds += first_stage.seconds_of_pass(frozen, len(images.all), device)
    if seconds <= _SHARE_OF_LARGER * left:
        return False
    report(f"images of {view} are not tried: they would take about {seconds:.0f} s")
    return True


def _choose(setup: Setup, images: Tensor) -> Choice:
    splits = setup.splits(images)
    return first_stage.choose(setup.maps, setup.pool, splits, setup.config, setup.num_classes)


def _train(setup: Setup, images: Tensor, place: Path, choice: Choice | None = None) -> Network:
    """The first stage on images, as chosen by a part of them; what is kept is not done again.

    Args:
        images: Numbers of those that may be learnt.
        place: Of the files that are kept: the network that has learnt all of them, and one beside
            it that has not learnt those it was chosen by.
        choice: The head, if it was chosen already.
    """
    file = place.with_suffix(_FILE)
    if file.is_file():
        return Network.read(file)
    config, maps, num_classes = setup.config, setup.maps, setup.num_classes
    choice, splits = choice or _choose(setup, images), setup.splits(images)

    def trained(fit: Tensor) -> Training:
        return first_stage.train_head(maps, fit, choice, config, num_classes)

    def tensors(training: Training) -> dict[str, Tensor]:
        return join_tensors(maps.frozen, training.heads[choice.trial].state_dict())

    parts = [trained(fit) for fit, _ in splits]
    valid = torch.cat([valid for _, valid in splits])
    said = [
        part.predict(numbers, [choice.trial])[choice.trial]
        for part, (_, numbers) in zip(parts, splits, strict=True)
    ]
    network = Network(
        tensors=tensors(trained(images)),
        logits=torch.cat(said),
        labels=setup.images.labels[valid],
        told=_told_of_head(choice, splits),
    )
    setup.write(tensors(parts[0]), _part_of(place))
    network.write(file)
    return network


def _part_of(place: Path) -> Path:
    return place.with_name(f"{place.name}-part{_FILE}")


def _plan_epochs(setup: Setup, network: Network, file: Path, deadline: float) -> int:
    """How many epochs of the second stage there is time for; that is kept, too."""
    if file.is_file():
        return int(json.loads(file.read_text())["epochs"])
    epochs = second_stage.plan_epochs(
        setup.build(network.tensors),
        setup.cfg["input_size"],
        setup.config,
        fit=len(setup.splits(setup.images.train)[0][0]),
        train=setup.images.num_train,
        test=len(setup.images.test),
        seconds=deadline - time.monotonic(),
    )
    replace_atomically(file, json.dumps({"epochs": epochs}).encode())
    return epochs


def _train_whole(setup: Setup, frozen: Network, stages: Path, epochs: int) -> Network:
    """The network after the second stage, if validation images find that better than before."""
    images = setup.images.train
    part = _train_end_to_end(setup, images, stages / "frozen", stages / "end-to-end", epochs)
    before = frozen.logits[: len(part.logits)]  # of the same images
    if not second_stage.is_better(before, part.logits, part.labels):
        return frozen
    file = (stages / "final").with_suffix(_FILE)
    if file.is_file():
        shutil.rmtree(stages / "final", ignore_errors=True)
        return Network.read(file)
    start = stages / f"frozen-start{_FILE}"
    setup.write(frozen.tensors, start)
    trained = setup.train_end_to_end(
        start,
        stages / "final",
        epochs=part.epochs,
        drop_rate=part.drop_rate,
        fit_on=images,
        valid=None,
    )
    network = dataclasses.replace(part, tensors=trained.tensors)
    network.write(file)
    shutil.rmtree(stages / "final")
    return network


def _train_end_to_end(
    setup: Setup, images: Tensor, first: Path, place: Path, epochs: int
) -> Network:
    """The second stage on images, whose epoch is chosen by a part of them.

    Args:
        images: Numbers of those that may be learnt.
        first: As of ``_train``.
        place: Alike.
        epochs: Of the schedule.
    """
    file = place.with_suffix(_FILE)
    if file.is_file():
        shutil.rmtree(place, ignore_errors=True)
        return Network.read(file)
    fit, valid = setup.splits(images)[0]
    frozen = Network.read(first.with_suffix(_FILE))
    trained = setup.train_end_to_end(
        _part_of(first),
        place,
        epochs=epochs,
        drop_rate=frozen.drop_rate,
        fit_on=fit,
        valid=valid,
    )
    network = Network(
        tensors=trained.tensors,
        logits=setup.predict(trained.tensors, valid, what="validation"),
        labels=setup.images.labels[valid],
        told={
            **frozen.told,
            "end to end": trained.epoch,
            "curve": trained.curve,
        },
    )
    network.write(file)
    shutil.rmtree(place)
    return network


def _told_of_head(choice: Choice, splits: Sequence[Split]) -> dict[str, Any]:
    (fit, _), *others = splits
    judged = sum(len(own) for _, own in splits)
    return {
        "rate": choice.trial.lr,
        "dropout": choice.trial.drop_rate,
        "epochs": choice.outcome.epoch,
        "grid": sorted(choice.grid.items()),
        "validated": (
            f"{judged:,} images in {len(splits)} parts in turn, each by a network that has learnt "
            "the others; then all were learnt"
            if others
            else f"{judged:,} images by one that has learnt {len(fit):,}; then all were learnt"
        ),
    }


def _train_folds(setup: Setup, stages: Path, epochs: int) -> Folds:
    """Networks that have not learnt one part each, trained as the final one was."""
    config, images = setup.config, setup.images
    numbers = images.train
    folds = images.folds(numbers, config.folds, config.seed)
    logits = torch.zeros(len(numbers), setup.num_classes)
    calibrated = logits.clone()
    for fold in range(config.folds):
        file = stages / f"fold{fold}.logits.safetensors"
        own = folds == fold
        if not file.is_file():
            place = stages / f"fold{fold}"
            network = _train(setup, numbers[~own], place)
            if epochs:
                after = stages / f"fold{fold}-end-to-end"
                network = _train_end_to_end(setup, numbers[~own], place, after, epochs)
            said = setup.predict(network.tensors, numbers[own], what=f"fold {fold + 1}")
            kept = {"logits": said, "temperature": torch.tensor(network.temperature)}
            replace_atomically(file, safetensors.torch.save(kept))
            for network_of_fold in stages.glob(f"fold{fold}*{_FILE}"):
                if network_of_fold != file:
                    network_of_fold.unlink()
        kept = safetensors.torch.load_file(file)
        logits[own] = kept["logits"]
        calibrated[own] = kept["logits"] / kept["temperature"]
        found = score(calibrated[own], images.labels[numbers[own]])
        name = "mAP" if images.source.multi_label else "top-1"
        value = found["map" if images.source.multi_label else "accuracy"]
        report(f"fold {fold + 1} of {config.folds}: {name} {value:.1%} of {int(own.sum()):,}")
    return Folds(images=numbers, folds=folds, logits=logits, calibrated=calibrated)
