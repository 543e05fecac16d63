"""Words that messages share."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from convattn.launching import is_first_process


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of ``names`` that is spelt most like ``name``.

    Args:
        names: What would have been right; at least one.

    Examples:
        >>> nearest("resnet5", ["resnet50", "convnext_tiny"])
        'resnet50'
    """
    return nearest_few(name, names)[0]


def nearest_few(name: str, names: Iterable[str]) -> list[str]:
    """The three of ``names`` that are spelt most like ``name``, the nearest first.

    Args:
        names: What would have been right; fewer than three give all.
    """
    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.0)


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())


def list_names(names: Sequence[str], most: int = 10) -> str:
    """The first of some names, and how many more there are.

    Args:
        names: All of them.
        most: How many are told.

    Examples:
        >>> list_names(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def short_repr(value: object, most: int = 60) -> str:
    """A value as Python writes it, cut where it is long.

    Args:
        value: Anything.
        most: Characters that are shown, at least 3.

    Examples:
        >>> short_repr("abcdefghij", 9)
        "'abcde..."
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def cut(text: str, most: int) -> str:
    """A text without its middle, where it is long.

    Args:
        text: Of any characters.
        most: Characters that are kept.

    Examples:
        >>> cut("abcdefghijkl", 6)
        'abcd ... kl'
    """
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]} ... {text[len(text) - most + head :]}"


def printable(text: str) -> str:
    r"""A text that does nothing to a terminal, whoever named the file or class that it tells of.

    Args:
        text: Of any characters; such as are not printed become their escapes.

    Examples:
        >>> printable("red \x1b[31m, Jürgen")
        'red \\x1b[31m, Jürgen'
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )


def say(text: str, *, flush: bool = False) -> None:
    """Print lines in which names from outside do nothing to the terminal.

    Args:
        text: Lines; a name that could hold a line break of its own is made ``printable`` before.
        flush: Whether it is to be seen at once.
    """
    print("\n".join(map(printable, text.split("\n"))), flush=flush)


def figure_text(text: str) -> str:
    r"""A text that matplotlib draws as it stands, and does not take for a formula.

    Examples:
        >>> figure_text("$x^2$\n")
        '\\$x^2\\$\\n'
    """
    return printable(text).replace("$", r"\$")


_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {c: f"\\{c}" for c in "\\`[]|"}
)


def markdown_text(text: str) -> str:
    r"""A text that Markdown shows as it stands: no HTML, no link, no cell of a table ends in it.

    Args:
        text: Of any characters.

    Examples:
        >>> markdown_text("<b>a|b")
        '&lt;b&gt;a\\|b'
    """
    return printable(text.translate(_MARKDOWN))


_STARTS_FORMULA = ("=", "+", "-", "@")
_BREAKS = {"Cc", "Zl", "Zp"}
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def csv_cell(text: str) -> str:
    r"""A text as the cell of a CSV file, of which no program that opens it makes anything else.

    Line breaks and other control characters become their escapes; what a spreadsheet would compute
    gets an apostrophe before it, as spreadsheets have it.

    Args:
        text: Of any characters.

    Examples:
        >>> csv_cell("=1+1"), csv_cell("-0.5"), csv_cell("a\nb")
        ("'=1+1", '-0.5', 'a\\nb')
    """
    safe = "".join(
        one.encode("unicode_escape").decode()
        if unicodedata.category(one) in _BREAKS or one in _TURNS
        else one
        for one in text
    )
    return f"'{safe}" if safe.startswith(_STARTS_FORMULA) and not _is_number(safe) else safe


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as the text of a CSV file.

    Args:
        rows: Of numbers, and texts that become ``csv_cell``s.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([csv_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON text; JSON knows no NaN and no infinity, which become null.

    Args:
        value: Of JSON's types; tuples are lists.
        indent: Spaces a level; None writes one line.

    Examples:
        >>> json_text({"loss": float("nan"), "top1": 0.5})
        '{"loss": null, "top1": 0.5}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, every column as wide as its widest cell.

    Args:
        rows: At least one; all of as many cells, which are made ``printable``.

    Examples:
        >>> aligned([("a", "one"), ("name", "two")])
        ['a     one', 'name  two']
    """
    rows = [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def report(message: str, *, by_each: bool = False) -> None:
    """Tell something on stderr, in one line.

    Args:
        message: What to tell.
        by_each: Whether processes that help the first one tell it, too.
    """
    # They would mostly only say the same again.
    if by_each or is_first_process():
        print(f"convattn: {printable(message)}", file=sys.stderr)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
        head: Names of the columns.
        rows: Cells, as many as columns; each is made ``markdown_text``.

    Examples:
        >>> print(markdown_table(("a", "b"), [("1", "2")]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    cells = (list(map(markdown_text, row)) for row in rows)
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shorten_name(name: str) -> str:
    """The first of a class's names (ImageNet has several), cut to fit beside others.

    Args:
        name: Of a class.

    Examples:
        >>> shorten_name("tench, Tinca tinca")
        'tench'
    """
    first = name.split(", ")[0]
    return first if len(first) <= 22 else first[:21] + "…"
