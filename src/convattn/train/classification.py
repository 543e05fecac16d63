"""Image classification as a Lightning task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import timm.loss
import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat
from torchvision.ops import sigmoid_focal_loss

from convattn.classification.dataset import (
    open_data,
    pretrained_cfg,
    test_batches,
    training_transform,
    with_validation,
)
from convattn.classification.evaluation import (
    ClassificationResult,
    MultiLabelResult,
    average_precisions,
    evaluate_classification,
    macro_f1,
)
from convattn.classification.figures import draw_attention
from convattn.classification.predictions import THRESHOLD
from convattn.config import TrainConfig
from convattn.data import ImageFiles, Source, TensorImages, batch_mix, transform_of
from convattn.data.shard_files import shard_numbers
from convattn.explanation import attention_layers
from convattn.runs import augment_arguments, create_model, plan_model, starting_cfg
from convattn.surgery import freeze as freeze_all_but
from convattn.text import report
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

_RANKS = 5
_GAMMA = 2.0


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
        freeze_batch_norm: Keep the statistics of every BatchNorm.
        loss: ``cross_entropy``, ``bce`` or ``focal``.
        class_weights: How much the images of each class count, (K,); with ``multi_label`` the yes
            of each class over its no. None: all alike.
        label_smoothing: Share of the target spread over all classes.
        mixup: alpha of mixup.
        cutmix: alpha of cutmix.
        multi_label: Whether an image may have several classes, or none.
        balanced: Whether classes count alike in what judges an epoch first.
        epochs: Length of the schedule.
        optimizer_args: Arguments of ``create_optimizer``.
        schedule_args: Arguments of ``create_schedule`` but for the lengths.
        channels_last: Keep images and kernels channels-last.
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
        freeze_batch_norm: bool = False,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        multi_label: bool = False,
        balanced: bool = False,
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
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.metrics: Any = (
            MultiLabelScores(num_classes)
            if multi_label
            else _accuracies(num_classes, balanced=balanced)
        )
        self.curves = classification_curves(num_classes, multi_label=multi_label, balanced=balanced)
        self._hold_statistics()  # Lightning trains in the mode that it finds

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) images -> (B, num_classes) logits."""
        return self.model(images)

    def train(self, mode: bool = True) -> Self:
        """Begin or end training; BatchNorm that keeps its statistics stays as in a test.

        Args:
            mode: Whether to train.
        """
        super().train(mode)
        self._hold_statistics()
        return self

    def _hold_statistics(self) -> None:
        if self.hparams["freeze_batch_norm"]:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch of images, their classes and, where they have some, weights."""
        images, targets, *weighted = batch
        weights, per_class = weighted[0] if weighted else None, self.class_weights
        if per_class is not None and targets.ndim == 1:
            weights = per_class[targets] if weights is None else weights * per_class[targets]
        by_hand = weights is not None or per_class is not None or self.hparams["loss"] == "focal"
        dense = by_hand or targets.ndim == 2
        if dense:
            smoothing, num_classes = self.hparams["label_smoothing"], self.hparams["num_classes"]
            targets = dense_targets(targets, num_classes, smoothing)
        if self.mix is not None and dense:
            images, targets, weights = self.mix.mix_weighted(images, targets, weights)
        elif self.mix is not None:
            images, targets = self.mix(images, targets)
        logits = self(images.to(memory_format=self.memory_format))
        if not by_hand:
            return self.loss(logits, targets)
        losses = image_losses(
            self.hparams["loss"],
            logits,
            targets,
            yes_weights=per_class if self.hparams["multi_label"] else None,
            multi_label=self.hparams["multi_label"],
        )
        return losses.mean() if weights is None else (weights * losses).mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count one batch of validation or test images."""
        images, labels = batch
        logits = self(images)
        self.metrics.update(logits, labels)
        if self.hparams["multi_label"]:
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        else:
            loss = nn.functional.cross_entropy(logits.float(), labels)
            self.log_dict(self.metrics, batch_size=len(labels), logger=False)
        self.log("val_loss", loss, batch_size=len(labels), sync_dist=True, logger=False)

    def on_validation_epoch_end(self) -> None:
        """Log what needs all images at once; Lightning does so for the rest."""
        if self.hparams["multi_label"]:
            self.log_dict(self.metrics.compute(), sync_dist=True, logger=False)
            self.metrics.reset()


