"""Folders of masks: which mask is of which image, and what its values mean."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from convattn.data.annotated import EntryFault, Faults
from convattn.data.folders import NO_IMAGE, find_images, find_splits, held_out_split, subfolders
from convattn.data.listing import Listing
from convattn.data.reading import read_sample, read_values, turned
from convattn.data.texts import first_word, read_lines, read_table
from convattn.exceptions import UnreadableImageError

LOOKED_FOR = "images/train beside masks/train"
VOC_LOOKED_FOR = "SegmentationClass beside JPEGImages"

IGNORED = 255
"""The class index of pixels that count neither in training nor in evaluation."""

_LOOKED_AT = 500  # masks, to learn how a set draws objects
_PACKING = np.array([1 << 16, 1 << 8, 1], np.int32)
_COLOUR_TABLES = {
    "label_colors.txt": re.compile(r"(?P<r>\d+)\s+(?P<g>\d+)\s+(?P<b>\d+)\s+(?P<name>.+)"),
    "class_dict.csv": re.compile(
        r"(?P<name>[^,]+),\s*(?P<r>\d+)\s*,\s*(?P<g>\d+)\s*,\s*(?P<b>\d+)\s*"
    ),
    "labelmap.txt": re.compile(r"(?P<name>[^:]+):(?P<r>\d+),(?P<g>\d+),(?P<b>\d+)(:.*)?"),
}
"""Name of a file that lists the classes' colours -> a line of it."""
_CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "bicyclist"),
)
_VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "dining table", "dog", "horse", "motorbike", "person", "potted plant"),
    *("sheep", "sofa", "train", "tv/monitor"),
)


# --- layouts of folders

Pair = tuple[str, str]
"""Paths of an image and its mask."""

_Colours = dict[tuple[int, int, int], int]


@dataclass(frozen=True, kw_only=True)
class MaskSet:
    """Images with their masks, and what the masks' values mean."""

    class_names: tuple[str, ...]
    """The classes in the order of their indices, from 0."""
    train: list[Pair]
    test: list[Pair] | None
    """None where nothing parts the images."""
    first: int = 0
    """What the mask files call class 0."""
    ignored: tuple[int, ...] = (IGNORED,)
    """The indices in the mask files that mean no class."""
    is_binary: bool = False
    """Whether the mask files call class 1 255."""
    colours: _Colours | None = None
    """Colour -> index, where mask files are in colours."""
    is_sample: bool = False
    """Whether the images are said to serve for training and test alike."""
    notes: tuple[str, ...] = ()
    """As in ``SegmentationSource``."""

    @property
    def values(self) -> list[int]:
        """What the mask files call each class."""
        if self.is_binary:
            return [0, 255]
        return list(range(self.first, self.first + len(self.class_names)))


def _lay_out_masks(root: Path, faults: Faults, wanted: str | None) -> MaskSet:
    folders = _mask_folders(root, faults, wanted)
    train, *test = (_match(images, masks, faults) for images, masks in folders)
    masks = folders[0][1]
    names_file = root / "classes.txt"
    table_file = _find_colours(root)
    table = {} if table_file is None else _read_colours(table_file)
    is_binary = table_file is None and _are_binary(train)
    if names_file.is_file() or not (table or is_binary):
        class_names = _read_lines(names_file)
    elif table:
        class_names = _named_colours(table)
    else:
        class_names = ("background", "object")
    if len(class_names) > IGNORED:
        raise ValueError(
            f"{names_file} names {len(class_names)} classes; expected at most {IGNORED}, since a "
            f"mask has 8 bits and {IGNORED} means ignored"
        )
    if is_binary and len(class_names) != 2:
        raise ValueError(
            f"{names_file} names {len(class_names)} classes, and the masks of {masks} hold 0 "
            "and 255 alone, as those of one object do; expected two names, the background's and "
            "the object's, or masks of indices"
        )
    notes = []
    if is_binary:
        notes.append(
            f"the masks of {masks} hold 0 and 255 alone: 0 is taken for {class_names[0]!r}, 255 "
            f"for {class_names[1]!r}"
        )
    return MaskSet(
        class_names=class_names,
        train=train,
        test=test[0] if test else None,
        ignored=() if is_binary else (IGNORED,),
        is_binary=is_binary,
        colours=_indices_of_colours(table, class_names, table_file, names_file),
        notes=tuple(notes),
    )


