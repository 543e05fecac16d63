"""LabelMe's json, one an image, with the shapes that were drawn on it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convattn.data.annotated import EntryFault, Faults
from convattn.data.folders import part_files
from convattn.data.listing import Listing, holds
from convattn.data.objects import (
    ImageRecord,
    ObjectRecord,
    ObjectSet,
    Size,
    check_class_names,
    check_segmentation,
    fit_box,
    gather_objects,
    read_area,
    record_image,
    size_of,
)
from convattn.data.texts import read_lines

LOOKED_FOR = "LabelMe's json files with shapes, beside their images"

BACKGROUND = "_background_"
"""What LabelMe's tools call what is no object."""

_IGNORED = "__ignore__"
_CORNERS = 64  # of the polygon that stands for a circle
_MOST_PIXELS = 2**31  # of a side
_OUTLINES = ("polygon", "circle")

Points = NDArray[np.float64]
"""Corners of an outline, (M, 2): x and y in pixels."""


@dataclass(frozen=True)
class _Shape:
    where: str
    label: str
    kind: str
    points: Points
    group: Any


@dataclass(frozen=True)
class _Labelled:
    """A json and its image."""

    file: Path
    image: str
    size: Size
    shapes: list[_Shape]
    ignored: list[_Shape]


def find(listing: Listing, annotations: str | None = None) -> str | None:
    """A json of LabelMe's in a folder, as it is to be told; None if there is none."""
    for path in listing.ending(".json"):
        if holds(path, b'"shapes"'):
            return listing.relative(path)
    return None


def read(
    listing: Listing,
    faults: Faults,
    *,
    masks: bool,
    annotations: str | None = None,
    split: str | None = None,
) -> ObjectSet:
    """What LabelMe's json files say of the images in a folder.

    Rectangles, polygons and circles are objects; those of one label and ``group_id`` are one
    together. Other shapes, and the labels ``__ignore__`` and ``_background_``, are left out.

    Args:
        listing: Of the folder.
        faults: Notes files and shapes that are at fault.
        masks: Whether outlines are read where some are no rectangles.
        split: As for ``held_out_split``.

    Raises:
        ValueError: If the list of the labels is none, or the split is not there.
        FileNotFoundError: If there is no such file.
    """
    root = listing.root
    files = _list_files(listing, faults)
    if not files:
        raise FileNotFoundError(f"{root} holds no json of LabelMe's; looked for {LOOKED_FOR}")
    splits = part_files(root, files, faults.left_out, split)
    labelled = [
        [one for file in own if (one := _read_file(file, listing, faults)) is not None]
        for own in splits.values()
    ]
    _count_bare(listing, labelled, faults)
    every = [shape for part in labelled for one in part for shape in one.shapes]
    listed = _read_class_list(root)
    names = listed or tuple(sorted({shape.label for shape in every}))
    check_class_names(names, str(root))
    masks = masks and any(shape.kind in _OUTLINES for shape in every)
    numbers = count()
    parts = {
        split: [_read_record(one, next(numbers), names, masks, faults) for one in part]
        for split, part in zip(splits, labelled, strict=True)
    }
    return gather_objects(str(root), parts, names, are_listed=bool(listed), has_masks=masks)


# --- which files


def _list_files(listing: Listing, faults: Faults) -> list[Path]:
    images = {str(Path(path).with_suffix("")) for path in listing.images}
    found = []
    for path in map(Path, listing.ending(".json")):
        if str(path.with_suffix("")) in images or holds(str(path), b'"shapes"'):
            found.append(path)
        else:
            faults.left_out.add("json without shapes", listing.relative(path))
    return found


def _read_class_list(root: Path) -> tuple[str, ...]:
    """The labels in the order of ``labels.txt``; none if there is none."""
    file = root / "labels.txt"
    if not file.is_file():
        return ()
    lines = [line.strip() for line in read_lines(file)]
    return tuple(dict.fromkeys(name for name in lines if name not in ("", _IGNORED, BACKGROUND)))


def _count_bare(listing: Listing, labelled: Sequence[Sequence[_Labelled]], faults: Faults) -> None:
    taken = {one.image for part in labelled for one in part}
    folders = {Path(path).parent for path in taken}
    for path in listing.images:
        if path not in taken and Path(path).parent in folders:
            faults.left_out.add("image without a json", listing.relative(path))


# --- the files


def _read_file(file: Path, listing: Listing, faults: Faults) -> _Labelled | None:
    with faults.noted(file):
        content = _parse(file)
        image = _find_image(file, content, listing)
        shapes: list[_Shape] = []
        ignored: list[_Shape] = []
        for number, entry in enumerate(content["shapes"]):
            with faults.noted(file):
                shape = _read_shape(f"shape {number} (from 0)", entry)
                if shape is None:
                    kind = entry.get("shape_type")
                    faults.left_out.add(f"shape {kind[:40]!r}", listing.relative(file))
                elif shape.label in (_IGNORED, BACKGROUND):
                    faults.left_out.add(f"shape labelled {shape.label}", listing.relative(file))
                    ignored += [shape] if shape.label == _IGNORED else []
                else:
                    shapes.append(shape)
        return _Labelled(file, image, _read_size(content) or size_of(image), shapes, ignored)
    return None


