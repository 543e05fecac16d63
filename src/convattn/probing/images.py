"""Images for a frozen network: opened, what cannot be read left out, what belongs together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from convattn.classification.dataset import open_data
from convattn.config import DataConfig
from convattn.data import ImageFiles, Source, TensorImages
from convattn.data.drawing import find_duplicates, find_equal, group_by_name, number_units
from convattn.data.images import find_readable
from convattn.text import report


def open_source(data: DataConfig) -> Source:
    """The data set; training images that cannot be read are left out if they may be, and told.

    Args:
        data: Which.

    Raises:
        ValueError: If it is not what it should be.
        FileNotFoundError: If it is missing.
    """
    source = open_data(data)
    if data.bad_images == "error" or isinstance(source.train, TensorImages):
        return source
    readable, errors = find_readable(source.train)
    for error in errors:
        report(f"{error}; it is left out")
    return dataclasses.replace(source, train=source.train.select(readable))


def merge_validation(source: Source) -> tuple[Source, Tensor | None]:
    """The source with its own validation images at the end of those of training.

    Args:
        source: With or without validation images.

    Returns:
        The source without such a part, and the places of what was that; None if there was none.
    """
    if source.val is None:
        return source, None
    own = torch.arange(len(source.train), len(source.train) + len(source.val))
    note = f"chosen by the data set's own {len(own):,} validation images"
    train = join_images(source.train, source.val)
    return dataclasses.replace(source, train=train, val=None, notes=(*source.notes, note)), own


def join_images(
    first: TensorImages | ImageFiles, second: TensorImages | ImageFiles
) -> TensorImages | ImageFiles:
    """The images of two parts, one after the other.

    Args:
        first: Of one kind.
        second: Of the same.
    """
    labels = torch.cat([first.labels, second.labels])
    if isinstance(first, TensorImages):
        assert isinstance(second, TensorImages)
        return TensorImages(torch.cat([first.images, second.images]), labels)
    assert isinstance(second, ImageFiles)
    return ImageFiles(
        [*first.paths, *second.paths],
        labels,
        weights=_joined_weights(first, second),
        groups=_joined_groups(first, second),
        in_chans=first.in_chans,
    )


def _joined_groups(first: ImageFiles, second: ImageFiles) -> Tensor | None:
    """No group of one is a group of the other."""
    if first.groups is None and second.groups is None:
        return None
    numbers = [
        torch.arange(len(part)) if part.groups is None else part.groups for part in (first, second)
    ]
    return torch.cat([numbers[0], numbers[1] + int(numbers[0].max()) + 1])


def _joined_weights(first: ImageFiles, second: ImageFiles) -> Tensor | None:
    if first.weights is None and second.weights is None:
        return None
    return torch.cat(
        [
            torch.ones(len(part)) if part.weights is None else part.weights
            for part in (first, second)
        ]
    )


def find_groups(images: TensorImages | ImageFiles, data: DataConfig) -> Tensor:
    """(N,) numbers: images of one group, or of the same bytes, have the same.

    Args:
        images: Of the data set, with the groups that a table has given them.
        data: What names a group.
    """
    if isinstance(images, TensorImages):
        return torch.arange(len(images))
    together = find_duplicates(images.paths)
    if images.groups is not None:
        together += find_equal(images.groups.tolist())
    if data.group is not None:
        assert data.root is not None
        together += group_by_name(images.paths, Path(data.root), data.group)
    return torch.tensor(number_units(len(images), together))


def check_apart(source: Source, data: DataConfig) -> None:
    """Refuse a user's own images if one of the test is a training image, too.

    Args:
        source: The images.
        data: Which; a published set is taken as it is.

    Raises:
        ValueError: If two are the same, byte for byte.
    """
    train, test = source.train, source.test
    if data.name != "folder" or isinstance(train, TensorImages) or isinstance(test, TensorImages):
        return
    paths = [*train.paths, *test.paths]
    crossing = [same for same in find_duplicates(paths) if min(same) < len(train) <= max(same)]
    if not crossing:
        return
    more = f" (and {len(crossing) - 1:,} more so)" if len(crossing) > 1 else ""
    raise ValueError(
        f"the test image {paths[max(crossing[0])]} is the training image "
        f"{paths[min(crossing[0])]}, byte for byte{more}: the test would measure memory; keep each "
        "in one of the two parts"
    )
