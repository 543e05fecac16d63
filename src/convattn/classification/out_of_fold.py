"""``out_of_fold.csv``: what a cross-validation said of images, each not learnt by who judged it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from convattn.text import csv_cell, csv_text

OUT_OF_FOLD = "out_of_fold.csv"
"""Name of the file in a run folder."""


def out_of_fold_table(
    names: Sequence[str],
    labels: Tensor,
    folds: Tensor,
    probabilities: Tensor,
    class_names: Sequence[str],
) -> str:
    """The text of the file: path, class, fold, what it is taken for, and all probabilities a row.

    Args:
        names: Paths of the images, or their numbers.
        labels: (N,) class numbers; or (N, K) of 0 and 1: then ``;`` stands between the names, and
            nothing tells what an image is taken for.
        folds: (N,) numbers from 0 of the folds; the file counts from 1.
        probabilities: (N, K).
        class_names: Name of each class number.
    """
    several = labels.ndim == 2
    rows: list[list[object]] = [[*_columns(several=several), *class_names]]
    for name, label, fold, shares in zip(names, labels, folds, probabilities, strict=True):
        said = [] if several else [class_names[int(shares.argmax())]]
        cells = [name, classes_cell(label, class_names), int(fold) + 1, *said]
        rows.append([*cells, *(f"{share:.6f}" for share in shares.tolist())])
    return csv_text(rows)


def classes_cell(label: Tensor, names: Sequence[str]) -> str:
    """The class of an image, or all that it has, as a cell of a table.

    Args:
        label: A number, or (K,) of 0 and 1.
        names: Name of each class number.
    """
    there = [int(label)] if label.ndim == 0 else label.nonzero()[:, 0].tolist()
    return ";".join(names[one] for one in there)


def _columns(*, several: bool) -> list[str]:
    return ["path", "label", "fold", *([] if several else ["prediction"])]


def read_out_of_fold(file: Path, class_names: Sequence[str]) -> dict[str, list[float]]:
    """Probabilities of every class by the paths, as ``csv_cell`` has them, of images of one class.

    Args:
        file: What ``convattn finetune --folds`` left.
        class_names: Name of each class number.

    Raises:
        ValueError: If it is of other classes, or damaged.
    """
    columns = _columns(several=False)
    with file.open(newline="", encoding="utf-8") as lines:
        header, *rows = csv.reader(lines)
    if header != [*columns, *map(csv_cell, class_names)]:
        raise ValueError(
            f"{file} has other columns than {', '.join(columns)} and the classes of its run; "
            "restore it, or delete it to have the network alone judge"
        )
    try:
        return {row[0]: [float(cell) for cell in row[len(columns) :]] for row in rows}
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}; restore it, or delete it") from None
