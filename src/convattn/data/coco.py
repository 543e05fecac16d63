"""COCO's json, https://cocodataset.org/#format-data, wherever it lies in a folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convattn.data.annotated import EntryFault, Faults
from convattn.data.folders import find_splits, held_out_split, split_of
from convattn.data.listing import Listing, holds
from convattn.data.objects import (
    ImageRecord,
    ObjectPart,
    ObjectRecord,
    ObjectSet,
    check_segmentation,
    fit_box,
    read_area,
    record_image,
)

LOOKED_FOR = (
    "a json with images, annotations and categories, as annotations/instances_train2017.json and "
    "annotations/instances_val2017.json"
)

_KEYS = ("images", "annotations", "categories")
_OTHER_KINDS = ("captions", "person_keypoints", "panoptic", "stuff", "stuffthingmaps", "image_info")
_USUAL_WORDS = frozenset(
    ("", "annotation", "annotations", "coco", "default", "detection", "instances", "labels")
)
_MOST = 2**31  # pixels of a side

Entry = dict[str, Any]


@dataclass(frozen=True)
class _File:
    """A json and what its name says."""

    path: Path
    split: str | None
    spelt: str
    """The split as its name has it, "train2017"."""
    first: str
    """What is before that, "instances"."""
    is_usual: bool
    """Whether its name says that it is COCO's."""


def find(listing: Listing, annotations: str | None = None) -> str | None:
    """A json of COCO's in a folder, as it is to be told; None if there is none.

    Args:
        annotations: As for ``read``.
    """
    for file in _list_files(listing, annotations):
        if _looks_right(file):
            return listing.relative(file.path)
    return None


def read(
    listing: Listing,
    faults: Faults,
    *,
    masks: bool,
    annotations: str | None = None,
    split: str | None = None,
) -> ObjectSet:
    """What COCO's json says of the images in a folder.

    Args:
        listing: Of the folder.
        faults: Notes entries that are at fault.
        masks: Whether masks are read where there are some.
        annotations: First part of the name of the json files, or a part of their paths.
        split: As for ``held_out_split``.

    Raises:
        ValueError: If a json is not what it should be, two are there for one split, or none for
            the one that is asked for.
        FileNotFoundError: If there is none, or none of its images.
    """
    files = _choose(listing, annotations, faults, split)
    contents = [_read_json(file.path) for file in files]
    notes: list[str] = []
    categories = _common_categories(files, contents, notes)
    masks = masks and all(map(_has_masks, contents))
    labels = {category: number for number, category in enumerate(categories, start=1)}
    homes = [_homes(listing.root, file) for file in files]
    parts = []
    for file, content, home in zip(files, contents, homes, strict=True):
        others = [folder for other in homes if other is not home for folder in other]
        apart = [folder for folder in others if folder not in home]
        finder = _ImageFinder(listing, file.path, home, apart)
        records = _read_records(file.path, content, labels, finder, masks, faults)
        finder.settle(content["images"])
        notes += finder.notes
        parts.append(ObjectPart(name=str(file.path), records=records))
    _count_unlisted(listing, [folder for home in homes for folder in home], parts, faults)
    return ObjectSet(
        class_names=tuple(categories.values()),
        category_ids=tuple(categories),
        are_listed=True,
        train=parts[0],
        test=parts[1] if len(parts) > 1 else None,
        has_masks=masks,
        notes=tuple(notes),
    )


# --- which files


def _list_files(listing: Listing, annotations: str | None) -> list[_File]:
    files = [_name_parts(listing, path) for path in listing.ending(".json")]
    if annotations is None:
        return [file for file in files if file.first.casefold() not in _OTHER_KINDS]
    called = [file for file in files if file.first == annotations]
    return called or [file for file in files if annotations in listing.relative(file.path)]


def _name_parts(listing: Listing, path: str) -> _File:
    words = re.split(r"[_\-. ]+", Path(path).stem)
    places = [place for place, word in enumerate(words) if _split_of_word(word) is not None]
    splits = {_split_of_word(words[place]) for place in places}
    spelt = words[places[0]] if len(splits) == 1 else ""
    rest = [word for word in words if word != spelt]
    return _File(
        path=Path(path),
        split=_split_of_word(spelt) or listing.split_of(path),
        spelt=spelt,
        first="_".join(rest).strip("_"),
        is_usual={word.casefold() for word in rest} <= _USUAL_WORDS,
    )


def _split_of_word(word: str) -> str | None:
    """``train`` of ``train2017``."""
    return split_of(re.sub(r"(19|20)\d\d$", "", word))


def _looks_right(file: _File) -> bool:
    return holds(str(file.path), *(f'"{key}"'.encode() for key in _KEYS))


