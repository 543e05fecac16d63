"""Images for detection and segmentation as a configuration wants them.

Knows no Lightning, so that ``convattn evaluate`` starts without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from convattn.config import DataConfig
from convattn.data.annotated import describe_skipped
from convattn.data.coco import DetectionSource, load_detection
from convattn.data.dense_transforms import detection_test_transform, segmentation_test_transform
from convattn.data.masks import SegmentationSource, load_segmentation

_SHORTER_SIDE_OF_DETECTION = 800
_LONGEST_OVER_SHORTER = 5 / 3
_SHORTER_SIDE_OF_SEGMENTATION = 512


def open_detection(config: DataConfig, *, masks: bool, training: bool = True) -> DetectionSource:
    """The detection data set that a configuration names; what it leaves out is told on stderr.

    Args:
        config: Name, place and size of the data set.
        masks: Whether the objects' masks are needed.
        training: Whether the training images are wanted; else there is but one of them.

    Raises:
        ValueError: If there is no such data set, its files are not what they should be, or it has
            no masks where they are needed.
        FileNotFoundError: If its files are missing.
    """
    source = load_detection(
        config.name,
        root=config.root,
        image_size=config.image_size,
        num_train=config.num_train if training else 1,
        num_test=config.num_test,
        annotations=config.annotations,
        masks=masks,
        bad_annotations=config.bad_annotations,
        empty_images=config.empty_images,
    )
    if masks and not source.has_masks:
        raise ValueError(
            f"{config.name} has boxes and no masks, which this detector needs; name annotations "
            "with masks (--data.annotations), or train a retinanet"
        )
    _tell(source.skipped)
    return source


def detection_cfg(config: DataConfig, source: DetectionSource) -> dict[str, Any]:
    """What a detector trained on these images needs of a test image.

    Args:
        config: How images are resized.
        source: The data set.
    """
    own = source.image_size
    longest = config.max_size
    if config.image_size is not None or own is None:
        shorter = config.image_size or _SHORTER_SIDE_OF_DETECTION
        longest = longest or int(shorter * _LONGEST_OVER_SHORTER)
    else:
        shorter, longest = min(own), longest or max(own)
    return {
        "num_classes": len(source.class_names),
        "input_size": (3, shorter, shorter),
        "image_size": shorter,
        "max_size": longest,
        "mean": source.mean,
        "std": source.std,
        "label_names": source.class_names,
        "category_ids": source.category_ids,
    }


def detection_batches(config: DataConfig, source: DetectionSource) -> DataLoader[Any]:
    """The test images in order: lists of images, 0 to 1 and of their own sizes, and of truths.

    Args:
        config: Size of a batch and number of workers.
        source: The data set.
    """
    return _list_batches(config, source.test.with_transform(detection_test_transform()))


def open_segmentation(config: DataConfig, *, training: bool = True) -> SegmentationSource:
    """The segmentation data set that a configuration names; what it leaves out is told on stderr.

    Args:
        config: Name, place and size of the data set.
        training: Whether the training images are wanted; else there is but one of them.

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
        bad_annotations=config.bad_annotations,
    )
    _tell(source.skipped)
    return source


def segmentation_cfg(config: DataConfig, source: SegmentationSource) -> dict[str, Any]:
    """What a segmenter trained on these images needs of a test image.

    Args:
        config: How images are resized.
        source: The data set.
    """
    seen = config.crop_size or source.image_size or (_SHORTER_SIDE_OF_SEGMENTATION,) * 2
    return {
        "num_classes": len(source.class_names),
        "input_size": (3, *seen),
        "image_size": None if source.image_size is not None else config.image_size,
        "mean": source.mean,
        "std": source.std,
        "label_names": source.class_names,
    }


def segmentation_batches(
    config: DataConfig, source: SegmentationSource, cfg: Mapping[str, Any]
) -> DataLoader[Any]:
    """The test images in order, as the model sees them, and their masks: lists of both.

    Args:
        config: Size of a batch and number of workers.
        source: The data set.
        cfg: The ``pretrained_cfg`` of the model.
    """
    transform = segmentation_test_transform(
        image_size=cfg["image_size"], mean=tuple(cfg["mean"]), std=tuple(cfg["std"])
    )
    return _list_batches(config, source.test.with_transform(transform))


def as_lists(items: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """A batch of images whose sizes or numbers of objects differ.

    Args:
        items: Images and truths.
    """
    images, truths = zip(*items, strict=True)
    return list(images), list(truths)


def _list_batches(config: DataConfig, images: Dataset[Any]) -> DataLoader[Any]:
    return DataLoader(
        images,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        collate_fn=as_lists,
    )


def _tell(skipped: Mapping[str, int]) -> None:
    # Processes that help the first one train would only say the same again.
    if skipped and os.environ.get("LOCAL_RANK", "0") == "0":
        print(describe_skipped(skipped), file=sys.stderr)
