"""Steps beside each other: they take turns, and a ratio is that of neighbouring passes.

Whatever else the machine does meets all of them alike, so that ratios hold where times do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from convattn.bench.memory import allocated_memory, peak_memory
from convattn.bench.steps import Step, describe_error, step_seconds

K = TypeVar("K", bound=Hashable)


class Quartiles(NamedTuple):
    """A median and what lies about it; a format, as of a number, is for all three."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Those of at least one value, between which they are interpolated.

        Examples:
            >>> Quartiles.of([4.0, 1.0, 2.0])
            Quartiles(low=1.5, median=2.0, high=3.0)
        """
        return cls(*(float(one) for one in np.percentile(values, [25, 50, 75])))

    def __format__(self, spec: str) -> str:
        """The median, and the quartiles in brackets: 1.02 (0.98 to 1.10)."""
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What was found of one step."""

    seconds: tuple[float, ...] = ()
    """Of every round but those that warm up."""
    peak_bytes: int | None = None
    """What making and running it needed at most, if that was asked for."""
    error: str | None = None
    """Why it could not be made or run, in a line."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What :func:`compare` found."""

    timings: Mapping[str, Timing]
    """By the steps' names, in their order; one that failed as well."""
    reference: str | None
    """The step that ratios are to, unless another is named."""

    @property
    def names(self) -> list[str]:
        """The steps that did not fail."""
        return [name for name, timing in self.timings.items() if timing.error is None]

    def seconds(self, name: str) -> Quartiles:
        """Of one pass."""
        return Quartiles.of(self.timings[name].seconds)

    def milliseconds(self, name: str) -> Quartiles:
        """Of one pass."""
        return Quartiles.of([1e3 * one for one in self.timings[name].seconds])

    def ratios(self, name: str, to: str | None = None) -> list[float]:
        """A step's time over that of the reference in the same round, a round each.

        Args:
            name: The step.
            to: Another reference.

        Raises:
            ValueError: If there is no reference, or one of both failed.
        """
        below = self.reference if to is None else to
        for one in (name, below):
            if one not in self.names:
                raise ValueError(f"{one!r} was not timed; there are {', '.join(self.names)}")
        assert below is not None
        pairs = zip(self.timings[name].seconds, self.timings[below].seconds, strict=True)
        return [mine / theirs for mine, theirs in pairs]

    def ratio(self, name: str, to: str | None = None) -> Quartiles:
        """Quartiles of :meth:`ratios`."""
        return Quartiles.of(self.ratios(name, to))

    def cell(self, name: str) -> str:
        """For a table: milliseconds, and how many times the reference's."""
        return f"{self.milliseconds(name).median:.1f} ms, {self.ratio(name):.2f}"

    def fastest(self, start: str = "") -> str:
        """The step with the smallest median among those whose names start so."""
        names = [name for name in self.names if name.startswith(start)]
        return min(names, key=lambda name: self.seconds(name).median)


def compare(
    ways: Mapping[str, Step | Callable[[], Step]],
    *,
    reference: str | None = None,
    repeats: int = 15,
    warm_up: int = 2,
    device: torch.device | str = "cpu",
    makes: bool = False,
    memory: bool = False,
    tolerant: bool = False,
    title: str | None = None,
) -> Comparison:
    """Time steps that take turns, and measure what they need at their peak.

    Args:
        ways: The steps, or what makes them.
        reference: The step that ratios are to.
        repeats: Rounds that count.
        warm_up: Rounds before them.
        device: Where the steps compute.
        makes: Whether ``ways`` make the steps.
        memory: Whether the peak of making and running each is measured, too: on the CPU in a
            process of its own, as :func:`convattn.bench.peak_memory` does. Needs ``makes``.
        tolerant: Whether a step that fails is kept with its reason and the others go on.
        title: What a line of progress on a terminal is called; None shows none.

    Raises:
        ValueError: If ``memory`` is asked for of steps that are made already.
        Exception: What a step raises, unless ``tolerant``.

    Examples:
        >>> found = compare({"short": lambda: sum(range(9)), "long": lambda: sum(range(9999))},
        ...                 reference="short")
        >>> found.ratio("long").median > 2
        True
    """
    if memory and not makes:
        raise ValueError("memory=True needs what makes the steps: give makes=True and makers")
    device = torch.device(device)
    timings = {name: Timing() for name in ways}
    steps: dict[str, Step] = {}

    def note_failure(name: str, error: Exception) -> None:
        if not tolerant:
            raise error
        timings[name] = dataclasses.replace(timings[name], error=describe_error(error))

    for name, way in ways.items():
        try:
            if memory and device.type == "cuda":
                steps[name], peak = allocated_memory(way, device, warm_up=warm_up)
                timings[name] = Timing(peak_bytes=peak)
                continue
            if memory:
                peak = peak_memory(way, passes=warm_up + 1, count_making=True)
                timings[name] = Timing(peak_bytes=peak)
            steps[name] = way() if makes else way
        except Exception as error:
            note_failure(name, error)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    rounds = repeats + warm_up
    with tqdm(
        total=rounds * len(steps), desc=title, leave=False, disable=None if title else True
    ) as bar:
        for turn, name, result in interleave(
            steps, rounds, lambda step: step_seconds(step, device)
        ):
            bar.update()
            if isinstance(result, Exception):
                note_failure(name, result)
            elif turn >= warm_up:
                taken[name].append(result)
    for name, seconds in taken.items():
        timings[name] = dataclasses.replace(timings[name], seconds=tuple(seconds))
    return Comparison(timings=timings, reference=reference)


def interleave(
    steps: Mapping[K, Step],
    rounds: int,
    seconds: Callable[[Step], float] = step_seconds,
) -> Iterator[tuple[int, K, float | Exception]]:
    """Time each step once, then each once more, and so on.

    Args:
        steps: What to time; one that fails is left out from then on.
        rounds: How often.
        seconds: Runs a step and tells how long it took.

    Yields:
        The number of the round, the step's key, and its seconds or how it failed.

    Examples:
        >>> [key for _, key, _ in interleave({"a": list, "b": dict}, 2)]
        ['a', 'b', 'a', 'b']
    """
    left = dict(steps)
    for turn in range(rounds):
        for key, step in list(left.items()):
            result: float | Exception
            try:
                result = seconds(step)
            except Exception as error:
                result = error
                del left[key]
            yield turn, key, result
