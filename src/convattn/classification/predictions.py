"""What a classifier said of every image: kept while a test goes on, summed up when it ends."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from convattn.files import reading
from convattn.text import csv_cell, csv_text

THRESHOLD = 0.5
"""Score from which on an image is taken to have a class, where it may have several."""
NUM_RANKS = 5
"""Classes that are kept of an image at most, the likeliest first."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a classifier said of N images, on the CPU; class numbers count from 0."""

    labels: Tensor
    """The right classes, (N,) int64."""
    classes: Tensor
    """The likeliest classes, the likeliest first, (N, 5) int64; fewer where there are fewer."""
    losses: Tensor
    """Cross-entropy in nats, (N,) float64."""
    confidences: Tensor | None = None
    """Probability of the likeliest class, (N,) float64; None in files that lack it."""
    peaks: Tensor | None = None
    """Whether the attention peaks inside the object's box, (N,) bool; None without box or map."""
    energies: Tensor | None = None
    """Share of the attention inside the box, (N,) float64; None without box or map."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> Tensor:
        """Which of the likeliest classes is the right one, (N, 5) bool."""
        return self.classes == self.labels[:, None]

    def columns(self) -> dict[str, list[int] | list[float]]:
        """What a file keeps of each image, by the columns' names; what is right comes first."""
        ranks = self.classes.unbind(1)
        columns = {
            "label": self.labels.tolist(),
            "loss": self.losses.tolist(),
            **{f"rank{rank}": column.tolist() for rank, column in enumerate(ranks, start=1)},
        }
        if self.confidences is not None:
            columns["confidence"] = self.confidences.tolist()
        if self.peaks is not None and self.energies is not None:
            columns["peak_in_box"] = self.peaks.int().tolist()
            columns["energy_in_box"] = self.energies.tolist()
        return columns


@dataclass(frozen=True, kw_only=True)
class MultiLabelPredictions:
    """What a classifier said of N images that may have several classes, on the CPU."""

    labels: Tensor
    """Which classes an image has, (N, K) bool."""
    scores: Tensor
    """How likely the network finds each class, (N, K) float32, between 0 and 1."""
    losses: Tensor
    """Binary cross-entropy in nats, the mean over the classes, (N,) float64."""

    def __len__(self) -> int:
        return len(self.labels)

    def columns(self) -> dict[str, list[int] | list[float]]:
        """What a file keeps of each image, by the columns' names; what is right comes first."""
        labels, scores = self.labels.int().unbind(1), self.scores.unbind(1)
        return {
            **{f"label{number}": column.tolist() for number, column in enumerate(labels)},
            "loss": self.losses.tolist(),
            **{f"score{number}": column.tolist() for number, column in enumerate(scores)},
        }


AnyPredictions = TypeVar("AnyPredictions", Predictions, MultiLabelPredictions)


def join(parts: Sequence[AnyPredictions]) -> AnyPredictions:
    """Predictions one after the other.

    Args:
        parts: At least one, of the same network.
    """
    kind = type(parts[0])

    def joined(name: str) -> Any:
        column = [getattr(part, name) for part in parts]
        return None if column[0] is None else torch.cat(column)

    return kind(**{field.name: joined(field.name) for field in fields(kind)})


class PredictionsFile:
    """``predictions.csv``: one row an image, at hand while the test goes on.

    Columns are the image, the number of its class, the cross-entropy, the likeliest classes'
    numbers, the probability of the likeliest, and of the attention what ``Predictions`` has; where
    images have several classes, for each class 1 or 0, the loss, and the score of each. Numbers are
    written so that reading gives the same bits.

    Args:
        path: The file.
        images: Name of each image of the test, in order.
    """

    def __init__(self, path: Path, images: Sequence[str]) -> None:
        self.path = path
        self.images = images
        self._rows = 0

    def rewind(self, labels: Tensor, batch_size: int) -> Predictions | MultiLabelPredictions | None:
        """Read what a test that was stopped has left, and cut off what is no whole batch.

        Whole batches only, since the bits of a result can depend on what else was in its batch.

        Args:
            labels: The right classes of all images, (N,), or (N, K) bool.
            batch_size: Images a batch.

        Returns:
            The predictions of the first images; None if there is no whole batch.

        Raises:
            ValueError: If they are of other images or other labels.
        """
        header, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        columns = (_cells(header) or [])[1:]
        rows = list(_whole_rows(lines, columns))
        count = len(rows)
        if count < len(self.images):
            count -= count % batch_size
        truths = labels.reshape(len(labels), -1).int().tolist()
        there = zip(rows[:count], self.images, truths, strict=False)
        for number, ((name, numbers), image, truth) in enumerate(there, start=1):
            kept = numbers[: len(truth)]
            if (name, kept) != (csv_cell(image), truth):
                raise ValueError(
                    f"row {number} of {self.path} is of {name}, {_classes_said(kept)}, where the "
                    f"data have {image}, {_classes_said(truth)}: the data have changed, test anew"
                )
        with reading(self.path, "remove it, and the test begins anew"):
            found = _of_rows([numbers for _, numbers in rows[:count]], columns) if count else None
        self._rows = count
        os.truncate(self.path, len(header) + sum(map(len, lines[:count])) if count else 0)
        return found

    def append(self, predictions: Predictions | MultiLabelPredictions) -> None:
        """Add the rows of the next images.

        Args:
            predictions: Of a batch.
        """
        columns = predictions.columns()
        end = self._rows + len(predictions)
        names = self.images[self._rows : end]
        rows = zip(names, *columns.values(), strict=True)
        header = [] if self._rows else [("image", *columns)]
        with self.path.open("ab") as file:
            file.write(csv_text([*header, *rows]).encode(errors="surrogateescape"))
        self._rows = end


