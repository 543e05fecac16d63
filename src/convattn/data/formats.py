"""The formats that objects on images come in, and which of them a folder is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from convattn.config import DataFormat
from convattn.data import coco, labelme, voc, yolo
from convattn.data.folders import LeftOut
from convattn.data.listing import Listing
from convattn.data.objects import ObjectSet


@dataclass(frozen=True)
class Format:
    """How a folder may hold what is known of its images."""

    title: str
    """What people call it."""
    looked_for: str
    """What tells that a folder is in it."""
    find: Callable[[Listing, str | None], str | None]
    """Gives of a listing, and the name of its annotations, what tells so; None if nothing does."""


@dataclass(frozen=True)
class ObjectFormat(Format):
    """One that tells of objects: boxes, and perhaps outlines."""

    read: Callable[..., ObjectSet]
    """Called with a listing, faults, ``masks``, ``annotations`` and ``split``."""


OBJECT_FORMATS: Mapping[DataFormat, ObjectFormat] = {
    "coco": ObjectFormat("COCO's json", coco.LOOKED_FOR, coco.find, coco.read),
    "yolo": ObjectFormat("YOLO", yolo.LOOKED_FOR, yolo.find, yolo.read),
    "voc": ObjectFormat("Pascal VOC", voc.LOOKED_FOR, voc.find, voc.read),
    "labelme": ObjectFormat("LabelMe", labelme.LOOKED_FOR, labelme.find, labelme.read),
}


def is_in(
    formats: Mapping[DataFormat, Format], root: Path, format: DataFormat, annotations: str | None
) -> bool:
    """Whether a folder is in one of the formats, as a look at its names and files tells.

    Args:
        formats: Which may be.
        root: The folder.
        format: The one that it is said to be in; ``"auto"``: any.
        annotations: As for ``find_format``.
    """
    if not root.is_dir():
        return False
    listing = Listing(root, LeftOut())
    asked = [one for name, one in formats.items() if format in ("auto", name)]
    return any(one.find(listing, annotations) is not None for one in asked)


def find_format(
    listing: Listing,
    formats: Mapping[DataFormat, Format],
    annotations: str | None,
    notes: list[str],
) -> DataFormat:
    """The format that a folder is in.

    Args:
        listing: Of the folder.
        formats: Which may be.
        annotations: What is to be found in the names of COCO's json files.
        notes: Gets a sentence that says what was taken.

    Raises:
        ValueError: If there are two.
        FileNotFoundError: If there is none.
    """
    found: dict[DataFormat, str] = {}
    for name, format in formats.items():
        evidence = format.find(listing, annotations)
        if evidence is not None:
            found[name] = evidence
    if not found:
        looked_for = "; ".join(f"{one.title}: {one.looked_for}" for one in formats.values())
        raise FileNotFoundError(f"{listing.root} is in no known format; looked for {looked_for}")
    if len(found) > 1:
        one, other = list(found)[:2]
        raise ValueError(
            f"{listing.root} may be {formats[one].title} ({found[one]}) or {formats[other].title} "
            f"({found[other]}); say which: --data.format {one} or --data.format {other}"
        )
    ((name, evidence),) = found.items()
    notes.append(f"{listing.root} is taken as {formats[name].title}: {evidence}")
    return name


def refuse_annotations(annotations: str | None, format: str) -> None:
    """A name of annotations, given for a format in which it chooses nothing.

    Raises:
        ValueError: If there is one.
    """
    if annotations is not None and format != "coco":
        raise ValueError(
            f"annotations={annotations!r} (--data.annotations) names COCO's json, and the folder "
            f"is read as format {format!r}; leave it out, or give --data.format coco"
        )
