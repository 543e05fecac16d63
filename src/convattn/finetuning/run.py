"""A finetuning from its configuration to a run folder with its report."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from convattn.config import DataConfig, FinetuneConfig, as_flags
from convattn.data import describe_skipped
from convattn.data.counts import by_severity, count, judge_counts
from convattn.exceptions import Interrupted
from convattn.files import make_numbered_folder, replace_atomically
from convattn.finetuning import frozen as first_stage
from convattn.finetuning.frozen import Choice, Maps
from convattn.finetuning.images import Images, open_images
from convattn.finetuning.network import (
    divided,
    join_tensors,
    network_cfg,
    predict,
    run_config,
    save_network,
)
from convattn.finetuning.page import Judged, Told, render_report
from convattn.finetuning.results import (
    FinetunedMultiLabelResult,
    FinetunedResult,
    fit_temperature,
    fit_thresholds,
    judge,
)
from convattn.models.map_classifier import MapClassifier, map_classifier
from convattn.modes import default_device
from convattn.probing.backbone import Frozen
from convattn.probing.scores import score, training_loss
from convattn.runs import Run
from convattn.text import aligned, report

_CONFIG, _STAGES, _REPORT = "finetune.json", "stages", "report.html"
_SHARE_OF_LARGER = 0.4  # of the time, for the pass over larger images


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

    @property
    def cfg(self) -> dict[str, Any]:
        """What the network needs of an image."""
        return network_cfg(self.maps.frozen, self.images)


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
    def temperature(self) -> float:
        """What its logits are divided by."""
        return fit_temperature(self.logits, self.labels)

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Of images of several classes."""
        if self.labels.ndim == 1:
            return None
        return fit_thresholds((self.logits / self.temperature).sigmoid(), self.labels)

    @property
    def loss(self) -> float:
        """Of the validation images, after the temperature."""
        return float(training_loss(self.logits.double() / self.temperature, self.labels))

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


class Clock:
    """The time that a finetuning has, and has spent."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._start = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds."""
        return 60 * self.minutes - (time.monotonic() - self._start)


def run_finetune(config: FinetuneConfig) -> FinetunedRun:
    """Train, test and explain a classifier, and leave a run folder.

    Args:
        config: What is asked for.

    Raises:
        ValueError: If it does not fit the data or the network, or the time is too short.
        FileExistsError: If ``config.out`` exists.
        Interrupted: If the user stopped it.
    """
    images = open_images(config)
    frozen = first_stage.open_frozen(config, config.image_size)
    _check(images, frozen, config)
    folder = _new_folder(config.out)
    replace_atomically(folder / _CONFIG, config.to_json().encode())
    return _go_on(config, folder, images)


def resume_finetune(folder: Path) -> FinetunedRun:
    """Go on with a finetuning that was stopped or killed.

    Args:
        folder: Its folder.

    Raises:
        FileNotFoundError: If it is the folder of none.
        ValueError: If it has ended.
    """
    file = folder / _CONFIG
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} is the folder of no finetuning: {file} does not exist; name one that "
            "`convattn finetune` has made"
        )
    if (folder / _REPORT).exists():
        raise ValueError(f"{folder} has ended: nothing is left to resume; see {folder / _REPORT}")
    config = FinetuneConfig.from_json(file.read_text(encoding="utf-8"), str(file))
    return _go_on(config, folder, open_images(config))


def _new_folder(out: str | None) -> Path:
    if out is None:
        return make_numbered_folder(Path("runs") / "finetune")
    folder = Path(out)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise FileExistsError(
            f"{folder} exists and is never overwritten; give another --out, or go on with "
            f"`convattn finetune --resume {folder}`"
        ) from None
    return folder


def _check(images: Images, frozen: Frozen, config: FinetuneConfig) -> None:
    channels = frozen.cfg["input_size"][0]
    if channels != images.source.in_chans:
        raise ValueError(
            f"{frozen.name} takes images of {channels} channels, and these have "
            f"{images.source.in_chans}; take a network that was trained on such"
        )
    if config.class_weights == "balanced" and images.source.multi_label:
        raise ValueError(
            "class-weights balanced is for images of one class each, and these may have several; "
            "leave it out"
        )
    images.split(images.train, config.valid_share, config.seed)
    seconds = first_stage.seconds_of_pass(frozen, len(images.all), default_device(config.device))
    if seconds > 60 * config.minutes:
        raise ValueError(
            f"minutes={config.minutes:g} is too little: {frozen.name} alone takes about "
            f"{seconds / 60:.0f} minutes to see {len(images.all):,} images once; give at least "
            f"--minutes {2 * seconds / 60:.0f}, or fewer images (--data.num-train)"
        )


