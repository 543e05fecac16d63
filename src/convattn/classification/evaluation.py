"""How good a classifier is, and whether its attention lies on the object."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.classification.predictions import (
    NUM_RANKS,
    THRESHOLD,
    MultiLabelPredictions,
    Predictions,
    join,
)
from convattn.explanation import attention_layers, attention_maps, energy_in_box, peak_in_box
from convattn.modes import check_finite, default_device, eval_mode
from convattn.results import Results, Rows, percentages, worst_class

_BINS = 15


@dataclass(frozen=True, kw_only=True)
class ClassificationResult(Results):
    """What ``evaluate_classification`` found; shares lie between 0 and 1."""

    num_classes: int
    """Classes that the network tells apart."""
    loss: float
    """Mean cross-entropy in nats."""
    top1: float
    """Share of images whose class is the most likely one."""
    top5: float | None
    """Share of images whose class is among the five most likely ones; None among five classes or
    fewer."""
    balanced_accuracy: float
    """Mean of ``per_class``: every class counts alike."""
    macro_f1: float
    """Mean of the classes' F1; a class that no image has, nor is taken to have, is left out."""
    ece: float | None
    """Expected calibration error: how far the probability of the likeliest class is from the share
    that is right, over 15 bins of equal width; None where probabilities are not known."""
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

    @property
    def headline(self) -> str:
        """What counts most, in a few words."""
        return f"{self.top1:.1%} right"

    def rows(self) -> Rows:
        """Names and values for people."""
        shares = {
            "attention peak inside the object's box": self.peak_in_box,
            "attention inside the object's box": self.energy_in_box,
        }
        return [
            ("images", f"{self.num_images:,}"),
            *_classes_tested(len(self.per_class), self.num_classes),
            *percentages({"top-1": self.top1, "top-5": self.top5}),
            *percentages({"balanced accuracy": self.balanced_accuracy, "macro F1": self.macro_f1}),
            *percentages({f"ImageNet-ReaL top-1, {self.num_real:,} images": self.real_top1}),
            ("cross-entropy", f"{self.loss:.4f}"),
            *percentages({"calibration error": self.ece}),
            *percentages(shares),
            *worst_class(self.per_class),
            ("images a second", f"{self.images_per_second:,.0f}"),
        ]


@dataclass(frozen=True, kw_only=True)
class MultiLabelResult(Results):
    """What ``evaluate_classification`` found where images have several classes."""

    num_classes: int
    """Classes that the network tells apart."""
    loss: float
    """Mean binary cross-entropy in nats, over images and classes."""
    map: float | None
    """Mean of the classes' average precisions; None if no image has a class."""
    macro_f1: float
    """Mean of the classes' F1 where a score from 0.5 on counts as a yes."""
    per_class: dict[str, float]
    """Average precision of each class; one without images is left out."""
    images_per_second: float
    """Images a second, loading included."""

    @property
    def headline(self) -> str:
        """What counts most, in a few words."""
        return f"macro F1 {self.macro_f1:.1%}" if self.map is None else f"mAP {self.map:.1%}"

    def rows(self) -> Rows:
        """Names and values for people."""
        return [
            ("images", f"{self.num_images:,}"),
            *_classes_tested(len(self.per_class), self.num_classes),
            *percentages({"mAP": self.map, f"macro F1 at {THRESHOLD}": self.macro_f1}),
            ("binary cross-entropy", f"{self.loss:.4f}"),
            *worst_class(self.per_class),
            ("images a second", f"{self.images_per_second:,.0f}"),
        ]


def _classes_tested(tested: int, num_classes: int) -> Rows:
    """How many classes have images, where some have none."""
    if tested == num_classes:
        return []
    return [("classes with images", f"{tested:,} of {num_classes:,}")]


