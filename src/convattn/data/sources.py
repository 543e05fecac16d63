"""Labelled data sets by name: training and test images, classes, size, mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convattn.config import BadAnnotations, DataFormat
from convattn.data.bands import extensions_of
from convattn.data.choosing import (
    TEST_SEED,
    check_format,
    check_name,
    draw_part,
    find_root,
    refuse_root,
)
from convattn.data.class_folders import is_split, load_folder, load_imagenet, load_test_folder
from convattn.data.class_tables import load_tables, refuse_of_tables, tables_of, with_tables_noted
from convattn.data.generated import GENERATED, load_generated
from convattn.data.labelled import Source, as_known, with_channels
from convattn.data.published import (
    load_cifar,
    load_fashion_mnist,
    load_tiny_imagenet,
)
from convattn.data.shards import SHARDED, load_shards
from convattn.data.table_files import TABLES
from convattn.data.tables import read_tables

DATASETS: tuple[str, ...] = (
    *GENERATED,
    "folder",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "imagenet",
    "tiny_imagenet",
    *SHARDED,
)
"""Names that ``load_source`` takes."""


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

    - ``cluttered_digits``, ``same_different``, ``count`` and ``pathfinder`` are generated (see
      there): 20,000 training and 1,000 test images of 64 x 64 unless told otherwise. ``seed``
      chooses the training images; the test images are always the same, so that runs compare.
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
    - ``webdataset`` reads tars in which an image, ``KEY.jpg``, its class, ``KEY.cls``, and
      ``KEY.json`` lie side by side, at any place: ``root`` is the folder that ``convattn shard``
      has written, which then is as the data set was, or names tars,
      ``OUT/train-{000000..000003}.tar``, also by URL. ``litdata`` reads such a folder in litdata's
      format. See docs/howto/shards.md.

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

    Examples:
        >>> source = load_source("cluttered_digits", num_train=200, num_test=100)
        >>> len(source.train), source.image_size, source.class_names[:3]
        (200, (64, 64), ('0', '1', '2'))
    """
    check_name(name, DATASETS)
    check_format(name, format, ("folder", "table") if name == "folder" else ())
    if in_chans is not None and name != "folder" and not (name in SHARDED and in_chans in (1, 3)):
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
        refuse_of_tables(of_tables, name)
    if name in GENERATED:
        refuse_root(name, root, "folder")
        source = load_generated(name, image_size, num_train, num_test, seed)
        return as_known(source, class_names, ignore_unknown, name)
    if name in SHARDED:
        source = load_shards(
            name, root, seed, group=group, testing=class_names is not None, test_all=test_all
        )
        source = as_known(with_channels(source, in_chans), class_names, ignore_unknown, str(root))
        return _drawn(source, num_train, num_test, seed)
    folder = find_root(name, root, download, files=TABLES if name == "folder" else ())
    if name == "tiny_imagenet":
        source = load_tiny_imagenet(folder, num_train, num_test, seed)
        return as_known(source, class_names, ignore_unknown, str(folder))
    if name == "folder":
        testing = class_names is not None
        named = path_column is not None or labels_column is not None
        tables = tables_of(folder, "table" if named and format == "auto" else format)
        if tables is not None:
            rows = read_tables(
                tables,
                path_column=path_column,
                labels_column=labels_column,
                bad_annotations=bad_annotations,
            )
            source = load_tables(
                tables,
                rows,
                group,
                seed,
                testing=testing,
                test_all=test_all,
                parts_train=parts_train,
            )
        else:
            refuse_of_tables(of_tables, str(folder))
            extensions = extensions_of(3 if in_chans is None else in_chans)
            if testing if is_split(folder) else test_all:
                source = load_test_folder(folder, extensions)
            else:
                source = load_folder(folder, group, seed, extensions, parts_train=parts_train)
            source = with_tables_noted(source, folder)
        source = with_channels(source, in_chans)
    elif name == "imagenet":
        source = load_imagenet(folder)
    elif name == "fashion_mnist":
        source = load_fashion_mnist(folder, download)
    else:
        source = load_cifar(name, folder, download)
    source = as_known(source, class_names, ignore_unknown, str(folder))
    return _drawn(source, num_train, num_test, seed)


def _drawn(source: Source, num_train: int | None, num_test: int | None, seed: int) -> Source:
    """The source with as many images of training and test as are wanted."""
    if len(source.train):
        train = draw_part(source.train, num_train, seed, f"{source.name}: num_train")
        source = replace(source, train=train)
    test = draw_part(source.test, num_test, TEST_SEED, f"{source.name}: num_test")
    return replace(source, test=test)
