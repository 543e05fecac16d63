"""Batches of images whose sizes differ, and what of a data set was left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

from convattn.config import DataConfig
from convattn.data.annotated import describe_skipped, set_aside_images
from convattn.data.bands import extensions_of
from convattn.data.counts import summarize
from convattn.data.folders import LeftOut, find_images
from convattn.data.images import TensorImages, find_readable
from convattn.data.workers import end_with_reader
from convattn.text import report

Source = TypeVar("Source", bound=Any)


UNREADABLE = "unreadable test image"
"""Reason why an image is left out of a test."""


def opened(config: DataConfig, source: Source) -> Source:
    """A source as it is used: what it leaves out, and what else is to be known, told on stderr.

    Of data from a folder it is told, too, how many images they have, and what is worst about that.

    Args:
        config: Whether test images that cannot be read are left out.
        source: Of any task, its images without a transform.

    Raises:
        UnreadableImageError: If no test image can be read.
    """
    source = _without_bad_tests(config, source)
    report_skipped(source.skipped, source.skipped_names)
    for note in source.notes:
        report(note)
    if config.root is not None:
        for line in summarize(source, config.root):
            report(line)
    return source


def parted(config: DataConfig, source: Source, *, seed: int) -> Source:
    """A source of boxes or masks with a validation part if one is wanted, which is told on stderr.

    Args:
        config: Which share of the training images.
        source: As ``opened`` gives it.
        seed: Of the draw.

    Raises:
        ValueError: If no image can be spared.
    """
    if config.val_share is None:
        return source
    before = len(source.notes)
    source = set_aside_images(
        source, config.val_share, root=config.root, group=config.group, seed=seed
    )
    for note in source.notes[before:]:
        report(note)
    return source


def _without_bad_tests(config: DataConfig, source: Source) -> Source:
    if config.bad_images == "error" or isinstance(source.test, TensorImages):
        return source
    readable, errors = find_readable(source.test)
    if not errors:
        return source
    left_out: Source = dataclasses.replace(
        source,
        test=source.test.select(readable),
        skipped={**source.skipped, UNREADABLE: len(errors)},
        skipped_names={**source.skipped_names, UNREADABLE: tuple(errors[:3])},
    )
    return left_out


def normalisation(source: Any, weights: Mapping[str, Any] | None) -> dict[str, Any]:
    """Mean and deviation that a dense network's images are normalised by.

    Args:
        source: Of which they are where there are no weights, or weights that do not tell.
        weights: The ``pretrained_cfg`` of the weights that the network starts from.
    """
    given = weights or {}
    known = all(len(given.get(name, ())) == len(source.mean) for name in ("mean", "std"))
    mean, std = (given["mean"], given["std"]) if known else (source.mean, source.std)
    return {"mean": tuple(mean), "std": tuple(std)}


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
        worker_init_fn=end_with_reader,
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


def list_images(place: Path, in_chans: int = 3) -> list[str]:
    """Paths of the images of a folder and of those below it; what is left out is told on stderr.

    Args:
        place: A folder, or one image.
        in_chans: Channels that the network sees.

    Returns:
        The folder as given, then forward slashes; sorted as text.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If the folder holds no image.
    """
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; name an image or a folder of images")
    if not place.is_dir():
        return [place.as_posix()]
    left_out = LeftOut()
    found = find_images(place, left_out, extensions=extensions_of(in_chans))
    if not found:
        raise ValueError(f"{place} holds no image; name a folder of .jpg, .png or similar files")
    report_skipped(left_out.counts, left_out.names)
    return sorted(Path(file).as_posix() for file in found)
