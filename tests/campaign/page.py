"""The campaign's table as a page."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from convattn.files import memory_size, replace_atomically
from convattn.modes import num_cores
from convattn.text import markdown_table

_HEAD = """\
# Load, damage and attack

What a campaign of kills, damaged files and hostile ones found: every case ends in the right result,
or is refused in one sentence with exit status 2; anything else, a traceback above all, is a fault.
Seeds are fixed; only the moments of the kills are chance. Seconds are the clock's, of rows that ran
beside others.

```sh
make campaign                                                   # all rows, and this page
.venv/bin/python -m pytest -m campaign tests/campaign/FILE.py   # one row, no page
```

"""


def write_page(file: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows' counts, sorted by the name of their file."""
    rows = sorted(results, key=lambda found: (found["command"], found["name"]))
    counts = [
        (
            found["name"],
            *(f"{found[key]:,}" for key in ("right", "refused", "faults")),
            f"{found['seconds']:.0f}",
        )
        for found in rows
    ]
    keys = ("right", "refused", "faults")
    sums = [f"{sum(found[key] for found in rows):,}" for key in keys]
    seconds = f"{sum(found['seconds'] for found in rows):.0f}"
    table = markdown_table(("row", *keys, "seconds"), [*counts, ("all", *sums, seconds)])
    replace_atomically(file, f"{_HEAD}{_machine()}\n\n{table}\n\n{_what_is_tried(rows)}".encode())


def _machine() -> str:
    return (
        f"{datetime.date.today():%d %B %Y}, on {num_cores()} cores of {_processor()} with "
        f"{memory_size() / 2**30:.0f} GiB, Python {platform.python_version()}, "
        f"PyTorch {torch.__version__.partition('+')[0]}."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.machine()


def _what_is_tried(rows: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for found in rows:
        figures = "".join(f" {figure}." for figure in found["figures"])
        parts.append(f"- **{found['name']}** (`{found['command']}`): {found['tries']}{figures}\n")
    return "## What each row tries\n\n" + "".join(parts)
