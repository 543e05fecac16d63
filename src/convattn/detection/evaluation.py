"""How good a detector is: COCO's average precision of boxes and masks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert, box_iou

from convattn.modes import eval_mode
from convattn.results import Results, Rows, Table, percentage, percentages, worst_class

_IOU = 0.5  # of the curves and the confusion matrix
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Precision over recall of the boxes of one class at an IoU of 0.50, as COCO samples it."""

    recall: NDArray[np.float64]
    """(101,): 0 to 1."""
    precision: NDArray[np.float64]
    """(101,): the best that is reached at this recall or a higher one; 0 where none is."""
    score: NDArray[np.float64]
    """(101,): the highest threshold of scores with this recall; 0 where none has it."""


@dataclass(frozen=True, kw_only=True)
class DetectionResult(Results):
    """What ``evaluate_detection`` found.

    Precisions and recalls lie between 0 and 1; one that is not defined, since there is no object of
    its kind, is None.
    """

    num_objects: int
    """Objects in them; crowds are not counted, as finding them is neither right nor wrong."""
    map: float | None
    """Average precision of the boxes, the mean over the classes and over IoUs of 0.50 to 0.95."""
    map50: float | None
    """The same where an IoU of 0.50 is enough."""
    map75: float | None
    """The same where an IoU of 0.75 is needed."""
    ap50: float | None
    """``map50``, by the name that it has for each class."""
    map_small: float | None
    """``map`` of objects of less than 32 x 32 pixels, by the truth's area."""
    map_medium: float | None
    """``map`` of objects between these and 96 x 96 pixels."""
    map_large: float | None
    """``map`` of larger objects."""
    mar100: float | None
    """Average recall of at most 100 boxes a class and image."""
    segm_map: float | None
    """``map`` of the masks; None also for a model without."""
    segm_map50: float | None
    """``map50`` of the masks."""
    segm_map75: float | None
    """``map75`` of the masks."""
    per_class: dict[str, float]
    """``map`` of each class; a class without objects is left out."""
    per_class_ap50: dict[str, float]
    """``ap50`` of each of these."""
    per_class_objects: dict[str, int]
    """Objects of each class, of all that there are."""
    images_per_second: float
    """Images a second, loading included."""

    def rows(self) -> Rows:
        """Names and values for people; what is not defined is left out."""
        shares = {
            "mAP": self.map,
            "mAP at IoU 0.50": self.map50,
            "mAP at IoU 0.75": self.map75,
            "mAP, small objects": self.map_small,
            "mAP, medium objects": self.map_medium,
            "mAP, large objects": self.map_large,
            "recall, 100 boxes": self.mar100,
            "mask mAP": self.segm_map,
            "mask mAP at IoU 0.50": self.segm_map50,
            "mask mAP at IoU 0.75": self.segm_map75,
        }
        return [
            ("images", f"{self.num_images:,}"),
            ("objects", f"{self.num_objects:,}"),
            *percentages(shares),
            *worst_class(self.per_class),
            ("images a second", f"{self.images_per_second:,.1f}"),
        ]

    def class_table(self) -> Table:
        """Objects, AP50 and AP of each class, the boxes'."""
        rows = [
            (
                name,
                f"{count:,}",
                percentage(self.per_class_ap50.get(name)),
                percentage(self.per_class.get(name)),
            )
            for name, count in self.per_class_objects.items()
        ]
        return [("class", "objects", "AP50", "AP"), *rows]


