"""Images that a data set holds several times, to the byte or nearly, and what follows of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from convattn.data.counts import PART_WORDS, Finding, Severity
from convattn.data.drawing import find_duplicates, find_equal, number_units

MOST_BITS = 4
"""Of 64, in which perceptual hashes of images that look alike differ at most.

JPEG's losses and other sizes change up to 2, another exposure or a frame of a fiftieth mostly up to
4. Of 32 million pairs of tiny_imagenet's images none is as near by chance; at 8 two are.
"""

Kind = Literal["exact", "near"]


def find_near(fingerprints: Sequence[str | None], most: int = MOST_BITS) -> list[list[int]]:
    """Places of images that look alike, two or more each, in the order of the first.

    Two of a group are so near, or joined by others of it.

    Args:
        fingerprints: 64 bits as a hexadecimal number; None is like no other.
        most: Bits in which those of two images may differ.
    """
    places = [place for place, one in enumerate(fingerprints) if one is not None]
    given = np.array([int(one, 16) for one in fingerprints if one is not None], np.uint64)
    codes, number = np.unique(given, return_inverse=True)
    unit = np.array(number_units(len(codes), near_codes(codes, most).tolist()), np.int64)
    groups = find_equal(unit[number].tolist())
    return sorted([places[one] for one in group] for group in groups)


def near_codes(codes: NDArray[np.uint64], most: int) -> NDArray[np.int64]:
    """All pairs of codes that differ in so many bits at most: (P, 2) places, some of them twice.

    Of ``most + 1`` bands of bits two such codes have at least one in common, so that only codes
    that have one are compared.

    Args:
        codes: (N,), all different.
        most: Bits, 0 to 63.
    """
    edges = np.linspace(0, 64, most + 2).round().astype(np.uint64)
    pairs = [np.empty((0, 2), np.int64)]
    for low, high in pairwise(edges):
        band = codes << (np.uint64(64) - high) >> (np.uint64(64) - high + low)
        order = band.argsort(kind="stable")
        band, own = band[order], codes[order]
        left, step = np.arange(len(codes)), 0
        while len(left):
            step += 1
            left = left[left + step < len(codes)]
            left = left[band[left] == band[left + step]]
            differing = (own[left] ^ own[left + step])[:, None].view(np.uint8)
            near = left[np.unpackbits(differing, axis=1).sum(1) <= most]
            pairs.append(np.stack([order[near], order[near + step]], 1))
    return np.concatenate(pairs)


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Groups of places, two or more each, of images that are the same or look so."""

    exact: Sequence[Sequence[int]]
    """Files of the same bytes."""
    near: Sequence[Sequence[int]]
    """Images that look alike and are not all the same file."""


def find_copies(files: Sequence[str] | None, fingerprints: Sequence[str | None]) -> Copies:
    """Both kinds among all images of a data set.

    Args:
        files: Their paths; None if they are no files.
        fingerprints: As for ``find_near``.
    """
    exact = [] if files is None else find_duplicates(files)
    same = {place: group[0] for group in exact for place in group}
    near = [
        group
        for group in find_near(fingerprints)
        if len({same.get(place, place) for place in group}) > 1
    ]
    return Copies(exact=exact, near=near)


def judge_copies(
    copies: Copies, places: Mapping[str, range], labels: Tensor | None, names: Sequence[str]
) -> Iterator[Finding]:
    """What is wrong with the copies: across the parts, of several classes, and the rest.

    Args:
        copies: All there are.
        places: Part -> those of its images, part after part.
        labels: Of all images, (N,) or (N, K); None if they have none.
        names: Of all images.
    """
    yield from _judge("exact", copies.exact, places, labels, names)
    yield from _judge("near", copies.near, places, labels, names)


_WORDS: Mapping[Kind, Mapping[str, str]] = {
    "exact": {
        "one": "is a {} image, too, byte for byte",
        "several": "are {} images, too, byte for byte",
        "as": "is",
        "measures": "measures",
        "classes": "as the same file twice: one label is wrong; keep the right one",
        "same": "the same file as",
    },
    "near": {
        "one": "looks like a {} image",
        "several": "look like {} images",
        "as": "looks like",
        "measures": "may measure",
        "classes": "in copies that look the same: one label may be wrong; look at them",
        "same": "nearly the same as",
    },
}


def _judge(
    kind: Kind,
    groups: Sequence[Sequence[int]],
    places: Mapping[str, range],
    labels: Tensor | None,
    names: Sequence[str],
) -> Iterator[Finding]:
    words = _WORDS[kind]
    worst: Severity = "error" if kind == "exact" else "warning"
    crossing: list[Sequence[int]] = []
    for early, late in combinations(places, 2):
        own = [group for group in groups if _in_both(group, places[early], places[late])]
        if own:
            sentence = _crossing(own, places, early, late, words, names)
            yield _finding(f"{kind}_copies_across_parts", worst, sentence, own, names)
        crossing += own
    contrary = [] if labels is None else [group for group in groups if _differ(labels, group)]
    if contrary:
        number = many(len(contrary), "image has", "images have")
        sentence = f"{number} several classes, {words['classes']}"
        yield _finding(f"{kind}_copies_of_two_classes", worst, sentence, contrary, names)
    rest = [group for group in groups if group not in crossing and group not in contrary]
    if rest:
        extra = sum(len(group) - 1 for group in rest)
        sentence = (
            f"{many(extra, 'image is', 'images are')} {words['same']} another of the same part, "
            "which counts for more than it should; keep one of each"
        )
        yield _finding(f"{kind}_copies", "note", sentence, rest, names)


def _in_both(group: Sequence[int], early: range, late: range) -> bool:
    return any(place in early for place in group) and any(place in late for place in group)


def _crossing(
    groups: Sequence[Sequence[int]],
    places: Mapping[str, range],
    early: str,
    late: str,
    words: Mapping[str, str],
    names: Sequence[str],
) -> str:
    """What copies in two parts mean, in a sentence."""
    held_out = [place for group in groups for place in group if place in places[late]]
    seen = next(place for place in groups[0] if place in places[early])
    known, what = PART_WORDS[early], PART_WORDS[late]
    are = words["one" if len(held_out) == 1 else "several"].format(known)
    return (
        f"{many(len(held_out), f'{what} image', f'{what} images')} {are}, as "
        f"{names[held_out[0]]} ({what}) {words['as']} {names[seen]} ({known}): the {what} "
        f"{words['measures']} memory; keep them in one of the two parts"
    )


def many(number: int, one: str, several: str) -> str:
    """How many of what there are, in words that agree with the number.

    Examples:
        >>> many(1, "image is", "images are"), many(2000, "image is", "images are")
        ('1 image is', '2,000 images are')
    """
    return f"1 {one}" if number == 1 else f"{number:,} {several}"


def _finding(
    kind: str,
    severity: Severity,
    sentence: str,
    groups: Sequence[Sequence[int]],
    names: Sequence[str],
) -> Finding:
    named = tuple(tuple(names[place] for place in group) for group in groups)
    return Finding(
        kind=kind,
        severity=severity,
        sentence=sentence,
        images=tuple(name for group in named for name in group),
        groups=named,
    )


def _differ(labels: Tensor, places: Sequence[int]) -> bool:
    own = labels[list(places)]
    return bool((own != own[0]).any())
