"""Data sets for detection by name: COCO json with boxes and masks, and generated scenes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from convattn.config import DataFormat
from convattn.data.annotated import AnnotatedImages, BadAnnotations, EntryFault, Faults
from convattn.data.folders import find_images, find_splits
from convattn.data.reading import image_extensions, read_sample, turned, turned_boxes
from convattn.data.scenes import Scenes, generate_scenes
from convattn.data.sources import check_format, draw_indices, find_root, match_classes, refuse_root
from convattn.exceptions import UnreadableImageError
from convattn.text import nearest

DETECTION_DATASETS: tuple[str, ...] = ("cluttered_digits", "folder", "coco")

DetectionImages = AnnotatedImages[dict[str, Any]]
"""An item is ``(image, target)``: see ``load_detection``."""

EmptyImages = Literal["keep", "skip", "error"]

SCENES_MEAN = (0.401, 0.413, 0.384)
SCENES_STD = (0.255, 0.205, 0.211)

_TEST_SEED = 0
_UNKNOWN = 0  # label of a class that the network does not know
_TRAIN_SPLITS = ("train",)
_TEST_SPLITS = ("val", "valid", "test")
_YEARS = ("2017", "2014", "")
_OVERHANG = 1.0  # pixels that a box may reach beyond the image and is clipped


@dataclass(frozen=True, kw_only=True)
class DetectionSource:
    """A data set for detection."""

    name: str
    """Its name in ``DETECTION_DATASETS``."""
    class_names: tuple[str, ...]
    """The classes without the background: ``class_names[i - 1]`` is the name of label i."""
    category_ids: tuple[int, ...]
    """COCO's id of each class; -1 for one that the json does not list."""
    train: DetectionImages
    """Training images, without a transform: give them one by ``with_transform``."""
    test: DetectionImages
    """Test images, alike."""
    has_masks: bool
    """Whether targets hold ``masks``."""
    mean: tuple[float, ...]
    """Mean of each channel, in 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, in 0..1."""
    image_size: tuple[int, int] | None
    """Height and width in pixels; None when the images vary."""
    skipped: dict[str, int]
    """How many entries were left out, by reason; see ``describe_skipped``."""
    skipped_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The first names of those, by reason, where they are known."""
    notes: tuple[str, ...] = ()
    """What whoever trains or tests on it has to know, a sentence each."""


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
    class_names: Sequence[str] | None = None,
    ignore_unknown: bool = False,
    seed: int = 0,
) -> DetectionSource:
    """Open a data set for detection by name.

    - ``cluttered_digits`` is generated (see ``generate_scenes``): 4,000 training and 500 test
      images of 96 x 96 unless told otherwise. ``seed`` chooses the training images; the test
      images are always the same.
    - ``folder`` reads your own, in any format of ``format``; ``coco`` is a folder in that one:
      COCO's json, https://cocodataset.org/#format-data, in one of two layouts:
      ``root/annotations/instances_train2017.json`` with its images in ``root/train2017`` or
      ``root/images/train2017``, and the same for val2017; or ``root/train/_annotations.coco.json``
      with the images beside it, and the same for valid. The test set may be called val, valid or
      test, with 2017, 2014 or no year.

    An item is ``(image, target)``: a ``tv_tensors.Image`` of bytes (3, H, W) and a dict of
    ``image_id`` int, ``boxes`` tv_tensors.BoundingBoxes (N, 4) float32 as xmin, ymin, xmax, ymax in
    pixels, ``labels`` (N,) int64 from 1, ``area`` (N,) float32, ``iscrowd`` (N,) bool and, where
    the source has them, ``masks`` tv_tensors.Mask (N, H, W) uint8. Labels count the categories in
    the order of their ids.

    Images stand upright, as ``read_image`` gives them. Where the json's width and height are those
    of the image as its file stores it, and EXIF says that it is to be turned by a quarter, boxes
    and masks are turned with it; where they are those of the upright image, they are taken as they
    are. An image that is square, or turned by a half, has the same size both ways: its boxes are
    taken for those of the upright one, which whoever drew them has seen.

    A box that reaches up to one pixel beyond its image is clipped. What else is wrong with an
    entry stops the loading or, with ``bad_annotations="skip"``, leaves the entry out: an image
    that is missing or listed twice; an annotation that repeats an id, names no image or category,
    or whose box or mask is none or does not fit its image. An image whose size is not the
    json's raises ``UnreadableImageError`` when it is asked for.

    Args:
        name: One of ``DETECTION_DATASETS``.
        root: Folder of the data set; generated sets need none.
        image_size: Side of generated images in pixels; all others keep their own size.
        num_train: Training images to make, or to draw by ``seed`` from all; None means all.
        num_test: Test images, alike; the draw does not depend on ``seed``.
        format: How a ``folder`` tells the objects: ``"coco"``; ``"auto"`` looks.
        annotations: First part of the json's name, ``"instances"`` unless told otherwise.
        masks: Whether to read masks where there are some.
        bad_annotations: ``"error"`` stops at faulty entries, ``"skip"`` leaves them out and counts.
        empty_images: What to do with training images that hold no object but crowds: ``"keep"``
            or ``"skip"`` them, or an ``"error"``.
        class_names: What a network calls its classes, from label 1. The source then has these
            classes; the json's are found among them by name, and may be fewer.
        ignore_unknown: Leave objects of classes that are not among ``class_names`` out, and count
            them, rather than refuse them.
        seed: Any integer from 0.

    Raises:
        ValueError: If a name or number does not fit, the json is not what it should be, or it has a
            class that is not among ``class_names``.
        FileNotFoundError: If folders or files are missing.
        ModuleNotFoundError: From ``[]``, if a polygon is to be filled and faster-coco-eval, of the
            ``detection`` extra, is not installed.

    Example:
        >>> source = load_detection("cluttered_digits", num_train=20, num_test=10)
        >>> image, target = source.test[0]
        >>> tuple(image.shape), sorted(target)
        ((3, 96, 96), ['area', 'boxes', 'image_id', 'iscrowd', 'labels', 'masks'])
    """
    if name not in DETECTION_DATASETS:
        near = nearest(name, DETECTION_DATASETS)
        raise ValueError(
            f"unknown data set {name!r} for detection; did you mean {near!r}? Known: "
            f"{', '.join(DETECTION_DATASETS)}"
        )
    if empty_images not in ("keep", "skip", "error"):
        raise ValueError(f"empty_images={empty_images!r}; expected 'keep', 'skip' or 'error'")
    check_format(name, format, {"folder": ("coco",), "coco": ("coco",)}.get(name, ()))
    if name == "cluttered_digits":
        refuse_root(name, root, "folder")
        source = _load_scenes(image_size, num_train, num_test, masks, seed)
        require_same_classes(source.class_names, class_names, name)
        return source
    folder = find_root("coco", root, download=False)
    source = _load_coco(
        folder,
        annotations or "instances",
        masks,
        Faults(bad_annotations),
        empty_images,
        class_names,
        ignore_unknown,
    )
    return replace(
        source,
        train=_part(source.train, num_train, seed, "coco: num_train"),
        test=_part(source.test, num_test, _TEST_SEED, "coco: num_test"),
    )


def _part(images: DetectionImages, number: int | None, seed: int, what: str) -> DetectionImages:
    if number is None:
        return images
    return images.select(draw_indices(len(images), number, seed, what))


def require_same_classes(theirs: Sequence[str], known: Sequence[str] | None, where: str) -> None:
    """Refuse a network of other classes than those of generated images.

    Args:
        theirs: Classes of the images.
        known: The network's; None stands for any.
        where: What an error calls the images.

    Raises:
        ValueError: If they are not the same in the same order.
    """
    if known is not None and tuple(known) != tuple(theirs):
        match_classes(theirs, known, False, where)
        raise ValueError(
            f"the network knows {len(known)} classes, and {where} has {len(theirs)} of them; name "
            "data with the same classes in the same order"
        )


# --- generated scenes


@dataclass(frozen=True)
class _SceneReader:
    scenes: Scenes
    masks: bool

    def __call__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        boxes, labels, masks = self.scenes.objects(index)
        image = tv_tensors.Image(self.scenes.images[index])
        target = _target(
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


def _target(image_id: int, image: Tensor, *, boxes: Tensor, **columns: Tensor) -> dict[str, Any]:
    canvas = (image.shape[-2], image.shape[-1])
    return {
        "image_id": image_id,
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas),
        **columns,
    }


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


def draw_scenes(
    image_size: int | None, num_train: int | None, num_test: int | None, seed: int
) -> tuple[Scenes, Scenes]:
    """Training and test scenes: 4,000 and 500 of 96 x 96 unless told otherwise."""
    size = 96 if image_size is None else image_size
    train = generate_scenes(4_000 if num_train is None else num_train, image_size=size, seed=seed)
    test = generate_scenes(
        500 if num_test is None else num_test, split="test", image_size=size, seed=_TEST_SEED
    )
    return train, test


def scene_names(scenes: Scenes) -> list[str]:
    """What an error calls each image."""
    return [f"image {index}" for index in range(len(scenes))]


# --- COCO json


@dataclass(frozen=True)
class _Record:
    """An image and its objects, as arrays: tensors would cost a file handle each in a worker."""

    path: str
    image_id: int
    height: int
    width: int
    boxes: NDArray[np.float32]  # (N, 4)
    labels: NDArray[np.int64]
    area: NDArray[np.float32]
    iscrowd: NDArray[np.bool_]
    segmentations: tuple[Any, ...]  # as in the json; masks are large


@dataclass(frozen=True)
class _Object:
    box: NDArray[np.float32]
    label: int
    area: float
    iscrowd: bool
    segmentation: Any


@dataclass(frozen=True)
class _FileReader:
    masks: bool

    def __call__(self, record: _Record) -> tuple[tv_tensors.Image, dict[str, Any]]:
        sample = read_sample(record.path, record.path)
        image = F.to_image(sample.image)
        height, width = image.shape[1:]
        boxes, orientation = record.boxes, 1
        if (height, width) != (record.height, record.width):
            if sample.stored_size != (record.width, record.height):
                raise UnreadableImageError(
                    f"{record.path} is an image of {height} x {width} and its json says "
                    f"{record.height} x {record.width} (height x width): fetch the image anew or "
                    "correct the json"
                )
            orientation = sample.orientation
            boxes = turned_boxes(boxes, orientation, sample.stored_size)
        target = _target(
            record.image_id,
            image,
            boxes=torch.tensor(boxes),
            labels=torch.tensor(record.labels),
            area=torch.tensor(record.area),
            iscrowd=torch.tensor(record.iscrowd),
        )
        if self.masks:
            masks = np.zeros((len(record.labels), height, width), np.uint8)
            for mask, segmentation in zip(masks, record.segmentations, strict=True):
                found = decode_mask(segmentation, record.height, record.width)
                mask[:] = turned(found, orientation)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return image, target


def _load_coco(
    root: Path,
    annotations: str,
    masks: bool,
    faults: Faults,
    empty_images: EmptyImages,
    known: Sequence[str] | None,
    ignore_unknown: bool,
) -> DetectionSource:
    found = [
        _find_split(root, annotations, "training", _TRAIN_SPLITS),
        _find_split(root, annotations, "test", _TEST_SPLITS),
    ]
    contents = [_read_json(file) for file, _ in found]
    categories, test_categories = (
        _categories(file, content) for (file, _), content in zip(found, contents, strict=True)
    )
    if categories != test_categories:
        differing = sorted(set(categories.items()) ^ set(test_categories.items()))
        raise ValueError(
            f"the categories of {found[0][0]} and {found[1][0]} differ, for example in "
            f"{differing[0][1]!r} with id {differing[0][0]}; both files must list the same ones"
        )
    masks = masks and all(_has_masks(content) for content in contents)
    names = tuple(categories.values())
    numbers = list(range(len(names)))
    if known is not None:
        numbers = match_classes(names, known, ignore_unknown, str(found[1][0]))
    labels = {category: number + 1 for category, number in zip(categories, numbers, strict=True)}
    ids = {label: category for category, label in labels.items()}
    class_names = names if known is None else tuple(known)
    train, test = (
        _read_records(file, folder, content, labels, masks, faults)
        for (file, folder), content in zip(found, contents, strict=True)
    )
    faults.settle()
    train = _without_empty(found[0][0], train, empty_images, faults)
    for (file, _), records in zip(found, (train, test), strict=True):
        if not records:
            raise ValueError(f"{file}: no image remains; expected at least one that can be used")
    reader = _FileReader(masks)
    return DetectionSource(
        name="coco",
        class_names=class_names,
        category_ids=tuple(ids.get(label, -1) for label in range(1, len(class_names) + 1)),
        train=AnnotatedImages(train, reader, [record.path for record in train]),
        test=AnnotatedImages(test, reader, [record.path for record in test]),
        has_masks=masks,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        image_size=None,
        skipped=faults.skipped,
        skipped_names=faults.left_out.names,
    )


def _find_split(
    root: Path, annotations: str, what: str, splits: tuple[str, ...]
) -> tuple[Path, Path]:
    """The json of a split and the folder of its images."""
    named = [f"{split}{year}" for split in splits for year in _YEARS]
    found = find_splits(root)
    candidates = [
        (
            root / "annotations" / f"{annotations}_{split}.json",
            (root / split, root / "images" / split),
        )
        for split in named
    ] + [
        (split / "_annotations.coco.json", (split,))
        for split in (found.get(name, root / name) for name in splits)
    ]
    existing = next((pair for pair in candidates if pair[0].is_file()), None)
    if existing is None:
        looked_for = ", ".join(str(file.relative_to(root)) for file, _ in candidates)
        raise FileNotFoundError(
            f"{root} holds no {what} annotations in COCO's json; looked for {looked_for} "
            "(annotations names the first part of a json)"
        )
    file, folders = existing
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"{file} is there, but the images are not; expected them in "
            f"{' or '.join(map(str, folders))}"
        )
    return file, folder


def _read_json(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no json ({error}); fetch it anew") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(
                f"{file} has no list {key!r}; expected COCO's json with the lists images, "
                "annotations and categories"
            )
    return content


def _categories(file: Path, content: dict[str, list[Any]]) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    found: dict[int, str] = {}
    for category in content["categories"]:
        if not isinstance(category, dict) or not _is_whole(category.get("id")):
            raise ValueError(f"{file}: the category {category} has no whole number as its id")
        if not isinstance(category.get("name"), str):
            raise ValueError(f"{file}: category {category['id']} has no name; expected a text")
        if category["id"] in found:
            raise ValueError(f"{file}: two categories have the id {category['id']}; expected one")
        found[category["id"]] = category["name"]
    if not found:
        raise ValueError(f"{file} lists no categories; expected at least one")
    return dict(sorted(found.items()))


def _has_masks(content: dict[str, list[Any]]) -> bool:
    return any(
        isinstance(annotation, dict) and annotation.get("segmentation")
        for annotation in content["annotations"]
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_records(
    file: Path,
    folder: Path,
    content: dict[str, list[Any]],
    labels: dict[int, int],
    masks: bool,
    faults: Faults,
) -> list[_Record]:
    there = _list_files(folder, faults)
    images: dict[int, dict[str, Any]] = {}
    objects: dict[int, list[_Object]] = {}
    usable: list[dict[str, Any]] = []
    for number, image in enumerate(content["images"]):
        with faults.noted(file):
            _check_image(number, image, images)
            # Known even if its file is missing: its annotations are then not at fault as well.
            images[image["id"]] = image
            objects[image["id"]] = []
            usable.append({**image, "file_name": _find_file(image, folder, there)})
    for path in sorted(there - {str(folder / image["file_name"]) for image in usable}):
        if path.lower().endswith(image_extensions()):
            faults.left_out.add("image that the json does not list", Path(path).name)
    seen: set[int] = set()
    for number, annotation in enumerate(content["annotations"]):
        with faults.noted(file):
            _check_annotation(number, annotation, seen, images, labels)
            seen.add(annotation["id"])
            if labels[annotation["category_id"]] == _UNKNOWN:
                name = images[annotation["image_id"]]["file_name"]
                faults.left_out.add("object of an unknown class", name)
                continue
            image = images[annotation["image_id"]]
            objects[image["id"]].append(_read_object(annotation, image, labels, masks))
    return [_record(folder, image, objects[image["id"]]) for image in usable]


def _list_files(folder: Path, faults: Faults) -> set[str]:
    """All files below a folder, so that no image need be opened to know that it is there."""
    return set(find_images(folder, faults.left_out, base=folder.parent, extensions=("",)))


def _check_image(number: int, image: Any, known: dict[int, dict[str, Any]]) -> None:
    what = _check_entry("image", number, image, ("id", "width", "height"))
    if not isinstance(image.get("file_name"), str):
        raise EntryFault("incomplete entry", f"{what} has no file_name; expected a text")
    if min(image["width"], image["height"]) < 1:
        raise EntryFault(
            "incomplete entry",
            f"{what} is {image['width']} wide and {image['height']} high; expected pixels, at "
            "least 1",
        )
    if image["id"] in known:
        raise EntryFault("repeated id", f"{what} is listed twice; expected each id once")


def _find_file(image: dict[str, Any], folder: Path, there: set[str]) -> str:
    """The image's path in the folder; one that Windows wrote has its folders after backslashes."""
    name: str = image["file_name"]
    for spelt in (name, name.replace("\\", "/")):
        if str(folder / spelt) in there:
            return spelt
    raise EntryFault("missing image", f"image {image['id']} is {name!r}, which is not in {folder}")


