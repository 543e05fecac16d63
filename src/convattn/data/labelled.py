"""A data set for classification, and what is made of one: a network's classes, other channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from convattn.data.bands import measure_channels
from convattn.data.classes import match_classes
from convattn.data.folders import LeftOut
from convattn.data.images import ImageFiles, TensorImages
from convattn.text import list_names

_MEASURED = 200  # images whose bands are measured


_GREY: tuple[tuple[float, ...], tuple[float, ...]] = ((0.449,), (0.226,))
"""Mean and deviation: the means of ImageNet's three."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set for classification."""

    name: str
    """Its name in ``DATASETS``."""
    class_names: tuple[str, ...]
    """The classes in the order of their numbers."""
    train: TensorImages | ImageFiles
    """Training images, without a transform: give them one by ``with_transform``."""
    test: TensorImages | ImageFiles
    """Test images, alike."""
    val: TensorImages | ImageFiles | None = None
    """Validation images, alike; None where the data set has none beside its test images."""
    test_drawn: bool = False
    """Whether the test images were drawn from images without splits."""
    multi_label: bool = False
    """Whether an image may have several classes, or none; its label is then (K,) of 0 and 1."""
    image_size: tuple[int, int] | None
    """Height and width in pixels; None when the images vary."""
    in_chans: int
    """Channels of an image."""
    mean: tuple[float, ...]
    """Mean of each channel, in 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, in 0..1."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """How many files, or folders, were left out, by reason."""
    skipped_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The first names of those, by reason; see ``describe_skipped``."""
    notes: tuple[str, ...] = ()
    """What whoever trains or tests on it has to know, a sentence each."""


def as_known(
    source: Source, class_names: Sequence[str] | None, ignore_unknown: bool, where: str
) -> Source:
    """The source with the classes that a network knows; its own are found among them by name.

    Args:
        source: As the data set has it.
        class_names: The network's, in its order; None leaves the source as it is.
        ignore_unknown: Whether images of other classes are left out, and counted, not refused.
        where: What an error calls the data set.

    Raises:
        ValueError: If a class is not known, or no test image is of one that is.
    """
    if class_names is None or tuple(class_names) == source.class_names:
        return source
    numbers = match_classes(source.class_names, class_names, ignore_unknown, where)
    left_out = {
        name: int(has_class(source.test.labels, number).sum())
        for number, name in enumerate(source.class_names)
        if numbers[number] < 0
    }
    train, test = (
        _renumbered(part, numbers, len(class_names)) for part in (source.train, source.test)
    )
    if not len(test):
        raise ValueError(
            f"{where} holds no image of a class that the network knows; expected some of "
            f"{list_names(class_names)}"
        )
    skipped, names = dict(source.skipped), dict(source.skipped_names)
    if left_out:
        skipped["image of an unknown class"] = sum(left_out.values())
        names["image of an unknown class"] = tuple(left_out)
    return replace(
        source,
        class_names=tuple(class_names),
        train=train,
        test=test,
        val=None,
        skipped=skipped,
        skipped_names=names,
    )


def has_class(labels: Tensor, number: int) -> Tensor:
    """Which images are of a class, (N,) bool, by labels (N,) or (N, K).

    Args:
        labels: Of all images.
        number: Of the class.
    """
    return labels == number if labels.ndim == 1 else labels[:, number]


def _renumbered(
    images: TensorImages | ImageFiles, numbers: Sequence[int], num_classes: int
) -> TensorImages | ImageFiles:
    """The images all of whose classes have a number, with that as their label."""
    if not len(images):
        return images
    known = torch.tensor(numbers) >= 0
    if images.labels.ndim == 1:
        kept = known[images.labels]
        labels = torch.tensor(numbers)[images.labels]
    else:
        kept = ~images.labels[:, ~known].any(1)
        labels = torch.zeros(len(images), num_classes, dtype=torch.bool)
        labels[:, torch.tensor(numbers)[known]] = images.labels[:, known]
    chosen = images.select(kept.nonzero()[:, 0])
    chosen.labels = labels[kept]
    return chosen


def with_left_out(source: Source, left_out: LeftOut, notes: Sequence[str]) -> Source:
    """The source with what was not taken, and what whoever uses it has to know.

    Args:
        source: Of files.
        left_out: What was not taken.
        notes: A sentence each.
    """
    return replace(
        source,
        skipped=dict(left_out.counts),
        skipped_names=left_out.names,
        notes=tuple(notes),
    )


def with_channels(source: Source, in_chans: int | None) -> Source:
    """The source with grey images, or with the bands of its files.

    Args:
        source: Of files.
        in_chans: Channels that are read; None and 3 leave the source as it is.

    Raises:
        ValueError: If there are fewer than 1.
    """
    if in_chans is None or in_chans == 3:
        return source
    if in_chans < 1:
        raise ValueError(f"in_chans={in_chans} (--data.in-chans); expected channels, at least 1")
    assert isinstance(source.train, ImageFiles)
    assert isinstance(source.test, ImageFiles)
    mean, std = _GREY
    if in_chans != 1:
        paths = source.train.paths or source.test.paths
        mean, std = measure_channels(paths[:: math.ceil(len(paths) / _MEASURED)], in_chans)
    return replace(
        source,
        train=source.train.with_channels(in_chans),
        test=source.test.with_channels(in_chans),
        val=source.val.with_channels(in_chans) if isinstance(source.val, ImageFiles) else None,
        in_chans=in_chans,
        mean=mean,
        std=std,
    )


def file_source(
    name: str,
    class_names: tuple[str, ...],
    train: ImageFiles,
    test: ImageFiles,
    val: ImageFiles | None = None,
) -> Source:
    """A source of files, whose images are of any size and normalised as ImageNet's are.

    Args:
        name: Of the data set.
        class_names: In the order of their numbers.
        train: Training images.
        test: Test images.
        val: Validation images, if there are some.
    """
    return Source(
        name=name,
        class_names=class_names,
        train=train,
        test=test,
        val=val,
        image_size=None,
        in_chans=3,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )
