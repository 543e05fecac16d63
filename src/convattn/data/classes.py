"""Classes by their names: which of a data set's a network knows."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from convattn.data.imagenet import imagenet_names
from convattn.text import list_names, nearest


def match_classes(
    theirs: Sequence[str], known: Sequence[str], ignore_unknown: bool, where: str
) -> list[int]:
    """For each class of a data set its number among those that a network knows, by its name.

    A class that the network does not know has -1. One of ImageNet's WordNet ids is known by its
    words, too.

    Args:
        theirs: The data set's classes.
        known: The network's.
        ignore_unknown: Whether there may be some that it does not know.
        where: What an error calls the data set.

    Raises:
        ValueError: If there are and must not; names the first.

    Examples:
        >>> match_classes(["dog", "ant"], ["ant", "bee", "dog"], False, "here")
        [2, 0]
    """
    numbers = {normal_name(name): number for number, name in enumerate(known)}
    found = []
    for name, words in zip(theirs, imagenet_names(theirs), strict=True):
        found.append(numbers.get(normal_name(name), numbers.get(normal_name(words), -1)))
    unknown = [name for name, number in zip(theirs, found, strict=True) if number < 0]
    if unknown and not ignore_unknown:
        raise ValueError(
            f"{where} has the class {unknown[0]!r}"
            + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
            + f", which the network does not know, the nearest being {nearest(unknown[0], known)!r}"
            + f" of its {len(known)} ({list_names(known)}); rename it, or leave such images out "
            "with --ignore-unknown"
        )
    return found


def find_alike(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that differ only in capitals or in how a letter is written.

    Examples:
        >>> find_alike(["ant", "Bee", "bee"])
        ('Bee', 'bee')
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normal_name(name).casefold(), name)
        if other != name:
            return other, name
    return None


def normal_name(name: str) -> str:
    """An umlaut is one character or two, as the system that packed the folder has it."""
    return unicodedata.normalize("NFC", name)
