"""Object detection and instance segmentation as a Lightning task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from convattn.config import TrainConfig
from convattn.data.dense_transforms import detection_test_transform, detection_train_transform
from convattn.detection import finds_masks
from convattn.detection.dataset import largest_object, open_parted, pretrained_cfg, test_batches
from convattn.detection.evaluation import DetectionMetrics, evaluate_detection
from convattn.detection.prediction import draw_beside_truth
from convattn.detection.testing import write_details
from convattn.results import Results
from convattn.runs import starting_cfg
from convattn.train.dense import DenseJob, DenseTask, judged_by
from convattn.train.task import Curves

_NUM_IMAGES = 8

Targets = list[dict[str, Any]]


class DetectionTask(DenseTask):
    """Trains one of our detectors, by name.

    Args:
        model: Name in ``DETECTORS``.
        cfg: The ``pretrained_cfg`` that the run will have: classes, sizes, mean and deviation.
        arguments: As of ``DenseTask``.
    """

    def __init__(self, model: str, *, cfg: Mapping[str, Any], **arguments: Any) -> None:
        super().__init__(model, cfg=cfg, **arguments)
        # Training images are resized by their transform, which jitters their scale.
        cast(Any, self.model).transform.resize_training = False
        self.curves = detection_curves(model)
        self.metrics = DetectionMetrics(
            class_names=cfg["label_names"], has_masks=finds_masks(model)
        )

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Images (3, H, W) of 0 to 1 -> boxes, labels, scores and masks of each."""
        return self.model(images)

    def training_step(self, batch: tuple[list[Tensor], Targets], batch_idx: int) -> Tensor:
        """The sum of the detector's losses on one batch."""
        images, targets = batch
        return torch.stack(list(self.model(images, targets).values())).sum()

    def validation_step(self, batch: tuple[list[Tensor], Targets], batch_idx: int) -> None:
        """Find the objects of one batch of test images."""
        images, targets = batch
        self.metrics.update(self.model(images), targets)

    def on_validation_epoch_end(self) -> None:
        """Log the average precision over all test images."""
        found = self.metrics.compute()
        for column in self.curves.shares:
            # Not defined, without any object to find: a curve needs a number.
            self.log(column, found[column.removeprefix("val_")] or 0.0, logger=False)
        self.metrics.reset()


def detection_curves(model: str) -> Curves:
    """What is shown of a detector's tests."""
    shares = {"val_map50": "box AP50", "val_map": "box AP"}
    if finds_masks(model):
        shares |= {"val_segm_map50": "mask AP50", "val_segm_map": "mask AP"}
    return Curves(shares=shares, measure="average precision", loss=None)


class DetectionJob(DenseJob[DetectionTask]):
    """Trains a detector on images with boxes, and masks if it wants them.

    Args:
        config: The run; the number of classes is taken from the data.

    Raises:
        ValueError: If the configuration and the data do not fit.
    """

    def __init__(self, config: TrainConfig) -> None:
        config.check_task("detection")
        self.source = source = open_parted(
            config.data, masks=finds_masks(config.model.name), seed=config.seed
        )
        self.curves = judged_by(source, detection_curves(config.model.name))
        cfg = pretrained_cfg(config.data, source, starting_cfg(config.model))
        cfg["largest_object"] = largest_object(source.train)
        transform = detection_train_transform(
            image_size=cfg["image_size"],
            max_size=cfg["max_size"],
            scale_jitter=config.data.scale_jitter,
            crop_size=config.data.crop_size,
            hflip=config.data.hflip,
            color_jitter=config.data.color_jitter,
        )
        super().__init__(
            config.with_classes(len(source.class_names)),
            train=source.train.with_transform(transform),
            val=(source.val or source.test).with_transform(detection_test_transform()),
            cfg=cfg,
            task=DetectionTask,
        )

    def show(self, model: nn.Module, folder: Path, *, title: str) -> tuple[Results, Sequence[Path]]:
        """Test the saved detector and draw what it finds beside the truth.

        Args:
            model: As anyone would load it.
            folder: Where ``predictions.png`` goes, and what ``write_details`` writes.
            title: Stands above.
        """
        result, metrics = evaluate_detection(
            model,
            test_batches(self.config.data, self.source),
            class_names=self.source.class_names,
            has_masks=self.source.has_masks,
        )
        out = folder / "predictions.png"
        draw_beside_truth(model.cpu(), self.source.test, _NUM_IMAGES, out, title=title)
        details = write_details(folder, result, metrics, title=title)
        return result, (out, *(file for file in details if file.suffix == ".png"))
