"""Data sets for detection by name: folders of images with boxes and masks, generated scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import tv_tensors

from convattn.config import BadAnnotations, DataFormat
from convattn.data.annotated import (
    AnnotatedImages,
    AnnotatedSource,
    Faults,
    part_images,
    refuse_shared,
    require_same_classes,
)
from convattn.data.choosing import check_format, check_name, draw_part, find_root, refuse_root
from convattn.data.classes import match_classes
from convattn.data.dense_shards import load_object_shards, refuse_parting
from convattn.data.drawing import refuse_group
from convattn.data.folders import held_out_split
from convattn.data.formats import OBJECT_FORMATS, find_format, refuse_annotations
from convattn.data.listing import Listing
from convattn.data.objects import (
    ImageRecord,
    ObjectPart,
    ObjectReader,
    ObjectSet,
    target_of,
)
from convattn.data.scenes import SCENES_MEAN, SCENES_STD, Scenes, draw_scenes, scene_names
from convattn.data.shards import SHARDED

DETECTION_DATASETS: tuple[str, ...] = ("cluttered_digits", "folder", "coco", *SHARDED)
"""Names that ``load_detection`` takes."""

DetectionImages = AnnotatedImages[dict[str, Any]]
"""An item is ``(image, target)``: see ``load_detection``."""

EmptyImages = Literal["keep", "skip", "error"]

_TEST_SEED = 0
_UNKNOWN = 0  # label of a class that the network does not know


@dataclass(frozen=True, kw_only=True)
class DetectionSource(AnnotatedSource[dict[str, Any]]):
    """A data set for detection."""

    class_names: tuple[str, ...]
    """The classes without the background: ``class_names[i - 1]`` is the name of label i."""
    category_ids: tuple[int, ...]
    """COCO's id of each class; -1 for one that the json does not list."""
    has_masks: bool
    """Whether targets hold ``masks``."""


