"""What detection and segmentation have in common when they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.utils.data import Dataset

from convattn.config import TrainConfig
from convattn.data.annotated import AnnotatedSource
from convattn.data.batches import collate_lists
from convattn.models.pyramid import FeatureLevels
from convattn.runs import augment_arguments, create_dense_model
from convattn.surgery import freeze as freeze_all_but
from convattn.train.datamodule import TrainingData
from convattn.train.optim import optimizer_args, schedule_args
from convattn.train.seeding import seed_all
from convattn.train.task import (
    Curves,
    TrainingTask,
    describe_augment,
)


class DenseTask(TrainingTask):
    """Trains one of our detectors or segmenters, by name.

    Everything is a plain value, so that ``load_from_checkpoint`` rebuilds the task alone.

    Args:
        model: Name in ``DETECTORS`` or ``SEGMENTERS``.
        cfg: The ``pretrained_cfg`` that the run will have: classes, sizes, mean and deviation.
        backbone: Name of the backbone, for the models that leave it open.
        backbone_args: Further keyword arguments of the backbone.
        model_args: Further keyword arguments of the model.
        pretrained: Start from the backbone's released weights.
        backbone_weights: Weights of a classifier that the backbone starts from. Read now only.
        checkpoint: Trained weights to start from, of the model or of its backbone. Read now only: a
            reloaded task has its own.
        augment: Arguments of ``convattn.augment`` for the backbone; None adds no attention.
        freeze: Train only the added attention and what is not the backbone.
        epochs: Length of the schedule.
        optimizer_args: Arguments of ``create_optimizer``.
        schedule_args: Arguments of ``create_schedule`` but for the lengths.
        channels_last: Keep images and kernels channels-last.
        seed: Seed of dropout, drop path and whatever else is random in the model.
    """

    def __init__(
        self,
        model: str,
        *,
        cfg: Mapping[str, Any],
        backbone: str | None = None,
        backbone_args: Mapping[str, Any] | None = None,
        model_args: Mapping[str, Any] | None = None,
        pretrained: bool = False,
        backbone_weights: Path | None = None,
        checkpoint: Path | None = None,
        augment: Mapping[str, Any] | None = None,
        freeze: bool = False,
        epochs: int = 1,
        optimizer_args: Mapping[str, Any] | None = None,
        schedule_args: Mapping[str, Any] | None = None,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["checkpoint", "backbone_weights"])
        self.model = create_dense_model(
            model,
            cfg=cfg,
            backbone=backbone,
            backbone_args=backbone_args,
            pretrained=pretrained,
            backbone_weights=backbone_weights,
            checkpoint=checkpoint,
            augment=augment,
            **(model_args or {}),
        )
        if freeze:
            freeze_backbone(self.model)
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        self.model.to(memory_format=self.memory_format)


Task = TypeVar("Task", bound=DenseTask)


class DenseJob(Generic[Task]):
    """Trains a dense model on images whose truth is of the images' own size.

    Args:
        config: The run, with the number of classes.
        train: Training images with their augmentation.
        val: Images that are looked at between epochs: of a validation part, or for the test.
        cfg: The ``pretrained_cfg`` that the run will have.
        task: Makes the training.

    Raises:
        ValueError: If the batch does not fit the number of images.
    """

    curves: Curves

    def __init__(
        self,
        config: TrainConfig,
        *,
        train: Dataset[Any],
        val: Dataset[Any],
        cfg: Mapping[str, Any],
        task: Callable[..., Task],
    ) -> None:
        self.config = config
        self.data = TrainingData(
            config.data,
            train=train,
            val=val,
            cfg=cfg,
            seed=config.seed,
            accumulate=config.accumulate,
            collate=collate_lists,
        )
        self._task = task
        self._augment = augment_arguments(config.augment, cfg["input_size"])

    def make_task(self, checkpoint: Path | None) -> Task:
        """The model at its random start, or with the weights of ``checkpoint``.

        Args:
            checkpoint: Trained weights.
        """
        config, model = self.config, self.config.model
        seed_all(config.seed)
        return self._task(
            model.name,
            cfg=self.data.cfg,
            backbone=model.backbone,
            backbone_args=model.backbone_arguments or None,
            model_args=model.model_args,
            pretrained=model.pretrained,
            backbone_weights=model.backbone_weights and Path(model.backbone_weights),
            checkpoint=checkpoint,
            augment=self._augment,
            freeze=config.augment.freeze,
            epochs=config.epochs,
            optimizer_args=optimizer_args(config),
            schedule_args=schedule_args(config),
            channels_last=config.channels_last,
            seed=config.seed,
        )

    @property
    def augmented(self) -> str:
        """What attention the backbone was given, in a line."""
        return describe_augment(self.config.augment)


def judged_by(source: AnnotatedSource[Any], curves: Curves) -> Curves:
    """The curves, told to be those of a validation part if there is one.

    Args:
        source: What is trained on.
        curves: Of test images.
    """
    return curves if source.val is None else replace(curves, part="validation")


def freeze_backbone(model: nn.Module) -> None:
    """Train only what is not the backbone of a dense network, and attention that it was given.

    Args:
        model: A detector or segmenter.
    """
    modules = list(model.named_modules())
    (levels,) = (name for name, module in modules if isinstance(module, FeatureLevels))
    body = f"{levels}.body."
    freeze_all_but(
        model,
        trainable=[
            name
            for name, _ in modules
            if name and not body.startswith(f"{name}.") and not name.startswith(body)
        ],
    )
