"""What a test found, for people and for programs, whatever was tested."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convattn.text import aligned, json_text, markdown_table, printable

Rows = list[tuple[str, str]]
"""Names and values."""
Table = list[Sequence[str]]
"""Rows of cells, the titles of the columns first."""


@dataclass(frozen=True, kw_only=True)
class Results(ABC):
    """What a test found; shares lie between 0 and 1."""

    num_images: int
    """Images looked at."""

    @abstractmethod
    def rows(self) -> Rows:
        """Names and values for people; what is not defined is left out."""

    def class_table(self) -> Table:
        """What was found of each class; nothing where the rows say all."""
        return []

    def table(self) -> str:
        """The rows as a small table, the values flush right, and below it that of the classes."""
        rows = [(printable(name), printable(value)) for name, value in self.rows()]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value:>8}" for name, value in rows]
        if classes := self.class_table():
            lines += ["", *aligned([list(map(printable, row)) for row in classes])]
        return "\n".join(lines)

    def markdown(self) -> str:
        """Both tables in Markdown."""
        text = markdown_table(("result", "value"), self.rows())
        if classes := self.class_table():
            head, *rows = classes
            text += f"\n\n{markdown_table(head, rows)}"
        return text

    def to_json(self) -> str:
        """All of it as JSON text."""
        return json_text(dataclasses.asdict(self), indent=2) + "\n"


def percentages(shares: Mapping[str, float | None]) -> Rows:
    """Shares as people read them; those that are not defined are left out.

    Args:
        shares: What each is called, and its value between 0 and 1.
    """
    return [(name, f"{share:.2%}") for name, share in shares.items() if share is not None]


def percentage(share: float | None) -> str:
    """A share as people read it; "-" for one that is not defined.

    Args:
        share: Between 0 and 1.

    Examples:
        >>> percentage(0.5), percentage(None)
        ('50.00%', '-')
    """
    return "-" if share is None else f"{share:.2%}"


def worst_class(per_class: Mapping[str, float]) -> Rows:
    """The row that names the worst of several classes; none for a single class.

    Args:
        per_class: Value of each class, between 0 and 1.
    """
    if len(per_class) < 2:
        return []
    worst = min(per_class, key=per_class.__getitem__)
    return percentages({f"worst class, {worst}": per_class[worst]})
