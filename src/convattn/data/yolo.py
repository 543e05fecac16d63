"""YOLO's text files: a row an object, in shares of the image, as Ultralytics reads them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from convattn.data.annotated import EntryFault, Faults
from convattn.data.folders import find_images, find_splits, held_out_split
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
from convattn.data.reading import image_extensions
from convattn.data.texts import read_lines, read_text
from convattn.text import short_repr

LOOKED_FOR = "data.yaml with names, or images/ beside labels/ with classes.txt"

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASS_LISTS = ("classes.txt", "labels/classes.txt", "obj.names", "classes.names")
_NO_LABELS = ("classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "labels.txt")
_MOST_BYTES = 10_000_000  # of a yaml
_MOST_SHARE = 1e6  # what is larger is far from any image, and may overflow
_SPELLINGS = {"val": ("val", "valid", "validation"), "test": ("test",), "train": ("train",)}


@dataclass(frozen=True)
class _Layout:
    file: Path
    """What names the classes."""
    names: tuple[str, ...]
    images: dict[str | None, list[str]]
    """Split -> paths of its images; None where nothing parts them."""
    keypoints: int = 0
    """Numbers behind a row's box."""


@dataclass(frozen=True)
class _Row:
    where: str
    """What an error calls it."""
    label: int
    numbers: NDArray[np.float64]
    """x, y, width, height or x and y of points in turn, in shares of the image."""


def find(listing: Listing, annotations: str | None = None) -> str | None:
    """What of YOLO's is in a folder, as it is to be told; None if nothing is."""
    file = _find_yaml(listing.root)
    if file is not None:
        return file.name
    list_file = _find_class_list(listing.root)
    if list_file is None:
        return None
    labels = (str(file) for path in listing.images for file in _label_files(path))
    found = next((label for label in labels if label in listing), None)
    return None if found is None else f"{listing.relative(list_file)}, {listing.relative(found)}"


def read(
    listing: Listing,
    faults: Faults,
    *,
    masks: bool,
    annotations: str | None = None,
    split: str | None = None,
) -> ObjectSet:
    """What YOLO's text files say of the images in a folder.

    Args:
        listing: Of the folder.
        faults: Notes files and rows that are at fault.
        masks: Whether polygons are read where there are some.
        split: As for ``held_out_split``.

    Raises:
        ValueError: If the yaml is not what it should be, or the split is not there.
        FileNotFoundError: If files are missing.
    """
    file = _find_yaml(listing.root)
    layout = _read_classes(listing) if file is None else _read_yaml(listing, file, faults)
    check_class_names(layout.names, str(layout.file))
    there = [one for one, images in layout.images.items() if one is not None and images]
    held_out = held_out_split(there, split, layout.file)
    splits: tuple[str | None, ...]
    if held_out is not None and "train" in there:
        splits = ("train", held_out)
        for one in there:
            if one not in splits:
                faults.left_out.add("split that is not looked at", one)
    else:
        splits = ("train" if "train" in layout.images else None,)
    notes: list[str] = []
    rows = [_read_rows(layout, layout.images[split], faults, notes, split) for split in splits]
    _count_orphans([layout.images[split] for split in splits], listing, faults)
    masks = masks and any(
        len(row.numbers) > 4 for part in rows for _, _, own in part for row in own
    )
    numbers = count()
    parts = {
        split: _read_records(part, numbers, masks, faults)
        for split, part in zip(splits, rows, strict=True)
    }
    return gather_objects(
        str(layout.file), parts, layout.names, are_listed=True, has_masks=masks, notes=notes
    )


# --- layouts


def _find_yaml(root: Path) -> Path | None:
    """The yaml that names classes.

    Raises:
        ValueError: If there are two.
    """
    for name in _YAML_NAMES:
        if holds(str(root / name), b"names") or holds(str(root / name), b"train"):
            return root / name
    files = sorted((*root.glob("*.yaml"), *root.glob("*.yml")))
    found = [file for file in files if holds(str(file), b"names:")]
    if len(found) > 1:
        raise ValueError(
            f"{root} holds {found[0].name} and {found[1].name}, which both name classes; call the "
            "right one data.yaml"
        )
    return found[0] if found else None


