"""What can be said of a data set without opening an image: numbers a class and part, and faults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from convattn.data.annotated import AnnotatedImages
from convattn.data.detection import DetectionSource
from convattn.text import list_names

Severity = Literal["error", "warning", "note"]
"""An error stops a training or makes its result wrong; a warning may spoil it."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The worst first."""

_UNBALANCED = 10  # times as many of one class as of another
_FEW = 20  # training images, or objects, of a class
_SMALL_TEST = 100  # images
PART_WORDS: Mapping[str, str] = {"train": "training", "val": "validation", "test": "test"}
"""Part of a source -> what its images are called, in the order in which they are gone through."""
SHOWN = 5
"""Names in a sentence."""
_NO_CLASSES = frozenset(
    ("images", "image", "imgs", "masks", "annotations", "labels", "jpegimages", "data")
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about a data set that whoever trains on it has to know."""

    kind: str
    """One word or two, for programs."""
    severity: Severity
    """How bad it is."""
    sentence: str
    """What was found, and what to do."""
    images: tuple[str, ...] = ()
    """Names of the images that it is about."""
    groups: tuple[tuple[str, ...], ...] = ()
    """The same in groups of images that belong together, where they do."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much there is of each class."""

    unit: str
    """What is counted: images or objects."""
    class_names: tuple[str, ...]
    """The classes in the order of their numbers."""
    images: Mapping[str, int]
    """Part, as ``PART_WORDS`` has them -> its images; one that is not there is missing."""
    classes: Mapping[str, tuple[int, ...]]
    """Part -> how many of each class; a part where only its pixels would tell is missing."""


def parts_of(source: Any) -> dict[str, Any]:
    """Part -> its images, of the parts that a source has, in the order of ``PART_WORDS``.

    Args:
        source: Of any task.
    """
    parts = {part: getattr(source, part, None) for part in PART_WORDS}
    return {part: images for part, images in parts.items() if images is not None}


def count(source: Any) -> Counts:
    """Count the images, or their objects, of each class; none is opened.

    Args:
        source: Of any task.
    """
    is_detection = isinstance(source, DetectionSource)
    parts = parts_of(source)
    found = {
        part: _count_classes(images, len(source.class_names), first=int(is_detection))
        for part, images in parts.items()
    }
    return Counts(
        unit="objects" if is_detection else "images",
        class_names=tuple(source.class_names),
        images={part: len(images) for part, images in parts.items()},
        classes={part: numbers for part, numbers in found.items() if numbers is not None},
    )


def _count_classes(images: Any, num_classes: int, *, first: int) -> tuple[int, ...] | None:
    """How many labels of each class images have, None if only their pixels tell.

    Args:
        images: A part of a source.
        num_classes: Without the background.
        first: Label of the first class.
    """
    labels = getattr(images, "labels", None)
    if labels is None and isinstance(images, AnnotatedImages):
        own = [getattr(sample, "labels", None) for sample in images.samples]
        if not own or own[0] is None:
            return None
        labels = torch.from_numpy(np.concatenate([np.asarray(some, np.int64) for some in own]))
    if not isinstance(labels, Tensor):
        return None
    if labels.ndim == 2:  # a column a class
        return tuple((labels > 0).sum(0).tolist())
    return tuple(torch.bincount(labels - first, minlength=num_classes)[:num_classes].tolist())


def judge_counts(counts: Counts) -> list[Finding]:
    """What will disturb a training, or a test, in these numbers.

    Args:
        counts: Of a data set.

    Examples:
        >>> counts = Counts(
        ...     unit="images", class_names=("ant", "bee"), images={"train": 330},
        ...     classes={"train": (300, 30)},
        ... )
        >>> [finding.kind for finding in judge_counts(counts)]
        ['imbalance']
    """
    found = _misplaced(counts)
    for part in counts.classes:
        found += _absent(counts, part)
    if "train" in counts.classes:
        found += _unbalanced(counts)
        found += _few(counts)
    return found + _small_test(counts)


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first, those that are as bad as each other in their order."""
    return sorted(findings, key=lambda one: SEVERITIES.index(one.severity))


def _misplaced(counts: Counts) -> list[Finding]:
    names = [name for name in counts.class_names if name.casefold() in _NO_CLASSES]
    if counts.unit != "images" or not names:
        return []
    quoted = [repr(name) for name in names]
    sentence = (
        f"{list_names(quoted, SHOWN)} taken as classes are names of folders that hold "
        "data, not of what is on images: if the class folders are inside one, give that instead"
    )
    return [Finding(kind="misplaced", severity="warning", sentence=sentence)]


def _absent(counts: Counts, part: str) -> list[Finding]:
    pairs = zip(counts.class_names, counts.classes[part], strict=True)
    names = [name for name, number in pairs if not number]
    if not names:
        return []
    what = counts.unit.removesuffix("s")
    sentence = f"no {PART_WORDS[part]} {what} is of {_classes(names)}"
    if part == "train":
        sentence += ", which cannot be learnt; add some, or leave the classes out"
    else:
        sentence += (
            ": how well they are told apart is not measured; add some, or leave the classes out"
        )
    worst: Severity = "error" if part == "train" and counts.unit == "images" else "warning"
    return [Finding(kind=f"no_{part}_{what}", severity=worst, sentence=sentence)]


def _classes(names: Sequence[str]) -> str:
    quoted = [repr(name) for name in names]
    if len(names) == 1:
        return f"class {quoted[0]}"
    return f"{len(names)} classes ({list_names(quoted, SHOWN)})"


def _unbalanced(counts: Counts) -> list[Finding]:
    there = {
        name: number
        for name, number in zip(counts.class_names, counts.classes["train"], strict=True)
        if number
    }
    if len(there) < 2:
        return []
    largest, smallest = max(there, key=there.__getitem__), min(there, key=there.__getitem__)
    times = there[largest] / there[smallest]
    if times < _UNBALANCED:
        return []
    sentence = (
        f"of class {largest!r} there are {there[largest]:,} training {counts.unit}, {times:,.0f} "
        f"times as many as the {there[smallest]:,} of {smallest!r}: read the figures class by "
        "class, since the mean hides rare ones, and gather more of those"
    )
    return [Finding(kind="imbalance", severity="warning", sentence=sentence)]


def _few(counts: Counts) -> list[Finding]:
    there = zip(counts.class_names, counts.classes["train"], strict=True)
    few = sorted((number, name) for name, number in there if 0 < number < _FEW)
    if not few:
        return []
    told = [f"{name!r} {number}" for number, name in few]
    sentence = (
        f"{len(few)} of {len(counts.class_names)} classes have fewer than {_FEW} training "
        f"{counts.unit} ({list_names(told, SHOWN)}): little can be learnt of them; gather more"
    )
    return [Finding(kind="few", severity="warning", sentence=sentence)]


def _small_test(counts: Counts) -> list[Finding]:
    number = counts.images.get("test", 0)
    if not 0 < number < _SMALL_TEST:
        return []
    margin = 100 * 1.96 * math.sqrt(0.25 / number)
    sentence = (
        f"there are {number} test images: a share measured on them may be off by up to "
        f"{margin:.0f} points by chance; compare networks on more"
    )
    return [Finding(kind="small_test", severity="note", sentence=sentence)]


def summarize(source: Any, root: str) -> list[str]:
    """One line on how much there is, and one on the worst of what is wrong with that.

    Args:
        source: Of any task.
        root: Where the data lie, for the command that tells more.
    """
    counts = count(source)
    if counts.images["train"] <= 1:  # whoever tests asks for no training images, or one of them
        counts = _without_training(counts)
    names = {"train": "to train", "val": "to validate", "test": "to test"}
    parts = [
        f"{number:,} images {names[part]}{_range(counts, part)}"
        for part, number in counts.images.items()
    ]
    number = len(counts.class_names)
    lines = [f"{', '.join(parts)}; {number:,} class{'' if number == 1 else 'es'}"]
    worst = [one for one in by_severity(judge_counts(counts)) if one.severity != "note"]
    if worst:
        more = f" ({len(worst) - 1} more)" if len(worst) > 1 else ""
        lines.append(f"{worst[0].sentence}{more}; see convattn check-data {root}")
    return lines


def _without_training(counts: Counts) -> Counts:
    return replace(
        counts,
        images={"test": counts.images["test"]},
        classes={part: numbers for part, numbers in counts.classes.items() if part == "test"},
    )


def _range(counts: Counts, part: str) -> str:
    numbers = counts.classes.get(part)
    if not numbers:
        return ""
    unit = "" if counts.unit == "images" else f" {counts.unit}"
    low, high = min(numbers), max(numbers)
    between = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f" ({between}{unit} a class)"