def _check_annotation(
    number: int,
    annotation: Any,
    seen: set[int],
    images: dict[int, dict[str, Any]],
    labels: dict[int, int],
) -> None:
    what = _check_entry("annotation", number, annotation, ("id", "image_id", "category_id"))
    if annotation["id"] in seen:
        raise EntryFault("repeated id", f"{what} is listed twice; expected each id once")
    if annotation["image_id"] not in images:
        raise EntryFault(
            "unknown image",
            f"{what} belongs to image {annotation['image_id']}, which images does not list",
        )
    if annotation["category_id"] not in labels:
        raise EntryFault(
            "unknown category",
            f"{_where(annotation, images[annotation['image_id']])} is of category "
            f"{annotation['category_id']}; expected one of {', '.join(map(str, labels))}",
        )


def _check_entry(kind: str, number: int, entry: Any, keys: tuple[str, ...]) -> str:
    """What an error calls the entry, if it is one with whole numbers under these keys."""
    what = f"entry {number} (from 0) of {kind}s"
    if not isinstance(entry, dict):
        raise EntryFault("incomplete entry", f"{what} is {entry!r}; expected an object")
    for key in keys:
        if not _is_whole(entry.get(key)):
            raise EntryFault(
                "incomplete entry", f"{what} has {key}={entry.get(key)!r}; expected a whole number"
            )
    return f"{kind} {entry['id']}"