def _find_class_list(root: Path) -> Path | None:
    files = (root / name for name in _CLASS_LISTS)
    return next((file for file in files if file.is_file()), None)


def _read_classes(listing: Listing) -> _Layout:
    """The layout without a yaml: ``images/train``, ``labels/train`` and a list of the classes."""
    root = listing.root
    file = _find_class_list(root)
    if file is None:
        raise FileNotFoundError(f"{root} holds no labels of YOLO's; looked for {LOOKED_FOR}")
    names = tuple(line.strip() for line in read_lines(file) if line.strip())
    if not names:
        raise ValueError(f"{file} names no class; expected one a line")
    above = root / "images" if (root / "images").is_dir() else root
    splits = find_splits(above)
    if "train" not in splits:
        return _Layout(file, names, {None: [p for p in listing.images if _is_below(p, above)]})
    images: dict[str | None, list[str]] = {
        split: [path for path in listing.images if _is_below(path, folder)]
        for split, folder in splits.items()
    }
    return _Layout(file, names, images)


def _is_below(path: str, folder: Path) -> bool:
    return Path(path).is_relative_to(folder)


def _read_yaml(listing: Listing, file: Path, faults: Faults) -> _Layout:
    content = _load_yaml(file)
    names = _read_names(file, content)
    bases = _bases(file, content.get("path"))
    images: dict[str | None, list[str]] = {}
    for split, spellings in _SPELLINGS.items():
        entry = next((content[key] for key in spellings if content.get(key)), None)
        if entry is not None:
            images[split] = _list_images(file, split, entry, bases, listing, faults)
    if not images:
        images = {None: listing.images}
    if "train" not in images and None not in images:
        raise ValueError(
            f"{file} has no train; expected the folder of the training images under that name"
        )
    return _Layout(file, names, images, _count_keypoints(file, content))


def _load_yaml(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError("more than 10 MB")
        content = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file} is no yaml ({reason}); write it anew") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no names; expected train, val and names of YOLO's")
    return {str(key): value for key, value in content.items()}


def _read_names(file: Path, content: dict[str, Any]) -> tuple[str, ...]:
    given = content.get("names")
    if isinstance(given, dict):
        if sorted(map(str, given)) != sorted(map(str, range(len(given)))):
            raise ValueError(
                f"{file} numbers its names {', '.join(map(str, list(given)[:5]))}; expected every "
                f"number from 0 to {max(0, len(given) - 1)}"
            )
        by_number = {str(key): name for key, name in given.items()}
        given = [by_number[str(number)] for number in range(len(given))]
    if not isinstance(given, list) or not given:
        raise ValueError(f"{file} has names={short_repr(given)}; expected a list of the classes")
    for number, name in enumerate(given):
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise ValueError(
                f"{file} calls class {number} {short_repr(name)}, which yaml takes for no text; "
                "put the name into quotes"
            )
    names = tuple(str(name) for name in given)
    number = content.get("nc", len(names))
    if number != len(names):
        raise ValueError(
            f"{file} has nc={short_repr(number)} and {len(names)} names; expected as many of both"
        )
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ValueError(f"{file} has the name {twice!r} twice; expected each class once")
    return names


def _count_keypoints(file: Path, content: dict[str, Any]) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or not all(
        isinstance(side, int) and 0 < side < 10_000 for side in shape
    ):
        raise ValueError(f"{file} has kpt_shape={short_repr(shape)}; expected two whole numbers")
    return int(np.prod(shape))


def _bases(file: Path, path: Any) -> list[Path]:
    """The folders that the yaml's paths may begin in."""
    here = file.parent
    if path is None:
        return [here]
    if not isinstance(path, str) or "\0" in path:
        raise ValueError(f"{file} has path={short_repr(path)}; expected the folder of the data set")
    return [here / _slashes(path), here]


