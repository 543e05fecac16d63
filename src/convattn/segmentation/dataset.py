"""Images to segment as a configuration wants them: opened, batched for a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from convattn.config import DataConfig
from convattn.data.batches import list_batches, normalisation, opened, parted
from convattn.data.dense_transforms import segmentation_test_transform
from convattn.data.segmentation import SegmentationSource, load_segmentation

_SHORTER_SIDE = 512


def open_data(
    config: DataConfig, *, training: bool = True, class_names: Sequence[str] | None = None
) -> SegmentationSource:
    """The segmentation data set that a configuration names; what it leaves out is told on stderr.

    Args:
        config: Name, place and size of the data set.
        training: Whether the training images are wanted; else there is but one of them.
        class_names: What the network that is tested on it calls its classes; None: those of the
            data set.

    Raises:
        ValueError: If there is no such data set, or its files are not what they should be.
        FileNotFoundError: If its files are missing.
    """
    source = load_segmentation(
        config.name,
        root=config.root,
        image_size=config.image_size,
        num_train=config.num_train if training else 1,
        num_test=config.num_test,
        format=config.format,
        annotations=config.annotations,
        bad_annotations=config.bad_annotations,
        group=config.group,
        split=config.split,
        class_names=class_names,
        ignore_unknown=config.ignore_unknown,
    )
    return opened(config, source)


def open_parted(config: DataConfig, *, seed: int, **arguments: Any) -> SegmentationSource:
    """The data set to train on, with a validation part if the configuration wants one.

    Args:
        config: As for ``open_data``.
        seed: Of the draw of the validation part.
        arguments: As for ``open_data``.

    Raises:
        ValueError: As ``open_data``, or if no image can be spared.
    """
    return parted(config, open_data(config, **arguments), seed=seed)


def pretrained_cfg(
    config: DataConfig,
    source: SegmentationSource,
    weights: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a segmenter trained on these images needs of a test image.

    Args:
        config: How images are resized.
        weights: The ``pretrained_cfg`` of the weights that it, or its backbone, starts from: mean
            and deviation are theirs.
    """
    seen = config.crop_size or source.image_size or (_SHORTER_SIDE,) * 2
    return {
        "num_classes": len(source.class_names),
        "input_size": (3, *seen),
        "image_size": None if source.image_size is not None else config.image_size,
        **normalisation(source, weights),
        "label_names": source.class_names,
    }


def test_batches(
    config: DataConfig, source: SegmentationSource, cfg: Mapping[str, Any]
) -> DataLoader[Any]:
    """The test images in order, as the model sees them, and their masks: lists of both.

    Args:
        config: Size of a batch and number of workers.
        cfg: The ``pretrained_cfg`` of the model.
    """
    transform = segmentation_test_transform(
        image_size=cfg["image_size"], mean=tuple(cfg["mean"]), std=tuple(cfg["std"])
    )
    return list_batches(config, source.test.with_transform(transform))
