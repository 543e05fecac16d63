import sys
from functools import partial

import pytest
import torch

from convattn.bench import HeldTensors, StepError, peak_memory

SIZE = 2**24
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the highest peak")


def make_step(held, extra):
    """A step that holds some bytes from the start, and more while it runs."""
    kept = torch.ones(held, dtype=torch.uint8)

    def step():
        return len(kept) + len(torch.ones(extra, dtype=torch.uint8))

    return step


def make_nothing():
    raise ValueError("no such step")


@linux
@pytest.mark.parametrize(("count_making", "sizes"), [(False, 1), (True, 3)])
def test_what_making_leaves_counts_if_asked(count_making, sizes):
    peak = peak_memory(partial(make_step, 2 * SIZE, SIZE), count_making=count_making)
    assert sizes - 0.2 < peak / SIZE < sizes + 0.4


def test_a_step_that_cannot_be_made_says_why():
    with pytest.raises(StepError, match=r"^ValueError: no such step$"):
        peak_memory(make_nothing)


def test_tensors_count_while_they_are_held_whatever_views_there_are():
    x = torch.zeros(10)
    with HeldTensors() as watched:
        y = x + 1
        view = y[2:]
        assert (watched.held(), watched.held_bytes()) == (10, 40)
        z = (x + 1).double()
    del y
    assert watched.held() == 20
    del view, z
    assert (watched.held(), watched.held_bytes()) == (0, 0)
    assert watched.most == 30


def test_the_most_is_kept_only_if_asked():
    with HeldTensors(tracks_most=False) as watched:
        torch.zeros(10)
    assert watched.most == 0