def _slashes(path: str) -> str:
    return path.replace("\\", "/")


def _list_images(
    file: Path, split: str, entry: Any, bases: Sequence[Path], listing: Listing, faults: Faults
) -> list[str]:
    entries = entry if isinstance(entry, list) else [entry]
    found: list[str] = []
    for one in entries:
        if not isinstance(one, str) or "\0" in one:
            raise ValueError(
                f"{file} has {split}={short_repr(one)}; expected a folder of images, or a text "
                "that lists them"
            )
        place = _resolve(one, bases)
        if place is None:
            raise FileNotFoundError(
                f"{file} has {split}={short_repr(one)}, which is not there; looked for "
                f"{' and '.join(str(base / _slashes(one)) for base in bases)}"
            )
        if place.is_dir():
            found += _images_in(place, listing, faults)
        else:
            found += _listed_images(place, bases, faults)
    if not found:
        raise FileNotFoundError(f"{file} has {split}={short_repr(entry)}, which holds no image")
    for path, times in Counter(found).items():
        for _ in range(times - 1):
            with faults.noted(file):
                raise EntryFault("repeated image", f"{split} has {path} twice; expected it once")
    return list(dict.fromkeys(found))


def _resolve(path: str, bases: Sequence[Path]) -> Path | None:
    """Where a path of a yaml or list leads; as Roboflow writes it, also without its ``..``."""
    spelt = _slashes(path)
    bare = "/".join(part for part in spelt.split("/") if part not in ("..", "."))
    try:
        for tried in (spelt, bare):
            for base in bases:
                if (base / tried).exists():
                    return Path(os.path.normpath(base / tried))
    except OSError:  # a name longer than the system's longest
        return None
    return None


def _images_in(folder: Path, listing: Listing, faults: Faults) -> list[str]:
    if folder.is_relative_to(listing.root):
        return [path for path in listing.images if _is_below(path, folder)]
    return find_images(folder, faults.left_out, extensions=image_extensions())


def _listed_images(file: Path, bases: Sequence[Path], faults: Faults) -> list[str]:
    lines = read_lines(file, "expected a path a line")
    found = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        with faults.noted(file):
            place = None if "\0" in line else _resolve(line, (file.parent, *bases))
            if place is None or not place.is_file():
                raise EntryFault(
                    "missing image", f"line {number} lists {short_repr(line)}, which is not there"
                )
            found.append(str(place))
    return found


# --- labels


def _label_files(image: str) -> tuple[Path, Path]:
    """Where the rows of an image may be: in ``labels`` for its last ``images``, or beside it."""
    beside = Path(image).with_suffix(".txt")
    parts = list(beside.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts), beside


def _read_rows(
    layout: _Layout,
    images: Sequence[str],
    faults: Faults,
    notes: list[str],
    split: str | None,
) -> list[tuple[str, Path | None, list[_Row]]]:
    """Of every image its file of rows, and these."""
    found: list[tuple[str, Path | None, list[_Row]]] = []
    for image in images:
        file = next((file for file in _label_files(image) if file.is_file()), None)
        if file is None:
            found.append((image, None, []))
            continue
        with faults.noted(file):
            found.append((image, file, _parse(file, layout, faults)))
    without = [image for image, file, _ in found if file is None]
    if images and len(without) == len(images):
        raise FileNotFoundError(
            f"none of the {len(images):,} images of {split or layout.file} has a file of labels; "
            f"looked for {_label_files(images[0])[0]} and the like"
        )
    if without:
        notes.append(
            f"{len(without):,} of {len(images):,} images of {split or layout.file} have no file of "
            f"labels and count as images without objects, the first of them {without[0]}"
        )
    return found


