"""Data sets for segmentation by name: folders of index masks, and generated scenes."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from convattn.config import DataFormat
from convattn.data.annotated import AnnotatedImages, BadAnnotations, EntryFault, Faults
from convattn.data.coco import (
    SCENES_MEAN,
    SCENES_STD,
    draw_scenes,
    require_same_classes,
    scene_names,
)
from convattn.data.folders import NO_IMAGE, find_images, find_splits, subfolders
from convattn.data.reading import read_sample, read_values, turned
from convattn.data.scenes import Scenes
from convattn.data.sources import (
    check_format,
    draw_indices,
    find_root,
    first_word,
    match_classes,
    read_table,
    read_text,
    refuse_root,
)
from convattn.exceptions import UnreadableImageError
from convattn.text import nearest

SEGMENTATION_DATASETS: tuple[str, ...] = (
    "cluttered_digits",
    "folder",
    "masks",
    "camvid",
    "ade20k",
    "voc",
)

IGNORED = 255
"""The class index of pixels that count neither in training nor in evaluation."""

SegmentationImages = AnnotatedImages[tv_tensors.Mask]
"""An item is ``(image, mask)``: see ``load_segmentation``."""

_TEST_SEED = 0
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


@dataclass(frozen=True, kw_only=True)
class SegmentationSource:
    """A data set for segmentation."""

    name: str
    """Its name in ``SEGMENTATION_DATASETS``."""
    class_names: tuple[str, ...]
    """The classes in the order of their indices, from 0."""
    train: SegmentationImages
    """Training images, without a transform: give them one by ``with_transform``."""
    test: SegmentationImages
    """Test images, alike."""
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


def load_segmentation(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    format: DataFormat = "auto",
    bad_annotations: BadAnnotations = "error",
    class_names: Sequence[str] | None = None,
    ignore_unknown: bool = False,
    seed: int = 0,
) -> SegmentationSource:
    """Open a data set for segmentation by name.

    - ``cluttered_digits`` is generated (see ``generate_scenes``): 4,000 training and 500 test
      images of 96 x 96 unless told otherwise; background and ten digits. ``seed`` chooses the
      training images; the test images are always the same.
    - ``folder`` reads your own, in any format of ``format``; ``masks`` is a folder in that one:
      ``root/images/train/x.jpg`` with ``root/masks/train/x.png``, the same for val
      or test, and ``root/classes.txt``, one name a line. Images and their masks may lie in deeper
      folders of the same names; folders of the splits may be called as those of ``load_source``.
      Masks of 0 and 255 alone, with two classes or without ``classes.txt``, are background and
      object. Masks in RGB or with a palette are read by their colours where there is a table of
      them: ``root/label_colors.txt`` (red, green, blue, name), ``root/class_dict.csv`` (name, red,
      green, blue, under a line of titles) or ``root/labelmap.txt`` (CVAT's).
    - ``camvid`` reads SegNet's layout: ``root/train/x.jpg`` with ``root/trainannot/x.png``, the
      same for val or test; 11 classes, index 11 is ignored. ``root/classes.txt`` may rename them.
    - ``ade20k`` reads ``root/images/training/x.jpg`` with ``root/annotations/training/x.png``, the
      same for validation, and the names in ``root/objectInfo150.txt``; 0 is ignored. Without these
      folders, as in the development kit's sample of three, the images in ``root/images`` serve
      for training and test alike, with a warning.
    - ``voc`` reads the images that ``root/ImageSets/Segmentation/train.txt`` and ``val.txt``
      list, ``root/JPEGImages/x.jpg`` with ``root/SegmentationClass/x.png``.

    An item is ``(image, mask)``: a ``tv_tensors.Image`` of bytes (3, H, W) and a
    ``tv_tensors.Mask`` (H, W) int64 of class indices from 0, 255 where a pixel is ignored. A mask
    file is an 8-bit PNG of indices, grey or with a palette, unless said otherwise. One that is not,
    is of another size than its image or holds an index beyond the classes raises
    ``UnreadableImageError`` when it is asked for, whatever ``bad_annotations`` says: only reading
    it tells.

    Args:
        name: One of ``SEGMENTATION_DATASETS``.
        root: Folder of the data set; generated sets need none.
        image_size: Side of generated images in pixels; all others keep their own size.
        num_train: Training images to make, or to draw by ``seed`` from all; None means all.
        num_test: Test images, alike; the draw does not depend on ``seed``.
        format: How a ``folder`` tells the pixels' classes: ``"masks"``; ``"auto"`` looks.
        bad_annotations: ``"error"`` stops at an image without a mask or a mask without an image,
            ``"skip"`` leaves them out and counts.
        class_names: What a network calls its classes, from index 0. The source then has these
            classes; the data set's are found among them by name, and may be fewer.
        ignore_unknown: Ignore pixels of classes that are not among ``class_names``, and count these
            classes, rather than refuse them.
        seed: Any integer from 0.

    Raises:
        ValueError: If a name or number does not fit, or an image lacks its partner.
        FileNotFoundError: If folders or files are missing.

    Example:
        >>> source = load_segmentation("cluttered_digits", num_train=20, num_test=10)
        >>> image, mask = source.test[0]
        >>> tuple(image.shape), tuple(mask.shape), source.class_names[:2]
        ((3, 96, 96), (96, 96), ('background', '0'))
    """
    if name not in SEGMENTATION_DATASETS:
        near = nearest(name, SEGMENTATION_DATASETS)
        raise ValueError(
            f"unknown data set {name!r} for segmentation; did you mean {near!r}? Known: "
            f"{', '.join(SEGMENTATION_DATASETS)}"
        )
    check_format(name, format, {"folder": ("masks",), "masks": ("masks",)}.get(name, ()))
    if name == "cluttered_digits":
        refuse_root(name, root, "folder")
        source = _load_scenes(image_size, num_train, num_test, seed)
        require_same_classes(source.class_names, class_names, name)
        return source
    folder = find_root(name, root, download=False)
    faults = Faults(bad_annotations)
    layout = _LAYOUTS[name](folder, faults)
    faults.settle()
    for what, pairs in (("training", layout.train), ("test", layout.test)):
        if not pairs:
            raise FileNotFoundError(f"{folder} holds no {what} image with its mask; add some")
    numbers = list(range(len(layout.class_names)))
    if class_names is not None:
        numbers = match_classes(layout.class_names, class_names, ignore_unknown, str(folder))
        for theirs, number in zip(layout.class_names, numbers, strict=True):
            if number < 0:
                faults.left_out.add("class that the network does not know", theirs)
    reader = _FileReader(numbers, layout)
    return SegmentationSource(
        name=name,
        class_names=layout.class_names if class_names is None else tuple(class_names),
        train=_images(layout.train, reader, num_train, seed, f"{name}: num_train"),
        test=_images(layout.test, reader, num_test, _TEST_SEED, f"{name}: num_test"),
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        image_size=None,
        skipped=faults.skipped,
        skipped_names=faults.left_out.names,
        notes=layout.notes,
    )


def _images(
    pairs: list[_Pair], reader: _FileReader, number: int | None, seed: int, what: str
) -> SegmentationImages:
    images = AnnotatedImages(pairs, reader, [image for image, _ in pairs])
    if number is None:
        return images
    return images.select(draw_indices(len(images), number, seed, what))


@dataclass(frozen=True)
class _SceneReader:
    scenes: Scenes

    def __call__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image = tv_tensors.Image(self.scenes.images[index])
        return image, tv_tensors.Mask(self.scenes.semantic(index))


def _load_scenes(
    image_size: int | None, num_train: int | None, num_test: int | None, seed: int
) -> SegmentationSource:
    train, test = draw_scenes(image_size, num_train, num_test, seed)
    return SegmentationSource(
        name="cluttered_digits",
        class_names=("background", *"0123456789"),
        train=AnnotatedImages(range(len(train)), _SceneReader(train), scene_names(train)),
        test=AnnotatedImages(range(len(test)), _SceneReader(test), scene_names(test)),
        mean=SCENES_MEAN,
        std=SCENES_STD,
        image_size=(train.images.shape[2], train.images.shape[3]),
        skipped={},
    )


# --- layouts of folders

_Pair = tuple[str, str]
"""Paths of an image and its mask."""

_Colours = dict[tuple[int, int, int], int]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    class_names: tuple[str, ...]
    train: list[_Pair]
    test: list[_Pair]
    first: int = 0
    """What the mask files call class 0."""
    ignored: tuple[int, ...] = (IGNORED,)
    """The indices in the mask files that mean no class."""
    is_binary: bool = False
    """Whether the mask files call class 1 255."""
    colours: _Colours | None = None
    """Colour -> index, where mask files are in colours."""
    notes: tuple[str, ...] = ()
    """As in ``SegmentationSource``."""

    @property
    def values(self) -> list[int]:
        """What the mask files call each class."""
        if self.is_binary:
            return [0, 255]
        return list(range(self.first, self.first + len(self.class_names)))


def _lay_out_masks(root: Path, faults: Faults) -> _Layout:
    images, masks = (_split_folders(root / name) for name in ("images", "masks"))
    train, test = (
        _match(image_folder, mask_folder, faults)
        for image_folder, mask_folder in zip(images, masks, strict=True)
    )
    for name in subfolders(root / "images"):
        if root / "images" / name not in images:
            faults.left_out.add("folder beside the splits", f"images/{name}")
    names_file = root / "classes.txt"
    table_file = next((root / name for name in _COLOUR_TABLES if (root / name).is_file()), None)
    table = {} if table_file is None else _read_colours(table_file)
    is_binary = table_file is None and _are_binary(train)
    if names_file.is_file() or not (table or is_binary):
        class_names = _read_lines(names_file)
    elif table:
        class_names = tuple(dict.fromkeys(name for name in table.values() if not _is_void(name)))
    else:
        class_names = ("background", "object")
    if len(class_names) > IGNORED:
        raise ValueError(
            f"{names_file} names {len(class_names)} classes; expected at most {IGNORED}, since a "
            f"mask has 8 bits and {IGNORED} means ignored"
        )
    if is_binary and len(class_names) != 2:
        raise ValueError(
            f"{names_file} names {len(class_names)} classes, and the masks of {masks[0]} hold 0 "
            "and 255 alone, as those of one object do; expected two names, the background's and "
            "the object's, or masks of indices"
        )
    notes = []
    if is_binary:
        notes.append(
            f"the masks of {masks[0]} hold 0 and 255 alone: 0 is taken for {class_names[0]!r}, 255 "
            f"for {class_names[1]!r}"
        )
    return _Layout(
        class_names=class_names,
        train=train,
        test=test,
        ignored=() if is_binary else (IGNORED,),
        is_binary=is_binary,
        colours=_indices_of_colours(table, class_names, table_file, names_file),
        notes=tuple(notes),
    )


def _are_binary(pairs: list[_Pair]) -> bool:
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
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text in UTF-8; save it as one") from error
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


def _lay_out_camvid(root: Path, faults: Faults) -> _Layout:
    train, test = (
        _match(folder, root / f"{folder.name}annot", faults) for folder in _split_folders(root)
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
    return _Layout(
        class_names=class_names[:unlabelled],
        train=train,
        test=test,
        ignored=(unlabelled, IGNORED),
    )


def _lay_out_ade20k(root: Path, faults: Faults) -> _Layout:
    images, annotations = root / "images", root / "annotations"
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
    return _Layout(
        class_names=tuple(first_word(name) for *_, name in rows),
        train=train,
        test=test,
        first=1,
        ignored=(0, IGNORED),
    )


def _lay_out_voc(root: Path, faults: Faults) -> _Layout:
    train, test = (
        _match(
            root / "JPEGImages",
            root / "SegmentationClass",
            faults,
            _read_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt"),
        )
        for split in ("train", "val")
    )
    return _Layout(class_names=_VOC, train=train, test=test)


_LAYOUTS: dict[str, Callable[[Path, Faults], _Layout]] = {
    "folder": _lay_out_masks,
    "masks": _lay_out_masks,
    "camvid": _lay_out_camvid,
    "ade20k": _lay_out_ade20k,
    "voc": _lay_out_voc,
}


def _split_folders(folder: Path) -> tuple[Path, Path]:
    """The folders of the training and the test images."""
    splits = find_splits(folder)
    test = splits.get("val", splits.get("test"))
    if "train" not in splits or test is None:
        raise FileNotFoundError(
            f"{folder} has no folder {'train' if test else 'val or test'}; expected train with the "
            "training images and val or test with the test images"
        )
    return splits["train"], test


def _read_lines(file: Path) -> tuple[str, ...]:
    lines = (line.strip() for (line,) in read_table(file, 1))
    return tuple(line for line in lines if line)


def _match(
    images: Path, masks: Path, faults: Faults, stems: tuple[str, ...] | None = None
) -> list[_Pair]:
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


class _FileReader:
    def __init__(self, numbers: Sequence[int], layout: _Layout) -> None:
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

    def __call__(self, pair: _Pair) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
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