def _where(annotation: dict[str, Any], image: dict[str, Any]) -> str:
    return f"annotation {annotation['id']} (of image {image['file_name']})"


def _read_object(
    annotation: dict[str, Any], image: dict[str, Any], labels: dict[int, int], masks: bool
) -> _Object:
    size = image["height"], image["width"]
    segmentation = annotation.get("segmentation") if masks else None
    try:
        box = _read_box(annotation.get("bbox"), *size)
        area = _read_area(annotation.get("area"), box)
    except ValueError as error:
        raise EntryFault("bad box", f"{_where(annotation, image)} {error}") from error
    if masks:
        try:
            _check_segmentation(segmentation, *size)
        except ValueError as error:
            raise EntryFault("bad mask", f"{_where(annotation, image)} {error}") from error
    return _Object(
        box=box,
        label=labels[annotation["category_id"]],
        area=area,
        iscrowd=bool(annotation.get("iscrowd", 0)),
        segmentation=segmentation,
    )


def _read_box(bbox: Any, height: int, width: int) -> NDArray[np.float32]:
    """xmin, ymin, xmax, ymax within the image, of COCO's x, y, width, height.

    Raises:
        ValueError: If it is no box of the image; it begins with "has".
    """
    try:
        x, y, wide, high = np.asarray(bbox, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"has the box {bbox}; expected four numbers x, y, width, height") from None
    edges = np.array([x, y, x + wide, y + high])
    limits = np.array([width, height, width, height])
    if not np.isfinite(edges).all() or min(wide, high) <= 0:
        raise ValueError(f"has the box {bbox}; expected x, y, width, height, the last two above 0")
    box = edges.clip(0, limits).astype(np.float32)
    if np.abs(edges - edges.clip(0, limits)).max() > _OVERHANG or (box[2:] <= box[:2]).any():
        raise ValueError(
            f"has the box {bbox} (x, y, width, height); expected it inside the image's {width} x "
            f"{height} pixels (width x height)"
        )
    return box


