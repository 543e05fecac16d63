"""``report.html``: what was trained on what, how good it is, and why it decides as it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convattn.data import ImageFiles, UnreadableImageError, read_image
from convattn.data.counts import Finding
from convattn.explanation import Explanation, explain_classes
from convattn.finetuning.images import Images
from convattn.finetuning.results import (
    Bin,
    ClassScores,
    FinetunedMultiLabelResult,
    FinetunedResult,
    reliability,
)
from convattn.pages import Picture, embed, render

_SIDE = 300  # pixels of a picture
_MISTAKES, _RIGHT = 12, 8
_MOST_CELLS = 30  # classes of a confusion matrix
_PAIRS = 30
_ROWS = 100  # of the table of classes


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Images that a network was judged by, and what it says of them."""

    numbers: Tensor
    """(N,), of the images."""
    probabilities: Tensor
    """(N, K), after the temperature."""
    labels: Tensor
    """(N,) class numbers, or (N, K) of 0 and 1."""

    @property
    def losses(self) -> Tensor:
        """(N,) nats; of several classes their mean."""
        x = self.probabilities.double().clamp(1e-12, 1 - 1e-12)
        if self.labels.ndim == 2:
            truths = self.labels.double()
            return -(truths * x.log() + (1 - truths) * (1 - x).log()).mean(1)
        return -x.gather(1, self.labels[:, None])[:, 0].log()


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the page says beside its numbers."""

    title: str
    """What was trained on what."""
    summary: str
    """A sentence or two below it."""
    findings: Sequence[Finding]
    """About the data."""
    notes: Sequence[str]
    """What was left out of the data."""
    settings: Sequence[tuple[str, str]]
    """What was trained, by name."""
    curves: Sequence[Mapping[str, Any]]
    """Of the training, as ``parts.html`` draws them."""
    command: str
    """That repeats it."""
    folder: str
    """Of the run."""


def render_report(
    result: FinetunedResult | FinetunedMultiLabelResult,
    judged: Judged,
    images: Images,
    model: nn.Module,
    told: Told,
    thresholds: Sequence[float] | None,
) -> bytes:
    """The page as one HTML file.

    Args:
        result: The numbers.
        judged: The images that they are of.
        images: All images.
        model: The final network, which draws the maps.
        told: What else it says.
        thresholds: Of images of several classes.
    """
    said = _said(judged, thresholds)
    values = {
        "result": result,
        "rows": result.rows(),
        "told": told,
        "class_head": _class_head(result),
        "class_rows": _class_rows(result),
        "more_classes": max(0, len(images.class_names) - _ROWS),
        "confusion": _confusion(judged, images.class_names),
        "pairs": _pairs(judged, images.class_names),
        "bins": _bins(judged),
        "mistakes": list(_shown(model, images, judged, said, thresholds, wrong=True)),
        "right": list(_shown(model, images, judged, said, thresholds, wrong=False)),
        "num_wrong": int((~said).sum()),
    }
    return render("convattn.finetuning", "report.html", values)


def _taken(judged: Judged, thresholds: Sequence[float] | None) -> Tensor:
    """Classes that each image is taken to have, (N, K) bool."""
    if thresholds is not None:
        return judged.probabilities >= torch.tensor(thresholds)
    likeliest = judged.probabilities.argmax(1)
    return torch.nn.functional.one_hot(likeliest, judged.probabilities.shape[1]).bool()


def _said(judged: Judged, thresholds: Sequence[float] | None) -> Tensor:
    """Whether all that is said of each image is right, (N,) bool."""
    if thresholds is None:
        return judged.probabilities.argmax(1) == judged.labels
    return (_taken(judged, thresholds) == judged.labels.bool()).all(1)


def _class_head(result: FinetunedResult | FinetunedMultiLabelResult) -> list[str]:
    head = ["class", "images", "recall", "precision", "F1"]
    several = isinstance(result, FinetunedMultiLabelResult)
    return [*head, "average precision", "threshold"] if several else head


def _class_rows(result: FinetunedResult | FinetunedMultiLabelResult) -> list[list[Any]]:
    """The worst classes first."""
    several = isinstance(result, FinetunedMultiLabelResult)

    def value(item: tuple[str, ClassScores]) -> float:
        found = item[1].average_precision if several else item[1].recall
        return 2.0 if found is None else found

    rows = []
    for name, one in sorted(result.per_class.items(), key=value)[:_ROWS]:
        row = [name, one.num_images, *map(_percent, (one.recall, one.precision, one.f1))]
        if several:
            row += [_percent(one.average_precision), _percent(one.threshold)]
        rows.append(row)
    return rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _confusion(judged: Judged, names: Sequence[str]) -> dict[str, Any] | None:
    """Rows of true classes, columns of what they are taken for; None for many or several."""
    if judged.labels.ndim == 2 or len(names) > _MOST_CELLS:
        return None
    counts = _counts(judged, len(names))
    totals = counts.sum(1).clamp(min=1)
    return {
        "names": list(names),
        "rows": [
            {
                "name": name,
                "cells": [
                    {
                        "count": int(counts[row, column]),
                        "share": round(float(counts[row, column] / totals[row]), 3),
                    }
                    for column in range(len(names))
                ],
            }
            for row, name in enumerate(names)
        ],
    }


def _counts(judged: Judged, num_classes: int) -> Tensor:
    places = judged.labels * num_classes + judged.probabilities.argmax(1)
    return torch.bincount(places, minlength=num_classes**2).view(num_classes, num_classes)


def _pairs(judged: Judged, names: Sequence[str]) -> list[list[Any]]:
    """What is most often taken for what, where there are too many classes for a matrix."""
    if judged.labels.ndim == 2 or len(names) <= _MOST_CELLS:
        return []
    counts = _counts(judged, len(names))
    counts.fill_diagonal_(0)
    amounts, places = counts.flatten().topk(_PAIRS)
    return [
        [names[place // len(names)], names[place % len(names)], amount]
        for amount, place in zip(amounts.tolist(), places.tolist(), strict=True)
        if amount
    ]


def _bins(judged: Judged) -> list[Bin]:
    if judged.labels.ndim == 2:
        return reliability(judged.probabilities.flatten(), judged.labels.bool().flatten())
    confidences, said = judged.probabilities.max(1)
    return reliability(confidences, said == judged.labels)


def _shown(
    model: nn.Module,
    images: Images,
    judged: Judged,
    said: Tensor,
    thresholds: Sequence[float] | None,
    *,
    wrong: bool,
) -> Iterator[list[Picture]]:
    """Groups of pictures: an image, and its evidence for what is said and for what is true."""
    losses = judged.losses
    order = losses.argsort(descending=True, stable=True)
    chosen = order[~said[order]][:_MISTAKES] if wrong else _spread(order[said[order]], _RIGHT)
    taken = _taken(judged, thresholds)
    for place in chosen.tolist():
        classes = _classes_to_explain(judged, taken, place)
        found = _explain(model, images, int(judged.numbers[place]), classes)
        if found:
            yield _pictures(found, images, judged, taken, place)


def _spread(places: Tensor, number: int) -> Tensor:
    number = min(number, len(places))
    return places[(torch.arange(number) * len(places)) // max(1, number)]


def _classes_to_explain(judged: Judged, taken: Tensor, place: int) -> list[int]:
    """What it is taken for and what it is, at most three."""
    likeliest = judged.probabilities[place].argsort(descending=True).tolist()
    if judged.labels.ndim == 1:
        return list(dict.fromkeys([likeliest[0], int(judged.labels[place])]))
    both = taken[place] | judged.labels[place].bool()
    return [one for one in likeliest if both[one]][:3] or likeliest[:1]


def _explain(
    model: nn.Module, images: Images, number: int, classes: Sequence[int]
) -> list[Explanation]:
    source = images.all
    try:
        image: Any = (
            read_image(source.paths[number])
            if isinstance(source, ImageFiles) and source.in_chans == 3
            else source.with_transform(None)[number][0]
        )
        return explain_classes(model, image, list(classes))
    except UnreadableImageError:
        return []


def _pictures(
    found: Sequence[Explanation], images: Images, judged: Judged, taken: Tensor, place: int
) -> list[Picture]:
    number, names = int(judged.numbers[place]), images.class_names
    first = found[0].shrink(_SIDE)
    pictures = [
        Picture(
            data=embed(first.image, _SIDE),
            caption=_truth(judged, place, names),
            detail=_short(images, number),
        )
    ]
    for one in found:
        label, share = one.target.index, float(judged.probabilities[place, one.target.index])
        words = f"{names[label]} {share:.1%}"
        if judged.labels.ndim == 2:
            words += "" if taken[place, label] else ", not taken"
        detail = one.describe_sum() if one.method == "evidence" else one.method
        pictures.append(
            Picture(data=embed(one.overlay(max_side=_SIDE), _SIDE), caption=words, detail=detail)
        )
    return pictures


def _truth(judged: Judged, place: int, names: Sequence[str]) -> str:
    if judged.labels.ndim == 1:
        return f"is {names[int(judged.labels[place])]}"
    there = judged.labels[place].nonzero()[:, 0].tolist()
    return "is " + (", ".join(names[one] for one in there) or "none of the classes")


def _short(images: Images, number: int) -> str:
    return "/".join(images.name(number).replace("\\", "/").split("/")[-2:])
