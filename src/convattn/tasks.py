"""The door that all tasks keep: open data, build, train, test, predict, describe.

A task is a room, ``convattn.classification``, ``.detection`` or ``.segmentation``; which of them a
network is for, its name tells. Whoever needs something that differs between tasks asks here.

Rooms are entered only when something is asked of them: each needs an extra of its own, and training
needs Lightning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import nn

from convattn.config import DataConfig, DataFormat, EvaluateConfig, PredictConfig, TrainConfig
from convattn.data import (
    DATASETS,
    DETECTION_DATASETS,
    GENERATED,
    SEGMENTATION_DATASETS,
    UnreadableImageError,
)
from convattn.data.formats import OBJECT_FORMATS, Format, is_in
from convattn.data.segmentation import SEGMENTATION_FORMATS
from convattn.data.shard_files import import_litdata
from convattn.data.shards import SHARDED, task_of_shards
from convattn.detection import DETECTORS, create_detector, finds_masks
from convattn.files import new_folder, read_json, replace_atomically
from convattn.ownership import owned
from convattn.progress import watched
from convattn.results import Results
from convattn.runs import Run, augment_arguments, create_model, open_model, starting_cfg
from convattn.segmentation import SEGMENTERS, create_segmenter
from convattn.text import report

if TYPE_CHECKING:
    from PIL import Image

    from convattn.classification.table import PredictedTable
    from convattn.data.shard_writing import Part
    from convattn.explanation.dense import DenseExplanation
    from convattn.train.run import TrainedRun
    from convattn.train.task import Job

_RESULT = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a data set holds for training."""

    num_train: int
    """Training images."""
    num_classes: int
    """Without the background."""
    shape: tuple[int, int, int]
    """(C, H, W) of what the network sees."""