def _choose(
    listing: Listing, annotations: str | None, faults: Faults, wanted: str | None
) -> list[_File]:
    """The json of the training and that of the test images, or the one of all."""
    files = [
        file
        for file in _list_files(listing, annotations)
        if annotations is not None
        or _looks_right(file)
        or (file.is_usual and not holds(str(file.path), b'"shapes"'))
    ]
    by_split: dict[str | None, list[_File]] = {}
    for file in files:
        by_split.setdefault(file.split, []).append(file)
    held_out = held_out_split(filter(None, by_split), wanted, listing.root)
    if "train" in by_split and held_out is not None:
        for split, others in by_split.items():
            if split not in ("train", held_out, None):
                for file in others:
                    faults.left_out.add("json beside the splits", listing.relative(file.path))
        return [_only(listing, by_split[split], split) for split in ("train", held_out)]
    if None in by_split and len(by_split) == 1:
        return [_only(listing, by_split[None], None)]
    raise FileNotFoundError(_say_missing(listing, annotations, by_split))


def _say_missing(
    listing: Listing, annotations: str | None, by_split: Mapping[str | None, Sequence[_File]]
) -> str:
    first = annotations or "instances"
    what = "test" if "train" in by_split else "training"
    split = "val" if "train" in by_split else "train"
    there = [listing.relative(file.path) for files in by_split.values() for file in files]
    found = f"; there is {', '.join(there[:3])}" if there else ""
    return (
        f"{listing.root} holds no {what} annotations in COCO's json{found}; looked for "
        f"annotations/{first}_{split}2017.json, {split}.json, {split}/_annotations.coco.json and "
        "the like, or one json of all images (annotations names the first part of a json)"
    )


def _only(listing: Listing, files: list[_File], split: str | None) -> _File:
    if len(files) > 1:
        files = [file for file in files if _looks_right(file)] or files
    if len(files) > 1:
        one, other = (listing.relative(file.path) for file in files[:2])
        parts = "differ" if files[0].first != files[1].first else "are alike"
        way = files[0].first if parts == "differ" and files[0].first else one
        raise ValueError(
            f"{listing.root} holds two annotation files"
            + (f" for {split}" if split else "")
            + f", {one} and {other}; choose by a part of the name (--data.annotations), for "
            f"example {way!r}, or remove one"
        )
    return files[0]


# --- the file


