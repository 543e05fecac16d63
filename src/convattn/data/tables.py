"""Tables that say of which class each image is: CSV, TSV, JSON lines or parquet."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from convattn.config import BadAnnotations
from convattn.data.annotated import EntryFault, Faults
from convattn.data.classes import find_alike
from convattn.data.table_columns import Columns, choose_columns, guess_column, split_in, yes_or_no
from convattn.data.table_files import Cells, TableFiles, quoted, read_cells
from convattn.text import short_repr

_OFTEN_BESIDE = "images"
"""The folder beside a table that its paths may begin in."""
_SEPARATORS = "|;"
"""What stands between several classes in a cell of text."""
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")


def has_labels(tables: TableFiles) -> bool:
    """Whether a column's name says that the first of the tables has classes.

    Raises:
        ValueError: If it cannot be read.
    """
    cells = read_cells(next(iter(tables.files.values())))
    return guess_column(cells, "labels") is not None


# --- what a cell means


class _Labels:
    """Reads the cells of a column of classes; equal ones once."""

    def __init__(self, column: Sequence[Any]) -> None:
        self._known: dict[tuple[type, Any], tuple[str, ...] | None] = {}
        self.several = False
        self.column = column

    def __iter__(self) -> Iterator[tuple[str, ...] | None]:
        """The classes of each row; None where the cell holds no name."""
        for cell in self.column:
            key = (type(cell), tuple(cell) if isinstance(cell, list) else cell)
            try:
                if key not in self._known:
                    self._known[key] = self._read(cell)
                names = self._known[key]
            except TypeError:  # a cell of cells
                names = None
            yield names

    def _read(self, cell: Any) -> tuple[str, ...] | None:
        parts = _parts(cell)
        if parts is None:
            name = _class_name(cell)
            return None if name is None else (name,)
        self.several = True
        names = [_class_name(part) for part in parts]
        return None if None in names else tuple(sorted({name for name in names if name}))


def _parts(cell: Any) -> list[Any] | None:
    """The several classes of a cell; None if it names one."""
    if isinstance(cell, list):
        return cell
    if not isinstance(cell, str):
        return None
    text = cell.strip()
    if text.startswith("[") and text.endswith("]"):
        found = _list_in(text)
        if found is not None:
            return found
    separator = next((one for one in _SEPARATORS if one in text), None)
    return None if separator is None else [part for part in text.split(separator) if part.strip()]


def _list_in(text: str) -> list[Any] | None:
    """A list as JSON or Python writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's of unknown escapes
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list):
                return found
    return None


def _class_name(value: object) -> str | None:
    """The name that a label is; 1, 1.0 and "1" are one, "001" another."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, list | dict | bytes):
        return None
    text = unicodedata.normalize("NFC", str(value)).strip()
    if not text or text.casefold() == "nan" or not _is_text(text):
        return None
    if _NUMBER.fullmatch(text) and "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _is_text(text: str) -> bool:
    """Whether it can be written: JSON can hold half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _weight(cell: object) -> float | None:
    """A number from 0; None if it is none."""
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


# --- rows


