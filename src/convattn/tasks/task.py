"""The door that every task keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from convattn.config import DataConfig, EvaluateConfig, PredictConfig, TrainConfig
from convattn.data import UnreadableImageError
from convattn.data.shard_files import import_litdata
from convattn.results import Results
from convattn.runs import Run

if TYPE_CHECKING:
    from convattn.classification.table import PredictedTable
    from convattn.train.task import Job

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