def load_detection(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    format: DataFormat = "auto",
    annotations: str | None = None,
    masks: bool = True,
    bad_annotations: BadAnnotations = "error",
    empty_images: EmptyImages = "keep",
    group: str | None = None,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    ignore_unknown: bool = False,
    seed: int = 0,
) -> DetectionSource:
    """Open a data set for detection by name.

    - ``cluttered_digits`` is generated (see ``generate_scenes``): 4,000 training and 500 test
      images of 96 x 96 unless told otherwise. ``seed`` chooses the training images; the test
      images are always the same.
    - ``folder`` reads your own, in one of the formats below; ``coco`` is a folder in the first.
    - ``webdataset`` and ``litdata`` read what ``convattn shard`` has written of such a folder: the
      same items, in the same order.

    Splits may be called train or training, val, valid, validation or dev, and test or testing, in
    any case; where there are val and test, val is the test set. Where nothing parts the images,
    about a fifth, drawn by ``seed``, becomes the test set; files of the same bytes, and what
    ``group`` finds to belong together, stay on one side.

    - ``"coco"``: COCO's json, https://cocodataset.org/#format-data, anywhere below ``root``. A json
      is that of a split by its name, ``instances_train2017.json`` or ``train.json``, or by its
      folder, ``train/_annotations.coco.json``; one alone without a split's name is of all images.
      A ``file_name`` may begin at the split's folder (``train2017``, ``images/train2017``), at that
      of the json or at ``root``, or be the end of a path below that is the only one of its kind.
    - ``"yolo"``: ``data.yaml`` with names, train and val as Ultralytics reads it, or
      ``images/train`` beside ``labels/train`` with ``classes.txt``. A row is a box or a polygon.
      An image without a text file has no objects.
    - ``"voc"``: ``Annotations/*.xml`` and ``JPEGImages`` with ``ImageSets/Main/train.txt`` and
      ``val.txt``, or folders of the splits that hold images and their xml. Boxes count pixels from
      1, as Pascal's do, but from 0 where one of the set begins there or every xml is of the
      database "Unknown", as LabelImg and CVAT write it. A difficult object is a crowd: it counts
      neither in training nor for or against a detector.
    - ``"labelme"``: a json an image, with rectangles, polygons and circles; those of one label and
      ``group_id`` are one object. The labels ``__ignore__`` and ``_background_`` are left out.

    The classes of ``"voc"`` and ``"labelme"`` are those that objects have, sorted, or those that
    ``labels.txt``, ``classes.txt`` or ``labelmap.txt`` lists.

    An item is ``(image, target)``: a ``tv_tensors.Image`` of bytes (3, H, W) and a dict of
    ``image_id`` int, ``boxes`` tv_tensors.BoundingBoxes (N, 4) float32 as xmin, ymin, xmax, ymax in
    pixels, ``labels`` (N,) int64 from 1, ``area`` (N,) float32, ``iscrowd`` (N,) bool and, where
    the source has them, ``masks`` tv_tensors.Mask (N, H, W) uint8. Labels count COCO's categories
    in the order of their ids, and the names of other formats in theirs.

    Images stand upright, as ``read_image`` gives them. Where the width and height that a file tells
    are those of the image as its file stores it, and EXIF says that it is to be turned by a
    quarter, boxes and masks are turned with it; where they are those of the upright image, they are
    taken as they are. An image that is square, or turned by a half, has the same size both ways:
    its boxes are taken for those of the upright one, which whoever drew them has seen.

    A box that reaches up to one pixel beyond its image is clipped. What else is wrong with an
    entry stops the loading or, with ``bad_annotations="skip"``, leaves the entry out: an image
    that is missing, listed twice or one of two that may be meant; an annotation that repeats an id,
    names no image or category, or whose box or mask is none or does not fit its image. An image
    whose size is not what its file tells raises ``UnreadableImageError`` when it is asked for.

    Args:
        name: One of ``DETECTION_DATASETS``.
        root: Folder of the data set; generated sets need none.
        image_size: Side of generated images in pixels; all others keep their own size.
        num_train: Training images to make, or to draw by ``seed`` from all; None means all.
        num_test: Test images, alike; the draw does not depend on ``seed``.
        format: How a ``folder`` tells the objects: ``"coco"``, ``"yolo"``, ``"voc"`` or
            ``"labelme"``; ``"auto"`` looks, says in ``notes`` what it took, and refuses a folder
            that may be in two.
        annotations: Of COCO's json: the first part of its name, before that of the split, or a part
            of its path, where there are several.
        masks: Whether to read masks where there are some.
        bad_annotations: ``"error"`` stops at faulty entries, ``"skip"`` leaves them out and counts.
        empty_images: What to do with training images that hold no object but crowds: ``"keep"``
            or ``"skip"`` them, or an ``"error"``.
        group: A regular expression for a folder without splits. Images in whose paths below
            ``root`` its group, or the whole of it, finds the same are in one part.
        split: The split that is the test set, for example ``"test"`` where there is val, too.
        class_names: What a network calls its classes, from label 1. The source then has these
            classes; the folder's are found among them by name, and may be fewer.
        ignore_unknown: Leave objects of classes that are not among ``class_names`` out, and count
            them, rather than refuse them.
        seed: Any integer from 0.

    Raises:
        ValueError: If a name or number does not fit, a file is not what it should be, the split is
            not there, an image is both to be trained and tested on, a class has no training object
            though no file lists it, or there is one that is not among ``class_names``.
        FileNotFoundError: If folders or files are missing.
        ModuleNotFoundError: From ``[]``, if a polygon is to be filled and faster-coco-eval, of the
            ``detection`` extra, is not installed.

    Examples:
        >>> source = load_detection("cluttered_digits", num_train=20, num_test=10)
        >>> image, target = source.test[0]
        >>> tuple(image.shape), sorted(target)
        ((3, 96, 96), ['area', 'boxes', 'image_id', 'iscrowd', 'labels', 'masks'])
    """
    check_name(name, DETECTION_DATASETS, " for detection")
    if empty_images not in ("keep", "skip", "error"):
        raise ValueError(f"empty_images={empty_images!r}; expected 'keep', 'skip' or 'error'")
    check_format(name, format, {"folder": tuple(OBJECT_FORMATS), "coco": ("coco",)}.get(name, ()))
    if name == "cluttered_digits":
        refuse_root(name, root, "folder")
        held_out_split((), split, name)
        source = _load_scenes(image_size, num_train, num_test, masks, seed)
        require_same_classes(source.class_names, class_names, name)
        return source
    faults = Faults(bad_annotations)
    if name in SHARDED:
        refuse_annotations(annotations, name)
        refuse_parting(group, split)
        objects = load_object_shards(name, root, masks=masks)
    else:
        folder = find_root(name, root, download=False)
        objects = load_objects(
            Listing(folder, faults.left_out),
            "coco" if name == "coco" else format,
            annotations,
            faults,
            masks=masks,
            group=group,
            split=split,
            are_known=class_names is not None,
            seed=seed,
        )
    source = _file_source(name, objects, class_names, ignore_unknown, empty_images, faults)
    return replace(
        source,
        train=draw_part(source.train, num_train, seed, f"{name}: num_train"),
        test=draw_part(source.test, num_test, _TEST_SEED, f"{name}: num_test"),
    )


