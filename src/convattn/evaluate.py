"""How good a trained network is, and whether its attention lies on the object.

Needs neither Lightning nor the training code: a run folder's ``config.json`` and
``model.safetensors`` are enough.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn import surgery
from convattn.classification.predictions import NUM_RANKS, Predictions
from convattn.detection import DETECTORS, create_detector
from convattn.explanation import attention_layers, attention_maps, energy_in_box, peak_in_box
from convattn.models.pyramid import FeatureLevels
from convattn.modes import eval_mode
from convattn.results import Results, Rows, percentages, worst_class
from convattn.segmentation import SEGMENTERS, create_segmenter
from convattn.text import nearest, one_line
from convattn.weights import (
    adapt_classifier,
    adapt_input_channels,
    load_checked,
    mismatch_error,
    read_metadata,
    read_weights,
    tensor_differences,
)


@dataclass(frozen=True, kw_only=True)
class Result(Results):
    """What ``evaluate`` found; shares lie between 0 and 1."""

    num_classes: int
    """Classes that the network tells apart."""
    loss: float
    """Mean cross-entropy in nats."""
    top1: float
    """Share of images whose class is the most likely one."""
    top5: float
    """Share of images whose class is among the five most likely ones."""
    real_top1: float | None
    """Share of images whose most likely class is one of ImageNet-ReaL's; None without them."""
    num_real: int
    """Images that ImageNet-ReaL has classes for."""
    per_class: dict[str, float]
    """top1 of each class; a class without images is left out."""
    peak_in_box: float | None
    """Share of images whose attention peaks inside the object's box; None without box or map."""
    energy_in_box: float | None
    """Mean share of the attention that lies inside the box; None without box or map."""
    images_per_second: float
    """Images a second, loading included."""

    def rows(self) -> Rows:
        """Names and values for people."""
        shares = {
            "attention peak inside the object's box": self.peak_in_box,
            "attention inside the object's box": self.energy_in_box,
        }
        return [
            ("images", f"{self.num_images:,}"),
            *self._classes_tested(),
            *percentages({"top-1": self.top1, "top-5": self.top5}),
            *percentages({f"ImageNet-ReaL top-1, {self.num_real:,} images": self.real_top1}),
            ("cross-entropy", f"{self.loss:.4f}"),
            *percentages(shares),
            *worst_class(self.per_class),
            ("images a second", f"{self.images_per_second:,.0f}"),
        ]

    def _classes_tested(self) -> Rows:
        """How many classes have images, where some have none."""
        tested = len(self.per_class)
        if tested == self.num_classes:
            return []
        return [("classes with images", f"{tested:,} of {self.num_classes:,}")]


