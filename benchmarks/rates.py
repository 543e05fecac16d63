"""Learning rates that a study tries: a grid, and beyond it while the best lies at its edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def rates_beyond(
    tried: Mapping[float, float], grid: Sequence[float], *, factor: float, widest: float
) -> list[float]:
    """The grid's rates that were not tried, then one beyond the best while that lies at the edge.

    Args:
        tried: Rate -> validation accuracy.
        grid: Rates to begin with, the lowest first.
        factor: Between the best and the one beyond.
        widest: How many times below and above the grid no rate is tried.
    """
    missing = [rate for rate in grid if rate not in tried]
    if missing:
        return missing
    best = best_rate(tried)
    beyond = {min(tried): best / factor, max(tried): best * factor}.get(best)
    if beyond is None or not grid[0] / widest <= beyond <= grid[-1] * widest:
        return []
    return [beyond]


def best_rate(tried: Mapping[float, float]) -> float:
    """The rate of highest validation accuracy, of equal ones the lowest."""
    return max(sorted(tried), key=lambda rate: tried[rate])