def _parse(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise EntryFault(
            "unreadable json", f"is no json ({error}); expected LabelMe's with its shapes"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise EntryFault("unreadable json", "has no list 'shapes'; expected LabelMe's json")
    return content


def _find_image(file: Path, content: Mapping[str, Any], listing: Listing) -> str:
    named = content.get("imagePath")
    if isinstance(named, str) and named and "\0" not in named:
        path = listing.find(named, ((file.parent,),))
        path = path or listing.find_by_name(named)
        if path is not None:
            return path
    try:
        return listing.find_by_stem(str(file), listing.root, lambda folder: [folder])
    except EntryFault as fault:
        if fault.reason != "missing image":
            raise
        said = repr(named)[:80]
        raise EntryFault(
            "missing image",
            f"has imagePath={said}, which is not there, and no image is called {file.stem}; images "
            "in imageData are not read",
        ) from None


def _read_size(content: Mapping[str, Any]) -> Size | None:
    """Height and width; None where the json does not say."""
    height, width = content.get("imageHeight"), content.get("imageWidth")
    if height is None or width is None:
        return None
    for side in (height, width):
        if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= _MOST_PIXELS:
            raise EntryFault(
                "incomplete entry",
                f"has imageHeight={repr(height)[:40]} and imageWidth={repr(width)[:40]}; expected "
                "pixels, at least 1",
            )
    return height, width


def _read_shape(where: str, entry: Any) -> _Shape | None:
    """A shape as corners of its outline; None for one that is no object."""
    label = entry.get("label") if isinstance(entry, dict) else None
    if not isinstance(label, str) or not label.strip():
        raise EntryFault("incomplete entry", f"{where} has no label; expected a text")
    where = f"{where}, {label[:40]!r},"
    kind = entry.get("shape_type") or "polygon"  # as old versions leave it
    if not isinstance(kind, str):
        raise EntryFault("incomplete entry", f"{where} has no shape_type; expected a text")
    if kind not in ("rectangle", *_OUTLINES):
        return None
    points = _read_points(where, kind, entry.get("points"))
    group = entry.get("group_id")
    if group is not None and not isinstance(group, int | str):
        raise EntryFault(
            "incomplete entry", f"{where} has group_id={repr(group)[:40]}; expected a number"
        )
    return _Shape(where, label.strip(), kind, points, group)


def _read_points(where: str, kind: str, given: Any) -> Points:
    try:
        points = np.asarray(given, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.empty(0)
    counts = {"rectangle": (2, 4), "circle": (2,)}.get(kind)
    right = points.ndim == 2 and points.shape[1] == 2 and (np.abs(points) < _MOST_PIXELS).all()
    if not right or (len(points) not in counts if counts else len(points) < 3):
        number = " or ".join(map(str, counts)) if counts else "at least 3"
        raise EntryFault(
            "bad shape",
            f"{where} is a {kind} with points={repr(given)[:60]}; expected {number} points, each "
            "an x and a y",
        )
    if kind == "rectangle":
        (left, top), (right_edge, bottom) = points.min(0), points.max(0)
        return np.array([[left, top], [right_edge, top], [right_edge, bottom], [left, bottom]])
    if kind == "circle":
        radius = math.dist(*points.tolist())
        turns = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
        return points[0] + radius * np.stack([np.cos(turns), np.sin(turns)], 1)
    return points


# --- objects


def _read_record(
    one: _Labelled, number: int, names: Sequence[str], masks: bool, faults: Faults
) -> ImageRecord:
    objects = []
    for shapes in _grouped(one.shapes):
        with faults.noted(one.file):
            objects.append(_read_object(shapes, one.size, names, masks))
    ignored = []
    for shape in one.ignored if masks else ():
        with faults.noted(one.file):
            ignored.append(_outline([shape], one.size))
    return record_image(one.image, str(one.file), number, one.size, objects, ignored)


def _outline(shapes: Sequence[_Shape], size: Size) -> list[list[float]]:
    """The polygons of an object, checked."""
    segmentation = [shape.points.ravel().tolist() for shape in shapes]
    try:
        check_segmentation(segmentation, *size)
    except ValueError as error:
        raise EntryFault("bad mask", f"{shapes[0].where} {error}") from error
    return segmentation


def _grouped(shapes: Sequence[_Shape]) -> list[list[_Shape]]:
    """Shapes that are one object together, in the order of their first ones."""
    found: dict[Any, list[_Shape]] = {}
    for number, shape in enumerate(shapes):
        alone = ("", number) if shape.group is None else (shape.label, repr(shape.group))
        found.setdefault(alone, []).append(shape)
    return list(found.values())


def _read_object(
    shapes: Sequence[_Shape], size: Size, names: Sequence[str], masks: bool
) -> ObjectRecord:
    first = shapes[0]
    if first.label not in names:
        raise EntryFault(
            "unknown category",
            f"{first.where} has a label that labels.txt does not list; expected one of "
            f"{', '.join(names[:10])}",
        )
    points = np.concatenate([shape.points for shape in shapes])
    edges = np.concatenate([points.min(0), points.max(0)])
    said = f"its corners at {', '.join(f'{edge:g}' for edge in edges)} (left, top, right, bottom)"
    try:
        # A circle that reaches beyond the image is as large as what is seen of it.
        if any(shape.kind == "circle" for shape in shapes):
            edges = edges.clip(0, [size[1], size[0]] * 2)
        box = fit_box(edges, size, said, "width and height above 0")
    except ValueError as error:
        raise EntryFault("bad box", f"{first.where} {error}") from error
    return ObjectRecord(
        box=box,
        label=names.index(first.label) + 1,
        area=read_area(None, box),
        iscrowd=False,
        segmentation=_outline(shapes, size) if masks else None,
    )
