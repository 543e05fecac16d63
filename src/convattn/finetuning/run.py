"""A finetuning from its configuration to a run folder with its report."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from convattn.classification.out_of_fold import OUT_OF_FOLD, out_of_fold_table
from convattn.config import DataConfig, FinetuneConfig, TrainConfig, as_flags
from convattn.data import describe_skipped
from convattn.data.counts import by_severity, count, judge_counts
from convattn.exceptions import Interrupted
from convattn.files import new_run_folder, replace_atomically, unfinished
from convattn.finetuning import end_to_end as second_stage
from convattn.finetuning import frozen as first_stage
from convattn.finetuning.end_to_end import Trained
from convattn.finetuning.frozen import Choice, Maps, View
from convattn.finetuning.images import Images, Split, open_images
from convattn.finetuning.network import divided, predict
from convattn.finetuning.page import Judged, Told, render_report
from convattn.finetuning.results import (
    FinetunedMultiLabelResult,
    FinetunedResult,
    fit_rejection,
    fit_temperature,
    fit_thresholds,
    judge,
)
from convattn.modes import default_device
from convattn.ownership import owned
from convattn.probing.backbone import Frozen, check_channels
from convattn.probing.heads import Training
from convattn.probing.network import join_tensors, network_cfg, run_config, save_network
from convattn.probing.scores import score
from convattn.runs import Run
from convattn.runs.build import build_trained
from convattn.runs.card import write_card
from convattn.text import aligned, json_text, markdown_text, report
from convattn.weights import write_weights

_CONFIG, _STAGES, _REPORT = "finetune.json", "stages", "report.html"
_FILE = ".safetensors"
_SHARE_OF_LARGER = 0.4  # of the time left, for another view of the images


@dataclass(frozen=True, kw_only=True)
class FinetunedRun:
    """A finished finetuning."""

    folder: Path
    """The run folder."""
    result: FinetunedResult | FinetunedMultiLabelResult
    """Of the saved network on the test images, or of all images out of fold."""
    report: Path
    """The page."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setup:
    """What every network of a finetuning has in common."""

    config: FinetuneConfig
    """What was asked for."""
    images: Images
    """All images."""
    maps: Maps
    """The frozen backbone and its maps."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.images.class_names)

    @cached_property
    def cfg(self) -> dict[str, Any]:
        """What the network needs of an image."""
        return network_cfg(self.maps.frozen, self.images.source)

    @cached_property
    def run_config(self) -> TrainConfig:
        """What ``config.json`` of the run folder holds."""
        config = self.config
        return run_config(
            "finetune",
            config.data,
            self.maps.frozen,
            config.pool,
            self.num_classes,
            seed=config.seed,
        )

    def splits(self, images: Tensor) -> list[Split]:
        """Numbers of those to learn, and of those to choose by; the whole network by the first.

        Args:
            images: Numbers of images.
        """
        return self.images.splits(images, self.config.val_share, self.config.seed)

    def build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """The network with trained tensors.

        Args:
            tensors: By its names.
        """
        config = self.run_config
        model = build_trained(config.model, cfg=self.cfg, augment=config.augment)
        model.load_state_dict(dict(tensors))
        return model

    def write(self, tensors: Mapping[str, Tensor], file: Path) -> None:
        """Keep tensors of the network with what it needs of an image, to be trained on.

        Args:
            tensors: By its names.
            file: Where.
        """
        write_weights(file, tensors, {"pretrained_cfg": json_text(self.cfg)})

    def train_end_to_end(self, start: Path, folder: Path, **words: Any) -> Trained:
        """The second stage.

        Args:
            start: What ``write`` kept.
            folder: Of its checkpoints.
            **words: As ``end_to_end.train_end_to_end`` has them.
        """
        return second_stage.train_end_to_end(
            self.run_config, self.config, self.images, start, folder, **words
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A trained network, and what another one, that had not learnt them, said of some images."""

    tensors: Mapping[str, Tensor]
    """By the names of ``map_classifier``."""
    logits: Tensor
    """(V, K), of the validation images."""
    labels: Tensor
    """Their classes."""
    told: Mapping[str, Any]
    """How it was trained, for the report."""

    @property
    def epochs(self) -> int:
        """How many it was trained end to end; 0 if only its head was."""
        return int(self.told.get("end to end", 0))

    @property
    def drop_rate(self) -> float:
        """Before the classifier, in training."""
        return float(self.told.get("dropout", 0.0))

    @cached_property
    def temperature(self) -> float:
        """What its logits are divided by."""
        return fit_temperature(self.logits, self.labels)

    @cached_property
    def thresholds(self) -> tuple[float, ...] | None:
        """Of images of several classes."""
        if self.labels.ndim == 1:
            return None
        return fit_thresholds((self.logits / self.temperature).sigmoid(), self.labels)

    def reject_below(self, target: float) -> float | None:
        """Of images of one class, the least probability that is to be trusted, if there is one.

        Args:
            target: As of ``fit_rejection``.
        """
        if self.labels.ndim == 2:
            return None
        confidences, said = (self.logits.double() / self.temperature).softmax(1).max(1)
        return fit_rejection(confidences, said == self.labels, target)

    def write(self, file: Path) -> None:
        """Keep it, whole or not at all."""
        tensors = {**self.tensors, "valid.logits": self.logits, "valid.labels": self.labels}
        content = safetensors.torch.save(
            {name: x.contiguous() for name, x in tensors.items()}, {"told": json.dumps(self.told)}
        )
        replace_atomically(file, content)

    @classmethod
    def read(cls, file: Path) -> Network:
        """What ``write`` kept."""
        with safetensors.safe_open(file, "pt") as opened:
            told = json.loads(opened.metadata()["told"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        return cls(
            logits=tensors.pop("valid.logits"),
            labels=tensors.pop("valid.labels"),
            tensors=tensors,
            told=told,
        )


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
        folder, config=_CONFIG, end=_REPORT, what="finetuning", command="convattn finetune"
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
        return _finish(setup, folder, network, folds)
    except (KeyboardInterrupt, Interrupted):
        again = f"convattn finetune --resume {shlex.quote(str(folder))}"
        raise Interrupted(f"interrupted; go on with: {again}") from None


def _with_maps(
    config: FinetuneConfig, images: Images, own: Frozen, stages: Path, deadline: float
) -> tuple[Setup, Choice | None]:
    """The backbone as validation images like it best to see, its maps, and its head.

    The head is None where there was no choice.
    """
    file = stages / "view.json"
    if file.is_file():
        views = [View(**json.loads(file.read_text()))]
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
        setup, choice = Setup(config=config, images=images, maps=maps), None
        if len(views) > 1:
            started = time.monotonic()
            choice = _choose(setup, images.train)
            seconds = seconds or time.monotonic() - started
            losses[view] = choice.outcome.loss
            report(f"images of {view}: validation loss {choice.outcome.loss:.4f}")
        found[view] = setup, choice
    best = min(losses, key=losses.__getitem__) if losses else views[0]
    replace_atomically(file, json.dumps(dataclasses.asdict(best)).encode())
    return found[best]


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
    return first_stage.choose(setup.maps, splits, setup.config, setup.num_classes)


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
        logits=_predict(setup, trained.tensors, valid, what="validation"),
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Folds:
    """What networks said of images that they had not learnt."""

    images: Tensor
    """(N,), their numbers."""
    folds: Tensor
    """(N,), of which fold each is."""
    logits: Tensor
    """(N, K)."""
    calibrated: Tensor
    """(N, K), each fold's divided by its own temperature."""


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
            said = _predict(setup, network.tensors, numbers[own], what=f"fold {fold + 1}")
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


def _predict(setup: Setup, tensors: Mapping[str, Tensor], numbers: Tensor, *, what: str) -> Tensor:
    model = setup.build(tensors)
    return predict(model, setup.images, numbers, setup.config, setup.cfg, what=what)


# ----------------------------------------------------------------------------------- the folder


def _finish(setup: Setup, folder: Path, network: Network, folds: Folds | None) -> FinetunedRun:
    config, images, cfg = setup.config, setup.images, setup.cfg
    thresholds = network.thresholds
    if thresholds is not None:
        cfg = {**cfg, "thresholds": list(thresholds)}
    reject_below = network.reject_below(config.kept_target)
    if reject_below is not None:
        cfg = {**cfg, "reject_below": reject_below}
    tensors = divided(network.tensors, network.temperature)
    save_network(folder, tensors, cfg, setup.run_config)
    model = Run.open(folder).load_model()
    calibrated = predict(model, images, images.test, config, cfg, what="test")
    result = judge(
        calibrated * network.temperature,
        calibrated,
        images.labels[images.test],
        class_names=images.class_names,
        temperature=network.temperature,
        thresholds=thresholds,
        reject_below=reject_below,
        test_drawn=images.source.test_drawn,
    )
    if folds is not None:
        outside = judge(
            folds.logits,
            folds.calibrated,
            images.labels[folds.images],
            class_names=images.class_names,
            temperature=network.temperature,
            thresholds=thresholds,
            judged="out-of-fold",
            folds=folds.folds,
        )
        result = dataclasses.replace(result, out_of_fold=outside)  # type: ignore[arg-type]  # of its kind
        content = _out_of_fold(folds, images).encode(errors="surrogateescape")
        replace_atomically(folder / OUT_OF_FOLD, content)
    judged = Judged(
        numbers=images.test,
        probabilities=_probabilities(calibrated, images),
        labels=images.labels[images.test],
    )
    replace_atomically(folder / "evaluation.json", result.to_json().encode())
    write_card(folder)
    told = _told(setup, folder, network)
    page = render_report(result, judged, images, model, told, thresholds)
    replace_atomically(folder / "report.md", _markdown(result, told).encode())
    replace_atomically(folder / _REPORT, page)  # the last: what has it has ended
    return FinetunedRun(folder=folder, result=result, report=folder / _REPORT)


def _out_of_fold(folds: Folds, images: Images) -> str:
    numbers = folds.images
    return out_of_fold_table(
        [images.name(number) for number in numbers.tolist()],
        images.labels[numbers],
        folds.folds,
        _probabilities(folds.calibrated, images),
        images.class_names,
    )


def _probabilities(logits: Tensor, images: Images) -> Tensor:
    return logits.sigmoid() if images.source.multi_label else logits.softmax(1)


def _told(setup: Setup, folder: Path, network: Network) -> Told:
    config, images, frozen = setup.config, setup.images, setup.maps.frozen
    source, told = images.source, network.told
    skipped = describe_skipped(source.skipped, source.skipped_names)
    data = shlex.quote(config.data.root or source.name)
    return Told(
        title=f"{data}: {', '.join(images.class_names[:6])}"
        + (" ..." if len(images.class_names) > 6 else ""),
        summary=(
            f"{frozen.name} with {frozen.origin}, {len(source.train):,} training and "
            f"{len(source.test):,} test images of {len(images.class_names):,} classes; the test "
            "images were looked at once, at the end."
        ),
        findings=by_severity(judge_counts(count(source))),
        notes=[*([skipped] if skipped else []), *source.notes],
        settings=[
            ("backbone", f"{frozen.name}, {frozen.origin}"),
            ("images", str(setup.maps.view)),
            ("pool", config.pool),
            ("trained", "pool and classifier" if not network.epochs else "the whole network"),
            ("learning rate of the head", f"{told['rate']:.2g}"),
            ("dropout of the head", f"{network.drop_rate:.2g}"),
            ("epochs of the head", str(told["epochs"])),
            *([("epochs end to end", str(network.epochs))] if network.epochs else []),
            ("validated", told["validated"]),
            *_rejection_setting(config, network),
            ("seed", str(config.seed)),
        ],
        curves=[_grid_curve(told["grid"]), *_epoch_curves(told.get("curve", ()))],
        command=_command(config),
        folder=shlex.quote(str(folder)),
    )


def _rejection_setting(config: FinetuneConfig, network: Network) -> list[tuple[str, str]]:
    if network.labels.ndim == 2:
        return []
    below, target = network.reject_below(config.kept_target), f"{config.kept_target:.1%}"
    said = (
        f"none: no probability makes {target} of the validation images above it right"
        if below is None
        else f"below {below:.3f}, so that {target} of the validation images kept are right"
    )
    return [("rejected by predict --reject-below auto", said)]


def _command(config: FinetuneConfig) -> str:
    """What makes the same network again, in another folder."""
    data = config.data
    again = dataclasses.replace(config, out=None, data=dataclasses.replace(data, root=None))
    default = FinetuneConfig(data=DataConfig(name=data.name))
    words = [data.root or data.name, *as_flags(again, default)]
    return f"convattn finetune {shlex.join(words)}"


def _grid_curve(grid: Sequence[Sequence[float]]) -> dict[str, Any]:
    losses = [loss for _, loss in grid]
    top = max(losses) or 1.0
    steps = max(1, len(grid) - 1)
    points = [(place / steps, loss / top) for place, loss in enumerate(losses)]
    return {
        "title": "Validation loss by learning rate",
        "left": f"{grid[0][0]:.2g}",
        "right": f"{grid[-1][0]:.2g}",
        "top": f"{top:.3f}",
        "bottom": "0",
        "lines": [{"points": points}],
    }


def _epoch_curves(rows: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Losses of the second stage, if there was one."""
    if len(rows) < 2:
        return []
    epochs, training, validation = zip(*rows, strict=True)
    top = max(*training, *validation) or 1.0
    span = epochs[-1] - epochs[0]
    return [
        {
            "title": "Loss end to end: on validation images, and (amber) of the training",
            "left": f"epoch {epochs[0]:g}",
            "right": f"epoch {epochs[-1]:g}",
            "top": f"{top:.3f}",
            "bottom": "0",
            "lines": [
                {
                    "points": [
                        ((epoch - epochs[0]) / span, loss / top)
                        for epoch, loss in zip(epochs, losses, strict=True)
                    ]
                }
                for losses in (validation, training)
            ],
        }
    ]


def _markdown(result: FinetunedResult | FinetunedMultiLabelResult, told: Told) -> str:
    rows = "\n".join(f"    {line}" for line in aligned(result.rows()))
    title, summary = markdown_text(told.title), markdown_text(told.summary)
    return f"# {title}\n\n{summary}\n\n{rows}\n\nSee report.html.\n\n    {told.command}\n"
