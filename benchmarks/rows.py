"""The table that a study appends its runs to, so that a stopped one goes on."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def append_rows(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows to the end of a table, which begins with its header.

    Args:
        file: The table; its folder is made if it is not there.
        columns: Of the table; what a row has not is left empty.
        rows: What is new.
    """
    new = not file.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="") as table:
        writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows so far; none of a table that is not there.

    Args:
        file: The table.
    """
    if not file.exists():
        return []
    with file.open(newline="") as table:
        return list(csv.DictReader(table))
