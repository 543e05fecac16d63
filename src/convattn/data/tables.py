"""Tables that say of which class each image is: CSV, TSV, JSON lines or parquet."""

from __future__ import annotations

import ast
import codecs
import csv
import json
import math
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from convattn.config import BadAnnotations
from convattn.data.annotated import EntryFault, Faults
from convattn.data.classes import find_alike
from convattn.data.folders import SPLITS, split_of, subfolders
from convattn.text import list_names, nearest, one_line, short_repr

TABLES: tuple[str, ...] = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Ends of the names of tables, in lower case."""

_METADATA = "metadata"
"""What Hugging Face's imagefolder calls its tables."""
_OFTEN_BESIDE = "images"
"""The folder beside a table that its paths may begin in."""
_SEPARATORS = "|;"
"""What stands between several classes in a cell of text."""
_DELIMITERS = ",;\t"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
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


# --- which tables there are


@dataclass(frozen=True, kw_only=True)
class TableFiles:
    """The tables of a data set."""

    folder: Path
    """What people know their names relative to."""
    files: Mapping[str | None, Path]
    """Split -> its table; None: a table of all splits, or of none."""
    beside: tuple[str, ...] = ()
    """Names of tables that are not read."""

    @property
    def names(self) -> str:
        """The tables, for people."""
        return ", ".join(os.path.relpath(file, self.folder) for file in self.files.values())


def is_table(file: Path) -> bool:
    """Whether a file is a table, by its name."""
    return file.suffix.lower() in TABLES


def single_table(file: Path) -> TableFiles:
    """A table that was named itself."""
    return TableFiles(folder=file.parent, files={None: file})


def find_metadata(root: Path) -> TableFiles | None:
    """The tables called ``metadata`` of a folder, or of the folders of its splits.

    Raises:
        ValueError: If there are two for the same images.
    """
    own = tables_in(root, {_METADATA})
    if own:
        others = [name for name in tables_in(root) if name not in own]
        return TableFiles(
            folder=root, files={None: _the_only(root, own, "all images")}, beside=tuple(others)
        )
    found: dict[str | None, list[str]] = {}
    for name in subfolders(root):
        split = split_of(name)
        if split is not None:
            tables = tables_in(root / name, {_METADATA})
            found[split] = [*found.get(split, ()), *(f"{name}/{table}" for table in tables)]
    files = {
        split: _the_only(root, names, f"the split {split}")
        for split, names in found.items()
        if names
    }
    return TableFiles(folder=root, files=files, beside=tuple(tables_in(root))) if files else None


def find_tables(root: Path) -> TableFiles | None:
    """The tables of a folder: ``train.csv``, ``val.csv`` and so on, or the only one.

    Raises:
        ValueError: If there are two for one split, or several and none for a split.
    """
    names = tables_in(root)
    found: dict[str | None, list[str]] = {}
    for name in names:
        split = split_of(Path(name).stem)
        if split is not None:
            found.setdefault(split, []).append(name)
    if found:
        files = {
            split: _the_only(root, tables, f"the split {split}") for split, tables in found.items()
        }
        used = {file.name for file in files.values()}
        beside = tuple(name for name in names if name not in used)
        return TableFiles(folder=root, files=files, beside=beside)
    return single_table(_the_only(root, names, "all images")) if names else None


def tables_in(folder: Path, stems: Container[str] | None = None) -> list[str]:
    """Names of the tables of a folder, sorted; hidden ones are none.

    Args:
        folder: Where to look.
        stems: What they may be called but for the end, in lower case; None: anything.
    """
    return sorted(
        file.name
        for file in folder.iterdir()
        if is_table(file)
        and not file.name.startswith(".")
        and (stems is None or file.stem.lower() in stems)
        and file.is_file()
    )


def _the_only(root: Path, names: Sequence[str], what: str) -> Path:
    if len(names) > 1:
        raise ValueError(
            f"{root} holds {len(names)} tables for {what}, {_quoted(names)}; keep one, or give the "
            "one that is meant as root (--data.root)"
        )
    return root / names[0]


# --- what is in their cells


@dataclass(frozen=True, kw_only=True, repr=False)
class _Cells:
    """A table as it stands in its file."""

    file: Path
    columns: Mapping[str, Sequence[Any]]
    numbers: Sequence[int]
    """Where each row is found."""
    counts: str = "line {}"
    """How that is said."""
    embedded: tuple[str, ...] = ()
    """Columns that are not read: they hold the bytes of files."""

    def place(self, row: int) -> str:
        return self.counts.format(self.numbers[row])


def has_labels(tables: TableFiles) -> bool:
    """Whether a column's name says that the first of the tables has classes.

    Raises:
        ValueError: If it cannot be read.
    """
    cells = _read_cells(next(iter(tables.files.values())))
    return _guess(cells, "labels") is not None


