"""ImageNet's classes, and its validation images however they lie on the disk.

Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575. Class numbers are those that every
published network has: places among the 1,000 sorted WordNet ids. The development kit's own IDs
follow another order.
"""

from __future__ import annotations

import json
import pkgutil
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from convattn.data.folders import LeftOut, find_images, subfolders
from convattn.data.images import ImageFiles
from convattn.text import list_names

NUM_VALIDATION = 50_000
"""Images of the whole validation set."""
LABEL_FILES = ("imagenet_2012_validation_synset_labels.txt", "val.txt", "LOC_val_solution.csv")
"""Names that a file of labels may have, for images that lie in one folder."""

_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True, kw_only=True)
class ImageNetValidation:
    """Validation images and what is known of them."""

    images: ImageFiles
    """The images, without a transform."""
    class_names: tuple[str, ...]
    """The classes in the order of their numbers, those without images among them."""
    wnids: tuple[str, ...]
    """Their folders, which are WordNet ids in ImageNet itself."""
    real: tuple[tuple[int, ...], ...] | None
    """ImageNet-ReaL's classes of each image, some with none; None if it knows them not."""
    notes: tuple[str, ...]
    """What anybody who reads the result has to know of the set, a sentence each."""

    def select(self, indices: Tensor) -> ImageNetValidation:
        """The images at ``indices`` (M,), in that order.

        Args:
            indices: Numbers of images.
        """
        real = self.real
        return ImageNetValidation(
            images=self.images.select(indices),
            class_names=self.class_names,
            wnids=self.wnids,
            real=None if real is None else tuple(real[index] for index in indices.tolist()),
            notes=self.notes,
        )