class Task(ABC):
    """What networks of one kind are for, and how each step of their lives is done."""

    name: ClassVar[str]
    """One word."""
    models: ClassVar[Mapping[str, Any]]
    """Networks of our own that are no timm models, by name."""
    datasets: ClassVar[Sequence[str]]
    """Names of the data sets that it can be trained on."""
    published: ClassVar[Mapping[str, tuple[int, int]]]
    """Data set -> training images and classes, as published or generated."""
    assumed_classes: ClassVar[int]
    """Number of classes of a data set that nobody has described."""
    shares_tests: ClassVar[bool] = False
    """Whether several processes share the images of a test."""

    @abstractmethod
    def open_data(
        self,
        data: DataConfig,
        model: str,
        *,
        training: bool = True,
        class_names: Sequence[str] | None = None,
    ) -> Any:
        """The data set that a configuration names, as ``dataset.open_data`` of the room gives it.

        Args:
            data: Name, place and size of the data set.
            model: Name of the network that is to be trained or tested on it.
            training: Whether the training images are wanted; else there is but one of them.
            class_names: What the network that is tested calls its classes; those of the data are
                found among them by name. None: those of the data.

        Raises:
            ValueError: If they are not what they should be.
            FileNotFoundError: If they are missing.
        """

    @abstractmethod
    def describe(self, config: TrainConfig) -> Contents:
        """Open the data of a run and count them.

        Raises:
            ValueError: If they are not what they should be.
            FileNotFoundError: If they are missing.
        """

    @abstractmethod
    def may_hold(self, data: DataConfig) -> bool:
        """Whether a data set looks like one for this task; nothing is opened.

        Args:
            data: Its name, place and format.
        """

    def shard(self, data: DataConfig, out: Path, *, boxes_only: bool = False, **how: Any) -> str:
        """Write the data set as shards into ``out``, or go on with it: how much there is, in words.

        Args:
            data: Name and place of the data set.
            out: Folder of the shards.
            boxes_only: Leave the outlines of objects out.
            how: As of ``write_shards``.

        Raises:
            ValueError: If an option is for another task, the data are not what they should be, or
                ``out`` holds something else.
            OSError: If an image cannot be read, or a shard not written.
        """
        given = {
            f"data.{name}": getattr(data, name) != getattr(DataConfig(), name)
            for name in (option.removeprefix("data.") for option in _HEEDED_IN_SHARDING)
            if hasattr(data, name)
        }
        for option, is_given in {**given, "boxes_only": boxes_only}.items():
            heeding = _HEEDED_IN_SHARDING[option]
            if is_given and self.name not in heeding.split(" and "):
                raise ValueError(
                    f"--{option.replace('_', '-')} is for {heeding}, and {data.root or data.name} "
                    f"is read for {self.name} (--task says otherwise); leave it out"
                )
        if how.get("format") == "litdata":  # before anything is read
            import_litdata("--format litdata")
        return self._shard(data, out, boxes_only=boxes_only, **how)

    @abstractmethod
    def _shard(self, data: DataConfig, out: Path, *, boxes_only: bool, **how: Any) -> str:
        """As ``shard``, of options that are heeded."""

    @abstractmethod
    def assumed_size(self, data: DataConfig) -> tuple[int, int]:
        """Height and width of what the network would see of data that are not there."""

    @abstractmethod
    def build(
        self, config: TrainConfig, *, num_classes: int, in_chans: int, augment: Any
    ) -> nn.Module:
        """The network of a run with random weights; ``num_classes`` without the background.

        Raises:
            ValueError: If there is no such network, or it refuses its arguments.
        """

    @abstractmethod
    def job(self, config: TrainConfig) -> Job:
        """The training of a run: its data, its Lightning task, how its results are shown.

        Raises:
            ValueError: If the configuration and the data do not fit.
        """

    @abstractmethod
    def test(
        self,
        target: str,
        run: Run | None,
        options: EvaluateConfig,
        arguments: Sequence[str],
        *,
        stopped: Path | None = None,
    ) -> tuple[Results, Sequence[Path]]:
        """Test a trained network: what was found, and the files that hold it.

        Args:
            target: A run's folder or a model's name.
            run: The run, None for a model by name.
            options: What is tested, on what, and where the results go.
            arguments: The command line's words, for a test that is gone on with.
            stopped: Folder of a test that was stopped.

        Raises:
            ValueError: If network and data do not fit.
            FileNotFoundError: If there are no such weights or data.
        """

    @abstractmethod
    def predict(
        self, model: nn.Module, files: Sequence[Path], out: Path, options: PredictConfig
    ) -> Iterator[tuple[str, str | UnreadableImageError]]:
        """Predict images one after the other and leave files in the folder ``out``.

        Yields:
            Name of each, and what was found on it, in a few words; or why it could not be read.
        """

    def predict_table(self, run: Run, images: Path, options: PredictConfig) -> PredictedTable:
        """Predict images into the table ``options.out``, or go on with one that was stopped.

        Raises:
            ValueError: If what is predicted of an image fits into no row, or no image can be read.
            FileExistsError: If the table exists.
        """
        raise ValueError(
            f"--out {options.out} would be a table of classes; {run.folder} does {self.name}: "
            "name a folder"
        )

    def check_options(self, options: EvaluateConfig | PredictConfig, target: str) -> None:
        """Refuse an option that another task heeds and this one does not.

        Args:
            options: Of a command.
            target: What the command is about, for the error.

        Raises:
            ValueError: If one was given.
        """
        kind = EvaluateConfig if isinstance(options, EvaluateConfig) else PredictConfig
        default = kind()
        for option, task in _HEEDED_BY[kind].items():
            value = attrgetter(option)
            if self.name not in task.split(" and ") and value(options) != value(default):
                flag = option.replace("_", "-")
                raise ValueError(f"--{flag} is for {task}; {target} does {self.name}")


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


