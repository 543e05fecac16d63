"""Image classification as a Lightning task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import timm.loss
import torch
import torchmetrics
from torch import Tensor, nn

from convattn.data import batch_mix
from convattn.evaluate import classifier_names, create_model
from convattn.surgery import freeze as freeze_all_but
from convattn.train.optim import create_optimizer, create_schedule
from convattn.train.seeding import derive_seed, seed_all


class ClassificationTask(L.LightningModule):
    """Trains one of timm's classifiers, convattn's own among them, by name.

    Everything is a plain value, so that ``load_from_checkpoint`` rebuilds the task alone.

    Args:
        model: Name in timm's registry.
        num_classes: Number of classes.
        in_chans: Channels of a picture.
        pretrained: Start from the released weights.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Chance that a residual branch is dropped.
        model_args: Further keyword arguments of the model.
        checkpoint: Trained weights to start from, with or without the attention that ``augment``
            adds; with other classes the classifier is new. Read now only: a reloaded task has its
            own.
        augment: Arguments of ``convattn.augment``; None adds no attention.
        freeze: Train only the added attention and the classifier.
        loss: ``cross_entropy`` or ``bce``.
        label_smoothing: Share of the target spread over all classes.
        mixup: alpha of mixup.
        cutmix: alpha of cutmix.
        epochs: Length of the schedule.
        optimizer_args: Arguments of ``create_optimizer``.
        schedule_args: Arguments of ``create_schedule`` but for the lengths.
        channels_last: Keep pictures and kernels channels-last.
        seed: Seed of dropout, drop path and mixup.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes).
    """

    def __init__(
        self,
        model: str,
        *,
        num_classes: int,
        in_chans: int = 3,
        pretrained: bool = False,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        model_args: Mapping[str, Any] | None = None,
        checkpoint: Path | None = None,
        augment: Mapping[str, Any] | None = None,
        freeze: bool = False,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        epochs: int = 1,
        optimizer_args: Mapping[str, Any] | None = None,
        schedule_args: Mapping[str, Any] | None = None,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["checkpoint"])
        self.model = create_model(
            model,
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            checkpoint=checkpoint,
            own_classifier=True,
            augment=augment,
            **(model_args or {}),
        )
        if freeze:
            freeze_all_but(self.model, trainable=classifier_names(self.model))
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        self.model.to(memory_format=self.memory_format)
        self.mix = batch_mix(
            mixup=mixup, cutmix=cutmix, label_smoothing=label_smoothing, num_classes=num_classes
        )
        self.loss = training_loss(loss, label_smoothing=label_smoothing, mixes=self.mix is not None)
        self.metrics = torchmetrics.MetricCollection(
            {
                f"val_top{k}": torchmetrics.classification.MulticlassAccuracy(
                    num_classes, top_k=min(k, num_classes), average="micro"
                )
                for k in (1, 5)
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) pictures -> (B, num_classes) logits."""
        return self.model(images)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set this step's randomness and learning rate from its place in the training alone."""
        seed_all(
            derive_seed(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank, 1)
        )
        self.schedule.step_update(self.global_step)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch of pictures and class numbers."""
        images, targets = batch
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        return self.loss(self(images.to(memory_format=self.memory_format)), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count one batch of test pictures."""
        images, labels = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        self.metrics.update(logits, labels)
        self.log("val_loss", loss, batch_size=len(labels), sync_dist=True, logger=False)
        self.log_dict(self.metrics, batch_size=len(labels), logger=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser; the schedule beside it is set by step number and keeps no state."""
        optimizer = create_optimizer(self.model, **(self.hparams["optimizer_args"] or {}))
        steps = self.trainer.estimated_stepping_batches
        self.schedule = create_schedule(
            optimizer,
            epochs=self.hparams["epochs"],
            steps_per_epoch=max(1, int(steps) // self.hparams["epochs"]),
            **(self.hparams["schedule_args"] or {}),
        )
        return optimizer


def training_loss(name: str, *, label_smoothing: float, mixes: bool) -> nn.Module:
    """Timm's loss for logits (B, K) and class numbers (B,), or mixed targets (B, K).

    Args:
        name: ``cross_entropy`` or ``bce``.
        label_smoothing: Share of the target spread over all classes; mixed targets have it already.
        mixes: Whether targets come mixed.
    """
    if name == "bce":
        return timm.loss.BinaryCrossEntropy(smoothing=0.0 if mixes else label_smoothing)
    if mixes:
        return timm.loss.SoftTargetCrossEntropy()
    if label_smoothing:
        return timm.loss.LabelSmoothingCrossEntropy(label_smoothing)
    return nn.CrossEntropyLoss()
