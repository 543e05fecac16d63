"""Labelled data sets by name: training and test images, classes, size, mean and deviation."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from convattn.config import BadAnnotations, DataFormat
from convattn.data.bands import extensions_of, measure_channels
from convattn.data.classes import find_alike, match_classes, normal_name
from convattn.data.cluttered_digits import generate_cluttered_digits
from convattn.data.folders import (
    LeftOut,
    draw_held_out,
    find_duplicates,
    find_images,
    find_splits,
    group_images,
    held_out_of,
    holds_images,
    note_copies,
    number_units,
    refuse_group,
    split_of,
    subfolders,
)
from convattn.data.imagenet import imagenet_names
from convattn.data.images import ImageFiles, TensorImages
from convattn.data.reading import image_extensions, read_sample
from convattn.data.tables import (
    TABLES,
    Row,
    Rows,
    TableFiles,
    check_known,
    classes_of,
    find_metadata,
    find_tables,
    groups_of,
    has_labels,
    read_tables,
    single_table,
    tables_in,
)
from convattn.data.texts import first_word, read_table
from convattn.text import list_names, nearest, one_line

DATASETS: tuple[str, ...] = (
    "cluttered_digits",
    "folder",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "imagenet",
    "tiny_imagenet",
)

_IDX_SUFFIXES = ("", ".gz")
_TEST_SEED = 0
MOST_COMPARED = 100_000  # images that are looked through for copies
_MEASURED = 200  # images whose bands are measured
_GREY: tuple[tuple[float, ...], tuple[float, ...]] = ((0.449,), (0.226,))
"""Mean and deviation: the means of ImageNet's three."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set for classification."""

    name: str
    """Its name in ``DATASETS``."""
    class_names: tuple[str, ...]
    """The classes in the order of their numbers."""
    train: TensorImages | ImageFiles
    """Training images, without a transform: give them one by ``with_transform``."""
    test: TensorImages | ImageFiles
    """Test images, alike."""
    val: TensorImages | ImageFiles | None = None
    """Validation images, alike; None where the data set has none beside its test images."""
    test_drawn: bool = False
    """Whether the test images were drawn from images without splits."""
    multi_label: bool = False
    """Whether an image may have several classes, or none; its label is then (K,) of 0 and 1."""
    image_size: tuple[int, int] | None
    """Height and width in pixels; None when the images vary."""
    in_chans: int
    """Channels of an image."""
    mean: tuple[float, ...]
    """Mean of each channel, in 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, in 0..1."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """How many files, or folders, were left out, by reason."""
    skipped_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The first names of those, by reason; see ``describe_skipped``."""
    notes: tuple[str, ...] = ()
    """What whoever trains or tests on it has to know, a sentence each."""


