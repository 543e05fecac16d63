"""Lists of names, paths and classes that lie beside images, as text files."""

from __future__ import annotations

import codecs
from pathlib import Path


def read_table(file: Path, num_columns: int) -> list[list[str]]:
    """The lines of a text file, cut at the tabs.

    Args:
        file: As ``read_text`` reads it.
        num_columns: Of every line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, no text, or a line has another number of columns.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; fetch the data set anew")
    rows = [line.split("\t") for line in read_lines(file, "fetch it anew")]
    if not rows:
        raise ValueError(f"{file} is empty; fetch it anew")
    for number, row in enumerate(rows, start=1):
        if len(row) != num_columns:
            raise ValueError(
                f"line {number} of {file} holds {len(row)} columns; expected {num_columns}, with "
                "a tab between two"
            )
    return rows


def read_text(file: Path) -> str:
    """A text in UTF-8, with a byte order mark or none, or in UTF-16 with one.

    Raises:
        UnicodeDecodeError: If it is none.
    """
    content = file.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if marked else "utf-8-sig")


def read_lines(file: Path, advice: str = "save it as one") -> list[str]:
    """The lines of a text file.

    Args:
        file: As ``read_text`` reads it.
        advice: What an error tells to do.

    Raises:
        ValueError: If it is no text.
    """
    try:
        return read_text(file).splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a text in UTF-8; {advice}") from error


def first_word(words: str) -> str:
    """``goldfish`` of ``goldfish, Carassius auratus``."""
    return words.split(",")[0].strip()