def task_of(name: str) -> Literal["classification", "detection", "segmentation"]:
    """What a model is for, by its name.

    Args:
        name: Of a detector, a segmenter, or a classifier of timm's.
    """
    if name in DETECTORS:
        return "detection"
    return "segmentation" if name in SEGMENTERS else "classification"


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    own_classifier: bool = False,
    augment: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Timm's ``create_model`` with errors for people, trained weights and attention.

    Args:
        name: Name in timm's registry, with or without a ``.tag``.
        pretrained: Load the released weights of that name.
        checkpoint: Trained weights, as ``read_weights`` reads them: of the network as it is named
            here, which are loaded before attention is added, or of the network with it.
        own_classifier: Start with a new classifier if the checkpoint's has other classes, and with
            its first convolution adapted if its images have other channels.
        augment: Arguments of ``convattn.augment``, ``input_size`` among them, since position tables
            are made for it; None adds no attention.
        arguments: Arguments of the model; one that is None is left out.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If there is no such model, it has no released weights, refuses an argument or
            cannot be augmented, or the checkpoint is of another one.
    """
    if not timm.is_model(name):
        raise ValueError(
            f"unknown model {name!r}; the nearest is {nearest(name, timm.list_models())!r}"
        )
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise ValueError(f"model {name!r} refuses its arguments: {one_line(error)}") from error
    except RuntimeError as error:
        if not pretrained:
            raise
        raise ValueError(
            f"no released weights of {name!r} could be loaded ({one_line(error)}); "
            "name a file of weights (--weights, or --model.checkpoint in training), or start from "
            "random ones by leaving pretrained out"
        ) from error
    if checkpoint is None:
        return model if augment is None else surgery.augment(model, inplace=True, **augment)
    file, weights = read_weights(checkpoint)

    def fits() -> str:
        theirs = weights
        if own_classifier:
            theirs = adapt_input_channels(model, adapt_classifier(model, weights))
        differences = tensor_differences(theirs, model.state_dict())
        if not differences:
            model.load_state_dict(theirs)
        return differences

    differences = fits()
    if augment is None:
        if differences:
            raise mismatch_error(file, weights, differences)
        return model
    surgery.augment(model, inplace=True, **augment)
    if differences and fits():
        raise ValueError(
            f"{file} fits {name} neither without the attention that is asked for nor with it; "
            f"without it {differences}; create the model that it was saved from"
        )
    return model


def create_dense_model(
    name: str,
    *,
    cfg: Mapping[str, Any],
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    augment: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> nn.Module:
    """A detector or segmenter, with trained weights if there are some.

    Args:
        name: In ``DETECTORS`` or ``SEGMENTERS``.
        cfg: The ``pretrained_cfg`` that its run has or will have; it becomes the model's.
        backbone: Of the models that leave it open.
        backbone_args: Further arguments of the backbone.
        pretrained: Load the backbone's released weights.
        checkpoint: Trained weights, as ``read_weights`` reads them: of the same model, whose
            predictions start anew if it has other classes; or of a classifier that is its backbone.
        augment: Arguments of ``convattn.augment`` for the backbone; None adds no attention.
        arguments: Further arguments of the model; one that is None is left out.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If an argument does not fit, or the checkpoint is of another model.
    """
    given = {
        "backbone": backbone,
        "backbone_args": backbone_args,
        "augment": augment,
        **arguments,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if task_of(name) == "detection":
        model = create_detector(
            name,
            num_classes=cfg["num_classes"] + 1,  # torchvision's detectors count the background
            pretrained=pretrained,
            image_mean=cfg["mean"],
            image_std=cfg["std"],
            min_size=cfg["image_size"],
            max_size=cfg["max_size"],
            **given,
        )
    else:
        model = create_segmenter(
            name, num_classes=cfg["num_classes"], pretrained=pretrained, **given
        )
    if checkpoint is not None:
        _load_dense(model, checkpoint)
    model.pretrained_cfg = dict(cfg)  # type: ignore[assignment]
    return model


def _load_dense(model: nn.Module, checkpoint: Path) -> None:
    """Load the weights of the whole model, or those of its backbone alone.

    Layers that predict other classes stay as they are: they differ in their outputs only.
    """
    file, weights = read_weights(checkpoint)
    fresh = model.state_dict()
    fitting = {
        name: fresh[name] if name in fresh and _other_outputs(tensor, fresh[name]) else tensor
        for name, tensor in weights.items()
    }
    differences = tensor_differences(fitting, fresh)
    if not differences:
        model.load_state_dict(fitting)
        return
    (levels,) = (module for module in model.modules() if isinstance(module, FeatureLevels))
    own = levels.body.model.state_dict()
    # The classifier, and blocks behind the last map, are no part of a backbone.
    theirs = {name: tensor for name, tensor in weights.items() if name in own}
    missing = tensor_differences(theirs, own)
    if missing:
        raise ValueError(
            f"{file} fits neither the whole model ({differences}) nor its backbone ({missing}); "
            "create the model that it was saved from"
        )
    levels.body.model.load_state_dict(theirs)


def _other_outputs(theirs: Tensor, ours: Tensor) -> bool:
    return theirs.shape[:1] != ours.shape[:1] and theirs.shape[1:] == ours.shape[1:]


def augment_arguments(
    config: Mapping[str, Any], input_size: int | Sequence[int] | None
) -> dict[str, Any] | None:
    """What ``convattn.augment`` is called with for a run, None if it asks for no attention.

    Args:
        config: ``augment`` of its ``config.json``; a field that is left out keeps its default.
        input_size: What the network sees, as ``convattn.augment`` takes it.
    """
    if not config.get("pool") and not config.get("conv"):
        return None
    of_the_training = ("lr_scale", "freeze")
    arguments = {key: value for key, value in config.items() if key not in of_the_training}
    conv = list(config.get("conv", ()))
    return {**arguments, "conv": conv or None, "input_size": input_size}


def plan_model(name: str, augment: Mapping[str, Any], **arguments: Any) -> surgery.Plan:
    """What ``create_model`` would do to a network with the same ``augment``.

    Args:
        name: Name in timm's registry.
        augment: Arguments of ``convattn.plan``.
        arguments: Arguments of the model; one that is None is left out.

    Raises:
        ValueError: If there is no such model, or it refuses an argument.
    """
    try:
        with torch.device("meta"):
            return surgery.plan(create_model(name, **arguments), **augment)
    except (ValueError, RuntimeError):
        # Some networks compute something while they are made or run, which needs memory.
        return surgery.plan(create_model(name, **arguments), **augment)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model with trained weights; nothing in the file is run.

    Args:
        model: The network.
        path: As ``convattn.weights.read_weights`` takes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or its tensors are those of another model; names the first.
    """
    load_checked(model, *read_weights(path))