def load_source(
    name: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    in_chans: int | None = None,
    format: DataFormat = "auto",
    path_column: str | None = None,
    labels_column: str | None = None,
    bad_annotations: BadAnnotations = "error",
    group: str | None = None,
    parts_train: bool = False,
    class_names: Sequence[str] | None = None,
    ignore_unknown: bool = False,
    test_all: bool = False,
    seed: int = 0,
) -> Source:
    """Open a data set by name.

    - ``cluttered_digits`` is generated (see there): 20,000 training and 1,000 test images of
      64 x 64 unless told otherwise. ``seed`` chooses the training images; the test images are
      always the same, so that runs compare.
    - ``folder`` reads ``root/train/CLASS/image.jpg`` and the same for val or test; images may lie
      in deeper folders, and links are followed. Folders of the splits may be called train or
      training, val, valid, validation or dev, and test or testing, in any case; where there are val
      and test with the same classes, val is for validation. Where ``root`` holds the class folders
      themselves, about a fifth of each class, drawn by ``seed``, becomes the test set; files of the
      same bytes, and what ``group`` finds to belong together, stay on one side. What is hidden (as
      ``.ipynb_checkpoints``), left by a system (as ``__MACOSX``) or no image by its name is left
      out and counted in ``skipped``. Or ``root`` is a table (CSV, TSV, JSON lines, parquet), or a
      folder with one, with ``metadata.csv`` as Hugging Face's imagefolder has it, or with
      ``train.csv`` and ``val.csv``; see ``convattn.data.tables.read_tables``. A table's own column
      of splits, of groups and of weights is heeded.
    - ``imagenet`` reads ``root/train/n01440764/...`` and ``root/val/n01440764/...``, for all of
      ImageNet's classes or some. For a test, ``load_imagenet_validation`` wants no training
      images.
    - ``cifar10`` and ``cifar100`` read torchvision's folder, ``fashion_mnist`` its four IDX files,
      packed by gzip or not, in ``root``, ``root/raw`` or ``root/FashionMNIST/raw``.
    - ``tiny_imagenet`` reads ``root/train.parquet`` and ``root/val.parquet`` with the columns
      ``image`` (its ``bytes``), ``label`` and, if boxes are known, ``bbox``: xmin, ymin, xmax, ymax
      in pixels, the maxima on the object. ``root/classes.tsv`` names the classes, a line of
      number, WordNet id and words each. Or it reads the layout that the set was published in:
      ``root/train/n01443537/images/...`` and ``root/val/images/...`` with their box files.

    Args:
        name: One of ``DATASETS``.
        root: Folder of the data set; generated sets need none.
        download: Fetch CIFAR or Fashion-MNIST into ``root`` when it is not there.
        image_size: Side of generated images in pixels; all others keep their own size.
        num_train: Training images to make, or to draw by ``seed`` from all; None means all.
        num_test: Test images, alike; the draw does not depend on ``seed``.
        in_chans: Channels of a ``folder``'s images: 1 for grey, 3 for RGB (None), any other number
            for the bands of the files themselves (``read_bands``), whose mean and deviation are
            measured.
        format: How a ``folder`` tells the classes: ``"folder"`` by class folders, ``"table"`` by a
            table; ``"auto"`` looks.
        path_column: Column of the images' paths in a table; None: by its name.
        labels_column: Column of their classes, alike.
        bad_annotations: Refuse a table with rows without image, class or weight, or leave them
            out, counted in ``skipped``.
        group: A regular expression for a ``folder`` without splits. Images in whose paths below
            ``root`` its group, or the whole of it, finds the same are in one part.
        parts_train: Whether the training images are going to be parted further: then ``group`` is
            about those of a folder with splits, too.
        class_names: What a network calls its classes, in its order. The source then has these
            classes: those of the data set are found among them by name, and may be fewer. A folder
            needs only its test images then.
        ignore_unknown: Leave images of classes that are not among ``class_names`` out, and count
            them in ``skipped``, rather than refuse them.
        test_all: Whether a ``folder`` without splits is all for the test: no part of it was learnt.
        seed: Any integer from 0.

    Returns:
        The source; an image file that cannot be read raises ``UnreadableImageError`` when it is
        asked for, since opening every file beforehand would take as long as an epoch.

    Raises:
        ValueError: If the name is unknown, a number does not fit, the files are not what they
            should be, or a class is not among ``class_names``.
        FileNotFoundError: If folders or files are missing.
        ModuleNotFoundError: If a parquet file is to be read and pyarrow, of the ``train`` extra, is
            not installed.

    Example:
        >>> source = load_source("cluttered_digits", num_train=200, num_test=100)
        >>> len(source.train), source.image_size, source.class_names[:3]
        (200, (64, 64), ('0', '1', '2'))
    """
    check_name(name, DATASETS)
    check_format(name, format, ("folder", "table") if name == "folder" else ())
    if in_chans is not None and name != "folder":
        raise ValueError(
            f"in_chans={in_chans} (--data.in-chans) says what is read of your own folder's files, "
            f"and {name} has channels of its own; leave it out"
        )
    of_tables = {
        "path_column": path_column,
        "labels_column": labels_column,
        "bad_annotations": None if bad_annotations == "error" else bad_annotations,
    }
    if name != "folder":
        _refuse_of_tables(of_tables, name)
    if name == "cluttered_digits":
        refuse_root(name, root, "folder")
        source = _load_cluttered_digits(image_size, num_train, num_test, seed)
        return _as_known(source, class_names, ignore_unknown, name)
    folder = find_root(name, root, download, files=TABLES if name == "folder" else ())
    if name == "tiny_imagenet":
        source = _load_tiny_imagenet(folder, num_train, num_test, seed)
        return _as_known(source, class_names, ignore_unknown, str(folder))
    if name == "folder":
        testing = class_names is not None
        named = path_column is not None or labels_column is not None
        tables = _tables_of(folder, "table" if named and format == "auto" else format)
        if tables is not None:
            rows = read_tables(
                tables,
                path_column=path_column,
                labels_column=labels_column,
                bad_annotations=bad_annotations,
            )
            source = _load_tables(
                tables,
                rows,
                group,
                seed,
                testing=testing,
                test_all=test_all,
                parts_train=parts_train,
            )
        else:
            _refuse_of_tables(of_tables, str(folder))
            extensions = extensions_of(3 if in_chans is None else in_chans)
            if testing if _is_split(folder) else test_all:
                source = _load_test_folder(folder, extensions)
            else:
                source = _load_folder(folder, group, seed, extensions, parts_train=parts_train)
            source = _with_tables_noted(source, folder)
        source = _with_channels(source, in_chans)
    elif name == "imagenet":
        source = _load_imagenet(folder)
    elif name == "fashion_mnist":
        source = _load_fashion_mnist(folder, download)
    else:
        source = _load_cifar(name, folder, download)
    source = _as_known(source, class_names, ignore_unknown, str(folder))
    if len(source.train):
        train = draw_part(source.train, num_train, seed, f"{name}: num_train")
        source = replace(source, train=train)
    return replace(source, test=draw_part(source.test, num_test, _TEST_SEED, f"{name}: num_test"))


def _as_known(
    source: Source, class_names: Sequence[str] | None, ignore_unknown: bool, where: str
) -> Source:
    """The source with the classes that a network knows; its own are found among them by name."""
    if class_names is None or tuple(class_names) == source.class_names:
        return source
    numbers = match_classes(source.class_names, class_names, ignore_unknown, where)
    left_out = {
        name: int(_has_class(source.test.labels, number).sum())
        for number, name in enumerate(source.class_names)
        if numbers[number] < 0
    }
    train, test = (
        _renumbered(part, numbers, len(class_names)) for part in (source.train, source.test)
    )
    if not len(test):
        raise ValueError(
            f"{where} holds no image of a class that the network knows; expected some of "
            f"{list_names(class_names)}"
        )
    skipped, names = dict(source.skipped), dict(source.skipped_names)
    if left_out:
        skipped["image of an unknown class"] = sum(left_out.values())
        names["image of an unknown class"] = tuple(left_out)
    return replace(
        source,
        class_names=tuple(class_names),
        train=train,
        test=test,
        val=None,
        skipped=skipped,
        skipped_names=names,
    )


def _has_class(labels: Tensor, number: int) -> Tensor:
    """Which images are of a class, (N,) bool, by labels (N,) or (N, K)."""
    return labels == number if labels.ndim == 1 else labels[:, number]


def _renumbered(
    images: TensorImages | ImageFiles, numbers: Sequence[int], num_classes: int
) -> TensorImages | ImageFiles:
    """The images all of whose classes have a number, with that as their label."""
    if not len(images):
        return images
    known = torch.tensor(numbers) >= 0
    if images.labels.ndim == 1:
        kept = known[images.labels]
        labels = torch.tensor(numbers)[images.labels]
    else:
        kept = ~images.labels[:, ~known].any(1)
        labels = torch.zeros(len(images), num_classes, dtype=torch.bool)
        labels[:, torch.tensor(numbers)[known]] = images.labels[:, known]
    chosen = images.select(kept.nonzero()[:, 0])
    chosen.labels = labels[kept]
    return chosen