def _mask_folders(root: Path, faults: Faults, wanted: str | None) -> list[tuple[Path, Path]]:
    """The folders of images and masks of the training and test set, or of all."""
    inner = _inner_splits(root, wanted)
    if inner is not None:
        for name in subfolders(root):
            if root / name not in inner:
                faults.left_out.add("folder beside the splits", name)
        return [(split / "images", split / "masks") for split in inner]
    if (root / "images").is_dir() and not find_splits(root / "images"):
        held_out_split((), wanted, root)
        return [(root / "images", root / "masks")]
    images, masks = (_split_folders(root / name, wanted) for name in ("images", "masks"))
    for name in subfolders(root / "images"):
        if root / "images" / name not in images:
            faults.left_out.add("folder beside the splits", f"images/{name}")
    return list(zip(images, masks, strict=True))


def _inner_splits(root: Path, wanted: str | None = None) -> tuple[Path, Path] | None:
    """The folders of the splits where each holds its images and masks."""
    splits = find_splits(root)
    if "train" not in splits or not (splits["train"] / "masks").is_dir():
        return None
    held_out = held_out_split(splits, wanted, root)
    return None if held_out is None else (splits["train"], splits[held_out])


def find(listing: Listing, annotations: str | None = None) -> str | None:
    """The masks in a folder, as they are to be told; None if there are none."""
    root = listing.root
    if (root / "masks").is_dir() and (root / "images").is_dir():
        return "images, masks"
    inner = _inner_splits(root)
    return None if inner is None else f"{inner[0].name}/images, {inner[0].name}/masks"


def find_voc(listing: Listing, annotations: str | None = None) -> str | None:
    """Pascal's masks in a folder, as they are to be told; None if there are none."""
    return "SegmentationClass" if (listing.root / "SegmentationClass").is_dir() else None


def _find_colours(root: Path) -> Path | None:
    return next((root / name for name in _COLOUR_TABLES if (root / name).is_file()), None)


def _named_colours(table: Mapping[tuple[int, int, int], str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in table.values() if not _is_void(name)))