class DetectionMetrics(MeanAveragePrecision):
    """COCO's average precision, gathered image by image.

    A metric of torchmetrics: it moves between devices, and is gathered over processes when it is
    computed. At most 100 detections a class and image count, the best ones, as COCO has it.

    Args:
        class_names: Name of each class from label 1.
        has_masks: Rate the masks as well.
        gathered: Gather what all processes have seen when it is computed.

    Attributes:
        curves: ``PrecisionRecall`` by name of the class, once it was computed; a class without
            objects has none.
    """

    curves: dict[str, PrecisionRecall]

    # More than 100 detections are usual, since COCO's limit holds for each class.
    warn_on_many_detections = False

    def __init__(
        self, *, class_names: Sequence[str], has_masks: bool, gathered: bool = True
    ) -> None:
        super().__init__(
            iou_type=("bbox", "segm") if has_masks else "bbox",
            # The metric's own ones are float32 and miss an IoU or a recall that lies on them.
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=_RECALLS.tolist(),
            class_metrics=True,
            extended_summary=True,
            backend="faster_coco_eval",
            sync_on_compute=gathered,
        )
        self.class_names = tuple(class_names)
        self.has_masks = has_masks
        self.curves = {}

    def update(
        self, predictions: Iterable[Mapping[str, Tensor]], targets: Iterable[Mapping[str, Tensor]]
    ) -> None:
        """Take note of some images; masks are kept run-length encoded.

        Args:
            predictions: What the model said of each: boxes, labels, scores, and masks (N, 1, H, W)
                of probabilities.
            targets: The truth of each: boxes, labels, area, iscrowd, and masks (N, H, W).

        Raises:
            ValueError: If a label is beyond the names, or there are not as many predictions as
                targets.
        """
        for prediction, target in zip(predictions, targets, strict=True):
            super().update([self._predicted(prediction)], [self._true(target)])

    def compute(self) -> dict[str, Any]:
        """The fields of a ``DetectionResult``, without its speed."""
        found = super().compute()
        boxes = "bbox_" if self.has_masks else ""
        # A single class comes as a number without dimension.
        labels, precisions = found["classes"].reshape(-1), found[f"{boxes}map_per_class"]
        per_class = zip(labels.tolist(), map(_defined, precisions.reshape(-1)), strict=True)

        self.curves = self._curves(found[f"{boxes}precision"], found[f"{boxes}scores"], labels)

        def of_masks(name: str) -> float | None:
            return _defined(found[f"segm_{name}"]) if self.has_masks else None

        return {
            "ap50": _defined(found[f"{boxes}map_50"]),
            "num_images": len(self.groundtruth_labels),
            "num_objects": int(sum((crowds == 0).sum() for crowds in self.groundtruth_crowds)),
            "map": _defined(found[f"{boxes}map"]),
            "map50": _defined(found[f"{boxes}map_50"]),
            "map75": _defined(found[f"{boxes}map_75"]),
            "map_small": _defined(found[f"{boxes}map_small"]),
            "map_medium": _defined(found[f"{boxes}map_medium"]),
            "map_large": _defined(found[f"{boxes}map_large"]),
            "mar100": _defined(found[f"{boxes}mar_100"]),
            "segm_map": of_masks("map"),
            "segm_map50": of_masks("map_50"),
            "segm_map75": of_masks("map_75"),
            "per_class": {
                self.class_names[label - 1]: value
                for label, value in per_class
                if value is not None
            },
            "per_class_ap50": {
                name: float(curve.precision.mean()) for name, curve in self.curves.items()
            },
            "per_class_objects": self._count_objects(),
        }

    def confusion(self, threshold: float) -> NDArray[np.int64]:
        """Which class is taken for which, counted box by box at an IoU of 0.50.

        Boxes are paired whatever their classes, those that overlap most first. One that is left and
        covers a crowd counts nowhere.

        Args:
            threshold: Found boxes of a lower score do not count.

        Returns:
            (K + 1, K + 1): row the true class, column the found one; the last row is of what is no
            object, the last column of what was not found.
        """
        nothing = len(self.class_names)
        counts = np.zeros((nothing + 1, nothing + 1), np.int64)
        for boxes, labels, scores, true_boxes, true_labels, crowds in zip(
            self.detection_box,
            self.detection_labels,
            self.detection_scores,
            self.groundtruth_box,
            self.groundtruth_labels,
            self.groundtruth_crowds,
            strict=True,
        ):
            # The metric keeps left, top, width and height.
            boxes, true_boxes = (box_convert(one, "xywh", "xyxy") for one in (boxes, true_boxes))
            kept, is_object = scores >= threshold, crowds == 0
            found, truth = (labels[kept] - 1).cpu(), (true_labels[is_object] - 1).cpu()
            places, partners = _pair(boxes[kept], true_boxes[is_object])
            np.add.at(counts, (truth[partners], found[places]), 1)
            missed = np.setdiff1d(np.arange(len(truth)), partners)
            np.add.at(counts, (truth[missed], nothing), 1)
            free = np.setdiff1d(np.arange(len(found)), places)
            in_crowd = _cover(boxes[kept], true_boxes[~is_object])
            np.add.at(counts, (nothing, found[free[~in_crowd[free]]]), 1)
        return counts

    def _curves(
        self, precision: Tensor, scores: Tensor, labels: Tensor
    ) -> dict[str, PrecisionRecall]:
        """Of (IoUs, 101, classes, areas, limits) those at 0.50, of all areas and 100 boxes."""
        by_class = zip(
            labels.tolist(),
            precision[0, :, :, 0, -1].double().numpy().T,
            scores[0, :, :, 0, -1].double().numpy().T,
            strict=True,
        )
        return {
            self.class_names[label - 1]: PrecisionRecall(
                recall=_RECALLS, precision=ours, score=np.maximum(thresholds, 0)
            )
            for label, ours, thresholds in by_class
            if (ours >= 0).all()
        }

    def _count_objects(self) -> dict[str, int]:
        counts = np.zeros(len(self.class_names), np.int64)
        for labels, crowds in zip(self.groundtruth_labels, self.groundtruth_crowds, strict=True):
            np.add.at(counts, (labels[crowds == 0] - 1).cpu(), 1)
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    def _predicted(self, prediction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        item = {
            **self._named(prediction),
            "scores": prediction["scores"].detach().to(self.device, torch.float32),
        }
        if self.has_masks:
            item["masks"] = (prediction["masks"].detach().squeeze(1) > 0.5).to(torch.uint8)
        return item

    def _true(self, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        item = {
            **self._named(target),
            "area": target["area"].to(self.device),
            "iscrowd": target["iscrowd"].to(self.device, torch.int64),
        }
        if self.has_masks:
            item["masks"] = target["masks"].as_subclass(Tensor)
        return item

    def _named(self, item: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Boxes and labels of a prediction or a truth, whose labels all have a name."""
        labels = item["labels"].to(self.device)
        if labels.numel() and not 1 <= labels.min() <= labels.max() <= len(self.class_names):
            raise ValueError(
                f"labels {labels.min()} to {labels.max()} where the data has classes 1 to "
                f"{len(self.class_names)}; evaluate the model on the data that it was trained on"
            )
        boxes = item["boxes"].detach().as_subclass(Tensor).to(self.device, torch.float32)
        return {"boxes": boxes, "labels": labels}


def evaluate_detection(
    model: nn.Module,
    loader: Iterable[tuple[Sequence[Tensor], Sequence[Mapping[str, Any]]]],
    *,
    class_names: Sequence[str],
    has_masks: bool,
    device: torch.device | str | None = None,
) -> tuple[DetectionResult, DetectionMetrics]:
    """Test a detector; it is left as it was, but on ``device``.

    The numbers are pycocotools' for the same boxes, labels, scores and masks.

    Args:
        model: The detector, of torchvision's contract.
        loader: Batches: images (3, H, W) of values 0..1, and the truth of each.
        class_names: Name of each class from label 1, without the background.
        has_masks: Rate the masks as well; model and data must have some.
        device: Where to compute; None takes the GPU if there is one.

    Returns:
        What was found, and the metrics that know curves and confusion, too.

    Raises:
        ValueError: If the model knows more classes than the data, or there is no image.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(device)
    # This process alone tests, whoever trained beside it.
    metrics = DetectionMetrics(class_names=class_names, has_masks=has_masks, gathered=False)
    start = time.perf_counter()
    with eval_mode(model), torch.inference_mode():
        for images, targets in loader:
            metrics.update(model([image.to(device) for image in images]), targets)
    seconds = time.perf_counter() - start
    if not metrics.update_called:
        raise ValueError("there is no image to evaluate; name a data set with test images")
    found = metrics.compute()
    return DetectionResult(**found, images_per_second=found["num_images"] / seconds), metrics


def _pair(found: Tensor, true: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of boxes (N, 4) and (M, 4) that belong together, those that overlap most first."""
    overlaps = box_iou(found, true).cpu().numpy()
    pairs = np.argwhere(overlaps >= _IOU)
    order = np.argsort(-overlaps[tuple(pairs.T)], kind="stable")
    taken: dict[int, int] = {}
    for place, partner in pairs[order].tolist():
        if place not in taken and partner not in taken.values():
            taken[place] = partner
    return np.array(list(taken), np.int64), np.array(list(taken.values()), np.int64)


def _cover(found: Tensor, crowds: Tensor) -> NDArray[np.bool_]:
    """Which of the boxes (N, 4) lie half or more in one of the crowds (M, 4)."""
    if not len(found) or not len(crowds):
        return np.zeros(len(found), bool)
    corner = torch.maximum(found[:, None, :2], crowds[None, :, :2])
    sides = (torch.minimum(found[:, None, 2:], crowds[None, :, 2:]) - corner).clamp(min=0)
    own = (found[:, 2:] - found[:, :2]).prod(1).clamp(min=torch.finfo(found.dtype).tiny)
    return (sides.prod(2) / own[:, None] >= _IOU).any(1).cpu().numpy()


def _defined(value: Tensor) -> float | None:
    """COCO's -1 says that there was nothing to average."""
    return None if value < 0 else value.item()
