"""The page of a check: findings with their images, numbers, and samples of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from convattn.checks.checking import CheckedData
from convattn.checks.looking import as_pictured
from convattn.data.counts import Finding
from convattn.drawing import BLACK, Colour, class_colour, draw_box, tint
from convattn.exceptions import UnreadableImageError
from convattn.pages import Picture, embed, render

_SIDE = 200  # pixels of a small picture
_LARGE = 400  # of one with boxes or a mask
_OPACITY = 0.55  # of a mask
_PICTURES = 12  # a finding
_NAMES = 2_000  # a finding
_SAMPLES = 4  # a class
_LARGE_SAMPLES = 2
_CLASSES = 100  # with samples
_ROWS = 1_000  # of the table of classes
_DOUBTS = 60


@dataclass(frozen=True, kw_only=True)
class _ShownFinding:
    finding: Finding
    groups: list[list[Picture]]

    @property
    def pictured(self) -> int:
        return sum(map(len, self.groups))

    @property
    def listed(self) -> int:
        return min(_NAMES, len(self.finding.images))

    @property
    def title(self) -> str:
        """Of the list of names."""
        total = len(self.finding.images)
        if total <= _NAMES:
            return "its name" if total == 1 else f"all {total:,} names"
        return f"the first {_NAMES:,} of {total:,} names"


@dataclass(frozen=True, kw_only=True)
class _Samples:
    title: str
    pictures: list[list[Picture]]
    is_large: bool
    colour: str
    """Of its boxes or pixels, for CSS; nothing if images are of one class."""


def render_page(checked: CheckedData) -> bytes:
    """The page as one HTML file.

    Args:
        checked: What was found; the images that are shown are read again.
    """
    report = checked.report
    places = {name: place for place, name in enumerate(checked.names)}
    head, rows = _class_table(checked)
    doubts = report.labels.doubts[:_DOUBTS] if report.labels is not None else ()
    pictures = (
        _picture(checked, places[one.image], f"{one.given} or {one.suggested}?", one.image)
        for one in doubts
    )
    values = {
        "report": report,
        "findings": [_shown(checked, places, finding) for finding in report.findings],
        "doubts": [[picture] for picture in pictures if picture is not None],
        "doubt_rows": [
            (one.image, one.given, one.suggested, f"{one.confidence:.1%}") for one in doubts
        ],
        "class_head": head,
        "class_rows": rows[:_ROWS],
        "more_classes": max(0, len(rows) - _ROWS),
        "samples": list(_samples(checked)),
        "more_samples": max(0, len(report.class_names) - _CLASSES),
    }
    return render("convattn.checks", "data.html", values)


def _class_table(checked: CheckedData) -> tuple[list[str], list[list[Any]]]:
    report = checked.report
    head: list[str] = ["class"]
    columns = []
    for name, part in report.parts.items():
        for what, column in (("images", part.images_of), (report.unit, part.amount_of)):
            if column is not None:
                head.append(f"{name} {what}")
                columns.append(column)
    return head, [[name, *(one[name] for one in columns)] for name in report.class_names]


def _shown(checked: CheckedData, places: dict[str, int], finding: Finding) -> _ShownFinding:
    groups: list[list[Picture]] = []
    told = finding.groups or tuple((name,) for name in finding.images)
    number = 0
    for group in told:
        if number >= _PICTURES or finding.kind in ("unreadable", "label_errors"):
            break  # cannot be shown, or are shown with their labels
        found = [_picture(checked, places[name], name) for name in group[:_PICTURES]]
        groups += [[one for one in found if one is not None]] if any(found) else []
        number += len(found)
    return _ShownFinding(finding=finding, groups=groups)


def _picture(checked: CheckedData, place: int, caption: str, detail: str = "") -> Picture | None:
    try:
        image, _ = as_pictured(*checked.item(place))
    except UnreadableImageError:
        return None
    return Picture(data=embed(image, _SIDE), caption=caption, detail=detail)


def _samples(checked: CheckedData) -> Iterator[_Samples]:
    is_large = checked.report.unit is not None
    for label, name in enumerate(checked.report.class_names[:_CLASSES]):
        chosen = _spread(checked.shown_by[name], _LARGE_SAMPLES if is_large else _SAMPLES)
        pictures = []
        for place in chosen:
            try:
                image, truth = as_pictured(*checked.item(place))
            except UnreadableImageError:
                continue
            drawn = _drawn(image, truth, label, checked.report.class_names)
            data = embed(drawn, _LARGE if is_large else _SIDE)
            pictures.append([Picture(data=data, caption=checked.names[place])])
        colour = "rgb({}, {}, {})".format(*_colour(label, name)) if is_large else ""
        yield _Samples(title=name, pictures=pictures, is_large=is_large, colour=colour)


def _spread(places: Sequence[int], number: int) -> list[int]:
    """That many, at equal steps."""
    number = min(number, len(places))
    return [places[k * len(places) // number] for k in range(number)]


def _drawn(image: Image.Image, truth: Any, label: int, names: Sequence[str]) -> Image.Image:
    """An image with what is known of one class on it: its boxes and masks, or its pixels."""
    if isinstance(truth, dict):
        return _with_boxes(image, truth, label, names[label])
    if isinstance(truth, Tensor) and truth.ndim == 2:
        return _with_pixels(image, np.asarray(truth), label, names[label])
    return image


def _colour(label: int, name: str) -> Colour:
    return BLACK if name == "background" else class_colour(label)


def _with_boxes(image: Image.Image, truth: Any, label: int, name: str) -> Image.Image:
    factor = _LARGE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    drawn = image.resize(size)
    boxes = np.asarray(truth["boxes"]) * factor
    own = np.asarray(truth["labels"]) == label + 1
    if "masks" in truth and own.any():
        covered = np.asarray(truth["masks"])[own].any(0)
        shown = Image.fromarray(covered).resize(size, Image.Resampling.NEAREST)
        colours = np.full((size[1], size[0], 3), _colour(label, name), np.uint8)
        drawn = tint(drawn, colours, np.asarray(shown, np.float32) * _OPACITY)
    for box in boxes[own].tolist():
        draw_box(drawn, box, _colour(label, name), name)
    return drawn


def _with_pixels(
    image: Image.Image, classes: np.ndarray[Any, Any], label: int, name: str
) -> Image.Image:
    colours = np.full((image.height, image.width, 3), _colour(label, name), np.uint8)
    return tint(image, colours, np.where(classes == label, np.float32(_OPACITY), np.float32(0)))