def _are_binary(pairs: list[Pair]) -> bool:
    """Whether masks from all over a set hold 0 and 255 alone, as objects are often drawn."""
    found: set[int] = set()
    step = max(1, len(pairs) // _LOOKED_AT)
    for _, file in pairs[::step]:
        try:
            mode, values = read_values(file)
        except UnreadableImageError:
            continue  # said when it is asked for
        if mode not in ("L", "P"):
            return False
        found.update(np.unique(values).tolist())
        if found - {0, 255}:
            return False
    return 255 in found and 0 in found


def _read_colours(file: Path) -> dict[tuple[int, int, int], str]:
    """What a table of colours calls each."""
    lines = [line.strip() for line in read_lines(file)]
    found: dict[tuple[int, int, int], str] = {}
    pattern = _COLOUR_TABLES[file.name]
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#") or (number == 1 and file.suffix == ".csv"):
            continue
        match = pattern.fullmatch(line)
        colour = (
            (0, 0, 256) if match is None else (int(match["r"]), int(match["g"]), int(match["b"]))
        )
        if match is None or max(colour) > 255:
            raise ValueError(
                f"line {number} of {file} is {line!r}; expected the name and the red, green and "
                "blue of a class, 0 to 255"
            )
        if colour in found:
            raise ValueError(f"line {number} of {file} has the colour of {found[colour]!r} again")
        found[colour] = match["name"].strip()
    if not found:
        raise ValueError(f"{file} names no class; expected a name and a colour a line")
    return found


def _is_void(name: str) -> bool:
    return name.casefold() in ("void", "unlabelled", "unlabeled", "ignore", "ignored")


def _indices_of_colours(
    table: Mapping[tuple[int, int, int], str],
    class_names: Sequence[str],
    file: Path | None,
    names_file: Path,
) -> _Colours | None:
    if not table:
        return None
    numbers = {name: number for number, name in enumerate(class_names)}
    missing = [name for name in class_names if name not in table.values()]
    if missing:
        raise ValueError(
            f"{names_file} names {missing[0]!r}, which has no colour in {file}; give it one"
        )
    return {colour: numbers.get(name, IGNORED) for colour, name in table.items()}


def _lay_out_camvid(root: Path, faults: Faults, wanted: str | None) -> MaskSet:
    train, test = (
        _match(folder, root / f"{folder.name}annot", faults)
        for folder in _split_folders(root, wanted)
    )
    names_file = root / "classes.txt"
    class_names = _read_lines(names_file) if names_file.is_file() else _CAMVID
    unlabelled = len(_CAMVID)
    # SegNet's own list ends with the name of what is ignored.
    if len(class_names) not in (unlabelled, unlabelled + 1):
        raise ValueError(
            f"{names_file} names {len(class_names)} classes; expected CamVid's {unlabelled}, and "
            "perhaps a last one for what is unlabelled"
        )
    return MaskSet(
        class_names=class_names[:unlabelled],
        train=train,
        test=test,
        ignored=(unlabelled, IGNORED),
    )


def _lay_out_ade20k(root: Path, faults: Faults, wanted: str | None) -> MaskSet:
    images, annotations = root / "images", root / "annotations"
    held_out_split(find_splits(images), wanted, images)
    if (images / "training").is_dir() or (images / "validation").is_dir():
        train, test = (
            _match(images / split, annotations / split, faults)
            for split in ("training", "validation")
        )
    else:
        train = test = _match(images, annotations, faults)
        warnings.warn(
            f"{images} has no folders training and validation: it is taken as ADE20k's sample, and "
            f"its {len(train)} images serve for training and test alike, which measures nothing",
            stacklevel=3,
        )
    _, *rows = read_table(root / "objectInfo150.txt", 5)
    return MaskSet(
        class_names=tuple(first_word(name) for *_, name in rows),
        train=train,
        test=test,
        first=1,
        ignored=(0, IGNORED),
        is_sample=train is test,
    )


def _lay_out_voc(root: Path, faults: Faults, wanted: str | None) -> MaskSet:
    folder = root / "ImageSets" / "Segmentation"
    lists = {file.stem.lower(): file for file in sorted(folder.glob("*.txt"))}
    splits = [name for name in ("train", "val", "test") if name in lists]
    held_out = held_out_split(splits, wanted, root)
    parts = []
    if "train" in lists and held_out is not None:
        parts = [lists["train"], lists[held_out]]
        for name in splits:
            if name not in ("train", held_out):
                faults.left_out.add("list beside the splits", lists[name].name)
    every = root / "JPEGImages", root / "SegmentationClass"
    if parts:
        train, *test = (_match(*every, faults, _read_lines(file)) for file in parts)
    else:
        masks = _by_stem(every[1], faults, (".png",), "no mask by its name")
        train, test = _match(*every, faults, tuple(sorted(masks))), []
    table_file, names_file = _find_colours(root), root / "classes.txt"
    table = {} if table_file is None else _read_colours(table_file)
    if names_file.is_file():
        class_names = _read_lines(names_file)
    else:
        class_names = _named_colours(table) if table else _VOC
    notes = () if table or names_file.is_file() else (f"the classes of {root} are Pascal VOC's",)
    return MaskSet(
        class_names=class_names,
        train=train,
        test=test[0] if test else None,
        colours=_indices_of_colours(table, class_names, table_file, names_file),
        notes=notes,
    )


LAYOUTS: Mapping[str, Callable[[Path, Faults, str | None], MaskSet]] = {
    "masks": _lay_out_masks,
    "camvid": _lay_out_camvid,
    "ade20k": _lay_out_ade20k,
    "voc": _lay_out_voc,
}


def _split_folders(folder: Path, wanted: str | None) -> tuple[Path, Path]:
    """The folders of the training and the test images."""
    splits = find_splits(folder)
    test = held_out_split(splits, wanted, folder)
    if "train" not in splits or test is None:
        raise FileNotFoundError(
            f"{folder} has no folder {'train' if test else 'val or test'}; expected train with the "
            "training images and val or test with the test images"
        )
    return splits["train"], splits[test]


def _read_lines(file: Path) -> tuple[str, ...]:
    lines = (line.strip() for (line,) in read_table(file, 1))
    return tuple(line for line in lines if line)


def _match(
    images: Path, masks: Path, faults: Faults, stems: tuple[str, ...] | None = None
) -> list[Pair]:
    """Pair the files of two folders by name: all of them, or those called ``stems``."""
    image_files = _by_stem(images, faults)
    mask_files = _by_stem(masks, faults, (".png",), "no mask by its name")
    if stems is None:
        stems = tuple(sorted(image_files.keys() | mask_files.keys()))
    pairs = []
    for stem in stems:
        with faults.noted(images):
            for kind, files, folder in (
                ("image", image_files, images),
                ("mask", mask_files, masks),
            ):
                if stem not in files:
                    raise EntryFault(f"missing {kind}", f"{folder} holds no {kind} named {stem}")
            pairs.append((image_files[stem], mask_files[stem]))
    return pairs


def _by_stem(
    folder: Path,
    faults: Faults,
    extensions: tuple[str, ...] | None = None,
    reason: str = NO_IMAGE,
) -> dict[str, str]:
    """Files of a folder and those below it, by their paths in it without extension."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; give the data set's folder as root")
    found: dict[str, str] = {}
    for path in find_images(
        folder, faults.left_out, base=folder.parent, extensions=extensions, reason=reason
    ):
        stem = Path(path).relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            with faults.noted(folder):
                raise EntryFault(
                    "second image of a name",
                    f"{found[stem]} and {path} are both called {stem}; expected one of them",
                )
        found.setdefault(stem, path)
    return found


# --- mask files


class MaskReader:
    """Reads an image and its mask.

    Args:
        numbers: The index of each class, from class 0; -1 for one that is ignored.
        layout: What the masks' values mean.

    Attributes:
        layout: As given, without the images.
    """

    def __init__(self, numbers: Sequence[int], layout: MaskSet) -> None:
        self.layout = replace(layout, train=[], test=None)
        values, ignored = layout.values, layout.ignored
        self.colours = layout.colours
        self.meaning = np.full(256, -1, np.int64)
        known = np.array(numbers, np.int64)
        self.meaning[values] = np.where(known < 0, IGNORED, known)
        self.meaning[list(ignored)] = IGNORED
        self.allowed = (
            f"{values[0]} to {values[-1]} for the {len(values)} classes, or "
            f"{' or '.join(map(str, ignored))} to ignore a pixel"
        )
        if layout.is_binary:
            self.allowed = "0 and 255 alone, as the masks looked at hold"

    def __call__(self, pair: Pair) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """The image and its mask.

        Raises:
            UnreadableImageError: If one cannot be read, or the mask is none of the image.
        """
        path, file = pair
        sample = read_sample(path, path)
        pixels = F.to_image(sample.image)
        indices = _read_indices(file, self.colours)
        if indices.shape != pixels.shape[1:] and indices.shape[::-1] == sample.stored_size:
            indices = turned(indices, sample.orientation)
        if indices.shape != pixels.shape[1:]:
            raise UnreadableImageError(
                f"{file} is a mask of {indices.shape[0]} x {indices.shape[1]} and its image "
                f"{path} is {pixels.shape[1]} x {pixels.shape[2]} (height x width); expected one "
                "size"
            )
        classes = self.meaning[indices]
        unknown = indices[classes < 0]
        if unknown.size:
            raise UnreadableImageError(
                f"{file} holds the index {unknown.max()}; expected {self.allowed}"
            )
        return pixels, tv_tensors.Mask(torch.from_numpy(classes))


def _read_indices(file: str, colours: _Colours | None) -> NDArray[np.uint8]:
    """The values of an 8-bit grey or palette image, or the indices of its colours, (H, W)."""
    try:
        mode, values = read_values(file)
        if colours is not None and mode == "P":
            mode, values = "RGB", np.asarray(read_sample(file, file).image)
    except UnreadableImageError as error:
        raise UnreadableImageError(str(error).replace("as an image", "as a mask", 1)) from error
    if colours is not None and mode in ("RGB", "RGBA"):
        return _by_colour(file, values[..., :3], colours)
    if mode not in ("L", "P"):
        raise UnreadableImageError(
            f"{file} is an image of mode {mode}; expected a mask of class indices, an 8-bit PNG "
            "that is grey (L) or has a palette (P), or in colours that "
            f"{' or '.join(_COLOUR_TABLES)} lists"
        )
    return values


def _by_colour(file: str, values: NDArray[np.uint8], colours: _Colours) -> NDArray[np.uint8]:
    packed = values.astype(np.int32) @ _PACKING
    present, places = np.unique(packed, return_inverse=True)
    found = np.empty(len(present), np.uint8)
    for place, one in enumerate(present.tolist()):
        colour = one >> 16, one >> 8 & 255, one & 255
        if colour not in colours:
            raise UnreadableImageError(
                f"{file} holds the colour {colour} (red, green, blue), which the table of colours "
                "does not list; add it there, or mend the mask"
            )
        found[place] = colours[colour]
    return found[places].reshape(packed.shape)