def _parse(file: Path, layout: _Layout, faults: Faults) -> list[_Row]:
    try:
        lines = read_text(file).splitlines()
    except UnicodeDecodeError as error:
        raise EntryFault(
            "unreadable labels", "is no text in UTF-8; expected rows of numbers"
        ) from error
    rows: dict[str, _Row] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        with faults.noted(file):
            row = _parse_row(f"line {number}", words, layout)
            key = " ".join(words)
            if key in rows:
                faults.left_out.add("repeated row", f"{file}, line {number}")
            rows[key] = row
    return list(rows.values())


def _parse_row(where: str, words: list[str], layout: _Layout) -> _Row:
    try:
        label, *given = map(float, words)
    except ValueError:
        raise EntryFault(
            "no row",
            f"{where} is {short_repr(' '.join(words))}; expected numbers with spaces between",
        ) from None
    numbers = np.array(given)
    if layout.keypoints and len(numbers) == 4 + layout.keypoints:
        numbers = numbers[:4]
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise EntryFault(
            "no row",
            f"{where} holds {len(words)} numbers; expected class x y width height, or class and "
            "x and y of at least three points",
        )
    if not 0 <= label < len(layout.names) or label != int(label):
        raise EntryFault(
            "unknown category",
            f"{where} is of class {words[0]}; expected 0 to {len(layout.names) - 1}, the "
            f"{len(layout.names)} names of {layout.file}",
        )
    return _Row(where, int(label) + 1, numbers)


def _read_records(
    part: Sequence[tuple[str, Path | None, list[_Row]]],
    numbers: Iterable[int],
    masks: bool,
    faults: Faults,
) -> list[ImageRecord]:
    records = []
    # Rows are shares of what whoever drew them saw: the upright image.
    progress = tqdm(part, desc="sizes of the images", disable=None, delay=1, leave=False)
    for (image, file, rows), number in zip(progress, numbers, strict=False):
        with faults.noted(file or Path(image)):
            size = size_of(image)
            objects = []
            for row in rows:
                with faults.noted(file or Path(image)):
                    objects.append(_read_object(row, size, masks))
            records.append(record_image(image, str(file or image), number, size, objects))
    return records


def _read_object(row: _Row, size: Size, masks: bool) -> ObjectRecord:
    height, width = size
    segmentation = None
    numbers = row.numbers
    said = f"the row {' '.join(f'{number:g}' for number in numbers[:8])}"
    if not (np.abs(numbers) < _MOST_SHARE).all():
        raise EntryFault("bad box", f"{row.where} has {said}; expected shares of the image, 0 to 1")
    try:
        if len(numbers) == 4:
            x, y, wide, high = numbers * [width, height, width, height]
            edges = [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]
            said += " (x, y, width, height, in shares of the image)"
        else:
            points = numbers.reshape(-1, 2) * [width, height]
            edges = [*points.min(0), *points.max(0)]
            segmentation = [points.ravel().tolist()]
            said += " (x and y of points, in shares of the image)"
        box = fit_box(edges, size, said, "width and height above 0")
    except ValueError as error:
        raise EntryFault("bad box", f"{row.where} {error}") from error
    if masks:
        try:
            check_segmentation(segmentation, height, width)
        except ValueError as error:
            raise EntryFault("bad mask", f"{row.where} {error}") from error
    return ObjectRecord(
        box=box,
        label=row.label,
        area=read_area(None, box),
        iscrowd=False,
        segmentation=segmentation if masks else None,
    )


def _count_orphans(parts: Sequence[Sequence[str]], listing: Listing, faults: Faults) -> None:
    """Files of labels without an image."""
    expected = {str(file) for images in parts for image in images for file in _label_files(image)}
    folders = {os.path.dirname(file) for file in expected}
    for path in listing.ending(".txt"):
        name = os.path.basename(path).lower()
        is_other = name in _NO_LABELS or name.startswith("readme")
        if os.path.dirname(path) in folders and path not in expected and not is_other:
            faults.left_out.add("labels without an image", listing.relative(path))
