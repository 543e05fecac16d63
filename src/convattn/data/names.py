"""Millions of names in flat buffers, which worker processes share with whoever forked them."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import overload

_AT_ONCE = 10_000


class Names(Sequence[str]):
    """Texts one after the other in one buffer: reading one writes nothing.

    Of a list each name is an object that counts its users, so that every worker that reads names
    gets pages of its own: 125 MB each on 1.3 million names.

    Args:
        names: File names, also such as are no valid text; of an iterator few are held at a time.

    Examples:
        >>> names = Names(["a.jpg", "b.jpg"])
        >>> names[1], names[-2:], len(names), names == ["a.jpg", "b.jpg"]
        ('b.jpg', ['a.jpg', 'b.jpg'], 2, True)
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._ends = array("q", [0])
        self._content = bytearray()  # grows in place, so that no second one is ever there
        waiting = iter(names)
        while some := [os.fsencode(name) for name in islice(waiting, _AT_ONCE)]:
            ends = accumulate(map(len, some), initial=self._ends.pop())
            self._ends.extend(ends)
            self._content += b"".join(some)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self._read(place) for place in places]
        return self._read(places)

    def __iter__(self) -> Iterator[str]:
        return map(self._read, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return self._content == other._content and self._ends == other._ends
        return isinstance(other, list | tuple) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({list(self)!r})"

    def _read(self, place: int) -> str:
        start, end = self._ends[place], self._ends[place + 1]
        return os.fsdecode(bytes(self._content[start:end]))
