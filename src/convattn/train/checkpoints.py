"""The file that a training goes on from: written beside its place, checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.plugins.io import TorchCheckpointIO

from convattn.train.datamodule import TrainingData
from convattn.train.task import TrainingTask
from convattn.weights import read_checkpoint, tensor_differences, write_checkpoint
from convattn.weights.reading import TRAINING_DATA

_ADVICE = "restore it, or train anew"


class WholeFiles(TorchCheckpointIO):
    """Lightning's checkpoints, whole or not at all, with their checksums.

    Lightning's own go through a copy in memory and another in the system's folder of temporary
    files, where a kill leaves them.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write one; its folder is there, or the run has been removed."""
        write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read one, on the CPU; nothing in it is run."""
        return read_checkpoint(Path(path), _ADVICE)


def check_checkpoint(file: Path, task: TrainingTask, data: TrainingData) -> int:
    """The step of a checkpoint that fits the network and the images.

    Args:
        file: The checkpoint.
        task: The network in training.
        data: The images.

    Raises:
        ValueError: If it is damaged, or of another network or other images.
    """
    content = read_checkpoint(file, _ADVICE)
    try:
        weights, step = content["state_dict"], int(content["global_step"])
        kept = cast(Mapping[str, Any], content[TRAINING_DATA])
        images, num_images = kept["images"], kept["num_images"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} lacks {error} of a training's checkpoint; {_ADVICE}") from None
    differences = tensor_differences(weights, task.state_dict())
    if differences:
        raise ValueError(
            f"{file} is of another model than config.json, {differences}; restore config.json"
        )
    if images != data.images_sha256:
        raise ValueError(
            f"{file} was made with {num_images:,} training images and there are "
            f"{data.num_images:,} now: some were added, removed, renamed or put into another "
            "class; bring those of then back, or start a new run with --model.checkpoint "
            f"{file}"
        )
    return step
