"""Data sets for segmentation by name: masks, painted objects, and generated scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from convattn.config import BadAnnotations, DataFormat
from convattn.data import masks
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
from convattn.data.dense_shards import load_mask_shards, refuse_parting
from convattn.data.detection import load_objects
from convattn.data.drawing import refuse_group
from convattn.data.folders import LeftOut, held_out_split
from convattn.data.formats import OBJECT_FORMATS, Format, find_format, refuse_annotations
from convattn.data.labelme import BACKGROUND
from convattn.data.listing import Listing
from convattn.data.masks import IGNORED, LAYOUTS, MaskReader, MaskSet
from convattn.data.objects import ImageRecord, ObjectSet, decode_mask, orientation_of
from convattn.data.reading import read_sample, turned
from convattn.data.scenes import SCENES_MEAN, SCENES_STD, Scenes, draw_scenes, scene_names
from convattn.data.shards import SHARDED

SEGMENTATION_DATASETS: tuple[str, ...] = (
    "cluttered_digits",
    "folder",
    "masks",
    "camvid",
    "ade20k",
    "voc",
    *SHARDED,
)
"""Names that ``load_segmentation`` takes."""

SEGMENTATION_FORMATS: Mapping[DataFormat, Format] = {
    "masks": Format("masks", masks.LOOKED_FOR, masks.find),
    "voc": Format("Pascal VOC's masks", masks.VOC_LOOKED_FOR, masks.find_voc),
    "coco": OBJECT_FORMATS["coco"],
    "yolo": OBJECT_FORMATS["yolo"],
    "labelme": OBJECT_FORMATS["labelme"],
}

SegmentationImages = AnnotatedImages[tv_tensors.Mask]
"""An item is ``(image, mask)``: see ``load_segmentation``."""

_TEST_SEED = 0
_BACKGROUNDS = ("background", BACKGROUND, "__background__")


@dataclass(frozen=True, kw_only=True)
class SegmentationSource(AnnotatedSource[tv_tensors.Mask]):
    """A data set for segmentation."""

    class_names: tuple[str, ...]
    """The classes in the order of their indices, from 0."""


def load_segmentation(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    format: DataFormat = "auto",
    annotations: str | None = None,
    bad_annotations: BadAnnotations = "error",
    group: str | None = None,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    ignore_unknown: bool = False,
    seed: int = 0,
) -> SegmentationSource:
    """Open a data set for segmentation by name.

    - ``cluttered_digits`` is generated (see ``generate_scenes``): 4,000 training and 500 test
      images of 96 x 96 unless told otherwise; background and ten digits. ``seed`` chooses the
      training images; the test images are always the same.
    - ``folder`` reads your own, in one of the formats below; ``masks`` is a folder in the first.
    - ``camvid`` reads SegNet's layout: ``root/train/x.jpg`` with ``root/trainannot/x.png``, the
      same for val or test; 11 classes, index 11 is ignored. ``root/classes.txt`` may rename them.
    - ``ade20k`` reads ``root/images/training/x.jpg`` with ``root/annotations/training/x.png``, the
      same for validation, and the names in ``root/objectInfo150.txt``; 0 is ignored. Without these
      folders, as in the development kit's sample of three, the images in ``root/images`` serve
      for training and test alike, with a warning.
    - ``voc`` is a folder in that format.
    - ``webdataset`` and ``litdata`` read what ``convattn shard`` has written of one of these, or of
      boxes with outlines: the same items, in the same order.

    Splits of a ``folder`` may be called as those of ``load_detection``, and are drawn as there
    where nothing parts the images.

    - ``"masks"``: ``root/images/train/x.jpg`` with ``root/masks/train/x.png``, the same for val
      or test, or ``root/train/images`` with ``root/train/masks``, and ``root/classes.txt``, one
      name a line. Images and their masks may lie in deeper folders of the same names. Masks of 0
      and 255 alone, with two classes or without ``classes.txt``, are background and object. Masks
      in RGB or with a palette are read by their colours where there is a table of them:
      ``root/label_colors.txt`` (red, green, blue, name), ``root/class_dict.csv`` (name, red, green,
      blue, under a line of titles) or ``root/labelmap.txt`` (CVAT's).
    - ``"voc"``: the images that ``root/ImageSets/Segmentation/train.txt`` and ``val.txt`` list,
      ``root/JPEGImages/x.jpg`` with ``root/SegmentationClass/x.png``. The classes are Pascal's
      unless ``classes.txt`` names others, or ``labelmap.txt`` (CVAT's) with their colours.
    - ``"coco"``, ``"yolo"`` and ``"labelme"``: outlines, read as ``load_detection`` reads them and
      painted over a background, class 0: smaller objects over larger ones, crowds ignored where no
      object is, and so is what LabelMe has as ``__ignore__``.

    An item is ``(image, mask)``: a ``tv_tensors.Image`` of bytes (3, H, W) and a
    ``tv_tensors.Mask`` (H, W) int64 of class indices from 0, 255 where a pixel is ignored. A mask
    file is an 8-bit PNG of indices, grey or with a palette, unless said otherwise. One that is not,
    is of another size than its image or holds an index beyond the classes raises
    ``UnreadableImageError`` when it is asked for, whatever ``bad_annotations`` says: only reading
    it tells.

    Args:
        name: One of ``SEGMENTATION_DATASETS``.
        root: Folder of the data set; generated sets need none.
        image_size: Side of generated images in pixels; all others keep their own size.
        num_train: Training images to make, or to draw by ``seed`` from all; None means all.
        num_test: Test images, alike; the draw does not depend on ``seed``.
        format: How a ``folder`` tells the pixels' classes: ``"masks"``, ``"voc"``, ``"coco"``,
            ``"yolo"`` or ``"labelme"``; ``"auto"`` looks, says in ``notes`` what it took, and
            refuses a folder that may be in two.
        annotations: Of COCO's json: as for ``load_detection``.
        bad_annotations: ``"error"`` stops at an image without a mask, a mask without an image or a
            faulty outline, ``"skip"`` leaves them out and counts.
        group: For a folder without splits: as for ``load_detection``.
        split: The split that is the test set, for example ``"test"`` where there is val, too.
        class_names: What a network calls its classes, from index 0. The source then has these
            classes; the data set's are found among them by name, and may be fewer.
        ignore_unknown: Ignore pixels of classes that are not among ``class_names``, and count these
            classes, rather than refuse them.
        seed: Any integer from 0.

    Raises:
        ValueError: If a name or number does not fit, the split is not there, an image lacks its
            partner, is both to be trained and tested on, or there are boxes without outlines.
        FileNotFoundError: If folders or files are missing.

    Examples:
        >>> source = load_segmentation("cluttered_digits", num_train=20, num_test=10)
        >>> image, mask = source.test[0]
        >>> tuple(image.shape), tuple(mask.shape), source.class_names[:2]
        ((3, 96, 96), (96, 96), ('background', '0'))
    """
    check_name(name, SEGMENTATION_DATASETS, " for segmentation")
    known = {"folder": tuple(SEGMENTATION_FORMATS), "masks": ("masks",)}
    check_format(name, format, known.get(name, ()))
    if name != "folder":
        refuse_annotations(annotations, name)
    if name == "cluttered_digits":
        refuse_root(name, root, "folder")
        held_out_split((), split, name)
        source = _load_scenes(image_size, num_train, num_test, seed)
        require_same_classes(source.class_names, class_names, name)
        return source
    faults = Faults(bad_annotations)
    notes: list[str] = []
    if name in SHARDED:
        refuse_parting(group, split)
        found = _read_shards(name, root, seed, faults)
    else:
        folder = find_root(name, root, download=False)
        found = _read_folder(
            name,
            folder,
            format,
            annotations,
            faults,
            notes,
            group=group,
            split=split,
            are_known=class_names is not None,
            seed=seed,
        )
    numbers = list(range(len(found.class_names)))
    if class_names is not None:
        numbers = match_classes(found.class_names, class_names, ignore_unknown, str(root))
        for theirs, number in zip(found.class_names, numbers, strict=True):
            if number < 0:
                faults.left_out.add("class that the network does not know", theirs)
    reader = found.reader(numbers)
    return SegmentationSource(
        name=name,
        class_names=found.class_names if class_names is None else tuple(class_names),
        train=_images(found.train, reader, num_train, seed, f"{name}: num_train"),
        test=_images(found.test, reader, num_test, _TEST_SEED, f"{name}: num_test"),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        image_size=None,
        skipped=faults.skipped,
        skipped_names=faults.left_out.names,
        notes=(*notes, *found.notes),
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a folder holds, in whatever format."""

    class_names: tuple[str, ...]
    train: Sequence[Any]
    test: Sequence[Any]
    reader: Callable[[Sequence[int]], Callable[[Any], tuple[Any, tv_tensors.Mask]]]
    """Called with what each class is to be as an index; makes what reads a sample."""
    notes: tuple[str, ...]


def _read_folder(
    name: str,
    folder: Path,
    format: DataFormat,
    annotations: str | None,
    faults: Faults,
    notes: list[str],
    *,
    group: str | None,
    split: str | None,
    are_known: bool,
    seed: int,
) -> _Found:
    layout = name
    if name == "folder":
        listing = Listing(folder, LeftOut())
        if format == "auto":
            format = find_format(listing, SEGMENTATION_FORMATS, annotations, notes)
        refuse_annotations(annotations, format)
        layout = format
    if layout in LAYOUTS:
        return _read_masks(LAYOUTS[layout](folder, faults, split), folder, group, seed, faults)
    faults.left_out = listing.left_out
    objects = load_objects(
        listing,
        format,
        annotations,
        faults,
        masks=True,
        group=group,
        split=split,
        are_known=are_known,
        seed=seed,
    )
    return _paint_objects(objects, folder)


def _read_shards(name: str, root: str | Path | None, seed: int, faults: Faults) -> _Found:
    found = load_mask_shards(name, root)
    where = Path(str(root))
    if isinstance(found, ObjectSet):
        return _paint_objects(found, where)
    return _read_masks(found, where, None, seed, faults)


def _images(
    samples: Sequence[Any],
    reader: Callable[[Any], tuple[Any, tv_tensors.Mask]],
    number: int | None,
    seed: int,
    what: str,
) -> SegmentationImages:
    names = [one.path if isinstance(one, ImageRecord) else one[0] for one in samples]
    return draw_part(AnnotatedImages(samples, reader, names), number, seed, what)


def _read_masks(found: MaskSet, root: Path, group: str | None, seed: int, faults: Faults) -> _Found:
    faults.settle()
    notes: list[str] = []
    train, test = found.train, found.test
    if test is not None:
        refuse_group(group, root)
    for what, pairs in (("training", train), ("test", test)):
        if pairs is not None and not pairs:
            raise FileNotFoundError(f"{root} holds no {what} image with its mask; add some")
    if test is None:
        paths = [image for image, _ in train]
        places = part_images(paths, [()] * len(paths), root, group, seed, notes)
        train, test = ([found.train[place] for place in part.tolist()] for part in places)
    elif not found.is_sample:
        refuse_shared((image for image, _ in train), (image for image, _ in test))
    return _Found(
        class_names=found.class_names,
        train=train,
        test=test,
        reader=lambda numbers: MaskReader(numbers, found),
        notes=(*notes, *found.notes),
    )


# --- objects, painted


def _paint_objects(objects: ObjectSet, root: Path) -> _Found:
    if not objects.has_masks:
        raise ValueError(
            f"{root} has boxes and no outlines, which segmentation needs; give outlines, or train "
            "a detector (finetune_retinanet)"
        )
    assert objects.test is not None
    things = [name for name in objects.class_names if name.casefold() not in _BACKGROUNDS]
    class_names = ("background", *things)
    if len(class_names) > IGNORED:
        raise ValueError(
            f"{root} has {len(class_names)} classes; expected at most {IGNORED}, since "
            f"{IGNORED} means ignored"
        )
    classes = [things.index(name) + 1 if name in things else 0 for name in objects.class_names]
    return _Found(
        class_names=class_names,
        train=objects.train.records,
        test=objects.test.records,
        reader=lambda numbers: PaintedReader([numbers[one] for one in classes], numbers[0]),
        notes=objects.notes,
    )


class PaintedReader:
    """Reads an image, and paints its objects into a mask of class indices.

    Args:
        numbers: The index of each label, from label 1; -1 for one that is ignored.
        background: That of what is no object, alike.
    """

    def __init__(self, numbers: Sequence[int], background: int) -> None:
        self.colours = [IGNORED if number < 0 else number for number in numbers]
        self.background = IGNORED if background < 0 else background

    def __call__(self, record: ImageRecord) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """The image and its mask.

        Raises:
            UnreadableImageError: If it cannot be read, or has another size than its file says.
        """
        sample = read_sample(record.path, record.path)
        image = F.to_image(sample.image)
        orientation = orientation_of(record, sample)
        size = record.height, record.width
        painted = np.full(size, self.background, np.int64)
        outlines = [decode_mask(one, *size).astype(bool) for one in record.segmentations]
        areas = np.array([outline.sum() for outline in outlines])
        # The largest first, so that what lies on it is seen; crowds are below all.
        for place in np.lexsort((-areas, ~record.iscrowd)) if outlines else ():
            label = int(record.labels[place])
            painted[outlines[place]] = IGNORED if record.iscrowd[place] else self.colours[label - 1]
        for segmentation in record.ignored:
            painted[decode_mask(segmentation, *size).astype(bool)] = IGNORED
        return image, tv_tensors.Mask(torch.from_numpy(turned(painted, orientation)))


# --- generated scenes


@dataclass(frozen=True)
class _SceneReader:
    scenes: Scenes

    def __call__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image = tv_tensors.Image(self.scenes.images[index])
        return image, tv_tensors.Mask(self.scenes.semantic(index))


def _load_scenes(
    image_size: int | None, num_train: int | None, num_test: int | None, seed: int
) -> SegmentationSource:
    train, test = draw_scenes(image_size, num_train, num_test, seed)
    return SegmentationSource(
        name="cluttered_digits",
        class_names=("background", *"0123456789"),
        train=AnnotatedImages(range(len(train)), _SceneReader(train), scene_names(train)),
        test=AnnotatedImages(range(len(test)), _SceneReader(test), scene_names(test)),
        mean=SCENES_MEAN,
        std=SCENES_STD,
        image_size=(train.images.shape[2], train.images.shape[3]),
        skipped={},
    )
