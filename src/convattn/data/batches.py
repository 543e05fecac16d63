"""Batches of images whose sizes differ, and what of a data set was left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from convattn.config import DataConfig
from convattn.data.annotated import describe_skipped
from convattn.data.images import TensorImages, find_readable
from convattn.text import report

Source = TypeVar("Source", bound=Any)


def without_bad_tests(config: DataConfig, source: Source) -> Source:
    """The source without test images that cannot be read, if the configuration wants that.

    Args:
        config: Whether it does.
        source: Of any task, its images without a transform.

    Raises:
        UnreadableImageError: If no test image can be read.
    """
    if config.bad_images == "error" or isinstance(source.test, TensorImages):
        return source
    readable, errors = find_readable(source.test)
    if not errors:
        return source
    reason = "unreadable test image"
    left_out: Source = dataclasses.replace(
        source,
        test=source.test.select(readable),
        skipped={**source.skipped, reason: len(errors)},
        skipped_names={**source.skipped_names, reason: tuple(errors[:3])},
    )
    return left_out


def collate_lists(items: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """A batch of images whose sizes or numbers of objects differ.

    Args:
        items: Images and truths.
    """
    images, truths = zip(*items, strict=True)
    return list(images), list(truths)


def list_batches(config: DataConfig, images: Dataset[Any]) -> DataLoader[Any]:
    """The images in order: batches of lists.

    Args:
        config: Size of a batch and number of workers.
        images: Gives images and truths.
    """
    return DataLoader(
        images,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        collate_fn=collate_lists,
    )


def report_skipped(
    skipped: Mapping[str, int], names: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Tell on stderr what was left out of a data set.

    Args:
        skipped: Reason -> how often.
        names: Reason -> the first names, where they are known.
    """
    if skipped:
        report(describe_skipped(skipped, names))
