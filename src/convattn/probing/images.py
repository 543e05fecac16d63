"""Images for a frozen network: opened, what cannot be read left out, what belongs together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from convattn.classification.dataset import open_data
from convattn.config import DataConfig
from convattn.data import ImageFiles, Source, TensorImages
from convattn.data.folders import find_duplicates, find_equal, group_by_name, number_units
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