def _read_json(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no json ({error}); fetch it anew") from error
    for key in _KEYS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(
                f"{file} has no list {key!r}; expected COCO's json with the lists images, "
                "annotations and categories"
            )
    return content


def _common_categories(
    files: Sequence[_File], contents: Sequence[dict[str, list[Any]]], notes: list[str]
) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    found = [_categories(file.path, one) for file, one in zip(files, contents, strict=True)]
    for file, categories in zip(files[1:], found[1:], strict=True):
        if categories != found[0]:
            differing = sorted(set(found[0].items()) ^ set(categories.items()))
            raise ValueError(
                f"the categories of {files[0].path} and {file.path} differ, for example in "
                f"{differing[0][1]!r} with id {differing[0][0]}; both files must list the same ones"
            )
    group = _group_of_all(contents)
    if group is not None and len(found[0]) > 1:
        notes.append(
            f"category {group} of {files[0].path}, {found[0][group]!r}, is taken for the name of "
            "the group that the others are in, and is no class: no annotation is of it"
        )
        del found[0][group]
    return found[0]


def _categories(file: Path, content: dict[str, list[Any]]) -> dict[int, str]:
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


def _group_of_all(contents: Sequence[dict[str, list[Any]]]) -> int | None:
    """The category that Roboflow lists for the group of all others, if it did."""
    groups = {
        category["id"]: category["name"]
        for category in contents[0]["categories"]
        if category.get("supercategory") == "none"
    }
    used = {
        annotation.get("category_id")
        for content in contents
        for annotation in content["annotations"]
        if isinstance(annotation, dict) and _is_whole(annotation.get("category_id"))
    }
    above = [
        category.get("supercategory")
        for category in contents[0]["categories"]
        if category["id"] not in groups
    ]
    for number, name in groups.items():
        if number not in used and above and all(one == name for one in above):
            return int(number)
    return None


def _has_masks(content: dict[str, list[Any]]) -> bool:
    return any(
        isinstance(annotation, dict) and annotation.get("segmentation")
        for annotation in content["annotations"]
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


# --- where the images are


def _homes(root: Path, file: _File) -> list[Path]:
    """The folders of the images of one split."""
    if file.split is None:
        return []
    folders = [file.path.parent] if file.path.parent != root and not file.spelt else []
    for above in (root, root / "images"):
        folders += [above / file.spelt] if file.spelt else []
        by_split = find_splits(above).get(file.split)
        folders += [by_split] if by_split is not None else []
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


class _ImageFinder:
    """Finds the images of a json.

    Attributes:
        notes: What is to be known of how they were found.
    """

    def __init__(
        self, listing: Listing, file: Path, homes: Sequence[Path], apart: Sequence[Path]
    ) -> None:
        self.listing = listing
        self.file = file
        self.tiers = (homes, tuple(dict.fromkeys((file.parent, listing.root))))
        self.apart = apart
        self.notes: list[str] = []
        self._found: set[str] = set()
        self._elsewhere: list[str] = []
        self._is_ambiguous = False

    def __call__(self, image: Entry) -> str:
        name: str = image["file_name"]
        try:
            path = self.listing.find(name, self.tiers, self.apart)
            if path is None:
                path = self.listing.find_by_name(name, self.apart)
                self._elsewhere += [name] if path is not None else []
        except EntryFault as fault:
            self._is_ambiguous = True
            raise EntryFault(fault.reason, f"image {image['id']}: {fault}") from fault
        if path is None:
            where = self.tiers[0][0] if self.tiers[0] else self.listing.root
            raise EntryFault(
                "missing image", f"image {image['id']} is {name!r}, which is not in {where}"
            )
        if path in self._found:
            raise EntryFault(
                "repeated image",
                f"image {image['id']} is {name!r}, as another entry of images is; expected each "
                "image once",
            )
        self._found.add(path)
        return path

    def settle(self, images: Sequence[Any]) -> None:
        """Once all were looked for: are there any, and where they should be?

        Raises:
            FileNotFoundError: If none is there.
        """
        if images and not self._found and not self._is_ambiguous:
            expected = self.tiers[0] or self.tiers[1]
            raise FileNotFoundError(
                f"{self.file} is there, but none of its {len(images):,} images is; expected them "
                f"in {' or '.join(map(str, expected))}, or in a folder below"
            )
        if self._elsewhere:
            self.notes.append(
                f"{len(self._elsewhere):,} images of {self.file} are not where their file_name "
                f"says and were found by its last part alone, as {self._elsewhere[0]!r}"
            )


def _count_unlisted(
    listing: Listing, homes: Sequence[Path], parts: Sequence[ObjectPart], faults: Faults
) -> None:
    listed = {record.path for part in parts for record in part.records}
    used = {os.path.dirname(path) for path in listed}
    for path in listing.images:
        near = os.path.dirname(path) in used
        if path not in listed and (near or any(Path(path).is_relative_to(one) for one in homes)):
            faults.left_out.add("image that the json does not list", Path(path).name)


# --- entries


def _read_records(
    file: Path,
    content: dict[str, list[Any]],
    labels: dict[int, int],
    find_image: Callable[[Entry], str],
    masks: bool,
    faults: Faults,
) -> list[ImageRecord]:
    images: dict[int, Entry] = {}
    objects: dict[int, list[ObjectRecord]] = {}
    paths: dict[int, str] = {}
    for number, image in enumerate(content["images"]):
        with faults.noted(file):
            _check_image(number, image, images)
            # Known even if its file is missing: its annotations are then not at fault as well.
            images[image["id"]] = image
            objects[image["id"]] = []
            paths[image["id"]] = find_image(image)
    seen: set[int] = set()
    for number, annotation in enumerate(content["annotations"]):
        with faults.noted(file):
            _check_annotation(number, annotation, seen, images, labels)
            seen.add(annotation["id"])
            image = images[annotation["image_id"]]
            objects[image["id"]].append(_read_object(annotation, image, labels, masks))
    return [
        record_image(
            path,
            str(file),
            number,
            (images[number]["height"], images[number]["width"]),
            objects[number],
        )
        for number, path in paths.items()
    ]


def _check_image(number: int, image: Any, known: dict[int, Entry]) -> None:
    what = _check_entry("image", number, image, ("id", "width", "height"))
    if not isinstance(image.get("file_name"), str) or "\0" in image["file_name"]:
        raise EntryFault("incomplete entry", f"{what} has no file_name; expected a text")
    if min(image["width"], image["height"]) < 1 or max(image["width"], image["height"]) > _MOST:
        raise EntryFault(
            "incomplete entry",
            f"{what} is {image['width']} wide and {image['height']} high; expected pixels, at "
            "least 1",
        )
    if image["id"] in known:
        raise EntryFault("repeated id", f"{what} is listed twice; expected each id once")


def _check_annotation(
    number: int,
    annotation: Any,
    seen: set[int],
    images: dict[int, Entry],
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


def _where(annotation: Entry, image: Entry) -> str:
    return f"annotation {annotation['id']} (of image {image['file_name']})"


def _read_object(
    annotation: Entry, image: Entry, labels: dict[int, int], masks: bool
) -> ObjectRecord:
    size = image["height"], image["width"]
    segmentation = annotation.get("segmentation") if masks else None
    try:
        box = _read_box(annotation.get("bbox"), *size)
        area = read_area(annotation.get("area"), box)
    except ValueError as error:
        raise EntryFault("bad box", f"{_where(annotation, image)} {error}") from error
    if masks:
        try:
            check_segmentation(segmentation, *size)
        except ValueError as error:
            raise EntryFault("bad mask", f"{_where(annotation, image)} {error}") from error
    return ObjectRecord(
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
        x, y, wide, high = map(float, np.asarray(bbox, np.float64).tolist())
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"has the box {bbox}; expected four numbers x, y, width, height") from None
    expected = "x, y, width, height, the last two above 0"
    if min(wide, high) <= 0:
        raise ValueError(f"has the box {bbox}; expected {expected}")
    said = f"the box {bbox} (x, y, width, height)"
    return fit_box([x, y, x + wide, y + high], (height, width), said, expected)