class Dense(Task):
    """What detectors and segmenters have in common: a run's network, its classes by name."""

    formats: ClassVar[Mapping[DataFormat, Format]]
    """What a person's own folder may be in."""

    def may_hold(self, data: DataConfig) -> bool:
        """What lies in shards of it, has its name, or is a folder in one of its formats."""
        if data.root is None or data.name not in self.datasets:
            return False
        if data.name in SHARDED:
            return task_of_shards(data.name, data.root) == self.name
        if data.name != "folder":
            return True
        return is_in(self.formats, Path(data.root).expanduser(), data.format, data.annotations)

    def _shard(self, data: DataConfig, out: Path, *, boxes_only: bool, **how: Any) -> str:
        """Images of files, and what is known of them."""
        from convattn.data.shard_writing import write_shards

        if data.root is None:
            raise ValueError(
                f"{data.name} is generated for {self.name}, a scene at a time, and needs no "
                "shards; name a folder of images"
            )
        return write_shards(out, *self._shard_parts(data, boxes_only=boxes_only), **how)

    @abstractmethod
    def _shard_parts(
        self, data: DataConfig, *, boxes_only: bool
    ) -> tuple[Mapping[str, Part], Mapping[str, Any]]:
        """Split -> its images, and what their ``index.json`` tells; of a folder."""

    def assumed_size(self, data: DataConfig) -> tuple[int, int]:
        """Height and width of what the network would see of data that are not there."""
        if data.crop_size is not None:
            return data.crop_size
        if data.name == "cluttered_digits":
            return (data.image_size or 96,) * 2
        return _landscape(data.image_size or 800, data.max_size)

    def test(
        self,
        target: str,
        run: Run | None,
        options: EvaluateConfig,
        arguments: Sequence[str],
        *,
        stopped: Path | None = None,
    ) -> tuple[Results, Sequence[Path]]:
        """Test the network of a run."""
        assert run is not None
        model = run.load_model()
        source = self.open_data(
            options.data,
            run.config.model.name,
            training=False,
            class_names=run.pretrained_cfg["label_names"],
        )
        title = f"{run.folder.resolve().name} on {options.data.name}"
        result, write = self._evaluate(model, source, run, options)
        folder = _result_folder(run, options, result)
        with owned(folder):
            details = write(folder, title)
            # The result comes last: with it the test is whole.
            replace_atomically(folder / _RESULT, result.to_json().encode())
        return result, [folder / _RESULT, *details]

    @abstractmethod
    def _evaluate(
        self, model: nn.Module, source: Any, run: Run, options: EvaluateConfig
    ) -> tuple[Results, Callable[[Path, str], Sequence[Path]]]:
        """What is found on the test images of a source.

        Returns:
            The result, and what writes the files beside it into a folder, under a title.
        """

    @abstractmethod
    def find(self, model: nn.Module, image: Image.Image) -> Any:
        """What is on an image: ``choices``, a name, a share and a colour each, and a drawing.

        Args:
            model: A trained network.
            image: RGB.
        """

    @abstractmethod
    def draw(self, image: Image.Image, found: Any) -> Image.Image:
        """What was found over the image, of its shape.

        Args:
            image: RGB.
            found: As ``find`` gave it.
        """

    @abstractmethod
    def explain_choice(
        self, model: nn.Module, image: Image.Image, found: Any, number: int
    ) -> DenseExplanation:
        """Where a network looks for one of the things that it found.

        Args:
            model: A trained network.
            image: RGB.
            found: As ``find`` gave it.
            number: Place among its ``choices``.
        """

    @abstractmethod
    def explain(
        self, model: nn.Module, image: Image.Image, targets: Sequence[str], *, count: int
    ) -> list[DenseExplanation]:
        """Where a network looks for what it finds.

        Args:
            model: A trained network.
            image: What it looks at.
            targets: Classes by name or number; none: the surest ones.
            count: How many, where no classes are given.

        Raises:
            ValueError: If nothing of them is found.
        """

    @abstractmethod
    def attend(
        self, model: nn.Module, image: Image.Image, point: tuple[float, float], **choice: Any
    ) -> DenseExplanation:
        """What an attention convolution of the backbone looks at from a point.

        Args:
            model: A trained network.
            image: What it looks at.
            point: y and x in pixels.
            choice: ``layer`` and ``head``.

        Raises:
            ValueError: If there is no attention, or no such point, layer or head.
        """


def _result_folder(run: Run, options: EvaluateConfig, result: Results) -> Path:
    """The run's own where that holds no other test, else a new one."""
    from convattn.classification.testing import tells_more

    default = EvaluateConfig()
    as_trained = (options.window, options.threshold) == (default.window, default.threshold)
    if options.out is None and as_trained and options.data.is_same(run.config.data):
        file = run.folder / _RESULT
        if not file.is_file():
            return run.folder
        there = read_json(file, "delete it to test anew")
        if tells_more(file, type(result)):
            report(f"{file} is kept: it tells what a test alone does not")
        elif there.get("num_images") != result.num_images:
            report(f"{file} is kept: it is of {there.get('num_images')} images")
        else:
            return run.folder
    return new_folder(options.out, f"runs/evaluate/{run.folder.resolve().name}")


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
            shape=(3, *(own or _landscape(cfg["image_size"], cfg["max_size"]))),
        )

    def build(
        self, config: TrainConfig, *, num_classes: int, in_chans: int, augment: Any
    ) -> nn.Module:
        """The detector of a run with random weights."""
        arguments = _dense_arguments(config, augment)
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
        arguments = _dense_arguments(config, augment)
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


