"""Classes told by tables: training and test images by the rows of CSV, JSON lines or parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from convattn.config import DataFormat
from convattn.data.class_folders import (
    find_together,
    has_class_folders,
    note_crossing,
    set_aside,
    tell_all_tested,
)
from convattn.data.drawing import group_images, number_units
from convattn.data.folders import split_of
from convattn.data.images import ImageFiles
from convattn.data.labelled import Source, file_source
from convattn.data.table_files import (
    TABLES,
    TableFiles,
    find_metadata,
    find_tables,
    single_table,
    tables_in,
)
from convattn.data.tables import Row, Rows, check_known, classes_of, groups_of, has_labels


def refuse_of_tables(options: Mapping[str, str | None], where: str) -> None:
    """Refuse what only a table heeds where none is read.

    Args:
        options: Its name -> what is given, None if nothing is.
        where: What is read instead.

    Raises:
        ValueError: If one is given.
    """
    for option, value in options.items():
        if value is not None:
            flag = option.replace("_", "-")
            raise ValueError(
                f"{option}={value!r} (--data.{flag}) is about a table, and {where} is not read as "
                "one; leave it out, or give a table (--data.name folder --data.format table)"
            )


def tables_of(root: Path, format: DataFormat) -> TableFiles | None:
    """The tables that say of which class the images are; None where folders do.

    Args:
        root: A folder, or a table.
        format: What it is to be read as.

    Raises:
        FileNotFoundError: If tables are asked for and there is none.
        NotADirectoryError: If folders are asked for and ``root`` is a table.
    """
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
    if format == "auto" and (not tables_in(root) or has_class_folders(root)):
        return None
    found = find_tables(root)
    if found is None:
        raise FileNotFoundError(
            f"{root} holds no table ({', '.join(TABLES)}); add one, as train.csv and val.csv or "
            "metadata.csv, or give the table itself as root (--data.root)"
        )
    return found


def with_tables_noted(source: Source, root: Path) -> Source:
    """Tell of tables beside class folders, which may have been meant.

    Args:
        source: Read by the folders.
        root: The folder.
    """
    beside = tables_in(root)
    if not beside:
        return source
    note = f"read as class folders, not by {', '.join(beside)}; --data.format table would"
    return replace(source, notes=(*source.notes, note))


def load_tables(
    tables: TableFiles,
    found: Rows,
    group: str | None,
    seed: int,
    *,
    testing: bool,
    test_all: bool,
    parts_train: bool,
) -> Source:
    """What tables say, as training and test images; where those are enough, the test's alone.

    Args:
        tables: The files.
        found: Their rows.
        group: A pattern; images in whose paths it finds the same are in one part.
        seed: Of the draw of a test part.
        testing: Whether a network's classes are known, so that no training image is needed.
        test_all: Whether all is for the test where nothing parts it.
        parts_train: Whether the training images are going to be parted further.

    Raises:
        ValueError: If the rows do not make training and test images of two classes.
    """
    train_rows, val_rows, test_rows = _part_rows(tables, found, testing=testing)
    notes = [found.note]
    val = None
    if test_all and not test_rows:
        train_rows, test_rows = (), train_rows
        notes.append(tell_all_tested(tables.names, len(test_rows)))
    elif test_rows and group is not None and not parts_train:
        raise ValueError(
            f"group={group!r} parts images without splits, and {tables.names} has some; leave "
            "group out"
        )
    test_drawn = not test_rows
    if test_drawn:
        least = 1 if testing else 2
        class_names, images = _files_of(train_rows, found, classes_of(train_rows), least=least)
        together = find_together(notes, tables.folder, images, class_names, group)
        together += groups_of(train_rows)
        images.groups = torch.tensor(number_units(len(images), together))
        train, test = set_aside(images, class_names, together, seed)
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
        note_crossing(notes, tables.folder, train, test)
        _note_groups(notes, train_rows, test_rows)
    test.weights = None  # every image of a test counts once
    source = file_source("folder", class_names, train, test, val)
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
