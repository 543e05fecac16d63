"""The door to ``convattn.classification``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from convattn.config import DataConfig, EvaluateConfig, PredictConfig, TrainConfig
from convattn.data import (
    DATASETS,
    GENERATED,
    UnreadableImageError,
)
from convattn.results import Results
from convattn.runs import Run, create_model, open_model, starting_cfg
from convattn.tasks.task import Contents, Task

if TYPE_CHECKING:
    from convattn.classification.table import PredictedTable
    from convattn.train.task import Job


class Classification(Task):
    """The class of an image."""

    name = "classification"
    models: ClassVar[Mapping[str, Any]] = {}
    datasets = tuple(DATASETS)
    published: ClassVar[Mapping[str, tuple[int, int]]] = {
        "cluttered_digits": (20_000, 10),
        "same_different": (20_000, 2),
        "count": (20_000, 2),
        "pathfinder": (20_000, 2),
        "cifar10": (50_000, 10),
        "cifar100": (50_000, 100),
        "fashion_mnist": (60_000, 10),
        "imagenet": (1_281_167, 1000),
        "tiny_imagenet": (100_000, 200),
    }
    assumed_classes = 1000
    shares_tests = True
    _sizes: ClassVar[Mapping[str, int]] = {
        **dict.fromkeys(GENERATED, 64),
        "cifar10": 32,
        "cifar100": 32,
        "fashion_mnist": 28,
        "tiny_imagenet": 64,
    }

    def open_data(
        self,
        data: DataConfig,
        model: str,
        *,
        training: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> Any:
        """Images with a class each."""
        from convattn.classification.dataset import open_data

        return open_data(data, training=training, class_names=class_names)

    def may_hold(self, data: DataConfig) -> bool:
        """Any: class folders are the least a sign."""
        return True

    def _shard(self, data: DataConfig, out: Path, *, boxes_only: bool, **how: Any) -> str:
        """Images and their classes, of which none has a box."""
        from convattn.classification.sharding import shard_data

        return shard_data(data, out, **how)

    def describe(self, config: TrainConfig) -> Contents:
        """Open the data of a run and count them; nothing is downloaded."""
        from convattn.classification.dataset import pretrained_cfg

        source = self.open_data(replace(config.data, download=False), config.model.name)
        return Contents(
            num_train=len(source.train),
            num_classes=len(source.class_names),
            shape=pretrained_cfg(config.data, source, starting_cfg(config.model))["input_size"],
        )

    def assumed_size(self, data: DataConfig) -> tuple[int, int]:
        """Height and width of what the network would see of data that are not there."""
        side = data.image_size or self._sizes.get(data.name, 224)
        return side, side

    def build(
        self, config: TrainConfig, *, num_classes: int, in_chans: int, augment: Any
    ) -> nn.Module:
        """The classifier of a run with random weights."""
        own: dict[str, Any] = dict(config.model.model_args)
        return create_model(
            config.model.name, num_classes=num_classes, in_chans=in_chans, augment=augment, **own
        )

    def job(self, config: TrainConfig) -> Job:
        """The training of a classifier."""
        from convattn.train.classification import ClassificationJob

        return ClassificationJob(config)

    def test(
        self,
        target: str,
        run: Run | None,
        options: EvaluateConfig,
        arguments: Sequence[str],
        *,
        stopped: Path | None = None,
    ) -> tuple[Results, Sequence[Path]]:
        """Test a classifier, or go on with its test."""
        from convattn.classification.testing import run_test

        def load(*, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
            if run is not None:
                return run.load_model()
            return open_model(
                target, checkpoint=options.weights, num_classes=num_classes, in_chans=in_chans
            )

        return run_test(
            target,
            load,
            options,
            arguments,
            run_folder=None if run is None else run.folder,
            trained_on=None if run is None else run.config.data,
            stopped=stopped,
        )

    def predict(
        self, model: nn.Module, files: Sequence[Path], out: Path, options: PredictConfig
    ) -> Iterator[tuple[str, str | UnreadableImageError]]:
        """The likeliest classes of each image."""
        from convattn.classification.prediction import predict_images

        return predict_images(model, files, out)

    def predict_table(self, run: Run, images: Path, options: PredictConfig) -> PredictedTable:
        """A row an image."""
        assert options.out is not None
        return run.predict(
            images,
            out=options.out,
            embeddings=options.embeddings,
            reject_below=options.reject_below,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            device=options.device,
        )