TASKS: Mapping[str, Task] = {
    task.name: task for task in (Classification(), Detection(), Segmentation())
}
"""Every task by its name."""

_BY_SIGN = ("detection", "segmentation", "classification")
"""Tasks in the order in which data are tried for them."""


def task_of_data(data: DataConfig) -> Task:
    """The task that a data set looks like being for: boxes before masks before classes.

    Args:
        data: Its name, place and format.

    Raises:
        ValueError, FileNotFoundError: If it is in shards that are not what they should be.
    """
    named = data.path_column is not None or data.labels_column is not None
    tasks = ["classification"] if named else _BY_SIGN
    return next(TASKS[name] for name in tasks if TASKS[name].may_hold(data))


_HEEDED_IN_SHARDING: Mapping[str, str] = {
    "data.path_column": "classification",
    "data.labels_column": "classification",
    "data.val_share": "classification",
    "data.in_chans": "classification",
    "data.annotations": "detection and segmentation",
    "data.split": "detection and segmentation",
    "boxes_only": "detection",
}

_HEEDED_BY: Mapping[type, Mapping[str, str]] = {
    EvaluateConfig: {
        "window": "segmentation",
        "dtype": "classification",
        "channels_last": "classification",
        "allow_missing_classes": "classification",
        "real": "classification",
        "threshold": "detection",
        "data.split": "detection and segmentation",
        "data.path_column": "classification",
        "data.labels_column": "classification",
        "data.in_chans": "classification",
    },
    PredictConfig: {
        "window": "segmentation",
        "threshold": "detection",
        "tile": "detection",
        "flip": "detection and segmentation",
        "every": "detection and segmentation",
        "embeddings": "classification",
        "reject_below": "classification",
        "batch_size": "classification",
        "num_workers": "classification",
    },
}
"""Options of a command -> each that not all tasks heed, and which do."""


def task_of(model: str) -> Task:
    """What a network is for, by its name.

    Args:
        model: Of a detector, a segmenter, or a classifier of timm's.
    """
    dense = (task for task in TASKS.values() if model in task.models)
    return next(dense, TASKS["classification"])


def build_network(
    config: TrainConfig, *, num_classes: int, in_chans: int = 3, input_size: Sequence[int]
) -> nn.Module:
    """The network that a run trains, with random weights.

    Args:
        num_classes: Without the background.
        in_chans: Channels of an image.
        input_size: Height and width that attention is made for, where it is added.

    Raises:
        ValueError: If there is no such network, or it refuses its arguments.
    """
    augment = augment_arguments(config.augment, tuple(input_size))
    task = task_of(config.model.name)
    return task.build(config, num_classes=num_classes, in_chans=in_chans, augment=augment)


def train(config: TrainConfig) -> TrainedRun | None:
    """Train a network and leave a run folder, see ``convattn.train.run.train``.

    Args:
        config: The whole run.
    """
    from convattn.train import run

    return run.train(config, task_of(config.model.name).job)


def train_or_resume(config: TrainConfig) -> TrainedRun | None:
    """Train, or go on with what ``config.out`` holds: ``convattn.train.run.train_or_resume``.

    Args:
        config: The whole run, with ``out``.
    """
    from convattn.train import run

    return run.train_or_resume(config, task_of(config.model.name).job)


def resume(folder: str | Path) -> TrainedRun | None:
    """Go on with a run that was stopped or killed, see ``convattn.train.run.resume``.

    Args:
        folder: The run folder.
    """
    from convattn.train import run

    found = Run.open(folder)
    return run.resume(found, task_of(found.config.model.name).job)


def _dense_arguments(config: TrainConfig, augment: Any) -> dict[str, Any]:
    given = {
        "backbone": config.model.backbone,
        "backbone_args": config.model.backbone_args or None,
        "augment": augment,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    return {**config.model.model_args, **chosen}


def _landscape(shorter: int, longest: int | None) -> tuple[int, int]:
    """An image of 4 to 3, as most of COCO's are."""
    return shorter, min(longest or shorter * 2, shorter * 4 // 3)
