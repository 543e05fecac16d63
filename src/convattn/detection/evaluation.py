"""How good a detector is: COCO's average precision of boxes and masks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from convattn.modes import eval_mode
from convattn.results import Results, Rows, percentages, worst_class


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


class DetectionMetrics(MeanAveragePrecision):
    """COCO's average precision, gathered image by image.

    A metric of torchmetrics: it moves between devices, and is gathered over processes when it is
    computed. At most 100 detections a class and image count, the best ones, as COCO has it.

    Args:
        class_names: Name of each class from label 1.
        has_masks: Rate the masks as well.
        gathered: Gather what all processes have seen when it is computed.
    """

    # More than 100 detections are usual, since COCO's limit holds for each class.
    warn_on_many_detections = False

    def __init__(
        self, *, class_names: Sequence[str], has_masks: bool, gathered: bool = True
    ) -> None:
        super().__init__(
            iou_type=("bbox", "segm") if has_masks else "bbox",
            # The metric's own ones are float32 and miss an IoU or a recall that lies on them.
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
            class_metrics=True,
            backend="faster_coco_eval",
            sync_on_compute=gathered,
        )
        self.class_names = tuple(class_names)
        self.has_masks = has_masks

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

        def of_masks(name: str) -> float | None:
            return _defined(found[f"segm_{name}"]) if self.has_masks else None

        return {
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
        }

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
) -> DetectionResult:
    """Test a detector; it is left as it was, but on ``device``.

    The numbers are pycocotools' for the same boxes, labels, scores and masks.

    Args:
        model: The detector, of torchvision's contract.
        loader: Batches: images (3, H, W) of values 0..1, and the truth of each.
        class_names: Name of each class from label 1, without the background.
        has_masks: Rate the masks as well; model and data must have some.
        device: Where to compute; None takes the GPU if there is one.

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
    return DetectionResult(**found, images_per_second=found["num_images"] / seconds)


def _defined(value: Tensor) -> float | None:
    """COCO's -1 says that there was nothing to average."""
    return None if value < 0 else value.item()
