"""The files that a detector's test leaves beside its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convattn.charts import draw_counts, draw_precision_recall
from convattn.detection.evaluation import DetectionMetrics, DetectionResult
from convattn.files import replace_atomically, written_whole
from convattn.text import csv_text

_NOTHING = "nothing"
"""What a confusion matrix calls a found box without an object, and an object without a box."""


def write_details(
    folder: Path,
    result: DetectionResult,
    metrics: DetectionMetrics,
    *,
    title: str,
    threshold: float = 0.5,
) -> Sequence[Path]:
    """Write each class's figures and curve, and which class is taken for which.

    Args:
        folder: Where ``per_class.csv``, ``precision_recall.csv`` and its PNG, ``confusion.csv`` and
            its PNG go.
        result: What was found.
        metrics: That found it.
        title: Stands above the figures.
        threshold: Least score of a box in the confusion matrix.

    Returns:
        The files.
    """
    names = metrics.class_names
    rows = [
        (name, count, result.per_class_ap50.get(name), result.per_class.get(name))
        for name, count in result.per_class_objects.items()
    ]
    _write_csv(folder / "per_class.csv", [("class", "objects", "ap50", "ap"), *rows])
    points = [
        (name, f"{recall:.2f}", f"{precision:.6f}", f"{score:.6f}")
        for name, curve in metrics.curves.items()
        for recall, precision, score in zip(curve.recall, curve.precision, curve.score, strict=True)
    ]
    head = ("class", "recall", "precision", "score")
    _write_csv(folder / "precision_recall.csv", [head, *points])
    with written_whole(folder / "precision_recall.png") as part:
        draw_precision_recall(
            {name: (curve.recall, curve.precision) for name, curve in metrics.curves.items()},
            result.per_class_ap50,
            part,
            title=f"{title}: precision over recall at an IoU of 0.5",
        )
    counts = metrics.confusion(threshold)
    table = [(name, *row) for name, row in zip((*names, _NOTHING), counts.tolist(), strict=True)]
    _write_csv(folder / "confusion.csv", [("right class", *names, _NOTHING), *table])
    with written_whole(folder / "confusion.png") as part:
        draw_counts(
            counts,
            (*names, _NOTHING),
            (*names, _NOTHING),
            part,
            title=f"{title}: boxes of a score from {threshold:g}",
        )
    written = ("per_class.csv", "precision_recall.csv", "precision_recall.png")
    return [folder / name for name in (*written, "confusion.csv", "confusion.png")]


def _write_csv(file: Path, rows: Sequence[Sequence[object]]) -> None:
    cells = [["" if cell is None else cell for cell in row] for row in rows]
    replace_atomically(file, csv_text(cells).encode(errors="surrogateescape"))
