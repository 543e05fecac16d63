"""The door to ``convattn.detection``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from convattn.config import DataConfig, EvaluateConfig, PredictConfig, TrainConfig
from convattn.data import (
    DETECTION_DATASETS,
    UnreadableImageError,
)
from convattn.data.formats import OBJECT_FORMATS
from convattn.detection import DETECTORS, create_detector, finds_masks
from convattn.progress import watched
from convattn.results import Results
from convattn.runs import Run, starting_cfg
from convattn.tasks.dense import Dense, dense_arguments, landscape
from convattn.tasks.task import Contents

if TYPE_CHECKING:
    from PIL import Image

    from convattn.data.shard_writing import Part
    from convattn.explanation.dense import DenseExplanation
    from convattn.train.task import Job


class Detection(Dense):
    """Objects, their boxes, and of some networks their masks."""

    name = "detection"
    models = DETECTORS
    datasets = tuple(DETECTION_DATASETS)
    formats = OBJECT_FORMATS
    published: ClassVar[Mapping[str, tuple[int, int]]] = {
        "cluttered_digits": (4_000, 10),
        "coco": (118_287, 80),
    }
    assumed_classes = 80

    def open_data(
        self,
        data: DataConfig,
        model: str,
        *,
        training: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> Any:
        """Images with boxes, and masks where the network finds some."""
        from convattn.detection.dataset import open_data

        masks = finds_masks(model)
        return open_data(data, masks=masks, training=training, class_names=class_names)

    def _shard_parts(
        self, data: DataConfig, *, boxes_only: bool
    ) -> tuple[Mapping[str, Part], Mapping[str, Any]]:
        """Images and their boxes and outlines."""
        from convattn.detection.sharding import shard_parts

        return shard_parts(data, boxes_only=boxes_only)

    def describe(self, config: TrainConfig) -> Contents:
        """Open the data of a run and count them."""
        from convattn.detection.dataset import pretrained_cfg

        source = self.open_data(config.data, config.model.name)
        cfg = pretrained_cfg(config.data, source, starting_cfg(config.model))
        own = config.data.crop_size or source.image_size
        return Contents(
            num_train=len(source.train),
            num_classes=len(source.class_names),
            shape=(3, *(own or landscape(cfg["image_size"], cfg["max_size"]))),
        )

    def build(
        self, config: TrainConfig, *, num_classes: int, in_chans: int, augment: Any
    ) -> nn.Module:
        """The detector of a run with random weights."""
        arguments = dense_arguments(config, augment)
        # torchvision's detectors count the background
        return create_detector(config.model.name, num_classes=num_classes + 1, **arguments)

    def job(self, config: TrainConfig) -> Job:
        """The training of a detector."""
        from convattn.train.detection import DetectionJob

        return DetectionJob(config)

    def _evaluate(
        self, model: nn.Module, source: Any, run: Run, options: EvaluateConfig
    ) -> tuple[Results, Callable[[Path, str], Sequence[Path]]]:
        from convattn.detection.dataset import test_batches
        from convattn.detection.evaluation import evaluate_detection
        from convattn.detection.testing import write_details

        result, metrics = evaluate_detection(
            model,
            watched(test_batches(options.data, source), len(source.test)),
            class_names=source.class_names,
            has_masks=finds_masks(run.config.model.name),
            device=options.device,
        )
        threshold = options.threshold
        return result, lambda folder, title: write_details(
            folder, result, metrics, title=title, threshold=threshold
        )

    def predict(
        self, model: nn.Module, files: Sequence[Path], out: Path, options: PredictConfig
    ) -> Iterator[tuple[str, str | UnreadableImageError]]:
        """The objects on each image."""
        from convattn.detection.prediction import predict_images

        return predict_images(
            model,
            files,
            out,
            threshold=options.threshold,
            tile=options.tile,
            flip=options.flip,
            every=options.every or 1,
        )

    def find(self, model: nn.Module, image: Image.Image) -> Any:
        """The objects."""
        from convattn.detection.prediction import detect

        return detect(model, image)

    def draw(self, image: Image.Image, found: Any) -> Image.Image:
        """Boxes and masks."""
        drawn: Image.Image = found.draw(image)
        return drawn

    def explain_choice(
        self, model: nn.Module, image: Image.Image, found: Any, number: int
    ) -> DenseExplanation:
        """Where it looks for a box."""
        from convattn.detection.explanation import explain_boxes

        return explain_boxes(model, image, places=[number])[0]

    def explain(
        self, model: nn.Module, image: Image.Image, targets: Sequence[str], *, count: int
    ) -> list[DenseExplanation]:
        """Where it looks for the surest boxes."""
        from convattn.detection.explanation import explain_boxes

        return explain_boxes(model, image, targets, count=count)

    def attend(
        self, model: nn.Module, image: Image.Image, point: tuple[float, float], **choice: Any
    ) -> DenseExplanation:
        """What it looks at from a point."""
        from convattn.detection.explanation import attention_of_point

        return attention_of_point(model, image, point, **choice)
