"""What the columns of a table are for, by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from convattn.data.folders import SPLITS, split_of
from convattn.data.table_files import Cells, quoted
from convattn.text import nearest, short_repr

_BITS = {"0": False, "0.0": False, "False": False, "1": True, "1.0": True, "True": True}
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "paths": (
        *("filename", "filepath", "file", "path", "imagepath", "imagefilename", "imagefile"),
        *("imgpath", "imgfile", "imgname", "imagename", "fname", "image", "img", "images"),
        *("picture", "photo", "imageid"),
    ),
    "labels": (
        *("label", "labels", "class", "classes", "classname", "classnames", "labelname"),
        *("category", "categories", "categoryname", "target", "targets", "tag", "tags"),
        *("findinglabels", "groundtruth", "species", "breed", "diagnosis"),
        *("classid", "labelid", "categoryid", "y"),
    ),
    "splits": ("split", "subset", "set", "partition", "fold", "phase", "usage", "dataset"),
    "groups": (
        *("group", "groups", "groupid", "patientid", "patient", "subjectid", "subject"),
        *("personid", "person", "caseid", "studyid", "sequenceid", "sessionid", "locationid"),
    ),
    "weights": ("weight", "sampleweight", "imageweight", "weights", "sampleweights"),
}
"""What a column is for -> what it is usually called, the likeliest first; letters and digits."""


class Columns(NamedTuple):
    """Names of a table's columns by what they are for."""

    paths: str
    labels: str | None
    """None where each class has a column."""
    classes: tuple[str, ...]
    """Those columns."""
    splits: str | None
    groups: str | None
    weights: str | None

    @property
    def used(self) -> set[str | None]:
        """All of them."""
        return {self.paths, self.labels, *self.classes, self.splits, self.groups, self.weights}


def choose_columns(cells: Cells, path_column: str | None, labels_column: str | None) -> Columns:
    """What each column is for.

    Args:
        cells: The table.
        path_column: The column of the images' paths, if it was named.
        labels_column: That of their classes, alike.

    Raises:
        ValueError: If one is missing.
    """
    paths = _column(cells, "paths", path_column, "path_column")
    if paths is None:
        if cells.embedded:
            raise ValueError(
                f"{cells.file} holds the images themselves, in its column {cells.embedded[0]!r}; "
                "expected their paths: write each to a file and the names of the files into a "
                'column file_name (docs/howto/data.md, "Images inside a parquet file")'
            )
        raise ValueError(_no_column(cells, "the images' paths", "paths", "path"))
    others: dict[str, str | None] = {
        what: guess_column(cells, what, but=(paths, labels_column))
        for what in ("splits", "groups", "weights")
    }
    if others["splits"] and not _are_splits(cells, others["splits"]):
        others["splits"] = None
    labels = _column(cells, "labels", labels_column, "labels_column", but=(paths, *others.values()))
    classes: tuple[str, ...] = ()
    if labels is None:
        classes = _class_columns(cells, but=(paths, *others.values()))
        if len(classes) < 2:
            raise ValueError(_no_column(cells, "the images' classes", "labels", "labels"))
    if labels == paths:
        raise ValueError(
            f"labels_column={labels!r} (--data.labels-column) is the column of the paths of "
            f"{cells.file}, too; name that of the classes among {quoted(list(cells.columns))}"
        )
    return Columns(paths=paths, labels=labels, classes=classes, **others)


def _column(
    cells: Cells, what: str, given: str | None, option: str, *, but: Sequence[str | None] = ()
) -> str | None:
    if given is None:
        return guess_column(cells, what, but=but)
    if given not in cells.columns:
        flag = option.replace("_", "-")
        raise ValueError(
            f"{cells.file} has no column {option}={given!r} (--data.{flag}), the nearest being "
            f"{nearest(given, cells.columns)!r}; its columns are {quoted(list(cells.columns))}"
        )
    return given


def guess_column(cells: Cells, what: str, *, but: Sequence[str | None] = ()) -> str | None:
    """The column with the likeliest of the usual names, if there is one.

    Args:
        cells: The table.
        what: paths, labels, splits, groups or weights.
        but: Columns that are something else.
    """
    found: dict[str, str] = {}
    for name in cells.columns:
        if name not in but:
            found.setdefault(re.sub(r"[\W_]+", "", name.casefold()), name)
    return next((found[usual] for usual in _COLUMNS[what] if usual in found), None)


def _no_column(cells: Cells, meaning: str, what: str, option: str) -> str:
    usual = ", ".join(_COLUMNS[what][:4])
    return (
        f"{cells.file} has no column whose name says that it holds {meaning} ({usual}, ...) but "
        f"{quoted(list(cells.columns))}; name it (--data.{option}-column), and let the first line "
        "name the columns"
    )


def _are_splits(cells: Cells, name: str) -> bool:
    """Whether a column holds names of splits, in all its cells or in none."""
    known = [value is not None for value in map(split_in, cells.columns[name])]
    if any(known) and not all(known):
        row = known.index(False)
        raise ValueError(
            f"{cells.place(row)} of {cells.file} has {short_repr(cells.columns[name][row])} in the "
            f"column {name!r}; expected a split as other rows have, one of "
            f"{', '.join(word for words in SPLITS.values() for word in words)}"
        )
    return all(known)


def split_in(cell: object) -> str | None:
    """The split that a cell names, if it names one.

    Args:
        cell: Of a column.
    """
    return split_of(cell.strip()) if isinstance(cell, str) else None


def _class_columns(cells: Cells, *, but: Sequence[str | None]) -> tuple[str, ...]:
    """Columns that hold 0 and 1 alone: a class each."""
    return tuple(
        name
        for name, column in cells.columns.items()
        if name and name not in but and all(yes_or_no(cell) is not None for cell in column)
    )


def yes_or_no(cell: object) -> bool | None:
    """What a cell that holds 0 or 1 says; None of any other.

    Args:
        cell: Of a column.
    """
    return _BITS.get(str(cell).strip())
