"""Words that messages share."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of ``names`` that is spelt most like ``name``.

    Args:
        names: What would have been right; at least one.

    Example:
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

    Example:
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

    Example:
        >>> short_repr("abcdefghij", 9)
        "'abcde..."
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str) -> str:
    r"""A text that does nothing to a terminal, whoever named the file or class that it tells of.

    Args:
        text: Of any characters; such as are not printed become their escapes.

    Example:
        >>> printable("red \x1b[31m, Jürgen")
        'red \\x1b[31m, Jürgen'
    """
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, every column as wide as its widest cell.

    Args:
        rows: At least one; all of as many cells.

    Example:
        >>> aligned([("a", "one"), ("name", "two")])
        ['a     one', 'name  two']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def report(message: str) -> None:
    """Tell something on stderr, in one line.

    Args:
        message: What to tell.
    """
    # Processes that help the first one would only say the same again.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"convattn: {printable(message)}", file=sys.stderr)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
        head: Names of the columns.
        rows: Cells, as many as columns.

    Example:
        >>> print(markdown_table(("a", "b"), [("1", "2")]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shorten_name(name: str) -> str:
    """The first of a class's names (ImageNet has several), cut to fit beside others.

    Args:
        name: Of a class.

    Example:
        >>> shorten_name("tench, Tinca tinca")
        'tench'
    """
    first = name.split(", ")[0]
    return first if len(first) <= 22 else first[:21] + "…"
