"""Pascal VOC's xml, one an image, as Pascal, LabelImg, CVAT and Roboflow write it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

import numpy as np

from convattn.data.annotated import EntryFault, Faults
from convattn.data.folders import held_out_split, part_files, split_of
from convattn.data.listing import Listing, holds
from convattn.data.objects import (
    ImageRecord,
    ObjectRecord,
    ObjectSet,
    Size,
    check_class_names,
    fit_box,
    gather_objects,
    read_area,
    record_image,
    size_of,
)
from convattn.data.texts import read_lines

LOOKED_FOR = "Annotations/*.xml beside JPEGImages, or xml files beside the images"

_CLASS_LISTS = ("classes.txt", "labels.txt", "labelmap.txt")
_IMAGE_FOLDERS = ("jpegimages", "images", "pngimages")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_MOST_BYTES = 50_000_000  # of an xml
_MOST_PIXELS = 2**31  # of a side
_FROM_ZERO = "unknown"  # what LabelImg and CVAT, which count pixels from 0, call the database


@dataclass(frozen=True)
class _StatedObject:
    """An object as its xml has it."""

    where: str
    name: str
    edges: tuple[float, ...]
    is_difficult: bool


@dataclass(frozen=True)
class _StatedImage:
    """An xml and its image."""

    file: Path
    image: str
    size: Size
    objects: list[_StatedObject]
    counts_from_zero: bool
    """Whether its writer is known to count pixels from 0."""


def find(listing: Listing, annotations: str | None = None) -> str | None:
    """An xml of Pascal's in a folder, as it is to be told; None if there is none."""
    for path in listing.ending(".xml"):
        if holds(path, b"<annotation") and holds(path, b"<size"):
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
    """What Pascal's xml files say of the images in a folder.

    Boxes count pixels from 1, and their last ones belong to the object, as Pascal's do; but from 0
    where a box of the set begins at 0, or every xml is of the database "Unknown", as LabelImg and
    CVAT write it. Difficult objects are crowds: they count neither for nor against a detector.

    Args:
        listing: Of the folder.
        faults: Notes files and objects that are at fault.
        masks: Ignored: there are none.
        split: As for ``held_out_split``.

    Raises:
        ValueError: If there are two such folders, or the split is not there.
        FileNotFoundError: If files are missing.
    """
    root = _find_root(listing)
    files = [path for path in map(Path, listing.ending(".xml")) if path.is_relative_to(root)]
    if not files:
        raise FileNotFoundError(f"{root} holds no xml of Pascal VOC's; looked for {LOOKED_FOR}")
    splits = _list_splits(listing, root, files, faults, split)
    finder = _ImageFinder(listing, root)
    stated = [
        [one for file in own if (one := _state(file, finder, faults)) is not None]
        for own in splits.values()
    ]
    notes = []
    if finder.renamed:
        first, name = finder.renamed[0]
        notes.append(
            f"{len(finder.renamed):,} xml files of {root} name another image than the one that is "
            f"called as they are, which was taken: {first} says {name}"
        )
    _count_bare(listing, root, splits, stated, faults)
    every = [one for part in stated for one in part]
    listed = _read_class_list(root)
    names = listed or tuple(sorted({thing.name for one in every for thing in one.objects}))
    check_class_names(names, str(root))
    first_pixel, reason = _first_pixel(root, every)
    numbers = count()
    parts = {
        split: [_read_record(one, next(numbers), names, first_pixel, faults) for one in part]
        for split, part in zip(splits, stated, strict=True)
    }
    return gather_objects(
        str(root),
        parts,
        names,
        are_listed=bool(listed),
        has_masks=False,
        notes=(*notes, reason),
    )


def _find_root(listing: Listing) -> Path:
    """The folder that holds Annotations; ``VOCdevkit/VOC2007`` in its archive."""
    inner = sorted(
        {
            folder
            for path in listing.ending(".xml")
            for folder in Path(path).parents
            if re.fullmatch(r"VOC\d{4}", folder.name) and folder.is_relative_to(listing.root)
        }
    )
    if len(inner) > 1:
        raise ValueError(
            f"{listing.root} holds {listing.relative(inner[0])} and {listing.relative(inner[1])}; "
            "give one of them as root (--data.root)"
        )
    return inner[0] if inner else listing.root


