"""The check of a data set: open it, look at every image, count, and tell what is wrong."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convattn.checks import quality
from convattn.checks.copies import Copies, find_copies, judge_copies, many
from convattn.checks.labels import check_labels
from convattn.checks.looking import Look, files_of, look_at
from convattn.checks.opening import OpenedData, Place, open_place
from convattn.checks.report import DataReport, LabelCheck, Part, Spread
from convattn.data import DetectionSource, Source, describe_skipped
from convattn.data.counts import (
    Counts,
    Finding,
    Severity,
    by_severity,
    count,
    judge_counts,
    parts_of,
)
from convattn.data.reading import HEADER_TRAITS
from convattn.runs import Run

_TINY = 4  # pixels of a box's shorter side
_WHOLE = 0.98  # share of an image that a box covers
_HEADERS_ALONE = (
    "pixels were not read (--quick): files cut short, masks, blurred or dark images and near "
    "duplicates were not looked for"
)


@dataclass(frozen=True, kw_only=True)
class CheckedData:
    """A data set and what was found in it."""

    source: Any
    """Of the report's task."""
    report: DataReport
    """What was found."""
    names: tuple[str, ...]
    """What images are called, part after part."""
    shown_by: Mapping[str, Sequence[int]]
    """Class -> places of images of it, or that show it, in the first part that has some."""
    copies: Copies
    """Places of images that are the same or look so."""

    def item(self, place: int) -> tuple[Any, Any]:
        """Image and truth at a place.

        Args:
            place: Among all images, part after part.
        """
        parts = parts_of(self.source)
        part = next(part for part, own in places_of(parts).items() if place in own)
        return parts[part][place - places_of(parts)[part].start]


