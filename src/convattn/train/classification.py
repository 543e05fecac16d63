"""Image classification as a Lightning task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm.loss
import torch
import torchmetrics
from torch import Tensor, nn

from convattn.classification.dataset import (
    open_data,
    pretrained_cfg,
    test_batches,
    training_transform,
)
from convattn.classification.evaluation import ClassificationResult, evaluate_classification
from convattn.classification.figures import draw_attention
from convattn.config import TrainConfig
from convattn.data import batch_mix, transform_of
from convattn.explanation import attention_layers
from convattn.runs import augment_arguments, create_model, plan_model
from convattn.surgery import freeze as freeze_all_but
from convattn.train.datamodule import TrainingData
from convattn.train.optim import optimizer_args, schedule_args
from convattn.train.seeding import seed_all
from convattn.train.task import (
    Curves,
    TrainingTask,
    describe_augment,
)
from convattn.weights import classifier_names

_NUM_IMAGES = 12


class ClassificationTask(TrainingTask):
    """Trains one of timm's classifiers, convattn's own among them, by name.

    Everything is a plain value, so that ``load_from_checkpoint`` rebuilds the task alone.

    Args:
        model: Name in timm's registry.
        num_classes: Number of classes.
        in_chans: Channels of an image.
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
        channels_last: Keep images and kernels channels-last.
        seed: Seed of dropout, drop path and mixup.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes).
    """

    curves = Curves(
        shares={"val_top1": "top-1", "val_top5": "top-5"},
        title="Test accuracy",
        loss="cross-entropy (nats)",
    )

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
        """(B, in_chans, H, W) images -> (B, num_classes) logits."""
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch of images and class numbers."""
        images, targets = batch
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        return self.loss(self(images.to(memory_format=self.memory_format)), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count one batch of test images."""
        images, labels = batch
        logits = self(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        self.metrics.update(logits, labels)
        self.log("val_loss", loss, batch_size=len(labels), sync_dist=True, logger=False)
        self.log_dict(self.metrics, batch_size=len(labels), logger=False)


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


class ClassificationJob:
    """Trains a classifier on labelled images.

    Args:
        config: The run; the number of classes is taken from the data.

    Raises:
        ValueError: If the configuration and the data do not fit.
    """

    curves = ClassificationTask.curves

    def __init__(self, config: TrainConfig) -> None:
        config.check_task("classification")
        self.source = source = open_data(config.data)
        self.config = config.with_classes(len(source.class_names))
        cfg = pretrained_cfg(config.data, source)
        self.data = TrainingData(
            config.data,
            train=source.train.with_transform(training_transform(config.data, source)),
            test=source.test.with_transform(transform_of(cfg)),
            cfg=cfg,
            seed=config.seed,
            accumulate=config.accumulate,
        )
        self._augment = augment_arguments(config.augment, cfg["input_size"])

    def make_task(self, checkpoint: Path | None) -> ClassificationTask:
        """The classifier at its random start, or with the weights of ``checkpoint``.

        Args:
            checkpoint: Trained weights.
        """
        config, model = self.config, self.config.model
        seed_all(config.seed)
        assert model.num_classes is not None
        return ClassificationTask(
            model.name,
            num_classes=model.num_classes,
            in_chans=self.source.in_chans,
            pretrained=model.pretrained,
            drop_rate=model.drop_rate,
            drop_path_rate=model.drop_path_rate,
            model_args=model.model_args,
            checkpoint=checkpoint,
            augment=self._augment,
            freeze=config.augment.freeze,
            loss=config.optim.loss,
            label_smoothing=config.data.label_smoothing,
            mixup=config.data.mixup,
            cutmix=config.data.cutmix,
            epochs=config.epochs,
            optimizer_args=optimizer_args(config),
            schedule_args=schedule_args(config),
            channels_last=config.channels_last,
            seed=config.seed,
        )

    @property
    def augmented(self) -> str:
        """What attention the network was given, in a line."""
        if self._augment is None:
            return "no"
        found = plan_model(
            self.config.model.name,
            self._augment,
            num_classes=self.config.model.num_classes,
            in_chans=self.source.in_chans,
            **self.config.model.model_args,
        )
        augment = self.config.augment
        convs = f"{sum(conv.replaced for conv in found.convs)} of {len(found.convs)} convolutions"
        parameters = f"{(found.params_after - found.params) / 1e6:+.2f} M parameters"
        return describe_augment(augment, *([convs] if augment.conv else []), parameters)

    def show(
        self, model: nn.Module, folder: Path, *, title: str
    ) -> tuple[ClassificationResult, Sequence[Path]]:
        """Test the saved classifier and draw where it looks.

        Args:
            model: As anyone would load it.
            folder: Where ``attention.png`` goes, if the network has attention.
            title: Stands above it.
        """
        source, config = self.source, self.config
        loader, boxes = test_batches(config.data, source, self.data.cfg)
        result = evaluate_classification(model, loader, class_names=source.class_names, boxes=boxes)
        if not attention_layers(model):
            return result, ()
        dataset = loader.dataset
        items = [dataset[index] for index in range(min(_NUM_IMAGES, len(source.test)))]
        draw_attention(
            model.cpu(),
            torch.stack([image for image, _ in items]),
            [label for _, label in items],
            folder / "attention.png",
            class_names=source.class_names,
            mean=source.mean,
            std=source.std,
            boxes=boxes,
            title=f"{title}: where it looks ({result.top1:.1%} right)",
        )
        return result, (folder / "attention.png",)
