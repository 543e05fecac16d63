"""What the benchmarks on a GPU share: rows, the machine's own rates, the time that is left, pages.

Ways of doing a thing take turns. Times are CUDA events', medians with quartiles; a ratio is the
median over neighbouring passes. Memory is what a step allocates at most, with the weights in the
case of networks. The share of the limit is the time that the machine's own rates allow, measured by
a large product and a large copy, over the time taken. What fails is a row that says why, and the
rest goes on.
"""

from __future__ import annotations

import csv
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch

from convattn.bench import Step, compare, describe_error
from convattn.text import markdown_table

DEVICE = "cuda"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
HEAD = ("dtype", "step", "way", "ms", "ratio", "peak MB", "share of the limit")
LAST_COMPILATION_MINUTES = 1.5  # what one begun just in time still takes

Makers = Mapping[str, Callable[[], Step]]
Rates = Mapping[str, float]
"""Operations a second by number format, and "bytes" a second."""


@dataclass(frozen=True)
class Row:
    """What one way of doing a thing cost."""

    case: str
    dtype: str
    step: str
    way: str
    ms: float | None = None
    low: float | None = None
    """First quartile of the milliseconds."""
    high: float | None = None
    """Third quartile of the milliseconds."""
    ratio: float | None = None
    """Of the time, to the case's reference."""
    peak_mb: float | None = None
    limit_share: float | None = None
    """The least time that the machine's rates allow, over the time taken."""
    trouble: str = ""

    def cells(self) -> tuple[str, ...]:
        """For the page."""
        if self.ms is None:
            return (self.dtype, self.step, self.way, self.trouble or "right", "", "", "")
        share = "" if self.limit_share is None else f"{self.limit_share:.1%}"
        return (
            self.dtype,
            self.step,
            self.way,
            f"{self.ms:.3f} ({self.low:.3f} to {self.high:.3f})",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            f"{self.peak_mb:.0f}",
            share,
        )


class Deadline:
    """How long compiling may still begin."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.end = time.monotonic() + 60 * (minutes - LAST_COMPILATION_MINUTES)

    def check(self) -> None:
        """An error when the time is up."""
        if time.monotonic() > self.end:
            raise TimeoutError(f"left out, --minutes {self.minutes:g} were over")


def one_line(error: Exception) -> str:
    """Why something failed, for a cell."""
    return describe_error(error)[:160].replace("|", "/")


def measure(
    ways: Makers, row: Row, reference: str, repeats: int, least_ms: float | None = None
) -> list[Row]:
    """A row a way, all beside each other; with their shares of the limit if that is given."""
    found = compare(
        ways,
        reference=reference,
        repeats=repeats,
        warm_up=3,
        device=DEVICE,
        makes=True,
        memory=True,
        tolerant=True,
    )
    rows = []
    for name, timing in found.timings.items():
        made = replace(row, way=name)
        if timing.error is not None:
            made = replace(made, trouble=timing.error[:160].replace("|", "/"))
        else:
            low, middle, high = found.milliseconds(name)
            ratio = found.ratio(name).median if reference in found.names else None
            made = replace(made, ms=middle, low=low, high=high, ratio=ratio)
        if timing.peak_bytes is not None:
            made = replace(made, peak_mb=timing.peak_bytes / 1e6)
        if least_ms is not None and made.ms is not None:
            made = replace(made, limit_share=least_ms / made.ms)
        print(" | ".join((made.case, *made.cells())), flush=True)
        rows.append(made)
    return rows


def measure_rates() -> Rates:
    """Operations a second of a large matrix product in each format, and bytes of a large copy."""
    steps: dict[str, Step] = {}
    for name, dtype in DTYPES.items():
        a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=dtype) for _ in range(2))
        steps[name] = partial(torch.mm, a, b)
    source = torch.empty(2**28, device=DEVICE)
    steps["bytes"] = partial(torch.empty_like(source).copy_, source)
    found = compare(steps, repeats=10, warm_up=3, device=DEVICE)
    work = {**dict.fromkeys(DTYPES, 2 * 8192**3), "bytes": 2 * source.nbytes}
    return {name: amount / found.seconds(name).median for name, amount in work.items()}


def least_ms(operations: float, moved: float, rates: Rates, dtype: str = "bfloat16") -> float:
    """What the work takes at the machine's rates."""
    return 1e3 * max(operations / rates[dtype], moved / rates["bytes"])


def require_cuda() -> None:
    """Ends the program where there is no device."""
    if not torch.cuda.is_available():
        print("no CUDA device here: --device cuda measures nothing else", file=sys.stderr)
        sys.exit(2)


def provenance(command: str) -> str:
    """The first words of a page."""
    device = torch.cuda.get_device_properties(DEVICE)
    date = time.strftime("%-d %B %Y")
    return f"`{command}`, {device.name}, torch {torch.__version__}, {date}, seed 0."


def run_parts(
    parts: Sequence[partial[list[Row]]],
    rows: list[Row],
    head: Callable[[list[Row]], Sequence[str]],
    out: Path,
) -> None:
    """Measure part by part; write the page and its CSV after each, whatever happens later."""
    for part in parts:
        try:
            rows += part()
        except Exception as error:  # one part that fails leaves the others their turn
            name = part.func.__name__
            rows.append(Row("What stopped a part", "", "", name, trouble=one_line(error)))
        torch.cuda.empty_cache()
        with out.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
        page = list(head(rows))
        for case, group in itertools.groupby(rows, key=lambda row: row.case):
            cells = [row.cells() for row in group]
            page += [f"## {case[0].upper()}{case[1:]}", markdown_table(HEAD, cells)]
        out.write_text("\n\n".join(page) + "\n")
    print(f"wrote {out} and {out.with_suffix('.csv')}")