def _read_class_list(root: Path) -> tuple[str, ...]:
    """The classes in the order of a file that lists them; none if there is none."""
    file = next((root / name for name in _CLASS_LISTS if (root / name).is_file()), None)
    if file is None:
        return ()
    lines = [line.strip() for line in read_lines(file)]
    names = [line.split(":")[0].strip() if file.name == "labelmap.txt" else line for line in lines]
    kept = (name for name in names if name and not name.startswith(("#", "__")))
    return tuple(dict.fromkeys(name for name in kept if name not in ("background", "_background_")))


# --- which files


def _list_splits(
    listing: Listing, root: Path, files: Sequence[Path], faults: Faults, wanted: str | None
) -> dict[str | None, list[Path]]:
    """The xml files of the training and test images; all under None if nothing parts them."""
    lists = {
        file.stem.lower(): file for file in sorted((root / "ImageSets" / "Main").glob("*.txt"))
    }
    by_split = {split: file for name, file in lists.items() if (split := split_of(name))}
    if set(by_split) == {"test"} and "trainval" in lists:
        by_split["train"] = lists["trainval"]
    if "train" not in by_split or len(by_split) == 1:
        return part_files(root, files, faults.left_out, wanted)
    held_out = held_out_split(by_split, wanted, root)
    for split, file in by_split.items():
        if split not in ("train", held_out):
            faults.left_out.add("list beside the splits", listing.relative(file))
    chosen = {"train": by_split["train"], "test": by_split[cast(str, held_out)]}
    return {split: _listed(file, files, faults) for split, file in chosen.items()}