def _load_cluttered_digits(
    image_size: int | None, num_train: int | None, num_test: int | None, seed: int
) -> Source:
    size = 64 if image_size is None else image_size
    train = generate_cluttered_digits(
        20_000 if num_train is None else num_train, image_size=size, seed=seed
    )
    test = generate_cluttered_digits(
        1_000 if num_test is None else num_test, split="test", image_size=size, seed=_TEST_SEED
    )
    return Source(
        name="cluttered_digits",
        class_names=tuple("0123456789"),
        train=train,
        test=test,
        image_size=(size, size),
        in_chans=3,
        mean=(0.404, 0.415, 0.386),
        std=(0.253, 0.204, 0.210),
    )


def check_name(name: str, known: Sequence[str], purpose: str = "") -> None:
    """Refuse a data set that is not there.

    Args:
        name: Of the data set.
        known: All there are.
        purpose: What they are for, for the error.

    Raises:
        ValueError: If it is not among them.
    """
    if name not in known:
        raise ValueError(
            f"unknown data set {name!r}{purpose}; did you mean {nearest(name, known)!r}? Known: "
            f"{', '.join(known)}"
        )


def check_format(name: str, format: DataFormat, known: Sequence[str]) -> None:
    """Refuse a format in which a data set never comes.

    Args:
        name: Of the data set.
        format: What is asked for; ``"auto"`` is right for any.
        known: What the data set may be in; nothing if it has one form of its own.

    Raises:
        ValueError: If it is not among these.
    """
    if format == "auto" or format in known:
        return
    if not known:
        raise ValueError(
            f"format={format!r} (--data.format) says how your own folder is read, and {name} has "
            "a form of its own; leave it out, or give --data.name folder"
        )
    raise ValueError(
        f"{name} cannot be read as format={format!r} (--data.format); expected auto or "
        f"{' or '.join(known)}"
    )


def refuse_root(name: str, root: str | Path | None, reader: str) -> None:
    """A folder given to a data set that is generated, which would not be read.

    Args:
        name: Of the data set.
        root: The folder; None is right.
        reader: Name of the data set that reads a folder.

    Raises:
        ValueError: If there is a folder.
    """
    if root is not None:
        raise ValueError(
            f"{name} is generated and would not read root={root} (--data.root); give --data.name "
            f"{reader} to train on that folder, or leave the folder out"
        )


def _refuse_of_tables(options: Mapping[str, str | None], where: str) -> None:
    """Refuse what only a table heeds where none is read."""
    for option, value in options.items():
        if value is not None:
            flag = option.replace("_", "-")
            raise ValueError(
                f"{option}={value!r} (--data.{flag}) is about a table, and {where} is not read as "
                "one; leave it out, or give a table (--data.name folder --data.format table)"
            )


def find_root(
    name: str, root: str | Path | None, download: bool, *, files: Sequence[str] = ()
) -> Path:
    """The folder of a data set, which may be missing only if it is going to be downloaded.

    Args:
        name: Of the data set, for errors.
        download: Whether it will be filled.
        files: Ends of the names of files, in lower case, that may be there instead.

    Raises:
        ValueError: If none was given.
        FileNotFoundError: If it does not exist.
        NotADirectoryError: If it is a file.
    """
    if root is None:
        raise ValueError(f"{name} needs root (--data.root), the folder that holds its files")
    folder = Path(root).expanduser()
    if folder.exists() and not folder.is_dir() and folder.suffix.lower() not in files:
        tables = f", or a table ({', '.join(files)})" if files else ""
        what = "the folder of images" if name == "folder" else f"the folder of {name}"
        raise NotADirectoryError(f"root={folder} is a file; expected {what}{tables}")
    if not folder.exists() and not download:
        raise FileNotFoundError(f"root={folder} does not exist; name a folder (--data.root)")
    return folder


class _Images(Protocol):
    def __len__(self) -> int: ...

    def select(self, indices: Tensor) -> Self: ...


Images = TypeVar("Images", bound=_Images)


def draw_part(images: Images, number: int | None, seed: int, what: str) -> Images:
    """A random part of the images, in their own order; all for None.

    Args:
        images: Of any task.
        number: As for ``draw_indices``, alike the rest.
    """
    if number is None:
        return images
    return images.select(draw_indices(len(images), number, seed, what))


def draw_indices(available: int, number: int, seed: int, what: str) -> Tensor:
    """Which images are drawn, (number,) ascending.

    Args:
        available: Number of images there are.
        number: Number to draw.
        seed: Of the draw.
        what: What an error calls ``number``.

    Raises:
        ValueError: If there are not as many.
    """
    if not 1 <= number <= available:
        raise ValueError(f"{what}={number}; expected 1 to {available}, all there are")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(available, generator=generator)[:number].sort().values


def _load_folder(
    root: Path, group: str | None, seed: int, extensions: tuple[str, ...], *, parts_train: bool
) -> Source:
    left_out = LeftOut()
    notes: list[str] = []
    val = None
    if _is_split(root):
        class_names, train, val, test = _read_split_folders(root, left_out, extensions)
        if parts_train:
            train.groups = _groups_in(notes, root, train, group)
        else:
            refuse_group(group, root)
        _note_copies(notes, root, train, test)
    else:
        class_names, images = _read_class_folders(root, left_out, extensions)
        together = _find_together(notes, root, images, class_names, group)
        images.groups = torch.tensor(number_units(len(images), together))
        train, test = _set_aside(images, class_names, together, seed)
        notes.append(
            f"{root} has no splits: {len(test):,} of its {len(images):,} images, about a fifth of "
            "each class, are the test set; class folders in a folder test would all be"
        )
    source = _file_source("folder", class_names, train, test, val)
    source = replace(source, test_drawn=not _is_split(root))
    return _with_left_out(source, left_out, notes)


def _groups_in(
    notes: list[str], root: Path, images: ImageFiles, group: str | None
) -> Tensor | None:
    """Number of the group of each image by a pattern; None without one."""
    if group is None:
        return None
    return torch.tensor(number_units(len(images), group_images(images.paths, root, group, notes)))