def _read_cells(file: Path) -> _Cells:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; name a table (--data.root)")
    readers: Mapping[str, Callable[[Path], _Cells]] = {
        ".parquet": _read_parquet,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
    }
    try:
        cells = readers.get(file.suffix.lower(), _read_text)(file)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not a text in UTF-8 ({one_line(error)}); save it anew as UTF-8"
        ) from None
    if not cells.numbers:
        raise ValueError(f"{file} holds no rows; expected a row an image under the columns' names")
    return cells


def _read_text(file: Path) -> _Cells:
    numbers: list[int] = []
    rows: list[list[str]] = []
    header: list[str] | None = None
    with file.open(encoding=_encoding(file), newline="") as text:
        delimiter = "\t" if file.suffix.lower() == ".tsv" else _delimiter(text.readline())
        text.seek(0)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        start = 1
        try:
            for row in reader:
                # A cell in quotes may have several lines; the row is found at the first.
                number, start = start, reader.line_num + 1
                if not any(row):
                    continue
                if header is None:
                    header = [name.strip() for name in row]
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"line {number} of {file} holds {len(row)} cells; expected "
                        f"{len(header)} as the columns {_quoted(header)}: put quotes round a cell "
                        "that holds the separator"
                    )
                numbers.append(number)
                rows.append(row)
        except csv.Error as error:
            raise ValueError(
                f"line {start} of {file} is no row of a table ({one_line(error)}); mend its quotes"
            ) from None
    names = _distinct(file, header or [])
    return _Cells(
        file=file, columns=dict(zip(names, zip(*rows, strict=True), strict=False)), numbers=numbers
    )


def _encoding(file: Path) -> str:
    """UTF-8 with a byte order mark or none, or UTF-16 with one."""
    with file.open("rb") as content:
        first = content.read(2)
    return "utf-16" if first in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _delimiter(line: str) -> str:
    """Of a comma, a semicolon and a tab the one that finds the most columns."""

    def columns(delimiter: str) -> int:
        return max(map(len, csv.reader([line], delimiter=delimiter)), default=0)

    return max(_DELIMITERS, key=columns)


def _distinct(file: Path, names: Sequence[str]) -> list[str]:
    name, times = max(Counter(filter(None, names)).items(), key=lambda one: one[1], default=("", 0))
    if times > 1:
        raise ValueError(f"{file} has {times} columns called {name!r}; rename one")
    return list(names)


def _read_json_lines(file: Path) -> _Cells:
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    with file.open(encoding=_encoding(file)) as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"line {number} of {file} is no JSON ({one_line(error)}); expected an object a "
                    'line, as {"file_name": "a.jpg", "label": "cat"}'
                ) from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"line {number} of {file} is no JSON object but {short_repr(row)}; expected "
                    '{"file_name": "a.jpg", "label": "cat"}'
                )
            numbers.append(number)
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return _Cells(file=file, columns=columns, numbers=numbers)


