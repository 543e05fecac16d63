"""Which images belong together, and which of them are held out of the training."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from convattn.data.shard_files import open_image, size_of

_TAIL = 4096  # bytes at a file's end, by which files of one size are told apart first
_TEST_SHARE = 0.2


def find_duplicates(paths: Sequence[str]) -> list[list[int]]:
    """Places of files with the same bytes, two or more each, in the order of the first.

    Only files of one size are opened, and of these only such with the same end are read whole.

    Args:
        paths: The files; one that cannot be read is like no other.
    """
    groups = [list(range(len(paths)))]
    keys: tuple[Callable[[str], Hashable], ...] = (size_of, _tail, _digest)
    for key in keys:
        groups = [part for group in groups for part in _part(group, paths, key)]
    return sorted(groups)


def _part(
    group: list[int], paths: Sequence[str], key: Callable[[str], Hashable]
) -> list[list[int]]:
    parts: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index in group:
        try:
            parts[key(paths[index])].append(index)
        except OSError:
            continue
    return [part for part in parts.values() if len(part) > 1]


def _tail(path: str) -> bytes:
    with open_image(path) as file:
        file.seek(max(0, size_of(path) - _TAIL))
        return file.read()


def _digest(path: str) -> bytes:
    with open_image(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def group_by_name(paths: Sequence[str], root: Path, pattern: str) -> list[list[int]]:
    """Places of files that are of one thing, by what a pattern finds in their paths.

    Args:
        paths: The files.
        root: What the pattern sees of a path begins below it.
        pattern: A regular expression, searched for. What its first group matches, or all of it
            where it has none, names the thing. A path without a match stands alone.

    Raises:
        ValueError: If it is no regular expression, or matches no path.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"group={pattern!r} is no regular expression ({error}); expected for example "
            "'(patient[0-9]+)_', whose group names what images have in common"
        ) from None
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        match = expression.search(Path(os.path.relpath(path, root)).as_posix())
        if match is not None:
            groups[(match[1] if expression.groups else match[0]) or ""].append(index)
    if not groups:
        raise ValueError(
            f"group={pattern!r} is found in none of the {len(paths)} paths, for example "
            f"{os.path.relpath(paths[0], root)}; expected a regular expression that finds what "
            "images have in common"
        )
    return list(groups.values())


def group_images(
    paths: Sequence[str], root: Path, pattern: str | None, notes: list[str]
) -> list[list[int]]:
    """As ``group_by_name``, and a sentence about it; nothing without a pattern.

    Args:
        notes: Gets the sentence.
    """
    if pattern is None:
        return []
    groups = group_by_name(paths, root, pattern)
    alone = len(paths) - sum(map(len, groups))
    rest = f"; {alone:,} images are in none" if alone else ""
    notes.append(f"group {pattern!r}: {len(groups):,} groups{rest}")
    return groups


def note_copies(copies: Sequence[Sequence[int]], notes: list[str]) -> None:
    """Tell of images that stay in one part since they are the same.

    Args:
        copies: As ``find_duplicates`` gives them.
        notes: Gets the sentence.
    """
    if copies:
        extra = sum(map(len, copies)) - len(copies)
        notes.append(f"{extra:,} images are copies of others; copies stay in one part")


def refuse_group(group: str | None, root: Path) -> None:
    """A pattern given for a folder that is parted already.

    Raises:
        ValueError: If there is one.
    """
    if group is not None:
        raise ValueError(
            f"group={group!r} parts a folder without splits, and {root} has some; leave group out"
        )


def draw_held_out(
    labels: Tensor,
    class_names: Sequence[str],
    together: Iterable[Sequence[int]],
    seed: int,
    *,
    share: float = _TEST_SHARE,
    purpose: str = "test",
) -> Tensor:
    """Which images are held out of the training, (N,) bool: about a share of each class.

    At least one image of every class is held out, and at least one is not. Where images have
    several classes, the rarest class is drawn first.

    Args:
        labels: Class numbers (N,); or which classes an image has, (N, K) bool.
        class_names: Name of each class, for errors.
        together: Places of images that are all in one part.
        seed: Of the draw.
        share: Of each class.
        purpose: What they are held out for, for errors.

    Raises:
        ValueError: If a class has no two images that may be parted.
    """
    unit = number_units(len(labels), together)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(unit):
        members[number].append(index)
    generator = torch.Generator().manual_seed(seed)
    for_test = torch.zeros(len(labels), dtype=torch.bool)
    decided: set[int] = set()
    of_classes = _images_of_classes(labels)
    for label, own in of_classes.items():
        units = list(dict.fromkeys(unit[index] for index in own))
        if len(units) < 2:
            raise ValueError(
                f"all {len(own)} images of class {class_names[label]!r} belong together; expected "
                f"at least 2 groups, one to train and one to {purpose}"
            )
        sizes = Counter(unit[index] for index in own)
        wanted = max(1, round(share * len(own)))
        taken = int(for_test[own].sum())
        order = [units[place] for place in torch.randperm(len(units), generator=generator).tolist()]
        open_units = [one for one in order if one not in decided]
        # The last one stays for the training.
        spare = len(units) - len({one for one in units if for_test[members[one][0]]}) - 1
        chosen: list[int] = []
        for one in open_units:
            # Nearer to what is wanted with it than without.
            if len(chosen) < spare and sizes[one] < 2 * (wanted - taken):
                chosen.append(one)
                taken += sizes[one]
        if not taken and spare > 0 and open_units:
            chosen = [min(open_units, key=lambda one: (sizes[one], order.index(one)))]
        for one in chosen:
            for_test[members[one]] = True
        decided |= set(units)
    for label, own in of_classes.items():
        drawn = for_test[own]
        if drawn.all() or not drawn.any():
            raise ValueError(
                f"the images of class {class_names[label]!r} cannot be parted, since they belong "
                f"together with those of other classes; say yourself which images are to {purpose}"
            )
    return for_test


