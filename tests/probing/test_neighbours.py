import math

import pytest
import torch
import torch.nn.functional as F

from convattn.probing.neighbours import averages, choose_number, vote
from tests.probing.maps import write


def draw():
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(40, 5, generator=generator), dim=1)
    return vectors, torch.randint(0, 3, (40,), generator=generator)


def test_shares_are_those_of_a_slow_vote():
    vectors, labels = draw()
    found = vote(vectors, labels, torch.arange(30), torch.arange(30, 40), 3, 7).exp()
    for place in range(30, 40):
        near = sorted(range(30), key=lambda k: -float(vectors[place] @ vectors[k]))[:7]
        weights = [math.exp(float(vectors[place] @ vectors[k]) / 0.07) for k in near]
        for number in range(3):
            own = [w for w, k in zip(weights, near, strict=True) if labels[k] == number]
            expected = sum(own) / sum(weights) + 1e-3
            assert float(found[place - 30, number]) == pytest.approx(expected, rel=1e-4)


def test_several_classes_give_log_odds():
    vectors, labels = draw()
    several = F.one_hot(labels, 3).bool()
    found = vote(vectors, several, torch.arange(30), torch.arange(30, 40), 3, 7).sigmoid()
    single = vote(vectors, labels, torch.arange(30), torch.arange(30, 40), 3, 7).exp() - 1e-3
    torch.testing.assert_close(found, single.clamp(1e-3, 1 - 1e-3), rtol=1e-4, atol=1e-5)


def test_the_number_is_never_more_than_there_are():
    vectors, labels = draw()
    assert choose_number(vectors, labels, torch.arange(4), torch.arange(4, 40), 3) == 1


def test_averages_are_of_the_maps(tmp_path):
    cache = write(tmp_path)
    expected = cache.read(cache.rows(torch.arange(120))).mean((2, 3))
    torch.testing.assert_close(averages(cache), expected / expected.norm(dim=1, keepdim=True))
