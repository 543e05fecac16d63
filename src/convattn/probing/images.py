"""Images for a frozen network: opened, what cannot be read left out, what belongs together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from convattn.classification.dataset import open_data
from convattn.config import DataConfig
from convattn.data import ImageFiles, Source, TensorImages
from convattn.data.folders import find_duplicates, group_by_name, number_units
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
        images: Of the data set.
        data: What names a group.
    """
    if isinstance(images, TensorImages):
        return torch.arange(len(images))
    together = find_duplicates(images.paths)
    if data.group is not None:
        assert data.root is not None
        together += group_by_name(images.paths, Path(data.root), data.group)
    return torch.tensor(number_units(len(images), together))