def classification_curves(
    num_classes: int, *, multi_label: bool = False, balanced: bool = False
) -> Curves:
    """How a classifier is judged; among few classes the right one is always among five.

    Args:
        num_classes: Of the data.
        multi_label: Whether images have several classes.
        balanced: Whether balanced accuracy is foremost where they have one.
    """
    if multi_label:
        shares = {"val_map": "mAP", "val_macro_f1": "macro F1"}
        return Curves(shares=shares, measure="scores", loss="binary cross-entropy (nats)")
    shares = {"val_balanced_accuracy": "balanced accuracy"} if balanced else {}
    shares |= {f"val_top{rank}": f"top-{rank}" for rank in _ranks(num_classes)}
    return Curves(shares=shares, measure="accuracy", loss="cross-entropy (nats)")


def _ranks(num_classes: int) -> tuple[int, ...]:
    return (1, _RANKS) if num_classes > _RANKS else (1,)


def _accuracies(num_classes: int, *, balanced: bool) -> torchmetrics.MetricCollection:
    shares: dict[str, Any] = {
        f"val_top{rank}": torchmetrics.classification.MulticlassAccuracy(
            num_classes, top_k=rank, average="micro"
        )
        for rank in _ranks(num_classes)
    }
    if balanced:
        shares["val_balanced_accuracy"] = BalancedAccuracy(num_classes)
    return torchmetrics.MetricCollection(shares, compute_groups=False)


class BalancedAccuracy(torchmetrics.Metric):
    """The mean of the classes' shares of images that are right; a class without images is left out.

    torchmetrics' own counts a class without images as one of which nothing is right, if an image is
    taken for it.

    Args:
        num_classes: K.
    """

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for state in ("hits", "images"):
            self.add_state(state, default=torch.zeros(num_classes), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in a batch: (B, K) logits and (B,) class numbers."""
        right = labels[logits.argmax(1) == labels]
        self.hits += torch.bincount(right, minlength=len(self.hits))
        self.images += torch.bincount(labels, minlength=len(self.images))

    def compute(self) -> Tensor:
        """The mean."""
        there = self.images > 0
        return (self.hits[there] / self.images[there]).mean()


class MultiLabelScores(torchmetrics.Metric):
    """mAP and macro F1, each as ``convattn.classification.evaluation`` has it.

    torchmetrics' own mAP counts a class without images as one of which nothing is found.

    Args:
        num_classes: K.
    """

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all; a process that gets no batch has rows of K, none, to share with others."""
        super().reset()
        empty = torch.empty(0, self.num_classes, device=self.device)
        self.scores, self.labels = [empty], [empty.bool()]

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in a batch: (B, K) logits and (B, K) of 0 and 1."""
        self.scores.append(logits.float().sigmoid())
        self.labels.append(labels.bool())

    def compute(self) -> dict[str, float]:
        """Both by the names of their columns; mAP is 0 where no image has a class."""
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
        found = average_precisions(scores, labels)
        mean = sum(found.values()) / max(1, len(found))
        return {"val_map": mean, "val_macro_f1": macro_f1(scores >= THRESHOLD, labels)}


def dense_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Targets of every class, (B, K).

    Args:
        labels: Class numbers (B,), or the targets themselves.
        num_classes: K.
        smoothing: Share of a single class's target that is spread over all.
    """
    if labels.ndim == 2:
        return labels
    return nn.functional.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def image_losses(
    name: str,
    logits: Tensor,
    targets: Tensor,
    *,
    yes_weights: Tensor | None = None,
    multi_label: bool = False,
) -> Tensor:
    """The loss of each image, (B,).

    Args:
        name: ``cross_entropy``, ``bce`` or ``focal`` (https://arxiv.org/abs/1708.02002, gamma 2).
        logits: (B, K).
        targets: (B, K).
        yes_weights: How much a yes counts over a no of each class, (K,), in ``bce`` and in
            ``focal`` of several classes; None: as much.
        multi_label: Whether images have several classes.
    """
    if name == "cross_entropy":
        return nn.functional.cross_entropy(logits, targets, reduction="none")
    if name == "focal" and not multi_label:
        logs = logits.log_softmax(1)
        return -(targets * (1 - logs.exp()) ** _GAMMA * logs).sum(1)
    if name == "bce":
        questions = nn.functional.binary_cross_entropy_with_logits
        return questions(logits, targets, pos_weight=yes_weights, reduction="none").mean(1)
    losses = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=_GAMMA)
    if yes_weights is not None:
        losses = losses * (targets * yes_weights + 1 - targets)
    return losses.mean(1)


