"""The plain code that pools are timed beside computes what they compute."""

import pytest
import torch

from convattn import POOLS

HEAVY = {"map", "aggregation"}


@pytest.fixture
def steps(load):
    return load("pool_step")


def test_every_light_pool_has_its_plain_code(steps):
    assert steps.PLAIN.keys() == POOLS.keys() - HEAVY


@pytest.mark.parametrize("name", sorted(POOLS.keys() - HEAVY))
def test_logits_and_gradients_are_equal(steps, name):
    x = steps.features(32, 5, batch=6)
    steps.check_equal(steps.make_networks(name, 32), x, torch.arange(6) % 3)


def test_what_differs_is_found(steps, monkeypatch):
    monkeypatch.setitem(steps.PLAIN, "avg", lambda p, x: x.amax((2, 3)))
    x = steps.features(32, 5, batch=6)
    with pytest.raises(AssertionError):
        steps.check_equal(steps.make_networks("avg", 32), x, torch.arange(6) % 3)


@pytest.mark.parametrize("name", ["avg", "residual", "query", "ep", "class"])
def test_a_loop_by_hand_learns_what_probe_learns(steps, name):
    ours, plain = steps.make_epochs(name, steps.make_maps(32, 3), 2)
    ours._train_epoch(None)
    plain.train_epoch()
    steps.check_losses(ours, plain)


def test_a_comparison_is_of_its_rounds(steps):
    found = steps.compare_steps({"ours": lambda: sum(range(99)), "plain": lambda: None}, 3)
    assert [len(found.timings[name].seconds) for name in ("ours", "plain")] == [3, 3]
    with pytest.raises(ZeroDivisionError):
        steps.compare_steps({"plain": lambda: 1 / 0}, 3)