def predict_batches(
    model: nn.Module,
    loader: Iterable[Sequence[Tensor]],
    *,
    num_classes: int,
    boxes: Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Predictions] | Iterator[MultiLabelPredictions]:
    """What a classifier says of the images, a batch at a time.

    Until the last batch is taken the model is in evaluation mode; it stays on ``device``.

    Args:
        model: The classifier.
        loader: Batches of normalised images (B, C, H, W) and class numbers (B,), in order; or,
            where images have several classes, (B, K) of 0 and 1.
        num_classes: Classes of the data.
        boxes: The object of each image, in the loader's order and in pixels of what the model
            sees: (N, 4), xmin, ymin, xmax, ymax, the maxima one past the object.
        device: Where to compute; None takes the GPU if there is one.
        dtype: Number format; bfloat16 is autocast's over the weights as they are.

    Raises:
        ValueError: If the model has another number of classes than the data.
    """
    device = default_device(device)
    model.to(device)
    if boxes is not None and not attention_layers(model):
        boxes = None  # nothing that looks anywhere
    seen = 0
    with eval_mode(model):
        for images, labels in loader:
            there = None if boxes is None else boxes[seen : seen + len(images)]
            with (
                torch.inference_mode(),
                torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
            ):
                predictions = _predict(model, images.to(device), labels, there, num_classes)
            yield predictions
            seen += len(images)


def _predict(
    model: nn.Module, images: Tensor, labels: Tensor, boxes: Tensor | None, num_classes: int
) -> Any:
    peaks = energies = None
    if boxes is None:
        logits = model(images)
    else:
        logits, maps, grid = attention_maps(model, images)
        boxes = boxes.to(images.device)
        peaks = peak_in_box(maps, boxes, grid).cpu()
        energies = energy_in_box(maps, boxes, grid).double().cpu()
    check_num_classes(logits.shape[1], num_classes)
    check_finite(logits)
    found = predictions_of(logits.float(), labels)
    if boxes is None or isinstance(found, MultiLabelPredictions):
        return found
    return replace(found, peaks=peaks, energies=energies)


def predictions_of(logits: Tensor, labels: Tensor) -> Predictions | MultiLabelPredictions:
    """What logits say of images.

    Args:
        logits: (N, K).
        labels: (N,) class numbers, or (N, K) of 0 and 1.
    """
    if labels.ndim == 1:
        losses = F.cross_entropy(logits, labels.to(logits.device), reduction="none")
        return Predictions(
            labels=labels.cpu(),
            classes=logits.topk(min(NUM_RANKS, logits.shape[1]), dim=1).indices.cpu(),
            losses=losses.double().cpu(),
            confidences=logits.softmax(1).amax(1).double().cpu(),
        )
    truths = labels.to(logits.device, logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, truths, reduction="none")
    return MultiLabelPredictions(
        labels=labels.bool().cpu(),
        scores=logits.sigmoid().cpu(),
        losses=losses.double().mean(1).cpu(),
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
    predictions: Predictions | MultiLabelPredictions,
    *,
    class_names: Sequence[str],
    real: Sequence[Sequence[int]] | None = None,
    images_per_second: float,
) -> ClassificationResult | MultiLabelResult:
    """Sum up what a classifier said.

    Args:
        predictions: Of all images.
        class_names: Name of each class number; no two are the same.
        real: The ImageNet-ReaL classes of each image; one with none is left out there.
        images_per_second: Images a second that it took.
    """
    if isinstance(predictions, MultiLabelPredictions):
        return _summarize_several(predictions, class_names, images_per_second)
    right = predictions.right
    hits, counts = (
        torch.bincount(labels, minlength=len(class_names)).tolist()
        for labels in (predictions.labels[right[:, 0]], predictions.labels)
    )
    firsts = predictions.classes[:, 0].tolist()
    known = [first in these for first, these in zip(firsts, real or (), strict=False) if these]
    peaks, energies = predictions.peaks, predictions.energies
    per_class = {
        name: hit / count
        for name, hit, count in zip(class_names, hits, counts, strict=True)
        if count
    }
    return ClassificationResult(
        num_images=len(predictions),
        num_classes=len(class_names),
        loss=math.fsum(predictions.losses.tolist()) / len(predictions),
        top1=sum(hits) / len(predictions),
        top5=(int(right.any(1).sum()) / len(predictions) if len(class_names) > NUM_RANKS else None),
        balanced_accuracy=math.fsum(per_class.values()) / len(per_class),
        macro_f1=macro_f1(predictions.classes[:, 0], predictions.labels),
        ece=(
            None
            if predictions.confidences is None
            else calibration_error(predictions.confidences, right[:, 0])
        ),
        real_top1=sum(known) / len(known) if known else None,
        num_real=len(known),
        per_class=per_class,
        peak_in_box=None if peaks is None else int(peaks.sum()) / len(peaks),
        energy_in_box=None if energies is None else math.fsum(energies.tolist()) / len(energies),
        images_per_second=images_per_second,
    )