def import_pyarrow(file: Path) -> tuple[Any, Any]:
    """``pyarrow`` and its ``parquet``.

    Args:
        file: That needs them, for the error.

    Raises:
        ModuleNotFoundError: If they are not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{file} needs pyarrow: pip install 'convattn[train]'", name="pyarrow"
        ) from error
    return pa, pq


def _read_parquet(file: Path) -> _Cells:
    pa, pq = import_pyarrow(file)
    try:
        # One column may hold the images themselves, gigabytes of them.
        with pq.ParquetFile(file) as content:
            holds_bytes = {one.name: _holds_bytes(one.type) for one in content.schema_arrow}
            wanted = [name for name, held in holds_bytes.items() if not held]
            table = content.read(columns=wanted)
        table.validate(full=True)
        columns = {name: column.to_pylist() for name, column in zip(wanted, table, strict=True)}
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"{file} cannot be read as parquet ({one_line(error)}); write it anew"
        ) from None
    _distinct(file, wanted)
    return _Cells(
        file=file,
        columns=columns,
        numbers=range(table.num_rows),
        counts="row {} (from 0)",
        embedded=tuple(name for name, held in holds_bytes.items() if held),
    )


def _holds_bytes(kind: Any) -> bool:
    """Whether an Arrow type has cells that are no text, number or list of such."""
    import pyarrow as pa

    if pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return nested and _holds_bytes(kind.value_type)


# --- which column is what


class _Columns(NamedTuple):
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
        return {self.paths, self.labels, *self.classes, self.splits, self.groups, self.weights}


def _choose_columns(cells: _Cells, path_column: str | None, labels_column: str | None) -> _Columns:
    paths = _column(cells, "paths", path_column, "path_column")
    if paths is None:
        if cells.embedded:
            raise ValueError(
                f"{cells.file} holds the images themselves, in its column {cells.embedded[0]!r}; "
                "expected their paths: write each to a file and the names of the files into a "
                'column file_name (docs/data.md, "Images inside a parquet file")'
            )
        raise ValueError(_no_column(cells, "the images' paths", "paths", "path"))
    others: dict[str, str | None] = {
        what: _guess(cells, what, but=(paths, labels_column))
        for what in ("splits", "groups", "weights")
    }
    if others["splits"] and not _are_splits(cells, others["splits"]):
        others["splits"] = None
    labels = _column(cells, "labels", labels_column, "labels_column", but=(paths, *others.values()))
    classes: tuple[str, ...] = ()
    if labels is None:
        classes = _yes_or_no(cells, but=(paths, *others.values()))
        if len(classes) < 2:
            raise ValueError(_no_column(cells, "the images' classes", "labels", "labels"))
    if labels == paths:
        raise ValueError(
            f"labels_column={labels!r} (--data.labels-column) is the column of the paths of "
            f"{cells.file}, too; name that of the classes among {_quoted(list(cells.columns))}"
        )
    return _Columns(paths=paths, labels=labels, classes=classes, **others)


def _column(
    cells: _Cells, what: str, given: str | None, option: str, *, but: Sequence[str | None] = ()
) -> str | None:
    if given is None:
        return _guess(cells, what, but=but)
    if given not in cells.columns:
        flag = option.replace("_", "-")
        raise ValueError(
            f"{cells.file} has no column {option}={given!r} (--data.{flag}), the nearest being "
            f"{nearest(given, cells.columns)!r}; its columns are {_quoted(list(cells.columns))}"
        )
    return given


def _guess(cells: _Cells, what: str, *, but: Sequence[str | None] = ()) -> str | None:
    """The column with the likeliest of the usual names."""
    found: dict[str, str] = {}
    for name in cells.columns:
        if name not in but:
            found.setdefault(re.sub(r"[\W_]+", "", name.casefold()), name)
    return next((found[usual] for usual in _COLUMNS[what] if usual in found), None)


def _no_column(cells: _Cells, meaning: str, what: str, option: str) -> str:
    usual = ", ".join(_COLUMNS[what][:4])
    return (
        f"{cells.file} has no column whose name says that it holds {meaning} ({usual}, ...) but "
        f"{_quoted(list(cells.columns))}; name it (--data.{option}-column), and let the first line "
        "name the columns"
    )


def _are_splits(cells: _Cells, name: str) -> bool:
    """Whether a column holds names of splits, in all its cells or in none."""
    known = [value is not None for value in map(_split, cells.columns[name])]
    if any(known) and not all(known):
        row = known.index(False)
        raise ValueError(
            f"{cells.place(row)} of {cells.file} has {short_repr(cells.columns[name][row])} in the "
            f"column {name!r}; expected a split as other rows have, one of "
            f"{', '.join(word for words in SPLITS.values() for word in words)}"
        )
    return all(known)


def _split(cell: object) -> str | None:
    return split_of(cell.strip()) if isinstance(cell, str) else None


def _yes_or_no(cells: _Cells, *, but: Sequence[str | None]) -> tuple[str, ...]:
    """Columns that hold 0 and 1 alone: a class each."""
    return tuple(
        name
        for name, column in cells.columns.items()
        if name and name not in but and all(_bit(cell) is not None for cell in column)
    )


def _bit(cell: object) -> bool | None:
    return _BITS.get(str(cell).strip())


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


def _quoted(names: Sequence[str]) -> str:
    return list_names([repr(name) for name in names])


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
    place: tuple[_Cells, int]

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
        cells = _read_cells(file)
        columns = _choose_columns(cells, path_column, labels_column)
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


def _describe(cells: _Cells, columns: _Columns) -> str:
    parts = [f"paths from {columns.paths!r}"]
    if columns.labels is None:
        parts.append(f"a column of 0 and 1 a class: {_quoted(columns.classes)}")
    for what in ("labels", "splits", "groups", "weights"):
        if getattr(columns, what) is not None:
            parts.append(f"{what} from {getattr(columns, what)!r}")
    unused = [name for name in cells.columns if name and name not in columns.used]
    return ", ".join(parts) + (f"; columns not used: {_quoted(unused)}" if unused else "")


def _labels_of(cells: _Cells, columns: _Columns) -> _Labels | list[tuple[str, ...] | None]:
    if columns.labels is not None:
        return _Labels(cells.columns[columns.labels])
    names = [_class_name(name) for name in columns.classes]
    marks = zip(*(map(_bit, cells.columns[name]) for name in columns.classes), strict=True)
    return [
        tuple(name for name, bit in zip(names, row, strict=True) if bit and name) for row in marks
    ]


def _rows(
    cells: _Cells,
    columns: _Columns,
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
                split=_split_of_row(cells, row, split, _split(own_split)),
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


def _split_of_row(cells: _Cells, row: int, of_table: str | None, own: str | None) -> str | None:
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
                    f"({_quoted(names)}); add some, or leave such rows out"
                )
