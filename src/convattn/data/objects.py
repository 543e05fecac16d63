"""Images with objects on them, whatever file tells of them, and the checks that all pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from convattn.data.annotated import EntryFault
from convattn.data.classes import find_alike
from convattn.data.reading import Sample, read_sample, read_size, turned, turned_boxes
from convattn.exceptions import UnreadableImageError

Size = tuple[int, int]
"""Height and width in pixels."""

_OVERHANG = 1.0  # pixels that a box may reach beyond the image and is clipped


@dataclass(frozen=True)
class ObjectRecord:
    """One object of an image."""

    box: NDArray[np.float32]
    """(4,): xmin, ymin, xmax, ymax in pixels, within the image."""
    label: int
    """From 1."""
    area: float
    """In pixels."""
    iscrowd: bool
    """Whether it is to count neither for nor against a detector."""
    segmentation: Any
    """As ``decode_mask`` takes it; None where masks are not read."""


@dataclass(frozen=True)
class ImageRecord:
    """An image and its objects, as arrays: tensors would cost a file handle each in a worker."""

    path: str
    file: str
    """What tells of its objects, for errors."""
    image_id: int
    height: int
    width: int
    boxes: NDArray[np.float32]
    """(N, 4): xmin, ymin, xmax, ymax in pixels."""
    labels: NDArray[np.int64]
    """(N,), from 1; 0 for a class that the network does not know."""
    area: NDArray[np.float32]
    iscrowd: NDArray[np.bool_]
    segmentations: tuple[Any, ...]
    """As ``decode_mask`` takes them: masks are large."""
    ignored: tuple[Any, ...] = ()
    """Outlines, alike, of what counts as nothing where pixels have classes."""

    def select(self, kept: NDArray[np.bool_], labels: NDArray[np.int64]) -> ImageRecord:
        """The image with some of its objects, and other labels.

        Args:
            kept: Which objects, (N,).
            labels: Of all objects, (N,).
        """
        return ImageRecord(
            self.path,
            self.file,
            self.image_id,
            self.height,
            self.width,
            self.boxes[kept],
            labels[kept],
            self.area[kept],
            self.iscrowd[kept],
            tuple(one for one, keep in zip(self.segmentations, kept, strict=True) if keep),
            self.ignored,
        )


@dataclass(frozen=True, kw_only=True)
class ObjectPart:
    """The training or the test images of an ``ObjectSet``."""

    name: str
    """What an error calls it: its file or folder."""
    records: list[ImageRecord]


@dataclass(frozen=True, kw_only=True)
class ObjectSet:
    """What a folder tells of the objects on its images."""

    class_names: tuple[str, ...]
    """``class_names[i - 1]`` is the name of label i."""
    category_ids: tuple[int, ...]
    """What the files call each class."""
    are_listed: bool
    """Whether a file lists the classes; else they are those that objects have."""
    train: ObjectPart
    test: ObjectPart | None
    """None where nothing parts the images."""
    has_masks: bool
    """Whether the segmentations were read."""
    notes: tuple[str, ...] = ()
    """What whoever trains or tests on it has to know, a sentence each."""


def gather_objects(
    where: str,
    parts: Mapping[str | None, list[ImageRecord]],
    class_names: Sequence[str],
    *,
    are_listed: bool,
    has_masks: bool,
    notes: Sequence[str] = (),
) -> ObjectSet:
    """What a folder tells, of a format that numbers its classes by their places.

    Args:
        where: What an error calls the whole.
        parts: Split, that of training first -> its images; None for all, where nothing parts them.
        class_names: As in ``ObjectSet``, alike the rest.
    """
    train, *test = (
        ObjectPart(name=f"{where} ({split})" if split else where, records=records)
        for split, records in parts.items()
    )
    return ObjectSet(
        class_names=tuple(class_names),
        category_ids=tuple(range(1, len(class_names) + 1)),
        are_listed=are_listed,
        train=train,
        test=test[0] if test else None,
        has_masks=has_masks,
        notes=tuple(notes),
    )


def record_image(
    path: str,
    file: str,
    image_id: int,
    size: Size,
    objects: Sequence[ObjectRecord],
    ignored: Sequence[Any] = (),
) -> ImageRecord:
    """The record of an image.

    Args:
        path: Of the image.
        file: What tells of its objects.
        size: That its boxes and masks are for.
        objects: What is on it, checked.
        ignored: Outlines of what counts as nothing, checked.
    """
    return ImageRecord(
        path=path,
        file=file,
        image_id=image_id,
        height=size[0],
        width=size[1],
        boxes=np.array([one.box for one in objects], np.float32).reshape(-1, 4),
        labels=np.array([one.label for one in objects], np.int64),
        area=np.array([one.area for one in objects], np.float32),
        iscrowd=np.array([one.iscrowd for one in objects], np.bool_),
        segmentations=tuple(one.segmentation for one in objects),
        ignored=tuple(ignored),
    )


# --- checks, the same for every format


def fit_box(edges: Any, size: Size, said: str, expected: str) -> NDArray[np.float32]:
    """A box within its image, (4,); what reaches up to a pixel beyond it is clipped.

    Args:
        edges: xmin, ymin, xmax, ymax in pixels.
        size: Of the image.
        said: The box as its file has it, for errors.
        expected: How its edges have to lie, in the file's own words.

    Raises:
        ValueError: If it is no box of the image; begins with "has".
    """
    given = np.asarray(edges, np.float64)
    height, width = size
    limits = np.array([width, height, width, height])
    if not np.isfinite(given).all() or (given[2:] <= given[:2]).any():
        raise ValueError(f"has {said}; expected {expected}")
    box = given.clip(0, limits).astype(np.float32)
    if np.abs(given - given.clip(0, limits)).max() > _OVERHANG or (box[2:] <= box[:2]).any():
        raise ValueError(
            f"has {said}; expected it inside the image's {width} x {height} pixels (width x height)"
        )
    return box


def read_area(area: Any, box: NDArray[np.float32]) -> float:
    """Pixels of an object; those of its box where its file does not say.

    Raises:
        ValueError: If it is no number of pixels; begins with "has".
    """
    if area is None:
        return float((box[2:] - box[:2]).prod())
    if isinstance(area, bool) or not isinstance(area, int | float) or not 0 <= area < math.inf:
        raise ValueError(f"has the area {area!r}; expected pixels, at least 0")
    return area


def check_class_names(names: Sequence[str], where: str) -> None:
    """Refuse names that nobody can tell apart, or that are none.

    Raises:
        ValueError: If one is empty, or two differ as little as ``find_alike`` says.
    """
    if not all(name.strip() for name in names):
        raise ValueError(f"{where} has a class without a name; give it one")
    alike = find_alike(names)
    if alike is not None:
        raise ValueError(
            f"{where} has the classes {alike[0]!r} and {alike[1]!r}, which differ only in capitals "
            "or in how a letter is written; give both objects one name"
        )


def size_of(path: str) -> Size:
    """Height and width of the upright image in a file, which is not decoded.

    Raises:
        EntryFault: If it cannot be read.
    """
    try:
        return read_size(path)
    except UnreadableImageError as error:
        raise EntryFault("unreadable image", str(error)) from error


# --- items


def target_of(image_id: int, image: Tensor, *, boxes: Tensor, **columns: Tensor) -> dict[str, Any]:
    """The truth of an image, as ``load_detection`` describes it."""
    canvas = (image.shape[-2], image.shape[-1])
    return {
        "image_id": image_id,
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas),
        **columns,
    }


@dataclass(frozen=True)
class ObjectReader:
    """Reads an image and its truth.

    Args:
        masks: Whether that has masks.
    """

    masks: bool

    def __call__(self, record: ImageRecord) -> tuple[tv_tensors.Image, dict[str, Any]]:
        """The image and its target.

        Raises:
            UnreadableImageError: If it cannot be read, or has another size than its file says.
        """
        sample = read_sample(record.path, record.path)
        image = F.to_image(sample.image)
        orientation = orientation_of(record, sample)
        boxes = record.boxes
        if orientation != 1:
            boxes = turned_boxes(boxes, orientation, sample.stored_size)
        target = target_of(
            record.image_id,
            image,
            boxes=torch.tensor(boxes),
            labels=torch.tensor(record.labels),
            area=torch.tensor(record.area),
            iscrowd=torch.tensor(record.iscrowd),
        )
        if self.masks:
            masks = np.zeros((len(record.labels), *image.shape[1:]), np.uint8)
            for mask, segmentation in zip(masks, record.segmentations, strict=True):
                found = decode_mask(segmentation, record.height, record.width)
                mask[:] = turned(found, orientation)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return image, target


def orientation_of(record: ImageRecord, sample: Sample) -> int:
    """EXIF's number of how what is known of an image is to be turned; 1: not at all.

    Raises:
        UnreadableImageError: If the image has another size than its file says.
    """
    width, height = sample.image.size
    if (height, width) == (record.height, record.width):
        return 1
    if sample.stored_size != (record.width, record.height):
        raise UnreadableImageError(
            f"{record.path} is an image of {height} x {width} and {record.file} says "
            f"{record.height} x {record.width} (height x width): fetch the image anew or correct "
            "that file"
        )
    return sample.orientation


# --- masks


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """The pixels (H, W), 0 or 1, of a mask as COCO's json holds it.

    It is a list of polygons, which cover a pixel together, or run lengths down the columns,
    ``{"size": [H, W], "counts": ...}``, as whole numbers or packed into a text.

    Raises:
        ModuleNotFoundError: If faster-coco-eval, of the ``detection`` extra, is not installed.

    Examples:
        >>> decode_mask({"size": [2, 3], "counts": [1, 2, 3]}, 2, 3)
        array([[0, 1, 0],
               [1, 0, 0]], dtype=uint8)
    """
    coco_mask = _import_coco_mask()
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    pixels: NDArray[np.uint8] = coco_mask.decode([segmentation])[:, :, 0]
    return pixels


def _import_coco_mask() -> Any:
    try:
        from faster_coco_eval import mask_api_new_cpp
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "masks need faster-coco-eval: pip install 'convattn[detection]'",
            name="faster_coco_eval",
        ) from error
    return mask_api_new_cpp


def _run_lengths(segmentation: dict[str, Any]) -> NDArray[np.int64]:
    """Lengths of the runs of 0 and 1 in turn, the first of 0.

    Raises:
        ValueError: If they are none; it begins with "has".
    """
    counts = segmentation["counts"]
    if isinstance(counts, str):
        try:
            (plain,) = _import_coco_mask().toUncompressedRLE([segmentation])
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                "has a text as its mask that is no packed run lengths of the image"
            ) from error
        counts = np.asarray(plain["counts"], np.int64)
    lengths = np.asarray(counts)
    if lengths.dtype.kind != "i" or lengths.ndim != 1:
        raise ValueError("has run lengths that are no whole numbers")
    return lengths


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Make sure that a mask can be decoded.

    Raises:
        ValueError: If it is none of the image; it begins with "has".
    """
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, height, width)
    elif isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list | str):
        _check_runs(segmentation, height, width)
    else:
        raise ValueError("has no mask; expected polygons or run lengths as its segmentation")


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    if points.ndim != 1 or points.size < 6 or points.size % 2:
        size = points.size if points.ndim == 1 else "nested"
        raise ValueError(
            f"has a polygon of {size} numbers; expected x and y of at least three points in turn"
        )
    extent = np.array([width, height])
    # Filling walks along every edge: one that leads far away would take for ever.
    corners = points.reshape(-1, 2)
    if not ((corners >= -extent) & (corners <= 2 * extent)).all():
        raise ValueError(
            f"has a polygon with points far outside the image's {width} x {height} pixels "
            "(width x height) or that are no numbers"
        )


def _check_runs(segmentation: dict[str, Any], height: int, width: int) -> None:
    if segmentation.get("size") != [height, width]:
        raise ValueError(
            f"has a mask of size {segmentation.get('size')}; expected that of the image, "
            f"[{height}, {width}]"
        )
    lengths = _run_lengths(segmentation)
    possible = (lengths >= 0) & (lengths <= height * width)
    if not possible.all() or lengths.sum() != height * width:
        raise ValueError(
            f"has a mask whose runs cover {lengths.sum()} pixels; expected runs from 0 that cover "
            f"the image's {height * width}"
        )