def _images_of_classes(labels: Tensor) -> dict[int, list[int]]:
    """Class -> the places of its images, in the order in which the classes are drawn."""
    if labels.ndim == 1:
        places = {one: (labels == one).nonzero()[:, 0] for one in labels.unique().tolist()}
    else:
        counts = labels.sum(0)
        order = [one for one in counts.argsort(stable=True).tolist() if counts[one]]
        places = {one: labels[:, one].nonzero()[:, 0] for one in order}
    return {one: found.tolist() for one, found in places.items()}


def draw_mixed_test(
    classes: Sequence[Iterable[int]],
    together: Iterable[Sequence[int]],
    seed: int,
    *,
    share: float = _TEST_SHARE,
    purpose: str = "test",
) -> Tensor:
    """Which images are held out where one may show several classes, (N,) bool: about a fifth.

    Images that belong together are drawn as one, among those whose rarest class is the same. Every
    class of a test image is one of a training image, too.

    Args:
        classes: Class numbers of each image.
        together: Places of images that are all in one part.
        seed: Of the draw.
        share: Of all.
        purpose: What they are held out for, for errors.

    Raises:
        ValueError: If no image can be spared.
    """
    shown = [frozenset(one) for one in classes]
    unit = number_units(len(shown), together)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(unit):
        members[number].append(index)
    counts = Counter(number for one in shown for number in one)
    of_unit = {
        number: min(
            (label for index in own for label in shown[index]),
            key=lambda label: (counts[label], label),
            default=-1,
        )
        for number, own in members.items()
    }
    strata = Counter(of_unit.values())
    labels = torch.tensor([of_unit[number] for number in unit])
    drawn = torch.tensor([strata[label] > 1 for label in labels.tolist()], dtype=torch.bool)
    for_test = torch.zeros(len(shown), dtype=torch.bool)
    if drawn.any():
        places = {index: place for place, index in enumerate(drawn.nonzero()[:, 0].tolist())}
        bound = [[places[i] for i in own] for own in members.values() if own[0] in places]
        _, strata_numbers = labels[drawn].unique(return_inverse=True)
        names = [str(number) for number in range(len(strata))]
        for_test[drawn] = draw_held_out(
            strata_numbers, names, bound, seed, share=share, purpose=purpose
        )
    for label in counts:
        showing = [index for index, one in enumerate(shown) if label in one]
        if for_test[showing].all():
            for index in showing:
                for_test[members[unit[index]]] = False
    if not for_test.any():
        raise ValueError(
            f"none of the {len(shown)} images can be spared to {purpose}, since each shows a "
            f"class that no other does, or belongs with the others; put images to {purpose} into a "
            "folder of their own"
        )
    return for_test


def find_equal(keys: Iterable[Hashable]) -> list[list[int]]:
    """Places that have the same key, two or more each.

    Args:
        keys: One a place.

    Examples:
        >>> find_equal("abca")
        [[0, 3]]
    """
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return [found for found in places.values() if len(found) > 1]


def number_units(count: int, together: Iterable[Sequence[int]]) -> list[int]:
    """For each place the first of those that it belongs with.

    Args:
        count: Number of places.
        together: Those that belong together.

    Examples:
        >>> number_units(4, [[1, 3]])
        [0, 1, 2, 1]
    """
    first = list(range(count))

    def root(index: int) -> int:
        while first[index] != index:
            first[index] = first[first[index]]
            index = first[index]
        return index

    for group in together:
        for index in group[1:]:
            one, other = sorted((root(group[0]), root(index)))
            first[other] = one
    return [root(index) for index in range(count)]