def calibration_error(confidences: Tensor, right: Tensor) -> float:
    """The expected calibration error (https://arxiv.org/abs/1706.04599) over 15 bins.

    Args:
        confidences: Probability of the likeliest class, (N,).
        right: Whether that is the right one, (N,) bool.
    """
    bins = (confidences * _BINS).ceil().long().clamp(1, _BINS) - 1
    gaps = torch.zeros(_BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, confidences.double() - right.double())
    return float(gaps.abs().sum()) / len(right)


def _summarize_several(
    predictions: MultiLabelPredictions, class_names: Sequence[str], images_per_second: float
) -> MultiLabelResult:
    found = average_precisions(predictions.scores, predictions.labels)
    per_class = {class_names[number]: precision for number, precision in found.items()}
    return MultiLabelResult(
        num_images=len(predictions),
        num_classes=len(class_names),
        loss=math.fsum(predictions.losses.tolist()) / len(predictions),
        map=math.fsum(found.values()) / len(found) if found else None,
        macro_f1=macro_f1(predictions.scores >= THRESHOLD, predictions.labels),
        per_class=per_class,
        images_per_second=images_per_second,
    )


def average_precisions(scores: Tensor, labels: Tensor) -> dict[int, float]:
    """The average precision of each class that an image has, by its number.

    Args:
        scores: How likely each class is, (N, K), between 0 and 1.
        labels: Which classes an image has, (N, K) of 0 and 1.
    """
    from torchmetrics.functional.classification import binary_average_precision

    labels = labels.long()
    having = labels.any(0).nonzero()[:, 0].tolist()
    return {one: float(binary_average_precision(scores[:, one], labels[:, one])) for one in having}


def macro_f1(said: Tensor, labels: Tensor) -> float:
    """The mean of the classes' F1; one that no image has, nor is taken to have, is left out.

    Args:
        said: What the images are taken for: (N,) class numbers, or (N, K) bool.
        labels: What they are, alike.
    """
    if labels.ndim == 1:
        both = torch.cat([said, labels])
        hits = torch.bincount(labels[said == labels], minlength=int(both.max()) + 1)
        marked = torch.bincount(both)
    else:
        there = labels.bool()
        hits, marked = (said & there).sum(0), said.sum(0) + there.sum(0)
    return float((2 * hits.double() / marked)[marked > 0].mean()) if marked.any() else 0.0


def evaluate_classification(
    model: nn.Module,
    loader: Iterable[Sequence[Tensor]],
    *,
    class_names: Sequence[str],
    boxes: Tensor | None = None,
    device: torch.device | str | None = None,
) -> ClassificationResult | MultiLabelResult:
    """Test a classifier; the model is left as it was, but on ``device``.

    Args:
        model: The classifier.
        loader: Batches of normalised images (B, C, H, W) and class numbers (B,), in order; or,
            where images have several classes, (B, K) of 0 and 1.
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
    parts: list[Any] = list(batches)
    if not parts:
        raise ValueError("there is no image to evaluate; name a data set with test images")
    predictions = join(parts)
    return summarize(
        predictions,
        class_names=class_names,
        images_per_second=len(predictions) / (time.perf_counter() - start),
    )
