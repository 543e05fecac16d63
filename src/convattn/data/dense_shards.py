"""Boxes, outlines and masks in shards: what a shard's index says of an image, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convattn.data.masks import MaskSet, Pair
from convattn.data.objects import ImageRecord, ObjectPart, ObjectSet
from convattn.data.shard_files import INDEX, Shard, index_of
from convattn.data.shards import (
    Written,
    find_shards,
    place_of,
    require_alike,
    require_shard,
    require_train,
    told_if_damaged,
)

_AGAIN = "write the shards anew with `convattn shard`"


# --- what an index says


def describe_objects(
    class_names: Sequence[str], category_ids: Sequence[int], *, has_masks: bool
) -> dict[str, Any]:
    """What ``index.json`` tells of images with objects.

    Args:
        class_names: From label 1 on.
        category_ids: COCO's id of each.
        has_masks: Whether the objects have outlines.
    """
    return {
        "task": "detection",
        "class_names": list(class_names),
        "category_ids": list(category_ids),
        "has_masks": has_masks,
    }


def describe_masks(layout: MaskSet) -> dict[str, Any]:
    """What ``index.json`` tells of images with masks: their classes, and what masks hold.

    Args:
        layout: Of the folder that they are from.
    """
    colours = layout.colours
    return {
        "task": "segmentation",
        "class_names": list(layout.class_names),
        "first": layout.first,
        "ignored": list(layout.ignored),
        "is_binary": layout.is_binary,
        "colours": None if colours is None else [[*one, colours[one]] for one in colours],
    }


def entry_of(record: ImageRecord, *, has_masks: bool) -> dict[str, Any]:
    """What a shard says of the objects on an image, as plain values.

    Args:
        record: Of the image.
        has_masks: Whether its objects have outlines.
    """
    entry = {
        "image_id": record.image_id,
        "height": record.height,
        "width": record.width,
        "boxes": record.boxes.tolist(),
        "labels": record.labels.tolist(),
        "area": record.area.tolist(),
        "iscrowd": record.iscrowd.tolist(),
    }
    if has_masks:
        entry["segmentations"] = list(record.segmentations)
        if record.ignored:
            entry["ignored"] = list(record.ignored)
    return entry


def record_of(
    path: str, file: str, entry: Mapping[str, Any], num_classes: int, *, masks: bool
) -> ImageRecord:
    """The image that ``entry_of`` has told of.

    Args:
        path: Of the image.
        file: What tells of its objects, for errors.
        entry: As ``entry_of`` gave it.
        num_classes: Without the background.
        masks: Whether outlines are wanted.

    Raises:
        ValueError: If the entry is none.
    """
    labels = np.array(entry["labels"], np.int64).reshape(-1)
    count = len(labels)
    record = ImageRecord(
        path=path,
        file=file,
        image_id=entry["image_id"],
        height=entry["height"],
        width=entry["width"],
        boxes=np.array(entry["boxes"], np.float32).reshape(-1, 4),
        labels=labels,
        area=np.array(entry["area"], np.float32),
        iscrowd=np.array(entry["iscrowd"], np.bool_),
        segmentations=tuple(entry["segmentations"]) if masks else (None,) * count,
        ignored=tuple(entry.get("ignored", ())) if masks else (),
    )
    columns = (record.boxes, record.area, record.iscrowd, record.segmentations)
    if {len(column) for column in columns} != {count} or not all(
        1 <= label <= num_classes for label in labels
    ):
        raise ValueError(
            f"{file} has objects of {path} whose boxes and labels do not go together, or of a "
            f"class that {INDEX} does not name; {_AGAIN}"
        )
    return record


# --- reading


def load_object_shards(name: str, root: str | Path | None, *, masks: bool) -> ObjectSet:
    """Images with objects that ``convattn shard`` has written.

    Args:
        name: ``"webdataset"`` or ``"litdata"``.
        root: The folder of the shards, tars of it, or the URL of either.
        masks: Whether to read outlines where there are some.

    Raises:
        ValueError: If the shards are for classification or are not what they should be.
        FileNotFoundError: If some are missing.
        ModuleNotFoundError: If litdata is not installed, and is the format.
    """
    written = _find_written(name, root, ("detection",))
    with told_if_damaged(written):
        return _objects(written, masks=masks)


def load_mask_shards(name: str, root: str | Path | None) -> MaskSet | ObjectSet:
    """Images with masks, or with outlines, that ``convattn shard`` has written.

    Args:
        name: As for ``load_object_shards``.
        root: As there.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: As there.
    """
    written = _find_written(name, root, ("segmentation", "detection"))
    with told_if_damaged(written):
        has_objects = "has_masks" in require_alike(written, ("task",))
        return _objects(written, masks=True) if has_objects else _masks(written)


def refuse_parting(group: str | None, split: str | None) -> None:
    """Refuse what decides which images are the test, given with shards, which have decided it.

    Args:
        group: As for ``load_detection``.
        split: As for ``load_detection``.

    Raises:
        ValueError: If there is one.
    """
    for option, value in (("group", group), ("split", split)):
        if value is not None:
            raise ValueError(
                f"{option}={value!r} (--data.{option}) decides which images are the test, and "
                "shards have that decided; give it to `convattn shard`"
            )


def _find_written(name: str, root: str | Path | None, tasks: Sequence[str]) -> list[Written]:
    place = place_of(name, root)
    written, foreign = find_shards(name, place, tasks)
    if foreign:
        raise FileNotFoundError(
            f"{place} has no {INDEX}, and {tasks[0]} reads only shards that `convattn shard` has "
            "written, by which boxes and masks are found; name its folder, or write one"
        )
    return written


def _objects(written: Sequence[Written], *, masks: bool) -> ObjectSet:
    first = require_alike(written, ("class_names", "category_ids", "has_masks"))
    has_masks = masks and first["has_masks"]
    num_classes = len(first["class_names"])
    parts = {}
    for split, folders in _splits(written).items():
        records: list[ImageRecord] = []
        for files in folders:
            found = []
            for file, shard in files:
                tells, entries = index_of(file), _column(shard.objects, file)
                found += [
                    (at, record_of(f"{file}/{name}", tells, entry, num_classes, masks=has_masks))
                    for at, name, entry in zip(shard.places, shard.names, entries, strict=True)
                ]
            records += [record for _, record in sorted(found, key=lambda one: one[0])]
        parts[split] = ObjectPart(name=_called(folders), records=_numbered(records))
    return ObjectSet(
        class_names=tuple(first["class_names"]),
        category_ids=tuple(first["category_ids"]),
        are_listed=True,
        train=parts["train"],
        test=parts["test"],
        has_masks=has_masks,
    )


def _numbered(records: list[ImageRecord]) -> list[ImageRecord]:
    """The images of several folders, with ids of their own where two have the same."""
    ids = {record.image_id for record in records}
    if len(ids) == len(records):
        return records
    return [replace(record, image_id=number) for number, record in enumerate(records)]


def _masks(written: Sequence[Written]) -> MaskSet:
    told = ("class_names", "first", "ignored", "is_binary", "colours")
    first = require_alike(written, told)
    parts = {}
    for split, folders in _splits(written).items():
        pairs: list[Pair] = []
        for files in folders:
            found = []
            for file, shard in files:
                masks = _column(shard.masks, file)
                found += [
                    (at, (f"{file}/{name}", f"{file}/{mask}"))
                    for at, name, (mask, _, _) in zip(shard.places, shard.names, masks, strict=True)
                ]
            pairs += [pair for _, pair in sorted(found)]
        parts[split] = pairs
    colours = first["colours"]
    return MaskSet(
        class_names=tuple(first["class_names"]),
        train=parts["train"],
        test=parts["test"],
        first=first["first"],
        ignored=tuple(first["ignored"]),
        is_binary=first["is_binary"],
        colours=None if colours is None else {(r, g, b): to for r, g, b, to in colours},
    )


_Files = list[tuple[str, Shard]]


def _splits(written: Sequence[Written]) -> dict[str, list[_Files]]:
    """Train and test -> of each folder its shards."""
    files = [one.files() for one in written]
    named = {split for one in files for split in one if one[split]}
    require_train(written, named)
    if "test" not in named:
        raise ValueError(f"{written[0].folder} has no shards of a test; {_AGAIN}")
    return {
        split: [[(file, require_shard(file)) for file in one.get(split, ())] for one in files]
        for split in ("train", "test")
    }


def _column(column: Sequence[Any] | None, file: str) -> Sequence[Any]:
    if column is None:
        raise ValueError(f"{index_of(file)} tells neither boxes nor masks of its images; {_AGAIN}")
    return column


def _called(folders: Sequence[_Files]) -> str:
    """What an error calls the images of a split."""
    return next((file for files in folders for file, _ in files), "the shards")
