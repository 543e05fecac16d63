"""How good a segmenter is: mean intersection over union, accuracy, and each class's own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from convattn.data.masks import IGNORED
from convattn.modes import check_finite, default_device, eval_mode
from convattn.results import Results, Rows, Table, percentage, percentages, worst_class
from convattn.segmentation.upernet import resize_logits, sliding_window
from convattn.text import list_names, report


@dataclass(frozen=True, kw_only=True)
class SegmentationResult(Results):
    """What ``evaluate_segmentation`` found; shares lie between 0 and 1.

    All of them come from the counts of the whole set, and none is a mean over images. One that is
    not defined, since no pixel has a class, is None.
    """

    loss: float | None
    """Mean cross-entropy of a pixel in nats."""
    miou: float | None
    """Intersection over union, the mean over the classes that the truth or the model has."""
    mean_accuracy: float | None
    """Share of a class's pixels that are found, the mean over the classes of the truth."""
    pixel_accuracy: float | None
    """Share of all pixels whose class is right."""
    per_class: dict[str, float]
    """Intersection over union of each class; one that neither truth nor model has is left out."""
    per_class_accuracy: dict[str, float]
    """Share of each class's pixels that are found; a class without pixels is left out."""
    per_class_pixels: dict[str, int]
    """Pixels of each class in the truth, of all that there are."""
    images_per_second: float
    """Images a second, loading included."""

    def rows(self) -> Rows:
        """Names and values for people; what is not defined is left out."""
        shares = {
            "mIoU": self.miou,
            "mean accuracy": self.mean_accuracy,
            "pixel accuracy": self.pixel_accuracy,
        }
        return [
            ("images", f"{self.num_images:,}"),
            *percentages(shares),
            *([] if self.loss is None else [("cross-entropy", f"{self.loss:.4f}")]),
            *worst_class(self.per_class),
            ("images a second", f"{self.images_per_second:,.1f}"),
        ]

    def class_table(self) -> Table:
        """Pixels, IoU and accuracy of each class."""
        rows = [
            (
                name,
                f"{count:,}",
                percentage(self.per_class.get(name)),
                percentage(self.per_class_accuracy.get(name)),
            )
            for name, count in self.per_class_pixels.items()
        ]
        return [("class", "pixels", "IoU", "accuracy"), *rows]