class _Objects:
    """Boxes or pixels, counted image by image."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self.amounts = np.zeros(len(class_names), np.int64)
        self.places: defaultdict[int, list[int]] = defaultdict(list)
        self.without: list[int] = []
        self.tiny: list[int] = []
        self.whole: list[int] = []
        self.num_tiny = self.num_whole = 0
        self.seen = 0

    def add(self, place: int, look: Look) -> None:
        if look.labels is not None and look.boxes is not None:
            assert look.size is not None
            self.seen += 1
            found = np.bincount(look.labels - 1, minlength=len(self.amounts))
            sides = look.boxes[:, 2:] - look.boxes[:, :2]
            tiny = int((sides.min(1, initial=np.inf) < _TINY).sum())
            whole = int((sides.prod(1) >= _WHOLE * look.size[0] * look.size[1]).sum())
            self.num_tiny += tiny
            self.num_whole += whole
            self.tiny += [place] * bool(tiny)
            self.whole += [place] * bool(whole)
        elif look.pixels is not None:
            self.seen += 1
            found = look.pixels[: len(self.amounts)]
        else:
            return
        self.amounts += found
        for label in found.nonzero()[0].tolist():
            self.places[label].append(place)
        if not found.any():
            self.without.append(place)

    def images_of(self) -> dict[str, int]:
        return {name: len(self.places[label]) for label, name in enumerate(self.class_names)}

    def amount_of(self) -> dict[str, int]:
        return dict(zip(self.class_names, self.amounts.tolist(), strict=True))


def check_data(
    place: Place,
    *,
    task: str = "auto",
    run: Run | None = None,
    quick: bool = False,
    num_workers: int | None = None,
) -> CheckedData:
    """Find out what is in a data set and what is wrong with it; nothing is written.

    Args:
        place: Where it lies.
        task: As for ``open_place``.
        run: A classifier that judges the labels of images it did not learn from.
        quick: Read the images' headers alone.
        num_workers: Processes that read images; None takes one a core if there are many images.

    Raises:
        ValueError: If the data cannot be read, or the run knows other classes.
        FileNotFoundError: If they are not there.
    """
    opened = open_place(place, task)
    source = opened.source
    if run is not None and not isinstance(source, Source):
        raise ValueError(
            f"--run judges labels of whole images, and {place.root} is read for {opened.task}; "
            "leave it out"
        )
    parts = parts_of(source)
    places = places_of(parts)
    names = _names(parts, place.root)
    unit = _unit(source)
    decode = not quick
    looks: list[Look] = []
    objects: dict[str, _Objects] = {}
    for part, images in parts.items():
        tally = objects[part] = _Objects(source.class_names)
        for look in look_at(images, decode=decode, num_workers=num_workers):
            tally.add(len(looks), look)
            looks.append(_without_truth(look))
    labels = None
    if run is not None:
        readable = [look.fault is None for look in looks]
        labels = check_labels(run, source, place.root, readable, names)
    counts, odd = count(source), quality_issues(looks)
    copies = _copies(parts, looks, odd)
    findings = [
        *_refused(opened),
        *_unreadable(looks, names),
        *judge_copies(copies, places, _labels(parts), names),
        *_counted(counts, objects),
        *_objects_found(objects, names, unit),
        *_odd(odd, names),
        *_traits(looks, names),
        *_left_out(source),
        *_doubted(labels),
    ]
    report = DataReport(
        root=place.root,
        task=opened.task,
        class_names=tuple(source.class_names),
        unit=unit,
        parts={
            part: _part(
                part, looks[own.start : own.stop], names[own.start :], counts, objects[part]
            )
            for part, own in places.items()
        },
        findings=tuple(by_severity(findings)),
        notes=tuple(source.notes),
        not_looked_at=_not_looked_at(decode),
        labels=labels,
    )
    return CheckedData(
        source=source,
        report=report,
        names=names,
        shown_by=_shown_by(source.class_names, parts, objects),
        copies=copies,
    )


def _unit(source: Any) -> str | None:
    """What images show several of; None where each is of one class."""
    if isinstance(source, Source):
        return None
    return "boxes" if isinstance(source, DetectionSource) else "pixels"


def _names(parts: Mapping[str, Any], root: str) -> tuple[str, ...]:
    names: list[str] = []
    for part, images in parts.items():
        files = files_of(images)
        if files is None:
            names += [f"{part} image {number}" for number in range(len(images))]
        else:
            names += [os.path.relpath(file, os.path.expanduser(root)) for file in files]
    return tuple(names)


def _without_truth(look: Look) -> Look:
    """What is kept of a look when its boxes and pixels are counted."""
    return replace(look, boxes=None, labels=None, pixels=None)


def _part(
    part: str, looks: Sequence[Look], names: Sequence[str], counts: Counts, objects: _Objects
) -> Part:
    seen = [look for look in looks if look.size is not None]
    sizes = [look.size for look in seen if look.size is not None]
    faults = {
        name: look.fault for name, look in zip(names, looks, strict=False) if look.fault is not None
    }
    traits = Counter(trait for look in seen for trait in look.traits)
    images_of: Mapping[str, int] | None = objects.images_of() if objects.seen else None
    amount_of: Mapping[str, int] | None = objects.amount_of() if objects.seen else None
    if not objects.seen and part in counts.classes:
        numbers = dict(zip(counts.class_names, counts.classes[part], strict=True))
        images_of, amount_of = (None, numbers) if counts.unit == "objects" else (numbers, None)
    return Part(
        num_images=len(looks),
        images_of=images_of,
        amount_of=amount_of,
        width=Spread.of([width for width, _ in sizes]),
        height=Spread.of([height for _, height in sizes]),
        aspect=Spread.of([width / height for width, height in sizes]),
        formats=dict(Counter(look.format for look in seen).most_common()),
        traits={trait: traits[trait] for trait in HEADER_TRAITS if traits[trait]},
        unreadable=faults,
    )


def _not_looked_at(decode: bool) -> tuple[str, ...]:
    if not decode:
        return (_HEADERS_ALONE,)
    return () if quality.is_installed() else (quality.NOT_LOOKED_AT,)


def places_of(parts: Mapping[str, Any]) -> dict[str, range]:
    """Part -> the places of its images among all, part after part.

    Args:
        parts: As ``parts_of`` gives them.
    """
    places, start = {}, 0
    for part, images in parts.items():
        places[part] = range(start, start + len(images))
        start += len(images)
    return places


def _shown_by(
    class_names: Sequence[str], parts: Mapping[str, Any], objects: Mapping[str, _Objects]
) -> dict[str, Sequence[int]]:
    shown: dict[str, Sequence[int]] = {}
    for label, name in enumerate(class_names):
        candidates: list[Sequence[int]] = [tally.places[label] for tally in objects.values()]
        if not any(tally.seen for tally in objects.values()):
            places = places_of(parts)
            candidates = [
                _places_of_class(images, places[part].start, label)
                for part, images in parts.items()
            ]
        shown[name] = next((places for places in candidates if places), ())
    return shown


def _places_of_class(images: Any, start: int, label: int) -> list[int]:
    labels = getattr(images, "labels", None)
    if not isinstance(labels, Tensor):
        return []
    own = labels[:, label] > 0 if labels.ndim == 2 else labels == label
    return (own.nonzero()[:, 0] + start).tolist()


# --- what is wrong


def _chosen(names: Sequence[str], places: Iterable[int]) -> tuple[str, ...]:
    return tuple(names[place] for place in places)


def _refused(opened: OpenedData) -> Iterator[Finding]:
    if opened.refusal is not None:
        sentence = (
            f"training will stop: {opened.refusal} (--data.bad-annotations skip in training; what "
            "follows is of the rest)"
        )
        yield Finding(kind="bad_annotations", severity="error", sentence=sentence)


def _unreadable(looks: Sequence[Look], names: Sequence[str]) -> Iterator[Finding]:
    places = [place for place, look in enumerate(looks) if look.fault is not None]
    if places:
        sentence = (
            f"{many(len(places), 'image', 'images')} cannot be read, the first since "
            f"{looks[places[0]].fault}; mend them, or train without by --data.bad-images skip"
        )
        yield Finding(
            kind="unreadable", severity="error", sentence=sentence, images=_chosen(names, places)
        )


def _copies(
    parts: Mapping[str, Any], looks: Sequence[Look], odd: Mapping[str, Sequence[int]]
) -> Copies:
    """Images that are there several times; those that show next to nothing all look alike."""
    files = [own for own in map(files_of, parts.values()) if own is not None]
    known = [file for own in files for file in own] if len(files) == len(parts) else None
    blank = set(odd["low_information"])
    fingerprints = [
        None if place in blank else look.fingerprint for place, look in enumerate(looks)
    ]
    return find_copies(known, fingerprints)


def _labels(parts: Mapping[str, Any]) -> Tensor | None:
    labels = [getattr(images, "labels", None) for images in parts.values()]
    found = [one for one in labels if isinstance(one, Tensor)]
    return torch.cat(found) if len(found) == len(parts) else None


def _counted(counts: Counts, objects: Mapping[str, _Objects]) -> Iterator[Finding]:
    yield from judge_counts(counts)
    if counts.classes or not any(tally.seen for tally in objects.values()):
        return
    # Pixels have been counted meanwhile.
    amounts = {part: tuple(tally.amounts.tolist()) for part, tally in objects.items()}
    told = judge_counts(
        Counts(unit="pixels", class_names=counts.class_names, images=counts.images, classes=amounts)
    )
    yield from (finding for finding in told if finding.kind != "small_test")


def _objects_found(
    objects: Mapping[str, _Objects], names: Sequence[str], unit: str | None
) -> Iterator[Finding]:
    tallies = list(objects.values())
    unlabelled = [place for tally in tallies for place in tally.without]
    if unlabelled:
        number = many(len(unlabelled), "image", "images")
        shows = "shows" if len(unlabelled) == 1 else "show"
        what = "no object" if unit == "boxes" else "no class, all pixels are ignored"
        sentence = (
            f"{number} {shows} {what}: right if there is none to be seen, else label what is there"
        )
        yield Finding(
            kind="no_objects",
            severity="note",
            sentence=sentence,
            images=_chosen(names, unlabelled),
        )
    tiny = sum(tally.num_tiny for tally in tallies)
    if tiny:
        sentence = (
            f"{many(tiny, 'box is', 'boxes are')} narrower or lower than {_TINY} pixels, too "
            "little to be found; correct them, or leave such objects out"
        )
        places = [place for tally in tallies for place in tally.tiny]
        yield Finding(
            kind="tiny_boxes", severity="warning", sentence=sentence, images=_chosen(names, places)
        )
    whole = sum(tally.num_whole for tally in tallies)
    if whole:
        sentence = (
            f"{many(whole, 'box covers', 'boxes cover')} the whole image: right if the object "
            "does, wrong if the box stands for a label without a place"
        )
        places = [place for tally in tallies for place in tally.whole]
        yield Finding(
            kind="whole_boxes", severity="note", sentence=sentence, images=_chosen(names, places)
        )


def quality_issues(looks: Sequence[Look]) -> dict[str, list[int]]:
    """Places of odd images by each of ``quality.ISSUES``.

    Args:
        looks: At all images.
    """
    measured = [place for place, look in enumerate(looks) if look.measures]
    found = quality.find_odd([looks[place].measures for place in measured])
    return {issue: [measured[index] for index in own] for issue, own in found.items()}


_ADVICE: Mapping[str, tuple[Severity, str]] = {
    "dark": ("warning", "see whether anything can be told on them"),
    "light": ("warning", "see whether anything can be told on them"),
    "blurry": ("warning", "see whether anything can be told on them"),
    "low_information": ("warning", "remove what shows nothing"),
    "odd_size": ("note", "see whether they belong here"),
    "odd_aspect_ratio": ("note", "a square crop shows little of them; crop them beforehand"),
}


def _odd(odd: Mapping[str, Sequence[int]], names: Sequence[str]) -> Iterator[Finding]:
    for issue, places in odd.items():
        if places:
            severity, advice = _ADVICE[issue]
            said = quality.ISSUES[issue]
            number = many(len(places), "image", "images")
            if len(places) == 1:
                said = said.replace("are", "is", 1).replace("show", "shows", 1)
            yield Finding(
                kind=issue,
                severity=severity,
                sentence=f"{number} {said}; {advice}",
                images=_chosen(names, places),
            )


_TOLD_TRAITS: Mapping[str, str] = {
    "16 bits or floats": "more than 8 bits a channel, which are scaled to 8",
    "transparent": "transparent parts, which become white",
    "several frames": "several frames, of which the first is read",
    "turned": "a note that the camera was turned, which is followed",
    "CMYK": "the colours of print (CMYK), which become RGB",
}


def _traits(looks: Sequence[Look], names: Sequence[str]) -> Iterator[Finding]:
    for trait, said in _TOLD_TRAITS.items():
        places = [place for place, look in enumerate(looks) if trait in look.traits]
        if places:
            yield Finding(
                kind=trait.replace(" ", "_"),
                severity="note",
                sentence=f"{many(len(places), 'image has', 'images have')} {said}",
                images=_chosen(names, places),
            )
    grey = [place for place, look in enumerate(looks) if "grey" in look.traits]
    if 0 < len(grey) < len(looks):
        colour = len(looks) - len(grey)
        sentence = (
            f"{many(len(grey), 'image is', 'images are')} grey and {colour:,} in colour: see that "
            "it does not give a class away"
        )
        yield Finding(kind="grey", severity="note", sentence=sentence, images=_chosen(names, grey))


def _left_out(source: Any) -> Iterator[Finding]:
    if source.skipped:
        told = describe_skipped(source.skipped, source.skipped_names)
        sentence = f"{told}; see that none of it belongs to the set"
        yield Finding(kind="left_out", severity="note", sentence=sentence)


def _doubted(labels: LabelCheck | None) -> Iterator[Finding]:
    if labels is not None and labels.doubts:
        sentence = (
            f"{many(len(labels.doubts), 'label', 'labels')} of {labels.num_images:,} may be wrong "
            f"in the eyes of {labels.run}; look at the images and correct what is wrong"
        )
        yield Finding(
            kind="label_errors",
            severity="warning",
            sentence=sentence,
            images=tuple(one.image for one in labels.doubts),
        )