class Row(NamedTuple):
    """What a table says of an image."""

    path: str
    classes: tuple[str, ...]
    """One, or where images have several any number of them."""
    split: str | None
    group: str | None
    """What it has in common with others; None if it stands alone."""
    weight: float
    place: tuple[Cells, int]

    def found_at(self) -> str:
        """Table and line, for people."""
        cells, row = self.place
        return f"{cells.place(row)} of {cells.file}"


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What tables say of their images."""

    rows: Sequence[Row]
    """In the order of the tables."""
    several: bool
    """Whether an image may have several classes."""
    weighted: bool
    """Whether the images have weights."""
    note: str
    """What was taken for what."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """How many rows were left out, by reason."""

    @property
    def splits(self) -> set[str | None]:
        """The splits that the rows are of."""
        return {row.split for row in self.rows}


def read_tables(
    tables: TableFiles,
    *,
    path_column: str | None = None,
    labels_column: str | None = None,
    bad_annotations: BadAnnotations = "error",
) -> Rows:
    """Read which images there are, and of which classes.

    Columns are found by their usual names in any case, see ``_COLUMNS``; a column of splits is one
    only if it names splits. Where no column's name says that it holds labels, columns of 0 and 1
    are a class each. Several classes of an image are a list, or text with ``|`` or ``;`` between
    them, or a list written as JSON. Paths begin at the table's folder, or in a folder there that is
    called ``images`` or like the table.

    Args:
        tables: At least one.
        path_column: Name of the column of paths; None guesses.
        labels_column: Name of the column of classes; None guesses.
        bad_annotations: Refuse rows without image, class or weight, or leave them out.

    Raises:
        ValueError: If a table cannot be read, has no such columns, contradicts itself or another
            one, or has faulty rows; names the row.
        FileNotFoundError: If there is no such table.
        ModuleNotFoundError: If it is parquet and pyarrow is not installed.
    """
    faults = Faults(bad_annotations)
    found: list[Row] = []
    several = weighted = False
    notes: dict[str, None] = {}
    for split, file in tables.files.items():
        cells = read_cells(file)
        columns = choose_columns(cells, path_column, labels_column)
        labels = _labels_of(cells, columns)
        found += _rows(cells, columns, labels, split, faults)
        several |= columns.labels is None or (isinstance(labels, _Labels) and labels.several)
        weighted |= columns.weights is not None
        notes[_describe(cells, columns)] = None
    faults.settle()
    rows, repeated = _once_each(found)
    skipped = dict(faults.counts)
    if repeated:
        skipped["row of an image that an earlier row has alike"] = repeated
    if not rows:
        raise ValueError(f"{tables.names} in {tables.folder} holds no row that can be used")
    beside = f"; not read: {', '.join(tables.beside)}" if tables.beside else ""
    many = ", several classes an image" if several else ""
    note = f"taken as a table: {tables.names}, {' and '.join(notes)}{many}{beside}"
    return Rows(rows=rows, several=several, weighted=weighted, note=note, skipped=skipped)


def _describe(cells: Cells, columns: Columns) -> str:
    parts = [f"paths from {columns.paths!r}"]
    if columns.labels is None:
        parts.append(f"a column of 0 and 1 a class: {quoted(columns.classes)}")
    for what in ("labels", "splits", "groups", "weights"):
        if getattr(columns, what) is not None:
            parts.append(f"{what} from {getattr(columns, what)!r}")
    unused = [name for name in cells.columns if name and name not in columns.used]
    return ", ".join(parts) + (f"; columns not used: {quoted(unused)}" if unused else "")


def _labels_of(cells: Cells, columns: Columns) -> _Labels | list[tuple[str, ...] | None]:
    if columns.labels is not None:
        return _Labels(cells.columns[columns.labels])
    names = [_class_name(name) for name in columns.classes]
    marks = zip(*(map(yes_or_no, cells.columns[name]) for name in columns.classes), strict=True)
    return [
        tuple(name for name, bit in zip(names, row, strict=True) if bit and name) for row in marks
    ]


def _rows(
    cells: Cells,
    columns: Columns,
    labels: _Labels | list[tuple[str, ...] | None],
    split: str | None,
    faults: Faults,
) -> Iterator[Row]:
    """The rows that can be used."""

    def column(name: str | None, default: object) -> Sequence[Any]:
        return [default] * len(cells.numbers) if name is None else cells.columns[name]

    folders = _folders(cells.file)
    paths, splits = column(columns.paths, None), column(columns.splits, None)
    groups, weights = column(columns.groups, None), column(columns.weights, 1.0)
    everything = zip(paths, labels, splits, groups, weights, strict=True)
    for row, (cell, classes, own_split, group, weight) in enumerate(everything):
        with faults.noted(cells.file):
            place = cells.place(row)
            path = _find_image(cell, folders, place)
            if classes is None:
                label = short_repr(cells.columns[columns.labels or ""][row])
                raise EntryFault(
                    "row without a label",
                    f"{place} has the label {label}; expected the name of a class",
                )
            if _weight(weight) is None:
                raise EntryFault(
                    "row without a weight",
                    f"{place} has the weight {short_repr(weight)}; expected a number from 0",
                )
            yield Row(
                path=path,
                classes=classes,
                split=_split_of_row(cells, row, split, split_in(own_split)),
                group=_group(group),
                weight=_weight(weight) or 0.0,
                place=(cells, row),
            )


def _folders(file: Path) -> list[str]:
    """Where the paths of a table may begin."""
    inside = (file.parent / _OFTEN_BESIDE, file.parent / file.stem)
    return [str(file.parent), *(str(folder) for folder in inside if folder.is_dir())]


def _find_image(cell: object, folders: Sequence[str], place: str) -> str:
    if not isinstance(cell, str | int) or not str(cell).strip():
        raise EntryFault(
            "row without a path", f"{place} has the path {short_repr(cell)}; expected an image's"
        )
    name = str(cell).strip().replace("\\", "/")
    for folder in folders:
        path = os.path.normpath(os.path.join(folder, name))
        if os.path.isfile(path):
            return path
    where = "" if os.path.isabs(name) else f" below {' or '.join(folders)}"
    raise EntryFault(
        "row whose image is missing", f"{place} names the image {name!r}, which is not{where} there"
    )


def _split_of_row(cells: Cells, row: int, of_table: str | None, own: str | None) -> str | None:
    if of_table is not None and own is not None and of_table != own:
        raise ValueError(
            f"{cells.place(row)} of {cells.file} is of the split {own!r} in a table of "
            f"{of_table!r}; move the row, or rename the column"
        )
    return of_table or own


def _group(cell: object) -> str | None:
    """What a cell says in words; nothing where it is empty."""
    text = "" if cell is None or cell != cell else str(cell).strip()
    return text or None


def _once_each(found: Sequence[Row]) -> tuple[list[Row], int]:
    """Every image once, and how many rows were the same again."""
    first: dict[str, Row] = {}
    for row in found:
        other = first.setdefault(row.path, row)
        for what, one, two in (
            ("in another split", other.split, row.split),
            ("of another class", other.classes, row.classes),
        ):
            if one != two:
                raise ValueError(
                    f"{row.found_at()} has the image of {other.found_at()}, {row.path}, {what} "
                    f"({_said(two)} and {_said(one)}); keep one of the two"
                )
    return list(first.values()), len(found) - len(first)


def _said(value: str | tuple[str, ...] | None) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple) and value else repr(value)


# --- classes


def classes_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The names of the classes of rows: in order, by value where all are numbers.

    Raises:
        ValueError: If two differ as little as ``find_alike`` says.
    """
    names = sorted({name for row in rows for name in row.classes})
    alike = find_alike(names)
    if alike is not None:
        one, other = (next(row for row in rows if name in row.classes) for name in alike)
        raise ValueError(
            f"{other.found_at()} has the class {alike[1]!r} and {one.found_at()} {alike[0]!r}, "
            "which differ only in capitals or in how a letter is written; write both alike"
        )
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)


def groups_of(rows: Sequence[Row]) -> list[list[int]]:
    """Places of the rows that a table's column of groups keeps together."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if row.group is not None:
            places.setdefault(row.group, []).append(place)
    return list(places.values())


def check_known(rows: Sequence[Row], names: Sequence[str]) -> None:
    """Refuse classes of test images that the training images lack.

    Args:
        rows: Of the test.
        names: Classes of the training images.

    Raises:
        ValueError: If there is one; names the first.
    """
    known = set(names)
    for row in rows:
        for name in row.classes:
            if name not in known:
                raise ValueError(
                    f"{row.found_at()} has the class {name!r}, which no training image has "
                    f"({quoted(names)}); add some, or leave such rows out"
                )
