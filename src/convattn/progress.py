"""How far long work is: a line that moves on a terminal, now and then a line in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

from convattn.text import report

Batch = TypeVar("Batch", bound=Sequence[Any])

_SECONDS = 10.0  # between two lines in a log file


def watched(batches: Iterable[Batch], total: int, *, seconds: float = _SECONDS) -> Iterator[Batch]:
    """Batches as they are, while it is told how many of the images are done.

    Args:
        batches: Each a pair or more, of which the first has an entry an image.
        total: Images.
        seconds: As for ``Progress``.
    """
    with Progress(total, seconds=seconds) as progress:
        for batch in batches:
            yield batch
            progress.update(len(batch[0]))


class Progress:
    """Tells on stderr how many of the images are done, how fast, and how long it will take.

    Args:
        total: Images.
        done: Of these before.
        seconds: Between two lines where stderr is no terminal.
    """

    def __init__(self, total: int, done: int = 0, *, seconds: float = _SECONDS) -> None:
        self._start, self._seconds = done, seconds
        self._began = self._told = time.monotonic()
        self._bar = tqdm(total=total, initial=done, unit=" images", disable=None)
        self._total, self._done = total, done

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and (now - self._told >= self._seconds or self._done == self._total):
            self._told = now
            report(self._line(now - self._began))

    def tell(self, message: str) -> None:
        """A line of its own.

        Args:
            message: What to tell.
        """
        with tqdm.external_write_mode(file=sys.stderr):
            report(message)

    def _line(self, seconds: float) -> str:
        rate = (self._done - self._start) / max(seconds, 1e-9)
        left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
        return f"{self._done:,} of {self._total:,} images, {rate:,.0f} images/s, {left} left"