def _go_on(config: FinetuneConfig, folder: Path, images: Images) -> FinetunedRun:
    clock, stages = Clock(config.minutes), folder / _STAGES
    stages.mkdir(exist_ok=True)
    try:
        setup = _with_maps(config, images, stages, clock)
        folds = _train_folds(setup, stages) if config.folds else None
        network = _train(setup, images.train, stages / "final.safetensors")
        return _finish(setup, folder, network, folds)
    except KeyboardInterrupt:
        again = f"convattn finetune --resume {shlex.quote(str(folder))}"
        raise Interrupted(f"interrupted; go on with: {again}") from None


def _with_maps(config: FinetuneConfig, images: Images, stages: Path, clock: Clock) -> Setup:
    """The backbone at the size that validation images like best, and its maps."""
    own = first_stage.open_frozen(config, config.image_size)
    device = default_device(config.device)
    fit, valid = images.split(images.train, config.valid_share, config.seed)
    file = stages / "size.json"
    if file.is_file():
        side = json.loads(file.read_text())["size"]
        frozen = first_stage.open_frozen(config, side)
        return Setup(
            config=config, images=images, maps=first_stage.map_images(config, frozen, images)
        )
    losses: dict[int, float] = {}
    found: dict[int, Maps] = {}
    for side in first_stage.possible_sizes(config, images, own.cfg["input_size"][1]):
        frozen = first_stage.open_frozen(config, side)
        if losses:
            seconds = first_stage.seconds_of_pass(frozen, len(images.all), device)
            if seconds > _SHARE_OF_LARGER * clock.left:
                report(f"images of {side} x {side} are not tried: they take {seconds:.0f} s")
                break
        found[side] = first_stage.map_images(config, frozen, images)
        choice = first_stage.choose(found[side], fit, valid, config, len(images.class_names))
        losses[side] = choice.outcome.loss
        report(f"images of {side} x {side}: validation loss {choice.outcome.loss:.4f}")
    side = min(losses, key=losses.__getitem__)
    replace_atomically(file, json.dumps({"size": side, "losses": losses}).encode())
    return Setup(config=config, images=images, maps=found[side])


def _train(setup: Setup, images: Tensor, file: Path) -> Network:
    """A network trained on images, as chosen by a part of them; what is kept is not done again."""
    if file.is_file():
        return Network.read(file)
    config, maps = setup.config, setup.maps
    fit, valid = setup.images.split(images, config.valid_share, config.seed)
    choice = first_stage.choose(maps, fit, valid, config, setup.num_classes)
    part = first_stage.train_head(maps, fit, choice, config, setup.num_classes)
    logits = first_stage.logits_of(maps, part, valid)
    whole = first_stage.train_head(maps, images, choice, config, setup.num_classes)
    network = Network(
        tensors=join_tensors(maps.frozen, whole),
        logits=logits,
        labels=setup.images.labels[valid],
        told=_told_of_head(choice, len(fit), len(valid)),
    )
    network.write(file)
    return network