def _read_area(area: Any, box: NDArray[np.float32]) -> float:
    """Pixels of an object; those of its box where the json does not say.

    Raises:
        ValueError: If it is no number of pixels; it begins with "has".
    """
    if area is None:
        return float((box[2:] - box[:2]).prod())
    if not isinstance(area, int | float) or not 0 <= area < math.inf:
        raise ValueError(f"has the area {area!r}; expected pixels, at least 0")
    return area


def _record(folder: Path, image: dict[str, Any], objects: Sequence[_Object]) -> _Record:
    return _Record(
        path=str(folder / image["file_name"]),
        image_id=image["id"],
        height=image["height"],
        width=image["width"],
        boxes=np.array([one.box for one in objects], np.float32).reshape(-1, 4),
        labels=np.array([one.label for one in objects], np.int64),
        area=np.array([one.area for one in objects], np.float32),
        iscrowd=np.array([one.iscrowd for one in objects], np.bool_),
        segmentations=tuple(one.segmentation for one in objects),
    )


def _without_empty(
    file: Path, records: list[_Record], choice: EmptyImages, faults: Faults
) -> list[_Record]:
    """The records to train with."""
    if choice == "keep":
        return records
    filled = [record for record in records if not record.iscrowd.all()]
    empty = len(records) - len(filled)
    if empty and choice == "error":
        first = next(record for record in records if record.iscrowd.all())
        raise ValueError(
            f"{file}: {empty} images hold no object, the first of them {first.path}; train with "
            "them by empty_images='keep' or leave them out by 'skip'"
        )
    if empty:
        faults.counts["training image without objects"] += empty
    return filled


# --- masks


def decode_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """The pixels (H, W), 0 or 1, of a mask as COCO's json holds it.

    It is a list of polygons, which cover a pixel together, or run lengths down the columns,
    ``{"size": [H, W], "counts": ...}``, as whole numbers or packed into a text.

    Raises:
        ModuleNotFoundError: If faster-coco-eval, of the ``detection`` extra, is not installed.

    Example:
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


def _check_segmentation(segmentation: Any, height: int, width: int) -> None:
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
    except (TypeError, ValueError):
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
