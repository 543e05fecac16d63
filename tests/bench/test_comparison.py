import time
from functools import partial

import numpy as np
import pytest

from convattn.bench import Comparison, Quartiles, Timing, compare, interleave


def test_steps_take_turns_and_one_that_fails_drops_out():
    calls, broken = [], []

    def breaks():
        calls.append("b")
        if broken:
            raise RuntimeError("broken")
        broken.append(True)

    steps = {"a": lambda: calls.append("a"), "b": breaks, "c": lambda: calls.append("c")}
    ticks = iter(range(100))

    def seconds(step):
        step()
        return next(ticks)

    told = list(interleave(steps, 3, seconds))
    assert "".join(calls) == "abc" + "abc" + "ac"
    assert [(turn, key) for turn, key, _ in told] == [
        *((0, key) for key in "abc"),
        *((1, key) for key in "abc"),
        *((2, key) for key in "ac"),
    ]
    assert [str(result) for _, _, result in told] == ["0", "1", "2", "3", "broken", "4", "5", "6"]


def found(**seconds):
    timings = {name: Timing(seconds=tuple(taken)) for name, taken in seconds.items()}
    return Comparison(timings=timings, reference="plain")


def fails():
    raise RuntimeError("broken\nat last")


def test_a_ratio_is_the_median_over_neighbouring_passes_not_the_ratio_of_medians():
    one = found(plain=[1, 10, 2], ours=[2, 20, 1])
    assert one.ratios("ours") == [2, 2, 0.5]
    assert one.ratio("ours").median == 2
    assert one.ratio("plain", to="ours").median == 0.5
    assert one.seconds("ours").median / one.seconds("plain").median == 1


@pytest.mark.parametrize("count", [1, 2, 7])
def test_quartiles_are_numpys_and_written_with_their_median_first(count):
    values = list(np.random.default_rng(0).random(count))
    assert tuple(Quartiles.of(values)) == tuple(np.percentile(values, [25, 50, 75]))
    assert f"{Quartiles(0.98, 1.021, 1.1):.2f}" == "1.02 (0.98 to 1.10)"


def test_a_cell_tells_milliseconds_and_times_the_reference():
    assert found(plain=[0.1, 0.1], ours=[0.2, 0.3]).cell("ours") == (
        "250.0 ms, 2.50 (2.25 to 2.75)"
    )


def test_the_fastest_is_sought_among_names_that_start_alike():
    one = found(plain=[1], ours=[3], ours_compiled=[2])
    assert one.fastest("ours") == "ours_compiled"
    assert one.fastest() == "plain"


def test_a_step_that_was_not_timed_is_named_with_those_that_were():
    with pytest.raises(ValueError, match="'other' was not timed; there are plain"):
        found(plain=[1]).ratio("other")


def test_rounds_that_warm_up_do_not_count():
    calls = []
    one = compare({"a": partial(calls.append, "a"), "b": partial(calls.append, "b")}, repeats=3)
    assert "".join(calls) == 5 * "ab"
    assert [len(timing.seconds) for timing in one.timings.values()] == [3, 3]


def test_a_step_that_sleeps_takes_longer():
    one = compare({"short": list, "long": partial(time.sleep, 0.005)}, reference="short", repeats=3)
    assert one.ratio("long").low > 1


def test_what_fails_ends_the_comparison_unless_it_is_tolerant():
    with pytest.raises(RuntimeError, match="broken"):
        compare({"a": list, "b": fails})
    one = compare({"a": list, "b": fails}, repeats=2, tolerant=True)
    assert one.names == ["a"]
    assert one.timings["b"].error == "RuntimeError: broken at last"
    one = compare({"a": lambda: list, "b": fails}, repeats=2, makes=True, tolerant=True)
    assert one.names == ["a"]
    assert one.timings["b"].error == "RuntimeError: broken at last"


def test_memory_is_measured_of_what_is_made():
    with pytest.raises(ValueError, match="give makes=True"):
        compare({"a": list}, memory=True)
    one = compare({"a": partial(partial, bytearray, 2**24)}, repeats=1, makes=True, memory=True)
    assert 0.9 < one.timings["a"].peak_bytes / 2**24 < 1.5
