"""Images to detect objects on as a configuration wants them: opened, batched for a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from convattn.config import DataConfig
from convattn.data.batches import list_batches, normalisation, opened, parted
from convattn.data.dense_transforms import detection_test_transform
from convattn.data.detection import DetectionImages, DetectionSource, load_detection
from convattn.data.objects import ImageRecord

_SHORTER_SIDE = 800
_LONGEST_OVER_SHORTER = 5 / 3


def open_data(
    config: DataConfig,
    *,
    masks: bool | None,
    training: bool = True,
    class_names: Sequence[str] | None = None,
) -> DetectionSource:
    """The detection data set that a configuration names; what it leaves out is told on stderr.

    Args:
        config: Name, place and size of the data set.
        masks: Whether the objects' masks are needed; None: they are read where there are some.
        training: Whether the training images are wanted; else there is but one of them.
        class_names: What the network that is tested on it calls its classes; None: those of the
            data set.

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
        format=config.format,
        annotations=config.annotations,
        masks=masks is not False,
        bad_annotations=config.bad_annotations,
        class_names=class_names,
        ignore_unknown=config.ignore_unknown,
        empty_images=config.empty_images,
        group=config.group,
        split=config.split,
    )
    if masks and not source.has_masks:
        raise ValueError(
            f"{config.name} has boxes and no masks, which this detector needs; name annotations "
            "with masks (--data.annotations), or train a retinanet"
        )
    return opened(config, source)


def open_parted(config: DataConfig, *, seed: int, **arguments: Any) -> DetectionSource:
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
    source: DetectionSource,
    weights: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a detector trained on these images needs of a test image.

    Args:
        config: How images are resized.
        weights: The ``pretrained_cfg`` of the weights that it, or its backbone, starts from: mean
            and deviation are theirs.
    """
    own = source.image_size
    longest = config.max_size
    if config.image_size is not None or own is None:
        shorter = config.image_size or _SHORTER_SIDE
        longest = longest or int(shorter * _LONGEST_OVER_SHORTER)
    else:
        shorter, longest = min(own), longest or max(own)
    return {
        "num_classes": len(source.class_names),
        "input_size": (3, shorter, shorter),
        "image_size": shorter,
        "max_size": longest,
        **normalisation(source, weights),
        "label_names": source.class_names,
        "category_ids": source.category_ids,
    }


def largest_object(images: DetectionImages) -> float | None:
    """Longest side of any object in pixels of its image; None where no file tells of objects.

    Args:
        images: Of a data set.
    """
    boxes = [one.boxes for one in images.samples if isinstance(one, ImageRecord) and len(one.boxes)]
    return max((float((one[:, 2:] - one[:, :2]).max()) for one in boxes), default=None)


def test_batches(config: DataConfig, source: DetectionSource) -> DataLoader[Any]:
    """The test images in order: lists of images, 0 to 1 and of their own sizes, and of truths.

    Args:
        config: Size of a batch and number of workers.
    """
    return list_batches(config, source.test.with_transform(detection_test_transform()))