def _tables_of(root: Path, format: DataFormat) -> TableFiles | None:
    """The tables that say of which class the images are; None where folders do."""
    if root.is_file():
        if format == "folder":
            raise NotADirectoryError(
                f"root={root} is a file; expected class folders, as format='folder' (--data.format)"
                " says: leave that out to have it read as a table"
            )
        return single_table(root)
    if format == "folder" or not root.is_dir():
        return None
    metadata = find_metadata(root)
    if metadata is not None and (format == "table" or has_labels(metadata)):
        return metadata
    if format == "auto" and (not tables_in(root) or _has_class_folders(root)):
        return None
    found = find_tables(root)
    if found is None:
        raise FileNotFoundError(
            f"{root} holds no table ({', '.join(TABLES)}); add one, as train.csv and val.csv or "
            "metadata.csv, or give the table itself as root (--data.root)"
        )
    return found


def _with_tables_noted(source: Source, root: Path) -> Source:
    """Tell of tables beside class folders, which may have been meant."""
    beside = tables_in(root)
    if not beside:
        return source
    note = f"read as class folders, not by {', '.join(beside)}; --data.format table would"
    return replace(source, notes=(*source.notes, note))


def _has_class_folders(root: Path) -> bool:
    """Whether the folders are classes, by what is in them: at least two, with images in each.

    One that is called ``images`` only keeps images together.
    """
    splits = [root / name for name in subfolders(root) if split_of(name) is not None]
    for folder in splits if _is_split(root) else [root]:
        names = subfolders(folder)
        if len(names) < 2 or "images" in (name.lower() for name in names):
            return False
        if not all(holds_images(folder / name) for name in names):
            return False
    return True


def _load_tables(
    tables: TableFiles,
    found: Rows,
    group: str | None,
    seed: int,
    *,
    testing: bool,
    test_all: bool,
    parts_train: bool,
) -> Source:
    """What tables say, as training and test images; where those are enough, the test's alone."""
    train_rows, val_rows, test_rows = _part_rows(tables, found, testing=testing)
    notes = [found.note]
    val = None
    if test_all and not test_rows:
        train_rows, test_rows = (), train_rows
        notes.append(_told_all(tables.names, len(test_rows)))
    elif test_rows and group is not None and not parts_train:
        raise ValueError(
            f"group={group!r} parts images without splits, and {tables.names} has some; leave "
            "group out"
        )
    test_drawn = not test_rows
    if test_drawn:
        least = 1 if testing else 2
        class_names, images = _files_of(train_rows, found, classes_of(train_rows), least=least)
        together = _find_together(notes, tables.folder, images, class_names, group)
        together += groups_of(train_rows)
        images.groups = torch.tensor(number_units(len(images), together))
        train, test = _set_aside(images, class_names, together, seed)
        notes.append(
            f"{tables.names} has no test images: {len(test):,} of its {len(images):,}, about a "
            "fifth of each class, are the test set; a column split would say which"
        )
    elif testing or not train_rows:
        class_names, test = _files_of(test_rows, found, classes_of(test_rows), least=1)
        train = test.select(torch.arange(0))
    else:
        class_names, train = _files_of(train_rows, found, classes_of(train_rows))
        check_known(test_rows, class_names)
        _, test = _files_of(test_rows, found, class_names)
        if val_rows:
            check_known(val_rows, class_names)
            _, val = _files_of(val_rows, found, class_names)
            val.weights = None
        together = group_images(train.paths, tables.folder, group, notes) + groups_of(train_rows)
        train.groups = torch.tensor(number_units(len(train), together))
        _note_copies(notes, tables.folder, train, test)
        _note_groups(notes, train_rows, test_rows)
    test.weights = None  # every image of a test counts once
    source = _file_source("folder", class_names, train, test, val)
    return replace(
        source,
        test_drawn=test_drawn,
        multi_label=found.several,
        skipped=found.skipped,
        notes=tuple(notes),
    )


def _part_rows(
    tables: TableFiles, found: Rows, *, testing: bool
) -> tuple[Sequence[Row], Sequence[Row], Sequence[Row]]:
    """Rows to train, to validate and to test; the latter are none where they are not told apart."""
    parts: dict[str | None, list[Row]] = {}
    for row in found.rows:
        parts.setdefault(row.split, []).append(row)
    held_out = next((split for split in ("test", "val") if split in parts), None)
    if held_out is None:
        file, *others = tables.files.values()
        only_test = testing and not others and split_of(file.stem) in ("val", "test")
        return ((), (), found.rows) if only_test else (found.rows, (), ())
    if "train" not in parts and not testing:
        raise ValueError(
            f"{tables.names} in {tables.folder} has rows of {' and '.join(map(str, parts))} and "
            "none of train; add some, or leave the splits out to have a fifth set aside"
        )
    val = parts.get("val", ()) if held_out == "test" else ()
    return parts.get("train", ()), val, parts[held_out]