# --- folders


def load_objects(
    listing: Listing,
    format: DataFormat,
    annotations: str | None,
    faults: Faults,
    *,
    masks: bool,
    group: str | None,
    split: str | None,
    are_known: bool,
    seed: int,
) -> ObjectSet:
    """What a folder tells of the objects on its images, checked and parted.

    Args:
        listing: Of the folder; ``faults.left_out`` is its own.
        format: One of ``OBJECT_FORMATS``, or ``"auto"``.
        annotations: As for ``load_detection``.
        faults: Notes entries that are at fault.
        masks: Whether to read masks where there are some.
        group: As for ``load_detection``.
        split: As for ``load_detection``.
        are_known: Whether the classes are a network's, so that training images need not show them.
        seed: Of the draw, where nothing parts the images.

    Returns:
        The objects; its test part is there.

    Raises:
        ValueError, FileNotFoundError: As ``load_detection``.
    """
    notes: list[str] = []
    if format == "auto":
        format = find_format(listing, OBJECT_FORMATS, annotations, notes)
    refuse_annotations(annotations, format)
    objects = OBJECT_FORMATS[format].read(
        listing, faults, masks=masks, annotations=annotations, split=split
    )
    faults.settle()
    for part in (objects.train, objects.test):
        if part is not None and not part.records:
            raise ValueError(
                f"{part.name}: no image remains; expected at least one that can be used"
            )
    if objects.test is None:
        held_out_split((), split, listing.root)
    train, test = _parted(objects, listing.root, group, seed, notes)
    refuse_shared(
        (record.path for record in train.records), (record.path for record in test.records)
    )
    if not objects.are_listed and not are_known:
        _require_trained(objects.class_names, train, test)
    return replace(objects, train=train, test=test, notes=(*notes, *objects.notes))


def _parted(
    objects: ObjectSet, root: Path, group: str | None, seed: int, notes: list[str]
) -> tuple[ObjectPart, ObjectPart]:
    if objects.test is not None:
        refuse_group(group, root)
        return objects.train, objects.test
    records = objects.train.records
    places = part_images(
        [record.path for record in records],
        [record.labels.tolist() for record in records],
        root,
        group,
        seed,
        notes,
    )
    train, test = (
        ObjectPart(name=objects.train.name, records=[records[place] for place in part.tolist()])
        for part in places
    )
    return train, test


def _require_trained(names: Sequence[str], train: ObjectPart, test: ObjectPart) -> None:
    """Refuse a class that only test objects have, where no file lists the classes."""
    learnt = {label for record in train.records for label in record.labels.tolist()}
    for record in test.records:
        for label in record.labels.tolist():
            if label not in learnt:
                raise ValueError(
                    f"{record.file} has an object of class {names[label - 1]!r}, which no training "
                    "image shows; label some there, or rename it"
                )