class SegmentationMetrics(MulticlassConfusionMatrix):
    """Which class was taken for which, gathered image by image.

    A metric of torchmetrics: it moves between devices, and is summed over processes when it is
    computed.

    Args:
        class_names: Name of each class from 0.
        gathered: Sum over all processes when it is computed.
    """

    num_images: Tensor
    loss: Tensor
    confmat: Tensor

    def __init__(self, *, class_names: Sequence[str], gathered: bool = True) -> None:
        # Its own checks sort all pixels of each image.
        super().__init__(
            len(class_names),
            ignore_index=IGNORED,
            validate_args=False,
            sync_on_compute=gathered,
        )
        self.class_names = tuple(class_names)
        self.add_state("num_images", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("loss", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(
        self,
        model: nn.Module,
        images: Sequence[Tensor],
        masks: Sequence[Tensor],
        window: tuple[int, int] | None = None,
    ) -> None:
        """Show some images to a segmenter and count its pixels.

        Args:
            model: In evaluation mode, where the images and this metric are.
            images: Normalised, (3, h, w); those of one size run together.
            masks: (H, W) each: the class of every pixel, 255 where it does not count. Logits are
                resized to the mask before the best class is taken.
            window: As in ``evaluate_segmentation``.

        Raises:
            ValueError: If the model has another number of classes than the data, or a mask has
                classes beyond it.
        """
        for indices in _of_one_size(images):
            batch = torch.stack([images[index] for index in indices])
            logits = model(batch) if window is None else sliding_window(model, batch, window)
            for one, index in zip(logits, indices, strict=True):
                self._count(one[None], masks[index].as_subclass(Tensor)[None])

    def _count(self, logits: Tensor, mask: Tensor) -> None:
        num_classes = len(self.class_names)
        if logits.shape[1] != num_classes:
            raise ValueError(
                f"the model has {logits.shape[1]} classes and the data {num_classes}; name the "
                "data that it was trained on, or train it on these"
            )
        if ((mask >= num_classes) & (mask != IGNORED)).any():
            raise ValueError(
                f"a mask has class {mask[mask != IGNORED].max()} and the data has classes 0 to "
                f"{num_classes - 1}; give pixels without a class {IGNORED}"
            )
        check_finite(logits)
        logits = resize_logits(logits.float(), mask.shape[1:])
        super().update(logits, mask)
        self.loss += F.cross_entropy(logits, mask, ignore_index=IGNORED, reduction="sum")
        self.num_images += 1

    def compute(self) -> dict[str, Any]:
        """The fields of a ``SegmentationResult``, without its speed."""
        confusion = super().compute().cpu().double()  # (truth, prediction)
        hits, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        # Where there is nothing to divide by, the share is NaN and not defined.
        ious = hits / (truth + predicted - hits)
        return {
            "num_images": int(self.num_images),
            "loss": _defined(self.loss.cpu() / truth.sum()),
            "miou": _defined(ious.nanmean()),
            "mean_accuracy": _defined((hits / truth).nanmean()),
            "pixel_accuracy": _defined(hits.sum() / truth.sum()),
            "per_class": {
                name: iou.item()
                for name, iou in zip(self.class_names, ious, strict=True)
                if not iou.isnan()
            },
            "per_class_accuracy": {
                name: share.item()
                for name, share in zip(self.class_names, hits / truth, strict=True)
                if not share.isnan()
            },
            "per_class_pixels": {
                name: int(count) for name, count in zip(self.class_names, truth, strict=True)
            },
        }


def report_absent(names: Sequence[str], pixels: Sequence[int], where: str) -> None:
    """Tell on stderr of classes that no pixel is of.

    Args:
        names: Of all classes.
        pixels: How many each has.
        where: What was looked at.
    """
    absent = [repr(name) for name, count in zip(names, pixels, strict=True) if not count]
    if absent:
        report(
            f"{len(absent)} of {len(names)} classes have none of the {sum(pixels):,} pixels of "
            f"{where}: {list_names(absent)}; add some, or leave the classes out"
        )


def evaluate_segmentation(
    model: nn.Module,
    loader: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]],
    *,
    class_names: Sequence[str],
    device: torch.device | str | None = None,
    window: tuple[int, int] | None = None,
) -> tuple[SegmentationResult, SegmentationMetrics]:
    """Test a segmenter; it is left as it was, but on ``device``.

    Args:
        model: The segmenter: normalised images (B, 3, H, W) -> logits (B, classes, H, W).
        loader: Batches: normalised images (3, H, W), and the class of each pixel (H', W'), 255
            where it does not count. Logits are resized to the mask. Images of one size in a
            batch run together.
        class_names: Name of each class from 0.
        device: Where to compute; None takes the GPU if there is one.
        window: Height and width of what the model sees at once, as in ``sliding_window``; None
            shows it whole images.

    Returns:
        What was found, and the metrics, whose ``confmat`` (true, found) counts pixels.

    Raises:
        ValueError: If the model has another number of classes than the data, or there is no
            image.
    """
    device = default_device(device)
    model.to(device)
    # This process alone tests, whoever trained beside it.
    metrics = SegmentationMetrics(class_names=class_names, gathered=False).to(device)
    start = time.perf_counter()
    with eval_mode(model), torch.inference_mode():
        for images, masks in loader:
            metrics.update(
                model,
                [image.to(device) for image in images],
                [mask.to(device) for mask in masks],
                window,
            )
    seconds = time.perf_counter() - start
    if not metrics.update_called:
        raise ValueError("there is no image to evaluate; name a data set with test images")
    found = metrics.compute()
    return SegmentationResult(**found, images_per_second=found["num_images"] / seconds), metrics


def _of_one_size(images: Sequence[Tensor]) -> Iterable[list[int]]:
    """Numbers of the images of each size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(index)
    return groups.values()


def _defined(share: Tensor) -> float | None:
    return None if share.isnan() else share.item()
