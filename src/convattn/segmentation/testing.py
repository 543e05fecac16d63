"""The files that a segmenter's test leaves beside its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convattn.charts import draw_counts
from convattn.files import replace_atomically, written_whole
from convattn.segmentation.evaluation import SegmentationMetrics, SegmentationResult
from convattn.text import csv_text


def write_details(
    folder: Path, result: SegmentationResult, metrics: SegmentationMetrics, *, title: str
) -> Sequence[Path]:
    """Write each class's figures, and which class is taken for which.

    Args:
        folder: Where ``per_class.csv``, ``confusion.csv`` and its PNG go.
        result: What was found.
        metrics: That found it.
        title: Stands above the figure.

    Returns:
        The files.
    """
    names = metrics.class_names
    rows = [
        (name, count, result.per_class.get(name, ""), result.per_class_accuracy.get(name, ""))
        for name, count in result.per_class_pixels.items()
    ]
    counts = metrics.confmat.cpu().numpy()
    table = [(name, *row) for name, row in zip(names, counts.tolist(), strict=True)]
    for file, content in (
        ("per_class.csv", [("class", "pixels", "iou", "accuracy"), *rows]),
        ("confusion.csv", [("right class", *names), *table]),
    ):
        text = csv_text(content)
        replace_atomically(folder / file, text.encode(errors="surrogateescape"))
    with written_whole(folder / "confusion.png") as part:
        draw_counts(counts, names, names, part, title=f"{title}: pixels")
    return [folder / name for name in ("per_class.csv", "confusion.csv", "confusion.png")]
