"""Which task a folder is for, and its data, faulty entries left out rather than refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convattn.config import BadAnnotations, DataFormat
from convattn.data import (
    DATASETS,
    DETECTION_DATASETS,
    SEGMENTATION_DATASETS,
    load_detection,
    load_segmentation,
    load_source,
)
from convattn.data.folders import listed_once


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where data lie, and how they are read."""

    root: str
    """Their folder, or a table."""
    name: str = "folder"
    """Name of the data set; "folder": a person's own."""
    format: DataFormat = "auto"
    """As for ``load_source``."""
    group: str | None = None
    """As for ``load_source``."""
    annotations: str | None = None
    """As for ``load_detection``."""
    path_column: str | None = None
    """As for ``load_source``."""
    labels_column: str | None = None
    """As for ``load_source``."""


@dataclass(frozen=True, kw_only=True)
class OpenedData:
    """A data set that could be read."""

    task: str
    """What it is for."""
    source: Any
    """Of that task; without its faulty entries."""
    refusal: str | None
    """Why a training would refuse it as it is."""


@dataclass(frozen=True)
class _Kind:
    load: Callable[[Place, BadAnnotations], Any]
    datasets: tuple[str, ...]
    formats: tuple[DataFormat, ...]
    looked_for: str


def _load_classes(place: Place, bad_annotations: BadAnnotations) -> Any:
    _refuse_option("--data.annotations", place.annotations, place, "classification")
    if bad_annotations == "skip":  # only a table has some
        place = replace(place, format="table")
    return load_source(
        place.name,
        root=place.root,
        format=place.format,
        group=place.group,
        path_column=place.path_column,
        labels_column=place.labels_column,
        bad_annotations=bad_annotations,
    )


def _load_boxes(place: Place, bad_annotations: BadAnnotations) -> Any:
    _refuse_columns(place, "detection")
    return load_detection(
        place.name,
        root=place.root,
        format=place.format,
        group=place.group,
        annotations=place.annotations,
        bad_annotations=bad_annotations,
    )


def _load_masks(place: Place, bad_annotations: BadAnnotations) -> Any:
    _refuse_option("--data.annotations", place.annotations, place, "segmentation")
    _refuse_columns(place, "segmentation")
    return load_segmentation(
        _mask_layout(place),
        root=place.root,
        format=place.format,
        group=place.group,
        bad_annotations=bad_annotations,
    )


def _refuse_columns(place: Place, task: str) -> None:
    _refuse_option("--data.path-column", place.path_column, place, task)
    _refuse_option("--data.labels-column", place.labels_column, place, task)


def _refuse_option(flag: str, value: str | None, place: Place, task: str) -> None:
    if value is not None:
        raise ValueError(f"{flag} is not for {task}, which {place.root} is read for; leave it out")


def _mask_layout(place: Place) -> str:
    """The name of a published layout that a folder has without being told so."""
    if place.name != "folder" or place.format != "auto":
        return place.name
    signs = {
        "camvid": "trainannot",
        "ade20k": "objectInfo150.txt",
        "voc": "ImageSets/Segmentation",
    }
    root = Path(place.root)
    return next((name for name, sign in signs.items() if (root / sign).exists()), place.name)


_KINDS: Mapping[str, _Kind] = {
    "detection": _Kind(
        _load_boxes,
        DETECTION_DATASETS,
        ("coco", "yolo", "voc", "labelme"),
        "annotations of boxes",
    ),
    "segmentation": _Kind(
        _load_masks,
        SEGMENTATION_DATASETS,
        ("masks", "voc", "coco", "yolo", "labelme"),
        "masks (images/train with masks/train, train with trainannot)",
    ),
    "classification": _Kind(
        _load_classes,
        DATASETS,
        ("folder", "table"),
        "class folders (train/CLASS/image.jpg or CLASS/image.jpg)",
    ),
}
"""Tasks in the order in which a folder is tried for them: class folders are the least a sign."""


def open_place(place: Place, task: str = "auto") -> OpenedData:
    """Open a data set, as one of the task that it is for.

    Args:
        place: Where it is.
        task: "classification", "detection" or "segmentation"; "auto" looks.

    Raises:
        ValueError: If it cannot be read, even without its faulty entries.
        FileNotFoundError: If it is not there, or nothing in it is what a task needs.
    """
    if not Path(place.root).expanduser().exists():
        raise FileNotFoundError(f"{place.root} does not exist; give a folder of images")
    with listed_once():
        return _open(place, task) if task != "auto" else _open_any(place)


def _open_any(place: Place) -> OpenedData:
    """Of the first task that it can be for."""
    missing: list[str] = []
    possible = [name for name, kind in _KINDS.items() if _may_be(kind, place)]
    # What no task has is refused by the last, with all that there are.
    for name in possible or ["classification"]:
        try:
            return _open(place, name)
        except (FileNotFoundError, NotADirectoryError) as error:
            if len(possible) < 2:
                raise
            missing.append(str(error))
    looked_for = ", ".join(f"{_KINDS[name].looked_for} for {name}" for name in possible)
    raise FileNotFoundError(
        f"{place.root} fits no task; looked for {looked_for}; the last failed since {missing[-1]} "
        "(--data.annotations names a json, --data a published set)"
    )


def _may_be(kind: _Kind, place: Place) -> bool:
    if place.name != "folder":
        return place.name in kind.datasets
    named = place.path_column is not None or place.labels_column is not None
    if named and "table" not in kind.formats:
        return False
    if place.annotations is not None and "coco" not in kind.formats:
        return False
    return place.format == "auto" or place.format in kind.formats


def _open(place: Place, task: str) -> OpenedData:
    load = _KINDS[task].load
    try:
        return OpenedData(task=task, source=load(place, "error"), refusal=None)
    except ValueError as refusal:
        try:
            source = load(place, "skip")
        except (ValueError, OSError):
            raise refusal from None
        return OpenedData(task=task, source=source, refusal=str(refusal))
