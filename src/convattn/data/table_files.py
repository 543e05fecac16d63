"""Files that hold tables: where they are, and their cells as they stand there."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convattn.data.folders import split_of, subfolders
from convattn.text import list_names, one_line, short_repr

TABLES: tuple[str, ...] = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Ends of the names of tables, in lower case."""
_METADATA = "metadata"
"""What Hugging Face's imagefolder calls its tables."""
_DELIMITERS = ",;\t"


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
            f"{root} holds {len(names)} tables for {what}, {quoted(names)}; keep one, or give the "
            "one that is meant as root (--data.root)"
        )
    return root / names[0]


# --- what is in their cells


@dataclass(frozen=True, kw_only=True, repr=False)
class Cells:
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
        """Where a row stands, in words.

        Args:
            row: Its number.
        """
        return self.counts.format(self.numbers[row])


def read_cells(file: Path) -> Cells:
    """Every cell of a table.

    Args:
        file: The table.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no table.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; name a table (--data.root)")
    readers: Mapping[str, Callable[[Path], Cells]] = {
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


def _read_text(file: Path) -> Cells:
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
                        f"{len(header)} as the columns {quoted(header)}: put quotes round a cell "
                        "that holds the separator"
                    )
                numbers.append(number)
                rows.append(row)
        except csv.Error as error:
            raise ValueError(
                f"line {start} of {file} is no row of a table ({one_line(error)}); mend its quotes"
            ) from None
    names = _distinct(file, header or [])
    return Cells(
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


def _read_json_lines(file: Path) -> Cells:
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
    return Cells(file=file, columns=columns, numbers=numbers)


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


def _read_parquet(file: Path) -> Cells:
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
    return Cells(
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


def quoted(names: Sequence[str]) -> str:
    """Names of files or columns, for a sentence.

    Args:
        names: Of them.
    """
    return list_names([repr(name) for name in names])