def _classes_said(truth: Sequence[float]) -> str:
    """The class, or the several, that the first numbers of a row mean."""
    if len(truth) == 1:
        return f"class {truth[0]:.0f}"
    return f"classes {', '.join(str(place) for place, bit in enumerate(truth) if bit) or 'none'}"


def _of_rows(
    rows: Sequence[Sequence[float]], columns: Sequence[str]
) -> Predictions | MultiLabelPredictions:
    """What ``columns`` of either was made of."""
    table = dict(zip(columns, torch.tensor(rows, dtype=torch.float64).unbind(1), strict=True))

    def numbered(word: str) -> Tensor:
        return torch.stack([column for name, column in table.items() if name.startswith(word)], 1)

    if "label" not in table:
        return MultiLabelPredictions(
            labels=numbered("label").bool(), scores=numbered("score").float(), losses=table["loss"]
        )
    peaks = table.get("peak_in_box")
    return Predictions(
        labels=table["label"].long(),
        classes=numbered("rank").long(),
        losses=table["loss"],
        confidences=table.get("confidence"),
        peaks=None if peaks is None else peaks.bool(),
        energies=table.get("energy_in_box"),
    )


def _whole_rows(
    lines: Iterable[bytes], columns: Sequence[str]
) -> Iterator[tuple[str, list[float]]]:
    """Image and numbers of each line, up to the first that was torn."""
    for line in lines:
        image, *numbers = _cells(line) or [""]
        if len(numbers) != len(columns):
            return
        try:
            yield image, [float(number) for number in numbers]
        except ValueError:
            return


def _cells(line: bytes) -> list[str] | None:
    """The cells of a whole line."""
    if not line.endswith(b"\n"):
        return None
    return next(csv.reader([line.decode(errors="surrogateescape")]))


def per_class_table(
    predictions: Predictions, class_names: Sequence[str], wnids: Sequence[str] | None = None
) -> str:
    """How each class fares, as the text of a CSV file.

    Columns: number, WordNet id where there are some, name, images, top1, top5 where there are more
    than five classes, the class that its images are mistaken for most often, and how often. A class
    without images has a row too.

    Args:
        predictions: Of all images.
        class_names: Name of each class number.
        wnids: Its WordNet id, alike.
    """
    count = len(class_names)
    right = predictions.right
    images = torch.bincount(predictions.labels, minlength=count).tolist()
    ranks = {"top1": right[:, 0]} | ({"top5": right.any(1)} if count > NUM_RANKS else {})
    shares = [
        torch.bincount(predictions.labels[hit], minlength=count).tolist() for hit in ranks.values()
    ]
    mistakes = {label: (taken, times) for label, taken, times in reversed(confusions(predictions))}
    header = ("number", "wnid", "name", "images", *ranks, "mistaken_for", "times")
    rows: list[Sequence[object]] = [header]
    for number, (name, seen, *hits) in enumerate(zip(class_names, images, *shares, strict=True)):
        taken, times = mistakes.get(number, (None, 0))
        rows.append(
            (
                number,
                "" if wnids is None else wnids[number],
                name,
                seen,
                *(hit / seen if seen else "" for hit in hits),
                "" if taken is None else class_names[taken],
                times,
            )
        )
    return csv_text(rows)


def average_precision_table(
    predictions: MultiLabelPredictions, class_names: Sequence[str], precisions: Mapping[str, float]
) -> str:
    """How each of several classes an image fares, as the text of a CSV file.

    Columns: number, name, images that have it, images that are taken to have it, average precision.

    Args:
        predictions: Of all images.
        class_names: Name of each class number.
        precisions: Average precision of each class that has images.
    """
    having = predictions.labels.sum(0).tolist()
    taken = (predictions.scores >= THRESHOLD).sum(0).tolist()
    rows: list[Sequence[object]] = [("number", "name", "images", "taken", "average_precision")]
    for number, (name, *counts) in enumerate(zip(class_names, having, taken, strict=True)):
        rows.append((number, name, *counts, precisions.get(name, "")))
    return csv_text(rows)


def confusions(predictions: Predictions) -> list[tuple[int, int, int]]:
    """Which class was taken for which other, and how often, the most frequent first.

    Args:
        predictions: Of all images.

    Returns:
        Right class, class that it was taken for, times; equally frequent ones by their numbers.
    """
    wrong = ~predictions.right[:, 0]
    pairs = torch.stack([predictions.labels[wrong], predictions.classes[wrong, 0]], 1)
    found, times = pairs.unique(dim=0, return_counts=True)
    order = times.argsort(descending=True, stable=True)
    return [
        (label, taken, number)
        for (label, taken), number in zip(found[order].tolist(), times[order].tolist(), strict=True)
    ]