def balanced_weights(labels: Tensor, num_classes: int) -> list[float]:
    """What makes classes count alike: N / (K n) for a class of n of N images, of mean 1.

    Args:
        labels: Class numbers (N,); or which classes an image has, (N, K) bool: then how much a yes
            has to count so that a class's yeses weigh as much as its noes.
        num_classes: All there are; K have images, and the others count 1.
    """
    if labels.ndim == 1:
        counts = torch.bincount(labels, minlength=num_classes)
        weights = len(labels) / ((counts > 0).sum() * counts)
    else:
        counts = labels.sum(0)
        weights = (len(labels) - counts) / counts
    return weights.where((counts > 0) & (weights > 0), 1.0).tolist()


def _shards(source: Source) -> Tensor:
    """Number of the shard that each training image lies in, (N,)."""
    train = source.train
    return torch.tensor(
        shard_numbers(train.paths if isinstance(train, ImageFiles) else [source.name])
    )


def balanced_chances(labels: Tensor) -> Tensor:
    """How likely images are drawn so that all classes are as frequent, (N,).

    Args:
        labels: Class numbers (N,); or which classes an image has, (N, K) bool: then an image is as
            likely as the mean over its classes, and those of none are one more.
    """
    if labels.ndim == 1:
        return 1 / torch.bincount(labels)[labels].double()
    having = torch.cat([labels, ~labels.any(1, keepdim=True)], dim=1).double()
    return (having / having.sum(0).clamp_min(1)).sum(1) / having.sum(1)


def training_loss(name: str, *, label_smoothing: float, mixes: bool) -> nn.Module:
    """Timm's loss for logits (B, K) and class numbers (B,), or mixed targets (B, K).

    Args:
        name: ``cross_entropy`` or ``bce``; that of ``focal`` is ``image_losses``.
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


def _for_several(config: TrainConfig) -> TrainConfig:
    """The configuration for images of several classes, which ask a question a class."""
    if config.data.label_smoothing:
        raise ValueError(
            f"data.label_smoothing={config.data.label_smoothing} spreads the share of one class "
            f"over the others, and images of {config.data.root} have several; leave it out"
        )
    if config.optim.loss != "cross_entropy":
        return config
    report("images have several classes: trained with optim.loss bce, a question a class")
    return replace(config, optim=replace(config.optim, loss="bce"))


def _weighted(images: TensorImages | ImageFiles) -> TensorImages | ImageFiles:
    """The images with weights of mean 1, where they have some, so that the step stays as long."""
    if isinstance(images, TensorImages) or images.weights is None:
        return images
    alike = images.with_transform(images.transform)
    alike.weights = images.weights / images.weights.mean()
    return alike


class ClassificationJob:
    """Trains a classifier on labelled images.

    Args:
        config: The run; the number of classes is taken from the data.
        source: The images; None opens those that the run names, with their validation part.

    Raises:
        ValueError: If the configuration and the data do not fit.
    """

    def __init__(self, config: TrainConfig, source: Source | None = None) -> None:
        config.check_task("classification")
        if source is None:
            source = with_validation(config.data, open_data(config.data), seed=config.seed)
        self.source = source
        if source.multi_label:
            config = _for_several(config)
        curves = classification_curves(
            len(source.class_names),
            multi_label=source.multi_label,
            balanced=config.balances_classes,
        )
        self.curves = curves if source.val is None else replace(curves, part="validation")
        self.config = config.with_classes(len(source.class_names))
        cfg = pretrained_cfg(config.data, source, starting_cfg(config.model))
        labels = source.train.labels
        self.data = TrainingData(
            config.data,
            train=_weighted(source.train).with_transform(training_transform(config.data, cfg)),
            val=(source.test if source.val is None else source.val).with_transform(
                transform_of(cfg)
            ),
            cfg=cfg,
            seed=config.seed,
            accumulate=config.accumulate,
            chances=balanced_chances(labels) if config.data.sampler == "balanced" else None,
            shards=_shards(source) if config.data.sampler == "shards" else None,
        )
        self._class_weights = (
            None
            if config.optim.class_weights is None
            else balanced_weights(labels, len(source.class_names))
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
            freeze_batch_norm=config.optim.freeze_batch_norm,
            loss=config.optim.loss,
            class_weights=self._class_weights,
            label_smoothing=config.data.label_smoothing,
            mixup=config.data.mixup,
            cutmix=config.data.cutmix,
            multi_label=self.source.multi_label,
            balanced=config.balances_classes,
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
    ) -> tuple[ClassificationResult | MultiLabelResult, Sequence[Path]]:
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
            source.test.labels[: len(items)],
            folder / "attention.png",
            class_names=source.class_names,
            mean=self.data.cfg["mean"],
            std=self.data.cfg["std"],
            boxes=boxes,
            title=f"{title}: where it looks ({result.headline})",
        )
        return result, (folder / "attention.png",)
