"""A part of the training images that is set aside, so that a training can be judged by it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from convattn.data.class_folders import MOST_COMPARED, with_classless
from convattn.data.drawing import draw_held_out, find_duplicates, find_equal, number_units
from convattn.data.images import ImageFiles, TensorImages
from convattn.data.labelled import Source
from convattn.text import list_names


def set_aside_validation(source: Source, share: float, *, seed: int) -> Source:
    """The source with a validation part out of its training images: about a share of each class.

    Files of the same bytes, and images of one group, are in one part. A class none of whose images
    can be spared has none in the validation part; that is told.

    Args:
        source: Without a validation part of its own.
        share: Of the training images, above 0 and below 1.
        seed: Of the draw.

    Raises:
        ValueError: If no image can be spared.
    """
    train = source.train
    units = torch.tensor(number_units(len(train), _together(train)))
    kept = _spared(train.labels, units)
    if not kept.any():
        raise ValueError(
            f"none of the {len(train)} training images can be spared for validation, since no "
            "class has two that may be parted; leave val_share (--val-share) out, or add "
            "images"
        )
    labels, names = with_classless(train.labels[kept], source.class_names)
    drawn = torch.zeros(len(train), dtype=torch.bool)
    drawn[kept] = draw_held_out(
        labels,
        names,
        find_equal(units[kept].tolist()),
        seed,
        share=share,
        purpose="validate",
    )
    val = train.select(drawn.nonzero()[:, 0])
    if isinstance(val, ImageFiles):
        val.weights = None  # every image of a test counts once
    notes = [
        f"{len(val):,} of {len(train):,} training images are set aside to validate on",
        *_without_validation(source, val.labels),
    ]
    return replace(
        source,
        train=train.select((~drawn).nonzero()[:, 0]),
        val=val,
        notes=(*source.notes, *notes),
    )


def _together(images: TensorImages | ImageFiles) -> list[list[int]]:
    """Places of images that must not be parted."""
    if isinstance(images, TensorImages):
        return find_equal(hashlib.sha256(image.numpy()).digest() for image in images.images)
    groups = [] if images.groups is None else find_equal(images.groups.tolist())
    return groups if len(images) > MOST_COMPARED else groups + find_duplicates(images.paths)


def _spared(labels: Tensor, units: Tensor) -> Tensor:
    """Images that may be drawn, (N,) bool: none whose class would be left without training.

    Args:
        labels: Class numbers (N,), or (N, K) bool.
        units: (N,) number of what may not be parted.
    """
    images, classes = _memberships(labels)
    kept = torch.ones(len(labels), dtype=torch.bool)
    while True:
        there = kept[images]
        pairs = torch.stack([classes[there], units[images[there]]], dim=1).unique(dim=0)
        lone = (torch.bincount(pairs[:, 0]) == 1).nonzero()[:, 0]
        if not len(lone):
            return kept
        kept &= ~torch.isin(units, pairs[torch.isin(pairs[:, 0], lone), 1])


def _memberships(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images and their classes, (M,) each, an entry for each class of an image."""
    if labels.ndim == 1:
        return torch.arange(len(labels)), labels
    images, classes = labels.nonzero().unbind(1)
    return images, classes


def _without_validation(source: Source, labels: Tensor) -> list[str]:
    """A sentence on the classes that have no validation image."""
    present = set(_memberships(labels)[1].tolist())
    absent = [repr(name) for number, name in enumerate(source.class_names) if number not in present]
    return [f"no validation image is of {list_names(absent)}"] if absent else []
