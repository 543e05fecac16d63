"""A data set as a table that keeps what looks alike together."""

from __future__ import annotations

import os
from typing import Any

from convattn.checks.copies import Copies
from convattn.classification.out_of_fold import classes_cell
from convattn.data import ImageFiles, Source
from convattn.data.counts import parts_of
from convattn.data.drawing import find_equal, number_units
from convattn.text import csv_text


def grouped_table(source: Any, copies: Copies) -> str | None:
    """A CSV with a row an image: path, label, group and, where the data have splits, split.

    Images that are the same, look alike, or were of one group before have one group now, so that no
    draw of a test or validation part, and no fold, parts them.

    Args:
        source: The data set.
        copies: Places of its images that are alike, part after part.

    Returns:
        The text; None of what is no data set of classified files, or has no copies.
    """
    if not isinstance(source, Source) or not (copies.exact or copies.near):
        return None
    parts = parts_of(source)
    files = {split: part for split, part in parts.items() if isinstance(part, ImageFiles)}
    if len(files) < len(parts):
        return None
    together = [*copies.exact, *copies.near, *_groups_before(files["train"])]
    units = iter(number_units(sum(map(len, files.values())), together))
    splits = [] if source.test_drawn else ["split"]
    rows: list[list[object]] = [["path", "label", "group", *splits]]
    for split, part in files.items():
        for path, label in zip(part.paths, part.labels, strict=True):
            group = f"group {next(units)}"
            cells = [os.path.realpath(path), classes_cell(label, source.class_names), group]
            rows.append([*cells, *([split] if splits else [])])
    return csv_text(rows)


def _groups_before(images: ImageFiles) -> list[list[int]]:
    return [] if images.groups is None else find_equal(images.groups.tolist())