def _told_of_head(choice: Choice, num_fit: int, num_valid: int) -> dict[str, Any]:
    return {
        "stage": "frozen",
        "rate": choice.trial.lr,
        "epochs": choice.outcome.epoch,
        "grid": sorted(choice.grid.items()),
        "fit": num_fit,
        "valid": num_valid,
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


def _train_folds(setup: Setup, stages: Path) -> Folds:
    config, images = setup.config, setup.images
    numbers = images.train
    folds = images.folds(numbers, config.folds, config.seed)
    logits = torch.zeros(len(numbers), setup.num_classes)
    calibrated = logits.clone()
    for fold in range(config.folds):
        file = stages / f"fold{fold}.logits.safetensors"
        own = folds == fold
        if not file.is_file():
            network = _train(setup, numbers[~own], stages / f"fold{fold}.safetensors")
            said = _predict(setup, network.tensors, numbers[own], what=f"fold {fold + 1}")
            kept = {"logits": said, "temperature": torch.tensor(network.temperature)}
            replace_atomically(file, safetensors.torch.save(kept))
            (stages / f"fold{fold}.safetensors").unlink()
        kept = safetensors.torch.load_file(file)
        logits[own] = kept["logits"]
        calibrated[own] = kept["logits"] / kept["temperature"]
        found = score(calibrated[own], images.labels[numbers[own]])
        name = "mAP" if images.source.multi_label else "top-1"
        value = found["map" if images.source.multi_label else "accuracy"]
        report(f"fold {fold + 1} of {config.folds}: {name} {value:.1%} of {int(own.sum()):,}")
    return Folds(images=numbers, folds=folds, logits=logits, calibrated=calibrated)


def _predict(setup: Setup, tensors: Mapping[str, Tensor], numbers: Tensor, *, what: str) -> Tensor:
    config = run_config(setup.config, setup.maps.frozen, setup.num_classes)
    model = _build(config.model.model_args, setup.num_classes, setup.cfg)
    model.load_state_dict(dict(tensors))
    return predict(model, setup.images, numbers, setup.config, setup.cfg, what=what)


def _build(arguments: Mapping[str, Any], num_classes: int, cfg: Mapping[str, Any]) -> MapClassifier:
    channels = cfg["input_size"][0]
    return map_classifier(num_classes=num_classes, in_chans=channels, **arguments)


# ----------------------------------------------------------------------------------- the folder


def _finish(setup: Setup, folder: Path, network: Network, folds: Folds | None) -> FinetunedRun:
    config, images, cfg = setup.config, setup.images, setup.cfg
    thresholds = network.thresholds
    if thresholds is not None:
        cfg = {**cfg, "thresholds": list(thresholds)}
    save_network(folder / "model.safetensors", divided(network.tensors, network.temperature), cfg)
    run = run_config(config, setup.maps.frozen, setup.num_classes)
    replace_atomically(folder / "config.json", run.to_json().encode())
    model = Run.open(folder).load_model()
    calibrated = predict(model, images, images.test, config, cfg, what="test")
    result = judge(
        calibrated * network.temperature,
        calibrated,
        images.labels[images.test],
        class_names=images.class_names,
        temperature=network.temperature,
        thresholds=thresholds,
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
        replace_atomically(folder / "out_of_fold.csv", _out_of_fold(folds, images).encode())
    judged = Judged(
        numbers=images.test,
        probabilities=_probabilities(calibrated, images),
        labels=images.labels[images.test],
    )
    replace_atomically(folder / "evaluation.json", result.to_json().encode())
    told = _told(setup, folder, network)
    page = render_report(result, judged, images, model, told, thresholds)
    replace_atomically(folder / _REPORT, page)
    replace_atomically(folder / "report.md", _markdown(result, told).encode())
    return FinetunedRun(folder=folder, result=result, report=folder / _REPORT)


def _out_of_fold(folds: Folds, images: Images) -> str:
    """``out_of_fold.csv``: of each image its path, class, fold, and all probabilities."""
    names, several = images.class_names, images.source.multi_label
    shares = _probabilities(folds.calibrated, images)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "fold", *([] if several else ["prediction"]), *names])
    for place, number in enumerate(folds.images.tolist()):
        label, row = images.labels[number], shares[place]
        there = label.nonzero()[:, 0].tolist() if several else [int(label)]
        said = [] if several else [names[int(row.argmax())]]
        writer.writerow(
            [
                images.name(number),
                ";".join(names[one] for one in there),
                int(folds.folds[place]) + 1,
                *said,
                *(f"{share:.6f}" for share in row.tolist()),
            ]
        )
    return text.getvalue()


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
            ("images", f"{setup.maps.image_size} x {setup.maps.image_size}"),
            ("pool", config.pool),
            ("trained", "pool and classifier" if told["stage"] == "frozen" else "all of it"),
            ("learning rate", f"{told['rate']:.2g}"),
            ("epochs", str(told["epochs"])),
            ("learnt and validated by", f"{told['fit']:,} and {told['valid']:,} images, then all"),
            ("seed", str(config.seed)),
        ],
        curves=[_grid_curve(told["grid"])],
        command=_command(config),
        folder=shlex.quote(str(folder)),
    )


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
        "lines": [{"name": "loss", "points": points}],
    }


def _markdown(result: FinetunedResult | FinetunedMultiLabelResult, told: Told) -> str:
    rows = "\n".join(f"    {line}" for line in aligned(result.rows()))
    return f"# {told.title}\n\n{told.summary}\n\n{rows}\n\nSee report.html.\n\n    {told.command}\n"
