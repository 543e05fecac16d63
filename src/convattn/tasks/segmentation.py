"""The door to ``convattn.segmentation``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import nn

from convattn.config import DataConfig, EvaluateConfig, PredictConfig, TrainConfig
from convattn.data import (
    SEGMENTATION_DATASETS,
    UnreadableImageError,
)
from convattn.data.segmentation import SEGMENTATION_FORMATS
from convattn.progress import watched
from convattn.results import Results
from convattn.runs import Run, starting_cfg
from convattn.segmentation import SEGMENTERS, create_segmenter
from convattn.tasks.dense import Dense, dense_arguments
from convattn.tasks.task import Contents

if TYPE_CHECKING:
    from PIL import Image

    from convattn.data.shard_writing import Part
    from convattn.explanation.dense import DenseExplanation
    from convattn.train.task import Job


class Segmentation(Dense):
    """The class of every pixel."""

    name = "segmentation"
    models = SEGMENTERS
    datasets = tuple(SEGMENTATION_DATASETS)
    formats = SEGMENTATION_FORMATS
    published: ClassVar[Mapping[str, tuple[int, int]]] = {
        "cluttered_digits": (4_000, 11),
        "camvid": (367, 11),
        "voc": (1_464, 21),
        "ade20k": (20_210, 150),
    }
    assumed_classes = 21

    def open_data(
        self,
        data: DataConfig,
        model: str,
        *,
        training: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> Any:
        """Images with a class for every pixel."""
        from convattn.segmentation.dataset import open_data

        return open_data(data, training=training, class_names=class_names)

    def _shard_parts(
        self, data: DataConfig, *, boxes_only: bool
    ) -> tuple[Mapping[str, Part], Mapping[str, Any]]:
        """Images and their masks."""
        from convattn.segmentation.sharding import shard_parts

        return shard_parts(data)

    def describe(self, config: TrainConfig) -> Contents:
        """Open the data of a run and count them."""
        from convattn.segmentation.dataset import pretrained_cfg

        source = self.open_data(config.data, config.model.name)
        return Contents(
            num_train=len(source.train),
            num_classes=len(source.class_names),
            shape=pretrained_cfg(config.data, source, starting_cfg(config.model))["input_size"],
        )

    def build(
        self, config: TrainConfig, *, num_classes: int, in_chans: int, augment: Any
    ) -> nn.Module:
        """The segmenter of a run with random weights."""
        arguments = dense_arguments(config, augment)
        return create_segmenter(config.model.name, num_classes=num_classes, **arguments)

    def job(self, config: TrainConfig) -> Job:
        """The training of a segmenter."""
        from convattn.train.segmentation import SegmentationJob

        return SegmentationJob(config)

    def _evaluate(
        self, model: nn.Module, source: Any, run: Run, options: EvaluateConfig
    ) -> tuple[Results, Callable[[Path, str], Sequence[Path]]]:
        from convattn.segmentation.dataset import test_batches
        from convattn.segmentation.evaluation import evaluate_segmentation, report_absent
        from convattn.segmentation.testing import write_details

        cfg = cast(Mapping[str, Any], model.pretrained_cfg)
        result, metrics = evaluate_segmentation(
            model,
            watched(test_batches(options.data, source, cfg), len(source.test)),
            class_names=source.class_names,
            window=options.window,
            device=options.device,
        )
        pixels = result.per_class_pixels
        report_absent(list(pixels), list(pixels.values()), "the test masks")
        return result, lambda folder, title: write_details(folder, result, metrics, title=title)

    def predict(
        self, model: nn.Module, files: Sequence[Path], out: Path, options: PredictConfig
    ) -> Iterator[tuple[str, str | UnreadableImageError]]:
        """The class of every pixel of each image."""
        from convattn.segmentation.prediction import predict_images

        return predict_images(
            model,
            files,
            out,
            window=options.window,
            flip=options.flip,
            every=options.every or 1,
        )

    def find(self, model: nn.Module, image: Image.Image) -> Any:
        """The class of every pixel."""
        from convattn.segmentation.prediction import segment

        return segment(model, image)

    def draw(self, image: Image.Image, found: Any) -> Image.Image:
        """The classes' colours."""
        drawn: Image.Image = found.overlay(image)
        return drawn

    def explain_choice(
        self, model: nn.Module, image: Image.Image, found: Any, number: int
    ) -> DenseExplanation:
        """Where it looks for the pixels of a class."""
        from convattn.segmentation.explanation import explain_pixels

        return explain_pixels(model, image, [found.choices()[number][0]])[0]

    def explain(
        self, model: nn.Module, image: Image.Image, targets: Sequence[str], *, count: int
    ) -> list[DenseExplanation]:
        """Where it looks for the pixels of classes."""
        from convattn.segmentation.explanation import explain_pixels

        return explain_pixels(model, image, targets, count=count)

    def attend(
        self, model: nn.Module, image: Image.Image, point: tuple[float, float], **choice: Any
    ) -> DenseExplanation:
        """What it looks at from a point."""
        from convattn.segmentation.explanation import attention_of_point

        return attention_of_point(model, image, point, **choice)
