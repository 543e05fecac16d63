"""Semantic segmentation as a Lightning task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convattn.config import TrainConfig
from convattn.data.dense_transforms import segmentation_test_transform, segmentation_train_transform
from convattn.data.masks import IGNORED
from convattn.results import Results
from convattn.runs import starting_cfg
from convattn.segmentation import segmentation_loss
from convattn.segmentation.dataset import open_parted, pretrained_cfg, test_batches
from convattn.segmentation.evaluation import (
    SegmentationMetrics,
    evaluate_segmentation,
    report_absent,
)
from convattn.segmentation.prediction import draw_beside_truth
from convattn.segmentation.testing import write_details
from convattn.train.dense import DenseJob, DenseTask, judged_by
from convattn.train.task import Curves

_NUM_IMAGES = 8

Batch = tuple[list[Tensor], list[Tensor]]


class SegmentationTask(DenseTask):
    """Trains one of our segmenters, by name.

    Args:
        model: Name in ``SEGMENTERS``.
        cfg: The ``pretrained_cfg`` that the run will have: classes, sizes, mean and deviation.
        arguments: As of ``DenseTask``.

    Shape:
        (B, 3, H, W) -> (B, num_classes, H, W).
    """

    curves = Curves(
        shares={
            "val_miou": "mIoU",
            "val_mean_accuracy": "mean accuracy",
            "val_pixel_accuracy": "pixel accuracy",
        },
        measure="images",
        loss="cross-entropy (nats)",
    )

    def __init__(self, model: str, *, cfg: Mapping[str, Any], **arguments: Any) -> None:
        super().__init__(model, cfg=cfg, **arguments)
        self.metrics = SegmentationMetrics(class_names=cfg["label_names"])
        self._pixels = torch.zeros(len(cfg["label_names"]), dtype=torch.int64)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, num_classes, H, W) logits."""
        return self.model(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch of images and masks of one size."""
        images, masks = (torch.stack(part) for part in batch)
        if self.current_epoch == 0:
            shown = masks[masks != IGNORED].flatten().bincount(minlength=len(self._pixels))
            self._pixels += shown.cpu()
        return segmentation_loss(self.model(images.to(memory_format=self.memory_format)), masks)

    def on_train_epoch_end(self) -> None:
        """Tell of classes that the first epoch has not shown."""
        if self.current_epoch == 0 and self.trainer.world_size == 1 and self._pixels.any():
            report_absent(self.metrics.class_names, self._pixels.tolist(), "the first epoch")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the pixels of one batch of test images."""
        self.metrics.update(self.model, *batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was counted over all test images."""
        found = self.metrics.compute()
        for column in ("val_loss", *self.curves.shares):
            self.log(column, found[column.removeprefix("val_")], logger=False)
        self.metrics.reset()


class SegmentationJob(DenseJob[SegmentationTask]):
    """Trains a segmenter on images with a class for every pixel.

    Args:
        config: The run; the number of classes is taken from the data.

    Raises:
        ValueError: If the configuration and the data do not fit.
    """

    def __init__(self, config: TrainConfig) -> None:
        config.check_task("segmentation")
        self.source = source = open_parted(config.data, seed=config.seed)
        self.curves = judged_by(source, SegmentationTask.curves)
        same_size = source.image_size is not None and config.data.scale_jitter is None
        if config.data.crop_size is None and not same_size:
            raise ValueError(
                f"the training images of {config.data.name} differ in size, and those of a batch "
                "must not: give data.crop_size, for example 512 512"
            )
        cfg = pretrained_cfg(config.data, source, starting_cfg(config.model))
        seen = {"image_size": cfg["image_size"], "mean": cfg["mean"], "std": cfg["std"]}
        transform = segmentation_train_transform(
            **seen,
            scale_jitter=config.data.scale_jitter,
            crop_size=config.data.crop_size,
            hflip=config.data.hflip,
            color_jitter=config.data.color_jitter,
        )
        super().__init__(
            config.with_classes(len(source.class_names)),
            train=source.train.with_transform(transform),
            val=(source.val or source.test).with_transform(segmentation_test_transform(**seen)),
            cfg=cfg,
            task=SegmentationTask,
        )

    def show(self, model: nn.Module, folder: Path, *, title: str) -> tuple[Results, Sequence[Path]]:
        """Test the saved segmenter and draw what it finds beside the truth.

        Args:
            model: As anyone would load it.
            folder: Where ``predictions.png`` goes, and what ``write_details`` writes.
            title: Stands above.
        """
        result, metrics = evaluate_segmentation(
            model,
            test_batches(self.config.data, self.source, self.data.cfg),
            class_names=self.source.class_names,
        )
        out = folder / "predictions.png"
        draw_beside_truth(model.cpu(), self.source.test, _NUM_IMAGES, out, title=title)
        details = write_details(folder, result, metrics, title=title)
        return result, (out, *(file for file in details if file.suffix == ".png"))
