"""Run folders: what ``convattn train`` has made, opened by whoever reads it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, overload

from torch import Tensor, nn

from convattn.classification.streaming import ImagePrediction, predict_each
from convattn.classification.table import PredictedTable, check_table, write_table
from convattn.config import RESTORE, PredictConfig, TrainConfig
from convattn.files import reading
from convattn.runs.build import build_trained, create_model, is_dense, needs_backbone
from convattn.text import one_line, short_repr
from convattn.weights import load_checked, read_metadata, read_weights
from convattn.weights.offline import MODEL as INSTALLED_MODEL
from convattn.weights.offline import find_installed

CONFIG = "config.json"
# What no run can be rebuilt without; other fields that are left out keep their defaults.
_REQUIRED = ("model", "model.name")


def _is_number(value: object) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and math.isfinite(cast(float, value))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


def _all(kind: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(kind, value))


_MOST = 10_000_000  # classes, or pixels of a side
_FITS: Mapping[str, Callable[[Any], bool]] = {
    "num_classes": _is_count,
    "label_names": lambda value: _all(lambda one: isinstance(one, str), value),
    "input_size": lambda value: _all(_is_count, value) and len(value) == 3,
    "mean": lambda value: _all(_is_number, value),
    "std": lambda value: _all(lambda one: _is_number(one) and cast(float, one) > 0, value),
    "interpolation": lambda value: isinstance(value, str),
    "crop_mode": lambda value: isinstance(value, str),
    "crop_pct": lambda value: _is_number(value) and value > 0,
    "thresholds": lambda value: _all(_is_number, value),
}
"""Field of a ``pretrained_cfg`` -> whether a value of it can be meant."""


def _check_classes(file: Path, cfg: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse a number of classes that no tensor can have, before a network is built with it."""
    count, names = cfg.get("num_classes"), cfg.get("label_names")
    if count is None:
        return
    largest = max((tensor.numel() for tensor in weights.values()), default=0)
    if count > largest or (names is not None and len(names) != count):
        raise ValueError(
            f"{file}: its pretrained_cfg tells of {count:,} classes"
            + ("" if names is None else f" and {len(names):,} names")
            + f", and its largest tensor has {largest:,} numbers; {RESTORE}"
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder and its configuration: the only reader of ``config.json``."""

    folder: Path
    """The folder."""
    config: TrainConfig
    """What was or is being trained."""

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Read the configuration of a run; its training need not have ended.

        Args:
            folder: What ``convattn train`` has made.

        Raises:
            FileNotFoundError: If the folder is no run.
            ValueError: If its configuration cannot be understood; says what is wrong with it.
        """
        path = Path(folder)
        file = path / CONFIG
        if not file.is_file():
            raise FileNotFoundError(
                f"{path} is no run folder, it has no {CONFIG}: {file} does not exist; name a "
                "folder that `convattn train` has made"
            )
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is not text in UTF-8 ({error.reason} at byte {error.start}); {RESTORE}"
            ) from None
        config = TrainConfig.from_json(text, str(file), required=_REQUIRED)
        if config.model.backbone is None and needs_backbone(config.model.name):
            raise ValueError(
                f"{file}: model.backbone is missing, which {config.model.name} needs; {RESTORE}"
            )
        return cls(folder=path, config=config)

    @property
    def weights(self) -> Path:
        """The trained weights.

        Raises:
            FileNotFoundError: If the training has not ended.
        """
        file = self.folder / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(
                f"{self.folder} has no {file.name} yet: its training has not ended; go on with "
                f"`convattn train --resume {self.folder}`"
            )
        return file

    @property
    def checkpoint(self) -> Path:
        """Where training keeps its last checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def has_ended(self) -> bool:
        """Whether training and the test after it have ended."""
        return (self.folder / "report.md").exists()

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """What the trained network needs of an image, and its classes' names, in timm's words."""
        file = self.weights
        text = read_metadata(file).get("pretrained_cfg", "{}")
        with reading(file, RESTORE):
            found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(
                f"{file}: its pretrained_cfg is {type(found).__name__}, expected an object "
                "of fields; restore the file from the run's backup or train anew"
            )
        for name, fits in _FITS.items():
            if found.get(name) is not None and not fits(found[name]):
                raise ValueError(
                    f"{file}: {name} of its pretrained_cfg is {short_repr(found[name])}, which "
                    f"means nothing; {RESTORE}"
                )
        return found

    def load_model(self) -> nn.Module:
        """The trained network, in evaluation mode, on the CPU.

        Its ``pretrained_cfg`` holds the size, mean, standard deviation, interpolation and crop that
        images need, and the names of the classes under ``label_names``, as timm's models do.

        Raises:
            FileNotFoundError: If the training has not ended.
            ValueError: If its files contradict each other.
        """
        config, cfg = self.config, self.pretrained_cfg
        file, weights = read_weights(self.weights)
        _check_classes(file, cfg, weights)
        try:
            model = build_trained(config.model, cfg=cfg, augment=config.augment)
        except KeyError as error:
            raise ValueError(f"{file}: its pretrained_cfg lacks {error}; {RESTORE}") from error
        # A network's own code raises whatever a damaged argument leads it to.
        except Exception as error:
            raise ValueError(f"{self.folder / CONFIG}: {one_line(error)}") from error
        load_checked(model, file, weights)
        return model

    @overload
    def predict(
        self,
        images: Any,
        *,
        out: None = None,
        reject_below: float | Literal["auto"] | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        device: str | None = None,
    ) -> Iterator[ImagePrediction]: ...

    @overload
    def predict(
        self,
        images: str | os.PathLike[str],
        *,
        out: str | os.PathLike[str],
        embeddings: str | os.PathLike[str] | None = None,
        reject_below: float | Literal["auto"] | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        device: str | None = None,
    ) -> PredictedTable: ...

    def predict(
        self,
        images: Any,
        *,
        out: str | os.PathLike[str] | None = None,
        embeddings: str | os.PathLike[str] | None = None,
        reject_below: float | Literal["auto"] | None = None,
        batch_size: int = 64,
        num_workers: int | None = None,
        device: str | None = None,
    ) -> Iterator[ImagePrediction] | PredictedTable:
        """Classify images, a batch at a time.

        Without ``out`` the predictions come one after the other, those of unreadable images with
        their ``error``. With it they go into a table, as ``convattn predict RUN FOLDER --out
        FILE.csv`` writes it; a call that was stopped goes on when it is repeated.

        Args:
            images: A folder or the path of an image; without ``out`` also an image as
                ``convattn.data.read_image`` takes it, or a list of these and of paths.
            out: The table, a new ``.csv``.
            embeddings: With ``out``: a new ``.npy`` or ``.safetensors`` with what the classifier
                layer reads, (N, C) float32, or (N, K, C) where each of K classes reads its own; a
                row for each of the table's.
            reject_below: Mark what is less probable, above 0 and at most 1; auto: than what
                ``convattn finetune`` chose.
            batch_size: Images that are computed at a time.
            num_workers: Processes that read images; None takes one a core if there are many images.
            device: Where to compute; None takes the GPU if there is one.

        Raises:
            FileNotFoundError: If there is nothing at the path, or the training has not ended.
            FileExistsError: If ``out`` or ``embeddings`` exists.
            ValueError: If the network is no classifier, an argument does not fit, a folder holds no
                image, or a table that was stopped was begun otherwise.
        """
        if is_dense(self.config.model.name):
            raise ValueError(
                f"predict is for networks that classify images, and {self.folder} holds "
                f"{self.config.model.name}; see convattn predict {self.folder} IMAGE"
            )
        config = PredictConfig(
            out=None if out is None else os.fspath(out),
            embeddings=None if embeddings is None else os.fspath(embeddings),
            reject_below=reject_below,
            batch_size=batch_size,
            num_workers=num_workers,
            device=device,
        )
        if config.out is None:
            if embeddings is not None:
                raise ValueError(
                    f"embeddings={config.embeddings!r} goes beside a table: give out='FILE.csv', "
                    "or take each prediction's own embedding"
                )
            return predict_each(self.load_model(), images, config)
        if not config.makes_table:
            raise ValueError(f"out={config.out!r} must end in .csv")
        if not isinstance(images, str | os.PathLike):
            raise ValueError(
                f"a table is of a folder or of the path of an image, not of "
                f"{type(images).__name__}: give a path, or no out"
            )
        check_table(config)
        return write_table(self.load_model(), Path(images), config)


def open_model(
    target: str,
    *,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """The trained model of a run folder or of a name, in evaluation mode.

    Args:
        target: A run folder, or a name in timm's registry.
        checkpoint: Weights of a model that is given by name; None takes those that the extra
            ``offline`` installed, or its released ones.
        num_classes: Number of classes of that checkpoint; None takes the model's own.
        in_chans: Channels of the images of a model that is given by name; None takes its own.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such model, or its weights are those of another.
    """
    if Path(target).is_dir():
        return Run.open(target).load_model()
    weights = None if checkpoint is None else Path(checkpoint)
    if weights is None and target == INSTALLED_MODEL and num_classes is None and in_chans is None:
        weights = find_installed()
    return create_model(
        target,
        pretrained=weights is None,
        checkpoint=weights,
        num_classes=num_classes,
        in_chans=in_chans,
    ).eval()
