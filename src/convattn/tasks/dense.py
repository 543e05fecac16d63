"""The door that detection and segmentation share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from convattn.config import DataConfig, DataFormat, EvaluateConfig, TrainConfig
from convattn.data.formats import Format, is_in
from convattn.data.shards import SHARDED, task_of_shards
from convattn.files import new_folder, read_json, replace_atomically
from convattn.ownership import owned
from convattn.results import Results
from convattn.runs import Run
from convattn.tasks.task import Task
from convattn.text import report

if TYPE_CHECKING:
    from PIL import Image

    from convattn.data.shard_writing import Part
    from convattn.explanation.dense import DenseExplanation

_RESULT = "evaluation.json"


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
        return landscape(data.image_size or 800, data.max_size)

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


def dense_arguments(config: TrainConfig, augment: Any) -> dict[str, Any]:
    """What ``create_detector`` and ``create_segmenter`` are given of a run.

    Args:
        config: The whole run.
        augment: What is done to the backbone, None for nothing.
    """
    given = {
        "backbone": config.model.backbone,
        "backbone_args": config.model.backbone_args or None,
        "augment": augment,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    return {**config.model.model_args, **chosen}


def landscape(shorter: int, longest: int | None) -> tuple[int, int]:
    """Height and width of an image of 4 to 3, as most of COCO's are.

    Args:
        shorter: Its shorter side.
        longest: What its longer one must not exceed, None for twice the shorter.
    """
    return shorter, min(longest or shorter * 2, shorter * 4 // 3)


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
