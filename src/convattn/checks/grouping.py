"""A data set as a table that keeps what looks alike together."""

from __future__ import annotations

import os
from typing import Any

from convattn.checks.copies import Copies
from convattn.classification.out_of_fold import classes_cell
from convattn.data import ImageFiles, Source
from convattn.data.folders import find_equal, number_units
from convattn.text import csv_text


def grouped_table(source: Any, copies: Copies) -> str | None:
    """A CSV with a row an image: path, label, group and, where the data have splits, split.

    Images that are the same, look alike, or were of one group before have one group now, so that no
    draw of a test or validation part, and no fold, parts them. A validation part of the data's own
    keeps its place; nobody has looked for copies in it.

    Args:
        source: The data set.
        copies: Places of its training and test images that are alike.

    Returns:
        The text; None of what is no data set of classified files, or has no copies.
    """
    if not isinstance(source, Source) or not (copies.exact or copies.near):
        return None
    parts = {"train": source.train, "val": source.val, "test": source.test}
    files = {split: part for split, part in parts.items() if isinstance(part, ImageFiles)}
    if "train" not in files or "test" not in files:
        return None
    together = [*copies.exact, *copies.near, *_groups_before(files["train"])]
    units = number_units(len(files["train"]) + len(files["test"]), together)
    first = {"train": 0, "test": len(files["train"])}
    splits = [] if source.test_drawn else ["split"]
    rows: list[list[object]] = [["path", "label", "group", *splits]]
    for split, part in files.items():
        groups = units[first[split] :] if split in first else [""] * len(part)
        for path, label, group in zip(part.paths, part.labels, groups, strict=False):
            named = f"group {group}" if group != "" else ""
            cells = [os.path.realpath(path), classes_cell(label, source.class_names), named]
            rows.append([*cells, *([split] if splits else [])])
    return csv_text(rows)


def _groups_before(images: ImageFiles) -> list[list[int]]:
    return [] if images.groups is None else find_equal(images.groups.tolist())
