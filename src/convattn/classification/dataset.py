"""Images to classify as a configuration wants them: opened, transformed, batched for a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from timm.data import resolve_data_config
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader

from convattn.config import DataConfig
from convattn.data import (
    ImageFiles,
    Source,
    TensorImages,
    load_source,
    train_transform,
    transform_of,
)
from convattn.data.batches import opened
from convattn.data.images import Transform, find_readable
from convattn.data.validation import set_aside_validation
from convattn.data.workers import end_with_reader
from convattn.text import report

_SIZE_OF_VARYING_IMAGES = 224
_CROP_OF_RESIZED_IMAGES = 0.875


def open_data(
    config: DataConfig,
    *,
    training: bool = True,
    class_names: Sequence[str] | None = None,
    multi_label: bool | None = None,
    test_all: bool = False,
) -> Source:
    """The data set that a configuration names; its images are the same for every run's seed.

    What it leaves out, and what else is to be known of it, is told on stderr.

    Args:
        config: Name, place and size of the data set.
        training: Whether the training images are wanted; else there is at most one of them, since
            generating all takes longer than most tests.
        class_names: What the network that is tested on it calls its classes; None: those of the
            data set.
        multi_label: Whether it finds several classes an image; None: as the data set is.
        test_all: Whether a folder without splits is all for the test.

    Raises:
        ValueError: If there is no such data set, its images have several classes where the network
            finds one, its files are not what they should be, or it has
            a class that the network does not know.
        FileNotFoundError: If its files are missing.
    """
    source = load_data(
        config if training else replace(config, num_train=1),
        class_names=class_names,
        test_all=test_all,
    )
    if multi_label is not None:
        source = _with_label_of(source, multi_label, config)
    return opened(config, source)


def load_data(
    config: DataConfig, *, class_names: Sequence[str] | None = None, test_all: bool = False
) -> Source:
    """As ``open_data``, of which nothing is told."""
    return load_source(
        config.name,
        root=config.root,
        download=config.download,
        image_size=config.image_size,
        num_train=config.num_train,
        num_test=config.num_test,
        in_chans=config.in_chans,
        format=config.format,
        path_column=config.path_column,
        labels_column=config.labels_column,
        bad_annotations=config.bad_annotations,
        group=config.group,
        parts_train=config.val_share is not None,
        class_names=class_names,
        ignore_unknown=config.ignore_unknown,
        test_all=test_all,
    )


def with_validation(config: DataConfig, source: Source, *, seed: int) -> Source:
    """The source with a validation part, if there is one to be; what is set aside is told.

    Args:
        config: Whether a share of the training images is wanted.
        source: As ``open_data`` gives it.
        seed: Of the draw.

    Raises:
        ValueError: If no image can be spared.
    """
    if source.val is None and config.val_share is not None:
        before = len(source.notes)
        source = set_aside_validation(source, config.val_share, seed=seed)
        for note in source.notes[before:]:
            report(note)
    elif source.val is not None:
        report(f"validated on the data set's own {len(source.val):,} validation images")
    if config.bad_images == "skip" and isinstance(source.val, ImageFiles):
        readable, errors = find_readable(source.val)
        for error in errors:
            report(f"{error}; it is left out")
        source = replace(source, val=source.val.select(readable))
    return source


def _with_label_of(source: Source, multi_label: bool, config: DataConfig) -> Source:
    """The source with labels as the network knows them; one class an image is a case of several."""
    if source.multi_label and not multi_label:
        raise ValueError(
            f"{config.root} gives images several classes, and the network finds one an image; name "
            "a column of one class an image (--data.labels-column), or train a network on these"
        )
    if source.multi_label == multi_label:
        return source
    num_classes = len(source.class_names)
    parts = []
    for part in (source.train, source.test):
        alike = part.with_transform(part.transform)
        alike.labels = one_hot(part.labels, num_classes).bool()
        parts.append(alike)
    train, test = parts
    return replace(source, train=train, test=test, multi_label=True)


def training_transform(config: DataConfig, cfg: Mapping[str, Any]) -> Transform:
    """What is done to a training image.

    Args:
        config: How it is cropped and augmented.
        cfg: As ``pretrained_cfg`` gives it.
    """
    return train_transform(
        tuple(cfg["input_size"][1:]),
        scale=config.scale,
        ratio=config.ratio,
        random_crop_padding=config.random_crop_padding,
        hflip=config.hflip,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment,
        random_erasing=config.random_erasing,
        interpolation=cfg["interpolation"],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )


def pretrained_cfg(
    config: DataConfig, source: Source, weights: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a network trained on these images needs of a test image, in timm's words.

    Where images have several classes ``multi_label`` is true, which timm has no word for.

    Args:
        config: How images are resized and cropped.
        weights: The ``pretrained_cfg`` of the weights that it starts from. What ``config`` leaves
            open is as they want it; so are mean and deviation where the channels are as many.
    """
    wanted = {} if weights is None else resolve_data_config(pretrained_cfg=dict(weights))
    size = _image_size(config, source, wanted)
    crop_pct = config.crop_pct
    if crop_pct is None and size == source.image_size:
        crop_pct = 1.0
    elif crop_pct is None:
        crop_pct = wanted.get("crop_pct", _CROP_OF_RESIZED_IMAGES)
    known = len(wanted.get("mean", ())) == source.in_chans
    several = {"multi_label": True} if source.multi_label else {}
    return {
        "num_classes": len(source.class_names),
        "input_size": (source.in_chans, *size),
        "mean": tuple(wanted["mean"]) if known else source.mean,
        "std": tuple(wanted["std"]) if known else source.std,
        "interpolation": config.interpolation or wanted.get("interpolation", "bicubic"),
        "crop_pct": crop_pct,
        "crop_mode": wanted.get("crop_mode", "center"),
        "label_names": source.class_names,
        **several,
    }


def test_batches(
    config: DataConfig, source: Source, cfg: Mapping[str, Any]
) -> tuple[DataLoader[Any], Tensor | None]:
    """The test images in order, and the boxes of their objects where they are known.

    Args:
        config: Size of a batch and number of workers.
        cfg: The ``pretrained_cfg`` of the model.

    Returns:
        The batches, and (N, 4) boxes in pixels of what the model sees, or None.
    """
    loader = DataLoader(
        source.test.with_transform(transform_of(cfg)),
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        worker_init_fn=end_with_reader,
    )
    as_they_are = tuple(cfg["input_size"][1:]) == source.image_size and cfg["crop_pct"] == 1
    boxes = source.test.boxes if isinstance(source.test, TensorImages) else None
    return loader, boxes if as_they_are else None


def _image_size(config: DataConfig, source: Source, wanted: Mapping[str, Any]) -> tuple[int, int]:
    if config.image_size is not None:
        return config.image_size, config.image_size
    if wanted:
        _, height, width = wanted["input_size"]
        return height, width
    return source.image_size or (_SIZE_OF_VARYING_IMAGES, _SIZE_OF_VARYING_IMAGES)