def load_run(folder: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The trained model of a run folder, in evaluation mode, and its configuration.

    ``model.pretrained_cfg`` holds the size, mean, standard deviation, interpolation and crop that
    its images need, and the names of its classes under ``label_names``, as timm's models do.

    Args:
        folder: What ``convattn train`` has made.

    Returns:
        The model on the CPU, and ``config.json`` as a dictionary.

    Raises:
        FileNotFoundError: If the folder is no run, or the run has not ended.
        ValueError: If its files contradict each other.
    """
    path = Path(folder)
    config_file, weights = path / "config.json", path / "model.safetensors"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"{path} is no run folder: it has no config.json; name a folder that `convattn train` "
            "has made"
        )
    if not weights.is_file():
        raise FileNotFoundError(
            f"{path} has no model.safetensors yet: its training has not ended; go on with "
            f"`convattn train --resume {path}`"
        )
    config: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    pretrained_cfg = json.loads(read_metadata(weights).get("pretrained_cfg", "{}"))
    spec = config["model"]
    augment = augment_arguments(config.get("augment", {}), pretrained_cfg.get("input_size"))
    if task_of(spec["name"]) != "classification":
        model = create_dense_model(
            spec["name"],
            cfg=pretrained_cfg,
            backbone=spec["backbone"],
            backbone_args=spec["backbone_args"] or None,
            augment=augment,
            **spec["model_args"],
        )
        load_weights(model, weights)
        return model.eval(), config
    model = create_model(
        spec["name"],
        num_classes=pretrained_cfg.get("num_classes", spec["num_classes"]),
        in_chans=pretrained_cfg.get("input_size", (3,))[0],
        drop_rate=spec["drop_rate"],
        drop_path_rate=spec["drop_path_rate"],
        augment=augment,
        **spec["model_args"],
    )
    load_weights(model, weights)
    # What timm needs besides, to save the model or to give it other classes.
    of_the_network = cast(Mapping[str, Any], model.pretrained_cfg)
    kept = {key: of_the_network[key] for key in ("architecture", "first_conv", "classifier")}
    model.pretrained_cfg = kept | pretrained_cfg
    return model.eval(), config


def make_numbered_folder(folder: Path) -> Path:
    """Make a folder, or where it is taken the first of its name with a number, from 2 on.

    Args:
        folder: The folder to make; its parents are made as well.

    Returns:
        The folder that was made; none is ever shared with another process.
    """
    for number in itertools.count(1):
        free = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with contextlib.suppress(FileExistsError):
            free.mkdir(parents=True)
            return free
    raise AssertionError("the numbers have no end")


def unused_name(name: str, used: set[str]) -> str:
    """The name, or the first numbered one that no file has yet, whatever the case.

    Args:
        name: Of a file, without its suffix.
        used: Names that are taken, in folded case; the new one is added.
    """
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    free = next(one for one in numbered if one.casefold() not in used)
    used.add(free.casefold())
    return free


def open_model(
    target: str,
    *,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """The trained model of a run folder or of a name, in evaluation mode.

    Args:
        target: A run folder, or a name in timm's registry.
        checkpoint: Weights of a model that is given by name; None takes its released ones.
        num_classes: Number of classes of that checkpoint; None takes the model's own.
        in_chans: Channels of the images of a model that is given by name; None takes its own.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such model, or its weights are those of another.
    """
    if Path(target).is_dir():
        return load_run(target)[0]
    return create_model(
        target,
        pretrained=checkpoint is None,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        num_classes=num_classes,
        in_chans=in_chans,
    ).eval()


def predict_batches(
    model: nn.Module,
    loader: Iterable[Sequence[Tensor]],
    *,
    num_classes: int,
    boxes: Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Predictions]:
    """What a classifier says of the images, a batch at a time.

    Until the last batch is taken the model is in evaluation mode; it stays on ``device``.

    Args:
        model: The classifier.
        loader: Batches of normalised images (B, C, H, W) and class numbers (B,), in order.
        num_classes: Classes of the data.
        boxes: The object of each image, in the loader's order and in pixels of what the model
            sees: (N, 4), xmin, ymin, xmax, ymax, the maxima one past the object.
        device: Where to compute; None takes the GPU if there is one.
        dtype: Number format; bfloat16 is autocast's over the weights as they are.

    Raises:
        ValueError: If the model has another number of classes than the data.
    """
    device = chosen_device(device)
    model.to(device)
    looks = boxes is not None and bool(attention_layers(model))
    seen = 0
    with eval_mode(model):
        for images, labels in loader:
            there = None if boxes is None or not looks else boxes[seen : seen + len(images)]
            with (
                torch.inference_mode(),
                torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
            ):
                predictions = _predict(model, images.to(device), labels, there, num_classes)
            yield predictions
            seen += len(images)


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device that is asked for, else the GPU if there is one.

    Args:
        device: A device or its name.
    """
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _predict(
    model: nn.Module, images: Tensor, labels: Tensor, boxes: Tensor | None, num_classes: int
) -> Predictions:
    peaks = energies = None
    if boxes is None:
        logits = model(images)
    else:
        logits, maps, grid = attention_maps(model, images)
        boxes = boxes.to(images.device)
        peaks = peak_in_box(maps, boxes, grid).cpu()
        energies = energy_in_box(maps, boxes, grid).double().cpu()
    check_num_classes(logits.shape[1], num_classes)
    logits = logits.float()
    losses = F.cross_entropy(logits, labels.to(logits.device), reduction="none")
    return Predictions(
        labels=labels.cpu(),
        classes=logits.topk(min(NUM_RANKS, num_classes), dim=1).indices.cpu(),
        losses=losses.double().cpu(),
        peaks=peaks,
        energies=energies,
    )


def check_num_classes(model: int, data: int) -> None:
    """Refuse a network for other classes than the data's.

    Args:
        model: Number of the network's outputs.
        data: Number of the data's classes.

    Raises:
        ValueError: If they differ.
    """
    if model != data:
        raise ValueError(
            f"the model has {model} classes and the data {data}; name the data that it was trained "
            "on, or train it on these"
        )


def summarize(
    predictions: Predictions,
    *,
    class_names: Sequence[str],
    real: Sequence[Sequence[int]] | None = None,
    images_per_second: float,
) -> Result:
    """Sum up what a classifier said.

    Args:
        predictions: Of all images.
        class_names: Name of each class number; no two are the same.
        real: The ImageNet-ReaL classes of each image; one with none is left out there.
        images_per_second: Images a second that it took.
    """
    right = predictions.right
    hits, counts = (
        torch.bincount(labels, minlength=len(class_names)).tolist()
        for labels in (predictions.labels[right[:, 0]], predictions.labels)
    )
    firsts = predictions.classes[:, 0].tolist()
    known = [first in these for first, these in zip(firsts, real or (), strict=False) if these]
    peaks, energies = predictions.peaks, predictions.energies
    return Result(
        num_images=len(predictions),
        num_classes=len(class_names),
        loss=math.fsum(predictions.losses.tolist()) / len(predictions),
        top1=sum(hits) / len(predictions),
        top5=int(right.any(1).sum()) / len(predictions),
        real_top1=sum(known) / len(known) if known else None,
        num_real=len(known),
        per_class={
            name: hit / count
            for name, hit, count in zip(class_names, hits, counts, strict=True)
            if count
        },
        peak_in_box=None if peaks is None else int(peaks.sum()) / len(peaks),
        energy_in_box=None if energies is None else math.fsum(energies.tolist()) / len(energies),
        images_per_second=images_per_second,
    )


def evaluate(
    model: nn.Module,
    loader: Iterable[Sequence[Tensor]],
    *,
    class_names: Sequence[str],
    boxes: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Result:
    """Test a classifier; the model is left as it was, but on ``device``.

    Args:
        model: The classifier.
        loader: Batches of normalised images (B, C, H, W) and class numbers (B,), in order.
        class_names: Name of each class number.
        boxes: The object of each image, in the loader's order and in pixels of what the model
            sees: (N, 4), xmin, ymin, xmax, ymax, the maxima one past the object.
        device: Where to compute; None takes the GPU if there is one.

    Raises:
        ValueError: If the model has another number of classes than the data, or there is no data.
    """
    start = time.perf_counter()
    batches = predict_batches(
        model, loader, num_classes=len(class_names), boxes=boxes, device=device
    )
    parts = list(batches)
    if not parts:
        raise ValueError("there is no image to evaluate; name a data set with test images")
    predictions = Predictions.cat(parts)
    return summarize(
        predictions,
        class_names=class_names,
        images_per_second=len(predictions) / (time.perf_counter() - start),
    )