def _files_of(
    rows: Sequence[Row], found: Rows, class_names: tuple[str, ...], *, least: int = 2
) -> tuple[tuple[str, ...], ImageFiles]:
    if len(class_names) < least:
        raise ValueError(
            f"{rows[0].found_at()} and all other rows are of one class, "
            f"{', '.join(map(repr, class_names)) or 'none'}; expected at least 2 classes"
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    if found.several:
        labels = torch.zeros(len(rows), len(class_names), dtype=torch.bool)
        places = [(row, numbers[name]) for row, one in enumerate(rows) for name in one.classes]
        labels[tuple(torch.tensor(places).reshape(-1, 2).T)] = True
    else:
        labels = torch.tensor([numbers[row.classes[0]] for row in rows])
    weights = torch.tensor([row.weight for row in rows]) if found.weighted else None
    if weights is not None and not weights.sum():
        raise ValueError(
            f"{rows[0].found_at()} and all other rows have the weight 0; expected one above 0"
        )
    return class_names, ImageFiles([row.path for row in rows], labels, weights=weights)


def _note_groups(notes: list[str], train: Sequence[Row], test: Sequence[Row]) -> None:
    """Tell of groups that are in both parts."""
    groups = {row.group for row in train} & {row.group for row in test} - {None}
    if groups:
        notes.append(
            f"{len(groups):,} groups, as {min(map(str, groups))!r}, have images in training and "
            "test: the test flatters"
        )


def _load_test_folder(root: Path, extensions: tuple[str, ...]) -> Source:
    """The images to test alone: those of a split, or all where there is none."""
    left_out = LeftOut()
    is_split = _is_split(root)
    folder = _held_out(root) if is_split else root
    class_names, test = _read_class_folders(folder, left_out, extensions, base=root, least=1)
    source = _file_source("folder", class_names, test.select(torch.arange(0)), test)
    return _with_left_out(source, left_out, () if is_split else [_told_all(str(root), len(test))])


def _told_all(where: str, count: int) -> str:
    return (
        f"{where} has no splits: all its {count:,} images are tested; the test flatters a network "
        "that has learnt some of them"
    )


def _with_left_out(source: Source, left_out: LeftOut, notes: Sequence[str]) -> Source:
    return replace(
        source,
        skipped=dict(left_out.counts),
        skipped_names=left_out.names,
        notes=tuple(notes),
    )


def _with_channels(source: Source, in_chans: int | None) -> Source:
    """The source with grey images, or with the bands of its files."""
    if in_chans is None or in_chans == 3:
        return source
    if in_chans < 1:
        raise ValueError(f"in_chans={in_chans} (--data.in-chans); expected channels, at least 1")
    assert isinstance(source.train, ImageFiles)
    assert isinstance(source.test, ImageFiles)
    mean, std = _GREY
    if in_chans != 1:
        paths = source.train.paths or source.test.paths
        mean, std = measure_channels(paths[:: math.ceil(len(paths) / _MEASURED)], in_chans)
    return replace(
        source,
        train=source.train.with_channels(in_chans),
        test=source.test.with_channels(in_chans),
        val=source.val.with_channels(in_chans) if isinstance(source.val, ImageFiles) else None,
        in_chans=in_chans,
        mean=mean,
        std=std,
    )


def _load_imagenet(root: Path) -> Source:
    left_out = LeftOut()
    class_names, train, val, test = _read_split_folders(root, left_out, image_extensions())
    source = _file_source("imagenet", imagenet_names(class_names), train, test, val)
    return _with_left_out(source, left_out, ())


def _file_source(
    name: str,
    class_names: tuple[str, ...],
    train: ImageFiles,
    test: ImageFiles,
    val: ImageFiles | None = None,
) -> Source:
    return Source(
        name=name,
        class_names=class_names,
        train=train,
        test=test,
        val=val,
        image_size=None,
        in_chans=3,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


def _is_split(root: Path) -> bool:
    """Whether ``root`` holds train and val or test, and not classes of these names."""
    named = [name for name in subfolders(root) if split_of(name) is not None]
    return len({split_of(name) for name in named}) > 1 or any(
        subfolders(root / name) for name in named
    )


def _held_out(root: Path) -> Path:
    """The folder of the test images."""
    splits = find_splits(root)
    held_out = splits["test"] if _has_validation(splits) else held_out_of(splits)
    if held_out is None:
        raise FileNotFoundError(
            f"{root} has {splits['train'].name} but neither val nor test; add one, or give "
            f"{splits['train']} as root to have a fifth of its images set aside"
        )
    return held_out


def _has_validation(splits: Mapping[str, Path]) -> bool:
    """Whether val is there beside a test whose images lie in folders of the same classes."""
    if "val" not in splits or "test" not in splits:
        return False
    return not set(subfolders(splits["val"])).isdisjoint(subfolders(splits["test"]))


def _read_split_folders(
    root: Path, left_out: LeftOut, extensions: tuple[str, ...]
) -> tuple[tuple[str, ...], ImageFiles, ImageFiles | None, ImageFiles]:
    """Classes, and the images to train, to validate if there are such, and to test."""
    splits = find_splits(root)
    if "train" not in splits:
        raise FileNotFoundError(
            f"{root} has no folder train; expected {root}/train/CLASS/image.jpg and the same "
            "classes in val or test"
        )
    held_out = [_held_out(root), *([splits["val"]] if _has_validation(splits) else [])]
    for name in subfolders(root, left_out):
        if root / name not in (splits["train"], *held_out):
            left_out.add("folder beside the splits", name)
    class_names, train = _read_class_folders(splits["train"], left_out, extensions, base=root)
    parts = []
    for folder in held_out:
        names, images = _read_class_folders(folder, left_out, extensions, base=root)
        _check_same_classes(splits["train"], class_names, folder, names)
        parts.append(images)
    return class_names, train, parts[1] if len(parts) > 1 else None, parts[0]


def _check_same_classes(
    train: Path, class_names: Sequence[str], held_out: Path, names: Sequence[str]
) -> None:
    if class_names == names:
        return
    only = [
        f"only in {folder}: {', '.join(sorted(found)[:10])}"
        for folder, found in (
            (train, set(class_names) - set(names)),
            (held_out, set(names) - set(class_names)),
        )
        if found
    ]
    raise ValueError(
        f"the class folders of {train} and {held_out} differ ({'; '.join(only)}); both must have "
        "the same ones"
    )


def _read_class_folders(
    folder: Path,
    left_out: LeftOut,
    extensions: tuple[str, ...],
    *,
    base: Path | None = None,
    least: int = 2,
) -> tuple[tuple[str, ...], ImageFiles]:
    base = base or folder
    folders = subfolders(folder, left_out, base=base)
    if not folders:
        raise FileNotFoundError(
            f"{folder} holds no class folders; expected {folder}/CLASS/image.jpg, one folder a "
            "class"
        )
    if len(folders) < least:
        inside = folder / folders[0]
        deeper = f"; its folders are in {inside}: give that as root" if subfolders(inside) else ""
        raise ValueError(
            f"{folder} holds one class, {folders[0]!r}; expected at least 2 class folders{deeper}"
        )
    alike = find_alike(folders)
    if alike is not None:
        raise ValueError(
            f"{folder} holds the class folders {alike[0]!r} and {alike[1]!r}, which differ only in "
            "capitals or in how a letter is written; merge the two, or rename one"
        )
    paths: list[str] = []
    counts = []
    for name in folders:
        found = find_images(folder / name, left_out, base=base, extensions=extensions)
        paths += found
        counts.append(len(found))
    empty = [name for name, count in zip(folders, counts, strict=True) if not count]
    if empty:
        raise FileNotFoundError(
            f"no images ({', '.join(extensions)}) in "
            f"{', '.join(str(folder / name) for name in empty[:5])}; add some or remove the folder"
        )
    labels = torch.arange(len(folders)).repeat_interleave(torch.tensor(counts))
    return tuple(normal_name(name) for name in folders), ImageFiles(paths, labels)


def _find_together(
    notes: list[str], root: Path, images: ImageFiles, class_names: Sequence[str], group: str | None
) -> list[list[int]]:
    """Places of images that must not be parted: of one group, or of the same bytes."""
    together = group_images(images.paths, root, group, notes)
    copies = find_duplicates(images.paths)
    for places in copies:
        labels = images.labels[places]
        other = next((one for one in places if (images.labels[one] != labels[0]).any()), None)
        if other is not None:
            notes.append(
                f"{images.paths[places[0]]} and {images.paths[other]} are the same file in two "
                "classes"
            )
            break
    note_copies(copies, notes)
    return together + copies


def _note_copies(notes: list[str], root: Path, train: ImageFiles, test: ImageFiles) -> None:
    """Tell of test images that are training images, too."""
    paths = [*train.paths, *test.paths]
    if len(paths) > MOST_COMPARED:
        return
    crossing = [places for places in find_duplicates(paths) if places[0] < len(train) <= places[-1]]
    if crossing:
        count = sum(place >= len(train) for places in crossing for place in places)
        one, other = paths[crossing[0][0]], paths[crossing[0][-1]]
        notes.append(
            f"{count:,} test images are training images, too, byte for byte, as {other} is {one}: "
            "the test flatters"
        )


def _set_aside(
    images: ImageFiles, class_names: Sequence[str], together: Sequence[Sequence[int]], seed: int
) -> tuple[ImageFiles, ImageFiles]:
    """Training and test part: of each class a fifth, rounded, for the test, and both get some."""
    labels = images.labels
    counts = labels.bincount() if labels.ndim == 1 else labels.sum(0)
    for label, count in enumerate(counts.tolist()):
        if count < 2:
            path = images.paths[int(_has_class(labels, label).nonzero()[0])]
            raise ValueError(
                f"{path} is the only image of its class {class_names[label]!r}; expected at least "
                "2, one to train and one to test"
            )
    for_test = draw_held_out(*with_classless(labels, class_names), together, seed)
    return images.select((~for_test).nonzero()[:, 0]), images.select(for_test.nonzero()[:, 0])


def with_classless(labels: Tensor, class_names: Sequence[str]) -> tuple[Tensor, Sequence[str]]:
    """Labels and names of classes for ``draw_held_out``, to which no class is one of several.

    Args:
        labels: Class numbers (N,), or (N, K) bool.
        class_names: Of the K classes.
    """
    if labels.ndim == 1:
        return labels, class_names
    none = ~labels.any(1, keepdim=True)
    if none.sum() < 2:
        return labels, class_names
    return torch.cat([labels, none], dim=1), [*class_names, "none"]


def _load_cifar(name: str, root: Path, download: bool) -> Source:
    kind = CIFAR10 if name == "cifar10" else CIFAR100
    with _download_errors(name, root, download):
        train, test = (kind(str(root), train=part, download=download) for part in (True, False))
    return Source(
        name=name,
        class_names=tuple(train.classes),
        train=_cifar_images(train),
        test=_cifar_images(test),
        image_size=(32, 32),
        in_chans=3,
        mean=(0.4914, 0.4822, 0.4465) if name == "cifar10" else (0.5071, 0.4865, 0.4409),
        std=(0.2470, 0.2435, 0.2616) if name == "cifar10" else (0.2673, 0.2564, 0.2762),
    )


def _cifar_images(dataset: CIFAR10) -> TensorImages:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return TensorImages(images, torch.tensor(dataset.targets, dtype=torch.int64))


@contextmanager
def _download_errors(name: str, root: Path, download: bool) -> Iterator[None]:
    """Says in one sentence what torchvision says in several ways."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if download:
            reason = one_line(error)
            raise FileNotFoundError(
                f"{name} could not be downloaded into {root} ({reason}); check the connection, or "
                "copy its files there"
            ) from error
        raise FileNotFoundError(
            f"{root} holds no complete {name}; give its folder (--data.root) or pass download=True "
            "(--data.download)"
        ) from error


def _load_fashion_mnist(root: Path, download: bool) -> Source:
    folders = (root, root / "FashionMNIST" / "raw", root / "raw")
    if download and not any(_find_idx(folder, "train-images-idx3-ubyte") for folder in folders):
        with _download_errors("fashion_mnist", root, download):
            FashionMNIST(str(root), download=True)
    parts = []
    for part in ("train", "t10k"):
        images = _read_idx(_require_idx(folders, f"{part}-images-idx3-ubyte"), num_axes=3)
        labels_file = _require_idx(folders, f"{part}-labels-idx1-ubyte")
        labels = _read_idx(labels_file, num_axes=1)
        if len(labels) != len(images):
            raise ValueError(
                f"{labels_file} holds {len(labels)} labels for {len(images)} images; fetch both "
                "files anew"
            )
        if labels.max(initial=0) >= len(FashionMNIST.classes):
            raise ValueError(
                f"{labels_file} holds label {labels.max()}; expected 0 to 9: fetch the file anew"
            )
        parts.append(TensorImages(torch.tensor(images).unsqueeze(1), torch.tensor(labels).long()))
    return Source(
        name="fashion_mnist",
        class_names=tuple(FashionMNIST.classes),
        train=parts[0],
        test=parts[1],
        image_size=(28, 28),
        in_chans=1,
        mean=(0.2860,),
        std=(0.3530,),
    )


def _find_idx(folder: Path, stem: str) -> Path | None:
    files = (folder / f"{stem}{suffix}" for suffix in _IDX_SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _require_idx(folders: tuple[Path, ...], stem: str) -> Path:
    for folder in folders:
        file = _find_idx(folder, stem)
        if file is not None:
            return file
    raise FileNotFoundError(
        f"{folders[0]} holds no {stem} or {stem}.gz, nor do its folders raw and FashionMNIST/raw; "
        "give Fashion-MNIST's folder (--data.root) or pass download=True (--data.download)"
    )


_MOST_IN_IDX = 1_000_000
"""Fashion-MNIST has 60,000, EMNIST in its layout 814,255."""


def _read_idx(file: Path, *, num_axes: int) -> NDArray[np.uint8]:
    """Bytes of an IDX file, as http://yann.lecun.com/exdb/mnist describes it: (N,) or (N, 28, 28).

    torchvision compares the md5 of the packed file, which changes when the same data are packed
    anew; here the header has to fit the contents.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
            shape = _read_idx_header(file, content.read(4 + 4 * num_axes), num_axes)
            # One byte more tells a file that is too long; none further is unpacked.
            values = content.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be unpacked ({error}); fetch the file anew") from error
    if len(values) != math.prod(shape):
        more = " or more" if len(values) > math.prod(shape) else ""
        raise ValueError(
            f"{file} announces {math.prod(shape)} bytes and holds {len(values)}{more}; fetch the "
            "file anew"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_idx_header(file: Path, header: bytes, num_axes: int) -> tuple[int, ...]:
    """The shape that an IDX file announces."""
    if header[:4] != bytes([0, 0, 8, num_axes]) or len(header) < 4 + 4 * num_axes:
        raise ValueError(
            f"{file} begins with {header[:4].hex()}; expected {0x0800 + num_axes:08x}, an IDX "
            f"file of bytes in {num_axes} dimensions: fetch the file anew"
        )
    shape = tuple(int(length) for length in np.frombuffer(header, ">u4", num_axes, offset=4))
    if shape[1:] != (28, 28)[: num_axes - 1]:
        raise ValueError(
            f"{file} holds images of {shape[1]} x {shape[2]}; expected 28 x 28 as Fashion-MNIST's"
        )
    if shape[0] > _MOST_IN_IDX:
        raise ValueError(
            f"{file} announces {shape[0]:,} images; expected {_MOST_IN_IDX:,} at most: fetch the "
            "file anew"
        )
    return shape


@dataclass(frozen=True)
class _PackedImages:
    """Images before they are decoded, so that only the drawn ones need be."""

    names: Sequence[str]
    """What an error calls each."""
    files: Sequence[str | bytes]
    """The path of each, or its contents."""
    kind: str
    """What an error says to replace: a file or a row."""
    labels: Tensor
    boxes: Tensor | None
    """(N, 4) int64: xmin, ymin, xmax, ymax, the maxima on the object."""


_Listed = tuple[str, str, list[int]]
"""Path, WordNet id and box of an image."""


def _load_tiny_imagenet(
    root: Path, num_train: int | None, num_test: int | None, seed: int
) -> Source:
    if (root / "train.parquet").is_file() or (root / "val.parquet").is_file():
        class_names, train, test = _read_tiny_imagenet_parquet(root)
    elif (root / "train").is_dir():
        class_names, train, test = _read_tiny_imagenet_folders(root)
    else:
        raise FileNotFoundError(
            f"{root} holds neither train.parquet and val.parquet nor a folder train; give "
            "Tiny ImageNet's folder (--data.root)"
        )
    train_images = _unpack(train, num_train, seed, "tiny_imagenet: num_train")
    test_images = _unpack(test, num_test, _TEST_SEED, "tiny_imagenet: num_test")
    height, width = train_images.images.shape[2:]
    if test_images.images.shape[2:] != (height, width):
        test_height, test_width = test_images.images.shape[2:]
        raise ValueError(
            f"{root} holds training images of {height} x {width} and test images of "
            f"{test_height} x {test_width}; expected one size: resize them beforehand"
        )
    return Source(
        name="tiny_imagenet",
        class_names=class_names,
        train=train_images,
        test=test_images,
        image_size=(height, width),
        in_chans=3,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
    )


def _unpack(packed: _PackedImages, number: int | None, seed: int, what: str) -> TensorImages:
    """The drawn images, decoded."""
    available = len(packed.files)
    chosen = (
        torch.arange(available) if number is None else draw_indices(available, number, seed, what)
    )
    images: NDArray[np.uint8] | None = None
    for row, index in enumerate(chosen.tolist()):
        file = packed.files[index]
        name = packed.names[index]
        sample = read_sample(file, name, kind=packed.kind)
        pixels = np.asarray(sample.image).transpose(2, 0, 1)
        if images is None:
            images = np.empty((len(chosen), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise ValueError(
                f"{name} is an image of {pixels.shape[1]} x {pixels.shape[2]} where those before "
                f"it are {images.shape[2]} x {images.shape[3]}; expected one size: resize them "
                "beforehand"
            )
        images[row] = pixels
    assert images is not None
    boxes = None
    if packed.boxes is not None:
        boxes = packed.boxes[chosen]
        least, most = boxes[:, :2], boxes[:, 2:]
        inside = torch.tensor([images.shape[3], images.shape[2]])  # width bounds x, height y
        wrong = ((least < 0) | (most < least) | (most >= inside)).any(1).nonzero()[:, 0].tolist()
        if wrong:
            raise ValueError(
                f"{packed.names[int(chosen[wrong[0]])]} has the box {boxes[wrong[0]].tolist()}; "
                f"expected xmin, ymin, xmax, ymax inside its {images.shape[2]} x "
                f"{images.shape[3]} pixels, counted from 0, the maxima on the object"
            )
        boxes = torch.cat([least, most + 1], dim=1)
    return TensorImages(torch.from_numpy(images), packed.labels[chosen], boxes=boxes)


def _read_tiny_imagenet_parquet(
    root: Path,
) -> tuple[tuple[str, ...], _PackedImages, _PackedImages]:
    parts = []
    for file in (root / "train.parquet", root / "val.parquet"):
        if not file.is_file():
            raise FileNotFoundError(f"{root} holds no {file.name}; fetch the data set anew")
        parts.append(_read_parquet(file))
    train, test = parts
    names_file = root / "classes.tsv"
    if names_file.is_file():
        rows = read_table(names_file, 3)
        if [number for number, _, _ in rows] != [str(number) for number in range(len(rows))]:
            raise ValueError(
                f"{names_file} numbers its classes otherwise than 0, 1, 2, ...; put them in order"
            )
        class_names = tuple(first_word(words) for _, _, words in rows)
    else:
        names_file = root / "train.parquet"
        class_names = tuple(map(str, range(max(0, int(train.labels.max())) + 1)))
    for name, part in (("train", train), ("val", test)):
        wrong = part.labels[(part.labels < 0) | (part.labels >= len(class_names))]
        if len(wrong):
            raise ValueError(
                f"{root / name}.parquet holds label {int(wrong[0])}; expected 0 to "
                f"{len(class_names) - 1}, the classes of {names_file}"
            )
    return class_names, train, test


def _read_parquet(file: Path) -> _PackedImages:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file} needs pyarrow: pip install 'convattn[train]'", name="pyarrow"
        ) from error
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error)
        raise ValueError(f"{file} cannot be read as parquet ({reason}); fetch it anew") from error
    if not table.num_rows:
        raise ValueError(f"{file} holds no rows; fetch it anew")
    for name in ("image", "label"):
        if name not in table.column_names:
            raise ValueError(
                f"{file} has no column {name!r} but {', '.join(table.column_names)}; expected "
                "image, label and, if boxes are known, bbox"
            )
    image_type = table.schema.field("image").type
    if not pa.types.is_struct(image_type) or image_type.get_field_index("bytes") < 0:
        raise ValueError(
            f"the column image of {file} is {image_type}; expected a struct with the field bytes"
        )
    contents = [image and image["bytes"] for image in table["image"].to_pylist()]
    if None in contents:
        raise ValueError(
            f"row {contents.index(None)} (from 0) of {file} holds no image; expected its bytes"
        )
    boxes = None
    if "bbox" in table.column_names:
        boxes = _integers(file, table, "bbox", pa.list_(pa.int64()), (table.num_rows, 4))
    return _PackedImages(
        names=[f"row {row} (from 0) of {file}" for row in range(table.num_rows)],
        files=contents,
        kind="row",
        labels=_integers(file, table, "label", pa.int64(), (table.num_rows,)),
        boxes=boxes,
    )


def _integers(file: Path, table: Any, name: str, kind: Any, shape: tuple[int, ...]) -> Tensor:
    """A column as int64."""
    try:
        # Arrow refuses to round, NumPy to make a number of an empty cell or a ragged column.
        values = np.array(table[name].cast(kind).to_pylist(), dtype=np.int64)
    except (TypeError, ValueError, NotImplementedError):  # pyarrow's own are among these
        values = np.empty(0, np.int64)
    if values.shape != shape:
        each = "a whole number" if len(shape) == 1 else f"{shape[1]} whole numbers"
        raise ValueError(
            f"the column {name} of {file} is {table.schema.field(name).type}; expected {each} in "
            "every row"
        )
    return torch.from_numpy(values)


def _read_tiny_imagenet_folders(
    root: Path,
) -> tuple[tuple[str, ...], _PackedImages, _PackedImages]:
    wnids = subfolders(root / "train")
    if len(wnids) < 2:
        raise FileNotFoundError(
            f"{root / 'train'} holds {len(wnids)} class folders; expected at least 2 as "
            f"{root / 'train'}/n01443537/images/n01443537_0.JPEG"
        )
    train: list[_Listed] = []
    for wnid in wnids:
        folder = root / "train" / wnid
        train += _read_listing(folder / f"{wnid}_boxes.txt", folder / "images", wnid)
    listing = root / "val" / "val_annotations.txt"
    test = _read_listing(listing, root / "val" / "images")
    unknown = {wnid for _, wnid, _ in test}.difference(wnids)
    if unknown:
        raise ValueError(
            f"{listing} holds the class {min(unknown)}, which has no folder in {root / 'train'}; "
            "both must have the same ones"
        )
    words_file = root / "words.txt"
    words = dict(read_table(words_file, 2)) if words_file.is_file() else {}
    class_names = tuple(first_word(words.get(wnid, wnid)) for wnid in wnids)
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    return class_names, _pack_files(train, numbers), _pack_files(test, numbers)


def _pack_files(listed: list[_Listed], numbers: dict[str, int]) -> _PackedImages:
    paths = [path for path, _, _ in listed]
    return _PackedImages(
        names=paths,
        files=paths,
        kind="file",
        labels=torch.tensor([numbers[wnid] for _, wnid, _ in listed]),
        boxes=torch.tensor([box for _, _, box in listed]),
    )


def _read_listing(file: Path, folder: Path, wnid: str | None = None) -> list[_Listed]:
    """What a box file says of the images in ``folder``; without ``wnid`` it gives that, too."""
    listed: list[_Listed] = []
    for number, (name, *rest) in enumerate(read_table(file, 6 if wnid is None else 5), start=1):
        try:
            box = [int(edge) for edge in rest[-4:]]
        except ValueError:
            raise ValueError(
                f"line {number} of {file} ends with {rest[-4:]}; expected xmin, ymin, xmax, ymax "
                "in whole pixels"
            ) from None
        listed.append((str(folder / name), rest[0] if wnid is None else wnid, box))
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; it should hold the images of {file}")
    there = set(find_images(folder, LeftOut()))
    names = {path for path, _, _ in listed}
    for images, fault in ((names - there, "lacks"), (there - names, "holds, unlisted,")):
        if images:
            raise FileNotFoundError(
                f"{folder} {fault} {Path(min(images)).name}; expected the {len(names)} images "
                f"that {file} lists"
            )
    return listed