def _file_source(
    name: str,
    objects: ObjectSet,
    known: Sequence[str] | None,
    ignore_unknown: bool,
    empty_images: EmptyImages,
    faults: Faults,
) -> DetectionSource:
    assert objects.test is not None
    train, test = objects.train, objects.test
    ids = dict(enumerate(objects.category_ids, start=1))
    class_names = objects.class_names
    if known is not None:
        numbers = match_classes(class_names, known, ignore_unknown, test.name)
        ids = {number + 1: ids[label] for label, number in enumerate(numbers, start=1)}
        train, test = (_renumbered(part, numbers, faults) for part in (train, test))
        class_names = tuple(known)
    records = _without_empty(train, empty_images, faults)
    if not records:
        raise ValueError(f"{train.name}: no image remains; expected at least one that can be used")
    reader = ObjectReader(objects.has_masks)
    return DetectionSource(
        name=name,
        class_names=class_names,
        category_ids=tuple(ids.get(label, -1) for label in range(1, len(class_names) + 1)),
        train=AnnotatedImages(records, reader, [record.path for record in records]),
        test=AnnotatedImages(test.records, reader, [record.path for record in test.records]),
        has_masks=objects.has_masks,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        image_size=None,
        skipped=faults.skipped,
        skipped_names=faults.left_out.names,
        notes=objects.notes,
    )


def _renumbered(part: ObjectPart, numbers: Sequence[int], faults: Faults) -> ObjectPart:
    """The part with the labels of a network; what it does not know is left out and counted."""
    table = np.array([_UNKNOWN, *(number + 1 for number in numbers)], np.int64)
    records = []
    for record in part.records:
        labels = table[record.labels]
        for _ in range(int((labels == _UNKNOWN).sum())):
            faults.left_out.add("object of an unknown class", Path(record.path).name)
        records.append(record.select(labels != _UNKNOWN, labels))
    return ObjectPart(name=part.name, records=records)


def _without_empty(part: ObjectPart, choice: EmptyImages, faults: Faults) -> list[ImageRecord]:
    """The records to train with."""
    if choice == "keep":
        return part.records
    filled = [record for record in part.records if not record.iscrowd.all()]
    empty = len(part.records) - len(filled)
    if empty and choice == "error":
        first = next(record for record in part.records if record.iscrowd.all())
        raise ValueError(
            f"{part.name}: {empty} images hold no object, the first of them {first.path}; train "
            "with them by empty_images='keep' or leave them out by 'skip'"
        )
    if empty:
        faults.counts["training image without objects"] += empty
    return filled


# --- generated scenes


@dataclass(frozen=True)
class _SceneReader:
    scenes: Scenes
    masks: bool

    def __call__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        boxes, labels, masks = self.scenes.objects(index)
        image = tv_tensors.Image(self.scenes.images[index])
        target = target_of(
            index,
            image,
            boxes=boxes.float(),
            labels=labels.clone(),
            area=masks.sum((1, 2)).float(),
            iscrowd=torch.zeros(len(labels), dtype=torch.bool),
        )
        if self.masks:
            target["masks"] = tv_tensors.Mask(masks.to(torch.uint8))
        return image, target


def _load_scenes(
    image_size: int | None, num_train: int | None, num_test: int | None, masks: bool, seed: int
) -> DetectionSource:
    train, test = draw_scenes(image_size, num_train, num_test, seed)
    return DetectionSource(
        name="cluttered_digits",
        class_names=tuple("0123456789"),
        category_ids=tuple(range(1, 11)),
        train=AnnotatedImages(range(len(train)), _SceneReader(train, masks), scene_names(train)),
        test=AnnotatedImages(range(len(test)), _SceneReader(test, masks), scene_names(test)),
        has_masks=masks,
        mean=SCENES_MEAN,
        std=SCENES_STD,
        image_size=(train.images.shape[2], train.images.shape[3]),
        skipped={},
    )