def load_imagenet_validation(
    root: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    allow_missing_classes: bool = False,
    real: str | Path | None = None,
) -> ImageNetValidation:
    """ImageNet's validation images, or those of a set with its classes.

    They lie in ``root/val``, ``root/validation`` or ``root`` itself, in one of these layouts:

    - a folder a class, ``n01440764/*.JPEG``, as ImageNet's, ImageNet-A's, -R's and Imagenette's;
    - folders named 0 to 999, ImageNet-V2's, which are the classes' numbers;
    - all in one folder, ``ILSVRC2012_val_00000001.JPEG``, with their classes in a text file beside
      them or in ``root``: ``imagenet_2012_validation_synset_labels.txt``, a WordNet id a line in
      the order of the images' numbers; or ``val.txt`` or ``LOC_val_solution.csv``, lines of a
      image's name and its WordNet id or class number.

    Where file names hold the images' numbers, ImageNet-ReaL's classes (Beyer et al. 2020,
    https://arxiv.org/abs/2006.07159) are added: of the file ``real``, of ``root/real.json`` or, if
    there is none, as timm holds them.

    Args:
        root: Folder of the set; training images need not be there.
        class_names: What the network calls its classes, as ``imagenet_names`` does; None stands for
            the 1,000 of ImageNet.
        allow_missing_classes: Take a set that lacks some of the classes. The network still chooses
            among all of them.
        real: ImageNet-ReaL's ``real.json``.

    Raises:
        FileNotFoundError: If there are no images, or no labels.
        ValueError: If classes are missing, or folders, labels or ``real`` are none of these.

    Examples:
        >>> load_imagenet_validation("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: nowhere does not exist; name ImageNet's folder (--data.root)
    """
    root = Path(root).expanduser()
    folder = _validation_folder(root)
    wnids = imagenet_wnids() if class_names is None else _wnids_of(class_names)
    read = _read_class_folders if subfolders(folder) else _read_flat
    paths, labels = read(folder, root, wnids)
    present = set(labels)
    missing = [wnid for number, wnid in enumerate(wnids) if number not in present]
    if missing and not allow_missing_classes:
        raise ValueError(
            f"{folder} holds images of {len(present):,} of the {len(wnids):,} classes; missing: "
            f"{list_names(missing)}; add them, or test the others with --allow-missing-classes"
        )
    numbers = _image_numbers(paths)
    return ImageNetValidation(
        images=ImageFiles(paths, torch.tensor(labels, dtype=torch.int64)),
        class_names=imagenet_names(wnids),
        wnids=wnids,
        real=_real(numbers, root, real, whole=wnids == imagenet_wnids()),
        notes=_notes(folder, missing, len(wnids), None if numbers is None else len(numbers)),
    )


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 WordNet ids of ImageNet's classes, in order.

    Examples:
        >>> imagenet_wnids()[:2]
        ('n01440764', 'n01443537')
    """
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def _descriptions() -> dict[str, str]:
    """Words for each WordNet id, no two the same: there are two cranes."""
    described: dict[str, str] = ImageNetInfo("imagenet-1k").label_descriptions(as_dict=True)
    times = Counter(described.values())
    return {
        wnid: words if times[words] == 1 else f"{words} ({wnid})"
        for wnid, words in described.items()
    }


def imagenet_names(folders: Sequence[str]) -> tuple[str, ...]:
    """What classes are called, no two the same.

    Args:
        folders: Their folders; one that is none of ImageNet's WordNet ids keeps its name.

    Examples:
        >>> imagenet_names(["n01440764", "mine"])
        ('tench, Tinca tinca', 'mine')
    """
    return tuple(_descriptions().get(folder, folder) for folder in folders)


def _wnids_of(class_names: Sequence[str]) -> tuple[str, ...]:
    """The folders that ``imagenet_names`` has named."""
    folders = {name: wnid for wnid, name in _descriptions().items()}
    return tuple(folders.get(name, name) for name in class_names)


def _validation_folder(root: Path) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist; name ImageNet's folder (--data.root)")
    folders = [root / name for name in ("val", "validation") if (root / name).is_dir()]
    return folders[0] if folders else root


def _images(folder: Path) -> list[str]:
    return sorted(find_images(folder, LeftOut()))


def _read_class_folders(
    folder: Path, root: Path, wnids: Sequence[str]
) -> tuple[list[str], list[int]]:
    """Paths and class numbers, sorted by class."""
    names = subfolders(folder)
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    if wnids == imagenet_wnids() and all(name.isdecimal() for name in names):
        numbers = {str(number): number for number in range(len(wnids))}
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise ValueError(
            f"{folder} holds {len(unknown):,} folders that are none of the network's "
            f"{len(wnids):,} classes: {list_names(unknown)}; expected folders named as {wnids[0]}, "
            "or numbered as ImageNet-V2's, in val, validation or the folder itself"
        )
    paths: list[str] = []
    labels: list[int] = []
    for name in sorted(names, key=numbers.__getitem__):
        inside = _images(folder / name)
        paths += inside
        labels += [numbers[name]] * len(inside)
    return paths, labels


def _read_flat(folder: Path, root: Path, wnids: Sequence[str]) -> tuple[list[str], list[int]]:
    """Paths and class numbers, sorted by name."""
    paths = _images(folder)
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds neither class folders nor images; expected {root}/val/{wnids[0]}/"
            "*.JPEG, or all in val with a file of their labels"
        )
    places = [place / name for place in (folder, root) for name in LABEL_FILES]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{folder} holds images without class folders and no file of their labels; sort them "
            f"into folders as {wnids[0]}, or add {LABEL_FILES[0]} (a WordNet id a line), "
            f"{LABEL_FILES[1]} or {LABEL_FILES[2]} (lines of name and label); the development "
            "kit's ground truth will not do, its IDs follow another order"
        )
    words = _read_labels(file)
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    if wnids == imagenet_wnids():
        numbers |= {str(number): number for number in range(len(wnids))}
    labels = []
    for path in paths:
        word = words.get(_stem(path))
        if word not in numbers:
            found = "no label" if word is None else f"the label {word!r}"
            raise ValueError(
                f"{file} has {found} for {Path(path).name}; expected a WordNet id as {wnids[0]}, "
                "or its place among the sorted ids"
            )
        labels.append(numbers[word])
    return paths, labels


def _read_labels(file: Path) -> Mapping[str, str]:
    """Name of an image without its suffix -> what the file says of it."""
    text = file.read_text(encoding="utf-8", errors="replace")
    rows = [re.split(r"[\s,]+", line.strip()) for line in text.splitlines() if line.strip()]
    if all(len(row) == 1 for row in rows):
        if any(row[0].isdecimal() for row in rows):
            raise ValueError(
                f"{file} holds numbers without names of images, which may be the development "
                "kit's IDs, in another order than the classes; expected a WordNet id a line, or "
                "lines of name and label"
            )
        return {f"ILSVRC2012_val_{number:08d}": row[0] for number, row in enumerate(rows, start=1)}
    return {_stem(row[0]): row[1] for row in rows if len(row) > 1}


def _stem(path: str) -> str:
    name = Path(path).name
    numbered = _NUMBERED.match(name)
    # LOC_val_solution.csv leaves the suffix out, which Path would then look for in vain.
    return numbered[0] if numbered else Path(name).stem


def _image_numbers(paths: Sequence[str]) -> list[int] | None:
    """Places in the whole validation set, from 0; None if not every name tells."""
    found = [_NUMBERED.search(Path(path).name) for path in paths]
    numbers = [int(match[1]) - 1 for match in found if match]
    known = len(numbers) == len(paths) and set(numbers) <= set(range(NUM_VALIDATION))
    return numbers if known else None


def _real(
    numbers: Sequence[int] | None, root: Path, file: str | Path | None, *, whole: bool
) -> tuple[tuple[int, ...], ...] | None:
    if numbers is None or not whole:
        if file is None:
            return None
        raise ValueError(
            f"ImageNet-ReaL ({file}) is for networks of ImageNet's 1,000 classes and images "
            "named as ILSVRC2012_val_00000001.JPEG; leave --real out"
        )
    own = root / "real.json"
    if file is None and not own.is_file():
        content = pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json")
        assert content is not None
        labels = json.loads(content)
    else:
        labels = _read_real(own if file is None else Path(file))
    return tuple(tuple(labels[number]) for number in numbers)


def _read_real(file: Path) -> list[list[int]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give ImageNet-ReaL's real.json")
    try:
        labels: list[list[int]] = json.loads(file.read_bytes())
        good = len(labels) == NUM_VALIDATION and all(
            0 <= label < len(imagenet_wnids()) for these in labels for label in these
        )
    except (ValueError, TypeError):
        good = False
    if not good:
        raise ValueError(
            f"{file} is not ImageNet-ReaL's real.json: expected {NUM_VALIDATION:,} lists of class "
            "numbers, 0 to 999; fetch it anew"
        )
    return labels


def _notes(
    folder: Path, missing: Sequence[str], num_classes: int, numbered: int | None
) -> tuple[str, ...]:
    notes = []
    if missing:
        notes.append(
            f"{folder} holds {num_classes - len(missing):,} of the {num_classes:,} classes; the "
            "network chooses among all of them, so that figures made with fewer outputs do not "
            "compare"
        )
    elif numbered is not None and numbered != NUM_VALIDATION and num_classes == 1000:
        notes.append(
            f"{folder} holds {numbered:,} images; ImageNet's validation set has {NUM_VALIDATION:,}"
        )
    return tuple(notes)