def _listed(file: Path, files: Sequence[Path], faults: Faults) -> list[Path]:
    """The xml files that a list names."""
    lines = [line.strip() for line in read_lines(file, "expected a name a line")]
    by_stem: dict[str, Path] = {one.stem: one for one in files}
    found: dict[Path, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        # The lists of single classes say by a last number whether an image shows the class.
        words = line.replace("\\", "/").rsplit("/", 1)[-1]
        stem = words if words in by_stem else re.sub(r"\s+-?[01]$", "", words)
        with faults.noted(file):
            if stem not in by_stem:
                raise EntryFault(
                    "missing xml",
                    f"line {number} lists {stem[:80]!r}, and no {stem[:80]}.xml is there",
                )
            if by_stem[stem] in found:
                raise EntryFault(
                    "repeated image",
                    f"line {number} lists {stem!r}, as line {found[by_stem[stem]]} does; expected "
                    "each image once",
                )
            found[by_stem[stem]] = number
    return list(found)


def _count_bare(
    listing: Listing,
    root: Path,
    splits: dict[str | None, list[Path]],
    stated: Sequence[Sequence[_StatedImage]],
    faults: Faults,
) -> None:
    """Images that nothing tells of."""
    taken = {one.image for part in stated for one in part}
    folders = {Path(path).parent for path in taken}
    parted = len(splits) > 1
    reason = "image that no list and xml names" if parted else "image without an xml"
    for path in listing.images:
        if path not in taken and Path(path).parent in folders:
            faults.left_out.add(reason, listing.relative(path))


# --- the files


class _ImageFinder:
    """Finds the image of an xml, by the name of the xml before the name in it.

    Attributes:
        renamed: An xml and the name in it, where that is another.
    """

    def __init__(self, listing: Listing, root: Path) -> None:
        self.listing = listing
        self.root = root
        self.renamed: list[tuple[str, str]] = []

    def __call__(self, file: Path, named: str | None) -> str:
        try:
            path = self.listing.find_by_stem(str(file), self.root, self._folders)
        except EntryFault as fault:
            found = None
            if fault.reason == "missing image" and named:
                found = self.listing.find_by_name(named)
            if found is None:
                raise
            return found
        last = (named or "").replace("\\", "/").rsplit("/", 1)[-1]
        if last and Path(last).stem != file.stem:
            self.renamed.append((file.name, last))
        return path

    def _folders(self, folder: Path) -> list[Path]:
        """Where to look first: beside the xml, or in JPEGImages for Annotations."""
        found = [folder]
        parts = folder.parts
        for place, part in enumerate(parts):
            if part.casefold() == "annotations":
                above = Path(*parts[:place])
                inside = Path(*parts[place + 1 :])
                found += [
                    other / inside
                    for other in sorted(above.iterdir())
                    if other.name.casefold() in _IMAGE_FOLDERS
                ]
        return found


def _state(file: Path, find_image: _ImageFinder, faults: Faults) -> _StatedImage | None:
    with faults.noted(file):
        tree = _parse(file)
        image = find_image(file, _text(tree, "filename"))
        objects = []
        for number, element in enumerate(tree.findall("object"), start=1):
            with faults.noted(file):
                objects.append(_state_object(f"object {number}", element))
        database = _text(tree, "source/database") or ""
        return _StatedImage(
            file=file,
            image=image,
            size=_read_size(tree) or size_of(image),
            objects=objects,
            counts_from_zero=database.strip().casefold() == _FROM_ZERO,
        )
    return None


def _parse(file: Path) -> ElementTree.Element:
    content = file.read_bytes() if file.stat().st_size <= _MOST_BYTES else b"\0"
    # What a document type defines may unfold to any size.
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", content, re.IGNORECASE) or b"\0" in content:
        raise EntryFault(
            "unreadable xml",
            "defines a document type or is no text; expected Pascal's plain xml in UTF-8",
        )
    try:
        tree = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise EntryFault(
            "unreadable xml", f"is no xml ({error}); expected one annotation of Pascal's"
        ) from error
    if tree.tag != "annotation":
        raise EntryFault(
            "unreadable xml", f"holds <{tree.tag[:40]}>; expected <annotation> with <object>s"
        )
    return tree


def _text(element: ElementTree.Element, path: str) -> str | None:
    found = element.find(path)
    return None if found is None or found.text is None else found.text.strip()


def _read_size(tree: ElementTree.Element) -> Size | None:
    """Height and width; None where the xml does not say, as some tools leave it."""
    height, width = (_number(_text(tree, f"size/{side}")) for side in ("height", "width"))
    if height is None or width is None or not (min(height, width) >= 1):
        return None
    if max(height, width) > _MOST_PIXELS:
        raise EntryFault(
            "incomplete entry", f"says that its image is {height:g} x {width:g}; expected pixels"
        )
    return int(height), int(width)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _state_object(where: str, element: ElementTree.Element) -> _StatedObject:
    name = _text(element, "name")
    if not name:
        raise EntryFault("incomplete entry", f"{where} has no name; expected its class")
    where = f"{where} ({name[:40]})"
    given = [_text(element, f"bndbox/{edge}") for edge in _EDGES]
    edges = [number for number in map(_number, given) if number is not None]
    if len(edges) < len(_EDGES):
        said = ", ".join(f"{edge}={text}" for edge, text in zip(_EDGES, given, strict=True))
        raise EntryFault("bad box", f"{where} has {said}; expected four numbers in bndbox")
    return _StatedObject(
        where=where,
        name=name,
        edges=tuple(edges),
        is_difficult=_text(element, "difficult") in ("1", "true", "True"),
    )


def _first_pixel(root: Path, images: Sequence[_StatedImage]) -> tuple[int, str]:
    """What the boxes call the first pixel, and why."""
    for image in images:
        for thing in image.objects:
            if -1 < min(thing.edges[:2]) < 1:
                return 0, (
                    f"boxes of {root} count pixels from 0, as {thing.where} of {image.file.name} "
                    "shows"
                )
    if images and all(image.counts_from_zero for image in images):
        return 0, (
            f"boxes of {root} are taken to count pixels from 0, as LabelImg and CVAT write them"
        )
    return 1, f"boxes of {root} are taken to count pixels from 1, as Pascal's do"


def _read_record(
    image: _StatedImage, number: int, names: Sequence[str], first_pixel: int, faults: Faults
) -> ImageRecord:
    objects = []
    for thing in image.objects:
        with faults.noted(image.file):
            objects.append(_read_object(thing, image.size, names, first_pixel))
    return record_image(image.image, str(image.file), number, image.size, objects)


def _read_object(
    thing: _StatedObject, size: Size, names: Sequence[str], first_pixel: int
) -> ObjectRecord:
    if thing.name not in names:
        raise EntryFault(
            "unknown category",
            f"{thing.where} is of a class that the list of the classes does not have; expected one "
            f"of {', '.join(names[:10])}",
        )
    said = ", ".join(f"{edge}={at:g}" for edge, at in zip(_EDGES, thing.edges, strict=True))
    edges = np.array(thing.edges) - [first_pixel, first_pixel, 0, 0]
    try:
        box = fit_box(edges, size, said, "xmin below xmax and ymin below ymax")
    except ValueError as error:
        raise EntryFault("bad box", f"{thing.where} {error}") from error
    return ObjectRecord(
        box=box,
        label=names.index(thing.name) + 1,
        area=read_area(None, box),
        iscrowd=thing.is_difficult,
        segmentation=None,
    )
