"""WebDataset's tars as others write them: an image, its label and notes share a key."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from convattn.data.images import ImageFiles
from convattn.data.reading import image_extensions
from convattn.data.shard_files import Member, tar_members
from convattn.text import one_line

_CLASS_KEYS = ("classes", "class_name", "class", "label", "cls")
"""Where a sample's JSON has its class, the first that it has."""

_Class = int | str


@dataclass(frozen=True, kw_only=True)
class ForeignImages:
    """The images of some tars."""

    parts: Mapping[str | None, ImageFiles]
    """Split -> its images; None: of those whose names tell no split."""
    class_names: tuple[str, ...]
    """In the order of their numbers."""
    several: bool
    """Whether an image may have several classes."""


class _Labelled(NamedTuple):
    path: str
    classes: tuple[_Class, ...]
    several: bool
    """Whether its classes stood in a list."""
    name: str | None
    """What the class is called whose number is given."""


def read_foreign(files: Mapping[str | None, Sequence[str]]) -> ForeignImages:
    """Look through tars for images and their classes, which takes a while for large ones.

    A sample is the files of a tar whose names are the same up to the first dot: an image, and
    ``cls``, a class's number or name, or ``json``, which has it under one of ``_CLASS_KEYS``.

    Args:
        files: Split -> paths or URLs.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one is no tar, or cut short, has a key twice, or an image without a class.
    """
    found: dict[str | None, list[_Labelled]] = {split: [] for split in files}
    shards = [(split, file) for split, some in files.items() for file in some]
    for split, file in tqdm(shards, desc="indexing the shards", disable=None, leave=False):
        found[split] += _samples(file)
    everything = [sample for samples in found.values() for sample in samples]
    if not everything:
        raise ValueError(f"{shards[0][1]} and all other shards hold no image; expected KEY.jpg")
    several = any(sample.several for sample in everything)
    numbers, class_names = _number_classes(everything)
    if len(class_names) < 2:
        raise ValueError(
            f"all images of {shards[0][1]} and the other shards are of one class, "
            f"{class_names[0]!r}; expected at least 2"
        )
    parts = {}
    for split, samples in found.items():
        classes = [[numbers[one] for one in sample.classes] for sample in samples]
        labels = (
            labels_of(classes, len(class_names))
            if several
            else labels_of([one[0] for one in classes], None)
        )
        parts[split] = ImageFiles([sample.path for sample in samples], labels)
    return ForeignImages(parts=parts, class_names=class_names, several=several)


def labels_of(classes: Sequence[Any], num_classes: int | None) -> Tensor:
    """Labels (N,) of class numbers, or (N, K) bool of lists of such.

    Args:
        classes: A number an image, or a list of several.
        num_classes: K; None: each has one.
    """
    if num_classes is None:
        return torch.tensor(list(classes), dtype=torch.int64)
    labels = torch.zeros(len(classes), num_classes, dtype=torch.bool)
    places = [(row, number) for row, one in enumerate(classes) for number in one]
    labels[tuple(torch.tensor(places, dtype=torch.int64).reshape(-1, 2).T)] = True
    return labels


def _number_classes(samples: Sequence[_Labelled]) -> tuple[dict[_Class, int], tuple[str, ...]]:
    """Class -> its number, and the names in order."""
    classes = {one for sample in samples for one in sample.classes}
    numbers = [one for one in classes if isinstance(one, int)]
    if numbers and len(numbers) < len(classes):
        name = next(one for one in classes if isinstance(one, str))
        raise ValueError(
            f"the shards have classes by number, as {numbers[0]}, and by name, as {name!r}; "
            "expected one of the two"
        )
    if not numbers:
        names = sorted(str(one) for one in classes)
        return {name: number for number, name in enumerate(names)}, tuple(names)
    names = [str(number) for number in range(max(numbers) + 1)]
    for sample in samples:
        if sample.name is not None and isinstance(sample.classes[0], int):
            names[sample.classes[0]] = sample.name
    return {number: number for number in range(len(names))}, tuple(names)


def _samples(file: str) -> Iterator[_Labelled]:
    """The images of a tar in its order, with their classes."""
    samples: dict[str, dict[str, Member]] = {}
    for member in tar_members(file):
        folder, name = os.path.split(member.name)
        key, _, end = name.partition(".")
        key = f"{folder}/{key}" if folder else key
        sample = samples.setdefault(key, {})
        if f".{end.lower()}" in image_extensions():
            end = "image"
        if end in sample:
            raise ValueError(
                f"{file} holds the key {key!r} twice, as {sample[end].name} and {member.name}; "
                "expected one image and one label a key"
            )
        sample[end] = member
    for key, sample in samples.items():
        if "image" in sample:
            yield _labelled(file, sample)
        elif "cls" in sample:
            raise ValueError(
                f"{file} holds {sample['cls'].name} and no image of the key {key!r}; expected "
                f"{key}.jpg or another image beside it"
            )


def _labelled(file: str, sample: Mapping[str, Member]) -> _Labelled:
    path = f"{file}/{sample['image'].name}"
    notes = _notes_of(file, sample)
    told: Any = next((notes[key] for key in _CLASS_KEYS if notes.get(key) is not None), None)
    if "cls" in sample:
        text = (sample["cls"].text or b"").decode(errors="replace").strip()
        one: _Class = int(text) if text.isascii() and text.isdigit() else text
        if one == "":
            raise ValueError(f"{file} holds {sample['cls'].name}, which is empty; expected a class")
        listed = isinstance(told, list) and len(told) == 1
        name = told[0] if listed else notes.get("class_name")
        return _Labelled(path, (one,), False, name if isinstance(name, str) else None)
    classes = told if isinstance(told, list) else [told]
    if not all(isinstance(one, int | str) and not isinstance(one, bool) for one in classes):
        raise ValueError(
            f"{path} has no label; expected a .cls of its key, or a .json with one of "
            f"{', '.join(_CLASS_KEYS)}, a class's number or name"
        )
    if any(isinstance(one, int) and one < 0 for one in classes):
        raise ValueError(f"{path} has the class {min(classes)}; expected a number from 0")
    return _Labelled(path, tuple(classes), isinstance(told, list), None)


def _notes_of(file: str, sample: Mapping[str, Member]) -> dict[str, Any]:
    if "json" not in sample:
        return {}
    try:
        notes = json.loads(sample["json"].text or b"")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} holds {sample['json'].name}, which is no JSON ({one_line(error)})"
        ) from error
    return notes if isinstance(notes, dict) else {}
