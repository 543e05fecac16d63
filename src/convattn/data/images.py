"""Data sets of images: in memory as one tensor, or as files that are read when asked for."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from convattn.data.bands import read_channels
from convattn.data.names import Names
from convattn.exceptions import UnreadableImageError
from convattn.text import report

_AT_ONCE = 10_000  # names

Transform = Callable[[Any], Tensor]
"""Turns an image, or a batch of them, into normalised floats: see ``convattn.data.transforms``."""


class TensorImages(Dataset[tuple[Tensor, int]]):
    """Labelled images of one size, held in memory as bytes.

    An item is ``(image, label)``. PyTorch's DataLoader asks for a whole batch at a time, so that
    a batch is one index operation and one call of ``transform``.

    Args:
        images: Bytes, (N, C, H, W).
        labels: Class numbers, (N,) int64.
        boxes: One box an image in pixels, (N, 4) int64: xmin, ymin, xmax, ymax; the maxima lie
            one past the object.
        masks: The object's pixels, (N, H, W) bool.
        transform: Called with a (B, C, H, W) uint8 batch; None gives the bytes themselves.

    Raises:
        ValueError: If the tensors disagree in number or kind.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        transform: Transform | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(
                f"images is {images.dtype} of shape {tuple(images.shape)}; expected torch.uint8 of "
                "shape (N, C, H, W): multiply floats in 0..1 by 255 and call .to(torch.uint8)"
            )
        for name, given in (("labels", labels), ("boxes", boxes), ("masks", masks)):
            if given is not None and len(given) != len(images):
                raise ValueError(
                    f"{name} holds {len(given)} rows for {len(images)} images; expected one each"
                )
        self.images = images
        self.labels = labels
        self.boxes = boxes
        self.masks = masks
        self.transform = transform

    def with_transform(self, transform: Transform | None) -> TensorImages:
        """The same images, shared and not copied, seen through another transform."""
        return TensorImages(
            self.images, self.labels, boxes=self.boxes, masks=self.masks, transform=transform
        )

    def select(self, indices: Tensor) -> TensorImages:
        """The images at ``indices`` (M,), in that order."""
        return TensorImages(
            self.images[indices],
            self.labels[indices],
            boxes=None if self.boxes is None else self.boxes[indices],
            masks=None if self.masks is None else self.masks[indices],
            transform=self.transform,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        chosen = torch.as_tensor(indices)
        images = self.images.index_select(0, chosen)  # ten times faster than [chosen]
        if self.transform is not None:
            images = self.transform(images)
        labels = self.labels[chosen]
        truths = labels.tolist() if labels.ndim == 1 else labels.float().unbind()
        return list(zip(images.unbind(), truths, strict=True))


class ImageFiles(Dataset[tuple[Any, ...]]):
    """Labelled image files, read as ``read_image`` reads them when asked for.

    An item is ``(image, label)``, or where there are weights ``(image, label, weight)``; the image
    is what ``transform`` makes of the PIL image, the label a number or, where images have several
    classes, floats (K,) of 0 and 1. A transform that has a method ``reduction`` tells by it how
    much smaller a JPEG may be decoded.

    Args:
        paths: One file an image.
        labels: Class numbers, (N,) int64; or which classes an image has, (N, K) bool.
        weights: How much each counts in the loss, (N,) float32; None: all alike.
        groups: Number of what each belongs with, (N,) int64, which no split parts; None: each
            stands alone.
        in_chans: Channels that are read of a file: see ``read_channels``.
        transform: Called with an upright PIL image in RGB, or in grey for one channel, or bytes (C,
            H, W) for others; None gives that image.

    Raises:
        UnreadableImageError: From ``[]``, for a file that is missing, cut short, or no image.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Tensor,
        *,
        weights: Tensor | None = None,
        groups: Tensor | None = None,
        in_chans: int = 3,
        transform: Transform | None = None,
    ) -> None:
        assert len(paths) == len(labels)
        self.paths: Sequence[str] = paths if isinstance(paths, Names) else Names(paths)
        self.labels = labels
        self.weights = weights
        self.groups = groups
        self.in_chans = in_chans
        self.transform = transform

    def with_transform(self, transform: Transform | None) -> ImageFiles:
        """The same files seen through another transform."""
        return self._with(transform=transform)

    def with_channels(self, in_chans: int) -> ImageFiles:
        """The same files, read with as many channels."""
        return self._with(in_chans=in_chans)

    def select(self, indices: Tensor) -> ImageFiles:
        """The files at ``indices`` (M,), in that order."""
        return self._with(
            paths=Names(self.paths[index] for index in indices.tolist()),
            labels=self.labels[indices],
            weights=None if self.weights is None else self.weights[indices],
            groups=None if self.groups is None else self.groups[indices],
        )

    def _with(self, **changed: Any) -> ImageFiles:
        other = copy.copy(self)
        vars(other).update(changed)
        return other

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        path = self.paths[index]
        reduction = getattr(self.transform, "reduction", None)
        image: Any = read_channels(path, self.in_chans, reduction=reduction)
        if self.transform is not None:
            image = self.transform(image)
        label = self.labels[index]
        truth = int(label) if label.ndim == 0 else label.float()
        return (image, truth) if self.weights is None else (image, truth, self.weights[index])


class Replacing(Dataset[Any]):
    """A data set for training in which the next image takes the place of one that is unreadable.

    Args:
        images: Raises ``UnreadableImageError`` for such.

    Raises:
        UnreadableImageError: From ``[]``, if none of the images can be read.
    """

    def __init__(self, images: Dataset[Any]) -> None:
        self.images = images
        self._told: set[int] = set()

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        for place in range(len(self)):
            chosen = (index + place) % len(self)
            try:
                return self.images[chosen]
            except UnreadableImageError as error:
                if place == len(self) - 1:
                    raise
                if chosen not in self._told:
                    report(f"{error}; the next image takes its place")
                    self._told.add(chosen)
        raise IndexError(index)


def digest_of_list(images: Any) -> str:
    """SHA-256 of which images a data set has, in order, and not of what the files hold.

    Their names below their common folder count, and their classes where those are known.

    Args:
        images: Of any kind.
    """
    digest = hashlib.sha256(str(len(images)).encode())
    names = getattr(images, "paths", None) or getattr(images, "names", None) or ()
    start = _common_start(names)
    waiting, between = iter(names), ""
    while some := [name[start:] for name in islice(waiting, _AT_ONCE)]:
        digest.update((between + "\0".join(some)).encode(errors="surrogateescape"))
        between = "\0"
    labels = getattr(images, "labels", None)
    if isinstance(labels, Tensor):
        digest.update(labels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _common_start(names: Sequence[str]) -> int:
    """Letters of the folder that absolute paths have in common; none of other names."""
    if not names or not all(map(os.path.isabs, names)):
        return 0
    first, last = min(names), max(names)
    return len(os.path.commonpath([first, last]) if first < last else os.path.dirname(first))


def find_readable(images: Any) -> tuple[Tensor, list[str]]:
    """Which images of a test can be read, (M,) ascending, and what is wrong with the others.

    Every image is read once for it.

    Args:
        images: A data set without a transform.

    Raises:
        UnreadableImageError: If none can be read.
    """
    readable, errors = [], []
    for index in tqdm(range(len(images)), desc="looking at the images", disable=None, leave=False):
        try:
            images[index]
        except UnreadableImageError as error:
            errors.append(str(error))
        else:
            readable.append(index)
    if errors and not readable:
        raise UnreadableImageError(errors[0])
    return torch.tensor(readable, dtype=torch.int64), errors
